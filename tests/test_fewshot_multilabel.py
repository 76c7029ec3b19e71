"""Multi-label prototypes: the head and the loss against slow loops, unknown labels without any weight."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from episodes.multilabel import MultiLabelEpisodeSampler
from fewshot.label_prototypes import LabelPrototypeClassifier
from fewshot.losses import prototypical_logits
from fewshot.multilabel import MultiLabelPrototypicalNetwork, MultiLabelTargets, balanced_mean, multilabel_logits
from fewshot.training_config import TrainingConfig


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / math.sqrt(float(vector @ vector))


def support_set(seed: int = 0, unknown: bool = True):
    """Ten images of seven patients with three labels; nobody is known to lack the last one."""
    rng = np.random.default_rng(seed)
    table = (rng.random((10, 3)) < 0.5).astype(float)
    table[0], table[1] = [1, 1, 1], [0, 0, 1]
    if unknown:
        table[4, 0] = table[5, 1] = np.nan
    table[table[:, 2] == 0, 2] = np.nan
    return rng.normal(size=(10, 5)).astype(np.float32), table, ["p", "p", "q", "r", "s", "t", "p", "u", "v", "q"]


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
@pytest.mark.parametrize("known", [True, False])
def test_the_head_agrees_with_a_slow_loop(metric: str, known: bool) -> None:
    vectors, table, patients = support_set()
    rng = np.random.default_rng(1)
    center, queries = rng.normal(size=5) * 0.2, rng.normal(size=(4, 5)).astype(np.float32)
    clf = LabelPrototypeClassifier(metric=metric, center=center)
    scores = clf.fit(vectors, table, groups=patients if known else None).decision_function(queries)

    def placed(vector):
        moved = vector.astype(float) - center
        return unit(moved) if metric == "cosine" else moved

    def mean(label: int, state: int):
        by_patient: dict = {}
        for i in range(10):
            if table[i, label] == state:
                by_patient.setdefault(patients[i] if known else i, []).append(placed(vectors[i]))
        if not by_patient:
            return None
        found = sum(sum(own) / len(own) for own in by_patient.values()) / len(by_patient)
        return unit(found) if metric == "cosine" else found

    def closeness(query, prototype):
        if prototype is None:
            return 0.0
        return float(query @ prototype) if metric == "cosine" else -float(((query - prototype) ** 2).sum())

    for i, query in enumerate(queries):
        for label in range(3):
            expected = closeness(placed(query), mean(label, 1)) - closeness(placed(query), mean(label, 0))
            assert scores[i, label] == pytest.approx(expected)
    assert clf.has_negative_.tolist() == [True, True, False] and not clf.negative_[2].any()


def test_the_head_forgets_the_order_of_registration_and_who_was_asked_along() -> None:
    vectors, table, patients = support_set()
    ids = [f"i{i}" for i in range(10)]
    one = LabelPrototypeClassifier().fit(vectors, table, ids=ids, groups=patients)
    order = np.random.default_rng(3).permutation(10)
    shuffled = [ids[i] for i in order], [patients[i] for i in order]
    two = LabelPrototypeClassifier().fit(vectors[order], table[order], ids=shuffled[0], groups=shuffled[1])
    queries = np.random.default_rng(4).normal(size=(6, 5)).astype(np.float32)
    together = one.decision_function(queries)
    assert np.array_equal(together, two.decision_function(queries))
    assert np.array_equal(together, np.concatenate([one.decision_function(queries[i : i + 1]) for i in range(6)]))


def test_an_unknown_label_is_as_if_the_image_were_not_there_for_it() -> None:
    vectors, table, _ = support_set(unknown=False)
    table[2, 0] = np.nan
    full = LabelPrototypeClassifier().fit(vectors, table)
    without = LabelPrototypeClassifier().fit(np.delete(vectors, 2, 0), np.delete(table, 2, 0))
    queries = np.random.default_rng(4).normal(size=(6, 5)).astype(np.float32)
    assert np.array_equal(full.decision_function(queries)[:, 0], without.decision_function(queries)[:, 0])
    assert not np.array_equal(full.decision_function(queries)[:, 1], without.decision_function(queries)[:, 1])


def test_what_cannot_be_scored_has_no_score() -> None:
    vectors, table, _ = support_set()
    center = np.ones(5)
    queries = np.stack([np.full(5, np.nan), np.ones(5), np.arange(5)]).astype(np.float32)
    scores = LabelPrototypeClassifier(center=center).fit(vectors, table).decision_function(queries)
    assert np.isnan(scores[:2]).all() and np.isfinite(scores[2]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"vectors": np.zeros((0, 5)), "label_matrix": np.zeros((0, 1))},
            "The support is empty: it needs at",
        ),
        ({"vectors": np.full((10, 5), np.nan)}, r"Support vectors must be finite; rows \[0, 1, 2, 3, 4\] hold NaN"),
        ({"label_matrix": [1] * 10}, r"10 support vectors need labels of shape \(10, n_labels\); got an array \(10,\)"),
        ({"label_matrix": np.full((10, 2), 2)}, "Labels must be 1 .present., 0 .absent. or NaN .not mentioned."),
        ({"label_matrix": np.zeros((10, 2))}, r"Every label needs an image that has it; labels \[0, 1\] have none"),
        ({"groups": ["p"]}, "10 support vectors need 10 groups; got 1"),
        ({"ids": ["p"]}, "10 support vectors need 10 ids; got 1"),
        ({"ids": ["p"] * 10}, "Support ids must be distinct; 'p' occurs more than once"),
    ],
)
def test_the_head_refuses_what_it_cannot_learn_from(change, message) -> None:
    vectors, table, _ = support_set()
    with pytest.raises(ValueError, match=message):
        LabelPrototypeClassifier().fit(**({"vectors": vectors, "label_matrix": table} | change))


def test_the_head_refuses_to_answer_before_fit_or_about_other_vectors() -> None:
    vectors, table, _ = support_set()
    with pytest.raises(ValueError, match="This LabelPrototypeClassifier has no support yet: call fit first"):
        LabelPrototypeClassifier().decision_function(vectors)
    with pytest.raises(ValueError, match="Query vectors have 4 dimensions, the comparison set has 5"):
        LabelPrototypeClassifier().fit(vectors, table).decision_function(vectors[:, :4])
    with pytest.raises(ValueError, match="metric must be 'cosine' or 'euclidean'; got 'dot'"):
        LabelPrototypeClassifier(metric="dot").fit(vectors, table)


def test_the_head_needs_no_torch() -> None:
    code = (
        "import sys, numpy as np; from fewshot.label_prototypes import LabelPrototypeClassifier as C\n"
        "C().fit(np.eye(3), [[1], [0], [0]]).decision_function(np.eye(3)); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


class Flatten(nn.Module):
    """A backbone without memory of its batch: one linear layer over the pixels."""

    dim = 6

    def __init__(self, offset: float = 0.0) -> None:
        super().__init__()
        self.offset = offset
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.layer = nn.Linear(16, 6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.flatten(1)) + self.offset


def batch() -> tuple[torch.Tensor, list[MultiLabelTargets]]:
    """Two unequal episodes with unknown labels; in the second nobody is known to lack the last label."""
    first = MultiLabelTargets(
        torch.tensor([[1, 0], [0, 1], [1, 1], [0, 0], [-1, 1]], dtype=torch.int8),
        torch.tensor([[1, 1], [0, 1], [-1, 0], [0, -1]], dtype=torch.int8),
    )
    second = MultiLabelTargets(
        torch.tensor([[1, 0, 1], [0, 1, 1], [1, 1, -1]]), torch.tensor([[1, 0, 0], [1, 1, 1], [1, -1, 1]])
    )
    return torch.randn(15, 1, 4, 4, generator=torch.Generator().manual_seed(0)), [first, second]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("temperature", [None, 2.5])
def test_loss_and_accuracy_agree_with_slow_loops(metric: str, temperature: float | None) -> None:
    images, episodes = batch()
    network = MultiLabelPrototypicalNetwork(Flatten(), metric=metric, temperature=temperature)
    vectors = network.backbone(images).detach().double().numpy()
    if metric == "cosine":
        vectors = np.stack([unit(row) for row in vectors])
    scale = temperature or (0.1 if metric == "cosine" else 1.0)
    losses, accuracies = [], []
    for episode, (start, middle, stop) in zip(episodes, ((0, 5, 9), (9, 12, 15)), strict=True):
        support, query = vectors[start:middle], vectors[middle:stop]
        sides, rights = [], []
        for label in range(episode.support.shape[1]):
            states, truths = episode.support[:, label].tolist(), episode.query[:, label].tolist()
            means = []
            for state in (1, 0):
                own = [row for row, found in zip(support, states, strict=True) if found == state]
                means.append(sum(own) / len(own) if own else None)
            if means[1] is None:
                continue
            for state in (1, 0):
                terms, right = [], []
                for row, truth in zip(query, truths, strict=True):
                    if truth != state:
                        continue
                    if metric == "cosine":
                        logit = (row @ unit(means[0]) - row @ unit(means[1])) / scale
                    else:
                        logit = (((row - means[1]) ** 2).sum() - ((row - means[0]) ** 2).sum()) / scale
                    chance = 1 / (1 + math.exp(-logit))
                    terms.append(-math.log(chance if state == 1 else 1 - chance))
                    right.append((logit > 0) == (state == 1))
                if terms:
                    sides.append(sum(terms) / len(terms))
                    rights.append(sum(right) / len(right))
        losses.append(sum(sides) / len(sides))
        accuracies.append(sum(rights) / len(rights))
    loss, accuracy = network.loss(images, episodes)
    assert float(loss.detach()) == pytest.approx(sum(losses) / 2, rel=1e-4)
    assert accuracy == pytest.approx(sum(accuracies) / 2)
    assert [tuple(rows.shape) for rows in network(images, episodes)] == [(4, 2), (3, 3)]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_network_scores_as_the_head_does(metric: str) -> None:
    vectors, table, _ = support_set()
    states = torch.tensor(np.where(np.isnan(table), -1, table).astype(np.int8))
    queries = np.random.default_rng(1).normal(size=(4, 5)).astype(np.float32)
    network = MultiLabelPrototypicalNetwork(Flatten(), metric=metric, temperature=1.0)
    ours = network.score(torch.tensor(vectors), states, torch.tensor(queries), n_way=3)
    if metric == "euclidean":
        head = LabelPrototypeClassifier(metric=metric).fit(vectors, table).decision_function(queries)
        assert ours.numpy() == pytest.approx(head, rel=1e-4)
    else:
        head = LabelPrototypeClassifier().fit(vectors, table).decision_function(queries)
        assert ours.numpy() == pytest.approx(head, rel=1e-4, abs=1e-5)


def test_class_positions_are_labels_that_exclude_each_other() -> None:
    rng = torch.Generator().manual_seed(1)
    support, queries = torch.randn(6, 5, generator=rng), torch.randn(4, 5, generator=rng)
    targets = torch.tensor([0, 0, 1, 1, 2, 2])
    network = MultiLabelPrototypicalNetwork(Flatten())
    table = torch.tensor([[int(t == c) for c in range(3)] for t in targets.tolist()])
    one = network.score(support, targets, queries, n_way=3)
    assert torch.equal(one, network.score(support, table, queries, n_way=3))
    # Of two classes, the difference of their log-odds is twice what the plain prototypes say.
    two = network.score(support[:4], targets[:4], queries, n_way=2)
    plain = prototypical_logits(support[:4], targets[:4], queries, n_way=2)
    torch.testing.assert_close(two[:, 0] - two[:, 1], 2 * (plain[:, 0] - plain[:, 1]))


def test_unknown_queries_have_no_weight_and_no_gradient() -> None:
    images, episodes = batch()
    images = images.requires_grad_()
    network = MultiLabelPrototypicalNetwork(Flatten())
    query = episodes[0].query.clone()
    query[3] = -1
    network.loss(images[:9], [MultiLabelTargets(episodes[0].support, query)])[0].backward()
    assert not images.grad[8].any() and images.grad[5].any()


def test_common_and_rare_labels_weigh_the_same() -> None:
    states = torch.tensor([[1, 1], [0, 1], [0, 1], [0, 0]])
    values = torch.tensor([[4.0, 1.0], [1.0, 1.0], [1.0, 4.0], [1.0, 8.0]])
    assert float(balanced_mean(values, states)) == pytest.approx((4 + 1 + 2 + 8) / 4)
    assert float(balanced_mean(values[:, :1], torch.tensor([[1], [-1], [1], [-1]]))) == pytest.approx(2.5)


def test_distances_are_taken_in_full_precision_whatever_the_backbone_computes_in() -> None:
    images, episodes = batch()

    class Far(Flatten):
        """Vectors far from the origin and close together: bfloat16 could not tell them apart."""

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", enabled=False):
                return super().forward(pixels)

    network = MultiLabelPrototypicalNetwork(Far(50.0))
    exact = network(images, episodes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(images, episodes)
    assert all(torch.equal(a, b) for a, b in zip(exact, half, strict=True))


def test_a_configuration_makes_the_network() -> None:
    backbone = Flatten()
    network = MultiLabelPrototypicalNetwork.from_config(backbone, TrainingConfig(metric="cosine", temperature=0.3), 5)
    assert (network.backbone, network.metric, network.temperature) == (backbone, "cosine", 0.3)
    assert network.similarity_head() is None


def test_what_cannot_be_learnt_from_is_refused() -> None:
    images, (first, second) = batch()
    network = MultiLabelPrototypicalNetwork(Flatten())
    with pytest.raises(ValueError, match=r"^The episodes describe 15 images; got 14\.$"):
        network(images[:-1], [first, second])
    alone = MultiLabelTargets(second.support[:, 2:], second.query[:, 2:])
    with pytest.raises(ValueError, match="Episode 1 has no label that a support image is known to lack: draw its"):
        network.loss(images, [first, alone])
    silent = MultiLabelTargets(second.support, torch.full_like(second.query, -1))
    with pytest.raises(ValueError, match="Episode 1 has no query with a known label among those that can be learnt"):
        network.loss(images, [first, silent])
    nobody = MultiLabelTargets(first.support.clamp_max(0), first.query)
    with pytest.raises(ValueError, match=r"Every label needs a support image that shows it; labels \[0, 1\] have none"):
        network.loss(images, [nobody, second])
    with pytest.raises(ValueError, match="metric must be 'cosine' or 'euclidean'; got 'dot'"):
        multilabel_logits(torch.eye(2), torch.eye(2), torch.eye(2), metric="dot")


def test_a_few_steps_on_two_findings_that_co_occur_lower_the_loss() -> None:
    # A bright corner is one finding, a bright edge the other; a third of the images show both, some neither.
    rng = np.random.default_rng(0)
    table = (rng.random((120, 2)) < 0.55).astype(float)
    pixels = rng.normal(0, 1.0, (120, 1, 4, 4)).astype(np.float32)
    pixels[:, 0, 0, 0] += 1.5 * table[:, 0]
    pixels[:, 0, 3, :] += 0.8 * table[:, 1, None]
    sampler = MultiLabelEpisodeSampler(table, 2, 3, 10, classes=["corner", "edge"], k_negative=3, n_episodes=60)
    network = MultiLabelPrototypicalNetwork(Flatten(), temperature=4.0)
    optimiser = torch.optim.Adam(network.parameters(), 0.02)

    def step(i: int) -> tuple[torch.Tensor, float]:
        episode = sampler[i]
        rows = np.concatenate([episode.support, episode.query])
        return network.loss(torch.from_numpy(pixels[rows]), [MultiLabelTargets.from_episode(episode)])

    def held_out() -> tuple[float, float]:
        with torch.no_grad():
            found = [step(i) for i in range(40, 60)]
        return float(np.mean([float(loss) for loss, _ in found])), float(np.mean([right for _, right in found]))

    before = held_out()
    for i in range(40):
        optimiser.zero_grad()
        step(i)[0].backward()
        optimiser.step()
    after = held_out()
    assert after[0] < 0.8 * before[0] and after[1] > before[1] + 0.03
