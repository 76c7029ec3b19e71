"""read_image: DICOM, PNG, JPEG, TIFF or an array becomes one grey image in [0, 1], or one clear sentence."""

from __future__ import annotations

import hashlib
import math
import os
import stat
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps, UnidentifiedImageError

from .errors import ImageError
from .greyscale import apply_window, is_finite, luminance, stretch
from .quiet import quiet

ImageSource = str | os.PathLike[str] | np.ndarray[Any, np.dtype[Any]]

# Pixels of one decoded frame. Twice the largest mammogram (4,728 x 5,928); at about ten bytes a pixel while reading it
# keeps a bomb below 512 MB.
DEFAULT_MAX_PIXELS = 50_000_000

# What Pillow may open. A short list: formats that call other programs (EPS) or that no archive holds stay shut.
PILLOW_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP")

# Baseline TIFF tags: BitsPerSample and PhotometricInterpretation, whose value 0 means that white is zero.
_TIFF_BITS, _TIFF_PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0

JPEG_MARGIN, JPEG2000_MARGIN, BLOCK_MARGIN = 2, 2, 4
"""Reduced decoding, and averaging of what can only be decoded whole, leave at least this many pixels, in each
direction, for every one that is wanted: what is resampled then is nearly what it would be of the whole image
(benchmarks/decoding.py says how nearly)."""

_TURNED = (5, 6, 7, 8)
"""EXIF orientations (0x0112) in which rows become columns."""

BLANK = "has the same grey level everywhere: there is nothing to recognise"


@dataclass(frozen=True)
class ImageIdentity:
    """What a file says about itself without its pixels being decoded.

    Attributes:
        sop_instance_uid: The DICOM SOPInstanceUID, or None.
        sha256: SHA-256 (hex) of the file's bytes.
        patient_id: The DICOM PatientID, or None where it is missing or empty.
        metadata: Further header fields that are present (modality, body part, study, series ...), as text or numbers;
            never a name, a birth date or free text.
    """

    sop_instance_uid: str | None
    sha256: str
    patient_id: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)


def read_image(
    source: ImageSource,
    *,
    frame: int | None = None,
    window: tuple[float, float] | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
) -> NDArray[np.float32]:
    """Read one grey image; the type is recognised by content, not by the file's name.

    DICOM goes through modality LUT, VOI LUT and inversion, see `embeddings.dicom`. Elsewhere 8 and 16 bit grey levels
    are divided by 255 and 65,535, colour becomes luminance, transparency lies on black, EXIF orientation is applied.
    Floating-point values already in [0, 1] are taken as they are; those outside, and integers of other widths, carry
    no scale of their own and are stretched from their smallest to their largest value, unless `window` says better.

    Args:
        source: A path, or an array: (h, w) grey, (h, w, 3 or 4) colour, or (frames, h, w).
        frame: Which frame of a multi-frame DICOM, TIFF, GIF or array, from 0; None takes the middle one (n // 2).
        window: (centre, width) of the grey levels to show, in modality units (Hounsfield units for CT), elsewhere in
            stored values; it replaces the file's own window, with PS3.3's LINEAR_EXACT function.
        max_pixels: Rows x columns allowed in the decoded frame; checked before decoding.

    Returns:
        Grey levels in [0, 1], black is 0; shape (h, w), float32.

    Raises:
        ImageError: The file is missing, empty, truncated, no image or of an unsupported kind, the frame does not exist,
            the image is larger than `max_pixels`, holds NaN, or is one grey level everywhere.
        ValueError: `window` or `max_pixels` make no sense.

    Example:
        >>> read_image(np.array([[0, 51], [102, 255]], dtype=np.uint8)).tolist()
        [[0.0, 0.20000000298023224], [0.4000000059604645, 1.0]]
    """
    grey, _ = read_reduced(source, None, frame=frame, window=window, max_pixels=max_pixels)
    return grey


def read_reduced(
    source: ImageSource,
    at_least: tuple[int, int] | None,
    *,
    frame: int | None = None,
    window: tuple[float, float] | None = None,
    max_pixels: int = DEFAULT_MAX_PIXELS,
    hounsfield: tuple[float, float] | None = None,
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """Read one grey image at no more resolution than is needed, where its format can.

    JPEG is decoded at a half, a quarter or an eighth of its resolution where `JPEG_MARGIN` times the rows and columns
    asked for are left, grey JPEG 2000 in DICOM likewise with `JPEG2000_MARGIN`. That is many times as fast. Other grey
    DICOM frames are averaged before anything else is done to them. Frames without a window are taken whole.

    Args:
        source: As for `read_image`; so are the other arguments.
        at_least: Rows and columns the caller will resize to, or None for every pixel.
        hounsfield: A window as `window`, for computed tomography in DICOM only.

    Returns:
        Grey levels in [0, 1], float32, and the rows and columns of the whole image, whose aspect ratio counts.

    Raises:
        ImageError: As for `read_image`.
        ValueError: `window`, `max_pixels` or `at_least` make no sense.
    """
    if window is not None and not (len(window) == 2 and all(map(math.isfinite, window)) and window[1] > 0):
        raise ValueError(f"window must be (centre, width) with a width above 0; got {window!r}.")
    if at_least is not None and not (len(at_least) == 2 and min(at_least) >= 1):
        raise ValueError(f"at_least must be (rows, columns), each at least 1; got {at_least!r}.")
    side = None if at_least is None else max(at_least)
    if max_pixels < 1:
        raise ValueError(f"max_pixels must be at least 1; got {max_pixels}.")
    if isinstance(source, np.ndarray):
        name = f"array of shape {source.shape}"
        with np.errstate(over="ignore", invalid="ignore"):  # what overflows float32 is refused below
            image = _from_array(source, name, frame=frame, window=window, max_pixels=max_pixels)
            shape = image.shape[0], image.shape[1]
    else:
        name, path, opening = _open(source)
        if _is_dicom(opening):
            from .dicom import read_dicom

            image, shape = read_dicom(
                path, frame=frame, window=window, max_pixels=max_pixels, side=side, hounsfield=hounsfield
            )
        else:
            image, shape = _from_pillow(path, frame=frame, window=window, max_pixels=max_pixels, side=side)
    if not is_finite(image):
        raise ImageError(name, "holds NaN or infinite grey levels")
    if image.min() == image.max():
        raise ImageError(name, BLANK)
    return np.ascontiguousarray(image, dtype=np.float32), shape


def image_identity(path: str | os.PathLike[str]) -> ImageIdentity:
    """Hash a file and read its header, without decoding pixels.

    Args:
        path: Any file; for other than DICOM only the hash is filled in.

    Returns:
        The identity; `metadata` is empty where there is no DICOM header.

    Raises:
        ImageError: The file is missing, empty or unreadable, or its DICOM header is damaged.
    """
    name, file, opening = _open(path)
    try:
        with file.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(name, f"cannot be read: {error.strerror or error}") from error
    if not _is_dicom(opening):
        return ImageIdentity(None, sha256)
    from .dicom_tags import read_identity

    return read_identity(file, sha256)


def choose_frame(name: str, frame: int | None, count: int) -> int:
    """Return the index of the frame to read: the middle one unless told otherwise."""
    if frame is None:
        return count // 2
    if not 0 <= frame < count:
        raise ImageError(name, f"has {count} frame{'s' * (count != 1)}, numbered from 0; frame {frame} does not exist")
    return frame


def check_size(name: str, rows: int, columns: int, max_pixels: int) -> None:
    """Refuse a frame of more than `max_pixels` before it is decoded."""
    if rows < 1 or columns < 1:
        raise ImageError(name, f"claims {rows} x {columns} pixels")
    if rows * columns > max_pixels:
        raise ImageError(name, f"has {rows} x {columns} pixels, more than the {max_pixels:,} allowed by max_pixels")


def one_line(error: BaseException) -> str:
    """Return a third party's message as one short line."""
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")[:200]


def _open(source: object) -> tuple[str, Path, bytes]:
    """Return the name for messages, the path and the first bytes of a regular, non-empty file."""
    if not isinstance(source, str | os.PathLike):
        raise ImageError(type(source).__name__, "an image is given as a path or a NumPy array")
    name = os.fspath(source)
    if not isinstance(name, str):
        name = os.fsdecode(name)
    path = Path(name)
    try:
        mode = path.stat().st_mode
        opening = b""
        if stat.S_ISREG(mode):  # opening a pipe or a device would block or never end
            with path.open("rb") as stream:
                opening = stream.read(256)
    except FileNotFoundError as error:
        raise ImageError(name, "there is no such file") from error
    except OSError as error:
        raise ImageError(name, f"cannot be opened: {error.strerror or error}") from error
    except ValueError as error:  # a NUL byte in the path
        raise ImageError(name, "is not a possible path") from error
    if not stat.S_ISREG(mode):
        raise ImageError(name, "is a folder, not an image file" if stat.S_ISDIR(mode) else "is not a regular file")
    if not opening:
        raise ImageError(name, "the file is empty (0 bytes)")
    return name, path, opening


def _is_dicom(opening: bytes) -> bool:
    """Tell DICOM by its prefix (PS3.10, 7.1), or, without preamble, by a first element of group 0002 or 0008."""
    if opening[128:132] == b"DICM":
        return True
    group, element = opening[:2], opening[2:4]
    if group in (b"\x02\x00", b"\x08\x00") and element[1:] == b"\x00":
        explicit = opening[4:6].isalpha() and opening[4:6].isupper()
        return explicit or int.from_bytes(opening[4:8], "little") < 1024
    return group == b"\x00\x08" and opening[4:6].isalpha() and opening[4:6].isupper()  # big endian


def _from_array(
    array: NDArray[Any], name: str, *, frame: int | None, window: tuple[float, float] | None, max_pixels: int
) -> NDArray[np.float32]:
    if array.dtype.kind not in "buif":
        raise ImageError(name, f"holds {array.dtype} values, not numbers")
    colour = array.ndim == 3 and array.shape[-1] in (1, 3, 4)
    if array.ndim == 3 and not colour:
        array = array[choose_frame(name, frame, len(array))]
    elif frame not in (None, 0):
        choose_frame(name, frame, 1)
    if array.ndim != 2 and not colour:
        raise ImageError(name, "an image array has shape (h, w), (h, w, 3 or 4) or (frames, h, w)")
    check_size(name, array.shape[0], array.shape[1], max_pixels)
    if not is_finite(array):
        raise ImageError(name, "holds NaN or infinite grey levels")
    top = {"u1": 255.0, "u2": 65535.0, "b1": 1.0}.get(array.dtype.str[1:])
    if top is None and array.dtype.kind == "f" and array.min() >= 0.0 and array.max() <= 1.0:
        top = 1.0
    if not colour:
        return _to_unit(array.astype(np.float32), top, window)
    grey = luminance(array) if array.shape[-1] >= 3 else array[..., 0].astype(np.float32)
    if array.shape[-1] == 4:
        grey *= array[..., 3].astype(np.float32) / np.float32(top or max(float(array[..., 3].max()), 1e-30))
    return _to_unit(grey, top, window)


def _from_pillow(
    path: Path, *, frame: int | None, window: tuple[float, float] | None, max_pixels: int, side: int | None
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    name = str(path)
    try:
        with quiet(), Image.open(path, formats=PILLOW_FORMATS) as image:
            check_size(name, image.height, image.width, max_pixels)
            # a camera's JPEG may carry thumbnails as further frames (MPO): only the first is the picture
            count = 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))
            index = choose_frame(name, frame, count)
            if count > 1:
                image.seek(index)
                check_size(name, image.height, image.width, max_pixels)
            shape = image.height, image.width
            draft = None
            if count == 1 and side is not None:  # JPEG leaves out fine detail while it decodes; others ignore this
                draft = image.draft("L", (JPEG_MARGIN * side, JPEG_MARGIN * side))
            image.load()
            picture: Image.Image = image
            if draft is not None and draft[1][2:] != image.size:  # its last row reaches past the whole image's
                picture = image.resize(image.size, Image.Resampling.BILINEAR, box=draft[1])
            if _turn_upright(picture):
                shape = shape[1], shape[0]
            stored, top = _grey_values(picture)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        known = ", ".join(("DICOM", *PILLOW_FORMATS))
        raise ImageError(name, f"is not an image that can be read ({known})") from error
    except Image.DecompressionBombError as error:
        raise ImageError(name, f"has more pixels than the {max_pixels:,} allowed by max_pixels") from error
    except Exception as error:  # decoders raise anything on hostile bytes; the caller gets one type and one sentence
        if "truncated" in str(error) or isinstance(error, EOFError):
            raise ImageError(name, "ends early: its image data are truncated") from error
        raise ImageError(name, f"its image data cannot be decoded ({one_line(error)})") from error
    return _to_unit(stored, top, window), shape


def _turn_upright(image: Image.Image) -> bool:
    """Apply the EXIF orientation that viewers apply, and say whether rows became columns.

    A damaged EXIF block counts as none.
    """
    turned = False
    with suppress(Exception):
        turned = image.getexif().get(0x0112) in _TURNED
        ImageOps.exif_transpose(image, in_place=True)
    return turned


def _grey_values(image: Image.Image) -> tuple[NDArray[np.float32], float | None]:
    """Return a decoded image's stored grey values, and the value that is white or None where its format is silent."""
    if image.mode.startswith("I;16"):
        tags: Any = getattr(image, "tag_v2", {})
        bits = tags.get(_TIFF_BITS, (16,))
        top = 4095.0 if (bits[0] if isinstance(bits, tuple) else bits) == 12 else 65535.0
        values = np.asarray(image).astype(np.float32)
        if tags.get(_TIFF_PHOTOMETRIC) == _WHITE_IS_ZERO:  # Pillow inverts these at 8 bits only
            np.subtract(np.float32(top), values, out=values)
        return values, top
    if image.mode in ("I", "F"):
        values = np.asarray(image).astype(np.float32)
        unit = image.mode == "F" and bool(values.min() >= 0.0) and bool(values.max() <= 1.0)
        return values, 1.0 if unit else None
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        colour = image.convert("RGBA")
        image = ImageChops.multiply(colour.convert("L"), colour.getchannel("A"))
    if image.mode not in ("1", "L", "RGB"):
        image = image.convert("RGB")
    return np.asarray(image.convert("L")).astype(np.float32), 255.0


def _to_unit(values: NDArray[np.float32], top: float | None, window: tuple[float, float] | None) -> NDArray[np.float32]:
    """Scale stored values to [0, 1]: by the window, else by what is white, else by stretching."""
    if window is not None:
        return apply_window(values, *window, function="LINEAR_EXACT")
    if top is None:
        return stretch(values)
    values /= np.float32(top)
    return values
