"""DICOMDIR: what it lists is embedded, what lies outside of it is refused unread."""

from __future__ import annotations

import shutil
from pathlib import Path

import pydicom
import pytest
from pydicom.fileset import FileSet

from embeddings import SourceError, embed_archive, load_encoder
from embeddings.dicomdir import records_from_dicomdir

from .test_embeddings_deidentification import dicom


@pytest.fixture
def file_set(tmp_path: Path) -> Path:
    made = FileSet()
    for number in range(4):
        made.add(dicom(tmp_path / "from" / f"{number}.dcm", number, patient=f"p{number // 2}"))
    made.write(tmp_path / "disc")
    made._stage["t"].cleanup()  # else pydicom leaves that to the garbage collector, with a warning
    return tmp_path / "disc" / "DICOMDIR"


def test_its_images_are_listed_and_embedded(file_set: Path, tmp_path: Path) -> None:
    records = records_from_dicomdir(file_set)
    assert len(records) == 4
    assert all(record.path.is_file() and record.refused is None for record in records)
    report = embed_archive(file_set, load_encoder("pixels-8"), tmp_path / "a", workers=0)
    assert (report.embedded, report.quarantined) == (4, 0)
    whole = embed_archive(file_set.parent, load_encoder("pixels-8"), tmp_path / "a", workers=0)
    assert whole.unchanged == 4


def test_small_letters_on_the_disc_do_not_matter(file_set: Path) -> None:
    for path in sorted(file_set.parent.rglob("*"), reverse=True):
        if path.name != "DICOMDIR":
            path.rename(path.with_name(path.name.lower()))
    assert all(record.path.is_file() for record in records_from_dicomdir(file_set))


@pytest.mark.filterwarnings("ignore:.*for VR CS")
def test_nothing_outside_is_read(file_set: Path, tmp_path: Path) -> None:
    directory = pydicom.dcmread(file_set)
    images = [r for r in directory.DirectoryRecordSequence if r.DirectoryRecordType == "IMAGE"]
    inside = list(images[3].ReferencedFileID)
    secret = dicom(tmp_path / "secret.dcm", 99)
    images[0].ReferencedFileID = ["..", "secret.dcm"]
    images[1].ReferencedFileID = [str(secret)]
    images[2].ReferencedFileID = ["LINK", "secret.dcm"]
    (file_set.parent / "LINK").symlink_to(tmp_path, target_is_directory=True)
    directory.save_as(file_set)
    records = records_from_dicomdir(file_set)
    assert [record.refused is None for record in records] == [False, False, False, True]
    report = embed_archive(file_set, load_encoder("pixels-8"), tmp_path / "a", workers=0)
    assert (report.embedded, report.quarantined) == (1, 3)
    assert {reason for _, reason in report.refused} == {"is named by a DICOMDIR outside of whose folder it lies"}
    shutil.rmtree(file_set.parent / inside[0])
    (missing,) = [record for record in records_from_dicomdir(file_set) if record.refused is None]
    assert not missing.path.exists()
    report = embed_archive(file_set, load_encoder("pixels-8"), tmp_path / "b", workers=0)
    assert dict(report.refused)[str(missing.path)] == "is missing"


@pytest.mark.filterwarnings("ignore:.*for VR CS")
def test_names_no_file_can_have_are_refused_and_hide_no_file(file_set: Path, tmp_path: Path) -> None:
    directory = pydicom.dcmread(file_set)
    images = [r for r in directory.DirectoryRecordSequence if r.DirectoryRecordType == "IMAGE"]
    good = list(images[3].ReferencedFileID)
    images[0].ReferencedFileID = [*good[:-1], good[-1] + "\0X"]
    images[1].ReferencedFileID = [*good[:-1], ".", good[-1]]
    images[2].ReferencedFileID = good  # twice
    directory.save_as(file_set)
    records = records_from_dicomdir(file_set)
    reasons = [record.refused for record in records]
    assert reasons == ["is named by a DICOMDIR in a way that no file of a file-set is"] * 2 + [None]
    assert all(file_set in record.path.parents for record in records[:2])
    report = embed_archive(file_set, load_encoder("pixels-8"), tmp_path / "a", workers=0)
    assert (report.embedded, report.quarantined) == (1, 2)


def test_a_record_that_was_deleted_is_passed_over(file_set: Path) -> None:
    directory = pydicom.dcmread(file_set)
    next(r for r in directory.DirectoryRecordSequence if r.DirectoryRecordType == "IMAGE").RecordInUseFlag = 0
    directory.save_as(file_set)
    assert len(records_from_dicomdir(file_set)) == 3


@pytest.mark.filterwarnings("ignore:.*for VR CS")
def test_a_file_beside_is_not_blamed_for_a_name_that_leads_to_it(file_set: Path, tmp_path: Path) -> None:
    directory = pydicom.dcmread(file_set)
    beside = dicom(tmp_path / "BESIDE", 99)
    next(r for r in directory.DirectoryRecordSequence if r.DirectoryRecordType == "IMAGE").ReferencedFileID = [
        "..",
        "BESIDE",
    ]
    directory.save_as(file_set)
    table = tmp_path / "m.csv"
    table.write_text(f"image\n{beside.name}\n")
    report = embed_archive([file_set, table], load_encoder("pixels-8"), tmp_path / "a", workers=0)
    assert (report.embedded, report.quarantined) == (4, 1)
    assert report.refused[0][0] == f"{file_set}/..\\BESIDE"


def test_what_is_no_dicomdir_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="There is no file at"):
        records_from_dicomdir(tmp_path / "DICOMDIR")
    (tmp_path / "DICOMDIR").write_bytes(b"x" * 300)
    with pytest.raises(SourceError, match=r"is no DICOMDIR that can be read .*: give the folder it lies in"):
        records_from_dicomdir(tmp_path / "DICOMDIR")
    dicom(tmp_path / "DICOMDIR", 0)
    with pytest.raises(SourceError, match="is no DICOMDIR that can be read"):
        records_from_dicomdir(tmp_path / "DICOMDIR")
