"""Networks from image to vector, by name: Conv-4 (Vinyals et al. 2016), and MONAI's DenseNet and ResNet in 2D."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any, Literal

import torch
from torch import nn

from .errors import EncoderError, UnknownEncoder
from .quiet import quiet

Pooling = Literal["mean", "max", "flatten"]

# Bounds on what a configuration may ask for, so that a crafted checkpoint cannot exhaust memory.
MAX_WIDTH = 2048
MAX_DEPTH = 8
MAX_IN_CHANNELS = 64


class Backbone(nn.Module):
    """A network from (n, C, H, W) to (n, dim) that remembers how it was built.

    Attributes:
        dim: Length of the vectors.
        backbone_config: The name and the arguments that `build_backbone` needs to build it again.
    """

    dim: int
    backbone_config: dict[str, Any]

    def __init__(self, body: nn.Module, dim: int) -> None:
        """Wrap `body`, which makes vectors of `dim`."""
        super().__init__()
        self.body = body
        self.dim = dim
        self.backbone_config = {}

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (n, C, H, W) to vectors (n, dim)."""
        vectors: torch.Tensor = self.body(images)
        return vectors


def conv4(
    *,
    in_channels: int = 1,
    width: int = 64,
    depth: int = 4,
    pooling: Pooling = "mean",
    image_size: int | None = None,
    stem_width: int | None = None,
) -> Backbone:
    """Build `depth` blocks of 3 x 3 convolution, batch normalisation, ReLU and 2 x 2 max pooling (arXiv 1606.04080).

    Args:
        in_channels: Channels of the image.
        width: Channels of every block.
        depth: Number of blocks; each halves height and width.
        pooling: "mean" or "max" over what is left of the image, or "flatten" to keep it (as in arXiv 1703.05175).
        image_size: Side of the square images in pixels; needed by "flatten", whose `dim` depends on it.
        stem_width: Channels of the first block, `width` by default. That block alone sees the full resolution and takes
            most of the time; with half its channels a training step takes less than half.

    Returns:
        A network with dim = width, or width x (image_size / 2^depth)^2 for "flatten".
    """
    _check_whole("width", width, 1, MAX_WIDTH)
    _check_whole("depth", depth, 1, MAX_DEPTH)
    if stem_width is not None:
        _check_whole("stem_width", stem_width, 1, MAX_WIDTH)
    widths = [width if stem_width is None or block else stem_width for block in range(depth)]
    layers: list[nn.Module] = []
    for before, after in zip([in_channels, *widths], widths, strict=False):
        layers += [
            nn.Conv2d(before, after, kernel_size=3, padding=1),
            nn.BatchNorm2d(after),
            nn.MaxPool2d(2),
            nn.ReLU(inplace=True),  # after the pooling, which it commutes with, it has a quarter of the work
        ]
    width = widths[-1]
    dim = width
    if pooling == "mean":
        layers.append(nn.AdaptiveAvgPool2d(1))
    elif pooling == "max":
        layers.append(nn.AdaptiveMaxPool2d(1))
    elif pooling == "flatten":
        if image_size is None:
            raise EncoderError('pooling="flatten" needs image_size, the side of the images in pixels, to know its dim.')
        _check_whole("image_size", image_size, 2**depth, 4096)
        dim = width * (image_size >> depth) ** 2
    else:
        raise EncoderError(f"pooling must be mean, max or flatten; got {pooling!r}.")
    layers.append(nn.Flatten())
    return Backbone(nn.Sequential(*layers), dim)


def densenet121(*, in_channels: int = 1) -> Backbone:
    """Build MONAI's 2D DenseNet-121 (arXiv 1608.06993) without its last layer: 1,024 globally averaged features."""
    with quiet():
        from monai.networks.nets.densenet import DenseNet121
    network: Any = DenseNet121(spatial_dims=2, in_channels=in_channels, out_channels=1)
    dim = int(network.class_layers.out.in_features)
    network.class_layers.out = nn.Identity()
    return Backbone(network, dim)


def resnet18(*, in_channels: int = 1, stem_stride: int = 2) -> Backbone:
    """Build MONAI's 2D ResNet-18 (arXiv 1512.03385) without its last layer: 512 globally averaged features.

    Args:
        in_channels: Channels of the image.
        stem_stride: Stride of the first convolution: 2 as in the paper, 1 (MONAI's own default) for small images.
    """
    with quiet():
        from monai.networks.nets.resnet import resnet18 as build
    return _resnet(build, in_channels, stem_stride, dim=512)


def resnet50(*, in_channels: int = 1, stem_stride: int = 2) -> Backbone:
    """Build MONAI's 2D ResNet-50 (arXiv 1512.03385) without its last layer: 2,048 globally averaged features.

    Args:
        in_channels: Channels of the image.
        stem_stride: Stride of the first convolution: 2 as in the paper, 1 (MONAI's own default) for small images.
    """
    with quiet():
        from monai.networks.nets.resnet import resnet50 as build
    return _resnet(build, in_channels, stem_stride, dim=2048)


def _resnet(build: Callable[..., nn.Module], in_channels: int, stem_stride: int, *, dim: int) -> Backbone:
    _check_whole("stem_stride", stem_stride, 1, 2)
    network = build(
        spatial_dims=2,
        n_input_channels=in_channels,
        conv1_t_stride=stem_stride,
        bias_downsample=False,
        feed_forward=False,
    )
    return Backbone(network, dim)


# The registry: every name that a checkpoint, a command line or `build_backbone` may use.
BACKBONES: dict[str, Callable[..., Backbone]] = {
    "conv4": conv4,
    "densenet121": densenet121,
    "resnet18": resnet18,
    "resnet50": resnet50,
}


def build_backbone(name: str, *, in_channels: int = 1, seed: int | None = None, **config: Any) -> Backbone:
    """Build a network by name, with fresh weights.

    Args:
        name: One of `BACKBONES`.
        in_channels: Channels of the images, 1 for grey.
        seed: Makes the weights reproducible without touching torch's global generator; None draws from that.
        **config: Keywords of the function of that name, such as width=32 for "conv4".

    Returns:
        A network with the attributes `dim` and `backbone_config`.

    Raises:
        EncoderError: Unknown name or keyword, or a value out of range.
    """
    factory = BACKBONES.get(name) if isinstance(name, str) else None
    if factory is None:
        close = get_close_matches(str(name), BACKBONES, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UnknownEncoder(f"There is no backbone {name!r}; there are {', '.join(BACKBONES)}.{hint}")
    allowed = [keyword for keyword in inspect.signature(factory).parameters if keyword != "in_channels"]
    for keyword in config:
        if keyword not in allowed:
            close = get_close_matches(keyword, allowed, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            takes = ", ".join(allowed) or "no options"
            raise EncoderError(f"Backbone {name!r} has no option {keyword!r}; it takes {takes}.{hint}")
    _check_whole("in_channels", in_channels, 1, MAX_IN_CHANNELS)
    if seed is None:
        network = factory(in_channels=in_channels, **config)
    else:
        with torch.random.fork_rng(devices=[]):  # puts the global generator back as it was
            torch.manual_seed(seed)
            network = factory(in_channels=in_channels, **config)
    network.backbone_config = {"name": name, "in_channels": in_channels, **config}
    return network


def _check_whole(name: str, value: object, low: int, high: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise EncoderError(f"{name} must be a whole number from {low} to {high}; got {value!r}.")
