"""From a volume to rows: its slices, its three mid-planes, their mean, or a cube of voxels, loaded and encoded."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from .encoders import ImageLoader
from .errors import EncoderError, ImageError
from .greyscale import apply_window
from .series import Series
from .volume_sources import find_volumes
from .volumes import PLANES, blank, cube, mid_planes, percentile_window, read_nifti, read_series

if TYPE_CHECKING:
    from .encoders import Encoder

Way = Literal["slices", "planes", "mean", "3d"]
"""Each slice a row; three mid-planes a row each; one row, the mean of the slices' vectors; one row by a 3D network."""

MEAN_SLICES = 64
"""Slices whose vectors are averaged, at most, evenly spread."""


@dataclass(slots=True)
class Pictures:
    """What reading a volume gave: loaded images with the end of each one's id and its own metadata."""

    images: list[NDArray[Any]]
    names: list[str]
    facts: list[dict[str, Any]] = field(default_factory=list)
    averaged: bool = False


def load_planes(source: Series | Path, loader: Any) -> tuple[list[NDArray[Any]], list[str]]:
    """Return the mid-planes of a volume as the network's loader shrinks them, and their names; blank ones are left out.

    Raises:
        ImageError: The volume cannot be read, or all planes are blank.
    """
    volume = read_series(source) if isinstance(source, Series) else read_nifti(source)
    planes = dict(zip(PLANES, mid_planes(volume, loader.preprocess.window), strict=True))
    kept = {name: plane for name, plane in planes.items() if not blank(plane)}
    if not kept:
        raise ImageError(_name_of(source), "shows one grey level everywhere: there is nothing to recognise")
    return [loader.shrink(plane) for plane in kept.values()], list(kept)


def load_slices(source: Series | Path, loader: Any, most: int) -> tuple[list[NDArray[Any]], list[str], int]:
    """Return slices of a volume as the network's loader shrinks them, their names, and how many were blank.

    Args:
        source: A series, whose files are read as any image is, or a NIfTI file, cut across its head-to-feet axis.
        loader: The encoder's.
        most: Slices, at most, evenly spread; 0 for all.

    Raises:
        ImageError: The volume cannot be read, or all slices are blank.
    """
    images, names, blanks = [], [], 0
    if isinstance(source, Series):
        for one in _spread(source.slices, most):
            try:
                images.append(loader.shrink(*loader.read(one.path)))
                names.append(one.uid)
            except ImageError as error:
                if "same grey level everywhere" not in error.reason:
                    raise
                blanks += 1
    else:
        volume = read_nifti(source)
        window = loader.preprocess.window or percentile_window(volume.voxels)
        for number in _spread(range(len(volume.voxels)), most):
            grey = apply_window(volume.voxels[number].copy(), window[0], window[1], function="LINEAR_EXACT")
            if blank(grey):
                blanks += 1
                continue
            images.append(loader.shrink(grey))
            names.append(str(number))
    if not images:
        raise ImageError(_name_of(source), "shows one grey level everywhere: there is nothing to recognise")
    return images, names, blanks


def load_cube(source: Series | Path, size: tuple[int, int, int], window: tuple[float, float] | None) -> NDArray[Any]:
    """Return a volume as the voxels of a 3D network, uint8 in 0..255."""
    volume = read_series(source) if isinstance(source, Series) else read_nifti(source)
    grey = cube(volume, size, window)
    if grey.min() == grey.max():
        raise ImageError(_name_of(source), "shows one grey level everywhere: there is nothing to recognise")
    return np.rint(grey * 255).astype(np.uint8)


def _name_of(source: Series | Path) -> object:
    return source.slices[0].path.parent if isinstance(source, Series) else source


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """Return at most so many items, evenly spread; all of them for 0."""
    if most <= 0 or len(items) <= most:
        return list(items)
    return [items[int(place)] for place in np.linspace(0, len(items) - 1, most).round()]


def check_way(encoder: Encoder, way: str) -> None:
    """Make sure that an encoder can embed volumes in a way.

    Raises:
        EncoderError: There is no such way, or the encoder is of the other kind.
    """
    if way not in get_args(Way):
        raise EncoderError(f"Volumes are embedded as one of {', '.join(get_args(Way))}; got {way!r}.")
    takes_volumes = getattr(encoder, "takes_volumes", False)
    if takes_volumes != (way == "3d"):
        kind = "takes volumes, which goes with" if takes_volumes else 'takes images; a 3D one ("3d:resnet18") goes with'
        raise EncoderError(f"The encoder {encoder.name} {kind} the way '3d' and no other; got {way!r}.")
    if way != "3d" and not isinstance(getattr(encoder, "loader", None), ImageLoader):
        raise EncoderError(
            f"The encoder {encoder.name} has a loader of its own, which cannot be given planes or slices."
        )


def loading_of(encoder: Encoder, way: Way) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return the function that reads a volume in a way, and its further arguments."""
    if way == "3d":
        loader: Any = getattr(encoder, "loader", None)
        return load_cube, (loader.size, loader.window)
    image_loader = getattr(encoder, "loader", None)
    if way == "planes":
        return load_planes, (image_loader,)
    return load_slices, (image_loader, MEAN_SLICES if way == "mean" else 0)


def pictures_of(loaded: Any, way: Way) -> Pictures:
    """Bring what a loading function returned into one form."""
    if way == "3d":
        return Pictures([loaded], [""], [{}])
    images, names, *blanks = loaded
    if way == "planes":
        return Pictures(images, [f"#{name}" for name in names], [{"plane": name} for name in names])
    if way == "mean":
        facts: dict[str, Any] = {"slices_averaged": len(images)}
        if blanks and blanks[0]:
            facts["slices_blank"] = blanks[0]
        return Pictures(images, [""], [facts], averaged=True)
    return Pictures(images, list(names), [{"slice": number} for number in range(len(images))])


def encode_pictures(encoder: Encoder, pictures: Pictures) -> NDArray[np.float32]:
    """Return the vectors of a volume's rows (n, d)."""
    loader: Any = getattr(encoder, "loader", None)
    rows = []
    for start in range(0, len(pictures.images), MEAN_SLICES):
        rows.append(encoder.encode_loaded(list(loader.expand(pictures.images[start : start + MEAN_SLICES]))))
    vectors = np.concatenate(rows).astype(np.float32)
    return vectors.mean(axis=0, keepdims=True, dtype=np.float64).astype(np.float32) if pictures.averaged else vectors


def encode_volume(encoder: Encoder, source: str | os.PathLike[str], *, way: Way) -> NDArray[np.float32]:
    """Embed one volume, to ask an archive of volumes for what is like it.

    Args:
        encoder: The archive's.
        source: A NIfTI file, or a folder that holds one series.
        way: As the archive was made.

    Returns:
        float32 rows (n, d): one, or one per plane or slice.

    Raises:
        ImageError: There is no volume, or more than one, or it cannot be read.
    """
    check_way(encoder, way)
    volumes, refused = find_volumes(source)
    if len(volumes) != 1:
        why = refused[0][1] if refused and not volumes else "give a NIfTI file or a folder of one series"
        raise ImageError(os.fspath(source), f"holds {len(volumes)} volumes: {why}")
    function, arguments = loading_of(encoder, way)
    loaded = function(volumes[0].series or volumes[0].file, *arguments)
    return encode_pictures(encoder, pictures_of(loaded, way))
