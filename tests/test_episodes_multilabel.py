"""Multi-label episodes: who supports, who is asked, minimal supports, unknown labels left unknown."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from episodes import EpisodeError, Manifest
from episodes.label_states import as_table, label_states
from episodes.multilabel import MultiLabelEpisode, MultiLabelEpisodeSampler


def same(one: MultiLabelEpisode, two: MultiLabelEpisode) -> bool:
    parts = ("support", "support_labels", "query", "query_labels")
    return one.classes == two.classes and all(np.array_equal(getattr(one, p), getattr(two, p)) for p in parts)


def check(episode: MultiLabelEpisode, sampler: MultiLabelEpisodeSampler, state, groups) -> None:
    """Everything the class promises, with loops and sets only; `state(row, name)` gives 1, 0 or None."""
    patient = list(range(len(sampler.states))) if groups is None else list(groups)
    code = {1: 1, 0: 0, None: -1}
    assert len(episode.classes) == len(set(episode.classes)) == sampler.n_way
    support, query = episode.support.tolist(), episode.query.tolist()
    for rows, labels in ((support, episode.support_labels), (query, episode.query_labels)):
        assert len(set(rows)) == len(rows) and labels.shape == (len(rows), sampler.n_way) and labels.dtype == np.int8
        for row, found in zip(rows, labels.tolist(), strict=True):
            assert found == [code[state(row, name)] for name in episode.classes]
    supporters = {patient[row] for row in support}
    assert len(supporters) == len(support)  # one image of each support patient
    assert not supporters & {patient[row] for row in query}

    def enough(rows: list[int]) -> bool:
        shots = [sum(state(row, name) == 1 for row in rows) for name in episode.classes]
        negative = sum(all(state(row, name) == 0 for name in episode.classes) for row in rows)
        return min(shots) >= sampler.k_shot and negative >= sampler.k_negative

    assert enough(support)
    for row in support:  # minimal
        assert not enough([other for other in support if other != row])
    left = [row for row in range(len(patient)) if patient[row] not in supporters]
    for name in episode.classes:
        positives = sum(state(row, name) == 1 for row in query)
        assert positives >= 1 and any(state(row, name) == 0 for row in query)
        if sampler.n_query is not None:
            assert positives >= min(sampler.n_query, sum(state(row, name) == 1 for row in left))
    negatives = [row for row in left if all(state(row, name) == 0 for name in episode.classes)]
    asked = [row for row in query if row in negatives]
    if sampler.n_query is None:
        assert query == [row for row in left if any(state(row, name) is not None for name in episode.classes)]
    else:
        assert len(query) <= (sampler.n_way + 1) * sampler.n_query + sampler.n_way
        assert len(asked) >= min(sampler.n_query, len(negatives))


@st.composite
def tables(draw: st.DrawFn):
    n_classes = draw(st.integers(1, 5))
    n_images = draw(st.integers(15, 70))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    table = (rng.random((n_images, n_classes)) < draw(st.sampled_from([0.2, 0.5]))).astype(float)
    if n_classes > 1 and draw(st.booleans()):
        table[:, 1] = np.maximum(table[:, 0], table[:, 1])  # class 0 never without class 1
    if draw(st.booleans()):
        table[rng.random(table.shape) < 0.3] = np.nan
    n_patients = draw(st.integers(3, 60))
    groups = None if draw(st.booleans()) else [f"p{i}" for i in rng.integers(0, n_patients, n_images)]
    return table, groups


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=tables(),
    n_way=st.integers(1, 4),
    k_shot=st.integers(1, 4),
    n_query=st.sampled_from([1, 3, 8, None]),
    k_negative=st.integers(0, 3),
    seed=st.integers(0, 1000),
)
def test_every_episode_keeps_the_rules_or_is_refused(data, n_way, k_shot, n_query, k_negative, seed) -> None:
    table, groups = data
    names = "abcde"[: table.shape[1]]
    options = {"groups": groups, "n_episodes": 4, "seed": seed, "classes": names, "k_negative": k_negative}
    try:
        sampler = MultiLabelEpisodeSampler(table, n_way, k_shot, n_query, **options)
        found = list(sampler)
    except EpisodeError:
        return
    assert set(sampler.classes) | set(sampler.excluded) == set(names)
    assert not set(sampler.classes) & set(sampler.excluded)

    def state(row: int, name: str) -> int | None:
        value = table[row, names.index(name)]
        return None if np.isnan(value) else int(value)

    for i, episode in enumerate(found):
        check(episode, sampler, state, groups)
        assert same(episode, sampler[i])


def findings(n: int = 200, seed: int = 0):
    """Images of four findings, b always with a, two images per patient."""
    rng = np.random.default_rng(seed)
    labels = []
    for _ in range(n):
        names = [name for name, share in (("a", 0.4), ("c", 0.3), ("d", 0.2)) if rng.random() < share]
        if "a" in names and rng.random() < 0.4:
            names.append("b")
        labels.append(tuple(names) or ("normal",))
    return labels, [f"p{i // 2}" for i in range(n)]


@pytest.mark.parametrize(("n_way", "k_negative", "n_query"), [(1, 0, None), (1, 5, 4), (2, 0, 5), (4, 3, 15)])
def test_names_mean_present_and_absent(n_way, k_negative, n_query) -> None:
    labels, groups = findings()
    sampler = MultiLabelEpisodeSampler(
        labels, n_way, 4, n_query, groups=groups, n_episodes=40, seed=3, classes=list("abcd"), k_negative=k_negative
    )
    assert sampler.classes == ("a", "b", "c", "d")
    for episode in sampler:
        check(episode, sampler, lambda row, name: int(name in labels[row]), groups)


def test_one_way_supports_hold_k_positives_and_k_negatives_and_all_others_are_asked() -> None:
    labels, groups = findings()
    sampler = MultiLabelEpisodeSampler(labels, 1, 5, None, groups=groups, k_negative=5, n_episodes=20)
    for episode in sampler:
        assert sorted(episode.support_labels[:, 0].tolist()) == [0] * 5 + [1] * 5
        out = {groups[row] for row in episode.support}
        assert episode.query.tolist() == [row for row in range(200) if groups[row] not in out]


def test_an_image_counts_for_all_its_labels() -> None:
    # Everyone with b has a too: two images serve both classes, and an image of a alone is never needed.
    labels = [("a", "b")] * 6 + [("a",)] * 6 + [("n",)] * 3
    sampler = MultiLabelEpisodeSampler(labels, 2, 2, 3, classes=["a", "b"], n_episodes=30)
    for episode in sampler:
        assert len(episode.support) == 2 and (episode.support < 6).all()


def test_a_patient_with_many_labels_is_as_likely_as_one_with_few() -> None:
    # One class is drawn: other labels and the number of images must not matter.
    labels = [("a",)] * 5 + [("a", "b", "c")] * 5 + [("n",)] * 4
    groups = [0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    sampler = MultiLabelEpisodeSampler(labels, 1, 1, 2, groups=groups, n_episodes=4000, seed=1).of_class("a")
    patients, images = np.zeros(8), np.zeros(3)
    for episode in sampler:
        row = int(episode.support[0])
        patients[groups[row]] += 1
        if row < 3:
            images[row] += 1
    assert chisquare(patients).pvalue > 1e-3
    assert chisquare(images).pvalue > 1e-3


def test_queries_are_drawn_uniformly() -> None:
    labels = [("a",)] * 6 + [("a", "b")] * 6 + [("n",)] * 8
    sampler = MultiLabelEpisodeSampler(labels, 1, 1, 3, classes=["a"], n_episodes=3000, seed=2)
    positive, negative = np.zeros(12), np.zeros(8)
    for episode in sampler:
        positive[episode.query[episode.query < 12]] += 1
        negative[episode.query[episode.query >= 12] - 12] += 1
    assert positive.sum() == negative.sum() == 9000
    assert chisquare(positive).pvalue > 1e-3 and chisquare(negative).pvalue > 1e-3


def test_seed_and_number_determine_an_episode() -> None:
    labels, groups = findings()
    one, again, other = (
        MultiLabelEpisodeSampler(labels, 3, 2, 4, groups=groups, n_episodes=12, seed=seed) for seed in (4, 4, 5)
    )
    assert all(same(a, b) for a, b in zip(one, again, strict=True))
    assert same(one[-1], again[11]) and len(one) == 12
    assert not all(same(a, b) for a, b in zip(one, other, strict=True))
    longer = MultiLabelEpisodeSampler(labels, 3, 2, 4, groups=groups, n_episodes=50, seed=4)
    assert all(same(longer[i], one[i]) for i in range(12))
    assert longer.patients_known and not MultiLabelEpisodeSampler(labels, 3, 2, 4).patients_known
    with pytest.raises(IndexError, match="There is no episode 12: the sampler has 12"):
        one[12]
    assert repr(one) == (
        "MultiLabelEpisodeSampler(3-way 2-shot, 0 negative, at most 4 queries, 5 classes, 12 episodes, seed 4)"
    )
    assert one.settings == {
        "n_way": 3,
        "k_shot": 2,
        "k_negative": 0,
        "n_query": 4,
        "n_episodes": 12,
        "seed": 4,
        "patients_known": True,
    }


def test_of_class_is_the_same_as_a_sampler_of_that_class() -> None:
    labels, groups = findings()
    options = {"groups": groups, "n_episodes": 10, "seed": 2, "k_negative": 2}
    whole = MultiLabelEpisodeSampler(labels, 1, 3, 4, **options)
    alone = MultiLabelEpisodeSampler(labels, 1, 3, 4, classes=["c"], **options)
    assert all(same(a, b) for a, b in zip(whole.of_class("c"), alone, strict=True))
    assert whole.classes == ("a", "b", "c", "d", "normal")  # untouched


def test_images_without_a_name_are_unlabelled_not_normal() -> None:
    labels = [("a",)] * 5 + [()] * 30 + [None] * 30 + [("n",)] * 5
    sampler = MultiLabelEpisodeSampler(labels, 1, 2, None, k_negative=2, n_episodes=50)
    drawn = {row for episode in sampler for row in (*episode.support.tolist(), *episode.query.tolist())}
    assert drawn == {*range(5), *range(65, 70)}


def test_unknown_is_neither_present_nor_absent() -> None:
    names, states = label_states(np.array([[1, np.nan], [0, 1]]), ["x", "y"])
    assert names == ("x", "y") and states.tolist() == [[1, -1], [0, 1]] and states.dtype == np.int8
    assert np.array_equal(as_table(states), [[1, np.nan], [0, 1]], equal_nan=True)
    frame = pd.DataFrame({"id": ["i", "j"], "x": [1.0, None], "y": [True, False]})
    names, states = label_states(frame, ["y", "x"])
    assert names == ("y", "x") and states.tolist() == [[1, 1], [0, -1]]
    assert label_states(frame[["x"]])[0] == ("x",)
    assert label_states([("x", "z"), "y", ()], ["y", "x", "never"])[1].tolist() == [[0, 1, 0], [1, 0, 0], [-1] * 3]
    # A class whose only images without it do not mention it has no negatives.
    table = np.array([[1.0, 0], [1, 1], [1, 1], [np.nan, 0], [np.nan, 1]])
    sampler = MultiLabelEpisodeSampler(table, 1, 1, 1, classes=["x", "y"], n_episodes=3)
    assert sampler.classes == ("y",)
    assert sampler.excluded == {"x": "images known to lack it: 0, needed: 1"}


def test_classes_that_do_not_qualify_are_listed_with_the_reason() -> None:
    labels = [("a", "r")] * 2 + [("a", "b")] * 6 + [("b",)] * 6
    groups = [*range(8), *range(20, 26)]
    sampler = MultiLabelEpisodeSampler(labels, 2, 3, 3, groups=groups, classes=["a", "b", "r", "never"])
    assert sampler.patients == {"a": 8, "b": 12}
    assert sampler.excluded == {
        "r": "patients who have it: 2, needed: 4",
        "never": "patients who have it: 0, needed: 4",
    }
    with pytest.raises(
        EpisodeError,
        match=r"^3-way 3-shot multi-label episodes need 3 classes that at least 4 patients have and at least 1 are "
        r"known to lack; only 2 qualify: \{'a': 8, 'b': 12\}; left out: 'r' \(patients who have it: 2, needed: 4\); "
        r"try n_way=2\.$",
    ):
        MultiLabelEpisodeSampler(labels, 3, 3, 3, groups=groups)
    with pytest.raises(EpisodeError, match=r"only 1 qualifies: \{'a': 8\}; try n_way=1\.$"):
        MultiLabelEpisodeSampler(labels, 2, 3, 3, groups=groups, classes=["a"])
    with pytest.raises(EpisodeError, match="at least 10 are known to lack; none qualifies; left out"):
        MultiLabelEpisodeSampler(labels, 1, 3, 3, groups=groups, k_negative=9)


def test_impossible_episodes_are_refused_with_the_reason() -> None:
    # Nobody lacks both a and b.
    labels = [("a",)] * 6 + [("b",)] * 6
    with pytest.raises(
        EpisodeError,
        match=r"^Episode 0 could not be drawn in 2,000 attempts at 2 of 2 classes: most often \(2,000 times\) fewer "
        r"than 1 other patients had none of the classes; lower n_way",
    ):
        MultiLabelEpisodeSampler(labels, 2, 2, 3, k_negative=1)
    # a and b are had by the same three patients, each image showing one of them only.
    labels, groups = [("a",), ("b",)] * 3 + [("n",)], [0, 0, 1, 1, 2, 2, 3]
    with pytest.raises(EpisodeError, match=r"was left without 2 support patients"):
        MultiLabelEpisodeSampler(labels, 2, 2, 1, groups=groups, classes=["a", "b"])
    # Both patients with b have to support a.
    labels, groups = [("a",), ("b",), ("a",), ("b",), ("n",)], [0, 0, 1, 1, 2]
    with pytest.raises(EpisodeError, match=r"was left without a positive query of another patient"):
        MultiLabelEpisodeSampler(labels, 2, 1, 1, groups=groups, classes=["a", "b"])
    # One of the only patients known to lack x and to lack y is always needed in the support.
    table = np.array([[0, 1], [np.nan, 1], [1, np.nan], [1, 0]])
    with pytest.raises(EpisodeError, match=r"was left without a negative query of another patient"):
        MultiLabelEpisodeSampler(table, 2, 1, 1, groups=["q", "r", "r", "t"], classes=["x", "y"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n_way": 0}, "n_way must be a whole number of at least 1; got 0"),
        ({"k_shot": 1.5}, "k_shot must be a whole number of at least 1; got 1.5"),
        ({"n_query": 0}, "n_query must be a whole number of at least 1; got 0"),
        ({"n_episodes": True}, "n_episodes must be a whole number of at least 1; got True"),
        ({"seed": -1}, "seed must be a whole number of at least 0; got -1"),
        ({"k_negative": -1}, "k_negative must be a whole number of at least 0; got -1"),
        ({"groups": [1]}, "groups must name one patient per image: got 1 for 200"),
        ({"classes": ["a", "a"]}, "classes must name each class once; got 'a', 'a'"),
        ({"labels": np.zeros((4, 2))}, "A table of labels with 2 columns needs as many classes; got none"),
        (
            {"labels": np.zeros((4, 2)), "classes": ["a"]},
            "A table of labels with 2 columns needs as many classes; got 1",
        ),
        (
            {"labels": np.array([[0, 1], [1, -1]]), "classes": ["a", "b"]},
            r"1 \(present\), 0 \(absent\) and NaN \(not mentioned\) only; row 1, column 1 \(counted from 0\) holds -1",
        ),
        ({"labels": np.array([["yes"]]), "classes": ["a"]}, "1 .present., 0 .absent. and NaN .not mentioned. only.$"),
        ({"labels": pd.DataFrame({"a": [1]}), "classes": ["b"]}, "The table of labels has no column 'b'; it has a"),
    ],
)
def test_what_cannot_be_meant_is_refused(change, message) -> None:
    labels, groups = findings()
    options = {"labels": labels, "n_way": 2, "k_shot": 2, "n_query": 3, "groups": groups} | change
    with pytest.raises(EpisodeError, match=message):
        MultiLabelEpisodeSampler(**options)


@pytest.mark.shared_data
def test_real_findings(shared_data: Path) -> None:
    manifest = Manifest.read(shared_data / "nih_cxr" / "manifest.csv", label="labels", group="split_group")
    labels, groups = manifest.labels, manifest.groups
    for n_way, k_negative, n_query in ((3, 0, 15), (1, 5, None)):
        sampler = MultiLabelEpisodeSampler(
            labels, n_way, 5, n_query, groups=groups, n_episodes=150, seed=0, k_negative=k_negative
        )
        assert sampler.excluded == {"Hernia": "patients who have it: 1, needed: 6"}
        assert sampler.patients["Edema"] == 72 and sampler.patients["Pneumonia"] == 371
        for episode in sampler:
            supporters = {groups[row] for row in episode.support}
            assert not supporters & {groups[row] for row in episode.query}
            for way, name in enumerate(episode.classes):
                assert [name in labels[row] for row in episode.support] == (
                    episode.support_labels[:, way] == 1
                ).tolist()
                assert len({groups[row] for row in episode.support if name in labels[row]}) >= 5
                assert {name in labels[row] for row in episode.query} == {True, False}
