"""The progress bar of long jobs: on stderr, and only where somebody sees it or asked for it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .ingest import IngestReport


@contextmanager
def watched(
    progress: bool | Callable[[IngestReport], None] | None, total: int
) -> Iterator[Callable[[IngestReport], None]]:
    """Yield the function that shows a report: a bar, the caller's own, or nothing.

    Args:
        progress: True for a bar, False for none, None for a bar if stderr is a terminal; a function gets the reports.
        total: Files to come.
    """
    if callable(progress):
        yield progress
        return
    if progress is False or (progress is None and not sys.stderr.isatty()):
        yield lambda report: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("Embedding"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:.1f} images/s"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[refused]} quarantined, {task.fields[duplicate]} duplicates"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("embed", total=total, rate=0.0, refused=0, duplicate=0)

        def show(report: IngestReport) -> None:
            done = report.embedded + report.updated
            bar.update(
                task,
                completed=report.seen,
                rate=done / report.seconds if report.seconds else 0.0,
                refused=report.quarantined,
                duplicate=report.duplicate,
            )

        yield show
