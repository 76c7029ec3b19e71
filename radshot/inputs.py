"""From what a user types to images, labels and patients: manifests, joint labels, encoders."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from embeddings import ImageError, load_encoder
from episodes import Manifest

from .console import Refused, Usage, note

if TYPE_CHECKING:
    from embeddings import Encoder

#: Columns taken for the patient where `--group` does not name one.
PATIENT_COLUMNS = ("patient", "patient_id", "split_group")
#: Joins columns into one label: `--label location+modality`.
JOINT = "+"
#: Threads that decode images; the decoders release the interpreter's lock.
DECODERS = 4
#: Stands between the parts of a joint label.
JOINT_TEXT = " / "


@dataclass(frozen=True)
class Labelled:
    """Images with their labels and patients, from one or several manifests.

    Attributes:
        images: Absolute paths.
        labels: One label each, or a tuple where an image may have several.
        groups: Patients, or None where unknown.
        manifests: The tables, in order.
    """

    images: list[Path]
    labels: list[str] | list[tuple[str, ...]]
    groups: list[str] | None
    manifests: tuple[Manifest, ...]


def read_manifests(
    paths: Sequence[Path], *, labels: Sequence[str], group: str | None, where: str | None, image: str = "image"
) -> Labelled:
    """Read manifests and put them together; patients of different manifests stay different.

    Args:
        paths: CSV or Parquet files.
        labels: One label column for all, or one for each; columns joined by `+` make one label of several.
        group: The patient column; by default the first of `PATIENT_COLUMNS` that is there, "none" for none.
        where: A condition on the columns, for all of them.
        image: The column of image paths.

    Returns:
        Images, labels and patients, aligned.

    Raises:
        Usage: The number of label columns fits neither.
        ManifestError: What is wrong with a table.
    """
    if len(labels) not in (1, len(paths)):
        raise Usage(f"{len(paths)} manifests take one --label, or {len(paths)}; got {len(labels)}.")
    columns = list(labels) * len(paths) if len(labels) == 1 else list(labels)
    manifests = [
        read_manifest(path, label=column, group=group, where=where, image=image)
        for path, column in zip(paths, columns, strict=True)
    ]
    several = len(manifests) > 1
    multilabel = any(manifest.multilabel for manifest in manifests)
    images: list[Path] = []
    all_labels: list[str] = []
    all_sets: list[tuple[str, ...]] = []
    groups: list[str] = []
    for number, manifest in enumerate(manifests, start=1):
        images += manifest.images
        for label in manifest.labels:
            all_sets.append(label if isinstance(label, tuple) else (label,))
            all_labels.append("" if isinstance(label, tuple) else label)
        owners = manifest.groups if manifest.groups is not None else [f"image {path}" for path in manifest.images]
        groups += [f"{number}: {owner}" if several else owner for owner in owners]
    known = any(manifest.groups is not None for manifest in manifests)
    return Labelled(images, all_sets if multilabel else all_labels, groups if known else None, tuple(manifests))


def read_manifest(
    path: Path, *, label: str | None, group: str | None, where: str | None = None, image: str = "image"
) -> Manifest:
    """Read one manifest; see `read_manifests`."""
    bare = Manifest.read(path, label=None, group=None, image=image, where=where)
    column = group
    if group is None:
        column = next((name for name in PATIENT_COLUMNS if _is_filled(bare, name)), None)
        note(
            f"{path.name}: patients from column '{column}'."
            if column
            else f"{path.name}: no patient column was named; every image counts as a patient of its own."
        )
    elif group == "none":
        column = None
    table, name = bare.table, label
    if label is not None and label not in table.columns and JOINT in label:
        parts = label.split(JOINT)
        missing = [part for part in parts if part not in table.columns]
        if missing:
            Manifest(table, bare.folder, label=missing[0], image=image, source=path.name)  # raises, naming the column
        table = table.copy()
        table[label] = table[parts].astype(str).agg(JOINT_TEXT.join, axis=1)
        name = label
    return Manifest(table, bare.folder, label=name, group=column, image=image, source=path.name)


def _is_filled(manifest: Manifest, column: str) -> bool:
    return column in manifest.table.columns and bool((manifest.table[column].astype(str).str.strip() != "").all())


def open_encoder(spec: str) -> Encoder:
    """An encoder by its spec; a folder's checkpoint, `hf:...`, `pixels-32`, `hog-64` or `untrained:...`."""
    encoder: Encoder = load_encoder(spec)
    return encoder


def lasting_spec(spec: str) -> str:
    """A spec that still means the same in another working folder: a path becomes absolute."""
    path = Path(spec)
    return str(path.absolute()) if path.exists() else spec


def encode_readable(
    encoder: Encoder, images: Sequence[Path], *, batch_size: int = 64
) -> tuple[NDArray[np.float32], list[int], list[tuple[str, str]]]:
    """Embed the images that can be read and say which could not.

    Args:
        encoder: Any encoder.
        images: n files.
        batch_size: Images in memory at once.

    Returns:
        float32 (m, d), the positions of these m images, and (image, reason) of the others.

    Raises:
        Refused: None of them can be read.
    """
    parts: list[NDArray[np.float32]] = []
    kept: list[int] = []
    refused: list[tuple[str, str]] = []
    with ThreadPoolExecutor(DECODERS) as pool:
        for start in range(0, len(images), batch_size):
            loaded = []
            results = pool.map(partial(_load, encoder), images[start : start + batch_size])
            for offset, (prepared, reason) in enumerate(results):
                if prepared is None:
                    refused.append((str(images[start + offset]), reason))
                    continue
                loaded.append(prepared)
                kept.append(start + offset)
            if loaded:
                parts.append(encoder.encode_loaded(loaded))
    if not parts:
        first = f"; {refused[0][0]}: {refused[0][1]}" if refused else ""
        raise Refused(f"None of the {len(images):,} images could be read{first}.")
    return np.concatenate(parts), kept, refused


def _load(encoder: Encoder, image: Path) -> tuple[NDArray[np.float32] | None, str]:
    try:
        return encoder.load(image), ""
    except ImageError as error:
        return None, error.reason
