"""Search within limits: the user states memory and milliseconds, the ways of searching are measured, one is chosen."""

from __future__ import annotations

import math
import re
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import ArchiveCorrupt
from .large_search import LargeSearch
from .quantised import ROWS_AT_ONCE, import_faiss, normalised
from .reading import READ_ATTEMPTS
from .sketches import bytes_per_row
from .view import QUANTISED_ROWS, Form, View, row_at

if TYPE_CHECKING:
    import sqlite3

    from .reading import ReadableStore

WAYS: dict[Form, str] = {"codes": "8-bit codes", "sketches": "1-bit sketches"}
"""Ways of searching, the exact one first."""

NEIGHBOURS = 10
"""Neighbours looked for where recall and time are measured."""

PROBES = 32
"""Rows drawn as queries to measure with."""

NOISE = 0.05
"""Length of the noise added to such rows, as a share of their own, so that they are not their own answer only."""

_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 2**10, "mib": 2**20, "gib": 2**30}


@dataclass(frozen=True, slots=True)
class SearchLimits:
    """What a search may cost, and what it must find.

    Attributes:
        milliseconds: Of one query, the median; None for any.
        memory: Bytes, or text such as "1 GB", that are held for searching; None for any. The vectors' files are mapped
            besides: the system gives up their pages when it needs the room.
        recall: Share of the true ten nearest rows that must be found where not every row is searched exactly.

    Raises:
        ValueError: A limit is none.
    """

    milliseconds: float | None = None
    memory: int | str | None = None
    recall: float = 0.99

    def __post_init__(self) -> None:
        """Check them."""
        if self.milliseconds is not None and not (self.milliseconds > 0 and math.isfinite(self.milliseconds)):
            raise ValueError(f"The limit milliseconds must be above 0; got {self.milliseconds}.")
        if not 0 < self.recall <= 1:
            raise ValueError(f"The limit recall must be above 0 and at most 1; got {self.recall}.")
        if self.memory is not None:
            self.bytes()

    def bytes(self) -> float:
        """Return the limit of memory in bytes, infinite where there is none.

        Raises:
            ValueError: It is no amount of memory.
        """
        if self.memory is None:
            return math.inf
        found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", str(self.memory).strip().lower())
        amount = float(found[1]) * _UNITS.get(found[2] or "b", 0) if found else 0.0
        if amount <= 0:
            raise ValueError(
                f"The limit memory must be above 0, in bytes or as text such as '1 GB'; got {self.memory!r}."
            )
        return amount

    def __str__(self) -> str:
        """Return the limits in a few words."""
        told = [] if self.milliseconds is None else [f"{self.milliseconds:g} ms"]
        told += [] if self.memory is None else [f"{self.bytes() / 1e6:,.1f} MB"]
        return ", ".join([*told, f"recall {self.recall:g}"])


@dataclass(frozen=True, slots=True)
class Choice:
    """How an archive is searched, and what was measured on it.

    Attributes:
        form: "codes" (exact nearly always, `SearchResult.exact` says so) or "sketches" (approximate).
        memory: Bytes held for searching.
        milliseconds: Median time of one query.
        recall: Share of the true ten nearest rows that was found, for rows of the archive with noise as queries.
    """

    form: Form
    memory: int
    milliseconds: float
    recall: float

    def __str__(self) -> str:
        """Return one sentence."""
        return (
            f"{WAYS[self.form]}: recall@{NEIGHBOURS} {self.recall:.3f}, {self.milliseconds:.1f} ms a query, "
            f"{self.memory / 1e6:,.1f} MB."
        )


def choose(store: ReadableStore, limits: SearchLimits) -> tuple[LargeSearch, Choice]:
    """Return the first way of searching that keeps to the limits, and what was measured.

    What takes too much memory is not tried, so that the limit is kept while measuring too.

    Raises:
        ValueError: No way keeps to them; the sentence says what each takes.
    """
    tried = []
    for form, name in WAYS.items():
        if form == "sketches" and not hasattr(import_faiss(), "IndexRaBitQ"):
            tried.append("1-bit sketches need FAISS 1.11 or newer")
            continue
        needed = _memory_of(store, form)
        if needed > limits.bytes():
            tried.append(f"{name} take {needed / 1e6:,.1f} MB")
            continue
        search = LargeSearch(store, form)
        choice = Choice(form, needed, _milliseconds(search), measured_recall(search))
        fast = limits.milliseconds is None or choice.milliseconds <= limits.milliseconds
        if fast and choice.recall >= limits.recall:
            return search, choice
        tried.append(f"{name} take {choice.milliseconds:.1f} ms at a recall of {choice.recall:.3f}")
    raise ValueError(f"No way of searching '{store.root}' keeps the limits ({limits}): {'; '.join(tried)}.")


def _memory_of(store: ReadableStore, form: Form) -> int:
    """Return the bytes a form of the archive's segments takes; small segments are held in float32, twice."""
    per_row = store.dim + 4 if form == "codes" else bytes_per_row(store.dim)
    with store.viewing() as connection:
        segments = [segment for segment in store.segments(connection) if segment.live]
    return sum(
        segment.rows * (per_row if segment.rows >= QUANTISED_ROWS else 8 * store.dim)
        + (0 if segment.live == segment.rows else -(-segment.rows // 8) + segment.rows)
        for segment in segments
    )


def _milliseconds(search: LargeSearch) -> float:
    """Return the median time of one query."""
    with search.looking() as (_, view):
        queries = _drawn(view, PROBES, seed=1) if view.count else np.empty((0, search.store.dim), dtype=np.float32)
    times = []
    for number in range(len(queries)):
        search.search(queries[number : number + 1], NEIGHBOURS)
        started = time.perf_counter()
        search.search(queries[number : number + 1], NEIGHBOURS)
        times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times)) if times else 0.0


def measured_recall(search: LargeSearch, *, k: int = NEIGHBOURS, queries: int = PROBES, seed: int = 0) -> float:
    """Return the share of the true k nearest rows that a search finds; all vectors are read once, in bounded memory.

    Args:
        search: The search.
        k: Neighbours.
        queries: Rows drawn as queries.
        seed: Of the draw.
    """
    for _ in range(READ_ATTEMPTS):
        try:
            with search.looking() as (connection, view):
                if not view.count:
                    return 1.0
                asked = _drawn(view, queries, seed)
                truth = _nearest(search, connection, view, asked, k)
                found = search.search_in(connection, view, asked, k).ids
            return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(truth, found, strict=True)]))
        except FileNotFoundError as error:  # merged away after the transaction began: the next version has it
            missing = error.filename
    raise ArchiveCorrupt(
        f"The segment '{missing}' is missing: run `radshot verify` for the extent of it and restore a backup."
    )


def _drawn(view: View, count: int, seed: int) -> NDArray[np.float32]:
    """Return rows drawn from a version (m, d), with noise."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in sorted(rng.choice(view.count, min(count, view.count), replace=False).tolist()):
        for part in view.parts:
            if number < part.count:
                place = number if part.live is None else int(np.flatnonzero(part.live)[number])
                rows.append(part.material.rows[place])
                break
            number -= part.count
    held = np.asarray(rows, dtype=np.float32)
    lengths = np.linalg.norm(held, axis=1, keepdims=True)
    noise = rng.normal(0, NOISE, held.shape) * lengths / np.sqrt(held.shape[1])
    drawn: NDArray[np.float32] = (held + noise).astype(np.float32)
    return drawn


def _nearest(
    search: LargeSearch, connection: sqlite3.Connection, view: View, queries: NDArray[np.float32], k: int
) -> list[list[str]]:
    """Return the ids of the k nearest rows of each query, by reading every vector."""
    asked = normalised(queries)
    best = np.empty((len(asked), 0))
    places = np.empty((len(asked), 0, 2), dtype=np.int64)
    for number, part in enumerate(view.parts):
        for start in range(0, part.segment.rows, ROWS_AT_ONCE):
            rows = normalised(np.asarray(part.material.rows[start : start + ROWS_AT_ONCE]))
            scores = (asked @ rows.T).astype(np.float64)  # (m, c)
            if part.live is not None:
                scores[:, ~part.live[start : start + len(rows)]] = -np.inf
            here = np.stack([np.full(len(rows), number), np.arange(start, start + len(rows))], axis=1)
            best = np.concatenate([best, scores], axis=1)
            places = np.concatenate([places, np.broadcast_to(here, (len(asked), *here.shape))], axis=1)
            kept = np.argsort(-best, axis=1, kind="stable")[:, :k]
            best = np.take_along_axis(best, kept, axis=1)
            places = np.take_along_axis(places, kept[:, :, None], axis=1)
    wanted = min(k, view.count)
    return [
        [row_at(search.store, connection, view.parts[part].segment, place)[0] for part, place in line[:wanted].tolist()]
        for line in places
    ]
