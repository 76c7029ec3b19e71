"""Looking after a store: verify, purge, backup, statistics."""

from __future__ import annotations

import mmap
import os
import secrets
import shutil
import sqlite3
import zlib
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import database
from .database import DATABASE_NAME, ROW_COLUMNS, row_crc, transaction, translated
from .errors import ArchiveCorrupt, ArchiveError, ArchiveLocked
from .merging import TIER_ROWS, alone, merge_alone
from .quantised import codes_path, read_codes
from .reading import MAPPED_VALUES
from .segments import FOLDER, HEADER, Segment, map_segment, segment_path, segment_problem, stray_files, sync_folder
from .sketches import read_sketches, sketches_path
from .store import Store

MAPPED_BYTES = 1 << 26
"""Segments above this size are looked at where they lie instead of being read into memory."""


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What reading everything again found.

    Attributes:
        ok: Whether there is no problem.
        problems: One sentence each: what is damaged.
        notes: One sentence each: harmless leftovers.
        version: The version that was checked, 0 where it cannot be read.
        rows: Rows checked.
        segments: Segments checked.
    """

    ok: bool
    problems: tuple[str, ...]
    notes: tuple[str, ...]
    version: int
    rows: int
    segments: int


@dataclass(frozen=True, slots=True)
class PurgeReport:
    """What a purge erased.

    Attributes:
        rows: Removed vectors that were still on disk.
        segments: Segments rewritten or dropped.
    """

    rows: int
    segments: int


@dataclass(frozen=True, slots=True)
class Refusal:
    """A file that was refused, and why.

    Attributes:
        path: The file.
        reason: One sentence without the path.
        stage: Where it failed: "read", "encode" or "store".
        at: When, UTC, ISO 8601.
    """

    path: str
    reason: str
    stage: str
    at: str


def verify(store: Store) -> VerifyReport:
    """Check the database, every segment's SHA-256, and every row's checksums and vector.

    Holds the writer's lock, so that nothing moves meanwhile; damage is reported, never raised.

    Raises:
        ArchiveLocked: A writer did not finish in time.
    """
    problems: list[str] = []
    notes: list[str] = []
    version = rows = 0
    segments: list[Segment] = []
    with store.writing():
        try:
            with store.reading() as connection, transaction(connection, write=False):
                problems += _database_problems(connection)
                version = database.number(store.root, database.facts(connection), "version")
                segments = store.segments(connection)
                rows = _check_rows(store, connection, segments, problems)
                drafts, orphans = stray_files(store.root, {segment.name for segment in segments})
            notes += _cache_notes(store, segments)
            notes += [
                f"'{path}' was left by a writer that died; the next write clears it." for path in drafts + orphans
            ]
        except ArchiveError as error:
            problems.append(str(error))
    return VerifyReport(
        ok=not problems,
        problems=tuple(problems),
        notes=tuple(notes),
        version=version,
        rows=rows,
        segments=len(segments),
    )


def _cache_notes(store: Store, segments: list[Segment]) -> list[str]:
    """Say which files of codes and sketches would be made anew; without FAISS they cannot be looked into."""
    notes = []
    with suppress(ImportError):
        for segment in segments:
            for path_of, read in ((codes_path, read_codes), (sketches_path, read_sketches)):
                path = path_of(store.root, segment)
                if path.exists() and read(store.root, segment, store.dim) is None:
                    notes.append(f"'{path}' is not what was written; the next search makes it anew.")
    return notes


def _database_problems(connection: sqlite3.Connection) -> list[str]:
    found = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(20)")]
    problems = [] if found == ["ok"] else [f"The database fails its own check: {line}." for line in found]
    problems += [
        f"The database's table {row[0]} names a segment that is not listed."
        for row in connection.execute("PRAGMA foreign_key_check").fetchmany(20)
    ]
    for key, value, crc in connection.execute("SELECT key, value, crc FROM notes"):
        if zlib.crc32(value.encode()) != crc:
            problems.append(f"Note {key!r} does not match its checksum.")
    return problems


def _check_rows(store: Store, connection: sqlite3.Connection, segments: list[Segment], problems: list[str]) -> int:
    count = digest = 0
    known = {segment.key for segment in segments}
    for segment in segments:
        vectors = _check_segment(store, segment, problems)
        query = f"SELECT {ROW_COLUMNS}, row_crc FROM rows WHERE segment = ? ORDER BY position"
        before = count
        for *row, crc in connection.execute(query, (segment.key,)):
            identity, _, position, _, _, _, vector_crc = row
            count += 1
            digest ^= crc
            if row_crc(row) != crc:
                problems.append(f"Row {identity!r} does not match its checksum.")
            elif not 0 <= position < segment.rows:
                problems.append(f"Row {identity!r} points outside segment {segment.name}.")
            elif vectors is not None and zlib.crc32(vectors[position].data) != vector_crc:
                problems.append(f"The vector of row {identity!r} does not match its checksum.")
            elif vectors is not None and not np.isfinite(vectors[position]).all():
                problems.append(f"The vector of row {identity!r} is not finite.")
        if count - before != segment.live:
            problems.append(f"Segment {segment.name} has {count - before} live rows, its record says {segment.live}.")
    lost = [row[0] for row in connection.execute("SELECT id, segment FROM rows") if row[1] not in known]
    problems += [f"Row {identity!r} points into a segment that is not listed." for identity in lost]
    recorded = connection.execute("SELECT value FROM archive WHERE key = 'digest'").fetchone()
    if not lost and (recorded is None or recorded[0] != f"{count} {digest}"):
        problems.append("The set of rows does not match its recorded digest: rows are missing or were changed.")
    return count


def _check_segment(store: Store, segment: Segment, problems: list[str]) -> np.ndarray[Any, np.dtype[np.float32]] | None:
    try:
        path = segment_path(store.root, segment.name)
        content: bytes | mmap.mmap
        if path.stat().st_size <= MAPPED_BYTES:
            content = path.read_bytes()
        else:
            with path.open("rb") as file:
                content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ArchiveCorrupt) as error:
        missing = isinstance(error, FileNotFoundError)
        problems.append(f"Segment {segment.name!r} {'is missing' if missing else f'cannot be read ({error})'}.")
        return None
    problem = segment_problem(content, segment, dim=store.dim)
    if problem is not None:
        problems.append(f"Segment {segment.name} {problem}.")
        if len(content) != HEADER.size + 4 * segment.rows * store.dim:
            return None
    return np.frombuffer(content, dtype="<f4", offset=HEADER.size).reshape(segment.rows, store.dim)


def purge(store: Store) -> PurgeReport:
    """Leave no byte of removed rows in the archive's folder.

    Segments that hold removed vectors are rewritten, the database is vacuumed (secure_delete is always on) and its log
    truncated. The blocks a file system had given to the old files are beyond a program's reach, and so are backups.

    Raises:
        ArchiveLocked: A writer, or a reader in the middle of an old version, did not finish in time.
        StorageFull: No space to rewrite; the current version is intact.
    """
    store.merges.wait()
    with store.writing(), ExitStack() as stack:
        with store.reading() as connection:
            dirty = [segment for segment in store.segments(connection) if segment.live < segment.rows]
        if not stack.enter_context(alone(store)):
            raise ArchiveLocked(
                f"The archive '{store.root}' is being merged by another process, whose copy may hold removed rows: run "
                "the purge again when it has finished."
            )
        for segment in dirty:
            if segment.rows < TIER_ROWS:
                store.rewrite([segment])
            else:
                merge_alone(store, [segment])
        with store.reading() as connection:
            _truncate_log(store, connection)
            connection.execute("VACUUM")
            _truncate_log(store, connection)
        store.sweep()
        with translated(store.root):
            sync_folder(store.root / FOLDER)
    erased = sum(segment.rows - segment.live for segment in dirty)
    return PurgeReport(rows=erased, segments=len(dirty))


def _truncate_log(store: Store, connection: sqlite3.Connection) -> None:
    busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    if busy:
        raise ArchiveLocked(
            f"The archive '{store.root}' is being read in an old version, which keeps removed rows on disk: run the "
            "purge again when the reader has finished."
        )


def backup(store: Store, to: Path) -> Path:
    """Copy the newest version to a new folder through SQLite's backup; segments are checked on the way.

    Raises:
        ArchiveError: The target is there already.
        ArchiveCorrupt: A segment is damaged; nothing is left at the target.
        StorageFull: No space at the target; nothing is left there.
    """
    if to.exists():
        raise ArchiveError(f"A backup needs a new folder, and '{to}' is there already: give a new name.")
    draft = to.with_name(f".{to.name}.{secrets.token_hex(8)}.tmp")
    try:
        with store.writing(), translated(draft):
            (draft / FOLDER).mkdir(parents=True)
            with closing(database.connect(draft / DATABASE_NAME, create=True)) as target:
                with store.reading() as connection:
                    connection.backup(target)
                for segment in store.segments(target):
                    map_segment(store.root, segment, dim=store.dim, check=True)
                    copy = draft / FOLDER / segment.name
                    shutil.copyfile(segment_path(store.root, segment.name), copy)
                    map_segment(draft, segment, dim=store.dim, check=True)
                _sync_file_tree(draft)
                target.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            draft.rename(to)
            sync_folder(to.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return to


def _sync_file_tree(folder: Path) -> None:
    for path in (folder / FOLDER).iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    sync_folder(folder / FOLDER)
    sync_folder(folder)


def measure(store: Store) -> dict[str, Any]:
    """Count rows, segments and bytes of the newest version."""
    with store.viewing() as connection:
        rows, _ = store.digest_of(connection)
    if rows * store.dim <= MAPPED_VALUES:
        store.snapshot()  # of a small store everything is read, and damage told; a large one has `verify`
    with store.viewing() as connection:
        version = store.version_of(connection)
        rows, _ = store.digest_of(connection)
        patients = connection.execute("SELECT count(DISTINCT patient) FROM rows").fetchone()[0]
        without = connection.execute("SELECT count(*) FROM rows WHERE patient IS NULL").fetchone()[0]
        segments = store.segments(connection)
        files = connection.execute("SELECT count(*) FROM files").fetchone()[0]
        refused = connection.execute("SELECT count(*) FROM quarantine").fetchone()[0]
    return {
        "path": str(store.root),
        "format": int(store.facts["format"]),
        "version": version,
        "rows": rows,
        "dim": store.dim,
        "patients": patients,
        "rows_without_patient": without,
        "encoder": store.facts["encoder_name"],
        "encoder_fingerprint": store.facts["encoder_fingerprint"],
        "created_at": store.facts["created_at"],
        "segments": len(segments),
        "removed_rows_on_disk": sum(segment.rows for segment in segments) - rows,
        "vector_bytes": sum(HEADER.size + 4 * segment.rows * store.dim for segment in segments),
        "total_bytes": sum(path.stat().st_size for path in store.root.rglob("*") if path.is_file()),
        "files_known": files,
        "quarantined": refused,
    }


def refusals(store: Store) -> list[Refusal]:
    """List the quarantine, by path."""
    with store.reading() as connection:
        rows = connection.execute("SELECT path, reason, stage, at FROM quarantine ORDER BY path").fetchall()
    return [Refusal(*row) for row in rows]
