"""Support images that are probably mislabelled or do not belong: each is judged by what the set is without its patient.

Three things are looked at, each with the whole patient left out: how much nearer another class's mean is than that of
the image's own class, how much nearer another class's nearest image is, and how far its own class's mean is. The
first two find a wrong label (the margin of Schapire et al. 1998 and the edited nearest neighbour of Wilson 1972), the
third what is of no class at all. What is unusual is read off the set itself: robust z-scores (Iglewicz and Hoaglin
1993) whose scale is the spread above the median, since only that side is of interest.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from episodes import Neighbor

from .class_scores import image_weights
from .held_out import patient_codes
from .outlier_fits import MOST_COMPARED, Fits
from .support import Support, as_label, check_center, prepare, similarities

if TYPE_CHECKING:
    from embeddings import Snapshot

#: An image is suspected from this score on: some 5 % of the images of clean sets reach it (benchmarks/poisoned.py).
SUSPECT_AT = 2.2
#: The share of a clean set's images that reach `SUSPECT_AT`.
FALSE_ALARM_RATE = 0.05
#: With fewer patients that can be compared, nothing is known about what is usual in the set.
FEWEST_COMPARED = 10
#: Images of the other class that are named for an image.
NAMED = 3


@dataclass(frozen=True, slots=True)
class Outlier:
    """How well one support image fits its label.

    Attributes:
        id: The image.
        label: The class it is registered under.
        score: How unusual it is in this set, in spreads above the median; None where nothing can be said.
        p_value: Share of the compared images that are at least as unusual, itself included; None where score is.
        suspected: Whether the score reaches the report's threshold.
        nearest_class: The other class whose mean is nearest, or None where there is no other.
        own_similarity: Cosine with the mean of its own class without its patient, or None.
        other_similarity: Cosine with the mean of `nearest_class` without its patient, or None.
        evidence: The nearest images of `nearest_class`; in sets too large to compare image by image, of suspects only.
        reason: One sentence: why it is suspected, or is not, or why nothing can be said.
    """

    id: str
    label: Hashable
    score: float | None
    p_value: float | None
    suspected: bool
    nearest_class: Hashable | None
    own_similarity: float | None
    other_similarity: float | None
    evidence: tuple[Neighbor, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class OutlierReport:
    """The images of a set, by how well they fit their labels.

    Sets too large to compare image by image raise fewer alarms, since less is looked at.

    Attributes:
        images: One entry per image looked at, in id order.
        threshold: Scores from here on are suspected.
        false_alarm_rate: About what share of a clean set's images reach the module's own threshold, `SUSPECT_AT`; None
            with another threshold.
    """

    images: tuple[Outlier, ...]
    threshold: float
    false_alarm_rate: float | None

    @property
    def suspects(self) -> tuple[Outlier, ...]:
        """The suspected images, most unusual first."""
        found = [image for image in self.images if image.suspected]
        return tuple(sorted(found, key=lambda image: (-(image.score or 0.0), image.id)))


def outlier_scores(
    vectors: ArrayLike,
    labels: Sequence[Hashable],
    *,
    ids: Sequence[str] | None = None,
    groups: Sequence[Hashable | None] | None = None,
    center: ArrayLike | None = None,
    threshold: float = SUSPECT_AT,
    only: Collection[str] | None = None,
) -> OutlierReport:
    """Tell which support images are probably mislabelled or foreign; nothing is changed.

    The answer depends on the set alone, to the bit, not on the order in which it is given. A near-copy of an image of
    another class makes that image suspect too: which of the two has the wrong label is for a reader to say.

    Args:
        vectors: (n, d) support vectors.
        labels: n class labels.
        ids: n distinct image ids; positions where absent.
        groups: n patients, left out together; each counts once. None or an unknown one: the image by itself.
        center: (d,) mean of the source domain to subtract before cosines are taken, usually `encoder.source_mean`.
        threshold: Scores from here on are suspected.
        only: Ids to report on, for a cheaper answer about a large set; None for all.

    Returns:
        The report.

    Raises:
        ValueError: Empty support, NaN, lists of unequal length, repeated ids, a missing label, an unknown id in `only`.

    Example:
        >>> away = [[1.0, i / 9] for i in range(6)] + [[i / 9, 1.0] for i in range(6)]
        >>> report = outlier_scores(away + [[0.1, 1.0]], ["a"] * 6 + ["b"] * 6 + ["a"])
        >>> [(image.id, image.nearest_class) for image in report.suspects]
        [('12', 'b')]
    """
    support = Support(vectors, labels, ids=ids, groups=groups)
    rows = prepare(support.vectors, "cosine", check_center(center, support.vectors.shape[1]))
    wanted = _positions(support, only)
    n = len(support)
    usual = np.arange(n)[:: -(-n // MOST_COMPARED)]
    looked = np.union1d(usual, wanted)
    fits = Fits(support, rows, looked)
    compared = np.intersect1d(usual, looked[fits.known])
    patients = len(set(patient_codes(support)[compared].tolist()))
    enough = patients >= FEWEST_COMPARED
    scores = fits.scores(compared, image_weights(support)) if enough else np.full((len(looked), 3), np.nan)
    overall = scores.max(axis=1)
    place = {int(row): i for i, row in enumerate(looked.tolist())}
    yardstick = np.sort(overall[[place[row] for row in compared.tolist()]])
    images = []
    for row in wanted.tolist():
        i = place[row]
        if not fits.known[i] or not enough:
            images.append(_unknown(support, row, patients, alone=not fits.known[i]))
            continue
        score = float(overall[i])
        extra = 0 if row in compared else 1  # an image that does not belong to the yardstick counts beside it
        above = len(yardstick) - int(np.searchsorted(yardstick, score, side="left")) + extra
        suspected = score >= threshold
        other = int(fits.other_class[i])
        named = suspected or n <= MOST_COMPARED
        images.append(
            Outlier(
                id=support.ids[row],
                label=as_label(support.labels[row]),
                score=score,
                p_value=above / (len(yardstick) + extra),
                suspected=suspected,
                nearest_class=None if other < 0 else support.classes[other],
                own_similarity=float(fits.own[i]),
                other_similarity=None if other < 0 else float(fits.other[i]),
                evidence=_nearest(support, rows, row, other) if named and other >= 0 else (),
                reason=fits.reason(i, scores[i]) if suspected else "It fits its class as the set's other images do.",
            )
        )
    return OutlierReport(tuple(images), threshold, FALSE_ALARM_RATE if threshold == SUSPECT_AT else None)


def snapshot_outliers(
    snapshot: Snapshot, *, center: ArrayLike | None = None, only: Collection[str] | None = None
) -> OutlierReport:
    """`outlier_scores` of a comparison set's support; an empty set has no outliers.

    Args:
        snapshot: The support, its metadata holding "label" and "patient".
        center: As for `outlier_scores`.
        only: As for `outlier_scores`.
    """
    if not len(snapshot):
        return OutlierReport((), SUSPECT_AT, FALSE_ALARM_RATE)
    return outlier_scores(
        snapshot.vectors,
        [str(row["label"]) for row in snapshot.metadata],
        ids=snapshot.ids,
        groups=[row.get("patient") for row in snapshot.metadata],
        center=center,
        only=only,
    )


def _positions(support: Support, only: Collection[str] | None) -> NDArray[np.intp]:
    """Rows to report on, ascending."""
    if only is None:
        return np.arange(len(support))
    positions = {name: i for i, name in enumerate(support.ids)}
    unknown = sorted(set(only) - set(positions))
    if unknown:
        raise ValueError(f"only must name images of the set; {unknown[0]!r} is none of its {len(positions)}.")
    return np.array(sorted(positions[name] for name in set(only)), dtype=np.intp)


def _nearest(support: Support, rows: NDArray[np.float64], row: int, target: int) -> tuple[Neighbor, ...]:
    """The nearest images of a class, other than those of the row's own patient."""
    members = np.array(
        [i for i in np.flatnonzero(support.targets == target) if support.groups[i] != support.groups[row]]
    )
    close = similarities(rows[row : row + 1], rows[members], "cosine")[0]
    return tuple(
        Neighbor(support.ids[members[i]], float(close[i]), support.classes[target])
        for i in np.argsort(-close, kind="stable")[:NAMED].tolist()
    )


def _unknown(support: Support, row: int, patients: int, *, alone: bool) -> Outlier:
    reason = (
        f"Nothing can be said: class {support.labels[row]!r} has no other patient to compare it with."
        if alone
        else f"Nothing can be said: {patients} patients can be compared, and {FEWEST_COMPARED} are needed to know what "
        f"is usual."
    )
    return Outlier(support.ids[row], as_label(support.labels[row]), None, None, False, None, None, None, (), reason)
