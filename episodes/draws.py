"""The images of episodes, drawn one by one, or many at once: each from its own generator, their arithmetic together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Indices: TypeAlias = NDArray[np.intp]

#: Supports tried for one set of classes before other classes are drawn.
SUPPORT_DRAWS = 10
#: Entries (episodes x classes x images of the largest class) that are sorted at once: what a core's cache holds.
ENTRIES = 2**17
#: Entries (episodes x images of the archive) of the tables that mark an episode's images or patients.
MARKS = 2**22
#: Episodes drawn at once at most; more gain nothing.
EPISODES = 64
#: Rows longer than this many times what is wanted of them are partitioned before they are sorted.
PARTITION = 8


@dataclass(frozen=True, slots=True, eq=False)
class Classes:
    """The images of every class that qualifies, laid out one class after another.

    Attributes:
        image: int (m,), images, by class, then by patient.
        start: int (classes + 1,), where each class begins in `image`.
        patient: int (n,), the patient of each image of the archive.
        multilabel: Whether an image stands in several classes.
        by_patient: Whether a shot is a patient with possibly several images; otherwise it is an image.
    """

    image: Indices
    start: Indices
    patient: Indices
    multilabel: bool
    by_patient: bool

    def at_once(self, n_way: int) -> int:
        """How many episodes of `n_way` classes to draw at once."""
        longest = int(np.diff(self.start).max())
        patients = int(self.patient.max()) + 1
        most = min(EPISODES, ENTRIES // (n_way * longest), MARKS // max(patients, len(self.patient)))
        return max(1, most)


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """Several episodes as flat arrays.

    Attributes:
        classes: int (b, n_way), the classes of each episode as positions in `Classes`.
        support: int (b, n_way * k_shot), images, class after class.
        query: int (q,), images, episode after episode, class after class.
        counts: int (b, n_way), queries of each class.
        drawn: bool (b,), whether the episode was found at the first attempt; the rows of the others mean nothing, and
            they have no queries.
    """

    classes: Indices
    support: Indices
    query: Indices
    counts: Indices
    drawn: NDArray[np.bool_]

    def __len__(self) -> int:
        """Return the number of episodes."""
        return len(self.classes)

    def parts(self, n_way: int) -> Iterator[tuple[list[int], tuple[Indices, ...], tuple[Indices, ...]] | None]:
        """Yield each episode's classes, support and query; None for one that was not drawn."""
        end = 0
        per_class = self.support.reshape(len(self), n_way, -1)
        for drawn, codes, support, counts in zip(
            self.drawn.tolist(), self.classes.tolist(), per_class, self.counts.tolist(), strict=True
        ):
            query = []
            for count in counts:
                query.append(self.query[end : end + count])
                end += count
            yield (codes, tuple(support), tuple(query)) if drawn else None

    def rows(self) -> Iterator[Indices]:
        """Yield each episode's images, support before queries, class after class."""
        stop = np.cumsum(self.counts.sum(1)).tolist()
        for support, begin, end in zip(self.support, [0, *stop], stop, strict=False):
            yield np.concatenate((support, self.query[begin:end]))


def draw_images(
    rng: np.random.Generator, chosen: Indices, classes: Classes, k_shot: int, n_query: int
) -> tuple[tuple[Indices, ...], tuple[Indices, ...]] | int:
    """Draw the images of one episode.

    Args:
        rng: Source of all randomness.
        chosen: int (n_way,), the episode's classes.
        classes: What there is to draw.
        k_shot: Support patients per class.
        n_query: Queries per class at most.

    Returns:
        (support, query) of the chosen classes, or the position of the class that made it impossible.
    """
    n_way = len(chosen)
    # Every image of the chosen classes, class after class, patient after patient: all arrays below are (m,).
    lengths = classes.start[chosen + 1] - classes.start[chosen]
    ends = np.cumsum(lengths)
    image = classes.image[np.arange(ends[-1]) + np.repeat(classes.start[chosen] - ends + lengths, lengths)]
    way = np.repeat(np.arange(n_way), lengths)
    if classes.multilabel:
        alone = np.bincount(image, minlength=len(classes.patient))[image] == 1
        image, way = image[alone], way[alone]
    group = classes.patient[image]

    # A shot is one cell: all images of a patient in a class, or a single image.
    if classes.by_patient:
        cell = np.flatnonzero(np.diff(group, prepend=-1) | np.diff(way, prepend=-1))
    else:
        cell = np.arange(image.size)
    cell_way, cell_size = way[cell], np.diff(cell, append=image.size)
    cells = np.bincount(cell_way, minlength=n_way)
    if (cells <= k_shot).any():
        return int(cells.argmin())
    first = np.cumsum(cells) - cells
    shots = (first[:, None] + np.arange(k_shot)).ravel()  # (n_way * k_shot,)

    for _ in range(SUPPORT_DRAWS):
        taken = _shuffled(rng, cell_way)[shots]
        support = cell[taken] + (rng.random(taken.size) * cell_size[taken]).astype(np.intp)
        barred = np.zeros(len(classes.patient), dtype=np.bool_)
        barred[group[support]] = True
        free = np.flatnonzero(~barred[group])
        left = np.bincount(way[free], minlength=n_way)
        if left.all():
            order = image[free[_shuffled(rng, way[free])]]
            begin = (np.cumsum(left) - left).tolist()
            stop = (np.cumsum(left) - left + np.minimum(left, n_query)).tolist()
            drawn = image[support]
            return (
                tuple(drawn[w * k_shot : (w + 1) * k_shot] for w in range(n_way)),
                tuple(order[a:b] for a, b in zip(begin, stop, strict=True)),
            )
    return int(left.argmin())


def draw(seed: int, numbers: Sequence[int], classes: Classes, n_way: int, k_shot: int, n_query: int) -> Draws:
    """Draw episodes by their first attempt: the same numbers from the same generators as one by one.

    Args:
        seed: Of all episodes.
        numbers: Which episodes.
        classes: What there is to draw.
        n_way: Classes per episode.
        k_shot: Support patients per class.
        n_query: Queries per class at most.

    Returns:
        The episodes, some of them possibly not drawn: those whose first classes or first support cannot be used.
    """
    b, n_classes = len(numbers), len(classes.start) - 1
    generators = [np.random.default_rng([seed, i]) for i in numbers]
    chosen = np.array([rng.choice(n_classes, n_way, replace=False) for rng in generators], dtype=np.intp)  # (b, n_way)

    # Every image of every chosen class; a segment is one class of one episode. Arrays are (m,) until cells are formed.
    begin = classes.start[chosen.ravel()]
    lengths = classes.start[chosen.ravel() + 1] - begin  # (b * n_way,)
    ends = np.cumsum(lengths)
    image = classes.image[np.arange(ends[-1]) + np.repeat(begin - ends + lengths, lengths)]
    segment = np.repeat(np.arange(b * n_way), lengths)
    if classes.multilabel:  # an image that carries two of an episode's classes is left out of it
        mark = segment // n_way * len(classes.patient) + image
        alone = np.bincount(mark, minlength=b * len(classes.patient))[mark] == 1
        image, segment = image[alone], segment[alone]
    patient = classes.patient[image]

    # A cell is what one shot is drawn from: all images of a patient in a class, or a single image.
    if classes.by_patient:
        new = np.ones(image.size, dtype=np.bool_)
        np.not_equal(patient[1:], patient[:-1], out=new[1:])
        new[1:] |= segment[1:] != segment[:-1]
        cell = np.flatnonzero(new)
        cell_segment, cell_size = segment[cell], np.diff(cell, append=image.size)
    else:
        cell, cell_segment = np.arange(image.size), segment
        cell_size = np.ones(image.size, dtype=np.intp)
    cells = np.bincount(cell_segment, minlength=b * n_way)  # (b * n_way,)
    drawn: NDArray[np.bool_] = np.all((cells > k_shot).reshape(b, n_way), axis=1)
    nothing = np.empty(0, dtype=np.intp)
    if not drawn.any():
        zeros = np.zeros((b, n_way * k_shot), dtype=np.intp)
        return Draws(chosen, zeros, nothing, np.zeros_like(chosen), drawn)

    # One by one an episode asks for one number per cell, one per shot, one per image that may be a query: at most this.
    of_cells = cells.reshape(b, n_way).sum(1)
    of_images = np.bincount(segment, minlength=b * n_way).reshape(b, n_way).sum(1)
    wanted = of_cells + n_way * k_shot + of_images
    stop = np.cumsum(wanted)
    at = stop - wanted  # (b,), where each episode's numbers begin
    unit = np.empty(stop[-1])
    for rng, low, high in zip(generators, at.tolist(), stop.tolist(), strict=True):
        rng.random(out=unit[low:high])

    first = np.cumsum(cells) - cells
    episode = cell_segment // n_way
    entry = np.arange(cell.size) - (np.cumsum(of_cells) - of_cells)[episode]
    key = cell_segment % n_way + 0.5 * unit[at[episode] + entry]
    # Of an episode without enough cells nothing is used below, but its indices must exist.
    taken = np.minimum(_smallest(key, cell_segment, first, cells, k_shot) + first[:, None], cell.size - 1)
    taken = taken.reshape(b, n_way * k_shot)
    shot = unit[(at + of_cells)[:, None] + np.arange(n_way * k_shot)]
    support = cell[taken] + (shot * cell_size[taken]).astype(np.intp)  # (b, n_way * k_shot), entries of `image`

    # Whoever supports is barred from the queries of the episode.
    barred = np.zeros((b, int(classes.patient.max()) + 1), dtype=np.bool_)
    barred[np.arange(b)[:, None], patient[support]] = True
    free = np.flatnonzero(~barred.ravel()[segment // n_way * barred.shape[1] + patient])
    free = free[drawn[segment[free] // n_way]]
    free_segment = segment[free]
    left = np.bincount(free_segment, minlength=b * n_way)
    drawn &= np.all(left.reshape(b, n_way), axis=1)
    first = np.cumsum(left) - left
    of_free = left.reshape(b, n_way).sum(1)
    episode = free_segment // n_way
    entry = np.arange(free.size) - (np.cumsum(of_free) - of_free)[episode]
    key = free_segment % n_way + 0.5 * unit[(at + of_cells + n_way * k_shot)[episode] + entry]
    order = _smallest(key, free_segment, first, left, n_query) + first[:, None]  # (b * n_way, up to n_query)
    counts = np.where(np.repeat(drawn, n_way), np.minimum(left, n_query), 0)
    kept = order[np.arange(order.shape[1]) < counts[:, None]]  # row after row
    return Draws(chosen, image[support], image[free[kept]], counts.reshape(b, n_way), drawn)


def _shuffled(rng: np.random.Generator, way: Indices) -> Indices:
    """Return a random order of entries that keeps the (ascending) ways together."""
    return np.argsort(way + 0.5 * rng.random(way.size))


def _smallest(key: NDArray[np.float64], segment: Indices, first: Indices, counts: Indices, k: int) -> Indices:
    """Where in each segment its k smallest keys are, in ascending order.

    Args:
        key: (m,), segment after segment.
        segment: (m,), which of s segments each key belongs to.
        first: (s,), where the segments begin.
        counts: (s,), how long they are.
        k: How many are wanted.

    Returns:
        (s, k), or fewer columns where no segment has so many; past the end of a segment the entries mean nothing.
    """
    longest = int(counts.max(initial=0))
    k = min(k, longest)
    if len(counts) * longest > max(ENTRIES, 2 * key.size):  # few long segments among short ones: padding would not pay
        found = np.zeros((len(counts), k), dtype=np.intp)
        for s, (begin, count) in enumerate(zip(first.tolist(), counts.tolist(), strict=True)):
            best = _ascending(key[begin : begin + count][None], k)[0]
            found[s, : best.size] = best
        return found
    padded = np.full((len(counts), longest), np.inf)
    padded.ravel()[segment * longest + np.arange(key.size) - first[segment]] = key
    return _ascending(padded, k)


def _ascending(keys: NDArray[np.float64], k: int) -> Indices:
    """Positions of the k smallest of each row of (s, n), in ascending order."""
    if keys.shape[1] <= PARTITION * k:
        return np.argsort(keys, axis=1)[:, :k]
    near = np.argpartition(keys, k, axis=1)[:, :k]
    return np.take_along_axis(near, np.argsort(np.take_along_axis(keys, near, 1), axis=1), 1)
