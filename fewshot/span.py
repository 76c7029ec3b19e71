"""What the heads that solve for something share: rows in their span, balanced weights, sums no company can change."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .class_scores import image_weights
from .support import Support

#: Products formed at once: about 2 MB, which stays in a processor's cache (8 million are twice as slow).
PRODUCTS_AT_ONCE = 250_000


@dataclass(frozen=True, eq=False)
class Span:
    """Rows by their coordinates in the space they span, where that is smaller than the space they lie in.

    Heads whose penalty or covariance is the same in every direction (ridge regression, logistic regression with an L2
    penalty, a covariance plus a multiple of the identity) find the same answer after a rotation, and their weights lie
    in the span of the support (the representer theorem; Schölkopf, Herbrich, Smola 2001). So 25 images of 1,024
    dimensions are a problem of 25 dimensions, exactly.

    Attributes:
        coordinates: float64 (n, r), r = min(n, d); lengths and inner products are those of the rows.
        basis: float64 (r, d) of orthonormal rows, coordinates @ basis gives the rows; None where r = d and nothing was
            rotated.
    """

    coordinates: NDArray[np.float64]
    basis: NDArray[np.float64] | None

    @classmethod
    def of(cls, rows: NDArray[np.float64]) -> Span:
        """The span of rows (n, d); repeated and zero rows are no trouble."""
        if len(rows) >= rows.shape[1]:
            return cls(rows, None)
        basis, coordinates = np.linalg.qr(rows.T)  # (d, n), (n, n)
        return cls(np.ascontiguousarray(coordinates.T), np.ascontiguousarray(basis.T))

    def back(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Weights (k, r) on coordinates as weights (k, d) on rows."""
        return np.ascontiguousarray(weights if self.basis is None else weights @ self.basis)


def row_products(rows: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Inner products (m, k) of rows (m, d) and (k, d), each summed by itself.

    A matrix product rounds differently for one row than for many, so that a query's answer would depend on who was
    asked with it (see `similarities`).
    """
    result = np.empty((len(rows), len(others)))
    step = max(1, PRODUCTS_AT_ONCE // max(1, others.size))
    for start in range(0, len(rows), step):
        result[start : start + step] = (rows[start : start + step, None, :] * others).sum(axis=2)
    return result


def balanced_weights(support: Support) -> NDArray[np.float64]:
    """What each support image counts, (n,): each class as much as any other, each patient of a class alike.

    The sum is the number of patients, one who is in two classes counted twice. With one image per patient these are
    the weights of scikit-learn's class_weight="balanced".
    """
    weights = image_weights(support)
    of_class = np.bincount(support.targets, weights=weights)  # patients of each class
    balanced: NDArray[np.float64] = weights * (weights.sum() / len(of_class)) / of_class[support.targets]
    return balanced


def positive(value: object, name: str) -> float:
    """`value` if it is a finite number above 0."""
    number = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    if not number or not 0 < float(value) < np.inf:  # type: ignore[arg-type]
        raise ValueError(f"{name} must be a finite number above 0; got {value!r}.")
    return float(value)  # type: ignore[arg-type]
