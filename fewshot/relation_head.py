"""The class whose learnt relation to the query is strongest (Sung et al. 2018, arXiv 1711.06025), without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from embeddings import SimilarityHead

from .class_scores import ClassScores, image_weights
from .prototypes import DEFAULT_EVIDENCE
from .support import CHUNK_ELEMENTS, Metric, Support

#: Name of the learnt comparison that is a relation module.
RELATION = "relation"

#: Added to variances by the batch normalisation of the relation module, before the square root.
EPSILON = 1e-5

#: Tensors of the relation module, and how many axes each has.
_TENSORS = {
    "first.weight": 4,
    "second.weight": 4,
    "hidden.weight": 2,
    "hidden.bias": 1,
    "output.weight": 2,
    "output.bias": 1,
    **{
        f"{block}_norm.{part}": 1
        for block in ("first", "second")
        for part in ("weight", "bias", "running_mean", "running_var")
    },
}


class RelationClassifier(ClassScores):
    """Highest relation score between the query and the mean of each class, by a trained `RelationNetwork`.

    A decision's score is the relation score in [0, 1]. Each class is judged for itself: the scores do not add up to 1,
    and none is a probability. The evidence is the nearest support images by cosine similarity, which the relation
    module does not use.

    Args:
        similarity: The relation module, usually `encoder.similarity` of an encoder trained with method="relation".
        n_evidence: Support images named per decision for the winner, and for the runner-up.

    Attributes:
        classes_: The labels, sorted, as the caller gave them.
    """

    _decides_by: Metric = "euclidean"

    def __init__(self, *, similarity: SimilarityHead | None, n_evidence: int = DEFAULT_EVIDENCE) -> None:
        self.similarity = similarity
        self.n_evidence = n_evidence

    def _learn(self, support: Support) -> NDArray[np.float64]:
        module = _Module.from_head(self.similarity)
        dim = support.vectors.shape[1]
        if module.dim != dim:
            raise ValueError(
                f"The relation module compares vectors of {module.dim} dimensions, the comparison set has {dim}: "
                f"were both made by the same encoder?"
            )
        weights = image_weights(support)
        means = []
        for c in range(len(support.classes)):
            own = np.flatnonzero(support.targets == c)
            rows = support.vectors[own].astype(np.float64)
            means.append((weights[own, None] * rows).sum(axis=0) / weights[own].sum())
        self._module = module
        self._class_maps = module.first_of_classes(np.stack(means))  # (n_classes, h, w, width)
        return np.zeros(dim)

    def _compare(self, queries: NDArray[np.float32]) -> NDArray[np.float64]:
        module, n_classes = self._module, len(self._class_maps)
        scores = np.empty((len(queries), n_classes))
        step = max(1, CHUNK_ELEMENTS // module.widest)
        for start in range(0, len(queries), step):
            maps = module.first_of_queries(queries[start : start + step].astype(np.float64))  # (rows, h, w, width)
            flat = np.empty(len(maps) * n_classes)
            for at in range(0, len(flat), step):
                query, target = np.divmod(np.arange(at, min(at + step, len(flat))), n_classes)
                flat[at : at + step] = module.rest(maps[query] + self._class_maps[target])
            scores[start : start + step] = flat.reshape(-1, n_classes)
        return scores


@dataclass(frozen=True)
class _Module:
    """A trained relation module in evaluation mode, with its batch normalisations folded into its weights.

    The first convolution of a class's map and a query's map, laid on top of each other, is the sum of the convolution
    of either: so each is convolved once, not once per pair. Every product is one small matrix product per row, so that
    its rounding cannot depend on how many are asked about.
    """

    map_shape: tuple[int, int, int]
    class_weights: NDArray[np.float64]  # (kernel, kernel, channels, width)
    query_weights: NDArray[np.float64]  # (kernel, kernel, channels, width)
    first_bias: NDArray[np.float64]  # (width,)
    second_weights: NDArray[np.float64]  # (kernel, kernel, width, width)
    second_bias: NDArray[np.float64]  # (width,)
    hidden_weights: NDArray[np.float64]  # (h * w * width, hidden), h and w after pooling twice
    hidden_bias: NDArray[np.float64]  # (hidden,)
    output_weights: NDArray[np.float64]  # (hidden, 1)
    output_bias: NDArray[np.float64]  # (1,)

    @property
    def dim(self) -> int:
        """Length of the vectors it compares."""
        channels, height, width = self.map_shape
        return channels * height * width

    @property
    def widest(self) -> int:
        """Numbers that the widest intermediate result has per row."""
        channels, height, width = self.map_shape
        kernel, _, _, out = self.class_weights.shape
        return int(height * width * kernel * kernel * max(channels, out))

    @classmethod
    def from_head(cls, head: SimilarityHead | None) -> _Module:
        """Read a learnt comparison, or say what is wrong with it."""
        needs = (
            "RelationClassifier needs the relation module that was trained with the encoder; train one with "
            'method="relation" and pass similarity=encoder.similarity'
        )
        if head is None:
            raise ValueError(f"{needs}.")
        if head.name != RELATION:
            raise ValueError(f"{needs}; this encoder's learnt comparison is {head.name!r}.")
        try:
            return cls._read(head.config, head.tensors)
        except KeyError as error:
            raise ValueError(f"The relation module has no {error}: was its checkpoint edited?") from error
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"The relation module's parts do not fit together ({error}): was its checkpoint edited?"
            ) from error

    @classmethod
    def _read(cls, config: Mapping[str, Any], tensors: Mapping[str, NDArray[np.float32]]) -> _Module:
        channels, height, width = (int(size) for size in config["map_shape"])
        found = {name: np.asarray(tensors[name], dtype=np.float64) for name in _TENSORS}
        for name, axes in _TENSORS.items():
            if found[name].ndim != axes or not np.isfinite(found[name]).all():
                raise ValueError(f"{name} must have {axes} axes and hold finite numbers")
            if name.endswith("running_var") and (found[name] < 0).any():
                raise ValueError(f"{name} must not be negative")
        first, first_bias = _folded(found, "first")
        second, second_bias = _folded(found, "second")
        after = _pooled(*_pooled(height, width))
        hidden = found["hidden.weight"].reshape(-1, second.shape[3], *after)  # (hidden, width, h, w), as torch flattens
        module = cls(
            map_shape=(channels, height, width),
            class_weights=np.ascontiguousarray(first[:, :, :channels]),
            query_weights=np.ascontiguousarray(first[:, :, channels:]),
            first_bias=first_bias,
            second_weights=second,
            second_bias=second_bias,
            hidden_weights=np.ascontiguousarray(hidden.transpose(2, 3, 1, 0).reshape(-1, len(hidden))),
            hidden_bias=found["hidden.bias"],
            output_weights=np.ascontiguousarray(found["output.weight"].T),
            output_bias=found["output.bias"],
        )
        if not module.query_weights.shape[2] == module.class_weights.shape[2] == channels:
            raise ValueError(f"first.weight is not made for two maps of {channels} channels")
        if module.output_weights.shape[1] != 1:
            raise ValueError("output.weight must make one number")
        module.rest(module.first_of_classes(np.zeros((1, module.dim))))  # whatever else does not fit raises here
        return module

    def first_of_classes(self, means: NDArray[np.float64]) -> NDArray[np.float64]:
        """The classes' part of the first block, before pooling: (n, d) -> (n, h, w, width)."""
        return _convolved(self._maps(means), self.class_weights) + self.first_bias

    def first_of_queries(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """The queries' part of the first block, before pooling: (m, d) -> (m, h, w, width)."""
        return _convolved(self._maps(vectors), self.query_weights)

    def rest(self, sums: NDArray[np.float64]) -> NDArray[np.float64]:
        """Relation scores (p,) of pairs whose parts of the first block are added up: (p, h, w, width)."""
        first = _pool_relu(sums)
        second = _pool_relu(_convolved(first, self.second_weights) + self.second_bias)
        flat = second.reshape(len(second), 1, -1)
        hidden = np.maximum(flat @ self.hidden_weights + self.hidden_bias, 0)  # (p, 1, hidden)
        logits = (hidden @ self.output_weights + self.output_bias)[:, 0, 0]
        scores: NDArray[np.float64] = np.exp(-np.logaddexp(0, -logits))  # the sigmoid, which cannot overflow
        return scores

    def _maps(self, vectors: NDArray[np.float64]) -> NDArray[np.float64]:
        """Vectors (n, d) as maps (n, h, w, channels)."""
        return vectors.reshape(-1, *self.map_shape).transpose(0, 2, 3, 1)


def _folded(tensors: Mapping[str, NDArray[np.float64]], block: str) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A block's convolution (kernel, kernel, in, out) and bias (out,), batch normalisation included."""
    scale = tensors[f"{block}_norm.weight"] / np.sqrt(tensors[f"{block}_norm.running_var"] + EPSILON)
    bias = tensors[f"{block}_norm.bias"] - scale * tensors[f"{block}_norm.running_mean"]
    weights = tensors[f"{block}.weight"] * scale[:, None, None, None]  # (out, in, kernel, kernel)
    return np.ascontiguousarray(weights.transpose(2, 3, 1, 0)), bias


def _convolved(maps: NDArray[np.float64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Convolve maps (n, h, w, in) with (kernel, kernel, in, out), edges padded by zeros: (n, h, w, out)."""
    n, height, width, channels = maps.shape
    kernel, _, _, out = weights.shape
    edge = kernel // 2
    padded = np.pad(maps, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    patches = np.empty((n, height, width, kernel, kernel, channels))
    for i in range(kernel):
        for j in range(kernel):
            patches[:, :, :, i, j] = padded[:, i : i + height, j : j + width]
    product = patches.reshape(n, height * width, -1) @ weights.reshape(-1, out)  # one matrix product per map
    return product.reshape(n, height, width, out)


def _pooled(height: int, width: int) -> tuple[int, int]:
    """Size of a map after a block: halved, unless it is too small to be."""
    return (height // 2, width // 2) if min(height, width) >= 2 else (height, width)


def _pool_relu(maps: NDArray[np.float64]) -> NDArray[np.float64]:
    """The largest of every 2 x 2 (of every 1 in small maps), and zero at least: (n, h, w, c) -> (n, h', w', c)."""
    n, height, width, channels = maps.shape
    rows, columns = _pooled(height, width)
    if (rows, columns) != (height, width):
        quarters = maps[:, : 2 * rows, : 2 * columns].reshape(n, rows, 2, columns, 2, channels)
        maps = quarters.max(axis=(2, 4))
    return np.maximum(maps, 0)
