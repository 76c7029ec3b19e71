"""Training an image encoder by the words that go with its images: ConVIRT and CLIP with a frozen text side.

A network learns to put an image where its report is among the texts (Zhang et al. 2020, arXiv 2010.00747). The text
vectors stay as their encoder made them: with thousands of pairs, not millions, that is what keeps them meaning
something (LiT, Zhai et al. 2021, arXiv 2111.07991). Texts of one case are no opposites of one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from embeddings import Augmentation, ImageSource, Preprocess, TorchEncoder, build_backbone, read_image
from episodes import PixelCache

from .errors import ZeroShotError
from .generalized import missing
from .linear_map import unit_rows

if TYPE_CHECKING:
    from embeddings import TextEncoder

LEAST_STD = 0.05
"""Grey levels spread less than this (of 1) are not blown up further by the normalisation."""


@dataclass(frozen=True)
class JointTraining:
    """How an image encoder is trained by texts.

    Attributes:
        backbone: As `build_backbone` knows it.
        backbone_config: Its options.
        image_size: Side in pixels.
        epochs: Passes over the pairs.
        batch: Pairs told apart at a time.
        rate: Largest step of AdamW under a one-cycle schedule.
        decay: Weight decay.
        temperature: Where the learnt temperature starts.
        augmentation: Applied to images.
        word_loss: Weight of a second loss, by which the vectors must also tell which of the commonest words the text
            holds; it sees what a single direction per text averages away. 0 leaves it out.
        words: How many of the commonest words that is.
        bfloat16: Compute in bfloat16 where it is safe (autocast).
        seed: Of weights, order and augmentation.
    """

    backbone: str = "resnet12"
    backbone_config: dict[str, Any] = field(default_factory=dict)
    image_size: int = 96
    epochs: int = 40
    batch: int = 64
    rate: float = 2e-3
    decay: float = 0.05
    temperature: float = 0.1
    augmentation: Augmentation = field(default_factory=Augmentation)
    word_loss: float = 1.0
    words: int = 300
    bfloat16: bool = False
    seed: int = 0


def train_by_text(
    images: Sequence[ImageSource],
    texts: Sequence[str],
    text_encoder: TextEncoder,
    *,
    groups: Sequence[Hashable] | None = None,
    config: JointTraining | None = None,
    name: str | None = None,
    progress: Callable[[int, int, float], None] | None = None,
) -> TorchEncoder:
    """Train an image encoder on pairs of images and texts.

    Args:
        images: n sources `read_image` takes.
        texts: The n texts; an image without one is left out.
        text_encoder: Fitted; it is not trained further.
        groups: n cases or patients; texts of one are no opposites. None takes equal texts alone as the same.
        config: How.
        name: Of the encoder.
        progress: Called after each epoch with its number, their count and the mean loss.

    Returns:
        The encoder; its `source_mean` is the mean vector of the images trained on.

    Raises:
        ZeroShotError: Fewer pairs than two batches take, or lists of unequal length.
    """
    settings = config or JointTraining()
    if len(images) != len(texts) or (groups is not None and len(groups) != len(images)):
        raise ZeroShotError(f"{len(images):,} images need as many texts and groups; got {len(texts):,} texts.")
    words = np.asarray(text_encoder.encode([text or "" for text in texts]), dtype=np.float64)
    told = np.flatnonzero(np.linalg.norm(words, axis=1) > 0)
    if len(told) < 2 * settings.batch:
        raise ZeroShotError(
            f"Training by text takes at least {2 * settings.batch} images with a text; {len(told):,} have one."
        )
    form = Preprocess(size=(settings.image_size, settings.image_size), mean=(0.5,), std=(0.25,))
    cache = PixelCache(
        [images[i] for i in told.tolist()],
        size=form.size,
        decode=lambda source: np.rint(form.resize(read_image(source)) * 255).astype(np.uint8),
    )
    cache.fill()
    kept = told[cache.kept]
    if len(kept) < 2 * settings.batch:
        raise ZeroShotError(
            f"Training by text takes at least {2 * settings.batch} images with a text; of {len(told):,} that have one "
            f"{len(kept):,} can be read."
        )
    pixels = torch.from_numpy(np.asarray(cache.pixels)[cache.kept])  # uint8 (n, h, w)
    mean, std = _grey_levels(pixels.numpy())
    form = replace(form, mean=(mean,), std=(std,))
    network = build_backbone(settings.backbone, seed=settings.seed, **settings.backbone_config)
    losses = _Losses(network.dim, words[kept], [texts[i] for i in kept.tolist()], settings)
    same = torch.from_numpy(
        _cases([texts[i] for i in kept.tolist()], None if groups is None else [groups[i] for i in kept.tolist()])
    )
    generator = torch.Generator().manual_seed(settings.seed)
    parameters = [*network.parameters(), *losses.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=settings.rate, weight_decay=settings.decay)
    steps = settings.epochs * (len(kept) // settings.batch)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=settings.rate, total_steps=steps + 1)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for epoch in range(settings.epochs):
        network.train()
        order, total = torch.randperm(len(kept), generator=generator), 0.0
        starts = range(0, len(kept) - settings.batch + 1, settings.batch)
        batches = [order[start : start + settings.batch] for start in starts]
        for rows in batches:
            grey = settings.augmentation(pixels[rows][:, None].float() / 255, generator)
            seen = ((grey - mean) / std).contiguous(memory_format=torch.channels_last)
            with torch.autocast("cpu", torch.bfloat16, enabled=settings.bfloat16):
                vectors = network(seen)
            loss = losses(vectors.float(), rows, same[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            total += float(loss.detach())
        if progress is not None:
            progress(epoch + 1, settings.epochs, total / max(len(batches), 1))
    network.eval()
    label = name or f"{settings.backbone}-by-text"
    encoder = TorchEncoder(network, form, name=label)
    source_mean = encoder.encode([images[i] for i in kept.tolist()]).mean(axis=0)
    return TorchEncoder(
        network,
        form,
        name=label,
        source_mean=source_mean,
        training={
            "method": "by text",
            "pairs": len(kept),
            "text_encoder": text_encoder.fingerprint,
            "seed": settings.seed,
        },
    )


class _Losses(torch.nn.Module):
    """The contrastive loss against frozen text vectors, and the loss of naming words."""

    targets: torch.Tensor
    named: torch.Tensor | None

    def __init__(self, dim: int, words: NDArray[np.float64], texts: Sequence[str], settings: JointTraining) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            self.projection = torch.nn.Linear(dim, words.shape[1], bias=False)
            named = _word_table(texts, settings.words) if settings.word_loss > 0 else None
            self.naming = None if named is None else torch.nn.Linear(dim, named.shape[1])
        if self.naming is not None and named is not None:
            rate = named.mean(axis=0).clip(1e-3, 1 - 1e-3)
            with torch.no_grad():
                self.naming.bias.copy_(torch.from_numpy(np.log(rate / (1 - rate))).float())
        self.scale = torch.nn.Parameter(torch.tensor(math.log(1 / settings.temperature)))
        self.weight = settings.word_loss
        self.register_buffer("targets", torch.from_numpy(unit_rows(words - words.mean(axis=0))).float())
        self.register_buffer("named", None if named is None else torch.from_numpy(named).float())

    def forward(self, vectors: torch.Tensor, rows: torch.Tensor, same: torch.Tensor) -> torch.Tensor:
        u = functional.normalize(self.projection(vectors), dim=1)
        logits = self.scale.exp().clamp(max=100.0) * u @ self.targets[rows].T  # (b, b)
        target = (same[:, None] == same[None, :]).float()
        target = target / target.sum(dim=1, keepdim=True)
        loss = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
        if self.naming is not None and self.named is not None:
            found = functional.binary_cross_entropy_with_logits(self.naming(vectors), self.named[rows], reduction="sum")
            loss = loss + self.weight * found / (10 * len(rows))
        return loss


def _word_table(texts: Sequence[str], count: int) -> NDArray[np.float64]:
    """Return which of the commonest words each text holds, (n, words)."""
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(
        max_features=count, binary=True, stop_words="english", token_pattern=r"(?u)\b[a-zA-Z]{3,}\b"
    )
    table: NDArray[np.float64] = vectorizer.fit_transform(texts).toarray().astype(np.float64)
    return table


def _cases(texts: Sequence[str], groups: Sequence[Hashable] | None) -> NDArray[np.int64]:
    first: dict[Hashable, int] = {}
    keys: list[Hashable] = [text.strip() for text in texts]
    if groups is not None:
        keys = [("text", keys[i]) if missing(group) else ("case", group) for i, group in enumerate(groups)]
    return np.array([first.setdefault(key, len(first)) for key in keys], dtype=np.int64)


def _grey_levels(pixels: NDArray[np.uint8]) -> tuple[float, float]:
    """Return mean and standard deviation of grey levels, of 1."""
    counts = np.bincount(pixels.ravel(), minlength=256)
    levels = np.arange(256) / 255
    mean = float((counts * levels).sum() / counts.sum())
    std = math.sqrt(float((counts * (levels - mean) ** 2).sum() / counts.sum()))
    return round(mean, 4), round(max(std, LEAST_STD), 4)
