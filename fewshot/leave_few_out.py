"""Repeated rounds that leave patients of every class out, ask about them, and count what was answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .class_scores import image_weights
from .head import Head
from .held_out import Fold, fit_folds, patient_codes
from .support import Support, as_label


@dataclass(frozen=True, eq=False)
class Answers:
    """What heads that never saw a patient answered about the patient's images, over all rounds.

    Attributes:
        shares: float64 (n, n_classes + 1), share of an image's rounds in which each class was answered, abstentions in
            the last column; NaN for an image that was never asked about.
        scarcity: Mean over rounds and classes of 1 / (patients learnt from).
    """

    shares: NDArray[np.float64]
    scarcity: float


class Tally:
    """Counts the answers to each support image, round after round."""

    def __init__(self, support: Support) -> None:
        self._support = support
        self._counts = np.zeros((len(support), len(support.classes) + 1))
        self._scarcity: list[float] = []

    def add(self, fold: Fold, given: NDArray[np.intp]) -> None:
        """Count one round's answers (m,); images of a class the head does not know are not counted."""
        known = np.isin(self._support.targets[fold.rows], fold.columns)
        np.add.at(self._counts, (fold.rows[known], given[known]), 1)
        learnt = np.setdiff1d(np.arange(len(self._support)), fold.rows)
        patients = patients_per_class(self._support, learnt)
        self._scarcity.append(float(np.mean(1 / patients[patients > 0])))

    def result(self) -> Answers:
        """The shares so far."""
        asked = self._counts.sum(axis=1, keepdims=True)
        shares = np.divide(self._counts, asked, out=np.full_like(self._counts, np.nan), where=asked > 0)
        return Answers(shares, float(np.mean(self._scarcity)) if self._scarcity else float("nan"))


def patients_per_class(support: Support, rows: NDArray[np.intp] | None = None) -> NDArray[np.intp]:
    """Patients of each class, (n_classes,), among some rows of the support or all of them."""
    chosen = np.arange(len(support)) if rows is None else rows
    pairs = np.unique(np.stack([support.targets[chosen], patient_codes(support)[chosen]]), axis=1)
    return np.bincount(pairs[0], minlength=len(support.classes)).astype(np.intp)


def deal_rounds(support: Support, n_folds: int, rng: np.random.Generator) -> list[NDArray[np.intp]]:
    """Rows to leave out in each of `n_folds` rounds, which take patients of every class each time.

    The folds of `patient_folds` put each patient into exactly one, so that small classes are missing from some; there
    the class asked about has fewer patients than usual and the others have not, and permuted labels score below
    chance. Here a class with fewer patients than rounds gives patients up again instead, and only a class with a
    single patient gives none.

    Args:
        support: The support.
        n_folds: Rounds; each leaves out about one patient in `n_folds` of a class, and at least one.
        rng: Deals the patients.

    Returns:
        Ascending row numbers of each round; empty where every class has a single patient.
    """
    patients = patient_codes(support)
    dealt = [rng.permutation(np.unique(patients[support.targets == c])) for c in range(len(support.classes))]
    rounds = []
    for number in range(n_folds):
        out = [own[number % min(n_folds, own.size) :: min(n_folds, own.size)] for own in dealt if own.size > 1]
        if out:
            rounds.append(np.flatnonzero(np.isin(patients, np.concatenate(out))))
    return rounds


def ask(fold: Fold, support: Support, rows: NDArray[np.intp]) -> NDArray[np.intp]:
    """Position in `support.classes` of the answer to each row, (m,); one past the last class for "none of these"."""
    code = {label: i for i, label in enumerate(support.classes)}
    answers = fold.head.predict(support.vectors[rows])
    return np.array([code.get(as_label(answer), len(code)) for answer in answers], dtype=np.intp)


def play(
    make: Callable[[], Head], support: Support, rounds: list[NDArray[np.intp]], tally: Tally
) -> list[tuple[Fold, NDArray[np.intp]]]:
    """Fit a head to what each round leaves, ask it about what the round left out, and count.

    Args:
        make: Makes an unfitted head.
        support: The support.
        rounds: From `deal_rounds`.
        tally: Counts.

    Returns:
        Each round's fold with the answers (m,) to its rows.
    """
    played = []
    for fold in fit_folds(make, support, rounds):
        given = ask(fold, support, fold.rows)
        tally.add(fold, given)
        played.append((fold, given))
    return played


def class_means(values: NDArray[np.float64], support: Support) -> NDArray[np.float64]:
    """Mean over a class's patients of each patient's mean, (n_classes, ...).

    Rows of `values` (n, ...) that hold NaN are left out; a class that has nothing else has NaN.
    """
    weights = image_weights(support)
    flat = values.reshape(len(values), -1)
    means = np.full((len(support.classes), flat.shape[1]), np.nan)
    for c in range(len(support.classes)):
        own = np.flatnonzero((support.targets == c) & ~np.isnan(flat).any(axis=1))
        if own.size:
            means[c] = np.average(flat[own], axis=0, weights=weights[own])
    return means.reshape(len(support.classes), *values.shape[1:])
