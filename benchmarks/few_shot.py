"""T4 and T5: raw pixels, HOG, an untrained network and the trained prototypical encoder on the same episodes.

    RADSHOT_DATA=... python benchmarks/few_shot.py --out runs/few_shot

Trains the three source encoders (an interrupted run takes up those that are finished), evaluates every row on the same
600 episodes, and prints the tables of benchmarks/RESULTS.md; everything also goes to few_shot.json in the folder.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from tasks import SEEN_LOCATIONS, Images, brain_tumor, episodes_of, medical_mnist, medpix, quoted, t4_target, t5_target

from embeddings import Encoder, TorchEncoder, load_encoder
from episodes import Report, compare, evaluate
from fewshot import PrototypeClassifier, TrainingConfig, train
from fewshot.augmentation import Augmentation

#: Body parts in these sources have no side worth keeping, so images may be mirrored.
AUGMENTATION = Augmentation(rotation=15, shift=0.1, zoom=0.25, gamma=0.4, contrast=0.3, noise=0.03, horizontal_flip=0.5)


@dataclass(frozen=True)
class Row:
    """One source and the task it is tested on."""

    name: str
    source: Callable[[], Images]
    target: Callable[[], Images]
    config: TrainingConfig


def medpix_train(columns: tuple[str, ...], where: str = "1") -> Images:
    """MedPix's training split."""
    return medpix(f"split = 'train' AND {where}", columns)


ROWS = {
    "T4-other": Row(
        "T4, source without brain_tumor_mri",
        lambda: medpix_train(("location", "modality", "plane")) + medical_mnist(),
        t4_target,
        TrainingConfig(episodes=1200, augmentation=AUGMENTATION),
    ),
    "T4-same": Row(
        "T4, source brain_tumor_mri folds 0-3",
        lambda: brain_tumor("fold < 4"),
        t4_target,
        TrainingConfig(episodes=3000, n_query=10, learning_rate=3e-3, augmentation=AUGMENTATION),
    ),
    "T5": Row(
        "T5, source medpix2 seen locations",
        lambda: medpix_train(("location", "modality", "plane"), f"location IN ({quoted(SEEN_LOCATIONS)})"),
        t5_target,
        TrainingConfig(episodes=600, augmentation=AUGMENTATION),
    ),
}


def trained(key: str, row: Row, out: Path, seed: int) -> tuple[Encoder, float]:
    """The row's encoder and its training seconds; one that was trained before with the same options is taken up."""
    config = replace(row.config, seed=seed)
    folder = out / f"{key}-seed{seed}"
    if (folder / "encoder.json").exists():
        old = load_encoder(folder)
        if isinstance(old, TorchEncoder) and old.training["config"] == json.loads(json.dumps(config.to_dict())):
            return old, float(old.training["history"][-1]["seconds"])
    source = row.source()
    began = time.monotonic()
    training = train(source.images, source.labels, groups=source.groups, config=config, out=folder, progress=True)
    seconds = time.monotonic() - began
    print(f"{row.name}: trained in {seconds:.0f} s, held-out accuracy {training.best_accuracy}", flush=True)
    return load_encoder(folder), float(training.history[-1]["seconds"] or 0)


def measure(encoder: Encoder, target: Images, k_shot: int, name: str) -> Report:
    """Nearest mean, cosine, centred with the source's mean, on the task's episodes."""
    return evaluate(
        PrototypeClassifier(center=encoder.source_mean),
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
        ours, seconds = trained(key, row, options.out, options.seed)
        target = row.target()
        size = row.config.image_size
        encoders = {
            f"trained prototypical, {seconds:.0f} s": ours,
            f"untrained conv4, {size} px": load_encoder(f"untrained:conv4@{options.seed}"),
            "HOG, 64 px": load_encoder("hog-64"),
            "raw pixels, 32 px": load_encoder("pixels-32"),
        }
        for k_shot in (1, 5):
            reports = [measure(encoder, target, k_shot, name) for name, encoder in encoders.items()]
            first = reports[0]
            print(f"\n**{row.name}, {first.n_way}-way {k_shot}-shot** ({first.patients:,} query patients)\n")
            print("| | accuracy | 95 % over patients | ± over episodes | trained minus this |\n|---|---|---|---|---|")
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
