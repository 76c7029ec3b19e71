"""Where images come from: folders, tables of paths, lists; each becomes `Record`s, and no pixel is read here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from .errors import SourceError, UnknownColumn
from .metadata import is_missing, patient_text

if TYPE_CHECKING:
    import pandas as pd

TABLE_SUFFIXES = frozenset({".csv", ".parquet", ".pq"})
"""Files that are read as a table of paths when given as a source."""

IGNORED_SUFFIXES = TABLE_SUFFIXES | frozenset(
    {
        ".tsv",
        ".txt",
        ".json",
        ".jsonl",
        ".md",
        ".rst",
        ".xml",
        ".html",
        ".htm",
        ".yaml",
        ".yml",
        ".toml",
        ".log",
        ".pdf",
    }
    | {".npz", ".safetensors", ".py", ".ipynb", ".sh", ".zip", ".tar", ".xlsx", ".xls", ".doc", ".docx"}
)
"""Files a folder source passes over in silence: text, tables, programs, packed files. Everything else is opened, since
DICOM files often have no extension or a wrong one; what is then no image is refused."""

IGNORED_NAMES = frozenset({"dicomdir", "thumbs.db", "desktop.ini"})
"""Files passed over by name, in any case: indexes of folders, not images."""


@dataclass(frozen=True, slots=True)
class Record:
    """One image to embed.

    Attributes:
        path: The file.
        id: The row's id where the file carries no SOPInstanceUID; that one wins where it does.
        metadata: What is known about it; `patient` is its patient.
        root: The folder it must lie in once links are resolved, or None for anywhere.
        refused: Why it is not to be read at all, one sentence without the path; None where it is.
    """

    path: Path
    id: str
    metadata: Mapping[str, Any] = field(default_factory=dict)
    root: Path | None = None
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Repeat:
    """A further mention of a file that is listed already.

    Attributes:
        path: The file, absolute, as text.
        id: The id it is listed under here.
        reason: Why this mention is refused, or None where it only says again what was said before.
    """

    path: str
    id: str
    reason: str | None


@dataclass(frozen=True, slots=True)
class Listing:
    """What a job is to look at: every file once, and the further mentions of some of them."""

    records: Sequence[Record]
    repeats: tuple[Repeat, ...]


def printable(path: str | os.PathLike[str]) -> str:
    r"""Return a path as text that UTF-8 can hold; bytes of a file name that are no UTF-8 become `\xNN`."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


class FolderRecords(Sequence[Record]):
    """The records of a folder, made when they are asked for: of a million files only the names stay in memory."""

    __slots__ = ("_metadata", "_names", "_top")

    def __init__(self, top: Path, names: list[str]) -> None:
        """Take a folder and the names of its files, relative to it and sorted."""
        self._top = top
        self._names = names
        self._metadata = {"source": printable(top.absolute())}

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self._names)

    @overload
    def __getitem__(self, place: int) -> Record: ...

    @overload
    def __getitem__(self, place: slice) -> FolderRecords: ...

    def __getitem__(self, place: int | slice) -> Record | FolderRecords:
        """Return one record, or some of them."""
        if isinstance(place, slice):
            return FolderRecords(self._top, self._names[place])
        name = self._names[place]
        return Record(path=self._top / name, id=printable(name), metadata=self._metadata, root=self._top)


def records_from_folder(path: str | os.PathLike[str], *, without: Path | None = None) -> Sequence[Record]:
    """List every file below a folder that may be an image, sorted by path; a single file is a list of one.

    Hidden files and folders, and `IGNORED_SUFFIXES`, are passed over. Folders that are links are not followed; the id
    is the path relative to the folder, with forward slashes.

    Args:
        path: A folder, or one file.
        without: A folder inside it to leave out (an archive, say).

    Raises:
        SourceError: There is nothing at that path, or a folder cannot be listed.
    """
    top = Path(path)
    if not top.exists():
        raise SourceError(f"There is no folder or file at '{printable(path)}'.")
    if not top.is_dir():
        return [Record(path=top, id=printable(top.name), metadata={"source": printable(top.absolute().parent)})]
    left_out = None if without is None else without.resolve()
    return FolderRecords(top, list(_files(top, "", left_out)))


def _files(folder: Path, name: str, left_out: Path | None) -> Iterator[str]:
    """Yield the names below a folder, each behind the folder's own name."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise SourceError(f"The folder '{printable(folder)}' cannot be listed: {error.strerror}.") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir(follow_symlinks=False):
            path = folder / entry.name
            if left_out is None or path.resolve() != left_out:
                yield from _files(path, f"{name}{entry.name}/", left_out)
        elif entry.is_dir():
            continue
        elif _suffix(entry.name) not in IGNORED_SUFFIXES and entry.name.lower() not in IGNORED_NAMES:
            yield f"{name}{entry.name}"


def _suffix(name: str) -> str:
    return os.path.splitext(name)[1].lower()  # noqa: PTH122 (a Path per file costs more than the listing)


def records_from_table(
    table: pd.DataFrame | str | os.PathLike[str],
    *,
    image_column: str = "image",
    group: str | None = None,
    root: str | os.PathLike[str] | None = None,
) -> list[Record]:
    """List the images a table names, in its order; every other column becomes metadata, empty cells are left out.

    Args:
        table: A CSV (read as text, so that "007" stays) or Parquet file with a header, or a DataFrame.
        image_column: The column of paths, relative to the file (to `root` for a DataFrame).
        group: The column that names the patient; it becomes `metadata["patient"]`.
        root: Where relative paths start; by default the table's folder, or the working folder for a DataFrame.

    Raises:
        SourceError: The table cannot be read, lacks a column, or has an empty path (the row is named).
    """
    import pandas as pd

    if isinstance(table, pd.DataFrame):
        name, frame, base = "The table", table, Path(root or ".")
    else:
        file = Path(table)
        name, frame, base = f"'{printable(file)}'", _read_table(file), Path(root) if root is not None else file.parent
    for column in [image_column, *([group] if group is not None else [])]:
        if column not in frame.columns:
            near = get_close_matches(column, [str(other) for other in frame.columns], n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UnknownColumn(f"{name} has no column {column!r}; it has {', '.join(map(str, frame.columns))}.{hint}")
    records = []
    for number, row in enumerate(frame.to_dict(orient="records"), start=1):
        facts = {str(key): _cell(value) for key, value in row.items() if not (is_missing(value) or _is_blank(value))}
        image = str(facts.pop(image_column, "")).strip()
        if not image:
            raise SourceError(f"{name} has no path in column {image_column!r} of row {number}.")
        owner = patient_text(facts.get(group)) if group is not None else None
        owner = owner or patient_text(facts.get("patient"))
        facts.pop("patient", None)
        if owner is not None:
            facts["patient"] = owner
        records.append(Record(path=base / image, id=printable(Path(image).as_posix()), metadata=facts))
    return records


def _read_table(path: Path) -> pd.DataFrame:
    import pandas as pd

    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return pd.read_parquet(path)
        return pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except FileNotFoundError:
        raise SourceError(f"There is no table at '{printable(path)}'.") from None
    except (OSError, ValueError) as error:  # pandas and pyarrow derive their own errors from these two
        reason = " ".join(str(error).split()).rstrip(".")
        raise SourceError(f"'{printable(path)}' cannot be read as a table: {reason}.") from error


def _is_blank(value: Any) -> bool:
    return isinstance(value, str) and value == ""


def _cell(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    return value.isoformat() if hasattr(value, "isoformat") else value


def gather(
    source: str | os.PathLike[str] | Sequence[str | os.PathLike[str] | Record] | None,
    *,
    manifest: pd.DataFrame | str | os.PathLike[str] | Sequence[Record] | None,
    image_column: str,
    group: str | None,
    without: Path,
) -> Listing:
    """List the records of several sources in the order given; a file reached twice is embedded once.

    A patient that only a later mention of the file names is taken over; one that contradicts the first is not. A
    manifest beside sources adds its columns to those of their images that it names; without sources its images are the
    source. A source that is itself a CSV or Parquet file is read as a table, one called DICOMDIR as the index of a
    file-set.

    Raises:
        SourceError: A source or the manifest cannot be read, or there is neither.
    """
    named: Sequence[Record] = ()
    if isinstance(manifest, Sequence) and not isinstance(manifest, str):
        named = manifest
    elif manifest is not None:
        named = records_from_table(manifest, image_column=image_column, group=group)
    if source is None:
        if manifest is None:
            raise SourceError("Give a folder, a table or a list of records to embed.")
        return _listing([named])
    given = [source] if isinstance(source, str | os.PathLike) else source
    parts: list[Sequence[Record]] = [
        [part] if isinstance(part, Record) else _records_of(part, image_column, group, without) for part in given
    ]
    if named:
        known = {os.path.realpath(record.path): record.metadata for record in named}
        parts = [[_with_facts(record, known) for record in part] for part in parts]
    return _listing(parts)


def _records_of(part: str | os.PathLike[str], image_column: str, group: str | None, without: Path) -> Sequence[Record]:
    path = Path(part)
    if path.suffix.lower() in TABLE_SUFFIXES and not path.is_dir():
        return records_from_table(part, image_column=image_column, group=group)
    if path.name.lower() == "dicomdir" and path.is_file():
        from .dicomdir import records_from_dicomdir

        return records_from_dicomdir(path)
    return records_from_folder(part, without=without)


def _with_facts(record: Record, known: Mapping[str, Mapping[str, Any]]) -> Record:
    facts = known.get(os.path.realpath(record.path))
    return record if facts is None else replace(record, metadata={**record.metadata, **facts})


def _listing(parts: Sequence[Sequence[Record]]) -> Listing:
    """Bring parts into one list that names every file once."""
    if len(parts) == 1 and isinstance(parts[0], FolderRecords):
        return Listing(parts[0], ())  # a folder names every file once
    once: dict[str, Record] = {}
    repeats = []
    for record in chain.from_iterable(parts):
        place = os.path.abspath(record.path)  # noqa: PTH100 (keeps links, unlike resolve)
        if place not in once:
            once[place] = record
            continue
        first = once[place]
        owner, other = (patient_text(one.metadata.get("patient")) for one in (first, record))
        reason = None
        if owner is None and other is not None:
            once[place] = replace(first, metadata={**first.metadata, "patient": other})
        elif other not in (None, owner):
            reason = f"is listed before for patient {owner!r} and here for {other!r}: the first was kept"
        repeats.append(Repeat(printable(place), record.id, reason))
    return Listing(tuple(once.values()), tuple(repeats))
