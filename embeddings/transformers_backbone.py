"""Vision models of transformers as backbones that can be trained on: from a configuration, or with their weights."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from .backbone import Backbone
from .errors import EncoderError
from .preprocess import Preprocess
from .probing import bounded_size, check_repeats, drop_unused, probe_images
from .quiet import quiet
from .torch_encoder import TorchEncoder
from .transformers_config import plain_config, sides, vision_types
from .transformers_encoder import (
    TransformersEncoder,
    _first_line,
    _mean_of_patches,
    _silent_transformers,
)

# How a model's output becomes one vector; the first three as in `TransformersEncoder`, "cls" is the class token.
POOLINGS = ("image_features", "pooler", "mean", "cls")

# Pixels a side of the probe for a network that takes images of any size; pixels a side, and patches, of the largest.
PROBE_SIDE = 64
MAX_PROBE_SIDE = 1024
MAX_PROBE_PATCHES = 2**16


class VisionModel(nn.Module):
    """A vision model of transformers whose output is pooled to vectors (n, d)."""

    def __init__(self, model: nn.Module, pooling: str) -> None:
        """Keep the model and one of `POOLINGS`."""
        super().__init__()
        self.model = model
        self.pooling = pooling
        configuration: Any = model.config
        vision = getattr(configuration, "vision_config", configuration)
        self._size = sides(getattr(vision, "image_size", None))
        self._patch = sides(getattr(vision, "patch_size", None))
        call: Any = getattr(model, "get_image_features" if pooling == "image_features" else "forward")
        self._interpolates = "interpolate_pos_encoding" in inspect.signature(call).parameters

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images (n, C, H, W) to vectors; position embeddings are interpolated for sizes they were not made for."""
        size = (int(images.shape[-2]), int(images.shape[-1]))
        if self._patch is not None and (size[0] < self._patch[0] or size[1] < self._patch[1]):
            raise EncoderError(
                f"Images must be at least one patch of {self._patch[0]} x {self._patch[1]} pixels; "
                f"got {size[0]} x {size[1]}."
            )
        options = {"interpolate_pos_encoding": True} if self._interpolates and size != self._size else {}
        model: Any = self.model
        if self.pooling == "image_features":
            features = model.get_image_features(pixel_values=images, **options)
            made = features if isinstance(features, torch.Tensor) else features.pooler_output
        else:
            output = model(pixel_values=images, **options)
            if self.pooling == "pooler":
                made = output.pooler_output.flatten(1)
            elif self.pooling == "cls":
                made = output.last_hidden_state[:, 0]
            else:
                made = _mean_of_patches(output.last_hidden_state, size, self._patch)
        vectors: torch.Tensor = made
        return vectors


def from_config(*, in_channels: int | None = None, config: Mapping[str, Any], pooling: str | None = None) -> Backbone:
    """Build a vision model of transformers from its configuration, with fresh weights and without any download.

    Args:
        in_channels: Channels of the image; None takes what the configuration says.
        config: What a config.json holds: {"model_type": "vit", "hidden_size": 192, ...}.
        pooling: One of `POOLINGS`; None takes the model's own.

    Returns:
        The network; its `backbone_config` holds the whole configuration.

    Raises:
        EncoderError: No vision model, settings that would fetch something from elsewhere, or too large a model.
    """
    plain = plain_config(config)
    name = str(plain.get("model_type"))
    what = f"The transformers model {name!r}"
    with quiet(), _silent_transformers():
        from transformers import AutoModel
        from transformers.models.auto.configuration_auto import CONFIG_MAPPING

        known = vision_types()
        if name not in known:
            close = get_close_matches(name, known, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise EncoderError(
                "config must name a vision model of transformers as its model_type; "
                f"got {plain.get('model_type')!r}.{hint}"
            )
        build: Any = AutoModel.from_config
        try:
            configuration = CONFIG_MAPPING[name].from_dict(copy.deepcopy(plain))
            _set_channels(configuration, plain, in_channels)
            with torch.device("meta"), bounded_size(what):  # only the sizes, no memory
                build(copy.deepcopy(configuration), dtype=torch.float32, trust_remote_code=False)
            model = build(configuration, dtype=torch.float32, trust_remote_code=False)
        except EncoderError:
            raise
        except Exception as error:  # each architecture complains in its own way
            raise EncoderError(f"{what} cannot be built from its config: {_first_line(error)}") from error
    return _assemble(model, pooling, what, in_channels, asked=plain)


def from_pretrained(*, source: str, in_channels: int | None = None, pooling: str | None = None) -> Backbone:
    """Load a vision model of transformers with its weights, as a network to be trained on.

    Args:
        source: A hub id or a folder, see `TransformersEncoder`.
        in_channels: Channels of the image; another number than the model's is refused.
        pooling: One of `POOLINGS` that the model has weights for; None takes the one that `TransformersEncoder` takes.

    Returns:
        The network with `preprocess_hint`. Its `backbone_config` builds it again from the "transformers" entry of the
        registry: neither folder nor hub is needed to load a checkpoint trained from it.

    Raises:
        EncoderError: It cannot be loaded, is of no kind that `from_config` builds, or has no such pooling.
    """
    return _backbone_of(TransformersEncoder(source, device="cpu"), in_channels=in_channels, pooling=pooling)


def trainable_from(encoder: TransformersEncoder, *, device: str = "auto") -> TorchEncoder:
    """Make a torch encoder, whose network can be trained on and saved, of a transformers encoder; that one is kept.

    Args:
        encoder: As `load_encoder("hf:...")` makes it.
        device: "auto" takes CUDA where there is one, else the CPU.

    Returns:
        The same network and pooling, behind the `Preprocess` nearest to the model's image processor. Vectors differ
        from the encoder's by how the two resample and round grey levels.

    Raises:
        EncoderError: The model is of no kind that `from_config` builds.
    """
    backbone = _backbone_of(encoder)
    try:
        preprocess = Preprocess(channels=3 if backbone.in_channels == 3 else 1, **(backbone.preprocess_hint or {}))
    except ValueError as error:
        raise EncoderError(f"The image processor of {encoder.name!r} has no counterpart here: {error}") from error
    return TorchEncoder(backbone, preprocess, name=encoder.name, device=device)


def _backbone_of(
    encoder: TransformersEncoder, *, in_channels: int | None = None, pooling: str | None = None
) -> Backbone:
    what = f"The model {encoder.name!r}"
    own = {encoder.pooling} if encoder.pooling == "image_features" else {encoder.pooling, "mean", "cls"}
    if pooling is not None and pooling not in own:
        raise EncoderError(f"{what} can be pooled by {', '.join(sorted(own))}; got {pooling!r}.")
    model: Any = copy.deepcopy(encoder.network).cpu().requires_grad_(True)
    if model.config.model_type not in vision_types():
        raise EncoderError(f"{what} is of the kind {model.config.model_type!r}, which cannot be trained on here.")
    backbone = _assemble(model, pooling or encoder.pooling, what, in_channels)
    backbone.preprocess_hint = _preprocess_of(encoder)
    return backbone


def _assemble(
    model: nn.Module, pooling: str | None, what: str, in_channels: int | None, *, asked: Mapping[str, Any] | None = None
) -> Backbone:
    """Find out how a model makes vectors, take out what they do not need, and say what builds it again."""
    configuration: Any = model.config
    filled = plain_config(json.loads(configuration.to_json_string(use_diff=False)))
    plain = _merged(filled, asked or {})  # what was asked for wins: some models change their configuration
    model.eval()
    convolution = next((layer for layer in model.modules() if isinstance(layer, nn.Conv2d)), None)
    vision = getattr(configuration, "vision_config", configuration)
    channels = int(getattr(vision, "num_channels", 3)) if convolution is None else convolution.in_channels
    if in_channels not in (None, channels):
        raise EncoderError(f"{what} takes images of {channels} channels; got in_channels={in_channels}.")
    images = probe_images(channels, *_probe_size(vision, what))
    with quiet():
        try:
            chosen = pooling or _own_pooling(model, images)
            if chosen not in POOLINGS:
                raise EncoderError(f"pooling must be {', '.join(POOLINGS[:-1])} or {POOLINGS[-1]}; got {chosen!r}.")
            if chosen == "cls":
                _check_class_token(model, images, what)
            body = VisionModel(model, chosen)
            vectors = body(images)
            drop_unused(model, vectors)
            with torch.no_grad():
                check_repeats(what, vectors.detach(), body(images))
        except EncoderError:
            raise
        except Exception as error:  # each architecture complains in its own way
            raise EncoderError(f"{what} makes no vectors of images by {pooling!r}: {_first_line(error)}") from error
    backbone = Backbone(body.train(), int(vectors.shape[1]), in_channels=channels)
    backbone.label = str(plain["model_type"])
    backbone.backbone_config = {"name": "transformers", "in_channels": channels, "config": plain, "pooling": chosen}
    return backbone


def _probe_size(vision: Any, what: str) -> tuple[int, int]:
    """Choose the size of the image that shows how a model makes vectors."""
    size, patch = sides(getattr(vision, "image_size", None)), sides(getattr(vision, "patch_size", None))
    if size is None or patch is None:  # no position embeddings: any size will do
        return (PROBE_SIDE, PROBE_SIDE)
    if (
        min(*size, *patch) < 1
        or max(size) > MAX_PROBE_SIDE
        or size[0] * size[1] > MAX_PROBE_PATCHES * patch[0] * patch[1]
    ):
        raise EncoderError(
            f"{what} is for images of {size[0]} x {size[1]} pixels in patches of {patch[0]} x {patch[1]}; allowed are "
            f"{MAX_PROBE_SIDE} pixels a side and {MAX_PROBE_PATCHES:,} patches."
        )
    return size


def _set_channels(configuration: Any, plain: dict[str, Any], in_channels: int | None) -> None:
    """Set the channels of the images, where the configuration has such a setting and nobody asked for a number."""
    of_images, asked = configuration, plain
    if hasattr(configuration, "vision_config"):
        of_images, asked = configuration.vision_config, plain.get("vision_config") or {}
    if in_channels is not None and hasattr(of_images, "num_channels") and "num_channels" not in asked:
        of_images.num_channels = in_channels


def _merged(defaults: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Fill up what was asked for, and the dictionaries in it, with the defaults."""
    merged = {**defaults, **asked}
    for key, value in asked.items():
        if isinstance(value, dict) and isinstance(defaults.get(key), dict):
            merged[key] = _merged(defaults[key], value)
    return merged


def _own_pooling(model: nn.Module, images: torch.Tensor) -> str:
    if hasattr(model, "get_image_features"):
        return "image_features"
    with torch.no_grad():
        return "mean" if getattr(model(pixel_values=images), "pooler_output", None) is None else "pooler"


def _check_class_token(model: nn.Module, images: torch.Tensor, what: str) -> None:
    """Refuse "cls" where the model has no more tokens than patches."""
    with torch.no_grad():
        tokens = getattr(model(pixel_values=images), "last_hidden_state", None)
    patch = sides(getattr(model.config, "patch_size", None))
    height, width = images.shape[-2:]
    if (
        tokens is None
        or tokens.ndim != 3
        or patch is None
        or tokens.shape[1] <= height // patch[0] * (width // patch[1])
    ):
        raise EncoderError(f'{what} has no class token: pooling must not be "cls".')


def _preprocess_of(encoder: TransformersEncoder) -> dict[str, Any]:
    """Find the fields of `Preprocess` by what the image processor makes of black, of white and of a wide image."""
    black, white = (_processed(encoder, np.full((64, 64), level, dtype=np.uint8)) for level in (0, 255))
    offset = black.mean(axis=(1, 2), dtype=np.float64)  # (C,)
    span = white.mean(axis=(1, 2), dtype=np.float64) - offset
    if not (span > 0).all():
        raise EncoderError(f"The image processor of {encoder.name!r} makes white no lighter than black.")
    wide = np.zeros((64, 192), dtype=np.uint8)
    wide[:, :64] = wide[:, 128:] = 255  # the central square alone is black
    seen = _processed(encoder, wide)
    height, width = black.shape[1:]
    fit = "pad"
    if seen.shape == black.shape:
        light = (seen[0] - offset[0]) / span[0] > 0.5  # (h, w)
        fit = "crop" if not light[height // 2, 1] else "stretch" if light[1, 1] else "pad"
    mean, std = np.round(-offset / span, 6), np.round(1.0 / span, 6)
    return {"size": (height, width), "fit": fit, "mean": tuple(mean.tolist()), "std": tuple(std.tolist())}


def _processed(encoder: TransformersEncoder, grey: NDArray[np.uint8]) -> NDArray[np.float32]:
    loader: Any = encoder.loader
    pixels = loader.processor(images=Image.fromarray(grey).convert("RGB"), return_tensors="np")["pixel_values"]
    return np.asarray(pixels[0], dtype=np.float32)  # (C, h, w)
