"""`radshot embed`: images into an archive, and an archive to another encoder."""

from __future__ import annotations

import dataclasses
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
    out,
    refused_json,
    write_json,
)

if TYPE_CHECKING:
    from embeddings import Encoder, Record

#: The help of every option that names an encoder.
ENCODER_HELP = "Folder of a trained encoder, hf:<id or folder>, pixels-32 or hog-64."


@command
def embed_command(
    archive: Annotated[Path, typer.Option("--archive", metavar="DIR", help="The archive's folder; made if missing.")],
    encoder: Annotated[str, typer.Option(metavar="ENC", help=ENCODER_HELP)],
    sources: Annotated[
        list[Path] | None,
        typer.Argument(metavar="SOURCE", help="Folders, image files, or tables of images.", show_default=False),
    ] = None,
    manifest: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A table of images; its other columns are kept as metadata."),
    ] = None,
    image: Annotated[str, typer.Option(metavar="COLUMN", help="The table's column of image paths.")] = "image",
    group: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The table's patient column; 'none' for none.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Use only rows of the table that meet this.")
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Images per commit.")] = 64,
    reembed: Annotated[
        bool,
        typer.Option("--reembed", help="Move the archive to this encoder: embed anew all it holds, then replace it."),
    ] = False,
    drop_missing: Annotated[
        bool, typer.Option("--drop-missing", help="With --reembed: leave out rows whose image cannot be read any more.")
    ] = False,
    json_file: JsonOption = None,
) -> int:
    """Embed images into an archive; what is there is skipped.

    Every batch is committed before the next begins, so that the same command
    takes up where a stopped one left off. Files that cannot be read are listed
    with a reason, and the counts add up.

    \b
    Examples
      radshot embed scans/ --encoder enc --archive archive
      radshot embed --manifest scans.csv --group patient \\
          --where "modality = 'CT'" --encoder enc --archive archive
      radshot embed --reembed --encoder new-enc --archive archive
    """
    from embeddings import Archive, embed_archive

    from .inputs import open_encoder

    if not sources and manifest is None and not reembed:
        raise Usage("Name at least one SOURCE, or a table with --manifest.")
    if drop_missing and not reembed:
        raise Usage("--drop-missing goes with --reembed.")
    inputs, named = _inputs(sources or [], manifest, image=image, group=group, where=where)
    chosen = open_encoder(encoder)
    wanted = inputs is not None or named is not None
    if wanted and Archive.exists(archive):  # found out before anything is embedded anew
        with Archive.open(archive) as held:
            held.check_kind("archive")
    refused: list[tuple[str, str]] = []
    renewed = 0
    if reembed:
        renewed, refused = _renew(archive, chosen, batch_size=batch_size, drop_missing=drop_missing)
        list_refused(refused)
        if refused and not drop_missing:
            raise Refused(
                f"'{archive}' stays as it is: {len(refused):,} of its images cannot be embedded anew; bring their "
                "files back, or leave them out with --drop-missing."
            )
        out.print(f"{archive}: {renewed:,} rows embedded anew, {len(refused):,} dropped")
    result: dict[str, Any] = {}
    seen = renewed
    if wanted:
        report = embed_archive(inputs, chosen, archive, manifest=named, batch_size=batch_size)
        list_refused(report.refused)
        out.print(f"{archive}: {report}")
        refused += report.refused
        seen += report.seen - len(report.refused)
        result = {
            **dataclasses.asdict(report),
            "duplicates": [{"image": path, "id": own} for path, own in report.duplicates],
        }
    write_json(
        json_file,
        {
            **result,
            **({"reembedded": renewed} if reembed else {}),
            "refused": refused_json(refused),
            "archive": str(archive),
            "encoder": chosen.name,
            "encoder_fingerprint": chosen.fingerprint,
        },
    )
    return exit_code(seen, len(refused))


def _inputs(
    sources: Sequence[Path], manifest: Path | None, *, image: str, group: str | None, where: str | None
) -> tuple[list[Path | Record] | None, list[Record] | None]:
    """The sources to embed, tables among them read to records; and the manifest's records, None without one."""
    from embeddings import records_from_table

    from .inputs import is_table, patient_column, read_manifest

    def rows_of(path: Path) -> Sequence[Record]:
        table = read_manifest(path, label=None, group=group or "none", where=where, image=image)
        column = patient_column(table) if group is None else table.group_column  # a gap here is an unknown patient
        return records_from_table(table.table, image_column=image, group=column, root=table.folder)

    if where is not None and manifest is None and not any(map(is_table, sources)):
        raise Usage("--where filters the rows of a table: name one with --manifest.")
    named = None if manifest is None else list(rows_of(manifest))
    listed: list[Path | Record] = []
    for path in sources:
        listed += rows_of(path) if is_table(path) else [path]
    return listed or None, named


def _renew(
    archive: Path, encoder: Encoder, *, batch_size: int, drop_missing: bool
) -> tuple[int, list[tuple[str, str]]]:
    """Rows embedded anew, and the images that could not be."""
    from embeddings import reembed_archive

    report = reembed_archive(archive, encoder, batch_size=batch_size, drop_missing=drop_missing)
    return report.rows, list(report.refused)
