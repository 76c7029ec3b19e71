"""The accuracy to expect on future patients, from nothing but the comparison set itself.

Repeated cross-validation with few folds, which comes nearest the truth for single few-shot tasks (Shimabucoro et al.
2023, arXiv 2307.02732), always by patient. Two things it does not give are added: a correction for heads that learnt
from fewer patients than there are, and an interval that is as wide as the estimates were wrong in simulated tasks
(benchmarks/estimate.py). Folds overlap in what they learn from, so their spread is no measure of that error (Nadeau
and Bengio 2003, Machine Learning 52, 239-281); the number of patients in each class is.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv, ndtr

from .advice import USUAL_RATE, LearningCurves, advise
from .estimate_report import ClassEstimate, Confusion, Estimate, HardImage
from .head import Head
from .held_out import patient_codes
from .leave_few_out import Tally, class_means, deal_rounds, patients_per_class, play
from .prototypes import PrototypeClassifier
from .support import Support, is_missing

#: Folds of a repeat. Halves have the smallest error: each image is asked about by many different heads.
FOLDS = 2
#: Repeats.
REPEATS = 20
#: Repeats in which learning curves are measured too; each of their rounds fits one more head per class.
ADVICE_REPEATS = 10
#: How often the intervals hold the truth.
LEVEL = 0.95
#: Variance of an estimate over that of as many patients drawn anew: the head, too, was learnt from a few patients.
INFLATION = 1.4
#: Patients' worth of the recall over all classes that each class's own is moved towards, for the variance alone.
POOLED_PATIENTS = 2
#: Where at most so many patients were answered wrong the interval reaches to 1, and likewise to 0.
BOUNDARY_PATIENTS = 1
#: The intervals were tried out with at least so many patients in every class.
FEWEST_TRIED = 3


def estimate(
    vectors: ArrayLike,
    labels: Sequence[Hashable],
    *,
    ids: Sequence[str] | None = None,
    groups: Sequence[Hashable | None] | None = None,
    make_head: Callable[[], Head] = PrototypeClassifier,
    n_repeats: int = REPEATS,
    n_folds: int = FOLDS,
    seed: int = 0,
) -> Estimate:
    """Estimate the class-balanced accuracy of a head on patients to come.

    Each patient counts once in a class however many images it has; an abstention counts as wrong.

    Args:
        vectors: (n, d) support vectors.
        labels: n class labels.
        ids: n distinct image ids; positions where absent.
        groups: n patients; where None, every image is its own patient, and the estimate says so.
        make_head: Makes an unfitted head; whatever chooses it must choose anew in each call of its `fit`.
        n_repeats: Repeats of the cross-validation.
        n_folds: Folds of each repeat, at least 2.
        seed: Of the dealing of patients.

    Returns:
        The estimate.

    Raises:
        ValueError: Fewer than two classes, fewer than 2 folds or 1 repeat, or a support that is refused by heads.

    Example:
        >>> rows = [[1.0, 0.0], [0.9, 0.1], [0.8, 0.1], [0.0, 1.0], [0.1, 0.9], [0.2, 1.0]]
        >>> found = estimate(rows, ["a"] * 3 + ["b"] * 3, groups=["p1", "p2", "p3", "p4", "p5", "p6"])
        >>> print(str(found).splitlines()[0])
        Expect 1.00 accuracy on new patients; 95 % interval 0.58 to 1.00 (2 classes, 6 patients, PrototypeClassifier).
    """
    for name, value, least in (("n_folds", n_folds, 2), ("n_repeats", n_repeats, 1), ("seed", seed, 0)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}; got {value!r}.")
    support = Support(vectors, labels, ids=ids, groups=groups)
    if len(support.classes) < 2:
        raise ValueError(
            f"An accuracy needs at least two classes to tell apart; the comparison set has only {support.classes[0]!r}."
        )
    rng = np.random.default_rng(seed)
    tally, curves = Tally(support), LearningCurves(support, make_head, rng)
    for repeat in range(n_repeats):
        for fold, given in play(make_head, support, deal_rounds(support, n_folds, rng), tally):
            if repeat < ADVICE_REPEATS:
                curves.add(fold, given)
    answers = tally.result()
    confusion = class_means(answers.shares, support)  # (n_classes, n_classes + 1)
    recall = confusion.diagonal().copy()  # (n_classes,)
    judged = np.flatnonzero(~np.isnan(recall))
    patients = patients_per_class(support)
    head = make_head()
    accuracy = interval = found = None
    expected = recall
    if judged.size > 1:
        found = float(recall[judged].mean())
        expected = recall + (1 - recall) * _gain(recall, patients, answers.scarcity)
        accuracy = float(expected[judged].mean())
        interval = _interval(accuracy, found, _effective(recall[judged], patients[judged]))
    warnings = _warnings(support, patients, judged, groups, head)
    if interval is not None and judged.size == len(support.classes) and interval[0] <= 1 / judged.size:
        warnings.append(f"Guessing gives {1 / judged.size:.2f}, which the interval does not rule out.")
    return Estimate(
        accuracy=accuracy,
        interval=interval,
        level=LEVEL,
        cross_validated=found,
        per_class=tuple(
            _class_estimate(label, int(patients[c]), float(expected[c]), float(recall[c]))
            for c, label in enumerate(support.classes)
        ),
        confusion=tuple(None if np.isnan(row).any() else tuple(row.tolist()) for row in confusion),
        most_confused=_most_confused(confusion, support),
        hard_images=_hard_images(answers.shares, support),
        advice=advise(curves, support, recall) if judged.size > 1 else (),
        patients=int(np.unique(patient_codes(support)).size),
        patients_known=groups is not None and not any(is_missing(group) for group in groups),
        images=len(support),
        head=type(head).__name__,
        n_folds=int(n_folds),
        n_repeats=int(n_repeats),
        seed=int(seed),
        warnings=tuple(warnings),
    )


def _gain(recall: NDArray[np.float64], patients: NDArray[np.intp], scarcity: float) -> float:
    """Share of the error that goes away with all patients to learn from, in [0, 1].

    The error falls by `USUAL_RATE` of itself for each unit that the mean of 1 / patients falls. Extrapolating the two
    fold sizes of the user's own data instead was tried, and is further from the truth than no correction: the
    difference of two noisy figures. As guesses do not improve, the gain is weighed by how likely it is that the
    accuracy is above that of guessing.
    """
    judged = ~np.isnan(recall)
    chance = 1 / len(recall)
    spread = np.sqrt((chance * (1 - chance) / patients[judged]).sum()) / judged.sum()
    above = float(ndtr((recall[judged].mean() - chance) / spread))
    less = scarcity - float(np.mean(1 / patients))
    return min(1.0, max(0.0, USUAL_RATE * less * above))


def _effective(recall: NDArray[np.float64], patients: NDArray[np.intp]) -> float:
    """Patients of one class who would make a share as uncertain as the mean of these recalls is.

    Args:
        recall: (k,) recalls of the classes.
        patients: (k,) their patients.
    """
    total = (recall * patients).sum()
    pooled = (total + 0.5) / (patients.sum() + 1)
    moved = (patients * recall + POOLED_PATIENTS * pooled) / (patients + POOLED_PATIENTS)
    variance = INFLATION * (moved * (1 - moved) / patients).sum() / recall.size**2
    mean = moved.mean()
    return float(mean * (1 - mean) / variance)


def _interval(share: float, seen: float, patients: float) -> tuple[float, float]:
    """Interval of a share in so many patients: quantiles of the posterior from Jeffreys' prior.

    Where at most one was wrong, or right, it reaches to the end, which the quantiles never do: the modified interval of
    Brown, Cai and DasGupta (2001, Statistical Science 16, 101-133).

    Args:
        share: The share, corrected.
        seen: The share before it was corrected.
        patients: How many, not necessarily whole.
    """
    right, wrong = patients * share + 0.5, patients * (1 - share) + 0.5
    low, high = betaincinv(right, wrong, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]).tolist()
    return (
        0.0 if patients * seen <= BOUNDARY_PATIENTS else low,
        1.0 if patients * (1 - seen) <= BOUNDARY_PATIENTS else high,
    )


def _class_estimate(label: Hashable, patients: int, recall: float, seen: float) -> ClassEstimate:
    if not np.isnan(recall):
        return ClassEstimate(label, patients, recall, _interval(recall, seen, patients / INFLATION))
    reason = (
        "It has one patient: once that one is asked about, nobody is left to learn from."
        if patients == 1
        else "Its patients are patients of other classes too, and none was left to learn from when it was asked about."
    )
    return ClassEstimate(label, patients, None, None, reason)


def _most_confused(confusion: NDArray[np.float64], support: Support) -> Confusion | None:
    """The pair of classes with the largest sum of both shares; the first such pair where several are equal."""
    best, pair = 0.0, None
    for a in range(len(confusion)):
        for b in range(a + 1, len(confusion)):
            both = np.nan_to_num([confusion[a, b], confusion[b, a]])
            if both.sum() > best:
                best, pair = float(both.sum()), (a, b, float(both[0]), float(both[1]))
    if pair is None:
        return None
    a, b, forth, back = pair
    if back > forth:
        a, b, forth, back = b, a, back, forth
    return Confusion(support.classes[a], support.classes[b], forth, back)


def _hard_images(shares: NDArray[np.float64], support: Support) -> tuple[HardImage, ...]:
    """Images that are wrong more often than right, worst first, then by id."""
    found = []
    for i, row in enumerate(shares):
        right = row[support.targets[i]]
        if right < 0.5:  # false for NaN
            most = int(row.argmax())
            answered = None if most == len(support.classes) else support.classes[most]
            found.append(HardImage(support.ids[i], support.labels[i], float(right), answered))
    return tuple(sorted(found, key=lambda one: (one.right, one.id)))


def _warnings(
    support: Support,
    patients: NDArray[np.intp],
    judged: NDArray[np.intp],
    groups: Sequence[Hashable | None] | None,
    head: Head,
) -> list[str]:
    """What limits the estimate, one sentence each."""
    said = []
    unknown = len(support) if groups is None else sum(is_missing(group) for group in groups)
    if unknown:
        said.append(
            f"The patients of {'all' if unknown == len(support) else f'{unknown:,} of'} {len(support):,} images are "
            f"unknown, so each of these counts as a patient of its own: if some are of one patient, the estimate is "
            f"too good and its interval too narrow."
        )
    alone = [support.classes[c] for c in np.flatnonzero(patients == 1).tolist()]
    if alone:
        said.append(
            f"{', '.join(map(repr, alone))}: one patient each cannot be cross-validated, so nothing is said of their "
            f"recall."
        )
    few = [support.classes[c] for c in judged.tolist() if patients[c] < FEWEST_TRIED]
    if few:
        said.append(
            f"{', '.join(map(repr, few))}: fewer than {FEWEST_TRIED} patients each, with which the intervals were not "
            f"tried out."
        )
    if getattr(head, "transductive", False):
        said.append(
            f"{type(head).__name__} decides about images together, and here each round's are asked together: an image "
            f"asked alone may fare worse."
        )
    return said
