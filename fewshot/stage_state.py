"""A stage between two steps: taken apart into a state, and put back where it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .training_config import TrainingError
from .training_state import TrainingState, optimizer_state, restore_optimizer, write_state

if TYPE_CHECKING:
    from .stage import Stage


def save(
    stage: Stage,
    saving: tuple[Path, Mapping[str, Any]],
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.OneCycleLR,
) -> None:
    """Write everything the next step depends on."""
    if not stage.devices.is_main:
        return
    folder, shared = saving
    moments, groups = optimizer_state(optimizer)
    facts = {
        **shared,
        "step": stage.step,
        "episodes_seen": stage.episodes_seen,
        "best": stage.best.facts(),
        "seconds": stage.seconds,
        "losses": stage.losses,
        "accuracies": stage.accuracies,
        "history": stage.history,
        "optimizer": groups,
        "schedule_epoch": schedule.last_epoch,
    }
    tensors = {
        **{f"network.{name}": value for name, value in stage.network.state_dict().items()},
        **{f"best.{name}": value for name, value in stage.best.weights.items()},
        **moments,
        "generator": stage.generator.get_state(),
        "torch_generator": torch.get_rng_state(),
    }
    write_state(folder, TrainingState(facts, tensors))


def restore(
    stage: Stage,
    state: TrainingState,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.OneCycleLR,
) -> None:
    """Go back to where a state was taken."""
    facts = state.facts
    try:
        if not 0 <= int(facts["step"]) <= stage.steps:
            raise ValueError(f"it has {facts['step']} steps of {stage.steps}")
        stage.network.load_state_dict(state.part("best."))  # must fit as well, though it may never be looked at
        stage.network.load_state_dict(state.part("network."))
        restore_optimizer(optimizer, state.part("optimizer."), facts["optimizer"])
        schedule.last_epoch = int(facts["schedule_epoch"])
        schedule._last_lr = [group["lr"] for group in optimizer.param_groups]
        stage.best.restore(facts["best"], state.part("best."), stage.device)
        stage.step, stage.episodes_seen = int(facts["step"]), int(facts["episodes_seen"])
        stage.seconds = float(facts["seconds"])
        stage.losses, stage.accuracies = list(facts["losses"]), list(facts["accuracies"])
        if stage.devices.rank == 0:
            stage.generator.set_state(state.tensors["generator"])
            torch.set_rng_state(state.tensors["torch_generator"])
        else:  # the first process alone saves: the others draw other augmentations than they would have
            stage.generator.manual_seed(stage.config.seed + 1_000_003 * stage.devices.rank + stage.step)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise TrainingError(
            f"The state of the interrupted training does not fit this one ({str(error).splitlines()[0]}): begin anew."
        ) from error
