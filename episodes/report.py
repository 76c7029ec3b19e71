"""What an evaluation found: accuracy with both intervals, every class, every doubt, and what it was computed from."""

from __future__ import annotations

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import listed
from .intervals import (
    FEWEST_PATIENTS,
    episode_interval,
    patient_bootstrap,
)
from .outcomes import ClassResult, Outcomes, class_results, json_safe
from .sampler import EpisodeSampler

TABLE_ROWS = 40
"""Classes a Markdown table lists before it keeps only the hardest."""

CONFUSIONS = 10
"""Confusions a Markdown report lists."""


@dataclass(frozen=True, eq=False)
class Report:
    """The result of `evaluate`.

    Attributes:
        name: The classifier.
        n_way: Classes per episode.
        k_shot: Support patients (or images) per class.
        episodes: Episodes answered.
        patients_known: Whether support and query were kept apart by patient.
        patients: Distinct query patients (images where patients are unknown).
        accuracy: Mean over classes of their recall, queries pooled over episodes.
        interval: 95 % interval of the accuracy by bootstrap over patients.
        episode_mean: Mean over episodes of their balanced accuracy, as the literature prints it.
        episode_interval: 1.96 s / sqrt(episodes) of the same; None for a single episode.
        abstained: Share of queries answered with None.
        per_class: Each class that qualified.
        excluded: Classes with too few patients, and how many they have.
        unreliable: Classes with fewer than 6 query patients, and how many they have; the interval is not to be trusted.
        warnings: Every doubt, a sentence each.
        confusion: (n_classes, n_classes + 1) queries by true class and answer, abstentions last.
        manifest: Data hash, sampler settings with the seed, classifier, provenance, versions.
        outcomes: Every answer, for `compare`.
    """

    name: str
    n_way: int
    k_shot: int
    episodes: int
    patients_known: bool
    patients: int
    accuracy: float
    interval: tuple[float, float]
    episode_mean: float
    episode_interval: float | None
    abstained: float
    per_class: dict[Hashable, ClassResult]
    excluded: dict[Hashable, int]
    unreliable: dict[Hashable, int]
    warnings: tuple[str, ...]
    manifest: dict[str, Any]
    confusion: NDArray[np.intp] = field(repr=False)
    outcomes: Outcomes = field(repr=False)

    def __str__(self) -> str:
        """Return the result in one line."""
        unit = "patients" if self.patients_known else "images"
        whom = f"{self.patients:,} {unit}" + ("" if self.patients_known else ", patients unknown")
        half = "" if self.episode_interval is None else f", ± {self.episode_interval:.3f} (episodes)"
        caution = f"; unreliable: {_few(self.unreliable, unit)}" if self.unreliable else ""
        return (
            f"{self.n_way}-way {self.k_shot}-shot, {self.episodes:,} episodes, {whom}: accuracy {self.accuracy:.3f} "
            f"[{self.interval[0]:.3f}, {self.interval[1]:.3f}] ({unit}){half}{caution}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single answers, as JSON can say it."""
        per_class = [
            {
                "label": json_safe(label),
                "recall": found.recall,
                "interval": None if found.interval is None else list(found.interval),
                "patients": found.patients,
                "queries": found.queries,
                "abstained": found.abstained,
                "episodes": found.episodes,
            }
            for label, found in self.per_class.items()
        ]
        return {
            "name": self.name,
            "n_way": self.n_way,
            "k_shot": self.k_shot,
            "episodes": self.episodes,
            "patients_known": self.patients_known,
            "patients": self.patients,
            "accuracy": self.accuracy,
            "interval": list(self.interval),
            "episode_mean": self.episode_mean,
            "episode_interval": self.episode_interval,
            "abstained": self.abstained,
            "per_class": per_class,
            "confusions": [
                {"label": json_safe(true), "answer": json_safe(answer), "queries": count}
                for true, answer, count in self._confusions()
            ],
            "excluded": _counts(self.excluded),
            "unreliable": _counts(self.unreliable),
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
        shown = list(self.per_class.items())
        if len(shown) > TABLE_ROWS:
            shown.sort(key=lambda item: 2.0 if item[1].recall is None else item[1].recall)
            shown = shown[:TABLE_ROWS]
            lines += [f"The {TABLE_ROWS} hardest of {len(self.per_class):,} classes:", ""]
        lines += [
            f"| class | recall | 95 % interval | query {unit} | queries | abstained |",
            "|---|---|---|---|---|---|",
        ]
        for label, found in shown:
            recall = "never drawn" if found.recall is None else f"{found.recall:.3f}"
            ends = "" if found.interval is None else f"{found.interval[0]:.3f} to {found.interval[1]:.3f}"
            lines.append(
                f"| {_cell(label)} | {recall} | {ends} | {found.patients:,} | {found.queries:,} | {found.abstained:,} |"
            )
        wrong = sorted((item for item in self._confusions() if item[0] != item[1]), key=lambda item: -item[2])
        if wrong:
            lines += ["", "| true class | answered | queries |", "|---|---|---|"]
            for true, answer, count in wrong[:CONFUSIONS]:
                lines.append(f"| {_cell(true)} | {'none of these' if answer is None else _cell(answer)} | {count:,} |")
        if self.excluded:
            few = listed(f"{label} ({count})" for label, count in self.excluded.items())
            lines += ["", f"Left out for too few {unit}: {few}."]
        lines += [
            "",
            f"Mean over episodes, as the literature has it: {self.episode_mean:.4f}.",
            "",
            "Computed from:",
            "",
        ]
        lines += [f"- {key}: `{json.dumps(value, ensure_ascii=False)}`" for key, value in sorted(self.manifest.items())]
        return "\n".join(lines) + "\n"

    def to_html(self, *, history: Sequence[Mapping[str, Any]] | None = None, title: str | None = None) -> str:
        """Return a page for a browser: one file that needs no others, with charts.

        Args:
            history: Of the training that made the encoder, as `Training.history` holds it; its curves are drawn.
            title: Heading of the page; by default the classifier's name.

        Returns:
            HTML. `episodes.report_page.render_reports` sets baselines beside it.
        """
        from .report_page import render_reports

        return render_reports([self], history=history, title=title)

    def _confusions(self) -> list[tuple[Hashable, Hashable | None, int]]:
        """Return (true class, answer, queries) wherever there are any, in class order."""
        names: tuple[Hashable | None, ...] = (*self.outcomes.classes, None)
        cells = zip(*(axis.tolist() for axis in np.nonzero(self.confusion)), strict=True)
        return [(names[true], names[answer], int(self.confusion[true, answer])) for true, answer in cells]


def summarise(outcomes: Outcomes, sampler: EpisodeSampler, *, name: str, manifest: dict[str, Any]) -> Report:
    """Turn answers into a report; the bootstrap takes the sampler's seed."""
    found = patient_bootstrap(outcomes.right, outcomes.truth, outcomes.patient, seed=sampler.seed)
    accuracies = outcomes.episode_accuracies()
    unreliable = {
        outcomes.classes[code]: int(patients)
        for code, patients in zip(found.classes, found.patients, strict=True)
        if patients < FEWEST_PATIENTS
    }
    per_class = class_results(outcomes, found)
    n_classes = len(outcomes.classes)
    answer = np.where(outcomes.answer < 0, n_classes, outcomes.answer)
    confusion = np.bincount(outcomes.truth * (n_classes + 1) + answer, minlength=n_classes * (n_classes + 1))
    return Report(
        name=name,
        n_way=sampler.n_way,
        k_shot=sampler.k_shot,
        episodes=accuracies.size,
        patients_known=sampler.patients_known,
        patients=int(np.unique(outcomes.patient).size),
        accuracy=found.estimate,
        interval=(found.low, found.high),
        episode_mean=float(accuracies.mean()),
        episode_interval=episode_interval(accuracies),
        abstained=float((outcomes.answer < 0).mean()),
        per_class=per_class,
        excluded=dict(sampler.excluded),
        unreliable=unreliable,
        warnings=_warnings(sampler, per_class, unreliable),
        manifest=manifest,
        confusion=confusion.reshape(n_classes, n_classes + 1),
        outcomes=outcomes,
    )


def _warnings(
    sampler: EpisodeSampler, per_class: Mapping[Hashable, ClassResult], unreliable: Mapping[Hashable, int]
) -> tuple[str, ...]:
    """Say every doubt in a sentence."""
    found = []
    unit = "patients" if sampler.patients_known else "images"
    if not sampler.patients_known:
        found.append(
            "Patients are unknown: support and query may show the same patient, and the interval takes every image for "
            "a patient of its own, so both the accuracy and the certainty may be too high."
        )
    if unreliable:
        found.append(f"The interval is unreliable: {_few(unreliable, unit)}.")
    never = [label for label, result in per_class.items() if not result.episodes]
    if never:
        names = listed(repr(label) for label in never)
        reason = " (its images also carry other classes, or too few episodes were drawn)"
        found.append(f"Never drawn in {sampler.n_episodes:,} episodes, and not in the accuracy: {names}{reason}.")
    return tuple(found)


def _few(unreliable: Mapping[Hashable, int], unit: str) -> str:
    """Name the classes with too few query patients."""
    names = listed((f"{label!r} ({count})" for label, count in unreliable.items()), limit=5)
    return f"fewer than {FEWEST_PATIENTS} query {unit} in {names}"


def _counts(counts: Mapping[Hashable, int]) -> list[dict[str, Any]]:
    """Return {label: count} as a list, for labels that are no text."""
    return [{"label": json_safe(label), "patients": count} for label, count in counts.items()]


def _cell(value: object) -> str:
    """Return a value fit for a Markdown table."""
    return str(value).replace("|", "\\|").replace("\n", " ")
