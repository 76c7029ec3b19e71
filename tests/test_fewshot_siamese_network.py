"""SiameseNetwork: every loss against slow loops over its published formula, and what it is to a trainer."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import fewshot.siamese_losses as siamese_losses
from fewshot.methods import build_network
from fewshot.networks import EpisodeTargets
from fewshot.siamese import SiameseClassifier
from fewshot.siamese_losses import MetricLoss, pair_cross_entropy, weighted_l1_logits
from fewshot.siamese_network import SiameseNetwork, class_maxima
from fewshot.training_config import SIAMESE_LOSSES, TrainingConfig, TrainingError

METRIC_LOSSES = tuple(name for name in SIAMESE_LOSSES if name != "logistic")
N_CLASSES = 7


class Small(nn.Module):
    """A backbone without memory of its batch: two linear layers with a ReLU after each, as convolutions end in."""

    dim = 6

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 6), nn.ReLU())

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layers(images)


class Bare(nn.Module):
    """Images that are vectors already."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def batch() -> tuple[torch.Tensor, list[EpisodeTargets]]:
    first = EpisodeTargets(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 0, 1]), 2, torch.tensor([5, 2]))
    second = EpisodeTargets(torch.tensor([0, 1, 2, 2, 0]), torch.tensor([2, 1, 0]), 3, torch.tensor([2, 0, 6]))
    return torch.randn(15, 1, 4, 4, generator=torch.Generator().manual_seed(0)), [first, second]


def toy(seed: int = 0) -> tuple[torch.Tensor, list[EpisodeTargets]]:
    """Two episodes of four classes, each a pattern under noise; 2 support images and 3 queries per class."""
    random = torch.Generator().manual_seed(seed)
    patterns = torch.randn(N_CLASSES, 1, 4, 4, generator=torch.Generator().manual_seed(99))
    images, episodes = [], []
    for codes in (torch.tensor([0, 1, 2, 3]), torch.tensor([6, 5, 2, 4])):
        support, query = torch.arange(4).repeat_interleave(2), torch.arange(4).repeat_interleave(3)
        for targets in (support, query):
            images.append(patterns[codes[targets]] + 0.7 * torch.randn(len(targets), 1, 4, 4, generator=random))
        episodes.append(EpisodeTargets(support, query, 4, codes))
    return torch.cat(images), episodes


def network_for(loss: str, backbone: nn.Module | None = None, *, mining: bool = True) -> SiameseNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return SiameseNetwork(backbone or Small(), loss=loss, mining=mining, n_classes=N_CLASSES)


def cosine(a: list[float], b: list[float]) -> float:
    dot = sum(x * y for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(x * x for x in a) * sum(y * y for y in b))


def distance(a: list[float], b: list[float]) -> float:
    """Euclidean distance of the two vectors brought to unit length."""
    long_a, long_b = math.sqrt(sum(x * x for x in a)), math.sqrt(sum(y * y for y in b))
    return math.sqrt(sum((x / long_a - y / long_b) ** 2 for x, y in zip(a, b, strict=True)))


def mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def contrastive(rows: list[list[float]], labels: list[int], mining: bool) -> float:
    """Hadsell et al. 2006, equation 4, with a margin of 1, averaged over each kind of pair."""
    near, far = [], []
    for i in range(len(rows)):
        for j in range(len(rows)):
            d = distance(rows[i], rows[j])
            if i != j and labels[i] == labels[j] and (not mining or d > 0.2):
                near.append(d**2 / 2)
            if labels[i] != labels[j] and (not mining or d < 1.0):
                far.append(max(0.0, 1.0 - d) ** 2 / 2)
    return mean(near) + mean(far)


def triplet(rows: list[list[float]], labels: list[int], mining: bool) -> float:
    """Schroff et al. 2015, equation 2, with a margin of 0.2; semi-hard negatives, equation 4."""
    found = []
    for a in range(len(rows)):
        for p in range(len(rows)):
            for n in range(len(rows)):
                if a == p or labels[a] != labels[p] or labels[a] == labels[n]:
                    continue
                gap = distance(rows[a], rows[n]) ** 2 - distance(rows[a], rows[p]) ** 2
                if not mining or 0 < gap <= 0.2:
                    found.append(max(0.0, 0.2 - gap))
    return mean(found)


def supcon(rows: list[list[float]], labels: list[int], mining: bool) -> float:
    """Khosla et al. 2020, equation 2, with a temperature of 0.1, averaged over images with a partner."""
    found = []
    for i in range(len(rows)):
        others = [a for a in range(len(rows)) if a != i]
        total = sum(math.exp(cosine(rows[i], rows[a]) / 0.1) for a in others)
        partners = [p for p in others if labels[p] == labels[i]]
        if partners:
            found.append(-mean([math.log(math.exp(cosine(rows[i], rows[p]) / 0.1) / total) for p in partners]))
    return mean(found)


def multi_similarity(rows: list[list[float]], labels: list[int], mining: bool) -> float:
    """Wang et al. 2019, equations 11 to 13, with alpha 2, beta 50, lambda 0.5 and epsilon 0.1."""
    found = []
    for i in range(len(rows)):
        same = [cosine(rows[i], rows[j]) for j in range(len(rows)) if j != i and labels[j] == labels[i]]
        rest = [cosine(rows[i], rows[j]) for j in range(len(rows)) if labels[j] != labels[i]]
        if mining:
            hard_same = [s for s in same if s < max(rest) + 0.1]
            rest = [s for s in rest if same and s > min(same) - 0.1]
            same = hard_same
        pull = math.log(1 + sum(math.exp(-2 * (s - 0.5)) for s in same)) / 2
        push = math.log(1 + sum(math.exp(50 * (s - 0.5)) for s in rest)) / 50
        found.append(pull + push)
    return mean(found)


def proxy_anchor(rows: list[list[float]], labels: list[int], proxies: list[list[float]]) -> float:
    """Kim et al. 2020, equation 4, with alpha 32 and delta 0.1."""
    pull, push = [], []
    for c, proxy in enumerate(proxies):
        own = [cosine(row, proxy) for row, label in zip(rows, labels, strict=True) if label == c]
        rest = [cosine(row, proxy) for row, label in zip(rows, labels, strict=True) if label != c]
        if own:
            pull.append(math.log(1 + sum(math.exp(-32 * (s - 0.1)) for s in own)))
        push.append(math.log(1 + sum(math.exp(32 * (s + 0.1)) for s in rest)))
    return mean(pull) + mean(push)


def logistic(support: list[list[float]], queries: list[list[float]], same: list[list[bool]]) -> float:
    """Koch et al. 2015, the cross-entropy of section 3.2, with the weights a fresh network has."""
    kinds: dict[bool, list[float]] = {True: [], False: []}
    for q, query in enumerate(queries):
        for s, row in enumerate(support):
            long_q, long_s = math.sqrt(sum(x * x for x in query)), math.sqrt(sum(x * x for x in row))
            odds = 6.0
            for x, y in zip(query, row, strict=True):
                odds += -15 / math.sqrt(len(query)) * abs(x / long_q - y / long_s)
            p = 1 / (1 + math.exp(-odds))
            kinds[same[q][s]].append(-math.log(p if same[q][s] else 1 - p))
    return (mean(kinds[True]) + mean(kinds[False])) / 2


@pytest.mark.parametrize("mining", [False, True])
@pytest.mark.parametrize("name", SIAMESE_LOSSES)
@pytest.mark.parametrize("spread", [0.3, 1.0])
def test_every_loss_against_its_published_formula(name: str, mining: bool, spread: float) -> None:
    random = torch.Generator().manual_seed(4)
    _, episodes = batch()
    vectors = (torch.rand(15, 5, generator=random) ** 2 + 0.1) * torch.rand(15, 1, generator=random) * 9
    toward = torch.eye(5)[[0, 1, 1, 1, 0, 0, 1, 0, 1, 2, 2, 0, 2, 1, 0]]  # classes that hold together somewhat
    vectors = vectors * spread + 3 * toward
    network = network_for(name, Bare(5), mining=mining)
    expected = []
    for start, episode in zip((0, 7), episodes, strict=True):
        targets = torch.cat([episode.support, episode.query]).tolist()
        rows = vectors[start : start + len(targets)].double().tolist()
        cut = len(episode.support)
        if name == "logistic":
            same = [[q == s for s in targets[:cut]] for q in targets[cut:]]
            expected.append(logistic(rows[:cut], rows[cut:], same))
        elif name == "proxy-anchor":
            proxies = network.metric_loss.criterion.proxies.detach().double().tolist()
            assert len(proxies) == N_CLASSES
            expected.append(proxy_anchor(rows, [episode.codes.tolist()[t] for t in targets], proxies))
        else:
            slow = {
                "contrastive": contrastive,
                "triplet": triplet,
                "supcon": supcon,
                "multi-similarity": multi_similarity,
            }[name]
            expected.append(slow(rows, targets, mining))
    loss, _ = network.loss(vectors, episodes)
    assert mean(expected) > 1e-3
    assert float(loss.detach()) == pytest.approx(mean(expected), rel=1e-4)


def test_mining_changes_the_losses_that_have_a_miner_and_no_other() -> None:
    images, episodes = toy()
    changed = set()
    for name in SIAMESE_LOSSES:
        mined, plain = (float(network_for(name, mining=m).loss(images, episodes)[0].detach()) for m in (True, False))
        if mined != plain:
            changed.add(name)
    assert changed == {"contrastive", "triplet", "multi-similarity"}


@pytest.mark.parametrize("name", SIAMESE_LOSSES)
def test_accuracy_is_that_of_the_nearest_support_image(name: str) -> None:
    images, episodes = batch()
    network = network_for(name)
    with torch.no_grad():
        vectors = network.backbone(images).double().tolist()
    right = 0
    for start, episode in zip((0, 7), episodes, strict=True):
        cut = start + len(episode.support)
        for row, target in zip(vectors[cut : cut + len(episode.query)], episode.query.tolist(), strict=True):
            likeness = []
            for other in vectors[start:cut]:
                if name == "logistic":
                    long, long_other = math.hypot(*row), math.hypot(*other)
                    likeness.append(-sum(abs(x / long - y / long_other) for x, y in zip(row, other, strict=True)))
                else:
                    likeness.append(cosine(row, other))
            right += episode.support.tolist()[likeness.index(max(likeness))] == target
    assert network.loss(images, episodes)[1] == right / 7


@pytest.mark.parametrize("mining", [False, True])
@pytest.mark.parametrize("name", SIAMESE_LOSSES)
def test_the_gradient_reaches_every_parameter(name: str, mining: bool) -> None:
    images, episodes = toy()
    network = network_for(name, mining=mining)
    network.loss(images, episodes)[0].backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all() and parameter.grad.abs().max() > 1e-7, key


def test_parameters_beside_the_backbone_are_the_networks_own() -> None:
    shapes = {}
    for name in SIAMESE_LOSSES:
        network = network_for(name)
        shapes[name] = {k: tuple(v.shape) for k, v in network.named_parameters() if not k.startswith("backbone.")}
    assert shapes["logistic"] == {"weight": (6,), "bias": (1,)}
    assert shapes["proxy-anchor"] == {"metric_loss.criterion.proxies": (N_CLASSES, 6)}
    assert all(not shapes[name] for name in METRIC_LOSSES if name != "proxy-anchor")


@pytest.mark.parametrize("mining", [False, True])
@pytest.mark.parametrize("name", SIAMESE_LOSSES)
def test_a_few_steps_of_training_lower_the_loss(name: str, mining: bool) -> None:
    network = network_for(name, mining=mining)
    judge = network_for(name, network.backbone, mining=False)
    for own, other in zip(network.parameters(), judge.parameters(), strict=True):
        other.data = own.data  # the same weights, all pairs
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    unseen = toy(1000)
    with torch.no_grad():
        before, accuracy_before = judge.loss(*unseen)
    for step in range(40):
        optimizer.zero_grad()
        network.loss(*toy(step))[0].backward()
        optimizer.step()
    with torch.no_grad():
        after, accuracy_after = judge.loss(*unseen)
    assert float(after) < 0.9 * float(before)
    assert accuracy_after > accuracy_before
    assert accuracy_after > 0.75


@pytest.mark.parametrize("name", ["contrastive", "triplet", "multi-similarity"])
def test_where_mining_finds_nothing_the_loss_is_zero_and_still_differentiable(name: str) -> None:
    targets = EpisodeTargets(torch.tensor([0, 1]), torch.tensor([1, 0, 0]), 2)
    images = torch.eye(2)[[0, 1, 1, 0, 0]].requires_grad_()  # classes are points, at right angles to each other
    loss, accuracy = network_for(name, Bare(2)).loss(images, [targets])
    assert (float(loss.detach()), accuracy) == (0.0, 1.0)
    loss.backward()
    assert torch.equal(images.grad, torch.zeros(5, 2))


@pytest.mark.parametrize("name", ["triplet", "supcon"])
def test_a_batch_without_a_pair_of_one_class_has_no_loss(name: str) -> None:
    vectors = torch.eye(3).requires_grad_()
    loss = MetricLoss(name, dim=3, mining=False)(vectors, torch.arange(3))
    loss.backward()
    assert float(loss.detach()) == 0 and torch.equal(vectors.grad, torch.zeros(3, 3))


@pytest.mark.parametrize("name", SIAMESE_LOSSES)
def test_distances_are_taken_in_full_precision_whatever_the_backbone_computes_in(name: str) -> None:
    images, episodes = toy()

    class Far(Small):
        """Vectors far from the origin and close together: bfloat16 could not tell them apart."""

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", enabled=False):
                return super().forward(pixels) + 5

    network = network_for(name, Far())
    exact = network.loss(images, episodes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network.loss(images, episodes)
        network_for(name).loss(images, episodes)[0].backward()  # and with a backbone of that precision
    assert half[0].dtype == torch.float32
    assert torch.equal(exact[0], half[0]) and exact[1] == half[1]


def test_the_most_similar_image_of_each_class() -> None:
    similarities = torch.tensor([[1.0, 5.0, 2.0, -4.0], [0.0, -1.0, -3.0, -2.0]])
    maxima = class_maxima(similarities, torch.tensor([2, 0, 2, 1]), 3)
    assert maxima.tolist() == [[5.0, -4.0, 2.0], [-1.0, -2.0, 0.0]]


def test_pairs_of_either_kind_weigh_one_half() -> None:
    logits = torch.tensor([[2.0, -1.0, 0.5]])
    plus = math.log(1 + math.exp(-2))
    minus = (math.log(1 + math.exp(-1)) + math.log(1 + math.exp(0.5))) / 2
    one = pair_cross_entropy(logits, torch.tensor([[True, False, False]]))
    assert float(one) == pytest.approx((plus + minus) / 2)
    every = pair_cross_entropy(logits[:, :1], torch.tensor([[True]]))
    assert float(every) == pytest.approx(plus)


def test_blocks_of_pairs_change_neither_loss_nor_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    images, episodes = toy()
    results = []
    for elements in (16_000_000, 3 * 8 * 6):  # all 12 queries at once, and 3 at a time
        monkeypatch.setattr(siamese_losses, "PAIR_ELEMENTS", elements)
        network = network_for("logistic")
        loss, _ = network.loss(images, episodes)
        loss.backward()
        results.append([loss.detach(), *(parameter.grad for parameter in network.parameters())])
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(*results, strict=True))
    with torch.inference_mode():
        assert weighted_l1_logits(torch.rand(7, 6), torch.rand(8, 6), torch.rand(6), torch.zeros(1)).shape == (7, 8)


def trained(name: str) -> SiameseNetwork:
    network = network_for(name)
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for step in range(5):
        optimizer.zero_grad()
        network.loss(*toy(step))[0].backward()
        optimizer.step()
    return network


@pytest.mark.parametrize("name", SIAMESE_LOSSES)
def test_network_and_classifier_agree(name: str) -> None:
    network = trained(name)
    images, episodes = toy(77)
    with torch.inference_mode():
        vectors = network.backbone(images)[:20]
        scores = network.score(vectors[:8], episodes[0].support, vectors[8:], n_way=4)
    assert scores.shape == (12, 4)
    expected = (torch.sigmoid(scores) if name == "logistic" else scores).numpy()
    clf = SiameseClassifier(similarity=network.similarity_head())
    clf.fit(vectors[:8].numpy(), episodes[0].support.tolist())
    queries = vectors[8:].numpy()
    assert np.allclose(clf.scores(queries), expected, atol=1e-5)
    assert clf.predict(queries).tolist() == scores.argmax(1).tolist()
    assert np.allclose([d.score for d in clf.decide(queries)], expected.max(1), atol=1e-5)


def test_the_learnt_comparison_holds_what_was_learnt() -> None:
    network = trained("logistic")
    head = network.similarity_head()
    assert head.name == "weighted-l1" and json.loads(json.dumps(dict(head.config))) == {"unit_length": True}
    assert {key: (value.dtype, value.shape) for key, value in head.tensors.items()} == {
        "weight": (np.float32, (6,)),
        "bias": (np.float32, (1,)),
    }
    assert np.array_equal(head.tensors["weight"], network.weight.detach().numpy())
    network.weight.data.zero_()
    assert (head.tensors["weight"] != 0).any()  # a copy: going on with training cannot change it
    assert all(network_for(name).similarity_head() is None for name in METRIC_LOSSES)


@pytest.mark.parametrize("name", SIAMESE_LOSSES)
def test_from_a_configuration(name: str) -> None:
    config = TrainingConfig(method="siamese", loss=name, mining=False, temperature=0.3)
    network = build_network(Small(), config, 4)
    assert isinstance(network, SiameseNetwork) and network.loss_name == name
    if name == "logistic":
        assert network.metric_loss is None
    else:
        assert network.metric_loss.miner is None
    if name == "proxy-anchor":
        assert network.metric_loss.criterion.proxies.shape == (4, 6)
    if name == "supcon":
        assert network.metric_loss.criterion.temperature == 0.3


def test_errors() -> None:
    images, episodes = batch()
    with pytest.raises(TrainingError, match=r"^loss must be one of logistic, contrastive, .*; got 'hinge'\.$"):
        SiameseNetwork(Small(), loss="hinge")
    with pytest.raises(TrainingError, match=r"^There is no metric loss 'logistic'\.$"):
        MetricLoss("logistic", dim=3)
    with pytest.raises(TrainingError, match=r"^The loss 'proxy-anchor' keeps a proxy per class: n_classes must be"):
        SiameseNetwork(Small(), loss="proxy-anchor")
    bare = [EpisodeTargets(e.support, e.query, e.n_way) for e in episodes]
    with pytest.raises(ValueError, match=r"^The loss 'proxy-anchor' keeps a proxy per class of the source: episodes"):
        network_for("proxy-anchor").loss(images, bare)
    with pytest.raises(ValueError, match=r"^The episodes describe 15 images; got 14\.$"):
        network_for("supcon").loss(images[:-1], episodes)
