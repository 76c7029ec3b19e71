"""Multi-label evaluation: AUROC and its patient interval against slow loops, doubts said, chance where labels are."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from episodes import EpisodeError, EpisodeSampler, render_reports
from episodes import multilabel_pairs as pairs
from episodes.evaluate import VERSIONED
from episodes.label_states import label_states
from episodes.multilabel import MultiLabelEpisodeSampler
from episodes.multilabel_evaluate import evaluate_multilabel, label_auroc
from episodes.multilabel_report import MultiLabelReport
from episodes.multilabel_summary import compare_multilabel, summarise_multilabel

NAMES = list("abcd")


class Means:
    """Projection on the mean of the positives; no answer beyond a radius; remembers what it was told."""

    def __init__(self, radius: float = math.inf, told: list | None = None, flat: bool = False) -> None:
        self.radius = radius
        self.told = told
        self.flat = flat

    def fit(self, X, y, *, ids=None, groups=None):
        self.means_ = np.stack([X[column == 1].mean(axis=0) for column in y.T])
        if self.told is not None:
            self.told.append((X, y, ids, groups))
        return self

    def decision_function(self, X):
        scores = (X @ self.means_.T).astype(np.float64).round(1)  # rounded, so that some tie
        scores[np.linalg.norm(X, axis=1) > self.radius] = np.nan
        return scores[:, 0] if self.flat else scores


def data(n: int = 160, unknown: float = 0.0, seed: int = 0, shift: float = 0.8):
    """Four findings, the second never without the first, three images per patient that resemble each other."""
    rng = np.random.default_rng(seed)
    table = (rng.random((n, 4)) < 0.3).astype(float)
    table[:, 0] = np.maximum(table[:, 0], table[:, 1])
    person = np.repeat(rng.normal(size=(n, 6))[: -(-n // 3)], 3, axis=0)[:n] * 0.7
    vectors = table @ rng.normal(size=(4, 6)) * shift + person + rng.normal(size=(n, 6)) * 0.5
    table[rng.random(table.shape) < unknown] = np.nan
    return vectors.astype(np.float32), table, [f"p{i // 3}" for i in range(n)]


@pytest.fixture(scope="module")
def setting():
    vectors, table, groups = data(unknown=0.15)
    sampler = MultiLabelEpisodeSampler(table, 3, 3, 5, groups=groups, n_episodes=60, seed=2, classes=NAMES)
    return vectors, table, groups, sampler


def slow_scores(vectors, table, sampler, radius):
    """(episode, label) -> rows, truths and scores, with NaN turned into the worst answer."""
    found = {}
    for number, episode in enumerate(sampler):
        columns = [NAMES.index(name) for name in episode.classes]
        model = Means(radius=radius).fit(vectors[episode.support], table[np.ix_(episode.support, columns)])
        answers = model.decision_function(vectors[episode.query])
        for way, column in enumerate(columns):
            rows, truths, scores = [], [], []
            for row, score in zip(episode.query.tolist(), answers[:, way].tolist(), strict=True):
                truth = table[row, column]
                if not math.isnan(truth):
                    rows.append(row)
                    truths.append(int(truth))
                    scores.append((-1e9 if truth else 1e9) if math.isnan(score) else score)
            found[number, episode.classes[way]] = rows, truths, scores
    return found


def slow_auroc(found, label, weight) -> float:
    """Share of weighted pairs of one episode in the right order."""
    won = total = 0.0
    for (_, name), (rows, truths, scores) in found.items():
        if name != label:
            continue
        for i, one in enumerate(rows):
            for j, two in enumerate(rows):
                if truths[i] == 1 and truths[j] == 0:
                    pair = weight(one) * weight(two)
                    total += pair
                    won += pair * (1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0)
    return won / total


def test_figures_agree_with_slow_loops(setting) -> None:
    vectors, table, groups, sampler = setting
    radius = float(np.quantile(np.linalg.norm(vectors, axis=1), 0.95))
    report = evaluate_multilabel(Means(radius=radius), vectors, sampler)
    found = slow_scores(vectors, table, sampler, radius)
    aurocs, precisions = [], []
    for name, result in report.per_label.items():
        mine = {number: parts for (number, label), parts in found.items() if label == name}
        assert result.auroc == pytest.approx(slow_auroc(found, name, lambda row: 1))
        per_episode = [roc_auc_score(truths, scores) for _, truths, scores in mine.values()]
        precision = [average_precision_score(truths, scores) for _, truths, scores in mine.values()]
        assert result.episode_mean == pytest.approx(np.mean(per_episode))
        assert result.average_precision == pytest.approx(np.mean(precision))
        positives = sum(sum(truths) for _, truths, _ in mine.values())
        queries = sum(len(truths) for _, truths, _ in mine.values())
        assert (result.positives, result.negatives) == (positives, queries - positives)
        assert result.prevalence == pytest.approx(positives / queries)
        with_it = {groups[row] for rows, truths, _ in mine.values() for row, t in zip(rows, truths, strict=True) if t}
        without = {
            groups[row] for rows, truths, _ in mine.values() for row, t in zip(rows, truths, strict=True) if not t
        }
        assert (result.patients, result.negative_patients) == (len(with_it), len(without))
        episodes = [episode for episode in sampler if name in episode.classes]
        assert result.episodes == len(episodes) == len(mine)
        columns = [episode.classes.index(name) for episode in episodes]
        shots = [int((e.support_labels[:, way] == 1).sum()) for e, way in zip(episodes, columns, strict=True)]
        assert result.shots == pytest.approx(np.mean(shots)) and min(shots) >= 3
        unknown = sum(int((e.query_labels[:, way] == -1).sum()) for e, way in zip(episodes, columns, strict=True))
        assert result.unknown == unknown > 0
        assert result.unanswered == sum(abs(score) == 1e9 for _, _, scores in mine.values() for score in scores) > 0
        assert result.interval[0] < result.auroc < result.interval[1] and result.reason is None
        aurocs.append(result.auroc)
        precisions.append(result.average_precision)
    assert report.auroc == pytest.approx(np.mean(aurocs)) and report.interval[0] < report.auroc < report.interval[1]
    assert report.average_precision == pytest.approx(np.mean(precisions))
    by_episode = [
        np.mean([roc_auc_score(*found[number, name][1:]) for name in episode.classes])
        for number, episode in enumerate(sampler)
    ]
    assert report.episode_mean == pytest.approx(np.mean(by_episode))
    assert report.episode_interval == pytest.approx(1.96 * np.std(by_episode, ddof=1) / math.sqrt(60))
    assert (report.episodes, report.n_way, report.k_shot, report.k_negative) == (60, 3, 3, 0)
    # The interval is made of resamples, each of which is the slow figure with patients counted as often as drawn.
    everyone = np.unique(report.outcomes.patient)
    drawn = np.random.default_rng(2).integers(0, everyone.size, (pairs.DRAWS, everyone.size))
    assert report.samples.shape == (pairs.DRAWS, 4)
    for draw in (0, 7, 1999):
        times = np.bincount(everyone[drawn[draw]], minlength=len(groups))
        for at, name in enumerate(NAMES):
            slow = slow_auroc(found, name, lambda row, times=times: times[sampler.group_codes[row]])
            assert report.samples[draw, at] == pytest.approx(slow)
    assert report.interval == tuple(np.quantile(report.samples.mean(axis=1), [0.025, 0.975]))


def test_a_sparse_table_of_pairs_says_the_same(setting, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, _, _, sampler = setting
    whole = evaluate_multilabel(Means(), vectors, sampler)
    monkeypatch.setattr(pairs, "DENSE_CELLS", 10)
    monkeypatch.setattr(pairs, "PAIRS_AT_ONCE", 100)
    sparse = evaluate_multilabel(Means(), vectors, sampler)
    assert sparse.samples == pytest.approx(whole.samples) and sparse.auroc == pytest.approx(whole.auroc)
    table = pairs.pair_table(sparse.outcomes, 1)
    assert not isinstance(table.wins, np.ndarray) and table.estimate == pytest.approx(sparse.per_label["b"].auroc)
    monkeypatch.setattr(pairs, "DENSE_CELLS", 10**6)
    monkeypatch.setattr(pairs, "WEIGHTS_AT_ONCE", 1000)
    blocks = evaluate_multilabel(Means(), vectors, sampler)
    assert blocks.interval == pytest.approx(whole.interval, abs=0.01)


def test_average_precision_is_scikit_learns() -> None:
    rng = np.random.default_rng(0)
    for n in (1, 2, 7, 40):
        present = rng.random(n) < 0.4
        present[0] = True
        scores = rng.integers(0, 8, n).astype(float)
        assert pairs.average_precision(present, scores) == pytest.approx(average_precision_score(present, scores))


def test_findings_that_go_together_widen_the_mean_over_labels() -> None:
    # The same label four times over: the mean is no surer than one of them.
    vectors, table, groups = data(n=240)
    four = np.repeat(table[:, :1], 4, axis=1)
    options = {"groups": groups, "n_episodes": 150, "seed": 0}
    report = label_auroc(Means(), vectors, MultiLabelEpisodeSampler(four, 1, 3, None, classes=NAMES, **options))
    widths = [found.interval[1] - found.interval[0] for found in report.per_label.values()]
    assert report.interval[1] - report.interval[0] == pytest.approx(widths[0], rel=0.05)
    assert max(widths) == pytest.approx(min(widths), rel=0.2)


def test_report_is_one_line_json_and_markdown(setting) -> None:
    vectors, _, _, sampler = setting
    report = evaluate_multilabel(
        Means(), vectors, sampler, name="mean|one", provenance={"encoder": {"name": "toy", "dim": np.int64(6)}}
    )
    low, high = report.interval
    assert str(report) == (
        f"3-way 3-shot, multi-label, 60 episodes, {report.patients} patients: AUROC {report.auroc:.3f} "
        f"[{low:.3f}, {high:.3f}] (patients), ± {report.episode_interval:.3f} (episodes)"
    )
    read = json.loads(report.to_json())
    assert read == report.to_dict()
    assert read["manifest"]["provenance"] == {"encoder": {"name": "toy", "dim": 6}}
    assert read["manifest"]["sampler"]["seed"] == 2 and not read["manifest"]["sampler"]["episodes_for_each_class"]
    assert read["manifest"]["classifier"]["settings"] == {"radius": "inf", "told": None, "flat": False}
    assert set(read["manifest"]["versions"]) == {"python", *VERSIONED}
    assert read["per_label"][1]["label"] == "b" and read["per_label"][1]["auroc"] == report.per_label["b"].auroc
    text = report.to_markdown()
    assert text.startswith(f"## mean\\|one\n\n{report}\n")
    found = report.per_label["a"]
    assert (
        f"| a | {found.auroc:.3f} | {found.interval[0]:.3f} to {found.interval[1]:.3f} | {found.average_precision:.3f} "
        f"({found.prevalence:.3f}) | {found.patients} / {found.negative_patients} | {found.shots:.1f} |" in text
    )
    assert "Computed from:" in text and report.manifest["data_sha256"] in text and report.warnings == ()


def test_two_runs_agree_to_the_byte_and_other_data_do_not(setting) -> None:
    vectors, table, groups, sampler = setting
    one = evaluate_multilabel(Means(), vectors, sampler).to_json()
    options = {"n_episodes": 60, "seed": 2, "classes": NAMES}
    fresh = MultiLabelEpisodeSampler(table, 3, 3, 5, groups=groups, **options)
    assert evaluate_multilabel(Means(), vectors.copy(), fresh).to_json() == one
    hashes = {json.loads(one)["manifest"]["data_sha256"]}
    hashes.add(evaluate_multilabel(Means(), vectors + 1, sampler).manifest["data_sha256"])
    moved = table.copy()
    moved[0, 0] = np.nan if moved[0, 0] == 0 else 0
    for labels, patients in ((moved, groups), (table, ["q", *groups[1:]])):
        other = MultiLabelEpisodeSampler(labels, 3, 3, 5, groups=patients, **options)
        hashes.add(evaluate_multilabel(Means(), vectors, other).manifest["data_sha256"])
    assert len(hashes) == 4


def test_labels_that_mean_nothing_give_chance() -> None:
    vectors, table, groups = data(n=600, shift=0.0, seed=5)
    sampler = MultiLabelEpisodeSampler(table, 2, 5, 15, groups=groups, n_episodes=150, classes=NAMES, k_negative=5)
    report = evaluate_multilabel(Means(), vectors, sampler)
    assert report.interval[0] < 0.5 < report.interval[1] and abs(report.auroc - 0.5) < 0.05


def test_one_label_at_a_time_ranks_every_image_of_all_other_patients() -> None:
    vectors, table, groups = data()
    sampler = MultiLabelEpisodeSampler(
        table, 1, 3, None, groups=groups, n_episodes=8, seed=1, classes=NAMES, k_negative=2
    )
    told: list = []
    report = label_auroc(Means(told=told), vectors, sampler)
    assert len(told) == report.episodes == 32 and tuple(report.per_label) == sampler.classes
    for name, result in report.per_label.items():
        alone = evaluate_multilabel(Means(), vectors, sampler.of_class(name)).per_label[name]
        assert (result.auroc, result.average_precision) == (alone.auroc, alone.average_precision)
        assert (result.episodes, result.shots, result.positives) == (8, 3.0, alone.positives)
    for number in range(8):
        episode = sampler.of_class("b")[number]
        out = {groups[row] for row in episode.support}
        rows = report.outcomes.row[report.outcomes.episode == 8 + number]
        assert rows.tolist() == [row for row in range(160) if groups[row] not in out]
        assert [told[8 + number][3][i] for i in range(5)] == [groups[row] for row in episode.support]
    assert report.manifest["sampler"]["episodes_for_each_class"]
    assert "1-way 3-shot with 2 negative, multi-label, 32 episodes" in str(report)
    assert label_auroc(Means(flat=True), vectors, sampler).auroc == report.auroc
    few = MultiLabelEpisodeSampler(table, 1, 3, 15, groups=groups, n_episodes=150, classes=NAMES, k_negative=2)
    assert label_auroc(Means(), vectors, few).auroc == pytest.approx(report.auroc, abs=0.05)


def test_classifiers_get_ids_groups_and_unknown_labels(setting) -> None:
    vectors, table, groups, sampler = setting
    told: list = []
    names = [f"image {i}" for i in range(160)]
    evaluate_multilabel(Means(told=told), vectors, sampler, ids=names)
    evaluate_multilabel(Means(told=told), vectors, sampler)
    episode = sampler[0]
    columns = [NAMES.index(name) for name in episode.classes]
    X, y, ids, patients = told[0]
    assert np.array_equal(X, vectors[episode.support])
    assert np.array_equal(y, table[np.ix_(episode.support, columns)], equal_nan=True)
    assert ids == [names[row] for row in episode.support] and patients == [groups[row] for row in episode.support]
    assert told[60][2] == [str(row) for row in episode.support]


def test_a_better_classifier_is_better_by_paired_difference(setting) -> None:
    vectors, table, groups, sampler = setting
    rng = np.random.default_rng(3)
    good = evaluate_multilabel(Means(), vectors, sampler, name="good")
    bad = evaluate_multilabel(Means(), vectors + 3 * rng.normal(size=vectors.shape), sampler, name="bad")
    paired = compare_multilabel(good, bad)
    assert paired.difference == pytest.approx(good.auroc - bad.auroc) and paired.significant
    assert paired.low < paired.difference < paired.high and paired.p_value < 0.05
    assert (paired.names, paired.patients, paired.unreliable) == (("good", "bad"), good.patients, False)
    back = compare_multilabel(bad, good)
    assert (back.low, back.high) == pytest.approx((-paired.high, -paired.low))
    # The same patients come in both: the difference is surer than two intervals side by side.
    close = evaluate_multilabel(Means(), vectors + 0.1 * rng.normal(size=vectors.shape), sampler)
    near = compare_multilabel(good, close)
    assert near.high - near.low < 0.5 * (good.interval[1] - good.interval[0])
    same = compare_multilabel(good, good)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    other = MultiLabelEpisodeSampler(table, 3, 3, 5, groups=groups, n_episodes=60, seed=9, classes=NAMES)
    with pytest.raises(EpisodeError, match="good and Means were not evaluated on the same episodes, labels and"):
        compare_multilabel(good, evaluate_multilabel(Means(), vectors, other))


def test_seen_and_unseen_labels_have_a_harmonic_mean(setting) -> None:
    vectors, _, _, sampler = setting
    report = evaluate_multilabel(Means(), vectors, sampler)
    found = report.seen_unseen({"a", "c"})
    one = (report.per_label["a"].auroc + report.per_label["c"].auroc) / 2
    two = (report.per_label["b"].auroc + report.per_label["d"].auroc) / 2
    assert (found.seen, found.unseen) == pytest.approx((one, two))
    assert found.harmonic_mean == pytest.approx(2 * one * two / (one + two))
    seen, unseen = report.samples[:, [0, 2]].mean(axis=1), report.samples[:, [1, 3]].mean(axis=1)
    assert found.interval == pytest.approx(np.quantile(2 * seen * unseen / (seen + unseen), [0.025, 0.975]))
    with pytest.raises(EpisodeError, match="There is no unseen label among 'a', 'b', 'c', 'd'"):
        report.seen_unseen(NAMES)
    with pytest.raises(EpisodeError, match="There is no seen label among"):
        report.seen_unseen(["z"])


def test_few_patients_unknown_patients_and_excluded_labels_are_said() -> None:
    rng = np.random.default_rng(0)
    labels = [("rare", "common")] * 4 + [("common",)] * 20 + [("never",)] + [("normal",)] * 20
    vectors = rng.normal(size=(45, 3)) + 5
    sampler = MultiLabelEpisodeSampler(labels, 1, 2, 5, n_episodes=40)
    report = label_auroc(Means(), vectors, sampler)
    assert report.unreliable == {"rare": 4}
    assert report.excluded == {"never": "images who have it: 1, needed: 3"}
    assert report.warnings[0].startswith("Patients are unknown: support and query may show the same patient")
    assert report.warnings[1] == ("The interval is unreliable: fewer than 6 query images with or without 'rare' (4).")
    text = report.to_markdown()
    assert "images, patients unknown: AUROC" in text
    assert "; unreliable: fewer than 6 query images with or without 'rare' (4)" in text
    assert "Left out: never (images who have it: 1, needed: 3)." in text
    assert json.loads(report.to_json())["excluded"] == [{"label": "never", "reason": report.excluded["never"]}]
    assert compare_multilabel(report, report).unreliable
    # Too few images of it come back in a resample now and then; its interval is over the others.
    assert np.isnan(report.samples).any() and report.per_label["rare"].interval is not None


def test_a_label_without_figures_is_said_never_nan() -> None:
    vectors, table, groups = data()
    sampler = MultiLabelEpisodeSampler(table, 2, 3, 5, groups=groups, n_episodes=1, classes=NAMES)
    report = evaluate_multilabel(Means(), vectors, sampler)
    missing = [name for name in NAMES if name not in sampler[0].classes]
    for name in missing:
        result = report.per_label[name]
        assert (result.auroc, result.interval, result.average_precision, result.prevalence) == (None,) * 4
        assert result.reason == "It was never drawn, so no query was scored."
    assert report.warnings[-1] == f"Without an AUROC, and not in the mean: '{missing[0]}', '{missing[1]}'."
    assert f"| {missing[0]} | none: It was never drawn, so no query was scored. | | | | |" in report.to_markdown()
    assert "NaN" not in report.to_json() and report.episode_interval is None


def outcomes_of(truths: list[list[bool]]) -> pairs.MultiLabelOutcomes:
    """One label for each list, each asked about in an episode of its own."""
    sizes = [len(part) for part in truths]
    n = sum(sizes)
    code = np.repeat(np.arange(len(truths)), sizes)
    return pairs.MultiLabelOutcomes(
        labels=tuple(f"l{i}" for i in range(len(truths))),
        episode=code,
        row=np.arange(n),
        label=code,
        truth=np.array([value for part in truths for value in part]),
        score=np.arange(n, dtype=float),
        patient=np.arange(n),
        shots=np.ones(len(truths)),
        unknown=np.zeros(len(truths), dtype=np.intp),
    )


def test_one_sided_labels_have_a_reason() -> None:
    settings = {"n_way": 1, "k_shot": 1, "k_negative": 0, "seed": 0, "patients_known": True}
    outcomes = outcomes_of([[True, False], [True, True], [False]])
    report = summarise_multilabel(outcomes, settings, name="x", manifest={}, excluded={})
    assert isinstance(report, MultiLabelReport) and report.per_label["l0"].auroc == report.auroc == 0.0
    assert report.per_label["l1"].reason == "Every query has it." and report.per_label["l1"].positives == 2
    assert report.per_label["l2"].reason == "No query has it." and report.per_label["l2"].auroc is None
    apart = outcomes_of([[True, False], [True, False]])
    apart = pairs.MultiLabelOutcomes(
        **{name: getattr(apart, name) for name in apart.__slots__ if name != "episode"}, episode=np.array([0, 0, 1, 2])
    )
    report = summarise_multilabel(apart, settings, name="x", manifest={}, excluded={})
    assert report.per_label["l1"].reason == "No episode asks about images with and without it."


def test_what_cannot_be_evaluated_is_refused(setting) -> None:
    vectors, _, _, sampler = setting
    with pytest.raises(EpisodeError, match=r"needs fit\(X, y\) and decision_function\(X\); KNeighborsClassifier lacks"):
        evaluate_multilabel(KNeighborsClassifier(), vectors, sampler)
    with pytest.raises(EpisodeError, match="There are 2 ids for 160 images"):
        evaluate_multilabel(Means(), vectors, sampler, ids=["a", "b"])
    with pytest.raises(EpisodeError, match="vectors must have one row for each of the sampler's 160 images"):
        evaluate_multilabel(Means(), vectors[:5], sampler)
    with pytest.raises(ValueError, match="Vectors must be finite numbers; rows"):
        evaluate_multilabel(Means(), np.where(np.arange(6) == 1, np.nan, vectors), sampler)
    with pytest.raises(EpisodeError, match="label_auroc takes one label at a time, with n_way 1; the sampler's is 3"):
        label_auroc(Means(), vectors, sampler)
    with pytest.raises(ValueError, match=r"Episode 0 has \d+ queries and 3 labels, and the classifier gave scores of"):
        evaluate_multilabel(Means(flat=True), vectors, sampler)

    class Infinite(Means):
        def decision_function(self, X):
            return super().decision_function(X) / 0.0

    with np.errstate(divide="ignore", invalid="ignore"), pytest.raises(ValueError, match="In episode 0 the classifier"):
        evaluate_multilabel(Infinite(), vectors, sampler)


def test_names_and_tables_give_the_same_report() -> None:
    vectors, table, groups = data()
    labels = [tuple(NAMES[i] for i in np.flatnonzero(row)) or ("none",) for row in table]
    assert np.array_equal(label_states(labels, NAMES)[1], table)
    options = {"groups": groups, "n_episodes": 10, "classes": NAMES}
    one = evaluate_multilabel(Means(), vectors, MultiLabelEpisodeSampler(labels, 2, 2, 4, **options))
    two = evaluate_multilabel(Means(), vectors, MultiLabelEpisodeSampler(table, 2, 2, 4, **options))
    assert one.to_json() == two.to_json()


@pytest.mark.parametrize("function", [evaluate_multilabel, label_auroc])
def test_single_label_episodes_are_for_another_function(function) -> None:
    sampler = EpisodeSampler(["a", "b"] * 4, 2, 1, 2, n_episodes=2)
    message = f"{function.__name__} takes .* MultiLabelEpisodeSampler; got an EpisodeSampler, whose .* for evaluate\\."
    with pytest.raises(EpisodeError, match=message):
        function(Means(), np.zeros((8, 2)), sampler)


def test_pages_refuse_multi_label_reports(setting) -> None:
    vectors, _, _, sampler = setting
    report = evaluate_multilabel(Means(), vectors, sampler)
    for given in (report, [report]):
        with pytest.raises(EpisodeError, match=r"got a MultiLabelReport, whose text to_markdown\(\) makes"):
            render_reports(given)
