"""Fit a recipe to images: head, probabilities, prediction sets, "none of these", thresholds; or say what is missing."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .auto import AutoClassifier
from .calibration import TEMPERATURE_PATIENTS, fit_isotonic, fit_temperature
from .calibration_rows import TooFewPatients
from .conformal import fit_split_conformal, patients_needed
from .cross_conformal import fit_cross_conformal, fold_numbers
from .fitted import Fitted, Probabilities, Sets
from .head import Head
from .held_out import fit_folds, held_out_scores, patient_folds
from .operating_points import OperatingPoint, choose_operating_point
from .prototypes import PrototypeClassifier
from .recipe import Recipe
from .registry import WORDS_HEAD
from .support import Support, is_missing

#: Why the head of words and shots was taken.
WORDED = "words: classes are described, and shots are added to what is said of them."


@dataclass(frozen=True, eq=False)
class SetAside:
    """Images of patients apart from the support, whose classes are known.

    Attributes:
        vectors: float32 (n, d), in order of id.
        targets: int (n,), position of each image's class among the support's.
        groups: n patients; None is unknown.
        remarks: What became of images that cannot be used.
    """

    vectors: NDArray[np.float32]
    targets: NDArray[np.intp]
    groups: list[Hashable | None]
    remarks: tuple[str, ...] = ()

    @property
    def owners(self) -> list[tuple[int, Hashable | None]]:
        """Class and patient of each image."""
        return list(zip(self.targets.tolist(), self.groups, strict=True))


def adapted(recipe: Recipe, classes: Sequence[str]) -> tuple[Recipe, list[str]]:
    """The recipe for the classes there are left, and what had to go; the same for fitting and for answering."""
    left, remarks = recipe.without(classes)
    return left, list(remarks)


def _what_suffices(aside: SetAside, n_classes: int, remarks: list[str]) -> str:
    """Images set aside where they are enough for probabilities, else the support."""
    if not len(aside.vectors):
        return "support"
    pairs = {(target, ("image", i) if is_missing(group) else group) for i, (target, group) in enumerate(aside.owners)}
    if len({target for target, _ in pairs}) == n_classes and len({who for _, who in pairs}) >= TEMPERATURE_PATIENTS:
        return "set-aside"
    remarks.append(
        f"{len(aside.vectors):,} images are set aside, too few to calibrate on: it takes {TEMPERATURE_PATIENTS} "
        "patients, and one of each class at least. The support is calibrated on."
    )
    return "support"


def choose(recipe: Recipe, support: Support, center: NDArray[np.float32] | None) -> tuple[str, str | None]:
    """The head's name and, where the recipe leaves the choice open, how it was made."""
    if recipe.head != "auto":
        return recipe.head, None
    found = AutoClassifier(center=center).fit(support.vectors, support.labels, ids=support.ids, groups=support.groups)
    return found.choice_.name, found.choice_.reason


def fit(
    recipe: Recipe,
    support: Support,
    aside: SetAside,
    *,
    center: NDArray[np.float32] | None,
    make: Callable[[str], Head],
    near: Callable[[], Head],
    worded: bool = False,
) -> Fitted:
    """Fit a recipe; what there are too few patients for is left out and said.

    Args:
        recipe: What is asked for.
        support: What is decided by, at least one image.
        aside: Images set aside for calibration; may be empty.
        center: (d,) the source's mean, or None.
        make: Makes a fresh head by name.
        near: Makes a fresh head whose scores say how near an image is to each class.
        worded: Whether every class is described by words too, which the head then takes in.

    Returns:
        What was fitted.

    """
    classes = [str(label) for label in support.classes]
    recipe, remarks = adapted(recipe, classes)
    name, reason = (WORDS_HEAD, WORDED) if worded and recipe.head == "auto" else choose(recipe, support, center)
    remarks += aside.remarks
    on = recipe.calibrate_on
    if on == "auto":
        on = _what_suffices(aside, len(classes), remarks)
    if on == "nothing" or len(classes) < 2:
        if on != "nothing":
            remarks.append("With a single class there is nothing to calibrate: every answer is that class.")
        return Fitted(name, reason, "nothing", {}, None, None, None, {}, tuple(remarks))
    if on == "set-aside":
        scored = _Scored.of_set_aside(support, aside, lambda: make(name), near)
    else:
        scored = _Scored.of_support(support, lambda: make(name), near)
        if recipe.head == "auto" and not worded:
            remarks.append(
                "The head was chosen on the support patients it is calibrated on; set patients aside where a promise "
                "must hold to the letter."
            )
    unknown = sum(is_missing(group) for group in aside.groups) if on == "set-aside" else 0
    unknown += sum(isinstance(group, tuple) and group[0] == "image" for group in support.groups)
    if unknown:
        remarks.append(
            f"{unknown:,} images have no known patient and count as one each: if some are of one patient, promises are "
            "too good."
        )
    patients, in_all = _patients(scored, len(classes))
    probabilities = _probabilities(recipe, scored, classes, remarks)
    sets = _sets(recipe, scored, classes, patients, in_all, remarks)
    novelty = _novelty(recipe, scored, in_all, remarks)
    points = _points(recipe, scored, classes, probabilities, remarks)
    counts = dict(zip(classes, patients, strict=True))
    marginal = novelty is not None or (sets is not None and not sets.per_class)
    if marginal and (min(patients) != max(patients) or recipe.prevalence is not None):
        remarks.append(
            f"{'Not turning away the known is' if sets is None or sets.per_class else 'Coverage and turning away are'} "
            "promised where the classes are as frequent as among the patients calibrated on."
        )
    return Fitted(name, reason, on, counts, probabilities, sets, novelty, points, tuple(remarks))


def known_by_words_alone(support: Support, unseen: Sequence[str]) -> Fitted:
    """What a recipe becomes while some classes have no image: answers by similarity, and what is missing is said."""
    named = ", ".join(repr(name) for name in unseen[:3]) + (" and others" if len(unseen) > 3 else "")
    return Fitted(
        head=WORDS_HEAD,
        head_reason=WORDED,
        calibrated_on="nothing",
        patients={},
        probabilities=None,
        sets=None,
        novelty=None,
        points={},
        remarks=(
            f'No probability, no prediction set and never "none of these": {named} '
            f"{'is' if len(unseen) == 1 else 'are'} known by words alone; register patients and deploy again.",
        ),
    )


@dataclass(frozen=True, eq=False)
class _Scored:
    """Images of known class, scored by heads that never saw their patients.

    Attributes:
        scores: (n, n_classes) by the deployment's head.
        nearness: (n, n_classes), how near each image is to each class.
        targets: (n,) positions of the classes.
        groups: n patients.
        folds: (n,) the fold that left each out, and the number of folds; None for images set aside.
    """

    scores: NDArray[np.float64]
    nearness: NDArray[np.float64]
    targets: NDArray[np.intp]
    groups: Sequence[Hashable | None]
    folds: tuple[NDArray[np.intp], int] | None

    @classmethod
    def of_set_aside(
        cls, support: Support, aside: SetAside, make: Callable[[], Head], near: Callable[[], Head]
    ) -> _Scored:
        scores, nearness = (fitted_head(maker(), support).scores(aside.vectors) for maker in (make, near))
        return cls(scores, nearness, aside.targets, aside.groups, None)

    @classmethod
    def of_support(cls, support: Support, make: Callable[[], Head], near: Callable[[], Head]) -> _Scored:
        rows = patient_folds(support)
        folds = fit_folds(make, support, rows)
        return cls(
            held_out_scores(folds, support),
            held_out_scores(fit_folds(near, support, rows), support),
            support.targets,
            support.groups,
            (fold_numbers(folds, len(support)), len(folds)),
        )


def class_closeness(center: NDArray[np.float32] | None) -> Head:
    """The head whose score of a class says how near an image is to it, whatever else there is: cosine to its mean.

    Of the measures tried for telling what is none of the classes this was best or level (benchmarks/RESULTS.md).
    """
    return PrototypeClassifier(center=center)


def fitted_head(head: Head, support: Support) -> Head:
    """The head, fitted to a support."""
    return head.fit(support.vectors, support.labels, ids=support.ids, groups=support.groups)


def _patients(scored: _Scored, n_classes: int) -> tuple[list[int], int]:
    """Patients of each class, and in all: one who is in two classes is one."""
    owners: list[set[Hashable]] = [set() for _ in range(n_classes)]
    for row, (target, group) in enumerate(zip(scored.targets.tolist(), scored.groups, strict=True)):
        if np.isfinite(scored.scores[row, target]):
            owners[target].add(("image", row) if is_missing(group) else ("patient", group))
    return [len(own) for own in owners], len(set().union(*owners))


def _probabilities(recipe: Recipe, scored: _Scored, classes: Sequence[str], remarks: list[str]) -> Probabilities | None:
    fit_one = fit_isotonic if recipe.method == "isotonic" else fit_temperature
    try:
        return fit_one(scored.scores, scored.targets, scored.groups)
    except TooFewPatients as error:
        short = None if error.target is None else classes[error.target]
        if short is not None and error.needed == 1 and scored.folds is not None:
            remarks.append(f"No probability: {short!r} has a single patient, and leaving that one out leaves none.")
        else:
            patients = "1 patient" if error.needed == 1 else f"{error.needed} patients"
            of = "" if short is None else f" of {short!r}"
            remarks.append(
                f"No probability: {recipe.method} calibration needs {patients}{of}, and there are {error.found}."
            )
        return None


def _sets(
    recipe: Recipe,
    scored: _Scored,
    classes: Sequence[str],
    patients: Sequence[int],
    in_all: int,
    remarks: list[str],
) -> Sets | None:
    needed = patients_needed(recipe.coverage)
    per_class = recipe.per_class or recipe.prevalence is not None  # what holds in each class holds in any mix
    if per_class:
        short = [f"{name!r} has {count}" for name, count in zip(classes, patients, strict=True) if count < needed]
        if short:
            remarks.append(
                f"No prediction sets: {recipe.coverage:g} coverage of each class needs {needed} patients of each, and "
                f"{', '.join(short)}."
            )
            return None
    elif in_all < needed:
        remarks.append(
            f"No prediction sets: {recipe.coverage:g} coverage needs {needed} patients, and there are {in_all}."
        )
        return None
    elif min(patients) == 0:
        absent = classes[patients.index(0)]
        remarks.append(f"No prediction sets: nobody with {absent!r} could be calibrated on.")
        return None
    return _conformal(scored, scored.scores, scored.targets, per_class=per_class, nonconformity="margin")


def _novelty(recipe: Recipe, scored: _Scored, in_all: int, remarks: list[str]) -> Sets | None:
    if recipe.turned_away is None:
        return None
    needed = patients_needed(1 - recipe.turned_away)
    if in_all < needed:
        remarks.append(
            f'Never "none of these": to turn away at most {recipe.turned_away:g} of the known needs {needed} patients, '
            f"and there are {in_all}."
        )
        return None
    # A single "class": how near an image is to whichever class is nearest, right or wrong, as it will be for a query.
    near, alike = nearest_class(scored.nearness), np.zeros(len(scored.nearness), dtype=np.intp)
    return _conformal(scored, near, alike, per_class=False, nonconformity="distance")


def nearest_class(closeness: NDArray[np.float64]) -> NDArray[np.float64]:
    """Closeness to the nearest class, (..., n, 1) of (..., n, n_classes)."""
    return np.asarray(closeness.max(axis=-1, keepdims=True))


def _conformal(
    scored: _Scored,
    scores: NDArray[np.float64],
    targets: NDArray[np.intp],
    *,
    per_class: bool,
    nonconformity: str,
) -> Sets:
    if scored.folds is None:
        return fit_split_conformal(scores, targets, scored.groups, per_class=per_class, nonconformity=nonconformity)
    folds, count = scored.folds
    return fit_cross_conformal(
        scores, targets, scored.groups, folds, n_folds=count, per_class=per_class, nonconformity=nonconformity
    )


def _points(
    recipe: Recipe,
    scored: _Scored,
    classes: Sequence[str],
    probabilities: Probabilities | None,
    remarks: list[str],
) -> dict[str, OperatingPoint]:
    wanted = {**recipe.sensitivity, **recipe.false_alarm_rate}
    if not wanted:
        return {}
    if probabilities is None:
        remarks.append("No thresholds: they are put on probabilities, and there are none.")
        return {}
    shown = probabilities.probabilities(scored.scores, prior=prior_of(recipe, classes))
    points = {}
    for label in sorted(wanted):
        target = classes.index(label)
        try:
            points[label] = choose_operating_point(
                shown[:, target],
                scored.targets == target,
                scored.groups,
                sensitivity=recipe.sensitivity.get(label),
                false_alarm_rate=recipe.false_alarm_rate.get(label),
            )
        except TooFewPatients as error:
            side = "with" if label in recipe.sensitivity else "without"
            remarks.append(
                f"No threshold for {label!r}: the rate asked for needs {error.needed} patients {side} the class, and "
                f"there are {error.found}."
            )
    return points


def prior_of(recipe: Recipe, classes: Sequence[str]) -> NDArray[np.float64] | None:
    """The prevalences in the order of the classes, or None."""
    return None if recipe.prevalence is None else np.array([recipe.prevalence[label] for label in classes])
