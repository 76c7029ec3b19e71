"""Backbone: a network from image to vector that remembers how it was built, so that a checkpoint can build it again."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import nn

from .errors import EncoderError

Pooling = Literal["mean", "max", "flatten"]

# Bounds on what a configuration may ask for, so that a crafted checkpoint cannot exhaust memory.
MAX_WIDTH = 2048
MAX_DEPTH = 8
MAX_IN_CHANNELS = 64
MAX_IMAGE_SIZE = 4096


class Backbone(nn.Module):
    """A network from (n, C, H, W) to (n, dim) that remembers how it was built.

    Attributes:
        dim: Length of the vectors.
        label: What people call it: "conv4"; the class of a network of MONAI, the model_type of one of transformers.
        in_channels: C, the channels of the images.
        map_shape: (channels, height, width) of the feature map that was flattened into the vector, row by row; None
            where the vector is no flattened map.
        preprocess_hint: The fields of `Preprocess` (size, fit, mean, std) that its weights were trained with; None
            where they are fresh.
        backbone_config: The name and the arguments that `build_backbone` needs to build it again.
    """

    dim: int
    label: str
    in_channels: int
    map_shape: tuple[int, int, int] | None
    preprocess_hint: dict[str, Any] | None
    backbone_config: dict[str, Any]

    def __init__(
        self, body: nn.Module, dim: int, *, in_channels: int = 1, map_shape: tuple[int, int, int] | None = None
    ) -> None:
        """Wrap `body`, which makes vectors of `dim`."""
        super().__init__()
        self.body = body
        self.dim = dim
        self.label = type(body).__name__  # until build_backbone knows better
        self.in_channels = in_channels
        self.map_shape = map_shape
        self.preprocess_hint = None
        self.backbone_config = {}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (n, C, H, W) to vectors (n, dim)."""
        vectors: torch.Tensor = self.body(images)
        return vectors


def pooled_backbone(
    layers: list[nn.Module], width: int, halvings: int, *, pooling: Pooling, image_size: int | None, in_channels: int
) -> Backbone:
    """End convolutions in a vector, by a mean, a maximum or the whole feature map.

    Args:
        layers: From (n, in_channels, H, W) to (n, width, H >> halvings, W >> halvings).
        width: Channels of the feature map.
        halvings: How often the layers halve height and width.
        pooling: "mean" or "max" over the feature map, or "flatten" to keep it.
        image_size: Side of the square images in pixels; needed by "flatten", whose `dim` depends on it.
        in_channels: Channels of the images.

    Returns:
        The network, with `map_shape` for "flatten".

    Raises:
        EncoderError: Another pooling, or "flatten" without a side that leaves at least one pixel.
    """
    if pooling not in get_args(Pooling):
        raise EncoderError(f"pooling must be mean, max or flatten; got {pooling!r}.")
    if pooling != "flatten":
        pool = nn.AdaptiveAvgPool2d(1) if pooling == "mean" else nn.AdaptiveMaxPool2d(1)
        return Backbone(nn.Sequential(*layers, pool, nn.Flatten()), width, in_channels=in_channels)
    if image_size is None:
        raise EncoderError('pooling="flatten" needs image_size, the side of the images in pixels, to know its dim.')
    check_whole("image_size", image_size, 2**halvings, MAX_IMAGE_SIZE)
    side = image_size >> halvings
    shape = (width, side, side)
    return Backbone(nn.Sequential(*layers, nn.Flatten()), width * side * side, in_channels=in_channels, map_shape=shape)


def check_whole(name: str, value: object, low: int, high: int) -> None:
    """Raise an EncoderError unless `value` is a whole number from `low` to `high`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise EncoderError(f"{name} must be a whole number from {low} to {high}; got {value!r}.")


def check_share(name: str, value: object) -> None:
    """Raise an EncoderError unless `value` is a number from 0 to below 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise EncoderError(f"{name} must be a number from 0 to below 1; got {value!r}.")
