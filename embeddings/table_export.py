"""An archive's rows for other programs: Parquet with metadata and vectors, and NumPy vectors with their ids."""

from __future__ import annotations

import json
import secrets
import shutil
import sqlite3
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .database import ROW_COLUMNS, row_crc, translated
from .errors import ArchiveCorrupt, ArchiveError
from .segments import map_segment, sync_folder

if TYPE_CHECKING:
    import pyarrow as pa

    from .reading import ReadableStore

ROWS_AT_ONCE = 8192
"""Rows written at a time."""

ROWS_FILE, VECTORS_FILE, IDS_FILE = "rows.parquet", "vectors.npy", "ids.json"
"""What the folder holds."""

Row = tuple[str, str, dict[str, Any]]


def export_rows(store: ReadableStore, folder: Path) -> Path:
    """Write the newest version to a new folder, see `Archive.export`.

    A metadata key becomes a column of text, whole numbers, numbers or truth values where all its values are such, else
    of JSON text; a key called like one of the own columns (id, hash, vector) gets a `metadata.` in front.
    """
    import pyarrow.parquet as pq

    if folder.exists():
        raise ArchiveError(f"An export needs a new folder, and '{folder}' is there already: give a new name.")
    draft = folder.with_name(f".{folder.name}.{secrets.token_hex(8)}.tmp")
    try:
        with store.viewing() as connection, translated(draft):
            draft.mkdir(parents=True)
            count, _ = store.digest_of(connection)
            columns = _columns(connection)
            schema = _schema(columns, store.dim)
            ids: list[str] = []
            shape = (count, store.dim)
            vectors = np.lib.format.open_memmap(draft / VECTORS_FILE, mode="w+", dtype=np.float32, shape=shape)
            with pq.ParquetWriter(draft / ROWS_FILE, schema) as writer:
                for rows, part in _parts(store, connection):
                    vectors[len(ids) : len(ids) + len(rows)] = part
                    ids += [identity for identity, _, _ in rows]
                    writer.write_batch(_batch(rows, part, columns, schema))
            vectors.flush()
            (draft / IDS_FILE).write_text(json.dumps(ids), encoding="utf-8")
            draft.rename(folder)
            sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return folder


def _columns(connection: sqlite3.Connection) -> dict[str, str]:
    """Return every metadata key with the kind of its values: text, integer, real, truth or json."""
    kinds = {"text": "text", "integer": "integer", "real": "real", "true": "truth", "false": "truth", "null": ""}
    found: dict[str, set[str]] = {}
    query = (
        "SELECT DISTINCT key, type, type = 'integer' AND abs(CAST(value AS REAL)) > 9007199254740992.0 "
        "FROM rows, json_each(rows.metadata)"
    )
    for key, kind, large in connection.execute(query):
        found.setdefault(key, set()).add("json" if large else kinds.get(kind, "json"))
    columns = {}
    for key in sorted(found):
        seen = found[key] - {""}
        if seen == {"integer", "real"}:
            seen = {"real"}
        columns[key] = seen.pop() if len(seen) == 1 else "json"
    return columns


def _schema(columns: dict[str, str], dim: int) -> pa.Schema:
    import pyarrow as pa

    types = {"text": pa.string(), "integer": pa.int64(), "real": pa.float64(), "truth": pa.bool_(), "json": pa.string()}
    fields = [pa.field("id", pa.string()), pa.field("hash", pa.string())]
    fields += [pa.field(_name(key), types[kind]) for key, kind in columns.items()]
    return pa.schema([*fields, pa.field("vector", pa.list_(pa.float32(), dim))])


def _name(key: str) -> str:
    """Return the column of a metadata key; those that look like one that was renamed are renamed too."""
    return f"metadata.{key}" if key in ("id", "hash", "vector") or key.startswith("metadata.") else _utf8(key)


def _utf8(text: str) -> str:
    """Return text that Parquet can hold: halves of surrogate pairs become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _parts(store: ReadableStore, connection: sqlite3.Connection) -> Iterator[tuple[list[Row], NDArray[np.float32]]]:
    """Yield rows in order of their ids with their vectors, all verified."""
    segments = {segment.key: segment for segment in store.segments(connection)}
    maps = {key: map_segment(store.root, segment, dim=store.dim, check=False) for key, segment in segments.items()}
    cursor = connection.execute(f"SELECT {ROW_COLUMNS}, row_crc FROM rows ORDER BY id")
    while found := cursor.fetchmany(ROWS_AT_ONCE):
        vectors = np.empty((len(found), store.dim), dtype=np.float32)
        rows: list[Row] = []
        for place, (*row, crc) in enumerate(found):
            identity, segment, position, content, _, metadata, vector_crc = row
            if row_crc(row) != crc or segment not in maps or not 0 <= position < len(maps[segment]):
                raise store.damaged(f"row {identity!r} does not match its checksum")
            vectors[place] = maps[segment][position]
            if zlib.crc32(vectors[place].data) != vector_crc:
                raise ArchiveCorrupt(
                    f"The vector of row {identity!r} in '{store.root}' is not what was written: run `radshot verify` "
                    "and restore a backup."
                )
            rows.append((identity, content, json.loads(metadata)))
        yield rows, vectors


def _batch(rows: list[Row], vectors: NDArray[np.float32], columns: dict[str, str], schema: pa.Schema) -> pa.RecordBatch:
    import pyarrow as pa

    arrays = [pa.array([identity for identity, _, _ in rows], pa.string())]
    arrays.append(pa.array([content for _, content, _ in rows], pa.string()))
    for key, kind in columns.items():
        values = [facts.get(key) for _, _, facts in rows]
        if kind == "json":
            values = [None if value is None else json.dumps(value) for value in values]
        elif kind == "text":
            values = [None if value is None else _utf8(value) for value in values]
        arrays.append(pa.array(values, type=schema.field(_name(key)).type))
    flat = pa.array(vectors.reshape(-1))
    arrays.append(pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)
