"""Third parties' warnings kept inside: a crooked header must not print from a library or fail a strict caller."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.Lock()
_INSIDE = 0
_SAVED: warnings.catch_warnings | None = None


@contextmanager
def quiet() -> Iterator[None]:
    """Ignore warnings until the block ends.

    `warnings.catch_warnings` is not safe when blocks of several threads overlap: the last to leave may restore another
    thread's filters. Here the first to enter saves the filters and the last to leave restores them.
    """
    global _INSIDE, _SAVED
    with _LOCK:
        if _INSIDE == 0:
            _SAVED = warnings.catch_warnings()
            _SAVED.__enter__()
            warnings.simplefilter("ignore")
        _INSIDE += 1
    try:
        yield
    finally:
        with _LOCK:
            _INSIDE -= 1
            if _INSIDE == 0 and _SAVED is not None:
                _SAVED.__exit__(None, None, None)
                _SAVED = None
