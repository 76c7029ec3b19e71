"""ExportedEncoder: a network saved as ONNX or OpenVINO, with its preprocessing; it runs without torch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors

from .encoders import EXPORT_FILE, BaseEncoder, ImageLoader
from .errors import EncoderError
from .precision import LEAST_COSINE, least_cosine
from .preprocess import Preprocess
from .source_statistics import ARRAYS, SourceStatistics

EXPORT_FORMAT = 1
"""Layout of the folder."""

ARRAYS_FILE = "arrays.safetensors"
"""Probe images with the vectors they must give, the source's mean and statistics."""

MODEL_FILES = {"onnx": ("model.onnx",), "openvino": ("model.xml", "model.bin")}
"""Files of the network, by format."""

INSTALL = "pip install 'radshot[fast]'"

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""From images (n, C, H, W) to vectors (n, d)."""


class ExportedEncoder(BaseEncoder):
    """A network in ONNX Runtime or OpenVINO.

    Its vectors have a cosine of at least 0.999 with those of the encoder it was exported from, on the probe images that
    lie beside it: that was checked when it was exported, and is checked again when it is loaded. So it keeps that
    encoder's fingerprint, and answers questions about that encoder's archives.

    Args:
        run: The network.
        document: What `exported.json` says.
        arrays: What `arrays.safetensors` holds.
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
        found = {key: arrays[f"statistics.{key}"] for key in ARRAYS if f"statistics.{key}" in arrays}
        self.source_statistics = SourceStatistics.from_arrays(found) if found else None

    def encode_loaded(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Send n loaded images (C, H, W) through the network; returns float32 rows (n, dim)."""
        if len(batch) == 0:
            return np.empty((0, self.dim), dtype=np.float32)
        return np.asarray(self._run(np.stack(list(batch)).astype(np.float32)), dtype=np.float32)


def load_exported(folder: str | os.PathLike[str]) -> ExportedEncoder:
    """Load what `export_encoder` wrote, and verify it: every file's SHA-256, and the vectors of the probe.

    Nothing in the folder can run code of its own: the network is a graph of the runtime's operations.

    Raises:
        EncoderError: A file is missing or not the one that was written, the runtime is not installed, or its vectors
            are not those of the encoder that was exported.
    """
    root = Path(folder)
    try:
        document = json.loads((root / EXPORT_FILE).read_text(encoding="utf-8"))
        kind, files = str(document["format"]), dict(document["files"])
        if int(document["format_version"]) != EXPORT_FORMAT or kind not in MODEL_FILES:
            raise ValueError(f"format {document['format_version']} of kind {kind!r}")
        wanted = {*MODEL_FILES[kind], ARRAYS_FILE}
        if set(files) != wanted:
            raise ValueError(f"files {sorted(files)} instead of {sorted(wanted)}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EncoderError(f"{root / EXPORT_FILE} is no description of an exported encoder ({error}).") from error
    contents = {name: _checked(root / name, str(files[name])) for name in files}
    try:
        arrays = load_tensors(contents[ARRAYS_FILE])
        run = RUNTIMES[kind](contents, exact=False)
        encoder = ExportedEncoder(run, document, arrays)
        images, vectors = arrays["probe_images"], arrays["probe_vectors"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise EncoderError(f"The exported encoder in {root} cannot be loaded: {error}.") from error
    if not _agrees(encoder, images, vectors):  # the runtime's own choice of precision is too coarse here
        encoder = ExportedEncoder(RUNTIMES[kind](contents, exact=True), document, arrays)
        if not _agrees(encoder, images, vectors):
            raise EncoderError(
                f"The exported encoder in {root} does not give the vectors of {encoder.name} on this machine: use that "
                "encoder itself."
            )
    encoder.spec = str(root.absolute())
    return encoder


def _checked(path: Path, sha256: str) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EncoderError(
            f"The exported encoder's {path} cannot be read: {(error.strerror or '').lower()}."
        ) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise EncoderError(f"The exported encoder's {path} is not what was written: export it again.")
    return content


def _agrees(encoder: ExportedEncoder, images: NDArray[Any], vectors: NDArray[np.float32]) -> bool:
    found = encoder.encode_loaded(list(ImageLoader(encoder.preprocess).expand(list(images))))
    return found.shape == vectors.shape and least_cosine(vectors, found) >= LEAST_COSINE


def _onnx(contents: Mapping[str, bytes], *, exact: bool) -> Run:
    try:
        import onnxruntime
    except ImportError:
        raise EncoderError(f"This encoder needs ONNX Runtime, which is not installed: {INSTALL}.") from None
    try:
        # From memory: a model that names files of weights elsewhere finds none.
        session = onnxruntime.InferenceSession(contents["model.onnx"], providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
    except Exception as error:  # the runtime's errors have no common base
        raise EncoderError(f"ONNX Runtime does not take the network: {' '.join(str(error).split())[:200]}.") from error

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = session.run(None, {name: images})[0]
        return vectors

    return run


def _openvino(contents: Mapping[str, bytes], *, exact: bool) -> Run:
    try:
        import openvino
    except ImportError:
        raise EncoderError(f"This encoder needs OpenVINO, which is not installed: {INSTALL}.") from None
    try:
        core = openvino.Core()
        model = core.read_model(contents["model.xml"], contents["model.bin"])
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY"}  # one batch at a time, spread over all processors
        if exact:
            settings["INFERENCE_PRECISION_HINT"] = "f32"  # else bfloat16 where the processor has it
        compiled = core.compile_model(model, "CPU", settings)
    except Exception as error:  # as above
        raise EncoderError(f"OpenVINO does not take the network: {' '.join(str(error).split())[:200]}.") from error

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = np.array(compiled(images)[0], dtype=np.float32)
        return vectors

    return run


RUNTIMES: dict[str, Callable[..., Run]] = {"onnx": _onnx, "openvino": _openvino}
"""Format -> what makes its network from the files' contents."""
