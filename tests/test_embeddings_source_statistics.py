"""SourceStatistics against slow loops, what it leaves out, and the way to disk and back."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from embeddings.source_statistics import FEWEST_PATIENTS, SourceStatistics


def test_moments_against_a_slow_loop_over_patients() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(60, 4)).astype(np.float32)
    labels = [f"c{rng.integers(3)}" for _ in range(60)]
    groups = [f"p{rng.integers(14)}" for _ in range(60)]
    found = SourceStatistics.of(vectors, labels, groups=groups, min_patients=2)
    assert (len(found), found.dim) == (3, 4)
    assert {found.means.dtype, found.variances.dtype} == {np.dtype(np.float32)}
    for c in range(3):
        patients: dict[str, list[np.ndarray]] = {}
        for row, label, group in zip(vectors.astype(float), labels, groups, strict=True):
            if label == f"c{c}":
                patients.setdefault(group, []).append(row)
        assert found.patients[c] == len(patients) and any(len(rows) > 1 for rows in patients.values())
        for j in range(4):
            mean = sum(sum(row[j] for row in rows) / len(rows) for rows in patients.values()) / len(patients)
            away = [sum((row[j] - mean) ** 2 for row in rows) / len(rows) for rows in patients.values()]
            assert found.means[c, j] == pytest.approx(mean, abs=1e-6)
            assert found.variances[c, j] == pytest.approx(sum(away) / len(away), abs=1e-6)


def test_classes_of_few_patients_are_left_out() -> None:
    vectors = np.arange(40.0)[:, None]
    labels = ["many"] * 20 + ["few"] * 20
    groups = [f"p{i % FEWEST_PATIENTS}" for i in range(20)] + [f"p{i % (FEWEST_PATIENTS - 1)}" for i in range(20)]
    found = SourceStatistics.of(vectors, labels, groups=groups)
    assert found.patients.tolist() == [6] and len(found) == 1
    assert found.means[0, 0] < 20  # the mean of "few" is nowhere
    assert len(SourceStatistics.of(vectors, labels, groups=groups, min_patients=5)) == 2


def test_images_without_a_label_are_left_out_and_unknown_patients_are_their_own() -> None:
    vectors = [[1.0], [3.0], [50.0], [70.0]]
    found = SourceStatistics.of(vectors, ["a", "a", None, math.nan], groups=[None, math.nan, "p", "q"], min_patients=2)
    assert (found.means.tolist(), found.variances.tolist(), found.patients.tolist()) == ([[2.0]], [[1.0]], [2])
    same = SourceStatistics.of(vectors[:2], ["a", "a"], groups=None, min_patients=2)
    assert same.means.tolist() == [[2.0]]


def test_to_disk_and_back(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    one = SourceStatistics(rng.normal(size=(3, 5)), rng.uniform(size=(3, 5)), [6, 7, 800])
    save_file(one.to_arrays(), tmp_path / "source.safetensors")
    two = SourceStatistics.from_arrays(load_file(tmp_path / "source.safetensors"))
    for name in ("means", "variances", "patients"):
        assert np.array_equal(getattr(one, name), getattr(two, name))
        assert getattr(one, name).dtype == getattr(two, name).dtype
    with pytest.raises(ValueError, match=r"^Source statistics need the arrays means, variances, patients; patients is"):
        SourceStatistics.from_arrays({"means": one.means, "variances": one.variances})


def test_nobody_can_change_them() -> None:
    means = np.ones((1, 2), dtype=np.float32)
    found = SourceStatistics(means, means, [6])
    means[:] = 5.0
    assert found.means.tolist() == [[1.0, 1.0]]
    with pytest.raises(ValueError, match="read-only"):
        found.means[0, 0] = 2.0
    with pytest.raises(AttributeError, match="cannot assign to field 'means'"):
        found.means = means


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"means": [1.0, 2.0]}, r"^Source means must be rows of shape \(classes, d\); got an array of shape \(2,\)\.$"),
        ({"means": np.empty((0, 2))}, r"^Source means must be rows of shape \(classes, d\); got an array of shape \(0"),
        ({"variances": [[1.0]]}, r"^Source variances must have the means' shape \(1, 2\); got \(1, 1\)\.$"),
        ({"means": [[1.0, np.nan]]}, r"^Source means and variances must be finite; they hold NaN or infinity\.$"),
        ({"variances": [[1.0, np.inf]]}, r"^Source means and variances must be finite; they hold NaN or infinity\.$"),
        ({"variances": [[1.0, -0.5]]}, r"^Source variances must be at least 0; the least is -0\.5\.$"),
        (
            {"patients": [6, 7]},
            r"^Source patients must be 1 whole numbers of at least 1, one per class; got \[6 7\]\.$",
        ),
        ({"patients": [0]}, r"^Source patients must be 1 whole numbers of at least 1, one per class; got \[0\]\.$"),
        (
            {"patients": [6.5]},
            r"^Source patients must be 1 whole numbers of at least 1, one per class; got \[6\.5\]\.$",
        ),
    ],
)
def test_what_is_no_statistics(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceStatistics(**({"means": [[1.0, 2.0]], "variances": [[1.0, 1.0]], "patients": [6]} | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": [1.0, 2.0]}, r"^Source vectors must be rows of shape \(n, d\); got an array of shape \(2,\)\.$"),
        ({"vectors": [[1.0], [np.inf]]}, r"^Source vectors must be finite; they hold NaN or infinity\.$"),
        ({"labels": ["a"]}, r"^2 source vectors need 2 labels; got 1\.$"),
        ({"groups": ["p"]}, r"^2 source vectors need 2 groups; got 1\.$"),
        ({"min_patients": 1}, r"^min_patients must be a whole number of at least 2; got 1\.$"),
        ({"min_patients": True}, r"^min_patients must be a whole number of at least 2; got True\.$"),
        ({}, r"^No source class has the 6 patients that its mean needs; the largest has 2\.$"),
        ({"labels": [None, None]}, r"^No source class has the 6 patients that its mean needs; the largest has 0\.$"),
    ],
)
def test_what_cannot_be_learnt_from(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SourceStatistics.of(**({"vectors": [[1.0], [2.0]], "labels": ["a", "a"], "groups": ["p", "q"]} | change))
