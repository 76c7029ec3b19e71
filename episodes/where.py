"""Rows of a table that meet an expression such as `modality = 'X-ray' AND age > 60`, judged by SQLite in a locked room.

The expression runs in an in-memory database that holds the table and nothing else; an authorizer lets it read that
table and call a few text and number functions, and a clock ends it.
"""

from __future__ import annotations

import re
import sqlite3
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from .errors import FilterError, ManifestError, UnknownColumn, did_you_mean, listed

TIME_LIMIT = 10.0
"""Seconds an expression may take over a whole table."""

LONGEST = 10_000
"""Characters in an expression at most."""

FUNCTIONS = frozenset(
    {
        "abs",
        "coalesce",
        "glob",
        "ifnull",
        "instr",
        "length",
        "like",
        "lower",
        "nullif",
        "round",
        "substr",
        "trim",
        "upper",
    }
)
"""SQLite functions an expression may call; LIKE and GLOB are functions to SQLite."""

NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?")
"""A number as written by a program. `007` is none: a column that holds it is text, so patients stay apart."""

_TOKENS = re.compile(
    r"""(?P<text>'(?:[^']|'')*') | (?P<name>"(?:[^"]|"")*"|`[^`]*`|\[[^\]]*\]) | (?P<open>\() | (?P<close>\))
    | (?P<comment>--|/\*) | (?P<end>;) | (?P<unfinished>['"`\[]) | (?P<slot>[?:@$]) | (?P<null>\x00) | (?:.|\n)""",
    re.VERBOSE,
)


def rows_where(table: pd.DataFrame, expression: str) -> NDArray[np.bool_]:
    """Return which rows of a table meet an SQL expression.

    `=` and `==`, `!=`, `<`, IN, LIKE (letters' case ignored), BETWEEN, IS NULL, AND, OR, NOT and arithmetic work. Text
    stands in single quotes, a column name with spaces in double quotes. A column whose every filled cell is a number
    compares as numbers, any other as text. An empty cell is NULL: it meets `IS NULL` and, as SQL has it, neither
    `view = 'L'` nor `view != 'L'` (but `view IS NOT 'L'`).

    Args:
        table: Any table with a header.
        expression: At most 10,000 characters.

    Returns:
        (n_rows,) booleans.

    Raises:
        FilterError: The expression is empty, malformed, asks for more than comparing cells, or takes too long.
        UnknownColumn: It names no column of the table.
        ManifestError: Two columns differ only in case.
    """
    columns = [str(name) for name in table.columns]
    _inspect(expression, columns)
    spelt: dict[str, str] = {}
    for name in columns:
        if (twin := spelt.setdefault(name.lower(), name)) != name:
            raise ManifestError(f"Columns {twin!r} and {name!r} differ only in case; rename one to filter rows.")
    if not len(table):
        table = pd.DataFrame({name: [None] for name in columns})
        return _ask(table, columns, expression)[:0]
    return _ask(table, columns, expression)


def _inspect(expression: str, columns: Sequence[str]) -> None:
    """Refuse what could leave the brackets the expression is put in, and quoted names that are no column."""
    shown = _shown(expression)
    if not expression.strip():
        raise FilterError("The row filter is empty; write an expression such as \"modality = 'CT'\".")
    if len(expression) > LONGEST:
        raise FilterError(f"The row filter has {len(expression):,} characters; at most {LONGEST:,} are allowed.")
    known = {name.lower() for name in columns}
    depth = 0
    for token in _TOKENS.finditer(expression):
        kind, text = token.lastgroup, token.group()
        depth += {"open": 1, "close": -1}.get(kind or "", 0)
        if depth < 0 or kind == "unfinished":
            what = "a bracket that was never opened" if depth < 0 else f"a quote {text} that is never closed"
            raise FilterError(f"The row filter {shown} has {what}.")
        if kind in ("comment", "end", "slot", "null"):
            raise FilterError(
                f"The row filter {shown} must be one expression over the columns; {text!r} has no place in it."
            )
        if kind == "name" and (name := text[1:-1].replace('""', '"')).lower() not in known:
            raise UnknownColumn(
                f"The row filter names {text}, and double quotes hold a column: there is no such column "
                f"(text stands in single quotes: '{name}'){did_you_mean(name, columns)}"
            )
    if depth:
        raise FilterError(f"The row filter {shown} has a bracket that is never closed.")


def _ask(table: pd.DataFrame, columns: Sequence[str], expression: str) -> NDArray[np.bool_]:
    """Run the inspected expression over every row."""
    shown = _shown(expression)
    cells = [_cells(table[name]) for name in table.columns]
    names = ['"' + name.replace('"', '""') + '"' for name in columns]
    kinds = ["NUMERIC" if numeric else "TEXT" for _, numeric in cells]
    database = sqlite3.connect(":memory:")
    try:
        declared = ", ".join(f"{name} {kind}" for name, kind in zip(names, kinds, strict=True))
        database.execute(f"CREATE TABLE rows ({declared})")
        marks = ", ".join("?" * len(columns))
        database.executemany(f"INSERT INTO rows VALUES ({marks})", zip(*(values for values, _ in cells), strict=True))
        database.setlimit(sqlite3.SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1_000)
        database.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
        refused: list[str] = []
        database.set_authorizer(_guard(refused))
        stop = time.monotonic() + TIME_LIMIT
        database.set_progress_handler(lambda: int(time.monotonic() > stop), 10_000)
        try:
            found = database.execute(
                f"SELECT CASE WHEN ({expression}) THEN 1 ELSE 0 END FROM rows ORDER BY rowid"
            ).fetchall()
        except (sqlite3.Error, sqlite3.Warning, OverflowError) as error:
            raise _explain(str(error), refused, columns, shown) from None
    except sqlite3.Error as error:
        raise ManifestError(f"The table cannot be filtered by {shown}: {error}.") from None
    finally:
        database.close()
    mask = np.fromiter((row[0] for row in found), dtype=np.bool_, count=len(found))
    if mask.size != len(table):
        raise FilterError(f"The row filter {shown} must give one answer per row of the table.")
    return mask


def _guard(refused: list[str]) -> Any:
    """Return an authorizer that allows one SELECT over `rows` with the listed functions, and notes what it refused."""
    selects = 0

    def allow(action: int, first: str | None, second: str | None, _database: str | None, _trigger: str | None) -> int:
        nonlocal selects
        if action == sqlite3.SQLITE_SELECT:
            selects += 1
            if selects == 1:
                return sqlite3.SQLITE_OK
            refused.append("a SELECT inside it")
        elif action == sqlite3.SQLITE_READ:
            if first == "rows":
                return sqlite3.SQLITE_OK
            refused.append(f"the table {first}")
        elif action == sqlite3.SQLITE_FUNCTION:
            if (second or "").lower() in FUNCTIONS:
                return sqlite3.SQLITE_OK
            refused.append(f"the function {second}")
        else:
            refused.append("more than reading")
        return sqlite3.SQLITE_DENY

    return allow


def _explain(error: str, refused: Sequence[str], columns: Sequence[str], shown: str) -> ManifestError:
    """Turn SQLite's complaint into one sentence."""
    if refused:
        return FilterError(
            f"The row filter {shown} asks for {refused[0]}; it may only compare columns, with the functions "
            f"{', '.join(sorted(FUNCTIONS))}."
        )
    if "interrupted" in error:
        return FilterError(f"The row filter {shown} took longer than {TIME_LIMIT:g} seconds; make it simpler.")
    if missing := re.search(r"no such column: (.*)", error):
        name = missing.group(1)
        return UnknownColumn(
            f"The row filter {shown} names {name!r}, and the table has no such column; it has {listed(columns)} "
            f"(text stands in single quotes: '{name}'){did_you_mean(name, columns)}"
        )
    return FilterError(f"The row filter {shown} cannot be understood: {error}.")


def _cells(column: pd.Series[Any]) -> tuple[list[Any], bool]:
    """Return a column's cells for SQLite, empty ones as None, and whether they are all numbers."""
    if pd.api.types.is_bool_dtype(column.dtype):
        return [None if pd.isna(value) else int(value) for value in column], True
    if pd.api.types.is_numeric_dtype(column.dtype):
        return [None if pd.isna(value) else value for value in column.tolist()], True
    texts = [_text(value) for value in column.tolist()]
    if all(NUMBER.fullmatch(text) for text in texts if text is not None) and any(text is not None for text in texts):
        return texts, True
    return texts, False


def _text(value: Any) -> str | None:
    """Return a cell as text, or None where it is empty."""
    if value is None or (isinstance(value, float) and value != value) or value is pd.NaT or value is pd.NA:
        return None
    return str(value) or None


def _shown(expression: str) -> str:
    """Return the expression for a message, shortened."""
    return repr(expression if len(expression) <= 80 else expression[:77] + "...")
