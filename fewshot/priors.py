"""Words and shots together: a class's prototype is what its words predict, worth so many images, and its shots.

With a prior of mean m worth prior_shots images, and n patients with mean x, the class is at (prior_shots m + n x) /
(prior_shots + n): the posterior mean of a Gaussian whose spread within a class is prior_shots times what words are off
by. Without shots it is the words; every shot moves it; where there are no words it is the shots. Text as the prior of a
few-shot class is in SS-Text (Silva-Rodriguez et al. 2025); here the words come from outside, as rows.
"""

from __future__ import annotations

import base64
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from episodes import Decision, Neighbor

from .class_scores import ClassScores
from .prototypes import DEFAULT_EVIDENCE
from .support import (
    Metric,
    Support,
    as_label,
    check_center,
    check_evidence,
    class_array,
    prepare,
    similarities,
    sorted_classes,
)
from .words_worth import WordsWorth


@dataclass(frozen=True, eq=False)
class ClassPrior:
    """What words say about where a class's images lie.

    Attributes:
        phrases: The sentences, m of them.
        vectors: float32 (m, d), the unit direction each predicts in the image space once that is centred.
    """

    phrases: tuple[str, ...]
    vectors: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Refuse what is no prior.

        Raises:
            ValueError: No phrase, or vectors that are not one finite row for each.
        """
        rows = np.asarray(self.vectors)
        if not self.phrases or rows.ndim != 2 or len(rows) != len(self.phrases) or not np.isfinite(rows).all():
            raise ValueError(
                f"A class's words need one finite vector per phrase; got {len(self.phrases)} phrases and {rows.shape}."
            )

    def nearest(self, queries: NDArray[np.float64], label: Hashable, count: int) -> tuple[Neighbor, ...]:
        """Return the phrases most similar to any of the queries (m, d), which are centred and of unit length."""
        closeness = similarities(queries, self.vectors.astype(np.float64), "cosine").max(axis=0)
        best = np.argsort(-closeness, kind="stable")[:count].tolist()
        return tuple(Neighbor(self.phrases[i], float(closeness[i]), label) for i in best)

    @property
    def mean(self) -> NDArray[np.float64]:
        """The direction (d,) of all phrases together, of unit length."""
        mean = self.vectors.astype(np.float64).mean(axis=0)
        length = float(np.sqrt((mean * mean).sum()))
        unit: NDArray[np.float64] = mean / length if length > 0 else mean
        return unit


@dataclass(frozen=True, eq=False)
class Words:
    """What words say about the classes of a set, as it is kept with the set and with what is deployed of it.

    Attributes:
        priors: Class -> what its words say.
        prior_shots: How many images they are worth: a number, or what makes it one for each set.
        center: float32 (d,), what the image space is centred on.
        encoder: Fingerprint of the image encoder they were aligned with.
    """

    priors: Mapping[str, ClassPrior]
    prior_shots: float | WordsWorth
    center: NDArray[np.float32]
    encoder: str

    def head(self) -> WordsAndShotsClassifier:
        """A fresh head that decides by these words and whatever shots it is fitted to."""
        return WordsAndShotsClassifier(self.priors, prior_shots=self.prior_shots, center=self.center)

    def to_json(self) -> dict[str, Any]:
        """Return a document of plain JSON types that `from_json` turns back."""
        return {
            "prior_shots": asdict(self.prior_shots)
            if isinstance(self.prior_shots, WordsWorth)
            else float(self.prior_shots),
            "encoder": self.encoder,
            "center": _as_text(self.center),
            "priors": {
                name: {"phrases": list(prior.phrases), "vectors": _as_text(prior.vectors)}
                for name, prior in self.priors.items()
            },
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Words:
        """Rebuild from `to_json`'s document."""
        return cls(
            priors={
                name: ClassPrior(
                    tuple(prior["phrases"]), _from_text(prior["vectors"]).reshape(len(prior["phrases"]), -1)
                )
                for name, prior in document["priors"].items()
            },
            prior_shots=WordsWorth(**worth) if isinstance(worth := document["prior_shots"], dict) else float(worth),
            center=_from_text(document["center"]),
            encoder=str(document["encoder"]),
        )


class WordsAndShotsClassifier(ClassScores):
    """Nearest class by cosine, where a class is its words, its shots, or both.

    Args:
        priors: Class -> what its words say.
        prior_shots: How many images the words are worth; learnt on seen classes by `learn_prior_shots`, and then fitted
            to each set by how well its words foretell its shots.
        center: (d,) what the image space is centred on: the mean the words were aligned with.
        n_evidence: Support images, and phrases, named per decision for the winner and for the runner-up.

    Attributes:
        classes_: The classes of the words and of the support, sorted.
        prototypes_: float64 (n_classes, d), of unit length.
        shots_: Class -> patients of the support.
        prior_shots_: How many images the words of this set are worth.

    Example:
        >>> words = {"a": ClassPrior(("left",), np.array([[1.0, 0.0]], dtype=np.float32))}
        >>> clf = WordsAndShotsClassifier(words).fit([[0.0, 1.0], [0.1, 1.0]], ["b", "b"])
        >>> clf.predict([[0.9, 0.2], [0.2, 0.9]]).tolist()
        ['a', 'b']
    """

    _decides_by: Metric = "cosine"
    prototypes_: NDArray[np.float64]
    shots_: dict[Hashable, int]
    prior_shots_: float

    def __init__(
        self,
        priors: Mapping[str, ClassPrior],
        *,
        prior_shots: float | WordsWorth = 4.0,
        center: ArrayLike | None = None,
        n_evidence: int = DEFAULT_EVIDENCE,
    ) -> None:
        self.priors = priors
        self.prior_shots = prior_shots
        self.center = center
        self.n_evidence = n_evidence

    def fit(
        self,
        vectors: ArrayLike,
        labels: Sequence[Hashable],
        *,
        ids: Sequence[str] | None = None,
        groups: Sequence[Hashable | None] | None = None,
    ) -> WordsAndShotsClassifier:
        """Put words and shots of each class together.

        Args:
            vectors: (n, d) support vectors; n may be 0, and then the words alone decide.
            labels: n class labels.
            ids: n distinct image ids; positions where absent.
            groups: n patients; each counts once in its class. None counts images.

        Returns:
            Itself.

        Raises:
            ValueError: Neither words nor shots, lists of unequal length, vectors that do not fit the words.
        """
        check_evidence(self.n_evidence)
        if not self.priors and not len(labels):
            raise ValueError("There is nothing to decide by: register images, or describe classes.")
        dims = {prior.vectors.shape[1] for prior in self.priors.values()}
        if len(labels):
            support = Support(vectors, labels, ids=ids, groups=groups)
            dims.add(support.vectors.shape[1])
        else:
            support = Support.nothing(min(dims))
        if len(dims) > 1:
            raise ValueError(
                f"Words and shots must be of one image space; got vectors of {' and '.join(map(str, sorted(dims)))} "
                "numbers: were the words aligned with this encoder?"
            )
        self._support = support
        self._center = self._learn(support)
        return self

    def _learn(self, support: Support) -> NDArray[np.float64]:
        learnt = self.prior_shots
        worth = learnt.shots if isinstance(learnt, WordsWorth) else float(learnt)
        if not (np.isfinite(worth) and worth > 0):
            raise ValueError(f"prior_shots must be a positive number of images; got {self.prior_shots!r}.")
        dim = support.vectors.shape[1]
        center = check_center(self.center, dim)
        self._rows = prepare(support.vectors, "cosine", center)  # (n, d), of unit length
        classes = sorted_classes([*support.classes, *(name for name in self.priors if name not in support.classes)])
        sums, shots = [], {}
        for label in classes:
            by_patient: dict[Hashable, list[int]] = {}
            for i in [i for i, name in enumerate(support.labels) if name == label]:
                by_patient.setdefault(support.groups[i], []).append(i)
            parts = [self._rows[members].mean(axis=0) for members in by_patient.values()]
            shots[label] = len(parts)
            sums.append(np.sum(parts, axis=0) if parts else np.zeros(dim))
        told = [self._prior_of(label) for label in classes]
        if isinstance(learnt, WordsWorth):
            both = [i for i, (label, prior) in enumerate(zip(classes, told, strict=True)) if prior and shots[label]]
            counts = np.array([shots[classes[i]] for i in both], dtype=np.intp)
            words = np.array([prior.mean for i in both if (prior := told[i]) is not None]).reshape(-1, dim)
            worth = learnt.for_set(words, np.array([sums[i] for i in both]).reshape(-1, dim) / counts[:, None], counts)
        prototypes = np.stack(
            [total if prior is None else total + worth * prior.mean for total, prior in zip(sums, told, strict=True)]
        )
        norm = np.sqrt((prototypes * prototypes).sum(axis=1, keepdims=True))
        self.classes_ = class_array(classes)
        self.prototypes_ = np.divide(prototypes, norm, out=np.zeros_like(prototypes), where=norm > 0)
        self.shots_, self.prior_shots_ = shots, worth
        return center

    def _compare(self, queries: NDArray[np.float32]) -> NDArray[np.float64]:
        return similarities(prepare(queries, "cosine", self._center), self.prototypes_, "cosine")

    def _decide_one(self, query: NDArray[np.float32], scores: NDArray[np.float64]) -> Decision:
        """Name phrases after the support images."""
        decision = super()._decide_one(query, scores)
        prepared = prepare(query, "cosine", self._center)
        return replace(
            decision,
            evidence=decision.evidence + self._phrases(prepared, decision.label),
            counter_evidence=decision.counter_evidence + self._phrases(prepared, decision.runner_up),
        )

    def _evidence(self, cosines: NDArray[np.float64], target: int) -> tuple[Neighbor, ...]:
        label = as_label(self.classes_[target])  # its place among the support's classes is another
        members = np.array([i for i, name in enumerate(self._support.labels) if name == label], dtype=np.intp)
        nearest = members[np.argsort(-cosines[members], kind="stable")[: self.n_evidence]]
        return tuple(Neighbor(self._support.ids[i], float(cosines[i]), label) for i in nearest.tolist())

    def _phrases(self, query: NDArray[np.float64], label: Hashable) -> tuple[Neighbor, ...]:
        prior = self._prior_of(label)
        return () if prior is None else prior.nearest(query, label, self.n_evidence)

    def _prior_of(self, label: Hashable) -> ClassPrior | None:
        return self.priors.get(label) if isinstance(label, str) else None


def _as_text(array: NDArray[np.float32]) -> str:
    return base64.b64encode(np.ascontiguousarray(array, dtype="<f4").tobytes()).decode("ascii")


def _from_text(text: str) -> NDArray[np.float32]:
    return np.frombuffer(base64.b64decode(text), dtype="<f4").astype(np.float32)
