"""embed_archive: files in, rows out; commits per batch, resumes after a kill, refuses with a reason, counts everything."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .archive import Archive
from .database import now
from .errors import ArchiveError, EncoderError
from .inspection import FileState, Inspected, inspect, remember, settle
from .metadata import encode_metadata, patient_of
from .progress import watched
from .sources import Record, gather, printable
from .store import NewRows

if TYPE_CHECKING:
    import pandas as pd

    from .encoders import Encoder

MAX_THREADS = 4
"""Decoding threads by default, at most; decoders release the interpreter's lock for most of their work."""


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What became of every file: seen = embedded + updated + duplicate + unchanged + len(refused).

    Attributes:
        seen: Files considered.
        embedded: New rows.
        updated: Rows replaced because their file changed on disk.
        duplicate: Files whose content is stored under another id, or the same id by another path.
        unchanged: Files that are as they were when they were stored.
        refused: (path, reason) of files that could not be stored; retried at every run.
        duplicates: (path, id) of the duplicates and the row they equal.
        total: Files listed; equals `seen` once the job is done.
        seconds: Time taken so far.
    """

    seen: int = 0
    embedded: int = 0
    updated: int = 0
    duplicate: int = 0
    unchanged: int = 0
    refused: tuple[tuple[str, str], ...] = ()
    duplicates: tuple[tuple[str, str], ...] = ()
    total: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        """Return one line with all counts."""
        return (
            f"{self.seen} files: {self.embedded} embedded, {self.updated} updated, {self.duplicate} duplicate, "
            f"{self.unchanged} unchanged, {len(self.refused)} refused ({self.seconds:.1f} s)"
        )


def embed_archive(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Record] | None,
    encoder: Encoder,
    archive: str | os.PathLike[str] | Archive,
    *,
    manifest: pd.DataFrame | str | os.PathLike[str] | None = None,
    image_column: str = "image",
    group: str | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    progress: bool | None | Callable[[IngestReport], None] = None,
) -> IngestReport:
    """Embed images into an archive, made if missing; what is there already is not embedded again.

    Each batch is one durable commit of rows and file states: after a kill or Ctrl-C a rerun goes on with the next batch.
    A file is unchanged if its size and modification time are, or else its SHA-256. The same content under another name
    is a duplicate; the same SOPInstanceUID (or relative path) with other content, at another place, is refused and the first
    kept; at the same place the file has changed and its row is replaced. Refused files are listed in
    `Archive.quarantine` and tried again at every run.

    Args:
        source: A folder, an image, a table of paths (CSV, Parquet), several of these, or records.
        encoder: Makes the vectors; must be the archive's own.
        archive: The archive or its folder.
        manifest: A table whose columns become metadata of the images it names; the source itself if `source` is None.
        image_column: Its column of paths, relative to the table.
        group: Its column of patients; DICOM files otherwise carry their own.
        batch_size: Images per commit.
        workers: Decoding threads; 0 decodes in the calling thread, None chooses by the processors.
        progress: True shows a bar on stderr, False none, None if stderr is a terminal; a function gets the report so far.

    Returns:
        The counts, with every refused file and its reason.

    Raises:
        SourceError: The source cannot be listed; nothing was read.
        EncoderMismatch: The archive is another encoder's; nothing was read.
        StorageFull: The batches before are stored.
    """
    if batch_size < 1:
        raise ValueError(f"A batch holds at least 1 image; got batch_size={batch_size}.")
    if workers is not None and workers < 0:
        raise ValueError(f"The number of workers must be 0 or more; got {workers}.")
    with ExitStack() as stack:
        if isinstance(archive, Archive):
            store = archive
            store.check_encoder(encoder)
        elif (Path(archive) / "archive.sqlite").exists():
            store = stack.enter_context(Archive.open(archive, encoder=encoder))
        else:
            store = None
        home = Path(archive) if not isinstance(archive, Archive) else archive.path
        records = gather(source, manifest=manifest, image_column=image_column, group=group, without=home)
        if store is None:
            store = stack.enter_context(Archive.open(home, encoder=encoder))
        job = _Job(store, encoder, total=len(records))
        show = stack.enter_context(watched(progress, len(records)))
        threads = min(MAX_THREADS, os.cpu_count() or 1) if workers is None else workers
        for batch in _batches(_inspected(records, store, encoder, threads, batch_size), batch_size):
            job.commit(batch)
            show(job.report())
        return job.report()
