"""What a classifier answers: a label or "none of these", how sure it is, and which images spoke for and against it."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Neighbor:
    """One support image that took part in an answer.

    Attributes:
        id: The image's id in the comparison set.
        similarity: Similarity to the query; larger is closer. Its scale is the classifier's.
        label: The class the image was registered under.
    """

    id: str
    similarity: float
    label: Hashable = None


@dataclass(frozen=True, slots=True)
class Decision:
    """The full answer to one query.

    Attributes:
        label: The class decided for, or None for "none of these".
        probability: A calibrated probability of `label`, or None where nothing was calibrated. A score is never
            passed off as a probability.
        score: Similarity of the query to the winning class; larger is closer. Its scale is the classifier's.
        margin: Winner's score minus the runner-up's; None where there is no second class. It can be negative where a
            deployment decides by probabilities that rank classes otherwise (isotonic, or with stated prevalences).
        evidence: Support images of the winning class, most similar first.
        runner_up: The second class, or None where there is none.
        counter_evidence: Support images of the runner-up, most similar first.
        reason: Why there is no label (one sentence), else None.
        prediction_set: The classes that cannot be ruled out at `coverage`, likeliest first, and always the winner; None
            where nothing was calibrated or there are too few patients to promise that coverage.
        coverage: Share of patients whose true class such sets are promised to hold, or None.
        flags: Classes whose probability reaches the threshold chosen for them, whatever the label; none for a study
            of several images.
    """

    label: Hashable | None
    probability: float | None
    score: float | None
    margin: float | None
    evidence: tuple[Neighbor, ...] = ()
    runner_up: Hashable | None = None
    counter_evidence: tuple[Neighbor, ...] = ()
    reason: str | None = None
    prediction_set: tuple[Hashable, ...] | None = None
    coverage: float | None = None
    flags: tuple[Hashable, ...] = ()
