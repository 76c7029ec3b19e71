"""embed_volumes: CT and MR series and NIfTI files into an archive, as slices, as three mid-planes, or as one vector."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .archive import Archive
from .database import now
from .decoding import DecodingLimits, decoders
from .errors import ImageError
from .ingest_report import IngestReport
from .inspection import Inspected, refuse
from .metadata import encode_metadata, patient_of
from .progress import watched
from .sources import printable
from .store import NewRows, Outcome
from .volume_pictures import Way, check_way, encode_pictures, loading_of, pictures_of
from .volume_sources import Source, VolumeReader, volumes_in

if TYPE_CHECKING:
    from .encoders import Encoder


def embed_volumes(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    encoder: Encoder,
    archive: str | os.PathLike[str] | Archive,
    *,
    way: Way,
    workers: int | None = None,
    limits: DecodingLimits | None = None,
    progress: bool | Callable[[IngestReport], None] | None = None,
) -> IngestReport:
    """Embed volumes into an archive, made if missing; a volume that is stored as it is now is not read again.

    One volume is one durable commit. Rows are called after the series ("<SeriesInstanceUID>", with "#axial",
    "#coronal" or "#sagittal" behind it for planes), slices after their SOPInstanceUID or "<file>#<number>". A series
    that got other slices replaces its rows. A file that is part of no volume is refused.

    Args:
        source: Folders and files.
        encoder: For "3d" one that takes volumes (`embeddings.volume_encoder`), else one of images; its window applies.
        archive: The archive or its folder.
        way: See `Way`.
        workers: Decoding processes; 0 decodes in the calling thread, None chooses by the processors.
        limits: What one volume may cost a decoding process; by default 1,536 MB and 120 s of processor time.
        progress: As for `embed_archive`.

    Returns:
        The counts, in volumes and files that are part of none: seen = embedded + updated + duplicate + unchanged +
        len(refused).

    Raises:
        EncoderError: The encoder does not go with the way.
        SourceError, EncoderMismatch, ArchiveError, StorageFull: As for `embed_archive`.
    """
    check_way(encoder, way)
    processes = min(4, os.cpu_count() or 1) if workers is None else workers
    allowed = limits or DecodingLimits(memory=1536 << 20, seconds=120)
    with ExitStack() as stack:
        target = archive if isinstance(archive, Archive) else stack.enter_context(
            Archive.open(archive, encoder=encoder, kind="archive")
        )  # fmt: skip
        target.check_kind("archive")
        target.check_encoder(encoder)
        lent = stack.enter_context(decoders(processes, allowed)) if processes else []
        reader = VolumeReader(lent)
        stack.callback(reader.close)
        volumes, refused = volumes_in(source, reader)
        job = _VolumeJob(target, encoder, way, total=len(volumes) + len(refused))
        show = stack.enter_context(watched(progress, job.total))
        for shown, reason in refused:
            job.refuse(shown, reason)
        todo = []
        for volume in volumes:
            if job.is_stored(volume):
                job.counts["unchanged"] += 1
            else:
                todo.append(volume)
        show(job.report())
        function, arguments = loading_of(encoder, way)
        jobs = [(volume.series or volume.file, *arguments) for volume in todo]
        for volume, loaded in zip(todo, reader.map(function, jobs, [one.shown for one in todo]), strict=True):
            if isinstance(loaded, ImageError):
                job.refuse(volume.shown, loaded.reason, volume)
            else:
                job.store(volume, loaded)
            show(job.report())
        return job.report()


class _VolumeJob:
    """Counts, and the commit of one volume."""

    def __init__(self, archive: Archive, encoder: Encoder, way: Way, *, total: int) -> None:
        self._archive = archive
        self._encoder = encoder
        self._way: Way = way
        self._started = time.monotonic()
        self._refused: list[tuple[str, str]] = []
        self._duplicates: list[tuple[str, str]] = []
        self.total = total
        self.counts = dict.fromkeys(("embedded", "updated", "unchanged"), 0)

    def report(self) -> IngestReport:
        return IngestReport(
            seen=sum(self.counts.values()) + len(self._refused) + len(self._duplicates),
            embedded=self.counts["embedded"],
            updated=self.counts["updated"],
            unchanged=self.counts["unchanged"],
            duplicate=len(self._duplicates),
            duplicates=tuple(self._duplicates),
            refused=tuple(self._refused),
            total=self.total,
            seconds=time.monotonic() - self._started,
        )

    def _held(self, volume: Source) -> list[tuple[str, str]]:
        """Return (id, hash) of the rows that were made of this volume in this way."""
        query = (
            "SELECT id, hash FROM rows WHERE json_extract(metadata, '$.volume') = ? "
            "AND json_extract(metadata, '$.way') = ? ORDER BY id"
        )
        with self._archive.store.viewing() as connection:
            return connection.execute(query, (volume.id, self._way)).fetchall()

    def is_stored(self, volume: Source) -> bool:
        """Say whether the volume's rows are there and of its present content."""
        held = self._held(volume)
        return bool(held) and all(content.startswith(f"{volume.content}:") for _, content in held)

    def refuse(self, shown: str, reason: str, volume: Source | None = None) -> None:
        """Note a refusal, durably."""
        patient = None if volume is None else patient_of(volume.metadata)
        item = Inspected(shown, shown, "" if volume is None else volume.id, patient=patient)

        def note(connection: sqlite3.Connection, _: list[Outcome]) -> None:
            refuse(connection, item, reason, "read")

        self._archive.store.write(self._rows([], np.empty((0, self._archive.dim), dtype=np.float32), [], []), also=note)
        self._refused.append((shown, reason))

    def store(self, volume: Source, loaded: Any) -> None:
        """Encode a volume and store its rows in one transaction, in the place of older ones of the same volume."""
        pictures = pictures_of(loaded, self._way)
        vectors = encode_pictures(self._encoder, pictures)
        if not np.isfinite(vectors).all():
            self.refuse(volume.shown, "gives a vector that is not finite", volume)
            return
        ids, hashes, metadata = [], [], []
        for name, facts in zip(pictures.names, pictures.facts, strict=True):
            identity = volume.id + name if self._way != "slices" else self._slice_id(volume, name)
            ids.append(identity)
            hashes.append(f"{volume.content}:{self._way}{name}")
            known = {"registered_at": now(), **volume.metadata, **facts, **self._geometry(volume)}
            metadata.append(encode_metadata(known | {"volume": volume.id, "way": self._way}, identity))
        older = {identity for identity, _ in self._held(volume)}

        def lift(connection: sqlite3.Connection, _: list[Outcome]) -> None:
            connection.execute("DELETE FROM quarantine WHERE path = ?", (volume.shown,))

        with self._archive.writing():
            gone = sorted(older - set(ids))
            outcomes = self._archive.store.write(
                self._rows(ids, vectors, hashes, metadata, patient_of(volume.metadata)),
                replace=older,
                unique_hashes=True,
                also=lift,
            )
            if gone:
                self._archive.store.remove(ids=gone)
        kinds = {outcome.kind for outcome in outcomes}
        if "conflict" in kinds:
            taken = next(outcome.id for outcome in outcomes if outcome.kind == "conflict")
            self.refuse(volume.shown, f"has the id {taken!r} of a row stored before, with other content", volume)
        elif older:
            self.counts["updated"] += 1
        elif kinds == {"duplicate"}:
            self._duplicates.append((volume.shown, outcomes[0].id))
        else:
            self.counts["embedded"] += 1

    def _slice_id(self, volume: Source, name: str) -> str:
        return name if volume.series is not None and name else f"{volume.id}#{name}"

    def _geometry(self, volume: Source) -> dict[str, Any]:
        path = (
            volume.file if volume.file is not None else volume.series.slices[0].path.parent if volume.series else None
        )
        facts: dict[str, Any] = {"path": None if path is None else printable(path.absolute())}
        if volume.series is not None:
            facts |= {
                "slices": len(volume.series.slices),
                "spacing": [round(step, 6) for step in volume.series.spacing],
            }
        return facts

    def _rows(
        self,
        ids: list[str],
        vectors: NDArray[np.float32],
        hashes: list[str],
        metadata: list[str],
        patient: str | None = None,
    ) -> NewRows:
        return NewRows(ids=ids, vectors=vectors, hashes=hashes, metadata=metadata, patients=[patient] * len(ids))
