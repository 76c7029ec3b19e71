"""ZeroShotModel: an image encoder's space aligned with words, kept in a folder and checked when it is opened."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embeddings import EncoderError, EncoderMismatch, load_text_encoder

from .alignment import Alignment, RidgeAlignment, make_alignment
from .errors import ZeroShotError
from .linear_map import LinearMap, checked_rows
from .negation import mark_all
from .semantics import Descriptions, SemanticSpace, from_descriptions
from .vocabulary import said_of, unknown_words

if TYPE_CHECKING:
    from embeddings import Encoder, TextEncoder

MODEL_FILE = "zeroshot.json"
"""The file that makes a folder a model."""

TEXT_FOLDER = "text"
"""What the folder of its text encoder begins with; the encoder's fingerprint follows."""

FORMAT = 1
"""Of the document; a larger one is refused."""

PRIOR_SHOTS = 4.0
"""How many images a class's words are worth where nothing was learnt about it."""

FEWEST_TEXTS = 10
"""Images with text that an alignment takes at least."""


@dataclass(frozen=True, eq=False)
class ZeroShotModel:
    """Images of one encoder and texts of one text encoder in a common space.

    Attributes:
        text_encoder: Turns texts into vectors.
        shared: The alignment by which images and texts are compared.
        to_image: What predicts, from a text, where in the image space its images lie: the prior for `fewshot`.
        encoder: Fingerprint of the image encoder.
        encoder_name: Its name.
        alignment: Name of the alignment.
        gamma: What calibrated stacking takes off seen classes, or None where it was not chosen.
        prior_shots: How many images a class's words are worth.
        seen: Classes it was learnt with, where there were labels.
        typical: Mean (k,) and covariance (k, k) of the aligned images it was learnt on: what a score usually is.
        denials: Whether denied words are marked before a text is encoded (see `mark_denied`).
        facts: What it was learnt on: images, patients, settings.
    """

    text_encoder: TextEncoder
    shared: LinearMap
    to_image: LinearMap
    encoder: str
    encoder_name: str
    alignment: str
    gamma: float | None = None
    prior_shots: float = PRIOR_SHOTS
    seen: tuple[str, ...] = ()
    typical: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None
    denials: bool = False
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        images: ArrayLike,
        texts: Sequence[str],
        *,
        encoder: Encoder,
        text_encoder: TextEncoder,
        alignment: str | Alignment = "cca",
        denials: bool = False,
    ) -> ZeroShotModel:
        """Learn from images and the text of each.

        Args:
            images: (n, p) vectors of `encoder`.
            texts: n reports or captions; an image whose text is empty, or of which the text encoder knows no word, is
                left out and counted.
            encoder: The image encoder; its fingerprint is kept.
            text_encoder: Fitted.
            alignment: Name of an alignment, or one.
            denials: Mark denied words before encoding; for encoders of word counts, which must have been fitted on
                texts marked likewise (`mark_denied`).

        Raises:
            ZeroShotError: Fewer than `FEWEST_TEXTS` images have a text, or vectors are not this encoder's.
        """
        rows = checked_rows(images, encoder.dim, "Image vectors", f"of the encoder {encoder.name!r}")
        if len(texts) != len(rows):
            raise ZeroShotError(f"{len(rows):,} images need {len(rows):,} texts; got {len(texts):,}.")
        said = [text or "" for text in texts]
        words = np.asarray(text_encoder.encode(mark_all(said) if denials else said), dtype=np.float64)
        told = np.linalg.norm(words, axis=1) > 0
        if told.sum() < FEWEST_TEXTS:
            raise ZeroShotError(
                f"An alignment takes at least {FEWEST_TEXTS} images with a text the encoder knows words of; "
                f"{int(told.sum())} of {len(rows):,} have one."
            )
        chosen = make_alignment(alignment) if isinstance(alignment, str) else alignment
        shared = chosen.fit(rows[told], words[told]).map_
        aligned = shared.images(rows[told])
        return cls(
            text_encoder=text_encoder,
            shared=shared,
            typical=(aligned.mean(axis=0), np.atleast_2d(np.cov(aligned, rowvar=False))),
            to_image=RidgeAlignment().fit(rows[told], words[told]).map_,
            encoder=encoder.fingerprint,
            encoder_name=encoder.name,
            alignment=alignment if isinstance(alignment, str) else type(alignment).__name__,
            denials=denials,
            facts={"images": int(told.sum()), "images_without_text": int((~told).sum())},
        )

    @property
    def dim(self) -> int:
        """Length of the image vectors."""
        return len(self.shared.image_mean)

    def check_encoder(self, encoder: Encoder) -> None:
        """Refuse another image encoder than the one aligned.

        Raises:
            EncoderMismatch: It is another.
        """
        if encoder.fingerprint != self.encoder:
            raise EncoderMismatch(
                f"The words were aligned with the encoder {self.encoder_name!r} ({self.encoder[:12]}), this is "
                f"{encoder.name!r} ({encoder.fingerprint[:12]}): ask with that one, or fit the words anew "
                "(`radshot zeroshot fit`)."
            )

    def space(self, descriptions: Descriptions, *, leave_out: bool = False) -> SemanticSpace:
        """Return the semantic vectors of described classes; see `from_descriptions`."""
        return from_descriptions(
            descriptions, self.text_encoder, prepare=mark_all if self.denials else None, leave_out=leave_out
        )

    def encode_texts(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the vectors (n, d) of texts; a text that says nothing to the encoder has a row of zeros."""
        prepared = mark_all(texts) if self.denials else list(texts)
        return np.asarray(self.text_encoder.encode(prepared), dtype=np.float64)

    def unusual(self, scores: NDArray[np.float64], directions: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return how many standard deviations scores lie above what the images learnt on usually have.

        Args:
            scores: (n, c), products of aligned images with `directions`.
            directions: (c, k) in the common space.

        Returns:
            (n, c); the scores themselves where nothing is known of what is usual.
        """
        if self.typical is None:
            return scores
        mean, covariance = self.typical
        spread = np.sqrt(np.einsum("ck,kl,cl->c", directions, covariance, directions).clip(1e-12))
        return np.asarray((scores - directions @ mean) / spread)

    def text_vectors(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the vectors (n, d) of sentences to look for.

        Raises:
            ZeroShotError: A text is empty, or the text encoder knows no word of it.
        """
        rows = self.encode_texts(texts)
        for text, row, (missing, enough) in zip(texts, rows, self.unknown_words(texts), strict=True):
            if not text.strip():
                raise ZeroShotError("The text to look for is empty.")
            if not (enough and np.linalg.norm(row) > 0):
                raise ZeroShotError(
                    f"The text encoder {self.text_encoder.name!r} knows no word of {text[:80]!r} that matters "
                    f"({said_of(self.text_encoder, missing[:6]) or 'there is none'}): use words that occur "
                    "in the reports it was fitted on."
                )
        return rows

    def unknown_words(self, texts: Sequence[str]) -> list[tuple[tuple[str, ...], bool]]:
        """Return, for each text, the words that matter and are not known, and whether any that matters is."""
        return unknown_words(self.text_encoder, mark_all(texts) if self.denials else list(texts))

    def image_priors(self, space: SemanticSpace) -> dict[str, tuple[tuple[str, ...], NDArray[np.float32]]]:
        """Return where the images of each class should lie, sentence by sentence.

        Returns:
            Class -> its sentences and, for each, the unit vector (p,) it predicts in the image space, which is centred
            on `to_image.image_mean`: what `fewshot.ClassPrior` takes.
        """
        return {
            name: (space.phrases[name], self.to_image.texts(space.phrase_vectors[name]).astype(np.float32))
            for name in space.classes
        }

    def with_settings(
        self, *, gamma: float | None = None, prior_shots: float | None = None, seen: Sequence[str] | None = None
    ) -> ZeroShotModel:
        """Return the model with what was learnt about its use."""
        return replace(
            self,
            gamma=self.gamma if gamma is None else float(gamma),
            prior_shots=self.prior_shots if prior_shots is None else float(prior_shots),
            seen=self.seen if seen is None else tuple(str(name) for name in seen),
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the model; the description comes last, in one step, and names the weights by their hash.

        Raises:
            ZeroShotError: The folder cannot be written.
        """
        from safetensors.numpy import save

        target = Path(folder)
        arrays = {f"shared.{name}": array for name, array in self.shared.arrays().items()}
        if self.typical is not None:
            arrays |= {"typical.mean": self.typical[0], "typical.covariance": self.typical[1]}
        arrays |= {f"to_image.{name}": array for name, array in self.to_image.arrays().items()}
        content = save({name: np.ascontiguousarray(array) for name, array in arrays.items()})
        digest = hashlib.sha256(content).hexdigest()
        weights = f"alignment-{digest[:12]}.safetensors"
        text = f"{TEXT_FOLDER}-{self.text_encoder.fingerprint[:12]}"
        document = {
            "format": FORMAT,
            "encoder": self.encoder,
            "encoder_name": self.encoder_name,
            "alignment": self.alignment,
            "gamma": self.gamma,
            "prior_shots": self.prior_shots,
            "seen": list(self.seen),
            "denials": self.denials,
            "facts": self.facts,
            "text": text,
            "text_encoder": self.text_encoder.fingerprint,
            "weights": weights,
            "sha256": digest,
        }
        try:
            target.mkdir(parents=True, exist_ok=True)
            self.text_encoder.save(target / text)
            _write(target / weights, content)
            _write(target / MODEL_FILE, json.dumps(document, indent=1).encode())
            for old in target.glob(f"{TEXT_FOLDER}-*"):
                if old.name != text and old.is_dir():
                    shutil.rmtree(old, ignore_errors=True)
            for old in target.glob("alignment-*.safetensors"):
                if old.name != weights:
                    old.unlink(missing_ok=True)
        except OSError as error:
            raise ZeroShotError(f"The model cannot be written to '{target}': {error.strerror}.") from None

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> ZeroShotModel:
        """Open a saved model and check every byte of its weights.

        Raises:
            ZeroShotError: There is none, a newer radshot wrote it, or it is not what was written.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load

        target = Path(folder)
        try:
            document = json.loads((target / MODEL_FILE).read_text(encoding="utf-8"))
            if document["format"] > FORMAT:
                raise ZeroShotError(
                    f"The model in '{target}' has format {document['format']}, written by a newer radshot; this one "
                    f"reads up to format {FORMAT}: upgrade radshot."
                )
            content = (target / Path(document["weights"]).name).read_bytes()
            if hashlib.sha256(content).hexdigest() != document["sha256"]:
                raise ZeroShotError(
                    f"The weights of the model in '{target}' are not those that were written: fit it anew."
                )
            arrays = load(content)
            maps = [
                LinearMap.from_arrays(
                    {name.removeprefix(part): array for name, array in arrays.items() if name.startswith(part)}
                )
                for part in ("shared.", "to_image.")
            ]
            text_encoder = load_text_encoder(target / Path(document["text"]).name)
            if text_encoder.fingerprint != document["text_encoder"]:
                raise ZeroShotError(f"The text encoder in '{target}' is not the one the model was fitted with.")
            return cls(
                text_encoder=text_encoder,
                shared=maps[0],
                to_image=maps[1],
                encoder=str(document["encoder"]),
                encoder_name=str(document["encoder_name"]),
                alignment=str(document["alignment"]),
                gamma=None if document["gamma"] is None else float(document["gamma"]),
                prior_shots=float(document["prior_shots"]),
                seen=tuple(document["seen"]),
                typical=(arrays["typical.mean"], arrays["typical.covariance"]) if "typical.mean" in arrays else None,
                denials=bool(document["denials"]),
                facts=dict(document["facts"]),
            )
        except FileNotFoundError:
            raise ZeroShotError(
                f"'{target}' holds no zero-shot model: make one with `radshot zeroshot fit --out {target}`."
            ) from None
        except (ZeroShotError, EncoderError):
            raise
        except (OSError, KeyError, TypeError, AttributeError, ValueError, SafetensorError) as error:
            raise ZeroShotError(
                f"The model in '{target}' cannot be read ({type(error).__name__}): fit it anew."
            ) from None


def _write(path: Path, content: bytes) -> None:
    """Put a file in place in one step, forced to the disk."""
    new = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with new.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    finally:
        new.unlink(missing_ok=True)
