"""Trials of the promises: registering at once, full disks, damaged caches, one row, erasure, mismatches, memory."""

from __future__ import annotations

import ast
import io
import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from embeddings import (
    Archive,
    ArchiveError,
    ArchiveLocked,
    Deidentifier,
    EncoderError,
    EncoderMismatch,
    ImageError,
    Index,
    embed_archive,
    embed_volumes,
    load_encoder,
)
from embeddings import index as index_module
from embeddings import large_search as large_module
from embeddings import maintenance as maintenance_module
from embeddings import merging as merging_module
from embeddings import view as view_module
from embeddings.quantised import codes_path, read_codes
from fewshot import ComparisonSet, NeighborClassifier, PrototypeClassifier

SCALE = float(os.environ.get("RADSHOT_SOAK_SCALE", "1.0"))
"""Share of the long trials' sizes that is run."""

DIM = 16
ENCODER = load_encoder("pixels-8")
KEY = bytes(range(7, 71))
GROWTH = 1.1
"""Resident memory of a large job over that of a small one, at most."""

BYTES_PER_IMAGE = 2048
"""What an ingest may keep of an image until it ends: its path, its id, and where it is; the files are larger."""


def sizes(small: int, soak: int) -> list[Any]:
    """One trial in two sizes."""
    return [small, pytest.param(max(1, int(soak * SCALE)), marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]


def make(folder: Path, dim: int = DIM) -> Archive:
    return Archive.create(folder, encoder_name="fake", encoder_fingerprint="a" * 64, encoder_spec=None, dim=dim)


def png(path: Path, seed: int, side: int = 24) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG", compress_level=1)
    return path


def dicom(path: Path, seed: int, **changes: Any) -> Path:
    uid = changes.pop("uid", f"1.2.840.99999.{1000 + seed}")  # of one length, so that none is the beginning of another
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = uid
    meta.TransferSyntaxUID = changes.pop("syntax", ExplicitVRLittleEndian)
    one = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    one.SOPClassUID, one.SOPInstanceUID = meta.MediaStorageSOPClassUID, uid
    one.PatientID, one.Modality = "patient", "CR"
    one.Rows = one.Columns = 24
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 12, 11, 0
    one.PixelData = np.random.default_rng(seed).integers(0, 4096, (24, 24), dtype=np.uint16).tobytes()
    for name, value in changes.items():
        setattr(one, name, value)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, one, enforce_file_format=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(stream.getvalue())
    return path


def embed(source: Any, archive: Path, **options: Any) -> Any:
    return embed_archive(source, options.pop("encoder", ENCODER), archive, workers=0, progress=False, **options)


def brute(vectors: dict[str, NDArray[np.float32]], query: NDArray[np.float32], k: int) -> list[str]:
    """Every cosine in float64, best first."""
    ids = sorted(vectors)
    rows = np.stack([vectors[one] for one in ids]).astype(np.float64)
    wide = query.astype(np.float64)
    cosines = rows @ wide / np.linalg.norm(rows, axis=1) / np.linalg.norm(wide)
    return [ids[at] for at in np.argsort(-cosines, kind="stable")[:k]]


def searched_by_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a hundred rows be searched as a large archive is: by codes in a file, with few candidates."""
    monkeypatch.setattr(index_module, "LARGE_ROWS", 50)
    monkeypatch.setattr(large_module, "PROPOSED", 8)
    monkeypatch.setattr(large_module, "SPARE", 4)
    for module in (view_module, merging_module):
        monkeypatch.setattr(module, "QUANTISED_ROWS", 32)
    for module in (merging_module, maintenance_module):
        monkeypatch.setattr(module, "TIER_ROWS", 32)


# -- R4: registering at once --------------------------------------------------------------------------------------

REGISTER = """
import sys
from pathlib import Path
from embeddings import Archive, ImageError, load_encoder
from fewshot import ComparisonSet
root, me, each = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
encoder = load_encoder("pixels-8")
files = [root / "images" / f"{number:06}.png" for number in range(me * each, (me + 1) * each)]
step = max(1, each // 20)
with ComparisonSet(Archive.open(root / "cases", encoder=encoder, timeout=3000), encoder) as cases:
    def register(label, files):
        done = cases.register(label, files, ids=[file.stem for file in files], on_error="report")
        return len(done.registered), len(done.duplicates), len(done.refused)
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
    sys.stdin.readline()
    counts = [0, 0, 0]
    for start in range(0, each, step):
        for place, count in enumerate(register("one class", files[start : start + step])):
            counts[place] += count
    shared = register("one class", [root / "images" / "shared.png"])
    contested = register(f"class of {me}", [root / "images" / "contested.png"])
    try:
        cases.register("another", files[:1], ids=[files[0].stem])
        edited = "accepted"
    except ImageError as error:
        edited = str(error)
sys.stdout.write(repr((counts, shared, contested, edited)) + "\\n")
"""


@pytest.mark.parametrize(("processes", "each"), [(4, 100), *[
    pytest.param(32, max(1, int(1000 * SCALE)), marks=[pytest.mark.soak, pytest.mark.timeout(3600)])
]])  # fmt: skip
def test_r4_registering_at_once_loses_nothing_and_the_first_label_stays(
    tmp_path: Path, processes: int, each: int
) -> None:
    for number in range(processes * each):
        png(tmp_path / "images" / f"{number:06}.png", number, side=9)
    png(tmp_path / "images" / "shared.png", 1 << 30)
    png(tmp_path / "images" / "contested.png", (1 << 30) + 1)
    ComparisonSet.open(tmp_path / "cases", encoder=ENCODER).close()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    crowd = []
    for me in range(processes):
        command = [sys.executable, "-c", REGISTER, str(tmp_path), str(me), str(each)]
        crowd.append(
            subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
            )
        )
    for process in crowd:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == b"ready\n"
    for process in crowd:
        process.stdin.write(b"go\n")  # type: ignore[union-attr]
        process.stdin.flush()  # type: ignore[union-attr]
    said = []
    for process in crowd:
        out, trouble = process.communicate()
        assert process.returncode == 0, trouble.decode()
        said.append(ast.literal_eval(out.decode()))
    assert [counts for counts, *_ in said] == [[each, 0, 0]] * processes
    assert sorted(shared for _, shared, _, _ in said) == [(0, 1, 0)] * (processes - 1) + [(1, 0, 0)]
    assert sorted(contested for *_, contested, _ in said) == [(0, 0, 1)] * (processes - 1) + [(1, 0, 0)]
    assert all("it is registered as 'one class'" in edited for *_, edited in said)
    with ComparisonSet.open(tmp_path / "cases") as cases:
        names = [f"{number:06}" for number in range(processes * each)]
        assert cases.ids == sorted([*names, "shared", "contested"])
        labels = dict(zip(cases.ids, cases.labels, strict=True))
        winner = next(me for me, (_, _, contested, _) in enumerate(said) if contested == (1, 0, 0))
        assert labels.pop("contested") == f"class of {winner}"
        assert set(labels.values()) == {"one class"}
        expected = ENCODER.encode([tmp_path / "images" / f"{name}.png" for name in cases.ids])
        np.testing.assert_array_equal(cases.vectors, expected)
        assert cases.archive.verify().ok
    sys.stdout.write(f"R4: {processes} processes x {each}, {len(labels) + 1} rows, none lost, none twice\n")


# -- R5: a full disk ----------------------------------------------------------------------------------------------

FULL = """
import json, os, resource, signal, sys
from pathlib import Path
from embeddings import Archive, Index, embed_archive, load_encoder
from embeddings import index, large_search, merging, view
from embeddings.quantised import codes_path
index.LARGE_ROWS, large_search.PROPOSED, large_search.SPARE = 8, 4, 2
view.QUANTISED_ROWS = merging.QUANTISED_ROWS = merging.TIER_ROWS = 8
encoder = load_encoder("pixels-32")

def work(home, source, stage, budget):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    said = {"error": None, "stage": "embed"}

    def begin(name):  # one stage meets the full disk; each begins with an empty log
        said["stage"] = name
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        archive = Archive.open(home, encoder=encoder)
        limit = budget if name == stage and archive.version else resource.RLIM_INFINITY
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        return archive

    try:
        with begin("embed") as archive:
            embed_archive(source, encoder, archive, workers=0, batch_size=8, progress=False)
        with begin("codes") as archive, archive.store.viewing() as connection:
            segments = archive.store.segments(connection)
            found = Index(archive).search(archive.vectors[:3], 4).ids
            said["right"] = found == Index(archive.snapshot()).search(archive.vectors[:3], 4).ids
            said["unwritten"] = sum(not codes_path(home, one).exists() for one in segments)
        with begin("merge") as archive:
            merging.merge(archive.store, segments)
        with begin("done") as archive, archive.store.viewing() as connection:
            said["segments"] = len(archive.store.segments(connection))
    except Exception as error:
        said["error"], said["sentence"] = type(error).__name__, str(error)
    return said

for line in sys.stdin:
    home, *given = json.loads(line)
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(there, json.dumps(work(Path(home), *given)).encode())
        finally:
            os._exit(0)
    os.close(there)
    with os.fdopen(here, "rb") as pipe:
        sys.stdout.write(pipe.read().decode() + "\\n")
        sys.stdout.flush()
    os.waitpid(child, 0)
"""

FULL_BYTES = {"embed": 350_000, "codes": 16_000, "merge": 200_000}
"""About the size of the largest file each stage writes."""


@pytest.mark.parametrize("budgets", sizes(20, 400))
def test_r5_a_full_disk_while_embedding_searching_and_merging(
    tmp_path: Path, budgets: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, before = tmp_path / "images", tmp_path / "before"
    for number in range(48):
        png(source / f"{number:03}.png", number, side=40)
    encoder = load_encoder("pixels-32")
    embed([source / f"{number:03}.png" for number in range(8)], before, encoder=encoder, batch_size=8)
    with Archive.open(before) as archive:
        first = archive.snapshot()
    vectors = dict(zip(first.ids, first.vectors, strict=True))
    jobs = []
    seed = 23
    rng = random.Random(seed)
    for trial in range(budgets):
        home = tmp_path / f"{trial}"
        shutil.copytree(before, home, ignore=shutil.ignore_patterns("*-shm", "*.lock"))
        stage = ("embed", "merge", "codes", "merge")[trial % 4]
        jobs.append((str(home), str(source), stage, rng.randrange(int(1.2 * FULL_BYTES[stage]))))
    done = subprocess.run(
        [sys.executable, "-c", FULL],
        input="\n".join(map(json.dumps, jobs)),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(answers) == budgets
    searched_by_codes(monkeypatch)
    for (folder, _, stage, budget), said in zip(jobs, answers, strict=True):
        home = Path(folder)
        where = f"seed {seed}, budget {budget} while {stage}: {said}"
        assert said["error"] in (None, "StorageFull"), where
        assert said["stage"] == (stage if said["error"] else "done"), where
        assert said.get("right", True) and said.get("segments", 1) == 1, where
        if said["error"]:
            assert said["sentence"].endswith("free some space and run the same again."), where
        assert not [path for path in home.rglob("*.tmp") if path.parent.name == "cache"], where
        with Archive.open(home) as archive:
            held = archive.snapshot()
            for identity, vector in vectors.items():  # what was there stays
                np.testing.assert_array_equal(held.vectors[held.positions[identity]], vector)
            assert len(held) % 8 == 0, where
            assert archive.verify().ok, where
        again = embed(source, home, encoder=encoder, batch_size=8)
        assert (again.seen, again.embedded + again.unchanged, again.quarantined) == (48, 48, 0), where
        with Archive.open(home) as archive:
            held = archive.snapshot()
            everything = dict(zip(held.ids, held.vectors, strict=True))
            found = Index(archive).search(held.vectors[:6], 5).ids
            assert found == [brute(everything, query, 5) for query in held.vectors[:6]], where
            assert archive.verify().ok, where
        shutil.rmtree(home)
    stopped = {
        stage: sum(one["error"] is not None and one["stage"] == stage for one in answers) for stage in FULL_BYTES
    }
    unwritten = sum(bool(one.get("unwritten")) for one in answers)
    assert stopped["embed"] and stopped["merge"] and unwritten and not stopped["codes"]
    assert any(one["stage"] == "done" for one in answers)
    sys.stdout.write(f"R5: seed {seed}, {budgets} budgets, stopped {stopped}, {unwritten} had no room for codes\n")


# -- R6: damaged codes, locks and records of holders ----------------------------------------------------------------


def rows_of(first: int, count: int, seed: int = 0) -> tuple[list[str], NDArray[np.float32]]:
    centres = np.random.default_rng(99).normal(size=(6, DIM))
    rng = np.random.default_rng([seed, first])
    vectors = centres[rng.integers(0, 6, count)] + 0.3 * rng.normal(size=(count, DIM))
    return [f"row {first + number:05}" for number in range(count)], vectors.astype(np.float32)


def cache_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "cache").iterdir()) if path.is_file()}


def damaged(content: bytes, others: list[bytes], rng: random.Random) -> tuple[str, bytes]:
    kind = rng.choice(["cut", "flip", "zero", "swap", "longer", "header", "twice"])
    at = rng.randrange(len(content))
    changed = bytearray(content)
    if kind == "cut":
        del changed[at:]
    elif kind in ("flip", "header"):
        changed[at if kind == "flip" else rng.randrange(44)] ^= 1 << rng.randrange(8)
    elif kind == "zero":
        changed[at : at + 512] = bytes(len(changed[at : at + 512]))
    elif kind == "swap":
        return kind, rng.choice(others)
    elif kind == "longer":
        changed += rng.randbytes(rng.randrange(1, 64))
    else:
        changed[at : at + DIM] = changed[-DIM:]
    return kind, bytes(changed)


@pytest.mark.parametrize("mutations", sizes(200, 5000))
def test_r6_damaged_codes_are_found_and_made_anew(
    tmp_path: Path, mutations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched_by_codes(monkeypatch)
    folder = tmp_path / "x"
    others: list[bytes] = []
    with make(tmp_path / "other") as archive:  # as many rows of as many dimensions, but other ones
        for start in (0, 200):
            archive.add(*rows_of(start, 200, seed=1))
        Index(archive).search(rows_of(0, 1)[1], 3)
        others += cache_files(tmp_path / "other").values()
    with make(folder) as archive:
        for start in (0, 200):
            archive.add(*rows_of(start, 200))
        Index(archive).search(rows_of(0, 1)[1], 3)
        others += cache_files(folder).values()  # stale below: both segments are written anew by the purge
        archive.remove(ids=[f"row {number:05}" for number in range(0, 400, 50)], purge=True)
        asked = rows_of(0, 6, seed=5)[1]
        Index(archive).search(asked, 3)
        held = archive.snapshot()
    live = dict(zip(held.ids, held.vectors, strict=True))
    truth = [brute(live, query, 7) for query in asked]
    sound = cache_files(folder)
    assert len(sound) == 2 and not set(sound.values()) & set(others)
    seed = 29
    rng = random.Random(seed)
    kinds: dict[str, int] = {}
    for trial in range(mutations):
        name = rng.choice(sorted(sound))
        kind, content = damaged(sound[name], [*others, *(sound[one] for one in sound if one != name)], rng)
        (folder / "cache" / name).write_bytes(content)
        with Archive.open(folder) as archive:
            found = Index(archive).search(asked, 7)
        where = f"seed {seed}, trial {trial}: {kind} of {name}"
        assert found.ids == truth and found.exact, where
        assert cache_files(folder) == sound, where  # found before use, and made anew
        kinds[kind] = kinds.get(kind, 0) + (content != sound[name])
    for spoil in (Path.mkdir, lambda path: path.symlink_to(tmp_path / "nowhere"), lambda path: None):
        name = sorted(sound)[0]
        (folder / "cache" / name).unlink()
        spoil(folder / "cache" / name)
        with Archive.open(folder) as archive:
            assert Index(archive).search(asked, 7).ids == truth
        if (folder / "cache" / name).is_dir():
            (folder / "cache" / name).rmdir()
            (folder / "cache" / name).write_bytes(sound[name])
    assert cache_files(folder) == sound and not (tmp_path / "nowhere").exists()
    with Archive.open(folder) as archive:
        assert archive.verify().ok
    sys.stdout.write(f"R6 codes: seed {seed}, {sum(kinds.values())} mutations {kinds}, every answer right\n")


@pytest.mark.parametrize("mutations", sizes(20, 1000))
def test_r6_whatever_lies_in_locks_and_records_of_holders(tmp_path: Path, mutations: int) -> None:
    seed = 31
    rng = random.Random(seed)
    with make(tmp_path / "x") as archive:
        archive.add(*rows_of(0, 8))
    record = json.dumps({"host": "elsewhere", "pid": 1, "since": "2020-01-01T00:00:00+00:00"}).encode()
    contents = [b"", b"null", b"[]", b"{}", b"\xff" * 99, b"[" * 100_000, b'{"pid":{}}', record, record[:20]]
    expected = rows_of(0, 8)[1]
    for trial in range(mutations):
        names = ("writer.lock", "writer.json", "writer.json.tmp", "merge.lock")
        for name in names:
            if rng.random() < 0.7:
                kept = rng.choice([*contents, rng.randbytes(rng.randrange(1, 5000))])
                (tmp_path / "x" / name).write_bytes(kept)
            else:
                (tmp_path / "x" / name).unlink(missing_ok=True)
        where = f"seed {seed}, trial {trial}"
        with Archive.open(tmp_path / "x", timeout=0.01) as archive, Archive.open(tmp_path / "x", timeout=0.01) as other:
            held = archive.snapshot()
            assert len(held) == 8 + trial, where
            np.testing.assert_array_equal(held.vectors[[held.positions[f"row {n:05}"] for n in range(8)]], expected)
            with other.writing():
                (tmp_path / "x" / "writer.json").write_bytes(rng.choice(contents))
                with pytest.raises(ArchiveLocked, match="is being written by") as refused:
                    archive.add(*rows_of(8 + trial, 1))
            assert "\n" not in str(refused.value)
            archive.add(*rows_of(8 + trial, 1))
    with Archive.open(tmp_path / "x") as archive:
        assert archive.verify().ok
    sys.stdout.write(f"R6 locks: seed {seed}, {mutations} trials, each read, refused and written\n")


# -- R8: one image, one row -----------------------------------------------------------------------------------------


def test_r8_the_same_image_is_one_row_by_every_route(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    for number in range(5):
        png(tree / f"{number}.png", number)
        dicom(tree / "dicom" / f"{number}.dcm", number)
    reports = [embed(tree, tmp_path / "x") for _ in range(5)]
    assert [(one.embedded, one.unchanged) for one in reports] == [(10, 0), *[(0, 10)] * 4]
    with Archive.open(tmp_path / "x") as archive:
        first, version = archive.snapshot(), archive.version
    copies = tmp_path / "copies"
    for number in range(5):
        copies.mkdir(exist_ok=True)
        shutil.copyfile(tree / f"{number}.png", copies / f"renamed {number}.png")
        shutil.copyfile(tree / "dicom" / f"{number}.dcm", copies / f"IM{number}")
    for times in range(2):
        again = embed([tree, copies], tmp_path / "x")
        assert (again.seen, again.embedded, again.quarantined) == (20, 0, 0)
        assert again.duplicate + again.unchanged == 20
        assert again.duplicate == 10 or times
    # the same SOPInstanceUID by two routes: another transfer syntax, another folder, another name
    for number in range(5):
        dicom(tmp_path / "route" / f"{number}", number, syntax=DeflatedExplicitVRLittleEndian)
    routed = embed(tmp_path / "route", tmp_path / "x")
    assert (routed.seen, routed.duplicate, routed.embedded) == (5, 5, 0)
    # the same UID with other pixels: reported, and the first kept
    dicom(tmp_path / "changed" / "a.dcm", 50, uid="1.2.840.99999.1000")
    other = embed(tmp_path / "changed", tmp_path / "x")
    assert (other.embedded, other.updated, other.quarantined) == (0, 0, 1)
    assert other.refused[0][0].endswith("a.dcm") and "1.2.840.99999.1000" in other.refused[0][1]
    with Archive.open(tmp_path / "x") as archive:
        now = archive.snapshot()
        assert (now.ids, now.hashes) == (first.ids, first.hashes)
        np.testing.assert_array_equal(now.vectors, first.vectors)
        assert archive.version >= version and archive.verify().ok
        assert [refusal.path for refusal in archive.quarantine()] == [str(tmp_path / "changed" / "a.dcm")]
    both = embed([tree, copies, tmp_path / "route"], tmp_path / "fresh")  # all routes in one run
    assert (both.seen, both.embedded, both.duplicate) == (25, 10, 15)


# -- R16, R17: removal and erasure ----------------------------------------------------------------------------------


def pattern(path: Path, kind: int, seed: int) -> Path:
    y, x = np.mgrid[0:24, 0:24]
    clean = [100 * np.sin(x / 2), 100 * np.sin(y / 2), 150 * np.exp(-((x - 10) ** 2 + (y - 12) ** 2) / 30)][kind]
    noise = np.random.default_rng(seed).normal(scale=25, size=clean.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.clip(100 + clean + noise, 0, 255).astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize("removals", sizes(3, 200))
def test_r16_removed_equals_never_registered(tmp_path: Path, removals: int) -> None:
    seed = 37
    rng = random.Random(seed)
    images = [(f"{kind}-{n}", kind, pattern(tmp_path / "i" / f"{kind}-{n}.png", kind, 10 * kind + n))
              for kind in range(3) for n in range(6)]  # fmt: skip
    asked = ENCODER.encode([pattern(tmp_path / "q" / f"{n}.png", n % 3, 900 + n) for n in range(9)])

    def register(cases: ComparisonSet, which: list[tuple[str, int, Path]]) -> dict[str, float | None]:
        scores: dict[str, float | None] = {}
        for name, kind, path in which:
            done = cases.register(f"class {kind}", [path], ids=[name], patients=[f"p {name}"])
            assert [identity for identity, _ in done.outlier_scores] == [name]
            scores.update(done.outlier_scores)
        return scores

    def answers(cases: ComparisonSet) -> tuple[Any, ...]:
        support = (cases.vectors, cases.labels)
        options: dict[str, Any] = {"ids": cases.ids, "groups": cases.patients}
        near, mean = NeighborClassifier().fit(*support, **options), PrototypeClassifier().fit(*support, **options)
        found = Index(cases.archive).search(asked, 4)
        held = cases.ids, cases.labels, cases.vectors.tobytes(), mean.prototypes_.tobytes(), cases.outliers().images
        return *held, near.decide(asked), mean.decide(asked), found.ids, found.similarities.tobytes()

    for trial in range(removals):
        order = rng.sample(images, len(images))
        gone = rng.sample(images, rng.randrange(1, 5))
        with ComparisonSet.open(tmp_path / "with", encoder=ENCODER) as cases:
            scores = register(cases, order)
            assert any(score is not None for score in scores.values())
            whole = answers(cases)
            with ComparisonSet.open(tmp_path / "with", encoder=ENCODER) as served:
                assert answers(served) == whole
                for name, _, _ in gone:
                    assert cases.remove(id=name) == (name,)
                after = answers(served)  # another handle, at its next request
        kept = [one for one in images if one not in gone]
        with ComparisonSet.open(tmp_path / "without", encoder=ENCODER) as never:
            register(never, kept)
            assert after == answers(never) and after != whole, f"seed {seed}, trial {trial}"
        shutil.rmtree(tmp_path / "with")
        shutil.rmtree(tmp_path / "without")
    sys.stdout.write(f"R16: seed {seed}, {removals} removals equal to never having registered\n")


def holders(folder: Path, wanted: dict[str, bytes]) -> dict[str, set[str]]:
    """Return the files that hold each of some byte strings, in their contents or in their names."""
    found: dict[str, set[str]] = {name: set() for name in wanted}
    for path in folder.rglob("*"):
        content = os.fsencode(path.relative_to(folder)) + (path.read_bytes() if path.is_file() else b"")
        for name, needle in wanted.items():
            if needle in content:
                found[name].add(path.name)
    return found


@pytest.mark.parametrize("deidentified", [False, True])
def test_r17_a_forgotten_patient_is_nowhere_in_the_folder(
    tmp_path: Path, deidentified: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched_by_codes(monkeypatch)
    key = Deidentifier(KEY) if deidentified else None
    source = tmp_path / "source"
    for number in range(120):
        mine = number % 10 == 0
        name = "WILLOW" if mine else f"p{number}"
        study = f"1.2.840.77777.{'5' if mine else '6'}.{number}"
        dicom(source / f"{name}-visit" / f"{number}.dcm", number, PatientID=name, StudyInstanceUID=study)
    broken = source / "WILLOW-visit" / "WILLOW-broken.dcm"
    broken.write_bytes((source / "WILLOW-visit" / "0.dcm").read_bytes()[:600])
    embed(source, tmp_path / "x", batch_size=40, deidentifier=key)
    patient = "WILLOW" if key is None else key.patient("WILLOW")
    with Archive.open(tmp_path / "x") as archive, Archive.open(tmp_path / "x") as reader:
        mine = archive.find({"patient": patient})
        assert len(mine) == 12
        facts, vectors = archive.rows(mine)
        Index(reader).search(vectors[:2], 3)
        wanted = {"patient": patient.encode(), "real patient": b"WILLOW"}
        for number, (identity, row, vector) in enumerate(zip(mine, facts, vectors, strict=True)):
            wanted[f"id {number}"] = identity.encode()
            wanted[f"study {number}"] = str(row["study_uid"]).encode()
            wanted[f"vector {number}"] = vector.tobytes()
            wanted[f"part of vector {number}"] = vector[20:26].tobytes()
            wanted[f"hash {number}"] = archive.snapshot().hashes[archive.snapshot().positions[identity]].encode()
            wanted[f"real id {number}"] = f"1.2.840.99999.{1000 + 10 * number}".encode()
        with archive.store.viewing() as connection:
            segments = [one for one in archive.store.segments(connection) if one.rows >= 32]
            assert segments
            for segment in segments:
                codes = read_codes(archive.path, segment, archive.dim)
                assert codes is not None
                places = connection.execute(
                    "SELECT id, position FROM rows WHERE segment = ? AND json_extract(metadata, '$.patient') = ?",
                    (segment.key, patient),
                ).fetchall()
                content = codes_path(archive.path, segment).read_bytes()
                body = content[len(content) - segment.rows * archive.dim :]
                for identity, place in places:
                    code = body[place * archive.dim : (place + 1) * archive.dim]
                    assert len(code) == archive.dim
                    wanted[f"code of {identity}"] = code
        refused = archive.quarantine()
        assert len(refused) == 1
        wanted["quarantined path"] = refused[0].path.encode()
        there = holders(tmp_path / "x", wanted)
        never = {name for name in wanted if name.startswith("real")} if deidentified else set()
        assert {name for name in wanted if not there[name]} == never
        if any(name.startswith("code") for name in wanted):
            assert any(one.endswith(".sq8") for files in there.values() for one in files)
        removed = archive.remove(patient=patient)
        assert list(removed) == mine
        assert not set(mine) & {one for ids in Index(reader).search(vectors, 5).ids for one in ids}
        archive.purge()
        assert archive.quarantine() == []
        assert not any(holders(tmp_path / "x", wanted).values())
        Index(reader).search(vectors, 5)  # nor do a search and a check bring anything back
        assert archive.verify().ok and not archive.find({"patient": patient})
        assert not any(holders(tmp_path / "x", wanted).values())
    assert not any(holders(tmp_path / "x", wanted).values())
    assert len(embed(source, tmp_path / "again", deidentifier=key).refused) == 1


def test_r17_a_forgotten_patient_is_nowhere_in_a_comparison_set(tmp_path: Path) -> None:
    from fewshot import Recipe, deploy

    with ComparisonSet.open(tmp_path / "x", encoder=ENCODER) as cases:
        for kind in range(3):
            for n in range(6):
                owner = "WILLOW" if n == 0 else f"p{kind}{n}"
                path = pattern(tmp_path / owner / f"{kind}{n}.png", kind, 10 * kind + n)
                cases.register(f"class {kind}", [path], ids=[f"case-{owner}-{kind}{n}"], patients=[owner])
        deploy(cases, Recipe(head="prototypes"))
        mine = [name for name in cases.ids if "WILLOW" in name]
        vectors = [cases.vectors[cases.ids.index(name)].tobytes() for name in mine]
        wanted = {"patient": b"WILLOW", **{f"vector {n}": value for n, value in enumerate(vectors)}}
        assert all(holders(tmp_path / "x", wanted).values())
        assert list(cases.remove(patient="WILLOW")) == mine
        assert not any(holders(tmp_path / "x", wanted).values())
    assert not any(holders(tmp_path / "x", wanted).values())


# -- R20: what does not belong together -----------------------------------------------------------------------------


def mismatches(home: Path, source: Path) -> dict[str, tuple[type[Exception], Callable[[], Any]]]:
    """Return every way to use a store with what is not its own."""
    plain, hidden, cases = home / "plain", home / "hidden", home / "cases"
    other, windowed, volumes = load_encoder("pixels-9"), load_encoder("pixels-8?window=lung"), home / "volumes"
    key, wrong = Deidentifier(KEY), Deidentifier(KEY[::-1])
    same_size = load_encoder({f"{n}": [float(n)] * 64 for n in range(1, 4)})
    found: dict[str, tuple[type[Exception], Callable[[], Any]]] = {}
    for name, encoder in (("size", other), ("window", windowed), ("weights", same_size)):
        found[f"open: {name}"] = EncoderMismatch, lambda one=encoder: Archive.open(plain, encoder=one)
        found[f"embed: {name}"] = EncoderMismatch, lambda one=encoder: embed(source, plain, encoder=one)
        found[f"set: {name}"] = EncoderMismatch, lambda one=encoder: ComparisonSet.open(cases, encoder=one)
    for name, encoder in (("size", other), ("window", windowed)):
        found[f"volumes: {name}"] = (
            EncoderMismatch,
            lambda one=encoder: embed_volumes(source, one, volumes, way="slices", workers=0, progress=False),
        )
    found["volumes: reads no pixels"] = EncoderError, lambda: embed_volumes(source, same_size, volumes, way="slices")
    found["volumes: way"] = EncoderError, lambda: embed_volumes(source, ENCODER, volumes, way="3d")
    found["volumes: set"] = ArchiveError, lambda: embed_volumes(source, ENCODER, cases, way="slices")
    found["volumes: key"] = ArchiveError, lambda: embed_volumes(source, ENCODER, hidden, way="slices")
    found["embed: set"] = ArchiveError, lambda: embed(source, cases)
    found["open: kind"] = ArchiveError, lambda: Archive.open(plain, encoder=ENCODER, kind="comparison set")
    found["set: kind"] = ArchiveError, lambda: ComparisonSet.open(plain, encoder=ENCODER)
    found["key: another"] = ArchiveError, lambda: embed(source, hidden, deidentifier=wrong)
    found["key: none"] = ArchiveError, lambda: embed(source, hidden)
    found["key: late"] = ArchiveError, lambda: embed(source, plain, deidentifier=key)
    for name, folder in (("plain", plain), ("set", cases)):
        for dim in (63, 65, 1):
            asked = np.ones((1, dim), dtype=np.float32)
            found[f"search: {name} {dim}"] = ValueError, lambda f=folder, q=asked: searched(f, q)
            found[f"search a snapshot: {name} {dim}"] = ValueError, lambda f=folder, q=asked: searched(f, q, snap=True)
            found[f"add: {name} {dim}"] = ValueError, lambda f=folder, q=asked: added(f, q)
    found["decide"] = ValueError, lambda: fitted(cases).decide(np.ones((1, 63), dtype=np.float32))
    return found


def searched(folder: Path, query: NDArray[np.float32], *, snap: bool = False) -> Any:
    with Archive.open(folder) as archive:
        return Index(archive.snapshot() if snap else archive).search(query, 1)


def added(folder: Path, rows: NDArray[np.float32]) -> Any:
    with Archive.open(folder) as archive:
        return archive.add(["another"], rows)


def fitted(folder: Path) -> PrototypeClassifier:
    with ComparisonSet.open(folder) as cases:
        return PrototypeClassifier().fit(cases.vectors, cases.labels, ids=cases.ids)


@pytest.mark.parametrize("large", [False, True])
def test_r20_what_does_not_belong_together_is_refused_with_a_sentence(
    tmp_path: Path, large: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if large:
        monkeypatch.setattr(index_module, "LARGE_ROWS", 1)
    source = tmp_path / "source"
    for number in range(3):
        dicom(source / f"{number}.dcm", number, Modality="CT", SeriesInstanceUID="1.2.3.9", InstanceNumber=number + 1,
              SOPClassUID=pydicom.uid.CTImageStorage, ImagePositionPatient=[0, 0, number], PixelSpacing=[1, 1],
              ImageOrientationPatient=[1, 0, 0, 0, 1, 0])  # fmt: skip
    embed(source, tmp_path / "plain")
    embed(source, tmp_path / "hidden", deidentifier=Deidentifier(KEY))
    embed_volumes(source, ENCODER, tmp_path / "volumes", way="slices", workers=0, progress=False)
    with ComparisonSet.open(tmp_path / "cases", encoder=ENCODER) as cases:
        cases.register("a", [png(tmp_path / "a.png", 1)])
        cases.register("b", [png(tmp_path / "b.png", 2)])
    stores = [tmp_path / name for name in ("plain", "hidden", "volumes", "cases")]

    def state() -> list[tuple[Any, ...]]:
        states = []
        for folder in stores:
            with Archive.open(folder) as archive:
                assert len(archive)
                states.append((archive.version, archive.ids, archive.vectors.tobytes(), len(archive.quarantine())))
        return states

    before = state()
    for name, (kind, attempt) in mismatches(tmp_path, source).items():
        with pytest.raises(kind) as refused:
            attempt()
        sentence = str(refused.value)
        assert "\n" not in sentence and sentence.endswith((".", "?")) and len(sentence) > 40, name
        assert state() == before, name


# -- R21: no guess ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head", [PrototypeClassifier, NeighborClassifier])
def test_r21_nothing_is_guessed_where_nothing_can_be_said(tmp_path: Path, head: Any) -> None:
    with pytest.raises(ValueError, match=r"^The comparison set is empty: register at least one image before asking\.$"):
        head().fit(np.empty((0, 64), dtype=np.float32), [])
    with ComparisonSet.open(tmp_path / "x", encoder=ENCODER) as cases:
        for kind in range(3):
            cases.register(f"class {kind}", [pattern(tmp_path / f"{kind}{n}.png", kind, 10 * kind + n) for n in (0, 1)])
        Image.fromarray(np.zeros((24, 24), dtype=np.uint8)).save(tmp_path / "black.png")
        with pytest.raises(ImageError, match="has the same grey level everywhere: there is nothing to recognise"):
            ENCODER.encode([tmp_path / "black.png"])
        with pytest.raises(ImageError, match="has the same grey level everywhere: there is nothing to recognise"):
            cases.register("class 0", [tmp_path / "black.png"])
        report = embed([tmp_path / "black.png"], tmp_path / "archive")
        assert (report.embedded, report.quarantined) == (0, 1)
        good = ENCODER.encode([pattern(tmp_path / "q.png", 1, 99)])
        asked = np.concatenate([good, 0 * good, np.where(good > 0.5, np.nan, good), good + np.inf])
        decisions = head().fit(cases.vectors, cases.labels, ids=cases.ids).decide(asked)
        assert [one.label for one in decisions] == ["class 1", None, None, None]
        assert decisions[0].reason is None
        assert "has no direction, so every cosine with it is undefined" in decisions[1].reason
        assert all("holds NaN or infinity" in one.reason for one in decisions[2:])
        assert all(one.score is None and one.probability is None for one in decisions[1:])
        cases.remove(label="class 1")  # a class without images is no answer
        emptied = head().fit(cases.vectors, cases.labels, ids=cases.ids)
        assert "class 1" not in cases.classes
        assert emptied.decide(good)[0].label in ("class 0", "class 2")
        with pytest.raises(ValueError, match="must be finite"):
            Index(cases.archive).search(good * np.nan, 1)
        with pytest.raises(ValueError, match="must be finite"):
            cases.archive.add(["nan"], good * np.nan)


# -- R22: memory -------------------------------------------------------------------------------------------------------

SAMPLED = """
import json, os, sys
from embeddings import embed_archive, load_encoder
from embeddings.decoding import close_decoders
encoder = load_encoder("pixels-8")
page = os.sysconf("SC_PAGE_SIZE")
samples = []
def progress(report):
    with open("/proc/self/statm") as file:
        samples.append((report.seen, int(file.read().split()[1]) * page))
embed_archive(sys.argv[2], encoder, sys.argv[1] + ".first", workers=1, progress=False)
report = embed_archive(sys.argv[1], encoder, sys.argv[1] + ".archive", workers=1, progress=progress)
close_decoders()
sys.stdout.write(json.dumps({"embedded": report.embedded, "samples": samples}))
"""


def sampled(folder: Path, other: Path) -> list[tuple[int, int]]:
    """Ingest two folders in a fresh process; return images seen and bytes resident at each commit of the second."""
    command = [sys.executable, "-c", SAMPLED, str(folder), str(other)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["embedded"] == len(list(folder.iterdir()))
    return [(seen, size) for seen, size in said["samples"]]


@pytest.mark.parametrize("images", sizes(2000, 20_000))
def test_r22_what_is_resident_at_each_commit_does_not_grow(tmp_path: Path, images: int) -> None:
    few = max(200, images // 20) if images > 2000 else images // 10
    for number in range(images):
        path = png(tmp_path / "many" / f"{number}.png", number, side=72)
        if number < few:
            (tmp_path / "few").mkdir(exist_ok=True)
            shutil.copyfile(path, tmp_path / "few" / f"{number}.png")
    assert path.stat().st_size > 2 * BYTES_PER_IMAGE
    small, large = sampled(tmp_path / "few", tmp_path / "few"), sampled(tmp_path / "many", tmp_path / "few")
    assert len(large) > images // 64
    most, least = max(size for _, size in large), max(size for _, size in small)
    per_image = (large[-1][1] - large[0][1]) / (large[-1][0] - large[0][0])
    sys.stdout.write(f"R22: {images} images take {most / least:.3f} times what {few} do; {per_image:.0f} bytes each\n")
    ids = images * BYTES_PER_IMAGE
    assert most - ids < GROWTH * least
    assert per_image < BYTES_PER_IMAGE
