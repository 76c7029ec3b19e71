"""embed_archive: files in, rows out; it commits per batch, resumes after a kill, and refuses with a reason."""

from __future__ import annotations

import os
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .archive import Archive
from .database import DATABASE_NAME
from .errors import EncoderError
from .inspection import Inspected, holder_of, inspect, refuse, renew, same_pixels, settle
from .progress import watched
from .sources import Listing, Record, Repeat, gather
from .store import NewRows, Outcome

if TYPE_CHECKING:
    import pandas as pd

    from .encoders import Encoder

MAX_THREADS = 4
"""Decoding threads by default, at most; decoders release the interpreter's lock for most of their work."""

MAX_BATCH_FILES = 1024
"""Files looked at, at most, before what was found out about them is committed and shown."""


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What became of every file, or row of a table: seen = embedded + updated + duplicate + unchanged + len(refused).

    Attributes:
        seen: Files considered.
        embedded: New rows.
        updated: Rows replaced because their file changed on disk, or given other metadata because the source says more.
        duplicate: Files whose content is stored under another id, or the same id by another path, or listed before.
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
    progress: bool | Callable[[IngestReport], None] | None = None,
) -> IngestReport:
    """Embed images into an archive, made if missing; what is there already is not embedded again.

    Each batch is one durable commit of rows and file states: after a kill or Ctrl-C a rerun goes on with the next
    batch. A file is unchanged if its size and modification time are, or else its SHA-256. The same content under
    another name is a duplicate, and so are the same pixels under the same id (a DICOM image compressed otherwise). The
    same id with other pixels, at another place, is refused and the first kept; at the same place the file has changed
    and its row is replaced. What a table newly says of an unchanged file is noted with its row. Refused files are
    listed in `Archive.quarantine` and tried again at every run. Rows whose file is gone stay.

    Args:
        source: A folder, an image, a table of paths (CSV, Parquet), several of these, or records.
        encoder: Makes the vectors; must be the archive's own.
        archive: The archive or its folder.
        manifest: A table whose columns become metadata of the images it names; the source itself if `source` is None.
        image_column: Its column of paths, relative to the table.
        group: Its column of patients; DICOM files otherwise carry their own.
        batch_size: Images per commit.
        workers: Decoding threads; 0 decodes in the calling thread, None chooses by the processors.
        progress: True shows a bar on stderr, False none, None if stderr is a terminal; a function gets the report
            so far after every commit.

    Returns:
        The counts, with every refused file and its reason.

    Raises:
        SourceError: The source cannot be listed; nothing was read.
        EncoderMismatch: The archive is another encoder's; nothing was read.
        ArchiveError: It is a comparison set; nothing was read.
        StorageFull: The batches before are stored.
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
        return embed_listing(listing, encoder, target, batch_size=batch_size, workers=workers, progress=progress)


def embed_listing(
    listing: Listing,
    encoder: Encoder,
    archive: Archive,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    progress: bool | Callable[[IngestReport], None] | None = None,
) -> IngestReport:
    """Embed what was listed into an open archive of either kind; see `embed_archive`."""
    total = len(listing.records) + len(listing.repeats)
    with ExitStack() as stack:
        job = _Job(archive, encoder, total=total)
        show = stack.enter_context(watched(progress, total))
        threads = min(MAX_THREADS, os.cpu_count() or 1) if workers is None else workers
        files = stack.enter_context(closing(_inspected(listing.records, archive, encoder, threads, 2 * batch_size)))
        for batch in _batches(files, batch_size):
            job.commit(batch)
            show(job.report())
        if listing.repeats:
            job.repeat(listing.repeats)
            show(job.report())
        return job.report()


def _inspected(
    records: Sequence[Record], archive: Archive, encoder: Encoder, threads: int, ahead: int
) -> Generator[Inspected]:
    """Inspect records in their order, up to `ahead` of them before they are asked for."""
    if threads == 0:
        for record in records:
            yield inspect(record, archive.store, encoder)
        return
    waiting: deque[Future[Inspected]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="radshot-decode")
    try:
        for record in records:
            waiting.append(pool.submit(inspect, record, archive.store, encoder))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


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


class _Job:
    """Counts, and the commit of one batch."""

    def __init__(self, archive: Archive, encoder: Encoder, *, total: int) -> None:
        self._archive = archive
        self._encoder = encoder
        self._total = total
        self._started = time.monotonic()
        self._counts = dict.fromkeys(("seen", "embedded", "updated", "unchanged"), 0)
        self._refused: list[tuple[str, str]] = []
        self._duplicates: list[tuple[str, str]] = []

    def report(self) -> IngestReport:
        return IngestReport(
            **self._counts,
            duplicate=len(self._duplicates),
            refused=tuple(self._refused),
            duplicates=tuple(self._duplicates),
            total=self._total,
            seconds=time.monotonic() - self._started,
        )

    def commit(self, batch: list[Inspected]) -> None:
        """Encode what was loaded, and store rows, file states and refusals in one transaction."""
        loaded, vectors = self._encode([item for item in batch if item.image is not None])
        rows = [item for item in loaded if item.reason is None]
        failed = [item for item in loaded if item.reason is not None]
        others = [item for item in batch if item.image is None]
        refused: list[tuple[str, str]] = []
        duplicates: list[tuple[str, str]] = []
        changes = {item.id: item.amendment for item in others if item.amendment is not None}
        amended: list[str] = []

        def note(connection: sqlite3.Connection, outcomes: list[Outcome]) -> None:
            def reject(item: Inspected, reason: str, stage: str) -> None:
                refuse(connection, item, reason, stage)
                refused.append((item.path, reason))

            for item, outcome in zip(rows, outcomes, strict=True):
                same = outcome.kind == "conflict" and same_pixels(connection, item)
                if outcome.kind == "conflict" and not same:
                    reject(item, _conflict(connection, item), "store")
                    continue
                settle(connection, item, outcome.id)
                if outcome.kind == "duplicate" or same:
                    duplicates.append((item.path, outcome.id))
            for item in failed + others:
                if item.reason is not None:
                    reject(item, item.reason, item.stage)
                elif not item.twin:
                    renew(connection, item)
                elif (twin := holder_of(connection, sha256=item.state.sha256 if item.state else "")) is None:
                    reject(item, "equals an image that was removed just now: run again", "store")
                else:
                    settle(connection, item, twin[0])
                    duplicates.append((item.path, twin[0]))
            amended.extend(self._archive.store.amend(connection, changes))

        worth = changes or any(item.image is not None or item.reason is not None or item.state for item in batch)
        outcomes = self._archive.store.write(
            NewRows(
                ids=[item.id for item in rows],
                vectors=vectors,
                hashes=[item.state.sha256 if item.state else "" for item in rows],
                metadata=[item.metadata for item in rows],
                patients=[item.patient for item in rows],
            ),
            replace={item.id for item in rows if item.replaces},
            unique_hashes=True,
            also=note if worth else None,
        )
        self._refused += refused
        self._duplicates += duplicates
        self._counts["seen"] += len(batch)
        self._counts["embedded"] += sum(outcome.kind == "added" for outcome in outcomes)
        self._counts["updated"] += sum(outcome.kind == "updated" for outcome in outcomes) + len(amended)
        self._counts["unchanged"] += sum(item.reason is None and not item.twin for item in others) - len(amended)

    def repeat(self, repeats: Sequence[Repeat]) -> None:
        """Count further mentions of files: what became of the first holds for those that do not contradict it."""
        reasons = dict(self._refused)
        for again in repeats:
            reason = again.reason or reasons.get(again.path)
            if reason is not None:
                self._refused.append((again.path, reason))
                continue
            with self._archive.store.reading() as connection:
                row = connection.execute("SELECT id FROM files WHERE path = ?", (again.path,)).fetchone()
            self._duplicates.append((again.path, again.id if row is None else row[0]))
        self._counts["seen"] += len(repeats)

    def _encode(self, items: list[Inspected]) -> tuple[list[Inspected], NDArray[np.float32]]:
        """Return the items, those without a finite vector refused, and the vectors (n, d) of the others."""
        dim = self._archive.dim
        if not items:
            return [], np.empty((0, dim), dtype=np.float32)
        images = [item.image for item in items if item.image is not None]
        vectors = np.asarray(self._encoder.encode_loaded(images), dtype=np.float32)
        if vectors.shape != (len(items), dim):
            raise EncoderError(
                f"The encoder {self._encoder.name} made vectors of shape {vectors.shape} from {len(items)} images; it "
                f"promised {(len(items), dim)}."
            )
        finite = np.asarray(np.isfinite(vectors).all(axis=1))
        reason = "gives a vector that is not finite"
        checked = [
            item if good else replace(item, reason=reason, stage="encode")
            for item, good in zip(items, finite, strict=True)
        ]
        return checked, vectors[finite]


def _conflict(connection: sqlite3.Connection, item: Inspected) -> str:
    holder = holder_of(connection, id=item.id)
    where = f", from '{holder[1]}'" if holder is not None and holder[1] else ""
    reason = f"has the id {item.id!r} of an image stored before{where}, with other content: the first was kept"
    if holder is not None and all(path.endswith(f"/{item.id}") for path in (item.path, holder[1])):
        # The id is no UID but the file's name below its source: under another source the name is another.
        reason += "; to have both, embed their common parent folder, or use a manifest"
    return reason
