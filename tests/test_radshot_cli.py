"""The command line on tiny folders of PNG and DICOM files: pages, exit codes, JSON, and the whole path."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian
from safetensors.torch import save_file
from torch.optim import AdamW
from typer.testing import CliRunner

import embeddings
from embeddings import Archive, load_encoder, reembed_archive
from fewshot.training_state import LOCK_FILE
from radshot.cli import app
from radshot.console import Usage, command

KINDS = ("across", "down", "blob")
COMMANDS = (
    "demo", "train", "evaluate", "embed", "search", "register", "classify", "deploy",
    "deployments", "estimate", "forget", "verify", "stats", "backup", "quarantine", "export",
)  # fmt: skip


def picture(kind: str, seed: int, side: int = 24) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """A gradient or a blob, with noise of its own."""
    y, x = np.mgrid[0:side, 0:side] / (side - 1)
    base = {"across": x, "down": y, "blob": np.exp(-8 * ((x - 0.5) ** 2 + (y - 0.5) ** 2))}[kind]
    noise = np.random.default_rng(seed).normal(0, 0.08, base.shape)
    return (np.clip(base * 0.8 + 0.1 + noise, 0, 1) * 255).astype(np.uint8)


def png(path: Path, kind: str, seed: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(kind, seed)).save(path)
    return path


def dicom(path: Path, kind: str, seed: int, patient: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.8.498.{seed + 1}"
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PatientID, data.Modality = patient, "CR"
    pixels = picture(kind, seed).astype(np.uint16) * 16
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated, data.BitsStored, data.HighBit, data.PixelRepresentation = 16, 12, 11, 0
    data.PixelData = pixels.tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


def table(path: Path, rows: Sequence[dict[str, str]]) -> Path:
    lines = [",".join(rows[0])] + [",".join(row.values()) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def collection(tmp_path: Path) -> Path:
    """A manifest of 3 classes of 8 patients, one PNG each."""
    rows = []
    for number, kind in enumerate(KINDS):
        for i in range(8):
            seed = 100 * number + i
            png(tmp_path / "scans" / f"{kind}-{i}.png", kind, seed)
            view = "PA" if i % 2 else "AP"
            rows.append({"image": f"scans/{kind}-{i}.png", "label": kind, "patient": f"p{seed}", "view": view})
    return table(tmp_path / "scans.csv", rows)


def run(*arguments: object, code: int = 0) -> Any:
    """Run a command line in this process and expect its exit code."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    return result


def answer(*arguments: object, code: int = 0) -> Any:
    """The JSON a command prints; nothing else may stand on standard output."""
    return json.loads(run(*arguments, "--json", "-", code=code).stdout)


def without_pixels(row: dict[str, Any]) -> dict[str, Any]:
    """Metadata without the digest of what the encoder loads, which is another for another encoder."""
    return {key: value for key, value in row.items() if key != "pixels"}


def registered(tmp_path: Path, shots: int = 3) -> Path:
    """A comparison set of `shots` patients per class."""
    cases = tmp_path / "cases"
    for number, kind in enumerate(KINDS):
        images = [png(tmp_path / "support" / f"{kind}-{i}.png", kind, 1000 * number + i) for i in range(shots)]
        patients = [part for i in range(shots) for part in ("--patient", f"{kind} {i}")]
        run("register", cases, "--encoder", "pixels-16", "--label", kind, *images, *patients)
    return cases


# -- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_help_page_fits_a_terminal_and_names_the_json_option(name: str) -> None:
    page = run(*name.split(), "--help").stdout
    assert max(map(len, page.splitlines())) <= 80
    for raw in ("<str>", "<int>", "<float>", "<bool>", "list[str]", "TEXT", "INTEGER"):
        assert raw not in page
    if name:
        assert "--json FILE" in page
    if name not in ("", "demo"):
        assert f"\n    radshot {name} " in page  # an example, on a line of its own
    if not name:
        assert "Exit codes\n    0    done\n" in page
        for line in page.split("Commands:\n")[1].splitlines():
            assert not line.endswith("..."), "a command's line on the first page is cut"


def test_help_and_version_are_quick_because_nothing_heavy_is_imported() -> None:
    program = (
        "import sys\n"
        "from radshot.cli import main\n"
        "sys.argv = ['radshot', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'pandas', 'numpy', 'faiss', 'pydicom', 'PIL', 'sklearn', 'transformers'}\n"
        "sys.stderr.write(' '.join(sorted(heavy & set(sys.modules))))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "Usage: radshot" in done.stdout
    assert done.stderr == ""
    assert re.fullmatch(r"radshot \S+\n", run("--version").stdout)


def test_embedding_and_classifying_with_raw_pixels_needs_no_torch(tmp_path: Path, collection: Path) -> None:
    program = (
        "import sys\n"
        "from radshot.cli import app\n"
        "for line in sys.stdin.read().splitlines():\n"
        "    app(line.split('|'), standalone_mode=False)\n"
        "sys.stderr.write('torch' if 'torch' in sys.modules else 'free')\n"
    )
    archive, cases, image = tmp_path / "archive", tmp_path / "cases", collection.parent / "scans" / "blob-0.png"
    lines = [
        f"embed|{collection.parent / 'scans'}|--encoder|pixels-16|--archive|{archive}",
        f"search|{archive}|{image}",
        f"register|{cases}|--encoder|pixels-16|--label|blob|{image}",
        f"classify|{cases}|{image}",
    ]
    done = subprocess.run([sys.executable, "-c", program], input="\n".join(lines), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.endswith("free")


# -- the whole path --------------------------------------------------------------------------------------------------


def test_the_whole_path_with_raw_pixels(tmp_path: Path, collection: Path) -> None:
    archive = tmp_path / "archive"
    done = answer("embed", "--manifest", collection, "--encoder", "pixels-16", "--archive", archive)
    assert (done["seen"], done["embedded"], done["refused"], done["encoder"]) == (24, 24, [], "pixels-16")
    again = answer("embed", "--manifest", collection, "--encoder", "pixels-16", "--archive", archive)
    assert (again["embedded"], again["unchanged"] + again["duplicate"]) == (0, 24)

    found = answer("search", archive, collection.parent / "scans" / "blob-3.png", "-k", 4)
    assert len(found["results"]) == 4
    assert {row["metadata"]["label"] for row in found["results"]} == {"blob"}
    assert "scans/blob-3.png" not in {row["id"] for row in found["results"]}, "the image asked about is no answer"
    similarities = [row["similarity"] for row in found["results"]]
    assert similarities == sorted(similarities, reverse=True)
    by_id = answer("search", archive, "--id", "scans/blob-3.png", "-k", 4)
    assert by_id["results"] == found["results"]
    only = answer("search", archive, "--id", "scans/blob-3.png", "--where", "view = 'AP' AND label != 'blob'")
    assert {row["metadata"]["view"] for row in only["results"]} == {"AP"}
    assert "blob" not in {row["metadata"]["label"] for row in only["results"]}
    assert len(only["results"]) == 8

    outside = png(tmp_path / "new.png", "down", 4711)
    assert {row["metadata"]["label"] for row in answer("search", archive, outside, "-k", 3)["results"]} == {"down"}

    cases = registered(tmp_path)
    answers = answer("classify", cases, *(collection.parent / "scans" / f"{kind}-5.png" for kind in KINDS))
    assert [one["label"] for one in answers] == list(KINDS)
    assert answer("stats", cases)["labels"] == {"across": 3, "blob": 3, "down": 3}
    before = answer("classify", cases, outside)
    gone = answer("forget", cases, "--patient", "blob 1")
    assert (len(gone["removed"]), gone["left"], gone["erased"]) == (1, 8, True)
    assert answer("verify", cases)["ok"]
    assert answer("stats", cases)["rows"] == 8
    run("register", cases, "--label", "blob", "--patient", "blob 1", tmp_path / "support" / "blob-1.png")
    assert answer("classify", cases, outside) == before

    copy = answer("backup", cases, tmp_path / "copy")
    assert copy["rows"] == 9
    assert answer("classify", copy["backup"], outside) == before


def test_training_evaluating_and_using_the_trained_encoder(
    tmp_path: Path, collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, document = tmp_path / "enc", tmp_path / "train.json"
    options = ("--image-size", 16, "--episodes", 20, "--k-shot", 2, "--n-query", 2, "--validation", "patients")
    result = run("train", collection, "--out", encoder, *options, "--json", document)
    assert "written to" in result.stdout
    assert "patients from column 'patient'" in result.stderr
    summary = json.loads(document.read_text())
    assert summary["classes"] == sorted(KINDS)
    assert summary["fingerprint"] == load_encoder(encoder).fingerprint
    assert summary["refused"] == []
    assert [entry["episode"] for entry in summary["history"]][-1] == 20

    few = ("--n-way", 3, "--k-shot", 2, "--n-query", 2, "--episodes", 10)
    page = tmp_path / "report.md"
    measured = answer("evaluate", collection, "--encoder", encoder, *few, "--markdown", page)
    names = [report["name"] for report in measured["reports"]]
    assert [name.split(", ")[1] for name in names] == [
        "prototypes", "nearest", "neighbors", "linear", "ridge", "auto", "prototypes", "prototypes",
    ]  # fmt: skip
    assert names[6:] == ["pixels-32, prototypes", "hog-64, prototypes"]
    assert [other["second"] for other in measured["differences"]] == names[1:]
    assert measured["reports"][0]["manifest"]
    assert page.read_text().count("## ") == 8
    html = tmp_path / "report.html"
    run("evaluate", collection, "--encoder", encoder, *few, "--head", "nearest", "--html", html)
    assert "Training" in html.read_text() and "<svg" in html.read_text() and "hog-64, prototypes" in html.read_text()
    assert "<svg" in (encoder / "training.html").read_text()
    assert (encoder / "training.csv").read_text().startswith("stage,episode,loss,")
    alone = run("evaluate", collection, "--encoder", "pixels-16", *few, "--head", "nearest", "--no-baselines")
    assert alone.stdout.splitlines()[0].startswith("3-way 2-shot, 10 episodes, 24 query patients")
    assert alone.stdout.splitlines()[2].endswith("pixels-16, nearest")

    image = png(tmp_path / "new.png", "down", 4711)
    support = collection.parent / "scans" / "down-0.png"
    run("register", tmp_path / "cases", "--encoder", encoder, "--label", "down", support)
    monkeypatch.chdir(tmp_path)
    assert answer("classify", "cases", image)[0]["label"] == "down", "the set remembers where its encoder is"


def test_a_relative_encoder_is_remembered_by_its_whole_path(
    tmp_path: Path, collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = tmp_path / "vectors.csv"
    scans = collection.parent / "scans"
    names = sorted(path.name for path in scans.glob("*.png"))[:4]
    vectors.write_text("id,v0,v1\n" + "".join(f"{name},{i},1\n" for i, name in enumerate(names)))
    monkeypatch.chdir(tmp_path)
    archive = tmp_path / "archive"
    done = answer("embed", *(scans / name for name in names), "--encoder", "vectors:vectors.csv", "--archive", archive)
    assert done["embedded"] == 4
    assert answer("stats", archive)["encoder_spec"] == f"vectors:{vectors}"


def test_dicom_files_bring_their_id_and_their_patient(tmp_path: Path) -> None:
    cases = tmp_path / "cases"
    files = [dicom(tmp_path / "in" / f"IM{i}", "blob", 10 + i, f"PAT{i}") for i in range(2)]
    other = dicom(tmp_path / "in" / "IM9", "across", 19, "PAT9")
    run("register", cases, "--encoder", "pixels-16", "--label", "blob", *files)
    done = answer("register", cases, "--label", "across", other)
    assert done["shots"] == {"across": 1, "blob": 2}
    assert done["registered"] == ["1.2.826.0.1.3680043.8.498.20"]
    new = dicom(tmp_path / "new.dcm", "blob", 77, "PAT77")
    (decision,) = answer("classify", cases, new)
    assert decision["label"] == "blob"
    assert {one["id"] for one in decision["evidence"]} == {f"1.2.826.0.1.3680043.8.498.{11 + i}" for i in range(2)}
    assert answer("forget", cases, "--patient", "PAT1")["removed"] == ["1.2.826.0.1.3680043.8.498.12"]


# -- what is printed, and where --------------------------------------------------------------------------------------


def test_classify_gives_every_field_in_the_order_of_the_arguments(tmp_path: Path) -> None:
    cases = registered(tmp_path)
    good, bad = png(tmp_path / "q.png", "blob", 999), tmp_path / "missing.png"
    result = run("classify", cases, bad, good, tmp_path / "support" / "down-0.png", "--json", "-", code=1)
    first, second, third = json.loads(result.stdout)
    assert first == {"image": str(bad), "label": None, "error": "there is no such file"}
    assert list(second) == [
        "image", "label", "score", "probability", "margin", "evidence", "runner_up", "counter_evidence", "reason",
        "registered", "prediction_set", "coverage", "flags",
    ]  # fmt: skip
    assert (second["image"], second["label"], second["probability"], second["registered"]) == (
        str(good), "blob", None, False,
    )  # fmt: skip
    assert set(second["evidence"][0]) == {"id", "label", "similarity", "path"}
    assert {one["label"] for one in second["evidence"]} == {"blob"}
    assert {one["label"] for one in second["counter_evidence"]} == {second["runner_up"]}
    assert third["registered"] is True
    assert "is itself registered" in result.stderr
    assert f"refused {bad}" in result.stderr


def test_the_answer_goes_to_stdout_and_with_json_printed_to_stderr(tmp_path: Path) -> None:
    cases = registered(tmp_path, shots=1)
    plain = run("stats", cases)
    assert plain.stderr == ""
    assert "rows" in plain.stdout
    printed = run("stats", cases, "--json", "-")
    assert json.loads(printed.stdout)["rows"] == 3
    assert printed.stderr == plain.stdout
    filed = run("stats", cases, "--json", tmp_path / "new folder" / "stats.json")
    assert filed.stdout == plain.stdout
    assert json.loads((tmp_path / "new folder" / "stats.json").read_text()) == json.loads(printed.stdout)
    assert run("stats", cases).stderr == "", "the switch of one call does not outlive it"


def test_piped_tables_keep_long_ids_and_square_brackets_on_one_line(tmp_path: Path) -> None:
    deep = tmp_path / "scans" / ("a long folder name " * 5).strip() / "[red]x[/red] [1, 2].png"
    png(deep, "blob", 1)
    png(tmp_path / "scans" / "line\nbreak.png", "blob", 2)
    query = png(tmp_path / "q.png", "blob", 3)
    archive, cases = tmp_path / "archive", tmp_path / "cases"
    run("embed", tmp_path / "scans", "--encoder", "pixels-16", "--archive", archive)
    lines = run("search", archive, query).stdout.splitlines()
    assert len(lines) == 3
    assert any(line.endswith(deep.relative_to(tmp_path / "scans").as_posix()) for line in lines)
    assert any(line.endswith("line\\nbreak.png") for line in lines)
    run("register", cases, "--encoder", "pixels-16", "--label", "[bold]mass[/bold]", deep)
    result = run("classify", cases, deep)
    assert result.stdout.splitlines()[1].startswith("[bold]mass[/bold]  ")
    assert str(deep) in result.stdout


def test_errors_are_in_the_json_too(tmp_path: Path) -> None:
    result = run("stats", tmp_path / "nowhere", "--json", tmp_path / "out.json", code=3)
    written = json.loads((tmp_path / "out.json").read_text())
    assert written["exit_code"] == 3
    assert result.stderr == f"radshot: {written['error']}\n"
    run("stats", tmp_path / "nowhere", "--json", tmp_path, code=2)


# -- wrong usage -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["embed", "--encoder", "pixels-16", "--archive", "A"], "Name at least one SOURCE"),
        (["embed", "S", "--encoder", "pixel-32", "--archive", "A"], "Did you mean 'pixels-32'"),
        (["embed", "S", "--encoder", "pixels-1", "--archive", "A"], "pixels-N takes N from 2"),
        (["embed", "S", "--encoder", "pixels-16", "--archive", "A", "--where", "a = 1"], "--where filters the rows"),
        (["embed", "S", "--encoder", "pixels-16", "--archive", "A", "--drop-missing"], "goes with --reembed"),
        (["embed", "S", "--encoder", "pixels-16", "--archive", "A", "--batch-size", "0"], "--batch-size"),
        (["embed", "S", "--archive", "A"], "--encoder"),
        (["search", "A"], "Give an IMAGE, --id or --text"),
        (["search", "A", "x.png", "--id", "x"], "Give an IMAGE, --id or --text"),
        (["search", "A", "x.png", "-k", "0"], "-k"),
        (["forget", "A"], "Give --id or --patient"),
        (["forget", "A", "--id", "a", "--patient", "b"], "Give --id or --patient"),
        (["register", "C", "--label", "x"], "Give IMAGE ... with --label, or --manifest"),
        (["register", "C", "a.png"], "Say with --label"),
        (["register", "C", "a.png", "--label", "  "], "Say with --label"),
        (["register", "C", "a.png", "b.png", "--label", "x", "--patient", "p"], "2 images, 1 patients"),
        (["classify", "C", "a.png", "--head", "prototype"], "Did you mean 'prototypes'"),
        (["classify", "C"], "IMAGE"),
        (["stats", "C", "--jsn", "x"], "--jsn"),
        (["sats", "C"], "sats"),
        (["train", "M", "--out", "E", "--method", "siames"], "--method must be one of"),
        (["train", "M", "--out", "E", "--n-way", "1"], "--n-way must be"),
        (["train", "M", "--out", "E", "--learning-rate", "0"], "--learning-rate must be"),
        (["train", "M", "--out", "E", "--flip", "2"], "--flip"),
        (["train", "M", "--out", "E", "--loss", "tripplet"], "--loss must be one of"),
        (["train", "M", "--out", "E", "--loss", "triplet", "--method", "matching"], "--loss is of the Siamese network"),
        (["train", "M", "--out", "E", "--pretraining", "self"], "--pretraining must be one of"),
        (["train", "M", "--out", "E", "--backbone-option", "width"], "--backbone-option takes KEY=VALUE"),
        (["train", "M", "--out", "E", "--backbone-option", "seed=3"], "--backbone-config must hold options"),
        (["train", "M", "--out", "E", "--image-size", "100000"], "--image-size must be at most 4,096"),
        (["train", "M", "N", "O", "--out", "E", "--label", "a", "--label", "b"], "3 manifests take one --label"),
        (["evaluate", "M", "--encoder", "pixels-16", "--head", "x"], "There is no head 'x'"),
        (["evaluate", "M", "--encoder", "pixels-16", "--n-way", "1"], "--n-way"),
        (["evaluate", "M", "--encoder", "pixels-16", "--episodes", "many"], "--episodes"),
    ],
)
def test_wrong_usage_exits_2_and_touches_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "S").mkdir()
    result = run(*arguments, code=2)
    assert says in result.stderr
    assert result.stdout == ""
    assert [path.name for path in tmp_path.iterdir()] == ["S"]


def test_a_mistyped_backbone_is_found_before_any_image_is_read(tmp_path: Path) -> None:
    manifest = table(tmp_path / "m.csv", [{"image": "gone.png", "label": "a", "patient": "1"}])
    result = run("train", manifest, "--out", tmp_path / "e", "--backbone", "resnet8", code=2)
    assert "There is no backbone 'resnet8'" in result.stderr
    assert "Did you mean 'resnet" in result.stderr


def test_training_says_what_it_will_do_and_goes_on_after_an_interruption(
    tmp_path: Path, collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (
        "--image-size", 16, "--episodes", 20, "--k-shot", 1, "--n-query", 1, "--validation", "none",
        "--backbone-option", "width=8", "--pretraining", "supervised", "--pretraining-episodes", 10,
    )  # fmt: skip
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    told = run("train", collection, "--out", whole, *options).stderr
    assert (
        "supervised, conv4 of" in told
        and "siamese (multi-similarity), conv4 of" in told
        and "this will take about" in told
    )
    original, calls = AdamW.step, []

    def step(self: AdamW, *arguments: object) -> object:
        calls.append(1)
        if len(calls) > 15:
            raise KeyboardInterrupt
        return original(self, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(AdamW, "step", step)
        result = run("train", collection, "--out", cut, *options, code=130)
    assert "the same command with --resume goes on" in result.stderr
    result = run("train", collection, "--out", cut, *options, code=3)
    assert "holds an interrupted training: add --resume to go on with it" in result.stderr
    result = run("train", collection, "--out", cut, *options, "--seed", 1, "--resume", code=3)
    assert "The interrupted training had seed = 0, now it is 1" in result.stderr
    run("train", collection, "--out", cut, *options, "--resume")
    assert load_encoder(cut).fingerprint == load_encoder(whole).fingerprint
    result = run("train", collection, "--out", cut, *options, "--resume", code=3)
    assert "it was finished, or never begun" in result.stderr


def test_a_disk_that_is_full_loses_no_training(
    tmp_path: Path, collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--image-size", 16, "--episodes", 200, "--k-shot", 1, "--n-query", 1, "--validation", "none")
    calls = []

    def full(*arguments: object, **named: object) -> None:
        calls.append(1)
        if len(calls) > 2:
            raise OSError(28, "No space left on device")
        save_file(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr("fewshot.training_state.save_file", full)
        result = run("train", collection, "--out", tmp_path / "e", *options, code=3)
    assert "cannot be written" in result.stderr and "--resume goes on with it" in result.stderr
    run("train", collection, "--out", tmp_path / "e", *options, "--resume")
    assert load_encoder(tmp_path / "e").training["history"][-1]["episode"] == 200


def test_two_trainings_do_not_share_a_folder(tmp_path: Path, collection: Path) -> None:
    (tmp_path / "e").mkdir()
    with FileLock(tmp_path / "e" / LOCK_FILE):
        result = run("train", collection, "--out", tmp_path / "e", "--image-size", 16, code=3)
    assert "Another training is writing to" in result.stderr
    result = run("train", collection, "--out", tmp_path / "nothere", "--image-size", 16, "--resume", code=3)
    assert "There is no interrupted training in" in result.stderr and not (tmp_path / "nothere").exists()


def test_unknown_patients_are_not_said_to_be_held_out(tmp_path: Path, collection: Path) -> None:
    options = ("--image-size", 16, "--episodes", 4, "--k-shot", 1, "--n-query", 1, "--validation", "patients")
    result = run("train", collection, "--out", tmp_path / "e", "--group", "none", *options)
    assert "images held out, since patients are unknown" in result.stderr
    assert "held-out images (patients unknown)" in result.stdout


def test_self_supervised_training_needs_no_label_column(tmp_path: Path, collection: Path) -> None:
    bare = collection.parent / "bare.csv"
    table = pd.read_csv(collection)
    table[["image"]].to_csv(bare, index=False)
    options = ("--image-size", 16, "--episodes", 4, "--method", "simclr", "--tensorboard")
    result = run("train", bare, "--out", tmp_path / "e", *options)
    assert "conv4-simclr" in result.stdout
    (tmp_path / "empty").mkdir()
    run("train", bare, "--out", tmp_path / "empty", "--method", "supervised", code=2)
    assert not any((tmp_path / "empty").iterdir())


def test_a_relation_network_brings_its_own_head(tmp_path: Path, collection: Path) -> None:
    options = ("--image-size", 16, "--episodes", 6, "--k-shot", 1, "--n-query", 1, "--validation", "none")
    run("train", collection, "--out", tmp_path / "e", "--method", "relation", *options)
    few = ("--n-way", 3, "--k-shot", 2, "--n-query", 2, "--episodes", 5, "--no-baselines")
    measured = answer("evaluate", collection, "--encoder", tmp_path / "e", *few)
    assert [report["name"].split(", ")[1] for report in measured["reports"]][-1] == "relation"
    result = run("evaluate", collection, "--encoder", "pixels-16", *few, "--head", "relation", code=3)
    assert "needs the relation module that was trained with the encoder" in result.stderr


def test_an_option_of_training_that_the_images_contradict_is_a_refusal(tmp_path: Path, collection: Path) -> None:
    options = ("--episodes", 5, "--image-size", 16)
    result = run("train", collection, "--out", tmp_path / "e", "--k-shot", 50, *options, code=3)
    assert re.search(r"radshot: .*50-shot.*\.", result.stderr)
    (tmp_path / "file").write_text("")
    result = run("train", collection, "--out", tmp_path / "file", *options, code=3)
    assert "is a file: give another --out" in result.stderr
    assert not (tmp_path / "e").exists()
    result = run("train", collection, "--out", tmp_path / "e", "--init", "pixels-16", *options, code=3)
    assert "checkpoint with weights" in result.stderr


# -- labels, columns, patients ---------------------------------------------------------------------------------------


def test_a_joint_label_is_made_of_two_columns(tmp_path: Path, collection: Path) -> None:
    few = ("--n-way", 2, "--k-shot", 1, "--n-query", 2, "--episodes", 4, "--no-baselines", "--head", "nearest")
    measured = answer("evaluate", collection, "--encoder", "pixels-16", "--label", "label+view", *few)
    labels = [one["label"] for one in measured["reports"][0]["per_class"]]
    assert labels == sorted(f"{kind} / {view}" for kind in KINDS for view in ("AP", "PA"))
    result = run("evaluate", collection, "--encoder", "pixels-16", "--label", "label+veiw", *few, code=2)
    assert "has no column 'veiw'" in result.stderr
    assert "did you mean 'view'" in result.stderr


def test_a_joint_label_with_an_empty_part_or_a_list_in_it_is_refused(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "label": "x", "view": ""}, {"image": "b.png", "label": "x|y", "view": "AP"}]
    few = ("--encoder", "pixels-16", "--label", "label+view")
    result = run("evaluate", table(tmp_path / "a.csv", rows[:1]), *few, code=3)
    assert "Row 1 of a.csv" in result.stderr
    result = run("evaluate", table(tmp_path / "b.csv", rows[1:]), *few, code=2)
    assert "several labels of an image, which cannot be joined" in result.stderr


def test_patients_of_different_manifests_stay_different(tmp_path: Path, collection: Path) -> None:
    few = ("--n-way", 3, "--k-shot", 10, "--n-query", 2, "--episodes", 100, "--no-baselines", "--head", "nearest")
    result = run("evaluate", collection, "--encoder", "pixels-16", *few, code=3)
    assert "none qualifies: the largest is 'across' with 8" in result.stderr
    twice = answer("evaluate", collection, collection, "--encoder", "pixels-16", *few)
    assert twice["reports"][0]["patients"] == 48
    assert (
        "counts as a patient of its own"
        in run(
            "evaluate", table(tmp_path / "n.csv", [{"image": "a.png", "label": "x"}]), "--encoder", "pixels-16", code=3
        ).stderr
    )


def test_sources_and_a_manifest_together(tmp_path: Path, collection: Path) -> None:
    archive = tmp_path / "archive"
    scans = collection.parent / "scans"
    where = ("--where", "view = 'PA'")
    run("embed", scans, "--manifest", collection, *where, "--encoder", "pixels-16", "--archive", archive)
    with Archive.open(archive) as held:
        assert len(held) == 24, "all images of the source"
        assert {row.get("view") for row in held.metadata} == {"PA", None}, "and the columns of the rows that were kept"
    run("embed", collection, *where, "--encoder", "pixels-16", "--archive", tmp_path / "b")
    assert answer("stats", tmp_path / "b")["rows"] == 12
    assert answer("stats", tmp_path / "b")["patients"] == 12


def test_registering_from_a_manifest_and_being_told_of_a_new_class(tmp_path: Path, collection: Path) -> None:
    cases = tmp_path / "cases"
    where = ("--where", "patient IN ('p0', 'p1', 'p100', 'p101')")
    done = answer("register", cases, "--manifest", collection, *where, "--encoder", "pixels-16")
    assert done["shots"] == {"across": 2, "down": 2}
    again = answer("register", cases, "--manifest", collection, *where)
    assert (again["registered"], len(again["duplicates"])) == ([], 4)
    result = run("register", cases, "--label", "acros", png(tmp_path / "x.png", "across", 55))
    assert "'acros' is a new class. Did you mean 'across'?" in result.stderr


def test_registering_a_mislabelled_image_is_noted_and_not_refused(tmp_path: Path, collection: Path) -> None:
    cases = tmp_path / "cases"
    done = answer("register", cases, "--manifest", collection, "--encoder", "pixels-16")
    assert len(done["outliers"]) <= 2
    wrong = png(tmp_path / "wrong.png", "down", 77)
    patient = ("--patient", "p999")
    result = run("register", cases, "--label", "across", wrong, *patient, "--json", tmp_path / "done.json")
    found = json.loads((tmp_path / "done.json").read_text())
    assert len(found["registered"]) == 1 and found["refused"] == []
    (outlier,) = found["outliers"]
    assert (outlier["id"], outlier["label"], outlier["suspected"]) == (str(wrong), "across", "down")
    assert outlier["score"] > 2 and 0 < outlier["p_value"] < 0.2 and outlier["evidence"][0]["label"] == "down"
    assert f"{wrong} may not be 'across'. {outlier['reason']}" in " ".join(result.stderr.split())
    assert answer("stats", cases)["rows"] == 25


# -- errors of the machinery -----------------------------------------------------------------------------------------


def test_ctrl_c_exits_130_and_a_mistake_in_the_program_is_not_hidden() -> None:
    import typer

    def program(error: BaseException) -> typer.Typer:
        made = typer.Typer(pretty_exceptions_enable=False)

        def fails() -> int:
            raise error

        made.command()(command(fails))
        return made

    result = CliRunner().invoke(program(KeyboardInterrupt()), [])
    assert (result.exit_code, result.stderr) == (130, "radshot: Stopped; what was committed before is kept.\n")
    assert CliRunner().invoke(program(Usage("So.")), []).exit_code == 2
    assert isinstance(CliRunner().invoke(program(ZeroDivisionError()), []).exception, ZeroDivisionError)
    result = CliRunner().invoke(program(PermissionError(13, "Permission denied", "there")), [])
    assert (result.exit_code, result.stderr) == (3, "radshot: there: Permission denied.\n")


@pytest.mark.parametrize("name", ["UnknownColumn", "UnknownEncoder"])
def test_a_mistyped_name_has_an_exception_of_its_own(name: str) -> None:
    import episodes
    import fewshot

    assert issubclass(embeddings.UnknownEncoder, embeddings.EncoderError)
    assert issubclass(embeddings.UnknownColumn, embeddings.SourceError)
    assert issubclass(episodes.UnknownColumn, episodes.ManifestError)
    assert issubclass(episodes.FilterError, episodes.ManifestError)
    assert issubclass(fewshot.TrainingError, ValueError)
    assert name in embeddings.__all__


def test_a_reader_of_a_pipe_may_stop_early(tmp_path: Path) -> None:
    cases = registered(tmp_path, shots=1)
    shell = f"'{sys.executable}' -m radshot stats '{cases}' | true"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True)
    assert "Traceback" not in done.stderr


# -- moving to another encoder ---------------------------------------------------------------------------------------


def test_reembed_moves_an_archive_to_another_encoder(tmp_path: Path, collection: Path) -> None:
    archive = tmp_path / "archive"
    run("embed", "--manifest", collection, "--encoder", "pixels-16", "--archive", archive)
    with Archive.open(archive) as held:
        held.set_note("kept", [1, "ü"])
        ids, metadata = held.ids, [without_pixels(row) for row in held.metadata]
    mismatch = run("embed", "--manifest", collection, "--encoder", "hog-32", "--archive", archive, code=3)
    assert "radshot embed --reembed" in mismatch.stderr
    done = answer("embed", "--reembed", "--encoder", "hog-32", "--archive", archive)
    assert (done["reembedded"], done["refused"], done["encoder"]) == (24, [], "hog-32")
    with Archive.open(archive) as held:
        assert held.encoder_name == "hog-32"
        assert (held.ids, [without_pixels(row) for row in held.metadata]) == (ids, metadata)
        assert held.get_note("kept") == [1, "ü"]
        expected = load_encoder("hog-32").encode([row["path"] for row in held.metadata])
        assert np.allclose(held.vectors, expected)
        assert held.verify().ok
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "scans", "scans.csv"]
    more = png(collection.parent / "scans" / "more.png", "blob", 4242)
    done = answer("embed", more, "--reembed", "--encoder", "hog-32", "--archive", archive)
    assert (done["reembedded"], done["embedded"]) == (0, 1), "an archive of that encoder is only added to"


def test_reembed_keeps_a_comparison_set_a_comparison_set(tmp_path: Path) -> None:
    cases = registered(tmp_path)
    query = png(tmp_path / "q.png", "down", 4711)
    shots = answer("stats", cases)["labels"]
    run("embed", "--reembed", "--encoder", "hog-32", "--archive", cases)
    assert answer("stats", cases)["labels"] == shots
    with Archive.open(cases) as held:
        assert {row["encoder"] for row in held.metadata} == {held.encoder_fingerprint}
    fresh = tmp_path / "fresh"
    for kind in KINDS:
        for i in range(3):
            image = tmp_path / "support" / f"{kind}-{i}.png"
            run("register", fresh, "--encoder", "hog-32", "--label", kind, "--patient", f"{kind} {i}", image)
    assert answer("classify", cases, query) == answer("classify", fresh, query)


def test_reembed_changes_nothing_unless_told_what_to_do_with_missing_images(tmp_path: Path, collection: Path) -> None:
    archive = tmp_path / "archive"
    run("embed", "--manifest", collection, "--encoder", "pixels-16", "--archive", archive)
    scans = collection.parent / "scans"
    (scans / "blob-0.png").unlink()
    png(scans / "blob-1.png", "across", 31)
    before = answer("search", archive, "--id", "scans/blob-2.png")
    result = run("embed", "--reembed", "--encoder", "hog-32", "--archive", archive, code=3)
    assert "stays as it is: 2 of its images" in result.stderr
    assert f"refused {scans / 'blob-0.png'}" in result.stderr
    assert f"refused {scans / 'blob-1.png'}: has changed since it was stored" in result.stderr
    assert answer("search", archive, "--id", "scans/blob-2.png") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["archive", "scans", "scans.csv"]
    done = answer("embed", "--reembed", "--drop-missing", "--encoder", "hog-32", "--archive", archive, code=1)
    assert (done["reembedded"], len(done["refused"])) == (22, 2)
    assert answer("stats", archive)["rows"] == 22


def test_who_has_the_old_archive_open_cannot_write_to_it_any_more(tmp_path: Path, collection: Path) -> None:
    archive = tmp_path / "archive"
    run("embed", "--manifest", collection, "--encoder", "pixels-16", "--archive", archive)
    with Archive.open(archive) as stale:
        reembed_archive(archive, load_encoder("hog-32"))
        with pytest.raises(embeddings.ArchiveError):
            stale.add(["late"], np.ones((1, stale.dim), dtype=np.float32))
    with Archive.open(archive) as held:
        assert len(held) == 24
        assert held.verify().ok


def test_reembed_killed_at_any_moment_leaves_the_old_archive_or_the_new_one(tmp_path: Path, collection: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "import embeddings.reembedding as module\n"
        "from embeddings import load_encoder\n"
        "name, when, archive = sys.argv[1:]\n"
        "kept = getattr(module, name)\n"
        "def dies(*args, **kwargs):\n"
        "    if when == 'before':\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    kept(*args, **kwargs)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "module._try_exchange = lambda folder: None\n"
        "setattr(module, name, dies)\n"
        "module.reembed_archive(archive, load_encoder('hog-32'))\n"
    )
    archive = tmp_path / "archive"
    run("embed", "--manifest", collection, "--encoder", "pixels-16", "--archive", archive)
    for name, when, left in (("_fill", "after", "pixels-16"), ("_exchange", "before", "pixels-16"),
                             ("_exchange", "after", "hog-32")):  # fmt: skip
        done = subprocess.run([sys.executable, "-c", program, name, when, str(archive)])
        assert done.returncode == -signal.SIGKILL
        with Archive.open(archive) as held:
            assert (held.encoder_name, len(held), held.verify().ok) == (left, 24, True)
    run("embed", "--reembed", "--encoder", "pixels-16", "--archive", archive)
    assert not (tmp_path / ".archive.reembed").exists(), "what the killed run left is cleared"


def test_a_file_system_that_cannot_exchange_folders_is_found_out_first(
    tmp_path: Path, collection: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = tmp_path / "archive"
    run("embed", "--manifest", collection, "--encoder", "pixels-16", "--archive", archive)
    monkeypatch.setattr("embeddings.reembedding._EXCHANGE", 1 << 20)
    result = run("embed", "--reembed", "--encoder", "hog-32", "--archive", archive, code=3)
    assert re.search(r"cannot be exchanged .* embed its images into a new archive instead", result.stderr)
    assert answer("stats", archive)["encoder"] == "pixels-16"
