"""Rows for other programs, rows found and removed by metadata, and archives where they cannot be written."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from embeddings import Archive, ArchiveCorrupt, ArchiveError, UnknownId, database
from embeddings.database import file_system_of

DIM = 6


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    held = Archive.create(tmp_path / "a", encoder_name="e", encoder_fingerprint="f" * 64, encoder_spec=None, dim=DIM)
    rng = np.random.default_rng(0)
    for number in range(5):
        facts = {"patient": f"p{number // 2}", "n": number, "share": number / 2 if number else 1, "ok": number > 2}
        facts |= {"mixed": number if number % 2 else "x", "list": [1, number], "id": "shadow"}
        if number == 3:
            facts["rare"] = 'a "quoted" é value'
        held.add([f"row {4 - number}"], rng.normal(size=(1, DIM)), metadata=[facts])
    return held


def test_what_is_written_is_what_is_stored(archive: Archive, tmp_path: Path) -> None:
    folder = archive.export(tmp_path / "out" / "tables")
    snapshot = archive.snapshot()
    np.testing.assert_array_equal(np.load(folder / "vectors.npy"), snapshot.vectors)
    assert json.loads((folder / "ids.json").read_text()) == snapshot.ids
    table = pq.read_table(folder / "rows.parquet").to_pylist()
    assert [row["id"] for row in table] == snapshot.ids
    assert [row["hash"] for row in table] == snapshot.hashes
    np.testing.assert_array_equal(np.asarray([row["vector"] for row in table], dtype=np.float32), snapshot.vectors)
    for row, facts in zip(table, snapshot.metadata, strict=True):
        assert row["metadata.id"] == facts["id"]
        assert (row["patient"], row["n"], row["share"], row["ok"]) == tuple(
            facts[key] for key in ("patient", "n", "share", "ok")
        )
        assert json.loads(row["mixed"]) == facts["mixed"]
        assert json.loads(row["list"]) == facts["list"]
        assert row["rare"] == facts.get("rare")


def test_odd_values_are_exported_too(archive: Archive, tmp_path: Path) -> None:
    odd = [{"n": 2**70}, {"share": 2**60 + 1}, {"text": "half \ud800"}, {"metadata.id": 1, "id": 2}]
    archive.add([f"odd {n}" for n in range(4)], np.eye(4, DIM), metadata=odd)
    rows = pq.read_table(archive.export(tmp_path / "out") / "rows.parquet").to_pylist()[:4]
    assert [row["id"] for row in rows] == ["odd 0", "odd 1", "odd 2", "odd 3"]
    assert (json.loads(rows[0]["n"]), json.loads(rows[1]["share"])) == (2**70, 2**60 + 1)
    assert rows[2]["text"] == "half ?"
    assert (rows[3]["metadata.metadata.id"], json.loads(rows[3]["metadata.id"])) == (1, 2)


def test_an_export_is_whole_or_not_there(archive: Archive, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(ArchiveError, match=r"needs a new folder, and .*there' is there already: give a new name"):
        archive.export(tmp_path / "there")
    segment = next((archive.path / "segments").iterdir())
    content = bytearray(segment.read_bytes())
    content[-1] ^= 1
    segment.write_bytes(content)
    with pytest.raises(ArchiveCorrupt, match="is not what was written: run `radshot verify` and restore a backup"):
        archive.export(tmp_path / "new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "there"]


def test_an_empty_archive_is_exported_too(tmp_path: Path) -> None:
    with Archive.create(
        tmp_path / "a", encoder_name="e", encoder_fingerprint="f" * 64, encoder_spec=None, dim=DIM
    ) as held:
        folder = held.export(tmp_path / "out")
    assert np.load(folder / "vectors.npy").shape == (0, DIM)
    assert pq.read_table(folder / "rows.parquet").num_rows == 0


def test_rows_are_found_and_removed_by_metadata(archive: Archive) -> None:
    assert archive.find({"patient": "p0"}) == ["row 3", "row 4"]
    assert archive.find({"ok": True, "n": [3, 4, 9]}) == ["row 0", "row 1"]
    assert archive.find({"rare": "nothing"}) == []
    version = archive.version
    assert archive.remove(where={"patient": ["p1", "p2"], "n": (2, 4)}) == ("row 0", "row 2")
    assert archive.ids == ["row 1", "row 3", "row 4"]
    assert archive.version == version + 1
    with pytest.raises(UnknownId, match=r"has no row of metadata \{'n': 77\}"):
        archive.remove(where={"n": 77})
    for given in ({}, {"ids": ["row 1"], "patient": "p0"}, {"ids": ["row 1"], "where": {"n": 1}}):
        with pytest.raises(ValueError, match="one of the three"):
            archive.remove(**given)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="names at least one key"):
        archive.remove(where={})


def test_a_network_file_system_is_told_and_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts = tmp_path / "mounts"
    mounts.write_text(
        f"disk / ext4 rw 0 0\nserver:/x {tmp_path}/net nfs4 rw 0 0\ndisk {tmp_path}/net/own\\040disk xfs rw 0 0\n"
    )
    assert file_system_of(tmp_path / "net" / "a" / "b", mounts) == "nfs4"
    assert file_system_of(tmp_path / "network", mounts) == "ext4"
    assert file_system_of(tmp_path / "net" / "own disk" / "a", mounts) == "xfs"
    assert file_system_of(tmp_path, tmp_path / "no-mounts") == ""
    monkeypatch.setattr(database, "file_system_of", lambda path: "nfs4")
    with pytest.raises(ArchiveError, match=r"would lie on a network file system \(nfs4\)"):
        Archive.create(tmp_path / "b", encoder_name="e", encoder_fingerprint="f" * 64, encoder_spec=None, dim=DIM)
    assert not (tmp_path / "b").exists()


def test_an_archive_is_read_where_it_cannot_be_written(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    ids, folder = archive.ids, archive.path
    log = folder / "archive.sqlite-wal"
    assert log.stat().st_size
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    with pytest.raises(ArchiveError, match="its log holds changes that only a writer can bring in"):
        Archive.open(folder)
    archive.close()  # the last to close brings the log in
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    with Archive.open(folder) as held:
        assert held.ids == ids
        with pytest.raises(ArchiveError, match="must be readable and writable"):
            held.remove(ids=ids[:1])
    assert {path.name for path in folder.iterdir()} - {"writer.lock"} == set(before) - {"writer.lock"}
