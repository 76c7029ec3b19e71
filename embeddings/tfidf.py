"""TF-IDF with latent semantic analysis: texts to vectors without torch and without a download.

Latent semantic analysis: Deerwester et al., Indexing by latent semantic analysis, JASIS 41(6), 1990.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from .encoders import fingerprint_of
from .errors import EncoderError
from .text_files import TEXT_FILE, checked_texts, write_text_encoder

# The idf weights and the components.
WEIGHTS_FILE = "weights.safetensors"

# A word: letters, digits and underscores, one of them being enough ("T 1", "3 mm").
_WORD = r"(?u)\b\w+\b"

# Components whose singular value is below this share of the largest are rounding noise and are left out.
_LEAST_SINGULAR = 1e-6

# Texts whose weighted words are held in memory at once.
_TEXTS_AT_ONCE = 4096


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


def load_tfidf(root: Path, document: Mapping[str, Any]) -> TfidfTextEncoder:
    """Return the encoder that was saved in a folder.

    Raises:
        EncoderError: It is not what was saved.
    """
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
