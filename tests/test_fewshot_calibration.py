"""Temperature and isotonic calibration against slow loops, plain optimisers and simulations with known truth."""

from __future__ import annotations

import doctest
import json
import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import fewshot.calibration
from episodes.calibration_metrics import reliability
from fewshot.calibration import (
    IsotonicCalibration,
    TemperatureScaling,
    fit_isotonic,
    fit_temperature,
    with_prior,
)
from fewshot.calibration_rows import TooFewPatients


def drawn(
    n: int = 200, classes: int = 3, *, truth: float = 0.5, seed: int = 0
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Scores whose softmax at temperature `truth` is the true chance of each class; patients have 1 to 3 images."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(n, classes))
    powers = np.exp(scores / truth)
    chances = powers / powers.sum(axis=1, keepdims=True)
    targets = np.array([rng.choice(classes, p=row) for row in chances])
    return scores, targets, [f"p{rng.integers(n // 2)}" for _ in range(n)]


def slow_loss(scores: np.ndarray, targets: np.ndarray, groups: list[str], temperature: float, firth: bool) -> float:
    classes = scores.shape[1]
    loss, information, inverse_sizes = 0.0, 0.0, 0.0
    for c in range(classes):
        own = [i for i in range(len(targets)) if targets[i] == c]
        patients = sorted({groups[i] for i in own})
        inverse_sizes += 1 / len(patients)
        for patient in patients:
            images = [i for i in own if groups[i] == patient]
            for i in images:
                weight = 1 / len(images) / len(patients) / classes
                powers = [math.exp(s / temperature) for s in scores[i]]
                chances = [power / sum(powers) for power in powers]
                loss -= weight * math.log(chances[c])
                mean = sum(p * s for p, s in zip(chances, scores[i], strict=True))
                information += weight * sum(p * (s - mean) ** 2 for p, s in zip(chances, scores[i], strict=True))
    return classes**2 / inverse_sizes * loss - firth * 0.5 * math.log(information)


@pytest.mark.parametrize("firth", [False, True])
def test_the_temperature_minimises_the_loss_of_slow_loops(firth: bool) -> None:
    scores, targets, groups = drawn(60)
    fitted = fit_temperature(scores, targets, groups, reduce_bias=firth)
    judge = minimize_scalar(
        lambda log: slow_loss(scores, targets, groups, math.exp(log), firth), bounds=(-5, 5), method="bounded"
    )
    assert fitted.temperature == pytest.approx(math.exp(judge.x), rel=1e-3)
    assert (fitted.n_classes, fitted.patients) == (3, len(set(groups)))


@pytest.mark.parametrize("patients", [10, 40])
def test_few_patients_are_not_too_sure_on_average(patients: int) -> None:
    inverse = {True: [], False: []}
    for seed in range(60):
        scores, targets, _ = drawn(patients, 2, truth=0.5, seed=seed)
        if len(set(targets)) == 2:
            for firth, found in inverse.items():
                found.append(1 / fit_temperature(scores, targets, reduce_bias=firth).temperature)
    error = np.std(inverse[True]) / np.sqrt(len(inverse[True]))
    assert abs(np.mean(inverse[True]) - 2) < 2.5 * error  # the truth is 1 / 0.5
    assert np.mean(inverse[False]) > np.mean(inverse[True])


def test_the_true_temperature_is_found_again() -> None:
    scores, targets, _ = drawn(20_000, truth=0.3)
    assert fit_temperature(scores, targets).temperature == pytest.approx(0.3, rel=0.05)
    assert fit_temperature(50 * scores, targets).temperature == pytest.approx(15, rel=0.05)


def test_separable_patients_do_not_make_it_certain() -> None:
    for each in (2, 10, 1000):
        targets = np.repeat(np.arange(5), each)
        scores = np.eye(5)[targets]
        wrong = 1 - fit_temperature(scores, targets).probabilities(scores).max()
        assert 0.7 / (2 * 5 * each) < wrong < 1.1 / (2 * 5 * each)
    targets = np.repeat(np.arange(5), 10)
    plain = fit_temperature(np.eye(5)[targets], targets, reduce_bias=False)
    assert plain.probabilities(np.eye(5)).max() > 1 - 1e-12  # Guo et al.'s own fit is certain


def test_scores_that_say_nothing_or_the_opposite_give_equal_probabilities() -> None:
    targets = np.repeat(np.arange(2), 10)
    for scores in (np.zeros((20, 2)), -np.eye(2)[targets]):
        assert fit_temperature(scores, targets).probabilities(scores) == pytest.approx(0.5, abs=1e-3)


def test_a_patient_counts_once_and_order_changes_no_bit() -> None:
    scores, targets, groups = drawn(80)
    once = fit_temperature(scores, targets, groups)
    twice = fit_temperature(np.tile(scores, (3, 1)), np.tile(targets, 3), groups * 3)
    assert twice.temperature == pytest.approx(once.temperature, rel=1e-9)
    assert fit_temperature(scores, targets).temperature != pytest.approx(once.temperature, rel=1e-3)
    order = np.random.default_rng(1).permutation(80)
    shuffled = [scores[order], targets[order], [groups[i] for i in order]]
    assert fit_temperature(*shuffled) == once
    big, more, own = drawn(400)
    order = np.random.default_rng(1).permutation(400)
    assert fit_isotonic(big, more, own) == fit_isotonic(big[order], more[order], [own[i] for i in order])


def test_classes_the_head_did_not_know_and_rows_of_nan() -> None:
    scores, targets, _ = drawn(300)
    holes = scores.copy()
    holes[:10] = np.nan
    holes[np.arange(10, 20), targets[10:20]] = -np.inf  # held out with the only patient of its class
    assert fit_temperature(holes, targets) == fit_temperature(scores[20:], targets[20:])
    holes[20:40, 2] = np.where(targets[20:40] == 2, holes[20:40, 2], -np.inf)
    for fitted in (fit_temperature(holes, targets), fit_isotonic(holes, targets)):
        found = fitted.probabilities(holes)
        assert np.isnan(found[:10]).all() and np.isfinite(found[10:]).all()
        assert found[10:].sum(axis=1) == pytest.approx(1)
        assert (found[np.isneginf(holes)] == 0).all()


def test_temperature_and_curves_make_bent_scores_reliable() -> None:
    scores, targets, _ = drawn(6000, truth=0.5)
    scores = np.sign(scores) * np.abs(scores) ** 1.5 * 20
    fit, held = slice(0, 3000), slice(3000, 6000)
    raw = TemperatureScaling(1.0, 3, 0)
    errors = {}
    for name, fitted in (
        ("raw", raw),
        ("temperature", fit_temperature(scores[fit], targets[fit])),
        ("isotonic", fit_isotonic(scores[fit], targets[fit])),
    ):
        found = fitted.probabilities(scores[held])
        errors[name] = reliability(found.max(axis=1), found.argmax(axis=1) == targets[held]).ece
    assert errors["raw"] > 0.1 and errors["temperature"] < 0.05 and errors["isotonic"] < 0.05


def test_isotonic_curves_of_a_case_by_hand() -> None:
    targets = np.repeat([0, 1], 20)
    scores = np.zeros((40, 2))
    scores[:, 0] = np.repeat([2.0, 1.0, 2.0, 1.0], [15, 5, 5, 15])  # 15 of 20 high scores are class 0
    found = fit_isotonic(scores, targets).probabilities([[2.0, 0.0], [1.0, 0.0]])
    high, low = (20 * 0.75 + 0.5) / 21, (20 * 0.25 + 0.5) / 21
    assert found == pytest.approx(np.array([[high, low], [low, high]]))
    apart = fit_isotonic(np.eye(2)[targets], targets).probabilities(np.eye(2))
    assert apart.diagonal() == pytest.approx(20.5 / 21)  # never 1


def test_a_prior_moves_probabilities_as_bayes_does() -> None:
    balanced = np.array([[0.5, 0.5], [0.9, 0.1], [np.nan, np.nan]])
    moved = with_prior(balanced, [0.9, 0.1])
    assert moved[:2] == pytest.approx(np.array([[0.9, 0.1], [0.81 / 0.82, 0.01 / 0.82]]))
    assert np.isnan(moved[2]).all()
    scores, targets, _ = drawn(200)
    fitted = fit_temperature(scores, targets)
    equal = fitted.probabilities(scores)
    assert fitted.probabilities(scores, prior=[1 / 3] * 3) == pytest.approx(equal)
    assert (fitted.probabilities(scores, prior=[0.5, 0.5, 0.0])[:, 2] == 0).all()


def test_documents_come_back_through_json() -> None:
    scores, targets, groups = drawn(400)
    for fitted in (fit_temperature(scores, targets, groups), fit_isotonic(scores, targets, groups)):
        document = json.loads(json.dumps(fitted.to_json(), allow_nan=False))
        again = type(fitted).from_json(document)
        assert again == fitted
        assert np.array_equal(again.probabilities(scores), fitted.probabilities(scores))
    with pytest.raises(ValueError, match=r"missing are \['patients'\], unknown \['colour'\]\.$"):
        TemperatureScaling.from_json({"temperature": 1.0, "n_classes": 2, "colour": 1})


def test_too_few_patients() -> None:
    scores, targets, _ = drawn(200)
    with pytest.raises(TooFewPatients, match=r"^A temperature needs 10 calibration patients; got 4\.$") as caught:
        fit_temperature(scores, targets, [f"p{i % 4}" for i in range(200)])
    assert (caught.value.needed, caught.value.found, caught.value.target) == (10, 4, None)
    with pytest.raises(TooFewPatients, match=r"^A temperature needs 1 calibration patient of class 1 \(counted from 0"):
        fit_temperature(scores[targets != 1], targets[targets != 1])
    with pytest.raises(
        TooFewPatients,
        match=r"^Isotonic calibration needs 20 calibration patients of class 2 \(counted from 0\); got 3\.$",
    ) as caught:
        fit_isotonic(
            np.concatenate([scores[targets != 2], scores[:3]]), np.concatenate([targets[targets != 2], [2] * 3])
        )
    assert (caught.value.needed, caught.value.found, caught.value.target) == (20, 3, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0, 2.0], [0, 1]), r"^scores must be rows of shape \(n, n_classes\); got an array of shape \(2,\)\.$"),
        (([[1.0, 2.0]], [0, 1]), r"^1 rows of scores need 1 targets; got shape \(2,\)\.$"),
        (([[1.0, 2.0]], [0.5]), r"^targets must be whole numbers, the positions of the classes; got float64\.$"),
        (([[1.0, 2.0]], [2]), r"^A target must be a column of the scores, 0 to 1; got 2\.$"),
        (([[1.0, 2.0]], [0], ["a", "b"]), r"^1 rows of scores need 1 patients in groups; got 2\.$"),
        (([[1.0, np.nan]], [0]), r"^A row of scores holds NaN throughout or nowhere; row 0 holds both\.$"),
        (([[1.0, np.inf]], [0]), r"^Scores must be below infinity; row 0\.$"),
    ],
)
def test_errors_of_lists(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit_temperature(*arguments)


def test_errors_of_options() -> None:
    scores, targets, _ = drawn(200)
    fitted = fit_temperature(scores, targets)
    with pytest.raises(ValueError, match=r"^The calibration has 3 classes, the scores have 2\.$"):
        fitted.probabilities([[0.0, 1.0]])
    with pytest.raises(ValueError, match=r"^The prior needs 3 frequencies; got shape \(2,\)\.$"):
        fitted.probabilities(scores, prior=[0.5, 0.5])
    with pytest.raises(ValueError, match=r"^The prior must be at least 0 and sum to 1; got \[0\.5, 0\.5, 0\.5\]\.$"):
        fitted.probabilities(scores, prior=[0.5, 0.5, 0.5])
    assert isinstance(fit_isotonic(scores, targets), IsotonicCalibration)


def test_the_example_in_the_docs_runs() -> None:
    result = doctest.testmod(fewshot.calibration)
    assert result.attempted >= 2 and result.failed == 0
