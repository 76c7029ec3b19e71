"""How honest `fewshot.estimate` is: simulated users, each with a small comparison set and the patients to come.

    RADSHOT_DATA=... python benchmarks/estimate.py [--seed 2000] [--users 200] [--head prototypes]
    RADSHOT_DATA=... python benchmarks/estimate.py --folds

A user has one of the tasks, as one of the encoders sees it, 2 to 6 classes, and 3 to 15 patients of each, the same
number or not, cut by patient. The truth is the class-balanced accuracy of the head fitted to all of it on the images of
all other patients. Printed are how many intervals hold the truth, how wide they are, how far off the estimates are, and
whether three more patients of the class that the estimate names help more than three of another class. `--folds`
compares numbers of folds and ways to correct for heads that learnt from fewer patients instead. The constants of
fewshot/estimate.py and fewshot/advice.py were chosen with other seeds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv
from task_vectors import ENCODERS, TASKS, TaskVectors, load

from fewshot import make_head
from fewshot.advice import MORE
from fewshot.estimate_report import Estimate
from fewshot.estimation import FOLDS, REPEATS, estimate
from fewshot.head import Head
from fewshot.leave_few_out import Tally, class_means, deal_rounds, patients_per_class, play
from fewshot.support import Support

#: Patients of a class that must be left to tell the truth by.
LEFT = 8
#: Fewest and most patients of a class, and most classes.
FEWEST, MOST, CLASSES = 3, 15, 6
#: Times that three more patients are drawn, to see what they bring.
DRAWS = 8
#: Numbers of folds that are compared.
COMPARED = (2, 3, 5, 10)


@dataclass(frozen=True, eq=False)
class User:
    """A comparison set, and everybody else.

    Attributes:
        task: The task's name.
        make: Makes the head.
        classes: Labels.
        support: Rows of the comparison set.
        later: Rows of the patients to come.
        vectors, labels, patients: All rows of the task.
    """

    task: str
    make: Callable[[], Head]
    classes: list[Hashable]
    support: NDArray[np.intp]
    later: NDArray[np.intp]
    vectors: NDArray[np.float32]
    labels: NDArray[np.str_]
    patients: NDArray[np.str_]

    def recalls(self, support: NDArray[np.intp], later: NDArray[np.intp]) -> NDArray[np.float64]:
        """Recall of each class on `later` of the head fitted to `support`."""
        head = self.make()
        groups = self.patients[support].tolist()
        head.fit(self.vectors[support], self.labels[support].tolist(), ids=[str(i) for i in support], groups=groups)
        right = head.predict(self.vectors[later]).astype(str) == self.labels[later]
        return np.array([right[self.labels[later] == name].mean() for name in self.classes])

    def estimated(self, seed: int) -> Estimate:
        """The estimate of the user's comparison set."""
        return estimate(
            self.vectors[self.support],
            self.labels[self.support].tolist(),
            ids=[str(i) for i in self.support],
            groups=self.patients[self.support].tolist(),
            make_head=self.make,
            seed=seed,
        )


@cache
def vectors_of(task: str, encoder: str) -> TaskVectors:
    """A task's vectors, read once."""
    return load(task, encoder)


def draw(task: str, encoder: str, head: str, rng: np.random.Generator) -> User:
    """One simulated user of a task."""
    found = vectors_of(task, encoder)
    labels = np.array([str(label) for label in found.labels])
    patients = np.array([str(owner) for owner in found.groups or range(len(labels))])
    sizes = {name: np.unique(patients[labels == name]).size for name in np.unique(labels).tolist()}
    enough = [name for name, size in sizes.items() if size >= FEWEST + LEFT]
    n_way = int(rng.integers(2, min(CLASSES, len(enough)) + 1))
    chosen = [str(name) for name in rng.choice(enough, n_way, replace=False)]
    same = int(rng.integers(FEWEST, MOST + 1)) if rng.random() < 0.5 else None
    taken: set[str] = set()
    support = []
    for name in chosen:
        wanted = int(rng.integers(FEWEST, MOST + 1)) if same is None else same
        free = [owner for owner in np.unique(patients[labels == name]).tolist() if owner not in taken]
        own = rng.choice(free, min(wanted, sizes[name] - LEFT), replace=False).tolist()
        taken.update(own)
        support.append(np.flatnonzero((labels == name) & np.isin(patients, own)))
    later = np.flatnonzero(np.isin(labels, chosen) & ~np.isin(patients, list(taken)))
    make = partial(make_head, head, center=found.center)
    return User(task, make, list(chosen), np.concatenate(support), later, found.vectors, labels, patients)


def users(tasks: list[str], count: int, head: str, seed: int) -> list[User]:
    """Simulated users, the tasks in turn, with any of their encoders."""
    rng = np.random.default_rng(seed)
    names = list(ENCODERS)
    return [draw(tasks[i % len(tasks)], names[int(rng.integers(len(names)))], head, rng) for i in range(count)]


def gains(user: User, rng: np.random.Generator) -> NDArray[np.float64]:
    """What three more patients of each class bring, (n_classes,), on patients who are in neither set."""
    found = np.zeros(len(user.classes))
    for c, name in enumerate(user.classes):
        free = np.unique(user.patients[user.later][user.labels[user.later] == name])
        for _ in range(DRAWS):
            extra = np.isin(user.patients[user.later], rng.choice(free, MORE, replace=False))
            more = user.later[extra & (user.labels[user.later] == name)]
            rest = user.later[~extra]
            after = user.recalls(np.concatenate([user.support, more]), rest).mean()
            found[c] += (after - user.recalls(user.support, rest).mean()) / DRAWS
    return found


def naive(share: float, patients: int) -> tuple[float, float]:
    """The 95 % interval of a share of independent patients (Jeffreys), which cross-validated patients are not."""
    right = share * patients
    low, high = betaincinv(right + 0.5, patients - right + 0.5, [0.025, 0.975]).tolist()
    return low, high


def holds(interval: tuple[float, float] | None, truth: float) -> bool:
    """Whether an interval holds a share, rounding forgiven."""
    return interval is not None and interval[0] - 1e-9 <= truth <= interval[1] + 1e-9


def measure(everyone: list[User], seed: int) -> None:
    """Print the tables of estimates and of advice."""
    rows: dict[str, list[list[float]]] = {}
    classes: list[list[float]] = []
    advice: list[list[float]] = []
    told: list[list[float]] = []
    rng = np.random.default_rng(seed)
    for number, user in enumerate(everyone):
        found = user.estimated(seed)
        recalls = user.recalls(user.support, user.later)
        truth = float(recalls.mean())
        if found.accuracy is None or found.interval is None or found.cross_validated is None:
            raise SystemExit(f"User {number} got no estimate: {found}")
        plain = naive(found.cross_validated, found.patients)
        rows.setdefault(user.task, []).append(
            [
                holds(found.interval, truth),
                found.interval[1] - found.interval[0],
                found.accuracy - truth,
                found.cross_validated - truth,
                holds(plain, truth),
                plain[1] - plain[0],
            ]
        )
        position = {one.label: one for one in found.per_class}
        for name, recall in zip(user.classes, recalls.tolist(), strict=True):
            one = position[name]
            if one.interval is not None:
                classes.append([holds(one.interval, recall), one.interval[1] - one.interval[0]])
        true = dict(zip(user.classes, gains(user, rng).tolist(), strict=True))
        named, *others = (true[one.label] for one in found.advice)
        beats = np.mean([1.0 if named > other else 0.5 if named == other else 0.0 for other in others])
        fewest = min(found.advice, key=lambda one: one.patients).label
        advice.append([named, float(np.mean(list(true.values()))), max(true.values()), float(beats), true[fewest]])
        told += [
            [holds(one.interval, true[one.label]), one.tells, one.gain - true[one.label], one.interval[1] - one.gain]
            for one in found.advice
        ]
    print("| task | users | interval holds | mean width | bias | root mean square error | cross-validation alone: bias "
          "| error | naive binomial holds | mean width |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|---|---|")
    every = [row for own in rows.values() for row in own]
    for task, own in [*sorted(rows.items()), ("all", every)]:
        table = np.array(own, dtype=float)
        held, width, bias, alone, plain_held, plain_width = table.mean(axis=0)
        error, alone_error = np.sqrt((table[:, 2:4] ** 2).mean(axis=0))
        print(
            f"| {task} | {len(own)} | {held * len(own):.0f} | {width:.3f} | {bias:+.3f} | {error:.3f} | {alone:+.3f} "
            f"| {alone_error:.3f} | {plain_held * len(own):.0f} | {plain_width:.3f} |"
        )
    held, width = np.mean(classes, axis=0)
    print(f"\nRecall of one class: {held:.3f} of {len(classes)} intervals hold, mean width {width:.3f}.")
    _print_advice(np.array(advice), np.array(told, dtype=float))


def _print_advice(advice: NDArray[np.float64], told: NDArray[np.float64]) -> None:
    named, random, best, beats, fewest = advice.mean(axis=0)
    difference = advice[:, 0] - advice[:, 1]
    half = 1.96 * difference.std(ddof=1) / np.sqrt(len(difference))
    beats_half = 1.96 * advice[:, 3].std(ddof=1) / np.sqrt(len(advice))
    print(
        f"Three more patients: of the class named {named:+.4f}, of a random class {random:+.4f} (difference "
        f"{difference.mean():+.4f} ± {half:.4f}), of the smallest class {fewest:+.4f}, of the best in hindsight "
        f"{best:+.4f}. The class named beats another in {beats:.3f} ± {beats_half:.3f} of comparisons."
    )
    held, tells, bias, half_width = told.mean(axis=0)
    print(
        f"Gains of all classes: {held:.3f} of the intervals hold, mean half-width {half_width:.4f}, bias {bias:+.4f}; "
        f"{tells:.3f} leave 0 out."
    )


def compare_folds(everyone: list[User], seed: int) -> None:
    """Print how far cross-validation is from the truth by the number of folds, and extrapolated from two numbers."""
    off: dict[str, list[float]] = {}
    for user in everyone:
        truth = float(user.recalls(user.support, user.later).mean())
        support = Support(
            user.vectors[user.support],
            user.labels[user.support].tolist(),
            ids=[str(i) for i in user.support],
            groups=user.patients[user.support].tolist(),
        )
        found: dict[int, tuple[float, float]] = {}
        for folds in COMPARED:
            rng, tally = np.random.default_rng(seed), Tally(support)
            for _ in range(REPEATS):
                play(user.make, support, deal_rounds(support, folds, rng), tally)
            answers = tally.result()
            found[folds] = float(class_means(answers.shares, support).diagonal().mean()), answers.scarcity
            off.setdefault(f"{folds} folds", []).append(found[folds][0] - truth)
        full = float(np.mean(1 / patients_per_class(support)))
        for few, many in ((2, 5), (2, 10), (3, 10)):
            (low, scarce), (high, rich) = found[few], found[many]
            slope = (high - low) / (scarce - rich) if scarce - rich > 1e-6 else 0.0
            line = float(np.clip(high + slope * (rich - full), 0, 1))
            off.setdefault(f"{few} and {many} folds extrapolated", []).append(line - truth)
        off.setdefault(f"{FOLDS} folds corrected by the usual rate, as in `estimate`", []).append(
            (user.estimated(seed).accuracy or 0.0) - truth
        )
    print("| cross-validation | bias | root mean square error |\n|---|---|---|")
    for name, values in off.items():
        print(f"| {name} | {np.mean(values):+.3f} | {np.sqrt(np.mean(np.square(values))):.3f} |")


def main() -> None:
    """Simulate, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=200)
    parser.add_argument("--seed", type=int, default=2000)
    parser.add_argument("--head", default="prototypes")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS))
    parser.add_argument("--folds", action="store_true", help="compare numbers of folds instead")
    options = parser.parse_args()
    everyone = users(options.tasks, options.users, options.head, options.seed)
    print(f"{options.users} simulated users, seed {options.seed}, head {options.head}\n", flush=True)
    (compare_folds if options.folds else measure)(everyone, options.seed)


if __name__ == "__main__":
    main()
