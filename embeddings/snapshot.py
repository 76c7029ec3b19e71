"""Snapshot: one committed version of an archive, held in memory in canonical order and never changing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One committed version: aligned ids, vectors, metadata and hashes, sorted by id.

    Whatever was added and removed on the way, the same rows give the same snapshot to the bit. Snapshots are shared
    between callers: treat the lists as read-only (the vectors are).

    Attributes:
        version: The archive's version counter; it grows with every change.
        ids: Ids in canonical order (Python's order of strings).
        vectors: float32 rows (n, d) as the encoder made them, contiguous and read-only.
        hashes: Content hash of each row.
        since: int64 (n,), the version each row came with, or was last changed in.
    """

    version: int
    ids: list[str]
    vectors: NDArray[np.float32]
    hashes: list[str]
    metadata_json: list[str] = field(repr=False)
    places: NDArray[np.int64] = field(repr=False)
    since: NDArray[np.int64] = field(repr=False)

    @classmethod
    def from_rows(cls, ids: Sequence[str], vectors: NDArray[np.float32]) -> Snapshot:
        """Make a snapshot of rows that are in memory only, for `Index` to search; sorted by id, without metadata.

        Args:
            ids: n distinct ids.
            vectors: float32 (n, d).
        """
        order = sorted(range(len(ids)), key=ids.__getitem__)
        rows = np.ascontiguousarray(vectors[order], dtype=np.float32)
        rows.flags.writeable = False
        return cls(
            version=0,
            ids=[ids[i] for i in order],
            vectors=rows,
            hashes=[""] * len(ids),
            metadata_json=["{}"] * len(ids),
            places=np.empty((0, 2), dtype=np.int64),
            since=np.zeros(len(ids), dtype=np.int64),
        )

    def take(self, rows: Sequence[int] | NDArray[np.intp]) -> Snapshot:
        """Return some of the rows, in order of id, as a snapshot of the same version.

        Args:
            rows: Row numbers, each at most once.
        """
        kept = np.sort(np.asarray(rows, dtype=np.intp))
        vectors = np.ascontiguousarray(self.vectors[kept])
        vectors.flags.writeable = False
        return Snapshot(
            version=self.version,
            ids=[self.ids[i] for i in kept],
            vectors=vectors,
            hashes=[self.hashes[i] for i in kept],
            metadata_json=[self.metadata_json[i] for i in kept],
            places=self.places[kept] if len(self.places) == len(self.ids) else self.places,
            since=self.since[kept],
        )

    def __len__(self) -> int:
        """Return the number of rows."""
        return len(self.ids)

    @property
    def dim(self) -> int:
        """Numbers per vector."""
        return int(self.vectors.shape[1])

    @cached_property
    def metadata(self) -> list[dict[str, Any]]:
        """Metadata of each row, decoded when first asked for."""
        return [json.loads(text) for text in self.metadata_json]

    @cached_property
    def positions(self) -> dict[str, int]:
        """Id -> row."""
        return {identity: row for row, identity in enumerate(self.ids)}
