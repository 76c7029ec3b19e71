"""Sets of classes that hold the true one as often as promised: conformal prediction by patient (arXiv 2306.06342).

A query's p-value for a class says how many patients fit their own class no better than the query fits this one. With
several images of a patient his images share a weight of 1 (hierarchical conformal prediction, Lee, Barber and Willett
2023; Dunn, Wasserman and Ramdas 2022, arXiv 1809.07441), so that

    p = (1 + sum over patients of the share of their images that fit no better) / (patients + 1).

The set at coverage 0.9 holds the classes with p > 0.1. The promise is over patients: 9 of 10 new patients' sets hold
the true class, averaged over draws of the calibration patients, if those and the new patient are exchangeable. It needs
no model to be right. In the marginal version classes must be as frequent among the calibration patients as among the
new ones; the version per class (Mondrian) promises it for each class by itself, and needs the patients in each.

No library weighs patients (crepes 0.9.1 and MAPIE count images), so this is own code; where every patient has one
image it gives crepes' p-values without smoothing.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .calibration_rows import (
    TooFewPatients,
    check_share,
    checked_rows,
    checked_scores,
    from_document,
    shares,
    to_document,
)
from .nonconformity import nonconformities

#: P-values this close are equal: sums of thirds and sevenths are rounded.
ROUNDING = 1e-9


@dataclass(frozen=True, eq=False)
class PredictionSets:
    """The classes that cannot be ruled out, for each query; or how many patients it would take to say so.

    Attributes:
        members: bool (m, n_classes), or None where there are too few patients: every class would be in every set. A
            query nothing can be decided about keeps every class.
        p_values: float64 (m, n_classes); NaN for a query nothing can be decided about.
        coverage: Share asked for.
        promised: Share of patients whose set holds the true class; lower than `coverage` for the cross version.
        needed: Patients needed: in all, or of each class.
        found: Patients found: one number, or one of each class.
    """

    members: NDArray[np.bool_] | None
    p_values: NDArray[np.float64]
    coverage: float
    promised: float
    needed: int
    found: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class SplitConformal:
    """Conformal sets from calibration patients apart from the support.

    Attributes:
        nonconformity: One of nonconformity.NONCONFORMITIES.
        temperature: Of the softmax, for "probability".
        per_class: Whether each class is compared with its own patients only.
        n_classes: Columns of the scores.
        values: Nonconformity of each calibration image with its own class, rising.
        targets: Position of each image's class.
        weights: What each image counts.
        patients: Calibration patients: one number, or one of each class.
    """

    nonconformity: str
    temperature: float | None
    per_class: bool
    n_classes: int
    values: tuple[float, ...]
    targets: tuple[int, ...]
    weights: tuple[float, ...]
    patients: tuple[int, ...]

    def p_values(self, scores: ArrayLike) -> NDArray[np.float64]:
        """Share of patients that fit their class no better than each query fits each class, (m, n_classes).

        Args:
            scores: (m, n_classes) of the head the calibration patients were scored by.

        Returns:
            float64 (m, n_classes) in (0, 1]; NaN throughout where the scores are.
        """
        rows = checked_scores(scores, self.n_classes)
        found = nonconformities(rows, self.nonconformity, temperature=self.temperature)
        counts = summed_weights(found, self.values, self.targets, self.weights, self.per_class)
        return as_p_values(counts, found, self.patients)

    def sets(self, scores: ArrayLike, coverage: float) -> PredictionSets:
        """The classes with a p-value above 1 - coverage, for each query."""
        return prediction_sets(self.p_values(scores), check_share("coverage", coverage), coverage, self.patients)

    def to_json(self) -> dict[str, Any]:
        """Return a document of plain JSON types, without any patient's name, that `from_json` turns back."""
        return to_document(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> SplitConformal:
        """Rebuild from `to_json`'s document."""
        return from_document(cls, document)


def fit_split_conformal(
    scores: ArrayLike,
    targets: ArrayLike,
    groups: Sequence[Hashable | None] | None = None,
    *,
    per_class: bool = False,
    nonconformity: str = "margin",
    temperature: float | None = None,
) -> SplitConformal:
    """Keep how badly each calibration patient fits his own class.

    Args:
        scores: (n, n_classes) of calibration images, by the head queries will be scored by. No patient of theirs may be
            in its support. Rows of NaN are left out; an own class of -inf is the worst fit.
        targets: n positions of the true classes among the columns.
        groups: n patients; None counts images.
        per_class: Whether each class is compared with its own patients only.
        nonconformity: See `nonconformities`.
        temperature: For "probability" only.

    Returns:
        The predictor. With few patients it says of every set how many it would need.

    Raises:
        TooFewPatients: No patient at all.
        ValueError: Lists that do not fit together, an unknown nonconformity, a temperature missing or too many.

    Example:
        >>> nine = fit_split_conformal([[2.0, 1.0]] * 9, [0] * 9)
        >>> nine.sets([[2.0, 1.0], [1.0, 1.5]], coverage=0.9).members.tolist()
        [[True, False], [False, False]]
        >>> fit_split_conformal([[2.0, 1.0]] * 8, [0] * 8).sets([[2.0, 1.0]], coverage=0.9).needed
        9
    """
    rows, _ = checked_rows(scores, targets, groups)
    values, weights, patients = own_values(
        rows.scores, rows.targets, rows.patients, per_class, nonconformity, temperature
    )
    order = np.lexsort((weights, rows.targets, values))
    return SplitConformal(
        nonconformity=nonconformity,
        temperature=temperature,
        per_class=per_class,
        n_classes=rows.scores.shape[1],
        values=tuple(values[order].tolist()),
        targets=tuple(rows.targets[order].tolist()),
        weights=tuple(weights[order].tolist()),
        patients=patients,
    )


def patients_needed(coverage: float) -> int:
    """Fewest calibration patients whose sets can leave a class out at this coverage: 9 for 0.9, 19 for 0.95."""
    return max(1, math.ceil(1 / (1 - check_share("coverage", coverage)) - ROUNDING) - 1)


def own_values(
    scores: NDArray[np.float64],
    targets: NDArray[np.intp],
    patients: NDArray[np.intp],
    per_class: bool,
    kind: str,
    temperature: float | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], tuple[int, ...]]:
    """Nonconformity with the own class and weight of each image, both (n,), and the number of patients."""
    if not len(targets):
        raise TooFewPatients("A conformal set", needed=1, found=0)
    values = nonconformities(scores, kind, temperature=temperature)[np.arange(len(targets)), targets]
    if not per_class:
        return values, shares(patients.tolist()), (int(np.unique(patients).size),)
    weights = shares(list(zip(patients.tolist(), targets.tolist(), strict=True)))
    counts = tuple(int(np.unique(patients[targets == c]).size) for c in range(scores.shape[1]))
    return values, weights, counts


def summed_weights(
    queries: NDArray[np.float64],
    values: tuple[float, ...],
    targets: tuple[int, ...],
    weights: tuple[float, ...],
    per_class: bool,
) -> NDArray[np.float64]:
    """Summed weights of the images that fit no better than each query fits each class, (m, n_classes)."""
    all_values, all_targets, all_weights = np.asarray(values), np.asarray(targets), np.asarray(weights)
    counts = np.empty(queries.shape)
    for c in range(queries.shape[1]):
        own = all_targets == c if per_class else np.full(all_values.shape, True)
        tail = np.append(np.cumsum(all_weights[own][::-1])[::-1], 0.0)  # tail[i]: weight of the i-th and all worse fits
        counts[:, c] = tail[np.searchsorted(all_values[own], queries[:, c], side="left")]
    return counts


def as_p_values(
    counts: NDArray[np.float64], found: NDArray[np.float64], patients: tuple[int, ...]
) -> NDArray[np.float64]:
    """(1 + count) / (patients + 1), NaN where nothing was found."""
    p_values = (1 + counts) / (np.asarray(patients, dtype=np.float64) + 1)
    return np.where(np.isnan(found), np.nan, np.minimum(p_values, 1.0))


def prediction_sets(
    p_values: NDArray[np.float64], coverage: float, promised: float, patients: tuple[int, ...]
) -> PredictionSets:
    """The classes with a p-value above 1 - coverage, or None where there are too few patients."""
    needed = patients_needed(coverage)
    enough = min(patients) >= needed
    members = ~(p_values <= 1 - coverage + ROUNDING)  # NaN keeps every class
    return PredictionSets(members if enough else None, p_values, float(coverage), promised, needed, patients)
