"""Contrastive alignment: projection heads on frozen encoders, learnt so that an image finds its report and back.

The symmetric loss of ConVIRT and CLIP (Zhang et al. 2020, arXiv 2010.00747; Radford et al. 2021, arXiv 2103.00020).
Reports of one class, or the same report, are no opposites: equal texts of a batch share the target between them.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .alignment import prepared, ridge, strongest
from .linear_map import LinearMap

LARGEST_SCALE = 100.0
"""The inverse temperature does not grow beyond this, as in CLIP."""


class ContrastiveAlignment:
    """Two linear heads over frozen vectors, trained with the symmetric contrastive loss. Needs torch.

    The image head starts from the closed-form ridge map and the text head from the identity, so that training can only
    move away from what least squares knows; how far is held by the decay and the number of steps.

    Args:
        dim: Numbers of the common space; as many as the text vectors have where that is fewer.
        epochs: Passes over the pairs.
        batch: Pairs that are told apart at a time.
        rate: Largest step of AdamW under a one-cycle schedule.
        decay: Weight decay.
        temperature: Where the learnt temperature starts.
        noise: Standard deviation of noise added to image rows in training, as a share of their length.
        seed: Of order and noise.

    Attributes:
        map_: The map.
        losses_: Mean loss of each epoch.
    """

    map_: LinearMap
    losses_: list[float]

    def __init__(
        self,
        *,
        dim: int = 128,
        epochs: int = 30,
        batch: int = 256,
        rate: float = 2e-3,
        decay: float = 0.1,
        temperature: float = 0.1,
        noise: float = 0.1,
        seed: int = 0,
    ) -> None:
        self.dim = dim
        self.epochs = epochs
        self.batch = batch
        self.rate = rate
        self.decay = decay
        self.temperature = temperature
        self.noise = noise
        self.seed = seed

    def fit(self, images: ArrayLike, texts: ArrayLike) -> ContrastiveAlignment:
        """Train the heads.

        Raises:
            ZeroShotError: Rows that do not fit together.
        """
        import torch
        from torch.nn import functional

        image_mean, text_mean, x_rows, t_rows = prepared(images, texts)
        x_rows, directions = strongest(x_rows)
        start, basis = self._start(x_rows, t_rows)
        generator = torch.Generator().manual_seed(self.seed)
        x, t = torch.from_numpy(x_rows).float(), torch.from_numpy(t_rows).float()
        _, codes = np.unique(t_rows.round(6), axis=0, return_inverse=True)
        same = torch.from_numpy(codes.ravel())
        image_head = torch.tensor(start, dtype=torch.float32, requires_grad=True)  # (p, k)
        text_head = torch.tensor(basis, dtype=torch.float32, requires_grad=True)  # (d, k)
        scale = torch.tensor(math.log(1 / self.temperature), requires_grad=True)
        optimizer = torch.optim.AdamW(
            [{"params": [image_head, text_head], "weight_decay": self.decay}, {"params": [scale], "weight_decay": 0.0}],
            lr=self.rate,
        )
        steps = self.epochs * math.ceil(len(x) / self.batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=self.rate, total_steps=steps + 1)
        self.losses_ = []
        for _ in range(self.epochs):
            total = 0.0
            order = torch.randperm(len(x), generator=generator)
            for rows in (order[start : start + self.batch] for start in range(0, len(x), self.batch)):
                noisy = x[rows] + self.noise / math.sqrt(x.shape[1]) * torch.randn(x[rows].shape, generator=generator)
                u = functional.normalize(noisy @ image_head, dim=1)
                v = functional.normalize(t[rows] @ text_head, dim=1)
                logits = scale.exp().clamp(max=LARGEST_SCALE) * u @ v.T  # (b, b)
                target = (same[rows, None] == same[None, rows]).float()
                target = target / target.sum(dim=1, keepdim=True)
                loss = (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                total += float(loss.detach()) * len(rows)
            self.losses_.append(total / len(x))
        heads = (directions @ image_head.detach().double().numpy(), text_head.detach().double().numpy())
        self.map_ = LinearMap(image_mean, text_mean, *heads)
        return self

    def _start(self, x: NDArray[np.float64], t: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the ridge map (p, k) into the strongest text directions, and those directions (d, k)."""
        width = min(int(self.dim), t.shape[1])
        basis = np.eye(width) if width == t.shape[1] else np.linalg.svd(t.T @ t)[0][:, :width]
        start = ridge(x, t, 1.0) @ basis
        return start / max(float(np.linalg.norm(start)) / math.sqrt(width), 1e-12), basis
