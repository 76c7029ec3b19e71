"""Support vector machines on frozen vectors, one for each class (MetaOptNet; Lee, Maji, Ravichandran, Soatto 2019,
arXiv 1904.03758).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .class_scores import ClassScores, image_weights
from .prototypes import DEFAULT_EVIDENCE
from .span import positive, row_products
from .support import Metric, Support, check_center, prepare, similarities

#: What a support vector machine may compare rows by.
KERNELS = ("linear", "rbf")
#: How far the solver (libsvm) may stop from the optimum.
TOLERANCE = 1e-6
#: Steps after which libsvm stops and scikit-learn warns: seconds, where a large C meets long rows nothing can part.
MOST_STEPS = 1_000_000
#: A spread below this share of the mean squared length is rounding, and the rows are alike.
ALIKE = 1e-12


class SupportVectorClassifier(ClassScores):
    """For each class the widest margin between it and all others, by scikit-learn's SVC (libsvm).

    The score of a class is its machine's signed distance to the boundary in units of the margin; with two classes one
    is minus the other. Each machine weighs its class as much as all others together, those alike, and the patients
    of a class alike however many images they have. MetaOptNet solves one joint problem for all classes (Crammer and
    Singer) and differentiates through it; one machine per class is simpler, and its scores say how far a query is from
    *each* class. With a single class every score is 1 and that class the answer.

    Memory grows with the square of the number of support images: 5,000 take 200 MB.

    Args:
        C: The price of a patient inside the margin.
        kernel: "linear", or "rbf": exp(-gamma * squared distance).
        gamma: Of the "rbf" kernel; None takes one over the mean squared distance of the support from its mean, each
            patient counted once.
        normalize: Bring rows to unit length once centred, so that one C suits the vectors of any encoder.
        center: (d,) mean of the **source** domain to subtract first, usually `encoder.source_mean`; None subtracts
            nothing.
        n_evidence: Support images named per decision for the winner, and for the runner-up.

    Attributes:
        classes_: The labels, sorted, as the caller gave them.
        dual_coef_: float64 (n_classes, n), what each support image (in order of id) counts for each class; 0 for those
            beyond the margin.
        intercept_: float64 (n_classes,).

    Example:
        >>> clf = SupportVectorClassifier().fit([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], ["a", "a", "b"])
        >>> clf.predict([[0.8, 0.3], [0.1, 0.7]]).tolist()
        ['a', 'b']
    """

    dual_coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]

    def __init__(
        self,
        C: float = 10.0,
        *,
        kernel: str = "linear",
        gamma: float | None = None,
        normalize: bool = True,
        center: ArrayLike | None = None,
        n_evidence: int = DEFAULT_EVIDENCE,
    ) -> None:
        self.C = C
        self.kernel = kernel
        self.gamma = gamma
        self.normalize = normalize
        self.center = center
        self.n_evidence = n_evidence

    def _learn(self, support: Support) -> NDArray[np.float64]:
        strength = positive(self.C, "C")
        if self.kernel not in KERNELS:
            raise ValueError(f"kernel must be one of {', '.join(KERNELS)}; got {self.kernel!r}.")
        self._decides_by: Metric = "cosine" if self.normalize else "euclidean"  # here it depends on the options
        center = check_center(self.center, support.vectors.shape[1])
        rows = prepare(support.vectors, self._decides_by, center)  # (n, d)
        counts = image_weights(support)
        self._gamma = _width(rows, counts) if self.gamma is None else positive(self.gamma, "gamma")
        n_classes = len(support.classes)
        self.dual_coef_, self.intercept_ = np.zeros((n_classes, len(rows))), np.ones(n_classes)
        if n_classes > 1:
            products = rows @ rows.T
            kernel = products if self.kernel == "linear" else self._rbf(_squared(products))
            for c in range(n_classes if n_classes > 2 else 1):
                self._machine(kernel, support, counts, strength, c)
            if n_classes == 2:
                self.dual_coef_[1], self.intercept_[1] = -self.dual_coef_[0], -self.intercept_[0]
        self._keys, self._coef = rows, np.ascontiguousarray(self.dual_coef_ @ rows)  # (n, d), (n_classes, d)
        return center

    def _machine(
        self, kernel: NDArray[np.float64], support: Support, counts: NDArray[np.float64], strength: float, target: int
    ) -> None:
        """Fit the machine of one class on a kernel (n, n) of the support."""
        from sklearn.svm import SVC  # a second to import, and most heads do without

        own = support.targets == target
        patients = np.bincount(support.targets, weights=counts)  # of each class
        share = np.where(own, 1.0, 1.0 / (len(patients) - 1)) / 2  # of each class: half, or its part of the other half
        weights = counts * patients.sum() * share / patients[support.targets]
        model = SVC(C=strength, kernel="precomputed", tol=TOLERANCE, max_iter=MOST_STEPS)
        model.fit(kernel, own, sample_weight=weights)
        self.dual_coef_[target, model.support_] = model.dual_coef_[0]
        self.intercept_[target] = model.intercept_[0]

    def _rbf(self, squared: NDArray[np.float64]) -> NDArray[np.float64]:
        kernel: NDArray[np.float64] = np.exp(-self._gamma * squared)
        return kernel

    def _compare(self, queries: NDArray[np.float32]) -> NDArray[np.float64]:
        prepared = prepare(queries, self._decides_by, self._center)
        if self.kernel == "linear":
            return row_products(prepared, self._coef) + self.intercept_
        kernel = self._rbf(-similarities(prepared, self._keys, "euclidean"))  # (m, n)
        return row_products(kernel, self.dual_coef_) + self.intercept_


def _squared(products: NDArray[np.float64]) -> NDArray[np.float64]:
    """Squared distances (n, n) of rows from their inner products (n, n)."""
    lengths = np.diagonal(products)
    return np.maximum(lengths[:, None] + lengths - 2 * products, 0.0)


def _width(rows: NDArray[np.float64], counts: NDArray[np.float64]) -> float:
    """One over the weighted mean squared distance of rows (n, d) from their weighted mean; 1 where all are alike."""
    share = counts / counts.sum()
    spread = float(share @ ((rows - share @ rows) ** 2).sum(axis=1))
    length = float(share @ (rows * rows).sum(axis=1))
    return 1 / spread if spread > ALIKE * length else 1.0
