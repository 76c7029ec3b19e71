"""Fine-tuning on the support: a classifier started at the class means, and perhaps the encoder's last blocks with it.

"A closer look at few-shot classification" (Chen et al. 2019, arXiv 1904.04232, Baseline++: cosines to learnt class
weights) and "A baseline for few-shot image classification" (Dhillon et al. 2020, arXiv 1909.02729: start at the means).
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import nn

from embeddings import Augmentation, Encoder, ImageSource, TorchEncoder
from episodes import Decision

from .class_scores import ClassScores, image_weights
from .prototypes import DEFAULT_EVIDENCE
from .support import Metric, Support, check_evidence, check_fitted, check_queries, prepare, similarities
from .tuning import Tuned, Tuning, embed, tune_weights

#: What is tuned: the classifier over frozen features, or the encoder's last blocks as well.
Tune = Literal["head", "last-blocks"]
#: How a class weight meets a feature of unit length: by the cosine, or by a dot product and a bias.
Classifier = Literal["cosine", "linear"]
#: Half as much change as in training: few images bear less, and the test image is not changed at all.
LIGHT_AUGMENTATION = Augmentation(
    rotation=4, shift=0.04, zoom=0.06, brightness=0.05, contrast=0.1, gamma=0.1, noise=0.01
)


class FineTunedClassifier:
    """A classifier trained by gradient steps on the support images themselves.

    It has every head's interface, but its rows are **images**: what the encoder's `load` makes, flattened, as
    `image_rows` gives them. Class weights start at the class means (of unit-length features, the encoder's source mean
    subtracted), so that without a single step it is a `PrototypeClassifier`. Each class weighs the same in the loss,
    and within a class each patient, however many images he has.

    With tune="head" features are computed once and nothing but the class weights learns. With tune="last-blocks" the
    class weights learn first, alone; then the last blocks of the network learn too, at smaller rates and the earlier
    the smaller, since what early layers see is the most general (arXiv 1801.06146). Everything else stands still, the
    statistics of batch normalisation included: those of a handful of images are noise, and changing them would change
    the input of every frozen layer. The encoder that was given is never changed.

    Scores are on the scale of a cosine. As with every encoder that runs on torch, the same image in another batch can
    differ by float rounding.

    Args:
        encoder: A `TorchEncoder`; `embeddings.trainable_from` makes one of a transformers encoder.
        tune: "head" or "last-blocks".
        classifier: "cosine" or "linear".
        last_blocks: How many blocks at the end of the network learn with "last-blocks", see `blocks_of`.
        augmentation: How the images are changed in each step of "last-blocks"; None leaves them as they are.
        steps: Gradient steps of each of the stages; None goes by the size of the support.
        seed: Of batches and augmentation.
        n_evidence: Support images named per decision for the winner, and for the runner-up.

    Attributes:
        classes_: The labels, sorted, as the caller gave them.
        steps_: Gradient steps taken.

    Example:
        >>> from embeddings import load_encoder
        >>> encoder = load_encoder("untrained:conv4")
        >>> images = list(np.random.default_rng(0).random((4, 40, 40)))
        >>> rows = image_rows(encoder, images)
        >>> clf = FineTunedClassifier(encoder).fit(rows, ["a", "a", "b", "b"])
        >>> clf.predict(rows).tolist()
        ['a', 'a', 'b', 'b']
    """

    transductive: ClassVar[bool] = False
    #: Rows are loaded images, flattened, not vectors.
    takes_images: ClassVar[bool] = True
    classes_: NDArray[Any]
    steps_: int

    def __init__(
        self,
        encoder: Encoder,
        *,
        tune: str = "head",
        classifier: str = "cosine",
        last_blocks: int = 1,
        augmentation: Augmentation | None = LIGHT_AUGMENTATION,
        steps: int | None = None,
        seed: int = 0,
        n_evidence: int = DEFAULT_EVIDENCE,
    ) -> None:
        self.encoder = encoder
        self.tune = tune
        self.classifier = classifier
        self.last_blocks = last_blocks
        self.augmentation = augmentation
        self.steps = steps
        self.seed = seed
        self.n_evidence = n_evidence

    def fit(
        self,
        vectors: ArrayLike,
        labels: Sequence[Hashable],
        *,
        ids: Sequence[str] | None = None,
        groups: Sequence[Hashable | None] | None = None,
    ) -> Self:
        """Train on the support.

        Args:
            vectors: (n, C * H * W) support images, from `image_rows`.
            labels: n class labels.
            ids: n distinct image ids, named as evidence; positions where absent. Images are taken in id order, so the
                order of registration cannot change an answer.
            groups: n patients; each patient counts once in its class however many images it has. None counts images.

        Returns:
            Itself.

        Raises:
            ValueError: Empty support, NaN, lists of unequal length, repeated ids, a missing label, rows that are no
                images of the encoder, an encoder without weights, or an option that cannot be meant.
        """
        encoder = self._check()
        support = Support(vectors, labels, ids=ids, groups=groups)
        images = self._images(support.vectors)
        weights = image_weights(support)
        of_class = np.bincount(support.targets, weights=weights)
        tuning = Tuning(
            targets=support.targets,
            weights=weights / of_class[support.targets] / len(of_class),
            unit_weights=self.classifier == "cosine",
            last_blocks=self.last_blocks if self.tune == "last-blocks" else 0,
            augmentation=self.augmentation,
            steps=self.steps,
            seed=self.seed,
        )
        tuned = tune_weights(encoder, images, tuning)
        head = _LearntWeights(tuned, self.n_evidence)
        head.fit(tuned.features, support.labels, ids=support.ids, groups=support.groups)
        self._tuned, self._head = tuned, head
        self.classes_, self.steps_ = head.classes_, tuned.steps
        return self

    def scores(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Score of each image (m, C * H * W) for each class, (m, n_classes) in the order of `classes_`.

        An image nothing can be decided about (see `decide`) has NaN throughout.
        """
        features = self._features(vectors)
        return self._head.scores(features)

    def predict(self, vectors: ArrayLike) -> NDArray[Any]:
        """Labels (m,) of the highest scores; None where `decide` has no label. Ties go to the first class."""
        features = self._features(vectors)
        return self._head.predict(features)

    def decide(self, vectors: ArrayLike) -> list[Decision]:
        """The full answer to each image; the evidence is the nearest support images by the cosine of tuned features.

        There is no label, but a reason, where the image holds NaN, or where its features are zero.
        """
        features = self._features(vectors)
        return self._head.decide(features)

    def score_network(self) -> nn.Module:
        """The scores as a module from images (n, C, H, W) to (n, n_classes), for what follows gradients."""
        check_fitted(self, "classes_")
        return self._tuned.score_network()

    def _features(self, vectors: ArrayLike) -> NDArray[np.float32]:
        check_fitted(self, "classes_")
        encoder = self._check()
        rows = check_queries(vectors, int(np.prod(_shape(encoder))))
        return embed(self._tuned.network, self._images(rows), encoder.device)

    def _images(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        shape = _shape(self._check())
        if rows.shape[1] != np.prod(shape):
            raise ValueError(
                f"Fine-tuning takes images of {' x '.join(map(str, shape))} as rows of {np.prod(shape):,} grey levels; "
                f"got rows of {rows.shape[1]:,}: make them with image_rows(encoder, images)."
            )
        return rows.reshape(-1, *shape)

    def _check(self) -> TorchEncoder:
        check_evidence(self.n_evidence)
        for name, value, allowed in (
            ("tune", self.tune, get_args(Tune)),
            ("classifier", self.classifier, get_args(Classifier)),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}; got {value!r}.")
        for name, count, low in (("last_blocks", self.last_blocks, 1), ("steps", self.steps, 0)):
            if name == "steps" and count is None:
                continue
            if isinstance(count, bool) or not isinstance(count, int) or count < low:
                raise ValueError(f"{name} must be a whole number of at least {low}; got {count!r}.")
        if not isinstance(self.encoder, TorchEncoder):
            hint = "make one with embeddings.trainable_from(encoder)" if hasattr(self.encoder, "network") else (
                "an encoder without a network has no weights to tune"
            )  # fmt: skip
            raise ValueError(f"Fine-tuning needs a TorchEncoder; got {type(self.encoder).__name__}: {hint}.")
        return self.encoder


def image_rows(encoder: Encoder, images: Sequence[ImageSource]) -> NDArray[np.float32]:
    """Load images as the rows that a `FineTunedClassifier` takes.

    Args:
        encoder: Loads and preprocesses them.
        images: n paths or arrays.

    Returns:
        float32 (n, C * H * W): each loaded image, flattened.

    Raises:
        ImageError: The first image that cannot be read.
        ValueError: No image.
    """
    if not len(images):
        raise ValueError("image_rows needs at least one image; got none.")
    return np.stack([encoder.load(image).ravel() for image in images])


class _LearntWeights(ClassScores):
    """Scores of features by class weights that were learnt elsewhere."""

    _decides_by: Metric = "cosine"

    def __init__(self, tuned: Tuned, n_evidence: int) -> None:
        self.tuned = tuned
        self.n_evidence = n_evidence

    def _learn(self, support: Support) -> NDArray[np.float64]:
        return self.tuned.center

    def _compare(self, queries: NDArray[np.float32]) -> NDArray[np.float64]:
        rows = prepare(queries, "cosine", self.tuned.center)
        if self.tuned.unit_weights:
            return similarities(rows, self.tuned.class_weights, "cosine")
        products = [(rows * weight).sum(axis=1) for weight in self.tuned.class_weights]
        return np.stack(products, axis=1) + self.tuned.bias


def _shape(encoder: TorchEncoder) -> tuple[int, int, int]:
    return (encoder.preprocess.channels, *encoder.preprocess.size)
