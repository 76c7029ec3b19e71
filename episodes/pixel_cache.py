"""Pixels decoded once and kept as uint8: in memory, or in a file where the archive is larger than memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from .decoding import FileDecoder
from .errors import EpisodeError
from .pixel_file import PixelFile

Rows = NDArray[np.intp]
Decoder = Callable[[Any], NDArray[np.uint8]]

#: Threads that decode by default; Pillow and most other decoders release the interpreter's lock.
DECODERS = 4
#: Images decoded between two records of what a file holds; at most so many are decoded again after a crash.
SAVE_EVERY = 4096
_WAITING, _DECODED, _REFUSED = 0, 1, 2


class PixelCache:
    """Images as uint8 of one size, each decoded once: when it is first wanted, or all of them by `fill`.

    With a folder the pixels are in a file that the system pages in and out, and the next run with the same sources
    (path, size, time of change) and the same settings finds them there. What the file holds is recorded only after its
    pixels are on the disk, so that after a crash or a kill no half-written image is taken for a whole one. Each set of
    sources and settings has its own file; a folder that no run uses may be deleted at any time.

    An image that cannot be read is refused: listed with the reason, never fatal.

    Args:
        sources: n things `decode` takes: paths by default.
        size: Height and width of the result in pixels, or the side of a square.
        decode: Source -> uint8 `size`; by default PNG, JPEG and what else Pillow reads, by `FileDecoder`. What it
            raises is the reason of a refusal. It is called from several threads.
        settings: What, beside the size, determines the result of `decode`, in words; needed by a folder with a
            `decode` of your own, whose pixels nothing else could tell from another's.
        folder: Where the file is; None keeps the pixels in memory.
        workers: Threads that decode.

    Attributes:
        complete: Whether every image has been decoded and none refused.
        pixels: uint8 (n, h, w); rows that have not been decoded, or were refused, are black.

    Raises:
        EpisodeError: No sources, options that do not fit together, or a folder that cannot hold the file.

    Example:
        >>> from PIL import Image
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     Image.new("L", (60, 40), 200).save(f"{folder}/a.png")
        ...     cache = PixelCache([f"{folder}/a.png", f"{folder}/missing.png"], size=32)
        ...     cache.fill()
        >>> cache.pixels.shape, cache.kept.tolist(), len(cache.refused)
        ((2, 32, 32), [0], 1)
    """

    def __init__(
        self,
        sources: Sequence[Any],
        *,
        size: int | tuple[int, int],
        decode: Decoder | None = None,
        settings: str | None = None,
        folder: str | Path | None = None,
        workers: int = DECODERS,
    ) -> None:
        """Lay out the rows, and take over what an earlier run has decoded."""
        self.sources = list(sources)
        if not self.sources:
            raise EpisodeError("A pixel cache needs at least one image; got none.")
        if isinstance(workers, bool) or not isinstance(workers, int) or workers < 1:
            raise EpisodeError(f"workers must be a whole number of at least 1; got {workers!r}.")
        default = FileDecoder(size if isinstance(size, tuple) else (size, size))
        self.size = default.size
        self._decode = default if decode is None else decode
        if decode is None:
            settings = repr(default)
        elif folder is not None and settings is None:
            raise EpisodeError("A folder with a decode of your own needs settings: words that say what it does.")
        self._workers = workers
        self._pool: ThreadPoolExecutor | None = None
        self._pending: dict[int, Future[None]] = {}
        self._reasons: dict[int, str] = {}
        self._state = np.zeros(len(self.sources), dtype=np.uint8)
        self._finished = self._saved = 0  # images decoded or refused in this run; those of them that are recorded
        self._lock = Lock()
        self._file: PixelFile | None = None
        self.complete = False
        self.pixels: NDArray[np.uint8]
        if folder is None:
            self.pixels = np.zeros((len(self.sources), *self.size), dtype=np.uint8)
        else:
            self._file = PixelFile(Path(folder), self.sources, self.size, settings or "")
            self.pixels = self._file.pixels
            self._state[self._file.decoded] = _DECODED
            self._reasons = dict(self._file.refused)
            self._state[list(self._reasons)] = _REFUSED
            self.complete = bool(self._file.decoded.all())

    def __len__(self) -> int:
        """Return the number of sources."""
        return len(self.sources)

    def __enter__(self) -> Self:
        """Return the cache; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the cache."""
        self.close()

    @property
    def refused(self) -> tuple[tuple[str, str], ...]:
        """(source, reason) of the images that could not be read so far, in order."""
        return tuple((_named(self.sources[row]), self._reasons[row]) for row in sorted(self._reasons))

    @property
    def kept(self) -> Rows:
        """The images that have been decoded so far, ascending."""
        return np.flatnonzero(self._state == _DECODED)

    def fill(self, rows: Rows | None = None, *, progress: Callable[[int, int], None] | None = None) -> None:
        """Decode all images, or those of some rows, that have not been decoded.

        Args:
            rows: Which; None is all.
            progress: Called with the number done and the number there were to do.

        Raises:
            EpisodeError: None of them can be read, or `decode` gives something else than uint8 of `size`.
        """
        wanted = np.arange(len(self)) if rows is None else np.unique(rows)
        missing = wanted[self._state[wanted] == _WAITING]
        for begin in range(0, len(missing), SAVE_EVERY):
            part = missing[begin : begin + SAVE_EVERY]
            self.ensure(part)
            if progress is not None:
                progress(begin + len(part), len(missing))
        self.save()
        self.complete = bool((self._state == _DECODED).all())
        if len(wanted) and (self._state[wanted] == _REFUSED).all():
            raise EpisodeError(
                f"None of the {len(wanted):,} images could be read; the first: "
                f"{_named(self.sources[wanted[0]])}: {self._reasons[int(wanted[0])]}."
            )

    def request(self, rows: Rows) -> None:
        """Begin to decode, in the background, the images of some rows that have not been decoded."""
        missing = rows[self._state[rows] == _WAITING]
        if not len(missing):
            return
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._workers, thread_name_prefix="pixels")
        with self._lock:  # what is neither pending nor waiting has been decoded since
            for row in missing.tolist():
                if row not in self._pending and self._state[row] == _WAITING:
                    self._pending[row] = self._pool.submit(self._decode_row, row)

    def ensure(self, rows: Rows) -> NDArray[np.bool_]:
        """Wait until the images of some rows are decoded.

        Args:
            rows: int (m,).

        Returns:
            bool (m,), which of them could be read.

        Raises:
            EpisodeError: `decode` gives something else than uint8 of `size`.
        """
        if not self.complete and not self._state[rows].all():
            self.request(rows)
            for row in np.unique(rows).tolist():
                future = self._pending.get(row)
                if future is not None:
                    future.result()
        if self._finished - self._saved >= SAVE_EVERY:
            self.save()
        readable: NDArray[np.bool_] = self._state[rows] == _DECODED
        return readable

    def save(self) -> None:
        """Record in the folder what has been decoded; does nothing in memory."""
        if self._file is not None:
            finished = self._finished
            self._file.record(self._state == _DECODED, dict(self._reasons))
            self._saved = finished

    def close(self) -> None:
        """Stop decoding and record what there is; the pixels stay readable."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None
            self._pending.clear()
        self.save()

    def _decode_row(self, row: int) -> None:
        try:
            image = self._decode(self.sources[row])
        except Exception as error:  # decoders raise anything on hostile bytes; one bad file must not end a training
            self._reasons[row] = str(getattr(error, "reason", "") or _one_line(error))
            self._end(row, _REFUSED)
            return
        found = np.asarray(image)
        if found.dtype != np.uint8 or found.shape != self.size:
            raise EpisodeError(
                f"decode must give uint8 of shape {self.size}; got {found.dtype} of shape {found.shape} "
                f"for {_named(self.sources[row])}."
            )
        self.pixels[row] = found
        self._end(row, _DECODED)

    def _end(self, row: int, state: int) -> None:
        with self._lock:
            self._state[row] = state
            self._finished += 1
            self._pending.pop(row, None)


def _named(source: object) -> str:
    return os.fsdecode(source) if isinstance(source, str | bytes | os.PathLike) else type(source).__name__


def _one_line(error: BaseException) -> str:
    return (" ".join(str(error).split()) or type(error).__name__).rstrip(".")[:200]
