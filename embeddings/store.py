"""The truth on disk: rows in SQLite, vectors in immutable segments, one writer, readers that never wait for it.

A write is: take the lock, write and fsync a segment, commit the rows that point into it. A crash before the commit
leaves a file nobody names (an orphan, swept after the next commit); a crash after it leaves nothing to do.
"""

from __future__ import annotations

import json
import sqlite3
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .database import ROW_COLUMNS, row_crc, transaction
from .errors import ArchiveCorrupt, ArchiveError
from .merging import BackgroundMerges, forget_codes
from .reading import PLACE_BITS, READ_ATTEMPTS, ReadableStore
from .segments import Segment, segment_path, stray_files, write_segment
from .view import rows_by_id

SMALL_ROWS = 4096
"""A segment below this many rows is small: single registrations make such segments."""

MAX_SMALL_SEGMENTS = 32
"""A writer that leaves more small segments than this merges them into one."""

MAX_SMALL_ROWS = 16_384
"""So does one that leaves more rows than this in small segments: these are searched in float32."""

Kind = Literal["added", "updated", "duplicate", "conflict"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one row offered to `Store.write`: the kind, and the id of the row that now stands for it."""

    kind: Kind
    id: str


@dataclass(frozen=True, slots=True)
class NewRows:
    """Aligned rows on their way into the store; metadata is JSON text, patients may be None."""

    ids: Sequence[str]
    vectors: NDArray[np.float32]
    hashes: Sequence[str]
    metadata: Sequence[str]
    patients: Sequence[str | None]


@dataclass(frozen=True, slots=True)
class NewFacts:
    """What becomes of a stored row's metadata: JSON text of the keys to set, and the patient it then has."""

    metadata: str
    patient: str | None


class Store(ReadableStore):
    """Rows and segments of one archive; `Archive` is the friendly face of it."""

    _committing = False

    def __init__(self, root: Path, *, timeout: float) -> None:
        """Name the archive's folder; `open` or `create` does the work."""
        super().__init__(root, timeout=timeout)
        self.merges = BackgroundMerges(self)

    def write(
        self,
        rows: NewRows,
        *,
        replace: Collection[str] = frozenset(),
        unique_hashes: bool = False,
        also: Callable[[sqlite3.Connection, list[Outcome]], None] | None = None,
    ) -> list[Outcome]:
        """Add rows in one atomic, durable step.

        Args:
            rows: The rows; vectors float32 (n, d).
            replace: Ids whose row gives way when the content differs (elsewhere that is a conflict, first kept).
            unique_hashes: Whether content already stored under another id is a duplicate of that row.
            also: More statements for the same transaction, given the outcomes.

        Returns:
            One outcome per row, in order.

        Raises:
            StorageFull: Nothing changed.
            ArchiveLocked: Another writer kept the lock too long.
        """
        with self.writing():
            outcomes, dropped = self._classify(rows, replace, unique_hashes)
            taken = [row for row, outcome in enumerate(outcomes) if outcome.kind in ("added", "updated")]
            if not taken and not dropped and also is None:
                return outcomes
            with self._segment(rows.vectors[taken] if taken else None) as segment, self._change() as connection:
                digest = self._delete(connection, dropped)
                if segment is not None:
                    digest ^= self._insert(connection, segment, rows, taken)
                if taken or dropped:
                    self._publish(connection, len(taken) - len(dropped), digest)
                if also is not None:
                    also(connection, outcomes)
            self._settle()
        return outcomes

    def _classify(
        self, rows: NewRows, replace: Collection[str], unique_hashes: bool
    ) -> tuple[list[Outcome], list[str]]:
        known = {identity: content for identity, (_, content) in self.lookup("id", rows.ids).items()}
        twins = {key: value[0] for key, value in self.lookup("hash", rows.hashes).items()} if unique_hashes else {}
        stored = set(known)
        outcomes: list[Outcome] = []
        dropped: list[str] = []
        for identity, content in zip(rows.ids, rows.hashes, strict=True):
            before = known.get(identity)
            if before == content:
                outcomes.append(Outcome("duplicate", identity))
                continue
            if before is not None and (identity not in replace or identity not in stored):
                outcomes.append(Outcome("conflict", identity))
                continue
            if before is not None:
                dropped.append(identity)
                stored.discard(identity)
                del known[identity]
                if twins.get(before) == identity:
                    del twins[before]
            if content in twins:
                outcomes.append(Outcome("duplicate", twins[content]))
                continue
            outcomes.append(Outcome("added" if before is None else "updated", identity))
            known[identity] = content
            if unique_hashes:
                twins[content] = identity
        return outcomes, dropped

    @contextmanager
    def _segment(self, vectors: NDArray[np.float32] | None) -> Iterator[Segment | None]:
        """Write a segment for the block to commit; take it away again if the block fails before its commit."""
        if vectors is None:
            yield None
            return
        name, sha256 = write_segment(self.root, vectors)
        self._committing = False
        try:
            yield Segment(key=0, name=name, sha256=sha256, rows=len(vectors))
        except BaseException:
            # After a failed COMMIT its frames may still be found by a recovery: then the file stays, and is swept
            # once a later commit has overwritten them.
            if not self._committing:
                with suppress(OSError):
                    segment_path(self.root, name).unlink()
            raise
        self._verified.add(name)

    @contextmanager
    def _change(self) -> Iterator[sqlite3.Connection]:
        with self.reading() as connection, transaction(connection, write=True):
            yield connection
            self._committing = True

    def _insert(self, connection: sqlite3.Connection, segment: Segment, rows: NewRows, taken: list[int]) -> int:
        version = self.version_of(connection) + 1
        key = self._register(connection, segment, live=len(taken), version=version)
        digest = 0
        values: list[tuple[Any, ...]] = []
        for position, row in enumerate(taken):
            vector_crc = zlib.crc32(np.ascontiguousarray(rows.vectors[row], dtype="<f4").data)
            place = (rows.ids[row], key, position)
            covered = (*place, rows.hashes[row], rows.patients[row], rows.metadata[row], vector_crc)
            crc = row_crc(covered)
            digest ^= crc
            values.append((*covered, crc, version))
        connection.executemany("INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
        return digest

    def _register(self, connection: sqlite3.Connection, segment: Segment, *, live: int, version: int) -> int:
        cursor = connection.execute(
            "INSERT INTO segments (name, sha256, rows, live, changed) VALUES (?, ?, ?, ?, ?)",
            (segment.name, segment.sha256, segment.rows, live, version),
        )
        return int(cursor.lastrowid or 0)

    def _delete(self, connection: sqlite3.Connection, ids: Sequence[str]) -> int:
        digest = 0
        version = self.version_of(connection) + 1
        for identity in ids:
            query = "DELETE FROM rows WHERE id = ? RETURNING row_crc, segment"
            crc, segment = connection.execute(query, (identity,)).fetchone()
            digest ^= crc
            connection.execute("UPDATE segments SET live = live - 1, changed = ? WHERE key = ?", (version, segment))
            connection.execute("DELETE FROM files WHERE id = ?", (identity,))
            connection.execute("DELETE FROM quarantine WHERE id = ?", (identity,))
        return digest

    def _publish(self, connection: sqlite3.Connection, growth: int, digest: int) -> None:
        count, old = self.digest_of(connection)
        connection.execute("UPDATE archive SET value = ? WHERE key = 'digest'", (f"{count + growth} {old ^ digest}",))
        version = str(self.version_of(connection) + 1)
        connection.execute("UPDATE archive SET value = ? WHERE key = 'version'", (version,))

    def remove(
        self, *, ids: Iterable[str] | None = None, patients: Collection[str] | None = None
    ) -> tuple[tuple[str, ...], int]:
        """Remove rows by id or by patient in one atomic step, with their file states and quarantine entries.

        Returns:
            The ids removed, sorted, and the number of a patient's quarantine entries removed; neither if nothing
            matched.
        """
        wanted = tuple(patients or ())
        marks = ",".join("?" * len(wanted))
        refused = 0
        with self.writing():
            if patients is not None:
                with self.reading() as connection:
                    # Not by the index: whom a damaged index hides would stay.
                    query = f"SELECT id FROM rows NOT INDEXED WHERE patient IN ({marks})"
                    matched = [identity for (identity,) in connection.execute(query, wanted)]
                    query = f"SELECT count(*) FROM quarantine WHERE patient IN ({marks})"
                    refused = connection.execute(query, wanted).fetchone()[0]
            else:
                matched = list(self.lookup("id", ids or ()))
            if not matched and not refused:
                return (), 0
            with self._change() as connection:
                connection.execute(f"DELETE FROM quarantine WHERE patient IN ({marks})", wanted)
                digest = self._delete(connection, matched)
                self._publish(connection, -len(matched), digest)
            self._settle()
        return tuple(sorted(matched)), refused

    def amend(self, connection: sqlite3.Connection, changes: Mapping[str, NewFacts]) -> list[str]:
        """Give rows other metadata inside the transaction of a `write`; their vectors and hashes stay.

        Args:
            connection: The one that `write` hands to `also`.
            changes: Id -> keys to set in its metadata, and its patient.

        Returns:
            The ids that were there to be changed.
        """
        digest = 0
        changed = []
        version = self.version_of(connection) + 1
        for identity, facts in changes.items():
            query = f"SELECT {ROW_COLUMNS}, row_crc FROM rows WHERE id = ?"
            found = connection.execute(query, (identity,)).fetchone()
            if found is None:
                continue
            _, segment, position, content, _, before, vector_crc, crc = found
            metadata = json.dumps({**json.loads(before), **json.loads(facts.metadata)}, ensure_ascii=True)
            renewed = row_crc((identity, segment, position, content, facts.patient, metadata, vector_crc))
            connection.execute(
                "UPDATE rows SET patient = ?, metadata = ?, row_crc = ?, version = ? WHERE id = ?",
                (facts.patient, metadata, renewed, version, identity),
            )
            digest ^= crc ^ renewed
            changed.append(identity)
        if changed:
            self._publish(connection, 0, digest)
        return changed

    def rows_by_id(self, ids: Sequence[str]) -> dict[str, tuple[dict[str, Any], NDArray[np.float32]]]:
        """Return metadata and vector of some rows of the newest version, verified, by id."""
        for _ in range(READ_ATTEMPTS):
            try:
                with self.viewing() as connection:
                    return rows_by_id(self, connection, ids)
            except FileNotFoundError as error:  # merged away after our transaction began: the next version has it
                missing = error.filename
        raise ArchiveCorrupt(f"The segment '{missing}' is missing: run `radshot verify`.")

    def set_note(self, key: str, value: str | None) -> None:
        """Store a note's JSON text, or with None remove it; the version grows."""
        self.set_notes({key: value})

    def set_notes(self, values: Mapping[str, str | None]) -> None:
        """Store or remove several notes in one transaction; the version grows once."""
        with self.writing(), self._change() as connection:
            for key, value in values.items():
                connection.execute("DELETE FROM notes WHERE key = ?", (key,))
                if value is not None:
                    connection.execute("INSERT INTO notes VALUES (?, ?, ?)", (key, value, zlib.crc32(value.encode())))
            self._publish(connection, 0, 0)

    def rewrite(self, segments: Sequence[Segment]) -> None:
        """Move the live rows of some segments into one new segment, as a new version, and delete the old files.

        A reader in the middle of the old version finds a file gone, and starts again with the new version.
        """
        with self.writing():
            marks = ",".join("?" * len(segments))
            with self.reading() as connection:
                rows = connection.execute(
                    f"SELECT {ROW_COLUMNS}, row_crc FROM rows WHERE segment IN ({marks}) ORDER BY id",
                    [segment.key for segment in segments],
                ).fetchall()
            places = np.asarray([row[1] << PLACE_BITS | row[2] for row in rows], dtype=np.int64)
            try:
                vectors = self._gather(places, {segment.key: segment for segment in segments}) if rows else None
            except FileNotFoundError as error:
                raise ArchiveCorrupt(f"The segment '{error.filename}' is missing: run `radshot verify`.") from None
            with self._segment(vectors) as written, self._change() as connection:
                digest = 0
                if written is not None:
                    version = self.version_of(connection) + 1
                    key = self._register(connection, written, live=len(rows), version=version)
                    for position, (identity, _, _, *content, crc) in enumerate(rows):
                        moved = row_crc((identity, key, position, *content))
                        digest ^= crc ^ moved
                        connection.execute(
                            "UPDATE rows SET segment = ?, position = ?, row_crc = ? WHERE id = ?",
                            (key, position, moved, identity),
                        )
                connection.executemany("DELETE FROM segments WHERE key = ?", [(segment.key,) for segment in segments])
                self._publish(connection, 0, digest)
            self.sweep()

    def register(self, segment: Segment) -> Segment:
        """Record a segment that no row points into yet."""
        with self.writing(), self._change() as connection:
            version = self.version_of(connection) + 1
            key = self._register(connection, segment, live=0, version=version)
            self._publish(connection, 0, 0)
        return Segment(key, segment.name, segment.sha256, segment.rows, 0, version)

    def move(self, source: Segment, positions: NDArray[np.int64], target: Segment, first: int) -> bool:
        """Let the rows at some positions of a segment point into another, which holds the same vectors, in one step.

        Args:
            source: Where the rows are.
            positions: Their positions (n,), ascending; those removed meanwhile are passed over.
            target: Where they go.
            first: The position there of the first of them.

        Returns:
            False where the target is gone: somebody else has merged it meanwhile.
        """
        places = {int(position): first + offset for offset, position in enumerate(positions)}
        with self.writing(), self._change() as connection:
            version = self.version_of(connection) + 1
            if connection.execute("SELECT 1 FROM segments WHERE key = ?", (target.key,)).fetchone() is None:
                return False
            rows = connection.execute(
                f"SELECT {ROW_COLUMNS}, row_crc FROM rows WHERE segment = ? AND position BETWEEN ? AND ?",
                (source.key, int(positions[0]), int(positions[-1])),
            ).fetchall()
            digest = 0
            changes = []
            for identity, _, position, *content, crc in rows:
                place = places.get(position)
                if place is None:
                    continue
                moved = row_crc((identity, target.key, place, *content))
                digest ^= crc ^ moved
                changes.append((target.key, place, moved, identity))
            connection.executemany("UPDATE rows SET segment = ?, position = ?, row_crc = ? WHERE id = ?", changes)
            for key, by in ((source.key, -len(changes)), (target.key, len(changes))):
                connection.execute("UPDATE segments SET live = live + ?, changed = ? WHERE key = ?", (by, version, key))
            self._publish(connection, 0, digest)
        return True

    def drop_empty(self, segments: Sequence[Segment]) -> None:
        """Forget those of some segments that no row points into any more."""
        with self.writing(), self._change() as connection:
            connection.executemany(
                "DELETE FROM segments WHERE key = ? AND live = 0", [(segment.key,) for segment in segments]
            )
            self._publish(connection, 0, 0)

    def sweep(self) -> int:
        """Delete drafts and files no commit names; call it only under the lock and after a commit of this process."""
        with self.writing():
            with self.reading() as connection:
                known = {segment.name for segment in self.segments(connection)}
            drafts, orphans = stray_files(self.root, known)
            for path in drafts + orphans:
                with suppress(OSError):
                    path.unlink()
            return len(drafts) + len(orphans) + forget_codes(self, known)

    def _settle(self) -> None:
        """After a commit: sweep, and merge small segments; trouble here must not fail what is already durable."""
        with suppress(ArchiveError, OSError):
            self.sweep()
            with self.reading() as connection:
                small = [segment for segment in self.segments(connection) if segment.rows < SMALL_ROWS]
            if len(small) > MAX_SMALL_SEGMENTS or sum(segment.rows for segment in small) > MAX_SMALL_ROWS:
                self.rewrite(small)
            if not self._lock.nested:  # else the merge would wait for who holds the lock, perhaps for long
                self.merges.wake()

    def close(self) -> None:
        """Wait for the merge that is going on, and close; the store cannot be used afterwards."""
        self.merges.close()
        super().close()
