"""VolumeEncoder: a 3D network as an encoder of whole volumes; "3d:resnet18" and other networks of MONAI."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from .encoders import BaseEncoder
from .errors import EncoderError, ImageError, UnknownEncoder
from .images import ImageSource
from .torch_encoder import choose_device, device_of, weights_fingerprint

NETWORKS = ("resnet10", "resnet18", "resnet34", "resnet50", "densenet121")
"""Networks of MONAI that are built in three dimensions by name, with fresh weights."""

SIZE = (64, 96, 96)
"""Voxels (z, y, x) a volume is resampled to by default."""


@dataclass(frozen=True)
class VolumeLoader:
    """Reads one volume; small and torch-free, so that a decoding process can be sent its fields.

    Attributes:
        size: Voxels (z, y, x).
        window: (centre, width) in modality units, or None for the volume's own.
    """

    size: tuple[int, int, int] = SIZE
    window: tuple[float, float] | None = None

    def seen_through(self, window: tuple[float, float]) -> VolumeLoader:
        """Return a loader that shows volumes through a window in Hounsfield units."""
        return VolumeLoader(self.size, window)

    def expand(self, batch: Sequence[NDArray[Any]]) -> NDArray[np.float32]:
        """Turn volumes (z, y, x) of uint8 into what the network sees, (n, 1, z, y, x) in [0, 1]."""
        return np.stack(list(batch))[:, None].astype(np.float32) / np.float32(255.0)

    def __call__(self, source: ImageSource) -> NDArray[np.float32]:
        """Return (1, z, y, x) of a NIfTI file or a folder of one series; raises ImageError."""
        from .volume_pictures import load_cube
        from .volume_sources import find_volumes

        if not isinstance(source, str | os.PathLike):
            raise ImageError("array", "a volume is given as a NIfTI file or a folder of one series")
        volumes, refused = find_volumes(Path(source))
        if len(volumes) != 1:
            why = refused[0][1] if refused and not volumes else "give a NIfTI file or a folder of one series"
            raise ImageError(os.fspath(source), f"holds {len(volumes)} volumes: {why}")
        voxels = load_cube(volumes[0].series or volumes[0].file or Path(source), self.size, self.window)
        image: NDArray[np.float32] = self.expand([voxels])[0]
        return image


class VolumeEncoder(BaseEncoder):
    """A torch network from (n, 1, z, y, x) in [0, 1] to (n, d).

    Args:
        network: Its output is (n, d). It is moved to `device` and must not be trained further under this encoder.
        name: For people.
        size: Voxels (z, y, x) a volume is resampled to.
        device: "auto" takes CUDA where there is one, else the CPU.

    Raises:
        EncoderError: The network does not make one vector per volume.
    """

    takes_volumes = True

    def __init__(
        self, network: nn.Module, *, name: str, size: tuple[int, int, int] = SIZE, device: str = "auto"
    ) -> None:
        """Move the network to its device and take its fingerprint."""
        self.network = network.eval().to(choose_device(device))
        self.device = device_of(self.network)
        self.loader = VolumeLoader(size)
        self.name = name
        blank = self._forward(np.zeros((1, 1, *size), dtype=np.float32))
        self.dim = int(blank.shape[1])
        kind = f"{type(network).__module__}.{type(network).__qualname__}"
        self.fingerprint = weights_fingerprint({"kind": "volume", "network": kind, "size": list(size)}, self.network)

    def encode_loaded(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Send n volumes (1, z, y, x) through the network one by one; returns float32 rows (n, dim)."""
        if len(batch) == 0:
            return np.empty((0, self.dim), dtype=np.float32)
        return np.concatenate([self._forward(np.asarray(one, dtype=np.float32)[None]) for one in batch])

    def _forward(self, volumes: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            vectors = self.network(torch.from_numpy(volumes).to(self.device))
        if not isinstance(vectors, torch.Tensor) or vectors.ndim != 2 or len(vectors) != len(volumes):
            shape = tuple(vectors.shape) if isinstance(vectors, torch.Tensor) else type(vectors).__name__
            raise EncoderError(f"A volume encoder's network must map (n, 1, z, y, x) to (n, d); it made {shape}.")
        rows: NDArray[np.float32] = vectors.float().cpu().numpy()
        return rows


def volume_encoder(text: str, *, device: str = "auto") -> VolumeEncoder:
    """Make "3d:<network>[@seed]" with fresh weights; a network with weights of its own is given to `VolumeEncoder`."""
    name, _, digits = text.partition("@")
    if name not in NETWORKS:
        raise UnknownEncoder(f"A 3D network is one of {', '.join(NETWORKS)}; got {name!r}.")
    if digits and not re.fullmatch(r"\d{1,9}", digits):
        raise EncoderError(f"The seed in '3d:{text}' must be a whole number of at most 9 digits; got {digits!r}.")
    seed = int(digits or 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _build(name)
    return VolumeEncoder(network, name=f"3d:{name}@{seed}", device=device)


def _build(name: str) -> nn.Module:
    import monai.networks.nets

    nets: Any = monai.networks.nets
    network: nn.Module
    if name == "densenet121":
        network = nets.DenseNet121(spatial_dims=3, in_channels=1, out_channels=1)
        network.class_layers = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(1))
        return network
    network = getattr(nets, name)(spatial_dims=3, n_input_channels=1, num_classes=1, feed_forward=False)
    return network
