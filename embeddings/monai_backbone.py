"""Networks of MONAI in 2D (arXiv 2211.02701) as backbones: three by a name of their own, the others by class name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from .backbone import Backbone, check_whole
from .backbone_names import MONAI_PREFIX
from .errors import EncoderError
from .monai_options import COUNTS, arguments_of, class_of, plain_options
from .probing import bounded_size, check_repeats, drop_unused, probe_images, strip_classifier
from .quiet import quiet

# The largest side in pixels of the image that shows how a network makes vectors.
MAX_PROBE_SIDE = 512


def densenet121(*, in_channels: int = 1) -> Backbone:
    """Build MONAI's 2D DenseNet-121 (arXiv 1608.06993) without its last layer: 1,024 globally averaged features."""
    with quiet():
        from monai.networks.nets.densenet import DenseNet121
    network: Any = DenseNet121(spatial_dims=2, in_channels=in_channels, out_channels=1)
    dim = int(network.class_layers.out.in_features)
    network.class_layers.out = nn.Identity()
    return Backbone(network, dim, in_channels=in_channels)


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


def monai(
    *,
    in_channels: int = 1,
    network: str,
    options: Mapping[str, Any] | None = None,
    image_size: int = 64,
    **further: Any,
) -> Backbone:
    """Build any 2D network of `monai.networks.nets` by its class name, with fresh weights, as a backbone.

    What the network makes becomes one vector: of several outputs the first, of several feature maps the smallest; of a
    map (n, c, h, w) the mean over the pixels; of tokens (n, t, d) the mean over them. Where it ends in a linear
    classifier, the vector is what the classifier would have seen, and how many classes that had is forgotten.

    Args:
        in_channels: Channels of the image.
        network: The class, as "EfficientNetBN".
        options: Its other arguments, of plain JSON types, as {"model_name": "efficientnet-b0"}. `spatial_dims`, the
            input channels, the image's size and `pretrained=False` are filled in.
        image_size: Side of the square images in pixels, for networks that must know it; others take any.
        **further: More of its arguments, as model_name="efficientnet-b0".

    Returns:
        The network; its dim is found by sending an image through it, and its `backbone_config` holds all options that
        have an effect.

    Raises:
        EncoderError: No such class, options it does not take, or no vector per image.
    """
    check_whole("image_size", image_size, 1, MAX_PROBE_SIDE)
    plain = plain_options(options)
    twice = sorted(plain.keys() & further.keys())
    if twice:
        raise EncoderError(f"{MONAI_PREFIX}{network} got {twice[0]!r} twice, once among its options: leave one out.")
    plain |= plain_options(further)
    kind = class_of(network)
    before = torch.random.get_rng_state()
    backbone = _assembled(network, kind, plain, in_channels, image_size)
    idle = _idle_counts(backbone, network, kind, plain, in_channels, image_size)
    if idle:  # built again without them, since the classifier they size takes its share of the random numbers
        plain = {name: value for name, value in plain.items() if name not in idle}
        torch.random.set_rng_state(before)
        backbone = _assembled(network, kind, plain, in_channels, image_size)
    backbone.label = network
    backbone.backbone_config = {
        "name": "monai", "network": network, "options": plain, "image_size": image_size, "in_channels": in_channels,
    }  # fmt: skip
    return backbone


def _assembled(
    network: str, kind: Callable[..., nn.Module], plain: dict[str, Any], in_channels: int, image_size: int
) -> Backbone:
    """Build a network of MONAI, and find out how it makes vectors."""
    arguments = arguments_of(network, kind, plain, in_channels, image_size)
    what = f"MONAI's {network}"
    with quiet():
        try:
            # some constructors need values, which tensors on "meta" lack; most say their size there without any memory
            with suppress(RuntimeError), torch.device("meta"), bounded_size(what):
                kind(**arguments)
            with bounded_size(what):
                body = kind(**arguments).eval()
        except EncoderError:
            raise
        except Exception as error:  # each class complains in its own way, or not at all
            raise EncoderError(f"{what} cannot be built with options {plain}: {_one_line(error)}") from error
        images = probe_images(in_channels, image_size, image_size)
        wrapped = _FirstVectors(body, what, image_size)
        try:
            strip_classifier(body, images, _first_tensor)
            vectors = wrapped(images)
            with torch.no_grad():
                again = wrapped(images)
            check_repeats(what, vectors.detach(), again)
            drop_unused(body, vectors)
        except EncoderError:
            raise
        except Exception as error:
            raise EncoderError(
                f"{what} does not map images of {in_channels} x {image_size} x {image_size} to vectors: "
                f"{_one_line(error)}"
            ) from error
    dim = int(vectors.shape[1])
    if dim < 2:
        raise EncoderError(f"{what} makes {dim} number per image: name more output channels in its options.")
    return Backbone(wrapped.train(), dim, in_channels=in_channels)


def _idle_counts(
    backbone: Backbone,
    network: str,
    kind: Callable[..., nn.Module],
    plain: dict[str, Any],
    in_channels: int,
    image_size: int,
) -> list[str]:
    """Name the numbers of classes among the options that leave no trace: one more changes the shape of no weight."""
    shapes = _shapes(backbone)
    idle: list[str] = []
    for name in COUNTS:
        count = plain.get(name)
        if isinstance(count, bool) or not isinstance(count, int):
            continue
        with torch.random.fork_rng(devices=[]), suppress(EncoderError):
            other = _assembled(network, kind, plain | {name: count + 1}, in_channels, image_size)
            if _shapes(other) == shapes:
                idle.append(name)
    return idle


def _shapes(backbone: Backbone) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in backbone.state_dict().items()}


class _FirstVectors(nn.Module):
    """A network whose first output becomes vectors (n, d)."""

    def __init__(self, network: nn.Module, what: str, image_size: int) -> None:
        super().__init__()
        self.network = network
        self._what = what
        self._image_size = image_size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        try:
            made = _first_tensor(self.network(images))
        except (RuntimeError, ValueError) as error:
            size = tuple(images.shape[-2:])
            if size == (self._image_size, self._image_size) or isinstance(error, torch.OutOfMemoryError):
                raise
            raise EncoderError(
                f"{self._what} was built for images of {self._image_size} x {self._image_size} pixels and does not "
                f"take {size[0]} x {size[1]}: set its image_size."
            ) from error
        if made.ndim == 4:
            return made.mean(dim=(2, 3))  # (n, c, h, w)
        if made.ndim == 3:
            return made.mean(dim=1)  # (n, t, d)
        if made.ndim != 2:
            raise EncoderError(
                f"{self._what} makes {tuple(made.shape)} of one image, which is no vector, tokens or map."
            )
        return made


def _first_tensor(output: Any) -> torch.Tensor:
    """Take the first of several outputs; of several feature maps, as a pyramid has them, the smallest."""
    while isinstance(output, tuple | list | dict) and output:
        several = list(output.values()) if isinstance(output, dict) else list(output)
        maps = [item for item in several if isinstance(item, torch.Tensor) and item.ndim == 4]
        pyramid = len(maps) == len(several)
        output = min(maps, key=lambda item: item.shape[2] * item.shape[3]) if pyramid else several[0]
    if not isinstance(output, torch.Tensor):
        raise EncoderError(f"The network makes {type(output).__name__} of an image, no tensor.")
    return output


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _resnet(build: Callable[..., nn.Module], in_channels: int, stem_stride: int, *, dim: int) -> Backbone:
    check_whole("stem_stride", stem_stride, 1, 2)
    network = build(
        spatial_dims=2,
        n_input_channels=in_channels,
        conv1_t_stride=stem_stride,
        bias_downsample=False,
        feed_forward=False,
    )
    return Backbone(network, dim, in_channels=in_channels)
