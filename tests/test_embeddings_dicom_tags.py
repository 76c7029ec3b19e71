"""What is kept of a DICOM header: what one filters by, damaged values left out, nothing that names a person."""

from __future__ import annotations

from pathlib import Path

import pydicom
import pytest
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from embeddings import image_identity
from embeddings.dicom_tags import IDENTITY_FIELDS

from .test_embeddings_deidentification import dicom

SECRETS = ("MILLER", "19500203", "Ward 7", "120000")


def patched(path: Path, old: bytes, new: bytes) -> Path:
    """Damage a value in place, as a faulty writer would: the lengths stay."""
    content = path.read_bytes()
    assert content.count(old) == 1 and len(old) == len(new)
    path.write_bytes(content.replace(old, new))
    return path


def test_what_one_filters_by_is_kept_and_nobody_is_named(tmp_path: Path) -> None:
    identity = image_identity(dicom(tmp_path / "a", 1))
    assert identity.patient_id == "4711-77"
    assert identity.metadata == {
        "modality": "CR",
        "body_part": "CHEST",
        "view_position": "PA",
        "study_uid": "1.2.826.0.1.3680043.8.498.12345.1",
        "series_uid": "1.2.3.4.5",
        "sop_class_uid": "1.2.840.10008.5.1.4.1.1.1",
        "series_number": 1,
        "instance_number": 2,
        "study_date": "20231124",
        "acquisition_date": "20231125",
        "photometric": "MONOCHROME2",
        "rows": 16,
        "columns": 16,
    }
    assert not any(secret in str(identity) for secret in SECRETS)


def test_a_damaged_value_costs_itself_only(tmp_path: Path) -> None:
    whole = image_identity(dicom(tmp_path / "a", 7)).metadata
    damaged = image_identity(patched(tmp_path / "a", b"IS\x02\x008 ", b"IS\x02\x00?!"))
    assert damaged.metadata == {key: value for key, value in whole.items() if key != "instance_number"}
    assert damaged.patient_id == "4711-77"


@pytest.mark.parametrize(
    ("center", "kept"), [(["40", "400"], 40.0), ("-600.5", -600.5), ("", None), ("1e400", None), ("wide", None)]
)
@pytest.mark.filterwarnings("ignore:Invalid value for VR DS")
def test_of_a_window_the_first_number_is_kept(tmp_path: Path, center: str | list[str], kept: float | None) -> None:
    data = pydicom.dcmread(dicom(tmp_path / "a", 0))
    value = "\\".join(center) if isinstance(center, list) else center
    raw = value.encode() + b" " * (len(value) % 2)
    data[Tag("WindowCenter")] = RawDataElement(Tag("WindowCenter"), "DS", len(raw), raw, 0, False, True)
    data.save_as(tmp_path / "b")
    assert image_identity(tmp_path / "b").metadata.get("window_center") == kept


def test_laterality_of_the_image_goes_before_that_of_the_series(tmp_path: Path) -> None:
    data = pydicom.dcmread(dicom(tmp_path / "a", 0))
    data.Laterality = "L"
    data.save_as(tmp_path / "series")
    data.ImageLaterality = "R"
    data.save_as(tmp_path / "image")
    assert image_identity(tmp_path / "series").metadata["laterality"] == "L"
    assert image_identity(tmp_path / "image").metadata["laterality"] == "R"


def test_no_field_holds_names_birth_dates_or_free_text() -> None:
    representations = {keyword: dictionary_VR(tag_for_keyword(keyword) or 0) for keyword in IDENTITY_FIELDS}
    assert not set(representations.values()) & {"PN", "ST", "LT", "UT", "UC"}
    assert {keyword for keyword, vr in representations.items() if vr == "LO"} == {
        "Manufacturer",
        "ManufacturerModelName",
    }
    assert not any("Birth" in keyword or "Name" in keyword.replace("ModelName", "") for keyword in IDENTITY_FIELDS)
