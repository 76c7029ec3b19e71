"""Which weights of a training are kept, and when it has gone on for long enough."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class BestWeights:
    """The weights to keep, chosen on validation.

    Weights trained for longer are kept unless they are worse than the best by more than the chance of drawing the
    episodes explains (the one-standard-error rule of Breiman et al. 1984, chapter 3.4.3). Without validation the last
    are kept.

    Args:
        network: Whose weights; those it has now are kept until there are better ones.
        patience: Validations without a new best after which it is enough; 0 is never.

    Attributes:
        weights: Copies of the weights and buffers by name.
        episode: Training episodes they have seen.
        accuracy: Their validation accuracy; -1 before the first validation.
    """

    def __init__(self, network: nn.Module, *, patience: int) -> None:
        self.weights = _copied(network)
        self.episode, self.accuracy = 0, -1.0
        self._patience, self._highest, self._since = patience, -1.0, 0

    @property
    def enough(self) -> bool:
        """Whether patience has run out."""
        return bool(self._patience and self._since >= self._patience)

    def look(self, network: nn.Module, episode: int, accuracy: float | None, error: float) -> None:
        """Take the network's weights if they are good.

        Args:
            network: The network now.
            episode: Training episodes it has seen.
            accuracy: Its validation accuracy, or None without validation.
            error: The accuracy's standard error.
        """
        self._since = 0 if accuracy is None or accuracy > self._highest else self._since + 1
        self._highest = max(self._highest, accuracy or 0.0)
        if accuracy is None or accuracy >= self._highest - error:
            self.weights, self.accuracy, self.episode = _copied(network), accuracy or 0.0, episode

    def facts(self) -> dict[str, Any]:
        """Everything but the weights, as plain values."""
        return {"episode": self.episode, "accuracy": self.accuracy, "highest": self._highest, "since": self._since}

    def restore(self, facts: Mapping[str, Any], weights: Mapping[str, Tensor], device: torch.device) -> None:
        """Go back to what `facts` and `weights` were."""
        self.episode, self.accuracy = int(facts["episode"]), float(facts["accuracy"])
        self._highest, self._since = float(facts["highest"]), int(facts["since"])
        self.weights = {name: value.to(device) for name, value in weights.items()}


def _copied(network: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in network.state_dict().items()}
