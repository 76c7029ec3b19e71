"""Scores of support images by heads that never saw their patient: what choice, calibration and estimate stand on."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .head import Head
from .support import Support, as_label

#: Up to this many patients each is left out alone; above, patients are dealt into `MANY_FOLDS` folds.
MOST_LEFT_OUT_ALONE = 200
#: Folds where there are more patients than are left out alone.
MANY_FOLDS = 20


@dataclass(frozen=True, eq=False)
class Fold:
    """One way to leave patients out, and the head fitted to the others.

    Attributes:
        rows: int (m,), the support rows of the patients left out, ascending.
        head: The head, fitted to all other rows.
        columns: int (k,), where the head's classes stand among the support's; a class whose every patient was left out
            is missing.
    """

    rows: NDArray[np.intp]
    head: Head
    columns: NDArray[np.intp]

    def scores(self, vectors: ArrayLike, n_classes: int) -> NDArray[np.float64]:
        """Scores (m, n_classes) in the support's order of classes; -inf for a class the head does not know.

        A row nothing can be decided about is NaN throughout.
        """
        found = self.head.scores(vectors)
        result = np.full((len(found), n_classes), -np.inf)
        result[:, self.columns] = found
        result[np.isnan(found).any(axis=1)] = np.nan
        return result


def patient_codes(support: Support) -> NDArray[np.intp]:
    """The patient of each support row as a number, (n,), in order of first appearance."""
    codes: dict[Hashable, int] = {}
    return np.array([codes.setdefault(group, len(codes)) for group in support.groups], dtype=np.intp)


def patient_folds(support: Support, *, n_folds: int | None = None, seed: int = 0) -> list[NDArray[np.intp]]:
    """Rows to leave out together, each patient in exactly one fold.

    Args:
        support: The support.
        n_folds: Folds of patients, dealt class by class so that every class is spread over them; None leaves out one
            patient at a time up to `MOST_LEFT_OUT_ALONE` patients, and deals into `MANY_FOLDS` above.
        seed: Of the dealing; leaving out one at a time needs none.

    Returns:
        Ascending row numbers of each fold; none is empty.
    """
    patients = patient_codes(support)
    count = int(patients.max()) + 1
    if n_folds is None and count <= MOST_LEFT_OUT_ALONE:
        return [np.flatnonzero(patients == code) for code in range(count)]
    wanted = min(MANY_FOLDS if n_folds is None else n_folds, count)
    first = np.array([int(np.flatnonzero(patients == code)[0]) for code in range(count)])
    rng = np.random.default_rng(seed)
    shuffled = rng.permutation(count)
    order = shuffled[np.argsort(support.targets[first[shuffled]], kind="stable")]  # class by class, shuffled within
    fold = np.empty(count, dtype=np.intp)
    fold[order] = np.arange(count) % wanted
    return [np.flatnonzero(fold[patients] == number) for number in range(wanted)]


def fit_folds(make: Callable[[], Head], support: Support, rows: list[NDArray[np.intp]]) -> list[Fold]:
    """Fit a fresh head to what each fold leaves.

    Args:
        make: Makes an unfitted head.
        support: The support.
        rows: What each fold leaves out, from `patient_folds`.

    Returns:
        The folds that leave at least one image to learn from.
    """
    found = []
    for own in rows:
        kept = np.setdiff1d(np.arange(len(support)), own)
        if not kept.size:
            continue
        head = make()
        head.fit(
            support.vectors[kept],
            [support.labels[i] for i in kept],
            ids=[support.ids[i] for i in kept],
            groups=[support.groups[i] for i in kept],
        )
        known = np.unique(support.targets[kept])  # classes are sorted alike in both
        if len(head.classes_) > len(known):  # of some it knows words where it has no shots
            place = {label: i for i, label in enumerate(support.classes)}
            strange = [label for label in map(as_label, head.classes_) if label not in place]
            if strange:
                raise ValueError(
                    f"{strange[0]!r} is known by words alone: leaving patients out takes classes with images."
                )
            known = np.array([place[as_label(label)] for label in head.classes_], dtype=np.intp)
        found.append(Fold(own, head, known))
    return found


def held_out_scores(folds: list[Fold], support: Support) -> NDArray[np.float64]:
    """Score every support image by the head that never saw its patient.

    Args:
        folds: From `fit_folds`.
        support: The support they were fitted to.

    Returns:
        float64 (n, n_classes) in the order of `support.classes`; -inf for a class without another patient, NaN
        throughout for a row nothing can be decided about or that no fold left out.
    """
    scores = np.full((len(support), len(support.classes)), np.nan)
    for fold in folds:
        scores[fold.rows] = fold.scores(support.vectors[fold.rows], len(support.classes))
    return scores
