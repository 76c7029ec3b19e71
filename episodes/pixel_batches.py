"""Rows of uint8 images as normalised float32 tensors, gathered and converted into buffers that are used again."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import EpisodeError

#: Images (n, c, h, w) of grey levels in [0, 1] and a generator on their device -> images changed each on its own.
Augment: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]

#: Batches of fewer grey levels than this are converted by one thread, in well under a millisecond: several would gain
#: little, and lose a hundredfold where other programs keep the cores busy, since each must wait for the last.
ALONE = 2**22
#: Share of a device's free memory that the pixels may take; the rest is the network's.
DEVICE_SHARE = 0.5


class PixelBatches:
    """Images by row, as a network eats them: (grey level - mean) / std, float32 (n, c, h, w).

    Fresh memory for every batch costs more than what is done in it, since the system zeroes each page before it is
    written. So a batch is written over the one before it: it is valid until the next call, unless `reuse` is off.

    On a CUDA device the uint8 pixels are kept there when they fit into half of its free memory, and batches are
    gathered there; otherwise they are gathered here into pinned memory and converted there.

    Args:
        pixels: uint8 (n, h, w), or (n, h, w, c) for colour; not copied, so that what is written to it later counts.
        mean: Grey level(s) of 1 that become 0; one, or one per channel.
        std: Grey level difference(s) that become 1; one, or one per channel.
        channels: Channels of the result; a grey image is repeated.
        channels_last: Whether the result's memory is laid out pixel by pixel, as oneDNN and cuDNN like it.
        device: Where the result is.
        reuse: Whether batches share their memory.

    Raises:
        EpisodeError: Pixels of another type or shape, or a normalisation that cannot be meant.
    """

    def __init__(
        self,
        pixels: NDArray[np.uint8],
        *,
        mean: float | Sequence[float] = 0.0,
        std: float | Sequence[float] = 1.0,
        channels: int = 1,
        channels_last: bool = False,
        device: str | torch.device = "cpu",
        reuse: bool = True,
    ) -> None:
        """Check the settings; nothing is copied to a device yet."""
        if pixels.dtype != np.uint8 or pixels.ndim not in (3, 4) or 0 in pixels.shape:
            raise EpisodeError(
                f"Pixels must be uint8 of shape (n, h, w) or (n, h, w, c); got {pixels.dtype} of shape {pixels.shape}."
            )
        stored = pixels.shape[3] if pixels.ndim == 4 else 1
        if channels < 1 or stored not in (1, channels):
            raise EpisodeError(f"Pixels of {stored} channels cannot become images of {channels}.")
        self.channels, self.reuse = channels, reuse
        self.device = torch.device(device)
        self.shape = (channels, *pixels.shape[1:3])
        self._grey = stored == 1
        self._stored = _as_tensor(pixels).reshape(len(pixels), -1)  # uint8 (n, h * w * stored), no copy
        self._form = (*pixels.shape[1:3], stored)
        self._format = torch.channels_last if channels_last else torch.contiguous_format
        self._moved = False
        means, stds = _per_channel("mean", mean, channels), _per_channel("std", std, channels)
        if min(stds) <= 0:
            raise EpisodeError(f"std must be above 0; got {std}.")
        one = len(set(means)) == len(set(stds)) == 1
        self._shift = [torch.tensor(-m / s) for m, s in zip(means, stds, strict=True)][: 1 if one else channels]
        self._std = stds[: len(self._shift)]
        self._buffers: dict[str, Tensor] = {}
        self._sent: torch.cuda.Event | None = None

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._stored)

    def move(self) -> bool:
        """Keep the pixels on a CUDA device if they fit; they must all be there by now.

        Returns:
            Whether the pixels are on the device.
        """
        if self.device.type == "cuda" and not self._moved:
            free = torch.cuda.mem_get_info(self.device)[0]
            if self._stored.numel() <= DEVICE_SHARE * free:
                self._stored = self._stored.to(self.device)
                self._moved = True
        return self._moved or self.device.type == "cpu"

    def __call__(
        self, rows: NDArray[np.intp], *, augment: Augment | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Gather and normalise some images.

        Args:
            rows: int (m,), which images.
            augment: Changes the grey levels before they are normalised.
            generator: Source of its randomness, on the device; needed by `augment`.

        Returns:
            float32 (m, c, h, w) on the device.

        Raises:
            IndexError: There is no such row.
            EpisodeError: `augment` without a generator, or one that gives something of another shape or type.
        """
        m = len(rows)
        few = self.device.type == "cpu" and m * math.prod(self.shape) <= ALONE
        out = self._buffer("out", (m, *self.shape), torch.float32, self._format)
        with _threads(few):
            raw = self._gather(torch.from_numpy(rows))  # uint8 (m, h * w * stored)
            raw = raw.view(m, 1, *self.shape[1:]) if self._grey else raw.view(m, *self._form).permute(0, 3, 1, 2)
            if augment is None:
                return self._normalise(out.copy_(raw), out, 255.0)
            if generator is None:
                raise EpisodeError("augment needs a generator.")
            unit = self._buffer("unit", tuple(raw.shape), torch.float32, torch.contiguous_format)
            unit.copy_(raw).mul_(1 / 255)
        changed = augment(unit, generator)
        if changed.shape != unit.shape or changed.dtype != torch.float32:
            raise EpisodeError(
                f"augment must give float32 of shape {tuple(unit.shape)}; "
                f"got {changed.dtype} of shape {tuple(changed.shape)}."
            )
        with _threads(few):
            return self._normalise(changed, out, 1.0)

    def _normalise(self, images: Tensor, out: Tensor, top: float) -> Tensor:
        """(images / top - mean) / std into `out`, by one multiplication and one addition."""
        images = images.expand(-1, self.channels, -1, -1)
        if len(self._std) == 1:
            return torch.add(self._shift[0], images, alpha=1 / (top * self._std[0]), out=out)
        for channel, (shift, std) in enumerate(zip(self._shift, self._std, strict=True)):
            torch.add(shift, images[:, channel], alpha=1 / (top * std), out=out[:, channel])
        return out

    def _gather(self, rows: Tensor) -> Tensor:
        if self.device.type == "cuda" and not self._moved:
            return self._send(rows)
        raw = self._buffer("raw", (len(rows), self._stored.shape[1]), torch.uint8, torch.contiguous_format)
        return torch.index_select(self._stored, 0, rows.to(self._stored.device), out=raw)

    def _send(self, rows: Tensor) -> Tensor:
        """Gather into pinned memory and copy to the device, without waiting for the copy."""
        if self._sent is None:
            self._sent = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._sent.synchronize()  # the copy of the batch before must have left the pinned memory
        shape = (len(rows), self._stored.shape[1])
        pinned = self._buffers.get("pinned")
        if pinned is None or len(pinned) < len(rows):
            pinned = self._buffers["pinned"] = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
        torch.index_select(self._stored, 0, rows, out=pinned[: len(rows)])
        raw = pinned[: len(rows)].to(self.device, non_blocking=True)
        self._sent.record(torch.cuda.current_stream(self.device))
        return raw

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format) -> Tensor:
        """Memory for a result; that of the call before where it is large enough and may be used again."""
        device = self._stored.device if name == "raw" else self.device
        if name == "out" and not self.reuse:
            return torch.empty(shape, dtype=dtype, device=device, memory_format=layout)
        kept = self._buffers.get(name)
        if kept is None or len(kept) < shape[0]:
            with torch.inference_mode(False):  # what is made in inference mode could not be written outside it
                kept = self._buffers[name] = torch.empty(shape, dtype=dtype, device=device, memory_format=layout)
        return kept[: shape[0]]


@contextmanager
def _threads(one: bool) -> Iterator[None]:
    """Let torch compute with one thread until the block ends, or leave it as it is."""
    before = torch.get_num_threads()
    if not one or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _as_tensor(pixels: NDArray[np.uint8]) -> Tensor:
    with warnings.catch_warnings():  # an array that may only be read is only read
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(np.asarray(np.ascontiguousarray(pixels)))


def _per_channel(name: str, given: float | Sequence[float], channels: int) -> list[float]:
    values = [float(value) for value in (given if isinstance(given, Sequence) else [given])]
    if len(values) not in (1, channels) or not all(math.isfinite(value) for value in values):
        raise EpisodeError(f"{name} must be one finite number or one per channel ({channels}); got {given}.")
    return values * channels if len(values) == 1 else values
