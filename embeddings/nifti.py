"""NIfTI files as volumes: the header first, then the voxels slice by slice, upright (nifti.nimh.nih.gov, NIfTI-1.1)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import ImageError
from .quiet import quiet
from .volumes import LEAST_SLICES, MAX_SLICES, Volume, reduced, turn

NIFTI_SUFFIXES = (".nii", ".nii.gz")
"""Files that are NIfTI volumes, by name: their magic number may lie in compressed data."""

MAX_VOXELS = 1 << 28
"""Voxels the first volume of a file may have, looked up before anything of it is read or decompressed."""

MAX_BYTES = 1 << 30
"""Bytes the stored voxels of the first volume may take."""


def is_nifti(path: str | os.PathLike[str]) -> bool:
    """Say whether a file's name is that of a NIfTI volume."""
    return os.fspath(path).lower().endswith(NIFTI_SUFFIXES)


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


def nifti_facts(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Return what a header says, for the metadata of rows: slices, spacing in mm, and warnings.

    Raises:
        ImageError: As for `read_nifti`, as far as the header tells.
    """
    _, shape, directions, spacing = _header(path)
    axes, _ = turn(directions)
    facts: dict[str, Any] = {
        "slices": shape[axes[0]],
        "spacing": [round(float(spacing[axis]), 6) for axis in axes],
    }
    volumes = int(np.prod([float(side) for side in shape[3:]]))
    if volumes > 1:
        facts["warnings"] = [f"The file holds {volumes} volumes: the first was taken."]
    return facts


def read_nifti(path: str | os.PathLike[str]) -> Volume:
    """Read a NIfTI volume; of a series of volumes (4D) the first.

    Slices are scaled, cleared of NaN and reduced one by one, so that a file takes little more memory than its own
    voxels.

    Raises:
        ImageError: It is damaged, too large, or no volume.
        ImportError: nibabel is not installed.
    """
    name = os.fspath(path)
    image, shape, directions, spacing = _header(path)
    proxy = image.dataobj
    try:
        with quiet():
            proxies: Any = import_nibabel().arrayproxy
            first = proxies.ArrayProxy(proxy.file_like, (shape[:3], proxy.dtype, proxy.offset), order=proxy.order)
            stored = np.asanyarray(first.get_unscaled())
    except MemoryError:
        raise
    except Exception as error:
        raise ImageError(name, f"its voxels are truncated or damaged ({type(error).__name__})") from error
    axes, flips = turn(directions)
    every = [max(1, -(-shape[axis] // MAX_SLICES)) for axis in axes]
    upright = np.transpose(stored, axes)[flips][:: every[0], :: every[1], :: every[2]]
    slope, intercept = float(proxy.slope), float(proxy.inter)
    small = np.stack([reduced(_scaled(part, slope, intercept)) for part in upright])
    depth, height, width = (float(spacing[axis]) * by for axis, by in zip(axes, every, strict=True))
    rows, columns = upright.shape[1] / small.shape[1], upright.shape[2] / small.shape[2]
    return Volume(small, (depth, height * rows, width * columns))


def _header(
    path: str | os.PathLike[str],
) -> tuple[Any, tuple[int, ...], NDArray[np.float64], NDArray[np.float64]]:
    """Return the unread image, its shape, where its three axes point (left, posterior, superior), and mm per voxel."""
    nibabel = import_nibabel()
    name = os.fspath(path)
    if not Path(path).is_file():
        raise ImageError(name, "there is no such file")
    try:
        with quiet():
            image: Any = nibabel.load(name)
            shape = tuple(int(side) for side in image.shape)
            kind = np.dtype(image.dataobj.dtype)
            affine = np.asarray(image.affine, dtype=np.float64)
    except MemoryError:
        raise
    except Exception as error:  # nibabel raises anything on damaged files
        raise ImageError(name, f"is no NIfTI volume that can be read ({type(error).__name__})") from error
    if len(shape) < 3 or min(shape[:3]) < LEAST_SLICES or min(shape) < 1:
        raise ImageError(name, f"has the shape {shape}; a volume has at least {LEAST_SLICES} voxels in each direction")
    voxels = np.prod([float(side) for side in shape[:3]])
    if voxels > MAX_VOXELS:
        raise ImageError(
            name, f"has {' x '.join(map(str, shape[:3]))} voxels in a volume, more than the {MAX_VOXELS:,} allowed"
        )
    if voxels * kind.itemsize > MAX_BYTES:
        raise ImageError(
            name, f"has voxels of {voxels * kind.itemsize:,.0f} bytes, more than the {MAX_BYTES:,} allowed"
        )
    if kind.kind not in "iuf":
        raise ImageError(name, f"holds {_kind(kind)} values; a volume has one number for each voxel")
    lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3, :3]  # NIfTI counts to the right and the front, DICOM to the contrary
    spacing = np.linalg.norm(lps, axis=0)
    if not (np.isfinite(lps).all() and spacing.min() > 0):
        return image, shape, np.eye(3), np.ones(3)
    return image, shape, (lps / spacing).T, spacing


def _kind(kind: np.dtype[Any]) -> str:
    return "colour" if kind.fields else kind.name


def _scaled(stored: NDArray[Any], slope: float, intercept: float) -> NDArray[np.float32]:
    """Return a slice (h, w) in modality units; what is no number becomes 0."""
    with np.errstate(over="ignore", invalid="ignore"):
        values: NDArray[np.float32] = (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    return np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
