"""Errors a caller of `embeddings` can catch; every one carries a single sentence that says what to do.

```
ValueError
├── ImageError          a file or array that cannot be read as an image
├── EncoderError        an encoder that cannot be found, loaded or used
│   └── UnknownEncoder  a name that stands for no encoder or backbone
└── SourceError         a folder or table of images that cannot be listed
    └── UnknownColumn   a table has no column of that name
Exception
├── DecoderUnavailable  no decoding process can be started
└── ArchiveError        the archive as a whole: not there, not ours, not writable
    ├── ArchiveLocked   another process is writing
    ├── EncoderMismatch the archive belongs to another encoder
    ├── ArchiveCorrupt  what is on disk is not what was written
    ├── StorageFull     the disk or a quota is exhausted; the current version is intact
    └── UnknownId       no row of that id or patient
```
"""

from __future__ import annotations


class ImageError(ValueError):
    """A file or array that cannot be read as an image.

    Attributes:
        source: The file's path, or a word for an array ("array").
        reason: One sentence without the path.
    """

    def __init__(self, source: object, reason: str) -> None:
        """Keep the two halves apart; `str()` joins them as "<source>: <reason>"."""
        self.source = str(source)
        self.reason = reason
        super().__init__(self.source, reason)

    def __str__(self) -> str:
        """Return "<source>: <reason>"."""
        return f"{self.source}: {self.reason}"


class EncoderError(ValueError):
    """An encoder that cannot be found, loaded or used."""


class UnknownEncoder(EncoderError):
    """A name that stands for no encoder or backbone: it was mistyped, nothing is broken."""


class SourceError(ValueError):
    """A folder or table of images that cannot be listed."""


class UnknownColumn(SourceError):
    """A table of images has no column of that name."""


class DecoderUnavailable(Exception):
    """No decoding process can be started."""


class ArchiveError(Exception):
    """The archive as a whole: not there, not one of ours, not writable."""


class ArchiveLocked(ArchiveError):
    """Another process is writing and did not finish within the time allowed."""


class EncoderMismatch(ArchiveError):
    """The archive holds vectors of another encoder."""


class ArchiveCorrupt(ArchiveError):
    """What is on disk is not what was written."""


class StorageFull(ArchiveError):
    """The disk or a quota is exhausted; the current version is intact and a rerun resumes."""


class UnknownId(ArchiveError):
    """No row of that id or patient."""
