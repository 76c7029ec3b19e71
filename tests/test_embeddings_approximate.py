"""Limits on a search: kept by searching every row where that does, else by an index whose recall is told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from embeddings import Archive, Index, SearchLimits
from embeddings import tuning as tuning_module
from embeddings.approximate import CODES, Shortcut, lists_for, shortcut_bytes

from .test_embeddings_large_search import DIM, clustered, fill, make, slow


@pytest.fixture
def archive(tmp_path: Path) -> Iterator[Archive]:
    with make(tmp_path / "a") as held:
        fill(held, clustered(5000))
        yield held


def spend(monkeypatch: pytest.MonkeyPatch, every_row: float, per_list: float) -> None:
    """Say what searches cost instead of measuring it."""

    def milliseconds(search: object, queries: object) -> float:
        shortcut: Shortcut | None = search.shortcut  # type: ignore[attr-defined]
        return every_row if shortcut is None else per_list * shortcut.probes

    monkeypatch.setattr(tuning_module, "_milliseconds", milliseconds)


def test_where_every_row_keeps_the_limits_every_row_is_searched(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    spend(monkeypatch, every_row=5, per_list=1)
    index = Index(archive, limits=SearchLimits(milliseconds=6, memory=10 * 5000 * DIM))
    query = clustered(1, seed=1)
    found = index.search(query, 5)
    assert found.exact and found.ids[0] == slow(archive, query[0], 5)
    assert index.plan.startswith("Every row is searched: 5.0 ms a query")


def test_else_an_index_is_made_and_its_recall_told(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    spend(monkeypatch, every_row=50, per_list=1)
    index = Index(archive, limits=SearchLimits(milliseconds=16))
    queries = clustered(20, seed=1)
    found = index.search(queries, 5)
    told = re.fullmatch(
        r"Rows are searched approximately \(IVF256,SQ8, (\d+) lists a query\): recall@10 (\d\.\d{3}), (\d+\.\d) ms .*",
        index.plan,
    )
    assert told is not None and int(told[1]) <= 16 and float(told[2]) > 0.5
    assert not found.exact
    truth = Index(archive.snapshot()).search(queries, 5)
    hits = np.mean([len(set(a) & set(b)) / 5 for a, b in zip(truth.ids, found.ids, strict=True)])
    assert hits > 0.5
    for ids, similarities, expected in zip(found.ids, found.similarities, truth.similarities, strict=True):
        assert len(ids) == 5 and (similarities <= expected + 1e-6).all()  # what is found is scored exactly
    chosen = index.search(queries, 5, where={"modality": "CT"})
    assert chosen.exact
    assert chosen.ids == Index(archive.snapshot()).search(queries, 5, where={"modality": "CT"}).ids


def test_what_comes_and_goes_shows_at_once(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    spend(monkeypatch, every_row=50, per_list=1)
    index = Index(archive, limits=SearchLimits(milliseconds=40))
    query = clustered(1, seed=7)
    first = index.search(query, 3).ids[0]
    archive.add(["same"], query)
    assert index.search(query, 1).ids == [["same"]]
    archive.remove(ids=["same", first[0]])
    assert index.search(query, 2).ids[0] == first[1:]
    before = index._large.shortcut  # type: ignore[union-attr]
    fill(archive, clustered(3000, seed=3), first=5000)
    assert index.search(query, 2).version == archive.version
    assert index._large.shortcut is not before  # type: ignore[union-attr]  # more than a fifth is new


def test_memory_decides_how_rows_are_kept(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    spend(monkeypatch, every_row=50, per_list=0.1)
    sizes = [shortcut_bytes(5000, DIM, code) for code in CODES]
    assert sizes == sorted(sizes, reverse=True)
    index = Index(archive, limits=SearchLimits(milliseconds=20, memory=sizes[-1] + 1))
    index.search(clustered(1), 1)
    assert ",SQ4," in index.plan
    with pytest.raises(ValueError, match=r"No index of 5,000 rows of 24 numbers keeps the limits \(0 MB\): searching"):
        Index(archive, limits=SearchLimits(memory=1000)).search(clustered(1), 1)
    with pytest.raises(ValueError, match="keeps the limits"):
        Index(archive, limits=SearchLimits(milliseconds=0.01)).search(clustered(1), 1)


def test_limits_make_sense() -> None:
    for wrong in ({"milliseconds": 0}, {"memory": -1}, {"milliseconds": float("nan")}):
        with pytest.raises(ValueError, match="must be above 0"):
            SearchLimits(**wrong)  # type: ignore[arg-type]
    assert [lists_for(rows) for rows in (1, 5000, 1_000_000, 10**9)] == [4, 256, 4096, 16384]


def test_it_is_measured_where_nobody_says_what_it_costs(archive: Archive) -> None:
    index = Index(archive, limits=SearchLimits(milliseconds=60_000))
    assert index.search(clustered(1), 2).exact
    assert "Every row is searched" in index.plan
