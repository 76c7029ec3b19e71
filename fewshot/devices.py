"""Where a training computes: one device, or several processes that accelerate started."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .networks import TrainableNetwork
from .starting import choose_device
from .training_config import TrainingError


class LossModule(nn.Module):
    """A trainable network whose call is its loss, which is what a data-parallel wrapper must see."""

    def __init__(self, network: TrainableNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor, targets: Any) -> tuple[Tensor, float]:
        """The network's loss and accuracy on a batch."""
        return self.network.loss(images, targets)


class Devices:
    """This process and its device among those that train together.

    Several processes are those of `accelerate launch`, one per device; each takes its own share of every step's
    episodes, gradients are averaged over all, and the first process alone validates and writes.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:<number>"; with several processes only "auto" and "cpu" mean something.

    Attributes:
        device: Where this process computes.
        rank: Number of this process, from 0.
        count: Number of processes.
    """

    def __init__(self, device: str) -> None:
        self._accelerator: Any = None
        if _processes() > 1:
            from accelerate import Accelerator

            self._accelerator = Accelerator(
                cpu=device == "cpu" or not torch.cuda.is_available(),
                mixed_precision="no",  # which precision to compute in is the configuration's to say
            )
            self.device = self._accelerator.device
            self.rank, self.count = int(self._accelerator.process_index), int(self._accelerator.num_processes)
        else:
            self.device, self.rank, self.count = choose_device(device), 0, 1

    @property
    def is_main(self) -> bool:
        """Whether this process validates, talks and writes."""
        return self.rank == 0

    def prepare(self, network: TrainableNetwork) -> nn.Module:
        """The network's loss as a module to call, its gradients averaged over all processes."""
        module: nn.Module = LossModule(network)
        if self._accelerator is not None:
            module = self._accelerator.prepare_model(module)
        return module

    def together(self, module: nn.Module, last: bool) -> Any:
        """A context for a backward pass; only the last of a step exchanges gradients."""
        if self._accelerator is None or last:
            return _nothing()
        return self._accelerator.no_sync(module)

    def shared(self, values: Sequence[float]) -> list[float]:
        """What the first process knows, in every process."""
        if self._accelerator is None:
            return list(values)
        from accelerate.utils import broadcast

        sent = torch.tensor(list(values), dtype=torch.float64, device=self.device)
        return [float(value) for value in broadcast(sent, from_process=0)]

    def mean(self, value: float) -> float:
        """A figure averaged over the processes."""
        if self._accelerator is None:
            return value
        return float(self._accelerator.reduce(torch.tensor(value, device=self.device), reduction="mean"))

    def agree(self, network: nn.Module) -> None:
        """Give every process the buffers of the first; weights agree already, statistics of batches do not."""
        if self._accelerator is None:
            return
        from accelerate.utils import broadcast

        with torch.no_grad():
            for buffer in network.buffers():
                buffer.copy_(broadcast(buffer.clone(), from_process=0))

    def wait(self) -> None:
        """Go on when every process is here."""
        if self._accelerator is not None:
            self._accelerator.wait_for_everyone()


def _processes() -> int:
    """How many processes were started to train together."""
    given = os.environ.get("WORLD_SIZE", "1")
    if not given.isdecimal():
        raise TrainingError(f"WORLD_SIZE must be the number of processes that train together; got {given!r}.")
    return int(given)


def _nothing() -> Any:
    from contextlib import nullcontext

    return nullcontext()
