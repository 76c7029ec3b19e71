"""Scores become probabilities: temperature scaling (Guo et al. 2017, arXiv 1706.04599) and isotonic regression.

Both are fitted to patients who are not in the support (calibrating on the images a head was adapted to breaks every
promise, arXiv 2506.17503), or to support images scored by the head that never saw their patient. A patient counts once
however many images there are of him, and every class counts alike, so that the probabilities hold where all classes are
equally frequent; `prior` carries them to other frequencies.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar

from .calibration_rows import (
    CalibrationRows,
    TooFewPatients,
    checked_rows,
    checked_scores,
    from_document,
    softmax,
    to_document,
)

#: Patients in all that a temperature needs: of ten patients the share answered rightly is known to ± 0.16 at best.
TEMPERATURE_PATIENTS = 10
#: Patients of each class that isotonic regression needs: the steps of its curve are then about 0.05 high at most.
ISOTONIC_PATIENTS = 20
#: Patients of each class about whom nothing is known, whom isotonic regression imagines beside the real ones.
PRIOR_PATIENTS = 1.0
#: How far the temperature may lie from the spread of the scores, either way.
WIDEST = 1e4
#: Temperatures tried, evenly on a logarithmic scale, before the best is refined.
TRIED = 120


@dataclass(frozen=True, slots=True)
class TemperatureScaling:
    """Probabilities softmax(scores / temperature).

    Attributes:
        temperature: What scores are divided by, above 0.
        n_classes: Columns of the scores.
        patients: Calibration patients it was fitted to.
    """

    temperature: float
    n_classes: int
    patients: int

    def probabilities(self, scores: ArrayLike, *, prior: ArrayLike | None = None) -> NDArray[np.float64]:
        """Probability of each class.

        Args:
            scores: (m, n_classes) of the head; -inf for a class it does not know, NaN rows for what it cannot decide.
            prior: (n_classes,) how frequent each class is where the question is asked, sum 1; None is equally frequent.

        Returns:
            float64 (m, n_classes), each row sums to 1; NaN throughout where the scores are.

        Raises:
            ValueError: Another number of classes, or a prior that is no distribution.
        """
        return with_prior(softmax(checked_scores(scores, self.n_classes), self.temperature), prior)

    def to_json(self) -> dict[str, Any]:
        """Return a document of plain JSON types that `from_json` turns back."""
        return to_document(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> TemperatureScaling:
        """Rebuild from `to_json`'s document."""
        return from_document(cls, document)


@dataclass(frozen=True, slots=True)
class IsotonicCalibration:
    """A rising curve for each class from softmax probabilities to calibrated ones (Zadrozny and Elkan, KDD 2002).

    Attributes:
        temperature: Of the softmax the curves start from.
        knots: For each class, rising softmax probabilities.
        heights: For each class, the calibrated probability at each knot; between knots it is interpolated.
        patients: Calibration patients of each class.
    """

    temperature: float
    knots: tuple[tuple[float, ...], ...]
    heights: tuple[tuple[float, ...], ...]
    patients: tuple[int, ...]

    def probabilities(self, scores: ArrayLike, *, prior: ArrayLike | None = None) -> NDArray[np.float64]:
        """Probability of each class, (m, n_classes); see `TemperatureScaling.probabilities`."""
        values = checked_scores(scores, len(self.knots))
        raw = softmax(values, self.temperature)
        curves = [np.interp(raw[:, c], self.knots[c], self.heights[c]) for c in range(len(self.knots))]
        found = np.stack(curves, axis=1)  # (m, n_classes)
        found[np.isneginf(values)] = 0.0
        return with_prior(found / found.sum(axis=1, keepdims=True), prior)

    def to_json(self) -> dict[str, Any]:
        """Return a document of plain JSON types that `from_json` turns back."""
        return to_document(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> IsotonicCalibration:
        """Rebuild from `to_json`'s document."""
        return from_document(cls, document)


def fit_temperature(
    scores: ArrayLike,
    targets: ArrayLike,
    groups: Sequence[Hashable | None] | None = None,
    *,
    reduce_bias: bool = True,
) -> TemperatureScaling:
    """Choose the temperature under which the calibration patients' classes are likeliest.

    Minimised is the negative log-likelihood, averaged over classes, within a class over patients, within a patient
    over images. Over the logarithm of the temperature, within four powers of ten of the scores' spread, evenly spaced
    values are tried and the best is refined between its neighbours.

    Where every calibration image is answered rightly, the likelihood alone would let the temperature fall to zero and
    call everything certain, which n patients cannot show; and with few patients it is too sure of itself even where
    some are answered wrongly. Firth's correction (1993; for separable data Heinze and Schemper 2002) takes that bias
    away: to the log-likelihood of all patients it adds half the logarithm of the information about 1/temperature, which
    is the patients' mean variance of scores under the probabilities. With n separable patients the answer given is
    then wrong with a chance of about 1/(2n). Where the scores say nothing, or the opposite of the truth, the
    temperature grows to its bound and all probabilities are equal.

    Args:
        scores: (n, n_classes) of calibration images, by a head that never saw their patients. An image whose own class
            is -inf (the head did not know it) is left out, and so is a row of NaN.
        targets: n positions of the true classes among the columns.
        groups: n patients; None counts images.
        reduce_bias: Whether to add Firth's correction; without it this is Guo et al.'s plain fit.

    Returns:
        The temperature.

    Raises:
        TooFewPatients: Fewer than 10 patients, or a class without any.
        ValueError: Lists that do not fit together.

    Example:
        >>> fitted = fit_temperature([[0.4, 0.3]] * 10 + [[0.3, 0.4]] * 10, [0] * 9 + [1] * 10 + [0])
        >>> fitted.probabilities([[0.4, 0.3], [0.5, 0.3]]).round(2).tolist()
        [[0.88, 0.12], [0.98, 0.02]]
    """
    rows = _known(checked_rows(scores, targets, groups)[0])
    _require_patients(rows, "A temperature", in_all=TEMPERATURE_PATIENTS, of_each=1)
    return TemperatureScaling(_temperature(rows, reduce_bias), rows.scores.shape[1], _count(rows))


def fit_isotonic(
    scores: ArrayLike, targets: ArrayLike, groups: Sequence[Hashable | None] | None = None
) -> IsotonicCalibration:
    """Fit for each class a rising curve from its softmax probability to how often it is the true class.

    The softmax's temperature is fitted first; classes are balanced and patients weighted as in `fit_temperature`.
    Pooled images give probabilities of exactly 0 and 1, which a finite number of patients cannot show: each curve is
    drawn towards 1/n_classes with the weight of one imagined patient.

    Args:
        scores: (n, n_classes) of calibration images, by a head that never saw their patients.
        targets: n positions of the true classes among the columns.
        groups: n patients; None counts images.

    Returns:
        The curves.

    Raises:
        TooFewPatients: A class with fewer than 20 patients.
        ValueError: Lists that do not fit together.
    """
    from sklearn.isotonic import IsotonicRegression

    rows = _known(checked_rows(scores, targets, groups)[0])
    _require_patients(rows, "Isotonic calibration", in_all=1, of_each=ISOTONIC_PATIENTS)
    temperature = _temperature(rows, reduce_bias=True)
    raw, patients, n_classes = softmax(rows.scores, temperature), rows.class_patients(), rows.scores.shape[1]
    weights = rows.class_weights() / patients[rows.targets]  # every class weighs 1
    knots, heights = [], []
    for c in range(n_classes):
        curve = IsotonicRegression(y_min=0.0, y_max=1.0).fit(raw[:, c], rows.targets == c, sample_weight=weights)
        drawn = (patients[c] * curve.y_thresholds_ + PRIOR_PATIENTS / n_classes) / (patients[c] + PRIOR_PATIENTS)
        knots.append(tuple(curve.X_thresholds_.tolist()))
        heights.append(tuple(drawn.tolist()))
    return IsotonicCalibration(temperature, tuple(knots), tuple(heights), tuple(patients.tolist()))


def with_prior(probabilities: NDArray[np.float64], prior: ArrayLike | None) -> NDArray[np.float64]:
    """Carry probabilities from equally frequent classes to stated frequencies (Saerens et al. 2002).

    Args:
        probabilities: (m, n_classes) that hold where classes are equally frequent.
        prior: (n_classes,) frequencies, sum 1; None leaves all as it is. It may be 0 for a class that cannot occur.

    Returns:
        float64 (m, n_classes); NaN where only classes that cannot occur were possible.

    Raises:
        ValueError: A prior of another length, negative, or whose sum is not 1.
    """
    if prior is None:
        return probabilities
    frequencies = np.asarray(prior, dtype=np.float64)
    if frequencies.shape != (probabilities.shape[1],):
        raise ValueError(f"The prior needs {probabilities.shape[1]} frequencies; got shape {frequencies.shape}.")
    if not (frequencies >= 0).all() or abs(frequencies.sum() - 1) > 1e-6:
        raise ValueError(f"The prior must be at least 0 and sum to 1; got {frequencies.tolist()}.")
    moved = probabilities * frequencies
    total = moved.sum(axis=1, keepdims=True)
    return np.asarray(np.divide(moved, total, out=np.full_like(moved, np.nan), where=total > 0))


def _known(rows: CalibrationRows) -> CalibrationRows:
    """The images whose own class the head knew."""
    kept = np.isfinite(rows.scores[np.arange(len(rows.targets)), rows.targets])
    return CalibrationRows(rows.scores[kept], rows.targets[kept], rows.patients[kept])


def _require_patients(rows: CalibrationRows, what: str, *, in_all: int, of_each: int) -> None:
    for c, found in enumerate(rows.class_patients().tolist()):
        if found < of_each:
            raise TooFewPatients(what, needed=of_each, found=found, target=c)
    if _count(rows) < in_all:
        raise TooFewPatients(what, needed=in_all, found=_count(rows))


def _count(rows: CalibrationRows) -> int:
    return int(np.unique(rows.patients).size)


def _temperature(rows: CalibrationRows, reduce_bias: bool) -> float:
    """The temperature of least loss; of equally good ones that are tried, the highest."""
    finite = np.isfinite(rows.scores)
    filled = np.where(finite, rows.scores, 0.0)
    offsets = np.where(finite, filled - filled.sum(axis=1, keepdims=True) / finite.sum(axis=1, keepdims=True), 0.0)
    patients = rows.class_patients()
    weights = rows.class_weights() / patients[rows.targets] / patients.size  # sum 1, every class alike
    spread = float(np.sqrt(weights @ (offsets * offsets).mean(axis=1)))
    if spread == 0:
        return 1.0  # all scores are equal, and so are all probabilities
    # As many equally weighted patients would be as informative (Kish's effective size).
    effective = patients.size**2 / float((1 / patients).sum())
    own = np.arange(len(offsets)), rows.targets

    def loss(log_temperature: float) -> float:
        scaled = np.where(finite, offsets, -np.inf) / np.exp(log_temperature)
        scaled -= scaled.max(axis=1, keepdims=True)
        powers = np.exp(scaled)
        total = powers.sum(axis=1)
        found = effective * float(weights @ (np.log(total) - scaled[own]))
        if not reduce_bias:
            return found
        chances = powers / total[:, None]
        around = offsets - (chances * offsets).sum(axis=1, keepdims=True)
        information = float(weights @ (chances * around * around).sum(axis=1))
        return found - 0.5 * float(np.log(max(information, np.finfo(np.float64).tiny)))

    tried = np.log(spread) + np.linspace(np.log(WIDEST), -np.log(WIDEST), TRIED)
    losses = [loss(value) for value in tried.tolist()]
    best = int(np.argmin(losses))
    ends = tried[min(best + 1, TRIED - 1)], tried[max(best - 1, 0)]
    refined = minimize_scalar(loss, bounds=ends, method="bounded", options={"xatol": 1e-9})
    return float(np.exp(refined.x if refined.fun < losses[best] else tried[best]))
