"""Whole deployments of simulated users: do coverage, probability and "none of these" hold, and is a removal complete?

    RADSHOT_DATA=... python benchmarks/task_vectors.py
    RADSHOT_DATA=... python benchmarks/deployments.py [--users 40]

Each user registers some patients of some classes, deploys with `head="auto"`, and asks about all other patients of
these classes and about one class that is not in the set. Once 10 other patients of each class are set aside for
calibration, once nobody is and the support is calibrated on. Then a support image with a wrong label is removed, and a
patient set aside, and everything is compared to the bit with a set that never held them.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from task_vectors import TaskVectors, load

from embeddings import PrecomputedEncoder
from episodes import Decision, reliability
from fewshot import ComparisonSet, Recipe, deploy, open_deployment

TASKS = ("phantoms", "T4-same", "T5", "omniglot")
#: Patients of each class in the support, and set aside.
SHOTS, ASIDE = 8, 10
#: Omniglot has 20 drawings of a character.
OMNIGLOT_SHOTS, OMNIGLOT_ASIDE = 6, 8
COVERAGE, TURNED_AWAY = 0.9, 0.05
SEED = 4


class User:
    """One user's classes and patients, drawn anew."""

    def __init__(self, data: TaskVectors, task: str, rng: np.random.Generator) -> None:
        groups: Sequence[Hashable] = data.groups if data.groups is not None else list(range(len(data.labels)))
        self.data, self.groups = data, groups
        shots, aside = (OMNIGLOT_SHOTS, OMNIGLOT_ASIDE) if task == "omniglot" else (SHOTS, ASIDE)
        names = sorted({str(label) for label in data.labels})
        owners = {
            name: sorted({str(g) for g, x in zip(groups, data.labels, strict=True) if x == name}) for name in names
        }
        names = [name for name in names if len(owners[name]) >= shots + aside + 2]
        n_way = min(5, len(names) - 1)
        drawn = rng.permutation(len(names))[: n_way + 1]
        self.classes, self.unknown = [names[i] for i in drawn[:-1]], names[drawn[-1]]
        self.support: list[int] = []
        self.aside: list[int] = []
        self.asked: list[int] = []
        taken: set[str] = set()
        for name in self.classes:
            mixed = [owners[name][i] for i in rng.permutation(len(owners[name]))]
            mixed = [owner for owner in mixed if owner not in taken]
            self.support += self._rows(name, mixed[:shots])
            self.aside += self._rows(name, mixed[shots : shots + aside])
            taken.update(mixed[: shots + aside])
        for name in self.classes:
            self.asked += self._rows(name, [owner for owner in owners[name] if owner not in taken])
        self.strange = self._rows(self.unknown, [owner for owner in owners[self.unknown] if owner not in taken])

    def _rows(self, name: str, owners: Sequence[str]) -> list[int]:
        wanted = set(owners)
        return [
            i
            for i, (label, group) in enumerate(zip(self.data.labels, self.groups, strict=True))
            if label == name and str(group) in wanted
        ]

    def open(
        self, folder: Path, *, aside: bool, wrong: int | None = None, leave_out: Sequence[str] = ()
    ) -> ComparisonSet:
        """The user's set on disk; `wrong` is the position of a support image to be given another class."""
        dim = self.data.vectors.shape[1]
        encoder = PrecomputedEncoder(["x"], np.zeros((1, dim), np.float32), source_mean=self.data.center)
        cases = ComparisonSet.open(folder, encoder=encoder)
        for role, rows in (("support", self.support), ("calibration", self.aside if aside else [])):
            kept = [i for i in rows if f"p{self.groups[i]}" not in leave_out]
            labels = {i: str(self.data.labels[i]) for i in kept}
            if role == "support" and wrong is not None and self.support[wrong] in labels:
                own = self.support[wrong]
                labels[own] = next(name for name in self.classes if name != labels[own])
            extra = {} if role == "support" else {"role": role}
            if kept:
                cases.archive.add(
                    [f"i{i:06}" for i in kept],
                    self.data.vectors[kept],
                    metadata=[{"label": labels[i], "patient": f"p{self.groups[i]}", **extra} for i in kept],
                )
        return cases


def measure(users: Sequence[User], *, aside: bool) -> dict[str, Any]:
    """What the users' deployments answered."""
    rows: dict[str, list[float]] = {"covered": [], "size": [], "turned": [], "caught": [], "right": []}
    chances: list[float] = []
    right: list[bool] = []
    promised: list[float] = []
    heads: list[str] = []
    for user in users:
        with tempfile.TemporaryDirectory() as folder, user.open(Path(folder) / "cases", aside=aside) as cases:
            made = deploy(cases, Recipe(coverage=COVERAGE, turned_away=TURNED_AWAY))
            heads.append(made.fitted.head)
            known, strange = made.decide(user.data.vectors[user.asked]), made.decide(user.data.vectors[user.strange])
        truth = [str(user.data.labels[i]) for i in user.asked]
        if made.promised is not None:
            promised.append(made.promised)
            rows["covered"].append(
                _balanced([t in (d.prediction_set or ()) for d, t in zip(known, truth, strict=True)], truth)
            )
            rows["size"].append(float(np.mean([len(d.prediction_set or ()) for d in known])))
        rows["turned"].append(_balanced([_turned(d) for d in known], truth))
        rows["caught"].append(float(np.mean([_turned(d) for d in strange])))
        told = [(d, t) for d, t in zip(known, truth, strict=True) if d.probability is not None]
        rows["right"].append(float(np.mean([d.label == t for d, t in told])))
        chances += [d.probability or 0.0 for d, _ in told]
        right += [d.label == t for d, t in told]
    ece = reliability(np.array(chances), np.array(right), equal="mass").ece
    means = {
        name: (float(np.mean(v)), float(np.std(v, ddof=1) / len(v) ** 0.5)) if v else None for name, v in rows.items()
    }
    ridge = float(np.mean([head == "ridge" for head in heads]))
    return {**means, "ece": ece, "promised": float(np.mean(promised)) if promised else None, "ridge": ridge}


def _balanced(values: Sequence[bool], truth: Sequence[str]) -> float:
    found = np.array(values, dtype=np.float64)
    names = np.array(truth)
    return float(np.mean([found[names == name].mean() for name in sorted(set(truth))]))


def _turned(decision: Decision) -> bool:
    return decision.reason is not None and decision.reason.startswith("None of these")


def removal(user: User, rng: np.random.Generator) -> bool:
    """Whether removing a mislabelled support image and a patient set aside equals never having had them, to the bit."""
    wrong = int(rng.integers(len(user.support)))
    gone = f"p{user.groups[user.support[wrong]]}", f"p{user.groups[user.aside[int(rng.integers(len(user.aside)))]]}"
    asked: NDArray[np.float32] = user.data.vectors[user.asked[:200]]
    with tempfile.TemporaryDirectory() as folder:
        with user.open(Path(folder) / "with", aside=True, wrong=wrong) as cases:
            deploy(cases, Recipe(sensitivity={user.classes[0]: 0.8}))
            for patient in gone:
                cases.remove(patient=patient)
            after = open_deployment(cases)
            one = json.dumps(after.fitted.to_json()), after.decide(asked), after.decide(user.data.vectors[user.strange])
        with user.open(Path(folder) / "never", aside=True, wrong=wrong, leave_out=gone) as cases:
            never = deploy(cases, Recipe(sensitivity={user.classes[0]: 0.8}))
            two = json.dumps(never.fitted.to_json()), never.decide(asked), never.decide(user.data.vectors[user.strange])
    return one == two


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=40)
    parser.add_argument("--removals", type=int, default=15)
    options = parser.parse_args()
    header = "coverage | set size | accuracy of the labels | ECE | known turned away | unknown caught | ridge chosen"
    print(f"| task | calibrated on | promised | {header} |")
    print("|---" * 10 + "|")
    equal = 0
    for task in TASKS:
        data = load(task, "default")
        rng = np.random.default_rng([SEED, TASKS.index(task)])
        users = [User(data, task, rng) for _ in range(options.users)]
        for aside in (True, False):
            found = measure(users, aside=aside)

            def shown(name: str, found: dict[str, Any] = found) -> str:
                return "none" if found[name] is None else f"{found[name][0]:.3f} ± {found[name][1]:.3f}"

            on = "set aside" if aside else "support"
            promised = "none" if found["promised"] is None else f"{found['promised']:.2f}"
            cells = [shown("covered"), shown("size"), shown("right"), f"{found['ece']:.3f}", shown("turned")]
            cells += [shown("caught"), f"{found['ridge']:.2f}"]
            print(f"| {task} | {on} | {promised} | {' | '.join(cells)} |", flush=True)
        equal += sum(removal(user, rng) for user in users[: options.removals])
    print(f"\nRemovals equal to the bit: {equal} of {len(TASKS) * options.removals}.")


if __name__ == "__main__":
    main()
