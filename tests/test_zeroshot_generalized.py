"""Seen and unseen classes in one contest: the curve by brute force, S, U and H by loops, gamma from seen classes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from zeroshot import (
    RidgeAlignment,
    SemanticSpace,
    ZeroShotError,
    choose_gamma,
    evaluate_generalized,
    from_traits,
    harmonic_mean,
    seen_unseen_curve,
    stacked,
)
from zeroshot.generalized import deal

Rows = NDArray[np.float64]
CLASSES = ("a", "b", "c", "d", "e")
SEEN = (True, True, False, True, False)


def task(n: int = 60, seed: int = 0, *, coarse: bool = False, bias: float = 0.5) -> tuple[Rows, list[int]]:
    """Scores that mean something but favour the seen; coarse ones have many ties in what they lead by."""
    rng = np.random.default_rng([4, seed])
    targets = [int(code) for code in rng.choice(5, size=n, p=[0.1, 0.3, 0.2, 0.1, 0.3])]
    scores = rng.normal(size=(n, 5)) + 1.2 * np.eye(5)[targets] + bias * np.array(SEEN)
    if coarse:  # many images with one lead, and within a side no two classes level
        scores = np.round(2 * scores) / 2 + np.array([0, 1, 0, 2, 1]) / 8
    return scores, targets


def answer(row: Rows, gamma: float) -> int:
    """The class that wins once gamma is off the seen; an unseen one where they are level."""
    lowered = [float(value) - (gamma if seen else 0.0) for value, seen in zip(row, SEEN, strict=True)]
    best_seen = max((c for c in range(5) if SEEN[c]), key=lambda c: lowered[c])
    best_unseen = max((c for c in range(5) if not SEEN[c]), key=lambda c: lowered[c])
    return best_seen if lowered[best_seen] > lowered[best_unseen] else best_unseen


def slow_sides(scores: Rows, targets: list[int], gamma: float) -> tuple[float, float, dict[str, float]]:
    """S, U and each class's share of right answers, one image at a time."""
    per_class: dict[int, list[bool]] = {}
    for row, target in zip(scores, targets, strict=True):
        per_class.setdefault(target, []).append(answer(row, gamma) == target)
    shares = {code: sum(own) / len(own) for code, own in per_class.items()}
    sides = [[share for code, share in shares.items() if SEEN[code] == side] for side in (True, False)]
    s, u = (sum(side) / len(side) for side in sides)
    return s, u, {CLASSES[code]: share for code, share in shares.items()}


@pytest.mark.parametrize("coarse", [False, True])
def test_the_curve_is_a_sweep_over_every_gamma(coarse: bool) -> None:
    scores, targets = task(coarse=coarse)
    curve = seen_unseen_curve(scores, targets, SEEN)
    assert curve.gammas[0] == -math.inf and (np.diff(curve.gammas) > 0).all()
    assert (np.diff(curve.seen) <= 1e-12).all() and (np.diff(curve.unseen) >= -1e-12).all()
    if coarse:
        assert len(curve.gammas) < 45  # images that change sides together
    between = [curve.gammas[1] - 1, *((curve.gammas[1:-1] + curve.gammas[2:]) / 2), curve.gammas[-1] + 1]
    for place, gamma in enumerate(between):
        s, u, _ = slow_sides(scores, targets, gamma)
        assert (curve.seen[place], curve.unseen[place]) == (pytest.approx(s), pytest.approx(u))
    area = 0.0
    for place in range(1, len(between)):
        width = curve.unseen[place] - curve.unseen[place - 1]
        area += width * (curve.seen[place] + curve.seen[place - 1]) / 2
    assert curve.area == pytest.approx(area, rel=1e-12)
    best = max(2 * s * u / (s + u) if s + u else 0.0 for s, u in zip(curve.seen, curve.unseen, strict=True))
    assert curve.best_harmonic == pytest.approx(best)


def test_areas_of_curves_that_are_known() -> None:
    perfect = np.array([[1.0, 0.0], [0.0, 1.0]])
    assert seen_unseen_curve(perfect, [0, 1], [True, False]).area == 1
    assert seen_unseen_curve(1 - perfect, [0, 1], [True, False]).area == 0
    assert seen_unseen_curve(np.zeros((2, 2)), [0, 1], [True, False]).area == 0.5  # both change sides at once


def test_harmonic_mean_and_stacking() -> None:
    assert harmonic_mean([0.0, 0.5, 0.6], [0.0, 0.0, 0.3]).tolist() == [0.0, 0.0, pytest.approx(0.4)]
    assert stacked([[3.0, 1.0]], [True, False], 2.5).tolist() == [[0.5, 1.0]]


@pytest.mark.parametrize("gamma", [-0.3, 0.0, 0.45, 9.0])
def test_s_u_h_and_classes_are_those_of_a_slow_loop(gamma: float) -> None:
    scores, targets = task()
    labels = [CLASSES[code] for code in targets]
    report = evaluate_generalized(scores, labels, CLASSES, {"a", "b", "d"}, gamma=gamma, draws=20)
    s, u, per_class = slow_sides(scores, targets, gamma)
    assert report.seen.estimate == pytest.approx(s) and report.unseen.estimate == pytest.approx(u)
    assert report.harmonic.estimate == pytest.approx(2 * s * u / (s + u) if s + u else 0.0)
    assert report.per_class == pytest.approx(per_class)
    assert report.area.estimate == report.curve.area == seen_unseen_curve(scores, targets, SEEN).area
    assert report.gamma == gamma and report.without_images == ()
    for interval in (report.seen, report.unseen, report.harmonic, report.area):
        assert interval.low <= interval.estimate <= interval.high or gamma == 9.0
    assert str(report) == (
        f"S {report.seen}, U {report.unseen}, H {report.harmonic}, AUSUC {report.area}, gamma {gamma:.3f}"
    )


def test_more_images_of_the_same_patients_make_nothing_surer() -> None:
    scores, targets = task(n=40)
    labels = [CLASSES[code] for code in targets]
    once = evaluate_generalized(scores, labels, CLASSES, "abd", groups=list(range(40)), draws=200)
    five = evaluate_generalized(
        np.repeat(scores, 5, axis=0),
        [label for label in labels for _ in range(5)],
        CLASSES,
        "abd",
        groups=[f"p{i}" for i in range(40) for _ in range(5)],
        draws=200,
    )
    surer = evaluate_generalized(np.repeat(scores, 5, axis=0), [x for x in labels for _ in range(5)], CLASSES, "abd")
    for name in ("seen", "unseen", "harmonic", "area"):
        one, many, each = (getattr(found, name) for found in (once, five, surer))
        assert (many.low, many.high) == (pytest.approx(one.low), pytest.approx(one.high))
        assert each.high - each.low < 0.7 * (one.high - one.low)


def test_patients_of_seen_and_of_unseen_images_are_drawn_apart() -> None:
    """Were S and U to go up and down together, H would seem as unsure as either of them."""
    row = {True: [[1.0, 0.0]], False: [[0.0, 1.0]]}
    right = [True, False] * 40
    scores = np.array([row[ok][0] for ok in right] + [row[not ok][0] for ok in right])
    report = evaluate_generalized(scores, ["a"] * 80 + ["c"] * 80, ["a", "c"], {"a"}, draws=50)
    assert report.seen.estimate == report.unseen.estimate == report.harmonic.estimate == 0.5
    assert report.harmonic.high - report.harmonic.low < 0.85 * (report.seen.high - report.seen.low)


def test_one_seed_gives_one_report_and_another_seed_other_intervals() -> None:
    scores, targets = task()
    labels = [CLASSES[code] for code in targets]
    one, two, other = (evaluate_generalized(scores, labels, CLASSES, "abd", draws=50, seed=seed) for seed in (0, 0, 1))
    assert str(one) == str(two) != str(other)
    assert (one.seen.estimate, one.area.estimate) == (other.seen.estimate, other.area.estimate)


def test_classes_without_images_are_named_and_compete() -> None:
    scores, targets = task()
    kept = [i for i, code in enumerate(targets) if code not in (3, 4)]
    rows, labels = scores[kept], [CLASSES[targets[i]] for i in kept]
    report = evaluate_generalized(rows, labels, CLASSES, "abd", draws=20)
    assert report.without_images == ("d", "e") and set(report.per_class) == {"a", "b", "c"}
    s, u, _ = slow_sides(rows, [targets[i] for i in kept], 0.0)
    assert (report.seen.estimate, report.unseen.estimate) == (pytest.approx(s), pytest.approx(u))


def test_what_cannot_be_measured_is_refused() -> None:
    scores, targets = task(n=20)
    labels = [CLASSES[code] for code in targets]
    with pytest.raises(ZeroShotError, match=r"'x' is no class of the label space: a, b, c, d, e"):
        evaluate_generalized(scores, ["x", *labels[1:]], CLASSES, "abd")
    for seen in ("", "abcde", "xyz"):
        with pytest.raises(ZeroShotError, match=r"Seen and unseen need at least one class and one image each"):
            evaluate_generalized(scores, labels, CLASSES, seen)
    with pytest.raises(ZeroShotError, match=r"Seen and unseen need at least one class and one image each"):
        evaluate_generalized(scores, ["a"] * 20, CLASSES, "abd")
    with pytest.raises(ZeroShotError, match=r"Scores of shape \(20, 5\) need 20 classes of images and 5 flags .* 19"):
        evaluate_generalized(scores, labels[:-1], CLASSES, "abd")
    with pytest.raises(ZeroShotError, match=r"need 20 classes of images and 5 flags of classes; got 20 and 4"):
        seen_unseen_curve(scores, [0, 2] * 10, SEEN[:4])
    with pytest.raises(ZeroShotError, match=r"20 images need 20 patients; got 3"):
        evaluate_generalized(scores, labels, CLASSES, "abd", groups=["p"] * 3)
    with pytest.raises(ZeroShotError, match=r"Scores must be finite; rows \[0\] hold NaN"):
        evaluate_generalized(np.where(np.arange(20)[:, None] == 0, np.nan, scores), labels, CLASSES, "abd")


# -- gamma ---------------------------------------------------------------------------------------------------------

ALL = tuple(f"k{i:02}" for i in range(30))
LAST_SEEN = "k19"
TRAITS = np.random.default_rng(5).uniform(size=(30, 12)).round(3)
VIEW = np.random.default_rng(6).normal(size=(12, 40))
OWN = 1.2 * np.random.default_rng(7).normal(size=(30, 40))


def world(per_class: int, seed: int) -> tuple[Rows, list[str], list[str]]:
    """Images that show their class's traits and what no trait tells of it; three images per patient."""
    rng = np.random.default_rng([8, seed])
    codes = np.repeat(np.arange(30), per_class)
    images = TRAITS[codes] @ VIEW + OWN[codes] + rng.normal(size=(len(codes), 40))
    patients = [f"{seed}-{code}-{i % per_class // 3}" for i, code in enumerate(codes)]
    return images, [ALL[code] for code in codes], patients


def of_seen(per_class: int, seed: int) -> tuple[Rows, list[str], list[str]]:
    """The part of the world that is of the first twenty classes."""
    images, labels, patients = world(per_class, seed)
    kept = [i for i, label in enumerate(labels) if label <= LAST_SEEN]
    return images[kept], [labels[i] for i in kept], [patients[i] for i in kept]


def space() -> SemanticSpace:
    return from_traits(
        {name: {f"t{j}": float(value) for j, value in enumerate(row)} for name, row in zip(ALL, TRAITS, strict=True)}
    )


class Spy(RidgeAlignment):
    """Keeps what it was fitted to."""

    fits: list[tuple[Rows, Rows]]

    def fit(self, images: object, texts: object) -> RidgeAlignment:  # type: ignore[override]
        self.fits.append((np.asarray(images), np.asarray(texts)))
        return super().fit(images, texts)  # type: ignore[arg-type]


def spy() -> type[Spy]:
    return type("Fresh", (Spy,), {"fits": []})


def test_gamma_is_chosen_without_the_classes_and_patients_that_are_asked_about() -> None:
    rows, named, own = of_seen(9, 0)
    kind = spy()
    chosen = choose_gamma(rows, named, space(), kind, groups=own)
    assert math.isfinite(chosen) and len(kind.fits) == 5
    place = {row.tobytes(): i for i, row in enumerate(rows)}
    played: list[str] = []
    for fitted, targets in kind.fits:
        learnt = [place[row.tobytes()] for row in fitted]
        assert np.array_equal(targets, space().rows([named[i] for i in learnt]))
        away = set(named) - {named[i] for i in learnt}
        assert len(away) == 4  # 20 classes in 5 parts
        played += away
        kept = {own[i] for i in learnt}
        left_out = {own[i] for i in range(len(rows)) if named[i] not in away} - kept
        assert 5 <= len(left_out) <= 13  # of 48 patients of the other classes a fifth
        assert len(learnt) == sum(patient in kept for patient in own)  # of a patient all images or none
    assert sorted(played) == list(ALL[:20])


def test_unseen_classes_have_no_say_in_gamma() -> None:
    rows, named, own = of_seen(6, 0)
    whole, few = space(), space().only(ALL[:20])
    junk = SemanticSpace("traits", ALL, np.where(np.arange(30)[:, None] < 20, whole.vectors, 7.0), None, {}, {})
    found = {choose_gamma(rows, named, part, RidgeAlignment, groups=own) for part in (whole, few, junk)}
    assert len(found) == 1


def test_the_chosen_gamma_raises_h_where_scores_favour_the_seen() -> None:
    for seed in range(2):
        rows, named, own = of_seen(9, seed)
        gamma = choose_gamma(rows, named, space(), RidgeAlignment, groups=own, seed=seed)
        assert gamma > 0
        found = RidgeAlignment().fit(rows, space().rows(named)).map_
        asked, truth, owners = world(9, 100 + seed)
        scores = found.scores(asked, space().vectors)
        plain, evened = (
            evaluate_generalized(scores, truth, ALL, ALL[:20], gamma=value, groups=owners, draws=5)
            for value in (0.0, gamma)
        )
        assert evened.unseen.estimate > plain.unseen.estimate
        assert plain.harmonic.estimate + 0.05 < evened.harmonic.estimate <= evened.curve.best_harmonic + 1e-12


@pytest.mark.parametrize("parts", [2, 5])
def test_classes_are_dealt_along_a_chain_of_the_most_alike(parts: int) -> None:
    mean = [sum(column) / 30 for column in TRAITS.T]

    def cosine(one: int, two: int) -> float:
        x, y = ([float(v) - m for v, m in zip(TRAITS[c], mean, strict=True)] for c in (one, two))
        return sum(a * b for a, b in zip(x, y, strict=True)) / math.sqrt(sum(a * a for a in x) * sum(b * b for b in y))

    chain = [0]
    while len(chain) < 30:
        chain.append(max((c for c in range(30) if c not in chain), key=lambda c: cosine(chain[-1], c)))
    found = deal(TRAITS, parts)
    assert [int(found[c]) for c in chain] == [place % parts for place in range(30)]
    twins = np.repeat(TRAITS[:10], 2, axis=0)  # of a pair, one is learnt from while the other plays the unseen
    assert (deal(twins, parts)[::2] != deal(twins, parts)[1::2]).all()


def test_gamma_can_be_learnt_from_reports_and_images_without_one_are_passed_over() -> None:
    rows, named, _ = of_seen(6, 0)
    texts = space().rows(named) + 0.05 * np.random.default_rng(1).normal(size=(120, 12))
    texts[::5] = 0.0
    kind = spy()
    choose_gamma(rows, named, space(), kind, texts=texts)
    silent = {row.tobytes() for row in rows[::5]}
    assert not any(row.tobytes() in silent for fitted, _ in kind.fits for row in fitted)
    known = {row.tobytes() for row in texts}
    assert all(row.tobytes() in known for _, targets in kind.fits for row in targets)


def test_gamma_that_cannot_be_chosen_is_refused() -> None:
    rows, named, _ = of_seen(6, 0)
    with pytest.raises(ZeroShotError, match=r"takes at least 4 seen classes, some to play the unseen; got 3"):
        choose_gamma(rows[:18], named[:18], space(), RidgeAlignment)
    with pytest.raises(ZeroShotError, match=r"has no class 'k99'; it has k00"):
        choose_gamma(rows, ["k99", *named[1:]], space(), RidgeAlignment)
    with pytest.raises(ZeroShotError, match=r"Text vectors have 3 dimensions, those of the space have 12"):
        choose_gamma(rows, named, space(), RidgeAlignment, texts=np.ones((120, 3)))
    with pytest.raises(ZeroShotError, match=r"no part of the classes leaves both seen and unseen images"):
        choose_gamma(rows, named, space(), RidgeAlignment, texts=np.zeros((120, 12)))
