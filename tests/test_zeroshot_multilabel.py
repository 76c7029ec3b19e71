"""Measures of several labels per image, each counted by a slow loop."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from zeroshot import ZeroShotError, multilabel_scores

NAMES = ("a", "b", "c", "d", "e")
Table = NDArray[np.float64]


def task(n: int = 50, seed: int = 0, *, unknown: float = 0.0) -> tuple[Table, Table]:
    rng = np.random.default_rng([3, seed])
    states = (rng.uniform(size=(n, 5)) < [0.1, 0.3, 0.5, 0.3, 0.2]).astype(np.float64)
    scores = rng.normal(size=(n, 5)) + 0.9 * states
    states[rng.uniform(size=(n, 5)) < unknown] = np.nan
    return scores, states


def ranked(row: Table, states: Table) -> list[int]:
    """The known classes of an image, best first."""
    return sorted((c for c in range(5) if not np.isnan(states[c])), key=lambda c: -row[c])


@pytest.mark.parametrize("k", [1, 2, 3, 5])
@pytest.mark.parametrize("unknown", [0.0, 0.2])
def test_precision_recall_and_f1_at_k(k: int, unknown: float) -> None:
    scores, states = task(unknown=unknown)
    precision, recall = [], []
    for row, known in zip(scores, states, strict=True):
        present = [c for c in range(5) if known[c] == 1]
        if not present:
            continue
        hits = sum(c in present for c in ranked(row, known)[:k])
        precision.append(hits / k)
        recall.append(hits / len(present))
    p, r = sum(precision) / len(precision), sum(recall) / len(recall)
    found = multilabel_scores(scores, states, NAMES, ks=(k,))
    assert found.precision_at == {k: pytest.approx(p)} and found.recall_at == {k: pytest.approx(r)}
    assert found.f1_at == {k: pytest.approx(2 * p * r / (p + r))}
    if k == 5:
        assert found.recall_at[5] == 1


@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_auroc_and_average_precision_of_each_class(unknown: float) -> None:
    scores, states = task(unknown=unknown)
    found = multilabel_scores(scores, states, NAMES)
    assert list(found.auroc) == list(found.average_precision) == list(NAMES)
    for c, name in enumerate(NAMES):
        known = [i for i in range(50) if not np.isnan(states[i, c])]
        there = [i for i in known if states[i, c] == 1]
        others = [i for i in known if states[i, c] == 0]
        wins = sum(scores[i, c] > scores[j, c] for i in there for j in others)
        assert found.auroc[name] == pytest.approx(wins / (len(there) * len(others)))
        order = sorted(known, key=lambda i, c=c: -scores[i, c])
        precisions = [
            sum(states[j, c] == 1 for j in order[: place + 1]) / (place + 1)
            for place, i in enumerate(order)
            if states[i, c] == 1
        ]
        assert found.average_precision[name] == pytest.approx(sum(precisions) / len(precisions))
    assert found.mean_average_precision == pytest.approx(sum(found.average_precision.values()) / 5)
    assert found.mean_auroc == pytest.approx(sum(found.auroc.values()) / 5)


@pytest.mark.parametrize("mark", [np.nan, -1.0])
def test_what_is_unknown_takes_no_part_whatever_its_score(mark: float) -> None:
    scores, states = task(unknown=0.3)
    unknown = np.isnan(states)
    shown = np.where(unknown, mark, states)
    one = multilabel_scores(scores, shown, NAMES)
    for filler in (1e6, -1e6):
        assert multilabel_scores(np.where(unknown, filler, scores), shown, NAMES) == one
    assert multilabel_scores(scores, states, NAMES) == one


def test_classes_without_images_on_one_side_are_counted_and_not_scored() -> None:
    scores, states = task()
    states[:, 1], states[:, 3], states[:, 4] = 0.0, 1.0, np.nan
    found = multilabel_scores(scores, states, NAMES)
    assert found.classes == NAMES
    assert found.without_positives == ("b", "e") and found.without_negatives == ("d",)
    assert list(found.auroc) == list(found.average_precision) == ["a", "c"]
    assert found.mean_auroc == pytest.approx((found.auroc["a"] + found.auroc["c"]) / 2)


def test_where_nothing_can_be_scored_nothing_is_made_up() -> None:
    scores, _ = task(n=4)
    found = multilabel_scores(scores, np.zeros((4, 5)), NAMES)
    assert found.mean_auroc is None and found.mean_average_precision is None
    assert found.precision_at == found.recall_at == found.f1_at == {1: 0.0, 2: 0.0, 3: 0.0}


def test_permuted_scores_give_chance() -> None:
    scores, states = task(n=2000)
    shuffled = scores[np.random.default_rng(1).permutation(2000)]
    found = multilabel_scores(shuffled, states, NAMES)
    assert found.mean_auroc == pytest.approx(0.5, abs=0.02)
    assert found.mean_average_precision == pytest.approx(states.mean(), abs=0.03)


def test_what_does_not_fit_is_refused() -> None:
    scores, states = task(n=4)
    with pytest.raises(ZeroShotError, match=r"Scores have 5 dimensions, those of the classes named have 4"):
        multilabel_scores(scores, states, NAMES[:4])
    with pytest.raises(ZeroShotError, match=r"Scores of shape \(4, 5\) need states of the same shape; got \(3, 5\)"):
        multilabel_scores(scores, states[:3], NAMES)
    for k in (0, 6):
        with pytest.raises(ZeroShotError, match=rf"k names between 1 and 5 classes; got {k}"):
            multilabel_scores(scores, states, NAMES, ks=(1, k))
