"""From stored values to grey levels: windows and lookup tables (DICOM PS3.3 C.11.1, C.11.2), luminance, stretching.

All of it works in float32 and in place where it can, so that a large radiograph costs about ten bytes a pixel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

# Weights of red, green and blue in luminance (ITU-R BT.601), the ones Pillow uses too.
LUMINANCE = (0.299, 0.587, 0.114)

# The values of VOI LUT Function (0028,1056), PS3.3 C.11.2.1.3.
WINDOW_FUNCTIONS = ("LINEAR", "LINEAR_EXACT", "SIGMOID")

# Rows looked up at a time: NumPy's indexing takes eight bytes a pixel, which a whole mammogram need not pay.
_ROWS_AT_ONCE = 512


def apply_window(
    values: NDArray[np.float32], centre: float, width: float, function: str = "LINEAR"
) -> NDArray[np.float32]:
    """Map values through a window to [0, 1] (PS3.3 C.11.2.1.2 and C.11.2.1.3).

    Args:
        values: Shape (h, w), in modality units (Hounsfield units for CT). Changed in place.
        centre: Window Centre (0028,1050), in the same units.
        width: Window Width (0028,1051): at least 1 for LINEAR, above 0 for the others.
        function: "LINEAR", "LINEAR_EXACT" or "SIGMOID".

    Returns:
        `values`, now grey levels in [0, 1].

    Raises:
        ValueError: A function or width the standard does not know.
    """
    if function not in WINDOW_FUNCTIONS:
        raise ValueError(f"VOI LUT function must be one of {', '.join(WINDOW_FUNCTIONS)}; got {function!r}.")
    if not np.isfinite(centre) or not np.isfinite(width) or width <= 0 or (function == "LINEAR" and width < 1):
        least = "at least 1" if function == "LINEAR" else "above 0"
        raise ValueError(f"A {function} window needs a finite centre and a width {least}; got ({centre}, {width}).")
    if function == "SIGMOID":  # 1 / (1 + exp(-4 (x - c) / w))
        values -= np.float32(centre)
        values *= np.float32(-4.0 / width)
        with np.errstate(over="ignore"):  # exp(large) = inf is the right limit: the grey level is 0
            np.exp(values, out=values)
        values += np.float32(1.0)
        return np.divide(np.float32(1.0), values, out=values)
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1.0
    if width == 0:  # C.11.2.1.2.1 NOTE: a LINEAR window of width 1 is a threshold
        return np.greater(values, np.float32(centre)).astype(np.float32)
    values -= np.float32(centre - width / 2.0)
    values /= np.float32(width)
    return np.clip(values, 0.0, 1.0, out=values)


def stretch(values: NDArray[np.float32], leave_out: NDArray[np.bool_] | None = None) -> NDArray[np.float32]:
    """Map the smallest value to 0 and the largest to 1, in place.

    Args:
        values: Shape (h, w), finite.
        leave_out: True where a pixel has no say in what is smallest and largest (padding), or None.

    Returns:
        `values`, now grey levels in [0, 1]; all 0 where every value is the same.
    """
    counted = values if leave_out is None else values[~leave_out]
    if counted.size == 0:
        values[:] = 0.0
        return values
    low, high = np.float32(counted.min()), np.float32(counted.max())
    values -= low
    if high > low:
        values /= high - low
    return np.clip(values, 0.0, 1.0, out=values)


def look_up(values: NDArray[Any], table: NDArray[Any], first: int) -> NDArray[np.float32]:
    """Map values through a table whose first entry belongs to the value `first` (PS3.3 C.11.1.1, C.11.2.1.1).

    Values before the first entry take the first, values past the last entry take the last.

    Args:
        values: Shape (h, w); rounded to whole numbers.
        table: Shape (entries,).
        first: Second number of the LUT Descriptor; may be negative.

    Returns:
        Table entries as float32, shape (h, w).
    """
    entries = table.astype(np.float32)
    out = np.empty(values.shape, dtype=np.float32)
    for start in range(0, len(values), _ROWS_AT_ONCE):
        rows = np.rint(values[start : start + _ROWS_AT_ONCE]).astype(np.int64) - first
        out[start : start + _ROWS_AT_ONCE] = entries[np.clip(rows, 0, len(entries) - 1)]
    return out


def luminance(colour: NDArray[Any]) -> NDArray[np.float32]:
    """Weigh red, green and blue to one grey value of the same units: (h, w, 3) to (h, w)."""
    grey = colour[..., 0].astype(np.float32)
    grey *= np.float32(LUMINANCE[0])
    for channel in (1, 2):
        grey += colour[..., channel] * np.float32(LUMINANCE[channel])
    return grey


def is_finite(values: NDArray[Any]) -> bool:
    """Tell whether no value is NaN or infinite."""
    return not np.issubdtype(values.dtype, np.floating) or bool(np.isfinite(values).all())
