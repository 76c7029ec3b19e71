"""reembed_archive: move an archive to another encoder; a crash at any moment leaves the old archive or the new one."""

from __future__ import annotations

import ctypes
import os
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from .archive import Archive
from .errors import ArchiveError
from .ingest import KEY_NOTE, IngestReport, embed_listing
from .segments import sync_folder
from .sources import Record, gather

if TYPE_CHECKING:
    from .encoders import Encoder
    from .snapshot import Snapshot

_HERE, _EXCHANGE = -100, 2
"""AT_FDCWD and RENAME_EXCHANGE of Linux's renameat2(2)."""


@dataclass(frozen=True, slots=True)
class ReembedReport:
    """What became of an archive's rows.

    Attributes:
        rows: Rows the archive now holds vectors of the new encoder for; 0 where it was not replaced.
        refused: (path or id, reason) of rows that could not be embedded anew.
        replaced: Whether the new archive took the old one's place.
    """

    rows: int
    refused: tuple[tuple[str, str], ...]
    replaced: bool


def reembed_archive(
    archive: str | os.PathLike[str],
    encoder: Encoder,
    *,
    batch_size: int = 64,
    drop_missing: bool = False,
    progress: bool | Callable[[IngestReport], None] | None = None,
) -> ReembedReport:
    """Embed every image an archive knows with another encoder, then put the new archive in the old one's place.

    The new one grows beside the old one, which stays readable and is locked for writers meanwhile; the two folders
    change places in one step of the file system, and the old one is deleted. Ids, metadata and notes stay, and a
    comparison set stays one. A process
    that has the old archive open must open it again; what it tries to write is refused. A run that is stopped begins
    anew the next time.

    Args:
        archive: The archive's folder.
        encoder: The encoder to move to; where the archive is of that encoder already, nothing is done.
        batch_size: Images per commit.
        drop_missing: Whether rows whose file is gone, changed or unreadable are left out; otherwise one such row
            leaves the archive as it was.
        progress: As for `embed_archive`.

    Returns:
        The counts, with every refused row and its reason.

    Raises:
        ArchiveError: There is no archive, or the file system cannot exchange two folders.
        ArchiveLocked: Another process is writing.
        StorageFull: No space beside the archive; it is as it was.
    """
    with Archive.open(archive) as old, old.writing():
        if old.encoder_fingerprint == encoder.fingerprint:
            return ReembedReport(rows=0, refused=(), replaced=False)
        if old.get_note(KEY_NOTE) is not None or old.value_counts("way"):
            raise ArchiveError(
                f"The archive '{old.path}' holds pseudonyms of paths, or volumes, which cannot be embedded anew from "
                "here: embed their source into a new archive."
            )
        target = old.path.resolve()
        draft = target.with_name(f".{target.name}.reembed")
        shutil.rmtree(draft, ignore_errors=True)
        _try_exchange(target.parent)
        try:
            with Archive.open(draft, encoder=encoder, kind=old.kind) as new, new.writing():
                refused = _fill(old, new, encoder, batch_size, progress)
                if refused and not drop_missing:
                    return ReembedReport(rows=0, refused=refused, replaced=False)
                rows = len(new)
                new.close()  # its database is whole in one file before the folder moves
                _exchange(target, draft)
                sync_folder(target.parent)
                with old.store.reading() as connection:
                    # Who has the old database open still reaches it: from here on it answers nobody.
                    connection.execute("DELETE FROM archive")
        finally:
            shutil.rmtree(draft, ignore_errors=True)
    return ReembedReport(rows=rows, refused=refused, replaced=True)


def _fill(
    old: Archive,
    new: Archive,
    encoder: Encoder,
    batch_size: int,
    progress: bool | Callable[[IngestReport], None] | None,
) -> tuple[tuple[str, str], ...]:
    """Embed the rows of the old archive into the new one; return those that could not be."""
    held = old.snapshot()
    records = []
    refused: dict[str, tuple[str, str]] = {}
    for name, row in zip(held.ids, held.metadata, strict=True):
        path = row.get("path")
        if path is None:
            refused[name] = (name, "no file is known for it")
            continue
        renewed = {**row, "encoder": encoder.fingerprint} if "encoder" in row else row
        records.append(Record(path=Path(path), id=name, metadata=renewed))
    owner = {str(record.path): record.id for record in records}
    listing = gather(records, manifest=None, image_column="image", group=None, without=new.path)
    report = embed_listing(listing, encoder, new, batch_size=batch_size, progress=progress)
    refused.update({owner.get(path, path): (path, reason) for path, reason in report.refused})
    refused.update(_unlike(held, new, refused))
    with old.store.reading() as connection:
        notes = connection.execute("SELECT key, value FROM notes ORDER BY key").fetchall()
    for key, value in notes:
        new.store.set_note(key, value)
    return tuple(refused.values())


def _unlike(held: Snapshot, new: Archive, refused: dict[str, tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Take rows out of the new archive that are not what the old one held, and name what is missing."""
    made = new.snapshot()
    contents = dict(zip(made.ids, made.hashes, strict=True))
    known = dict(zip(held.ids, held.hashes, strict=True))
    found = {}
    for name, row in zip(held.ids, held.metadata, strict=True):
        where = str(row.get("path", name))
        if name in refused:
            continue
        if name not in contents:
            found[name] = (where, f"its file no longer gives the row {name!r}")
        elif contents[name] != known[name] and row.get("sha256") == known[name]:
            found[name] = (where, "has changed since it was stored")
    strangers = [name for name in made.ids if name not in known or name in found]
    if strangers:
        new.remove(ids=strangers, purge=True)
    return found


def _try_exchange(folder: Path) -> None:
    """Find out before the work, on two empty folders, whether the file system can do it."""
    with tempfile.TemporaryDirectory(dir=folder, prefix=".reembed-") as room:
        first, second = Path(room) / "a", Path(room) / "b"
        first.mkdir()
        second.mkdir()
        _exchange(first, second)


def _exchange(first: Path, second: Path) -> None:
    """Let two folders change places in one step.

    Raises:
        ArchiveError: The system has no such step, or refuses it here.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        reason = "this system has no such step"
    elif call(_HERE, os.fsencode(first), _HERE, os.fsencode(second), _EXCHANGE) == 0:
        return
    else:
        reason = os.strerror(ctypes.get_errno()).lower()
    raise ArchiveError(
        f"'{first}' cannot be exchanged for a new archive in one step ({reason}): embed its images into a new archive "
        "instead, and use that one."
    )
