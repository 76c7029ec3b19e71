"""What the protocols share: vectors kept in an archive, semantic spaces of findings, and where figures come from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .console import Refused, Usage, note

if TYPE_CHECKING:
    from embeddings import Encoder
    from episodes import Manifest
    from zeroshot import SemanticSpace


@dataclass(frozen=True)
class Settings:
    """What a user asked of a protocol.

    Attributes:
        folder: The data set as published.
        encoder: Spec of the image encoder.
        archive: Where vectors are kept, or None.
        alignment: The only alignment wanted, or None for the protocol's own.
        text_encoder: "tfidf", or what `load_text_encoder` takes.
        reports: A table of texts to fit it on, or None.
        text: Its text columns, or those of the data set; empty for the usual ones.
        unseen: Findings to learn without; empty for the usual ones.
        k_shot: Shots of the episodes.
        episodes: How many.
        skip_missing: Leave out images the tables list and the folder lacks.
        seed: Of everything drawn.
    """

    folder: Path
    encoder: str
    archive: Path | None = None
    alignment: str | None = None
    text_encoder: str = "tfidf"
    reports: Path | None = None
    text: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    k_shot: tuple[int, ...] = ()
    episodes: int = 600
    skip_missing: bool = False
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Embedded:
    """Images of a manifest that could be read.

    Attributes:
        rows: int (m,) their rows in the manifest, ascending.
        vectors: float32 (m, d).
        refused: (image, reason) of the others.
    """

    rows: NDArray[np.intp]
    vectors: NDArray[np.float32]
    refused: list[tuple[str, str]]

    def part(self, rows: NDArray[np.intp]) -> tuple[NDArray[np.intp], NDArray[np.float32]]:
        """Return those of some rows that could be read, and their vectors."""
        mine = np.isin(self.rows, rows)
        return self.rows[mine], self.vectors[mine]


def embed_rows(manifest: Manifest, rows: NDArray[np.intp], encoder: Encoder, archive: Path | None) -> Embedded:
    """Embed some images of a manifest; with an archive, only those it does not hold yet.

    Raises:
        Refused: None can be read.
        EncoderMismatch: The archive is another encoder's.
    """
    from .inputs import encode_readable

    ordered = np.sort(rows)
    paths = [manifest.images[row] for row in ordered.tolist()]
    if archive is None:
        vectors, kept, refused = encode_readable(encoder, paths)
    else:
        vectors, kept, refused = _through_archive(manifest, ordered, paths, encoder, archive)
    if not kept:
        raise Refused(f"None of the {len(paths):,} images could be read.")
    return Embedded(ordered[kept], vectors, refused)


def _through_archive(
    manifest: Manifest, rows: NDArray[np.intp], paths: Sequence[Path], encoder: Encoder, archive: Path
) -> tuple[NDArray[np.float32], list[int], list[tuple[str, str]]]:
    from embeddings import Archive, ImageError, embed_archive, image_identity, records_from_table

    table = manifest.table.iloc[rows.tolist()]
    records = records_from_table(
        table, image_column=manifest.image_column, group=manifest.group_column, root=manifest.folder
    )
    report = embed_archive(None, encoder, archive, manifest=records)
    note(f"{archive}: {report}")
    with Archive.open(archive, create=False) as held:
        snapshot = held.snapshot()
    by_path = {row.get("path"): place for place, row in enumerate(snapshot.metadata)}
    by_content = {content: place for place, content in enumerate(snapshot.hashes)}
    reasons = dict(report.refused)
    kept, places, refused = [], [], []
    for i, path in enumerate(paths):
        place = by_path.get(str(path))
        if place is None and str(path) not in reasons:  # the same file under another name is held once
            try:
                place = by_content.get(image_identity(path).sha256)
            except ImageError as error:
                reasons[str(path)] = error.reason
        if place is None:
            refused.append((str(path), reasons.get(str(path), f"the archive '{archive}' does not hold it")))
            continue
        kept.append(i)
        places.append(place)
    return np.asarray(snapshot.vectors[places], dtype=np.float32), kept, refused


def semantic_spaces(classes: Sequence[str], settings: Settings) -> dict[str, SemanticSpace]:
    """Return what the built-in descriptions and the built-in traits say of ChestX-ray14's findings.

    Raises:
        Usage: A text column is missing.
        Refused: The table of reports holds no text.
    """
    from zeroshot import built_in_descriptions, built_in_traits, from_descriptions, from_traits, mark_all

    from .words import text_encoder_of

    said = {name: built_in_descriptions("chestxray14")[name] for name in classes}
    counts = settings.text_encoder == "tfidf"  # word counts cannot tell "no effusion" from "effusion" by themselves
    if settings.reports is not None:
        texts = read_texts(settings.reports, settings.text)
    else:
        texts = [text for prompts in said.values() for text in (*prompts.present, *prompts.absent)]
    words = text_encoder_of(settings.text_encoder, mark_all(texts) if counts else texts, seed=settings.seed)
    traits = built_in_traits("chestxray14")
    return {
        "descriptions": from_descriptions(said, words, prepare=mark_all if counts else None, strict=False),
        "traits": from_traits({name: traits[name] for name in classes}),
    }


def read_texts(path: Path, columns: Sequence[str]) -> list[str]:
    """Read the texts of a table.

    Raises:
        Usage: No column is named, or one is missing.
        Refused: It is no table, or none of its rows has a text.
    """
    import pandas as pd

    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except ValueError as error:
        raise Refused(f"'{path}' cannot be read as a table of texts: {' '.join(str(error).split())}") from None
    texts = joined_texts(frame, columns, str(path))
    if not any(texts):
        raise Refused(f"None of the {len(frame):,} rows of '{path}' has a text.")
    return [text for text in texts if text]


def joined_texts(frame: Any, columns: Sequence[str], source: str) -> list[str]:
    """Return each row's text, its columns joined by full stops.

    Raises:
        Usage: A column is missing, or none is named.
    """
    missing = [name for name in columns if name not in frame.columns]
    if missing or not columns:
        wanted = (
            f"{source} has no column {missing[0]!r}" if missing else f"Name the text column of {source} with --text"
        )
        raise Usage(f"{wanted}; it has {', '.join(map(str, frame.columns))}.")
    rows = frame[list(columns)].fillna("").astype(str).to_numpy().tolist()
    return [". ".join(cell.strip().rstrip(".") for cell in row if cell.strip()) for row in rows]


def provenance(encoder: Encoder, settings: Settings, vectors: ArrayLike, *facts: object) -> dict[str, Any]:
    """Return where figures come from: data hash, seed, encoder and versions.

    Args:
        encoder: The image encoder.
        settings: What was asked.
        vectors: float32 (n, d), hashed.
        facts: Labels, patients and parts, hashed with them.
    """
    from . import __version__

    digest = hashlib.sha256(np.ascontiguousarray(vectors, dtype="<f4").tobytes())
    digest.update(repr(facts).encode())
    return {
        "data_sha256": digest.hexdigest(),
        "encoder": encoder.name,
        "encoder_fingerprint": encoder.fingerprint,
        "seed": settings.seed,
        "versions": {"radshot": __version__, "numpy": np.__version__},
    }
