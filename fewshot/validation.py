"""Which images a training may not see, so that the best weights are chosen on episodes of the unseen."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .support import sorted_classes
from .training_config import MOST_WAYS, TrainingConfig

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
        n_way: Ways of a training episode.
        validation_n_way: Ways of a validation episode.
        held_out: Classes held out (for "classes").
        dropped: Rows of neither side: their patient is on the validation side.
    """

    kind: str
    train: NDArray[np.intp]
    validation: NDArray[np.intp]
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
        labels: n labels, or collections of labels.
        groups: n patients, or None where each image is its own.
        config: Says what to hold out.

    Returns:
        The plan.
    """
    sets = [_as_set(label) for label in labels]
    owners: list[Hashable] = list(range(len(labels))) if groups is None else list(groups)
    patients: dict[Hashable, set[Hashable]] = {}
    for own, owner in zip(sets, owners, strict=True):
        for label in own:
            patients.setdefault(label, set()).add(owner)
    usable = [label for label in sorted_classes(list(patients)) if len(patients[label]) > config.k_shot]
    rng = np.random.default_rng([config.seed, 7919])
    kind = config.validation
    n_held = max(2, round(config.validation_share * len(usable)))
    if kind == "auto":
        kind = "classes" if len(usable) - n_held >= LEAST_TRAINING_CLASSES else "patients"
    everything = np.arange(len(labels))
    if kind == "classes":
        held = {usable[i] for i in rng.permutation(len(usable))[:n_held]}
        in_validation = np.array([bool(own & held) for own in sets])
        held_patients = {owner for owner, held_out in zip(owners, in_validation, strict=True) if held_out}
        shares_patient = np.array([owner in held_patients for owner in owners])
        train = everything[~in_validation & ~shares_patient]
        return ValidationPlan(
            kind=kind,
            train=train,
            validation=everything[in_validation],
            n_way=_ways(config, len(usable) - len(held)),
            validation_n_way=min(VALIDATION_WAYS, len(held)),
            held_out=tuple(sorted_classes(list(held))),
            dropped=int((shares_patient & ~in_validation).sum()),
        )
    if kind == "patients":
        in_validation = _held_patients(usable, patients, owners, config, rng)
        validation = everything[in_validation]
        left = {owners[i] for i in validation}
        enough = [label for label in usable if len(patients[label] & left) > config.k_shot]
        if len(enough) >= 2:
            return ValidationPlan(
                kind=kind,
                train=everything[~in_validation],
                validation=validation,
                n_way=_ways(config, len(usable)),
                validation_n_way=min(VALIDATION_WAYS, len(enough)),
            )
    return ValidationPlan(
        kind="none",
        train=everything,
        validation=np.empty(0, dtype=np.intp),
        n_way=_ways(config, len(usable)),
        validation_n_way=0,
    )


def _held_patients(
    usable: Sequence[Hashable],
    patients: dict[Hashable, set[Hashable]],
    owners: Sequence[Hashable],
    config: TrainingConfig,
    rng: np.random.Generator,
) -> NDArray[np.bool_]:
    """Mark the rows of a share of each class's patients, rarest class first, leaving k + 1 patients to train on."""
    held: set[Hashable] = set()
    first_seen = {owner: i for i, owner in reversed(list(enumerate(owners)))}
    for label in sorted(usable, key=lambda name: (len(patients[name]), str(name))):
        members = sorted(patients[label], key=first_seen.__getitem__)
        wanted = max(config.k_shot + 1, round(config.validation_share * len(members)))
        spare = len(members) - (config.k_shot + 1)
        missing = min(wanted, spare) - len(held & patients[label])
        free = [owner for owner in members if owner not in held]
        held.update(free[i] for i in rng.permutation(len(free))[: max(0, missing)])
    return np.array([owner in held for owner in owners])


def _ways(config: TrainingConfig, available: int) -> int:
    return config.n_way if config.n_way is not None else max(2, min(MOST_WAYS, available))


def _as_set(label: Hashable) -> frozenset[Hashable]:
    if isinstance(label, str) or not isinstance(label, Collection):
        return frozenset([label])
    return frozenset(label)
