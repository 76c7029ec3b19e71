"""Mean and spread of an encoder's vectors for each source class: what calibration by the source stands on."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

#: Patients below whom a class is left out: the mean of very few patients is patient data, and travels with no encoder.
FEWEST_PATIENTS = 6

#: Names of the arrays as they are stored.
ARRAYS = ("means", "variances", "patients")


@dataclass(frozen=True, eq=False)
class SourceStatistics:
    """Per source class the mean vector and the variance of each dimension, of vectors as the encoder made them.

    Names of the classes are not kept: nothing needs them.

    Attributes:
        means: float32 (b, d), one row per class.
        variances: float32 (b, d), at least 0.
        patients: int64 (b,), how many patients each row stands for.

    Raises:
        ValueError: Shapes that do not fit, numbers that are not finite, negative variances, a class of no patient.
    """

    means: NDArray[np.float32]
    variances: NDArray[np.float32]
    patients: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check the arrays and make them read-only copies of one type."""
        means, variances = np.array(self.means, dtype=np.float32), np.array(self.variances, dtype=np.float32)
        if means.ndim != 2 or not means.size:
            raise ValueError(f"Source means must be rows of shape (classes, d); got an array of shape {means.shape}.")
        if variances.shape != means.shape:
            raise ValueError(f"Source variances must have the means' shape {means.shape}; got {variances.shape}.")
        if not (np.isfinite(means).all() and np.isfinite(variances).all()):
            raise ValueError("Source means and variances must be finite; they hold NaN or infinity.")
        if (variances < 0).any():
            raise ValueError(f"Source variances must be at least 0; the least is {variances.min():g}.")
        counts = np.array(self.patients)
        if counts.shape != (len(means),) or counts.dtype.kind not in "iu" or (counts < 1).any():
            raise ValueError(
                f"Source patients must be {len(means)} whole numbers of at least 1, one per class; "
                f"got {np.array2string(counts, threshold=6)}."
            )
        arrays: tuple[NDArray[Any], ...] = (means, variances, counts.astype(np.int64))
        for name, array in zip(ARRAYS, arrays, strict=True):
            array.flags.writeable = False
            object.__setattr__(self, name, array)

    def __len__(self) -> int:
        """Number of classes."""
        return len(self.means)

    @property
    def dim(self) -> int:
        """Length d of the vectors."""
        return int(self.means.shape[1])

    @classmethod
    def of(
        cls,
        vectors: ArrayLike,
        labels: Sequence[Hashable | None],
        *,
        groups: Sequence[Hashable | None] | None,
        min_patients: int = FEWEST_PATIENTS,
    ) -> SourceStatistics:
        """Take the statistics of a source domain.

        Args:
            vectors: (n, d), as the encoder made them.
            labels: n class labels; images without one (None) are left out.
            groups: n patients; each counts once in its class however many images it has. None makes every image a
                patient of its own, as does an unknown patient.
            min_patients: Classes of fewer patients are left out. At least 2, and better not below its default: a mean
                over very few patients tells about each of them.

        Returns:
            The statistics, classes in sorted order of their names' text.

        Raises:
            ValueError: Lists of unequal length, vectors that are not finite, no class of that many patients.
        """
        rows = np.asarray(vectors, dtype=np.float64)
        if rows.ndim != 2:
            raise ValueError(f"Source vectors must be rows of shape (n, d); got an array of shape {rows.shape}.")
        for name, values in (("labels", labels), ("groups", groups)):
            if values is not None and len(values) != len(rows):
                raise ValueError(f"{len(rows)} source vectors need {len(rows)} {name}; got {len(values)}.")
        if not np.isfinite(rows).all():
            raise ValueError("Source vectors must be finite; they hold NaN or infinity.")
        if isinstance(min_patients, bool) or not isinstance(min_patients, (int, np.integer)) or min_patients < 2:
            raise ValueError(f"min_patients must be a whole number of at least 2; got {min_patients!r}.")
        members: dict[Hashable, dict[Hashable, list[int]]] = {}
        for i, label in enumerate(labels):
            if not _missing(label):
                known = groups is not None and not _missing(groups[i])
                patient = ("patient", groups[i]) if known and groups is not None else ("image", i)
                members.setdefault(label, {}).setdefault(patient, []).append(i)
        kept = [members[label] for label in sorted(members, key=str) if len(members[label]) >= min_patients]
        if not kept:
            most = max((len(own) for own in members.values()), default=0)
            raise ValueError(
                f"No source class has the {min_patients} patients that its mean needs; the largest has {most}."
            )
        means, variances = zip(*(_moments(rows, list(own.values())) for own in kept), strict=True)
        return cls(np.stack(means), np.stack(variances), np.array([len(own) for own in kept]))

    def to_arrays(self) -> dict[str, NDArray[np.float32] | NDArray[np.int64]]:
        """The arrays by name, as safetensors stores them."""
        return {"means": self.means, "variances": self.variances, "patients": self.patients}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[np.generic]]) -> SourceStatistics:
        """What `to_arrays` gave.

        Raises:
            ValueError: An array is missing, or they are no statistics.
        """
        missing = [name for name in ARRAYS if name not in arrays]
        if missing:
            raise ValueError(f"Source statistics need the arrays {', '.join(ARRAYS)}; {missing[0]} is missing.")
        return cls(*(arrays[name] for name in ARRAYS))  # type: ignore[arg-type]


def _moments(
    rows: NDArray[np.float64], patients: Sequence[Sequence[int]]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean and variance (d,) of one class, each patient counted once."""
    which = np.array([i for own in patients for i in own])
    weights = np.array([1 / len(own) / len(patients) for own in patients for _ in own])[:, None]
    mean = (weights * rows[which]).sum(axis=0)
    variance = (weights * (rows[which] - mean) ** 2).sum(axis=0)
    return mean.astype(np.float32), variance.astype(np.float32)


def _missing(value: object) -> bool:
    """Whether a label or patient is None or NaN, as tables write what is unknown."""
    return value is None or (isinstance(value, (float, np.floating)) and bool(np.isnan(value)))
