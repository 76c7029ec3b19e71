"""export_encoder: a torch encoder as an ONNX or OpenVINO folder, kept only if it gives the same vectors."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import save_file

from .encoders import EXPORT_FILE, Encoder, ImageLoader, fingerprint_of
from .errors import EncoderError
from .exported_encoder import ARRAYS_FILE, DOCUMENT_HASH, EXPORT_FORMAT, MODEL_FILES, SIMILARITY, load_exported
from .images import ImageSource
from .quiet import quiet
from .runtimes import INSTALL, import_openvino
from .torch_encoder import TorchEncoder

Format = Literal["onnx", "openvino"]

PROBE_IMAGES = 16
"""Images that lie beside the network with the vectors they must give, at most."""

OPSET = 18
"""Version of ONNX's operators."""


def export_encoder(
    encoder: Encoder, folder: str | os.PathLike[str], *, format: Format, probe: Sequence[ImageSource]
) -> Path:
    """Write an encoder's network for a runtime without torch; what is written is loaded again and compared.

    Args:
        encoder: A `TorchEncoder`: an own checkpoint, or a wrapped module.
        folder: A new folder.
        format: "onnx" for ONNX Runtime, "openvino" for OpenVINO, which takes bfloat16 where the processor has it.
        probe: Images of the kind to come, at least one. As many as `PROBE_IMAGES` are kept in the folder, reduced to
            what the network sees: choose images that may be passed on with it.

    Returns:
        The folder, which `load_encoder` takes.

    Raises:
        EncoderError: The encoder cannot be exported, the folder is there, a package is missing, or the exported network
            gives other vectors (cosine below 0.999); nothing is left.
        ImageError: A probe image cannot be read.
    """
    if format not in get_args(Format):
        raise EncoderError(f"An encoder is exported as one of {', '.join(get_args(Format))}; got {format!r}.")
    loader: Any = getattr(encoder, "loader", None)
    if not isinstance(encoder, TorchEncoder) or not isinstance(loader, ImageLoader):
        raise EncoderError(
            "Only encoders of a torch network with radshot's own preprocessing can be exported; "
            f"{encoder.name} is none."
        )
    if not len(probe):
        raise EncoderError("An export is checked on images: give at least one.")
    target = Path(folder)
    if target.exists():
        raise EncoderError(f"An export needs a new folder, and '{target}' is there already: give a new name.")
    shrunk = [loader.shrink(*loader.read(image)) for image in probe[:PROBE_IMAGES]]
    draft = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        draft.mkdir(parents=True)
        _write_network(encoder, draft, format)
        _write_rest(encoder, draft, format, shrunk)
        load_exported(draft)
        draft.rename(target)
    except OSError as error:
        raise EncoderError(f"'{target}' cannot be written: {(error.strerror or str(error)).lower()}.") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _write_network(encoder: TorchEncoder, folder: Path, format: Format) -> None:
    network = encoder.network.eval()
    shape = (2, encoder.preprocess.channels, *encoder.preprocess.size)
    example = torch.zeros(shape, device=encoder.device)
    try:
        with quiet(), torch.no_grad():
            if format == "onnx":
                import onnx  # noqa: F401 (torch's exporter needs it, and says so less clearly)

                torch.onnx.export(
                    network,
                    (example,),
                    str(folder / "model.onnx"),
                    input_names=["images"],
                    output_names=["vectors"],
                    opset_version=OPSET,
                    dynamo=False,
                    dynamic_axes={"images": {0: "n"}, "vectors": {0: "n"}},
                )
            else:
                openvino: Any = import_openvino()
                model = openvino.convert_model(network, example_input=example, input=[(-1, *shape[1:])])
                openvino.save_model(model, folder / "model.xml", compress_to_fp16=False)
    except ImportError as error:
        raise EncoderError(
            f"To export to {format} needs a package that is not installed ({error}): {INSTALL}."
        ) from None
    except Exception as error:  # tracing raises whatever the network does
        why = " ".join(str(error).split())[:200]
        raise EncoderError(f"The network of {encoder.name} cannot be written as {format}: {why}.") from error


def _write_rest(encoder: TorchEncoder, folder: Path, format: Format, shrunk: list[NDArray[Any]]) -> None:
    images, loader = np.stack(shrunk), ImageLoader(encoder.preprocess)
    arrays: dict[str, NDArray[Any]] = {
        "probe_images": images,
        "probe_vectors": encoder.encode_loaded(list(loader.expand(list(images)))),
    }
    if encoder.source_mean is not None:
        arrays["source_mean"] = np.ascontiguousarray(encoder.source_mean)
    if encoder.source_statistics is not None:
        arrays |= {f"statistics.{key}": value for key, value in encoder.source_statistics.to_arrays().items()}
    learnt = encoder.similarity
    if learnt is not None:
        arrays |= {SIMILARITY + key: np.array(value, dtype=np.float32) for key, value in learnt.tensors.items()}
    save_file(arrays, folder / ARRAYS_FILE)
    names = (*MODEL_FILES[format], ARRAYS_FILE)
    document: dict[str, Any] = {
        "format_version": EXPORT_FORMAT,
        "format": format,
        "name": encoder.name,
        "dim": encoder.dim,
        "fingerprint": encoder.fingerprint,
        "same_vectors": "The vectors have a cosine of at least 0.999 with those of the encoder of this fingerprint.",
        "preprocess": encoder.preprocess.to_json(),
        "training": encoder.training,
        "similarity": None if learnt is None else {"name": learnt.name, "config": dict(learnt.config)},
        "files": {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names},
    }
    try:
        document = json.loads(json.dumps(document, allow_nan=False))  # as it will be read, so that the hash is of that
    except (TypeError, ValueError, RecursionError) as error:
        raise EncoderError(f"What describes the encoder {encoder.name} is not plain JSON ({error}).") from error
    document[DOCUMENT_HASH] = fingerprint_of(document)
    (folder / EXPORT_FILE).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
