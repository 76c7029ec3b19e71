"""NIH ChestX-ray14 as published (Wang et al. 2017, arXiv 1705.02315), and its split into seen and unseen findings."""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .errors import EpisodeError, ManifestError, UnknownColumn, did_you_mean, listed
from .labels import label_sets
from .manifest import LINE, Manifest

CHESTXRAY14_FINDINGS = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
"""The 14 findings, spelt and ordered as published."""

CHESTXRAY14_UNSEEN = ("Edema", "Pneumonia", "Emphysema", "Fibrosis")
"""The findings Hayat, Lashen and Shamout 2021 (arXiv 2107.06563) train without."""

CHESTXRAY14_SEEN = tuple(name for name in CHESTXRAY14_FINDINGS if name not in CHESTXRAY14_UNSEEN)
"""The ten findings they train with."""

NO_FINDING = "No Finding"
"""The label of an image that shows none of them."""

TABLES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv")
"""Names of the published table, the corrected edition of 2020 first."""

TRAIN, TEST = "train_val", "test"
"""What the `split` column holds."""

LISTS = {TRAIN: "train_val_list.txt", TEST: "test_list.txt"}
"""The published lists of image names."""

Missing = Literal["error", "skip"]

_COLUMNS = {
    "image": ("Image Index",),
    "label": ("Finding Labels",),
    "patient": ("Patient ID",),
    "view": ("View Position",),
    "sex": ("Patient Gender", "Patient Sex"),
    "age": ("Patient Age",),
    "follow_up": ("Follow-up #",),
}
"""Our column -> its published names; those further right (`OriginalImage[Width,Height]`) break at their comma."""

_AGE = re.compile(r"0*(\d+)([YMD]?)", re.IGNORECASE)
_YEARS = {"M": 1 / 12, "D": 1 / 365.25}


def read_chestxray14(folder: str | os.PathLike[str], *, missing: Missing = "error") -> Manifest:
    """Read ChestX-ray14 from the folder that holds its table, its lists and its images.

    The table is `Data_Entry_2017_v2020.csv`, else `Data_Entry_2017.csv`. The images lie in `images/`, or in
    `images_001/images/` to `images_012/images/`. Where `train_val_list.txt` and `test_list.txt` are there, they give
    the column `split`; without them it is empty.

    Args:
        folder: The folder.
        missing: What to do about images the table lists and the folder lacks: refuse ("error") or leave them out
            ("skip").

    Returns:
        A manifest with one row per image, all text: `image` (path in the folder), `label` (findings as published,
        joined by `|`, or "No Finding"), `patient`, `view` (PA or AP), `sex`, `age` (years; months and days of the first
        edition as fractions; a few published ages above 120 stand as they are), `follow_up`, `split`
        ("train_val" or "test").

    Raises:
        ManifestError: No such folder or table, a damaged table, a label that is none of the 14, lists that do not
            divide the images, or missing images.
    """
    root = existing_folder(folder)
    path = next((root / name for name in TABLES if (root / name).is_file()), None)
    if path is None:
        raise ManifestError(
            f"{root} holds neither {TABLES[0]} nor {TABLES[1]}; it holds "
            f"{listed(sorted(entry.name for entry in root.iterdir())) or 'nothing'}."
        )
    table = _read_entries(path)
    names = table["image"].tolist()
    table["age"] = [_age(text, path.name, line) for text, line in zip(table["age"], table.index, strict=True)]
    for text, line in zip(table["label"], table.index, strict=True):
        for name in text.split("|"):
            if name.strip() not in ("", NO_FINDING, *CHESTXRAY14_FINDINGS):
                raise ManifestError(
                    f"Line {line} of {path.name} has the label {name!r}, which is neither {NO_FINDING!r} nor one of "
                    f"the 14 findings{did_you_mean(name, CHESTXRAY14_FINDINGS)}"
                )
    table["split"] = _splits(root, names, path.name)
    paths = _image_paths(root)
    kept = rows_found(names, paths, missing=missing, table=path.name, folder=root)
    table = table.iloc[kept].copy()
    table["image"] = [paths[names[row]] for row in kept]
    return Manifest(table, root, label="label", group="patient", source=path.name)


def generalized_split(
    manifest: Manifest,
    *,
    unseen: Iterable[str] = CHESTXRAY14_UNSEEN,
    validation: float = 0.1,
    no_finding: bool = False,
    seed: int = 0,
) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Divide a manifest for generalized zero-shot recognition: learn without some findings, be tested on all.

    The protocol of Hayat, Lashen and Shamout 2021 (arXiv 2107.06563): no image to learn or to choose from carries an
    unseen finding, test images carry any, and images without a finding are left out everywhere. Here the test part is
    the published test list and no patient is in two parts; the authors' code reads lists of its own.

    Args:
        manifest: Rows with patients and a column `split` of "train_val" and "test", as `read_chestxray14` gives.
        unseen: The findings to learn without.
        validation: Share of the patients to learn from that is set aside to choose by, between 0 and 1.
        no_finding: Keep the images labelled "No Finding", in all three parts.
        seed: Seed of the draw of validation patients.

    Returns:
        (train, validation, test): ascending row numbers. Rows without any label are in none.

    Raises:
        EpisodeError: Patients or `split` are missing or a patient is on both of its sides, `unseen` or `validation` is
            out of range, or a part would be empty.
    """
    held_out = _unseen_names(manifest, unseen)
    if not 0 < validation < 1:
        raise EpisodeError(f"validation must be a share of the patients between 0 and 1; got {validation:g}.")
    patients, sides = _patients_and_sides(manifest)
    carried = [set(names) for names in label_sets(manifest.labels)]
    kept = np.array([bool(names if no_finding else names - {NO_FINDING}) for names in carried], dtype=np.bool_)
    is_test = np.array([side == TEST for side in sides], dtype=np.bool_)
    learnable = kept & ~is_test & np.array([names.isdisjoint(held_out) for names in carried], dtype=np.bool_)
    test = np.flatnonzero(kept & is_test)
    if not test.size:
        raise EpisodeError(f"No row of {manifest.source} is left to test on: none on the test list has a finding.")
    owners = sorted({patients[row] for row in np.flatnonzero(learnable)}, key=str)
    if len(owners) < 2:
        raise EpisodeError(
            f"Training and validation need 2 patients with images free of {listed(held_out)}; {manifest.source} has "
            f"{len(owners)} on the train_val list."
        )
    n_chosen = min(max(1, round(validation * len(owners))), len(owners) - 1)
    drawn = np.random.default_rng(seed).choice(len(owners), n_chosen, replace=False)
    chosen = {owners[i] for i in drawn.tolist()}
    is_chosen = np.array([patient in chosen for patient in patients], dtype=np.bool_)
    return np.flatnonzero(learnable & ~is_chosen), np.flatnonzero(learnable & is_chosen), test


def existing_folder(folder: str | os.PathLike[str]) -> Path:
    """Return a folder's absolute path, or say in one sentence that it is none."""
    path = Path(folder)
    if not path.is_dir():
        what = "is a file" if path.is_file() else "does not exist"
        raise ManifestError(f"{path} {what}; name the folder the data set was unpacked into.")
    return path.resolve()


def rows_found(
    names: Sequence[str], paths: Mapping[str, str], *, missing: Missing, table: str, folder: Path
) -> list[int]:
    """Return the rows whose image is among `paths`; refuse or leave out the others, as `missing` says."""
    if missing not in ("error", "skip"):
        raise ManifestError(f"missing must be 'error' or 'skip'; got {missing!r}.")
    kept = [row for row, name in enumerate(names) if name in paths]
    if len(kept) < len(names) and (missing == "error" or not kept):
        absent = next(name for name in names if name not in paths)
        advice = "unpack them there" if not kept else "unpack them there, or leave them out with missing='skip'"
        raise ManifestError(
            f"{len(names) - len(kept):,} of the {len(names):,} images in {table} are not in {folder}, such as "
            f"{absent!r}; {advice}."
        )
    return kept


def _read_entries(path: Path) -> pd.DataFrame:
    """Read the columns we know by their place in the header, whatever their right-hand neighbours break into."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ManifestError(f"{path} is not UTF-8 text (byte {error.start:,}).") from None
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[list[str]] = []
    lines: list[int] = []
    places: dict[str, int] = {}
    try:
        for cells in reader:
            if not any(cells):
                continue
            if not places:
                places = _places([name.strip() for name in cells], path.name)
                continue
            if len(cells) <= max(places.values()):
                raise ManifestError(
                    f"Line {reader.line_num} of {path.name} has {len(cells)} cells, too few to hold every column."
                )
            rows.append([cells[place].strip() for place in places.values()])
            lines.append(reader.line_num)
    except csv.Error as error:
        raise ManifestError(f"{path} is not a CSV table (line {reader.line_num}): {error}.") from None
    if not rows:
        raise ManifestError(f"{path} has no rows.")
    return pd.DataFrame(rows, columns=list(places), index=pd.Index(lines, name=LINE), dtype=object)


def _places(header: list[str], table: str) -> dict[str, int]:
    found = {}
    for column, names in _COLUMNS.items():
        name = next((name for name in names if name in header), None)
        if name is None:
            raise UnknownColumn(
                f"{table} has no column {names[0]!r}; it has {listed(header)}{did_you_mean(names[0], header)}"
            )
        found[column] = header.index(name)
    return found


def _age(text: str, table: str, line: int) -> str:
    """Return an age in years: `58` and `058Y` as 58, `006M` as 0.5."""
    if not text:
        return ""
    match = _AGE.fullmatch(text)
    if match is None:
        raise ManifestError(f"Line {line} of {table} has the age {text!r}; ages look like 58, 058Y, 011M or 013D.")
    number, unit = int(match[1]), match[2].upper()
    return f"{number * _YEARS[unit]:.2f}" if unit in _YEARS else str(number)


def _splits(root: Path, names: list[str], table: str) -> list[str]:
    """Return the side of each image, or empty texts where the lists are not there."""
    there = {side: root / name for side, name in LISTS.items() if (root / name).is_file()}
    if not there:
        return [""] * len(names)
    if len(there) == 1:
        has, lacks = (LISTS[TRAIN], LISTS[TEST]) if TRAIN in there else (LISTS[TEST], LISTS[TRAIN])
        raise ManifestError(f"{root} holds {has} without {lacks}; put both there, or neither.")
    sides: dict[str, str] = {}
    for side, path in there.items():
        for line in path.read_text("utf-8-sig", errors="replace").splitlines():
            name = line.strip()
            if name and sides.setdefault(name, side) != side:
                raise ManifestError(f"{name!r} is on both {LISTS[TRAIN]} and {LISTS[TEST]}; an image has one side.")
    lost = [name for name in names if name not in sides]
    if lost:
        raise ManifestError(
            f"{len(lost):,} of the {len(names):,} images in {table} are on neither {LISTS[TRAIN]} nor {LISTS[TEST]}, "
            f"such as {lost[0]!r}."
        )
    return [sides[name] for name in names]


def _image_paths(root: Path) -> dict[str, str]:
    """Return file name -> path in the folder, of all files in `images*/` and `images*/images/`."""
    found: dict[str, str] = {}
    for top in sorted(entry for entry in root.iterdir() if entry.name.startswith("images") and entry.is_dir()):
        for folder in (top, top / "images"):
            if folder.is_dir():
                inside = folder.relative_to(root).as_posix()
                with os.scandir(folder) as entries:
                    for entry in entries:
                        if entry.is_file():
                            found.setdefault(entry.name, f"{inside}/{entry.name}")
    return found


def _unseen_names(manifest: Manifest, unseen: Iterable[str]) -> tuple[str, ...]:
    names = (unseen,) if isinstance(unseen, str) else tuple(dict.fromkeys(unseen))
    known = [name for name in dict.fromkeys((*CHESTXRAY14_FINDINGS, *manifest.classes)) if name != NO_FINDING]
    if not names:
        raise EpisodeError("unseen must name at least one finding to learn without; got none.")
    for name in names:
        if name not in known:
            raise EpisodeError(f"unseen names {name!r}, which is no finding here{did_you_mean(str(name), known)}")
    return names


def _patients_and_sides(manifest: Manifest) -> tuple[list[str], list[str]]:
    """Return each row's patient and side, after a check that no patient is on both sides."""
    if manifest.groups is None or manifest.label_column is None:
        lacks = "labels" if manifest.label_column is None else "patients"
        raise EpisodeError(f"{manifest.source} was read without {lacks}, which the split needs; name their column.")
    if "split" not in manifest.table.columns:
        raise EpisodeError(f"{manifest.source} has no column 'split'; it has {listed(manifest.table.columns)}.")
    sides: list[str] = manifest.table["split"].tolist()
    side_of: dict[Hashable, str] = {}
    for row, (patient, side) in enumerate(zip(manifest.groups, sides, strict=True)):
        if side not in (TRAIN, TEST):
            raise EpisodeError(
                f"The 'split' of row {row} (counted from 0) of {manifest.source} is {side!r}, not {TRAIN!r} or "
                f"{TEST!r}; put {LISTS[TRAIN]} and {LISTS[TEST]} beside the table."
            )
        if side_of.setdefault(patient, side) != side:
            raise EpisodeError(
                f"Patient {patient} has images on both the train_val and the test side; give each one side."
            )
    return manifest.groups, sides
