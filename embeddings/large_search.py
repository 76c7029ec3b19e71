"""Search of an archive of any size by the cosine: 8-bit codes propose, float64 decides, one version per answer.

Each answer is found inside one reading transaction, so it is of one version and waits for no writer. Candidates are
ranked by their stored float32 vectors, each verified by its checksum, and their number grows until a bound on what
quantising can hide proves that no other row belongs to the answer: always over a selection of rows and over archives of
up to `EXACT_ROWS`. Over a larger archive `RANKED_OF_MANY` are ranked, and the answer says whether it is proven. Where a
limit asks for it, 1-bit sketches propose instead, and nothing is proven above `EXACT_ROWS` rows.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import zlib
from collections.abc import Collection, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import ArchiveCorrupt
from .quantised import Proposal, normalised
from .reading import PARAMETERS, READ_ATTEMPTS
from .sketches import Sketches
from .summation import cosines
from .view import Form, Part, View, Viewer, places_where, row_at, selecting

if TYPE_CHECKING:
    from .reading import ReadableStore

SPARE = 32
"""Candidates ranked beyond k; four times as many where those do not suffice."""

PROPOSED = 1024
"""Candidates looked for at once: to look costs the same for few and for many."""

SKETCHED = 512
"""Candidates that sketches propose and stored vectors rank: more take longer to rank and were not found to matter."""

EXACT_ROWS = 20_000
"""Whole archives up to this many rows are searched until every answer is proven."""

RANKED_OF_MANY = 128
"""Candidates per query ranked over a larger archive: what quantising changes is far less than what they differ by, and
the answer is nearly always the exact one, but proven only where the next candidate is much less similar."""

QUERIES_AT_ONCE = 64
"""Queries searched together; it bounds the memory of a search."""

SMALL_SELECTION = 4096
"""Selections up to this many rows are scored one by one, without codes."""


@dataclass(frozen=True, eq=False)
class Selection:
    """Rows to search among, by id or by metadata, looked up once per version of the archive.

    Attributes:
        ids: The ids, or None.
        where: Metadata key -> value or values, or None.
    """

    ids: frozenset[str] | None = None
    where: Mapping[str, object] | None = None


@dataclass(frozen=True, eq=False)
class Found:
    """Neighbours of m queries.

    Attributes:
        ids: Per query the ids.
        similarities: Per query float64 cosines, descending.
        version: The version searched.
        exact: Whether every answer is proven to be the exact one.
    """

    ids: list[list[str]]
    similarities: list[NDArray[np.float64]]
    version: int
    exact: bool


class LargeSearch:
    """Searches an archive's newest version; safe to use from several threads."""

    def __init__(self, store: ReadableStore, form: Form = "codes") -> None:
        """Take the store, and what proposes candidates; nothing is read before the first search."""
        self.store = store
        self.form: Form = form
        self._viewer = Viewer(store, form)
        self._guard = threading.Lock()
        self._selected: tuple[Selection, View, tuple[Part, ...]] | None = None

    def search(self, queries: NDArray[np.float32], k: int, among: Selection | None = None) -> Found:
        """Find the k rows of largest cosine for each query (m, d).

        Raises:
            ArchiveCorrupt: A row or a segment is not what was written.
        """
        for _ in range(READ_ATTEMPTS):
            try:
                with self.looking() as (connection, view):
                    return self.search_in(connection, view, queries, k, among)
            except FileNotFoundError as error:  # merged away after the transaction began: the next version has it
                missing = error.filename
        raise ArchiveCorrupt(
            f"The segment '{missing}' is missing: run `radshot verify` for the extent of it and restore a backup."
        )

    @contextmanager
    def looking(self) -> Iterator[tuple[sqlite3.Connection, View]]:
        """Yield a reading transaction and the version it sees.

        Raises:
            FileNotFoundError: A segment was merged away after the transaction began: begin another.
        """
        with self.store.viewing() as connection:
            with self._guard:
                view = self._viewer.view(connection)
            yield connection, view

    def search_in(
        self,
        connection: sqlite3.Connection,
        view: View,
        queries: NDArray[np.float32],
        k: int,
        among: Selection | None = None,
    ) -> Found:
        """Search within a block of `looking`."""
        parts = view.parts
        if among is not None:
            with self._guard:
                parts = self._select(connection, view, among)
        count = sum(part.count for part in parts)
        wanted = min(k, count)
        ids: list[list[str]] = []
        similarities: list[NDArray[np.float64]] = []
        exact = True
        for start in range(0, len(queries), QUERIES_AT_ONCE):
            batch = _Batch(self.store, connection, parts, count, queries[start : start + QUERIES_AT_ONCE], wanted)
            for names, scores, proven in batch.answers(selected=among is not None):
                ids.append(names)
                similarities.append(scores)
                exact = exact and proven
        return Found(ids, similarities, view.version, exact)

    def count(self) -> int:
        """Return the number of live rows."""
        with self.store.viewing() as connection:
            return self.store.digest_of(connection)[0]

    def _select(self, connection: sqlite3.Connection, view: View, among: Selection) -> tuple[Part, ...]:
        """Return the view's parts with only the selected rows live."""
        held = self._selected
        if held is not None and held[0] is among and held[1] is view:
            return held[2]
        places = places_where(connection, among.where) if among.where is not None else []
        if among.ids is not None:
            named = places_of(connection, among.ids)
            places = named if among.where is None else list(set(named) & set(places))
        where = np.asarray(places, dtype=np.int64).reshape(-1, 2)
        parts = []
        for part in view.parts:
            chosen = where[where[:, 0] == part.segment.key, 1]
            if len(chosen):
                live = np.zeros(part.segment.rows, dtype=np.bool_)
                live[chosen] = True
                parts.append(Part(part.segment, part.material, live, int(live.sum()), selecting(live)))
        self._selected = (among, view, tuple(parts))
        return self._selected[2]


def places_of(connection: sqlite3.Connection, ids: Collection[str]) -> list[tuple[int, int]]:
    """Return (segment, position) of the rows of some ids; those that are not stored are passed over."""
    places: list[tuple[int, int]] = []
    wanted = sorted(ids)
    for start in range(0, len(wanted), PARAMETERS):
        part = wanted[start : start + PARAMETERS]
        query = f"SELECT segment, position FROM rows WHERE id IN ({','.join('?' * len(part))})"
        places += connection.execute(query, part).fetchall()
    return places


class _Batch:
    """Some queries on their way to their answers."""

    def __init__(
        self,
        store: ReadableStore,
        connection: sqlite3.Connection,
        parts: tuple[Part, ...],
        count: int,
        queries: NDArray[np.float32],
        wanted: int,
    ) -> None:
        self.store = store
        self._connection = connection
        self._parts = parts
        self._count = count
        self._queries = queries
        self._unit = normalised(queries)
        self._wanted = wanted
        self._sketched = any(isinstance(part.material.codes, Sketches) for part in parts)

    def answers(self, *, selected: bool) -> list[tuple[list[str], NDArray[np.float64], bool]]:
        """Return ids, cosines and whether they are proven, per query.

        Args:
            selected: Whether only a selection of the rows is searched. Its answers are always proven, as are those of
                whole archives up to `EXACT_ROWS`; by sketches, only those among up to `EXACT_ROWS` rows.
        """
        done: list[tuple[list[str], NDArray[np.float64], bool]] = [([], np.empty(0), True)] * len(self._queries)
        must = selected or self._count <= EXACT_ROWS
        todo = np.arange(len(self._queries))
        few = SMALL_SELECTION if selected else 0
        width = self._wanted + SPARE if not must else max(self._wanted + SPARE, PROPOSED)
        width = max(width, RANKED_OF_MANY)
        if self._sketched:  # no number of candidates proves anything
            must, few, width = False, EXACT_ROWS, max(self._wanted + SPARE, SKETCHED)
        while len(todo) and self._wanted:
            if 2 * width >= self._count or self._count <= few:
                for query in todo.tolist():
                    done[query] = (*self._everything(query), True)
                break
            which, places, reach = self._propose(todo, width)
            later = []
            for row, query in enumerate(todo.tolist()):
                names, scores, proven = self._ranked(query, which[row], places[row], reach[row], width)
                if proven or not must:
                    done[query] = names, scores, proven
                else:
                    later.append(query)
            todo = np.asarray(later, dtype=np.int64)
            width *= 4
        return done

    def _propose(
        self, todo: NDArray[np.int64], width: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float64]]:
        """Return part and position (m, width) of the candidates, best first, and what no row behind them can exceed."""
        queries = self._unit[todo]
        found, values, slack = [], [], np.zeros(len(todo))
        jobs = [(number, shard) for number, part in enumerate(self._parts) for shard in range(part.material.shards)]

        def propose(job: tuple[int, int]) -> Proposal:
            return self._parts[job[0]].propose(queries, width, job[1])

        # FAISS spreads queries over the processors; where there are too few of those, the shards are spread instead.
        alone = len(todo) >= (os.cpu_count() or 1) or len(jobs) == 1
        for places, scores, loss in map(propose, jobs) if alone else _threads(os.getpid()).map(propose, jobs):
            found.append(places)
            values.append(np.where(places < 0, -np.inf, scores))
            slack = np.maximum(slack, loss)
        which = np.concatenate(
            [np.full(places.shape, number) for (number, _), places in zip(jobs, found, strict=True)], axis=1
        )
        places, scores = np.concatenate(found, axis=1), np.concatenate(values, axis=1)
        if scores.shape[1] > width:
            best = np.argpartition(-scores, width - 1, axis=1)[:, :width]
            which, places, scores = (np.take_along_axis(array, best, axis=1) for array in (which, places, scores))
        order = np.argsort(-scores, axis=1, kind="stable")
        which, places, scores = (np.take_along_axis(array, order, axis=1) for array in (which, places, scores))
        return which, places, scores + slack[:, None]

    def _ranked(
        self, query: int, which: NDArray[np.int64], places: NDArray[np.int64], reach: NDArray[np.float64], most: int
    ) -> tuple[list[str], NDArray[np.float64], bool]:
        """Rank as many of the candidates as it takes to prove the answer, at most so many; say whether it is proven."""
        done, width = 0, self._wanted + SPARE
        scores = np.empty(0)
        while True:
            width = min(width, most, len(places))
            scores = np.concatenate([scores, self._scores(query, which[done:width], places[done:width])])
            last = np.partition(scores, -self._wanted)[-self._wanted] if len(scores) >= self._wanted else -np.inf
            proven = bool(last > reach[width - 1])
            if proven or width >= min(most, len(places)):
                names, best = self._answer(scores, which[:width], places[:width])
                return names, best, proven and len(best) == self._wanted
            done, width = width, 4 * width

    def _everything(self, query: int) -> tuple[list[str], NDArray[np.float64]]:
        """Score every row there is."""
        which, places = [], []
        for number, part in enumerate(self._parts):
            live = np.arange(part.segment.rows) if part.live is None else np.flatnonzero(part.live)
            which.append(np.full(len(live), number))
            places.append(live)
        return self._best(query, np.concatenate(which), np.concatenate(places))

    def _best(
        self, query: int, which: NDArray[np.int64], places: NDArray[np.int64]
    ) -> tuple[list[str], NDArray[np.float64]]:
        """Rank candidates in float64; equal cosines go by id."""
        return self._answer(self._scores(query, which, places), which, places)

    def _scores(self, query: int, which: NDArray[np.int64], places: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the cosines of candidates, -inf where there is none."""
        scores = np.full(len(places), -np.inf)
        for number, part in enumerate(self._parts):
            mine = np.flatnonzero((which == number) & (places >= 0))
            for start in range(0, len(mine), SMALL_SELECTION):
                some = mine[start : start + SMALL_SELECTION]
                scores[some] = cosines(self._queries[query], self._verified(part, places[some]))
        return scores

    def _answer(
        self, scores: NDArray[np.float64], which: NDArray[np.int64], places: NDArray[np.int64]
    ) -> tuple[list[str], NDArray[np.float64]]:
        """Return ids and cosines of the best candidates."""
        wanted = min(self._wanted, int((places >= 0).sum()))
        if wanted == 0:
            return [], np.empty(0)
        limit = np.partition(scores, len(scores) - wanted)[len(scores) - wanted]
        rows = []
        for spot in np.flatnonzero(scores >= limit):
            part = self._parts[which[spot]]
            name, checksum, _ = row_at(self.store, self._connection, part.segment, places[spot])
            if part.material.codes is not None and int(part.material.codes.checksums[places[spot]]) != checksum:
                raise self.store.damaged(f"the vector of row {name!r} is not the one it was stored with")
            rows.append((-scores[spot], name))
        rows.sort()
        return [name for _, name in rows[:wanted]], np.asarray([-score for score, _ in rows[:wanted]])

    def _verified(self, part: Part, places: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return stored rows (c, d), each checked against the checksum taken when its segment was."""
        rows: NDArray[np.float32] = np.ascontiguousarray(part.material.rows[places])
        codes = part.material.codes
        if codes is not None:
            for row, place in zip(rows, places, strict=True):
                if zlib.crc32(row.data) != codes.checksums[place]:
                    name = part.segment.name
                    raise ArchiveCorrupt(
                        f"The segment '{name}' of '{self.store.root}' changed after it was written: run `radshot "
                        "verify` for the extent of it and restore a backup."
                    )
        return rows


@cache
def _threads(process: int) -> ThreadPoolExecutor:
    """Return the threads of a process that search shards, made by the first search that needs them."""
    return ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="radshot-search")
