"""Many reports as one table of labels: 1 present, 0 absent, NaN not mentioned (which is not absent)."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .errors import ReportError
from .lexicon import Lexicon
from .reports import parse_report

UNCERTAIN_AS = {"unknown": np.nan, "present": 1.0, "absent": 0.0}
"""What `uncertain` may be, and what an uncertain finding then is in the table."""


@dataclass(frozen=True)
class ReportLabels:
    """Labels of reports.

    Attributes:
        findings: Canonical names, one per column.
        table: float64 (n_reports, n_findings) of 1 (present), 0 (absent) and NaN (not mentioned, or uncertain).
        problems: (row, reason) of each text that could not be read; its row is all NaN.
        contradicted: Rows of reports that affirm a finding in one place and deny it in another.
    """

    findings: tuple[str, ...]
    table: NDArray[np.float64]
    problems: tuple[tuple[int, str], ...] = ()
    contradicted: tuple[int, ...] = ()

    def frame(self, images: Sequence[str] | None = None, groups: Sequence[Hashable] | None = None) -> pd.DataFrame:
        """Return the labels as a data frame, one column per finding.

        Args:
            images: One path per report, as a first column `image`, which makes it a table of images.
            groups: One patient per report, as a column `patient`.

        Returns:
            The data frame, which `episodes.label_states` and `episodes.Manifest` take.

        Raises:
            ReportError: As many images or groups as there are not reports.
        """
        columns: dict[str, list[Hashable]] = {}
        for name, given in (("image", images), ("patient", groups)):
            if given is None:
                continue
            if len(given) != len(self.table):
                raise ReportError(f"{len(self.table):,} reports need as many entries of {name!r}; got {len(given):,}.")
            columns[name] = list(given)
        frame = pd.DataFrame(self.table, columns=list(self.findings))
        for i, (name, values) in enumerate(columns.items()):
            frame.insert(i, name, values)
        return frame


def report_labels(
    texts: Iterable[str | Mapping[str, str]],
    findings: Sequence[str] | None = None,
    *,
    uncertain: str = "unknown",
    lexicon: Lexicon | None = None,
) -> ReportLabels:
    """Label reports by what they say.

    Args:
        texts: n reports, as `parse_report` takes them.
        findings: Names of the findings to label, canonical or not; by default all that any report mentions.
        uncertain: What an uncertain finding is: "unknown" (NaN), "present" or "absent".
        lexicon: The findings to look for, by default `Lexicon.builtin()`.

    Returns:
        The labels; a text that cannot be read has a row of NaN and an entry in `problems`.

    Raises:
        ReportError: Another word for `uncertain`.
        LexiconError: A finding that the lexicon does not know.
    """
    if uncertain not in UNCERTAIN_AS:
        raise ReportError(f"uncertain must be one of {', '.join(map(repr, UNCERTAIN_AS))}; got {uncertain!r}.")
    lexicon = Lexicon.builtin() if lexicon is None else lexicon
    rows: list[dict[str, float]] = []
    problems: list[tuple[int, str]] = []
    contradicted: list[int] = []
    for i, text in enumerate(texts):
        row: dict[str, float] = {}
        try:
            report = parse_report(text, lexicon)
        except ReportError as error:
            problems.append((i, str(error)))
        else:
            if report.contradictions:
                contradicted.append(i)
            for found, value in (
                (report.absent, 0.0),
                (report.uncertain, UNCERTAIN_AS[uncertain]),
                (report.present, 1.0),
            ):
                row.update((finding.name, value) for finding in found)
        rows.append(row)
    if findings is None:
        mentioned = {name for row in rows for name in row}
        names = tuple(finding.name for finding in lexicon if finding.name in mentioned)
    else:
        names = tuple(lexicon.canonical(name) for name in findings)
        if len(set(names)) != len(names):
            raise ReportError(f"The findings to label must differ; two of them are {_repeated(names)!r}.")
    table = np.full((len(rows), len(names)), np.nan)
    for i, row in enumerate(rows):
        table[i] = [row.get(name, np.nan) for name in names]
    return ReportLabels(names, table, tuple(problems), tuple(contradicted))


def _repeated(names: Sequence[str]) -> str:
    return next(name for i, name in enumerate(names) if name in names[:i])
