"""Prototypical training for findings that co-occur: a prototype of presence and one of absence for each label.

Multi-label episodes and prototypes are those of MetaChest's ProtoNet-ML (Montalvo-Lezama, Fuentes-Pineda 2025, arXiv
2509.25590), the means and distances those of Snell et al. (2017, arXiv 1703.05175). ProtoNet-ML has one prototype for
each label; with a second, for absence, the zero of the log-odds lies between the two and needs no threshold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from .losses import COSINE_TEMPERATURE, squared_distances
from .networks import TrainableNetwork

if TYPE_CHECKING:
    from episodes import MultiLabelEpisode

    from .training_config import TrainingConfig


@dataclass(frozen=True)
class MultiLabelTargets:
    """Labels of one episode's images, support before queries: 1 present, 0 absent, -1 unknown.

    Attributes:
        support: int8 or int64 (n_support, n_labels).
        query: (n_query, n_labels).
    """

    support: Tensor
    query: Tensor

    @classmethod
    def from_episode(cls, episode: MultiLabelEpisode, device: torch.device | str | None = None) -> Self:
        """The targets of a drawn episode, whose images go in as rows `support`, then rows `query`."""
        support, query = (torch.tensor(part, device=device) for part in (episode.support_labels, episode.query_labels))
        return cls(support, query)


class MultiLabelPrototypicalNetwork(TrainableNetwork):
    """An encoder in which images with a finding gather, and those without it gather elsewhere.

    Args:
        backbone: Images (n, c, h, w) -> vectors (n, d), with an attribute `dim`.
        metric: "euclidean" (squared distances) or "cosine".
        temperature: What differences of similarities are divided by, see `multilabel_logits`.
    """

    def __init__(self, backbone: nn.Module, *, metric: str = "euclidean", temperature: float | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.metric = metric
        self.temperature = temperature

    @classmethod
    def from_config(cls, backbone: nn.Module, config: TrainingConfig, n_classes: int) -> Self:
        """The network a configuration asks for."""
        return cls(backbone, metric=config.metric, temperature=config.temperature)

    def forward(self, images: Tensor, episodes: Sequence[MultiLabelTargets]) -> list[Tensor]:
        """Embed the images of several episodes at once and return each episode's logits.

        Args:
            images: (n, c, h, w), the episodes one after another, each with its support before its queries.
            episodes: What each image shows, in the same order; their sizes add up to n.

        Returns:
            For each episode logits (queries, n_labels).

        Raises:
            ValueError: The episodes do not account for every image, or a label has no support image that shows it.
        """
        sizes = [size for episode in episodes for size in (len(episode.support), len(episode.query))]
        if sum(sizes) != len(images):
            raise ValueError(f"The episodes describe {sum(sizes)} images; got {len(images)}.")
        parts = self.backbone(images).float().split(sizes)  # (n, d), cut
        # Distances are differences of large numbers: half precision, welcome in the backbone, would ruin them here.
        with torch.autocast(images.device.type, enabled=False):
            return [
                multilabel_logits(support, episode.support, query, metric=self.metric, temperature=self.temperature)
                for support, query, episode in zip(parts[::2], parts[1::2], episodes, strict=True)
            ]

    def loss(self, images: Tensor, episodes: Sequence[MultiLabelTargets]) -> tuple[Tensor, float]:
        """Mean balanced loss over the episodes, and the balanced share of answers that are right.

        A label that no support image is known to lack has no second prototype to be told from, and is left out;
        `MultiLabelEpisodeSampler(k_negative=...)` draws supports in which that does not happen.

        Args:
            images: (n, c, h, w) as for `forward`.
            episodes: As for `forward`.

        Returns:
            A scalar to differentiate, and an accuracy in [0, 1]: the mean over labels and over presence and absence of
            the share of queries on the right side of zero.

        Raises:
            ValueError: As for `forward`, or an episode leaves nothing to learn from.
        """
        losses, right = [], []
        for number, (logits, episode) in enumerate(zip(self(images, episodes), episodes, strict=True)):
            told = (episode.support == 0).any(0)  # (n_labels,)
            if not told.any():
                raise ValueError(
                    f"Episode {number} has no label that a support image is known to lack: "
                    f"draw its support with k_negative of at least 1."
                )
            if not (episode.query[:, told] >= 0).any():
                raise ValueError(f"Episode {number} has no query with a known label among those that can be learnt.")
            logits, query = logits[:, told], episode.query[:, told]
            losses.append(balanced_mean(functional.softplus(torch.where(query == 1, -logits, logits)), query))
            right.append(balanced_mean(((logits > 0) == (query == 1)).to(logits.dtype), query))
        return torch.stack(losses).mean(), float(torch.stack(right).mean().detach())

    def score(self, support: Tensor, targets: Tensor, queries: Tensor, *, n_way: int) -> Tensor:
        """How much each query shows each label, or is like each class: larger is likelier.

        Args:
            support: (n, d) vectors of the backbone.
            targets: Labels (n, n_way) of 1, 0 and -1; or class positions int64 (n,), whose images lack the other
                classes.
            queries: (m, d).
            n_way: Number of labels, or of classes.

        Returns:
            Logits (m, n_way) by the network's own metric and temperature.
        """
        states = functional.one_hot(targets, n_way) if targets.ndim == 1 else targets
        return multilabel_logits(support, states, queries, metric=self.metric, temperature=self.temperature)


def multilabel_logits(
    support: Tensor, states: Tensor, queries: Tensor, *, metric: str = "euclidean", temperature: float | None = None
) -> Tensor:
    """Log-odds of each label for each query: closeness to the mean of its positives minus that to its negatives'.

    Args:
        support: (n, d) support vectors.
        states: (n, n_labels) of 1 present, 0 absent, -1 unknown, which is in neither mean.
        queries: (m, d).
        metric: "euclidean" (closeness is the negative squared distance) or "cosine".
        temperature: What the difference is divided by; None is 1 for squared distances and `COSINE_TEMPERATURE` for
            the cosine. Long vectors need more than 1.

    Returns:
        (m, n_labels). A label that no support image is known to lack has the closeness to its positives alone, which
        ranks queries but has no meaningful zero.

    Raises:
        ValueError: A label has no support image that shows it, or the metric is unknown.
    """
    if metric not in ("cosine", "euclidean"):
        raise ValueError(f"metric must be 'cosine' or 'euclidean'; got {metric!r}.")
    if not (states == 1).any(0).all():
        nobody = torch.nonzero(~(states == 1).any(0)).flatten().tolist()
        raise ValueError(f"Every label needs a support image that shows it; labels {nobody} have none.")
    if metric == "cosine":
        support, queries = functional.normalize(support), functional.normalize(queries)
    closeness = []
    for state in (1, 0):
        member = (states == state).to(support.dtype)  # (n, n_labels)
        means = (member / member.sum(0).clamp_min(1)).T @ support  # (n_labels, d)
        if metric == "cosine":
            closeness.append(queries @ functional.normalize(means).T)  # (m, n_labels)
        else:
            closeness.append(-squared_distances(queries, means))
    has_negative = (states == 0).any(0)
    difference = closeness[0] - torch.where(has_negative, closeness[1], torch.zeros_like(closeness[1]))
    return difference / (temperature or (COSINE_TEMPERATURE if metric == "cosine" else 1.0))


def balanced_mean(values: Tensor, states: Tensor) -> Tensor:
    """Mean over labels and over presence and absence of the mean over the queries of that kind.

    Args:
        values: (m, n_labels).
        states: (m, n_labels) of 1 present, 0 absent, -1 unknown, which has no weight; at least one is known.

    Returns:
        A scalar. A label that no query shows, or that none lacks, counts with the side that is there.
    """
    means, present = [], []
    for state in (1, 0):
        member = (states == state).to(values.dtype)
        count = member.sum(0)
        means.append((values * member).sum(0) / count.clamp_min(1))
        present.append(count > 0)
    return torch.cat(means).sum() / torch.cat(present).sum()
