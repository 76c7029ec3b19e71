"""Which volumes there are below a folder: DICOM series by their UIDs, NIfTI files by their names."""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .decoding import Decoder, decoders
from .errors import ImageError, SourceError
from .nifti import is_nifti, nifti_facts
from .series import Series, Slice, group_series, order_series, slice_header, slices_of
from .sources import printable, records_from_folder


@dataclass(frozen=True, slots=True)
class Source:
    """A volume before it is read: an ordered series, or a NIfTI file.

    Attributes:
        id: SeriesInstanceUID, or the file's path below the source.
        shown: What reports call it.
        content: SHA-256 over the members' contents.
        metadata: What is known of it.
        series: The series, or None.
        file: The NIfTI file, or None.
    """

    id: str
    shown: str
    content: str
    metadata: Mapping[str, Any]
    series: Series | None = None
    file: Path | None = None


def nifti_header(path: Path) -> dict[str, Any]:
    """Return the SHA-256 of a file and what its header says; run in a decoding process.

    A file whose header cannot be read is listed all the same: reading it will say why.
    """
    try:
        with path.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise ImageError(path, f"cannot be read: {error.strerror or error}") from error
    try:
        facts = nifti_facts(path)
    except ImageError:
        facts = {}
    return {"sha256": digest, "facts": facts}


class VolumeReader:
    """Reads volumes in decoding processes, or in the calling thread."""

    def __init__(self, lent: list[Decoder]) -> None:
        """Take the processes; none means the calling thread."""
        self._free = list(lent)
        self.threads = max(1, len(lent))
        self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="radshot-decode") if lent else None

    def map(
        self, function: Callable[..., Any], jobs: Sequence[tuple[Any, ...]], sources: Sequence[object]
    ) -> Iterator[Any]:
        """Yield each job's result, or the ImageError it ended with, in order; few are read ahead."""
        if self._pool is None:
            for job in jobs:
                yield attempt(function, *job)
            return
        waiting: deque[Future[Any]] = deque()
        for job, source in zip(jobs, sources, strict=True):
            waiting.append(self._pool.submit(self._call, function, job, source))
            if len(waiting) > 2 * self.threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    def _call(self, function: Callable[..., Any], job: tuple[Any, ...], source: object) -> Any:
        decoder = self._free.pop()
        try:
            return attempt(decoder.call, function, *job, source=source)
        finally:
            self._free.append(decoder)

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)


def attempt(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Return what a function returns, or the ImageError it raises."""
    try:
        return function(*arguments, **named)
    except ImageError as error:
        return error
    except MemoryError:
        return ImageError("volume", "needs more memory than there is")


def find_volumes(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]], *, workers: int = 0, without: Path | None = None
) -> tuple[list[Source], list[tuple[str, str]]]:
    """List the volumes below folders, or among files: DICOM series by their UIDs, NIfTI files by their names.

    Args:
        source: A folder, a file, or several.
        workers: Decoding processes that read the headers; 0 for none.
        without: A folder inside a source to leave out (an archive, say).

    Returns:
        The volumes, and (path, reason) of the files that are part of none.

    Raises:
        SourceError: There is nothing at a path.
    """
    with ExitStack() as stack:
        reader = VolumeReader(stack.enter_context(decoders(workers)) if workers else [])
        stack.callback(reader.close)
        return volumes_in(source, reader, without=without)


def volumes_in(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    reader: VolumeReader,
    *,
    without: Path | None = None,
) -> tuple[list[Source], list[tuple[str, str]]]:
    """As `find_volumes`, with a reader at hand."""
    parts = [source] if isinstance(source, str | os.PathLike) else list(source)
    # Whole paths: a decoding process that was kept from an earlier job may have another working folder.
    whole = [Path(os.path.abspath(part)) for part in parts]  # noqa: PTH100 (keeps links)
    records = [record for part in whole for record in records_from_folder(part, without=without)]
    if not records:
        raise SourceError(f"There is no file below '{printable(os.fspath(parts[0]))}'.")
    volumes = [record for record in records if is_nifti(record.path)]
    others = [record for record in records if not is_nifti(record.path)]
    refused: list[tuple[str, str]] = []
    listed: list[Source] = []
    headers = reader.map(nifti_header, [(one.path,) for one in volumes], [one.path for one in volumes])
    for record, header in zip(volumes, headers, strict=True):
        shown = printable(record.path.absolute())
        if isinstance(header, ImageError):
            refused.append((shown, header.reason))
        else:
            listed.append(Source(record.id, shown, header["sha256"], header["facts"], file=record.path))
    slices: list[Slice] = []
    folders: dict[Path, str] = {}
    headers = reader.map(slice_header, [(one.path,) for one in others], [one.path for one in others])
    for record, header in zip(others, headers, strict=True):
        if isinstance(header, ImageError):
            refused.append((printable(record.path.absolute()), header.reason))
        else:
            slices += slices_of(header)
            folders[record.path] = record.id.rpartition("/")[0] or record.path.absolute().parent.name
    for members in group_series(slices):
        series = order_series(_once(members))
        first = series.slices[0]
        folder = printable(first.path.parent.absolute())
        content = hashlib.sha256("".join(sorted(one.sha256 for one in series.slices)).encode()).hexdigest()
        shared = {
            key: first.metadata[key]
            for key in first.metadata
            if all(other.metadata.get(key) == first.metadata[key] for other in series.slices)
        }
        shared |= {"slices": len(series.slices), "spacing": [round(step, 6) for step in series.spacing]}
        if series.warnings:
            shared["warnings"] = list(series.warnings)
        identity = series.uid or folders[first.path]
        listed.append(Source(identity, f"{folder} (series {identity})", content, shared, series=series))
    return listed, refused


def _once(members: list[Slice]) -> list[Slice]:
    """Leave out copies of a slice."""
    seen: dict[str, Slice] = {}
    for one in members:
        seen.setdefault(one.uid or f"{one.sha256}#{one.frame}", one)
    return list(seen.values())
