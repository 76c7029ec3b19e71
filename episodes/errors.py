"""What goes wrong in tables and episodes; both are ValueErrors and say in one sentence what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

LISTED = 12
"""How many names a message lists before it says how many more there are."""


class ManifestError(ValueError):
    """A table of images cannot be read or filtered as asked."""


class UnknownColumn(ManifestError):
    """A table of images has no column of that name."""


class FilterError(ManifestError):
    """A row filter that is no expression over the table's columns."""


class EpisodeError(ValueError):
    """Episodes, splits or a comparison cannot be made from these labels and patients."""


def listed(names: Iterable[object], limit: int = LISTED) -> str:
    """Join names for a message: `a, b, c and 4 more`."""
    every = [str(name) for name in names]
    if len(every) <= limit:
        return ", ".join(every)
    return f"{', '.join(every[:limit])} and {len(every) - limit:,} more"


def did_you_mean(wrong: str, known: Iterable[str]) -> str:
    """Return `; did you mean 'x'?` where a known name is close, else a full stop."""
    by_lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(wrong.lower(), by_lower, n=1, cutoff=0.6)
    return f"; did you mean {by_lower[close[0]]!r}?" if close else "."
