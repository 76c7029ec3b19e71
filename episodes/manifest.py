"""A table of images: which file, which label or labels, which patient, and any other column a user may filter by."""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .errors import ManifestError, UnknownColumn, did_you_mean, listed
from .where import rows_where

SEPARATOR = "|"
"""Joins the labels of an image that has several."""

LINE = "line in the file"
"""Name of the table's index for CSV files: where a row stands, the header being line 1."""

ROW = "row in the file"
"""Name of the table's index for Parquet files: where a row stands, counted from 1."""


class Manifest:
    """A table of images, read from CSV or Parquet.

    Args:
        table: The rows; every column that plays a part holds text.
        folder: What image paths are relative to.
        label: Name of the label column, or None for images without labels.
        group: Name of the patient column, or None where patients are unknown.
        image: Name of the column of image paths.
        allow_unlabelled: Give a row without a label no label instead of refusing it.
        source: What to call the table in messages.

    Attributes:
        table: All columns, one row per image, text as it stood in the file; its index says where each row stood.
        images: Absolute paths. Whether they exist is found out by whoever opens them.
        labels: One text per image, or, where any image of the file has several, one tuple per image. An image
            without label has () among tuples and None among texts.
        groups: The patient of each image as text ("007" stays "007"), or None where no column was named.
        multilabel: Whether labels are tuples.
        duplicates: Pairs of rows (from 0) that name the same file.

    Raises:
        ManifestError: A named column is missing, or a row lacks its image, label or patient.
    """

    def __init__(
        self,
        table: pd.DataFrame,
        folder: str | os.PathLike[str],
        *,
        label: str | None = "label",
        group: str | None = None,
        image: str = "image",
        allow_unlabelled: bool = False,
        source: str = "The table",
    ) -> None:
        """Check every row."""
        self.table, self.folder, self.source = table, Path(folder), source
        self.label_column, self.group_column, self.image_column = label, group, image
        self.allow_unlabelled = allow_unlabelled
        for column in (image, label, group):
            if column is not None and column not in table.columns:
                raise UnknownColumn(
                    f"{source} has no column {column!r}; it has {listed(table.columns)}"
                    f"{did_you_mean(column, [str(name) for name in table.columns])}"
                )
        names = self._filled(image, "image")
        self.images = [self.folder / name for name in names]
        self.groups = None if group is None else self._filled(group, "patient")
        self.multilabel = False
        self.labels: list[Any] = [] if label is None else self._read_labels(label)
        first: dict[str, int] = {}
        rows = [(first.setdefault(os.path.normpath(name), row), row) for row, name in enumerate(names)]
        self.duplicates = tuple((earlier, row) for earlier, row in rows if earlier != row)

    @classmethod
    def read(
        cls,
        path: str | os.PathLike[str],
        *,
        label: str | None = "label",
        group: str | None = None,
        image: str = "image",
        where: str | None = None,
        allow_unlabelled: bool = False,
    ) -> Manifest:
        """Read a CSV (comma, semicolon or tab) or Parquet file with a header.

        Args:
            path: The table. Image paths in it are relative to its folder.
            label: Name of the label column; several labels of an image are joined by `|`.
            group: Name of the patient column. Nothing is guessed: without it patients are unknown.
            image: Name of the column of image paths.
            where: Keep only rows that meet this expression (see `rows_where`), before labels are checked.
            allow_unlabelled: Accept rows without a label.

        Returns:
            The manifest.

        Raises:
            ManifestError: The file is missing, empty, no table, or fails the checks of `Manifest`.
        """
        path = Path(path)
        table = _read_table(path)
        if where is not None:
            table = table[rows_where(table, where)]
            if table.empty:
                raise ManifestError(f"No row of {path.name} meets {where!r}.")
        return cls(
            table,
            path.resolve().parent,
            label=label,
            group=group,
            image=image,
            allow_unlabelled=allow_unlabelled,
            source=path.name,
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.images)

    def __repr__(self) -> str:
        """Describe the manifest in one line."""
        patients = "patients unknown" if self.groups is None else f"{len(set(self.groups)):,} patients"
        return f"Manifest({self.source}: {len(self):,} images, {len(self.classes):,} classes, {patients})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Every label, sorted."""
        if self.multilabel:
            return tuple(sorted({name for names in self.labels for name in names}))
        return tuple(sorted({name for name in self.labels if name is not None}))

    @property
    def data_hash(self) -> str:
        """SHA-256 (hex) over the table's header and cells in order; the image files themselves are not read."""
        digest = hashlib.sha256(json.dumps([str(name) for name in self.table.columns]).encode())
        for row in self.table.itertuples(index=False, name=None):
            digest.update(json.dumps([_cell(value) for value in row]).encode())
        return digest.hexdigest()

    def where(self, expression: str) -> Manifest:
        """Return the rows that meet an expression over the columns (see `rows_where`).

        Raises:
            ManifestError: The expression is refused, or no row meets it.
        """
        mask = rows_where(self.table, expression)
        if not mask.any():
            raise ManifestError(f"No row of {self.source} meets {expression!r}.")
        return self.take(mask)

    def take(self, rows: Sequence[int] | NDArray[Any]) -> Manifest:
        """Return the rows named by indices from 0, in the order given, or by a mask of booleans."""
        kept = np.asarray(rows)
        kept = np.flatnonzero(kept) if kept.dtype == np.bool_ else kept.astype(np.intp)
        taken = Manifest(
            self.table.iloc[kept],
            self.folder,
            label=self.label_column,
            group=self.group_column,
            image=self.image_column,
            allow_unlabelled=self.allow_unlabelled,
            source=self.source,
        )
        if self.multilabel and not taken.multilabel:
            taken.multilabel = True
            taken.labels = [() if name is None else (name,) for name in taken.labels]
        return taken

    def _filled(self, column: str, what: str) -> list[str]:
        """Return a column as text, refusing an empty cell by row and line."""
        cells = [_cell(value) for value in self.table[column].tolist()]
        for row, cell in enumerate(cells):
            if not cell.strip():
                raise ManifestError(
                    f"{self._where_is(row)} has no {what}: its {column!r} is empty; fill it or filter the row out."
                )
        return cells if what == "image" else [cell.strip() for cell in cells]

    def _read_labels(self, column: str) -> list[Any]:
        """Return the labels, as tuples where any row has several."""
        found: list[tuple[str, ...]] = []
        for row, value in enumerate(self.table[column].tolist()):
            given = value if isinstance(value, (list, tuple, np.ndarray)) else _cell(value).split(SEPARATOR)
            self.multilabel = self.multilabel or len(given) > 1
            names = tuple(dict.fromkeys(name for part in given if (name := str(part).strip())))
            if not names and not self.allow_unlabelled:
                raise ManifestError(
                    f"{self._where_is(row)} has no label: its {column!r} is empty; fill it, filter the row out or "
                    f"allow unlabelled rows."
                )
            found.append(names)
        if self.multilabel:
            return found
        return [names[0] if names else None for names in found]

    def _where_is(self, row: int) -> str:
        """Name a row by what a user sees in an editor."""
        if self.table.index.name not in (LINE, ROW):
            return f"Row {row + 1} of {self.source}"
        place = int(self.table.index[row])
        if self.table.index.name == ROW:
            return f"Row {place} of {self.source}"
        return f"Row {row + 1} of {self.source} (line {place})"


def _read_table(path: Path) -> pd.DataFrame:
    """Read CSV or Parquet by content, every CSV cell as text."""
    if path.is_dir():
        raise ManifestError(f"{path} is a folder; a manifest is a CSV or Parquet file with a header.")
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        near = did_you_mean(path.name, [other.name for other in path.parent.glob("*") if other.is_file()])
        raise ManifestError(f"There is no manifest {path}{near}") from None
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}.") from None
    if not content.strip():
        raise ManifestError(f"{path} is empty; a manifest is a CSV or Parquet file with a header.")
    if content.startswith(b"PAR1"):
        return _read_parquet(path)
    return _read_csv(path, content)


def _read_parquet(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except Exception as error:  # pyarrow raises its own family, OSError and ValueError for damaged files
        reason = str(error).splitlines()[0].rstrip(".") if str(error) else type(error).__name__
        raise ManifestError(f"{path} is not a readable Parquet file: {reason}.") from None
    if table.empty:
        raise ManifestError(f"{path} has a header but no rows.")
    table.columns = pd.Index([str(name) for name in table.columns])
    table.index = pd.RangeIndex(1, len(table) + 1, name=ROW)
    return table


def _read_csv(path: Path, content: bytes) -> pd.DataFrame:
    if b"\x00" in content:
        raise ManifestError(f"{path} is not a table of text; a manifest is a CSV or Parquet file with a header.")
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"{path} is not UTF-8 text (line {line}); save it as UTF-8.") from None
    lines = text.splitlines(keepends=True)
    head = next(line for line in lines if line.strip())
    delimiter = max(",;\t", key=head.count)
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    rows: list[list[str]] = []
    places: list[int] = []
    header: list[str] = []
    begin = 1
    try:
        for cells in reader:
            begin, place = reader.line_num + 1, begin
            if not any(cells):
                continue
            if not header:
                header = [name.strip() for name in cells]
                continue
            if len(cells) != len(header):
                raise ManifestError(
                    f"Row {len(rows) + 1} of {path.name} (line {place}) has {len(cells)} cells where the header has "
                    f"{len(header)} columns; quote a cell that holds {delimiter!r}."
                )
            rows.append(cells)
            places.append(place)
    except csv.Error as error:
        raise ManifestError(f"{path} is not a CSV table (line {reader.line_num}): {error}.") from None
    for column, name in enumerate(header):
        if not name or name in header[:column]:
            problem = "has no name" if not name else f"repeats the name {name!r}"
            raise ManifestError(f"Column {column + 1} of {path.name} {problem}; each column needs a name of its own.")
    if not rows:
        raise ManifestError(f"{path} has a header but no rows.")
    return pd.DataFrame(rows, columns=header, index=pd.Index(places, name=LINE), dtype=object)


def _cell(value: Any) -> str:
    """Return a cell as text: empty for a missing one, and no `.0` behind a whole number."""
    if value is None or value is pd.NA or value is pd.NaT or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)
