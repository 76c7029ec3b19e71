"""Networks that are trained on episodes: the prototypical network (Snell, Swersky, Zemel 2017, arXiv 1703.05175)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from .losses import prototypical_logits


class PrototypicalNetwork(nn.Module):
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
        sizes = [size for episode in episodes for size in (len(episode.support), len(episode.query))]
        if sum(sizes) != len(images):
            raise ValueError(f"The episodes describe {sum(sizes)} images; got {len(images)}.")
        vectors = self.backbone(images).float()  # (n, d)
        parts = vectors.split(sizes)
        # Distances are differences of large numbers: half precision, welcome in the backbone, would ruin them here.
        with torch.autocast(vectors.device.type, enabled=False):
            return [
                prototypical_logits(
                    support,
                    episode.support,
                    query,
                    n_way=episode.n_way,
                    metric=self.metric,
                    temperature=self.temperature,
                )
                for support, query, episode in zip(parts[::2], parts[1::2], episodes, strict=True)
            ]

    def loss(self, images: Tensor, episodes: Sequence[EpisodeTargets]) -> tuple[Tensor, float]:
        """Mean loss over the episodes, and the share of queries that are right.

        Args:
            images: (n, c, h, w) as for `forward`.
            episodes: As for `forward`.

        Returns:
            A scalar to differentiate, and an accuracy in [0, 1].
        """
        logits = self(images, episodes)
        losses = [nn.functional.cross_entropy(rows, e.query) for rows, e in zip(logits, episodes, strict=True)]
        right = sum(int((rows.argmax(1) == e.query).sum()) for rows, e in zip(logits, episodes, strict=True))
        return torch.stack(losses).mean(), right / sum(len(e.query) for e in episodes)


class EpisodeTargets:
    """Class positions of one episode's images, support before queries.

    Attributes:
        support: int64 (n_support,), 0 .. n_way - 1.
        query: int64 (n_query,).
        n_way: Number of classes.
    """

    def __init__(self, support: Tensor, query: Tensor, n_way: int) -> None:
        self.support = support
        self.query = query
        self.n_way = n_way
