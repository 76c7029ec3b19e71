"""Telling that a query is none of the known classes: slow loops, and the promised false alarms by simulation."""

from __future__ import annotations

import doctest
import json
import math

import numpy as np
import pytest

import fewshot.novelty
from fewshot.calibration_rows import TooFewPatients
from fewshot.conformal import fit_split_conformal
from fewshot.cross_conformal import fit_cross_conformal
from fewshot.novelty import NoveltyDetector, fit_novelty, nearest_similarity, none_of_these, winning_score


def test_p_values_and_threshold_against_slow_loops() -> None:
    rng = np.random.default_rng(0)
    closeness = np.round(rng.normal(size=80), 1)
    groups = [f"p{rng.integers(30)}" for _ in range(80)]
    asked = np.round(rng.normal(size=40), 1)
    fitted = fit_novelty(closeness, groups)
    names = sorted(set(groups))
    expected = []
    for value in asked:
        total = 0.0
        for name in names:
            own = [c for c, group in zip(closeness, groups, strict=True) if group == name]
            total += sum(c <= value for c in own) / len(own)
        expected.append((1 + total) / (len(names) + 1))
    assert fitted.p_values(asked) == pytest.approx(expected) and fitted.patients == len(names)
    answer = fitted.none_of_these(asked, 0.2)
    assert answer.novel.tolist() == [p <= 0.2 for p in expected]
    assert answer.novel.tolist() == (asked < fitted.threshold(0.2)).tolist()
    assert (answer.promised, answer.needed, answer.found) == (0.2, 4, (len(names),))
    order = rng.permutation(80)
    assert fit_novelty(closeness[order], [groups[i] for i in order]) == fitted
    assert NoveltyDetector.from_json(json.loads(json.dumps(fitted.to_json(), allow_nan=False))) == fitted


def patients(rng: np.random.Generator, n: int) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Closeness of patients, of whom those who lie far have a single image and those who lie near have ten."""
    far = rng.random(n) < 0.4
    images = np.where(far, 1, 10)
    groups = np.repeat(np.arange(n), images)
    level = np.where(far, -2.0, 0.0) + 0.5 * rng.normal(size=n)
    return level[groups] + 0.1 * rng.normal(size=groups.size), groups.tolist(), np.cumsum(images) - images


def test_false_alarms_over_patients_are_as_promised_where_counting_images_is_not_enough() -> None:
    rng = np.random.default_rng(0)
    ours, naive = [], []
    for _ in range(300):
        closeness, groups, _ = patients(rng, 30)
        new, _, first = patients(rng, 30)
        ours.append(fit_novelty(closeness, groups).none_of_these(new[first], 0.1).novel.mean())
        naive.append(fit_novelty(closeness).none_of_these(new[first], 0.1).novel.mean())
    error = np.std(ours) / math.sqrt(300)
    assert 0.06 < np.mean(ours) <= 0.1 + 2 * error
    assert np.mean(naive) > 0.1 + 5 * error


@pytest.mark.parametrize("per_class", [False, True])
def test_every_class_turns_away_what_is_far_and_rarely_what_is_known(per_class: bool) -> None:
    rng = np.random.default_rng(0)
    alarms, caught = [], []
    for _ in range(200):
        truth = rng.integers(2, size=80)
        scores = -np.abs(rng.normal(size=(80, 2))) - 3 * (1 - np.eye(2)[truth])  # minus a distance to each class
        fitted = fit_split_conformal(scores[:50], truth[:50], per_class=per_class, nonconformity="distance")
        answer = none_of_these(fitted, scores[50:], 0.1)
        sets = fitted.sets(scores[50:], 0.9)
        assert answer.novel.tolist() == (~sets.members.any(axis=1)).tolist()
        alarms.append(answer.novel.mean())
        caught.append(none_of_these(fitted, np.full((30, 2), -4.0), 0.1).novel.mean())
    assert np.mean(alarms) <= 0.1 + 2 * np.std(alarms) / math.sqrt(200)
    assert np.mean(caught) > 0.95


def test_scores_held_out_of_the_support_promise_twice_the_rate() -> None:
    rng = np.random.default_rng(0)
    scores, targets = rng.normal(size=(20, 2)), np.array([0, 1] * 10)
    fitted = fit_cross_conformal(scores, targets, None, np.arange(20), n_folds=20, nonconformity="distance")
    queries = np.concatenate([np.full((1, 2), -9.0), np.full((1, 2), 9.0), np.full((1, 2), np.nan)])
    answer = none_of_these(fitted, np.repeat(queries[None], 20, axis=0), 0.1)
    assert answer.novel.tolist() == [True, False, False]
    assert (answer.promised, answer.false_alarm) == (pytest.approx(0.2), 0.1)


def test_too_few_patients() -> None:
    few = fit_novelty(np.arange(8.0))
    answer = few.none_of_these([-5.0], 0.1)
    assert answer.novel is None and (answer.needed, answer.found) == (9, (8,))
    with pytest.raises(
        TooFewPatients, match=r"^A false-alarm rate of 0\.1 needs 9 calibration patients; got 8\.$"
    ) as caught:
        few.threshold(0.1)
    assert (caught.value.needed, caught.value.found) == (9, 8)
    assert fit_novelty(np.arange(9.0)).none_of_these([-5.0], 0.1).novel.tolist() == [True]
    by_class = fit_split_conformal(
        np.eye(2)[[0] * 9 + [1] * 8], [0] * 9 + [1] * 8, per_class=True, nonconformity="distance"
    )
    assert none_of_these(by_class, [[0.0, 0.0]], 0.1).novel is None


def test_closeness_against_slow_loops() -> None:
    rng = np.random.default_rng(0)
    rows, support, center = rng.normal(size=(5, 3)), rng.normal(size=(7, 3)), rng.normal(size=3)
    rows[4] = np.nan
    cosine = nearest_similarity(rows, support, center=center)
    euclidean = nearest_similarity(rows, support, metric="euclidean")
    for i in range(4):
        a = [(rows[i] - center) / np.linalg.norm(rows[i] - center)]
        b = [(s - center) / np.linalg.norm(s - center) for s in support]
        assert cosine[i] == pytest.approx(max(float(a[0] @ other) for other in b), abs=1e-6)
        assert euclidean[i] == pytest.approx(max(-float(((rows[i] - s) ** 2).sum()) for s in support), abs=1e-5)
    assert np.isnan(cosine[4]) and np.isnan(euclidean[4])
    assert fit_novelty(np.append(cosine, 0.5), [1, 2, 3, 4, 5, 6]).patients == 5  # NaN is left out
    best = winning_score([[0.0, 2.0], [np.nan, np.nan], [1.0, -np.inf]])
    assert best[[0, 2]].tolist() == [2.0, 1.0] and np.isnan(best[1])


def test_errors() -> None:
    with pytest.raises(TooFewPatients, match=r"^Telling what is novel needs 1 calibration patient; got 0\.$"):
        fit_novelty([np.nan])
    with pytest.raises(ValueError, match=r"^closeness must be a list of one number per image; got an array of shape"):
        fit_novelty([[1.0]])
    with pytest.raises(ValueError, match=r"^false_alarm must lie strictly between 0 and 1; got 0\.$"):
        fit_novelty(np.arange(20.0)).none_of_these([0.0], 0)
    with pytest.raises(ValueError, match=r"^scores must be rows of shape \(m, n_classes\)"):
        winning_score([1.0])
    with pytest.raises(ValueError, match=r"^Vectors have 2 dimensions, the comparison set has 3\.$"):
        nearest_similarity([[1.0, 2.0]], [[1.0, 2.0, 3.0]])
    with pytest.raises(ValueError, match=r"^The comparison set is empty: register at least one image before asking\.$"):
        nearest_similarity([[1.0, 2.0]], np.empty((0, 2)))
    with pytest.raises(
        ValueError, match=r"^Only the nonconformity 'distance' tells a query that fits no class; got 'm"
    ):
        none_of_these(fit_split_conformal([[1.0, 0.0]], [0]), [[1.0, 0.0]], 0.1)


def test_the_example_in_the_docs_runs() -> None:
    result = doctest.testmod(fewshot.novelty)
    assert result.attempted >= 2 and result.failed == 0
