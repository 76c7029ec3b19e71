"""What a training starts from, checked before hours are spent: an encoder, a device, a folder, episodes."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from embeddings import (
    EncoderError,
    Preprocess,
    TorchEncoder,
    TransformersEncoder,
    build_backbone,
    load_encoder,
    trainable_from,
)
from episodes import EpisodeError, EpisodeSampler

from .training_config import TrainingConfig, TrainingError

#: Episodes drawn on trial before their number of ways is settled.
TRIAL_EPISODES = 2000


def starting_encoder(init: str | Path | TorchEncoder | None) -> TorchEncoder | None:
    """The encoder whose weights training starts from, or None for fresh ones."""
    if init is None or isinstance(init, TorchEncoder):
        return init
    encoder = load_encoder(init)
    if isinstance(encoder, TransformersEncoder):
        encoder = trainable_from(encoder)
    if not isinstance(encoder, TorchEncoder):
        raise TrainingError(
            f"Training can start only from a checkpoint with weights; {init} is a {encoder.name} encoder."
        )
    return encoder


def config_from(start: TorchEncoder, config: TrainingConfig) -> TrainingConfig:
    """The configuration as it is carried out from an encoder: with its backbone."""
    backbone = dict(start.backbone_config or {"name": type(start.network).__name__})
    name = str(backbone.pop("name"))
    if config.backbone not in (name, TrainingConfig.backbone):
        raise TrainingError(
            f"Training starts from {start.name}, whose backbone is {name!r}, and the configuration asks for "
            f"{config.backbone!r}: leave one of the two out."
        )
    return replace(config, backbone=name, backbone_config=backbone, image_size=max(16, start.preprocess.size[0]))


def fresh_backbone(config: TrainingConfig) -> tuple[nn.Module, Preprocess | None]:
    """The backbone a configuration asks for, and the preprocessing it was made with where it comes with weights.

    Raises:
        EncoderError: There is none of that name, or with those options.
    """
    options = dict(config.backbone_config)
    name = config.backbone
    sized = name == "vit" or name.startswith("monai") or options.get("pooling") == "flatten"
    if sized and "image_size" not in options:
        options["image_size"] = config.image_size
    backbone = build_backbone(name, seed=config.seed, **options)
    if backbone.preprocess_hint is not None:
        return backbone, Preprocess(channels=image_channels(backbone), **backbone.preprocess_hint)
    return backbone, None


def check_fit(backbone: nn.Module, form: Preprocess) -> None:
    """Send one blank image through a backbone, so that what does not fit is found out before hours are spent.

    Raises:
        TrainingError: The backbone does not take images of that size, or makes other vectors than it says.
    """
    size = f"{form.size[0]} x {form.size[1]}"
    blank = torch.zeros(1, form.channels, *form.size, device=next(backbone.parameters()).device)
    was_training = backbone.training
    try:
        with torch.no_grad():
            vectors = backbone.eval()(blank)
    except (RuntimeError, ValueError, EncoderError) as error:
        raise TrainingError(
            f"The backbone does not take images of {size} pixels: {str(error).splitlines()[0].rstrip('.')}."
        ) from error
    finally:
        backbone.train(was_training)
    if vectors.ndim != 2 or vectors.shape[1] != getattr(backbone, "dim", vectors.shape[1]):
        raise TrainingError(
            f"The backbone makes vectors of {tuple(vectors.shape[1:])} from images of {size} pixels, and was built for "
            f"{getattr(backbone, 'dim', None)} numbers: do its image_size and that of the training agree?"
        )


def image_channels(backbone: nn.Module) -> Literal[1, 3]:
    """Channels the backbone takes: 1, or 3 in which grey is repeated.

    Raises:
        TrainingError: Another number.
    """
    channels = getattr(backbone, "in_channels", 1)
    if channels == 1:
        return 1
    if channels == 3:
        return 3
    raise TrainingError(f"A backbone to train takes images of 1 or 3 channels; this one takes {channels}.")


def choose_device(device: str) -> torch.device:
    """The device to train on; "auto" takes CUDA where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise TrainingError(f"device must be 'auto', 'cpu' or 'cuda'; got {device!r}.") from None
    if chosen.type not in ("cpu", "cuda"):
        raise TrainingError(f"device must be 'auto', 'cpu' or 'cuda'; got {device!r}.")
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise TrainingError(f"There is no device {device!r} here: torch sees {torch.cuda.device_count()} of CUDA.")
    return chosen


def make_folder(folder: Path) -> None:
    """Make the checkpoint's folder, so that a path where nothing can be stored is found out first."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"The checkpoint folder {folder} cannot be made: {error.strerror or error}.") from error


def sampler_for(
    labels: Sequence[Hashable],
    n_way: int,
    config: TrainingConfig,
    *,
    groups: Sequence[Hashable] | None,
    n_episodes: int,
    seed: int,
    fewer_ways: bool,
) -> EpisodeSampler:
    """Episodes that can be drawn; of fewer ways, where that is allowed and images of several classes demand it.

    Args:
        labels: n labels, or collections of labels.
        n_way: Ways wanted.
        config: Shots and queries.
        groups: n patients, or None.
        n_episodes: Length of the sampler.
        seed: Of the episodes.
        fewer_ways: Whether to try fewer ways where an episode of `n_way` cannot be drawn.

    Returns:
        The sampler.

    Raises:
        EpisodeError: No such episodes, or not even of 2 ways.
    """
    while True:
        try:
            sampler = EpisodeSampler(
                labels, n_way, config.k_shot, config.n_query, groups=groups, n_episodes=n_episodes, seed=seed
            )
            sampler.block(0, min(n_episodes, TRIAL_EPISODES))
            return sampler
        except EpisodeError:
            if not fewer_ways or n_way <= 2:
                raise
            n_way = max(2, n_way * 3 // 4)
