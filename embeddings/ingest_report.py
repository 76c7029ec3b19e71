"""IngestReport: what became of every file of a job; the counts add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class IngestReport:
    """What became of every file, or row of a table: seen = embedded + updated + duplicate + unchanged + len(refused).

    Attributes:
        seen: Files considered.
        embedded: New rows.
        updated: Rows replaced because their file changed on disk, or given other metadata because the source says more.
        duplicate: Files whose content is stored under another id, or the same id by another path, or listed before.
        unchanged: Files that are as they were when they were stored.
        refused: (path, reason) of files that could not be stored; retried at every run.
        duplicates: (path, id) of the duplicates and the row they equal.
        total: Files listed; equals `seen` once the job is done.
        seconds: Time taken so far.
        warnings: Code of `embeddings.image_warnings` -> images of this job that carry it; each image's codes are in its
            metadata.
        precision: How the vectors were computed, one sentence; empty where the encoder has but one way.
    """

    seen: int = 0
    embedded: int = 0
    updated: int = 0
    duplicate: int = 0
    unchanged: int = 0
    refused: tuple[tuple[str, str], ...] = ()
    duplicates: tuple[tuple[str, str], ...] = ()
    total: int = 0
    seconds: float = 0.0
    warnings: Mapping[str, int] = field(default_factory=dict)
    precision: str = ""

    @property
    def quarantined(self) -> int:
        """Return how many files were refused."""
        return len(self.refused)

    def __str__(self) -> str:
        """Return one line with all counts."""
        return (
            f"{self.seen} files: {self.embedded} embedded, {self.updated} updated, {self.duplicate} duplicate, "
            f"{self.unchanged} unchanged, {len(self.refused)} refused ({self.seconds:.1f} s)"
        )
