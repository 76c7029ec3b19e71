"""The demo, small: the same code with fewer patients and episodes, and the page it writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from radshot import demo
from radshot.cli import app


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one small run of `radshot demo`."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("SOURCE_PATIENTS", 8),
            ("UNSEEN_PATIENTS", 7),
            ("TRAINING_EPISODES", 4),
            ("RANDOM_EPISODES", 5),
        ):
            patch.setattr(demo, name, value)
        result = CliRunner().invoke(app, ["demo", "--out", str(out), "--seed", "3"])
    assert result.exit_code == 0, result.output
    return out


def test_result_has_every_figure(small_demo: Path) -> None:
    found = json.loads((small_demo / "demo.json").read_text())
    low, high = found["fewshot"]["interval"]
    assert 0 <= low <= found["fewshot"]["accuracy"] <= high <= 1
    assert found["n_way"] == 5 and found["k_shot"] == 5 and len(found["unseen_classes"]) == 5
    assert not set(found["unseen_classes"]) & set(found["source_findings"])
    assert set(found["baselines"]) == {"pixels", "hog"}
    assert found["archive"]["rows"] == 5 * 7 * demo.UNSEEN_IMAGES and found["archive"]["sound"]
    assert 0 <= found["search"]["precision_at_5"] <= 1
    assert found["seconds"] > 0
    assert found["fewshot"]["query_patients"] == 5 * 2  # seven patients a finding, five of them registered


def test_interval_and_accuracy_follow_from_the_stored_set(small_demo: Path) -> None:
    """What the page says is what the stored comparison set answers when it is asked again through the command line."""
    found = json.loads((small_demo / "demo.json").read_text())
    answers = small_demo / "answers.json"
    images = sorted((small_demo / "unseen").rglob("*.dcm"))
    result = CliRunner().invoke(app, ["classify", str(small_demo / "cases"), *map(str, images), "--json", str(answers)])
    assert result.exit_code == 0, result.output
    import pandas as pd

    table = pd.read_csv(small_demo / "unseen" / "manifest.csv", dtype=str)
    table["path"] = [str(small_demo / "unseen" / name) for name in table["image"]]
    truth = dict(zip(table["path"], zip(table["label"], table["patient"], strict=True), strict=True))
    stats = small_demo / "stats.json"
    assert CliRunner().invoke(app, ["stats", str(small_demo / "cases"), "--json", str(stats)]).exit_code == 0
    assert json.loads(stats.read_text())["rows"] == 25
    from fewshot import ComparisonSet

    with ComparisonSet.open(small_demo / "cases") as cases:
        registered = set(cases.patients)
    right: dict[str, list[bool]] = {}
    for answer in json.loads(answers.read_text()):
        label, patient = truth[answer["image"]]
        if patient not in registered:
            right.setdefault(label, []).append(answer["label"] == label)
    recalls = [sum(own) / len(own) for own in right.values()]
    assert sum(recalls) / len(recalls) == pytest.approx(found["fewshot"]["accuracy"])


def test_page_is_self_contained(small_demo: Path) -> None:
    page = (small_demo / "report.html").read_text()
    assert "not a medical device" in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page), "the page must not load anything"
    assert "<script" not in page
    found = json.loads((small_demo / "demo.json").read_text())
    assert f"{found['fewshot']['accuracy']:.3f}" in page
    assert page.count("data:image/png;base64,") > 20


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 3
    assert (tmp_path / "mine.txt").read_text() == "keep"
