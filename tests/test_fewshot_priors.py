"""Words and shots: the fused prototype by loops, what words are worth, and words in comparison sets and deployments."""

from __future__ import annotations

import doctest
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import fewshot.priors
from embeddings import PrecomputedEncoder
from fewshot import (
    ClassPrior,
    ComparisonSet,
    Deployment,
    PrototypeClassifier,
    Recipe,
    Words,
    WordsAndShotsClassifier,
    deploy,
    deployments,
    fit_temperature,
    learn_prior_shots,
    make_head,
    open_deployment,
    roll_back,
    what_would_change,
)
from fewshot.deployment_store import FORMAT
from fewshot.words_worth import CANDIDATES, WordsWorth, worth_by_shots

DIM = 6
CENTRES = {"a": [3, 0, 0, 1, 0, 0], "b": [0, 3, 0, 0, 1, 0], "c": [0, 0, 3, 0, 0, 1]}
CENTER = np.linspace(-0.2, 0.3, DIM).astype(np.float32)


def prior_of(label: str, *, off: float = 0.3, phrases: int = 2, seed: int = 0) -> ClassPrior:
    """Words that point near to where a class lies."""
    rng = np.random.default_rng([seed, ord(label)])
    rows = np.array(CENTRES[label]) + off * rng.normal(size=(phrases, DIM))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return ClassPrior(tuple(f"{label} phrase {i}" for i in range(phrases)), unit.astype(np.float32))


def draw(label: str, count: int, seed: int, spread: float = 1.3) -> NDArray[np.float32]:
    rng = np.random.default_rng([seed, ord(label)])
    return (np.array(CENTRES[label]) + CENTER + spread * rng.normal(size=(count, DIM))).astype(np.float32)


def queries(count: int = 8) -> NDArray[np.float32]:
    return np.concatenate([draw(label, count, 2) for label in CENTRES])


# -- the head ----------------------------------------------------------------------------------------------------------


def slow_scores(
    priors: dict[str, ClassPrior],
    worth: float,
    support: list[tuple[str, str, NDArray[np.float32]]],
    query: NDArray[np.float32],
) -> dict[str, float]:
    """(worth * words + patients * their mean) / (worth + patients), one number at a time."""

    def unit(values: list[float]) -> list[float]:
        length = math.sqrt(sum(value * value for value in values))
        return [value / length for value in values]

    def moved(row: NDArray[np.float32]) -> list[float]:
        return unit([float(x) - float(c) for x, c in zip(row, CENTER, strict=True)])

    def mean(rows: list[list[float]]) -> list[float]:
        return [sum(column) / len(rows) for column in zip(*rows, strict=True)]

    scores = {}
    for label in sorted({*priors, *(name for name, _, _ in support)}):
        patients: dict[str, list[list[float]]] = {}
        for name, patient, row in support:
            if name == label:
                patients.setdefault(patient, []).append(moved(row))
        shown = mean([mean(rows) for rows in patients.values()]) if patients else [0.0] * DIM
        words = [0.0] * DIM
        if label in priors:
            words = unit(mean([[float(x) for x in row] for row in priors[label].vectors]))
        known = worth if label in priors else 0.0
        fused = [(known * w + len(patients) * s) / (known + len(patients)) for w, s in zip(words, shown, strict=True)]
        scores[label] = sum(x * y for x, y in zip(unit(fused), moved(query), strict=True))
    return scores


@pytest.mark.parametrize("shots", [0, 1, 2])
@pytest.mark.parametrize("worth", [0.25, 4.0])
def test_a_class_is_its_words_worth_so_many_images_and_its_shots(shots: int, worth: float) -> None:
    priors = {"a": prior_of("a"), "c": prior_of("c", phrases=3)}  # "a" by words, "b" by shots, "c" by both
    support = [("b", f"b{i}", row) for i, row in enumerate(draw("b", max(shots, 1), 3))]
    support += [("c", f"c{i}", row) for i, row in enumerate(draw("c", shots, 3))]
    if shots == 2:  # the first patient has two images more
        support += [("c", "c0", row) for row in draw("c", 2, 4)]
    clf = WordsAndShotsClassifier(priors, prior_shots=worth, center=CENTER)
    rows = np.array([row for _, _, row in support])
    labels, owners = [name for name, _, _ in support], [patient for _, patient, _ in support]
    assert clf.fit(rows, labels, groups=owners) is clf
    assert clf.classes_.tolist() == ["a", "b", "c"] and clf.shots_ == {"a": 0, "b": max(shots, 1), "c": shots}
    np.testing.assert_allclose(np.linalg.norm(clf.prototypes_, axis=1), 1)
    found = clf.scores(queries())
    for query, row in zip(queries(), found, strict=True):
        assert row.tolist() == pytest.approx(list(slow_scores(priors, worth, support, query).values()), abs=1e-7)
    assert clf.predict(queries()).tolist() == [clf.classes_[int(row.argmax())] for row in found]


def test_without_any_shot_words_decide_alone() -> None:
    clf = WordsAndShotsClassifier({label: prior_of(label) for label in CENTRES}, center=CENTER).fit([], [])
    assert clf.shots_ == {"a": 0, "b": 0, "c": 0}
    truth = [label for label in CENTRES for _ in range(8)]
    assert np.mean(clf.predict(queries()) == truth) > 0.8
    for decision in clf.decide(queries()):
        assert decision.probability is None
        assert all(found.id.startswith(f"{decision.label} phrase") for found in decision.evidence)


def test_neither_order_nor_what_was_asked_along_changes_an_answer() -> None:
    priors = {"a": prior_of("a"), "c": prior_of("c")}
    rows = np.concatenate([draw("b", 5, 3), draw("c", 5, 3)])
    labels, owners = ["b"] * 5 + ["c"] * 5, [f"p{i // 2}" for i in range(10)]
    ids = [f"image {i:02}" for i in range(10)]
    first = WordsAndShotsClassifier(priors, center=CENTER).fit(rows, labels, ids=ids, groups=owners).decide(queries())
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(10)
        shuffled = WordsAndShotsClassifier(dict(reversed(priors.items())), center=CENTER).fit(
            rows[order], [labels[i] for i in order], ids=[ids[i] for i in order], groups=[owners[i] for i in order]
        )
        assert shuffled.decide(queries()) == first
        assert [shuffled.decide(query[None])[0] for query in queries()] == first


def test_evidence_is_support_images_then_phrases_each_most_similar_first() -> None:
    priors = {"a": prior_of("a"), "c": prior_of("c", phrases=5)}
    rows = np.concatenate([draw("b", 4, 3), draw("c", 4, 3)])
    ids = [f"{label}{i}" for label in "bc" for i in range(4)]
    clf = WordsAndShotsClassifier(priors, center=CENTER, n_evidence=2).fit(rows, ["b"] * 4 + ["c"] * 4, ids=ids)

    def cosine(one: NDArray[np.floating], two: NDArray[np.floating]) -> float:
        return float(one @ two / math.sqrt((one @ one) * (two @ two)))

    for query, decision in zip(queries(), clf.decide(queries()), strict=True):
        asked = query.astype(np.float64) - CENTER
        for label, evidence in ((decision.label, decision.evidence), (decision.runner_up, decision.counter_evidence)):
            closeness = {
                ids[i]: cosine(asked, rows[i].astype(np.float64) - CENTER) for i in range(8) if ids[i][0] == label
            }
            said = {}
            if label in priors:
                prior = priors[str(label)]
                said = {text: cosine(asked, row) for text, row in zip(prior.phrases, prior.vectors, strict=True)}
            expected = [*sorted(closeness, key=lambda i: -closeness[i])[:2], *sorted(said, key=lambda i: -said[i])[:2]]
            assert [found.id for found in evidence] == expected
            assert [found.similarity for found in evidence] == pytest.approx(
                [{**closeness, **said}[name] for name in expected], abs=1e-6
            )
            assert {found.label for found in evidence} == {label}


def test_a_query_about_which_nothing_can_be_said_has_a_reason() -> None:
    clf = WordsAndShotsClassifier({label: prior_of(label) for label in "ab"}, center=CENTER).fit([], [])
    asked = np.stack([np.full(DIM, np.nan, dtype=np.float32), CENTER, draw("a", 1, 3)[0]])
    lost, aimless, known = clf.decide(asked)
    assert lost.label is None and lost.reason is not None and "NaN" in lost.reason
    assert aimless.label is None and aimless.reason is not None and "no direction" in aimless.reason
    assert known.label == "a" and np.isnan(clf.scores(asked)[:2]).all()
    assert clf.predict(asked).tolist() == [None, None, "a"]


def test_what_cannot_be_fitted_is_refused() -> None:
    priors = {"a": prior_of("a")}
    with pytest.raises(ValueError, match=r"There is nothing to decide by: register images, or describe classes"):
        WordsAndShotsClassifier({}).fit([], [])
    for worth in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match=r"prior_shots must be a positive number of images; got"):
            WordsAndShotsClassifier(priors, prior_shots=worth).fit([], [])
    with pytest.raises(
        ValueError, match=r"one image space; got vectors of 4 and 6 numbers: were the words aligned with"
    ):
        WordsAndShotsClassifier(priors).fit(np.ones((1, 4)), ["b"])
    with pytest.raises(ValueError, match=r"n_evidence must be a whole number of at least 0; got -1"):
        WordsAndShotsClassifier(priors, n_evidence=-1).fit([], [])
    with pytest.raises(ValueError, match=r"The centre must have shape \(6,\) like the vectors; got \(4,\)"):
        WordsAndShotsClassifier(priors, center=np.zeros(4)).fit([], [])
    with pytest.raises(ValueError, match=r"This WordsAndShotsClassifier has no support yet: call fit first"):
        WordsAndShotsClassifier(priors).decide(queries())
    with pytest.raises(ValueError, match=r"Query vectors have 4 dimensions"):
        WordsAndShotsClassifier(priors).fit([], []).scores(np.ones((1, 4)))
    with pytest.raises(ValueError, match=r"2 support vectors need 2 labels; got 1"):
        WordsAndShotsClassifier(priors).fit(np.ones((2, DIM)), ["b"])
    for phrases, vectors in (((), np.empty((0, 3))), (("x",), np.ones((2, 3))), (("x",), np.full((1, 3), np.nan))):
        with pytest.raises(ValueError, match=r"A class's words need one finite vector per phrase; got \d phrases and"):
            ClassPrior(phrases, vectors.astype(np.float32))


def test_the_example_runs() -> None:
    assert doctest.testmod(fewshot.priors).failed == 0


# -- what words are worth ----------------------------------------------------------------------------------------------

MANY = [f"k{i}" for i in range(6)]
PLACES = np.random.default_rng(31).normal(size=(6, 12))


def seen(patients: int = 8, spread: float = 1.2) -> tuple[NDArray[np.float64], list[str], list[str]]:
    """Two images of each patient; patients of a class differ."""
    rng = np.random.default_rng(5)
    rows, labels, owners = [], [], []
    for code, name in enumerate(MANY):
        for number in range(patients):
            own = PLACES[code] + spread * rng.normal(size=12)
            rows += [own + 0.1 * rng.normal(size=12) for _ in range(2)]
            labels += [name] * 2
            owners += [f"{name} {number}"] * 2
    return np.array(rows), labels, owners


def said(off: float) -> dict[str, ClassPrior]:
    rng = np.random.default_rng(6)
    rows = PLACES + off * rng.normal(size=PLACES.shape)
    return {
        name: ClassPrior((name,), (row / np.linalg.norm(row))[None].astype(np.float32))
        for name, row in zip(MANY, rows, strict=True)
    }


def test_good_words_are_worth_many_images_and_bad_ones_few() -> None:
    rows, labels, owners = seen()
    good, fair, bad = (
        learn_prior_shots(rows, labels, said(off), groups=owners, n_episodes=40) for off in (0.0, 1.0, 50.0)
    )
    assert {good.shots, fair.shots, bad.shots} <= set(CANDIDATES)
    assert bad.shots <= 0.5 and good.shots >= 8 and bad.shots <= fair.shots <= good.shots
    assert bad.typical < fair.typical < good.typical  # what their shots say of them agrees
    assert fair == learn_prior_shots(rows, labels, said(1.0), groups=owners, n_episodes=40)


def test_the_worth_that_shots_tell_follows_its_formula() -> None:
    rng = np.random.default_rng(3)
    words, means, counts = rng.normal(size=(3, 5)), rng.normal(size=(3, 5)), np.array([1, 2, 4])
    told = words - words.mean(axis=0)
    # An orthonormal basis of the two directions in which the words differ, by hand.
    first = told[0] / np.linalg.norm(told[0])
    rest = told[1] - (told[1] @ first) * first
    basis = np.stack([first, rest / np.linalg.norm(rest)])
    seen, said_ = (means - means.mean(axis=0)) @ basis.T, told @ basis.T
    slope = max((seen * said_).sum() / (said_ * said_).sum(), 0.0)
    error = sum((seen[c, j] - slope * said_[c, j]) ** 2 for c in range(3) for j in range(2)) / (2 * 2)
    own = error - 0.2 * (1 + 1 / 2 + 1 / 4) / 3
    assert worth_by_shots(words, means, counts, 0.2) == pytest.approx(np.clip(0.2 / max(own, 0.2 / 64), 1 / 64, 64))
    assert worth_by_shots(words, words, counts, 0.0001) > worth_by_shots(words, -words, counts, 0.0001)
    assert worth_by_shots(np.ones((2, 5)), means[:2], counts[:2], 0.2) == 1 / 64  # words that do not differ say nothing


def test_a_sets_own_shots_make_its_words_worth_more_or_less() -> None:
    good, bad = (
        np.array([[1.0, 0, 0, 0, 0, 0], [0, 1.0, 0, 0, 0, 0]]),
        np.array([[0, 1.0, 0, 0, 0, 0], [1.0, 0, 0, 0, 0, 0]]),
    )
    rows = [[1.0, 0.1, 0, 0, 0, 0], [0.1, 1.0, 0, 0, 0, 0]]
    learnt = WordsWorth(shots=2.0, spread=0.01, typical=1.0)
    found = []
    for words in (good, bad):
        priors = {name: ClassPrior(("x",), row[None].astype(np.float32)) for name, row in zip("ab", words, strict=True)}
        head = WordsAndShotsClassifier(priors, prior_shots=learnt).fit(rows, ["a", "b"])
        plain = WordsAndShotsClassifier(priors, prior_shots=head.prior_shots_).fit(rows, ["a", "b"])
        assert np.array_equal(head.prototypes_, plain.prototypes_)
        found.append(head.prior_shots_)
        one = WordsAndShotsClassifier(priors, prior_shots=learnt).fit(rows[:1], ["a"])
        assert one.prior_shots_ == 2.0  # a single class with shots tells nothing about differences
    assert 8.0 >= found[0] > 2.0 > found[1] >= 0.5
    kept = Words({"a": priors["a"]}, learnt, CENTER, "e").to_json()
    assert Words.from_json(json.loads(json.dumps(kept))).prior_shots == learnt


def test_words_are_worth_more_where_patients_are_few_than_where_images_are_taken_for_them() -> None:
    rows, labels, owners = seen(patients=4, spread=2.0)
    arguments = rows, labels, said(0.5)
    unknown = learn_prior_shots(*arguments, groups=[None] * len(rows), n_episodes=10)
    assert unknown == learn_prior_shots(*arguments, n_episodes=10)  # an unknown patient is one of its own
    assert learn_prior_shots(*arguments, groups=owners, n_episodes=40).shots >= 2.0


def test_classes_without_words_and_with_too_few_patients_take_no_part() -> None:
    rows, labels, owners = seen()
    words = said(0.5)
    few = [i for i, owner in enumerate(owners) if labels[i] != "k5" or owner.endswith(("0", "1"))]
    less = {name: prior for name, prior in words.items() if name != "k4"}
    changed = rows.copy()
    changed[[i for i, label in enumerate(labels) if label in ("k4", "k5")]] = 7.0
    one, two = (
        learn_prior_shots(part[few], [labels[i] for i in few], less, groups=[owners[i] for i in few], n_episodes=10)
        for part in (rows, changed)
    )
    assert one == two
    with pytest.raises(ValueError, match=r"takes two classes with words and three patients; got 1"):
        learn_prior_shots(rows, labels, {"k0": words["k0"]}, groups=owners)
    with pytest.raises(ValueError, match=r"takes two classes with words and three patients; got 0"):
        learn_prior_shots(rows, labels, words, groups=["everybody"] * len(rows))
    with pytest.raises(ValueError, match=r"Learning prior_shots with 20 shots takes two classes of more patients"):
        learn_prior_shots(rows, labels, words, groups=owners, shots=(20,))


# -- words in sets and deployments -------------------------------------------------------------------------------------


@pytest.fixture
def encoder() -> PrecomputedEncoder:
    return PrecomputedEncoder(["x"], np.zeros((1, DIM), dtype=np.float32))


def words_for(encoder: PrecomputedEncoder, labels: str = "abc", *, seed: int = 0, worth: float = 3.0) -> Words:
    return Words({label: prior_of(label, seed=seed) for label in labels}, worth, CENTER, encoder.fingerprint)


def put(cases: ComparisonSet, label: str, count: int, *, seed: int = 0, name: str = "") -> None:
    """Rows as registration would have stored them, an image per patient."""
    facts = [{"label": label, "patient": f"{name}{label} {i}"} for i in range(count)]
    cases.archive.add([f"{name}{label}-{i:02}" for i in range(count)], draw(label, count, seed), metadata=facts)


def same(one: Deployment, two: Deployment) -> bool:
    return one.fitted.to_json() == two.fitted.to_json() and one.decide(queries()) == two.decide(queries())


def test_words_are_kept_with_the_set_to_the_bit(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    words = words_for(encoder)
    with ComparisonSet.open(tmp_path / "cases", encoder=encoder) as cases:
        assert cases.words is None
        cases.describe(words)
    with ComparisonSet.open(tmp_path / "cases") as cases:
        kept = cases.words
        assert kept is not None and (kept.prior_shots, kept.encoder) == (3.0, encoder.fingerprint)
        assert kept.center.tobytes() == words.center.tobytes() and list(kept.priors) == list(words.priors)
        for label, prior in words.priors.items():
            assert kept.priors[label].phrases == prior.phrases
            assert kept.priors[label].vectors.tobytes() == prior.vectors.tobytes()
        assert kept.head().fit([], []).decide(queries()) == words.head().fit([], []).decide(queries())
        cases.describe(None)
        assert cases.words is None


def test_words_of_another_encoder_are_refused(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    cases = ComparisonSet.open(tmp_path / "cases", encoder=encoder)
    words = words_for(encoder)
    cases.describe(words)
    short = {label: ClassPrior(prior.phrases, prior.vectors[:, :4]) for label, prior in words.priors.items()}
    for wrong in (
        replace(words, encoder="f" * 64),
        replace(words, center=CENTER[:4]),
        replace(words, priors=short),
    ):
        with pytest.raises(
            ValueError, match=r"aligned with another encoder \(.{12}\) than that of the set \(.{12}\): fi"
        ):
            cases.describe(wrong)
    kept = cases.words
    assert kept is not None and kept.encoder == encoder.fingerprint  # the words before still speak


def test_a_deployment_without_a_shot_answers_by_words(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    cases = ComparisonSet.open(tmp_path / "cases", encoder=encoder)
    with pytest.raises(ValueError, match=r"The comparison set is empty: register at least one image before deploying"):
        deploy(cases)
    cases.describe(words_for(encoder))
    made = deploy(cases)
    assert made.classes == ["a", "b", "c"] and made.support_ids == []
    truth = [label for label in CENTRES for _ in range(8)]
    found = made.decide(queries())
    assert np.mean([decision.label == label for decision, label in zip(found, truth, strict=True)]) > 0.8
    expected = words_for(encoder).head().fit([], []).decide(queries())
    for decision, by_head in zip(found, expected, strict=True):
        assert decision.probability is None and decision.prediction_set is None and decision.coverage is None
        assert (decision.label, decision.score, decision.margin) == (by_head.label, by_head.score, by_head.margin)
        assert decision.evidence == by_head.evidence and decision.counter_evidence == by_head.counter_evidence
    (remark,) = made.remarks
    assert remark.startswith(
        "No probability, no prediction set and never \"none of these\": 'a', 'b', 'c' are known by"
    )
    assert json.loads(json.dumps(made.to_dict())) == made.to_dict()
    lost = made.decide(np.full((1, DIM), np.nan, dtype=np.float32))[0]
    assert lost.label is None and lost.reason is not None and "NaN" in lost.reason
    with ComparisonSet.open(tmp_path / "cases") as other:
        assert same(open_deployment(other), made)


def test_a_class_known_by_words_alone_leaves_no_probability_and_that_is_said(
    tmp_path: Path, encoder: PrecomputedEncoder
) -> None:
    cases = ComparisonSet.open(tmp_path / "cases", encoder=encoder)
    cases.describe(words_for(encoder))
    put(cases, "a", 12)
    put(cases, "b", 12)
    made = deploy(cases)
    assert made.fitted.head == "words" and made.fitted.probabilities is None
    assert "'c' is known by words alone; register patients and deploy again" in made.remarks[0]
    found = made.decide(draw("c", 20, 2))
    assert np.mean([decision.label == "c" for decision in found]) > 0.7
    assert all(decision.probability is None for decision in found)
    put(cases, "c", 12)
    assert open_deployment(cases).decide(queries()) == made.decide(queries())  # it answers from its own version
    assert deploy(cases).fitted.probabilities is not None


def test_with_enough_shots_there_are_probabilities_calibrated_on_patients_left_out(
    tmp_path: Path, encoder: PrecomputedEncoder
) -> None:
    cases = ComparisonSet.open(tmp_path / "cases", encoder=encoder)
    cases.describe(words_for(encoder, "ab"))  # "c" is known by shots alone
    for label in CENTRES:
        put(cases, label, 9)
    made = deploy(cases)
    assert made.fitted.head == "words" and made.fitted.calibrated_on == "support"
    assert made.fitted.head_reason is not None and made.fitted.head_reason.startswith("words: ")
    labels, patients = np.array(cases.labels), np.array(cases.patients)
    scores = np.empty((27, 3))
    for patient in patients:
        left = patients != patient
        head = words_for(encoder, "ab").head().fit(cases.vectors[left], labels[left].tolist())
        scores[~left] = head.scores(cases.vectors[~left])
    targets = ["abc".index(label) for label in labels]
    expected = fit_temperature(scores, targets, patients.tolist())
    assert made.fitted.probabilities is not None
    assert made.fitted.probabilities.to_json()["temperature"] == pytest.approx(expected.temperature, rel=1e-9)
    head = words_for(encoder, "ab").head().fit(cases.vectors, labels.tolist())
    for decision, row in zip(made.decide(queries()), expected.probabilities(head.scores(queries())), strict=True):
        if decision.label is not None:
            assert decision.probability == pytest.approx(row.max(), rel=1e-9)
        assert decision.prediction_set is not None
        kinds = ["phrase" in found.id for found in decision.evidence]
        assert kinds == sorted(kinds) and kinds.count(True) == (0 if decision.evidence[0].label == "c" else 2)
    assert not any("head was chosen on the support patients" in remark for remark in made.remarks)


@pytest.mark.parametrize("gone", ["a 3", "c 0"])
def test_a_removed_patient_equals_one_never_registered_with_words(
    tmp_path: Path, encoder: PrecomputedEncoder, gone: str
) -> None:
    cases = ComparisonSet.open(tmp_path / "with", encoder=encoder)
    cases.describe(words_for(encoder))
    put(cases, "a", 8)
    put(cases, "b", 8)
    put(cases, "c", 1)  # whose only patient may go
    before = deploy(cases)
    whole = cases.archive.snapshot()
    removed = cases.remove(patient=gone)
    after = open_deployment(cases)
    never = ComparisonSet.open(tmp_path / "without", encoder=encoder)
    never.describe(words_for(encoder))
    kept = [i for i, name in enumerate(whole.ids) if name not in removed]
    never.archive.add([whole.ids[i] for i in kept], whole.vectors[kept], metadata=[whole.metadata[i] for i in kept])
    assert same(after, deploy(never)) and not same(before, after)
    assert after.removed == 1 and "fitted again without" in after.remarks[0]
    assert after.classes == ["a", "b", "c"]


def test_when_every_image_was_removed_words_still_answer(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    cases = ComparisonSet.open(tmp_path / "cases", encoder=encoder)
    cases.describe(words_for(encoder))
    put(cases, "b", 2)
    deploy(cases)
    cases.remove(label="b")
    after = open_deployment(cases)
    assert after.removed == 2 and after.support_ids == []
    assert [d.label for d in after.decide(queries())] == [
        d.label for d in words_for(encoder).head().fit([], []).decide(queries())
    ]


def test_new_words_speak_in_the_next_deployment_and_rolling_back_brings_the_earlier_ones(
    tmp_path: Path, encoder: PrecomputedEncoder
) -> None:
    cases = ComparisonSet.open(tmp_path / "cases", encoder=encoder)
    cases.describe(words_for(encoder, "ab"))
    put(cases, "a", 2)
    first = deploy(cases)
    cases.describe(words_for(encoder, "abc", seed=4, worth=9.0))
    assert same(open_deployment(cases), first)
    second = deploy(cases)
    assert second.classes == ["a", "b", "c"] and not same(first, second)
    roll_back(cases, 1)
    back = open_deployment(cases)
    assert back.number == 1 and back.classes == ["a", "b"] and same(back, first)
    roll_back(cases, 2)
    assert same(open_deployment(cases), second)
    cases.describe(None)
    assert same(open_deployment(cases), second)
    assert deploy(cases).fitted.head != "words"


def test_documents_without_words_are_as_they_were(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    cases = ComparisonSet.open(tmp_path / "cases", encoder=encoder)
    for label in CENTRES:
        put(cases, label, 3)
    deploy(cases)
    cases.describe(words_for(encoder))
    deploy(cases)
    plain = deploy(cases, Recipe(head="prototypes"))  # a head without words leaves them out
    one, two, three = (record.to_json() for record in deployments(cases))
    assert (one["format"], two["format"], three["format"]) == (1, FORMAT, 1) == (1, 2, 1)
    assert "words" not in one and "words" not in three and set(two["words"]["priors"]) == set(CENTRES)
    assert plain.fitted.head == "prototypes"
    assert not any("phrase" in found.id for decision in plain.decide(queries()) for found in decision.evidence)


def test_what_words_are_needed_for_is_refused_without_them(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    cases = ComparisonSet.open(tmp_path / "cases", encoder=encoder)
    put(cases, "a", 3)
    with pytest.raises(
        ValueError, match=r"The head 'words' needs classes described by words: `radshot zeroshot descri"
    ):
        deploy(cases, Recipe(head="words"))
    with pytest.raises(ValueError, match=r"The head 'words' needs classes described by words"):
        make_head("words")
    cases.describe(words_for(encoder, "bc"))
    assert deploy(cases, Recipe(head="words")).classes == ["a", "b", "c"]
    with pytest.raises(ValueError, match=r"sensitivity names the class 'd'; the set has a, b, c"):
        deploy(cases, Recipe(sensitivity={"d": 0.9}))
    with pytest.raises(ValueError, match=r"sensitivity names the class 'b'; the set has a\."):
        deploy(cases, Recipe(head="prototypes", sensitivity={"b": 0.9}))


def test_what_would_change_an_answer_by_words_alone(tmp_path: Path, encoder: PrecomputedEncoder) -> None:
    cases = ComparisonSet.open(tmp_path / "cases", encoder=encoder)
    cases.describe(words_for(encoder))
    put(cases, "b", 2)
    found = deploy(cases).explain(queries()[0])
    assert found.label == "a" and not found.flips
    assert found.sentence.endswith("and 'a' has none: it is known by words alone.")
    cases.remove(patient="b 1")
    left = open_deployment(cases).explain(draw("b", 1, 2)[0])
    assert [removal.label for removal in left.removals] == ["b"]  # without its last patient its words are left
    cases.remove(patient="b 0")
    alone = open_deployment(cases).explain(queries()[0])
    assert alone.label == "a" and alone.removals == () and alone.needed is None
    with pytest.raises(ValueError, match=r"The comparison set is empty: register at least one image before asking"):
        what_would_change(PrototypeClassifier, np.empty((0, DIM)), [], queries()[0])
