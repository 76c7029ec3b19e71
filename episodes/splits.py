"""Parts of a data set that share no patient: stratified, k-fold, one patient or site out, seen and unseen classes."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import EpisodeError
from .labels import Groups, Label, Labels, in_order, label_sets, patient_list

Indices = NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Fold:
    """One way to divide the rows in two.

    Attributes:
        train: Rows to learn from, ascending.
        test: Rows to test on, ascending; none of their patients is in `train`.
        held_out: What the test rows have in common (a fold number, a patient, a site).
    """

    train: Indices
    test: Indices
    held_out: Hashable


def split(
    labels: Labels, *, groups: Groups | None = None, fractions: Sequence[float] = (0.8, 0.2), seed: int = 0
) -> tuple[Indices, ...]:
    """Divide the rows into parts of given sizes, no patient in two, each class spread as the sizes say.

    Patients are dealt one by one, those with most images first and otherwise in random order, each to the part that
    lacks most of what the patient brings. An image with several labels counts as its rarest one (by patients).

    Args:
        labels: n labels, or n collections of labels.
        groups: n patients; None makes every image a patient of its own.
        fractions: Sizes of the parts, which sum to 1.
        seed: Seed of the random order.

    Returns:
        One ascending index array per part.

    Raises:
        EpisodeError: The fractions are no shares of a whole, or a part would be empty.
    """
    shares = np.asarray(fractions, dtype=np.float64)
    if shares.ndim != 1 or shares.size < 2 or not (shares > 0).all() or abs(shares.sum() - 1) > 1e-6:
        raise EpisodeError(f"fractions must be two or more positive numbers that sum to 1; got {tuple(fractions)}.")
    strata, patients = _strata(labels, groups)
    n_strata = int(strata.max(initial=0)) + 1
    # What each patient brings, as (patient, stratum, images) triples in patient order.
    pairs, images = np.unique(patients * n_strata + strata, return_counts=True)
    owner, stratum = pairs // n_strata, pairs % n_strata
    sizes = np.bincount(patients)
    begin = np.searchsorted(owner, np.arange(sizes.size + 1))
    totals = np.maximum(np.bincount(strata, minlength=n_strata), 1)

    lack = shares[:, None] * totals  # (n_parts, n_strata) images each part still lacks
    lack_all = shares * strata.size
    part = np.empty(sizes.size, dtype=np.intp)
    shuffled = np.random.default_rng(seed).permutation(sizes.size)
    for patient in shuffled[np.argsort(-sizes[shuffled], kind="stable")]:
        brings = slice(begin[patient], begin[patient + 1])
        kinds, counts = stratum[brings], images[brings]
        # The part where the squared lack, relative to each stratum's total, falls most.
        gain = lack[:, kinds] @ (counts / totals[kinds]) + lack_all * (sizes[patient] / strata.size)
        chosen = int(gain.argmax())
        part[patient] = chosen
        lack[chosen, kinds] -= counts
        lack_all[chosen] -= sizes[patient]
    parts = tuple(np.flatnonzero(part[patients] == number) for number in range(shares.size))
    for number, rows in enumerate(parts):
        if not rows.size:
            raise EpisodeError(
                f"Part {number + 1} of {shares.size} ({shares[number]:g} of {strata.size:,} images) would be empty: "
                f"{sizes.size:,} patients are too few for fractions {tuple(fractions)}."
            )
    return parts


def k_fold(labels: Labels, n_folds: int = 5, *, groups: Groups | None = None, seed: int = 0) -> tuple[Fold, ...]:
    """Divide the rows into folds, no patient in two, stratified by label (scikit-learn's StratifiedGroupKFold).

    An image with several labels counts as its rarest one (by patients). A class with fewer patients than folds is
    missing from some folds.

    Args:
        labels: n labels, or n collections of labels.
        n_folds: At least 2 and at most the number of patients.
        groups: n patients; None makes every image a patient of its own.
        seed: Seed of the shuffling.

    Returns:
        One Fold per fold, `held_out` its number from 0.

    Raises:
        EpisodeError: There are fewer patients than folds, or no class has as many images as there are folds.
    """
    strata, patients = _strata(labels, groups)
    n_patients = np.unique(patients).size
    if n_folds < 2 or n_folds > n_patients:
        raise EpisodeError(f"n_folds must lie between 2 and the number of patients, {n_patients:,}; got {n_folds}.")
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(n_splits=n_folds, shuffle=True, random_state=seed)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The least populated class", UserWarning)
            found = list(folds.split(np.zeros(strata.size), strata, patients))
    except ValueError:
        raise EpisodeError(
            f"No class has {n_folds} images, so {n_folds} folds cannot be stratified; use fewer folds."
        ) from None
    return tuple(Fold(train, test, number) for number, (train, test) in enumerate(found))


def leave_one_patient_out(groups: Groups) -> Iterator[Fold]:
    """Yield, for each patient in order, the fold that tests on that patient alone.

    Raises:
        EpisodeError: There are fewer than two patients, or one is missing.
    """
    return iter(_one_out(patient_list(groups, len(groups)), None, "patients"))


def by_column(column: Groups, *, groups: Groups | None = None) -> Iterator[Fold]:
    """Yield, for each value of a column (a site, a scanner, a year), the fold that tests on its rows.

    Args:
        column: n values, such as the site of each image.
        groups: n patients; a patient who is also at the held-out site is left out of the fold's `train`.

    Returns:
        Folds in order of the values, `held_out` the value.

    Raises:
        EpisodeError: There are fewer than two values, one is missing, or a fold has nothing to learn from.
    """
    values = patient_list(column, len(column))
    return iter(_one_out(values, None if groups is None else patient_list(groups, len(values)), "values"))


def seen_unseen(
    classes: Iterable[Label], n_unseen: int, *, seed: int = 0
) -> tuple[tuple[Label, ...], tuple[Label, ...]]:
    """Draw the classes an encoder never sees.

    Args:
        classes: The classes; repeats do not count, so a list of labels will do.
        n_unseen: How many to hold out, at least 1, leaving at least 1.
        seed: Seed of the draw.

    Returns:
        (seen, unseen), each sorted where the labels can be.

    Raises:
        EpisodeError: n_unseen is out of range.
    """
    names = in_order(dict.fromkeys(classes))
    if not 1 <= n_unseen < len(names):
        raise EpisodeError(
            f"n_unseen must lie between 1 and {len(names) - 1} for {len(names)} classes; got {n_unseen}."
        )
    drawn = set(np.random.default_rng(seed).choice(len(names), n_unseen, replace=False).tolist())
    seen = tuple(name for code, name in enumerate(names) if code not in drawn)
    return seen, tuple(name for code, name in enumerate(names) if code in drawn)


def _strata(labels: Labels, groups: Groups | None) -> tuple[Indices, Indices]:
    """Return the code of each image's rarest label and of its patient; images without a label are a stratum too."""
    names = label_sets(labels)
    if not names:
        raise EpisodeError("There are no images to split.")
    owners: Sequence[Hashable] = range(len(names)) if groups is None else patient_list(groups, len(names))
    carriers: dict[Label, set[Hashable]] = {}
    for carried, owner in zip(names, owners, strict=True):
        for name in carried:
            carriers.setdefault(name, set()).add(owner)
    order = in_order(carriers)
    rank = {name: (len(carriers[name]), code) for code, name in enumerate(order)}
    rarest = [
        min((rank[name][0], rank[name][1]) for name in carried)[1] if carried else len(order) for carried in names
    ]
    patient: dict[Hashable, int] = {}
    codes = [patient.setdefault(owner, len(patient)) for owner in owners]
    stratum = np.unique(np.array(rarest, dtype=np.intp), return_inverse=True)[1]
    return stratum.astype(np.intp), np.array(codes, dtype=np.intp)


def _one_out(values: Sequence[Hashable], groups: Sequence[Hashable] | None, what: str) -> Iterator[Fold]:
    """Yield a fold per value; the checks run before the first is asked for."""
    names = in_order(dict.fromkeys(values))
    if len(names) < 2:
        raise EpisodeError(f"Leaving one out needs at least two {what}; got {len(names)}.")
    rows: dict[Hashable, list[int]] = {name: [] for name in names}
    for row, value in enumerate(values):
        rows[value].append(row)

    def folds() -> Iterator[Fold]:
        for name in names:
            test = np.array(rows[name], dtype=np.intp)
            kept = np.ones(len(values), dtype=np.bool_)
            kept[test] = False
            if groups is not None:
                tested = {groups[row] for row in rows[name]}
                kept &= np.array([group not in tested for group in groups])
            if not kept.any():
                raise EpisodeError(f"Holding out {name!r} leaves nothing to learn from: its patients are everyone's.")
            yield Fold(np.flatnonzero(kept), test, name)

    return folds()
