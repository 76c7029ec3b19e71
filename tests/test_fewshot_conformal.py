"""Conformal sets: slow loops, crepes where every patient has one image, and what is promised, by simulation."""

from __future__ import annotations

import doctest
import json
import math

import numpy as np
import pytest
from crepes.base import p_values_batch

import fewshot.conformal
from fewshot import PrototypeClassifier
from fewshot.calibration_rows import TooFewPatients
from fewshot.conformal import SplitConformal, fit_split_conformal, patients_needed
from fewshot.cross_conformal import CrossConformal, fit_cross_conformal, fold_numbers, fold_scores
from fewshot.held_out import fit_folds, held_out_scores, patient_folds
from fewshot.nonconformity import NONCONFORMITIES, nonconformities
from fewshot.support import Support


def drawn(n: int = 60, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    targets = np.concatenate([np.arange(classes), rng.integers(classes, size=n - classes)])
    scores = np.round(8 * (np.eye(classes)[targets] + rng.normal(size=(n, classes)))) / 8  # ties occur, exactly
    return scores, targets, [f"p{rng.integers(n // 3)}" for _ in range(n)]


def temperature(kind: str) -> float | None:
    return 0.7 if kind == "probability" else None


def slow_nonconformity(row: list[float], c: int, kind: str) -> float:
    if kind == "distance":
        return -row[c]
    if kind == "margin":
        return max(s for k, s in enumerate(row) if k != c) - row[c]
    powers = [math.exp(s / 0.7) for s in row]
    return 1 - powers[c] / sum(powers)


@pytest.mark.parametrize("kind", NONCONFORMITIES)
@pytest.mark.parametrize("per_class", [False, True])
def test_split_p_values_against_slow_loops(kind: str, per_class: bool) -> None:
    scores, targets, groups = drawn()
    queries = drawn(20, seed=1)[0]
    if kind == "probability":  # rounds differently in the two versions, so that ties would not be ties in both
        rng = np.random.default_rng(3)
        scores, queries = scores + rng.random(scores.shape) / 8, queries + rng.random(queries.shape) / 8
    options = {"per_class": per_class, "nonconformity": kind, "temperature": temperature(kind)}
    found = fit_split_conformal(scores, targets, groups, **options).p_values(queries)
    for q, row in enumerate(queries.tolist()):
        for c in range(3):
            against = slow_nonconformity(row, c, kind)
            total, patients = 0.0, set()
            for patient in sorted(set(groups)):
                own = [i for i in range(60) if groups[i] == patient and (targets[i] == c or not per_class)]
                if own:
                    patients.add(patient)
                    worse = [slow_nonconformity(scores[i].tolist(), targets[i], kind) >= against for i in own]
                    total += sum(worse) / len(own)
            assert found[q, c] == pytest.approx((1 + total) / (len(patients) + 1), abs=1e-12)


@pytest.mark.parametrize("per_class", [False, True])
def test_with_one_image_per_patient_the_p_values_are_those_of_crepes(per_class: bool) -> None:
    scores, targets, _ = drawn(90)
    queries = drawn(40, seed=1)[0]
    ours = fit_split_conformal(scores, targets, per_class=per_class, nonconformity="distance").p_values(queries)
    own, asked = -scores[np.arange(90), targets], -queries
    for c in range(3):
        bins = {"bins_cal": targets, "bins_test": np.full(40, c)} if per_class else {}
        theirs = p_values_batch(own, asked[:, c], smoothing=False, **bins)
        assert np.array_equal(ours[:, c], theirs)


def test_sets_and_the_patients_they_need() -> None:
    assert [patients_needed(c) for c in (0.5, 0.8, 0.9, 0.95, 0.99)] == [1, 4, 9, 19, 99]
    targets = np.array([0, 1] * 5)
    scores = np.eye(2)[targets] * 1.0
    queries = [[1.0, 0.0], [0.5, 0.5], [np.nan, np.nan]]
    eight, nine = (fit_split_conformal(scores[:n], targets[:n]) for n in (8, 9))
    short = eight.sets(queries, 0.9)
    assert short.members is None and (short.needed, short.found) == (9, (8,))
    found = nine.sets(queries, 0.9)
    assert found.members.tolist() == [[True, False], [False, False], [True, True]]  # p is 1/10 for the wrong class
    assert (found.promised, found.needed, found.found) == (0.9, 9, (9,)) and np.isnan(found.p_values[2]).all()
    by_class = fit_split_conformal(np.eye(2)[np.repeat([0, 1], [9, 8])], np.repeat([0, 1], [9, 8]), per_class=True)
    lacking = by_class.sets(queries, 0.9)
    assert lacking.members is None and lacking.found == (9, 8)
    assert by_class.sets(queries, 0.8).members is not None


def simulate(rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray, list[int], np.ndarray]:
    """Patients of three classes: easy ones have many images, hard ones a single one; images of one are alike."""
    hard = rng.random(n) < 0.5
    images = np.where(hard, 1, 12)
    truth = rng.integers(3, size=n)
    shift = rng.normal(size=(n, 3)) * np.where(hard, 1.5, 0.3)[:, None] + 2 * np.eye(3)[truth]
    groups = np.repeat(np.arange(n), images)
    scores = shift[groups] + 0.2 * rng.normal(size=(groups.size, 3))
    return scores, truth[groups], groups.tolist(), np.cumsum(images) - images


@pytest.mark.parametrize("per_class", [False, True])
def test_patients_are_covered_as_promised_where_counting_images_is_not_enough(per_class: bool) -> None:
    rng = np.random.default_rng(0)
    ours, naive = [], []
    for _ in range(150):
        scores, targets, groups, _ = simulate(rng, 40 if not per_class else 60)
        new, truth, _, first = simulate(rng, 40)
        for covered, patients in ((ours, groups), (naive, None)):
            sets = fit_split_conformal(scores, targets, patients, per_class=per_class).sets(new[first], 0.9)
            covered.append(sets.members[np.arange(40), truth[first]].mean())
    error = np.std(ours) / np.sqrt(150)
    assert 0.9 - 2 * error <= np.mean(ours) <= 0.95
    assert np.mean(naive) < 0.9 - 5 * error


def test_each_class_is_covered_by_the_version_per_class_only() -> None:
    rng = np.random.default_rng(1)
    covered = {True: [], False: []}
    for _ in range(200):
        truth = rng.integers(2, size=80)
        spread = np.where(truth == 1, 2.0, 0.2)[:, None]  # class 1 is far harder
        scores = np.eye(2)[truth] + spread * rng.normal(size=(80, 2))
        for per_class, shares in covered.items():
            sets = fit_split_conformal(scores[:40], truth[:40], per_class=per_class).sets(scores[40:], 0.8)
            hit = sets.members[np.arange(40), truth[40:]]
            shares.append([hit[truth[40:] == c].mean() for c in (0, 1)])
    means = {kind: np.nanmean(shares, axis=0) for kind, shares in covered.items()}
    assert (means[True] > 0.8 - 0.02).all() and means[False][1] < 0.7


def support_and_queries(rng: np.random.Generator, k: int, images: int) -> tuple[Support, np.ndarray, np.ndarray]:
    centers = 1.5 * np.eye(3, 6)
    labels = np.repeat(np.arange(3), k)
    patients = centers[labels] + rng.normal(size=(3 * k, 6))
    rows = np.repeat(patients, images, axis=0) + 0.3 * rng.normal(size=(3 * k * images, 6))
    groups = np.repeat(np.arange(3 * k), images).tolist()
    support = Support(rows, np.repeat(labels, images).tolist(), groups=groups)
    truth = rng.integers(3, size=30)
    return support, centers[truth] + rng.normal(size=(30, 6)) + 0.3 * rng.normal(size=(30, 6)), truth


def cross(support: Support, queries: np.ndarray, **options: object) -> tuple[CrossConformal, np.ndarray]:
    n_folds = options.pop("n_folds", None)
    make = lambda: PrototypeClassifier(metric="euclidean")  # noqa: E731
    folds = fit_folds(make, support, patient_folds(support, n_folds=n_folds))
    fitted = fit_cross_conformal(
        held_out_scores(folds, support),
        support.targets,
        support.groups,
        fold_numbers(folds, len(support)),
        n_folds=len(folds),
        **options,
    )
    return fitted, fold_scores(folds, queries, 3)


def test_cross_p_values_against_slow_loops() -> None:
    support, queries, _ = support_and_queries(np.random.default_rng(0), 4, 2)
    for per_class in (False, True):
        fitted, _ = cross(support, queries, per_class=per_class)
        found = fitted.p_values(cross(support, queries)[1])
        for q in range(4):
            for c in range(3):
                total, patients = 0.0, 0
                for patient in sorted(set(support.groups)):
                    own = [i for i in range(len(support)) if support.groups[i] == patient]
                    if per_class and support.targets[own[0]] != c:
                        continue
                    others = [i for i in range(len(support)) if i not in own]
                    head = PrototypeClassifier(metric="euclidean").fit(
                        support.vectors[others],
                        [support.labels[i] for i in others],
                        groups=[support.groups[i] for i in others],
                    )
                    asked = slow_nonconformity(head.scores(queries[q : q + 1])[0].tolist(), c, "margin")
                    rows = head.scores(support.vectors[own])
                    known = [
                        slow_nonconformity(rows[j].tolist(), support.targets[i], "margin") for j, i in enumerate(own)
                    ]
                    total += sum(value >= asked for value in known) / len(own)
                    patients += 1
                assert found[q, c] == pytest.approx((1 + total) / (patients + 1), abs=1e-12)


def test_cross_sets_hold_their_promise_and_say_what_it_is() -> None:
    rng = np.random.default_rng(0)
    covered = {False: [], True: []}
    for _ in range(25):
        support, queries, truth = support_and_queries(rng, 9, 2)
        for per_class, shares in covered.items():
            fitted, scores = cross(support, queries, per_class=per_class)
            sets = fitted.sets(scores, 0.9)
            shares.append(sets.members[np.arange(30), truth].mean())
            assert sets.promised == pytest.approx(0.8)  # every patient is left out alone
    assert all(0.85 < np.mean(shares) < 0.97 for shares in covered.values())
    support, queries, _ = support_and_queries(rng, 9, 1)
    fitted, scores = cross(support, queries, n_folds=3)
    lost = min(2 * (1 - 1 / 3) / (27 / 3 + 1), (1 - 3 / 27) / (3 + 1))
    assert fitted.promised(0.9) == pytest.approx(0.8 - lost)
    assert fitted.promised(0.3) == 0.0
    few, scores = cross(support_and_queries(rng, 8, 1)[0], queries, per_class=True)
    short = few.sets(scores, 0.9)
    assert short.members is None and (short.needed, short.found) == (9, (8, 8, 8))


def test_a_class_held_out_with_its_only_patient_is_the_worst_fit() -> None:
    support, queries, _ = support_and_queries(np.random.default_rng(0), 6, 1)
    rows = [i for i in range(18) if support.targets[i] != 2 or i == 17]
    lonely = Support(support.vectors[rows], [support.labels[i] for i in rows])
    fitted, scores = cross(lonely, queries)
    assert max(fitted.values) == math.inf and fitted.patients == (13,)
    assert np.isneginf(scores).any()
    found = fitted.p_values(scores)
    assert np.isfinite(found).all() and (found >= 1 / 14).all()
    document = json.loads(json.dumps(fitted.to_json(), allow_nan=False))
    assert CrossConformal.from_json(document) == fitted


def test_order_of_patients_changes_no_bit_and_documents_come_back() -> None:
    scores, targets, groups = drawn()
    queries = drawn(20, seed=1)[0]
    order = np.random.default_rng(2).permutation(60)
    for per_class in (False, True):
        one = fit_split_conformal(scores, targets, groups, per_class=per_class)
        two = fit_split_conformal(scores[order], targets[order], [groups[i] for i in order], per_class=per_class)
        assert one == two and np.array_equal(one.p_values(queries), two.p_values(queries))
        document = json.loads(json.dumps(one.to_json(), allow_nan=False))
        assert SplitConformal.from_json(document) == one
        assert not any(group in json.dumps(document) for group in groups)  # no patient is named
    folds = np.array([int(group[1:]) % 5 for group in groups])
    one = fit_cross_conformal(scores, targets, groups, folds, n_folds=5)
    two = fit_cross_conformal(scores[order], targets[order], [groups[i] for i in order], folds[order], n_folds=5)
    assert one == two
    whole = np.repeat(queries[None], 5, axis=0)
    # With one head for all folds the cross version is the split version.
    assert one.p_values(whole) == pytest.approx(fit_split_conformal(scores, targets, groups).p_values(queries))


def test_rows_of_nan_and_unknown_classes() -> None:
    scores, targets, groups = drawn()
    holes = scores.copy()
    holes[:20] = np.nan
    fitted = fit_split_conformal(holes, targets, groups)
    assert fitted == fit_split_conformal(scores[20:], targets[20:], groups[20:])
    assert np.isnan(fitted.p_values(holes)[:20]).all()
    ninf = np.array([[1.0, -np.inf, 0.0], [2.0, -np.inf, -np.inf]])
    assert nonconformities(ninf).tolist() == [[-1.0, np.inf, 1.0], [-np.inf, np.inf, np.inf]]
    assert nonconformities(ninf, "distance")[0].tolist() == [-1.0, np.inf, 0.0]
    assert nonconformities(ninf, "probability", temperature=1.0)[1].tolist() == [0.0, 1.0, 1.0]


def test_errors() -> None:
    scores, targets, groups = drawn()
    with pytest.raises(ValueError, match=r"^nonconformity must be one of margin, probability, distance; got 'size'\.$"):
        fit_split_conformal(scores, targets, nonconformity="size")
    with pytest.raises(ValueError, match=r"^The nonconformity 'probability' needs a temperature above 0; got None\.$"):
        fit_split_conformal(scores, targets, nonconformity="probability")
    with pytest.raises(ValueError, match=r"^Only the nonconformity 'probability' takes a temperature; got one for"):
        fit_split_conformal(scores, targets, temperature=1.0)
    with pytest.raises(ValueError, match=r"^With a single class there is no margin: use the nonconformity 'distance'"):
        fit_split_conformal([[1.0]], [0])
    with pytest.raises(TooFewPatients, match=r"^A conformal set needs 1 calibration patient; got 0\.$"):
        fit_split_conformal([[np.nan, np.nan]], [0])
    fitted = fit_split_conformal(scores, targets, groups)
    for coverage in (0, 1, 1.5, True):
        with pytest.raises(ValueError, match=r"^coverage must lie strictly between 0 and 1; got"):
            fitted.sets(scores, coverage)
    with pytest.raises(ValueError, match=r"^60 rows of scores need 60 fold numbers\.$"):
        fit_cross_conformal(scores, targets, groups, [0], n_folds=1)
    with pytest.raises(ValueError, match=r"^Fold numbers must be 0 to 1; got 2 to 2\.$"):
        fit_cross_conformal(scores, targets, groups, [2] * 60, n_folds=2)
    with pytest.raises(ValueError, match=r"^Every patient must be in one fold; one is in two"):
        fit_cross_conformal(scores, targets, ["same"] * 60, [0, 1] * 30, n_folds=2)
    both = fit_cross_conformal(scores, targets, None, [0, 1] * 30, n_folds=2)
    with pytest.raises(
        ValueError, match=r"^Scores of the 2 folds' heads must have shape \(2, m, 3\); got \(60, 3\)\.$"
    ):
        both.p_values(scores)


def test_the_example_in_the_docs_runs() -> None:
    result = doctest.testmod(fewshot.conformal)
    assert result.attempted >= 2 and result.failed == 0
