"""TorchEncoder: a torch network with its preprocessing, saved as safetensors + JSON and never as a pickle."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .backbones import build_backbone
from .checkpoint import (
    as_array,
    backbone_options,
    network_tensors,
    read_document,
    read_similarity,
    read_statistics,
    read_tensors,
    write_checkpoint,
)
from .encoders import CHECKPOINT_FILE, BaseEncoder, ImageLoader, check_statistics, fingerprint_of
from .errors import EncoderError
from .preprocess import Preprocess
from .similarity import SimilarityHead
from .source_statistics import SourceStatistics

# Names inside the weights file: the network's tensors, the source domain's mean vector.
_NETWORK_PREFIX, _SOURCE_MEAN = "network.", "source_mean"


class TorchEncoder(BaseEncoder):
    """A torch network from (n, C, H, W) to (n, d), with the preprocessing it was trained with.

    Vectors are computed in evaluation mode, in float32, without gradients. Torch may choose other kernels for other
    batch sizes, so the same image in another batch can differ by float rounding (about 1e-6 relative), no more.

    Args:
        network: Its output is (n, d); `network.dim` is d where it exists, else one blank image is sent through.
            It is moved to `device` and must not be trained further under this encoder: the fingerprint is taken now.
        preprocess: From an image to what the network sees.
        name: For people.
        backbone_config: Name and options that `build_backbone` needs to build the network again; None takes them
            from the network where it has them. Without them the encoder works but cannot be saved.
        source_mean: Mean vector of the source domain, shape (d,), or None.
        source_statistics: Mean and spread of the source domain's classes, or None. Like the mean it changes no vector,
            so it is no part of the fingerprint.
        similarity: The learnt comparison that was trained with the network, or None. It does not change a vector, so it
            is no part of the fingerprint; a checkpoint has a hash of its own for its name, options and weights.
        device: "auto" takes CUDA where there is one, else the CPU.
        training: A JSON document on how the weights came about (seed, data, settings), kept with them.

    Raises:
        EncoderError: The network does not make one vector per image, or there is no such device.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocess: Preprocess,
        *,
        name: str,
        backbone_config: Mapping[str, Any] | None = None,
        source_mean: NDArray[np.float32] | None = None,
        source_statistics: SourceStatistics | None = None,
        similarity: SimilarityHead | None = None,
        device: str = "auto",
        training: Mapping[str, Any] | None = None,
    ) -> None:
        """Move the network to its device and take its fingerprint."""
        self.network = network.to(choose_device(device))
        self.device = device_of(network)
        self.preprocess = preprocess
        self.loader = ImageLoader(preprocess)
        self.name = name
        config = backbone_config if backbone_config is not None else getattr(network, "backbone_config", None)
        self.backbone_config: dict[str, Any] | None = dict(config) if isinstance(config, Mapping) else None
        self.training: dict[str, Any] = dict(training or {})
        blank = self._forward(np.zeros((1, preprocess.channels, *preprocess.size), dtype=np.float32))
        self.dim = int(blank.shape[1])
        declared = getattr(network, "dim", self.dim)
        if declared != self.dim:
            raise EncoderError(f"The network says dim = {declared} and makes vectors of {self.dim} dimensions.")
        self.source_mean = _check_mean(source_mean, self.dim)
        self.source_statistics = check_statistics(source_statistics, self.dim)
        self.similarity = similarity
        self.fingerprint = self._take_fingerprint()

    def encode_loaded(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Send n loaded images (C, H, W) through the network at once.

        Args:
            batch: Arrays of one shape, float32, as `load` makes them.

        Returns:
            float32 rows (n, dim).
        """
        if len(batch) == 0:
            return np.empty((0, self.dim), dtype=np.float32)
        return self._forward(np.stack([np.asarray(image, dtype=np.float32) for image in batch]))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the weights and `encoder.json`; a kill at any moment leaves the checkpoint before or this one.

        From here on the folder is the encoder's `spec`.

        Args:
            folder: Made where it is missing. A checkpoint already there is replaced, other files stay.

        Returns:
            The folder.

        Raises:
            EncoderError: The network is not of the registry, so nobody could build it again; its weights changed since
                the encoder was made; the learnt comparison or the source statistics are too large; or the folder
                cannot be written.
        """
        if self.backbone_config is None:
            raise EncoderError(
                f"The encoder {self.name!r} cannot be saved: its network ({type(self.network).__name__}) was not made "
                "by build_backbone, so a checkpoint could not build it again."
            )
        if self._take_fingerprint() != self.fingerprint:
            raise EncoderError(
                f"The weights of {self.name!r} changed since the encoder was made: make a new TorchEncoder."
            )
        target = Path(folder)
        tensors = {_NETWORK_PREFIX + key: value for key, value in network_tensors(self.network).items()}
        if self.source_mean is not None:
            tensors[_SOURCE_MEAN] = torch.from_numpy(np.array(self.source_mean))
        document = {
            "kind": "torch",
            "name": self.name,
            "dim": self.dim,
            "backbone": self.backbone_config,
            "preprocess": self.preprocess.to_json(),
            "fingerprint": self.fingerprint,
            "training": self.training,
        }
        write_checkpoint(target, document, tensors, similarity=self.similarity, statistics=self.source_statistics)
        self.spec = str(target.absolute())
        return target

    def _forward(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """Send (n, C, H, W) through the network in evaluation mode and leave its mode as it was."""
        was_training = self.network.training
        self.network.eval()
        try:
            vectors = self.run(self.network, torch.from_numpy(images).to(self.device))
        finally:
            self.network.train(was_training)
        if not isinstance(vectors, torch.Tensor) or vectors.ndim != 2 or len(vectors) != len(images):
            shape = tuple(vectors.shape) if isinstance(vectors, torch.Tensor) else type(vectors).__name__
            raise EncoderError(
                f"An encoder's network must map (n, C, H, W) to (n, d); for n = {len(images)} it made {shape}."
            )
        rows: NDArray[np.float32] = vectors.float().cpu().numpy()
        return rows

    def run(self, network: nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Send images (n, C, H, W) through the network, or a copy of it in another precision: (n, d)."""
        with torch.inference_mode():
            vectors: torch.Tensor = network(images)
        return vectors

    def _take_fingerprint(self) -> str:
        network = self.backbone_config or {
            "module": f"{type(self.network).__module__}.{type(self.network).__qualname__}"
        }
        config = {"kind": "torch", "network": network, "preprocess": self.preprocess.to_json()}
        return weights_fingerprint(config, self.network)


def load_checkpoint(folder: str | os.PathLike[str], *, device: str = "auto") -> TorchEncoder:
    """Load what `TorchEncoder.save` wrote, and verify it.

    Only safetensors and JSON are read; nothing in the folder can run code.

    Args:
        folder: Holds encoder.json and the weights it names.
        device: "auto" takes CUDA where there is one, else the CPU.

    Returns:
        The encoder, with the fingerprint it was saved under.

    Raises:
        EncoderError: A file is missing, truncated, of another format or not the one that was saved.
    """
    root = Path(folder)
    document = read_document(root)
    try:
        backbone = dict(document["backbone"])
        preprocess = Preprocess.from_json(document["preprocess"])
        name, fingerprint = str(document["name"]), str(document["fingerprint"])
        weights_sha256, training = str(document["weights_sha256"]), dict(document.get("training") or {})
    except (KeyError, TypeError, ValueError) as error:
        raise EncoderError(f"{root / CHECKPOINT_FILE} is no checkpoint description ({error}).") from error
    tensors = read_tensors(root, document["format_version"], weights_sha256)
    mean = tensors.pop(_SOURCE_MEAN, None)
    statistics = read_statistics(root, tensors)
    similarity = read_similarity(root, document, tensors)
    if str(backbone.get("name", "")).startswith("hf:"):
        raise EncoderError(
            f"{root / CHECKPOINT_FILE} names weights from elsewhere ({backbone['name']!r}); a checkpoint holds its own."
        )
    network = build_backbone(str(backbone.pop("name", "")), **backbone_options(root, backbone), seed=0)
    try:
        network.load_state_dict({key.removeprefix(_NETWORK_PREFIX): value for key, value in tensors.items()})
    except RuntimeError as error:
        raise EncoderError(f"The weights in {root} do not fit the backbone that {CHECKPOINT_FILE} names.") from error
    source_mean = None if mean is None else mean.float().numpy()
    encoder = TorchEncoder(
        network,
        preprocess,
        name=name,
        backbone_config=document["backbone"],  # the fingerprint is of what was written, however it is written now
        source_mean=source_mean,
        source_statistics=statistics,
        similarity=similarity,
        device=device,
        training=training,
    )
    if encoder.fingerprint != fingerprint:
        raise EncoderError(
            f"The checkpoint {root} has fingerprint {encoder.fingerprint[:12]}, its {CHECKPOINT_FILE} says "
            f"{fingerprint[:12]}: one of its files was changed."
        )
    encoder.spec = str(root.absolute())  # an archive remembers it, and may be opened from another working folder
    return encoder


def wrap_module(network: nn.Module, *, device: str = "auto") -> TorchEncoder:
    """Make an encoder of a user's module with a default `Preprocess`: 96 x 96, as many channels as it first takes."""
    first = next((layer for layer in network.modules() if isinstance(layer, nn.Conv2d)), None)
    channels = first.in_channels if first is not None else 1
    if channels not in (1, 3):
        raise EncoderError(f"The module's first convolution takes {channels} channels; an image here has 1 or 3.")
    preprocess = Preprocess(channels=3 if channels == 3 else 1)
    try:
        return TorchEncoder(network, preprocess, name=type(network).__name__, device=device)
    except RuntimeError as error:
        raise EncoderError(
            f"{type(network).__name__} does not take images of {preprocess.channels} x 96 x 96 "
            f"({str(error).splitlines()[0]}): make a TorchEncoder(module, Preprocess(...), name=...)."
        ) from error


def untrained_encoder(text: str, *, device: str = "auto") -> TorchEncoder:
    """Make "<backbone>[@seed]" with fresh weights: what the architecture alone is worth, a floor for trained encoders.

    A second run with the same seed gives the same fingerprint. Seed 0 where none is named.
    """
    name, at, digits = text.partition("@")
    if at and not re.fullmatch(r"\d{1,9}", digits):
        raise EncoderError(
            f"The seed in 'untrained:{text}' must be a whole number of at most 9 digits; got {digits!r}."
        )
    seed = int(digits or 0)
    return TorchEncoder(
        build_backbone(name, seed=seed),
        Preprocess(),
        name=f"untrained:{name}@{seed}",
        device=device,
        training={"untrained": True, "seed": seed},
    )


def choose_device(device: str) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:1" into a device that exists.

    Raises:
        EncoderError: There is no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise EncoderError(f'device must be "auto", "cpu", "cuda" or "cuda:<number>"; got {device!r}.') from error
    if chosen.type == "cuda" and (chosen.index or 0) >= torch.cuda.device_count():
        raise EncoderError(f"There is no device {device!r} here: torch sees {torch.cuda.device_count()} CUDA devices.")
    return chosen


def device_of(network: nn.Module) -> torch.device:
    """Return where a network's weights live; the CPU for one without weights."""
    first = next(network.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def weights_fingerprint(config: Mapping[str, Any], network: nn.Module, *, leave_out: Collection[str] = ()) -> str:
    """Return `fingerprint_of` a configuration and a network's weights and buffers, but for those of `leave_out`."""
    tensors = {key: as_array(value) for key, value in network_tensors(network).items() if key not in leave_out}
    return fingerprint_of(config, tensors)


def _check_mean(mean: NDArray[np.float32] | None, dim: int) -> NDArray[np.float32] | None:
    if mean is None:
        return None
    vector = np.array(mean, dtype=np.float32)
    if vector.shape != (dim,) or not np.isfinite(vector).all():
        raise EncoderError(f"source_mean must be {dim} finite numbers; got shape {vector.shape}.")
    return vector
