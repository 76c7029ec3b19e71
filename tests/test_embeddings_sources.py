"""Sources: what is listed, in which order, under which id, and what is said where a table is wrong."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from embeddings.errors import SourceError
from embeddings.sources import Record, Repeat, gather, printable, records_from_folder, records_from_table


def touch(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def test_a_folder_is_listed_in_order_without_what_is_no_image(tmp_path: Path) -> None:
    for name in (
        "b/IM0002", "b/IM0001", "a b/ü.dcm", "top.PNG", "b/c/deep", "odd.dcm.bak", "scan.nii.gz",
        "notes.txt", "table.CSV", "b/readme.md", "DICOMDIR", "Thumbs.db", ".hidden", ".git/config", "w.safetensors",
    ):  # fmt: skip
        touch(tmp_path / "s" / name)
    (tmp_path / "s" / "loop").symlink_to(tmp_path / "s")
    records = records_from_folder(tmp_path / "s")
    assert [record.id for record in records] == [
        "a b/ü.dcm", "b/IM0001", "b/IM0002", "b/c/deep", "odd.dcm.bak", "scan.nii.gz", "top.PNG",
    ]  # fmt: skip
    assert records[0] == Record(
        path=tmp_path / "s" / "a b" / "ü.dcm",
        id="a b/ü.dcm",
        metadata={"source": str(tmp_path / "s")},
        root=tmp_path / "s",
    )
    assert [r.id for r in records_from_folder(tmp_path / "s", without=tmp_path / "s" / "b")][:2] == [
        "a b/ü.dcm",
        "odd.dcm.bak",
    ]


def test_a_single_file_is_a_source_and_nothing_is_none(tmp_path: Path) -> None:
    (record,) = records_from_folder(touch(tmp_path / "one.dcm"))
    assert (record.id, record.root) == ("one.dcm", None)
    with pytest.raises(SourceError, match=r"There is no folder or file at '.*nowhere'\."):
        records_from_folder(tmp_path / "nowhere")


def test_a_name_that_is_no_text_becomes_text(tmp_path: Path) -> None:
    (tmp_path / "s").mkdir()
    name = os.fsdecode(b"scan-\xff")
    (tmp_path / "s" / name).touch()
    (record,) = records_from_folder(tmp_path / "s")
    assert record.id == r"scan-\xff"
    assert record.path.exists()
    record.id.encode()
    assert printable("ü") == "ü"


def test_a_table_keeps_its_text_and_leaves_out_empty_cells(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(
        '\ufeffimage,case,note\na b/ü.png,007,\n/abs/x.png,,NA\n./c.png,8,"comma, quote"\n', encoding="utf-8"
    )
    first, second, third = records_from_table(tmp_path / "t.csv", group="case")
    assert first == Record(tmp_path / "a b" / "ü.png", "a b/ü.png", {"case": "007", "patient": "007"})
    assert second == Record(Path("/abs/x.png"), "/abs/x.png", {"note": "NA"})
    assert (third.id, third.metadata["note"]) == ("c.png", "comma, quote")


def test_parquet_and_frames_keep_their_types(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "file": ["x.png", "y.png"],
            "age": [61, 62],
            "score": [0.5, np.nan],
            "when": [pd.Timestamp("2020-01-02"), pd.NaT],
            "maybe": pd.array([True, pd.NA], dtype="boolean"),
        }
    )
    frame.to_parquet(tmp_path / "t.parquet")
    for records in (
        records_from_table(tmp_path / "t.parquet", image_column="file"),
        records_from_table(frame, image_column="file", root=tmp_path),
    ):
        assert [record.path for record in records] == [tmp_path / "x.png", tmp_path / "y.png"]
        assert records[0].metadata == {"age": 61, "score": 0.5, "when": "2020-01-02T00:00:00", "maybe": True}
        assert records[1].metadata == {"age": 62}
        assert type(records[0].metadata["age"]) is int


def test_patients_of_tables_are_written_in_one_way() -> None:
    frame = pd.DataFrame({"image": list("abcd"), "case": [7.0, np.nan, 8.0, 9.5]})
    owners = [record.metadata.get("patient") for record in records_from_table(frame, group="case")]
    assert owners == ["7", None, "8", "9.5"]
    frame = pd.DataFrame({"image": list("abc"), "patient": [" p ", "  ", None]})
    assert [record.metadata.get("patient") for record in records_from_table(frame)] == ["p", None, None]
    assert "patient" not in records_from_table(frame)[1].metadata


def test_one_file_in_several_rows_has_one_patient(tmp_path: Path) -> None:
    frame = pd.DataFrame({"image": ["a", "a", "a", "./a", "b"], "case": [None, "p", "q", " p ", "r"]})
    records = records_from_table(frame, group="case", root=tmp_path)
    listing = gather(records, manifest=None, image_column="image", group=None, without=tmp_path)
    assert [record.metadata.get("patient") for record in listing.records] == ["p", "r"]
    refusal = "is listed before for patient 'p' and here for 'q': the first was kept"
    assert [repeat.reason for repeat in listing.repeats] == [None, refusal, None]


def test_a_wrong_table_is_named(tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    table.write_text("Image,label\nx.png,1\n,2\n")
    with pytest.raises(SourceError, match=r"t.csv' has no column 'imge'; it has Image, label\. Did you mean 'Image'\?"):
        records_from_table(table, image_column="imge")
    with pytest.raises(SourceError, match=r"has no column 'patient'; it has Image, label\.$"):
        records_from_table(table, image_column="Image", group="patient")
    with pytest.raises(SourceError, match=r"has no path in column 'Image' of row 2"):
        records_from_table(table, image_column="Image")
    with pytest.raises(SourceError, match=r"There is no table at '.*gone.csv'\."):
        records_from_table(tmp_path / "gone.csv")
    (tmp_path / "bad.parquet").write_bytes(b"no parquet")
    with pytest.raises(SourceError, match=r"bad.parquet' cannot be read as a table: .*\."):
        records_from_table(tmp_path / "bad.parquet")
    (tmp_path / "empty.csv").touch()
    with pytest.raises(SourceError, match=r"empty.csv' cannot be read as a table: No columns to parse from file\."):
        records_from_table(tmp_path / "empty.csv")
    with pytest.raises(SourceError, match=r"The table has no column 'image'; it has a\."):
        records_from_table(pd.DataFrame({"a": [1]}))


def test_several_sources_and_a_manifest_beside_them(tmp_path: Path) -> None:
    one, two = touch(tmp_path / "s" / "1.png"), touch(tmp_path / "s" / "2.png")
    manifest = tmp_path / "m.csv"
    manifest.write_text("image,case\ns/2.png,7\n")
    listing = gather(
        [tmp_path / "s", one, Record(two, "mine", {"x": 1})],
        manifest=manifest,
        image_column="image",
        group="case",
        without=tmp_path / "archive",
    )
    records = listing.records
    assert [record.path for record in records] == [one, two]
    assert listing.repeats == (Repeat(str(one), "1.png", None), Repeat(str(two), "mine", None))
    assert [record.metadata.get("patient") for record in records] == [None, "7"]
    (alone,) = gather(manifest, manifest=None, image_column="image", group=None, without=tmp_path).records
    assert (alone.path, alone.metadata) == (two, {"case": "7"})
