"""`build_backbone`: the networks from image to vector, by name, and nothing imported but the one that is asked for."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from importlib import import_module
from typing import Any

import torch

from .backbone import MAX_IN_CHANNELS, Backbone, check_whole
from .errors import EncoderError, UnknownEncoder

# The registry: every name that a checkpoint, a command line or `build_backbone` may use, and the module and function
# that build it. Each function takes keywords only, in_channels among them.
BACKBONES: dict[str, tuple[str, str]] = {
    "conv4": ("conv4", "conv4"),
    "resnet12": ("resnet12", "resnet12"),
    "resnet18": ("monai_backbone", "resnet18"),
    "resnet50": ("monai_backbone", "resnet50"),
    "densenet121": ("monai_backbone", "densenet121"),
    "vit": ("vit", "vit"),
    "monai": ("monai_backbone", "monai"),
    "transformers": ("transformers_backbone", "from_config"),
}

# Prefixes: what follows them names a network of MONAI, or pretrained weights in transformers' format.
MONAI_PREFIX, PRETRAINED_PREFIX = "monai:", "hf:"


def build_backbone(name: str, *, in_channels: int | None = None, seed: int | None = None, **config: Any) -> Backbone:
    """Build a network by name, with fresh weights, or with pretrained ones for "hf:".

    Args:
        name: One of `BACKBONES`; "monai:<class>" for a network of `monai.networks.nets`; or "hf:<id or folder>" for a
            vision model of transformers with its weights.
        in_channels: Channels of the images, 1 for grey; None takes as many as the network takes by itself: 1, or what
            the configuration of a transformers model says.
        seed: Makes the weights reproducible without touching torch's global generator; None draws from that.
        **config: Keywords of the function of that name, such as width=32 for "conv4".

    Returns:
        A network with the attributes `dim`, `in_channels`, `map_shape`, `preprocess_hint` and `backbone_config`.

    Raises:
        EncoderError: Unknown name or keyword, a keyword that is missing, or a value out of range.

    Example:
        >>> build_backbone("conv4", width=32, pooling="flatten", image_size=28, pools=2, seed=0).map_shape
        (32, 7, 7)
    """
    if in_channels is not None:
        check_whole("in_channels", in_channels, 1, MAX_IN_CHANNELS)
    given: dict[str, Any] = {}  # what the prefix says, and no keyword may
    if isinstance(name, str) and name.startswith(PRETRAINED_PREFIX):
        given = {"source": name.removeprefix(PRETRAINED_PREFIX)}
        factory = _factory("transformers_backbone", "from_pretrained")
    else:
        shown = name
        if isinstance(name, str) and name.startswith(MONAI_PREFIX):
            name, given = "monai", {"network": name.removeprefix(MONAI_PREFIX)}
        if not isinstance(name, str) or name not in BACKBONES:
            raise _unknown(shown)
        factory = _factory(*BACKBONES[name])
    _check_keywords(name, factory, given, config)
    arguments = given | copy.deepcopy(config)
    if in_channels is not None:
        arguments["in_channels"] = in_channels
    if seed is None:
        network = factory(**arguments)
    else:
        with torch.random.fork_rng(devices=[]):  # puts the global generator back as it was
            torch.manual_seed(seed)
            network = factory(**arguments)
    if not network.backbone_config:  # the others know better what builds them again
        network.backbone_config = {"name": name, **arguments, "in_channels": network.in_channels}
    return network


def _factory(module: str, function: str) -> Callable[..., Backbone]:
    factory: Callable[..., Backbone] = getattr(import_module(f".{module}", __package__), function)
    return factory


def _unknown(name: object) -> UnknownEncoder:
    close = get_close_matches(str(name), BACKBONES, n=1)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    known = f'{", ".join(BACKBONES)}, "{MONAI_PREFIX}<class>" and "{PRETRAINED_PREFIX}<id or folder>"'
    return UnknownEncoder(f"There is no backbone {name!r}; there are {known}.{hint}")


def _check_keywords(
    name: str, factory: Callable[..., Backbone], given: Mapping[str, Any], config: Mapping[str, Any]
) -> None:
    """Raise an EncoderError for a keyword the factory does not take, or one it lacks."""
    parameters = {
        keyword: parameter
        for keyword, parameter in inspect.signature(factory).parameters.items()
        if keyword != "in_channels" and keyword not in given
    }
    for keyword in config:
        if keyword not in parameters:
            close = get_close_matches(keyword, parameters, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            takes = ", ".join(parameters) or "no options"
            raise EncoderError(f"Backbone {name!r} has no option {keyword!r}; it takes {takes}.{hint}")
    for keyword, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and keyword not in config:
            raise EncoderError(f"Backbone {name!r} needs the option {keyword!r}.")
