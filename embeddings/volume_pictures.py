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
from .images import BLANK, read_reduced
from .nifti import read_nifti
from .series import Series
from .sources import printable
from .volume_sources import find_volumes
from .volumes import PLANES, Volume, blank, cube, mid_planes, percentile_window, read_series

if TYPE_CHECKING:
    from .encoders import Encoder

Way = Literal["slices", "planes", "mean", "3d"]
"""Each slice a row; three mid-planes a row each; one row, the mean of the slices' vectors; one row by a 3D network."""

MEAN_SLICES = 64
"""Slices whose vectors are averaged, at most, evenly spread."""

BLANK_VOLUME = "shows one grey level everywhere: there is nothing to recognise"
"""Why a volume without contrast is refused."""


@dataclass(slots=True)
class Pictures:
    """What reading a volume gave: loaded images with the end of each one's id and its own metadata."""

    images: list[NDArray[Any]]
    names: list[str]
    facts: list[dict[str, Any]] = field(default_factory=list)
    averaged: bool = False


@dataclass(frozen=True)
class GreyLoader:
    """Stands in for the loader of an encoder that preprocesses arrays itself: pictures stay 8-bit grey levels.

    Attributes:
        window: (centre, width) in Hounsfield units, or None.
    """

    window: tuple[float, float] | None = None

    def shrink(self, grey: NDArray[np.float32], shape: tuple[int, int] | None = None) -> NDArray[np.uint8]:
        """Return grey levels in 0..255; the size stays."""
        levels: NDArray[np.uint8] = np.rint(grey * np.float32(255.0)).astype(np.uint8)
        return levels


def load_planes(source: Series | Path, loader: ImageLoader | GreyLoader) -> tuple[list[NDArray[Any]], list[str]]:
    """Return the mid-planes of a volume as the network's loader shrinks them, and their names; blank ones are left out.

    Raises:
        ImageError: The volume cannot be read, or all planes are blank.
    """
    volume = _read(source)
    planes = dict(zip(PLANES, mid_planes(volume, window_for(source, window_of(loader))), strict=True))
    kept = {name: plane for name, plane in planes.items() if not blank(plane)}
    if not kept:
        raise ImageError(_name_of(source), BLANK_VOLUME)
    return [loader.shrink(plane) for plane in kept.values()], list(kept)


def load_slices(
    source: Series | Path, loader: ImageLoader | GreyLoader, most: int
) -> tuple[list[NDArray[Any]], list[int], int]:
    """Return slices of a volume as the network's loader shrinks them, their numbers, and how many were blank.

    Args:
        source: A series, whose files are read as any image is, or a NIfTI file, cut across its head-to-feet axis.
        loader: See `loading_of`.
        most: Slices, at most, evenly spread; 0 for all.

    Raises:
        ImageError: The volume cannot be read, or all slices are blank.
    """
    images: list[NDArray[Any]] = []
    numbers: list[int] = []
    blanks = 0
    window = window_for(source, window_of(loader))
    if isinstance(source, Series):
        form = loader.preprocess if isinstance(loader, ImageLoader) else None
        size = form.size if form is not None and form.decoding == "fast" else None
        for number in _spread(range(len(source.slices)), most):
            one = source.slices[number]
            try:
                grey, shape = read_reduced(one.path, size, frame=one.frame, hounsfield=window)
            except ImageError as error:
                if error.reason != BLANK:
                    raise
                blanks += 1
                continue
            images.append(loader.shrink(grey, shape))
            numbers.append(number)
    else:
        volume = read_nifti(source)
        shown = window or percentile_window(volume.voxels)
        for number in _spread(range(len(volume.voxels)), most):
            grey = apply_window(volume.voxels[number].copy(), *shown, function="LINEAR_EXACT")
            if blank(grey):
                blanks += 1
                continue
            images.append(loader.shrink(grey))
            numbers.append(number)
    if not images:
        raise ImageError(_name_of(source), BLANK_VOLUME)
    return images, numbers, blanks


def load_cube(source: Series | Path, size: tuple[int, int, int], window: tuple[float, float] | None) -> NDArray[Any]:
    """Return a volume as the voxels of a 3D network, uint8 in 0..255."""
    grey = cube(_read(source), size, window_for(source, window))
    if grey.min() == grey.max():
        raise ImageError(_name_of(source), BLANK_VOLUME)
    return np.rint(grey * 255).astype(np.uint8)


def window_of(loader: Any) -> tuple[float, float] | None:
    """Return the window in Hounsfield units that an encoder's loader shows computed tomography through, or None."""
    window: tuple[float, float] | None = (
        loader.preprocess.window if isinstance(loader, ImageLoader) else getattr(loader, "window", None)
    )
    return window


def window_for(source: Series | Path | None, window: tuple[float, float] | None) -> tuple[float, float] | None:
    """Return the window where it applies: to series of computed tomography, and to NIfTI files, which name no modality.

    Other series keep the window of their own.
    """
    if isinstance(source, Series) and source.slices[0].metadata.get("modality") != "CT":
        return None
    return window


def _read(source: Series | Path) -> Volume:
    return read_series(source) if isinstance(source, Series) else read_nifti(source)


def _name_of(source: Series | Path) -> object:
    return source.slices[0].path.parent if isinstance(source, Series) else source


def _spread(items: Sequence[int], most: int) -> list[int]:
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
    if not getattr(encoder, "decodes", True):
        raise EncoderError(f"The encoder {encoder.name} reads no pixels, so it cannot be given planes or slices.")


def loading_of(encoder: Encoder, way: Way) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """Return the function that reads a volume in a way, and its further arguments."""
    loader: Any = getattr(encoder, "loader", None)
    if way == "3d":
        return load_cube, (loader.size, loader.window)
    if not isinstance(loader, ImageLoader):  # what it does to an image it does to the arrays that come back
        loader = GreyLoader(window_of(loader))
    if way == "planes":
        return load_planes, (loader,)
    return load_slices, (loader, MEAN_SLICES if way == "mean" else 0)


def pictures_of(loaded: Any, way: Way, source: Series | Path) -> Pictures:
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
    if not isinstance(source, Series):
        return Pictures(images, [f"#{number}" for number in names], [{"slice": number} for number in names])
    known: list[dict[str, Any]] = []
    for number in names:
        one = source.slices[number]
        frame = {} if one.frame is None else {"frame": one.frame}
        known.append({"slice": number, "path": printable(one.path.absolute()), **frame})
    return Pictures(images, [source.slices[number].uid or f"#{number}" for number in names], known)


def encode_pictures(encoder: Encoder, pictures: Pictures) -> NDArray[np.float32]:
    """Return the vectors of a volume's rows (n, d)."""
    loader: Any = getattr(encoder, "loader", None)
    takes_shrunk = isinstance(loader, ImageLoader) or getattr(encoder, "takes_volumes", False)
    rows = []
    for start in range(0, len(pictures.images), MEAN_SLICES):
        part = pictures.images[start : start + MEAN_SLICES]
        loaded = list(loader.expand(part)) if takes_shrunk else [encoder.load(image) for image in part]
        rows.append(encoder.encode_loaded(loaded))
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
    found = volumes[0].series or volumes[0].file
    loaded = function(found, *arguments)
    return encode_pictures(encoder, pictures_of(loaded, way, found or Path(source)))
