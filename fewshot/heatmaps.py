"""Heat maps over a query: which part of the image speaks for the answer, asked in two ways that check each other.

Grad-CAM (arXiv 1610.02391) asks the network's gradients, occlusion (arXiv 1311.2901) covers the image piece by piece.
Either can mislead, so neither is shown without how far the two agree.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from embeddings import Encoder, ImageSource, read_image

from .head import Head
from .occlusion import DEFAULT_PATCH, STEPS_PER_PATCH, occlusion_map, patch_side, rank_agreement
from .placement import place
from .prototypes import PrototypeClassifier
from .support import as_label

if TYPE_CHECKING:
    from torch import Tensor, nn

Kind = Literal["grad-cam", "occlusion"]
#: "margin" asks why the winner and not the runner-up, "score" what makes the image resemble the winner.
Question = Literal["margin", "score"]
#: Rank correlations from which the two maps agree, and below which they disagree.
AGREES, DISAGREES = 0.5, 0.2


@dataclass(frozen=True, eq=False)
class HeatMap:
    """How much each place of an image speaks for an answer.

    Attributes:
        values: float32 (h, w), on the image's own grid. For "occlusion" what the score loses where a patch is covered
            (below 0 where covering helps), for "grad-cam" not negative and of a scale of its own. 0 where the encoder
            saw nothing.
        kind: "grad-cam" or "occlusion".
        label: The class that was decided for.
        against: The runner-up it is compared with, or None where the map is of the class's score alone.
        score: What is explained, for the whole image: the score, or the margin over the runner-up.
        agreement: Rank correlation, from -1 to 1, with the map of the other kind; None where there is none, or where
            either is flat.
    """

    values: NDArray[np.float32]
    kind: Kind
    label: Hashable
    against: Hashable | None
    score: float
    agreement: float | None

    @property
    def flat(self) -> bool:
        """Whether no place speaks for the answer."""
        return not bool((self.values > 0).any())

    @property
    def verdict(self) -> str:
        """In plain words, how far the map can be relied on."""
        if self.flat:
            return "flat: no place speaks for the answer"
        if self.agreement is None:
            return "not checked by a second map"
        number = f"(rank correlation {self.agreement:.2f})"
        if self.agreement >= AGREES:
            return f"both maps agree {number}"
        if self.agreement >= DISAGREES:
            return f"both maps agree in part {number}"
        return f"the maps disagree {number}: rely on neither"


@dataclass(frozen=True, eq=False)
class Explanation:
    """The heat maps of one answer.

    Attributes:
        image: float32 (h, w), grey levels in [0, 1], as it was read.
        label: The class that was decided for.
        runner_up: The second class, or None where there is none.
        maps: Grad-CAM, where the encoder has a feature map, and occlusion.
        reason: Why there is no Grad-CAM (one sentence), else None.
    """

    image: NDArray[np.float32]
    label: Hashable
    runner_up: Hashable | None
    maps: tuple[HeatMap, ...]
    reason: str | None = None


def explain_image(
    encoder: Encoder,
    head: Head,
    image: ImageSource,
    *,
    question: str = "margin",
    prototypes: PrototypeClassifier | None = None,
    patch: float = DEFAULT_PATCH,
) -> Explanation:
    """Say which places of an image speak for a head's answer.

    Occlusion follows the scores of whatever head it is. Grad-CAM needs a score that can be differentiated: that of a
    `PrototypeClassifier` or a `FineTunedClassifier`. With another head it follows `prototypes`, so that its agreement
    with occlusion also says how far the class means explain that head.

    Args:
        encoder: The encoder that made the head's support.
        head: A fitted head.
        image: The query.
        question: "margin" maps the winner's score minus the runner-up's, "score" the winner's alone. With one class
            there is only a score.
        prototypes: Class means fitted to the same support, for Grad-CAM where the head itself cannot be differentiated.
        patch: Side of the covering patch, as a share of the longer side of what the encoder sees.

    Returns:
        The answer's maps.

    Raises:
        ImageError: The image cannot be read.
        ValueError: Another question or patch, or nothing can be decided about the image.
    """
    if question not in get_args(Question):
        raise ValueError(f"question must be 'margin' or 'score'; got {question!r}.")
    grey = read_image(image)
    loaded = encoder.load(grey)  # (C, H, W)
    scores = _scores(encoder, head, loaded[None])[0]
    if np.isnan(scores).any():
        raise ValueError("Nothing can be decided about this image, so there is nothing to explain.")
    order = np.argsort(-scores, kind="stable").tolist()
    winner, second = order[0], order[1] if len(order) > 1 else None
    label, runner_up = as_label(head.classes_[winner]), None if second is None else as_label(head.classes_[second])
    against = second if question == "margin" else None

    def asked(batch: NDArray[np.float32]) -> NDArray[np.float64]:
        made = _scores(encoder, head, batch)
        return made[:, winner] if against is None else made[:, winner] - made[:, against]

    network, preprocess = _network_of(encoder)
    where = place(preprocess, (grey.shape[0], grey.shape[1]), (loaded.shape[1], loaded.shape[2]))
    covered = occlusion_map(asked, loaded, where.content, patch=patch)
    weighed, reason = _grad_cam(network, head, prototypes, loaded, label, None if against is None else runner_up)
    agreement = None
    if weighed is not None:
        cell = max(1, patch_side(where.content, patch) // STEPS_PER_PATCH)
        agreement = rank_agreement(weighed, covered, where.content, cell=cell)
    score = float(scores[winner] if against is None else scores[winner] - scores[against])
    kinds: list[tuple[Kind, NDArray[np.float32] | None]] = [("grad-cam", weighed), ("occlusion", covered)]
    maps = tuple(
        HeatMap(where.to_image(values), kind, label, None if against is None else runner_up, score, agreement)
        for kind, values in kinds
        if values is not None
    )
    return Explanation(grey, label, runner_up, maps, reason)


def _scores(encoder: Encoder, head: Head, batch: NDArray[np.float32]) -> NDArray[np.float64]:
    """Scores (n, n_classes) of loaded images (n, C, H, W)."""
    takes_images = getattr(head, "takes_images", False)
    rows = batch.reshape(len(batch), -1) if takes_images else encoder.encode_loaded(list(batch))
    if getattr(head, "transductive", False):  # each copy alone, or they would change each other's scores
        return np.concatenate([head.scores(row[None]) for row in rows])
    return head.scores(rows)


def _network_of(encoder: Encoder) -> tuple[nn.Module | None, Any]:
    """The network from a loaded image to the encoder's vector, and its preprocessing; None for what it lacks."""
    preprocess = getattr(encoder, "preprocess", None)
    if not hasattr(encoder, "network"):
        return None, preprocess
    from embeddings import EncoderError, TorchEncoder, TransformersEncoder, trainable_from

    if isinstance(encoder, TransformersEncoder):  # the same network and pooling, behind a forward of its own
        try:
            twin = trainable_from(encoder, device=encoder.device.type)
        except EncoderError:
            return None, None
        return twin.network, twin.preprocess
    return (encoder.network if isinstance(encoder, TorchEncoder) else None), preprocess


def _grad_cam(
    network: nn.Module | None,
    head: Head,
    prototypes: PrototypeClassifier | None,
    loaded: NDArray[np.float32],
    label: Hashable,
    against: Hashable | None,
) -> tuple[NDArray[np.float32] | None, str | None]:
    """The map over the encoder's view, or why there is none."""
    if network is None:
        return None, "The encoder has no network whose gradients could be followed, so there is occlusion alone."
    from .grad_cam import NoFeatureMap, PrototypeScores, grad_cam

    follows: Any = head
    if hasattr(head, "score_network"):
        scores = head.score_network()
    else:
        follows = head if isinstance(head, PrototypeClassifier) else prototypes
        if follows is None:
            return None, (
                f"Grad-CAM follows class means or a fine-tuned classifier, not {type(head).__name__}: give "
                "prototypes=, or go by occlusion alone."
            )
        scores = PrototypeScores(network, follows)
    known = [as_label(name) for name in follows.classes_]
    missing = [name for name in (label, against) if name is not None and name not in known]
    if missing:
        raise ValueError(f"The prototypes have no class {missing[0]!r}: fit them to the head's support.")
    try:
        found: Tensor = grad_cam(scores, loaded, known.index(label), None if against is None else known.index(against))
    except NoFeatureMap as error:
        return None, str(error)
    return found.numpy(), None
