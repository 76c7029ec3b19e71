"""Row sums and cosines in float64 whose last bit does not depend on how many rows are computed together."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def row_sums(values: NDArray[Any]) -> NDArray[np.float64]:
    """Sum each contiguous row (c, d) -> (c,); NumPy's pairwise order of summation depends on d alone."""
    sums: NDArray[np.float64] = np.add.reduce(np.ascontiguousarray(values), axis=1)
    return sums


def cosines(query: NDArray[np.float32], rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the cosine of a query (d,) with rows (c, d) in float64; 0 where one of them has no length."""
    wide, many = query.astype(np.float64), rows.astype(np.float64)
    products = row_sums(many * wide)
    lengths = np.sqrt(row_sums(many**2)) * np.sqrt(row_sums(wide[None] ** 2))
    result: NDArray[np.float64] = np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0)
    return result
