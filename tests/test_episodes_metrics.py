"""Scores against loops and hand counts; what is undefined is said, never NaN."""

from __future__ import annotations

import numpy as np
import pytest

from episodes import EpisodeError, balanced_accuracy, confusion_matrix, ranking_score


def test_confusions_against_a_loop() -> None:
    rng = np.random.default_rng(0)
    true = rng.choice(["a", "b", "c"], 200).tolist()
    answers = [None if rng.random() < 0.1 else str(rng.choice(["a", "b", "c"])) for _ in true]
    found = confusion_matrix(true, answers)
    assert found.classes == ("a", "b", "c")
    for i, one in enumerate("abc"):
        for j, two in enumerate(["a", "b", "c", None]):
            assert found.counts[i, j] == sum(t == one and p == two for t, p in zip(true, answers, strict=True))
    recalls = [
        sum(t == p == name for t, p in zip(true, answers, strict=True)) / true.count(name) for name in ("a", "b", "c")
    ]
    assert found.recall == pytest.approx(recalls)
    assert balanced_accuracy(true, answers) == pytest.approx(sum(recalls) / 3)


def test_classes_without_queries_are_none_and_stay_out_of_the_mean() -> None:
    found = confusion_matrix([1, 1, 2], [1, 3, 2], classes=[1, 2, 3])
    assert found.recall == (0.5, 1.0, None)
    assert balanced_accuracy([1, 1, 2], [1, 3, 2]) == 0.75
    with pytest.raises(EpisodeError, match=r"'x' is not among the classes \('a',\)"):
        confusion_matrix(["a"], ["x"], classes=["a"])
    with pytest.raises(EpisodeError, match="2 true classes and 1 answers"):
        confusion_matrix(["a", "b"], ["a"])
    with pytest.raises(EpisodeError, match="no query to score"):
        balanced_accuracy([], [])


def test_ranking_against_a_loop() -> None:
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, 80).astype(float)
    scores = np.round(truth + rng.normal(size=80), 1)  # with ties
    wins = [(p > n) + 0.5 * (p == n) for p in scores[truth == 1] for n in scores[truth == 0]]
    found = ranking_score(truth, scores)
    assert found.auroc == pytest.approx(np.mean(wins))
    assert (found.positives, found.negatives, found.reason) == (truth.sum(), 80 - truth.sum(), None)
    distinct = scores + np.arange(80) * 1e-6
    order = np.argsort(-distinct)
    precisions = [truth[order][: i + 1].mean() for i in range(80) if truth[order][i]]
    assert ranking_score(truth, distinct).average_precision == pytest.approx(np.mean(precisions))


def test_what_is_undefined_is_said() -> None:
    none = ranking_score([0, 0, np.nan], [0.1, 0.2, 0.3])
    assert (none.positives, none.negatives, none.auroc, none.average_precision) == (0, 2, None, None)
    assert none.reason == "No image has the label."
    every = ranking_score([1, 1], [0.1, 0.2])
    assert (every.auroc, every.average_precision, every.reason) == (None, 1.0, "Every image has the label.")
    # Not mentioned is not absent: the third image's high score costs nothing.
    assert ranking_score([1, 0, np.nan], [0.5, 0.1, 0.9]).auroc == 1.0
    with pytest.raises(EpisodeError, match=r"Score 1 \(counted from 0\) is not a number"):
        ranking_score([1, 0], [0.5, np.nan])
    with pytest.raises(EpisodeError, match=r"1 \(present\), 0 \(absent\) and NaN"):
        ranking_score([2, 0], [0.5, 0.1])
    with pytest.raises(EpisodeError, match=r"equally long lists; got \(1,\) and \(2,\)"):
        ranking_score([1], [0.5, 0.1])
