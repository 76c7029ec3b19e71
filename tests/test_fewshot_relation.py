"""RelationNetwork and RelationClassifier against slow loops, and against each other."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import fewshot.relation_head
from embeddings import SimilarityHead
from episodes import Decision
from fewshot.methods import build_network
from fewshot.networks import EpisodeTargets
from fewshot.relation import RelationModule, RelationNetwork
from fewshot.relation_head import RelationClassifier
from fewshot.training_config import TrainingConfig, TrainingError

#: Feature maps of every kind: pooled vector, too small to be halved twice, odd, long, and halved twice.
SHAPES = [(6, 1, 1), (3, 2, 2), (2, 5, 4), (2, 3, 1), (1, 1, 3), (2, 7, 6)]


class Maps(nn.Module):
    """A backbone without memory of its batch: one linear layer over the pixels, its result a feature map."""

    def __init__(self, shape: tuple[int, int, int] | None, dim: int = 6) -> None:
        super().__init__()
        self.map_shape = shape
        self.dim = dim if shape is None else math.prod(shape)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.layer = nn.Linear(16, self.dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.flatten(1))


def trained(shape: tuple[int, int, int], seed: int = 0) -> RelationNetwork:
    """A network whose weights and running means are all different from where they start."""
    network = RelationNetwork(Maps(shape))
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in network.relation.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.rand(tensor.shape, generator=generator)
            tensor.copy_(noise + 0.5 if name.endswith(("_var", "norm.weight")) else noise - 0.5)
    return network.eval()


def batch() -> tuple[torch.Tensor, list[EpisodeTargets]]:
    """Two episodes of unequal ways, shots and queries."""
    first = EpisodeTargets(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 0, 1]), 2)
    second = EpisodeTargets(torch.tensor([0, 1, 2, 2, 0]), torch.tensor([2, 1, 0]), 3)
    return torch.randn(15, 1, 4, 4, generator=torch.Generator().manual_seed(0)), [first, second]


def task(d: int, n: int = 18, seed: int = 0) -> tuple[np.ndarray, list[str], list[str], list[str]]:
    """Support of three classes of unequal size, with some patients of several images."""
    rng = np.random.default_rng(seed)
    labels = [f"class {min(int(rng.integers(4)), 2)}" for _ in range(n - 3)] + ["class 0", "class 1", "class 2"]
    groups = [f"p{rng.integers(7)}" for _ in range(n)]
    return rng.normal(size=(n, d)).astype(np.float32), labels, [f"image {i:03}" for i in range(n)], groups


def slow_block(maps: np.ndarray, tensors: dict[str, np.ndarray], block: str) -> np.ndarray:
    """One block of g in evaluation mode on one map (channels, height, width), output by output."""
    weight = tensors[f"{block}.weight"]
    out, _, kernel, _ = weight.shape
    _, height, width = maps.shape
    padded = np.zeros((maps.shape[0], height + kernel - 1, width + kernel - 1))
    padded[:, kernel // 2 : kernel // 2 + height, kernel // 2 : kernel // 2 + width] = maps
    result = np.zeros((out, height, width))
    for c in range(out):
        mean, variance = tensors[f"{block}_norm.running_mean"][c], tensors[f"{block}_norm.running_var"][c]
        for y in range(height):
            for x in range(width):
                value = (padded[:, y : y + kernel, x : x + kernel] * weight[c]).sum()
                value = (value - mean) / math.sqrt(variance + 1e-5)
                result[c, y, x] = max(
                    0.0, value * tensors[f"{block}_norm.weight"][c] + tensors[f"{block}_norm.bias"][c]
                )
    if min(height, width) < 2:
        return result
    pooled = np.zeros((out, height // 2, width // 2))
    for y in range(height // 2):
        for x in range(width // 2):
            pooled[:, y, x] = result[:, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2].max(axis=(1, 2))
    return pooled


def slow_relation(head: SimilarityHead, mean: np.ndarray, query: np.ndarray) -> float:
    """The paper's relation score of one class and one query, their maps laid on top of each other."""
    tensors = {name: tensor.astype(np.float64) for name, tensor in head.tensors.items()}
    shape = tuple(head.config["map_shape"])
    maps = np.concatenate([mean.reshape(shape), query.reshape(shape)])  # (2 * channels, height, width)
    flat = slow_block(slow_block(maps, tensors, "first"), tensors, "second").ravel()
    hidden = np.maximum(tensors["hidden.weight"] @ flat + tensors["hidden.bias"], 0)
    return float(1 / (1 + math.exp(-(tensors["output.weight"][0] @ hidden + tensors["output.bias"][0]))))


def slow_means(vectors: np.ndarray, labels: list[str], groups: list[str] | None = None) -> dict[str, np.ndarray]:
    """Mean of each class over the means of its patients, or of its images."""
    owners = groups or [str(i) for i in range(len(labels))]
    means = {}
    for label in sorted(set(labels)):
        patients = sorted({o for o, own in zip(owners, labels, strict=True) if own == label})
        parts = [
            np.mean([v for v, o, own in zip(vectors, owners, labels, strict=True) if (o, own) == (p, label)], axis=0)
            for p in patients
        ]
        means[label] = np.mean(parts, axis=0)
    return means


def bits(decisions: list[Decision]) -> list[str]:
    """Every number of every decision, to the bit."""
    return [
        repr((d.label, d.runner_up, d.score and d.score.hex(), d.margin and d.margin.hex(), d.evidence))
        + repr(d.counter_evidence)
        for d in decisions
    ]


def head_of(network: RelationNetwork, **changes: object) -> SimilarityHead:
    """The network's learnt comparison with some tensors changed, or left out where they are None."""
    head = network.similarity_head()
    tensors = {name: value for name, value in {**head.tensors, **changes}.items() if value is not None}
    return SimilarityHead(head.name, head.config, tensors)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("by_patient", [False, True])
def test_the_classifier_against_a_slow_loop(shape: tuple[int, int, int], by_patient: bool) -> None:
    vectors, labels, ids, groups = task(math.prod(shape))
    queries = np.random.default_rng(9).normal(size=(3, math.prod(shape))).astype(np.float32)
    head = trained(shape).similarity_head()
    clf = RelationClassifier(similarity=head)
    assert clf.fit(vectors, labels, ids=ids, groups=groups if by_patient else None) is clf
    scores, predicted, decided = clf.scores(queries), clf.predict(queries), clf.decide(queries)
    means = slow_means(vectors.astype(float), labels, groups if by_patient else None)
    for i, query in enumerate(queries):
        expected = {label: slow_relation(head, mean, query.astype(float)) for label, mean in means.items()}
        assert scores[i].tolist() == pytest.approx([expected[label] for label in clf.classes_], abs=1e-12)
        ranked = sorted(expected, key=lambda label: -expected[label])
        assert predicted[i] == decided[i].label == ranked[0]
        assert decided[i].runner_up == ranked[1]
        assert decided[i].score == pytest.approx(expected[ranked[0]])
        assert decided[i].margin == pytest.approx(expected[ranked[0]] - expected[ranked[1]])
        assert decided[i].probability is None and decided[i].reason is None


@pytest.mark.parametrize("shape", SHAPES)
def test_network_and_classifier_agree(shape: tuple[int, int, int]) -> None:
    vectors, labels, ids, _ = task(math.prod(shape), seed=4)
    queries = np.random.default_rng(8).normal(size=(20, math.prod(shape))).astype(np.float32)
    network = trained(shape)
    clf = RelationClassifier(similarity=network.similarity_head()).fit(vectors, labels, ids=ids)
    targets = torch.tensor([clf.classes_.tolist().index(label) for label in labels])
    with torch.no_grad():
        expected = network.score(torch.from_numpy(vectors), targets, torch.from_numpy(queries), n_way=3).numpy()
    assert np.ptp(expected) > 0.1
    assert np.abs(clf.scores(queries) - expected).max() < 1e-5


@pytest.mark.parametrize("shape", [(5, 1, 1), (2, 5, 4)])
def test_loss_and_accuracy_of_unequal_episodes(shape: tuple[int, int, int]) -> None:
    images, episodes = batch()
    network = RelationNetwork(Maps(shape))
    with torch.no_grad():
        network.relation.output.weight.normal_(generator=torch.Generator().manual_seed(4))
    vectors = network.backbone(images).detach()
    cuts = [(vectors[0:3], vectors[3:7]), (vectors[7:12], vectors[12:15])]
    g, losses, right = network.relation, [], 0
    for (support, query), episode in zip(cuts, episodes, strict=True):
        pairs = []  # the paper's way: every query's map on top of every class's
        for row in query:
            for k in range(episode.n_way):
                mean = support[episode.support == k].mean(0)
                pairs.append(torch.cat([mean.view(shape), row.view(shape)]))
        maps = torch.stack(pairs)
        for weight in (g.first.weight, g.second.weight):
            maps = functional.conv2d(maps, weight, padding=weight.shape[2] // 2)
            centred = maps - maps.mean((0, 2, 3), keepdim=True)
            maps = functional.relu(centred / (centred.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt())
            maps = functional.max_pool2d(maps, 2) if min(maps.shape[2:]) >= 2 else maps
        scores = torch.sigmoid(g.output(functional.relu(g.hidden(maps.flatten(1))))).view(len(query), episode.n_way)
        total = 0.0
        for row, target in zip(scores.tolist(), episode.query.tolist(), strict=True):
            total += sum((value - (k == target)) ** 2 for k, value in enumerate(row))
            right += max(range(episode.n_way), key=row.__getitem__) == target
        losses.append(total / scores.numel())
    loss, accuracy = network.loss(images, episodes)
    assert float(loss.detach()) == pytest.approx(sum(losses) / 2, rel=1e-4)
    assert accuracy == right / 7
    assert [tuple(rows.shape) for rows in network(images, episodes)] == [(4, 2), (3, 3)]


def test_a_pooled_vector_has_a_fully_connected_relation_module() -> None:
    network = RelationNetwork(Maps(None, dim=6))
    assert network.similarity_head().config == {"map_shape": [6, 1, 1]}
    assert tuple(network.relation.first.weight.shape) == (64, 12, 1, 1)
    assert tuple(network.relation.hidden.weight.shape) == (8, 64)
    flat = RelationNetwork(Maps((64, 5, 5))).relation
    assert (tuple(flat.first.weight.shape), tuple(flat.hidden.weight.shape)) == ((64, 128, 3, 3), (8, 64))

    class Plain(nn.Module):
        """A user's own backbone, which knows nothing of maps."""

        dim = 16

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images.flatten(1)

    assert RelationNetwork(Plain()).relation.map_shape == (16, 1, 1)


def test_the_start_is_that_of_the_authors_code() -> None:
    torch.manual_seed(0)
    g = RelationModule((64, 5, 5))
    assert float(g.first.weight.detach().std()) == pytest.approx(math.sqrt(2 / (9 * 64)), rel=0.02)
    assert float(g.hidden.weight.detach().std()) == pytest.approx(0.01, rel=0.1)
    assert g.hidden.bias.tolist() == [1.0] * 8 and g.output.bias.tolist() == [1.0]
    scores = g(torch.randn(3, 1600), torch.randn(4, 1600))
    assert scores.flatten().tolist() == pytest.approx([1 / (1 + math.exp(-1))] * 12, abs=0.05)


@pytest.mark.parametrize("shape", [(6, 1, 1), (2, 5, 4)])
def test_the_gradient_reaches_every_weight(shape: tuple[int, int, int]) -> None:
    images, episodes = batch()
    network = RelationNetwork(Maps(shape))
    network.loss(images, episodes)[0].backward()
    for name, parameter in network.named_parameters():
        if name == "backbone.layer.bias" and shape[1:] == (1, 1):
            continue  # it moves every pooled vector alike, which the batch normalisation takes back
        assert parameter.grad is not None and parameter.grad.abs().max() > 1e-9, name


@pytest.mark.parametrize("shape", [(6, 1, 1), (4, 4, 4)])
def test_a_few_steps_lower_the_loss(shape: tuple[int, int, int]) -> None:
    torch.manual_seed(5)
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(3, 1, 4, 4, generator=generator)
    classes = torch.tensor([0, 0, 1, 2, 0, 1, 2, 1, 2])
    episode = EpisodeTargets(classes[:4], classes[4:], 3)
    images = centres[classes] + 0.3 * torch.randn(9, 1, 4, 4, generator=generator)
    network = RelationNetwork(Maps(shape))
    optimizer = torch.optim.AdamW(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(80):
        loss, accuracy = network.loss(images, [episode])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    # A module that tells nothing apart can only say 1/3 to everything: 2/9.
    assert losses[0] > 2 / 9 and losses[-1] < 0.05 and accuracy == 1.0


def test_scores_are_those_of_evaluation_mode_whatever_the_mode() -> None:
    network = trained((2, 5, 4))
    support, queries = torch.randn(4, 40), torch.randn(3, 40)
    targets = torch.tensor([0, 1, 1, 2])
    expected = network.score(support, targets, queries, n_way=3)
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert torch.equal(network.score(support, targets, queries, n_way=3), expected)
    assert network.relation.training and network.relation.first_norm.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    alone = network.score(support, targets, queries[1:2], n_way=3)
    assert torch.allclose(alone, expected[1:2], atol=1e-6)


def test_relations_are_computed_in_full_precision_whatever_the_backbone_computes_in() -> None:
    images, episodes = batch()

    class Exact(Maps):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", enabled=False):
                return super().forward(pixels)

    network = RelationNetwork(Exact((2, 5, 4)))
    exact = network(images, episodes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = network(images, episodes)
    assert all(torch.equal(a, b) for a, b in zip(rows, exact, strict=True))
    assert rows[0].dtype == torch.float32


def test_the_order_of_the_support_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(2)
    support, queries = torch.randn(9, 40, generator=generator), torch.randn(4, 40, generator=generator)
    targets, order = torch.tensor([0, 1, 2, 2, 1, 0, 0, 0, 1]), torch.randperm(9, generator=generator)
    network = trained((2, 5, 4))
    scores = network.score(support, targets, queries, n_way=3)
    assert torch.allclose(network.score(support[order], targets[order], queries, n_way=3), scores, atol=1e-6)


def test_more_shots_alike_change_nothing() -> None:
    network = trained((2, 5, 4))
    rows, queries = torch.randn(2, 40), torch.randn(3, 40)
    once = network.score(rows, torch.tensor([0, 1]), queries, n_way=2)
    again = network.score(rows[[0, 1, 1, 1]], torch.tensor([0, 1, 1, 1]), queries, n_way=2)
    assert torch.allclose(once, again, atol=1e-6)


def test_the_network_is_built_by_its_name_and_its_head_is_a_copy() -> None:
    network = build_network(Maps((2, 5, 4)), TrainingConfig(method="relation"), 5)
    assert isinstance(network, RelationNetwork)
    network = network.to(memory_format=torch.channels_last)
    head = network.similarity_head()
    assert (head.name, head.config) == ("relation", {"map_shape": [2, 5, 4]})
    assert {tensor.dtype for tensor in head.tensors.values()} == {np.dtype(np.float32)}
    assert all(tensor.flags.c_contiguous for tensor in head.tensors.values())
    kept = head.tensors["hidden.bias"].copy()
    with torch.no_grad():
        network.relation.hidden.bias.add_(1)
    assert np.array_equal(head.tensors["hidden.bias"], kept)


def test_a_backbone_that_contradicts_itself() -> None:
    backbone = Maps((2, 5, 4))
    backbone.dim = 41
    message = r"^The backbone's map_shape must have as many numbers as its vectors; got \(2, 5, 4\) and dim = 41\.$"
    with pytest.raises(TrainingError, match=message):
        build_network(backbone, TrainingConfig(method="relation"), 5)


def test_the_episodes_must_account_for_every_image() -> None:
    images, episodes = batch()
    with pytest.raises(ValueError, match=r"^The episodes describe 15 images; got 14\.$"):
        RelationNetwork(Maps(None)).loss(images[:14], episodes)


@given(seed=st.integers(0, 10_000), shape=st.sampled_from([(6, 1, 1), (3, 2, 2), (2, 5, 4)]))
@settings(max_examples=20, deadline=None)
def test_order_of_registration_and_company_change_no_bit(seed: int, shape: tuple[int, int, int]) -> None:
    vectors, labels, ids, groups = task(math.prod(shape), seed=seed)
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(7, math.prod(shape))).astype(np.float32)
    head = trained(shape).similarity_head()
    clf = RelationClassifier(similarity=head).fit(vectors, labels, ids=ids, groups=groups)
    order = rng.permutation(len(ids))
    other = RelationClassifier(similarity=head).fit(
        vectors[order], [labels[i] for i in order], ids=[ids[i] for i in order], groups=[groups[i] for i in order]
    )
    together = clf.decide(queries)
    assert bits(other.decide(queries)) == bits(together)
    assert bits([clf.decide(row[None])[0] for row in queries]) == bits(together)
    assert bits(clf.decide(np.asfortranarray(queries)[::-1])[::-1]) == bits(together)


def test_removing_equals_never_having_had() -> None:
    vectors, labels, ids, groups = task(40, n=30)
    queries = np.random.default_rng(3).normal(size=(5, 40)).astype(np.float32)
    head = trained((2, 5, 4)).similarity_head()
    keep = [i for i, group in enumerate(groups) if group != "p3"]
    kept = (vectors[keep], [labels[i] for i in keep])
    named = {"ids": [ids[i] for i in keep], "groups": [groups[i] for i in keep]}
    never = RelationClassifier(similarity=head).fit(*kept, **named)
    clf = RelationClassifier(similarity=head).fit(vectors, labels, ids=ids, groups=groups)
    before = bits(clf.decide(queries))
    clf.fit(*kept, **named)
    assert bits(clf.decide(queries)) == bits(never.decide(queries)) != before


def test_blocks_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    vectors, labels, ids, _ = task(40)
    queries = np.random.default_rng(3).normal(size=(11, 40)).astype(np.float32)
    head = trained((2, 5, 4)).similarity_head()
    clf = RelationClassifier(similarity=head).fit(vectors, labels, ids=ids)
    whole = clf.scores(queries)
    rows: Counter[int] = Counter()
    convolved: Callable[..., np.ndarray] = fewshot.relation_head._convolved

    def counted(maps: np.ndarray, weights: np.ndarray) -> np.ndarray:
        rows[len(maps)] += 1
        return convolved(maps, weights)

    monkeypatch.setattr(fewshot.relation_head, "_convolved", counted)
    monkeypatch.setattr(fewshot.relation_head, "CHUNK_ELEMENTS", 4 * 20 * 9 * 64)
    assert np.array_equal(clf.scores(queries), whole)
    assert max(rows) == 4


def test_evidence_is_the_nearest_images_by_cosine() -> None:
    vectors, labels, ids, _ = task(6)
    clf = RelationClassifier(similarity=trained((6, 1, 1)).similarity_head(), n_evidence=3).fit(
        vectors, labels, ids=ids
    )
    query = np.random.default_rng(1).normal(size=(1, 6)).astype(np.float32)
    decision = clf.decide(query)[0]
    for found, label in ((decision.evidence, decision.label), (decision.counter_evidence, decision.runner_up)):
        cosines = {
            name: float(row @ query[0] / np.linalg.norm(row) / np.linalg.norm(query[0]))
            for name, row, own in zip(ids, vectors, labels, strict=True)
            if own == label
        }
        assert [n.id for n in found] == sorted(cosines, key=lambda name: -cosines[name])[:3]
        assert [n.similarity for n in found] == pytest.approx(sorted(cosines.values(), reverse=True)[:3], abs=1e-6)
        assert {n.label for n in found} == {label}


def test_nothing_is_decided_about_a_broken_query_but_a_zero_one_has_relations() -> None:
    vectors, labels, ids, _ = task(6)
    clf = RelationClassifier(similarity=trained((6, 1, 1)).similarity_head()).fit(vectors, labels, ids=ids)
    queries = np.ones((3, 6), dtype=np.float32)
    queries[1, 2], queries[2] = np.nan, 0
    decisions = clf.decide(queries)
    assert clf.predict(queries).tolist() == [d.label for d in decisions]
    assert (decisions[1].label, decisions[1].score, decisions[1].evidence) == (None, None, ())
    assert decisions[1].reason == "The query vector holds NaN or infinity: the image could not be embedded."
    assert np.isnan(clf.scores(queries)[1]).all()
    assert decisions[2].label is not None and {n.similarity for n in decisions[2].evidence} == {0.0}
    assert clf.decide(np.empty((0, 6))) == [] and clf.predict(np.empty((0, 6))).shape == (0,)


def test_a_single_class_has_no_runner_up_and_far_scores_overflow_nothing() -> None:
    head = head_of(trained((6, 1, 1)), **{"output.bias": np.array([-5000.0], dtype=np.float32)})
    decision = RelationClassifier(similarity=head).fit(np.ones((1, 6)), ["only"]).decide(np.ones((1, 6)))[0]
    assert (decision.label, decision.score, decision.margin, decision.runner_up) == ("only", 0.0, None, None)


NEEDS = (
    r"^RelationClassifier needs the relation module that was trained with the encoder; train one with "
    r'method="relation" and pass similarity=encoder\.similarity'
)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (None, NEEDS + r"\.$"),
        (SimilarityHead("weighted-l1"), NEEDS + r"; this encoder's learnt comparison is 'weighted-l1'\.$"),
        (SimilarityHead("relation"), r"^The relation module has no 'map_shape': was its checkpoint edited\?$"),
        (
            SimilarityHead("relation", {"map_shape": [6, 1]}),
            r"^The relation module's parts do not fit together \(.*\): was its checkpoint edited\?$",
        ),
    ],
)
def test_a_missing_or_foreign_learnt_comparison(head: SimilarityHead | None, message: str) -> None:
    clf = RelationClassifier(similarity=head)
    with pytest.raises(ValueError, match=message):
        clf.fit(np.ones((1, 6)), ["a"])


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("hidden.bias", None, r"^The relation module has no 'hidden\.bias': was"),
        (
            "hidden.bias",
            np.ones((2, 2)),
            r"fit together \(hidden\.bias must have 1 axes and hold finite numbers\): was",
        ),
        ("hidden.bias", np.full(8, np.nan), r"fit together \(hidden\.bias must have 1 axes and hold finite numbers\)"),
        ("hidden.bias", np.ones(7), r"do not fit together \(.*\): was its checkpoint edited\?$"),
        ("first_norm.running_var", np.full(64, -1.0), r"\(first_norm\.running_var must not be negative\)"),
        ("first.weight", np.ones((64, 11, 1, 1)), r"\(first\.weight is not made for two maps of 6 channels\)"),
        ("output.weight", np.ones((2, 8)), r"\(output\.weight must make one number\)"),
        ("second.weight", np.ones((64, 63, 1, 1)), r"do not fit together \(.*\): was its checkpoint edited\?$"),
    ],
)
def test_a_damaged_relation_module(name: str, value: np.ndarray | None, message: str) -> None:
    clf = RelationClassifier(similarity=head_of(trained((6, 1, 1)), **{name: value}))
    with pytest.raises(ValueError, match=message):
        clf.fit(np.ones((1, 6)), ["a"])


def test_errors_of_fit_and_of_asking() -> None:
    head = trained((6, 1, 1)).similarity_head()
    with pytest.raises(ValueError, match=r"^This RelationClassifier has no support yet: call fit first\.$"):
        RelationClassifier(similarity=head).predict(np.ones((1, 6)))
    message = (
        r"^The relation module compares vectors of 6 dimensions, the comparison set has 5: "
        r"were both made by the same encoder\?$"
    )
    with pytest.raises(ValueError, match=message):
        RelationClassifier(similarity=head).fit(np.ones((1, 5)), ["a"])
    with pytest.raises(ValueError, match=r"^n_evidence must be a whole number of at least 0; got -1\.$"):
        RelationClassifier(similarity=head, n_evidence=-1).fit(np.ones((1, 6)), ["a"])
    clf = RelationClassifier(similarity=head).fit(np.ones((1, 6)), ["a"])
    for ask in (clf.predict, clf.decide, clf.scores):
        with pytest.raises(ValueError, match=r"^Query vectors have 3 dimensions, the comparison set has 6"):
            ask([[1.0, 2.0, 3.0]])


def test_a_json_round_trip_of_the_configuration_changes_nothing() -> None:
    head = trained((2, 5, 4)).similarity_head()
    again = SimilarityHead(head.name, json.loads(json.dumps(head.config)), head.tensors)
    vectors, labels, ids, _ = task(40)
    one, two = (RelationClassifier(similarity=h).fit(vectors, labels, ids=ids).scores(vectors) for h in (head, again))
    assert np.array_equal(one, two)
