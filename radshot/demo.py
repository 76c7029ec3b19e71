"""The whole story on phantoms: train, register, ask, deploy, embed, search; every figure is measured on the way."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embeddings import Archive, Index, embed_archive, load_encoder
from episodes import (
    SOURCE_FINDINGS,
    UNSEEN_FINDINGS,
    EpisodeSampler,
    Manifest,
    compare,
    evaluate,
    make_phantoms,
    write_phantoms,
)
from fewshot import Augmentation, TrainingConfig

from .demo_deployment import DemoDeployment, deploy_demo
from .demo_words import DemoWords, two_sided, words_demo

if TYPE_CHECKING:
    from embeddings import Encoder, Snapshot
    from episodes import Decision, PairedDifference, Report
    from fewshot import Training

#: Patients drawn with each finding trained on, and images of each.
SOURCE_PATIENTS, SOURCE_IMAGES = 45, 2
#: Patients drawn with each finding never trained on, and images of each.
UNSEEN_PATIENTS, UNSEEN_IMAGES = 50, 2
#: Patients drawn with each finding on either side: with reports, and to ask about; the first of their seeds.
REPORTED_PATIENTS, WORDS_PATIENTS, WORDS_SEED = 60, 24, 100_000
#: Patients registered per finding.
K_SHOT = 5
#: Phantoms' height and width in pixels.
SIZE = (160, 160)
#: Training episodes; about a minute and a half on two cores.
TRAINING_EPISODES = 1300
#: Many small episodes at a high rate: on phantoms they learnt more in the same time than few large ones.
TRAINING = TrainingConfig(
    method="prototypical",
    backbone_config={"stem_width": 32},
    k_shot=2,
    n_query=2,
    learning_rate=6e-3,
    validation_share=0.1,
    validation_every=100,
    augmentation=Augmentation(4, 0.04, 0.06, 0.05, 0.1, 0.1, 0.01),  # phantoms already vary; half the usual is better
)
#: Neighbours counted by the search precision.
SEARCH_K = 5
#: What is measured beside the trained encoder, under the name it has in demo.json.
BASELINES = {"pixels": "pixels-32", "hog": "hog-64"}


#: Episodes with other draws of the support, to show how much one draw matters.
RANDOM_EPISODES = 100
#: Searches shown in the report.
SEARCH_EXAMPLES = 4


@dataclass(frozen=True)
class SearchExample:
    """One search of the archive by one of its own rows.

    Attributes:
        row: The row asked about.
        neighbours: (row, similarity) of the nearest rows of other patients.
    """

    row: int
    neighbours: tuple[tuple[int, float], ...]


@dataclass(frozen=True)
class DemoResult:
    """What the demo found.

    Attributes:
        summary: The content of demo.json.
        manifest: The unseen findings' images.
        decisions: (row of the manifest, decision) for every query.
        support: The comparison set's rows.
        deployment: What its deployment answered.
        words: What words alone, and with shots, answered.
        training: The training that was run.
        search: A few searches of the archive.
        stored: The archive's rows.
        out: The folder everything was written to.
    """

    summary: dict[str, Any]
    manifest: Manifest
    decisions: list[tuple[int, Decision]]
    support: Snapshot
    deployment: DemoDeployment
    words: DemoWords
    training: Training
    search: list[SearchExample]
    stored: Snapshot
    out: Path


def run_demo(out: Path, *, seed: int, say: Callable[[str], None], progress: bool) -> DemoResult:
    """Run the demo.

    Args:
        out: Folder for phantoms, encoder, comparison set and archive; must be empty or missing.
        seed: Of phantoms, training and choice of support.
        say: Called with one line per step.
        progress: Whether to draw progress bars.

    Returns:
        The result; `demo.json` and the report are written by the caller.
    """
    from fewshot import ComparisonSet, PrototypeClassifier, train

    began = time.monotonic()
    say(f"1/7 drawing phantoms: {len(SOURCE_FINDINGS)} findings to train on, {len(UNSEEN_FINDINGS)} kept unseen")
    source = _draw(out / "source", SOURCE_FINDINGS, SOURCE_PATIENTS, SOURCE_IMAGES, seed=2 * seed)
    unseen = _draw(out / "unseen", UNSEEN_FINDINGS, UNSEEN_PATIENTS, UNSEEN_IMAGES, seed=2 * seed + 1)
    drawn = time.monotonic()

    say(f"2/7 training a prototypical network on {len(source):,} DICOM images of {len(SOURCE_FINDINGS)} findings")
    training = train(
        source.images,
        source.labels,
        groups=source.groups,
        config=replace(TRAINING, episodes=TRAINING_EPISODES, seed=seed),
        out=out / "encoder",
        progress=progress,
    )
    encoder = load_encoder(out / "encoder")
    trained = time.monotonic()

    say(f"3/7 registering {K_SHOT} patients of each of {len(UNSEEN_FINDINGS)} findings never trained on")
    # One episode whose queries are all images of all other patients: the comparison set, and who is asked about.
    task = EpisodeSampler(
        unseen.labels, len(UNSEEN_FINDINGS), K_SHOT, len(unseen), groups=unseen.groups, n_episodes=1, seed=seed
    )
    episode = task[0]
    owners = list(unseen.groups or ())
    with ComparisonSet.open(out / "cases", encoder=encoder) as cases:
        for label, rows in zip(episode.classes, episode.support, strict=True):
            cases.register(str(label), [unseen.images[i] for i in rows], patients=[owners[i] for i in rows])
        support = cases.snapshot
    classifier = PrototypeClassifier(center=encoder.source_mean).fit(
        support.vectors,
        [str(row["label"]) for row in support.metadata],
        ids=support.ids,
        groups=[row["patient"] for row in support.metadata],
    )

    query = np.concatenate(episode.query)
    say(f"4/7 asking about {len(query):,} images of other patients, beside raw pixels and HOG")
    vectors = encoder.encode(unseen.images)
    decisions = list(zip(query.tolist(), classifier.decide(vectors[query]), strict=True))
    report = _measure(encoder, vectors, unseen, task)
    floors = {name: _floor(spec, unseen, task) for name, spec in BASELINES.items()}
    many = EpisodeSampler(
        unseen.labels, len(UNSEEN_FINDINGS), K_SHOT, 15, groups=unseen.groups, n_episodes=RANDOM_EPISODES, seed=seed
    )
    over_many = _measure(encoder, vectors, unseen, many)
    asked = time.monotonic()

    say("5/7 deploying the comparison set: further patients calibrate it, the others are asked about")
    deployed = deploy_demo(out / "cases", encoder, unseen, vectors, query.tolist(), seed=seed)
    answered = time.monotonic()

    say("6/7 aligning the encoder with an archive's reports: sides of findings known by words alone, then with shots")
    sided, start = two_sided(source), WORDS_SEED + 2 * seed
    reported = _draw(out / "reported", sided, REPORTED_PATIENTS, 1, seed=start)
    others = _draw(out / "sides", sided, WORDS_PATIENTS, 1, seed=start + 1)
    worded = words_demo(encoder, reported, others, out / "words", seed=seed)
    read = time.monotonic()

    say(f"7/7 embedding {len(unseen):,} images into an archive and searching it")
    table = out / "unseen" / "manifest.csv"
    embed_archive(None, encoder, out / "archive", manifest=table, group="patient", progress=progress)
    with Archive.open(out / "archive") as archive:
        stored = archive.snapshot()
        found, precision = _search(stored, seed)
        sound = archive.verify().ok
    ended = time.monotonic()

    right = [decision.label == unseen.labels[i] for i, decision in decisions]
    summary = {
        "n_way": len(episode.classes),
        "k_shot": K_SHOT,
        "seed": seed,
        "source_findings": list(SOURCE_FINDINGS),
        "unseen_classes": list(UNSEEN_FINDINGS),
        "fewshot": {
            "accuracy": report.accuracy,
            "interval": list(report.interval),
            "queries": len(query),
            "query_patients": report.patients,
            "query_patients_per_class": {str(label): found.patients for label, found in report.per_class.items()},
            "recall": {str(label): found.recall for label, found in report.per_class.items()},
            "share_of_queries_right": float(np.mean(right)),
            "over_random_episodes": {
                "episodes": over_many.episodes,
                "accuracy": over_many.accuracy,
                "interval": list(over_many.interval),
            },
        },
        "baselines": {
            name: {
                "accuracy": floor.accuracy,
                "interval": list(floor.interval),
                "difference": _difference(compare(report, floor)),
            }
            for name, floor in floors.items()
        },
        "deployment": deployed.summary,
        "words": worded.summary,
        "training": {
            "images": training.summary["images"],
            "classes": len(training.summary["classes"]),
            "validation": training.summary["validation"],
            "best_accuracy": training.best_accuracy,
            "best_episode": training.best_episode,
        },
        "archive": {"rows": len(stored), "version": stored.version, "sound": sound},
        "search": {"precision_at_5": precision, "k": SEARCH_K, "chance": 1 / len(UNSEEN_FINDINGS)},
        "encoder": {"name": encoder.name, "fingerprint": encoder.fingerprint, "dim": encoder.dim},
        "manifest": report.manifest,
        "steps": {
            "phantoms": round(drawn - began, 1),
            "training": round(trained - drawn, 1),
            "few-shot": round(asked - trained, 1),
            "deployment": round(answered - asked, 1),
            "words": round(read - answered, 1),
            "archive": round(ended - read, 1),
        },
        "seconds": round(ended - began, 1),
    }
    return DemoResult(summary, unseen, decisions, support, deployed, worded, training, found, stored, out)


def _draw(folder: Path, findings: Sequence[str], patients: int, images: int, *, seed: int) -> Manifest:
    phantoms = make_phantoms(findings, patients_per_finding=patients, images_per_patient=images, size=SIZE, seed=seed)
    return Manifest.read(write_phantoms(phantoms, folder, format="dicom"), group="patient")


def _measure(encoder: Encoder, vectors: NDArray[np.float32], manifest: Manifest, task: EpisodeSampler) -> Report:
    from fewshot import PrototypeClassifier

    return evaluate(
        PrototypeClassifier(center=encoder.source_mean),
        vectors,
        manifest.labels,
        task,
        name=encoder.name,
        provenance={"encoder": encoder.name, "encoder_fingerprint": encoder.fingerprint},
    )


def _floor(spec: str, manifest: Manifest, task: EpisodeSampler) -> Report:
    encoder = load_encoder(spec)
    return _measure(encoder, encoder.encode(manifest.images), manifest, task)


def _difference(paired: PairedDifference) -> dict[str, Any]:
    return {"value": paired.difference, "interval": [paired.low, paired.high]}


def _search(stored: Snapshot, seed: int) -> tuple[list[SearchExample], float]:
    """Ask for every row's neighbours among other patients' rows: some examples, and the share with the same finding."""
    owners = [row["patient"] for row in stored.metadata]
    most = max(Counter(owners).values())
    result = Index(stored, metric="cosine").search(stored.vectors, SEARCH_K + most)
    shares: list[float] = []
    examples: list[SearchExample] = []
    shown = set(np.random.default_rng([seed, 5]).permutation(len(stored))[:SEARCH_EXAMPLES].tolist())
    for i, (ids, similarities) in enumerate(zip(result.ids, result.similarities.tolist(), strict=True)):
        others = [
            (stored.positions[name], similarity)
            for name, similarity in zip(ids, similarities, strict=True)
            if owners[stored.positions[name]] != owners[i]
        ][:SEARCH_K]
        shares.append(float(np.mean([stored.metadata[j]["label"] == stored.metadata[i]["label"] for j, _ in others])))
        if i in shown:
            examples.append(SearchExample(row=i, neighbours=tuple(others)))
    return examples, float(np.mean(shares))
