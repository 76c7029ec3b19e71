"""What a training step is made of: episodes, or plain batches of images; step i depends on the seed and i alone."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from episodes import Episode, EpisodeError, EpisodeSampler, MultiLabelEpisodeSampler

from .multilabel import MultiLabelTargets
from .networks import EpisodeTargets

#: Episodes drawn at once.
AHEAD = 64
#: A class is drawn in proportion to its number of patients raised to this: between the classes' own frequencies (1)
#: and equal shares (0), as Mahajan et al. 2018 (arXiv 1805.00932) sample their tail.
BALANCE = 0.5


@dataclass(frozen=True)
class Batch:
    """The images of one forward pass.

    Attributes:
        rows: int (n,), rows of the pixel cache.
        targets: What they are: one `EpisodeTargets` (or `MultiLabelTargets`) per episode, or the tensor
            `ImageNetwork.loss` takes.
        size: Episodes in it; 1 for a plain batch.
    """

    rows: NDArray[np.intp]
    targets: list[EpisodeTargets] | list[MultiLabelTargets] | Tensor
    size: int


class Batches(Protocol):
    """Random access to the batches of a training."""

    def draw(self, i: int) -> Batch:
        """Batch i."""


class EpisodeBatches:
    """Batches of whole episodes.

    Args:
        sampler: Episodes over the training rows.
        rows: int (n,), which row of the pixel cache each of the sampler's images is.
        codes: Class -> its position among all classes of the source.
        size: Episodes per batch.
        device: Where targets are put.
    """

    def __init__(
        self,
        sampler: EpisodeSampler,
        rows: NDArray[np.intp],
        codes: dict[Hashable, int],
        *,
        size: int,
        device: torch.device,
    ) -> None:
        self.sampler, self.rows, self.codes, self.size, self.device = sampler, rows, codes, size, device
        self._start, self._drawn = -1, list[Episode]()

    def draw(self, i: int) -> Batch:
        """Episodes i * size to (i + 1) * size - 1, as far as there are, one after another, support before queries."""
        numbers = range(i * self.size, min((i + 1) * self.size, len(self.sampler)))
        episodes = [self._episode(number) for number in numbers]
        rows = self.rows[np.concatenate([part for episode in episodes for part in (*episode.support, *episode.query)])]
        return Batch(rows, [episode_targets(episode, self.device, self.codes) for episode in episodes], len(episodes))

    def _episode(self, number: int) -> Episode:
        """One episode; several are drawn at once, which is faster, and kept until those after them are wanted."""
        start = number // AHEAD * AHEAD
        if start != self._start:
            stop = min(start + AHEAD, len(self.sampler))
            try:
                self._drawn, self._start = self.sampler.block(start, stop)[0], start
            except EpisodeError:  # rare, with images of several classes: those that cannot be drawn have stand-ins
                self._drawn, self._start = [self._possible(n) for n in range(start, stop)], start
        return self._drawn[number - start]

    def _possible(self, number: int) -> Episode:
        """An episode, or the first after it that can be drawn."""
        for shift in range(len(self.sampler)):
            with suppress(EpisodeError):
                return self.sampler[(number + shift) % len(self.sampler)]
        return self.sampler[number]  # says why none can


class MultiLabelBatches:
    """Batches of whole multi-label episodes.

    Args:
        sampler: Episodes over the training rows, with negatives in their support.
        rows: int (n,), which row of the pixel cache each of the sampler's images is.
        size: Episodes per batch.
        device: Where targets are put.
    """

    def __init__(
        self, sampler: MultiLabelEpisodeSampler, rows: NDArray[np.intp], *, size: int, device: torch.device
    ) -> None:
        self.sampler, self.rows, self.size, self.device = sampler, rows, size, device

    def draw(self, i: int) -> Batch:
        """Episodes i * size to (i + 1) * size - 1, as far as there are, one after another, support before queries."""
        episodes = [self.sampler[j] for j in range(i * self.size, min((i + 1) * self.size, len(self.sampler)))]
        rows = [part for episode in episodes for part in (episode.support, episode.query)]
        targets = [MultiLabelTargets.from_episode(episode, self.device) for episode in episodes]
        return Batch(self.rows[np.concatenate(rows)], targets, len(targets))


class ImageBatches:
    """Plain batches: classes by the root of their number of patients, then a patient, then one of their images.

    Without labels patients are equally likely. Images are drawn with replacement from one batch to the next, and as far
    as possible without it inside a batch.

    Args:
        labels: For each training row its labels; an empty tuple is an image without one.
        groups: Patients of the training rows, or None where each image is its own.
        rows: int (n,), which row of the pixel cache each is.
        codes: Class -> its position among all classes of the source.
        size: Images per batch.
        seed: Of the batches.
        device: Where targets are put.
    """

    def __init__(
        self,
        labels: Sequence[tuple[Hashable, ...]],
        groups: Sequence[Hashable] | None,
        rows: NDArray[np.intp],
        codes: dict[Hashable, int],
        *,
        size: int,
        seed: int,
        device: torch.device,
    ) -> None:
        self.rows, self.size, self.seed, self.device = rows, size, seed, device
        self.targets = class_targets(labels, codes).to(device)
        owners = list(range(len(labels))) if groups is None else list(groups)
        self.chance = _chances(labels, owners)

    def draw(self, i: int) -> Batch:
        """Batch i."""
        rng = np.random.default_rng([self.seed, 104729, i])
        count = min(self.size, int(np.count_nonzero(self.chance)))
        chosen = rng.choice(len(self.chance), count, replace=False, p=self.chance)
        return Batch(self.rows[chosen], self.targets[torch.from_numpy(chosen).to(self.device)], 1)


def class_targets(labels: Sequence[tuple[Hashable, ...]], codes: dict[Hashable, int]) -> Tensor:
    """What `ImageNetwork.loss` takes for each image: a class, or zeros and ones where images have several.

    Args:
        labels: For each of n images its labels.
        codes: Class -> position.

    Returns:
        int64 (n,), -1 for no label; float32 (n, len(codes)) where any image has more than one.
    """
    if all(len(own) <= 1 for own in labels):
        return torch.tensor([codes[own[0]] if own else -1 for own in labels], dtype=torch.int64)
    table = torch.zeros(len(labels), len(codes))
    for i, own in enumerate(labels):
        for label in own:
            table[i, codes[label]] = 1.0
    return table


def episode_targets(episode: Episode, device: torch.device, codes: dict[Hashable, int] | None = None) -> EpisodeTargets:
    """What each image of an episode is."""
    return EpisodeTargets(
        _positions(episode.support).to(device),
        _positions(episode.query).to(device),
        len(episode.classes),
        None if codes is None else torch.tensor([codes[label] for label in episode.classes]).to(device),
    )


def _positions(parts: Sequence[NDArray[np.intp]]) -> Tensor:
    return torch.from_numpy(np.repeat(np.arange(len(parts)), [len(part) for part in parts]))


def _chances(labels: Sequence[tuple[Hashable, ...]], owners: Sequence[Hashable]) -> NDArray[np.float64]:
    """How likely each image is drawn; adds up to 1."""
    members: dict[Hashable, dict[Hashable, list[int]]] = {}
    labelled = any(labels)
    for i, (own, owner) in enumerate(zip(labels, owners, strict=True)):
        for label in own if labelled else ("",):
            members.setdefault(label, {}).setdefault(owner, []).append(i)
    chance = np.zeros(len(labels))
    for patients in members.values():
        for images in patients.values():
            chance[images] += len(patients) ** BALANCE / len(patients) / len(images)
    chance /= chance.sum()
    return chance
