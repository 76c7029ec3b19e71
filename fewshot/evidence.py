"""What would change an answer: the head is fitted anew without a patient, and asked again (Cook 1977).

Nothing is approximated: an influence is the difference between two fits. A removal from a comparison set equals never
having registered, so what is found here is what removing the patient would do.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .head import Head
from .support import Support, as_label, as_vectors

#: Patients of the winner's class that are taken out one after another, at most, to see when the answer flips.
MOST_REMOVED = 10


@dataclass(frozen=True, slots=True)
class Removal:
    """What the answer would be, had a patient not been registered.

    Attributes:
        patient: The patient; None where it is unknown, and the image stands alone.
        ids: The patient's support images.
        labels: The classes they are registered under.
        label: What the answer would be; None for none.
        margin: By how much the class that wins now would still lead all others; negative where it would trail, None
            where it would not be there, or be alone.
        change: What is added to the margin by the removal; None where there is none to compare.
    """

    patient: Hashable | None
    ids: tuple[str, ...]
    labels: tuple[Hashable, ...]
    label: Hashable | None
    margin: float | None
    change: float | None


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """What one answer hangs on.

    Attributes:
        label: The answer; None where there is none, and then nothing below is known.
        runner_up: The second class, or None.
        margin: The answer's score minus the runner-up's: how far the query is from the boundary between the two, on
            the head's own scale.
        flips: The patients without any one of which the answer would be another, the largest swing first.
        strongest: The patient whose removal moves the margin most, either way; None with a single class.
        needed: The patients of the winner's class that were taken out, one after another, each time the one whose
            removal cost the winner most, until the answer flipped; None where it had not flipped by `MOST_REMOVED`, or
            before the class was used up. There may be a smaller set where it holds two or more.
        reach: How many removals as large as the largest that speaks for the winner its margin would bear; None where
            no removal costs it anything.
        sentence: The same in words.
        removals: Every patient of the support, in id order of the first image.
    """

    label: Hashable | None
    runner_up: Hashable | None
    margin: float | None
    flips: tuple[Removal, ...]
    strongest: Removal | None
    needed: tuple[Removal, ...] | None
    reach: float | None
    sentence: str
    removals: tuple[Removal, ...] = field(repr=False)


def what_would_change(
    make: Callable[[], Head],
    vectors: ArrayLike,
    labels: Sequence[Hashable],
    query: ArrayLike,
    *,
    ids: Sequence[str] | None = None,
    groups: Sequence[Hashable | None] | None = None,
    most_removed: int = MOST_REMOVED,
) -> Counterfactual:
    """Fit the head without each patient in turn, and say what the answer to one query hangs on.

    It costs one fit per patient, and for the smallest set that flips the answer as many again as the winner's class has
    patients, for each one taken out.

    Args:
        make: Makes an unfitted head, always the same one.
        vectors: (n, d) support vectors.
        labels: n class labels.
        query: (d,) the image asked about, or (1, d).
        ids: n distinct image ids; positions where absent.
        groups: n patients, left out together; None or an unknown one: the image by itself.
        most_removed: Patients of the winner's class taken out at most.

    Returns:
        What the answer hangs on.

    Raises:
        ValueError: What the head refuses about the whole support, several queries, a `most_removed` below 1.

    Example:
        >>> from fewshot import PrototypeClassifier
        >>> support = [[1.0, 0.0], [0.0, 1.0], [0.3, 1.0], [0.2, 1.0]]
        >>> found = what_would_change(PrototypeClassifier, support, ["a", "a", "b", "b"], [0.8, 0.6], ids=list("wxyz"))
        >>> found.label, [removal.ids for removal in found.flips]
        ('a', [('w',)])
    """
    asked = as_vectors(np.atleast_2d(np.asarray(query, dtype=np.float32)), "The query")
    if len(asked) != 1:
        raise ValueError(f"what_would_change looks at one query at a time; got {len(asked)}.")
    if isinstance(most_removed, bool) or not isinstance(most_removed, (int, np.integer)) or most_removed < 1:
        raise ValueError(f"most_removed must be a whole number of at least 1; got {most_removed!r}.")
    # where there is no image words may answer; a head without words says what it needs
    support = Support(vectors, labels, ids=ids, groups=groups) if len(labels) else Support.nothing(asked.shape[1])
    everything = np.arange(len(support))
    winner, found = _answer(make, support, everything, asked)
    if winner is None:
        sentence = "There is no answer to this image, so that nothing is known of what would change it."
        return Counterfactual(None, None, None, (), None, None, None, sentence, ())
    margin = _lead(found, winner)
    others = {label: score for label, score in found.items() if label != winner}
    runner_up = max(others, key=others.__getitem__) if others else None
    patients: dict[Hashable, list[int]] = {}
    for row, group in enumerate(support.groups):
        patients.setdefault(group, []).append(row)
    removals = tuple(
        _without(make, support, np.setdiff1d(everything, own), own, asked, winner, margin) for own in patients.values()
    )
    flips = tuple(sorted((r for r in removals if r.label != winner), key=lambda r: (_change(r), r.ids)))
    weighed = [r for r in removals if r.change is not None]
    strongest = max(weighed, key=lambda r: abs(_change(r)), default=None)
    against = min((_change(r) for r in weighed), default=0.0)
    reach = None if margin is None or against >= 0 else margin / -against
    needed = _needed(make, support, patients, dict(zip(patients, removals, strict=True)), asked, winner, most_removed)
    told = winner not in support.classes
    sentence = _sentence(winner, runner_up, margin, flips, strongest, needed, most_removed, by_words=told)
    return Counterfactual(winner, runner_up, margin, flips, strongest, needed, reach, sentence, removals)


def _answer(
    make: Callable[[], Head], support: Support, kept: NDArray[np.intp], asked: NDArray[np.float32]
) -> tuple[Hashable | None, dict[Hashable, float]]:
    """The label by the head fitted to some rows, None for none, and each class's score."""
    head = make()
    head.fit(
        support.vectors[kept],
        [support.labels[i] for i in kept],
        ids=[support.ids[i] for i in kept],
        groups=[support.groups[i] for i in kept],
    )
    label = as_label(head.predict(asked)[0])
    scores = head.scores(asked)[0].tolist()
    return label, dict(zip([as_label(name) for name in head.classes_], scores, strict=True))


def _lead(scores: dict[Hashable, float], winner: Hashable) -> float | None:
    """The winner's score minus the best of the others."""
    others = [score for label, score in scores.items() if label != winner]
    known = winner in scores and others and not np.isnan(scores[winner])
    return scores[winner] - max(others) if known else None


def _without(
    make: Callable[[], Head],
    support: Support,
    kept: NDArray[np.intp],
    own: list[int],
    asked: NDArray[np.float32],
    winner: Hashable,
    margin: float | None,
) -> Removal:
    """The answer with some rows only, told as the removal of the patient of the rows `own`."""
    try:
        label, scores = _answer(make, support, kept, asked)
    except ValueError:  # a head that needs an image, two classes, or two patients of one, cannot be fitted to the rest
        label, scores = None, {}
    left = _lead(scores, winner)
    group = support.groups[own[0]]  # ("patient", the patient), or ("image", the id)
    return Removal(
        patient=group[1] if isinstance(group, tuple) and group[0] == "patient" else None,
        ids=tuple(support.ids[i] for i in own),
        labels=tuple(dict.fromkeys(support.labels[i] for i in own)),
        label=label,
        margin=left,
        change=None if left is None or margin is None else left - margin,
    )


def _change(removal: Removal) -> float:
    """A removal's effect on the margin; a winner that is gone has lost everything."""
    return -np.inf if removal.change is None else removal.change


def _needed(
    make: Callable[[], Head],
    support: Support,
    patients: dict[Hashable, list[int]],
    alone: dict[Hashable, Removal],
    asked: NDArray[np.float32],
    winner: Hashable,
    most: int,
) -> tuple[Removal, ...] | None:
    """Patients of the winner's class to take out, greedily, until the answer flips."""
    if winner not in support.classes:  # it is known by words alone
        return None
    target = support.classes.index(winner)
    left = {group: own for group, own in patients.items() if any(support.targets[i] == target for i in own)}
    kept = np.arange(len(support))
    taken: list[Removal] = []
    step = {group: alone[group] for group in left}
    while len(left) > 1 and len(taken) < most:
        group = min(step, key=lambda group: (step[group].label == winner, _change(step[group]), step[group].ids))
        taken.append(step[group])
        if step[group].label != winner:
            return tuple(taken)
        kept = np.setdiff1d(kept, left.pop(group))
        before = taken[-1].margin
        step = {
            group: _without(make, support, np.setdiff1d(kept, own), own, asked, winner, before)
            for group, own in left.items()
        }
    return None


def _sentence(
    winner: Hashable,
    runner_up: Hashable | None,
    margin: float | None,
    flips: tuple[Removal, ...],
    strongest: Removal | None,
    needed: tuple[Removal, ...] | None,
    most: int,
    *,
    by_words: bool,
) -> str:
    """The findings in plain words."""
    if runner_up is None or margin is None:
        return f"{winner!r} is the only class, so that no other answer is possible."
    start = f"{winner!r} leads {runner_up!r} by {margin:.3f}"
    if flips:
        first = flips[0]
        instead = "there would be no answer" if first.label is None else f"the answer would be {first.label!r}"
        more = f"; {len(flips) - 1} more would change it alone" if len(flips) > 1 else ""
        return f"{start}, and without {_named(first)} {instead}{more}."
    if needed is not None:
        how = (
            f"it takes the removal of {len(needed)} patients of {winner!r} ({', '.join(_named(r) for r in needed)}) "
            f"to change the answer to {needed[-1].label!r}"
        )
    elif by_words:
        how = f"and {winner!r} has none: it is known by words alone"
    else:
        how = f"nor would that of up to {most} of its patients, short of all of them"
    moved = "" if strongest is None else f" ({_named(strongest)} moves the lead most, by {_change(strongest):+.3f})"
    return f"{start}; no single patient's removal would change the answer{moved}, {'but ' if needed else ''}{how}."


def _named(removal: Removal) -> str:
    return f"image {removal.ids[0]!r}" if removal.patient is None else f"patient {removal.patient!r}"
