"""The named few-shot tasks over the shared image sets, so that figures stay comparable from one benchmark to the next.

A shot is a patient, a patient who supports any class is barred from all queries, at most 15 queries per class, 600
episodes, seed 0. Sources never hold an image of the target.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from embeddings import ImageSource
from episodes import EpisodeSampler, Manifest

UNSEEN_LOCATIONS = ("Genitourinary", "Head and Neck", "Spine", "Cardiovascular", "Eye and Orbit")
SEEN_LOCATIONS = ("Brain and Neuro", "Musculoskeletal", "Chest, Pulmonary", "Gastrointestinal", "Vascular")
COVID_FINDINGS = ("COVID-19", "Pneumocystis", "SARS", "Streptococcus", "No Finding")
EPISODES, QUERIES, SEED = 600, 15, 0


@dataclass(frozen=True)
class Images:
    """Images with their labels and patients."""

    images: list[ImageSource]
    labels: list[Hashable]
    groups: list[Hashable]

    def __add__(self, other: Images) -> Images:
        return Images(self.images + other.images, self.labels + other.labels, self.groups + other.groups)

    def __len__(self) -> int:
        return len(self.images)


def data_folder() -> Path:
    """The folder named by RADSHOT_DATA, or the end of the program."""
    folder = Path(os.environ.get("RADSHOT_DATA", ""))
    if not os.environ.get("RADSHOT_DATA") or not folder.is_dir():
        sys.exit("Set RADSHOT_DATA to the folder of the shared image sets.")
    return folder


def medpix(where: str, columns: tuple[str, ...]) -> Images:
    """MedPix 2.0 images that meet a condition; several columns make one joint label."""
    path = data_folder() / "medpix2" / "manifest.csv"
    manifest = Manifest.read(path, label=None, group="split_group", where=f"radiology = 1 AND ({where})")
    labels = [" / ".join(row) for row in manifest.table[list(columns)].astype(str).to_numpy().tolist()]
    return Images(list(manifest.images), list(labels), [f"medpix {group}" for group in manifest.groups or ()])


def brain_tumor(where: str) -> Images:
    """Brain tumour MRI slices of some folds; patients are unknown, near-duplicate groups stand in for them."""
    manifest = Manifest.read(data_folder() / "brain_tumor_mri" / "manifest.csv", group="split_group", where=where)
    return Images(list(manifest.images), list(manifest.labels), list(manifest.groups or ()))


def medical_mnist(leave_out: tuple[str, ...] = ()) -> Images:
    """64 x 64 images of six body parts; every image counts as its own patient."""
    with np.load(data_folder() / "medical_mnist64" / "medical_mnist64.npz") as file:
        pixels, codes, names = file["images"], file["labels"], [str(name) for name in file["class_names"]]
    kept = [i for i, code in enumerate(codes.tolist()) if names[code] not in leave_out]
    labels: list[Hashable] = [names[codes[i]] for i in kept]
    return Images([pixels[i] for i in kept], labels, [f"mnist {i}" for i in kept])


def quoted(names: tuple[str, ...]) -> str:
    """Names as a list for a condition."""
    return ", ".join("'" + name + "'" for name in names)


def t4_target() -> Images:
    """T4: brain_tumor_mri, fold 4."""
    return brain_tumor("fold = 4")


def t5_target() -> Images:
    """T5: all images of medpix2's five unseen locations."""
    return medpix(f"location IN ({quoted(UNSEEN_LOCATIONS)})", ("location",))


def t2_source() -> Images:
    """T2: medpix2's training split, brain_tumor_mri folds 0-3, medical_mnist but for its chest X-rays."""
    return (
        medpix("split = 'train'", ("location", "modality"))
        + brain_tumor("fold < 4")
        + medical_mnist(leave_out=("CXR",))
    )


def t2_target() -> Images:
    """T2: covid_chestxray's five findings with 7 or more patients; frontal and supine radiographs."""
    manifest = Manifest.read(
        data_folder() / "covid_chestxray" / "manifest.csv",
        label="finding",
        group="split_group",
        where=f"modality = 'X-ray' AND view != 'L' AND finding IN ({quoted(COVID_FINDINGS)})",
    )
    return Images(list(manifest.images), list(manifest.labels), list(manifest.groups or ()))


def t5_source() -> Images:
    """T5: medpix2's training split, seen locations; what is imaged and how is one class."""
    return medpix(f"split = 'train' AND location IN ({quoted(SEEN_LOCATIONS)})", ("location", "modality"))


def medpix_cases() -> Images:
    """MedPix's training split with the case as the class: what tells one patient's images from another's."""
    source = medpix("split = 'train'", ("split_group",))
    counts = Counter(source.labels)
    kept = [i for i, label in enumerate(source.labels) if counts[label] > 1]
    return Images([source.images[i] for i in kept], [source.labels[i] for i in kept], [f"image {i}" for i in kept])


def meaning(config: Mapping[str, object]) -> dict[str, object]:
    """A training's options as JSON has them, without those that its method does not look at."""
    plain: dict[str, object] = json.loads(json.dumps(dict(config)))
    unused = set() if "siamese" in (plain["method"], plain["pretraining"]) else {"loss", "mining"}
    if plain["pretraining"] is None:
        unused |= {name for name in plain if name.startswith("pretraining_")}
    return {name: value for name, value in plain.items() if name not in unused}


def episodes_of(target: Images, k_shot: int) -> EpisodeSampler:
    """The task's episodes: every class, k patients each."""
    return EpisodeSampler(
        target.labels,
        len(set(target.labels)),
        k_shot,
        QUERIES,
        groups=target.groups,
        n_episodes=EPISODES,
        seed=SEED,
    )
