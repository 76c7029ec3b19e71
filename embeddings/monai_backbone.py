"""Networks of MONAI in 2D (arXiv 2211.02701) as backbones: three by a name of their own, the others by class name."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from .backbone import Backbone, check_whole
from .errors import EncoderError, UnknownEncoder
from .probing import bounded_size, check_repeats, drop_unused, probe_images, strip_classifier
from .quiet import quiet

# The largest whole number, and the most values, among the options of a network of MONAI.
MAX_OPTION = 4096
MAX_OPTIONS = 256

# The largest side in pixels of the image that shows how a network makes vectors.
MAX_PROBE_SIDE = 512

# Arguments that the wrapper sets, by their names in MONAI.
_CHANNELS = ("in_channels", "n_input_channels")
_SIZES = ("img_size", "image_size", "input_image_size")

# Words in the names of arguments that load weights from elsewhere.
_OUTSIDE = ("pretrained", "weights", "url", "path", "file", "repo")


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
    *, in_channels: int = 1, network: str, options: Mapping[str, Any] | None = None, image_size: int = 64
) -> Backbone:
    """Build any 2D network of `monai.networks.nets` by its class name, with fresh weights, as a backbone.

    What the network makes becomes one vector: of several outputs the first, of several feature maps the smallest; of a
    map (n, c, h, w) the mean over the pixels; of tokens (n, t, d) the mean over them. Where it ends in a linear
    classifier, the vector is what the classifier would have seen.

    Args:
        in_channels: Channels of the image.
        network: The class, as "EfficientNetBN".
        options: Its other arguments, of plain JSON types, as {"model_name": "efficientnet-b0"}. `spatial_dims`, the
            input channels, the image's size and `pretrained=False` are filled in.
        image_size: Side of the square images in pixels, for networks that must know it; others take any.

    Returns:
        The network; its dim is found by sending an image through it.

    Raises:
        EncoderError: No such class, options it does not take, or no vector per image.
    """
    check_whole("image_size", image_size, 1, MAX_PROBE_SIDE)
    plain = _plain_options(options)
    kind = _class_of(network)
    arguments = _arguments(network, kind, plain, in_channels, image_size)
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


def _class_of(network: str) -> Callable[..., nn.Module]:
    with quiet():
        from monai.networks import nets
    known = {name: kind for name, kind in vars(nets).items() if inspect.isclass(kind) and issubclass(kind, nn.Module)}
    if network not in known:
        close = get_close_matches(str(network), known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UnknownEncoder(f"There is no network {network!r} in monai.networks.nets.{hint}")
    return known[network]


def _arguments(
    network: str, kind: Callable[..., nn.Module], options: dict[str, Any], in_channels: int, image_size: int
) -> dict[str, Any]:
    """Return all arguments of a class of MONAI: the options, and what the wrapper sets itself."""
    parameters = inspect.signature(kind).parameters
    if "path_or_repo_id" in parameters:
        raise EncoderError(f"MONAI's {network} loads weights from elsewhere, which a backbone never does.")
    further = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
    names = [name for name, parameter in parameters.items() if parameter.kind is not inspect.Parameter.VAR_KEYWORD]
    takes = [name for name in names if name not in ("spatial_dims", *_CHANNELS) and not _loads(name)]
    for option in options:
        if _loads(option) or option in ("spatial_dims", *_CHANNELS):
            raise EncoderError(f"Leave {option!r} out of the options of {network}: the backbone sets it or forbids it.")
        if option not in takes and not further:
            close = get_close_matches(option, takes, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise EncoderError(f"MONAI's {network} has no option {option!r}; it takes {', '.join(takes)}.{hint}")
    arguments: dict[str, Any] = {"spatial_dims": 2} if "spatial_dims" in names or further else {}
    channels = next((name for name in _CHANNELS if name in names), "in_channels" if further else None)
    if channels is not None:
        arguments[channels] = in_channels
    if "pretrained" in names:
        arguments["pretrained"] = False
    arguments |= {name: (image_size, image_size) for name in _SIZES if name in names}
    if "in_shape" in names:
        arguments["in_shape"] = (in_channels, image_size, image_size)
    for name in ("out_channels", "num_classes"):  # of the classifier that is cut off
        if name in names and parameters[name].default is inspect.Parameter.empty:
            arguments[name] = 1
    arguments |= options
    lacking = [name for name in takes if parameters[name].default is inspect.Parameter.empty and name not in arguments]
    if lacking:
        raise EncoderError(f"MONAI's {network} needs the options {', '.join(lacking)}; got {sorted(options)}.")
    return arguments


def _plain_options(options: object) -> dict[str, Any]:
    """Return a copy of plain JSON types within the bounds."""
    if options is None:
        return {}
    try:
        copied = json.loads(json.dumps(options, allow_nan=False)) if isinstance(options, Mapping) else None
    except (TypeError, ValueError, RecursionError):
        copied = None
    if not isinstance(copied, dict):
        raise EncoderError(f"options must be a dictionary of plain JSON types; got {options!r}.")
    waiting: list[Any] = [copied]
    seen = 0
    while waiting:
        item = waiting.pop()
        seen += 1
        if isinstance(item, dict | list):
            waiting += item.values() if isinstance(item, dict) else item
        elif isinstance(item, int | float) and abs(item) > MAX_OPTION:
            raise EncoderError(f"Numbers among the options must lie within ±{MAX_OPTION}; got {item}.")
    if seen > MAX_OPTIONS:
        raise EncoderError(f"There may be at most {MAX_OPTIONS} values among the options; got {seen}.")
    return copied


def _loads(name: str) -> bool:
    return any(word in name for word in _OUTSIDE)


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
