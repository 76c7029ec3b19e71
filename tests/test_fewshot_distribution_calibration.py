"""DistributionCalibratedClassifier against slow loops, and moments of powers against draws and quadrature."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from scipy.integrate import quad

import fewshot.distribution_calibration
from embeddings.source_statistics import SourceStatistics
from fewshot.distribution_calibration import DistributionCalibratedClassifier, powered_moments


def statistics(b: int = 5, d: int = 4, seed: int = 0) -> SourceStatistics:
    rng = np.random.default_rng(seed)
    return SourceStatistics(rng.normal(size=(b, d)), rng.uniform(0.2, 1.0, size=(b, d)), np.full(b, 8))


def task(n: int = 12, d: int = 4, seed: int = 1) -> tuple[np.ndarray, list[str], list[str], np.ndarray]:
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(n, d)).astype(np.float32)
    return vectors, [f"c{i % 3}" for i in range(n)], [f"p{i // 4}" for i in range(n)], rng.normal(size=(9, d))


def power_of(x: float, power: float) -> float:
    return math.copysign(abs(x) ** power, x)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("n_nearest", [1, 3, 99])
def test_against_the_papers_algorithm_one_number_at_a_time(normalize: bool, power: float, n_nearest: int) -> None:
    source = statistics()
    vectors, labels, groups, queries = task()
    center = np.random.default_rng(4).normal(size=4) * 0.3
    options = {"n_nearest": n_nearest, "alpha": 0.3, "power": power, "normalize": normalize, "center": center}
    clf = DistributionCalibratedClassifier(source, **options).fit(vectors, labels, groups=groups)

    def moved(row: np.ndarray) -> list[float]:
        values = [float(x) - float(c) for x, c in zip(row, center, strict=True)]
        length = math.sqrt(sum(x * x for x in values)) if normalize else 1.0
        return [power_of(x / length, power) for x in values]

    bases, spreads = [], []
    for mean, variance in zip(source.means.astype(float), source.variances.astype(float), strict=True):
        away = [float(m - c) for m, c in zip(mean, center, strict=True)]
        size = sum(m * m for m in away) + sum(variance) if normalize else 1.0
        scaled = np.array([[m / math.sqrt(size) for m in away]]), np.array([[v / size for v in variance]])
        base, spread = powered_moments(*scaled, power)
        bases.append(base[0].tolist())
        spreads.append(spread[0].tolist())
    extra = 0.3 * sum(map(sum, spreads)) / 20
    prototypes, variances = [], [0.0] * 4
    for name in sorted(set(labels)):
        patients = {group: [] for group, label in zip(groups, labels, strict=True) if label == name}
        for row, label, group in zip(vectors, labels, groups, strict=True):
            if label == name:
                patients[group].append(moved(row))
        prototype = [0.0] * 4
        for rows in patients.values():
            for row in rows:

                def far(b: int, row: list[float] = row) -> float:
                    return sum((x - m) ** 2 for x, m in zip(row, bases[b], strict=True))

                near = sorted(range(5), key=far)[:n_nearest]
                for j in range(4):
                    calibrated = (sum(bases[b][j] for b in near) + row[j]) / (len(near) + 1)
                    prototype[j] += calibrated / len(rows) / len(patients)
                    spread = sum(spreads[b][j] for b in near) / len(near) + extra
                    variances[j] += spread / len(rows) / len(patients) / 3
        prototypes.append(prototype)
    for query, scores in zip(queries.astype(np.float32), clf.scores(queries), strict=True):
        for prototype, score in zip(prototypes, scores, strict=True):
            triples = zip(moved(query), prototype, variances, strict=True)
            assert score == pytest.approx(-sum((x - m) ** 2 / v for x, m, v in triples) / 2)
    assert clf.variances_ == pytest.approx(variances) and clf.means_ == pytest.approx(np.array(prototypes))


@pytest.mark.parametrize("power", [0.3, 0.5, 2.0])
@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (0.3, 0.04), (-1.0, 4.0), (6.0, 0.5), (-28.0, 1.0)])
def test_moments_of_powers_by_quadrature(power: float, mean: float, variance: float) -> None:
    deviation = math.sqrt(variance)

    def moment(exponent: int) -> float:
        def density(x: float) -> float:
            return power_of(x, power) ** exponent * math.exp(-((x - mean) ** 2) / 2 / variance)

        ends = mean - 12 * deviation, mean + 12 * deviation
        inside = [0.0] if ends[0] < 0 < ends[1] else []
        found = quad(density, *ends, points=[mean, *inside], limit=200, epsabs=1e-11)[0]
        return found / deviation / math.sqrt(2 * math.pi)

    first, second = powered_moments(np.array([[mean]]), np.array([[variance]]), power)
    assert first[0, 0] == pytest.approx(moment(1), rel=1e-6, abs=1e-9)
    assert second[0, 0] == pytest.approx(moment(2) - moment(1) ** 2, rel=1e-4, abs=1e-7)


def test_moments_of_powers_at_the_edges() -> None:
    means, variances = np.array([[0.0, -4.0, 29.99, 30.01]]), np.array([[0.0, 0.0, 1.0, 1.0]])
    first, second = powered_moments(means, variances, 0.5)
    assert first[0, :2].tolist() == [0.0, -2.0] and second[0, :2].tolist() == [0.0, 0.0]
    assert first[0, 2] == pytest.approx(first[0, 3], rel=1e-3) and second[0, 2] == pytest.approx(second[0, 3], rel=1e-2)
    same = powered_moments(means, variances, 1.0)
    assert same[0] is means and same[1] is variances


def test_a_source_far_away_moves_all_classes_alike_and_a_near_one_helps() -> None:
    # One dimension tells the classes apart and the source varies little in it; the other is noise.
    source = SourceStatistics([[1.0, 0.0], [-1.0, 0.0]], [[0.01, 1.0], [0.01, 1.0]], [50, 50])
    support = [[0.5, 2.0], [-0.5, -2.0]]
    queries = [[0.9, -1.5], [-0.9, 1.5]]
    plain = DistributionCalibratedClassifier(
        SourceStatistics([[0.0, 0.0]], [[1.0, 1.0]], [50]), n_nearest=1, normalize=False, power=1.0
    )
    assert plain.fit(support, ["a", "b"]).predict(queries).tolist() == ["b", "a"]
    helped = DistributionCalibratedClassifier(source, n_nearest=1, alpha=0.01, normalize=False, power=1.0)
    assert helped.fit(support, ["a", "b"]).predict(queries).tolist() == ["a", "b"]


def test_a_source_that_does_not_vary_gives_euclidean_distances() -> None:
    source = SourceStatistics([[1.0, 0.0]], [[0.0, 0.0]], [6])
    clf = DistributionCalibratedClassifier(source, alpha=0.5, power=1.0, normalize=False)
    clf.fit([[1.0, 0.0], [3.0, 2.0]], ["a", "b"])
    assert clf.variances_.tolist() == [0.5, 0.5] and clf.means_.tolist() == [[1.0, 0.0], [2.0, 1.0]]
    assert clf.scores([[1.0, 1.0]])[0] == pytest.approx([-1.0, -1.0])


def test_the_example_in_the_docs_runs() -> None:
    result = doctest.testmod(fewshot.distribution_calibration)
    assert result.attempted >= 3 and result.failed == 0
