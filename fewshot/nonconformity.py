"""How badly an image fits a class: what conformal prediction ranks patients by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .calibration_rows import softmax

#: Ways to measure how badly an image fits a class.
NONCONFORMITIES = ("margin", "probability", "distance")


def nonconformities(
    scores: NDArray[np.float64], kind: str = "margin", *, temperature: float | None = None
) -> NDArray[np.float64]:
    """How badly each image fits each class; larger is worse.

    Whatever is chosen must treat calibration patients and the query alike. A temperature fitted to the calibration
    patients does not (they were fitted to, the query was not), and refitting it with each query under each class
    would be slow; so "margin", which has no parameter, is the default, and "probability" takes a temperature
    that is fixed beforehand, for instance one fitted to the support's held-out scores when the calibration patients
    are others.

    Args:
        scores: (m, n_classes); -inf for a class the head does not know.
        kind: "margin", best other class's score minus this one's; "probability", 1 minus the softmax (Sadinle, Lei and
            Wasserman 2019, arXiv 1609.00451: the smallest sets where probabilities are right); "distance", minus the
            class's own score, which alone can reject every class at once.
        temperature: For "probability" only.

    Returns:
        float64 (m, n_classes); +inf for a class the head does not know ("probability": 1), NaN where the scores are.

    Raises:
        ValueError: An unknown kind, a temperature missing or not asked for, "margin" with a single class.
    """
    if kind not in NONCONFORMITIES:
        raise ValueError(f"nonconformity must be one of {', '.join(NONCONFORMITIES)}; got {kind!r}.")
    if kind == "probability":
        if temperature is None or not 0 < temperature < np.inf:
            raise ValueError(f"The nonconformity 'probability' needs a temperature above 0; got {temperature!r}.")
        return 1 - softmax(scores, temperature)
    if temperature is not None:
        raise ValueError(f"Only the nonconformity 'probability' takes a temperature; got one for {kind!r}.")
    if kind == "distance":
        return -scores
    if scores.shape[1] == 1:
        raise ValueError("With a single class there is no margin: use the nonconformity 'distance'.")
    ordered = np.sort(scores, axis=1)
    best, second = ordered[:, -1:], ordered[:, -2:-1]
    is_best = np.arange(scores.shape[1]) == scores.argmax(axis=1)[:, None]
    other = np.where(is_best, second, best)  # (m, n_classes), best score of another class
    unknown = np.isneginf(scores)
    return np.where(unknown, np.inf, other - np.where(unknown, 0.0, scores))
