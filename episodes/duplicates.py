"""Near-duplicate images across patients and splits, by a 256-bit difference hash and a thumbnail's correlation."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from .errors import EpisodeError
from .labels import Groups, patient_list

HASH_SIDE = 16
"""The hash compares 17 x 16 grey levels with their right neighbours: 16 x 16 bits."""

THUMBNAIL_SIDE = 32
"""Side of the thumbnails that confirm a pair, pixels."""

MAX_DISTANCE = 24
"""Hashes of the same picture, resized or compressed anew, differ in at most this many of 256 bits."""

MIN_CORRELATION = 0.985
"""Thumbnails of the same picture correlate at least this much."""

_BLOCK = 256
"""Images compared with all later ones at once."""

Source = TypeVar("Source")


@dataclass(frozen=True, slots=True, eq=False)
class ImageHashes:
    """What is kept of n images to find duplicates among them.

    Attributes:
        bits: (n, 4) uint64, 256 bits each.
        thumbnails: (n, 32, 32) grey levels 0 to 255.
    """

    bits: NDArray[np.uint64]
    thumbnails: NDArray[np.uint8]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.bits)


@dataclass(frozen=True, slots=True)
class DuplicatePair:
    """Two images that look the same.

    Attributes:
        first: Id of the earlier image.
        second: Id of the later one.
        distance: Bits of 256 in which their hashes differ; smaller is closer.
        correlation: Of their thumbnails; larger is closer.
        across_patients: Whether they are filed under two patients.
        across_splits: Whether they are in two splits.
    """

    first: str
    second: str
    distance: int
    correlation: float
    across_patients: bool
    across_splits: bool


@dataclass(frozen=True, slots=True)
class DuplicateReport:
    """Every pair of images that look the same, the closest first.

    Attributes:
        images: Images compared.
        pairs: The pairs.
        patients_known: Whether patients were given.
        splits_known: Whether splits were given.
    """

    images: int
    pairs: tuple[DuplicatePair, ...]
    patients_known: bool
    splits_known: bool

    @property
    def across_patients(self) -> tuple[DuplicatePair, ...]:
        """Pairs filed under two patients: one person under two names, or one picture filed twice."""
        return tuple(pair for pair in self.pairs if pair.across_patients)

    @property
    def across_splits(self) -> tuple[DuplicatePair, ...]:
        """Pairs in two splits: what was learnt from one is tested on the other."""
        return tuple(pair for pair in self.pairs if pair.across_splits)

    def __str__(self) -> str:
        """Return the counts in one line."""
        patients = f"{len(self.across_patients):,} across patients" if self.patients_known else "patients unknown"
        splits = f", {len(self.across_splits):,} across splits" if self.splits_known else ""
        return f"{self.images:,} images, {len(self.pairs):,} near-duplicate pairs: {patients}{splits}"

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON can say it."""
        return {
            "images": self.images,
            "patients_known": self.patients_known,
            "splits_known": self.splits_known,
            "across_patients": len(self.across_patients),
            "across_splits": len(self.across_splits),
            "pairs": [{name: getattr(pair, name) for name in DuplicatePair.__slots__} for pair in self.pairs],
        }

    def to_markdown(self, rows: int = 50) -> str:
        """Return a table of the pairs, those across splits and patients first, at most `rows` of them."""
        lines = ["## Near-duplicates", "", f"{self}.", ""]
        if not self.pairs:
            return "\n".join(lines)
        lines += ["| first | second | bits apart | correlation | patients | splits |", "|---|---|---|---|---|---|"]
        shown = sorted(self.pairs, key=lambda pair: (not pair.across_splits, not pair.across_patients))
        for pair in shown[:rows]:
            patients = ("two" if pair.across_patients else "one") if self.patients_known else "unknown"
            splits = ("two" if pair.across_splits else "one") if self.splits_known else "unknown"
            first, second = (name.replace("|", "\\|") for name in (pair.first, pair.second))
            lines.append(f"| {first} | {second} | {pair.distance} | {pair.correlation:.4f} | {patients} | {splits} |")
        if len(shown) > rows:
            lines += ["", f"{len(shown) - rows:,} more pairs are not listed."]
        return "\n".join(lines) + "\n"


def difference_hash(image: ArrayLike) -> NDArray[np.uint64]:
    """Return the 256-bit difference hash of an image: is each of 16 x 16 grey levels brighter than its left neighbour?

    The image is stretched to 0..255 and resized to 17 x 16 (Lanczos, antialiased), so size, brightness and contrast
    hardly matter; a flip or a crop does.

    Args:
        image: (h, w) grey levels in any range.

    Returns:
        (4,) uint64; bits run row after row, the first one highest.

    Raises:
        EpisodeError: The image is empty, not two-dimensional, or not finite.
    """
    return _bits(_stretched(image))


def hash_images(sources: Iterable[Source], read: Callable[[Source], ArrayLike] = np.asarray) -> ImageHashes:
    """Hash images one by one, keeping only bits and thumbnails.

    Args:
        sources: Images, or whatever `read` opens.
        read: Returns (h, w) grey levels for a source.

    Returns:
        The hashes, in order.

    Raises:
        EpisodeError: An image is empty, not two-dimensional, or not finite.
    """
    bits: list[NDArray[np.uint64]] = []
    thumbnails: list[NDArray[np.uint8]] = []
    side = (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    for source in sources:
        picture = _stretched(read(source))
        bits.append(_bits(picture))
        thumbnails.append(np.asarray(picture.resize(side, Image.Resampling.BOX), dtype=np.uint8))
    if not bits:
        return ImageHashes(np.empty((0, 4), dtype=np.uint64), np.empty((0, *side), dtype=np.uint8))
    return ImageHashes(np.stack(bits), np.stack(thumbnails))


def near_duplicates(
    hashes: ImageHashes,
    *,
    ids: Sequence[str] | None = None,
    groups: Groups | None = None,
    splits: Sequence[Hashable] | None = None,
    max_distance: int = MAX_DISTANCE,
    min_correlation: float = MIN_CORRELATION,
) -> DuplicateReport:
    """Compare every image with every other and report the pairs that look the same.

    Args:
        hashes: From `hash_images`.
        ids: n names for the report; by default row numbers.
        groups: n patients, to tell pairs across patients.
        splits: n names of parts (train, test, a fold), to tell pairs across them.
        max_distance: Bits of 256 two hashes may differ in.
        min_correlation: What the thumbnails' correlation must reach; -1 asks for the hash alone.

    Returns:
        The pairs, the closest first.

    Raises:
        EpisodeError: A list is not as long as the hashes.
    """
    n = len(hashes)
    names = [str(row) for row in range(n)] if ids is None else list(ids)
    owners = None if groups is None else patient_list(groups, n)
    parts = None if splits is None else list(splits)
    for what, given in (("ids", names), ("splits", parts)):
        if given is not None and len(given) != n:
            raise EpisodeError(f"There are {len(given):,} {what} for {n:,} hashed images.")
    shapes = hashes.thumbnails.reshape(n, THUMBNAIL_SIDE**2).astype(np.float32)
    shapes -= shapes.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(shapes, axis=1, keepdims=True)
    shapes /= np.where(lengths > 0, lengths, 1)

    pairs: list[DuplicatePair] = []
    for start in range(0, n, _BLOCK):
        block = hashes.bits[start : start + _BLOCK]
        distance = np.zeros((len(block), n - start), dtype=np.uint16)
        for word in range(hashes.bits.shape[1]):
            distance += np.bitwise_count(block[:, word, None] ^ hashes.bits[None, start:, word])
        one, two = np.nonzero(np.triu(distance <= max_distance, k=1))
        apart = distance[one, two].tolist()
        correlation = np.einsum("ij,ij->i", shapes[start + one], shapes[start + two])
        # Two blank images have no shape to correlate; they are as alike as images can be.
        blank = (lengths[start + one, 0] == 0) & (lengths[start + two, 0] == 0)
        alike = np.where(blank, 1.0, correlation).tolist()
        for a, b, bits, likeness in zip((start + one).tolist(), (start + two).tolist(), apart, alike, strict=True):
            if likeness >= min_correlation:
                across = owners is not None and owners[a] != owners[b]
                divided = parts is not None and parts[a] != parts[b]
                pairs.append(DuplicatePair(names[a], names[b], bits, min(likeness, 1.0), across, divided))
    pairs.sort(key=lambda pair: (pair.distance, -pair.correlation))
    return DuplicateReport(n, tuple(pairs), owners is not None, parts is not None)


def _stretched(image: ArrayLike) -> Image.Image:
    """Return an image as 8-bit grey, its darkest pixel 0 and its brightest 255."""
    levels = np.asarray(image, dtype=np.float32)
    if levels.ndim != 2 or not levels.size:
        raise EpisodeError(f"An image to hash must be (h, w) grey levels; got shape {levels.shape}.")
    low, high = float(levels.min()), float(levels.max())
    if not np.isfinite(high - low):
        raise EpisodeError("An image to hash must hold finite grey levels; it has NaN or infinity.")
    scale = 255 / (high - low) if high > low else 0.0
    return Image.fromarray(np.rint((levels - low) * scale).astype(np.uint8))


def _bits(picture: Image.Image) -> NDArray[np.uint64]:
    """Return the difference hash of an 8-bit picture."""
    small = np.asarray(picture.resize((HASH_SIDE + 1, HASH_SIDE), Image.Resampling.LANCZOS), dtype=np.int16)
    brighter = small[:, 1:] > small[:, :-1]  # (16, 16)
    return np.packbits(brighter.ravel()).view(">u8").astype(np.uint64)
