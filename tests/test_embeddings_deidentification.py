"""Pseudonyms: the same for one key, another for another, and nothing of a person left in an archive."""

from __future__ import annotations

import re
import stat
from pathlib import Path
from typing import Any
from uuid import RFC_4122, UUID

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydicom.datadict import keyword_for_tag
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ComputedRadiographyImageStorage, ExplicitVRLittleEndian

from embeddings import Archive, ArchiveError, SourceError, embed_archive, load_encoder
from embeddings.deidentification import ACTIONS, PROFILE, Deidentifier
from embeddings.dicom_tags import IDENTITY_FIELDS

KEY = bytes(range(32))
CANARIES = ("MILLER^ANNA", "4711-77", "1.2.826.0.1.3680043.8.498.12345", "20231124", "anna_miller", "Ward 7")


def dicom(path: Path, number: int, patient: str = "4711-77") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.826.0.1.3680043.8.498.12345.{number}"
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PatientName, data.PatientID, data.PatientBirthDate = "MILLER^ANNA", patient, "19500203"
    data.StudyInstanceUID, data.SeriesInstanceUID = "1.2.826.0.1.3680043.8.498.12345.1", "1.2.3.4.5"
    data.StudyDate, data.AcquisitionDate, data.Modality, data.ViewPosition = "20231124", "20231125", "CR", "PA"
    data.StudyTime, data.StudyID, data.SeriesNumber, data.InstanceNumber = "120000", "1", 1, number + 1
    data.BodyPartExamined, data.StudyDescription = "CHEST", "Ward 7"
    pixels = np.random.default_rng(number).integers(0, 4096, (16, 16), dtype=np.uint16)
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 12, 11
    data.PixelData = pixels.tobytes()
    data.save_as(path, enforce_file_format=True)
    return path


@given(st.text(), st.text())
def test_pseudonyms_are_of_the_key_and_the_text(first: str, second: str) -> None:
    one, other = Deidentifier(KEY), Deidentifier(KEY[::-1])
    for name in ("patient", "path", "id", "content"):
        make, elsewhere = getattr(one, name), getattr(other, name)
        assert make(first) == getattr(Deidentifier(KEY), name)(first)
        assert make(first) != elsewhere(first)
        assert (make(first) == make(second)) == (first == second)
    assert one.patient(first)[2:] not in one.path(first)


@given(st.from_regex(r"[0-9]{1,4}(\.[1-9][0-9]{0,6}){1,6}", fullmatch=True))
def test_a_uid_becomes_a_valid_uid(uid: str) -> None:
    made = Deidentifier(KEY).uid(uid)
    assert UID(made).is_valid and len(made) <= 64 and made.startswith("2.25.")
    uuid = UUID(int=int(made.removeprefix("2.25.")))
    assert (uuid.version, uuid.variant) == (8, RFC_4122)
    assert Deidentifier(KEY).id(uid) == made
    assert Deidentifier(KEY).id(f"folder/{uid}.png").startswith("i-")


def test_every_key_that_is_kept_of_a_header_has_an_action() -> None:
    assert set(IDENTITY_FIELDS.values()) <= set(PROFILE) <= set(ACTIONS)
    changed = {key for key, (_, code) in PROFILE.items() if code}
    assert changed == {key for key in PROFILE if ACTIONS[key] != "keep"}
    tags = {key: keyword_for_tag(tag.strip("()").replace(",", "")) for key, (tag, _) in PROFILE.items()}
    assert all(IDENTITY_FIELDS[tags[key]] == key for key in set(PROFILE) - {"patient"})
    assert tags["patient"] == "PatientID"


def test_a_name_in_a_field_of_codes_does_not_stay() -> None:
    facts = {"patient": "a", "body_part": "MILLER^ANNA", "manufacturer": "x" * 65, "model": ["Anna"], "rows": 3}
    assert Deidentifier(KEY).apply(facts) == {"patient": Deidentifier(KEY).patient("a"), "rows": 3}
    missing = {"study_uid": None, "study_date": float("nan"), "modality": None, "label": None}
    assert Deidentifier(KEY).apply(missing) == {"study_uid": None, "study_date": None, "modality": None}


def test_what_is_not_known_is_removed_unless_it_is_asked_for() -> None:
    facts = {"patient": "x", "study_date": "20240229", "label": "cyst", "name": "Anna", "path": "/a", "rows": 3}
    assert set(Deidentifier(KEY).apply(facts)) == {"patient", "study_date", "rows"}
    assert Deidentifier(KEY, keep=["label"]).apply(facts)["label"] == "cyst"
    assert Deidentifier(KEY).apply({"patient": None, "study_date": "20240229"}) == {"patient": None}


def test_dates_move_together_and_keep_their_form() -> None:
    hide = Deidentifier(KEY)
    facts = hide.apply({"patient": "a", "study_date": "20240301", "acquisition_date": "2024-02-28"})
    assert re.fullmatch(r"\d{8}", facts["study_date"]) and re.fullmatch(r"\d{4}-\d\d-\d\d", facts["acquisition_date"])
    again = hide.apply({"patient": "a", "study_date": "2024-03-01"})["study_date"]
    assert again.replace("-", "") == facts["study_date"] != "20240301"
    assert hide.apply({"patient": "b", "study_date": "20240301"})["study_date"] != facts["study_date"]
    assert -3650 <= hide.shift("a").days <= -1
    assert "study_date" not in hide.apply({"patient": "a", "study_date": "in March"})


def test_keys_come_from_files(tmp_path: Path) -> None:
    made = Deidentifier.from_file(tmp_path / "key", create=True)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert Deidentifier.from_file(tmp_path / "key", create=True).key_id == made.key_id
    (tmp_path / "raw").write_bytes(bytes(range(200, 240)))
    assert Deidentifier.from_file(tmp_path / "raw").key_id == Deidentifier(bytes(range(200, 240))).key_id
    (tmp_path / "short").write_text("abcd" * 4)
    with pytest.raises(SourceError, match="has at least 32 bytes; this one has 8"):
        Deidentifier.from_file(tmp_path / "short")
    with pytest.raises(SourceError, match=r"The key '.*none' cannot be read or made: no such file"):
        Deidentifier.from_file(tmp_path / "none")
    with pytest.raises(SourceError, match=r"The key '.*key' cannot be read or made: no such file"):
        Deidentifier.from_file(tmp_path / "no" / "key", create=True)
    with pytest.raises(SourceError, match="is random; this one has only 1 different bytes"):
        Deidentifier(bytes(64))
    with pytest.raises(SourceError, match=r"keep is a list of metadata keys; it came as the text 'label': write"):
        Deidentifier(KEY, keep="label")


def embed(source: Path, archive: Path, key: Deidentifier | None, **options: Any) -> Any:
    return embed_archive(source, load_encoder("pixels-8"), archive, deidentifier=key, workers=0, **options)


def test_an_archive_holds_nothing_of_a_person(tmp_path: Path) -> None:
    source = tmp_path / "export"
    for number in range(3):
        dicom(source / "anna_miller" / f"im{number}", number)
    (source / "anna_miller" / "broken.dcm").write_bytes((source / "anna_miller" / "im0").read_bytes()[:900])
    Image.fromarray(np.random.default_rng(9).integers(0, 255, (9, 9), dtype=np.uint8)).save(source / "anna_miller.png")
    key = Deidentifier(KEY)
    report = embed(source, tmp_path / "a", key)
    assert (report.embedded, report.quarantined, report.seen) == (4, 1, 5)
    assert report.refused[0][0].endswith("broken.dcm")  # who runs the job sees the path, the archive does not keep it
    with Archive.open(tmp_path / "a") as archive:
        assert {row["patient"] for row in archive.metadata if "modality" in row} == {key.patient("4711-77")}
        assert key.uid("1.2.826.0.1.3680043.8.498.12345.1") in archive.ids
        assert archive.metadata[0]["modality"] == "CR"
        assert archive.quarantine()[0].path.startswith("f-")
        archive.purge()
    content = b"".join(path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file())
    for canary in (*CANARIES, str(tmp_path)):
        assert canary.encode() not in content
    again = embed(source, tmp_path / "a", key)
    assert (again.unchanged, again.quarantined) == (4, 1)


def test_an_archive_has_one_key_all_its_life(tmp_path: Path) -> None:
    source = tmp_path / "s"
    dicom(source / "a", 0)
    embed(source, tmp_path / "hidden", Deidentifier(KEY))
    with pytest.raises(ArchiveError, match="cannot be added to with another key: give the key it was begun with"):
        embed(source, tmp_path / "hidden", Deidentifier(KEY[::-1]))
    with pytest.raises(ArchiveError, match="cannot be added to without a key"):
        embed(source, tmp_path / "hidden", None)
    embed(source, tmp_path / "plain", None)
    with pytest.raises(ArchiveError, match="holds rows that are not de-identified"):
        embed(source, tmp_path / "plain", Deidentifier(KEY))


def test_a_patient_is_forgotten_by_the_pseudonym(tmp_path: Path) -> None:
    dicom(tmp_path / "s" / "a", 0)
    dicom(tmp_path / "s" / "b", 1, patient="other")
    key = Deidentifier(KEY)
    embed(tmp_path / "s", tmp_path / "x", key)
    with Archive.open(tmp_path / "x") as archive:
        assert archive.remove(patient=key.patient("4711-77")) == (key.uid("1.2.826.0.1.3680043.8.498.12345.0"),)
        assert len(archive) == 1
