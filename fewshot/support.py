"""What every head does with its support and its queries before it decides: check, order, centre, normalise."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Metric = Literal["cosine", "euclidean"]

#: Numbers in the (rows, classes, d) array of queries compared at once: 2 MB, which a processor's cache holds.
CHUNK_ELEMENTS = 250_000


def as_vectors(vectors: ArrayLike, name: str) -> NDArray[np.float32]:
    """Return `vectors` as contiguous float32 rows (n, d); a single vector is no row and is refused.

    Contiguous, because sums over rows of another memory layout would round otherwise.
    """
    rows = np.asarray(vectors, dtype=np.float32, order="C")
    if rows.ndim != 2:
        raise ValueError(f"{name} must be rows of shape (n, d); got an array of shape {rows.shape}.")
    return rows


def sorted_classes(labels: Sequence[Hashable]) -> list[Hashable]:
    """The distinct labels, sorted; labels of mixed types are ordered by type name, then text."""
    distinct: list[Any] = list(dict.fromkeys(labels))
    try:
        return sorted(distinct)
    except TypeError:
        return sorted(distinct, key=lambda label: (type(label).__name__, str(label)))


def class_array(classes: Sequence[Hashable]) -> NDArray[Any]:
    """Classes as an array whose elements are the caller's labels; tuples and mixed types stay objects."""
    kinds = {type(label) for label in classes}
    if kinds <= {str} or kinds <= {int} or kinds <= {bool}:
        return np.asarray(classes)
    array = np.empty(len(classes), dtype=object)
    array[:] = list(classes)
    return array


def as_label(value: Any) -> Hashable:
    """The caller's own label: a NumPy scalar becomes the Python value it was made from."""
    label: Hashable = value.item() if isinstance(value, np.generic) else value
    return label


def is_missing(value: object) -> bool:
    """Whether a label or patient is None or NaN, as tables write what is unknown."""
    return value is None or (isinstance(value, (float, np.floating)) and bool(np.isnan(value)))


class Support:
    """The support of one classifier in canonical order, so that the order of registration cannot change an answer.

    Attributes:
        vectors: float32 (n, d), as the encoder made them.
        labels, ids, groups: Aligned lists; an unknown patient is a group of its own.
        classes: The distinct labels, sorted.
        targets: int64 (n,), position of each row's label in `classes`.
    """

    def __init__(
        self,
        vectors: ArrayLike,
        labels: Sequence[Hashable],
        *,
        ids: Sequence[str] | None = None,
        groups: Sequence[Hashable | None] | None = None,
    ) -> None:
        if np.size(vectors) == 0 and len(labels) == 0:
            raise ValueError("The comparison set is empty: register at least one image before asking.")
        rows = as_vectors(vectors, "Support vectors")
        labels = [as_label(label) for label in labels]
        n = len(rows)
        for name, values in (("labels", labels), ("ids", ids), ("groups", groups)):
            if values is not None and len(values) != n:
                raise ValueError(f"{n} support vectors need {n} {name}; got {len(values)}.")
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if bad.size:
            raise ValueError(f"Support vectors must be finite; rows {bad[:5].tolist()} hold NaN or infinity.")
        nameless = [i for i, label in enumerate(labels) if is_missing(label)]
        if nameless:
            raise ValueError(f"Every support image needs a class; rows {nameless[:5]} have the label None or NaN.")
        names = [str(i) for i in range(n)] if ids is None else [str(i) for i in ids]
        if len(set(names)) != n:
            twice = next(name for i, name in enumerate(names) if name in names[:i])
            raise ValueError(f"Support ids must be distinct; {twice!r} occurs more than once.")
        order = list(range(n)) if ids is None else sorted(range(n), key=names.__getitem__)
        self.vectors = np.ascontiguousarray(rows[order])
        self.labels = [labels[i] for i in order]
        self.ids = [names[i] for i in order]
        self.groups: list[Hashable] = [
            ("image", names[i]) if groups is None or is_missing(groups[i]) else ("patient", groups[i]) for i in order
        ]
        self.classes = sorted_classes(self.labels)
        position = {label: i for i, label in enumerate(self.classes)}
        self.targets = np.array([position[label] for label in self.labels], dtype=np.int64)

    @classmethod
    def nothing(cls, dim: int) -> Support:
        """Return a support without images, of classes known by words alone; vectors have `dim` numbers."""
        empty = cls.__new__(cls)
        empty.vectors = np.empty((0, dim), dtype=np.float32)
        empty.labels, empty.ids, empty.groups, empty.classes = [], [], [], []
        empty.targets = np.empty(0, dtype=np.int64)
        return empty

    def __len__(self) -> int:
        """Number of support images."""
        return len(self.ids)


def check_queries(vectors: ArrayLike, dim: int) -> NDArray[np.float32]:
    """Query rows (n, d); NaN rows are allowed here, a decision on them is "insufficient"."""
    rows = as_vectors(vectors, "Query vectors")
    if rows.shape[1] != dim:
        raise ValueError(
            f"Query vectors have {rows.shape[1]} dimensions, the comparison set has {dim}: "
            f"were both made by the same encoder?"
        )
    return rows


def check_center(center: ArrayLike | None, dim: int) -> NDArray[np.float64]:
    """The mean to subtract, (d,) float64; zeros where none is given."""
    if center is None:
        return np.zeros(dim)
    mean = np.asarray(center, dtype=np.float64)
    if mean.shape != (dim,):
        raise ValueError(f"The centre must have shape ({dim},) like the vectors; got {mean.shape}.")
    if not np.isfinite(mean).all():
        raise ValueError("The centre must be finite; it holds NaN or infinity.")
    return mean


def prepare(rows: NDArray[np.float32], metric: Metric, center: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centre rows and, for the cosine, bring them to unit length; a zero row stays zero.

    Args:
        rows: (n, d).
        metric: Which similarity follows.
        center: (d,), the source domain's mean; never the target's.

    Returns:
        float64 (n, d).
    """
    moved = rows.astype(np.float64) - center
    if metric == "cosine":
        norm = np.sqrt((moved * moved).sum(axis=1, keepdims=True))
        moved = np.divide(moved, norm, out=np.zeros_like(moved), where=norm > 0)
    return moved


def similarities(queries: NDArray[np.float64], others: NDArray[np.float64], metric: Metric) -> NDArray[np.float64]:
    """Similarity of every query to every other row; larger is closer.

    Sums run along each row by itself, never through a matrix product whose rounding depends on the batch, so that a
    query's answer does not depend on who was asked with it.

    Args:
        queries: (m, d), prepared.
        others: (n, d), prepared.
        metric: "cosine" gives the dot product of unit rows, "euclidean" the negative squared distance.

    Returns:
        float64 (m, n); a cosine that rounding carried beyond 1 is 1.
    """
    result = np.empty((len(queries), len(others)))
    step = max(1, CHUNK_ELEMENTS // max(1, others.size))
    for start in range(0, len(queries), step):
        block = queries[start : start + step, None, :]  # (rows, 1, d)
        if metric == "cosine":
            result[start : start + step] = (block * others).sum(axis=2).clip(-1, 1)
        else:
            difference = block - others
            result[start : start + step] = -(difference * difference).sum(axis=2)
    return result


def check_metric(metric: str) -> Metric:
    """`metric` if it is one of ours."""
    if metric == "cosine":
        return "cosine"
    if metric == "euclidean":
        return "euclidean"
    raise ValueError(f"metric must be 'cosine' or 'euclidean'; got {metric!r}.")


def check_evidence(n_evidence: int) -> None:
    """Refuse a number of named images that is no count."""
    if isinstance(n_evidence, bool) or not isinstance(n_evidence, (int, np.integer)) or n_evidence < 0:
        raise ValueError(f"n_evidence must be a whole number of at least 0; got {n_evidence!r}.")


def check_fitted(classifier: object, attribute: str) -> None:
    """Refuse to answer before `fit`."""
    if not hasattr(classifier, attribute):
        raise ValueError(f"This {type(classifier).__name__} has no support yet: call fit first.")


def insufficient(rows: NDArray[np.float32], metric: Metric, center: NDArray[np.float64]) -> list[str | None]:
    """Why nothing can be decided about a query vector, or None where it can, for each row (n, d)."""
    finite = np.isfinite(rows).all(axis=1)
    aimless = (rows == center).all(axis=1) if metric == "cosine" else np.zeros(len(rows), dtype=np.bool_)
    reasons: list[str | None] = [None] * len(rows)
    for i in np.flatnonzero(~finite).tolist():
        reasons[i] = "The query vector holds NaN or infinity: the image could not be embedded."
    for i in np.flatnonzero(finite & aimless).tolist():
        reasons[i] = "The query vector is zero once centred and has no direction, so every cosine with it is undefined."
    return reasons
