"""easyfsl's and learn2learn's own prototypical training beside radshot's, on the same images and the same backbone.

    bash benchmarks/peers.sh
    RADSHOT_DATA=... PYTHONPATH=. .peers/bin/python benchmarks/peers.py --task omniglot --minutes 20
    RADSHOT_DATA=... PYTHONPATH=. .peers/bin/python benchmarks/peers.py --task medpix2 --episodes 1000 --peers easyfsl

Each peer trains with what its authors publish: its task sampler, its loss, its shots and queries, its optimizer and
its schedule, stretched over the budget; without validation, so that the last weights count. The budget is a number of
episodes or of minutes. What comes of it is saved as an ordinary radshot checkpoint, `OUT/TASK-PEER`, with the seconds
it took, and tested with nearest mean on the episodes that radshot's own encoders are tested on; `--encoders` names
checkpoints of radshot to test beside them, with the paired difference.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import peers_import
import torch
from numpy.typing import NDArray
from omniglot import omniglot
from tasks import SEEN_LOCATIONS, medpix, quoted, t5_target
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

peers_import.prepare()

import learn2learn as l2l  # noqa: E402
from easyfsl.datasets import FewShotDataset  # noqa: E402
from easyfsl.methods import PrototypicalNetworks  # noqa: E402
from easyfsl.samplers import TaskSampler  # noqa: E402
from learn2learn.data.transforms import KShots, LoadData, NWays, RemapLabels  # noqa: E402

from embeddings import ImageSource, Preprocess, TorchEncoder, build_backbone, load_encoder, read_image  # noqa: E402
from episodes import EpisodeSampler, Report, compare, evaluate  # noqa: E402
from fewshot import PrototypeClassifier  # noqa: E402

#: Side of the images of T5, in pixels; Omniglot's are 28.
MEDPIX_SIDE = 64
QUERIES = 15


@dataclass(frozen=True)
class Job:
    """A source to train on and a target to be tested on.

    Attributes:
        pixels: float32 (n, 1, h, w), normalised.
        labels: n class numbers.
        preprocess: What brings a new image to the same form.
        target: Images to be tested on.
        target_labels: Their labels.
        groups: Their patients, or None.
        tests: (n_way, k_shot) of the tests.
        n_episodes: Test episodes.
    """

    pixels: Tensor
    labels: list[int]
    preprocess: Preprocess
    target: list[ImageSource]
    target_labels: list[Hashable]
    groups: list[Hashable] | None
    tests: tuple[tuple[int, int], ...]
    n_episodes: int


@dataclass(frozen=True)
class Recipe:
    """What a peer publishes.

    Attributes:
        n_way: Classes of a training episode; fewer where there are not so many.
        k_shot: Shots.
        n_query: Queries per class.
        source: Where this stands.
    """

    n_way: int
    k_shot: int
    n_query: int
    source: str


RECIPES = {
    "easyfsl": Recipe(5, 5, 10, "notebooks/episodic_training.ipynb"),
    "learn2learn": Recipe(30, 1, 15, "examples/vision/protonet_miniimagenet.py"),
}


@dataclass
class Budget:
    """How long to train: episodes, or seconds."""

    episodes: int | None
    seconds: float | None
    began: float = 0.0
    done: int = 0

    def share(self) -> float:
        """What is spent, of 1."""
        if self.episodes is not None:
            return self.done / self.episodes
        return (time.monotonic() - self.began) / (self.seconds or 1.0)


def the_omniglot_job() -> Job:
    """T1: the Vinyals split, tested on all four tasks of the literature."""
    images, names = omniglot("trainval")
    target, target_labels = omniglot("test")
    numbers = {name: i for i, name in enumerate(dict.fromkeys(names))}
    preprocess = Preprocess(size=(28, 28), mean=(0.0,), std=(1.0,))
    tests = ((5, 1), (5, 5), (20, 1), (20, 5))
    pixels = torch.from_numpy(preprocess.normalise(images))
    labels = [numbers[name] for name in names]
    return Job(pixels, labels, preprocess, list(target), list(target_labels), None, tests, 1000)


def the_medpix_job() -> Job:
    """T5: location and modality of the seen locations, tested on the unseen ones."""
    source = medpix(f"split = 'train' AND location IN ({quoted(SEEN_LOCATIONS)})", ("location", "modality"))
    target = t5_target()
    numbers = {name: i for i, name in enumerate(dict.fromkeys(source.labels))}
    resized = Preprocess(size=(MEDPIX_SIDE, MEDPIX_SIDE))
    grey = np.stack([resized.resize(read_image(image)) for image in source.images])
    preprocess = Preprocess(size=resized.size, mean=(round(float(grey.mean()), 4),), std=(round(float(grey.std()), 4),))
    pixels = torch.from_numpy(preprocess.normalise(grey))
    labels = [numbers[name] for name in source.labels]
    return Job(pixels, labels, preprocess, target.images, target.labels, target.groups, ((5, 1), (5, 5)), 600)


JOBS = {"omniglot": the_omniglot_job, "medpix2": the_medpix_job}


class EasySet(FewShotDataset):
    """easyfsl's view of tensors in memory."""

    def __init__(self, pixels: Tensor, labels: list[int]) -> None:
        self.pixels, self.labels = pixels, labels

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        """Return an image and its label."""
        return self.pixels[item], self.labels[item]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def get_labels(self) -> list[int]:
        """Return the labels."""
        return self.labels


def enough(job: Job, recipe: Recipe) -> tuple[Tensor, list[int], int]:
    """The classes a peer can draw from, which must have all the images of an episode, and how many ways there are."""
    counts = Counter(job.labels)
    kept = [i for i, label in enumerate(job.labels) if counts[label] >= recipe.k_shot + recipe.n_query]
    labels = [job.labels[i] for i in kept]
    if len(set(labels)) < 2:
        raise SystemExit(f"No two classes have {recipe.k_shot + recipe.n_query} images, as this peer needs.")
    return job.pixels[kept], labels, min(recipe.n_way, len(set(labels)))


def train_easyfsl(backbone: nn.Module, job: Job, budget: Budget) -> None:
    """easyfsl's tutorial: SGD of rate 0.01 with momentum, a tenth of it after 60 and 80 % of the epochs."""
    recipe = RECIPES["easyfsl"]
    pixels, labels, n_way = enough(job, recipe)
    images = EasySet(pixels, labels)
    classifier = PrototypicalNetworks(backbone)
    optimizer = torch.optim.SGD(classifier.parameters(), lr=1e-2, momentum=0.9, weight_decay=5e-4)
    classifier.train()
    while budget.share() < 1:
        sampler = TaskSampler(images, n_way=n_way, n_shot=recipe.k_shot, n_query=recipe.n_query, n_tasks=500)
        loader = DataLoader(images, batch_sampler=sampler, collate_fn=sampler.episodic_collate_fn)
        for support, support_labels, query, query_labels, _ in loader:
            spent = budget.share()
            if spent >= 1:
                break
            for group in optimizer.param_groups:
                group["lr"] = 1e-2 * 0.1 ** ((spent >= 0.6) + (spent >= 0.8))
            optimizer.zero_grad()
            classifier.process_support_set(support, support_labels)
            loss = functional.cross_entropy(classifier(query), query_labels)
            loss.backward()
            optimizer.step()
            budget.done += 1


def train_learn2learn(backbone: nn.Module, job: Job, budget: Budget) -> None:
    """learn2learn's example: Adam of rate 0.001, halved every 20 epochs of 100 tasks; squared Euclidean distances."""
    recipe = RECIPES["learn2learn"]
    pixels, labels, n_way = enough(job, recipe)
    meta = l2l.data.MetaDataset(TensorDataset(pixels, torch.tensor(labels)))
    per_class = recipe.k_shot + recipe.n_query
    transforms = [NWays(meta, n_way), KShots(meta, per_class), LoadData(meta), RemapLabels(meta)]
    tasks = l2l.data.TaskDataset(meta, task_transforms=transforms)
    optimizer = torch.optim.Adam(backbone.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, step_size=20, gamma=0.5)
    is_support = (torch.arange(n_way * per_class) % per_class) < recipe.k_shot
    backbone.train()
    while budget.share() < 1:
        data, targets = tasks.sample()
        order = torch.sort(targets, stable=True).indices
        vectors = backbone(data[order])
        prototypes = vectors[is_support].reshape(n_way, recipe.k_shot, -1).mean(dim=1)
        logits = -((vectors[~is_support][:, None] - prototypes[None]) ** 2).sum(dim=2)
        loss = functional.cross_entropy(logits, targets[order][~is_support].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        budget.done += 1
        if budget.done % 100 == 0:
            schedule.step()


TRAINERS = {"easyfsl": train_easyfsl, "learn2learn": train_learn2learn}


def trained(peer: str, task: str, job: Job, budget: Budget, seed: int, out: Path) -> TorchEncoder:
    """Train a peer and save it as a checkpoint."""
    import random

    random.seed(seed)  # both peers draw their tasks from Python's generator
    torch.manual_seed(seed)
    side = job.preprocess.size[0]
    stem = {"stem_width": 32} if task == "medpix2" else {}  # as benchmarks/methods.py has it
    backbone = build_backbone("conv4", in_channels=1, seed=seed, pooling="flatten", image_size=side, **stem)
    budget.began = time.monotonic()
    TRAINERS[peer](backbone, job, budget)
    seconds = time.monotonic() - budget.began
    print(f"{peer}: {budget.done:,} episodes in {seconds:.1f} s", flush=True)
    backbone.eval()
    training: dict[str, Any] = {
        "peer": peer,
        "recipe": RECIPES[peer].source,
        "episodes": budget.done,
        "seconds": round(seconds, 1),
        "versions": peers_import.versions(),
    }
    encoder = TorchEncoder(backbone, job.preprocess, name=f"conv4-{peer}", training=training)
    encoder.save(out / f"{task}-{peer}")
    return encoder


def tests(encoder: TorchEncoder, job: Job) -> Iterator[tuple[str, Report]]:
    """The encoder's reports on the job's tests: nearest mean by Euclidean distance, as all of them train."""
    vectors: NDArray[np.float32] = encoder.encode(job.target)
    for n_way, k_shot in job.tests:
        sampler = EpisodeSampler(
            job.target_labels, n_way, k_shot, QUERIES, groups=job.groups, n_episodes=job.n_episodes, seed=0
        )
        classifier = PrototypeClassifier(metric="euclidean")
        report = evaluate(classifier, vectors, job.target_labels, sampler, name=encoder.name)
        yield f"{n_way}-way {k_shot}-shot", report


def main() -> None:
    """Train and test the peers asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--task", choices=list(JOBS), default="omniglot")
    parser.add_argument("--peers", nargs="*", choices=list(TRAINERS), default=list(TRAINERS))
    parser.add_argument("--episodes", type=int, help="training episodes; or")
    parser.add_argument("--minutes", type=float, help="minutes of training")
    parser.add_argument("--encoders", nargs="*", default=[], help="checkpoints of radshot to test on the same episodes")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    options = parser.parse_args()
    if (options.episodes is None) == (options.minutes is None):
        parser.error("give --episodes or --minutes, one of the two")
    job = JOBS[options.task]()
    options.out.mkdir(parents=True, exist_ok=True)
    seconds = None if options.minutes is None else 60 * options.minutes
    encoders = [load_encoder(name) for name in options.encoders]
    encoders += [
        trained(peer, options.task, job, Budget(options.episodes, seconds), options.seed, options.out)
        for peer in options.peers
    ]
    reports = [dict(tests(encoder, job)) for encoder in encoders]
    names = list(reports[0]) if reports else []
    print(f"\n| | {' | '.join(names)} |\n|---|{'---|' * len(names)}")
    for encoder, found in zip(encoders, reports, strict=True):
        cells = [
            f"{100 * report.episode_mean:.2f} ± {100 * (report.episode_interval or 0):.2f}" for report in found.values()
        ]
        print(f"| {encoder.name} | {' | '.join(cells)} |")
    for encoder, found in zip(encoders[1:], reports[1:], strict=True):
        pairs = [compare(reports[0][name], found[name]) for name in names]
        cells = [f"{pair.difference:+.3f} [{pair.low:+.3f}, {pair.high:+.3f}]" for pair in pairs]
        print(f"| {encoders[0].name} minus {encoder.name} | {' | '.join(cells)} |")
    record = [{name: report.to_dict() for name, report in found.items()} for found in reports]
    (options.out / f"{options.task}.json").write_text(json.dumps(record, default=str) + "\n")


if __name__ == "__main__":
    main()
