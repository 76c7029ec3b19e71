"""Augmentation that keeps anatomy: small shifts, turns, zooms and exposure changes; no flips, since side matters."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the options can be read and checked where torch is not wanted
    import torch
    from torch import Tensor


@dataclass(frozen=True)
class Augmentation:
    """How far an image may be changed in training; every value is the largest change either way.

    Attributes:
        rotation: Degrees.
        shift: Share of the image's side.
        zoom: Share; 0.1 is between 1/1.1 and 1.1.
        brightness: Grey levels, of 1.
        contrast: Share, about the image's mean.
        gamma: Exponent's logarithm; 0.2 is between exp(-0.2) and exp(0.2).
        noise: Standard deviation of added noise, grey levels of 1.
        erase: Probability that a rectangle of up to a quarter of each side is filled with the image's mean.
        horizontal_flip: Probability of a left-right flip. Off, since it turns left into right; for sources whose
            classes have no side.
    """

    rotation: float = 8.0
    shift: float = 0.08
    zoom: float = 0.12
    brightness: float = 0.1
    contrast: float = 0.2
    gamma: float = 0.2
    noise: float = 0.02
    erase: float = 0.0
    horizontal_flip: float = 0.0

    def __post_init__(self) -> None:
        """Refuse amounts that cannot be meant.

        Raises:
            ValueError: With one sentence.
        """
        for name in (field.name for field in fields(self)):
            value, most = getattr(self, name), 1.0 if name in ("erase", "horizontal_flip") else math.inf
            if not (math.isfinite(value) and 0 <= value <= most):
                allowed = "lie in [0, 1]" if most == 1 else "be finite and not negative"
                raise ValueError(f"Augmentation's {name} must {allowed}; got {value}.")

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Change each image on its own.

        Args:
            images: float32 (n, 1, h, w), grey levels in [0, 1].
            generator: Source of all randomness, on the images' device.

        Returns:
            (n, 1, h, w), grey levels in [0, 1]; what is moved in from outside is black.
        """
        import torch
        from torch.nn import functional

        n = len(images)

        def draw(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=images.device) * 2 - 1  # in [-1, 1)

        angle = draw(n) * math.radians(self.rotation)
        scale = torch.exp(draw(n) * math.log1p(self.zoom))
        theta = images.new_zeros(n, 2, 3)
        cosine, sine = torch.cos(angle) * scale, torch.sin(angle) * scale
        aspect = images.shape[2] / images.shape[3]  # the grid's unit is half a side, and a turn is one of pixels
        theta[:, 0, 0], theta[:, 0, 1], theta[:, 1, 0], theta[:, 1, 1] = cosine, -sine * aspect, sine / aspect, cosine
        theta[:, :, 2] = draw(n, 2) * 2 * self.shift
        if self.horizontal_flip > 0:
            flip = torch.where((draw(n) + 1) / 2 < self.horizontal_flip, -1.0, 1.0)
            theta[:, :, 0] *= flip[:, None]
        grid = functional.affine_grid(theta, [n, 1, *images.shape[2:]], align_corners=False)
        images = functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

        def each(values: Tensor) -> Tensor:
            return values.view(n, 1, 1, 1)

        images = images.clamp(0, 1).pow(torch.exp(each(draw(n)) * self.gamma))
        mean = images.mean((1, 2, 3), keepdim=True)
        images = (images - mean) * (1 + each(draw(n)) * self.contrast) + mean + each(draw(n)) * self.brightness
        if self.noise > 0:
            strength = each((draw(n) + 1) / 2 * self.noise)
            images = images + strength * torch.randn(images.shape, generator=generator, device=images.device)
        if self.erase > 0:
            images = self._erase(images, (draw(n, 5) + 1) / 2)
        return images.clamp(0, 1)

    def _erase(self, images: Tensor, unit: Tensor) -> Tensor:
        import torch

        h, w = images.shape[2:]
        height, width = (0.08 + 0.17 * unit[:, 0]) * h, (0.08 + 0.17 * unit[:, 1]) * w
        top, left = unit[:, 2] * (h - height), unit[:, 3] * (w - width)
        rows = torch.arange(h, device=images.device)[None, :]
        columns = torch.arange(w, device=images.device)[None, :]
        in_rows = (rows >= top[:, None]) & (rows < (top + height)[:, None])
        in_columns = (columns >= left[:, None]) & (columns < (left + width)[:, None])
        hit = (in_rows[:, :, None] & in_columns[:, None, :] & (unit[:, 4] < self.erase)[:, None, None])[:, None]
        return torch.where(hit, images.mean((1, 2, 3), keepdim=True), images)


#: No change at all, for ablations and tests.
NO_AUGMENTATION = Augmentation(0, 0, 0, 0, 0, 0, 0, 0, 0)
