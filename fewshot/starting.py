"""What a training starts from, checked before hours are spent: an encoder, a device, a folder for the outcome."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from embeddings import TorchEncoder, load_encoder

from .training_config import TrainingConfig, TrainingError


def starting_encoder(init: str | Path | TorchEncoder | None) -> TorchEncoder | None:
    """The encoder whose weights training starts from, or None for fresh ones."""
    if init is None or isinstance(init, TorchEncoder):
        return init
    encoder = load_encoder(init)
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
    return replace(config, backbone=name, backbone_config=backbone)


def choose_device(device: str) -> torch.device:
    """The device to train on; "auto" takes CUDA where there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except RuntimeError:
        raise TrainingError(f"device must be 'auto', 'cpu' or 'cuda'; got {device!r}.") from None
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise TrainingError(f"There is no device {device!r} here: torch sees {torch.cuda.device_count()} of CUDA.")
    return chosen


def make_folder(folder: Path) -> None:
    """Make the checkpoint's folder, so that a path where nothing can be stored is found out first."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"The checkpoint folder {folder} cannot be made: {error.strerror or error}.") from error
