"""easyfsl's methods on the vectors and episodes of benchmarks/heads.py, kept for it to read.

    bash benchmarks/peers.sh
    RADSHOT_DATA=... PYTHONPATH=. .peers/bin/python benchmarks/heads_peers.py [--tasks T5 ...]

Every method gets the vectors through an identity in place of its network, the source's mean to subtract and rows of
unit length where it takes such options, and its authors' defaults otherwise. Fine-tuning and PT-MAP, which are slow,
answer the first 50 episodes.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import peers_import
import torch
from task_vectors import ENCODERS, load
from torch import nn

peers_import.prepare()

from easyfsl.methods import BDCSPN, PTMAP, Finetune, LaplacianShot, PrototypicalNetworks, SimpleShot  # noqa: E402

from episodes import EpisodeSampler  # noqa: E402

TASKS = ("T2", "T4-cases", "T4-same", "T5", "omniglot")
EPISODES, TUNED_EPISODES, QUERIES, SEED = 600, 50, 15, 0
#: Methods that take half a second an episode.
SLOW = ("Finetune", "PT-MAP")


def methods(center: torch.Tensor | None) -> dict[str, Any]:
    """Name -> a method of easyfsl."""
    plain = {"backbone": nn.Identity(), "use_softmax": False}
    unit = {**plain, "feature_normalization": 2}
    if center is not None:
        unit["feature_centering"] = center
    return {
        "PrototypicalNetworks": PrototypicalNetworks(**plain),
        "PrototypicalNetworks, unit length": PrototypicalNetworks(**unit),
        "SimpleShot": SimpleShot(**unit),
        "Finetune": Finetune(**unit),
        "BD-CSPN": BDCSPN(**unit),
        "LaplacianShot": LaplacianShot(**unit),
        "PT-MAP": PTMAP(**unit),
    }


def main() -> None:
    """Answer every episode with every method, and keep the answers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/heads"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for task in options.tasks:
        for encoder in ENCODERS:
            data = load(task, encoder)
            rows = torch.from_numpy(data.vectors)
            center = None if data.center is None else torch.from_numpy(data.center)
            n_way = 5 if task == "omniglot" else len(set(data.labels))
            for k_shot in (1, 5):
                sampler = EpisodeSampler(
                    data.labels, n_way, k_shot, QUERIES, groups=data.groups, n_episodes=EPISODES, seed=SEED
                )
                code = {name: i for i, name in enumerate(sampler.classes)}
                folder = options.out / f"{task}-{encoder}-{k_shot}"
                folder.mkdir(parents=True, exist_ok=True)
                for name, method in methods(center).items():
                    path = folder / f"easyfsl {name}.npz"
                    if path.exists():
                        continue
                    answers, began = [], time.perf_counter()
                    count = TUNED_EPISODES if name in SLOW else EPISODES
                    for number in range(count):
                        episode = sampler[number]
                        support = torch.from_numpy(np.concatenate(episode.support))
                        query = torch.from_numpy(np.concatenate(episode.query))
                        targets = torch.arange(n_way).repeat_interleave(k_shot)
                        method.process_support_set(rows[support], targets)
                        found = method(rows[query]).detach().argmax(1).numpy()
                        answers.append(np.array([code[episode.classes[i]] for i in found], dtype=np.intp))
                    spent = 1000 * (time.perf_counter() - began) / count
                    np.savez(path, answer=np.concatenate(answers), milliseconds=spent)
                    print(task, encoder, k_shot, name, f"{spent:.1f} ms", flush=True)


if __name__ == "__main__":
    main()
