"""PrototypeClassifier against slow loops, and what a comparison set relies on."""

from __future__ import annotations

import doctest
import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fewshot.prototypes
from episodes import Decision
from fewshot import PrototypeClassifier


def task(
    n: int = 24, d: int = 6, classes: int = 3, patients: int = 9, seed: int = 0
) -> tuple[np.ndarray, list[str], list[str], list[str]]:
    rng = np.random.default_rng(seed)
    labels = [f"class {i % classes}" for i in range(n)]
    groups = [f"p{rng.integers(patients)}" for _ in range(n)]
    return rng.normal(size=(n, d)).astype(np.float32), labels, [f"image {i:03}" for i in range(n)], groups


def slow_scores(
    vectors: np.ndarray,
    labels: Sequence[str],
    groups: Sequence[str],
    query: np.ndarray,
    *,
    metric: str,
    center: np.ndarray,
) -> dict[str, float]:
    """Prototypes the way the paper's algorithm reads, one number at a time; a patient counts once."""

    def moved(row: np.ndarray) -> list[float]:
        values = [float(x) - float(c) for x, c in zip(row, center, strict=True)]
        if metric == "cosine":
            length = math.sqrt(sum(x * x for x in values))
            values = [x / length for x in values]
        return values

    def mean(rows: list[list[float]]) -> list[float]:
        return [sum(column) / len(rows) for column in zip(*rows, strict=True)]

    of: dict[str, dict[str, list[list[float]]]] = defaultdict(lambda: defaultdict(list))
    for row, label, group in zip(vectors, labels, groups, strict=True):
        of[label][group].append(moved(row))
    asked, scores = moved(query), {}
    for label, patients in of.items():
        prototype = mean([mean(rows) for rows in patients.values()])
        if metric == "cosine":
            length = math.sqrt(sum(x * x for x in prototype))
            scores[label] = sum(a * b for a, b in zip(asked, prototype, strict=True)) / length
        else:
            scores[label] = -sum((a - b) ** 2 for a, b in zip(asked, prototype, strict=True))
    return scores


def bits(decisions: list[Decision]) -> list[str]:
    """Every number of every decision, to the bit."""
    return [
        repr((d.label, d.runner_up, d.score and d.score.hex(), d.margin and d.margin.hex(), d.evidence))
        + repr(d.counter_evidence)
        for d in decisions
    ]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("centred", [False, True])
def test_against_a_slow_loop(metric: str, centred: bool) -> None:
    vectors, labels, ids, groups = task()
    center = np.random.default_rng(5).normal(size=6) if centred else np.zeros(6)
    queries = np.random.default_rng(9).normal(size=(40, 6)).astype(np.float32)
    clf = PrototypeClassifier(metric=metric, center=center if centred else None)
    assert clf.fit(vectors, labels, ids=ids, groups=groups) is clf
    scores, predicted, decided = clf.scores(queries), clf.predict(queries), clf.decide(queries)
    for i, query in enumerate(queries):
        expected = slow_scores(vectors, labels, groups, query, metric=metric, center=center)
        assert scores[i].tolist() == pytest.approx([expected[label] for label in clf.classes_], abs=1e-12)
        ranked = sorted(expected, key=lambda label: -expected[label])
        assert predicted[i] == decided[i].label == ranked[0]
        assert decided[i].runner_up == ranked[1]
        assert decided[i].score == pytest.approx(expected[ranked[0]])
        assert decided[i].margin == pytest.approx(expected[ranked[0]] - expected[ranked[1]])
        assert decided[i].probability is None and decided[i].reason is None


def test_the_centre_matters_to_the_cosine_only() -> None:
    vectors, labels, _, _ = task()
    queries = np.random.default_rng(3).normal(size=(50, 6)).astype(np.float32)
    center = np.full(6, 3.0)
    with_centre = PrototypeClassifier(center=center).fit(vectors, labels).predict(queries).tolist()
    assert with_centre != PrototypeClassifier().fit(vectors, labels).predict(queries).tolist()
    plain = PrototypeClassifier(metric="euclidean").fit(vectors, labels).scores(queries)
    moved = PrototypeClassifier(metric="euclidean", center=center).fit(vectors, labels).scores(queries)
    assert moved == pytest.approx(plain)


def test_a_patient_counts_once_however_many_images_it_has() -> None:
    many = [[1.0, 0.0]] * 9 + [[0.0, 1.0], [-1.0, -1.0]]
    labels = ["a"] * 10 + ["b"]
    groups = ["p"] * 9 + ["q", "r"]
    by_patient = PrototypeClassifier(metric="euclidean").fit(many, labels, groups=groups)
    assert by_patient.prototypes_[0].tolist() == [0.5, 0.5]
    by_image = PrototypeClassifier(metric="euclidean").fit(many, labels)
    assert by_image.prototypes_[0].tolist() == pytest.approx([0.9, 0.1])
    unknown = PrototypeClassifier(metric="euclidean").fit(many, labels, groups=[None] * 11)
    assert np.array_equal(unknown.prototypes_, by_image.prototypes_)


@given(seed=st.integers(0, 10_000), metric=st.sampled_from(["cosine", "euclidean"]), d=st.integers(2, 200))
@settings(max_examples=40, deadline=None)
def test_order_of_registration_and_company_change_no_bit(seed: int, metric: str, d: int) -> None:
    vectors, labels, ids, groups = task(d=d, seed=seed)
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(7, d)).astype(np.float32)
    clf = PrototypeClassifier(metric=metric).fit(vectors, labels, ids=ids, groups=groups)
    order = rng.permutation(len(ids))
    other = PrototypeClassifier(metric=metric).fit(
        vectors[order], [labels[i] for i in order], ids=[ids[i] for i in order], groups=[groups[i] for i in order]
    )
    together = clf.decide(queries)
    assert bits(other.decide(queries)) == bits(together)
    assert bits([clf.decide(row[None])[0] for row in queries]) == bits(together)
    assert bits(clf.decide(np.asfortranarray(queries))) == bits(together)
    assert bits(clf.decide(np.asfortranarray(queries)[::-1])[::-1]) == bits(together)


@given(seed=st.integers(0, 10_000), metric=st.sampled_from(["cosine", "euclidean"]))
@settings(max_examples=30, deadline=None)
def test_removing_equals_never_having_had(seed: int, metric: str) -> None:
    vectors, labels, ids, groups = task(seed=seed, n=30)
    queries = np.random.default_rng(seed).normal(size=(5, 6)).astype(np.float32)
    keep = [i for i, group in enumerate(groups) if group != "p3"]
    never = PrototypeClassifier(metric=metric).fit(
        vectors[keep], [labels[i] for i in keep], ids=[ids[i] for i in keep], groups=[groups[i] for i in keep]
    )
    clf = PrototypeClassifier(metric=metric).fit(vectors, labels, ids=ids, groups=groups)
    clf.fit(vectors[keep], [labels[i] for i in keep], ids=[ids[i] for i in keep], groups=[groups[i] for i in keep])
    assert bits(clf.decide(queries)) == bits(never.decide(queries))


def test_evidence_is_the_nearest_images_of_winner_and_runner_up() -> None:
    vectors, labels, ids, groups = task()
    clf = PrototypeClassifier(n_evidence=3).fit(vectors, labels, ids=ids, groups=groups)
    query = np.random.default_rng(1).normal(size=(1, 6)).astype(np.float32)
    decision = clf.decide(query)[0]
    for found, label in ((decision.evidence, decision.label), (decision.counter_evidence, decision.runner_up)):
        cosines = {
            name: float(row @ query[0] / np.linalg.norm(row) / np.linalg.norm(query[0]))
            for name, row, own in zip(ids, vectors, labels, strict=True)
            if own == label
        }
        assert [n.id for n in found] == sorted(cosines, key=lambda name: -cosines[name])[:3]
        assert [n.similarity for n in found] == pytest.approx(sorted(cosines.values(), reverse=True)[:3], abs=1e-6)
        assert {n.label for n in found} == {label}
    assert PrototypeClassifier(n_evidence=0).fit(vectors, labels).decide(query)[0].evidence == ()


@pytest.mark.parametrize("labels", [["b", "a"], [7, 3], [("right", 2), ("left", 1)], [True, False], ["a", 1]])
def test_labels_come_back_as_they_were_given(labels: list[object]) -> None:
    clf = PrototypeClassifier().fit([[1.0, 0.0], [0.0, 1.0]], labels)
    answers = [d.label for d in clf.decide([[1.0, 0.1], [0.1, 1.0]])]
    assert answers == labels
    assert [type(answer) for answer in answers] == [type(label) for label in labels]
    assert list(clf.predict([[1.0, 0.1], [0.1, 1.0]])) == labels


def test_labels_out_of_an_array_come_back_plain() -> None:
    clf = PrototypeClassifier().fit([[1.0, 0.0], [0.0, 1.0]], np.array([5, 9]), groups=np.array(["p", "q"]))
    label = clf.decide([[1.0, 0.1]])[0].label
    assert label == 5 and type(label) is int


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_nothing_is_decided_about_a_broken_query(bad: float, metric: str) -> None:
    clf = PrototypeClassifier(metric=metric).fit([[1.0, 0.0], [0.0, 1.0]], [1, 2])
    queries = [[1.0, 0.1], [bad, 0.0], [0.1, 1.0]]
    assert clf.predict(queries).tolist() == [1, None, 2]
    broken = clf.decide(queries)[1]
    assert (broken.label, broken.score, broken.margin, broken.evidence) == (None, None, None, ())
    assert broken.reason == "The query vector holds NaN or infinity: the image could not be embedded."
    assert np.isnan(clf.scores(queries)[1]).all()
    assert bits(clf.decide(queries)[::2]) == bits(clf.decide([queries[0], queries[2]]))


def test_a_query_without_direction_gets_no_arbitrary_label() -> None:
    clf = PrototypeClassifier(center=[1.0, 1.0]).fit([[2.0, 1.0], [1.0, 2.0]], ["a", "b"])
    decision = clf.decide([[1.0, 1.0]])[0]
    assert decision.label is None and "no direction" in str(decision.reason)
    assert clf.predict([[1.0, 1.0]]).tolist() == [None]
    euclidean = PrototypeClassifier(metric="euclidean").fit([[1.0, 0.0], [5.0, 1.0]], ["a", "b"])
    assert euclidean.predict([[0.0, 0.0]]).tolist() == ["a"]


def test_a_single_class_has_no_runner_up() -> None:
    decision = PrototypeClassifier().fit([[1.0, 0.0]], ["only"]).decide([[0.5, 0.5]])[0]
    assert (decision.label, decision.margin, decision.runner_up, decision.counter_evidence) == ("only", None, None, ())
    assert decision.score == pytest.approx(math.sqrt(0.5))


def test_a_tie_goes_to_the_first_class() -> None:
    clf = PrototypeClassifier().fit([[0.0, 1.0], [1.0, 0.0]], ["b", "a"])
    assert clf.predict([[1.0, 1.0]]).tolist() == ["a"]
    decision = clf.decide([[1.0, 1.0]])[0]
    assert (decision.label, decision.runner_up, decision.margin) == ("a", "b", 0.0)


def test_no_queries_no_answers() -> None:
    clf = PrototypeClassifier().fit([[0.0, 1.0], [1.0, 0.0]], ["b", "a"])
    assert clf.decide(np.empty((0, 2))) == []
    assert clf.predict(np.empty((0, 2))).shape == (0,)


def test_the_constructor_only_stores() -> None:
    clf = PrototypeClassifier(metric="nonsense", n_evidence=-1)
    assert (clf.metric, clf.center, clf.n_evidence) == ("nonsense", None, -1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "manhattan"}, r"^metric must be 'cosine' or 'euclidean'; got 'manhattan'\.$"),
        ({"center": [1.0]}, r"^The centre must have shape \(2,\) like the vectors; got \(1,\)\.$"),
        ({"center": [1.0, np.nan]}, r"^The centre must be finite; it holds NaN or infinity\.$"),
        ({"n_evidence": -1}, r"^n_evidence must be a whole number of at least 0; got -1\.$"),
    ],
)
def test_errors_of_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PrototypeClassifier(**options).fit([[1.0, 0.0]], ["a"])


def test_errors_of_asking() -> None:
    with pytest.raises(ValueError, match=r"^This PrototypeClassifier has no support yet: call fit first\.$"):
        PrototypeClassifier().predict([[1.0]])
    clf = PrototypeClassifier().fit([[1.0, 0.0]], ["a"])
    message = r"^Query vectors have 3 dimensions, the comparison set has 2: were both made by the same encoder\?$"
    for ask in (clf.predict, clf.decide, clf.scores):
        with pytest.raises(ValueError, match=message):
            ask([[1.0, 2.0, 3.0]])
        with pytest.raises(ValueError, match=r"^Query vectors must be rows of shape \(n, d\)"):
            ask([1.0, 2.0])


def test_the_example_in_the_docs_runs() -> None:
    result = doctest.testmod(fewshot.prototypes)
    assert result.attempted >= 2 and result.failed == 0
