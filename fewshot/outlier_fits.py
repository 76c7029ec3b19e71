"""How support images fit their classes when their patient is left out: the evidence that outliers are judged by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .held_out import patient_codes
from .support import Support, similarities

#: Where in the sorted scores the spread above the median ends: one standard deviation of a normal distribution.
UPPER_QUANTILE = 0.8413
#: Cosines that differ by less are the same: the smallest spread.
SMALLEST_SPREAD = 1e-6
#: Rows whose own mean is taken apart at once, so that memory stays bounded.
CHUNK_ROWS = 2_048
#: Larger sets are not compared image by image, and this many images, evenly spaced, stand for all in what is usual.
MOST_COMPARED = 500


class Fits:
    """How each of the rows looked at fits its own class and the nearest other one, its patient left out of both.

    Attributes:
        own: (m,) cosine with the mean of the own class.
        other: (m,) cosine with the nearest mean of another class; -inf where there is none.
        other_class: (m,) which class that is; -1 where there is none.
        nearest_own, nearest_other: (m,) cosine with the nearest image of either; NaN in sets too large.
        known: (m,) whether the own class has another patient.
    """

    def __init__(self, support: Support, rows: NDArray[np.float64], looked: NDArray[np.intp]) -> None:
        self.support, self.looked = support, looked
        targets = support.targets[looked]
        cosines = _means_without_patient(support, rows, looked)  # (m, n_classes), -inf where no patient is left
        self.own = cosines[np.arange(len(looked)), targets]
        self.known = self.own > -np.inf
        cosines[np.arange(len(looked)), targets] = -np.inf
        self.other = cosines.max(axis=1)
        self.other_class = np.where(self.other > -np.inf, cosines.argmax(axis=1), -1)
        self.by_image = len(support) <= MOST_COMPARED
        self.nearest_own = np.full(len(looked), np.nan)
        self.nearest_other = np.full(len(looked), np.nan)
        self.nearest_image = np.zeros(len(looked), dtype=np.intp)
        if self.by_image:  # then every row is looked at
            patients = patient_codes(support)
            close = np.einsum("id,jd->ij", rows, rows).clip(-1, 1)  # (n, n), each cosine summed by itself
            close[patients[:, None] == patients] = -np.inf
            same = targets[:, None] == targets
            self.nearest_own = np.where(same, close, -np.inf).max(axis=1)
            strange = np.where(same, -np.inf, close)
            self.nearest_other, self.nearest_image = strange.max(axis=1), strange.argmax(axis=1)

    def scores(self, compared: NDArray[np.intp], weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """Unusualness (m, 3) by label, by nearest image and by distance to the own class.

        What cannot be judged is -inf, and NaN throughout for a row whose class has no other patient.

        Args:
            compared: Rows of the support that say what is usual, all of them known.
            weights: (n,) what each row of the support counts.
        """
        usual = np.searchsorted(self.looked, compared)
        result = np.full((len(self.looked), 3), -np.inf)
        result[:, 2] = _upper_z(-self.own, usual, weights[compared])
        paired = self.known & (self.other > -np.inf)
        both = usual[paired[usual]]
        if both.size:
            counted = weights[self.looked[both]]
            margin = np.where(paired, self.other, 0.0) - np.where(paired, self.own, 0.0)
            result[:, 0] = _upper_z(margin, both, counted)
            if self.by_image:
                nearer = np.where(paired, self.nearest_other, 0.0) - np.where(paired, self.nearest_own, 0.0)
                result[:, 1] = _upper_z(nearer, both, counted)
                result[:, 0] = _upper_z(result[:, 0] + result[:, 1], both, counted)
            result[~paired, :2] = -np.inf
        result[~self.known] = np.nan
        return result

    def reason(self, i: int, scores: NDArray[np.float64]) -> str:
        """Why an image is suspected, by what is most unusual about it."""
        support, row = self.support, int(self.looked[i])
        own = repr(support.labels[row])
        largest = int(np.argmax(scores))
        if largest == 2:
            return (
                f"It is far from its own class {own}: its cosine with the other patients' mean is {self.own[i]:.2f}, "
                f"where {np.median(self.own[self.known]):.2f} is usual in this set."
            )
        if largest == 1:
            image = int(self.nearest_image[i])
            return (
                f"Its nearest image of another class, {support.ids[image]!r} of {support.labels[image]!r}, is "
                f"unusually near (cosine {self.nearest_other[i]:.2f}; the nearest of its own class {own}: "
                f"{self.nearest_own[i]:.2f})."
            )
        other = repr(support.classes[int(self.other_class[i])])
        how = "nearer" if self.other[i] > self.own[i] else "unusually near"
        than = "than" if self.other[i] > self.own[i] else "compared with"
        return (
            f"It is {how} to {other} (cosine {self.other[i]:.2f}) {than} its own class {own} ({self.own[i]:.2f}), "
            f"its patient left out of both."
        )


def _means_without_patient(
    support: Support, rows: NDArray[np.float64], looked: NDArray[np.intp]
) -> NDArray[np.float64]:
    """Cosine of each row looked at with each class's mean without the row's patient, (m, n_classes).

    A mean's direction is that of the sum over patients, so that a patient is left out by a subtraction. Where no
    patient is left the cosine is -inf.
    """
    patients, n_classes = patient_codes(support), len(support.classes)
    cell_of = patients * n_classes + support.targets
    cells, cell, images = np.unique(cell_of, return_inverse=True, return_counts=True)
    order = np.argsort(cell, kind="stable")
    starts = np.concatenate([[0], np.cumsum(images)[:-1]])
    means = np.add.reduceat(rows[order], starts, axis=0) / images[:, None]  # (n_cells, d): a patient's mean in a class
    cell_class = cells % n_classes
    by_class = np.argsort(cell_class, kind="stable")
    owners = np.bincount(cell_class, minlength=n_classes)  # patients per class; no class is empty
    sums = np.add.reduceat(means[by_class], np.concatenate([[0], np.cumsum(owners)[:-1]]), axis=0)  # (n_classes, d)
    cosines = similarities(rows[looked], _unit(sums), "cosine")
    by_patient: dict[int, list[int]] = {}
    for number, patient in enumerate((cells // n_classes).tolist()):
        by_patient.setdefault(patient, []).append(number)
    pairs = [(i, number) for i, p in enumerate(patients[looked].tolist()) for number in by_patient[p]]
    for start in range(0, len(pairs), CHUNK_ROWS):
        which, own = (np.array(part) for part in zip(*pairs[start : start + CHUNK_ROWS], strict=True))
        classes = cell_class[own]
        without = _unit(sums[classes] - means[own])
        found = (rows[looked[which]] * without).sum(axis=1).clip(-1, 1)
        cosines[which, classes] = np.where(owners[classes] > 1, found, -np.inf)
    return cosines


def _unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    norm = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    result: NDArray[np.float64] = np.divide(rows, norm, out=np.zeros_like(rows), where=norm > 0)
    return result


def _upper_z(values: NDArray[np.float64], usual: NDArray[np.intp], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far values (m,) lie above the median of the usual ones, in units of the spread above it.

    Args:
        values: Larger is more unusual.
        usual: Positions of the values that say what is usual.
        weights: What each of these counts.
    """
    known = values[usual]
    order = np.lexsort((weights, known))
    centres = np.cumsum(weights[order]) - weights[order] / 2
    median, upper = np.interp([0.5, UPPER_QUANTILE], centres / weights[order].sum(), known[order])
    result: NDArray[np.float64] = (values - median) / max(upper - median, SMALLEST_SPREAD)
    return result
