"""What a phantom's finding is: its name, side, place and severity, and which sides and places each name may have."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

NO_FINDING = "no finding"
"""Label of a chest that was drawn healthy."""

ZONES = ("upper", "middle", "lower")
"""Thirds of a lung, as reports name them."""


@dataclass(frozen=True, slots=True)
class PhantomFinding:
    """One finding of one image.

    Attributes:
        name: A name of `FINDINGS`.
        side: "left", "right", "both" or "midline"; the patient's side, so left is on the right of the image.
        place: A lung zone or the part of the chest, in one word.
        severity: From 0 (just visible) to 1 (extreme).
    """

    name: str
    side: str
    place: str
    severity: float

    @property
    def grade(self) -> str:
        """The severity in a word: mild, moderate or severe."""
        return "mild" if self.severity < 0.34 else "moderate" if self.severity < 0.67 else "severe"


@dataclass(frozen=True, slots=True)
class Spec:
    """Sides and places a finding may have; repeated entries are likelier."""

    sides: tuple[str, ...]
    places: tuple[str, ...]


_EITHER = ("left", "right")
_MOSTLY_ONE = ("left", "right", "left", "right", "both")

SPECS: dict[str, Spec] = {
    "effusion": Spec(_MOSTLY_ONE, ("base",)),
    "pneumothorax": Spec(_EITHER, ("lateral",)),
    "consolidation": Spec(_EITHER, ZONES),
    "infiltration": Spec(_MOSTLY_ONE, ZONES),
    "atelectasis": Spec(_EITHER, ("middle", "lower")),
    "nodule": Spec(_EITHER, ZONES),
    "mass": Spec(_EITHER, ZONES),
    "cavity": Spec(_EITHER, ZONES),
    "cardiomegaly": Spec(("midline",), ("heart",)),
    "edema": Spec(("both",), ("perihilar",)),
    "emphysema": Spec(("both",), ("diffuse",)),
    "fibrosis": Spec(("both", "both", "left", "right"), ("base", "base", "apex")),
    "bronchiectasis": Spec(_MOSTLY_ONE, ("middle", "lower")),
    "pleural thickening": Spec(_EITHER, ("lateral",)),
    "hiatal hernia": Spec(("midline",), ("retrocardiac",)),
    "miliary nodules": Spec(("both",), ("diffuse",)),
    "rib fractures": Spec(_EITHER, ("lateral",)),
    "free air": Spec(("right", "right", "both"), ("subphrenic",)),
    "cardiac device": Spec(("left", "left", "right"), ("chest wall",)),
    "chest tube": Spec(_EITHER, ("pleural space",)),
    "scoliosis": Spec(_EITHER, ("spine",)),
    "calcified granulomas": Spec(_EITHER, ZONES),
    "hilar adenopathy": Spec(("both", "left", "right"), ("hilum",)),
}
"""Every finding that can be drawn."""

FINDINGS: tuple[str, ...] = tuple(SPECS)
"""Names of all findings; `NO_FINDING` is not one of them."""

UNSEEN_FINDINGS: tuple[str, ...] = ("effusion", "pneumothorax", "cavity", "miliary nodules", "cardiac device")
"""Findings the demo never trains on."""

SOURCE_FINDINGS: tuple[str, ...] = (NO_FINDING, *(name for name in FINDINGS if name not in UNSEEN_FINDINGS))
"""Classes the demo trains on: the healthy chest and every finding that is not in `UNSEEN_FINDINGS`."""


def sides_of(finding: PhantomFinding) -> tuple[str, ...]:
    """Return the lungs a finding is drawn in."""
    return ("right", "left") if finding.side in ("both", "midline") else (finding.side,)


def known(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names as a tuple.

    Raises:
        ValueError: If there are none, if one is given twice, or if one is no finding.
    """
    if isinstance(names, str):
        names = (names,)
    chosen = tuple(names)
    allowed = (NO_FINDING, *FINDINGS)
    if not chosen:
        raise ValueError(f"findings is empty: name at least one of {', '.join(allowed)}.")
    for name in chosen:
        if name not in allowed:
            close = difflib.get_close_matches(str(name).lower().replace("_", " "), allowed, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else f" Known are {', '.join(allowed)}."
            raise ValueError(f"There is no finding {name!r}.{hint}")
        if chosen.count(name) > 1:
            raise ValueError(f"findings names {name!r} more than once.")
    return chosen


def check_finding(finding: PhantomFinding) -> None:
    """Refuse a finding that cannot be drawn as described.

    Raises:
        ValueError: For an unknown name, a side or place the finding does not have, or a severity outside [0, 1].
    """
    known([finding.name])
    spec = SPECS[finding.name]
    for what, value, allowed in (("side", finding.side, spec.sides), ("place", finding.place, spec.places)):
        if value not in allowed:
            unique = ", ".join(dict.fromkeys(allowed))
            raise ValueError(f"The {finding.name}'s {what} must be one of {unique}, got {value!r}.")
    if not 0.0 <= finding.severity <= 1.0:
        raise ValueError(f"The {finding.name}'s severity lies between 0 and 1, got {finding.severity}.")


def draw_finding(name: str, rng: np.random.Generator) -> PhantomFinding:
    """Draw side, place and severity of a finding."""
    spec = SPECS[name]
    side = spec.sides[int(rng.integers(len(spec.sides)))]
    place = spec.places[int(rng.integers(len(spec.places)))]
    return PhantomFinding(name, side, place, float(rng.uniform(0.15, 1.0)))
