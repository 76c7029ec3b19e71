"""View: one version of a large archive as it is searched: segments mapped into memory, with the rows that are live."""

from __future__ import annotations

import json
import re
import sqlite3
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from .database import ROW_COLUMNS, row_crc
from .quantised import SHARD, Codes, Proposal, import_faiss, load_or_build, normalised
from .segments import Segment, map_segment, read_segment
from .sketches import Sketches, load_or_build_sketches

if TYPE_CHECKING:
    from .reading import ReadableStore

PLAIN_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
"""Metadata keys that can be written into an SQL statement as they are."""

QUANTISED_ROWS = 4096
"""Segments from this many rows on are searched in 8 bits, and what is found is ranked again; others in float32."""

Form = Literal["codes", "sketches"]
"""What large segments are searched by: 8-bit codes, which bound what they hide, or 1-bit sketches, which do not."""


@dataclass(frozen=True, eq=False)
class Material:
    """What searching a segment takes, the same in every version.

    Attributes:
        rows: float32 rows (n, d), in memory or mapped.
        codes: Their quantised form or their sketches, None where they are searched as they are.
        plain: A faiss.IndexFlatIP of the normalised rows where there are no codes.
    """

    rows: NDArray[np.float32]
    codes: Codes | Sketches | None
    plain: Any

    @property
    def shards(self) -> int:
        """In how many pieces it is searched."""
        return 1 if self.codes is None else len(self.codes.shards)

    def propose(self, queries: NDArray[np.float32], width: int, parameters: Any, *, shard: int) -> Proposal:
        """As `Codes.propose`."""
        if self.codes is not None:
            return self.codes.propose(queries, width, parameters, shard=shard)
        values, found = self.plain.search(queries, width, params=parameters)
        rounding = 4.0 * (queries.shape[1] + 8) * float(np.finfo(np.float32).eps)
        return found, values.astype(np.float64), np.full(len(queries), rounding)


@dataclass(frozen=True, eq=False)
class Part:
    """A segment in one version.

    Attributes:
        segment: The segment.
        material: What searching it takes.
        live: bool (n,), the rows that count; None for all.
        count: How many those are.
        parameters: FAISS search parameters that select them, one for each shard; None for all.
    """

    segment: Segment
    material: Material
    live: NDArray[np.bool_] | None
    count: int
    parameters: tuple[Any, ...] | None

    def propose(self, queries: NDArray[np.float32], width: int, shard: int) -> Proposal:
        """As `Codes.propose`, of the rows that count."""
        chosen = None if self.parameters is None else self.parameters[shard]
        return self.material.propose(queries, min(width, self.count), chosen, shard=shard)


@dataclass(frozen=True, eq=False)
class View:
    """One committed version.

    Attributes:
        version: The archive's version.
        parts: Its segments that have live rows.
        count: Live rows.
    """

    version: int
    parts: tuple[Part, ...]
    count: int


def selecting(live: NDArray[np.bool_]) -> tuple[Any, ...]:
    """Return FAISS search parameters that look at some rows only, one for each shard."""
    return tuple(_selecting(live[start : start + SHARD]) for start in range(0, len(live), SHARD))


def _selecting(live: NDArray[np.bool_]) -> Any:
    faiss = import_faiss()
    bits = np.packbits(live, bitorder="little")
    selector = faiss.IDSelectorBitmap(bits)
    selector.bits = bits  # FAISS keeps a pointer only
    parameters = faiss.SearchParameters(sel=selector)
    parameters.selector = selector
    return parameters


class Viewer:
    """Makes views of an archive, reusing what did not change since the last one."""

    def __init__(self, store: ReadableStore, form: Form = "codes") -> None:
        """Take the store to look at, and what its large segments are searched by."""
        self._store = store
        self._form = form
        self._view: View | None = None
        self._materials: dict[tuple[str, bool], Material] = {}

    def view(self, connection: sqlite3.Connection) -> View:
        """Return the version a connection's transaction sees.

        Raises:
            FileNotFoundError: A segment was merged away after the transaction began: begin another.
            ArchiveCorrupt: A segment or the database is not what was written.
        """
        store = self._store
        version = store.version_of(connection)
        before = self._view
        if before is not None and before.version == version:
            return before
        segments = [segment for segment in store.segments(connection) if segment.live]
        count = sum(segment.live for segment in segments)
        if count != store.digest_of(connection)[0]:
            raise store.damaged("its segments do not have as many live rows as it says")
        known = {} if before is None else {part.segment: part for part in before.parts}
        parts = []
        materials = {}
        for segment in segments:
            wanted = (segment.name, segment.rows >= QUANTISED_ROWS)
            material = self._materials.get(wanted) or self._material(segment, codes=wanted[1])
            materials[wanted] = material
            same = known.get(segment)
            parts.append(
                same if same is not None and same.material is material else self._part(connection, material, segment)
            )
        self._materials = materials
        self._view = View(version, tuple(parts), count)
        return self._view

    def _material(self, segment: Segment, *, codes: bool) -> Material:
        store = self._store
        if codes:
            load = load_or_build if self._form == "codes" else load_or_build_sketches
            quantised = load(
                store.root, segment, store.dim, lambda: map_segment(store.root, segment, dim=store.dim, check=True)
            )
            rows = map_segment(store.root, segment, dim=store.dim, check=False)
            return Material(rows, quantised, None)
        rows = read_segment(store.root, segment, dim=store.dim, check=True)
        plain = import_faiss().IndexFlatIP(store.dim)
        plain.add(normalised(rows))
        return Material(rows, None, plain)

    def _part(self, connection: sqlite3.Connection, material: Material, segment: Segment) -> Part:
        if segment.live == segment.rows:
            return Part(segment, material, None, segment.live, None)
        live = np.zeros(segment.rows, dtype=np.bool_)
        query = "SELECT position FROM rows WHERE segment = ?"
        places = np.fromiter((row[0] for row in connection.execute(query, (segment.key,))), dtype=np.int64)
        if len(places) != segment.live or (len(places) and (places.min() < 0 or places.max() >= segment.rows)):
            raise self._store.damaged(f"segment {segment.name} does not have the live rows it should")
        live[places] = True
        return Part(segment, material, live, segment.live, selecting(live))


def row_at(
    store: ReadableStore, connection: sqlite3.Connection, segment: Segment, position: int
) -> tuple[str, int, str]:
    """Return id, vector checksum and metadata JSON of the row at a place, its own checksum verified.

    Raises:
        ArchiveCorrupt: There is none, or it is not what was written.
    """
    query = f"SELECT {ROW_COLUMNS}, row_crc FROM rows WHERE segment = ? AND position = ?"
    found = connection.execute(query, (segment.key, int(position))).fetchone()
    if found is None:
        raise store.damaged(f"no row is at place {position} of segment {segment.name}")
    *row, crc = found
    if row_crc(row) != crc:
        raise store.damaged(f"row {row[0]!r} does not match its checksum")
    return row[0], row[6], row[5]


def rows_by_id(
    store: ReadableStore, connection: sqlite3.Connection, ids: Sequence[str]
) -> dict[str, tuple[dict[str, Any], NDArray[np.float32]]]:
    """Return metadata and vector of some rows, verified; ids that are not stored are left out.

    Raises:
        FileNotFoundError: A segment was merged away after the transaction began: begin another.
        ArchiveCorrupt: A row or a vector is not what was written.
    """
    segments = {segment.key: segment for segment in store.segments(connection)}
    found = {}
    for identity in dict.fromkeys(ids):
        query = "SELECT segment, position FROM rows WHERE id = ?"
        place = connection.execute(query, (identity,)).fetchone()
        if place is None:
            continue
        if place[0] not in segments or not 0 <= place[1] < segments[place[0]].rows:
            raise store.damaged(f"row {identity!r} points outside the stored vectors")
        segment = segments[place[0]]
        _, checksum, metadata = row_at(store, connection, segment, place[1])
        vector = np.array(map_segment(store.root, segment, dim=store.dim, check=False)[place[1]])
        if zlib.crc32(vector.data) != checksum:
            raise store.damaged(f"the vector of row {identity!r} is not the one it was stored with")
        found[identity] = json.loads(metadata), vector
    return found


def places_where(connection: sqlite3.Connection, where: Mapping[str, object]) -> list[tuple[int, int]]:
    """Return (segment, position) of the rows whose metadata have certain values.

    Args:
        connection: A reading transaction.
        where: Metadata key -> the value, or a list, tuple or set of values one of which it has.
    """
    conditions, values = condition_of(where)
    return connection.execute(f"SELECT segment, position FROM rows WHERE {conditions}", values).fetchall()


def condition_of(where: Mapping[str, object]) -> tuple[str, list[object]]:
    """Turn metadata values into an SQL condition and its parameters.

    Raises:
        ValueError: It names no key, or a value is no text, number or truth value.
    """
    if not where:
        raise ValueError("A condition on metadata names at least one key: where={'modality': 'CT'}.")
    parts: list[str] = []
    values: list[object] = []
    for key, wanted in where.items():
        options = list(wanted) if isinstance(wanted, list | tuple | set | frozenset) else [wanted]
        for option in options:
            if not isinstance(option, str | int | float | bool | np.generic):
                raise ValueError(f"Metadata are compared with text and numbers; {key!r} was to be {option!r}.")
        marks = ",".join("?" * len(options))
        if PLAIN_KEY.fullmatch(str(key)):  # a quarter of the time; other keys SQLite's paths do not name reliably
            parts.append(f"json_extract(metadata, '$.{key}') IN ({marks})")
        else:
            parts.append(
                f"EXISTS (SELECT 1 FROM json_each(rows.metadata) AS fact WHERE fact.key = ? AND fact.atom IN ({marks}))"
            )
            values.append(str(key))
        values += [option.item() if isinstance(option, np.generic) else option for option in options]
    return " AND ".join(parts), values
