"""T2, T4 and T5: raw pixels, HOG, an untrained network and the trained encoder on the same episodes.

    RADSHOT_DATA=... python benchmarks/few_shot.py --out runs/few_shot

Trains the source encoders (an interrupted run takes up those that are finished), evaluates every row on the same
600 episodes, and prints the tables of benchmarks/RESULTS.md; everything also goes to few_shot.json in the folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tasks import (
    Images,
    brain_tumor,
    episodes_of,
    meaning,
    medical_mnist,
    medpix,
    medpix_cases,
    t2_source,
    t2_target,
    t4_target,
    t5_source,
    t5_target,
)

from embeddings import Augmentation, Encoder, TorchEncoder, build_backbone, load_encoder
from episodes import Report, compare, evaluate
from fewshot import PrototypeClassifier, TrainingConfig, train

#: Teaching files are posed alike: where something lies in the image helps, so images are moved little.
MILD = Augmentation(5, 0.03, 0.05, 0.03, 0.1, 0.1, 0.02)
#: Slices of one kind in every orientation: images are moved, stretched and mirrored.
STRONG = Augmentation(15, 0.1, 0.2, 0.1, 0.2, 0.3, 0.02, horizontal_flip=0.5)
#: Global average pooling, 64 features that forget where; and what is left of the image kept, 1,024 that remember.
POOLED: dict[str, object] = {"stem_width": 32}
KEPT: dict[str, object] = {"stem_width": 32, "pooling": "flatten", "image_size": 64}


@dataclass(frozen=True)
class Row:
    """One source, the ways of training on it, and the task they are tested on."""

    name: str
    source: Callable[[], Images]
    target: Callable[[], Images]
    configs: dict[str, TrainingConfig]


def both(config: TrainingConfig) -> dict[str, TrainingConfig]:
    """The same training with either end of the network; long vectors get a temperature."""
    return {
        "flattened": replace(config, backbone_config=KEPT, temperature=100.0),
        "pooled": replace(config, backbone_config=POOLED),
    }


SMALL_SOURCE = TrainingConfig(
    method="prototypical", episodes=250, learning_rate=1e-3, validation_every=25, augmentation=MILD
)
ROWS = {
    "T5": Row(
        "T5, source medpix2 seen locations",
        t5_source,
        t5_target,
        both(SMALL_SOURCE),
    ),
    "T4-other": Row(
        "T4, source without brain_tumor_mri",
        lambda: medpix("split = 'train'", ("location", "modality", "plane")) + medical_mnist(),
        t4_target,
        both(replace(SMALL_SOURCE, episodes=500, n_query=3)),
    ),
    "T4-cases": Row(
        "T4, source without brain_tumor_mri, each case a class",
        medpix_cases,
        t4_target,
        both(
            TrainingConfig(
                method="prototypical",
                n_way=40,
                k_shot=1,
                n_query=1,
                episodes=400,
                validation_every=50,
                augmentation=STRONG,
            )
        ),
    ),
    "T2": Row(
        "T2, source medpix2, brain_tumor_mri and medical_mnist without chest X-rays",
        t2_source,
        t2_target,
        {
            "supervised, 96 px, pooled": TrainingConfig(
                method="supervised",
                backbone_config=POOLED,
                image_size=96,
                episodes=1500,
                validation_every=250,
                augmentation=MILD,
            )
        },
    ),
    "T4-same": Row(
        "T4, source brain_tumor_mri folds 0-3",
        lambda: brain_tumor("fold < 4"),
        t4_target,
        both(
            TrainingConfig(
                method="prototypical",
                episodes=4000,
                n_query=10,
                learning_rate=5e-3,
                validation_every=250,
                augmentation=STRONG,
            )
        ),
    ),
}


def trained(key: str, row: Row, config: TrainingConfig, out: Path, seed: int) -> tuple[TorchEncoder, float]:
    """The row's encoder and its training seconds; one that was trained before with the same options is taken up."""
    config = replace(config, seed=seed)
    folder = out / f"{key}-seed{seed}"
    if (folder / "encoder.json").exists():
        old = load_encoder(folder)
        if isinstance(old, TorchEncoder) and meaning(old.training["config"]) == meaning(config.to_dict()):
            return old, float(old.training["history"][-1]["seconds"])
    source = row.source()
    began = time.monotonic()
    training = train(source.images, source.labels, groups=source.groups, config=config, out=folder, progress=True)
    seconds = time.monotonic() - began
    print(f"{row.name}: trained in {seconds:.0f} s, held-out accuracy {training.best_accuracy}", flush=True)
    return training.encoder, float(training.history[-1]["seconds"] or 0)


def measure(
    encoder: Encoder, target: Images, k_shot: int, name: str, center: NDArray[np.float32] | None = None
) -> Report:
    """Nearest mean, cosine, on the task's episodes; centred with a source's mean where there is one."""
    return evaluate(
        PrototypeClassifier(center=center),
        encoder.encode(target.images),
        target.labels,
        episodes_of(target, k_shot),
        name=name,
        provenance={"encoder": encoder.name, "encoder_fingerprint": encoder.fingerprint},
    )


def main() -> None:
    """Run the rows asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/few_shot"))
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for key in options.rows:
        row = ROWS[key]
        encoders: dict[str, Encoder] = {}
        for kind, config in row.configs.items():
            ours, seconds = trained(f"{key}-{kind}", row, config, options.out, options.seed)
            encoders[f"trained, {kind}, {seconds:.0f} s"] = ours
        source = row.source().images
        centers = {name: encoder.source_mean for name, encoder in encoders.items()}
        for kind, config in row.configs.items():
            fresh = build_backbone(config.backbone, seed=options.seed, **config.backbone_config)
            encoders[f"untrained, {kind}"] = TorchEncoder(fresh, ours.preprocess, name=f"untrained {kind}")
            centers[f"untrained, {kind}"] = encoders[f"untrained, {kind}"].encode(source).mean(0)
        encoders["HOG, 64 px, centred"] = encoders["HOG, 64 px"] = load_encoder("hog-64")
        centers["HOG, 64 px, centred"] = encoders["HOG, 64 px"].encode(source).mean(0)
        encoders["raw pixels, 32 px"] = load_encoder("pixels-32")
        target = row.target()
        for k_shot in (1, 5):
            reports = [measure(encoder, target, k_shot, name, centers.get(name)) for name, encoder in encoders.items()]
            first = reports[0]
            print(f"\n**{row.name}, {first.n_way}-way {k_shot}-shot** ({first.patients:,} query patients)\n")
            print("| | accuracy | 95 % over patients | ± over episodes | first row minus this |\n|---|---|---|---|---|")
            for report in reports:
                paired = compare(first, report)
                gain = "" if report is first else f"{paired.difference:+.3f} [{paired.low:+.3f}, {paired.high:+.3f}]"
                low, high, half = *report.interval, report.episode_interval
                print(f"| {report.name} | {report.accuracy:.3f} | {low:.3f} to {high:.3f} | {half:.3f} | {gain} |")
                difference = {"difference": paired.difference, "low": paired.low, "high": paired.high}
                results.append({"row": key, "k_shot": k_shot, **difference, **report.to_dict()})
    (options.out / "few_shot.json").write_text(json.dumps(results, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
