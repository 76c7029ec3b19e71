"""The class whose mean is nearest: prototypes (Snell, Swersky, Zemel 2017, arXiv 1703.05175).

Each class is the mean of its support vectors, its prototype; a query gets the class of the most similar prototype.
With the source domain's mean subtracted and rows brought to unit length this is the "CL2N" nearest mean of SimpleShot
(Wang et al. 2019, arXiv 1911.04623).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from episodes import Decision, Neighbor

from .support import (
    Support,
    as_label,
    check_center,
    check_evidence,
    check_fitted,
    check_metric,
    check_queries,
    class_array,
    insufficient,
    prepare,
    similarities,
)

#: Support images named for the winner and for the runner-up.
DEFAULT_EVIDENCE = 5


class PrototypeClassifier:
    """Nearest class mean over support vectors.

    Args:
        metric: "cosine" (rows are brought to unit length; scores in [-1, 1]) or "euclidean" (scores are negative
            squared distances, as in the paper).
        center: (d,) mean of the **source** domain to subtract first, usually `encoder.source_mean`; None subtracts
            nothing. The target's own mean would make the answer transductive.
        n_evidence: Support images named per decision for the winner, and for the runner-up.

    Attributes:
        classes_: The labels, sorted, as the caller gave them.
        prototypes_: float64 (n_classes, d); of unit length for the cosine.

    Example:
        >>> clf = PrototypeClassifier().fit([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], ["a", "a", "b"])
        >>> clf.predict([[0.8, 0.3], [0.1, 0.7]]).tolist()
        ['a', 'b']
    """

    transductive: ClassVar[bool] = False
    classes_: NDArray[Any]
    prototypes_: NDArray[np.float64]

    def __init__(
        self, *, metric: str = "cosine", center: ArrayLike | None = None, n_evidence: int = DEFAULT_EVIDENCE
    ) -> None:
        self.metric = metric
        self.center = center
        self.n_evidence = n_evidence

    def fit(
        self,
        vectors: ArrayLike,
        labels: Sequence[Hashable],
        *,
        ids: Sequence[str] | None = None,
        groups: Sequence[Hashable | None] | None = None,
    ) -> PrototypeClassifier:
        """Take the mean of each class.

        Args:
            vectors: (n, d) support vectors.
            labels: n class labels.
            ids: n distinct image ids, named as evidence; positions where absent. Means are taken in id order, so
                the order of registration cannot change an answer.
            groups: n patients; each patient counts once in its class however many images it has. None counts images.

        Returns:
            Itself.

        Raises:
            ValueError: Empty support, NaN, lists of unequal length, repeated ids, a missing label, an unknown metric.
        """
        metric = check_metric(self.metric)
        check_evidence(self.n_evidence)
        support = Support(vectors, labels, ids=ids, groups=groups)
        center = check_center(self.center, support.vectors.shape[1])
        rows = prepare(support.vectors, metric, center)  # (n, d)
        prototypes = np.stack([_class_mean(rows, support, c) for c in range(len(support.classes))])  # (n_classes, d)
        if metric == "cosine":
            norm = np.sqrt((prototypes * prototypes).sum(axis=1, keepdims=True))
            prototypes = np.divide(prototypes, norm, out=np.zeros_like(prototypes), where=norm > 0)
        self.classes_ = class_array(support.classes)
        self.prototypes_ = prototypes
        self._support, self._rows, self._center, self._metric = support, rows, center, metric
        return self

    def scores(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Similarity of each query to each prototype, (n, n_classes) in the order of `classes_`; not probabilities.

        A query nothing can be decided about (see `decide`) has NaN throughout.
        """
        return self._scores(self._queries(vectors))[0]

    def predict(self, vectors: ArrayLike) -> NDArray[Any]:
        """Labels (n,) of the nearest prototypes; None where `decide` has no label. Ties go to the first class."""
        scores, reasons = self._scores(self._queries(vectors))
        undecided = np.array([reason is not None for reason in reasons], dtype=np.bool_)
        labels: NDArray[Any] = self.classes_[np.where(undecided[:, None], 0.0, scores).argmax(axis=1)]
        if undecided.any():
            labels = labels.astype(object)
            labels[undecided] = None
        return labels

    def decide(self, vectors: ArrayLike) -> list[Decision]:
        """The full answer to each query: score, margin, and the support images for the winner and the runner-up.

        There is no label, but a reason, where the vector holds NaN, or where it is zero and the metric is the cosine.
        """
        queries = self._queries(vectors)
        scores, reasons = self._scores(queries)
        return [
            self._decide_one(queries[i : i + 1], scores[i])
            if reason is None
            else Decision(label=None, probability=None, score=None, margin=None, reason=reason)
            for i, reason in enumerate(reasons)
        ]

    def _queries(self, vectors: ArrayLike) -> NDArray[np.float32]:
        check_fitted(self, "prototypes_")
        return check_queries(vectors, self._rows.shape[1])

    def _scores(self, queries: NDArray[np.float32]) -> tuple[NDArray[np.float64], list[str | None]]:
        reasons = insufficient(queries, self._metric, self._center)
        which = [i for i, reason in enumerate(reasons) if reason is None]
        scores = np.full((len(queries), len(self.prototypes_)), np.nan)
        prepared = prepare(queries[which], self._metric, self._center)
        scores[which] = similarities(prepared, self.prototypes_, self._metric)
        return scores, reasons

    def _decide_one(self, query: NDArray[np.float32], scores: NDArray[np.float64]) -> Decision:
        prepared = prepare(query, self._metric, self._center)  # (1, d)
        order = np.argsort(-scores, kind="stable")
        first = int(order[0])
        second = int(order[1]) if len(order) > 1 else None
        return Decision(
            label=as_label(self.classes_[first]),
            probability=None,
            score=float(scores[first]),
            margin=None if second is None else float(scores[first] - scores[second]),
            evidence=self._evidence(prepared, first),
            runner_up=None if second is None else as_label(self.classes_[second]),
            counter_evidence=() if second is None else self._evidence(prepared, second),
        )

    def _evidence(self, query: NDArray[np.float64], target: int) -> tuple[Neighbor, ...]:
        members = np.flatnonzero(self._support.targets == target)
        closeness = similarities(query, self._rows[members], self._metric)[0]
        nearest = np.argsort(-closeness, kind="stable")[: self.n_evidence]
        return tuple(
            Neighbor(self._support.ids[members[i]], float(closeness[i]), as_label(self.classes_[target]))
            for i in nearest
        )


def _class_mean(rows: NDArray[np.float64], support: Support, target: int) -> NDArray[np.float64]:
    """Mean over patients of each patient's mean, (d,): a patient counts once."""
    members = np.flatnonzero(support.targets == target)
    by_patient: dict[Hashable, list[int]] = {}
    for i in members.tolist():
        by_patient.setdefault(support.groups[i], []).append(i)
    patients = [rows[own].mean(axis=0) for own in by_patient.values()]
    mean: NDArray[np.float64] = np.stack(patients).mean(axis=0)
    return mean
