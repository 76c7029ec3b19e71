"""The child side of decoding: a process that reads images under limits, and may be killed without loss.

It is started by `embeddings.decoding` as a plain Python process without torch. Calls come as pickles from the process
that started it; answers go back as JSON with arrays in shared memory, so that whatever a hostile image does to a
decoder, the parent never unpickles what this process says.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import pickle
import resource
import socket
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import ImageError

LENGTH = struct.Struct("<Q")
"""In front of every message: its length in bytes."""

MEBIBYTE = 1 << 20

ALIGNMENT = 64
"""Arrays begin at multiples of this many bytes."""


class _TooLarge(Exception):
    """The answer does not fit into the shared memory."""


@dataclass(slots=True)
class _Arena:
    """The shared memory, filled from its start for every answer."""

    memory: mmap.mmap
    used: int = 0

    def put(self, array: np.ndarray[Any, np.dtype[Any]]) -> dict[str, Any]:
        values = np.ascontiguousarray(array)
        if values.dtype.kind not in "buif":
            raise TypeError(f"an answer holds numbers, not {values.dtype}")
        start = -(-self.used // ALIGNMENT) * ALIGNMENT
        if start + values.nbytes > len(self.memory):
            raise _TooLarge
        if values.nbytes:
            place = np.frombuffer(self.memory, dtype=np.uint8, count=values.nbytes, offset=start)
            place[:] = values.reshape(-1).view(np.uint8)
        self.used = start + values.nbytes
        return {"array": [start, values.dtype.str, list(values.shape)]}


def pack(value: Any, arena: _Arena) -> Any:
    """Turn an answer into JSON types; arrays become places in the shared memory.

    Raises:
        TypeError: It holds something else than None, numbers, text, arrays, and tuples, lists and mappings of those.
    """
    if isinstance(value, np.ndarray):
        return arena.put(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, tuple):
        return {"tuple": [pack(item, arena) for item in value]}
    if isinstance(value, list):
        return [pack(item, arena) for item in value]
    if isinstance(value, Mapping):
        return {"dict": [[str(key), pack(item, arena)] for key, item in value.items()]}
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise TypeError(f"an answer cannot hold a {type(value).__name__}")


def answer(request: bytes, memory: mmap.mmap) -> bytes:
    """Carry out one call and return the answer's JSON; whatever goes wrong becomes an answer too."""
    try:
        function, arguments = pickle.loads(request)
    except Exception as error:  # a class that only the parent has
        return _failure("unknown", f"{type(error).__name__}: {error}")
    try:
        return json.dumps({"answer": pack(function(*arguments), _Arena(memory))}).encode()
    except ImageError as error:
        return json.dumps({"failure": "image", "source": error.source, "reason": error.reason}).encode()
    except MemoryError:
        return _failure("memory", "")
    except _TooLarge:
        return _failure("large", "")
    except OSError as error:
        return _failure("file", (error.strerror or str(error)).lower())
    except Exception as error:  # a decoder may raise anything
        return _failure("other", f"{type(error).__name__}: {' '.join(str(error).split())[:200]}".rstrip(" :."))


def _failure(kind: str, text: str) -> bytes:
    return json.dumps({"failure": kind, "reason": text}).encode()


def serve(connection: socket.socket, memory: mmap.mmap, *, extra_bytes: int, seconds: int) -> None:
    """Answer calls until the parent closes its end.

    Args:
        connection: The stream of calls and answers.
        memory: Where arrays are put.
        extra_bytes: Memory allowed beyond what the process holds now.
        seconds: Processor time allowed per call.
    """
    base = private_bytes()
    limit = base + extra_bytes
    limit_to(resource.RLIMIT_DATA, limit, limit)
    limit_to(resource.RLIMIT_CORE, 0, 0)
    while (request := receive(connection)) is not None:
        spent = resource.getrusage(resource.RUSAGE_SELF)
        until = int(spent.ru_utime + spent.ru_stime) + 1 + seconds
        limit_to(resource.RLIMIT_CPU, until, resource.RLIM_INFINITY)
        reply = answer(request, memory)
        del request
        connection.sendall(LENGTH.pack(len(reply)) + reply)
        if private_bytes() > base + extra_bytes // 2:
            _trim()


def limit_to(kind: int, soft: int, hard: int) -> None:
    """Set a limit, or as much of it as the limits this process was started under allow."""
    top = resource.getrlimit(kind)[1]

    def allowed(value: int) -> int:
        if top == resource.RLIM_INFINITY:
            return value
        return top if value == resource.RLIM_INFINITY else min(value, top)

    resource.setrlimit(kind, (allowed(soft), allowed(hard)))


def receive(connection: socket.socket) -> bytes | None:
    """Read one message; None where the other end was closed."""
    header = exactly(connection, LENGTH.size)
    return None if header is None else exactly(connection, LENGTH.unpack(header)[0])


def exactly(connection: socket.socket, size: int) -> bytes | None:
    """Read `size` bytes; None where the other end closes before."""
    parts = bytearray()
    while len(parts) < size:
        part = connection.recv(min(size - len(parts), MEBIBYTE))
        if not part:
            return None
        parts += part
    return bytes(parts)


def private_bytes() -> int:
    """Return what RLIMIT_DATA counts: the process's private writable memory (the kernel's VmData), in bytes."""
    with suppress(OSError, IndexError, ValueError):
        return int(Path("/proc/self/statm").read_bytes().split()[5]) * mmap.PAGESIZE
    return 0


def _trim() -> None:
    """Give memory that the C library keeps for later back to the system, where it is glibc."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def main(descriptor: int, shared: int, shared_bytes: int, extra_bytes: int, seconds: int) -> None:
    """Run as the child: import what decodes first, so that the memory limit is counted from there."""
    import pydicom.pixels  # noqa: F401
    from PIL import Image

    from . import dicom, images  # noqa: F401 (imported for the reason above)

    Image.preinit()
    with socket.socket(fileno=descriptor) as connection, mmap.mmap(shared, shared_bytes) as memory:
        connection.sendall(LENGTH.pack(0))  # ready
        serve(connection, memory, extra_bytes=extra_bytes, seconds=seconds)
