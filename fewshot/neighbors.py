"""The class of the most similar support images: k nearest neighbours (Cover, Hart 1967), found exactly by FAISS."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

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
    check_metric,
    check_queries,
    class_array,
    finite_rows,
    insufficient,
)

#: How much a neighbour's vote counts: all alike, or by the inverse of its distance.
WEIGHTS = ("uniform", "distance")


class NeighborClassifier:
    """Weighted vote of the k support images most similar to the query; k = 1 is the highest-similarity rule.

    Args:
        k: Neighbours that vote; all, where there are fewer.
        weights: "distance" (a vote is worth 1 / distance, and an identical image decides alone) or "uniform".
        metric: "cosine" or "euclidean" (similarity is the negative distance).
        center: (d,) mean of the **source** domain to subtract first; None subtracts nothing.
        n_evidence: Support images named per decision for the winner, and for the runner-up.

    Attributes:
        classes_: The labels, sorted, as the caller gave them.

    A decision's score is the similarity of the nearest image where k = 1, else the winner's share of the votes; the
    margin is the difference to the runner-up on the same scale. Equal shares go to the class of the nearer image.

    Example:
        >>> clf = NeighborClassifier(k=1).fit([[1.0, 0.0], [0.0, 1.0]], ["a", "b"], ids=["x.png", "y.png"])
        >>> clf.decide([[0.6, 0.8]])[0].evidence[0].id
        'y.png'
    """

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
            ValueError: k below 1, an unknown weighting, an empty support, NaN, lists of unequal length, repeated ids.
        """
        if isinstance(self.k, bool) or self.k < 1:
            raise ValueError(f"k must be at least 1; got {self.k!r}.")
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

    def predict(self, vectors: ArrayLike) -> NDArray[Any]:
        """Labels (n,) by vote; None where a query holds NaN."""
        queries = check_queries(vectors, self._dim)
        finite = finite_rows(queries)
        winners = [0] * len(queries)
        for i, found in self._search(queries, finite):
            winners[i] = self._vote(found)[0][0]
        labels: NDArray[Any] = self.classes_[winners]
        if not finite.all():
            labels = labels.astype(object)
            labels[~finite] = None
        return labels

    def decide(self, vectors: ArrayLike) -> list[Decision]:
        """The full answer to each query: score, margin, and the support images for the winner and the runner-up."""
        queries = check_queries(vectors, self._dim)
        finite = finite_rows(queries)
        decisions = [
            Decision(label=None, probability=None, score=None, margin=None, reason=insufficient(row)) for row in queries
        ]
        for i, found in self._search(queries, finite):
            decisions[i] = self._decide_one(queries[i], found)
        return decisions

    def _moved(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        return (rows.astype(np.float64) - self._center).astype(np.float32)

    def _search(
        self, queries: NDArray[np.float32], finite: NDArray[np.bool_]
    ) -> list[tuple[int, list[tuple[str, float]]]]:
        """For each finite query its position and its k nearest support images with similarities, nearest first."""
        which = np.flatnonzero(finite).tolist()
        if not which:
            return []
        result = self._index.search(self._moved(queries[which]), self.k)
        rows = zip(result.ids, result.similarities.tolist(), strict=True)
        pairs = [list(zip(ids, row, strict=True)) for ids, row in rows]
        return list(zip(which, pairs, strict=True))

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

    def _decide_one(self, query: NDArray[np.float32], found: list[tuple[str, float]]) -> Decision:
        votes = self._vote(found)
        winner, share = votes[0]
        evidence = [pair for pair in found if self._target[pair[0]] == winner][: self.n_evidence]
        second, second_share = votes[1] if len(votes) > 1 else (None, 0.0)
        counter = [pair for pair in found if self._target[pair[0]] == second][: self.n_evidence]
        if second is None and len(self.classes_) > 1:  # nobody else is among the k: the nearest of the others is next
            others = [name for name, target in self._target.items() if target != winner]
            result = self._index.search(self._moved(query[None]), self.n_evidence, among=others)
            ranked = list(zip(result.ids[0], result.similarities[0].tolist(), strict=True))
            second = self._target[ranked[0][0]]
            counter = [pair for pair in ranked if self._target[pair[0]] == second]
        if self.k == 1:
            share, second_share = found[0][1], counter[0][1] if counter else 0.0
        return Decision(
            label=as_label(self.classes_[winner]),
            probability=None,
            score=share,
            margin=None if second is None else share - second_share,
            evidence=self._named(evidence, winner),
            runner_up=None if second is None else as_label(self.classes_[second]),
            counter_evidence=() if second is None else self._named(counter, second),
        )

    def _named(self, pairs: list[tuple[str, float]], target: int) -> tuple[Neighbor, ...]:
        label = as_label(self.classes_[target])
        return tuple(Neighbor(name, similarity, label) for name, similarity in pairs)
