"""`radshot register` and `radshot classify`: what is done with a comparison set."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from embeddings import Archive, load_encoder
from episodes import Decision

from .archives import encoder_of
from .console import JsonOption, Refused, Usage, command, exit_code, list_refused, out, write_json
from .inputs import encode_readable, lasting_spec, read_manifest

SetFolder = Annotated[Path, typer.Argument(metavar="SET", help="The comparison set's folder.", show_default=False)]


@command
def register_command(
    folder: SetFolder,
    images: Annotated[
        list[Path] | None, typer.Argument(metavar="IMAGE ...", help="Support images.", show_default=False)
    ] = None,
    label: Annotated[str | None, typer.Option(metavar="NAME", help="The class of all the images.")] = None,
    patient: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Patient of each image in turn; repeat it.")
    ] = None,
    manifest: Annotated[Path | None, typer.Option(metavar="FILE", help="A table of support images instead.")] = None,
    label_column: Annotated[str, typer.Option(metavar="COLUMN", help="The table's label column.")] = "label",
    group: Annotated[str | None, typer.Option(metavar="COLUMN", help="The table's patient column.")] = None,
    where: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Use only rows of the table that meet this.")
    ] = None,
    encoder: Annotated[
        str | None, typer.Option(metavar="ENC", help="Needed for a new set; remembered after that.")
    ] = None,
    json_file: JsonOption = None,
) -> int:
    """Add labelled support images to a comparison set; a new label makes a new class. Nothing is trained.

    Images that cannot be taken are listed with a reason and the others are stored, in one step.
    """

    if (manifest is None) == (not images):
        raise Usage("Give IMAGE ... with --label, or --manifest, one of the two.")
    if images and label is None:
        raise Usage("Say with --label which class the images belong to.")
    if images and patient and len(patient) != len(images):
        raise Usage(f"--patient repeats once per image, in order: {len(images)} images, {len(patient)} patients.")
    table = None if manifest is None else read_manifest(manifest, label=label_column, group=group, where=where)
    with open_set(folder, encoder) as cases:
        if table is not None:
            done = cases.register_manifest(table, on_error="report")
        else:
            done = cases.register(str(label), list(images or []), patients=patient, on_error="report")
        shots = cases.shots
    list_refused(done.refused)
    out.print(
        f"{folder}: {len(done.registered):,} registered, {len(done.duplicates):,} already there, "
        f"{len(done.refused):,} refused"
    )
    for name, count in shots.items():
        out.print(f"  {count:>4} shot(s)  {name}", markup=False)
    result = {
        "registered": list(done.registered),
        "duplicates": list(done.duplicates),
        "refused": [{"image": name, "reason": reason} for name, reason in done.refused],
        "shots": shots,
    }
    write_json(json_file, result)
    return exit_code(len(done.registered) + len(done.duplicates), len(done.refused))


@command
def classify_command(
    folder: SetFolder,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE ...", help="Images to ask about.", show_default=False)],
    head: Annotated[
        str, typer.Option(metavar="NAME", help="How to decide: prototypes, nearest, neighbors, ...")
    ] = "prototypes",
    encoder: Annotated[str | None, typer.Option(metavar="ENC", help="The set's encoder, if it has moved.")] = None,
    json_file: JsonOption = None,
) -> int:
    """Ask a comparison set about images: the label, how clear it is, and the support images that spoke for it.

    The score is a similarity, not a probability; a probability is given only by a calibrated deployment.
    """
    from fewshot import ComparisonSet, make_head

    try:
        make_head(head)
    except ValueError as error:
        raise Usage(str(error)) from None
    with Archive.open(folder) as archive:
        cases = ComparisonSet.open(folder)
        snapshot = cases.snapshot
        cases.close()
        if not len(snapshot):
            raise Refused(f"The comparison set '{folder}' is empty: register at least one image before asking.")
        chosen = encoder_of(archive, encoder)
    vectors, kept, refused = encode_readable(chosen, images)
    labels = [str(row["label"]) for row in snapshot.metadata]
    patients = [row.get("patient") for row in snapshot.metadata]
    classifier = make_head(head, center=chosen.source_mean)
    classifier.fit(snapshot.vectors, labels, ids=snapshot.ids, groups=patients)
    decisions = dict(zip(kept, classifier.decide(vectors), strict=True))
    reasons = dict(refused)
    _print_decisions(images, decisions)
    list_refused(refused)
    answers = [
        answer(image, decisions[i])
        if i in decisions
        else {"image": str(image), "label": None, "error": reasons[str(image)]}
        for i, image in enumerate(images)
    ]
    write_json(json_file, answers)
    return exit_code(len(decisions), len(refused))


def open_set(folder: Path, encoder: str | None) -> Any:
    """Open a comparison set for registration; a new one needs an encoder, an old one remembers its own."""
    from fewshot import ComparisonSet

    if encoder is not None:
        return ComparisonSet.open(folder, encoder=load_encoder(lasting_spec(encoder)))
    if not folder.exists():
        raise Refused(f"There is no comparison set at '{folder}'; name an encoder with --encoder to make one.")
    with Archive.open(folder) as archive:
        chosen = encoder_of(archive, None)
    return ComparisonSet.open(folder, encoder=chosen)


def answer(image: Path, decision: Decision) -> dict[str, Any]:
    """One decision as plain values."""

    def neighbours(found: Any) -> list[dict[str, Any]]:
        return [{"id": n.id, "label": n.label, "similarity": n.similarity} for n in found]

    return {
        "image": str(image),
        "label": decision.label,
        "score": decision.score,
        "probability": decision.probability,
        "margin": decision.margin,
        "reason": decision.reason,
        "evidence": neighbours(decision.evidence),
        "runner_up": decision.runner_up,
        "counter_evidence": neighbours(decision.counter_evidence),
    }


def _print_decisions(images: list[Path], decisions: dict[int, Decision]) -> None:
    table = Table("image", "label", "score", "margin", "nearest support", "runner-up")
    for i, decision in decisions.items():
        nearest = decision.evidence[0] if decision.evidence else None
        table.add_row(
            str(images[i]),
            "none of these" if decision.label is None else str(decision.label),
            "" if decision.score is None else f"{decision.score:.3f}",
            "" if decision.margin is None else f"{decision.margin:.3f}",
            "" if nearest is None else f"{nearest.id} ({nearest.similarity:.3f})",
            "" if decision.runner_up is None else str(decision.runner_up),
        )
    out.print(table)
