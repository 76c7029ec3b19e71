"""The relation network (Sung, Yang, Zhang, Xiang, Torr, Hospedales 2018, arXiv 1711.06025)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from embeddings import SimilarityHead

from .losses import class_means
from .networks import EpisodeTargets, EpisodicNetwork, embed_episodes
from .relation_head import EPSILON, RELATION
from .training_config import TrainingError

if TYPE_CHECKING:
    from .training_config import TrainingConfig

#: Channels of the relation module's two blocks (section 3.4 of the paper).
WIDTH = 64

#: Units of its first fully connected layer (section 3.4).
HIDDEN = 8


class RelationModule(nn.Module):
    """From a class's feature map and a query's to how much they are related, in [0, 1].

    The two maps are laid on top of each other and go through two blocks of 3 x 3 convolution, batch normalisation,
    2 x 2 max pooling and ReLU, then through two fully connected layers and a sigmoid. A map of one pixel, which a
    pooled vector is, leaves a 3 x 3 convolution only its centre: there the kernel is 1 x 1 and every layer is fully
    connected. A map too small to be halved is not pooled.

    Args:
        map_shape: (channels, height, width) of one feature map.
    """

    def __init__(self, map_shape: tuple[int, int, int]) -> None:
        super().__init__()
        channels, height, width = map_shape
        self.map_shape = map_shape
        self.kernel = 3 if max(height, width) > 1 else 1
        edge = self.kernel // 2
        # No bias: the normalisation that follows has one, and would cancel it.
        self.first = nn.Conv2d(2 * channels, WIDTH, self.kernel, padding=edge, bias=False)
        self.first_norm = nn.BatchNorm2d(WIDTH, eps=EPSILON)
        self.second = nn.Conv2d(WIDTH, WIDTH, self.kernel, padding=edge, bias=False)
        self.second_norm = nn.BatchNorm2d(WIDTH, eps=EPSILON)
        for _ in range(2):
            height, width = (height // 2, width // 2) if min(height, width) >= 2 else (height, width)
        self.hidden = nn.Linear(WIDTH * height * width, HIDDEN)
        self.output = nn.Linear(HIDDEN, 1)
        self._initialise()

    def forward(self, classes: Tensor, queries: Tensor) -> Tensor:
        """Relate every query to every class.

        Args:
            classes: (n, d) mean vectors of the classes.
            queries: (m, d).

        Returns:
            (m, n) relation scores in [0, 1].
        """
        # The convolution of two maps on top of each other is the sum of the convolutions of either, so each map is
        # convolved once, not once per pair.
        of_class, of_query = self.first.weight[:, : self.map_shape[0]], self.first.weight[:, self.map_shape[0] :]
        pairs = self._maps(queries, of_query)[:, None] + self._maps(classes, of_class)[None]  # (m, n, width, h, w)
        maps = _pool_relu(self.first_norm(pairs.flatten(0, 1)))
        maps = _pool_relu(self.second_norm(self.second(maps)))
        logits = self.output(functional.relu(self.hidden(maps.flatten(1))))  # (m * n, 1)
        return torch.sigmoid(logits).view(len(queries), len(classes))

    def _maps(self, vectors: Tensor, weight: Tensor) -> Tensor:
        return functional.conv2d(vectors.view(-1, *self.map_shape), weight, padding=self.kernel // 2)

    def _initialise(self) -> None:
        """Start as the authors' code does (github.com/floodsung/LearningToCompare_FSL).

        Convolutions keep the scale of what flows back through them (He et al. 2015, arXiv 1502.01852); the fully
        connected layers are near nothing but for a bias of 1, so that no hidden unit starts out dead, and every pair
        starts from the same score of 0.73.
        """
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.normal_(layer.weight, 0, math.sqrt(2 / (layer.kernel_size[0] ** 2 * layer.out_channels)))
            elif isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, 0, 0.01)
                nn.init.ones_(layer.bias)


class RelationNetwork(EpisodicNetwork):
    """An encoder trained together with the module that compares a query with each class.

    A class is the mean of its support images' feature maps. The paper adds them up, which for k shots each is the same
    but for a factor; with unequal shots, or other shots than in training, a sum would be as much larger as the class is
    (Chen et al. 2019, arXiv 1904.04232, take the mean too). The loss is the paper's: the squared difference of relation
    scores to 1 for the query's own class and 0 for every other, averaged over all pairs alike.

    Batch normalisation uses running means outside of training. The authors' code uses the means of the queries asked
    about together, so that a query's answer would depend on the others.

    Args:
        backbone: Images (n, c, h, w) -> vectors (n, d), with an attribute `dim`, and `map_shape` where its vectors are
            flattened feature maps; else the relation module is fully connected.

    Raises:
        TrainingError: `map_shape` and `dim` do not agree.
    """

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        dim: int = backbone.dim  # type: ignore[assignment]  # promised above
        shape: tuple[int, int, int] = getattr(backbone, "map_shape", None) or (dim, 1, 1)
        if math.prod(shape) != dim:
            raise TrainingError(
                f"The backbone's map_shape must have as many numbers as its vectors; got {tuple(shape)} and "
                f"dim = {dim}."
            )
        self.relation = RelationModule((shape[0], shape[1], shape[2]))

    @classmethod
    def from_config(cls, backbone: nn.Module, config: TrainingConfig, n_classes: int) -> Self:
        """The network a configuration asks for.

        Raises:
            TrainingError: The backbone's `map_shape` and `dim` do not agree.
        """
        return cls(backbone)

    def forward(self, images: Tensor, episodes: Sequence[EpisodeTargets]) -> list[Tensor]:
        """Embed the images of several episodes at once and return each episode's relation scores.

        Args:
            images: (n, c, h, w), the episodes one after another, each with its support before its queries.
            episodes: What each image is, in the same order; their sizes add up to n.

        Returns:
            For each episode (queries, n_way) in [0, 1].

        Raises:
            ValueError: The episodes do not account for every image.
        """
        parts = embed_episodes(self.backbone, images, episodes)
        with torch.autocast(images.device.type, enabled=False):  # small beside the backbone, and worth its digits
            return [
                self.relation(class_means(support, episode.support, episode.n_way), query)
                for (support, query), episode in zip(parts, episodes, strict=True)
            ]

    def score(self, support: Tensor, targets: Tensor, queries: Tensor, *, n_way: int) -> Tensor:
        """Relation scores (m, n_way) in [0, 1], in evaluation mode whatever mode the network is in."""
        was_training = self.relation.training
        self.relation.eval()
        try:
            scores: Tensor = self.relation(class_means(support, targets, n_way), queries)
        finally:
            self.relation.train(was_training)
        return scores

    def loss(self, images: Tensor, episodes: Sequence[EpisodeTargets]) -> tuple[Tensor, float]:
        """Mean squared error over the episodes, and the share of queries that are right.

        Args:
            images: (n, c, h, w) as for `forward`.
            episodes: As for `forward`.

        Returns:
            A scalar to differentiate, and an accuracy in [0, 1].
        """
        scores = self(images, episodes)
        losses = [
            functional.mse_loss(rows, functional.one_hot(e.query, e.n_way).to(rows.dtype))
            for rows, e in zip(scores, episodes, strict=True)
        ]
        right = sum(int((rows.argmax(1) == e.query).sum()) for rows, e in zip(scores, episodes, strict=True))
        return torch.stack(losses).mean(), right / sum(len(e.query) for e in episodes)

    def similarity_head(self) -> SimilarityHead:
        """The relation module's weights and running means, by which `RelationClassifier` computes the same scores."""
        tensors = {
            name: np.array(tensor.detach().cpu().numpy(), dtype=np.float32, order="C")
            for name, tensor in self.relation.state_dict().items()
            if not name.endswith("num_batches_tracked")
        }
        return SimilarityHead(RELATION, {"map_shape": list(self.relation.map_shape)}, tensors)


def _pool_relu(maps: Tensor) -> Tensor:
    """Max pooling, where the map is large enough to be halved, and ReLU, which it commutes with."""
    return functional.relu(functional.max_pool2d(maps, 2) if min(maps.shape[2:]) >= 2 else maps)
