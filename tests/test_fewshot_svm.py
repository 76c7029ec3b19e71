"""SupportVectorClassifier against scikit-learn's machines one by one, and against the definition of the margin."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from sklearn.multiclass import OneVsRestClassifier
from sklearn.svm import SVC

import fewshot.svm
from fewshot.svm import SupportVectorClassifier


def task(k: int = 6, d: int = 5, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.tile(np.arange(classes), k)
    vectors = (rng.normal(size=(classes, d))[labels] + rng.normal(size=(len(labels), d))).astype(np.float32)
    return vectors, labels, rng.normal(size=(20, d)).astype(np.float32)


def moved(rows: np.ndarray, center: np.ndarray, normalize: bool) -> np.ndarray:
    rows = rows.astype(float) - center
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) if normalize else rows


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize(("d", "classes"), [(5, 3), (40, 3), (5, 2)])
def test_against_scikit_learn_one_against_the_rest(normalize: bool, kernel: str, d: int, classes: int) -> None:
    vectors, labels, queries = task(d=d, classes=classes)
    center = np.random.default_rng(4).normal(size=d)
    clf = SupportVectorClassifier(0.7, kernel=kernel, gamma=0.4, normalize=normalize, center=center)
    scores = clf.fit(vectors, labels).scores(queries)
    machine = SVC(C=0.7, kernel=kernel, gamma=0.4, class_weight="balanced", tol=1e-8)
    judge = OneVsRestClassifier(machine).fit(moved(vectors, center, normalize), labels)
    expected = judge.decision_function(moved(queries, center, normalize))
    if classes == 2:
        expected = np.stack([-expected, expected], axis=1)
    assert scores == pytest.approx(expected, abs=1e-4)


def test_each_class_against_machines_weighted_by_hand() -> None:
    # Patients of unequal numbers of images, classes of unequal numbers of patients.
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(12, 4)).astype(np.float32)
    labels = list("aaaaabbbbccc")
    groups = ["p", "p", "p", "q", "r", "s", "s", "t", "u", "v", "w", "w"]
    counts = np.array([1 / 3, 1 / 3, 1 / 3, 1, 1, 0.5, 0.5, 1, 1, 1, 0.5, 0.5])  # a: 3 patients, b: 3, c: 2
    scores = SupportVectorClassifier(1.5, normalize=False).fit(vectors, labels, groups=groups).scores(vectors)
    for c, (name, patients) in enumerate(zip("abc", (3, 3, 2), strict=True)):
        weights = []
        for label, count in zip(labels, counts, strict=True):
            others = {"a": 3, "b": 3, "c": 2}[label]
            weights.append(8 / 2 * count / patients if label == name else 8 / 4 * count / others)
        own = [label == name for label in labels]
        machine = SVC(C=1.5, kernel="linear", tol=1e-8).fit(vectors.astype(float), own, sample_weight=weights)
        assert scores[:, c] == pytest.approx(machine.decision_function(vectors.astype(float)), abs=1e-4)


def test_the_width_is_one_over_the_spread_of_the_support() -> None:
    vectors, labels, queries = task()
    groups = [f"p{i % 5}" for i in range(18)]
    clf = SupportVectorClassifier(kernel="rbf", normalize=False).fit(vectors, labels, groups=groups)
    owners = list(zip(groups, labels.tolist(), strict=True))
    share = np.array([1 / owners.count(owner) for owner in owners])
    share /= share.sum()
    mean = sum(s * row.astype(float) for s, row in zip(share, vectors, strict=True))
    spread = sum(s * float(((row - mean) ** 2).sum()) for s, row in zip(share, vectors, strict=True))
    same = SupportVectorClassifier(kernel="rbf", gamma=1 / spread, normalize=False).fit(vectors, labels, groups=groups)
    assert clf.scores(queries) == pytest.approx(same.scores(queries), abs=1e-6)


def test_the_margin_is_one_where_classes_can_be_parted() -> None:
    clf = SupportVectorClassifier(1e4, normalize=False).fit([[0.0, 0.0], [2.0, 0.0], [3.0, 1.0]], ["a", "b", "b"])
    # The boundary is x = 1, the margins x = 0 and x = 2; the third image lies beyond and counts nothing.
    assert clf.scores([[0.0, 5.0], [1.0, 0.0], [2.0, -3.0]])[:, 1] == pytest.approx([-1.0, 0.0, 1.0], abs=1e-4)
    assert clf.dual_coef_[:, 2].tolist() == [0.0, 0.0] and (clf.dual_coef_[:, :2] != 0).all()


def test_a_single_class_scores_one() -> None:
    for kernel in ("linear", "rbf"):
        clf = SupportVectorClassifier(kernel=kernel).fit([[1.0, 0.0], [0.0, 1.0]], ["a", "a"])
        assert clf.scores([[0.3, 1.0], [-1.0, 0.0]]).tolist() == [[1.0], [1.0]]


def test_the_example_in_the_docs_runs() -> None:
    result = doctest.testmod(fewshot.svm)
    assert result.attempted >= 2 and result.failed == 0
