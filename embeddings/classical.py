"""Encoders without a network: raw pixels, and histograms of oriented gradients (Dalal & Triggs 2005)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from .encoders import BaseEncoder, ImageLoader, fingerprint_of
from .errors import UnknownEncoder
from .preprocess import Preprocess

# Largest side of the raw-pixel floor; beyond it the vectors outgrow any use.
MAX_PIXELS_SIDE = 512

# Side of a HOG cell in pixels, cells per block side, and orientation bins, as in Dalal & Triggs.
HOG_CELL = 8
HOG_BLOCK = 2
HOG_ORIENTATIONS = 9


class PixelEncoder(BaseEncoder):
    """The honest floor: the image itself, resized to `size` x `size` grey levels in [0, 1], as one row.

    Args:
        size: Side in pixels; dim = size^2.

    Raises:
        EncoderError: A size out of range.
    """

    def __init__(self, size: int = 32) -> None:
        """Fix the size and all that follows from it."""
        if not 2 <= size <= MAX_PIXELS_SIDE:
            raise UnknownEncoder(f"pixels-N takes N from 2 to {MAX_PIXELS_SIDE}; got {size}.")
        self.preprocess = Preprocess(size=(size, size), mean=(0.0,), std=(1.0,), decoding="full")
        self.loader = ImageLoader(self.preprocess)
        self.name = f"pixels-{size}"
        self.spec = self.name
        self.dim = size * size
        self.fingerprint = fingerprint_of({"kind": "pixels", "preprocess": self.preprocess.to_json()})

    def encode_loaded(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Flatten n images (1, size, size) to rows (n, size^2)."""
        return np.asarray(batch, dtype=np.float32).reshape(len(batch), self.dim)


class HogEncoder(BaseEncoder):
    """The classical floor: a histogram of oriented gradients by scikit-image, on `size` x `size` grey levels.

    Cells of 8 x 8 pixels, 9 unsigned orientations, overlapping blocks of 2 x 2 cells normalised by clipped L2
    (Dalal & Triggs, CVPR 2005, doi 10.1109/CVPR.2005.177).

    Args:
        size: Side in pixels, a multiple of 8; dim = (size/8 - 1)^2 x 36.

    Raises:
        EncoderError: A size out of range.
    """

    def __init__(self, size: int = 64) -> None:
        """Fix the size and all that follows from it."""
        if size % HOG_CELL or not HOG_BLOCK * HOG_CELL <= size <= MAX_PIXELS_SIDE:
            raise UnknownEncoder(f"hog-N takes multiples of {HOG_CELL} from 16 to {MAX_PIXELS_SIDE}; got {size}.")
        self.preprocess = Preprocess(size=(size, size), mean=(0.0,), std=(1.0,), decoding="full")
        self.loader = ImageLoader(self.preprocess)
        self.name = f"hog-{size}"
        self.spec = self.name
        blocks = size // HOG_CELL - HOG_BLOCK + 1
        self.dim = blocks * blocks * HOG_BLOCK * HOG_BLOCK * HOG_ORIENTATIONS
        config = {"kind": "hog", "cell": HOG_CELL, "block": HOG_BLOCK, "orientations": HOG_ORIENTATIONS}
        self.fingerprint = fingerprint_of(config | {"preprocess": self.preprocess.to_json()})

    def encode_loaded(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Describe n images (1, size, size) by rows (n, dim)."""
        from skimage.feature import hog

        rows = np.empty((len(batch), self.dim), dtype=np.float32)
        for row, image in zip(rows, batch, strict=True):
            row[:] = hog(
                image[0],
                orientations=HOG_ORIENTATIONS,
                pixels_per_cell=(HOG_CELL, HOG_CELL),
                cells_per_block=(HOG_BLOCK, HOG_BLOCK),
                block_norm="L2-Hys",
            )
        return rows
