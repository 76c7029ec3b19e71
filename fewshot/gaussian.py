"""Normal classes with one shared covariance, shrunk towards a sphere (Ledoit, Wolf 2004, J. Multivariate Analysis 88).

"A well-conditioned estimator for large-dimensional covariance matrices" says how far to shrink. Few-shot classification
by Mahalanobis distances under a covariance estimated from the support is Simple CNAPS (Bateni, Goyal, Masrani, Wood,
Sigal 2020, arXiv 1912.03432); there each class mixes its own covariance with that of all, here all share one.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .class_scores import ClassScores
from .prototypes import DEFAULT_EVIDENCE
from .span import Span, balanced_weights, row_products
from .support import Metric, Support, check_center, prepare, similarities

#: Least share of the sphere under shrinkage="auto", below which directions that a small support does not vary in at all
#: would outweigh everything.
LEAST_SHRINKAGE = 0.01
#: A mean variance below this share of the mean squared length is rounding: classes of one patient do not vary.
NO_SCATTER = 1e-12


class GaussianClassifier(ClassScores):
    """The class under which a query is most probable, each class normal around its mean with the covariance of all.

    The covariance is (1 - shrinkage) * scatter + shrinkage * variance * identity: the scatter of support images around
    their class's mean, classes weighing the same and the patients of a class too, and the mean variance per dimension.
    Classes are taken to be equally frequent, so this is linear discriminant analysis with equal priors.

    A score is the logarithm of the density up to a constant: minus half the squared Mahalanobis distance to the class
    mean. Where no class varies (one image of one patient each) there is no scatter to learn from and the covariance is
    the identity: the answer is the nearest mean by Euclidean distance.

    All is done in the span of the support (see `Span`): no d x d matrix is made for fewer images than dimensions.

    Args:
        shrinkage: "auto" (Ledoit and Wolf's optimum, at least 0.01; patients are the independent observations) or a
            share above 0 and at most 1. At 1 distances are Euclidean.
        normalize: Bring rows to unit length once centred. A covariance shared by all images describes directions
            better than vectors whose lengths vary from image to image.
        center: (d,) mean of the **source** domain to subtract first, usually `encoder.source_mean`; None subtracts
            nothing.
        n_evidence: Support images named per decision for the winner, and for the runner-up.

    Attributes:
        classes_: The labels, sorted, as the caller gave them.
        means_: float64 (n_classes, d), of rows centred and of unit length.
        shrinkage_: The share of the sphere; 1 where there is no scatter.

    Example:
        >>> clf = GaussianClassifier().fit([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], ["a", "a", "b"])
        >>> clf.predict([[0.8, 0.3], [0.1, 0.7]]).tolist()
        ['a', 'b']
    """

    means_: NDArray[np.float64]
    shrinkage_: float

    def __init__(
        self,
        shrinkage: float | str = "auto",
        *,
        normalize: bool = True,
        center: ArrayLike | None = None,
        n_evidence: int = DEFAULT_EVIDENCE,
    ) -> None:
        self.shrinkage = shrinkage
        self.normalize = normalize
        self.center = center
        self.n_evidence = n_evidence

    def _learn(self, support: Support) -> NDArray[np.float64]:
        fixed = _checked_shrinkage(self.shrinkage)
        self._decides_by: Metric = "cosine" if self.normalize else "euclidean"  # here it depends on the options
        center = check_center(self.center, support.vectors.shape[1])
        rows = prepare(support.vectors, self._decides_by, center)
        dim = rows.shape[1]
        span = Span.of(rows)
        weights = balanced_weights(support)
        weights /= weights.sum()
        own = support.targets == np.arange(len(support.classes))[:, None]  # (n_classes, n)
        share = own * weights
        means = (share / share.sum(axis=1, keepdims=True)) @ span.coordinates  # (n_classes, r)
        residuals = span.coordinates - means[support.targets]  # (n, r)
        scatter = (residuals * weights[:, None]).T @ residuals  # (r, r)
        variance = float(np.trace(scatter)) / dim  # per dimension
        if variance <= NO_SCATTER * float(weights @ (rows * rows).sum(axis=1)) / dim:
            self.shrinkage_, variance, values, axes = 1.0, 1.0, np.zeros(len(scatter)), np.eye(len(scatter))
        else:
            if fixed is None:
                fixed = max(LEAST_SHRINKAGE, ledoit_wolf_shrinkage(residuals, weights, _patients(support), dim))
            self.shrinkage_ = fixed
            values, axes = np.linalg.eigh(scatter)  # (r,), (r, r) with axes as columns
        # Deviations along the axes of the scatter, and one deviation for all directions outside the span.
        self._deviations = np.sqrt((1 - self.shrinkage_) * np.maximum(values, 0) + self.shrinkage_ * variance)
        self._outside = 0.0 if span.basis is None else 1 / (self.shrinkage_ * variance)
        self._axes = span.back(axes.T / self._deviations[:, None])  # (r, d)
        self._whitened = (means @ axes) / self._deviations  # (n_classes, r)
        self.means_ = span.back(means)
        return center

    def _compare(self, queries: NDArray[np.float32]) -> NDArray[np.float64]:
        prepared = prepare(queries, self._decides_by, self._center)
        inside = row_products(prepared, self._axes)  # (m, r), of unit variance
        distances = -similarities(inside, self._whitened, "euclidean")
        if self._outside:
            left = (prepared * prepared).sum(axis=1) - ((inside * self._deviations) ** 2).sum(axis=1)
            distances += self._outside * np.maximum(left, 0.0)[:, None]
        return -distances / 2


def ledoit_wolf_shrinkage(
    residuals: NDArray[np.float64], weights: NDArray[np.float64], patients: NDArray[np.intp], dim: int
) -> float:
    """Ledoit and Wolf's share of the sphere, for weighted images of which those of one patient are no news.

    With equal weights and one image per patient it is scikit-learn's `ledoit_wolf_shrinkage(residuals,
    assume_centered=True)`. A patient's observation is the weighted mean of the squares (outer products) of its images.

    Args:
        residuals: (n, r), images minus their class's mean, in coordinates that keep lengths.
        weights: (n,), adding up to 1.
        patients: int (n,), which observation an image belongs to, numbered from 0.
        dim: Dimensions of the space the residuals lie in, r or more; the sphere has as many.

    Returns:
        A share in [0, 1]; 1 where the scatter is already a sphere.
    """
    scatter = (residuals * weights[:, None]).T @ residuals  # (r, r)
    total, size = float(np.trace(scatter)), float((scatter * scatter).sum())
    away = size - total * total / dim  # squared distance of the scatter from its sphere
    if away <= 0:
        return 1.0
    mass = np.bincount(patients, weights=weights)  # of each observation
    # Squared distance of each observation A from the scatter S: |A|^2 - 2 <A, S> + |S|^2.
    overlap = np.bincount(patients, weights=weights * ((residuals @ scatter) * residuals).sum(axis=1)) / mass
    squares = np.bincount(patients, weights=(weights * (residuals * residuals).sum(axis=1)) ** 2) / mass**2
    for several in np.flatnonzero(np.bincount(patients) > 1).tolist():
        members = np.flatnonzero(patients == several)
        rows = residuals[members] * np.sqrt(weights[members, None] / mass[several])
        squares[several] = ((rows @ rows.T) ** 2).sum()
    error = float((mass**2 * (squares - 2 * overlap + size)).sum())
    return min(max(error, 0.0), away) / away


def _patients(support: Support) -> NDArray[np.intp]:
    """Which patient of which class each support image belongs to, numbered from 0, (n,)."""
    codes: dict[Hashable, int] = {}
    owners = zip(support.groups, support.targets.tolist(), strict=True)
    return np.array([codes.setdefault(owner, len(codes)) for owner in owners], dtype=np.intp)


def _checked_shrinkage(shrinkage: float | str) -> float | None:
    """The share, or None for "auto"."""
    if shrinkage == "auto":
        return None
    number = isinstance(shrinkage, (int, float, np.floating)) and not isinstance(shrinkage, bool)
    if not number or not 0 < float(shrinkage) <= 1:
        raise ValueError(f"shrinkage must be 'auto' or a share above 0 and at most 1; got {shrinkage!r}.")
    return float(shrinkage)
