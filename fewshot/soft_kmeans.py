"""Prototypes refined by the queries themselves: soft k-means (Ren et al. 2018, arXiv 1803.00676).

"Meta-learning for semi-supervised few-shot classification", section 3.1.1.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .class_scores import ClassScores, image_weights
from .prototypes import DEFAULT_EVIDENCE
from .span import positive
from .support import Metric, Support, check_center, check_metric, prepare, similarities


class SoftKMeansClassifier(ClassScores):
    """Nearest class mean, after the queries were shared out among the classes and moved their means.

    **Transductive**: a query's answer depends on the other queries it is asked with. `scores`, `predict` and `decide`
    each start from the support and refine with the queries they are given, nothing else; nothing is kept from one call
    to the next. Asked alone, a query moves the means a little towards itself. The order of the queries changes
    nothing. Queries nothing can be decided about take no part.

    In every iteration a query belongs to each class in proportion to exp(similarity / temperature), and a class's mean
    is that of its patients, each counted once, and of the queries by how far they belong to it. The queries should
    therefore look like the task at hand: some of each class. Images of no registered class pull the means astray.

    Args:
        n_iterations: Refinements; 0 gives `PrototypeClassifier`. The paper takes one.
        temperature: Of the shares, in units of the similarity. The paper's shares, exp(-squared distance), are those of
            1 for the Euclidean metric and, since rows have unit length, of 0.5 for the cosine.
        metric: "cosine" (rows and means are brought to unit length) or "euclidean" (similarity is the negative squared
            distance, as in the paper).
        center: (d,) mean of the **source** domain to subtract first, usually `encoder.source_mean`; None subtracts
            nothing.
        n_evidence: Support images named per decision for the winner, and for the runner-up.

    Attributes:
        classes_: The labels, sorted, as the caller gave them.
        prototypes_: float64 (n_classes, d), of the support alone; of unit length for the cosine.

    Example:
        >>> clf = SoftKMeansClassifier().fit([[1.0, 0.0], [0.0, 1.0]], ["a", "b"])
        >>> clf.predict([[0.8, 0.3], [0.1, 0.7], [0.2, 0.9]]).tolist()
        ['a', 'b', 'b']
    """

    transductive: ClassVar[bool] = True
    prototypes_: NDArray[np.float64]

    def __init__(
        self,
        *,
        n_iterations: int = 1,
        temperature: float = 0.5,
        metric: str = "cosine",
        center: ArrayLike | None = None,
        n_evidence: int = DEFAULT_EVIDENCE,
    ) -> None:
        self.n_iterations = n_iterations
        self.temperature = temperature
        self.metric = metric
        self.center = center
        self.n_evidence = n_evidence

    def _learn(self, support: Support) -> NDArray[np.float64]:
        steps = self.n_iterations
        if isinstance(steps, bool) or not isinstance(steps, (int, np.integer)) or steps < 0:
            raise ValueError(f"n_iterations must be a whole number of at least 0; got {steps!r}.")
        self._scale = positive(self.temperature, "temperature")
        self._decides_by: Metric = check_metric(self.metric)  # here it depends on the options
        center = check_center(self.center, support.vectors.shape[1])
        rows = prepare(support.vectors, self._decides_by, center)
        share = (support.targets == np.arange(len(support.classes))[:, None]) * image_weights(support)  # (n_classes, n)
        self._sums, self._counts = share @ rows, share.sum(axis=1, keepdims=True)  # (n_classes, d), patients
        self.prototypes_ = self._means(self._sums, self._counts)
        return center

    def _means(self, sums: NDArray[np.float64], counts: NDArray[np.float64]) -> NDArray[np.float64]:
        means: NDArray[np.float64] = sums / counts
        if self._decides_by == "cosine":
            norm = np.sqrt((means * means).sum(axis=1, keepdims=True))
            means = np.divide(means, norm, out=np.zeros_like(means), where=norm > 0)
        return means

    def _compare(self, queries: NDArray[np.float32]) -> NDArray[np.float64]:
        prepared = prepare(queries, self._decides_by, self._center)
        # Sums over queries are taken in an order of their own, so that the order of asking changes no bit.
        order = sorted(range(len(prepared)), key=lambda i: prepared[i].tobytes())
        ordered = np.ascontiguousarray(prepared[order])  # (m, d)
        closeness = similarities(ordered, self.prototypes_, self._decides_by)  # (m, n_classes)
        for _ in range(self.n_iterations if len(ordered) else 0):
            shares = np.exp((closeness - closeness.max(axis=1, keepdims=True)) / self._scale)
            shares /= shares.sum(axis=1, keepdims=True)
            counts = self._counts + shares.sum(axis=0)[:, None]
            closeness = similarities(ordered, self._means(self._sums + shares.T @ ordered, counts), self._decides_by)
        result = np.empty_like(closeness)
        result[order] = closeness
        return result
