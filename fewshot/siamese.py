"""The class of the most similar support image, compared as a Siamese network does (Koch, Zemel, Salakhutdinov 2015).

The paper is "Siamese neural networks for one-shot image recognition", ICML deep learning workshop 2015.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embeddings import SimilarityHead
from episodes import Decision, Neighbor

from .class_scores import ClassScores
from .prototypes import DEFAULT_EVIDENCE
from .support import CHUNK_ELEMENTS, Metric, Support, check_center, check_metric, prepare, similarities

#: Name of the learnt comparison of two vectors a and b: p(same) = sigmoid(sum_j weight_j |a_j - b_j| + bias). Its
#: option "unit_length" says whether they are brought to unit length first.
WEIGHTED_L1 = "weighted-l1"


class SiameseClassifier(ClassScores):
    """Highest similarity to any support image: its class is the answer.

    Without a learnt comparison this is the nearest neighbour, `NeighborClassifier(k=1)`, with a score for every class.
    With that of an encoder trained by `SiameseNetwork(loss="logistic")` a score is the trained probability, in [0, 1],
    that the query and the nearest image of a class are of one class. It was trained on pairs of which half counted as
    "same", whatever the number of classes, so it is no calibrated probability of the class: `Decision.probability` is
    None. Classes are ranked by its log-odds, which still differ where probabilities have been rounded to 1.

    A decision's evidence is the winner's most similar images, its similarities on the scale of the score. Equal scores
    go to the first class in sorted order, equal similarities to the first image in order of id.

    Args:
        similarity: The learnt comparison "weighted-l1", usually `encoder.similarity`; None compares by `metric`.
        metric: "cosine" or "euclidean" (similarity is the negative distance), where nothing was learnt.
        center: (d,) mean of the **source** domain to subtract first; None subtracts nothing. A learnt comparison
            subtracts nothing either, as in training.
        n_evidence: Support images named per decision for the winner, and for the runner-up.

    Attributes:
        classes_: The labels, sorted, as the caller gave them.

    Example:
        >>> clf = SiameseClassifier().fit([[1.0, 0.0], [0.0, 1.0]], ["a", "b"], ids=["x.png", "y.png"])
        >>> clf.decide([[0.6, 0.8]])[0].evidence[0].id
        'y.png'
        >>> clf.scores([[0.6, 0.8]]).round(3).tolist()
        [[0.6, 0.8]]
    """

    _decides_by: Metric = "cosine"

    def __init__(
        self,
        *,
        similarity: SimilarityHead | None = None,
        metric: str = "cosine",
        center: ArrayLike | None = None,
        n_evidence: int = DEFAULT_EVIDENCE,
    ) -> None:
        self.similarity = similarity
        self.metric = metric
        self.center = center
        self.n_evidence = n_evidence

    def scores(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Similarity of each query to the most similar image of each class, (n, n_classes) in the order of `classes_`.

        A query nothing can be decided about (see `decide`) has NaN throughout.
        """
        return self._on_scale(super().scores(vectors))

    def _learn(self, support: Support) -> NDArray[np.float64]:
        dim = support.vectors.shape[1]
        self._metric = check_metric(self.metric)
        center = check_center(self.center, dim)
        self._learnt = None if self.similarity is None else weighted_l1(self.similarity, dim)
        if self._learnt is not None:
            center = np.zeros(dim)
            self._metric = "cosine" if self._learnt[2] else "euclidean"
        self._decides_by = self._metric  # here it depends on the options
        self._members = [np.flatnonzero(support.targets == c) for c in range(len(support.classes))]
        self._keys = prepare(support.vectors, self._metric, center)  # (n, d)
        return center

    def _compare(self, queries: NDArray[np.float32]) -> NDArray[np.float64]:
        result = np.empty((len(queries), len(self._members)))
        step = max(1, CHUNK_ELEMENTS // max(1, self._keys.size))
        for start in range(0, len(queries), step):
            closeness = self._closeness(queries[start : start + step])
            for c, own in enumerate(self._members):
                result[start : start + step, c] = closeness[:, own].max(axis=1)
        return result

    def _closeness(self, queries: NDArray[np.float32]) -> NDArray[np.float64]:
        """Similarity (m, n) of queries (m, d) to every support image; log-odds where it was learnt."""
        prepared = prepare(queries, self._metric, self._center)
        step = max(1, CHUNK_ELEMENTS // max(1, prepared.size))
        blocks = [self._keys[start : start + step] for start in range(0, len(self._keys), step)]
        return np.concatenate([self._pairs(prepared, block) for block in blocks], axis=1)

    def _pairs(self, queries: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
        """Similarity (m, k) of prepared rows (m, d) and (k, d); m x k x d is small here."""
        if self._learnt is not None:
            weight, bias, _ = self._learnt
            # Each sum runs along a row of its own, so that it rounds alike whoever else is asked about.
            log_odds: NDArray[np.float64] = (np.abs(queries[:, None, :] - others) * weight).sum(axis=2) + bias
            return log_odds
        found = similarities(queries, others, self._metric)
        return found if self._metric == "cosine" else -np.sqrt(-found)

    def _on_scale(self, closeness: NDArray[np.float64]) -> NDArray[np.float64]:
        """What is shown for a similarity: probabilities for log-odds."""
        if self._learnt is None:
            return closeness
        small = np.exp(-np.abs(closeness))  # never overflows
        shown: NDArray[np.float64] = np.where(closeness < 0, small, 1.0) / (1 + small)
        return shown

    def _decide_one(self, query: NDArray[np.float32], scores: NDArray[np.float64]) -> Decision:
        decision = super()._decide_one(query, scores)
        closeness = self._closeness(query)[0]  # (n,)
        best = np.argsort(-scores, kind="stable")[:2]  # the winner, and the runner-up where there is one
        shown = self._on_scale(scores[best]).tolist()
        named = [self._evidence(closeness, int(target)) for target in best]
        return replace(
            decision,
            score=shown[0],
            margin=shown[0] - shown[1] if len(shown) > 1 else None,
            evidence=named[0],
            counter_evidence=named[1] if len(named) > 1 else (),
        )

    def _evidence(self, cosines: NDArray[np.float64], target: int) -> tuple[Neighbor, ...]:
        nearest = super()._evidence(cosines, target)
        shown = self._on_scale(np.array([neighbor.similarity for neighbor in nearest])).tolist()
        return tuple(replace(neighbor, similarity=s) for neighbor, s in zip(nearest, shown, strict=True))


def weighted_l1(head: SimilarityHead, dim: int) -> tuple[NDArray[np.float64], float, bool]:
    """What a learnt comparison "weighted-l1" computes with.

    Args:
        head: The comparison.
        dim: Length d of the vectors to compare.

    Returns:
        The weights float64 (d,), the bias, and whether vectors are brought to unit length first.

    Raises:
        ValueError: Another comparison, or weights that are missing, not finite or of another shape.
    """
    if head.name != WEIGHTED_L1:
        raise ValueError(
            f"SiameseClassifier computes with the learnt comparison {WEIGHTED_L1!r} or, given similarity=None, with "
            f"none; got {head.name!r}."
        )
    missing = [name for name in ("weight", "bias") if name not in head.tensors]
    if missing:
        raise ValueError(f"The comparison {WEIGHTED_L1!r} needs the tensors weight and bias; {missing[0]} is missing.")
    weight = np.asarray(head.tensors["weight"], dtype=np.float64)
    bias = np.asarray(head.tensors["bias"], dtype=np.float64)
    if weight.shape != (dim,):
        raise ValueError(
            f"The comparison {WEIGHTED_L1!r} has weights of shape {weight.shape}, the comparison set has {dim} "
            f"dimensions: were both made by the same encoder?"
        )
    if bias.size != 1:
        raise ValueError(f"The comparison {WEIGHTED_L1!r} needs one bias; got an array of shape {bias.shape}.")
    if not (np.isfinite(weight).all() and np.isfinite(bias).all()):
        raise ValueError(f"The comparison {WEIGHTED_L1!r} must have finite weights; they hold NaN or infinity.")
    return weight, float(bias.reshape(())), bool(head.config.get("unit_length", False))
