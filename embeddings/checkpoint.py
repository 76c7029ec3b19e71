"""A checkpoint on disk: safetensors and JSON, each verified against the other, and nothing that can run code."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .encoders import CHECKPOINT_FILE, fingerprint_of
from .errors import EncoderError
from .similarity import SimilarityHead
from .source_statistics import ARRAYS, SourceStatistics

# Version of the checkpoint's layout; a larger one is refused. Since 3 a learnt comparison may be among the tensors,
# since 4 the statistics of the source's classes.
FORMAT_VERSION = 4

# The tensors of a checkpoint of format 1; since format 2 the name holds the first digits of their SHA-256, so that
# encoder.json, replaced in one step, says which tensors are meant.
FIRST_WEIGHTS_FILE = "weights.safetensors"
_WEIGHTS_FILE = re.compile(r"weights(-[0-9a-f]{12})?\.safetensors")

# Largest encoder.json that is read; a real one has a few kilobytes.
MAX_JSON_BYTES = 4 * 2**20

# The most a learnt comparison may hold; the largest made here, a relation module, has 14 tensors and some megabytes.
MAX_SIMILARITY_TENSORS, MAX_SIMILARITY_BYTES = 64, 64 * 2**20

# The most the source's statistics may hold; those of 256 classes and vectors of 2,048 numbers hold 4 MiB.
MAX_STATISTICS_BYTES = 64 * 2**20

# What the names of a learnt comparison's tensors, and of the source's statistics, begin with.
_SIMILARITY_PREFIX, _STATISTICS_PREFIX = "similarity.", "source_statistics."


def write_checkpoint(
    target: Path,
    document: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    *,
    similarity: SimilarityHead | None = None,
    statistics: SourceStatistics | None = None,
) -> None:
    """Write both files, force them to the disk, and make them the checkpoint in one step: renaming the description.

    The weights get a name of their own before that, and the weights of the checkpoint before go after it.

    Args:
        target: The folder; made where it is missing.
        document: Plain JSON types; the format version and the hash of the weights are added.
        tensors: On the CPU, contiguous, no two sharing memory.
        similarity: The learnt comparison; its description, its weights and a hash of both are added.
        statistics: Those of the source's classes; they are added to the tensors, whose hash covers them.

    Raises:
        EncoderError: The folder cannot be written, the document is not plain JSON, or the comparison or the statistics
            are too large.
    """
    if similarity is not None:
        described, compared = _similarity_parts(similarity)
        document, tensors = {**document, **described}, {**tensors, **compared}
    if statistics is not None:
        tensors = {**tensors, **_statistics_parts(statistics)}
    weights_new, json_new = (target / f".{name}.{os.getpid()}" for name in (FIRST_WEIGHTS_FILE, CHECKPOINT_FILE))
    leftovers = [weights_new]
    try:
        target.mkdir(parents=True, exist_ok=True)
        save_file(dict(tensors), weights_new)
        sha256 = _sha256(weights_new)
        whole = {"format_version": FORMAT_VERSION, **document, "weights_sha256": sha256}
        json_new.write_text(json.dumps(whole, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        weights_new.chmod(stat.S_IMODE(json_new.stat().st_mode))  # save_file's own lets the owner alone read it
        weights = target / weights_name(FORMAT_VERSION, sha256)
        if not weights.exists():
            leftovers.append(weights)
        _sync(weights_new)
        _sync(json_new)
        weights_new.replace(weights)
        _sync(target)
        json_new.replace(target / CHECKPOINT_FILE)
        leftovers = []
        _sync(target)
        leftovers = [path for path in target.iterdir() if _WEIGHTS_FILE.fullmatch(path.name) and path != weights]
    except (OSError, SafetensorError) as error:
        raise EncoderError(
            f"The checkpoint {target} cannot be written: {getattr(error, 'strerror', None) or error}."
        ) from error
    except (TypeError, ValueError) as error:
        raise EncoderError(f"What describes the checkpoint {target} is not plain JSON ({error}).") from error
    finally:
        for leftover in [json_new, *leftovers]:
            with suppress(OSError):
                leftover.unlink()


def weights_name(version: int, weights_sha256: str) -> str:
    """Return the name of the weights file that a checkpoint of some format means."""
    return FIRST_WEIGHTS_FILE if version < 2 else f"weights-{weights_sha256[:12]}.safetensors"


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


def read_tensors(root: Path, version: int, weights_sha256: str) -> dict[str, torch.Tensor]:
    """Return the tensors of the weights file whose hash is the one encoder.json names."""
    name = weights_name(version, weights_sha256)
    path = root / name
    if not _WEIGHTS_FILE.fullmatch(name):
        raise EncoderError(f"{root / CHECKPOINT_FILE} is no checkpoint description (weights_sha256 is no SHA-256).")
    try:
        found = _sha256(path)
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
    except FileNotFoundError as error:
        raise EncoderError(f"The checkpoint {root} has no {path.name}.") from error
    except OSError as error:
        raise EncoderError(f"{path} cannot be read: {error.strerror or error}.") from error
    except (SafetensorError, ValueError, RuntimeError) as error:
        raise EncoderError(
            f"{path} is not a safetensors file, or was cut short; no other format is ever read."
        ) from error
    if found != weights_sha256:
        raise EncoderError(f"{path} is not the file that {CHECKPOINT_FILE} was saved with: one of the two was changed.")
    return tensors


def network_tensors(network: nn.Module) -> dict[str, torch.Tensor]:
    """Return the network's weights and buffers, on the CPU, each in memory of its own."""
    return {key: value.detach().cpu().clone().contiguous() for key, value in network.state_dict().items()}


def as_array(tensor: torch.Tensor) -> NDArray[Any]:
    """Return a CPU tensor as an array; bfloat16, which NumPy lacks, as the float32 of the same value."""
    array: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
    return array


def backbone_options(root: Path, backbone: dict[str, Any]) -> dict[str, Any]:
    """Check that a checkpoint's backbone options cannot collide with build_backbone's own."""
    if "seed" in backbone or not all(isinstance(key, str) for key in backbone):
        raise EncoderError(
            f"{root / CHECKPOINT_FILE} is no checkpoint description (backbone options {sorted(backbone)})."
        )
    return backbone


def read_similarity(root: Path, document: Mapping[str, Any], tensors: dict[str, torch.Tensor]) -> SimilarityHead | None:
    """Take the learnt comparison out of a checkpoint's tensors, and verify it.

    Args:
        root: The checkpoint's folder.
        document: Its encoder.json.
        tensors: Its weights; those of the comparison are removed.

    Returns:
        The comparison, or None where the checkpoint has none.

    Raises:
        EncoderError: It is not what was saved, or larger than a checkpoint may hold.
    """
    names = [key for key in tensors if key.startswith(_SIMILARITY_PREFIX)]
    weights = {key.removeprefix(_SIMILARITY_PREFIX): tensors.pop(key) for key in names}
    described: Any = document.get("similarity")
    expected = document.get("similarity_sha256")
    if described is None and expected is None and not weights:
        return None
    excess = _excess(weights)
    if excess is not None:
        raise EncoderError(f"The comparison in {root} is none that radshot saved: {excess}.")
    try:
        whole = expected == _similarity_hash(described, weights)
        name, config = described["name"], described["config"]
        arrays = {key: value.numpy() for key, value in weights.items()}
    except (KeyError, RecursionError, RuntimeError, TypeError, ValueError):
        whole = False
    if not whole or not isinstance(name, str) or not isinstance(config, dict):
        raise EncoderError(
            f"The comparison in {root} is not the one that was saved with the encoder (its similarity_sha256 differs): "
            f"{CHECKPOINT_FILE} was changed."
        )
    return SimilarityHead(name, config, arrays)


def read_statistics(root: Path, tensors: dict[str, torch.Tensor]) -> SourceStatistics | None:
    """Take the statistics of the source's classes out of a checkpoint's tensors, and verify them.

    Args:
        root: The checkpoint's folder.
        tensors: Its weights, whose hash was compared; the statistics are removed.

    Returns:
        The statistics, or None where the checkpoint has none.

    Raises:
        EncoderError: They are no statistics, or larger than a checkpoint may hold.
    """
    names = [key for key in tensors if key.startswith(_STATISTICS_PREFIX)]
    if not names:
        return None
    arrays = {key.removeprefix(_STATISTICS_PREFIX): tensors.pop(key) for key in names}
    reason = _too_large(sum(value.nbytes for value in arrays.values()))
    kinds = {name: torch.int64 if name == "patients" else torch.float32 for name in ARRAYS}
    found = {name: value.dtype for name, value in arrays.items()}
    if reason is None and found != kinds:
        reason = f"they are {_listed(kinds)}, and it has {_listed(found)}"
    if reason is None:
        try:
            return SourceStatistics.from_arrays({name: value.numpy() for name, value in arrays.items()})
        except ValueError as error:
            reason = str(error).removesuffix(".")
    raise EncoderError(f"The source statistics in {root} are none that radshot saved: {reason}.")


def _statistics_parts(statistics: SourceStatistics) -> dict[str, torch.Tensor]:
    """Return what the source's statistics add to the tensors of a checkpoint.

    Raises:
        EncoderError: They are larger than a checkpoint may hold.
    """
    arrays = statistics.to_arrays()
    excess = _too_large(sum(value.nbytes for value in arrays.values()))
    if excess is not None:
        raise EncoderError(f"The source statistics cannot be saved: {excess}.")
    return {_STATISTICS_PREFIX + name: torch.from_numpy(np.array(value)) for name, value in arrays.items()}


def _too_large(size: int) -> str | None:
    """Say by how much the source's statistics are out of bounds."""
    allowed = MAX_STATISTICS_BYTES
    return f"at most {allowed:,} bytes are allowed, and they have {size:,}" if size > allowed else None


def _listed(kinds: Mapping[str, torch.dtype]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in sorted(kinds.items()))


def _similarity_parts(head: SimilarityHead) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return what a learnt comparison adds to encoder.json, its hash included, and to the tensors of a checkpoint.

    Raises:
        EncoderError: It is larger than a checkpoint may hold, or its options are not plain JSON.
    """
    weights = {key: torch.from_numpy(np.array(value, dtype=np.float32)) for key, value in head.tensors.items()}
    excess = _excess(weights)
    if excess is not None:
        raise EncoderError(f"The comparison {head.name!r} cannot be saved: {excess}.")
    try:  # as it will be read, so that the hash is of that
        described = json.loads(json.dumps({"name": head.name, "config": dict(head.config)}, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise EncoderError(f"What describes the comparison {head.name!r} is not plain JSON ({error}).") from error
    tensors = {_SIMILARITY_PREFIX + key: value for key, value in weights.items()}
    return {"similarity": described, "similarity_sha256": _similarity_hash(described, weights)}, tensors


def _excess(weights: Mapping[str, torch.Tensor]) -> str | None:
    """Say what of a comparison's weights is out of bounds."""
    size = sum(value.nbytes for value in weights.values())
    if len(weights) > MAX_SIMILARITY_TENSORS or size > MAX_SIMILARITY_BYTES:
        return (
            f"at most {MAX_SIMILARITY_TENSORS} tensors and {MAX_SIMILARITY_BYTES:,} bytes are allowed, and it has "
            f"{len(weights):,} and {size:,}"
        )
    strange = next((key for key, value in weights.items() if value.dtype != torch.float32), None)
    return None if strange is None else f"its weights are float32, and {strange!r} is {weights[strange].dtype}"


def _similarity_hash(described: Any, weights: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of a comparison's name, options and weights."""
    return fingerprint_of(described, {key: value.numpy() for key, value in weights.items()})


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
