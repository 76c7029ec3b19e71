"""Configurations of transformers' vision models, as plain JSON that cannot fetch anything from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .errors import EncoderError
from .transformers_encoder import _NOT_IN_FINGERPRINT

# Settings by which a configuration could fetch weights or code from elsewhere, refused wherever they are set.
_REFUSED = {
    "attn_implementation", "_attn_implementation", "experts_implementation", "_experts_implementation", "backbone",
    "backbone_config", "quantization_config", "use_pretrained_backbone", "use_timm_backbone",
}  # fmt: skip

# Settings that no vector depends on: where the model came from, and names of classes.
_DROPPED = _NOT_IN_FINGERPRINT | {"name_or_path", "id2label", "label2id", "num_labels"}

# The largest number in a configuration; vocabularies of text models count.
MAX_SETTING = 1_000_000


def vision_types() -> set[str]:
    """Return the model types of transformers that make features of images with transformers' own code."""
    from transformers.models.auto import modeling_auto as auto

    towers = {name for name in auto.MODEL_MAPPING_NAMES if name.endswith("_vision_model")}
    types = {*auto.MODEL_FOR_IMAGE_MAPPING_NAMES, *auto.MODEL_FOR_ZERO_SHOT_IMAGE_CLASSIFICATION_MAPPING_NAMES, *towers}
    return {name for name in types if not name.startswith("timm")}


def plain_config(config: object) -> dict[str, Any]:
    """Return a copy of a configuration, of plain JSON types, without provenance and within the bounds."""
    try:
        copied = json.loads(json.dumps(config)) if isinstance(config, Mapping) else None
    except (TypeError, ValueError, RecursionError):
        copied = None
    if not isinstance(copied, dict):
        raise EncoderError(f"config must be a dictionary of plain JSON types, as in a config.json; got {config!r}.")
    waiting: list[Any] = [copied]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            for key in [key for key in item if key in _DROPPED or (key in _REFUSED and not item[key])]:
                del item[key]
            if refused := sorted(_REFUSED & set(item)):
                raise EncoderError(f"A backbone's config must not set {refused[0]!r}.")
            waiting += item.values()
        elif isinstance(item, list):
            waiting += item
        elif isinstance(item, int | float) and abs(item) > MAX_SETTING:
            raise EncoderError(f"Numbers in a backbone's config must lie within ±{MAX_SETTING:,}; got {item}.")
    return copied


def sides(value: object) -> tuple[int, int] | None:
    """Return height and width of a setting that is one side, both, or absent."""
    if isinstance(value, int):
        return (value, value)
    if isinstance(value, list | tuple) and len(value) == 2 and all(isinstance(side, int) for side in value):
        return (int(value[0]), int(value[1]))
    return None
