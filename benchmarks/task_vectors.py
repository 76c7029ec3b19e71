"""Vectors of the named tasks' targets by three encoders, computed once and kept: what the benchmarks of heads stand on.

    RADSHOT_DATA=... python benchmarks/methods.py --train-only --backbones conv4 \\
        --methods "siamese, multi-similarity" supervised
    RADSHOT_DATA=... python benchmarks/omniglot.py --methods "siamese, multi-similarity" supervised
    RADSHOT_DATA=... python benchmarks/task_vectors.py

The encoders are raw pixels, radshot's default (Siamese, multi-similarity loss) and its supervised-only version, of the
same backbone and the same number of images seen. Nothing here looks at a label of the target.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from methods import TASKS as TRAINED_TASKS
from methods import pixels as source_pixels
from methods import trained as task_encoder
from numpy.typing import NDArray
from omniglot import METHODS as OMNIGLOT_METHODS
from omniglot import omniglot
from omniglot import trained as omniglot_encoder
from tasks import Images, data_folder

from embeddings import Encoder, ImageSource, TorchEncoder, load_encoder
from embeddings.source_statistics import SourceStatistics
from episodes import SOURCE_FINDINGS, UNSEEN_FINDINGS, Manifest, make_phantoms
from fewshot import train
from radshot.demo import SIZE, TRAINING, TRAINING_EPISODES

#: Name here -> method of benchmarks/methods.py; None is raw pixels.
ENCODERS: dict[str, str | None] = {
    "pixels": None,
    "default": "siamese, multi-similarity",
    "supervised": "supervised",
}
#: Tasks with one label per image. T3's target is nih_cxr, several labels per image, by the encoders of T2.
TASKS = ("T2", "T4-cases", "T4-same", "T5", "omniglot", "phantoms")
#: Phantoms: patients of each unseen finding, one image each, drawn with a seed no training has seen.
PHANTOM_PATIENTS, PHANTOM_SEED = 120, 101
RUNS = Path("runs")


@dataclass(frozen=True)
class TaskVectors:
    """One task's target as one encoder sees it.

    Attributes:
        vectors: float32 (n, d).
        labels: n labels; for T3 n tuples of labels.
        groups: n patients, or None where every image is its own.
        center: float32 (d,), the source's mean, or None for raw pixels.
    """

    vectors: NDArray[np.float32]
    labels: list[Hashable]
    groups: list[Hashable] | None
    center: NDArray[np.float32] | None


def target_of(task: str) -> Images:
    """A task's target; Omniglot and phantoms have no patients beyond the image."""
    if task == "T3":
        manifest = Manifest.read(data_folder() / "nih_cxr" / "manifest.csv", label="labels", group="split_group")
        return Images(list(manifest.images), list(manifest.labels), list(manifest.groups or ()))
    if task == "omniglot":
        pixels, names = omniglot("test")
        return Images(list(pixels), names, list(range(len(names))))
    if task == "phantoms":
        drawn = make_phantoms(
            UNSEEN_FINDINGS, patients_per_finding=PHANTOM_PATIENTS, images_per_patient=1, size=SIZE, seed=PHANTOM_SEED
        )
        return Images(list(drawn.images), [drawn.names(i)[0] for i in range(len(drawn))], list(drawn.patients))
    return TRAINED_TASKS[task].target()


def encoder_of(task: str, name: str) -> Encoder:
    """The encoder of a task; trained where it is not there yet.

    Args:
        task: One of `TASKS`, or "T3", whose encoders are T2's: neither source holds a chest radiograph.
        name: A key of `ENCODERS`.
    """
    method = ENCODERS[name]
    if method is None:
        return load_encoder("pixels-32")
    if task == "omniglot":
        config, _ = OMNIGLOT_METHODS[method]
        return omniglot_encoder(method, config, *omniglot("trainval"), RUNS / "omniglot" / "trainval-seed0")
    if task == "phantoms":
        return _phantom_encoder(method)
    return task_encoder("T2" if task == "T3" else task, "conv4", method, RUNS / "methods", 0)


def _phantom_encoder(method: str) -> TorchEncoder:
    """An encoder trained on the demo's source findings."""
    folder = RUNS / "phantoms" / method.replace(", ", "-")
    if (folder / "encoder.json").exists():
        old = load_encoder(folder)
        if isinstance(old, TorchEncoder):
            return old
    source = make_phantoms(SOURCE_FINDINGS, patients_per_finding=45, images_per_patient=2, size=SIZE, seed=100)
    name, _, loss = method.partition(", ")
    config = replace(TRAINING, method=name, episodes=TRAINING_EPISODES // 2)
    if loss:
        config = replace(config, loss=loss)
    images: list[ImageSource] = list(source.images)
    labels = [source.names(i)[0] for i in range(len(source))]
    return train(images, labels, groups=list(source.patients), config=config, out=folder).encoder


def load(task: str, name: str) -> TaskVectors:
    """A task's vectors by one encoder, from runs/vectors where they were computed before.

    Args:
        task: One of `TASKS`, or "T3".
        name: A key of `ENCODERS`.
    """
    path = RUNS / "vectors" / f"{task}-{name}.npz"
    target = None
    if not path.exists():
        target = target_of(task)
        encoder = encoder_of(task, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(
            path,
            vectors=encoder.encode(target.images),
            center=np.empty(0, np.float32) if encoder.source_mean is None else encoder.source_mean,
            labels=np.array(["|".join(x) if isinstance(x, tuple) else str(x) for x in target.labels]),
            groups=np.array([str(group) for group in target.groups]),
        )
    with np.load(path) as file:
        labels: list[Hashable] = [tuple(x.split("|")) if task == "T3" else str(x) for x in file["labels"].tolist()]
        return TaskVectors(
            vectors=file["vectors"],
            labels=labels,
            groups=None if task == "omniglot" else list(file["groups"].tolist()),
            center=file["center"] if file["center"].size else None,
        )


def statistics_of(task: str, name: str) -> SourceStatistics | None:
    """Means and variances of the source's classes as an encoder sees them; None for raw pixels.

    Of Omniglot's source the first 300 classes. T4-same's source holds the classes of its target.
    """
    if ENCODERS[name] is None:
        return None
    path = RUNS / "vectors" / f"{task}-{name}-source.npz"
    if not path.exists():
        groups: list[Hashable] | None
        if task == "omniglot":
            images, labels = omniglot("trainval")
            some = set(list(dict.fromkeys(labels))[:300])
            kept = [i for i, label in enumerate(labels) if label in some]
            images, labels, groups = images[kept], [labels[i] for i in kept], None
        else:
            images, source = source_pixels("T2" if task == "T3" else task)
            labels, groups = source.labels, source.groups
        vectors = encoder_of(task, name).encode(list(images))
        np.savez(path, **SourceStatistics.of(vectors, labels, groups=groups).to_arrays())
    with np.load(path) as file:
        return SourceStatistics.from_arrays({key: file[key] for key in file.files})


def main() -> None:
    """Compute what is missing."""
    for task in (*TASKS, "T3"):
        for name in ENCODERS:
            found = load(task, name)
            print(task, name, found.vectors.shape, len(set(found.groups or ())), flush=True)


if __name__ == "__main__":
    main()
