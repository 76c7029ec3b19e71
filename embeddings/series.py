"""Series: DICOM slices that are one volume, in their order in space (PS3.3 C.7.6.2.1.1)."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from .errors import ImageError
from .images import image_identity
from .quiet import quiet

GEOMETRY = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "InstanceNumber",
)
"""Elements that say where a slice lies."""

SAME_DIRECTION = 1e-3
"""Slices whose direction cosines differ by more than this do not lie in parallel."""

SAME_PLACE = 1e-2
"""Slices closer together than this, in mm, are at one place."""

GAP = 1.5
"""A step between slices of more than this many median steps means that slices are missing."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One file of a series.

    Attributes:
        path: The file.
        uid: Its SOPInstanceUID, or "".
        sha256: Of its bytes.
        metadata: What is kept of its header.
        geometry: What `GEOMETRY` names, where it is there, as numbers.
    """

    path: Path
    uid: str
    sha256: str
    metadata: Mapping[str, Any]
    geometry: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Series:
    """The slices of one volume, in order.

    Attributes:
        uid: SeriesInstanceUID, or "" where the files have none.
        slices: From the feet to the head, or along the normal of the slices.
        spacing: mm between slices, rows and columns; 1 where the files do not say.
        directions: Unit vectors (3, 3) along which slice, row and column numbers grow, in patient coordinates (left,
            posterior, superior); as for axial slices where the files do not say.
        warnings: One sentence each.
    """

    uid: str
    slices: tuple[Slice, ...]
    spacing: tuple[float, float, float]
    directions: NDArray[np.float64] = field(repr=False)
    warnings: tuple[str, ...] = ()


def slice_header(path: Path) -> dict[str, Any]:
    """Read what `order_series` needs of a file, as plain types; run in a decoding process.

    Raises:
        ImageError: It is no DICOM image.
    """
    identity = image_identity(path)
    if identity.sop_instance_uid is None and not identity.metadata:
        raise ImageError(path, "is neither a DICOM slice nor a NIfTI volume")
    geometry: dict[str, Any] = {}
    with quiet():
        header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=list(GEOMETRY))
        for keyword in GEOMETRY:
            value = _numbers(header, keyword)
            if value is not None:
                geometry[keyword] = value
    patient = {} if identity.patient_id is None else {"patient": identity.patient_id}
    return {
        "path": os.fspath(path),
        "uid": identity.sop_instance_uid or "",
        "sha256": identity.sha256,
        "metadata": {**identity.metadata, **patient},
        "geometry": geometry,
    }


def _numbers(header: Any, keyword: str) -> Any:
    try:
        value = header.get(keyword)
        if value is None or value == "":
            return None
        numbers = [float(number) for number in value] if isinstance(value, Sequence) else float(value)
        return numbers if np.isfinite(numbers).all() else None
    except Exception:  # a damaged element says nothing
        return None


def group_series(slices: Sequence[Slice]) -> list[list[Slice]]:
    """Group slices by SeriesInstanceUID, else by folder; in order of their first file."""
    groups: dict[str, list[Slice]] = defaultdict(list)
    for one in slices:
        groups[str(one.metadata.get("series_uid") or f"folder:{one.path.parent}")].append(one)
    return list(groups.values())


def order_series(members: Sequence[Slice]) -> Series:
    """Put the slices of a series in order, and leave out what does not belong to the volume.

    Order is that of ImagePositionPatient along the slices' normal; without positions that of InstanceNumber, else of
    the names. Slices of another direction or size than most (localizers) are left out, and so are further slices at a
    place that is taken; both are said in the warnings.
    """
    warnings: list[str] = []
    kept = _of_one_shape(list(members), warnings)
    uid = str(kept[0].metadata.get("series_uid", ""))
    placed = [one for one in kept if {"ImagePositionPatient", "ImageOrientationPatient"} <= one.geometry.keys()]
    spacing = _in_plane(kept[0])
    if len(placed) < len(kept) or not placed:
        kept.sort(key=lambda one: (one.geometry.get("InstanceNumber", np.inf), one.path.name))
        if len(kept) > 1:
            warnings.append("The slices do not say where they lie: they are in order of their numbers.")
        step = float(kept[0].geometry.get("SliceThickness") or 1.0)
        return Series(uid, tuple(kept), (step, *spacing), np.eye(3)[::-1].copy(), tuple(warnings))
    row = np.asarray(placed[0].geometry["ImageOrientationPatient"][:3], dtype=np.float64)
    column = np.asarray(placed[0].geometry["ImageOrientationPatient"][3:6], dtype=np.float64)
    normal = np.cross(row, column)
    if normal[np.abs(normal).argmax()] < 0:
        normal = -normal
    places = [float(np.dot(one.geometry["ImagePositionPatient"], normal)) for one in placed]
    order = np.argsort(places, kind="stable")
    once: list[int] = []
    for place in order:
        if once and places[place] - places[once[-1]] < SAME_PLACE:
            continue
        once.append(int(place))
    if len(once) < len(placed):
        warnings.append(f"{len(placed) - len(once)} slices lie where another one lies: the first was kept.")
    steps = np.diff([places[place] for place in once])
    step = float(np.median(steps)) if len(steps) else float(kept[0].geometry.get("SliceThickness") or 1.0)
    if len(steps) and float(steps.max()) > GAP * step:
        warnings.append(f"Slices are missing: steps of up to {steps.max():.1f} mm where {step:.1f} mm are usual.")
    # Image rows are counted along `column`, the direction of a column, and columns along `row`.
    directions = np.stack([normal, column, row])
    return Series(uid, tuple(placed[place] for place in once), (step, *spacing), directions, tuple(warnings))


def _of_one_shape(members: list[Slice], warnings: list[str]) -> list[Slice]:
    """Keep the slices of the direction and size that most have."""

    def shape(one: Slice) -> tuple[Any, ...]:
        direction = one.geometry.get("ImageOrientationPatient") or ()
        return (
            tuple(round(value / SAME_DIRECTION / 10) for value in direction),
            one.metadata.get("rows"),
            one.metadata.get("columns"),
        )

    counts = Counter(map(shape, members))
    common = counts.most_common(1)[0][0]
    kept = [one for one in members if shape(one) == common]
    if len(kept) < len(members):
        warnings.append(f"{len(members) - len(kept)} slices of another direction or size were left out.")
    return kept


def _in_plane(one: Slice) -> tuple[float, float]:
    spacing = one.geometry.get("PixelSpacing")
    if isinstance(spacing, list) and len(spacing) == 2 and min(spacing) > 0:
        return float(spacing[0]), float(spacing[1])
    return 1.0, 1.0
