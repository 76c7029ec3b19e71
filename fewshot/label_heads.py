"""Findings that co-occur, each decided by a head of its own: present against absent (binary relevance).

The name is that of Tsoumakas and Katakis 2007, "Multi-label classification: an overview", Int. J. Data Warehousing and
Mining 3(3).
"""

from __future__ import annotations

import copy
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .head import Head
from .label_prototypes import checked_lists, checked_table
from .prototypes import PrototypeClassifier
from .support import as_vectors, check_fitted, check_queries

#: The two classes of a finding as its head sees them.
ABSENT, PRESENT = 0, 1


class LabelClassifier:
    """Score each finding by a head's score for "present" minus its score for "absent".

    For each finding the head is fitted anew to the support images whose label is known, 1 or 0. An image whose label
    is NaN (not mentioned) takes no part for that finding: it is neither. Findings do not compete, and their scores
    rank images for one finding; they are no probabilities, nor comparable from one finding to the next.

    Where no support image is known to lack a finding there is nothing to tell apart. Its score is then the cosine
    similarity to the mean of the images that have it, whatever the head, as `LabelPrototypeClassifier` gives;
    `has_negative_` says which findings were learnt and which were not.

    Args:
        head: An unfitted head, copied for each finding and itself left alone. Its `center`, where it has one, is the
            source mean subtracted for findings without negatives too.

    Attributes:
        heads_: For each finding the fitted head; a `PrototypeClassifier` of one class where there are no negatives.
        has_negative_: bool (n_labels,), which findings some image is known to lack.

    Example:
        >>> clf = LabelClassifier(PrototypeClassifier())
        >>> clf.fit([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[1, 0], [0, 1], [1, 1]]).has_negative_.tolist()
        [True, True]
        >>> clf.decision_function([[1.0, 0.1]]).round(2).tolist()
        [[0.86, -0.52]]
    """

    heads_: tuple[Head, ...]
    has_negative_: NDArray[np.bool_]

    def __init__(self, head: Head) -> None:
        self.head = head

    @property
    def transductive(self) -> bool:
        """Whether a query's score depends on the other queries it is asked with: as the head's."""
        return bool(getattr(self.head, "transductive", False))

    def fit(
        self,
        vectors: ArrayLike,
        label_matrix: ArrayLike,
        *,
        ids: Sequence[str] | None = None,
        groups: Sequence[Hashable | None] | None = None,
    ) -> LabelClassifier:
        """Fit one head per finding.

        Args:
            vectors: (n, d) support vectors.
            label_matrix: (n, n_labels) of 1 present, 0 absent, NaN not mentioned.
            ids: n distinct image ids; the order of registration cannot change a score. None takes the order given.
            groups: n patients, which count as the head counts them. None counts images.

        Returns:
            Itself.

        Raises:
            ValueError: Lists of unequal length, NaN vectors, repeated ids, a label nobody has, a head that is none.
        """
        if isinstance(self.head, type) or not (hasattr(self.head, "fit") and hasattr(self.head, "scores")):
            raise ValueError(f"head must be an unfitted head such as PrototypeClassifier(); got {self.head!r}.")
        rows = as_vectors(vectors, "Support vectors")
        if not len(rows):
            raise ValueError("The support is empty: it needs at least one image with each label.")
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if bad.size:
            raise ValueError(f"Support vectors must be finite; rows {bad[:5].tolist()} hold NaN or infinity.")
        table = checked_table(label_matrix, len(rows))
        names, patients = checked_lists(ids, groups, len(rows))
        self.has_negative_ = np.asarray((table == 0).any(axis=0))
        heads: list[Head] = []
        for column, learnt in zip(table.T, self.has_negative_.tolist(), strict=True):
            known = np.flatnonzero(~np.isnan(column)).tolist()
            head: Head = copy.copy(self.head) if learnt else PrototypeClassifier(center=self._center())
            head.fit(
                rows[known],
                [PRESENT if column[i] == 1 else ABSENT for i in known],
                ids=None if ids is None else [names[i] for i in known],
                groups=[patients[i] for i in known],
            )
            heads.append(head)
        self.heads_ = tuple(heads)
        self._dim = rows.shape[1]
        return self

    def decision_function(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Scores (m, n_labels); larger is likelier present.

        A query nothing can be said about for a finding (see the head's `decide`) has NaN there.
        """
        check_fitted(self, "heads_")
        queries = check_queries(vectors, self._dim)
        result = np.empty((len(queries), len(self.heads_)))
        for label, head in enumerate(self.heads_):
            scores = head.scores(queries)  # (m, 2), or (m, 1) without negatives
            columns = {int(state): scores[:, i] for i, state in enumerate(head.classes_)}
            result[:, label] = columns[PRESENT] - columns[ABSENT] if ABSENT in columns else columns[PRESENT]
        return result

    def _center(self) -> ArrayLike | None:
        center: ArrayLike | None = getattr(self.head, "center", None)
        return center
