"""Cache file: arrays kept beside an archive for the next process, checked block by block, rebuilt when in doubt.

Layout: 8 bytes magic, uint32 length of a JSON header, its SHA-256, the header; then the bytes of the arrays one after
the other. The header holds the SHA-256 of every block of them.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import struct
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = "cache"
"""Where such files lie, below the archive's folder; all of it may be deleted at any time."""

BLOCK = 1 << 24
"""Bytes of a file that have a SHA-256 of their own."""

_START = struct.Struct("<8sI32s")
_MAX_HEADER = 1 << 24


def write_cache(path: Path, magic: bytes, facts: Mapping[str, object], body: list[NDArray[np.uint8]]) -> None:
    """Keep arrays for the next process: draft, then rename. A cache needs no fsync: what is torn is found and rebuilt.

    Args:
        path: The file; its folder is made.
        magic: Its first eight bytes.
        facts: JSON-able values that say what the arrays were made from.
        body: The arrays, flat.

    Raises:
        OSError: The disk is full or not writable.
    """
    header = {**facts, "blocks": [hashlib.sha256(part.data).hexdigest() for array in body for part in _parts(array)]}
    text = json.dumps(header).encode()
    path.parent.mkdir(exist_ok=True)
    draft = path.with_name(f"{path.stem}.{secrets.token_hex(4)}.tmp")
    try:
        with draft.open("xb") as file:
            file.write(_START.pack(magic, len(text), hashlib.sha256(text).digest()) + text)
            for array in body:
                file.write(array.data)
        draft.replace(path)
    except BaseException:
        with suppress(OSError):
            draft.unlink()
        raise


def read_cache(
    path: Path, magic: bytes, facts: Mapping[str, object], size: int, arrays: Callable[[], list[NDArray[np.uint8]]]
) -> dict[str, Any] | None:
    """Fill arrays from a file and check every block; None where it is missing, made from something else, or damaged.

    Args:
        path: The file.
        magic: Its first eight bytes.
        facts: What its header must say.
        size: Bytes the arrays take together.
        arrays: Makes them, flat; called when a file of the right size is there.

    Returns:
        The header.
    """
    try:
        with path.open("rb", buffering=0) as file:
            found, length, digest = _START.unpack(file.read(_START.size))
            text = file.read(length) if found == magic and length <= _MAX_HEADER else b""
            if hashlib.sha256(text).digest() != digest:
                return None
            header: dict[str, Any] = json.loads(text)
            start = _START.size + length
            if any(header[key] != value for key, value in facts.items()):
                return None
            if os.fstat(file.fileno()).st_size != start + size:
                return None  # before memory is taken for what is not there
            return header if _filled(file.fileno(), start, arrays(), header["blocks"]) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, struct.error):
        return None


def _filled(descriptor: int, start: int, body: list[NDArray[np.uint8]], digests: list[str]) -> bool:
    """Read the arrays from a file, block by block in several threads, and say whether every block is what it was."""
    places = []
    for array in body:
        for part in _parts(array):
            places.append((start, part))
            start += len(part)
    if len(places) != len(digests):
        return False

    def fill(job: tuple[tuple[int, NDArray[np.uint8]], str]) -> bool:
        (offset, part), digest = job
        done = 0
        while done < len(part):
            count = os.preadv(descriptor, [part[done:].data], offset + done)
            if count == 0:
                return False
            done += count
        return hashlib.sha256(part.data).hexdigest() == digest

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:
        return all(pool.map(fill, zip(places, digests, strict=True)))


def _parts(array: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
    return [array[at : at + BLOCK] for at in range(0, len(array), BLOCK)]
