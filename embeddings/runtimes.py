"""ONNX Runtime and OpenVINO as functions from images to vectors: nothing outside is read, and nothing is reported."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import EncoderError

INSTALL = "pip install 'radshot[fast]'"

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""From images (n, C, H, W) to vectors (n, d); safe to call from several threads."""

_STATISTICS = "openvino_telemetry"
"""The package through which OpenVINO reports every import and conversion to its makers; it does without."""

_XML = b"<?xml"
"""How an OpenVINO network begins; what begins otherwise, OpenVINO would read as another format."""


def import_openvino() -> ModuleType:
    """Import OpenVINO without its usage statistics, unless the calling program has imported it with them.

    Raises:
        ImportError: It is not installed.
    """
    ours = "openvino" not in sys.modules and _STATISTICS not in sys.modules
    if ours:
        sys.modules[_STATISTICS] = None  # type: ignore[assignment]  # how Python marks what cannot be imported
    try:
        import openvino
    finally:
        if ours:
            del sys.modules[_STATISTICS]
    module: ModuleType = openvino
    return module


def onnx_network(contents: Mapping[str, bytes], *, exact: bool) -> Run:
    """Make a network of model.onnx.

    Args:
        contents: Files by name.
        exact: Not used: ONNX Runtime computes in float32.

    Raises:
        EncoderError: A package is missing, or the file is no network that has all its weights within.
    """
    try:
        import onnx
        import onnxruntime
    except ImportError:
        raise EncoderError(f"This encoder needs ONNX Runtime, which is not installed: {INSTALL}.") from None
    content = contents["model.onnx"]
    try:
        outside = any(_names_a_file(tensor) for tensor in _tensors(onnx.load_model_from_string(content)))
    except Exception as error:  # protobuf's errors are of no public class
        raise EncoderError(f"model.onnx is no ONNX network: {_short(error)}.") from error
    if outside:  # ONNX Runtime would look for it in the working folder
        raise EncoderError("model.onnx names weights in another file, and may only hold its own: export it again.")
    try:
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        name = session.get_inputs()[0].name
    except Exception as error:  # the runtime's errors have no common base
        raise EncoderError(f"ONNX Runtime does not take the network: {_short(error)}.") from error
    return _guarded(lambda images: session.run(None, {name: images})[0], "ONNX Runtime")


def openvino_network(contents: Mapping[str, bytes], *, exact: bool) -> Run:
    """Make a network of model.xml and model.bin.

    Args:
        contents: Files by name.
        exact: Compute in float32, not in bfloat16 where the processor has it.

    Raises:
        EncoderError: OpenVINO is not installed, or the files are no network of its own format.
    """
    try:
        openvino: Any = import_openvino()
    except ImportError:
        raise EncoderError(f"This encoder needs OpenVINO, which is not installed: {INSTALL}.") from None
    if not contents["model.xml"].startswith(_XML):
        raise EncoderError("model.xml is no OpenVINO network: it does not begin as XML.")
    try:
        core = openvino.Core()
        model = core.read_model(contents["model.xml"], contents["model.bin"])
        settings = {"PERFORMANCE_HINT": "LATENCY"}  # one batch at a time, spread over all processors
        if exact:
            settings["INFERENCE_PRECISION_HINT"] = "f32"
        compiled = core.compile_model(model, "CPU", settings)
    except Exception as error:  # as above
        raise EncoderError(f"OpenVINO does not take the network: {_short(error)}.") from error
    turn = threading.Lock()

    def run(images: NDArray[np.float32]) -> NDArray[np.float32]:
        with turn:  # a network that is called by two threads at once raises
            return np.array(compiled(images)[0])

    return _guarded(run, "OpenVINO")


def _guarded(run: Callable[[NDArray[np.float32]], Any], runtime: str) -> Run:
    """Return the function with float32 rows, and its errors in one sentence."""

    def call(images: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            return np.asarray(run(images), dtype=np.float32)
        except Exception as error:  # as above
            shape = tuple(images.shape)
            raise EncoderError(f"{runtime} cannot run the network on images {shape}: {_short(error)}.") from error

    return call


def _tensors(message: Any) -> Iterator[Any]:
    """Yield every tensor of an ONNX model, however deep: of subgraphs, attributes and functions too."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        parts: Iterable[Any] = [value] if hasattr(value, "ListFields") else value
        for part in parts:
            if field.message_type.name == "TensorProto":
                yield part
            else:
                yield from _tensors(part)


def _names_a_file(tensor: Any) -> bool:
    """Say whether a tensor's numbers lie in another file (data_location EXTERNAL)."""
    return bool(tensor.external_data) or tensor.data_location == tensor.EXTERNAL


def _short(error: Exception) -> str:
    return (" ".join(str(error).split()) or type(error).__name__)[:200].rstrip(".")


RUNTIMES: dict[str, Callable[..., Run]] = {"onnx": onnx_network, "openvino": openvino_network}
"""Format -> what makes its network from the files' contents."""
