"""Small pictures inside a page."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from embeddings import read_image

#: Longer side of a thumbnail in pixels.
THUMBNAIL = 128


def thumbnail(path: str | Path) -> str:
    """An image file as a data URI."""
    return data_uri(np.rint(read_image(path) * 255).astype(np.uint8))


def data_uri(picture: NDArray[np.uint8], *, side: int = THUMBNAIL) -> str:
    """A picture as a PNG in a data URI.

    Args:
        picture: Grey (h, w) or colour (h, w, 3).
        side: Longer side at most, in pixels.
    """
    image = Image.fromarray(picture)
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
