"""The archive's SQLite file: schema, format version and migrations, connections, and its errors in our words."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from .errors import ArchiveCorrupt, ArchiveError, ArchiveLocked, StorageFull

DATABASE_NAME = "archive.sqlite"
"""The truth, below the archive's folder."""

FORMAT_VERSION = 3
"""Format this library writes. Older ones are migrated on opening, newer ones refused."""

BUSY_MILLISECONDS = 30_000
"""How long SQLite waits for its own short locks (checkpoints, recovery after a crash)."""

SCHEMA = """
CREATE TABLE archive (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE migrations (to_format INTEGER PRIMARY KEY, at TEXT NOT NULL);
CREATE TABLE segments (
    key INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    sha256 TEXT NOT NULL,
    rows INTEGER NOT NULL,
    live INTEGER NOT NULL,
    changed INTEGER NOT NULL
);
CREATE TABLE rows (
    id TEXT PRIMARY KEY,
    segment INTEGER NOT NULL REFERENCES segments(key),
    position INTEGER NOT NULL,
    hash TEXT NOT NULL,
    patient TEXT,
    metadata TEXT NOT NULL,
    vector_crc INTEGER NOT NULL,
    row_crc INTEGER NOT NULL,
    version INTEGER NOT NULL,
    UNIQUE (segment, position)
) WITHOUT ROWID;
CREATE INDEX rows_hash ON rows(hash);
CREATE INDEX rows_patient ON rows(patient);
CREATE TABLE notes (key TEXT PRIMARY KEY, value TEXT NOT NULL, crc INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE files (
    path TEXT PRIMARY KEY,
    size INTEGER NOT NULL,
    mtime_ns INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    id TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX files_id ON files(id);
CREATE TABLE quarantine (
    path TEXT PRIMARY KEY,
    reason TEXT NOT NULL,
    stage TEXT NOT NULL,
    id TEXT,
    patient TEXT,
    at TEXT NOT NULL
) WITHOUT ROWID;
"""
"""Format 3. `archive` holds format, version, dim, the encoder, the kind (since format 2), and `digest`: number of rows
and XOR of their CRCs. Of a segment it is known (since format 3) how many of its rows are live, and the version in which
that changed last."""


def facts_crc(facts: dict[str, str]) -> str:
    """Checksum of the facts that never change after the archive was made."""
    fixed = {key: value for key, value in facts.items() if key not in ("format", "version", "digest", "crc")}
    return str(zlib.crc32(json.dumps(fixed, sort_keys=True).encode()))


def _note_kind(connection: sqlite3.Connection) -> None:
    """From format 1 to 2: what was registered, row by row, is a comparison set; everything else is an archive."""
    rows = [json.loads(text) for (text,) in connection.execute("SELECT metadata FROM rows")]
    registered = all(isinstance(row.get("label"), str) and {"registered_at", "encoder"} <= row.keys() for row in rows)
    known = {**facts(connection), "kind": "comparison set" if rows and registered else "archive"}
    connection.execute("INSERT INTO archive VALUES ('kind', ?)", (known["kind"],))
    connection.execute("UPDATE archive SET value = ? WHERE key = 'crc'", (facts_crc(known),))


def _count_live(connection: sqlite3.Connection) -> None:
    """From format 2 to 3: how many rows of each segment are live, and since when."""
    version = int(facts(connection)["version"])
    connection.execute("ALTER TABLE segments ADD COLUMN live INTEGER NOT NULL DEFAULT 0")
    connection.execute(f"ALTER TABLE segments ADD COLUMN changed INTEGER NOT NULL DEFAULT {version}")
    connection.execute("UPDATE segments SET live = (SELECT count(*) FROM rows WHERE rows.segment = segments.key)")


MIGRATIONS: dict[int, Callable[[sqlite3.Connection], None]] = {1: _note_kind, 2: _count_live}
"""Format -> the step that lifts an archive of that format to the next one, inside one transaction."""

NETWORK_FILE_SYSTEMS = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "afs", "ncpfs", "fuse.sshfs", "davfs"})
"""Kinds of file systems several hosts can mount and whose locks or shared memory do not hold between them."""

_FULL = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT}
_FULL_NAMES = (
    "SQLITE_FULL",
    "SQLITE_IOERR_WRITE",
    "SQLITE_IOERR_TRUNCATE",
    "SQLITE_IOERR_SHMOPEN",
    "SQLITE_IOERR_SHMSIZE",
    "SQLITE_IOERR_SHMMAP",
)
_CORRUPT_NAMES = ("SQLITE_CORRUPT", "SQLITE_NOTADB", "SQLITE_IOERR_SHORT_READ", "SQLITE_IOERR_CORRUPTFS")


def connect(path: Path, *, create: bool = False) -> sqlite3.Connection:
    """Open the database with the settings the store's promises rest on; only `create` makes a new file.

    WAL with synchronous=FULL makes a returned commit durable; secure_delete zeroes what is removed; temporary tables
    stay in memory so that VACUUM leaves no copy on disk. The connection may cross threads: the store serialises it.
    An archive in a folder that cannot be written is read as it lies, unless its log holds changes.

    Raises:
        ArchiveError: The folder cannot be written, and the log beside the database holds changes that would be missed.
    """
    frozen = not create and not os.access(path.parent, os.W_OK)
    if frozen and (log := path.with_name(f"{path.name}-wal")).exists() and log.stat().st_size:
        raise ArchiveError(
            f"The archive '{path.parent}' cannot be written, and its log holds changes that only a writer can bring "
            "in: open it once where it can be written, or copy it with `radshot backup`."
        )
    mode = "rwc" if create else "ro&immutable=1" if frozen else "rw"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=BUSY_MILLISECONDS / 1000,
    )
    try:
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA foreign_keys = ON")
        connection.execute("PRAGMA trusted_schema = OFF")
        if not frozen:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
    except BaseException:
        connection.close()
        raise
    return connection


def refuse_network(root: Path) -> None:
    """Refuse a folder on a network file system: the log that SQLite and its readers share in memory is not safe there.

    Raises:
        ArchiveError: It lies on one.
    """
    kind = file_system_of(root)
    if kind in NETWORK_FILE_SYSTEMS:
        raise ArchiveError(
            f"The archive '{root}' would lie on a network file system ({kind}), where two hosts can damage it: keep it "
            "on a local disk, and take copies with `radshot backup`."
        )


def file_system_of(path: Path, mounts: Path = Path("/proc/self/mounts")) -> str:
    """Return the kind of file system a path lies on, "" where the system does not tell."""
    place = path.resolve()
    best, kind = -1, ""
    with suppress(OSError):
        for line in mounts.read_text(encoding="utf-8", errors="replace").splitlines():
            _, point, name, *_ = f"{line}   ".split(" ")
            where = point.replace("\\040", " ")
            if place.is_relative_to(where) and len(where) >= best:
                best, kind = len(where), name
    return kind


@contextmanager
def transaction(connection: sqlite3.Connection, *, write: bool) -> Iterator[None]:
    """Run a block in one transaction: all of it is committed, or none of it."""
    connection.execute("BEGIN IMMEDIATE" if write else "BEGIN")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        raise


@contextmanager
def translated(root: Path, *, missing_files: bool = True) -> Iterator[None]:
    """Turn the errors of SQLite and of the file system into the archive's, one sentence each.

    Args:
        root: The archive's folder.
        missing_files: Whether a missing file is such an error too; a reader whose segment was merged away begins anew.
    """
    try:
        yield
    except sqlite3.Error as error:
        raise _in_our_words(root, error) from error
    except OSError as error:
        if isinstance(error, FileNotFoundError) and not missing_files:
            raise
        if error.errno in _FULL:
            raise _full(root, error.strerror or "no space left") from error
        where = error.filename if error.filename is not None else root
        raise ArchiveError(
            f"The archive's '{where}' cannot be used: {(error.strerror or str(error)).lower()}."
        ) from error


def _in_our_words(root: Path, error: sqlite3.Error) -> ArchiveError:
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith(_FULL_NAMES):
        return _full(root, str(error))
    if name.startswith(_CORRUPT_NAMES) or "decode to UTF-8" in str(error) or "no such" in str(error):
        return ArchiveCorrupt(
            f"The database '{root / DATABASE_NAME}' is damaged ({error}): run `radshot verify` and restore a backup."
        )
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED")):
        return ArchiveLocked(f"The database '{root / DATABASE_NAME}' is busy in another process: try again.")
    if name.startswith(("SQLITE_READONLY", "SQLITE_CANTOPEN", "SQLITE_PERM")):
        return ArchiveError(f"The archive '{root}' must be readable and writable, its folder too: {error}.")
    return ArchiveError(f"The database '{root / DATABASE_NAME}' refused: {error}.")


def _full(root: Path, detail: str) -> StorageFull:
    return StorageFull(
        f"The disk or quota of '{root}' is full ({detail}): what was stored before is intact; free some space and run "
        "the same again."
    )


def build(connection: sqlite3.Connection, facts: dict[str, str]) -> None:
    """Create the tables of a new archive with its first facts, in one transaction."""
    with transaction(connection, write=True):
        for statement in SCHEMA.split(";"):
            if statement.strip():
                connection.execute(statement)
        connection.executemany(
            "INSERT INTO archive VALUES (?, ?)",
            sorted({"format": str(FORMAT_VERSION), "version": "1", "digest": "0 0", **facts}.items()),
        )


def is_built(connection: sqlite3.Connection) -> bool:
    """Say whether the tables are there; a creation cut short leaves none."""
    return connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'archive'").fetchone() is not None


def facts(connection: sqlite3.Connection) -> dict[str, str]:
    """Read the archive's facts: format, version, digest, dim, encoder, kind."""
    return dict(connection.execute("SELECT key, value FROM archive"))


def number(root: Path, values: dict[str, str], key: str) -> int:
    """Return one of the facts as a number.

    Raises:
        ArchiveCorrupt: It is missing or no number.
    """
    try:
        return int(values[key])
    except (KeyError, ValueError):
        raise ArchiveCorrupt(
            f"The database '{root / DATABASE_NAME}' is damaged (no readable {key!r}): run `radshot verify` and restore "
            "a backup."
        ) from None


def migrate(connection: sqlite3.Connection, root: Path) -> None:
    """Lift an older archive to `FORMAT_VERSION`, one transaction per step; call it under the writer's lock.

    Raises:
        ArchiveError: No step leads on from the archive's format.
    """
    while (found := number(root, facts(connection), "format")) < FORMAT_VERSION:
        step = MIGRATIONS.get(found)
        if step is None:
            raise ArchiveError(f"The archive '{root}' has format {found}, which no migration of this version reads.")
        with transaction(connection, write=True):
            step(connection)
            connection.execute("INSERT INTO migrations VALUES (?, ?)", (found + 1, now()))
            connection.execute("UPDATE archive SET value = ? WHERE key = 'format'", (str(found + 1),))


def now() -> str:
    """Return the time in UTC to the second, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


ROW_COLUMNS = "id, segment, position, hash, patient, metadata, vector_crc"
"""What `row_crc` covers, in its order."""


def row_crc(row: Sequence[object]) -> int:
    """Checksum of everything the database says about a row (`ROW_COLUMNS`); SQLite itself keeps none."""
    return zlib.crc32("\0".join(map(str, row)).encode("utf-8"))
