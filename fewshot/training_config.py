"""How an encoder is trained: every option, its default, and why."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from embeddings import Augmentation

#: Training methods by name; the networks themselves are in `fewshot.methods`, which needs torch.
METHODS = ("prototypical", "siamese", "matching", "relation", "supervised", "simclr", "multilabel")
#: Methods that need no labels.
UNLABELLED = ("simclr",)
#: Largest side of a training image in pixels, and largest seed.
MAX_IMAGE_SIZE, MAX_SEED = 4096, 2**63 - 1
#: Methods that may come before another as a first stage: `TrainingConfig.pretraining`.
PRETRAINING = ("supervised", "simclr", "siamese")
#: Losses of the Siamese network: Koch's logistic regression on pairs, and those of pytorch-metric-learning.
SIAMESE_LOSSES = ("logistic", "contrastive", "triplet", "supcon", "multi-similarity", "proxy-anchor")
#: Ways of an episode where none are asked for: as many as there are classes, up to this.
MOST_WAYS = 20


class TrainingError(ValueError):
    """Training cannot be done as asked."""


class TrainingLocked(TrainingError):
    """Another training is writing to the same folder."""


@dataclass(frozen=True)
class TrainingConfig:
    """Options of `train`.

    Attributes:
        method: "prototypical", "siamese", "matching", "relation", "multilabel", "supervised" or "simclr" (`METHODS`).
        backbone: A name `build_backbone` knows.
        backbone_config: Its options.
        metric: "euclidean" (as in the paper) or "cosine": how a query is compared with a prototype.
        temperature: What similarities are divided by before the soft maximum; None is 1 for squared distances, as in
            the paper, and 0.1 for the cosine. Long vectors (pooling="flatten") train better with about d / 10.
        image_size: Side in pixels to which images are brought, aspect ratio kept.
        contrast: How grey levels are stretched before that (`Preprocess.contrast`).
        n_way: Classes in a training episode; None takes as many as there are, up to `MOST_WAYS`, and fewer where
            images of several classes leave no episode of so many.
        k_shot: Support patients per class.
        n_query: Query images per class, at most.
        episodes: Training episodes in all.
        episodes_per_step: Episodes whose losses are averaged before the weights move.
        learning_rate: Peak of the one-cycle rate (Smith 2018, arXiv 1803.09820).
        weight_decay: Of AdamW.
        loss: Of the Siamese network: "logistic", "contrastive", "triplet", "supcon", "multi-similarity" or
            "proxy-anchor" (`SIAMESE_LOSSES`).
        mining: Whether pairs and triplets of the Siamese losses are mined (the hard ones only) or all taken.
        batch_size: Images per step of the methods that learn from plain batches ("supervised", "simclr"); for these an
            "episode" in the options above and below is one such batch.
        accumulate: Steps whose gradients are averaged before the weights move: as if `episodes_per_step` were that many
            times larger, in the memory of one.
        pretraining: "supervised", "simclr" or "siamese" (`PRETRAINING`): what the same images first teach the network;
            None is nothing.
        pretraining_episodes: Length of that stage.
        pretraining_rate: Its peak rate; None takes `learning_rate`.
        validation: "classes" holds whole classes out of training, "patients" holds patients out, "none" trains on
            all; "auto" holds classes out where enough are left to train on, else patients where there are enough, else
            nothing.
        validation_share: Share of the classes, or of the patients, held out.
        validation_every: Training episodes between two validations.
        validation_episodes: Episodes per validation, the same each time.
        patience: Validations without a new best after which training stops; 0 never stops early. An accuracy equal
            to the best is no new best, though the later of two equal weights are kept.
        augmentation: How training images are changed; None leaves them alone.
        precision: "bf16", "float32", or "auto": bfloat16 where the processor computes in it.
        seed: Of everything random.
    """

    method: str = "siamese"
    backbone: str = "conv4"
    backbone_config: Mapping[str, Any] = field(default_factory=dict)
    metric: str = "euclidean"
    temperature: float | None = None
    image_size: int = 64
    contrast: Literal["none", "minmax", "percentile"] = "none"
    n_way: int | None = None
    k_shot: int = 5
    n_query: int = 5
    episodes: int = 1000
    episodes_per_step: int = 1
    learning_rate: float = 2e-3
    weight_decay: float = 1e-4
    loss: str = "multi-similarity"
    mining: bool = True
    batch_size: int = 64
    accumulate: int = 1
    pretraining: str | None = None
    pretraining_episodes: int = 1000
    pretraining_rate: float | None = None
    validation: str = "auto"
    validation_share: float = 0.2
    validation_every: int = 50
    validation_episodes: int = 100
    patience: int = 0
    augmentation: Augmentation | None = field(default_factory=Augmentation)
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse options that cannot be meant.

        Raises:
            TrainingError: With one sentence.
        """
        _choice("method", self.method, METHODS)
        _choice("loss", self.loss, SIAMESE_LOSSES)
        if self.pretraining is not None:
            _choice("pretraining", self.pretraining, PRETRAINING)
        _choice("metric", self.metric, ("euclidean", "cosine"))
        _choice("validation", self.validation, ("auto", "classes", "patients", "none"))
        _choice("contrast", self.contrast, ("none", "minmax", "percentile"))
        _choice("precision", self.precision, ("auto", "bf16", "float32"))
        for name, least in (
            ("image_size", 16),
            ("k_shot", 1),
            ("n_query", 1),
            ("episodes", 1),
            ("episodes_per_step", 1),
            ("batch_size", 2),
            ("accumulate", 1),
            ("pretraining_episodes", 1),
            ("validation_every", 1),
            ("validation_episodes", 1),
            ("patience", 0),
            ("seed", 0),
            ("n_way", 2),
        ):
            value = getattr(self, name)
            if name == "n_way" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise TrainingError(f"{name} must be a whole number of at least {least}; got {value!r}.")
        for name, most in (("image_size", MAX_IMAGE_SIZE), ("seed", MAX_SEED)):
            if getattr(self, name) > most:
                raise TrainingError(f"{name} must be at most {most:,}; got {getattr(self, name):,}.")
        for name in ("validation_share", "learning_rate", "pretraining_rate", "temperature", "weight_decay"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise TrainingError(f"{name} must be a number; got {value!r}.")
        if not isinstance(self.backbone_config, Mapping) or set(self.backbone_config) & {"name", "seed"}:
            raise TrainingError(
                f"backbone_config must hold options of the backbone, without 'name' and 'seed'; "
                f"got {self.backbone_config!r}."
            )
        if not 0 < self.validation_share < 1:
            raise TrainingError(f"validation_share must lie between 0 and 1; got {self.validation_share}.")
        for name in ("learning_rate", "pretraining_rate"):
            rate = getattr(self, name)
            if rate is not None and not (rate > 0 and math.isfinite(rate)):
                raise TrainingError(f"{name} must be above 0; got {rate}.")
        if self.temperature is not None and not (self.temperature > 0 and math.isfinite(self.temperature)):
            raise TrainingError(f"temperature must be above 0; got {self.temperature}.")
        if not (self.weight_decay >= 0 and math.isfinite(self.weight_decay)):
            raise TrainingError(f"weight_decay must not be negative; got {self.weight_decay}.")

    def to_dict(self) -> dict[str, Any]:
        """The options as plain values for a JSON file."""
        return {**dataclasses.asdict(self), "backbone_config": dict(self.backbone_config)}

    def use_bfloat16(self, device: str) -> bool:
        """Whether to compute in bfloat16 on a "cpu" or "cuda" device."""
        if self.precision != "auto":
            return self.precision == "bf16"
        import torch

        if device == "cuda":
            return bool(torch.cuda.is_bf16_supported())
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        close = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise TrainingError(f"{name} must be one of {', '.join(allowed)}; got {value!r}.{hint}")
