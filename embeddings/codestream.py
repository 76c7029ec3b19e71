"""What a compressed frame says of itself, and JPEG 2000 frames decoded at no more resolution than is needed."""

from __future__ import annotations

from io import BytesIO
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset

from .reduction import on_whole_grid

JPEG2000_SYNTAXES = ("1.2.840.10008.1.2.4.90", "1.2.840.10008.1.2.4.91")
"""JPEG 2000, lossless only and not (PS3.5 A.4.4)."""

_SOC_SIZ, _COD, _SOT = b"\xff\x4f\xff\x51", b"\xff\x52", b"\xff\x90"
"""Markers: start of a codestream with its size, coding style, start of the first tile (ISO/IEC 15444-1 table A.2)."""

_HEADER_BYTES = 65536
"""A main header is no longer than this; what claims to be is not looked at further."""


def codestream_size(data: bytes) -> tuple[int, int] | None:
    """Return (rows, columns) claimed by a JPEG, JPEG-LS or JPEG 2000 codestream, or None where it says nothing.

    They are in the frame header SOF (ISO/IEC 10918-1 B.2.2), for JPEG 2000 in SIZ (ISO/IEC 15444-1 A.5.1).
    """
    start = data.find(b"\xff\x4f\xff\x51", 0, 512)
    if start >= 0:
        right, bottom, left, top = (int.from_bytes(data[start + at : start + at + 4], "big") for at in (8, 12, 16, 20))
        return bottom - top, right - left
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
        elif marker == 0xF7 or (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)):
            return int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None


def resolution_levels(data: bytes) -> int:
    """Return how often a JPEG 2000 codestream can be halved: its decomposition levels (ISO/IEC 15444-1 A.6.1)."""
    start = data.find(_SOC_SIZ, 0, 512)
    if start < 0:
        return 0
    at = start + 2
    while at + 4 <= min(len(data), start + _HEADER_BYTES):
        marker = data[at : at + 2]
        if marker == _COD and at + 10 <= len(data):
            return data[at + 9]
        if marker == _SOT or marker[0] != 0xFF:
            return 0
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0


def reduction(rows: int, columns: int, side: int, most: int) -> int:
    """Return how often an image can be halved so that `side` rows and columns are left, at most `most` times."""
    times = 0
    while times < most and min(rows, columns) >> (times + 1) >= side:
        times += 1
    return times


def decode_reduced(codestream: bytes, header: Dataset, side: int) -> NDArray[Any] | None:
    """Decode a grey JPEG 2000 frame with its finest levels left out.

    The values are those of the low-pass image, which is on the scale of the stored values: windows and rescaling hold.
    Signed values, colour, palette indexes and frames with padding, which would be blended into the image, are left to
    the plain decoder; so is what contradicts its header.

    Args:
        codestream: The compressed frame, of a size that was checked.
        header: The DICOM header.
        side: Rows and columns that must be left.

    Returns:
        Stored values (h, w) over the area of the whole frame, or None where the frame has to be decoded whole.
    """
    plain = int(header.get("SamplesPerPixel") or 1) == 1 and int(header.get("PixelRepresentation") or 0) == 0
    grey = str(header.get("PhotometricInterpretation")).startswith("MONOCHROME")
    shape = int(header.Rows), int(header.Columns)
    start = codestream.find(_SOC_SIZ, 0, 512)
    if not plain or not grey or "PixelPaddingValue" in header or start < 0 or len(codestream) < start + 43:
        return None
    if codestream_size(codestream) != shape or any(codestream[start + 16 : start + 24]):  # an origin other than (0, 0)
        return None
    times = reduction(*shape, side, resolution_levels(codestream))
    bits, signed = (codestream[start + 42] & 0x7F) + 1, codestream[start + 42] >> 7
    if times == 0 or signed or bits > 16:
        return None
    factor = 1 << times
    try:
        opened: Any = Image.open(BytesIO(codestream), formats=("JPEG2000",))
        with opened as image:
            # Pillow rounds the reduced size, the codec rounds it up (ISO/IEC 15444-1 B.5): sizes in between would fail
            image._size = tuple(-(-length // factor) * factor for length in image.size)
            image.reduce = times  # in this format not the method of other images
            image.load()
            values = np.asarray(image)
    except MemoryError:
        raise
    except Exception:  # the plain decoder says what is wrong, in its own words
        return None
    if values.ndim != 2 or values.dtype not in (np.uint8, np.uint16):
        return None
    values = values >> (8 * values.itemsize - bits)  # Pillow fills the width of its type
    return on_whole_grid(values, shape, factor, offset=(1 - 1 / factor) / 2)
