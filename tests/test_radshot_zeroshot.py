"""`radshot zeroshot` and `radshot search --text` on drawn chests: pages, exit codes, JSON, and words beside shots."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from episodes import make_phantoms, write_phantoms
from radshot.cli import app

FINDINGS = ("effusion", "pneumothorax", "cardiomegaly", "edema", "emphysema", "mass")
UNSEEN = ("cardiac device", "scoliosis")
COMMANDS = ("fit", "classify", "evaluate", "describe", "reports")


def run(*arguments: object, code: int = 0) -> Any:
    """Run a command line in this process, expect its exit code and, where it fails, one sentence that says why."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    sentences = [line for line in result.stderr.splitlines() if line.startswith("radshot: ")]
    assert len(sentences) <= 1
    assert all(line.endswith((".", "?")) for line in sentences), sentences
    return result


def answer(*arguments: object, code: int = 0) -> Any:
    """The JSON a command prints; nothing else may stand on standard output."""
    return json.loads(run(*arguments, "--json", "-", code=code).stdout)


def sentence(result: Any) -> str:
    (found,) = [line for line in result.stderr.splitlines() if line.startswith("radshot: ")]
    return str(found).removeprefix("radshot: ")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images with reports (train), images of seen and unseen findings to ask about (new), an archive, and a model."""
    root = tmp_path_factory.mktemp("world")
    write_phantoms(make_phantoms(FINDINGS, patients_per_finding=12, size=(64, 64)), root / "train", format="png")
    write_phantoms(
        make_phantoms((*FINDINGS, *UNSEEN), patients_per_finding=4, size=(64, 64), seed=9), root / "new", format="png"
    )
    write_phantoms(
        make_phantoms(FINDINGS, patients_per_finding=6, size=(64, 64), seed=3, combined=0.9),
        root / "several",
        format="png",
    )
    run("embed", "--manifest", root / "train" / "manifest.csv", "--encoder", "hog-64", "--archive", root / "archive",
        "--workers", 0)  # fmt: skip
    fit(root, "--out", root / "words")
    fit(root, "--out", root / "seen", "--label", "label", "--describe", "phantoms")
    (root / "three.toml").write_text(
        '[effusion]\nsentences = ["Pleural effusion with blunting of the costophrenic angle."]\nterms = ["effusion"]\n'
        '[cardiomegaly]\nsentences = ["Enlargement of the heart."]\nterms = ["cardiomegaly"]\n'
        '[pneumothorax]\nsentences = ["Pneumothorax with a visible pleural line."]\nterms = ["pneumothorax"]\n'
    )
    return root


def fit(world: Path, *options: object, code: int = 0, text: str = "report", manifest: Path | None = None) -> Any:
    table = manifest or world / "train" / "manifest.csv"
    return run("zeroshot", "fit", table, "--encoder", "hog-64", "--text", text, *options, code=code)


def images_of(world: Path, finding: str, count: int = 4, part: str = "new") -> list[Path]:
    table = pd.read_csv(world / part / "manifest.csv")
    return [world / part / name for name in table.loc[table["label"] == finding, "image"].tolist()[:count]]


def described(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


# -- pages -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_every_help_page_fits_a_terminal_and_names_the_json_option(name: str) -> None:
    page = run("zeroshot", *name.split(), "--help").stdout
    assert max(map(len, page.splitlines())) <= 80
    assert not re.search(r"<str>|<int>|<float>|<bool>|list\[str\]|\bTEXT\b|INTEGER", page)
    if name:
        assert "--json FILE" in page


# -- fit -------------------------------------------------------------------------------------------------------------


def test_fit_says_what_it_learnt_from(world: Path, tmp_path: Path) -> None:
    result = fit(world, "--out", tmp_path / "words", "--json", "-")
    found = json.loads(result.stdout)
    assert (found["images"], found["images_without_text"], found["refused"]) == (72, 0, [])
    assert (found["alignment"], found["gamma"], found["seen"]) == ("cca", None, [])
    assert found["text_encoder"].startswith("tfidf") and found["prior_shots"] == 4.0
    assert "72 images aligned with their texts by cca" in result.stderr
    assert (tmp_path / "words" / "zeroshot.json").is_file()


def test_fit_with_labels_learns_gamma_and_what_words_are_worth(world: Path, tmp_path: Path) -> None:
    options = ("--label", "label", "--describe", "phantoms", "--alignment", "ridge")
    found = [json.loads(fit(world, "--out", tmp_path / str(i), *options, "--json", "-").stdout) for i in range(2)]
    assert found[0]["seen"] == sorted(FINDINGS) and np.isfinite(found[0]["gamma"]) and found[0]["prior_shots"] > 0
    assert {**found[0], "model": ""} == {**found[1], "model": ""}  # one seed, one result


def test_an_image_that_cannot_be_read_costs_itself_only(world: Path, tmp_path: Path) -> None:
    table = pd.read_csv(world / "train" / "manifest.csv")
    table["image"] = [str(world / "train" / name) for name in table["image"]]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    table.loc[0, "image"] = "broken.png"
    table.loc[1, "report"] = ""
    table.loc[2, "report"] = "zzz qqq"
    table.to_csv(tmp_path / "table.csv", index=False)
    result = fit(world, "--out", tmp_path / "words", "--json", "-", manifest=tmp_path / "table.csv", code=1)
    found = json.loads(result.stdout)
    assert [Path(entry["image"]).name for entry in found["refused"]] == ["broken.png"]
    assert (found["images"], found["images_without_text"]) == (69, 2)
    assert "2 images have no text" in result.stderr and "refused " in result.stderr
    table["image"] = "broken.png"
    table.iloc[:1].to_csv(tmp_path / "none.csv", index=False)
    told = sentence(fit(world, "--out", tmp_path / "other", manifest=tmp_path / "none.csv", code=3))
    assert told == "None of the 1 images could be read." and not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--alignment", "rigde"), 2, "--alignment is one of ridge, .*contrastive; got 'rigde'."),
        (("--label", "label"), 2, "--label and --describe go together"),
        (("--describe", "phantoms"), 2, "--label and --describe go together"),
        (("--label", "label", "--describe", "no.toml"), 2, "--describe names a TOML file or a built-in set .*neither"),
        (("--label", "lable", "--describe", "phantoms"), 2, "no column 'lable'; .*did you mean 'label'?"),
        (("--label", "view", "--describe", "phantoms"), 3, "None of the images has a label that is described"),
        (("--text-encoder", "tfidff"), 2, "tfidff"),
        (("--encoder", "hog-63x"), 2, "hog-63x"),
    ],
)
def test_fit_refuses_in_one_sentence(world: Path, tmp_path: Path, options: Sequence[str], code: int, said: str) -> None:
    assert re.search(said, sentence(fit(world, "--out", tmp_path / "words", *options, code=code)))
    assert not (tmp_path / "words").exists()


def test_fit_needs_texts(world: Path, tmp_path: Path) -> None:
    told = sentence(fit(world, "--out", tmp_path / "words", text="reprot", code=2))
    assert told.startswith("manifest.csv has no column 'reprot'; it has image, label, patient")
    table = pd.read_csv(world / "train" / "manifest.csv")
    table["image"] = [str(world / "train" / name) for name in table["image"]]
    table.assign(report="").to_csv(tmp_path / "table.csv", index=False)
    told = sentence(fit(world, "--out", tmp_path / "words", manifest=tmp_path / "table.csv", code=3))
    assert told == "None of the images has a text: name the column with --text."
    table.head(5).to_csv(tmp_path / "few.csv", index=False)
    told = sentence(fit(world, "--out", tmp_path / "words", manifest=tmp_path / "few.csv", code=3))
    assert "at least 10 images" in told
    assert run("zeroshot", "fit", tmp_path / "few.csv", "--encoder", "hog-64", "--out", tmp_path / "w", code=2)


# -- classify --------------------------------------------------------------------------------------------------------


def test_classify_answers_with_sentences_as_evidence(world: Path) -> None:
    images = [image for finding in ("effusion", "cardiomegaly", "pneumothorax") for image in images_of(world, finding)]
    result = run("zeroshot", "classify", world / "words", *images, "--describe", world / "three.toml", "--json", "-")
    found = json.loads(result.stdout)
    assert [entry["image"] for entry in found] == [str(image) for image in images]
    right = [entry["label"] == finding for entry, finding in zip(found, np.repeat(["effusion", "cardiomegaly",
             "pneumothorax"], 4), strict=True)]  # fmt: skip
    assert sum(right) >= 8
    for entry in found:
        assert entry["label"] in ("effusion", "cardiomegaly", "pneumothorax")
        assert entry["runner_up"] != entry["label"] and entry["margin"] >= 0 and entry["reason"] is None
        assert {n["label"] for n in entry["evidence"]} == {entry["label"]}
        assert {n["label"] for n in entry["counter_evidence"]} == {entry["runner_up"]}
        assert all(" " in n["phrase"] or n["phrase"].endswith(".") for n in entry["evidence"])
        assert "presence" not in entry and "probability" not in entry
    shown = run("zeroshot", "classify", world / "words", images[0], "--describe", world / "three.toml").stdout
    assert "closest sentence" in shown and shown.splitlines()[1].startswith(found[0]["label"])


def test_classify_needs_no_absent_form(world: Path, tmp_path: Path) -> None:
    plain = described(tmp_path / "d.toml", 'effusion = "Pleural effusion."\nmass = ["Lung mass."]\n')
    (image,) = images_of(world, "effusion", 1)
    (found,) = answer("zeroshot", "classify", world / "words", image, "--describe", plain)
    assert found["label"] in ("effusion", "mass")
    told = sentence(run("zeroshot", "classify", world / "words", image, "--describe", plain, "--several", 1, code=3))
    assert "no absent form" in told


def test_several_classes_are_those_that_stand_out(world: Path) -> None:
    images = images_of(world, "effusion") + images_of(world, "cardiomegaly")
    options = ("zeroshot", "classify", world / "words", *images, "--describe", world / "three.toml", "--several", 0.5)
    found = answer(*options)
    sizes = set()
    for entry in found:
        expected = {name for name, score in entry["presence"].items() if score >= 0.5}
        assert set(entry["present"]) == expected
        scores = [entry["presence"][name] for name in entry["present"]]
        assert scores == sorted(scores, reverse=True)
        sizes.add(len(expected))
    assert len(sizes) > 1
    first = run(*options).stdout.splitlines()[1]
    assert first.startswith(", ".join(found[0]["present"]) or "none")


def test_an_answer_that_hardly_leads_is_uncertain(world: Path) -> None:
    images = images_of(world, "effusion")
    options = ("zeroshot", "classify", world / "words", *images, "--describe", world / "three.toml")
    found = answer(*options, "--least-margin", 9)
    assert all(entry["label"] is None and entry["reason"].startswith("Uncertain") for entry in found)
    assert run(*options, "--least-margin", 9).stdout.splitlines()[1].startswith("uncertain")


def test_classify_names_an_image_that_cannot_be_read(world: Path, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (image,) = images_of(world, "effusion", 1)
    options = ("zeroshot", "classify", world / "words")
    found = answer(*options, tmp_path / "broken.png", image, "--describe", "phantoms", code=1)
    by_name = {Path(entry["image"]).name: entry for entry in found}
    assert by_name["broken.png"]["label"] is None and by_name["broken.png"]["error"]
    assert by_name[image.name]["label"]
    (found,) = answer(*options, tmp_path / "broken.png", "--describe", "phantoms", code=3)
    assert found["error"]
    (found,) = answer(*options, tmp_path / "broken.png", "--describe", "phantoms", "--several", 1, code=3)
    assert found["error"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[effusion\n", "cannot be read as TOML"),
        ("[effusion]\nsentences = []\n", "'effusion' in .* has no text"),
        ('effusion = "  "\n', "'effusion' in .* has no text"),
        ("effusion = 3\n", "must be described by texts; got 3"),
        ('[effusion]\nsentence = ["x"]\n', "sentences, terms and absent; 'effusion' in .* has 'sentence'"),
        ("", "describes no class"),
        ('effusion = "Qwzzx vrrgl."\nmass = "Mass."\n', "knows no word of the description of 'effusion'"),
    ],
)
def test_descriptions_that_say_nothing_are_refused(world: Path, tmp_path: Path, text: str, said: str) -> None:
    (image,) = images_of(world, "effusion", 1)
    file = described(tmp_path / "d.toml", text)
    told = sentence(run("zeroshot", "classify", world / "words", image, "--describe", file, code=3))
    assert re.search(said, told), told


def test_a_description_that_names_another_class_is_noted(world: Path, tmp_path: Path) -> None:
    file = described(
        tmp_path / "d.toml", 'effusion = "Pleural effusion, no mass."\nmass = "Lung mass."\nedema = "Edema."\n'
    )
    (image,) = images_of(world, "effusion", 1)
    result = run("zeroshot", "classify", world / "words", image, "--describe", file)
    assert "The description of 'effusion' names another class, 'mass'" in result.stderr


def test_a_missing_description_file_is_wrong_usage(world: Path) -> None:
    (image,) = images_of(world, "effusion", 1)
    told = sentence(run("zeroshot", "classify", world / "words", image, "--describe", "nowhere.toml", code=2))
    assert told.startswith("--describe names a TOML file or a built-in set") and "'nowhere.toml' is neither" in told


def test_another_encoder_is_refused(world: Path, tmp_path: Path) -> None:
    (image,) = images_of(world, "effusion", 1)
    asked = ("--describe", "phantoms", "--encoder", "pixels-32")
    for options in (
        ("zeroshot", "classify", world / "words", image, *asked),
        ("zeroshot", "evaluate", world / "words", world / "new" / "manifest.csv", *asked),
        ("zeroshot", "describe", tmp_path / "cases", "--words", world / "words", *asked),
    ):
        told = sentence(run(*options, code=3))
        assert "aligned with the encoder 'hog-64'" in told and "pixels-32" in told
    assert not (tmp_path / "cases").exists()


@pytest.mark.parametrize("what", ["no folder", "weights", "document", "newer", "text", "a key"])
def test_a_damaged_model_is_refused(world: Path, tmp_path: Path, what: str) -> None:
    model = tmp_path / "words"
    shutil.copytree(world / "words", model)
    document = model / "zeroshot.json"
    if what == "no folder":
        shutil.rmtree(model)
    elif what == "weights":
        (weights,) = model.glob("alignment-*.safetensors")
        content = bytearray(weights.read_bytes())
        content[-1] ^= 1
        weights.write_bytes(bytes(content))
    elif what == "document":
        document.write_text("{")
    elif what == "newer":
        document.write_text(json.dumps({**json.loads(document.read_text()), "format": 99}))
    elif what == "a key":
        kept = json.loads(document.read_text())
        del kept["alignment"]
        document.write_text(json.dumps(kept))
    else:
        for file in next(model.glob("text-*")).iterdir():
            file.write_bytes(file.read_bytes()[:-3])
    (image,) = images_of(world, "effusion", 1)
    told = sentence(run("zeroshot", "classify", model, image, "--describe", "phantoms", code=3))
    expected = {
        "no folder": "holds no zero-shot model: make one with",
        "weights": "not those that were written: fit it anew",
        "document": "cannot be read",
        "newer": "upgrade radshot",
        "text": str(model),
        "a key": "cannot be read",
    }
    assert expected[what] in told, told


# -- evaluate --------------------------------------------------------------------------------------------------------


def test_evaluate_measures_seen_and_unseen(world: Path) -> None:
    result = run("zeroshot", "evaluate", world / "seen", world / "new" / "manifest.csv", "--describe", "phantoms",
                 "--json", "-")  # fmt: skip
    found = json.loads(result.stdout)
    assert set(found["classes"]) == {*FINDINGS, "cardiac device"} and found["refused"] == []
    assert "'scoliosis' is left out" in result.stderr  # the reports only ever deny it
    low, high = found["interval"]
    assert low <= found["balanced_accuracy"] <= high
    assert found["balanced_accuracy"] == pytest.approx(np.mean(list(found["classes"].values())))
    for key in ("S", "U", "H", "AUSUC"):
        estimate, low, high = found["generalized"][key]
        assert 0 <= low <= high <= 1 and 0 <= estimate <= 1
    assert "hilar adenopathy" in found["without_images"] and "cannot be scored" in result.stderr
    plain = answer("zeroshot", "evaluate", world / "words", world / "new" / "manifest.csv", "--describe", "phantoms")
    assert "generalized" not in plain  # nothing was seen


def test_evaluate_measures_several_labels(world: Path) -> None:
    options = ("zeroshot", "evaluate", world / "words", world / "several" / "manifest.csv", "--describe")
    found = answer(*options, "phantoms")
    assert set(found["auroc"]) == set(FINDINGS) and set(found["f1_at"]) == {"1", "2", "3"}
    assert found["mean_auroc"] == pytest.approx(np.mean(list(found["auroc"].values())))
    assert found["mean_auroc"] > 0.5
    assert "consolidation" in found["without_positives"]


def test_evaluate_refuses_labels_that_are_not_described(world: Path, tmp_path: Path) -> None:
    options = ("zeroshot", "evaluate", world / "words", world / "new" / "manifest.csv", "--describe")
    told = sentence(run(*options, "anatomy", code=3))
    assert told == "None of the images is of a described class: check --label and --describe."
    assert "no column 'lable'" in sentence(run(*options, "phantoms", "--label", "lable", code=2))
    result = run(*options, world / "three.toml")
    assert "20 images are of classes that are not described" in result.stderr
    table = pd.read_csv(world / "new" / "manifest.csv")
    table["image"] = [str(world / "new" / name) for name in table["image"]]
    (tmp_path / "broken.png").write_bytes(b"no picture")
    table.loc[0, "image"] = str(tmp_path / "broken.png")
    table.to_csv(tmp_path / "table.csv", index=False)
    found = answer(*options[:3], tmp_path / "table.csv", "--describe", "phantoms", code=1)
    assert [Path(entry["image"]).name for entry in found["refused"]] == ["broken.png"]


# -- words beside shots ----------------------------------------------------------------------------------------------


def kinds(entry: dict[str, Any]) -> set[str]:
    return {"phrase" if "phrase" in n else "image" for n in entry["evidence"] + entry["counter_evidence"]}


def test_a_set_described_with_words_answers_with_phrases_then_with_both(world: Path, tmp_path: Path) -> None:
    cases = tmp_path / "cases"
    options = ("zeroshot", "describe", cases, "--words", world / "seen", "--describe", world / "three.toml")
    found = answer(*options)
    assert {name: entry["shots"] for name, entry in found["classes"].items()} == {
        "effusion": 0, "cardiomegaly": 0, "pneumothorax": 0,
    }  # fmt: skip
    assert all(entry["phrases"] for entry in found["classes"].values()) and found["prior_shots"] > 0
    images = images_of(world, "effusion") + images_of(world, "cardiomegaly")
    by_words = answer("classify", cases, *images)
    assert all(kinds(entry) == {"phrase"} and entry["probability"] is None for entry in by_words)
    assert sum(e["label"] == n for e, n in zip(by_words, ["effusion"] * 4 + ["cardiomegaly"] * 4, strict=True)) >= 5
    assert "sentences" in run(*options).stdout

    support = [image for finding in ("effusion", "cardiomegaly", "pneumothorax", "mass")
               for image in images_of(world, finding, 6, "train")]  # fmt: skip
    table = pd.read_csv(world / "train" / "manifest.csv").set_index("image")
    for finding in ("effusion", "cardiomegaly", "pneumothorax", "mass"):
        mine = [image for image in support if table.loc[image.name, "label"] == finding]
        patients = [part for image in mine for part in ("--patient", table.loc[image.name, "patient"])]
        run("register", cases, "--label", finding, *mine, *patients)
    by_both = answer("classify", cases, *images)
    assert all("image" in kinds(entry) for entry in by_both)
    assert any(kinds(entry) == {"phrase", "image"} for entry in by_both)
    shown = answer("zeroshot", "describe", cases, "--words", world / "seen", "--describe", world / "three.toml")
    assert {name: entry["shots"] for name, entry in shown["classes"].items()} == {
        "effusion": 6, "cardiomegaly": 6, "pneumothorax": 6,
    }  # fmt: skip

    answer("deploy", cases)
    deployed = answer("classify", cases, *images)
    assert all("image" in kinds(entry) for entry in deployed)
    assert any(kinds(entry) == {"phrase", "image"} for entry in deployed)
    assert run("classify", cases, images[0]).stdout


def test_deploying_words_without_shots_answers_by_words_and_gives_no_probability(world: Path, tmp_path: Path) -> None:
    cases = tmp_path / "cases"
    run("zeroshot", "describe", cases, "--words", world / "words", "--describe", world / "three.toml")
    run("deploy", cases)
    for entry in answer("classify", cases, *images_of(world, "effusion")):
        assert kinds(entry) == {"phrase"} and entry["probability"] is None


def test_one_class_of_words_alone_beside_registered_ones(world: Path, tmp_path: Path) -> None:
    cases = tmp_path / "cases"
    for finding in ("effusion", "mass"):
        mine = images_of(world, finding, 5, "train")
        run("register", cases, "--encoder", "hog-64", "--label", finding, *mine)
    file = described(tmp_path / "d.toml", 'cardiomegaly = "Cardiomegaly, enlargement of the heart."\n')
    run("zeroshot", "describe", cases, "--words", world / "words", "--describe", file)
    found = answer("classify", cases, *images_of(world, "cardiomegaly"), *images_of(world, "effusion"))
    assert "cardiomegaly" in {entry["label"] for entry in found[:4]}
    own = [entry for entry in found if entry["label"] == "cardiomegaly"]
    assert all("phrase" in entry["evidence"][0] for entry in own)
    other = tmp_path / "other"
    run("register", other, "--encoder", "pixels-32", "--label", "mass", *images_of(world, "mass", 2))
    told = sentence(run("zeroshot", "describe", other, "--words", world / "words", "--describe", file, code=3))
    assert "encoder" in told
    told = sentence(run("zeroshot", "describe", cases, "--words", tmp_path / "none", "--describe", file, code=3))
    assert "holds no zero-shot model" in told


# -- search by words -------------------------------------------------------------------------------------------------


def test_search_finds_what_a_sentence_describes(world: Path) -> None:
    options = ("search", world / "archive", "--words", world / "words", "-k", 8)
    found = answer(*options, "--text", "Cardiomegaly, marked enlargement of the heart.")
    assert len(found["results"]) == 8 and found["exact"] is True
    similarities = [row["similarity"] for row in found["results"]]
    assert similarities == sorted(similarities, reverse=True)
    labels = [row["metadata"]["label"] for row in found["results"]]
    assert labels.count("cardiomegaly") >= 4
    among = answer(*options, "--text", "cardiomegaly", "--where", "label = 'mass'")
    assert {row["metadata"]["label"] for row in among["results"]} == {"mass"}
    assert "cardiomegaly" in run(*options, "--text", "cardiomegaly").stdout


def test_search_by_words_refuses_in_one_sentence(world: Path, tmp_path: Path) -> None:
    base = ("search", world / "archive")
    words = ("--words", world / "words")
    (image,) = images_of(world, "mass", 1)
    assert "--text and --words go together" in sentence(run(*base, "--text", "mass", code=2))
    assert "--text and --words go together" in sentence(run(*base, image, *words, code=2))
    assert "one of the three" in sentence(run(*base, image, "--text", "mass", *words, code=2))
    assert "one of the three" in sentence(run(*base, code=2))
    assert "knows no word of 'qwzzx vrrgl'" in sentence(run(*base, "--text", "qwzzx vrrgl", *words, code=3))
    assert sentence(run(*base, "--text", "  ", *words, code=3)) == "The text to look for is empty."
    told = sentence(run(*base, "--text", "mass", "--words", tmp_path / "none", code=3))
    assert "holds no zero-shot model" in told
    run("embed", world / "new", "--encoder", "pixels-32", "--archive", tmp_path / "other", "--workers", 0)
    told = sentence(run("search", tmp_path / "other", "--text", "mass", *words, code=3))
    assert "aligned with the encoder 'hog-64'" in told and told.endswith("(`radshot zeroshot fit`).")


# -- reports ---------------------------------------------------------------------------------------------------------


def test_reports_become_a_table_of_labels(world: Path, tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    options = ("zeroshot", "reports", world / "train" / "manifest.csv", "--text", "report", "--out", table)
    found = answer(*options)
    frame = pd.read_csv(table)
    assert len(frame) == 72 and {"image", "patient"} <= set(frame.columns)
    values = frame[found["findings"]]
    assert (values == 1).sum().sum() == found["present"] > 0 and (values == 0).sum().sum() == found["absent"] > 0
    assert values.isna().to_numpy().any()  # not mentioned is not absent
    assert all(Path(name).is_file() for name in frame["image"])
    few = answer(*options, "--finding", "pneumothorax", "--finding", "pleural effusion")
    assert len(few["findings"]) == 2
    assert "72 reports" in run(*options).stdout


def test_reports_refuse_in_one_sentence(world: Path, tmp_path: Path) -> None:
    table = ("zeroshot", "reports", world / "train" / "manifest.csv", "--out", tmp_path / "labels.csv")
    assert "no column 'reprot'" in sentence(run(*table, "--text", "reprot", code=2))
    assert "--uncertain is unknown, present or absent" in sentence(
        run(*table, "--text", "report", "--uncertain", "maybe", code=2)
    )
    assert sentence(run(*table, "--text", "report", "--finding", "qwzzx", code=3))
    assert sentence(run(*table, "--text", "report", "--lexicon", tmp_path / "no.toml", code=3))
    assert not (tmp_path / "labels.csv").exists()
    folder = ("zeroshot", "reports", world / "train" / "manifest.csv", "--text", "report", "--out", tmp_path)
    assert "--out names a file" in sentence(run(*folder, code=2))


def test_the_table_of_reports_is_a_manifest(world: Path, tmp_path: Path) -> None:
    """Weak labels go straight back in: the label column is what evaluate takes."""
    table = tmp_path / "labels.csv"
    run("zeroshot", "reports", world / "train" / "manifest.csv", "--text", "report", "--out", table)
    frame = pd.read_csv(table)
    named = frame["label"].dropna().str.split("|").explode()
    for name in frame.columns.drop(["image", "label", "patient"]):
        assert (named == name).sum() == (frame[name] == 1).sum()
    file = described(
        tmp_path / "d.toml", "".join(f'"{name}" = ["{name}."]\n' for name in ("Cardiomegaly", "Emphysema", "Mass"))
    )
    found = answer("zeroshot", "evaluate", world / "words", table, "--describe", file, "--where", "label != ''")
    assert "auroc" in found or "balanced_accuracy" in found


def test_pictures_of_any_size_are_asked_about(world: Path, tmp_path: Path) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 200), dtype=np.uint8)).save(tmp_path / "flat.png")
    (found,) = answer("zeroshot", "classify", world / "words", tmp_path / "flat.png", "--describe", "phantoms")
    assert found["label"]


def test_words_of_a_search_that_are_not_known_are_named(world: Path) -> None:
    result = run("search", world / "archive", "--text", "large zebra mass", "--words", world / "words")
    assert "not known, and so not looked for: 'zebra'" in result.stderr
    said = sentence(run("search", world / "archive", "--text", "There is a zebra", "--words", world / "words", code=3))
    assert "knows no word of 'There is a zebra' that matters ('zebra')" in said


def test_describing_further_classes_keeps_those_before_unless_replaced(world: Path, tmp_path: Path) -> None:
    cases, said = (
        tmp_path / "cases",
        ("zeroshot", "describe", tmp_path / "cases", "--words", world / "words", "--describe"),
    )
    first = described(tmp_path / "a.toml", 'effusion = "Pleural effusion."\n')
    second = described(tmp_path / "b.toml", 'mass = "Lung mass."\n')
    assert set(answer(*said, first)["classes"]) == {"effusion"}
    assert set(answer(*said, second)["classes"]) == {"effusion", "mass"}
    fit(world, "--out", tmp_path / "again", "--alignment", "ridge", "--where", "label <> 'mass'")
    other = ("zeroshot", "describe", cases, "--words", tmp_path / "again", "--describe", first)
    assert "describe all classes again with --replace" in sentence(run(*other, code=3))
    assert set(answer(*other, "--replace")["classes"]) == {"effusion"}
    (image,) = images_of(world, "mass", 1)
    left = run("register", cases, "--label", "mass", image)
    assert left.exit_code == 0
    told = run("classify", cases, image, "--head", "prototypes")
    assert "known by words only, and left out: effusion" in told.stderr


def test_reports_are_read_whether_or_not_their_images_are_there(tmp_path: Path) -> None:
    table, labels = tmp_path / "reports.csv", tmp_path / "labels.csv"
    table.write_text(
        "image,report\nXray,Small left effusion.\nXray,No pneumothorax.\nXray,Small effusion. No effusion.\nXray,\n"
    )
    result = run("zeroshot", "reports", table, "--text", "report", "--out", labels, "--group", "none", code=1)
    frame = pd.read_csv(labels)
    assert frame["Pleural Effusion"].tolist()[0] == 1 and len(frame) == 4
    assert "1 reports affirm a finding and deny it elsewhere" in result.stderr
    table.write_text("image,report\nXray,Kein Erguss und keine Stauung\n")
    gone = tmp_path / "none.csv"
    said = sentence(run("zeroshot", "reports", table, "--text", "report", "--out", gone, "--group", "none", code=3))
    assert "None of the 1 reports could be read" in said and not gone.exists()


def test_a_described_set_is_estimated_with_its_words_before_and_after_deploying(world: Path, tmp_path: Path) -> None:
    cases = tmp_path / "cases"
    said = described(tmp_path / "a.toml", 'effusion = "Pleural effusion."\nmass = "Lung mass."\n')
    run("zeroshot", "describe", cases, "--words", world / "words", "--describe", said)
    for finding in ("effusion", "mass"):
        images = images_of(world, finding, 4)
        patients = [option for i in range(4) for option in ("--patient", f"{finding} {i}")]
        run("register", cases, "--label", finding, *images, *patients)
    before = answer("estimate", cases)
    assert before["head"] == "words"
    run("deploy", cases)
    after = answer("estimate", cases)
    assert after["head"] == "words" and after["accuracy"] == before["accuracy"]
