"""Labels and patients as users give them: lists, arrays or columns, one label per image or several."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .errors import EpisodeError

Label: TypeAlias = Hashable
Labels: TypeAlias = Sequence[Label] | Sequence[Collection[Label]] | NDArray[Any]
Groups: TypeAlias = Sequence[Hashable] | NDArray[Any]


def label_sets(labels: Labels) -> list[tuple[Label, ...]]:
    """Return each image's labels as a tuple without repeats; None or an empty collection gives ()."""
    if isinstance(labels, (str, bytes)) or not hasattr(labels, "__len__"):
        raise EpisodeError(f"labels must be a list with one entry per image; got {type(labels).__name__}.")
    if isinstance(labels, np.ndarray) and labels.ndim != 1:
        raise EpisodeError(f"labels must be one-dimensional (names, not a table of 0 and 1); got shape {labels.shape}.")
    given: list[Any] = labels.tolist() if hasattr(labels, "tolist") else list(labels)
    found: list[tuple[Label, ...]] = []
    for row, entry in enumerate(given):
        names = tuple(entry) if isinstance(entry, (tuple, list, set, frozenset, np.ndarray)) else (entry,)
        if names == (None,):
            names = ()
        for name in names:
            if name is None or name != name:
                raise EpisodeError(f"The label of image {row} (counted from 0) is {name!r}; leave it out or name it.")
        found.append(in_order(dict.fromkeys(names)) if len(names) > 1 else names)
    return found


def patient_list(groups: Groups, n: int) -> list[Hashable]:
    """Return the patients as a list of length n; a missing one would quietly become everybody's patient."""
    given: list[Any] = groups.tolist() if hasattr(groups, "tolist") else list(groups)
    if len(given) != n:
        raise EpisodeError(f"groups must name one patient per image: got {len(given):,} for {n:,} images.")
    for row, group in enumerate(given):
        if group is None or group == "" or group != group:
            raise EpisodeError(f"The patient of image {row} (counted from 0) is missing: got {group!r}.")
    return given


def in_order(names: Collection[Label]) -> tuple[Label, ...]:
    """Return names sorted where they can be compared, else in the order given."""
    try:
        return tuple(sorted(names))  # type: ignore[type-var]
    except TypeError:
        return tuple(names)
