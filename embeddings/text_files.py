"""A text encoder on disk: JSON beside its weights, each file named by its hash, and nothing that can run code."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import SafetensorError

from .errors import EncoderError
from .segments import sync_folder

# The file that makes a folder a text encoder, the version of its layout, and the largest one that is read.
TEXT_FILE, TEXT_FORMAT, MAX_JSON_BYTES = "text_encoder.json", 1, 256 * 2**20


def checked_texts(texts: Sequence[str], method: str) -> list[str]:
    """Return the texts as a list.

    Raises:
        EncoderError: It is a single text, or holds something that is no text.
    """
    if isinstance(texts, str):
        raise EncoderError(f"{method} takes a list of texts and got a single one: write {method}([text]).")
    try:
        found = list(texts)
    except TypeError as error:
        raise EncoderError(f"{method} takes a list of texts; got {type(texts).__name__}.") from error
    for number, text in enumerate(found):
        if not isinstance(text, str):
            raise EncoderError(f"{method} takes a list of texts; number {number} is {type(text).__name__} ({text!r}).")
        if not text.isascii() and any(0xD800 <= ord(letter) < 0xE000 for letter in text):
            raise EncoderError(f"{method} takes a list of texts; number {number} holds half a character (a surrogate).")
    return found


def write_text_encoder(
    folder: str | os.PathLike[str], document: Mapping[str, Any], fill: Callable[[Path], object]
) -> Path:
    """Write a text encoder's files, and last text_encoder.json, which names the SHA-256 of each.

    A kill leaves the encoder before, this one, or, where files of the encoder before were being replaced, a folder that
    is refused when it is loaded.

    Args:
        folder: Made where it is missing; a text encoder already there is replaced, other files stay.
        document: Plain JSON types; format and hashes are added.
        fill: Writes the files into the folder it is given.

    Returns:
        The folder.

    Raises:
        EncoderError: The folder cannot be written, or the description is larger than one that can be read.
    """
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
        before = set(read_text_document(target)["files"]) if (target / TEXT_FILE).is_file() else set()
    except EncoderError:
        before = set()
    except OSError as error:
        raise EncoderError(f"The text encoder {target} cannot be written: {error.strerror or error}.") from error
    try:
        with TemporaryDirectory(prefix=".text-encoder-", dir=target) as made:
            staged = Path(made)
            fill(staged)
            files = {path.name: _sha256(path) for path in sorted(staged.iterdir())}
            whole = {"format_version": TEXT_FORMAT, **document, "files": files}
            text = json.dumps(whole, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
            if len(text.encode()) > MAX_JSON_BYTES:
                raise EncoderError(f"The text encoder has too many terms to be saved in {target}: raise min_count.")
            (staged / TEXT_FILE).write_text(text, encoding="utf-8")
            mode = (staged / TEXT_FILE).stat().st_mode & 0o777
            for name in [*files, TEXT_FILE]:
                with (staged / name).open("rb") as stream:
                    os.fsync(stream.fileno())
                (staged / name).chmod(mode)  # safetensors' own lets the owner alone read it
                (staged / name).replace(target / name)
                sync_folder(target)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise EncoderError(f"The text encoder {target} cannot be written: {reason}.") from error
    for name in before - set(files):
        with suppress(OSError):
            (target / name).unlink()
    return target


def read_text_document(root: Path) -> dict[str, Any]:
    """Return text_encoder.json, checked for size, syntax and format."""
    path = root / TEXT_FILE
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_JSON_BYTES + 1)
        if len(content) > MAX_JSON_BYTES:
            raise ValueError(f"larger than {MAX_JSON_BYTES:,} bytes")
        document = json.loads(content)
        version, files = document["format_version"], document["files"]
        if type(version) is int and version > TEXT_FORMAT:
            raise EncoderError(f"{path} has format {version}, this radshot reads {TEXT_FORMAT}: upgrade radshot.")
        if document["kind"] not in ("tfidf", "transformers") or version != TEXT_FORMAT:
            raise ValueError(f"format {version!r} of kind {document['kind']!r}")
        if not all(re.fullmatch(r"[\w-][\w.-]*", name) and isinstance(files[name], str) for name in files):
            raise ValueError("files that lie elsewhere")
    except OSError as error:
        raise EncoderError(f"{path} cannot be read: {error.strerror or error}.") from error
    except EncoderError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = " ".join(str(error).split())[:200]
        raise EncoderError(f"{path} is no description of a text encoder, or was cut short ({why}).") from error
    return dict(document)


def check_files(root: Path, document: Mapping[str, Any]) -> None:
    """Compare the files that text_encoder.json names with the hashes it has of them.

    Raises:
        EncoderError: One is missing, or not what was saved.
    """
    for name, sha256 in document["files"].items():
        path = root / name
        try:
            found = _sha256(path)
        except OSError as error:
            raise EncoderError(f"The text encoder's {path} cannot be read: {error.strerror or error}.") from error
        if found != sha256:
            raise EncoderError(f"{path} is not the file {TEXT_FILE} was saved with: one of the two was changed.")


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
