"""Archive: the stored vectors of one encoder, with ids and metadata; added to, removed from, and read as snapshots."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import cache_file, merging
from .database import DATABASE_NAME, now
from .errors import ArchiveError, EncoderMismatch, UnknownId
from .image_warnings import odd_views
from .lock import HOLDER_NAME, LOCK_NAME
from .maintenance import PurgeReport, Refusal, VerifyReport, backup, measure, purge, refusals, verify
from .metadata import check_text, encode_metadata, patient_of, patient_text
from .segments import FOLDER
from .snapshot import Snapshot
from .store import NewRows, Store
from .table_export import export_rows
from .view import condition_of

if TYPE_CHECKING:
    import pandas as pd

    from .encoders import Encoder

__all__ = ["AddReport", "Archive", "PurgeReport", "Refusal", "Snapshot", "VerifyReport"]

LOCK_TIMEOUT = 30.0
"""Seconds a writer waits for another one before `ArchiveLocked`."""

Kind = Literal["archive", "comparison set"]
"""What a store is for: images embedded as they come, or labelled support images registered one by one."""

_OTHER_KIND = {
    "archive": "'{}' is a comparison set, not an archive: add labelled images to it with `radshot register`, or name "
    "another folder to embed into.",
    "comparison set": "'{}' is an archive of embedded images, not a comparison set: register labelled images into a "
    "folder of their own.",
}
_KINDS = ("added", "duplicate", "conflict")
_OWN_NAMES = {
    *(DATABASE_NAME, *(f"{DATABASE_NAME}-{own}" for own in ("journal", "wal", "shm"))),
    *(LOCK_NAME, HOLDER_NAME, merging.LOCK_NAME, FOLDER, cache_file.FOLDER),
}


@dataclass(frozen=True, slots=True)
class AddReport:
    """What `Archive.add` did with each row.

    Attributes:
        added: Ids that are new.
        duplicates: Ids that were there with the same content; nothing changed.
        conflicts: Ids that were there with other content; the first was kept.
    """

    added: tuple[str, ...]
    duplicates: tuple[str, ...]
    conflicts: tuple[str, ...]


class Archive:
    """Stored vectors of one encoder: ids, float32 rows, metadata, in a folder of their own.

    Reading needs no lock and sees whole versions only. Writing is one process at a time, atomic and durable when the
    call returns. `ids`, `vectors` and `metadata` each look for a newer version; where they must agree while
    others write, take one `snapshot()`.
    """

    def __init__(self, store: Store) -> None:
        """Wrap an open store; use `Archive.open` or `Archive.create`."""
        self.store = store

    @staticmethod
    def exists(path: str | os.PathLike[str]) -> bool:
        """Whether a folder holds an archive or a comparison set; whether it is sound is found out by opening it."""
        return (Path(path) / DATABASE_NAME).is_file()

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        encoder: Encoder | None = None,
        create: bool | None = None,
        kind: Kind | None = None,
        timeout: float = LOCK_TIMEOUT,
    ) -> Self:
        """Open an archive, or make one where there is none.

        Args:
            path: The archive's folder.
            encoder: The encoder whose vectors it holds or shall hold; checked against the stored fingerprint.
            create: Whether to make a missing archive; by default that is done when an encoder is given.
            kind: What it must be, and what a new one becomes; by default any, and a new one an "archive".
            timeout: Seconds a write waits for another writer.

        Raises:
            ArchiveError: There is none and none may be made, it is of the other kind, or a newer radshot wrote it.
            EncoderMismatch: It holds the vectors of another encoder.
            ArchiveCorrupt: The database is damaged.
        """
        root = Path(path)
        if cls.exists(root):
            archive = cls(Store(root, timeout=timeout))
            with archive._closed_on_error():
                if archive.store.open():
                    if kind is not None:
                        archive.check_kind(kind)
                    if encoder is not None:
                        archive.check_encoder(encoder)
                    return archive
            archive.close()
        if create is False or encoder is None:
            hint = "; give the encoder to make one" if create is not False else ""
            raise ArchiveError(f"There is no archive at '{root}'{hint}.")
        return cls.create(
            root,
            encoder_name=encoder.name,
            encoder_fingerprint=encoder.fingerprint,
            encoder_spec=getattr(encoder, "spec", None),
            dim=encoder.dim,
            kind="archive" if kind is None else kind,
            timeout=timeout,
        )

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        encoder_name: str,
        encoder_fingerprint: str,
        encoder_spec: str | None,
        dim: int,
        kind: Kind = "archive",
        timeout: float = LOCK_TIMEOUT,
    ) -> Self:
        """Make a new, empty archive; one that is there for the same encoder is opened instead.

        Args:
            path: Its folder; made if missing, else it must be empty.
            encoder_name: The encoder's name, for messages.
            encoder_fingerprint: Digest of its weights, configuration and preprocessing.
            encoder_spec: What `load_encoder` takes to load it again, where known.
            dim: Numbers per vector.
            kind: What it is for; it stays what it was made, also when every row is removed.
            timeout: Seconds a write waits for another writer.

        Raises:
            ArchiveError: The folder holds something else, or an archive of the other kind.
            EncoderMismatch: An archive of another encoder is there.
            StorageFull: No space.
        """
        root = Path(path)
        if dim < 1:
            raise ValueError(f"An archive's vectors have at least one dimension; got {dim}.")
        if root.exists() and not root.is_dir():
            raise ArchiveError(f"An archive is a folder, and '{root}' is a file.")
        if root.is_dir():
            foreign = sorted(entry.name for entry in root.iterdir() if entry.name not in _OWN_NAMES)
            foreign = [name for name in foreign if not name.startswith((".", HOLDER_NAME))]
            if foreign:
                raise ArchiveError(
                    f"A new archive needs a folder of its own, and '{root}' holds {foreign[0]!r}: give a new name."
                )
        facts = {
            "encoder_name": encoder_name,
            "encoder_fingerprint": encoder_fingerprint,
            "dim": str(dim),
            "kind": kind,
            "created_at": now(),
        }
        if encoder_spec is not None:
            facts["encoder_spec"] = str(encoder_spec)
        archive = cls(Store(root, timeout=timeout))
        with archive._closed_on_error():
            archive.store.create(facts)
            archive.check_kind(kind)
            archive._match(encoder_name, encoder_fingerprint, dim)
        return archive

    @contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.close()
            raise

    def check_kind(self, kind: Kind) -> None:
        """Make sure that this is an archive, or that it is a comparison set.

        Raises:
            ArchiveError: It is the other one.
        """
        if self.kind != kind:
            raise ArchiveError(_OTHER_KIND[kind].format(self.path))

    def check_encoder(self, encoder: Encoder) -> None:
        """Make sure that an encoder is the one whose vectors are stored.

        Raises:
            EncoderMismatch: It is not; both are named.
        """
        self._match(encoder.name, encoder.fingerprint, encoder.dim)

    def _match(self, name: str, fingerprint: str, dim: int) -> None:
        if (fingerprint, dim) == (self.encoder_fingerprint, self.dim):
            return
        raise EncoderMismatch(
            f"The archive '{self.path}' holds vectors of {self.encoder_name} ({self.encoder_fingerprint[:12]}, "
            f"{self.dim} dimensions), and the encoder given is {name} ({fingerprint[:12]}, {dim} dimensions): use the "
            "archive's own encoder, or make the vectors anew with `radshot embed --reembed`."
        )

    @property
    def path(self) -> Path:
        """The archive's folder."""
        return self.store.root

    @property
    def kind(self) -> Kind:
        """What the store was made for."""
        return "comparison set" if self.store.facts.get("kind") == "comparison set" else "archive"

    @property
    def encoder_name(self) -> str:
        """Name of the encoder whose vectors these are."""
        return self.store.facts["encoder_name"]

    @property
    def encoder_fingerprint(self) -> str:
        """Digest of that encoder's weights, configuration and preprocessing."""
        return self.store.facts["encoder_fingerprint"]

    @property
    def encoder_spec(self) -> str | None:
        """What `load_encoder` takes to load that encoder again, where known."""
        return self.store.facts.get("encoder_spec")

    @property
    def dim(self) -> int:
        """Numbers per vector."""
        return self.store.dim

    @property
    def version(self) -> int:
        """Newest committed version; it grows with every change, also another process's."""
        return self.store.version()

    def snapshot(self) -> Snapshot:
        """Return the newest committed version, whole and immutable; cached until there is a newer one."""
        return self.store.snapshot()

    @property
    def ids(self) -> list[str]:
        """Ids of the newest version, sorted."""
        return self.snapshot().ids

    @property
    def vectors(self) -> NDArray[np.float32]:
        """Vectors of the newest version (n, d), read-only, aligned with `ids`."""
        return self.snapshot().vectors

    @property
    def metadata(self) -> list[dict[str, Any]]:
        """Metadata of the newest version, aligned with `ids`."""
        return self.snapshot().metadata

    def __len__(self) -> int:
        """Return the number of rows in the newest version."""
        return len(self.snapshot())

    def table(self) -> pd.DataFrame:
        """Return ids and metadata of the newest version as a table, one row each."""
        import pandas as pd

        held = self.snapshot()
        columns = dict.fromkeys(key for row in held.metadata for key in row if key != "id")
        data = {key: [row.get(key) for row in held.metadata] for key in columns}
        return pd.DataFrame({"id": held.ids, **data})

    def writing(self, timeout: float | None = None) -> AbstractContextManager[None]:
        """Hold the writer's lock for a `with` block, so that what is read and what is then written belong together.

        Args:
            timeout: Seconds to wait for another writer; by default what the archive was opened with.
        """
        return self.store.writing(timeout)

    def add(
        self,
        ids: Sequence[str],
        vectors: ArrayLike,
        *,
        metadata: Sequence[Mapping[str, Any]] | None = None,
        hashes: Sequence[str] | None = None,
    ) -> AddReport:
        """Add rows, all in one atomic and durable step.

        Args:
            ids: Any text; it is never used as a path.
            vectors: Rows (n, d) as the encoder made them, finite.
            metadata: JSON-able mapping per row; key `patient` is what `remove(patient=...)` looks at.
            hashes: Content hash per row, which tells a duplicate from a conflict; by default of the vector's bytes.

        Raises:
            ValueError: Shapes or values do not fit; nothing was stored.
            ArchiveLocked, StorageFull: Nothing was stored.
        """
        rows = np.asarray(vectors, dtype=np.float32)
        rows = self._checked(rows, len(ids))
        names = [check_text(identity, "id") for identity in ids]
        if hashes is None:
            hashes = ["vector:" + hashlib.sha256(np.ascontiguousarray(row).data).hexdigest() for row in rows]
        facts: Sequence[Mapping[str, Any]] = [{}] * len(names) if metadata is None else metadata
        for what, given in (("metadata", facts), ("hashes", hashes)):
            if len(given) != len(names):
                raise ValueError(f"There must be as many {what} as ids: {len(names)} ids, {len(given)} {what}.")
        outcomes = self.store.write(
            NewRows(
                ids=names,
                vectors=rows,
                hashes=[check_text(content, "hash") for content in hashes],
                metadata=[encode_metadata(row, identity) for row, identity in zip(facts, names, strict=True)],
                patients=[patient_of(row) for row in facts],
            )
        )
        kinds = {kind: [n for n, o in zip(names, outcomes, strict=True) if o.kind == kind] for kind in _KINDS}
        return AddReport(*(tuple(kinds[kind]) for kind in _KINDS))

    def _checked(self, rows: NDArray[np.float32], count: int) -> NDArray[np.float32]:
        if count == 0 and rows.size == 0:
            return np.empty((0, self.dim), dtype=np.float32)
        if rows.ndim != 2:
            raise ValueError(f"Vectors must have shape (n, d); got {rows.shape}.")
        if rows.shape[0] != count:
            raise ValueError(f"There must be one vector per id: {count} ids, {rows.shape[0]} vectors.")
        if rows.shape[1] != self.dim:
            raise ValueError(
                f"The vectors have {rows.shape[1]} dimensions, the archive '{self.path}' has {self.dim}: were both "
                "made by the same encoder?"
            )
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if bad.size:
            raise ValueError(f"Vectors must be finite; row {int(bad[0])} holds NaN or infinity.")
        return rows

    def remove(
        self,
        *,
        ids: Iterable[str] | None = None,
        patient: object | None = None,
        where: Mapping[str, object] | None = None,
        purge: bool = False,
    ) -> tuple[str, ...]:
        """Remove rows by id, by patient or by metadata; from the next request on they are as if never there.

        A later `embed_archive` over a source that still holds the images brings them back.

        Args:
            ids: Ids to remove; those not there are passed over.
            patient: Compared with `metadata["patient"]`, as text; the patient's refused files are forgotten too.
            where: Metadata key -> the value, or the list of values, of the rows to remove.
            purge: Whether to erase the removed bytes from disk as well, see `purge`.

        Returns:
            The ids removed, sorted; none where the patient had refused files only.

        Raises:
            UnknownId: Nothing matched.
        """
        if sum(given is not None for given in (ids, patient, where)) != 1:
            raise ValueError("Give either ids or a patient to remove, or a condition; one of the three.")
        if isinstance(ids, str):
            ids = [ids]
        with self.writing() if where is not None else nullcontext():  # what is found is what is removed
            names = self.find(where) if where is not None else None if ids is None else list(ids)
            return self._remove(names, patient, where, purge=purge)

    def _remove(
        self, names: list[str] | None, patient: object | None, where: Mapping[str, object] | None, *, purge: bool
    ) -> tuple[str, ...]:
        # As it is stored today, and as it was given: older rows were stored as they came.
        spellings = None if patient is None else {patient_text(patient) or str(patient), str(patient)}
        removed, refusals_removed = self.store.remove(ids=names, patients=spellings)
        if not removed and not refusals_removed:
            sought = f"patient {str(patient)!r}"
            if names is not None:
                sought = f"id {', '.join(map(repr, names[:3])) or '(none)'}" if where is None else f"metadata {where!r}"
            raise UnknownId(f"The archive '{self.path}' has no row of {sought}.")
        if purge:
            self.purge()
        return removed

    def rows(self, ids: Iterable[str]) -> tuple[list[dict[str, Any]], NDArray[np.float32]]:
        """Return metadata and vectors (n, d) of some rows, without reading the others.

        Raises:
            UnknownId: One of them is not stored.
            ArchiveCorrupt: A row or a vector is not what was written.
        """
        names = list(ids)
        found = self.store.rows_by_id(names)
        missing = next((name for name in names if name not in found), None)
        if missing is not None:
            raise UnknownId(f"The archive '{self.path}' has no row of id {missing!r}.")
        vectors = np.asarray([found[name][1] for name in names], dtype=np.float32).reshape(len(names), self.dim)
        return [found[name][0] for name in names], vectors

    def has(self, identity: str) -> bool:
        """Say whether there is a row of that id."""
        return bool(self.store.lookup("id", [identity]))

    def ids_of(self, content: str) -> list[str]:
        """Return the ids of the rows whose file has a SHA-256."""
        with self.store.viewing() as connection:
            rows = connection.execute("SELECT id FROM rows WHERE hash = ? ORDER BY id", (content,))
            return [identity for (identity,) in rows]

    def value_counts(self, key: str) -> dict[str, int]:
        """Return how many rows have each value of a metadata key, as text; rows without one are left out."""
        query = (
            "SELECT CAST(fact.value AS TEXT), count(*) FROM rows, json_each(rows.metadata) AS fact "
            "WHERE fact.key = ? AND fact.value IS NOT NULL GROUP BY 1 ORDER BY 1"
        )
        with self.store.viewing() as connection:
            return {str(value): count for value, count in connection.execute(query, (key,))}

    def find(self, where: Mapping[str, object]) -> list[str]:
        """Return the ids of the rows whose metadata have certain values, sorted.

        Args:
            where: Metadata key -> the value, or the list of values one of which it has.

        Raises:
            ValueError: It names no key, or a value is no text, number or truth value.
        """
        condition, values = condition_of(where)
        with self.store.viewing() as connection:
            rows = connection.execute(f"SELECT id FROM rows WHERE {condition} ORDER BY id", values)
            return [identity for (identity,) in rows]

    def export(self, folder: str | os.PathLike[str]) -> Path:
        """Write the newest version for other programs: `rows.parquet`, `vectors.npy` and `ids.json`, all by id.

        Args:
            folder: A new folder; it appears when all of it is written.

        Raises:
            ArchiveError: It is there already.
            ArchiveCorrupt: A row or a vector is not what was written; nothing is left.
        """
        return export_rows(self.store, Path(folder))

    def purge(self) -> PurgeReport:
        """Erase from disk what was removed: segments are rewritten, the database vacuumed, its log truncated."""
        return purge(self.store)

    def verify(self) -> VerifyReport:
        """Read everything again and say what does not agree with what was written; never raises for damage."""
        return verify(self.store)

    def stats(self) -> dict[str, Any]:
        """Return sizes and counts: rows, dim, version, segments, bytes, removed rows on disk, quarantined files."""
        return measure(self.store)

    def backup(self, to: str | os.PathLike[str]) -> Path:
        """Copy the newest version to a new folder, consistent even while others read; returns the folder."""
        return backup(self.store, Path(to))

    def quarantine(self) -> list[Refusal]:
        """List the files that `embed_archive` refused and that have not succeeded since."""
        return refusals(self.store)

    def odd_views(self) -> dict[str, str]:
        """Return id -> one sentence for images of another view in an archive that else holds frontal radiographs."""
        with self.store.viewing() as connection:
            query = (
                "SELECT id, coalesce(json_extract(metadata, '$.view_position'), json_extract(metadata, '$.view')) "
                "FROM rows"
            )
            return odd_views(connection.execute(query))

    def get_note(self, key: str, default: Any = None) -> Any:
        """Return a small JSON document that belongs to the archive, or `default`."""
        text = self.store.get_note(key)
        return default if text is None else json.loads(text)

    def set_note(self, key: str, value: Any) -> None:
        """Keep a small JSON document with the archive, durably; None removes it."""
        self.set_notes({key: value})

    def set_notes(self, values: Mapping[str, Any]) -> None:
        """Keep several small JSON documents, all of them or none; None removes one."""
        self.store.set_notes(
            {
                check_text(key, "key"): None if value is None else json.dumps(value, allow_nan=False)
                for key, value in values.items()
            }
        )

    def close(self) -> None:
        """Close the archive; snapshots taken from it stay valid."""
        self.store.close()

    def __enter__(self) -> Self:
        """Return the archive itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the archive."""
        self.close()
