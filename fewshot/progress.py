"""A training's progress on the terminal: loss, validation accuracy, time left."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TrainingProgress:
    """A progress bar on standard error, or nothing.

    Args:
        total: Training episodes planned.
        shown: Whether to draw it.
    """

    def __init__(self, *, total: int, shown: bool) -> None:
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  validation {task.fields[accuracy]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            disable=not shown,
        )
        self._task = self._bar.add_task("training", total=total, loss="–", accuracy="–")

    def __enter__(self) -> TrainingProgress:
        """Begin to draw."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state on the terminal."""
        self._bar.stop()

    def advance(self, episodes: int, *, loss: float) -> None:
        """Some episodes were trained on, with this mean loss."""
        self._bar.update(self._task, advance=episodes, loss=f"{loss:.3f}")

    def validated(self, accuracy: float | None) -> None:
        """A validation gave this accuracy."""
        if accuracy is not None:
            self._bar.update(self._task, accuracy=f"{accuracy:.3f}")
