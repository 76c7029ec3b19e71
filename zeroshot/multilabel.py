"""Measures of multi-label zero-shot answers: precision, recall and F1 at k, mean average precision, AUROC per class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from episodes import ranking_score

from .errors import ZeroShotError
from .generalized import harmonic_mean
from .linear_map import checked_rows


@dataclass(frozen=True)
class MultilabelScores:
    """How well the classes of an image with several are found.

    Attributes:
        classes: All of them.
        auroc: Class -> AUROC, of those that have images with and without.
        average_precision: Class -> average precision, of the same.
        precision_at: k -> share of the k best classes of an image that are present, mean over images with any.
        recall_at: k -> share of an image's classes among its k best, mean over the same.
        f1_at: k -> harmonic mean of the two means.
        without_positives: Classes no image has: counted, not scored.
        without_negatives: Classes every image has.
    """

    classes: tuple[str, ...]
    auroc: dict[str, float]
    average_precision: dict[str, float]
    precision_at: dict[int, float]
    recall_at: dict[int, float]
    f1_at: dict[int, float]
    without_positives: tuple[str, ...]
    without_negatives: tuple[str, ...]

    @property
    def mean_auroc(self) -> float | None:
        """Mean over the classes that can be scored, or None where there is none."""
        return float(np.mean(list(self.auroc.values()))) if self.auroc else None

    @property
    def mean_average_precision(self) -> float | None:
        """Mean over the classes that can be scored (mAP), or None where there is none."""
        return float(np.mean(list(self.average_precision.values()))) if self.average_precision else None


def multilabel_scores(
    scores: ArrayLike, states: ArrayLike, classes: Sequence[str], *, ks: Sequence[int] = (1, 2, 3)
) -> MultilabelScores:
    """Measure scores against what is known to be present and absent.

    Args:
        scores: (n, c), larger is closer.
        states: (n, c) of 1 present, 0 absent, NaN or -1 unknown; what is unknown takes no part.
        classes: The c names.
        ks: How many classes are named per image.

    Raises:
        ZeroShotError: Shapes that do not fit, or a k that names more classes than there are.
    """
    table = checked_rows(scores, len(classes), "Scores", "of the classes named")
    known = np.asarray(states, dtype=np.float64)
    if known.shape != table.shape:
        raise ZeroShotError(f"Scores of shape {table.shape} need states of the same shape; got {known.shape}.")
    wrong = [k for k in ks if not 1 <= k <= len(classes)]
    if wrong:
        raise ZeroShotError(f"k names between 1 and {len(classes)} classes; got {wrong[0]}.")
    unknown = np.isnan(known) | (known < 0)
    present = (known == 1) & ~unknown
    names = tuple(str(name) for name in classes)
    auroc, precision, no_positive, no_negative = {}, {}, [], []
    for column, name in enumerate(names):
        rows = ~unknown[:, column]
        count = int(present[rows, column].sum())
        if count == 0:
            no_positive.append(name)
        elif count == int(rows.sum()):
            no_negative.append(name)
        else:
            found = ranking_score(present[rows, column], table[rows, column])
            auroc[name], precision[name] = _number(found.auroc), _number(found.average_precision)
    any_present = present.any(axis=1)
    shown = np.where(unknown, -np.inf, table)[any_present]
    hits = np.take_along_axis(present[any_present], np.argsort(-shown, axis=1, kind="stable"), axis=1)
    totals = hits.sum(axis=1)
    precision_at, recall_at, f1_at = {}, {}, {}
    for k in ks:
        top = hits[:, :k].sum(axis=1)
        p, r = (float(x.mean()) if len(x) else 0.0 for x in (top / k, _share(top, totals)))
        precision_at[k], recall_at[k], f1_at[k] = p, r, float(harmonic_mean(p, r))
    return MultilabelScores(
        names, auroc, precision, precision_at, recall_at, f1_at, tuple(no_positive), tuple(no_negative)
    )


def _share(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    shares: NDArray[np.float64] = part / np.maximum(whole, 1)
    return shares


def _number(value: float | None) -> float:
    return float("nan") if value is None else float(value)
