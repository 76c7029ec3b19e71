"""What a recipe became on the images of a set, as plain numbers that can be kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .calibration import IsotonicCalibration, TemperatureScaling
from .conformal import SplitConformal
from .cross_conformal import CrossConformal
from .operating_points import OperatingPoint

Probabilities = TemperatureScaling | IsotonicCalibration
Sets = SplitConformal | CrossConformal


@dataclass(frozen=True, slots=True)
class Fitted:
    """What a recipe became on some images; plain numbers, no patient's name.

    Attributes:
        head: Name of the head; where the recipe says "auto", the one that was chosen.
        head_reason: How it was chosen, or None where it was named.
        calibrated_on: "set-aside", "support" or "nothing".
        patients: Patients of each class it was calibrated on.
        probabilities: Scores to probabilities, or None.
        sets: Prediction sets, or None.
        novelty: How near patients are to the class mean nearest to them, for "none of these", or None.
        points: Class -> its threshold on the probability.
        remarks: One sentence each: what could not be promised and what it would take.
    """

    head: str
    head_reason: str | None
    calibrated_on: str
    patients: Mapping[str, int]
    probabilities: Probabilities | None
    sets: Sets | None
    novelty: Sets | None
    points: Mapping[str, OperatingPoint]
    remarks: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return a document of plain JSON types that `from_json` turns back."""
        return {
            "head": self.head,
            "head_reason": self.head_reason,
            "calibrated_on": self.calibrated_on,
            "patients": dict(self.patients),
            "probabilities": _tagged(self.probabilities),
            "sets": _tagged(self.sets),
            "novelty": _tagged(self.novelty),
            "points": {label: point.to_json() for label, point in self.points.items()},
            "remarks": list(self.remarks),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Fitted:
        """Rebuild from `to_json`'s document."""
        return cls(
            head=document["head"],
            head_reason=document["head_reason"],
            calibrated_on=document["calibrated_on"],
            patients=document["patients"],
            probabilities=_untagged(document["probabilities"]),
            sets=_untagged(document["sets"]),
            novelty=_untagged(document["novelty"]),
            points={label: OperatingPoint.from_json(point) for label, point in document["points"].items()},
            remarks=tuple(document["remarks"]),
        )


_KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (TemperatureScaling, IsotonicCalibration, SplitConformal, CrossConformal)
}


def _tagged(part: Any) -> dict[str, Any] | None:
    return None if part is None else {"kind": type(part).__name__, **part.to_json()}


def _untagged(document: Mapping[str, Any] | None) -> Any:
    if document is None:
        return None
    return _KINDS[document["kind"]].from_json({key: value for key, value in document.items() if key != "kind"})
