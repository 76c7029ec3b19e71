"""Evaluation: figures against slow loops, doubts said, the same bytes twice, chance where labels mean nothing."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import episodes
from episodes import EpisodeError, EpisodeSampler, MultiLabelEpisodeSampler, compare, evaluate, patient_bootstrap
from episodes.evaluate import VERSIONED


class Nearest:
    """Nearest mean, or none of these beyond a radius; remembers what it was told."""

    def __init__(self, radius: float = math.inf, told: list | None = None) -> None:
        self.radius = radius
        self.told = told

    def fit(self, X, y, *, ids=None, groups=None):
        self.names_ = list(dict.fromkeys(y))
        self.means_ = np.stack([X[[i for i, name in enumerate(y) if name == one]].mean(axis=0) for one in self.names_])
        if self.told is not None:
            self.told.append((ids, groups, y))
        return self

    def predict(self, X):
        distance = np.linalg.norm(X[:, None] - self.means_[None], axis=2)
        return [
            self.names_[i] if d[i] < self.radius else None for d, i in zip(distance, distance.argmin(1), strict=True)
        ]


def data(n_classes: int = 6, images: int = 24, spread: float = 0.6, seed: int = 0):
    """Classes around means, three images per patient that resemble each other."""
    rng = np.random.default_rng(seed)
    labels = [f"c{i // images}" for i in range(n_classes * images)]
    groups = [f"p{i // 3}" for i in range(len(labels))]
    means = np.repeat(rng.normal(size=(n_classes, 8)) * spread, images, axis=0)
    person = np.repeat(rng.normal(size=(len(labels) // 3, 8)) * 0.7, 3, axis=0)
    return (means + person + rng.normal(size=means.shape) * 0.7).astype(np.float32), labels, groups


@pytest.fixture(scope="module")
def setting():
    vectors, labels, groups = data()
    sampler = EpisodeSampler(labels, 4, 3, 5, groups=groups, n_episodes=80, seed=2)
    return vectors, labels, groups, sampler


def test_figures_agree_with_a_slow_loop(setting) -> None:
    vectors, labels, groups, sampler = setting
    report = evaluate(Nearest(radius=2.6), vectors, labels, sampler)
    right = {name: [] for name in sampler.classes}
    abstained = dict.fromkeys(sampler.classes, 0)
    confusion = {}
    patients = {name: set() for name in sampler.classes}
    per_episode, took_part = [], dict.fromkeys(sampler.classes, 0)
    for episode in sampler:
        taught = [(name, row) for name, part in zip(episode.classes, episode.support, strict=True) for row in part]
        model = Nearest(radius=2.6).fit(vectors[[row for _, row in taught]], [name for name, _ in taught])
        recalls = []
        for name, part in zip(episode.classes, episode.query, strict=True):
            hits = []
            took_part[name] += 1
            for row in part:
                answer = model.predict(vectors[[row]])[0]
                hits.append(answer == name)
                abstained[name] += answer is None
                patients[name].add(groups[row])
                confusion[name, answer] = confusion.get((name, answer), 0) + 1
            right[name] += hits
            recalls.append(sum(hits) / len(hits))
        per_episode.append(sum(recalls) / len(recalls))
    recall = {name: sum(hits) / len(hits) for name, hits in right.items()}
    assert report.accuracy == pytest.approx(sum(recall.values()) / 6)
    assert report.episode_mean == pytest.approx(np.mean(per_episode))
    assert report.episode_interval == pytest.approx(1.96 * np.std(per_episode, ddof=1) / math.sqrt(80))
    queries = sum(len(hits) for hits in right.values())
    assert report.abstained == pytest.approx(sum(abstained.values()) / queries) and report.abstained > 0
    for name, found in report.per_class.items():
        assert found.recall == pytest.approx(recall[name])
        assert found.interval[0] < found.recall < found.interval[1]
        assert (found.queries, found.abstained) == (len(right[name]), abstained[name])
        assert (found.patients, found.episodes) == (len(patients[name]), took_part[name])
    listed = {(item["label"], item["answer"]): item["queries"] for item in report.to_dict()["confusions"]}
    assert listed == confusion
    assert report.patients == len(set.union(*patients.values())) == 48
    assert abs(report.accuracy - report.episode_mean) < 0.02  # the two differ by how often a class was drawn
    found = report.outcomes
    again = patient_bootstrap(found.right, found.truth, found.patient, seed=2)
    assert report.interval == (again.low, again.high)
    assert report.interval[0] < report.accuracy < report.interval[1]
    assert report.interval[1] - report.interval[0] > 2 * report.episode_interval


def test_report_is_one_line_json_and_markdown(setting) -> None:
    vectors, labels, _, sampler = setting
    report = evaluate(
        Nearest(),
        vectors,
        labels,
        sampler,
        name="nearest|mean",
        provenance={"encoder": {"name": "toy", "dim": np.int64(8)}},
    )
    low, high = report.interval
    assert str(report) == (
        f"4-way 3-shot, 80 episodes, 48 patients: accuracy {report.accuracy:.3f} [{low:.3f}, {high:.3f}] (patients), "
        f"± {report.episode_interval:.3f} (episodes)"
    )
    read = json.loads(report.to_json())
    assert read == report.to_dict()
    assert read["manifest"]["provenance"] == {"encoder": {"name": "toy", "dim": 8}}
    assert read["manifest"]["sampler"]["seed"] == 2
    assert read["manifest"]["classifier"] == {"class": "Nearest", "settings": {"radius": "inf", "told": None}}
    assert set(read["manifest"]["versions"]) == {"python", *VERSIONED}
    assert len(read["manifest"]["data_sha256"]) == 64
    text = report.to_markdown()
    assert text.startswith(f"## nearest\\|mean\n\n{report}\n")
    assert "| c0 | 0." in text and "Computed from:" in text and report.manifest["data_sha256"] in text
    assert report.warnings == ()


def test_two_runs_agree_to_the_byte_and_other_data_do_not(setting) -> None:
    vectors, labels, groups, sampler = setting
    one = evaluate(Nearest(), vectors, labels, sampler).to_json()
    fresh = EpisodeSampler(labels, 4, 3, 5, groups=groups, n_episodes=80, seed=2)
    assert evaluate(Nearest(), vectors.copy(), labels, fresh).to_json() == one
    hashes = {json.loads(one)["manifest"]["data_sha256"]}
    moved = vectors.copy()
    moved[0, 0] += 1
    hashes.add(evaluate(Nearest(), moved, labels, sampler).manifest["data_sha256"])
    swapped = EpisodeSampler(labels, 4, 3, 5, groups=["q", *groups[1:]], n_episodes=5)
    hashes.add(evaluate(Nearest(), vectors, labels, swapped).manifest["data_sha256"])
    assert len(hashes) == 3


def test_permuted_labels_give_chance() -> None:
    vectors, labels, groups = data(n_classes=5, images=60, seed=3)
    sampler = EpisodeSampler(labels, 5, 5, 15, groups=groups, n_episodes=200)
    assert evaluate(Nearest(), vectors, labels, sampler).accuracy > 0.5
    patients = list(dict.fromkeys(groups))
    label_of = dict(zip(groups, labels, strict=True))
    found = []
    for seed in range(8):
        order = np.random.default_rng(seed).permutation(len(patients))
        shuffled = {patients[i]: label_of[patients[j]] for i, j in enumerate(order)}
        mixed = [shuffled[group] for group in groups]
        chance = EpisodeSampler(mixed, 5, 5, 15, groups=groups, n_episodes=100, seed=seed)
        found.append(evaluate(Nearest(), vectors, mixed, chance).accuracy)
    assert abs(np.mean(found) - 0.2) < 0.02


def test_a_leak_would_show() -> None:
    # Vectors that tell the patient and nothing of the class: without groups, permuted labels seem to be learnt.
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(80), 10).tolist()
    labels = (rng.permutation(80) % 4)[groups].tolist()
    vectors = np.repeat(rng.normal(size=(80, 16)), 10, axis=0) + rng.normal(size=(800, 16)) * 0.01
    apart = EpisodeSampler(labels, 4, 5, 15, groups=groups, n_episodes=200)
    mixed = EpisodeSampler(labels, 4, 5, 15, n_episodes=200)
    neighbour = KNeighborsClassifier(1)
    assert abs(evaluate(neighbour, vectors, labels, apart).accuracy - 0.25) < 0.06
    assert evaluate(neighbour, vectors, labels, mixed).interval[0] > 0.33


def test_doubts_are_said() -> None:
    vectors, labels, groups = data(n_classes=3, images=12)
    few = evaluate(Nearest(), vectors, labels, EpisodeSampler(labels, 2, 1, 3, groups=groups, n_episodes=30))
    assert few.unreliable == {"c0": 4, "c1": 4, "c2": 4}
    assert str(few).endswith("(episodes); unreliable: fewer than 6 query patients in 'c0' (4), 'c1' (4), 'c2' (4)")
    assert few.warnings == ("The interval is unreliable: fewer than 6 query patients in 'c0' (4), 'c1' (4), 'c2' (4).",)
    unknown = evaluate(Nearest(), vectors, labels, EpisodeSampler(labels, 2, 1, 3, n_episodes=30))
    assert str(unknown).startswith("2-way 1-shot, 30 episodes, 36 images, patients unknown: accuracy ")
    assert "] (images), ± " in str(unknown)
    assert unknown.warnings[0].startswith("Patients are unknown: support and query may show the same patient")
    assert not unknown.patients_known and few.patients_known
    single = evaluate(Nearest(), vectors, labels, EpisodeSampler(labels, 2, 1, 3, groups=groups, n_episodes=1))
    assert single.episode_interval is None
    assert "episodes)" not in str(single)
    assert any(
        warning.startswith("Never drawn in 1 episodes, and not in the accuracy: 'c") for warning in single.warnings
    )
    assert sorted(found.recall is None for found in single.per_class.values()) == [False, False, True]
    assert "| never drawn |" in single.to_markdown()
    json.loads(single.to_json())


def test_excluded_classes_are_listed() -> None:
    vectors, labels, groups = data(n_classes=3, images=12)
    labels = ["rare"] * 3 + labels[3:]
    report = evaluate(Nearest(), vectors, labels, EpisodeSampler(labels, 2, 1, 3, groups=groups, n_episodes=9))
    assert report.excluded == {"rare": 1}
    assert report.to_dict()["excluded"] == [{"label": "rare", "patients": 1}]
    assert "Left out for too few patients: rare (1)." in report.to_markdown()


@pytest.mark.parametrize("model", [NearestCentroid(), KNeighborsClassifier(3), RidgeClassifier()], ids=repr)
@pytest.mark.parametrize("kind", [str, int])
def test_scikit_learn_classifiers_work(setting, model, kind) -> None:
    vectors, labels, groups, _ = setting
    named = labels if kind is str else [int(name[1:]) for name in labels]
    sampler = EpisodeSampler(named, 4, 3, 5, groups=groups, n_episodes=20)
    assert evaluate(model, vectors, named, sampler).accuracy > 0.4
    assert not hasattr(model, "classes_")  # a copy was fitted
    piped = evaluate(make_pipeline(StandardScaler(), model), vectors, named, sampler)
    assert piped.name == "Pipeline" and piped.accuracy > 0.4
    json.loads(piped.to_json())


def test_ids_and_groups_reach_classifiers_that_take_them(setting) -> None:
    vectors, labels, groups, sampler = setting
    told: list = []
    evaluate(Nearest(told=told), vectors, labels, sampler, ids=[f"id{i}" for i in range(len(labels))], groups=groups)
    assert len(told) == 80
    for (ids, patients, taught), episode in zip(told, sampler, strict=True):
        rows = np.concatenate(episode.support)
        assert ids == [f"id{row}" for row in rows]
        assert patients == [groups[row] for row in rows]
        assert taught == [labels[row] for row in rows]
    told.clear()
    evaluate(Nearest(told=told), vectors, labels, EpisodeSampler(labels, 2, 1, 1, n_episodes=1))
    assert told[0][0] == [str(row) for row in told[0][1]]


def test_multi_label_queries_have_one_true_class() -> None:
    labels = [("a",), ("b",), ("a", "b"), ("c",)] * 10
    vectors = np.array([[len(names), "abc".index(names[0])] for names in labels], dtype=float)
    report = evaluate(Nearest(), vectors, labels, EpisodeSampler(labels, 2, 1, 3, n_episodes=60))
    # "a" and "b" together leave ("a", "b") out; against "c" it stands for "a" or "b" as drawn.
    assert report.accuracy > 0.7
    assert set(report.per_class) == {"a", "b", "c"}


def test_paired_comparison(setting) -> None:
    vectors, labels, groups, sampler = setting
    good = evaluate(Nearest(), vectors, labels, sampler, name="good")
    bad = evaluate(Nearest(), np.random.default_rng(0).normal(size=vectors.shape), labels, sampler, name="bad")
    found = compare(good, bad)
    assert found.difference == pytest.approx(good.accuracy - bad.accuracy)
    assert found.low < found.difference < found.high
    assert found.significant and found.p_value < 0.01
    assert compare(bad, good).difference == pytest.approx(-found.difference)
    assert compare(good, good).p_value == 1.0
    assert str(found).startswith("good minus bad: +0.") and found.patients == 48
    other = evaluate(Nearest(), vectors, labels, EpisodeSampler(labels, 4, 3, 5, groups=groups, n_episodes=80, seed=3))
    with pytest.raises(
        EpisodeError, match="good and Nearest were not evaluated on the same episodes, labels and patients"
    ):
        compare(good, other)


def test_wrong_input_is_refused(setting) -> None:
    vectors, labels, groups, sampler = setting
    broken = vectors.copy()
    broken[[3, 7, 8, 9, 10, 11, 12]] = np.nan
    with pytest.raises(ValueError, match=r"rows \(counted from 0\) with NaN or infinity: 3, 7, 8, 9, 10 and 2 more"):
        evaluate(Nearest(), broken, labels, sampler)
    with pytest.raises(EpisodeError, match=r"one row for each of the sampler's 144 images; got shape \(3, 8\)"):
        evaluate(Nearest(), vectors[:3], labels, sampler)
    with pytest.raises(EpisodeError, match="There are 3 labels, and the sampler was made with 144"):
        evaluate(Nearest(), vectors, labels[:3], sampler)
    with pytest.raises(EpisodeError, match=r"The label of row 1 is \('x',\), and the sampler was made with \('c0',\)"):
        evaluate(Nearest(), vectors, ["c0", "x", *labels[2:]], sampler)
    with pytest.raises(EpisodeError, match="The groups are not those the sampler was made with"):
        evaluate(Nearest(), vectors, labels, EpisodeSampler(labels, 2, 1, 1), groups=groups)
    with pytest.raises(EpisodeError, match="There are 2 ids for 144 images"):
        evaluate(Nearest(), vectors, labels, sampler, ids=["a", "b"])
    with pytest.raises(EpisodeError, match=r"A classifier needs fit\(X, y\) and predict\(X\); object lacks fit"):
        evaluate(object(), vectors, labels, sampler)


class Broken(Nearest):
    def __init__(self, answer: list) -> None:
        super().__init__()
        self.answer = answer

    def predict(self, X):
        return self.answer * len(X) if len(self.answer) == 1 else self.answer


def test_wrong_answers_are_refused(setting) -> None:
    vectors, labels, _, sampler = setting
    with pytest.raises(ValueError, match=r"In episode 0 the classifier answered 'x', which is none of the classes"):
        evaluate(Broken(["x"]), vectors, labels, sampler)
    with pytest.raises(ValueError, match="Episode 0 has 20 queries and the classifier gave 2 answers"):
        evaluate(Broken(["c0", "c1"]), vectors, labels, sampler)
    silent = evaluate(Broken([None]), vectors, labels, sampler)
    assert (silent.accuracy, silent.abstained, silent.interval) == (0, 1, (0, 0))
    assert "| none of these |" in silent.to_markdown()


def test_the_hardest_of_many_classes_are_listed() -> None:
    vectors, labels, groups = data(n_classes=50, images=9)
    report = evaluate(Nearest(), vectors, labels, EpisodeSampler(labels, 5, 1, 5, groups=groups, n_episodes=100))
    text = report.to_markdown()
    assert "The 40 hardest of 50 classes:" in text
    assert len(json.loads(report.to_json())["per_class"]) == 50


def test_every_public_name_resolves_and_only_those_of_tensors_with_torch() -> None:
    code = (
        "import sys, episodes.evaluate; from episodes import evaluate; assert callable(evaluate)\n"
        "import episodes\n"
        "tensors = {'EpisodeBatch', 'EpisodeStream', 'PixelBatches', 'StreamedEpisode'}\n"
        "for name in set(episodes.__all__) - tensors: getattr(episodes, name)\n"
        "assert 'torch' not in sys.modules and 'embeddings' not in sys.modules\n"
        "for name in tensors: getattr(episodes, name)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    assert set(dir(episodes)) == set(episodes.__all__)
    with pytest.raises(AttributeError, match="module 'episodes' has no attribute 'nothing'"):
        episodes.nothing  # noqa: B018


def test_multi_label_episodes_are_for_another_function() -> None:
    sampler = MultiLabelEpisodeSampler([("a",), ("b",), ("a", "b"), ("b",), ("a",), ("c",)], 2, 1, 2, n_episodes=2)
    with pytest.raises(EpisodeError, match="a MultiLabelEpisodeSampler, whose episodes are for evaluate_multilabel"):
        evaluate(Nearest(), np.zeros((6, 2)), ["a"] * 6, sampler)
