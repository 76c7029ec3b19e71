"""Archive: what a caller can rely on, call by call."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from embeddings import database
from embeddings.archive import Archive
from embeddings.errors import (
    ArchiveCorrupt,
    ArchiveError,
    ArchiveLocked,
    EncoderMismatch,
    ImageError,
    StorageFull,
    UnknownId,
)
from embeddings.metadata import patient_of

DIM = 6


def make(folder: Path, *, dim: int = DIM, fingerprint: str = "a" * 64, timeout: float = 30.0) -> Archive:
    return Archive.create(
        folder, encoder_name="fake", encoder_fingerprint=fingerprint, encoder_spec="fake-6", dim=dim, timeout=timeout
    )


def rows(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, DIM)).astype(np.float32)


class FakeEncoder:
    name = "fake"
    fingerprint = "a" * 64
    spec = "fake-6"
    dim = DIM
    source_mean = None


def test_the_error_tree() -> None:
    for kind in (ArchiveLocked, EncoderMismatch, ArchiveCorrupt, StorageFull, UnknownId):
        assert issubclass(kind, ArchiveError)
        assert not issubclass(kind, ValueError)
    error = ImageError("scans/a.png", "is empty")
    assert (str(error), error.source, error.reason) == ("scans/a.png: is empty", "scans/a.png", "is empty")
    assert isinstance(error, ValueError)


def test_rows_come_back_in_canonical_order_as_they_were_given(tmp_path: Path) -> None:
    ids = ["b", "a/ü", "10", "9", "Z", "a"]
    vectors = rows(6)
    with make(tmp_path / "x") as archive:
        report = archive.add(ids, vectors, metadata=[{"patient": f"p{n}", "n": n} for n in range(6)])
        assert (report.added, report.duplicates, report.conflicts) == (tuple(ids), (), ())
        held = archive.snapshot()
        assert held.ids == archive.ids == sorted(ids)
        for identity, vector, facts in zip(held.ids, held.vectors, held.metadata, strict=True):
            np.testing.assert_array_equal(vector, vectors[ids.index(identity)])
            assert facts == {"patient": f"p{ids.index(identity)}", "n": ids.index(identity)}
        assert held.vectors.dtype == np.float32
        assert held.vectors.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            held.vectors[0, 0] = 1
        assert archive.snapshot() is held
        assert len(archive) == len(held) == 6
        table = archive.table()
        assert list(table.columns) == ["id", "patient", "n"]
        assert table["id"].tolist() == sorted(ids)
    with Archive.open(tmp_path / "x", encoder=FakeEncoder()) as again:
        assert again.ids == sorted(ids)
        assert again.vectors.tobytes() == held.vectors.tobytes()
        assert (again.encoder_name, again.encoder_fingerprint, again.encoder_spec) == ("fake", "a" * 64, "fake-6")
        assert (again.dim, again.path) == (DIM, tmp_path / "x")


def test_open_makes_an_archive_only_when_it_knows_the_encoder(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"There is no archive at '.*x'; give the encoder to make one\."):
        Archive.open(tmp_path / "x")
    with pytest.raises(ArchiveError, match=r"There is no archive at '.*x'\."):
        Archive.open(tmp_path / "x", encoder=FakeEncoder(), create=False)
    assert not (tmp_path / "x").exists()
    with Archive.open(tmp_path / "x" / "y", encoder=FakeEncoder()) as archive:
        assert (len(archive), archive.vectors.shape, archive.encoder_spec) == (0, (0, DIM), "fake-6")
    (tmp_path / "file").touch()
    with pytest.raises(ArchiveError, match=r"An archive is a folder, and '.*file' is a file"):
        Archive.open(tmp_path / "file", encoder=FakeEncoder())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "holiday.jpg").touch()
    with pytest.raises(ArchiveError, match=r"needs a folder of its own, and '.*full' holds 'holiday.jpg'"):
        Archive.open(tmp_path / "full", encoder=FakeEncoder())
    with pytest.raises(ValueError, match="at least one dimension; got 0"):
        make(tmp_path / "z", dim=0)


def test_another_encoder_is_refused_by_name(tmp_path: Path) -> None:
    make(tmp_path / "x").close()

    class Other(FakeEncoder):
        name = "other"
        fingerprint = "b" * 64

    with pytest.raises(
        EncoderMismatch, match=r"holds vectors of fake \(aaaaaaaaaaaa, 6 dimensions\), and the encoder given"
    ):
        Archive.open(tmp_path / "x", encoder=Other())
    with pytest.raises(
        EncoderMismatch, match=r"is fake \(bbbbbbbbbbbb, 6 dimensions\): use .* `radshot embed --reembed`"
    ):
        make(tmp_path / "x", fingerprint="b" * 64).check_encoder(Other())
    with Archive.open(tmp_path / "x") as archive:
        with pytest.raises(EncoderMismatch):
            archive.check_encoder(Other())
        archive.check_encoder(FakeEncoder())


def test_the_same_id_is_a_duplicate_or_a_conflict(tmp_path: Path) -> None:
    vectors = rows(4)
    with make(tmp_path / "x") as archive:
        archive.add(["a", "b"], vectors[:2], hashes=["h1", "h2"], metadata=[{"label": "first"}, {}])
        version = archive.version
        report = archive.add(["a", "b"], vectors[2:], hashes=["h1", "other"], metadata=[{"label": "later"}, {}])
        assert (report.added, report.duplicates, report.conflicts) == ((), ("a",), ("b",))
        assert archive.version == version
        np.testing.assert_array_equal(archive.vectors, vectors[:2])
        assert archive.metadata[0] == {"label": "first"}
        report = archive.add(["c", "c", "c"], vectors[[2, 3, 2]], hashes=["h3", "h4", "h3"])
        assert (report.added, report.duplicates, report.conflicts) == (("c",), ("c",), ("c",))
        np.testing.assert_array_equal(archive.vectors[2], vectors[2])
        report = archive.add(["d"], vectors[:1])
        assert archive.add(["d"], vectors[:1]).duplicates == ("d",)
        assert archive.add(["d"], vectors[1:2]).conflicts == ("d",)
        assert archive.snapshot().hashes[3] == "vector:" + hashlib.sha256(vectors[0].tobytes()).hexdigest()
        assert archive.add([], np.empty((0, DIM))).added == ()


def test_bad_rows_are_refused_whole(tmp_path: Path) -> None:
    with make(tmp_path / "x") as archive:
        broken = rows(3)
        broken[1, 2] = np.inf
        with pytest.raises(ValueError, match="must be finite; row 1 holds NaN or infinity"):
            archive.add(["a", "b", "c"], broken)
        with pytest.raises(
            ValueError, match=r"5 dimensions, the archive '.*' has 6: were both made by the same encoder\?"
        ):
            archive.add(["a"], np.ones((1, 5)))
        with pytest.raises(ValueError, match=r"shape \(n, d\); got \(6,\)"):
            archive.add(["a"], np.ones(6))
        with pytest.raises(ValueError, match="one vector per id: 2 ids, 1 vectors"):
            archive.add(["a", "b"], rows(1))
        with pytest.raises(ValueError, match="as many metadata as ids: 1 ids, 0 metadata"):
            archive.add(["a"], rows(1), metadata=[])
        with pytest.raises(ValueError, match="as many hashes as ids: 1 ids, 2 hashes"):
            archive.add(["a"], rows(1), hashes=["x", "y"])
        with pytest.raises(ValueError, match=r"'age' of 'a' is nan: leave it out"):
            archive.add(["a"], rows(1), metadata=[{"age": float("nan")}])
        with pytest.raises(ValueError, match=r"Metadata of 'a' has no JSON form: .* is a object"):
            archive.add(["a"], rows(1), metadata=[{"x": object()}])
        with pytest.raises(ValueError, match=r"The id must be text; got int"):
            archive.add([7], rows(1))  # type: ignore[list-item]
        with pytest.raises(ValueError, match=r"The id must be text that UTF-8 can hold"):
            archive.add(["\udc80"], rows(1))
        assert len(archive) == 0
        assert list((tmp_path / "x" / "segments").iterdir()) == []


def test_hostile_ids_and_metadata_are_just_text(tmp_path: Path) -> None:
    ids = [
        "../../etc/passwd",
        "/etc/passwd",
        "nul\0nul",
        "nul",
        "'; DROP TABLE rows; --",
        "e\u0301",
        "é",
        "",
        "\u202e",
        "a" * 5000,
    ]
    facts = [
        {"patient": identity, "path": identity, "who": "Ö", "n": np.float32(1.5), "p": Path("q")} for identity in ids
    ]
    before = {path for path in tmp_path.parent.rglob("*") if path.is_file()}
    with make(tmp_path / "x") as archive:
        archive.add(ids, rows(len(ids)), metadata=facts)
        assert archive.ids == sorted(ids)
        assert [row["patient"] for row in archive.metadata] == sorted(ids)
        assert archive.metadata[0]["n"] == 1.5
        assert archive.remove(patient="nul\0nul") == ("nul\0nul",)
        assert archive.remove(ids="é") == ("é",)
        assert "e\u0301" in archive.ids
        assert archive.verify().ok
    outside = {path for path in tmp_path.parent.rglob("*") if path.is_file()} - before
    assert all(path.is_relative_to(tmp_path / "x") for path in outside)


def test_removed_equals_never_registered_to_the_bit(tmp_path: Path) -> None:
    vectors = rows(60)
    ids = [f"{number}" for number in range(60)]
    facts = [{"patient": number % 7, "label": f"l{number % 3}"} for number in range(60)]
    with make(tmp_path / "x") as archive, make(tmp_path / "y") as never:
        archive.add(ids[:30], vectors[:30], metadata=facts[:30])
        first = archive.snapshot()
        archive.add(ids[30:], vectors[30:], metadata=facts[30:])
        removed = archive.remove(patient=3)
        assert removed == tuple(sorted(ids[3::7]))
        archive.remove(ids=["0", "not there", "1"])
        kept = [n for n in range(60) if n % 7 != 3 and n > 1]
        for n in kept[::-1]:
            never.add([ids[n]], vectors[n : n + 1], metadata=[facts[n]])
        for _ in range(2):
            ours, theirs = archive.snapshot(), never.snapshot()
            assert (ours.ids, ours.metadata, ours.hashes) == (theirs.ids, theirs.metadata, theirs.hashes)
            assert ours.vectors.tobytes() == theirs.vectors.tobytes()
            archive.purge()
        assert len(first) == 30


def test_removing_nothing_is_an_error_of_one_sentence(tmp_path: Path) -> None:
    with make(tmp_path / "x") as archive:
        archive.add(["a"], rows(1), metadata=[{"patient": "p"}])
        with pytest.raises(UnknownId, match=r"The archive '.*x' has no row of id 'b', 'c'\."):
            archive.remove(ids=["b", "c"])
        with pytest.raises(UnknownId, match=r"no row of patient 'q'\."):
            archive.remove(patient="q")
        for wrong in ({}, {"ids": ["a"], "patient": "p"}):
            with pytest.raises(ValueError, match="Give either ids or a patient"):
                archive.remove(**wrong)
        assert archive.ids == ["a"]


def test_another_process_or_handle_sees_a_change_at_its_next_request(tmp_path: Path) -> None:
    with make(tmp_path / "x") as one, Archive.open(tmp_path / "x") as two:
        one.add(["a"], rows(1))
        assert two.ids == ["a"]
        two.add(["b"], rows(1, seed=1))
        assert one.ids == ["a", "b"]
        pinned = one.snapshot()
        two.remove(ids=["a"])
        assert (one.ids, pinned.ids) == (["b"], ["a", "b"])
        assert one.version == two.version > pinned.version


def test_notes_are_small_documents_of_the_archive(tmp_path: Path) -> None:
    with make(tmp_path / "x") as archive:
        assert archive.get_note("deployment") is None
        assert archive.get_note("deployment", {}) == {}
        archive.set_note("deployment", {"labels": ["ü", 1], "none": None})
        version = archive.version
        with Archive.open(tmp_path / "x") as other:
            assert other.get_note("deployment") == {"labels": ["ü", 1], "none": None}
            other.set_note("deployment", None)
        assert archive.get_note("deployment") is None
        assert archive.version > version
        with pytest.raises(ValueError, match="not JSON compliant"):
            archive.set_note("x", float("nan"))


def test_several_threads_read_while_one_writes(tmp_path: Path) -> None:
    vectors = {f"{number:03d}": np.full(DIM, number, dtype=np.float32) for number in range(60)}
    wrong: list[str] = []
    done = threading.Event()
    with make(tmp_path / "x") as archive:

        def look() -> None:
            last = 0
            while not done.is_set():
                held = archive.snapshot()
                whole = len(held) % 3 == 0 and all(
                    (v == vectors[i]).all() for i, v in zip(held.ids, held.vectors, strict=True)
                )
                if not whole or held.version < last:
                    wrong.append(f"version {held.version}: {len(held)} rows")
                last = held.version

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        names = sorted(vectors)
        for start in range(0, 60, 3):
            part = names[start : start + 3]
            archive.add(part, np.stack([vectors[name] for name in part]))
        done.set()
        for thread in threads:
            thread.join()
        assert archive.ids == names
    assert wrong == []


def test_a_held_lock_names_its_holder_and_lets_the_waiting_one_in(tmp_path: Path) -> None:
    with make(tmp_path / "x") as one, Archive.open(tmp_path / "x", timeout=0.2) as two:
        with one.writing():
            one.add(["a"], rows(1))
            with pytest.raises(ArchiveLocked, match=rf"being written by process {os.getpid()} on .* since .*T.*0\.2 s"):
                two.add(["b"], rows(1))
            assert two.ids == ["a"]
        two.add(["b"], rows(1))
        entered, go = threading.Event(), threading.Event()

        def hold() -> None:
            with two.writing():
                entered.set()
                go.wait(5)

        thread = threading.Thread(target=hold)
        thread.start()
        entered.wait(5)
        with pytest.raises(ArchiveLocked):
            two.add(["c"], rows(1))
        go.set()
        thread.join()
        assert one.add(["c"], rows(1)).added == ("c",)


def test_what_a_dead_holder_wrote_down_blocks_nobody(tmp_path: Path) -> None:
    with make(tmp_path / "x", timeout=1.0) as archive:
        (tmp_path / "x" / "writer.json").write_text('{"host": "gone", "pid": 1, "since": "2020"}')
        (tmp_path / "x" / "writer.lock").touch()
        assert archive.add(["a"], rows(1)).added == ("a",)
        assert not (tmp_path / "x" / "writer.json").exists()


def test_a_closed_archive_says_so(tmp_path: Path) -> None:
    archive = make(tmp_path / "x")
    archive.add(["a"], rows(1))
    held = archive.snapshot()
    archive.close()
    archive.close()
    with pytest.raises(ArchiveError, match=r"The archive '.*x' was closed: open it again"):
        archive.ids  # noqa: B018
    assert held.ids == ["a"]


def test_a_store_stays_of_the_kind_it_was_made_as(tmp_path: Path) -> None:
    with Archive.open(tmp_path / "s", encoder=FakeEncoder(), kind="comparison set") as cases:
        assert cases.kind == "comparison set"
        cases.backup(tmp_path / "copy")
    for name in ("s", "copy"):
        with Archive.open(tmp_path / name) as again:
            assert again.kind == "comparison set"
        with pytest.raises(ArchiveError, match=r"'.*' is a comparison set, not an archive: add .* `radshot register`"):
            Archive.open(tmp_path / name, kind="archive")
        with pytest.raises(ArchiveError, match=r"is a comparison set, not an archive"):
            make(tmp_path / name)
    with make(tmp_path / "a") as archive:
        assert archive.kind == "archive"
    with pytest.raises(ArchiveError, match=r"a' is an archive of embedded images, not a comparison set: register"):
        Archive.open(tmp_path / "a", encoder=FakeEncoder(), kind="comparison set")


def test_a_patient_is_found_however_it_is_written(tmp_path: Path) -> None:
    written = [" p ", 7.0, np.float32(7), " ", float("nan"), None, "7.0"]
    assert [patient_of({"patient": value}) for value in written] == ["p", "7", "7", None, None, None, "7.0"]
    assert patient_of({"patient": pd.NA}) is None
    assert patient_of({"patient": pd.NaT}) is None
    with make(tmp_path / "x") as archive:
        archive.add(["a", "b", "c"], rows(3), metadata=[{"patient": 7.0}, {"patient": " 8"}, {"patient": "  "}])
        assert archive.remove(patient="7") == ("a",)
        assert archive.remove(patient=8.0) == ("b",)
        with pytest.raises(UnknownId, match=r"no row of patient '  '"):
            archive.remove(patient="  ")


def test_stats_and_backup(tmp_path: Path) -> None:
    with make(tmp_path / "x") as archive:
        archive.add(["a", "b", "c"], rows(3), metadata=[{"patient": 1}, {"patient": 1}, {}])
        archive.set_note("k", [1])
        archive.remove(ids=["b"])
        stats = archive.stats()
        assert (stats["rows"], stats["patients"], stats["segments"], stats["removed_rows_on_disk"]) == (2, 1, 1, 1)
        assert (stats["dim"], stats["encoder"], stats["format"]) == (DIM, "fake", database.FORMAT_VERSION)
        assert archive.backup(tmp_path / "copy") == tmp_path / "copy"
        with pytest.raises(ArchiveError, match=r"A backup needs a new folder, and '.*copy' is there already"):
            archive.backup(tmp_path / "copy")
        with Archive.open(tmp_path / "copy") as copy:
            assert copy.verify().ok
            assert (copy.ids, copy.get_note("k")) == (["a", "c"], [1])
            assert copy.vectors.tobytes() == archive.vectors.tobytes()
        next((tmp_path / "x" / "segments").iterdir()).write_bytes(b"")
        with pytest.raises(ArchiveCorrupt, match="cut short at 0 bytes"):
            archive.backup(tmp_path / "second")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "x"]


def test_a_snapshot_knows_since_when_each_row_is_there_and_gives_a_part_of_itself(tmp_path: Path) -> None:
    archive = Archive.create(tmp_path / "a", encoder_name="e", encoder_fingerprint="f", encoder_spec=None, dim=2)
    archive.add(["b", "d"], np.eye(2, dtype=np.float32), metadata=[{"n": 1}, {"n": 3}])
    first = archive.version
    archive.add(["a", "c"], np.full((2, 2), 2, dtype=np.float32), metadata=[{"n": 0}, {"n": 2}])
    archive.set_note("x", 1)  # the version grows, the rows are as old as they were
    archive.remove(ids=["d"], purge=True)
    held = archive.snapshot()
    assert (held.ids, held.since.tolist()) == (["a", "b", "c"], [first + 1, first, first + 1])
    part = held.take([2, 1])
    assert (part.ids, part.since.tolist(), part.version) == (["b", "c"], [first, first + 1], held.version)
    assert part.vectors.tolist() == held.vectors[1:].tolist() and not part.vectors.flags.writeable
    assert [row["n"] for row in part.metadata] == [1, 2] and part.positions == {"b": 0, "c": 1}
    assert len(held.take([])) == 0
