"""Outlier scores of support images against slow loops, and what they find and leave alone."""

from __future__ import annotations

import doctest
import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fewshot.outlier_fits
import fewshot.outliers
from fewshot.outliers import FALSE_ALARM_RATE, FEWEST_COMPARED, SUSPECT_AT, OutlierReport, outlier_scores
from fewshot.support import similarities


def clean_set(
    seed: int = 0, classes: int = 4, patients: int = 5, d: int = 12, spread: float = 0.5
) -> tuple[np.ndarray, list[str], list[str], list[str]]:
    """Classes of patients with one to three images each."""
    rng = np.random.default_rng(seed)
    centers = rng.normal(size=(classes, d))
    vectors, labels, groups = [], [], []
    for c in range(classes):
        for p in range(patients):
            place = centers[c] + spread * rng.normal(size=d)
            for _ in range(int(rng.integers(1, 4))):
                vectors.append(place + 0.1 * rng.normal(size=d))
                labels.append(f"class {c}")
                groups.append(f"p{c}{p}")
    ids = [f"i{i:03}" for i in rng.permutation(len(labels))]
    return np.array(vectors, dtype=np.float32), labels, ids, groups


def one_per_patient(
    classes: int, patients: int, d: int, seed: int, spread: float = 1.0
) -> tuple[np.ndarray, list[int]]:
    rng = np.random.default_rng(seed)
    labels = [c for c in range(classes) for _ in range(patients)]
    return rng.normal(size=(classes, d))[labels] + spread * rng.normal(size=(len(labels), d)), labels


def cosine(one: list[float], two: list[float]) -> float:
    return sum(a * b for a, b in zip(one, two, strict=True)) / (math.hypot(*one) * math.hypot(*two))


def weighted_quantile(pairs: list[tuple[float, float]], share: float) -> float:
    """Between the middles of the weights, laid end to end in order of value."""
    pairs = sorted(pairs)
    total, before, points = sum(w for _, w in pairs), 0.0, []
    for value, weight in pairs:
        points.append(((before + weight / 2) / total, value))
        before += weight
    for (left, low), (right, high) in itertools.pairwise(points):
        if left <= share <= right:
            return low + (high - low) * (share - left) / (right - left)
    return points[0][1] if share < points[0][0] else points[-1][1]


def slow_scores(
    vectors: np.ndarray, labels: list[str], groups: list[str], center: np.ndarray
) -> tuple[list[float], list[float], list[float], list[str]]:
    """Score, cosine with the own mean, with the nearest other mean, and that class, of every image."""
    rows = [[float(x) - float(c) for x, c in zip(row, center, strict=True)] for row in vectors]
    rows = [[x / math.hypot(*row) for x in row] for row in rows]
    n, classes = len(rows), sorted(set(labels))

    def mean_without(label: str, patient: str) -> list[float] | None:
        owners = sorted({g for g, y in zip(groups, labels, strict=True) if y == label and g != patient})
        means = []
        for owner in owners:
            own = [rows[i] for i in range(n) if groups[i] == owner and labels[i] == label]
            means.append([sum(column) / len(own) for column in zip(*own, strict=True)])
        return [sum(column) / len(means) for column in zip(*means, strict=True)] if means else None

    own, other, named, near = [], [], [], []
    for i in range(n):
        found = {c: mean_without(c, groups[i]) for c in classes}
        close = {c: cosine(rows[i], m) for c, m in found.items() if m is not None}
        own.append(close.pop(labels[i]))
        named.append(max(close, key=close.__getitem__))
        other.append(close[named[-1]])
        others = [j for j in range(n) if groups[j] != groups[i]]
        nearest_own = max(cosine(rows[i], rows[j]) for j in others if labels[j] == labels[i])
        nearest_other = max(cosine(rows[i], rows[j]) for j in others if labels[j] != labels[i])
        near.append(nearest_other - nearest_own)
    weight = [1 / sum(g == groups[i] and y == labels[i] for g, y in zip(groups, labels, strict=True)) for i in range(n)]

    def standard(values: list[float]) -> list[float]:
        pairs = list(zip(values, weight, strict=True))
        median = weighted_quantile(pairs, 0.5)
        spread = weighted_quantile(pairs, 0.8413) - median
        return [(value - median) / spread for value in values]

    by_mean, by_image = standard([b - a for a, b in zip(own, other, strict=True)]), standard(near)
    by_label = standard([a + b for a, b in zip(by_mean, by_image, strict=True)])
    far = standard([-a for a in own])
    return [max(three) for three in zip(by_label, by_image, far, strict=True)], own, other, named


def test_scores_against_slow_loops() -> None:
    for seed in range(3):
        vectors, labels, ids, groups = clean_set(seed)
        groups[-1] = groups[0]  # a patient with images in two classes is left out of both
        center = np.full(12, 0.3)
        report = outlier_scores(vectors, labels, ids=ids, groups=groups, center=center)
        scores, own, other, named = slow_scores(vectors, labels, groups, center)
        assert [image.id for image in report.images] == sorted(ids)
        for image in report.images:
            i = ids.index(image.id)
            assert (image.label, image.nearest_class) == (labels[i], named[i])
            assert image.score == pytest.approx(scores[i], rel=1e-6)
            assert image.own_similarity == pytest.approx(own[i], abs=1e-6)
            assert image.other_similarity == pytest.approx(other[i], abs=1e-6)
            assert image.p_value == sum(s >= scores[i] - 1e-9 for s in scores) / len(scores)
            assert image.suspected == (scores[i] >= SUSPECT_AT)
            assert {n.label for n in image.evidence} == {named[i]} and len(image.evidence) == 3
            similarities = [n.similarity for n in image.evidence]
            assert similarities == sorted(similarities, reverse=True)
            assert not {ids.index(n.id) for n in image.evidence} & {j for j, g in enumerate(groups) if g == groups[i]}
            nearest = ids.index(image.evidence[0].id)
            assert similarities[0] == pytest.approx(cosine(vectors[i] - center, vectors[nearest] - center), abs=1e-6)


@pytest.mark.parametrize("kind", ["flipped", "foreign", "copy"])
def test_poison_is_found_and_named(kind: str) -> None:
    found, named = [], []
    for seed in range(25):
        vectors, labels = one_per_patient(4, 6, 30, seed, spread=0.7)
        rng = np.random.default_rng(1000 + seed)
        if kind == "flipped":
            vectors[2] = vectors[6:12].mean(axis=0) + 0.7 * rng.normal(size=30)
        elif kind == "foreign":
            vectors[2] = -vectors.mean(axis=0) + rng.normal(size=30)
        else:
            vectors[2] = vectors[7] + 0.05 * rng.normal(size=30)
        report = outlier_scores(vectors, labels, ids=[f"{i:02}" for i in range(24)])
        image = report.images[2]
        found.append(image.suspected)
        named.append(image.nearest_class == 1)
        if image.suspected and kind == "flipped" and "nearer to 1" in image.reason:
            assert (
                f"(cosine {image.other_similarity:.2f}) than its own class 0 ({image.own_similarity:.2f})"
                in image.reason
            )
    assert np.mean(found) > 0.85
    assert kind == "foreign" or np.mean(named) > 0.9


def test_a_copy_is_told_with_the_image_it_copies() -> None:
    vectors, labels = one_per_patient(3, 6, 30, 1, spread=2.0)
    vectors[2] = vectors[7]
    image = outlier_scores(vectors, labels, ids=[f"{i:02}" for i in range(18)]).images[2]
    assert image.suspected and image.evidence[0].id == "07"
    assert image.reason.startswith("Its nearest image of another class, '07' of 1, is unusually near (cosine 1.00;")


def test_what_is_far_from_everything_is_told_so() -> None:
    vectors, labels = one_per_patient(3, 6, 30, 2, spread=0.3)
    vectors[2] = np.random.default_rng(5).normal(size=30)
    image = outlier_scores(vectors, labels, ids=[f"{i:02}" for i in range(18)]).images[2]
    assert image.suspected and image.reason.startswith("It is far from its own class 0: its cosine with the other")


def test_false_alarms_on_clean_sets_are_about_what_is_stated() -> None:
    flagged, seen = 0, 0
    for seed in range(60):
        spread, patients = (0.5, 1.0, 2.0)[seed % 3], (4, 6, 10)[seed // 3 % 3]
        vectors, labels = one_per_patient(4, patients, 20, seed, spread=spread)
        report = outlier_scores(vectors, labels)
        flagged, seen = flagged + len(report.suspects), seen + len(labels)
    assert FALSE_ALARM_RATE / 2 < flagged / seen < FALSE_ALARM_RATE * 1.6


@given(seed=st.integers(0, 9999))
@settings(max_examples=15, deadline=None)
def test_the_order_of_registration_changes_no_bit_and_removal_leaves_no_trace(seed: int) -> None:
    vectors, labels, ids, groups = clean_set(seed, classes=3, patients=4, d=7)
    labels[1] = "class 2"
    report = outlier_scores(vectors, labels, ids=ids, groups=groups)
    order = np.random.default_rng(seed).permutation(len(labels)).tolist()
    assert report == outlier_scores(
        vectors[order], [labels[i] for i in order], ids=[ids[i] for i in order], groups=[groups[i] for i in order]
    )
    kept = [i for i in order if i != 1]
    without = outlier_scores(
        vectors[kept], [labels[i] for i in kept], ids=[ids[i] for i in kept], groups=[groups[i] for i in kept]
    )
    kept.sort()
    never = outlier_scores(
        vectors[kept], [labels[i] for i in kept], ids=[ids[i] for i in kept], groups=[groups[i] for i in kept]
    )
    assert without == never and without != report


def test_a_part_is_scored_as_in_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels, ids, groups = clean_set(3, patients=8)
    for most in (500, 20):  # compared image by image, and by means with every third image or so as the yardstick
        monkeypatch.setattr(fewshot.outliers, "MOST_COMPARED", most)
        monkeypatch.setattr(fewshot.outlier_fits, "MOST_COMPARED", most)
        whole = {image.id: image for image in outlier_scores(vectors, labels, ids=ids, groups=groups).images}
        part = outlier_scores(vectors, labels, ids=ids, groups=groups, only=ids[:5]).images
        assert [image.id for image in part] == sorted(ids[:5])
        assert all(whole[image.id] == image for image in part)
    assert all(image.suspected or not image.evidence for image in whole.values())
    assert outlier_scores(vectors, labels, ids=ids, groups=groups, only=[]).images == ()


def test_one_image_of_a_large_set_is_not_compared_with_every_other(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0

    def counted(queries: np.ndarray, others: np.ndarray, metric: str) -> np.ndarray:
        nonlocal compared
        compared += len(queries) * len(others)
        return similarities(queries, others, metric)

    vectors, labels = one_per_patient(3, 1000, 8, 0)
    monkeypatch.setattr(fewshot.outlier_fits, "similarities", counted)
    monkeypatch.setattr(fewshot.outliers, "similarities", counted)
    monkeypatch.setattr(np, "einsum", None)
    outlier_scores(vectors, labels, only=["7"])
    assert 500 * 3 <= compared <= 501 * 3 + 1000  # 500 and itself against 3 means, and its class's images at most


def test_a_large_set_is_judged_by_its_means() -> None:
    vectors, labels = one_per_patient(3, 400, 16, 4, spread=0.5)
    vectors[5] = vectors[450]
    report = outlier_scores(vectors, labels, ids=[f"{i:04}" for i in range(1200)])
    assert report.images[5].suspected and report.images[5].nearest_class == 1
    assert report.images[5].evidence[0].id == "0450" and report.suspects[0].score >= report.suspects[-1].score
    assert len(report.suspects) / 1200 < 0.06
    rows = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    mean = np.delete(rows[:400], 7, axis=0).mean(axis=0)
    assert report.images[7].own_similarity == pytest.approx(rows[7] @ mean / np.linalg.norm(mean), abs=1e-6)


def test_a_class_of_one_patient_and_a_small_set_say_nothing() -> None:
    vectors, labels = one_per_patient(3, 5, 8, 0)
    labels = [*labels, 9, 9]
    groups = [*range(15), 99, 99]
    vectors = np.concatenate([vectors, np.ones((2, 8))])
    report = outlier_scores(vectors, labels, ids=[f"{i:02}" for i in range(17)], groups=groups)
    for image in report.images[15:]:
        assert (image.score, image.p_value, image.suspected, image.evidence) == (None, None, False, ())
        assert image.reason == "Nothing can be said: class 9 has no other patient to compare it with."
    assert all(image.score is not None for image in report.images[:15])
    small = outlier_scores(vectors[[0, 1, 2, 5, 6, 7]], [0, 0, 0, 1, 1, 1])
    assert FEWEST_COMPARED == 10 and {image.reason for image in small.images} == {
        "Nothing can be said: 6 patients can be compared, and 10 are needed to know what is usual."
    }


def test_a_set_of_one_class_is_judged_by_distance() -> None:
    rng = np.random.default_rng(0)
    vectors = np.concatenate([np.ones((11, 6)) + 0.2 * rng.normal(size=(11, 6)), [[1.0, -1.0, 1.0, -1.0, 1.0, -1.0]]])
    report = outlier_scores(vectors, ["a"] * 12, ids=[f"{i:02}" for i in range(12)])
    assert report.suspects[0].id == "11" and report.suspects[0].nearest_class is None
    assert report.suspects[0].other_similarity is None and report.suspects[0].evidence == ()


def test_equal_images_and_vectors_without_direction_are_no_trouble() -> None:
    vectors = np.repeat(np.eye(2), 8, axis=0)
    report = outlier_scores(vectors, ["a"] * 8 + ["b"] * 8)
    assert report.suspects == () and {image.score for image in report.images} == {0.0}
    vectors[3] = [0.0, 1.0]
    assert [image.id for image in outlier_scores(vectors, ["a"] * 8 + ["b"] * 8).suspects] == ["3"]
    vectors[3] = 0.0
    assert [image.id for image in outlier_scores(vectors, ["a"] * 8 + ["b"] * 8).suspects] == ["3"]


def test_another_threshold_promises_no_rate() -> None:
    vectors, labels = one_per_patient(3, 5, 8, 0)
    report = outlier_scores(vectors, labels, threshold=0.0)
    assert report.false_alarm_rate is None and len(report.suspects) >= 7
    scores = [image.score for image in report.suspects]
    assert scores == sorted(scores, reverse=True)
    assert outlier_scores(vectors, labels).false_alarm_rate == FALSE_ALARM_RATE
    assert OutlierReport((), 1.0, None).suspects == ()


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"^only must name images of the set; 'z' is none of its 2\.$"):
        outlier_scores([[1.0], [2.0]], ["a", "b"], only=["0", "z"])
    with pytest.raises(ValueError, match=r"^Support vectors must be finite; rows \[1\] hold NaN or infinity\.$"):
        outlier_scores([[1.0], [np.nan]], ["a", "b"])
    with pytest.raises(ValueError, match=r"^The centre must have shape \(1,\) like the vectors; got \(2,\)\.$"):
        outlier_scores([[1.0], [2.0]], ["a", "b"], center=[0.0, 1.0])
    with pytest.raises(ValueError, match=r"^The comparison set is empty"):
        outlier_scores(np.empty((0, 3)), [])


def test_the_example_in_the_docs_runs() -> None:
    result = doctest.testmod(fewshot.outliers)
    assert result.attempted >= 3 and result.failed == 0
