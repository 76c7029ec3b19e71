"""The matching network (Vinyals, Blundell, Lillicrap, Kavukcuoglu, Wierstra 2016, arXiv 1606.04080)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from embeddings import SimilarityHead

from .attention_head import ATTENTION, ATTENTION_TEMPERATURE, check_temperature
from .networks import EpisodeTargets, EpisodicNetwork, embed_episodes, episodes_loss

if TYPE_CHECKING:
    from .training_config import TrainingConfig


class MatchingNetwork(EpisodicNetwork):
    """An encoder whose queries attend to support images: a class is as likely as the attention its images get.

    The attention is a soft maximum of cosine similarities (section 2.1 of the paper), and the loss is the
    negative logarithm of the attention on images of the query's own class.

    The paper's "full context embeddings" (an LSTM that reads the whole support before any of it is compared) are left
    out. A vector would no longer be that of its image alone, so that archives could not keep it, and an LSTM's answer
    depends on the order in which the support is read. The authors found little help from it on Omniglot, more on
    miniImageNet (section 4.1).

    Args:
        backbone: Images (n, c, h, w) -> vectors (n, d), with an attribute `dim`.
        temperature: What cosines are divided by before the soft maximum; None is `ATTENTION_TEMPERATURE`, which see.
    """

    def __init__(self, backbone: nn.Module, *, temperature: float | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.temperature = check_temperature(ATTENTION_TEMPERATURE if temperature is None else temperature)

    @classmethod
    def from_config(cls, backbone: nn.Module, config: TrainingConfig, n_classes: int) -> Self:
        """The network a configuration asks for."""
        return cls(backbone, temperature=config.temperature)

    def forward(self, images: Tensor, episodes: Sequence[EpisodeTargets]) -> list[Tensor]:
        """Embed the images of several episodes at once and return each episode's log probabilities.

        Args:
            images: (n, c, h, w), the episodes one after another, each with its support before its queries.
            episodes: What each image is, in the same order; their sizes add up to n.

        Returns:
            For each episode (queries, n_way).

        Raises:
            ValueError: The episodes do not account for every image.
        """
        parts = embed_episodes(self.backbone, images, episodes)
        # A cosine in half precision has three digits, which a small temperature would magnify.
        with torch.autocast(images.device.type, enabled=False):
            return [
                self.score(support, episode.support, query, n_way=episode.n_way)
                for (support, query), episode in zip(parts, episodes, strict=True)
            ]

    def score(self, support: Tensor, targets: Tensor, queries: Tensor, *, n_way: int) -> Tensor:
        """Log of the attention (m, n_way) that each query gives to the images of each class."""
        return attention_log_probabilities(support, targets, queries, n_way=n_way, temperature=self.temperature)

    def loss(self, images: Tensor, episodes: Sequence[EpisodeTargets]) -> tuple[Tensor, float]:
        """Mean loss over the episodes, and the share of queries that are right.

        Args:
            images: (n, c, h, w) as for `forward`.
            episodes: As for `forward`.

        Returns:
            A scalar to differentiate, and an accuracy in [0, 1].
        """
        # Cross-entropy takes a soft maximum first, which changes nothing about logarithms of probabilities.
        return episodes_loss(self(images, episodes), episodes)

    def similarity_head(self) -> SimilarityHead:
        """The temperature, by which `MatchingClassifier` computes as the network was trained to."""
        return SimilarityHead(ATTENTION, {"temperature": self.temperature})


def attention_log_probabilities(
    support: Tensor, targets: Tensor, queries: Tensor, *, n_way: int, temperature: float = ATTENTION_TEMPERATURE
) -> Tensor:
    """Log of the attention of each query on each class.

    Args:
        support: (n, d) support vectors.
        targets: int64 (n,), their class positions 0 .. n_way - 1, each present.
        queries: (m, d).
        n_way: Number of classes.
        temperature: What cosines are divided by.

    Returns:
        (m, n_way); the exponentials of a row add up to 1.
    """
    logits = functional.normalize(queries) @ functional.normalize(support).T / temperature  # (m, n)
    own = targets == torch.arange(n_way, device=targets.device)[:, None]  # (n_way, n)
    # Sums of exponentials by class, never leaving the logarithm: far classes would underflow to log 0.
    by_class = logits[:, None, :].masked_fill(~own, -torch.inf).logsumexp(2)  # (m, n_way)
    return by_class - logits.logsumexp(1, keepdim=True)
