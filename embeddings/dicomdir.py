"""DICOMDIR: the images a file-set's directory lists (PS3.3 F, PS3.10 8); nothing outside of the file-set is read."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pydicom

from .errors import SourceError
from .quiet import quiet
from .sources import Record, printable

IMAGE_RECORDS = frozenset({"IMAGE"})
"""Directory Record Types (0004,1430) whose files hold images."""

DELETED = 0
"""Record In-use Flag (0004,1410) of a record that is to be passed over (PS3.3 F.3.2.2)."""

Entries = Callable[[Path], dict[str, str]]

OUTSIDE = "is named by a DICOMDIR outside of whose folder it lies"
NO_NAME = "is named by a DICOMDIR in a way that no file of a file-set is"


def records_from_dicomdir(path: str | os.PathLike[str]) -> list[Record]:
    """List the images a DICOMDIR names, in its order.

    A file it names that is missing is listed all the same, so that the job says so. One outside of the DICOMDIR's
    folder, by `..`, an absolute path or a link, is listed as refused under a path below the DICOMDIR, and never read.

    Args:
        path: The DICOMDIR.

    Raises:
        SourceError: It is no DICOMDIR, or cannot be read.
    """
    file = Path(path)
    with quiet():
        try:
            directory = pydicom.dcmread(file, specific_tags=["DirectoryRecordSequence"])
            records = list(directory.DirectoryRecordSequence)
        except FileNotFoundError:
            raise SourceError(f"There is no file at '{printable(file)}'.") from None
        except Exception as error:  # parsers raise anything, and quote what they stumbled over: perhaps a name
            raise SourceError(
                f"'{printable(file)}' is no DICOMDIR that can be read ({type(error).__name__}): give the folder it "
                "lies in, and its files are looked at one by one."
            ) from error
        names = dict.fromkeys(parts for record in records if (parts := _parts_of(record)))
    root = file.parent
    shared = {"source": printable(root.absolute())}
    entries = cache(_entries)
    listed = []
    for parts in names:
        place, reason = _place(root, parts, entries)
        if place is None:
            place = file / "\\".join(parts).replace("/", "%2F").replace("\0", "%00")  # below a file there can be none
        listed.append(Record(place, printable("/".join(parts)), shared, root=root, refused=reason))
    return listed


def _parts_of(record: Any) -> tuple[str, ...]:
    """Return the components of the file a directory record refers to, () where it names no image."""
    try:
        if str(record.DirectoryRecordType) not in IMAGE_RECORDS or record.get("RecordInUseFlag") == DELETED:
            return ()
        name = record.get("ReferencedFileID")
        return () if not name else (name,) if isinstance(name, str) else tuple(str(part) for part in name)
    except Exception:  # a damaged record names nothing
        return ()


def _place(root: Path, parts: tuple[str, ...], entries: Entries) -> tuple[Path | None, str | None]:
    """Return where a file lies, or why it is not to be read."""
    if any(not part.strip(".") or set(part) & set("/\\\0") for part in parts):
        return None, OUTSIDE if ".." in parts or any("/" in part for part in parts) else NO_NAME
    inside = os.path.join(os.path.realpath(root), "")  # noqa: PTH118 (Path drops the separator at the end)
    here = root
    for part in parts:
        place = here / part
        here = place if os.path.lexists(place) else here / entries(here).get(part.lower(), part)
        if not os.path.realpath(here).startswith(inside):
            return None, OUTSIDE
    return here, None


def _entries(folder: Path) -> dict[str, str]:
    """Return what a folder holds by its name in small letters: disks show other capitals than file-sets name."""
    try:
        return {entry.name.lower(): entry.name for entry in folder.iterdir()}
    except OSError:
        return {}
