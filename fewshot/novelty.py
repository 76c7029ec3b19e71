"""None of these: a query that fits no class as patients of the known classes fit theirs.

How often a patient of a known class is turned away, the false-alarm rate, is set beforehand and held by conformal
prediction (see fewshot/conformal.py; for outliers Bates et al. 2023, arXiv 2104.08279), patients counting once. How
many patients of unknown classes are caught is not promised; it depends on the encoder.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .calibration_rows import TooFewPatients, check_share, from_document, patient_numbers, shares, to_document
from .conformal import ROUNDING, SplitConformal, patients_needed
from .cross_conformal import CrossConformal
from .support import as_vectors, check_center, check_metric, prepare, similarities


@dataclass(frozen=True, eq=False)
class NoveltyAnswer:
    """Which queries belong to none of the known classes, or how many patients it would take to say so.

    Attributes:
        novel: bool (m,), or None where there are too few patients to turn anybody away at this rate. A query nothing
            can be decided about is not called novel.
        p_values: float64 (m,), small for what fits no class; NaN for a query nothing can be decided about.
        false_alarm: Share of known classes' patients that was allowed to be turned away.
        promised: Share that is promised not to be exceeded; twice as much and more for the cross version.
        needed: Patients needed: in all, or of each class.
        found: Patients found: one number, or one of each class.
    """

    novel: NDArray[np.bool_] | None
    p_values: NDArray[np.float64]
    false_alarm: float
    promised: float
    needed: int
    found: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class NoveltyDetector:
    """How close patients of the known classes come to the support.

    Attributes:
        values: Closeness of each calibration image, rising.
        weights: What each image counts.
        patients: Calibration patients.
    """

    values: tuple[float, ...]
    weights: tuple[float, ...]
    patients: int

    def p_values(self, closeness: ArrayLike) -> NDArray[np.float64]:
        """(1 + patients at most as close, each by the share of his images) / (patients + 1), for each query (m,)."""
        asked = _as_closeness(closeness)
        below = np.concatenate([[0.0], np.cumsum(self.weights)])
        count = below[np.searchsorted(self.values, asked, side="right")]
        return np.where(np.isnan(asked), np.nan, np.minimum((1 + count) / (self.patients + 1), 1.0))

    def threshold(self, false_alarm: float) -> float:
        """The closeness below which a query is called novel.

        Raises:
            TooFewPatients: With so few patients nobody can be turned away at this rate.
        """
        rate, needed = check_share("false_alarm", false_alarm), patients_needed(1 - false_alarm)
        if self.patients < needed:
            raise TooFewPatients(f"A false-alarm rate of {rate:g}", needed=needed, found=self.patients)
        values = np.asarray(self.values)
        return float(values[self.p_values(values) > rate + ROUNDING][0])

    def none_of_these(self, closeness: ArrayLike, false_alarm: float) -> NoveltyAnswer:
        """Which queries are so far away that at most this share of known classes' patients lies as far.

        Args:
            closeness: (m,) of the queries, measured as the calibration patients' was.
            false_alarm: Share of known classes' patients that may be called novel, in (0, 1).

        Returns:
            The answer.
        """
        rate, p_values = check_share("false_alarm", false_alarm), self.p_values(closeness)
        return _answer(p_values, rate, rate, (self.patients,))

    def to_json(self) -> dict[str, Any]:
        """Return a document of plain JSON types, without any patient's name, that `from_json` turns back."""
        return to_document(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> NoveltyDetector:
        """Rebuild from `to_json`'s document."""
        return from_document(cls, document)


def fit_novelty(closeness: ArrayLike, groups: Sequence[Hashable | None] | None = None) -> NoveltyDetector:
    """Keep how close calibration patients of the known classes come to the support.

    Calibration patients and queries must be measured alike: their winning class's score (`winning_score`), or the
    similarity to the nearest support image (`nearest_similarity`), by the same head and support, which holds none of
    them. Scores held out of the support come from heads of one patient fewer, which patients lie farther from, so
    that fewer novel queries are caught; use `none_of_these` with a `CrossConformal` for those.

    Args:
        closeness: (n,) larger is closer; images of NaN are left out.
        groups: n patients; None counts images.

    Returns:
        The detector. With few patients it says how many it would need.

    Raises:
        TooFewPatients: No patient at all.
        ValueError: Not a list, or lists of unequal length.

    Example:
        >>> fitted = fit_novelty([0.9, 0.8, 0.85, 0.7, 0.75, 0.9, 0.95, 0.8, 0.6])
        >>> fitted.none_of_these([0.65, 0.5], false_alarm=0.1).novel.tolist()
        [False, True]
    """
    values = _as_closeness(closeness)
    patients = patient_numbers(groups, len(values))
    kept = ~np.isnan(values)
    values, patients = values[kept], patients[kept]
    if not values.size:
        raise TooFewPatients("Telling what is novel", needed=1, found=0)
    weights = shares(patients.tolist())
    order = np.lexsort((weights, values))
    return NoveltyDetector(tuple(values[order].tolist()), tuple(weights[order].tolist()), int(np.unique(patients).size))


def none_of_these(predictor: SplitConformal | CrossConformal, scores: ArrayLike, false_alarm: float) -> NoveltyAnswer:
    """Which queries every class turns away: the conformal set is empty at coverage 1 - false_alarm.

    A patient of a known class is turned away only where his own class does so, hence at most at that rate. With a
    predictor per class this holds for each class by itself, and each class's own spread is taken into account.

    Args:
        predictor: Of the nonconformity "distance": the others only say which class fits better than the rest.
        scores: (m, n_classes) for a `SplitConformal`, (n_folds, m, n_classes) for a `CrossConformal`.
        false_alarm: Share of known classes' patients that may be called novel, in (0, 1).

    Returns:
        The answer; its p-value is the largest over classes.

    Raises:
        ValueError: Another nonconformity, or a rate outside (0, 1).
    """
    if predictor.nonconformity != "distance":
        raise ValueError(
            f"Only the nonconformity 'distance' tells a query that fits no class; got {predictor.nonconformity!r}."
        )
    rate = check_share("false_alarm", false_alarm)
    promised = 1 - predictor.promised(1 - rate) if isinstance(predictor, CrossConformal) else rate
    return _answer(predictor.p_values(scores).max(axis=1), rate, promised, predictor.patients)


def winning_score(scores: ArrayLike) -> NDArray[np.float64]:
    """Score of the best class of each image, (m,); NaN for a row of NaN."""
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"scores must be rows of shape (m, n_classes); got an array of shape {values.shape}.")
    return np.asarray(values.max(axis=1))


def nearest_similarity(
    vectors: ArrayLike, support: ArrayLike, *, metric: str = "cosine", center: ArrayLike | None = None
) -> NDArray[np.float64]:
    """Similarity of each image to the support image nearest to it.

    Args:
        vectors: (m, d).
        support: (n, d), at least one.
        metric: "cosine", or "euclidean" for the negative squared distance.
        center: (d,) mean of the source domain to subtract first; None subtracts nothing.

    Returns:
        float64 (m,); NaN for a vector that is not finite.

    Raises:
        ValueError: An unknown metric, an empty support, vectors of different lengths.
    """
    kind, rows, others = check_metric(metric), as_vectors(vectors, "Vectors"), as_vectors(support, "Support vectors")
    if not len(others):
        raise ValueError("The comparison set is empty: register at least one image before asking.")
    if rows.shape[1] != others.shape[1]:
        raise ValueError(f"Vectors have {rows.shape[1]} dimensions, the comparison set has {others.shape[1]}.")
    mean = check_center(center, others.shape[1])
    finite = np.isfinite(rows).all(axis=1)
    nearest = np.full(len(rows), np.nan)
    nearest[finite] = similarities(prepare(rows[finite], kind, mean), prepare(others, kind, mean), kind).max(axis=1)
    return nearest


def _as_closeness(closeness: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(closeness, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"closeness must be a list of one number per image; got an array of shape {values.shape}.")
    return values


def _answer(p_values: NDArray[np.float64], rate: float, promised: float, patients: tuple[int, ...]) -> NoveltyAnswer:
    needed = patients_needed(1 - rate)
    novel = p_values <= rate + ROUNDING if min(patients) >= needed else None
    return NoveltyAnswer(novel, p_values, rate, promised, needed, patients)
