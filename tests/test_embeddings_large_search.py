"""Large archives: quantised search against slow loops, selections, versions, damage, and merging while all goes on."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from embeddings import Archive, ArchiveCorrupt, Index, UnknownId
from embeddings import large_search as large_module
from embeddings import merging as merging_module
from embeddings import quantised as quantised_module
from embeddings import search_limits as search_limits_module
from embeddings import sketches as sketches_module
from embeddings import view as view_module
from embeddings.large_search import LargeSearch
from embeddings.merging import due, merge, tier_of
from embeddings.quantised import build_codes, codes_path, load_or_build, normalised, read_codes, write_codes
from embeddings.segments import Segment
from embeddings.summation import cosines
from embeddings.view import condition_of

DIM = 24


def clustered(count: int, seed: int = 0) -> NDArray[np.float32]:
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(40, DIM))
    return (centres[rng.integers(0, 40, count)] + 0.5 * rng.normal(size=(count, DIM))).astype(np.float32)


def make(path: Path) -> Archive:
    return Archive.create(path, encoder_name="e", encoder_fingerprint="f" * 64, encoder_spec=None, dim=DIM)


def facts(number: int) -> dict[str, object]:
    return {"modality": "CT" if number % 10 == 0 else "MR", "patient": f"p{number // 3}", "slices": number % 7}


def fill(archive: Archive, vectors: NDArray[np.float32], first: int = 0, step: int = 1500) -> None:
    for start in range(0, len(vectors), step):
        part = vectors[start : start + step]
        numbers = range(first + start, first + start + len(part))
        archive.add([f"id{n:06d}" for n in numbers], part, metadata=[facts(n) for n in numbers])


@pytest.fixture
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a few thousand rows count as a large archive."""
    monkeypatch.setattr(large_module, "EXACT_ROWS", 1000)
    monkeypatch.setattr(view_module, "QUANTISED_ROWS", 512)


@pytest.fixture(params=[1 << 17, 1000])
def archive(
    tmp_path: Path, small_limits: None, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Archive]:
    for module in (quantised_module, view_module, sketches_module):
        monkeypatch.setattr(module, "SHARD", request.param)
    for module in (quantised_module, sketches_module, search_limits_module):
        monkeypatch.setattr(module, "ROWS_AT_ONCE", 500)
    with make(tmp_path / "a") as held:
        fill(held, clustered(6000))
        yield held


def slow(archive: Archive, query: NDArray[np.float32], k: int, rows: list[int] | None = None) -> list[str]:
    """Every cosine, one after the other."""
    snapshot = archive.snapshot()
    scored = []
    for row in range(len(snapshot)) if rows is None else rows:
        vector = snapshot.vectors[row].astype(np.float64)
        wide = query.astype(np.float64)
        scored.append((-float(vector @ wide / np.sqrt((vector @ vector) * (wide @ wide))), snapshot.ids[row]))
    return [name for _, name in sorted(scored)[:k]]


@pytest.mark.parametrize("exact_rows", [1000, 100_000])
def test_the_answers_are_those_of_a_slow_loop(
    archive: Archive, monkeypatch: pytest.MonkeyPatch, exact_rows: int
) -> None:
    monkeypatch.setattr(large_module, "EXACT_ROWS", exact_rows)
    queries = clustered(12, seed=5)
    found = Index(archive).search(queries, 7)
    assert found.exact or exact_rows == 1000
    assert found.version == archive.version
    for query, ids in zip(queries, found.ids, strict=True):
        assert ids == slow(archive, query, 7)
    in_memory = Index(archive.snapshot()).search(queries, 7)
    assert found.ids == in_memory.ids
    np.testing.assert_array_equal(found.similarities, in_memory.similarities)


def test_a_selection_is_searched_exactly_and_gives_k_rows(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_module, "SMALL_SELECTION", 100)
    index = Index(archive)
    queries = clustered(5, seed=6)
    facts_of = archive.snapshot().metadata
    for where in ({"modality": "CT"}, {"modality": "CT", "slices": [0, 3]}, {"slices": (1, 2)}, {"patient": "p7"}):
        rows = [
            row
            for row, known in enumerate(facts_of)
            if all(
                known[key] in (value if isinstance(value, list | tuple) else [value]) for key, value in where.items()
            )
        ]
        chosen = index.select(where=where)
        for way in (index.search(queries, 9, where=where), index.search(queries, 9, among=chosen)):
            assert way.exact
            for query, ids in zip(queries, way.ids, strict=True):
                assert ids == slow(archive, query, 9, rows)
                assert len(ids) == min(9, len(rows))
    some = [f"id{number:06d}" for number in range(0, 6000, 11)] + ["nowhere"]
    assert index.search(queries, 3, among=some).ids == Index(archive.snapshot()).search(queries, 3, among=some).ids
    both = index.search(queries, 500, among=some, where={"modality": "CT"})
    assert {len(ids) for ids in both.ids} == {len(range(0, 6000, 110))}
    assert index.search(queries, 5, where={"modality": "US"}).ids == [[]] * 5


def test_small_and_large_archives_take_the_same_conditions(tmp_path: Path) -> None:
    with make(tmp_path / "few") as few:
        fill(few, clustered(50))
        index = Index(few)
        ids = index.search(clustered(1, seed=1), 50, where={"modality": "CT", "slices": [0, 3, 6]}).ids[0]
        assert sorted(ids) == ["id000000", "id000010", "id000020"]
        with pytest.raises(ValueError, match="names at least one key"):
            index.search(clustered(1), 1, where={})
        with pytest.raises(ValueError, match="'modality' was to be None"):
            index.search(clustered(1), 1, where={"modality": None})
        with pytest.raises(ValueError, match="needs ids or a condition"):
            index.select()
        with pytest.raises(ValueError, match="not beside a selection"):
            index.search(clustered(1), 1, among=index.select(ids=["id000001"]), where={"slices": 1})
        assert index.search(clustered(1), 3, among=index.select(ids="id000001")).ids == [["id000001"]]


def test_keys_are_taken_as_they_are(tmp_path: Path) -> None:
    keys = ["Größe", 'a"b', "a'b", "a.b", "a\\b", "ab"]
    with make(tmp_path / "a") as held:
        rows = clustered(len(keys))
        held.add([str(n) for n in range(len(keys))], rows, metadata=[{key: "x"} for key in keys])
        for number, key in enumerate(keys):
            assert held.find({key: "x"}) == [str(number)]
            assert held.value_counts(key) == {"x": 1}
        assert held.remove(where={'a"b': "x"}) == ("1",)
    sql, values = condition_of({'a" OR 1=1 --': "x"})
    assert "OR 1=1" not in sql
    assert values == ['a" OR 1=1 --', "x"]


def test_what_is_added_and_removed_shows_at_once(archive: Archive) -> None:
    index = Index(archive)
    query = clustered(1, seed=9)
    before = index.search(query, 3)
    archive.add(["same"], query)
    assert index.search(query, 1).ids == [["same"]]
    archive.remove(ids=["same", before.ids[0][0]])
    after = index.search(query, 2)
    assert after.ids[0] == before.ids[0][1:]
    assert after.version == before.version + 2
    assert len(index) == 5999
    archive.remove(patient=str(archive.metadata[0]["patient"]))
    assert index.search(query, 8).ids[0] == slow(archive, query[0], 8)


def test_equal_rows_come_in_order_of_their_ids(archive: Archive) -> None:
    vector = clustered(1, seed=3)
    archive.add(["z", "a", "m"], np.repeat(vector, 3, axis=0))
    assert Index(archive).search(vector, 2).ids == [["a", "m"]]


def test_zero_rows_and_zero_queries(archive: Archive) -> None:
    archive.add(["nothing"], np.zeros((1, DIM), dtype=np.float32))
    found = Index(archive).search(np.zeros((1, DIM), dtype=np.float32), 3)
    assert found.similarities.tolist() == [[0.0, 0.0, 0.0]]
    assert found.ids == [["id000000", "id000001", "id000002"]]


def test_too_many_equals_are_answered_but_not_called_proven(
    tmp_path: Path, small_limits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = np.ones((3000, DIM), dtype=np.float32) + np.float32(1e-6) * clustered(3000)
    with make(tmp_path / "a") as archive:
        fill(archive, rows)
        found = Index(archive).search(rows[:1], 4)
        assert not found.exact
        assert len(found.ids[0]) == 4
        assert Index(archive).search(rows[:1], 4, where={"modality": "MR"}).exact
        monkeypatch.setattr(large_module, "EXACT_ROWS", 3000)
        found = Index(archive).search(rows[:1], 4)
        assert found.exact and found.ids[0] == slow(archive, rows[0], 4)


def test_a_segment_merged_away_under_a_search_is_no_error(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    query, gone = clustered(1, seed=2), []
    for name in ("map_segment", "read_segment"):
        original = getattr(view_module, name)

        def once(*given: object, original: object = original, **named: object) -> object:
            if len(gone) < 2:
                gone.append(1)
                raise FileNotFoundError(2, "No such file or directory", "seg-x.f32")
            return original(*given, **named)  # type: ignore[operator]

        monkeypatch.setattr(view_module, name, once)
    assert LargeSearch(archive.store).search(query, 4).ids[0] == slow(archive, query[0], 4)
    gone.clear()
    assert archive.rows(["id000003"])[0][0]["patient"] == "p1"
    assert len(gone) == 2
    monkeypatch.setattr(large_module, "READ_ATTEMPTS", 2)
    gone.clear()
    with pytest.raises(ArchiveCorrupt, match=r"The segment 'seg-x\.f32' is missing: run `radshot verify`"):
        LargeSearch(archive.store).search(query, 4)


def test_rows_are_read_one_by_one(archive: Archive) -> None:
    snapshot = archive.snapshot()
    names = ["id000007", "id005999", "id000007"]
    metadata, vectors = archive.rows(names)
    assert metadata == [snapshot.metadata[snapshot.positions[name]] for name in names]
    np.testing.assert_array_equal(vectors, snapshot.vectors[[snapshot.positions[name] for name in names]])
    assert archive.has("id000007") and not archive.has("nowhere")
    assert archive.ids_of(snapshot.hashes[5]) == [snapshot.ids[5]]
    assert archive.value_counts("modality") == {"CT": 600, "MR": 5400}
    assert archive.value_counts("nothing") == {}
    with pytest.raises(UnknownId, match="has no row of id 'nowhere'"):
        archive.rows(["id000001", "nowhere"])


def test_recall_is_measured(archive: Archive) -> None:
    assert Index(archive).measure_recall(k=5, queries=20) == 1.0


def test_the_bound_holds_and_the_codes_are_close() -> None:
    rows = clustered(3000) * np.random.default_rng(1).uniform(0.1, 50, (3000, 1)).astype(np.float32)
    rows[:, 0] *= 30  # one dimension of another scale
    codes = build_codes(rows)
    queries = normalised(clustered(10, seed=2))
    found, approximate, slack = codes.propose(queries, 3000, shard=0)
    for query, places, values, bound in zip(queries, found, approximate, slack, strict=True):
        exact = cosines(query, rows[places])
        assert np.abs(exact - values).max() <= bound
        assert np.abs(exact - values).max() < 0.05
        assert (np.diff(values) <= 1e-9).all()


def test_codes_are_read_back_or_not_at_all(tmp_path: Path) -> None:
    rows = clustered(700)
    segment = Segment(1, f"seg-{'0' * 32}.f32", "a" * 64, 700)
    codes = build_codes(rows)
    write_codes(tmp_path, segment, codes)
    back = read_codes(tmp_path, segment, DIM)
    assert back is not None
    queries = normalised(clustered(4, seed=1))
    for mine, theirs in zip(codes.propose(queries, 9, shard=0), back.propose(queries, 9, shard=0), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    other = Segment(1, segment.name, "b" * 64, 700)
    assert read_codes(tmp_path, other, DIM) is None
    assert read_codes(tmp_path, segment, DIM + 1) is None
    assert read_codes(tmp_path, Segment(1, segment.name, "a" * 64, 701), DIM) is None
    path = codes_path(tmp_path, segment)
    whole = path.read_bytes()
    rng = np.random.default_rng(0)
    damages = [
        whole[:-1],
        whole + b"x",
        b"",
        whole[:40],
        whole[: len(whole) // 2] + bytes(len(whole) - len(whole) // 2),
    ]
    for _ in range(150):
        at = int(rng.integers(len(whole)))
        damages.append(whole[:at] + bytes([whole[at] ^ (1 << int(rng.integers(8)))]) + whole[at + 1 :])
    for damage in damages:
        path.write_bytes(damage)
        assert read_codes(tmp_path, segment, DIM) is None
    rebuilt = load_or_build(tmp_path, segment, DIM, lambda: rows)
    np.testing.assert_array_equal(rebuilt.checksums, codes.checksums)
    assert path.read_bytes() == whole


def test_a_cache_that_cannot_be_written_is_done_without(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    shutil.rmtree(archive.path / "cache", ignore_errors=True)
    monkeypatch.setattr(quantised_module, "write_codes", full)
    query = clustered(1, seed=2)
    assert Index(archive).search(query, 4).ids[0] == slow(archive, query[0], 4)
    assert not (archive.path / "cache").exists()


def test_a_stored_vector_that_changed_is_found_before_it_is_used(archive: Archive) -> None:
    query = clustered(1, seed=2)
    best = Index(archive).search(query, 1).ids[0][0]
    with archive.store.reading() as connection:
        key, position = connection.execute("SELECT segment, position FROM rows WHERE id = ?", (best,)).fetchone()
        (name,) = connection.execute("SELECT name FROM segments WHERE key = ?", (key,)).fetchone()
    path = archive.path / "segments" / name
    content = bytearray(path.read_bytes())
    content[24 + 4 * DIM * position + 5] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArchiveCorrupt, match="changed after it was written: run `radshot verify`"):
        LargeSearch(archive.store).search(query, 1)
    shutil.rmtree(archive.path / "cache")
    with pytest.raises(ArchiveCorrupt, match="does not match its recorded SHA-256"):
        LargeSearch(archive.store).search(query, 1)


@pytest.mark.parametrize(
    ("statement", "sentence"),
    [
        ("UPDATE rows SET hash = 'x'", "does not match its checksum"),
        ("UPDATE segments SET live = live - 1 WHERE key = (SELECT min(key) FROM segments)", "as many live rows"),
        ("UPDATE rows SET position = -1 WHERE id = 'id000000'", "no row is at place|live rows it should|checksum"),
    ],
)
def test_a_database_that_changed_is_found(archive: Archive, statement: str, sentence: str) -> None:
    with archive.store.reading() as connection:
        connection.execute(statement)
    with pytest.raises(ArchiveCorrupt, match=sentence):
        LargeSearch(archive.store).search(clustered(1) * 0, 6000)


# -- merging ------------------------------------------------------------------------------------------------------


def test_tiers_grow_eightfold() -> None:
    assert [tier_of(rows) for rows in (1, 4095, 4096, 32767, 32768, 262144)] == [0, 0, 1, 1, 2, 3]
    tier_one = [Segment(key, "", "", 5000, 5000) for key in range(8)]
    assert due(tier_one[:7]) is None
    assert due(tier_one) == tier_one
    hollow = Segment(9, "", "", 40_000, 4000)
    assert due([*tier_one[:7], hollow]) == [*tier_one[:7], hollow]
    assert due([*tier_one[:7], Segment(9, "", "", 40_000, 39_000)]) is None


def test_a_merge_moves_every_row_and_changes_no_answer(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merging_module, "MOVED_AT_ONCE", 700)
    monkeypatch.setattr(merging_module, "COPIED_AT_ONCE", 300)
    archive.remove(ids=[f"id{number:06d}" for number in range(0, 3000, 4)])
    before, queries = archive.snapshot(), clustered(6, seed=4)
    answers = Index(before).search(queries, 5)
    with archive.store.reading() as connection:
        segments = archive.store.segments(connection)
    assert len(segments) > 2
    assert merge(archive.store, segments)
    after = archive.snapshot()
    assert (after.ids, after.hashes, after.metadata) == (before.ids, before.hashes, before.metadata)
    np.testing.assert_array_equal(after.vectors, before.vectors)
    assert after.since.tolist() == before.since.tolist()
    with archive.store.reading() as connection:
        (made,) = archive.store.segments(connection)
    assert (made.rows, made.live) == (len(before), len(before))
    assert [path.name for path in (archive.path / "segments").iterdir()] == [made.name]
    assert [path.name for path in (archive.path / "cache").iterdir()] == [codes_path(archive.path, made).name]
    found = Index(archive).search(queries, 5)
    assert found.ids == answers.ids
    assert archive.verify().ok


def test_rows_removed_while_a_merge_copies_stay_removed(archive: Archive, monkeypatch: pytest.MonkeyPatch) -> None:
    with archive.store.reading() as connection:
        segments = archive.store.segments(connection)
    original = merging_module._make_codes

    def meanwhile(store: object, made: Segment) -> None:
        archive.remove(ids=["id000001", "id004000"])
        archive.add(["late"], clustered(1, seed=8))
        original(store, made)  # type: ignore[arg-type]

    monkeypatch.setattr(merging_module, "_make_codes", meanwhile)
    assert merge(archive.store, segments)
    assert len(archive) == 5999
    assert not {"id000001", "id004000"} & set(archive.ids)
    assert archive.verify().ok
    monkeypatch.setattr(merging_module, "_make_codes", original)
    assert archive.purge().rows == 2
    assert archive.verify().ok


@pytest.mark.parametrize("step", ["stream_segment", "adopt_segment", "_make_codes", "register", "move", "drop_empty"])
def test_a_merge_that_dies_anywhere_loses_nothing(archive: Archive, monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    monkeypatch.setattr(merging_module, "MOVED_AT_ONCE", 700)
    before = archive.snapshot()
    with archive.store.reading() as connection:
        segments = archive.store.segments(connection)
    home = merging_module if hasattr(merging_module, step) else archive.store
    original = getattr(home, step)
    calls: list[int] = []

    def dies(*given: object, **named: object) -> object:
        calls.append(1)
        if len(calls) == (3 if step == "move" else 1):
            raise KeyboardInterrupt
        return original(*given, **named)

    monkeypatch.setattr(home, step, dies)
    with pytest.raises(KeyboardInterrupt):
        merge(archive.store, segments)
    monkeypatch.setattr(home, step, original)
    with Archive.open(archive.path) as again:
        assert again.ids == before.ids
        np.testing.assert_array_equal(again.vectors, before.vectors)
        assert again.verify().ok
        query = clustered(1, seed=1)
        assert Index(again).search(query, 5).ids[0] == slow(again, query[0], 5)
        with again.store.reading() as connection:
            left = again.store.segments(connection)
        assert merge(again.store, [segment for segment in left if segment.live])
        assert again.ids == before.ids
        assert again.verify().ok
        assert not list((again.path / "segments").glob("*.part"))
        assert len(list((again.path / "segments").iterdir())) == 1


def test_a_damaged_segment_is_not_merged(archive: Archive) -> None:
    with archive.store.reading() as connection:
        segments = archive.store.segments(connection)
    path = archive.path / "segments" / segments[0].name
    content = bytearray(path.read_bytes())
    content[-1] ^= 4
    path.write_bytes(content)
    with pytest.raises(ArchiveCorrupt, match="does not match its recorded SHA-256"):
        merge(archive.store, segments)
    with archive.store.reading() as connection:
        assert archive.store.segments(connection) == segments


def test_one_process_merges_at_a_time(archive: Archive) -> None:
    with archive.store.reading() as connection:
        segments = archive.store.segments(connection)
    with merging_module.alone(archive.store) as first:
        assert first
        assert not merge(archive.store, segments)


def test_merges_happen_in_the_background_while_others_search(
    tmp_path: Path, small_limits: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging_module, "TIER_ROWS", 256)
    monkeypatch.setattr(merging_module, "MOVED_AT_ONCE", 200)
    query, wrong, over = clustered(1, seed=1), [], threading.Event()
    with make(tmp_path / "a") as archive:

        def search() -> None:
            index = Index(archive)
            while not over.is_set():
                found = index.search(query, 4)
                snapshot = archive.snapshot()
                if snapshot.version == found.version and len(snapshot):
                    truth = Index(snapshot).search(query, 4)
                    if truth.ids != found.ids:
                        wrong.append((truth.ids, found.ids))

        threads = [threading.Thread(target=search) for _ in range(3)]
        for thread in threads:
            thread.start()
        fill(archive, clustered(9000), step=300)
        archive.store.merges.wait()
        over.set()
        for thread in threads:
            thread.join()
        assert not wrong
        assert len(archive) == 9000
        with archive.store.reading() as connection:
            assert len(archive.store.segments(connection)) < 16
        assert archive.verify().ok


def test_a_purge_leaves_no_byte_of_a_vector_in_segments_or_codes(
    archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(merging_module, "TIER_ROWS", 100)
    from embeddings import maintenance

    monkeypatch.setattr(maintenance, "TIER_ROWS", 100)
    Index(archive).search(clustered(1), 1)
    gone = archive.snapshot().vectors[17].copy()
    identity = archive.ids[17]

    def holders(wanted: bytes) -> list[str]:
        return [path.name for path in archive.path.rglob("*") if path.is_file() and wanted in path.read_bytes()]

    assert holders(gone.tobytes())
    old = {path.name for path in (archive.path / "cache").iterdir()}
    archive.remove(ids=[identity], purge=True)
    assert not holders(gone.tobytes())
    assert not holders(identity.encode())
    kept = {path.name for path in (archive.path / "cache").iterdir()}
    assert len(old - kept) == 1  # the codes of the segment that held it
    assert archive.verify().ok


def test_verify_notes_damaged_codes_and_the_next_search_mends_them(archive: Archive) -> None:
    query = clustered(1, seed=1)
    before = Index(archive).search(query, 3).ids
    path = next((archive.path / "cache").iterdir())
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    report = archive.verify()
    assert report.ok
    assert f"'{path}' is not what was written; the next search makes it anew." in report.notes
    with Archive.open(archive.path) as again:
        assert Index(again).search(query, 3).ids == before
        assert not again.verify().notes


def test_a_backup_needs_no_codes(archive: Archive, tmp_path: Path) -> None:
    Index(archive).search(clustered(1), 1)
    with Archive.open(archive.backup(tmp_path / "copy")) as copy:
        assert not (copy.path / "cache").exists()
        assert copy.verify().ok
        query = clustered(1, seed=1)
        assert Index(copy).search(query, 3).ids == Index(archive).search(query, 3).ids
