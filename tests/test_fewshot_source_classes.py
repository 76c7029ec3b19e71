"""Which classes leave their statistics with an encoder: large ones, and none that tells about few patients."""

from __future__ import annotations

import numpy as np
import pytest

from embeddings import SourceStatistics
from fewshot.source_classes import class_statistics

POINTS = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
Labels = list[tuple[str, ...]]


def statistics(labels: Labels, groups: list[str] | None = None) -> SourceStatistics | None:
    return class_statistics(POINTS[: len(labels)], labels, groups)


def test_images_of_the_same_labels_are_a_class() -> None:
    labels: Labels = [("a",)] * 7 + [("b", "a"), ("a", "b")] * 4 + [("b",)] * 2 + [()] * 9
    found = statistics(labels)
    assert found is not None and found.patients.tolist() == [8, 7]
    assert np.allclose(found.means, [POINTS[7:15].mean(0), POINTS[:7].mean(0)], atol=1e-6)
    assert np.allclose(found.variances, [POINTS[7:15].var(0), POINTS[:7].var(0)], atol=1e-6)


def test_classes_of_few_patients_leave_nothing() -> None:
    labels: Labels = [("six",)] * 12 + [("five",)] * 30 + [()] * 12
    groups = [f"p{i // 2}" for i in range(12)] + [f"q{i % 5}" for i in range(30)] + [f"r{i}" for i in range(12)]
    found = statistics(labels, groups)
    assert found is not None and found.patients.tolist() == [6]
    assert np.allclose(found.means[0], POINTS[:12].mean(0), atol=1e-6)
    assert statistics(labels[12:], groups[12:]) is None
    assert statistics([(f"case {i}",) for i in range(60)], [f"p{i}" for i in range(60)]) is None
    assert statistics([()] * 60) is None
    unknown = statistics(labels)  # the thirty images of five patients count as thirty patients
    assert unknown is not None and unknown.patients.tolist() == [30, 12]


@pytest.mark.parametrize("rare", [(), ("rare",), ("a", "b")])
@pytest.mark.parametrize(("left_over", "kept"), [(0, "abc"), (1, "ac"), (5, "ac"), (6, "abc")])
def test_what_follows_from_the_mean_of_all_is_of_many_too(rare: tuple[str, ...], left_over: int, kept: str) -> None:
    sizes = {"a": 9, "b": 7, "c": 8}
    labels: Labels = [(name,) for name, size in sizes.items() for _ in range(size)]
    labels += [rare if left_over < 6 else ()] * left_over  # six of a label would be a class
    found = statistics(labels)
    assert found is not None and found.patients.tolist() == [sizes[name] for name in kept]
    others = [i for i, own in enumerate(labels) if own not in {(name,) for name in kept}]
    rest = POINTS[: len(labels)].sum(axis=0) - found.patients @ found.means
    assert np.allclose(rest, POINTS[others].sum(axis=0), atol=1e-4)  # what a stranger can work out
    assert not others or len(others) >= 6


def test_the_only_class_goes_where_few_are_left_over() -> None:
    assert statistics([("a",)] * 20 + [()] * 5) is None
    assert statistics([("a",)] * 20 + [()] * 6) is not None
    groups = [f"p{i}" for i in range(20)]
    assert statistics([("a",)] * 20 + [()] * 6, groups + ["p0"] * 6) is None  # six images, one patient


@pytest.mark.parametrize(("most", "sizes"), [(1, [9]), (2, [9, 9]), (3, [9, 8, 9]), (4, [6, 9, 8, 9])])
def test_the_largest_classes_are_kept(monkeypatch: pytest.MonkeyPatch, most: int, sizes: list[int]) -> None:
    monkeypatch.setattr("fewshot.source_classes.MOST_CLASSES", most)
    labels: Labels = [("a",)] * 6 + [("b",)] * 9 + [("c",)] * 8 + [("d",)] * 9
    found = statistics(labels)
    assert found is not None and found.patients.tolist() == sizes
    if most == 1:  # of equals the first by name
        assert np.allclose(found.means[0], POINTS[6:15].mean(axis=0), atol=1e-6)


def test_labels_need_not_be_of_one_type_and_the_order_of_images_does_not_matter() -> None:
    labels = [(7,), ("b", 3), (3, "b")] * 8
    found = class_statistics(POINTS[:24], labels, None)
    turned = class_statistics(POINTS[:24][::-1].copy(), labels[::-1], None)
    assert found is not None and turned is not None and found.patients.tolist() == [16, 8] == turned.patients.tolist()
    assert np.allclose(found.means, turned.means, atol=1e-6)


def test_vectors_that_are_not_finite_leave_nothing() -> None:
    broken = POINTS.copy()
    broken[3, 1] = np.nan
    assert class_statistics(broken, [("a",)] * 60, None) is None
