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

from embeddings import EncoderError, ImageError, load_encoder
from episodes import Manifest

from .console import Refused, Usage, note

if TYPE_CHECKING:
    from embeddings import Archive, Encoder

#: Columns taken for the patient where `--group` does not name one.
PATIENT_COLUMNS = ("patient", "patient_id", "split_group")
#: Joins columns into one label: `--label location+modality`.
JOINT = "+"
#: Threads that decode images; the decoders release the interpreter's lock.
DECODERS = 4
#: Stands between the parts of a joint label.
JOINT_TEXT = " / "
#: Files that are read as a table of images.
TABLE_SUFFIXES = (".csv", ".parquet", ".pq")
#: Why an image whose vector cannot be compared is refused.
NOT_FINITE = "its vector holds NaN or infinity"
#: What may stand before a path in an encoder's spec.
SPEC_PREFIXES = ("hf:", "vectors:")


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
    paths: Sequence[Path],
    *,
    labels: Sequence[str] | None,
    group: str | None,
    where: str | None,
    image: str = "image",
) -> Labelled:
    """Read manifests and put them together; patients of different manifests stay different.

    Args:
        paths: CSV or Parquet files.
        labels: One label column for all, or one for each; columns joined by `+` make one label of several. None reads
            no labels, and gives every image an empty one.
        group: The patient column; by default the first of `PATIENT_COLUMNS` that is there, "none" for none.
        where: A condition on the columns, for all of them.
        image: The column of image paths.

    Returns:
        Images, labels and patients, aligned.

    Raises:
        Usage: The number of label columns fits neither.
        ManifestError: What is wrong with a table.
    """
    if labels is not None and len(labels) not in (1, len(paths)):
        raise Usage(f"{len(paths)} manifests take one --label, or {len(paths)}; got {len(labels)}.")
    columns: Sequence[str | None] = [None] * len(paths)
    if labels is not None:
        columns = list(labels) * len(paths) if len(labels) == 1 else labels
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
        for label in manifest.labels if labels is not None else [""] * len(manifest.images):
            all_sets.append(label if isinstance(label, tuple) else (label,))
            all_labels.append("" if isinstance(label, tuple) else label)
        owners = manifest.groups if manifest.groups is not None else [f"image {path}" for path in manifest.images]
        groups += [f"{number}: {owner}" if several else owner for owner in owners]
    known = [manifest.groups is not None for manifest in manifests]
    if any(known) and not all(known):
        named, unnamed = manifests[known.index(True)].source, manifests[known.index(False)].source
        raise Refused(
            f"{named} says whose its images are and {unnamed} does not: name the patient column with --group, or give "
            f"--group none to count every image as a patient of its own."
        )
    return Labelled(images, all_sets if multilabel else all_labels, groups if all(known) else None, tuple(manifests))


def read_manifest(
    path: Path, *, label: str | None, group: str | None, where: str | None = None, image: str = "image"
) -> Manifest:
    """Read one manifest; see `read_manifests`."""
    bare = Manifest.read(path, label=None, group=None, image=image, where=where)
    column = group
    if group is None:
        column = patient_column(bare)
        note(
            f"{path.name}: patients from column '{column}'."
            if column
            else f"{path.name}: no patient column was found, so every image counts as a patient of its own; "
            "name the column with --group."
        )
    elif group == "none":
        column = None
    table = bare.table
    if label is not None and label not in table.columns and JOINT in label:
        table = table.copy()
        table[label] = _joint(bare, label.split(JOINT))
    return _without_repeats(Manifest(table, bare.folder, label=label, group=column, image=image, source=path.name))


def patient_column(manifest: Manifest) -> str | None:
    """The first known patient column without a gap, else the first that is not wholly empty, else None."""
    gaps = {}
    for name in PATIENT_COLUMNS:
        if name in manifest.table.columns:
            cells = manifest.table[name]
            gaps[name] = int((cells.isna() | (cells.astype(str).str.strip() == "")).sum())
    complete = next((name for name, count in gaps.items() if not count), None)
    passed = [name for name, count in gaps.items() if 0 < count < len(manifest)]
    if passed:
        note(f"{manifest.source}: column {passed[0]!r} is empty in {gaps[passed[0]]:,} of {len(manifest):,} rows.")
    return complete or next((name for name, count in gaps.items() if count < len(manifest)), None)


def _without_repeats(manifest: Manifest) -> Manifest:
    """Leave out rows that say the same of the same file again; refuse those that say something else of it."""
    again: set[int] = set()
    for first, row in manifest.duplicates:
        for what, values in (("patients", manifest.groups), ("labels", manifest.labels)):
            if values and values[first] != values[row]:
                joined = "; join its labels by '|' in one row" if what == "labels" else ""
                raise Refused(
                    f"{manifest.source} lists {manifest.images[row].name} with two {what}, {values[first]!r} and "
                    f"{values[row]!r} (rows {first + 1} and {row + 1}){joined}."
                )
        again.add(row)
    if not again:
        return manifest
    note(f"{manifest.source}: {len(again):,} row(s) repeat a file and are left out.")
    return manifest.take([row for row in range(len(manifest)) if row not in again])


def _joint(manifest: Manifest, columns: Sequence[str]) -> list[str]:
    """One label made of several columns; empty, and so refused by row, where one of its parts is."""
    parts = []
    for column in columns:
        single = Manifest(  # says which column is missing
            manifest.table,
            manifest.folder,
            label=column,
            image=manifest.image_column,
            source=manifest.source,
            allow_unlabelled=True,
        )
        if single.multilabel:
            raise Usage(
                f"Column {column!r} of {manifest.source} holds several labels of an image, which cannot be joined."
            )
        parts.append(["" if label is None else label for label in single.labels])
    return [JOINT_TEXT.join(row) if all(row) else "" for row in zip(*parts, strict=True)]


def is_table(path: Path) -> bool:
    """Whether a source is a table of images rather than an image or a folder."""
    return path.suffix.lower() in TABLE_SUFFIXES and not path.is_dir()


def lasting_spec(spec: str) -> str:
    """A spec that still means the same in another working folder: a path becomes absolute."""
    prefix = next((prefix for prefix in SPEC_PREFIXES if spec.startswith(prefix)), "")
    path = Path(spec.removeprefix(prefix))
    return f"{prefix}{path.absolute()}" if path.exists() and path != Path() else spec


def open_encoder(spec: str) -> Encoder:
    """An encoder by its spec; a folder's checkpoint, `hf:...`, `pixels-32`, `hog-64` or `untrained:...`."""
    encoder: Encoder = load_encoder(lasting_spec(spec))
    return encoder


def check_heads(names: Sequence[str]) -> None:
    """Refuse the names of heads that there are not.

    Raises:
        Usage: With the nearest name that there is.
    """
    from fewshot import HEADS, make_head

    for name in names:
        if name not in HEADS:
            try:
                make_head(name)
            except ValueError as error:
                raise Usage(str(error)) from None


def encoder_of(archive: Archive, given: str | None) -> Encoder:
    """The encoder an archive was made with, from where it was then or from where the user says it is now.

    Raises:
        Refused: It is no longer where it was.
        EncoderMismatch: What is there now is another encoder.
    """
    spec = given or archive.encoder_spec
    if spec is None:
        raise Refused(f"'{archive.path}' does not know where its encoder is: name it with --encoder.")
    try:
        encoder = open_encoder(spec)
    except EncoderError as error:
        if given is not None:
            raise
        raise Refused(
            f"The encoder of '{archive.path}' cannot be loaded from {spec}: name it with --encoder ({error})"
        ) from None
    archive.check_encoder(encoder)
    return encoder


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
    """
    parts: list[NDArray[np.float32]] = [np.empty((0, encoder.dim), dtype=np.float32)]
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
    vectors = np.concatenate(parts)
    finite = np.asarray(np.isfinite(vectors).all(axis=1), dtype=np.bool_)
    refused += [(str(images[kept[i]]), NOT_FINITE) for i in np.flatnonzero(~finite)]
    return vectors[finite], [kept[i] for i in np.flatnonzero(finite)], refused


def _load(encoder: Encoder, image: Path) -> tuple[NDArray[np.float32] | None, str]:
    try:
        return encoder.load(image), ""
    except ImageError as error:
        return None, error.reason
