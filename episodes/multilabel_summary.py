"""From the scores of multi-label episodes to a report, and from two reports to their paired difference."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import EpisodeError, listed
from .intervals import DRAWS, FEWEST_PATIENTS, LEVEL, PairedDifference, episode_interval
from .multilabel_pairs import MultiLabelOutcomes, PairTable, macro, pair_table, resampled
from .multilabel_report import LabelResult, MultiLabelReport, few_patients, percentiles

NEVER_DRAWN = "It was never drawn, so no query was scored."
"""Why a label has no figures."""

ROUNDING = 1e-12
"""Differences that should cancel leave this much behind."""


def summarise_multilabel(
    outcomes: MultiLabelOutcomes,
    settings: Mapping[str, Any],
    *,
    name: str,
    manifest: dict[str, Any],
    excluded: Mapping[Hashable, str],
) -> MultiLabelReport:
    """Turn scores into a report; the bootstrap takes the sampler's seed."""
    found = [pair_table(outcomes, code) for code in range(len(outcomes.labels))]
    tables = [table for table in found if table is not None]
    samples = resampled(tables, seed=int(settings["seed"]))
    columns = iter(samples.T)
    per_label = {
        label: _label_result(outcomes, code, table, None if table is None else next(columns))
        for code, (label, table) in enumerate(zip(outcomes.labels, found, strict=True))
    }
    fewest = {
        label: min(result.patients, result.negative_patients)
        for label, result in per_label.items()
        if result.auroc is not None
    }
    unreliable = {label: count for label, count in fewest.items() if count < FEWEST_PATIENTS}
    episodes = np.concatenate([table.episodes for table in tables])
    _, episode = np.unique(episodes, return_inverse=True)
    means = np.bincount(episode, np.concatenate([table.auroc for table in tables])) / np.bincount(episode)
    return MultiLabelReport(
        name=name,
        n_way=settings["n_way"],
        k_shot=settings["k_shot"],
        k_negative=settings["k_negative"],
        episodes=means.size,
        patients_known=settings["patients_known"],
        patients=int(np.unique(outcomes.patient).size),
        auroc=float(np.mean([table.estimate for table in tables])),
        interval=percentiles(macro(samples)),
        episode_mean=float(means.mean()),
        episode_interval=episode_interval(means),
        average_precision=float(np.mean([table.average_precision.mean() for table in tables])),
        per_label=per_label,
        excluded=dict(excluded),
        unreliable=unreliable,
        warnings=_warnings(settings, per_label, unreliable),
        manifest=manifest,
        outcomes=outcomes,
        samples=samples,
    )


def compare_multilabel(first: MultiLabelReport, second: MultiLabelReport, *, seed: int = 0) -> PairedDifference:
    """Return how much better the first classifier ranks the same queries of the same episodes.

    Args:
        first: Report of one classifier (or of one encoder).
        second: Report of another on the same episodes.
        seed: Seed of the bootstrap over patients.

    Returns:
        The difference of the mean AUROCs, its interval, and a two-sided p-value.

    Raises:
        EpisodeError: The reports are not over the same episodes, labels and patients.
    """
    one, two = first.outcomes, second.outcomes
    parts = ("episode", "row", "label", "truth", "patient")
    if one.labels != two.labels or not all(np.array_equal(getattr(one, part), getattr(two, part)) for part in parts):
        raise EpisodeError(
            f"{first.name} and {second.name} were not evaluated on the same episodes, labels and patients: "
            f"give both the same MultiLabelEpisodeSampler."
        )
    # Both see the same resamples: the seed and the patients are the same.
    samples = []
    for outcomes in (one, two):
        found = [pair_table(outcomes, code) for code in range(len(outcomes.labels))]
        samples.append(macro(resampled([table for table in found if table is not None], seed=seed)))
    difference = samples[0] - samples[1]
    below, above = int((difference <= ROUNDING).sum()), int((difference >= -ROUNDING).sum())
    low, high = percentiles(difference)
    return PairedDifference(
        difference=first.auroc - second.auroc,
        low=low,
        high=high,
        level=LEVEL,
        p_value=min(1.0, 2 * (min(below, above) + 1) / (DRAWS + 1)),
        names=(first.name, second.name),
        patients=first.patients,
        unreliable=bool(first.unreliable),
    )


def _label_result(
    outcomes: MultiLabelOutcomes, code: int, table: PairTable | None, samples: NDArray[np.float64] | None
) -> LabelResult:
    """Return one label's figures, or why there are none."""
    mine = outcomes.label == code
    has = outcomes.truth[mine]
    patient = outcomes.patient[mine]
    positives, queries = int(has.sum()), int(has.size)
    reason = NEVER_DRAWN
    if queries:
        reason = "Every query has it." if positives == queries else "No episode asks about images with and without it."
        reason = reason if positives else "No query has it."
    defined = np.empty(0) if samples is None else samples[np.isfinite(samples)]
    return LabelResult(
        auroc=None if table is None else table.estimate,
        interval=percentiles(defined) if defined.size else None,
        episode_mean=None if table is None else float(table.auroc.mean()),
        average_precision=None if table is None else float(table.average_precision.mean()),
        prevalence=positives / queries if queries else None,
        patients=int(np.unique(patient[has]).size),
        negative_patients=int(np.unique(patient[~has]).size),
        positives=positives,
        negatives=queries - positives,
        unknown=int(outcomes.unknown[code]),
        unanswered=int(np.isnan(outcomes.score[mine]).sum()),
        episodes=int(np.unique(outcomes.episode[mine]).size),
        shots=float(outcomes.shots[code]),
        reason=None if table is not None else reason,
    )


def _warnings(
    settings: Mapping[str, Any], per_label: Mapping[Hashable, LabelResult], unreliable: Mapping[Hashable, int]
) -> tuple[str, ...]:
    """Say every doubt in a sentence."""
    found = []
    unit = "patients" if settings["patients_known"] else "images"
    if not settings["patients_known"]:
        found.append(
            "Patients are unknown: support and query may show the same patient, and the interval takes every image for "
            "a patient of its own, so both the AUROC and the certainty may be too high."
        )
    if unreliable:
        found.append(f"The interval is unreliable: {few_patients(unreliable, unit)}.")
    without = [label for label, result in per_label.items() if result.auroc is None]
    if without:
        found.append(f"Without an AUROC, and not in the mean: {listed(repr(label) for label in without)}.")
    unanswered = sum(result.unanswered for result in per_label.values())
    if unanswered:
        found.append(f"The classifier gave no score {unanswered:,} times; such a query loses every comparison.")
    return tuple(found)
