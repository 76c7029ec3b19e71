"""LabelClassifier: one two-class problem per finding, nothing made of what is not known."""

from __future__ import annotations

import doctest
import warnings

import numpy as np
import pytest

import fewshot.label_heads
from embeddings.source_statistics import SourceStatistics
from fewshot import LabelPrototypeClassifier, NeighborClassifier, PrototypeClassifier
from fewshot.distribution_calibration import DistributionCalibratedClassifier
from fewshot.gaussian import GaussianClassifier
from fewshot.label_heads import LabelClassifier
from fewshot.linear import LinearProbe, RidgeClassifier
from fewshot.soft_kmeans import SoftKMeansClassifier
from fewshot.svm import SupportVectorClassifier

SOURCE = SourceStatistics(np.eye(3, 6), np.ones((3, 6)), [9, 9, 9])
HEADS = {
    "prototypes": PrototypeClassifier(),
    "neighbors": NeighborClassifier(99),  # everybody votes
    "linear": LinearProbe(),
    "ridge": RidgeClassifier(),
    "svm": SupportVectorClassifier(),
    "gaussian": GaussianClassifier(),
    "distribution-calibrated": DistributionCalibratedClassifier(SOURCE),
    "soft-k-means": SoftKMeansClassifier(),
}
EVERY = pytest.mark.parametrize("name", HEADS)


def task(seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str], list[str], np.ndarray]:
    """Two findings with some labels unknown, and a third that nobody is known to lack."""
    rng = np.random.default_rng(seed)
    table = np.array([[i % 2, i % 3 == 0, 1 if i < 5 else np.nan] for i in range(18)], dtype=float)
    vectors = (rng.normal(size=(18, 6)) + 3 * np.nan_to_num(table) @ np.eye(3, 6)).astype(np.float32)
    table[[2, 7], 0] = np.nan
    table[[0, 5], 1] = np.nan
    ids, groups = [f"i{i:02}" for i in rng.permutation(18)], [f"p{i // 2}" for i in range(18)]
    return vectors, table, ids, groups, rng.normal(size=(8, 6)).astype(np.float32)


@EVERY
def test_each_finding_is_a_problem_of_its_own(name: str) -> None:
    vectors, table, ids, groups, queries = task()
    head = HEADS[name]
    clf = LabelClassifier(head)
    assert clf.fit(vectors, table, ids=ids, groups=groups) is clf
    scores = clf.decision_function(queries)
    assert scores.shape == (8, 3) and clf.has_negative_.tolist() == [True, True, False]
    for label in (0, 1):
        rows = [i for i in range(18) if not np.isnan(table[i, label])]
        own = type(head)(**{k: v for k, v in vars(head).items() if k[0] != "_" and k[-1] != "_"}).fit(
            vectors[rows],
            ["present" if table[i, label] == 1 else "absent" for i in rows],
            ids=[ids[i] for i in rows],
            groups=[groups[i] for i in rows],
        )
        assert own.classes_.tolist() == ["absent", "present"]
        found = own.scores(queries)
        assert np.array_equal(scores[:, label], found[:, 1] - found[:, 0])
    assert not hasattr(head, "classes_")  # it was copied, not fitted
    assert clf.transductive is (name == "soft-k-means")


def test_with_prototypes_it_is_the_label_prototypes() -> None:
    vectors, table, ids, groups, queries = task()
    center = np.full(6, 0.3)
    for metric in ("cosine", "euclidean"):
        judge = LabelPrototypeClassifier(metric=metric, center=center).fit(vectors, table, ids=ids, groups=groups)
        clf = LabelClassifier(PrototypeClassifier(metric=metric, center=center))
        found = clf.fit(vectors, table, ids=ids, groups=groups).decision_function(queries)
        learnt = 3 if metric == "cosine" else 2  # without negatives it is the cosine, whatever the head
        assert found[:, :learnt] == pytest.approx(judge.decision_function(queries)[:, :learnt])
        assert clf.has_negative_.tolist() == judge.has_negative_.tolist()


@EVERY
def test_without_negatives_it_is_the_closeness_to_the_positives(name: str) -> None:
    vectors, table, ids, groups, queries = task()
    clf = LabelClassifier(HEADS[name]).fit(vectors, table, ids=ids, groups=groups)
    judge = LabelPrototypeClassifier().fit(vectors, table, ids=ids, groups=groups)
    assert clf.decision_function(queries)[:, 2] == pytest.approx(judge.decision_function(queries)[:, 2])


@EVERY
def test_not_mentioned_is_neither_present_nor_absent(name: str) -> None:
    vectors, table, ids, groups, queries = task()
    full = LabelClassifier(HEADS[name]).fit(vectors, table, ids=ids, groups=groups).decision_function(queries)
    kept = [i for i in range(18) if i != 7]  # not mentioned for the first finding, known for the second
    without = LabelClassifier(HEADS[name]).fit(
        vectors[kept], table[kept], ids=[ids[i] for i in kept], groups=[groups[i] for i in kept]
    )
    assert np.array_equal(without.decision_function(queries)[:, 0], full[:, 0])
    for state in (0.0, 1.0):
        known = table.copy()
        known[7, 0] = state
        other = LabelClassifier(HEADS[name]).fit(vectors, known, ids=ids, groups=groups).decision_function(queries)
        assert not np.array_equal(other[:, 0], full[:, 0]) and np.array_equal(other[:, 1], full[:, 1])


@EVERY
def test_the_order_of_registration_changes_no_bit(name: str) -> None:
    vectors, table, ids, groups, queries = task()
    one = LabelClassifier(HEADS[name]).fit(vectors, table, ids=ids, groups=groups).decision_function(queries)
    order = np.random.default_rng(3).permutation(18)
    two = LabelClassifier(HEADS[name]).fit(
        vectors[order], table[order], ids=[ids[i] for i in order], groups=[groups[i] for i in order]
    )
    assert np.array_equal(two.decision_function(queries), one)


@EVERY
def test_present_scores_above_absent(name: str) -> None:
    vectors, table, _, _, _ = task()
    scores = LabelClassifier(HEADS[name]).fit(vectors, table).decision_function(np.eye(3, 6) * 4 - 1)
    assert scores[0, 0] == scores[:, 0].max() and scores[1, 1] == scores[:, 1].max()


def test_what_cannot_be_scored_has_no_score() -> None:
    vectors, table, _, _, _ = task()
    clf = LabelClassifier(RidgeClassifier(center=np.ones(6))).fit(vectors, table)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scores = clf.decision_function(np.stack([np.full(6, np.nan), np.ones(6), np.arange(6)]))
    assert np.isnan(scores[:2]).all() and np.isfinite(scores[2]).all()
    assert clf.decision_function(np.empty((0, 6))).shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": np.zeros((0, 6)), "label_matrix": np.zeros((0, 1))}, "^The support is empty: it needs at least"),
        ({"vectors": np.full((18, 6), np.nan)}, r"^Support vectors must be finite; rows \[0, 1, 2, 3, 4\] hold NaN"),
        ({"label_matrix": [1] * 18}, r"^18 support vectors need labels of shape \(18, n_labels\); got an array \(18,"),
        ({"label_matrix": np.full((18, 2), 2)}, r"^Labels must be 1 \(present\), 0 \(absent\) or NaN"),
        ({"label_matrix": np.zeros((18, 2))}, r"^Every label needs an image that has it; labels \[0, 1\] have none"),
        ({"groups": ["p"]}, "^18 support vectors need 18 groups; got 1"),
        ({"ids": ["p"] * 18}, "^Support ids must be distinct; 'p' occurs more than once"),
    ],
)
def test_what_cannot_be_learnt_from(change: dict[str, object], message: str) -> None:
    vectors, table, _, _, _ = task()
    with pytest.raises(ValueError, match=message):
        LabelClassifier(RidgeClassifier()).fit(**({"vectors": vectors, "label_matrix": table} | change))


def test_what_is_no_head_and_what_cannot_be_asked() -> None:
    vectors, table, _, _, _ = task()
    for head in (RidgeClassifier, "ridge"):
        with pytest.raises(ValueError, match=r"^head must be an unfitted head such as PrototypeClassifier\(\); got "):
            LabelClassifier(head).fit(vectors, table)
    with pytest.raises(ValueError, match=r"^This LabelClassifier has no support yet: call fit first\.$"):
        LabelClassifier(RidgeClassifier()).decision_function(vectors)
    with pytest.raises(ValueError, match=r"^Query vectors have 4 dimensions, the comparison set has 6"):
        LabelClassifier(RidgeClassifier()).fit(vectors, table).decision_function(vectors[:, :4])


def test_the_example_in_the_docs_runs() -> None:
    result = doctest.testmod(fewshot.label_heads)
    assert result.attempted >= 3 and result.failed == 0
