"""Texts to vectors: the `TextEncoder` protocol, and `load_text_encoder`, which finds one by name.

Nothing in this module imports torch; the transformer kinds are loaded when they are asked for.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from .encoders import CHECKPOINT_FILE
from .errors import EncoderError, UnknownEncoder
from .text_files import TEXT_FILE, check_files, read_text_document
from .tfidf import load_tfidf

# How a transformers model's tokens may become one vector; a spec ends in "#" and one of them.
POOLINGS = ("mean", "cls", "last", "pooler")

# What a spec may look like; shown whole in errors.
TEXT_SPEC_FORMS = f'"hf:<id or folder>[#{"|".join(POOLINGS)}]", a folder with {TEXT_FILE}, or a text encoder'


@runtime_checkable
class TextEncoder(Protocol):
    """What the rest of the library asks of an encoder of texts.

    Attributes:
        name: For people.
        dim: Length of the vectors.
        fingerprint: SHA-256 (hex) over all that decides a vector. Encoders of one fingerprint make the same vectors;
            vectors of different fingerprints are never compared.
    """

    @property
    def name(self) -> str:
        """Return the name for people."""
        ...

    @property
    def dim(self) -> int:
        """Return the length of the vectors."""
        ...

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) over all that decides a vector."""
        ...

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Turn n texts into rows (n, dim), not normalised. Raises EncoderError for what is no list of texts."""
        ...

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Say of each text whether it is longer than the encoder takes, so that its end is not seen."""
        ...

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the encoder, so that `load_text_encoder(folder)` gives it back. Raises EncoderError."""
        ...


def load_text_encoder(spec: str | os.PathLike[str] | TextEncoder, *, device: str = "auto") -> TextEncoder:
    """Find a text encoder.

    Args:
        spec: A folder with text_encoder.json (what `save` or `train_text_encoder` wrote); "hf:<id or folder>", any text
            model of transformers; or an encoder, which is handed back. "hf:..." may end in "#mean" (the default: the
            mean over the tokens, padding left out), "#cls" (the first token), "#last" (the last token) or "#pooler"
            (the model's own pooled output). A model of images and texts gives its projected text vector.
        device: For the transformer kinds: "auto" takes CUDA where there is one, else the CPU; or "cpu", "cuda" ...

    Returns:
        An object of the `TextEncoder` protocol.

    Raises:
        EncoderError: Nothing of that name, or it cannot be loaded.
    """
    if not isinstance(spec, str | os.PathLike):
        if isinstance(spec, type) or not isinstance(spec, TextEncoder):
            raise EncoderError(f"A text encoder is named by {TEXT_SPEC_FORMS}; got {type(spec).__name__}.")
        return spec
    text = os.fspath(spec)
    if text.startswith("hf:"):
        from .transformers_text import text_encoder_from

        place, pooling = _split(text.removeprefix("hf:"))
        return text_encoder_from(place, pooling=pooling, device=device)
    root = Path(text)
    if not (root / TEXT_FILE).is_file():
        raise _not_found(text)
    document = read_text_document(root)
    check_files(root, document)
    if document["kind"] == "tfidf":
        return load_tfidf(root, document)
    from .transformers_text import load_saved

    return load_saved(root, document, device=device)


def _split(text: str) -> tuple[str, str | None]:
    """Part "<id or folder>#<pooling>"; the pooling is None where none is named."""
    place, mark, pooling = text.rpartition("#")
    if not mark or Path(text).is_dir():
        return text, None
    if pooling not in POOLINGS:
        close = get_close_matches(pooling, POOLINGS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise EncoderError(f"The pooling after '#' is one of {', '.join(POOLINGS)}; got {pooling!r}.{hint}")
    return place, pooling


def _not_found(text: str) -> EncoderError:
    """Say what an unknown spec may have meant."""
    folder = Path(text)
    if folder.is_dir():
        if (folder / "config.json").is_file():
            return UnknownEncoder(f'The folder {text} holds a transformers model: write "hf:{text}".')
        if (folder / CHECKPOINT_FILE).is_file():
            return EncoderError(f"The folder {text} holds an encoder of images, not of texts: use load_encoder.")
        return EncoderError(f"The folder {text} has no {TEXT_FILE}: it is no text encoder.")
    if folder.is_file():
        return EncoderError(f"{text} is a file; a text encoder is the folder that holds {TEXT_FILE}.")
    if re.match(r"(?i)tf-?idf", text):
        return UnknownEncoder(
            f"There is no folder {text!r}: a TF-IDF encoder is fitted, TfidfTextEncoder().fit(texts)."
        )
    beside: list[str] = []
    with suppress(OSError):
        beside = [path.name for path in folder.parent.iterdir() if (path / TEXT_FILE).is_file()]
    close = get_close_matches(folder.name, beside, n=1)
    hint = f" Did you mean {str(folder.parent / close[0])!r}?" if close else ""
    return UnknownEncoder(
        f"There is no text encoder {text!r} and no such folder; one is named by {TEXT_SPEC_FORMS}.{hint}"
    )
