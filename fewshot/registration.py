"""Images on their way into a comparison set: read, identified, and told from what is there already."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from embeddings import ImageError, image_identity, printable

from .outliers import Outlier
from .support import is_missing

if TYPE_CHECKING:
    from embeddings import Encoder, Snapshot


#: What a registered image is for: to decide answers by, or, of other patients, to calibrate on.
SUPPORT, CALIBRATION = "support", "calibration"
ROLES = (SUPPORT, CALIBRATION)


def role_of(row: Mapping[str, Any]) -> str:
    """What a stored image is for, by its metadata; those that say nothing are support."""
    return str(row.get("role", SUPPORT))


@dataclass(frozen=True)
class Registration:
    """What became of the images of one registration; every image is in exactly one of the first three.

    Attributes:
        registered: Ids now in the set.
        duplicates: Ids that were there already under the same label.
        refused: (image, reason) of those not taken.
        outliers: Those of `registered` that are probably mislabelled or do not belong, most unusual first, judged in
            the set as it is now. They are in the set all the same.
        outlier_scores: (id, score) of every one of `registered` that supports: how unusual it is for its class, larger
            is more so; None where too few other patients are there to tell.
    """

    registered: tuple[str, ...]
    duplicates: tuple[str, ...]
    refused: tuple[tuple[str, str], ...]
    outliers: tuple[Outlier, ...] = ()
    outlier_scores: tuple[tuple[str, float | None], ...] = ()


@dataclass(frozen=True)
class Candidate:
    """An image about to be registered."""

    path: str
    label: str
    id: str
    patient: str | None
    sha256: str
    prepared: NDArray[Any]
    role: str = SUPPORT


def read_candidates(
    encoder: Encoder,
    labels: Sequence[str],
    images: Sequence[str | os.PathLike[str]],
    patients: Sequence[str | None] | None,
    ids: Sequence[str] | None,
    names: Sequence[str] | None,
    on_error: str,
    *,
    role: str = SUPPORT,
) -> tuple[list[Candidate], list[tuple[str, str]]]:
    """Read and identify every image.

    Args:
        encoder: Whose `load` prepares an image.
        labels: n classes.
        images: n files.
        patients: Their patients, or None.
        ids: Their ids, or None: then the SOPInstanceUID, else the name.
        names: What to call them without a SOPInstanceUID, or None: the path as given.
        on_error: "raise" or "report".
        role: What they are for.

    Returns:
        The readable ones, and (image, reason) of the others.
    """
    candidates: list[Candidate] = []
    refused: list[tuple[str, str]] = []
    for i, (label, image) in enumerate(zip(labels, images, strict=True)):
        if not isinstance(image, (str, os.PathLike)):
            raise ValueError(f"A support image is a file, so that it can be told again; got {type(image).__name__}.")
        try:
            prepared = encoder.load(image)
            identity = image_identity(image)
        except ImageError as error:
            if on_error == "raise":
                raise
            refused.append((printable(error.source), error.reason))
            continue
        named = printable(names[i] if names is not None else Path(image).as_posix())
        patient = None if patients is None or is_missing(patients[i]) else str(patients[i]).strip()
        candidates.append(
            Candidate(
                path=printable(image),
                label=label,
                id=ids[i] if ids is not None else identity.sop_instance_uid or named,
                patient=patient or identity.patient_id,
                sha256=identity.sha256,
                prepared=prepared,
                role=role,
            )
        )
    return candidates, refused


def sort_out(
    snapshot: Snapshot, candidates: Sequence[Candidate]
) -> tuple[list[Candidate], list[str], list[tuple[str, str]]]:
    """Tell new images from those that are there already and those that contradict what is there.

    Args:
        snapshot: What is there.
        candidates: What shall be; an earlier one counts as there for a later one.

    Returns:
        New candidates, ids of the duplicates, and (image, reason) of the contradictions.
    """
    by_id = {
        name: (sha256, row["label"], row.get("patient"), role_of(row))
        for name, sha256, row in zip(snapshot.ids, snapshot.hashes, snapshot.metadata, strict=True)
    }
    by_hash = {sha256: name for name, (sha256, *_) in by_id.items()}
    roles = {patient: role for _, _, patient, role in by_id.values() if patient is not None}
    new: list[Candidate] = []
    duplicates: list[str] = []
    clashes: list[tuple[str, str]] = []
    for candidate in candidates:
        known = candidate.id if candidate.id in by_id else by_hash.get(candidate.sha256)
        if known is None:
            own = candidate.role if candidate.patient is None else roles.setdefault(candidate.patient, candidate.role)
            if own != candidate.role:
                clashes.append((candidate.path, _other_role(candidate, own)))
                continue
            new.append(candidate)
            by_id[candidate.id] = (candidate.sha256, candidate.label, candidate.patient, candidate.role)
            by_hash[candidate.sha256] = candidate.id
            continue
        sha256, label, patient, role = by_id[known]
        if sha256 != candidate.sha256:
            clashes.append(
                (candidate.path, f"the id {known!r} is taken by another image; give this one an id of its own")
            )
        elif label != candidate.label:
            clashes.append((candidate.path, f"it is registered as {label!r} (id {known!r}); remove it there first"))
        elif candidate.patient not in (None, patient):
            of = "no known patient" if patient is None else f"patient {patient!r}"
            clashes.append((candidate.path, f"it is registered for {of} (id {known!r}); remove it there first"))
        elif candidate.role != role:
            clashes.append((candidate.path, f"it is registered as {role} (id {known!r}); remove it there first"))
        else:
            duplicates.append(known)
    return new, duplicates, clashes


def _other_role(candidate: Candidate, role: str) -> str:
    if role == SUPPORT:
        return f"patient {candidate.patient!r} supports the set, and calibration needs patients apart from the support"
    return f"patient {candidate.patient!r} is set aside for calibration, and the support needs other patients"
