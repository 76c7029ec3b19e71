"""Decide from shots: comparison sets, few-shot heads, and the episodic training of the encoders they stand on."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .attention_head import MatchingClassifier
    from .augmentation import Augmentation
    from .comparison import ComparisonSet
    from .label_prototypes import LabelPrototypeClassifier
    from .losses import prototypical_loss, squared_distances
    from .matching import MatchingNetwork
    from .multilabel import MultiLabelPrototypicalNetwork, MultiLabelTargets
    from .neighbors import NeighborClassifier
    from .networks import EpisodeTargets, EpisodicNetwork, ImageNetwork, PrototypicalNetwork
    from .prototypes import PrototypeClassifier
    from .registration import Registration
    from .registry import HEADS, heads_for, make_head
    from .relation import RelationNetwork
    from .relation_head import RelationClassifier
    from .siamese import SiameseClassifier
    from .siamese_network import SiameseNetwork
    from .simclr import SimCLRNetwork
    from .supervised import SupervisedNetwork
    from .training import Training, train
    from .training_config import METHODS, PRETRAINING, SIAMESE_LOSSES, TrainingConfig, TrainingError

__all__ = [
    "HEADS",
    "METHODS",
    "PRETRAINING",
    "SIAMESE_LOSSES",
    "Augmentation",
    "ComparisonSet",
    "EpisodeTargets",
    "EpisodicNetwork",
    "ImageNetwork",
    "LabelPrototypeClassifier",
    "MatchingClassifier",
    "MatchingNetwork",
    "MultiLabelPrototypicalNetwork",
    "MultiLabelTargets",
    "NeighborClassifier",
    "PrototypeClassifier",
    "PrototypicalNetwork",
    "Registration",
    "RelationClassifier",
    "RelationNetwork",
    "SiameseClassifier",
    "SiameseNetwork",
    "SimCLRNetwork",
    "SupervisedNetwork",
    "Training",
    "TrainingConfig",
    "TrainingError",
    "heads_for",
    "make_head",
    "prototypical_loss",
    "squared_distances",
    "train",
]

_HOME = {
    "HEADS": "registry",
    "METHODS": "training_config",
    "PRETRAINING": "training_config",
    "SIAMESE_LOSSES": "training_config",
    "Augmentation": "augmentation",
    "ComparisonSet": "comparison",
    "EpisodeTargets": "networks",
    "EpisodicNetwork": "networks",
    "ImageNetwork": "networks",
    "LabelPrototypeClassifier": "label_prototypes",
    "MatchingClassifier": "attention_head",
    "MatchingNetwork": "matching",
    "MultiLabelPrototypicalNetwork": "multilabel",
    "MultiLabelTargets": "multilabel",
    "NeighborClassifier": "neighbors",
    "PrototypeClassifier": "prototypes",
    "PrototypicalNetwork": "networks",
    "Registration": "registration",
    "RelationClassifier": "relation_head",
    "RelationNetwork": "relation",
    "SiameseClassifier": "siamese",
    "SiameseNetwork": "siamese_network",
    "SimCLRNetwork": "simclr",
    "SupervisedNetwork": "supervised",
    "Training": "training",
    "TrainingConfig": "training_config",
    "TrainingError": "training_config",
    "heads_for": "registry",
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
