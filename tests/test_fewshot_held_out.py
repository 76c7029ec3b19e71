"""Held-out scores: every patient is scored by a head that never saw any of his images, whatever the folds."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from fewshot import PrototypeClassifier, fit_folds, held_out_scores, patient_folds
from fewshot.held_out import MANY_FOLDS, MOST_LEFT_OUT_ALONE, patient_codes
from fewshot.support import Support


def support(patients: int, *, classes: int = 3, images: int = 1, seed: int = 0) -> Support:
    rng = np.random.default_rng(seed)
    labels = [f"c{p % classes}" for p in range(patients) for _ in range(images)]
    vectors = np.eye(classes, 6)[[int(label[1:]) for label in labels]] + 0.5 * rng.normal(size=(len(labels), 6))
    groups = [f"p{p}" for p in range(patients) for _ in range(images)]
    return Support(vectors, labels, ids=[f"i{i:04}" for i in range(len(labels))], groups=groups)


def by_hand(held: Support) -> NDArray[np.float64]:
    scores = np.full((len(held), len(held.classes)), np.nan)
    for i, group in enumerate(held.groups):
        rest = [j for j, other in enumerate(held.groups) if other != group]
        head = PrototypeClassifier().fit(
            held.vectors[rest], [held.labels[j] for j in rest], groups=[held.groups[j] for j in rest]
        )
        scores[i] = -np.inf
        scores[i, [held.classes.index(label) for label in head.classes_.tolist()]] = head.scores(held.vectors[[i]])[0]
    return scores


@pytest.mark.parametrize("images", [1, 3])
def test_scores_are_those_of_heads_fitted_to_all_other_patients(images: int) -> None:
    held = support(8, images=images)
    found = held_out_scores(fit_folds(PrototypeClassifier, held, patient_folds(held)), held)
    assert np.array_equal(found, by_hand(held))


def test_a_class_whose_only_patient_is_left_out_is_unknown_to_that_head() -> None:
    held = support(7)  # c0 has three patients, c1 and c2 two
    alone = Support(held.vectors[[0, 1, 3, 4]], ["a", "b", "b", "b"], groups=["p", "q", "r", "s"])
    found = held_out_scores(fit_folds(PrototypeClassifier, alone, patient_folds(alone)), alone)
    assert np.isneginf(found[0, 0]) and np.isfinite(found[0, 1])
    assert np.isfinite(found[1:]).all()
    assert np.array_equal(found, by_hand(alone))


@pytest.mark.parametrize(
    ("patients", "n_folds", "expected"),
    [(9, None, 9), (9, 2, 2), (9, 50, 9), (MOST_LEFT_OUT_ALONE + 1, None, MANY_FOLDS), (300, 7, 7)],
)
def test_each_patient_is_in_exactly_one_fold(patients: int, n_folds: int | None, expected: int) -> None:
    held = support(patients, images=2)
    folds = patient_folds(held, n_folds=n_folds)
    assert len(folds) == expected
    assert sorted(np.concatenate(folds).tolist()) == list(range(len(held)))
    codes = patient_codes(held)
    owners = [set(codes[rows].tolist()) for rows in folds]
    assert sum(map(len, owners)) == patients
    assert set.union(*owners) == set(range(patients))
    again = patient_folds(held, n_folds=n_folds)
    assert all(np.array_equal(one, two) for one, two in zip(folds, again, strict=True))


def test_folds_of_several_patients_hold_every_class() -> None:
    held = support(60)
    folds = patient_folds(held, n_folds=5, seed=3)
    assert {len(rows) for rows in folds} == {12}
    assert all(np.bincount(held.targets[rows]).tolist() == [4, 4, 4] for rows in folds)
    others = patient_folds(held, n_folds=5, seed=4)
    assert any(not np.array_equal(one, two) for one, two in zip(folds, others, strict=True))


def test_a_single_patient_leaves_nothing_to_learn_from() -> None:
    held = Support([[1.0, 0.0], [0.0, 1.0]], ["a", "b"], groups=["p", "p"])
    assert fit_folds(PrototypeClassifier, held, patient_folds(held)) == []
    assert np.isnan(held_out_scores([], held)).all()


def test_rows_nothing_can_be_decided_about_are_nan() -> None:
    held = Support([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.0, 0.0], [0.1, 0.9]], ["a", "a", "b", "b", "b"])
    found = held_out_scores(fit_folds(PrototypeClassifier, held, patient_folds(held)), held)
    assert np.isnan(found[3]).all() and np.isfinite(found[[0, 1, 2, 4]]).all()
