"""Where the lines, ticks and words of a page's charts go, in each drawing's own units; templates only write it down."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

#: Size of a chart of training curves, and the room around its drawing area: left, top, right, bottom.
PANEL_WIDTH, PANEL_HEIGHT = 520, 250
LEFT, TOP, RIGHT, BOTTOM = 58, 14, 18, 44
#: Most ticks on an axis; numbers of six digits then still stand clear of each other.
MOST_TICKS = 6
#: Points up to which each is also drawn as a dot.
MOST_DOTS = 40
#: A loss whose largest value is this many times its median is drawn on a logarithmic axis.
LOGARITHMIC = 20
#: Decades such an axis spans at most; smaller losses are drawn at its foot.
MOST_DECADES = 4


@dataclass(frozen=True)
class Tick:
    """A number beside an axis.

    Attributes:
        at: Its place along the axis, in units of the drawing.
        text: The number.
    """

    at: float
    text: str


@dataclass(frozen=True)
class Line:
    """One curve.

    Attributes:
        name: What it shows.
        kind: "first" or "second": its colour and its dashes.
        points: Places (x, y), in units of the drawing.
        dotted: Whether each point is also a dot.
    """

    name: str
    kind: str
    points: tuple[tuple[float, float], ...]
    dotted: bool

    @property
    def path(self) -> str:
        """The points as SVG's polyline takes them."""
        return " ".join(f"{x:.2f},{y:.2f}" for x, y in self.points)


@dataclass(frozen=True)
class Panel:
    """One chart of values over training episodes.

    Attributes:
        title: What it shows.
        y_label: Name of the upright axis.
        x_label: Name of the level axis.
        x_ticks: Numbers below.
        y_ticks: Numbers on the left.
        lines: The curves; none where there is nothing to show.
        mark: Place of the episode whose weights were kept, or None.
    """

    title: str
    y_label: str
    x_label: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]
    mark: float | None = None


@dataclass(frozen=True)
class Stage:
    """The curves of one stage of a training.

    Attributes:
        name: The method, or an empty text where the history does not say.
        panels: Accuracy and loss.
        last: The last entry of its history.
        peak_rate: Highest learning rate among the entries, or None.
        validated: Whether anything was held out.
    """

    name: str
    panels: tuple[Panel, ...]
    last: Mapping[str, Any]
    peak_rate: float | None
    validated: bool


def ticks(low: float, high: float, most: int = MOST_TICKS) -> list[float]:
    """Round numbers (1, 2 or 5 times a power of ten apart) from `low` to `high`, both inside their range.

    Args:
        low: Smallest value to show.
        high: Largest, above `low`.
        most: As many at most.

    Returns:
        At least two numbers in rising order; the first is at most `low` and the last at least `high`.
    """
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    for times in (1, 2, 5, 10, 20, 50):
        width = step * times
        first, last = math.floor(low / width + 1e-9), math.ceil(high / width - 1e-9)
        if last - first + 1 <= most:
            break
    return [round(i * width, 12) for i in range(first, last + 1)]


def stages(history: Sequence[Mapping[str, Any]], *, best_episode: int | None = None) -> list[Stage]:
    """The curves of a training, stage by stage: their losses are different quantities.

    Args:
        history: Entries as `Training.history` holds them. A new stage begins where the entry names another one, or
            where the episodes are counted from the start again.
        best_episode: The last stage's episode whose weights were kept.

    Returns:
        One `Stage` for each; none for an empty history.
    """
    parts: list[list[Mapping[str, Any]]] = []
    for entry in history:
        before = parts[-1][-1] if parts else None
        if before is None or before.get("stage") != entry.get("stage") or before["episode"] >= entry["episode"]:
            parts.append([])
        parts[-1].append(entry)
    found = []
    for part in parts:
        rates = [float(entry["learning_rate"]) for entry in part if entry.get("learning_rate") is not None]
        kept = best_episode if part is parts[-1] else None
        found.append(
            Stage(
                name=str(part[0].get("stage") or ""),
                panels=(_accuracies(part, kept), _losses(part, kept)),
                last=part[-1],
                peak_rate=max(rates, default=None),
                validated=bool(_values(part, "validation_accuracy")),
            )
        )
    return found


def _accuracies(part: Sequence[Mapping[str, Any]], kept: int | None) -> Panel:
    series = (
        ("validation", "first", _values(part, "validation_accuracy")),
        ("training", "second", _values(part, "train_accuracy")),
    )
    return _panel("Accuracy", "accuracy", part, series, [i / 5 for i in range(6)], kept)


def _losses(part: Sequence[Mapping[str, Any]], kept: int | None) -> Panel:
    values = _values(part, "loss")
    heights = sorted(value for _, value in values)
    low, high = (heights[0], heights[-1]) if heights else (0.0, 1.0)
    median = heights[len(heights) // 2] if heights else 0.0
    if low >= 0 and 0 < median * LOGARITHMIC < high:
        foot = max(min(value for value in heights if value > 0), high / 10**MOST_DECADES)
        decades = range(math.floor(math.log10(foot)), math.ceil(math.log10(high)) + 1)
        logs = [(episode, math.log10(max(value, foot))) for episode, value in values]
        names = {float(decade): f"{10.0**decade:g}" for decade in decades}
        return _panel("Training loss", "loss, log scale", part, (("loss", "second", logs),), list(names), kept, names)
    low = min(low, 0.0)
    if low == high:
        high = low + 1
    return _panel("Training loss", "loss", part, (("loss", "second", values),), ticks(low, high), kept)


def _panel(
    title: str,
    y_label: str,
    part: Sequence[Mapping[str, Any]],
    series: Iterable[tuple[str, str, list[tuple[float, float]]]],
    y_values: list[float],
    kept: int | None,
    names: Mapping[float, str] | None = None,
) -> Panel:
    """Lay out one chart; `names` are the words of the upright axis where they are not its values."""
    x_values = ticks(0.0, float(part[-1]["episode"]) or 1.0)
    last = max(float(part[-1]["episode"]), 1.0)

    def across(episode: float) -> float:
        return LEFT + episode / last * (PANEL_WIDTH - LEFT - RIGHT)

    def up(value: float) -> float:
        share = (value - y_values[0]) / (y_values[-1] - y_values[0])
        return PANEL_HEIGHT - BOTTOM - share * (PANEL_HEIGHT - TOP - BOTTOM)

    lines = tuple(
        Line(name, kind, tuple((across(x), up(y)) for x, y in values), len(values) <= MOST_DOTS)
        for name, kind, values in series
        if values
    )
    return Panel(
        title=title,
        y_label=y_label,
        x_label="training episodes",
        x_ticks=tuple(
            Tick(across(value), f"{value:,.0f}") for value in x_values if value <= last and value.is_integer()
        ),
        y_ticks=tuple(Tick(up(value), f"{value:g}" if names is None else names[value]) for value in y_values),
        lines=lines,
        mark=None if kept is None else across(min(float(kept), last)),
    )


def _values(part: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    """(episode, value) wherever there is a finite one."""
    pairs = [(float(entry["episode"]), entry.get(key)) for entry in part]
    return [(episode, float(value)) for episode, value in pairs if value is not None and math.isfinite(value)]
