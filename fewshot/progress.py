"""A training's progress on standard error: what is going to be done, for how long, loss, validation accuracy."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


class TrainingProgress:
    """Sentences on standard error, with a progress bar where that is a terminal; or nothing.

    Args:
        shown: Whether to say anything.
    """

    def __init__(self, *, shown: bool) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._shown = shown
        self._bar = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}  validation {task.fields[accuracy]}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not (shown and self._console.is_terminal),
        )
        self._task = self._bar.add_task("training", total=None, loss="–", accuracy="–", visible=False)

    def __enter__(self) -> TrainingProgress:
        """Begin to draw."""
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the last state on the terminal."""
        self._bar.stop()

    def say(self, sentence: str) -> None:
        """A line of its own."""
        if self._shown:
            self._console.print(sentence, markup=False)

    def begin(self, sentence: str, *, total: int, done: int) -> None:
        """A stage begins: what it does, its episodes, and how many of them are already behind it."""
        self.say(sentence + (f"; going on after {done:,} episodes" if done else ""))
        self._bar.reset(self._task, total=total, completed=done, visible=True, loss="–", accuracy="–")

    def estimate(self, seconds: float) -> None:
        """The first steps say how long the rest will take, validations not counted."""
        self.say(f"this will take {duration(seconds)}")

    def advance(self, episodes: int, *, loss: float) -> None:
        """Some episodes were trained on, with this mean loss."""
        self._bar.update(self._task, advance=episodes, loss=f"{loss:.3f}")

    def validated(self, accuracy: float | None) -> None:
        """A validation gave this accuracy."""
        if accuracy is not None:
            self._bar.update(self._task, accuracy=f"{accuracy:.3f}")


def duration(seconds: float) -> str:
    """Seconds as a person says them: "about 40 seconds", "about 12 minutes", "about 3 hours"."""
    for limit, unit, name in ((90, 1, "second"), (5400, 60, "minute"), (float("inf"), 3600, "hour")):
        if seconds < limit:
            count = max(1, round(seconds / unit))
            return f"about {count} {name}{'' if count == 1 else 's'}"
    raise ValueError(f"{seconds} seconds are no duration.")
