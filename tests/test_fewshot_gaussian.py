"""GaussianClassifier against scikit-learn's discriminant analysis and the densities written out."""

from __future__ import annotations

import doctest
import tracemalloc

import numpy as np
import pytest
from scipy.stats import multivariate_normal
from sklearn.covariance import ledoit_wolf_shrinkage as judge_of_shrinkage
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

import fewshot.gaussian
from fewshot import PrototypeClassifier
from fewshot.gaussian import GaussianClassifier, ledoit_wolf_shrinkage


def task(n: int = 30, d: int = 6, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.concatenate([np.repeat(np.arange(classes), 2), rng.integers(classes, size=n - 2 * classes)])
    mixing = rng.normal(size=(d, d)) / np.sqrt(d)
    vectors = (rng.normal(size=(classes, d))[labels] + rng.normal(size=(n, d)) @ mixing).astype(np.float32)
    return vectors, labels, rng.normal(size=(20, d)).astype(np.float32)


def moved(rows: np.ndarray, center: np.ndarray, normalize: bool) -> np.ndarray:
    rows = rows.astype(float) - center
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) if normalize else rows


def differences(scores: np.ndarray) -> np.ndarray:
    return scores - scores.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("d", [6, 70])  # fewer dimensions than images, and more
@pytest.mark.parametrize("shrinkage", [0.05, 0.4, 1.0])
def test_it_is_linear_discriminant_analysis_with_equal_priors(normalize: bool, d: int, shrinkage: float) -> None:
    vectors, labels, queries = task(d=d)
    center = np.random.default_rng(4).normal(size=d)
    clf = GaussianClassifier(shrinkage, normalize=normalize, center=center).fit(vectors, labels)
    judge = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage, priors=[1 / 3] * 3)
    judge.fit(moved(vectors, center, normalize), labels)
    expected = judge.decision_function(moved(queries, center, normalize))
    assert differences(clf.scores(queries)) == pytest.approx(differences(expected), rel=1e-7, abs=1e-7)
    assert clf.predict(queries).tolist() == judge.predict(moved(queries, center, normalize)).tolist()
    assert clf.shrinkage_ == shrinkage


@pytest.mark.parametrize("d", [4, 40])
@pytest.mark.parametrize("shrinkage", ["auto", 0.3])
def test_scores_are_log_densities_up_to_one_constant(d: int, shrinkage: float | str) -> None:
    vectors, labels, queries = task(n=16, d=d)
    rng = np.random.default_rng(2)
    groups = [f"p{rng.integers(7)}" for _ in labels]
    clf = GaussianClassifier(shrinkage, normalize=False).fit(vectors, labels, groups=groups)
    scatter, means = np.zeros((d, d)), []
    for c in range(3):
        patients = {group: [] for group, label in zip(groups, labels, strict=True) if label == c}
        for row, label, group in zip(vectors.astype(float), labels, groups, strict=True):
            if label == c:
                patients[group].append(row)
        mean = sum(sum(rows) / len(rows) for rows in patients.values()) / len(patients)
        for rows in patients.values():
            for row in rows:
                scatter += np.outer(row - mean, row - mean) / len(rows) / len(patients) / 3
        means.append(mean)
    share = clf.shrinkage_
    covariance = (1 - share) * scatter + share * np.trace(scatter) / d * np.eye(d)
    densities = np.stack([multivariate_normal(m, covariance).logpdf(queries) for m in means], axis=1)
    constant = densities[0, 0] - clf.scores(queries)[0, 0]
    assert clf.scores(queries) + constant == pytest.approx(densities, rel=1e-6, abs=1e-6)
    assert clf.means_ == pytest.approx(np.stack(means))


def test_the_shrinkage_is_ledoit_and_wolfs() -> None:
    rng = np.random.default_rng(0)
    for n, d in ((10, 4), (8, 30), (200, 3)):
        rows = rng.normal(size=(n, d)) @ rng.normal(size=(d, d))
        found = ledoit_wolf_shrinkage(rows, np.full(n, 1 / n), np.arange(n), d)
        assert found == pytest.approx(judge_of_shrinkage(rows, assume_centered=True))
        assert 0 < found < 1
        # The space may have more dimensions than the coordinates.
        wider = ledoit_wolf_shrinkage(rows, np.full(n, 1 / n), np.arange(n), d + 20)
        padded = np.concatenate([rows, np.zeros((n, 20))], axis=1)
        assert wider == pytest.approx(judge_of_shrinkage(padded, assume_centered=True))


def test_the_shrinkage_against_a_slow_loop_over_patients() -> None:
    rng = np.random.default_rng(1)
    rows, patients = rng.normal(size=(9, 4)) * [4, 2, 1, 0.5], np.array([0, 1, 1, 2, 3, 3, 3, 4, 5])
    weights = rng.uniform(0.5, 1.5, size=9)
    weights /= weights.sum()
    scatter = sum(w * np.outer(row, row) for w, row in zip(weights, rows, strict=True))
    sphere = np.trace(scatter) / 4 * np.eye(4)
    error = 0.0
    for p in range(6):
        mass = sum(w for w, own in zip(weights, patients, strict=True) if own == p)
        observed = sum(
            w / mass * np.outer(row, row) for w, row, own in zip(weights, rows, patients, strict=True) if own == p
        )
        error += mass**2 * ((observed - scatter) ** 2).sum()
    expected = error / ((scatter - sphere) ** 2).sum()
    assert 0 < expected < 1
    assert ledoit_wolf_shrinkage(rows, weights, patients, 4) == pytest.approx(expected)


def test_automatic_shrinkage_where_every_patient_has_one_image() -> None:
    vectors, _, _ = task(n=12, d=5)
    labels = np.repeat(np.arange(3), 4)
    clf = GaussianClassifier(normalize=False).fit(vectors, labels)
    residuals = np.concatenate([vectors[labels == c] - vectors[labels == c].mean(axis=0) for c in range(3)])
    assert clf.shrinkage_ == pytest.approx(judge_of_shrinkage(residuals, assume_centered=True), rel=1e-5)
    # Two images of one class vary along one line: the estimate is certain of it, and would be singular unless kept off.
    assert GaussianClassifier(normalize=False).fit(vectors[:2], ["a", "a"]).shrinkage_ == 0.01
    # A sphere already.
    cross = np.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    assert ledoit_wolf_shrinkage(cross, np.full(4, 0.25), np.arange(4), 2) == 1.0


@pytest.mark.parametrize("shrinkage", ["auto", 0.1])
def test_one_image_of_one_patient_per_class_is_the_nearest_mean(shrinkage: float | str) -> None:
    vectors, _, queries = task(n=12, d=7)
    labels, groups = np.repeat(np.arange(6), 2), [f"p{i // 2}" for i in range(12)]
    nearest = PrototypeClassifier(metric="euclidean").fit(vectors[:6], list("abcdef"))
    clf = GaussianClassifier(shrinkage, normalize=False).fit(vectors[:6], list("abcdef"))
    assert clf.scores(queries) == pytest.approx(nearest.scores(queries) / 2)
    assert clf.shrinkage_ == 1.0
    # Copies of one image are no scatter either, though their mean is rounded.
    copies = GaussianClassifier(shrinkage).fit(np.repeat(vectors[:6], 2, axis=0) * 1e3, labels, groups=groups)
    assert copies.shrinkage_ == 1.0
    # Two different images of a patient are.
    assert GaussianClassifier(shrinkage).fit(vectors, labels, groups=groups).shrinkage_ < 1


def test_directions_in_which_classes_vary_count_less() -> None:
    support = [[0.0, -3.0], [0.0, 3.0], [1.0, -3.0], [1.0, 3.0]]
    clf = GaussianClassifier(0.1, normalize=False).fit(support, ["a", "a", "b", "b"])
    assert clf.predict([[0.2, 9.0], [0.8, -9.0]]).tolist() == ["a", "b"]
    near = clf.scores([[0.0, 3.0]]), clf.scores([[3.0, 0.0]])
    assert near[0][0, 0] > near[1][0, 0]


def test_no_square_of_the_dimensions_is_held() -> None:
    rng = np.random.default_rng(0)
    vectors, labels = rng.normal(size=(25, 4096)), np.repeat(np.arange(5), 5)
    tracemalloc.start()
    GaussianClassifier().fit(vectors, labels).predict(vectors)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6  # a 4096 x 4096 covariance is 134 MB


def test_the_example_in_the_docs_runs() -> None:
    result = doctest.testmod(fewshot.gaussian)
    assert result.attempted >= 2 and result.failed == 0
