"""DICOM to grey levels in PS3.3's order: modality LUT (C.11.1), VOI LUT (C.11.2), then MONOCHROME1 (C.7.6.3.1.2)."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.processing import apply_color_lut
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from .errors import ImageError
from .greyscale import WINDOW_FUNCTIONS, apply_window, is_finite, look_up, luminance, stretch
from .images import ImageIdentity, check_size, choose_frame, one_line
from .quiet import quiet

# Header fields kept beside a vector, and the metadata key of each: what one filters by; no names or dates of birth.
IDENTITY_FIELDS = {
    "Modality": "modality",
    "BodyPartExamined": "body_part",
    "ViewPosition": "view_position",
    "ImageLaterality": "laterality",
    "StudyInstanceUID": "study_uid",
    "SeriesInstanceUID": "series_uid",
    "SOPClassUID": "sop_class_uid",
    "PhotometricInterpretation": "photometric",
    "Rows": "rows",
    "Columns": "columns",
    "NumberOfFrames": "frames",
}

# Bytes a deflated file may grow to, per pixel allowed; beyond it is a bomb (a frame of 16 bits takes 2).
_INFLATED_BYTES_PER_PIXEL = 4

# Syntaxes whose only free decoder is one that the extra `dicom` leaves out for its licence (GPL).
_JPEG_SYNTAXES = ("1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")


def read_dicom(
    path: Path, *, frame: int | None, window: tuple[float, float] | None, max_pixels: int
) -> NDArray[np.float32]:
    """Read one frame of a DICOM file as it is meant to be seen.

    1. Modality LUT, or Rescale Slope and Intercept (PS3.3 C.11.1); those of the frame's functional group come first.
    2. VOI LUT, or the first window with its VOI LUT Function (C.11.2). A file with neither, or with a window whose
       width the standard forbids, is stretched from the smallest to the largest value that is not padding.
    3. MONOCHROME1 is inverted (C.7.6.3.1.2); Presentation LUT Shape only repeats what that says, and is not read.

    Pixel Padding Value and Range Limit (C.7.5.1.1.2) have no say in step 2 and are black after step 3. Colour
    (RGB, YBR, PALETTE COLOR) becomes luminance over the full range of its bits. Only the wanted frame is decoded.

    Args:
        path: A regular file, with or without preamble.
        frame: Index from 0; None takes the middle frame, n // 2.
        window: (centre, width) in modality units instead of the file's own VOI (function LINEAR_EXACT).
        max_pixels: Rows x columns allowed.

    Returns:
        Grey levels in [0, 1], shape (rows, columns).

    Raises:
        ImageError: No pixels, damaged, too large, no such frame, or a syntax that nothing installed decodes.
    """
    name = str(path)
    with quiet():
        try:
            header, pixels = _read_header(path, name, max_pixels)
            samples = _check_header(header, name, max_pixels)
            index = choose_frame(name, frame, _frame_count(header))
            stored = _decode(header, pixels, index, name, max_pixels)
            if not is_finite(stored):
                raise ImageError(name, "holds NaN or infinite grey levels")
            if samples == 1 and str(header.PhotometricInterpretation).startswith("MONOCHROME"):
                return _show_monochrome(stored, header, index, window)
            return _show_colour(stored, header, window)
        except ImageError:
            raise
        except MemoryError as error:
            raise ImageError(name, "does not fit into memory") from error
        except Exception as error:  # a hostile header makes a parser raise anything; the caller gets one type
            raise ImageError(name, f"its DICOM header is damaged ({one_line(error)})") from error


def read_identity(path: Path, sha256: str) -> ImageIdentity:
    """Read what `image_identity` returns for a DICOM file: ids and the fields of `IDENTITY_FIELDS`, no pixels.

    Raises:
        ImageError: The header cannot be parsed.
    """
    from .images import DEFAULT_MAX_PIXELS

    name = str(path)
    with quiet():
        try:
            header, _ = _read_header(path, name, DEFAULT_MAX_PIXELS)
            metadata = {
                key: value for tag, key in IDENTITY_FIELDS.items() if (value := _plain(header.get(tag))) is not None
            }
            uid, patient = _plain(header.get("SOPInstanceUID")), _plain(header.get("PatientID"))
        except ImageError:
            raise
        except Exception as error:
            raise ImageError(name, f"its DICOM header is damaged ({one_line(error)})") from error
    return ImageIdentity(None if uid is None else str(uid), sha256, None if patient is None else str(patient), metadata)


def _read_header(path: Path, name: str, max_pixels: int) -> tuple[Dataset, Path | Dataset]:
    """Return the header, and what the pixels are to be decoded from: the file, or the data set a deflated file held."""
    with path.open("rb") as stream:
        prefixed = stream.read(132)[128:] == b"DICM"
    if prefixed:
        meta = read_file_meta_info(path)
        if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
            data = _inflate(path, name, 132 + 12 + int(meta.FileMetaInformationGroupLength), max_pixels)
            inflated = pydicom.dcmread(BytesIO(data), force=True)
            meta.TransferSyntaxUID = ExplicitVRLittleEndian
            inflated.file_meta = meta
            return inflated, inflated
    header = pydicom.dcmread(path, stop_before_pixels=True, force=not prefixed)
    if "TransferSyntaxUID" not in header.file_meta:
        implicit, little = header.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return header, path


def _inflate(path: Path, name: str, start: int, max_pixels: int) -> bytes:
    """Inflate a deflated data set (PS3.5 A.5), but no further than a file of `max_pixels` could need."""
    limit = max_pixels * _INFLATED_BYTES_PER_PIXEL
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    with path.open("rb") as stream:
        stream.seek(start)
        try:
            data = inflater.decompress(stream.read(), limit)
        except zlib.error as error:
            raise ImageError(name, f"its deflated data set is damaged ({one_line(error)})") from error
    if not inflater.eof and len(data) >= limit:
        raise ImageError(
            name, f"inflates to more than {limit:,} bytes, {_INFLATED_BYTES_PER_PIXEL} per pixel of max_pixels"
        )
    if not inflater.eof:
        raise ImageError(name, "ends early: its deflated data set is truncated")
    return data


def _check_header(header: Dataset, name: str, max_pixels: int) -> int:
    """Return samples per pixel of a header that describes an image of allowed size."""
    kind = UID(str(header.get("SOPClassUID") or "")).name or "unknown kind"
    if header.get("Rows") is None or header.get("Columns") is None:
        raise ImageError(name, f"is DICOM without pixels ({kind})")
    check_size(name, int(header.Rows), int(header.Columns), max_pixels)
    if not header.get("PhotometricInterpretation"):
        raise ImageError(name, "has no Photometric Interpretation: its grey levels cannot be told from colours")
    samples = int(header.get("SamplesPerPixel") or 1)
    if samples not in (1, 3):
        raise ImageError(name, f"has {samples} samples per pixel; only 1 (grey, palette) and 3 (colour) can be read")
    return samples


def _frame_count(header: Dataset) -> int:
    return max(1, int(header.get("NumberOfFrames") or 1))


def _decode(header: Dataset, pixels: Path | Dataset, index: int, name: str, max_pixels: int) -> NDArray[Any]:
    """Decode one frame to stored values, (h, w) or (h, w, 3) as RGB; say in one sentence why not."""
    syntax = UID(header.file_meta.TransferSyntaxUID)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise ImageError(name, f"its transfer syntax ({syntax.name}) is not supported") from error
    if not decoder.is_available:
        package = "pylibjpeg-libjpeg" if syntax in _JPEG_SYNTAXES else "'radshot[dicom]'"
        raise ImageError(
            name, f"its transfer syntax ({syntax.name}) needs a decoder that is not installed: pip install {package}"
        )
    if isinstance(pixels, Path) and syntax.is_encapsulated:
        _check_codestream(header, pixels, index, name, max_pixels)
    try:
        if isinstance(pixels, Path):
            return pixel_array(pixels, index=index, transfer_syntax_uid=syntax)
        return pixel_array(pixels, index=index)
    except AttributeError as error:
        if "pixel data" in str(error).lower() and " no " in str(error):
            raise ImageError(name, "is DICOM without pixels (no Pixel Data element)") from error
        raise ImageError(name, f"its pixel description is incomplete ({one_line(error)})") from error
    except Exception as error:  # codecs raise anything on hostile bytes
        raise ImageError(name, f"its pixel data are truncated or damaged ({one_line(error)})") from error


def _check_codestream(header: Dataset, path: Path, index: int, name: str, max_pixels: int) -> None:
    """Refuse a compressed frame whose own header claims more pixels than the DICOM header: decoders believe it."""
    with path.open("rb") as stream:
        pydicom.dcmread(stream, stop_before_pixels=True, force=True)
        if stream.read(4) != b"\xe0\x7f\x10\x00":
            return  # no pixel data: the decoder says so
        stream.seek(8, 1)  # VR, two reserved bytes and the undefined length
        try:
            codestream = get_frame(stream, index, number_of_frames=_frame_count(header))
        except Exception as error:
            raise ImageError(name, f"its pixel data are truncated or damaged ({one_line(error)})") from error
    size = codestream_size(codestream)
    if size is not None and size[0] * size[1] > max(int(header.Rows) * int(header.Columns), 1):
        raise ImageError(
            name,
            f"its compressed frame claims {size[0]} x {size[1]} pixels, its header {header.Rows} x {header.Columns}",
        )


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


def _show_monochrome(
    stored: NDArray[Any], header: Dataset, index: int, window: tuple[float, float] | None
) -> NDArray[np.float32]:
    """Take stored values through modality LUT, VOI LUT and inversion; padding ends black."""
    padding = _padding(stored, header)
    values = _to_modality_units(stored, header, index)
    grey = _through_voi(values, header, index, window, padding)
    if str(header.PhotometricInterpretation) == "MONOCHROME1":
        np.subtract(np.float32(1.0), grey, out=grey)
    if padding is not None:
        grey[padding] = 0.0
    return grey


def _padding(stored: NDArray[Any], header: Dataset) -> NDArray[np.bool_] | None:
    """Mark the pixels that Pixel Padding Value, or the range up to its limit, declares to be no image (C.7.5.1.1.2)."""
    value = _number(header.get("PixelPaddingValue"))
    if value is None:
        return None
    limit = _number(header.get("PixelPaddingRangeLimit"))
    bounds = [value, value if limit is None else limit]
    if stored.dtype.kind == "i":  # writers store a negative value in an unsigned element
        bounds = [bound - 65536 if bound > 32767 else bound for bound in bounds]
    padding: NDArray[np.bool_] = (stored >= min(bounds)) & (stored <= max(bounds))
    return padding if padding.any() else None


def _to_modality_units(stored: NDArray[Any], header: Dataset, index: int) -> NDArray[np.float32]:
    """Apply the Modality LUT, or Rescale Slope and Intercept (C.11.1; per frame: C.7.6.16.2.9)."""
    if luts := header.get("ModalityLUTSequence"):
        table, first, _ = _table(luts[0], header, signed=stored.dtype.kind == "i")
        return look_up(stored, table, first)
    group = _functional_group(header, index, "PixelValueTransformationSequence")
    slope, intercept = _number(group.get("RescaleSlope")), _number(group.get("RescaleIntercept"))
    values = stored.astype(np.float32)
    if slope is not None:
        values *= np.float32(slope)
    if intercept is not None:
        values += np.float32(intercept)
    return values


def _through_voi(
    values: NDArray[np.float32],
    header: Dataset,
    index: int,
    window: tuple[float, float] | None,
    padding: NDArray[np.bool_] | None,
) -> NDArray[np.float32]:
    """Apply the caller's window, else VOI LUT, else the file's window, else stretch (C.11.2, C.7.6.16.2.10)."""
    if window is not None:
        return apply_window(values, *window, function="LINEAR_EXACT")
    group = _functional_group(header, index, "FrameVOILUTSequence")
    luts = group.get("VOILUTSequence") or header.get("VOILUTSequence")
    if luts:
        table, first, top = _table(luts[0], header, signed=bool(values.min() < 0))
        grey = look_up(values, table, first)
        grey /= np.float32(top)
        return np.clip(grey, 0.0, 1.0, out=grey)
    centre, width = _number(group.get("WindowCenter")), _number(group.get("WindowWidth"))
    function = str(group.get("VOILUTFunction") or "LINEAR").strip().upper()
    if function not in WINDOW_FUNCTIONS:
        raise ValueError(f"unknown VOI LUT Function {function}")
    if centre is None or width is None or width <= 0 or (function == "LINEAR" and width < 1):
        return stretch(values, padding)
    return apply_window(values, centre, width, function)


def _show_colour(stored: NDArray[Any], header: Dataset, window: tuple[float, float] | None) -> NDArray[np.float32]:
    """Turn RGB (pydicom has converted YBR) or palette indexes (C.7.6.3.1.5) into luminance in [0, 1]."""
    top = float(2 ** int(header.BitsStored) - 1)
    if str(header.PhotometricInterpretation) == "PALETTE COLOR":
        stored, top = _through_palette(stored, header)
    if stored.ndim != 3:
        raise ValueError(f"Photometric Interpretation {header.PhotometricInterpretation} with one sample per pixel")
    grey = luminance(stored)
    if window is not None:
        return apply_window(grey, *window, function="LINEAR_EXACT")
    grey /= np.float32(top)
    return np.clip(grey, 0.0, 1.0, out=grey)


def _through_palette(stored: NDArray[Any], header: Dataset) -> tuple[NDArray[Any], float]:
    """Return RGB (h, w, 3) and the value of full brightness.

    Segmented tables go through pydicom; plain ones through `look_up`, because pydicom 3.0 wraps indexes above 255 round
    when a table's entries have 8 bits.
    """
    if "RedPaletteColorLookupTableData" not in header:
        colours = apply_color_lut(stored, header)
        return colours[..., :3], float(np.iinfo(colours.dtype).max)
    channels = []
    top = 1.0
    for colour in ("Red", "Green", "Blue"):
        item = Dataset()
        item.LUTDescriptor = header[f"{colour}PaletteColorLookupTableDescriptor"].value
        item.add_new("LUTData", "OW", header[f"{colour}PaletteColorLookupTableData"].value)
        table, first, top = _table(item, header, signed=stored.dtype.kind == "i")
        channels.append(look_up(stored, table, first))
    return np.stack(channels, axis=-1), top


def _table(item: Dataset, header: Dataset, *, signed: bool) -> tuple[NDArray[Any], int, float]:
    """Return a lookup table, the value of its first entry, and its largest possible value (C.11.1.1, C.11.2.1.1)."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries or 65536
    if signed and first > 32767:
        first -= 65536
    data = item.LUTData
    if isinstance(data, bytes | bytearray):
        little = UID(header.file_meta.TransferSyntaxUID).is_little_endian
        one_byte = bits <= 8 and len(data) < 2 * entries
        table = np.frombuffer(data, dtype=np.uint8 if one_byte else ("<u2" if little else ">u2"))
    else:
        table = np.atleast_1d(np.asarray(data)).astype(np.int64) & 0xFFFF
    if len(table) < entries or not 1 <= bits <= 16:
        raise ValueError(f"a lookup table of {entries} entries and {bits} bits holds {len(table)} values")
    return table[:entries], first, float(2**bits - 1)


def _functional_group(header: Dataset, index: int, sequence: str) -> Dataset:
    """Return the frame's own functional group, else the shared one (C.7.6.16), else the header itself."""
    per_frame: Sequence[Dataset] = header.get("PerFrameFunctionalGroupsSequence") or ()
    shared: Sequence[Dataset] = header.get("SharedFunctionalGroupsSequence") or ()
    for group in (*per_frame[index : index + 1], *shared[:1]):
        if items := group.get(sequence):
            return items[0]  # type: ignore[no-any-return]
    return header


def _number(value: Any) -> float | None:
    """Return the first value of an element as a float, None where there is none."""
    if value is None or (isinstance(value, str | bytes) and not value):
        return None
    if not isinstance(value, str | bytes | int | float) and isinstance(value, Sequence):
        return _number(value[0]) if len(value) else None
    return float(value)


def _plain(value: Any) -> str | int | None:
    """Return an element's value as plain text or a whole number, None where it is empty."""
    if value is None:
        return None
    if isinstance(value, int):
        return int(value)
    text = str(value).strip(" \0")
    return text or None
