"""Finding images by a sentence and sentences by an image: recall at k, where several answers may be right."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from episodes import patient_bootstrap

from .errors import ZeroShotError
from .generalized import Interval
from .linear_map import checked_rows


@dataclass(frozen=True)
class RetrievalReport:
    """Recall at k both ways.

    Attributes:
        text_to_image: k -> share of texts with a right image among the k most similar.
        image_to_text: k -> share of images with a right text among the k most similar.
        images: How many there are.
        texts: How many distinct ones there are.
    """

    text_to_image: dict[int, Interval]
    image_to_text: dict[int, Interval]
    images: int
    texts: int


def retrieval(
    scores: ArrayLike,
    texts: Sequence[str],
    *,
    groups: Sequence[Hashable],
    ks: Sequence[int] = (1, 5, 10),
    seed: int = 0,
) -> RetrievalReport:
    """Measure retrieval; any image of the same case, or with the same text, is a hit.

    Args:
        scores: (n, n) of images (rows) and their texts (columns), larger is closer.
        texts: The n texts; equal ones are one candidate.
        groups: n cases.
        ks: How many answers are looked at.
        seed: Of the bootstrap over cases.

    Raises:
        ZeroShotError: Lists that do not fit.
    """
    n = len(texts)
    table = checked_rows(scores, n, "Scores", "of the texts")
    if len(table) != n or len(groups) != n or n < 2:
        raise ZeroShotError(f"Retrieval takes as many images as texts and cases; got {table.shape} and {len(groups)}.")
    if any(k < 1 for k in ks):
        raise ZeroShotError(f"Recall is at k of 1 or more; got {min(ks)}.")
    case = _codes(groups)
    text = _codes([entry.strip() for entry in texts])
    distinct = np.unique(text, return_index=True)[1]  # one column per distinct text
    same_case = case[:, None] == case[None, :]
    carried = np.stack([text == code for code in range(len(distinct))])  # text x image
    right = (same_case.astype(np.float64) @ carried.T > 0) | carried.T  # image x text: of its case, or its own
    to_image, to_text = {}, {}
    for k in ks:
        best = np.argsort(-table[:, distinct], axis=0, kind="stable")[:k]  # (k, texts): images per text
        hit = np.asarray(np.take_along_axis(right, best, axis=0).any(axis=0))
        to_image[k] = _interval(hit, case[distinct], seed)
        best = np.argsort(-table[:, distinct], axis=1, kind="stable")[:, :k]
        hit = np.asarray(np.take_along_axis(right, best, axis=1).any(axis=1))
        to_text[k] = _interval(hit, case, seed)
    return RetrievalReport(to_image, to_text, n, len(distinct))


def _interval(hits: NDArray[np.bool_], groups: NDArray[np.intp], seed: int) -> Interval:
    found = patient_bootstrap(hits, np.zeros(len(hits), dtype=np.intp), groups, seed=seed)
    return Interval(found.estimate, found.low, found.high)


def _codes(values: Sequence[Hashable]) -> NDArray[np.intp]:
    first: dict[Hashable, int] = {}
    return np.array([first.setdefault(value, len(first)) for value in values], dtype=np.intp)
