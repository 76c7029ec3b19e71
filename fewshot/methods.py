"""The training methods by name: each one file, each a `TrainableNetwork`."""

from __future__ import annotations

from importlib import import_module

from torch import nn

from .networks import TrainableNetwork
from .training_config import METHODS, TrainingConfig

#: Method -> the module and the class that implement it.
_HOMES = {
    "prototypical": ("networks", "PrototypicalNetwork"),
    "siamese": ("siamese_network", "SiameseNetwork"),
    "matching": ("matching", "MatchingNetwork"),
    "relation": ("relation", "RelationNetwork"),
    "supervised": ("supervised", "SupervisedNetwork"),
    "simclr": ("simclr", "SimCLRNetwork"),
    "multilabel": ("multilabel", "MultiLabelPrototypicalNetwork"),
}


def network_class(method: str) -> type[TrainableNetwork]:
    """The class that trains by a method, one of `METHODS`."""
    module, name = _HOMES[method]
    found: type[TrainableNetwork] = getattr(import_module(f".{module}", __package__), name)
    return found


def build_network(backbone: nn.Module, config: TrainingConfig, n_classes: int) -> TrainableNetwork:
    """The network a configuration asks for, around a backbone.

    Args:
        backbone: Images (n, c, h, w) -> vectors (n, d), with an attribute `dim`.
        config: Names the method and its options.
        n_classes: Classes of the whole source.

    Returns:
        An `EpisodicNetwork` or an `ImageNetwork`.

    Raises:
        TrainingError: Options that the method, or the backbone, cannot do.
    """
    return network_class(config.method).from_config(backbone, config, n_classes)


__all__ = ["METHODS", "build_network", "network_class"]
