"""Episodes as batches of pixels, from memory or from files, in buffers used again: for a training loop of one's own.

`fewshot.train` does not go through `EpisodeStream`; it is built from the same parts, `PixelBatches` and samplers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import EpisodeError
from .labels import Label
from .manifest import Manifest
from .multilabel import MultiLabelEpisodeSampler
from .pixel_batches import Augment, PixelBatches
from .pixel_cache import Decoder, PixelCache
from .sampler import Episode, EpisodeSampler

Rows = NDArray[np.intp]

#: Episodes drawn at once, and so decoded ahead of the batch that is wanted.
AHEAD = 64
#: Sets the seeds of augmentation apart from those of episodes.
_AUGMENTATION = 7919


@dataclass(frozen=True, slots=True, eq=False)
class StreamedEpisode:
    """What each image of one episode of a batch is.

    Attributes:
        number: Its number in the sampler.
        support: int64 (n_support,), class positions 0 .. n_way - 1.
        query: int64 (n_query,).
        n_way: Number of classes.
        codes: int64 (n_way,), which of the sampler's `classes` each position is, as losses need that keep something
            for every class of the training.
        episode: The episode itself, in the sampler's indices; images that could not be read are left out.
    """

    number: int
    support: Tensor
    query: Tensor
    n_way: int
    codes: Tensor
    episode: Episode


@dataclass(frozen=True, slots=True, eq=False)
class EpisodeBatch:
    """The pixels of some episodes and what they are.

    Attributes:
        images: float32 (n, c, h, w) on the stream's device: the episodes one after another, each with its support
            before its queries, class after class.
        targets: What they are, episode by episode; the tensors are on the device, and shared between batches.
        rows: int (n,), which of the stream's images they are.
        start: Number of the first episode.
        stop: One past the number of the last.
    """

    images: Tensor
    targets: tuple[StreamedEpisode, ...]
    rows: Rows
    start: int
    stop: int


class EpisodeStream:
    """Batches of a sampler's episodes as normalised float32 pixels.

    Each image is decoded once and kept as uint8; a batch is gathered from there, converted, and written over the batch
    before it, so it is valid until the next one unless `reuse` is off. Batch content depends on the sampler, the seed
    and the number of the batch's first episode alone: an interrupted training goes on with `batches(start)`.

    An image that cannot be read is left out of the episodes that draw it; an episode that loses the whole support or
    all queries of a class is left out of its batch, and a batch that loses all its episodes is not given.

    Args:
        images: uint8 (n, h, w) or (n, h, w, c); or a `PixelCache`; or n paths or other sources, which need `size` and
            are decoded into memory as the episodes draw them.
        sampler: The episodes.
        rows: int, which row of `images` each of the sampler's images is; None where they are the same.
        batch: Episodes per batch.
        size: Height and width of images from sources, in pixels, or the side of a square.
        decode: Source -> uint8 `size`; by default PNG, JPEG and what else Pillow reads.
        augment: Changes grey levels (n, c, h, w) in [0, 1] before they are normalised, given a generator on the device.
        seed: Of the augmentation.
        mean: Grey level(s) of 1 that become 0; one, or one per channel.
        std: Grey level difference(s) that become 1; one, or one per channel.
        channels: Channels of the result; a grey image is repeated.
        channels_last: Whether the result's memory is laid out pixel by pixel.
        device: Where the result is.
        reuse: Whether batches share their memory.

    Raises:
        EpisodeError: Options that do not fit together or do not fit the images.

    Example:
        >>> pixels = np.zeros((40, 28, 28), dtype=np.uint8)
        >>> sampler = EpisodeSampler(["a", "b"] * 20, 2, 5, 10, n_episodes=100)
        >>> for batch in EpisodeStream(pixels, sampler, batch=4, mean=0.5, std=0.25):
        ...     break
        >>> batch.images.shape, len(batch.targets), batch.targets[0].support.tolist()
        (torch.Size([120, 1, 28, 28]), 4, [0, 0, 0, 0, 0, 1, 1, 1, 1, 1])
    """

    def __init__(
        self,
        images: NDArray[np.uint8] | PixelCache | Sequence[Any],
        sampler: EpisodeSampler,
        *,
        rows: Rows | None = None,
        batch: int = 1,
        size: int | tuple[int, int] | None = None,
        decode: Decoder | None = None,
        augment: Augment | None = None,
        seed: int = 0,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        channels: int = 1,
        channels_last: bool = False,
        device: str | torch.device = "cpu",
        reuse: bool = True,
    ) -> None:
        """Check what fits together; nothing is decoded yet."""
        for name, value, least in (("batch", batch, 1), ("seed", seed, 0)):
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise EpisodeError(f"{name} must be a whole number of at least {least}; got {value!r}.")
        _check_kinds(images, sampler)
        pixels = isinstance(images, np.ndarray) and images.dtype.kind not in "OUS"  # an array of paths is a list
        if (pixels or isinstance(images, PixelCache)) and not (size is None and decode is None):
            raise EpisodeError("size and decode are for images given as sources; these are pixels already.")
        if not pixels and not isinstance(images, PixelCache):
            if size is None:
                raise EpisodeError("Images given as sources need a size, in pixels.")
            images = PixelCache(list(images), size=size, decode=decode)
        self.cache = images if isinstance(images, PixelCache) else None
        self.sampler, self.batch, self.augment, self.seed = sampler, int(batch), augment, int(seed)
        n = len(images)
        self._rows = None if rows is None else np.asarray(rows, dtype=np.intp)
        named = n if self._rows is None else len(self._rows)
        if named != len(sampler.labels):
            raise EpisodeError(
                f"The sampler has {len(sampler.labels):,} images, the stream {named:,}: give one row for each of them."
            )
        if self._rows is not None and not (self._rows.min() >= 0 and self._rows.max() < n):
            raise EpisodeError(f"rows must lie between 0 and {n - 1:,}; got {self._rows.min()} to {self._rows.max()}.")
        self.pixels = PixelBatches(
            images.pixels if isinstance(images, PixelCache) else np.asarray(images),
            mean=mean,
            std=std,
            channels=channels,
            channels_last=channels_last,
            device=device,
            reuse=reuse,
        )
        self._generator = torch.Generator(device=self.pixels.device)
        self._positions: dict[tuple[int, ...], Tensor] = {}
        self._codes: dict[Label, int] = {name: code for code, name in enumerate(sampler.classes)}

    def __len__(self) -> int:
        """Return the number of batches."""
        return -(-len(self.sampler) // self.batch)

    def __iter__(self) -> Iterator[EpisodeBatch]:
        """Yield every batch, the same ones every time."""
        return self.batches()

    def __getitem__(self, i: int) -> EpisodeBatch:
        """Return batch i without drawing those before it."""
        if not -len(self) <= i < len(self):
            raise IndexError(f"There is no batch {i}: the stream has {len(self):,}.")
        start = i % len(self) * self.batch
        stop = min(start + self.batch, len(self.sampler))
        for batch in self._batches(start, stop):
            return batch
        raise EpisodeError(f"Batch {i} has no episode left: too many of its images could not be read.")

    def batches(self, start: int = 0, stop: int | None = None) -> Iterator[EpisodeBatch]:
        """Yield the batches of some episodes.

        Args:
            start: Number of the first episode.
            stop: One past the last; None is all there are.

        Returns:
            The batches, `batch` episodes each but for the last.

        Raises:
            IndexError: There are no such episodes.
        """
        end = len(self.sampler) if stop is None else stop
        if not 0 <= start <= end <= len(self.sampler):
            raise IndexError(f"There are no episodes {start} to {end - 1}: the sampler has {len(self.sampler):,}.")
        return self._batches(start, end)

    def _batches(self, start: int, stop: int) -> Iterator[EpisodeBatch]:
        ahead = -(-AHEAD // self.batch) * self.batch
        if self.pixels.device.type == "cuda":
            if self.cache is not None:
                drawable = self.sampler.drawable
                self.cache.fill(drawable if self._rows is None else self._rows[drawable])
            self.pixels.move()
        for first in range(start, stop, ahead):
            last = min(stop, first + ahead)
            episodes, rows = self.sampler.block(first, last)
            if self._rows is not None:
                rows = [self._rows[own] for own in rows]
            if self.cache is not None and not self.cache.complete:
                self.cache.request(np.concatenate(rows))
            for low in range(0, last - first, self.batch):
                high = min(last - first, low + self.batch)
                numbered = zip(range(first + low, first + high), episodes[low:high], rows[low:high], strict=True)
                made = self._make(list(numbered))
                if made is not None:
                    yield made
        if self.cache is not None:
            self.cache.save()

    def _make(self, numbered: list[tuple[int, Episode, Rows]]) -> EpisodeBatch | None:
        start, stop = numbered[0][0], numbered[-1][0] + 1
        if self.cache is not None and not self.cache.complete:
            numbered = [whole for item in numbered if (whole := self._readable(*item)) is not None]
            if not numbered:
                return None
        codes = torch.tensor([[self._codes[name] for name in episode.classes] for _, episode, _ in numbered])
        targets = tuple(
            StreamedEpisode(
                number,
                self._targets(episode.support),
                self._targets(episode.query),
                len(episode.classes),
                own,
                episode,
            )
            for (number, episode, _), own in zip(numbered, codes.to(self.pixels.device), strict=True)
        )
        rows = numbered[0][2] if len(numbered) == 1 else np.concatenate([own for _, _, own in numbered])
        if self.augment is not None:
            seed = np.random.SeedSequence([_AUGMENTATION, self.seed, start]).generate_state(1, np.uint64)
            self._generator.manual_seed(int(seed[0]))
        images = self.pixels(rows, augment=self.augment, generator=self._generator)
        return EpisodeBatch(images, targets, rows, start, stop)

    def _readable(self, number: int, episode: Episode, rows: Rows) -> tuple[int, Episode, Rows] | None:
        """The episode without its images that cannot be read; None if a class keeps no support or no query."""
        cache = self.cache
        readable = np.ones(len(rows), dtype=np.bool_) if cache is None else cache.ensure(rows)
        if readable.all():
            return number, episode, rows
        ends = np.cumsum([len(part) for part in (*episode.support, *episode.query)])[:-1]
        kept = [
            part[good] for part, good in zip((*episode.support, *episode.query), np.split(readable, ends), strict=True)
        ]
        if not all(len(part) for part in kept):
            return None
        n_way = len(episode.classes)
        return number, Episode(episode.classes, tuple(kept[:n_way]), tuple(kept[n_way:])), rows[readable]

    def _targets(self, parts: tuple[Rows, ...]) -> Tensor:
        """Class positions of some images, made once for each shape of an episode."""
        sizes = tuple([len(part) for part in parts])
        found = self._positions.get(sizes)
        if found is None:
            positions = np.repeat(np.arange(len(sizes)), sizes)
            found = self._positions[sizes] = torch.from_numpy(positions).to(self.pixels.device)
        return found


def _check_kinds(images: object, sampler: object) -> None:
    """Raise an EpisodeError for a table in place of images, or for what is no sampler of single-label episodes."""
    if isinstance(images, Manifest):
        raise EpisodeError(
            "EpisodeStream takes images: uint8 pixels (n, h, w) or (n, h, w, c), a PixelCache, or a list of paths with "
            "a size; got a Manifest: give its images."
        )
    if isinstance(sampler, MultiLabelEpisodeSampler) or not isinstance(sampler, EpisodeSampler):
        raise EpisodeError(f"EpisodeStream takes the episodes of an EpisodeSampler; got a {type(sampler).__name__}.")
