"""Networks of MONAI by class name, and the arguments of their constructors: what may be asked for, and what is set."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any

from torch import nn

from .errors import EncoderError, UnknownEncoder
from .quiet import quiet

# The largest whole number, and the most values, among the options of a network of MONAI.
MAX_OPTION = 4096
MAX_OPTIONS = 256

# Arguments that the wrapper sets, by their names in MONAI.
_CHANNELS = ("in_channels", "n_input_channels")
_SIZES = ("img_size", "image_size", "input_image_size")

# Arguments that may be of the classifier that is cut off, by their names in MONAI.
COUNTS = ("out_channels", "num_classes")

# Words in the names of arguments that load weights from elsewhere.
_OUTSIDE = ("pretrained", "weights", "url", "path", "file", "repo")


def class_of(network: str) -> Callable[..., nn.Module]:
    """Return a class of `monai.networks.nets`; UnknownEncoder where there is none of that name."""
    with quiet():
        from monai.networks import nets
    known = {name: kind for name, kind in vars(nets).items() if inspect.isclass(kind) and issubclass(kind, nn.Module)}
    if network not in known:
        close = get_close_matches(str(network), known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise UnknownEncoder(f"There is no network {network!r} in monai.networks.nets.{hint}")
    return known[network]


def arguments_of(
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
            close = get_close_matches(option, [*takes, "image_size"], n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise EncoderError(f"MONAI's {network} has no option {option!r}; it takes {', '.join(takes)}.{hint}")
        if option in _SIZES and options[option] not in (image_size, [image_size, image_size]):
            raise EncoderError(
                f"{option!r} of {network} is the backbone's image_size, {image_size}: set that; "
                f"got {options[option]!r}."
            )
    arguments: dict[str, Any] = {"spatial_dims": 2} if "spatial_dims" in names or further else {}
    channels = next((name for name in _CHANNELS if name in names), "in_channels" if further else None)
    if channels is not None:
        arguments[channels] = in_channels
    if "pretrained" in names:
        arguments["pretrained"] = False
    arguments |= {name: (image_size, image_size) for name in _SIZES if name in names}
    if "in_shape" in names:
        arguments["in_shape"] = (in_channels, image_size, image_size)
    for name in COUNTS:
        if name in names and parameters[name].default is inspect.Parameter.empty:
            arguments[name] = 1
    arguments |= options
    lacking = [name for name in takes if parameters[name].default is inspect.Parameter.empty and name not in arguments]
    if lacking:
        raise EncoderError(f"MONAI's {network} needs the options {', '.join(lacking)}; got {sorted(options)}.")
    return arguments


def plain_options(options: object) -> dict[str, Any]:
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
