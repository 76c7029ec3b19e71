"""Sketches: one bit per dimension of a segment's rows (RaBitQ, Gao and Long, arXiv:2405.12497), a disposable file.

Normalised rows are turned by a fixed rotation, a centre is subtracted, and of every number its sign is kept, with two
numbers per row that make the estimate of a product unbiased. A sketch takes a seventh of the memory of 8-bit codes and
is looked through several times as fast, but bounds nothing: it proposes candidates, and what they are worth is
measured. The file carries what `embeddings.quantised` carries, and its bits are trusted only in the FAISS version that
made them.

Layout: see `embeddings.cache_file`; centre (d float32), checksums (n uint32), sketches (n x `code_size` bytes).
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cache_file import FOLDER, read_cache, write_cache
from .quantised import ROWS_AT_ONCE, SHARD, Proposal, import_faiss, memory_of, normalised
from .segments import Segment

MAGIC = b"RADSHOTB"
"""First eight bytes of every file of sketches."""

SKETCH_FORMAT = 1
"""Layout of the file, and the rotation."""

SUFFIX = ".rbq"

QUERY_BITS = 4
"""Bits per number of a query; more cost time and find no more."""


@dataclass(frozen=True, eq=False)
class Sketches:
    """The sketches of one segment's rows.

    Attributes:
        centre: float32 (d,), subtracted from the rotated rows.
        checksums: uint32 (n,), zlib.crc32 of each float32 row as it is stored.
        shards: faiss.IndexRaBitQ that hold the sketches of `SHARD` rows each.
    """

    centre: NDArray[np.float32]
    checksums: NDArray[np.uint32]
    shards: tuple[Any, ...]

    def propose(self, queries: NDArray[np.float32], width: int, parameters: Any = None, *, shard: int) -> Proposal:
        """Find the rows of one shard whose estimated similarity is largest.

        As `Codes.propose`, except that the estimates have no bound: the slack is infinite.
        """
        values, found = self.shards[shard].search(queries @ rotation(queries.shape[1]).T, width, params=parameters)
        places = np.where(found < 0, found, found + shard * SHARD)
        return places, values.astype(np.float64), np.full(len(queries), np.inf)


@cache
def rotation(dim: int) -> NDArray[np.float32]:
    """Return an orthonormal matrix (d, d) that is the same everywhere: twice random signs, then a cosine transform."""
    frequency, place = np.arange(dim)[:, None], np.arange(dim)[None]
    cosine = np.sqrt(2 / dim) * np.cos(np.pi * (place + 0.5) * frequency / dim)
    cosine[0] /= np.sqrt(2)
    drawn = np.frombuffer(hashlib.shake_256(b"radshot rotation").digest(-(-2 * dim // 8)), dtype=np.uint8)
    signs = 2.0 * np.unpackbits(drawn)[: 2 * dim] - 1.0
    turned: NDArray[np.float32] = ((cosine * signs[:dim]) @ (cosine * signs[dim:])).astype(np.float32)
    return turned


def sketches_path(root: Path, segment: Segment) -> Path:
    """Return where a segment's sketches lie."""
    return root / FOLDER / f"{Path(segment.name).stem}{SUFFIX}"


def bytes_per_row(dim: int) -> int:
    """Memory of one row's sketch and checksum."""
    return -(-dim // 8) + 8 + 4


def build_sketches(rows: NDArray[np.float32]) -> Sketches:
    """Make the sketches of rows (n, d)."""
    count, dim = rows.shape
    turn = rotation(dim).T
    total = np.zeros(dim)
    for start in range(0, count, ROWS_AT_ONCE):
        total += normalised(np.asarray(rows[start : start + ROWS_AT_ONCE])).sum(axis=0, dtype=np.float64)
    centre = np.asarray((total / max(count, 1)).astype(np.float32) @ turn)
    shards, memory = _empty_shards(count, centre)
    checksums = np.empty(count, dtype=np.uint32)
    for start in range(0, count, ROWS_AT_ONCE):
        part = np.ascontiguousarray(rows[start : start + ROWS_AT_ONCE])
        checksums[start : start + len(part)] = [zlib.crc32(row.data) for row in part]
        shard = start // SHARD
        sketches = memory[shard].reshape(-1, shards[shard].code_size)
        sketches[start % SHARD : start % SHARD + len(part)] = shards[shard].sa_encode(normalised(part) @ turn)
    return Sketches(centre, checksums, shards)


def write_sketches(root: Path, segment: Segment, sketches: Sketches) -> None:
    """Keep sketches for the next process.

    Raises:
        OSError: The disk is full or not writable.
    """
    body = [sketches.centre.view(np.uint8), sketches.checksums.view(np.uint8)]
    body += [memory_of(shard) for shard in sketches.shards]
    write_cache(sketches_path(root, segment), MAGIC, _facts(segment, len(sketches.centre)), body)


def read_sketches(root: Path, segment: Segment, dim: int) -> Sketches | None:
    """Read a segment's sketches and check every block; None where they are missing, not its own, or damaged."""
    centre = np.empty(dim, dtype=np.float32)
    checksums = np.empty(segment.rows, dtype=np.uint32)
    shards: list[Any] = []

    def arrays() -> list[NDArray[np.uint8]]:
        made, memory = _empty_shards(segment.rows, centre)
        shards.extend(made)
        return [centre.view(np.uint8), checksums.view(np.uint8), *memory]

    size = 4 * dim + bytes_per_row(dim) * segment.rows
    if read_cache(sketches_path(root, segment), MAGIC, _facts(segment, dim), size, arrays) is None:
        return None
    for shard in shards:
        import_faiss().copy_array_to_vector(centre, shard.center)
    return Sketches(centre, checksums, tuple(shards))


def load_or_build_sketches(root: Path, segment: Segment, dim: int, read: Callable[[], NDArray[np.float32]]) -> Sketches:
    """Return a segment's sketches from the cache; as `quantised.load_or_build`."""
    sketches = read_sketches(root, segment, dim)
    if sketches is None:
        sketches = build_sketches(read())
        with suppress(OSError):  # a disk that is full or not writable costs the next process this work
            write_sketches(root, segment, sketches)
    return sketches


def _facts(segment: Segment, dim: int) -> dict[str, object]:
    made_by = str(import_faiss().__version__)
    return {
        "format": SKETCH_FORMAT, "segment": segment.sha256, "rows": segment.rows, "dim": dim, "faiss": made_by
    }  # fmt: skip


def _empty_shards(count: int, centre: NDArray[np.float32]) -> tuple[tuple[Any, ...], list[NDArray[np.uint8]]]:
    """Return indexes for so many rows, and their memory, to be filled with sketches."""
    faiss = import_faiss()
    shards = []
    for start in range(0, count, SHARD):
        index = faiss.IndexRaBitQ(len(centre), faiss.METRIC_INNER_PRODUCT)
        index.qb = QUERY_BITS
        faiss.copy_array_to_vector(centre, index.center)
        index.is_trained = True
        rows = min(SHARD, count - start)
        index.codes.resize(rows * index.code_size)
        index.ntotal = rows
        shards.append(index)
    return tuple(shards), [memory_of(shard) for shard in shards]
