"""ExportedEncoder: a network saved as ONNX or OpenVINO, with its preprocessing; it runs without torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from .encoders import EXPORT_FILE, BaseEncoder, ImageLoader, check_statistics, fingerprint_of
from .errors import EncoderError
from .precision import LEAST_COSINE, least_cosine
from .preprocess import Preprocess
from .runtimes import RUNTIMES, Run
from .similarity import SimilarityHead
from .source_statistics import ARRAYS, SourceStatistics

EXPORT_FORMAT = 1
"""Layout of the folder."""

ARRAYS_FILE = "arrays.safetensors"
"""Probe images with the vectors they must give, the source's mean and statistics."""

MODEL_FILES = {"onnx": ("model.onnx",), "openvino": ("model.xml", "model.bin")}
"""Files of the network, by format."""

MAX_DOCUMENT_BYTES = 4 * 2**20
"""Largest exported.json that is read; a real one has a few kilobytes."""

SIMILARITY = "similarity."
"""What the names of a learnt comparison's arrays begin with."""

DOCUMENT_HASH = "document_sha256"
"""Key of the hash of all else in exported.json: how images are prepared shows in no other file."""


class ExportedEncoder(BaseEncoder):
    """A network in ONNX Runtime or OpenVINO.

    Its vectors have a cosine of at least 0.999 with those of the encoder it was exported from, on the probe images that
    lie beside it: that was checked when it was exported, and is checked again when it is loaded. So it keeps that
    encoder's fingerprint, and answers questions about that encoder's archives. Several threads may use it at once.

    Args:
        run: The network.
        document: What `exported.json` says.
        arrays: What `arrays.safetensors` holds.

    Raises:
        ValueError: The two do not fit each other.
    """

    def __init__(self, run: Run, document: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take the network and what was exported with it."""
        self._run = run
        self.preprocess = Preprocess.from_json(document["preprocess"])
        self.loader = ImageLoader(self.preprocess)
        self.name = str(document["name"])
        self.dim = int(document["dim"])
        self.fingerprint = str(document["fingerprint"])
        self.source_mean = arrays.get("source_mean")
        if self.source_mean is not None and self.source_mean.shape != (self.dim,):
            raise ValueError(f"source_mean must be {self.dim} numbers; got shape {self.source_mean.shape}")
        found = {key: arrays[f"statistics.{key}"] for key in ARRAYS if f"statistics.{key}" in arrays}
        self.source_statistics = check_statistics(SourceStatistics.from_arrays(found) if found else None, self.dim)
        if (learnt := document.get("similarity")) is not None:
            tensors = {key.removeprefix(SIMILARITY): arrays[key] for key in arrays if key.startswith(SIMILARITY)}
            self.similarity = SimilarityHead(str(learnt["name"]), dict(learnt["config"]), tensors)

    def encode_loaded(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Send n loaded images (C, H, W) through the network; returns float32 rows (n, dim)."""
        if len(batch) == 0:
            return np.empty((0, self.dim), dtype=np.float32)
        return self._run(np.stack(list(batch)).astype(np.float32, copy=False))


def load_exported(folder: str | os.PathLike[str]) -> ExportedEncoder:
    """Load what `export_encoder` wrote, and verify it: every file's SHA-256, and the vectors of the probe.

    Nothing in the folder can run code of its own: the network is a graph of the runtime's operations.

    Raises:
        EncoderError: A file is missing or not the one that was written, the runtime is not installed, or its vectors
            are not those of the encoder that was exported.
    """
    root = Path(folder)
    document = _document(root)
    kind, files = str(document["format"]), document["files"]
    contents = {name: _checked(root / name, str(files[name])) for name in files}
    try:
        arrays = load_tensors(contents[ARRAYS_FILE])
        encoder = ExportedEncoder(RUNTIMES[kind](contents, exact=False), document, arrays)
        images, vectors = arrays["probe_images"], arrays["probe_vectors"]
        if images.ndim != 3 or not len(images):
            raise ValueError("it has no probe images")
    except EncoderError as error:
        raise EncoderError(f"The exported encoder in {root} cannot be loaded: {error}") from error
    except (SafetensorError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise EncoderError(f"The exported encoder in {root} cannot be loaded: {str(error).rstrip('.')}.") from error
    if not _agrees(encoder, images, vectors):  # the runtime's own choice of precision is too coarse here
        encoder = ExportedEncoder(RUNTIMES[kind](contents, exact=True), document, arrays)
        if not _agrees(encoder, images, vectors):
            raise EncoderError(
                f"The exported encoder in {root} does not give the vectors of {encoder.name} on this machine: use that "
                "encoder itself."
            )
    encoder.spec = str(root.absolute())
    return encoder


def _document(root: Path) -> dict[str, Any]:
    """Return exported.json, checked for size, syntax, format and hash."""
    path = root / EXPORT_FILE
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_DOCUMENT_BYTES + 1)
        if len(text) > MAX_DOCUMENT_BYTES:
            raise ValueError(f"it is larger than {MAX_DOCUMENT_BYTES:,} bytes")
        document = dict(json.loads(text))
        kind, version = document["format"], int(document["format_version"])
        if version != EXPORT_FORMAT or kind not in MODEL_FILES:
            raise ValueError(f"format {version} of kind {kind!r}; this radshot reads {EXPORT_FORMAT}")
        wanted = {*MODEL_FILES[kind], ARRAYS_FILE}
        if set(document["files"]) != wanted:
            raise ValueError(f"files {sorted(document['files'])} instead of {sorted(wanted)}")
        same = document.pop(DOCUMENT_HASH) == fingerprint_of(document)
    except OSError as error:
        raise EncoderError(f"{path} is no description of an exported encoder ({error.strerror or error}).") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = " ".join(str(error).split())[:200]
        raise EncoderError(f"{path} is no description of an exported encoder ({why}).") from error
    if not same:
        raise EncoderError(f"The exported encoder's {path} is not what was written: export it again.")
    return document


def _checked(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EncoderError(
            f"The exported encoder's {path} cannot be read: {(error.strerror or str(error)).lower()}."
        ) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise EncoderError(f"The exported encoder's {path} is not what was written: export it again.")
    return content


def _agrees(encoder: ExportedEncoder, images: NDArray[Any], vectors: NDArray[np.float32]) -> bool:
    """Say whether the network makes the probe's vectors; one that cannot run on the probe does not."""
    try:
        found = encoder.encode_loaded(list(ImageLoader(encoder.preprocess).expand(list(images))))
    except ValueError:
        return False
    return found.shape == vectors.shape == (len(images), encoder.dim) and least_cosine(vectors, found) >= LEAST_COSINE
