"""One writer at a time: a lock of the operating system, and beside it a record of who holds it."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import ArchiveLocked

LOCK_NAME = "writer.lock"
"""The file the operating system locks; it is empty and stays. A dead process lets go of it by dying."""

HOLDER_NAME = "writer.json"
"""Who holds the lock (host, pid, since), for the error message only: a stale one blocks nobody."""

POLL_SECONDS = 0.005
"""How often a waiting writer tries again."""


class WriterLock:
    """The archive's single-writer lock; re-entrant within a thread, exclusive between threads and processes."""

    def __init__(self, root: Path, *, timeout: float) -> None:
        """Name the files; nothing is created before the first `held`.

        Args:
            root: The archive's folder.
            timeout: Seconds to wait for another writer before `ArchiveLocked`.
        """
        self._root = root
        self._timeout = timeout
        self._threads = threading.RLock()
        self._depth = 0

    @contextmanager
    def held(self, timeout: float | None = None) -> Iterator[None]:
        """Hold the lock for the length of a `with` block.

        Args:
            timeout: Seconds to wait for another writer; by default the lock's own.

        Raises:
            ArchiveLocked: Another thread, process or host kept it longer than the timeout; the holder is named.
        """
        started = time.monotonic()
        patience = self._timeout if timeout is None else timeout
        if not self._threads.acquire(timeout=patience):
            raise ArchiveLocked(self._refusal(patience))
        try:
            if self._depth:
                self._depth += 1
                try:
                    yield
                finally:
                    self._depth -= 1
                return
            left = max(0.0, patience - (time.monotonic() - started))
            lock = FileLock(self._root / LOCK_NAME, timeout=left, poll_interval=POLL_SECONDS)
            try:
                lock.acquire()
            except Timeout:
                raise ArchiveLocked(self._refusal(patience)) from None
            try:
                self._sign()
                self._depth = 1
                try:
                    yield
                finally:
                    self._depth = 0
                    with suppress(OSError):
                        (self._root / HOLDER_NAME).unlink()
            finally:
                lock.release()
        finally:
            self._threads.release()

    @property
    def nested(self) -> bool:
        """Whether the thread that asks holds the lock more than once: whoever took it first has not finished."""
        return self._depth > 1

    def holder(self) -> str:
        """Say who holds the lock, as far as the record beside it tells."""
        try:
            record = json.loads((self._root / HOLDER_NAME).read_text(encoding="utf-8"))
            return f"process {record['pid']} on {record['host']} since {record['since']}"
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return "another process"

    def _refusal(self, patience: float) -> str:
        return (
            f"The archive '{self._root}' is being written by {self.holder()}, and waiting {patience:g} s did not "
            "help: try again when it has finished."
        )

    def _sign(self) -> None:
        record = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        # The record only serves the message above, so a full disk must not stop the writer here.
        with suppress(OSError):
            draft = self._root / f"{HOLDER_NAME}.tmp"
            draft.write_text(json.dumps(record), encoding="utf-8")
            draft.replace(self._root / HOLDER_NAME)
