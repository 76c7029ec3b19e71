"""Linear heads: logistic regression (Chen et al. 2019, arXiv 1904.04232) and ridge regression in closed form (R2-D2).

R2-D2 is Bertinetto, Henriques, Torr, Vedaldi 2019, arXiv 1805.08136.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .class_scores import ClassScores
from .prototypes import DEFAULT_EVIDENCE
from .span import Span, balanced_weights, positive, row_products
from .support import Metric, Support, check_center, prepare

#: Largest gradient of the logistic loss that counts as none.
TOLERANCE = 1e-6
#: Weights up to which Newton's method solves a logistic regression, in a few steps whose price grows with the cube of
#: their number. Above, L-BFGS takes tens of cheap ones.
NEWTON_WEIGHTS = 200
#: Above this product of C and the mean squared length the penalty is next to none, and Newton's equations may be
#: singular; L-BFGS solves no equations.
NEWTON_STRENGTH = 1e3
#: Steps after which scikit-learn warns that a logistic regression is unfinished; tens are usual.
MOST_STEPS = 10_000


class LinearScores(ClassScores):
    """A head whose score of a class is coef_ @ x + intercept_, x being the query centred and brought to unit length.

    Attributes:
        coef_: float64 (n_classes, d).
        intercept_: float64 (n_classes,).
    """

    center: ArrayLike | None
    normalize: bool
    coef_: NDArray[np.float64]
    intercept_: NDArray[np.float64]

    def _prepared(self, support: Support) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Support rows (n, d) as the head takes them, and the centre (d,)."""
        self._decides_by: Metric = "cosine" if self.normalize else "euclidean"  # here it depends on the options
        center = check_center(self.center, support.vectors.shape[1])
        return prepare(support.vectors, self._decides_by, center), center

    def _compare(self, queries: NDArray[np.float32]) -> NDArray[np.float64]:
        prepared = prepare(queries, self._decides_by, self._center)
        return row_products(prepared, self.coef_) + self.intercept_


class LinearProbe(LinearScores):
    """Multinomial logistic regression on support vectors, by scikit-learn.

    Classes weigh the same however many patients they have, and the patients of a class weigh the same however many
    images they have. With one image per patient this is `LogisticRegression(C=C, class_weight="balanced")`.

    A score is a log-odds: for two classes minus and plus half of it, otherwise such that exp(score) is proportional to
    what the regression calls a probability. Over a handful of images that is no calibrated probability, and is not
    offered as one. With a single class every score is 0 and that class the answer.

    Args:
        C: How far the support is trusted: the loss, summed over patients, counts C times against half the squared
            length of the weights. Small values approach the nearest class mean.
        normalize: Bring rows to unit length once centred. Vectors of one encoder differ in length by an order of
            magnitude for reasons such as contrast; without this, one C suits few of them.
        center: (d,) mean of the **source** domain to subtract first, usually `encoder.source_mean`; None subtracts
            nothing. The target's own mean would make the answer transductive.
        n_evidence: Support images named per decision for the winner, and for the runner-up.

    Attributes:
        classes_: The labels, sorted, as the caller gave them.
        coef_: float64 (n_classes, d), on rows centred and of unit length.
        intercept_: float64 (n_classes,).

    Example:
        >>> clf = LinearProbe().fit([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], ["a", "a", "b"])
        >>> clf.predict([[0.8, 0.3], [0.1, 0.7]]).tolist()
        ['a', 'b']
    """

    def __init__(
        self,
        C: float = 30.0,
        *,
        normalize: bool = True,
        center: ArrayLike | None = None,
        n_evidence: int = DEFAULT_EVIDENCE,
    ) -> None:
        self.C = C
        self.normalize = normalize
        self.center = center
        self.n_evidence = n_evidence

    def _learn(self, support: Support) -> NDArray[np.float64]:
        strength = positive(self.C, "C")
        rows, center = self._prepared(support)
        if len(support.classes) == 1:
            self.coef_, self.intercept_ = np.zeros((1, rows.shape[1])), np.zeros(1)
            return center
        from sklearn.linear_model import LogisticRegression  # a second to import, and most heads do without

        span = Span.of(rows)  # exact, see there; 25 images of 1,024 dimensions are ten times faster for it
        # Rows s times shorter, weights s times longer, their penalty s^2 times dearer: the same problem, only that the
        # solver need not find weights and intercepts on two scales.
        scale = float(np.sqrt((rows * rows).sum(axis=1).mean())) or 1.0
        strength *= scale * scale
        few = span.coordinates.shape[1] * len(support.classes) <= NEWTON_WEIGHTS
        solver = "newton-cholesky" if few and strength <= NEWTON_STRENGTH else "lbfgs"
        model = LogisticRegression(C=strength, solver=solver, tol=TOLERANCE, max_iter=MOST_STEPS)
        model.fit(span.coordinates / scale, support.targets, sample_weight=balanced_weights(support))
        coef, intercept = span.back(model.coef_) / scale, model.intercept_
        if len(coef) == 1:  # two classes have one log-odds: half of it for the second, half against the first
            coef, intercept = np.concatenate([-coef, coef]) / 2, np.concatenate([-intercept, intercept]) / 2
        self.coef_, self.intercept_ = coef, intercept
        return center


class RidgeClassifier(LinearScores):
    """Least squares onto one column of 0 and 1 per class, with a penalty on the weights, in closed form.

    It minimises the sum over support images of weight * |coef_ @ x + intercept_ - target|^2 plus penalty * |coef_|^2,
    where each class weighs the same, each patient of a class too, and the weights add up to the number of patients.
    Where there are fewer images than dimensions, n x n equations are solved and not d x d, as in the paper. The paper
    learns the penalty, and a scale and an offset for all scores, with its encoder; here the penalty is an option, and
    each class has an intercept, which is fitted without penalty.

    A query's scores add up to 1; they are no probabilities. With a single class every score is 1.

    Args:
        penalty: Of the weights' squared length. Large values approach the nearest class mean: the weights shrink, but
            their ranking becomes that of the means.
        normalize: Bring rows to unit length once centred, so that one penalty suits the vectors of any encoder. Where
            False, lengths are kept, as raw pixels want it, and the penalty counts in units of the support's mean
            squared distance from its own mean, to the same end.
        center: (d,) mean of the **source** domain to subtract first, usually `encoder.source_mean`; None subtracts
            nothing.
        n_evidence: Support images named per decision for the winner, and for the runner-up.

    Attributes:
        classes_: The labels, sorted, as the caller gave them.
        coef_: float64 (n_classes, d), on rows centred and of unit length.
        intercept_: float64 (n_classes,).

    Example:
        >>> clf = RidgeClassifier().fit([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]], ["a", "a", "b"])
        >>> clf.predict([[0.8, 0.3], [0.1, 0.7]]).tolist()
        ['a', 'b']
    """

    def __init__(
        self,
        penalty: float = 0.3,
        *,
        normalize: bool = True,
        center: ArrayLike | None = None,
        n_evidence: int = DEFAULT_EVIDENCE,
    ) -> None:
        self.penalty = penalty
        self.normalize = normalize
        self.center = center
        self.n_evidence = n_evidence

    def _learn(self, support: Support) -> NDArray[np.float64]:
        penalty = positive(self.penalty, "penalty")
        rows, center = self._prepared(support)
        n, dim = rows.shape
        weights = balanced_weights(support)[:, None]
        targets = np.eye(len(support.classes))[support.targets]  # (n, n_classes)
        # Without penalty of its own, the intercept makes the fit pass through the weighted means.
        mean, share = (weights * rows).sum(axis=0) / weights.sum(), (weights * targets).sum(axis=0) / weights.sum()
        x, y = np.sqrt(weights) * (rows - mean), np.sqrt(weights) * (targets - share)
        if not self.normalize:
            penalty *= float((x * x).sum() / weights.sum()) or 1.0  # of equal rows, nothing can be learnt
        if n < dim:  # (X'X + p)^-1 X'y = X' (XX' + p)^-1 y
            coef = np.linalg.solve(x @ x.T + penalty * np.eye(n), y).T @ x
        else:
            coef = np.linalg.solve(x.T @ x + penalty * np.eye(dim), x.T @ y).T
        self.coef_ = np.ascontiguousarray(coef)
        self.intercept_ = share - self.coef_ @ mean
        return center
