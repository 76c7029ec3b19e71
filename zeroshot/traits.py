"""Traits: a table of attributes per class, as radiologists would fill it in, made a semantic space."""

from __future__ import annotations

import csv
import os
import tomllib
from collections.abc import Mapping
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DescriptionError
from .semantics import SemanticSpace

Traits = Mapping[str, Mapping[str, float]]
"""Class -> trait -> how typical it is, from 0 to 1; a trait that is not named is 0."""

BUILT_IN = ("chestxray14", "phantoms", "anatomy", "locations")
"""Built-in tables."""


def from_traits(traits: Traits) -> SemanticSpace:
    """Make a class's vector its traits.

    Args:
        traits: Class -> trait -> value.

    Returns:
        The space; a remark names classes that no trait tells apart.

    Raises:
        DescriptionError: No class, no trait at all, or a value outside [0, 1].
    """
    classes = tuple(str(name) for name in traits)
    names = tuple(dict.fromkeys(str(trait) for row in traits.values() for trait in row))
    if not classes or not names:
        raise DescriptionError("A table of traits needs at least one class and one trait.")
    vectors = np.zeros((len(classes), len(names)))
    place = {name: column for column, name in enumerate(names)}
    for row, (label, given) in enumerate(traits.items()):
        for trait, value in given.items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
                raise DescriptionError(f"A trait's value lies in [0, 1]; {trait!r} of {label!r} is {value!r}.")
            vectors[row, place[str(trait)]] = value
    remarks = []
    for row in range(len(classes)):
        alike = [classes[other] for other in range(row) if np.array_equal(vectors[row], vectors[other])]
        if alike:
            remarks.append(f"{classes[row]!r} and {alike[0]!r} have the same traits: nothing tells them apart.")
    return SemanticSpace("traits", classes, vectors, None, {}, {}, tuple(remarks))


def read_traits(path: str | os.PathLike[str]) -> dict[str, dict[str, float]]:
    """Read a table of traits: TOML (a table per class) or CSV (a row per class, its name first, a column per trait).

    Raises:
        DescriptionError: The file is missing, no table, or holds something that is no number.
    """
    file = Path(path)
    try:
        text = file.read_text(encoding="utf-8-sig")
        if file.suffix.lower() == ".toml":
            document: dict[str, Any] = tomllib.loads(text)
            wrong = [name for name, row in document.items() if not isinstance(row, dict)]
            if wrong:
                raise DescriptionError(f"'{file}' needs a table of traits for each class; {wrong[0]!r} is none.")
            return document
    except FileNotFoundError:
        raise DescriptionError(f"There is no table of traits '{file}'.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DescriptionError(f"'{file}' cannot be read as a table of traits: {error}.") from None
    rows = [row for row in csv.reader(text.splitlines()) if any(cell.strip() for cell in row)]
    if len(rows) < 2 or len(rows[0]) < 2:
        raise DescriptionError(f"'{file}' needs a header, a column of class names and at least one trait.")
    header, found = [cell.strip() for cell in rows[0]], {}
    for row in rows[1:]:
        if len(row) != len(header):
            raise DescriptionError(f"'{file}' has {len(header)} columns; the row of {row[0]!r} has {len(row)}.")
        try:
            found[row[0].strip()] = {
                trait: float(cell) for trait, cell in zip(header[1:], row[1:], strict=True) if cell.strip()
            }
        except ValueError:
            raise DescriptionError(
                f"A trait's value is a number; the row of {row[0]!r} in '{file}' has others."
            ) from None
    return found


def built_in_traits(name: str) -> dict[str, dict[str, float]]:
    """Return a built-in table: "chestxray14", "phantoms", "anatomy" or "locations".

    Raises:
        DescriptionError: There is none of this name.
    """
    if name not in BUILT_IN:
        raise DescriptionError(f"There are no built-in traits {name!r}; there are {', '.join(BUILT_IN)}.")
    return {label: dict(row) for label, row in _built_in()[name].items()}


@cache
def _built_in() -> dict[str, dict[str, dict[str, float]]]:
    return tomllib.loads((resources.files("zeroshot") / "traits.toml").read_text(encoding="utf-8"))
