"""Merging segments while the archive is read and written: a long copy without a lock, then short moves under it.

The rows of the old segments are copied into one new file in bounded memory, its codes for searching are made, and only
then are the rows moved, some ten thousand per transaction. In between both the old segments and the new one are valid:
wherever the process dies, every row is at exactly one place, and what is left over is cleared by the next merge.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import numpy as np
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from .database import translated
from .errors import ArchiveCorrupt, ArchiveError
from .quantised import build_codes, codes_path, write_codes
from .segments import FOLDER, HEADER, PART_NAME, Segment, adopt_segment, map_segment, segment_path, stream_segment
from .sketches import sketches_path
from .view import QUANTISED_ROWS

if TYPE_CHECKING:
    from .store import Store

TIER_ROWS = 4096
"""Segments from this many rows on are merged by tiers; smaller ones are merged when there are many of them."""

FANOUT = 8
"""This many segments of one tier become one of the next, so that there are few and a row is copied seldom."""

MOVED_AT_ONCE = 65_536
"""Rows moved per transaction: how long a writer may wait for a merge."""

COPIED_AT_ONCE = 8192
"""Rows copied at a time."""

LOCK_NAME = "merge.lock"
"""One process merges at a time; others go on without."""


def tier_of(rows: int) -> int:
    """Return a segment's tier: 0 below `TIER_ROWS`, then one more for every `FANOUT`-fold."""
    tier = 0
    while rows >= TIER_ROWS * FANOUT**tier:
        tier += 1
    return tier


def due(segments: Sequence[Segment]) -> list[Segment] | None:
    """Return the segments that should become one, those of the lowest tier that is full; None where there are none.

    A segment of which less than half is live counts with its live rows: merging it gives back the space.
    """
    tiers: dict[int, list[Segment]] = {}
    for segment in segments:
        rows = segment.rows if 2 * segment.live >= segment.rows else segment.live
        if segment.rows >= TIER_ROWS:
            tiers.setdefault(max(1, tier_of(rows)), []).append(segment)
    for tier in sorted(tiers):
        if len(tiers[tier]) >= FANOUT:
            return tiers[tier]
    return None


def merge(store: Store, segments: Sequence[Segment]) -> bool:
    """Copy the live rows of segments into one new segment and move them there.

    Args:
        store: The store; its writer's lock may be held or not.
        segments: What to merge, as the database has them.

    Returns:
        Whether it was done; False where another process is merging.

    Raises:
        ArchiveCorrupt: A segment is not what was written; nothing was moved.
        StorageFull: No space for the copy; nothing was moved.
    """
    with alone(store) as merging:
        if merging:
            merge_alone(store, segments)
        return merging


@contextmanager
def alone(store: Store) -> Iterator[bool]:
    """Say, for a `with` block, whether no other process is merging and none will; clears what a dead one left."""
    lock = FileLock(store.root / LOCK_NAME, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        _clear_leftovers(store)
        yield True
    finally:
        lock.release()


def merge_alone(store: Store, segments: Sequence[Segment]) -> None:
    """Do the work of `merge` inside a block of `alone`."""
    places = _places(store, segments)
    count = sum(len(positions) for positions in places)
    if count == 0:
        _finish(store, segments)
        return
    with translated(store.root):
        path, sha256 = stream_segment(store.root, _rows(store, segments, places), rows=count, dim=store.dim)
    try:
        with store.writing():
            name = adopt_segment(store.root, path)
            made = store.register(Segment(key=0, name=name, sha256=sha256, rows=count))
    finally:
        with suppress(OSError):
            path.unlink()
    if count >= QUANTISED_ROWS:
        _make_codes(store, made)
    start = 0
    for segment, positions in zip(segments, places, strict=True):
        for first in range(0, len(positions), MOVED_AT_ONCE):
            if not store.move(segment, positions[first : first + MOVED_AT_ONCE], made, start + first):
                return
        start += len(positions)
    _finish(store, segments)


def _clear_leftovers(store: Store) -> None:
    for path in (store.root / FOLDER).iterdir():
        if PART_NAME.fullmatch(path.name):
            with suppress(OSError):
                path.unlink()
    with store.viewing() as connection:
        empty = [segment for segment in store.segments(connection) if not segment.live]
    if empty:
        _finish(store, empty)


def _places(store: Store, segments: Sequence[Segment]) -> list[NDArray[np.int64]]:
    """Return the live positions of each segment, ascending."""
    with store.viewing() as connection:
        query = "SELECT position FROM rows WHERE segment = ? ORDER BY position"
        return [
            np.fromiter((row[0] for row in connection.execute(query, (segment.key,))), dtype=np.int64)
            for segment in segments
        ]


def _rows(store: Store, segments: Sequence[Segment], places: list[NDArray[np.int64]]) -> Iterator[NDArray[np.float32]]:
    """Yield the live rows in order; each segment's file is checked as it is read through."""
    for segment, positions in zip(segments, places, strict=True):
        rows = map_segment(store.root, segment, dim=store.dim, check=False)
        path = segment_path(store.root, segment.name)
        with path.open("rb") as file:
            digest = hashlib.sha256(file.read(HEADER.size))
        for start in range(0, segment.rows, COPIED_AT_ONCE):
            block = np.ascontiguousarray(rows[start : start + COPIED_AT_ONCE])
            digest.update(block.data)
            first, last = np.searchsorted(positions, [start, start + COPIED_AT_ONCE])
            yield block[positions[first:last] - start]
        if digest.hexdigest() != segment.sha256:
            raise ArchiveCorrupt(
                f"The segment '{path}' does not match its recorded SHA-256: run `radshot verify` for the extent of it "
                "and restore a backup."
            )


def _make_codes(store: Store, segment: Segment) -> None:
    """Make the codes before any row is looked for in the new segment; who cannot write them makes them when needed."""
    with suppress(ImportError, OSError):
        rows = map_segment(store.root, segment, dim=store.dim, check=False)
        write_codes(store.root, segment, build_codes(rows))


def _finish(store: Store, segments: Sequence[Segment]) -> None:
    with store.writing():
        store.drop_empty(segments)
        store.sweep()


class BackgroundMerges:
    """Merges what is due in a thread of its own, one at a time; trouble there fails nobody else."""

    def __init__(self, store: Store) -> None:
        """Take the store; the thread starts when something is due."""
        self._store = store
        self._guard = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()

    def wake(self) -> None:
        """Look whether a merge is due, and start on it unless one is going on."""
        with self._guard:
            if self._stop.is_set() or (self._thread is not None and self._thread.is_alive()):
                return
            with self._store.viewing() as connection:
                if due(self._store.segments(connection)) is None:
                    return
            self._thread = threading.Thread(target=self._run, name="radshot-merge", daemon=True)
            self._thread.start()

    def _run(self) -> None:
        with suppress(ArchiveError, OSError):  # the archive is whole without it, and the next commit tries again
            while not self._stop.is_set():
                with self._store.viewing() as connection:
                    segments = due(self._store.segments(connection))
                if segments is None or not merge(self._store, segments):
                    return

    def wait(self) -> None:
        """Wait until nothing is being merged."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join()

    def close(self) -> None:
        """Start no other merge, and wait for the one that is going on."""
        self._stop.set()
        self.wait()


def forget_codes(store: Store, known: set[str]) -> int:
    """Delete files of codes and sketches, and drafts of them, whose segment is gone; return how many."""
    removed = 0
    segments = [Segment(0, name, "", 0) for name in known]
    folder = codes_path(store.root, Segment(0, "seg", "", 0)).parent
    wanted = {path_of(store.root, segment).name for segment in segments for path_of in (codes_path, sketches_path)}
    if folder.is_dir():
        for path in folder.iterdir():
            if path.name not in wanted and path.suffix in (".sq8", ".rbq", ".tmp"):
                with suppress(OSError):
                    path.unlink()
                    removed += 1
    return removed
