"""Preprocess: how a grey image becomes what a network sees; frozen, so that it travels with the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Fit = Literal["pad", "crop", "stretch"]
Contrast = Literal["none", "minmax", "percentile"]
Decoding = Literal["fast", "full"]

# Percentiles mapped to 0 and 1 by contrast="percentile": a burnt-in marker or a metal clip no longer sets the scale.
CONTRAST_PERCENTILES = (1.0, 99.0)

# No network here sees images larger than this; it bounds what a crafted checkpoint can make a process allocate.
MAX_SIDE = 4096


@dataclass(frozen=True)
class Preprocess:
    """Resize, fit and normalise grey images; the same for training and for every later answer.

    Args:
        size: Height and width of the result, in pixels.
        fit: "pad" keeps the aspect ratio and fills up with black, "crop" keeps it and cuts the longer side centrally,
            "stretch" gives it up.
        channels: 1, or 3 for networks that expect colour (the grey level is repeated).
        mean: Grey level(s) in [0, 1] that become 0; one, or one per channel.
        std: Grey level difference(s) that become 1; one, or one per channel.
        contrast: "none" trusts the file's own display window, "minmax" stretches each image to [0, 1],
            "percentile" stretches its 1st to 99th percentile.
        decoding: "fast" decodes an image at no more resolution than `size` needs, where its format can, and keeps 256
            grey levels of the resized image, as training does; "full" decodes every pixel and keeps float32.
        window: (centre, width) in Hounsfield units that computed tomography is seen through instead of the window its
            files ask for, or None. Other modalities have no such scale and are seen as before.

    Raises:
        ValueError: A field is outside what is allowed.

    Example:
        >>> import numpy as np
        >>> Preprocess(size=(32, 32))(np.zeros((64, 48), np.float32)).shape
        (1, 32, 32)
    """

    size: tuple[int, int] = (96, 96)
    fit: Fit = "pad"
    channels: Literal[1, 3] = 1
    mean: tuple[float, ...] = (0.5,)
    std: tuple[float, ...] = (0.25,)
    contrast: Contrast = "none"
    decoding: Decoding = "fast"
    window: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        """Check every field and turn lists (from JSON) into tuples."""
        size = tuple(int(side) for side in _sequence("size", self.size))
        if len(size) != 2 or not all(1 <= side <= MAX_SIDE for side in size):
            raise ValueError(f"size must be (height, width), each from 1 to {MAX_SIDE} pixels; got {self.size!r}.")
        if self.fit not in get_args(Fit):
            raise ValueError(f"fit must be one of {', '.join(get_args(Fit))}; got {self.fit!r}.")
        if self.contrast not in get_args(Contrast):
            raise ValueError(f"contrast must be one of {', '.join(get_args(Contrast))}; got {self.contrast!r}.")
        if self.decoding not in get_args(Decoding):
            raise ValueError(f"decoding must be one of {', '.join(get_args(Decoding))}; got {self.decoding!r}.")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3; got {self.channels!r}.")
        mean = tuple(float(value) for value in _sequence("mean", self.mean))
        std = tuple(float(value) for value in _sequence("std", self.std))
        for name, values in (("mean", mean), ("std", std)):
            if len(values) not in (1, self.channels) or not np.all(np.isfinite(values)):
                raise ValueError(
                    f"{name} must be one finite number or one per channel ({self.channels}); got {values}."
                )
        if min(std) <= 0:
            raise ValueError(f"std must be above 0; got {std}.")
        if self.window is not None:
            window = tuple(float(value) for value in _sequence("window", self.window))
            if len(window) != 2 or not np.all(np.isfinite(window)) or window[1] <= 0:
                raise ValueError(f"window must be (centre, width) with a width above 0; got {self.window!r}.")
            object.__setattr__(self, "window", window)
        object.__setattr__(self, "size", size)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)

    def resize(self, image: NDArray[np.floating[Any]], shape: tuple[int, int] | None = None) -> NDArray[np.float32]:
        """Bring one grey image to `size`: contrast first, then antialiased resampling, then the fit.

        Args:
            image: Grey levels in [0, 1], shape (h, w).
            shape: Rows and columns of the whole image where `image` was decoded at less, whose rounding would else
                change the aspect ratio.

        Returns:
            Grey levels in [0, 1], shape `size`.
        """
        grey = np.asarray(image, dtype=np.float32)
        if grey.ndim != 2 or 0 in grey.shape:
            raise ValueError(f"An image must have shape (h, w); got {grey.shape}.")
        grey = self._stretch_contrast(grey)
        height, width = self.size
        if self.fit == "stretch":
            return _resample(grey, height, width)
        sides = grey.shape if shape is None else shape
        scales = height / sides[0], width / sides[1]
        scale = min(scales) if self.fit == "pad" else max(scales)
        inner = [max(1, round(side * scale)) for side in sides]
        if self.fit == "crop":  # rounding must not leave the result a pixel short
            inner = [max(inner[0], height), max(inner[1], width)]
            resized = _resample(grey, *inner)
            top, left = (inner[0] - height) // 2, (inner[1] - width) // 2
            return resized[top : top + height, left : left + width].copy()
        inner = [min(inner[0], height), min(inner[1], width)]
        top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
        canvas = np.zeros(self.size, dtype=np.float32)
        canvas[top : top + inner[0], left : left + inner[1]] = _resample(grey, *inner)
        return canvas

    def compact(self, image: NDArray[np.floating[Any]], shape: tuple[int, int] | None = None) -> NDArray[Any]:
        """Bring one grey image (h, w) in [0, 1] to `size`, as it is kept until it is normalised.

        Args:
            image: As for `resize`.
            shape: As for `resize`.

        Returns:
            Shape `size`: uint8 in 0..255 for "fast" decoding, float32 in [0, 1] for "full".
        """
        resized = self.resize(image, shape)
        if self.decoding == "full":
            return resized
        resized *= np.float32(255.0)
        return np.rint(resized, out=resized).astype(np.uint8)

    def normalise(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        """Turn resized grey images into what the network sees.

        Args:
            batch: Shape (n, H, W): grey levels as float in [0, 1], or as uint8 in 0..255.

        Returns:
            (grey level - mean) / std per channel, shape (n, C, H, W).
        """
        images = np.asarray(batch)
        if images.ndim != 3:
            raise ValueError(f"A batch must have shape (n, H, W); got {images.shape}.")
        scale = np.float32(255.0) if images.dtype == np.uint8 else np.float32(1.0)
        grey = images.astype(np.float32)[:, None] / scale  # (n, 1, H, W)
        mean = np.asarray(self.mean, dtype=np.float32).reshape(1, -1, 1, 1)
        std = np.asarray(self.std, dtype=np.float32).reshape(1, -1, 1, 1)
        channels = (grey - mean) / std  # (n, 1 or C, H, W)
        return np.repeat(channels, self.channels, axis=1) if channels.shape[1] < self.channels else channels

    def __call__(self, image: NDArray[np.floating[Any]]) -> NDArray[np.float32]:
        """Resize and normalise one grey image (h, w) in [0, 1] to (C, H, W)."""
        image_of_channels: NDArray[np.float32] = self.normalise(self.compact(image)[None])[0]
        return image_of_channels

    def to_json(self) -> dict[str, Any]:
        """Return a document of plain JSON types that `from_json` turns back.

        "full" decoding, which was the only kind before there was a choice, is told by the key's absence, so that the
        fingerprints of encoders from then stay.
        """
        document = asdict(self)
        if self.decoding == "full":
            del document["decoding"]
        if self.window is None:
            del document["window"]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in document.items()}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Preprocess:
        """Rebuild from `to_json`'s document; unknown or ill-typed fields raise a ValueError."""
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(document) - known)
        if unknown:
            raise ValueError(f"Unknown preprocessing fields {unknown}; known are {sorted(known)}.")
        return cls(**{"decoding": "full", **document})

    def _stretch_contrast(self, grey: NDArray[np.float32]) -> NDArray[np.float32]:
        if self.contrast == "none":
            return grey
        low, high = (grey.min(), grey.max())
        if self.contrast == "percentile":
            low, high = np.percentile(grey, CONTRAST_PERCENTILES).astype(np.float32)
            if high <= low:  # almost everything is one level: fall back to the whole range
                low, high = (grey.min(), grey.max())
        if high <= low:
            return grey
        stretched: NDArray[np.float32] = np.clip((grey - low) / (high - low), 0.0, 1.0, dtype=np.float32)
        return stretched


def _resample(grey: NDArray[np.float32], height: int, width: int) -> NDArray[np.float32]:
    """Resample with Pillow's bilinear filter, whose support grows with the reduction: antialiased, no overshoot."""
    if grey.shape == (height, width):
        return grey.copy()
    resized = Image.fromarray(np.ascontiguousarray(grey)).resize((width, height), Image.Resampling.BILINEAR)
    return np.clip(np.asarray(resized, dtype=np.float32), 0.0, 1.0)


def _sequence(name: str, value: object) -> list[Any] | tuple[Any, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, int | float) for item in value):
        raise ValueError(f"{name} must be a tuple of numbers; got {value!r}.")
    return value
