"""Trials of the store: kills, clients that search while others write, damaged side files, and power loss by replay."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from embeddings import Archive, ArchiveError, Index

SCALE = float(os.environ.get("RADSHOT_SOAK_SCALE", "1.0"))
"""Share of the long trials' sizes that is run."""

DIM = 16
BATCH = 4
FORK = multiprocessing.get_context("fork")

JOB = """
import sys
import numpy as np
from embeddings import Archive
DIM, BATCH = {dim}, {batch}
with Archive.create(sys.argv[1], encoder_name="fake", encoder_fingerprint="a" * 64, encoder_spec=None, dim=DIM) as held:
    for number in range(int(sys.argv[2])):
        rng = np.random.default_rng(number)
        ids = [f"image {{number:04d}}-{{part}}" for part in range(BATCH)]
        held.add(ids, rng.normal(size=(BATCH, DIM)).astype(np.float32))
        sys.stdout.write(f"ack {{number}}\\n")
        sys.stdout.flush()
"""


def sizes(small: int, soak: int) -> list[Any]:
    """One trial in two sizes."""
    return [small, pytest.param(max(1, int(soak * SCALE)), marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]


def make(folder: Path) -> Archive:
    return Archive.create(folder, encoder_name="fake", encoder_fingerprint="a" * 64, encoder_spec=None, dim=DIM)


def batch(number: int) -> tuple[list[str], np.ndarray]:
    ids = [f"image {number:04d}-{part}" for part in range(BATCH)]
    return ids, np.random.default_rng(number).normal(size=(BATCH, DIM)).astype(np.float32)


def whole_batches(archive: Archive) -> set[int]:
    """Check every row; return the numbers of the batches, none of which is there in part."""
    held = archive.snapshot()
    numbers = {int(identity[6:10]) for identity in held.ids}
    assert len(held) == BATCH * len(numbers)
    for number in numbers:
        for identity, vector in zip(*batch(number), strict=True):
            np.testing.assert_array_equal(held.vectors[held.positions[identity]], vector)
    return numbers


@pytest.mark.parametrize("kills", sizes(5, 1000))
def test_r1_kills_at_random_times(tmp_path: Path, kills: int) -> None:
    seed = 11
    rng = random.Random(seed)
    acknowledged = 0

    def work(folder: Path, said: Any) -> None:
        with make(folder) as archive:
            for number in range(40):
                archive.add(*batch(number))
                said.send(number)

    for trial in range(kills):
        folder = tmp_path / f"{trial}"
        here, there = FORK.Pipe(duplex=False)
        process = FORK.Process(target=work, args=(folder, there))
        process.start()
        there.close()
        time.sleep(rng.uniform(0.005, 0.25))
        os.kill(process.pid or 0, signal.SIGKILL)
        said = set()
        try:
            while True:
                said.add(here.recv())
        except EOFError:
            pass
        process.join()
        acknowledged += len(said)
        with make(folder) as archive:
            there_now = whole_batches(archive)
            assert said <= there_now and len(there_now) <= len(said) + 1, f"seed {seed}, trial {trial}"
            for number in range(40):
                archive.add(*batch(number))
            assert whole_batches(archive) == set(range(40))
            assert archive.verify().ok, f"seed {seed}, trial {trial}"
        shutil.rmtree(folder)
    sys.stdout.write(f"R1: seed {seed}, {kills} kills, {acknowledged} acknowledged batches, none lost\n")


def test_r1_a_creation_killed_at_any_write_can_be_repeated(tmp_path: Path) -> None:
    """SQLite's own journal of the switch to write-ahead logging may be left behind: it is no stranger's file."""
    (tmp_path / "x" / "segments").mkdir(parents=True)
    (tmp_path / "x" / "archive.sqlite").touch()
    (tmp_path / "x" / "archive.sqlite-journal").write_bytes(bytes(512))
    with make(tmp_path / "x") as archive:
        archive.add(*batch(0))
        assert whole_batches(archive) == {0}
        assert archive.verify().ok


def traced(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run the job of six batches under strace."""
    job = [sys.executable, "-B", "-c", JOB.format(dim=DIM, batch=BATCH), str(folder), "6"]
    done = subprocess.run(["strace", "-f", *options, *job], capture_output=True, text=True, check=False)
    if "ptrace" in done.stderr.lower():
        pytest.skip("this machine does not let a process be traced")
    return done


@pytest.mark.parametrize("kills", sizes(16, 400))
def test_r1_kills_at_every_nth_system_call(tmp_path: Path, kills: int) -> None:
    """The calls of a whole job are counted once; then it is killed at calls spread over all of it."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: no system call can be made to kill")
    calls = ("pwrite64", "write", "fsync", "fdatasync", "rename", "unlink", "ftruncate")
    whole = traced(tmp_path / "whole", "-o", str(tmp_path / "trace"), "-e", f"trace={','.join(calls)}")
    assert whole.returncode == 0, whole.stderr
    made = [line.split(maxsplit=1)[1].split("(")[0] for line in (tmp_path / "trace").read_text().splitlines()]
    moments = [(call, turn) for call in calls for turn in range(1, made.count(call) + 1)]
    assert len(moments) > 60
    seed = 13
    rng = random.Random(seed)
    chosen = (rng.sample(moments, len(moments)) * (kills // len(moments) + 1))[:kills]
    killed = amid = 0
    for trial, (call, turn) in enumerate(chosen):
        folder = tmp_path / f"{trial}"
        inject = f"inject={call}:signal=KILL:when={turn}"
        done = traced(folder, "-o", os.devnull, "-e", f"trace={call}", "-e", inject)
        where = f"seed {seed}, {call} number {turn}"
        assert done.returncode in (0, -signal.SIGKILL), f"{where}: {done.stderr}"
        said = done.stdout.count("\n")
        killed += done.returncode != 0
        amid += done.returncode != 0 and said > 0
        with make(folder) as archive:
            numbers = whole_batches(archive)
            assert said <= len(numbers) <= said + 1, where
            for number in range(6):
                archive.add(*batch(number))
            assert whole_batches(archive) == set(range(6))
            assert archive.verify().ok, where
        shutil.rmtree(folder)
    assert killed > 3 * kills // 4 and amid > kills // 4  # amid: after the first batch was acknowledged
    sys.stdout.write(
        f"R1 calls: seed {seed}, {kills} of {len(moments)} calls, {killed} killed, {amid} amid the job, nothing lost\n"
    )


WRITES_AMID = 24
"""Writes that must have happened before the readers stop: a machine may let them read much before anything changes."""


@pytest.mark.parametrize("answers", sizes(2000, 100_000))
def test_r2_r3_every_answer_is_that_of_its_version(tmp_path: Path, answers: int) -> None:
    """8 writers and 56 readers; every write's version is noted under the lock, every answer checked afterwards."""
    make(tmp_path / "x").close()
    queries = np.random.default_rng(999).normal(size=(32, DIM)).astype(np.float32)
    log: dict[int, tuple[str, int]] = {}
    seen: list[tuple[int, int, list[str]]] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def guarded(work: Callable[[int], None], number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)
            stop.set()

    def write(writer: int) -> None:
        rng = random.Random(writer)
        mine: list[int] = []
        with Archive.open(tmp_path / "x") as archive:
            for turn in range(1000):
                if stop.is_set():
                    return
                with archive.writing():
                    # A merge that follows within the same call is a version of its own, with the same rows.
                    version = archive.version + 1
                    if len(mine) > 6:
                        number = mine.pop(rng.randrange(len(mine)))
                        archive.remove(ids=batch(number)[0])
                        log[version] = ("remove", number)
                    else:
                        number = writer * 1000 + turn
                        mine.append(number)
                        archive.add(*batch(number))
                        log[version] = ("add", number)
                time.sleep(0.02)

    def read(reader: int) -> None:
        rng = random.Random(reader)
        with Archive.open(tmp_path / "x") as archive:
            index = Index(archive)
            while not stop.is_set():
                query = rng.randrange(len(queries))
                found = index.search(queries[query : query + 1], 5)
                seen.append((found.version, query, found.ids[0]))
                if len(seen) >= answers and len(log) >= WRITES_AMID:
                    stop.set()

    threads = [threading.Thread(target=guarded, args=(write, n)) for n in range(8)]
    threads += [threading.Thread(target=guarded, args=(read, n)) for n in range(56)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    live: set[int] = set()
    expected: dict[int, list[list[str]]] = {}
    wanted = {version for version, _, _ in seen}
    unit = queries.astype(np.float64) / np.linalg.norm(queries.astype(np.float64), axis=1, keepdims=True)
    for version in range(max(wanted) + 1):
        kind, number = log.get(version, ("", 0))
        live = live | {number} if kind == "add" else live - {number} if kind == "remove" else live
        if version in wanted:
            ids = [identity for n in sorted(live) for identity in batch(n)[0]]
            rows = np.concatenate([np.empty((0, DIM)), *(batch(n)[1] for n in sorted(live))]).astype(np.float64)
            cosines = unit @ (rows / np.linalg.norm(rows, axis=1, keepdims=True)).T
            expected[version] = [[ids[at] for at in np.argsort(-row, kind="stable")[:5]] for row in cosines]
    wrong = [one for one in seen if expected[one[0]][one[1]] != one[2]]
    assert wrong == []
    assert len(wanted) > 5
    with Archive.open(tmp_path / "x") as archive:
        assert archive.verify().ok
    sys.stdout.write(f"R2/R3: {len(seen)} answers over {len(wanted)} versions, {len(log)} writes, all right\n")


@pytest.mark.parametrize("mutations", sizes(200, 5000))
def test_r6_a_damaged_log_gives_no_wrong_answer(tmp_path: Path, mutations: int) -> None:
    """A log that survives a crash is damaged: what opens holds whole batches, oldest first, or says it is damaged."""
    source = tmp_path / "source"
    held = make(source)
    for number in range(12):
        held.add(*batch(number))
    folder = tmp_path / "x"
    seed = 5
    rng = random.Random(seed)
    log = (source / "archive.sqlite-wal").read_bytes()
    noticed = shorter = 0
    assert len(log) > 10_000
    for trial in range(mutations):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*-shm", "*.lock"))
        changed = bytearray(log)
        at = rng.randrange(len(log))
        kind = rng.choice(["flip", "cut", "zero"])
        if kind == "flip":
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == "cut":
            del changed[at:]
        else:
            changed[at : at + 512] = bytes(len(changed[at : at + 512]))
        (folder / "archive.sqlite-wal").write_bytes(changed)
        try:
            with Archive.open(folder) as archive:
                numbers = whole_batches(archive)
                assert numbers == set(range(len(numbers))), f"seed {seed}, trial {trial}"
                shorter += len(numbers) < 12
        except ArchiveError as error:
            assert "\n" not in str(error)
            noticed += 1
    held.close()
    assert shorter + noticed > mutations // 2
    sys.stdout.write(
        f"R6 log: seed {seed}, {mutations} mutations, {noticed} named, {shorter} served an older version\n"
    )


# -- power loss -------------------------------------------------------------------------------------------------


@dataclass
class File:
    """What a file surely holds, and the writes since its last fsync; each may be lost (None: a truncation)."""

    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def content(self, keep: Callable[[], bool]) -> bytes:
        held = bytearray(self.durable)
        for at, data in self.pending:
            if not keep():
                continue
            if data is None:
                held[at:] = bytes(max(0, at - len(held)))
            else:
                held.extend(bytes(max(0, at - len(held))))
                held[at : at + len(data)] = data
        return bytes(held)


class Disk:
    """A disk that keeps what was synced, and of the rest whatever chance keeps; entries of a folder keep order."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.names: dict[str, File] = {}
        self.durable: dict[str, File] = {}
        self.entries: list[tuple[str, File | None]] = []
        self.spots: dict[tuple[str, int], int] = {}
        self.acknowledged = 0

    def entry(self, path: str, file: File | None) -> None:
        self.entries.append((path, file))
        if file is None:
            self.names.pop(path, None)
        else:
            self.names[path] = file

    def sync(self, path: str) -> None:
        file = self.names.get(path)
        if file is not None:
            file.durable, file.pending = file.content(lambda: True), []
            return
        for name, entry in [one for one in self.entries if os.path.dirname(one[0]) == path]:  # noqa: PTH120
            self.durable.pop(name, None)
            if entry is not None:
                self.durable[name] = entry
        self.entries = [one for one in self.entries if os.path.dirname(one[0]) != path]  # noqa: PTH120

    def crash(self, to: Path, rng: random.Random) -> None:
        """Write what is left after the power fails now."""
        share = rng.choice([0.0, 0.5, 1.0])
        names = dict(self.durable)
        for path, file in self.entries[: rng.randrange(len(self.entries) + 1)]:
            names.pop(path, None)
            if file is not None:
                names[path] = file
        (to / "segments").mkdir(parents=True)
        for path, file in names.items():
            if not path.endswith("-shm"):
                (to / path[len(self.root) + 1 :]).write_bytes(file.content(lambda: rng.random() < share))


CALL = re.compile(r"^\d+\s+(\w+)\((.*)\)\s+= (-?\d+)")
TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
DESCRIPTOR = re.compile(r"^(\d+)<([^>]*)>")


def unhex(text: str) -> bytes:
    return bytes.fromhex(text.replace("\\x", "")) if text.startswith("\\x") else text.encode()


def replay(disk: Disk, line: str) -> bool:
    """Take over one traced call; return whether it concerned the archive."""
    match = CALL.match(line)
    if match is None or match[3].startswith("-"):
        return False
    call, arguments, answer = match[1], match[2], int(match[3])
    texts = [unhex(text) for text in TEXT.findall(arguments)]
    spot = DESCRIPTOR.match(arguments)
    path = unhex(spot[2]).decode() if spot else ""
    if call == "write" and texts and texts[0].startswith(b"ack "):
        disk.acknowledged += 1
        return True
    if call in ("openat", "unlink", "rename"):
        path = texts[0].decode()
    if not path.startswith(disk.root):
        return False
    if call == "openat":
        if "O_CREAT" in arguments and path not in disk.names:
            disk.entry(path, File())
        elif "O_TRUNC" in arguments:
            disk.names[path].pending.append((0, None))
        disk.spots[path, answer] = 0
    elif call == "rename":
        file = disk.names[path]
        disk.entry(path, None)
        disk.entry(texts[1].decode(), file)
    elif call == "unlink":
        disk.entry(path, None)
    elif call in ("fsync", "fdatasync"):
        disk.sync(path)
    elif path in disk.names:
        file = disk.names[path]
        if call == "pwrite64":
            file.pending.append((int(arguments.rsplit(",", 1)[1]), texts[0][:answer]))
        elif call == "ftruncate":
            file.pending.append((int(arguments.rsplit(",", 1)[1]), None))
        elif call == "write":
            at = disk.spots.get((path, int(spot[1] if spot else 0)), 0)
            file.pending.append((at, texts[0][:answer]))
            disk.spots[path, int(spot[1] if spot else 0)] = at + answer
    return True


@pytest.mark.parametrize("crashes", sizes(150, 5000))
def test_r7_power_loss_keeps_every_acknowledged_batch(tmp_path: Path, crashes: int) -> None:
    """The job's system calls are recorded once; then the power fails after each of them, on a disk that forgets."""
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed: no trace of writes can be recorded")
    root, trace = tmp_path / "x", tmp_path / "trace"
    calls = "openat,write,pwrite64,fsync,fdatasync,ftruncate,rename,unlink"
    strace = ["strace", "-f", "-y", "-xx", "-s", "10000000", "-o", str(trace), "-e", f"trace={calls}"]
    job = [sys.executable, "-c", JOB.format(dim=DIM, batch=BATCH), str(root), "12"]
    done = subprocess.run([*strace, *job], capture_output=True, text=True, check=False)
    if "ptrace" in done.stderr.lower():
        pytest.skip("this machine does not let a process be traced")
    assert done.returncode == 0, done.stderr
    lines = trace.read_text().splitlines()
    disk = Disk(str(root))
    moments = [number for number, line in enumerate(lines) if replay(disk, line)]
    assert disk.acknowledged == 12
    assert len(moments) > 60
    # The recorder itself: with nothing forgotten, the replayed disk is the real one.
    for path, file in disk.names.items():
        if not path.endswith("-shm"):
            assert file.content(lambda: True) == Path(path).read_bytes(), path
    seed = 3
    rng = random.Random(seed)
    kept = unmade = 0
    per_moment = max(1, crashes // len(moments))
    chosen = set(moments if crashes >= len(moments) else rng.sample(moments, crashes))
    disk = Disk(str(root))
    for number, line in enumerate(lines):
        replay(disk, line)
        for trial in range(per_moment if number in chosen else 0):
            folder = tmp_path / "after"
            shutil.rmtree(folder, ignore_errors=True)
            disk.crash(folder, rng)
            where = f"seed {seed}, call {number}, trial {trial}: {line[:80]}"
            try:
                with Archive.open(folder) as archive:
                    numbers = whole_batches(archive)
                    assert set(range(disk.acknowledged)) <= numbers, where
                    assert archive.verify().ok, where
                    kept += 1
            except ArchiveError as error:
                assert disk.acknowledged == 0, f"{where}: {error}"
                unmade += 1
    assert kept > unmade
    sys.stdout.write(
        f"R7: seed {seed}, {len(moments)} calls, {kept + unmade} power losses, {unmade} before the first\n"
    )
