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

        n = len(images)

        def draw(*shape: int) -> Tensor:
            return torch.rand(*shape, generator=generator, device=images.device) * 2 - 1  # in [-1, 1)

        def each(values: Tensor) -> Tensor:
            return values.view(n, 1, 1, 1)

        angle = draw(n) * math.radians(self.rotation)
        scale = torch.exp(draw(n) * math.log1p(self.zoom))
        shift = draw(n, 2) * 2 * self.shift  # the grid's unit is half a side
        flip = torch.ones_like(angle)
        if self.horizontal_flip > 0:
            flip = torch.where((draw(n) + 1) / 2 < self.horizontal_flip, -1.0, 1.0)
        if self.rotation or self.zoom or self.shift or self.horizontal_flip:
            images = _moved(images, torch.cos(angle) * scale, torch.sin(angle) * scale, shift, flip)
        else:
            images = images.clone()
        # From here on the images are our own, and changed where they are.
        images.clamp_(0, 1)
        gamma = torch.exp(draw(n) * self.gamma)
        if self.gamma > 0:
            images.log2_().mul_(each(gamma)).exp2_()  # black stays black: 2 to the power of minus infinity
        contrast, brightness = each(draw(n) * self.contrast), each(draw(n) * self.brightness)
        if self.contrast or self.brightness:
            mean = images.mean((1, 2, 3), keepdim=True)
            images.mul_(1 + contrast).add_(brightness - mean * contrast)
        if self.noise > 0:
            strength = each((draw(n) + 1) / 2 * self.noise)
            images.addcmul_(strength, torch.randn(images.shape, generator=generator, device=images.device))
        if self.erase > 0:
            images = self._erase(images, (draw(n, 5) + 1) / 2)
        return images.clamp_(0, 1)

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


#: For self-supervision, whose task is to know an image again after it: the harder the changes, the more is learnt from
#: it (Chen et al. 2020, arXiv 2002.05709, section 3).
STRONG_AUGMENTATION = Augmentation(15, 0.15, 0.35, 0.2, 0.4, 0.4, 0.03, erase=0.3)


def _moved(images: Tensor, cosine: Tensor, sine: Tensor, shift: Tensor, flip: Tensor) -> Tensor:
    """Turn, zoom, shift and flip each image about its centre, by bilinear sampling; a new tensor.

    Args:
        images: (n, 1, h, w).
        cosine: (n,), cosine of the angle times the zoom.
        sine: (n,), its sine times the zoom.
        shift: (n, 2), right and down, in half sides.
        flip: (n,), -1 for a left-right flip, else 1.
    """
    import torch
    from torch.nn import functional

    n, _, h, w = images.shape
    # Where each pixel is taken from, pixels at the centres of equal cells of [-1, 1]. The grid is a sum of a row and a
    # column, which costs a fraction of torch's affine_grid, a product of matrices.
    columns = (torch.arange(w, device=images.device) * 2 + 1) / w - 1  # (w,)
    rows = (torch.arange(h, device=images.device) * 2 + 1) / h - 1  # (h,)
    aspect = h / w  # the unit is half a side, and a turn is one of pixels
    grid = images.new_empty(n, h, w, 2)
    for axis, by_column, by_row in ((0, cosine * flip, -sine * aspect), (1, sine / aspect * flip, cosine)):
        along = by_column[:, None] * columns  # (n, w)
        down = by_row[:, None] * rows + shift[:, axis, None]  # (n, h)
        torch.add(down[:, :, None], along[:, None, :], out=grid[..., axis])
    return functional.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


#: No change at all, for ablations and tests.
NO_AUGMENTATION = Augmentation(0, 0, 0, 0, 0, 0, 0, 0, 0)
