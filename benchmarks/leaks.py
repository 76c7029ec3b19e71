"""Leaks: 3,000 episodes of every shared set with patients; chance for permuted labels; removal equals never registered.

RADSHOT_DATA=... python benchmarks/leaks.py
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Hashable, Sequence
from math import comb
from pathlib import Path

import numpy as np
from scipy import stats
from tasks import data_folder

from embeddings import load_encoder
from episodes import EpisodeSampler, Manifest, evaluate
from fewshot import ComparisonSet, PrototypeClassifier

EPISODES = 3000
#: Permutations of the labels over patients.
PERMUTATIONS = 100
#: set -> (label column, patient column, rows used, ways, shots)
SETS = {
    "medpix2": ("location", "split_group", "radiology = 1", 5, 5),
    "covid_chestxray": ("finding", "split_group", "modality = 'X-ray' AND view IS NOT 'L'", 5, 5),
    "nih_cxr": ("labels", "split_group", None, 2, 5),
    "brain_tumor_mri": ("label", "split_group", None, 4, 5),
}


def read(name: str) -> Manifest:
    """One shared set."""
    label, group, where, _, _ = SETS[name]
    return Manifest.read(data_folder() / name / "manifest.csv", label=label, group=group, where=where)


def as_set(label: Hashable) -> set[Hashable]:
    """An image's labels."""
    return set(label) if isinstance(label, tuple) else {label}


def check_episodes(name: str) -> str:
    """Draw the episodes of one set and test every claim on every one of them."""
    manifest = read(name)
    _, _, _, n_way, k_shot = SETS[name]
    labels = [as_set(label) for label in manifest.labels]
    groups: Sequence[str] = manifest.groups or []
    sampler = EpisodeSampler(manifest.labels, n_way, k_shot, 15, groups=groups, n_episodes=EPISODES, seed=0)
    drawn: Counter[frozenset[Hashable]] = Counter()
    for episode in sampler:
        drawn[frozenset(episode.classes)] += 1
        supporters = {groups[i] for rows in episode.support for i in rows}
        classes = set(episode.classes)
        for own, support, query in zip(episode.classes, episode.support, episode.query, strict=True):
            problems = [
                (len({groups[i] for i in support}) != k_shot or len(support) != k_shot, "k distinct patients"),
                (not 1 <= len(query) <= 15, "1 to 15 queries"),
                (len(set(query.tolist())) != len(query), "no query twice"),
                (any(groups[i] in supporters for i in query), "no patient on both sides"),
                (any(labels[i] & classes != {own} for i in [*support, *query]), "no image of two classes"),
            ]
            for failed, claim in problems:
                if failed:
                    raise SystemExit(f"{name}: an episode breaks '{claim}': {episode}")
    draws, p_value = uniformity(sampler.classes, n_way, drawn)
    patients = len({group for group, own in zip(groups, labels, strict=True) if own & set(sampler.classes)})
    return (
        f"| {name} | {len(manifest):,} | {patients:,} | {len(sampler.classes)} | {n_way}-way {k_shot}-shot | 0 | "
        f"{draws}, p = {p_value:.2f} |"
    )


def uniformity(classes: Sequence[Hashable], n_way: int, drawn: Counter[frozenset[Hashable]]) -> tuple[str, float]:
    """Chi-square of how often each set of classes was drawn or, where there are too many sets, each class.

    In multi-label data some sets are impossible (a class that always comes with another); they are left out.
    """
    if comb(len(classes), n_way) * 20 <= EPISODES:
        counts = list(drawn.values())
        return f"{len(counts)} possible sets", float(stats.chisquare(counts).pvalue) if len(counts) > 1 else 1.0
    per_class = Counter(name for some, count in drawn.items() for name in some for _ in range(count))
    return f"{len(classes)} classes", float(stats.chisquare([per_class[name] for name in classes]).pvalue)


def check_chance(name: str) -> str:
    """Accuracy with labels permuted over patients must be chance, on average over permutations.

    One permutation of few patients may lie far from chance either way, the same patients being drawn again and again;
    the permutations are what is independent, so their spread gives the standard error.
    """
    manifest = read(name)
    _, _, _, n_way, k_shot = SETS[name]
    groups = list(manifest.groups or [])
    first = dict(zip(reversed(groups), reversed(manifest.labels), strict=True))
    owners = sorted(first)
    vectors = load_encoder("hog-64").encode(manifest.images)
    found = []
    for seed in range(PERMUTATIONS):
        mixed = dict(zip(owners, np.random.default_rng(seed).permutation(len(owners)).tolist(), strict=True))
        labels = [first[owners[mixed[group]]] for group in groups]
        sampler = EpisodeSampler(labels, n_way, k_shot, 15, groups=groups, n_episodes=20, seed=seed)
        found.append(evaluate(PrototypeClassifier(), vectors, labels, sampler).episode_mean)
    mean, error = float(np.mean(found)), float(np.std(found, ddof=1)) / len(found) ** 0.5
    inside = "yes" if abs(mean - 1 / n_way) <= 2 * error else "NO"
    return f"| {name} | {1 / n_way:.3f} | {mean:.4f} | {error:.4f} | {inside} |"


def check_removal() -> str:
    """Register, remove a patient; every vector, prototype, score and neighbour equals never having had the patient."""
    manifest = read("covid_chestxray").where("finding IN ('SARS', 'Streptococcus', 'Pneumocystis')")
    encoder = load_encoder("hog-64")
    groups = list(manifest.groups or [])
    owners = sorted(set(groups))[:12]
    checked = 0
    for gone in owners:
        with tempfile.TemporaryDirectory() as folder:
            kept = [i for i, group in enumerate(groups) if group in owners]
            with ComparisonSet.open(Path(folder) / "all", encoder=encoder) as cases:
                cases.register_manifest(manifest.take(kept))
                cases.remove(patient=gone)
                one = cases.snapshot
            with ComparisonSet.open(Path(folder) / "never", encoder=encoder) as cases:
                cases.register_manifest(manifest.take([i for i in kept if groups[i] != gone]))
                two = cases.snapshot
            queries = encoder.encode(manifest.images[:20])
            answers = []
            for part in (one, two):
                head = PrototypeClassifier().fit(
                    part.vectors,
                    [str(row["label"]) for row in part.metadata],
                    ids=part.ids,
                    groups=[row["patient"] for row in part.metadata],
                )
                answers.append((part.ids, part.vectors.tobytes(), head.prototypes_.tobytes(), head.decide(queries)))
            if answers[0] != answers[1]:
                raise SystemExit(f"covid_chestxray: removing patient {gone} differs from never having registered it")
            checked += len(queries)
    return f"{len(owners)} patients removed one at a time, {checked} answers compared to the bit: all equal."


def main() -> None:
    """Run every check and print the tables of RESULTS.md."""
    print(
        "| set | images | patients | classes | episodes | leaks in 3,000 | class draws |\n|---|---|---|---|---|---|---|"
    )
    for name in SETS:
        print(check_episodes(name), flush=True)
    print(f"\n| labels permuted over patients, {PERMUTATIONS} times | chance | accuracy | standard error | within 2 |")
    print("|---|---|---|---|---|")
    for name in SETS:
        print(check_chance(name), flush=True)
    print("\nRemoval: " + check_removal())


if __name__ == "__main__":
    main()
