"""Alignments: how the space of images is brought to that of words, learnt on seen classes or on image-report pairs.

Every alignment is fitted to rows of images and, row by row, the semantic vector that belongs to each: the vector of the
image's class (then rows repeat), or that of its report. What comes out is a `LinearMap`, so that whatever was learnt
how, an answer is a cosine, costs two products and needs no torch.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Literal, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import ZeroShotError
from .linear_map import LinearMap, checked_rows, unit_rows

Direction = Literal["to-text", "to-image"]

COMPONENTS = 512
"""Directions of the image space that are kept where something is learnt from them: the strongest of those learnt on.
It costs nothing in accuracy, and makes vectors of thousands of numbers a matter of a second."""


class Alignment(Protocol):
    """What every alignment does."""

    map_: LinearMap

    def fit(self, images: ArrayLike, texts: ArrayLike) -> Alignment:
        """Learn from image vectors (n, p) and the semantic vector (n, d) of each; return itself."""


class RidgeAlignment:
    """A linear map by least squares with a penalty on its size, from images to words or from words to images.

    "to-image" predicts the image a text describes; it suffers less from hubs, texts that are near to every image
    (Shigeto et al. 2015, arXiv 1507.00825). "to-text" predicts the text of an image; with a penalty of next to nothing
    it is the plain linear map that papers compare with.

    Args:
        alpha: Penalty, as a share of the mean eigenvalue of what is predicted from; positive.
        direction: Which side is predicted.

    Attributes:
        map_: The map.

    Example:
        >>> images, texts = [[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], [[0.0, 2.0], [2.0, 0.0], [2.0, 2.0]]
        >>> int(RidgeAlignment().fit(images, texts).map_.scores([[1.0, 0.1]], [[0.0, 2.0], [2.0, 0.0]]).argmax())
        0
    """

    map_: LinearMap

    def __init__(self, *, alpha: float = 1.0, direction: Direction = "to-image") -> None:
        self.alpha = alpha
        self.direction = direction

    def fit(self, images: ArrayLike, texts: ArrayLike) -> RidgeAlignment:
        """Solve for the map in closed form.

        Raises:
            ZeroShotError: Rows that do not fit together, or an option that cannot be.
        """
        if self.direction not in ("to-text", "to-image"):
            raise ZeroShotError(f"direction must be 'to-text' or 'to-image'; got {self.direction!r}.")
        image_mean, text_mean, x, t = prepared(images, texts)
        if self.direction == "to-text":
            self.map_ = LinearMap(image_mean, text_mean, ridge(x, t, self.alpha), None)
        else:
            self.map_ = LinearMap(image_mean, text_mean, None, ridge(t, x, self.alpha))
        return self


class EszslAlignment:
    """The bilinear form of "An embarrassingly simple approach to zero-shot learning" (Romera-Paredes, Torr 2015).

    The score of image x and class s is x' V s, with V = (X'X + gamma I)^-1 X' Y S (S'S + lambda I)^-1, Y being 1 where
    a class is the image's and -1 where it is not.

    Args:
        gamma: Penalty on the image side, as a share of its mean eigenvalue; positive.
        lam: The same of the semantic side.
        balanced: Take each class's share of the images off its column of Y. As published (False) the -1 of many classes
            outweigh the 1 of the few images each has, and with a class per report little is learnt.

    Attributes:
        map_: The map.
    """

    map_: LinearMap

    def __init__(self, *, gamma: float = 1.0, lam: float = 1.0, balanced: bool = True) -> None:
        self.gamma = gamma
        self.lam = lam
        self.balanced = balanced

    def fit(self, images: ArrayLike, texts: ArrayLike) -> EszslAlignment:
        """Solve for V; rows of `texts` that are equal are one class.

        Raises:
            ZeroShotError: Rows that do not fit together, or fewer than two classes.
        """
        image_mean, text_mean, x, t = prepared(images, texts)
        x, directions = strongest(x)
        classes, codes = distinct(t)
        signs = np.where(np.arange(len(classes)) == codes[:, None], 1.0, -1.0)  # (n, c)
        if self.balanced:
            signs -= signs.mean(axis=0)
        left = _inverse_times(x.T @ x, x.T @ signs, self.gamma)  # (p, c)
        form = _inverse_times(classes.T @ classes, (left @ classes).T, self.lam).T  # (p, d)
        self.map_ = LinearMap(image_mean, text_mean, directions @ form, None)
        return self


class AleAlignment:
    """Attribute label embedding: a bilinear form that ranks an image's class above the others (Akata et al. 2016).

    Learnt by stochastic descent on the weighted approximate ranking loss: of a row's classes that score within the
    margin of its own, the cost is as if the own class's rank were what sampling says (Weston et al. 2011).

    Args:
        rate: Step of the descent; positive.
        margin: By how much the own class must lead.
        epochs: Passes over the rows.
        decay: Share of the form that is lost in each pass.
        seed: Of the order of rows and of the sampled classes.

    Attributes:
        map_: The map.
    """

    map_: LinearMap

    def __init__(
        self, *, rate: float = 0.05, margin: float = 0.1, epochs: int = 30, decay: float = 0.05, seed: int = 0
    ) -> None:
        self.rate = rate
        self.margin = margin
        self.epochs = epochs
        self.decay = decay
        self.seed = seed

    def fit(self, images: ArrayLike, texts: ArrayLike) -> AleAlignment:
        """Descend; rows of `texts` that are equal are one class.

        Raises:
            ZeroShotError: Rows that do not fit together, or fewer than two classes.
        """
        image_mean, text_mean, x, t = prepared(images, texts)
        x, directions = strongest(x)
        classes, codes = distinct(t)
        rng = np.random.default_rng(self.seed)
        harmonic = np.cumsum(1.0 / np.arange(1, len(classes) + 1))
        form = ridge(x, t, 1.0)  # (p, d); a start that already points the right way
        form /= max(float(np.linalg.norm(form)), 1e-12)
        for _ in range(self.epochs):
            for row in rng.permutation(len(x)).tolist():
                scores = (x[row] @ form) @ classes.T  # (c,)
                own = int(codes[row])
                violating = np.flatnonzero(scores + self.margin > scores[own])
                violating = violating[violating != own]
                if not len(violating):
                    continue
                # Drawing classes until one violates takes (c - 1) / violations draws on average.
                rank = min(len(violating), len(classes) - 1)
                other = int(violating[rng.integers(len(violating))])
                weight = self.rate * harmonic[rank - 1] / harmonic[-1]
                form += weight * np.outer(x[row], classes[own] - classes[other])
            form *= 1 - self.decay
        self.map_ = LinearMap(image_mean, text_mean, directions @ form, None)
        return self


class CcaAlignment:
    """Regularised canonical correlation: the directions in which images and words go together, strongest first.

    Used for images and text since Hardoon et al. 2004; directions are weighted by their correlation (Gong et al. 2014).

    Args:
        dim: Directions kept; fewer where there are not as many.
        alpha: Penalty on each side, as a share of its mean eigenvalue; positive.
        power: Exponent of the weights of the directions.

    Attributes:
        map_: The map.
    """

    map_: LinearMap

    def __init__(self, *, dim: int = 64, alpha: float = 3.0, power: float = 1.0) -> None:
        self.dim = dim
        self.alpha = alpha
        self.power = power

    def fit(self, images: ArrayLike, texts: ArrayLike) -> CcaAlignment:
        """Solve for the directions in closed form.

        Raises:
            ZeroShotError: Rows that do not fit together.
        """
        image_mean, text_mean, x, t = prepared(images, texts)
        x, directions = strongest(x)
        image_whitening, text_whitening = (_whitening(rows, self.alpha) for rows in (x, t))
        left, correlations, right = np.linalg.svd(image_whitening.T @ (x.T @ t) @ text_whitening, full_matrices=False)
        kept = min(int(self.dim), len(correlations))
        weights = np.clip(correlations[:kept], 0, None) ** float(self.power)
        self.map_ = LinearMap(
            image_mean,
            text_mean,
            directions @ (image_whitening @ left[:, :kept] * weights),
            text_whitening @ right[:kept].T * weights,
        )
        return self


ALIGNMENTS: dict[str, Callable[[], Alignment]] = {
    "ridge": RidgeAlignment,
    "ridge-to-text": lambda: RidgeAlignment(direction="to-text"),
    "cca": CcaAlignment,
    "eszsl": EszslAlignment,
    "ale": AleAlignment,
}
"""Name -> alignment with its usual options; those learnt by gradient are added by `make_alignment`."""


def alignment_names() -> tuple[str, ...]:
    """Return the names `make_alignment` knows."""
    return (*ALIGNMENTS, "contrastive")


def make_alignment(name: str) -> Alignment:
    """Make an alignment by name.

    Raises:
        ZeroShotError: There is none of this name.
    """
    if name == "contrastive":
        from .contrastive import ContrastiveAlignment

        return ContrastiveAlignment()
    if name not in ALIGNMENTS:
        close = difflib.get_close_matches(name, alignment_names(), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ZeroShotError(f"There is no alignment {name!r}; there are {', '.join(alignment_names())}.{hint}")
    return ALIGNMENTS[name]()


def prepared(
    images: ArrayLike, texts: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Check, centre and normalise both sides.

    Returns:
        Image mean (p,), text mean (d,), image rows (n, p) and text rows (n, d).

    Raises:
        ZeroShotError: They are not as many, or fewer than two.
    """
    x = checked_rows(images, None, "Image vectors", "")
    t = checked_rows(texts, None, "Text vectors", "")
    if len(x) != len(t) or len(x) < 2:
        raise ZeroShotError(
            f"An alignment is learnt from two or more images, each with its text; got {len(x)} images, {len(t)} texts."
        )
    image_mean, text_mean = x.mean(axis=0), t.mean(axis=0)
    return image_mean, text_mean, unit_rows(x - image_mean), unit_rows(t - text_mean)


def strongest(rows: NDArray[np.float64], count: int = COMPONENTS) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return rows (n, k) along their strongest directions, and these (p, k); all of them where there are few."""
    if rows.shape[1] <= count:
        return rows, np.eye(rows.shape[1])
    _, _, right = np.linalg.svd(rows, full_matrices=False)
    directions = np.asarray(right[:count].T)
    return rows @ directions, directions


def ridge(predictors: NDArray[np.float64], targets: NDArray[np.float64], alpha: float) -> NDArray[np.float64]:
    """Return the weights (p, d) of least squares with a penalty.

    Raises:
        ZeroShotError: The penalty is not positive.
    """
    return _inverse_times(predictors.T @ predictors, predictors.T @ targets, alpha)


def distinct(texts: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
    """Return the distinct rows (c, d), and which of them each row (n,) is.

    Raises:
        ZeroShotError: There is one only.
    """
    classes, codes = np.unique(texts, axis=0, return_inverse=True)
    if len(classes) < 2:
        raise ZeroShotError("This alignment learns to tell classes apart; all texts are the same.")
    return classes, codes.ravel()


def _inverse_times(gram: NDArray[np.float64], right: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
    """Return (gram + penalty * mean eigenvalue * I)^-1 right."""
    if not (np.isfinite(penalty) and penalty > 0):
        raise ZeroShotError(f"A penalty must be a positive number; got {penalty!r}.")
    scale = max(float(np.trace(gram)) / len(gram), 1e-12)
    return np.asarray(np.linalg.solve(gram + penalty * scale * np.eye(len(gram)), right), dtype=np.float64)


def _whitening(rows: NDArray[np.float64], penalty: float) -> NDArray[np.float64]:
    """Return the (p, p) matrix that makes the penalised covariance of rows the identity."""
    if not (np.isfinite(penalty) and penalty > 0):
        raise ZeroShotError(f"A penalty must be a positive number; got {penalty!r}.")
    values, directions = np.linalg.eigh(rows.T @ rows)
    kept = np.asarray(np.clip(values, 0, None))
    return np.asarray(directions / np.sqrt(kept + penalty * max(float(kept.mean()), 1e-12)), dtype=np.float64)
