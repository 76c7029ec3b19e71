"""`radshot search`, `forget`, `verify`, `stats` and `backup`: what is done with a store."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    DONE,
    REFUSED,
    SOME_REFUSED,
    JsonOption,
    Refused,
    Usage,
    command,
    err,
    note,
    one_line,
    out,
    print_table,
    write_json,
)

if TYPE_CHECKING:
    from embeddings import Archive

Folder = Annotated[
    Path, typer.Argument(metavar="DIR", help="Folder of an archive or of a comparison set.", show_default=False)
]


@command
def search_command(
    archive: Annotated[Path, typer.Argument(metavar="ARCHIVE", help="The archive's folder.", show_default=False)],
    image: Annotated[
        Path | None, typer.Argument(metavar="IMAGE", help="Find what looks like this image.", show_default=False)
    ] = None,
    id: Annotated[
        str | None, typer.Option("--id", metavar="ID", help="Find what looks like this row of the archive.")
    ] = None,
    text: Annotated[str | None, typer.Option(metavar="STRING", help="Find what this sentence describes.")] = None,
    words: Annotated[
        Path | None, typer.Option(metavar="MODEL", help="With --text: folder made by radshot zeroshot fit.")
    ] = None,
    k: Annotated[int, typer.Option("-k", metavar="N", min=1, help="How many to find.")] = 10,
    where: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Search only rows whose metadata meet this.")
    ] = None,
    encoder: Annotated[str | None, typer.Option(metavar="ENC", help="The archive's encoder, if it has moved.")] = None,
    json_file: JsonOption = None,
) -> int:
    """Find the most similar images of an archive.

    The image asked about is never among the answers. The similarity is the
    cosine of the vectors: 1 for the same direction. An archive of volumes is
    asked about a NIfTI file or a folder of slices.

    \b
    Examples
      radshot search archive new.dcm -k 5
      radshot search archive --id chest/0017.png --where "modality = 'CT'"
      radshot search archive --text "large left pleural effusion" --words words
    """
    from embeddings import Archive, Index, image_identity

    from .inputs import encoder_of

    if sum(given is not None for given in (image, id, text)) != 1:
        raise Usage("Give an IMAGE, --id or --text, one of the three.")
    if (text is None) != (words is None):
        raise Usage("--text and --words go together: the model is what knows what words look like.")
    with Archive.open(archive, create=False) as held:
        if not len(held):
            raise Refused(f"The archive '{archive}' is empty: embed images into it before searching.")
        among = None if where is None else _rows_meeting(held, where)
        own: set[str] = set()
        if text is not None and words is not None:
            return _search_by_text(held, words, text, k, among, json_file)
        if image is None:
            if not held.has(id or ""):
                raise Refused(f"The archive '{archive}' has no row of id {id!r}.")
            queries, own = held.rows([id or ""])[1], {id or ""}
        elif is_volume(image):
            queries = _volume_vectors(held, image, encoder)
            own = set(held.find({"path": str(image.absolute())}))
        else:
            queries = encoder_of(held, encoder).encode([image])
            own = set(held.ids_of(image_identity(image).sha256))
        found = Index(held, metric="cosine").search(queries, k + len(own), among=among)
        best: dict[str, float] = {}
        for ids, similarities in zip(found.ids, found.similarities.tolist(), strict=True):
            for name, similarity in zip(ids, similarities, strict=True):
                if name not in own:
                    best[name] = max(similarity, best.get(name, similarity))
        names = sorted(best, key=lambda name: (-best[name], name))[:k]
        metadata, _ = held.rows(names)
    _show_found(held.path, names, [best[name] for name in names], metadata, found.version, str(image or id),
                found.exact, json_file)  # fmt: skip
    return DONE


def _search_by_text(
    held: Archive, words: Path, text: str, k: int, among: list[str] | None, json_file: Path | None
) -> int:
    """Find the images a sentence describes, by the alignment of the archive's encoder with words."""
    from embeddings import EncoderMismatch, scan
    from zeroshot import ZeroShotModel
    from zeroshot.vocabulary import said_of

    model = ZeroShotModel.load(words)
    if model.encoder != held.encoder_fingerprint:
        raise EncoderMismatch(
            f"The words in '{words}' were aligned with the encoder {model.encoder_name!r}, and the archive "
            f"'{held.path}' was made with another: fit them with that one (`radshot zeroshot fit`)."
        )
    wanted = model.text_vectors([text])
    missing = model.unknown_words([text])[0][0]
    if missing:
        note(f"not known, and so not looked for: {said_of(model.text_encoder, missing)}")
    found = scan(held, lambda rows: model.shared.scores(rows, wanted)[:, 0], k, among=among)
    metadata, _ = held.rows(list(found.ids))
    _show_found(held.path, found.ids, found.scores, metadata, found.version, text, True, json_file)
    return DONE


def _show_found(
    archive: Path,
    names: Sequence[str],
    similarities: Sequence[float],
    metadata: Sequence[Mapping[str, Any]],
    version: int,
    query: str,
    exact: bool,
    json_file: Path | None,
) -> None:
    """Print what was found, and write it for a program."""
    rows = [
        {"id": name, "similarity": similarity, "metadata": dict(facts)}
        for name, similarity, facts in zip(names, similarities, metadata, strict=True)
    ]
    print_table(
        ("similarity", "patient", "label", "id", "path"),
        [
            (
                f"{row['similarity']:.3f}",
                _shown(facts.get("patient")),
                _shown(facts.get("label")),
                row["id"],
                _shown(facts.get("path")),
            )
            for row, facts in zip(rows, metadata, strict=True)
        ],
        numbers=("similarity",),
    )
    write_json(
        json_file,
        {"archive": str(archive), "version": version, "query": query, "exact": exact, "results": rows},
    )


def is_volume(path: Path) -> bool:
    """Whether a path names a volume: a NIfTI file, or a folder of slices."""
    return path.is_dir() or path.name.lower().endswith((".nii", ".nii.gz"))


def _volume_vectors(held: Archive, path: Path, encoder: str | None) -> Any:
    """The vectors of a volume, made as those of the archive were."""
    from embeddings import encode_volume

    from .inputs import encoder_of

    way: Any = next(iter(held.value_counts("way")), None)
    if way is None:
        raise Refused(
            f"'{path}' is a folder or a NIfTI volume, and the archive '{held.path}' holds no volumes: give an image."
        )
    return encode_volume(encoder_of(held, encoder), path, way=way)


def _rows_meeting(held: Archive, where: str) -> list[str]:
    """Ids of the rows whose metadata meet a condition."""
    from episodes import rows_where

    snapshot = held.snapshot()
    table = held.table()
    # A manifest's `Patient` stands beside radshot's own `patient`, which wins: filters do not tell capitals apart.
    twins = [name for name in table.columns if name != name.lower() and name.lower() in table.columns]
    mask = rows_where(table.drop(columns=twins), where)
    among = [name for name, take in zip(snapshot.ids, mask, strict=True) if take]
    if not among:
        raise Refused(f"No row of the archive '{held.path}' meets {where!r}.")
    return among


def _shown(value: object) -> str:
    return "" if value is None else str(value)


@command
def forget_command(
    folder: Folder,
    id: Annotated[str | None, typer.Option("--id", metavar="ID", help="Forget one image.")] = None,
    patient: Annotated[str | None, typer.Option(metavar="ID", help="Forget every image of a patient.")] = None,
    json_file: JsonOption = None,
) -> int:
    """Remove an image or a patient for good.

    Later answers equal never having had it, and its bytes are erased from the
    store. Backups made earlier, and the image files themselves, are not touched.

    \b
    Examples
      radshot forget cases --patient p2
      radshot forget archive --id chest/0017.png
    """
    from embeddings import Archive, ArchiveError
    from fewshot import ComparisonSet

    if (id is None) == (patient is None):
        raise Usage("Give --id or --patient, one of the two.")
    with Archive.open(folder, create=False) as held:
        ids, withdrawn = None if id is None else [id], 0
        if held.kind == "comparison set":
            removed, withdrawn = ComparisonSet(held).forget(ids=ids, patient=patient)
        else:
            removed = held.remove(ids=ids, patient=patient)
        problem = None
        try:
            held.purge()
        except ArchiveError as error:  # they are forgotten all the same: no later answer knows them
            problem = str(error)
        left = len(held)
    out.print(f"{folder}: forgot {len(removed):,} image(s), {left:,} left")
    if withdrawn:
        note(f"{withdrawn} deployment(s) had used them, and will be fitted again without.")
    if not removed:
        note("Only refused files named this patient; what was kept about them is gone too.")
    if problem is None:
        note("Backups made earlier still hold them.")
    else:
        err.print(f"Their bytes are still on the disk, and the next forget tries again: {problem}", color="yellow")
    result = {
        "removed": list(removed),
        "left": left,
        "erased": problem is None,
        "deployments_withdrawn": withdrawn,
    }
    write_json(json_file, result)
    return DONE if problem is None else SOME_REFUSED


@command
def verify_command(folder: Folder, json_file: JsonOption = None) -> int:
    """Read everything again and say what is damaged.

    Exit code 3 means damage: restore a backup, or embed the images anew.

    \b
    Example
      radshot verify archive
    """
    from embeddings import Archive, ArchiveCorrupt

    try:
        with Archive.open(folder, create=False) as held:
            result = dataclasses.asdict(held.verify())
    except ArchiveCorrupt as error:
        result = {"ok": False, "problems": [str(error)], "notes": [], "version": 0, "rows": 0, "segments": 0}
    for problem in result["problems"]:
        out.print(f"problem: {one_line(problem)}", color=typer.colors.RED)
    for remark in result["notes"]:
        note(remark)
    out.print(
        f"{folder}: {'sound' if result['ok'] else 'DAMAGED'}; version {result['version']}, {result['rows']:,} rows in "
        f"{result['segments']:,} segments checked"
    )
    write_json(json_file, result)
    return DONE if result["ok"] else REFUSED


@command
def stats_command(folder: Folder, json_file: JsonOption = None) -> int:
    """Say what an archive or a comparison set holds.

    \b
    Example
      radshot stats cases
    """
    from embeddings import Archive

    with Archive.open(folder, create=False) as held:
        result: dict[str, Any] = {**held.stats(), "encoder_spec": held.encoder_spec}
        result["labels"] = held.value_counts("label")
    width = max(len(key) for key in result)
    for key, value in result.items():
        if key != "labels":
            out.print(f"{key:<{width}}  {one_line(_shown(value))}")
    if result["labels"]:
        out.print()
        print_table(("images", "label"), [(n, label) for label, n in result["labels"].items()], numbers=("images",))
    write_json(json_file, result)
    return DONE


@command
def backup_command(
    folder: Folder,
    to: Annotated[Path, typer.Argument(metavar="TO", help="A new folder for the copy.", show_default=False)],
    json_file: JsonOption = None,
) -> int:
    """Copy the newest version whole, even while others write.

    \b
    Example
      radshot backup cases /safe/cases-2024-05-01
    """
    from embeddings import Archive

    with Archive.open(folder, create=False) as held:
        written = held.backup(to)
    with Archive.open(written) as copy:
        rows = len(copy)
    out.print(f"{written}: {rows:,} rows")
    write_json(json_file, {"backup": str(written), "rows": rows})
    return DONE
