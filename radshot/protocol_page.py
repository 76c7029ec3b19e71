"""What a protocol found: tables with their published anchors, on a terminal and as a page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .console import note, out, print_table

if TYPE_CHECKING:
    from zeroshot import Interval


@dataclass(frozen=True)
class Table:
    """Figures under a heading.

    Attributes:
        title: Heading.
        header: Names of the columns.
        rows: As many cells each.
        numbers: Columns that are flush right.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    numbers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Page:
    """One protocol's result.

    Attributes:
        title: Heading of the whole.
        facts: What was measured on, a sentence each.
        tables: The figures.
        notes: What has to be known to read them, a sentence each; the published figures are among them.
        result: The same for a program.
        refused: (image, reason) of those that could not be read.
        images: How many could be.
    """

    title: str
    facts: tuple[str, ...]
    tables: tuple[Table, ...]
    notes: tuple[str, ...]
    result: dict[str, Any]
    refused: list[tuple[str, str]]
    images: int

    def show(self) -> None:
        """Print facts and figures; what has to be known goes beside them, to standard error."""
        for fact in self.facts:
            out.print(fact)
        for table in self.tables:
            out.print()
            out.print(table.title)
            print_table(table.header, table.rows, numbers=table.numbers)
        for sentence in self.notes:
            note(sentence)

    def to_markdown(self) -> str:
        """Return the page in Markdown."""
        lines = [f"# {self.title}", "", *self.facts, ""]
        for table in self.tables:
            lines += [f"## {table.title}", "", _line(table.header)]
            lines.append(_line(["---:" if name in table.numbers else "---" for name in table.header]))
            lines += [*(_line(row) for row in table.rows), ""]
        return "\n".join([*lines, *(f"- {sentence}" for sentence in self.notes)]) + "\n"


def shown(found: Interval | None) -> str:
    """An estimate with its interval in one cell; "none" where there is none."""
    return "none" if found is None else f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}]"


def plain(found: Interval | None) -> list[float] | None:
    """The same for JSON: estimate, lower and upper end."""
    return None if found is None else [found.estimate, found.low, found.high]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
