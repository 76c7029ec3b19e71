"""From what a user types to labelled images: patients are never lost, mixed up or counted twice in silence."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from embeddings import Archive, load_encoder
from fewshot import ComparisonSet
from radshot.cli import app
from radshot.console import Refused
from radshot.inputs import encode_readable, read_manifest, read_manifests


def images(folder: Path, count: int) -> list[Path]:
    rng = np.random.default_rng(0)
    paths = [folder / f"{i}.png" for i in range(count)]
    for path in paths:
        Image.fromarray(rng.integers(0, 255, (20, 20), dtype=np.uint8)).save(path)
    return paths


def table(path: Path, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_a_gap_in_the_patient_column_is_refused_and_never_turns_separation_off(tmp_path: Path) -> None:
    paths = images(tmp_path, 6)
    rows = [[path.name, "ab"[i % 2], f"p{i}" if i != 3 else " "] for i, path in enumerate(paths)]
    manifest = table(tmp_path / "m.csv", ["image", "label", "patient"], rows)
    result = invoke("evaluate", manifest, "--encoder", "pixels-8", "--n-way", 2, "--k-shot", 1)
    assert result.exit_code == 3
    assert "Row 4 of m.csv (line 5) has no patient: its 'patient' is empty; fill it or" in result.stderr


def test_a_complete_column_is_taken_before_one_with_gaps_and_an_empty_one_is_passed_over(tmp_path: Path) -> None:
    paths = images(tmp_path, 3)
    header = ["image", "label", "patient", "patient_id", "split_group"]
    rows = [[path.name, "a", "", "" if i else "x", f"g{i}"] for i, path in enumerate(paths)]
    assert (
        read_manifest(table(tmp_path / "m.csv", header, rows), label="label", group=None).group_column == "split_group"
    )


def test_white_space_around_a_patient_is_not_another_patient(tmp_path: Path) -> None:
    paths = images(tmp_path, 2)
    manifest = table(
        tmp_path / "m.csv",
        ["image", "label", "patient"],
        [[p.name, "a", v] for p, v in zip(paths, ("7", "7 "), strict=True)],
    )
    assert read_manifest(manifest, label="label", group=None).groups == ["7", "7"]


@pytest.mark.parametrize(
    ("column", "values", "sentence"),
    [
        ("patient", ("p1", "p2"), r"m\.csv lists 0\.png with two patients, 'p1' and 'p2' \(rows 1 and 2\)\."),
        ("label", ("a", "b"), r"m\.csv lists 0\.png with two labels, 'a' and 'b' \(rows 1 and 2\); join its labels"),
    ],
)
def test_a_file_listed_twice_with_other_facts_is_refused(
    tmp_path: Path, column: str, values: tuple[str, str], sentence: str
) -> None:
    images(tmp_path, 1)
    facts = {"label": "a", "patient": "p1"}
    rows = [["0.png", *({**facts, column: value}.values())] for value in values]
    with pytest.raises(Refused, match=sentence):
        read_manifest(table(tmp_path / "m.csv", ["image", "label", "patient"], rows), label="label", group=None)


def test_a_row_that_only_repeats_another_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images(tmp_path, 2)
    rows = [["0.png", "a"], ["1.png", "b"], ["./0.png", "a"]]
    manifest = read_manifest(table(tmp_path / "m.csv", ["image", "label"], rows), label="label", group="none")
    assert [path.name for path in manifest.images] == ["0.png", "1.png"]
    assert "1 row(s) repeat a file" in capsys.readouterr().err


def test_tables_with_and_without_patients_are_not_mixed(tmp_path: Path) -> None:
    images(tmp_path, 1)
    one = table(tmp_path / "one.csv", ["image", "label", "patient"], [["0.png", "a", "p"]])
    two = table(tmp_path / "two.csv", ["image", "label"], [["0.png", "a"]])
    with pytest.raises(Refused, match=r"one\.csv says whose its images are and two\.csv does not"):
        read_manifests([one, two], labels=["label"], group=None, where=None)
    assert read_manifests([one, two], labels=["label"], group="none", where=None).groups is None


def test_vectors_that_cannot_be_compared_are_refused_by_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = images(tmp_path, 3)
    encoder = load_encoder("pixels-8")
    honest = encoder.encode_loaded
    calls = iter([None])

    def broken(batch: Sequence[np.ndarray]) -> np.ndarray:
        vectors = honest(batch)
        if next(calls, "later") is None:
            vectors[1, 0] = np.nan
        return vectors

    monkeypatch.setattr(encoder, "encode_loaded", broken)
    vectors, kept, refused = encode_readable(encoder, paths)
    assert kept == [0, 2] and vectors.shape == (2, 64)
    assert refused == [(str(paths[1]), "its vector holds NaN or infinity")]


def test_training_does_not_write_over_an_encoder(tmp_path: Path) -> None:
    (tmp_path / "enc").mkdir()
    (tmp_path / "enc" / "encoder.json").write_text("{}")
    images(tmp_path, 1)
    manifest = table(tmp_path / "m.csv", ["image", "label"], [["0.png", "a"]])
    result = invoke("train", manifest, "--out", tmp_path / "enc")
    assert result.exit_code == 3 and "needs a new or empty folder" in result.stderr
    assert (tmp_path / "enc" / "encoder.json").read_text() == "{}"


def test_a_search_filter_works_beside_a_column_that_differs_in_capitals(tmp_path: Path) -> None:
    paths = images(tmp_path, 4)
    rows = [[path.name, f"p{i}"] for i, path in enumerate(paths)]
    manifest = table(tmp_path / "m.csv", ["image", "Patient"], rows)
    archive = tmp_path / "archive"
    done = invoke("embed", "--manifest", manifest, "--group", "Patient", "--encoder", "pixels-8", "--archive", archive)
    assert done.exit_code == 0, done.output
    found = invoke("search", archive, paths[0], "--where", "patient = 'p2'")
    assert found.exit_code == 0, found.output
    assert "2.png" in found.stdout and "1.png" not in found.stdout


def test_a_folder_for_markdown_is_refused_before_the_work(tmp_path: Path) -> None:
    result = invoke("evaluate", tmp_path / "none.csv", "--encoder", "pixels-8", "--markdown", tmp_path)
    assert result.exit_code == 2 and "--markdown names a file to write" in result.stderr


def test_a_missing_extra_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = images(tmp_path, 2)
    archive = tmp_path / "archive"
    assert invoke("embed", *paths, "--encoder", "pixels-8", "--archive", archive).exit_code == 0
    monkeypatch.setitem(sys.modules, "faiss", None)
    result = invoke("search", archive, paths[0])
    assert result.exit_code == 3
    assert result.stderr.strip().count("\n") == 0 and "pip install radshot[cpu]" in result.stderr


def test_embedding_takes_a_table_with_gaps_in_the_patient_column(tmp_path: Path) -> None:
    paths = images(tmp_path, 3)
    rows = [[path.name, "" if i == 1 else f"p{i}"] for i, path in enumerate(paths)]
    manifest = table(tmp_path / "m.csv", ["image", "patient_id"], rows)
    archive = tmp_path / "archive"
    done = invoke("embed", "--manifest", manifest, "--encoder", "pixels-8", "--archive", archive)
    assert done.exit_code == 0, done.output
    assert "column 'patient_id' is empty in 1 of 3 rows" in done.stderr
    assert invoke("forget", archive, "--patient", "p2").exit_code == 0
    assert invoke("forget", archive, "--patient", "p1").exit_code == 3


def test_a_set_of_one_class_and_images_without_patient_are_remarked_on(tmp_path: Path) -> None:
    paths = images(tmp_path, 3)
    cases = tmp_path / "cases"
    done = invoke("register", cases, "--encoder", "pixels-8", "--label", " cyst ", *paths[:2])
    assert done.exit_code == 0 and "2 image(s) of the set have no patient" in done.stderr
    with ComparisonSet.open(cases) as held:
        assert held.shots == {"cyst": 2}
    asked = invoke("classify", cases, paths[2])
    assert asked.exit_code == 0 and "Only one class is registered, 'cyst'" in asked.stderr
    again = invoke("register", cases, "--label", "CYST", "--patient", "p", paths[2])
    assert "Did you mean 'cyst'?" in again.stderr


def test_reembedding_a_set_with_sources_beside_it_changes_nothing(tmp_path: Path) -> None:
    paths = images(tmp_path, 3)
    cases = tmp_path / "cases"
    assert invoke("register", cases, "--encoder", "pixels-8", "--label", "a", *paths[:2]).exit_code == 0
    with Archive.open(cases) as held:
        before = (held.encoder_fingerprint, held.version, held.ids)
    result = invoke("embed", paths[2], "--reembed", "--encoder", "pixels-16", "--archive", cases)
    assert result.exit_code == 3 and "comparison set" in result.stderr
    with Archive.open(cases) as held:
        assert (held.encoder_fingerprint, held.version, held.ids) == before
