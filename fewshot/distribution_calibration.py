"""Support images moved towards the source classes they resemble, whose spread they borrow (distribution calibration).

Yang, Liu, Xu 2021, "Free lunch for few-shot learning: distribution calibration", arXiv 2101.06395.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from embeddings import SourceStatistics

from .class_scores import ClassScores
from .prototypes import DEFAULT_EVIDENCE
from .span import balanced_weights, positive
from .support import Metric, Support, check_center, prepare, similarities


class DistributionCalibratedClassifier(ClassScores):
    """The class whose calibrated mean is nearest, distances measured in calibrated deviations.

    As in the paper, every support vector is taken to the power `power` (Tukey's transform; here with its sign, since
    vectors need not be positive), its `n_nearest` closest source classes are found, its mean is the average of
    itself and theirs, and its variances are the average of theirs plus `alpha`.

    Unlike the paper, no features are drawn from the calibrated distributions to train a logistic regression on: a class
    is the mean of its support's calibrated means, all classes share the mean of the calibrated variances, and the
    score is the logarithm of that normal density up to a constant, minus half the squared distance. This is the rule
    that infinitely many draws from normal classes with one covariance would teach, it takes no seed, and the same
    support gives the same answer to the bit. Also, variances are those of single dimensions (a covariance of the
    source would weigh as much as the encoder), and the source's moments are carried through centring, unit length and
    power (see `powered_moments`) where the paper compares powers with plain means.

    Args:
        source: Statistics of the encoder's source classes; without them nothing can be fitted.
        n_nearest: Source classes that calibrate a support image; all, where there are fewer.
        alpha: Added to each calibrated variance, in units of the source's mean variance. The paper's 0.21 is in units
            of its features.
        power: Exponent above 0; 1 leaves vectors as they are.
        normalize: Bring rows to unit length once centred. A source class's moments are divided by the root of its mean
            squared length.
        center: (d,) mean of the **source** domain to subtract first, usually `encoder.source_mean`; None subtracts
            nothing.
        n_evidence: Support images named per decision for the winner, and for the runner-up.

    Attributes:
        classes_: The labels, sorted, as the caller gave them.
        means_: float64 (n_classes, d), calibrated.
        variances_: float64 (d,), calibrated and shared.

    Example:
        >>> source = SourceStatistics([[1.0, 0.2], [0.1, 1.0]], [[0.1, 0.1], [0.1, 0.1]], [9, 9])
        >>> clf = DistributionCalibratedClassifier(source, n_nearest=1).fit([[1.0, 0.0], [0.0, 1.0]], ["a", "b"])
        >>> clf.predict([[0.8, 0.3], [0.1, 0.7]]).tolist()
        ['a', 'b']
    """

    means_: NDArray[np.float64]
    variances_: NDArray[np.float64]

    def __init__(
        self,
        source: SourceStatistics | None = None,
        *,
        n_nearest: int = 2,
        alpha: float = 1.0,
        power: float = 0.5,
        normalize: bool = True,
        center: ArrayLike | None = None,
        n_evidence: int = DEFAULT_EVIDENCE,
    ) -> None:
        self.source = source
        self.n_nearest = n_nearest
        self.alpha = alpha
        self.power = power
        self.normalize = normalize
        self.center = center
        self.n_evidence = n_evidence

    def _learn(self, support: Support) -> NDArray[np.float64]:
        dim = support.vectors.shape[1]
        source = self._source(dim)
        if isinstance(self.n_nearest, bool) or not isinstance(self.n_nearest, (int, np.integer)) or self.n_nearest < 1:
            raise ValueError(f"n_nearest must be a whole number of at least 1; got {self.n_nearest!r}.")
        alpha, self._power = positive(self.alpha, "alpha"), positive(self.power, "power")
        self._decides_by: Metric = "cosine" if self.normalize else "euclidean"  # here it depends on the options
        center = check_center(self.center, dim)
        means, variances = source.means.astype(np.float64) - center, source.variances.astype(np.float64)
        if self.normalize:
            squared = ((means * means).sum(axis=1) + variances.sum(axis=1))[:, None]  # mean squared length of a class
            squared[squared == 0] = 1.0
            means, variances = means / np.sqrt(squared), variances / squared
        means, variances = powered_moments(means, variances, self._power)  # (b, d) each
        floor = alpha * (float(variances.mean()) or 1.0)  # where the source does not vary, distances are Euclidean
        rows = _powered(prepare(support.vectors, self._decides_by, center), self._power)  # (n, d)
        count = min(int(self.n_nearest), len(source))
        nearest = np.argsort(-similarities(rows, means, "euclidean"), axis=1, kind="stable")[:, :count]  # (n, count)
        weights = balanced_weights(support)
        calibrated = np.empty_like(rows)
        self.variances_ = np.zeros(dim)
        for i, own in enumerate(nearest):
            calibrated[i] = (means[own].sum(axis=0) + rows[i]) / (count + 1)
            self.variances_ += weights[i] / weights.sum() * (variances[own].mean(axis=0) + floor)
        share = (support.targets == np.arange(len(support.classes))[:, None]) * weights  # (n_classes, n)
        self.means_ = (share / share.sum(axis=1, keepdims=True)) @ calibrated
        self._deviations = np.sqrt(self.variances_)
        return center

    def _source(self, dim: int) -> SourceStatistics:
        if self.source is None:
            raise ValueError(
                "DistributionCalibratedClassifier needs the statistics of the encoder's source classes "
                "(SourceStatistics) and got none: give source=SourceStatistics.of(...), or take another head."
            )
        if self.source.dim != dim:
            raise ValueError(
                f"The source statistics have {self.source.dim} dimensions, the comparison set has {dim}: "
                f"were both made by the same encoder?"
            )
        return self.source

    def _compare(self, queries: NDArray[np.float32]) -> NDArray[np.float64]:
        moved = _powered(prepare(queries, self._decides_by, self._center), self._power)
        return similarities(moved / self._deviations, self.means_ / self._deviations, "euclidean") / 2


def powered_moments(
    means: NDArray[np.float64], variances: NDArray[np.float64], power: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and variance of sign(x) |x|^power for normal x: Tukey's transform of a class known by its moments.

    With M the confluent hypergeometric function (Winkelbauer 2012, arXiv 1209.4340, has the moments of |x|):

        E sign(x)|x|^p = mean * deviation^(p-1) * 2^((p+1)/2) * gamma(p/2 + 1) / sqrt(pi) * M((1-p)/2, 3/2, -z)
        E |x|^2p       = deviation^2p * 2^p * gamma(p + 1/2) / sqrt(pi) * M(-p, 1/2, -z),  z = mean^2 / (2 variance)

    Args:
        means: (b, d).
        variances: (b, d), at least 0; where 0 the mean itself is transformed.
        power: Exponent above 0.

    Returns:
        Means and variances (b, d).
    """
    if power == 1:
        return means, variances
    from scipy.special import hyp1f1

    # Beyond 30 deviations from 0 the transform is as good as linear and M loses digits: there by its tangent.
    far = means * means >= 900 * variances
    deviation = np.sqrt(np.where(far, 1.0, variances))
    z = np.where(far, 0.0, means) ** 2 / (2 * deviation**2)
    first = means * deviation ** (power - 1) * 2 ** ((power + 1) / 2) * math.gamma(power / 2 + 1) / math.sqrt(math.pi)
    first = np.where(far, _powered(means, power), first * hyp1f1((1 - power) / 2, 1.5, -z))
    second = deviation ** (2 * power) * 2**power * math.gamma(power + 0.5) / math.sqrt(math.pi)
    second = second * hyp1f1(-power, 0.5, -z)
    size = np.where(far & (means != 0), np.abs(means), 1.0)
    tangent = (power * size ** (power - 1)) ** 2 * variances
    return first, np.where(far, tangent, np.maximum(second - first * first, 0.0))


def _powered(rows: NDArray[np.float64], power: float) -> NDArray[np.float64]:
    """Tukey's transform, keeping the sign."""
    moved: NDArray[np.float64] = np.sign(rows) * np.abs(rows) ** power
    return moved
