"""Where to draw the line: a threshold for a wanted sensitivity or false-alarm rate, from few patients.

The threshold is a conformal order statistic (Vovk, Gammerman and Shafer 2005): of n patients who have the class the
k-th lowest score is taken with k = floor((1 - sensitivity) (n + 1)), so that a new patient who has it lies at or above
with at least the wanted probability. The n-th share itself, which most software takes, misses it in small samples.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .calibration_rows import TooFewPatients, check_share, from_document, patient_numbers, shares, to_document
from .conformal import ROUNDING, patients_needed

#: Share of repetitions whose interval holds the true sensitivity or specificity.
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold, and how it did on the patients it was chosen or measured on.

    Attributes:
        threshold: An image at or above it is called.
        target: "sensitivity", "false alarm rate", or "given" for a threshold that was only measured.
        wanted: The target's value; None for "given".
        sensitivity: Share of the patients with the class that are called, each by the share of his images; None where
            there are none. On the patients the threshold was chosen on it is optimistic.
        sensitivity_interval: Clopper-Pearson interval of it, 95 %. It takes a patient's share for a yes or no, which
            varies more, so that it is too wide rather than too narrow where patients have several images.
        specificity: Share of the patients without the class that are not called, likewise.
        specificity_interval: Clopper-Pearson interval of it, 95 %.
        positive_patients: Patients with the class.
        negative_patients: Patients without it.
    """

    threshold: float
    target: str
    wanted: float | None
    sensitivity: float | None
    sensitivity_interval: tuple[float, float] | None
    specificity: float | None
    specificity_interval: tuple[float, float] | None
    positive_patients: int
    negative_patients: int

    def calls(self, scores: ArrayLike) -> NDArray[np.bool_]:
        """Which images are at or above the threshold, (m,); one whose score is NaN is not."""
        return np.asarray(np.asarray(scores, dtype=np.float64) >= self.threshold)

    def to_json(self) -> dict[str, Any]:
        """Return a document of plain JSON types that `from_json` turns back."""
        return to_document(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> OperatingPoint:
        """Rebuild from `to_json`'s document."""
        return from_document(cls, document)


def choose_operating_point(
    scores: ArrayLike,
    present: ArrayLike,
    groups: Sequence[Hashable | None] | None = None,
    *,
    sensitivity: float | None = None,
    false_alarm_rate: float | None = None,
) -> OperatingPoint:
    """Choose a threshold on a class's score or probability.

    A new patient with the class is called with probability at least `sensitivity`, or one without it with at most
    `false_alarm_rate`, averaged over draws of the calibration patients. The one draw at hand may lie to either side:
    the intervals say how far. The threshold belongs to the head that gave the scores; with scores held out of the
    support, which come from heads of fewer patients, this holds only nearly.

    Args:
        scores: (n,) of calibration images, larger is likelier; images of NaN are left out.
        present: (n,) 1 for images that show the class, 0 for those that do not.
        groups: n patients; None counts images. A patient's images with and without the class count by themselves.
        sensitivity: Share of patients with the class to be called, in (0, 1).
        false_alarm_rate: Share of patients without it that may be called, in (0, 1). Give one of the two.

    Returns:
        The highest threshold that keeps the sensitivity, or the lowest that keeps the false-alarm rate.

    Raises:
        TooFewPatients: With fewer patients every image, or none, would have to be called.
        ValueError: Lists that do not fit together; none or both targets.

    Example:
        >>> point = choose_operating_point(range(12), [0] * 3 + [1] * 9, sensitivity=0.8)
        >>> point.threshold, point.specificity, [round(end, 3) for end in point.sensitivity_interval or ()]
        (4.0, 1.0, [0.518, 0.997])
    """
    if (sensitivity is None) == (false_alarm_rate is None):
        raise ValueError("Give either sensitivity or false_alarm_rate.")
    values, positive, patients = _checked(scores, present, groups)
    own = positive if sensitivity is not None else ~positive
    missed = 1 - check_share("sensitivity", sensitivity) if sensitivity is not None else 0.0
    rate = missed if false_alarm_rate is None else check_share("false_alarm_rate", false_alarm_rate)
    wanted = sensitivity if false_alarm_rate is None else false_alarm_rate
    target = "sensitivity" if false_alarm_rate is None else "false alarm rate"
    count, needed = int(np.unique(patients[own]).size), patients_needed(1 - rate)
    if count < needed:
        which = "with" if sensitivity is not None else "without"
        raise TooFewPatients(
            f"A {target} of {wanted:g}, counted over patients {which} the class,", needed=needed, found=count
        )
    # Towards the wrong side: low scores of those who have the class, high scores of those who have not.
    wrongness = -values[own] if sensitivity is not None else values[own]
    weights = shares(patients[own].tolist())
    order = np.lexsort((weights, -wrongness))
    wrongness, weights = wrongness[order], weights[order]  # worst first
    worse = np.cumsum(weights)[np.searchsorted(-wrongness, -wrongness, side="right") - 1]  # as bad or worse
    edge = float(wrongness[(1 + worse) / (count + 1) > rate + ROUNDING][0])
    threshold = -edge if sensitivity is not None else float(np.nextafter(edge, np.inf))
    return _measured(threshold, target, wanted, values, positive, patients)


def measure_operating_point(
    threshold: float, scores: ArrayLike, present: ArrayLike, groups: Sequence[Hashable | None] | None = None
) -> OperatingPoint:
    """How a threshold does on other patients.

    Args:
        threshold: An image at or above it is called.
        scores: (n,), larger is likelier; images of NaN are left out.
        present: (n,) 1 for images that show the class, 0 for those that do not.
        groups: n patients; None counts images.

    Returns:
        The point; its target is "given".

    Raises:
        ValueError: Lists that do not fit together.
    """
    return _measured(float(threshold), "given", None, *_checked(scores, present, groups))


def clopper_pearson(successes: float, patients: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Interval of a share (Clopper and Pearson 1934); the successes of patients with several images may be fractions.

    Args:
        successes: Between 0 and `patients`.
        patients: At least 1.
        level: Share of repetitions whose interval holds the truth, at least.
    """
    from scipy.stats import beta

    if patients < 1 or not 0 <= successes <= patients:
        raise ValueError(f"Successes must lie between 0 and the number of patients; got {successes} of {patients}.")
    tail = (1 - check_share("level", level)) / 2
    low = 0.0 if successes == 0 else float(beta.ppf(tail, successes, patients - successes + 1))
    high = 1.0 if successes == patients else float(beta.ppf(1 - tail, successes + 1, patients - successes))
    return low, high


def _checked(
    scores: ArrayLike, present: ArrayLike, groups: Sequence[Hashable | None] | None
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.intp]]:
    """Scores, whether the class is there, and patients, of the images that have a score."""
    values, truth = np.asarray(scores, dtype=np.float64), np.asarray(present)
    if values.ndim != 1 or values.shape != truth.shape:
        raise ValueError(f"scores and present must be equally long lists; got {values.shape} and {truth.shape}.")
    if not np.isin(truth, (0, 1)).all():
        raise ValueError("present must hold 1 (the class is there) and 0 (it is not) only.")
    patients = patient_numbers(groups, len(values))
    kept = ~np.isnan(values)
    return values[kept], truth[kept].astype(np.bool_), patients[kept]


def _measured(
    threshold: float,
    target: str,
    wanted: float | None,
    values: NDArray[np.float64],
    positive: NDArray[np.bool_],
    patients: NDArray[np.intp],
) -> OperatingPoint:
    called = values >= threshold
    hits, hits_interval, with_it = _share(called[positive], patients[positive])
    spared, spared_interval, without_it = _share(~called[~positive], patients[~positive])
    return OperatingPoint(threshold, target, wanted, hits, hits_interval, spared, spared_interval, with_it, without_it)


def _share(
    right: NDArray[np.bool_], patients: NDArray[np.intp]
) -> tuple[float | None, tuple[float, float] | None, int]:
    """Mean over patients, its interval, and the number of patients."""
    _, own = np.unique(patients, return_inverse=True)
    count = int(own.max()) + 1 if own.size else 0
    if not count:
        return None, None, 0
    shares_right = np.sort(np.bincount(own, weights=right) / np.bincount(own))  # sorted: the sum has one rounding
    successes = min(float(shares_right.sum()), float(count))
    return successes / count, clopper_pearson(successes, count), count
