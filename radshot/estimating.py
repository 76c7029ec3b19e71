"""`radshot estimate`: the accuracy a comparison set lets one expect on patients to come."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .console import DONE, JsonOption, Refused, check_target, command, note, out, print_table, write_json, write_text
from .manifest_options import HEAD_HELP
from .sets import SetFolder

if TYPE_CHECKING:
    from embeddings import Encoder
    from fewshot import ComparisonSet, Words
    from fewshot.estimate_report import Estimate

#: Support images named as hard.
SHOWN_IMAGES = 5


@command
def estimate_command(
    folder: SetFolder,
    head: Annotated[
        str | None,
        typer.Option(metavar="NAME", help=f"By default the deployment's, else the one auto chooses. {HEAD_HELP}"),
    ] = None,
    repeats: Annotated[int, typer.Option(metavar="N", min=1, help="Repeats of the cross-validation.")] = 20,
    folds: Annotated[int, typer.Option(metavar="N", min=2, help="Folds of each repeat; few are best.")] = 2,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the folds.")] = 0,
    encoder: Annotated[str | None, typer.Option(metavar="ENC", help="The set's encoder, if it has moved.")] = None,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the estimate as Markdown.")] = None,
    json_file: JsonOption = None,
) -> int:
    """Say what accuracy to expect, from the set alone.

    Patients of the set are left out in turn and asked about, so nothing but
    the set is needed. The interval is for patients to come, and wide where
    there are few. Said too: which class needs more patients, which are taken
    for each other, and which support images are mostly answered wrongly.

    \b
    Examples
      radshot estimate cases
      radshot estimate cases --head nearest --markdown estimate.md
    """
    from fewshot import ComparisonSet, make_head
    from fewshot.estimation import estimate

    from .inputs import check_heads, encoder_of

    if markdown is not None:
        check_target(markdown, "--markdown")
    check_heads([] if head is None else [head])
    with ComparisonSet.open(folder) as cases:
        snapshot = cases.snapshot
        if not len(snapshot):
            raise Refused(f"The comparison set '{folder}' is empty: register images of two classes before asking.")
        chosen = encoder_of(cases.archive, encoder)
        name, words = _head_of(cases, chosen, head)
        unseen = sorted(set(words.priors) - set(cases.classes)) if words is not None else []
        if words is not None and unseen:
            note(f"estimated among the registered classes; known by words only, and left out: {', '.join(unseen)}")
            words = replace(words, priors={name: words.priors[name] for name in words.priors if name not in unseen})
    try:
        make_head(
            name, center=chosen.source_mean, similarity=chosen.similarity, source=chosen.source_statistics, words=words
        )
        found = estimate(
            snapshot.vectors,
            [str(row["label"]) for row in snapshot.metadata],
            ids=snapshot.ids,
            groups=[row.get("patient") for row in snapshot.metadata],
            make_head=partial(
                make_head,
                name,
                center=chosen.source_mean,
                similarity=chosen.similarity,
                source=chosen.source_statistics,
                words=words,
            ),
            n_repeats=repeats,
            n_folds=folds,
            seed=seed,
        )
    except ValueError as error:
        raise Refused(str(error)) from None
    found = replace(found, head=name)
    _print_estimate(found)
    result = {
        "set": str(folder),
        "version": snapshot.version,
        "encoder": chosen.name,
        "encoder_fingerprint": chosen.fingerprint,
        **found.to_dict(),
    }
    write_json(json_file, result)
    if markdown is not None:
        write_text(markdown, found.to_markdown())
    return DONE


def _head_of(cases: ComparisonSet, encoder: Encoder, head: str | None) -> tuple[str, Words | None]:
    """The head asked for, the deployment's, or the one that answers without; and the words it decides by."""
    from fewshot import AutoClassifier, has_deployment, open_deployment
    from fewshot.registry import WORDS_HEAD

    if head is None and has_deployment(cases):
        try:
            found = open_deployment(cases, encoder=encoder)
        except ValueError as error:
            raise Refused(str(error)) from None
        chosen_on_it = ", chosen on these very images, which flatters it a little" if found.fitted.head_reason else ""
        note(f"the head is that of deployment {found.number}: {found.fitted.head}{chosen_on_it}")
        return found.fitted.head, found.words
    try:
        words = cases.words if head in (None, WORDS_HEAD) else None
    except ValueError as error:
        raise Refused(str(error)) from None
    if words is not None:
        return WORDS_HEAD, words
    if head not in (None, "auto"):
        return str(head), None
    snapshot = cases.snapshot
    labels = [str(row["label"]) for row in snapshot.metadata]
    patients = [row.get("patient") for row in snapshot.metadata]
    chosen = AutoClassifier(center=encoder.source_mean).fit(snapshot.vectors, labels, ids=snapshot.ids, groups=patients)
    if chosen.choice_.trials:
        note(f"the head was chosen on these very images, which flatters it a little: {chosen.choice_.reason}")
    return chosen.choice_.name, None


def _print_estimate(found: Estimate) -> None:
    unit = "patients" if found.patients_known else "images"
    for line in str(found).splitlines():
        out.print(line)
    gains = {one.label: one for one in found.advice}
    rows = []
    for number, one in enumerate(found.per_class):
        gain = gains.get(one.label)
        rows.append(
            (
                f"{one.patients:,}",
                "-" if one.recall is None else f"{one.recall:.2f}",
                "" if one.interval is None else f"{one.interval[0]:.2f} to {one.interval[1]:.2f}",
                "" if gain is None else f"{gain.gain:+.3f} ({gain.interval[0]:+.3f} to {gain.interval[1]:+.3f})",
                one.label,
                found.taken_for(number),
            )
        )
    more = f"{found.advice[0].more} more {unit}" if found.advice else f"more {unit}"
    header = (unit, "recall", f"{100 * found.level:.0f}% interval", more, "class", "most often taken for")
    print_table(header, rows, numbers=(unit, "recall"))
    if found.hard_images:
        print_table(
            ("right", "answered", "class", "hard support image"),
            [
                (f"{one.right:.2f}", "none of these" if one.answered is None else one.answered, one.label, one.id)
                for one in found.hard_images[:SHOWN_IMAGES]
            ],
            numbers=("right",),
        )
    for warning in found.warnings:
        note(warning)
