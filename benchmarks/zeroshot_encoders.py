"""Encoders of the zero-shot benchmark, trained by words; each is made once and kept under runs/zeroshot.

    RADSHOT_DATA=... python benchmarks/zeroshot_encoders.py

"words": by the captions and findings of medpix2's training split, no label of any kind. "words+labels": the same, with
the location's and the category's name added to each text. "words, seen": by the texts of T5's seen locations only.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tasks import SEEN_LOCATIONS, data_folder

from embeddings import Encoder, TfidfTextEncoder, load_encoder
from episodes import Manifest
from zeroshot import JointTraining, train_by_text

RUNS = Path("runs/zeroshot")
TRAINING = JointTraining(
    backbone="conv4",
    backbone_config={"stem_width": 32, "pooling": "flatten", "image_size": 96},
    image_size=96,
    epochs=50,
    rate=3e-3,
    bfloat16=True,
)


@dataclass(frozen=True, eq=False)
class Medpix:
    """medpix2's radiology images with their words.

    Attributes:
        images: Paths.
        cases: Case of each.
        train: bool, the training split.
        category, location, modality: Labels.
        caption: The image's caption.
        report: The caption and the case's findings.
    """

    images: list[str]
    cases: list[str]
    train: NDArray[np.bool_]
    category: NDArray[np.object_]
    location: NDArray[np.object_]
    modality: NDArray[np.object_]
    caption: list[str]
    report: list[str]


def medpix() -> Medpix:
    """Read the set."""
    manifest = Manifest.read(
        data_folder() / "medpix2" / "manifest.csv", label=None, group="split_group", where="radiology = 1"
    )
    table = manifest.table.fillna("")
    return Medpix(
        images=[str(path) for path in manifest.images],
        cases=[str(group) for group in manifest.groups or ()],
        train=(table["split"] == "train").to_numpy(),
        category=table["location_category"].to_numpy(dtype=object),
        location=table["location"].to_numpy(dtype=object),
        modality=table["modality"].to_numpy(dtype=object),
        caption=[str(text) for text in table["caption"]],
        report=[f"{a}. {b}" for a, b in zip(table["caption"], table["findings"], strict=True)],
    )


def encoder(name: str, data: Medpix) -> Encoder:
    """Return an encoder, trained if it was not yet.

    Args:
        name: "words", "words+labels" or "words, seen".
        data: The set.
    """
    folder = RUNS / name.replace(", ", "-").replace("+", "-")
    if (folder / "encoder.json").exists():
        return load_encoder(str(folder))
    rows = np.flatnonzero(data.train)
    if name == "words, seen":
        rows = rows[np.isin(data.location[rows], SEEN_LOCATIONS)]
    texts = [data.report[i] for i in rows]
    if name == "words+labels":
        texts = [f"{data.report[i]} {data.location[i]}. {data.category[i]}." for i in rows]
    words = TfidfTextEncoder(dim=128).fit(texts)
    started = time.perf_counter()

    def told(epoch: int, of: int, loss: float) -> None:
        sys.stderr.write(f"{name}: epoch {epoch} of {of}, loss {loss:.3f}, {time.perf_counter() - started:.0f} s\n")

    made = train_by_text(
        [data.images[i] for i in rows],
        texts,
        words,
        groups=[data.cases[i] for i in rows],
        config=TRAINING,
        name=name,
        progress=told,
    )
    made.save(folder)
    return made


def main() -> None:
    """Train them all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["words", "words+labels", "words, seen"])
    data = medpix()
    for name in parser.parse_args().names:
        encoder(name, data)


if __name__ == "__main__":
    main()
