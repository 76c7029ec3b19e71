"""Keep freed memory for the next step: a network's activations are of the same sizes every time."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# mallopt's parameters and the values glibc starts with (glibc manual, "Malloc Tunable Parameters").
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_DEFAULTS = {_TRIM_THRESHOLD: 128 * 1024, _TOP_PAD: 0, _MMAP_MAX: 65536}
_SETTINGS = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "GLIBC_TUNABLES",
)
_KEPT = {_TRIM_THRESHOLD: 2**31 - 1, _TOP_PAD: 256 * 2**20, _MMAP_MAX: 0}


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let the C library keep what is freed until the block ends.

    Does nothing where it is not glibc, or where the user has set it up (MALLOC_TRIM_THRESHOLD_ and its like).

    glibc asks the system for every large block and gives it back when it is freed, and the system zeroes it page by
    page each time: a third of a training step on a CPU. At the end what was kept is given back.
    """
    library = _glibc()
    if library is None or any(name in os.environ for name in _SETTINGS):
        yield
        return
    try:
        for parameter, value in _KEPT.items():
            library.mallopt(parameter, value)
        yield
    finally:
        for parameter, value in _DEFAULTS.items():
            library.mallopt(parameter, value)
        library.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """The C library where it is glibc, whose two functions this takes."""
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "malloc_trim") else None
