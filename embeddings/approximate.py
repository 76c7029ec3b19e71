"""Shortcut: an inverted file over an archive's rows, for who states a limit that searching every row does not keep.

Rows are put into lists by their nearest of some thousand centres, and a query looks into the lists of its nearest
centres only (Sivic & Zisserman, ICCV 2003, doi 10.1109/ICCV.2003.1238663; FAISS, IndexIVFScalarQuantizer). What it
proposes is ranked by the stored vectors like any other proposal; what it misses is measured before it is used and said.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .quantised import ROWS_AT_ONCE, import_faiss, normalised

if TYPE_CHECKING:
    from .view import Part, View

TRAINING_PER_LIST = 40
"""Rows the centres are learnt from, per list; FAISS asks for 39 or more."""

MOST_LISTS = 16_384

ROW_BYTES = 8
"""What an inverted file keeps per row beside its code: its number."""

RANKED = 96
"""Candidates ranked by their stored vectors beyond k."""

CODES = {"SQ8": 1.0, "SQ6": 0.75, "SQ4": 0.5}
"""How a row is kept in its list, finest first, and the bytes per number that takes."""


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """What a search may cost.

    Attributes:
        milliseconds: Of one query, the median; None for any.
        memory: Bytes that are held for searching; None for any.

    Raises:
        ValueError: A limit is not above 0.
    """

    milliseconds: float | None = None
    memory: int | None = None

    def __post_init__(self) -> None:
        """Check both."""
        for name in ("milliseconds", "memory"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(f"The limit {name} must be above 0; got {value}.")


def shortcut_bytes(rows: int, dim: int, code: str) -> int:
    """Return about what an inverted file of so many rows takes."""
    return int(rows * (dim * CODES[code] + ROW_BYTES)) + 4 * dim * lists_for(rows)


def lists_for(rows: int) -> int:
    """Return the number of lists for so many rows: about four times the square root, a power of two."""
    return int(min(MOST_LISTS, max(1, 2 ** round(math.log2(4 * math.sqrt(max(rows, 1)))))))


class Shortcut:
    """An inverted file over the rows a view had when it was made.

    Attributes:
        covered: Names of the segments whose rows it holds; rows of others are searched beside it.
        probes: Lists looked into per query.
    """

    def __init__(self, view: View, dim: int, code: str, *, seed: int = 0) -> None:
        """Learn the centres from a sample of the rows, and put every row into its list.

        Args:
            view: The version to cover.
            dim: Numbers per vector.
            code: One of `CODES`.
            seed: Of the sample.
        """
        faiss = import_faiss()
        self.probes = 1
        self._names = [part.segment.name for part in view.parts]
        self.covered = frozenset(self._names)
        lists = lists_for(view.count)
        self._index: Any = faiss.index_factory(dim, f"IVF{lists},{code}", faiss.METRIC_INNER_PRODUCT)
        self._index.cp.min_points_per_centroid = 1  # small archives: FAISS else prints a warning
        self._index.train(_sample(view, min(view.count, TRAINING_PER_LIST * lists), seed))
        which, places = [], []
        for number, part in enumerate(view.parts):
            live = _live(part)
            for start in range(0, len(live), ROWS_AT_ONCE):
                self._index.add(
                    normalised(np.ascontiguousarray(part.material.rows[live[start : start + ROWS_AT_ONCE]]))
                )
            which.append(np.full(len(live), number, dtype=np.int32))
            places.append(live.astype(np.int64))
        self._which, self._places = np.concatenate(which), np.concatenate(places)
        self.lists = lists

    @property
    def rows(self) -> int:
        """How many rows it holds."""
        return len(self._which)

    def propose(
        self, queries: NDArray[np.float32], width: int, parts: tuple[Part, ...]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Find rows that are probably the nearest ones.

        Args:
            queries: Normalised rows (m, d).
            width: Rows wanted per query.
            parts: The parts of the version that is searched; rows that are gone from it are left out.

        Returns:
            Number of the part, position in it (-1 for none), and approximate cosine, each (m, width).
        """
        faiss = import_faiss()
        parameters = faiss.SearchParametersIVF(nprobe=self.probes)
        values, found = self._index.search(queries, width, params=parameters)
        now = {part.segment.name: number for number, part in enumerate(parts)}
        number_of = np.asarray([now.get(name, -1) for name in self._names])
        which = np.where(found >= 0, number_of[self._which[found]], -1)
        places = np.where(which >= 0, self._places[found], -1)
        for number, part in enumerate(parts):
            if part.live is not None:
                mine = which == number
                places[mine] = np.where(part.live[places[mine]], places[mine], -1)
        scores = np.where(places >= 0, values.astype(np.float64), -np.inf)
        return np.maximum(which, 0), places, scores


def _live(part: Part) -> NDArray[np.int64]:
    return np.arange(part.segment.rows) if part.live is None else np.flatnonzero(part.live)


def _sample(view: View, count: int, seed: int) -> NDArray[np.float32]:
    """Return normalised rows drawn from all parts."""
    rng = np.random.default_rng(seed)
    rows = []
    for part in view.parts:
        live = _live(part)
        share = min(len(live), math.ceil(count * len(live) / view.count))
        chosen = np.sort(rng.choice(live, share, replace=False))
        rows.append(normalised(np.ascontiguousarray(part.material.rows[chosen])))
    return np.concatenate(rows)
