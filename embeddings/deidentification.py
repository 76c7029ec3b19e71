"""Deidentifier: patients, UIDs, dates and paths become pseudonyms before anything is stored (DICOM PS3.15, Annex E).

A pseudonym is a keyed hash (HMAC-SHA256): the same key gives the same pseudonym, so that a patient's images stay
together and a later run finds them again; without the key nobody can tell, nor test a guess. The key stays outside of
the archive, which keeps a fingerprint of it.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Collection, Mapping
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

from .errors import SourceError
from .metadata import is_missing, patient_text
from .sources import printable

LEAST_KEY_BYTES = 32
"""A key has at least as many bytes as the hash."""

DATE_RANGE_DAYS = 3650
"""A patient's dates are moved back by 1 to so many days, the same for all of them: intervals stay."""

LEAST_DISTINCT_BYTES = 12
"""Of 32 random bytes fewer than so many are distinct less than once in 10^20 keys: such a key is no random one."""

LONGEST_TEXT = 64
"""A kept text is a code or a name of equipment, which DICOM limits to so many characters (PS3.5 6.2, CS and LO)."""

Action = Literal["keep", "patient", "uid", "date", "remove"]

PROFILE: dict[str, tuple[str, str]] = {
    "patient": ("(0010,0020)", "Z/D"),
    "study_uid": ("(0020,000D)", "U"),
    "series_uid": ("(0020,000E)", "U"),
    "study_date": ("(0008,0020)", "Z"),
    "acquisition_date": ("(0008,0022)", "X/Z"),
    "modality": ("(0008,0060)", ""),
    "body_part": ("(0018,0015)", ""),
    "view_position": ("(0018,5101)", ""),
    "laterality": ("(0020,0062)", ""),  # or (0020,0060)
    "patient_orientation": ("(0020,0020)", ""),
    "sop_class_uid": ("(0008,0016)", ""),  # names a kind of object, no object
    "series_number": ("(0020,0011)", ""),
    "instance_number": ("(0020,0013)", ""),
    "manufacturer": ("(0008,0070)", ""),
    "model": ("(0008,1090)", ""),
    "burned_in_annotation": ("(0028,0301)", ""),
    "photometric": ("(0028,0004)", ""),
    "rows": ("(0028,0010)", ""),
    "columns": ("(0028,0011)", ""),
    "frames": ("(0028,0008)", ""),
    "window_center": ("(0028,1050)", ""),
    "window_width": ("(0028,1051)", ""),
}
"""Metadata key -> its tag, and the action of the Basic Application Level Confidentiality Profile (PS3.15 table E.1-1,
edition 2024b); "" where the table does not list the tag, which is to keep it."""

ACTIONS: dict[str, Action] = {
    **dict.fromkeys((key for key, (_, code) in PROFILE.items() if not code), "keep"),
    "patient": "patient",  # D: a dummy that is the same for all images of a patient
    "study_uid": "uid",
    "series_uid": "uid",
    "study_date": "date",  # C, with the option to retain longitudinal information with modified dates (E.3.6)
    "acquisition_date": "date",
    "registered_at": "keep",  # when radshot embedded the image
}
"""What happens to each key radshot keeps; any other key is removed unless the caller asks to keep it."""


class Deidentifier:
    """Replaces what points at a person by pseudonyms of one key."""

    def __init__(self, key: bytes, *, keep: Collection[str] = ()) -> None:
        """Take the key.

        Args:
            key: At least 32 random bytes, kept where the archive is not.
            keep: Further metadata keys (columns of a manifest) to keep as they are.

        Raises:
            SourceError: The key is too short or not random, or `keep` is one text.
        """
        if isinstance(keep, str):
            raise SourceError(f"keep is a list of metadata keys; it came as the text {keep!r}: write [{keep!r}].")
        if len(key) < LEAST_KEY_BYTES:
            raise SourceError(f"A key for pseudonyms has at least {LEAST_KEY_BYTES} bytes; this one has {len(key)}.")
        if len(set(key)) < LEAST_DISTINCT_BYTES:
            raise SourceError(
                f"A key for pseudonyms is random; this one has only {len(set(key))} different bytes: let "
                "Deidentifier.from_file(path, create=True) make one."
            )
        self._key = key
        self._keep = frozenset(keep)

    @classmethod
    def from_file(
        cls, path: str | os.PathLike[str], *, create: bool = False, keep: Collection[str] = ()
    ) -> Deidentifier:
        """Read the key from a file, as bytes or as hexadecimal digits.

        Args:
            path: The file.
            create: Whether to make a new key where there is no file; only its owner can read it.
            keep: As for the class.

        Raises:
            SourceError: The file cannot be read or made, or what it holds is no key.
        """
        file = Path(path)
        try:
            if create and not file.exists():
                _make_key(file)
            content = file.read_bytes()
        except OSError as error:
            what = (error.strerror or str(error)).lower()
            raise SourceError(f"The key '{printable(file)}' cannot be read or made: {what}.") from error
        try:
            key = bytes.fromhex(content.decode("ascii"))
        except ValueError:
            key = content
        return cls(key, keep=keep)

    @property
    def key_id(self) -> str:
        """A fingerprint of the key, which an archive keeps to refuse another one."""
        return self._hash("key", "")[:32]

    def _hash(self, purpose: str, text: str) -> str:
        message = f"{purpose}\0{text}".encode("utf-8", "surrogatepass")
        return hmac.new(self._key, message, hashlib.sha256).hexdigest()

    def patient(self, patient: str) -> str:
        """Return a patient's pseudonym."""
        return f"p-{self._hash('patient', patient)[:20]}"

    def uid(self, uid: str) -> str:
        """Return a UID's pseudonym, a valid UID: 2.25 and a UUID (PS3.5 B.2) of version 8 (RFC 9562 5.8)."""
        digits = list(self._hash("uid", uid)[:32])
        digits[12], digits[16] = "8", f"{8 | int(digits[16], 16) & 3:x}"
        return f"2.25.{int(''.join(digits), 16)}"

    def id(self, identity: str) -> str:
        """Return the pseudonym of a row's id: of a UID, or of a path or name."""
        looks_like_uid = len(identity) <= 64 and set(identity) <= set("0123456789.") and "." in identity
        return self.uid(identity) if looks_like_uid else f"i-{self._hash('id', identity)[:32]}"

    def path(self, path: str) -> str:
        """Return the pseudonym of a file's path: names of folders and files are often names of persons."""
        return f"f-{self._hash('path', path)[:32]}"

    def content(self, sha256: str) -> str:
        """Return the pseudonym of a file's hash, which else would let anybody with the file find its row."""
        return self._hash("content", sha256)

    def shift(self, patient: str) -> timedelta:
        """Return by how many days a patient's dates are moved."""
        return timedelta(days=-1 - int(self._hash("date", patient)[:12], 16) % DATE_RANGE_DAYS)

    def apply(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Return metadata with every key treated as `ACTIONS` says, and no other key but those to keep."""
        patient = patient_text(metadata.get("patient"))
        kept: dict[str, Any] = {}
        for key, value in metadata.items():
            action = ACTIONS.get(key, "remove")
            if key in self._keep and action == "remove":
                kept[key] = value
            elif is_missing(value):
                if action != "remove":
                    kept[key] = None
            elif action == "keep" and _is_plain(value):
                kept[key] = value
            elif action == "uid":
                kept[key] = self.uid(str(value))
            elif action == "patient":
                kept[key] = None if patient is None else self.patient(patient)
            elif action == "date" and patient is not None and (moved := self._moved(str(value), patient)) is not None:
                kept[key] = moved
        return kept

    def _moved(self, text: str, patient: str) -> str | None:
        """Return a date (YYYYMMDD or ISO 8601) moved by the patient's shift, in its form; None where it is none."""
        try:
            moved = date.fromisoformat(text) + self.shift(patient)
        except (ValueError, OverflowError):
            return None
        return moved.isoformat() if "-" in text else moved.strftime("%Y%m%d")


def _is_plain(value: Any) -> bool:
    """Say whether a value is a number or a short text, and no person's name, which DICOM writes with a caret."""
    if isinstance(value, str):
        return len(value) <= LONGEST_TEXT and "^" not in value
    return isinstance(value, int | float)


def _make_key(file: Path) -> None:
    """Write a new key that only its owner can read; it is on disk before a pseudonym is made with it."""
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="ascii") as stream:
        stream.write(secrets.token_hex(LEAST_KEY_BYTES) + "\n")
        stream.flush()
        os.fsync(stream.fileno())
