"""Vector segments: immutable files of float32 rows, made durable before the database says that they exist.

Layout of a file: 8 bytes magic, then little-endian uint32 format, uint32 dimension, uint64 rows, then rows x dimension
little-endian float32. Segments are never opened for writing again; rows leave them only when `purge` or a compaction
writes a new one.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import re
import secrets
import struct
from collections.abc import Iterator
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
        live: Vectors that a row points at.
        changed: The version in which that changed last.
    """

    key: int
    name: str
    sha256: str
    rows: int
    live: int = 0
    changed: int = 0


def segment_path(root: Path, name: str) -> Path:
    """Return where a segment lies, refusing any name that this library does not give."""
    if NAME.fullmatch(name) is None:
        raise ArchiveCorrupt(
            f"The archive '{root}' names a segment {name!r}, which no writer made: run `radshot verify`."
        )
    return root / FOLDER / name


PART_NAME = re.compile(r"merge-[0-9a-f]{32}\.part")
"""What a segment is called while a merge writes it, which takes long and holds no lock: no sweep takes it away."""


def stream_segment(root: Path, parts: Iterator[NDArray[np.float32]], *, rows: int, dim: int) -> tuple[Path, str]:
    """Write a segment of many rows in bounded memory, durable but under a name of no segment yet.

    Args:
        root: The archive's folder.
        parts: float32 rows (n, d), piece by piece; `rows` in all.
        rows: How many rows there will be.
        dim: Numbers per row.

    Returns:
        The file, which `adopt_segment` makes a segment, and the SHA-256 of its bytes.
    """
    path = root / FOLDER / f"merge-{secrets.token_hex(16)}.part"
    header = HEADER.pack(MAGIC, SEGMENT_FORMAT, dim, rows)
    digest = hashlib.sha256(header)
    try:
        with path.open("xb") as file:
            file.write(header)
            for part in parts:
                piece = np.ascontiguousarray(part, dtype="<f4")
                digest.update(piece.data)
                file.write(piece.data)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        with suppress(OSError):
            path.unlink()
        raise
    return path, digest.hexdigest()


def adopt_segment(root: Path, path: Path) -> str:
    """Give a file of `stream_segment` a segment's name, durably; call it under the writer's lock, before the commit."""
    name = f"seg-{secrets.token_hex(16)}.f32"
    path.rename(root / FOLDER / name)
    sync_folder(root / FOLDER)
    return name


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


def map_segment(root: Path, segment: Segment, *, dim: int, check: bool) -> NDArray[np.float32]:
    """Map a segment's rows into memory: nothing is read but what is looked at.

    Args:
        root: The archive's folder.
        segment: What the database says about it.
        dim: Dimension of the archive's vectors.
        check: Whether to read it all once and compare its SHA-256 with the recorded one.

    Returns:
        float32 rows (n, d), read-only.

    Raises:
        FileNotFoundError: The file is gone; the caller knows whether a newer version explains that.
        ArchiveCorrupt: The file is not what was written.
    """
    path = segment_path(root, segment.name)
    with path.open("rb") as file:
        opening = file.read(HEADER.size)
        size = os.fstat(file.fileno()).st_size
        digest = None
        if check:
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    problem = _header_problem(opening, size, segment, dim=dim)
    if problem is None and digest is not None and digest != segment.sha256:
        problem = "does not match its recorded SHA-256"
    if problem is not None:
        raise ArchiveCorrupt(
            f"The segment '{path}' {problem}: run `radshot verify` for the extent of it and restore a backup."
        )
    if segment.rows == 0:
        return np.empty((0, dim), dtype=np.float32)
    rows: NDArray[np.float32] = np.memmap(path, dtype="<f4", mode="r", offset=HEADER.size, shape=(segment.rows, dim))
    return rows


def segment_problem(content: bytes | mmap.mmap, segment: Segment, *, dim: int, check: bool = True) -> str | None:
    """Say what is wrong with a segment's bytes, or None; the sentence goes on after the file's name."""
    problem = _header_problem(content[: HEADER.size], len(content), segment, dim=dim)
    if problem is None and check and hashlib.sha256(content).hexdigest() != segment.sha256:
        return "does not match its recorded SHA-256"
    return problem


def _header_problem(opening: bytes, size: int, segment: Segment, *, dim: int) -> str | None:
    """Say what is wrong with a segment's first bytes and its size, or None."""
    if len(opening) < HEADER.size:
        return f"is cut short at {len(opening)} bytes"
    magic, version, width, rows = HEADER.unpack_from(opening)
    if magic != MAGIC:
        return "is no segment of vectors"
    if version != SEGMENT_FORMAT:
        return f"has format {version}, and this version of radshot reads format {SEGMENT_FORMAT}"
    if (width, rows) != (dim, segment.rows):
        return f"holds {rows} rows of {width} numbers, the database says {segment.rows} of {dim}"
    expected = HEADER.size + 4 * rows * width
    return None if size == expected else f"has {size} bytes instead of {expected}"


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
