"""Reliability, Brier score, likelihood and risk-coverage against slow loops and scikit-learn."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from episodes.calibration_metrics import brier_score, negative_log_likelihood, reliability, risk_coverage
from episodes.errors import EpisodeError


def drawn(n: int = 120, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    value = np.round(rng.random(n), 2)  # with ties, and values on the edges of bins
    return value, (rng.random(n) < value**2).astype(int), rng.integers(40, size=n).tolist()


@pytest.mark.parametrize("weighted", [False, True])
def test_equal_widths_against_slow_loops(weighted: bool) -> None:
    value, right, patients = drawn()
    groups = patients if weighted else list(range(len(value)))
    found = reliability(value, right, groups, bins=5)
    weight = [1 / groups.count(group) for group in groups]
    error, seen = 0.0, []
    for b in range(5):
        own = [i for i in range(len(value)) if min(int(value[i] * 5), 4) == b]
        mass = sum(weight[i] for i in own)
        mean = sum(weight[i] * value[i] for i in own) / mass
        hits = sum(weight[i] * right[i] for i in own) / mass
        seen.append((b / 5, (b + 1) / 5, mean, hits, mass))
        error += mass / sum(weight) * abs(mean - hits)
    assert [(x.low, x.high, x.probability, x.right, x.patients) for x in found.bins] == [
        pytest.approx(row) for row in seen
    ]
    assert found.ece == pytest.approx(error) and found.patients == len(set(groups))
    assert json.loads(json.dumps(found.to_dict()))["ece"] == found.ece


def test_equal_masses_hold_as_many_patients_and_keep_ties_together() -> None:
    value = np.arange(100) / 100
    found = reliability(value, value > 0.5, bins=5, equal="mass")
    assert [x.patients for x in found.bins] == pytest.approx([20] * 5)
    assert [x.low for x in found.bins] == [0.0, 0.2, 0.4, 0.6, 0.8]
    tied = reliability([0.5] * 9 + [0.9], [1] * 10, bins=5, equal="mass")
    assert [(x.low, x.high, x.patients) for x in tied.bins] == [(0.5, 0.5, 9.0), (0.9, 0.9, 1.0)]
    assert tied.ece == pytest.approx((9 * 0.5 + 0.1) / 10)


def test_probabilities_that_hold_have_no_error_and_surer_ones_do() -> None:
    rng = np.random.default_rng(0)
    value = rng.random(50_000)
    right = rng.random(50_000) < value
    for equal in ("width", "mass"):
        assert reliability(value, right, equal=equal).ece < 0.01
        assert reliability(np.minimum(1, value + 0.2), right, equal=equal).ece == pytest.approx(0.18, abs=0.01)


def test_brier_score_and_likelihood_are_those_of_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    values = rng.dirichlet(np.ones(3), size=50)
    targets = rng.integers(3, size=50)
    patients = rng.integers(20, size=50).tolist()
    weight = np.array([1 / patients.count(p) for p in patients])
    for groups, own in ((None, np.ones(50)), (patients, weight)):
        assert negative_log_likelihood(values, targets, groups) == pytest.approx(
            log_loss(targets, values, sample_weight=own, labels=[0, 1, 2])
        )
        assert brier_score(values, targets, groups) == pytest.approx(
            brier_score_loss(targets, values, sample_weight=own, labels=[0, 1, 2], scale_by_half=False)
        )
    assert negative_log_likelihood([[1.0, 0.0]], [1]) == pytest.approx(-math.log(1e-12))


def test_risk_coverage_against_slow_loops() -> None:
    value, right, patients = drawn()
    found = risk_coverage(value, right, patients)
    weight = [1 / patients.count(p) for p in patients]
    curve = []
    for least in sorted(set(value.tolist()), reverse=True):
        kept = [i for i in range(len(value)) if value[i] >= least]
        mass = sum(weight[i] for i in kept)
        curve.append((mass / sum(weight), sum(weight[i] * (1 - right[i]) for i in kept) / mass))
    assert found.coverage == pytest.approx([x for x, _ in curve]) and found.risk == pytest.approx([y for _, y in curve])
    area = sum((x - before) * y for (x, y), before in zip(curve, [0.0, *[x for x, _ in curve]], strict=False))
    assert found.aurc == pytest.approx(area)
    assert risk_coverage([3, 2, 1, 0], [1, 1, 0, 0]).aurc == pytest.approx((1 / 3 + 1 / 2) / 4)


def test_errors() -> None:
    with pytest.raises(EpisodeError, match=r"^probabilities and right must be equally long lists and not empty"):
        reliability([], [])
    with pytest.raises(EpisodeError, match=r"^Probabilities must lie in \[0, 1\]; at least one does not\.$"):
        reliability([1.5], [1])
    with pytest.raises(EpisodeError, match=r"^right must hold 1 \(right\) and 0 \(wrong\) only\.$"):
        reliability([0.5], [0.5])
    with pytest.raises(EpisodeError, match=r"^bins must be a whole number of at least 1; got 0\.$"):
        reliability([0.5], [1], bins=0)
    with pytest.raises(EpisodeError, match=r"^equal must be 'width' or 'mass'; got 'size'\.$"):
        reliability([0.5], [1], equal="size")
    with pytest.raises(EpisodeError, match=r"^There are 1 answers and 2 patients in groups\.$"):
        reliability([0.5], [1], ["a", "b"])
    with pytest.raises(EpisodeError, match=r"^probabilities must be rows \(n, n_classes\) with n targets"):
        brier_score([0.5], [0])
    with pytest.raises(EpisodeError, match=r"^targets must be positions of classes, 0 to 1\.$"):
        brier_score([[0.5, 0.5]], [2])
    with pytest.raises(EpisodeError, match=r"^Probabilities must lie in \[0, 1\]; at least one does not\.$"):
        brier_score([[0.5, np.nan]], [0])
    with pytest.raises(EpisodeError, match=r"^confidence must be numbers; NaN is among them\.$"):
        risk_coverage([np.nan], [1])
