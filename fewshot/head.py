"""The one interface of every few-shot head."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from episodes import Decision


class Head(Protocol):
    """What every few-shot classifier does."""

    transductive: ClassVar[bool]
    classes_: NDArray[Any]

    def fit(
        self,
        vectors: ArrayLike,
        labels: Sequence[Hashable],
        *,
        ids: Sequence[str] | None = None,
        groups: Sequence[Hashable | None] | None = None,
    ) -> Head:
        """Learn from support vectors (n, d)."""

    def scores(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Scores (n, n_classes) in the order of `classes_`; NaN throughout where nothing can be decided."""

    def predict(self, vectors: ArrayLike) -> NDArray[Any]:
        """Labels (n,)."""

    def decide(self, vectors: ArrayLike) -> list[Decision]:
        """Full answers."""
