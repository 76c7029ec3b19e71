"""One answer per study: what several images of one study say, put together.

Scores are averaged or the best is taken, probabilities are averaged (the linear pool: Stone 1961, Genest and Zidek
1986), and p-values, which are not independent within a study, become twice their mean, which is a p-value again
whatever their dependence (Vovk and Wang 2020, arXiv 1212.4966).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from episodes import Decision, Neighbor

from .head import Head
from .support import as_label, as_vectors, is_missing

#: How scores of several images are put together.
POOLING = ("mean", "max")
#: How far the probabilities of an image may be from adding up to 1.
PROBABILITY_TOLERANCE = 1e-6


def study_names(studies: Sequence[Hashable]) -> list[Hashable]:
    """The distinct studies in order of first appearance: what the rows of pooled arrays stand for."""
    missing = [i for i, study in enumerate(studies) if is_missing(study)]
    if missing:
        raise ValueError(f"Every image needs a study; images {missing[:5]} have None or NaN.")
    return [as_label(study) for study in dict.fromkeys(studies)]


def pool_scores(
    scores: ArrayLike, studies: Sequence[Hashable], *, how: str = "mean", views: Sequence[Hashable] | None = None
) -> NDArray[np.float64]:
    """Class scores of each study.

    Args:
        scores: (m, n_classes) scores of images; larger is likelier. A row that holds NaN is left out.
        studies: The study of each image.
        how: "mean", or "max": the best image of the study for each class.
        views: The view of each image (frontal, lateral ...): images of one view of a study share a weight of 1. None:
            each image counts.

    Returns:
        (n_studies, n_classes) in order of first appearance, NaN throughout where every image was left out. The order
        of a study's images changes no bit.

    Raises:
        ValueError: An unknown `how`, lists of unequal length, a missing study.

    Example:
        >>> pool_scores([[0.2, 0.4], [0.5, 0.1], [0.4, 0.6]], ["s", "t", "s"]).round(3).tolist()
        [[0.3, 0.5], [0.5, 0.1]]
    """
    if how not in POOLING:
        raise ValueError(f"how must be {' or '.join(map(repr, POOLING))}; got {how!r}.")
    rows, members = _rows_of(scores, studies, views)
    pooled = np.full((len(members), rows.shape[1]), np.nan)
    for study, own in enumerate(members):
        if not own:
            continue
        if how == "max":
            pooled[study] = rows[own].max(axis=0)
            continue
        seen: list[Hashable] = list(own) if views is None else [views[i] for i in own]
        times = Counter(seen)
        weights = [1 / times[view] for view in seen]
        total = math.fsum(weights)
        for column in range(rows.shape[1]):  # an exact sum, so that the order of the images changes no bit
            parts = [w * value for w, value in zip(weights, rows[own, column].tolist(), strict=True)]
            pooled[study, column] = math.fsum(parts) / total
    return pooled


def pool_probabilities(
    probabilities: ArrayLike, studies: Sequence[Hashable], *, views: Sequence[Hashable] | None = None
) -> NDArray[np.float64]:
    """Class probabilities of each study: the mean over its images (linear pooling).

    Args:
        probabilities: (m, n_classes), each row adding up to 1. A row that holds NaN is left out.
        studies: The study of each image.
        views: As for `pool_scores`.

    Returns:
        (n_studies, n_classes) in order of first appearance, NaN throughout where every image was left out.

    Raises:
        ValueError: Numbers that are no probabilities, lists of unequal length, a missing study.
    """
    rows, _ = _rows_of(probabilities, studies, views)
    rows = rows[~np.isnan(rows).any(axis=1)]
    wrong = (rows < 0).any(axis=1) | (abs(rows.sum(axis=1) - 1) > PROBABILITY_TOLERANCE)
    if wrong.any():
        raise ValueError(
            f"An image's probabilities lie between 0 and 1 and add up to 1; got {rows[wrong][0].round(4).tolist()}."
        )
    return pool_scores(probabilities, studies, views=views)


def pool_p_values(
    p_values: ArrayLike, studies: Sequence[Hashable], *, views: Sequence[Hashable] | None = None
) -> NDArray[np.float64]:
    """p-values of each study for each class: twice the mean over its images, at most 1; of one image, its own.

    Twice a (weighted) mean of p-values is a p-value however they depend on one another (Vovk and Wang 2020, arXiv
    1212.4966), so that a conformal set of a study keeps its coverage, where a study's images are each valid by
    themselves. It is cautious: images that agree entirely get twice what each of them says.

    Args:
        p_values: (m, n_classes) in [0, 1]. A row that holds NaN is left out.
        studies: The study of each image.
        views: As for `pool_scores`.

    Returns:
        (n_studies, n_classes) in order of first appearance, NaN throughout where every image was left out.

    Raises:
        ValueError: Numbers outside [0, 1], lists of unequal length, a missing study.
    """
    rows, members = _rows_of(p_values, studies, views)
    if ((rows < 0) | (rows > 1)).any():
        raise ValueError(f"p-values lie between 0 and 1; got {float(rows[(rows < 0) | (rows > 1)][0])}.")
    factor = np.array([2.0 if len(own) > 1 else 1.0 for own in members])
    pooled: NDArray[np.float64] = np.minimum(1.0, factor[:, None] * pool_scores(p_values, studies, views=views))
    return pooled


def decide_studies(
    head: Head,
    vectors: ArrayLike,
    studies: Sequence[Hashable],
    *,
    how: str = "mean",
    views: Sequence[Hashable] | None = None,
    ids: Sequence[str] | None = None,
) -> list[Decision]:
    """One answer per study from the scores of all its images.

    Args:
        head: A fitted head.
        vectors: (m, d) images asked about.
        studies: The study of each image.
        how: As for `pool_scores`.
        views: As for `pool_scores`.
        ids: What to call the images where nothing can be decided about them; positions where absent.

    Returns:
        A decision per study, in order of first appearance (`study_names`). Score and margin are those of the pooled
        scores. The evidence is that of the images, each support image once with its best similarity; of an image that
        decides otherwise by itself, what it holds for the study's classes. Images nothing can be decided about are
        left out; where all are, there is no label but a reason.

    Raises:
        ValueError: As for `pool_scores`.
    """
    rows = as_vectors(vectors, "Query vectors")
    names = study_names(studies)
    if ids is not None and len(ids) != len(rows):
        raise ValueError(f"{len(rows)} images need {len(rows)} ids; got {len(ids)}.")
    if not len(rows) and not names:
        return []
    scores = head.scores(rows)
    pooled = pool_scores(scores, studies, how=how, views=views)
    answers = head.decide(rows)
    called = [str(i) for i in range(len(rows))] if ids is None else list(ids)
    decisions = []
    for study, name in enumerate(names):
        own = [i for i, other in enumerate(studies) if other == name]
        if np.isnan(pooled[study]).any():
            why = answers[own[0]].reason or "Nothing can be decided about it."
            reason = (
                f"Nothing can be decided about any image of study {name!r} ({', '.join(called[i] for i in own)}): {why}"
            )
            decisions.append(Decision(label=None, probability=None, score=None, margin=None, reason=reason))
            continue
        order = np.argsort(-pooled[study], kind="stable")
        labels = [as_label(head.classes_[i]) for i in order[:2].tolist()]
        parts = [answers[i] for i in own]
        decisions.append(
            Decision(
                label=labels[0],
                probability=None,
                score=float(pooled[study, order[0]]),
                margin=float(pooled[study, order[0]] - pooled[study, order[1]]) if len(labels) > 1 else None,
                evidence=_merged(parts, labels[0]),
                runner_up=labels[1] if len(labels) > 1 else None,
                counter_evidence=_merged(parts, labels[1]) if len(labels) > 1 else (),
            )
        )
    return decisions


def _merged(answers: Sequence[Decision], label: Hashable) -> tuple[Neighbor, ...]:
    """The images' evidence for a class, most similar first; as many as the image with the most has."""
    best: dict[str, Neighbor] = {}
    most = 0
    for answer in answers:
        own = [n for n in (*answer.evidence, *answer.counter_evidence) if n.label == label]
        most = max(most, len(own))
        for neighbour in own:
            if neighbour.id not in best or neighbour.similarity > best[neighbour.id].similarity:
                best[neighbour.id] = neighbour
    return tuple(sorted(best.values(), key=lambda n: (-n.similarity, n.id))[:most])


def _rows_of(
    values: ArrayLike, studies: Sequence[Hashable], views: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], list[list[int]]]:
    """Checked rows (m, n_classes), and for each study the images that can be used."""
    rows = np.asarray(values, dtype=np.float64)
    if rows.ndim != 2:
        raise ValueError(f"One row per image and one column per class are needed; got an array of shape {rows.shape}.")
    for name, given in (("studies", studies), ("views", views)):
        if given is not None and len(given) != len(rows):
            raise ValueError(f"{len(rows)} images need {len(rows)} {name}; got {len(given)}.")
    position = {name: i for i, name in enumerate(study_names(studies))}
    members: list[list[int]] = [[] for _ in position]
    for i in np.flatnonzero(~np.isnan(rows).any(axis=1)).tolist():
        members[position[as_label(studies[i])]].append(i)
    return rows, members
