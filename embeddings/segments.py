"""Vector segments: immutable files of float32 rows, made durable before the database says that they exist.

Layout of a file: 8 bytes magic, then little-endian uint32 format, uint32 dimension, uint64 rows, then rows x dimension
little-endian float32. Segments are never opened for writing again; rows leave them only when `purge` or a compaction
writes a new one.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .errors import ArchiveCorrupt

MAGIC = b"RADSHOTV"
"""First eight bytes of every segment."""

SEGMENT_FORMAT = 1
"""Layout of a segment file, as above."""

HEADER = struct.Struct("<8sIIQ")
"""Magic, format, dimension, rows."""

NAME = re.compile(r"seg-[0-9a-f]{32}\.f32")
"""The only names a segment may have: a crafted database cannot lead a reader to another file."""

DRAFT_SUFFIX = ".tmp"
"""What a segment is called until it is complete."""

FOLDER = "segments"
"""Where they lie, below the archive's folder."""


@dataclass(frozen=True, slots=True)
class Segment:
    """What the database knows about one segment file.

    Attributes:
        key: Its number in the database; never used twice.
        name: File name below `segments/`.
        sha256: Digest of the whole file, header included.
        rows: Vectors in the file, removed ones included.
    """

    key: int
    name: str
    sha256: str
    rows: int


def segment_path(root: Path, name: str) -> Path:
    """Return where a segment lies, refusing any name that this library does not give."""
    if NAME.fullmatch(name) is None:
        raise ArchiveCorrupt(
            f"The archive '{root}' names a segment {name!r}, which no writer made: run `radshot verify`."
        )
    return root / FOLDER / name


def write_segment(root: Path, vectors: NDArray[np.float32]) -> tuple[str, str]:
    """Write rows to a new segment and make it durable: draft, fsync, rename, fsync of the folder.

    Args:
        root: The archive's folder.
        vectors: float32 rows (n, d).

    Returns:
        The file's name and the SHA-256 of its bytes. It means nothing until a commit names it.

    Raises:
        OSError: The disk is full or not writable; the draft is gone.
    """
    folder = root / FOLDER
    name = f"seg-{secrets.token_hex(16)}.f32"
    draft = folder / (name + DRAFT_SUFFIX)
    rows = np.ascontiguousarray(vectors, dtype="<f4")
    header = HEADER.pack(MAGIC, SEGMENT_FORMAT, rows.shape[1], rows.shape[0])
    digest = hashlib.sha256(header)
    digest.update(rows.data)
    try:
        with draft.open("xb") as file:
            file.write(header)
            file.write(rows.data)
            file.flush()
            os.fsync(file.fileno())
        draft.rename(folder / name)
        sync_folder(folder)
    except BaseException:
        for leftover in (draft, folder / name):
            with suppress(OSError):
                leftover.unlink()
        raise
    return name, digest.hexdigest()


def read_segment(root: Path, segment: Segment, *, dim: int, check: bool) -> NDArray[np.float32]:
    """Read all rows of a segment.

    Args:
        root: The archive's folder.
        segment: What the database says about it.
        dim: Dimension of the archive's vectors.
        check: Whether to compare the file's SHA-256 with the recorded one.

    Returns:
        float32 rows (n, d), read-only.

    Raises:
        FileNotFoundError: The file is gone; the caller knows whether a newer version explains that.
        ArchiveCorrupt: The file is not what was written.
    """
    path = segment_path(root, segment.name)
    content = path.read_bytes()
    problem = segment_problem(content, segment, dim=dim, check=check)
    if problem is not None:
        raise ArchiveCorrupt(
            f"The segment '{path}' {problem}: run `radshot verify` for the extent of it and restore a backup."
        )
    rows = np.frombuffer(content, dtype="<f4", offset=HEADER.size)
    return rows.reshape(segment.rows, dim)  # (n, d)


def segment_problem(content: bytes, segment: Segment, *, dim: int, check: bool = True) -> str | None:
    """Say what is wrong with a segment's bytes, or None; the sentence goes on after the file's name."""
    if len(content) < HEADER.size:
        return f"is cut short at {len(content)} bytes"
    magic, version, width, rows = HEADER.unpack_from(content)
    if magic != MAGIC:
        return "is no segment of vectors"
    if version != SEGMENT_FORMAT:
        return f"has format {version}, and this version of radshot reads format {SEGMENT_FORMAT}"
    if (width, rows) != (dim, segment.rows):
        return f"holds {rows} rows of {width} numbers, the database says {segment.rows} of {dim}"
    expected = HEADER.size + 4 * rows * width
    if len(content) != expected:
        return f"has {len(content)} bytes instead of {expected}"
    if check and hashlib.sha256(content).hexdigest() != segment.sha256:
        return "does not match its recorded SHA-256"
    return None


def stray_files(root: Path, known: set[str]) -> tuple[list[Path], list[Path]]:
    """List what a dead writer left behind: unfinished drafts, and complete segments no commit ever named.

    Files this library did not name are never listed.
    """
    drafts: list[Path] = []
    orphans: list[Path] = []
    for path in sorted((root / FOLDER).iterdir()):
        if path.name.endswith(DRAFT_SUFFIX) and NAME.fullmatch(path.name.removesuffix(DRAFT_SUFFIX)):
            drafts.append(path)
        elif NAME.fullmatch(path.name) and path.name not in known:
            orphans.append(path)
    return drafts, orphans


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable, so that a rename survives a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
