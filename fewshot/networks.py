"""What `train` can train, and the first of them: the prototypical network (Snell et al. 2017, arXiv 1703.05175)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import torch
from torch import Tensor, nn

from .losses import prototypical_logits

if TYPE_CHECKING:
    from embeddings import SimilarityHead

    from .training_config import TrainingConfig


@dataclass(frozen=True)
class EpisodeTargets:
    """Class positions of one episode's images, support before queries.

    Attributes:
        support: int64 (n_support,), 0 .. n_way - 1.
        query: int64 (n_query,).
        n_way: Number of classes.
        codes: int64 (n_way,), which class of the whole source each position is; for losses that keep something per
            class, as proxies do.
    """

    support: Tensor
    query: Tensor
    n_way: int
    codes: Tensor | None = None


class TrainableNetwork(nn.Module, ABC):
    """A backbone with a loss to train it by, and a way to tell which class a query is most like.

    Attributes:
        backbone: Images (n, c, h, w) -> vectors (n, d), with an attribute `dim`; what is left after training.
        views: Copies of each image, augmented independently, that the loss of an `ImageNetwork` is given.
    """

    backbone: nn.Module
    views: ClassVar[int] = 1

    @classmethod
    @abstractmethod
    def from_config(cls, backbone: nn.Module, config: TrainingConfig, n_classes: int) -> Self:
        """The network a configuration asks for.

        Args:
            backbone: What is to be trained.
            config: Its options; those that mean nothing to this method are ignored.
            n_classes: Classes of the whole source.

        Raises:
            TrainingError: Options that this method, or this backbone, cannot do.
        """

    @abstractmethod
    def loss(self, images: Tensor, targets: Any) -> tuple[Tensor, float]:
        """The loss of one batch, and the share of it that is right; see the kinds of network for what is given.

        Args:
            images: (n, c, h, w).
            targets: What the images are.

        Returns:
            A scalar to differentiate, and an accuracy in [0, 1].
        """

    def score(self, support: Tensor, targets: Tensor, queries: Tensor, *, n_way: int) -> Tensor:
        """How much each query is like each class, for validation: larger is likelier.

        Args:
            support: (n, d) vectors of the backbone.
            targets: int64 (n,), their class positions 0 .. n_way - 1.
            queries: (m, d).
            n_way: Number of classes.

        Returns:
            (m, n_way); cosine similarity to the class means unless a method overrides it.
        """
        return prototypical_logits(support, targets, queries, n_way=n_way, metric="cosine")

    def similarity_head(self) -> SimilarityHead | None:
        """The learnt comparison of two vectors, which must travel with the backbone; None where there is none."""
        return None


class EpisodicNetwork(TrainableNetwork):
    """A network whose loss is that of few-shot episodes."""

    @abstractmethod
    def loss(self, images: Tensor, episodes: Sequence[EpisodeTargets]) -> tuple[Tensor, float]:
        """Mean loss over the episodes, and the share of queries (or pairs) that are right.

        Args:
            images: (n, c, h, w), the episodes one after another, each with its support before its queries.
            episodes: What each image is, in the same order; their sizes add up to n.

        Returns:
            A scalar to differentiate, and an accuracy in [0, 1].

        Raises:
            ValueError: The episodes do not account for every image.
        """


class ImageNetwork(TrainableNetwork):
    """A network whose loss is that of a plain batch of images."""

    @abstractmethod
    def loss(self, images: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        """Mean loss over the batch, and the share that is right.

        Args:
            images: (views * n, c, h, w); view v of image i is row v * n + i.
            targets: Classes of the n images: int64 (n,), or float32 (n, n_classes) of zeros and ones where images have
                several; unlabelled images are -1, or a row of zeros.

        Returns:
            A scalar to differentiate, and an accuracy in [0, 1].
        """


def embed_episodes(
    backbone: nn.Module, images: Tensor, episodes: Sequence[EpisodeTargets]
) -> list[tuple[Tensor, Tensor]]:
    """Embed the images of several episodes at once.

    Args:
        backbone: Images (n, c, h, w) -> vectors (n, d).
        images: (n, c, h, w), the episodes one after another, each with its support before its queries.
        episodes: What each image is, in the same order; their sizes add up to n.

    Returns:
        For each episode float32 (support vectors, query vectors).

    Raises:
        ValueError: The episodes do not account for every image.
    """
    sizes = [size for episode in episodes for size in (len(episode.support), len(episode.query))]
    if sum(sizes) != len(images):
        raise ValueError(f"The episodes describe {sum(sizes)} images; got {len(images)}.")
    parts = backbone(images).float().split(sizes)  # (n, d), cut
    return list(zip(parts[::2], parts[1::2], strict=True))


class PrototypicalNetwork(EpisodicNetwork):
    """An encoder whose classes are the means of their embedded support images.

    Args:
        backbone: Images (n, c, h, w) -> vectors (n, d), with an attribute `dim`.
        metric: "euclidean" as in the paper, or "cosine".
        temperature: What similarities are divided by, see `prototypical_logits`.
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

    def forward(self, images: Tensor, episodes: Sequence[EpisodeTargets]) -> list[Tensor]:
        """Embed the images of several episodes at once and return each episode's logits.

        Args:
            images: (n, c, h, w), the episodes one after another, each with its support before its queries.
            episodes: What each image is, in the same order; their sizes add up to n.

        Returns:
            For each episode logits (queries, n_way).

        Raises:
            ValueError: The episodes do not account for every image.
        """
        parts = embed_episodes(self.backbone, images, episodes)
        # Distances are differences of large numbers: half precision, welcome in the backbone, would ruin them here.
        with torch.autocast(images.device.type, enabled=False):
            return [
                self.score(support, episode.support, query, n_way=episode.n_way)
                for (support, query), episode in zip(parts, episodes, strict=True)
            ]

    def score(self, support: Tensor, targets: Tensor, queries: Tensor, *, n_way: int) -> Tensor:
        """Logits (m, n_way) by the network's own metric and temperature."""
        return prototypical_logits(
            support, targets, queries, n_way=n_way, metric=self.metric, temperature=self.temperature
        )

    def loss(self, images: Tensor, episodes: Sequence[EpisodeTargets]) -> tuple[Tensor, float]:
        """Mean loss over the episodes, and the share of queries that are right.

        Args:
            images: (n, c, h, w) as for `forward`.
            episodes: As for `forward`.

        Returns:
            A scalar to differentiate, and an accuracy in [0, 1].
        """
        return episodes_loss(self(images, episodes), episodes)


def episodes_loss(logits: Sequence[Tensor], episodes: Sequence[EpisodeTargets]) -> tuple[Tensor, float]:
    """Cross-entropy averaged over episodes, and the share of queries that are right.

    Args:
        logits: For each episode (queries, n_way).
        episodes: What the queries are.

    Returns:
        A scalar, and an accuracy in [0, 1].
    """
    losses = [nn.functional.cross_entropy(rows, e.query) for rows, e in zip(logits, episodes, strict=True)]
    right = sum(int((rows.argmax(1) == e.query).sum()) for rows, e in zip(logits, episodes, strict=True))
    return torch.stack(losses).mean(), right / sum(len(e.query) for e in episodes)
