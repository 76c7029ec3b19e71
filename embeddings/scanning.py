"""Scanning: the rows of an archive that score highest by any measure, exactly, in one pass over mapped segments.

An index answers questions of one kind, the cosine with a vector. What an alignment asks, how similar a row is to a
sentence, is another; it is cheap per row, so all rows are asked, in blocks, inside one reading transaction.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .errors import ArchiveCorrupt
from .large_search import places_of
from .reading import READ_ATTEMPTS
from .segments import map_segment
from .view import row_at

if TYPE_CHECKING:
    from .archive import Archive

ROWS_AT_ONCE = 8192
"""Rows scored at a time."""

Scorer = Callable[[NDArray[np.float32]], NDArray[np.float64]]
"""Rows (m, d) as the encoder made them -> scores (m,), larger is better."""


@dataclass(frozen=True, eq=False)
class Scanned:
    """What scored highest.

    Attributes:
        ids: Best first; equal scores go by id.
        scores: Theirs.
        version: The archive's version that was scanned.
    """

    ids: tuple[str, ...]
    scores: tuple[float, ...]
    version: int


def scan(archive: Archive, scorer: Scorer, k: int, *, among: Collection[str] | None = None) -> Scanned:
    """Return the k rows that score highest, each verified against its checksum.

    Args:
        archive: The archive.
        scorer: Scores rows one by one: a row's score must not depend on the others.
        k: How many; fewer come back only where there are fewer.
        among: Ids to look at, or None for all; ids that are not stored are passed over.

    Raises:
        ValueError: k is below 1.
        ArchiveCorrupt: A row is not what was written.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1; got {k}.")
    for _ in range(READ_ATTEMPTS):
        try:
            return _scan(archive, scorer, k, among)
        except FileNotFoundError as error:  # merged away after the transaction began: the next version has it
            missing = error.filename
    raise ArchiveCorrupt(
        f"The segment '{missing}' is missing: run `radshot verify` for the extent of it and restore a backup."
    )


def _scan(archive: Archive, scorer: Scorer, k: int, among: Collection[str] | None) -> Scanned:
    store = archive.store
    found: list[tuple[float, str]] = []
    with store.viewing() as connection:
        version = store.version_of(connection)
        chosen = None if among is None else np.asarray(places_of(connection, among), dtype=np.int64).reshape(-1, 2)
        best: list[tuple[float, int, int]] = []  # score, place in `segments`, position
        segments = [segment for segment in store.segments(connection) if segment.live]
        for number, segment in enumerate(segments):
            if chosen is not None:
                places = np.unique(chosen[chosen[:, 0] == segment.key, 1])  # who is named twice is looked at once
            else:
                query = "SELECT position FROM rows WHERE segment = ? ORDER BY position"
                places = np.fromiter((row[0] for row in connection.execute(query, (segment.key,))), dtype=np.int64)
            rows = map_segment(store.root, segment, dim=store.dim, check=False)
            for start in range(0, len(places), ROWS_AT_ONCE):
                own = places[start : start + ROWS_AT_ONCE]
                scores = np.asarray(scorer(np.ascontiguousarray(rows[own])), dtype=np.float64)
                limit = best[-1][0] if len(best) >= k else -np.inf
                best += [(float(scores[i]), number, int(own[i])) for i in np.flatnonzero(scores >= limit).tolist()]
                best.sort(key=lambda entry: -entry[0])
                if len(best) > k:  # rows as good as the last are kept: ids decide among them
                    last = best[k - 1][0]
                    best = [entry for entry in best if entry[0] >= last]
        for score, number, position in best:
            name, checksum, _ = row_at(store, connection, segments[number], position)
            row = np.ascontiguousarray(map_segment(store.root, segments[number], dim=store.dim, check=False)[position])
            if zlib.crc32(row.data) != checksum:
                raise store.damaged(f"the vector of row {name!r} is not the one it was stored with")
            found.append((-score, name))
    found.sort()
    return Scanned(tuple(name for _, name in found[:k]), tuple(-score for score, _ in found[:k]), version)
