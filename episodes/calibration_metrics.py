"""Whether a probability of 0.8 is right in 8 of 10 patients: reliability, calibration error, Brier score, risk.

A patient counts once however many images there are of him. Expected calibration error after Naeini, Cooper and
Hauskrecht (AAAI 2015); risk-coverage curves after El-Yaniv and Wiener (JMLR 2010).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import EpisodeError

#: Bins of a reliability diagram.
BINS = 10
#: Smallest probability a logarithm is taken of.
FLOOR = 1e-12


@dataclass(frozen=True, slots=True)
class ReliabilityBin:
    """Answers of about one probability.

    Attributes:
        low: Smallest probability that belongs here: an edge (equal widths) or the smallest one found (equal masses).
        high: Largest, likewise.
        probability: Mean probability of the answers.
        right: Share of them that was right.
        patients: Patients they stand for: the sum of what each image counts.
    """

    low: float
    high: float
    probability: float
    right: float
    patients: float


@dataclass(frozen=True, slots=True)
class Reliability:
    """How far probabilities are from the shares that were right.

    Attributes:
        bins: From low to high probability; empty ones are left out.
        ece: Expected calibration error: mean over patients of the bins' |probability - right|.
        equal: "width" or "mass": what the bins have in common.
        patients: Patients in all.
    """

    bins: tuple[ReliabilityBin, ...]
    ece: float
    equal: str
    patients: int

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """Share of wrong answers when only the surest are given.

    Attributes:
        coverage: Rising shares of patients answered, the last 1.
        risk: Share wrong among them.
        aurc: Area under the curve: mean risk over the answers, each as the last one that is given.
    """

    coverage: tuple[float, ...]
    risk: tuple[float, ...]
    aurc: float


def reliability(
    probabilities: ArrayLike,
    right: ArrayLike,
    groups: Sequence[Hashable] | None = None,
    *,
    bins: int = BINS,
    equal: Literal["width", "mass"] = "width",
) -> Reliability:
    """Compare the probability of each answer with whether it was right.

    Args:
        probabilities: (n,) probability given to the answer, in [0, 1].
        right: (n,) 1 right, 0 wrong.
        groups: n patients; None counts images.
        bins: How many at most.
        equal: "width" cuts [0, 1] into intervals (a probability on an edge belongs above it), "mass" gives every bin
            as many patients, equal probabilities kept together.

    Returns:
        The bins and their expected calibration error.

    Raises:
        EpisodeError: No answers, lists of unequal length, a probability outside [0, 1], no bins.
    """
    value, outcome, weight, patients = _checked(probabilities, right, groups)
    if isinstance(bins, bool) or not isinstance(bins, (int, np.integer)) or bins < 1:
        raise EpisodeError(f"bins must be a whole number of at least 1; got {bins!r}.")
    if equal == "width":
        place = np.minimum((value * bins).astype(np.intp), bins - 1)
    elif equal == "mass":
        distinct, where = np.unique(value, return_inverse=True)
        mass = np.bincount(where, weights=weight, minlength=distinct.size)
        middle = (np.cumsum(mass) - mass / 2) / mass.sum()
        place = np.minimum((middle * bins).astype(np.intp), bins - 1)[where]
    else:
        raise EpisodeError(f"equal must be 'width' or 'mass'; got {equal!r}.")
    found, error = [], 0.0
    for b in np.unique(place).tolist():
        own = place == b
        share = weight[own] / weight[own].sum()
        mean, hits = float(share @ value[own]), float(share @ outcome[own])
        low, high = float(value[own].min()), float(value[own].max())
        if equal == "width":
            low, high = b / bins, (b + 1) / bins
        found.append(ReliabilityBin(low, high, mean, hits, float(weight[own].sum())))
        error += float(weight[own].sum() / weight.sum()) * abs(mean - hits)
    return Reliability(tuple(found), error, equal, patients)


def brier_score(probabilities: ArrayLike, targets: ArrayLike, groups: Sequence[Hashable] | None = None) -> float:
    """Mean over patients of the squared distance between probabilities and truth, summed over classes: 0 to 2.

    Args:
        probabilities: (n, n_classes).
        targets: n positions of the true classes.
        groups: n patients; None counts images.

    Raises:
        EpisodeError: No answers, or lists that do not fit together.
    """
    values, own, weight = _checked_rows(probabilities, targets, groups)
    truth = np.zeros_like(values)
    truth[np.arange(len(own)), own] = 1
    return float(weight @ ((values - truth) ** 2).sum(axis=1) / weight.sum())


def negative_log_likelihood(
    probabilities: ArrayLike, targets: ArrayLike, groups: Sequence[Hashable] | None = None
) -> float:
    """Mean over patients of -log of the probability given to the true class, in nats; 0 counts as 1e-12.

    Args:
        probabilities: (n, n_classes).
        targets: n positions of the true classes.
        groups: n patients; None counts images.

    Raises:
        EpisodeError: No answers, or lists that do not fit together.
    """
    values, own, weight = _checked_rows(probabilities, targets, groups)
    return float(weight @ -np.log(np.maximum(values[np.arange(len(own)), own], FLOOR)) / weight.sum())


def risk_coverage(confidence: ArrayLike, right: ArrayLike, groups: Sequence[Hashable] | None = None) -> RiskCoverage:
    """Risk of answering only where confidence is highest.

    Args:
        confidence: (n,) larger is surer; equally sure answers are given together.
        right: (n,) 1 right, 0 wrong.
        groups: n patients; None counts images.

    Returns:
        One point for each distinct confidence.

    Raises:
        EpisodeError: No answers, lists of unequal length, a confidence that is not a number.
    """
    sureness = np.asarray(confidence, dtype=np.float64)
    if np.isnan(sureness).any():
        raise EpisodeError("confidence must be numbers; NaN is among them.")
    _, outcome, weight, _ = _checked(np.zeros_like(sureness), right, groups)
    distinct, where = np.unique(-sureness, return_inverse=True)  # surest first
    mass = np.bincount(where, weights=weight, minlength=distinct.size)
    wrong = np.bincount(where, weights=weight * (1 - outcome), minlength=distinct.size)
    risk = np.cumsum(wrong) / np.cumsum(mass)
    coverage = np.cumsum(mass) / mass.sum()
    return RiskCoverage(tuple(coverage.tolist()), tuple(risk.tolist()), float(mass @ risk / mass.sum()))


def _weights(groups: Sequence[Hashable] | None, n: int) -> tuple[NDArray[np.float64], int]:
    """What each image counts, (n,), and the number of patients."""
    if groups is None:
        return np.ones(n), n
    if len(groups) != n:
        raise EpisodeError(f"There are {n:,} answers and {len(groups):,} patients in groups.")
    codes: dict[Hashable, int] = {}
    patient = np.array([codes.setdefault(group, len(codes)) for group in groups], dtype=np.intp)
    return 1 / np.bincount(patient)[patient], len(codes)


def _checked(
    probabilities: ArrayLike, right: ArrayLike, groups: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], int]:
    value, outcome = np.asarray(probabilities, dtype=np.float64), np.asarray(right, dtype=np.float64)
    if value.ndim != 1 or not value.size or value.shape != outcome.shape:
        raise EpisodeError(
            f"probabilities and right must be equally long lists and not empty; got {value.shape} and {outcome.shape}."
        )
    if not ((value >= 0) & (value <= 1)).all():
        raise EpisodeError("Probabilities must lie in [0, 1]; at least one does not.")
    if not np.isin(outcome, (0, 1)).all():
        raise EpisodeError("right must hold 1 (right) and 0 (wrong) only.")
    return value, outcome, *_weights(groups, value.size)


def _checked_rows(
    probabilities: ArrayLike, targets: ArrayLike, groups: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], NDArray[np.intp], NDArray[np.float64]]:
    values, own = np.asarray(probabilities, dtype=np.float64), np.asarray(targets)
    if values.ndim != 2 or not len(values) or own.shape != (len(values),):
        raise EpisodeError(
            f"probabilities must be rows (n, n_classes) with n targets; got {values.shape} and {own.shape}."
        )
    if not np.issubdtype(own.dtype, np.integer) or own.min() < 0 or own.max() >= values.shape[1]:
        raise EpisodeError(f"targets must be positions of classes, 0 to {values.shape[1] - 1}.")
    if not ((values >= 0) & (values <= 1)).all():
        raise EpisodeError("Probabilities must lie in [0, 1]; at least one does not.")
    return values, own.astype(np.intp), _weights(groups, len(values))[0]
