"""IngestJob: the counts of one job, and the commit of one batch: rows, file states and refusals in one transaction."""

from __future__ import annotations

import sqlite3
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .archive import Archive
from .errors import EncoderError, ImageError
from .ingest_report import IngestReport
from .inspection import Inspected, Inspector, holder_of, refuse, renew, same_pixels, settle
from .precision import Precision, faster
from .readers import Reader
from .sources import Repeat
from .store import NewRows, Outcome

if TYPE_CHECKING:
    from .encoders import Encoder


PRECISION_NOTE, PRECISIONS = "precision", ("float32", "bfloat16")
"""Note that holds how an archive's vectors are computed, and what it may say."""


class FastEncode:
    """From loaded images to vectors, by the fastest way that the first batch proves to be right."""

    def __init__(self, encoder: Encoder, precision: Precision, archive: Archive) -> None:
        """Remember the encoder; what is fastest is found out with the first batch.

        An archive keeps to what it was begun with, so that a job that was killed gives the vectors of one that was not.
        """
        self._encoder = encoder
        self._archive = archive
        self._precision: Precision = precision
        self._way: Callable[[Sequence[NDArray[np.float32]]], NDArray[np.float32]] | None = None
        self.said = ""

    def __call__(self, images: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return vectors (n, d)."""
        if self._way is None:
            before = self._archive.get_note(PRECISION_NOTE)
            wanted: Precision = before if self._precision == "auto" and before in PRECISIONS else self._precision
            self._way, report = faster(self._encoder, images, precision=wanted)
            self.said = str(report)
            if self.said and before != report.chosen:
                self._archive.set_note(PRECISION_NOTE, report.chosen)
        return self._way(images)


class IngestJob:
    """What became of the files so far, and how the next batch is stored."""

    def __init__(
        self, archive: Archive, inspector: Inspector, reader: Reader, encode: FastEncode, *, total: int
    ) -> None:
        """Start the clock.

        Args:
            archive: Where rows go.
            inspector: Reads a copy whose row was replaced meanwhile.
            reader: Expands what was loaded, and compares two files of one id.
            encode: The encoder.
            total: Files listed.
        """
        self._archive = archive
        self._inspector = inspector
        self._reader = reader
        self._encode_loaded = encode
        self._total = total
        self._started = time.monotonic()
        self._counts = dict.fromkeys(("seen", "embedded", "updated", "unchanged"), 0)
        self._refused: list[tuple[str, str]] = []
        self._duplicates: list[tuple[str, str]] = []
        self._warnings: Counter[str] = Counter()
        self._replaced: set[str] = set()

    def report(self) -> IngestReport:
        """Return the counts so far."""
        return IngestReport(
            **self._counts,
            duplicate=len(self._duplicates),
            refused=tuple(self._refused),
            duplicates=tuple(self._duplicates),
            total=self._total,
            seconds=time.monotonic() - self._started,
            warnings=dict(sorted(self._warnings.items())),
            precision=self._encode_loaded.said,
        )

    def commit(self, batch: list[Inspected]) -> None:
        """Encode what was loaded, and store rows, file states and refusals in one transaction.

        A copy of a file whose row got other content in this job is no copy any more: it is read, and stored next.
        """
        batch = [self._inspector.read(one.copy) if one.copy and one.id in self._replaced else one for one in batch]
        loaded, vectors = self._encode([item for item in batch if item.image is not None])
        rows = [item for item in loaded if item.reason is None]
        failed = [item for item in loaded if item.reason is not None]
        others = [item for item in batch if item.image is None]
        refused: list[tuple[str, str]] = []
        duplicates: list[tuple[str, str]] = []
        undecided: list[Inspected] = []
        changes = {item.id: item.amendment for item in others if item.amendment is not None}
        amended: list[str] = []

        def note(connection: sqlite3.Connection, outcomes: list[Outcome]) -> None:
            def reject(item: Inspected, reason: str, stage: str) -> None:
                refuse(connection, item, reason, stage)
                refused.append((item.shown, reason))

            for item, outcome in zip(rows, outcomes, strict=True):
                same = outcome.kind == "conflict" and same_pixels(connection, item)
                if outcome.kind == "conflict" and not same:
                    undecided.append(item)
                    continue
                settle(connection, item, outcome.id)
                if outcome.kind == "duplicate" or same:
                    duplicates.append((item.shown, outcome.id))
            for item in failed + others:
                if item.reason is not None:
                    reject(item, item.reason, item.stage)
                elif not item.twin:
                    renew(connection, item)
                elif (twin := holder_of(connection, sha256=item.state.sha256 if item.state else "")) is None:
                    reject(item, "equals an image that was removed just now: run again", "store")
                else:
                    settle(connection, item, twin[0])
                    duplicates.append((item.shown, twin[0]))
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
        replaced = {outcome.id for outcome in outcomes if outcome.kind == "updated"}
        self._replaced |= replaced
        orphaned = [item for item in others if item.copy is not None and item.id in replaced]
        others = [item for item in others if item not in orphaned] if orphaned else others
        self._refused += refused
        self._duplicates += duplicates
        for item in undecided:
            self._decide(item)
        stored = [item for item, outcome in zip(rows, outcomes, strict=True) if outcome.kind in ("added", "updated")]
        self._warnings.update(code for item in stored for code in item.warnings)
        self._counts["seen"] += len(batch) - len(orphaned)
        self._counts["embedded"] += sum(outcome.kind == "added" for outcome in outcomes)
        self._counts["updated"] += sum(outcome.kind == "updated" for outcome in outcomes) + len(amended)
        self._counts["unchanged"] += sum(item.reason is None and not item.twin for item in others) - len(amended)
        if orphaned:
            self.commit(orphaned)

    def _decide(self, item: Inspected) -> None:
        """Settle a file whose id is taken by other bytes: the same image in another encoding, or a conflict.

        The two files are decoded whole outside of any transaction: encodings differ in what "fast" decoding makes of
        them, an image does not.
        """
        with self._archive.store.reading() as connection:
            holder = holder_of(connection, id=item.id)
            reason = _conflict(connection, item)
        same = holder is not None and self._shows(holder[1], item.shown)

        def note(connection: sqlite3.Connection, _: list[Outcome]) -> None:
            if same:
                settle(connection, item, item.id, same=True)
            else:
                refuse(connection, item, reason, "store")

        self._archive.store.write(_no_rows(self._archive.dim), also=note)
        if same:
            self._duplicates.append((item.shown, item.id))
        else:
            self._refused.append((item.shown, reason))

    def _shows(self, first: str, second: str) -> bool:
        """Say whether two files hold one image; False where one of them is gone or cannot be read."""
        try:
            return bool(first) and self._reader.same_image(Path(first), Path(second))
        except ImageError:
            return False

    def repeat(self, repeats: Sequence[Repeat]) -> None:
        """Count further mentions of files: what became of the first holds for those that do not contradict it."""
        reasons = dict(self._refused)
        for again in repeats:
            reason = again.reason or reasons.get(again.path)
            if reason is not None:
                self._refused.append((again.path, reason))
                continue
            with self._archive.store.reading() as connection:
                stored = self._inspector.stored_path(again.path)
                row = connection.execute("SELECT id FROM files WHERE path = ?", (stored,)).fetchone()
            self._duplicates.append((again.path, again.id if row is None else row[0]))
        self._counts["seen"] += len(repeats)

    def _encode(self, items: list[Inspected]) -> tuple[list[Inspected], NDArray[np.float32]]:
        """Return the items, those without a finite vector refused, and the vectors (n, d) of the others."""
        dim = self._archive.dim
        if not items:
            return [], np.empty((0, dim), dtype=np.float32)
        images = self._reader.expand([item.image for item in items if item.image is not None])
        vectors = np.asarray(self._encode_loaded(images), dtype=np.float32)
        if vectors.shape != (len(items), dim):
            raise EncoderError(
                f"The encoder {self._archive.encoder_name} made vectors of shape {vectors.shape} from {len(items)} "
                f"images; it promised {(len(items), dim)}."
            )
        finite = np.asarray(np.isfinite(vectors).all(axis=1))
        reason = "gives a vector that is not finite"
        checked = [
            item if good else replace(item, reason=reason, stage="encode")
            for item, good in zip(items, finite, strict=True)
        ]
        return checked, vectors[finite]


def _no_rows(dim: int) -> NewRows:
    """Return a write of no rows, which only carries other statements."""
    return NewRows(ids=[], vectors=np.empty((0, dim), dtype=np.float32), hashes=[], metadata=[], patients=[])


def _conflict(connection: sqlite3.Connection, item: Inspected) -> str:
    holder = holder_of(connection, id=item.id)
    where = f", from '{holder[1]}'" if holder is not None and holder[1] else ""
    reason = f"has the id {item.id!r} of an image stored before{where}, with other content: the first was kept"
    if holder is not None and all(path.endswith(f"/{item.id}") for path in (item.path, holder[1])):
        # The id is no UID but the file's name below its source: under another source the name is another.
        reason += "; to have both, embed their common parent folder, or use a manifest"
    return reason
