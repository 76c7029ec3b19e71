"""Several semantic spaces, one answer: each space has its own alignment, and their scores are put on one scale.

Multi-view embedding for chest radiographs: Paul et al. 2021 (IEEE TMI), where reports, traits and descriptions each see
something the others miss. A view's scores are divided by their spread on what it was learnt on, so that a weight of 1
means the same for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .alignment import Alignment, RidgeAlignment
from .errors import ZeroShotError
from .linear_map import LinearMap
from .semantics import SemanticSpace


class MultiView:
    """Alignments of one image space with several semantic spaces.

    Args:
        make: Makes a fresh alignment; one for all views.
        weights: View -> weight; None weighs all alike.

    Attributes:
        maps_: View -> map.
        spreads_: View -> standard deviation of its scores on what it was learnt on.
    """

    maps_: dict[str, LinearMap]
    spreads_: dict[str, float]

    def __init__(
        self, *, make: Callable[[], Alignment] = RidgeAlignment, weights: Mapping[str, float] | None = None
    ) -> None:
        self.make = make
        self.weights = weights

    def fit(self, images: ArrayLike, targets: Mapping[str, ArrayLike]) -> MultiView:
        """Learn every view.

        Args:
            images: (n, p) image vectors.
            targets: View -> (n, d) semantic vector of each image: of its class or of its report.

        Raises:
            ZeroShotError: No view, or rows that do not fit.
        """
        if not targets:
            raise ZeroShotError("Several views take at least one.")
        self.maps_, self.spreads_ = {}, {}
        for view, rows in targets.items():
            found = self.make().fit(images, rows).map_
            distinct = np.unique(np.asarray(rows, dtype=np.float64), axis=0)
            self.maps_[view] = found
            self.spreads_[view] = max(float(found.scores(images, distinct).std()), 1e-12)
        return self

    def scores(self, images: ArrayLike, classes: Mapping[str, ArrayLike]) -> NDArray[np.float64]:
        """Return the weighted mean of the views' scores, (n, c); larger is closer.

        Args:
            images: (n, p).
            classes: View -> (c, d) vectors of the classes, in one order.

        Raises:
            ZeroShotError: A view is missing, or it has no weight.
        """
        weights = dict.fromkeys(self.maps_, 1.0) if self.weights is None else dict(self.weights)
        missing = [view for view in self.maps_ if view not in classes or view not in weights]
        if missing:
            raise ZeroShotError(
                f"The view {missing[0]!r} was learnt: give it the vectors of the classes, and a weight."
            )
        total = sum(weights[view] for view in self.maps_)
        if not total > 0:
            raise ZeroShotError("The weights of the views must sum to more than 0.")
        parts = [
            weights[view] / total / self.spreads_[view] * found.scores(images, classes[view])
            for view, found in self.maps_.items()
        ]
        return np.asarray(np.sum(parts, axis=0))


def targets_of(spaces: Mapping[str, SemanticSpace], labels: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Return, for each space, the vector of every image's class (n, d)."""
    return {view: space.rows(labels) for view, space in spaces.items()}


def self_train(
    images: ArrayLike,
    texts: ArrayLike,
    unlabelled: ArrayLike,
    classes: ArrayLike,
    make: Callable[[], Alignment],
    *,
    rounds: int = 3,
    share: float = 0.3,
) -> LinearMap:
    """Refit an alignment on unlabelled images that it is sure of. Transductive: it looks at what it is asked about.

    Each round the images that lead most in each class, by the difference to the second, become pairs with that class's
    vector; every class gives as many at most, so that none takes over.

    Args:
        images: (n, p) image vectors with texts.
        texts: (n, d) semantic vector of each.
        unlabelled: (m, p) image vectors without.
        classes: (c, d) vectors of the classes that may be met.
        make: Makes a fresh alignment.
        rounds: Refits.
        share: Share of the unlabelled images that is believed in the last round; it grows round by round.

    Returns:
        The last alignment's map.

    Raises:
        ZeroShotError: Rows that do not fit, or a share outside (0, 1].
    """
    if not 0 < share <= 1 or rounds < 1:
        raise ZeroShotError(f"Self-training takes a share in (0, 1] and at least one round; got {share} and {rounds}.")
    labelled, words = np.asarray(images, dtype=np.float64), np.asarray(texts, dtype=np.float64)
    pool, vectors = np.asarray(unlabelled, dtype=np.float64), np.asarray(classes, dtype=np.float64)
    found = make().fit(labelled, words).map_
    for number in range(1, rounds + 1):
        scores = found.scores(pool, vectors)  # (m, c)
        ordered = np.sort(scores, axis=1)
        margin = ordered[:, -1] - ordered[:, -2] if scores.shape[1] > 1 else ordered[:, -1]
        winner = scores.argmax(axis=1)
        most = max(1, int(np.ceil(share * number / rounds * len(pool) / len(vectors))))
        sure = np.concatenate(
            [
                mine[np.argsort(-margin[mine], kind="stable")[:most]]
                for mine in (np.flatnonzero(winner == code) for code in range(len(vectors)))
            ]
        ).astype(np.intp)
        found = make().fit(np.concatenate([labelled, pool[sure]]), np.concatenate([words, vectors[winner[sure]]])).map_
    return found
