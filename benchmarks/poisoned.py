"""Five hundred supports with one poisoned image each: how many are found, and at what price in false alarms.

    RADSHOT_DATA=... python benchmarks/poisoned.py

Sets of 5 and of 10 patients per class are cut from T4-same, T5, Omniglot and phantoms, by raw pixels and by radshot's
default encoder. One image of each is poisoned: an image of another class of the set under its label ("flipped"), of
a class that is not in the set ("stranger"), of another task or of noise alone ("foreign"), or another class's image
again with a little noise ("copy"). The share found is read at the limit that 5 % of the images of clean sets of the
OTHER tasks reach by the same encoder, at that of the same task's clean sets, and at the module's own threshold. Peers
see the same sets: the distance to the mean of the other images of the class, the disagreement of the k nearest
neighbours with the label, and scikit-learn's LocalOutlierFactor and IsolationForest, class by class. A removed image
must leave no trace: that is tested with comparison sets on disk.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import LocalOutlierFactor
from task_vectors import RUNS, TaskVectors, encoder_of, load, target_of

from embeddings import load_encoder
from episodes import UNSEEN_FINDINGS, make_phantoms, paired_difference
from fewshot import ComparisonSet, PrototypeClassifier
from fewshot.outliers import SUSPECT_AT, outlier_scores
from radshot.demo import SIZE

TASKS = ("T4-same", "T5", "omniglot", "phantoms")
ENCODERS = ("pixels", "default")
#: Clean sets of tasks and encoders that played no part in choosing the module's threshold.
HELD_OUT = (("T2", "default"), ("T2", "supervised"), ("T4-cases", "supervised"), ("T5", "supervised"), ("T2", "pixels"))
KINDS = ("flipped", "stranger", "foreign", "copy")
SHOTS = (5, 10)
#: Classes of a set, where the task has as many.
WAYS = 5
#: Poisoned supports of each task, encoder, number of shots and kind: 8 x 64 are 512. Clean ones of each of the 16.
POISONED, CLEAN = 8, 16
#: A copy's noise, in standard deviations of each dimension over the task.
COPY_NOISE = 0.1
#: Images of another task, and of noise, that a task's encoder embeds as foreign.
FOREIGN = 20
FALSE_ALARMS = 0.05
NEIGHBOURS = 5
TREES = 50


@dataclass(frozen=True)
class Cut:
    """One support: unit rows (n, d), classes, and which row is poisoned (None in a clean one) and looks like what."""

    rows: NDArray[np.float64]
    labels: NDArray[np.intp]
    poisoned: int | None = None
    looks_like: int | None = None


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Rows of length 1."""
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


@cache
def task_rows(
    task: str, encoder: str
) -> tuple[TaskVectors, NDArray[np.float64], dict[Hashable, dict[Hashable, list[int]]]]:
    """A task's vectors, centred and of unit length, and its images by class and patient."""
    found = load(task, encoder)
    rows = found.vectors.astype(np.float64) - (0 if found.center is None else found.center)
    patients = found.groups or list(range(len(found.labels)))
    by_class: dict[Hashable, dict[Hashable, list[int]]] = {}
    for i, (label, patient) in enumerate(zip(found.labels, patients, strict=True)):
        by_class.setdefault(label, {}).setdefault(patient, []).append(i)
    return found, unit(rows), by_class


@cache
def foreign_rows(task: str, encoder: str) -> NDArray[np.float64]:
    """Images of another task, and of noise, as the task's encoder sees them."""
    path = RUNS / "poisoned" / f"foreign-{task}-{encoder}.npy"
    if not path.exists():
        rng = np.random.default_rng(0)
        other = target_of("T5" if task != "T5" else "T4-same").images
        images = [other[i] for i in rng.permutation(len(other))[:FOREIGN]]
        images += [rng.random((64, 64), dtype=np.float32) for _ in range(FOREIGN)]
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, encoder_of(task, encoder).encode(images))
    center = load(task, encoder).center
    return unit(np.load(path).astype(np.float64) - (0 if center is None else center))


def cut(rng: np.random.Generator, task: str, encoder: str, k_shot: int, kind: str | None) -> Cut:
    """Draw a set of k patients per class, one image of each, and poison one of its images."""
    found, rows, by_class = task_rows(task, encoder)
    enough = [label for label, owners in by_class.items() if len(owners) > k_shot]
    ways = min(WAYS, len(enough) - (kind == "stranger"))
    drawn = [enough[i] for i in rng.permutation(len(enough))]
    classes, rest = drawn[:ways], drawn[ways:]
    used: set[Hashable] = set()

    def image(label: Hashable) -> int:
        free = [patient for patient in by_class[label] if patient not in used]
        patient = free[rng.integers(len(free))]
        used.add(patient)
        own = by_class[label][patient]
        return own[rng.integers(len(own))]

    classes.sort(key=lambda label: len(by_class[label]))  # a patient of two classes must not be missing in the smaller
    taken = np.array([image(label) for label in classes for _ in range(k_shot)])
    support, labels = rows[taken], np.repeat(np.arange(ways), k_shot)
    if kind is None:
        return Cut(support, labels)
    bad = int(rng.integers(len(labels)))
    other = int(rng.choice([c for c in range(ways) if c != labels[bad]]))
    if kind == "flipped":
        support[bad] = rows[image(classes[other])]
    elif kind == "stranger":
        support[bad] = rows[image(rest[rng.integers(len(rest))])]
    elif kind == "foreign":
        strange = foreign_rows(task, encoder)
        support[bad] = strange[rng.integers(len(strange))]
    else:
        source = found.vectors[taken[rng.choice(np.flatnonzero(labels == other))]].astype(np.float64)
        source += COPY_NOISE * found.vectors.std(axis=0) * rng.normal(size=source.size)
        support[bad] = unit(source[None] - (0 if found.center is None else found.center))[0]
    return Cut(support, labels, bad, other if kind in ("flipped", "copy") else None)


def ours(support: Cut) -> NDArray[np.float64]:
    """radshot's scores."""
    names = [f"{i:03}" for i in range(len(support.labels))]
    report = outlier_scores(support.rows, support.labels.tolist(), ids=names)
    return np.array([image.score for image in report.images], dtype=np.float64)


def own_mean(support: Cut) -> NDArray[np.float64]:
    """Distance to the mean of the class's other images."""
    found = np.empty(len(support.labels))
    for i, label in enumerate(support.labels):
        others = (support.labels == label) & (np.arange(len(found)) != i)
        found[i] = np.linalg.norm(support.rows[i] - support.rows[others].mean(axis=0))
    return found


def disagreement(support: Cut) -> NDArray[np.float64]:
    """How many of the nearest images have another label, weighted by nearness; ties by the distance to the own mean."""
    cosines = support.rows @ support.rows.T
    np.fill_diagonal(cosines, -np.inf)
    found = np.empty(len(cosines))
    for i, row in enumerate(cosines):
        nearest = np.argsort(-row)[:NEIGHBOURS]
        weight = 1 / np.maximum(np.sqrt(np.maximum(2 - 2 * row[nearest], 0)), 1e-6)
        found[i] = (weight * (support.labels[nearest] != support.labels[i])).sum() / weight.sum()
    return found + 1e-3 * own_mean(support)


def by_class(score: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Callable[[Cut], NDArray[np.float64]]:
    """A detector of scikit-learn on each class's images by themselves."""

    def scores(support: Cut) -> NDArray[np.float64]:
        found = np.empty(len(support.labels))
        for label in np.unique(support.labels):
            own = support.labels == label
            found[own] = score(support.rows[own])
        return found

    return scores


def factor(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """LocalOutlierFactor of one class."""
    return -LocalOutlierFactor(n_neighbors=min(NEIGHBOURS, len(rows) - 1)).fit(rows).negative_outlier_factor_


def forest(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """IsolationForest of one class."""
    return -IsolationForest(n_estimators=TREES, random_state=0).fit(rows).score_samples(rows)


METHODS: dict[str, Callable[[Cut], NDArray[np.float64]]] = {
    "radshot": ours,
    "distance to own mean": own_mean,
    "neighbours' disagreement": disagreement,
    "LocalOutlierFactor by class": by_class(factor),
    "IsolationForest by class": by_class(forest),
}


@dataclass
class Setting:
    """The sets of one task, encoder and number of shots, and every method's scores of them."""

    task: str
    encoder: str
    k_shot: int
    clean: dict[str, list[NDArray[np.float64]]]
    poisoned: dict[str, list[tuple[Cut, dict[str, NDArray[np.float64]]]]]


def measure(task: str, encoder: str, k_shot: int) -> Setting:
    """Cut and score the sets of one setting."""
    rng = np.random.default_rng([TASKS.index(task), ENCODERS.index(encoder), k_shot])
    clean: dict[str, list[NDArray[np.float64]]] = {name: [] for name in METHODS}
    for _ in range(CLEAN):
        support = cut(rng, task, encoder, k_shot, None)
        for name, method in METHODS.items():
            clean[name].append(method(support))
    poisoned = {}
    for kind in KINDS:
        cuts = [cut(rng, task, encoder, k_shot, kind) for _ in range(POISONED)]
        poisoned[kind] = [(one, {name: method(one) for name, method in METHODS.items()}) for one in cuts]
    return Setting(task, encoder, k_shot, clean, poisoned)


def of_other_tasks(settings: list[Setting], name: str) -> dict[tuple[str, str], float]:
    """For each task and encoder the score that 5 % of the images of the other tasks' clean sets reach."""
    found = {}
    for task in TASKS:
        for encoder in ENCODERS:
            others = [scores for s in settings if s.task != task and s.encoder == encoder for scores in s.clean[name]]
            found[task, encoder] = float(np.quantile(np.concatenate(others), 1 - FALSE_ALARMS))
    return found


def hits_of(settings: list[Setting], name: str, limits: list[float]) -> NDArray[np.float64]:
    """Whether each poisoned image reaches its setting's limit, kind by kind."""
    return np.array(
        [
            scores[name][one.poisoned] >= limit
            for kind in KINDS
            for s, limit in zip(settings, limits, strict=True)
            for one, scores in s.poisoned[kind]
        ],
        dtype=np.float64,
    )


def table(settings: list[Setting]) -> dict[str, dict[str, object]]:
    """Print the comparison of the methods."""
    heads = [
        "found: " + KINDS[0],
        *KINDS[1:],
        "all",
        *ENCODERS,
        "found, limit of the same task",
        "AUROC: " + KINDS[0],
        *KINDS[1:],
    ]
    print("| method | false alarms | " + " | ".join(heads) + " |\n|---|---|" + "---|" * len(heads))
    result: dict[str, dict[str, object]] = {}
    same: dict[str, NDArray[np.float64]] = {}
    encoder = np.array([s.encoder for _ in KINDS for s in settings for _ in range(POISONED)])
    which = np.repeat(np.arange(len(KINDS)), len(settings) * POISONED)
    for name in [*METHODS, "radshot, own threshold"]:
        method = name.partition(",")[0]
        across = of_other_tasks(settings, method)
        limits = [SUSPECT_AT if name != method else across[s.task, s.encoder] for s in settings]
        alarms = np.concatenate(
            [scores >= limit for s, limit in zip(settings, limits, strict=True) for scores in s.clean[method]]
        ).mean()
        hits = hits_of(settings, method, limits)
        within = [float(np.quantile(np.concatenate(s.clean[method]), 1 - FALSE_ALARMS)) for s in settings]
        same[method] = hits_of(settings, method, within)
        curves = [
            np.mean(
                [
                    roc_auc_score(np.arange(len(one.labels)) == one.poisoned, scores[method])
                    for s in settings
                    for one, scores in s.poisoned[kind]
                ]
            )
            for kind in KINDS
        ]
        shares = [hits[which == number].mean() for number in range(len(KINDS))]
        by_encoder = [hits[encoder == one].mean() for one in ENCODERS]
        cells = [f"{alarms:.3f}", *(f"{x:.2f}" for x in shares), f"**{hits.mean():.3f}**"]
        cells += [*(f"{x:.2f}" for x in by_encoder), f"{same[method].mean():.3f}", *(f"{x:.2f}" for x in curves)]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
        result[name] = {
            "false_alarms": float(alarms),
            "found": dict(zip(KINDS, map(float, shares), strict=True)),
            "found_by_encoder": dict(zip(ENCODERS, map(float, by_encoder), strict=True)),
            "found_all": float(hits.mean()),
            "found_at_the_same_tasks_limit": float(same[method].mean()),
            "auroc": dict(zip(KINDS, map(float, curves), strict=True)),
        }
    print("\nFound at 5 % false alarms of the same task's clean sets, resampling supports:\n")
    for name in list(METHODS)[1:]:
        pair = paired_difference(same["radshot"], same[name], which, np.arange(len(which)), names=("radshot", name))
        print(str(pair).replace("(patients)", "(supports)"))
    return result


def by_setting(settings: list[Setting]) -> None:
    """Print false alarms and finds of the module's own threshold in each setting, and whether the class was named."""
    print(
        "\n| task | encoder | patients | false alarms | "
        + " | ".join(KINDS)
        + " |\n|---|---|---|---|"
        + "---|" * len(KINDS)
    )
    for s in settings:
        alarms = np.concatenate([scores >= SUSPECT_AT for scores in s.clean["radshot"]]).mean()
        found = [np.mean([x["radshot"][one.poisoned] >= SUSPECT_AT for one, x in s.poisoned[kind]]) for kind in KINDS]
        print(f"| {s.task} | {s.encoder} | {s.k_shot} | {alarms:.3f} | " + " | ".join(f"{x:.2f}" for x in found) + " |")
    named = []
    for s in settings:
        for kind in ("flipped", "copy"):
            for one, _ in s.poisoned[kind]:
                image = outlier_scores(one.rows, one.labels.tolist()).images
                own = next(x for x in image if x.id == str(one.poisoned))
                if own.suspected:
                    named.append(own.nearest_class == one.looks_like)
    print(
        f"\nOf {len(named)} flipped images and copies found, the class it came from was named for {np.mean(named):.2f}."
    )


def held_out_alarms() -> None:
    """Print the false alarms on clean sets that played no part in choosing the threshold."""
    print("\n| clean sets of | encoder | patients | false alarms at the module's threshold |\n|---|---|---|---|")
    for task, encoder in HELD_OUT:
        for k_shot in SHOTS:
            rng = np.random.default_rng([7, k_shot])
            _, _, by = task_rows(task, encoder)
            if sum(len(owners) > k_shot for owners in by.values()) < 2:
                continue
            scores = np.concatenate([ours(cut(rng, task, encoder, k_shot, None)) for _ in range(4 * CLEAN)])
            print(f"| {task} | {encoder} | {k_shot} | {(scores >= SUSPECT_AT).mean():.3f} |", flush=True)


def removal_leaves_no_trace(sets: int = 10) -> None:
    """Register, remove, and compare with a set that never held the image, to the bit; on disk."""
    drawn = make_phantoms(UNSEEN_FINDINGS, patients_per_finding=6, images_per_patient=1, size=SIZE, seed=5)
    encoder = load_encoder("pixels-32")
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        files = []
        for i, pixels in enumerate(drawn.images):
            files.append(Path(folder) / f"{i:03}.png")
            Image.fromarray((np.clip(pixels, 0, 1) * 255).astype(np.uint8)).save(files[-1])
        names = [drawn.names(i)[0] for i in range(len(drawn))]
        for number in range(sets):
            bad = int(rng.integers(len(files)))
            wrong = str(rng.choice([name for name in set(names) if name != names[bad]]))
            states = []
            for poison in (True, False):
                with ComparisonSet.open(Path(folder) / f"set{number}{poison}", encoder=encoder) as cases:
                    for i in rng.permutation(len(files)).tolist():
                        if i != bad or poison:
                            label = wrong if i == bad else names[i]
                            cases.register(label, [files[i]], patients=[str(drawn.patients[i])], ids=[f"{i:03}"])
                    if poison:
                        cases.remove(id=f"{bad:03}")
                    head = PrototypeClassifier().fit(cases.vectors, cases.labels, ids=cases.ids, groups=cases.patients)
                    scores = head.scores(encoder.encode([files[bad]]))
                    states.append(
                        (cases.vectors.tobytes(), head.prototypes_.tobytes(), scores.tobytes(), cases.outliers())
                    )
            if states[0] != states[1]:
                raise SystemExit(f"Set {number}: a removed image left a trace.")
    print(
        f"\n{sets} sets on disk: vectors, prototypes, scores and outlier reports after the removal equal, to the bit,"
    )
    print("those of a set that never held the image, registered in another order.")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RUNS / "poisoned" / "poisoned.json")
    options = parser.parse_args()
    began = time.process_time()
    settings = [measure(task, encoder, k) for task in TASKS for encoder in ENCODERS for k in SHOTS]
    count = sum(len(cases) for s in settings for cases in s.poisoned.values())
    print(f"{count} poisoned supports, {CLEAN * len(settings)} clean ones\n")
    result = table(settings)
    by_setting(settings)
    held_out_alarms()
    removal_leaves_no_trace()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=2))
    print(f"\n{time.process_time() - began:.0f} s of one core")


if __name__ == "__main__":
    main()
