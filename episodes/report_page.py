"""Evaluations and trainings as pages for a browser: one file each, no scripts, nothing loaded from elsewhere."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Hashable, Mapping, Sequence
from importlib import resources
from typing import Any

import numpy as np

from .charts import BOTTOM, LEFT, PANEL_HEIGHT, PANEL_WIDTH, RIGHT, TOP, Stage, stages, ticks
from .errors import EpisodeError
from .evaluate import compare
from .intervals import FEWEST_PATIENTS, PairedDifference
from .multilabel_report import MultiLabelReport
from .outcomes import ClassResult
from .report import CONFUSIONS, TABLE_ROWS, Report

MATRIX_CLASSES = 30
"""Classes of a confusion matrix; with more, the hardest stay and the others share a column."""

BAR_WIDTH = 300
"""Length of an accuracy of 1 in the drawings beside tables."""

LEAST_REACH = 0.05
"""Half the length of the differences' axis at least, so that the least of them is not made to look large."""

NONE_OF_THESE = "none of these"
"""How an abstention is called."""


def render_reports(
    reports: Sequence[Report],
    *,
    differences: Sequence[PairedDifference] | None = None,
    history: Sequence[Mapping[str, Any]] | None = None,
    title: str | None = None,
) -> str:
    """The page of an evaluation, with other classifiers or encoders beside it where there are any.

    Args:
        reports: What `evaluate` returned: the one the page is about, then its baselines.
        differences: `compare(reports[0], other)` for each baseline in order; None computes them, and an empty list
            leaves them out, as it must be where the episodes were not the same.
        history: Of the training that made the encoder, as `Training.history` holds it; its curves are drawn.
        title: Heading of the page; by default the first report's name.

    Returns:
        HTML.

    Raises:
        EpisodeError: No report, a multi-label one, as many differences as there are not baselines, or none given for
            reports that are not over the same episodes.
    """
    given = [reports] if isinstance(reports, MultiLabelReport) else reports
    if any(isinstance(report, MultiLabelReport) for report in given):
        raise EpisodeError(
            "A page shows what evaluate returned; got a MultiLabelReport, whose text to_markdown() makes."
        )
    if not reports:
        raise EpisodeError("A page needs at least one report; got none.")
    first, *others = reports
    if differences is None:
        differences = [compare(first, other) for other in others]
    elif differences and len(differences) != len(others):
        raise EpisodeError(
            f"Each of the {len(others)} baselines needs its difference, or none of them; got {len(differences)}."
        )
    provenance = _flat(first.manifest)
    return _page(
        "report.html",
        title=title or first.name,
        report=first,
        unit=_unit(first),
        chance=1 / first.n_way,
        compared=_compared(reports, differences),
        reach=_reach(differences),
        classes=_classes(first),
        table_rows=TABLE_ROWS,
        fewest=FEWEST_PATIENTS,
        matrix=_matrix(first),
        confusions=_confusions(first),
        stages=stages(history or ()),
        provenance=provenance,
        elsewhere=[
            (report.name, [row for row in _flat(report.manifest) if row not in provenance]) for report in others
        ],
    )


def training_page(
    history: Sequence[Mapping[str, Any]], summary: Mapping[str, Any] | None = None, title: str | None = None
) -> str:
    """The page of a training: its curves, and what it was done with.

    Args:
        history: As `Training.history` holds it: entries with the keys episode, loss, train_accuracy,
            validation_accuracy (may be None), learning_rate and seconds, and stage where there are several.
        summary: As `Training.summary` holds it; `best_episode` is marked in the curves.
        title: Heading of the page.

    Returns:
        HTML.
    """
    summary = summary or {}
    best = summary.get("best_episode")
    drawn: list[Stage] = stages(history, best_episode=best or None)
    return _page("training.html", title=title or "Training", stages=drawn, summary=summary, facts=_flat(summary))


def _page(name: str, **context: Any) -> str:
    import jinja2

    folder = resources.files(__package__).joinpath("templates")
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(lambda part: folder.joinpath(part).read_text(encoding="utf-8")),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["text"] = _text
    environment.globals.update(bar_width=BAR_WIDTH, width=PANEL_WIDTH, height=PANEL_HEIGHT)
    environment.globals.update(left=LEFT, top=TOP, right=RIGHT, bottom=BOTTOM)
    return environment.get_template(name).render(**context)


def _text(value: object) -> str:
    """A label as a page can show it: no control characters, no half of a surrogate pair, never empty."""
    plain = {"Cc": " ", "Cs": "\ufffd"}
    words = "".join(plain.get(unicodedata.category(character), character) for character in str(value))
    return words if words.strip() else repr(value)


def _unit(report: Report) -> str:
    return "patients" if report.patients_known else "images"


def _compared(reports: Sequence[Report], differences: Sequence[PairedDifference]) -> list[dict[str, Any]]:
    """One row for each classifier; the first has no difference from itself."""
    found: list[PairedDifference | None] = [None, *differences]
    found += [None] * (len(reports) - len(found))
    return [
        {"report": report, "difference": difference, "ours": report is reports[0]}
        for report, difference in zip(reports, found, strict=True)
    ]


def _reach(differences: Sequence[PairedDifference]) -> float:
    """Half the length of the differences' axis, a round number; 0 where there are none."""
    furthest = max((abs(end) for found in differences for end in (found.low, found.high)), default=0.0)
    return ticks(0.0, max(furthest, LEAST_REACH))[-1] if differences else 0.0


def _ordered(report: Report, most: int) -> list[tuple[int, Hashable, ClassResult]]:
    """(number from 1, label, result) in class order; with more than `most` the hardest first and those undrawn last."""
    every = [(number, label, found) for number, (label, found) in enumerate(report.per_class.items(), 1)]
    if len(every) > most:
        every.sort(key=lambda item: 2.0 if item[2].recall is None else item[2].recall)
    return every


def _classes(report: Report) -> list[dict[str, Any]]:
    return [
        {"number": number, "label": label, "found": found, "few": label in report.unreliable}
        for number, label, found in _ordered(report, TABLE_ROWS)
    ]


def _matrix(report: Report) -> dict[str, Any]:
    """The confusion matrix as columns and rows of cells (queries, share of the row, kind)."""
    every = _ordered(report, MATRIX_CLASSES)
    shown = every[:MATRIX_CLASSES]
    codes = [number - 1 for number, _, _ in shown]
    hidden = [number - 1 for number, _, _ in every[MATRIX_CLASSES:]]
    columns = [{"number": number, "label": label} for number, label, _ in shown]
    columns += [{"number": None, "label": f"{len(hidden)} other classes"}] if hidden else []
    columns += [{"number": None, "label": NONE_OF_THESE}]
    rows: list[dict[str, Any]] = []
    for code, (number, label, _) in zip(codes, shown, strict=True):
        counts = report.confusion[code]  # (n_classes + 1,)
        cells = [int(counts[other]) for other in codes]
        cells += [int(counts[hidden].sum())] if hidden else []
        cells += [int(counts[-1])]
        total = int(counts.sum())
        rows.append(
            {
                "number": number,
                "label": label,
                "total": total,
                "cells": [
                    {"queries": count, "share": count / total if total else 0.0, "right": column == len(rows)}
                    for column, count in enumerate(cells)
                ],
            }
        )
    return {"columns": columns, "rows": rows, "hidden": len(hidden)}


def _confusions(report: Report) -> list[dict[str, Any]]:
    """The most frequent wrong answers of the whole report, and their share of the true class's queries."""
    names = [*report.per_class, NONE_OF_THESE]
    wrong = report.confusion.copy()  # (n_classes, n_classes + 1)
    np.fill_diagonal(wrong, 0)
    totals = report.confusion.sum(axis=1)
    found = []
    for cell in np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS].tolist():
        true, answer = divmod(cell, wrong.shape[1])
        if wrong[true, answer]:
            queries = int(wrong[true, answer])
            share = queries / int(totals[true])
            found.append({"true": names[true], "answer": names[answer], "queries": queries, "share": share})
    return found


def _flat(values: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """Nested plain values as (dotted name, text), in order of name."""
    rows: list[tuple[str, str]] = []
    for key, value in sorted(values.items()):
        if isinstance(value, Mapping) and value:
            rows += _flat(value, f"{before}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
            rows.append((f"{before}{key}", text))
    return rows
