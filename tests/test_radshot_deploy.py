"""`radshot deploy`, `deployments` and `classify` by a deployment, as a user types them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

KINDS = ("across", "down", "blob")


def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "radshot", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == code, f"{done.returncode}: {done.stdout}{done.stderr}"
    return done


def answer(*arguments: object, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", "-", code=code).stdout)


def picture(path: Path, kind: str, seed: int) -> Path:
    y, x = np.mgrid[0:24, 0:24] / 23
    base = {"across": x, "down": y, "blob": np.exp(-8 * ((x - 0.5) ** 2 + (y - 0.5) ** 2)), "checks": (x * 7 % 1 > 0.5)}
    noise = np.random.default_rng(seed).normal(0, 0.15, (24, 24))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((np.clip(base[kind] * 0.8 + 0.1 + noise, 0, 1) * 255).astype(np.uint8)).save(path)
    return path


def table(folder: Path, per_kind: int, seed: int) -> Path:
    rows = ["image,finding,patient"]
    for kind in KINDS:
        for i in range(per_kind):
            name = f"{folder.name}-{kind}-{i}"
            picture(folder / f"{name}.png", kind, seed + 100 * KINDS.index(kind) + i)
            rows.append(f"{name}.png,{kind},{name}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder / "table.csv"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A registered set, images to calibrate on, and images to ask about; tests copy the set."""
    root = tmp_path_factory.mktemp("world")
    support = table(root / "support", 5, 0)
    table(root / "more", 8, 1000)
    for kind in KINDS:
        picture(root / "new" / f"{kind}.png", kind, 5000)
    picture(root / "new" / "checks.png", "checks", 5001)
    run("register", root / "cases", "--manifest", support, "--label-column", "finding", "--encoder", "pixels-16")
    return root


def copy(world: Path, tmp_path: Path) -> Path:
    run("backup", world / "cases", tmp_path / "cases")
    return tmp_path / "cases"


def test_deploy_answers_with_probability_set_and_none_of_these(world: Path, tmp_path: Path) -> None:
    cases = copy(world, tmp_path)
    before = answer("classify", cases, world / "new" / "blob.png")[0]
    assert before["probability"] is None and before["prediction_set"] is None
    options = ("--calibration", world / "more" / "table.csv", "--label-column", "finding", "--sensitivity", "blob=0.8")
    made = answer("deploy", cases, *options)
    assert (made["number"], made["set_aside"], made["support_images"], made["refused"]) == (1, 24, 15, [])
    assert made["fitted"]["calibrated_on"] == "set-aside"
    assert made["fitted"]["patients"] == {"across": 8, "blob": 8, "down": 8}
    assert made["promised_coverage"] == 0.9
    assert made["fitted"]["points"]["blob"]["wanted"] == 0.8
    assert "values" not in json.dumps(made)  # no patient's figure leaves
    files = [world / "new" / f"{kind}.png" for kind in (*KINDS, "checks")]
    *known, strange = answer("classify", cases, *files)
    for kind, decision in zip(KINDS, known, strict=True):
        assert decision["label"] == kind == decision["prediction_set"][0]
        assert 0.5 < decision["probability"] <= 1 and decision["coverage"] == 0.9
    assert "blob" in known[2]["flags"]
    assert (strange["label"], strange["probability"]) == (None, None)
    assert strange["reason"].startswith("None of these:")
    shown = run("classify", cases, *files)
    assert shown.stdout.splitlines()[0].split()[:4] == ["label", "probability", "90%", "set"]
    assert "none of these" in shown.stdout and "checks.png: None of these" in shown.stderr
    by_head = answer("classify", cases, files[0], "--head", "prototypes")[0]
    assert by_head["probability"] is None


def test_later_images_take_no_part_until_deployed_and_roll_back_brings_all_back(world: Path, tmp_path: Path) -> None:
    cases = copy(world, tmp_path)
    asked = world / "new" / "down.png"
    run("deploy", cases, "--head", "prototypes", "--none-of-these", "never")
    first = answer("classify", cases, asked)
    more = ("register", cases, "--manifest", world / "more" / "table.csv", "--label-column", "finding")
    run(*more)
    done = run("classify", cases, asked, "--json", tmp_path / "again.json")
    assert json.loads((tmp_path / "again.json").read_text()) == first
    assert "24 image(s) registered since deployment 1 take no part: deploy anew." in done.stderr
    answer("deploy", cases, "--head", "nearest", "--coverage", "0.8")
    second = answer("classify", cases, asked)
    assert second != first
    listed = answer("deployments", cases)
    assert listed["current"] == 2 and [d["head"] for d in listed["deployments"]] == ["prototypes", "nearest"]
    assert answer("classify", cases, asked, "--deployment", "1") == first
    answer("deployments", cases, "--roll-back", "1")
    assert answer("classify", cases, asked) == first
    assert run("deployments", cases).stdout.splitlines()[1].startswith("->")
    gone = answer("forget", cases, "--patient", "support-down-3")
    assert gone["deployments_withdrawn"] == 2
    listed = answer("deployments", cases)["deployments"]
    assert [d["head"] for d in listed] == [None, None]
    assert "1 image was removed since it was made; it was fitted again without." in run("classify", cases, asked).stderr
    assert [d["head"] for d in answer("deployments", cases)["deployments"]] == ["prototypes", None]


def test_studies_are_answered_as_one(world: Path, tmp_path: Path) -> None:
    cases = copy(world, tmp_path)
    images = [world / "new" / f"{kind}.png" for kind in ("blob", "down", "blob")]
    studies = ("--study", "s1", "--study", "s2", "--study", "s1")
    one, two = answer("classify", cases, *images, *studies)
    assert (one["study"], one["images"], two["study"], two["label"]) == (
        "s1", [str(images[0]), str(images[2])], "s2", "down",
    )  # fmt: skip
    assert one["label"] == "blob"
    bad = tmp_path / "missing.png"
    refused, first, _ = answer("classify", cases, bad, *images[:2], *studies, code=1)
    assert refused["error"] == "there is no such file" and first["study"] == "s2"


def test_why_says_what_would_change_the_answer(world: Path, tmp_path: Path) -> None:
    cases = copy(world, tmp_path)
    (found,) = answer("classify", cases, world / "new" / "blob.png", "--why", "--head", "prototypes")
    assert "'blob' leads" in found["why"][0]


def test_heat_maps_are_written(world: Path, tmp_path: Path) -> None:
    cases = copy(world, tmp_path)
    done = run("classify", cases, world / "new" / "blob.png", "--heatmap", tmp_path / "maps")
    assert [path.name for path in (tmp_path / "maps").iterdir()] == ["001-blob-occlusion.png"]  # pixels have no network
    assert "heat maps for 'blob' in 001-blob-occlusion.png" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("deploy", "{cases}", "--head", "auot"), 2, "Did you mean 'auto'?"),
        (("deploy", "{cases}", "--head", "soft-k-means"), 3, "cannot be deployed"),
        (("deploy", "{cases}", "--coverage", "1.2"), 2, "coverage"),
        (("deploy", "{cases}", "--none-of-these", "often"), 2, "--none-of-these takes a share"),
        (("deploy", "{cases}", "--sensitivity", "blob"), 2, "--sensitivity takes CLASS=SHARE"),
        (
            ("deploy", "{cases}", "--sensitivity", "blub=0.9"),
            3,
            "names the class 'blub'; the set has across, blob, down",
        ),
        (("deploy", "{cases}", "--sensitivity", "blob=0.5", "--sensitivity", "blob=0.9"), 2, "names 'blob' twice"),
        (("deploy", "{cases}", "--calibrate-on", "set-aside"), 3, "No image is set aside to calibrate on"),
        (("classify", "{cases}", "{image}", "--study", " "), 2, "one of the names is empty"),
        (("deploy", "{cases}", "--calibrate-on", "luck"), 2, "calibrate_on must be one of"),
        (("deploy", "{cases}", "--where", "a = 1"), 2, "name one with --calibration"),
        (("deploy", "{nowhere}"), 3, "There is no archive"),
        (("deployments", "{cases}", "--roll-back", "4"), 3, "has no deployment 4; there is none"),
        (("classify", "{cases}", "{image}", "--deployment", "2"), 3, "has no deployment 2"),
        (("classify", "{cases}", "{image}", "--deployment", "1", "--head", "ridge"), 2, "give one of the two"),
        (("classify", "{cases}", "{image}", "--study", "s", "--by-study"), 2, "give one of the two"),
        (("classify", "{cases}", "{image}", "--study", "s", "--study", "t"), 2, "--study repeats once per image"),
    ],
)
def test_what_cannot_be_meant_is_one_sentence_and_changes_nothing(
    world: Path, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    places = {"cases": world / "cases", "nowhere": tmp_path / "nowhere", "image": world / "new" / "blob.png"}
    done = run(*(argument.format(**places) for argument in arguments), code=code)
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert answer("deployments", world / "cases") == {"current": None, "deployments": []}


def test_calibration_images_of_support_patients_are_refused_and_named(world: Path, tmp_path: Path) -> None:
    cases = copy(world, tmp_path)
    text = (world / "more" / "table.csv").read_text().replace("blob,more-blob-0", "blob,support-blob-0")
    (world / "more" / "mixed.csv").write_text(text)
    made = answer("deploy", cases, "--calibration", world / "more" / "mixed.csv", "--label-column", "finding", code=1)
    assert len(made["refused"]) == 1 and "supports the set" in made["refused"][0]["reason"]
    assert made["set_aside"] == 23


def test_nothing_is_set_aside_for_a_deployment_that_cannot_be_made(world: Path, tmp_path: Path) -> None:
    cases = copy(world, tmp_path)
    options = ("--calibration", world / "more" / "table.csv", "--label-column", "finding", "--sensitivity", "blub=0.9")
    assert "names the class 'blub'" in run("deploy", cases, *options, code=3).stderr
    assert answer("stats", cases)["rows"] == 15


def test_a_set_embedded_anew_asks_for_a_new_deployment(world: Path, tmp_path: Path) -> None:
    cases = copy(world, tmp_path)
    run("deploy", cases)
    run("embed", "--reembed", "--encoder", "pixels-32", "--archive", cases)
    refused = run("classify", cases, world / "new" / "blob.png", code=3)
    assert "was made with another encoder than the set has now" in refused.stderr
    assert answer("classify", cases, world / "new" / "blob.png", "--head", "prototypes")[0]["label"] == "blob"
    run("deploy", cases)
    assert answer("classify", cases, world / "new" / "blob.png")[0]["label"] == "blob"


def test_a_heat_map_that_cannot_be_written_loses_no_answer(world: Path, tmp_path: Path) -> None:
    cases = copy(world, tmp_path)
    (tmp_path / "maps").write_text("a file where the folder should be")
    options = ("--heatmap", tmp_path / "maps", "--json", tmp_path / "a.json")
    done = run("classify", cases, world / "new" / "blob.png", *options)
    assert "no heat map, or not all" in done.stderr
    assert json.loads((tmp_path / "a.json").read_text())[0]["label"] == "blob"
