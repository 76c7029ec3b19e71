"""What shots add to words and words to shots: accuracy at 0, 1, 2, ... shots by words alone, shots alone, and both."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from episodes import PatientBootstrap, patient_bootstrap

from .priors import ClassPrior, WordsAndShotsClassifier
from .prototypes import PrototypeClassifier
from .support import as_vectors, is_missing
from .words_worth import WordsWorth

WORDS, SHOTS, BOTH = "words alone", "shots alone", "both"
"""What is compared."""


@dataclass(frozen=True, eq=False)
class CurvePoint:
    """One number of shots.

    Attributes:
        k_shot: Support patients per class.
        classes: The classes with more patients than that.
        patients: Patients asked about.
        found: Way of deciding -> class-balanced accuracy with its interval over patients; of shots alone there is none
            at 0. All of them answer the same queries of the same episodes.
    """

    k_shot: int
    classes: tuple[str, ...]
    patients: int
    found: Mapping[str, PatientBootstrap]

    def gain(self, over: str) -> tuple[float, float, float] | None:
        """Accuracy of both together minus that of one alone, with its paired interval; None where there is no other."""
        if over not in self.found:
            return None
        both, other = self.found[BOTH], self.found[over]
        low, high = np.quantile(both.samples - other.samples, [0.025, 0.975])
        return both.estimate - other.estimate, float(low), float(high)


def words_curve(
    vectors: ArrayLike,
    labels: Sequence[str],
    groups: Sequence[Hashable],
    priors: Mapping[str, ClassPrior],
    *,
    prior_shots: float | WordsWorth,
    center: ArrayLike,
    shots: Sequence[int] = (0, 1, 2, 5, 10, 20),
    n_query: int = 15,
    n_episodes: int = 200,
    seed: int = 0,
) -> list[CurvePoint]:
    """Measure the curve on classes with words.

    Args:
        vectors: (n, d) images.
        labels: n classes; images of classes without words are left out.
        groups: n patients; one who supports a class of an episode is asked about in none of it.
        priors: Class -> its words, from an alignment that never saw the class.
        prior_shots: What they are worth.
        center: (d,) what the image space is centred on.
        shots: Support patients per class; where fewer than two classes have more patients there is no point.
        n_query: Queries per class, at most.
        n_episodes: Episodes per number of shots.
        seed: Of the episodes.

    Returns:
        A point per number of shots, ascending.
    """
    rows = as_vectors(vectors, "Vectors")
    owned: dict[str, dict[Hashable, list[int]]] = {}
    for i, (label, group) in enumerate(zip(labels, groups, strict=True)):
        if str(label) in priors:
            owner = ("image", i) if is_missing(group) else ("patient", group)
            owned.setdefault(str(label), {}).setdefault(owner, []).append(i)
    points = []
    for k in sorted(shots):
        able = tuple(sorted(name for name, own in owned.items() if len(own) > k))
        if len(able) < 2:
            continue
        told = {name: priors[name] for name in able}
        right: dict[str, list[NDArray[np.bool_]]] = {name: [] for name in (WORDS, SHOTS, BOTH) if k or name != SHOTS}
        asked_class: list[int] = []
        asked_patient: list[Hashable] = []
        by_words = WordsAndShotsClassifier(told, prior_shots=prior_shots, center=center).fit(rows[:0], [])
        for number in range(n_episodes):
            support, queries = _episode(able, owned, k, n_query, np.random.default_rng([seed, k, number]))
            truth = np.array([able[target] for target, _, _ in queries], dtype=object)
            images = rows[[i for _, _, i in queries]]
            answers = {WORDS: by_words.predict(images)}
            if k:
                given = (rows[[i for _, _, i in support]], [able[target] for target, _, _ in support])
                owners = [patient for _, patient, _ in support]
                alone = PrototypeClassifier(center=center).fit(*given, groups=owners)
                both = WordsAndShotsClassifier(told, prior_shots=prior_shots, center=center).fit(*given, groups=owners)
                answers |= {SHOTS: alone.predict(images), BOTH: both.predict(images)}
            else:
                answers[BOTH] = answers[WORDS]
            for name in right:
                right[name].append(answers[name] == truth)
            asked_class += [target for target, _, _ in queries]
            asked_patient += [patient for _, patient, _ in queries]
        first: dict[Hashable, int] = {}
        codes = np.array([first.setdefault(patient, len(first)) for patient in asked_patient])
        found = {
            name: patient_bootstrap(np.concatenate(parts), asked_class, codes, seed=seed)
            for name, parts in right.items()
        }
        points.append(CurvePoint(k, able, len(first), found))
    return points


def _episode(
    classes: Sequence[str],
    owned: Mapping[str, Mapping[Hashable, list[int]]],
    k: int,
    n_query: int,
    rng: np.random.Generator,
) -> tuple[list[tuple[int, Hashable, int]], list[tuple[int, Hashable, int]]]:
    """Return support and queries as (class, patient, image): one image of each of k patients per class."""
    support, queries = [], []
    order = [[list(owned[name])[i] for i in rng.permutation(len(owned[name])).tolist()] for name in classes]
    for target, patients in enumerate(order):
        support += [(target, who, int(rng.choice(owned[classes[target]][who]))) for who in patients[:k]]
    barred = {patient for _, patient, _ in support}
    for target, patients in enumerate(order):
        left = [(target, who, i) for who in patients[k:] if who not in barred for i in owned[classes[target]][who]]
        queries += [left[i] for i in rng.permutation(len(left))[:n_query].tolist()]
    return support, queries
