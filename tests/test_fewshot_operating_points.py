"""Thresholds for a wanted sensitivity or false-alarm rate: slow loops, SciPy, and simulations of few patients."""

from __future__ import annotations

import doctest
import json
import math

import numpy as np
import pytest
from scipy.stats import binomtest

import fewshot.operating_points
from fewshot.calibration_rows import TooFewPatients
from fewshot.operating_points import (
    OperatingPoint,
    choose_operating_point,
    clopper_pearson,
    measure_operating_point,
)


def drawn(n: int = 90, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    present = np.arange(n) % 3 == 0
    scores = np.round(rng.normal(size=n) + 1.5 * present, 1)
    return scores, present, [f"p{rng.integers(n // 2)}" for _ in range(n)]


def share(scores: np.ndarray, groups: list[str], rows: list[int], holds: object) -> float:
    patients = sorted({groups[i] for i in rows})
    total = 0.0
    for patient in patients:
        own = [i for i in rows if groups[i] == patient]
        total += sum(holds(scores[i]) for i in own) / len(own)
    return total / len(patients)


@pytest.mark.parametrize("target", ["sensitivity", "false_alarm_rate"])
@pytest.mark.parametrize("wanted", [0.1, 0.5, 0.75, 0.85])
def test_the_threshold_is_the_best_that_keeps_the_target(target: str, wanted: float) -> None:
    scores, present, groups = drawn()
    found = choose_operating_point(scores, present, groups, **{target: wanted})
    own = [i for i in range(90) if present[i] == (target == "sensitivity")]
    n = len({groups[i] for i in own})
    candidates = sorted({*scores[own].tolist(), *np.nextafter(scores[own], np.inf).tolist()})
    if (
        target == "sensitivity"
    ):  # a new patient counts as missed: (missed below + 1) / (n + 1) may not exceed 1 - wanted
        kept = [
            t
            for t in candidates
            if t in scores[own]
            and all(
                (share(scores, groups, own, lambda s, v=v: s <= v) * n + 1) / (n + 1) <= 1 - wanted + 1e-9
                for v in scores[own]
                if v < t
            )
        ]
        assert found.threshold == max(kept)
    else:
        kept = [
            t
            for t in candidates
            if t not in scores[own]
            and all(
                (share(scores, groups, own, lambda s, v=v: s >= v) * n + 1) / (n + 1) <= wanted + 1e-9
                for v in scores[own]
                if v >= t
            )
        ]
        assert found.threshold == min(kept)
    positive, negative = ([i for i in range(90) if present[i] == kind] for kind in (True, False))
    assert found.sensitivity == pytest.approx(share(scores, groups, positive, lambda s: s >= found.threshold))
    assert found.specificity == pytest.approx(share(scores, groups, negative, lambda s: s < found.threshold))
    assert found.positive_patients == len({groups[i] for i in positive})
    assert found.sensitivity_interval[0] <= found.sensitivity <= found.sensitivity_interval[1]
    assert (found.target, found.wanted) == (target.replace("_", " "), wanted)


def test_ten_patients_by_hand() -> None:
    scores = np.concatenate([np.arange(1.0, 10.0), np.arange(-9.0, 0.0)])
    present = np.repeat([1, 0], 9)
    found = choose_operating_point(scores, present, sensitivity=0.9)
    assert (found.threshold, found.sensitivity, found.specificity) == (1.0, 1.0, 1.0)
    found = choose_operating_point(scores, present, sensitivity=0.7)  # floor(0.3 x 10) = 3rd lowest
    assert (found.threshold, found.sensitivity) == (3.0, pytest.approx(7 / 9))
    found = choose_operating_point(scores, present, false_alarm_rate=0.2)  # 2nd highest is not called
    assert -2 < found.threshold < -1.999 and found.specificity == pytest.approx(8 / 9)
    assert found.calls([-2.0, -1.0, np.nan]).tolist() == [False, True, False]


@pytest.mark.parametrize("target", ["sensitivity", "false_alarm_rate"])
def test_new_patients_meet_the_target_where_counting_images_and_plain_quantiles_miss_it(target: str) -> None:
    rng = np.random.default_rng(0)
    wanted = {"sensitivity": 0.9, "false_alarm_rate": 0.1}[target]
    sign = 1 if target == "sensitivity" else -1
    ours, naive, plain = [], [], []
    for _ in range(400):

        def patients(n: int = 15) -> tuple[np.ndarray, list[int], np.ndarray]:
            hard = rng.random(n) < 0.4  # hard patients have one image and lie on the wrong side
            images = np.where(hard, 1, 8)
            groups = np.repeat(np.arange(n), images)
            level = sign * np.where(hard, -1.5, 1.0) + rng.normal(size=n)
            return level[groups] + 0.1 * rng.normal(size=groups.size), groups.tolist(), np.cumsum(images) - images

        scores, groups, first = patients()
        new, _, asked = patients()
        present = np.full(len(scores), target == "sensitivity")
        for called, threshold in (
            (ours, choose_operating_point(scores, present, groups, **{target: wanted}).threshold),
            (naive, choose_operating_point(scores, present, **{target: wanted}).threshold),
            (plain, np.quantile(scores[first], 0.1 if sign == 1 else 0.9)),
        ):
            called.append((new[asked] >= threshold).mean())
    error = np.std(ours) / math.sqrt(400)
    if sign == 1:
        assert np.mean(ours) >= 0.9 - 2 * error and max(np.mean(naive), np.mean(plain)) < 0.9 - 4 * error
    else:
        assert np.mean(ours) <= 0.1 + 2 * error and min(np.mean(naive), np.mean(plain)) > 0.1 + 4 * error


def test_intervals_are_those_of_scipy() -> None:
    for successes, patients in ((0, 7), (3, 11), (9, 9), (40, 60)):
        judge = binomtest(successes, patients).proportion_ci(0.95, method="exact")
        assert clopper_pearson(successes, patients) == pytest.approx((judge.low, judge.high), abs=1e-9)
    between = clopper_pearson(3.5, 11)
    assert clopper_pearson(3, 11)[0] < between[0] < clopper_pearson(4, 11)[0]
    with pytest.raises(ValueError, match=r"^Successes must lie between 0 and the number of patients; got 3 of 2\.$"):
        clopper_pearson(3, 2)


def test_order_changes_no_bit_and_documents_come_back() -> None:
    scores, present, groups = drawn()
    order = np.random.default_rng(1).permutation(90)
    shuffled = (scores[order], present[order], [groups[i] for i in order])
    for option in ({"sensitivity": 0.8}, {"false_alarm_rate": 0.2}):
        found = choose_operating_point(scores, present, groups, **option)
        assert choose_operating_point(*shuffled, **option) == found
        assert OperatingPoint.from_json(json.loads(json.dumps(found.to_json(), allow_nan=False))) == found
    other = measure_operating_point(found.threshold, *shuffled)
    assert (other.target, other.wanted, other.sensitivity) == ("given", None, found.sensitivity)
    none = measure_operating_point(0.0, scores[~present], present[~present])
    assert (none.sensitivity, none.sensitivity_interval, none.positive_patients) == (None, None, 0)
    assert OperatingPoint.from_json(none.to_json()) == none
    holes = np.where(np.arange(90) < 10, np.nan, scores)
    assert choose_operating_point(holes, present, groups, sensitivity=0.8) == choose_operating_point(
        scores[10:], present[10:], groups[10:], sensitivity=0.8
    )


def test_errors() -> None:
    scores, present, _ = drawn()
    with pytest.raises(
        TooFewPatients,
        match=r"^A sensitivity of 0\.99, counted over patients with the class, needs 99 calibration patients; got 30\.",
    ) as caught:
        choose_operating_point(scores, present, sensitivity=0.99)
    assert (caught.value.needed, caught.value.found) == (99, 30)
    with pytest.raises(TooFewPatients, match=r"^A false alarm rate of 0\.01, counted over patients without the class"):
        choose_operating_point(scores, present, false_alarm_rate=0.01)
    for options in ({}, {"sensitivity": 0.9, "false_alarm_rate": 0.1}):
        with pytest.raises(ValueError, match=r"^Give either sensitivity or false_alarm_rate\.$"):
            choose_operating_point(scores, present, **options)
    with pytest.raises(ValueError, match=r"^sensitivity must lie strictly between 0 and 1; got 1\.0\.$"):
        choose_operating_point(scores, present, sensitivity=1.0)
    with pytest.raises(ValueError, match=r"^scores and present must be equally long lists; got \(90,\) and \(1,\)\.$"):
        choose_operating_point(scores, [1], sensitivity=0.9)
    with pytest.raises(ValueError, match=r"^present must hold 1 \(the class is there\) and 0 \(it is not\) only\.$"):
        choose_operating_point([1.0], [0.5], sensitivity=0.9)
    with pytest.raises(ValueError, match=r"^90 rows of scores need 90 patients in groups; got 1\.$"):
        choose_operating_point(scores, present, ["p"], sensitivity=0.9)


def test_the_example_in_the_docs_runs() -> None:
    result = doctest.testmod(fewshot.operating_points)
    assert result.attempted >= 2 and result.failed == 0
