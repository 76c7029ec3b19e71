"""Volumes: DICOM series and NIfTI files as voxels in patient coordinates, their three mid-planes, and cubes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from .dicom import read_modality_values
from .errors import ImageError
from .greyscale import apply_window
from .series import Series

NIFTI_SUFFIXES = (".nii", ".nii.gz")
"""Files that are NIfTI volumes, by name: their magic number may lie in compressed data."""

PLANES = ("axial", "coronal", "sagittal")
"""The three mid-planes, in the order in which they are returned."""

LEAST_SLICES = 4
"""A volume has at least so many slices, rows and columns."""

MAX_SLICES = 512
"""Of longer series every second, third ... slice is read."""

MAX_SIDE = 256
"""Slices are reduced to at most so many rows and columns: no plane shown to a network needs more."""

MAX_VOXELS = 1 << 28
"""Voxels a NIfTI file may have, before anything of it is read."""

SHOWN_PERCENTILES = (1.0, 99.5)
"""Of a volume without a window, the values between these percentiles are shown from black to white."""


@dataclass(frozen=True, eq=False)
class Volume:
    """Voxels in patient coordinates.

    Attributes:
        voxels: float32 (z, y, x) in modality units (Hounsfield units for CT); z grows to the head, y to the back, x to
            the patient's left, as far as the acquisition's own axes allow.
        spacing: mm between voxels, in the same order.
        window: (centre, width) that the file asks for, or None.
        inverted: Whether low values are bright (MONOCHROME1).
    """

    voxels: NDArray[np.float32]
    spacing: tuple[float, float, float]
    window: tuple[float, float] | None = None
    inverted: bool = False


def is_nifti(path: str | os.PathLike[str]) -> bool:
    """Say whether a file's name is that of a NIfTI volume."""
    return os.fspath(path).lower().endswith(NIFTI_SUFFIXES)


def read_series(series: Series) -> Volume:
    """Read the volume of a series, at most `MAX_SLICES` slices of at most `MAX_SIDE` rows and columns.

    Raises:
        ImageError: It has too few slices, or one of them cannot be read.
    """
    if len(series.slices) < LEAST_SLICES:
        count = len(series.slices)
        raise ImageError(
            series.slices[0].path, f"belongs to a series of {count} slice{'s' * (count != 1)}; a volume has "
            f"at least {LEAST_SLICES}",
        )  # fmt: skip
    every = -(-len(series.slices) // MAX_SLICES)
    read = series.slices[::every]
    slices = []
    window: tuple[float, float] | None = None
    inverted = False
    ratio = 1.0
    for number, one in enumerate(read):
        values, shown, inverted = read_modality_values(one.path)
        if number == len(read) // 2:
            window = shown
        small = _reduced(values)
        ratio = values.shape[0] / small.shape[0]
        slices.append(small)
    voxels = np.stack(slices)
    depth, height, width = series.spacing
    spacing = (depth * every, height * ratio, width * ratio)
    return _upright(voxels, spacing, series.directions, window, inverted)


def read_nifti(path: str | os.PathLike[str]) -> Volume:
    """Read a NIfTI volume; of a series of volumes (4D) the first.

    Raises:
        ImageError: It is damaged, too large, or no volume.
        ImportError: nibabel is not installed.
    """
    nibabel = import_nibabel()
    name = os.fspath(path)
    try:
        image: Any = nibabel.load(name)
        shape = tuple(int(side) for side in image.shape)
    except FileNotFoundError:
        raise ImageError(name, "there is no such file") from None
    except Exception as error:  # nibabel raises anything on damaged files
        raise ImageError(name, f"is no NIfTI volume that can be read ({type(error).__name__})") from error
    if len(shape) < 3 or min(shape[:3]) < LEAST_SLICES:
        raise ImageError(name, f"has the shape {shape}; a volume has at least {LEAST_SLICES} voxels in each direction")
    if np.prod([float(side) for side in shape]) > MAX_VOXELS:
        raise ImageError(name, f"has {' x '.join(map(str, shape))} voxels, more than the {MAX_VOXELS:,} allowed")
    try:
        first = tuple(slice(None) if axis < 3 else 0 for axis in range(len(shape)))
        data = np.asarray(image.dataobj[first])
        affine = np.asarray(image.affine, dtype=np.float64)
    except Exception as error:
        raise ImageError(name, f"its voxels are truncated or damaged ({type(error).__name__})") from error
    if data.dtype.kind not in "iuf" or data.ndim != 3:
        raise ImageError(name, f"holds {data.dtype} values, not numbers")
    if not np.isfinite(data).all():
        data = np.nan_to_num(data.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, :3]  # NIfTI counts to the right and the front, DICOM to the contrary
    spacing = np.linalg.norm(lps, axis=0)
    if not (np.isfinite(spacing).all() and spacing.min() > 0):
        lps, spacing = np.eye(3), np.ones(3)
    directions = (lps / spacing).T  # row k: where axis k of the array points
    every = [max(1, -(-side // MAX_SLICES)) for side in data.shape]
    data = data[:: every[0], :: every[1], :: every[2]]
    depth, height, width = (float(step) * by for step, by in zip(spacing, every, strict=True))
    volume = _upright(data.astype(np.float32), (depth, height, width), directions, None, False)
    small = np.stack([_reduced(part) for part in volume.voxels])
    ratio = volume.voxels.shape[1] / small.shape[1]
    depth, height, width = volume.spacing
    return Volume(small, (depth, height * ratio, width * ratio))


def import_nibabel() -> Any:
    """Import nibabel.

    Raises:
        ImportError: It is not installed; the sentence names the command.
    """
    try:
        import nibabel
    except ImportError:
        raise ImportError("NIfTI files need nibabel, which is not installed: pip install nibabel.") from None
    return nibabel


def _reduced(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reduce a slice (h, w) to at most `MAX_SIDE` rows and columns, its aspect kept."""
    scale = max(values.shape) / MAX_SIDE
    if scale <= 1:
        return values
    height, width = (max(1, round(side / scale)) for side in values.shape)
    picture = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX), dtype=np.float32)


def _upright(
    voxels: NDArray[np.float32],
    spacing: tuple[float, float, float],
    directions: NDArray[np.float64],
    window: tuple[float, float] | None,
    inverted: bool,
) -> Volume:
    """Turn the array's axes to head, back and left: the nearest permutation and flips, without resampling.

    Args:
        voxels: (a, b, c).
        spacing: mm along a, b, c.
        directions: (3, 3), row k is where axis k points, in (left, posterior, superior).
        window: Passed on.
        inverted: Passed on.
    """
    along = np.abs(directions)
    axes: list[int] = []
    for patient in (2, 1, 0):  # superior, posterior, left
        left = [axis for axis in range(3) if axis not in axes]
        axes.append(max(left, key=lambda axis: (along[axis, patient], -axis)))
    flips = tuple(
        slice(None, None, -1) if directions[axis, patient] < 0 else slice(None)
        for axis, patient in zip(axes, (2, 1, 0), strict=True)
    )
    turned = np.ascontiguousarray(np.transpose(voxels, axes)[flips])
    return Volume(turned, (spacing[axes[0]], spacing[axes[1]], spacing[axes[2]]), window, inverted)


def mid_planes(volume: Volume, window: tuple[float, float] | None = None) -> list[NDArray[np.float32]]:
    """Return the axial, coronal and sagittal plane through the middle, as radiologists look at them.

    The head is up; in the first two the patient's right is on the left, in the third the front is on the left. Pixels
    are square.

    Args:
        volume: The volume.
        window: (centre, width) in its units; by default its own, else between `SHOWN_PERCENTILES`.

    Returns:
        Grey levels in [0, 1], each (h, w).
    """
    depth, height, width = (side // 2 for side in volume.voxels.shape)
    step_z, step_y, step_x = volume.spacing
    cuts = (
        (volume.voxels[depth], step_y, step_x),
        (volume.voxels[::-1, height, :], step_z, step_x),
        (volume.voxels[::-1, :, width], step_z, step_y),
    )
    shown = window or volume.window or percentile_window(volume.voxels)
    planes = []
    for values, step_rows, step_columns in cuts:
        grey = apply_window(values.astype(np.float32), *shown, function="LINEAR_EXACT")
        if volume.inverted:
            grey = np.float32(1.0) - grey
        planes.append(_square(grey, step_rows, step_columns))
    return planes


def percentile_window(voxels: NDArray[np.float32]) -> tuple[float, float]:
    """Return the window between `SHOWN_PERCENTILES` of a volume's values."""
    low, high = np.percentile(voxels, SHOWN_PERCENTILES)
    return (float(low) + float(high)) / 2, max(float(high) - float(low), 1e-6)


def _square(grey: NDArray[np.float32], step_rows: float, step_columns: float) -> NDArray[np.float32]:
    """Resample a plane (h, w) so that its pixels are square, to at most 2 x `MAX_SIDE` rows and columns."""
    step = max(
        min(step_rows, step_columns), max(grey.shape[0] * step_rows, grey.shape[1] * step_columns) / 2 / MAX_SIDE
    )
    size = (max(1, round(grey.shape[1] * step_columns / step)), max(1, round(grey.shape[0] * step_rows / step)))
    if size == (grey.shape[1], grey.shape[0]):
        return grey
    resized = Image.fromarray(np.ascontiguousarray(grey)).resize(size, Image.Resampling.BILINEAR)
    return np.clip(np.asarray(resized, dtype=np.float32), 0.0, 1.0)


def cube(volume: Volume, size: Sequence[int], window: tuple[float, float] | None = None) -> NDArray[np.float32]:
    """Resample a volume to a fixed number of voxels, all of it kept whatever its proportions.

    Args:
        volume: The volume.
        size: Voxels (z, y, x).
        window: As for `mid_planes`.

    Returns:
        Grey levels in [0, 1], shape `size`.
    """
    shown = window or volume.window or percentile_window(volume.voxels)
    grey = apply_window(volume.voxels.reshape(len(volume.voxels), -1).copy(), *shown, function="LINEAR_EXACT")
    grey = grey.reshape(volume.voxels.shape)
    if volume.inverted:
        grey = np.float32(1.0) - grey
    zoom = [target / side for target, side in zip(size, grey.shape, strict=True)]
    smooth = ndimage.gaussian_filter(grey, [max(0.0, 0.5 / factor - 0.5) for factor in zoom])
    resampled = ndimage.zoom(smooth, zoom, order=1, grid_mode=True, mode="nearest")
    voxels: NDArray[np.float32] = np.clip(resampled, 0.0, 1.0).astype(np.float32)
    return voxels


def blank(plane: NDArray[np.float32]) -> bool:
    """Say whether a plane is one grey level everywhere."""
    return bool(plane.min() == plane.max())
