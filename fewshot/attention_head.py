"""The class that draws the attention: the matching network's vote over support images (Vinyals 2016, arXiv 1606.04080).

A query attends to every support image by a soft maximum of cosine similarities, and the score of a class is the
attention its images get. It is a vote weighted by a kernel, between nearest neighbour (temperature near 0) and the mean
similarity of a class (large temperature).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embeddings import SimilarityHead

from .class_scores import ClassScores, image_weights
from .prototypes import DEFAULT_EVIDENCE
from .support import Metric, Support, check_center, prepare, similarities

#: Name of the learnt comparison that carries the temperature of a trained matching network.
ATTENTION = "attention"

#: What cosines are divided by before the soft maximum. The paper divides by nothing, that is by 1; cosines end at 1 and
#: -1, so that a 5-way 1-shot query that equals one support image and is opposite to the others would still give it only
#: 0.65, and the loss would never fall below 0.43. Scaling mends this (Oreshkin et al. 2018, arXiv 1805.10123; Chen et
#: al. 2019, arXiv 1904.04232, multiply by 100). With 0.1, as for cosines to prototypes, both ends are in reach, and
#: images at a cosine of 0.3 less than the nearest still have a twentieth of its vote.
ATTENTION_TEMPERATURE = 0.1


def check_temperature(temperature: float) -> float:
    """`temperature` if a soft maximum can divide by it."""
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float, np.integer, np.floating)):
        raise ValueError(f"temperature must be a number above 0; got {temperature!r}.")
    if not (temperature > 0 and math.isfinite(temperature)):
        raise ValueError(f"temperature must be a number above 0; got {temperature!r}.")
    return float(temperature)


class MatchingClassifier(ClassScores):
    """Vote of all support images, each weighted by a soft maximum of its cosine similarity to the query.

    A decision's score is the winner's share of the attention. It adds up to 1 over the classes and is not calibrated,
    so it is no probability. A class with more patients has more votes, as in the paper: for a query that resembles
    nothing it is the likelier class.

    Args:
        similarity: The learnt comparison of an encoder trained by `MatchingNetwork`, usually `encoder.similarity`: its
            temperature is used, and nothing is subtracted, as in training. That of another method is of no use here.
        center: (d,) mean of the **source** domain to subtract first where `similarity` is none of ours; None subtracts
            nothing.
        temperature: What cosines are divided by; None takes the trained one, else `ATTENTION_TEMPERATURE`.
        n_evidence: Support images named per decision for the winner, and for the runner-up.

    Attributes:
        classes_: The labels, sorted, as the caller gave them.
        temperature_: What cosines are divided by.

    Example:
        >>> clf = MatchingClassifier().fit([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0]], ["a", "a", "b"])
        >>> clf.decide([[1.0, 0.0]])[0].label
        'a'
        >>> clf.scores([[0.0, 1.0]]).round(3).tolist()
        [[0.119, 0.881]]
    """

    temperature_: float
    _decides_by: Metric = "cosine"

    def __init__(
        self,
        *,
        similarity: SimilarityHead | None = None,
        center: ArrayLike | None = None,
        temperature: float | None = None,
        n_evidence: int = DEFAULT_EVIDENCE,
    ) -> None:
        self.similarity = similarity
        self.center = center
        self.temperature = temperature
        self.n_evidence = n_evidence

    def _learn(self, support: Support) -> NDArray[np.float64]:
        trained = self.similarity if self.similarity is not None and self.similarity.name == ATTENTION else None
        temperature = self.temperature
        if temperature is None:
            temperature = ATTENTION_TEMPERATURE if trained is None else trained.config.get("temperature")
        self.temperature_ = check_temperature(temperature)  # type: ignore[arg-type]  # a checkpoint may lack it
        center = check_center(self.center, support.vectors.shape[1])
        center = center if trained is None else np.zeros_like(center)
        members = [np.flatnonzero(support.targets == c) for c in range(len(support.classes))]
        self._by_class = np.concatenate(members)  # (n,) rows of the support, one class after another
        self._ends = np.cumsum([len(own) for own in members])[:-1]
        self._keys = prepare(support.vectors[self._by_class], "cosine", center)  # (n, d)
        self._log_weights = np.log(image_weights(support)[self._by_class])  # (n,)
        return center

    def _compare(self, queries: NDArray[np.float32]) -> NDArray[np.float64]:
        cosines = similarities(prepare(queries, "cosine", self._center), self._keys, "cosine")  # (m, n)
        logits = cosines / self.temperature_ + self._log_weights
        votes = np.exp(logits - logits.max(axis=1, keepdims=True))
        # Each sum runs along rows of its own, so that it rounds alike whoever else is asked about.
        parts = [np.ascontiguousarray(own).sum(axis=1) for own in np.split(votes, self._ends, axis=1)]
        by_class = np.stack(parts, axis=1)  # (m, n_classes)
        shares: NDArray[np.float64] = by_class / by_class.sum(axis=1, keepdims=True)
        return shares
