"""Texts to vectors: the `TextEncoder` protocol, TF-IDF with latent semantic analysis, and `load_text_encoder`.

Latent semantic analysis: Deerwester et al., Indexing by latent semantic analysis, JASIS 41(6), 1990. Nothing in this
module imports torch; the transformer kinds are loaded when they are asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from difflib import get_close_matches
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from .encoders import CHECKPOINT_FILE, fingerprint_of
from .errors import EncoderError, UnknownEncoder
from .segments import sync_folder

# The file that makes a folder a text encoder, the version of its layout, and the largest one that is read.
TEXT_FILE, TEXT_FORMAT, MAX_JSON_BYTES = "text_encoder.json", 1, 256 * 2**20

# The idf weights and the components of a TF-IDF encoder.
WEIGHTS_FILE = "weights.safetensors"

# How a transformers model's tokens may become one vector; a spec ends in "#" and one of them.
POOLINGS = ("mean", "cls", "last", "pooler")

# What a spec may look like; shown whole in errors.
TEXT_SPEC_FORMS = f'"hf:<id or folder>[#{"|".join(POOLINGS)}]", a folder with {TEXT_FILE}, or a text encoder'

# A word: letters, digits and underscores, one of them being enough ("T 1", "3 mm").
_WORD = r"(?u)\b\w+\b"

# Components whose singular value is below this share of the largest are rounding noise and are left out.
_LEAST_SINGULAR = 1e-6

# Texts whose weighted words are held in memory at once.
_TEXTS_AT_ONCE = 4096


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


@dataclass(frozen=True)
class TfidfOptions:
    """How a `TfidfTextEncoder` is fitted; see there.

    Raises:
        EncoderError: A number is out of its bounds.
    """

    dim: int = 128
    ngrams: tuple[int, int] = (1, 2)
    min_count: int = 2
    sublinear: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what cannot be fitted."""
        for name, least, value in (("dim", 1, self.dim), ("min_count", 1, self.min_count), ("seed", 0, self.seed)):
            if type(value) is not int or not least <= value < 2**32:
                raise EncoderError(f"{name} must be a whole number of at least {least}; got {value!r}.")
        pair = self.ngrams
        if not isinstance(pair, tuple) or [type(n) for n in pair] != [int, int] or not 1 <= pair[0] <= pair[1] <= 5:
            raise EncoderError(f"ngrams must be the least and the most words of a term, from 1 to 5; got {pair!r}.")
        if type(self.sublinear) is not bool:
            raise EncoderError(f"sublinear must be True or False; got {self.sublinear!r}.")


class TfidfTextEncoder:
    """Words and word pairs weighted by rarity (TF-IDF), projected on the directions in which the texts differ most.

    A text's row is its TF-IDF weights, of length 1, times the right singular vectors of the fitted texts' weights
    (latent semantic analysis). Nothing is downloaded. One set of texts and one seed give one encoder, signs included; a
    text has the same row in whatever batch it comes. A text without any known word has a row of zeros: ask `known`.

    Args:
        dim: Length of the vectors. Fewer texts or terms than that, or texts that repeat each other, allow no more
            directions than they have: `dim` is then smaller, `reduced` is True and `options.dim` is what was asked.
        ngrams: Least and most words of a term; (1, 2) tells "no effusion" from "effusion".
        min_count: Texts in which a term must occur to be known.
        sublinear: Whether a term that occurs c times in a text counts 1 + log c rather than c.
        seed: Of the randomised decomposition (Halko et al. 2011).

    Raises:
        EncoderError: A number is out of its bounds.

    Example:
        >>> texts = ["no pleural effusion", "large pleural effusion", "no pneumothorax", "large pneumothorax"]
        >>> encoder = TfidfTextEncoder(dim=3, ngrams=(1, 1)).fit(texts)
        >>> encoder.encode(["pleural effusion", "fracture"]).shape, encoder.known(["pleural effusion", "fracture"])
        ((2, 3), [True, False])
    """

    spec: str | None = None

    def __init__(
        self,
        dim: int = 128,
        *,
        ngrams: tuple[int, int] = (1, 2),
        min_count: int = 2,
        sublinear: bool = True,
        seed: int = 0,
    ) -> None:
        """Keep the options; `fit` does the work."""
        self.options = TfidfOptions(dim, ngrams, min_count, sublinear, seed)
        self._learnt: _Learnt | None = None

    def fit(self, texts: Sequence[str]) -> TfidfTextEncoder:
        """Learn the terms, their weights and the directions from n texts; returns the encoder itself.

        Raises:
            EncoderError: `texts` is no list of texts, or no term occurs in `min_count` of them.
        """
        from sklearn.utils.extmath import randomized_svd

        options, checked = self.options, checked_texts(texts, "fit")
        vectorizer = _vectorizer(options)
        try:
            weights = vectorizer.fit_transform(checked)
        except ValueError as error:  # scikit-learn's word for no term, however it came about
            raise EncoderError(
                f"No word occurs in at least {options.min_count} of the {len(checked)} texts: give more texts or a "
                "smaller min_count."
            ) from error
        size = min(options.dim, *weights.shape)
        _, singular, components = randomized_svd(weights, size, n_iter=7, random_state=options.seed)
        components = _signed(components[singular > _LEAST_SINGULAR * singular[0]])
        vocabulary = [str(term) for term in vectorizer.get_feature_names_out()]
        self._learnt = _Learnt(options, vocabulary, np.array(vectorizer.idf_), components.astype(np.float32))
        self.spec = None
        return self

    @property
    def name(self) -> str:
        """Return "tfidf-" and the length of the vectors."""
        return f"tfidf-{self.dim}"

    @property
    def dim(self) -> int:
        """Return the length of the vectors; before `fit`, the length that was asked for."""
        return self.options.dim if self._learnt is None else len(self._learnt.components)

    @property
    def reduced(self) -> bool:
        """Return whether the texts allowed fewer directions than were asked for."""
        return self.dim < self.options.dim

    @property
    def fingerprint(self) -> str:
        """Return the SHA-256 (hex) over terms, weights, directions and how words are counted."""
        return self._fitted().fingerprint

    @property
    def vocabulary(self) -> tuple[str, ...]:
        """Return the known terms in alphabetical order."""
        return tuple(self._fitted().vocabulary)

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Turn n texts into float32 rows (n, dim), no longer than 1; zeros for a text without any known word.

        Raises:
            EncoderError: `texts` is no list of texts, or the encoder is not fitted.
        """
        learnt, checked = self._fitted(), checked_texts(texts, "encode")
        rows = np.zeros((len(checked), self.dim), dtype=np.float32)
        for start in range(0, len(checked), _TEXTS_AT_ONCE):
            weights = learnt.vectorizer.transform(checked[start : start + _TEXTS_AT_ONCE])
            used = np.unique(weights.indices)
            directions = learnt.components[:, used].T.astype(np.float64)
            rows[start : start + weights.shape[0]] = weights[:, used] @ directions
        return rows

    def known(self, texts: Sequence[str]) -> list[bool]:
        """Say of each text whether any of its words, or word pairs, was learnt.

        Raises:
            EncoderError: `texts` is no list of texts, or the encoder is not fitted.
        """
        learnt, checked = self._fitted(), checked_texts(texts, "known")
        return [bool(count) for count in np.diff(learnt.vectorizer.transform(checked).indptr)] if checked else []

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        """Return False for each text: all words of a text of any length count."""
        return [False] * len(checked_texts(texts, "truncated"))

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write text_encoder.json and weights.safetensors; see `write_text_encoder`.

        Raises:
            EncoderError: The encoder is not fitted, or the folder cannot be written.
        """
        learnt = self._fitted()
        tensors: dict[str, NDArray[Any]] = {"idf": learnt.idf, "components": learnt.components}
        document = {
            "kind": "tfidf",
            "name": self.name,
            "dim": self.dim,
            "fingerprint": self.fingerprint,
            "options": asdict(self.options),
            "vocabulary": list(learnt.vocabulary),
        }
        target = write_text_encoder(folder, document, lambda place: save_file(tensors, place / WEIGHTS_FILE))
        self.spec = str(target.absolute())
        return target

    def _fitted(self) -> _Learnt:
        if self._learnt is None:
            raise EncoderError("This TfidfTextEncoder has learnt no words yet: call fit(texts) first.")
        return self._learnt

    def __repr__(self) -> str:
        """Return the name and the first digits of the fingerprint."""
        state = "not fitted" if self._learnt is None else f"fingerprint={self.fingerprint[:12]!r}"
        return f"TfidfTextEncoder({self.name!r}, dim={self.dim}, {state})"


class _Learnt:
    """What `fit` found: t terms in order, their idf (t,) float64, the components (d, t) float32."""

    def __init__(
        self,
        options: TfidfOptions,
        vocabulary: Sequence[str],
        idf: NDArray[np.float64],
        components: NDArray[np.float32],
    ) -> None:
        self.vocabulary, self.idf, self.components = vocabulary, idf, np.ascontiguousarray(components)
        self.vectorizer = _vectorizer(options, vocabulary)
        self.vectorizer.idf_ = idf
        counted = {"word": _WORD, "ngrams": options.ngrams, "sublinear": options.sublinear}
        self.fingerprint = fingerprint_of(
            {"kind": "tfidf", "vocabulary": list(vocabulary), **counted},
            {"idf": self.idf, "components": self.components},
        )


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
    document = _read_document(root)
    check_files(root, document)
    if document["kind"] == "tfidf":
        return _load_tfidf(root, document)
    from .transformers_text import load_saved

    return load_saved(root, document, device=device)


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
        before = set(_read_document(target)["files"]) if (target / TEXT_FILE).is_file() else set()
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


def _read_document(root: Path) -> dict[str, Any]:
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


def _load_tfidf(root: Path, document: Mapping[str, Any]) -> TfidfTextEncoder:
    try:
        arrays, options = load_file(root / WEIGHTS_FILE), dict(document["options"])
        vocabulary = document["vocabulary"]
        options["ngrams"] = tuple(options["ngrams"])
        encoder = TfidfTextEncoder(**options)
        idf, components = arrays["idf"], arrays["components"]
        if not (isinstance(vocabulary, list) and vocabulary and all(isinstance(term, str) for term in vocabulary)):
            raise ValueError("its vocabulary is no list of terms")
        shape = (len(components), len(vocabulary))
        if components.shape != shape or idf.shape != shape[1:] or not 1 <= len(components) <= encoder.options.dim:
            raise ValueError(f"{len(vocabulary)} terms, weights {idf.shape} and components {components.shape}")
        if idf.dtype != np.float64 or components.dtype != np.float32:
            raise ValueError(f"weights of {idf.dtype} and components of {components.dtype}")
        encoder._learnt = _Learnt(encoder.options, vocabulary, idf, components)
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        raise EncoderError(f"The text encoder in {root} is none that was saved: {str(error).rstrip('.')}.") from error
    if encoder.fingerprint != document.get("fingerprint"):
        raise EncoderError(f"The text encoder in {root} is not what was saved: its {TEXT_FILE} was changed.")
    encoder.spec = str(root.absolute())
    return encoder


def _vectorizer(options: TfidfOptions, vocabulary: Sequence[str] | None = None) -> Any:
    """Make scikit-learn's vectoriser: TF-IDF rows of Euclidean length 1, smoothed idf, float64."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(
        preprocessor=_plain,
        token_pattern=_WORD,
        ngram_range=options.ngrams,
        min_df=options.min_count,
        sublinear_tf=options.sublinear,
        vocabulary=vocabulary,
    )


def _plain(text: str) -> str:
    """Write a text without differences of case and of Unicode composition."""
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


def _signed(components: NDArray[np.float64]) -> NDArray[np.float64]:
    """Give each component the sign that makes the first of its largest entries positive."""
    size = np.abs(components)
    first = (size >= size.max(axis=1, keepdims=True) * (1 - 1e-6)).argmax(axis=1)  # rounding must not choose
    signs: NDArray[np.float64] = np.sign(components[np.arange(len(components)), first])
    return components * signs[:, None]


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
