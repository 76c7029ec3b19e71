"""Archives of volumes: what is kept, what is refused and why, and that nothing is lost when a run is cut off."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from embeddings import Archive, ArchiveError, embed_archive, embed_volumes, encode_volume, load_encoder
from embeddings.encoders import BaseEncoder
from embeddings.volume_pictures import check_way, load_cube, loading_of
from embeddings.volume_sources import find_volumes
from embeddings.windows import WINDOWS

DEPTH, SIDE = 6, 16


def body(seed: int = 0) -> NDArray[np.int16]:
    """Hounsfield units (z, y, x) with something to see in every window."""
    return np.random.default_rng(seed).integers(-900, 900, (DEPTH, SIDE, SIDE)).astype(np.int16)


def write_series(folder: Path, series: str = "1.2.3", *, seed: int = 0, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number, values in enumerate(body(seed)):
        data = Dataset()
        meta = data.file_meta = FileMetaDataset()
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = ExplicitVRLittleEndian, CTImageStorage
        meta.MediaStorageSOPInstanceUID = f"{series}.{number}"
        data.SOPClassUID, data.SOPInstanceUID = CTImageStorage, meta.MediaStorageSOPInstanceUID
        data.SeriesInstanceUID, data.StudyInstanceUID, data.PatientID = series, "1.2", "p1"
        data.Modality, data.InstanceNumber = "CT", number + 1
        data.ImagePositionPatient, data.ImageOrientationPatient = [0, 0, 2.0 * number], [1, 0, 0, 0, 1, 0]
        data.PixelSpacing, data.RescaleSlope, data.RescaleIntercept = [1.0, 1.0], 1, 0
        data.Rows = data.Columns = SIDE
        data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 1
        data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
        data.PixelData = values.tobytes()
        for key, value in more.items():
            setattr(data, key, value)
        data.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    return folder


def write_nifti(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(body(seed).transpose(2, 1, 0), np.diag([-1.0, -1.0, 2.0, 1.0])), path)
    return path


def rows_of(archive: Path) -> dict[str, dict[str, Any]]:
    with Archive.open(archive) as held:
        return dict(zip(held.ids, map(dict, held.metadata), strict=True))


def test_rows_say_where_they_come_from(tmp_path: Path) -> None:
    source = tmp_path / "s"
    write_series(source / "ct")
    write_nifti(source / "n.nii.gz", seed=1)
    encoder = load_encoder("pixels-8?window=bone")
    embed_volumes(source, encoder, tmp_path / "slices", way="slices", workers=0)
    rows = rows_of(tmp_path / "slices")
    assert sorted(rows) == sorted([f"1.2.3.{n}" for n in range(DEPTH)] + [f"n.nii.gz#{n}" for n in range(DEPTH)])
    third = rows["1.2.3.2"]
    assert third["path"] == str((source / "ct" / "2.dcm").absolute()) and third["slice"] == 2
    assert (third["series_uid"], third["study_uid"], third["patient"]) == ("1.2.3", "1.2", "p1")
    for row in (third, rows["n.nii.gz#2"]):
        assert (row["slices"], row["spacing"], row["way"]) == (DEPTH, [2.0, 1.0, 1.0], "slices")
        assert row["window"] == list(WINDOWS["bone"])
    assert rows["n.nii.gz#2"]["path"] == str((source / "n.nii.gz").absolute())
    assert "patient" not in rows["n.nii.gz#2"]


@pytest.mark.parametrize("way", ["planes", "mean", "slices"])
def test_a_window_is_for_computed_tomography(tmp_path: Path, way: Any) -> None:
    ct = write_series(tmp_path / "ct")
    mr = write_series(tmp_path / "mr", Modality="MR")
    plain, bone = load_encoder("pixels-8"), load_encoder("pixels-8?window=bone")
    assert not np.array_equal(encode_volume(plain, ct, way=way), encode_volume(bone, ct, way=way))
    np.testing.assert_array_equal(encode_volume(plain, mr, way=way), encode_volume(bone, mr, way=way))
    embed_volumes(mr, bone, tmp_path / "a", way=way, workers=0)
    assert all("window" not in row for row in rows_of(tmp_path / "a").values())


def test_a_cube_keeps_to_the_window_likewise(tmp_path: Path) -> None:
    shown = []
    for modality in ("CT", "MR"):
        (found,), _ = find_volumes(write_series(tmp_path / modality, Modality=modality))
        assert found.series is not None
        shown += [load_cube(found.series, (4, 8, 8), window) for window in (None, WINDOWS["bone"])]
    assert not np.array_equal(shown[0], shown[1])
    np.testing.assert_array_equal(shown[2], shown[3])


class _OwnLoader(BaseEncoder):
    """An encoder that preprocesses in its own way, as those of transformers do."""

    name, dim, fingerprint = "own", 3, "own"

    def __init__(self) -> None:
        self.loader = self.seen

    def seen(self, source: Any) -> NDArray[np.float32]:
        from embeddings import read_image

        grey = read_image(source)
        return np.array([grey.mean(), grey.std(), grey.shape[0]], dtype=np.float32)

    def encode_loaded(self, batch: Any) -> NDArray[np.float32]:
        return np.asarray(batch, dtype=np.float32)


def test_encoders_with_a_loader_of_their_own_take_volumes_too(tmp_path: Path) -> None:
    source = write_series(tmp_path / "ct")
    encoder = _OwnLoader()
    report = embed_volumes(source, encoder, tmp_path / "a", way="slices", workers=1)
    assert report.embedded == 1
    with Archive.open(tmp_path / "a") as archive:
        expected = encoder.encode([source / f"{number}.dcm" for number in range(DEPTH)])
        np.testing.assert_allclose(archive.vectors, expected, atol=2 / 255)  # of 8-bit grey levels
    assert encode_volume(encoder, source, way="planes").shape == (3, 3)
    check_way(encoder, "mean")
    assert loading_of(encoder, "mean")[1][0].window is None


def test_a_slice_that_cannot_be_decoded_is_named_and_mended(tmp_path: Path) -> None:
    source = write_series(tmp_path / "ct")
    whole = (source / "3.dcm").read_bytes()
    (source / "3.dcm").write_bytes(whole[:-40])
    encoder = load_encoder("pixels-8")
    report = embed_volumes(source, encoder, tmp_path / "a", way="mean", workers=0)
    ((shown, reason),) = report.refused
    assert shown.endswith("ct (series 1.2.3)")
    assert reason.startswith("in its slice 3.dcm: its pixel data are truncated")
    with Archive.open(tmp_path / "a") as archive:
        assert len(archive.quarantine()) == 1
    (source / "3.dcm").write_bytes(whole)
    assert embed_volumes(source, encoder, tmp_path / "a", way="mean", workers=0).embedded == 1
    with Archive.open(tmp_path / "a") as archive:
        assert len(archive) == 1 and not archive.quarantine()


def test_a_file_that_was_refused_is_lifted_when_it_joins_its_series(tmp_path: Path) -> None:
    source = write_series(tmp_path / "ct")
    whole = (source / "3.dcm").read_bytes()
    (source / "3.dcm").write_bytes(b"cut off in transfer")
    encoder = load_encoder("pixels-8")
    report = embed_volumes(source, encoder, tmp_path / "a", way="planes", workers=0)
    assert (report.embedded, report.quarantined) == (1, 1)
    assert rows_of(tmp_path / "a")["1.2.3#axial"]["warnings"] == [
        "Slices are missing: steps of up to 4.0 mm where 2.0 mm are usual."
    ]
    (source / "3.dcm").write_bytes(whole)
    assert embed_volumes(source, encoder, tmp_path / "a", way="planes", workers=0).updated == 1
    with Archive.open(tmp_path / "a") as archive:
        assert not archive.quarantine() and "warnings" not in archive.metadata[0]


def test_ids_of_other_rows_are_not_taken(tmp_path: Path) -> None:
    source = write_series(tmp_path / "ct")
    encoder = load_encoder("pixels-8")
    embed_archive([source / "2.dcm"], encoder, tmp_path / "a", workers=0)
    for _ in range(2):  # nothing of the series is stored, so the next run says the same
        report = embed_volumes(source, encoder, tmp_path / "a", way="slices", workers=0)
        assert (report.embedded, report.unchanged, report.quarantined) == (0, 0, 1)
        assert report.refused[0][1] == "has the id '1.2.3.2' of a row stored before, with other content"
        assert list(rows_of(tmp_path / "a")) == ["1.2.3.2"]


def test_ways_live_side_by_side(tmp_path: Path) -> None:
    source = write_series(tmp_path / "ct")
    encoder = load_encoder("pixels-8")
    for way in ("planes", "mean", "slices"):
        assert embed_volumes(source, encoder, tmp_path / "a", way=way, workers=0).embedded == 1  # type: ignore[arg-type]
    assert len(rows_of(tmp_path / "a")) == 3 + 1 + DEPTH


def test_a_copy_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_nifti(tmp_path / "s" / "a.nii")
    write_nifti(tmp_path / "s" / "b.nii")
    encoder = load_encoder("pixels-8")
    first = embed_volumes(tmp_path / "s", encoder, tmp_path / "a", way="mean", workers=0)
    assert (first.embedded, first.duplicate, first.seen, first.total) == (1, 1, 2, 2)
    assert first.duplicates[0][1] == "a.nii"
    monkeypatch.setattr("embeddings.volume_pictures.read_nifti", None)
    again = embed_volumes(tmp_path / "s", encoder, tmp_path / "a", way="mean", workers=0)
    assert (again.unchanged, again.duplicate, again.seen, again.total) == (1, 1, 2, 2)


def test_series_without_uids_are_called_after_their_folders(tmp_path: Path) -> None:
    for name in ("p1/CT", "p2/CT"):
        write_series(tmp_path / "s" / name, seed=len(name) + int(name[1]), SeriesInstanceUID=None)
    found, _ = find_volumes(tmp_path / "s")
    assert [volume.id for volume in found] == ["p1/CT", "p2/CT"]
    assert find_volumes(tmp_path / "s" / "p1" / "CT")[0][0].id == "CT"


def test_an_archive_inside_its_source_is_left_out(tmp_path: Path) -> None:
    source = write_series(tmp_path / "s" / "ct").parent
    encoder = load_encoder("pixels-8")
    for _ in range(2):
        report = embed_volumes(source, encoder, source / "archive", way="mean", workers=0)
        assert report.total == 1


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    for number in range(6):
        write_nifti(tmp_path / "s" / f"{number}.nii", seed=number)
    code = (
        "import os, signal, sys\n"
        "from embeddings import embed_volumes, load_encoder\n"
        "def kill(report):\n"
        "    if report.embedded == 3: os.kill(os.getpid(), signal.SIGKILL)\n"
        "embed_volumes(sys.argv[1], load_encoder('pixels-8'), sys.argv[2], way='planes', workers=0, progress=kill)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "s"), str(tmp_path / "a")]
    root = Path(__file__).resolve().parent.parent
    assert subprocess.run(command, cwd=root, check=False, timeout=120).returncode == -9
    encoder = load_encoder("pixels-8")
    report = embed_volumes(tmp_path / "s", encoder, tmp_path / "a", way="planes", workers=0)
    assert (report.unchanged, report.embedded, report.seen) == (3, 3, 6)
    embed_volumes(tmp_path / "s", encoder, tmp_path / "b", way="planes", workers=2)
    with Archive.open(tmp_path / "a") as one, Archive.open(tmp_path / "b") as other:
        assert one.verify().ok and one.ids == other.ids and len(one) == 18
        np.testing.assert_array_equal(one.vectors, other.vectors)


def test_reading_volumes_leaves_torch_alone() -> None:
    code = (
        "import sys, embeddings.volume_pictures, embeddings.volume_ingest, embeddings.nifti\n"
        "sys.exit('torch' in sys.modules)"
    )
    root = Path(__file__).resolve().parent.parent
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True, timeout=60)


def test_two_volumes_of_one_name_are_no_update(tmp_path: Path) -> None:
    encoder = load_encoder("pixels-8")
    for number in (1, 2):
        folder = tmp_path / f"sub-0{number}" / "anat"
        folder.mkdir(parents=True)
        voxels = np.random.default_rng(number).integers(0, 1000, (8, 8, 8)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), folder / "T1w.nii.gz")
    first = embed_volumes(tmp_path / "sub-01", encoder, tmp_path / "a", way="mean", workers=0)
    second = embed_volumes(tmp_path / "sub-02", encoder, tmp_path / "a", way="mean", workers=0)
    assert (first.embedded, second.embedded, second.updated, second.quarantined) == (1, 0, 0, 1)
    assert "to have both, embed their common parent folder" in second.refused[0][1]
    both = embed_volumes([tmp_path / "sub-01", tmp_path / "sub-02"], encoder, tmp_path / "b", way="mean", workers=0)
    assert (both.embedded, both.quarantined) == (1, 1)


def test_a_renamed_volume_and_a_new_one_of_its_name_are_two(tmp_path: Path) -> None:
    encoder = load_encoder("pixels-8")
    (tmp_path / "s").mkdir()

    def write(name: str, seed: int) -> None:
        voxels = np.random.default_rng(seed).integers(0, 1000, (8, 8, 8)).astype(np.int16)
        nibabel.save(nibabel.Nifti1Image(voxels, np.eye(4)), tmp_path / "s" / name)

    write("a.nii.gz", 1)
    embed_volumes(tmp_path / "s", encoder, tmp_path / "x", way="mean", workers=0)
    (tmp_path / "s" / "a.nii.gz").rename(tmp_path / "s" / "b.nii.gz")
    write("a.nii.gz", 2)
    report = embed_volumes(tmp_path / "s", encoder, tmp_path / "x", way="mean", workers=0)
    assert (report.updated, report.embedded, report.duplicate) == (1, 1, 0)


def test_a_de_identified_archive_takes_no_volumes(tmp_path: Path) -> None:
    encoder = load_encoder("pixels-8")
    (tmp_path / "s").mkdir()
    with Archive.open(tmp_path / "x", encoder=encoder) as archive:
        archive.set_note("deidentification", "key")
    nibabel.save(
        nibabel.Nifti1Image(np.arange(512, dtype=np.int16).reshape(8, 8, 8), np.eye(4)), tmp_path / "s" / "a.nii"
    )
    with pytest.raises(ArchiveError, match="is de-identified, and cannot be added to without a key"):
        embed_volumes(tmp_path / "s", encoder, tmp_path / "x", way="mean", workers=0)
