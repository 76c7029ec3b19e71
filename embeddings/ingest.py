"""embed_archive: files in, rows out; it commits per batch, resumes after a kill, and refuses with a reason."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from .archive import Archive
from .database import DATABASE_NAME
from .errors import ArchiveError
from .ingest_job import FastEncode, IngestJob
from .ingest_report import IngestReport
from .inspection import Inspected, Inspector, Unread
from .progress import watched
from .readers import reader_for
from .sources import Listing, Record, gather

if TYPE_CHECKING:
    import pandas as pd

    from .decoding import DecodingLimits
    from .deidentification import Deidentifier
    from .encoders import Encoder
    from .precision import Precision

__all__ = ["IngestReport", "embed_archive", "embed_listing"]

MAX_WORKERS = 4
"""Decoding processes by default, at most."""

MAX_BATCH_FILES = 1024
"""Files looked at, at most, before what was found out about them is committed and shown."""

KEY_NOTE = "deidentification"
"""Note that holds the fingerprint of the key an archive's pseudonyms were made with."""

GLANCE_FILES = 512
"""Files whose size and time are compared with the database at once."""


def embed_archive(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Record] | None,
    encoder: Encoder,
    archive: str | os.PathLike[str] | Archive,
    *,
    manifest: pd.DataFrame | str | os.PathLike[str] | Sequence[Record] | None = None,
    image_column: str = "image",
    group: str | None = None,
    batch_size: int = 64,
    workers: int | None = None,
    limits: DecodingLimits | None = None,
    deidentifier: Deidentifier | None = None,
    precision: Precision = "auto",
    progress: bool | Callable[[IngestReport], None] | None = None,
) -> IngestReport:
    """Embed images into an archive, made if missing; what is there already is not embedded again.

    Each batch is one durable commit of rows and file states: after a kill or Ctrl-C a rerun goes on with the next
    batch. A file is unchanged if its size and modification time are, or else its SHA-256. The same content under
    another name is a duplicate, and so are the same pixels under the same id (a DICOM image compressed otherwise; in
    a de-identified archive, which keeps no path to compare with, that is a conflict and refused). The same id with
    other pixels, at another place, is refused and the first kept; at the same place the file has changed and its row
    is replaced. What a table newly says of an unchanged file is noted with its row. Refused files are
    listed in `Archive.quarantine` and tried again at every run. Rows whose file is gone stay.

    Args:
        source: A folder, an image, a table of paths (CSV, Parquet), several of these, or records.
        encoder: Makes the vectors; must be the archive's own.
        archive: The archive or its folder.
        manifest: A table, or its records, whose columns become metadata of the images it names; the source itself if
            `source` is None.
        image_column: Its column of paths, relative to the table.
        group: Its column of patients; DICOM files otherwise carry their own.
        batch_size: Images per commit.
        workers: Decoding processes, each limited in memory and time, so that a hostile file costs itself only; 0
            decodes in the calling thread without limits, None chooses by the processors.
        limits: What one image may cost a decoding process; by default 512 MB and 20 s of processor time.
        deidentifier: Replaces patients, UIDs, ids, paths and dates by pseudonyms before anything is stored; an archive
            takes one and the same key all its life.
        precision: "auto" computes in bfloat16 where the machine is faster at it and the first batch's vectors have a
            cosine of at least 0.999 with those of float32, see `embeddings.precision`; an archive keeps to what it was
            begun with.
        progress: True shows a bar on stderr, False none, None if stderr is a terminal; a function gets the report
            so far after every commit.

    Returns:
        The counts, with every refused file and its reason.

    Raises:
        SourceError: The source cannot be listed; nothing was read.
        EncoderMismatch: The archive is another encoder's; nothing was read.
        ArchiveError: It is a comparison set; nothing was read.
        StorageFull: The batches before are stored.
        DecoderUnavailable: No decoding process can be started.
    """
    if batch_size < 1:
        raise ValueError(f"A batch holds at least 1 image; got batch_size={batch_size}.")
    if workers is not None and workers < 0:
        raise ValueError(f"The number of workers must be 0 or more; got {workers}.")
    with ExitStack() as stack:
        if isinstance(archive, Archive):
            home, target = archive.path, archive
            target.check_kind("archive")
            target.check_encoder(encoder)
        else:
            home, target = Path(archive), None
            if (home / DATABASE_NAME).exists():
                target = stack.enter_context(Archive.open(home, encoder=encoder, kind="archive"))
        listing = gather(source, manifest=manifest, image_column=image_column, group=group, without=home)
        if target is None:
            target = stack.enter_context(Archive.open(home, encoder=encoder, kind="archive"))
        return embed_listing(
            listing,
            encoder,
            target,
            batch_size=batch_size,
            workers=workers,
            limits=limits,
            deidentifier=deidentifier,
            precision=precision,
            progress=progress,
        )


def embed_listing(
    listing: Listing,
    encoder: Encoder,
    archive: Archive,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    limits: DecodingLimits | None = None,
    deidentifier: Deidentifier | None = None,
    precision: Precision = "auto",
    progress: bool | Callable[[IngestReport], None] | None = None,
) -> IngestReport:
    """Embed what was listed into an open archive of either kind; see `embed_archive`."""
    total = len(listing.records) + len(listing.repeats)
    processes = min(MAX_WORKERS, os.cpu_count() or 1) if workers is None else workers
    check_key(archive, deidentifier)
    with ExitStack() as stack:
        reader, threads = stack.enter_context(reader_for(encoder, processes, limits))
        inspector = Inspector(archive.store, reader, deidentifier)
        job = IngestJob(archive, inspector, reader, FastEncode(encoder, precision, archive), total=total)
        show = stack.enter_context(watched(progress, total))
        files = stack.enter_context(closing(_inspected(listing.records, inspector, threads, 2 * batch_size)))
        for batch in _batches(files, batch_size):
            job.commit(batch)
            show(job.report())
        if listing.repeats:
            job.repeat(listing.repeats)
            show(job.report())
        return job.report()


def check_key(archive: Archive, deidentifier: Deidentifier | None) -> None:
    """Make sure that an archive is de-identified with one key, or not at all; a new one remembers which.

    Raises:
        ArchiveError: It is otherwise.
    """
    with archive.writing():
        _check_key(archive, deidentifier)


def _check_key(archive: Archive, deidentifier: Deidentifier | None) -> None:
    known = archive.get_note(KEY_NOTE)
    given = None if deidentifier is None else deidentifier.key_id
    if known == given:
        return
    if known is not None:
        how = "without a key" if given is None else "with another key"
        raise ArchiveError(
            f"The archive '{archive.path}' is de-identified, and cannot be added to {how}: give the key it was begun "
            "with."
        )
    if len(archive) or archive.quarantine():
        raise ArchiveError(
            f"The archive '{archive.path}' holds rows that are not de-identified: embed into a new one with the key."
        )
    archive.set_note(KEY_NOTE, given)


def _inspected(records: Sequence[Record], inspector: Inspector, threads: int, ahead: int) -> Generator[Inspected]:
    """Inspect records in their order; up to `ahead` images are read before they are asked for."""
    if threads == 0:
        for file in _glanced(records, inspector):
            yield inspector.read(file) if isinstance(file, Unread) else file
        return
    waiting: deque[Inspected | Future[Inspected]] = deque()
    reading = 0
    pool = ThreadPoolExecutor(threads, thread_name_prefix="radshot-decode")
    try:
        for file in _glanced(records, inspector):
            if isinstance(file, Unread):
                waiting.append(pool.submit(inspector.read, file))
                reading += 1
            else:
                waiting.append(file)
            while waiting and (
                reading >= ahead or len(waiting) >= ahead + MAX_BATCH_FILES or not isinstance(waiting[0], Future)
            ):
                first = waiting.popleft()
                reading -= isinstance(first, Future)
                yield first.result() if isinstance(first, Future) else first
        for first in waiting:
            yield first.result() if isinstance(first, Future) else first
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _glanced(records: Sequence[Record], inspector: Inspector) -> Iterator[Inspected | Unread]:
    listed = iter(records)
    while part := list(islice(listed, GLANCE_FILES)):
        yield from inspector.glance(part)


def _batches(files: Iterator[Inspected], batch_size: int) -> Iterator[list[Inspected]]:
    """Collect files until `batch_size` of them hold an image, or `MAX_BATCH_FILES` altogether."""
    batch: list[Inspected] = []
    images = 0
    for item in files:
        batch.append(item)
        images += item.image is not None
        if images == batch_size or len(batch) == max(batch_size, MAX_BATCH_FILES):
            yield batch
            batch, images = [], 0
    if batch:
        yield batch
