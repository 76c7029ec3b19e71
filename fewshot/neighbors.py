"""The class of the most similar support images: k nearest neighbours (Cover, Hart 1967), found exactly by FAISS."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embeddings import Index, Snapshot
from episodes import Decision, Neighbor

from .prototypes import DEFAULT_EVIDENCE
from .support import (
    Metric,
    Support,
    as_label,
    check_center,
    check_evidence,
    check_fitted,
    check_metric,
    check_queries,
    class_array,
    insufficient,
)

#: How much a neighbour's vote counts: all alike, or by the inverse of its distance.
WEIGHTS = ("uniform", "distance")


class NeighborClassifier:
    """Weighted vote of the k support images most similar to the query; k = 1 is the highest-similarity rule.

    Args:
        k: Neighbours that vote; all, where there are fewer.
        weights: "distance" (a vote is worth 1 / distance, and an identical image decides alone) or "uniform". The
            distance that belongs to the cosine is that between the rows brought to unit length.
        metric: "cosine" or "euclidean" (similarity is the negative distance).
        center: (d,) mean of the **source** domain to subtract first; None subtracts nothing.
        n_evidence: Support images named per decision for the winner, and for the runner-up.

    Attributes:
        classes_: The labels, sorted, as the caller gave them.

    A decision's score is the similarity of the nearest image where k = 1, else the winner's share of the votes; the
    margin is the difference to the runner-up on the same scale. Equal shares go to the class of the nearer image. The
    evidence is the images that voted for the winner, and those that voted for the runner-up; where all k agree,
    the runner-up is the class of the nearest image of any other class, with no share of the votes.

    Example:
        >>> clf = NeighborClassifier(k=1).fit([[1.0, 0.0], [0.0, 1.0]], ["a", "b"], ids=["x.png", "y.png"])
        >>> clf.decide([[0.6, 0.8]])[0].evidence[0].id
        'y.png'
    """

    transductive: ClassVar[bool] = False
    classes_: NDArray[Any]

    def __init__(
        self,
        k: int = 5,
        *,
        weights: str = "distance",
        metric: str = "cosine",
        center: ArrayLike | None = None,
        n_evidence: int = DEFAULT_EVIDENCE,
    ) -> None:
        self.k = k
        self.weights = weights
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
    ) -> NeighborClassifier:
        """Keep the support and index it.

        Args:
            vectors: (n, d) support vectors.
            labels: n class labels.
            ids: n distinct image ids, named as evidence; positions where absent.
            groups: n patients; taken for the sake of one interface, each image votes for itself.

        Returns:
            Itself.

        Raises:
            ValueError: k below 1, an unknown weighting or metric, an empty support, NaN, lists of unequal length,
                repeated ids, a missing label.
        """
        if isinstance(self.k, bool) or not isinstance(self.k, (int, np.integer)) or self.k < 1:
            raise ValueError(f"k must be a whole number of at least 1; got {self.k!r}.")
        check_evidence(self.n_evidence)
        if self.weights not in WEIGHTS:
            raise ValueError(f"weights must be one of {', '.join(WEIGHTS)}; got {self.weights!r}.")
        self._metric: Metric = check_metric(self.metric)
        support = Support(vectors, labels, ids=ids, groups=groups)
        self._center = check_center(self.center, support.vectors.shape[1])
        self._index = Index(Snapshot.from_rows(support.ids, self._moved(support.vectors)), metric=self._metric)
        self._target = dict(zip(support.ids, support.targets.tolist(), strict=True))
        self._dim = support.vectors.shape[1]
        self.classes_ = class_array(support.classes)
        return self

    def scores(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Score of each query for each class, (n, n_classes) in the order of `classes_`; not probabilities.

        With k = 1 the similarity of the class's nearest image, else the class's share of the votes. A query nothing can
        be decided about (see `decide`) has NaN throughout.
        """
        queries, reasons = self._queries(vectors)
        which = [i for i, reason in enumerate(reasons) if reason is None]
        found = np.full((len(queries), len(self.classes_)), np.nan)
        found[which] = 0.0
        if self.k == 1:
            for target in range(len(self.classes_)):
                own = [name for name, code in self._target.items() if code == target]
                for i, pairs in zip(which, self._nearest(queries[which], 1, own), strict=True):
                    found[i, target] = pairs[0][1]
            return found
        for i, pairs in self._search(queries, reasons):
            for target, share in self._vote(pairs):
                found[i, target] = share
        return found

    def predict(self, vectors: ArrayLike) -> NDArray[Any]:
        """Labels (n,) by vote; None where `decide` has no label."""
        queries, reasons = self._queries(vectors)
        winners = np.zeros(len(queries), dtype=np.intp)
        for i, found in self._search(queries, reasons):
            winners[i] = self._vote(found)[0][0]
        labels: NDArray[Any] = self.classes_[winners]
        undecided = np.array([reason is not None for reason in reasons], dtype=np.bool_)
        if undecided.any():
            labels = labels.astype(object)
            labels[undecided] = None
        return labels

    def decide(self, vectors: ArrayLike) -> list[Decision]:
        """The full answer to each query: score, margin, and the support images for the winner and the runner-up.

        There is no label, but a reason, where the vector holds NaN, or where it is zero and the metric is the cosine.
        """
        queries, reasons = self._queries(vectors)
        found = dict(self._search(queries, reasons))
        votes = {i: self._vote(pairs) for i, pairs in found.items()}
        outsiders = self._outsiders(queries, {i: vote[0][0] for i, vote in votes.items() if len(vote) == 1})
        return [
            self._decide_one(found[i], votes[i], outsiders.get(i, []))
            if reason is None
            else Decision(label=None, probability=None, score=None, margin=None, reason=reason)
            for i, reason in enumerate(reasons)
        ]

    def _queries(self, vectors: ArrayLike) -> tuple[NDArray[np.float32], list[str | None]]:
        """Checked rows (n, d), and for each why nothing can be decided about it."""
        check_fitted(self, "classes_")
        queries = check_queries(vectors, self._dim)
        return queries, insufficient(queries, self._metric, self._center)

    def _moved(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return (rows.astype(np.float64) - self._center).astype(np.float32)

    def _search(
        self, queries: NDArray[np.float32], reasons: Sequence[str | None]
    ) -> list[tuple[int, list[tuple[str, float]]]]:
        """For each query that can be decided its position and its k nearest support images, nearest first."""
        which = [i for i, reason in enumerate(reasons) if reason is None]
        return list(zip(which, self._nearest(queries[which], self.k), strict=True))

    def _nearest(
        self, queries: NDArray[np.float32], k: int, among: Sequence[str] | None = None
    ) -> list[list[tuple[str, float]]]:
        if not len(queries):
            return []
        result = self._index.search(self._moved(queries), k, among=among)
        rows = zip(result.ids, result.similarities.tolist(), strict=True)
        return [list(zip(ids, row, strict=True)) for ids, row in rows]

    def _outsiders(self, queries: NDArray[np.float32], winners: dict[int, int]) -> dict[int, list[tuple[str, float]]]:
        """For queries whose k neighbours agree on a winner, the nearest images of all other classes."""
        found: dict[int, list[tuple[str, float]]] = {}
        for winner in sorted(set(winners.values())):
            others = [name for name, target in self._target.items() if target != winner]
            which = [i for i, own in winners.items() if own == winner]
            if others:  # one search per class
                found.update(zip(which, self._nearest(queries[which], max(1, self.n_evidence), others), strict=True))
        return found

    def _vote(self, found: list[tuple[str, float]]) -> list[tuple[int, float]]:
        """Classes among the neighbours with their share of the votes, the winner first."""
        weights = self._weights(np.array([similarity for _, similarity in found]))
        votes: dict[int, float] = {}
        for (name, _), weight in zip(found, weights.tolist(), strict=True):  # nearest first, so ties stay in that order
            votes[self._target[name]] = votes.get(self._target[name], 0.0) + weight
        total = sum(votes.values())
        return sorted(((c, vote / total) for c, vote in votes.items()), key=lambda item: -item[1])

    def _weights(self, similarities: NDArray[np.float64]) -> NDArray[np.float64]:
        if self.weights == "uniform":
            return np.ones_like(similarities)
        distances = np.sqrt(np.maximum(2 - 2 * similarities, 0)) if self._metric == "cosine" else -similarities
        if (distances <= 0).any():
            return (distances <= 0).astype(np.float64)
        inverse: NDArray[np.float64] = 1 / distances
        return inverse

    def _decide_one(
        self,
        found: list[tuple[str, float]],
        votes: list[tuple[int, float]],
        outsiders: list[tuple[str, float]],
    ) -> Decision:
        winner, share = votes[0]
        second, second_share = votes[1] if len(votes) > 1 else (None, 0.0)
        if second is None and outsiders:
            second = self._target[outsiders[0][0]]
        evidence = [pair for pair in found if self._target[pair[0]] == winner]
        counter = [pair for pair in found + outsiders if self._target[pair[0]] == second]
        if self.k == 1:
            share, second_share = found[0][1], counter[0][1] if counter else 0.0
        return Decision(
            label=as_label(self.classes_[winner]),
            probability=None,
            score=share,
            margin=None if second is None else share - second_share,
            evidence=self._named(evidence[: self.n_evidence], winner),
            runner_up=None if second is None else as_label(self.classes_[second]),
            counter_evidence=() if second is None else self._named(counter[: self.n_evidence], second),
        )

    def _named(self, pairs: list[tuple[str, float]], target: int) -> tuple[Neighbor, ...]:
        label = as_label(self.classes_[target])
        return tuple(Neighbor(name, similarity, label) for name, similarity in pairs)
