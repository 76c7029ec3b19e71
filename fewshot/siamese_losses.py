"""Losses of the Siamese network: Koch's logistic regression on pairs, and five of metric learning.

The five are pytorch-metric-learning's, with the distances and the constants of their papers.
"""

from __future__ import annotations

from typing import Any

import torch
from pytorch_metric_learning import distances, losses, miners, reducers
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from .training_config import TrainingError

#: Euclidean distance of unit vectors from which two classes are far enough apart: a cosine of 0.5.
CONTRASTIVE_MARGIN = 1.0
#: Images of one class closer than this (a cosine above 0.98) are near enough: mining leaves them alone, so that a class
#: need not become a point.
CONTRASTIVE_NEAR = 0.2
#: By how much the squared distance to another class must exceed that to the own (FaceNet, section 3.1).
TRIPLET_MARGIN = 0.2
#: What cosines are divided by (SupCon, section 4).
SUPCON_TEMPERATURE = 0.1
#: Alpha, beta and lambda of the multi-similarity loss: as in the authors' code; their paper has lambda = 1, which
#: leaves other classes alone until they nearly coincide with the anchor.
MULTI_SIMILARITY_ALPHA, MULTI_SIMILARITY_BETA, MULTI_SIMILARITY_BASE = 2.0, 50.0, 0.5
#: How much harder than the easiest rival a pair may be and still count (the multi-similarity paper's epsilon).
MULTI_SIMILARITY_EPSILON = 0.1
#: Alpha and delta of the proxy-anchor loss (its section 4.2).
PROXY_ALPHA, PROXY_MARGIN = 32.0, 0.1

#: Differences held at once, so that (rows, n, d) stays near 64 MB; further blocks are computed anew going backward.
PAIR_ELEMENTS = 16_000_000


class ContrastiveLoss(losses.ContrastiveLoss):  # type: ignore[misc]  # the library has no types
    """The contrastive loss as published: half the squared distance, half the squared shortfall from the margin.

    The published sum over pairs is taken as two means, one per kind of pair, added up.
    """

    def get_per_pair_loss(self, pair_dists: Tensor, pos_or_neg: str) -> Tensor:
        """Loss of each pair, (pairs,)."""
        hinge: Tensor = super().get_per_pair_loss(pair_dists, pos_or_neg)
        return hinge.square() / 2


class MetricLoss(nn.Module):
    """A loss of metric learning over a labelled batch.

    "contrastive" (Hadsell, Chopra, LeCun 2006, Euclidean distance), "triplet" (FaceNet, Schroff et al. 2015, arXiv
    1503.03832, squared Euclidean distance), "supcon" (Khosla et al. 2020, arXiv 2004.11362, equation 2),
    "multi-similarity" (Wang et al. 2019, arXiv 1904.06627) and "proxy-anchor" (Kim et al. 2020, arXiv 2003.13911), the
    last three by cosines; all on vectors brought to unit length.

    Args:
        name: One of these.
        dim: Length of the vectors.
        n_classes: Classes that may occur, each of which gets a proxy; only "proxy-anchor" asks.
        mining: Whether only pairs that still have something to teach count. "contrastive" takes pairs of one class
            beyond `CONTRASTIVE_NEAR` and of two within the margin; "triplet" semi-hard triplets, whose negative is
            further than the positive by less than the margin; "multi-similarity" pairs less similar than the nearest
            negative, or more than the furthest positive, give or take an epsilon. "supcon" and "proxy-anchor" weigh
            hard pairs by themselves and have no miner. Without mining all pairs or triplets count.
        temperature: Of "supcon"; None is `SUPCON_TEMPERATURE`.

    Raises:
        TrainingError: An unknown name, or proxies for an unknown number of classes.
    """

    def __init__(
        self,
        name: str,
        *,
        dim: int,
        n_classes: int | None = None,
        mining: bool = True,
        temperature: float | None = None,
    ) -> None:
        super().__init__()
        self.criterion: nn.Module
        miner: Any = None
        if name == "contrastive":
            metric = distances.LpDistance(normalize_embeddings=True, p=2)
            self.criterion = ContrastiveLoss(
                pos_margin=0.0, neg_margin=CONTRASTIVE_MARGIN, distance=metric, reducer=reducers.MeanReducer()
            )
            miner = miners.PairMarginMiner(CONTRASTIVE_NEAR, CONTRASTIVE_MARGIN, distance=metric)
        elif name == "triplet":
            metric = distances.LpDistance(normalize_embeddings=True, p=2, power=2)
            self.criterion = losses.TripletMarginLoss(
                margin=TRIPLET_MARGIN, distance=metric, reducer=reducers.MeanReducer()
            )
            miner = miners.TripletMarginMiner(TRIPLET_MARGIN, type_of_triplets="semihard", distance=metric)
        elif name == "supcon":
            self.criterion = losses.SupConLoss(SUPCON_TEMPERATURE if temperature is None else temperature)
        elif name == "multi-similarity":
            self.criterion = losses.MultiSimilarityLoss(
                MULTI_SIMILARITY_ALPHA, MULTI_SIMILARITY_BETA, MULTI_SIMILARITY_BASE
            )
            miner = miners.MultiSimilarityMiner(MULTI_SIMILARITY_EPSILON)
        elif name == "proxy-anchor":
            if n_classes is None:
                raise TrainingError("The loss 'proxy-anchor' keeps a proxy per class: n_classes must be given.")
            self.criterion = losses.ProxyAnchorLoss(n_classes, dim, margin=PROXY_MARGIN, alpha=PROXY_ALPHA)
        else:
            raise TrainingError(f"There is no metric loss {name!r}.")
        self.miner: nn.Module | None = miner if mining else None

    def forward(self, vectors: Tensor, labels: Tensor) -> Tensor:
        """Loss of a batch.

        Args:
            vectors: float32 (n, d), of any length.
            labels: int64 (n,), their classes.

        Returns:
            A scalar; 0, with a gradient of 0, where no pair is left to learn from.
        """
        mined = None if self.miner is None else self.miner(vectors, labels)
        loss: Tensor = self.criterion(vectors, labels, mined)
        return loss


def weighted_l1_logits(vectors: Tensor, others: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Log-odds that two vectors are of one class: sum_j weight_j |a_j - b_j| + bias, both brought to unit length.

    Args:
        vectors: (m, d).
        others: (n, d).
        weight: (d,).
        bias: (1,).

    Returns:
        (m, n).
    """
    a, b = functional.normalize(vectors), functional.normalize(others)
    blocks = torch.split(a, max(1, PAIR_ELEMENTS // max(1, b.numel())))
    if len(blocks) == 1 or not torch.is_grad_enabled():
        parts = [_distances(block, b, weight) for block in blocks]
    else:
        parts = [checkpoint(_distances, block, b, weight, use_reentrant=False) for block in blocks]
    return torch.cat(parts) + bias


def _distances(a: Tensor, b: Tensor, weight: Tensor) -> Tensor:
    """Weighted L1 distances (m, n) of rows (m, d) and (n, d)."""
    return (a[:, None, :] - b).abs() @ weight


def pair_cross_entropy(logits: Tensor, same: Tensor) -> Tensor:
    """Cross-entropy of pairs, in which "same" and "different" weigh one half each however many there are.

    Args:
        logits: (m, n), log-odds that a pair is of one class.
        same: bool (m, n), whether it is.

    Returns:
        A scalar; where all pairs are of one kind, that kind's mean.
    """
    each = functional.binary_cross_entropy_with_logits(logits, same.to(logits.dtype), reduction="none")
    return torch.stack([each[kind].mean() for kind in (same, ~same) if bool(kind.any())]).mean()
