"""SiameseClassifier against slow loops, and against the nearest neighbour that it is without a learnt comparison."""

from __future__ import annotations

import doctest
import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fewshot.siamese
from embeddings import SimilarityHead
from fewshot import NeighborClassifier
from fewshot.siamese import SiameseClassifier


def task(n: int = 40, d: int = 5, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), rng.integers(classes, size=n - classes)])
    centers = rng.normal(size=(classes, d))
    vectors = (centers[labels] + rng.normal(size=(n, d))).astype(np.float32)
    return vectors, labels, rng.normal(size=(30, d)).astype(np.float32)


def learnt(d: int = 5, *, unit_length: bool = True, bias: float = 2.0, seed: int = 1) -> SimilarityHead:
    weight = np.random.default_rng(seed).normal(-1.5, 1.0, size=d).astype(np.float32)
    tensors = {"weight": weight, "bias": np.array([bias], dtype=np.float32)}
    return SimilarityHead("weighted-l1", {"unit_length": unit_length}, tensors)


@pytest.mark.parametrize("unit_length", [False, True])
def test_learnt_scores_and_decisions_against_slow_loops(unit_length: bool) -> None:
    vectors, labels, queries = task()
    head = learnt(unit_length=unit_length)
    ids = [f"i{i:02}" for i in range(len(vectors))]
    clf = SiameseClassifier(similarity=head, center=np.full(5, 3.0), n_evidence=3).fit(vectors, labels, ids=ids)
    scores, decisions = clf.scores(queries), clf.decide(queries)
    assert clf.predict(queries).tolist() == [d.label for d in decisions]
    for query, row, decision in zip(queries.astype(float).tolist(), scores, decisions, strict=True):
        chances = []
        for other in vectors.astype(float).tolist():
            long, long_other = (math.hypot(*query), math.hypot(*other)) if unit_length else (1.0, 1.0)
            odds = float(head.tensors["bias"][0])
            for w, x, y in zip(head.tensors["weight"].tolist(), query, other, strict=True):
                odds += w * abs(x / long - y / long_other)
            chances.append(1 / (1 + math.exp(-odds)))
        best = [max(p for p, label in zip(chances, labels, strict=True) if label == c) for c in range(4)]
        assert row.tolist() == pytest.approx(best, rel=1e-9)
        order = sorted(range(4), key=lambda c, best=best: -best[c])
        assert (decision.label, decision.runner_up) == (order[0], order[1])
        assert decision.score == pytest.approx(best[order[0]], rel=1e-9) and 0 <= decision.score <= 1
        assert decision.margin == pytest.approx(best[order[0]] - best[order[1]], abs=1e-9)
        assert decision.probability is None
        for named, winner in ((decision.evidence, order[0]), (decision.counter_evidence, order[1])):
            own = sorted((i for i in range(40) if labels[i] == winner), key=lambda i: -chances[i])[:3]
            assert [n.id for n in named] == [ids[i] for i in own]
            assert [n.similarity for n in named] == pytest.approx([chances[i] for i in own], rel=1e-9)
            assert {n.label for n in named} == {winner}


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("centred", [False, True])
def test_without_a_learnt_comparison_it_is_the_nearest_neighbour(metric: str, centred: bool) -> None:
    vectors, labels, queries = task()
    center = np.full(5, 0.7) if centred else None
    ids = [f"i{i:02}" for i in range(len(vectors))]
    own = SiameseClassifier(metric=metric, center=center).fit(vectors, labels, ids=ids)
    judge = NeighborClassifier(1, metric=metric, center=center).fit(vectors, labels, ids=ids)
    assert own.predict(queries).tolist() == judge.predict(queries).tolist()
    for mine, theirs in zip(own.decide(queries), judge.decide(queries), strict=True):
        assert (mine.label, mine.runner_up) == (theirs.label, theirs.runner_up)
        assert mine.score == pytest.approx(theirs.score, abs=1e-5)
        assert mine.margin == pytest.approx(theirs.margin, abs=1e-5)
        assert mine.evidence[0].id == theirs.evidence[0].id
        assert mine.evidence[0].similarity == pytest.approx(mine.score, abs=1e-12)
        assert mine.counter_evidence[0].id == theirs.counter_evidence[0].id
        assert mine.counter_evidence[0].similarity == pytest.approx(mine.score - mine.margin, abs=1e-12)
        similarities = [n.similarity for n in mine.evidence]
        assert len(similarities) == 5 and similarities == sorted(similarities, reverse=True)


def test_classes_are_ranked_by_log_odds_where_probabilities_are_rounded_to_1() -> None:
    head = SimilarityHead("weighted-l1", {}, {"weight": np.array([-1.0]), "bias": np.array([60.0])})
    clf = SiameseClassifier(similarity=head).fit([[9.0], [2.0], [1.5]], ["a", "b", "b"], ids=["x", "y", "z"])
    decision = clf.decide([[0.0]])[0]
    assert (decision.label, decision.score, decision.margin) == ("b", 1.0, 0.0)
    assert [n.id for n in decision.evidence] == ["z", "y"]
    assert clf.predict([[0.0]]).tolist() == ["b"]
    far = SiameseClassifier(similarity=head).fit([[5000.0], [4000.0]], ["a", "b"])
    assert far.decide([[0.0]])[0].label == "b" and far.scores([[0.0]]).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("similarity", [None, learnt(2)])
def test_equal_scores_go_to_the_first_class_and_equal_images_by_id(similarity: SimilarityHead | None) -> None:
    twice = [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]]
    clf = SiameseClassifier(similarity=similarity).fit(twice, ["z", "a", "a"], ids=["1", "3", "2"])
    decision = clf.decide([[1.0, 0.2]])[0]
    assert (decision.label, decision.runner_up, decision.margin) == ("a", "z", 0.0)
    assert [n.id for n in decision.evidence] == ["2", "3"]


@given(seed=st.integers(0, 9999), kind=st.sampled_from(["cosine", "euclidean", "learnt"]))
@settings(max_examples=25, deadline=None)
def test_order_of_registration_and_company_change_no_bit(seed: int, kind: str) -> None:
    vectors, labels, queries = task(n=25, d=19, seed=seed)
    queries = queries[:6]
    ids = [f"i{i}" for i in range(25)]
    order = np.random.default_rng(seed).permutation(25)
    options = {"similarity": learnt(19)} if kind == "learnt" else {"metric": kind}
    clf = SiameseClassifier(**options).fit(vectors, labels, ids=ids)
    other = SiameseClassifier(**options).fit(vectors[order], labels[order], ids=[ids[i] for i in order])
    together = clf.decide(queries)
    assert other.decide(queries) == together
    assert [clf.decide(query[None])[0] for query in queries] == together
    assert clf.predict(queries).tolist() == [d.label for d in together]


@pytest.mark.parametrize("kind", ["cosine", "euclidean", "learnt"])
def test_blocks_change_no_bit_and_bound_the_memory(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels, queries = task(n=300, d=40)
    queries = np.concatenate([queries] * 10)
    options = {"similarity": learnt(40)} if kind == "learnt" else {"metric": kind}
    clf = SiameseClassifier(**options).fit(vectors, labels)
    whole = clf.scores(queries)
    for elements in (300 * 40 * 7, 40 * 11):  # 7 queries against all images, one query against 11 of them
        monkeypatch.setattr(fewshot.siamese, "CHUNK_ELEMENTS", elements)
        assert np.array_equal(clf.scores(queries), whole)
    tracemalloc.start()
    clf.scores(queries)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6  # all at once would be 300 x 300 x 40 float64, 29 MB


def test_a_single_class_has_no_runner_up() -> None:
    for similarity in (None, learnt(2)):
        clf = SiameseClassifier(similarity=similarity).fit([[1.0, 0.0], [1.0, 1.0]], ["only", "only"])
        decision = clf.decide([[0.5, 0.5]])[0]
        assert (decision.label, decision.margin, decision.runner_up) == ("only", None, None)
        assert len(decision.evidence) == 2 and decision.counter_evidence == ()


def test_no_evidence_asked_for_changes_no_number() -> None:
    vectors, labels, queries = task()
    for similarity in (None, learnt()):
        full = SiameseClassifier(similarity=similarity).fit(vectors, labels).decide(queries)
        bare = SiameseClassifier(similarity=similarity, n_evidence=0).fit(vectors, labels).decide(queries)
        assert [(d.label, d.score, d.margin) for d in bare] == [(d.label, d.score, d.margin) for d in full]
        assert all(d.evidence == () and d.counter_evidence == () for d in bare)


@pytest.mark.parametrize("labels", [["b", "a"], [7, 3], [("right", 2), ("left", 1)]])
def test_labels_come_back_as_they_were_given(labels: list[object]) -> None:
    clf = SiameseClassifier(similarity=learnt(2)).fit([[1.0, 0.0], [0.0, 1.0]], labels)
    answers = [d.label for d in clf.decide([[1.0, 0.1], [0.1, 1.0]])]
    assert answers == list(clf.predict([[1.0, 0.1], [0.1, 1.0]]))
    assert {type(answer) for answer in answers} == {type(labels[0])} and set(answers) <= set(labels)


@pytest.mark.parametrize(
    ("options", "zero_is_refused"),
    [
        ({}, True),
        ({"metric": "euclidean"}, False),
        ({"similarity": learnt(2)}, True),
        ({"similarity": learnt(2, unit_length=False)}, False),
    ],
)
def test_nothing_is_decided_about_a_broken_query(options: dict[str, object], zero_is_refused: bool) -> None:
    clf = SiameseClassifier(**options).fit([[1.0, 0.0], [0.0, 1.0]], ["a", "b"])
    queries = [[1.0, 0.1], [np.nan, 0.0], [0.0, 0.0], [np.inf, 1.0]]
    decisions = clf.decide(queries)
    assert [d.label is None for d in decisions] == [False, True, zero_is_refused, True]
    assert "NaN or infinity" in str(decisions[1].reason)
    if zero_is_refused:
        assert "no direction" in str(decisions[2].reason)
    assert clf.predict(queries).tolist() == [d.label for d in decisions]
    assert np.isnan(clf.scores(queries)).any(axis=1).tolist() == [False, True, zero_is_refused, True]
    assert clf.decide(np.empty((0, 2))) == [] and clf.predict(np.empty((0, 2))).shape == (0,)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (
            SimilarityHead("attention", {"temperature": 0.1}),
            r"^SiameseClassifier computes with the learnt comparison 'weighted-l1' or, given similarity=None, with "
            r"none; got 'attention'\.$",
        ),
        (
            learnt(3),
            r"^The comparison 'weighted-l1' has weights of shape \(3,\), the comparison set has 2 dimensions: "
            r"were both made by the same encoder\?$",
        ),
        (
            SimilarityHead("weighted-l1", {}, {"weight": np.ones(2, np.float32)}),
            r"^The comparison 'weighted-l1' needs the tensors weight and bias; bias is missing\.$",
        ),
        (
            SimilarityHead("weighted-l1", {}, {"weight": np.ones(2), "bias": np.ones(2)}),
            r"^The comparison 'weighted-l1' needs one bias; got an array of shape \(2,\)\.$",
        ),
        (
            learnt(2, bias=math.nan),
            r"^The comparison 'weighted-l1' must have finite weights; they hold NaN or infinity\.$",
        ),
    ],
)
def test_errors_of_a_learnt_comparison(head: SimilarityHead, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SiameseClassifier(similarity=head).fit([[1.0, 0.0], [0.0, 1.0]], ["a", "b"])


def test_errors_of_fitting_and_asking() -> None:
    with pytest.raises(ValueError, match=r"^metric must be 'cosine' or 'euclidean'; got 'dot'\.$"):
        SiameseClassifier(metric="dot").fit([[1.0]], ["a"])
    with pytest.raises(ValueError, match=r"^n_evidence must be a whole number of at least 0; got 1\.5\.$"):
        SiameseClassifier(n_evidence=1.5).fit([[1.0]], ["a"])
    with pytest.raises(ValueError, match=r"^This SiameseClassifier has no support yet: call fit first\.$"):
        SiameseClassifier().decide([[1.0]])
    with pytest.raises(ValueError, match=r"^The comparison set is empty: register at least one image before asking\.$"):
        SiameseClassifier().fit(np.empty((0, 3)), [])
    with pytest.raises(ValueError, match=r"^Query vectors have 1 dimensions, the comparison set has 2"):
        SiameseClassifier().fit([[1.0, 0.0]], ["a"]).predict([[1.0]])


def test_the_example_in_the_docs_runs() -> None:
    result = doctest.testmod(fewshot.siamese)
    assert result.attempted >= 3 and result.failed == 0
