"""AUROC over pairs of queries of the same episode, and how it moves when other patients had come.

The AUROC is the share of pairs (an image with the finding, one without) that a score puts in the right order (Hanley,
McNeil 1982, doi 10.1148/radiology.143.1.7063747). Scores of different episodes come from different supports and are
never compared. Summed by the two patients of each pair, the pairs are a table that any resample of patients weighs:
a patient drawn twice counts twice in each of its pairs.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .intervals import DRAWS

DENSE_CELLS = 4_000_000
"""Pairs of patients up to which a table is kept whole; a larger one keeps only those that met."""

PAIRS_AT_ONCE = 2_000_000
"""Pairs of queries gathered before they are summed."""

WEIGHTS_AT_ONCE = 4_000_000
"""Resampled patients taken through a table at once."""


@dataclass(frozen=True, slots=True, eq=False)
class MultiLabelOutcomes:
    """Every score of every query whose label is known; the long arrays are aligned, (n_scores,).

    Attributes:
        labels: What the label codes stand for.
        episode: Episode of the query, ascending.
        row: The query's row in the caller's lists.
        label: Code of the label that was scored.
        truth: Whether the query has it.
        score: Larger means likelier; NaN where the classifier gave no answer.
        patient: Code of the query's patient.
        shots: (n_labels,) support patients who had the label, mean over its episodes; 0 where it was never drawn.
        unknown: (n_labels,) queries that say nothing about the label; these are in no figure.
    """

    labels: tuple[Hashable, ...]
    episode: NDArray[np.intp]
    row: NDArray[np.intp]
    label: NDArray[np.intp]
    truth: NDArray[np.bool_]
    score: NDArray[np.float64]
    patient: NDArray[np.intp]
    shots: NDArray[np.float64]
    unknown: NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class PairTable:
    """One label's pairs of queries, by patient.

    Attributes:
        positive: (p,) patients with a positive query.
        negative: (m,) patients with a negative query.
        wins: (p, m) pairs in the right order, ties half; an array, or scipy's where it would be mostly empty.
        pairs: (p, m) pairs.
        episodes: (e,) episodes the label took part in.
        auroc: (e,) AUROC of each.
        average_precision: (e,) average precision of each.
    """

    positive: NDArray[np.intp]
    negative: NDArray[np.intp]
    wins: Any
    pairs: Any
    episodes: NDArray[np.intp]
    auroc: NDArray[np.float64]
    average_precision: NDArray[np.float64]

    @property
    def estimate(self) -> float:
        """Share of all pairs in the right order."""
        return float(self.wins.sum() / self.pairs.sum())


def pair_table(outcomes: MultiLabelOutcomes, label: int) -> PairTable | None:
    """Compare every positive query of an episode with every negative one.

    A query without an answer loses all its comparisons, as an abstention counts as wrong elsewhere.

    Args:
        outcomes: Scores of all labels.
        label: Code of one.

    Returns:
        The table, or None for a label that has no pair in any episode.
    """
    of_label = np.flatnonzero(outcomes.label == label)
    if not of_label.size:
        return None
    truth, score = outcomes.truth[of_label], outcomes.score[of_label].copy()
    unanswered = np.isnan(score)
    score[unanswered] = np.where(truth[unanswered], -np.inf, np.inf)
    patients, patient = np.unique(outcomes.patient[of_label], return_inverse=True)
    is_positive, is_negative = np.zeros(patients.size, np.bool_), np.zeros(patients.size, np.bool_)
    is_positive[patient[truth]], is_negative[patient[~truth]] = True, True
    positive, negative = np.flatnonzero(is_positive), np.flatnonzero(is_negative)
    # Position of a patient among the rows where it is positive, and among the columns where it is negative.
    line, column = np.cumsum(is_positive) - 1, np.cumsum(is_negative) - 1
    table = _Sums(positive.size, negative.size)
    episodes, starts = np.unique(outcomes.episode[of_label], return_index=True)
    taken, auroc, precision = [], [], []
    for episode, start, stop in zip(episodes.tolist(), starts, [*starts[1:], of_label.size], strict=True):
        part = slice(start, stop)
        has = truth[part]
        ours, theirs = score[part][has], score[part][~has]
        if not ours.size or not theirs.size:
            continue
        wins = (ours[:, None] > theirs) + 0.5 * (ours[:, None] == theirs)  # (positives, negatives)
        cells = line[patient[part][has]][:, None] * negative.size + column[patient[part][~has]]
        table.add(cells.ravel(), wins.ravel())
        taken.append(episode)
        auroc.append(float(wins.mean()))
        precision.append(average_precision(has, score[part]))
    if not taken:
        return None
    return PairTable(
        positive=patients[positive],
        negative=patients[negative],
        wins=table.wins,
        pairs=table.pairs,
        episodes=np.array(taken, dtype=np.intp),
        auroc=np.array(auroc),
        average_precision=np.array(precision),
    )


def resampled(tables: list[PairTable], *, draws: int = DRAWS, seed: int = 0) -> NDArray[np.float64]:
    """Resample all patients with replacement, the same draw for every label, and take each label's AUROC again.

    Patients are not drawn within a class as elsewhere, for they are in several; and findings of the same patients go
    up and down together, which a mean over labels has to feel.

    Args:
        tables: One for each label.
        draws: Resamples.
        seed: Seed of the resampling.

    Returns:
        (draws, labels) AUROC; NaN where a resample left a label without pairs, which only few patients can cause.
    """
    everyone = np.unique(np.concatenate([part for table in tables for part in (table.positive, table.negative)]))
    places = [(np.searchsorted(everyone, t.positive), np.searchsorted(everyone, t.negative)) for t in tables]
    rng = np.random.default_rng(seed)
    found = np.full((draws, len(tables)), np.nan)
    step = max(1, WEIGHTS_AT_ONCE // everyone.size)
    for start in range(0, draws, step):
        block = min(step, draws - start)
        drawn = rng.integers(0, everyone.size, (block, everyone.size))
        drawn += np.arange(block)[:, None] * everyone.size
        times = np.bincount(drawn.ravel(), minlength=block * everyone.size).reshape(block, -1).astype(np.float64)
        for at, (table, (positive, negative)) in enumerate(zip(tables, places, strict=True)):
            ours, theirs = times[:, positive], times[:, negative]  # (block, p), (block, m)
            pairs = ((ours @ table.pairs) * theirs).sum(axis=1)
            wins = ((ours @ table.wins) * theirs).sum(axis=1)
            np.divide(wins, pairs, out=found[start : start + block, at], where=pairs > 0)
    return found


def macro(samples: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the labels that each resample has pairs of; resamples without any are dropped.

    Args:
        samples: (draws, labels) as `resampled` gives them.

    Returns:
        (at most draws,).
    """
    defined = np.isfinite(samples)
    count = defined.sum(axis=1)
    sums = np.where(defined, samples, 0.0).sum(axis=1)
    return np.asarray(sums[count > 0] / count[count > 0])


def average_precision(present: NDArray[np.bool_], scores: NDArray[np.float64]) -> float:
    """Mean precision at each positive, images of the same score taken together; larger scores are likelier.

    Args:
        present: (n,) which images have the label, at least one.
        scores: (n,) no NaN.

    Returns:
        In (0, 1]; the share of positives is what chance gives.
    """
    order = np.argsort(-scores, kind="stable")
    hits, ordered = np.cumsum(present[order]), scores[order]
    last = np.append(np.flatnonzero(ordered[1:] != ordered[:-1]), scores.size - 1)  # of each run of equal scores
    precision = hits[last] / (last + 1)
    return float((np.diff(hits[last], prepend=0) * precision).sum() / hits[-1])


class _Sums:
    """Sums of pairs over the cells of a table, whole or sparse."""

    def __init__(self, rows: int, columns: int) -> None:
        self.shape = (rows, columns)
        self.dense = rows * columns <= DENSE_CELLS
        self._cells: list[NDArray[np.intp]] = []
        self._wins: list[NDArray[np.float64]] = []
        self._waiting = 0
        self._total: tuple[Any, Any] | None = None

    def add(self, cells: NDArray[np.intp], wins: NDArray[np.float64]) -> None:
        """Take note of one episode's pairs: (n,) cells, row by row, and who won."""
        self._cells.append(cells)
        self._wins.append(wins)
        self._waiting += cells.size
        if self._waiting > PAIRS_AT_ONCE:
            self._flush()

    @property
    def wins(self) -> Any:
        """Wins by cell."""
        return self._flush()[0]

    @property
    def pairs(self) -> Any:
        """Pairs by cell."""
        return self._flush()[1]

    def _flush(self) -> tuple[Any, Any]:
        """Sum what is waiting."""
        cells = np.concatenate([np.empty(0, np.intp), *self._cells])
        wins = np.concatenate([np.empty(0), *self._wins])
        self._cells, self._wins, self._waiting = [], [], 0
        if self._total is not None and not cells.size:
            return self._total
        if self.dense:
            size = self.shape[0] * self.shape[1]
            new = [np.bincount(cells, part, minlength=size).reshape(self.shape) for part in (wins, np.ones(cells.size))]
        else:
            from scipy.sparse import csr_array

            at = np.divmod(cells, self.shape[1])
            new = [csr_array((part, at), shape=self.shape) for part in (wins, np.ones(cells.size))]
        self._total = (new[0], new[1]) if self._total is None else (self._total[0] + new[0], self._total[1] + new[1])
        return self._total
