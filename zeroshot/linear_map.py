"""What every alignment becomes: two centred, linear maps into one space, and the cosine between what they give."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ZeroShotError

ARRAYS = ("image_mean", "text_mean", "image_weights", "text_weights")
"""Arrays of a map as they are kept; the weights may be missing."""


@dataclass(frozen=True, eq=False)
class LinearMap:
    """An image space and a text space brought together.

    A row x of either side is centred, brought to unit length, multiplied by its side's weights and brought to unit
    length again; an image and a text are as similar as the cosine of what comes out.

    Attributes:
        image_mean: float64 (p,), mean image vector of what it was learnt on.
        text_mean: float64 (d,), mean text vector of what it was learnt on.
        image_weights: float64 (p, k); None leaves the image side as it is (then k = p).
        text_weights: float64 (d, k); None leaves the text side as it is (then k = d).
    """

    image_mean: NDArray[np.float64]
    text_mean: NDArray[np.float64]
    image_weights: NDArray[np.float64] | None
    text_weights: NDArray[np.float64] | None

    def images(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Bring image vectors (n, p) into the common space: unit rows (n, k)."""
        rows = checked_rows(vectors, len(self.image_mean), "Image vectors", "the alignment was learnt from")
        return _through(unit_rows(rows - self.image_mean), self.image_weights)

    def texts(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Bring text vectors (m, d) into the common space: unit rows (m, k)."""
        rows = checked_rows(vectors, len(self.text_mean), "Text vectors", "the alignment was learnt from")
        return _through(unit_rows(rows - self.text_mean), self.text_weights)

    def scores(self, image_vectors: ArrayLike, text_vectors: ArrayLike) -> NDArray[np.float64]:
        """Return the cosine of every image (n, p) with every text (m, d), shape (n, m); larger is closer."""
        scores: NDArray[np.float64] = self.images(image_vectors) @ self.texts(text_vectors).T
        return scores

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Return the arrays by name, to be kept."""
        return {name: array for name in ARRAYS if (array := getattr(self, name)) is not None}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.float64]]) -> LinearMap:
        """Rebuild a map from `arrays`.

        Raises:
            ZeroShotError: They do not fit together.
        """
        try:
            image_mean, text_mean = arrays["image_mean"], arrays["text_mean"]
        except KeyError as error:
            raise ZeroShotError(f"An alignment holds the array {error.args[0]!r}; this one does not.") from None
        image, text = arrays.get("image_weights"), arrays.get("text_weights")
        widths = []
        for mean, weights in ((image_mean, image), (text_mean, text)):
            if mean.ndim != 1 or (weights is not None and (weights.ndim != 2 or len(weights) != len(mean))):
                raise ZeroShotError("An alignment's weights must have a row for each number of the vectors they take.")
            widths.append(len(mean) if weights is None else weights.shape[1])
        if widths[0] != widths[1] or not all(np.isfinite(array).all() for array in arrays.values()):
            raise ZeroShotError("An alignment's two sides must end in one space, and hold finite numbers.")
        return cls(image_mean, text_mean, image, text)


def checked_rows(vectors: ArrayLike, dim: int | None, what: str, other: str) -> NDArray[np.float64]:
    """Return float64 rows (n, d), finite.

    Args:
        vectors: What came.
        dim: Numbers a row must have, or None for any.
        what: What to call them.
        other: What has `dim` numbers, for the sentence.

    Raises:
        ZeroShotError: They are no rows, of another length, or not finite.
    """
    rows = np.asarray(vectors, dtype=np.float64)
    if rows.ndim != 2:
        raise ZeroShotError(f"{what} must be rows of shape (n, d); got an array of shape {rows.shape}.")
    if dim is not None and rows.shape[1] != dim:
        raise ZeroShotError(
            f"{what} have {rows.shape[1]} dimensions, those {other} have {dim}: were both made by the same encoder?"
        )
    bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
    if bad.size:
        raise ZeroShotError(f"{what} must be finite; rows {bad[:5].tolist()} hold NaN or infinity.")
    return rows


def unit_rows(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Bring rows to unit length; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units: NDArray[np.float64] = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return units


def _through(rows: NDArray[np.float64], weights: NDArray[np.float64] | None) -> NDArray[np.float64]:
    return rows if weights is None else unit_rows(rows @ weights)
