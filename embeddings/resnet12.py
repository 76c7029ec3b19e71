"""ResNet-12, the standard network of few-shot learning (TADAM, arXiv 1805.10123; MetaOptNet, arXiv 1904.03758)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional

from .backbone import MAX_WIDTH, Backbone, Pooling, check_share, check_whole, pooled_backbone
from .errors import EncoderError

# Slope of the LeakyReLU below zero, as in both papers.
SLOPE = 0.1

# Channels of the four blocks over those of the first, in halves: 64-160-320-640 as in MetaOptNet.
_HALVES = (2, 5, 10, 20)

# DropBlock follows the last two blocks, as in MetaOptNet.
_DROPPED_BLOCKS = 2


class DropBlock(nn.Module):
    """Set squares of the feature map to zero while training, and scale up what is left (arXiv 1810.12890).

    Args:
        share: About the share of the map that is dropped.
        block_size: Side of the squares; smaller maps drop squares of their own smaller side.
    """

    def __init__(self, share: float, block_size: int) -> None:
        """Keep both numbers; there is nothing to learn."""
        super().__init__()
        self.share = share
        self.block_size = block_size

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Drop squares of (n, c, h, w), in each channel others; the identity in evaluation mode."""
        if not self.training or self.share == 0:
            return features
        n, channels, height, width = features.shape
        side = min(self.block_size, height, width)
        corners = (height - side + 1) * (width - side + 1)  # where a whole square fits
        rate = min(1.0, self.share * height * width / (side**2 * corners))  # gamma, equation 1 of the paper
        drawn = torch.rand(n, channels, height - side + 1, width - side + 1, device=features.device) < rate
        padded = functional.pad(drawn.float(), (side - 1,) * 4)
        kept = 1.0 - functional.max_pool2d(padded, side, stride=1)  # (n, c, h, w): 0 inside a square
        scale = kept.numel() / kept.sum().clamp(min=1.0)
        return features * (kept * scale).to(features.dtype)


class ResidualBlock(nn.Module):
    """Three 3 x 3 convolutions beside a 1 x 1 projection, then 2 x 2 max pooling: (n, c, h, w) to (n, d, h/2, w/2)."""

    def __init__(self, before: int, after: int, drop: nn.Module) -> None:
        """Build the layers with the initial weights of He et al. (arXiv 1502.01852)."""
        super().__init__()
        layers: list[nn.Module] = []
        for index in range(3):
            layers += [
                nn.Conv2d(after if index else before, after, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(after),
            ]
            if index < 2:
                layers.append(nn.LeakyReLU(SLOPE, inplace=True))
        self.path = nn.Sequential(*layers)
        self.shortcut = nn.Sequential(nn.Conv2d(before, after, kernel_size=1, bias=False), nn.BatchNorm2d(after))
        # pooling first: it commutes with the LeakyReLU, which then has a quarter of the work
        self.end = nn.Sequential(nn.MaxPool2d(2), nn.LeakyReLU(SLOPE, inplace=True), drop)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, a=SLOPE, mode="fan_out", nonlinearity="leaky_relu")

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Map (n, c, h, w) to (n, d, h // 2, w // 2)."""
        halved: torch.Tensor = self.end(self.path(features) + self.shortcut(features))
        return halved


def resnet12(
    *,
    in_channels: int = 1,
    width: int = 64,
    widths: Sequence[int] | None = None,
    pooling: Pooling = "mean",
    image_size: int | None = None,
    dropblock: float = 0.0,
    block_size: int = 5,
) -> Backbone:
    """Build ResNet-12: four residual blocks of three convolutions each, every block halving height and width.

    Args:
        in_channels: Channels of the image.
        width: Channels of the first block; the others have 2.5, 5 and 10 times as many (rounded down). 64 gives
            64-160-320-640 (arXiv 1904.03758), a narrower one suits a CPU.
        widths: The channels of the four blocks, instead of `width`: [64, 128, 256, 512] as in arXiv 1805.10123.
        pooling: "mean" or "max" over the last feature map, or "flatten" to keep it.
        image_size: Side of the square images in pixels; needed by "flatten", whose `dim` depends on it.
        dropblock: Share of the last two blocks' maps that DropBlock drops while training; 0 is off.
        block_size: Side of the squares that it drops.

    Returns:
        A network with dim = the last width, or that x (image_size >> 4)^2 for "flatten".

    Raises:
        EncoderError: A value out of range.
    """
    check_share("dropblock", dropblock)
    check_whole("block_size", block_size, 1, 64)
    if widths is None:
        check_whole("width", width, 1, MAX_WIDTH * _HALVES[0] // _HALVES[-1])
        widths = [width * halves // 2 for halves in _HALVES]
    elif isinstance(widths, str) or not isinstance(widths, Sequence) or len(widths) != len(_HALVES):
        raise EncoderError(f"widths must be four numbers of channels, one per block; got {widths!r}.")
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(zip([in_channels, *widths], widths, strict=False)):
        check_whole("widths", after, 1, MAX_WIDTH)
        dropped = dropblock > 0 and index >= len(widths) - _DROPPED_BLOCKS
        drop = DropBlock(dropblock, block_size) if dropped else nn.Identity()
        layers.append(ResidualBlock(before, after, drop))
    return pooled_backbone(
        layers, widths[-1], len(widths), pooling=pooling, image_size=image_size, in_channels=in_channels
    )
