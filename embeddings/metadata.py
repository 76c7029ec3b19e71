"""Text and metadata on their way into the database: checked, and written as JSON."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np


def is_missing(value: Any) -> bool:
    """Say whether a cell is None, NaN, NaT or pandas.NA, as tables write what is unknown."""
    # The last three are the values that do not equal themselves, or refuse to say so.
    if value is None:
        return True
    try:
        return bool(value != value)
    except (TypeError, ValueError):
        return type(value).__name__ == "NAType"


def patient_text(value: Any) -> str | None:
    """Return a patient as the text it is stored and looked for under, or None where it is missing or blank.

    White space around it is dropped, and so is the `.0` that a table with gaps puts behind a whole number.
    """
    if is_missing(value):
        return None
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip() or None


def patient_of(metadata: Mapping[str, Any]) -> str | None:
    """Return the patient of a row as `patient_text`, or None."""
    patient = patient_text(metadata.get("patient"))
    return None if patient is None else check_text(patient, "patient")


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
        raise ValueError(f"The {what} must be text; got {type(value).__name__}.")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise ValueError(f"The {what} must be text that UTF-8 can hold.") from None
    return value
