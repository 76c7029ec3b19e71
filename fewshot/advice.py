"""What would help most: from how accuracy falls when patients of one class are taken away (a learning curve per class).

A class's part of the error falls about as 1 / (patients learnt from). How fast is measured on the user's own data by
taking half the patients of one class away and keeping the others. Alone that is too noisy to act on, so it has a small
weight beside the rate that was usual over many simulated tasks: a share of the class's own error.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .class_scores import image_weights
from .head import Head
from .held_out import Fold, fit_folds, patient_codes
from .leave_few_out import ask, class_means, patients_per_class
from .support import Support

#: Patients whose gain is foretold.
MORE = 3
#: Share of a class's error that falls away per unit of 1 / (patients learnt from), as it was over many tasks.
USUAL_RATE = 0.5
#: Weight of the rate measured on the user's own data beside the usual one.
OWN_WEIGHT = 0.15
#: Standard deviation of true gains around what is foretold, likewise, over the root of the fall of 1 / patients and
#: times the root of the number of classes.
GAIN_SPREAD = 0.16
#: Half-width of a 95 % interval in standard deviations.
TWO_SIDED = 1.96


@dataclass(frozen=True, slots=True)
class Advice:
    """What more patients of one class would bring.

    Attributes:
        label: The class.
        patients: Patients it has.
        more: Patients more.
        gain: Expected change of the class-balanced accuracy.
        interval: 95 % interval of that change.
        measured: Whether the class's own learning curve is part of it; it takes at least 3 patients.
    """

    label: Hashable
    patients: int
    more: int
    gain: float
    interval: tuple[float, float]
    measured: bool

    @property
    def tells(self) -> bool:
        """Whether the interval leaves 0 out; if not, the data cannot tell."""
        return self.interval[0] > 0 or self.interval[1] < 0


class LearningCurves:
    """Measures, for each class, how much is lost when half of its patients are taken away.

    Args:
        support: The support.
        make: Makes an unfitted head.
        rng: Chooses who is taken away.
    """

    def __init__(self, support: Support, make: Callable[[], Head], rng: np.random.Generator) -> None:
        n_classes = len(support.classes)
        self._support, self._make, self._rng = support, make, rng
        self._lost = np.zeros((n_classes, len(support)))
        self._asked = np.zeros((n_classes, len(support)))
        self._step: list[list[float]] = [[] for _ in range(n_classes)]

    def add(self, fold: Fold, given: NDArray[np.intp]) -> None:
        """Refit a round without half the patients of each class in turn, and ask again.

        Args:
            fold: The round, with all other patients.
            given: (m,) its answers to its rows.
        """
        support, rows = self._support, fold.rows
        patients = patient_codes(support)
        right = given == support.targets[rows]
        known = np.isin(support.targets[rows], fold.columns)
        kept = np.setdiff1d(np.arange(len(support)), rows)
        for c in range(len(support.classes)):
            members = kept[support.targets[kept] == c]
            own = np.unique(patients[members])
            if own.size < 2:
                continue
            staying = self._rng.permutation(own)[: (own.size + 1) // 2]
            taken = members[~np.isin(patients[members], staying)]
            (smaller,) = fit_folds(self._make, support, [np.union1d(rows, taken)])
            change = right.astype(float) - (ask(smaller, support, rows) == support.targets[rows])
            self._lost[c, rows[known]] += change[known]
            self._asked[c, rows[known]] += 1
            self._step[c].append(1 / staying.size - 1 / own.size)

    def rates(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Loss of class-balanced accuracy per unit of 1 / patients, and its standard error over patients.

        Returns:
            Two arrays (n_classes,); NaN for a class that had nobody to take away.
        """
        support = self._support
        n_classes = len(support.classes)
        rates, errors = np.full(n_classes, np.nan), np.full(n_classes, np.nan)
        weights = image_weights(support)
        codes = patient_codes(support)
        for c in range(n_classes):
            asked = self._asked[c] > 0
            if not self._step[c] or not asked.any():
                continue
            lost = np.full(len(support), np.nan)
            lost[asked] = self._lost[c, asked] / self._asked[c, asked]
            step = float(np.mean(self._step[c]))
            means = class_means(lost, support)
            judged = np.flatnonzero(~np.isnan(means))
            variance = 0.0
            for d in judged.tolist():
                own = np.flatnonzero((support.targets == d) & asked)
                values = np.bincount(codes[own], weights=weights[own] * lost[own])[np.unique(codes[own])]
                variance += float(np.var(values, ddof=1)) / values.size if values.size > 1 else 0.0
            rates[c] = means[judged].mean() / step
            errors[c] = np.sqrt(variance) / judged.size / step
        return rates, errors


def advise(
    curves: LearningCurves, support: Support, recall: NDArray[np.float64], *, more: int = MORE
) -> tuple[Advice, ...]:
    """What `more` patients of each class would bring, most first.

    Args:
        curves: The measured learning curves.
        support: The support.
        recall: (n_classes,) recall of each class in cross-validation; NaN where it could not be judged.
        more: Patients more.

    Returns:
        One for each class.
    """
    rates, errors = curves.rates()
    patients = patients_per_class(support)
    judged = recall[~np.isnan(recall)]
    found = []
    for c, label in enumerate(support.classes):
        own_recall = float(recall[c]) if not np.isnan(recall[c]) else float(judged.mean())
        usual = USUAL_RATE * (1 - own_recall) / len(support.classes)
        measured = not np.isnan(rates[c])
        rate = (1 - OWN_WEIGHT) * usual + OWN_WEIGHT * float(rates[c]) if measured else usual
        step = 1 / int(patients[c]) - 1 / (int(patients[c]) + more)
        gain, own_error = rate * step, OWN_WEIGHT * float(errors[c]) * step if measured else 0.0
        half = TWO_SIDED * float(np.hypot(own_error, GAIN_SPREAD * np.sqrt(step / len(support.classes))))
        found.append(Advice(label, int(patients[c]), more, gain, (gain - half, gain + half), measured))
    return tuple(sorted(found, key=lambda one: -one.gain))
