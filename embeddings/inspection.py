"""One file on its way into the archive: known or new, readable or refused; and how the database remembers it."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .database import now
from .errors import DecoderUnavailable, ImageError
from .metadata import check_text, encode_metadata, patient_of, patient_text
from .reading import PARAMETERS
from .sources import Record, printable
from .store import NewFacts, Store

if TYPE_CHECKING:
    from .deidentification import Deidentifier
    from .readers import Reader

FRESH_NANOSECONDS = 2_000_000_000
"""A file changed this recently may change again within the clock's grain: its hash is trusted then, not its time."""

PIXEL_DIGITS = 32
"""Hex digits kept of the SHA-256 of what the encoder loaded: it tells one image in two encodings from a conflict."""

OWN_KEYS = frozenset({"path", "sha256", "pixels", "source", "warnings"})
"""Metadata that tells where a row's image was found; a record cannot bring other values for a row that is stored."""

SHOWN_KEYS = ("modality", "body_part", "view_position", "view", "patient_orientation")
"""What a record may say of its image that decides which warnings are looked for."""

NEVER = -1
"""Modification time recorded for such a file; it equals no real one."""


@dataclass(frozen=True, slots=True)
class FileState:
    """What told a file apart when it was last stored: size in bytes, modification time, SHA-256."""

    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Inspected:
    """A file after inspection. Exactly one of these holds: `reason`, `image`, `twin`, or its content is unchanged.

    Attributes:
        shown: Absolute path as text, for reports.
        path: The file's name in the database: that path, or its pseudonym.
        id: The row's id, once known.
        state: Size, time and hash, once known; for an unchanged file only where they need noting again.
        image: What the encoder's loader made of it, see `readers.Loaded`.
        metadata: JSON text for the row.
        patient: The patient, where known.
        replaces: Whether the row of this id came from this very path, so that new content replaces it.
        twin: Whether a row with this content is stored, so that nothing was loaded.
        amendment: What the record says of an unchanged file that its row does not, or None.
        warnings: What a person should know of the image, as codes.
        copy: An unchanged file that is a copy of its row's own file, as it would be read if that row were replaced.
        reason: Why it is refused, one sentence without the path.
        stage: "read", "encode" or "store".
    """

    shown: str
    path: str
    id: str = ""
    state: FileState | None = None
    image: NDArray[Any] | None = None
    metadata: str = "{}"
    patient: str | None = None
    replaces: bool = False
    twin: bool = False
    amendment: NewFacts | None = None
    warnings: tuple[str, ...] = ()
    copy: Unread | None = None
    reason: str | None = None
    stage: str = "read"


@dataclass(frozen=True, slots=True)
class Known:
    """What the database holds of a path.

    Attributes:
        state: The state noted when it was last stored.
        row: The id of its row.
        metadata: That row's metadata as JSON text, None where the row is gone.
        own: Whether the row was made from this very file, which is else a copy of that one.
    """

    state: FileState | None = None
    row: str = ""
    metadata: str | None = None
    own: bool = False


@dataclass(frozen=True, slots=True)
class Unread:
    """A file that is new or has changed, before anything of it was read.

    Attributes:
        record: What the source says of it.
        shown: As in `Inspected`.
        path: As in `Inspected`.
        size: Bytes.
        mtime_ns: Modification time, as the system says.
        known: What is known of it.
    """

    record: Record
    shown: str
    path: str
    size: int
    mtime_ns: int
    known: Known


@dataclass(slots=True)
class _SoFar:
    """What is known of a file by the time it is refused."""

    id: str
    patient: str | None = None
    replaced: bool = False


class Inspector:
    """Looks at the files of one job: first at their size and time, then, where those are new, at their content."""

    def __init__(self, store: Store, reader: Reader, deidentifier: Deidentifier | None = None) -> None:
        """Take the store that knows the files, what reads them, and what takes persons out of what is kept."""
        self._store = store
        self._reader = reader
        self._deidentifier = deidentifier

    def glance(self, records: Sequence[Record]) -> list[Inspected | Unread]:
        """Tell files that are as they were from those to be read; whatever goes wrong with one becomes a refusal."""
        shown = [printable(os.path.abspath(record.path)) for record in records]  # noqa: PTH100 (keeps links)
        paths = [self.stored_path(path) for path in shown]
        known = recall(self._store, paths)
        return [
            self._glance(record, where, path, known.get(path, Known()))
            for record, where, path in zip(records, shown, paths, strict=True)
        ]

    def stored_path(self, path: str) -> str:
        """Return what the database calls a file: its absolute path, or a pseudonym of it."""
        return path if self._deidentifier is None else self._deidentifier.path(path)

    def _glance(self, record: Record, shown: str, path: str, known: Known) -> Inspected | Unread:
        so_far = _SoFar(record.id)
        try:
            so_far.patient = self._patient(patient_of(record.metadata))
            if record.refused is not None:
                return self._refused(shown, path, so_far, record.refused)
            inside = record.root is None or not record.path.is_symlink()
            if not inside and not record.path.resolve().is_relative_to((record.root or record.path).resolve()):
                return self._refused(shown, path, so_far, "is a link that leads out of its source folder")
            found = record.path.stat()
            if not stat.S_ISREG(found.st_mode):
                return self._refused(shown, path, so_far, "is no regular file")
            same = known.state is not None and (known.state.size, known.state.mtime_ns) == (
                found.st_size,
                found.st_mtime_ns,
            )
            unread = Unread(record, shown, path, found.st_size, found.st_mtime_ns, known)
            if not same or known.metadata is None:
                return unread
            if not known.own:
                return Inspected(shown, path, known.row, copy=replace(unread, known=Known()))
            return Inspected(shown, path, known.row, amendment=self._amendment(record, known))
        except FileNotFoundError:
            return self._refused(shown, path, so_far, "is missing")
        except Exception as error:
            return self._refused(shown, path, so_far, self._why(error))

    def read(self, file: Unread) -> Inspected:
        """Read a file, and load its image if its content is new; whatever goes wrong with it becomes a refusal.

        Safe to call from several threads.

        Raises:
            DecoderUnavailable: No decoding process can be started: that is no fault of the file.
        """
        so_far = _SoFar(file.record.id)
        try:
            so_far.patient = self._patient(patient_of(file.record.metadata))
            return self._read(file, so_far)
        except DecoderUnavailable:
            raise
        except Exception as error:  # a decoder may raise anything, and one file must not end the job
            return self._refused(file.shown, file.path, so_far, self._why(error))

    def _read(self, file: Unread, so_far: _SoFar) -> Inspected:
        record, path, known = file.record, file.path, file.known
        identity = self._reader.identity(record.path)
        sha256 = identity.sha256 if self._deidentifier is None else self._deidentifier.content(identity.sha256)
        fresh = time.time_ns() - file.mtime_ns <= FRESH_NANOSECONDS
        state = FileState(file.size, NEVER if fresh else file.mtime_ns, sha256)
        held = None if known.metadata is None else known
        if held is not None and held.state is not None and held.state.sha256 == sha256:
            if not held.own:
                return Inspected(file.shown, path, known.row, state, copy=replace(file, known=Known()))
            return Inspected(file.shown, path, known.row, state, amendment=self._amendment(record, held))
        name = check_text(identity.sop_instance_uid or record.id, "id")
        patient = patient_of(record.metadata) or patient_of({"patient": identity.patient_id})
        facts = {**identity.metadata, **record.metadata, "path": file.shown}
        if patient is not None or "patient" in facts:
            facts["patient"] = patient
        if self._deidentifier is not None:
            name, facts = self._deidentifier.id(name), self._deidentifier.apply(facts)
            patient = patient_of(facts)
        facts = {"registered_at": now(), **facts, "path": path, "sha256": sha256}
        so_far.id, so_far.patient, so_far.replaced = name, patient, True
        replaces = held is not None and held.own and held.row == name
        if not replaces and self._store.lookup("hash", [sha256]):
            return Inspected(file.shown, path, name, state, patient=patient, twin=True)
        told = {key: record.metadata[key] for key in SHOWN_KEYS if record.metadata.get(key) is not None}
        loaded = self._reader.load(record.path, {**identity.metadata, **told})
        after = record.path.stat()
        if (after.st_size, after.st_mtime_ns) != (file.size, file.mtime_ns):
            return self._refused(file.shown, path, so_far, "changed while it was being read")
        pixels = hashlib.sha256(np.ascontiguousarray(loaded.image).data).hexdigest()
        if self._deidentifier is not None:
            pixels = self._deidentifier.content(pixels)
        facts["pixels"] = pixels[:PIXEL_DIGITS]
        if loaded.warnings:
            facts["warnings"] = list(loaded.warnings)
        return Inspected(
            file.shown,
            path,
            name,
            state,
            loaded.image,
            encode_metadata(facts, name),
            patient,
            replaces,
            warnings=loaded.warnings,
        )

    def _refused(self, shown: str, path: str, so_far: _SoFar, reason: str) -> Inspected:
        name = so_far.id
        if self._deidentifier is not None and not so_far.replaced:
            name = self._deidentifier.id(name)
        return Inspected(shown, path, name, patient=so_far.patient, reason=reason)

    def _why(self, error: Exception) -> str:
        """As the function; where persons are taken out, nothing that an error quotes is kept."""
        if self._deidentifier is None or isinstance(error, ImageError | OSError | MemoryError):
            return _why(error)
        return f"cannot be read: {type(error).__name__}"

    def _patient(self, patient: str | None) -> str | None:
        return patient if patient is None or self._deidentifier is None else self._deidentifier.patient(patient)

    def _amendment(self, record: Record, known: Known) -> NewFacts | None:
        """Return what a record brings for its own row, the file unchanged, where that differs from what the row has."""
        brought = {key: value for key, value in record.metadata.items() if key not in OWN_KEYS and key != "patient"}
        patient = patient_text(record.metadata.get("patient"))
        if patient is not None:
            brought["patient"] = patient
        if not brought:
            return None
        if self._deidentifier is not None:
            brought = self._deidentifier.apply(brought)
        held: dict[str, Any] = json.loads(known.metadata or "{}")
        missing = object()
        plain = json.loads(encode_metadata(brought, known.row))
        changed = {key: value for key, value in plain.items() if held.get(key, missing) != value}
        if not changed:
            return None
        return NewFacts(encode_metadata(changed, known.row), patient_of({**held, **changed}))


def _why(error: Exception) -> str:
    """Say in one sentence, without the path, why a file cannot be used."""
    if isinstance(error, ImageError):
        return error.reason
    if isinstance(error, MemoryError):
        return "needs more memory than there is"
    if isinstance(error, OSError):
        return f"cannot be read: {(error.strerror or str(error)).lower()}"
    return f"cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(" :.")


def recall(store: Store, paths: Sequence[str]) -> dict[str, Known]:
    """Return what the database holds of some paths; those it has never met are left out."""
    found = {}
    with store.reading() as connection:
        for start in range(0, len(paths), PARAMETERS):
            part = paths[start : start + PARAMETERS]
            query = (
                "SELECT files.path, size, mtime_ns, sha256, files.id, metadata, "
                "json_extract(metadata, '$.path') = files.path FROM files "
                f"LEFT JOIN rows ON rows.id = files.id WHERE files.path IN ({','.join('?' * len(part))})"
            )
            for path, size, mtime_ns, sha256, identity, metadata, own in connection.execute(query, part):
                found[path] = Known(FileState(size, mtime_ns, sha256), identity, metadata, own == 1)
    return found


def settle(connection: sqlite3.Connection, item: Inspected, identity: str, *, same: bool = False) -> None:
    """Note, in the batch's transaction, that a file is stored under an id, and lift its quarantine.

    A duplicate of a row that got other content in this very batch is not noted, so that the next run looks at it again.

    Args:
        connection: That of the transaction.
        item: The file.
        identity: The row that stands for it.
        same: Whether the file is known to show the row's image though its bytes are others.
    """
    row = connection.execute("SELECT hash FROM rows WHERE id = ?", (identity,)).fetchone()
    known = same or (item.state is not None and row is not None and row[0] == item.state.sha256)
    if item.state is not None and row is not None and (known or same_pixels(connection, item)):
        connection.execute(
            "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?)",
            (item.path, item.state.size, item.state.mtime_ns, item.state.sha256, identity),
        )
    connection.execute("DELETE FROM quarantine WHERE path = ?", (item.path,))


def renew(connection: sqlite3.Connection, item: Inspected) -> None:
    """Note, in the batch's transaction, the new time of a file whose content is the same."""
    if item.state is not None:
        connection.execute(
            "UPDATE files SET size = ?, mtime_ns = ? WHERE path = ?",
            (item.state.size, item.state.mtime_ns, item.path),
        )
    connection.execute("DELETE FROM quarantine WHERE path = ?", (item.path,))


def refuse(connection: sqlite3.Connection, item: Inspected, reason: str, stage: str) -> None:
    """Note, in the batch's transaction, why a file was refused."""
    connection.execute(
        "INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?, ?, ?)",
        (item.path, reason, stage, item.id or None, item.patient, now()),
    )


def same_pixels(connection: sqlite3.Connection, item: Inspected) -> bool:
    """Say whether the row of an item's id shows the same pixels, as the encoder loads them, in another encoding."""
    query = "SELECT json_extract(metadata, '$.pixels') = json_extract(?, '$.pixels') FROM rows WHERE id = ?"
    row = connection.execute(query, (item.metadata, item.id)).fetchone()
    return row is not None and row[0] == 1


def holder_of(
    connection: sqlite3.Connection, *, id: str | None = None, sha256: str | None = None
) -> tuple[str, str] | None:
    """Return id and path of the row that has an id or a content, or None."""
    column, value = ("id", id) if id is not None else ("hash", sha256)
    query = f"SELECT id, json_extract(metadata, '$.path') FROM rows WHERE {column} = ? ORDER BY id LIMIT 1"
    row = connection.execute(query, (value,)).fetchone()
    return None if row is None else (row[0], Path(row[1]).as_posix() if row[1] is not None else "")
