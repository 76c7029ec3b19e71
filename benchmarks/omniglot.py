"""T1: Omniglot, the Vinyals split; prototypical, Siamese, matching and relation networks on Conv-4.

    RADSHOT_DATA=... python benchmarks/omniglot.py --out runs/omniglot

Trains on trainval (1,200 characters in four rotations), tests on the 423 test characters in four rotations: 1,000
episodes of 15 queries per class for each of 5-way and 20-way, 1-shot and 5-shot. An interrupted run goes on where it
was. `--protocol alphabet` is Koch's: 20-way 1-shot with all characters of an episode from one alphabet, trained on the
30 background alphabets and tested on the 20 evaluation alphabets, without rotations.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Hashable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from tasks import data_folder, meaning

from embeddings import TorchEncoder, load_encoder
from episodes import EpisodeSampler, evaluate
from fewshot import TrainingConfig, make_head, train
from fewshot.training_state import STATE_FILE

#: Conv-4 as in the literature: 64 channels, 28 x 28 pixels, what is left of the image kept (64 numbers).
CONV4: dict[str, object] = {"pooling": "flatten", "image_size": 28}
#: For the relation module, which compares maps: two of the four blocks halve the image, 64 maps of 7 x 7 are left.
CONV4_MAPS: dict[str, object] = {**CONV4, "pools": 2}
EPISODES, QUERIES = 1000, 15
#: Fewer episodes by number of ways for the head that compares every query with every class by a network, on a CPU.
FEWER = {"relation": {5: 300, 20: 60}}

#: Episodes of very many ways and a single query: the more classes a step tells apart, the better (tuned on val).
PROTOTYPICAL = TrainingConfig(
    method="prototypical",
    backbone_config=CONV4,
    n_way=240,
    k_shot=1,
    n_query=1,
    episodes=7000,
    learning_rate=6e-3,
    weight_decay=0.01,
    validation="none",
    validation_every=500,
    augmentation=None,  # turns, shifts and zooms of any size made val worse
)
#: Name -> (how it is trained, the head it is tested with).
METHODS: dict[str, tuple[TrainingConfig, str]] = {
    "prototypical": (PROTOTYPICAL, "prototypes-euclidean"),
    "siamese, supcon": (replace(PROTOTYPICAL, method="siamese", loss="supcon", episodes=1200), "siamese"),
    "siamese, multi-similarity": (
        replace(PROTOTYPICAL, method="siamese", loss="multi-similarity", episodes=800),
        "prototypes",
    ),
    "supervised": (replace(PROTOTYPICAL, method="supervised", batch_size=480, episodes=800), "prototypes"),
    "siamese, logistic": (replace(PROTOTYPICAL, method="siamese", loss="logistic", episodes=1200), "siamese"),
    "matching": (replace(PROTOTYPICAL, method="matching", episodes=1200), "matching"),
    "relation": (
        replace(PROTOTYPICAL, method="relation", backbone_config=CONV4_MAPS, n_way=30, n_query=3, episodes=800),
        "relation",
    ),
}


def drawings() -> tuple[NDArray[np.uint8], NDArray[np.int64], pd.DataFrame]:
    """All images (32460, 28, 28), ink white on black, their class numbers, and the classes' names."""
    folder = data_folder() / "omniglot"
    with np.load(folder / "omniglot_28x28_uint8.npz") as file:
        return file["images"], file["labels"].astype(np.int64), pd.read_csv(folder / "classes.csv")


def omniglot(split: str) -> tuple[NDArray[np.uint8], list[Hashable]]:
    """Images of one part of the Vinyals split, each rotation of a character a class of its own.

    Args:
        split: "train", "val", "trainval" or "test".

    Returns:
        uint8 (n, 28, 28), and n labels "alphabet/character/rotation".
    """
    images, classes, names = drawings()
    numbers = {f"{row.alphabet}/{row.character}": row.class_id for row in names.itertuples()}
    rows = {number: np.flatnonzero(classes == number) for number in numbers.values()}
    parts, labels = [], []
    for line in (data_folder() / "omniglot" / "splits_vinyals" / f"{split}.txt").read_text().split():
        character, rotation = line.rsplit("/rot", 1)
        found = rows[numbers[character]]
        parts.append(np.rot90(images[found], int(rotation) // 90, axes=(1, 2)))
        labels += [line] * len(found)
    return np.ascontiguousarray(np.concatenate(parts)), list(labels)


def trained(
    name: str, config: TrainingConfig, images: NDArray[np.uint8], labels: list[Hashable], out: Path
) -> TorchEncoder:
    """The encoder of a method; one trained before with the same options is taken up, an interrupted one goes on."""
    folder = out / name.replace(", ", "-")
    if (folder / "encoder.json").exists():
        old = load_encoder(folder)
        if isinstance(old, TorchEncoder) and meaning(old.training["config"]) == meaning(config.to_dict()):
            return old
    resume = (folder / STATE_FILE).exists()
    return train(images, labels, config=config, out=folder, progress=True, resume=resume).encoder


def main() -> None:
    """Train and test the methods asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/omniglot"))
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--protocol", choices=["vinyals", "alphabet"], default="vinyals")
    parser.add_argument("--source", choices=["train", "trainval"], default="trainval", help="train to tune on val")
    parser.add_argument("--episodes", type=int, help="training episodes, for a trial")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    target = "test" if options.source == "trainval" else "val"
    if options.protocol == "alphabet":
        within_alphabet(options)
        return
    source, test = omniglot(options.source), omniglot(target)
    results = []
    print("| method | 5-way 1-shot | 5-way 5-shot | 20-way 1-shot | 20-way 5-shot | training seconds |")
    print("|---|---|---|---|---|---|", flush=True)
    for name in options.methods:
        config, head = METHODS[name]
        config = replace(config, seed=options.seed, episodes=options.episodes or config.episodes)
        encoder = trained(name, config, *source, options.out / f"{options.source}-seed{options.seed}")
        vectors = encoder.encode(list(test[0]))
        cells = []
        for n_way in (5, 20):
            for k_shot in (1, 5):
                count = FEWER.get(name, {}).get(n_way, EPISODES)
                sampler = EpisodeSampler(test[1], n_way, k_shot, QUERIES, n_episodes=count, seed=0)
                report = evaluate(make_head(head, similarity=encoder.similarity), vectors, test[1], sampler, name=name)
                cells.append(f"{100 * report.episode_mean:.2f} ± {100 * (report.episode_interval or 0):.2f}")
                results.append({"method": name, "training": encoder.training["config"], **report.to_dict()})
        seconds = float(encoder.training["history"][-1]["seconds"])
        print(f"| {name} | {' | '.join(cells)} | {seconds:,.0f} |", flush=True)
    (options.out / f"omniglot-{target}.json").write_text(json.dumps(results, default=str) + "\n")


def within_alphabet(options: argparse.Namespace) -> None:
    """Koch's protocol, for the Siamese networks."""
    images, classes, names = drawings()
    background = names.subset.to_numpy()[classes] == "images_background"
    alphabet, labels = names.alphabet.to_numpy()[classes], [int(number) for number in classes]
    kept = np.flatnonzero(background)
    print("| method | 20-way 1-shot within alphabet | across alphabets |\n|---|---|---|", flush=True)
    for name in [name for name in options.methods if name.startswith("siamese")]:
        config, head = METHODS[name]
        config = replace(config, seed=options.seed, episodes=options.episodes or config.episodes)
        encoder = trained(
            name, config, images[kept], [labels[i] for i in kept], options.out / f"koch-seed{options.seed}"
        )
        vectors = encoder.encode(list(images))
        cells = []
        for within in (True, False):
            parts = [alphabet == one for one in np.unique(alphabet[~background])] if within else [~background]
            accuracies = []
            for number, part in enumerate(parts):
                rows = np.flatnonzero(part & ~background)
                own = [labels[i] for i in rows]
                sampler = EpisodeSampler(
                    own, min(20, len(set(own))), 1, 1, n_episodes=EPISODES // len(parts), seed=number
                )
                report = evaluate(make_head(head, similarity=encoder.similarity), vectors[rows], own, sampler)
                accuracies.append(report.outcomes.episode_accuracies())
            all_of_them = np.concatenate(accuracies)
            half = 1.96 * all_of_them.std(ddof=1) / len(all_of_them) ** 0.5
            cells.append(f"{100 * all_of_them.mean():.1f} ± {100 * half:.1f}")
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
