"""Train an encoder on episodes drawn from a source domain (Vinyals et al. 2016, arXiv 1606.04080)."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embeddings import Preprocess, TorchEncoder, build_backbone
from episodes import Episode

from .losses import prototypical_logits
from .networks import EpisodeTargets, PrototypicalNetwork
from .pixels import PixelCache, load_pixels
from .progress import TrainingProgress
from .starting import choose_device, config_from, make_folder, sampler_for, starting_encoder
from .training_config import METHODS, TrainingConfig, TrainingError
from .validation import ValidationPlan, plan_validation

if TYPE_CHECKING:
    from embeddings import ImageSource

#: Gradients longer than this are shortened to it; early episodes of a fresh network can be violent.
GRADIENT_NORM = 5.0
#: Share of the steps in which the one-cycle rate rises.
WARM_UP = 0.25
#: Images embedded at once when the network is only looked at.
EMBED_BATCH = 256


@dataclass(frozen=True)
class Training:
    """What came of a training.

    Attributes:
        encoder: The trained encoder, with the preprocessing and the source's mean.
        history: One entry per validation: episode, loss, training and validation accuracy, rate, seconds.
        best_episode: Training episodes seen by the weights that were kept.
        best_accuracy: Their validation accuracy, or None without validation.
        stopped_early: Whether patience ran out before the planned episodes.
        summary: What was trained on, how, and on what it was validated; also stored with the weights.
        refused: (image, reason) for images that could not be read; the others were trained on.
    """

    encoder: TorchEncoder
    history: tuple[dict[str, float | int | None], ...]
    best_episode: int
    best_accuracy: float | None
    stopped_early: bool
    summary: dict[str, Any]
    refused: tuple[tuple[str, str], ...] = field(default=())


def train(
    images: Sequence[ImageSource] | NDArray[np.uint8],
    labels: Sequence[Hashable],
    *,
    groups: Sequence[Hashable] | None = None,
    config: TrainingConfig | None = None,
    out: str | Path | None = None,
    init: str | Path | TorchEncoder | None = None,
    device: str = "auto",
    progress: bool = False,
) -> Training:
    """Train an encoder episodically and return the weights that did best on held-out episodes.

    Args:
        images: n sources `read_image` takes, or a uint8 array (n, h, w) of grey levels, which is used as it is.
        labels: n labels; a collection of labels where an image has several.
        groups: n patients. Support and query of a training episode never share one.
        config: How to train; the defaults suit a few thousand images on a CPU.
        out: Folder for the checkpoint; nothing is written without it.
        init: A checkpoint, or an encoder, to start from. Its backbone and its preprocessing are kept; those of `config`
            do not count.
        device: "auto", "cpu" or "cuda".
        progress: Whether to draw a progress bar on the terminal.

    Returns:
        The encoder and the record of its training.

    Raises:
        TrainingError: Options that do not fit together, lists of unequal length, no image that can be read, no such
            device, a folder that cannot be made, or a loss that is no longer finite.
        EncoderError: No such backbone, or no such checkpoint to start from.
        EpisodeError: Too few patients or classes for the episodes asked for.
    """
    config = config or TrainingConfig()
    if len(images) != len(labels) or (groups is not None and len(groups) != len(images)):
        raise TrainingError(
            f"{len(images)} images need as many labels and groups; got {len(labels)} labels"
            + ("." if groups is None else f" and {len(groups)} groups.")
        )
    if out is not None:
        make_folder(Path(out))
    trainer = _Trainer(images, list(labels), None if groups is None else list(groups), config, init, device)
    training = trainer.run(progress)
    if out is not None:
        training.encoder.save(out)
    return training


class _Trainer:
    """The state of one training run."""

    def __init__(
        self,
        images: Sequence[ImageSource] | NDArray[np.uint8],
        labels: list[Hashable],
        groups: list[Hashable] | None,
        config: TrainingConfig,
        init: str | Path | TorchEncoder | None,
        device: str,
    ) -> None:
        self.device = choose_device(device)
        start = starting_encoder(init)
        self.config = config = config if start is None else config_from(start, config)
        if start is not None:
            backbone = copy.deepcopy(start.network)
        else:
            backbone = build_backbone(config.backbone, in_channels=1, seed=config.seed, **config.backbone_config)
        cache: PixelCache = load_pixels(images, config, start.preprocess if start is not None else None)
        self.refused = cache.refused
        self.pixels = cache.pixels  # uint8 (n, h, w)
        self.preprocess: Preprocess = cache.preprocess
        labels = [labels[i] for i in cache.kept]
        groups = None if groups is None else [groups[i] for i in cache.kept]
        plan = plan_validation(labels, groups, config)
        self.sampler = sampler_for(
            [labels[i] for i in plan.train],
            plan.n_way,
            config,
            groups=_take(groups, plan.train),
            n_episodes=config.episodes,
            seed=config.seed,
            fewer_ways=config.n_way is None,
        )
        plan = replace(plan, n_way=self.sampler.n_way)
        self.validation: list[Episode] = []
        if len(plan.validation):
            unseen = sampler_for(
                plan.validation_labels,
                plan.validation_n_way,
                config,
                groups=_take(groups, plan.validation),
                n_episodes=config.validation_episodes,
                seed=config.seed + 1,
                fewer_ways=True,
            )
            plan = replace(plan, validation_n_way=unseen.n_way)
            self.validation = list(unseen)
        self.plan: ValidationPlan = plan
        self.network = PrototypicalNetwork(backbone, metric=config.metric, temperature=config.temperature)
        self.network = self.network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.half = config.use_bfloat16(self.device.type)
        self.generator = torch.Generator(device=self.device).manual_seed(config.seed)
        self.episodes_seen = 0
        self.history: list[dict[str, float | int | None]] = []

    def run(self, progress: bool) -> Training:
        """Train until the episodes are spent or patience is."""
        config = self.config
        steps = math.ceil(config.episodes / config.episodes_per_step)
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=config.learning_rate,
            total_steps=steps + 1,
            pct_start=max(WARM_UP, 2 / (steps + 1)),  # a rise shorter than a step divides by zero inside torch
        )
        every = max(1, config.validation_every // config.episodes_per_step)
        best_state, best_accuracy, best_episode, highest = self._state(), -1.0, 0, -1.0
        since_best, stopped_early = 0, False
        began = time.monotonic()
        losses: list[float] = []
        accuracies: list[float] = []
        with TrainingProgress(total=config.episodes, shown=progress) as bar:
            for step in range(steps):
                before = self.episodes_seen
                loss, accuracy = self._step(optimizer)
                schedule.step()
                losses.append(loss)
                accuracies.append(accuracy)
                bar.advance(self.episodes_seen - before, loss=float(np.mean(losses[-20:])))
                if (step + 1) % every and step + 1 < steps:
                    continue
                validation, error = self._validate() if self.validation else (None, 0.0)
                self.history.append(
                    {
                        "episode": self.episodes_seen,
                        "loss": round(float(np.mean(losses)), 6),
                        "train_accuracy": round(float(np.mean(accuracies)), 6),
                        "validation_accuracy": None if validation is None else round(validation, 6),
                        "learning_rate": float(schedule.get_last_lr()[0]),
                        "seconds": round(time.monotonic() - began, 3),
                    }
                )
                losses, accuracies = [], []
                bar.validated(validation)
                since_best = 0 if validation is None or validation > highest else since_best + 1
                # Weights trained for longer are kept unless they are worse than the best by more than the chance of
                # drawing the episodes explains (the one-standard-error rule of Breiman et al. 1984, chapter 3.4.3).
                highest = max(highest, validation or 0.0)
                if validation is None or validation >= highest - error:
                    best_state, best_accuracy, best_episode = self._state(), validation or 0.0, self.episodes_seen
                if config.patience and since_best >= config.patience:
                    stopped_early = True
                    break
        self.network.load_state_dict(best_state)
        return self._finish(best_episode, best_accuracy if self.validation else None, stopped_early)

    def _step(self, optimizer: torch.optim.Optimizer) -> tuple[float, float]:
        self.network.train()
        indices: list[NDArray[np.intp]] = []
        targets: list[EpisodeTargets] = []
        for _ in range(min(self.config.episodes_per_step, len(self.sampler) - self.episodes_seen)):
            episode = self.sampler[self.episodes_seen]
            self.episodes_seen += 1
            order, target = _flatten(self.plan.train, episode, self.device)
            indices.append(order)
            targets.append(target)
        images = self._batch(np.concatenate(indices), augment=True)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            loss, accuracy = self.network.loss(images, targets)
        value = float(loss.detach())
        if not np.isfinite(value):
            raise TrainingError(
                f"The loss became {value} after {self.episodes_seen} episodes: "
                f"lower the learning rate ({self.config.learning_rate})."
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM)
        optimizer.step()
        return value, accuracy

    def _batch(self, rows: NDArray[np.intp], *, augment: bool) -> Tensor:
        grey = torch.from_numpy(self.pixels[rows]).to(self.device).float().div_(255)[:, None]  # (n, 1, h, w)
        if augment and self.config.augmentation is not None:
            grey = self.config.augmentation(grey, self.generator)
        mean = grey.new_tensor(self.preprocess.mean).view(1, -1, 1, 1)
        std = grey.new_tensor(self.preprocess.std).view(1, -1, 1, 1)
        images = ((grey - mean) / std).expand(-1, self.preprocess.channels, -1, -1)  # as Preprocess.normalise does
        return images.contiguous(memory_format=torch.channels_last)

    def _embed(self, rows: NDArray[np.intp]) -> Tensor:
        self.network.eval()
        parts = []
        with torch.inference_mode(), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            for start in range(0, len(rows), EMBED_BATCH):
                parts.append(self.network.backbone(self._batch(rows[start : start + EMBED_BATCH], augment=False)))
        return torch.cat(parts).float()

    def _validate(self) -> tuple[float, float]:
        """Mean accuracy over the validation episodes and its standard error; every image is embedded once."""
        vectors = self._embed(self.plan.validation)
        shares = []
        for episode in self.validation:
            n_way = len(episode.classes)
            support = np.concatenate(episode.support)
            query = np.concatenate(episode.query)
            logits = prototypical_logits(
                vectors[support],
                _targets(episode.support, self.device),
                vectors[query],
                n_way=n_way,
                metric=self.config.metric,
            )
            right = (logits.argmax(1) == _targets(episode.query, self.device)).double()
            per_class = torch.split(right, [len(rows) for rows in episode.query])
            shares.append(float(torch.stack([part.mean() for part in per_class]).mean()))
        error = float(np.std(shares, ddof=1)) / math.sqrt(len(shares)) if len(shares) > 1 else 0.0
        return float(np.mean(shares)), error

    def _state(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def _backbone_name(self) -> str:
        config = getattr(self.network.backbone, "backbone_config", None) or {}
        return str(config.get("name", type(self.network.backbone).__name__))

    def _finish(self, best_episode: int, best_accuracy: float | None, stopped_early: bool) -> Training:
        # From here on the network computes as it will when loaded from its checkpoint, so that the vectors agree.
        self.network = self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.half = False
        source_mean = self._embed(self.plan.train).mean(0).cpu().numpy().astype(np.float32)
        summary: dict[str, Any] = {
            "method": self.config.method,
            "config": self.config.to_dict(),
            "preprocess": self.preprocess.to_json(),
            "classes": [str(label) for label in self.sampler.classes],
            "left_out": {str(label): count for label, count in self.sampler.excluded.items()},
            "n_way": self.plan.n_way,
            "images": len(self.plan.train),
            "validation": self.plan.describe(),
            "best_episode": best_episode,
            "best_accuracy": best_accuracy,
            "stopped_early": stopped_early,
            "torch": torch.__version__,
        }
        encoder = TorchEncoder(
            self.network.backbone,
            self.preprocess,
            name=f"{self._backbone_name()}-{self.config.method}",
            source_mean=source_mean,
            device=str(self.device),
            training={**summary, "history": self.history},
        )
        return Training(
            encoder=encoder,
            history=tuple(self.history),
            best_episode=best_episode,
            best_accuracy=best_accuracy,
            stopped_early=stopped_early,
            summary=summary,
            refused=self.refused,
        )


def _take(groups: Sequence[Hashable] | None, rows: NDArray[np.intp]) -> list[Hashable] | None:
    return None if groups is None else [groups[i] for i in rows]


def _targets(parts: Sequence[NDArray[np.intp]], device: torch.device) -> Tensor:
    sizes = [len(part) for part in parts]
    return torch.from_numpy(np.repeat(np.arange(len(parts)), sizes)).to(device)


def _flatten(rows: NDArray[np.intp], episode: Episode, device: torch.device) -> tuple[NDArray[np.intp], EpisodeTargets]:
    """An episode's images as rows of the pixel cache, support first, and what each of them is."""
    order = rows[np.concatenate([*episode.support, *episode.query])]
    support, query = _targets(episode.support, device), _targets(episode.query, device)
    return order, EpisodeTargets(support, query, len(episode.classes))


__all__ = ["METHODS", "Training", "TrainingConfig", "TrainingError", "train"]
