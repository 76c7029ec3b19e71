"""Deployments: what they answer, what they promise, and that nothing of a removed patient is left in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from embeddings import ArchiveCorrupt, ArchiveError, PrecomputedEncoder, UnknownId
from fewshot import (
    ComparisonSet,
    Deployment,
    PrototypeClassifier,
    Recipe,
    deploy,
    deployments,
    fit_temperature,
    has_deployment,
    open_deployment,
    roll_back,
)
from fewshot.deployment_fit import class_closeness

DIM = 6
CENTRES = {"a": [3, 0, 0, 1, 0, 0], "b": [0, 3, 0, 0, 1, 0], "c": [0, 0, 3, 0, 0, 1]}
PROTOTYPES = Recipe(head="prototypes")


@pytest.fixture
def encoder() -> PrecomputedEncoder:
    """An encoder whose vectors are never asked for: rows go into the archive as they are."""
    return PrecomputedEncoder(["x"], np.zeros((1, DIM), dtype=np.float32))


def draw(label: str, count: int, seed: int, spread: float = 1.3) -> NDArray[np.float32]:
    rng = np.random.default_rng([seed, ord(label)])
    return (np.array(CENTRES[label]) + spread * rng.normal(size=(count, DIM))).astype(np.float32)


def put(
    cases: ComparisonSet, label: str, vectors: NDArray[np.float32], *, role: str = "support", name: str = ""
) -> list[str]:
    """Rows as registration would have stored them: one image per patient, but for the first, who has two."""
    ids = [f"{name}{role}-{label}-{i:02}" for i in range(len(vectors))]
    patients = [f"{name}{role} {label} {max(i, 1)}" for i in range(len(vectors))]
    aside = {} if role == "support" else {"role": role}
    facts = [{"label": label, "patient": patient, **aside} for patient in patients]
    cases.archive.add(ids, vectors, metadata=facts)
    return ids


def make(path: Path, encoder: PrecomputedEncoder, *, shots: int = 6, aside: int = 0) -> ComparisonSet:
    cases = ComparisonSet.open(path, encoder=encoder)
    for label in CENTRES:
        put(cases, label, draw(label, shots, 0))
        if aside:
            put(cases, label, draw(label, aside, 1), role="calibration")
    return cases


def queries(count: int = 8) -> NDArray[np.float32]:
    return np.concatenate([draw(label, count, 2) for label in CENTRES])


def same(one: Deployment, two: Deployment) -> bool:
    asked = queries()
    return one.fitted.to_json() == two.fitted.to_json() and one.decide(asked) == two.decide(asked)


def test_probabilities_are_those_of_a_temperature_fitted_to_patients_set_aside(
    tmp_path: Path, encoder: PrecomputedEncoder
) -> None:
    cases = make(tmp_path / "cases", encoder, aside=12)
    made = deploy(cases, PROTOTYPES)
    head = PrototypeClassifier().fit(cases.vectors, cases.labels, ids=cases.ids, groups=cases.patients)
    aside = cases.calibration
    targets = ["abc".index(row["label"]) for row in aside.metadata]
    owners = [row["patient"] for row in aside.metadata]
    expected = fit_temperature(head.scores(aside.vectors), targets, owners).probabilities(head.scores(queries()))
    found = made.decide(queries())
    assert made.fitted.calibrated_on == "set-aside"
    assert made.fitted.patients == {"a": 11, "b": 11, "c": 11}  # 12 images: the first patient has two
    assert sum(decision.label is not None for decision in found) > 18
    for decision, row in zip(found, expected, strict=True):
        if decision.label is not None:
            assert decision.probability == pytest.approx(row.max(), rel=1e-12)
            assert decision.label == "abc"[int(row.argmax())]
            assert decision.evidence[0].label == decision.label
            assert decision.coverage == 0.9 and decision.prediction_set is not None
            assert decision.prediction_set[0] == decision.label


def test_sets_of_patients_set_aside_hold_the_true_class_as_often_as_promised(
    tmp_path: Path, encoder: PrecomputedEncoder
) -> None:
    cases = make(tmp_path / "cases", encoder, aside=40)
    many = {label: draw(label, 400, 3) for label in CENTRES}
    for recipe in (Recipe(head="prototypes", coverage=0.8), Recipe(head="prototypes", coverage=0.8, per_class=True)):
        made = deploy(cases, recipe)
        held = {
            label: np.mean([label in (d.prediction_set or ()) for d in made.decide(rows)])
            for label, rows in many.items()
        }
        assert float(np.mean(list(held.values()))) > 0.74  # 0.8, less what 117 patients leave open
        if recipe.per_class:
            assert min(held.values()) > 0.65


def test_the_support_is_calibrated_on_by_heads_that_never_saw_the_patient(
    tmp_path: Path, encoder: PrecomputedEncoder
) -> None:
    cases = make(tmp_path / "cases", encoder, shots=8)
    made = deploy(cases, PROTOTYPES)
    vectors, labels, patients = cases.vectors, np.array(cases.labels), np.array(cases.patients)
    scores = np.empty((len(labels), 3))
    p_values = np.zeros((len(queries()), 3))
    own: list[float] = []
    asked = []
    for patient in dict.fromkeys(patients):
        left = patients != patient
        head = PrototypeClassifier().fit(vectors[left], labels[left].tolist(), groups=patients[left].tolist())
        scores[~left] = head.scores(vectors[~left])
        asked.append(head.scores(queries()))
    targets = np.array(["abc".index(label) for label in labels])
    expected = fit_temperature(scores, targets, patients.tolist())
    assert made.fitted.probabilities is not None
    assert made.fitted.probabilities.to_json()["temperature"] == pytest.approx(expected.temperature, rel=1e-9)

    def margin(row: NDArray[np.float64], c: int) -> float:
        return max(row[other] for other in range(3) if other != c) - row[c]

    for number, patient in enumerate(dict.fromkeys(patients)):
        rows = np.flatnonzero(patients == patient)
        for q in range(len(p_values)):
            for c in range(3):
                fits_no_better = [margin(scores[r], targets[r]) >= margin(asked[number][q], c) - 1e-12 for r in rows]
                p_values[q, c] += np.mean(fits_no_better)
        own.append(len(rows))
    p_values = (1 + p_values) / (len(own) + 1)
    assert made.promised == pytest.approx(0.8)
    for decision, row in zip(made.decide(queries()), p_values, strict=True):
        members = {"abc"[c] for c in range(3) if row[c] > 0.1 + 1e-9}
        assert decision.prediction_set is not None
        winner = decision.label if decision.label is not None else decision.evidence[0].label
        assert set(decision.prediction_set) == members | {winner}


@pytest.mark.parametrize(
    ("aside", "gone"),
    [(0, "support a 3"), (0, "support b 1"), (14, "support a 3"), (14, "support b 1"), (14, "calibration c 4")],
)
@pytest.mark.parametrize("head", ["auto", "prototypes"])
def test_a_removed_patient_equals_one_never_registered(
    tmp_path: Path, encoder: PrecomputedEncoder, aside: int, head: str, gone: str
) -> None:
    recipe = Recipe(head=head, sensitivity={"a": 0.8}, least_probability=0.4)
    cases = make(tmp_path / "with", encoder, aside=aside)
    before = deploy(cases, recipe)
    removed = cases.remove(patient=gone)
    after = open_deployment(cases)
    never = ComparisonSet.open(tmp_path / "without", encoder=encoder)
    whole = make(tmp_path / "copy", encoder, aside=aside).archive.snapshot()
    kept = [i for i, name in enumerate(whole.ids) if name not in removed]
    never.archive.add([whole.ids[i] for i in kept], whole.vectors[kept], metadata=[whole.metadata[i] for i in kept])
    assert same(after, deploy(never, recipe))
    assert not same(before, after)
    assert after.number == 1 and after.removed == len(removed)
    assert "fitted again without" in after.remarks[0]
    assert open_deployment(cases).fitted.to_json() == after.fitted.to_json()  # and so it is kept


def test_what_was_fitted_to_a_removed_patient_is_erased_from_the_disk(
    tmp_path: Path, encoder: PrecomputedEncoder
) -> None:
    cases = make(tmp_path / "cases", encoder, aside=12)
    fitted = deploy(cases, PROTOTYPES).fitted
    assert fitted.probabilities is not None and fitted.sets is not None
    traces = [repr(fitted.probabilities.to_json()["temperature"]), repr(fitted.sets.values[3])]

    def stored() -> bytes:
        return b"".join(file.read_bytes() for file in (tmp_path / "cases").rglob("*") if file.is_file())

    held = stored()
    assert all(trace.encode() in held for trace in traces)
    cases.remove(patient="calibration a 5")
    left = stored()
    assert not any(trace.encode() in left for trace in traces)
    assert b"calibration a 5" not in left


def test_a_removal_behind_its_back_is_noticed_when_it_is_opened(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    cases = make(tmp_path / "cases", encoder)
    before = deploy(cases, PROTOTYPES)
    cases.archive.remove(patient="support a 3")
    after = open_deployment(cases)
    assert after.removed == 1 and not same(before, after)
    assert open_deployment(cases).fitted.to_json() == after.fitted.to_json()  # it was fitted again, and kept


def test_it_answers_from_its_own_version_and_is_rolled_back_whole(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    cases = make(tmp_path / "cases", encoder, aside=12)
    first = deploy(cases, PROTOTYPES)
    put(cases, "a", draw("a", 9, 5, spread=3.0), name="later ")
    assert same(first, open_deployment(cases))
    second = deploy(cases, Recipe(head="nearest", coverage=0.8))
    assert not same(first, second)
    assert [record.number for record in deployments(cases)] == [1, 2]
    assert open_deployment(cases).number == 2
    roll_back(cases, 1)
    back = open_deployment(cases)
    assert back.number == 1 and same(first, back)
    assert back.recipe == PROTOTYPES and len(back.support_ids) == 18
    third = deploy(cases, PROTOTYPES)
    assert third.number == 3 and len(third.support_ids) == 27
    cases.remove(patient="support c 2")
    assert len(open_deployment(cases, 1).support_ids) == 17  # rolling back brings nobody back


def test_it_is_the_same_when_opened_by_somebody_else_without_the_encoder(
    tmp_path: Path, encoder: PrecomputedEncoder
) -> None:
    encoder.source_mean = np.linspace(-0.3, 0.4, DIM).astype(np.float32)
    made = deploy(make(tmp_path / "cases", encoder, aside=12), PROTOTYPES)
    encoder.source_mean = None  # what it decides with was kept with it
    with ComparisonSet.open(tmp_path / "cases") as other:
        assert same(made, open_deployment(other))
        assert json.loads(json.dumps(made.to_dict())) == made.to_dict()


def test_none_of_these_is_an_answer(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    cases = make(tmp_path / "cases", encoder, aside=24)
    far = -np.ones((1, DIM), dtype=np.float32)
    answer = deploy(cases, PROTOTYPES).decide(far)[0]
    assert answer.label is None and answer.probability is None
    assert answer.reason is not None and answer.reason.startswith("None of these: it is farther")
    assert answer.evidence  # what was nearest is shown all the same
    always = deploy(cases, Recipe(head="prototypes", turned_away=None)).decide(far)[0]
    assert always.label in CENTRES
    known = np.concatenate([draw(label, 200, 7) for label in CENTRES])
    turned = np.mean([d.label is None for d in deploy(cases, PROTOTYPES).decide(known)])
    assert turned < 0.12  # 0.05 was asked for, on 69 patients


def test_uncertain_answers_have_no_label(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    cases = make(tmp_path / "cases", encoder, aside=12)
    between = np.array([[3, 3, 0, 1, 1, 0]], dtype=np.float32)
    recipe = Recipe(head="prototypes", least_probability=0.9, turned_away=None)
    answer = deploy(cases, recipe).decide(between)[0]
    assert answer.label is None
    assert answer.reason is not None and answer.reason.startswith("Uncertain: the likeliest class, ")
    assert "below 0.9" in answer.reason


def test_prevalence_moves_probabilities_and_thresholds_flag(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    cases = make(tmp_path / "cases", encoder, aside=40)
    even = deploy(cases, Recipe(head="prototypes", turned_away=None))
    rare = deploy(
        cases,
        Recipe(
            head="prototypes",
            turned_away=None,
            prevalence={"a": 0.01, "b": 0.495, "c": 0.495},
            sensitivity={"a": 0.9},
            false_alarm_rate={"b": 0.1},
        ),
    )
    between = np.array([[3, 3, 0, 1, 1, 0]], dtype=np.float32)
    one, two = even.decide(between)[0], rare.decide(between)[0]
    assert (one.label, two.label) == ("a", "b")
    assert even.fitted.probabilities is not None
    chances = even.fitted.probabilities.probabilities(even.head.scores(between))[0] * [0.01, 0.495, 0.495]
    assert two.probability == pytest.approx(chances[1] / chances.sum(), rel=1e-12)
    flagged = {label: np.mean([label in d.flags for d in rare.decide(draw(label, 300, 8))]) for label in "ab"}
    assert flagged["a"] > 0.8  # 0.9 was asked for, on 39 patients
    alarms = np.mean(["b" in d.flags for label in "ac" for d in rare.decide(draw(label, 300, 9))])
    assert alarms < 0.18
    assert set(rare.fitted.points) == {"a", "b"}


def test_studies_pool_what_their_images_say(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    made = deploy(make(tmp_path / "cases", encoder, aside=12), Recipe(head="prototypes", turned_away=None))
    rows = np.concatenate([draw("a", 3, 11), draw("b", 2, 11), np.full((1, DIM), np.nan, dtype=np.float32)])
    studies = ["s", "s", "s", "t", "t", "u"]
    found = made.decide_studies(rows, studies)
    assert made.fitted.probabilities is not None
    shown = made.fitted.probabilities.probabilities(made.head.scores(rows))
    assert found[0].probability == pytest.approx(shown[:3].mean(axis=0).max())
    assert [d.label for d in found] == ["a", "b", None]
    assert found[2].reason is not None and "NaN" in found[2].reason
    alone = made.decide(rows)
    assert alone == made.decide_studies(rows, range(6))
    best = max(n.similarity for d in alone[:3] for n in d.evidence if n.label == "a")
    assert found[0].evidence[0].similarity == pytest.approx(best)


@pytest.mark.parametrize(
    ("shots", "aside", "recipe", "remark"),
    [
        (3, 0, Recipe(head="prototypes"), "No probability: temperature calibration needs 10 patients, and there are 6"),
        (3, 0, Recipe(head="prototypes"), "No prediction sets: 0.9 coverage needs 9 patients, and there are 6"),
        (
            1,
            0,
            Recipe(head="prototypes"),
            "No probability: 'a' has a single patient, and leaving that one out leaves none",
        ),
        (4, 0, Recipe(head="prototypes", per_class=True), "of each class needs 9 patients of each, and 'a' has 3"),
        (4, 0, Recipe(head="prototypes"), 'Never "none of these": to turn away at most 0.05 of the known needs 19'),
        (
            4,
            9,
            Recipe(head="prototypes", method="isotonic"),
            "isotonic calibration needs 20 patients of 'a', and there",
        ),
        (6, 0, Recipe(head="prototypes", sensitivity={"b": 0.95}), "No threshold for 'b': the rate asked for needs 19"),
        (2, 0, Recipe(head="prototypes", sensitivity={"b": 0.5}), "No thresholds: they are put on probabilities"),
        (6, 0, Recipe(), "The head was chosen on the support patients it is calibrated on"),
        (6, 3, Recipe(head="prototypes"), "9 images are set aside, too few to calibrate on: it takes 10 patients"),
        (
            12,
            0,
            Recipe(prevalence={"a": 0.2, "b": 0.2, "c": 0.6}),
            "promised where the classes are as frequent as among",
        ),
        (
            6,
            0,
            Recipe(prevalence={"a": 0.2, "b": 0.2, "c": 0.6}),
            "of each class needs 9 patients of each, and 'a' has",
        ),
    ],
)
def test_too_few_patients_are_said_with_the_number_that_would_do(
    tmp_path: Path, encoder: PrecomputedEncoder, shots: int, aside: int, recipe: Recipe, remark: str
) -> None:
    made = deploy(make(tmp_path / "cases", encoder, shots=shots, aside=aside), recipe)
    assert any(remark in sentence for sentence in made.remarks), made.remarks
    answers = made.decide(queries())
    assert all(a.label is not None for a in answers) or made.fitted.novelty is not None
    if made.fitted.probabilities is None:
        assert {a.probability for a in answers} == {None}
    if made.fitted.sets is None:
        assert {a.prediction_set for a in answers} == {None} and {a.coverage for a in answers} == {None}


def test_an_uncalibrated_or_single_class_deployment_answers_without_probability(
    tmp_path: Path, encoder: PrecomputedEncoder
) -> None:
    cases = make(tmp_path / "cases", encoder, aside=12)
    plain = deploy(cases, Recipe(calibrate_on="nothing"))
    assert {d.probability for d in plain.decide(queries())} == {None} and plain.remarks == ()
    single = ComparisonSet.open(tmp_path / "single", encoder=encoder)
    put(single, "a", draw("a", 4, 0))
    made = deploy(single)
    assert [d.label for d in made.decide(queries())] == ["a"] * 24
    assert "single class" in made.remarks[0]


def test_how_near_support_patients_are_is_told_by_heads_that_never_saw_them(
    tmp_path: Path, encoder: PrecomputedEncoder
) -> None:
    cases = make(tmp_path / "cases", encoder, shots=10)
    made = deploy(cases, PROTOTYPES)
    vectors, labels, patients = cases.vectors, np.array(cases.labels), np.array(cases.patients)
    nearest = []
    for i, patient in enumerate(patients):
        left = patients != patient
        head = class_closeness(None).fit(vectors[left], labels[left].tolist(), groups=patients[left].tolist())
        nearest.append(-head.scores(vectors[i : i + 1]).max())
    assert made.fitted.novelty is not None
    assert sorted(made.fitted.novelty.values) == pytest.approx(sorted(nearest))


def test_a_class_that_a_recipe_names_may_be_removed(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    cases = make(tmp_path / "cases", encoder, aside=20)
    recipe = Recipe(
        head="prototypes",
        sensitivity={"a": 0.9},
        false_alarm_rate={"b": 0.1},
        prevalence={"a": 0.5, "b": 0.2, "c": 0.3},
        turned_away=None,
    )
    deploy(cases, recipe)
    cases.remove(label="a")
    left = open_deployment(cases)
    assert left.classes == ["b", "c"] and left.recipe == recipe and set(left.fitted.points) == {"b"}
    assert any("The class 'a' is no longer in the set" in remark for remark in left.remarks)
    assert left.fitted.probabilities is not None
    between = np.array([[0, 3, 3, 0, 1, 1]], dtype=np.float32)
    chances = left.fitted.probabilities.probabilities(left.head.scores(between))[0] * [0.4, 0.6]
    assert left.decide(between)[0].probability == pytest.approx(chances.max() / chances.sum())


def test_stated_prevalences_make_sets_per_class_which_hold_in_any_mix(
    tmp_path: Path, encoder: PrecomputedEncoder
) -> None:
    cases = make(tmp_path / "cases", encoder, aside=0)
    put(cases, "a", draw("a", 40, 1), role="calibration")
    for label in "bc":
        put(cases, label, draw(label, 12, 1, spread=2.5), role="calibration")  # rarer, and harder
    plain = deploy(cases, Recipe(head="prototypes", turned_away=None, coverage=0.8))
    assert plain.fitted.sets is not None and not plain.fitted.sets.per_class
    assert any("where the classes are as frequent" in remark for remark in plain.remarks)
    stated = deploy(
        cases,
        Recipe(head="prototypes", turned_away=None, coverage=0.8, prevalence={"a": 0.1, "b": 0.45, "c": 0.45}),
    )
    assert stated.fitted.sets is not None and stated.fitted.sets.per_class

    def hard(made: Deployment) -> float:
        return float(np.mean(["b" in (d.prediction_set or ()) for d in made.decide(draw("b", 400, 30, spread=2.5))]))

    assert hard(plain) < hard(stated) and hard(stated) > 0.7


def test_a_class_without_patients_to_calibrate_on_leaves_no_sets(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    cases = make(tmp_path / "cases", encoder, aside=0)
    put(cases, "a", draw("a", 14, 1), role="calibration")
    made = deploy(cases, Recipe(head="prototypes", calibrate_on="set-aside"))
    assert made.fitted.sets is None and made.fitted.probabilities is None
    assert "No prediction sets: nobody with 'b' could be calibrated on." in made.remarks


def test_images_set_aside_that_cannot_be_used_and_unknown_patients_are_said(
    tmp_path: Path, encoder: PrecomputedEncoder
) -> None:
    cases = make(tmp_path / "cases", encoder, aside=12)
    put(cases, "a", draw("a", 3, 5), role="calibration", name="odd ")
    odd = [name for name in cases.calibration.ids if name.startswith("odd ")]
    cases.remove(id=odd[0])
    cases.archive.remove(ids=odd[1:])
    rows = draw("a", 2, 6)
    facts = [{"label": "A", "patient": None, "role": "calibration"}, {"label": "a", "patient": None}]
    cases.archive.add(["x", "y"], rows, metadata=facts)
    made = deploy(cases, PROTOTYPES)
    assert "1 images set aside are of 'A', which the set does not have, and take no part." in made.remarks[0]
    assert any(remark.startswith("1 images have no known patient and count as one each") for remark in made.remarks)


def test_a_patient_of_two_classes_is_one_when_patients_are_counted(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    cases = make(tmp_path / "cases", encoder, shots=3)
    for label in CENTRES:
        rows = draw(label, 6, 1)
        facts = [{"label": label, "patient": f"q{i}", "role": "calibration"} for i in range(6)]
        cases.archive.add([f"q-{label}-{i}" for i in range(6)], rows, metadata=facts)
    made = deploy(cases, Recipe(head="prototypes", calibrate_on="set-aside"))
    assert made.fitted.patients == {"a": 6, "b": 6, "c": 6} and made.fitted.sets is None
    assert any("0.9 coverage needs 9 patients, and there are 6" in remark for remark in made.remarks)


def test_flags_are_for_single_images(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    cases = make(tmp_path / "cases", encoder, aside=12)
    made = deploy(cases, Recipe(head="prototypes", sensitivity={"a": 0.8}, turned_away=None))
    rows = np.repeat(np.array([CENTRES["a"]], dtype=np.float32), 2, axis=0)
    assert made.decide(rows[:1])[0].flags == ("a",)
    assert made.decide_studies(rows, ["s", "s"])[0].flags == ()


def test_an_image_nothing_can_be_said_of_is_left_out_of_its_study(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    made = deploy(make(tmp_path / "cases", encoder, aside=12), Recipe(head="prototypes", turned_away=None))
    good = draw("a", 1, 11)
    blank = np.full((1, DIM), np.nan, dtype=np.float32)
    assert made.decide_studies(np.concatenate([good, blank]), ["s", "s"]) == made.decide(good)


def test_another_encoders_deployment_is_refused(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    from embeddings import EncoderMismatch

    cases = make(tmp_path / "cases", encoder)
    deploy(cases, PROTOTYPES)
    other = PrecomputedEncoder(["y"], np.ones((1, DIM), dtype=np.float32))
    with pytest.raises(EncoderMismatch):
        deploy(cases, PROTOTYPES, encoder=other)
    with pytest.raises(EncoderMismatch):
        open_deployment(cases, encoder=other)
    document = cases.archive.get_note("deployment 1")
    cases.archive.set_note("deployment 1", {**document, "encoder": "another"})
    with pytest.raises(ValueError, match="was made with another encoder than the set has now: deploy the set as it is"):
        open_deployment(cases)


def test_a_removal_cut_short_leaves_nothing_fitted_and_can_be_repeated(
    tmp_path: Path, encoder: PrecomputedEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = make(tmp_path / "cases", encoder, aside=12)
    for recipe in (PROTOTYPES, Recipe(head="nearest")):
        deploy(cases, recipe)

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    for step in ("remove", "purge"):  # before the rows go, and before their bytes do
        with monkeypatch.context() as patch:
            patch.setattr(cases.archive, step, killed)
            with pytest.raises(KeyboardInterrupt):
                cases.remove(patient="support a 2")
        assert [record.fitted for record in deployments(cases)] == [None, None]
    with pytest.raises(UnknownId):
        cases.remove(patient="support a 2")  # it is gone, and this time its bytes are, too
    held = b"".join(file.read_bytes() for file in (tmp_path / "cases").rglob("*") if file.is_file())
    assert b"support a 2" not in held
    assert open_deployment(cases).removed == open_deployment(cases, 1).removed == 1


def test_a_document_of_a_newer_radshot_is_withdrawn_too(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    cases = make(tmp_path / "cases", encoder)
    deploy(cases, PROTOTYPES)
    cases.archive.set_note("deployment 1", {**cases.archive.get_note("deployment 1"), "format": 99, "recipe": "?"})
    cases.remove(patient="support a 2")
    assert cases.archive.get_note("deployment 1")["fitted"] is None


def test_opening_does_not_wait_for_a_writer(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    import threading
    import time

    cases = make(tmp_path / "cases", encoder)
    deploy(cases, PROTOTYPES)
    cases.remove(patient="support a 2")
    began, free = threading.Event(), threading.Event()

    def write() -> None:
        with ComparisonSet.open(tmp_path / "cases") as other, other.archive.writing():
            began.set()
            free.wait(20)

    writer = threading.Thread(target=write)
    writer.start()
    assert began.wait(20)
    started = time.monotonic()
    assert open_deployment(cases).removed == 1
    waited = time.monotonic() - started
    free.set()
    writer.join()
    assert waited < 10  # the writer would have kept it for twenty seconds


def test_every_removed_support_image_leaves_nothing_to_answer_from(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    cases = ComparisonSet.open(tmp_path / "cases", encoder=encoder)
    put(cases, "a", draw("a", 1, 0))
    deploy(cases)
    cases.remove(label="a")
    with pytest.raises(ValueError, match="Every support image of deployment 1 was removed"):
        open_deployment(cases)
    with pytest.raises(ValueError, match="register at least one image before deploying"):
        deploy(cases)


def test_what_cannot_be_deployed_is_refused(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    cases = make(tmp_path / "cases", encoder)
    assert not has_deployment(cases)
    with pytest.raises(LookupError, match="has no deployment: `radshot deploy` makes one"):
        open_deployment(cases)
    with pytest.raises(ValueError, match="'soft-k-means' cannot be deployed: its answer to a patient depends on"):
        deploy(cases, Recipe(head="soft-k-means"))
    with pytest.raises(ValueError, match=r"no head 'prototype'.*Did you mean 'prototypes'"):
        deploy(cases, Recipe(head="prototype"))
    with pytest.raises(ValueError, match="sensitivity names the class 'z'; the set has a, b, c"):
        deploy(cases, Recipe(sensitivity={"z": 0.9}))
    with pytest.raises(ValueError, match="prevalence must name every class of the set; 'c' is missing"):
        deploy(cases, Recipe(prevalence={"a": 0.5, "b": 0.5}))
    with pytest.raises(ValueError, match="opened without an encoder, which deploying needs"):
        deploy(ComparisonSet.open(tmp_path / "cases"))
    assert not has_deployment(cases)
    with pytest.raises(ValueError, match="No image is set aside to calibrate on: register some of other patients"):
        deploy(cases, Recipe(calibrate_on="set-aside"))
    deploy(cases)
    with pytest.raises(LookupError, match="has no deployment 7; there are 1 to 1"):
        open_deployment(cases, 7)
    with pytest.raises(LookupError, match="has no deployment 0"):
        roll_back(cases, 0)


def test_a_head_that_needs_the_encoder_asks_for_it(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    from embeddings import SourceStatistics

    rows = np.concatenate([draw(label, 8, 20) for label in CENTRES])
    labels = [label for label in CENTRES for _ in range(8)]
    encoder.source_statistics = SourceStatistics.of(rows, labels, groups=range(24), min_patients=6)
    cases = make(tmp_path / "cases", encoder)
    made = deploy(cases, Recipe(head="distribution-calibrated"))
    assert same(made, open_deployment(cases))
    with pytest.raises(ValueError, match="decides by what was learnt with the encoder: give the encoder"):
        open_deployment(ComparisonSet.open(tmp_path / "cases"))


def test_more_images_than_it_was_made_from_are_damage(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    cases = make(tmp_path / "cases", encoder)
    deploy(cases)
    document = cases.archive.get_note("deployment 1")
    cases.archive.set_note("deployment 1", {**document, "images": 3})
    with pytest.raises(ArchiveCorrupt, match="was made from 3 images, and 18 say that they were there"):
        open_deployment(cases)
    cases.archive.set_note("deployment 1", {**document, "format": 99})
    with pytest.raises(ArchiveError, match="has format 99, written by a newer radshot"):
        open_deployment(cases)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibrate_on": "patients"}, "calibrate_on must be one of auto, set-aside, support, nothing; got 'patients'"),
        ({"method": "platt"}, "method must be one of temperature, isotonic; got 'platt'"),
        ({"coverage": 1.0}, "coverage"),
        ({"turned_away": 0.0}, "turned_away"),
        ({"least_probability": 2}, "least_probability"),
        ({"sensitivity": {"a": 90}}, "sensitivity of 'a'"),
        ({"sensitivity": {"a": 0.9}, "false_alarm_rate": {"a": 0.1}}, "'a' has a sensitivity and a false-alarm rate"),
        ({"prevalence": {"a": 0.9, "b": 0.9}}, "Prevalences must be at least 0 and sum to 1"),
    ],
)
def test_a_recipe_that_cannot_be_meant_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**options)


def test_patients_are_support_or_set_aside_never_both(tmp_path: Path) -> None:
    from PIL import Image

    from embeddings import ImageError, load_encoder

    files = []
    for i in range(4):
        files.append(tmp_path / f"{i}.png")
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 20), dtype=np.uint8)).save(files[-1])
    cases = ComparisonSet.open(tmp_path / "cases", encoder=load_encoder("pixels-16"))
    cases.register("a", files[:1], patients=["p1"])
    cases.register("a", files[1:2], patients=["p2"], role="calibration")
    assert (len(cases), len(cases.calibration), cases.shots) == (1, 1, {"a": 1})
    assert cases.calibration.metadata[0]["role"] == "calibration"
    with pytest.raises(ImageError, match="patient 'p1' supports the set, and calibration needs patients apart"):
        cases.register("a", files[2:3], patients=["p1"], role="calibration")
    with pytest.raises(ImageError, match="patient 'p2' is set aside for calibration, and the support needs other"):
        cases.register("a", files[2:3], patients=["p2"])
    with pytest.raises(ImageError, match="it is registered as calibration"):
        cases.register("a", files[1:2], patients=["p2"])
    with pytest.raises(ValueError, match="role must be 'support' or 'calibration'; got 'test'"):
        cases.register("a", files[2:3], role="test")
    assert cases.remove(patient="p2") and len(cases.calibration) == 0
