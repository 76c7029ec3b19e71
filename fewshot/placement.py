"""Where an image lies in what an encoder sees of it, so that a map over the one can be drawn over the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embeddings import Preprocess


@dataclass(frozen=True)
class Placement:
    """An image of (h, w) pixels, resized to `height` x `width`, with its corner at (top, left) of a canvas.

    Attributes:
        shape: (h, w) of the image.
        canvas: (H, W) that the encoder sees.
        height: Rows of the resized image.
        width: Columns of the resized image.
        top: Row of the canvas where it starts; negative where it was cut.
        left: Column of the canvas where it starts; negative where it was cut.
    """

    shape: tuple[int, int]
    canvas: tuple[int, int]
    height: int
    width: int
    top: int
    left: int

    @property
    def content(self) -> tuple[slice, slice]:
        """Rows and columns of the canvas that show image and no filling."""
        rows = slice(max(0, self.top), min(self.canvas[0], self.top + self.height))
        columns = slice(max(0, self.left), min(self.canvas[1], self.left + self.width))
        return rows, columns

    def to_image(self, values: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Bring a map over the canvas to the image's own grid.

        Args:
            values: (H, W).

        Returns:
            float32 (h, w); 0 where the image was cut and the encoder saw nothing.
        """
        rows, columns = self.content
        whole = np.zeros((self.height, self.width), dtype=np.float32)
        whole[
            rows.start - self.top : rows.stop - self.top, columns.start - self.left : columns.stop - self.left
        ] = values[rows, columns]  # fmt: skip
        if whole.shape == self.shape:
            return whole
        resized = Image.fromarray(whole).resize((self.shape[1], self.shape[0]), Image.Resampling.BILINEAR)
        return np.array(resized, dtype=np.float32)


def place(preprocess: Preprocess | None, shape: tuple[int, int], canvas: tuple[int, int]) -> Placement:
    """Find where `Preprocess.resize` puts an image.

    Args:
        preprocess: The encoder's; None, or one of another size than the canvas, means that the whole image became the
            whole canvas, as with image processors that keep the aspect ratio.
        shape: (h, w) of the image.
        canvas: (H, W) of what was loaded.
    """
    height, width = canvas
    if preprocess is None or preprocess.size != canvas or preprocess.fit == "stretch":
        return Placement(shape, canvas, height, width, 0, 0)
    scales = height / shape[0], width / shape[1]
    if preprocess.fit == "crop":
        down, across = (max(round(side * max(scales)), full) for side, full in zip(shape, canvas, strict=True))
        return Placement(shape, canvas, down, across, -((down - height) // 2), -((across - width) // 2))
    down, across = (min(max(1, round(side * min(scales))), full) for side, full in zip(shape, canvas, strict=True))
    return Placement(shape, canvas, down, across, (height - down) // 2, (width - across) // 2)
