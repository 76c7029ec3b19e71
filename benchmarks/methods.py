"""T2, T4 and T5: every training method on three backbones, the same steps, the same episodes.

    RADSHOT_DATA=... python benchmarks/methods.py --out runs/methods [--tasks T5 ...] [--backbones conv4 ...]

Every cell of a backbone sees as many images: its steps, of about 60 images each; with pretraining, two thirds of the
steps are the first stage. Cells that are done are taken up, so that tables can be made in pieces (`--train-only`,
then without). Printed are the tables of benchmarks/RESULTS.md: nearest mean (cosine, the source's mean subtracted) on
every encoder, and a method's own head where it learnt one.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tasks import (
    Images,
    brain_tumor,
    episodes_of,
    meaning,
    medpix_cases,
    t2_source,
    t2_target,
    t4_target,
    t5_source,
    t5_target,
)

from embeddings import Preprocess, TorchEncoder, build_backbone, load_encoder, read_image
from episodes import Report, compare, evaluate
from fewshot import Augmentation, TrainingConfig, make_head, train
from fewshot.pixels import load_pixels
from fewshot.registry import HEAD_OF

#: Teaching files are posed alike: where something lies in the image helps, so images are moved little.
MILD = Augmentation(5, 0.03, 0.05, 0.03, 0.1, 0.1, 0.02)
#: Slices in every orientation: images are moved, stretched and mirrored.
FREE = Augmentation(15, 0.1, 0.2, 0.1, 0.2, 0.3, 0.02, horizontal_flip=0.5)


@dataclass(frozen=True)
class Task:
    """A source, a target, and the shape of the source's episodes."""

    title: str
    source: Callable[[], Images]
    target: Callable[[], Images]
    config: TrainingConfig


TASKS = {
    "T5": Task(
        "T5, unseen locations of medpix2 from seen ones",
        t5_source,
        t5_target,
        TrainingConfig(k_shot=3, n_query=3, augmentation=MILD),
    ),
    "T2": Task(
        "T2, covid_chestxray from medpix2, brain_tumor_mri and medical_mnist",
        t2_source,
        t2_target,
        TrainingConfig(n_way=15, k_shot=2, n_query=2, augmentation=MILD),
    ),
    "T4-cases": Task(
        "T4, brain_tumor_mri fold 4 from medpix2, each case a class",
        medpix_cases,
        t4_target,
        TrainingConfig(n_way=30, k_shot=1, n_query=1, augmentation=FREE),
    ),
    "T4-same": Task(
        "T4, brain_tumor_mri fold 4 from folds 0-3",
        lambda: brain_tumor("fold < 4"),
        t4_target,
        TrainingConfig(k_shot=5, n_query=10, augmentation=FREE),
    ),
}
#: Backbone -> its options, the temperature of Euclidean prototypes for vectors of its length, its peak rate, its steps.
BACKBONES: dict[str, tuple[dict[str, object], float | None, float, int]] = {
    "conv4": ({"stem_width": 32, "pooling": "flatten", "image_size": 64}, 100.0, 2e-3, 300),
    "resnet12": ({"width": 16}, 16.0, 2e-3, 120),
    "densenet121": ({}, 100.0, 1e-3, 40),
}
#: The second stage learns at the first stage's rate divided by this: at the full rate it unlearns what it was taught.
SECOND_STAGE = 5
SIAMESE = ("logistic", "contrastive", "triplet", "supcon", "multi-similarity", "proxy-anchor")
METHODS: dict[str, dict[str, object]] = {
    "prototypical": {"method": "prototypical"},
    **{f"siamese, {loss}": {"method": "siamese", "loss": loss} for loss in SIAMESE},
    "supervised": {"method": "supervised"},
    "supervised + prototypical": {"method": "prototypical", "pretraining": "supervised"},
    "SimCLR + prototypical": {"method": "prototypical", "pretraining": "simclr"},
}
#: On the two larger networks, which take minutes per cell on a CPU.
FEWER = (
    "prototypical",
    "siamese, supcon",
    "siamese, multi-similarity",
    "supervised",
    "supervised + prototypical",
    "SimCLR + prototypical",
)


def config_of(task: Task, backbone: str, method: str, seed: int) -> TrainingConfig:
    """The cell's training."""
    options, temperature, rate, steps = BACKBONES[backbone]
    changes = METHODS[method]
    staged = "pretraining" in changes
    return replace(
        task.config,
        backbone=backbone,
        backbone_config=options,
        temperature=temperature if changes["method"] == "prototypical" else None,
        learning_rate=rate / SECOND_STAGE if staged else rate,
        pretraining_rate=rate,
        batch_size=30 if changes.get("pretraining") == "simclr" else 60,  # SimCLR sees every image twice
        episodes=steps // 3 if staged else steps,
        pretraining_episodes=steps - steps // 3,
        validation_every=max(20, steps // 6),
        seed=seed,
        **changes,
    )


@cache
def pixels(key: str, size: int = 64) -> tuple[NDArray[np.uint8], Images]:
    """A task's source, decoded once."""
    source = TASKS[key].source()
    cache = load_pixels(source.images, TrainingConfig(image_size=size), None)
    rows = cache.kept.tolist()
    return cache.pixels, Images([], [source.labels[i] for i in rows], [source.groups[i] for i in rows])


def trained(key: str, backbone: str, method: str, out: Path, seed: int) -> TorchEncoder:
    """The cell's encoder; one trained before with the same options is taken up."""
    config = config_of(TASKS[key], backbone, method, seed)
    folder = out / f"{key}-{backbone}-{method}-seed{seed}".replace(", ", "-").replace(" ", "")
    if (folder / "encoder.json").exists():
        old = load_encoder(folder)
        if isinstance(old, TorchEncoder) and meaning(old.training["config"]) == meaning(config.to_dict()):
            return old
    images, source = pixels(key)
    training = train(images, source.labels, groups=source.groups, config=config, out=folder)
    seconds = seconds_of(training.encoder)
    print(f"{key}, {backbone}, {method}: {seconds:.0f} s, held-out accuracy {training.best_accuracy}", flush=True)
    return training.encoder


def seconds_of(encoder: TorchEncoder) -> float:
    """Training seconds over all stages."""
    history = encoder.training["history"]
    stages = dict.fromkeys(entry["stage"] for entry in history)
    return sum(max(entry["seconds"] for entry in history if entry["stage"] == stage) for stage in stages)


@cache
def target_pixels(key: str) -> tuple[tuple[NDArray[np.float32], ...], Images]:
    """A task's target, decoded once."""
    target = TASKS[key].target()
    return tuple(read_image(image) for image in target.images), target


def measure(key: str, k_shot: int, rows: dict[str, tuple[object, NDArray[np.float32]]]) -> list[Report]:
    """Every row on the task's episodes."""
    _, target = target_pixels(key)
    sampler = episodes_of(target, k_shot)
    return [evaluate(head, vectors, target.labels, sampler, name=name) for name, (head, vectors) in rows.items()]  # type: ignore[arg-type]


def rows_of(
    key: str, backbone: str, methods: list[str], out: Path, seed: int
) -> dict[str, tuple[object, NDArray[np.float32]]]:
    """Name of the row -> head and vectors: each method by nearest mean, and by its own head where it learnt one."""
    images, _ = target_pixels(key)
    rows: dict[str, tuple[object, NDArray[np.float32]]] = {}
    preprocess = Preprocess(size=(64, 64))
    for method in methods:
        encoder = trained(key, backbone, method, out, seed)
        preprocess, vectors = encoder.preprocess, encoder.encode(list(images))
        name = f"{method}, {seconds_of(encoder):.0f} s"
        rows[name] = make_head("prototypes", center=encoder.source_mean), vectors
        if encoder.similarity is not None:
            own = HEAD_OF[encoder.similarity.name]
            rows[f"{name}, its own head"] = make_head(own, similarity=encoder.similarity), vectors
    fresh = TorchEncoder(build_backbone(backbone, seed=seed, **BACKBONES[backbone][0]), preprocess, name="untrained")
    source = pixels(key)[0]
    some = np.random.default_rng(0).permutation(len(source))[:500]
    mean = fresh.encode([source[i] for i in some]).mean(0)
    rows["untrained"] = make_head("prototypes", center=mean), fresh.encode(list(images))
    return rows


def print_table(title: str, reports: list[Report]) -> None:
    """One task's table; differences are to the first row."""
    first = reports[0]
    print(f"\n**{title}, {first.n_way}-way {first.k_shot}-shot** ({first.patients:,} query patients)\n")
    print("| | accuracy | 95 % over patients | ± over episodes | this minus first row |\n|---|---|---|---|---|")
    for report in reports:
        paired = compare(report, first)
        gain = "" if report is first else f"{paired.difference:+.3f} [{paired.low:+.3f}, {paired.high:+.3f}]"
        low, high, half = *report.interval, report.episode_interval
        print(f"| {report.name} | {report.accuracy:.3f} | {low:.3f} to {high:.3f} | {half:.3f} | {gain} |", flush=True)


def main() -> None:
    """Train and measure the cells asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/methods"))
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--backbones", nargs="+", choices=list(BACKBONES), default=list(BACKBONES))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train-only", action="store_true", help="train the cells and print no table")
    options = parser.parse_args()
    results = []
    for backbone in options.backbones:
        methods = options.methods or (list(METHODS) if backbone == "conv4" else list(FEWER))
        for key in options.tasks:
            if options.train_only:
                for method in methods:
                    trained(key, backbone, method, options.out, options.seed)
                continue
            rows = rows_of(key, backbone, methods, options.out, options.seed)
            if backbone == "conv4":
                images, _ = target_pixels(key)
                for spec in ("hog-64", "pixels-32"):
                    rows[spec] = make_head("prototypes"), load_encoder(spec).encode(list(images))
            for k_shot in (1, 5):
                reports = measure(key, k_shot, rows)
                print_table(f"{TASKS[key].title}, {backbone}", reports)
                results += [{"task": key, "backbone": backbone, **report.to_dict()} for report in reports]
    if not options.train_only:
        (options.out / "methods.json").write_text(json.dumps(results, default=str) + "\n")


if __name__ == "__main__":
    main()
