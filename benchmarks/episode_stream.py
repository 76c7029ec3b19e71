"""How fast episodes come: radshot's EpisodeStream beside learn2learn's Taskset and easyfsl's TaskSampler + DataLoader.

    bash benchmarks/peers.sh
    RADSHOT_DATA=... PYTHONPATH=. .peers/bin/python benchmarks/episode_stream.py [--parts memory jpeg share] [--pairs 9]

5-way 5-shot with 15 queries, 84 x 84 pixels, float32, normalised. All three are measured in one process, one after the
other in every pair; the table gives the median ratio of the pairs and its range. The peers get what suits them: float32
tensors in memory, and the better of no and of two loader processes, whose start is not counted.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import peers_import
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, TensorDataset

peers_import.prepare()

import learn2learn as l2l  # noqa: E402
from easyfsl.datasets import FewShotDataset  # noqa: E402
from easyfsl.samplers import TaskSampler  # noqa: E402
from learn2learn.data.transforms import ConsecutiveLabels, KShots, LoadData, NWays, RemapLabels  # noqa: E402

from embeddings import Augmentation, build_backbone  # noqa: E402
from episodes import EpisodeSampler, make_phantoms  # noqa: E402
from episodes.stream import EpisodeStream  # noqa: E402
from fewshot.networks import EpisodeTargets, PrototypicalNetwork  # noqa: E402

N_WAY, K_SHOT, N_QUERY = 5, 5, 15
SIDE, MEAN, STD = 84, 0.5, 0.25
CLASSES, PER_CLASS = 64, 60  # miniImageNet's number of training classes
#: Episodes timed at once: enough for a tenth of a second or more.
OURS, THEIRS_L2L, THEIRS_EASYFSL = 1500, 150, 25
#: JPEG episodes the peers are timed on; that time grows in proportion is shown by timing a quarter of them as well.
JPEG_EPISODES = 40
#: Sampler seeds; a stream draws all its episodes anew each time.
SEED = 0


def labels_of(n_classes: int) -> list[int]:
    """Labels of a set of equal classes."""
    return np.repeat(np.arange(n_classes), PER_CLASS).tolist()


def sampler_of(n_classes: int, n_episodes: int) -> EpisodeSampler:
    """Our episodes."""
    return EpisodeSampler(labels_of(n_classes), N_WAY, K_SHOT, N_QUERY, n_episodes=n_episodes, seed=SEED)


class EasySet(FewShotDataset):
    """easyfsl's view of a data set whose labels are known."""

    def __init__(self, images: Dataset[Any], labels: list[int]) -> None:
        self.images, self.labels = images, labels

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        """Return an image and its label."""
        return self.images[item][0], self.labels[item]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def get_labels(self) -> list[int]:
        """Return the labels."""
        return self.labels


class JpegSet(Dataset[Any]):
    """JPEG files as the peers' users read them: Pillow and torchvision's transforms."""

    def __init__(self, paths: list[Path], labels: list[int]) -> None:
        from torchvision.transforms import Compose, Normalize, Resize, ToTensor

        self.paths, self.labels = paths, labels
        self.transform = Compose([Resize((SIDE, SIDE)), ToTensor(), Normalize([MEAN], [STD])])

    def __getitem__(self, item: int) -> tuple[Tensor, int]:
        """Decode an image."""
        with Image.open(self.paths[item]) as image:
            return self.transform(image.convert("L")), self.labels[item]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)


def timed(batches: Iterable[Any], skip: int = 0) -> float:
    """Seconds per episode, `skip` of them not counted."""
    source = iter(batches)
    for _ in range(skip):
        next(source)
    began, seen = time.perf_counter(), 0
    for _ in source:
        seen += 1
    return (time.perf_counter() - began) / seen


def learn2learn_tasks(images: Dataset[Any], n: int, workers: int) -> float:
    """Seconds per task of a Taskset, sampled or through a loader."""
    meta = l2l.data.MetaDataset(images)
    taskset = l2l.data.Taskset(
        meta,
        task_transforms=[
            NWays(meta, N_WAY),
            KShots(meta, K_SHOT + N_QUERY),
            LoadData(meta),
            RemapLabels(meta),
            ConsecutiveLabels(meta),
        ],
        num_tasks=-1 if workers == 0 else n + workers,
    )
    if workers == 0:
        return timed(taskset.sample() for _ in range(n))
    loader = DataLoader(taskset, batch_size=None, num_workers=workers)
    return timed(loader, skip=workers)


def easyfsl_tasks(images: EasySet, n: int, workers: int) -> float:
    """Seconds per task of a TaskSampler in a DataLoader."""
    sampler = TaskSampler(images, n_way=N_WAY, n_shot=K_SHOT, n_query=N_QUERY, n_tasks=n + workers)
    loader = DataLoader(
        images, batch_sampler=sampler, num_workers=workers, collate_fn=sampler.episodic_collate_fn, pin_memory=False
    )
    return timed(loader, skip=workers)


def described(values: list[float], form: str = ".1f") -> str:
    """Median and range."""
    return f"{median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


def in_pairs(jobs: dict[str, Callable[[], float]], pairs: int) -> dict[str, list[float]]:
    """Every job in turn, `pairs` times after one round that does not count."""
    found: dict[str, list[float]] = {name: [] for name in jobs}
    for number in range(pairs + 1):
        for name, job in jobs.items():
            seconds = job()
            if number:
                found[name].append(seconds)
    return found


def in_memory(pairs: int) -> None:
    """(a) Images in memory."""
    pixels = np.random.default_rng(0).integers(0, 256, (CLASSES * PER_CLASS, SIDE, SIDE), dtype=np.uint8)
    labels = labels_of(CLASSES)
    tensors = (torch.from_numpy(pixels).float().div_(255).sub_(MEAN).div_(STD))[:, None]
    plain = TensorDataset(tensors, torch.tensor(labels))
    easy = EasySet(plain, labels)

    def ours(reuse: bool = True) -> float:
        stream = EpisodeStream(pixels, sampler_of(CLASSES, OURS), mean=MEAN, std=STD, reuse=reuse)
        return timed(stream)

    found = in_pairs(
        {
            "radshot": ours,
            "radshot, fresh buffers": lambda: ours(reuse=False),
            "learn2learn": lambda: learn2learn_tasks(plain, THEIRS_L2L, 0),
            "learn2learn, 2 processes": lambda: learn2learn_tasks(plain, THEIRS_L2L, 2),
            "easyfsl": lambda: easyfsl_tasks(easy, THEIRS_EASYFSL, 0),
            "easyfsl, 2 processes": lambda: easyfsl_tasks(easy, 4 * THEIRS_EASYFSL, 2),
        },
        pairs,
    )
    print(f"\n**In memory** ({CLASSES} classes x {PER_CLASS} images)\n")
    print("| | episodes/s, median (range) | radshot is faster by, median (range) |\n|---|---|---|")
    for name, seconds in found.items():
        rate = described([1 / value for value in seconds], ".0f")
        ratio = described([theirs / mine for theirs, mine in zip(seconds, found["radshot"], strict=True)])
        print(f"| {name} | {rate} | {ratio if name != 'radshot' else ''} |")


def real_jpegs() -> Iterator[Path]:
    """Every JPEG of the two sets that have them."""
    folder = Path(os.environ.get("RADSHOT_DATA", "nowhere"))
    for name in ("medpix2", "brain_tumor_mri"):
        yield from sorted((folder / name / "images").rglob("*.jpg"))


def jpeg_files(folder: Path) -> tuple[list[Path], str]:
    """Real JPEG files in full classes of `PER_CLASS`, or phantoms written as such; and what they are, in words."""
    paths = list(real_jpegs())
    if len(paths) >= CLASSES * PER_CLASS:
        paths = paths[: len(paths) // PER_CLASS * PER_CLASS]
        return paths, f"{len(paths):,} images of medpix2 and brain_tumor_mri, about 224 x 224 pixels"
    phantoms = make_phantoms(n_patients=40, images_per_patient=2, seed=0)
    for i in range(CLASSES * PER_CLASS):
        picture = np.asarray(phantoms.images[i % len(phantoms.images)])
        grey = Image.fromarray(np.rint(np.clip(picture, 0, 1) * 255).astype(np.uint8)).resize((224, 224))
        paths.append(folder / f"{i}.jpg")
        grey.save(paths[-1], quality=90)
    return paths, f"{len(paths):,} phantoms, 224 x 224 pixels"


def from_jpeg(pairs: int) -> None:
    """(b) Images in JPEG files; our one-time decoding counts."""
    with tempfile.TemporaryDirectory() as folder:
        paths, what = jpeg_files(Path(folder))
        labels = labels_of(len(paths) // PER_CLASS)
        for path in paths:
            path.read_bytes()  # so that nobody's time is the disk's
        plain = JpegSet(paths, labels)
        easy = EasySet(plain, labels)

        def ours(n: int) -> float:
            began = time.perf_counter()
            for _ in EpisodeStream(paths, sampler_of(len(paths) // PER_CLASS, n), size=SIDE, mean=MEAN, std=STD):
                pass
            return time.perf_counter() - began

        jobs: dict[str, Callable[[], float]] = {
            "radshot, 1,000": lambda: ours(1000),
            "radshot, 10,000": lambda: ours(10_000),
        }
        for workers in (0, 2):
            for n in (JPEG_EPISODES // 4, JPEG_EPISODES):
                at = f"{workers} processes, {n} episodes"
                jobs[f"learn2learn, {at}"] = lambda n=n, w=workers: learn2learn_tasks(plain, n, w)  # type: ignore[misc]
                jobs[f"easyfsl, {at}"] = lambda n=n, w=workers: easyfsl_tasks(easy, n, w)  # type: ignore[misc]
        found = in_pairs(jobs, pairs)
        print(f"\n**JPEG files** ({what}; our decoding of every image once is counted)\n")
        print("| | milliseconds per episode | 1,000 episodes: ratio | 10,000 episodes: ratio |\n|---|---|---|---|")
        for n in (1000, 10_000):
            mine = described([1000 * seconds / n for seconds in found[f"radshot, {n:,}"]], ".2f")
            print(f"| radshot, {n:,} episodes | {mine} | | |")
        for name, seconds in found.items():
            if not name.startswith("radshot"):
                ratios = [
                    described(
                        [theirs * n / mine for theirs, mine in zip(seconds, found[f"radshot, {n:,}"], strict=True)]
                    )
                    for n in (1000, 10_000)
                ]
                print(f"| {name} | {described([1000 * value for value in seconds], '.1f')} | {' | '.join(ratios)} |")


def shares(pairs: int) -> None:
    """(c) How much of a training step is not the network."""
    print("\n**Share of a training step that is not the network** (conv4, 64 channels, AdamW)\n")
    print("| | ms per step | sampling, gathering, converting | augmentation | share |\n|---|---|---|---|---|")
    for title, side, shape, half in (
        ("84 x 84, 5-way 5-shot 15-query", 84, (5, 5, 15), True),
        ("64 x 64, 60 images (6-way 5-shot 5-query)", 64, (6, 5, 5), True),
        ("84 x 84, float32", 84, (5, 5, 15), False),
        ("64 x 64, 60 images, float32", 64, (6, 5, 5), False),
    ):
        pixels = np.random.default_rng(0).integers(0, 256, (CLASSES * PER_CLASS, side, side), dtype=np.uint8)
        sampler = EpisodeSampler(labels_of(CLASSES), *shape, n_episodes=1000, seed=SEED)
        network = PrototypicalNetwork(build_backbone("conv4", seed=0)).to(memory_format=torch.channels_last)
        optimizer = torch.optim.AdamW(network.parameters())
        streams = {
            on: EpisodeStream(pixels, sampler, mean=MEAN, std=STD, channels_last=True, augment=on)
            for on in (None, Augmentation())
        }
        steps: dict[str, list[float]] = {"network": [], "plain": [], "augmented": []}
        for number in range(pairs + 1):
            for name, stream in (("plain", streams[None]), ("augmented", streams[Augmentation()])):
                began = time.perf_counter()
                for made in stream.batches(number * 20, number * 20 + 20):
                    batch = made
                seconds = (time.perf_counter() - began) / 20
                if number:
                    steps[name].append(seconds)
            began = time.perf_counter()
            for _ in range(5):
                targets = [EpisodeTargets(own.support, own.query, own.n_way) for own in batch.targets]
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                    loss, _ = network.loss(batch.images, targets)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            if number:
                steps["network"].append((time.perf_counter() - began) / 5)
        plain, augmented, network_time = (1000 * median(steps[name]) for name in ("plain", "augmented", "network"))
        rest = [a / (a + b) for a, b in zip(steps["augmented"], steps["network"], strict=True)]
        print(
            f"| {title} | {augmented + network_time:.1f} | {plain:.2f} ms | {augmented - plain:.2f} ms "
            f"| {100 * plain / (plain + network_time):.1f} % without, {100 * median(rest):.1f} % "
            f"({100 * min(rest):.1f} to {100 * max(rest):.1f}) with augmentation |"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["memory", "jpeg", "share"], choices=["memory", "jpeg", "share"])
    parser.add_argument("--pairs", type=int, default=9)
    options = parser.parse_args()
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    held = "MALLOC_TOP_PAD_" in os.environ
    print(f"{peers_import.versions()}; {torch.get_num_threads()} threads; load {load}; malloc kept: {held}", flush=True)
    for part, job in (("memory", in_memory), ("jpeg", from_jpeg), ("share", shares)):
        if part in options.parts:
            job(options.pairs)
    print(f"\nLoad at the end: {', '.join(f'{value:.1f}' for value in os.getloadavg())}")


if __name__ == "__main__":
    main()
