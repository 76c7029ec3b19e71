"""Deployments on disk: one document each beside the set they were made from, and which of them answers.

A document holds the recipe, the set's version, and what was fitted, but no image's name: which images belong to it is
known by the version each row of the set came with. A digest of those images tells whether what was fitted still fits.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from embeddings import ArchiveCorrupt, ArchiveError, Snapshot

from .fitted import Fitted
from .priors import Words
from .recipe import Recipe
from .support import Support

if TYPE_CHECKING:
    from .comparison import ComparisonSet

#: Format of the documents; larger ones are refused. Since 2 there may be words, and without them it is still 1.
FORMAT = 2
#: The note that says which deployment answers, and how many numbers were given out.
POINTER = "deployments"


@dataclass(frozen=True, eq=False)
class Members:
    """The images a deployment was made from that are still there.

    Attributes:
        support_rows: The support.
        aside: The images set aside for calibration.
    """

    support_rows: Snapshot
    aside: Snapshot

    @cached_property
    def support(self) -> Support:
        """The support as heads take it."""
        rows = self.support_rows
        if not len(rows):
            return Support.nothing(rows.vectors.shape[1])
        return Support(
            rows.vectors,
            [str(row["label"]) for row in rows.metadata],
            ids=rows.ids,
            groups=[row.get("patient") for row in rows.metadata],
        )

    @property
    def images(self) -> int:
        """How many there are."""
        return len(self.support_rows) + len(self.aside)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over who they are and what their vectors are."""
        found = hashlib.sha256()
        for part in (self.support_rows, self.aside):
            facts = [
                [name, content, row["label"], row.get("patient")]
                for name, content, row in zip(part.ids, part.hashes, part.metadata, strict=True)
            ]
            found.update(json.dumps(facts).encode())
            found.update(np.ascontiguousarray(part.vectors, dtype="<f4").tobytes())
        return found.hexdigest()


@dataclass(frozen=True, eq=False)
class Record:
    """One deployment as it is kept.

    Attributes:
        number: From 1.
        created_at: UTC, ISO 8601.
        set_version: The set's version it was made from.
        encoder: Fingerprint of the encoder the set had then.
        recipe: What was asked for.
        center: float32 (d,), the source's mean it decides with, or None.
        needs_encoder: Whether the head decides by what only the encoder brings.
        images: Images it was made from.
        digest: Of the images `fitted` was fitted to; None where nothing is kept.
        fitted: What was fitted, or None where images were removed since.
        words: What words said about the classes when it was made, or None.
    """

    number: int
    created_at: str
    set_version: int
    encoder: str
    recipe: Recipe
    center: NDArray[np.float32] | None
    needs_encoder: bool
    images: int
    digest: str | None
    fitted: Fitted | None
    words: Words | None = None

    def fitted_to(self, members: Members) -> Fitted | None:
        """What was fitted, if it was to these very images.

        Raises:
            ArchiveCorrupt: There are more images than it was made from, which removals cannot bring about.
        """
        if members.images > self.images:
            raise ArchiveCorrupt(
                f"Deployment {self.number} was made from {self.images:,} images, and {members.images:,} say that they "
                "were there: run `radshot verify` and restore a backup, or deploy anew."
            )
        return self.fitted if self.digest == members.digest else None

    def removed_from(self, members: Members) -> int:
        """Images of it that were removed since it was made."""
        return self.images - members.images

    def to_json(self) -> dict[str, Any]:
        """The document."""
        with_words = {} if self.words is None else {"words": self.words.to_json()}
        return {
            "format": FORMAT if with_words else 1,
            "number": self.number,
            "created_at": self.created_at,
            "set_version": self.set_version,
            "encoder": self.encoder,
            "recipe": self.recipe.to_json(),
            "center": None if self.center is None else [float(value) for value in self.center],
            "needs_encoder": self.needs_encoder,
            "images": self.images,
            "digest": self.digest,
            "fitted": None if self.fitted is None else self.fitted.to_json(),
            **with_words,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Record:
        """Rebuild from the document.

        Raises:
            ArchiveError: A newer radshot wrote it.
        """
        if document["format"] > FORMAT:
            raise ArchiveError(
                f"Deployment {document['number']} has format {document['format']}, written by a newer radshot; this "
                f"one reads up to format {FORMAT}: upgrade radshot."
            )
        center, fitted = document["center"], document["fitted"]
        return cls(
            number=document["number"],
            created_at=document["created_at"],
            set_version=document["set_version"],
            encoder=document["encoder"],
            recipe=Recipe.from_json(document["recipe"]),
            center=None if center is None else np.array(center, dtype=np.float32),
            needs_encoder=document["needs_encoder"],
            images=document["images"],
            digest=document["digest"],
            fitted=None if fitted is None else Fitted.from_json(fitted),
            words=Words.from_json(document["words"]) if document.get("words") else None,
        )


def members_of(cases: ComparisonSet, version: int) -> Members:
    """The images that were in the set at a version and still are."""
    support, aside = cases.parts()
    return Members(*(part.take(np.flatnonzero(part.since <= version)) for part in (support, aside)))


def write_new(
    cases: ComparisonSet,
    recipe: Recipe,
    members: Members,
    fitted: Fitted,
    *,
    center: NDArray[np.float32] | None,
    needs_encoder: bool,
    words: Words | None = None,
) -> Record:
    """Keep a new deployment and let it answer; call it under the writer's lock."""
    numbers = _pointer(cases)
    record = Record(
        number=numbers["newest"] + 1,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        set_version=cases.archive.version,
        encoder=cases.archive.encoder_fingerprint,
        recipe=recipe,
        center=center,
        needs_encoder=needs_encoder,
        images=members.images,
        digest=members.digest,
        fitted=fitted,
        words=words,
    )
    numbers = {"current": record.number, "newest": record.number}
    cases.archive.set_notes({_key(record.number): record.to_json(), POINTER: numbers})  # both or neither
    return record


def read_record(cases: ComparisonSet, number: int) -> Record:
    """One deployment.

    Raises:
        LookupError: There is none of this number.
    """
    document = cases.archive.get_note(_key(number))
    if document is None:
        newest = _pointer(cases)["newest"]
        raise LookupError(
            f"The comparison set '{cases.archive.path}' has no deployment {number}; "
            + (f"there are 1 to {newest}." if newest else "there is none: `radshot deploy` makes one.")
        )
    return Record.from_json(document)


def current_number(cases: ComparisonSet) -> int:
    """Number of the deployment that answers.

    Raises:
        LookupError: There is none.
    """
    current = _pointer(cases)["current"]
    if not current:
        raise LookupError(f"The comparison set '{cases.archive.path}' has no deployment: `radshot deploy` makes one.")
    return int(current)


def has_deployment(cases: ComparisonSet) -> bool:
    """Whether one answers."""
    return bool(_pointer(cases)["current"])


def deployments(cases: ComparisonSet) -> list[Record]:
    """Every deployment of a set, oldest first."""
    return [read_record(cases, number) for number in range(1, _pointer(cases)["newest"] + 1)]


def roll_back(cases: ComparisonSet, number: int) -> Record:
    """Let an earlier deployment answer, or a later one again: its images, head, calibration and thresholds together.

    Images that were removed since stay removed.

    Args:
        cases: The set.
        number: Which.

    Returns:
        The deployment's record.

    Raises:
        LookupError: There is none of this number.
    """
    with cases.archive.writing():
        record = read_record(cases, number)
        cases.archive.set_note(POINTER, {**_pointer(cases), "current": number})
    return record


def refitted(cases: ComparisonSet, record: Record, members: Members, fitted: Fitted) -> None:
    """Keep what was fitted again, if the set can be written at once and has not changed meanwhile."""
    with suppress(ArchiveError), cases.archive.writing(timeout=0):
        if members_of(cases, record.set_version).digest == members.digest:
            renewed = replace(record, digest=members.digest, fitted=fitted)
            cases.archive.set_note(_key(record.number), renewed.to_json())


def withdraw(cases: ComparisonSet, *, ids: Collection[str] | None = None, patient: object | None = None) -> int:
    """Erase what was fitted to some images, before they are removed; whoever opens the deployment fits it again.

    The documents are not read beyond what this takes, so that one a newer radshot wrote is withdrawn too. Call it under
    the writer's lock, with the removal: a crash in between costs a fit and nothing else.

    Args:
        cases: The set.
        ids: The images.
        patient: Or all images of a patient.

    Returns:
        How many deployments it was erased from.
    """
    whole = cases.archive.snapshot()
    if ids is not None:
        rows = [whole.positions[name] for name in ids if name in whole.positions]
    else:
        rows = [i for i, row in enumerate(whole.metadata) if str(row.get("patient")).strip() == str(patient).strip()]
    since = int(whole.since[rows].min()) if rows else 0  # whom we do not know may be in any
    blank: dict[str, Any] = {}
    for number in range(1, _pointer(cases)["newest"] + 1):
        document = cases.archive.get_note(_key(number))
        if document and document.get("fitted") is not None and document.get("set_version", since) >= since:
            blank[_key(number)] = {**document, "digest": None, "fitted": None}
    if blank:
        cases.archive.set_notes(blank)
    return len(blank)


def _key(number: int) -> str:
    return f"deployment {number}"


def _pointer(cases: ComparisonSet) -> dict[str, int]:
    found: dict[str, int] = cases.archive.get_note(POINTER, {"current": 0, "newest": 0})
    return found
