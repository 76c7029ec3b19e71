"""`radshot deploy` and `radshot deployments`: what answers in earnest, made, listed and rolled back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    DONE,
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
from .manifest_options import HEAD_HELP
from .sets import SetFolder

if TYPE_CHECKING:
    from fewshot import ComparisonSet, Deployment

#: What `--none-of-these` takes for "never".
NEVER = "never"


@command
def deploy_command(
    folder: SetFolder,
    head: Annotated[str, typer.Option(metavar="NAME", help=HEAD_HELP)] = "auto",
    calibration: Annotated[
        Path | None,
        typer.Option(metavar="MANIFEST", help="Set these labelled images aside to calibrate on; of other patients."),
    ] = None,
    label_column: Annotated[str, typer.Option(metavar="COLUMN", help="The manifest's label column.")] = "label",
    group: Annotated[
        str | None, typer.Option(metavar="COLUMN", help="The manifest's patient column; 'none' for none.")
    ] = None,
    where: Annotated[
        str | None, typer.Option(metavar="EXPR", help="Use only rows of the manifest that meet this.")
    ] = None,
    calibrate_on: Annotated[
        str,
        typer.Option(
            metavar="WHAT",
            help="set-aside; support, each patient left out in turn; nothing; auto: the first of these there is.",
        ),
    ] = "auto",
    method: Annotated[str, typer.Option(metavar="NAME", help="temperature, or isotonic (20 patients a class).")] = (
        "temperature"
    ),
    coverage: Annotated[
        float, typer.Option(metavar="SHARE", help="Of patients whose set of classes is to hold the true one.")
    ] = 0.9,
    per_class: Annotated[bool, typer.Option("--per-class", help="Coverage of each class by itself.")] = False,
    none_of_these: Annotated[
        str,
        typer.Option(metavar="SHARE", help="Of known classes' patients that may be turned away; 'never' for none."),
    ] = "0.05",
    least_probability: Annotated[
        float | None, typer.Option(metavar="P", help="Give no label below this probability.")
    ] = None,
    sensitivity: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS=SHARE", help="Flag this share of a class's patients; repeat it."),
    ] = None,
    false_alarms: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS=SHARE", help="Flag at most this share of the others; repeat it."),
    ] = None,
    prevalence: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS=SHARE", help="How frequent a class is where questions are asked; name all."),
    ] = None,
    encoder: Annotated[str | None, typer.Option(metavar="ENC", help="The set's encoder, if it has moved.")] = None,
    json_file: JsonOption = None,
) -> int:
    """Choose a comparison set's head and calibrate it.

    From here on radshot classify answers with a probability, the classes that
    cannot be ruled out, and "none of these", from the images registered so
    far. What there are too few patients for is left out, and said with the
    number that would be enough. Every deployment is kept: see deployments.

    \b
    Examples
      radshot deploy cases --calibration more.csv --label-column finding
      radshot deploy cases --coverage 0.95 --sensitivity cancer=0.9
    """
    from fewshot import ComparisonSet, Recipe, deploy
    from fewshot.deploying import check_deployable

    from .inputs import check_heads, encoder_of, read_manifest

    check_heads([head])
    try:
        recipe = Recipe(
            head=head,
            calibrate_on=calibrate_on,
            method=method,
            coverage=coverage,
            per_class=per_class,
            turned_away=None if none_of_these == NEVER else _share("--none-of-these", none_of_these),
            least_probability=least_probability,
            sensitivity=_shares("--sensitivity", sensitivity) or {},
            false_alarm_rate=_shares("--false-alarms", false_alarms) or {},
            prevalence=_shares("--prevalence", prevalence),
        )
    except ValueError as error:
        raise Usage(str(error)) from None
    if where is not None and calibration is None:
        raise Usage("--where filters the rows of a manifest: name one with --calibration.")
    table = None if calibration is None else read_manifest(calibration, label=label_column, group=group, where=where)
    if table is not None and table.multilabel:
        raise Refused(f"A calibration image has one class, and some rows of {table.source} have several.")
    refused: tuple[tuple[str, str], ...] = ()
    with ComparisonSet.open(folder) as cases:
        cases.encoder = encoder_of(cases.archive, encoder)
        try:
            check_deployable(cases, recipe, cases.encoder)  # before anything is registered for it
        except ValueError as error:
            raise Refused(str(error)) from None
        if table is not None:
            done = cases.register_manifest(table, role="calibration", on_error="report")
            refused = done.refused
            list_refused(refused)
            already = f"{len(done.duplicates):,} already were"
            out.print(f"{len(done.registered):,} image(s) set aside for calibration, {already}")
        try:
            made = deploy(cases, recipe)
        except ValueError as error:
            raise Refused(str(error)) from None
        aside = len(cases.calibration)
    _print_deployment(folder, made)
    write_json(json_file, {**made.to_dict(), "set_aside": aside, "refused": refused_json(refused)})
    return exit_code(1, len(refused))


def _share(option: str, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise Usage(f"{option} takes a share between 0 and 1, or '{NEVER}'; got {text!r}.") from None


def _shares(option: str, texts: Sequence[str] | None) -> dict[str, float] | None:
    """CLASS=SHARE, repeated, as a mapping; a class's name may hold '='."""
    if not texts:
        return None
    found = {}
    for text in texts:
        label, equals, share = text.rpartition("=")
        if label in found:
            raise Usage(f"{option} names {label!r} twice.")
        try:
            found[label] = float(share)
        except ValueError:
            equals = ""
        if not equals or not label:
            raise Usage(f"{option} takes CLASS=SHARE, as in effusion=0.9; got {text!r}.")
    return found


def _print_deployment(folder: Path, made: Deployment) -> None:
    fitted = made.fitted
    held = f"{len(made.support_ids):,} images of {len(made.classes)} classes"
    out.print(f"{folder}: deployment {made.number} answers, from {held}")
    out.print(f"head: {one_line(fitted.head_reason or fitted.head)}")
    on = {"set-aside": "images set aside", "support": "the support, each patient left out in turn"}
    if fitted.calibrated_on in on:
        counts = ", ".join(f"{one_line(name)} {count:,}" for name, count in fitted.patients.items())
        out.print(f"calibrated on {on[fitted.calibrated_on]}; patients: {counts}")
    if made.promised is not None:
        each = " of each class" if made.recipe.per_class else ""
        out.print(f"prediction sets hold the true class of at least {made.promised:.0%} of the patients{each}")
    if fitted.points:
        rows = [
            (
                f"{point.threshold:.3f}",
                _with_interval(point.sensitivity, point.sensitivity_interval),
                _with_interval(point.specificity, point.specificity_interval),
                label,
            )
            for label, point in fitted.points.items()
        ]
        print_table(("threshold", "sensitivity", "specificity", "flag"), rows, numbers=("threshold",))
    for remark in made.remarks:
        note(remark)


def _with_interval(share: float | None, interval: tuple[float, float] | None) -> str:
    if share is None or interval is None:
        return ""
    return f"{share:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]"


@command
def deployments_command(
    folder: SetFolder,
    roll_back: Annotated[
        int | None, typer.Option("--roll-back", metavar="N", help="Let this deployment answer again.")
    ] = None,
    json_file: JsonOption = None,
) -> int:
    """List a set's deployments, or go back to one of them.

    A deployment's images, head, calibration and thresholds come back together.
    Images that were removed since stay removed.

    \b
    Examples
      radshot deployments cases
      radshot deployments cases --roll-back 1
    """
    from fewshot import ComparisonSet, deployments
    from fewshot import roll_back as back

    with ComparisonSet.open(folder) as cases:
        if roll_back is not None:
            try:
                back(cases, roll_back)
            except LookupError as error:
                raise Refused(str(error)) from None
        current = _current(cases)
        records = deployments(cases)
    if not records:
        out.print(f"{folder}: no deployment yet; radshot deploy makes one")
    rows = []
    for record in records:
        fitted = record.fitted
        rows.append(
            (
                "->" if record.number == current else "",
                record.number,
                record.created_at,
                record.set_version,
                record.images,
                record.recipe.head if fitted is None else fitted.head,
                "fitted again when next opened" if fitted is None else fitted.calibrated_on,
                f"{record.recipe.coverage:g}",
            )
        )
    if rows:
        header = ("", "number", "made", "set version", "images", "head", "calibrated on", "coverage")
        print_table(header, rows, numbers=("number", "set version", "images"))
    listed: list[dict[str, Any]] = [
        {
            "number": record.number,
            "current": record.number == current,
            "created_at": record.created_at,
            "set_version": record.set_version,
            "images": record.images,
            "recipe": record.recipe.to_json(),
            "head": None if record.fitted is None else record.fitted.head,
            "calibrated_on": None if record.fitted is None else record.fitted.calibrated_on,
        }
        for record in records
    ]
    write_json(json_file, {"current": current, "deployments": listed})
    return DONE


def _current(cases: ComparisonSet) -> int | None:
    from fewshot import has_deployment
    from fewshot.deployment_store import current_number

    return current_number(cases) if has_deployment(cases) else None
