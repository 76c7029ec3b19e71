"""What a stage trains on and what it validates on: rows, classes, batches and validation episodes."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from embeddings import Preprocess
from episodes import Episode, EpisodeError, MultiLabelEpisodeSampler

from .batches import Batches, EpisodeBatches, ImageBatches, MultiLabelBatches
from .methods import network_class
from .networks import ImageNetwork
from .starting import TRIAL_EPISODES, sampler_for
from .support import sorted_classes
from .training_config import UNLABELLED, TrainingConfig, TrainingError
from .validation import ValidationPlan, plan_validation


@dataclass(frozen=True)
class Source:
    """The source domain, decoded.

    Attributes:
        pixels: uint8 (n, h, w).
        preprocess: What brings a new image to the same form.
        labels: For each image its labels.
        groups: Patients, or None where each image is its own.
    """

    pixels: NDArray[np.uint8]
    preprocess: Preprocess
    labels: tuple[tuple[Hashable, ...], ...]
    groups: tuple[Hashable, ...] | None

    def owners(self, rows: NDArray[np.intp]) -> list[Hashable] | None:
        """The patients of some images."""
        return None if self.groups is None else [self.groups[i] for i in rows]


@dataclass(frozen=True)
class Layout:
    """The parts of a stage.

    Attributes:
        plan: Rows to train on and rows to validate on, no patient in both.
        batches: What the steps are made of.
        classes: Classes that are trained on.
        n_classes: All classes of the training rows, by whose number losses keep what they keep per class.
        left_out: Classes with too few patients, and how many they have or what is wrong with them.
        validation: Episodes over the validation rows; empty where nothing is held out.
    """

    plan: ValidationPlan
    batches: Batches
    classes: tuple[Hashable, ...]
    n_classes: int
    left_out: dict[str, Any]
    validation: tuple[Episode, ...]


def takes_images(config: TrainingConfig) -> bool:
    """Whether the method learns from plain batches of images, and not from episodes."""
    return issubclass(network_class(config.method), ImageNetwork)


def lay_out(source: Source, config: TrainingConfig, *, episodes: int, device: torch.device) -> Layout:
    """Hold images out, and lay the batches and the validation episodes.

    Args:
        source: What is trained on.
        config: How.
        episodes: Training episodes, over all processes.
        device: Where targets are put.

    Returns:
        The parts.

    Raises:
        TrainingError: What was asked to be held out cannot be.
        EpisodeError: Too few patients or classes for the episodes asked for.
    """
    plan = plan_validation(source.labels, source.groups, config)
    own, owners = [source.labels[i] for i in plan.train], source.owners(plan.train)
    classes = sorted_classes(list(dict.fromkeys(label for labels in own for label in labels)))
    codes = {label: code for code, label in enumerate(classes)}
    left_out: dict[str, Any] = {}
    batches: Batches
    if takes_images(config):
        if config.method == "supervised" and len(classes) < 2:
            raise TrainingError(f"Supervised training needs at least 2 classes; the images have {len(classes)}.")
        if config.method in UNLABELLED:
            own = [()] * len(own)  # whatever labels there are, every image counts
        batches = ImageBatches(own, owners, plan.train, codes, size=config.batch_size, seed=config.seed, device=device)
    elif config.method == "multilabel":
        several = _multilabel_sampler(own, owners, min(plan.n_way, len(classes)), config, episodes)
        plan = replace(plan, n_way=several.n_way)
        classes = list(several.classes)
        left_out = {str(label): reason for label, reason in several.excluded.items()}
        batches = MultiLabelBatches(several, plan.train, size=config.episodes_per_step, device=device)
    else:
        sampler = sampler_for(
            own,
            plan.n_way,
            config,
            groups=owners,
            n_episodes=episodes,
            seed=config.seed,
            fewer_ways=config.n_way is None,
        )
        plan = replace(plan, n_way=sampler.n_way)
        classes = list(sampler.classes)
        left_out = {str(label): count for label, count in sampler.excluded.items()}
        batches = EpisodeBatches(sampler, plan.train, codes, size=config.episodes_per_step, device=device)
    validation: tuple[Episode, ...] = ()
    if len(plan.validation):
        unseen = sampler_for(
            plan.validation_labels,
            plan.validation_n_way,
            config,
            groups=source.owners(plan.validation),
            n_episodes=config.validation_episodes,
            seed=config.seed + 1,
            fewer_ways=True,
        )
        plan = replace(plan, validation_n_way=unseen.n_way)
        validation = tuple(unseen)
    return Layout(plan, batches, tuple(classes), len(codes), left_out, validation)


def _multilabel_sampler(
    labels: list[tuple[Hashable, ...]],
    owners: list[Hashable] | None,
    n_way: int,
    config: TrainingConfig,
    episodes: int,
) -> MultiLabelEpisodeSampler:
    """Multi-label episodes that can be drawn; of fewer ways where none are asked for and no image lacks so many."""
    while True:
        try:
            sampler = MultiLabelEpisodeSampler(
                labels,
                n_way,
                config.k_shot,
                config.n_query,
                groups=owners,
                n_episodes=episodes,
                seed=config.seed,
                k_negative=config.k_shot,
            )
            for number in range(min(episodes, TRIAL_EPISODES)):
                sampler[number]
            return sampler
        except EpisodeError:
            if config.n_way is not None or n_way <= 1:
                raise
            n_way = max(1, n_way * 3 // 4)
