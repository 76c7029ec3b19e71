"""Every answer of an evaluation, and what they amount to class by class."""

from __future__ import annotations

import os
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .intervals import PatientBootstrap


@dataclass(frozen=True, slots=True, eq=False)
class Outcomes:
    """Every answer to every query; the arrays are aligned, (n_queries,).

    Attributes:
        classes: What the class codes stand for.
        episode: Episode of the query.
        row: The query's row in the caller's lists.
        truth: Code of the true class.
        answer: Code of the answer, -1 for an abstention.
        patient: Code of the query's patient.
    """

    classes: tuple[Hashable, ...]
    episode: NDArray[np.intp]
    row: NDArray[np.intp]
    truth: NDArray[np.intp]
    answer: NDArray[np.intp]
    patient: NDArray[np.intp]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which answers were right."""
        return np.asarray(self.truth == self.answer)

    def episode_accuracies(self) -> NDArray[np.float64]:
        """Return each episode's balanced accuracy: the mean over its classes of the share answered rightly."""
        n_classes = len(self.classes)
        cells, cell = np.unique(self.episode * n_classes + self.truth, return_inverse=True)
        recall = np.bincount(cell, weights=self.right) / np.bincount(cell)
        episode = cells // n_classes
        return np.asarray(np.bincount(episode, weights=recall) / np.bincount(episode))


@dataclass(frozen=True, slots=True)
class ClassResult:
    """One class of a report.

    Attributes:
        recall: Share of its queries answered rightly, or None where it was never drawn.
        interval: Patient-bootstrap interval of the recall, or None.
        patients: Distinct query patients (images where patients are unknown).
        queries: Queries over all episodes.
        abstained: Queries answered with None.
        episodes: Episodes the class took part in.
    """

    recall: float | None
    interval: tuple[float, float] | None
    patients: int
    queries: int
    abstained: int
    episodes: int


def class_results(outcomes: Outcomes, found: PatientBootstrap) -> dict[Hashable, ClassResult]:
    """Return every class's result, those never drawn included."""
    n_classes = len(outcomes.classes)
    abstained = np.bincount(outcomes.truth[outcomes.answer < 0], minlength=n_classes)
    taken = np.unique(outcomes.episode * n_classes + outcomes.truth) % n_classes
    episodes = np.bincount(taken, minlength=n_classes)
    results = dict.fromkeys(outcomes.classes, ClassResult(None, None, 0, 0, 0, 0))
    for i, code in enumerate(found.classes.tolist()):
        results[outcomes.classes[code]] = ClassResult(
            recall=float(found.class_estimate[i]),
            interval=(float(found.class_low[i]), float(found.class_high[i])),
            patients=int(found.patients[i]),
            queries=int(found.queries[i]),
            abstained=int(abstained[code]),
            episodes=int(episodes[code]),
        )
    return results


def json_safe(value: Any) -> Any:
    """Return a value as JSON can say it, and the same in every run: what has no text of its own gives its type."""
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if np.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): json_safe(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_safe(item) for item in value]
    if isinstance(value, (set, frozenset)):
        return sorted((json_safe(item) for item in value), key=str)
    return str(value) if isinstance(value, (os.PathLike, bytes)) else type(value).__name__
