"""The store under fire: kills, full disks, damage, several writers; and what a purge leaves behind."""

from __future__ import annotations

import errno
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embeddings import database, segments, store
from embeddings.archive import Archive
from embeddings.errors import ArchiveCorrupt, ArchiveError, StorageFull

DIM = 16
BATCH = 4
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: a kill cannot tell, and each fsync costs nothing."""
    memory = Path("/dev/shm")
    if not (memory.is_dir() and os.access(memory, os.W_OK)):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(prefix="radshot-test-", dir=memory))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def make(folder: Path) -> Archive:
    return Archive.create(folder, encoder_name="fake", encoder_fingerprint="a" * 64, encoder_spec=None, dim=DIM)


def batch(number: int) -> tuple[list[str], np.ndarray, list[dict[str, Any]]]:
    rng = np.random.default_rng(number)
    ids = [f"image {number:04d}-{part}" for part in range(BATCH)]
    facts = [{"patient": f"patient {number % 5}", "text": f"{number}" * 40} for _ in ids]
    return ids, rng.normal(size=(BATCH, DIM)).astype(np.float32), facts


def fill(archive: Archive, first: int, last: int, said: Connection | None = None) -> None:
    for number in range(first, last):
        ids, vectors, facts = batch(number)
        archive.add(ids, vectors, metadata=facts)
        if said is not None:
            said.send(number)


def holds_whole_batches(archive: Archive) -> int:
    """Check every row against its batch, and that no batch is there in part; return the number of batches."""
    held = archive.snapshot()
    assert len(held) % BATCH == 0
    numbers = sorted({int(identity[6:10]) for identity in held.ids})
    assert len(held) == BATCH * len(numbers)
    for number in numbers:
        ids, vectors, facts = batch(number)
        for identity, vector, fact in zip(ids, vectors, facts, strict=True):
            place = held.positions[identity]
            np.testing.assert_array_equal(held.vectors[place], vector)
            assert held.metadata[place] == fact
    return len(numbers)


def child(work: Callable[[Connection], None], *, kill_after: float | None = None) -> tuple[list[Any], int | None]:
    """Run `work` in a forked process; return what it said before it ended or was killed, and its exit code."""
    here, there = FORK.Pipe(duplex=False)
    process = FORK.Process(target=work, args=(there,))
    process.start()
    there.close()
    if kill_after is not None:
        time.sleep(kill_after)
        os.kill(process.pid or 0, signal.SIGKILL)
    said = []
    try:
        while True:
            said.append(here.recv())
    except EOFError:
        pass
    process.join(60)
    return said, process.exitcode


def same_content(one: Archive, two: Archive) -> bool:
    a, b = one.snapshot(), two.snapshot()
    return (a.ids, a.metadata, a.hashes) == (b.ids, b.metadata, b.hashes) and a.vectors.tobytes() == b.vectors.tobytes()


# -- kills ------------------------------------------------------------------------------------------------------


def test_a_kill_at_any_time_loses_no_acknowledged_batch(quick_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "MAX_SMALL_SEGMENTS", 5)
    seed = 20_240
    rng = random.Random(seed)
    with make(quick_path / "whole") as whole:
        fill(whole, 0, 40)
        for trial in range(30):
            folder = quick_path / f"{trial}"

            def work(said: Connection, folder: Path = folder) -> None:
                with Archive.open(folder) if folder.exists() else make(folder) as archive:
                    fill(archive, 0, 40, said)

            said, _ = child(work, kill_after=rng.uniform(0.01, 0.15))
            with make(folder) as archive:
                batches = holds_whole_batches(archive)
                assert len(said) <= batches <= len(said) + 1, f"seed {seed}, trial {trial}"
                fill(archive, 0, 40)
                assert same_content(archive, whole), f"seed {seed}, trial {trial}"
                report = archive.verify()
                assert (report.ok, report.notes) == (True, ()), f"seed {seed}, trial {trial}"


def test_a_kill_at_every_fsync_rename_and_unlink(quick_path: Path) -> None:
    """The job: three batches, a removal, a merge of all segments, a purge; killed before and after each step."""
    step = 0
    finished = False
    while not finished:
        folder = quick_path / f"{step}"

        def work(said: Connection, folder: Path = folder, deadline: int = step) -> None:
            count = 0

            def counted(real: Callable[..., Any]) -> Callable[..., Any]:
                def call(*args: Any, **options: Any) -> Any:
                    nonlocal count
                    for moment in (0, 1):
                        if count == deadline:
                            os.kill(os.getpid(), signal.SIGKILL)
                        count += 1
                        if moment == 0:
                            answer = real(*args, **options)
                    return answer

                return call

            with make(folder) as archive:
                os.fsync = counted(os.fsync)
                Path.rename = counted(Path.rename)  # type: ignore[method-assign]
                Path.unlink = counted(Path.unlink)  # type: ignore[method-assign]
                store.MAX_SMALL_SEGMENTS = 2
                fill(archive, 0, 3, said)
                archive.remove(patient="patient 1")
                said.send("removed")
                archive.purge()
                said.send("done")

        said, code = child(work)
        finished = code == 0
        with Archive.open(folder) as archive:
            numbers = [word for word in said if isinstance(word, int)]
            removed = "removed" in said
            kept = holds_whole_batches(archive)
            if removed:
                assert kept == 2
            else:
                assert len(numbers) - 1 <= kept <= len(numbers) + 1
            assert archive.verify().ok
            fill(archive, 0, 4)
            assert archive.verify().notes == ()
            assert holds_whole_batches(archive) == 4
        shutil.rmtree(folder)
        step += 1
    assert step > 20


# -- a full disk ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [*range(0, 40_000, 4_000), *range(40_000, 240_000, 20_000)])
def test_a_full_disk_leaves_the_old_version_and_a_rerun_goes_on(quick_path: Path, budget: int) -> None:
    with make(quick_path / "x") as archive:
        fill(archive, 0, 3)

    def work(said: Connection) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (budget, resource.RLIM_INFINITY))
        try:
            with Archive.open(quick_path / "x") as archive:
                fill(archive, 3, 43, said)
        except StorageFull as error:
            said.send(str(error))
        except BaseException as error:
            said.send(repr(error))

    said, code = child(work)
    done = [word for word in said if isinstance(word, int)]
    assert code == 0
    if len(done) < 40:
        assert said[-1].startswith(f"The disk or quota of '{quick_path / 'x'}' is full ("), said[-1]
        assert said[-1].endswith("free some space and run the same again.")
    assert not list((quick_path / "x").rglob("*.tmp"))
    with Archive.open(quick_path / "x") as archive:
        assert 3 + len(done) <= holds_whole_batches(archive) <= 4 + len(done)
        assert archive.verify().ok
        fill(archive, 3, 43)
        assert holds_whole_batches(archive) == 43
        assert archive.verify().notes == ()


def test_a_disk_too_full_even_to_begin(tmp_path: Path) -> None:
    def work(said: Connection) -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        for budget in (0, 100, 5_000, 20_000, 40_000):
            resource.setrlimit(resource.RLIMIT_FSIZE, (budget, resource.RLIM_INFINITY))
            try:
                make(tmp_path / "x").close()
                said.send("made")
            except ArchiveError as error:
                said.send(type(error).__name__)

    said, code = child(work)
    assert code == 0
    assert said[0] == "StorageFull"
    assert set(said) <= {"StorageFull", "made"}
    with make(tmp_path / "x") as archive:
        fill(archive, 0, 1)
        assert archive.verify().ok


def test_a_merge_that_finds_no_space_does_not_fail_the_registration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "MAX_SMALL_SEGMENTS", 2)
    with make(tmp_path / "x") as archive:
        fill(archive, 0, 2)

        def full(*_: Any) -> None:
            raise StorageFull("full")

        monkeypatch.setattr(archive.store, "rewrite", full)
        ids, vectors, facts = batch(2)
        assert archive.add(ids, vectors, metadata=facts).added == tuple(ids)
        monkeypatch.undo()
        assert holds_whole_batches(archive) == 3


def test_a_segment_goes_with_its_failed_transaction_but_not_with_a_failed_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames of a failed COMMIT may be found again by a recovery: their segment must still be there then."""
    folder = tmp_path / "x" / "segments"
    with make(tmp_path / "x") as archive:
        fill(archive, 0, 1)
        ids, vectors, facts = batch(1)
        whole = database.transaction

        @contextmanager
        def broken(connection: sqlite3.Connection, *, write: bool) -> Iterator[None]:
            with whole(connection, write=write):
                yield
                if write and at_commit:
                    raise OSError(errno.ENOSPC, "No space left on device")

        def never(*_: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(store, "transaction", broken)
        at_commit = True
        with pytest.raises(StorageFull, match="No space left on device"):
            archive.add(ids, vectors, metadata=facts)
        assert len(list(folder.iterdir())) == 2
        at_commit = False
        fill(archive, 2, 3)
        assert len(list(folder.iterdir())) == 2
        monkeypatch.setattr(archive.store, "_insert", never)
        with pytest.raises(StorageFull):
            archive.add(ids, vectors, metadata=facts)
        assert len(list(folder.iterdir())) == 2
        monkeypatch.undo()
        assert holds_whole_batches(archive) == 2


# -- several processes ------------------------------------------------------------------------------------------


def test_four_processes_register_at_once_and_lose_nothing(tmp_path: Path) -> None:
    make(tmp_path / "x").close()

    def work(first: int, said: Connection) -> None:
        store.MAX_SMALL_SEGMENTS = 6
        with Archive.open(tmp_path / "x") as archive:
            fill(archive, first, first + 25, said)

    pipes = [FORK.Pipe(duplex=False) for _ in range(4)]
    processes = [FORK.Process(target=work, args=(25 * n, there)) for n, (_, there) in enumerate(pipes)]
    for process in processes:
        process.start()
    with Archive.open(tmp_path / "x") as reader:
        last = versions = 0
        while any(process.is_alive() for process in processes):
            holds_whole_batches(reader)
            versions += reader.snapshot().version != last
            assert reader.snapshot().version >= last
            last = reader.snapshot().version
        for process in processes:
            process.join()
        assert [process.exitcode for process in processes] == [0] * 4
        assert versions > 5
        assert holds_whole_batches(reader) == 100
        assert reader.verify().ok
        assert reader.stats()["segments"] < 25


def test_a_forked_child_gets_a_connection_of_its_own(tmp_path: Path) -> None:
    with make(tmp_path / "x") as archive:
        fill(archive, 0, 1)

        def work(said: Connection) -> None:
            fill(archive, 1, 2)
            said.send(holds_whole_batches(archive))

        assert child(work) == ([2], 0)
        assert holds_whole_batches(archive) == 2


def test_a_reader_starts_again_when_segments_are_merged_under_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with make(tmp_path / "x") as writer, Archive.open(tmp_path / "x") as reader:
        fill(writer, 0, 3)
        real = reader.store.read
        merged: list[int] = []

        def read(segment: segments.Segment) -> Any:
            if not merged:
                with writer.store.reading() as connection:
                    every = writer.store.segments(connection)
                writer.store.rewrite(every)
                merged.append(len(every))
            return real(segment)

        monkeypatch.setattr(reader.store, "read", read)
        assert holds_whole_batches(reader) == 3
        assert merged == [3]
        assert reader.snapshot().version == writer.version


def test_many_small_segments_become_one(tmp_path: Path) -> None:
    with make(tmp_path / "x") as archive:
        fill(archive, 0, store.MAX_SMALL_SEGMENTS)
        assert archive.stats()["segments"] == store.MAX_SMALL_SEGMENTS
        before = archive.snapshot()
        fill(archive, store.MAX_SMALL_SEGMENTS, store.MAX_SMALL_SEGMENTS + 1)
        assert archive.stats()["segments"] == len(list((tmp_path / "x" / "segments").iterdir())) == 1
        assert holds_whole_batches(archive) == store.MAX_SMALL_SEGMENTS + 1
        assert len(before) == BATCH * store.MAX_SMALL_SEGMENTS


# -- damage -----------------------------------------------------------------------------------------------------


def damage(content: bytes, rng: random.Random) -> bytes:
    spot = rng.randrange(len(content))
    kind = rng.choice(["flip", "flip", "cut", "zero", "noise", "grow"])
    if kind == "cut":
        return content[:spot]
    if kind == "grow":
        return content + b"\0" * rng.randrange(1, 5000)
    if kind == "flip":
        return content[:spot] + bytes([content[spot] ^ 1 << rng.randrange(8)]) + content[spot + 1 :]
    page = spot // 512 * 512
    new = b"\0" * 512 if kind == "zero" else rng.randbytes(512)
    return (content[:page] + new + content[page + 512 :])[: len(content)]


@pytest.mark.parametrize("kind", ["database", "segment"])
def test_no_damage_goes_unnoticed(quick_path: Path, kind: str) -> None:
    with make(quick_path / "x") as archive:
        fill(archive, 0, 28)
        archive.remove(ids=batch(3)[0])
        archive.set_note("k", {"v": "w" * 300})
        truth = archive.snapshot()
    file = quick_path / "x" / database.DATABASE_NAME
    if kind == "segment":
        file = sorted((quick_path / "x" / "segments").iterdir())[5]
    good = file.read_bytes()
    seed = 7
    rng = random.Random(seed)
    noticed = 0
    for trial in range(200):
        file.write_bytes(damage(good, rng))
        try:
            with Archive.open(quick_path / "x") as archive:
                held = archive.snapshot()
                same = (held.ids, held.hashes, held.metadata) == (truth.ids, truth.hashes, truth.metadata)
                assert same and held.vectors.tobytes() == truth.vectors.tobytes(), f"seed {seed}, trial {trial}"
                assert archive.get_note("k") == {"v": "w" * 300}, f"seed {seed}, trial {trial}"
                assert len(archive.store.remove(patients={"patient 4"})[0]) == 5 * BATCH
        except ArchiveError as error:
            assert "\n" not in str(error)
            noticed += 1
        for suffix in ("-wal", "-shm"):
            file.with_name(file.name + suffix).unlink(missing_ok=True)
    file.write_bytes(good)
    # Bytes SQLite does not use may change unnoticed; nothing that is handed out may.
    assert noticed > 100 if kind == "database" else noticed == 200, noticed
    with Archive.open(quick_path / "x") as archive:
        assert archive.snapshot().ids == truth.ids


def test_damage_is_named_and_verify_finds_all_of_it(tmp_path: Path) -> None:
    with make(tmp_path / "x") as archive:
        fill(archive, 0, 4)
        one, two, three, four = sorted((tmp_path / "x" / "segments").iterdir())
        content = bytearray(one.read_bytes())
        content[-1] ^= 1
        one.write_bytes(content)
        two.unlink()
        swapped = three.read_bytes()
        three.write_bytes(four.read_bytes())
        four.write_bytes(swapped)
        (tmp_path / "x" / "segments" / f"seg-{'0' * 32}.f32").write_bytes(b"orphan")
        (tmp_path / "x" / "segments" / f"seg-{'0' * 32}.f32.tmp").write_bytes(b"draft")
        report = archive.verify()
        text = "\n".join(report.problems)
        assert not report.ok
        assert f"Segment {one.name} does not match its recorded SHA-256." in text
        assert f"Segment '{two.name}' is missing." in text
        assert f"Segment {three.name} does not match" in text
        assert text.count("The vector of row") == 1 + 2 * BATCH
        assert (len(report.notes), report.segments, report.rows) == (2, 4, 4 * BATCH)
    with (
        Archive.open(tmp_path / "x") as archive,
        pytest.raises(ArchiveCorrupt, match=r"segment '.*seg-.*radshot verify"),
    ):
        archive.snapshot()


@pytest.mark.parametrize("statement", [
    "UPDATE rows SET metadata = '{}' WHERE id = 'image 0001-0'",
    "UPDATE rows SET patient = 'other' WHERE id = 'image 0001-0'",
    "UPDATE rows SET position = position + 9, row_crc = row_crc WHERE id = 'image 0001-0'",
    "DELETE FROM rows WHERE id = 'image 0001-0'",
    "UPDATE archive SET value = 'x' WHERE key = 'digest'",
    "UPDATE archive SET value = 'x' WHERE key = 'version'",
    "UPDATE segments SET sha256 = 'x'",
    "UPDATE segments SET rows = rows + 1",
    "UPDATE segments SET name = '../../../etc/passwd' WHERE key = 1",
    "UPDATE notes SET value = '[2]'",
    "UPDATE archive SET value = 'b' WHERE key = 'encoder_fingerprint'",
    "DELETE FROM archive WHERE key = 'dim'",
    "DROP TABLE rows",
])  # fmt: skip
def test_a_database_changed_behind_its_back_is_corrupt(tmp_path: Path, statement: str) -> None:
    with make(tmp_path / "x") as archive:
        fill(archive, 0, 3)
        archive.set_note("k", [1])
    connection = sqlite3.connect(tmp_path / "x" / database.DATABASE_NAME)
    connection.execute(statement)
    connection.commit()
    connection.close()
    with pytest.raises(ArchiveCorrupt, match="radshot verify"), Archive.open(tmp_path / "x") as archive:
        assert not archive.verify().ok
        archive.get_note("k")
        archive.snapshot()


def test_a_database_that_is_none(tmp_path: Path) -> None:
    with make(tmp_path / "x") as archive:
        fill(archive, 0, 1)
    file = tmp_path / "x" / database.DATABASE_NAME
    file.write_bytes(b"")
    with pytest.raises(
        ArchiveCorrupt, match="is empty although vectors are stored beside it: restore it from a backup"
    ):
        Archive.open(tmp_path / "x")
    file.write_text("no database at all, but long enough to look like one" * 20)
    with pytest.raises(
        ArchiveCorrupt, match=r"archive.sqlite' is damaged \(file is not a database\): run `radshot verify`"
    ):
        Archive.open(tmp_path / "x")


# -- format -----------------------------------------------------------------------------------------------------


def test_an_older_format_is_lifted_and_a_newer_one_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with make(tmp_path / "x") as archive:
        fill(archive, 0, 2)
        truth = archive.snapshot()
    monkeypatch.setattr(database, "FORMAT_VERSION", 4)
    with pytest.raises(ArchiveError, match="has format 3, which no migration of this version reads"):
        Archive.open(tmp_path / "x")

    def breaks(connection: sqlite3.Connection) -> None:
        connection.execute("ALTER TABLE files ADD COLUMN half_done TEXT")
        raise sqlite3.IntegrityError("the step fails")

    monkeypatch.setitem(database.MIGRATIONS, 3, breaks)
    with pytest.raises(ArchiveError, match="refused: the step fails"):
        Archive.open(tmp_path / "x")
    monkeypatch.setitem(
        database.MIGRATIONS, 3, lambda connection: connection.execute("ALTER TABLE files ADD COLUMN stage TEXT")
    )
    with Archive.open(tmp_path / "x") as archive:
        assert archive.snapshot().ids == truth.ids
        assert archive.vectors.tobytes() == truth.vectors.tobytes()
        assert archive.stats()["format"] == 4
        with archive.store.reading() as connection:
            assert [row[1] for row in connection.execute("PRAGMA table_info(files)")][-1] == "stage"
            assert [row[0] for row in connection.execute("SELECT to_format FROM migrations")] == [4]
    monkeypatch.undo()
    with pytest.raises(
        ArchiveError, match="has format 4, written by a newer radshot; this one reads up to format 3: upgrade"
    ):
        Archive.open(tmp_path / "x")


@pytest.mark.parametrize(
    ("metadata", "kind"),
    [
        ([], "archive"),
        ([{"label": "x", "registered_at": "2024-01-01", "pixels": "0"}], "archive"),
        ([{"label": "x", "registered_at": "2024-01-01", "encoder": "e"}], "comparison set"),
        ([{"label": "x", "registered_at": "2024-01-01", "encoder": "e"}, {"registered_at": "2024-01-01"}], "archive"),
    ],
)
def test_a_store_of_format_1_learns_its_kind_once(tmp_path: Path, metadata: list[dict[str, Any]], kind: str) -> None:
    with make(tmp_path / "x") as archive:
        ids = [str(number) for number in range(len(metadata))]
        archive.add(ids, np.ones((len(ids), DIM), dtype=np.float32), metadata=metadata)
        with archive.store.reading() as connection:
            connection.execute("DELETE FROM archive WHERE key = 'kind'")
            old = database.facts_crc(database.facts(connection))
            connection.execute("UPDATE archive SET value = ? WHERE key = 'crc'", (old,))
            for column in ("live", "changed"):
                connection.execute(f"ALTER TABLE segments DROP COLUMN {column}")
            connection.execute("UPDATE archive SET value = '1' WHERE key = 'format'")
    with Archive.open(tmp_path / "x") as archive:
        assert (archive.kind, archive.ids) == (kind, ids)
        assert archive.stats()["format"] == 3
        if ids:
            archive.remove(ids=ids, purge=True)
    with Archive.open(tmp_path / "x") as archive:
        assert (archive.kind, archive.verify().ok) == (kind, True)


def test_a_store_of_format_2_learns_how_many_rows_are_live(tmp_path: Path) -> None:
    with make(tmp_path / "x") as archive:
        archive.add(["a", "b", "c"], np.eye(3, DIM, dtype=np.float32))
        archive.remove(ids=["b"])
        archive.add(["d"], np.ones((1, DIM), dtype=np.float32))
        with archive.store.reading() as connection:
            for column in ("live", "changed"):
                connection.execute(f"ALTER TABLE segments DROP COLUMN {column}")
            connection.execute("UPDATE archive SET value = '2' WHERE key = 'format'")
    with Archive.open(tmp_path / "x") as archive:
        with archive.store.reading() as connection:
            assert [(one.rows, one.live) for one in archive.store.segments(connection)] == [(3, 2), (1, 1)]
        assert archive.ids == ["a", "c", "d"]
        assert archive.verify().ok


def test_a_wrong_count_of_live_rows_is_found(tmp_path: Path) -> None:
    with make(tmp_path / "x") as archive:
        archive.add(["a", "b"], np.eye(2, DIM, dtype=np.float32))
        with archive.store.reading() as connection:
            connection.execute("UPDATE segments SET live = 1")
        (problem,) = archive.verify().problems
        assert "has 2 live rows, its record says 1" in problem


def test_a_creation_cut_short_is_no_archive_and_can_be_repeated(tmp_path: Path) -> None:
    (tmp_path / "x" / "segments").mkdir(parents=True)
    database.connect(tmp_path / "x" / database.DATABASE_NAME, create=True).close()
    with pytest.raises(ArchiveError, match="There is no archive at"):
        Archive.open(tmp_path / "x")
    with make(tmp_path / "x") as archive:
        fill(archive, 0, 1)


# -- purge ------------------------------------------------------------------------------------------------------


def find_bytes(folder: Path, wanted: list[bytes]) -> list[tuple[str, bytes]]:
    return [
        (path.name, needle)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
        for needle in wanted
        if needle in path.read_bytes()
    ]


def test_a_purge_leaves_no_byte_of_a_patient(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, DIM)).astype(np.float32)
    ids = [f"1.2.840.{number}.99" for number in range(40)]
    facts = [{"patient": "CANARY^NAME" if n % 5 == 0 else f"p{n}", "path": f"/scans/{ids[n]}"} for n in range(40)]
    canaries = [
        b"CANARY",
        *(ids[n].encode() for n in range(0, 40, 5)),
        *(vectors[n].tobytes() for n in range(0, 40, 5)),
    ]
    with make(tmp_path / "x") as archive:
        for n in range(40):
            archive.add(ids[n : n + 1], vectors[n : n + 1], metadata=facts[n : n + 1])
        with archive.store.reading() as connection, database.transaction(connection, write=True):
            connection.execute("INSERT INTO files VALUES ('/scans/CANARY/1', 1, 1, 'h', ?)", (ids[0],))
            connection.execute("INSERT INTO quarantine VALUES ('/CANARY', 'r', 's', NULL, 'CANARY^NAME', 't')")
            connection.execute("INSERT INTO quarantine VALUES ('/CANARY2', 'r', 's', ?, NULL, 't')", (ids[5],))
        assert {needle for _, needle in find_bytes(tmp_path / "x", canaries)} == set(canaries)
        rest = [identity for n, identity in enumerate(ids) if n % 5]
        assert len(archive.remove(patient="CANARY^NAME")) == 8
        assert archive.ids == sorted(rest)
        report = archive.purge()
        assert report.rows == 8
        assert find_bytes(tmp_path / "x", canaries) == []
        assert archive.ids == sorted(rest)
        for identity, vector in zip(archive.ids, archive.vectors, strict=True):
            np.testing.assert_array_equal(vector, vectors[ids.index(identity)])
        assert archive.verify().ok
        assert archive.purge().segments == 0
        last = archive.remove(ids=rest, purge=True)
        assert len(last) == 32
        assert list((tmp_path / "x" / "segments").iterdir()) == []
        assert find_bytes(tmp_path / "x", [b"1.2.840"]) == []
        fill(archive, 0, 1)
