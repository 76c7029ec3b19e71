"""SimCLRNetwork: NT-Xent against a slow loop over algorithm 1 of arXiv 2002.05709, and against its published peer."""

from __future__ import annotations

import math

import pytest
import torch
from pytorch_metric_learning.losses import NTXentLoss, SelfSupervisedLoss
from torch import nn

from fewshot import TrainingConfig
from fewshot.methods import build_network
from fewshot.simclr import PROJECTED, TEMPERATURE, SimCLRNetwork, nt_xent


class Flatten(nn.Module):
    """A backbone of one linear layer over the pixels."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.dim = dim
        self.layer = nn.Linear(16, dim)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.flatten(1))


def network(dim: int = 6, **options: object) -> SimCLRNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return SimCLRNetwork(Flatten(dim), **options)


def views(n: int = 5, seed: int = 0, noise: float = 1.0) -> torch.Tensor:
    """Two noisy copies of n images, all first copies before all second ones."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(n, 1, 4, 4, generator=generator).repeat(2, 1, 1, 1)
    return clean + noise * torch.randn(clean.shape, generator=generator)


def slow_nt_xent(rows: list[list[float]], temperature: float) -> tuple[float, float]:
    """Algorithm 1, view by view."""
    n = len(rows) // 2

    def cosine(a: list[float], b: list[float]) -> float:
        lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
        return sum(x * y for x, y in zip(a, b, strict=True)) / lengths

    total, right = 0.0, 0
    for i in range(2 * n):
        partner = i + n if i < n else i - n
        others = [j for j in range(2 * n) if j != i]
        below = sum(math.exp(cosine(rows[i], rows[j]) / temperature) for j in others)
        total -= math.log(math.exp(cosine(rows[i], rows[partner]) / temperature) / below)
        right += max(others, key=lambda j: cosine(rows[i], rows[j])) == partner
    return total / (2 * n), right / (2 * n)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("seed", range(3))
def test_loss_and_accuracy_against_a_slow_loop(temperature: float, n: int, seed: int) -> None:
    projected = torch.randn(2 * n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    loss, accuracy = nt_xent(projected, temperature=temperature)
    slow, right = slow_nt_xent(projected.tolist(), temperature)
    assert loss.item() == pytest.approx(slow, rel=1e-10, abs=1e-12)
    assert accuracy == pytest.approx(right)


@pytest.mark.parametrize("n", [2, 16])
def test_the_number_is_that_of_pytorch_metric_learning(n: int) -> None:
    projected = torch.randn(2 * n, 8, generator=torch.Generator().manual_seed(n))
    peer = SelfSupervisedLoss(NTXentLoss(temperature=0.2))(projected[:n], projected[n:])
    assert nt_xent(projected, temperature=0.2)[0].item() == pytest.approx(peer.item(), rel=1e-5)


def test_the_gradient_is_right() -> None:
    projected = torch.randn(6, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda rows: nt_xent(rows, temperature=0.3)[0], (projected,))


def test_the_network_loss_is_that_of_its_projections() -> None:
    net = network(temperature=0.4)
    pictures = views()
    loss, accuracy = net.loss(pictures, torch.full((5,), -1))
    slow, right = slow_nt_xent(net(pictures).detach().double().tolist(), 0.4)
    assert loss.item() == pytest.approx(slow, rel=1e-5)
    assert accuracy == pytest.approx(right)
    loss.backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in net.backbone.parameters()
               if parameter.ndim > 1)  # fmt: skip
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_labels_are_not_used() -> None:
    net = network()
    every = [net.loss(views(), targets) for targets in (torch.arange(5), torch.full((5,), -1), torch.ones(5, 3))]
    assert len({(loss.item(), accuracy) for loss, accuracy in every}) == 1


def test_partners_are_rows_i_and_n_plus_i() -> None:
    same = torch.eye(4).repeat(2, 1)
    assert nt_xent(same, temperature=0.05)[1] == 1.0
    assert nt_xent(same, temperature=0.05)[0].item() < 1e-6
    neighbours = torch.eye(4).repeat_interleave(2, 0)  # partners side by side, which is another order
    assert nt_xent(neighbours, temperature=0.05)[1] == 0.0


def test_it_learns_to_tell_images_apart() -> None:
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    unlabelled = torch.full((16,), -1)
    first, _ = net.loss(views(16, noise=0.4), unlabelled)
    for step in range(120):
        optimizer.zero_grad()
        loss, _ = net.loss(views(16, seed=step % 8, noise=0.4), unlabelled)
        loss.backward()
        optimizer.step()
    loss, accuracy = net.loss(views(16, seed=1000, noise=0.4), unlabelled)
    assert loss.item() < first.item() and accuracy > 0.6  # chance is 1 in 31


def test_projection_and_loss_compute_in_full_precision_whatever_the_backbone_does() -> None:
    net = network().eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net.backbone(views()).dtype == torch.bfloat16
        vectors = net.backbone(views()).float()
        projected = net(views())
        loss, _ = net.loss(views(), torch.arange(5))
    assert projected.dtype == loss.dtype == torch.float32
    assert torch.equal(projected, net.projection(vectors))
    assert torch.equal(loss, nt_xent(projected, temperature=TEMPERATURE)[0])


@pytest.mark.parametrize(("dim", "hidden"), [(6, 128), (300, 300), (4096, 2048)])
def test_the_projection_is_as_wide_as_the_vectors_within_bounds(dim: int, hidden: int) -> None:
    net = network(dim)
    first, last = net.projection[0], net.projection[-1]
    assert (first.in_features, first.out_features, last.out_features) == (dim, hidden, PROJECTED)
    assert any(isinstance(part, nn.BatchNorm1d) for part in net.projection)


@pytest.mark.parametrize(("given", "meant"), [(None, TEMPERATURE), (0.7, 0.7)])
def test_it_is_built_from_a_configuration(given: float | None, meant: float) -> None:
    net = build_network(Flatten(), TrainingConfig(method="simclr", temperature=given), 7)
    assert isinstance(net, SimCLRNetwork)
    assert net.temperature == meant and net.views == 2 and net.similarity_head() is None


def test_validation_compares_vectors_of_the_backbone_by_the_cosine() -> None:
    net = network()
    support = torch.tensor([[1.0, 0.0], [0.0, 9.0]])
    scores = net.score(support, torch.tensor([0, 1]), torch.tensor([[5.0, 1.0], [0.1, 0.2]]), n_way=2)
    assert scores.argmax(1).tolist() == [0, 1]


def test_every_image_needs_two_views() -> None:
    with pytest.raises(ValueError, match=r"^5 images need 10 views, two of each; got 9\.$"):
        network().loss(views()[:9], torch.arange(5))
