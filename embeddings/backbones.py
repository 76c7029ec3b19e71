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
from .backbone_names import BACKBONES as BACKBONES
from .backbone_names import MONAI_PREFIX, PRETRAINED_PREFIX
from .errors import EncoderError, UnknownEncoder


def build_backbone(name: str, *, in_channels: int | None = None, seed: int | None = None, **config: Any) -> Backbone:
    """Build a network by name, with fresh weights, or with pretrained ones for "hf:".

    Args:
        name: One of `BACKBONES`; "monai:<class>" for a network of `monai.networks.nets`; or "hf:<id or folder>" for a
            vision model of transformers with its weights.
        in_channels: Channels of the images, 1 for grey; None takes as many as the network takes by itself: 1, or what
            the configuration of a transformers model says.
        seed: Makes the weights reproducible without touching torch's global generator; None draws from that.
        **config: Keywords of the function of that name, such as width=32 for "conv4"; for "monai:<class>" those of the
            class too, such as patch_size=8 for "monai:ViT".

    Returns:
        A network with the attributes `dim`, `in_channels`, `label`, `map_shape`, `preprocess_hint` and
        `backbone_config`.

    Raises:
        EncoderError: Unknown name or keyword, a keyword that is missing, or a value out of range.

    Example:
        >>> build_backbone("conv4", width=32, pooling="flatten", image_size=28, pools=2, seed=0).map_shape
        (32, 7, 7)
    """
    if in_channels is not None:
        check_whole("in_channels", in_channels, 1, MAX_IN_CHANNELS)
    shown = name
    given: dict[str, Any] = {}  # what the prefix says, and no keyword may
    if isinstance(name, str) and name.startswith(PRETRAINED_PREFIX):
        given = {"source": name.removeprefix(PRETRAINED_PREFIX)}
        factory = _factory("transformers_backbone", "from_pretrained")
    else:
        if isinstance(name, str) and name.startswith(MONAI_PREFIX):
            name, given = "monai", {"network": name.removeprefix(MONAI_PREFIX)}
        if not isinstance(name, str) or name not in BACKBONES:
            raise _unknown(shown)
        factory = _factory(*BACKBONES[name])
    _check_keywords(shown, factory, given, config)
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
        network.label = name
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
    every = inspect.signature(factory).parameters
    parameters = {
        keyword: parameter
        for keyword, parameter in every.items()
        if keyword != "in_channels" and keyword not in given and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }
    further = len(parameters) < len([keyword for keyword in every if keyword not in ("in_channels", *given)])
    for keyword in config:
        if keyword in given:
            raise EncoderError(f"Backbone {name!r} says what its {keyword} is: leave {keyword!r} out of its options.")
        if keyword not in parameters and not further:
            close = get_close_matches(keyword, parameters, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            takes = ", ".join(parameters) or "no options"
            raise EncoderError(f"Backbone {name!r} has no option {keyword!r}; it takes {takes}.{hint}")
    for keyword, parameter in parameters.items():
        if parameter.default is inspect.Parameter.empty and keyword not in config:
            raise EncoderError(f"Backbone {name!r} needs the option {keyword!r}.")
