"""One file on its way into the archive: known or new, readable or refused; and how the database remembers it."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
import stat
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .database import now
from .errors import ImageError
from .images import image_identity
from .metadata import check_text, encode_metadata, patient_of, patient_text
from .sources import Record, printable
from .store import NewFacts, Store

if TYPE_CHECKING:
    from .encoders import Encoder

FRESH_NANOSECONDS = 2_000_000_000
"""A file changed this recently may change again within the clock's grain: its hash is trusted then, not its time."""

PIXEL_DIGITS = 32
"""Hex digits kept of the SHA-256 of what the encoder loaded: it tells one image in two encodings from a conflict."""

OWN_KEYS = frozenset({"path", "sha256", "pixels", "source"})
"""Metadata that tells where a row's image was found; a record cannot bring other values for a row that is stored."""

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
        path: Absolute path as text; the file's name in the database.
        id: The row's id, once known.
        state: Size, time and hash, once known; for an unchanged file only where they need noting again.
        image: What the encoder loaded.
        metadata: JSON text for the row.
        patient: The patient, where known.
        replaces: Whether the row of this id came from this very path, so that new content replaces it.
        twin: Whether a row with this content is stored, so that nothing was loaded.
        amendment: What the record says of an unchanged file that its row does not, or None.
        reason: Why it is refused, one sentence without the path.
        stage: "read", "encode" or "store".
    """

    path: str
    id: str = ""
    state: FileState | None = None
    image: NDArray[np.float32] | None = None
    metadata: str = "{}"
    patient: str | None = None
    replaces: bool = False
    twin: bool = False
    amendment: NewFacts | None = None
    reason: str | None = None
    stage: str = "read"


@dataclass(slots=True)
class _Known:
    """What is known of a file by the time it is refused."""

    id: str
    patient: str | None = None


def inspect(record: Record, store: Store, encoder: Encoder) -> Inspected:
    """Look at one file, and load it if its content is new; whatever goes wrong with it becomes a refusal.

    Safe to call from several threads.
    """
    path = printable(os.path.abspath(record.path))  # noqa: PTH100 (keeps links, unlike resolve)
    known = _Known(record.id)
    try:
        known.patient = patient_of(record.metadata)
        item = _inspect(record, path, store, encoder, known)
        return item if item.reason is None else replace(item, id=known.id, patient=known.patient)
    except ImageError as error:
        reason = error.reason
    except MemoryError:
        reason = "needs more memory than there is"
    except OSError as error:
        reason = f"cannot be read: {(error.strerror or str(error)).lower()}"
    except Exception as error:  # a decoder may raise anything, and one file must not end the job
        reason = f"cannot be read: {type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(" :.")
    return Inspected(path, id=known.id, reason=reason, patient=known.patient)


def _inspect(record: Record, path: str, store: Store, encoder: Encoder, so_far: _Known) -> Inspected:
    inside = record.root is None or not record.path.is_symlink()
    if not inside and not record.path.resolve().is_relative_to((record.root or record.path).resolve()):
        return Inspected(path, reason="is a link that leads out of its source folder")
    try:
        found = record.path.stat()
    except FileNotFoundError:
        return Inspected(path, reason="is missing")
    if not stat.S_ISREG(found.st_mode):
        return Inspected(path, reason="is no regular file")
    mtime = found.st_mtime_ns if time.time_ns() - found.st_mtime_ns > FRESH_NANOSECONDS else NEVER
    known, row, held = _recall(store, path)
    if known is not None and held is not None and (known.size, known.mtime_ns) == (found.st_size, found.st_mtime_ns):
        return Inspected(path, row, amendment=_amendment(record, path, row, held))
    identity = image_identity(record.path)
    state = FileState(found.st_size, mtime, identity.sha256)
    if known is not None and held is not None and known.sha256 == identity.sha256:
        return Inspected(path, row, state, amendment=_amendment(record, path, row, held))
    name = so_far.id = check_text(identity.sop_instance_uid or record.id, "id")
    facts = {"registered_at": now(), **identity.metadata, **record.metadata, "path": path, "sha256": identity.sha256}
    patient = so_far.patient = so_far.patient or patient_of({"patient": identity.patient_id})
    if patient is not None or "patient" in facts:
        facts["patient"] = patient
    replaces = held is not None and row == name and held.get("path") == path
    if not replaces and store.lookup("hash", [identity.sha256]):
        return Inspected(path, name, state, patient=patient, twin=True)
    image = encoder.load(record.path)
    after = record.path.stat()
    if (after.st_size, after.st_mtime_ns) != (found.st_size, found.st_mtime_ns):
        return Inspected(path, reason="changed while it was being read")
    facts["pixels"] = hashlib.sha256(np.ascontiguousarray(image).data).hexdigest()[:PIXEL_DIGITS]
    return Inspected(path, name, state, image, encode_metadata(facts, name), patient, replaces)


def _amendment(record: Record, path: str, row: str, held: dict[str, Any]) -> NewFacts | None:
    """Return what a record brings for the stored row of its unchanged file, where that differs from what the row has.

    A row belongs to the file it was made from: a copy of that file cannot change it.
    """
    if held.get("path") != path:
        return None
    brought = {key: value for key, value in record.metadata.items() if key not in OWN_KEYS and key != "patient"}
    patient = patient_text(record.metadata.get("patient"))
    if patient is not None:
        brought["patient"] = patient
    missing = object()
    plain = json.loads(encode_metadata(brought, row))
    changed = {key: value for key, value in plain.items() if held.get(key, missing) != value}
    if not changed:
        return None
    return NewFacts(encode_metadata(changed, row), patient_of({**held, **changed}))


def _recall(store: Store, path: str) -> tuple[FileState | None, str, dict[str, Any] | None]:
    """Return the state noted for a path, the id of its row, and that row's metadata if it is still there."""
    query = (
        "SELECT size, mtime_ns, sha256, files.id, metadata "
        "FROM files LEFT JOIN rows ON rows.id = files.id WHERE files.path = ?"
    )
    with store.reading() as connection:
        row = connection.execute(query, (path,)).fetchone()
    if row is None:
        return None, "", None
    size, mtime_ns, sha256, identity, metadata = row
    return FileState(size, mtime_ns, sha256), identity, None if metadata is None else json.loads(metadata)


def settle(connection: sqlite3.Connection, item: Inspected, identity: str) -> None:
    """Note, in the batch's transaction, that a file is stored under an id, and lift its quarantine.

    A duplicate of a row that got other content in this very batch is not noted, so that the next run looks at it again.
    """
    row = connection.execute("SELECT hash FROM rows WHERE id = ?", (identity,)).fetchone()
    if item.state is not None and row is not None and (row[0] == item.state.sha256 or same_pixels(connection, item)):
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
