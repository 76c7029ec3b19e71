"""Scores of patients whose class is known: what calibration, conformal sets and thresholds are computed from."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .support import as_label, is_missing

Document = TypeVar("Document")


class TooFewPatients(ValueError):
    """There are too few calibration patients for what was asked.

    Attributes:
        needed: Patients that would be enough.
        found: Patients there are.
        target: Position of the class that is short of patients, or None where all classes are counted together.
    """

    def __init__(self, what: str, *, needed: int, found: int, target: int | None = None) -> None:
        where = "" if target is None else f" of class {target} (counted from 0)"
        patients = "patient" if needed == 1 else "patients"
        super().__init__(f"{what} needs {needed} calibration {patients}{where}; got {found}.")
        self.needed, self.found, self.target = needed, found, target


@dataclass(frozen=True, eq=False)
class CalibrationRows:
    """Checked scores of calibration images; rows nothing could be decided about are left out.

    Attributes:
        scores: float64 (n, n_classes), larger is likelier; -inf for a class the head did not know.
        targets: intp (n,), position of each image's true class.
        patients: intp (n,), the patient of each image as a number.
    """

    scores: NDArray[np.float64]
    targets: NDArray[np.intp]
    patients: NDArray[np.intp]

    def class_weights(self) -> NDArray[np.float64]:
        """What each image counts, (n,): the images of one patient in one class share a weight of 1."""
        return shares(list(zip(self.patients.tolist(), self.targets.tolist(), strict=True)))

    def class_patients(self) -> NDArray[np.intp]:
        """Patients of each class, (n_classes,)."""
        pairs = np.unique(np.stack([self.targets, self.patients]), axis=1)
        return np.bincount(pairs[0], minlength=self.scores.shape[1])


def checked_rows(
    scores: ArrayLike, targets: ArrayLike, groups: Sequence[Hashable | None] | None
) -> tuple[CalibrationRows, NDArray[np.intp]]:
    """Check calibration scores.

    Args:
        scores: (n, n_classes), larger is likelier; -inf for a class the head did not know, NaN throughout for a row
            nothing could be decided about.
        targets: n positions of the true classes among the columns.
        groups: n patients; None or NaN is a patient of its own, and so is every image where the list is None.

    Returns:
        The rows without NaN in an order that does not depend on the caller's, so that sums over them do not either, and
        which rows of the caller's they are.

    Raises:
        ValueError: Shapes or lengths differ, a score is +inf, a row holds both NaN and numbers, a target is no column.
    """
    values = checked_scores(scores)
    positions = np.asarray(targets)
    if positions.shape != (len(values),):
        raise ValueError(f"{len(values)} rows of scores need {len(values)} targets; got shape {positions.shape}.")
    if positions.size and not np.issubdtype(positions.dtype, np.integer):
        raise ValueError(f"targets must be whole numbers, the positions of the classes; got {positions.dtype}.")
    outside = positions[(positions < 0) | (positions >= values.shape[1])]
    if outside.size:
        raise ValueError(f"A target must be a column of the scores, 0 to {values.shape[1] - 1}; got {int(outside[0])}.")
    patients = patient_numbers(groups, len(values))
    kept = np.flatnonzero(~np.isnan(values).any(axis=1))
    owners = list(zip(patients[kept].tolist(), positions[kept].tolist(), strict=True))
    kept = kept[np.lexsort((shares(owners), positions[kept], *values[kept].T))]
    return CalibrationRows(values[kept], positions[kept].astype(np.intp), patients[kept]), kept


def checked_scores(scores: ArrayLike, n_classes: int | None = None) -> NDArray[np.float64]:
    """Scores as float64 (n, n_classes), each row either NaN throughout or made of numbers and -inf."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"scores must be rows of shape (n, n_classes); got an array of shape {values.shape}.")
    if n_classes is not None and values.shape[1] != n_classes:
        raise ValueError(f"The calibration has {n_classes} classes, the scores have {values.shape[1]}.")
    missing = np.isnan(values)
    if (missing.any(axis=1) != missing.all(axis=1)).any():
        row = int(np.flatnonzero(missing.any(axis=1) != missing.all(axis=1))[0])
        raise ValueError(f"A row of scores holds NaN throughout or nowhere; row {row} holds both.")
    if np.isposinf(values).any():
        raise ValueError(f"Scores must be below infinity; row {int(np.flatnonzero(np.isposinf(values).any(1))[0])}.")
    return values


def patient_numbers(groups: Sequence[Hashable | None] | None, n: int) -> NDArray[np.intp]:
    """The patient of each of n images as a number, in order of first appearance; an unknown patient is one of its own.

    Raises:
        ValueError: The list is not n long.
    """
    if groups is None:
        return np.arange(n, dtype=np.intp)
    if len(groups) != n:
        raise ValueError(f"{n} rows of scores need {n} patients in groups; got {len(groups)}.")
    codes: dict[Hashable, int] = {}
    keys: list[Hashable] = [
        ("image", i) if is_missing(group) else ("patient", as_label(group)) for i, group in enumerate(groups)
    ]
    return np.array([codes.setdefault(key, len(codes)) for key in keys], dtype=np.intp)


def shares(owners: Sequence[Hashable]) -> NDArray[np.float64]:
    """What each image counts, (n,): the images of one owner share a weight of 1."""
    images = Counter(owners)
    return np.array([1 / images[owner] for owner in owners], dtype=np.float64)


def softmax(scores: NDArray[np.float64], temperature: float) -> NDArray[np.float64]:
    """Softmax of scores / temperature, (n, n_classes); 0 for -inf, NaN for a row that is NaN or knows no class."""
    top = scores.max(axis=1, keepdims=True)
    top = np.where(np.isfinite(top), top, np.nan)
    powers = np.exp((scores - top) / temperature)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def check_share(name: str, value: float) -> float:
    """A share strictly between 0 and 1."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating)) or not 0 < value < 1:
        raise ValueError(f"{name} must lie strictly between 0 and 1; got {value!r}.")
    return float(value)


def to_document(instance: Any) -> dict[str, Any]:
    """A frozen dataclass of numbers, texts and tuples as plain JSON types; infinities become text."""
    return {field.name: _plain(getattr(instance, field.name)) for field in fields(instance)}


def from_document(cls: type[Document], document: Mapping[str, Any]) -> Document:
    """Rebuild what `to_document` wrote.

    Raises:
        ValueError: A field is missing or unknown.
    """
    known = {field.name for field in fields(cls)}  # type: ignore[arg-type]
    if set(document) != known:
        raise ValueError(
            f"{cls.__name__} is made of {sorted(known)}; missing are {sorted(known - set(document))}, unknown "
            f"{sorted(set(document) - known)}."
        )
    return cls(**{name: _rebuilt(value) for name, value in document.items()})


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _rebuilt(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_rebuilt(part) for part in value)
    return float(value) if value in ("inf", "-inf") else value
