"""Heat maps as pictures: colour over the grey image, stronger where the map is, with a scale and a sentence below."""

from __future__ import annotations

import os
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from .heatmaps import HeatMap

#: Colours from weak to strong, sRGB in 0..255; between them the map moves in equal steps of perceived difference
#: (CIELAB), and its lightness only rises, so that strength is read alike by people who see few colours.
ANCHORS = ((72, 0, 110), (176, 32, 120), (240, 96, 48), (255, 225, 80))
#: How much of the grey image the strongest colour covers; below, in proportion to the map.
OPACITY = 0.65
#: Burnt into every picture.
WARNING = "Research use, not a medical device"
#: The least a picture's shorter side is enlarged to (by a whole factor), so that the text below can be read.
READABLE_SIDE = 384
#: Height of a text line and of the scale, and the margin around them, in pixels of a picture of `READABLE_SIDE`.
LINE, SCALE_HEIGHT, PADDING = 18, 10, 8

RGB = NDArray[np.uint8]


def overlay(image: NDArray[np.floating[Any]], heatmap: HeatMap) -> RGB:
    """Draw a map over its image; where the map is 0 or below, the image is as it was.

    Args:
        image: Grey levels in [0, 1], (h, w).
        heatmap: Over the same grid. Its largest value takes the last colour; see `HeatMap.verdict` before a map is
            shown whose largest value means little.

    Returns:
        uint8 (h, w, 3).

    Raises:
        ValueError: Image and map differ in shape.
    """
    if image.shape != heatmap.values.shape:
        raise ValueError(f"The image has shape {image.shape}, its heat map {heatmap.values.shape}: they must be alike.")
    strength = _strength(heatmap)
    grey = np.clip(image, 0, 1)[..., None] * 255.0  # (h, w, 1)
    colour = colours()[np.rint(strength * 255).astype(np.intp)]  # (h, w, 3)
    share = OPACITY * strength[..., None]
    drawn: RGB = np.rint(grey * (1 - share) + colour * share).astype(np.uint8)
    return drawn


def annotated(image: NDArray[np.floating[Any]], heatmap: HeatMap) -> RGB:
    """An overlay enlarged until text can be read, and below it the scale, what is shown, how far to rely on it.

    Args:
        image: Grey levels in [0, 1], (h, w).
        heatmap: Over the same grid.

    Returns:
        uint8 (H, W, 3); the aspect ratio of the image is kept and the text stands below it, never on it.
    """
    picture = Image.fromarray(overlay(image, heatmap))
    factor = max(1, -(-READABLE_SIDE // min(picture.size)))
    picture = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    unit = max(1.0, picture.width / READABLE_SIDE) if picture.width < 4 * READABLE_SIDE else 4.0
    font = ImageFont.load_default(size=round(13 * unit))
    padding, line, bar = (round(size * unit) for size in (PADDING, LINE, SCALE_HEIGHT))
    room = picture.width - 2 * padding
    texts = [row for text in _sentences(heatmap) for row in _wrapped(text, font, room)]
    below = padding * 3 + bar + line * (len(texts) + 1)
    page = Image.new("RGB", (picture.width, picture.height + below), "black")
    page.paste(picture, (0, 0))
    pen = ImageDraw.Draw(page)
    top = picture.height + padding
    ramp = colours()[np.linspace(0, 255, room).astype(np.intp)]  # (room, 3)
    page.paste(Image.fromarray(np.repeat(np.rint(ramp).astype(np.uint8)[None], bar, axis=0)), (padding, top))
    top += bar + 2
    low, high = _ends(heatmap)
    pen.text((padding, top), low, fill="white", font=font)
    pen.text((picture.width - padding, top), high, fill="white", font=font, anchor="ra")
    for number, text in enumerate(texts):
        pen.text((padding, top + padding + line * (number + 1)), text, fill="white", font=font)
    return np.asarray(page, dtype=np.uint8)


def write_png(path: str | os.PathLike[str], picture: RGB) -> Path:
    """Write a picture (H, W, 3) as PNG.

    Raises:
        OSError: The file cannot be written.
    """
    target = Path(path)
    Image.fromarray(picture).save(target, format="PNG")
    return target


@cache
def colours() -> NDArray[np.float64]:
    """The colour map, float64 (256, 3) in 0..255, weak to strong."""
    from skimage.color import lab2rgb, rgb2lab

    anchors = rgb2lab(np.array([ANCHORS], dtype=np.float64) / 255)[0]  # (anchors, 3)
    fine = np.concatenate(
        [np.linspace(one, two, 1000, endpoint=False) for one, two in pairwise(anchors)] + [anchors[-1:]]
    )
    walked = np.concatenate([[0.0], np.sqrt((np.diff(fine, axis=0) ** 2).sum(axis=1)).cumsum()])
    even = np.linspace(0, walked[-1], 256)
    lab = np.stack([np.interp(even, walked, fine[:, axis]) for axis in range(3)], axis=1)
    table: NDArray[np.float64] = np.clip(lab2rgb(lab[None])[0], 0, 1) * 255.0
    return table


def _strength(heatmap: HeatMap) -> NDArray[np.float64]:
    """The map's positive part as shares of its largest value, (h, w) in [0, 1]."""
    positive = np.maximum(heatmap.values.astype(np.float64), 0)
    top = positive.max(initial=0.0)
    return positive / top if top > 0 else positive


def _sentences(heatmap: HeatMap) -> list[str]:
    what = "Grad-CAM" if heatmap.kind == "grad-cam" else "Occlusion"
    asked = f"{heatmap.label}" if heatmap.against is None else f"{heatmap.label} rather than {heatmap.against}"
    kind = "score" if heatmap.against is None else "margin"
    return [f"{what}: {asked} ({kind} {heatmap.score:.3f})", heatmap.verdict.capitalize() + ".", WARNING + "."]


def _ends(heatmap: HeatMap) -> tuple[str, str]:
    """What stands below the ends of the scale."""
    if heatmap.flat:
        return "0", "0"
    if heatmap.kind == "grad-cam":
        return "none", "strongest"
    return "0", f"{heatmap.values.max():.3g} lost when covered"


def _wrapped(text: str, font: Any, room: int) -> list[str]:
    """A sentence in lines of at most `room` pixels; a single word may be longer."""
    rows = [""]
    for word in text.split():
        longer = f"{rows[-1]} {word}".strip()
        if rows[-1] and font.getlength(longer) > room:
            rows.append(word)
        else:
            rows[-1] = longer
    return rows
