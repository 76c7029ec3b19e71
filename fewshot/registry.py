"""The few-shot heads by name, for the command line and for tables that compare them."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from embeddings import SimilarityHead

from .attention_head import MatchingClassifier
from .auto import AutoClassifier
from .distribution_calibration import DistributionCalibratedClassifier
from .gaussian import GaussianClassifier
from .head import Head
from .linear import LinearProbe, RidgeClassifier
from .neighbors import NeighborClassifier
from .priors import Words
from .prototypes import PrototypeClassifier
from .relation_head import RelationClassifier
from .siamese import SiameseClassifier
from .soft_kmeans import SoftKMeansClassifier
from .svm import SupportVectorClassifier

if TYPE_CHECKING:
    from embeddings import SourceStatistics


#: The head of sets whose classes are described by words.
WORDS_HEAD = "words"


@dataclass(frozen=True, eq=False)
class Brought:
    """What an encoder brings along for the heads.

    Attributes:
        center: (d,) the source domain's mean, or None.
        similarity: The comparison that was learnt with it, or None.
        source: Means and variances of the source's classes, or None.
        words: What words say about the classes, which comes with the set rather than the encoder, or None.
    """

    center: ArrayLike | None = None
    similarity: SimilarityHead | None = None
    source: SourceStatistics | None = None
    words: Words | None = None

    def learnt(self, name: str) -> SimilarityHead | None:
        """The learnt comparison if it is of this name."""
        return self.similarity if self.similarity is not None and self.similarity.name == name else None


def _relation(brought: Brought) -> Head:
    """The head of relation networks, which is nothing without what was learnt."""
    found = brought.learnt("relation")
    if found is None:
        raise ValueError(
            "The head 'relation' needs the relation module that was trained with the encoder: train one with the "
            "method 'relation', or take another head."
        )
    return RelationClassifier(similarity=found)


def _distribution_calibrated(brought: Brought) -> Head:
    """The head that borrows from the source's classes, which is nothing without them."""
    if brought.source is None:
        raise ValueError(
            "The head 'distribution-calibrated' needs the statistics of the source's classes, which an encoder trained "
            "on labelled classes of 6 patients or more carries: take such an encoder, or another head."
        )
    return DistributionCalibratedClassifier(brought.source, center=brought.center)


def _words(brought: Brought) -> Head:
    """The head of words and shots, which is nothing without words."""
    if brought.words is None:
        raise ValueError(
            "The head 'words' needs classes described by words: `radshot zeroshot describe` adds them to a set, or "
            "take another head."
        )
    return brought.words.head()


#: Name -> maker of a fresh head from what the encoder brings.
HEADS: dict[str, Callable[[Brought], Head]] = {
    "auto": lambda b: AutoClassifier(center=b.center),
    "prototypes": lambda b: PrototypeClassifier(center=b.center),
    "prototypes-euclidean": lambda b: PrototypeClassifier(metric="euclidean"),
    "nearest": lambda b: NeighborClassifier(k=1, center=b.center),
    "neighbors": lambda b: NeighborClassifier(k=5, center=b.center),
    "linear": lambda b: LinearProbe(center=b.center),
    "ridge": lambda b: RidgeClassifier(center=b.center),
    "ridge-lengths": lambda b: RidgeClassifier(normalize=False, center=b.center),
    "svm": lambda b: SupportVectorClassifier(center=b.center),
    "gaussian": lambda b: GaussianClassifier(center=b.center),
    "siamese": lambda b: SiameseClassifier(similarity=b.learnt("weighted-l1"), center=b.center),
    "matching": lambda b: MatchingClassifier(similarity=b.learnt("attention"), center=b.center),
    "relation": _relation,
    "distribution-calibrated": _distribution_calibrated,
    "soft-k-means": lambda b: SoftKMeansClassifier(center=b.center),
    WORDS_HEAD: _words,
}
#: Learnt comparison -> the head that decides by it.
HEAD_OF = {"weighted-l1": "siamese", "attention": "matching", "relation": "relation"}
#: Heads that are computed from vectors alone, whatever they come from.
PLAIN_HEADS = (
    "prototypes",
    "prototypes-euclidean",
    "nearest",
    "neighbors",
    "linear",
    "ridge",
    "ridge-lengths",
    "svm",
    "gaussian",
    "auto",
)
#: Heads that need what not every encoder brings.
NEEDY_HEADS = ("relation", "distribution-calibrated")
#: Heads that need what a set may have.
SET_HEADS = (WORDS_HEAD,)
#: Heads whose answer depends on the other queries; no comparison with the others is fair, and none may be deployed.
TRANSDUCTIVE_HEADS = ("soft-k-means",)
#: Heads that are measured side by side where none is named.
COMPARED_HEADS = ("prototypes", "nearest", "neighbors", "linear", "ridge", "auto")
#: The head used where none is named.
DEFAULT_HEAD = "auto"


def heads_for(similarity: SimilarityHead | None) -> tuple[str, ...]:
    """The heads to measure side by side for an encoder: `COMPARED_HEADS`, and the one that was trained with it.

    Args:
        similarity: The comparison that was learnt with the encoder, its `similarity`, or None.

    Returns:
        Names of `HEADS`.
    """
    trained = HEAD_OF.get(similarity.name) if similarity is not None else None
    return COMPARED_HEADS if trained is None else (*COMPARED_HEADS, trained)


def make_head(
    name: str,
    *,
    center: ArrayLike | None = None,
    similarity: SimilarityHead | None = None,
    source: SourceStatistics | None = None,
    words: Words | None = None,
) -> Head:
    """A fresh, unfitted head.

    Args:
        name: A key of `HEADS`.
        center: (d,) mean of the source domain, usually `encoder.source_mean`.
        similarity: The comparison that was learnt with the encoder, its `similarity`.
        source: Statistics of the source's classes, the encoder's `source_statistics`.
        words: What words say about the classes of the set.

    Returns:
        The head.

    Raises:
        ValueError: For a name that is not there, with the nearest that is; for a head that needs what is not given.
    """
    if name not in HEADS:
        close = difflib.get_close_matches(name, HEADS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"There is no head {name!r}; there are {', '.join(HEADS)}.{hint}")
    return HEADS[name](Brought(center, similarity, source, words))
