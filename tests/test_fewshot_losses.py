"""The prototypical loss against loops written from algorithm 1 of arXiv 1703.05175."""

from __future__ import annotations

import math

import pytest
import torch

from fewshot import prototypical_loss, squared_distances
from fewshot.losses import COSINE_TEMPERATURE, class_means, prototypical_logits


def episode(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Three classes with unequal numbers of supports and queries, in no order."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.tensor([0, 1, 1, 2, 0, 1])
    query_targets = torch.tensor([2, 0, 0, 1, 2, 2, 2])
    support = torch.randn(6, 4, generator=generator, dtype=torch.float64)
    queries = torch.randn(7, 4, generator=generator, dtype=torch.float64)
    return support, targets, queries, query_targets


def slow_loss(support, targets, queries, query_targets, n_way: int, metric: str, temperature: float) -> float:
    def unit(row: list[float]) -> list[float]:
        length = math.sqrt(sum(x * x for x in row))
        return [x / length for x in row]

    rows = [r if metric == "euclidean" else unit(r) for r in support.tolist()]
    prototypes = []
    for k in range(n_way):
        own = [row for row, target in zip(rows, targets.tolist(), strict=True) if target == k]
        mean = [sum(column) / len(own) for column in zip(*own, strict=True)]
        prototypes.append(mean if metric == "euclidean" else unit(mean))
    total = 0.0
    for query, target in zip(queries.tolist(), query_targets.tolist(), strict=True):
        logits = []
        for prototype in prototypes:
            if metric == "euclidean":
                logits.append(-sum((a - b) ** 2 for a, b in zip(query, prototype, strict=True)) / temperature)
            else:
                logits.append(sum(a * b for a, b in zip(unit(query), prototype, strict=True)) / temperature)
        total += -logits[target] + math.log(sum(math.exp(x) for x in logits))
    return total / len(queries)


@pytest.mark.parametrize(
    ("metric", "given", "meant"),
    [("euclidean", None, 1.0), ("euclidean", 7.0, 7.0), ("cosine", None, COSINE_TEMPERATURE), ("cosine", 0.5, 0.5)],
)
@pytest.mark.parametrize("seed", range(5))
def test_loss_against_a_slow_loop(metric: str, given: float | None, meant: float, seed: int) -> None:
    support, targets, queries, query_targets = episode(seed)
    loss = prototypical_loss(support, targets, queries, query_targets, n_way=3, metric=metric, temperature=given)
    assert loss.shape == ()
    slow = slow_loss(support, targets, queries, query_targets, 3, metric, meant)
    assert float(loss) == pytest.approx(slow, rel=1e-12)


def test_squared_distances_against_a_slow_loop() -> None:
    support, _, queries, _ = episode()
    got = squared_distances(queries, support)
    assert got.shape == (7, 6)
    for i, a in enumerate(queries.tolist()):
        for j, b in enumerate(support.tolist()):
            assert float(got[i, j]) == pytest.approx(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))
    same = torch.randn(50, 64, generator=torch.Generator().manual_seed(0)) * 100
    assert float(squared_distances(same, same).min()) >= 0


def test_class_means_against_a_slow_loop() -> None:
    support, targets, _, _ = episode()
    got = class_means(support, targets, 3)
    for k in range(3):
        own = [row for row, target in zip(support, targets, strict=True) if target == k]
        assert torch.allclose(got[k], sum(own) / len(own))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_the_gradient_reaches_support_and_queries_and_is_right(metric: str) -> None:
    support, targets, queries, query_targets = episode()
    support.requires_grad_()
    queries.requires_grad_()

    def loss(s: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
        return prototypical_loss(s, targets, q, query_targets, n_way=3, metric=metric)

    assert torch.autograd.gradcheck(loss, (support, queries))
    loss(support, queries).backward()
    assert (support.grad.abs().sum(1) > 0).all() and (queries.grad.abs().sum(1) > 0).all()


def test_a_query_on_its_prototype_costs_least() -> None:
    support = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
    targets = torch.tensor([0, 1])
    logits = prototypical_logits(support, targets, support, n_way=2)
    assert torch.equal(logits, torch.tensor([[0.0, -16.0], [-16.0, 0.0]]))


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^metric must be 'cosine' or 'euclidean'; got 'manhattan'\.$"):
        prototypical_loss(*episode(), n_way=3, metric="manhattan")
