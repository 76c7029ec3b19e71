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
from .metadata import patient_text

LEAST_KEY_BYTES = 32
"""A key has at least as many bytes as the hash."""

DATE_RANGE_DAYS = 3650
"""A patient's dates are moved back by 1 to so many days, the same for all of them: intervals stay."""

Action = Literal["keep", "patient", "uid", "date", "remove"]

ACTIONS: dict[str, Action] = {
    "patient": "patient",  # Patient ID (0010,0020): Z
    "study_uid": "uid",  # Study Instance UID (0020,000D): U
    "series_uid": "uid",  # Series Instance UID (0020,000E): U
    "study_date": "date",  # Study Date (0008,0020): Z; C with the option to retain modified dates (E.3.6)
    "acquisition_date": "date",  # Acquisition Date (0008,0022): X/Z; C as above
    "modality": "keep",
    "body_part": "keep",
    "view_position": "keep",
    "laterality": "keep",
    "patient_orientation": "keep",
    "sop_class_uid": "keep",  # names a kind of object, no object
    "series_number": "keep",
    "instance_number": "keep",
    "manufacturer": "keep",
    "model": "keep",
    "burned_in_annotation": "keep",
    "photometric": "keep",
    "rows": "keep",
    "columns": "keep",
    "frames": "keep",
    "window_center": "keep",
    "window_width": "keep",
    "registered_at": "keep",
}
"""What happens to each key radshot keeps, after the Basic Application Level Confidentiality Profile (PS3.15 table
E.1-1, where attributes that it does not list are kept); any other key is removed unless the caller asks to keep it."""


class Deidentifier:
    """Replaces what points at a person by pseudonyms of one key."""

    def __init__(self, key: bytes, *, keep: Collection[str] = ()) -> None:
        """Take the key.

        Args:
            key: At least 32 random bytes, kept where the archive is not.
            keep: Further metadata keys (columns of a manifest) to keep as they are.

        Raises:
            SourceError: The key is too short.
        """
        if len(key) < LEAST_KEY_BYTES:
            raise SourceError(f"A key for pseudonyms has at least {LEAST_KEY_BYTES} bytes; this one has {len(key)}.")
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
            SourceError: There is no file, or what it holds is too short.
        """
        file = Path(path)
        if create and not file.exists():
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "w", encoding="ascii") as stream:
                stream.write(secrets.token_hex(LEAST_KEY_BYTES) + "\n")
        try:
            content = file.read_bytes()
        except OSError as error:
            raise SourceError(f"The key '{file}' cannot be read: {(error.strerror or str(error)).lower()}.") from error
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
        """Return a UID's pseudonym, a valid UID below 2.25 (PS3.5 B.2)."""
        return f"2.25.{int(self._hash('uid', uid)[:32], 16)}"

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
            action = ACTIONS.get(key, "keep" if key in self._keep else "remove")
            if action == "keep":
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
