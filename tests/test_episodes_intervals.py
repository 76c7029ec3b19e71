"""Intervals against slow loops, and against the coverage they promise."""

from __future__ import annotations

import numpy as np
import pytest

from episodes import EpisodeError, PairedDifference, episode_interval, paired_difference, patient_bootstrap


def outcomes(seed: int = 0, n: int = 300):
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 4, n)
    groups = classes * 100 + rng.integers(0, 3 + 4 * classes, n)
    return rng.random(n) < 0.3 + 0.15 * classes, classes, groups


def slow_bootstrap(value, classes, groups, draws: int, seed: int):
    """Draw patients one by one; every outcome is repeated as often as its patient came."""
    rng = np.random.default_rng(seed)
    samples = []
    for _ in range(draws):
        means = []
        for name in sorted(set(classes)):
            patients = sorted({g for g, c in zip(groups, classes, strict=True) if c == name})
            drawn = [patients[rng.integers(len(patients))] for _ in patients]
            repeated = [
                v for p in drawn for v, c, g in zip(value, classes, groups, strict=True) if c == name and g == p
            ]
            means.append(sum(repeated) / len(repeated))
        samples.append(sum(means) / len(means))
    return samples


def test_bootstrap_agrees_with_a_slow_loop() -> None:
    value, classes, groups = outcomes(n=60)
    fast = patient_bootstrap(value, classes, groups, draws=20_000)
    slow = np.array(slow_bootstrap(value.tolist(), classes.tolist(), groups.tolist(), 1500, 1))
    pooled = [value[classes == name].mean() for name in range(4)]
    assert fast.estimate == pytest.approx(np.mean(pooled))
    assert fast.class_estimate == pytest.approx(pooled)
    assert fast.samples.mean() == pytest.approx(slow.mean(), abs=4 * slow.std() / np.sqrt(1500))
    assert fast.samples.std() == pytest.approx(slow.std(), rel=0.08)
    assert [fast.low, fast.high] == pytest.approx(np.quantile(slow, [0.025, 0.975]), abs=0.02)
    assert fast.queries.tolist() == [int((classes == name).sum()) for name in range(4)]
    assert fast.patients.tolist() == [len(set(groups[classes == name])) for name in range(4)]


def test_class_intervals_are_the_intervals_of_the_class_alone() -> None:
    value, classes, groups = outcomes()
    every = patient_bootstrap(value, classes, groups, draws=20_000)
    for name in range(4):
        mine = classes == name
        alone = patient_bootstrap(value[mine], classes[mine], groups[mine], draws=20_000, seed=9)
        assert every.class_low[name] == pytest.approx(alone.low, abs=0.02)
        assert every.class_high[name] == pytest.approx(alone.high, abs=0.02)


def test_seed_blocks_and_edges(monkeypatch: pytest.MonkeyPatch) -> None:
    value, classes, groups = outcomes()
    one = patient_bootstrap(value, classes, groups, seed=3)
    assert (one.samples == patient_bootstrap(value, classes, groups, seed=3).samples).all()
    assert (one.samples != patient_bootstrap(value, classes, groups, seed=4).samples).any()
    assert one.samples.shape == (2000,) and one.level == 0.95
    monkeypatch.setattr("episodes.intervals._BLOCK", 1000)
    assert (patient_bootstrap(value, classes, groups, seed=3).samples == one.samples).all()
    sure = patient_bootstrap([1, 1, 1], [0, 0, 1], [0, 1, 0])
    assert (sure.estimate, sure.low, sure.high) == (1.0, 1.0, 1.0)
    assert sure.unreliable == (0, 1)
    assert patient_bootstrap(value, classes, groups).unreliable == (0,)  # class 0 has 3 patients, the others 7 and more
    with pytest.raises(EpisodeError, match=r"equally long and not empty; got \(0,\)"):
        patient_bootstrap([], [], [])
    with pytest.raises(EpisodeError, match=r"equally long and not empty; got \(2,\), \(1,\)"):
        patient_bootstrap([1, 0], [0], [0])


def test_patients_not_queries_make_the_width() -> None:
    # Ten patients who are always or never right: asking each of them a hundred times tells nothing new.
    right = np.array([1, 0] * 5)
    once = patient_bootstrap(right, np.zeros(10), np.arange(10))
    often = patient_bootstrap(np.repeat(right, 100), np.zeros(1000), np.repeat(np.arange(10), 100))
    assert (once.low, once.high) == (often.low, often.high)
    assert episode_interval(np.repeat(right, 100)) < episode_interval(right) / 9


def test_the_interval_covers() -> None:
    # 2 classes x 25 patients with their own difficulty: the truth should lie inside about 19 times in 20.
    held = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        difficulty = np.repeat(rng.beta(2, 1, 50), 8)
        found = patient_bootstrap(
            rng.random(400) < difficulty, np.repeat([0, 1], 200), np.repeat(np.arange(50), 8), draws=500
        )
        held += found.low <= 2 / 3 <= found.high
    assert 178 <= held <= 198


def test_episode_interval() -> None:
    values = [0.5, 0.7, 0.9, 0.6]
    mean = sum(values) / 4
    by_hand = 1.96 * (sum((v - mean) ** 2 for v in values) / 3) ** 0.5 / 4**0.5
    assert episode_interval(values) == pytest.approx(by_hand)
    assert episode_interval([0.5]) is None


def test_paired_difference_uses_the_same_patients_for_both() -> None:
    value, classes, groups = outcomes()
    better = value | (np.arange(300) % 9 == 0)
    found = paired_difference(better, value, classes, groups, names=("new", "old"), seed=5)
    one = patient_bootstrap(better, classes, groups, seed=5)
    two = patient_bootstrap(value, classes, groups, seed=5)
    assert found.difference == pytest.approx(one.estimate - two.estimate)
    assert [found.low, found.high] == pytest.approx(np.quantile(one.samples - two.samples, [0.025, 0.975]))
    assert found.significant and found.p_value == pytest.approx(2 / 2001)
    back = paired_difference(value, better, classes, groups, seed=5)
    assert (back.difference, back.low, back.high) == pytest.approx((-found.difference, -found.high, -found.low))
    assert str(found).startswith("new minus old: +0.0")
    assert str(found).endswith("(patients), p = 0.001; unreliable: few query patients")
    assert (found.unreliable, found.patients) == (True, len(set(groups.tolist())))


def test_equal_classifiers_do_not_differ() -> None:
    value, classes, groups = outcomes()
    same = paired_difference(value, value, classes, groups)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    assert not same.significant
    with pytest.raises(EpisodeError, match=r"Paired outcomes must be equally long; got \(2,\) and \(3,\)"):
        paired_difference([1, 0], [1, 0, 1], [0, 0], [0, 1])


def test_p_values_are_uniform_where_nothing_differs() -> None:
    small = 0
    for trial in range(200):
        rng = np.random.default_rng(trial)
        shift = np.repeat(rng.normal(0, 0.2, 40), 5)
        one, two = rng.random(200) < 0.6 + shift, rng.random(200) < 0.6 - shift
        found = paired_difference(one, two, np.repeat([0, 1], 100), np.repeat(np.arange(40), 5), draws=300)
        small += found.p_value < 0.05
    assert 2 <= small <= 22
    assert isinstance(found, PairedDifference)
