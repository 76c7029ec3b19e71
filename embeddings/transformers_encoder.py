"""TransformersEncoder: any vision model of the transformers library, by hub id or folder, with its image processor."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from .encoders import BaseEncoder
from .errors import EncoderError
from .images import ImageSource, read_reduced
from .quiet import quiet
from .torch_encoder import choose_device, device_of, weights_fingerprint

# Fields of the two configuration files that say where a model came from, not what it computes.
_NOT_IN_FINGERPRINT = {
    "_name_or_path", "_commit_hash", "architectures", "auto_map", "dtype", "feature_extractor_type",
    "image_processor_type", "processor_class", "torch_dtype", "transformers_version",
}  # fmt: skip


@dataclass(frozen=True)
class ProcessorLoader:
    """Reads one image and hands it to a transformers image processor as 8-bit grey repeated in three channels."""

    processor: Any
    window: tuple[float, float] | None = None

    def seen_through(self, window: tuple[float, float]) -> ProcessorLoader:
        """Return a loader that shows computed tomography through a window in Hounsfield units."""
        return ProcessorLoader(self.processor, window)

    def __call__(self, source: ImageSource) -> NDArray[np.float32]:
        """Return (C, H, W); raises ImageError."""
        values, _ = read_reduced(source, None, hounsfield=self.window)
        grey = Image.fromarray(np.rint(values * 255.0).astype(np.uint8))
        pixels = self.processor(images=grey.convert("RGB"), return_tensors="np")["pixel_values"]
        return np.asarray(pixels[0], dtype=np.float32)


class TransformersEncoder(BaseEncoder):
    """A transformers vision model as an encoder.

    `pooling` says how the model's output becomes one vector and is part of the fingerprint:

    - "image_features": the projected image vector of a model of images and texts (CLIP, SigLIP);
    - "pooler": the model's own pooled output, where the checkpoint has the weights for it;
    - "mean": the mean over the patch tokens (class and register tokens left out) or over the feature map.

    Args:
        source: A hub id ("google/vit-base-patch16-224") or a folder with config.json, model.safetensors and
            preprocessor_config.json. A hub id is downloaded when it is not in the local cache.
        device: "auto" takes CUDA where there is one, else the CPU.

    Raises:
        EncoderError: Nothing of that name, no safetensors weights, no image processor, or no vision model.
    """

    def __init__(self, source: str | os.PathLike[str], *, device: str = "auto") -> None:
        """Load model and processor; pickled weights and code from the hub are refused."""
        place = os.fspath(source)
        if not place:
            raise EncoderError('"hf:" needs a hub id or a folder, as in "hf:google/vit-base-patch16-224".')
        chosen = choose_device(device)
        network, absent, config = _load_model(place)
        processor, processing = _load_processor(place)
        self.network = network.eval().requires_grad_(False).to(chosen)
        self.device = device_of(self.network)
        self.loader = ProcessorLoader(processor)
        self.name = f"hf:{place}"
        self.spec = self.name
        blank = self.loader(np.tile(np.linspace(0.0, 1.0, 64, dtype=np.float32), (64, 1)))
        try:
            pixels = torch.from_numpy(blank[None]).to(self.device)
            self.pooling = _choose_pooling(self.network, pixels, absent, place)
            self.dim = int(self._forward(blank[None]).shape[1])
        except EncoderError:
            raise
        except Exception as error:  # each architecture complains in its own way
            raise EncoderError(f"The model {place!r} is no vision model: {_first_line(error)}") from error
        self.fingerprint = weights_fingerprint(
            {"kind": "transformers", "pooling": self.pooling, "config": config, "processor": processing},
            self.network,
            leave_out=absent,  # random where the checkpoint has none, and no vector depends on them
        )

    def encode_loaded(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Send n processed images (C, H, W) through the model at once; returns float32 rows (n, dim)."""
        if len(batch) == 0:
            return np.empty((0, self.dim), dtype=np.float32)
        shapes = {image.shape for image in batch}
        if len(shapes) == 1:
            return self._forward(np.stack(list(batch)))
        # a processor that keeps the aspect ratio makes images of several shapes: one at a time
        return np.concatenate([self._forward(np.asarray(image)[None]) for image in batch])

    def _forward(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        pixels = torch.from_numpy(np.ascontiguousarray(images)).to(self.device)
        rows: NDArray[np.float32] = self.run(self.network, pixels).float().cpu().numpy()
        return rows

    def run(self, network: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
        """Send processed images (n, C, H, W) through the model, or a copy of it in another precision: (n, d)."""
        model: Any = network
        with torch.inference_mode():
            if self.pooling == "image_features":
                output = model.get_image_features(pixel_values=pixels)
                vectors: torch.Tensor = output if isinstance(output, torch.Tensor) else output.pooler_output
            elif self.pooling == "pooler":
                vectors = model(pixel_values=pixels).pooler_output.flatten(1)
            else:
                tokens = model(pixel_values=pixels).last_hidden_state
                vectors = _mean_of_patches(tokens, pixels.shape[-2:], getattr(model.config, "patch_size", None))
        return vectors


def _mean_of_patches(tokens: torch.Tensor, size: Sequence[int], patch: Any) -> torch.Tensor:
    """Average a feature map (n, c, h, w), or the tokens (n, t, c) that stand for patches: the last ones."""
    if tokens.ndim == 4:
        return tokens.mean(dim=(2, 3))
    sides = (patch, patch) if isinstance(patch, int) else patch
    if isinstance(sides, list | tuple) and len(sides) == 2:
        patches = (size[0] // sides[0]) * (size[1] // sides[1])
        if 0 < patches < tokens.shape[1]:
            tokens = tokens[:, tokens.shape[1] - patches :]
    return tokens.mean(dim=1)


def _choose_pooling(network: nn.Module, blank: torch.Tensor, absent: set[str], place: str) -> str:
    """Take the model's own pooling unless its weights are missing; any other missing weight is an error."""
    pooler = {key for key in absent if "pooler" in key.split(".")}
    if rest := sorted(absent - pooler):
        raise EncoderError(f"The checkpoint {place!r} lacks {len(rest)} weights of its model, {rest[0]!r} first.")
    if hasattr(network, "get_image_features"):
        return "image_features"
    with torch.inference_mode():
        pooled = getattr(network(pixel_values=blank), "pooler_output", None)
    return "mean" if pooler or pooled is None else "pooler"


def _load_model(place: str) -> tuple[nn.Module, set[str], dict[str, Any]]:
    """Return the model, the names of weights its checkpoint lacks, and its configuration without provenance."""
    local = Path(place).is_dir()
    try:
        with quiet(), _silent_transformers():
            from transformers import AutoModel, PretrainedConfig

            config, _ = PretrainedConfig.get_config_dict(place, local_files_only=local)
            network, info = AutoModel.from_pretrained(
                place,
                local_files_only=local,
                use_safetensors=True,
                trust_remote_code=False,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except ImportError as error:
        raise EncoderError(f"The model {place!r} needs a package that is missing: {_first_line(error)}") from error
    except Exception as error:  # hub, file system, safetensors and configuration errors have no common base
        raise EncoderError(_why_not(place, error)) from error
    return network, set(info["missing_keys"]), _meaning(config)


def _load_processor(place: str) -> tuple[Any, dict[str, Any]]:
    """Return the image processor that runs on Pillow, and its settings without provenance."""
    try:
        with quiet(), _silent_transformers():
            from transformers import AutoImageProcessor

            load: Any = AutoImageProcessor.from_pretrained
            processor = load(place, local_files_only=Path(place).is_dir(), backend="pil", trust_remote_code=False)
            settings, _ = processor.get_image_processor_dict(place)
    except Exception as error:
        raise EncoderError(
            f"The model {place!r} has no image processor that can be loaded (preprocessor_config.json): "
            f"{_first_line(error)}"
        ) from error
    return processor, _meaning(settings)


def _meaning(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in _NOT_IN_FINGERPRINT}


def _why_not(place: str, error: Exception) -> str:
    """Say in one sentence why a model was not loaded."""
    folder = Path(place)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            return f"The folder {place!r} holds no transformers model: it has no config.json."
        if not any(folder.glob("*.safetensors")):
            return f"The folder {place!r} has no safetensors weights; pickled weights are never loaded."
        return f"The model in {place!r} cannot be loaded: {_first_line(error)}"
    if "safetensors" in str(error):
        return f"The model {place!r} has no safetensors weights; pickled weights are never loaded."
    return (
        f"There is no folder {place!r}, and no model of that id in the local cache or on the hub: {_first_line(error)}"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


@contextmanager
def _silent_transformers() -> Iterator[None]:
    """Keep progress bars and log lines of transformers inside, and leave its settings as they were."""
    from transformers.utils import logging as settings

    log: Any = settings
    bars, verbosity = log.is_progress_bar_enabled(), log.get_verbosity()
    log.disable_progress_bar()
    log.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bars:
            log.enable_progress_bar()
