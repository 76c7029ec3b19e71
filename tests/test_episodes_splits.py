"""No patient on two sides of any split, and classes spread as asked."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from episodes import EpisodeError, by_column, k_fold, leave_one_patient_out, seen_unseen, split


@st.composite
def patients_and_labels(draw: st.DrawFn):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n = draw(st.integers(10, 120))
    groups = [f"p{i}" for i in rng.integers(0, draw(st.integers(8, 60)), n)]
    names = list("abcde")
    if draw(st.booleans()):
        return [tuple(rng.choice(names, rng.integers(0, 3), replace=False)) for _ in range(n)], groups
    return rng.choice(names, n).tolist(), groups


def owners(groups, rows):
    return {groups[row] for row in rows}


@settings(max_examples=100, deadline=None)
@given(data=patients_and_labels(), seed=st.integers(0, 99), fractions=st.sampled_from([(0.8, 0.2), (0.5, 0.3, 0.2)]))
def test_split_divides_patients(data, seed, fractions) -> None:
    labels, groups = data
    try:
        parts = split(labels, groups=groups, fractions=fractions, seed=seed)
    except EpisodeError as error:
        assert "would be empty" in str(error)
        assert len(set(groups)) < 12
        return
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    for i, one in enumerate(parts):
        assert (np.diff(one) > 0).all()
        for two in parts[i + 1 :]:
            assert not owners(groups, one) & owners(groups, two)


@settings(max_examples=40, deadline=None)
@given(data=patients_and_labels(), seed=st.integers(0, 99))
def test_folds_divide_patients(data, seed) -> None:
    labels, groups = data
    try:
        folds = k_fold(labels, 3, groups=groups, seed=seed)
    except EpisodeError as error:
        assert "cannot be stratified" in str(error) or "n_folds must lie" in str(error)
        return
    assert [fold.held_out for fold in folds] == [0, 1, 2]
    assert sorted(np.concatenate([fold.test for fold in folds]).tolist()) == list(range(len(labels)))
    for fold in folds:
        assert not owners(groups, fold.train) & owners(groups, fold.test)
        assert sorted([*fold.train, *fold.test]) == list(range(len(labels)))


def test_every_class_is_spread_as_the_fractions_say() -> None:
    rng = np.random.default_rng(0)
    labels = rng.choice(["common", "usual", "rare"], 3000, p=[0.7, 0.27, 0.03]).tolist()
    groups = rng.integers(0, 1500, 3000).tolist()
    for part, share in zip(split(labels, groups=groups, fractions=(0.7, 0.2, 0.1)), (0.7, 0.2, 0.1), strict=True):
        assert len(part) == pytest.approx(3000 * share, rel=0.02)
        for name in ("common", "usual", "rare"):
            inside = sum(labels[row] == name for row in part)
            assert inside == pytest.approx(labels.count(name) * share, abs=2)


def test_several_labels_count_as_the_rarest() -> None:
    # Ten patients carry "rare" beside "common"; two in ten of them belong into a part of a fifth.
    labels = [("common", "rare")] * 10 + [("common",)] * 90
    _, small = split(labels, fractions=(0.8, 0.2))
    assert len(small) == 20
    assert sum(row < 10 for row in small) == 2


def test_seeds() -> None:
    labels = ["a", "b"] * 40
    one, again, other = (split(labels, seed=seed)[0].tolist() for seed in (1, 1, 2))
    assert one == again != other
    first, same, third = (k_fold(labels, 4, seed=seed)[0].test.tolist() for seed in (1, 1, 2))
    assert first == same != third


def test_one_patient_out() -> None:
    folds = list(leave_one_patient_out(["b", "a", "b", "c"]))
    assert [(fold.held_out, fold.test.tolist(), fold.train.tolist()) for fold in folds] == [
        ("a", [1], [0, 2, 3]),
        ("b", [0, 2], [1, 3]),
        ("c", [3], [0, 1, 2]),
    ]


def test_one_site_out_takes_the_sites_patients_along() -> None:
    sites, patients = ["N", "N", "S", "S", "S"], [1, 2, 2, 3, 4]
    folds = {fold.held_out: (fold.train.tolist(), fold.test.tolist()) for fold in by_column(sites, groups=patients)}
    assert folds == {"N": ([3, 4], [0, 1]), "S": ([0], [2, 3, 4])}
    plain = {fold.held_out: fold.train.tolist() for fold in by_column(sites)}
    assert plain == {"N": [2, 3, 4], "S": [0, 1]}
    with pytest.raises(EpisodeError, match="Holding out 'N' leaves nothing to learn from"):
        list(by_column(["N", "S"], groups=[1, 1]))


def test_seen_and_unseen_classes() -> None:
    seen, unseen = seen_unseen(["d", "a", "b", "c", "a"], 2, seed=1)
    assert set(seen) | set(unseen) == set("abcd")
    assert not set(seen) & set(unseen)
    assert (len(seen), len(unseen)) == (2, 2)
    assert list(seen) == sorted(seen)
    assert seen_unseen("abcd", 2, seed=1) == (seen, unseen)
    drawn = {seen_unseen("abcd", 1, seed=seed)[1] for seed in range(40)}
    assert drawn == {("a",), ("b",), ("c",), ("d",)}


def test_refusals() -> None:
    with pytest.raises(EpisodeError, match=r"positive numbers that sum to 1; got \(0\.5, 0\.4\)"):
        split(["a"] * 9, fractions=(0.5, 0.4))
    with pytest.raises(EpisodeError, match=r"Part 2 of 2 \(0\.2 of 4 images\) would be empty: 1 patients are too few"):
        split(["a"] * 4, groups=[1] * 4)
    with pytest.raises(EpisodeError, match="There are no images to split"):
        split([])
    with pytest.raises(EpisodeError, match="between 2 and the number of patients, 3; got 4"):
        k_fold(["a"] * 6, 4, groups=[1, 1, 2, 2, 3, 3])
    with pytest.raises(EpisodeError, match="No class has 3 images, so 3 folds cannot be stratified"):
        k_fold(["a", "a", "b", "b"], 3)
    with pytest.raises(EpisodeError, match="at least two patients; got 1"):
        leave_one_patient_out(["a", "a"])
    with pytest.raises(EpisodeError, match="at least two values; got 1"):
        by_column(["a", "a"])
    with pytest.raises(EpisodeError, match="n_unseen must lie between 1 and 2 for 3 classes; got 3"):
        seen_unseen("abc", 3)
    with pytest.raises(EpisodeError, match="one patient per image"):
        split(["a"] * 4, groups=[1])
