"""Windows for computed tomography by their names: what part of the Hounsfield scale is shown from black to white."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from difflib import get_close_matches
from typing import Any

from .errors import EncoderError, UnknownEncoder

WINDOWS: dict[str, tuple[float, float]] = {
    "lung": (-600.0, 1500.0),
    "mediastinum": (50.0, 350.0),
    "abdomen": (50.0, 400.0),
    "liver": (30.0, 150.0),
    "bone": (400.0, 1800.0),
    "brain": (40.0, 80.0),
    "stroke": (32.0, 8.0),
    "subdural": (75.0, 215.0),
    "angio": (300.0, 600.0),
}
"""Name -> (centre, width) in Hounsfield units, as radiology uses them (radiopaedia.org, article 52108)."""

MARK = "?window="
"""What stands between an encoder and the window its images are seen through, in a spec."""


def parse_window(text: str) -> tuple[float, float]:
    """Return (centre, width) in Hounsfield units for a name of `WINDOWS` or "CENTRE,WIDTH".

    Raises:
        UnknownEncoder: It is neither; windows belong to encoders.

    Example:
        >>> parse_window("lung"), parse_window("40, 80")
        ((-600.0, 1500.0), (40.0, 80.0))
    """
    name = text.strip().lower()
    if name in WINDOWS:
        return WINDOWS[name]
    parts = name.split(",")
    try:
        centre, width = (float(part) for part in parts)
    except ValueError:
        near = get_close_matches(name, WINDOWS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise UnknownEncoder(
            f"A window is one of {', '.join(WINDOWS)}, or CENTRE,WIDTH in Hounsfield units; got {text!r}.{hint}"
        ) from None
    if not (math.isfinite(centre) and math.isfinite(width) and width > 0):
        raise UnknownEncoder(f"A window needs a finite centre and a width above 0; got {text!r}.")
    return centre, width


def with_window(encoder: Any, text: str) -> Any:
    """Return an encoder that sees computed tomography through a window, with a fingerprint of its own.

    Other images are seen as before. The network is shared with the encoder given.

    Args:
        encoder: An encoder that reads pixels.
        text: As for `parse_window`.

    Raises:
        UnknownEncoder: There is no such window.
        EncoderError: The encoder reads no pixels.
    """
    from .encoders import BaseEncoder, fingerprint_of

    window = parse_window(text)
    loader: Any = getattr(encoder, "loader", None)
    if not isinstance(encoder, BaseEncoder) or not hasattr(loader, "seen_through"):
        raise EncoderError(f"The encoder {getattr(encoder, 'name', encoder)} reads no pixels, so no window applies.")
    seen = copy.copy(encoder)
    seen.loader = loader.seen_through(window)
    if hasattr(seen, "preprocess"):
        seen.preprocess = replace(seen.preprocess, window=window)
    seen.fingerprint = fingerprint_of({"encoder": encoder.fingerprint, "window": list(window)})
    seen.name = f"{encoder.name}{MARK}{text}"
    seen.spec = None if encoder.spec is None else f"{encoder.spec}{MARK}{text}"
    return seen
