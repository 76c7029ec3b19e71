"""`radshot embed`, `search`, `forget`, `verify`, `stats` and `backup`: what is done to a store."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from embeddings import Archive, Index, embed_archive, image_identity, load_encoder, records_from_table
from episodes import rows_where

from .console import DONE, REFUSED, JsonOption, Refused, Usage, command, exit_code, list_refused, out, write_json
from .inputs import lasting_spec, read_manifest

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder of an archive or of a comparison set.", show_default=False)
]


@command
def embed_command(
    archive: Annotated[Path, typer.Option("--archive", metavar="DIR", help="The archive's folder; made if missing.")],
    encoder: Annotated[
        str, typer.Option(metavar="ENC", help="Folder of a trained encoder, hf:..., pixels-32, hog-64.")
    ],
    sources: Annotated[
        list[Path] | None, typer.Argument(metavar="SOURCE ...", help="Folders or image files.", show_default=False)
    ] = None,
    manifest: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A table of images; its other columns are kept as metadata.")
    ] = None,
    image: Annotated[str, typer.Option(help="The manifest's column of image paths.")] = "image",
    group: Annotated[str | None, typer.Option(help="The manifest's patient column.")] = None,
    where: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Use only rows of the manifest that meet this.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images per commit.")] = 64,
    json_file: JsonOption = None,
) -> int:
    """Embed images into an archive; run it again to take up where it stopped, or to add what is new.

    Every batch is committed before the next begins. Images already there are skipped, files that cannot be read are
    listed with a reason, and the counts add up.
    """
    if not sources and manifest is None:
        raise Usage("Name at least one SOURCE, or a table with --manifest.")
    inputs: list[Any] = list(sources or [])
    if manifest is not None:
        table = read_manifest(manifest, label=None, group=group, where=where, image=image)
        inputs += records_from_table(table.table, image_column=image, group=table.group_column, root=table.folder)
    chosen = load_encoder(lasting_spec(encoder))
    report = embed_archive(inputs, chosen, archive, batch_size=batch_size, progress=True)
    list_refused(report.refused)
    out.print(f"{archive}: {report}", markup=False)
    result = {
        **dataclasses.asdict(report),
        "refused": [{"path": path, "reason": reason} for path, reason in report.refused],
        "duplicates": [{"path": path, "id": own} for path, own in report.duplicates],
        "archive": str(archive),
        "encoder": chosen.fingerprint,
    }
    write_json(json_file, result)
    return exit_code(report.seen - len(report.refused), len(report.refused))


@command
def search_command(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="The archive's folder.", show_default=False)],
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="Find what looks like this image.", show_default=False)
    ] = None,
    id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Find what looks like this row of the archive.")
    ] = None,
    k: Annotated[int, typer.Option("-k", min=1, help="How many to find.")] = 10,
    where: Annotated[
        str | None, typer.Option(metavar="EXPR", help="""Search only rows that meet this, e.g. "modality = 'CT'".""")
    ] = None,
    encoder: Annotated[str | None, typer.Option(metavar="ENC", help="The archive's encoder, if it has moved.")] = None,
    json_file: JsonOption = None,
) -> int:
    """Find the most similar images of an archive; the row asked about is not among the answers."""
    if (image is None) == (id is None):
        raise Usage("Give an IMAGE or --id, one of the two.")
    with Archive.open(archive) as held:
        snapshot = held.snapshot()
        among = None
        if where is not None:
            mask = rows_where(held.table(), where)
            among = [name for name, take in zip(snapshot.ids, mask, strict=True) if take]
        if id is not None:
            if id not in snapshot.positions:
                raise Refused(f"The archive '{archive}' has no row of id {id!r}.")
            query, own = snapshot.vectors[[snapshot.positions[id]]], {id}
        else:
            query = encoder_of(held, encoder).encode([image])
            content = image_identity(image).sha256  # type: ignore[arg-type]
            own = {name for name, sha256 in zip(snapshot.ids, snapshot.hashes, strict=True) if sha256 == content}
        found = Index(snapshot, metric="cosine").search(query, k + len(own), among=among)
    pairs = list(zip(found.ids[0], found.similarities[0].tolist(), strict=True))
    hits = [(name, similarity) for name, similarity in pairs if name not in own][:k]
    table = Table("similarity", "id", "patient", "label")
    rows = []
    for name, similarity in hits:
        metadata = snapshot.metadata[snapshot.positions[name]]
        rows.append({"id": name, "similarity": similarity, "metadata": metadata})
        table.add_row(f"{similarity:.3f}", name, str(metadata.get("patient") or ""), str(metadata.get("label") or ""))
    out.print(table)
    write_json(
        json_file, {"archive": str(archive), "version": snapshot.version, "query": str(image or id), "results": rows}
    )
    return DONE


@command
def forget_command(
    folder: Folder,
    id: Annotated[str | None, typer.Option("--id", metavar="ID", help="Forget one image.")] = None,
    patient: Annotated[str | None, typer.Option(metavar="ID", help="Forget every image of a patient.")] = None,
    json_file: JsonOption = None,
) -> int:
    """Remove an image or a patient for good: later answers equal never having had it, and its bytes are erased.

    Backups made earlier are out of reach.
    """
    if (id is None) == (patient is None):
        raise Usage("Give --id or --patient, one of the two.")
    with Archive.open(folder) as held:
        removed = held.remove(ids=None if id is None else [id], patient=patient, purge=True)
        left = len(held)
    out.print(f"{folder}: forgot {len(removed):,} image(s), {left:,} left. Backups made earlier still hold them.")
    write_json(json_file, {"removed": list(removed), "left": left})
    return DONE


@command
def verify_command(folder: Folder, json_file: JsonOption = None) -> int:
    """Read everything again and say what does not agree with what was written."""
    with Archive.open(folder) as held:
        report = held.verify()
    for problem in report.problems:
        out.print(f"[bold red]problem[/] {problem}")
    for remark in report.notes:
        out.print(f"note {remark}")
    state = "sound" if report.ok else "DAMAGED"
    out.print(
        f"{folder}: {state}; version {report.version}, {report.rows:,} rows in {report.segments:,} segments checked"
    )
    write_json(
        json_file,
        {
            "ok": report.ok,
            "problems": list(report.problems),
            "notes": list(report.notes),
            "rows": report.rows,
            "segments": report.segments,
            "version": report.version,
        },
    )
    return DONE if report.ok else REFUSED


@command
def stats_command(folder: Folder, json_file: JsonOption = None) -> int:
    """Say what an archive or a comparison set holds."""
    with Archive.open(folder) as held:
        snapshot = held.snapshot()
        result: dict[str, Any] = {
            **held.stats(),
            "encoder": held.encoder_name,
            "encoder_fingerprint": held.encoder_fingerprint,
            "encoder_spec": held.encoder_spec,
        }
    patients = {row.get("patient") for row in snapshot.metadata}
    result["patients"] = len(patients - {None})
    result["rows_without_patient"] = sum(row.get("patient") is None for row in snapshot.metadata)
    labels = sorted({str(row["label"]) for row in snapshot.metadata if "label" in row})
    result["labels"] = {label: sum(str(row.get("label")) == label for row in snapshot.metadata) for label in labels}
    width = max(len(key) for key in result)
    for key, value in result.items():
        out.print(f"{key:<{width}}  {value}", markup=False)
    write_json(json_file, result)
    return DONE


@command
def backup_command(
    folder: Folder,
    to: Annotated[Path, typer.Argument(metavar="TO", help="A new folder for the copy.", show_default=False)],
    json_file: JsonOption = None,
) -> int:
    """Copy the newest version to a new folder, whole even while others read and write."""
    with Archive.open(folder) as held:
        written = held.backup(to)
        rows = len(held)
    out.print(f"{written}: {rows:,} rows")
    write_json(json_file, {"backup": str(written), "rows": rows})
    return DONE


def encoder_of(archive: Archive, given: str | None) -> Any:
    """The encoder an archive was made with, from where it was then or from where the user says it is now.

    Raises:
        Refused: It is no longer where it was.
        EncoderMismatch: What is there now is another encoder.
    """
    spec = given or archive.encoder_spec
    if spec is None:
        raise Refused(f"The archive '{archive.path}' does not know where its encoder is: name it with --encoder.")
    try:
        encoder = load_encoder(spec)
    except ValueError as error:
        if given is not None:
            raise
        raise Refused(
            f"The encoder of '{archive.path}' is no longer at {spec}: name it with --encoder ({error})"
        ) from None
    archive.check_encoder(encoder)
    return encoder
