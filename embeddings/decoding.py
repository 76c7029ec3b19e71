"""Decoder: images read in a process of its own, limited in memory and time, that may crash and cost one image.

A process is a plain Python child without torch, not a fork: decoders' threads and locks are never inherited, and a
script needs no `if __name__ == "__main__"`. Idle processes are kept for the next job of the same limits.
"""

from __future__ import annotations

import atexit
import json
import math
import mmap
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .decoding_worker import LENGTH, MEBIBYTE, exactly
from .errors import DecoderUnavailable, ImageError

SHARED_BYTES = 256 * MEBIBYTE
"""Shared memory per process, the largest answer; only what answers touch is ever allocated."""

WALL_FACTOR = 4
"""A call may take this many times its processor time by the clock: other programs want the processors too."""

START_SECONDS = 120.0
"""How long a new process may take to say that it is there."""

MAX_IDLE = 4
"""Processes kept for the next job, at most."""

NONSENSE = (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError)
"""What comes of reading an answer that no sound process gives."""

_ENVIRONMENT = {
    # One thread per process, and large blocks from the heap: pages of a decoded image are reused, not mapped anew.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "33554432",
    "MALLOC_TRIM_THRESHOLD_": "268435456",
}

_START = "import sys; sys.path[:] = {path!r}; from embeddings.decoding_worker import main; main({arguments})"


@dataclass(frozen=True, slots=True)
class DecodingLimits:
    """What one image may cost.

    Attributes:
        memory: Bytes beyond what the process needs for itself.
        seconds: Processor time; by the clock it may take `WALL_FACTOR` times as long.
    """

    memory: int = 512 * MEBIBYTE
    seconds: int = 20


class UnknownToDecoder(Exception):
    """The process does not know a function or a class it was sent."""


class Decoder:
    """One decoding process; one thread at a time may call it.

    A call that crashes or exceeds the limits costs that call only: the next one gets a new process.
    """

    def __init__(self, limits: DecodingLimits | None = None) -> None:
        """Set the limits; the process starts with the first call."""
        self.limits = limits or DecodingLimits()
        self._owner = os.getpid()
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: socket.socket | None = None
        self._memory: mmap.mmap | None = None

    def call(self, function: Callable[..., Any], *arguments: Any, source: object = None) -> Any:
        """Run a function in the process.

        Args:
            function: A function of an importable module; it returns None, numbers, text, NumPy arrays, or tuples,
                lists and mappings (with text for keys) of those.
            arguments: Anything that pickles.
            source: What an error names; by default the first argument.

        Returns:
            What the function returned; arrays are the caller's own.

        Raises:
            ImageError: The function raised it, or the image cost more than the limits allow, or broke the process.
            DecoderUnavailable: No process can be started.
            UnknownToDecoder: The process does not know the function, or an argument's class.
        """
        name = source if source is not None else (arguments[0] if arguments else function.__name__)
        request = pickle.dumps((function, arguments), protocol=pickle.HIGHEST_PROTOCOL)
        reply = self._exchange(request, name)
        if "answer" in reply:
            try:
                return self._unpacked(reply["answer"])
            except NONSENSE:
                raise ImageError(name, "made its decoder answer nonsense") from None
        raise self._error(reply, name)

    def _error(self, reply: dict[str, Any], name: object) -> Exception:
        reason = str(reply.get("reason", ""))
        match reply.get("failure"):
            case "image":
                return ImageError(reply.get("source", name), reason)
            case "memory":
                return ImageError(name, f"needs more than the {self.limits.memory // MEBIBYTE} MB an image may take")
            case "large":
                return ImageError(name, f"decodes to more than {SHARED_BYTES // MEBIBYTE} MB")
            case "file":
                return ImageError(name, f"cannot be read: {reason}")
            case "unknown":
                return UnknownToDecoder(f"The decoding process cannot load what it was sent ({reason}).")
        return ImageError(name, f"cannot be read: {reason}")

    def _exchange(self, request: bytes, name: object) -> dict[str, Any]:
        connection = self._started()
        connection.settimeout(float(WALL_FACTOR * self.limits.seconds))
        try:
            connection.sendall(LENGTH.pack(len(request)) + request)
            reply = _receive(connection)
        except TimeoutError:
            self.close()
            reason = f"took longer than {WALL_FACTOR * self.limits.seconds} s to decode"
            raise ImageError(name, reason) from None
        except OSError:
            reply = None
        except BaseException:  # Ctrl-C in the middle: what the process is at belongs to nobody now
            self.close()
            raise
        if reply is None:
            raise ImageError(name, self._last_words())
        try:
            document = json.loads(reply)
            if isinstance(document, dict):
                return document
        except NONSENSE:
            pass
        self.close()
        raise ImageError(name, "made its decoder answer nonsense")

    def _last_words(self) -> str:
        """Say why the process is gone, and clear up after it."""
        code = None
        if self._process is not None:
            with suppress(subprocess.TimeoutExpired):
                code = self._process.wait(timeout=5)
        self.close()
        if code == -signal.SIGXCPU:
            return f"needs more than {self.limits.seconds} s of processor time to decode"
        how = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        return f"made its decoder crash ({how})"

    def _unpacked(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._unpacked(item) for item in value]
        if not isinstance(value, dict):
            return value
        if "tuple" in value:
            return tuple(self._unpacked(item) for item in value["tuple"])
        if "dict" in value:
            return {key: self._unpacked(item) for key, item in value["dict"]}
        return self._array(*value["array"])

    def _array(self, start: int, dtype: str, shape: list[int]) -> NDArray[Any]:
        """Copy an array out of the shared memory; NumPy checks that it lies within."""
        kind = np.dtype(dtype)
        count = math.prod(shape)
        if min(shape, default=0) < 0:
            raise ValueError("a shape below 0")
        memory = self._memory
        if memory is None or kind.kind not in "buif":
            raise ImageError("decoder", "made its decoder answer nonsense")
        if not count:
            return np.empty(shape, dtype=kind)
        return np.frombuffer(memory, dtype=kind, count=count, offset=start).reshape(shape).copy()

    def _started(self) -> socket.socket:
        if self._connection is not None and self._owner == os.getpid():
            return self._connection
        self._owner = os.getpid()
        ours, theirs = socket.socketpair()
        shared = _shared_file()
        try:
            self._memory = mmap.mmap(shared, SHARED_BYTES)
            arguments = (theirs.fileno(), shared, SHARED_BYTES, self.limits.memory, self.limits.seconds)
            code = _START.format(
                path=[entry for entry in sys.path if isinstance(entry, str)], arguments=", ".join(map(str, arguments))
            )
            self._process = subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", code],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={**os.environ, **_ENVIRONMENT},
                pass_fds=(theirs.fileno(), shared),
                process_group=0,  # Ctrl-C is the parent's affair
            )
            theirs.close()
            ours.settimeout(START_SECONDS)
            if _receive(ours) is None:
                raise OSError("it ended at once")
        except OSError as error:
            ours.close()
            theirs.close()
            self.close()
            raise DecoderUnavailable(
                f"A decoding process cannot be started ({error.strerror or error}): decode in this one with workers=0."
            ) from error
        except BaseException:  # Ctrl-C while it starts
            ours.close()
            theirs.close()
            self.close()
            raise
        finally:
            os.close(shared)
        self._connection = ours
        return ours

    @property
    def pid(self) -> int | None:
        """The process's number, None where there is none at the moment."""
        return None if self._process is None else self._process.pid

    def close(self) -> None:
        """End the process; the next call starts another."""
        process, connection, memory = self._process, self._connection, self._memory
        self._process = self._connection = self._memory = None
        if connection is not None:
            connection.close()
        if memory is not None:
            memory.close()
        if process is not None and self._owner == os.getpid():
            process.kill()
            process.wait()


def _receive(connection: socket.socket) -> bytes | None:
    """Read one message of the child; None where it is gone or says something no answer can be."""
    header = exactly(connection, LENGTH.size)
    if header is None:
        return None
    (size,) = LENGTH.unpack(header)
    return None if size > SHARED_BYTES else exactly(connection, size)


def _shared_file() -> int:
    """Make a file of `SHARED_BYTES` in memory that has no name, where the system has such; else an unlinked one."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("radshot-decoding")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, SHARED_BYTES)
    return descriptor


_IDLE: list[Decoder] = []
_IDLE_GUARD = threading.Lock()


@contextmanager
def decoders(count: int, limits: DecodingLimits | None = None) -> Iterator[list[Decoder]]:
    """Lend `count` decoders of some limits for a `with` block, idle ones first."""
    wanted = limits or DecodingLimits()
    with _IDLE_GUARD:
        lent = [one for one in _IDLE if one.limits == wanted and one._owner == os.getpid()][:count]
        for one in lent:
            _IDLE.remove(one)
    lent += [Decoder(wanted) for _ in range(count - len(lent))]
    try:
        yield lent
    finally:
        with _IDLE_GUARD:
            _IDLE.extend(lent)
            surplus, _IDLE[:] = _IDLE[:-MAX_IDLE], _IDLE[-MAX_IDLE:]
        for one in surplus:
            one.close()


@atexit.register
def close_decoders() -> None:
    """End all idle decoding processes; new ones start when they are needed."""
    with _IDLE_GUARD:
        idle = _IDLE[:]
        _IDLE.clear()
    for one in idle:
        one.close()
