"""The estimate against slow loops, against chance, and on users whose truth is known."""

from __future__ import annotations

import doctest
import json
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pytest

import fewshot.estimation
from fewshot import NeighborClassifier, PrototypeClassifier
from fewshot.advice import GAIN_SPREAD, MORE, OWN_WEIGHT, USUAL_RATE, Advice, LearningCurves
from fewshot.estimation import INFLATION, estimate
from fewshot.held_out import fit_folds
from fewshot.leave_few_out import ask, deal_rounds, patients_per_class
from fewshot.support import Support


def task(
    shots: Sequence[int], *, images: int = 1, d: int = 8, spread: float = 1.0, seed: int = 0
) -> tuple[np.ndarray, list[str], list[str], list[str]]:
    """Vectors, labels, patients and ids of classes around random centres."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(len(shots), d))
    vectors, labels, patients = [], [], []
    for c, count in enumerate(shots):
        for p in range(count):
            person = centers[c] + spread * rng.normal(size=d)
            for _ in range(images):
                vectors.append(person + 0.2 * rng.normal(size=d))
                labels.append(f"c{c}")
                patients.append(f"c{c} p{p}")
    return np.array(vectors, np.float32), labels, patients, [f"i{i:03}" for i in range(len(labels))]


class Recorder:
    """A head that answers the first class and remembers who taught it and who asked."""

    fitted: list[set[Any]] = []  # noqa: RUF012 - one list for all heads of a test
    rows: list[tuple[set[bytes], set[bytes]]] = []  # noqa: RUF012

    def fit(self, vectors: Any, labels: Sequence[Hashable], *, ids: Any = None, groups: Any = None) -> Recorder:
        self.taught = {row.tobytes() for row in np.asarray(vectors)}
        self.classes_ = np.array(sorted(set(labels)))
        return self

    def predict(self, vectors: Any) -> Any:
        Recorder.rows.append((self.taught, {row.tobytes() for row in np.asarray(vectors)}))
        return np.repeat(self.classes_[:1], len(vectors))


class Silent(PrototypeClassifier):
    """A head that never decides."""

    def predict(self, vectors: Any) -> Any:
        return np.array([None] * len(vectors), dtype=object)


# -- the rounds ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_folds", [2, 3, 5])
def test_every_round_takes_patients_of_every_class_and_leaves_some(n_folds: int) -> None:
    vectors, labels, patients, ids = task([2, 3, 7, 15], images=2)
    support = Support(vectors, labels, ids=ids, groups=patients)
    rounds = deal_rounds(support, n_folds, np.random.default_rng(0))
    assert len(rounds) == n_folds
    for c, count in enumerate([2, 3, 7, 15]):
        left_out = [{support.groups[i] for i in rows if support.targets[i] == c} for rows in rounds]
        assert all(1 <= len(out) <= -(-count // min(n_folds, count)) for out in left_out)
        assert len(set().union(*left_out)) == count, "every patient is asked about"
        if count >= n_folds:
            assert sum(map(len, left_out)) == count, "once in each repeat"
    assert patients_per_class(support).tolist() == [2, 3, 7, 15]


def test_no_patient_teaches_the_head_that_is_asked_about_it() -> None:
    vectors, labels, patients, ids = task([3, 4, 6], images=3)
    owner = {row.tobytes(): patient for row, patient in zip(vectors, patients, strict=True)}
    Recorder.rows = []
    estimate(vectors, labels, ids=ids, groups=patients, make_head=Recorder, n_repeats=3)
    assert len(Recorder.rows) > 3 * 2
    for taught, asked in Recorder.rows:
        assert taught and asked
        assert not {owner[row] for row in taught} & {owner[row] for row in asked}


def test_a_patient_of_two_classes_is_left_out_of_both() -> None:
    vectors, labels, patients, ids = task([4, 4], seed=3)
    patients[4] = patients[0]
    owner = {row.tobytes(): patient for row, patient in zip(vectors, patients, strict=True)}
    Recorder.rows = []
    found = estimate(vectors, labels, ids=ids, groups=patients, make_head=Recorder, n_repeats=4)
    assert found.patients == 7 and [one.patients for one in found.per_class] == [4, 4]
    assert all(not {owner[r] for r in taught} & {owner[r] for r in asked} for taught, asked in Recorder.rows)


# -- the accuracy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shots", "n_folds"), [((5, 5, 5), 2), ((2, 4, 9), 2), ((3, 6), 5)])
def test_cross_validation_against_slow_loops(shots: tuple[int, ...], n_folds: int) -> None:
    vectors, labels, patients, ids = task(shots, images=2, spread=1.5, seed=1)
    found = estimate(
        vectors, labels, ids=ids, groups=patients, make_head=NearestMean, n_folds=n_folds, n_repeats=4, seed=5
    )
    rows_seen = NearestMean.asked
    NearestMean.asked = []
    right: dict[int, list[bool]] = {}
    answered: dict[int, list[str]] = {}
    scarcities = []
    for rows, answers, taught in rows_seen:
        if taught is None:
            continue  # a learning curve's head
        for row, answer in zip(rows, answers, strict=True):
            right.setdefault(row, []).append(labels[row] == answer)
            answered.setdefault(row, []).append(answer)
        counts = [len({patients[i] for i in taught if labels[i] == f"c{c}"}) for c in range(len(shots))]
        scarcities.append(sum(1 / count for count in counts) / len(counts))
    recalls = []
    for c in range(len(shots)):
        per_patient = []
        for patient in sorted({p for p, label in zip(patients, labels, strict=True) if label == f"c{c}"}):
            own = [i for i in range(len(labels)) if patients[i] == patient]
            per_patient.append(sum(sum(right[i]) / len(right[i]) for i in own) / len(own))
        recalls.append(sum(per_patient) / len(per_patient))
    assert found.cross_validated == pytest.approx(sum(recalls) / len(recalls), abs=1e-12)
    for c, row in enumerate(found.confusion):
        assert row is not None and row[c] == pytest.approx(recalls[c]) and sum(row) == pytest.approx(1)
    # the correction in words: half of the error per unit of 1 / patients, weighed by being above chance
    n = len(shots)
    spread = (sum((1 / n) * (1 - 1 / n) / count for count in shots)) ** 0.5 / n
    samples = np.random.default_rng(0).normal(size=400_000)
    above = float((samples < (found.cross_validated - 1 / n) / spread).mean())
    less = sum(scarcities) / len(scarcities) - sum(1 / count for count in shots) / n
    gain = USUAL_RATE * less * above * (1 - found.cross_validated)
    assert found.accuracy == pytest.approx(found.cross_validated + gain, abs=1e-3)
    mean = np.mean([one.recall for one in found.per_class])
    assert found.accuracy == pytest.approx(float(mean), abs=1e-12)


class NearestMean:
    """Nearest class mean, in loops; it remembers each round by row numbers, found by the vectors' bytes."""

    asked: list[tuple[list[int], list[str], list[int] | None]] = []  # noqa: RUF012
    number: dict[bytes, int] = {}  # noqa: RUF012

    def fit(self, vectors: Any, labels: Sequence[str], *, ids: Sequence[str], groups: Sequence[Any]) -> NearestMean:
        self.classes_ = np.array(sorted(set(labels)))
        self.ids = list(ids)
        self.means = {}
        for name in self.classes_.tolist():
            means = []
            for patient in sorted({g for g, label in zip(groups, labels, strict=True) if label == name}):
                own = [v for v, g in zip(vectors, groups, strict=True) if g == patient]
                means.append([sum(float(v[j]) for v in own) / len(own) for j in range(len(own[0]))])
            self.means[name] = [sum(m[j] for m in means) / len(means) for j in range(len(means[0]))]
        return self

    def predict(self, vectors: Any) -> Any:
        answers = []
        for query in np.asarray(vectors):
            distance = {
                name: sum((float(q) - m) ** 2 for q, m in zip(query, mean, strict=True))
                for name, mean in self.means.items()
            }
            answers.append(min(distance, key=lambda name: (distance[name], name)))
        rows = [NearestMean.number[row.tobytes()] for row in np.asarray(vectors)]
        taught = [int(name[1:]) for name in self.ids]
        whole = len(set(rows) | set(taught)) == len(NearestMean.number)
        NearestMean.asked.append((rows, answers, taught if whole else None))
        return np.array(answers)


@pytest.fixture(autouse=True)
def known_rows(request: pytest.FixtureRequest) -> None:
    """Tell NearestMean the row numbers of the task a test is about to use."""
    NearestMean.asked, NearestMean.number = [], {}
    if "shots" in request.fixturenames:
        vectors, *_ = task(request.getfixturevalue("shots"), images=2, spread=1.5, seed=1)
        NearestMean.number = {row.tobytes(): i for i, row in enumerate(vectors)}


def test_the_interval_is_the_posterior_of_as_many_patients() -> None:
    vectors, labels, patients, ids = task([6, 9, 12], spread=2.0, seed=2)
    found = estimate(vectors, labels, ids=ids, groups=patients)
    rng = np.random.default_rng(0)
    for one in found.per_class:
        assert one.recall is not None and one.interval is not None
        size = one.patients / INFLATION
        draws = rng.beta(size * one.recall + 0.5, size * (1 - one.recall) + 0.5, 200_000)
        seen = found.confusion[found.per_class.index(one)]
        assert seen is not None
        low, high = np.quantile(draws, [0.025, 0.975])
        right = size * seen[found.per_class.index(one)]
        expected = (0.0 if right <= 1 else low, 1.0 if size - right <= 1 else high)
        assert one.interval == pytest.approx(expected, abs=5e-3)
        assert one.interval[0] < one.recall < one.interval[1]
    assert found.interval is not None and found.accuracy is not None
    recalls = [row[i] for i, row in enumerate(found.confusion) if row is not None]
    pooled = (sum(n * r for n, r in zip((6, 9, 12), recalls, strict=True)) + 0.5) / 28
    moved = [(n * r + 2 * pooled) / (n + 2) for n, r in zip((6, 9, 12), recalls, strict=True)]
    variance = INFLATION * sum(p * (1 - p) / n for p, n in zip(moved, (6, 9, 12), strict=True)) / 9
    mean = sum(moved) / 3
    size = mean * (1 - mean) / variance
    draws = rng.beta(size * found.accuracy + 0.5, size * (1 - found.accuracy) + 0.5, 200_000)
    assert found.interval == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=5e-3)


def test_all_right_reaches_to_1_and_abstentions_are_wrong() -> None:
    vectors, labels, patients, ids = task([4, 4], spread=0.01)
    found = estimate(vectors, labels, ids=ids, groups=patients)
    assert found.accuracy == 1 and found.interval is not None
    assert 0.5 < found.interval[0] < 0.8 and found.interval[1] == 1
    assert found.most_confused is None and found.hard_images == ()
    silent = estimate(vectors, labels, ids=ids, groups=patients, make_head=Silent)
    assert silent.cross_validated == 0 and silent.interval is not None and silent.interval[0] == 0
    assert silent.confusion == ((0.0, 0.0, 1.0), (0.0, 0.0, 1.0))
    assert len(silent.hard_images) == 8 and silent.hard_images[0].answered is None
    assert silent.taken_for(0) == "none of these (1.00)"


@pytest.mark.parametrize("shots", [(6, 6, 6), (3, 5, 12)])
def test_permuted_labels_give_chance(shots: tuple[int, ...]) -> None:
    found = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        labels = np.repeat([f"c{c}" for c in range(3)], shots).tolist()
        vectors = rng.normal(size=(len(labels), 16)).astype(np.float32)
        found.append(estimate(vectors, labels, seed=seed, n_repeats=3))
    assert np.mean([one.cross_validated for one in found]) == pytest.approx(1 / 3, abs=0.03)
    assert np.mean([one.accuracy for one in found]) == pytest.approx(1 / 3, abs=0.05)
    held = [one.interval[0] <= 1 / 3 <= one.interval[1] for one in found if one.interval]
    assert sum(held) >= 36
    said = ["Guessing gives 0.33, which the interval does not rule out." in one.warnings for one in found]
    assert sum(said) >= 30


def test_the_interval_holds_the_truth_of_simulated_users() -> None:
    held, errors = 0, []
    for seed in range(60):
        rng = np.random.default_rng(seed)
        centers = rng.normal(size=(3, 6))
        shots = rng.integers(3, 12, size=3)
        labels = np.repeat(np.arange(3), shots)
        vectors = centers[labels] + 1.2 * rng.normal(size=(len(labels), 6))
        found = estimate(vectors, labels.tolist(), n_repeats=5, seed=seed)
        later = np.repeat(np.arange(3), 300)
        answers = (
            PrototypeClassifier()
            .fit(vectors, labels.tolist())
            .predict(centers[later] + 1.2 * rng.normal(size=(900, 6)))
        )
        truth = float(np.mean([(answers == later)[later == c].mean() for c in range(3)]))
        assert found.interval is not None and found.accuracy is not None
        held += found.interval[0] <= truth <= found.interval[1]
        errors.append(found.accuracy - truth)
    assert held >= 54  # of 60; 57 are promised
    assert abs(np.mean(errors)) < 0.03


# -- what does not matter, and what cannot be said -------------------------------------------------------------------


def test_two_runs_agree_and_the_order_of_registration_changes_no_bit() -> None:
    vectors, labels, patients, ids = task([3, 5, 8], images=2, spread=2.0, seed=4)
    found = estimate(vectors, labels, ids=ids, groups=patients, n_repeats=5)
    assert estimate(vectors, labels, ids=ids, groups=patients, n_repeats=5) == found
    order = np.random.default_rng(0).permutation(len(labels))
    other = estimate(
        vectors[order],
        [labels[i] for i in order],
        ids=[ids[i] for i in order],
        groups=[patients[i] for i in order],
        n_repeats=5,
    )
    assert other == found
    assert estimate(vectors, labels, ids=ids, groups=patients, n_repeats=5, seed=1) != found


def test_a_class_of_one_patient_is_said_not_to_be_judged() -> None:
    vectors, labels, patients, ids = task([1, 5, 5], images=3)
    found = estimate(vectors, labels, ids=ids, groups=patients)
    alone = found.per_class[0]
    assert (alone.recall, alone.interval, alone.patients, found.confusion[0]) == (None, None, 1, None)
    assert "nobody is left to learn from" in str(alone.reason)
    assert "over the 2 classes that can be judged" in str(found)
    assert any("'c0': one patient each cannot be cross-validated" in warning for warning in found.warnings)
    assert "| c0 | 1 | cannot be said |" in found.to_markdown()
    assert found.taken_for(0) == ""
    shares = [row for row in found.confusion if row is not None]
    assert all(len(row) == 4 for row in shares), "it can still be answered"
    only_one = estimate(*task([1, 5])[:2], groups=task([1, 5])[2])
    assert only_one.accuracy is None and only_one.interval is None and only_one.advice == ()
    assert only_one.per_class[1].recall is not None
    assert str(only_one).startswith(
        "The accuracy on new patients cannot be said: fewer than two classes have 2 patients"
    )
    nobody = estimate(*task([1, 1])[:2], groups=task([1, 1])[2])
    assert nobody.accuracy is None and nobody.hard_images == () and nobody.most_confused is None
    assert json.loads(json.dumps(nobody.to_dict(), allow_nan=False)) == nobody.to_dict()
    assert "cannot be said" in nobody.to_markdown()


def test_a_class_that_shares_all_its_patients_with_another_may_not_be_judged() -> None:
    vectors, labels, patients, ids = task([2, 2, 3])
    patients[0:2] = ["x", "y"]
    patients[2:4] = ["x", "y"]
    found = estimate(vectors, labels, ids=ids, groups=patients, n_repeats=1, seed=0)
    for one in found.per_class[:2]:
        assert (one.recall is None) == (one.reason is not None)
        assert one.reason is None or "none was left to learn from" in one.reason
    seeds = [estimate(vectors, labels, ids=ids, groups=patients, n_repeats=1, seed=s) for s in range(12)]
    assert any(one.per_class[0].recall is None for one in seeds), "both left out together"
    assert any(one.per_class[0].recall is not None for one in seeds)


def test_unknown_patients_and_few_patients_are_warned_of() -> None:
    vectors, labels, patients, ids = task([4, 4])
    unknown = estimate(vectors, labels, ids=ids)
    assert "The patients of all 8 images are unknown" in unknown.warnings[0] and not unknown.patients_known
    assert "8 images, PrototypeClassifier" in str(unknown)
    part = estimate(vectors, labels, ids=ids, groups=[None, None, *patients[2:]])
    assert "The patients of 2 of 8 images are unknown" in part.warnings[0]
    assert estimate(vectors, labels, ids=ids, groups=patients).patients_known
    small = estimate(*task([2, 4])[:2], groups=task([2, 4])[2])
    assert any("'c0': fewer than 3 patients each" in warning for warning in small.warnings)


def test_a_transductive_head_is_warned_of() -> None:
    class Together(PrototypeClassifier):
        transductive = True

    vectors, labels, patients, ids = task([4, 4])
    found = estimate(vectors, labels, ids=ids, groups=patients, make_head=Together)
    assert any("Together decides about images together" in warning for warning in found.warnings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_folds": 1}, r"^n_folds must be a whole number of at least 2; got 1\.$"),
        ({"n_repeats": 0}, r"^n_repeats must be a whole number of at least 1; got 0\.$"),
        ({"n_repeats": True}, r"^n_repeats must be a whole number of at least 1; got True\.$"),
        ({"seed": -1}, r"^seed must be a whole number of at least 0; got -1\.$"),
    ],
)
def test_options_that_cannot_be_meant(options: dict[str, Any], message: str) -> None:
    vectors, labels, *_ = task([3, 3])
    with pytest.raises(ValueError, match=message):
        estimate(vectors, labels, **options)


def test_a_support_that_cannot_be_estimated() -> None:
    with pytest.raises(
        ValueError, match=r"^An accuracy needs at least two classes to tell apart; the comparison set has only 'c0'\.$"
    ):
        estimate(*task([5])[:2])
    with pytest.raises(ValueError, match=r"^The comparison set is empty: register at least one image before asking\.$"):
        estimate(np.empty((0, 3)), [])
    with pytest.raises(ValueError, match=r"^Support vectors must be finite; rows \[0\] hold NaN or infinity\.$"):
        estimate([[np.nan], [1.0]], ["a", "b"])


# -- advice, confusion, hard images ----------------------------------------------------------------------------------


def test_learning_curves_against_slow_loops() -> None:
    vectors, labels, patients, ids = task([4, 6, 1], spread=1.5, seed=6)
    support = Support(vectors, labels, ids=ids, groups=patients)
    curves = LearningCurves(support, lambda: NeighborClassifier(k=1), np.random.default_rng(3))
    rng, again = np.random.default_rng(2), np.random.default_rng(3)
    lost: dict[int, dict[int, list[float]]] = {0: {}, 1: {}}
    steps: dict[int, list[float]] = {0: [], 1: []}
    for fold in fit_folds(lambda: NeighborClassifier(k=1), support, deal_rounds(support, 2, rng)):
        given = ask(fold, support, fold.rows)
        curves.add(fold, given)
        for c in (0, 1):
            own = [i for i in range(11) if i not in fold.rows and labels[i] == f"c{c}"]
            staying = again.permutation(np.array(own))[: (len(own) + 1) // 2].tolist()
            kept = [i for i in range(11) if i not in fold.rows and (labels[i] != f"c{c}" or i in staying)]
            smaller = NeighborClassifier(k=1).fit(vectors[kept], [labels[i] for i in kept], ids=[ids[i] for i in kept])
            for i, answer in zip(fold.rows.tolist(), given.tolist(), strict=True):
                less = smaller.predict(vectors[i : i + 1])[0]
                change = (f"c{answer}" == labels[i]) - (str(less) == labels[i])
                lost[c].setdefault(i, []).append(float(change))
            steps[c].append(1 / len(staying) - 1 / len(own))
    rates, errors = curves.rates()
    assert np.isnan(rates[2]) and np.isnan(errors[2])
    for c in (0, 1):
        means, variance = [], 0.0
        for d in (0, 1):
            values = [np.mean(lost[c][i]) for i in range(10) if labels[i] == f"c{d}"]
            means.append(np.mean(values))
            variance += np.var(values, ddof=1) / len(values)
        step = np.mean(steps[c])
        assert rates[c] == pytest.approx(np.mean(means) / step)
        assert errors[c] == pytest.approx(np.sqrt(variance) / 2 / step)


def test_advice_joins_the_measured_rate_with_the_usual_one() -> None:
    vectors, labels, patients, ids = task([2, 5, 9], spread=2.0, seed=7)
    found = estimate(vectors, labels, ids=ids, groups=patients)
    assert [one.gain for one in found.advice] == sorted((one.gain for one in found.advice), reverse=True)
    by_label = {one.label: one for one in found.advice}
    small = by_label["c0"]
    recall = found.confusion[0]
    assert recall is not None and not small.measured and (small.patients, small.more) == (2, MORE)
    step = 1 / 2 - 1 / 5
    assert small.gain == pytest.approx(USUAL_RATE * (1 - recall[0]) / 3 * step)
    assert small.interval[1] - small.gain == pytest.approx(1.96 * GAIN_SPREAD * (step / 3) ** 0.5)
    assert by_label["c2"].measured and 0 < OWN_WEIGHT < 1
    assert Advice("a", 3, 3, 0.1, (0.05, 0.15), True).tells
    assert not Advice("a", 3, 3, 0.1, (-0.05, 0.25), True).tells
    best = found.advice[0]
    words = "would help most" if best.tells else "but the data cannot tell"
    assert str(found).splitlines()[1].startswith(f"3 more patients of {best.label}")
    assert words in str(found).splitlines()[1]


def test_more_patients_are_wanted_where_the_error_is() -> None:
    rng = np.random.default_rng(0)
    # one class in two far apart kinds, each rare; the others tight
    kinds = np.array([[1.0, 0, 0, 0], [0, 1.0, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]])
    members = [0] * 6 + [1] * 6 + [2] * 2 + [3] * 2
    labels = ["a"] * 6 + ["b"] * 6 + ["odd"] * 4
    vectors = kinds[members] + 0.35 * rng.normal(size=(16, 4))
    found = estimate(vectors, labels)
    assert found.advice[0].label == "odd"


def test_confused_classes_and_a_mislabelled_image_are_named() -> None:
    rng = np.random.default_rng(1)
    centers = {"near": [1.0, 0.1, 0], "close": [1.0, -0.1, 0], "far": [0, 0, 1.0]}
    labels = [name for name in centers for _ in range(6)]
    vectors = np.array([centers[name] for name in labels]) + 0.15 * rng.normal(size=(18, 3))
    vectors[-1] = centers["near"]
    found = estimate(vectors, labels, ids=[f"{name} {i}" for i, name in enumerate(labels)])
    assert found.most_confused is not None
    assert {found.most_confused.first, found.most_confused.second} == {"near", "close"}
    assert found.most_confused.first_as_second >= found.most_confused.second_as_first
    named = {one.id: one for one in found.hard_images}
    assert named["far 17"].right == 0 and named["far 17"].answered in ("near", "close")
    assert [one.right for one in found.hard_images] == sorted(one.right for one in found.hard_images)
    assert "| far 17 | far | 0.00 |" in found.to_markdown()


def test_plain_values_survive_json_whatever_the_labels_are() -> None:
    vectors, labels, patients, _ = task([3, 4], spread=3.0)
    for kinds in ({"c0": "a", "c1": "b|c\n"}, {"c0": 3, "c1": 7}, {"c0": ("left", 1), "c1": ("right", 2)}):
        found = estimate(vectors, [kinds[label] for label in labels], groups=patients, n_repeats=2)
        plain = found.to_dict()
        assert json.loads(json.dumps(plain, allow_nan=False)) == plain
        assert [one["label"] for one in plain["per_class"]] == [
            kind if isinstance(kind, str | int) else str(kind) for kind in kinds.values()
        ]
        lines = [line.replace("\\|", "") for line in found.to_markdown().splitlines()]
        assert {line.count("|") for line in lines if line.startswith("|")} <= {5, 7}
        assert all(line.startswith("|") or "|" not in line.replace("b|c", "") for line in lines)
        assert len(str(found).splitlines()) == 2


def test_the_example_in_the_docs_runs() -> None:
    result = doctest.testmod(fewshot.estimation)
    assert result.attempted >= 3 and result.failed == 0
