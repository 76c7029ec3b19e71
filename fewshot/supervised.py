"""Supervised training by a linear classifier, or one of cosines: "Baseline" and "Baseline++" (arXiv 1904.04232)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from .losses import COSINE_TEMPERATURE
from .networks import ImageNetwork
from .training_config import TrainingError

if TYPE_CHECKING:
    from .training_config import TrainingConfig

#: A learnt temperature of cosines never falls below this, as in CLIP (arXiv 2103.00020, section 2.5).
LOWEST_TEMPERATURE = 0.01


class CosineClassifier(nn.Module):
    """Logits that are cosines between vectors and one learnt direction per class, divided by a temperature.

    Args:
        dim: Length of the vectors.
        n_classes: Number of classes.
        temperature: What cosines are divided by; None learns it, from `COSINE_TEMPERATURE` on, as Gidaris and Komodakis
            2018 (arXiv 1804.09458) learn its inverse.
    """

    def __init__(self, dim: int, n_classes: int, *, temperature: float | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_classes, dim))
        nn.init.normal_(self.weight, std=dim**-0.5)
        # One number for all classes: a soft maximum does not notice it, and a sigmoid of cosines, which are about 0
        # between strangers, would start at one half without it.
        self.bias = nn.Parameter(torch.full((1,), _prior_logit(n_classes)))
        self.temperature = temperature
        if temperature is None:
            self.log_scale = nn.Parameter(torch.full((1,), -math.log(COSINE_TEMPERATURE)))

    def forward(self, vectors: Tensor) -> Tensor:
        """Logits (n, n_classes) of vectors (n, d)."""
        cosines = functional.normalize(vectors) @ functional.normalize(self.weight).T  # (n, n_classes)
        if self.temperature is not None:
            return cosines / self.temperature + self.bias
        return cosines * self.log_scale.clamp_max(-math.log(LOWEST_TEMPERATURE)).exp() + self.bias


class SupervisedNetwork(ImageNetwork):
    """An encoder trained to tell all classes of the source apart; the classifier is thrown away afterwards.

    Images of one class each are trained by cross-entropy, images of several by binary cross-entropy, averaged over
    images and classes. Labels are not smoothed by default: that raises accuracy on the classes trained on and lowers
    what the features are worth on others (Kornblith et al. 2021, arXiv 2010.16402).

    Args:
        backbone: Images (n, c, h, w) -> vectors (n, d), with an attribute `dim`.
        n_classes: Classes of the whole source, at least 2.
        metric: "euclidean" for a plain linear classifier, or "cosine" for a `CosineClassifier`.
        temperature: Of the cosine classifier; None learns it. A plain one needs none: its weights grow as they like.
        label_smoothing: Share of each target spread evenly over all classes (arXiv 1512.00567, section 7), in [0, 1);
            of images of one class only.

    Raises:
        TrainingError: Fewer than 2 classes, an unknown metric, or a smoothing outside [0, 1).
    """

    def __init__(
        self,
        backbone: nn.Module,
        n_classes: int,
        *,
        metric: str = "euclidean",
        temperature: float | None = None,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if n_classes < 2:
            raise TrainingError(f"Supervised training needs at least 2 classes; got {n_classes}.")
        if not 0 <= label_smoothing < 1:
            raise TrainingError(f"label_smoothing must lie in [0, 1); got {label_smoothing}.")
        self.backbone = backbone
        self.n_classes = n_classes
        self.label_smoothing = label_smoothing
        dim = int(backbone.dim)  # type: ignore[arg-type]
        self.classifier: nn.Module
        if metric == "cosine":
            self.classifier = CosineClassifier(dim, n_classes, temperature=temperature)
        elif metric == "euclidean":
            linear = nn.Linear(dim, n_classes)
            nn.init.constant_(linear.bias, _prior_logit(n_classes))
            self.classifier = linear
        else:
            raise TrainingError(f"metric must be 'euclidean' or 'cosine'; got {metric!r}.")

    @classmethod
    def from_config(cls, backbone: nn.Module, config: TrainingConfig, n_classes: int) -> Self:
        """The network a configuration asks for."""
        return cls(backbone, n_classes, metric=config.metric, temperature=config.temperature)

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 (n, n_classes) of images (n, c, h, w)."""
        vectors: Tensor = self.backbone(images).float()
        with torch.autocast(images.device.type, enabled=False):
            logits: Tensor = self.classifier(vectors)
        return logits

    def loss(self, images: Tensor, targets: Tensor) -> tuple[Tensor, float]:
        """Mean loss over the labelled images, and the share of them whose highest logit is a class of theirs.

        Args:
            images: (n, c, h, w).
            targets: int64 (n,), -1 where unlabelled; or zeros and ones (n, n_classes), all zeros where unlabelled.

        Returns:
            A scalar to differentiate, and an accuracy in [0, 1]; both are 0 where no image is labelled, and the scalar
            can still be differentiated.

        Raises:
            ValueError: Targets of another shape, or classes beyond the network's.
        """
        several = targets.is_floating_point()
        expected = (len(images), self.n_classes) if several else (len(images),)
        if targets.shape != expected:
            raise ValueError(f"{len(images)} images need targets of shape {expected}; got {tuple(targets.shape)}.")
        labelled = targets.amax(1) > 0 if several else targets >= 0  # (n,)
        logits = self(images)  # (n, n_classes)
        if not bool(labelled.any()):
            return logits.sum() * 0.0, 0.0
        logits, targets = logits[labelled], targets[labelled]
        with torch.autocast(images.device.type, enabled=False):
            if several:
                loss = functional.binary_cross_entropy_with_logits(logits, targets.to(logits.dtype))
            else:
                if int(targets.max()) >= self.n_classes:
                    raise ValueError(f"The network has {self.n_classes} classes; got class {int(targets.max())}.")
                loss = functional.cross_entropy(logits, targets, label_smoothing=self.label_smoothing)
        first = logits.detach().argmax(1)  # (n_labelled,)
        right = targets.gather(1, first[:, None])[:, 0] > 0 if several else first == targets
        return loss, int(right.sum()) / len(right)


def _prior_logit(n_classes: int) -> float:
    """Log-odds of one class among `n_classes`, so that training starts at a guess (arXiv 1708.02002, section 4.1)."""
    return -math.log(n_classes - 1)
