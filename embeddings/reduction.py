"""What is decoded or averaged to less resolution covers exactly the area of the whole image."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def on_whole_grid(values: NDArray[Any], shape: tuple[int, int], factor: int, offset: float) -> NDArray[Any]:
    """Move the pixels of a reduced image to where equal parts of the whole image have their centres.

    A reduced image has ceil(rows / factor) rows, which reach past the last row of the whole image, and a wavelet's
    low-pass values belong to the first of the pixels they stand for, not to their middle (ISO/IEC 15444-1 annex F).
    Both would shift what is resized next by a fraction of a pixel; values in between are interpolated linearly.

    Args:
        values: Reduced image (h, w), integers.
        shape: Rows and columns of the whole image.
        factor: Whole rows per reduced row.
        offset: How far, in reduced pixels, the values lie before the middle of what they stand for.

    Returns:
        Shape and type of `values`; its rows and columns divide `shape` evenly.
    """
    rows, columns = values.shape
    padded = np.pad(values.astype(np.float32), ((0, 1), (0, 1)), mode="edge")
    box = (offset, offset, offset + shape[1] / factor, offset + shape[0] / factor)
    moved = np.asarray(Image.fromarray(padded).resize((columns, rows), Image.Resampling.BILINEAR, box=box))
    whole_numbers: NDArray[Any] = np.rint(moved).astype(values.dtype)
    return whole_numbers


def block_mean(values: NDArray[Any], side: int) -> NDArray[Any]:
    """Average square blocks of whole numbers, as large as leave `side` rows and columns.

    Args:
        values: Shape (h, w). Floating-point values and more than two dimensions are returned as they are.
        side: Rows and columns that must be left.

    Returns:
        float32, shape (h / n, w / n), with n the largest of 8, 4 and 2 that divides both sides and leaves enough; or
        `values` where none does.
    """
    if values.ndim != 2 or values.dtype.kind not in "ui" or values.dtype.itemsize > 2:
        return values
    rows, columns = values.shape
    for n in (8, 4, 2):
        if rows % n == columns % n == 0 and min(rows, columns) // n >= side:
            total = values[0::n].astype(np.int32)  # 64 values of 16 bits fit; rows first, which lie together in memory
            for row in range(1, n):
                total += values[row::n]
            sums = total[:, 0::n].copy()
            for column in range(1, n):
                sums += total[:, column::n]
            means = sums.astype(np.float32)
            means *= np.float32(1 / n**2)
            return means
    return values
