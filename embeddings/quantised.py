"""Codes: a segment's normalised rows in 8 bits per number, a disposable file that is checked block by block.

A row x of length 1 is kept as whole numbers c with x ~ mean + step * c, per dimension, as in scalar quantisation
(FAISS, IndexScalarQuantizer). The file is made from the immutable segment alone and carries that segment's SHA-256, a
checksum of every float32 row, and the SHA-256 of its own blocks; FAISS gets the numbers, never the file.

Layout: see `embeddings.cache_file`; mean (d float32), step (d float32), checksums (n uint32), codes (n x d uint8, 128
stands for 0).
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cache_file import FOLDER, read_cache, write_cache
from .segments import Segment

MAGIC = b"RADSHOTQ"
"""First eight bytes of every file of codes."""

CODES_FORMAT = 1
"""Layout of the file, as above."""

SUFFIX = ".sq8"

ROWS_AT_ONCE = 8192
"""Rows quantised at a time."""

SHARD = 1 << 17
"""Rows searched by one thread at a time where there are fewer queries than processors."""

LEVELS = 127
"""Codes go from -127 to 127."""

Proposal = tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]
"""Positions (m, width), -1 where there are no more; approximate cosines (m, width); slack (m,)."""


@dataclass(frozen=True, eq=False)
class Codes:
    """The quantised rows of one segment.

    Attributes:
        mean: float32 (d,), subtracted from the normalised rows.
        step: float32 (d,), what one unit of a code is worth.
        checksums: uint32 (n,), zlib.crc32 of each float32 row as it is stored.
        farthest: The largest distance between a row's (x - mean) / step and its code, Euclidean.
        longest: The largest length of a code.
        shards: Indexes of faiss.IndexScalarQuantizer that hold the codes of `SHARD` rows each.
    """

    mean: NDArray[np.float32]
    step: NDArray[np.float32]
    checksums: NDArray[np.uint32]
    farthest: float
    longest: float
    shards: tuple[Any, ...]

    def propose(self, queries: NDArray[np.float32], width: int, parameters: Any = None, *, shard: int) -> Proposal:
        """Find the rows of one shard whose approximate similarity is largest.

        Args:
            queries: Normalised rows (m, d).
            width: Rows wanted per query.
            parameters: FAISS search parameters that select rows of the shard, or None for all.
            shard: Which.

        Returns:
            Positions (m, width), -1 where there are no more; approximate cosines (m, width), descending; and by how
            much at most a cosine can exceed its approximation (m,).
        """
        scaled = queries.astype(np.float64) * self.step  # <q, x> = <q, mean> + <q * step, (x - mean) / step>
        largest = np.abs(scaled).max(axis=1, initial=0.0)
        unit = np.where(largest > 0, largest / LEVELS, 1.0)[:, None]
        whole = np.rint(scaled / unit)
        values, found = self.shards[shard].search(whole.astype(np.float32), width, params=parameters)
        offset = queries.astype(np.float64) @ self.mean.astype(np.float64)
        lost = np.linalg.norm(scaled - whole * unit, axis=1)
        # <s, y> - <w, c> = <s, y - c> + <s - w, c> for s the scaled query, w its whole numbers, y the row, c its code
        slack = np.linalg.norm(scaled, axis=1) * self.farthest + lost * self.longest + 1e-6
        places = np.where(found < 0, found, found + shard * SHARD)
        return places, values.astype(np.float64) * unit + offset[:, None], slack


def codes_path(root: Path, segment: Segment) -> Path:
    """Return where a segment's codes lie."""
    return root / FOLDER / f"{Path(segment.name).stem}{SUFFIX}"


def build_codes(rows: NDArray[np.float32]) -> Codes:
    """Quantise rows (n, d)."""
    count, dim = rows.shape
    mean, reach = _centre_and_reach(rows)
    step = np.where(reach > 0, reach / LEVELS, 1.0).astype(np.float32)
    shards, memory = _empty_shards(count, dim)
    checksums = np.empty(count, dtype=np.uint32)
    farthest = longest = 0.0
    for start in range(0, count, ROWS_AT_ONCE):
        part = np.ascontiguousarray(rows[start : start + ROWS_AT_ONCE])
        checksums[start : start + len(part)] = [zlib.crc32(row.data) for row in part]
        exact = (normalised(part) - mean) / step
        whole = np.clip(np.rint(exact), -LEVELS, LEVELS)
        codes = memory[start // SHARD].reshape(-1, dim)
        codes[start % SHARD : start % SHARD + len(part)] = (whole + 128).astype(np.uint8)
        farthest = max(farthest, float(np.linalg.norm(exact - whole, axis=1).max(initial=0.0)))
        longest = max(longest, float(np.linalg.norm(whole, axis=1).max(initial=0.0)))
    return Codes(mean, step, checksums, farthest, longest, shards)


def _centre_and_reach(rows: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the middle of each dimension's range over the normalised rows, and half that range."""
    low = np.full(rows.shape[1], np.inf, dtype=np.float32)
    high = np.full(rows.shape[1], -np.inf, dtype=np.float32)
    for start in range(0, len(rows), ROWS_AT_ONCE):
        part = normalised(np.asarray(rows[start : start + ROWS_AT_ONCE]))
        np.minimum(low, part.min(axis=0), out=low)
        np.maximum(high, part.max(axis=0), out=high)
    half = np.float32(0.5)
    return (low + high) * half, (high - low) * half


def normalised(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scale rows to length 1; a row of zeros stays."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units: NDArray[np.float32] = np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)
    return units


def write_codes(root: Path, segment: Segment, codes: Codes) -> None:
    """Keep codes for the next process.

    Raises:
        OSError: The disk is full or not writable.
    """
    body = [codes.mean.view(np.uint8), codes.step.view(np.uint8), codes.checksums.view(np.uint8)]
    body += [memory_of(shard) for shard in codes.shards]
    facts = {**_facts(segment, len(codes.mean)), "farthest": codes.farthest, "longest": codes.longest}
    write_cache(codes_path(root, segment), MAGIC, facts, body)


def read_codes(root: Path, segment: Segment, dim: int) -> Codes | None:
    """Read a segment's codes and check every block; None where they are missing, of another segment, or damaged."""
    count = segment.rows
    mean, step = np.empty(dim, dtype=np.float32), np.empty(dim, dtype=np.float32)
    checksums = np.empty(count, dtype=np.uint32)
    shards: list[Any] = []

    def arrays() -> list[NDArray[np.uint8]]:
        made, memory = _empty_shards(count, dim)
        shards.extend(made)
        return [mean.view(np.uint8), step.view(np.uint8), checksums.view(np.uint8), *memory]

    size = 8 * dim + (4 + dim) * count
    header = read_cache(codes_path(root, segment), MAGIC, _facts(segment, dim), size, arrays)
    if header is None:
        return None
    try:
        return Codes(mean, step, checksums, float(header["farthest"]), float(header["longest"]), tuple(shards))
    except (KeyError, TypeError, ValueError):
        return None


def _facts(segment: Segment, dim: int) -> dict[str, object]:
    return {"format": CODES_FORMAT, "segment": segment.sha256, "rows": segment.rows, "dim": dim}


def _empty_shards(count: int, dim: int) -> tuple[tuple[Any, ...], list[NDArray[np.uint8]]]:
    """Return indexes for so many rows, and their memory, to be filled with codes."""
    faiss = import_faiss()
    shards = []
    for start in range(0, count, SHARD):
        rows = min(SHARD, count - start)
        index = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit_direct_signed, faiss.METRIC_INNER_PRODUCT)
        index.codes.resize(rows * dim)
        index.ntotal = rows
        shards.append(index)
    return tuple(shards), [memory_of(shard) for shard in shards]


def memory_of(index: Any) -> NDArray[np.uint8]:
    """Return a FAISS index's codes as an array that shares its memory."""
    memory: NDArray[np.uint8] = import_faiss().rev_swig_ptr(index.codes.data(), index.codes.size())
    return memory


def import_faiss() -> Any:
    """Import FAISS.

    Raises:
        ImportError: It is not installed; the sentence names the command.
    """
    try:
        import faiss
    except ImportError:
        raise ImportError(
            "Search needs FAISS, which is not installed: pip install radshot[cpu] (or radshot[gpu], never both)."
        ) from None
    return faiss


def load_or_build(root: Path, segment: Segment, dim: int, read: Callable[[], NDArray[np.float32]]) -> Codes:
    """Return a segment's codes from the cache; where there are none that are sound, build and keep them.

    Args:
        root: The archive's folder.
        segment: The segment.
        dim: Numbers per vector.
        read: Returns the segment's rows, checked against its SHA-256.
    """
    codes = read_codes(root, segment, dim)
    if codes is None:
        codes = build_codes(read())
        with suppress(OSError):  # a disk that is full or not writable costs the next process this work
            write_codes(root, segment, codes)
    return codes
