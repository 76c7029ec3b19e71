"""Decide from shots: comparison sets, few-shot heads, and the episodic training of the encoders they stand on."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .augmentation import Augmentation
    from .comparison import ComparisonSet
    from .losses import prototypical_loss, squared_distances
    from .neighbors import NeighborClassifier
    from .networks import PrototypicalNetwork
    from .prototypes import PrototypeClassifier
    from .registration import Registration
    from .registry import HEADS, make_head
    from .training import Training, train
    from .training_config import TrainingConfig, TrainingError

__all__ = [
    "HEADS",
    "Augmentation",
    "ComparisonSet",
    "NeighborClassifier",
    "PrototypeClassifier",
    "PrototypicalNetwork",
    "Registration",
    "Training",
    "TrainingConfig",
    "TrainingError",
    "make_head",
    "prototypical_loss",
    "squared_distances",
    "train",
]

_HOME = {
    "Augmentation": "augmentation",
    "HEADS": "registry",
    "ComparisonSet": "comparison",
    "NeighborClassifier": "neighbors",
    "PrototypeClassifier": "prototypes",
    "PrototypicalNetwork": "networks",
    "Registration": "registration",
    "Training": "training",
    "TrainingConfig": "training_config",
    "TrainingError": "training_config",
    "make_head": "registry",
    "prototypical_loss": "losses",
    "squared_distances": "losses",
    "train": "training",
}


def _require_ours() -> None:
    """Other distributions install packages with these generic names too; say so at once, in one sentence."""
    for name in ("embeddings", "episodes"):
        module = importlib.import_module(name)
        if getattr(module, "__distribution__", None) != "radshot":
            raise ImportError(
                f"fewshot needs radshot's own package '{name}', but Python found another one at "
                f"{getattr(module, '__file__', None) or 'an unknown place'}: uninstall the distribution that owns it, "
                f"then reinstall radshot."
            )


_require_ours()


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'fewshot' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
