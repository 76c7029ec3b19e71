"""A learnt comparison of two vectors that travels with the encoder whose vectors it compares."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class SimilarityHead:
    """What a Siamese or relation network learnt beside its backbone; `fewshot` knows how to compute with it.

    Attributes:
        name: Which computation the weights belong to, such as "weighted-l1".
        config: Its options, plain JSON values.
        tensors: Its weights by name, float32.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)
