"""The head that does best on the support itself, each patient judged by heads that never saw him.

Leave-one-out choice is Stone 1974 ("Cross-validatory choice and assessment of statistical predictions"). Heads are
compared by log-loss and not by accuracy, which for 25 patients sees only who crossed the line, and ties as a rule.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from episodes import Decision

from .head import Head
from .held_out import fit_folds, held_out_scores, patient_codes, patient_folds
from .linear import RidgeClassifier
from .prototypes import DEFAULT_EVIDENCE, PrototypeClassifier
from .span import Span, balanced_weights
from .support import Support, check_center, check_evidence, check_fitted

#: Makes a fresh head from the centre to subtract and the number of images to name.
Candidate = Callable[[ArrayLike | None, int], Head]

#: What is chosen among, the favourite first. All give the same answers in rotated coordinates. More candidates were
#: tried (other penalties, nearest neighbour, shrunk Gaussian): the more there are, the more often luck decides.
CANDIDATES: dict[str, Candidate] = {
    "ridge": lambda center, n: RidgeClassifier(center=center, n_evidence=n),
    "prototypes": lambda center, n: PrototypeClassifier(center=center, n_evidence=n),
    "ridge-lengths": lambda center, n: RidgeClassifier(normalize=False, center=center, n_evidence=n),
}
#: Taken where nothing can be left out: one patient per class.
DEFAULT = "prototypes"
#: What a candidate must beat the favourite by, in log-loss (nats per patient); less is chance.
LEAST_GAIN = 0.05
#: Temperatures tried, as multiples of the spread of a head's scores: each head is judged at its own best one.
TEMPERATURES = np.geomspace(0.02, 50.0, 33)


@dataclass(frozen=True, slots=True)
class Trial:
    """How one candidate did on patients it had not seen.

    Attributes:
        name: The candidate.
        log_loss: Mean of -log p(own class) at the candidate's best temperature, in nats; patients and classes weigh
            alike.
        accuracy: Share answered rightly, with the same weights.
    """

    name: str
    log_loss: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class HeadChoice:
    """Which head was taken, and why.

    Attributes:
        name: The candidate taken.
        trials: Every candidate's trial, the favourite first; empty where nothing could be left out.
        patients: Patients the candidates were judged on.
        reason: One sentence.
    """

    name: str
    trials: tuple[Trial, ...]
    patients: int
    reason: str


class AutoClassifier:
    """Takes, of a few heads, the one that answers best for support patients it has not seen.

    Every patient is left out in turn (above 200 patients, twenty folds of patients), each candidate is fitted to the
    others, and the candidate with the lowest log-loss is fitted to the whole support. It must beat the favourite, ridge
    regression, by 0.05 nats. A class with a single patient cannot be judged and is passed over; where fewer than two
    classes can be, as with one shot each, the default is taken: nearest class mean.

    Args:
        center: (d,) mean of the **source** domain to subtract first, usually `encoder.source_mean`; None subtracts
            nothing.
        candidates: Name -> maker; `CANDIDATES` by default. The first is the favourite; where nothing can be left out
            "prototypes" is taken, or the first where there is none of this name. A candidate must give the same scores
            in rotated coordinates once centred, as all heads do that know vectors only by lengths and inner products.
        n_evidence: Support images named per decision for the winner, and for the runner-up.

    Attributes:
        choice_: What was taken and by how much.
        head_: The head taken, fitted to the whole support.
        classes_: The labels, sorted, as the caller gave them.

    Example:
        >>> clf = AutoClassifier().fit([[1.0, 0.0], [0.0, 1.0]], ["a", "b"])
        >>> clf.choice_.name, clf.choice_.reason
        ('prototypes', 'prototypes: with one patient per class nothing can be left out, so the default stands.')
    """

    transductive: ClassVar[bool] = False
    choice_: HeadChoice
    head_: Head
    classes_: NDArray[Any]

    def __init__(
        self,
        *,
        center: ArrayLike | None = None,
        candidates: Mapping[str, Candidate] | None = None,
        n_evidence: int = DEFAULT_EVIDENCE,
    ) -> None:
        self.center = center
        self.candidates = candidates
        self.n_evidence = n_evidence

    def fit(
        self,
        vectors: ArrayLike,
        labels: Sequence[Hashable],
        *,
        ids: Sequence[str] | None = None,
        groups: Sequence[Hashable | None] | None = None,
    ) -> AutoClassifier:
        """Choose a head and fit it.

        Args:
            vectors: (n, d) support vectors.
            labels: n class labels.
            ids: n distinct image ids, named as evidence; positions where absent.
            groups: n patients; each is left out with all images. None counts images.

        Returns:
            Itself.

        Raises:
            ValueError: No candidates, an empty support, NaN, lists of unequal length, repeated ids, a missing label.
        """
        check_evidence(self.n_evidence)
        candidates = CANDIDATES if self.candidates is None else self.candidates
        if not candidates:
            raise ValueError("candidates must name at least one head; got none.")
        support = Support(vectors, labels, ids=ids, groups=groups)
        center = check_center(self.center, support.vectors.shape[1])
        self.choice_ = choose_head(support, center, candidates)
        self.head_ = candidates[self.choice_.name](self.center, self.n_evidence)
        self.head_.fit(vectors, labels, ids=ids, groups=groups)
        self.classes_ = self.head_.classes_
        return self

    def scores(self, vectors: ArrayLike) -> NDArray[np.float64]:
        """Scores (n, n_classes) of the head taken, in the order of `classes_`; not probabilities."""
        return self._taken().scores(vectors)

    def predict(self, vectors: ArrayLike) -> NDArray[Any]:
        """Labels (n,) of the head taken; None where `decide` has no label."""
        return self._taken().predict(vectors)

    def decide(self, vectors: ArrayLike) -> list[Decision]:
        """The full answers of the head taken."""
        return self._taken().decide(vectors)

    def _taken(self) -> Head:
        check_fitted(self, "head_")
        return self.head_


def choose_head(support: Support, center: NDArray[np.float64], candidates: Mapping[str, Candidate]) -> HeadChoice:
    """Judge every candidate on patients it has not seen.

    Args:
        support: The support.
        center: (d,) what is subtracted first.
        candidates: The favourite first.

    Returns:
        The choice.
    """
    favourite = next(iter(candidates))
    default = DEFAULT if DEFAULT in candidates else favourite
    judged = judged_rows(support)
    if len(np.unique(support.targets[judged])) < 2:
        reason = f"{default}: with one patient per class nothing can be left out, so the default stands."
        if len(support.classes) == 1:
            reason = f"{default}: there is a single class, so the default stands."
        return HeadChoice(default, (), 0, reason)
    patients = len(np.unique(patient_codes(support)[judged]))
    if len(candidates) == 1:
        return HeadChoice(favourite, (), patients, f"{favourite}: it is the only candidate.")
    # In coordinates of their own span 25 images have 25 dimensions, and leaving each out takes a tenth of the time.
    rows = Span.of(support.vectors.astype(np.float64) - center).coordinates
    turned = Support(rows, support.labels, ids=support.ids, groups=support.groups)
    folds = patient_folds(turned)
    trials = tuple(_trial(name, make, turned, folds, judged) for name, make in candidates.items())
    best = min(trials, key=lambda trial: trial.log_loss)
    taken = best if best.log_loss < trials[0].log_loss - LEAST_GAIN else trials[0]
    return HeadChoice(taken.name, trials, patients, _reason(taken, best, trials, patients))


def judged_rows(support: Support) -> NDArray[np.bool_]:
    """Which support images can be judged by others of their class, (n,): those of classes with two patients or more."""
    patients = patient_codes(support)
    shots = [len(np.unique(patients[support.targets == c])) for c in range(len(support.classes))]
    return np.asarray(np.array(shots)[support.targets] > 1, dtype=np.bool_)


def _trial(
    name: str, make: Candidate, support: Support, folds: list[NDArray[np.intp]], judged: NDArray[np.bool_]
) -> Trial:
    scores = held_out_scores(fit_folds(lambda: make(None, 0), support, folds), support)  # (n, n_classes)
    own = scores[np.arange(len(support)), support.targets]
    told = judged & np.isfinite(own)  # nothing can be said of a zero vector, or of a class whose patients all went
    weights = balanced_weights(support)[told]
    weights /= weights.sum()
    shown, targets = scores[told], support.targets[told]
    right = shown.argmax(axis=1) == targets
    return Trial(name, _log_loss(shown, targets, weights), float((weights * right).sum()))


def _log_loss(scores: NDArray[np.float64], targets: NDArray[np.int64], weights: NDArray[np.float64]) -> float:
    """Log-loss (nats) of softmax(scores / temperature) at the best of the temperatures."""
    shifted = scores - scores.max(axis=1, keepdims=True)  # (n, n_classes), the winner at 0; -inf where unknown
    spread = float(np.abs(shifted[np.isfinite(shifted)]).mean()) or 1.0
    logits = shifted / (spread * TEMPERATURES[:, None, None])  # (temperatures, n, n_classes)
    own = logits[:, np.arange(len(targets)), targets]
    losses = np.log(np.exp(logits).sum(axis=2)) - own  # (temperatures, n)
    return float((losses * weights).sum(axis=1).min())


def _reason(taken: Trial, best: Trial, trials: Sequence[Trial], patients: int) -> str:
    over = f"over {patients} patients left out in turn"
    rival = trials[0] if taken is not trials[0] else min(trials[1:], key=lambda trial: trial.log_loss)
    shown = f"log-loss {taken.log_loss:.3f} against {rival.log_loss:.3f} of {rival.name} {over}"
    if taken is not best:
        shown += f", which is less than {LEAST_GAIN:g} better"
    return f"{taken.name}: {shown} (accuracy {taken.accuracy:.3f} against {rival.accuracy:.3f})."
