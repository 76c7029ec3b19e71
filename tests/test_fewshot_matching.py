"""MatchingNetwork and MatchingClassifier against slow loops, and against each other."""

from __future__ import annotations

import doctest
import math
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fewshot.attention_head
from embeddings import SimilarityHead
from episodes import Decision
from fewshot.attention_head import ATTENTION_TEMPERATURE, MatchingClassifier
from fewshot.matching import MatchingNetwork, attention_log_probabilities
from fewshot.methods import build_network
from fewshot.networks import EpisodeTargets
from fewshot.training_config import TrainingConfig


class Linear(nn.Module):
    """A backbone without memory of its batch: one linear layer over the pixels."""

    dim = 6

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.layer = nn.Linear(16, 6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.flatten(1))


def batch() -> tuple[torch.Tensor, list[EpisodeTargets]]:
    """Two episodes of unequal ways, shots and queries."""
    first = EpisodeTargets(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 0, 1]), 2)
    second = EpisodeTargets(torch.tensor([0, 1, 2, 2, 0]), torch.tensor([2, 1, 0]), 3)
    return torch.randn(15, 1, 4, 4, generator=torch.Generator().manual_seed(0)), [first, second]


def task(n: int = 24, d: int = 6, seed: int = 0) -> tuple[np.ndarray, list[str], list[str], list[str]]:
    """Support of three classes of unequal size, with some patients of several images."""
    rng = np.random.default_rng(seed)
    labels = [f"class {min(int(rng.integers(4)), 2)}" for _ in range(n - 3)] + ["class 0", "class 1", "class 2"]
    groups = [f"p{rng.integers(9)}" for _ in range(n)]
    return rng.normal(size=(n, d)).astype(np.float32), labels, [f"image {i:03}" for i in range(n)], groups


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    dot = sum(float(x) * float(y) for x, y in zip(a, b, strict=True))
    return dot / math.sqrt(sum(float(x) ** 2 for x in a) * sum(float(y) ** 2 for y in b))


def slow_attention(
    vectors: np.ndarray,
    labels: list[str],
    query: np.ndarray,
    *,
    temperature: float,
    center: np.ndarray | float = 0.0,
    groups: list[str] | None = None,
) -> dict[str, float]:
    """Shares of the attention, one support image at a time; a patient counts once in its class."""
    images = Counter(zip(groups, labels, strict=True)) if groups else None
    kernel = []
    for i, row in enumerate(vectors):
        weight = 1 / images[groups[i], labels[i]] if images and groups else 1.0
        kernel.append(weight * math.exp(cosine(query - center, row - center) / temperature))
    shares = dict.fromkeys(sorted(set(labels)), 0.0)
    for value, label in zip(kernel, labels, strict=True):
        shares[label] += value / sum(kernel)
    return shares


def bits(decisions: list[Decision]) -> list[str]:
    """Every number of every decision, to the bit."""
    return [
        repr((d.label, d.runner_up, d.score and d.score.hex(), d.margin and d.margin.hex(), d.evidence))
        + repr(d.counter_evidence)
        for d in decisions
    ]


@pytest.mark.parametrize("temperature", [None, 1.0, 0.03])
def test_loss_and_accuracy_of_unequal_episodes(temperature: float | None) -> None:
    images, episodes = batch()
    network = MatchingNetwork(Linear(), temperature=temperature)
    vectors = network.backbone(images).detach().double().numpy()
    cuts = [(vectors[0:3], vectors[3:7]), (vectors[7:12], vectors[12:15])]
    losses, right = [], 0
    for (support, query), episode in zip(cuts, episodes, strict=True):
        labels, surprise = [str(k) for k in episode.support.tolist()], []
        for row, target in zip(query, episode.query.tolist(), strict=True):
            shares = slow_attention(support, labels, row, temperature=temperature or ATTENTION_TEMPERATURE)
            surprise.append(-math.log(shares[str(target)]))
            right += max(shares, key=shares.__getitem__) == str(target)
        losses.append(sum(surprise) / len(surprise))
    loss, accuracy = network.loss(images, episodes)
    assert float(loss.detach()) == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert accuracy == right / 7
    assert [tuple(rows.shape) for rows in network(images, episodes)] == [(4, 2), (3, 3)]
    for rows in network(images, episodes):
        assert rows.detach().exp().sum(1).tolist() == pytest.approx([1.0] * len(rows), abs=1e-6)


def test_the_paper_s_temperature_cannot_become_sharp() -> None:
    support = torch.tensor([[1.0], [-1.0], [-1.0], [-1.0], [-1.0]])
    best = attention_log_probabilities(support, torch.arange(5), support[:1], n_way=5, temperature=1.0)[0, 0]
    assert float(best.exp()) == pytest.approx(0.65, abs=0.005)
    assert float(-best) == pytest.approx(0.43, abs=0.005)
    sharp = attention_log_probabilities(support, torch.arange(5), support[:1], n_way=5)[0, 0]
    assert float(sharp) > -1e-6
    assert math.exp(-0.3 / ATTENTION_TEMPERATURE) == pytest.approx(1 / 20, abs=0.001)


def test_a_tiny_temperature_overflows_nothing_and_every_gradient_is_finite() -> None:
    support = torch.tensor([[1.0, 0.0], [-1.0, 0.1]], requires_grad=True)
    scores = attention_log_probabilities(support, torch.tensor([0, 1]), support.detach()[:1], n_way=2, temperature=1e-3)
    assert scores[0].tolist() == pytest.approx([0.0, -1995.0], abs=1.0)
    scores[0, 1].backward()
    assert torch.isfinite(support.grad).all() and support.grad.abs().sum() > 0


def test_the_gradient_reaches_every_weight() -> None:
    images, episodes = batch()
    network = MatchingNetwork(Linear())
    network.loss(images, episodes)[0].backward()
    assert (network.backbone.layer.weight.grad.abs() > 1e-7).all()
    assert (network.backbone.layer.bias.grad.abs() > 1e-7).all()


def test_cosines_are_taken_in_full_precision_whatever_the_backbone_computes_in() -> None:
    images, episodes = batch()

    class Far(Linear):
        """Vectors far from the origin and close together: bfloat16 could not tell them apart."""

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", enabled=False):
                return super().forward(pixels) + 50

    network = MatchingNetwork(Far())
    exact = network(images, episodes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rows = network(images, episodes)
    assert all(torch.equal(a, b) for a, b in zip(rows, exact, strict=True))
    assert rows[0].dtype == torch.float32


def test_a_few_steps_lower_the_loss() -> None:
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(3, 1, 4, 4, generator=generator)
    classes = torch.tensor([0, 0, 1, 2, 0, 1, 2, 1, 2])
    episode = EpisodeTargets(classes[:4], classes[4:], 3)
    images = centres[classes] + torch.randn(9, 1, 4, 4, generator=generator)
    network = MatchingNetwork(Linear())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        loss, _ = network.loss(images, [episode])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


def test_the_order_of_the_support_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(2)
    support, queries = torch.randn(9, 5, generator=generator), torch.randn(4, 5, generator=generator)
    targets, order = torch.tensor([0, 1, 2, 2, 1, 0, 0, 0, 1]), torch.randperm(9, generator=generator)
    network = MatchingNetwork(Linear())
    scores = network.score(support, targets, queries, n_way=3)
    assert torch.allclose(network.score(support[order], targets[order], queries, n_way=3), scores, atol=1e-5)


def test_the_network_is_built_by_its_name_with_its_temperature() -> None:
    network = build_network(Linear(), TrainingConfig(method="matching", temperature=0.25), 5)
    assert isinstance(network, MatchingNetwork) and network.temperature == 0.25
    assert network.similarity_head() == SimilarityHead("attention", {"temperature": 0.25}, {})
    assert build_network(Linear(), TrainingConfig(method="matching"), 5).temperature == ATTENTION_TEMPERATURE


def test_the_episodes_must_account_for_every_image() -> None:
    images, episodes = batch()
    with pytest.raises(ValueError, match=r"^The episodes describe 15 images; got 14\.$"):
        MatchingNetwork(Linear()).loss(images[:14], episodes)


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan, math.inf, True, "hot"])
def test_a_temperature_that_cannot_be_meant(temperature: object) -> None:
    message = r"^temperature must be a number above 0; got "
    with pytest.raises(ValueError, match=message):
        MatchingNetwork(Linear(), temperature=temperature)
    clf = MatchingClassifier(temperature=temperature)
    with pytest.raises(ValueError, match=message):
        clf.fit([[1.0, 0.0]], ["a"])


def test_a_learnt_comparison_without_its_temperature() -> None:
    with pytest.raises(ValueError, match=r"^temperature must be a number above 0; got None\.$"):
        MatchingClassifier(similarity=SimilarityHead("attention")).fit([[1.0, 0.0]], ["a"])


@pytest.mark.parametrize("temperature", [None, 1.0, 0.02])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("by_patient", [False, True])
def test_the_classifier_against_a_slow_loop(temperature: float | None, centred: bool, by_patient: bool) -> None:
    vectors, labels, ids, groups = task()
    center = np.random.default_rng(5).normal(size=6) if centred else np.zeros(6)
    queries = np.random.default_rng(9).normal(size=(30, 6)).astype(np.float32)
    clf = MatchingClassifier(center=center if centred else None, temperature=temperature)
    assert clf.fit(vectors, labels, ids=ids, groups=groups if by_patient else None) is clf
    scores, predicted, decided = clf.scores(queries), clf.predict(queries), clf.decide(queries)
    for i, query in enumerate(queries):
        expected = slow_attention(
            vectors.astype(float),
            labels,
            query.astype(float),
            temperature=temperature or ATTENTION_TEMPERATURE,
            center=center,
            groups=groups if by_patient else None,
        )
        assert scores[i].tolist() == pytest.approx([expected[label] for label in clf.classes_], abs=1e-12)
        ranked = sorted(expected, key=lambda label: -expected[label])
        assert predicted[i] == decided[i].label == ranked[0]
        assert decided[i].runner_up == ranked[1]
        assert decided[i].score == pytest.approx(expected[ranked[0]])
        assert decided[i].margin == pytest.approx(expected[ranked[0]] - expected[ranked[1]])
        assert decided[i].probability is None and decided[i].reason is None


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.01])
def test_network_and_classifier_agree(temperature: float) -> None:
    vectors, labels, ids, _ = task(seed=4)
    queries = np.random.default_rng(8).normal(size=(20, 6)).astype(np.float32)
    network = MatchingNetwork(Linear(), temperature=temperature)
    # The centre is that of heads which were not trained: the trained one compares as in training.
    clf = MatchingClassifier(similarity=network.similarity_head(), center=np.ones(6)).fit(vectors, labels, ids=ids)
    targets = torch.tensor([clf.classes_.tolist().index(label) for label in labels])
    expected = network.score(torch.from_numpy(vectors), targets, torch.from_numpy(queries), n_way=3).exp().numpy()
    assert clf.temperature_ == temperature
    assert np.abs(clf.scores(queries) - expected).max() < 1e-5


def test_which_temperature_is_used() -> None:
    trained = SimilarityHead("attention", {"temperature": 0.5})
    rows, labels = [[1.0, 0.0], [0.0, 1.0]], ["a", "b"]
    assert MatchingClassifier(similarity=trained).fit(rows, labels).temperature_ == 0.5
    assert MatchingClassifier(similarity=trained, temperature=2).fit(rows, labels).temperature_ == 2.0
    foreign = SimilarityHead("weighted-l1", {"temperature": 0.5})
    other = MatchingClassifier(similarity=foreign, center=[0.5, 0.4]).fit(rows, labels)
    assert other.temperature_ == ATTENTION_TEMPERATURE
    plain = MatchingClassifier(center=[0.5, 0.4]).fit(rows, labels)
    assert other.scores([[0.3, 0.9]]).tolist() == plain.scores([[0.3, 0.9]]).tolist()


def test_a_patient_has_one_vote_however_many_images_it_has() -> None:
    clf = MatchingClassifier().fit([[1.0, 1.0]] * 9 + [[1.0, 1.0]], ["a"] * 9 + ["b"], groups=["p"] * 9 + ["q"])
    assert clf.scores([[0.3, 0.8]])[0].tolist() == pytest.approx([0.5, 0.5])
    clf.fit([[1.0, 1.0]] * 9 + [[1.0, 1.0]], ["a"] * 9 + ["b"], groups=[None] * 10)
    assert clf.scores([[0.3, 0.8]])[0].tolist() == pytest.approx([0.9, 0.1])


@given(seed=st.integers(0, 10_000), d=st.integers(2, 200), temperature=st.sampled_from([0.01, 0.1, 1.0]))
@settings(max_examples=30, deadline=None)
def test_order_of_registration_and_company_change_no_bit(seed: int, d: int, temperature: float) -> None:
    vectors, labels, ids, groups = task(d=d, seed=seed)
    rng = np.random.default_rng(seed)
    queries = rng.normal(size=(7, d)).astype(np.float32)
    clf = MatchingClassifier(temperature=temperature).fit(vectors, labels, ids=ids, groups=groups)
    order = rng.permutation(len(ids))
    other = MatchingClassifier(temperature=temperature).fit(
        vectors[order], [labels[i] for i in order], ids=[ids[i] for i in order], groups=[groups[i] for i in order]
    )
    together = clf.decide(queries)
    assert bits(other.decide(queries)) == bits(together)
    assert bits([clf.decide(row[None])[0] for row in queries]) == bits(together)
    assert bits(clf.decide(np.asfortranarray(queries)[::-1])[::-1]) == bits(together)


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_removing_equals_never_having_had(seed: int) -> None:
    vectors, labels, ids, groups = task(seed=seed, n=30)
    queries = np.random.default_rng(seed).normal(size=(5, 6)).astype(np.float32)
    keep = [i for i, group in enumerate(groups) if group != "p3"]
    kept = (vectors[keep], [labels[i] for i in keep])
    named = {"ids": [ids[i] for i in keep], "groups": [groups[i] for i in keep]}
    never = MatchingClassifier().fit(*kept, **named)
    clf = MatchingClassifier().fit(vectors, labels, ids=ids, groups=groups)
    before = bits(clf.decide(queries))
    clf.fit(*kept, **named)
    assert bits(clf.decide(queries)) == bits(never.decide(queries))
    assert len(keep) == len(ids) or bits(clf.decide(queries)) != before


def test_evidence_is_the_nearest_images_of_winner_and_runner_up() -> None:
    vectors, labels, ids, groups = task()
    clf = MatchingClassifier(n_evidence=3).fit(vectors, labels, ids=ids, groups=groups)
    query = np.random.default_rng(1).normal(size=(1, 6)).astype(np.float32)
    decision = clf.decide(query)[0]
    for found, label in ((decision.evidence, decision.label), (decision.counter_evidence, decision.runner_up)):
        cosines = {n: cosine(query[0], row) for n, row, own in zip(ids, vectors, labels, strict=True) if own == label}
        assert [n.id for n in found] == sorted(cosines, key=lambda name: -cosines[name])[:3]
        assert [n.similarity for n in found] == pytest.approx(sorted(cosines.values(), reverse=True)[:3], abs=1e-6)
        assert {n.label for n in found} == {label}
    assert MatchingClassifier(n_evidence=0).fit(vectors, labels).decide(query)[0].evidence == ()


@pytest.mark.parametrize("labels", [["b", "a"], [7, 3], [("right", 2), ("left", 1)], ["a", 1]])
def test_labels_come_back_as_they_were_given(labels: list[object]) -> None:
    clf = MatchingClassifier().fit([[1.0, 0.0], [0.0, 1.0]], labels)
    answers = [d.label for d in clf.decide([[1.0, 0.1], [0.1, 1.0]])]
    assert answers == labels == list(clf.predict([[1.0, 0.1], [0.1, 1.0]]))
    assert [type(answer) for answer in answers] == [type(label) for label in labels]


def test_nothing_is_decided_about_a_broken_query() -> None:
    clf = MatchingClassifier().fit([[1.0, 0.0], [0.0, 1.0]], [1, 2])
    queries = [[1.0, 0.1], [np.nan, 0.0], [0.1, 1.0], [0.0, 0.0]]
    assert clf.predict(queries).tolist() == [1, None, 2, None]
    decisions = clf.decide(queries)
    assert (decisions[1].label, decisions[1].score, decisions[1].evidence) == (None, None, ())
    assert "NaN or infinity" in str(decisions[1].reason) and "no direction" in str(decisions[3].reason)
    assert np.isnan(clf.scores(queries)[[1, 3]]).all()
    assert clf.decide(np.empty((0, 2))) == [] and clf.predict(np.empty((0, 2))).shape == (0,)


def test_a_single_class_has_no_runner_up() -> None:
    decision = MatchingClassifier().fit([[1.0, 0.0]], ["only"]).decide([[0.5, 0.5]])[0]
    assert (decision.label, decision.score, decision.margin, decision.runner_up) == ("only", 1.0, None, None)
    assert decision.counter_evidence == ()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"center": [1.0]}, r"^The centre must have shape \(2,\) like the vectors; got \(1,\)\.$"),
        ({"n_evidence": -1}, r"^n_evidence must be a whole number of at least 0; got -1\.$"),
    ],
)
def test_errors_of_fit(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MatchingClassifier(**options).fit([[1.0, 0.0]], ["a"])


def test_errors_of_asking() -> None:
    with pytest.raises(ValueError, match=r"^This MatchingClassifier has no support yet: call fit first\.$"):
        MatchingClassifier().predict([[1.0]])
    clf = MatchingClassifier().fit([[1.0, 0.0]], ["a"])
    for ask in (clf.predict, clf.decide, clf.scores):
        with pytest.raises(ValueError, match=r"^Query vectors have 3 dimensions, the comparison set has 2"):
            ask([[1.0, 2.0, 3.0]])


def test_the_example_in_the_docs_runs() -> None:
    result = doctest.testmod(fewshot.attention_head)
    assert result.attempted >= 3 and result.failed == 0
