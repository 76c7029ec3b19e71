"""Decisions as a user sees them: one line each, or plain values for a program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import note, one_line, print_table

if TYPE_CHECKING:
    from embeddings import Snapshot
    from episodes import Decision


def answer(images: Sequence[Path], decision: Decision, support: Snapshot, *, registered: bool) -> dict[str, Any]:
    """One decision as plain values."""

    def neighbours(found: Any) -> list[dict[str, Any]]:
        entries = []
        for n in found:
            place = support.positions.get(n.id)
            kind = {"phrase": n.id} if place is None else {"id": n.id, "path": support.metadata[place].get("path")}
            entries.append({**kind, "label": n.label, "similarity": n.similarity})
        return entries

    named = {"image": str(images[0])} if len(images) == 1 else {"images": [str(image) for image in images]}
    return {
        **named,
        "label": decision.label,
        "score": decision.score,
        "probability": decision.probability,
        "margin": decision.margin,
        "evidence": neighbours(decision.evidence),
        "runner_up": decision.runner_up,
        "counter_evidence": neighbours(decision.counter_evidence),
        "reason": decision.reason,
        "registered": registered,
        "prediction_set": None if decision.prediction_set is None else list(decision.prediction_set),
        "coverage": decision.coverage,
        "flags": list(decision.flags),
    }


def print_decisions(shown: Sequence[str], decisions: Sequence[Decision]) -> None:
    """One line per answer; probability and set only where there are any."""
    calibrated = any(d.probability is not None or d.prediction_set is not None for d in decisions)
    flagged = any(d.flags for d in decisions)
    rows = []
    for name, decision in zip(shown, decisions, strict=True):
        nearest = decision.evidence[0] if decision.evidence else None
        sure: tuple[str, ...] = ()
        if calibrated:
            members = decision.prediction_set
            sure = (
                "" if decision.probability is None else f"{decision.probability:.2f}",
                "" if members is None else ", ".join(map(str, members)),
            )
        rows.append(
            (
                "none of these" if decision.label is None else decision.label,
                *sure,
                *((", ".join(map(str, decision.flags)),) if flagged else ()),
                "" if decision.score is None else f"{decision.score:.3f}",
                "" if decision.margin is None else f"{decision.margin:.3f}",
                "" if decision.runner_up is None else decision.runner_up,
                name,
                "" if nearest is None else f"{nearest.id} ({nearest.similarity:.3f})",
            )
        )
    coverage = next((d.coverage for d in decisions if d.coverage is not None), None)
    header = (
        "label",
        *(("probability", "not ruled out" if coverage is None else f"{coverage:.0%} set") if calibrated else ()),
        *(("flags",) if flagged else ()),
        "score",
        "margin",
        "runner-up",
        "image",
        "nearest support",
    )
    print_table(header, rows, numbers=("probability", "score", "margin"))
    for name, decision in zip(shown, decisions, strict=True):
        if decision.reason is not None:
            note(f"{one_line(name)}: {decision.reason}")
