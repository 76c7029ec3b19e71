"""The file of a pixel cache: a memory map, and a record of which of its images are whole, with their checksums."""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from numpy.typing import NDArray

from .errors import EpisodeError

#: Changes when files of older versions must not be read.
FORMAT = 1
_SUM = np.dtype("<u4")


class PixelFile:
    """Room for images on the disk, in a file named after their sources and settings.

    The record holds a CRC-32 of every image, and an image that has another when the file is opened counts as not
    decoded. There is one per image since images are decoded in any order: a record reads only those that are new, and
    damage costs the decoding of the images it hit. It guards against faulty disks and writers, not against forgers,
    who could write the record too; at some gigabytes per second, opening a file takes about as long as reading it once.

    Args:
        folder: Where the file is; made if there is none.
        sources: n paths; with their size and time of change they name the file.
        size: Height and width of every image in pixels.
        settings: What else determines the pixels, in words.

    Attributes:
        pixels: uint8 (n, h, w), mapped.
        decoded: bool (n,), which images an earlier run has recorded and the file still holds.
        refused: Row -> reason, for those it could not read.

    Raises:
        EpisodeError: A source that is no path, or a folder that cannot hold the file.
    """

    def __init__(self, folder: Path, sources: Sequence[Any], size: tuple[int, int], settings: str) -> None:
        """Find the file of an earlier run, or make room for a new one."""
        self._key = _digest(sources, size, settings)
        self._path = folder / f"pixels-{self._key[:16]}.u8"
        self._record = self._path.with_suffix(".json")
        self.decoded = np.zeros(len(sources), dtype=np.bool_)
        self._sums = np.zeros(len(sources), dtype=_SUM)  # 0 where not in _summed
        self.refused: dict[int, str] = {}
        shape = (len(sources), *size)
        length = int(np.prod(shape))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(self._path.with_suffix(".lock")):  # two runs must not make the same file at once
                if self._path.exists() and self._path.stat().st_size == length:
                    self._take_over()
                else:
                    self._record.unlink(missing_ok=True)
                    with self._path.open("wb") as stream:
                        _take_room(stream.fileno(), length)
            self.pixels: NDArray[np.uint8] = np.memmap(self._path, dtype=np.uint8, mode="r+", shape=shape)
            self._drop_damaged()
            self._summed = self.decoded.copy()
        except OSError as error:
            raise EpisodeError(
                f"The pixel cache of {length:,} bytes cannot be kept in {folder}: {error.strerror or error}."
            ) from error

    def record(self, decoded: NDArray[np.bool_], refused: Mapping[int, str]) -> None:
        """Say which images are whole, once their pixels are on the disk.

        Args:
            decoded: bool (n,), images written before this call.
            refused: Row -> reason, for those that could not be read.
        """
        if isinstance(self.pixels, np.memmap):
            self.pixels.flush()
        new = np.flatnonzero(decoded & ~self._summed)
        self._sums[new] = self._checksums(new)
        self._summed[new] = True
        known = {
            "key": self._key,
            "decoded": np.packbits(decoded).tobytes().hex(),
            "crc32": self._sums.tobytes().hex(),
            "refused": {str(row): reason for row, reason in refused.items()},
        }
        part = self._record.with_suffix(f".{os.getpid()}.part")
        with part.open("w", encoding="utf-8") as stream:
            json.dump(known, stream)
            stream.flush()
            os.fsync(stream.fileno())
        part.replace(self._record)

    def _take_over(self) -> None:
        """Believe a record that is whole and of the same sources and settings, and no other."""
        n = len(self.decoded)
        try:
            known = json.loads(self._record.read_text(encoding="utf-8"))
            bits = np.frombuffer(bytes.fromhex(known["decoded"]), dtype=np.uint8)
            sums = np.frombuffer(bytes.fromhex(known["crc32"]), dtype=_SUM)
            refused = {int(row): str(reason) for row, reason in known["refused"].items()}
            sizes = len(bits) == -(-n // 8) and len(sums) == n
            whole = known["key"] == self._key and sizes and all(0 <= row < n for row in refused)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return
        if whole:
            self.decoded = np.unpackbits(bits)[:n].astype(np.bool_)
            self.refused = refused
            self._sums = sums.copy()

    def _drop_damaged(self) -> None:
        """Take images whose pixels are not those that were recorded as not decoded."""
        rows = np.flatnonzero(self.decoded)
        self.decoded[rows] = self._checksums(rows) == self._sums[rows]

    def _checksums(self, rows: NDArray[np.intp]) -> NDArray[np.uint32]:
        """CRC-32 of the pixels of some images."""
        plain = np.asarray(self.pixels)  # a row of a memory map is made slowly
        return np.fromiter((zlib.crc32(plain[row]) for row in rows), dtype=_SUM, count=len(rows))


def _digest(sources: Sequence[Any], size: tuple[int, int], settings: str) -> str:
    digest = hashlib.sha256(json.dumps([FORMAT, size, settings]).encode())
    for source in sources:
        if not isinstance(source, str | os.PathLike):
            raise EpisodeError(f"A folder keeps images of paths; got {type(source).__name__}.")
        path = Path(source)
        try:
            facts = path.stat()
            identity: list[object] = [str(path.resolve()), facts.st_size, facts.st_mtime_ns]
        except OSError:
            identity = [str(path), None, None]
        digest.update(json.dumps(identity).encode())
    return digest.hexdigest()


def _take_room(file: int, length: int) -> None:
    """Make a file of some length whose room on the disk is taken: a full disk would kill who writes to its map."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file, 0, length)
    else:
        os.truncate(file, length)
