"""What answers in earnest: one version of a set, with the head, calibration and thresholds fitted to it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from episodes import Decision, Neighbor

from .conformal import ROUNDING, SplitConformal
from .cross_conformal import CrossConformal, fold_scores
from .deployment_fit import adapted, class_closeness, fitted_head, nearest_class, prior_of
from .deployment_store import Members, Record
from .evidence import Counterfactual, what_would_change
from .fitted import Fitted
from .held_out import fit_folds, patient_folds
from .prototypes import DEFAULT_EVIDENCE
from .registry import WORDS_HEAD, make_head
from .studies import pool_p_values, pool_probabilities, pool_scores, study_names
from .support import as_label, check_center, prepare, similarities

if TYPE_CHECKING:
    from embeddings import SimilarityHead, SourceStatistics

    from .head import Head
    from .priors import Words


class Deployment:
    """Answers from one version of a comparison set, with probabilities where they were earned.

    Made by `deploy`, opened by `open_deployment`. It decides by the support images its set held when it was made, and
    no later ones; of those that were removed since, nothing is left in it: it is fitted again to the rest, which equals
    never having had them, or goes without a probability where too few are left. That happens when it is opened: one
    that is held open answers as it did.

    Attributes:
        number: Deployments of a set are numbered from 1.
        recipe: What was asked for.
        fitted: What it became: the head, the calibration, the thresholds, and what could not be promised.
        set_version: The set's version it was made from.
        created_at: When it was made, UTC.
        removed: Images of that version that were removed since.
        classes: The labels, sorted.
        support_ids: The images it decides by, sorted.
    """

    def __init__(
        self,
        record: Record,
        members: Members,
        fitted: Fitted,
        *,
        similarity: SimilarityHead | None = None,
        source: SourceStatistics | None = None,
    ) -> None:
        """Wrap what was read; use `deploy` or `open_deployment`."""
        self.number, self.recipe, self.created_at = record.number, record.recipe, record.created_at
        self.set_version, self.removed = record.set_version, record.removed_from(members)
        self.fitted = fitted
        self._center = record.center
        self._similarity, self._source = similarity, source
        self._support = members.support
        self._words = record.words if fitted.head == WORDS_HEAD else None
        told = () if self._words is None else self._words.priors
        self.classes: list[str] = sorted({*(str(label) for label in self._support.classes), *told})
        self._recipe = adapted(self.recipe, self.classes)[0]  # of classes that were removed nothing is asked
        self.support_ids: list[str] = self._support.ids

    @property
    def remarks(self) -> tuple[str, ...]:
        """One sentence each: what cannot be promised, and what it would take."""
        if not self.removed:
            return self.fitted.remarks
        images = "image was" if self.removed == 1 else "images were"
        again = f"{self.removed:,} {images} removed since it was made; it was fitted again without."
        return (again, *self.fitted.remarks)

    @property
    def words(self) -> Words | None:
        """What words said of the classes when it was made, if it decides by them."""
        return self._words

    @property
    def promised(self) -> float | None:
        """Share of patients whose prediction set is promised to hold the true class, or None without sets."""
        sets = self.fitted.sets
        if sets is None:
            return None
        return sets.promised(self.recipe.coverage) if isinstance(sets, CrossConformal) else self.recipe.coverage

    @cached_property
    def head(self) -> Head:
        """The head, fitted to the support; its scores are not calibrated."""
        return fitted_head(self.make(), self._support)

    def make(self) -> Head:
        """A fresh head of the deployment's kind."""
        return make_head(
            self.fitted.head,
            center=self._center,
            similarity=self._similarity,
            source=self._source,
            words=self._words,
        )

    def decide(self, vectors: ArrayLike, *, n_evidence: int = DEFAULT_EVIDENCE) -> list[Decision]:
        """The full answer to each query.

        Args:
            vectors: (m, d) images asked about.
            n_evidence: Support images named for the winner, and for the runner-up.

        Returns:
            m decisions. `probability` is calibrated or None; `label` is None, with a reason, where it is none of these,
            where the likeliest class is not likely enough, or where nothing can be decided. Evidence is by cosine.

        Raises:
            ValueError: Vectors of another encoder.
        """
        rows = np.asarray(vectors, dtype=np.float32)
        return self.decide_studies(rows, range(len(rows)), n_evidence=n_evidence)

    def decide_studies(
        self,
        vectors: ArrayLike,
        studies: Sequence[Hashable],
        *,
        views: Sequence[Hashable] | None = None,
        n_evidence: int = DEFAULT_EVIDENCE,
    ) -> list[Decision]:
        """One answer per study, from all its images: probabilities are averaged, p-values are twice their mean.

        A study of several images has no flags: thresholds were chosen on the probabilities of single images.

        Args:
            vectors: (m, d) images asked about.
            studies: The study of each image.
            views: The view of each image; images of one view share a weight of 1. None counts images.
            n_evidence: As for `decide`.

        Returns:
            A decision per study in order of first appearance.

        Raises:
            ValueError: Vectors of another encoder, lists of unequal length, a missing study.
        """
        rows = np.ascontiguousarray(vectors, dtype=np.float32)
        scores = self.head.scores(rows)
        names = study_names(studies)
        pooled = pool_scores(scores, studies, views=views)
        shown = pooled
        if self.fitted.probabilities is not None:
            prior = prior_of(self._recipe, self.classes)
            shown = pool_probabilities(
                self.fitted.probabilities.probabilities(scores, prior=prior), studies, views=views
            )
        sets = self._sets(scores, rows, studies, views)
        near = self._novelty(rows, studies, views)
        members: dict[Hashable, list[int]] = {name: [] for name in names}
        for i, name in enumerate(studies):
            members[as_label(name)].append(i)
        decisions = []
        for study, own in enumerate(members.values()):
            if np.isnan(shown[study]).any():
                reason = self.head.decide(rows[own[:1]])[0].reason or "Nothing can be decided about it."
                decisions.append(Decision(label=None, probability=None, score=None, margin=None, reason=reason))
                continue
            told = rows[[i for i in own if not np.isnan(scores[i]).any()]]
            prepared = prepare(told, "cosine", self._mean)
            cosines = similarities(prepared, self._rows, "cosine").max(axis=0)
            decisions.append(
                self._decision(
                    pooled[study],
                    shown[study],
                    None if sets is None else sets[study],
                    None if near is None else float(near[study, 0]),
                    cosines,
                    prepared,
                    n_evidence,
                    single=len(told) == 1,
                )
            )
        return decisions

    def explain(self, vector: ArrayLike) -> Counterfactual:
        """What would change the answer to one query: which patients' removal, the kind of head staying as it is.

        Args:
            vector: (d,) the query.
        """
        support = self._support
        return what_would_change(
            self.make,
            support.vectors,
            support.labels,
            vector,
            ids=support.ids,
            groups=support.groups,
        )

    def to_dict(self) -> dict[str, Any]:
        """What it is, as plain values."""
        fitted = self.fitted.to_json()
        for part in ("sets", "novelty"):
            if fitted[part] is not None:
                fitted[part] = {k: fitted[part][k] for k in ("kind", "nonconformity", "per_class", "patients")}
        return {
            "number": self.number,
            "created_at": self.created_at,
            "set_version": self.set_version,
            "classes": self.classes,
            "support_images": len(self._support),
            "removed": self.removed,
            "recipe": self.recipe.to_json(),
            "fitted": fitted,
            "promised_coverage": self.promised,
            "remarks": list(self.remarks),
        }

    # -- inside --------------------------------------------------------------------------------------------------

    @cached_property
    def _mean(self) -> NDArray[np.float64]:
        center = self._center if self._words is None else self._words.center  # the one the head decides with
        return check_center(center, self._support.vectors.shape[1])

    @cached_property
    def _rows(self) -> NDArray[np.float64]:
        return prepare(self._support.vectors, "cosine", self._mean)

    @cached_property
    def _closeness(self) -> Head:
        return fitted_head(class_closeness(self._center), self._support)

    @cached_property
    def _folds(self) -> Any:
        return fit_folds(self.make, self._support, patient_folds(self._support))

    @cached_property
    def _near_folds(self) -> Any:
        return fit_folds(lambda: class_closeness(self._center), self._support, patient_folds(self._support))

    def _sets(
        self,
        scores: NDArray[np.float64],
        rows: NDArray[np.float32],
        studies: Sequence[Hashable],
        views: Sequence[Hashable] | None,
    ) -> NDArray[np.float64] | None:
        """p-values of each study for each class, or None where nothing was calibrated."""
        predictor = self.fitted.sets
        if predictor is None:
            return None
        if isinstance(predictor, SplitConformal):
            return pool_p_values(predictor.p_values(scores), studies, views=views)
        found = fold_scores(self._folds, rows, len(self.classes))
        return pool_p_values(predictor.p_values(found), studies, views=views)

    def _novelty(
        self, rows: NDArray[np.float32], studies: Sequence[Hashable], views: Sequence[Hashable] | None
    ) -> NDArray[np.float64] | None:
        """p-value (n_studies, 1) of a study being of the classes: how many patients are as far from their nearest."""
        predictor = self.fitted.novelty
        if predictor is None:
            return None
        if isinstance(predictor, SplitConformal):
            found = predictor.p_values(nearest_class(self._closeness.scores(rows)))
        else:
            found = predictor.p_values(nearest_class(fold_scores(self._near_folds, rows, len(self.classes))))
        return pool_p_values(found, studies, views=views)

    def _decision(
        self,
        scores: NDArray[np.float64],
        shown: NDArray[np.float64],
        p_values: NDArray[np.float64] | None,
        nearness: float | None,
        cosines: NDArray[np.float64],
        prepared: NDArray[np.float64],
        n_evidence: int,
        *,
        single: bool,
    ) -> Decision:
        """Put one study's answer together; `shown` is probabilities where there are any, else the scores."""
        order = np.argsort(-shown, kind="stable")
        first, second = int(order[0]), int(order[1]) if len(order) > 1 else None
        probability = None if self.fitted.probabilities is None else float(shown[first])
        reason = self._why_no_label(first, probability, nearness)
        # The winner always belongs to the set: an empty one would only say that no class stands out.
        likeliest = [i for i in order.tolist() if i == first or not _ruled_out(p_values, i, self.recipe.coverage)]
        return Decision(
            label=self.classes[first] if reason is None else None,
            probability=probability if reason is None else None,
            score=float(scores[first]),
            margin=None if second is None else float(scores[first] - scores[second]),
            evidence=self._evidence(cosines, prepared, first, n_evidence),
            runner_up=None if second is None else self.classes[second],
            counter_evidence=() if second is None else self._evidence(cosines, prepared, second, n_evidence),
            reason=reason,
            prediction_set=None if p_values is None else tuple(self.classes[i] for i in likeliest),
            coverage=self.promised,
            flags=tuple(
                label
                for label, point in sorted(self.fitted.points.items())
                if single and shown[self.classes.index(label)] >= point.threshold
            ),
        )

    def _why_no_label(self, first: int, probability: float | None, nearness: float | None) -> str | None:
        rate, least = self.recipe.turned_away, self.recipe.least_probability
        if nearness is not None and rate is not None and nearness <= rate + ROUNDING:
            return (
                f"None of these: it is farther from every class than all but {rate:.0%} of the patients calibrated on "
                f"are from their nearest."
            )
        if least is not None and probability is not None and probability < least:
            return (
                f"Uncertain: the likeliest class, {self.classes[first]!r}, has a probability of {probability:.2f}, "
                f"below {least:g}."
            )
        return None

    def _evidence(
        self, cosines: NDArray[np.float64], prepared: NDArray[np.float64], target: int, count: int
    ) -> tuple[Neighbor, ...]:
        """Support images of a class, then what is said of it, each most similar first."""
        label = self.classes[target]
        members = np.array([i for i, name in enumerate(self._support.labels) if str(name) == label], dtype=np.intp)
        nearest = members[np.argsort(-cosines[members], kind="stable")[:count]]
        found = tuple(Neighbor(self._support.ids[i], float(cosines[i]), label) for i in nearest.tolist())
        if self._words is None or label not in self._words.priors:
            return found
        return found + self._words.priors[label].nearest(prepared, label, count)


def _ruled_out(p_values: NDArray[np.float64] | None, target: int, coverage: float) -> bool:
    return p_values is not None and bool(p_values[target] <= 1 - coverage + ROUNDING)
