"""faster: an encoder's network in bfloat16 where the machine is quicker at it, checked against float32."""

from __future__ import annotations

import copy
import ctypes
import math
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, get_args, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .errors import EncoderError

if TYPE_CHECKING:
    import torch

    from .encoders import Encoder

Precision = Literal["auto", "float32", "bfloat16"]

LEAST_COSINE = 0.999
"""The cosine every probe image's fast vector must have with its float32 vector."""

LEAST_FLOAT32_COSINE = 0.99999
"""The same for float32 with channels last, which is to differ by rounding only."""

PROBE_IMAGES = 16
"""Images compared, at most: those of the first batch."""

TIMED_IMAGES = 4
"""Images the two ways are timed on, at most."""

LEAST_GAIN = 1.1
""""auto" takes bfloat16 only where it is this many times as fast on the probe."""

_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1
"""Parameters of glibc's mallopt(3)."""

_KEPT_BYTES = 1 << 30
"""Blocks up to this size come from the heap and stay there: a batch's activations are mapped once, not per batch."""


@dataclass(frozen=True, slots=True)
class PrecisionReport:
    """How vectors are computed, and why.

    Attributes:
        chosen: "float32" or "bfloat16".
        cosine: The smallest cosine between a fast and a float32 vector of the probe; None where none was computed.
        gain: How many times as fast the fast way was on the probe; None where it was not timed.
        reason: One sentence.
    """

    chosen: Literal["float32", "bfloat16"]
    cosine: float | None
    gain: float | None
    reason: str

    def __str__(self) -> str:
        """Return the sentence."""
        return self.reason


@runtime_checkable
class TorchRunner(Protocol):
    """An encoder whose network can be run as a copy in another precision."""

    network: torch.nn.Module
    device: torch.device
    dim: int

    def encode_loaded(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Turn loaded images into vectors (n, d)."""
        ...

    def run(self, network: torch.nn.Module, images: torch.Tensor, /) -> torch.Tensor:
        """Send images (n, C, H, W) through the network, or a copy of it."""
        ...


Encode = Callable[[Sequence[NDArray[np.float32]]], NDArray[np.float32]]


def faster(
    encoder: Encoder, probe: Sequence[NDArray[np.float32]], *, precision: Precision = "auto"
) -> tuple[Encode, PrecisionReport]:
    """Find the fastest way to compute an encoder's vectors that is still right on images like these.

    For networks on the CPU: weights in bfloat16, images with their channels last (in float32 too, where the processor
    has no bfloat16), and memory that stays with the process from batch to batch. On CUDA: bfloat16, channels last,
    pinned memory. The vectors come back as float32 and have at least a cosine of `LEAST_COSINE` with those of the
    float32 network for every probe image, or float32 stays. As with float32, an image's vector may differ by rounding
    between batches of different size.

    Args:
        encoder: Any encoder; one that is no torch network is used as it is.
        probe: Loaded images of the kind to come, as `encode_loaded` takes them.
        precision: "float32" and "bfloat16" ask for one; "auto" takes bfloat16 if the machine is faster at it.

    Returns:
        What takes the place of `encoder.encode_loaded`, and the report. The encoder itself is not changed.

    Raises:
        EncoderError: The precision is unknown.
    """
    if precision not in get_args(Precision):
        raise EncoderError(f"precision must be one of {', '.join(get_args(Precision))}; got {precision!r}.")
    if not isinstance(encoder, TorchRunner):
        return encoder.encode_loaded, PrecisionReport("float32", None, None, "")
    keep_memory()
    if precision == "float32":
        return encoder.encode_loaded, PrecisionReport("float32", None, None, "Vectors are computed in float32.")
    shown = list(probe[:PROBE_IMAGES])
    if precision == "auto" and not has_bfloat16(encoder.device):
        reason = "Vectors are computed in float32: this processor has no instructions for bfloat16."
        return _channels_last(encoder, shown), PrecisionReport("float32", None, None, reason)
    fast = _NetworkCopy(encoder, "bfloat16")
    exact = encoder.encode_loaded(shown)
    try:
        vectors = fast(shown)
    except RuntimeError as error:  # an operation that torch has not got in bfloat16
        reason = (
            f"Vectors are computed in float32: the network does not run in bfloat16 ({str(error).splitlines()[0]})."
        )
        return encoder.encode_loaded, PrecisionReport("float32", None, None, reason)
    cosine = least_cosine(exact, vectors)
    if not cosine >= LEAST_COSINE:
        reason = (
            f"Vectors are computed in float32: in bfloat16 one of {len(shown)} probe images has a cosine of only "
            f"{cosine:.4f} with its float32 vector, and {LEAST_COSINE} is needed."
        )
        return encoder.encode_loaded, PrecisionReport("float32", cosine, None, reason)
    gain = None
    if precision == "auto":
        some = shown[:TIMED_IMAGES]
        gain = _seconds(encoder.encode_loaded, some) / _seconds(fast, some)
        if gain < LEAST_GAIN:
            reason = f"Vectors are computed in float32: bfloat16 is only {gain:.2f} times as fast here."
            return encoder.encode_loaded, PrecisionReport("float32", cosine, gain, reason)
    down = math.floor(cosine * 1e5) / 1e5
    much = "" if gain is None else f", {gain:.1f} times as fast"
    reason = (
        f"Vectors are computed in bfloat16{much}; their cosine with float32 is at least {down:.5f} on {len(shown)} "
        "probe images."
    )
    return fast, PrecisionReport("bfloat16", cosine, gain, reason)


def least_cosine(exact: NDArray[np.float32], fast: NDArray[np.float32]) -> float:
    """Return the smallest cosine between rows (n, d); NaN where a fast vector is not finite, 1 for two zero vectors."""
    first, second = exact.astype(np.float64), fast.astype(np.float64)
    lengths = np.linalg.norm(first, axis=1) * np.linalg.norm(second, axis=1)
    cosines = np.divide((first * second).sum(axis=1), lengths, out=np.zeros(len(first)), where=lengths > 0)
    cosines[(first == second).all(axis=1)] = 1.0
    return float(cosines.min(initial=1.0)) if np.isfinite(second).all() else float("nan")


def has_bfloat16(device: torch.device) -> bool:
    """Say whether a device computes in bfloat16 by instructions of its own."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    with suppress(OSError):
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
        return "avx512_bf16" in flags or "amx_bf16" in flags or " bf16" in flags
    return False


def keep_memory() -> None:
    """Let glibc keep large blocks for the next batch, which else cost a page fault per 4 KB of every activation."""
    with suppress(OSError, AttributeError):
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, _KEPT_BYTES)
        library.mallopt(_M_TRIM_THRESHOLD, 2 * _KEPT_BYTES - 1)


def _seconds(encode: Encode, images: Sequence[NDArray[np.float32]]) -> float:
    """Return the shorter of two runs; the first call before them has warmed up."""
    times = []
    for _ in range(2):
        started = time.perf_counter()
        encode(images)
        times.append(time.perf_counter() - started)
    return min(times)


def _channels_last(encoder: TorchRunner, shown: Sequence[NDArray[np.float32]]) -> Encode:
    """Return float32 with channels last, which sums in another order at most; the encoder's own way if that fails."""
    try:
        way = _NetworkCopy(encoder, "float32")
        same = least_cosine(encoder.encode_loaded(shown), way(shown)) >= LEAST_FLOAT32_COSINE
    except RuntimeError:  # a network that insists on the usual layout
        same = False
    return way if same else encoder.encode_loaded


class _NetworkCopy:
    """A copy of an encoder's network in bfloat16 or float32, with channels last."""

    def __init__(self, encoder: TorchRunner, kind: Literal["bfloat16", "float32"]) -> None:
        import torch

        self._encoder = encoder
        self._type = torch.bfloat16 if kind == "bfloat16" else torch.float32
        self._layout = torch.channels_last
        network = copy.deepcopy(encoder.network).eval().requires_grad_(False).to(self._type)
        self._network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs
        self._pinned: torch.Tensor | None = None

    def __call__(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Return vectors (n, d), float32."""
        if len(batch) == 0:
            return np.empty((0, self._encoder.dim), dtype=np.float32)
        if len({image.shape for image in batch}) > 1:  # a processor that keeps the aspect ratio
            return np.concatenate([self([image]) for image in batch])
        rows: NDArray[np.float32] = self._encoder.run(self._network, self._images(batch)).float().cpu().numpy()
        return rows

    def _images(self, batch: Sequence[NDArray[np.float32]]) -> torch.Tensor:
        import torch

        images = torch.from_numpy(np.stack(list(batch)))
        device = self._encoder.device
        if device.type != "cuda":
            return images.to(self._type).contiguous(memory_format=self._layout)
        if self._pinned is None or self._pinned.shape[1:] != images.shape[1:] or len(self._pinned) < len(images):
            self._pinned = torch.empty(images.shape, dtype=torch.float32, pin_memory=True)
        held = self._pinned[: len(images)]
        held.copy_(images)
        moved = held.to(device, non_blocking=True).to(self._type).contiguous(memory_format=self._layout)
        torch.cuda.current_stream(device).synchronize()  # the pinned buffer is written again for the next batch
        return moved
