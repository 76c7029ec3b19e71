"""`radshot register` and `radshot classify`: what is done with a comparison set."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    JsonOption,
    Refused,
    Usage,
    command,
    exit_code,
    list_refused,
    note,
    one_line,
    out,
    print_table,
    refused_json,
    write_json,
)
from .embedding import ENCODER_HELP

if TYPE_CHECKING:
    from embeddings import Encoder
    from episodes import Manifest
    from fewshot.outliers import Outlier

SetFolder = Annotated[Path, typer.Argument(metavar="SET", help="The comparison set's folder.", show_default=False)]


@command
def register_command(
    folder: SetFolder,
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGE", help="Support images.", show_default=False)
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="NAME", help="The class of all the images.")] = None,
    patient: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Patient of each image in turn; repeat it.")
    ] = None,
    manifest: Annotated[Path | None, typer.Option(metavar="FILE", help="A table of support images instead.")] = None,
    label_column: Annotated[str, typer.Option(metavar="COLUMN", help="The table's label column.")] = "label",
    group: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The table's patient column; 'none' for none.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Use only rows of the table that meet this.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="ENC", help=f"Needed for a new set, remembered after that. {ENCODER_HELP}")
    ] = None,
    json_file: JsonOption = None,
) -> int:
    """Add labelled support images to a comparison set.

    A new label makes a new class; nothing is trained. Images that cannot be
    taken are listed with a reason and the others are stored, in one step.
    A DICOM file brings its own patient; --patient says it for others.

    \b
    Examples
      radshot register cases --encoder enc --label cyst a.png b.png \\
          --patient p1 --patient p2
      radshot register cases --manifest support.csv --label-column finding
    """
    from fewshot import ComparisonSet

    if (manifest is None) == (not images):
        raise Usage("Give IMAGE ... with --label, or --manifest, one of the two.")
    if images and not (label or "").strip():
        raise Usage("Say with --label which class the images belong to.")
    if images and patient and len(patient) != len(images):
        raise Usage(f"--patient repeats once per image, in order: {len(images)} images, {len(patient)} patients.")
    if where is not None and manifest is None:
        raise Usage("--where filters the rows of a table: name one with --manifest.")
    table = None if manifest is None else _read_support(manifest, label_column, group, where)
    chosen = _encoder_for(folder, encoder)
    paths = list(images or []) if table is None else list(table.images)
    refused_all = _none_readable(folder, chosen, paths)
    if refused_all:
        list_refused(refused_all)
        raise Refused(f"None of the {len(paths):,} images could be registered, and no set was made.")
    with ComparisonSet.open(folder, encoder=chosen) as cases:
        before = set(cases.classes)
        if table is not None:
            done = cases.register_manifest(table, on_error="report")
        else:
            done = cases.register(str(label).strip(), paths, patients=patient, on_error="report")
        shots = cases.shots
        unknown = sum(owner is None for owner in cases.patients)
    list_refused(done.refused)
    _note_new_classes(before, set(shots))
    for image in done.outliers:
        note(f"{one_line(image.id)} may not be {one_line(image.label)!r}. {one_line(image.reason)}")
    if unknown:
        note(
            f"{unknown:,} image(s) of the set have no patient: each counts as a shot of its own, and --patient cannot "
            "forget them."
        )
    out.print(
        f"{folder}: {len(done.registered):,} registered, {len(done.duplicates):,} already there, "
        f"{len(done.refused):,} refused"
    )
    print_table(("patients", "class"), [(count, name) for name, count in shots.items()], numbers=("patients",))
    result = {
        "registered": list(done.registered),
        "duplicates": list(done.duplicates),
        "refused": refused_json(done.refused),
        "outliers": [outlier_json(image) for image in done.outliers],
        "outlier_scores": dict(done.outlier_scores),
        "shots": shots,
    }
    write_json(json_file, result)
    return exit_code(len(done.registered) + len(done.duplicates), len(done.refused))


def outlier_json(image: Outlier) -> dict[str, Any]:
    """One support image's fit as plain values; `suspected` is the class it looks like, where it looks like one."""
    return {
        "id": image.id,
        "label": image.label,
        "score": image.score,
        "p_value": image.p_value,
        "suspected": image.nearest_class,
        "evidence": [{"id": n.id, "label": n.label, "similarity": n.similarity} for n in image.evidence],
        "reason": image.reason,
    }


def _read_support(path: Path, label: str, group: str | None, where: str | None) -> Manifest:
    from .inputs import read_manifest

    table = read_manifest(path, label=label, group=group, where=where)
    if table.multilabel:
        raise Refused(f"A support image has one class, and some rows of {path.name} have several in {label!r}.")
    return table


def _encoder_for(folder: Path, given: str | None) -> Encoder:
    """The encoder to register with: an old set remembers its own, a new one needs to be told."""
    from embeddings import Archive

    from .inputs import encoder_of, open_encoder

    if given is not None:
        return open_encoder(given)
    if not Archive.exists(folder):
        raise Refused(f"There is no comparison set at '{folder}'; name an encoder with --encoder to make one.")
    with Archive.open(folder) as archive:
        return encoder_of(archive, None)


def _none_readable(folder: Path, encoder: Encoder, images: Sequence[Path]) -> list[tuple[str, str]]:
    """Every image with its reason if a new set would stay empty; it is then not made."""
    from embeddings import Archive, ImageError

    if Archive.exists(folder):
        return []
    refused = []
    for image in images:
        try:
            encoder.load(image)
        except ImageError as error:
            refused.append((error.source, error.reason))
        else:
            return []
    return refused


def _note_new_classes(before: set[str], after: set[str]) -> None:
    """A new class in a set that has others may be a slip of the keyboard."""
    for name in sorted(after - before) if before else ():
        spelt = {other.lower(): other for other in before}
        close = difflib.get_close_matches(name.lower(), spelt, n=1, cutoff=0.75)
        hint = f" Did you mean {spelt[close[0]]!r}?" if close else ""
        note(f"{one_line(name)!r} is a new class.{hint}")
