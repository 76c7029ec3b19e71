"""What an estimate says: a line or two, a table, and plain values for a program."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

from .advice import Advice

#: Column of the confusion, and its name, for "none of these".
ABSTAINED = "none of these"
#: Images most often wrong that a table names.
SHOWN_IMAGES = 10


@dataclass(frozen=True, slots=True)
class ClassEstimate:
    """One class of an estimate.

    Attributes:
        label: The class.
        patients: Patients it has.
        recall: Share of its future patients that will be answered rightly; None where that cannot be said.
        interval: Interval of that share, or None.
        reason: Why nothing can be said (one sentence), else None.
    """

    label: Hashable
    patients: int
    recall: float | None
    interval: tuple[float, float] | None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Confusion:
    """Two classes that are taken for each other.

    Attributes:
        first: The class more often taken for the other.
        second: The other.
        first_as_second: Share of the first's patients answered as the second.
        second_as_first: Share of the second's answered as the first.
    """

    first: Hashable
    second: Hashable
    first_as_second: float
    second_as_first: float


@dataclass(frozen=True, slots=True)
class HardImage:
    """A support image that is mostly answered wrongly by heads that never saw its patient.

    Attributes:
        id: The image's id.
        label: The class it is registered under.
        right: Share of the rounds in which it was answered rightly.
        answered: The answer it got most often; None for "none of these".
    """

    id: str
    label: Hashable
    right: float
    answered: Hashable | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """The accuracy to expect on future patients.

    Attributes:
        accuracy: Class-balanced accuracy of the head fitted to the whole support, over the classes that can be judged;
            None where fewer than two can.
        interval: Interval of the accuracy, or None.
        level: How often such intervals hold the truth.
        cross_validated: What cross-validation found with fewer patients, before the correction for learning from all.
        per_class: One for each class, in the order of the labels.
        confusion: Shares of each class's patients (rows) answered as each class (columns), abstentions last; None for
            a class that cannot be judged.
        most_confused: The two classes most often taken for each other, or None where none ever is.
        hard_images: Support images answered wrongly more often than not, worst first.
        advice: What more patients of each class would bring, most first.
        patients: Distinct patients.
        patients_known: Whether every image's patient is known.
        images: Support images.
        head: What decides.
        n_folds: Rounds of a repeat.
        n_repeats: Repeats.
        seed: Of the dealing.
        warnings: What limits the estimate, one sentence each.
    """

    accuracy: float | None
    interval: tuple[float, float] | None
    level: float
    cross_validated: float | None
    per_class: tuple[ClassEstimate, ...]
    confusion: tuple[tuple[float, ...] | None, ...]
    most_confused: Confusion | None
    hard_images: tuple[HardImage, ...]
    advice: tuple[Advice, ...]
    patients: int
    patients_known: bool
    images: int
    head: str
    n_folds: int
    n_repeats: int
    seed: int
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        """Return one line for the accuracy and one for what would help."""
        unit = "patients" if self.patients_known else "images"
        basis = f"{len(self.per_class)} classes, {self.patients:,} {unit}, {self.head}"
        if self.accuracy is None or self.interval is None:
            return (
                f"The accuracy on new patients cannot be said: fewer than two classes have 2 {unit} or more ({basis})."
            )
        judged = sum(one.recall is not None for one in self.per_class)
        part = "" if judged == len(self.per_class) else f", over the {judged} classes that can be judged"
        first = (
            f"Expect {self.accuracy:.2f} accuracy on new patients{part}; "
            f"{100 * self.level:.0f} % interval {self.interval[0]:.2f} to {self.interval[1]:.2f} ({basis})."
        )
        return f"{first}\n{self.advice_sentence}" if self.advice else first

    @property
    def advice_sentence(self) -> str:
        """The advice in one sentence; empty where there is none."""
        if not self.advice:
            return ""
        best = self.advice[0]
        name = " ".join(str(best.label).split())
        unit = "patients" if self.patients_known else "images"
        gain = f"{best.gain:+.3f}, {best.interval[0]:+.3f} to {best.interval[1]:+.3f}"
        if best.tells:
            return f"{best.more} more {unit} of {name} would help most ({gain})."
        return f"{best.more} more {unit} of {name} are the best guess ({gain}), but the data cannot tell."

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can say; a label that is no text or number is given as text."""
        return {
            "accuracy": self.accuracy,
            "interval": None if self.interval is None else list(self.interval),
            "level": self.level,
            "cross_validated": self.cross_validated,
            "per_class": [
                {
                    "label": plain(one.label),
                    "patients": one.patients,
                    "recall": one.recall,
                    "interval": None if one.interval is None else list(one.interval),
                    "reason": one.reason,
                }
                for one in self.per_class
            ],
            "confusion": {
                "answers": [*(plain(one.label) for one in self.per_class), ABSTAINED],
                "shares": [None if row is None else list(row) for row in self.confusion],
            },
            "most_confused": None
            if self.most_confused is None
            else {
                "first": plain(self.most_confused.first),
                "second": plain(self.most_confused.second),
                "first_as_second": self.most_confused.first_as_second,
                "second_as_first": self.most_confused.second_as_first,
            },
            "hard_images": [
                {"id": one.id, "label": plain(one.label), "right": one.right, "answered": plain(one.answered)}
                for one in self.hard_images
            ],
            "advice": [
                {
                    "label": plain(one.label),
                    "patients": one.patients,
                    "more": one.more,
                    "gain": one.gain,
                    "interval": list(one.interval),
                    "measured": one.measured,
                    "tells": one.tells,
                }
                for one in self.advice
            ],
            "patients": self.patients,
            "patients_known": self.patients_known,
            "images": self.images,
            "head": self.head,
            "n_folds": self.n_folds,
            "n_repeats": self.n_repeats,
            "seed": self.seed,
            "warnings": list(self.warnings),
        }

    def to_markdown(self) -> str:
        """Return a page a person reads: the classes, what more patients would bring, what is hard."""
        unit = "patients" if self.patients_known else "images"
        gains = {one.label: one for one in self.advice}
        lines = ["## Accuracy to expect on new patients", "", str(self), ""]
        lines += [f"- {warning}" for warning in self.warnings]
        lines += [""] if self.warnings else []
        lines += [
            f"| class | {unit} | recall | {100 * self.level:.0f} % interval | most often taken for "
            f"| gain of {self.advice[0].more} more {unit} |"
            if self.advice
            else f"| class | {unit} | recall | {100 * self.level:.0f} % interval | most often taken for | gain |",
            "|---|---|---|---|---|---|",
        ]
        for number, one in enumerate(self.per_class):
            recall = "cannot be said" if one.recall is None else f"{one.recall:.2f}"
            ends = "" if one.interval is None else f"{one.interval[0]:.2f} to {one.interval[1]:.2f}"
            found = gains.get(one.label)
            gain = "" if found is None else f"{found.gain:+.3f}, {found.interval[0]:+.3f} to {found.interval[1]:+.3f}"
            cells = (_cell(one.label), f"{one.patients:,}", recall, ends, _cell(self.taken_for(number)), gain)
            lines.append(f"| {' | '.join(cells)} |")
        if self.hard_images:
            lines += ["", "| image | class | right | mostly answered |", "|---|---|---|---|"]
            for hard in self.hard_images[:SHOWN_IMAGES]:
                answered = ABSTAINED if hard.answered is None else hard.answered
                lines.append(f"| {_cell(hard.id)} | {_cell(hard.label)} | {hard.right:.2f} | {_cell(answered)} |")
        lines += ["", f"{self.n_repeats} repeats of {self.n_folds} folds by patient, seed {self.seed}."]
        return "\n".join(lines) + "\n"

    def taken_for(self, number: int) -> str:
        """The wrong answer a class gets most often, with its share; empty where it gets none."""
        row = self.confusion[number]
        if row is None:
            return ""
        wrong = [(share, -i) for i, share in enumerate(row) if i != number]
        share, place = max(wrong)
        name = ABSTAINED if -place == len(self.per_class) else self.per_class[-place].label
        return f"{name} ({share:.2f})" if share > 0 else ""


def plain(label: Hashable) -> str | int | float | bool | None:
    """A label as JSON can say it."""
    return label if label is None or isinstance(label, str | int | float | bool) else str(label)


def _cell(text: object) -> str:
    r"""Text for one cell of a Markdown table: bars are escaped, line breaks become spaces."""
    return str(text).replace("\\", "\\\\").replace("|", "\\|").replace("\n", " ").replace("\r", " ")
