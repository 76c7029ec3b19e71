"""The demo's words: findings on a side whose images no word was fitted on, asked by words, and with 0 to 5 shots."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from embeddings import TfidfTextEncoder
from episodes import patient_bootstrap
from fewshot import ClassPrior, learn_prior_shots
from fewshot.words_curve import BOTH, SHOTS, WORDS, words_curve
from zeroshot import (
    Prompts,
    ZeroShotClassifier,
    ZeroShotModel,
    built_in_descriptions,
    choose_gamma,
    evaluate_generalized,
    make_alignment,
    mark_all,
)
from zeroshot.disjoint import class_disjoint_priors

if TYPE_CHECKING:
    from embeddings import Encoder
    from episodes import Decision, Manifest

#: Sides that are told apart.
SIDES = ("left", "right")
#: Numbers of shots shown.
SHOWN_SHOTS = (0, 1, 2, 5)
#: Episodes per number of shots.
EPISODES = 50
#: The alignment.
ALIGNMENT = "contrastive"


@dataclass(frozen=True, eq=False)
class DemoWords:
    """What words alone did, and with shots.

    Attributes:
        summary: Figures for demo.json.
        examples: (image, true class, decision) of a few queries.
    """

    summary: dict[str, Any]
    examples: list[tuple[Path, str, Decision]]


def two_sided(source: Manifest) -> list[str]:
    """Findings that the source shows on either side."""
    pairs = set(zip(source.labels, source.table["side"], strict=True))
    return sorted({str(label) for label, _ in pairs if {(label, side) for side in SIDES} <= pairs})


def words_demo(encoder: Encoder, reported: Manifest, queries: Manifest, folder: Path, *, seed: int) -> DemoWords:
    """Align the encoder with the reports of an archive, leaving sides of some findings out, and ask for these.

    The encoder was trained on findings and never told a side. Of every third finding with both sides one is left out
    of everything the words are fitted on; the rest show what not being seen costs, by which gamma is chosen.
    Nobody in the archive or among the queries was seen by the encoder.

    Args:
        encoder: The demo's encoder.
        reported: Images with reports, of the findings of `two_sided`.
        queries: Other patients with the same findings.
        folder: Where the model is kept.
        seed: Of episodes and folds.
    """
    table = reported.table
    sides, labels = [str(side) for side in table["side"]], [str(label) for label in reported.labels]
    patients, reports = list(reported.groups or ()), [str(text) for text in table["report"]]
    combos = [f"{side} {label}" for side, label in zip(sides, labels, strict=True)]
    findings = two_sided(reported)
    unseen = sorted(f"{SIDES[i % 2]} {finding}" for i, finding in enumerate(findings[::3]))
    seen = sorted({f"{side} {finding}" for side in SIDES for finding in findings} - set(unseen))
    fitted = np.flatnonzero(~np.isin(combos, unseen))
    vectors = encoder.encode(reported.images)
    words = TfidfTextEncoder(dim=128).fit(mark_all([reports[i] for i in fitted]))
    model = ZeroShotModel.fit(
        vectors[fitted],
        [reports[i] for i in fitted],
        encoder=encoder,
        text_encoder=words,
        alignment=ALIGNMENT,
        denials=True,
    )
    descriptions = {name: _sentences(name) for name in (*seen, *unseen)}
    known = [i for i in fitted.tolist() if combos[i] in seen]
    named = [combos[i] for i in known]
    space = model.space({name: descriptions[name] for name in seen})
    texts = model.encode_texts([reports[i] for i in known])
    gamma = choose_gamma(
        vectors[known],
        named,
        space,
        lambda: make_alignment(ALIGNMENT),
        texts=texts,
        groups=[patients[i] for i in known],
        seed=seed,
    )
    apart = class_disjoint_priors(vectors[known], texts, named, space)
    worth = learn_prior_shots(
        vectors[known],
        named,
        {name: ClassPrior(*prior) for name, prior in apart.items()},
        center=model.to_image.image_mean,
        groups=[patients[i] for i in known],
        shots=(1, 2, 5),
        n_episodes=30,
        seed=seed,
    )
    model = model.with_settings(gamma=gamma, prior_shots=worth.shots, seen=seen)
    model.facts["worth"] = asdict(worth)
    model.save(folder)

    truth = [f"{side} {label}" for side, label in zip(queries.table["side"], queries.labels, strict=True)]
    owners, shown = list(queries.groups or ()), encoder.encode(queries.images)
    asked = np.flatnonzero(np.isin(truth, [*seen, *unseen]))
    both = ZeroShotClassifier(model).describe(descriptions)
    report = evaluate_generalized(
        model.shared.scores(shown[asked], both.space_.vectors),
        [truth[i] for i in asked],
        [*seen, *unseen],
        seen,
        gamma=gamma,
        groups=[owners[i] for i in asked],
        draws=200,
        seed=seed,
    )
    alone = ZeroShotClassifier(model, n_evidence=2).describe({name: descriptions[name] for name in unseen})
    own = np.flatnonzero(np.isin(truth, unseen))
    priors = {name: ClassPrior(*prior) for name, prior in model.image_priors(alone.space_).items()}
    points = words_curve(
        shown[own],
        [truth[i] for i in own],
        [owners[i] for i in own],
        priors,
        prior_shots=worth,
        center=model.to_image.image_mean,
        shots=SHOWN_SHOTS,
        n_query=5,
        n_episodes=EPISODES,
        seed=seed,
    )
    decisions = alone.decide(shown[own])
    right = np.array([decision.label == truth[i] for i, decision in zip(own, decisions, strict=True)])
    targets = np.array([unseen.index(truth[i]) for i in own])
    found = patient_bootstrap(right, targets, np.unique([owners[i] for i in own], return_inverse=True)[1], seed=seed)
    examples: dict[str, tuple[Path, str, Decision]] = {}
    for i, decision in zip(own.tolist(), decisions, strict=True):
        examples.setdefault(truth[i], (queries.images[i], truth[i], decision))
    return DemoWords(
        summary={
            "seen": seen,
            "unseen": unseen,
            "reports": len(fitted),
            "accuracy": found.estimate,
            "interval": [found.low, found.high],
            "chance": 1 / len(unseen),
            "images": len(own),
            "gamma": gamma,
            "prior_shots": worth.shots,
            "generalized": {
                key: [part.estimate, part.low, part.high]
                for key, part in (
                    ("S", report.seen),
                    ("U", report.unseen),
                    ("H", report.harmonic),
                    ("AUSUC", report.area),
                )
            },
            "curve": [
                {
                    "k_shot": point.k_shot,
                    "n_way": len(point.classes),
                    "patients": point.patients,
                    **{
                        name: [part.estimate, part.low, part.high]
                        for name, part in point.found.items()
                        if name in (WORDS, SHOTS, BOTH)
                    },
                }
                for point in points
            ],
        },
        examples=list(examples.values())[:4],
    )


def _sentences(name: str) -> Prompts:
    """What a report would say of a finding on a side."""
    side, finding = name.split(" ", 1)
    terms = [text.rstrip(".") for text in built_in_descriptions("phantoms")[finding].present if " shows " not in text]
    plain = [text for text in terms if not text.startswith(("There is", "Findings"))]
    return Prompts(tuple([f"{text} on the {side}." for text in plain] + [f"{text}, {side}." for text in plain]))
