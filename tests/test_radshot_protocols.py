"""`radshot zeroshot protocol` on small copies of ChestX-ray14 and Open-i, drawn and laid out as published."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score
from typer.testing import CliRunner

from embeddings import Archive, load_encoder
from episodes import CHESTXRAY14_FINDINGS, CHESTXRAY14_SEEN, CHESTXRAY14_UNSEEN, make_phantoms, read_chestxray14
from radshot import protocol_chestxray14
from radshot.cli import app
from radshot.console import Refused
from radshot.protocol_chestxray14 import choose_bias, learn, maker, seen_labels, split_f1
from radshot.protocol_measures import measure
from radshot.protocol_openi import MESH, findings_of
from zeroshot import from_traits, multilabel_scores

PHANTOM_OF = {
    "Atelectasis": "atelectasis",
    "Cardiomegaly": "cardiomegaly",
    "Effusion": "effusion",
    "Infiltration": "infiltration",
    "Mass": "mass",
    "Nodule": "nodule",
    "Pneumonia": "bronchiectasis",  # phantoms have no pneumonia; any drawing of its own will do
    "Pneumothorax": "pneumothorax",
    "Consolidation": "consolidation",
    "Edema": "edema",
    "Emphysema": "emphysema",
    "Fibrosis": "fibrosis",
    "Pleural_Thickening": "pleural thickening",
    "Hernia": "hiatal hernia",
    "No Finding": "no finding",
}
NAME_OF = {drawn: name for name, drawn in PHANTOM_OF.items()}
HEADING_OF = {
    "Effusion": "Pleural Effusion/right",
    "Edema": "Pulmonary Edema",
    "Pleural_Thickening": "Thickening/pleura/apex",
    "Hernia": "Hernia, Hiatal",
    "No Finding": "normal",
    "Cardiomegaly": "Cardiomegaly/mild",
}
PATIENTS, TRAINED = 12, 8


def run(*arguments: object, code: int = 0) -> Any:
    """Run a command line in this process, expect its exit code and, where it fails, one sentence that says why."""
    result = CliRunner().invoke(app, ["zeroshot", "protocol", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, (result.exit_code, result.stdout, result.stderr)
    assert "Traceback" not in result.stderr
    sentences = [line for line in result.stderr.splitlines() if line.startswith("radshot: ")]
    assert len(sentences) <= 1
    assert all(line.endswith((".", "?")) for line in sentences), sentences
    return result


def answer(*arguments: object, code: int = 0) -> Any:
    return json.loads(run(*arguments, "--json", "-", code=code).stdout)


def sentence(result: Any) -> str:
    (found,) = [line for line in result.stderr.splitlines() if line.startswith("radshot: ")]
    return str(found).removeprefix("radshot: ")


def save(path: Path, pixels: np.ndarray[Any, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((pixels * 255).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def nih(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ChestX-ray14's layout: 15 classes of 12 patients, 8 of them on the train_val list, a third with two findings."""
    root = tmp_path_factory.mktemp("nih")
    drawn = make_phantoms(PHANTOM_OF.values(), patients_per_finding=PATIENTS, size=(64, 64), combined=0.3)
    lines = ["Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position"]
    lists: dict[str, list[str]] = {"train_val_list.txt": [], "test_list.txt": []}
    for row in range(len(drawn)):
        name = f"{row:08d}_000.png"
        save(root / "images_001" / "images" / name, drawn.images[row])
        labels = "|".join(NAME_OF[finding] for finding in drawn.names(row))
        lines.append(f"{name},{labels},0,{row},058Y,M,{drawn.views[row]}")
        lists["test_list.txt" if row % PATIENTS >= TRAINED else "train_val_list.txt"].append(name)
    (root / "Data_Entry_2017_v2020.csv").write_text("\n".join(lines) + "\n")
    for file, names in lists.items():
        (root / file).write_text("\n".join(names))
    return root


@pytest.fixture(scope="module")
def indiana(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Open-i's layout: reports as XML, PNG files beside them."""
    root = tmp_path_factory.mktemp("indiana")
    drawn = make_phantoms(
        [PHANTOM_OF[name] for name in HEADING_OF], patients_per_finding=20, images_per_patient=2, size=(64, 64)
    )
    (root / "ecgen-radiology").mkdir()
    numbers: dict[str, list[int]] = {}
    for row, patient in enumerate(drawn.patients):
        numbers.setdefault(patient, []).append(row)
    for number, rows in enumerate(numbers.values(), start=1):
        images = [f"CXR{number}_IM-{row:04d}-1001" for row in rows]
        for row, image in zip(rows, images, strict=True):
            save(root / "NLMCXR_png" / f"{image}.png", drawn.images[row])
        heading = HEADING_OF[NAME_OF[drawn.names(rows[0])[0]]] if number % 10 else "No Indexing"
        parents = "".join(f'<parentImage id="{image}"/>' for image in images)
        (root / "ecgen-radiology" / f"{number}.xml").write_text(
            f'<eCitation><uId id="CXR{number}"/><Abstract><AbstractText Label="FINDINGS">'
            f"{escape(drawn.reports[rows[0]])}</AbstractText></Abstract><MeSH><major>{escape(heading)}</major></MeSH>"
            f"{parents}</eCitation>",
            encoding="utf-8",
        )
    return root


# -- ten seen, four unseen -------------------------------------------------------------------------------------------


def test_chestxray14_measures_seen_and_unseen_findings(nih: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    done = run("chestxray14", nih, "--encoder", "hog-64", "--json", tmp_path / "a.json", "--markdown", page)
    found = json.loads((tmp_path / "a.json").read_text())
    assert (found["seen"], set(found["unseen"])) == (list(CHESTXRAY14_SEEN), set(CHESTXRAY14_UNSEEN))
    rows = {(row["alignment"], row["space"]): row for row in found["rows"]}
    assert set(rows) == {(a, s) for a in ("ridge", "eszsl", "ale") for s in ("descriptions", "traits", "both")}
    for row in rows.values():
        assert set(row["auroc"]) == set(row["average_precision"]) == set(CHESTXRAY14_FINDINGS)
        figures = row["figures"]
        assert set(figures) == {
            "auroc", "map", "seen", "unseen", "harmonic", "p@2", "r@2", "f1@2", "p@3", "r@3", "f1@3",
        }  # fmt: skip
        for estimate, low, high in [*figures.values(), *row["auroc"].values()]:
            assert 0 <= low <= high <= 1 and 0 <= estimate <= 1
        for side, names in (("seen", CHESTXRAY14_SEEN), ("unseen", CHESTXRAY14_UNSEEN)):
            assert figures[side][0] == pytest.approx(np.mean([row["auroc"][name][0] for name in names]))
        s, u = figures["seen"][0], figures["unseen"][0]
        assert figures["harmonic"][0] == pytest.approx(2 * s * u / (s + u))
        assert np.isfinite(row["gamma"])
    assert rows["ridge", "both"]["figures"]["seen"][0] > 0.55  # better than chance, on drawings that show what is seen
    assert found["published"] == {
        "seen": 0.79, "unseen": 0.66, "harmonic": 0.72, "source": "CXR-ML-GZSL, arXiv 2107.06563",
    }  # fmt: skip
    assert found["parts"]["test"]["images"] == 14 * (PATIENTS - TRAINED)  # images without a finding are left out
    text = page.read_text()
    assert "0.79 | 0.66 | 0.72" in text and "published" in done.stdout
    assert "gamma does not move it" in text and "gamma does not move it" in done.stderr
    assert len([line for line in text.splitlines() if line.startswith("| ")]) > 30


def test_no_image_with_an_unseen_finding_is_learnt_from(nih: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[int, tuple[str, ...]]] = []
    manifest = read_chestxray14(nih)
    carriers = [manifest.images[i] for i, own in enumerate(manifest.labels) if set(own) & set(CHESTXRAY14_UNSEEN)]
    forbidden = {row.tobytes() for row in load_encoder("hog-64").encode(carriers)}
    assert len(forbidden) == len(carriers) > 40

    def spy(images: Any, present: Any, spaces: Any, make: Any) -> Any:
        names = next(iter(spaces.values())).classes
        assert not set(names) & set(CHESTXRAY14_UNSEEN)
        assert present.any(axis=1).all() and present.shape == (len(images), len(names))
        assert not {row.tobytes() for row in images} & forbidden
        told.append((len(images), names))
        return learn(images, present, spaces, make)

    monkeypatch.setattr(protocol_chestxray14, "learn", spy)
    found = answer("chestxray14", nih, "--encoder", "hog-64", "--alignment", "ridge")
    whole = [count for count, names in told if names == CHESTXRAY14_SEEN]
    assert whole == [found["parts"]["train"]["images"]] * 3
    assert all(len(names) == 8 for _, names in told if names != CHESTXRAY14_SEEN)  # two play the unseen
    assert 3 < len(told) <= 3 * (1 + 5)  # a part none of whose classes is in validation is passed over
    assert {row["alignment"] for row in found["rows"]} == {"ridge"}


def test_published_figures_stand_beside_the_published_findings_only(nih: Path) -> None:
    options = ("chestxray14", nih, "--encoder", "hog-64", "--alignment", "ridge", "--unseen", "Edema")
    result = run(*options)
    assert "learnt without Edema." in result.stdout and "published" not in result.stdout
    assert "Published (CXR-ML-GZSL" in result.stderr


def test_seen_labels_refuses_an_unseen_finding() -> None:
    assert seen_labels(np.array([[1, 0]], dtype=bool), ["a", "b"], ["b"]).tolist() == [[True]]
    with pytest.raises(ValueError, match="carries an unseen finding"):
        seen_labels(np.array([[1, 1]], dtype=bool), ["a", "b"], ["b"])


def test_an_archive_keeps_vectors_and_gives_the_same_figures(nih: Path, tmp_path: Path) -> None:
    options = ("chestxray14", nih, "--encoder", "hog-64", "--alignment", "ridge")
    plain = answer(*options)
    first = answer(*options, "--archive", tmp_path / "vectors")
    with Archive.open(tmp_path / "vectors") as held:
        version, count = held.version, len(held)
    again = answer(*options, "--archive", tmp_path / "vectors")
    assert plain["rows"] == first["rows"] == again["rows"]
    assert plain["provenance"] == again["provenance"]
    assert count == sum(part["images"] for part in first["parts"].values())
    with Archive.open(tmp_path / "vectors") as held:
        assert held.version == version  # nothing was embedded anew
    other = ("chestxray14", nih, "--encoder", "pixels-32", "--archive", tmp_path / "vectors")
    assert "hog-64" in sentence(run(*other, code=3))


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_measured(nih: Path, tmp_path: Path) -> None:
    copy = tmp_path / "nih"
    copy.mkdir()
    for file in nih.iterdir():
        (copy / file.name).symlink_to(file) if file.is_file() else None
    (copy / "images").mkdir()
    for image in (nih / "images_001" / "images").iterdir():
        (copy / "images" / image.name).symlink_to(image)
    broken, twin = copy / "images" / "00000000_000.png", copy / "images" / "00000001_000.png"
    broken.unlink()
    broken.write_bytes(b"no picture")
    third = copy / "images" / "00000002_000.png"
    twin.unlink()
    twin.write_bytes(third.read_bytes())  # the same file under another name: an archive holds it once
    options = ("chestxray14", copy, "--encoder", "hog-64", "--alignment", "ridge")
    for archive in ((), ("--archive", tmp_path / "vectors"), ("--archive", tmp_path / "vectors")):
        found = answer(*options, *archive, code=1)
        assert [Path(entry["image"]).name for entry in found["refused"]] == ["00000000_000.png"]
        assert sum(part["images"] for part in found["parts"].values()) > 100
    third.unlink()
    assert "skip" in sentence(run(*options, code=3))
    assert len(answer(*options, "--skip-missing", code=1)["refused"]) == 1


def test_texts_of_a_table_may_teach_the_words(nih: Path, tmp_path: Path) -> None:
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["findings", "impression"])
        rows.writerows(
            [f"There is {name.replace('_', ' ').lower()} in the lung with opacity of the heart and pleural hernia.", ""]
            for name in CHESTXRAY14_FINDINGS * 3
        )
    options = ("chestxray14", nih, "--encoder", "hog-64", "--alignment", "ridge", "--reports", tmp_path / "texts.csv")
    found = answer(*options, "--text", "findings", "--text", "impression")
    built_in = answer("chestxray14", nih, "--encoder", "hog-64", "--alignment", "ridge")
    by = [{row["space"]: row["figures"]["seen"][0] for row in result["rows"]} for result in (found, built_in)]
    assert by[0]["traits"] == by[1]["traits"] and by[0]["descriptions"] != by[1]["descriptions"]
    assert "has no column 'txt'; it has findings, impression." in sentence(run(*options, "--text", "txt", code=2))
    assert "go together" in sentence(run(*options, code=2))
    (tmp_path / "empty.csv").write_text("findings\n\n")
    empty = (*options[:-1], tmp_path / "empty.csv", "--text", "findings")
    assert sentence(run(*empty, code=3))


# -- episodes --------------------------------------------------------------------------------------------------------


def test_episodes_measure_seen_and_unseen_findings(nih: Path, tmp_path: Path) -> None:
    options = ("--k-shot", 1, "--k-shot", 2, "--k-shot", 30, "--episodes", 30)
    page = tmp_path / "page.md"
    found = answer("chestxray14-episodes", nih, "--encoder", "hog-64", *options, "--markdown", page)
    assert [(row["k_shot"], row["head"]) for row in found["rows"]] == [
        (k, head) for k in (1, 2) for head in ("prototypes", "linear")
    ]
    assert any(note.startswith("k = 30 was left out: ") for note in found["notes"])
    for row in found["rows"]:
        split, report = row["seen_unseen"], row["report"]
        aurocs = {entry["label"]: entry["auroc"] for entry in report["per_label"]}
        assert split["unseen"] == pytest.approx(np.mean([aurocs[name] for name in found["unseen"]]))
        assert split["seen"] == pytest.approx(np.mean([aurocs[name] for name in found["seen"]]))
        assert 0.3 < split["harmonic_mean"] < 1 and report["n_way"] == 5
        assert report["patients_known"] is True
    assert found["images"] == 15 * (PATIENTS - TRAINED)  # of the test list, those without a finding too
    text = page.read_text()
    assert "0.588" in text and "0.593" in text and "read off a plot" in text
    assert found["published"]["transfer"] == [58.8, 65.7, 73.1]


def test_too_many_shots_are_one_sentence(nih: Path) -> None:
    told = sentence(run("chestxray14-episodes", nih, "--encoder", "pixels-32", "--k-shot", 30, code=3))
    assert told.startswith("No episode can be drawn: k = 30 was left out: 5-way 30-shot")


# -- images and reports ----------------------------------------------------------------------------------------------


def test_openi_measures_retrieval_and_findings(indiana: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    found = answer("openi", indiana, "--encoder", "hog-64", "--markdown", page)
    assert found["parts"]["train"]["images"] + found["parts"]["test"]["images"] == 2 * 20 * len(HEADING_OF)
    assert found["parts"]["test"]["patients"] == pytest.approx(0.2 * 20 * len(HEADING_OF), abs=2)
    assert found["parts"]["test"]["indexed"] < found["parts"]["test"]["images"]
    for way in ("text to image", "image to text"):
        ends = [found["retrieval"][way][str(k)] for k in (1, 5, 10)]
        assert ends[0][0] <= ends[1][0] <= ends[2][0] <= 1
        assert all(low <= estimate <= high for estimate, low, high in ends)
    asked = {name for name in HEADING_OF if name != "No Finding"}
    assert asked <= set(found["auroc"]) and "No Finding" in found["auroc"]
    assert set(found["without_positives"]) <= set(MESH) - asked  # nor is what no report speaks of scored
    assert found["mean_auroc"][0] == pytest.approx(np.mean([found["auroc"][name][0] for name in asked]))
    assert "R@10" in page.read_text()
    again = answer("openi", indiana, "--encoder", "hog-64", "--archive", tmp_path / "vectors")
    assert again["auroc"] == found["auroc"]
    assert answer("openi", indiana, "--encoder", "hog-64", "--alignment", "ridge")["alignment"] == "ridge"


@pytest.mark.parametrize(
    ("terms", "names"),
    [
        (["Pleural Effusion/left/small"], {"Effusion"}),
        (["Thickening/pleura/apex", "Cardiomegaly"], {"Pleural_Thickening", "Cardiomegaly"}),
        (["Thickening/interlobar fissure"], set()),
        (["Hydropneumothorax/right"], {"Effusion", "Pneumothorax"}),
        (["Hernia, Hiatal/large", "normal", ""], {"Hernia"}),
    ],
)
def test_headings_name_findings(terms: Sequence[str], names: set[str]) -> None:
    assert findings_of(terms) == names


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("chestxray", "."), 2, "There is no protocol 'chestxray'; .* Did you mean 'chestxray14'?"),
        (("chestxray14", "nowhere"), 3, "nowhere does not exist; name the folder"),
        (("openi", "."), 3, "holds no report"),
        (("openi", ".", "--k-shot", "5"), 2, "--k-shot goes with chestxray14-episodes, not with openi."),
        (("chestxray14", ".", "--alignment", "rigde"), 2, "--alignment is one of ridge, .*; got 'rigde'."),
        (("chestxray14", ".", "--unseen", "Oedema"), 2, "--unseen names one of Atelectasis, .*; got 'Oedema'."),
        (("chestxray14-episodes", ".", "--episodes", "0"), 2, None),
        (("chestxray14", "."), 3, "holds neither Data_Entry_2017_v2020.csv nor Data_Entry_2017.csv"),
        (("chestxray14", ".", "--markdown", "."), 2, "--markdown names a file to write, and '.' is a folder."),
    ],
)
def test_bad_input_is_one_sentence(
    arguments: Sequence[str], code: int, said: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = run(*arguments, "--encoder", "pixels-32", code=code)
    if said is not None:
        assert re.search(said, sentence(result)), sentence(result)


def test_lists_are_needed_and_every_finding_but_one_cannot_be_unseen(nih: Path, tmp_path: Path) -> None:
    for file in nih.iterdir():
        if "list" not in file.name:
            (tmp_path / file.name).symlink_to(file)
    assert "train_val_list.txt" in sentence(run("chestxray14", tmp_path, "--encoder", "pixels-32", code=3))
    many = [part for name in CHESTXRAY14_FINDINGS[1:] for part in ("--unseen", name)]
    assert "at least two" in sentence(run("chestxray14", nih, "--encoder", "pixels-32", *many, code=2))


def test_help_fits_a_terminal() -> None:
    page = run("--help").stdout
    assert max(map(len, page.splitlines())) <= 80
    assert "\n    radshot zeroshot protocol " in page and "--json FILE" in page


# -- measures --------------------------------------------------------------------------------------------------------


def test_measures_agree_with_scikit_learn_and_the_library() -> None:
    rng = np.random.default_rng(3)
    names = list("abcde")
    present = rng.random((120, 5)) < 0.3
    scores = (present * 0.8 + rng.normal(size=present.shape)).round(1)  # rounded, so that some tie
    patients = [f"p{i // 3}" for i in range(120)]
    found = measure(scores, present, names, patients, seen=names[:3], gamma=0.4, ks=(2, 3), draws=200)
    for column, name in enumerate(names):
        assert found.auroc[name].estimate == pytest.approx(roc_auc_score(present[:, column], scores[:, column]))
        expected = average_precision_score(present[:, column], scores[:, column])
        assert found.average_precision[name].estimate == pytest.approx(expected)
        assert found.auroc[name].low < found.auroc[name].estimate < found.auroc[name].high
    theirs = multilabel_scores(scores - 0.4 * np.array([1, 1, 1, 0, 0]), present.astype(float), names, ks=(2, 3))
    for k in (2, 3):
        for what, table in (("p", theirs.precision_at), ("r", theirs.recall_at), ("f1", theirs.f1_at)):
            assert found.figures[f"{what}@{k}"].estimate == pytest.approx(table[k])
    assert measure(scores, present, names, patients, seen=names[:3], draws=200).auroc == found.auroc  # whatever gamma


def test_a_resample_weighs_images_as_a_slow_loop_does() -> None:
    rng = np.random.default_rng(5)
    present = rng.random((40, 2)) < 0.4
    scores = (present + rng.normal(size=present.shape)).round(1)
    patients = [i // 4 for i in range(40)]
    found = measure(scores, present, ["a", "b"], patients, draws=300, seed=7)
    drawn = np.random.default_rng(7).integers(0, 10, (300, 10))
    slow = []
    for row in drawn:
        rows = [i for patient in row for i in range(4 * patient, 4 * patient + 4)]
        if len(set(present[rows, 0])) == 2:
            slow.append(roc_auc_score(present[rows, 0], scores[rows, 0]))
    low, high = np.quantile(slow, [0.025, 0.975])
    assert (found.auroc["a"].low, found.auroc["a"].high) == pytest.approx((low, high))


def test_classes_that_cannot_be_scored_are_said() -> None:
    present = np.array([[1, 0, 1], [0, 0, 1], [1, 0, 1]], dtype=bool)
    scores = np.array([[2.0, 0, 0], [1, 0, 0], [3, 0, 0]])
    found = measure(scores, present, ["a", "none", "all"], ["p", "q", "r"], seen=["a"], draws=50)
    assert (found.without_positives, found.without_negatives, found.few) == (("none",), ("all",), {"a": 1})
    assert found.auroc["a"].estimate == 1 and found.figures["unseen"] is None and found.figures["harmonic"] is None
    with pytest.raises(Refused, match="both with and without"):
        measure(scores[:, 1:], present[:, 1:], ["none", "all"], ["p", "q", "r"])


def test_chance_is_chance() -> None:
    rng = np.random.default_rng(0)
    present, scores = rng.random((400, 6)) < 0.3, rng.normal(size=(400, 6))
    found = measure(scores, present, list("abcdef"), list(range(400)), seen="abc", draws=200)
    for key in ("seen", "unseen", "harmonic"):
        value = found.figures[key]
        assert value is not None and value.low < 0.5 < value.high


# -- gamma -----------------------------------------------------------------------------------------------------------


def test_gamma_takes_off_what_seen_classes_are_ahead_by() -> None:
    rng = np.random.default_rng(1)
    traits = {name: {f"t{i}": float(v) for i, v in enumerate(rng.random(6))} for name in "abcdefgh"}
    space = {"traits": from_traits(traits)}
    mixing = rng.normal(size=(6, 20))
    present = rng.random((300, 8)) < 0.2
    present[np.arange(300), rng.integers(0, 8, 300)] = True
    images = present @ space["traits"].vectors @ mixing + rng.normal(size=(300, 20)) * 0.3
    gamma = choose_bias(images[:200], present[:200], images[200:], present[200:], space, maker("ridge", 200, 0))
    assert gamma is not None and np.isfinite(gamma)
    again = choose_bias(images[:200], present[:200], images[200:], present[200:], space, maker("ridge", 200, 0))
    assert again == gamma
    assert choose_bias(images[:2], present[:2] & False, images[200:], present[200:] & False, space,
                       maker("ridge", 2, 0)) is None  # fmt: skip


def test_split_f1_is_the_harmonic_mean_of_two() -> None:
    scores = np.array([[3.0, 2, 1, 0], [0, 1, 2, 3]])
    present = np.array([[1, 0, 1, 0], [0, 0, 0, 1]], dtype=bool)
    seen = np.array([1, 1, 0, 0], dtype=bool)
    # k = 2 names a, b and then d, c. Seen: 1 hit, 2 named, 1 present. Unseen: 1 hit, 2 named, 2 present.
    one, two = 2 / 3, 2 / 4
    assert split_f1(scores, present, seen, 2) == pytest.approx(2 * one * two / (one + two))
    assert split_f1(scores, present, seen, 1) == pytest.approx(2 * 1 * (2 / 3) / (1 + 2 / 3))
    assert split_f1(-scores, present & False, seen, 2) == 0
