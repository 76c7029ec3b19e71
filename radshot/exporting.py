"""`radshot export`: an encoder for a runtime without torch, or an archive's rows for other programs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .console import DONE, JsonOption, Refused, Usage, command, note, out, write_json

#: What an encoder and an archive are exported to.
NETWORKS, TABLES = ("onnx", "openvino"), ("parquet",)
#: Images of a folder that an exported network is checked on.
PROBE = 16


@command
def export_command(
    source: Annotated[
        Path, typer.Argument(metavar="SOURCE", help="Folder of an encoder, or of an archive.", show_default=False)
    ],
    to: Annotated[str, typer.Option("--to", metavar="FORMAT", help="onnx or openvino; parquet for an archive.")],
    target: Annotated[Path, typer.Option("--out", metavar="DIR", help="A new folder.")],
    images: Annotated[
        list[Path] | None,
        typer.Option("--images", metavar="PATH", help="Images or folders the exported network is checked on."),
    ] = None,
    json_file: JsonOption = None,
) -> int:
    """Write an encoder or an archive for other programs.

    An encoder becomes ONNX or OpenVINO, an archive Parquet.
    An exported encoder runs without torch and takes the encoder's place: its
    vectors are compared with the encoder's on the images given, and it is kept
    only if they agree. The images, reduced to what the network sees, stay with
    it. An archive becomes rows.parquet, vectors.npy and ids.json.

    \b
    Examples
      radshot export enc --to openvino --images scans --out enc-openvino
      radshot export archive --to parquet --out tables
    """
    from embeddings import Archive

    if to not in NETWORKS + TABLES:
        raise Usage(f"--to is one of {', '.join(NETWORKS + TABLES)}; got {to!r}.")
    if to in TABLES:
        if images:
            raise Usage("--images goes with an encoder, and an archive is exported without.")
        with Archive.open(source, create=False) as held:
            folder, rows = held.export(target), len(held)
        out.print(f"{folder}: {rows:,} rows")
        write_json(json_file, {"source": str(source), "format": to, "folder": str(folder), "rows": rows})
        return DONE
    from embeddings import export_encoder, records_from_folder

    from .inputs import open_encoder

    if not images:
        raise Usage("An exported encoder is checked on images: name some with --images.")
    probe = [record.path for path in images for record in records_from_folder(path)][:PROBE]
    if not probe:
        raise Refused(f"'{images[0]}' holds no image to check the export on.")
    encoder = open_encoder(str(source))
    folder = export_encoder(encoder, target, format=to, probe=probe)  # type: ignore[arg-type]  # checked above
    out.print(f"{folder}: {encoder.name} as {to}")
    note(f"Its vectors agree with the encoder's on {len(probe)} images, which are stored with it.")
    write_json(
        json_file,
        {
            "source": str(source),
            "format": to,
            "folder": str(folder),
            "encoder": encoder.name,
            "encoder_fingerprint": encoder.fingerprint,
            "probe_images": len(probe),
        },
    )
    return DONE
