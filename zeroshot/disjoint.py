"""What words would be worth for classes never seen: alignments fitted without some classes, asked about just those."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .alignment import RidgeAlignment
from .errors import ZeroShotError
from .generalized import CLASS_FOLDS, deal
from .linear_map import checked_rows
from .semantics import SemanticSpace


def class_disjoint_priors(
    images: ArrayLike,
    texts: ArrayLike,
    labels: Sequence[Hashable],
    space: SemanticSpace,
) -> dict[str, tuple[tuple[str, ...], NDArray[np.float32]]]:
    """Predict where each class's images lie by maps that never saw an image of it.

    Args:
        images: (n, p) vectors of images of the classes of the space; others take part as images to learn from.
        texts: (n, d) text vector of each; a row of zeros is an image without text.
        labels: n classes.
        space: Descriptions of the classes, with their sentences.

    Returns:
        Class -> its sentences and the unit vector (p,) each predicts in the image space: what
        `fewshot.learn_prior_shots` takes as `ClassPrior`. The space is centred on the images the map saw, which without
        one part of the classes is nearly the mean of all.

    Raises:
        ZeroShotError: Fewer than two classes of the space have images.
    """
    rows = checked_rows(images, None, "Image vectors", "")
    words = checked_rows(texts, space.vectors.shape[1], "Text vectors", "of the space")
    told = np.linalg.norm(words, axis=1) > 0
    named = np.array([str(label) for label in labels], dtype=object)
    classes = [name for name in space.classes if (named == name).any()]
    if len(classes) < 2:
        raise ZeroShotError(f"Leaving classes out takes two that have images; got {len(classes)}.")
    part = deal(space.rows(classes), min(CLASS_FOLDS, len(classes)))
    found: dict[str, tuple[tuple[str, ...], NDArray[np.float32]]] = {}
    for number in range(int(part.max()) + 1):
        away = [name for name, own in zip(classes, part.tolist(), strict=True) if own == number]
        kept = told & ~np.isin(named, away)
        if kept.sum() < 2:
            continue
        learnt = RidgeAlignment().fit(rows[kept], words[kept]).map_
        for name in away:
            found[name] = (space.phrases[name], learnt.texts(space.phrase_vectors[name]).astype(np.float32))
    return found
