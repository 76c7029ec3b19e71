"""The demo's page: queries with their evidence, accuracy beside the baselines, searches; one file, no scripts."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Any

import jinja2

from episodes import Decision

from . import __version__
from .demo import DemoResult
from .demo_deployment_page import deployment_context
from .thumbnails import thumbnail

#: Queries shown per class: first those answered wrongly (at most one), then right ones.
SHOWN_PER_CLASS = 2
#: Support images shown for the winner, and for the runner-up.
SHOWN_EVIDENCE = 3
#: Drawing area of the learning curve, in its own units.
CURVE_WIDTH, CURVE_HEIGHT = 560, 160
#: Height of a line's name in those units, so that two names do not cover each other.
NAME_HEIGHT = 14


def render(result: DemoResult) -> str:
    """The page as one self-contained HTML text.

    Args:
        result: What the demo found.

    Returns:
        HTML with its pictures inside.
    """
    template = resources.files("radshot").joinpath("templates/demo.html").read_text(encoding="utf-8")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    summary = result.summary
    return environment.from_string(template).render(
        version=__version__,
        summary=summary,
        bars=_bars(summary),
        queries=_queries(result),
        deployed=deployment_context(result),
        words=summary["words"],
        worded=_worded(result),
        searches=_searches(result),
        curve=_curve(result),
        curve_width=CURVE_WIDTH,
        curve_height=CURVE_HEIGHT,
        contents=_contents(result.out),
    )


def _bars(summary: dict[str, Any]) -> list[dict[str, Any]]:
    rows = [("radshot, trained on other findings", summary["fewshot"], True)]
    rows += [(f"nearest mean of {name}", floor, False) for name, floor in summary["baselines"].items()]
    return [
        {"name": n, "accuracy": r["accuracy"], "low": r["interval"][0], "high": r["interval"][1], "ours": own}
        for n, r, own in rows
    ]


def _queries(result: DemoResult) -> list[dict[str, Any]]:
    """A few queries of each class with the support images that spoke for the answer and for the runner-up."""
    support = dict(zip(result.support.ids, result.support.metadata, strict=True))
    labels = result.manifest.labels
    chosen: list[tuple[int, Decision]] = []
    for label in sorted(set(labels)):
        own = [(i, decision) for i, decision in result.decisions if labels[i] == label]
        wrong = [pair for pair in own if pair[1].label != label][:1]
        right = [pair for pair in own if pair[1].label == label]
        chosen += wrong + right[: SHOWN_PER_CLASS - len(wrong)]

    def evidence(neighbours: Any) -> list[dict[str, Any]]:
        return [
            {"picture": thumbnail(support[n.id]["path"]), "label": n.label, "similarity": n.similarity}
            for n in neighbours[:SHOWN_EVIDENCE]
        ]

    return [
        {
            "picture": thumbnail(result.manifest.images[i]),
            "truth": labels[i],
            "answer": "none of these" if decision.label is None else decision.label,
            "right": decision.label == labels[i],
            "score": decision.score,
            "margin": decision.margin,
            "evidence": evidence(decision.evidence),
            "runner_up": decision.runner_up,
            "counter": evidence(decision.counter_evidence),
        }
        for i, decision in chosen
    ]


def _worded(result: DemoResult) -> list[dict[str, Any]]:
    """A few queries asked by words alone, with the sentences they are closest to."""
    return [
        {
            "picture": thumbnail(image),
            "truth": truth,
            "answer": decision.label or "uncertain",
            "right": decision.label == truth,
            "phrases": [
                {"text": n.id, "similarity": n.similarity, "label": n.label, "against": against}
                for neighbours, against in ((decision.evidence, False), (decision.counter_evidence[:1], True))
                for n in neighbours
            ],
        }
        for image, truth, decision in result.words.examples
    ]


def _searches(result: DemoResult) -> list[dict[str, Any]]:
    stored = result.stored

    def shown(row: int, similarity: float | None) -> dict[str, Any]:
        metadata = stored.metadata[row]
        return {"picture": thumbnail(metadata["path"]), "label": metadata["label"], "similarity": similarity}

    return [
        {"query": shown(example.row, None), "found": [shown(row, similarity) for row, similarity in example.neighbours]}
        for example in result.search
    ]


def _curve(result: DemoResult) -> list[dict[str, Any]]:
    """The validation and training accuracy over training episodes, as polyline points with a place for each name."""
    history = [entry for entry in result.training.history if entry["validation_accuracy"] is not None]
    last = max((float(entry["episode"] or 0) for entry in history), default=1.0)
    lines: list[dict[str, Any]] = []
    for name, key in (("held out", "validation_accuracy"), ("training", "train_accuracy")):
        points = [
            (float(entry["episode"] or 0) / last * CURVE_WIDTH, (1 - float(entry[key] or 0)) * CURVE_HEIGHT)
            for entry in history
        ]
        text = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        lines.append({"name": name, "points": text, "name_y": (points[-1][1] if points else 0.0) + 4})
    upper, lower = sorted(lines, key=lambda line: line["name_y"])
    lower["name_y"] = max(lower["name_y"], upper["name_y"] + NAME_HEIGHT)
    return lines


def _contents(out: Path) -> list[dict[str, str]]:
    kinds = (
        ("source", "DICOM phantoms trained on, with manifest.csv"),
        ("unseen", "DICOM phantoms of findings never trained on"),
        ("encoder", "the trained encoder: its weights (safetensors) and encoder.json"),
        ("cases", "the comparison set and its deployment: radshot classify asks it"),
        ("words", "the encoder aligned with reports: radshot zeroshot classify asks it"),
        ("reported", "DICOM phantoms with reports, by which it was aligned"),
        ("sides", "DICOM phantoms asked about in words"),
        ("archive", "the archive that was searched"),
        ("demo.json", "every figure of this page"),
    )
    return [{"name": name, "what": what} for name, what in kinds]
