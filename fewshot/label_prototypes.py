"""Findings that co-occur, each with a prototype of its presence and one of its absence.

The means are those of prototypical networks (Snell, Swersky, Zemel 2017, arXiv 1703.05175), once for the images that
show a finding and once for those known to lack it; a single prototype for each finding, as in MetaChest's ProtoNet-ML
(arXiv 2509.25590), is what is left where no image is known to lack it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .support import (
    Metric,
    as_vectors,
    check_center,
    check_fitted,
    check_metric,
    check_queries,
    insufficient,
    is_missing,
    prepare,
    similarities,
)


class LabelPrototypeClassifier:
    """Score each label by how much closer a query is to its positives' mean than to its negatives' mean.

    The score is the similarity to the mean of the support vectors that have the label, minus the similarity to the mean
    of those known to lack it; without any of the latter it is the first term alone. Labels do not compete: an
    image may score high on several, or on none. Scores rank images for one label and are no probabilities.

    Args:
        metric: "cosine" (rows are brought to unit length; scores in [-2, 2]) or "euclidean" (differences of negative
            squared distances).
        center: (d,) mean of the **source** domain to subtract first, usually `encoder.source_mean`; None subtracts
            nothing. The target's own mean would make the answer transductive.

    Attributes:
        positive_: float64 (n_labels, d), mean of the images with each label; of unit length for the cosine.
        negative_: float64 (n_labels, d), mean of those without; zeros where there is none.
        has_negative_: bool (n_labels,), which labels have images without.

    Example:
        >>> clf = LabelPrototypeClassifier().fit([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[1, 0], [0, 1], [1, 1]])
        >>> clf.decision_function([[1.0, 0.1]]).round(2).tolist()
        [[0.86, -0.52]]
    """

    positive_: NDArray[np.float64]
    negative_: NDArray[np.float64]
    has_negative_: NDArray[np.bool_]

    def __init__(self, *, metric: str = "cosine", center: ArrayLike | None = None) -> None:
        self.metric = metric
        self.center = center

    def fit(
        self,
        vectors: ArrayLike,
        label_matrix: ArrayLike,
        *,
        ids: Sequence[str] | None = None,
        groups: Sequence[Hashable | None] | None = None,
    ) -> LabelPrototypeClassifier:
        """Take the two means of each label.

        Args:
            vectors: (n, d) support vectors.
            label_matrix: (n, n_labels) of 1 present, 0 absent, NaN not mentioned, which takes part in neither mean.
            ids: n distinct image ids; means are taken in id order, so the order of registration cannot change a score.
                None takes the order given.
            groups: n patients; each counts once in a mean however many images it has there. None counts images.

        Returns:
            Itself.

        Raises:
            ValueError: Lists of unequal length, NaN vectors, repeated ids, a label nobody has, an unknown metric.
        """
        metric = check_metric(self.metric)
        rows = as_vectors(vectors, "Support vectors")
        if not len(rows):
            raise ValueError("The support is empty: it needs at least one image with each label.")
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if bad.size:
            raise ValueError(f"Support vectors must be finite; rows {bad[:5].tolist()} hold NaN or infinity.")
        table = checked_table(label_matrix, len(rows))
        names, patients = checked_lists(ids, groups, len(rows))
        order = sorted(range(len(rows)), key=names.__getitem__) if ids is not None else list(range(len(rows)))
        center = check_center(self.center, rows.shape[1])
        prepared = prepare(rows[order], metric, center)  # (n, d)
        table, patients = table[order], [patients[i] for i in order]
        sides = []
        for state in (1.0, 0.0):
            means = np.stack([_mean(prepared, np.flatnonzero(column == state), patients) for column in table.T])
            if metric == "cosine":
                norm = np.sqrt((means * means).sum(axis=1, keepdims=True))
                means = np.divide(means, norm, out=np.zeros_like(means), where=norm > 0)
            sides.append(means)  # (n_labels, d)
        self.positive_, self.negative_ = sides
        self.has_negative_ = np.asarray((table == 0).any(axis=0))
        self._metric: Metric = metric
        self._center = center
        return self

    def decision_function(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Scores (m, n_labels); larger is likelier present.

        A query nothing can be said about (it holds NaN, or is zero once centred and the metric is the cosine) has NaN
        throughout.
        """
        check_fitted(self, "positive_")
        queries = check_queries(vectors, self.positive_.shape[1])
        reasons = insufficient(queries, self._metric, self._center)
        which = [i for i, reason in enumerate(reasons) if reason is None]
        scores = np.full((len(queries), len(self.positive_)), np.nan)
        prepared = prepare(queries[which], self._metric, self._center)
        found = similarities(prepared, self.positive_, self._metric)
        found[:, self.has_negative_] -= similarities(prepared, self.negative_[self.has_negative_], self._metric)
        scores[which] = found
        return scores


def checked_table(label_matrix: ArrayLike, n: int) -> NDArray[np.float64]:
    """Return the labels as float64 (n, n_labels), each with at least one image that has it."""
    table = np.asarray(label_matrix, dtype=np.float64)
    if table.ndim != 2 or len(table) != n or not table.shape[1]:
        raise ValueError(f"{n} support vectors need labels of shape ({n}, n_labels); got an array {table.shape}.")
    if not (np.isnan(table) | (table == 0) | (table == 1)).all():
        raise ValueError("Labels must be 1 (present), 0 (absent) or NaN (not mentioned).")
    nobody = np.flatnonzero(~(table == 1).any(axis=0))
    if nobody.size:
        raise ValueError(f"Every label needs an image that has it; labels {nobody[:5].tolist()} have none.")
    return table


def checked_lists(
    ids: Sequence[str] | None, groups: Sequence[Hashable | None] | None, n: int
) -> tuple[list[str], list[Hashable]]:
    """Return ids and patients, each image its own patient where that is unknown."""
    for name, values in (("ids", ids), ("groups", groups)):
        if values is not None and len(values) != n:
            raise ValueError(f"{n} support vectors need {n} {name}; got {len(values)}.")
    names = [str(i) for i in range(n)] if ids is None else [str(i) for i in ids]
    if len(set(names)) != n:
        twice = next(name for i, name in enumerate(names) if name in names[:i])
        raise ValueError(f"Support ids must be distinct; {twice!r} occurs more than once.")
    unknown = [groups is None or is_missing(groups[i]) for i in range(n)]
    patients: list[Hashable] = [
        ("image", names[i]) if groups is None or unknown[i] else ("patient", groups[i]) for i in range(n)
    ]
    return names, patients


def _mean(rows: NDArray[np.float64], members: NDArray[np.intp], patients: Sequence[Hashable]) -> NDArray[np.float64]:
    """Mean over patients of each patient's mean, (d,); zeros without members."""
    if not members.size:
        return np.zeros(rows.shape[1])
    by_patient: dict[Hashable, list[int]] = {}
    for i in members.tolist():
        by_patient.setdefault(patients[i], []).append(i)
    mean: NDArray[np.float64] = np.stack([rows[own].mean(axis=0) for own in by_patient.values()]).mean(axis=0)
    return mean
