"""embed_archive: every file is accounted for, nothing is done twice, and a bad one stops nothing."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from embeddings.archive import Archive
from embeddings.errors import ArchiveError, EncoderError, EncoderMismatch, ImageError, SourceError, UnknownId
from embeddings.images import read_image
from embeddings.ingest import IngestReport, embed_archive
from embeddings.sources import Record


class FakeEncoder:
    """Mean grey level of each quarter; counts what it is asked to do."""

    name = "quarters"
    dim = 4
    fingerprint = hashlib.sha256(b"quarters").hexdigest()
    spec = None
    source_mean = None

    def __init__(self) -> None:
        self.loaded: list[str] = []

    def load(self, source: Any) -> np.ndarray:
        self.loaded.append(Path(source).name)
        return read_image(source)

    def encode_loaded(self, batch: Any) -> np.ndarray:
        rows = []
        for image in batch:
            h, w = image.shape[0] // 2, image.shape[1] // 2
            rows.append([image[:h, :w].mean(), image[:h, w:].mean(), image[h:, :w].mean(), image[h:, w:].mean()])
        return np.asarray(rows, dtype=np.float32)

    def encode(self, images: Any, *, batch_size: int = 64) -> np.ndarray:
        return self.encode_loaded([self.load(image) for image in images])


def draw(path: Path, seed: int, *, old: bool = True) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, size=(16, 16), dtype=np.uint8)
    Image.fromarray(pixels).save(path, format="PNG")
    if old:
        os.utime(path, (1_000_000_000 + seed, 1_000_000_000 + seed))
    return path


def adds_up(report: IngestReport) -> bool:
    parts = report.embedded + report.updated + report.duplicate + report.unchanged + len(report.refused)
    return report.seen == report.total == parts and report.duplicate == len(report.duplicates)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    folder = tmp_path / "scans"
    for number in range(10):
        draw(folder / f"patient {number % 3}" / f"bild-ä{number}", number)
    return folder


@pytest.mark.parametrize("workers", [0, 3])
def test_a_folder_becomes_rows_and_a_rerun_does_nothing(scans: Path, tmp_path: Path, workers: int) -> None:
    encoder = FakeEncoder()
    first = embed_archive(scans, encoder, tmp_path / "a", batch_size=3, workers=workers)
    assert (first.seen, first.embedded) == (10, 10)
    assert adds_up(first)
    with Archive.open(tmp_path / "a") as archive:
        assert archive.ids[0] == "patient 0/bild-ä0"
        one = scans / archive.ids[4]
        np.testing.assert_array_equal(archive.vectors[4], encoder.encode([one])[0])
        row = archive.metadata[4]
        assert (row["path"], row["source"]) == (str(one), str(scans))
        assert row["sha256"] == archive.snapshot().hashes[4] == hashlib.sha256(one.read_bytes()).hexdigest()
        version = archive.version
        encoder.loaded.clear()
        again = embed_archive(scans, encoder, tmp_path / "a", workers=workers)
        assert (again.unchanged, again.seen, encoder.loaded) == (10, 10, [])
        assert adds_up(again)
        assert archive.version == version
    assert str(again).startswith("10 files: 0 embedded, 0 updated, 0 duplicate, 10 unchanged, 0 refused")


def test_a_touched_file_is_unchanged_and_a_changed_one_replaces_its_row(scans: Path, tmp_path: Path) -> None:
    encoder = FakeEncoder()
    embed_archive(scans, encoder, tmp_path / "a")
    (scans / "patient 0" / "bild-ä0").touch()
    draw(scans / "patient 1" / "bild-ä1", 77)
    draw(scans / "patient 1" / "new", 78)
    encoder.loaded.clear()
    report = embed_archive(scans, encoder, tmp_path / "a")
    assert (report.embedded, report.updated, report.unchanged) == (1, 1, 9)
    assert adds_up(report)
    assert sorted(encoder.loaded) == ["bild-ä1", "new"]
    with Archive.open(tmp_path / "a") as archive:
        assert len(archive) == 11
        place = archive.ids.index("patient 1/bild-ä1")
        np.testing.assert_array_equal(archive.vectors[place], encoder.encode([scans / "patient 1" / "bild-ä1"])[0])
        assert archive.verify().ok


def test_a_file_changed_within_the_clocks_grain_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "s" / "x.tif"
    path.parent.mkdir()
    pixels = np.random.default_rng(0).integers(0, 255, size=(16, 16), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    embed_archive(path.parent, FakeEncoder(), tmp_path / "a")
    stamp = path.stat()
    Image.fromarray(255 - pixels).save(path)
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert path.stat().st_size == stamp.st_size
    assert embed_archive(path.parent, FakeEncoder(), tmp_path / "a").updated == 1


def test_the_same_content_is_one_row_however_it_is_called(scans: Path, tmp_path: Path) -> None:
    shutil.copytree(scans, scans / "zcopy")
    encoder = FakeEncoder()
    report = embed_archive(scans, encoder, tmp_path / "a", batch_size=4)
    assert (report.embedded, report.duplicate) == (10, 10)
    assert dict(report.duplicates)[str(scans / "zcopy" / "patient 0" / "bild-ä0")] == "patient 0/bild-ä0"
    assert adds_up(report)
    for _ in range(3):
        again = embed_archive(scans, encoder, tmp_path / "a")
        assert again.unchanged == 20
    scans.rename(tmp_path / "moved")
    moved = embed_archive(tmp_path / "moved", encoder, tmp_path / "a")
    assert (moved.duplicate, moved.embedded, moved.seen) == (20, 0, 20)
    with Archive.open(tmp_path / "a") as archive:
        assert len(archive) == 10


def test_an_original_changes_while_its_copy_stays(tmp_path: Path) -> None:
    draw(tmp_path / "s" / "a", 1)
    shutil.copy2(tmp_path / "s" / "a", tmp_path / "s" / "b")
    embed_archive(tmp_path / "s", FakeEncoder(), tmp_path / "x")
    draw(tmp_path / "s" / "a", 2)
    report = embed_archive(tmp_path / "s", FakeEncoder(), tmp_path / "x", workers=0, batch_size=1)
    assert (report.updated, report.embedded) == (1, 1)
    with Archive.open(tmp_path / "x") as archive:
        assert archive.ids == ["a", "b"]


def test_a_file_that_becomes_a_copy_of_another_gives_up_its_row(tmp_path: Path) -> None:
    draw(tmp_path / "s" / "a", 1)
    draw(tmp_path / "s" / "b", 2)
    embed_archive(tmp_path / "s", FakeEncoder(), tmp_path / "x")
    shutil.copyfile(tmp_path / "s" / "a", tmp_path / "s" / "b")
    report = embed_archive(tmp_path / "s", FakeEncoder(), tmp_path / "x")
    assert (report.duplicates, report.unchanged) == (((str(tmp_path / "s" / "b"), "a"),), 1)
    with Archive.open(tmp_path / "x") as archive:
        assert archive.ids == ["a"]
        assert archive.verify().ok


def test_two_files_that_swap_their_contents_are_right_after_two_runs(tmp_path: Path) -> None:
    one, two = draw(tmp_path / "s" / "a", 1), draw(tmp_path / "s" / "b", 2)
    embed_archive(tmp_path / "s", FakeEncoder(), tmp_path / "x")
    draw(one, 2)
    draw(two, 1)
    for _ in range(2):
        assert adds_up(embed_archive(tmp_path / "s", FakeEncoder(), tmp_path / "x"))
    with Archive.open(tmp_path / "x") as archive:
        np.testing.assert_array_equal(archive.vectors, FakeEncoder().encode([one, two]))
        assert archive.verify().ok
    assert embed_archive(tmp_path / "s", FakeEncoder(), tmp_path / "x").unchanged == 2


def test_bad_files_are_refused_by_name_and_the_good_ones_are_done(scans: Path, tmp_path: Path) -> None:
    bad = scans / "patient 0"
    (bad / "empty").touch()
    (bad / "text without a suffix").write_text("this is no image")
    whole = draw(tmp_path / "whole.png", 5).read_bytes()
    (bad / "truncated.png").write_bytes(whole[: len(whole) // 2])
    Image.new("L", (16, 16), 0).save(bad / "black.png")
    (bad / "hanging link").symlink_to(tmp_path / "nowhere")
    (bad / "way out").symlink_to(draw(tmp_path / "outside.png", 99))
    os.mkfifo(bad / "pipe")
    (bad / "notes.txt").write_text("passed over in silence")
    (bad / ".hidden").write_text("so is this")
    report = embed_archive(scans, FakeEncoder(), tmp_path / "a", batch_size=4)
    assert (report.embedded, report.seen, len(report.refused)) == (10, 17, 7)
    assert adds_up(report)
    reasons = {Path(path).name: reason for path, reason in report.refused}
    assert reasons["pipe"] == "is no regular file"
    assert reasons["way out"] == "is a link that leads out of its source folder"
    assert reasons["hanging link"] == "is a link that leads out of its source folder"
    assert all(reasons.values())
    with Archive.open(tmp_path / "a") as archive:
        assert {Path(item.path).name for item in archive.quarantine()} == set(reasons)
        draw(bad / "empty", 55)
        (bad / "truncated.png").write_bytes(whole)
        mended = embed_archive(scans, FakeEncoder(), tmp_path / "a")
        assert (mended.embedded, mended.unchanged, len(mended.refused)) == (1, 10, 5)
        assert mended.duplicates == ((str(bad / "truncated.png"), "patient 2/bild-ä5"),)
        assert len(archive.quarantine()) == 5


def test_one_id_with_two_contents_is_refused_and_the_first_kept(tmp_path: Path) -> None:
    draw(tmp_path / "one" / "x.png", 1)
    draw(tmp_path / "two" / "x.png", 2)
    report = embed_archive([tmp_path / "one", tmp_path / "two"], FakeEncoder(), tmp_path / "a")
    assert report.embedded == 1
    ((path, reason),) = report.refused
    assert path == str(tmp_path / "two" / "x.png")
    assert reason == (
        f"has the id 'x.png' of an image stored before, from '{tmp_path / 'one' / 'x.png'}', with other content: the "
        "first was kept; to have both, embed their common parent folder, or use a manifest"
    )
    with Archive.open(tmp_path / "a") as archive:
        assert archive.metadata[0]["path"] == str(tmp_path / "one" / "x.png")
        assert [item.stage for item in archive.quarantine()] == ["store"]


def write_dicom(path: Path, uid: str, seed: int, patient: str = "P-1", *, deflated: bool = False) -> Path:
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import (
        ComputedRadiographyImageStorage,
        DeflatedExplicitVRLittleEndian,
        ExplicitVRLittleEndian,
    )

    meta = FileMetaDataset()
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian if deflated else ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    meta.MediaStorageSOPInstanceUID = uid
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = ComputedRadiographyImageStorage, uid
    data.PatientID, data.PatientName, data.Modality = patient, "Canary^Name", "CR"
    data.Rows = data.Columns = 16
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.PixelData = np.random.default_rng(seed).integers(0, 4000, size=(16, 16), dtype=np.uint16).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    os.utime(path, (1_000_000_000 + seed, 1_000_000_000 + seed))
    return path


def test_dicom_rows_are_known_by_their_uid_whatever_the_file_is_called(tmp_path: Path) -> None:
    uid = "1.2.826.0.1.3680043.8.498.1"
    write_dicom(tmp_path / "s" / "IM0001", uid, 1)
    write_dicom(tmp_path / "s" / "again" / "IM0002", uid, 1)
    write_dicom(tmp_path / "s" / "again" / "IM0003", uid, 2)
    report = embed_archive(tmp_path / "s", FakeEncoder(), tmp_path / "a")
    assert (report.embedded, report.duplicate, len(report.refused)) == (1, 1, 1)
    assert report.refused[0][0].endswith("IM0003")
    with Archive.open(tmp_path / "a") as archive:
        assert archive.ids == [uid]
        assert archive.metadata[0]["patient"] == "P-1"
        assert "Canary" not in str(archive.metadata)
        assert archive.remove(patient="P-1") == (uid,)
        assert archive.quarantine() == []


def test_one_image_in_two_transfer_syntaxes_is_one_row(tmp_path: Path) -> None:
    uid = "1.2.826.0.1.3680043.8.498.3"
    one = write_dicom(tmp_path / "s" / "a", uid, 1)
    two = write_dicom(tmp_path / "s" / "b", uid, 1, deflated=True)
    assert one.read_bytes() != two.read_bytes()
    report = embed_archive(tmp_path / "s", FakeEncoder(), tmp_path / "x")
    assert (report.embedded, report.duplicates, report.refused) == (1, ((str(two), uid),), ())
    again = embed_archive(tmp_path / "s", FakeEncoder(), tmp_path / "x")
    assert (again.unchanged, again.duplicate) == (2, 0)


def test_a_changed_duplicate_does_not_take_over_the_first_ones_row(tmp_path: Path) -> None:
    uid = "1.2.826.0.1.3680043.8.498.2"
    write_dicom(tmp_path / "s" / "a", uid, 1)
    write_dicom(tmp_path / "s" / "b", uid, 1)
    embed_archive(tmp_path / "s", FakeEncoder(), tmp_path / "x")
    write_dicom(tmp_path / "s" / "b", uid, 3)
    report = embed_archive(tmp_path / "s", FakeEncoder(), tmp_path / "x")
    assert (report.updated, report.unchanged, len(report.refused)) == (0, 1, 1)
    write_dicom(tmp_path / "s" / "a", uid, 4)
    report = embed_archive(tmp_path / "s", FakeEncoder(), tmp_path / "x")
    assert (report.updated, len(report.refused)) == (1, 1)


def test_a_manifest_gives_metadata_and_patients(tmp_path: Path) -> None:
    for number in range(3):
        draw(tmp_path / "m" / "images" / f"{number}.png", number)
    (tmp_path / "m" / "cases.csv").write_text(
        "image,case,finding,age\nimages/0.png,007,nodule,61\nimages/1.png,008,,\nimages/gone.png,009,mass,1\n"
    )
    report = embed_archive(tmp_path / "m" / "cases.csv", FakeEncoder(), tmp_path / "a", group="case")
    assert (report.embedded, report.refused) == (2, ((str(tmp_path / "m" / "images" / "gone.png"), "is missing"),))
    with Archive.open(tmp_path / "a") as archive:
        table = archive.table().set_index("id")
        assert table.loc["images/0.png", ["case", "patient", "finding", "age"]].tolist() == [
            "007",
            "007",
            "nodule",
            "61",
        ]
        assert "finding" not in archive.metadata[1]
        assert [item.patient if hasattr(item, "patient") else None for item in archive.quarantine()] == [None]
        assert archive.remove(patient="007") == ("images/0.png",)
    beside = embed_archive(
        tmp_path / "m" / "images", FakeEncoder(), tmp_path / "b", manifest=tmp_path / "m" / "cases.csv", group="case"
    )
    assert beside.embedded == 3
    with Archive.open(tmp_path / "b") as archive:
        assert [row.get("patient") for row in archive.metadata] == ["007", "008", None]


def test_what_a_table_newly_says_is_noted_with_the_unchanged_row(scans: Path, tmp_path: Path) -> None:
    encoder = FakeEncoder()
    embed_archive(scans, encoder, tmp_path / "a")
    touched = scans / "patient 1" / "bild-ä1"
    touched.touch()
    files = sorted(path for path in scans.rglob("*") if path.is_file())
    cases = pd.DataFrame({"image": files, "case": [path.parent.name[-1] for path in files], "age": 50})
    cases["image"] = cases["image"].astype(str)
    encoder.loaded.clear()
    with Archive.open(tmp_path / "a") as archive:
        before = archive.snapshot()
        report = embed_archive(scans, encoder, archive, manifest=cases, group="case")
        assert (report.updated, report.unchanged, encoder.loaded) == (10, 0, [])
        assert adds_up(report)
        after = archive.snapshot()
        assert (after.ids, after.hashes) == (before.ids, before.hashes)
        assert after.vectors.tobytes() == before.vectors.tobytes()
        assert after.version == before.version + 1
        assert archive.metadata[0] == {**before.metadata[0], "case": "0", "patient": "0", "age": 50}
        assert archive.verify().ok
        for source in ({"manifest": cases, "group": "case"}, {}):
            again = embed_archive(scans, encoder, archive, **source)
            assert (again.updated, again.unchanged) == (0, 10)
        assert archive.version == after.version
        moved = cases.assign(case=["9", *cases["case"][1:]])
        assert embed_archive(None, encoder, archive, manifest=moved, group="case").updated == 1
        assert archive.remove(patient="9") == ("patient 0/bild-ä0",)
        assert len(archive.remove(patient="0")) == 3
        assert archive.verify().ok


def test_a_copy_says_nothing_about_the_row_of_its_original(tmp_path: Path) -> None:
    one = draw(tmp_path / "a", 1)
    shutil.copy2(one, tmp_path / "b")
    records = [Record(one, "a", {"patient": "p"}), Record(tmp_path / "b", "b", {"patient": "q"})]
    for counts in ((1, 1, 0), (0, 0, 2)):
        report = embed_archive(records, FakeEncoder(), tmp_path / "x")
        assert (report.embedded, report.duplicate, report.unchanged) == counts
    with Archive.open(tmp_path / "x") as archive:
        assert [row["patient"] for row in archive.metadata] == ["p"]


def test_a_table_that_names_a_file_twice_is_counted_by_rows(tmp_path: Path) -> None:
    draw(tmp_path / "x.png", 1)
    table = tmp_path / "t.csv"
    table.write_text("image,case\nx.png,1\nx.png,1\nx.png,2\ngone.png,3\ngone.png,3\n")
    report = embed_archive(table, FakeEncoder(), tmp_path / "a", group="case")
    assert (report.seen, report.embedded, report.duplicates) == (5, 1, ((str(tmp_path / "x.png"), "x.png"),))
    assert adds_up(report)
    refusal = "is listed before for patient '1' and here for '2': the first was kept"
    gone = (str(tmp_path / "gone.png"), "is missing")
    assert report.refused == (gone, (str(tmp_path / "x.png"), refusal), gone)
    with Archive.open(tmp_path / "a") as archive:
        assert [item.path for item in archive.quarantine()] == [gone[0]]


def test_a_patient_with_refused_files_only_can_be_forgotten(tmp_path: Path) -> None:
    header = write_dicom(tmp_path / "s" / "cut.dcm", "1.2.3.4", 1, "CANARY-2")
    data = bytearray(header.read_bytes())
    header.write_bytes(data[:-100])
    records = [
        Record(draw(tmp_path / "ok", 1), "ok", {"patient": "p"}),
        Record(tmp_path / "CANARY-1 gone", "gone", {"patient": "CANARY-1"}),
        Record(header, "cut", {}),
    ]
    report = embed_archive(records, FakeEncoder(), tmp_path / "a")
    assert (report.embedded, len(report.refused)) == (1, 2)
    with Archive.open(tmp_path / "a") as archive:
        assert archive.remove(patient="CANARY-1", purge=True) == ()
        assert archive.remove(patient="CANARY-2", purge=True) == ()
        assert (archive.quarantine(), archive.ids, archive.verify().ok) == ([], ["ok"], True)
        with pytest.raises(UnknownId, match="no row of patient 'CANARY-1'"):
            archive.remove(patient="CANARY-1")
        stored = b"".join(path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert b"CANARY" not in stored


def test_images_are_not_embedded_into_a_comparison_set(scans: Path, tmp_path: Path) -> None:
    encoder = FakeEncoder()
    message = "is a comparison set, not an archive: add labelled images to it with `radshot register`, or name another"
    with Archive.open(tmp_path / "cases", encoder=encoder, kind="comparison set") as cases:
        for target in (cases, tmp_path / "cases"):
            with pytest.raises(ArchiveError, match=message):
                embed_archive(scans, encoder, target)
        assert (len(cases), encoder.loaded) == (0, [])


def test_records_and_tables_in_memory(tmp_path: Path) -> None:
    draw(tmp_path / "x.png", 1)
    draw(tmp_path / "y.png", 2)
    records = [Record(tmp_path / "x.png", "../../etc/passwd", {"label": "a"}), Record(tmp_path / "y.png", "nul\0é", {})]
    report = embed_archive(records, FakeEncoder(), tmp_path / "a")
    assert report.embedded == 2
    frame = pd.DataFrame({"image": [str(tmp_path / "x.png")], "score": [1.5]})
    assert embed_archive(None, FakeEncoder(), tmp_path / "a", manifest=frame).updated == 1
    with Archive.open(tmp_path / "a") as archive:
        assert archive.ids == ["../../etc/passwd", "nul\0é"]
    bad = embed_archive([Record(tmp_path / "x.png", "x", {"score": float("nan")})], FakeEncoder(), tmp_path / "b")
    assert "'score' of 'x' is nan" in bad.refused[0][1]


def test_the_encoder_is_checked_before_anything_is_read(scans: Path, tmp_path: Path) -> None:
    embed_archive(scans, FakeEncoder(), tmp_path / "a")
    other = FakeEncoder()
    other.fingerprint = "f" * 64
    with pytest.raises(EncoderMismatch, match=r"holds vectors of quarters .* `radshot embed --reembed`"):
        embed_archive(tmp_path / "not even there", other, tmp_path / "a")
    with Archive.open(tmp_path / "a") as archive, pytest.raises(EncoderMismatch):
        embed_archive(scans, other, archive)
    assert other.loaded == []


def test_a_missing_source_makes_no_archive(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="There is no folder or file at"):
        embed_archive(tmp_path / "nowhere", FakeEncoder(), tmp_path / "a")
    with pytest.raises(SourceError, match="Give a folder, a table or a list"):
        embed_archive(None, FakeEncoder(), tmp_path / "a")
    assert not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="at least 1 image; got batch_size=0"):
        embed_archive(tmp_path, FakeEncoder(), tmp_path / "a", batch_size=0)
    with pytest.raises(ValueError, match="workers must be 0 or more; got -1"):
        embed_archive(tmp_path, FakeEncoder(), tmp_path / "a", workers=-1)


def test_the_archive_may_lie_inside_the_source(scans: Path) -> None:
    assert embed_archive(scans, FakeEncoder(), scans / "archive").seen == 10
    assert embed_archive(scans, FakeEncoder(), scans / "archive").seen == 10


@pytest.mark.parametrize("workers", [0, 2])
def test_an_interrupt_keeps_the_committed_batches_and_a_rerun_goes_on(
    scans: Path, tmp_path: Path, workers: int
) -> None:
    class Interrupted(FakeEncoder):
        batches = 0

        def encode_loaded(self, batch: Any) -> np.ndarray:
            self.batches += 1
            if self.batches == 3:
                raise KeyboardInterrupt
            return super().encode_loaded(batch)

    with pytest.raises(KeyboardInterrupt):
        embed_archive(scans, Interrupted(), tmp_path / "a", batch_size=3, workers=workers)
    with Archive.open(tmp_path / "a") as archive:
        assert len(archive) == 6
    rest = embed_archive(scans, FakeEncoder(), tmp_path / "a", batch_size=3, workers=workers)
    assert (rest.embedded, rest.unchanged) == (4, 6)
    embed_archive(scans, FakeEncoder(), tmp_path / "whole")
    with Archive.open(tmp_path / "a") as resumed, Archive.open(tmp_path / "whole") as whole:
        assert resumed.ids == whole.ids
        assert resumed.vectors.tobytes() == whole.vectors.tobytes()
        timeless = [
            [{k: v for k, v in r.items() if k != "registered_at"} for r in a.metadata] for a in (resumed, whole)
        ]
        assert timeless[0] == timeless[1]


def test_an_encoder_that_breaks_its_word_is_named(scans: Path, tmp_path: Path) -> None:
    class Wide(FakeEncoder):
        def encode_loaded(self, batch: Any) -> np.ndarray:
            return np.ones((len(batch), 5), dtype=np.float32)

    with pytest.raises(
        EncoderError, match=r"quarters made vectors of shape \(10, 5\) from 10 images; it promised \(10, 4\)"
    ):
        embed_archive(scans, Wide(), tmp_path / "a")

    class Nan(FakeEncoder):
        def encode_loaded(self, batch: Any) -> np.ndarray:
            rows = super().encode_loaded(batch)
            rows[2] = np.nan
            return rows

        def load(self, source: Any) -> np.ndarray:
            if Path(source).name == "bild-ä9":
                raise RuntimeError("a decoder's\nown words")
            if Path(source).name == "bild-ä8":
                raise ImageError(source, "has no pixels")
            return super().load(source)

    report = embed_archive(scans, Nan(), tmp_path / "b")
    assert adds_up(report)
    assert {Path(path).name: reason for path, reason in report.refused} == {
        "bild-ä6": "gives a vector that is not finite",
        "bild-ä8": "has no pixels",
        "bild-ä9": "cannot be read: RuntimeError: a decoder's own words",
    }


def test_progress_goes_to_the_caller_or_to_stderr(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports: list[IngestReport] = []
    embed_archive(scans, FakeEncoder(), tmp_path / "a", batch_size=4, progress=reports.append)
    assert [report.seen for report in reports] == [4, 8, 10]
    embed_archive(scans, FakeEncoder(), tmp_path / "b")
    silent = capsys.readouterr()
    assert (silent.out, silent.err) == ("", "")
    embed_archive(scans, FakeEncoder(), tmp_path / "c", progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert "10/10" in shown.err


def test_a_kill_at_any_time_loses_no_committed_batch(scans: Path, tmp_path: Path) -> None:
    class Slow(FakeEncoder):
        def encode_loaded(self, batch: Any) -> np.ndarray:
            time.sleep(0.01)
            return super().encode_loaded(batch)

    (scans / "bad").write_text("no image")
    embed_archive(scans, FakeEncoder(), tmp_path / "whole")
    with Archive.open(tmp_path / "whole") as archive:
        whole = archive.snapshot()
    rng = random.Random(3)
    fork = multiprocessing.get_context("fork")
    for trial in range(12):
        here, there = fork.Pipe(duplex=False)

        def work(said: Any = there, trial: int = trial) -> None:
            embed_archive(
                scans, Slow(), tmp_path / f"{trial}", batch_size=2, workers=2, progress=lambda r: said.send(r.embedded)
            )

        process = fork.Process(target=work)
        process.start()
        there.close()
        time.sleep(rng.uniform(0.02, 0.25))
        process.kill()
        process.join()
        said = [0]
        while here.poll():
            try:
                said.append(here.recv())
            except EOFError:
                break
        rest = embed_archive(scans, FakeEncoder(), tmp_path / f"{trial}", batch_size=2)
        assert adds_up(rest)
        assert said[-1] <= rest.unchanged <= said[-1] + 2
        assert rest.embedded + rest.unchanged == 10
        with Archive.open(tmp_path / f"{trial}") as archive:
            assert (archive.ids, archive.snapshot().hashes) == (whole.ids, whole.hashes)
            assert archive.vectors.tobytes() == whole.vectors.tobytes()
            assert archive.verify().ok


def test_a_patient_is_erased_with_the_names_of_the_files(tmp_path: Path) -> None:
    for number in range(6):
        draw(tmp_path / "s" / f"CANARY-{number % 2}" / f"{number}", number)
    (tmp_path / "s" / "CANARY-1" / "bad").write_text("no image")
    records = [
        Record(path, path.name, {"patient": path.parent.name})
        for path in sorted((tmp_path / "s").rglob("*"))
        if path.is_file()
    ]
    embed_archive(records, FakeEncoder(), tmp_path / "a", batch_size=2)
    with Archive.open(tmp_path / "a") as archive:
        gone = archive.vectors[archive.ids.index("1")].tobytes()
        archive.remove(patient="CANARY-1", purge=True)
        assert archive.ids == ["0", "2", "4"]
        assert archive.quarantine() == []
        everything = b"".join(path.read_bytes() for path in (tmp_path / "a").rglob("*") if path.is_file())
    assert b"CANARY-0" in everything
    assert b"CANARY-1" not in everything
    assert gone not in everything


@pytest.mark.shared_data
def test_real_dicom_files_are_embedded_or_refused_with_a_reason(shared_data: Path, tmp_path: Path) -> None:
    report = embed_archive(shared_data / "dicom_samples", FakeEncoder(), tmp_path / "a", batch_size=8)
    assert adds_up(report)
    assert report.embedded >= 20
    assert all(reason and "\n" not in reason for _, reason in report.refused)
    with Archive.open(tmp_path / "a") as archive:
        assert len(archive) == report.embedded
        assert sum(identity.startswith("1.") for identity in archive.ids) >= 20
        assert archive.verify().ok
