"""PrecomputedEncoder: vectors made elsewhere serve as an encoder that looks up instead of computing."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .encoders import BaseEncoder, check_statistics, fingerprint_of
from .errors import EncoderError, ImageError
from .images import ImageSource, image_identity
from .source_statistics import SourceStatistics

# Columns of a table of vectors that may name the image; the first one present is taken, the others must be numbers.
ID_COLUMNS = ("id", "image", "path")


@dataclass(frozen=True)
class _RowLookup:
    """Finds the vector of an image by its id, its path, the end of its path, or its SOPInstanceUID."""

    rows: dict[str, int]
    vectors: NDArray[np.float32] = field(repr=False)

    def __call__(self, source: ImageSource) -> NDArray[np.float32]:
        if not isinstance(source, str | os.PathLike):
            raise ImageError("array", "vectors made elsewhere are looked up by id or path; an array has neither")
        text = os.fspath(source)
        row = self.rows.get(text)
        if row is None:  # "scans/a/b.png" is found under "scans/a/b.png", "a/b.png" or "b.png", the longest first
            parts = PurePath(text).parts
            tails = (PurePath(*parts[start:]).as_posix() for start in range(len(parts)))
            row = next((self.rows[tail] for tail in tails if tail in self.rows), None)
        if row is None and Path(text).is_file():
            row = self.rows.get(image_identity(text).sop_instance_uid or "")
        if row is None:
            raise ImageError(text, f"none of the {len(self.rows)} vectors made elsewhere has this id or path")
        vector: NDArray[np.float32] = self.vectors[row]
        return vector


class PrecomputedEncoder(BaseEncoder):
    """Vectors made elsewhere, looked up by the image's id or path instead of computed.

    Args:
        ids: One id or path per row, all different.
        vectors: Shape (n, d), finite.
        name: For people.
        source_mean: Mean vector of the source domain, shape (d,), or None.
        source_statistics: Mean and spread of the source domain's classes, or None.

    Raises:
        EncoderError: Ids and vectors that do not fit together.

    Example:
        >>> PrecomputedEncoder(["a.png", "b.png"], [[1.0, 0.0], [0.0, 1.0]]).encode(["scans/b.png"]).tolist()
        [[0.0, 1.0]]
    """

    decodes = False

    def __init__(
        self,
        ids: Sequence[str],
        vectors: NDArray[np.floating] | Sequence[Sequence[float]],
        *,
        name: str = "precomputed",
        source_mean: NDArray[np.float32] | None = None,
        source_statistics: SourceStatistics | None = None,
    ) -> None:
        """Check that ids and vectors fit together."""
        table = np.array(vectors, dtype=np.float32)
        if table.ndim != 2 or 0 in table.shape:
            raise EncoderError(f"Vectors must have shape (n, d) with at least one row; got {table.shape}.")
        if len(ids) != len(table):
            raise EncoderError(f"There are {len(ids)} ids for {len(table)} vectors; each row needs one id.")
        bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
        if len(bad):
            raise EncoderError(f"The vector of {str(ids[bad[0]])!r} (row {bad[0]}) holds NaN or infinite values.")
        rows: dict[str, int] = {}
        for row, key in enumerate(str(key) for key in ids):
            if key in rows:
                raise EncoderError(f"The id {key!r} has two vectors (rows {rows[key]} and {row}); ids must differ.")
            rows[key] = row
        table.setflags(write=False)
        self.loader = _RowLookup(rows, table)
        self.name = name
        self.dim = int(table.shape[1])
        self.source_mean = None if source_mean is None else np.asarray(source_mean, dtype=np.float32)
        self.source_statistics = check_statistics(source_statistics, self.dim)
        order = sorted(rows)
        self.fingerprint = fingerprint_of(
            {"kind": "precomputed", "ids": order}, {"vectors": table[[rows[key] for key in order]]}
        )

    def encode_loaded(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Stack n looked-up rows to (n, dim)."""
        return np.asarray(batch, dtype=np.float32).reshape(len(batch), self.dim)


def load_vectors(source: str | os.PathLike[str] | Mapping[str, Any]) -> PrecomputedEncoder:
    """Make a `PrecomputedEncoder` of a file or a mapping.

    Args:
        source: A mapping from id to vector; an .npz file with arrays `ids` and `vectors`; a CSV or Parquet table with
            a column `id` (or `image`, or `path`) and one column per dimension.

    Raises:
        EncoderError: Not such a file, or ids and vectors that do not fit together.
    """
    if isinstance(source, Mapping):
        return PrecomputedEncoder(list(source), np.array(list(source.values()), dtype=np.float32))
    path = Path(source)
    if not path.is_file():
        raise EncoderError(f"There is no file of vectors {str(path)!r}.")
    try:
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                ids, vectors = [str(key) for key in arrays["ids"]], np.asarray(arrays["vectors"], dtype=np.float32)
        elif path.suffix in (".csv", ".parquet"):
            ids, vectors = _read_table(path)
        else:
            raise EncoderError(f"Vectors are read from .npz, .csv and .parquet files; got {str(path)!r}.")
    except EncoderError:
        raise
    except Exception as error:  # zip, NumPy, CSV and Parquet errors have no common base
        raise EncoderError(f"{str(path)!r} is no file of ids and vectors ({error}).") from error
    return PrecomputedEncoder(ids, vectors, name=f"vectors:{path.name}")


def _read_table(path: Path) -> tuple[list[str], NDArray[np.float32]]:
    import pandas as pd

    table = pd.read_csv(path, dtype=dict.fromkeys(ID_COLUMNS, str)) if path.suffix == ".csv" else pd.read_parquet(path)
    key = next((column for column in ID_COLUMNS if column in table.columns), None)
    if key is None:
        raise EncoderError(f"{str(path)!r} has no column {', '.join(ID_COLUMNS)} to tell whose vector a row is.")
    return [str(value) for value in table[key]], table.drop(columns=[key]).to_numpy(dtype=np.float32)
