"""How an ingest job reads a file: in a decoding process, or in the calling thread; both run the same functions."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .decoding import Decoder, DecodingLimits, UnknownToDecoder, decoders
from .encoders import BaseEncoder, ImageLoader
from .image_warnings import image_warnings
from .images import ImageIdentity, image_identity, read_image

if TYPE_CHECKING:
    from .encoders import Encoder

Loader = Callable[[Path], NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Loaded:
    """What reading one image gave.

    Attributes:
        image: What the encoder's loader made of it; shrunk but not yet expanded where it is an `ImageLoader`.
        warnings: Codes of `embeddings.image_warnings`.
    """

    image: NDArray[Any]
    warnings: tuple[str, ...] = ()


class Reader(Protocol):
    """Reads files for one job; safe to call from as many threads as the job has."""

    def identity(self, path: Path) -> ImageIdentity:
        """Hash a file and read its header; raises ImageError."""
        ...

    def load(self, path: Path, metadata: Mapping[str, Any]) -> Loaded:
        """Decode and preprocess one image; raises ImageError."""
        ...

    def same_image(self, first: Path, second: Path) -> bool:
        """Say whether two files show the same grey levels, decoded whole; raises ImageError."""
        ...

    def expand(self, images: Sequence[NDArray[Any]]) -> Sequence[NDArray[np.float32]]:
        """Turn what was loaded into what `encode_loaded` takes."""
        ...


def identity_of(path: Path) -> dict[str, Any]:
    """Return `image_identity` as plain types."""
    return asdict(image_identity(path))


def load_image(loader: Loader, path: Path, metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Read one image with an encoder's loader, and look for what a person should know of it."""
    if not isinstance(loader, ImageLoader):
        return {"image": loader(path), "warnings": []}
    grey, shape = loader.read(path)
    return {"image": loader.shrink(grey, shape), "warnings": list(image_warnings(grey, metadata))}


def shows_the_same(first: Path, second: Path) -> bool:
    """Say whether two files show the same grey levels, every pixel decoded."""
    return bool(np.array_equal(read_image(first), read_image(second)))


class LocalReader:
    """Reads in the calling thread: nothing limits a decoder, and one that crashes takes the process along."""

    def __init__(self, encoder: Encoder) -> None:
        """Take over how the encoder loads an image."""
        self._loader: Loader = standard_loader(encoder) or encoder.load

    def identity(self, path: Path) -> ImageIdentity:
        """Hash a file and read its header."""
        return image_identity(path)

    def load(self, path: Path, metadata: Mapping[str, Any]) -> Loaded:
        """Decode and preprocess one image."""
        found = load_image(self._loader, path, metadata)
        return Loaded(found["image"], tuple(found["warnings"]))

    def same_image(self, first: Path, second: Path) -> bool:
        """Say whether two files show the same grey levels."""
        return shows_the_same(first, second)

    def expand(self, images: Sequence[NDArray[Any]]) -> Sequence[NDArray[np.float32]]:
        """Turn what was loaded into what `encode_loaded` takes."""
        return expanded(self._loader, images)


class ProcessReader:
    """Reads in decoding processes; a thread that finds all of them busy waits for one.

    Paths are sent whole: a process that was kept from an earlier job may have another working folder.
    """

    def __init__(self, loader: Loader, lent: Sequence[Decoder]) -> None:
        """Take the encoder's loader and the processes that are to run it."""
        self._loader = loader
        self._free: SimpleQueue[Decoder] = SimpleQueue()
        for one in lent:
            self._free.put(one)

    def _call(self, function: Callable[..., Any], *arguments: Any, source: Path) -> Any:
        decoder = self._free.get()
        try:
            return decoder.call(function, *arguments, source=source)
        finally:
            self._free.put(decoder)

    def identity(self, path: Path) -> ImageIdentity:
        """Hash a file and read its header."""
        return ImageIdentity(**self._call(identity_of, path.absolute(), source=path))

    def load(self, path: Path, metadata: Mapping[str, Any]) -> Loaded:
        """Decode and preprocess one image."""
        found = self._call(load_image, self._loader, path.absolute(), metadata, source=path)
        return Loaded(found["image"], tuple(found["warnings"]))

    def same_image(self, first: Path, second: Path) -> bool:
        """Say whether two files show the same grey levels."""
        return bool(self._call(shows_the_same, first.absolute(), second.absolute(), source=second))

    def expand(self, images: Sequence[NDArray[Any]]) -> Sequence[NDArray[np.float32]]:
        """Turn what was loaded into what `encode_loaded` takes."""
        return expanded(self._loader, images)


def expanded(loader: Loader, images: Sequence[NDArray[Any]]) -> Sequence[NDArray[np.float32]]:
    """Turn what `load_image` gave into what the encoder's `encode_loaded` takes."""
    if isinstance(loader, ImageLoader) and len(images):
        return list(loader.expand(images))
    return images


def standard_loader(encoder: Encoder) -> Loader | None:
    """Return the loader that does all of an encoder's `load`, or None where the encoder has its own way."""
    if not isinstance(encoder, BaseEncoder) or type(encoder).load is not BaseEncoder.load:
        return None
    return encoder.loader


@contextmanager
def reader_for(encoder: Encoder, processes: int, limits: DecodingLimits | None = None) -> Iterator[tuple[Reader, int]]:
    """Yield the reader of a job, and with how many threads to use it (0: in the calling thread).

    Decoding processes are used where the encoder's loader can be sent to one: that is not so for a class of the
    running script, nor for vectors that were made elsewhere, of which nothing is decoded.

    Raises:
        DecoderUnavailable: No process can be started.
    """
    loader = standard_loader(encoder)
    if processes == 0 or loader is None or not (isinstance(encoder, BaseEncoder) and encoder.decodes):
        yield LocalReader(encoder), processes
        return
    with decoders(processes, limits) as lent:
        try:
            known = _picklable(loader) and lent[0].call(_knows, loader, source="loader")
        except UnknownToDecoder:
            known = False
        yield (ProcessReader(loader, lent) if known else LocalReader(encoder)), processes


def _knows(loader: Loader) -> bool:
    """Say, in the decoding process, that the loader arrived."""
    return callable(loader)


def _picklable(loader: Loader) -> bool:
    try:
        pickle.dumps(loader)
    except Exception:  # pickle raises whatever the object does
        return False
    return True
