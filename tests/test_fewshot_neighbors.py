"""NeighborClassifier against scikit-learn and against slow loops."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier

import fewshot.neighbors
from fewshot import NeighborClassifier


def task(n: int = 60, d: int = 5, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=n)
    centers = rng.normal(size=(classes, d))
    vectors = (centers[labels] + rng.normal(size=(n, d))).astype(np.float32)
    return vectors, labels, rng.normal(size=(80, d)).astype(np.float32)


@pytest.mark.parametrize("k", [1, 3, 5, 60])
@pytest.mark.parametrize("weights", ["uniform", "distance"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_against_scikit_learn(k: int, weights: str, metric: str) -> None:
    vectors, labels, queries = task()
    clf = NeighborClassifier(k, weights=weights, metric=metric).fit(vectors, labels)
    if metric == "cosine":  # unit rows: then scikit-learn's Euclidean distance is the chord our votes are weighted by
        vectors, queries = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (vectors, queries))
    judge = KNeighborsClassifier(n_neighbors=k, weights=weights).fit(vectors, labels)
    shares = np.sort(judge.predict_proba(queries), axis=1)
    clear = shares[:, -1] - shares[:, -2] > 1e-6  # scikit-learn breaks ties by class, we by the nearer image
    assert clear.sum() > 40
    assert np.array_equal(clf.predict(queries)[clear], judge.predict(queries)[clear])
    if k > 1:
        decisions = clf.decide(queries)
        assert [d.score for d in decisions] == pytest.approx(shares[:, -1].tolist(), abs=1e-3)
        assert [d.margin for d in decisions] == pytest.approx((shares[:, -1] - shares[:, -2]).tolist(), abs=1e-3)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("centred", [False, True])
def test_k_1_is_the_highest_similarity_rule(metric: str, centred: bool) -> None:
    vectors, labels, queries = task()
    center = np.full(5, 0.7) if centred else np.zeros(5)
    ids = [f"i{i:02}" for i in range(len(vectors))]
    clf = NeighborClassifier(1, metric=metric, center=center if centred else None).fit(vectors, labels, ids=ids)
    for query, decision in zip(queries[:25], clf.decide(queries[:25]), strict=True):
        best, best_similarity, other = 0, -math.inf, -math.inf
        similarities = []
        for row in vectors:
            a, b = query.astype(float) - center, row.astype(float) - center
            if metric == "cosine":
                similarities.append(float(a @ b) / math.sqrt(float(a @ a) * float(b @ b)))
            else:
                similarities.append(-math.sqrt(float((a - b) @ (a - b))))
        for i, similarity in enumerate(similarities):
            if similarity > best_similarity:
                best, best_similarity = i, similarity
        other = max(s for s, label in zip(similarities, labels, strict=True) if label != labels[best])
        assert decision.label == labels[best]
        assert decision.score == pytest.approx(best_similarity, abs=1e-5)
        assert decision.margin == pytest.approx(best_similarity - other, abs=1e-5)
        assert [n.id for n in decision.evidence] == [ids[best]]
        assert decision.counter_evidence[0].id == ids[similarities.index(other)]
        assert decision.runner_up == labels[similarities.index(other)]


def test_the_runner_up_is_found_outside_of_the_k() -> None:
    vectors = [[0.0], [0.1], [0.2], [5.0], [5.5], [9.0]]
    clf = NeighborClassifier(3, weights="uniform", metric="euclidean", n_evidence=2)
    clf.fit(vectors, ["a", "a", "a", "b", "c", "b"], ids=["a1", "a2", "a3", "b1", "c1", "b2"])
    decision = clf.decide([[0.05]])[0]
    assert (decision.label, decision.runner_up) == ("a", "b")
    assert (decision.score, decision.margin) == (1.0, 1.0)
    assert [n.id for n in decision.counter_evidence] == ["b1"]
    assert decision.counter_evidence[0].similarity == pytest.approx(-4.95)
    assert decision.counter_evidence[0].label == "b"


@pytest.mark.parametrize("k", [1, 3])
def test_no_evidence_asked_for_changes_no_number(k: int) -> None:
    vectors, labels, queries = task()
    full = NeighborClassifier(k).fit(vectors, labels).decide(queries)
    bare = NeighborClassifier(k, n_evidence=0).fit(vectors, labels).decide(queries)
    assert [(d.label, d.score, d.margin, d.runner_up) for d in bare] == [
        (d.label, d.score, d.margin, d.runner_up) for d in full
    ]
    assert all(d.evidence == () and d.counter_evidence == () for d in bare)


def test_an_identical_image_decides_alone() -> None:
    clf = NeighborClassifier(3).fit([[1.0, 0.0], [0.9, 0.1], [0.9, 0.1001]], ["a", "b", "b"])
    decision = clf.decide([[2.0, 0.0]])[0]
    assert (decision.label, decision.score, decision.margin) == ("a", 1.0, 1.0)
    uniform = NeighborClassifier(3, weights="uniform").fit([[1.0, 0.0], [0.9, 0.1], [0.9, 0.1001]], ["a", "b", "b"])
    assert uniform.predict([[2.0, 0.0]]).tolist() == ["b"]


def test_equal_shares_go_to_the_class_of_the_nearer_image() -> None:
    clf = NeighborClassifier(2, weights="uniform", metric="euclidean").fit([[0.0], [1.0]], ["z", "a"])
    assert clf.predict([[0.4]]).tolist() == ["z"]
    assert clf.predict([[0.6]]).tolist() == ["a"]


def test_equal_similarities_go_by_id() -> None:
    twice = [[1.0, 1.0], [1.0, 1.0]]
    assert NeighborClassifier(1).fit(twice, ["z", "a"], ids=["1", "2"]).predict([[1.0, 0.0]]).tolist() == ["z"]
    assert NeighborClassifier(1).fit(twice, ["z", "a"], ids=["2", "1"]).predict([[1.0, 0.0]]).tolist() == ["a"]


def test_fewer_images_than_k_all_vote() -> None:
    decision = (
        NeighborClassifier(50, weights="uniform")
        .fit([[1.0, 0.0], [0.0, 1.0], [0.1, 1.0]], "abb")
        .decide([[1.0, 0.2]])[0]
    )
    assert (decision.label, decision.score) == ("b", pytest.approx(2 / 3))


def test_a_single_class_has_no_runner_up() -> None:
    for k in (1, 5):
        decision = NeighborClassifier(k).fit([[1.0, 0.0], [1.0, 1.0]], ["only", "only"]).decide([[0.5, 0.5]])[0]
        assert (decision.label, decision.margin, decision.runner_up) == ("only", None, None)
        assert decision.counter_evidence == ()


@given(seed=st.integers(0, 9999), k=st.sampled_from([1, 3, 5]), weights=st.sampled_from(["uniform", "distance"]))
@settings(max_examples=25, deadline=None)
def test_order_of_registration_and_company_change_no_bit(seed: int, k: int, weights: str) -> None:
    vectors, labels, queries = task(n=25, seed=seed)
    queries = queries[:6]
    ids = [f"i{i}" for i in range(25)]
    order = np.random.default_rng(seed).permutation(25)
    clf = NeighborClassifier(k, weights=weights).fit(vectors, labels, ids=ids)
    other = NeighborClassifier(k, weights=weights).fit(vectors[order], labels[order], ids=[ids[i] for i in order])
    together = clf.decide(queries)
    assert other.decide(queries) == together
    assert [clf.decide(query[None])[0] for query in queries] == together
    assert clf.predict(queries).tolist() == [d.label for d in together]


@pytest.mark.parametrize("labels", [["b", "a"], [7, 3], [("right", 2), ("left", 1)]])
def test_labels_come_back_as_they_were_given(labels: list[object]) -> None:
    clf = NeighborClassifier(1).fit([[1.0, 0.0], [0.0, 1.0]], labels)
    answers = [d.label for d in clf.decide([[1.0, 0.1], [0.1, 1.0]])]
    assert answers == labels == list(clf.predict([[1.0, 0.1], [0.1, 1.0]]))
    assert [type(answer) for answer in answers] == [type(label) for label in labels]


def test_nothing_is_decided_about_a_broken_query() -> None:
    clf = NeighborClassifier(1).fit([[1.0, 0.0], [0.0, 1.0]], ["a", "b"])
    queries = [[1.0, 0.1], [np.nan, 0.0], [0.1, 1.0], [0.0, 0.0], [np.inf, 1.0]]
    assert clf.predict(queries).tolist() == ["a", None, "b", None, None]
    decisions = clf.decide(queries)
    assert [d.label for d in decisions] == ["a", None, "b", None, None]
    assert "NaN or infinity" in str(decisions[1].reason) and "no direction" in str(decisions[3].reason)
    assert clf.predict([[np.nan, 0.0]]).tolist() == [None]
    assert clf.decide(np.empty((0, 2))) == [] and clf.predict(np.empty((0, 2))).shape == (0,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, r"^k must be a whole number of at least 1; got 0\.$"),
        ({"k": 2.5}, r"^k must be a whole number of at least 1; got 2\.5\.$"),
        ({"k": True}, r"^k must be a whole number of at least 1; got True\.$"),
        ({"weights": "rank"}, r"^weights must be one of uniform, distance; got 'rank'\.$"),
        ({"metric": "dot"}, r"^metric must be 'cosine' or 'euclidean'; got 'dot'\.$"),
        ({"n_evidence": 1.5}, r"^n_evidence must be a whole number of at least 0; got 1\.5\.$"),
    ],
)
def test_errors_of_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        NeighborClassifier(**options).fit([[1.0, 0.0]], ["a"])


def test_errors_of_asking() -> None:
    with pytest.raises(ValueError, match=r"^This NeighborClassifier has no support yet: call fit first\.$"):
        NeighborClassifier().decide([[1.0]])
    with pytest.raises(ValueError, match=r"^The comparison set is empty: register at least one image before asking\.$"):
        NeighborClassifier().fit(np.empty((0, 3)), [])
    clf = NeighborClassifier().fit([[1.0, 0.0]], ["a"])
    with pytest.raises(ValueError, match=r"^Query vectors have 1 dimensions, the comparison set has 2"):
        clf.predict([[1.0]])


def test_the_example_in_the_docs_runs() -> None:
    result = doctest.testmod(fewshot.neighbors)
    assert result.attempted >= 2 and result.failed == 0
