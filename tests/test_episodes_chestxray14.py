"""ChestX-ray14 in its published layouts, written small, and the split into seen and unseen findings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from episodes import (
    CHESTXRAY14_FINDINGS,
    CHESTXRAY14_SEEN,
    CHESTXRAY14_UNSEEN,
    EpisodeError,
    Manifest,
    ManifestError,
    UnknownColumn,
    generalized_split,
    read_chestxray14,
)

HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y]"
)
ROWS = [
    ("00000001_000.png", "Cardiomegaly", "0", "1", "058Y", "M", "PA"),
    ("00000001_001.png", "Cardiomegaly|Emphysema", "1", "1", "58", "M", "PA"),
    ("00000002_000.png", "No Finding", "0", "2", "006M", "F", "AP"),
    ("00000003_000.png", "Pleural_Thickening|Hernia", "0", "3", "013D", "F", "PA"),
    ("00000004_000.png", "Edema", "0", "4", "414", "M", "AP"),
]
TESTED = ("00000003_000.png", "00000004_000.png")


def write_set(
    root: Path,
    rows: list[tuple[str, ...]] = ROWS,
    *,
    table: str = "Data_Entry_2017.csv",
    header: str = HEADER + ",",
    tail: str = ",2682,2749,0.143,0.143,",
    lists: dict[str, tuple[str, ...]] | None = None,
    place: Callable[[int], str] = lambda row: "images",
) -> Path:
    (root / table).write_text("\n".join([header, *(",".join(row) + tail for row in rows)]) + "\n")
    for row, (name, *_) in enumerate(rows):
        folder = root / place(row)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"a picture")
    if lists is None:
        names = [row[0] for row in rows]
        lists = {
            "train_val_list.txt": tuple(name for name in names if name not in TESTED),
            "test_list.txt": tuple(name for name in names if name in TESTED),
        }
    for name, entries in lists.items():
        (root / name).write_text("\n".join(entries))
    return root


def test_findings_are_ten_seen_and_four_unseen() -> None:
    assert len(CHESTXRAY14_FINDINGS) == 14 and len(CHESTXRAY14_SEEN) == 10
    assert set(CHESTXRAY14_UNSEEN) == {"Edema", "Pneumonia", "Emphysema", "Fibrosis"}
    assert set(CHESTXRAY14_SEEN) | set(CHESTXRAY14_UNSEEN) == set(CHESTXRAY14_FINDINGS)


def test_reads_the_published_table(tmp_path: Path) -> None:
    manifest = read_chestxray14(write_set(tmp_path))
    assert list(manifest.table.columns) == ["image", "label", "patient", "view", "sex", "age", "follow_up", "split"]
    assert manifest.images[0] == tmp_path.resolve() / "images" / "00000001_000.png"
    assert all(path.is_file() for path in manifest.images)
    assert manifest.labels == [
        ("Cardiomegaly",),
        ("Cardiomegaly", "Emphysema"),
        ("No Finding",),
        ("Pleural_Thickening", "Hernia"),
        ("Edema",),
    ]
    assert manifest.groups == ["1", "1", "2", "3", "4"]
    assert manifest.table["age"].tolist() == ["58", "58", "0.50", "0.04", "414"]
    assert manifest.table["sex"].tolist() == ["M", "M", "F", "F", "M"]
    assert manifest.table["view"].tolist() == ["PA", "PA", "AP", "PA", "AP"]
    assert manifest.table["follow_up"].tolist() == ["0", "1", "0", "0", "0"]
    assert manifest.table["split"].tolist() == ["train_val", "train_val", "train_val", "test", "test"]
    assert len(manifest.where("split = 'train_val' AND age > 1")) == 2


@pytest.mark.parametrize(
    ("header", "tail"),
    [
        (HEADER, ",2682,2749,0.143,0.143"),  # no comma at the end
        (HEADER.replace("OriginalImage[Width,Height]", '"OriginalImage[Width,Height]"'), ",2682,2749,0.1,0.1"),
        (HEADER.replace("Patient Gender", "Patient Sex"), ",2682,2749,0.143,0.143"),
        ("\ufeff" + HEADER, ",2682,2749,0.143,0.143"),
    ],
)
def test_every_edition_reads_the_same(tmp_path: Path, header: str, tail: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = read_chestxray14(write_set(tmp_path / "a"))
    name = "Data_Entry_2017_v2020.csv"
    other = read_chestxray14(write_set(tmp_path / "b", table=name, header=header, tail=tail))
    assert other.source == name and other.data_hash == plain.data_hash


def test_the_corrected_edition_comes_first(tmp_path: Path) -> None:
    write_set(tmp_path)
    write_set(tmp_path, table="Data_Entry_2017_v2020.csv")
    assert read_chestxray14(tmp_path).source == "Data_Entry_2017_v2020.csv"


@pytest.mark.parametrize("pattern", ["images_{:03}/images", "images_{:03}"])
def test_images_in_twelve_folders(tmp_path: Path, pattern: str) -> None:
    manifest = read_chestxray14(write_set(tmp_path, place=lambda row: pattern.format(row + 1)))
    expected = [f"{pattern.format(row + 1)}/{name}" for row, (name, *_) in enumerate(ROWS)]
    assert manifest.table["image"].tolist() == expected
    assert all(path.is_file() for path in manifest.images)


def test_missing_images(tmp_path: Path) -> None:
    write_set(tmp_path)
    (tmp_path / "images" / "00000001_001.png").unlink()
    (tmp_path / "images" / "00000003_000.png").unlink()
    with pytest.raises(
        ManifestError,
        match=r"2 of the 5 images in Data_Entry_2017\.csv are not in .*, such as '00000001_001\.png'; unpack them "
        r"there, or leave them out with missing='skip'\.",
    ):
        read_chestxray14(tmp_path)
    manifest = read_chestxray14(tmp_path, missing="skip")
    assert [path.name for path in manifest.images] == ["00000001_000.png", "00000002_000.png", "00000004_000.png"]
    assert manifest.table["split"].tolist() == ["train_val", "train_val", "test"]
    for path in (tmp_path / "images").iterdir():
        path.unlink()
    with pytest.raises(ManifestError, match=r"5 of the 5 images .* '00000001_000\.png'; unpack them there\."):
        read_chestxray14(tmp_path, missing="skip")
    with pytest.raises(ManifestError, match="missing must be 'error' or 'skip'; got 'drop'"):
        read_chestxray14(tmp_path, missing="drop")  # type: ignore[arg-type]


def test_without_lists_the_split_is_empty(tmp_path: Path) -> None:
    manifest = read_chestxray14(write_set(tmp_path, lists={}))
    assert manifest.table["split"].tolist() == [""] * 5
    with pytest.raises(
        EpisodeError, match=r"The 'split' of row 0 .* is '', not 'train_val' or 'test'; put train_val_list"
    ):
        generalized_split(manifest)


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        ({"test_list.txt": TESTED}, r"holds test_list\.txt without train_val_list\.txt; put both there, or neither"),
        ({"train_val_list.txt": TESTED}, r"holds train_val_list\.txt without test_list\.txt"),
        (
            {"test_list.txt": TESTED, "train_val_list.txt": TESTED[:1]},
            r"'00000003_000\.png' is on both train_val_list\.txt and test_list\.txt",
        ),
        (
            {"test_list.txt": TESTED, "train_val_list.txt": ("00000001_000.png",)},
            r"2 of the 5 images in Data_Entry_2017\.csv are on neither .* such as '00000001_001\.png'",
        ),
    ],
)
def test_lists_that_do_not_divide_the_images(tmp_path: Path, lists: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(ManifestError, match=message):
        read_chestxray14(write_set(tmp_path, lists=lists))


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("", ManifestError, r"Data_Entry_2017\.csv has no rows"),
        (HEADER, ManifestError, r"Data_Entry_2017\.csv has no rows"),
        (b"Image Index,caf\xe9\n", ManifestError, r"is not UTF-8 text \(byte 15\)"),
        (
            HEADER.replace("Patient ID", "PatientID") + "\n",
            UnknownColumn,
            r"has no column 'Patient ID'; it has .*; did you mean 'PatientID'\?",
        ),
        (HEADER + "\na.png,Mass,0\n", ManifestError, r"Line 2 of Data_Entry_2017\.csv has 3 cells, too few"),
        (HEADER + '\n"a.png,Mass\n', ManifestError, r"is not a CSV table \(line 2\)"),
        (
            HEADER + "\na.png,Mass|Odema,0,1,58,M,PA,1,1,1,1\n",
            ManifestError,
            r"Line 2 .* has the label 'Odema', which is neither 'No Finding' nor one .*did you mean 'Edema'\?",
        ),
        (
            HEADER + "\n\na.png,Mass,0,1,old,M,PA,1,1,1,1\n",
            ManifestError,
            r"Line 3 .* has the age 'old'; ages look like 58, 058Y, 011M or 013D",
        ),
    ],
)
def test_damaged_tables(tmp_path: Path, content: str | bytes, error: type[Exception], message: str) -> None:
    (tmp_path / "Data_Entry_2017.csv").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(error, match=message):
        read_chestxray14(tmp_path)


def test_empty_cells_are_named_by_their_line(tmp_path: Path) -> None:
    write_set(tmp_path, [*ROWS[:2], ("00000002_000.png", "No Finding", "0", "", "", "F", "AP")])
    with pytest.raises(ManifestError, match=r"Row 3 of Data_Entry_2017\.csv \(line 4\) has no patient"):
        read_chestxray14(tmp_path)


def test_no_such_folder_or_table(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"nowhere does not exist; name the folder the data set was unpacked into"):
        read_chestxray14(tmp_path / "nowhere")
    with pytest.raises(ManifestError, match=r"holds neither Data_Entry_2017_v2020\.csv nor .*; it holds nothing\."):
        read_chestxray14(tmp_path)
    (tmp_path / "sample.csv").write_text("x")
    with pytest.raises(ManifestError, match=r"it holds sample\.csv\."):
        read_chestxray14(tmp_path)
    with pytest.raises(ManifestError, match=r"sample\.csv is a file; name the folder"):
        read_chestxray14(tmp_path / "sample.csv")


def many(n_patients: int = 60) -> Manifest:
    rng = np.random.default_rng(0)
    rows = []
    for patient in range(n_patients):
        for visit in range(int(rng.integers(1, 5))):
            names = rng.choice(CHESTXRAY14_FINDINGS, rng.integers(0, 4), replace=False).tolist()
            side = "test" if patient % 4 == 0 else "train_val"
            rows.append((f"{patient}_{visit}.png", "|".join(names) or "No Finding", str(patient), side))
    table = pd.DataFrame(rows, columns=["image", "label", "patient", "split"], dtype=object)
    return Manifest(table, ".", group="patient")


@pytest.mark.parametrize("no_finding", [False, True])
@pytest.mark.parametrize("unseen", [CHESTXRAY14_UNSEEN, ("Hernia",), "Mass"])
@pytest.mark.parametrize("seed", [0, 1])
def test_split_keeps_unseen_findings_and_patients_apart(
    unseen: tuple[str, ...] | str, no_finding: bool, seed: int
) -> None:
    manifest = many()
    held_out = {unseen} if isinstance(unseen, str) else set(unseen)
    parts = generalized_split(manifest, unseen=unseen, no_finding=no_finding, seed=seed)
    again = generalized_split(manifest, unseen=unseen, no_finding=no_finding, seed=seed)
    for one, other in zip(parts, again, strict=True):
        np.testing.assert_array_equal(one, other)
        assert one.size and (np.diff(one) > 0).all() and one.dtype == np.intp
    train, validation, test = (part.tolist() for part in parts)
    assert manifest.groups is not None
    owners = [{manifest.groups[row] for row in part} for part in (train, validation, test)]
    assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])
    assert len(owners[1]) == round(0.1 * (len(owners[0]) + len(owners[1])))
    for row, names in enumerate(manifest.labels):  # the rule, row by row
        wanted = no_finding or names != ("No Finding",)
        if manifest.table["split"].iloc[row] == "test":
            assert (row in test) == wanted
        else:
            assert (row in train or row in validation) == (wanted and not held_out & set(names))
    assert held_out & {name for row in test for name in manifest.labels[row]} == held_out


def test_seeds_and_shares_differ() -> None:
    manifest = many()
    validations = [generalized_split(manifest, seed=seed)[1].tolist() for seed in range(5)]
    assert len({tuple(rows) for rows in validations}) > 1
    half = generalized_split(manifest, validation=0.5)
    assert manifest.groups is not None
    counts = [len({manifest.groups[row] for row in part}) for part in half[:2]]
    assert abs(counts[0] - counts[1]) <= 1


def test_split_of_the_set_as_read(tmp_path: Path) -> None:
    rows = [*ROWS, ("00000005_000.png", "Mass", "0", "5", "30", "F", "PA")]
    train, validation, test = generalized_split(read_chestxray14(write_set(tmp_path, rows)))
    assert sorted([*train, *validation]) == [0, 5] and test.tolist() == [3, 4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unseen": ()}, "unseen must name at least one finding"),
        ({"unseen": ("Odema",)}, r"unseen names 'Odema', which is no finding here; did you mean 'Edema'\?"),
        ({"unseen": ("No Finding",)}, "unseen names 'No Finding', which is no finding here"),
        ({"validation": 0.0}, "validation must be a share of the patients between 0 and 1; got 0"),
        ({"validation": 1.0}, "validation must be a share .* got 1"),
        ({"unseen": CHESTXRAY14_FINDINGS}, r"need 2 patients with images free of .*; The table has 0 on the train_val"),
    ],
)
def test_split_refuses(options: dict[str, object], message: str) -> None:
    with pytest.raises(EpisodeError, match=message):
        generalized_split(many(), **options)  # type: ignore[arg-type]


def test_split_refuses_manifests() -> None:
    table = many().table
    with pytest.raises(EpisodeError, match="was read without patients, which the split needs; name their column"):
        generalized_split(Manifest(table, "."))
    with pytest.raises(EpisodeError, match="was read without labels"):
        generalized_split(Manifest(table, ".", label=None, group="patient"))
    with pytest.raises(EpisodeError, match=r"has no column 'split'; it has image, label, patient\."):
        generalized_split(Manifest(table.drop(columns="split"), ".", group="patient"))
    both = table.copy()
    both.loc[both["patient"] == "0", "split"] = "train_val"
    both.loc[both.index[0], "split"] = "test"
    both = pd.concat([both.iloc[:1], both.iloc[:1].assign(image="x.png", split="train_val"), both.iloc[1:]])
    with pytest.raises(EpisodeError, match="Patient 0 has images on both the train_val and the test side"):
        generalized_split(Manifest(both, ".", group="patient"))
    with pytest.raises(EpisodeError, match=r"No row of The table is left to test on"):
        generalized_split(Manifest(table[table["split"] == "train_val"], ".", group="patient"))
