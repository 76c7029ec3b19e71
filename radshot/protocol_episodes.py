"""Generalized few-shot episodes with several findings per image, as in MetaChest (arXiv 2509.25590)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .console import Refused
from .protocol_data import Settings, embed_rows, provenance
from .protocol_page import Page, Table

if TYPE_CHECKING:
    from episodes import MultiLabelReport, SeenUnseenAuroc

#: Findings the encoder is held to have been trained without: the five rarest of ChestX-ray14.
UNSEEN = ("Hernia", "Pneumonia", "Fibrosis", "Edema", "Emphysema")
#: Findings per episode.
N_WAY = 5
#: Patients per finding where none are named.
K_SHOTS = (1, 5, 30)
#: Query images of each finding and of none, at most.
N_QUERY = 15
#: Patients per finding in the published figures.
PUBLISHED_K = (1, 5, 30)
#: Harmonic mean of the AUROC of seen and unseen findings at k = 1, 5 and 30, in percent, read off a plot.
PUBLISHED = {"transfer": (58.8, 65.7, 73.1), "prototypes": (59.3, 62.6, 63.9)}
SOURCE = "MetaChest, arXiv 2509.25590"


def run_episodes(settings: Settings) -> Page:
    """Ask small tasks of seen and unseen findings of the test list, with heads fitted to each task's support.

    Raises:
        Refused: No number of shots can be had.
        ManifestError: The folder is not laid out as published.
    """
    from episodes import (
        CHESTXRAY14_FINDINGS,
        EpisodeError,
        MultiLabelEpisodeSampler,
        evaluate_multilabel,
        read_chestxray14,
    )
    from episodes.chestxray14 import TEST
    from fewshot import LabelClassifier, LabelPrototypeClassifier, LinearProbe

    from .inputs import open_encoder

    encoder = open_encoder(settings.encoder)
    manifest = read_chestxray14(settings.folder, missing="skip" if settings.skip_missing else "error")
    unseen = settings.unseen or UNSEEN
    classes = list(CHESTXRAY14_FINDINGS)
    seen = [name for name in classes if name not in unseen]
    side = np.asarray(manifest.table["split"].tolist())
    listed = bool((side == TEST).any())
    held = embed_rows(
        manifest, np.flatnonzero(side == TEST) if listed else np.arange(len(side)), encoder, settings.archive
    )
    labels = [manifest.labels[row] for row in held.rows.tolist()]
    patients = [(manifest.groups or [])[row] for row in held.rows.tolist()]
    heads: dict[str, Any] = {
        "prototypes": LabelPrototypeClassifier(center=encoder.source_mean),
        "linear": LabelClassifier(LinearProbe(center=encoder.source_mean)),
    }
    origin = provenance(encoder, settings, held.vectors, labels, patients)
    rows: list[tuple[str, ...]] = []
    result: list[dict[str, Any]] = []
    notes: list[str] = []
    for k in settings.k_shot or K_SHOTS:
        try:
            sampler = MultiLabelEpisodeSampler(
                labels, N_WAY, k, N_QUERY, groups=patients, n_episodes=settings.episodes, seed=settings.seed,
                classes=classes,
            )  # fmt: skip
        except EpisodeError as error:
            notes.append(f"k = {k} was left out: {error}")
            continue
        for name, why in sampler.excluded.items():
            notes.append(f"k = {k}: {name} takes no part ({why}).")
        for name, head in heads.items():
            report = evaluate_multilabel(head, held.vectors, sampler, name=name, provenance=origin)
            split = _split(report, seen)
            cells = ("none",) * 3 if split is None else _cells(split)
            everything = f"{report.auroc:.3f} [{report.interval[0]:.3f}, {report.interval[1]:.3f}]"
            rows.append((f"{k}", *cells, everything, _published(name, k), name))
            values = None if split is None else dataclasses.asdict(split)
            result.append({"head": name, "k_shot": k, "seen_unseen": values, "report": report.to_dict()})
            notes += [f"k = {k}, {name}: {warning}" for warning in report.warnings]
    if not rows:
        raise Refused(f"No episode can be drawn: {notes[0]}")
    return Page(
        title=f"ChestX-ray14, {N_WAY}-way multi-label episodes with {len(unseen)} unseen findings",
        facts=(
            f"{len(labels):,} images of {len(set(patients)):,} patients"
            + (" of the test list" if listed else "")
            + f"; encoder {encoder.name}; {settings.episodes:,} episodes; unseen: {', '.join(unseen)}.",
        ),
        tables=(
            Table(
                "AUROC, pairs pooled over episodes; 95 % interval over patients",
                ("k", "seen", "unseen", "H", "all", "published H", "head"),
                tuple(rows),
                ("k", "seen", "unseen", "H", "all", "published H"),
            ),
        ),
        notes=(
            f"Published H is of {SOURCE}, read off a plot, of encoders trained on the seen findings of "
            "a larger collection: linear stands beside its transfer, prototypes beside its prototypes.",
            "Unseen findings are unseen only to an encoder that was trained without them, which cannot be seen from "
            "here; the heads are fitted to each episode's support alone.",
            *dict.fromkeys(notes),
        ),
        result={
            "protocol": "chestxray14-episodes",
            "seen": seen,
            "unseen": list(unseen),
            "images": len(labels),
            "rows": result,
            "published": {**{name: list(values) for name, values in PUBLISHED.items()}, "source": SOURCE},
            "provenance": origin,
        },
        refused=held.refused,
        images=len(labels),
    )


def _split(report: MultiLabelReport, seen: Sequence[str]) -> SeenUnseenAuroc | None:
    """Return the means of seen and unseen findings, or None where a side has no finding with an AUROC."""
    from episodes import EpisodeError

    try:
        return report.seen_unseen(seen)
    except EpisodeError:
        return None


def _cells(found: SeenUnseenAuroc) -> tuple[str, str, str]:
    low, high = found.interval
    return f"{found.seen:.3f}", f"{found.unseen:.3f}", f"{found.harmonic_mean:.3f} [{low:.3f}, {high:.3f}]"


def _published(head: str, k: int) -> str:
    values = PUBLISHED["transfer" if head == "linear" else head]
    return f"{values[PUBLISHED_K.index(k)] / 100:.3f}" if k in PUBLISHED_K else ""
