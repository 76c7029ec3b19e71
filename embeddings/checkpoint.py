"""A checkpoint on disk: safetensors and JSON, each verified against the other, and nothing that can run code."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .encoders import CHECKPOINT_FILE
from .errors import EncoderError

# Version of the checkpoint's layout; a larger one is refused.
FORMAT_VERSION = 1

# The tensors of a checkpoint, beside encoder.json.
WEIGHTS_FILE = "weights.safetensors"

# Largest encoder.json that is read; a real one has a few kilobytes.
MAX_JSON_BYTES = 4 * 2**20


def write_checkpoint(target: Path, document: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    """Write both files beside their final names, force them to the disk and rename them; the description comes last.

    Args:
        target: The folder; made where it is missing.
        document: Plain JSON types; the format version and the hash of the weights are added.
        tensors: On the CPU, contiguous, no two sharing memory.

    Raises:
        EncoderError: The folder cannot be written, or the document is not plain JSON.
    """
    weights_new, json_new = (target / f".{name}.{os.getpid()}" for name in (WEIGHTS_FILE, CHECKPOINT_FILE))
    try:
        target.mkdir(parents=True, exist_ok=True)
        save_file(tensors, weights_new)
        whole = {"format_version": FORMAT_VERSION, **document, "weights_sha256": _sha256(weights_new)}
        json_new.write_text(json.dumps(whole, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        for new, final in ((weights_new, WEIGHTS_FILE), (json_new, CHECKPOINT_FILE)):
            _sync(new)
            new.replace(target / final)
        _sync(target)
    except (OSError, SafetensorError) as error:
        raise EncoderError(
            f"The checkpoint {target} cannot be written: {getattr(error, 'strerror', None) or error}."
        ) from error
    except (TypeError, ValueError) as error:
        raise EncoderError(f"What describes the checkpoint {target} is not plain JSON ({error}).") from error
    finally:
        for leftover in (weights_new, json_new):
            with suppress(OSError):
                leftover.unlink()


def read_document(root: Path) -> dict[str, Any]:
    """Return encoder.json, checked for size, syntax and format."""
    path = root / CHECKPOINT_FILE
    try:
        with path.open("rb") as stream:
            text = stream.read(MAX_JSON_BYTES + 1)
        document: Any = json.loads(text) if len(text) <= MAX_JSON_BYTES else None
    except OSError as error:
        raise EncoderError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, RecursionError) as error:
        raise EncoderError(f"{path} is not JSON, or was cut short.") from error
    if len(text) > MAX_JSON_BYTES:
        raise EncoderError(f"{path} is larger than {MAX_JSON_BYTES:,} bytes: it is no checkpoint description.")
    version = document.get("format_version") if isinstance(document, dict) else None
    if not isinstance(version, int) or document.get("kind") != "torch":
        raise EncoderError(f"{path} is no checkpoint description: it lacks format_version and kind.")
    if version > FORMAT_VERSION:
        raise EncoderError(f"{path} has format {version}, this radshot reads up to {FORMAT_VERSION}: upgrade radshot.")
    return dict(document)


def read_tensors(root: Path, weights_sha256: str) -> dict[str, torch.Tensor]:
    """Return the tensors of a weights file whose hash is the one encoder.json names."""
    path = root / WEIGHTS_FILE
    try:
        found = _sha256(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError as error:
        raise EncoderError(f"The checkpoint {root} has no {WEIGHTS_FILE}.") from error
    except OSError as error:
        raise EncoderError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise EncoderError(
            f"{path} is not a safetensors file, or was cut short; no other format is ever read."
        ) from error
    if found != weights_sha256:
        raise EncoderError(f"{path} is not the file that {CHECKPOINT_FILE} was saved with: one of the two was changed.")
    return tensors


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sync(path: Path) -> None:
    """Force a file's, or a folder's, content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
