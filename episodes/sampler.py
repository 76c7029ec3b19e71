"""Episodes (Vinyals et al. 2016, arXiv 1606.04080) in which a shot is a patient and no patient is on both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .draws import SUPPORT_DRAWS as SUPPORT_DRAWS
from .draws import Classes, Draws, draw, draw_images
from .draws import Indices as Indices
from .errors import EpisodeError, listed
from .labels import Groups, Label, Labels, in_order, label_sets, patient_list

CLASS_DRAWS = 200
"""Sets of classes tried for one episode before it is given up."""


@dataclass(frozen=True, slots=True, eq=False)
class Episode:
    """One small task: decide which of `classes` each query shows, from the support alone.

    Attributes:
        classes: The n_way labels, as the caller gave them, in random order.
        support: n_way index arrays into the caller's lists, each k_shot long.
        query: n_way index arrays into the caller's lists, each 1 to n_query long.
    """

    classes: tuple[Label, ...]
    support: tuple[Indices, ...]
    query: tuple[Indices, ...]


class EpisodeSampler:
    """Seeded, patient-disjoint few-shot episodes over labelled images; iterating twice gives the same ones.

    Each class of an episode gets `k_shot` distinct patients, drawn uniformly among those who have it, and one random
    image of each. Whoever supports any class is barred from all queries of the episode; up to `n_query` of the
    images that remain are drawn per class without replacement. One patient may support two classes (with two
    different images): nothing of a query leaks by that, and forbidding it would favour patients with a single class.

    Images may carry several labels. An image that carries two of an episode's classes is left out of that episode. The
    classes of an episode are drawn uniformly; a set in which a class keeps fewer than k_shot patients or no query
    is drawn again, so over multi-label data the draw is uniform over the sets that are possible, and a class that
    always comes with another (in ChestX-ray14 data, "Edema" with "Pneumonia") never meets it.

    Episode i depends on the seed and i alone: `sampler[i]` is random access; iterating and `block` draw many at once.

    Args:
        labels: One label per image, or one collection (tuple, list, set) of labels per image. None or an
            empty collection is an image without a label, which is never drawn.
        n_way: Classes per episode, at least 2.
        k_shot: Support patients per class (images with `shot="image"`).
        n_query: Query images per class at most.
        groups: The patient of each image. None makes every image a patient of its own, and `patients_known` False.
        n_episodes: Length of the sampler.
        seed: Non-negative.
        shot: "patient", or "image" to draw k_shot images per class whoever they are of; the ban on queries holds there
            too. A class then qualifies if leaving out its smallest patient leaves k_shot images.

    Attributes:
        classes: The classes that qualify (k_shot + 1 patients), sorted where they can be, else in order of appearance.
        excluded: The others, each with its number of patients (of images where patients are unknown).
        patients: The number of patients of each class that qualifies.
        patients_known: Whether `groups` was given.

    Raises:
        EpisodeError: Fewer than n_way classes qualify; no episode can be drawn; lists differ in length; a patient
            is missing; a setting is out of range.

    Example:
        >>> sampler = EpisodeSampler(["a", "a", "b", "b"], 2, 1, 1, groups=[1, 2, 3, 4], n_episodes=3)
        >>> len(sampler), sampler.classes, [len(rows) for rows in sampler[0].support]
        (3, ('a', 'b'), [1, 1])
    """

    def __init__(
        self,
        labels: Labels,
        n_way: int,
        k_shot: int,
        n_query: int,
        *,
        groups: Groups | None = None,
        n_episodes: int = 600,
        seed: int = 0,
        shot: Literal["patient", "image"] = "patient",
    ) -> None:
        """Check the settings, lay out the classes, and draw the first episode so that a failure shows at once."""
        for name, value, least in (
            ("n_way", n_way, 2),
            ("k_shot", k_shot, 1),
            ("n_query", n_query, 1),
            ("n_episodes", n_episodes, 1),
            ("seed", seed, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
                raise EpisodeError(f"{name} must be a whole number of at least {least}; got {value!r}.")
        if shot not in ("patient", "image"):
            raise EpisodeError(f'shot must be "patient" or "image"; got {shot!r}.')
        self.n_way, self.k_shot, self.n_query = int(n_way), int(k_shot), int(n_query)
        self.n_episodes, self.seed, self.shot = int(n_episodes), int(seed), shot
        self.labels = label_sets(labels)
        self.groups = None if groups is None else patient_list(groups, len(self.labels))
        self.patients_known = groups is not None
        self._index_classes()
        if len(self.classes) < self.n_way:
            raise EpisodeError(self._too_few())
        self._draw(0)

    def __len__(self) -> int:
        """Return the number of episodes."""
        return self.n_episodes

    def __iter__(self) -> Iterator[Episode]:
        """Yield the episodes in order, the same ones every time."""
        start, at_once = 0, self._layout.at_once(self.n_way)
        while start < self.n_episodes:
            # The first few may be all that is wanted, so the number drawn ahead grows.
            stop = min(self.n_episodes, start + min(at_once, max(1, start)))
            draws = self._attempt(start, stop)
            for number, parts in enumerate(draws.parts(self.n_way), start):
                yield self._draw(number) if parts is None else self._named(*parts)
            start = stop

    def __getitem__(self, i: int) -> Episode:
        """Return episode i without drawing those before it."""
        if not -self.n_episodes <= i < self.n_episodes:
            raise IndexError(f"There is no episode {i}: the sampler has {self.n_episodes:,}.")
        return self._draw(i % self.n_episodes)

    def block(self, start: int, stop: int) -> tuple[list[Episode], list[Indices]]:
        """Draw episodes `start` to `stop` - 1 at once: the ones of random access, in a third of the time.

        Args:
            start: The first episode.
            stop: One past the last.

        Returns:
            The episodes, and for each its images in one array: support before queries, class after class.

        Raises:
            IndexError: There are no such episodes.
            EpisodeError: One of them cannot be drawn.
        """
        if not 0 <= start <= stop <= self.n_episodes:
            raise IndexError(f"There are no episodes {start} to {stop - 1}: the sampler has {self.n_episodes:,}.")
        episodes: list[Episode] = []
        rows: list[Indices] = []
        at_once = self._layout.at_once(self.n_way)
        for first in range(start, stop, at_once):
            draws = self._attempt(first, min(stop, first + at_once))
            for number, (parts, images) in enumerate(zip(draws.parts(self.n_way), draws.rows(), strict=True), first):
                episode = self._draw(number) if parts is None else self._named(*parts)
                episodes.append(episode)
                rows.append(np.concatenate((*episode.support, *episode.query)) if parts is None else images)
        return episodes, rows

    @property
    def drawable(self) -> Indices:
        """The images some episode may draw, ascending."""
        return np.unique(self._layout.image)

    def __repr__(self) -> str:
        """Describe the sampler in one line."""
        return (
            f"EpisodeSampler({self.n_way}-way {self.k_shot}-shot, at most {self.n_query} queries, "
            f"{len(self.classes):,} classes, {self.n_episodes:,} episodes, seed {self.seed})"
        )

    @property
    def settings(self) -> dict[str, int | str | bool]:
        """The settings that, with the data, determine every episode."""
        return {
            "n_way": self.n_way,
            "k_shot": self.k_shot,
            "n_query": self.n_query,
            "n_episodes": self.n_episodes,
            "seed": self.seed,
            "shot": self.shot,
            "patients_known": self.patients_known,
        }

    def _index_classes(self) -> None:
        """Lay out every (class, image) pair that qualifies, sorted by class, patient, image."""
        codes: dict[Hashable, int] = {}
        if self.groups is None:
            patient = np.arange(len(self.labels), dtype=np.intp)
        else:
            patient = np.array([codes.setdefault(group, len(codes)) for group in self.groups], dtype=np.intp)
        self.group_codes = patient
        rows: dict[Label, list[int]] = {}
        for row, names in enumerate(self.labels):
            for name in names:
                rows.setdefault(name, []).append(row)
        qualifying: dict[Label, int] = {}
        self.excluded: dict[Label, int] = {}
        images: list[Indices] = []
        for name in in_order(rows):
            found = np.array(rows[name], dtype=np.intp)
            found = found[np.argsort(patient[found], kind="stable")]
            sizes = np.unique(patient[found], return_counts=True)[1]
            enough = sizes.size > self.k_shot if self.shot == "patient" else found.size - sizes.min() >= self.k_shot
            if enough and sizes.size > 1:
                qualifying[name] = int(sizes.size)
                images.append(found)
            else:
                self.excluded[name] = int(sizes.size)
        self.patients = qualifying
        self.classes: tuple[Label, ...] = tuple(qualifying)
        image = np.concatenate(images) if images else np.empty(0, dtype=np.intp)
        self._layout = Classes(
            image=image,
            start=np.cumsum([0, *(found.size for found in images)], dtype=np.intp),
            patient=patient,
            # A label that does not qualify is no class of any episode, so only qualifying ones can collide.
            multilabel=np.unique(image).size < image.size,
            by_patient=self.shot == "patient" and self.patients_known,
        )

    def _attempt(self, start: int, stop: int) -> Draws:
        """Draw episodes `start` to `stop` - 1 at once; those that need a second attempt are left to `_draw`."""
        return draw(self.seed, range(start, stop), self._layout, self.n_way, self.k_shot, self.n_query)

    def _named(self, codes: list[int], support: tuple[Indices, ...], query: tuple[Indices, ...]) -> Episode:
        return Episode(tuple([self.classes[code] for code in codes]), support, query)

    def _draw(self, i: int) -> Episode:
        """Draw episode i: classes, then supports until every class keeps a query."""
        rng = np.random.default_rng([self.seed, i])
        failures: Counter[Label] = Counter()
        for _ in range(CLASS_DRAWS):
            chosen = rng.choice(len(self.classes), self.n_way, replace=False)
            found = draw_images(rng, chosen, self._layout, self.k_shot, self.n_query)
            if not isinstance(found, int):
                names = self.classes
                return Episode(tuple(names[code] for code in chosen), *found)
            failures[self.classes[chosen[found]]] += 1
        worst, times = failures.most_common(1)[0]
        reason = "sharing images or patients with the other classes" if self._layout.multilabel else "sharing patients"
        raise EpisodeError(
            f"Episode {i} could not be drawn in {CLASS_DRAWS} attempts at {self.n_way} of {len(self.classes)} classes: "
            f"{worst!r} was most often ({times} times) left without {self.k_shot} support patients and a query by "
            f"{reason}; lower n_way or k_shot, or take fewer labels."
        )

    def _too_few(self) -> str:
        """Say how many classes qualify where n_way are needed."""
        what = "patients" if self.patients_known else "images"
        needs = f"{self.k_shot + 1} {what}"
        if self.shot == "image" and self.patients_known:
            needs = f"{self.k_shot} images beside another patient's"
        found = listed(f"{name!r}: {count}" for name, count in self.patients.items())
        n = len(self.classes)
        tail = f"only {n} {'qualifies' if n == 1 else 'qualify'}: {{{found}}}" if n else "none qualifies"
        tail += f"; try n_way={n}." if n > 1 else "."
        if not self.classes and self.excluded:
            largest = max(self.excluded, key=self.excluded.__getitem__)
            tail = f"none qualifies: the largest is {largest!r} with {self.excluded[largest]}."
        return (
            f"{self.n_way}-way {self.k_shot}-shot with {self.n_query} queries needs {self.n_way} classes "
            f"of at least {needs}; {tail}"
        )
