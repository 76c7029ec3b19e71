"""Episodes in which findings co-occur: every image keeps all its labels, and a shot count is a minimum.

Multi-label episodes for radiographs are those of MetaChest (Montalvo-Lezama, Fuentes-Pineda 2025, arXiv 2509.25590);
here a shot is a patient, no patient is on both sides, and the support holds no image that it could do without.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import EpisodeError, listed
from .label_states import UNKNOWN, label_states
from .labels import Groups, Label, Labels, patient_list
from .sampler import CLASS_DRAWS, SUPPORT_DRAWS, Indices

States = NDArray[np.int8]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class MultiLabelEpisode:
    """One small task: say of each query which of `classes` it shows, from the support alone.

    Attributes:
        classes: The n_way labels, as the caller gave them, in random order.
        support: (s,) rows of the caller's lists, each of another patient.
        support_labels: int8 (s, n_way): 1 present, 0 absent, -1 unknown.
        query: (q,) rows.
        query_labels: int8 (q, n_way).
    """

    classes: tuple[Label, ...]
    support: Indices
    support_labels: States
    query: Indices
    query_labels: States


class MultiLabelEpisodeSampler:
    """Seeded, patient-disjoint episodes over images that may show several findings; iterating twice gives the same.

    **Support.** From the class that fewest patients have to the one that most have, each class takes as many patients
    as it still lacks, uniformly among those who have it and are not in the support yet, and one random image of each
    that shows it. All labels of every image count, so a class may end with more than `k_shot` patients. Then, in
    random order, every image is dropped without which each of its classes still has `k_shot` patients: what is left is
    minimal. Patients are drawn without regard to how many labels they have. Where one class never comes without
    another (in ChestX-ray14 data, "Edema" with "Pneumonia" of this project's sample), minimality makes the images
    of the rarer class the whole support of the commoner one; `k_negative` then gives both something to be told from.

    **Negatives** of an episode are images on which all of its classes are known to be absent. The support gets exactly
    `k_negative` patients of these.

    **Queries** are images of patients who are not in the support: `n_query` positives of each class and `n_query`
    negatives, uniform without replacement, as many as there are; one image may be drawn for several. A class of which
    no query is known to be absent gets one that is. Each class so has at least one positive and one negative query.

    A set of classes that allows no such episode is drawn again. Episode i depends on the seed and i alone.

    Args:
        labels: One collection of names per image: what is named is present, what is not named is **absent**, and an
            image without any name is unlabelled and never drawn; give normal images a name of their own, such as "No
            Finding". Where a list does not mean that, a table (n, n_classes) of 1 present, 0 absent and NaN not
            mentioned, which counts as neither; see `label_states`.
        n_way: Classes per episode, at least 1.
        k_shot: Support patients per class, at least.
        n_query: Query images per class and of none, at most; None asks about every labelled image that is left.
        groups: The patient of each image. None makes every image a patient of its own, and `patients_known` False.
        n_episodes: Length of the sampler.
        seed: Non-negative.
        classes: Classes to draw from; for an array, the names of its columns.
        k_negative: Support patients with none of the classes.

    Attributes:
        classes: The classes that qualify: k_shot + 1 patients have it, k_negative + 1 are known to lack it.
        excluded: The others, each with the reason.
        patients: The number of patients who have each class that qualifies (of images where patients are unknown).
        patients_known: Whether `groups` was given.

    Raises:
        EpisodeError: Fewer than n_way classes qualify; no episode can be drawn; lists differ in length; a patient
            is missing; a setting is out of range.

    Example:
        >>> labels = [("edema", "mass"), ("mass",), ("edema",), ("normal",), ("mass", "edema"), ("normal",)]
        >>> sampler = MultiLabelEpisodeSampler(labels, 2, 1, 2, classes=["edema", "mass"], n_episodes=3)
        >>> len(sampler), sampler[0].classes, sampler[0].support_labels.tolist()
        (3, ('edema', 'mass'), [[1, 1]])

    One image that shows both is a shot of each.
    """

    def __init__(
        self,
        labels: Labels | NDArray[Any],
        n_way: int,
        k_shot: int,
        n_query: int | None,
        *,
        groups: Groups | None = None,
        n_episodes: int = 600,
        seed: int = 0,
        classes: Sequence[Label] | None = None,
        k_negative: int = 0,
    ) -> None:
        """Check the settings, lay out the classes, and draw the first episode so that a failure shows at once."""
        for name, value, least in (
            ("n_way", n_way, 1),
            ("k_shot", k_shot, 1),
            ("n_query", 1 if n_query is None else n_query, 1),
            ("n_episodes", n_episodes, 1),
            ("seed", seed, 0),
            ("k_negative", k_negative, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise EpisodeError(f"{name} must be a whole number of at least {least}; got {value!r}.")
        self.n_way, self.k_shot, self.k_negative = int(n_way), int(k_shot), int(k_negative)
        self.n_query = None if n_query is None else int(n_query)
        self.n_episodes, self.seed = int(n_episodes), int(seed)
        self.names, self.states = label_states(labels, classes)
        self.groups = None if groups is None else patient_list(groups, len(self.states))
        self.patients_known = groups is not None
        self._index_classes()
        if len(self.classes) < self.n_way:
            raise EpisodeError(self._too_few())
        self._draw(0)

    def __len__(self) -> int:
        """Return the number of episodes."""
        return self.n_episodes

    def __iter__(self) -> Iterator[MultiLabelEpisode]:
        """Yield the episodes in order, the same ones every time."""
        return (self._draw(i) for i in range(self.n_episodes))

    def __getitem__(self, i: int) -> MultiLabelEpisode:
        """Return episode i without drawing those before it."""
        if not -self.n_episodes <= i < self.n_episodes:
            raise IndexError(f"There is no episode {i}: the sampler has {self.n_episodes:,}.")
        return self._draw(i % self.n_episodes)

    def __repr__(self) -> str:
        """Describe the sampler in one line."""
        queries = "all queries" if self.n_query is None else f"at most {self.n_query} queries"
        return (
            f"MultiLabelEpisodeSampler({self.n_way}-way {self.k_shot}-shot, {self.k_negative} negative, {queries}, "
            f"{len(self.classes):,} classes, {self.n_episodes:,} episodes, seed {self.seed})"
        )

    @property
    def settings(self) -> dict[str, int | bool | None]:
        """The settings that, with the data, determine every episode."""
        return {
            "n_way": self.n_way,
            "k_shot": self.k_shot,
            "k_negative": self.k_negative,
            "n_query": self.n_query,
            "n_episodes": self.n_episodes,
            "seed": self.seed,
            "patients_known": self.patients_known,
        }

    def of_class(self, name: Label) -> MultiLabelEpisodeSampler:
        """Return a 1-way sampler of the same settings over one class that qualifies here."""
        at = self.classes.index(name)
        alone = copy.copy(self)
        alone.n_way, alone.classes, alone.patients = 1, (name,), {name: self.patients[name]}
        alone._images, alone._first, alone._columns = [self._images[at]], [self._first[at]], self._columns[at : at + 1]
        return alone

    def _index_classes(self) -> None:
        """Lay out the images of every class that qualifies, sorted by patient."""
        codes: dict[Any, int] = {}
        patients = range(len(self.states)) if self.groups is None else self.groups
        self.group_codes = np.array([codes.setdefault(group, len(codes)) for group in patients], dtype=np.intp)
        self._n_patients = len(codes)
        unit = "patients" if self.patients_known else "images"
        self.excluded: dict[Label, str] = {}
        self.patients: dict[Label, int] = {}
        kept: list[int] = []
        self._images: list[Indices] = []  # of each class: rows sorted by patient ...
        self._first: list[Indices] = []  # ... and where each patient's begin
        for column, name in enumerate(self.names):
            rows = np.flatnonzero(self.states[:, column] == 1)
            rows = rows[np.argsort(self.group_codes[rows], kind="stable")]
            first = np.flatnonzero(np.diff(self.group_codes[rows], prepend=-1))
            without = np.unique(self.group_codes[self.states[:, column] == 0]).size
            if first.size <= self.k_shot:
                self.excluded[name] = f"{unit} who have it: {first.size}, needed: {self.k_shot + 1}"
            elif without <= self.k_negative:
                self.excluded[name] = f"{unit} known to lack it: {without}, needed: {self.k_negative + 1}"
            else:
                kept.append(column)
                self.patients[name] = first.size
                self._images.append(rows)
                self._first.append(first)
        self.classes: tuple[Label, ...] = tuple(self.patients)
        self._columns = np.ascontiguousarray(self.states[:, kept].T)  # (n_classes, n)

    def _draw(self, i: int) -> MultiLabelEpisode:
        """Draw episode i: classes, then supports until every class keeps a positive and a negative query."""
        rng = np.random.default_rng([self.seed, i])
        failures: Counter[str] = Counter()
        for _ in range(CLASS_DRAWS):
            chosen = rng.choice(len(self.classes), self.n_way, replace=False)
            states = self._columns[chosen]  # (n_way, n)
            clear = (states == 0).all(axis=0)  # the negatives
            for _ in range(SUPPORT_DRAWS):
                support = self._draw_support(rng, chosen, states, clear)
                found = support if isinstance(support, str) else self._draw_query(rng, chosen, states, clear, support)
                if not isinstance(support, str) and not isinstance(found, str):
                    names = tuple(self.classes[code] for code in chosen)
                    return MultiLabelEpisode(names, support, states[:, support].T, found, states[:, found].T)
                failures[str(found)] += 1
        worst, times = failures.most_common(1)[0]
        raise EpisodeError(
            f"Episode {i} could not be drawn in {CLASS_DRAWS * SUPPORT_DRAWS:,} attempts at {self.n_way} of "
            f"{len(self.classes)} classes: most often ({times:,} times) {worst}; lower n_way, k_shot or k_negative, or "
            f"take other classes."
        )

    def _draw_support(self, rng: np.random.Generator, chosen: Indices, states: States, clear: Mask) -> Indices | str:
        """Return the support's rows in ascending order, or what it lacked."""
        used = np.zeros(self._n_patients, dtype=np.bool_)
        shots = np.zeros(self.n_way, dtype=np.intp)
        taken = np.empty(0, dtype=np.intp)
        for way in np.argsort([self._first[code].size for code in chosen], kind="stable").tolist():
            images, first = self._images[chosen[way]], self._first[chosen[way]]
            free = np.flatnonzero(~used[self.group_codes[images[first]]])
            lacking = max(0, self.k_shot - int(shots[way]))
            if free.size < lacking:
                return f"{self.classes[chosen[way]]!r} was left without {self.k_shot} support patients"
            patients = rng.choice(free, lacking, replace=False)
            sizes = np.diff(first, append=images.size)[patients]
            rows = images[first[patients] + (rng.random(lacking) * sizes).astype(np.intp)]
            used[self.group_codes[rows]] = True
            shots += (states[:, rows] == 1).sum(axis=1)
            taken = np.concatenate([taken, rows])
        kept = np.ones(taken.size, dtype=np.bool_)
        # One pass is enough: counts only fall, so an image that was needed once stays needed.
        for at in rng.permutation(taken.size).tolist():
            own = states[:, taken[at]] == 1
            if (shots[own] > self.k_shot).all():
                kept[at] = False
                shots -= own
        taken = taken[kept]
        if self.k_negative:
            used[:] = False
            used[self.group_codes[taken]] = True
            rows = rng.permutation(np.flatnonzero(clear & ~used[self.group_codes]))
            patients, first = np.unique(self.group_codes[rows], return_index=True)  # a random image of each
            if patients.size < self.k_negative:
                return f"fewer than {self.k_negative} other patients had none of the classes"
            taken = np.concatenate([taken, rows[rng.choice(first, self.k_negative, replace=False)]])
        return np.sort(taken)

    def _draw_query(
        self, rng: np.random.Generator, chosen: Indices, states: States, clear: Mask, support: Indices
    ) -> Indices | str:
        """Return the queries' rows in ascending order, or what they lacked."""
        barred = np.zeros(self._n_patients, dtype=np.bool_)
        barred[self.group_codes[support]] = True
        free = ~barred[self.group_codes]
        asked = free & (states != UNKNOWN).any(axis=0)
        if self.n_query is not None:
            images = [self._images[code] for code in chosen]
            pools = [*(rows[free[rows]] for rows in images), np.flatnonzero(free & clear)]
            drawn = [rng.choice(pool, min(pool.size, self.n_query), replace=False) for pool in pools]
            asked = np.zeros(free.size, dtype=np.bool_)
            asked[np.concatenate(drawn)] = True
        for way, code in enumerate(chosen.tolist()):
            if not (asked & (states[way] == 1)).any():
                return f"{self.classes[code]!r} was left without a positive query of another patient"
            if not (asked & (states[way] == 0)).any():
                absent = np.flatnonzero(free & (states[way] == 0))
                if not absent.size:
                    return f"{self.classes[code]!r} was left without a negative query of another patient"
                asked[rng.choice(absent)] = True
        return np.flatnonzero(asked)

    def _too_few(self) -> str:
        """Say how many classes qualify where n_way are needed."""
        unit = "patients" if self.patients_known else "images"
        found = listed(f"{name!r}: {count}" for name, count in self.patients.items())
        left_out = listed((f"{name!r} ({reason})" for name, reason in self.excluded.items()), limit=3)
        n = len(self.classes)
        tail = f"only {n} {'qualifies' if n == 1 else 'qualify'}: {{{found}}}" if n else "none qualifies"
        return (
            f"{self.n_way}-way {self.k_shot}-shot multi-label episodes need {self.n_way} classes that at least "
            f"{self.k_shot + 1} {unit} have and at least {self.k_negative + 1} are known to lack; {tail}"
            + (f"; left out: {left_out}" if left_out else "")
            + (f"; try n_way={n}." if n else ".")
        )
