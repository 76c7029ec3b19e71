"""tune_search: the most exact way of searching that keeps the limits a user states, chosen by measuring."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .approximate import CODES, SearchLimits, Shortcut, shortcut_bytes
from .quantised import normalised

if TYPE_CHECKING:
    from .large_search import LargeSearch
    from .view import View

QUERIES = 32
"""Rows that are asked about, with a little noise, to measure time and recall."""

NEIGHBOURS = 10
"""Recall is the share of so many true neighbours that are found."""

NOISE = 0.05
"""Length of the noise added to a query, as a share of the query's."""


@dataclass(frozen=True, slots=True)
class Tuned:
    """How an archive is searched within limits.

    Attributes:
        shortcut: The approximate index, or None where every row is searched.
        plan: One or two sentences with what was measured.
    """

    shortcut: Shortcut | None
    plan: str


def tune_search(search: LargeSearch, view: View, dim: int, limits: SearchLimits) -> Tuned:
    """Choose among searching every row and inverted files of finer and coarser codes, the more exact first.

    Args:
        search: Searches the archive; its shortcut is left as it was found.
        view: The version to plan for.
        dim: Numbers per vector.
        limits: What a search may cost.

    Raises:
        ValueError: Nothing keeps the limits.
    """
    before, search.shortcut = search.shortcut, None
    try:
        queries = _queries(view, dim)
        milliseconds = _milliseconds(search, queries)
        truth = search.search(queries, NEIGHBOURS).ids
        held = view.count * dim
        if _keeps(limits, milliseconds, held):
            return Tuned(None, f"Every row is searched: {milliseconds:.1f} ms a query, {held / 2**20:,.0f} MB.")
        for code in CODES:
            held = shortcut_bytes(view.count, dim, code)
            if limits.memory is not None and held > limits.memory:
                continue
            best = _probed(search, Shortcut(view, dim, code), queries, truth, limits)
            if best is not None:
                shortcut, recall, spent = best
                return Tuned(
                    shortcut,
                    f"Rows are searched approximately (IVF{shortcut.lists},{code}, {shortcut.probes} lists a query): "
                    f"recall@{NEIGHBOURS} {recall:.3f}, {spent:.1f} ms a query, {held / 2**20:,.0f} MB.",
                )
        least = shortcut_bytes(view.count, dim, list(CODES)[-1])
        raise ValueError(
            f"No index of {view.count:,} rows of {dim} numbers keeps the limits ({_told(limits)}): searching every row "
            f"takes {milliseconds:.1f} ms and {view.count * dim / 2**20:,.0f} MB here, the smallest index "
            f"{least / 2**20:,.0f} MB."
        )
    finally:
        search.shortcut = before


def _probed(
    search: LargeSearch,
    shortcut: Shortcut,
    queries: NDArray[np.float32],
    truth: list[list[str]],
    limits: SearchLimits,
) -> tuple[Shortcut, float, float] | None:
    """Look into as many lists as the time allows; return the recall and the time, None where one is too many."""
    best: tuple[int, float, float] | None = None
    search.shortcut = shortcut
    shortcut.probes = 1
    while shortcut.probes <= shortcut.lists:
        spent = _milliseconds(search, queries)
        if limits.milliseconds is not None and spent > limits.milliseconds:
            break
        found = search.search(queries, NEIGHBOURS).ids
        recall = float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(truth, found, strict=True)]))
        best = shortcut.probes, recall, spent
        if recall == 1.0:
            break
        shortcut.probes *= 2
    if best is None:
        return None
    shortcut.probes = best[0]
    return shortcut, best[1], best[2]


def _keeps(limits: SearchLimits, milliseconds: float, held: int) -> bool:
    slow = limits.milliseconds is not None and milliseconds > limits.milliseconds
    return not slow and not (limits.memory is not None and held > limits.memory)


def _told(limits: SearchLimits) -> str:
    parts = [f"{limits.milliseconds:g} ms"] if limits.milliseconds is not None else []
    if limits.memory is not None:
        parts.append(f"{limits.memory / 2**20:,.0f} MB")
    return ", ".join(parts)


def _milliseconds(search: LargeSearch, queries: NDArray[np.float32]) -> float:
    times = []
    for query in queries:
        started = time.perf_counter()
        search.search(query[None], NEIGHBOURS)
        times.append(1000 * (time.perf_counter() - started))
    return float(np.median(times))


def _queries(view: View, dim: int) -> NDArray[np.float32]:
    """Return rows of the archive with a little noise."""
    rng = np.random.default_rng(0)
    rows = []
    for _ in range(QUERIES):
        part = view.parts[int(rng.choice(len(view.parts), p=[one.count / view.count for one in view.parts]))]
        live = np.arange(part.segment.rows) if part.live is None else np.flatnonzero(part.live)
        rows.append(np.array(part.material.rows[int(rng.choice(live))]))
    units = normalised(np.asarray(rows, dtype=np.float32))
    noise = rng.normal(0, NOISE / np.sqrt(dim), units.shape).astype(np.float32)
    return units + noise
