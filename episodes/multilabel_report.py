"""What a multi-label evaluation found: AUROC label by label with patient intervals, every doubt, and its origin."""

from __future__ import annotations

import json
from collections.abc import Collection, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import EpisodeError, listed
from .intervals import FEWEST_PATIENTS, LEVEL
from .multilabel_pairs import MultiLabelOutcomes, macro
from .outcomes import json_safe


@dataclass(frozen=True, slots=True)
class LabelResult:
    """One label of a report.

    Attributes:
        auroc: Share of (positive, negative) pairs of queries of the same episode that are in the right order, ties
            half, over all episodes; None where there is no pair.
        interval: Patient-bootstrap interval of it, or None.
        episode_mean: Mean over episodes of their AUROC, as the literature prints it, or None.
        average_precision: Mean over episodes of their average precision, or None.
        prevalence: Share of positives among the queries: the average precision that chance gives, or None.
        patients: Distinct query patients who have the label (images where patients are unknown).
        negative_patients: Distinct query patients with an image that lacks it.
        positives: Positive queries over all episodes.
        negatives: Negative queries.
        unknown: Queries that do not mention the label; they are in no figure.
        unanswered: Queries the classifier had no score for; they lose every comparison.
        episodes: Episodes the label took part in.
        shots: Mean number of support patients who had it; at least k_shot.
        reason: Why there is no AUROC, in one sentence, else None.
    """

    auroc: float | None
    interval: tuple[float, float] | None
    episode_mean: float | None
    average_precision: float | None
    prevalence: float | None
    patients: int
    negative_patients: int
    positives: int
    negatives: int
    unknown: int
    unanswered: int
    episodes: int
    shots: float
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class SeenUnseenAuroc:
    """AUROC on labels an encoder was trained with and on those it was not; as in MetaChest, arXiv 2509.25590.

    Attributes:
        seen: Mean AUROC over the seen labels.
        unseen: Mean AUROC over the others.
        harmonic_mean: Harmonic mean of the two.
        interval: Patient-bootstrap interval of the harmonic mean.
    """

    seen: float
    unseen: float
    harmonic_mean: float
    interval: tuple[float, float]


@dataclass(frozen=True, eq=False)
class MultiLabelReport:
    """The result of `evaluate_multilabel`.

    Attributes:
        name: The classifier.
        n_way: Labels per episode.
        k_shot: Support patients per label, at least.
        k_negative: Support patients with none of the episode's labels.
        episodes: Episodes answered.
        patients_known: Whether support and query were kept apart by patient.
        patients: Distinct query patients (images where patients are unknown).
        auroc: Mean over labels of their AUROC, pairs pooled over episodes.
        interval: 95 % interval of it by bootstrap over patients.
        episode_mean: Mean over episodes of the mean AUROC of their labels, as the literature prints it.
        episode_interval: 1.96 s / sqrt(episodes) of the same; None for a single episode.
        average_precision: Mean over labels of their average precision.
        per_label: Each label that qualified.
        excluded: The others, each with the reason.
        unreliable: Labels with fewer than 6 query patients who have it, or lack it, and how many they are.
        warnings: Every doubt, a sentence each.
        manifest: Data hash, sampler settings with the seed, classifier, provenance, versions.
        outcomes: Every score, for `compare_multilabel`.
        samples: (draws, labels with an AUROC) the bootstrap.
    """

    name: str
    n_way: int
    k_shot: int
    k_negative: int
    episodes: int
    patients_known: bool
    patients: int
    auroc: float
    interval: tuple[float, float]
    episode_mean: float
    episode_interval: float | None
    average_precision: float
    per_label: dict[Hashable, LabelResult]
    excluded: dict[Hashable, str]
    unreliable: dict[Hashable, int]
    warnings: tuple[str, ...]
    manifest: dict[str, Any]
    outcomes: MultiLabelOutcomes = field(repr=False)
    samples: NDArray[np.float64] = field(repr=False)

    def __str__(self) -> str:
        """Return the result in one line."""
        unit = "patients" if self.patients_known else "images"
        whom = f"{self.patients:,} {unit}" + ("" if self.patients_known else ", patients unknown")
        half = "" if self.episode_interval is None else f", ± {self.episode_interval:.3f} (episodes)"
        caution = f"; unreliable: {few_patients(self.unreliable, unit)}" if self.unreliable else ""
        negative = f" with {self.k_negative} negative" if self.k_negative else ""
        return (
            f"{self.n_way}-way {self.k_shot}-shot{negative}, multi-label, {self.episodes:,} episodes, {whom}: "
            f"AUROC {self.auroc:.3f} [{self.interval[0]:.3f}, {self.interval[1]:.3f}] ({unit}){half}{caution}"
        )

    def seen_unseen(self, seen: Collection[Hashable]) -> SeenUnseenAuroc:
        """Split the labels into those the encoder was trained with and the others.

        Args:
            seen: Labels of the training; those without an AUROC here are in neither mean.

        Returns:
            Both means, their harmonic mean, and its interval.

        Raises:
            EpisodeError: There is no seen label with an AUROC, or no unseen one.
        """
        scored = [label for label, found in self.per_label.items() if found.auroc is not None]
        parts = [[i for i, label in enumerate(scored) if (label in seen) == known] for known in (True, False)]
        if not all(parts):
            which = "unseen" if parts[0] else "seen"
            raise EpisodeError(f"There is no {which} label among {listed(repr(label) for label in scored)}.")
        values = np.array([self.per_label[label].auroc for label in scored], dtype=np.float64)
        one, two = (float(values[part].mean()) for part in parts)
        drawn = [self.samples[:, part] for part in parts]
        both = np.isfinite(drawn[0]).any(axis=1) & np.isfinite(drawn[1]).any(axis=1)
        means = [macro(part[both]) for part in drawn]
        return SeenUnseenAuroc(one, two, float(_harmonic(one, two)), percentiles(_harmonic(means[0], means[1])))

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single scores, as JSON can say it."""
        per_label = [
            {"label": json_safe(label)} | {name: json_safe(getattr(found, name)) for name in LabelResult.__slots__}
            for label, found in self.per_label.items()
        ]
        return {
            "name": self.name,
            "n_way": self.n_way,
            "k_shot": self.k_shot,
            "k_negative": self.k_negative,
            "episodes": self.episodes,
            "patients_known": self.patients_known,
            "patients": self.patients,
            "auroc": self.auroc,
            "interval": list(self.interval),
            "episode_mean": self.episode_mean,
            "episode_interval": self.episode_interval,
            "average_precision": self.average_precision,
            "per_label": per_label,
            "excluded": [{"label": json_safe(label), "reason": why} for label, why in self.excluded.items()],
            "unreliable": [{"label": json_safe(label), "patients": n} for label, n in self.unreliable.items()],
            "warnings": list(self.warnings),
            "manifest": self.manifest,
        }

    def to_json(self) -> str:
        """Return `to_dict` as JSON text, the same bytes for the same result."""
        return json.dumps(self.to_dict(), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"

    def to_markdown(self) -> str:
        """Return a page a person reads."""
        unit = "patients" if self.patients_known else "images"
        lines = [f"## {_cell(self.name)}", "", str(self), ""]
        lines += [f"- {warning}" for warning in self.warnings]
        lines += [""] if self.warnings else []
        lines += [
            f"| label | AUROC | 95 % interval | average precision (chance) | query {unit} with / without | shots |",
            "|---|---|---|---|---|---|",
        ]
        for label, found in self.per_label.items():
            if found.auroc is None:
                lines.append(f"| {_cell(label)} | none: {_cell(found.reason)} | | | | |")
                continue
            ends = "" if found.interval is None else f"{found.interval[0]:.3f} to {found.interval[1]:.3f}"
            lines.append(
                f"| {_cell(label)} | {found.auroc:.3f} | {ends} | {found.average_precision:.3f} "
                f"({found.prevalence:.3f}) | {found.patients:,} / {found.negative_patients:,} | {found.shots:.1f} |"
            )
        if self.excluded:
            few = listed((f"{label} ({why})" for label, why in self.excluded.items()), limit=len(self.excluded))
            lines += ["", f"Left out: {few}."]
        lines += [
            "",
            f"Mean over episodes, as the literature has it: {self.episode_mean:.4f}.",
            "",
            "Computed from:",
            "",
        ]
        lines += [f"- {key}: `{json.dumps(value, ensure_ascii=False)}`" for key, value in sorted(self.manifest.items())]
        return "\n".join(lines) + "\n"


def percentiles(samples: NDArray[np.float64]) -> tuple[float, float]:
    """Return the ends between which 95 % of the samples lie."""
    low, high = np.quantile(samples, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def few_patients(unreliable: Mapping[Hashable, int], unit: str) -> str:
    """Name the labels with too few query patients."""
    names = listed((f"{label!r} ({count})" for label, count in unreliable.items()), limit=5)
    return f"fewer than {FEWEST_PATIENTS} query {unit} with or without {names}"


def _harmonic(one: Any, two: Any) -> Any:
    """Harmonic mean of two numbers, or of two arrays; 0 where both are 0."""
    total = one + two
    return 2 * one * two / np.where(total > 0, total, 1.0)


def _cell(value: object) -> str:
    """Return a value fit for a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
