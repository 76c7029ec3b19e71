"""SoftKMeansClassifier against the paper's equations one number at a time, and what "transductive" means for it."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest

import fewshot.soft_kmeans
from fewshot import PrototypeClassifier
from fewshot.soft_kmeans import SoftKMeansClassifier


def task(n: int = 12, d: int = 5, seed: int = 0) -> tuple[np.ndarray, list[str], list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, d)).astype(np.float32)
    labels, groups = [f"c{i % 3}" for i in range(n)], [f"p{rng.integers(6)}" for _ in range(n)]
    return vectors, labels, groups, rng.normal(size=(15, d)).astype(np.float32)


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("steps", [1, 4])
def test_against_a_slow_loop(metric: str, steps: int) -> None:
    vectors, labels, groups, queries = task()
    center = np.random.default_rng(3).normal(size=5) * 0.2
    clf = SoftKMeansClassifier(n_iterations=steps, temperature=0.3, metric=metric, center=center)
    clf.fit(vectors, labels, groups=groups)

    def unit(row: np.ndarray) -> np.ndarray:
        return row / np.linalg.norm(row) if metric == "cosine" else row

    def closeness(row: np.ndarray, mean: np.ndarray) -> float:
        return float(row @ mean) if metric == "cosine" else -float(((row - mean) ** 2).sum())

    asked = [unit(query.astype(float) - center) for query in queries]
    owned: dict[str, dict[str, list[np.ndarray]]] = {name: {} for name in sorted(set(labels))}
    for row, label, group in zip(vectors.astype(float), labels, groups, strict=True):
        owned[label].setdefault(group, []).append(unit(row - center))
    patients = [[sum(rows) / len(rows) for rows in own.values()] for own in owned.values()]
    means = [unit(sum(own) / len(own)) for own in patients]
    assert clf.prototypes_ == pytest.approx(np.stack(means))
    for _ in range(steps):
        shares = []
        for query in asked:
            powers = [math.exp(closeness(query, mean) / 0.3) for mean in means]
            shares.append([power / sum(powers) for power in powers])
        means = [
            unit(
                (sum(own) + sum(share[c] * query for share, query in zip(shares, asked, strict=True)))
                / (len(own) + sum(share[c] for share in shares))
            )
            for c, own in enumerate(patients)
        ]
    expected = [[closeness(query, mean) for mean in means] for query in asked]
    assert clf.scores(queries) == pytest.approx(np.array(expected))


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_without_refinement_it_is_the_prototypes(metric: str) -> None:
    vectors, labels, groups, queries = task()
    judge = PrototypeClassifier(metric=metric).fit(vectors, labels, groups=groups)
    clf = SoftKMeansClassifier(n_iterations=0, metric=metric).fit(vectors, labels, groups=groups)
    assert clf.scores(queries) == pytest.approx(judge.scores(queries))
    assert SoftKMeansClassifier.transductive and not PrototypeClassifier.transductive


def test_company_changes_the_answer_but_its_order_and_earlier_calls_do_not() -> None:
    vectors, labels, _, queries = task()
    clf = SoftKMeansClassifier().fit(vectors, labels)
    together = clf.scores(queries)
    alone = np.concatenate([clf.scores(query[None]) for query in queries])
    assert np.abs(together - alone).max() > 0.01
    order = np.random.default_rng(0).permutation(15)
    assert np.array_equal(clf.scores(queries[order]), together[order])
    assert np.array_equal(clf.scores(queries), together)
    assert clf.predict(queries).tolist() == [d.label for d in clf.decide(queries)]
    assert [d.score for d in clf.decide(queries)] == together.max(axis=1).tolist()


def test_queries_that_form_two_clouds_correct_a_poor_support() -> None:
    rng = np.random.default_rng(0)
    means = np.array([[2.0, 0.0], [-2.0, 0.0]])
    targets = np.arange(60) % 2
    queries = means[targets] + 0.5 * rng.normal(size=(60, 2))
    support = [[0.5, 4.0], [-0.5, -4.0]]
    options = {"metric": "euclidean", "temperature": 2.0}
    before = SoftKMeansClassifier(n_iterations=0, **options).fit(support, [0, 1]).predict(queries)
    after = SoftKMeansClassifier(n_iterations=5, **options).fit(support, [0, 1]).predict(queries)
    assert (after == targets).all() and (before == targets).mean() < 0.7


def test_a_small_temperature_overflows_nothing() -> None:
    vectors, labels, _, queries = task()
    clf = SoftKMeansClassifier(temperature=1e-6, metric="euclidean").fit(vectors * 1e3, labels)
    assert np.isfinite(clf.scores(queries)).all()


def test_the_example_in_the_docs_runs() -> None:
    result = doctest.testmod(fewshot.soft_kmeans)
    assert result.attempted >= 2 and result.failed == 0
