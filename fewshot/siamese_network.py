"""The Siamese network: twins that tell whether two images are of one class (Koch, Zemel, Salakhutdinov 2015)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from embeddings import SimilarityHead

from .networks import EpisodeTargets, EpisodicNetwork, embed_episodes
from .siamese import WEIGHTED_L1
from .siamese_losses import MetricLoss, pair_cross_entropy, weighted_l1_logits
from .training_config import SIAMESE_LOSSES, TrainingError

if TYPE_CHECKING:
    from .training_config import TrainingConfig

#: Where logistic regression starts: a pair's log-odds are this bias - slope x |a - b|_1 / sqrt(d), which for unit
#: vectors is never more than their Euclidean distance. Equal images start at a probability of 0.998, and one half lies
#: at a mean difference of 0.4, about a cosine of 0.9, where a fresh network's ReLU features have their pairs.
INITIAL_BIAS, INITIAL_SLOPE = 6.0, 15.0


class SiameseNetwork(EpisodicNetwork):
    """An encoder trained to put images of one class close together, and those of two apart.

    "logistic" is the paper's: p(same) = sigmoid(sum_j weight_j |a_j - b_j| + bias), with weights and bias learnt, by
    cross-entropy over all pairs of a query and a support image; the few pairs of one class weigh as much as the many of
    two. The paper's regularisation, a penalty on squared weights, is the optimiser's weight decay. One thing differs:
    the paper's embedding ends in a sigmoid, which bounds every difference. After a ReLU a sigmoid would use half its
    range, [0.5, 1), and be flat where a feature is strong, while bare features have differences of any size. Here
    vectors are brought to unit length instead, which bounds differences too, suits every backbone from the first step,
    and is how the other losses and most heads see them. (In a short trial on Omniglot it learnt faster than either.)

    The other losses are those of `MetricLoss`, over all images of an episode, support and queries alike.

    An episode's most similar support image is by learnt log-odds for "logistic", by cosine for the others.

    Args:
        backbone: Images (n, c, h, w) -> vectors (n, d), with an attribute `dim`.
        loss: One of `SIAMESE_LOSSES`.
        mining: Whether "contrastive", "triplet" and "multi-similarity" take hard pairs only, see `MetricLoss`.
        n_classes: Classes of the whole source; "proxy-anchor" needs it.
        temperature: What "supcon" divides cosines by; None is the paper's 0.1.

    Raises:
        TrainingError: An unknown loss, or "proxy-anchor" without the number of classes.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        loss: str = "supcon",
        mining: bool = True,
        n_classes: int | None = None,
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        if loss not in SIAMESE_LOSSES:
            raise TrainingError(f"loss must be one of {', '.join(SIAMESE_LOSSES)}; got {loss!r}.")
        self.backbone = backbone
        self.loss_name = loss
        dim = int(backbone.dim)  # type: ignore[arg-type]
        self.metric_loss: MetricLoss | None = None
        if loss == "logistic":
            self.weight = nn.Parameter(torch.full((dim,), -INITIAL_SLOPE / dim**0.5))
            self.bias = nn.Parameter(torch.full((1,), INITIAL_BIAS))
        else:
            self.metric_loss = MetricLoss(loss, dim=dim, n_classes=n_classes, mining=mining, temperature=temperature)

    @classmethod
    def from_config(cls, backbone: nn.Module, config: TrainingConfig, n_classes: int) -> Self:
        """The network a configuration asks for."""
        return cls(
            backbone,
            loss=config.loss,
            mining=config.mining,
            n_classes=n_classes,
            temperature=config.temperature,
        )

    def score(self, support: Tensor, targets: Tensor, queries: Tensor, *, n_way: int) -> Tensor:
        """Similarity (m, n_way) of each query to the most similar support image of each class.

        Log-odds of being of one class for "logistic" (`SiameseClassifier` shows their probabilities), else cosines.
        """
        return class_maxima(self._similarities(support, queries), targets, n_way)

    def loss(self, images: Tensor, episodes: Sequence[EpisodeTargets]) -> tuple[Tensor, float]:
        """Mean loss over the episodes, and the share of queries whose most similar support image is of their class.

        Args:
            images: (n, c, h, w), the episodes one after another, each with its support before its queries.
            episodes: What each image is, in the same order; their sizes add up to n. "proxy-anchor" needs their codes.

        Returns:
            A scalar to differentiate, and an accuracy in [0, 1].

        Raises:
            ValueError: The episodes do not account for every image, or lack the codes that are needed.
        """
        parts = embed_episodes(self.backbone, images, episodes)
        losses: list[Tensor] = []
        right = 0
        # Distances are differences of large numbers: half precision, welcome in the backbone, would ruin them here.
        with torch.autocast(images.device.type, enabled=False):
            for (support, query), episode in zip(parts, episodes, strict=True):
                if self.metric_loss is None:
                    pairs = self._similarities(support, query)  # (m, n)
                    losses.append(pair_cross_entropy(pairs, episode.query[:, None] == episode.support))
                else:
                    with torch.no_grad():
                        pairs = self._similarities(support, query)
                    losses.append(self.metric_loss(torch.cat([support, query]), self._labels(episode)))
                nearest = class_maxima(pairs.detach(), episode.support, episode.n_way).argmax(1)
                right += int((nearest == episode.query).sum())
        return torch.stack(losses).mean(), right / sum(len(episode.query) for episode in episodes)

    def similarity_head(self) -> SimilarityHead | None:
        """The weights and the bias of "logistic", with which `SiameseClassifier` compares; None for other losses."""
        if self.metric_loss is not None:
            return None
        tensors = {
            "weight": self.weight.detach().cpu().numpy().astype(np.float32),
            "bias": self.bias.detach().cpu().numpy().astype(np.float32),
        }
        return SimilarityHead(WEIGHTED_L1, {"unit_length": True}, tensors)

    def _similarities(self, support: Tensor, queries: Tensor) -> Tensor:
        """Similarity (m, n) of each query to each support image."""
        if self.metric_loss is None:
            return weighted_l1_logits(queries, support, self.weight, self.bias)
        return functional.normalize(queries) @ functional.normalize(support).T

    def _labels(self, episode: EpisodeTargets) -> Tensor:
        """Classes (n,) of an episode's images, support before queries: of the whole source where there are proxies."""
        positions = torch.cat([episode.support, episode.query])
        if self.loss_name != "proxy-anchor":
            return positions
        if episode.codes is None:
            raise ValueError(
                "The loss 'proxy-anchor' keeps a proxy per class of the source: episodes need their codes."
            )
        return episode.codes[positions]


def class_maxima(similarities: Tensor, targets: Tensor, n_way: int) -> Tensor:
    """Similarity to the most similar support image of each class.

    Args:
        similarities: (m, n), larger is closer.
        targets: int64 (n,), class positions 0 .. n_way - 1 of the support, each present.
        n_way: Number of classes.

    Returns:
        (m, n_way).
    """
    empty = similarities.new_full((len(similarities), n_way), -torch.inf)
    return empty.scatter_reduce(1, targets.expand(len(similarities), -1), similarities, "amax")
