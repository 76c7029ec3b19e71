"""DICOMDIR: the images a file-set's directory lists (PS3.3 F, PS3.10 8); nothing outside of the file-set is read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pydicom

from .errors import SourceError
from .quiet import quiet
from .sources import Record, printable

IMAGE_RECORDS = frozenset({"IMAGE"})
"""Directory Record Types (0004,1430) whose files hold images."""


def records_from_dicomdir(path: str | os.PathLike[str]) -> list[Record]:
    """List the images a DICOMDIR names, in its order.

    A file it names that is missing is listed all the same, so that the job says so; one outside of the DICOMDIR's
    folder is listed as refused, and never read.

    Args:
        path: The DICOMDIR.

    Raises:
        SourceError: It is no DICOMDIR, or cannot be read.
    """
    file = Path(path)
    with quiet():
        try:
            directory = pydicom.dcmread(file)
            records = list(directory.DirectoryRecordSequence)
        except FileNotFoundError:
            raise SourceError(f"There is no file at '{printable(file)}'.") from None
        except Exception as error:  # parsers raise anything, and quote what they stumbled over: perhaps a name
            raise SourceError(
                f"'{printable(file)}' is no DICOMDIR that can be read ({type(error).__name__}): give the folder it "
                "lies in, and its files are looked at one by one."
            ) from error
        names = [parts for record in records if (parts := _parts_of(record))]
    root = file.parent
    shared = {"source": printable(root.absolute())}
    listed = []
    for parts in names:
        place = _place(root, parts)
        inside = os.path.realpath(place).startswith(os.path.join(os.path.realpath(root), ""))  # noqa: PTH118
        reason = None if inside else "is named by a DICOMDIR outside of whose folder it lies"
        listed.append(Record(place, printable("/".join(parts)), shared, root=root, refused=reason))
    return listed


def _parts_of(record: Any) -> list[str]:
    """Return the components of the file a directory record refers to, [] where it names no image."""
    try:
        if str(record.DirectoryRecordType) not in IMAGE_RECORDS:
            return []
        name = record.get("ReferencedFileID")
        return [] if not name else [name] if isinstance(name, str) else [str(part) for part in name]
    except Exception:  # a damaged record names nothing
        return []


def _place(root: Path, parts: list[str]) -> Path:
    """Return where a file lies; file-sets written on other systems have other capitals than what a disk shows."""
    place = root.joinpath(*(part.replace("\0", "") for part in parts))
    if place.exists():
        return place
    here = root
    for part in parts:
        try:
            twin = next((entry for entry in here.iterdir() if entry.name.lower() == part.lower()), None)
        except OSError:
            twin = None
        if twin is None:
            return place
        here = twin
    return here
