"""Sketches and limits: what is proposed is ranked exactly, what is chosen keeps to the limits, damage is rebuilt."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embeddings import Archive, ArchiveCorrupt, Index
from embeddings import large_search as large_module
from embeddings import quantised as quantised_module
from embeddings import search_limits as limits_module
from embeddings import sketches as sketches_module
from embeddings import view as view_module
from embeddings.large_search import LargeSearch
from embeddings.merging import merge
from embeddings.quantised import normalised
from embeddings.search_limits import SearchLimits, choose, measured_recall
from embeddings.segments import Segment
from embeddings.sketches import (
    build_sketches,
    bytes_per_row,
    load_or_build_sketches,
    read_sketches,
    rotation,
    sketches_path,
    write_sketches,
)
from embeddings.summation import cosines

faiss = pytest.importorskip("faiss")
pytestmark = pytest.mark.skipif(not hasattr(faiss, "IndexRaBitQ"), reason="needs FAISS 1.11 or newer")

DIM = 40
ROWS = 6000


def clustered(count: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).normal(size=(60, DIM))
    return (centres[rng.integers(0, 60, count)] + 0.5 * rng.normal(size=(count, DIM))).astype(np.float32)


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    """An archive of two large segments in three shards and a small one, with rows removed."""
    monkeypatch.setattr(large_module, "EXACT_ROWS", 700)
    monkeypatch.setattr(view_module, "QUANTISED_ROWS", 512)
    monkeypatch.setattr(limits_module, "QUANTISED_ROWS", 512)
    for module in (quantised_module, sketches_module):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", 500)
    for module in (quantised_module, sketches_module, view_module):
        monkeypatch.setattr(module, "SHARD", 2000)
    vectors = clustered(ROWS)
    with Archive.create(
        tmp_path / "a", encoder_name="e", encoder_fingerprint="f" * 64, encoder_spec=None, dim=DIM
    ) as held:
        for first, last in ((0, 3500), (3500, 5700), (5700, ROWS)):
            numbers = range(first, last)
            facts = [{"tenth": n % 10, "half": n % 2} for n in numbers]
            held.add([f"id{n:05d}" for n in numbers], vectors[first:last], metadata=facts)
        held.remove(ids=[f"id{n:05d}" for n in range(0, ROWS, 9)])
        yield held


def slow(archive: Archive, query: NDArray[np.float32], k: int) -> list[tuple[str, float]]:
    """Every cosine, one after the other."""
    snapshot = archive.snapshot()
    scored = []
    for name, vector in zip(snapshot.ids, snapshot.vectors.astype(np.float64), strict=True):
        wide = query.astype(np.float64)
        scored.append((-float(vector @ wide / np.sqrt((vector @ vector) * (wide @ wide))), name))
    return [(name, -score) for score, name in sorted(scored)[:k]]


@pytest.mark.parametrize("dim", [1, 7, 24, 512])
def test_the_rotation_keeps_every_product(dim: int) -> None:
    turn = rotation(dim).astype(np.float64)
    np.testing.assert_allclose(turn @ turn.T, np.eye(dim), atol=1e-6)


def test_estimates_are_near_and_unbounded() -> None:
    rows = clustered(3000) * np.random.default_rng(1).uniform(0.1, 50, (3000, 1)).astype(np.float32)
    sketches = build_sketches(rows)
    queries = normalised(clustered(8, seed=2))
    places, estimates, slack = sketches.propose(queries, 3000, shard=0)
    assert np.isinf(slack).all()
    for query, found, values in zip(queries, places, estimates, strict=True):
        assert sorted(found) == list(range(3000))
        exact = cosines(query, rows[found])
        assert np.corrcoef(exact, values)[0, 1] > 0.75  # one bit per number, and only forty of them
        assert abs(float(np.mean(values - exact))) < 0.02


def test_what_sketches_find_is_ranked_exactly_and_not_called_proven(archive: Archive) -> None:
    search = LargeSearch(archive.store, "sketches")
    queries = clustered(20, seed=5)
    found = search.search(queries, 10)
    assert not found.exact
    hits = 0
    for query, ids, values in zip(queries, found.ids, found.similarities, strict=True):
        truth = dict(slow(archive, query, len(archive)))
        assert len(ids) == 10
        np.testing.assert_allclose(values, [truth[name] for name in ids], atol=1e-12)
        assert list(values) == sorted(values, reverse=True)
        hits += len(set(ids) & set(list(truth)[:10]))
    assert hits >= 0.99 * 200
    assert not {name for ids in found.ids for name in ids} & {f"id{n:05d}" for n in range(0, ROWS, 9)}


def test_selections_give_k_rows_and_small_ones_exact_answers(archive: Archive) -> None:
    large = Index(archive)
    large._large = LargeSearch(archive.store, "sketches")
    queries = clustered(6, seed=6)
    exact = Index(archive.snapshot())
    few = large.search(queries, 12, where={"tenth": 3})
    assert few.exact
    assert few.ids == exact.search(queries, 12, where={"tenth": 3}).ids
    many = large.search(queries, 12, where={"half": 1})
    assert not many.exact
    truth = exact.search(queries, 12, where={"half": 1}).ids
    assert [len(ids) for ids in many.ids] == [12] * 6
    assert np.mean([len(set(a) & set(b)) / 12 for a, b in zip(many.ids, truth, strict=True)]) > 0.99
    assert all(int(name[2:]) % 2 == 1 for ids in many.ids for name in ids)


def test_rows_that_are_all_alike_or_zero_are_found(archive: Archive) -> None:
    same = np.ones((1500, DIM), dtype=np.float32)
    same[:20] = 0
    archive.add([f"same{n:04d}" for n in range(1500)], same)
    found = LargeSearch(archive.store, "sketches").search(np.ones((1, DIM), dtype=np.float32), 5)
    np.testing.assert_allclose(found.similarities[0], 1.0)
    assert all(name.startswith("same") for name in found.ids[0])
    nothing = LargeSearch(archive.store, "sketches").search(np.zeros((1, DIM), dtype=np.float32), 3)
    assert nothing.similarities[0].tolist() == [0.0, 0.0, 0.0]


def test_sketches_are_read_back_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = clustered(700)
    segment = Segment(1, f"seg-{'0' * 32}.f32", "a" * 64, 700)
    sketches = build_sketches(rows)
    write_sketches(tmp_path, segment, sketches)
    back = read_sketches(tmp_path, segment, DIM)
    assert back is not None
    queries = normalised(clustered(4, seed=1))
    for mine, theirs in zip(sketches.propose(queries, 9, shard=0), back.propose(queries, 9, shard=0), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    path = sketches_path(tmp_path, segment)
    whole = path.read_bytes()
    assert len(whole) < 1000 + 4 * DIM + 700 * bytes_per_row(DIM)
    assert read_sketches(tmp_path, Segment(1, segment.name, "b" * 64, 700), DIM) is None
    assert read_sketches(tmp_path, Segment(1, segment.name, "a" * 64, 701), DIM) is None
    assert read_sketches(tmp_path, segment, DIM + 8) is None
    rng = np.random.default_rng(0)
    damages = [whole[:-1], whole + b"x", b"", whole[:40]]
    for _ in range(100):
        at = int(rng.integers(len(whole)))
        damages.append(whole[:at] + bytes([whole[at] ^ (1 << int(rng.integers(8)))]) + whole[at + 1 :])
    for damage in damages:
        path.write_bytes(damage)
        assert read_sketches(tmp_path, segment, DIM) is None
    load_or_build_sketches(tmp_path, segment, DIM, lambda: rows)
    assert path.read_bytes() == whole
    monkeypatch.setattr(faiss, "__version__", "9.9.9")
    assert read_sketches(tmp_path, segment, DIM) is None


def test_a_stored_vector_that_changed_is_found_before_it_is_used(archive: Archive) -> None:
    query = clustered(1, seed=2)
    best = LargeSearch(archive.store, "sketches").search(query, 1).ids[0][0]
    with archive.store.reading() as connection:
        key, position = connection.execute("SELECT segment, position FROM rows WHERE id = ?", (best,)).fetchone()
        (name,) = connection.execute("SELECT name FROM segments WHERE key = ?", (key,)).fetchone()
    path = archive.path / "segments" / name
    content = bytearray(path.read_bytes())
    content[24 + 4 * DIM * position + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArchiveCorrupt, match=r"changed after it was written|does not match its recorded SHA-256"):
        LargeSearch(archive.store, "sketches").search(query, 1)


def test_a_purge_takes_sketches_and_verify_notes_damaged_ones(archive: Archive) -> None:
    LargeSearch(archive.store, "sketches").search(clustered(1), 1)
    folder = archive.path / "cache"
    old = {path.name for path in folder.glob("*.rbq")}
    assert len(old) == 2
    path = folder / min(old)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    report = archive.verify()
    assert report.ok
    assert f"'{path}' is not what was written; the next search makes it anew." in report.notes
    archive.purge()
    assert not {path.name for path in folder.glob("*.rbq")} & old
    assert archive.verify().ok


# -- limits -------------------------------------------------------------------------------------------------------


def test_the_exact_way_is_chosen_where_it_keeps_to_the_limits(archive: Archive) -> None:
    index = Index(archive, limits=SearchLimits(memory="1 GB", milliseconds=60_000))
    query = clustered(1, seed=3)
    assert index.search(query, 4).ids[0] == [name for name, _ in slow(archive, query[0], 4)]
    assert re.fullmatch(r"8-bit codes: recall@10 1\.000, \d+\.\d ms a query, 0\.\d MB\.", index.plan)
    assert Index(archive).plan == "Every row is searched."


def test_sketches_are_chosen_where_memory_is_short_and_codes_are_never_made(archive: Archive) -> None:
    small = 300 * 8 * DIM + 5700 * bytes_per_row(DIM) + 2 * ROWS
    _, choice = choose(archive.store, SearchLimits(memory=small))
    assert (choice.form, choice.memory <= small, choice.recall >= 0.99) == ("sketches", True, True)
    index = Index(archive, limits=SearchLimits(memory=small))
    assert not index.search(clustered(1), 5).exact
    assert index.plan.startswith("1-bit sketches: recall@10 ")
    assert not list((archive.path / "cache").glob("*.sq8"))


def test_sketches_are_chosen_where_time_is_short(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "_milliseconds", lambda search: 30.0 if search.form == "codes" else 4.0)
    index = Index(archive, limits=SearchLimits(milliseconds=20))
    index.tune()
    assert index.plan.startswith("1-bit sketches: recall@10 ")
    with pytest.raises(ValueError, match=r"keeps the limits \(3 ms, recall 0\.99\): 8-bit codes take 30\.0 ms"):
        Index(archive, limits=SearchLimits(milliseconds=3)).tune()


def test_a_search_within_limits_gives_k_rows_and_follows_the_archive(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_module, "SKETCHED", 1500)  # of few numbers a bit tells little
    index = Index(archive, limits=SearchLimits(memory=5700 * bytes_per_row(DIM) + 300 * 8 * DIM + 2 * ROWS + 40_000))
    queries = clustered(3, seed=7)
    assert [len(ids) for ids in index.search(queries, 3000).ids] == [3000] * 3
    assert index.plan.startswith("1-bit sketches")
    near = Index(archive.snapshot()).search(queries[:1], 400).ids[0]
    archive.remove(ids=near)
    archive.add(["same"], queries[:1])
    truth = Index(archive.snapshot()).search(queries[:1], 20).ids[0]
    assert len(set(index.search(queries[:1], 20).ids[0]) & set(truth)) >= 19
    assert index.search(queries[:1], 1).ids == [["same"]]
    with archive.store.reading() as connection:
        segments = archive.store.segments(connection)
    assert merge(archive.store, [segment for segment in segments if segment.live])
    found = index.search(queries[:1], 20)
    assert len(set(found.ids[0]) & set(truth)) >= 19
    assert found.version == archive.version and not found.exact


def test_limits_nothing_keeps_to_are_refused_each_time(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(archive, limits=SearchLimits(memory=100))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"limits \(0\.0 MB, .*codes take 0\.4 MB; .*sketches take 0\.2 MB"):
            index.search(clustered(1), 3)
    monkeypatch.setattr(limits_module, "measured_recall", lambda search: 0.9 if search.form == "sketches" else 1.0)
    with pytest.raises(ValueError, match=r"1-bit sketches take \d+\.\d ms at a recall of 0\.900"):
        Index(archive, limits=SearchLimits(memory=300_000)).tune()
    Index(archive, limits=SearchLimits(memory=300_000, recall=0.85)).tune()
    monkeypatch.delattr(faiss, "IndexRaBitQ")
    with pytest.raises(ValueError, match=r"sketches need FAISS 1\.11 or newer"):
        Index(archive, limits=SearchLimits(memory=300_000)).tune()


def test_limits_are_measured_anew_when_the_archive_has_grown(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "_milliseconds", lambda search: 1.0 if search.form == "codes" else 0.5)
    index = Index(archive, limits=SearchLimits(milliseconds=2))
    index.search(clustered(1), 1)
    assert index.plan.startswith("8-bit codes")
    monkeypatch.setattr(limits_module, "_milliseconds", lambda search: 3.0 if search.form == "codes" else 1.0)
    index.search(clustered(1), 1)
    assert index.plan.startswith("8-bit codes")
    archive.add([f"more{n:05d}" for n in range(1600)], clustered(1600, seed=9))
    index.search(clustered(1), 1)
    assert index.plan.startswith("1-bit sketches")


def test_wrong_limits_are_refused() -> None:
    for memory in ("much", "1 parsec", -1, 0, "-3 MB"):
        with pytest.raises(ValueError, match="limit memory must be above 0, in bytes or as text such as '1 GB'; got"):
            SearchLimits(memory=memory)
    for milliseconds in (0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="limit milliseconds must be above 0; got"):
            SearchLimits(milliseconds=milliseconds)
    with pytest.raises(ValueError, match=r"limit recall must be above 0 and at most 1; got 1\.5"):
        SearchLimits(recall=1.5)
    amounts = [SearchLimits(memory=memory).bytes() for memory in (7, "7", "1.5 MB", "2 GiB")]
    assert amounts == [7, 7, 1_500_000, 2 * 2**30]


def test_recall_is_measured_against_every_vector(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    assert measured_recall(LargeSearch(archive.store), k=5, queries=20, seed=4) == 1.0
    # With a single candidate ranked beyond k per query, answers are bound to be worse, and must be seen to be.
    monkeypatch.setattr(large_module, "SPARE", 0)
    monkeypatch.setattr(large_module, "SKETCHED", 0)
    recall = measured_recall(LargeSearch(archive.store, "sketches"), k=5, queries=40, seed=4)
    assert 0.2 < recall < 1.0
    index = Index(archive)
    index._large = LargeSearch(archive.store, "sketches")
    assert index.measure_recall(k=5, queries=40, seed=4) == recall


def test_an_empty_archive_keeps_to_any_limit(tmp_path: Path) -> None:
    with Archive.create(
        tmp_path / "e", encoder_name="e", encoder_fingerprint="f" * 64, encoder_spec=None, dim=DIM
    ) as held:
        index = Index(held, limits=SearchLimits(memory=10, milliseconds=5))
        index.tune()
        assert "recall@10 1.000" in index.plan
        assert index.search(clustered(1), 3).ids == [[]]
