"""The reading half of the store: opening, connections, and snapshots that never wait for a writer.

A snapshot is read inside one SQLite transaction, so it is one version. Vectors come from segments whose SHA-256 is
checked when the process first reads them, rows carry a CRC, and the set of rows a digest: what is handed out is what
was written.
"""

from __future__ import annotations

import os
import sqlite3
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from . import database
from .database import ROW_COLUMNS, row_crc, transaction, translated
from .errors import ArchiveCorrupt, ArchiveError
from .lock import WriterLock
from .segments import FOLDER, Segment, map_segment, read_segment, sync_folder
from .snapshot import Snapshot

QUICK_CHECK_BYTES = 8 << 20
"""Databases up to this size are checked page by page on every opening (tens of milliseconds)."""

PLACE_BITS = 32
"""A row's place is its segment's key shifted by this many bits, plus its position in the segment."""

PARAMETERS = 500
"""Values per SQL statement; SQLite's own limit is higher."""

MAPPED_VALUES = 1 << 24
"""Segments of more numbers than this are mapped into memory instead of being read."""

READ_ATTEMPTS = 16
"""How often a reader starts again because segments were merged away under it."""


class ReadableStore:
    """Rows and segments of one archive; `Archive` is the friendly face of it."""

    def __init__(self, root: Path, *, timeout: float) -> None:
        """Name the archive's folder; `open` or `create` does the work."""
        self.root = root
        self.facts: dict[str, str] = {}
        self.dim = 0
        self._lock = WriterLock(root, timeout=timeout)
        self._guard = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._connection_pid = 0
        self._inherited: list[sqlite3.Connection] = []
        self._viewers: list[tuple[int, sqlite3.Connection]] = []
        self._closed = False
        self._pinned: Snapshot | None = None
        self._verified: set[str] = set()

    def open(self) -> bool:
        """Open an existing archive; return False where a creation was cut short and nothing is there yet.

        Raises:
            ArchiveCorrupt: The database is damaged, or gone while segments are there.
            ArchiveError: It was written by a newer version.
        """
        database.refuse_network(self.root)
        with self.reading() as connection:
            if not database.is_built(connection):
                if any((self.root / FOLDER).glob("seg-*")):
                    raise ArchiveCorrupt(
                        f"The database '{self.root / database.DATABASE_NAME}' is empty although vectors are stored "
                        "beside it: restore it from a backup."
                    )
                return False
            self._read_facts(connection)
        found = database.number(self.root, self.facts, "format")
        if found > database.FORMAT_VERSION:
            raise ArchiveError(
                f"The archive '{self.root}' has format {found}, written by a newer radshot; this one reads up to "
                f"format {database.FORMAT_VERSION}: upgrade radshot."
            )
        if found < database.FORMAT_VERSION:
            with self.writing(), self.reading() as connection:
                database.migrate(connection, self.root)
                self._read_facts(connection)
        return True

    def create(self, facts: dict[str, str]) -> None:
        """Make a new archive, or open the one that another process made meanwhile."""
        database.refuse_network(self.root)
        with translated(self.root):
            (self.root / FOLDER).mkdir(parents=True, exist_ok=True)
        with self.writing():
            if not (self.root / database.DATABASE_NAME).exists():
                database.connect(self.root / database.DATABASE_NAME, create=True).close()
            with self.reading() as connection:
                if not database.is_built(connection):
                    database.build(connection, {**facts, "crc": database.facts_crc(facts)})
                    for folder in (self.root / FOLDER, self.root, self.root.parent):
                        sync_folder(folder)
            self.open()

    def _read_facts(self, connection: sqlite3.Connection) -> None:
        facts = database.facts(connection)
        if facts.get("crc") != database.facts_crc(facts):
            raise self.damaged("its description does not match its checksum")
        size = (self.root / database.DATABASE_NAME).stat().st_size
        if size <= QUICK_CHECK_BYTES:
            answer = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
            if answer != "ok":
                raise self.damaged(f"its own check says {answer!r}")
        self.facts = facts
        self.dim = database.number(self.root, facts, "dim")

    def close(self) -> None:
        """Close the connection; the store cannot be used afterwards."""
        with self._guard:
            self._closed = True
            self._pinned = None
            if self._connection is not None and self._connection_pid == os.getpid():
                with suppress(sqlite3.Error):
                    self._connection.close()
            self._connection = None
            for owner, connection in self._viewers:
                if owner == os.getpid():
                    with suppress(sqlite3.Error):
                        connection.close()
            self._viewers.clear()

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection, one thread at a time; errors come out in the archive's words."""
        with self._guard, translated(self.root):
            if self._closed:
                raise ArchiveError(f"The archive '{self.root}' was closed: open it again.")
            if self._connection is None or self._connection_pid != os.getpid():
                if self._connection is not None:
                    # A connection must not be used, nor closed, in a forked child: keep it out of reach.
                    self._inherited.append(self._connection)
                self._connection = database.connect(self.root / database.DATABASE_NAME)
                self._connection_pid = os.getpid()
            yield self._connection

    @contextmanager
    def viewing(self) -> Iterator[sqlite3.Connection]:
        """Yield a connection of the caller's own inside a reading transaction; it waits for no writer and no reader.

        All that is read within the block is of one version. A segment that was merged away meanwhile is a
        FileNotFoundError: begin again.
        """
        with translated(self.root, missing_files=False):
            with self._guard:
                if self._closed:
                    raise ArchiveError(f"The archive '{self.root}' was closed: open it again.")
                owner, connection = self._viewers.pop() if self._viewers else (0, None)
            if connection is None or owner != os.getpid():
                if connection is not None:
                    self._inherited.append(connection)
                connection = database.connect(self.root / database.DATABASE_NAME)
            try:
                with transaction(connection, write=False):
                    yield connection
            finally:
                with self._guard:
                    if self._closed or connection.in_transaction:
                        connection.close()
                    else:
                        self._viewers.append((os.getpid(), connection))

    @contextmanager
    def writing(self, timeout: float | None = None) -> Iterator[None]:
        """Hold the single-writer lock; re-entrant, so that several calls can be made one step."""
        with translated(self.root), self._lock.held(timeout):
            yield

    def version(self) -> int:
        """Return the newest committed version (one indexed look-up)."""
        with self.reading() as connection:
            return self.version_of(connection)

    def version_of(self, connection: sqlite3.Connection) -> int:
        """Return the version a connection sees."""
        row = connection.execute("SELECT value FROM archive WHERE key = 'version'").fetchone()
        return database.number(self.root, {} if row is None else {"version": row[0]}, "version")

    def snapshot(self) -> Snapshot:
        """Return the newest committed version, from memory where it has not changed.

        Raises:
            ArchiveCorrupt: A segment or a row is not what was written.
        """
        with self._guard:
            missing: tuple[int, str] | None = None
            for _ in range(READ_ATTEMPTS):
                with self.reading() as connection, transaction(connection, write=False):
                    version = self.version_of(connection)
                    if self._pinned is not None and self._pinned.version == version:
                        return self._pinned
                    try:
                        self._pinned = self._assemble(connection, version)
                        return self._pinned
                    except FileNotFoundError as error:
                        # A writer merged this segment away after our transaction began: the next version has it.
                        if missing == (version, str(error.filename)):
                            break
                        missing = (version, str(error.filename))
            raise ArchiveCorrupt(
                f"The segment '{missing[1] if missing else self.root}' is missing: run `radshot verify` for the extent "
                "of it and restore a backup."
            )

    def _assemble(self, connection: sqlite3.Connection, version: int) -> Snapshot:
        segments = {segment.key: segment for segment in self.segments(connection)}
        ids: list[str] = []
        hashes: list[str] = []
        metadata: list[str] = []
        places: list[int] = []
        since: list[int] = []
        digest = 0
        for *row, crc, row_version in connection.execute(
            f"SELECT {ROW_COLUMNS}, row_crc, version FROM rows ORDER BY id"
        ):
            identity, segment, position, content_hash, _, text, _ = row
            if row_crc(row) != crc:
                raise self.damaged(f"row {identity!r} does not match its checksum")
            if segment not in segments or not 0 <= position < segments[segment].rows:
                raise self.damaged(f"row {identity!r} points outside the stored vectors")
            digest ^= crc
            ids.append(identity)
            hashes.append(content_hash)
            metadata.append(text)
            places.append(segment << PLACE_BITS | position)
            since.append(row_version)
        if self.digest_of(connection) != (len(ids), digest):
            raise self.damaged("rows are missing or were changed behind its back")
        place = np.asarray(places, dtype=np.int64)
        vectors = self._gather(place, segments)
        vectors.flags.writeable = False
        return Snapshot(
            version=version,
            ids=ids,
            vectors=vectors,
            hashes=hashes,
            metadata_json=metadata,
            places=place,
            since=np.asarray(since, dtype=np.int64),
        )

    def _gather(self, places: NDArray[np.int64], segments: dict[int, Segment]) -> NDArray[np.float32]:
        """Collect vectors in the order of `places` (n,): from the last snapshot where it has them, else from files."""
        vectors = np.empty((len(places), self.dim), dtype=np.float32)
        todo = np.ones(len(places), dtype=bool)
        held = self._pinned
        if held is not None and len(held) and len(places):
            order = np.argsort(held.places)
            spot = np.minimum(np.searchsorted(held.places, places, sorter=order), len(order) - 1)
            source = order[spot]
            found = held.places[source] == places
            vectors[found] = held.vectors[source[found]]
            todo = ~found
        keys = places >> PLACE_BITS
        for key in np.unique(keys[todo]):
            wanted = np.flatnonzero(todo & (keys == key))
            vectors[wanted] = self.read(segments[int(key)])[places[wanted] & ((1 << PLACE_BITS) - 1)]
        return vectors

    def read(self, segment: Segment) -> NDArray[np.float32]:
        """Read one segment's rows (n, d); its SHA-256 is checked the first time this process reads it."""
        read = read_segment if segment.rows * self.dim <= MAPPED_VALUES else map_segment
        rows = read(self.root, segment, dim=self.dim, check=segment.name not in self._verified)
        self._verified.add(segment.name)
        return rows

    def segments(self, connection: sqlite3.Connection) -> list[Segment]:
        """List the segments of the version the connection sees."""
        return [
            Segment(*row)
            for row in connection.execute("SELECT key, name, sha256, rows, live, changed FROM segments ORDER BY key")
        ]

    def lookup(self, column: Literal["id", "hash"], values: Iterable[str]) -> dict[str, tuple[str, str]]:
        """Find rows by id or by content hash; value -> (id, hash). Of several with one hash the first id counts."""
        found: dict[str, tuple[str, str]] = {}
        wanted = list(dict.fromkeys(values))
        with self.reading() as connection:
            for start in range(0, len(wanted), PARAMETERS):
                part = wanted[start : start + PARAMETERS]
                marks = ",".join("?" * len(part))
                query = f"SELECT {column}, id, hash FROM rows WHERE {column} IN ({marks}) ORDER BY id"
                for value, identity, content_hash in connection.execute(query, part):
                    found.setdefault(value, (identity, content_hash))
        return found

    def get_note(self, key: str) -> str | None:
        """Return a note's JSON text, or None."""
        with self.reading() as connection:
            row = connection.execute("SELECT value, crc FROM notes WHERE key = ?", (key,)).fetchone()
        if row is None:
            return None
        if zlib.crc32(row[0].encode()) != row[1]:
            raise self.damaged(f"note {key!r} does not match its checksum")
        return str(row[0])

    def digest_of(self, connection: sqlite3.Connection) -> tuple[int, int]:
        """Return the number of rows and the XOR of their checksums, as recorded."""
        row = connection.execute("SELECT value FROM archive WHERE key = 'digest'").fetchone()
        try:
            count, digest = (int(part) for part in row[0].split())
        except (TypeError, ValueError):
            raise self.damaged("its digest of rows is unreadable") from None
        return count, digest

    def damaged(self, what: str) -> ArchiveCorrupt:
        """Return the error for a damaged database."""
        return ArchiveCorrupt(
            f"The database '{self.root / database.DATABASE_NAME}' is damaged ({what}): run `radshot verify` and "
            "restore a backup."
        )
