"""How many images words are worth: learnt on seen classes, then fitted to each set by how they foretell its shots."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .support import as_vectors, check_center, is_missing, prepare

if TYPE_CHECKING:
    from .priors import ClassPrior

FURTHEST = 4.0
"""A set's own shots make its words worth at most so many times more, or less, than what was learnt on seen classes."""

CANDIDATES = tuple(float(2.0**exponent) for exponent in np.arange(-2, 6.5, 0.5))
"""Worths of words, in images, that are tried."""

SHOTS = (1, 2, 5, 10, 20)
"""Shots at which they are tried."""


@dataclass(frozen=True)
class WordsWorth:
    """How many images words are worth, and what it takes to see that a set's words are worth more or less than usual.

    Attributes:
        shots: The number that did best on seen classes.
        spread: Variance of a patient within its class, per direction in which words of seen classes differ.
        typical: What `worth_by_shots` says of the words of seen classes, with the shots that tried them.
    """

    shots: float
    spread: float
    typical: float

    def for_set(self, words: NDArray[np.float64], means: NDArray[np.float64], counts: NDArray[np.intp]) -> float:
        """Return the worth of a set's words: `shots`, times how much more or less than usual its own shots say.

        Args:
            words: (c, d) unit directions of the classes that have words and shots.
            means: (c, d) means of their shots.
            counts: (c,) patients of each.
        """
        if len(words) < 2 or not (self.spread > 0 and self.typical > 0):
            return self.shots
        ratio = worth_by_shots(words, means, counts, self.spread) / self.typical
        return self.shots * float(np.clip(ratio, 1 / FURTHEST, FURTHEST))


def worth_by_shots(
    words: NDArray[np.float64], means: NDArray[np.float64], counts: NDArray[np.intp], spread: float
) -> float:
    """Estimate how many images words are worth from how well they foretell the shots: empirical Bayes.

    In the directions in which the words of the classes differ, the means of the shots are b times the words plus an
    error, whose variance is that of the words plus spread / patients. The worth is spread over the words' own part.

    Args:
        words: (c, d) unit directions.
        means: (c, d) means of the shots.
        counts: (c,) patients of each class.
        spread: Variance of a patient within its class per direction.

    Returns:
        Between 1/64 and 64 images.
    """
    differences = words - words.mean(axis=0)
    _, sizes, directions = np.linalg.svd(differences, full_matrices=False)
    directions = directions[: min(len(words) - 1, int((sizes > 1e-9).sum()))]
    if not len(directions):
        return 1 / 64
    told, seen = differences @ directions.T, (means - means.mean(axis=0)) @ directions.T  # (c, c - 1)
    slope = max(float((told * seen).sum() / (told * told).sum()), 0.0)
    error = float(((seen - slope * told) ** 2).sum()) / ((len(words) - 1) * len(directions))
    own = error - spread * float((1 / counts).mean())
    return float(np.clip(spread / max(own, spread / 64), 1 / 64, 64.0))


def learn_prior_shots(
    vectors: ArrayLike,
    labels: Sequence[str],
    priors: Mapping[str, ClassPrior],
    *,
    center: ArrayLike | None = None,
    groups: Sequence[Hashable | None] | None = None,
    shots: Sequence[int] = SHOTS,
    n_way: int = 5,
    n_episodes: int = 100,
    seed: int = 0,
) -> WordsWorth:
    """Learn how many images words are worth: the number with which words and shots together answer best.

    The priors must come from an alignment that never saw these classes (fit it without them), or words look better
    than they will be for new ones.

    Args:
        vectors: (n, d) images of seen classes.
        labels: n classes; those with words take part.
        priors: Class -> its words, from an alignment that did not see the class.
        center: (d,) what the image space is centred on.
        groups: n patients; None, or an unknown one, counts images.
        shots: Numbers of support patients it is tried with; those too many for the classes are left out.
        n_way: Classes that compete in an episode, at most: among many the words' finest distinctions would decide.
        n_episodes: Draws per number of shots.
        seed: Of the draws.

    Returns:
        The worth, with what it takes to fit it to each set.

    Raises:
        ValueError: Fewer than two classes have both words and three patients, or more patients than any of the shots.
    """
    rows = as_vectors(vectors, "Vectors")
    prepared = prepare(rows, "cosine", check_center(center, rows.shape[1]))
    owners: dict[str, dict[Hashable, list[int]]] = {}
    for i, label in enumerate(labels):
        if str(label) in priors:
            patient = ("image", i) if groups is None or is_missing(groups[i]) else ("patient", groups[i])
            owners.setdefault(str(label), {}).setdefault(patient, []).append(i)
    names = sorted(name for name, own in owners.items() if len(own) >= 3)
    if len(names) < 2:
        raise ValueError(f"Learning prior_shots takes two classes with words and three patients; got {len(names)}.")
    words = np.stack([priors[name].mean for name in names])  # (c, d)
    rng = np.random.default_rng(seed)
    right, asked, said = np.zeros(len(CANDIDATES)), 0, []
    spread = _spread(prepared, owners, words, names)
    for k in shots:
        able = [name for name in names if len(owners[name]) > k]
        if len(able) < 2:
            continue
        for _ in range(n_episodes):
            chosen = [able[i] for i in np.sort(rng.permutation(len(able))[:n_way]).tolist()]
            picked = [list(owners[name].values()) for name in chosen]
            orders = [rng.permutation(len(own)) for own in picked]
            means = np.stack(
                [
                    np.mean([prepared[rng.choice(own[j])] for j in order[:k]], axis=0)
                    for own, order in zip(picked, orders, strict=True)
                ]
            )
            asked_of = [list(owners[name]) for name in chosen]
            barred = {who[j] for who, order in zip(asked_of, orders, strict=True) for j in order[:k].tolist()}
            queries = [
                prepared[[int(rng.choice(own[j])) for j in order[k:] if who[j] not in barred][:10]]
                for own, who, order in zip(picked, asked_of, orders, strict=True)
            ]
            if not all(len(part) for part in queries):  # every further patient of a class supports another
                continue
            truth = np.repeat(np.arange(len(chosen)), [len(part) for part in queries])
            weight = np.concatenate([np.full(len(part), 1 / len(part)) for part in queries])
            among = words[[names.index(name) for name in chosen]]
            said.append(worth_by_shots(among, means, np.full(len(chosen), k), spread))
            for place, worth in enumerate(CANDIDATES):
                mixed = worth * among + k * means
                mixed /= np.maximum(np.linalg.norm(mixed, axis=1, keepdims=True), 1e-12)
                answers = (np.concatenate(queries) @ mixed.T).argmax(axis=1)
                right[place] += float((weight * (answers == truth)).sum()) / len(chosen)
            asked += 1
    if not asked:
        raise ValueError(
            f"Learning prior_shots with {min(shots, default=0)} shots takes two classes of more patients; the largest "
            f"has {max(len(owners[name]) for name in names)}."
        )
    best = right / asked
    near = np.flatnonzero(best >= best.max() - 0.001)  # a plateau's middle is safer than its highest point
    return WordsWorth(CANDIDATES[int(near[len(near) // 2])], spread, float(np.median(said)))


def _spread(
    rows: NDArray[np.float64],
    owners: Mapping[str, Mapping[Hashable, list[int]]],
    words: NDArray[np.float64],
    names: Sequence[str],
) -> float:
    """Variance of an image within its class, per direction in which the words of the classes differ."""
    _, _, directions = np.linalg.svd(words - words.mean(axis=0), full_matrices=False)
    along = rows @ directions[: len(names) - 1].T
    parts = []
    for name in names:
        own = along[[i for members in owners[name].values() for i in members]]
        parts.append(((own - own.mean(axis=0)) ** 2).sum(axis=0) / max(len(own) - 1, 1))
    return float(np.mean(parts))
