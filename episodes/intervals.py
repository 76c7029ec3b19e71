"""How sure a result is: bootstrap over patients (the headline) and the spread of episodes (the literature's)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import EpisodeError

DRAWS = 2_000
"""Bootstrap resamples."""

LEVEL = 0.95
"""Share of the resamples an interval holds."""

FEWEST_PATIENTS = 6
"""With fewer query patients in a class a percentile bootstrap is too narrow to be believed."""

_BLOCK = 4_000_000
"""Resampled patients held in memory at once."""


@dataclass(frozen=True, slots=True, eq=False)
class PatientBootstrap:
    """A class-balanced mean over queries, and how it moves when other patients had come.

    Attributes:
        estimate: Mean over classes of the class's mean outcome, all its queries pooled.
        low: Lower end of the percentile interval.
        high: Upper end.
        level: Share of resamples between the ends.
        samples: (draws,) the estimate in each resample.
        classes: (n_classes,) class codes that have queries, ascending; the next arrays are aligned with it.
        class_estimate: (n_classes,) mean outcome of each class.
        class_low: (n_classes,) lower end for each class.
        class_high: (n_classes,) upper end for each class.
        patients: (n_classes,) patients with a query in the class.
        queries: (n_classes,) queries of the class.
    """

    estimate: float
    low: float
    high: float
    level: float
    samples: NDArray[np.float64]
    classes: NDArray[np.intp]
    class_estimate: NDArray[np.float64]
    class_low: NDArray[np.float64]
    class_high: NDArray[np.float64]
    patients: NDArray[np.intp]
    queries: NDArray[np.intp]

    @property
    def unreliable(self) -> tuple[int, ...]:
        """Codes of the classes with fewer than 6 query patients."""
        return tuple(int(code) for code in self.classes[self.patients < FEWEST_PATIENTS])


@dataclass(frozen=True, slots=True, eq=False)
class PairedDifference:
    """How much better the first of two classifiers did on the same queries.

    Attributes:
        difference: Class-balanced accuracy of the first minus that of the second.
        low: Lower end of the patient-bootstrap interval of the difference.
        high: Upper end.
        level: Share of resamples between the ends.
        p_value: Two-sided bootstrap p-value: twice the smaller share of resamples on either side of zero, never below
            2 / (draws + 1).
        names: The two classifiers.
        patients: Distinct query patients (images where patients are unknown).
        unreliable: Whether a class has fewer than 6 query patients.
    """

    difference: float
    low: float
    high: float
    level: float
    p_value: float
    names: tuple[str, str] = ("first", "second")
    patients: int = 0
    unreliable: bool = False

    @property
    def significant(self) -> bool:
        """Whether the interval leaves zero out."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        """Return the comparison in one line."""
        caution = "; unreliable: few query patients" if self.unreliable else ""
        return (
            f"{self.names[0]} minus {self.names[1]}: {self.difference:+.3f} "
            f"[{self.low:+.3f}, {self.high:+.3f}] (patients), p = {self.p_value:.3f}{caution}"
        )


def patient_bootstrap(
    outcomes: ArrayLike,
    classes: ArrayLike,
    groups: ArrayLike,
    *,
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> PatientBootstrap:
    """Resample patients within each class with replacement; each outcome weighs as often as its patient was drawn.

    The statistic is class-balanced: within a class all outcomes are pooled, so a patient with many queries weighs
    more; over classes the plain mean is taken. A patient with queries in two classes is resampled in each by itself.

    Args:
        outcomes: (n,) outcome of each query: 1 right, 0 wrong (any number will do).
        classes: (n,) class code of each query.
        groups: (n,) patient code of each query.
        draws: Resamples.
        level: Share of resamples the interval holds.
        seed: Seed of the resampling.

    Returns:
        Estimate and percentile intervals, overall and per class.

    Raises:
        EpisodeError: There are no queries, or the arrays differ in length.
    """
    value = np.asarray(outcomes, dtype=np.float64)
    class_codes, group_codes = np.asarray(classes, dtype=np.intp), np.asarray(groups, dtype=np.intp)
    if not value.size or not value.shape == class_codes.shape == group_codes.shape:
        raise EpisodeError(
            f"outcomes, classes and groups must be equally long and not empty; "
            f"got {value.shape}, {class_codes.shape} and {group_codes.shape}."
        )
    # One cell per (class, patient): the sum of its outcomes and their number.
    pairs, cell = np.unique(np.stack([class_codes, group_codes]), axis=1, return_inverse=True)
    cell = cell.ravel()
    total = np.bincount(cell)
    summed: NDArray[np.float64] = np.bincount(cell, weights=value).astype(np.float64)
    present, first, patients = np.unique(pairs[0], return_index=True, return_counts=True)

    rng = np.random.default_rng(seed)
    samples = np.zeros(draws)
    estimate, low, high = np.empty(present.size), np.empty(present.size), np.empty(present.size)
    tails = [(1 - level) / 2, (1 + level) / 2]
    for code, (start, size) in enumerate(zip(first, patients, strict=True)):
        sums, counts = summed[start : start + size], total[start : start + size]
        resampled = _resampled_means(rng, sums, counts, draws)
        samples += resampled / present.size
        estimate[code] = sums.sum() / counts.sum()
        low[code], high[code] = np.quantile(resampled, tails)
    ends = np.quantile(samples, tails)
    return PatientBootstrap(
        estimate=float(estimate.mean()),
        low=float(ends[0]),
        high=float(ends[1]),
        level=level,
        samples=samples,
        classes=present,
        class_estimate=estimate,
        class_low=low,
        class_high=high,
        patients=patients,
        queries=np.bincount(class_codes)[present],
    )


def _resampled_means(
    rng: np.random.Generator, sums: NDArray[np.float64], counts: NDArray[np.intp], draws: int
) -> NDArray[np.float64]:
    """Return (draws,) pooled means of one class over patients drawn with replacement."""
    size = sums.size
    means = np.empty(draws)
    step = max(1, _BLOCK // size)
    for start in range(0, draws, step):
        drawn = rng.integers(0, size, (min(step, draws - start), size))  # (block, n_patients)
        means[start : start + step] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return means


def episode_interval(accuracies: Sequence[float] | NDArray[Any]) -> float | None:
    """Return 1.96 s / sqrt(E), the half-width the few-shot literature prints; None for a single episode.

    It tells how well E episodes average out over the images at hand, and nothing about other patients.
    """
    values = np.asarray(accuracies, dtype=np.float64)
    if values.size < 2:
        return None
    return float(1.96 * values.std(ddof=1) / np.sqrt(values.size))


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    classes: ArrayLike,
    groups: ArrayLike,
    *,
    names: tuple[str, str] = ("first", "second"),
    draws: int = DRAWS,
    level: float = LEVEL,
    seed: int = 0,
) -> PairedDifference:
    """Compare two classifiers on the same queries, the same resampled patients applied to both.

    Args:
        first: (n,) outcome of each query under the first classifier: 1 right, 0 wrong.
        second: (n,) outcome of the same queries under the second.
        classes: (n,) class code of each query.
        groups: (n,) patient code of each query.
        names: What to call the two.
        draws: Resamples.
        level: Share of resamples the interval holds.
        seed: Seed of the resampling.

    Returns:
        The difference with its interval and two-sided p-value.

    Raises:
        EpisodeError: There are no queries, or the arrays differ in length.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.shape != two.shape:
        raise EpisodeError(f"Paired outcomes must be equally long; got {one.shape} and {two.shape}.")
    # The mean of differences over a resample is the difference of its means, since both share every weight.
    found = patient_bootstrap(one - two, classes, groups, draws=draws, level=level, seed=seed)
    tiny = 1e-12  # sums of binary fractions that should cancel leave rounding behind
    below, above = int((found.samples <= tiny).sum()), int((found.samples >= -tiny).sum())
    return PairedDifference(
        difference=found.estimate,
        low=found.low,
        high=found.high,
        level=level,
        p_value=min(1.0, 2 * (min(below, above) + 1) / (draws + 1)),
        names=names,
        patients=int(np.unique(np.asarray(groups)).size),
        unreliable=bool(found.unreliable),
    )
