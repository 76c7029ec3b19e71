"""image_warnings: what a person should know of an image before its vector is believed: text in it, or turned wrongly.

Both are cues, not diagnoses; benchmarks/image_warnings.py says how often they hit and how often they cry wolf.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

WARNINGS = {
    "burned-in-text": "There is probably text in the pixels, which may name a person.",
    "rotated": "The image is probably turned by a quarter or lies upside down.",
}
"""Code -> what it says."""

LEAST_SIDE = 128
"""Images with less than this many rows or columns cannot show text or anatomy well enough to judge."""

LETTER_HEIGHT = (0.012, 0.08)
"""A letter's height, as a share of the image's rows; at least `LEAST_LETTER` pixels."""

LEAST_LETTER = 5

STROKE = 0.2
"""Strokes of letters stand out from what is left and right of them by this share of the image's range."""

STROKES = 9
"""A line of text has so many strokes beside each other; markers of side and position have fewer."""

PROFILE_SIDE = 48
"""Side of the small picture whose profiles tell how a chest lies."""

TURNED = 0.02
"""The mediastinum is bright between dark lungs. A chest is turned by a quarter if the stripe from side to side stands
out more than the one from top to bottom by this much of the grey range."""

UPSIDE_DOWN = 0.02
"""The abdomen is brighter than the neck. A chest is upside down if its upper end is brighter by this much."""

FRONTAL_VIEWS = frozenset({"AP", "PA", "AP SUPINE", "AP ERECT", "PA ERECT"})
"""Values of View Position (0018,5101) of frontal radiographs, and how tables spell them."""

CHEST = frozenset({"CHEST", "THORAX", "LUNG"})
"""Body parts (0018,0015) whose frontal radiographs are nearly symmetrical."""

RADIOGRAPHS = frozenset({"CR", "DX", "RG", "X-RAY", "XR"})
"""Modalities of plain radiographs, and how tables spell them."""


def image_warnings(grey: NDArray[np.floating[Any]], metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Look for what a person should know of an image.

    Args:
        grey: Grey levels in [0, 1], shape (h, w).
        metadata: What is known of it: `modality`, `body_part`, `view_position`, `burned_in_annotation`.

    Returns:
        Codes of `WARNINGS`. Rotation is judged only where the metadata say that it is a frontal chest radiograph.
    """
    found = []
    declared = str(metadata.get("burned_in_annotation", "")).upper() == "YES"
    large = min(grey.shape) >= LEAST_SIDE
    if declared or (large and shows_text(grey)):
        found.append("burned-in-text")
    if large and is_frontal_chest(metadata) and lies_wrongly(grey):
        found.append("rotated")
    return tuple(found)


def is_frontal_chest(metadata: Mapping[str, Any]) -> bool:
    """Say whether metadata declare a frontal radiograph of the chest."""
    modality, part, view = (str(metadata.get(key, "")).strip().upper() for key in ("modality", "body_part", "view"))
    view = str(metadata.get("view_position", view)).strip().upper()
    return modality in RADIOGRAPHS and part in CHEST and view in FRONTAL_VIEWS


def shows_text(grey: NDArray[np.floating[Any]]) -> bool:
    """Say whether a line of bright letters stands somewhere in an image (h, w).

    Thin bright strokes are kept (white top-hat along the rows), neighbouring ones joined to lines, and a line with many
    strokes, as high as letters are, is text.
    """
    spread = float(grey.max()) - float(grey.min())
    least, most = (share * grey.shape[0] for share in LETTER_HEIGHT)
    if spread <= 0:
        return False
    thin = 2 * max(2, round(grey.shape[0] / 112)) + 1  # wider than a stroke, narrower than a letter
    strokes = grey - ndimage.grey_opening(grey, size=(1, thin)) > STROKE * spread
    joined = ndimage.binary_closing(np.pad(strokes, thin), structure=np.ones((1, 2 * thin + 1)))[thin:-thin, thin:-thin]
    labels, _ = ndimage.label(joined, structure=np.ones((3, 3)))
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        height, width = (side.stop - side.start for side in box)
        if max(LEAST_LETTER, least) <= height <= most and width >= 3 * height:
            line = strokes[box] & (labels[box] == number)
            if _strokes_of(line) >= STROKES:
                return True
    return False


def _strokes_of(line: NDArray[np.bool_]) -> int:
    """Return how many strokes stand beside each other in a line of text (h, w): the median over its middle rows."""
    middle = line[line.shape[0] // 4 : max(line.shape[0] // 4 + 1, 3 * line.shape[0] // 4)]
    starts = np.diff(middle.astype(np.int8), axis=1, prepend=0) == 1
    return int(np.median(starts.sum(axis=1)))


def lies_wrongly(grey: NDArray[np.floating[Any]]) -> bool:
    """Say whether a frontal chest radiograph (h, w) is turned by a quarter or upside down."""
    picture = Image.fromarray(np.ascontiguousarray(grey, dtype=np.float32))
    small = np.asarray(picture.resize((PROFILE_SIDE, PROFILE_SIDE), Image.Resampling.BOX))
    sixth = PROFILE_SIDE // 6
    inner = small[sixth:-sixth, sixth:-sixth]
    if _stripe(inner.mean(axis=1)) > _stripe(inner.mean(axis=0)) + TURNED:
        return True
    middle = small[:, PROFILE_SIDE // 4 : -PROFILE_SIDE // 4]
    third = PROFILE_SIDE // 3
    return float(middle[:third].mean()) > float(middle[-third:].mean()) + UPSIDE_DOWN


def _stripe(profile: NDArray[np.floating[Any]]) -> float:
    """Return by how much the middle of a profile is brighter than what lies left and right of it."""
    half, width = len(profile) // 2, len(profile) // 8
    sides = profile[width - 1 : 2 * width + 1], profile[-2 * width - 1 : 1 - width]
    return float(profile[half - width : half + width].mean() - (sides[0].mean() + sides[1].mean()) / 2)


def odd_views(views: Iterable[tuple[str, Any]]) -> dict[str, str]:
    """Find the images of another view in an archive of frontal radiographs.

    Args:
        views: Id and view position of every image that states one.

    Returns:
        Id -> one sentence, for views that are not frontal where at least nine in ten are; else nothing.
    """
    known = {identity: str(view).strip().upper() for identity, view in views if view is not None}
    counts = Counter(view in FRONTAL_VIEWS for view in known.values())
    if counts[True] < 9 * counts[False] or not counts[True]:
        return {}
    return {
        identity: f"The view is {view} in an archive of frontal images."
        for identity, view in sorted(known.items())
        if view not in FRONTAL_VIEWS
    }
