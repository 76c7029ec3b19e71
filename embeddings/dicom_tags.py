"""What is kept of a DICOM header beside a vector: what one filters by; never a name, a birth date or free text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .dicom_file import read_header
from .errors import ImageError
from .images import DEFAULT_MAX_PIXELS, ImageIdentity
from .quiet import quiet

# Keyword of the data element (PS3.6) -> key of the metadata.
IDENTITY_FIELDS = {
    "Modality": "modality",
    "BodyPartExamined": "body_part",
    "ViewPosition": "view_position",
    "ImageLaterality": "laterality",
    "Laterality": "laterality",
    "PatientOrientation": "patient_orientation",
    "StudyInstanceUID": "study_uid",
    "SeriesInstanceUID": "series_uid",
    "SOPClassUID": "sop_class_uid",
    "SeriesNumber": "series_number",
    "InstanceNumber": "instance_number",
    "StudyDate": "study_date",
    "AcquisitionDate": "acquisition_date",
    "Manufacturer": "manufacturer",
    "ManufacturerModelName": "model",
    "BurnedInAnnotation": "burned_in_annotation",
    "PhotometricInterpretation": "photometric",
    "Rows": "rows",
    "Columns": "columns",
    "NumberOfFrames": "frames",
    "WindowCenter": "window_center",
    "WindowWidth": "window_width",
}

# Of these only a number is kept, the first where there are several; of the others in _WHOLE only a whole one.
_NUMBERS = frozenset({"window_center", "window_width"})
_WHOLE = frozenset({"series_number", "instance_number", "rows", "columns", "frames"})


def read_identity(path: Path, sha256: str) -> ImageIdentity:
    """Read what `image_identity` returns for a DICOM file: ids and the fields of `IDENTITY_FIELDS`, no pixels.

    A field that is damaged is left out; the first of two fields with one key that has a value counts.

    Raises:
        ImageError: The header cannot be parsed.
    """
    name = str(path)
    with quiet():
        try:
            header, _ = read_header(path, name, DEFAULT_MAX_PIXELS)
            uid, patient = _plain(header.get("SOPInstanceUID")), _plain(header.get("PatientID"))
        except ImageError:
            raise
        except Exception as error:  # parsers quote what they stumbled over: the message may hold a patient's name
            raise ImageError(name, f"its DICOM header is damaged ({type(error).__name__})") from error
        metadata: dict[str, Any] = {}
        for keyword, key in IDENTITY_FIELDS.items():
            value = _field(header, keyword, key)
            if value is not None:
                metadata.setdefault(key, value)
    return ImageIdentity(None if uid is None else str(uid), sha256, None if patient is None else str(patient), metadata)


def _field(header: Any, keyword: str, key: str) -> str | int | float | None:
    """Return an element's value, None where it is missing or damaged."""
    try:
        value = header.get(keyword)
        if key in _WHOLE:
            return None if value is None or value == "" else int(value)
        if key not in _NUMBERS:
            return _plain(value)
        first = value[0] if isinstance(value, Sequence) and not isinstance(value, str | bytes) else value
        plain = None if first is None or first == "" else float(first)
        return plain if plain is None or abs(plain) < float("inf") else None
    except Exception:  # pydicom converts values when they are asked for, and raises anything on damaged ones
        return None


def _plain(value: Any) -> str | int | None:
    """Return an element's value as plain text or a whole number, None where it is empty."""
    if value is None:
        return None
    if isinstance(value, int):
        return int(value)
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        value = "\\".join(map(str, value))  # as DICOM writes several values
    text = str(value).strip(" \0")
    return text or None
