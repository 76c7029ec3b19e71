"""Encoders without a network: raw pixels, oriented gradients (Dalal & Triggs 2005), vectors made elsewhere."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from .encoders import BaseEncoder, ImageLoader, fingerprint_of
from .errors import EncoderError, ImageError
from .images import ImageSource, image_identity
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
            raise EncoderError(f"pixels-N takes N from 2 to {MAX_PIXELS_SIDE}; got {size}.")
        self.preprocess = Preprocess(size=(size, size), mean=(0.0,), std=(1.0,))
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
            raise EncoderError(f"hog-N takes multiples of {HOG_CELL} from 16 to {MAX_PIXELS_SIDE}; got {size}.")
        self.preprocess = Preprocess(size=(size, size), mean=(0.0,), std=(1.0,))
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


@dataclass(frozen=True)
class _RowLookup:
    """Finds the vector of an image by its id, its path, the end of its path, or its SOPInstanceUID."""

    rows: dict[str, int]
    vectors: NDArray[np.float32] = field(repr=False)

    def __call__(self, source: ImageSource) -> NDArray[np.float32]:
        if not isinstance(source, str | os.PathLike):
            raise ImageError("array", "vectors made elsewhere are looked up by id or path; an array has neither")
        text = os.fspath(source)
        row = self.rows.get(text)
        if row is None:  # "scans/a/b.png" is found under "scans/a/b.png", "a/b.png" or "b.png", the longest first
            parts = PurePath(text).parts
            tails = (PurePath(*parts[start:]).as_posix() for start in range(len(parts)))
            row = next((self.rows[tail] for tail in tails if tail in self.rows), None)
        if row is None and Path(text).is_file():
            row = self.rows.get(image_identity(text).sop_instance_uid or "")
        if row is None:
            raise ImageError(text, f"none of the {len(self.rows)} vectors made elsewhere has this id or path")
        vector: NDArray[np.float32] = self.vectors[row]
        return vector


class PrecomputedEncoder(BaseEncoder):
    """Vectors made elsewhere, looked up by the image's id or path instead of computed.

    Args:
        ids: One id or path per row, all different.
        vectors: Shape (n, d), finite.
        name: For people.
        source_mean: Mean vector of the source domain, shape (d,), or None.

    Raises:
        EncoderError: Ids and vectors that do not fit together.

    Example:
        >>> PrecomputedEncoder(["a.png", "b.png"], [[1.0, 0.0], [0.0, 1.0]]).encode(["scans/b.png"]).tolist()
        [[0.0, 1.0]]
    """

    def __init__(
        self,
        ids: Sequence[str],
        vectors: NDArray[np.floating] | Sequence[Sequence[float]],
        *,
        name: str = "precomputed",
        source_mean: NDArray[np.float32] | None = None,
    ) -> None:
        """Check that ids and vectors fit together."""
        table = np.array(vectors, dtype=np.float32)
        if table.ndim != 2 or 0 in table.shape:
            raise EncoderError(f"Vectors must have shape (n, d) with at least one row; got {table.shape}.")
        if len(ids) != len(table):
            raise EncoderError(f"There are {len(ids)} ids for {len(table)} vectors; each row needs one id.")
        bad = np.flatnonzero(~np.isfinite(table).all(axis=1))
        if len(bad):
            raise EncoderError(f"The vector of {str(ids[bad[0]])!r} (row {bad[0]}) holds NaN or infinite values.")
        rows: dict[str, int] = {}
        for row, key in enumerate(str(key) for key in ids):
            if key in rows:
                raise EncoderError(f"The id {key!r} has two vectors (rows {rows[key]} and {row}); ids must differ.")
            rows[key] = row
        table.setflags(write=False)
        self.loader = _RowLookup(rows, table)
        self.name = name
        self.dim = int(table.shape[1])
        self.source_mean = None if source_mean is None else np.asarray(source_mean, dtype=np.float32)
        order = sorted(rows)
        self.fingerprint = fingerprint_of(
            {"kind": "precomputed", "ids": order}, {"vectors": table[[rows[key] for key in order]]}
        )

    def encode_loaded(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Stack n looked-up rows to (n, dim)."""
        return np.asarray(batch, dtype=np.float32).reshape(len(batch), self.dim)
