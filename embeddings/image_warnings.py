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

LETTER_HEIGHT = (0.012, 0.12)
"""A letter's height, as a share of the image's rows; at least `LEAST_LETTER` pixels."""

LEAST_LETTER = 5

STROKE = 0.14
"""Strokes of letters stand out from what is left and right of them by this share of the image's range."""

STROKES = 9
"""A line of text has so many strokes beside each other; markers of side and position have fewer."""

SIDE_TO_LOOK_AT = 512
"""Larger images are reduced by a whole number, to a shorter side of this many pixels or more, before text is sought."""

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


def image_warnings(grey: NDArray[Any], metadata: Mapping[str, Any]) -> tuple[str, ...]:
    """Look for what a person should know of an image.

    Args:
        grey: Grey levels, shape (h, w): uint8, or floats in [0, 1].
        metadata: What is known of it: `modality`, `body_part`, `view_position`, `patient_orientation`,
            `burned_in_annotation`.

    Returns:
        Codes of `WARNINGS`. Rotation is judged only where the metadata say that it is a frontal chest radiograph: by
        Patient Orientation (0020,0020) where it tells which way is up, else by the pixels.
    """
    found = []
    declared = str(metadata.get("burned_in_annotation", "")).strip().upper() == "YES"
    large = min(grey.shape) >= LEAST_SIDE
    if declared or (large and shows_text(grey)):
        found.append("burned-in-text")
    if is_frontal_chest(metadata):
        told = declared_upright(metadata.get("patient_orientation"))
        if told is False or (told is None and large and lies_wrongly(grey)):
            found.append("rotated")
    return tuple(found)


def declared_upright(orientation: Any) -> bool | None:
    """Say whether Patient Orientation (PS3.3 C.7.6.1.1.1) puts the head of a frontal image up; None where it is silent.

    Args:
        orientation: Where rows and columns lead to, as "L\\F": along a row to the patient's left, down to the feet.
    """
    rows, _, columns = str(orientation or "").strip().upper().partition("\\")
    if not rows or not columns:
        return None
    if rows[0] in "LR" and columns[0] in "HF":
        return columns[0] == "F"
    return False if rows[0] in "HF" and columns[0] in "LR" else None


def is_frontal_chest(metadata: Mapping[str, Any]) -> bool:
    """Say whether metadata declare a frontal radiograph of the chest."""
    modality, part, view = (str(metadata.get(key, "")).strip().upper() for key in ("modality", "body_part", "view"))
    view = str(metadata.get("view_position", view)).strip().upper()
    return modality in RADIOGRAPHS and part in CHEST and view in FRONTAL_VIEWS


def shows_text(grey: NDArray[Any]) -> bool:
    """Say whether a line of bright letters stands somewhere in an image (h, w), uint8 or floats in [0, 1].

    Thin bright strokes are kept (white top-hat along the rows), neighbouring ones joined to lines, and a line with many
    strokes, as high as letters are, is text.
    """
    levels = grey_levels(grey)
    factor = max(1, min(levels.shape) // SIDE_TO_LOOK_AT)
    if factor > 1:
        levels = np.asarray(Image.fromarray(levels).reduce(factor))
    spread = int(levels.max()) - int(levels.min())
    least, most = (share * levels.shape[0] for share in LETTER_HEIGHT)
    if spread == 0:
        return False
    thin = 2 * max(2, round(levels.shape[0] / 112)) + 1  # wider than a stroke, narrower than a letter
    opened = along_rows(along_rows(levels, thin, np.minimum), thin, np.maximum)
    strokes = levels - opened > STROKE * spread
    wide = np.pad(strokes, ((0, 0), (thin, thin)))
    joined = along_rows(along_rows(wide, 2 * thin + 1, np.logical_or), 2 * thin + 1, np.logical_and)[:, thin:-thin]
    labels, _ = ndimage.label(joined, structure=np.ones((3, 3)))
    for number, box in enumerate(ndimage.find_objects(labels), start=1):
        height, width = (side.stop - side.start for side in box)
        if max(LEAST_LETTER, least) <= height <= most and width >= 3 * height:
            line = strokes[box] & (labels[box] == number)
            if _strokes_of(line) >= STROKES:
                return True
    return False


def grey_levels(grey: NDArray[Any]) -> NDArray[np.uint8]:
    """Return grey levels (h, w) as uint8, from uint8 or from floats in [0, 1]."""
    if grey.dtype == np.uint8:
        return np.ascontiguousarray(grey)
    levels: NDArray[np.uint8] = (np.clip(grey, 0, 1) * 255 + 0.5).astype(np.uint8)
    return levels


def along_rows(image: NDArray[Any], width: int, extreme: np.ufunc) -> NDArray[Any]:
    """Return the least or greatest value of every window of a row, shape (h, w); beyond the edge counts for nothing.

    Windows are doubled until they are as wide as asked for, so that the work grows with the logarithm of the width.

    Args:
        image: Shape (h, w).
        width: An odd number of columns; windows lie around their column.
        extreme: `numpy.minimum`, `numpy.maximum`, or their like for booleans.
    """
    half = width // 2
    columns = image.shape[1]
    found = np.pad(image, ((0, 0), (half, half)), mode="edge")  # (h, w + 2 half): an edge repeated changes no extreme
    spans = 1
    while spans < width:
        step = min(spans, width - spans)
        found = extreme(found[:, :-step], found[:, step:])
        spans += step
    return found[:, :columns]


def _strokes_of(line: NDArray[np.bool_]) -> int:
    """Return how many strokes stand beside each other in a line of text (h, w): the median over its middle rows."""
    middle = line[line.shape[0] // 4 : max(line.shape[0] // 4 + 1, 3 * line.shape[0] // 4)]
    starts = np.diff(middle.astype(np.int8), axis=1, prepend=0) == 1
    return int(np.median(starts.sum(axis=1)))


def lies_wrongly(grey: NDArray[Any]) -> bool:
    """Say whether a frontal chest (h, w), uint8 or floats in [0, 1], is turned by a quarter or upside down."""
    picture = Image.fromarray(np.ascontiguousarray(grey, dtype=np.float32))
    small = np.asarray(picture.resize((PROFILE_SIDE, PROFILE_SIDE), Image.Resampling.BOX))
    if grey.dtype == np.uint8:
        small = small / 255
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
