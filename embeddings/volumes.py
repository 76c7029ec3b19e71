"""Volumes: DICOM series as voxels in patient coordinates (PS3.3 C.7.6.2), their three mid-planes, and cubes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from .dicom import read_modality_values
from .errors import ImageError
from .greyscale import apply_window
from .series import Series

PLANES = ("axial", "coronal", "sagittal")
"""The three mid-planes, in the order in which they are returned."""

LEAST_SLICES = 4
"""A volume has at least so many slices, rows and columns."""

MAX_SLICES = 512
"""Of longer series every second, third ... slice is read."""

MAX_SIDE = 256
"""Slices are reduced to at most so many rows and columns: no plane shown to a network needs more."""

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
    if series.film:
        raise ImageError(
            series.slices[0].path,
            "has frames that do not say where they lie: a film is embedded as slices or as a mean",
        )
    every = -(-len(series.slices) // MAX_SLICES)
    read = series.slices[::every]
    offsets = series.offsets[::every]
    slices: list[NDArray[np.float32]] = []
    window: tuple[float, float] | None = None
    inverted = False
    depth, height, width = series.spacing
    for number, (one, offset) in enumerate(zip(read, offsets, strict=True)):
        values, shown, inverted = read_modality_values(one.path, frame=one.frame)
        if number == len(read) // 2:
            window = shown
        small = reduced(values)
        rows, columns = values.shape[0] / small.shape[0], values.shape[1] / small.shape[1]
        if slices and small.shape != slices[0].shape:
            raise ImageError(one.path, "has other rows and columns than the slices before it")
        slices.append(_moved(small, float(offset[0]) / (height * rows), float(offset[1]) / (width * columns)))
    voxels = np.stack(slices)
    del slices
    return upright(voxels, (depth * every, height * rows, width * columns), series.directions, window, inverted)


def _moved(values: NDArray[np.float32], rows: float, columns: float) -> NDArray[np.float32]:
    """Move a slice (h, w) by so many rows and columns, filled with its smallest value; less than one pixel is left."""
    if max(abs(rows), abs(columns)) < 1.0:
        return values
    moved: NDArray[np.float32] = ndimage.shift(values, (rows, columns), order=1, cval=float(values.min()))
    return moved


def reduced(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reduce a slice (h, w) to at most `MAX_SIDE` rows and columns, its aspect kept."""
    scale = max(values.shape) / MAX_SIDE
    if scale <= 1:
        return values
    height, width = (max(1, round(side / scale)) for side in values.shape)
    picture = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
    return np.asarray(picture.resize((width, height), Image.Resampling.BOX), dtype=np.float32)


def upright(
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
    axes, flips = turn(directions)
    turned = np.ascontiguousarray(np.transpose(voxels, axes)[flips])
    return Volume(turned, (spacing[axes[0]], spacing[axes[1]], spacing[axes[2]]), window, inverted)


def turn(directions: NDArray[np.float64]) -> tuple[list[int], tuple[slice, slice, slice]]:
    """Return which axes of an array go to head, back and left, and the flips that then turn them there.

    Args:
        directions: As for `upright`.
    """
    along = np.abs(directions)
    axes: list[int] = []
    flips: list[slice] = []
    for patient in (2, 1, 0):  # superior, posterior, left
        axis = max((axis for axis in range(3) if axis not in axes), key=lambda axis: (along[axis, patient], -axis))
        axes.append(axis)
        flips.append(slice(None, None, -1) if directions[axis, patient] < 0 else slice(None))
    return axes, (flips[0], flips[1], flips[2])


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
