"""The gradient steps of fine-tuning: class weights over frozen features, then these and the network's last blocks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from embeddings import Augmentation, Preprocess, TorchEncoder

from .last_blocks import blocks_of, copy_owning
from .support import check_center

#: What cosines are multiplied by before the softmax, as if a class reached from -10 to 10; with 1 no class could ever
#: come out ahead by enough.
SCALE = 10.0
#: Share of the target that is spread over all classes, so that no weight runs away to be surer of a few images.
LABEL_SMOOTHING = 0.1
#: Steps over the cached features: all of them in each.
HEAD_STEPS = 100
#: How far a class weight, of unit length at the start, goes in one of Adam's first steps.
HEAD_RATE = 0.02
#: Images in a step that sends them through the network; a smaller support goes whole.
BATCH = 32
#: Times the support is seen while the network learns, and the most steps that may take.
EPOCHS, MOST_STEPS = 20, 600
#: Adam's rate for the last block, and what it is divided by for each block before (Howard & Ruder 2018, arXiv
#: 1801.06146, section 3.2).
BLOCK_RATE, RATE_DIVISOR = 3e-5, 2.6
#: Images embedded at once.
EMBED_BATCH = 64


@dataclass(frozen=True, eq=False)
class Tuning:
    """What to learn from, and how.

    Attributes:
        targets: int (n,), class of each image from 0; no class is empty.
        weights: float64 (n,), what each image counts in the loss; they sum to 1.
        unit_weights: Whether class weights are held at unit length (a cosine) or free, with a bias.
        last_blocks: Blocks of the network that learn; 0 for none.
        augmentation: Changes the images in each step that sends them through the network, or None.
        steps: Gradient steps of each stage; None goes by the size of the support.
        seed: Of batches and augmentation.
    """

    targets: NDArray[np.int64]
    weights: NDArray[np.float64]
    unit_weights: bool
    last_blocks: int
    augmentation: Augmentation | None
    steps: int | None
    seed: int


@dataclass(frozen=True, eq=False)
class Tuned:
    """What was learnt.

    Attributes:
        network: From images (n, C, H, W) to features (n, d); shares all weights that did not learn with the encoder.
        class_weights: float64 (n_classes, d).
        bias: float64 (n_classes,); zeros for unit weights.
        center: float64 (d,), subtracted from features before they are brought to unit length.
        unit_weights: Whether the class weights have unit length.
        features: float32 (n, d), what the network makes of the support.
        steps: Gradient steps taken.
    """

    network: nn.Module
    class_weights: NDArray[np.float64]
    bias: NDArray[np.float64]
    center: NDArray[np.float64]
    unit_weights: bool
    features: NDArray[np.float32]
    steps: int

    def score_network(self) -> nn.Module:
        """The scores as a module from images (n, C, H, W) to (n, n_classes)."""
        return _ScoreNetwork(self)


def tune_weights(encoder: TorchEncoder, images: NDArray[np.float32], tuning: Tuning) -> Tuned:
    """Learn class weights, and the last blocks where they are asked for.

    Args:
        encoder: Stays as it is.
        images: (n, C, H, W), as its `load` makes them.
        tuning: What to learn and how.

    Returns:
        What was learnt.

    Raises:
        ValueError: More blocks than the network has.
    """
    device = encoder.device
    blocks = blocks_of(encoder.network)
    if tuning.last_blocks > len(blocks):
        raise ValueError(
            f"The network of {encoder.name!r} has {len(blocks)} block(s) with weights; got last_blocks="
            f"{tuning.last_blocks}."
        )
    chosen = blocks[len(blocks) - tuning.last_blocks :]
    network = copy_owning(encoder.network, [weight for block in chosen for weight in block])
    center = check_center(encoder.source_mean, encoder.dim)
    moved = torch.from_numpy(center).float().to(device)
    targets = torch.from_numpy(tuning.targets).to(device)
    shares = torch.from_numpy(tuning.weights).float().to(device)
    embedded = embed(network, images, device)
    features = _unit(torch.from_numpy(embedded).to(device), moved)
    head = _ClassWeights(features, targets, shares, unit=tuning.unit_weights)
    head_rate = HEAD_RATE / math.sqrt(features.shape[1])  # Adam moves every coordinate by about the rate

    head_steps = HEAD_STEPS if tuning.steps is None else tuning.steps
    _descend(
        [{"params": list(head.parameters()), "lr": head_rate}],
        lambda: _loss(head(features), targets, shares),
        head_steps,
    )
    taken = head_steps
    if tuning.last_blocks:
        steps = steps_for(len(images)) if tuning.steps is None else tuning.steps
        groups = [{"params": list(head.parameters()), "lr": head_rate}]
        own = blocks_of(network)[len(blocks) - tuning.last_blocks :]
        for before_last, block in enumerate(reversed(own)):
            groups.append({"params": block, "lr": BLOCK_RATE / RATE_DIVISOR**before_last})
        batches = _Batches(images, tuning, encoder.preprocess, device)

        def loss() -> Tensor:
            batch, rows, weights = batches.draw()
            return _loss(head(_unit(network(batch), moved)), targets[rows], weights)

        _descend(groups, loss, steps)
        taken += steps
        network.requires_grad_(False)
        embedded = embed(network, images, device)
    weights, bias = head.learnt()
    return Tuned(network, weights, bias, center, tuning.unit_weights, embedded, taken)


def steps_for(n: int) -> int:
    """Gradient steps in which a support of n images is seen `EPOCHS` times, up to `MOST_STEPS`."""
    return min(MOST_STEPS, EPOCHS * math.ceil(n / BATCH))


def embed(network: nn.Module, images: NDArray[np.float32], device: torch.device) -> NDArray[np.float32]:
    """Features (n, d) of images (n, C, H, W) by a network in evaluation mode."""
    with torch.inference_mode():
        parts = [
            network(torch.from_numpy(images[start : start + EMBED_BATCH]).to(device)).float().cpu().numpy()
            for start in range(0, len(images), EMBED_BATCH)
        ]
    rows: NDArray[np.float32] = np.concatenate(parts)
    return rows


class _ClassWeights(nn.Module):
    """One weight vector per class, started at the class's mean brought to unit length."""

    def __init__(self, features: Tensor, targets: Tensor, shares: Tensor, *, unit: bool) -> None:
        super().__init__()
        n_classes = int(targets.max()) + 1
        belongs = functional.one_hot(targets, n_classes).float() * shares[:, None]  # (n, n_classes)
        self.weight = nn.Parameter(functional.normalize(belongs.T @ features, dim=1))
        self.unit = unit
        self.bias = nn.Parameter(features.new_zeros(n_classes), requires_grad=not unit)

    def forward(self, features: Tensor) -> Tensor:
        """Logits (n, n_classes) of features (n, d) of unit length."""
        weight = functional.normalize(self.weight, dim=1) if self.unit else self.weight
        return SCALE * (features @ weight.T + self.bias)

    def learnt(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Class weights (n_classes, d) and biases (n_classes,)."""
        weight = self.weight.detach().double()
        weight = functional.normalize(weight, dim=1) if self.unit else weight
        return weight.cpu().numpy(), self.bias.detach().double().cpu().numpy()


class _ScoreNetwork(nn.Module):
    """A tuned network and its class weights in one module."""

    center: Tensor
    class_weights: Tensor
    bias: Tensor

    def __init__(self, tuned: Tuned) -> None:
        super().__init__()
        self.network = tuned.network
        self.map_shape = getattr(tuned.network, "map_shape", None)
        first = next(tuned.network.parameters(), None)
        device = torch.device("cpu") if first is None else first.device
        for name in ("center", "class_weights", "bias"):
            self.register_buffer(name, torch.from_numpy(getattr(tuned, name)).float().to(device))

    def forward(self, images: Tensor) -> Tensor:
        """Scores (n, n_classes) of images (n, C, H, W)."""
        scores: Tensor = _unit(self.network(images), self.center) @ self.class_weights.T + self.bias
        return scores


class _Batches:
    """What a step sends through the network: a small support whole, of a large one a fair draw."""

    def __init__(
        self, images: NDArray[np.float32], tuning: Tuning, preprocess: Preprocess, device: torch.device
    ) -> None:
        self.images = torch.from_numpy(images).to(device)
        self.shares = torch.from_numpy(tuning.weights).float().to(device)
        self.augmentation = tuning.augmentation
        self.generator = torch.Generator(device=device).manual_seed(tuning.seed)
        spread = (preprocess.channels,)
        self.mean = torch.tensor(np.broadcast_to(preprocess.mean, spread)).float().to(device).view(1, -1, 1, 1)
        self.std = torch.tensor(np.broadcast_to(preprocess.std, spread)).float().to(device).view(1, -1, 1, 1)

    def draw(self) -> tuple[Tensor, Tensor, Tensor]:
        """Images, their rows, and what each counts; in expectation the loss is that of the whole support."""
        if len(self.images) <= BATCH:
            rows, weights = torch.arange(len(self.images), device=self.images.device), self.shares
        else:
            rows = torch.multinomial(self.shares, BATCH, replacement=True, generator=self.generator)
            weights = torch.full((BATCH,), 1 / BATCH, device=self.images.device)
        return self._changed(self.images[rows]), rows, weights

    def _changed(self, images: Tensor) -> Tensor:
        if self.augmentation is None:
            return images
        grey = images[:, :1] * self.std[:, :1] + self.mean[:, :1]  # every channel is the same grey level
        changed: Tensor = (self.augmentation(grey, self.generator) - self.mean) / self.std  # (n, C, H, W)
        return changed


def _unit(features: Tensor, center: Tensor) -> Tensor:
    return functional.normalize(features.float() - center, dim=1)


def _loss(logits: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    each = functional.cross_entropy(logits, targets, reduction="none", label_smoothing=LABEL_SMOOTHING)  # (n,)
    return (each * weights).sum()


def _descend(groups: list[dict[str, object]], loss: Callable[[], Tensor], steps: int) -> None:
    """Take Adam's steps, at rates that fall to zero along half a cosine."""
    if steps == 0:
        return
    optimizer = torch.optim.Adam(groups)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    for _ in range(steps):
        optimizer.zero_grad(set_to_none=True)
        loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
