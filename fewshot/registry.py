"""The few-shot heads by name, for the command line and for tables that compare them."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from numpy.typing import ArrayLike

from embeddings import SimilarityHead

from .attention_head import MatchingClassifier
from .head import Head
from .neighbors import NeighborClassifier
from .prototypes import PrototypeClassifier
from .relation_head import RelationClassifier
from .siamese import SiameseClassifier


def _own(similarity: SimilarityHead | None, name: str) -> SimilarityHead | None:
    """A learnt comparison if it is the one a head decides by."""
    return similarity if similarity is not None and similarity.name == name else None


def _relation(similarity: SimilarityHead | None) -> Head:
    """The head of relation networks, which is nothing without what was learnt."""
    found = _own(similarity, "relation")
    if found is None:
        raise ValueError(
            "The head 'relation' needs the relation module that was trained with the encoder: train one with the "
            "method 'relation', or take another head."
        )
    return RelationClassifier(similarity=found)


#: Name -> maker of a fresh head from the source domain's mean (d,), or None, and the learnt comparison, or None.
HEADS: dict[str, Callable[[ArrayLike | None, SimilarityHead | None], Head]] = {
    "prototypes": lambda center, similarity: PrototypeClassifier(center=center),
    "prototypes-euclidean": lambda center, similarity: PrototypeClassifier(metric="euclidean"),
    "nearest": lambda center, similarity: NeighborClassifier(k=1, center=center),
    "neighbors": lambda center, similarity: NeighborClassifier(k=5, center=center),
    "siamese": lambda center, similarity: SiameseClassifier(similarity=_own(similarity, "weighted-l1"), center=center),
    "matching": lambda center, similarity: MatchingClassifier(similarity=_own(similarity, "attention"), center=center),
    "relation": lambda center, similarity: _relation(similarity),
}
#: Learnt comparison -> the head that decides by it.
HEAD_OF = {"weighted-l1": "siamese", "attention": "matching", "relation": "relation"}
#: Heads that are computed from vectors alone, whatever they come from.
PLAIN_HEADS = ("prototypes", "prototypes-euclidean", "nearest", "neighbors")
#: The head used where none is named.
DEFAULT_HEAD = "prototypes"


def heads_for(similarity: SimilarityHead | None) -> tuple[str, ...]:
    """The heads that differ for an encoder: the plain ones, and the one that was trained with it.

    Args:
        similarity: The comparison that was learnt with the encoder, its `similarity`, or None.

    Returns:
        Names of `HEADS`.
    """
    trained = HEAD_OF.get(similarity.name) if similarity is not None else None
    return PLAIN_HEADS if trained is None else (*PLAIN_HEADS, trained)


def make_head(name: str, *, center: ArrayLike | None = None, similarity: SimilarityHead | None = None) -> Head:
    """A fresh, unfitted head.

    Args:
        name: A key of `HEADS`.
        center: (d,) mean of the source domain, usually `encoder.source_mean`.
        similarity: The comparison that was learnt with the encoder, its `similarity`.

    Returns:
        The head.

    Raises:
        ValueError: For a name that is not there, with the nearest that is.
    """
    if name not in HEADS:
        close = difflib.get_close_matches(name, HEADS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"There is no head {name!r}; there are {', '.join(HEADS)}.{hint}")
    return HEADS[name](center, similarity)
