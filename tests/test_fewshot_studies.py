"""Studies: pooled scores, probabilities and p-values against slow loops, and one decision per study."""

from __future__ import annotations

import doctest
import itertools

import numpy as np
import pytest

import fewshot.studies
from fewshot.prototypes import PrototypeClassifier
from fewshot.studies import decide_studies, pool_p_values, pool_probabilities, pool_scores, study_names

STUDIES = ["s2", "s1", "s2", "s3", "s1", "s2"]


def fitted(n_evidence: int = 3) -> tuple[PrototypeClassifier, np.ndarray]:
    rng = np.random.default_rng(0)
    centers = 2 * rng.normal(size=(3, 8))
    labels = ["a", "b", "c"] * 6
    vectors = (centers[[0, 1, 2] * 6] + rng.normal(size=(18, 8))).astype(np.float32)
    clf = PrototypeClassifier(n_evidence=n_evidence).fit(vectors, labels, ids=[f"i{i:02}" for i in range(18)])
    return clf, (centers[[0, 1, 0, 2, 1, 1]] + rng.normal(size=(6, 8))).astype(np.float32)


@pytest.mark.parametrize("how", ["mean", "max"])
@pytest.mark.parametrize("views", [None, ["f", "f", "f", "l", "l", "l"]])
def test_pooled_scores_against_a_slow_loop(how: str, views: list[str] | None) -> None:
    scores = np.random.default_rng(1).normal(size=(6, 4))
    scores[4, 2] = np.nan  # this image is left out
    pooled = pool_scores(scores, STUDIES, how=how, views=views)
    assert study_names(STUDIES) == ["s2", "s1", "s3"]
    for row, name in zip(pooled, ["s2", "s1", "s3"], strict=True):
        own = [i for i in range(6) if STUDIES[i] == name and i != 4]
        for column in range(4):
            if how == "max":
                assert row[column] == max(scores[i, column] for i in own)
                continue
            by_view: dict[object, list[float]] = {}
            for i in own:
                by_view.setdefault(i if views is None else views[i], []).append(scores[i, column])
            means = [sum(values) / len(values) for values in by_view.values()]
            assert row[column] == pytest.approx(sum(means) / len(means), abs=1e-12)


@pytest.mark.parametrize("how", ["mean", "max"])
def test_the_order_of_the_images_changes_no_bit(how: str) -> None:
    scores = np.random.default_rng(2).normal(size=(5, 3)) * 10.0 ** np.arange(5)[:, None]
    views = ["f", "l", "f", "l", "o"]
    expected = pool_scores(scores, ["s"] * 5, how=how, views=views).tobytes()
    for order in itertools.permutations(range(5)):
        moved = pool_scores(scores[list(order)], ["s"] * 5, how=how, views=[views[i] for i in order])
        assert moved.tobytes() == expected


def test_probabilities_stay_probabilities_and_studies_without_images_are_nan() -> None:
    probabilities = np.random.default_rng(3).dirichlet([1, 1, 1], size=6)
    probabilities[3] = np.nan
    pooled = pool_probabilities(probabilities, STUDIES)
    assert pooled[:2].sum(axis=1) == pytest.approx([1, 1])
    assert pooled[0] == pytest.approx(probabilities[[0, 2, 5]].mean(axis=0))
    assert np.isnan(pooled[2]).all()


def test_twice_the_mean_of_p_values() -> None:
    p_values = np.array([[0.01, 0.9], [0.2, 0.3], [0.03, 0.8], [0.04, 0.5], [0.4, 0.1], [0.05, 1.0]])
    pooled = pool_p_values(p_values, STUDIES)
    assert pooled.tolist() == [pytest.approx([0.06, 1.0]), pytest.approx([0.6, 0.4]), [0.04, 0.5]]


@pytest.mark.parametrize("shared", [0.0, 0.7, 1.0])
def test_pooled_p_values_are_valid_however_dependent_and_a_plain_mean_is_not(shared: float) -> None:
    rng = np.random.default_rng(4)
    n = 40_000
    common = rng.random(n)
    images = [np.where(rng.random(n) < shared, common, rng.random(n)) for _ in range(2)]
    if shared == 0.7:
        # The worst case for the mean: where one of two is far below the level, the other lies as far beneath twice it.
        images = [common, np.where(common < 0.1, 0.1 - common, common)]
    p_values = np.concatenate(images)[:, None]
    pooled = pool_p_values(p_values, [*range(n), *range(n)])[:, 0]
    for level in (0.05, 0.1, 0.2):
        assert (pooled <= level).mean() <= level + 0.005
    if shared == 0.7:
        assert (pooled / 2 <= 0.0501).mean() > 0.09  # the undoubled mean rejects twice as often as it says


def test_a_study_of_one_image_answers_as_the_image() -> None:
    clf, queries = fitted()
    assert decide_studies(clf, queries, list(range(6))) == clf.decide(queries)


def test_decisions_of_studies_and_their_merged_evidence() -> None:
    clf, queries = fitted()
    alone, scores = clf.decide(queries), clf.scores(queries)
    decisions = decide_studies(clf, queries, STUDIES)
    pooled = pool_scores(scores, STUDIES)
    for decision, row, name in zip(decisions, pooled.tolist(), ["s2", "s1", "s3"], strict=True):
        ranked = sorted(range(3), key=lambda c, row=row: -row[c])
        assert (decision.label, decision.runner_up) == ("abc"[ranked[0]], "abc"[ranked[1]])
        assert decision.score == row[ranked[0]] and decision.probability is None
        assert decision.margin == pytest.approx(row[ranked[0]] - row[ranked[1]])
        for named, label in ((decision.evidence, decision.label), (decision.counter_evidence, decision.runner_up)):
            best: dict[str, float] = {}
            for i in range(6):
                for n in alone[i].evidence + alone[i].counter_evidence:
                    if STUDIES[i] == name and n.label == label:
                        best[n.id] = max(best.get(n.id, -9.0), n.similarity)
            expected = sorted(best.items(), key=lambda pair: (-pair[1], pair[0]))[:3]
            assert [(n.id, n.similarity) for n in named] == expected
            assert {n.label for n in named} <= {label}


def test_broken_images_are_left_out_and_a_study_of_none_but_those_has_a_reason() -> None:
    clf, queries = fitted()
    queries[[0, 3]] = np.nan
    decisions = decide_studies(clf, queries, STUDIES, ids=[f"q{i}" for i in range(6)])
    kept = [1, 2, 4, 5]
    assert decisions[:2] == decide_studies(clf, queries[[2, 1, 4, 5]], ["s2", "s1", "s1", "s2"])
    assert decisions[0].score == pool_scores(clf.scores(queries[kept]), [STUDIES[i] for i in kept]).max(axis=1)[1]
    assert decisions[2].label is None and decisions[2].score is None
    assert decisions[2].reason == (
        "Nothing can be decided about any image of study 's3' (q3): "
        "The query vector holds NaN or infinity: the image could not be embedded."
    )
    assert decide_studies(clf, np.empty((0, 8)), []) == []


def test_more_images_of_a_patient_help() -> None:
    rng = np.random.default_rng(5)
    centers = rng.normal(size=(4, 16))
    clf = PrototypeClassifier().fit(centers, list(range(4)))
    truth = np.repeat(np.arange(4), 100)
    images = np.concatenate([centers[truth] + 2 * rng.normal(size=(400, 16)) for _ in range(5)])
    studies = list(range(400)) * 5
    alone = (clf.predict(images) == np.tile(truth, 5)).mean()
    together = np.mean([d.label == t for d, t in zip(decide_studies(clf, images, studies), truth, strict=True)])
    assert together > alone + 0.15


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"^how must be 'mean' or 'max'; got 'median'\.$"):
        pool_scores([[0.0]], ["s"], how="median")
    with pytest.raises(ValueError, match=r"^2 images need 2 studies; got 1\.$"):
        pool_scores([[0.0], [1.0]], ["s"])
    with pytest.raises(ValueError, match=r"^2 images need 2 views; got 1\.$"):
        pool_scores([[0.0], [1.0]], ["s", "s"], views=["f"])
    with pytest.raises(ValueError, match=r"^Every image needs a study; images \[1\] have None or NaN\.$"):
        pool_scores([[0.0], [1.0]], ["s", None])
    with pytest.raises(ValueError, match=r"one column per class are needed; got an array of shape \(2,\)\.$"):
        pool_scores([0.0, 1.0], ["s", "s"])
    with pytest.raises(ValueError, match=r"lie between 0 and 1 and add up to 1; got \[0\.4, 0\.5\]\.$"):
        pool_probabilities([[0.5, 0.5], [0.4, 0.5]], ["s", "s"])
    with pytest.raises(ValueError, match=r"lie between 0 and 1 and add up to 1; got \[1\.5, -0\.5\]\.$"):
        pool_probabilities([[1.5, -0.5]], ["s"])
    with pytest.raises(ValueError, match=r"^p-values lie between 0 and 1; got 1\.5\.$"):
        pool_p_values([[0.5, 1.5]], ["s"])
    with pytest.raises(ValueError, match=r"^6 images need 6 ids; got 1\.$"):
        decide_studies(fitted()[0], fitted()[1], STUDIES, ids=["x"])


def test_the_example_in_the_docs_runs() -> None:
    result = doctest.testmod(fewshot.studies)
    assert result.attempted >= 1 and result.failed == 0
