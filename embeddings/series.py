"""Series: DICOM slices that are one volume, in their order in space (PS3.3 C.7.6.2.1.1)."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydicom
from numpy.typing import NDArray

from .errors import ImageError
from .images import image_identity
from .quiet import quiet

FUNCTIONAL_GROUPS = {
    "PlanePositionSequence": ("ImagePositionPatient",),
    "PlaneOrientationSequence": ("ImageOrientationPatient",),
    "PixelMeasuresSequence": ("PixelSpacing", "SliceThickness"),
}
"""Where files of several frames keep the place of each frame (PS3.3 C.7.6.16.2)."""

GROUP_SEQUENCES = ("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence")
"""A frame's own groups, and those that all frames share; the former come first."""

MAX_FRAMES = 4096
"""Frames of one file that are listed."""

GEOMETRY = (
    "ImagePositionPatient",
    "ImageOrientationPatient",
    "PixelSpacing",
    "SliceThickness",
    "InstanceNumber",
)
"""Elements that say where a slice lies."""

SAME_DIRECTION = 1e-2
"""Slices whose direction cosines differ by more than this do not lie in parallel."""

SAME_PLACE = 1e-2
"""Slices closer together than this, in mm, are at one place."""

OFF_AXIS = 0.5
"""Slices whose corners lie further than this, in mm, from a line along their normal are moved back onto it."""

GAP = 1.5
"""A step between slices of more than this many median steps means that slices are missing."""


@dataclass(frozen=True, slots=True)
class Slice:
    """One slice of a series: a file, or a frame of one.

    Attributes:
        path: The file.
        uid: Its SOPInstanceUID, with "#<frame>" behind it for a frame; "" where the file has none.
        sha256: Of its bytes.
        metadata: What is kept of its header.
        geometry: What `GEOMETRY` names, where it is there, as numbers.
        frame: Index from 0 in a file of several frames, else None.
    """

    path: Path
    uid: str
    sha256: str
    metadata: Mapping[str, Any]
    geometry: Mapping[str, Any]
    frame: int | None = None


@dataclass(frozen=True, slots=True)
class Series:
    """The slices of one volume, in order.

    Attributes:
        uid: SeriesInstanceUID, or "" where the files have none.
        slices: From the feet to the head, or along the normal of the slices.
        spacing: mm between slices, rows and columns; 1 where the files do not say.
        directions: Unit vectors (3, 3) along which slice, row and column numbers grow, in patient coordinates (left,
            posterior, superior); as for axial slices where the files do not say.
        offsets: mm (n, 2) by which each slice lies further along rows and columns than the middle one: zeros but for
            a tilted gantry.
        film: Whether these are frames of one file that do not say where they lie.
        warnings: One sentence each.
    """

    uid: str
    slices: tuple[Slice, ...]
    spacing: tuple[float, float, float]
    directions: NDArray[np.float64] = field(repr=False)
    offsets: NDArray[np.float64] = field(repr=False)
    film: bool = False
    warnings: tuple[str, ...] = ()


def slice_header(path: Path) -> dict[str, Any]:
    """Read what `slices_of` needs of a file, as plain types; run in a decoding process.

    Raises:
        ImageError: It is no DICOM image.
    """
    identity = image_identity(path)
    if identity.sop_instance_uid is None and not identity.metadata:
        raise ImageError(path, "is neither a DICOM slice nor a NIfTI volume")
    with quiet():
        try:
            tags = [*GEOMETRY, *GROUP_SEQUENCES, "NumberOfFrames"]
            header = pydicom.dcmread(path, stop_before_pixels=True, force=True, specific_tags=tags)
            count = int(header.get("NumberOfFrames") or 1)
        except MemoryError:
            raise
        except Exception as error:  # parsers raise anything, and quote what they stumbled over: perhaps a name
            raise ImageError(path, f"its DICOM header is damaged ({type(error).__name__})") from error
        if count > MAX_FRAMES:
            raise ImageError(path, f"has {count:,} frames, more than the {MAX_FRAMES:,} that are listed")
        places = [_geometry(header)] if count <= 1 else [_frame_geometry(header, frame) for frame in range(count)]
    patient = {} if identity.patient_id is None else {"patient": identity.patient_id}
    return {
        "path": os.fspath(path),
        "uid": identity.sop_instance_uid or "",
        "sha256": identity.sha256,
        "metadata": {**identity.metadata, **patient},
        "places": places,
    }


def slices_of(header: Mapping[str, Any]) -> list[Slice]:
    """Return the slices of a file: one, or one per frame."""
    path, uid, sha256, metadata = Path(header["path"]), header["uid"], header["sha256"], header["metadata"]
    places = header["places"]
    if len(places) == 1:
        return [Slice(path, uid, sha256, metadata, places[0])]
    return [
        Slice(path, f"{uid}#{frame}" if uid else "", sha256, metadata, place, frame)
        for frame, place in enumerate(places)
    ]


def _geometry(header: Any) -> dict[str, Any]:
    known = {keyword: _numbers(header, keyword) for keyword in GEOMETRY}
    return {keyword: value for keyword, value in known.items() if value is not None}


def _frame_geometry(header: Any, frame: int) -> dict[str, Any]:
    """Return a frame's geometry: its own functional groups, then the shared ones, then the file (C.7.6.16)."""
    known = {"InstanceNumber": float(frame + 1)}
    for sequence, keywords in FUNCTIONAL_GROUPS.items():
        for holder in (
            *(_item(header, name, at) for name, at in zip(GROUP_SEQUENCES, (frame, 0), strict=True)),
            header,
        ):
            inner = holder if holder is header else _item(holder, sequence, 0)
            for keyword in keywords:
                value = None if inner is None or keyword in known else _numbers(inner, keyword)
                # One position in the header of many frames is that of none of them.
                if value is not None and not (holder is header and keyword == "ImagePositionPatient"):
                    known[keyword] = value
    return known


def _item(holder: Any, sequence: str, place: int) -> Any:
    try:
        return holder[sequence][place]
    except Exception:  # absent, too short, or damaged
        return None


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
    place that is taken (later phases, other weightings: the lowest InstanceNumber is kept); both are said in the
    warnings, and so are gaps. Slices of a tilted gantry are moved back over each other when they are read.
    """
    warnings: list[str] = []
    numbered = sorted(members, key=_number)
    kept = _of_one_shape(numbered, warnings)
    uid = str(kept[0].metadata.get("series_uid", ""))
    placed = [one for one in kept if _is_placed(one)]
    rows, columns = _in_plane(kept[0])
    thickness = kept[0].geometry.get("SliceThickness")
    default = float(thickness) if isinstance(thickness, float) and thickness > 0 else 1.0
    if len(placed) < len(kept) or not placed:
        if len(kept) > 1:
            warnings.append("The slices do not say where they lie: they are in order of their numbers.")
        film = any(one.frame is not None for one in kept)
        axial, still = np.eye(3)[::-1].copy(), np.zeros((len(kept), 2))
        return Series(uid, tuple(kept), (default, rows, columns), axial, still, film, tuple(warnings))
    row = np.asarray(placed[0].geometry["ImageOrientationPatient"][:3], dtype=np.float64)
    column = np.asarray(placed[0].geometry["ImageOrientationPatient"][3:6], dtype=np.float64)
    normal = np.cross(row, column)
    if normal[np.abs(normal).argmax()] < 0:
        normal = -normal
    corners = np.array([one.geometry["ImagePositionPatient"] for one in placed], dtype=np.float64)
    places = corners @ normal
    once: list[int] = []
    for place in np.argsort(places, kind="stable"):
        if not once or places[place] - places[once[-1]] >= SAME_PLACE:
            once.append(int(place))
    if len(once) < len(placed):
        more = len(placed) - len(once)
        warnings.append(f"{_slices(more)} where another one lies: the first was kept.")
    steps = np.diff(places[once])
    step = float(np.median(steps)) if len(steps) else default
    if len(steps) and float(steps.max()) > GAP * step:
        warnings.append(f"Slices are missing: steps of up to {steps.max():.1f} mm where {step:.1f} mm are usual.")
    # Image rows are counted along `column`, the direction of a column, and columns along `row`.
    offsets = (corners[once] - corners[once[len(once) // 2]]) @ np.stack([column, row], axis=1)  # (n, 2)
    if np.abs(offsets).max() <= OFF_AXIS:
        offsets = np.zeros_like(offsets)
    directions = np.stack([normal, column, row])
    slices = tuple(placed[place] for place in once)
    return Series(uid, slices, (step, rows, columns), directions, offsets, False, tuple(warnings))


def _slices(count: int, verb: Literal["lie", "were"] = "lie") -> str:
    one = {"lie": "lies", "were": "was"}[verb]
    return f"{count} slice {one}" if count == 1 else f"{count} slices {verb}"


def _number(one: Slice) -> tuple[float, str, int]:
    number = one.geometry.get("InstanceNumber")
    return (number if isinstance(number, float) else float("inf"), one.path.name, one.frame or 0)


def _is_placed(one: Slice) -> bool:
    """Say whether a slice has a position and two directions at right angles, both of length 1 (C.7.6.2.1.1)."""
    position, direction = (one.geometry.get(name) for name in ("ImagePositionPatient", "ImageOrientationPatient"))
    if not (isinstance(position, list) and len(position) == 3 and isinstance(direction, list) and len(direction) == 6):
        return False
    row, column = np.asarray(direction[:3]), np.asarray(direction[3:])
    lengths = np.array([np.linalg.norm(row), np.linalg.norm(column)])
    return bool(np.allclose(lengths, 1.0, atol=0.05) and abs(row @ column) < 0.05)


def _of_one_shape(members: list[Slice], warnings: list[str]) -> list[Slice]:
    """Keep the slices of the direction and size that most have; directions differ by no more than `SAME_DIRECTION`."""
    groups: list[tuple[NDArray[np.float64], tuple[Any, Any], list[Slice]]] = []
    for one in members:
        cosines = one.geometry.get("ImageOrientationPatient")
        direction = np.asarray(cosines if isinstance(cosines, list) else [], dtype=np.float64)
        size = (one.metadata.get("rows"), one.metadata.get("columns"))
        for of_group, size_of_group, group in groups:
            same = direction.shape == of_group.shape and bool((np.abs(direction - of_group) <= SAME_DIRECTION).all())
            if same and size == size_of_group:
                group.append(one)
                break
        else:
            groups.append((direction, size, [one]))
    kept = max((group for _, _, group in groups), key=len)
    if len(kept) < len(members):
        warnings.append(f"{_slices(len(members) - len(kept), 'were')} of another direction or size and left out.")
    return kept


def _in_plane(one: Slice) -> tuple[float, float]:
    spacing = one.geometry.get("PixelSpacing")
    if isinstance(spacing, list) and len(spacing) == 2 and min(spacing) > 0:
        return float(spacing[0]), float(spacing[1])
    return 1.0, 1.0
