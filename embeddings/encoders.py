"""Encoders: whatever turns images into float32 rows, told apart by a fingerprint; `load_encoder` finds one by name."""

from __future__ import annotations

import hashlib
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .errors import EncoderError, UnknownEncoder
from .images import ImageSource, read_reduced
from .preprocess import Preprocess
from .similarity import SimilarityHead
from .source_statistics import SourceStatistics
from .windows import MARK, with_window

# The file that makes a folder a checkpoint.
CHECKPOINT_FILE = "encoder.json"

# The file that makes a folder an encoder exported to a runtime without torch.
EXPORT_FILE = "exported.json"

# What a spec may look like; shown whole in errors.
SPEC_FORMS = (
    '"pixels-32", "hog-64", "hf:<id or folder>", "untrained:<backbone>[@seed]", "3d:<network>[@seed]", '
    '"vectors:<file>", a folder with encoder.json or exported.json, or a torch module'
)


@runtime_checkable
class Encoder(Protocol):
    """What the rest of the library asks of an encoder.

    Attributes:
        name: For people.
        dim: Length of the vectors.
        fingerprint: SHA-256 (hex) over weights, configuration and preprocessing. Two encoders of one fingerprint make
            the same vectors; vectors of different fingerprints are never compared.
        source_mean: Mean vector of the domain it was trained on, shape (dim,), or None.
        source_statistics: Mean and spread of that domain's classes, or None. Like the mean no part of the fingerprint.
        similarity: The comparison of two vectors that was learnt with it, or None.
    """

    @property
    def name(self) -> str:
        """Return the name for people."""
        ...

    @property
    def dim(self) -> int:
        """Return the length of the vectors."""
        ...

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) over weights, configuration and preprocessing."""
        ...

    @property
    def source_mean(self) -> NDArray[np.float32] | None:
        """Return the mean vector of the source domain, or None."""
        ...

    @property
    def source_statistics(self) -> SourceStatistics | None:
        """Return the statistics of the source domain's classes, or None."""
        ...

    @property
    def similarity(self) -> SimilarityHead | None:
        """Return the learnt comparison, or None."""
        ...

    def load(self, source: ImageSource) -> NDArray[np.float32]:
        """Decode and preprocess one image: what worker processes do. Raises ImageError."""
        ...

    def encode_loaded(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Turn what `load` returned, n times, into vectors (n, dim)."""
        ...

    def encode(self, images: Sequence[ImageSource], *, batch_size: int = 64) -> NDArray[np.float32]:
        """Turn images into vectors (n, dim). Raises ImageError for the first that cannot be read."""
        ...


@dataclass(frozen=True)
class ImageLoader:
    """Reads and preprocesses one image; small and torch-free, so that worker processes can be sent one.

    What a decoding process sends back is `shrink(read(path))`, a quarter to a twelfth of what the network sees;
    `expand` makes a batch of those what the network sees.
    """

    preprocess: Preprocess

    def read(self, source: ImageSource) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """Return grey levels in [0, 1], with no more resolution than `shrink` needs where the format can, and (h, w).

        Raises:
            ImageError: It cannot be read.
        """
        form = self.preprocess
        return read_reduced(source, form.size if form.decoding == "fast" else None, hounsfield=form.window)

    def seen_through(self, window: tuple[float, float]) -> ImageLoader:
        """Return a loader that shows computed tomography through a window in Hounsfield units."""
        return ImageLoader(replace(self.preprocess, window=window))

    def shrink(self, grey: NDArray[np.float32], shape: tuple[int, int] | None = None) -> NDArray[Any]:
        """Bring what `read` returned to the network's size: uint8 or float32, see `Preprocess.compact`."""
        return self.preprocess.compact(grey, shape)

    def expand(self, batch: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Turn n shrunk images into what the network sees, (n, C, H, W)."""
        return self.preprocess.normalise(np.stack(list(batch)))

    def __call__(self, source: ImageSource) -> NDArray[np.float32]:
        """Return (C, H, W); raises ImageError."""
        image: NDArray[np.float32] = self.expand([self.shrink(*self.read(source))])[0]
        return image


class BaseEncoder(ABC):
    """The half of an encoder that is the same for all: `load` through a picklable `loader`, and `encode` by batches.

    Attributes:
        name: For people.
        dim: Length of the vectors.
        fingerprint: See `Encoder`.
        source_mean: See `Encoder`.
        source_statistics: See `Encoder`.
        similarity: See `Encoder`.
        loader: What `load` calls; pickles into a worker process without the network.
        spec: What `load_encoder` was given, so that an archive can name it; None where there is no such text.
        decodes: Whether `load` reads pixels, which is then worth a process of its own.
    """

    name: str
    dim: int
    fingerprint: str
    source_mean: NDArray[np.float32] | None = None
    source_statistics: SourceStatistics | None = None
    similarity: SimilarityHead | None = None
    loader: Callable[[ImageSource], NDArray[np.float32]]
    spec: str | None = None
    decodes: bool = True

    def load(self, source: ImageSource) -> NDArray[np.float32]:
        """Decode and preprocess one image.

        Raises:
            ImageError: It cannot be read.
        """
        return self.loader(source)

    @abstractmethod
    def encode_loaded(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Turn n loaded images into float32 vectors (n, dim)."""

    def encode(self, images: Sequence[ImageSource], *, batch_size: int = 64) -> NDArray[np.float32]:
        """Turn images into vectors.

        Args:
            images: Paths or arrays; a single image goes in a list of one.
            batch_size: Images held in memory and sent through the network at once.

        Returns:
            float32 rows (n, dim), in the order of `images`, as the network made them (not normalised).

        Raises:
            ImageError: The first image that cannot be read.
            EncoderError: `images` is not a list.
        """
        if isinstance(images, str | os.PathLike) or (isinstance(images, np.ndarray) and images.ndim == 2):
            raise EncoderError("encode takes a list of images and got a single one: write encode([image]).")
        if batch_size < 1:
            raise EncoderError(f"batch_size must be at least 1; got {batch_size}.")
        rows = np.empty((len(images), self.dim), dtype=np.float32)
        for start in range(0, len(images), batch_size):
            batch = [self.load(image) for image in images[start : start + batch_size]]
            rows[start : start + len(batch)] = self.encode_loaded(batch)
        return rows

    def __repr__(self) -> str:
        """Return the class, the name, the dimension and the first digits of the fingerprint."""
        return f"{type(self).__name__}({self.name!r}, dim={self.dim}, fingerprint={self.fingerprint[:12]!r})"


def fingerprint_of(config: Mapping[str, Any], tensors: Mapping[str, NDArray[Any]] | None = None) -> str:
    """Return the SHA-256 (hex) of a configuration and of arrays, in an order that does not depend on the caller's.

    Args:
        config: Plain JSON types.
        tensors: Weights by name; name, dtype, shape and little-endian bytes all count.
    """
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False).encode())
    for name in sorted(tensors or {}):
        array = np.asarray((tensors or {})[name])
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
        digest.update(f"\n{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def check_statistics(statistics: SourceStatistics | None, dim: int) -> SourceStatistics | None:
    """Return an encoder's source statistics if they are of vectors of its length.

    Raises:
        EncoderError: They are of vectors of another length, or none at all.
    """
    if statistics is not None and (not isinstance(statistics, SourceStatistics) or statistics.dim != dim):
        found = f"{statistics.dim} dimensions" if isinstance(statistics, SourceStatistics) else repr(statistics)
        raise EncoderError(f"source_statistics must be SourceStatistics of {dim} dimensions; got {found}.")
    return statistics


def load_encoder(spec: str | os.PathLike[str] | Any, *, device: str = "auto") -> Encoder:
    """Find or build an encoder.

    Args:
        spec: "pixels-32" (grey levels resized to 32 x 32: the honest floor), "hog-64" (histogram of oriented gradients:
            the classical floor), "hf:<id or folder>" (any transformers vision model), "untrained:<backbone>[@seed]",
            a folder with encoder.json (an own checkpoint), "vectors:<file>" or a mapping from id to vector (made
            elsewhere), a torch module (wrapped with a default `Preprocess`; use `TorchEncoder` to choose another), or
            an encoder, which is handed back. A name may end in "?window=lung" or "?window=40,80": computed tomography
            is then seen through that window, see `embeddings.windows`.
        device: "auto" takes CUDA where there is one, else the CPU; or "cpu", "cuda", "cuda:1" ...

    Returns:
        An object of the `Encoder` protocol.

    Raises:
        EncoderError: Nothing of that name, or it cannot be loaded.

    Example:
        >>> load_encoder("pixels-8").dim
        64
    """
    if isinstance(spec, BaseEncoder) or (not isinstance(spec, type) and isinstance(spec, Encoder)):
        return spec
    if _is_torch_module(spec):
        from .torch_encoder import wrap_module

        module: Any = spec
        return wrap_module(module, device=device)
    if isinstance(spec, Mapping):
        from .precomputed import load_vectors

        return load_vectors(spec)
    if not isinstance(spec, str | os.PathLike):
        raise EncoderError(f"An encoder is named by {SPEC_FORMS}; got {type(spec).__name__}.")
    text, mark, window = os.fspath(spec).partition(MARK)
    if mark:
        return with_window(load_encoder(text, device=device), window)  # type: ignore[no-any-return]
    encoder: BaseEncoder
    if match := re.fullmatch(r"(pixels|hog)-(\d{1,4})", text):
        from .classical import HogEncoder, PixelEncoder

        kind, size = match[1], int(match[2])
        encoder = PixelEncoder(size) if kind == "pixels" else HogEncoder(size)
    elif text.startswith("hf:"):
        from .transformers_encoder import TransformersEncoder

        encoder = TransformersEncoder(text.removeprefix("hf:"), device=device)
    elif text.startswith("vectors:"):
        from .precomputed import load_vectors

        encoder = load_vectors(text.removeprefix("vectors:"))
    elif text.startswith("3d:"):
        from .volume_encoder import volume_encoder

        encoder = volume_encoder(text.removeprefix("3d:"), device=device)
    elif text.startswith("untrained:"):
        from .torch_encoder import untrained_encoder

        encoder = untrained_encoder(text.removeprefix("untrained:"), device=device)
    elif (Path(text) / CHECKPOINT_FILE).is_file():
        from .torch_encoder import load_checkpoint

        return load_checkpoint(text, device=device)
    elif (Path(text) / EXPORT_FILE).is_file():
        from .exported_encoder import load_exported

        return load_exported(text)
    else:
        raise _not_found(text)
    encoder.spec = _lasting(text)
    return encoder


def _lasting(text: str) -> str:
    """Return a spec that still means the same in another working folder: the path in it becomes absolute."""
    prefix = next((prefix for prefix in ("hf:", "vectors:") if text.startswith(prefix)), None)
    path = None if prefix is None else Path(text.removeprefix(prefix))
    return f"{prefix}{path.absolute()}" if path is not None and path != Path() and path.exists() else text


def _is_torch_module(spec: Any) -> bool:
    """Tell a torch module by its ancestors' names, without importing torch."""
    return any(
        f"{base.__module__}.{base.__qualname__}" == "torch.nn.modules.module.Module" for base in type(spec).__mro__
    )


def _not_found(text: str) -> EncoderError:
    """Say what an unknown spec may have meant."""
    folder = Path(text)
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return UnknownEncoder(
                f'The folder {text} holds a transformers model, not an own checkpoint: write "hf:{text}".'
            )
        return EncoderError(
            f"The folder {text} has no {CHECKPOINT_FILE}: it is not a checkpoint (or its training did not finish)."
        )
    if folder.is_file():
        return EncoderError(f"{text} is a file; a checkpoint is the folder that holds {CHECKPOINT_FILE}.")
    close = get_close_matches(text, ("pixels-32", "hog-64", "untrained:conv4", "untrained:resnet18"), n=1, cutoff=0.7)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return UnknownEncoder(
        f"There is no encoder {text!r} and no such folder; an encoder is named by {SPEC_FORMS}.{hint}"
    )
