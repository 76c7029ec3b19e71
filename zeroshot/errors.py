"""What can go wrong with words: every error is one sentence that says what came and what would do."""

from __future__ import annotations


class ZeroShotError(ValueError):
    """Something about texts, classes or alignments cannot be; the base of the errors of this package."""


class ReportError(ZeroShotError):
    """A report cannot be read: empty, or not in English."""


class LexiconError(ZeroShotError):
    """A lexicon of findings is not what it should be."""


class DescriptionError(ZeroShotError):
    """A class is described by nothing, or by something that cannot be used."""


class UnknownDescription(DescriptionError):
    """A class is described in words that the text encoder does not know."""
