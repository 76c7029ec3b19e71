"""Occlusion sensitivity: what a score loses when a patch of the image is covered (Zeiler & Fergus 2014).

The paper is arXiv 1311.2901. It needs nothing but scores, so it goes with every encoder and every head.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

#: Side of the covering patch, as a share of the image's longer side.
DEFAULT_PATCH = 0.2
#: Patches start half a patch apart, so that each pixel is covered about four times.
STEPS_PER_PATCH = 2
#: Copies scored at once.
BATCH = 32


def occlusion_map(
    score: Callable[[NDArray[np.float32]], NDArray[np.float64]],
    image: NDArray[np.float32],
    content: tuple[slice, slice],
    *,
    patch: float = DEFAULT_PATCH,
) -> NDArray[np.float32]:
    """Cover each part of an image in turn with the image's mean, and see what the score loses.

    Args:
        score: From images (n, C, H, W) to n scores; NaN counts as a score of 0.
        image: (C, H, W), as the encoder loads it.
        content: Rows and columns that show image; filling is neither covered nor part of the mean.
        patch: Side of the patch as a share of the content's longer side.

    Returns:
        float32 (H, W): mean loss over the patches that cover a pixel; negative where covering raised the score, 0
        outside the content.

    Raises:
        ValueError: A patch that is no share of the image.
    """
    if not 0 < patch <= 1:
        raise ValueError(f"patch must be a share of the image's side, above 0 and at most 1; got {patch}.")
    rows, columns = content
    side = patch_side(content, patch)
    step = max(1, side // STEPS_PER_PATCH)
    windows = [(top, left) for top in _cuts(rows, side, step) for left in _cuts(columns, side, step)]
    mean = image[:, rows, columns].mean(axis=(1, 2), keepdims=True)  # (C, 1, 1)
    whole = float(np.nan_to_num(score(image[None]))[0])
    lost = np.zeros(image.shape[1:])
    covered = np.zeros(image.shape[1:])
    for start in range(0, len(windows), BATCH):
        block = windows[start : start + BATCH]
        copies = np.repeat(image[None], len(block), axis=0)
        for copy, (top, left) in zip(copies, block, strict=True):
            copy[:, top, left] = mean
        for loss, (top, left) in zip(whole - np.nan_to_num(score(copies)), block, strict=True):
            lost[top, left] += loss
            covered[top, left] += 1
    return np.divide(lost, covered, out=np.zeros_like(lost), where=covered > 0).astype(np.float32)


def patch_side(content: tuple[slice, slice], patch: float = DEFAULT_PATCH) -> int:
    """Side in pixels of a patch that is a share of the content's longer side."""
    longer = max(int(part.stop - part.start) for part in content)
    return max(1, round(patch * longer))


def rank_agreement(
    one: NDArray[np.float32], two: NDArray[np.float32], content: tuple[slice, slice], *, cell: int
) -> float | None:
    """Spearman's rank correlation of two maps, over the means of cells.

    Both maps are smooth over about a patch, so single pixels would be counted many times over. Only what speaks for
    the answer is compared: values below 0 count as 0.

    Args:
        one: (H, W).
        two: (H, W).
        content: Rows and columns to compare.
        cell: Side of a cell in pixels.

    Returns:
        From -1 to 1; None where one of the maps is the same everywhere.
    """
    ranks = []
    for values in (one, two):
        part = np.maximum(values[content], 0)
        down, across = (np.arange(0, length, cell) for length in part.shape)
        sums = np.add.reduceat(np.add.reduceat(part.astype(np.float64), down, axis=0), across, axis=1)
        pixels = np.outer(np.diff([*down, part.shape[0]]), np.diff([*across, part.shape[1]]))
        means = (sums / pixels).ravel()
        if means.max() - means.min() <= 1e-6 * means.max():
            return None
        ranks.append(rankdata(means))
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def _cuts(part: slice, side: int, step: int) -> list[slice]:
    """Where patches lie along one side: those at the ends reach over, so that the border is covered as often."""
    starts = range(part.start - side + step, part.stop, step)
    return [slice(max(part.start, start), min(part.stop, start + side)) for start in starts]
