"""Which findings each image shows, as one table: 1 present, 0 absent, -1 unknown (not mentioned is not absent)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import EpisodeError, listed
from .labels import Label, Labels, in_order, label_sets

UNKNOWN = -1
"""State of a finding that is neither known to be present nor known to be absent."""


def label_states(
    labels: Labels | NDArray[Any], classes: Sequence[Label] | None = None
) -> tuple[tuple[Label, ...], NDArray[np.int8]]:
    """Bring labels to one table of states.

    Args:
        labels: Either one collection of names per image (a single name stands for itself), complete as a list: what is
            named is present, what is not is absent, and an image without any name (None or an empty collection) is
            unlabelled, so everything about it is unknown. Or a table (n, n_classes), an array or a data frame, of 1
            (present), 0 (absent) and NaN (not mentioned).
        classes: For names: the classes to keep, by default all that occur; an image that has only others lacks all of
            these. For an array: the names of its columns. For a data frame: the columns to keep, by default all.

    Returns:
        The names of the classes, and int8 (n, n_classes) of 1, 0 and -1 for unknown.

    Raises:
        EpisodeError: A table that is none, names that do not fit it, or classes named twice.

    Example:
        >>> names, states = label_states([("edema", "mass"), ("mass",), ()])
        >>> names, states.tolist()
        (('edema', 'mass'), [[1, 1], [0, 1], [-1, -1]])
    """
    if classes is not None and len(set(classes)) != len(classes):
        raise EpisodeError(f"classes must name each class once; got {listed(repr(name) for name in classes)}.")
    if hasattr(labels, "columns"):
        frame: Any = labels
        names = tuple(frame.columns) if classes is None else tuple(classes)
        absent = [name for name in names if name not in frame.columns]
        if absent:
            raise EpisodeError(f"The table of labels has no column {absent[0]!r}; it has {listed(frame.columns)}.")
        return names, _states(frame[list(names)].to_numpy())
    if isinstance(labels, np.ndarray) and labels.ndim == 2:
        if classes is None or len(classes) != labels.shape[1]:
            given = "none" if classes is None else f"{len(classes)}"
            raise EpisodeError(f"A table of labels with {labels.shape[1]} columns needs as many classes; got {given}.")
        return tuple(classes), _states(labels)
    sets = label_sets(labels)
    names = in_order({name for entry in sets for name in entry}) if classes is None else tuple(classes)
    code = {name: i for i, name in enumerate(names)}
    states = np.zeros((len(sets), len(names)), dtype=np.int8)
    for row, entry in enumerate(sets):
        if not entry:
            states[row] = UNKNOWN
        states[row, [code[name] for name in entry if name in code]] = 1
    return names, states


def as_table(states: NDArray[np.int8]) -> NDArray[np.float64]:
    """Return states as users write them: 1, 0 and NaN."""
    table = states.astype(np.float64)
    table[states == UNKNOWN] = np.nan
    return table


def _states(table: NDArray[Any]) -> NDArray[np.int8]:
    """Return a table of 1, 0 and NaN as states."""
    try:
        values = table.astype(np.float64)
    except (TypeError, ValueError):
        raise EpisodeError("A table of labels holds 1 (present), 0 (absent) and NaN (not mentioned) only.") from None
    unknown = np.isnan(values)
    wrong = np.argwhere(~unknown & (values != 0) & (values != 1))
    if len(wrong):
        row, column = wrong[0].tolist()
        raise EpisodeError(
            f"A table of labels holds 1 (present), 0 (absent) and NaN (not mentioned) only; row {row}, column {column} "
            f"(counted from 0) holds {values[row, column]:g}."
        )
    return np.where(unknown, UNKNOWN, values).astype(np.int8)
