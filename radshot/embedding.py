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
    note,
    out,
    refused_json,
    write_json,
)

if TYPE_CHECKING:
    from embeddings import Encoder, IngestReport, Record

#: How volumes are embedded, and how vectors are computed.
WAYS, PRECISIONS = ("slices", "planes", "mean", "3d"), ("auto", "float32", "bfloat16")
#: Images of another view that are named one by one, at most.
MAX_ODD = 10
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
    volumes: Annotated[
        str | None,
        typer.Option(metavar="WAY", help="Embed CT and MR series and NIfTI files: slices, planes, mean or 3d."),
    ] = None,
    window: Annotated[
        str | None, typer.Option(metavar="NAME", help="See CT through this window: lung, brain ... or CENTRE,WIDTH.")
    ] = None,
    deidentify: Annotated[
        Path | None,
        typer.Option(metavar="KEYFILE", help="Store pseudonyms made with this key; the file is made if missing."),
    ] = None,
    keep: Annotated[
        list[str] | None, typer.Option(metavar="COLUMN", help="With --deidentify: keep this column of the table.")
    ] = None,
    precision: Annotated[
        str, typer.Option(metavar="TYPE", help="auto, float32 or bfloat16; checked against float32.")
    ] = "auto",
    workers: Annotated[
        int | None, typer.Option(metavar="N", min=0, help="Decoding processes; 0 decodes without limits.")
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
    with a reason (radshot quarantine lists them later), and the counts add up.

    \b
    Examples
      radshot embed scans/ --encoder enc --archive archive
      radshot embed --manifest scans.csv --group patient \\
          --where "modality = 'CT'" --encoder enc --archive archive
      radshot embed ct/ --volumes planes --window lung --encoder enc \\
          --archive volumes
      radshot embed export/ --deidentify key --encoder enc --archive archive
      radshot embed --reembed --encoder new-enc --archive archive
    """
    from embeddings import Archive, Deidentifier, embed_archive

    from .inputs import open_encoder

    if not sources and manifest is None and not reembed:
        raise Usage("Name at least one SOURCE, or a table with --manifest.")
    if drop_missing and not reembed:
        raise Usage("--drop-missing goes with --reembed.")
    if keep and deidentify is None:
        raise Usage("--keep goes with --deidentify.")
    if volumes is not None and (manifest is not None or reembed or deidentify is not None):
        raise Usage("--volumes goes with SOURCE only: not with --manifest, --reembed or --deidentify.")
    if precision not in PRECISIONS:
        raise Usage(f"--precision is one of {', '.join(PRECISIONS)}; got {precision!r}.")
    inputs, named = _inputs(sources or [], manifest, image=image, group=group, where=where)
    chosen = open_encoder(encoder if window is None else f"{encoder}?window={window}")
    if volumes is not None:
        return _embed_volumes(sources or [], chosen, archive, way=volumes, workers=workers, json_file=json_file)
    key = None if deidentify is None else Deidentifier.from_file(deidentify, create=True, keep=keep or ())
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
        report = embed_archive(
            inputs,
            chosen,
            archive,
            manifest=named,
            batch_size=batch_size,
            workers=workers,
            deidentifier=key,
            precision=precision,  # type: ignore[arg-type]  # checked above
        )
        list_refused(report.refused)
        out.print(f"{archive}: {report}")
        _say(report, archive)
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


def _say(report: IngestReport, archive: Path) -> None:
    """What a person should know of a job: how vectors were computed, and warnings about images."""
    from embeddings import WARNINGS, Archive

    if report.precision:
        note(report.precision)
    for code, count in report.warnings.items():
        note(f"{count:,} image{'s' * (count != 1)} warned of ({code}): {WARNINGS[code]}")
    with Archive.open(archive, create=False) as held:
        odd = held.odd_views()
    for identity, sentence in list(odd.items())[:MAX_ODD]:
        note(f"{identity}: {sentence}")
    if len(odd) > MAX_ODD:
        note(f"... and {len(odd) - MAX_ODD:,} more images of another view.")


def _embed_volumes(
    sources: Sequence[Path], encoder: Encoder, archive: Path, *, way: str, workers: int | None, json_file: Path | None
) -> int:
    """`radshot embed --volumes`."""
    from embeddings import EncoderError, embed_volumes

    if not sources:
        raise Usage("Name at least one SOURCE.")
    if way not in WAYS:
        raise Usage(f"--volumes is one of {', '.join(WAYS)}; got {way!r}.")
    if getattr(encoder, "takes_volumes", False) != (way == "3d"):
        raise EncoderError(
            f"The encoder {encoder.name} takes {'volumes' if way != '3d' else 'images'}: --volumes 3d goes with an "
            "encoder like 3d:resnet18, the others with an encoder of images."
        )
    report = embed_volumes(list(sources), encoder, archive, way=way, workers=workers)  # type: ignore[arg-type]
    list_refused(report.refused)
    out.print(f"{archive}: {report}".replace(" files:", " volumes and other files:"))
    write_json(
        json_file,
        {
            **dataclasses.asdict(report),
            "duplicates": [{"image": path, "id": own} for path, own in report.duplicates],
            "refused": refused_json(report.refused),
            "archive": str(archive),
            "encoder": encoder.name,
            "encoder_fingerprint": encoder.fingerprint,
        },
    )
    return exit_code(report.seen - len(report.refused), len(report.refused))


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
