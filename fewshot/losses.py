"""The prototypical loss (Snell, Swersky, Zemel 2017, arXiv 1703.05175, algorithm 1), for unequal episodes too."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

#: Temperature of the cosine form: similarities in [-1, 1] are divided by it, so that a soft maximum can become sharp.
COSINE_TEMPERATURE = 0.1


def squared_distances(queries: Tensor, others: Tensor) -> Tensor:
    """Squared Euclidean distance of every query to every other row; smaller is closer.

    Args:
        queries: (m, d).
        others: (n, d).

    Returns:
        (m, n), never negative.
    """
    cross = queries @ others.T  # (m, n)
    return (queries.square().sum(1)[:, None] + others.square().sum(1)[None, :] - 2 * cross).clamp_min(0)


def class_means(vectors: Tensor, targets: Tensor, n_way: int) -> Tensor:
    """Mean vector of each class.

    Args:
        vectors: (n, d).
        targets: int64 (n,), class positions 0 .. n_way - 1, each present.
        n_way: Number of classes.

    Returns:
        (n_way, d), the prototypes.
    """
    sums = vectors.new_zeros(n_way, vectors.shape[1]).index_add(0, targets, vectors)
    counts = torch.bincount(targets, minlength=n_way).to(vectors.dtype)
    return sums / counts[:, None]


def prototypical_logits(
    support: Tensor,
    targets: Tensor,
    queries: Tensor,
    *,
    n_way: int,
    metric: str = "euclidean",
    temperature: float | None = None,
) -> Tensor:
    """Log-odds of each class for each query.

    Args:
        support: (n, d) support vectors.
        targets: int64 (n,), their class positions.
        queries: (m, d).
        n_way: Number of classes.
        metric: "euclidean" (negative squared distance) or "cosine".
        temperature: What similarities are divided by; None is 1 for squared distances, as in the paper, and
            `COSINE_TEMPERATURE` for the cosine. Long vectors need more than 1, or the first losses are in the dozens.

    Returns:
        (m, n_way).
    """
    if metric == "cosine":
        prototypes = functional.normalize(class_means(functional.normalize(support), targets, n_way))
        return (
            functional.normalize(queries) @ prototypes.T / (COSINE_TEMPERATURE if temperature is None else temperature)
        )
    if metric == "euclidean":
        return -squared_distances(queries, class_means(support, targets, n_way)) / (temperature or 1.0)
    raise ValueError(f"metric must be 'cosine' or 'euclidean'; got {metric!r}.")


def prototypical_loss(
    support: Tensor,
    targets: Tensor,
    queries: Tensor,
    query_targets: Tensor,
    *,
    n_way: int,
    metric: str = "euclidean",
    temperature: float | None = None,
) -> Tensor:
    """Mean negative log-likelihood of the queries' classes under a soft maximum over similarities to the prototypes.

    Args:
        support: (n, d) support vectors of one episode.
        targets: int64 (n,), their class positions.
        queries: (m, d) query vectors.
        query_targets: int64 (m,).
        n_way: Number of classes in the episode.
        metric: "euclidean" or "cosine".
        temperature: As for `prototypical_logits`.

    Returns:
        A scalar.
    """
    logits = prototypical_logits(support, targets, queries, n_way=n_way, metric=metric, temperature=temperature)
    return functional.cross_entropy(logits, query_targets)
