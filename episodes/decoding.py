"""Image files to small grey images, with libjpeg's scaled decoding where a file is a JPEG (Pillow's `draft`)."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageOps

from .errors import EpisodeError

#: No training image is larger than this in either direction, in pixels.
MAX_SIDE = 4096
#: A JPEG is decoded at the smallest of its scales that is this many times the result or more, so that the filter that
#: makes the result of it still averages.
DRAFT = 2


@dataclass(frozen=True)
class FileDecoder:
    """Read PNG, JPEG and what else Pillow reads as uint8 grey images of one size.

    Colour becomes luminance, transparency black; 16-bit grey is scaled to 8 bits; EXIF orientation is applied. For
    DICOM, windows and other contrasts give `PixelCache` a decoder made of `embeddings.read_image` and `Preprocess`.

    Args:
        size: Height and width in pixels.
        fit: "pad" keeps the aspect ratio and fills up with black, "stretch" gives it up.

    Raises:
        EpisodeError: A size or fit outside what is allowed.
    """

    size: tuple[int, int]
    fit: Literal["pad", "stretch"] = "pad"

    def __post_init__(self) -> None:
        """Check every field."""
        if len(self.size) != 2 or not all(_whole(side) and 1 <= side <= MAX_SIDE for side in self.size):
            raise EpisodeError(
                f"size must be (height, width) or a side, from 1 to {MAX_SIDE} pixels; got {self.size!r}."
            )
        if self.fit not in ("pad", "stretch"):
            raise EpisodeError(f'fit must be "pad" or "stretch"; got {self.fit!r}.')
        object.__setattr__(self, "size", (int(self.size[0]), int(self.size[1])))

    def __call__(self, source: str | os.PathLike[str]) -> NDArray[np.uint8]:
        """Decode one file.

        Args:
            source: Its path.

        Returns:
            uint8 of `size`.

        Raises:
            OSError: The file cannot be read or decoded.
            ValueError: Its grey levels have no known range.
        """
        height, width = self.size
        with Image.open(source) as image:
            image.draft("L", (DRAFT * width, DRAFT * height))  # does nothing unless it is a JPEG
            image.load()
            with suppress(Exception):  # a damaged EXIF block counts as none
                ImageOps.exif_transpose(image, in_place=True)
            grey = _grey(image)
        if self.fit == "stretch":
            return np.asarray(grey.resize((width, height), Image.Resampling.BILINEAR))
        scale = min(width / grey.width, height / grey.height)
        inner = (
            min(width, max(1, round(grey.width * scale))),
            min(height, max(1, round(grey.height * scale))),
        )
        small = grey if grey.size == inner else grey.resize(inner, Image.Resampling.BILINEAR)
        canvas = np.zeros((height, width), dtype=np.uint8)
        left, top = (width - inner[0]) // 2, (height - inner[1]) // 2
        canvas[top : top + inner[1], left : left + inner[0]] = np.asarray(small)
        return canvas


def _grey(image: Image.Image) -> Image.Image:
    """An 8-bit grey image of any mode."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError("its grey levels have no known range: give the cache a decoder of your own")
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        colour = image.convert("RGBA")
        return ImageChops.multiply(colour.convert("L"), colour.getchannel("A"))
    return image if image.mode == "L" else image.convert("L")


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)
