"""The deployment's part of the demo's page: figures beside what was promised, reliability, answers with heat maps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from .thumbnails import data_uri, thumbnail

if TYPE_CHECKING:
    from episodes import Manifest, Neighbor, Reliability

    from .demo import DemoResult
    from .demo_deployment import Example

#: Side of the reliability plot's drawing area, in its own units.
PLOT = 200
#: Support images shown for the winner, and for the runner-up.
SHOWN_EVIDENCE = 3
#: Longer side of a query and its heat map, in pixels.
QUERY_SIDE = 160


def deployment_context(result: DemoResult) -> dict[str, Any]:
    """What the template is given.

    Args:
        result: What the demo found.

    Returns:
        Plain values: `rows` of the table, `lines` of the reliability plot, `findings` taken out, `answers`.
    """
    found = result.deployment
    support = dict(zip(result.support.ids, result.support.metadata, strict=True))
    return {
        "rows": table_rows(found.summary),
        "lines": _lines(found.before, found.after),
        "plot": PLOT,
        "findings": [
            {"name": label, "unknown": _shown(row["answered_none_of_these"]), "known": _shown(row["known_turned_away"])}
            for label, row in found.summary["none_of_these"]["unknown"]["per_finding"].items()
        ],
        "answers": [_answer(example, result.manifest, support) for example in found.examples],
    }


def table_rows(summary: dict[str, Any]) -> list[dict[str, str]]:
    """Figure, what was promised, what was measured; what was not calibrated has no row."""
    sets, novel, error = summary["sets"], summary["none_of_these"], summary["calibration_error"]
    rows = [("labels given that were right", "", _shown(summary["accuracy_of_labels"]))]
    if error["after"] is not None:
        rows.append(("calibration error of the softmax of raw scores", "", f"{error['before']:.3f}"))
        rows.append(("calibration error of the probability", "", f"{error['after']:.3f}"))
    if sets is not None:
        promised = f"at least {sets['promised']:.3f}"
        rows.append(("patients whose set holds the truth", promised, _shown(sets["coverage"])))
        rows.append(("classes in a set, on average", "", f"{sets['mean_size']:.2f} of {sets['of_classes']}"))
    rows.append(("known patients answered “none of these”", f"at most {novel['allowed']:.3f}", _shown(novel["known"])))
    unknown = _shown(novel["unknown"]["answered_none_of_these"])
    rows.append(("patients of a finding taken out answered “none of these”", "nothing", unknown))
    return [{"what": what, "promised": promised, "measured": measured} for what, promised, measured in rows]


def _shown(share: dict[str, Any] | None) -> str:
    """A share with its interval where there is one."""
    if share is None:
        return "none given"
    interval = "" if share["interval"] is None else " [{:.3f}, {:.3f}]".format(*share["interval"])
    return f"{share['value']:.3f}{interval}"


def _lines(before: Reliability | None, after: Reliability | None) -> list[dict[str, Any]]:
    """The reliability curves as dots (x, y) with the text of their polyline."""
    lines = []
    for name, curve in (("softmax of raw scores", before), ("probability", after)):
        if curve is not None:
            dots = [(b.probability * PLOT, (1 - b.right) * PLOT) for b in curve.bins]
            lines.append({"name": name, "dots": dots, "points": " ".join(f"{x:.1f},{y:.1f}" for x, y in dots)})
    return lines


def _answer(example: Example, manifest: Manifest, support: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One query as the page shows it."""
    from fewshot.heatmap_pictures import overlay

    def evidence(neighbours: Iterable[Neighbor]) -> list[dict[str, Any]]:
        return [
            {"picture": thumbnail(support[n.id]["path"]), "label": n.label, "similarity": n.similarity}
            for n in list(neighbours)[:SHOWN_EVIDENCE]
        ]

    decision, truth, explained = example.decision, manifest.labels[example.row], example.explanation
    best = None if explained is None else explained.maps[0]  # Grad-CAM where there is one
    return {
        "picture": thumbnail(manifest.images[example.row]),
        "truth": truth,
        "known": example.known,
        "answer": "none of these" if decision.label is None else decision.label,
        "right": decision.label == (truth if example.known else None),
        "probability": decision.probability,
        "set": None if decision.prediction_set is None else ", ".join(map(str, decision.prediction_set)),
        "coverage": decision.coverage,
        "holds_truth": decision.prediction_set is not None and truth in decision.prediction_set,
        "map": None if explained is None or best is None else data_uri(overlay(explained.image, best), side=QUERY_SIDE),
        "kind": None if best is None else {"grad-cam": "Grad-CAM", "occlusion": "occlusion"}[best.kind],
        "verdict": None if best is None else best.verdict,
        "likeliest": decision.evidence[0].label if decision.evidence else None,
        "evidence": evidence(decision.evidence),
        "runner_up": decision.runner_up,
        "counter": evidence(decision.counter_evidence),
    }
