"""Text and metadata on their way into the database: checked, and written as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np


def patient_of(metadata: Mapping[str, Any]) -> str | None:
    """Return the patient of a row as text, or None."""
    patient = metadata.get("patient")
    return None if patient is None else check_text(str(patient), "patient")


def encode_metadata(metadata: Mapping[str, Any], identity: str) -> str:
    """Write a row's metadata as JSON text.

    Raises:
        ValueError: A value is NaN or has no JSON form; the row and key are named.
    """
    for key, value in metadata.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"Metadata must be finite; {key!r} of {identity!r} is {value}: leave it out if unknown.")
    try:
        return json.dumps(dict(metadata), ensure_ascii=True, allow_nan=False, default=_plain)
    except (TypeError, ValueError) as error:
        raise ValueError(f"Metadata of {identity!r} has no JSON form: {error}.") from None


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "isoformat"):
        return value.isoformat()
    raise TypeError(f"{value!r} is a {type(value).__name__}")


def check_text(value: Any, what: str) -> str:
    """Return a value that is text SQLite can hold.

    Raises:
        ValueError: It is no text, or holds halves of surrogate pairs.
    """
    if not isinstance(value, str):
        raise ValueError(f"An {what} must be text; got {value!r}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"An {what} must be text that UTF-8 can hold; got {value!r}.") from None
    return value
