"""Index: exact, canonical, and the same whatever else is asked or was removed."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from embeddings.archive import Archive
from embeddings.index import Index


def make(folder: Path, ids: list[str], vectors: np.ndarray) -> Archive:
    archive = Archive.create(
        folder, encoder_name="fake", encoder_fingerprint="0" * 64, encoder_spec=None, dim=vectors.shape[1]
    )
    archive.add(ids, vectors)
    return archive


def slow_similarity(query: np.ndarray, row: np.ndarray, metric: str) -> float:
    q, x = [float(value) for value in query], [float(value) for value in row]
    dot = sum(a * b for a, b in zip(q, x, strict=True))
    if metric == "dot":
        return dot
    if metric == "euclidean":
        return -(sum((a - b) ** 2 for a, b in zip(q, x, strict=True)) ** 0.5)
    length = (sum(a * a for a in q) * sum(b * b for b in x)) ** 0.5
    return dot / length if length else 0.0


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
@pytest.mark.parametrize("count", [3, 300])
def test_search_equals_a_slow_loop(tmp_path: Path, metric: str, count: int) -> None:
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(count, 12)).astype(np.float32) * rng.uniform(0.1, 9, size=(count, 1)).astype(np.float32)
    ids = [f"row {number:03d}" for number in rng.permutation(count)]
    queries = rng.normal(size=(25, 12)).astype(np.float32)
    answer = Index(make(tmp_path / "a", ids, vectors), metric=metric).search(queries, 5)
    for query, found, similarities in zip(queries, answer.ids, answer.similarities, strict=True):
        truth = sorted(
            ((-slow_similarity(query, row, metric), identity) for identity, row in zip(ids, vectors, strict=True))
        )
        assert found == [identity for _, identity in truth[:5]]
        np.testing.assert_allclose(similarities, [-value for value, _ in truth[:5]], rtol=1e-6, atol=1e-6)
    assert answer.similarities.dtype == np.float32
    assert answer.similarities.shape == (25, min(5, count))


def test_ties_go_by_id_even_when_all_rows_are_equal(tmp_path: Path) -> None:
    vectors = np.ones((500, 8), dtype=np.float32)
    ids = [f"{number}" for number in range(500)]
    answer = Index(make(tmp_path / "a", ids, vectors)).search(np.ones((30, 8)), 7)
    assert answer.ids == [sorted(ids)[:7]] * 30


@pytest.mark.parametrize("copies", [2, 3, 200])
@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_ties_go_by_id_within_the_answer(tmp_path: Path, metric: str, copies: int) -> None:
    rng = np.random.default_rng(copies)
    vectors = np.repeat(rng.normal(size=(600 // copies, 8)).astype(np.float32), copies, axis=0)
    ids = [f"{number:03d}" for number in rng.permutation(600)]
    queries = rng.normal(size=(5, 8)).astype(np.float32)
    answer = Index(make(tmp_path / "a", ids, vectors), metric=metric).search(queries, 250 if copies == 200 else 9)
    for query, found in zip(queries, answer.ids, strict=True):
        rank = {identity: -slow_similarity(query, row, metric) for identity, row in zip(ids, vectors, strict=True)}
        truth = sorted(ids, key=lambda identity: (rank[identity], identity))
        assert found == truth[: len(found)]


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_near_ties_below_the_precision_of_float32_are_still_exact(tmp_path: Path, metric: str) -> None:
    rng = np.random.default_rng(2)
    base = (100 + rng.normal(size=64)).astype(np.float32)
    vectors = np.repeat(base[None], 400, axis=0)
    vectors[:, 3] += (rng.integers(-20, 20, size=400) * 2.0**-16).astype(np.float32)
    ids = [f"{number:03d}" for number in range(400)]
    query = base + 1e-3 * rng.normal(size=64).astype(np.float32)
    found = Index(make(tmp_path / "a", ids, vectors), metric=metric).search(query[None], 9).ids[0]
    wide, q = vectors.astype(np.longdouble), query.astype(np.longdouble)
    score = {
        "cosine": (wide @ q) / np.sqrt((wide**2).sum(1)),
        "euclidean": -((wide - q) ** 2).sum(1),
        "dot": wide @ q,
    }[metric]
    truth = sorted(score, reverse=True)[:9]
    np.testing.assert_allclose(
        np.asarray([score[int(identity)] for identity in found], dtype=float),
        np.asarray(truth, dtype=float),
        rtol=1e-13,
    )


@pytest.mark.parametrize("metric", ["cosine", "euclidean", "dot"])
def test_an_answer_does_not_depend_on_batch_mates(tmp_path: Path, metric: str) -> None:
    rng = np.random.default_rng(3)
    archive = make(tmp_path / "a", [f"{n}" for n in range(2000)], rng.normal(size=(2000, 48)).astype(np.float32))
    index = Index(archive, metric=metric)
    queries = rng.normal(size=(64, 48)).astype(np.float32)
    together = index.search(queries, 10)
    for place in (0, 1, 31, 63):
        alone = index.search(queries[place : place + 1], 10)
        assert alone.ids[0] == together.ids[place]
        assert alone.similarities[0].tobytes() == together.similarities[place].tobytes()


def test_removed_equals_never_registered_to_the_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    vectors = rng.normal(size=(300, 40)).astype(np.float32)
    ids = [f"{number}" for number in range(300)]
    gone = set(ids[::3])
    queries = rng.normal(size=(40, 40)).astype(np.float32)
    removed = make(tmp_path / "removed", ids, vectors)
    index = Index(removed)
    assert gone & {identity for line in index.search(queries, 20).ids for identity in line}
    removed.remove(ids=gone)
    after = index.search(queries, 20)
    kept = [place for place, identity in enumerate(ids) if identity not in gone]
    never = Index(make(tmp_path / "never", [ids[place] for place in kept[::-1]], vectors[kept[::-1]])).search(
        queries, 20
    )
    assert after.ids == never.ids
    assert after.similarities.tobytes() == never.similarities.tobytes()


def test_among_is_exact_over_the_subset_and_gives_k_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(500, 16)).astype(np.float32)
    ids = [f"{number:03d}" for number in range(500)]
    index = Index(make(tmp_path / "a", ids, vectors))
    queries = rng.normal(size=(4, 16)).astype(np.float32)
    subset = ids[7::9]
    answer = index.search(queries, 12, among=[*subset, "not there"])
    alone = Index(make(tmp_path / "b", subset, vectors[7::9])).search(queries, 12)
    assert answer.ids == alone.ids
    assert answer.similarities.tobytes() == alone.similarities.tobytes()
    assert index.search(queries, 99, among=ids[:3]).similarities.shape == (4, 3)
    assert index.search(queries, 5, among=[]).ids == [[], [], [], []]


def test_fewer_rows_than_k_and_no_rows_at_all(tmp_path: Path) -> None:
    archive = make(tmp_path / "a", ["x", "y"], np.eye(2, dtype=np.float32))
    assert Index(archive).search([[1.0, 0.1]], 10).ids == [["x", "y"]]
    archive.remove(ids=["x", "y"])
    empty = Index(archive).search([[1.0, 0.1]], 10)
    assert (empty.ids, empty.similarities.shape) == ([[]], (1, 0))


def test_a_zero_vector_has_similarity_zero(tmp_path: Path) -> None:
    archive = make(tmp_path / "a", ["minus", "zero"], np.asarray([[-1.0, 0.0], [0.0, 0.0]], dtype=np.float32))
    answer = Index(archive).search([[1.0, 0.0], [0.0, 0.0]], 2)
    assert answer.ids == [["zero", "minus"], ["minus", "zero"]]
    assert answer.similarities.tolist() == [[0.0, -1.0], [0.0, 0.0]]


def test_an_index_on_an_archive_follows_it_and_one_on_a_snapshot_does_not(tmp_path: Path) -> None:
    archive = make(tmp_path / "a", ["x", "y"], np.eye(2, dtype=np.float32))
    follows, pinned = Index(archive), Index(archive.snapshot())
    before = follows.search([[1.0, 0.0]], 1)
    with Archive.open(tmp_path / "a") as other:
        other.remove(ids=["x"])
    after = follows.search([[1.0, 0.0]], 1)
    assert (before.ids, after.ids, pinned.search([[1.0, 0.0]], 1).ids) == ([["x"]], [["y"]], [["x"]])
    assert after.version > before.version
    assert (len(follows), len(pinned)) == (1, 2)


def test_wrong_queries_are_refused_in_one_sentence(tmp_path: Path) -> None:
    index = Index(make(tmp_path / "a", ["x"], np.ones((1, 4), dtype=np.float32)))
    with pytest.raises(
        ValueError, match=r"Query vectors have 3 dimensions, the comparison set has 4: were both made by"
    ):
        index.search(np.ones((1, 3)), 1)
    with pytest.raises(ValueError, match=r"must be finite; row 1 holds NaN"):
        index.search([[1, 2, 3, 4], [1, 2, np.nan, 4]], 1)
    with pytest.raises(ValueError, match=r"shape \(m, d\); got \(4,\)"):
        index.search(np.ones(4), 1)
    with pytest.raises(ValueError, match=r"k must be at least 1; got 0"):
        index.search(np.ones((1, 4)), 0)
    with pytest.raises(ValueError, match=r"one of cosine, euclidean, dot; got 'l2'"):
        Index(index._source, metric="l2")


def test_without_faiss_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    index = Index(make(tmp_path / "a", ["x"], np.ones((1, 4), dtype=np.float32)))
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"pip install radshot\[cpu\]"):
        index.search(np.ones((1, 4)), 1)
