"""Scanning an archive by any measure: exact, in order, without what was removed, and never a damaged row."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import embeddings.scanning as scanning
from embeddings import Archive, ArchiveCorrupt, Scanned, scan
from embeddings import large_search as large_module
from embeddings.segments import segment_path

DIM = 7
Rows = NDArray[np.float32]


def make(folder: Path, vectors: Rows, *, step: int = 40) -> Archive:
    """An archive of several segments; ids are in no order of rows."""
    archive = Archive.create(
        folder, encoder_name="fake", encoder_fingerprint="0" * 64, encoder_spec=None, dim=vectors.shape[1]
    )
    names = names_of(len(vectors))
    for start in range(0, len(vectors), step):
        archive.add(names[start : start + step], vectors[start : start + step])
    return archive


def names_of(count: int) -> list[str]:
    return [f"id{number:04}" for number in np.random.default_rng(count).permutation(count)]


def measure(rows: Rows) -> NDArray[np.float64]:
    """No cosine: the distance of the first numbers, less the last."""
    wide = rows.astype(np.float64)
    return np.asarray(-np.abs(wide[:, :3]).sum(axis=1) - wide[:, -1])


def slow(names: list[str], vectors: Rows, k: int) -> tuple[tuple[str, ...], tuple[float, ...]]:
    scored = sorted((-float(measure(row[None])[0]), name) for name, row in zip(names, vectors, strict=True))[:k]
    return tuple(name for _, name in scored), tuple(-score for score, _ in scored)


@pytest.mark.parametrize("at_once", [8192, 7])
@pytest.mark.parametrize("k", [1, 9, 60])
def test_the_best_rows_over_several_segments_are_those_of_a_slow_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int, k: int
) -> None:
    monkeypatch.setattr(scanning, "ROWS_AT_ONCE", at_once)
    vectors = np.random.default_rng(0).normal(size=(200, DIM)).astype(np.float32)
    names = names_of(200)
    with make(tmp_path / "a", vectors) as archive:
        with archive.store.viewing() as connection:
            assert len(archive.store.segments(connection)) > 1
        found = scan(archive, measure, k)
        assert isinstance(found, Scanned) and found.version == archive.version
        assert (found.ids, found.scores) == slow(names, vectors, k)
        gone = [name for name in names if int(name[2:]) % 3 == 0]
        archive.remove(ids=gone)
        left = [i for i, name in enumerate(names) if name not in gone]
        after = scan(archive, measure, k)
        assert (after.ids, after.scores) == slow([names[i] for i in left], vectors[left], k)
        assert after.version > found.version
        archive.purge()
        assert scan(archive, measure, k).ids == after.ids


def test_only_rows_among_those_asked_for_come_back(tmp_path: Path) -> None:
    vectors = np.random.default_rng(1).normal(size=(150, DIM)).astype(np.float32)
    names = names_of(150)
    with make(tmp_path / "a", vectors) as archive:
        some = names[3::4]
        archive.remove(ids=some[:5])
        left = [i for i, name in enumerate(names) if name in some[5:]]
        for k in (1, 6, 500):
            found = scan(archive, measure, k, among=[*some, "nowhere"])
            assert (found.ids, found.scores) == slow([names[i] for i in left], vectors[left], k)
        assert scan(archive, measure, 4, among=set(some)).ids == scan(archive, measure, 4, among=some).ids
        assert scan(archive, measure, 5, among=[]).ids == scan(archive, measure, 5, among=["nowhere"]).ids == ()


def test_an_id_that_is_asked_for_twice_comes_back_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_module, "PARAMETERS", 3)
    vectors = np.random.default_rng(1).normal(size=(20, DIM)).astype(np.float32)
    names = names_of(20)
    with make(tmp_path / "a", vectors) as archive:
        asked = [name for name in names[:8] for _ in range(2)]
        assert (found := scan(archive, measure, 30, among=asked)).ids == slow(names[:8], vectors[:8], 30)[0]
        assert len(found.ids) == 8


@pytest.mark.parametrize("at_once", [8192, 16])
def test_equal_scores_go_by_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(scanning, "ROWS_AT_ONCE", at_once)
    vectors = np.repeat(np.random.default_rng(2).normal(size=(10, DIM)).astype(np.float32), 20, axis=0)
    names = names_of(200)
    order = np.random.default_rng(3).permutation(200)
    with make(tmp_path / "a", vectors[order]) as archive:
        for k in (1, 15, 33, 200):
            assert scan(archive, measure, k).ids == slow(names, vectors[order], k)[0]
        level = scan(archive, lambda rows: np.zeros(len(rows)), 5)
        assert level.ids == tuple(sorted(names)[:5]) and level.scores == (0.0,) * 5


def test_more_than_there_are_and_nothing_at_all(tmp_path: Path) -> None:
    vectors = np.random.default_rng(4).normal(size=(6, DIM)).astype(np.float32)
    with make(tmp_path / "a", vectors) as archive:
        assert scan(archive, measure, 99).ids == slow(names_of(6), vectors, 6)[0]
        archive.remove(ids=names_of(6))
        empty = scan(archive, measure, 3)
        assert (empty.ids, empty.scores) == ((), ())


def test_rows_are_scored_in_blocks_and_every_row_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "ROWS_AT_ONCE", 16)
    vectors = np.random.default_rng(5).normal(size=(100, DIM)).astype(np.float32)
    blocks: list[Rows] = []

    def spy(rows: Rows) -> NDArray[np.float64]:
        blocks.append(rows.copy())
        return measure(rows)

    with make(tmp_path / "a", vectors) as archive:
        scan(archive, spy, 3)
    assert max(len(block) for block in blocks) == 16
    assert np.array_equal(np.concatenate(blocks), vectors)


def test_a_row_that_is_not_what_was_written_is_never_an_answer(tmp_path: Path) -> None:
    vectors = np.random.default_rng(6).normal(size=(50, DIM)).astype(np.float32)
    names = names_of(50)
    with make(tmp_path / "a", vectors, step=50) as archive:
        best = scan(archive, measure, 1).ids[0]
        row = names.index(best)
        with archive.store.viewing() as connection:
            (segment,) = archive.store.segments(connection)
    path = segment_path(tmp_path / "a", segment.name)
    content = bytearray(path.read_bytes())
    at = len(content) - (50 - row) * DIM * 4
    assert np.frombuffer(bytes(content[at : at + 4 * DIM]), dtype="<f4").tobytes() == vectors[row].tobytes()
    content[at + 4 * DIM - 4] ^= 1  # the last bit of its last number
    path.chmod(0o644)
    path.write_bytes(bytes(content))
    with Archive.open(tmp_path / "a") as archive:
        with pytest.raises(ArchiveCorrupt, match=rf"the vector of row '{best}' is not the one it was stored with"):
            scan(archive, measure, 3)
        assert best not in scan(archive, measure, 3, among=[name for name in names if name != best]).ids


def test_a_segment_that_is_gone_is_said(tmp_path: Path) -> None:
    with make(tmp_path / "a", np.ones((5, DIM), dtype=np.float32)) as archive:
        with archive.store.viewing() as connection:
            (segment,) = archive.store.segments(connection)
        segment_path(tmp_path / "a", segment.name).unlink()
        with pytest.raises(ArchiveCorrupt, match=r"The segment '.*' is missing: run `radshot verify`"):
            scan(archive, measure, 1)


@pytest.mark.parametrize("k", [0, -1])
def test_fewer_than_one_is_refused(tmp_path: Path, k: int) -> None:
    archive = make(tmp_path / "a", np.ones((1, DIM), dtype=np.float32))
    with archive, pytest.raises(ValueError, match=rf"k must be at least 1; got {k}"):
        scan(archive, measure, k)
