"""LinearProbe against scikit-learn, RidgeClassifier against the equations written out, and both in their span."""

from __future__ import annotations

import doctest
import tracemalloc

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

import fewshot.linear
import fewshot.span
from fewshot.linear import LinearProbe, RidgeClassifier
from fewshot.span import Span, balanced_weights, row_products
from fewshot.support import Support


def task(n: int = 30, d: int = 6, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    shares = np.arange(1, classes + 1) / np.arange(1, classes + 1).sum()
    labels = np.concatenate([np.arange(classes), rng.choice(classes, p=shares, size=n - classes)])
    vectors = (rng.normal(size=(classes, d))[labels] + rng.normal(size=(n, d))).astype(np.float32)
    return vectors, labels, rng.normal(size=(20, d)).astype(np.float32)


def moved(rows: np.ndarray, center: np.ndarray, normalize: bool) -> np.ndarray:
    rows = rows.astype(float) - center
    return rows / np.linalg.norm(rows, axis=1, keepdims=True) if normalize else rows


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("d", [6, 50])  # fewer dimensions than images, and more
@pytest.mark.parametrize("classes", [2, 3])
def test_the_probe_is_scikit_learns_balanced_logistic_regression(normalize: bool, d: int, classes: int) -> None:
    vectors, labels, queries = task(d=d, classes=classes)
    center = np.random.default_rng(4).normal(size=d)
    clf = LinearProbe(2.0, normalize=normalize, center=center).fit(vectors, labels)
    judge = LogisticRegression(C=2.0, class_weight="balanced", tol=1e-9, max_iter=10_000)
    judge.fit(moved(vectors, center, normalize), labels)
    scores = clf.scores(queries)
    expected = judge.predict_proba(moved(queries, center, normalize))
    shares = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    assert shares == pytest.approx(expected, abs=1e-4)
    assert clf.predict(queries).tolist() == judge.predict(moved(queries, center, normalize)).tolist()
    found = judge.decision_function(moved(queries, center, normalize))
    if classes == 2:
        assert scores[:, 1] - scores[:, 0] == pytest.approx(found, abs=1e-3)
        assert scores[:, 1] == pytest.approx(-scores[:, 0])
    else:
        assert scores - scores.mean(axis=1, keepdims=True) == pytest.approx(
            found - found.mean(axis=1, keepdims=True), abs=1e-3
        )
    assert clf.coef_.shape == (classes, d) and clf.intercept_.shape == (classes,)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("d", [6, 50])
def test_ridge_against_the_equations_written_out(normalize: bool, d: int) -> None:
    vectors, labels, queries = task(d=d)
    center = np.random.default_rng(4).normal(size=d)
    rng = np.random.default_rng(5)
    groups = [f"p{rng.integers(9)}" for _ in range(30)]
    clf = RidgeClassifier(0.7, normalize=normalize, center=center).fit(vectors, labels, groups=groups)
    patients = {c: {g for g, label in zip(groups, labels, strict=True) if label == c} for c in range(3)}
    weights = [
        sum(map(len, patients.values()))
        / 3
        / len(patients[label])
        / sum(g == group and other == label for g, other in zip(groups, labels, strict=True))
        for group, label in zip(groups, labels, strict=True)
    ]
    # The intercept is one more column, which the penalty spares; the weighted normal equations in d + 1 unknowns.
    x = np.concatenate([moved(vectors, center, normalize), np.ones((30, 1))], axis=1)
    penalty = 0.7
    if not normalize:  # it counts in mean squared distances from the weighted mean
        rows = moved(vectors, center, normalize)
        middle = sum(w * row for w, row in zip(weights, rows, strict=True)) / sum(weights)
        penalty *= sum(w * ((row - middle) ** 2).sum() for w, row in zip(weights, rows, strict=True)) / sum(weights)
    free = np.diag([penalty] * d + [0.0])
    asked = np.concatenate([moved(queries, center, normalize), np.ones((20, 1))], axis=1)
    for c in range(3):
        left = sum(w * np.outer(row, row) for w, row in zip(weights, x, strict=True)) + free
        right = sum(w * row * (label == c) for w, row, label in zip(weights, x, labels, strict=True))
        solved = np.linalg.solve(left, right)
        assert clf.scores(queries)[:, c] == pytest.approx(asked @ solved, abs=1e-9)
        assert clf.coef_[c] == pytest.approx(solved[:-1], abs=1e-9)
        assert clf.intercept_[c] == pytest.approx(solved[-1], abs=1e-9)
    assert clf.scores(queries).sum(axis=1) == pytest.approx(np.ones(20))


def test_many_patients_of_one_class_do_not_outvote_the_other() -> None:
    rng = np.random.default_rng(0)
    vectors = np.concatenate([rng.normal(-1, 1, size=(60, 2)), rng.normal(1, 1, size=(4, 2))])
    labels = ["common"] * 60 + ["rare"] * 4
    queries = np.concatenate([rng.normal(-1, 1, size=(200, 2)), rng.normal(1, 1, size=(200, 2))])
    for clf in (LinearProbe(normalize=False), RidgeClassifier(normalize=False)):
        answers = clf.fit(vectors, labels).predict(queries)
        assert (answers == "rare").mean() == pytest.approx(0.5, abs=0.1)
    plain = LogisticRegression().fit(vectors, labels).predict(queries)
    assert (plain == "rare").mean() < 0.35


def test_scores_of_a_single_class() -> None:
    assert LinearProbe().fit([[1.0, 0.0]], ["a"]).scores([[0.3, 1.0]]).tolist() == [[0.0]]
    assert RidgeClassifier().fit([[1.0, 0.0]], ["a"]).scores([[0.3, 1.0]]).tolist() == [[1.0]]


@pytest.mark.parametrize("shape", [(4, 9), (9, 4), (5, 5)])
def test_a_span_keeps_lengths_and_gives_rows_back(shape: tuple[int, int]) -> None:
    rows = np.random.default_rng(0).normal(size=shape)
    rows[1] = rows[0]  # repeated
    rows[2] = 0.0
    span = Span.of(rows)
    assert span.coordinates.shape == (shape[0], min(shape))
    assert span.coordinates @ span.coordinates.T == pytest.approx(rows @ rows.T)
    assert span.back(span.coordinates) == pytest.approx(rows)


def test_row_products_are_products_whatever_is_formed_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    rows, others = rng.normal(size=(33, 7)), rng.normal(size=(5, 7))
    whole = row_products(rows, others)
    assert whole == pytest.approx(rows @ others.T)
    monkeypatch.setattr(fewshot.span, "PRODUCTS_AT_ONCE", 80)
    assert np.array_equal(row_products(rows, others), whole)
    assert row_products(rows, np.empty((0, 7))).shape == (33, 0)


def test_balanced_weights_by_hand() -> None:
    support = Support(np.ones((6, 1)), list("aaabbb"), groups=["p", "p", "q", "p", "r", "s"])
    # Five patients over two classes: each class weighs 2.5; in "a" two patients share it, in "b" three.
    assert balanced_weights(support) == pytest.approx([0.625, 0.625, 1.25, 2.5 / 3, 2.5 / 3, 2.5 / 3])


def test_no_square_of_the_dimensions_is_held() -> None:
    vectors, labels, queries = task(n=25, d=4096, classes=5)
    for clf in (LinearProbe(), RidgeClassifier()):
        tracemalloc.start()
        clf.fit(vectors, labels).predict(queries)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 20e6  # 4096 x 4096 equations are 134 MB


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_the_probe_ends_whatever_the_scale_and_however_alike_the_images(scale: float) -> None:
    for seed in range(4):
        vectors, labels, queries = task(n=24, d=60 if seed % 2 else 5, classes=2 + seed, seed=seed)
        vectors[8:16] = vectors[:8]  # some of them in another class
        clf = LinearProbe(normalize=False).fit(vectors * scale, labels)  # a warning would be an error here
        assert np.isfinite(clf.scores(queries * scale)).all()


def test_the_examples_in_the_docs_run() -> None:
    result = doctest.testmod(fewshot.linear)
    assert result.attempted >= 4 and result.failed == 0


def test_ridge_that_keeps_lengths_answers_alike_on_any_scale() -> None:
    vectors, labels, queries = task(d=8)
    one = RidgeClassifier(normalize=False).fit(vectors, labels).scores(queries)
    other = RidgeClassifier(normalize=False).fit(1000 * vectors, labels).scores(1000 * queries)
    assert other == pytest.approx(one, abs=1e-6)
    equal = RidgeClassifier(normalize=False).fit(np.ones((4, 8)), ["a", "a", "b", "b"]).scores(np.ones((1, 8)))
    assert equal == pytest.approx(0.5)
