"""Conformal sets from the support alone: jackknife+ and CV+ by patient (arXiv 1905.02928, 2006.02544, 2306.06342).

Where no patient can be spared for calibration, every support patient is scored by the head that never saw him. A query
is then scored by every one of those heads, and is compared with each patient under the head that never saw that one.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .calibration_rows import check_share, checked_rows, checked_scores, from_document, to_document
from .conformal import PredictionSets, as_p_values, own_values, prediction_sets, summed_weights
from .held_out import Fold
from .nonconformity import nonconformities


@dataclass(frozen=True, slots=True)
class CrossConformal:
    """Conformal sets from the support alone: every patient is scored by a head that never saw him (CV+).

    Jackknife+ and CV+ after Barber et al. 2021 (arXiv 1905.02928), for classes after Romano, Sesia and Candes 2020
    (arXiv 2006.02544), for patients with several images after Lee, Barber and Willett 2023. The price is the promise: a
    set at coverage 1 - a holds the true class for at least 1 - 2a of the patients, in practice mostly near 1 - a.
    Where K folds leave out several of n patients it is lower by min(2 (1 - 1/K) / (n/K + 1), (1 - K/n) / (K + 1)).

    Attributes:
        nonconformity, temperature, per_class, n_classes, targets, weights, patients: As in `SplitConformal`.
        values: Nonconformity of each support image with its own class, rising within a fold.
        folds: The fold of each image, rising.
        n_folds: Folds in all.
        folds_used: Folds that hold the patients compared with: one number, or one of each class.
        all_patients: Support patients of all classes together.
    """

    nonconformity: str
    temperature: float | None
    per_class: bool
    n_classes: int
    values: tuple[float, ...]
    targets: tuple[int, ...]
    weights: tuple[float, ...]
    patients: tuple[int, ...]
    folds: tuple[int, ...]
    n_folds: int
    folds_used: tuple[int, ...]
    all_patients: int

    def p_values(self, fold_scores: ArrayLike) -> NDArray[np.float64]:
        """Share of patients that fit their class no better than each query fits each class, (m, n_classes).

        Args:
            fold_scores: (n_folds, m, n_classes), each fold's head's scores of the queries; -inf for a class a head does
                not know.

        Returns:
            float64 (m, n_classes); NaN throughout where a fold's scores are.

        Raises:
            ValueError: Another number of folds or classes.
        """
        cube = np.asarray(fold_scores, dtype=np.float64)
        if cube.ndim != 3 or len(cube) != self.n_folds:
            raise ValueError(
                f"Scores of the {self.n_folds} folds' heads must have shape ({self.n_folds}, m, {self.n_classes}); "
                f"got {cube.shape}."
            )
        fold = np.asarray(self.folds)
        total = np.zeros(cube.shape[1:])
        found = np.zeros(cube.shape[1:])
        for number in range(self.n_folds):
            rows = checked_scores(cube[number], self.n_classes)
            found = np.where(np.isnan(rows), np.nan, found)
            own = slice(*np.searchsorted(fold, [number, number + 1]).tolist())
            values = nonconformities(rows, self.nonconformity, temperature=self.temperature)
            total += summed_weights(values, self.values[own], self.targets[own], self.weights[own], self.per_class)
        return as_p_values(total, found, self.patients)

    def promised(self, coverage: float) -> float:
        """Share of patients whose set is promised to hold the true class, at least 0; for each class if `per_class`.

        Exact where every patient is left out alone; where folds hold several, the theorem wants them equally large, and
        the worst of its values for all patients and for each class is taken.
        """
        alpha = 1 - check_share("coverage", coverage)
        lost = _fold_loss(self.all_patients, self.n_folds)
        for patients, folds in zip(self.patients, self.folds_used, strict=True):
            lost = max(lost, _fold_loss(patients, folds))
        return max(0.0, round(1 - 2 * alpha - lost, 12))

    def sets(self, fold_scores: ArrayLike, coverage: float) -> PredictionSets:
        """The classes with a p-value above 1 - coverage, for each query."""
        return prediction_sets(self.p_values(fold_scores), coverage, self.promised(coverage), self.patients)

    def to_json(self) -> dict[str, Any]:
        """Return a document of plain JSON types, without any patient's name, that `from_json` turns back."""
        return to_document(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> CrossConformal:
        """Rebuild from `to_json`'s document."""
        return from_document(cls, document)


def fit_cross_conformal(
    scores: ArrayLike,
    targets: ArrayLike,
    groups: Sequence[Hashable | None] | None,
    folds: ArrayLike,
    *,
    n_folds: int,
    per_class: bool = False,
    nonconformity: str = "margin",
    temperature: float | None = None,
) -> CrossConformal:
    """Keep how badly each support patient fits his own class under the head that never saw him.

    Args:
        scores: (n, n_classes) held-out scores of the support images; see `held_out_scores`.
        targets: n positions of the true classes among the columns.
        groups: n patients; None counts images.
        folds: n numbers, 0 to n_folds - 1, of the fold whose head gave the row; see `fold_numbers`. Rows of NaN may
            have any.
        n_folds: Folds in all.
        per_class: Whether each class is compared with its own patients only.
        nonconformity: See `nonconformities`.
        temperature: For "probability" only; it must not have been fitted to these scores.

    Returns:
        The predictor.

    Raises:
        TooFewPatients: No patient at all.
        ValueError: As `fit_split_conformal`; a fold that does not exist; a patient in two folds.
    """
    rows, kept = checked_rows(scores, targets, groups)
    numbers = np.asarray(folds)
    if numbers.ndim != 1 or len(numbers) != len(np.asarray(targets)):
        raise ValueError(f"{len(np.asarray(targets))} rows of scores need {len(np.asarray(targets))} fold numbers.")
    fold = numbers[kept].astype(np.intp)
    if fold.size and (fold.min() < 0 or fold.max() >= n_folds):
        raise ValueError(f"Fold numbers must be 0 to {n_folds - 1}; got {int(fold.min())} to {int(fold.max())}.")
    pairs = np.unique(np.stack([rows.patients, fold]), axis=1)
    if np.unique(pairs[0]).size < pairs.shape[1]:
        raise ValueError("Every patient must be in one fold; one is in two, so a head has seen who it is asked about.")
    values, weights, patients = own_values(
        rows.scores, rows.targets, rows.patients, per_class, nonconformity, temperature
    )
    order = np.lexsort((weights, rows.targets, values, fold))
    n_classes = rows.scores.shape[1]
    members = [rows.targets == c for c in range(n_classes)] if per_class else [np.full(len(fold), True)]
    return CrossConformal(
        nonconformity=nonconformity,
        temperature=temperature,
        per_class=per_class,
        n_classes=n_classes,
        values=tuple(values[order].tolist()),
        targets=tuple(rows.targets[order].tolist()),
        weights=tuple(weights[order].tolist()),
        patients=patients,
        folds=tuple(fold[order].tolist()),
        n_folds=n_folds,
        folds_used=tuple(int(np.unique(fold[own]).size) for own in members),
        all_patients=int(np.unique(rows.patients).size),
    )


def fold_numbers(folds: Sequence[Fold], n: int) -> NDArray[np.intp]:
    """The fold that leaves out each of n support rows, (n,); -1 for a row that none does, whose scores are NaN."""
    numbers = np.full(n, -1, dtype=np.intp)
    for number, fold in enumerate(folds):
        numbers[fold.rows] = number
    return numbers


def fold_scores(folds: Sequence[Fold], vectors: ArrayLike, n_classes: int) -> NDArray[np.float64]:
    """Every fold's head's scores of the queries, (n_folds, m, n_classes), in the support's order of classes."""
    return np.stack([fold.scores(vectors, n_classes) for fold in folds])


def _fold_loss(patients: int, folds: int) -> float:
    """What CV+ promises less than jackknife+, for folds of equal size (Barber et al. 2021, theorem 4)."""
    if patients <= folds or folds == 0:
        return 0.0
    return min(2 * (1 - 1 / folds) / (patients / folds + 1), (1 - folds / patients) / (folds + 1))
