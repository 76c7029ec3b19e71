"""Decode the training images once and keep them as uint8 at the size the network eats."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from embeddings import ImageError, ImageLoader, Preprocess

from .training_config import TrainingConfig, TrainingError

if TYPE_CHECKING:
    from embeddings import ImageSource

#: Threads that decode; the decoders release the interpreter's lock.
DECODERS = 4
#: Grey levels spread less than this (of 1) are not blown up further by the normalisation.
LEAST_STD = 0.05


@dataclass(frozen=True)
class SourcePixels:
    """Training images in memory.

    Attributes:
        pixels: uint8 (n, h, w).
        kept: int (n,), which of the given images these are.
        preprocess: What brings a new image to the same form, with the mean and standard deviation found here.
        refused: (image, reason) of those that could not be read.
    """

    pixels: NDArray[np.uint8]
    kept: NDArray[np.intp]
    preprocess: Preprocess
    refused: tuple[tuple[str, str], ...]


def load_pixels(
    images: Sequence[ImageSource] | NDArray[np.uint8],
    config: TrainingConfig,
    preprocess: Preprocess | None,
    *,
    channels: Literal[1, 3] = 1,
) -> SourcePixels:
    """Read, resize and quantise the training images.

    Args:
        images: Sources `read_image` takes, or uint8 (n, h, w), which is kept as it is.
        config: Gives size and contrast where `preprocess` does not.
        preprocess: That of the encoder training starts from, else None.
        channels: What the backbone takes where there is no such encoder; grey is repeated.

    Returns:
        The cache; images that cannot be read are listed, not fatal.

    Raises:
        TrainingError: When no image can be read.
    """
    fixed = preprocess is not None
    if isinstance(images, np.ndarray) and images.dtype.kind not in "OU":  # an array of paths is a list of paths
        if images.dtype != np.uint8 or images.ndim != 3:
            raise TrainingError(f"Pixels must be uint8 of shape (n, h, w); got {images.dtype} of shape {images.shape}.")
        form = preprocess or Preprocess(size=(images.shape[1], images.shape[2]), channels=channels)
        if form.size != images.shape[1:]:
            raise TrainingError(f"Pixels are {images.shape[1:]}, the encoder to start from takes {form.size}.")
        pixels, kept = images, np.arange(len(images))
        refused: tuple[tuple[str, str], ...] = ()
    else:
        size = (config.image_size, config.image_size)
        form = preprocess or Preprocess(size=size, channels=channels, contrast=config.contrast)
        pixels, kept, refused = _decode(list(images), form)
    if not len(pixels):
        first = f"; the first: {refused[0][0]}: {refused[0][1]}" if refused else ""
        raise TrainingError(f"None of the {len(images)} training images could be read{first}.")
    if not fixed:
        mean, std = grey_statistics(pixels)
        form = replace(form, mean=(round(mean, 4),), std=(round(max(std, LEAST_STD), 4),))
    return SourcePixels(pixels=pixels, kept=kept, preprocess=form, refused=refused)


def grey_statistics(pixels: NDArray[np.uint8]) -> tuple[float, float]:
    """Mean and standard deviation of grey levels (n, h, w), of 1; counted image by image to spare memory."""
    counts = np.zeros(256, dtype=np.int64)
    for image in pixels:
        counts += np.bincount(image.ravel(), minlength=256)
    levels = np.arange(256) / 255
    mean = float((counts * levels).sum() / counts.sum())
    variance = float((counts * (levels - mean) ** 2).sum() / counts.sum())
    return mean, variance**0.5


def _decode(
    images: Sequence[ImageSource], form: Preprocess
) -> tuple[NDArray[np.uint8], NDArray[np.intp], tuple[tuple[str, str], ...]]:
    def one(image: ImageSource) -> NDArray[np.uint8] | ImageError:
        try:
            grey, shape = ImageLoader(form).read(image)
            return np.rint(form.resize(grey, shape) * 255).astype(np.uint8)
        except ImageError as error:
            return error

    pixels, kept, refused = [], [], []
    with ThreadPoolExecutor(DECODERS) as pool:
        for i, result in enumerate(pool.map(one, images)):
            if isinstance(result, ImageError):
                refused.append((result.source, result.reason))
            else:
                pixels.append(result)
                kept.append(i)
    stacked = np.stack(pixels) if pixels else np.empty((0, *form.size), dtype=np.uint8)
    return stacked, np.array(kept, dtype=np.intp), tuple(refused)
