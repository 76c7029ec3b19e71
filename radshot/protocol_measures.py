"""Multi-label figures of one test part, each with its interval over patients.

All patients are resampled with replacement, the same draw for every figure, so that a mean over findings feels that
findings of the same patients go up and down together.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .console import Refused

if TYPE_CHECKING:
    from zeroshot import Interval

#: Resamples of the patients.
DRAWS = 2000
#: Patients with a finding, or without, below which its interval is said to be unreliable.
FEWEST_PATIENTS = 6
#: Weights held at once: resamples times images.
WEIGHTS_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Measured:
    """Figures of one way of scoring.

    Attributes:
        auroc: Class -> AUROC, of those with images with and without it.
        average_precision: Class -> average precision, of the same.
        figures: Name -> mean AUROC ("auroc"), the same of seen and unseen classes and their harmonic mean ("seen",
            "unseen", "harmonic"; None where a side has no class), "map", and "p@k", "r@k", "f1@k" for each k.
        without_positives: Classes no image has.
        without_negatives: Classes every image has.
        few: Class -> patients with it or without it, whichever are fewer, where they are fewer than FEWEST_PATIENTS.
    """

    auroc: dict[str, Interval]
    average_precision: dict[str, Interval]
    figures: dict[str, Interval | None]
    without_positives: tuple[str, ...]
    without_negatives: tuple[str, ...]
    few: dict[str, int]


def measure(
    scores: ArrayLike,
    present: ArrayLike,
    classes: Sequence[str],
    patients: Sequence[Hashable],
    *,
    seen: Collection[str] = (),
    gamma: float = 0.0,
    ks: Sequence[int] = (),
    draws: int = DRAWS,
    seed: int = 0,
) -> Measured:
    """Measure scores of images whose every class is known.

    Args:
        scores: (n, c), larger is likelier.
        present: bool (n, c).
        classes: The c names.
        patients: n patients.
        seen: Classes learnt with; names none where the two sides are not told apart.
        gamma: Taken off seen classes before the best k are named. An AUROC is a class's own, and does not move.
        ks: How many classes are named per image; images without any class take no part in these.
        draws: Resamples.
        seed: Of the resampling.

    Raises:
        Refused: No class has images with and without it.
    """
    table, truth = np.asarray(scores, dtype=np.float64), np.asarray(present, dtype=np.bool_)
    names = [str(name) for name in classes]
    first: dict[Hashable, int] = {}
    codes = np.array([first.setdefault(patient, len(first)) for patient in patients], dtype=np.intp)
    count = truth.sum(axis=0)
    scored = [column for column in range(len(names)) if 0 < count[column] < len(truth)]
    if not scored:
        raise Refused("No finding has images both with and without it, so nothing can be measured.")
    is_seen = np.array([name in set(seen) for name in names], dtype=np.bool_)
    rankings = [_Ranking(table[:, column], truth[:, column]) for column in scored]
    best = _Best(table - gamma * is_seen, truth, ks)
    parts = []
    for weights in _weights(codes, draws, seed):  # the first row is the images as they are
        ranked = [ranking.of(weights) for ranking in rankings]
        parts.append(np.concatenate([np.stack([r[i] for r in ranked], axis=1) for i in (0, 1)] + best.of(weights), 1))
    samples = np.concatenate(parts)  # (1 + draws, 2 scored + 2 ks)
    area, precision = samples[:, : len(scored)], samples[:, len(scored) : 2 * len(scored)]
    named = samples[:, 2 * len(scored) :]
    figures: dict[str, Interval | None] = {"auroc": _interval(_mean(area)), "map": _interval(_mean(precision))}
    sides = [_mean(area[:, [i for i, c in enumerate(scored) if is_seen[c] == known]]) for known in (True, False)]
    if len(seen):
        figures |= {"seen": _interval(sides[0]), "unseen": _interval(sides[1])}
        figures["harmonic"] = _interval(_harmonic(*sides))
    for i, k in enumerate(ks):
        p, r = named[:, 2 * i], named[:, 2 * i + 1]
        figures |= {f"p@{k}": _interval(p), f"r@{k}": _interval(r), f"f1@{k}": _interval(_harmonic(p, r))}
    fewest = {names[c]: min(len(np.unique(codes[truth[:, c] == state])) for state in (True, False)) for c in scored}
    kept = [(names[c], _interval(area[:, i]), _interval(precision[:, i])) for i, c in enumerate(scored)]
    return Measured(
        auroc={name: found for name, found, _ in kept if found is not None},
        average_precision={name: found for name, _, found in kept if found is not None},
        figures=figures,
        without_positives=tuple(name for name, n in zip(names, count, strict=True) if n == 0),
        without_negatives=tuple(name for name, n in zip(names, count, strict=True) if n == len(truth)),
        few={name: fewer for name, fewer in fewest.items() if fewer < FEWEST_PATIENTS},
    )


class _Ranking:
    """One class's images from its best score downwards, ready to be weighed."""

    def __init__(self, scores: NDArray[np.float64], present: NDArray[np.bool_]) -> None:
        self.order = np.argsort(-scores, kind="stable")
        self.has = present[self.order]
        self.ends = np.append(np.flatnonzero(np.diff(scores[self.order])), len(scores) - 1)  # of equal scores

    def of(self, weights: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """AUROC and average precision under each row of weights (b, n), NaN where a side has no weight."""
        sorted_weights = weights[:, self.order]
        above = [np.cumsum(sorted_weights * side, axis=1)[:, self.ends] for side in (self.has, ~self.has)]
        here = [np.diff(part, axis=1, prepend=0.0) for part in above]
        total = [part[:, -1] for part in above]
        wins = (here[0] * (total[1][:, None] - above[1] + 0.5 * here[1])).sum(axis=1)
        share = np.divide(above[0], above[0] + above[1], out=np.zeros_like(above[0]), where=above[0] > 0)
        both = (total[0] > 0) & (total[1] > 0)
        nothing = np.full(len(weights), np.nan)
        area = np.divide(wins, total[0] * total[1], out=nothing.copy(), where=both)
        precision = np.divide((here[0] * share).sum(axis=1), total[0], out=nothing, where=both)
        return area, precision


class _Best:
    """The k best classes of each image, ready to be weighed."""

    def __init__(self, scores: NDArray[np.float64], present: NDArray[np.bool_], ks: Sequence[int]) -> None:
        totals = present.sum(axis=1)
        self.any = totals > 0
        order = np.argsort(-scores[self.any], axis=1, kind="stable")
        hits = np.take_along_axis(present[self.any], order, axis=1)
        self.shares = []
        for k in ks:
            top = hits[:, :k].sum(axis=1)
            self.shares += [top / k, top / totals[self.any]]

    def of(self, weights: NDArray[np.float64]) -> list[NDArray[np.float64]]:
        """Weighted means of precision and recall at each k, a column (b, 1) each."""
        mine = weights[:, self.any]
        total = mine.sum(axis=1)
        nothing = np.full(len(weights), np.nan)
        return [np.divide(mine @ share, total, out=nothing.copy(), where=total > 0)[:, None] for share in self.shares]


def _weights(codes: NDArray[np.intp], draws: int, seed: int) -> Iterator[NDArray[np.float64]]:
    """Yield blocks (b, n) of how often each image counts: once, then as often as its patient was drawn."""
    yield np.ones((1, len(codes)))
    patients = int(codes.max()) + 1
    rng = np.random.default_rng(seed)
    step = max(1, WEIGHTS_AT_ONCE // len(codes))
    for start in range(0, draws, step):
        block = min(step, draws - start)
        drawn = rng.integers(0, patients, (block, patients)) + np.arange(block)[:, None] * patients
        times = np.bincount(drawn.ravel(), minlength=block * patients).reshape(block, patients)
        yield times.astype(np.float64)[:, codes]


def _mean(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the classes that each resample has figures of, NaN where it has none."""
    defined = np.isfinite(samples)
    count = defined.sum(axis=1)
    sums = np.where(defined, samples, 0.0).sum(axis=1)
    return np.asarray(np.divide(sums, count, out=np.full(len(samples), np.nan), where=count > 0))


def _harmonic(one: NDArray[np.float64], two: NDArray[np.float64]) -> NDArray[np.float64]:
    """Harmonic mean, 0 where both are 0, NaN where either is."""
    total = one + two
    return np.asarray(np.where(total == 0, 0.0, 2 * one * two / np.where(total == 0, 1.0, total)))


def _interval(samples: NDArray[np.float64]) -> Interval | None:
    """The first of the samples, and the ends between which 95 % of the others lie; None where there is no first."""
    from zeroshot import Interval

    if not np.isfinite(samples[0]):
        return None
    others = samples[1:][np.isfinite(samples[1:])]
    low, high = np.quantile(others if len(others) else samples[:1], [0.025, 0.975])
    return Interval(float(samples[0]), float(low), float(high))
