"""`radshot estimate` on tiny comparison sets: what it prints, its files, its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from embeddings import Archive
from fewshot import ComparisonSet, make_head
from fewshot.estimation import estimate
from radshot.cli import app

KINDS = ("across", "down", "blob")


def picture(path: Path, kind: str, seed: int, side: int = 24) -> Path:
    """A gradient or a blob, with noise of its own."""
    y, x = np.mgrid[0:side, 0:side] / (side - 1)
    base = {"across": x, "down": y, "blob": np.exp(-8 * ((x - 0.5) ** 2 + (y - 0.5) ** 2))}[kind]
    noise = np.random.default_rng(seed).normal(0, 0.08, base.shape)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.clip(base * 0.8 + 0.1 + noise, 0, 1) * 255).astype(np.uint8)).save(path)
    return path


def run(*arguments: object, code: int = 0) -> Any:
    """Run a command line in this process and expect its exit code."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    return result


def register(cases: Path, shots: dict[str, int], *, patients: bool = True) -> Path:
    """A comparison set of some patients of each class, two images each."""
    for number, (kind, count) in enumerate(shots.items()):
        images = [
            picture(cases.parent / "support" / f"{kind}-{i}-{j}.png", kind, 1000 * number + 10 * i + j)
            for i in range(count)
            for j in range(2)
        ]
        named = [part for i in range(count) for _ in range(2) for part in ("--patient", f"{kind} {i}")]
        run(
            "register", cases, "--encoder", "pixels-16", "--label", kind, *images, *(named if patients else ())
        )  # fmt: skip
    return cases


def test_it_says_what_the_library_says(tmp_path: Path) -> None:
    cases = register(tmp_path / "cases", {"across": 3, "down": 4, "blob": 5})
    page, document = tmp_path / "out" / "estimate.md", tmp_path / "out" / "estimate.json"
    options = ("--head", "prototypes", "--repeats", 3, "--folds", 3, "--seed", 7)
    result = run("estimate", cases, *options, "--markdown", page, "--json", document)
    with ComparisonSet.open(cases) as held:
        snapshot = held.snapshot
        judge = estimate(
            held.vectors,
            held.labels,
            ids=held.ids,
            groups=held.patients,
            make_head=lambda: make_head("prototypes"),
            n_repeats=3,
            n_folds=3,
            seed=7,
        )
    written = json.loads(document.read_text())
    assert written == {
        "set": str(cases),
        "version": snapshot.version,
        "encoder": "pixels-16",
        "encoder_fingerprint": written["encoder_fingerprint"],
        **json.loads(json.dumps(judge.to_dict())),
        "head": "prototypes",
    }
    lines = result.stdout.splitlines()
    assert lines[0] == str(judge).splitlines()[0].replace("PrototypeClassifier", "prototypes")
    assert lines[0].startswith("Expect 1.00 accuracy on new patients; 95 % interval 0.")
    assert lines[1] == judge.advice_sentence
    assert lines[2].split("  ")[0] == "patients" and "3 more patients" in lines[2]
    assert [line.split("  ")[-1].strip() for line in lines[3:6]] == ["across", "blob", "down"]
    assert page.read_text().startswith("## Accuracy to expect on new patients\n\nExpect 1.00")
    assert "3 repeats of 3 folds by patient, seed 7." in page.read_text()
    assert result.stderr == ""
    assert run("estimate", cases, *options).stdout == result.stdout, "two runs with one seed agree"


def test_without_a_head_the_deployments_is_taken_else_the_one_chosen_on_the_set(tmp_path: Path) -> None:
    cases = register(tmp_path / "cases", {"across": 4, "down": 4})
    chosen = run("estimate", cases, "--repeats", 2, "--json", tmp_path / "a.json")
    assert "the head was chosen on these very images, which flatters it a little: ridge: log-loss" in chosen.stderr
    assert json.loads((tmp_path / "a.json").read_text())["head"] == "ridge"
    run("deploy", cases, "--head", "nearest")
    deployed = run("estimate", cases, "--repeats", 2, "--json", tmp_path / "b.json")
    assert deployed.stderr.startswith("the head is that of deployment 1: nearest\n")
    assert json.loads((tmp_path / "b.json").read_text())["head"] == "nearest"


def test_json_printed_stands_alone_on_standard_output(tmp_path: Path) -> None:
    cases = register(tmp_path / "cases", {"across": 3, "down": 3})
    printed = run("estimate", cases, "--head", "nearest", "--repeats", 2, "--json", "-")
    found = json.loads(printed.stdout)
    assert (found["head"], found["n_repeats"], found["n_folds"], found["patients"]) == ("nearest", 2, 2, 6)
    assert "Expect" in printed.stderr


def test_a_hard_image_and_what_limits_the_estimate_are_named(tmp_path: Path) -> None:
    cases = register(tmp_path / "cases", {"across": 4, "down": 4, "blob": 1}, patients=True)
    wrong = picture(tmp_path / "support" / "wrong.png", "across", 4711)
    run("register", cases, "--label", "down", wrong)
    result = run("estimate", cases, "--repeats", 3)
    assert "over the 2 classes that can be judged" in result.stdout
    assert any(line.split()[:3] == ["0.00", "across", "down"] for line in result.stdout.splitlines())
    assert any(line.endswith("wrong.png") for line in result.stdout.splitlines())
    assert "'blob': one patient each cannot be cross-validated" in result.stderr
    assert "The patients of 1 of 19 images are unknown" in result.stderr


def test_a_set_that_cannot_be_estimated_is_refused(tmp_path: Path) -> None:
    result = run("estimate", tmp_path / "nowhere", code=3)
    assert result.stderr.startswith("radshot: ") and str(tmp_path / "nowhere") in result.stderr
    one = register(tmp_path / "one", {"blob": 3})
    result = run("estimate", one, "--json", tmp_path / "e.json", code=3)
    sentence = "An accuracy needs at least two classes to tell apart; the comparison set has only 'blob'."
    assert result.stderr == f"radshot: {sentence}\n"
    assert json.loads((tmp_path / "e.json").read_text()) == {"error": sentence, "exit_code": 3}
    with ComparisonSet.open(one) as held:
        held.remove(label="blob")
    assert "is empty: register images of two classes before asking" in run("estimate", one, code=3).stderr
    two = register(tmp_path / "two", {"blob": 3, "down": 3})
    assert "needs the relation module" in run("estimate", two, "--head", "relation", code=3).stderr
    with Archive.open(two) as archive:
        before = archive.version
    result = run("estimate", two, "--encoder", "pixels-32", code=3)
    assert "pixels-32" in result.stderr
    with Archive.open(two) as archive:
        assert archive.version == before


def test_a_set_of_single_patients_gets_no_number(tmp_path: Path) -> None:
    cases = register(tmp_path / "cases", {"blob": 1, "down": 1})
    result = run("estimate", cases, "--json", tmp_path / "e.json")
    assert result.stdout.startswith(
        "The accuracy on new patients cannot be said: fewer than two classes have 2 patients"
    )
    assert json.loads((tmp_path / "e.json").read_text())["accuracy"] is None


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["C", "--head", "prototype"], "Did you mean 'prototypes'"),
        (["C", "--folds", "1"], "--folds"),
        (["C", "--repeats", "0"], "--repeats"),
        (["C", "--seed", "-1"], "--seed"),
        (["C", "--markdown", "."], "--markdown names a file to write"),
        ([], "SET"),
    ],
)
def test_wrong_usage_exits_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str) -> None:
    monkeypatch.chdir(tmp_path)
    result = run("estimate", *arguments, code=2)
    assert says in result.stderr and result.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_the_help_page_fits_a_terminal_and_no_torch_is_needed(tmp_path: Path) -> None:
    page = run("estimate", "--help").stdout
    assert max(map(len, page.splitlines())) <= 80
    assert "--json FILE" in page and "\n    radshot estimate cases" in page
    assert "radshot estimate cases" in run("--help").stdout
    cases = register(tmp_path / "cases", {"across": 3, "down": 3})
    program = (
        "import sys\n"
        "from radshot.cli import app\n"
        "app(['estimate', sys.argv[1], '--repeats', '1'], standalone_mode=False)\n"
        "sys.stderr.write('torch' if 'torch' in sys.modules else 'free')\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(cases)], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.endswith("free"), done.stderr
