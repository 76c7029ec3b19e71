"""Which images a training may not see, so that the best weights are chosen on episodes of the unseen."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .support import sorted_classes
from .training_config import MOST_WAYS, TrainingConfig, TrainingError

#: Fewest classes that must be left to train on before whole classes are held out by "auto".
LEAST_TRAINING_CLASSES = 8
#: Ways of a validation episode, at most.
VALIDATION_WAYS = 5


@dataclass(frozen=True)
class ValidationPlan:
    """Rows to train on, rows to validate on, and the ways of their episodes.

    Attributes:
        kind: "classes", "patients" or "none".
        train: Rows (n,) to train on.
        validation: Rows (m,), empty for "none"; no patient is in both.
        validation_labels: For each of these m rows the labels it counts under: the held-out ones for "classes", so
            that no class of a training episode meets in a validation episode, else all of its own.
        n_way: Ways of a training episode.
        validation_n_way: Ways of a validation episode.
        held_out: Classes held out (for "classes").
        dropped: Rows of neither side: their patient is on the validation side.
    """

    kind: str
    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    validation_labels: tuple[tuple[Hashable, ...], ...]
    n_way: int
    validation_n_way: int
    held_out: tuple[Hashable, ...] = ()
    dropped: int = 0

    def describe(self) -> dict[str, Any]:
        """The plan as plain values for the training record."""
        return {
            "kind": self.kind,
            "held_out_classes": [str(label) for label in self.held_out],
            "images": len(self.validation),
            "n_way": self.validation_n_way,
            "images_dropped_with_validation_patients": self.dropped,
        }


def plan_validation(
    labels: Sequence[Hashable], groups: Sequence[Hashable] | None, config: TrainingConfig
) -> ValidationPlan:
    """Hold classes or patients out of training.

    Args:
        labels: n labels, or collections of labels; None or an empty collection is an image without a label.
        groups: n patients, or None where each image is its own.
        config: Says what to hold out.

    Returns:
        The plan.

    Raises:
        TrainingError: "classes" or "patients" was asked for by name, and there are too few.
    """
    source = _Source(labels, groups, config)
    if config.validation in ("auto", "classes"):
        plan = source.hold_classes()
        least = LEAST_TRAINING_CLASSES if config.validation == "auto" else 2
        if plan.validation_n_way >= 2 and len(source.qualifying(plan.train)) >= least:
            return plan
        if config.validation == "classes":
            raise TrainingError(
                f"Holding classes out needs at least 4 classes of {config.k_shot + 1} patients, 2 of them to train on "
                f"after the patients of the others are left out; {len(source.usable)} qualify: hold out 'patients' or "
                f"'none', or lower k_shot."
            )
    if config.validation in ("auto", "patients"):
        plan = source.hold_patients()
        if plan.validation_n_way >= 2:
            return plan
        if config.validation == "patients":
            raise TrainingError(
                f"Holding patients out needs at least 2 classes of {2 * (config.k_shot + 1)} patients, half of them to "
                f"train on; the patients per class are {source.sizes()}: hold out 'none', or lower k_shot."
            )
    return source.hold_nothing()


class _Source:
    """The images of a source domain, by label set and patient."""

    def __init__(self, labels: Sequence[Hashable], groups: Sequence[Hashable] | None, config: TrainingConfig) -> None:
        self.config = config
        self.sets = [_as_set(label) for label in labels]
        self.owners: list[Hashable] = list(range(len(labels))) if groups is None else list(groups)
        self.rows = np.arange(len(labels))
        self.patients = self._patients(self.rows)
        self.usable = self.qualifying(self.rows)
        self.rng = np.random.default_rng([config.seed, 7919])

    def _patients(self, rows: NDArray[np.intp]) -> dict[Hashable, set[Hashable]]:
        patients: dict[Hashable, set[Hashable]] = {}
        for i in rows.tolist():
            for label in self.sets[i]:
                patients.setdefault(label, set()).add(self.owners[i])
        return patients

    def qualifying(self, rows: NDArray[np.intp]) -> list[Hashable]:
        """Classes with k_shot + 1 patients among some rows."""
        patients = self._patients(rows)
        return [label for label in sorted_classes(list(patients)) if len(patients[label]) > self.config.k_shot]

    def sizes(self) -> dict[Hashable, int]:
        """Patients per class."""
        return {label: len(self.patients[label]) for label in sorted_classes(list(self.patients))}

    def _plan(
        self,
        kind: str,
        train: NDArray[np.bool_],
        validation: NDArray[np.bool_],
        held_out: Sequence[Hashable] = (),
    ) -> ValidationPlan:
        """The plan with these rows; with fewer than 2 validation ways it is of no use."""
        kept = [
            tuple(sorted_classes([label for label in self.sets[i] if not held_out or label in held_out]))
            for i in self.rows[validation].tolist()
        ]
        ways = [label for label in self.qualifying(self.rows[validation]) if not held_out or label in held_out]
        asked = self.config.n_way
        return ValidationPlan(
            kind=kind,
            train=self.rows[train],
            validation=self.rows[validation],
            validation_labels=tuple(kept),
            n_way=asked if asked is not None else max(2, min(MOST_WAYS, len(self.qualifying(self.rows[train])))),
            validation_n_way=min(VALIDATION_WAYS, len(ways)),
            held_out=tuple(held_out),
            dropped=int((~train & ~validation).sum()),
        )

    def hold_nothing(self) -> ValidationPlan:
        """Train on everything."""
        everything = np.ones(len(self.rows), dtype=np.bool_)
        return self._plan("none", everything, ~everything)

    def hold_classes(self) -> ValidationPlan:
        """Hold out a random share of the classes, and the other images of their patients."""
        count = max(2, round(self.config.validation_share * len(self.usable)))
        held = sorted_classes([self.usable[i] for i in self.rng.permutation(len(self.usable))[:count]])
        validation = np.array([bool(own & set(held)) for own in self.sets], dtype=np.bool_)
        patients = {self.owners[i] for i in np.flatnonzero(validation).tolist()}
        theirs = np.array([owner in patients for owner in self.owners], dtype=np.bool_)
        return self._plan("classes", ~theirs, validation, held)

    def hold_patients(self) -> ValidationPlan:
        """Hold out a share of each class's patients, rarest class first; each keeps k_shot + 1 to train on."""
        least, share = self.config.k_shot + 1, self.config.validation_share
        held: set[Hashable] = set()
        spare = {label: len(self.patients[label]) - least for label in self.usable}  # how many it can still give
        classes: dict[Hashable, list[Hashable]] = {}  # of each patient, those that must not run out of patients
        for label in self.usable:
            for owner in self.patients[label]:
                classes.setdefault(owner, []).append(label)
        first_seen = {owner: i for i, owner in reversed(list(enumerate(self.owners)))}
        for label in sorted(self.usable, key=lambda name: (len(self.patients[name]), str(name))):
            members = sorted(self.patients[label], key=first_seen.__getitem__)
            already = len(held & self.patients[label])
            if already + spare[label] < least:
                continue  # too few for an episode: better trained on
            missing = max(least, round(share * len(members))) - already
            for i in self.rng.permutation(len(members)).tolist():
                if missing <= 0:
                    break
                owner = members[i]
                if owner in held or any(spare[other] < 1 for other in classes[owner]):
                    continue
                held.add(owner)
                missing -= 1
                for other in classes[owner]:
                    spare[other] -= 1
        validation = np.array([owner in held for owner in self.owners], dtype=np.bool_)
        return self._plan("patients", ~validation, validation)


def _as_set(label: Hashable) -> frozenset[Hashable]:
    if label is None:
        return frozenset()
    if isinstance(label, str) or not isinstance(label, Collection):
        return frozenset([label])
    return frozenset(label)
