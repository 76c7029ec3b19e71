"""The few-shot heads by name, for the command line and for tables that compare them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

from numpy.typing import ArrayLike, NDArray

from episodes import Decision

from .neighbors import NeighborClassifier
from .prototypes import PrototypeClassifier


class Head(Protocol):
    """What every few-shot classifier does."""

    def fit(
        self,
        vectors: ArrayLike,
        labels: Sequence[Hashable],
        *,
        ids: Sequence[str] | None = None,
        groups: Sequence[Hashable | None] | None = None,
    ) -> Head:
        """Learn from support vectors (n, d)."""

    def predict(self, vectors: ArrayLike) -> NDArray[Any]:
        """Labels (n,)."""

    def decide(self, vectors: ArrayLike) -> list[Decision]:
        """Full answers."""


#: Name -> maker of a fresh head; the argument is the source domain's mean (d,) or None.
HEADS: dict[str, Callable[[ArrayLike | None], Head]] = {
    "prototypes": lambda center: PrototypeClassifier(center=center),
    "prototypes-euclidean": lambda center: PrototypeClassifier(metric="euclidean"),
    "nearest": lambda center: NeighborClassifier(k=1, center=center),
    "neighbors": lambda center: NeighborClassifier(k=5, center=center),
}
#: The head used where none is named.
DEFAULT_HEAD = "prototypes"


def make_head(name: str, *, center: ArrayLike | None = None) -> Head:
    """A fresh, unfitted head.

    Args:
        name: A key of `HEADS`.
        center: (d,) mean of the source domain, usually `encoder.source_mean`.

    Returns:
        The head.

    Raises:
        ValueError: For a name that is not there, with the nearest that is.
    """
    if name not in HEADS:
        close = difflib.get_close_matches(name, HEADS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"There is no head {name!r}; there are {', '.join(HEADS)}.{hint}")
    return HEADS[name](center)
