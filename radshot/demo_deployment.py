"""The demo's deployment: calibrated on further patients, asked about the others and about findings taken out of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from episodes import patient_bootstrap, reliability
from fewshot import ComparisonSet, Recipe, deploy, open_deployment

if TYPE_CHECKING:
    from embeddings import Encoder
    from episodes import Decision, Manifest, Reliability
    from fewshot import Deployment
    from fewshot.heatmaps import Explanation

#: Patients of each finding set aside for calibration; none of them supports the set or is asked about.
CALIBRATION_PATIENTS = 10
#: What is asked of it: sets that hold the truth for 90 % of patients, and at most 5 % of known patients turned away.
RECIPE = Recipe()
#: Right answers shown of each finding, and wrong ones in all.
SHOWN_RIGHT, SHOWN_WRONG = 1, 2


@dataclass(frozen=True)
class Example:
    """One query and its answer, with the heat maps of why.

    Attributes:
        row: Row of the manifest.
        decision: The deployment's answer.
        known: Whether the query's finding was in the set that answered.
        explanation: Heat maps of the answer, or None where it was "none of these".
    """

    row: int
    decision: Decision
    known: bool
    explanation: Explanation | None


@dataclass(frozen=True)
class DemoDeployment:
    """What the deployment answered.

    Attributes:
        summary: Plain values, "deployment" of demo.json.
        before: How far the softmax of raw scores is from the shares of labels that were right; None where no label was
            given or nothing was calibrated.
        after: The same of the calibrated probabilities.
        examples: Queries to show.
    """

    summary: dict[str, Any]
    before: Reliability | None
    after: Reliability | None
    examples: list[Example]


@dataclass(frozen=True, eq=False)
class _Answers:
    """Answers to rows of a manifest."""

    rows: list[int]
    decisions: list[Decision]
    truth: list[str]
    patients: list[str]

    @classmethod
    def of(
        cls, deployment: Deployment, manifest: Manifest, vectors: NDArray[np.float32], rows: Sequence[int]
    ) -> _Answers:
        """Ask the deployment about these rows."""
        decisions = deployment.decide(vectors[list(rows)])
        labels, groups = manifest.labels, list(manifest.groups or ())
        return cls(list(rows), decisions, [str(labels[i]) for i in rows], [str(groups[i]) for i in rows])

    def share(self, outcomes: Sequence[bool | float], kept: Sequence[bool] | None = None) -> dict[str, Any] | None:
        """Mean over findings of the outcomes, with its interval over patients; of the kept answers alone.

        Where all patients are alike, resampling them says nothing of others, and there is no interval.
        """
        own = [i for i in range(len(self.rows)) if kept is None or kept[i]]
        if not own:
            return None
        codes = [np.unique([values[i] for i in own], return_inverse=True)[1] for values in (self.truth, self.patients)]
        found = patient_bootstrap([outcomes[i] for i in own], *codes)
        return {"value": found.estimate, "interval": [found.low, found.high] if found.low < found.high else None}

    @property
    def turned_away(self) -> list[bool]:
        """Which were answered "none of these"."""
        return [decision.label is None for decision in self.decisions]

    @property
    def right(self) -> list[bool]:
        """Which got their own label."""
        return [decision.label == label for decision, label in zip(self.decisions, self.truth, strict=True)]


def deploy_demo(
    folder: Path, encoder: Encoder, manifest: Manifest, vectors: NDArray[np.float32], asked: Sequence[int], *, seed: int
) -> DemoDeployment:
    """Set patients aside, deploy the comparison set and measure what it answers.

    Every finding of the phantoms is either trained on or in the set, so that there is no other one to be unknown: each
    of the set's findings in turn is taken out of a copy of it, whose deployment is fitted again without and asked about
    that finding.

    Args:
        folder: The comparison set; the deployment stays in it.
        encoder: The set's encoder.
        manifest: The images, with patients.
        vectors: (n, d) of the manifest's images.
        asked: Rows of patients who do not support the set; some of the patients are set aside, the others asked about.
        seed: Of the choice of patients.

    Returns:
        What was measured, and some queries to show.
    """
    aside, rest = _set_aside(manifest, asked, seed)
    with ComparisonSet.open(folder, encoder=encoder) as cases:
        owners = list(manifest.groups or ())
        for label in cases.classes:
            own = [i for i in aside if manifest.labels[i] == label]
            images = [manifest.images[i] for i in own]
            cases.register(label, images, patients=[str(owners[i]) for i in own], role="calibration")
        deployment = deploy(cases, RECIPE)
        answers = _Answers.of(deployment, manifest, vectors, rest)
        examples = _known_examples(answers, _explainer(cases, deployment, encoder, manifest))
        strange, shown = _unknown(cases, encoder, manifest, vectors, rest)
    before, after = _reliabilities(deployment, answers, vectors)
    given = [not turned for turned in answers.turned_away]
    summary = {
        "head": deployment.fitted.head,
        "head_reason": deployment.fitted.head_reason,
        "calibrated_on": deployment.fitted.calibrated_on,
        "calibration_patients": dict(deployment.fitted.patients),
        "patients": len(set(answers.patients)),
        "images": len(rest),
        "answered": answers.share(given),
        "accuracy_of_labels": answers.share(answers.right, given),
        "calibration_error": {
            "before": None if before is None else before.ece,
            "after": None if after is None else after.ece,
        },
        "reliability": None if after is None else after.to_dict(),
        "sets": _sets(deployment, answers),
        "none_of_these": {
            "allowed": RECIPE.turned_away,
            "known": answers.share(answers.turned_away),
            "unknown": strange,
        },
        "remarks": list(deployment.remarks),
    }
    return DemoDeployment(summary, before, after, examples + shown)


def _set_aside(manifest: Manifest, asked: Sequence[int], seed: int) -> tuple[list[int], list[int]]:
    """Rows of the patients set aside, some of each finding, and the rows of all others asked about."""
    owners, rng = list(manifest.groups or ()), np.random.default_rng([seed, 6])
    chosen: set[Any] = set()
    for label in sorted({str(manifest.labels[i]) for i in asked}):
        own = sorted({owners[i] for i in asked if manifest.labels[i] == label} - chosen)
        chosen.update(own[i] for i in rng.permutation(len(own))[:CALIBRATION_PATIENTS])
    return [i for i in asked if owners[i] in chosen], [i for i in asked if owners[i] not in chosen]


def _reliabilities(
    deployment: Deployment, answers: _Answers, vectors: NDArray[np.float32]
) -> tuple[Reliability | None, Reliability | None]:
    """Of the labels given, how the likeliest class's softmax of raw scores, and its probability, go with the truth."""
    given = [i for i, turned in enumerate(answers.turned_away) if not turned]
    if not given or deployment.fitted.probabilities is None:
        return None, None
    scores = deployment.head.scores(vectors[[answers.rows[i] for i in given]])  # (m, n_classes)
    raised = np.exp(scores - scores.max(axis=1, keepdims=True))
    raw = (raised / raised.sum(axis=1, keepdims=True)).max(axis=1)
    shown = deployment.fitted.probabilities.probabilities(scores).max(axis=1)
    right, patients = [answers.right[i] for i in given], [answers.patients[i] for i in given]
    return (
        reliability(raw, right, patients, equal="mass"),
        reliability(np.minimum(shown, 1.0), right, patients, equal="mass"),
    )


def _sets(deployment: Deployment, answers: _Answers) -> dict[str, Any] | None:
    """Whether the prediction sets hold the truth as often as promised, and how large they are."""
    if deployment.promised is None:
        return None
    members = [decision.prediction_set or () for decision in answers.decisions]
    return {
        "promised": deployment.promised,
        "coverage": answers.share([label in held for label, held in zip(answers.truth, members, strict=True)]),
        "mean_size": float(np.mean([len(held) for held in members])),
        "of_classes": len(deployment.classes),
    }


def _unknown(
    cases: ComparisonSet, encoder: Encoder, manifest: Manifest, vectors: NDArray[np.float32], rows: Sequence[int]
) -> tuple[dict[str, Any], list[Example]]:
    """Take each finding in turn out of a copy of the set and ask the rest about it."""
    per_finding: dict[str, Any] = {}
    every: list[_Answers] = []
    caught: Example | None = None
    missed: Example | None = None
    for label in cases.classes:
        with tempfile.TemporaryDirectory() as work:
            copy = cases.archive.backup(Path(work) / "cases")
            with ComparisonSet.open(copy, encoder=encoder) as smaller:
                smaller.remove(label=label)
                deployment = open_deployment(smaller)  # fitted again without the finding
                own = [i for i in rows if manifest.labels[i] == label]
                answers = _Answers.of(deployment, manifest, vectors, own)
                known = _Answers.of(deployment, manifest, vectors, [i for i in rows if manifest.labels[i] != label])
                explain = _explainer(smaller, deployment, encoder, manifest)
        every.append(answers)
        per_finding[label] = {
            "answered_none_of_these": answers.share(answers.turned_away),
            "known_turned_away": known.share(known.turned_away),
        }
        for row, decision in zip(answers.rows, answers.decisions, strict=True):
            if decision.label is None:
                caught = caught or Example(row, decision, known=False, explanation=None)
            elif missed is None:
                missed = Example(row, decision, known=False, explanation=explain(row))
    pooled = _Answers(
        [row for answers in every for row in answers.rows],
        [decision for answers in every for decision in answers.decisions],
        [label for answers in every for label in answers.truth],
        [patient for answers in every for patient in answers.patients],
    )
    found = {"answered_none_of_these": pooled.share(pooled.turned_away), "per_finding": per_finding}
    return found, [example for example in (caught, missed) if example is not None]


def _known_examples(answers: _Answers, explain: Callable[[int], Explanation]) -> list[Example]:
    """The first right answer of each finding, the first wrong ones, and the first patient turned away."""
    places = range(len(answers.rows))
    chosen: list[int] = []
    for label in sorted(set(answers.truth)):
        chosen += [i for i in places if answers.truth[i] == label and answers.right[i]][:SHOWN_RIGHT]
    chosen += [i for i in places if not answers.right[i] and not answers.turned_away[i]][:SHOWN_WRONG]
    chosen += [i for i in places if answers.turned_away[i]][:1]
    return [
        Example(
            answers.rows[i],
            answers.decisions[i],
            known=True,
            explanation=None if answers.turned_away[i] else explain(answers.rows[i]),
        )
        for i in chosen
    ]


def _explainer(
    cases: ComparisonSet, deployment: Deployment, encoder: Encoder, manifest: Manifest
) -> Callable[[int], Explanation]:
    """Makes the heat maps of a row's answer: why this label and not the runner-up."""
    from fewshot import PrototypeClassifier
    from fewshot.heatmaps import explain_image

    means = PrototypeClassifier(center=encoder.source_mean).fit(cases.vectors, cases.labels, ids=cases.ids)
    return lambda row: explain_image(encoder, deployment.head, manifest.images[row], prototypes=means)
