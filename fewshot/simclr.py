"""SimCLR: two views of an image are to be more alike than any two images (Chen et al. 2020, arXiv 2002.05709)."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from .networks import ImageNetwork

if TYPE_CHECKING:
    from .training_config import TrainingConfig

#: Cosines are divided by it. The paper's best is 0.1 on ImageNet and 0.5 on CIFAR-10's small images; 0.2 lies between,
#: and was the best of 0.07 to 0.5 for such a projection in MoCo v2 (arXiv 2003.04297).
TEMPERATURE = 0.2
#: Length of the projected vectors that the loss compares (the paper's section 2.1).
PROJECTED = 128
#: Bounds of the projection's hidden layer, otherwise as wide as the backbone's vectors; 2,048 is the paper's.
FEWEST_HIDDEN, MOST_HIDDEN = 128, 2048


class SimCLRNetwork(ImageNetwork):
    """An encoder trained without labels; the projection that the loss sees is thrown away afterwards.

    What counts as alike is what the augmentation leaves alone, so it should be stronger than for training with
    labels. Where several processes train together, each compares the views of its own images.

    Args:
        backbone: Images (n, c, h, w) -> vectors (n, d), with an attribute `dim`.
        temperature: What cosines are divided by; None is `TEMPERATURE`.
    """

    views: ClassVar[int] = 2

    def __init__(self, backbone: nn.Module, *, temperature: float | None = None) -> None:
        super().__init__()
        self.backbone = backbone
        self.temperature = TEMPERATURE if temperature is None else temperature
        dim = int(backbone.dim)  # type: ignore[arg-type]
        hidden = min(max(dim, FEWEST_HIDDEN), MOST_HIDDEN)
        self.projection = nn.Sequential(
            nn.Linear(dim, hidden, bias=False),  # the normalisation after it would undo a bias
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, PROJECTED, bias=False),
        )

    @classmethod
    def from_config(cls, backbone: nn.Module, config: TrainingConfig, n_classes: int) -> Self:
        """The network a configuration asks for; it has no use for the classes."""
        return cls(backbone, temperature=config.temperature)

    def forward(self, images: Tensor) -> Tensor:
        """Projected vectors float32 (n, 128) of images (n, c, h, w)."""
        vectors: Tensor = self.backbone(images).float()
        with torch.autocast(images.device.type, enabled=False):
            projected: Tensor = self.projection(vectors)
        return projected

    def loss(self, images: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        """NT-Xent over all views, and the share of views whose most similar other view is their partner.

        Args:
            images: (2 n, c, h, w); view v of image i is row v * n + i.
            targets: (n,) or (n, n_classes); only their number counts.

        Returns:
            A scalar to differentiate, and an accuracy in [0, 1].

        Raises:
            ValueError: Not two views for each target.
        """
        if len(images) != self.views * len(targets):
            raise ValueError(
                f"{len(targets)} images need {self.views * len(targets)} views, two of each; got {len(images)}."
            )
        return nt_xent(self(images), temperature=self.temperature)


def nt_xent(projected: Tensor, *, temperature: float = TEMPERATURE) -> tuple[Tensor, float]:
    """The normalised temperature-scaled cross-entropy of algorithm 1, and the share of views nearest their partner.

    pytorch-metric-learning's `NTXentLoss` gives the same number, but holds every positive pair against every negative:
    memory grows with the cube of the batch, here with its square.

    Args:
        projected: float32 (2 n, d); view v of image i is row v * n + i.
        temperature: What cosines are divided by.

    Returns:
        A scalar to differentiate, and an accuracy in [0, 1].
    """
    n = len(projected) // 2
    with torch.autocast(projected.device.type, enabled=False):
        unit = functional.normalize(projected)
        logits = unit @ unit.T / temperature  # (2 n, 2 n)
        itself = torch.eye(len(unit), dtype=torch.bool, device=unit.device)
        logits = logits.masked_fill(itself, -torch.inf)  # a view is no candidate for itself
        partner = torch.arange(len(unit), device=unit.device).roll(n)  # row i of the one view, row n + i of the other
        loss = functional.cross_entropy(logits, partner)
    right = logits.detach().argmax(1) == partner
    return loss, int(right.sum()) / len(right)
