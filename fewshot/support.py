"""What every head does with its support and its queries before it decides: check, order, centre, normalise."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Metric = Literal["cosine", "euclidean"]

#: Query rows compared at once, so that the (rows, classes, d) difference array stays near 64 MB.
CHUNK_ELEMENTS = 8_000_000


def as_vectors(vectors: ArrayLike, name: str) -> NDArray[np.float32]:
    """Return `vectors` as float32 rows (n, d); a single vector is no row and is refused."""
    rows = np.asarray(vectors, dtype=np.float32)
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
        rows = as_vectors(vectors, "Support vectors")
        labels = [as_label(label) for label in labels]
        n = len(rows)
        if n == 0:
            raise ValueError("The comparison set is empty: register at least one image before asking.")
        for name, values in (("labels", labels), ("ids", ids), ("groups", groups)):
            if values is not None and len(values) != n:
                raise ValueError(f"{n} support vectors need {n} {name}; got {len(values)}.")
        bad = np.flatnonzero(~np.isfinite(rows).all(axis=1))
        if bad.size:
            raise ValueError(f"Support vectors must be finite; rows {bad[:5].tolist()} hold NaN or infinity.")
        names = [str(i) for i in range(n)] if ids is None else [str(i) for i in ids]
        if len(set(names)) != n:
            raise ValueError("Support ids must be distinct; some id occurs twice.")
        order = list(range(n)) if ids is None else sorted(range(n), key=names.__getitem__)
        self.vectors = np.ascontiguousarray(rows[order])
        self.labels = [labels[i] for i in order]
        self.ids = [names[i] for i in order]
        self.groups: list[Hashable] = [
            ("image", names[i]) if groups is None or groups[i] is None else ("patient", groups[i]) for i in order
        ]
        self.classes = sorted_classes(self.labels)
        position = {label: i for i, label in enumerate(self.classes)}
        self.targets = np.array([position[label] for label in self.labels], dtype=np.int64)

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
        float64 (m, n).
    """
    result = np.empty((len(queries), len(others)))
    step = max(1, CHUNK_ELEMENTS // max(1, others.size))
    for start in range(0, len(queries), step):
        block = queries[start : start + step, None, :]  # (rows, 1, d)
        if metric == "cosine":
            result[start : start + step] = (block * others).sum(axis=2)
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


def finite_rows(rows: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which rows (n,) hold neither NaN nor infinity."""
    return np.asarray(np.isfinite(rows).all(axis=1), dtype=np.bool_)


def insufficient(row: NDArray[np.float32]) -> str | None:
    """Why nothing can be decided about a query vector, or None where it can."""
    if not np.isfinite(row).all():
        return "The query vector holds NaN or infinity: the image could not be embedded."
    return None
