"""What a deployment is asked to be: which head, calibrated how, which coverage and which thresholds; no data in it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .calibration_rows import check_share

#: What is calibrated on: images set aside if there are any, else the support with every patient left out in turn.
CALIBRATE_ON = ("auto", "set-aside", "support", "nothing")
#: How scores become probabilities.
METHODS = ("temperature", "isotonic")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a deployment is made from a comparison set; the same recipe on the same images gives the same deployment.

    Args:
        head: A name of `HEADS`; "auto" chooses on the support.
        calibrate_on: "set-aside" (images registered with the role "calibration"), "support" (every patient left out in
            turn), "auto" (the first where there are any, else the second) or "nothing".
        method: "temperature", or "isotonic", which needs 20 patients of each class.
        coverage: Share of patients whose prediction set is to hold the true class.
        per_class: Whether that is to hold for each class by itself, and so for whatever mix of classes. It does where
            prevalences are stated.
        turned_away: Share of patients of the registered classes that may be answered "none of these"; None never
            answers so. Calibrated on the support no more than twice that is promised, as with the sets.
        least_probability: Below this probability there is no label; None never abstains so.
        sensitivity: Class -> share of its patients that are to be flagged.
        false_alarm_rate: Class -> share of the other patients that may be flagged. A class is in one of the two.
        prevalence: Class -> how frequent it is where questions are asked, for all classes, sum 1; None calibrates for
            classes that are equally frequent.

    Raises:
        ValueError: An unknown name, a share outside (0, 1), a class with two targets.
    """

    head: str = "auto"
    calibrate_on: str = "auto"
    method: str = "temperature"
    coverage: float = 0.9
    per_class: bool = False
    turned_away: float | None = 0.05
    least_probability: float | None = None
    sensitivity: Mapping[str, float] = field(default_factory=dict)
    false_alarm_rate: Mapping[str, float] = field(default_factory=dict)
    prevalence: Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot be meant; whether the classes exist is seen when the recipe meets a set."""
        for name, value, allowed in (
            ("calibrate_on", self.calibrate_on, CALIBRATE_ON),
            ("method", self.method, METHODS),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}; got {value!r}.")
        check_share("coverage", self.coverage)
        for name, share in (("turned_away", self.turned_away), ("least_probability", self.least_probability)):
            if share is not None:
                check_share(name, share)
        for name, targets in (("sensitivity", self.sensitivity), ("false_alarm_rate", self.false_alarm_rate)):
            for label, share in targets.items():
                check_share(f"{name} of {label!r}", share)
        twice = sorted(set(self.sensitivity) & set(self.false_alarm_rate))
        if twice:
            raise ValueError(f"A class has one operating point; {twice[0]!r} has a sensitivity and a false-alarm rate.")
        if self.prevalence is not None:
            total = sum(self.prevalence.values())
            if min(self.prevalence.values(), default=0.0) < 0 or abs(total - 1) > 1e-6:
                raise ValueError(f"Prevalences must be at least 0 and sum to 1; got {dict(self.prevalence)!r}.")

    def missing(self, classes: Collection[str]) -> tuple[str, str] | None:
        """The first option that names a class which is not among these, and that class."""
        named = {"sensitivity": self.sensitivity, "false_alarm_rate": self.false_alarm_rate}
        for option, targets in {**named, "prevalence": self.prevalence or {}}.items():
            for label in sorted(targets):
                if label not in classes:
                    return option, label
        return None

    def without(self, classes: Collection[str]) -> tuple[Recipe, tuple[str, ...]]:
        """The recipe for a set that has only these classes left, and one sentence for each part that had to go.

        Args:
            classes: The classes there are.
        """
        gone = sorted({*self.sensitivity, *self.false_alarm_rate, *(self.prevalence or {})} - set(classes))
        if not gone:
            return self, ()
        prevalence = None
        if self.prevalence is not None:
            left = {label: share for label, share in self.prevalence.items() if label in classes}
            total = sum(left.values())
            prevalence = {label: share / total for label, share in left.items()} if total > 0 else None
        adapted = replace(
            self,
            sensitivity={label: share for label, share in self.sensitivity.items() if label in classes},
            false_alarm_rate={label: share for label, share in self.false_alarm_rate.items() if label in classes},
            prevalence=prevalence,
        )
        return adapted, tuple(
            f"The class {label!r} is no longer in the set, and its threshold and share went." for label in gone
        )

    def to_json(self) -> dict[str, Any]:
        """Return a document of plain JSON types that `from_json` turns back."""
        return asdict(self)

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Recipe:
        """Rebuild from `to_json`'s document."""
        return cls(**document)
