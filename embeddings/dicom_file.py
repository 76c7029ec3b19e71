"""The DICOM file below its picture (PS3.5, PS3.10): header, transfer syntax, decoding one frame, guards on bombs."""

from __future__ import annotations

import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import pydicom
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.filereader import read_file_meta_info
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from .codestream import JPEG2000_SYNTAXES, codestream_size, decode_reduced
from .errors import ImageError
from .images import JPEG2000_MARGIN, check_size, one_line

# Bytes a deflated file may grow to, per pixel allowed; beyond it is a bomb (a frame of 16 bits takes 2).
_INFLATED_BYTES_PER_PIXEL = 4

# Syntaxes whose only free decoder is one that the extra `dicom` leaves out for its licence (GPL).
_JPEG_SYNTAXES = ("1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.57", "1.2.840.10008.1.2.4.70")


def read_header(path: Path, name: str, max_pixels: int) -> tuple[Dataset, Path | Dataset]:
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


def check_header(header: Dataset, name: str, max_pixels: int) -> int:
    """Return samples per pixel of a header that describes an image of allowed size."""
    kind = _uid_name(header.get("SOPClassUID"), "unknown kind")
    if header.get("Rows") is None or header.get("Columns") is None:
        raise ImageError(name, f"is DICOM without pixels ({kind})")
    check_size(name, int(header.Rows), int(header.Columns), max_pixels)
    if not header.get("PhotometricInterpretation"):
        raise ImageError(name, "has no Photometric Interpretation: its grey levels cannot be told from colours")
    samples = int(header.get("SamplesPerPixel") or 1)
    if samples not in (1, 3):
        raise ImageError(name, f"has {samples} samples per pixel; only 1 (grey, palette) and 3 (colour) can be read")
    return samples


def frame_count(header: Dataset) -> int:
    """Return Number of Frames; 1 where it is missing."""
    return max(1, int(header.get("NumberOfFrames") or 1))


def decode_frame(
    header: Dataset, pixels: Path | Dataset, index: int, name: str, max_pixels: int, *, side: int | None = None
) -> NDArray[Any]:
    """Decode one frame to stored values, (h, w) or (h, w, 3) as RGB; say in one sentence why not.

    With `side` a JPEG 2000 frame may come at lower resolution, see `read_dicom`.
    """
    syntax = UID(header.file_meta.TransferSyntaxUID)
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise ImageError(name, f"its transfer syntax ({_uid_name(syntax, 'unknown')}) is not supported") from error
    if not decoder.is_available:
        package = "pylibjpeg-libjpeg" if syntax in _JPEG_SYNTAXES else "'radshot[dicom]'"
        raise ImageError(
            name, f"its transfer syntax ({syntax.name}) needs a decoder that is not installed: pip install {package}"
        )
    if isinstance(pixels, Path) and syntax.is_encapsulated:
        codestream = _checked_codestream(header, pixels, index, name)
        if side is not None and codestream is not None and syntax in JPEG2000_SYNTAXES:
            reduced = decode_reduced(codestream, header, JPEG2000_MARGIN * side)
            if reduced is not None:
                return reduced
    try:
        if isinstance(pixels, Path):
            return pixel_array(pixels, index=index, transfer_syntax_uid=syntax)
        return pixel_array(pixels, index=index)
    except AttributeError as error:
        if "pixel data" in str(error).lower() and " no " in str(error):
            raise ImageError(name, "is DICOM without pixels (no Pixel Data element)") from error
        raise ImageError(name, f"its pixel description is incomplete ({one_line(error)})") from error
    except MemoryError:
        raise
    except BaseException as error:  # codecs raise anything on hostile bytes; those in Rust panic outside Exception
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise ImageError(name, f"its pixel data are truncated or damaged ({one_line(error)})") from error


def _checked_codestream(header: Dataset, path: Path, index: int, name: str) -> bytes | None:
    """Return a compressed frame, None where there is none.

    Raises:
        ImageError: Its own header claims more pixels than the DICOM header: decoders believe it.
    """
    with path.open("rb") as stream:
        pydicom.dcmread(stream, stop_before_pixels=True, force=True)
        if stream.read(4) != b"\xe0\x7f\x10\x00":
            return None  # no pixel data: the decoder says so
        stream.seek(8, 1)  # VR, two reserved bytes and the undefined length
        try:
            offsets = header.get("ExtendedOffsetTable"), header.get("ExtendedOffsetTableLengths")
            codestream = get_frame(
                stream,
                index,
                number_of_frames=frame_count(header),
                extended_offsets=None if offsets[0] is None or offsets[1] is None else (offsets[0], offsets[1]),
            )
        except Exception as error:
            raise ImageError(name, f"its pixel data are truncated or damaged ({one_line(error)})") from error
    size = codestream_size(codestream)
    if size is not None and size[0] * size[1] > max(int(header.Rows) * int(header.Columns), 1):
        raise ImageError(
            name,
            f"its compressed frame claims {size[0]} x {size[1]} pixels, its header {header.Rows} x {header.Columns}",
        )
    return codestream


def _uid_name(value: Any, unknown: str) -> str:
    """Return the name the standard gives a UID, or `unknown`: a damaged element may hold any text."""
    name = UID(str(value)).name
    return unknown if name == str(value) else name
