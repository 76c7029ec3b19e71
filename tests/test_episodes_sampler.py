"""Episodes: who may support, who may be asked; uniform, seeded, and refused where they cannot be drawn."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from episodes import Episode, EpisodeError, EpisodeSampler, Manifest


def same(one: Episode, two: Episode) -> bool:
    return one.classes == two.classes and all(
        np.array_equal(a, b) for a, b in zip(one.support + one.query, two.support + two.query, strict=True)
    )


def check(episode: Episode, sampler: EpisodeSampler, labels, groups) -> None:
    """Everything DESIGN section 4 says of an episode, with loops and sets only."""
    carried = [set(entry) if isinstance(entry, (tuple, list, set, frozenset)) else {entry} for entry in labels]
    patient = list(range(len(labels))) if groups is None else list(groups)
    assert len(episode.classes) == len(set(episode.classes)) == sampler.n_way
    assert len(episode.support) == len(episode.query) == sampler.n_way
    supporters = {patient[row] for part in episode.support for row in part}
    for name, support, query in zip(episode.classes, episode.support, episode.query, strict=True):
        assert len(support) == len(set(support.tolist())) == sampler.k_shot
        if sampler.shot == "patient":
            assert len({patient[row] for row in support}) == sampler.k_shot
        assert 1 <= len(query) == len(set(query.tolist())) <= sampler.n_query
        assert not supporters & {patient[row] for row in query}
        for row in (*support, *query):
            assert carried[row] & set(episode.classes) == {name}
        eligible = [
            row
            for row in range(len(labels))
            if carried[row] & set(episode.classes) == {name} and patient[row] not in supporters
        ]
        assert len(query) == min(sampler.n_query, len(eligible))


@st.composite
def data_sets(draw: st.DrawFn):
    n_classes = draw(st.integers(2, 6))
    n_images = draw(st.integers(20, 80))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    names = list("abcdef"[:n_classes])
    if draw(st.booleans()):
        labels = [
            tuple(rng.choice(names, rng.integers(0, min(n_classes, 3) + 1), replace=False)) for _ in range(n_images)
        ]
    else:
        labels = rng.choice(names, n_images).tolist()
    n_patients = draw(st.integers(3, 60))
    groups = None if draw(st.booleans()) else [f"p{i}" for i in rng.integers(0, n_patients, n_images)]
    return labels, groups


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=data_sets(),
    n_way=st.integers(2, 4),
    k_shot=st.integers(1, 4),
    n_query=st.integers(1, 6),
    seed=st.integers(0, 1000),
    shot=st.sampled_from(["patient", "image"]),
)
def test_every_episode_keeps_the_rules_or_is_refused(data, n_way, k_shot, n_query, seed, shot) -> None:
    labels, groups = data
    options = {"groups": groups, "n_episodes": 5, "seed": seed, "shot": shot}
    try:
        sampler = EpisodeSampler(labels, n_way, k_shot, n_query, **options)
        drawn = list(sampler)
    except EpisodeError:
        return
    for i, episode in enumerate(drawn):
        check(episode, sampler, labels, groups)
        assert same(episode, sampler[i])


def test_three_thousand_single_label_episodes() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat(np.arange(12), 40).tolist()
    groups = (np.arange(480) // 3 % 90).tolist()
    sampler = EpisodeSampler(labels, 5, 5, 15, groups=groups, n_episodes=3000, seed=int(rng.integers(100)))
    counts = dict.fromkeys(sampler.classes, 0)
    for episode in sampler:
        check(episode, sampler, labels, groups)
        for name in episode.classes:
            counts[name] += 1
    # 5 of 12 without replacement: the statistic below is chi-square with 11 degrees after the finite correction.
    found = np.array(list(counts.values()))
    assert found.sum() == 15_000
    corrected = ((found - 1250) ** 2 / (3000 * (5 / 12) * (7 / 12))).sum() * 11 / 12
    assert corrected < 31.3  # 99.9 % of chi-square with 11 degrees of freedom


def test_patients_images_and_queries_are_drawn_uniformly() -> None:
    # Class "a": patient 0 has 10 images, patients 1 to 5 one each. A shot is a patient: patient 0 is no likelier.
    groups = [0] * 10 + [1, 2, 3, 4, 5] + [10, 11, 12]
    labels = ["a"] * 15 + ["b"] * 3
    sampler = EpisodeSampler(labels, 2, 1, 3, groups=groups, n_episodes=3000, seed=3)
    patients, images = np.zeros(6), np.zeros(10)
    queried = np.zeros(15)
    for episode in sampler:
        way = episode.classes.index("a")
        row = int(episode.support[way][0])
        patients[groups[row]] += 1
        if row < 10:
            images[row] += 1
        else:
            queried[episode.query[way]] += 1
    assert chisquare(patients).pvalue > 1e-3
    assert chisquare(images).pvalue > 1e-3
    assert chisquare(queried[:10]).pvalue > 1e-3
    first = sum(episode.classes[0] == "a" for episode in sampler)
    assert abs(first - 1500) < 3.3 * np.sqrt(750)


def test_a_shot_may_be_an_image() -> None:
    groups = [0] * 10 + [1] * 2 + [10, 11, 12]
    labels = ["a"] * 12 + ["b"] * 3
    with pytest.raises(
        EpisodeError, match="2-way 2-shot with 3 queries needs 2 classes of at least 3 patients; only 1"
    ):
        EpisodeSampler(labels, 2, 2, 3, groups=groups)
    sampler = EpisodeSampler(labels, 2, 2, 3, groups=groups, shot="image", n_episodes=50)
    twice = 0
    for episode in sampler:
        check(episode, sampler, labels, groups)
        way = episode.classes.index("a")
        twice += len({groups[row] for row in episode.support[way]}) == 1
    assert twice == 50  # one of the two patients must be left for the query
    with pytest.raises(EpisodeError, match="needs 2 classes of at least 11 images beside another patient's; none"):
        EpisodeSampler(labels, 2, 11, 3, groups=groups, shot="image")


def test_seed_and_number_determine_an_episode() -> None:
    labels = [f"c{i % 7}" for i in range(140)]
    one = EpisodeSampler(labels, 5, 2, 4, n_episodes=20, seed=4)
    again = EpisodeSampler(labels, 5, 2, 4, n_episodes=30, seed=4)
    other = EpisodeSampler(labels, 5, 2, 4, n_episodes=20, seed=5)
    assert len(one) == 20
    assert all(same(a, b) for a, b in zip(one, one, strict=True))
    assert all(same(one[i], again[i]) for i in reversed(range(20)))
    assert not any(same(a, b) for a, b in zip(one, other, strict=True))
    assert same(one[-1], one[19])
    assert same(pickle.loads(pickle.dumps(one))[3], one[3])
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    one[0]
    assert (np.random.get_state()[1] == before).all()  # noqa: NPY002
    with pytest.raises(IndexError, match="There is no episode 20: the sampler has 20"):
        one[20]


def test_labels_come_back_as_given_in_a_fixed_order() -> None:
    assert EpisodeSampler([3, 1, 2] * 5, 2, 1, 1).classes == (1, 2, 3)
    assert EpisodeSampler(np.array(["b", "a"] * 5), 2, 1, 1).classes == ("a", "b")
    assert EpisodeSampler(["x", 1] * 5, 2, 1, 1).classes == ("x", 1)
    assert set(EpisodeSampler([frozenset({"x"}), {"y"}] * 5, 2, 1, 1)[0].classes) == {"x", "y"}


def test_classes_with_too_few_patients_are_left_out_and_listed() -> None:
    labels = ["a"] * 4 + ["b"] * 4 + ["c"] * 9
    groups = [1, 2, 3, 4, 5, 6, 7, 8] + [9] * 8 + [10]
    sampler = EpisodeSampler(labels, 2, 3, 5, groups=groups)
    assert sampler.classes == ("a", "b")
    assert sampler.patients == {"a": 4, "b": 4}
    assert sampler.excluded == {"c": 2}
    assert sampler.patients_known
    unknown = EpisodeSampler(labels, 2, 3, 5)
    assert unknown.classes == ("a", "b", "c")
    assert not unknown.patients_known


def test_refusals_name_what_is_missing() -> None:
    labels = ["a", "b", "c"] * 6 + ["d"] * 3
    groups = list(range(21))
    message = (
        "5-way 5-shot with 15 queries needs 5 classes of at least 6 patients; only 3 qualify: "
        "{'a': 6, 'b': 6, 'c': 6}; try n_way=3."
    )
    with pytest.raises(EpisodeError) as caught:
        EpisodeSampler(labels, 5, 5, 15, groups=groups)
    assert str(caught.value) == message
    with pytest.raises(EpisodeError, match=r"at least 6 images; only 3 qualify"):
        EpisodeSampler(labels, 5, 5, 15)
    with pytest.raises(EpisodeError, match=r"none qualifies: the largest is 'a' with 6\."):
        EpisodeSampler(labels, 2, 50, 15)
    with pytest.raises(EpisodeError, match=r"none qualifies\.$"):
        EpisodeSampler([], 2, 5, 15)


@pytest.mark.parametrize("setting", ["n_way", "k_shot", "n_query", "n_episodes", "seed"])
@pytest.mark.parametrize("value", [-1, 1.5, True, "5", None])
def test_settings_are_whole_numbers(setting: str, value: object) -> None:
    arguments = {"n_way": 2, "k_shot": 1, "n_query": 1, "n_episodes": 3, "seed": 0, setting: value}
    with pytest.raises(EpisodeError, match=f"{setting} must be a whole number of at least"):
        EpisodeSampler(["a", "b"] * 4, **arguments)


def test_bad_lists_are_refused() -> None:
    with pytest.raises(EpisodeError, match='shot must be "patient" or "image"; got \'study\''):
        EpisodeSampler(["a", "b"] * 4, 2, 1, 1, shot="study")
    with pytest.raises(EpisodeError, match="one patient per image: got 3 for 8 images"):
        EpisodeSampler(["a", "b"] * 4, 2, 1, 1, groups=[1, 2, 3])
    with pytest.raises(EpisodeError, match=r"The patient of image 1 .* is missing: got ''"):
        EpisodeSampler(["a", "b"], 2, 1, 1, groups=["p", ""])
    with pytest.raises(EpisodeError, match=r"The patient of image 0 .* is missing: got nan"):
        EpisodeSampler(["a", "b"], 2, 1, 1, groups=[float("nan"), 1])
    with pytest.raises(EpisodeError, match=r"The label of image 1 .* is nan"):
        EpisodeSampler(["a", float("nan")], 2, 1, 1)
    with pytest.raises(EpisodeError, match="one entry per image; got str"):
        EpisodeSampler("abab", 2, 1, 1)
    with pytest.raises(EpisodeError, match=r"one-dimensional .*; got shape \(4, 2\)"):
        EpisodeSampler(np.eye(4)[:, :2], 2, 1, 1)


def test_images_without_a_label_are_never_drawn() -> None:
    labels = [None, "a", "b", (), ("a",), ("b",)] * 4
    drawn = {
        row for episode in EpisodeSampler(labels, 2, 1, 9, n_episodes=30) for part in episode.query for row in part
    }
    assert drawn == {row for row, label in enumerate(labels) if label not in (None, ())}


def test_sets_that_cannot_be_are_drawn_again_and_the_rest_uniformly() -> None:
    # "a" always comes with "b": the two never meet; over the other five pairs the draw is uniform.
    labels = [("a", "b"), ("b",), ("c",), ("d",)] * 6
    sampler = EpisodeSampler(labels, 2, 2, 3, n_episodes=3000)
    pairs = dict.fromkeys(combinations("abcd", 2), 0)
    for episode in sampler:
        pairs[tuple(sorted(episode.classes))] += 1
    assert pairs.pop(("a", "b")) == 0
    assert chisquare(list(pairs.values())).pvalue > 1e-3


def test_an_impossible_task_says_why() -> None:
    # Every patient has both classes: whoever supports one is barred from the queries of the other.
    labels, groups = ["a", "b"] * 2, ["p", "p", "q", "q"]
    sampler = EpisodeSampler(labels, 2, 1, 1, groups=groups)  # possible: the same patient supports both
    check(sampler[0], sampler, labels, groups)
    assert {groups[int(rows[0])] for rows in sampler[0].support} in ({"p"}, {"q"})
    with pytest.raises(EpisodeError, match=r"Episode 0 could not be drawn in 200 attempts .* left without 2 support"):
        EpisodeSampler([("a", "b")] * 6 + ["a", "b"], 2, 2, 1)


@pytest.mark.shared_data
@pytest.mark.parametrize(("k_shot", "n_way"), [(1, 2), (5, 2), (5, 5)])
def test_rules_hold_over_multi_label_radiographs(shared_data: Path, k_shot: int, n_way: int) -> None:
    manifest = Manifest.read(shared_data / "nih_cxr" / "manifest.csv", label="labels", group="patient_id")
    sampler = EpisodeSampler(manifest.labels, n_way, k_shot, 15, groups=manifest.groups, n_episodes=300)
    assert sampler.excluded == {"Hernia": 1}
    for episode in sampler:
        check(episode, sampler, manifest.labels, manifest.groups)


def kinds_of_data() -> Iterator[tuple[str, list, list | None, tuple[int, int, int], dict]]:
    """Every kind of data that is laid out in its own way: classes, patients, several labels, shots that are images."""
    rng = np.random.default_rng(7)
    plain = np.repeat(np.arange(64), 60).tolist()
    yield "plain", plain, None, (5, 5, 15), {}
    yield "20-way", plain, None, (20, 1, 5), {"seed": 3}
    yield "unequal", np.repeat(np.arange(12), np.arange(3, 63, 5)).tolist(), None, (5, 2, 15), {"seed": 1}
    groups = (np.arange(3840) // 3 % 700).tolist()
    yield "patients", plain, groups, (5, 5, 15), {}
    yield "patients, image", plain, groups, (5, 5, 15), {"shot": "image", "seed": 2}
    yield "image", plain, None, (5, 3, 4), {"shot": "image", "seed": 2}
    few = rng.integers(0, 6, 90).tolist()
    yield "shared patients", few, rng.integers(0, 30, 90).tolist(), (3, 2, 6), {"seed": 5}
    multi = [tuple(rng.choice(list("abcdefgh"), rng.integers(0, 4), replace=False).tolist()) for _ in range(400)]
    yield "several labels", multi, None, (3, 2, 6), {"seed": 5}
    yield "several labels, patients", multi, rng.integers(0, 90, 400).tolist(), (3, 3, 6), {"seed": 6}
    yield (
        "several labels, image",
        multi,
        rng.integers(0, 90, 400).tolist(),
        (2, 3, 6),
        {"seed": 6, "shot": "image"},
    )


# Taken before episodes were drawn many at once, and never to change: results that name a seed rest on them.
DIGESTS = {
    "plain": "47d952a832f7a08d",
    "20-way": "9a224be1f43120c8",
    "unequal": "bfd6a2e40b26d157",
    "patients": "2ace63b40a8b14d5",
    "patients, image": "749372cf4c8ae915",
    "image": "19b4562a033da827",
    "shared patients": "c948aa050052fcad",
    "several labels": "f1c0d067fb28abce",
    "several labels, patients": "8f4483696cc85800",
    "several labels, image": "45562fcdbafdeded",
}


@pytest.mark.parametrize("kind", list(kinds_of_data()), ids=lambda kind: kind[0])
def test_a_seed_gives_the_episodes_it_has_always_given_however_they_are_asked_for(kind) -> None:
    name, labels, groups, shape, options = kind
    sampler = EpisodeSampler(labels, *shape, groups=groups, n_episodes=200, **options)
    digest = hashlib.sha256()
    one_by_one = [sampler[i] for i in range(200)]
    for episode in one_by_one:
        digest.update(repr(episode.classes).encode())
        for part in (*episode.support, *episode.query):
            digest.update(part.astype("<i8").tobytes() + b"|")
    assert digest.hexdigest()[:16] == DIGESTS[name]
    assert all(same(a, b) for a, b in zip(sampler, one_by_one, strict=True))
    episodes, rows = sampler.block(57, 133)
    assert all(same(a, b) for a, b in zip(episodes, one_by_one[57:133], strict=True))
    for episode, images in zip(episodes, rows, strict=True):
        assert images.tolist() == [int(row) for part in (*episode.support, *episode.query) for row in part]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=data_sets(),
    n_way=st.integers(2, 4),
    k_shot=st.integers(1, 4),
    n_query=st.integers(1, 6),
    seed=st.integers(0, 1000),
    shot=st.sampled_from(["patient", "image"]),
)
def test_many_at_once_are_the_same_as_one_by_one_or_refused_alike(data, n_way, k_shot, n_query, seed, shot) -> None:
    labels, groups = data
    try:
        sampler = EpisodeSampler(labels, n_way, k_shot, n_query, groups=groups, n_episodes=9, seed=seed, shot=shot)
    except EpisodeError:
        return
    found: list[Episode] = []
    refusal = ""
    try:
        found.extend(sampler)
    except EpisodeError as error:
        refusal = str(error)
    for i, episode in enumerate(found):
        assert same(episode, sampler[i])
    if refusal:
        with pytest.raises(EpisodeError) as one_by_one:
            [sampler[i] for i in range(9)]
        assert str(one_by_one.value) == refusal
        with pytest.raises(EpisodeError) as in_a_block:
            sampler.block(0, 9)
        assert str(in_a_block.value) == refusal


@pytest.mark.parametrize("sizes", [(3000, 40, 50, 3000, 60), (40_000, 60, 60), (2000, 2000, 2000)])
def test_large_classes_beside_small_ones_give_the_same_episodes(sizes: tuple[int, ...]) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes).tolist()
    sampler = EpisodeSampler(labels, 3, 5, 15, n_episodes=40)
    assert all(same(a, sampler[i]) for i, a in enumerate(sampler))


def test_a_block_lies_within_the_sampler_and_drawable_are_the_images_of_qualifying_classes() -> None:
    sampler = EpisodeSampler(["a"] * 4 + ["b"] * 4 + ["c"] + [None], 2, 1, 1, n_episodes=5)
    assert sampler.drawable.tolist() == list(range(8))
    assert sampler.block(2, 2) == ([], [])
    for start, stop in ((0, 6), (-1, 2), (3, 2)):
        with pytest.raises(IndexError, match=f"There are no episodes {start} to {stop - 1}: the sampler has 5"):
            sampler.block(start, stop)


def test_too_few_classes_say_what_would_do() -> None:
    with pytest.raises(EpisodeError, match=r"at least 6 images; only 1 qualifies: \{'a': 6\}\.$"):
        EpisodeSampler(["a"] * 6 + ["b"] * 5, 2, 5, 15)
    with pytest.raises(EpisodeError, match=r"only 2 qualify: \{'a': 6, 'b': 6\}; try n_way=2\.$"):
        EpisodeSampler(["a", "b"] * 6 + ["c"] * 5, 3, 5, 15)
    assert len(EpisodeSampler(["a", "b"] * 6 + ["c"] * 5, 2, 5, 15).classes) == 2
