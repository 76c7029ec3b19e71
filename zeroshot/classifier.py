"""ZeroShotClassifier: classes known by words alone; an image gets the one whose description it is most similar to."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from episodes import Decision, Neighbor

from .errors import DescriptionError, ZeroShotError
from .generalized import stacked
from .linear_map import unit_rows
from .model import ZeroShotModel
from .prompts import Prompts
from .semantics import Descriptions, SemanticSpace, as_prompts

_WHY_NOT = "The query vector is not finite, or has no direction once centred: nothing can be said about the image."


class ZeroShotClassifier:
    """Decides between described classes.

    Args:
        model: The image space aligned with words.
        seen: Classes the model was learnt with. Where any is given, `gamma` is taken off their scores, so that classes
            never seen compete fairly; by default the model's own.
        gamma: How much; None takes the model's, and 0 where it has none.
        least_margin: Answers whose lead over the second class is smaller are "uncertain" instead of a guess.
        n_evidence: Sentences named per decision for the winner, and for the runner-up.

    Attributes:
        classes_: The classes described so far, in the order they came.
        remarks_: One sentence each: what is doubtful about the descriptions.

    Example:
        >>> clf = ZeroShotClassifier(model).describe({"effusion": ["Fluid blunts the costophrenic angle."],
        ...     "pneumothorax": "A pleural line without markings beyond it."})       # doctest: +SKIP
        >>> clf.decide(encoder.encode(["new.png"]))[0].label                         # doctest: +SKIP
        'effusion'
    """

    classes_: NDArray[Any]

    def __init__(
        self,
        model: ZeroShotModel,
        *,
        seen: Collection[str] | None = None,
        gamma: float | None = None,
        least_margin: float = 0.0,
        n_evidence: int = 3,
    ) -> None:
        self.model = model
        self.seen = seen
        self.gamma = gamma
        self.least_margin = least_margin
        self.n_evidence = n_evidence
        self._said: dict[str, Prompts] = {}

    def describe(self, descriptions: Descriptions, *, leave_out: bool = False) -> ZeroShotClassifier:
        """Add classes, or replace what was said of them.

        Args:
            descriptions: Class -> sentences, or prompts in present and absent forms.
            leave_out: Leave classes out, with a remark, of which the text encoder knows no word.

        Returns:
            Itself.

        Raises:
            DescriptionError: A class without any text, or without a word the text encoder knows; nothing is changed.
        """
        said = {**self._said, **{str(name): as_prompts(str(name), text) for name, text in descriptions.items()}}
        self._space = self.model.space(said, leave_out=leave_out)
        self._said = {name: said[name] for name in self._space.classes}
        self.classes_ = np.asarray(self._space.classes)
        return self

    @property
    def remarks_(self) -> tuple[str, ...]:
        """What is doubtful about the descriptions, one sentence each."""
        return self._described().remarks

    @property
    def space_(self) -> SemanticSpace:
        """The semantic vectors of the classes."""
        return self._described()

    def scores(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Return how similar each image is to each class, (n, c); with seen classes' handicap taken off.

        Args:
            vectors: (n, p) of the encoder the model was aligned with; a row of NaN (an image that could not be
                embedded) has NaN throughout.
        """
        rows, usable = self._queries(vectors)
        scores = np.full((len(rows), len(self.classes_)), np.nan)
        scores[usable] = self.model.shared.scores(rows[usable], self._described().vectors)
        seen = self.model.seen if self.seen is None else tuple(self.seen)
        mask = np.isin(self.classes_, list(seen)) if seen else np.zeros(len(self.classes_), dtype=np.bool_)
        if not mask.any() or mask.all():  # where all or none are seen there is nothing to even out
            return scores
        gamma = self.model.gamma if self.gamma is None else self.gamma
        return stacked(scores, mask, 0.0 if gamma is None else gamma)

    def predict(self, vectors: ArrayLike) -> NDArray[Any]:
        """Return the label (n,) of each image; None where `decide` has none."""
        labels = np.empty(len(np.asarray(vectors)), dtype=object)
        labels[:] = [decision.label for decision in self.decide(vectors)]
        return labels

    def decide(self, vectors: ArrayLike) -> list[Decision]:
        """Return full answers; evidence are sentences of the winner, and of the runner-up, most similar first.

        A sentence stands in `Neighbor.id`. There is no probability: a similarity to words is none.
        """
        scores = self.scores(vectors)
        rows, usable = self._queries(vectors)
        return [
            self._decision(rows[i : i + 1], scores[i])
            if usable[i]
            else Decision(None, None, None, None, reason=_WHY_NOT)
            for i in range(len(rows))
        ]

    def presence(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Return, for several labels per image, by how much it leans to a class's presence rather than its absence.

        Similarity to the present form minus that to the absent form, in standard deviations above what is usual among
        the images the model was learnt on, so that classes are on one scale.

        Returns:
            (n, c), larger is likelier present; 0 is the usual image. No probability.

        Raises:
            DescriptionError: A class was described without an absent form.
        """
        space = self._described()
        if space.absent is None:
            without = next(name for name, prompt in self._said.items() if not prompt.absent)
            raise DescriptionError(
                f"The class {without!r} has no absent form, which several labels per image need: give it `terms` or "
                "`absent` in the file, or Prompts(present, absent)."
            )
        rows, usable = self._queries(vectors)
        found = np.full((len(rows), len(self.classes_)), np.nan)
        directions = self.model.shared.texts(space.vectors)  # (c, k)
        told = np.isfinite(space.absent).all(axis=1)
        directions[told] -= self.model.shared.texts(space.absent[told])
        found[usable] = self.model.unusual(self.model.shared.images(rows[usable]) @ directions.T, directions)
        return found

    def _described(self) -> SemanticSpace:
        if not self._said:
            raise ZeroShotError("No class is described yet: call describe first.")
        return self._space

    def _queries(self, vectors: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Return the rows and which of them can be asked about.

        Raises:
            ZeroShotError: They are not of the encoder the model was aligned with.
        """
        rows = np.asarray(vectors, dtype=np.float64)
        if rows.ndim != 2 or rows.shape[1] != self.model.dim:
            raise ZeroShotError(
                f"Query vectors must have shape (n, {self.model.dim}), as the encoder {self.model.encoder_name!r} "
                f"makes them; got {rows.shape}."
            )
        self._described()
        told = np.asarray(np.isfinite(rows).all(axis=1)) & (rows != self.model.shared.image_mean).any(axis=1)
        return rows, told

    def _decision(self, row: NDArray[np.float64], scores: NDArray[np.float64]) -> Decision:
        order = np.argsort(-scores, kind="stable")
        first = int(order[0])
        second = int(order[1]) if len(order) > 1 else None
        margin = None if second is None else float(scores[first] - scores[second])
        unsure = margin is not None and margin < self.least_margin
        return Decision(
            label=None if unsure else str(self.classes_[first]),
            probability=None,
            score=float(scores[first]),
            margin=margin,
            evidence=self._evidence(row, first),
            runner_up=None if second is None else str(self.classes_[second]),
            counter_evidence=() if second is None else self._evidence(row, second),
            reason=f"Uncertain: it is only {margin:.3f} nearer to {str(self.classes_[first])!r} than to another class."
            if unsure
            else None,
        )

    def _evidence(self, row: NDArray[np.float64], target: int) -> tuple[Neighbor, ...]:
        name = str(self.classes_[target])
        space = self._described()
        closeness = self.model.shared.scores(row, unit_rows(space.phrase_vectors[name]))[0]
        nearest = np.argsort(-closeness, kind="stable")[: self.n_evidence]
        return tuple(Neighbor(space.phrases[name][i], float(closeness[i]), name) for i in nearest.tolist())
