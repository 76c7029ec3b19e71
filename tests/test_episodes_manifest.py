"""Tables of images: what is read, and how a damaged one is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from episodes import Manifest, ManifestError

PLAIN = "image,label,patient,site\na.png,x,007,N\nsub/b.png,y,7,S\nc d é.png,x,008,N\n"


@pytest.fixture
def write(tmp_path: Path):
    def _write(content: str | bytes, name: str = "table.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return _write


def test_reads_text_as_it_stands(write, tmp_path: Path) -> None:
    manifest = Manifest.read(write(PLAIN), group="patient")
    assert len(manifest) == 3
    assert manifest.images == [tmp_path / "a.png", tmp_path / "sub" / "b.png", tmp_path / "c d é.png"]
    assert manifest.labels == ["x", "y", "x"]
    assert manifest.groups == ["007", "7", "008"]
    assert manifest.classes == ("x", "y")
    assert manifest.table["site"].tolist() == ["N", "S", "N"]
    assert repr(manifest) == "Manifest(table.csv: 3 images, 2 classes, 3 patients)"
    assert Manifest.read(str(write(PLAIN))).groups is None
    assert Manifest.read(write(PLAIN), label=None).labels == []


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + PLAIN,
        PLAIN.replace(",", ";"),
        PLAIN.replace(",", "\t"),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\n\n"),
        PLAIN.replace(",", ", "),
        PLAIN.rstrip("\n"),
        PLAIN.replace("a.png", '"a.png"'),
    ],
)
def test_dialects_read_the_same(write, content: str) -> None:
    plain = Manifest.read(write(PLAIN), group="patient")
    other = Manifest.read(write(content), group="patient")
    assert (other.images, other.labels, other.groups) == (plain.images, plain.labels, plain.groups)
    assert other.data_hash == plain.data_hash


def test_several_labels(write) -> None:
    path = write("image,label\na.png,x|y\nb.png,y\nc.png, y | x |y\n")
    manifest = Manifest.read(path)
    assert manifest.labels == [("x", "y"), ("y",), ("y", "x")]
    assert manifest.multilabel and manifest.classes == ("x", "y")
    assert manifest.take([1]).labels == [("y",)]  # one label here, but still a table of several
    assert manifest.where("label = 'y'").labels == [("y",)]


def test_parquet(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"image": ["a.png", "b.png"], "label": [["x", "y"], ["y"]], "patient": [7.0, 8.0], "age": [61, 9]}
    )
    path = tmp_path / "table.bin"  # recognised by content
    table.to_parquet(path)
    manifest = Manifest.read(path, group="patient")
    assert manifest.labels == [("x", "y"), ("y",)]
    assert manifest.groups == ["7", "8"]
    assert manifest.where("age > 10").groups == ["7"]
    table.loc[1, "patient"] = np.nan
    table.to_parquet(path)
    with pytest.raises(ManifestError, match=r"Row 2 of table\.bin has no patient: its 'patient' is empty"):
        Manifest.read(path, group="patient")


def test_rows_keep_their_place_when_filtered(write) -> None:
    path = write('image,label,note,keep\na.png,x,"two\nlines",1\nb.png,,n,0\nc.png,,n,1\nd.png,x,n,1\n')
    with pytest.raises(ManifestError, match=r"Row 2 of table\.csv \(line 4\) has no label: its 'label' is empty"):
        Manifest.read(path)
    with pytest.raises(ManifestError, match=r"\(line 5\) has no label"):
        Manifest.read(path, where="keep = 1")
    assert len(Manifest.read(path, where="label IS NOT NULL")) == 2
    assert Manifest.read(path, allow_unlabelled=True).labels == ["x", None, None, "x"]
    assert Manifest.read(path, allow_unlabelled=True).classes == ("x",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "is empty; a manifest is a CSV or Parquet file"),
        (" \n\n", "is empty; a manifest"),
        (b"\x89PNG\r\n\x00\x00", "is not a table of text"),
        (b"image,label\na.png,caf\xe9\n", r"is not UTF-8 text \(line 2\)"),
        (b"PAR1 but nothing else", "is not a readable Parquet file"),
        ("image,label\n", "has a header but no rows"),
        ("image,label\na.png\n", r"Row 1 of table\.csv \(line 2\) has 1 cells where the header has 2 columns"),
        ("image,label\na.png,x\nb.png,x,y\n", r"Row 2 of table\.csv \(line 3\) has 3 cells .* holds ','"),
        ("image,label,image\na.png,x,y\n", r"Column 3 of table\.csv repeats the name 'image'"),
        ("image,,label\na.png,x,y\n", r"Column 2 of table\.csv has no name"),
        ('image,label\n"a.png,x\n', r"is not a CSV table \(line 2\)"),
        ("image,lable\na.png,x\n", r"has no column 'label'; it has image, lable; did you mean 'lable'\?"),
        ("file,label\na.png,x\n", r"table\.csv has no column 'image'; it has file, label\."),
        ("image,label\n,x\n", r"Row 1 of table\.csv \(line 2\) has no image: its 'image' is empty"),
        ("image,label\na.png, | \n", r"Row 1 of table\.csv \(line 2\) has no label"),
    ],
)
def test_damaged_tables_are_refused_in_one_sentence(write, content: str | bytes, message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        Manifest.read(write(content))
    assert "\n" not in str(caught.value)


def test_missing_group_and_files(write, tmp_path: Path) -> None:
    path = write(PLAIN)
    with pytest.raises(ManifestError, match=r"has no column 'patient_id'; .*; did you mean 'patient'\?"):
        Manifest.read(path, group="patient_id")
    with pytest.raises(ManifestError, match=r"Row 2 of table\.csv \(line 3\) has no patient: its 'patient' is empty"):
        Manifest.read(write(PLAIN.replace(",7,", ",,")), group="patient")
    with pytest.raises(ManifestError, match=r"There is no manifest .*tabel\.csv; did you mean 'table\.csv'\?"):
        Manifest.read(tmp_path / "tabel.csv")
    with pytest.raises(ManifestError, match="is a folder; a manifest is a CSV"):
        Manifest.read(tmp_path)
    with pytest.raises(ManifestError, match=r"No row of table\.csv meets \"site = 'Q'\""):
        Manifest.read(path, where="site = 'Q'")
    with pytest.raises(ManifestError, match=r"No row of table\.csv meets"):
        Manifest.read(path).where("site = 'Q'")
    with pytest.raises(ManifestError, match="no such column"):
        Manifest.read(path).where("sit = 'Q'")


def test_take_and_hash(write) -> None:
    manifest = Manifest.read(write(PLAIN), group="patient")
    assert manifest.take([2, 0]).groups == ["008", "007"]
    assert manifest.take(np.array([True, False, False])).labels == ["x"]
    assert manifest.take([0, 1, 2]).data_hash == manifest.data_hash
    assert len(manifest.data_hash) == 64
    hashes = {manifest.data_hash, manifest.take([2, 1, 0]).data_hash, manifest.take([0, 1]).data_hash}
    changed = Manifest.read(write(PLAIN.replace("008", "009"), "other.csv"), group="patient")
    assert len(hashes | {changed.data_hash}) == 4


def test_the_same_file_twice_is_flagged(write) -> None:
    manifest = Manifest.read(write("image,label\na.png,x\nb.png,x\n./a.png,y\na.png,x\n"))
    assert manifest.duplicates == ((0, 2), (0, 3))


@pytest.mark.shared_data
def test_shared_manifests(shared_data: Path) -> None:
    chest = Manifest.read(
        shared_data / "covid_chestxray" / "manifest.csv",
        label="finding",
        group="split_group",
        where="modality = 'X-ray' AND view <> 'L'",
    )
    assert len(chest) == 497
    assert all(path.is_file() for path in chest.images)
    nih = Manifest.read(shared_data / "nih_cxr" / "manifest.csv", label="labels", group="patient_id")
    assert (len(nih), len(nih.classes), len(set(nih.groups or ()))) == (999, 15, 682)
    assert nih.groups is not None and nih.groups[0] == "1280"
