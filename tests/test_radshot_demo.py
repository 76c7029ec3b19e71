"""The demo, small: the same code with fewer patients and episodes, and the page it writes."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from embeddings import load_encoder
from episodes import Manifest
from fewshot import ComparisonSet, deploy
from radshot import demo, demo_deployment
from radshot.cli import app
from radshot.demo_deployment_page import table_rows
from radshot.demonstration import deployment_lines

#: Patients of each finding set aside: with 20 of four findings some can still be turned away at 5 %.
ASIDE = 5


@pytest.fixture(scope="module")
def small_demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of one small run of `radshot demo`."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (
            ("SOURCE_PATIENTS", 8),
            ("UNSEEN_PATIENTS", 12),
            ("TRAINING_EPISODES", 4),
            ("RANDOM_EPISODES", 5),
            ("REPORTED_PATIENTS", 14),
            ("WORDS_PATIENTS", 8),
        ):
            patch.setattr(demo, name, value)
        patch.setattr(demo_deployment, "CALIBRATION_PATIENTS", ASIDE)
        result = CliRunner().invoke(app, ["demo", "--out", str(out), "--seed", "3"])
    assert result.exit_code == 0, result.output
    return out


def truth_of(folder: Path) -> dict[str, tuple[str, str]]:
    """Finding and patient of every image of findings never trained on."""
    with (folder / "unseen" / "manifest.csv").open(encoding="utf-8", newline="") as file:
        return {str(folder / "unseen" / row["image"]): (row["label"], row["patient"]) for row in csv.DictReader(file)}


def balanced(outcomes: dict[str, list[bool]]) -> float:
    """Mean over findings of the share."""
    return sum(sum(own) / len(own) for own in outcomes.values()) / len(outcomes)


def test_result_has_every_figure(small_demo: Path) -> None:
    found = json.loads((small_demo / "demo.json").read_text())
    low, high = found["fewshot"]["interval"]
    assert 0 <= low <= found["fewshot"]["accuracy"] <= high <= 1
    assert found["n_way"] == 5 and found["k_shot"] == 5 and len(found["unseen_classes"]) == 5
    assert not set(found["unseen_classes"]) & set(found["source_findings"])
    assert set(found["baselines"]) == {"pixels", "hog"}
    assert found["archive"]["rows"] == 5 * 12 * demo.UNSEEN_IMAGES and found["archive"]["sound"]
    assert 0 <= found["search"]["precision_at_5"] <= 1
    words = found["words"]
    assert not set(words["seen"]) & set(words["unseen"]) and words["chance"] == 1 / len(words["unseen"])
    assert words["interval"][0] <= words["accuracy"] <= words["interval"][1]
    assert set(words["generalized"]) == {"S", "U", "H", "AUSUC"} and words["prior_shots"] > 0
    assert words["curve"][0]["k_shot"] == 0 and "shots alone" not in words["curve"][0]
    assert all({"words alone", "both", "shots alone"} <= set(point) for point in words["curve"][1:])
    assert (small_demo / "words" / "zeroshot.json").is_file()
    assert found["seconds"] > 0
    assert found["fewshot"]["query_patients"] == 5 * 7  # twelve patients a finding, five of them registered


def test_interval_and_accuracy_follow_from_the_stored_set(small_demo: Path) -> None:
    """What the page says is what the stored comparison set answers when it is asked again through the command line."""
    found = json.loads((small_demo / "demo.json").read_text())
    answers = small_demo / "answers.json"
    images = sorted((small_demo / "unseen").rglob("*.dcm"))
    asked = ["classify", str(small_demo / "cases"), *map(str, images), "--head", "prototypes", "--json", str(answers)]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    truth = truth_of(small_demo)
    stats = small_demo / "stats.json"
    assert CliRunner().invoke(app, ["stats", str(small_demo / "cases"), "--json", str(stats)]).exit_code == 0
    assert json.loads(stats.read_text())["rows"] == 25 + 5 * ASIDE * demo.UNSEEN_IMAGES
    with ComparisonSet.open(small_demo / "cases") as cases:
        registered = set(cases.patients)
    right: dict[str, list[bool]] = {}
    for answer in json.loads(answers.read_text()):
        label, patient = truth[answer["image"]]
        if patient not in registered:
            right.setdefault(label, []).append(answer["label"] == label)
    recalls = [sum(own) / len(own) for own in right.values()]
    assert sum(recalls) / len(recalls) == pytest.approx(found["fewshot"]["accuracy"])


def test_deployment_figures_follow_from_what_the_stored_deployment_answers(small_demo: Path) -> None:
    """`radshot classify demo/cases` gives the probabilities and sets that demo.json counts; slow loops count again."""
    found = json.loads((small_demo / "demo.json").read_text())["deployment"]
    with ComparisonSet.open(small_demo / "cases") as cases:
        support, aside = cases.parts()
    owners = [{row["patient"] for row in part.metadata} for part in (support, aside)]
    assert not owners[0] & owners[1]
    truth = truth_of(small_demo)
    asked = [path for path, (_, patient) in truth.items() if patient not in owners[0] | owners[1]]
    assert len(asked) == found["images"] == 5 * (12 - 5 - ASIDE) * demo.UNSEEN_IMAGES
    assert found["patients"] == len({truth[path][1] for path in asked}) == 5 * (12 - 5 - ASIDE)
    assert found["calibration_patients"] == dict.fromkeys(sorted({label for label, _ in truth.values()}), ASIDE)
    answers = small_demo / "deployed.json"
    assert (
        CliRunner().invoke(app, ["classify", str(small_demo / "cases"), *asked, "--json", str(answers)]).exit_code == 0
    )
    turned: dict[str, list[bool]] = {}
    right: dict[str, list[bool]] = {}
    covered: dict[str, list[bool]] = {}
    sizes, errors = [], []
    for answer in json.loads(answers.read_text()):
        label, _ = truth[answer["image"]]
        turned.setdefault(label, []).append(answer["label"] is None)
        covered.setdefault(label, []).append(label in answer["prediction_set"])
        sizes.append(len(answer["prediction_set"]))
        assert (answer["probability"] is None) == (answer["label"] is None)
        if answer["label"] is not None:
            right.setdefault(label, []).append(answer["label"] == label)
            errors.append(answer["probability"] - (answer["label"] == label))
    known = found["none_of_these"]["known"]["value"]
    assert known == pytest.approx(balanced(turned)) and found["answered"]["value"] == pytest.approx(1 - known)
    assert found["accuracy_of_labels"]["value"] == pytest.approx(balanced(right))
    assert found["sets"]["coverage"]["value"] == pytest.approx(balanced(covered))
    assert found["sets"]["mean_size"] == pytest.approx(sum(sizes) / len(sizes))
    # A mean over bins of |probability - right| is at least the whole mean's, and at most the mean over images.
    patients = found["reliability"]["bins"]
    assert sum(bin["patients"] for bin in patients) == pytest.approx(found["reliability"]["patients"])
    assert found["calibration_error"]["after"] <= sum(map(abs, errors)) / len(errors) + 1e-9


def test_each_finding_was_unknown_to_a_set_without_it(small_demo: Path, tmp_path: Path) -> None:
    """One finding taken out by hand, through the public names, gives the figures of demo.json."""
    found = json.loads((small_demo / "demo.json").read_text())["deployment"]["none_of_these"]["unknown"]
    encoder = load_encoder(small_demo / "encoder")
    truth = truth_of(small_demo)
    with ComparisonSet.open(small_demo / "cases", encoder=encoder) as cases:
        whole = cases.archive.snapshot()
        cases.archive.backup(tmp_path / "copy")
    known = {row["patient"] for row in whole.metadata}
    assert set(found["per_finding"]) == {label for label, _ in truth.values()}
    label = sorted(found["per_finding"])[2]
    with ComparisonSet.open(tmp_path / "copy", encoder=encoder) as cases:
        cases.remove(label=label)
        answers = {
            own: deploy(cases).decide(
                encoder.encode([p for p, (x, who) in truth.items() if who not in known and (x == label) == own])
            )
            for own in (True, False)
        }
    for own, name in ((True, "answered_none_of_these"), (False, "known_turned_away")):
        share = sum(decision.label is None for decision in answers[own]) / len(answers[own])
        assert found["per_finding"][label][name]["value"] == pytest.approx(share)
    rates = [row["answered_none_of_these"]["value"] for row in found["per_finding"].values()]
    assert found["answered_none_of_these"]["value"] == pytest.approx(sum(rates) / len(rates))


def test_lines_say_what_was_calibrated_and_nothing_else(small_demo: Path) -> None:
    found = json.loads((small_demo / "demo.json").read_text())["deployment"]
    lines = deployment_lines(found)
    assert "calibration error" in lines[0] and "90% sets" in lines[1] and "of a finding taken out" in lines[1]
    bare = {**found, "calibration_error": {"before": None, "after": None}, "sets": None, "accuracy_of_labels": None}
    lines = deployment_lines(bare)
    assert "calibration error" not in lines[0] and "labels right" not in lines[0] and "sets" not in lines[1]


def test_too_few_patients_leave_a_deployment_without_promises(small_demo: Path, tmp_path: Path) -> None:
    """One patient set aside of each finding: no probability, no set, and the page's rows say nothing of them."""
    encoder = load_encoder(small_demo / "encoder")
    manifest = Manifest.read(small_demo / "unseen" / "manifest.csv", group="patient")
    rows: dict[str, list[int]] = {}
    for i, label in enumerate(manifest.labels):
        rows.setdefault(str(label), []).append(i)
    owners = list(manifest.groups or ())
    with ComparisonSet.open(tmp_path / "cases", encoder=encoder) as cases:
        for label, own in rows.items():
            cases.register(label, [manifest.images[i] for i in own[:2]], patients=[owners[i] for i in own[:2]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo_deployment, "CALIBRATION_PATIENTS", 1)
        patch.setattr(demo_deployment, "SHOWN_RIGHT", 0)  # heat maps take most of the time
        found = demo_deployment.deploy_demo(
            tmp_path / "cases",
            encoder,
            manifest,
            encoder.encode(manifest.images),
            [i for own in rows.values() for i in own[2:6]],
            seed=0,
        )
    assert found.summary["sets"] is None and found.before is None and found.after is None
    assert found.summary["none_of_these"]["known"]["value"] == 0
    assert any("No probability" in remark for remark in found.summary["remarks"])
    assert all(example.decision.probability is None for example in found.examples)
    assert not [row for row in table_rows(found.summary) if "set" in row["what"].split() or "error" in row["what"]]


def test_page_is_self_contained(small_demo: Path) -> None:
    page = (small_demo / "report.html").read_text()
    assert "not a medical device" in page
    assert not re.search(r"""(src|href)=["'](?!data:)""", page), "the page must not load anything"
    assert "<script" not in page
    found = json.loads((small_demo / "demo.json").read_text())
    assert f"{found['fewshot']['accuracy']:.3f}" in page
    assert page.count("data:image/png;base64,") > 20
    assert "Grad-CAM" in page and "a finding taken out of the set" in page
    assert f"{found['deployment']['calibration_error']['after']:.3f}" in page


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path)])
    assert result.exit_code == 3
    assert (tmp_path / "mine.txt").read_text() == "keep"
