"""One stage of a training: a network, a method and its batches, from the first step to the best weights."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from embeddings import SourceStatistics
from episodes import PixelBatches

from .batches import episode_targets
from .best_weights import BestWeights
from .devices import Devices
from .layout import Source, lay_out, takes_images
from .methods import build_network
from .networks import TrainableNetwork
from .progress import TrainingProgress
from .source_classes import class_statistics
from .stage_state import restore, save
from .training_config import TrainingConfig, TrainingError
from .training_log import TrainingLog
from .training_state import TrainingState

#: Gradients longer than this are shortened to it; early episodes of a fresh network can be violent.
GRADIENT_NORM = 5.0
#: Share of the steps in which the one-cycle rate rises.
WARM_UP = 0.25
#: Images embedded at once when the network is only looked at.
EMBED_BATCH = 256
#: Seconds after which the state is written even where no validation was due.
STATE_SECONDS = 120.0
#: Steps that are not yet as fast as the rest, and those after them from which the time left is estimated.
UNTIMED_STEPS, TIMED_STEPS = 3, 5


class Stage:
    """The state of one stage.

    Args:
        source: What is trained on.
        backbone: Trained in place.
        config: How.
        devices: Where.
        history: The training's record so far, to which this stage appends.

    Attributes:
        network: The backbone within its method; after `run` it has the best weights.
        layout: What is trained on and validated on.
        best: The best weights so far.
    """

    def __init__(
        self,
        source: Source,
        backbone: nn.Module,
        config: TrainingConfig,
        devices: Devices,
        history: list[dict[str, Any]],
    ) -> None:
        self.source, self.config, self.devices, self.history = source, config, devices, history
        self.device = devices.device
        self.batch_size = 1 if takes_images(config) else config.episodes_per_step  # what counts as an episode
        self.per_step = self.batch_size * config.accumulate * devices.count
        self.steps = math.ceil(config.episodes / self.per_step)
        # Processes that train together must all take part in every step, so the last one is filled up for them.
        self.episodes = config.episodes if devices.count == 1 else self.steps * self.per_step
        self.layout = lay_out(source, config, episodes=self.episodes, device=self.device)
        network = build_network(backbone, config, max(2, self.layout.n_classes))
        self.network: TrainableNetwork = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        form = source.preprocess
        self.pixels = PixelBatches(
            source.pixels,
            mean=form.mean,
            std=form.std,
            channels=form.channels,
            channels_last=True,
            device=self.device,
        )
        self.pixels.move()
        self.half = config.use_bfloat16(self.device.type)
        self.generator = torch.Generator(device=self.device).manual_seed(config.seed + 1_000_003 * devices.rank)
        self.step, self.episodes_seen = 0, 0
        self.best = BestWeights(self.network, patience=config.patience)
        self.seconds = 0.0
        self.losses: list[float] = []
        self.accuracies: list[float] = []

    def describe(self) -> str:
        """What is going to be done, in a sentence."""
        config, plan = self.config, self.layout.plan
        weights = sum(parameter.numel() for parameter in self.network.backbone.parameters())
        each = (
            f"{config.episodes:,} episodes ({plan.n_way}-way, {config.k_shot} support patients and up to "
            f"{config.n_query} queries per class)"
            if not takes_images(config)
            else f"{config.episodes:,} batches of {min(config.batch_size, len(plan.train)):,} images"
        )
        loss = f" ({config.loss})" if config.method == "siamese" else ""
        if not self.layout.validation:
            held = "nothing held out"
        elif plan.kind == "classes":
            held = f"{len(plan.held_out)} classes held out"
        else:
            known = self.source.groups is not None
            held = "patients held out" if known else "images held out, since patients are unknown"
        many = f", {self.devices.count} processes" if self.devices.count > 1 else ""
        precision = "bfloat16" if self.half else "float32"
        return (
            f"{config.method}{loss}, {self.backbone_name()} of {weights:,} weights: {each} from "
            f"{len(plan.train):,} images of {len(self.layout.classes):,} classes; {held}; "
            f"{self.device.type}, {precision}{many}"
        )

    def run(
        self,
        bar: TrainingProgress,
        log: TrainingLog,
        resumed: TrainingState | None,
        saving: tuple[Path, Mapping[str, Any]] | None,
        *,
        finish: bool = False,
    ) -> None:
        """Train until the episodes are spent or patience is; leave the best weights in the network.

        Args:
            bar: Told how far it is.
            log: Told what comes of it.
            resumed: The state to go on from, or None.
            saving: The folder for states and the facts that go with each, or None to save none.
            finish: Whether to train no further than the state.
        """
        config = self.config
        optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=config.learning_rate,
            total_steps=self.steps + 1,
            pct_start=max(WARM_UP, 2 / (self.steps + 1)),  # a rise shorter than a step divides by zero inside torch
        )
        if resumed is not None:
            restore(self, resumed, optimizer, schedule)
            if finish and self.losses and (self.best.accuracy < 0 or not self.layout.validation):
                self._look(float(schedule.get_last_lr()[0]), bar, log)  # nothing was kept yet, or the last is
        module = self.devices.prepare(self.network)
        every = max(1, config.validation_every // self.per_step)
        began = time.monotonic() - self.seconds
        saved = timed = time.monotonic()
        bar.begin(self.describe(), total=self.episodes, done=self.episodes_seen)
        first = self.step
        while self.step < self.steps and not self.best.enough and not finish:
            loss, accuracy, trained_on = self._step(module, optimizer)
            schedule.step()
            self.step += 1
            self.episodes_seen += trained_on
            self.losses.append(loss)
            self.accuracies.append(accuracy)
            rate = float(schedule.get_last_lr()[0])
            log.step(self.episodes_seen, config.method, loss=loss, learning_rate=rate)
            bar.advance(trained_on, loss=float(np.mean(self.losses[-20:])))
            if self.step == first + UNTIMED_STEPS:
                timed = time.monotonic()
            elif self.step == first + UNTIMED_STEPS + TIMED_STEPS:
                bar.estimate((time.monotonic() - timed) / TIMED_STEPS * (self.steps - self.step))
            due = self.step % every == 0 or self.step == self.steps
            self.seconds = time.monotonic() - began
            if due:
                self._look(rate, bar, log)
            if saving is not None and (due or time.monotonic() - saved > STATE_SECONDS):
                save(self, saving, optimizer, schedule)
                saved = time.monotonic()
        self.network.load_state_dict(self.best.weights)
        self.devices.agree(self.network)
        # From here on the network computes as it will when loaded from its checkpoint, so that the vectors agree.
        self.network = self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.half = False

    def _look(self, rate: float, bar: TrainingProgress, log: TrainingLog) -> None:
        """Validate, record, and keep the weights if they are good."""
        validation, error = (None, 0.0)
        if self.layout.validation:
            found = self._validate() if self.devices.is_main else (0.0, 0.0)
            validation, error = self.devices.shared(found)
        record = {
            "stage": self.config.method,
            "episode": self.episodes_seen,
            "loss": round(self.devices.mean(float(np.mean(self.losses))), 6),
            "train_accuracy": round(self.devices.mean(float(np.mean(self.accuracies))), 6),
            "validation_accuracy": None if validation is None else round(validation, 6),
            "learning_rate": rate,
            "seconds": round(self.seconds, 3),
        }
        self.history.append(record)
        log.validated(record)
        bar.validated(validation)
        self.losses, self.accuracies = [], []
        self.best.look(self.network, self.episodes_seen, validation, error)

    def _step(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[float, float, int]:
        """One move of the weights: the gradients of `accumulate` batches, averaged; loss, accuracy, episodes."""
        self.network.train()
        optimizer.zero_grad(set_to_none=True)
        losses, accuracies, trained_on = [], [], 0
        count, rank = self.devices.count, self.devices.rank
        left = math.ceil((self.episodes - self.episodes_seen) / (self.batch_size * count))
        parts = min(self.config.accumulate, left)
        for part in range(parts):
            batch = self.layout.batches.draw((self.step * self.config.accumulate + part) * count + rank)
            trained_on += batch.size * count
            views = self.network.views
            images = self._batch(np.tile(batch.rows, views), augment=True)
            with self.devices.together(module, part == parts - 1):
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
                    loss, accuracy = module(images, batch.targets)
                value = float(loss.detach())
                if not np.isfinite(value):
                    raise TrainingError(
                        f"The loss became {value} after {self.episodes_seen} episodes: "
                        f"lower the learning rate ({self.config.learning_rate})."
                    )
                (loss / parts).backward()
            losses.append(value)
            accuracies.append(accuracy)
        nn.utils.clip_grad_norm_(self.network.parameters(), GRADIENT_NORM)
        optimizer.step()
        return float(np.mean(losses)), float(np.mean(accuracies)), trained_on

    def _batch(self, rows: NDArray[np.intp], *, augment: bool) -> Tensor:
        """Normalised images (n, c, h, w) of some rows; valid until the next call."""
        change = self.config.augmentation if augment else None
        return self.pixels(rows, augment=change, generator=self.generator)

    def _embed(self, rows: NDArray[np.intp]) -> Tensor:
        self.network.eval()
        parts = []
        with torch.no_grad(), torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.half):
            for start in range(0, len(rows), EMBED_BATCH):
                parts.append(self.network.backbone(self._batch(rows[start : start + EMBED_BATCH], augment=False)))
        return torch.cat(parts).float()

    def _validate(self) -> tuple[float, float]:
        """Mean accuracy over the validation episodes and its standard error; every image is embedded once."""
        vectors = self._embed(self.layout.plan.validation)
        shares = []
        for episode in self.layout.validation:
            targets = episode_targets(episode, self.device)
            with torch.inference_mode():
                scores = self.network.score(
                    vectors[np.concatenate(episode.support)],
                    targets.support,
                    vectors[np.concatenate(episode.query)],
                    n_way=targets.n_way,
                )
            right = (scores.argmax(1) == targets.query).double()
            per_class = torch.split(right, [len(rows) for rows in episode.query])
            shares.append(float(torch.stack([part.mean() for part in per_class]).mean()))
        error = float(np.std(shares, ddof=1)) / math.sqrt(len(shares)) if len(shares) > 1 else 0.0
        return float(np.mean(shares)), error

    def source_moments(self) -> tuple[NDArray[np.float32], SourceStatistics | None]:
        """Mean vector (d,) of the training images, and what `class_statistics` keeps of their classes."""
        rows = self.layout.plan.train
        vectors = self._embed(rows)
        mean: NDArray[np.float32] = vectors.mean(0).cpu().numpy().astype(np.float32)
        labels = [self.source.labels[i] for i in rows]
        return mean, class_statistics(vectors.cpu().numpy(), labels, self.source.owners(rows))

    def backbone_name(self) -> str:
        """The backbone's name for people, else its class."""
        return str(getattr(self.network.backbone, "label", None) or type(self.network.backbone).__name__)

    def summary(self) -> dict[str, Any]:
        """What was trained on, how, and what came of it; plain values."""
        layout = self.layout
        return {
            "method": self.config.method,
            "config": self.config.to_dict(),
            "classes": [str(label) for label in layout.classes],
            "left_out": layout.left_out,
            "n_way": layout.plan.n_way,
            "images": len(layout.plan.train),
            "validation": layout.plan.describe(),
            "best_episode": self.best.episode,
            "best_accuracy": self.best_accuracy,
            "stopped_early": self.best.enough,
        }

    @property
    def best_accuracy(self) -> float | None:
        """Validation accuracy of the best weights, or None where nothing was held out."""
        return self.best.accuracy if self.layout.validation else None
