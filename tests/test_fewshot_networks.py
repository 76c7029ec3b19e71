"""PrototypicalNetwork: several unequal episodes in one batch are those episodes one by one."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fewshot import PrototypicalNetwork, prototypical_loss
from fewshot.networks import EpisodeTargets


class Flatten(nn.Module):
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
    first = EpisodeTargets(torch.tensor([0, 1, 1]), torch.tensor([1, 0, 0, 1]), 2)
    second = EpisodeTargets(torch.tensor([0, 1, 2, 2, 0]), torch.tensor([2, 1, 0]), 3)
    return torch.randn(15, 1, 4, 4, generator=torch.Generator().manual_seed(0)), [first, second]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_loss_and_accuracy_of_unequal_episodes(metric: str) -> None:
    images, episodes = batch()
    network = PrototypicalNetwork(Flatten(), metric=metric)
    vectors = network.backbone(images).detach()
    cuts = [(vectors[0:3], vectors[3:7]), (vectors[7:12], vectors[12:15])]
    losses, right = [], 0
    for (support, query), episode in zip(cuts, episodes, strict=True):
        losses.append(
            float(prototypical_loss(support, episode.support, query, episode.query, n_way=episode.n_way, metric=metric))
        )
        for row, target in zip(query, episode.query.tolist(), strict=True):
            distances = []
            for k in range(episode.n_way):
                own = support[episode.support == k]
                if metric == "cosine":
                    mean = nn.functional.normalize(nn.functional.normalize(own).mean(0), dim=0)
                    distances.append(-float(nn.functional.normalize(row, dim=0) @ mean))
                else:
                    distances.append(float((row - own.mean(0)).square().sum()))
            right += min(range(episode.n_way), key=distances.__getitem__) == target
    loss, accuracy = network.loss(images, episodes)
    assert float(loss.detach()) == pytest.approx(sum(losses) / 2, rel=1e-5)
    assert accuracy == right / 7
    assert [tuple(rows.shape) for rows in network(images, episodes)] == [(4, 2), (3, 3)]


def test_the_gradient_reaches_every_weight() -> None:
    images, episodes = batch()
    network = PrototypicalNetwork(Flatten())
    network.loss(images, episodes)[0].backward()
    # The bias moves queries and prototypes alike, so its gradient is nothing but rounding.
    assert (network.backbone.layer.weight.grad.abs() > 1e-6).all()
    assert network.backbone.layer.bias.grad.abs().max() < 1e-4


def test_distances_are_taken_in_full_precision_whatever_the_backbone_computes_in() -> None:
    images, episodes = batch()

    class Far(Flatten):
        """Vectors far from the origin and close together: bfloat16 could not tell them apart."""

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            with torch.autocast("cpu", enabled=False):
                return super().forward(pixels) + 50

    network = PrototypicalNetwork(Far())
    exact = network(images, episodes)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = network(images, episodes)
    assert all(torch.equal(a, b) for a, b in zip(exact, half, strict=True))


def test_every_image_must_belong_to_an_episode() -> None:
    images, episodes = batch()
    network = PrototypicalNetwork(Flatten())
    with pytest.raises(ValueError, match=r"^The episodes describe 15 images; got 14\.$"):
        network(images[:-1], episodes)
    with pytest.raises(ValueError, match=r"^The episodes describe 7 images; got 15\.$"):
        network(images, episodes[:1])
