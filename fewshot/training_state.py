"""An interrupted training on disk: everything the next step depends on, in one safetensors file, replaced at once."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .training_config import TrainingConfig, TrainingError

#: The file in a training's folder; gone when the training is done.
STATE_FILE = "training-state.safetensors"
#: The file the operating system locks while a training writes to the folder.
LOCK_FILE = "training.lock"
#: Layout of that file; another is refused.
STATE_FORMAT = 1


@dataclass(frozen=True)
class TrainingState:
    """A training between two steps.

    Attributes:
        facts: Plain values: stage, step, history, best accuracy and so on.
        tensors: Weights, the best weights, the optimiser's moments, states of random generators.
    """

    facts: dict[str, Any]
    tensors: dict[str, Tensor]

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under a prefix, without it."""
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}


def write_state(folder: Path, state: TrainingState) -> None:
    """Write a state so that a kill at any moment leaves the one before or this one.

    Raises:
        TrainingError: The folder cannot be written.
    """
    new = folder / f".{STATE_FILE}.{os.getpid()}"
    tensors = {key: value.detach().cpu().clone().contiguous() for key, value in state.tensors.items()}
    facts = {"format": STATE_FORMAT, **state.facts}
    try:
        _remove_leftovers(folder)
        save_file(tensors, new, metadata={"state": json.dumps(facts), "sha256": _digest(facts, tensors)})
        _sync(new)
        new.replace(folder / STATE_FILE)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            new.unlink()
        raise TrainingError(
            f"The state of the training cannot be written to {folder}: {getattr(error, 'strerror', None) or error}."
        ) from error


def read_state(folder: Path) -> TrainingState:
    """Read what `write_state` wrote.

    Raises:
        TrainingError: There is none, or it is damaged or of another format.
    """
    path = folder / STATE_FILE
    if not path.is_file():
        raise TrainingError(
            f"There is no interrupted training in {folder} (no {STATE_FILE}): it was finished, or never begun."
        )
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            facts = json.loads(metadata.get("state", "null"))
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError, ValueError, RuntimeError, RecursionError) as error:
        raise TrainingError(f"{path} is no state of a training, or was cut short; begin anew.") from error
    if not isinstance(facts, dict) or facts.get("format") != STATE_FORMAT:
        raise TrainingError(f"{path} is no state of a training that this radshot can go on with; begin anew.")
    if metadata.get("sha256") != _digest(facts, tensors):
        raise TrainingError(f"{path} is not what was written: it was damaged or changed; begin anew.")
    if missing := sorted({"config", "data", "begun", "processes", "stage", "step", "history"} - set(facts)):
        raise TrainingError(f"{path} lacks {missing[0]!r}, as no state of a training does; begin anew.")
    return TrainingState(facts, tensors)


def remove_state(folder: Path) -> None:
    """Forget the state: the training is done."""
    with suppress(FileNotFoundError):
        (folder / STATE_FILE).unlink()
    _remove_leftovers(folder)


def is_trace(path: Path) -> bool:
    """Whether a file is what a training that was killed leaves beside its state: a half-written one, or its lock."""
    return path.name == LOCK_FILE or path.name.startswith(f".{STATE_FILE}.")


def _remove_leftovers(folder: Path) -> None:
    """Remove what a kill in the middle of a write has left."""
    for path in folder.iterdir():
        if is_trace(path) and path.name != LOCK_FILE:
            with suppress(OSError):
                path.unlink()


def check_same(
    state: TrainingState, config: TrainingConfig, data: str, processes: int, begun: Mapping[str, Any]
) -> None:
    """Refuse to go on with other options, other images, another start or another number of processes.

    Args:
        state: Of the interrupted training.
        config: How the training is to go on.
        data: `data_hash` of what it is to go on with.
        processes: In how many it is to go on.
        begun: What else it starts from: preprocessing, and the fingerprint of the encoder or None.

    Raises:
        TrainingError: With the first option that differs.
    """
    if state.facts["data"] != data:
        raise TrainingError(
            "The interrupted training was on other images, labels or patients: resume it with those it was begun "
            "with, or begin anew in another folder."
        )
    if state.facts["begun"] != json.loads(json.dumps(dict(begun))):
        raise TrainingError(
            "The interrupted training began from another encoder or with another preprocessing: resume it with the "
            "init it was begun with, or begin anew in another folder."
        )
    before, now = state.facts["config"], json.loads(json.dumps(config.to_dict()))
    for name in now:
        if before.get(name) != now[name]:
            raise TrainingError(
                f"The interrupted training had {name} = {before.get(name)!r}, now it is {now[name]!r}: resume it with "
                "the options it was begun with, or begin anew in another folder."
            )
    if state.facts["processes"] != processes:
        raise TrainingError(
            f"The interrupted training ran in {state.facts['processes']} processes, now there are {processes}: resume "
            "it in as many, or begin anew in another folder."
        )


def data_hash(
    pixels: NDArray[np.uint8], labels: Sequence[tuple[Hashable, ...]], groups: Sequence[Hashable] | None
) -> str:
    """SHA-256 of what is trained on."""
    digest = hashlib.sha256(repr((pixels.shape, list(labels), None if groups is None else list(groups))).encode())
    for image in pixels:
        digest.update(np.ascontiguousarray(image).tobytes())
    return digest.hexdigest()


def _digest(facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a state."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(repr((name, tuple(tensors[name].shape), str(tensors[name].dtype))).encode())
        digest.update(tensors[name].flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """Force a file's, or a folder's, content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """An optimiser's state as tensors by name, and its groups as plain values."""
    state = optimizer.state_dict()
    tensors = {
        f"optimizer.{number}.{name}": torch.as_tensor(value)
        for number, values in state["state"].items()
        for name, value in values.items()
    }
    groups = [{key: value for key, value in group.items() if key != "params"} for group in state["param_groups"]]
    return tensors, groups


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: Sequence[Mapping[str, Any]]
) -> None:
    """Put back what `optimizer_state` took."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        digits, name = key.split(".", 1)
        state.setdefault(int(digits), {})[name] = value
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for number, values in state.items():
        for name, value in values.items():
            if value.ndim and (number >= len(weights) or value.shape != weights[number].shape):
                raise ValueError(f"the optimiser's {name} of weight {number} has shape {tuple(value.shape)}")
    own = optimizer.state_dict()["param_groups"]
    merged = [
        {**group, **{key: tuple(value) if isinstance(value, list) else value for key, value in saved.items()}}
        for group, saved in zip(own, groups, strict=True)
    ]
    optimizer.load_state_dict({"state": state, "param_groups": merged})
