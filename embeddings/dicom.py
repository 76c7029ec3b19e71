"""DICOM to grey levels in PS3.3's order: modality LUT (C.11.1), VOI LUT (C.11.2), then MONOCHROME1 (C.7.6.3.1.2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut
from pydicom.uid import UID

from .dicom_file import check_header, decode_frame, frame_count, read_header
from .errors import ImageError
from .greyscale import WINDOW_FUNCTIONS, apply_window, is_finite, look_up, luminance, stretch
from .images import BLOCK_MARGIN, DEFAULT_MAX_PIXELS, choose_frame
from .quiet import quiet
from .reduction import block_mean


class _Damaged(ValueError):
    """A header that contradicts itself, in words that quote none of its text."""


def read_dicom(
    path: Path,
    *,
    frame: int | None,
    window: tuple[float, float] | None,
    max_pixels: int,
    side: int | None = None,
    hounsfield: tuple[float, float] | None = None,
) -> tuple[NDArray[np.float32], tuple[int, int]]:
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
        side: Rows and columns that will be resized to: a JPEG 2000 frame may be decoded at a half, a quarter ... of its
            resolution, another be averaged over blocks, where there is a window, see `images.read_reduced`. None takes
            every pixel.
        hounsfield: A window as `window`, where the modality is CT and no `window` is given.

    Returns:
        Grey levels in [0, 1], shape (rows, columns), or less where `side` allows it; and (rows, columns).

    Raises:
        ImageError: No pixels, damaged, too large, no such frame, or a syntax that nothing installed decodes.
    """
    name = str(path)
    with quiet():
        try:
            header, pixels = read_header(path, name, max_pixels)
            samples = check_header(header, name, max_pixels)
            index = choose_frame(name, frame, frame_count(header))
            if window is None and str(header.get("Modality")) == "CT":
                window = hounsfield
            if side is not None and not _may_be_averaged(header, index, window):
                side = None
            stored = decode_frame(header, pixels, index, name, max_pixels, side=side)
            if not is_finite(stored):
                raise ImageError(name, "holds NaN or infinite grey levels")
            if side is not None:
                stored = block_mean(stored, BLOCK_MARGIN * side)
            if samples == 1 and str(header.PhotometricInterpretation).startswith("MONOCHROME"):
                grey = _show_monochrome(stored, header, index, window)
            else:
                grey = _show_colour(stored, header, window)
            return grey, (int(header.Rows), int(header.Columns))
        except ImageError:
            raise
        except MemoryError as error:
            raise ImageError(name, "does not fit into memory") from error
        except _Damaged as error:
            raise ImageError(name, f"its DICOM header is damaged ({error})") from error
        except Exception as error:  # parsers raise anything, and quote what they stumbled over: perhaps a name
            raise ImageError(name, f"its DICOM header is damaged ({type(error).__name__})") from error


def read_modality_values(
    path: Path, *, frame: int | None = None, max_pixels: int = DEFAULT_MAX_PIXELS
) -> tuple[NDArray[np.float32], tuple[float, float] | None, bool]:
    """Read one slice in modality units, before any window (PS3.3 C.11.1).

    Args:
        path: A regular file with grey pixels.
        frame: As for `read_dicom`.
        max_pixels: Rows x columns allowed.

    Returns:
        Values (rows, columns), Hounsfield units for CT, padding at the smallest of the others; the window (centre,
        width) the file asks for, or None; and whether low values are bright (MONOCHROME1).

    Raises:
        ImageError: As for `read_dicom`, or it is in colour.
    """
    name = str(path)
    with quiet():
        try:
            header, pixels = read_header(path, name, max_pixels)
            samples = check_header(header, name, max_pixels)
            photometric = str(header.PhotometricInterpretation)
            if samples != 1 or not photometric.startswith("MONOCHROME"):
                raise ImageError(name, "is in colour: a slice of a volume has grey values")
            index = choose_frame(name, frame, frame_count(header))
            stored = decode_frame(header, pixels, index, name, max_pixels)
            padding = _padding(stored, header)
            values = _to_modality_units(stored, header, index)
            if not is_finite(values):
                raise ImageError(name, "holds NaN or infinite grey levels")
            if padding is not None and not padding.all():
                values[padding] = values[~padding].min()
            group = _functional_group(header, index, "FrameVOILUTSequence")
            centre, width = _number(group.get("WindowCenter")), _number(group.get("WindowWidth"))
            window = None if centre is None or width is None or width <= 0 else (centre, width)
            return values, window, photometric == "MONOCHROME1"
        except ImageError:
            raise
        except MemoryError as error:
            raise ImageError(name, "does not fit into memory") from error
        except Exception as error:  # as in read_dicom
            raise ImageError(name, f"its DICOM header is damaged ({type(error).__name__})") from error


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


def _may_be_averaged(header: Dataset, index: int, window: tuple[float, float] | None) -> bool:
    """Tell whether averaging neighbours before the window shows what averaging them after it would, but for noise.

    Not where values are no amounts (palette indexes, padding, a modality table), and not without a window: the smallest
    and the largest pixel of the whole frame set the scale then, and averages are less extreme.
    """
    group = _functional_group(header, index, "FrameVOILUTSequence")
    luts = group.get("VOILUTSequence") or header.get("VOILUTSequence")
    return (
        str(header.PhotometricInterpretation).startswith("MONOCHROME")
        and not any(f"{prefix}PixelPaddingValue" in header for prefix in ("", "Float", "DoubleFloat"))
        and not header.get("ModalityLUTSequence")
        and bool(window is not None or luts or _file_window(group) is not None)
    )


def _file_window(group: Dataset) -> tuple[float, float, str] | None:
    """Return centre, width and function of the file's first window, None where there is none that is allowed."""
    centre, width = _number(group.get("WindowCenter")), _number(group.get("WindowWidth"))
    function = str(group.get("VOILUTFunction") or "LINEAR").strip().upper()
    if function not in WINDOW_FUNCTIONS:
        raise _Damaged(f"its VOI LUT Function is none of {', '.join(WINDOW_FUNCTIONS)}")
    if centre is None or width is None or width <= 0 or (function == "LINEAR" and width < 1):
        return None
    return centre, width, function


def _padding(stored: NDArray[Any], header: Dataset) -> NDArray[np.bool_] | None:
    """Mark the pixels that Pixel Padding Value, or the range up to its limit, declares to be no image (C.7.5.1.1.2)."""
    prefix = {"float32": "Float", "float64": "DoubleFloat"}.get(stored.dtype.name, "")
    value = _number(header.get(f"{prefix}PixelPaddingValue"))
    if value is None:
        return None
    limit = _number(header.get(f"{prefix}PixelPaddingRangeLimit"))
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
    asked = _file_window(group)
    return stretch(values, padding) if asked is None else apply_window(values, *asked)


def _show_colour(stored: NDArray[Any], header: Dataset, window: tuple[float, float] | None) -> NDArray[np.float32]:
    """Turn RGB (pydicom has converted YBR) or palette indexes (C.7.6.3.1.5) into luminance in [0, 1]."""
    top = float(2 ** int(header.BitsStored) - 1)
    if str(header.PhotometricInterpretation) == "PALETTE COLOR":
        stored, top = _through_palette(stored, header)
    if stored.ndim != 3:
        raise _Damaged("its Photometric Interpretation does not go with one sample per pixel")
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
        raise _Damaged(f"a lookup table of {entries} entries and {bits} bits holds {len(table)} values")
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
