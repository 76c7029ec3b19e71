"""Scores of answers and of rankings; a class without positives is reported as such, never as NaN."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import EpisodeError
from .labels import in_order


@dataclass(frozen=True, slots=True, eq=False)
class ConfusionMatrix:
    """How often each class was taken for each other.

    Attributes:
        classes: The n classes, in the order of rows and columns.
        counts: (n, n + 1) queries by true class and answer; the last column holds abstentions.
    """

    classes: tuple[Hashable, ...]
    counts: NDArray[np.intp]

    @property
    def recall(self) -> tuple[float | None, ...]:
        """Share of each class that was found, abstentions counted as misses; None for a class without queries."""
        totals = self.counts.sum(axis=1).tolist()
        hits = self.counts.diagonal().tolist()
        return tuple(hit / total if total else None for hit, total in zip(hits, totals, strict=True))


@dataclass(frozen=True, slots=True)
class RankingScore:
    """How well a score ranks the images with a label above those without.

    Attributes:
        positives: Images that have the label.
        negatives: Images that do not. Those that do not mention it are in neither.
        auroc: Area under the ROC curve, or None where it is undefined.
        average_precision: Average precision, or None where it is undefined.
        reason: Why a score is None, in one sentence, else None.
    """

    positives: int
    negatives: int
    auroc: float | None
    average_precision: float | None
    reason: str | None = None


def confusion_matrix(
    true: Sequence[Hashable], predicted: Sequence[Hashable | None], *, classes: Sequence[Hashable] | None = None
) -> ConfusionMatrix:
    """Count answers by true class; None is an abstention.

    Args:
        true: True class of each query.
        predicted: Answer to each query, or None.
        classes: Order of the classes; by default every class seen, sorted where they can be.

    Returns:
        The counts.

    Raises:
        EpisodeError: The lists differ in length, or a name is not among the classes.
    """
    if len(true) != len(predicted):
        raise EpisodeError(f"There are {len(true):,} true classes and {len(predicted):,} answers.")
    if classes is None:
        classes = in_order(dict.fromkeys([*true, *(name for name in predicted if name is not None)]))
    code: dict[Hashable, int] = {name: i for i, name in enumerate(classes)}
    code.setdefault(None, len(classes))
    try:
        cells = [code[one] * (len(classes) + 1) + code[two] for one, two in zip(true, predicted, strict=True)]
    except KeyError as error:
        raise EpisodeError(f"{error.args[0]!r} is not among the classes {tuple(classes)!r}.") from None
    counts = np.bincount(np.array(cells, dtype=np.intp), minlength=len(classes) * (len(classes) + 1))
    return ConfusionMatrix(tuple(classes), counts.reshape(len(classes), len(classes) + 1))


def balanced_accuracy(true: Sequence[Hashable], predicted: Sequence[Hashable | None]) -> float:
    """Return the mean recall over the classes present in `true`; None is an abstention and counts as wrong."""
    if not len(true):
        raise EpisodeError("There is no query to score.")
    found = [recall for recall in confusion_matrix(true, predicted).recall if recall is not None]
    return sum(found) / len(found)


def ranking_score(present: ArrayLike, scores: ArrayLike) -> RankingScore:
    """Score one label's ranking.

    Args:
        present: (n,) 1 present, 0 absent, NaN not mentioned (left out, for it is not absent).
        scores: (n,) larger means more likely present; no NaN.

    Returns:
        AUROC and average precision with their counts.

    Raises:
        EpisodeError: The lists differ in length, a score is not a number, or a label is none of 1, 0 and NaN.
    """
    truth, score = np.asarray(present, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    if truth.shape != score.shape or truth.ndim != 1:
        raise EpisodeError(f"present and scores must be equally long lists; got {truth.shape} and {score.shape}.")
    if not np.isfinite(score).all():
        raise EpisodeError(f"Score {int(np.flatnonzero(~np.isfinite(score))[0])} (counted from 0) is not a number.")
    known = ~np.isnan(truth)
    truth, score = truth[known], score[known]
    if not np.isin(truth, (0, 1)).all():
        raise EpisodeError("present must hold 1 (present), 0 (absent) and NaN (not mentioned) only.")
    positives = int(truth.sum())
    negatives = truth.size - positives
    if not positives:
        return RankingScore(positives, negatives, None, None, "No image has the label.")
    from sklearn.metrics import average_precision_score, roc_auc_score

    precision = float(average_precision_score(truth, score))
    if not negatives:
        return RankingScore(positives, negatives, None, precision, "Every image has the label.")
    return RankingScore(positives, negatives, float(roc_auc_score(truth, score)), precision)
