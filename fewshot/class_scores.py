"""What heads share that give every class a score and name the support images nearest to the query as evidence."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from episodes import Decision, Neighbor

from .support import (
    Metric,
    Support,
    as_label,
    check_evidence,
    check_fitted,
    check_queries,
    class_array,
    insufficient,
    prepare,
    similarities,
)


class ClassScores(ABC):
    """A head that scores every class; whichever scores highest is the answer.

    Attributes:
        classes_: The labels, sorted, as the caller gave them.
        n_evidence: Support images named per decision for the winner, and for the runner-up.
        transductive: Whether a query's answer depends on the other queries it is asked with.
    """

    transductive: ClassVar[bool] = False
    classes_: NDArray[Any]
    n_evidence: int
    #: "cosine" where nothing can be decided about a query that is zero once centred, else "euclidean".
    _decides_by: Metric

    @abstractmethod
    def _learn(self, support: Support) -> NDArray[np.float64]:
        """Keep what scores are computed from; return what is subtracted before cosines are taken, (d,)."""

    @abstractmethod
    def _compare(self, queries: NDArray[np.float32]) -> NDArray[np.float64]:
        """Scores (m, n_classes) of finite queries (m, d); larger is likelier."""

    def fit(
        self,
        vectors: ArrayLike,
        labels: Sequence[Hashable],
        *,
        ids: Sequence[str] | None = None,
        groups: Sequence[Hashable | None] | None = None,
    ) -> Self:
        """Take the support.

        Args:
            vectors: (n, d) support vectors.
            labels: n class labels.
            ids: n distinct image ids, named as evidence; positions where absent. Sums are taken in id order, so the
                order of registration cannot change an answer.
            groups: n patients; each patient counts once in its class however many images it has. None counts images.

        Returns:
            Itself.

        Raises:
            ValueError: Empty support, NaN, lists of unequal length, repeated ids, a missing label, an option that
                cannot be meant.
        """
        check_evidence(self.n_evidence)
        support = Support(vectors, labels, ids=ids, groups=groups)
        self._center = self._learn(support)
        self._rows = prepare(support.vectors, "cosine", self._center)  # (n, d), of unit length
        self._support = support
        self.classes_ = class_array(support.classes)
        return self

    def scores(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Score of each query for each class, (n, n_classes) in the order of `classes_`; not probabilities.

        A query nothing can be decided about (see `decide`) has NaN throughout.
        """
        return self._scores(self._queries(vectors))[0]

    def predict(self, vectors: ArrayLike) -> NDArray[Any]:
        """Labels (n,) of the highest scores; None where `decide` has no label. Ties go to the first class."""
        scores, reasons = self._scores(self._queries(vectors))
        undecided = np.array([reason is not None for reason in reasons], dtype=np.bool_)
        labels: NDArray[Any] = self.classes_[np.where(undecided[:, None], 0.0, scores).argmax(axis=1)]
        if undecided.any():
            labels = labels.astype(object)
            labels[undecided] = None
        return labels

    def decide(self, vectors: ArrayLike) -> list[Decision]:
        """The full answer to each query: score, margin, and the support images for the winner and the runner-up.

        There is no label, but a reason, where the vector holds NaN, or where it is zero and the answer is made of
        cosines. The evidence's similarities are cosines.
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
        check_fitted(self, "classes_")
        return check_queries(vectors, self._rows.shape[1])

    def _scores(self, queries: NDArray[np.float32]) -> tuple[NDArray[np.float64], list[str | None]]:
        reasons = insufficient(queries, self._decides_by, self._center)
        which = [i for i, reason in enumerate(reasons) if reason is None]
        scores = np.full((len(queries), len(self.classes_)), np.nan)
        scores[which] = self._compare(np.ascontiguousarray(queries[which]))
        return scores, reasons

    def _decide_one(self, query: NDArray[np.float32], scores: NDArray[np.float64]) -> Decision:
        cosines = similarities(prepare(query, "cosine", self._center), self._rows, "cosine")[0]  # (n,)
        order = np.argsort(-scores, kind="stable")
        first = int(order[0])
        second = int(order[1]) if len(order) > 1 else None
        return Decision(
            label=as_label(self.classes_[first]),
            probability=None,
            score=float(scores[first]),
            margin=None if second is None else float(scores[first] - scores[second]),
            evidence=self._evidence(cosines, first),
            runner_up=None if second is None else as_label(self.classes_[second]),
            counter_evidence=() if second is None else self._evidence(cosines, second),
        )

    def _evidence(self, cosines: NDArray[np.float64], target: int) -> tuple[Neighbor, ...]:
        members = np.flatnonzero(self._support.targets == target)
        nearest = members[np.argsort(-cosines[members], kind="stable")[: self.n_evidence]]
        label = as_label(self.classes_[target])
        return tuple(Neighbor(self._support.ids[i], float(cosines[i]), label) for i in nearest.tolist())


def image_weights(support: Support) -> NDArray[np.float64]:
    """What each support image counts, (n,): the images of one patient in one class share a weight of 1."""
    owners = list(zip(support.groups, support.targets.tolist(), strict=True))
    images = Counter(owners)
    return np.array([1 / images[owner] for owner in owners])
