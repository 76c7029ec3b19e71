"""A set of phantoms with the truth about each image."""

from __future__ import annotations

from dataclasses import dataclass

from .phantom_anatomy import Array
from .phantom_specs import NO_FINDING, PhantomFinding


@dataclass(frozen=True, slots=True)
class PhantomSet:
    """Images with aligned truth; row i of everything belongs to image i.

    Attributes:
        images: Grey levels in [0, 1], float32 (n, h, w), bright where little radiation passed.
        findings: What each image shows; an empty tuple is a healthy chest.
        patients: Patient of each image; the same everywhere for the same seed, class and number.
        ids: One id per image, `<patient>-<k>`.
        views: "PA" or "AP".
        reports: Report text of each image.
        seed: The seed the set was made with.
    """

    images: Array
    findings: tuple[tuple[PhantomFinding, ...], ...]
    patients: tuple[str, ...]
    ids: tuple[str, ...]
    views: tuple[str, ...]
    reports: tuple[str, ...]
    seed: int

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.ids)

    def names(self, row: int) -> tuple[str, ...]:
        """Names of what one image shows; `(NO_FINDING,)` for a healthy chest."""
        return tuple(finding.name for finding in self.findings[row]) or (NO_FINDING,)

    @property
    def labels(self) -> list[str] | list[tuple[str, ...]]:
        """One name per image, or, where any image of the set shows several findings, a tuple of names per image."""
        named = [self.names(row) for row in range(len(self))]
        return named if any(len(names) > 1 for names in named) else [names[0] for names in named]

    @property
    def sides(self) -> list[str]:
        """Side of each image's findings ("left", "right", "both", "midline"), joined by `|`."""
        return ["|".join(finding.side for finding in shown) for shown in self.findings]

    @property
    def places(self) -> list[str]:
        """Place of each image's findings, joined by `|`."""
        return ["|".join(finding.place for finding in shown) for shown in self.findings]

    @property
    def severities(self) -> list[str]:
        """Severity of each image's findings in a word, joined by `|`."""
        return ["|".join(finding.grade for finding in shown) for shown in self.findings]
