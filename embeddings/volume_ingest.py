"""embed_volumes: CT and MR series and NIfTI files into an archive, as slices, as three mid-planes, or as one vector."""

from __future__ import annotations

import os
import sqlite3
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .archive import Archive
from .database import now
from .decoding import DecodingLimits, decoders
from .errors import ImageError
from .ingest import check_key
from .ingest_report import IngestReport
from .inspection import Inspected, refuse
from .metadata import encode_metadata, patient_of
from .progress import watched
from .sources import printable
from .store import NewRows, Outcome
from .volume_pictures import Way, check_way, encode_pictures, loading_of, pictures_of, window_for, window_of
from .volume_sources import Source, VolumeReader, volumes_in

if TYPE_CHECKING:
    from .encoders import Encoder

OF_ALL = ("belongs to a series", "has frames that")
"""How reasons begin that name a file of a series but are about all of it."""


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
    "#coronal" or "#sagittal" behind it for planes), slices after their SOPInstanceUID ("#<frame>" behind it in a file
    of several frames) or "<file>#<number>". A series that got other slices replaces its rows. A file that is part of no
    volume is refused; so is a volume with a slice that cannot be decoded. One volume at a time is held per process.

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
        ArchiveError: As for `embed_archive`, or the archive is de-identified, which volumes cannot be yet.
        SourceError, EncoderMismatch, StorageFull: As for `embed_archive`.
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
        check_key(target, None)
        lent = stack.enter_context(decoders(processes, allowed)) if processes else []
        reader = VolumeReader(lent)
        stack.callback(reader.close)
        volumes, refused = volumes_in(source, reader, without=target.path)
        job = _VolumeJob(target, encoder, way, total=len(volumes) + len(refused))
        show = stack.enter_context(watched(progress, job.total))
        job.refuse([_Refused(shown, reason) for shown, reason in refused])
        job.expect(volumes)
        todo = [volume for volume in volumes if not job.settled(volume)]
        show(job.report())
        function, arguments = loading_of(encoder, way)
        jobs = [(volume.series or volume.file, *arguments) for volume in todo]
        for volume, loaded in zip(todo, reader.map(function, jobs, [one.shown for one in todo]), strict=True):
            if isinstance(loaded, ImageError):
                job.refuse([_Refused(volume.shown, _reason(loaded, volume), volume)])
            else:
                job.store(volume, loaded)
            show(job.report())
        return job.report()


@dataclass(frozen=True, slots=True)
class _Refused:
    """What is refused, why, and the volume where it is one."""

    shown: str
    reason: str
    volume: Source | None = None


def _reason(error: ImageError, volume: Source) -> str:
    """Return an error's reason, with the slice's name where it is about one of several."""
    members = {os.fspath(one.path): one.path.name for one in volume.series.slices} if volume.series is not None else {}
    name = members.get(str(error.source)) if len(members) > 1 else None
    return error.reason if name is None or error.reason.startswith(OF_ALL) else f"in its slice {name}: {error.reason}"


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
        # volume -> id -> hash of the rows that were made in this way, and content -> an id; read once, then kept up
        self._held: dict[str, dict[str, str]] = defaultdict(dict)
        self._contents: dict[str, str] = {}
        self._paths: dict[str, str] = {}
        self._going: set[str] = set()
        query = (
            "SELECT json_extract(metadata, '$.volume'), id, hash, json_extract(metadata, '$.path') FROM rows "
            "WHERE json_extract(metadata, '$.way') = ? ORDER BY id"
        )
        with archive.store.viewing() as connection:
            for volume, identity, content, path in connection.execute(query, (way,)):
                self._hold(str(volume), identity, content, str(path))

    def _hold(self, volume: str, identity: str, content: str, path: str) -> None:
        self._paths[volume] = path
        self._held[volume][identity] = content
        self._contents.setdefault(content.partition(":")[0], identity)

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

    def settled(self, volume: Source) -> bool:
        """Count a volume that need not be read: its rows are there and of its present content, or another's are."""
        held = self._held.get(volume.id, {})
        if held and all(content.startswith(f"{volume.content}:") for content in held.values()):
            self.counts["unchanged"] += 1
            return True
        if not held and volume.content in self._contents.keys() - self._going:
            self._duplicates.append((volume.shown, self._contents[volume.content]))
            return True
        return False

    def expect(self, volumes: Sequence[Source]) -> None:
        """Note which contents this job will replace: a copy of such a one is no duplicate."""
        for volume in volumes:
            for content in self._held.get(volume.id, {}).values():
                if not content.startswith(f"{volume.content}:"):
                    self._going.add(content.partition(":")[0])

    def refuse(self, refusals: Sequence[_Refused]) -> None:
        """Note refusals, durably."""
        if not refusals:
            return

        def note(connection: sqlite3.Connection, _: list[Outcome]) -> None:
            for one in refusals:
                patient = None if one.volume is None else patient_of(one.volume.metadata)
                item = Inspected(one.shown, one.shown, "" if one.volume is None else one.volume.id, patient=patient)
                refuse(connection, item, one.reason, "read")

        self._archive.store.write(self._rows([], np.empty((0, self._archive.dim), dtype=np.float32), [], []), also=note)
        self._refused.extend((one.shown, one.reason) for one in refusals)

    def store(self, volume: Source, loaded: Any) -> None:
        """Encode a volume and store its rows in one transaction, in the place of older ones of the same volume."""
        held = self._held.get(volume.id, {})
        if not held and volume.content in self._contents:
            self._duplicates.append((volume.shown, self._contents[volume.content]))
            return
        named = volume.series is not None and volume.series.uid
        if held and not named and self._paths.get(volume.id) != self._facts(volume).get("path"):
            reason = (
                f"has the id {volume.id!r} of a volume stored before, with other content: the first was kept; to have "
                "both, embed their common parent folder"
            )
            self.refuse([_Refused(volume.shown, reason, volume)])
            return
        pictures = pictures_of(loaded, self._way, volume.series or volume.file or Path(volume.shown))
        vectors = encode_pictures(self._encoder, pictures)
        if not np.isfinite(vectors).all():
            self.refuse([_Refused(volume.shown, "gives a vector that is not finite", volume)])
            return
        ids, hashes, metadata = [], [], []
        for name, facts in zip(pictures.names, pictures.facts, strict=True):
            own = self._way == "slices" and not name.startswith("#")  # a SOPInstanceUID
            identity = name if own else volume.id + name
            ids.append(identity)
            hashes.append(f"{volume.content}:{self._way}{name}")
            known = {"registered_at": now(), **volume.metadata, **self._facts(volume), **facts}
            metadata.append(encode_metadata(known | {"volume": volume.id, "way": self._way}, identity))

        def lift(connection: sqlite3.Connection, _: list[Outcome]) -> None:
            names = {volume.shown} | (
                {printable(one.path.absolute()) for one in volume.series.slices} if volume.series is not None else set()
            )
            connection.executemany("DELETE FROM quarantine WHERE path = ?", [(name,) for name in sorted(names)])

        with self._archive.writing():
            taken = sorted(set(self._archive.store.lookup("id", ids)) - held.keys())
            if taken:
                reason = f"has the id {taken[0]!r} of a row stored before, with other content"
                self.refuse([_Refused(volume.shown, reason, volume)])
                return
            gone = sorted(held.keys() - set(ids))
            rows = self._rows(ids, vectors, hashes, metadata, patient_of(volume.metadata))
            self._archive.store.write(rows, replace=held.keys(), also=lift)
            if gone:
                self._archive.store.remove(ids=gone)
        self.counts["updated" if held else "embedded"] += 1
        for content in self._held.pop(volume.id, {}).values():
            self._contents.pop(content.partition(":")[0], None)
        for identity, content in zip(ids, hashes, strict=True):
            self._hold(volume.id, identity, content, str(self._facts(volume).get("path")))

    def _facts(self, volume: Source) -> dict[str, Any]:
        path = volume.file if volume.series is None else volume.series.slices[0].path.parent
        facts: dict[str, Any] = {} if path is None else {"path": printable(path.absolute())}
        window = window_for(volume.series, window_of(getattr(self._encoder, "loader", None)))
        return facts if window is None else facts | {"window": list(window)}

    def _rows(
        self,
        ids: list[str],
        vectors: NDArray[np.float32],
        hashes: list[str],
        metadata: list[str],
        patient: str | None = None,
    ) -> NewRows:
        return NewRows(ids=ids, vectors=vectors, hashes=hashes, metadata=metadata, patients=[patient] * len(ids))
