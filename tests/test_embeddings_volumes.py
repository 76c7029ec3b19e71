"""Volumes: slices in their order in space, planes that stand upright, and rows that follow what is on the disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from embeddings import Archive, EncoderError, ImageError, Preprocess, UnknownEncoder, load_encoder
from embeddings.dicom import read_modality_values
from embeddings.images import read_reduced
from embeddings.nifti import read_nifti
from embeddings.series import group_series, order_series, slice_header, slices_of
from embeddings.volume_ingest import embed_volumes
from embeddings.volume_pictures import encode_volume
from embeddings.volume_sources import find_volumes
from embeddings.volumes import LEAST_SLICES, Volume, cube, mid_planes, read_series
from embeddings.windows import WINDOWS, parse_window, with_window

DEPTH, HEIGHT, WIDTH = 20, 24, 28
SPACING = (2.0, 1.0, 1.0)


def head() -> NDArray[np.float32]:
    """A volume (z, y, x) in Hounsfield units, different towards the head, the back and the left."""
    z, y, x = np.meshgrid(*(np.linspace(0, 1, side) for side in (DEPTH, HEIGHT, WIDTH)), indexing="ij")
    values = -900 + 400 * z + 300 * y + 200 * x
    values[DEPTH // 2 :, : HEIGHT // 3, : WIDTH // 4] = 900.0  # bone towards head, front and right
    return np.rint(values).astype(np.float32)


def write_slice(
    path: Path,
    values: NDArray[np.float32],
    number: int,
    *,
    series: str = "1.2.3",
    position: Any = (0, 0, 0),
    **more: Any,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"{series}.{number + 1}"
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.StudyInstanceUID, data.PatientID, data.Modality = series, "1.2", "p1", "CT"
    data.InstanceNumber = number + 1
    data.ImagePositionPatient = [float(value) for value in position]
    data.ImageOrientationPatient = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    data.PixelSpacing, data.SliceThickness = [SPACING[1], SPACING[2]], SPACING[0]
    data.RescaleSlope, data.RescaleIntercept = 1, -1024
    data.Rows, data.Columns = values.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelData = (values + 1024).astype(np.uint16).tobytes()
    for key, value in more.items():
        setattr(data, key, value)
    data.save_as(path, enforce_file_format=True)
    return path


def write_series(folder: Path, *, series: str = "1.2.3", order: Any = None, **more: Any) -> Path:
    """Write the head as axial slices, their file names in another order than they lie in."""
    values = head()
    for number in range(DEPTH) if order is None else order:
        name = f"{(number * 7) % DEPTH:03d}"
        write_slice(folder / name, values[number], number, series=series, position=(0, 0, 2.0 * number), **more)
    return folder


def ordered(folder: Path) -> Any:
    slices = [one for path in sorted(folder.iterdir()) for one in slices_of(slice_header(path))]
    (members,) = group_series(slices)
    return order_series(members)


def test_slices_are_ordered_by_where_they_lie(tmp_path: Path) -> None:
    series = ordered(write_series(tmp_path / "s"))
    assert [one.uid for one in series.slices] == [f"1.2.3.{number + 1}" for number in range(DEPTH)]
    assert series.spacing == SPACING and not series.warnings
    np.testing.assert_array_equal(read_series(series).voxels, head())


def test_slices_numbered_from_the_head_give_the_same_volume(tmp_path: Path) -> None:
    values = head()
    for number in range(DEPTH):
        write_slice(tmp_path / "s" / f"{number}", values[DEPTH - 1 - number], number, position=(0, 0, -2.0 * number))
    np.testing.assert_array_equal(read_series(ordered(tmp_path / "s")).voxels, values)


def test_sagittal_and_coronal_acquisitions_are_turned_upright(tmp_path: Path) -> None:
    values = head()
    for number in range(WIDTH):  # sagittal: rows run down, columns run back
        write_slice(
            tmp_path / "sagittal" / f"{number}",
            values[::-1, :, number],
            number,
            position=(number, 0, 0),
            ImageOrientationPatient=[0, 1, 0, 0, 0, -1],
            PixelSpacing=[2.0, 1.0],
            SliceThickness=1.0,
        )
    for number in range(HEIGHT):  # coronal: rows run down, columns run left
        write_slice(
            tmp_path / "coronal" / f"{number}",
            values[::-1, number, :],
            number,
            position=(0, number, 0),
            ImageOrientationPatient=[1, 0, 0, 0, 0, -1],
            PixelSpacing=[2.0, 1.0],
            SliceThickness=1.0,
        )
    for name in ("sagittal", "coronal"):
        volume = read_series(ordered(tmp_path / name))
        np.testing.assert_array_equal(volume.voxels, values)
        assert volume.spacing == SPACING


def test_what_does_not_belong_is_left_out_and_said(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", order=[number for number in range(DEPTH) if number not in (5, 6)])
    write_slice(folder / "scout", head()[:, 3, :], 90, ImageOrientationPatient=[1, 0, 0, 0, 0, -1])
    write_slice(folder / "twin", head()[2], 91, position=(0, 0, 4.0))
    series = ordered(folder)
    assert len(series.slices) == DEPTH - 2
    assert series.warnings == (
        "1 slice was of another direction or size and left out.",
        "1 slice lies where another one lies: the first was kept.",
        "Slices are missing: steps of up to 6.0 mm where 2.0 mm are usual.",
    )


def test_slices_without_positions_go_by_their_numbers(tmp_path: Path) -> None:
    folder = write_series(tmp_path / "s", ImagePositionPatient=None)
    series = ordered(folder)
    assert [one.geometry["InstanceNumber"] for one in series.slices] == [float(n + 1) for n in range(DEPTH)]
    assert "do not say where they lie" in series.warnings[0]


@pytest.mark.parametrize("axes", ["RAS", "LPS", "PIR", "SAL", "ILA"])
def test_nifti_of_any_orientation_is_the_same_volume(tmp_path: Path, axes: str) -> None:
    ras = np.transpose(head()[:, ::-1, ::-1], (2, 1, 0))  # x right, y front, z up
    image = nibabel.Nifti1Image(ras.astype(np.int16), np.diag([1.0, 1.0, 2.0, 1.0]))
    turn = nibabel.orientations.ornt_transform(
        nibabel.orientations.io_orientation(image.affine), nibabel.orientations.axcodes2ornt(axes)
    )
    for name in ("a.nii", "a.nii.gz"):
        nibabel.save(image.as_reoriented(turn), tmp_path / name)
        volume = read_nifti(tmp_path / name)
        np.testing.assert_array_equal(volume.voxels, head())
        assert volume.spacing == pytest.approx(SPACING)


def test_planes_stand_as_radiologists_look_at_them() -> None:
    volume = Volume(head(), SPACING)
    axial, coronal, sagittal = mid_planes(volume, (0.0, 4000.0))
    assert axial.shape == (HEIGHT, WIDTH)
    assert coronal.shape == (2 * DEPTH, WIDTH) and sagittal.shape == (2 * DEPTH, HEIGHT)  # square pixels
    values = head()[:, HEIGHT // 2, :]
    assert coronal[0, -1] > coronal[-1, 0]  # head up, patient's left on the right
    np.testing.assert_allclose(coronal[0, [0, -1]], (values[-1, [0, -1]] + 2000) / 4000, atol=0.01)
    assert sagittal[0, -1] > sagittal[0, 0] and sagittal[0, 0] > sagittal[-1, 0]  # front on the left
    assert axial[-1, 0] > axial[HEIGHT // 2, 0] and axial[0, -1] < axial[-1, -1]


def test_a_window_decides_what_is_seen() -> None:
    volume = Volume(head(), SPACING, window=(0.0, 100.0))
    lung = mid_planes(volume, WINDOWS["lung"])[0]
    assert lung.std() > 2 * mid_planes(Volume(head(), SPACING, (3000.0, 10.0)))[0].std()
    np.testing.assert_array_equal(mid_planes(volume)[0], mid_planes(Volume(head(), SPACING), (0.0, 100.0))[0])
    inverted = mid_planes(Volume(head(), SPACING, (0.0, 4000.0), inverted=True))[0]
    np.testing.assert_allclose(inverted, 1 - mid_planes(Volume(head(), SPACING, (0.0, 4000.0)))[0], atol=1e-6)


def test_a_cube_holds_the_whole_volume() -> None:
    shown = cube(Volume(head(), SPACING), (10, 12, 14), (0.0, 4000.0))
    assert shown.shape == (10, 12, 14) and shown.dtype == np.float32
    expected = np.clip((head() + 2000) / 4000, 0, 1).reshape(10, 2, 12, 2, 14, 2).mean(axis=(1, 3, 5))
    assert np.abs(shown - expected).mean() < 0.02


def test_bad_volumes_are_one_sentence(tmp_path: Path) -> None:
    series = ordered(write_series(tmp_path / "few", order=range(LEAST_SLICES - 1)))
    with pytest.raises(ImageError, match="belongs to a series of 3 slices; a volume has at least 4"):
        read_series(series)
    (tmp_path / "bad.nii").write_bytes(b"x" * 400)
    with pytest.raises(ImageError, match="is no NIfTI volume that can be read"):
        read_nifti(tmp_path / "bad.nii")
    with pytest.raises(ImageError, match="there is no such file"):
        read_nifti(tmp_path / "none.nii")
    nibabel.save(nibabel.Nifti1Image(np.zeros((9, 9, 2), np.int16), np.eye(4)), tmp_path / "flat.nii")
    with pytest.raises(ImageError, match=r"has the shape \(9, 9, 2\); a volume has at least 4 voxels"):
        read_nifti(tmp_path / "flat.nii")
    header = nibabel.Nifti1Header()
    header.set_data_shape((4000, 4000, 4000))
    (tmp_path / "bomb.nii").write_bytes(header.binaryblock + bytes(200))
    with pytest.raises(ImageError, match=r"4000 x 4000 x 4000 voxels in a volume, more than the 268,435,456 allowed"):
        read_nifti(tmp_path / "bomb.nii")
    nibabel.save(nibabel.Nifti1Image(head().astype(np.int16), np.eye(4)), tmp_path / "cut.nii")
    (tmp_path / "cut.nii").write_bytes((tmp_path / "cut.nii").read_bytes()[:2000])
    with pytest.raises(ImageError, match="its voxels are truncated or damaged"):
        read_nifti(tmp_path / "cut.nii")


def test_modality_values_are_hounsfield_units(tmp_path: Path) -> None:
    path = write_slice(tmp_path / "a", head()[3], 0, WindowCenter=40, WindowWidth=80)
    values, window, inverted = read_modality_values(path)
    np.testing.assert_array_equal(values, head()[3])
    assert (window, inverted) == ((40.0, 80.0), False)


# -- windows ------------------------------------------------------------------------------------------------------


def test_windows_have_names() -> None:
    assert parse_window(" Lung ") == (-600.0, 1500.0)
    assert parse_window("-30,1e2") == (-30.0, 100.0)
    with pytest.raises(UnknownEncoder, match=r"A window is one of lung, .*got 'lungs'. Did you mean 'lung'\?"):
        parse_window("lungs")
    for wrong in ("1,0", "nan,3", "1,-2"):
        with pytest.raises(UnknownEncoder, match="needs a finite centre and a width above 0"):
            parse_window(wrong)
    with pytest.raises(ValueError, match="window must be"):
        Preprocess(window=(1.0, 0.0))


def test_an_encoder_with_a_window_is_another_encoder(tmp_path: Path) -> None:
    plain, lung = load_encoder("pixels-8"), load_encoder("pixels-8?window=lung")
    assert lung.fingerprint != plain.fingerprint
    assert (lung.name, lung.spec) == ("pixels-8?window=lung", "pixels-8?window=lung")  # type: ignore[attr-defined]
    assert load_encoder("pixels-8?window=lung").fingerprint == lung.fingerprint
    assert load_encoder("pixels-8?window=-600,1500").fingerprint == lung.fingerprint
    ct = write_slice(tmp_path / "ct", head()[3], 0)
    mr = write_slice(tmp_path / "mr", head()[3], 0, Modality="MR")
    assert not np.array_equal(plain.load(ct), lung.load(ct))
    np.testing.assert_array_equal(plain.load(mr), lung.load(mr))
    shown, _ = read_reduced(ct, None, hounsfield=WINDOWS["lung"])
    np.testing.assert_allclose(shown, np.clip((head()[3] + 600 + 750) / 1500, 0, 1), atol=1e-6)
    with pytest.raises(EncoderError, match="reads no pixels, so no window applies"):
        with_window(load_encoder({"a": [1.0]}), "lung")


# -- archives of volumes --------------------------------------------------------------------------------------------


@pytest.fixture
def study(tmp_path: Path) -> Path:
    source = tmp_path / "study"
    write_series(source / "one")
    for number in range(DEPTH):
        write_slice(
            source / "one" / f"b{number:03d}", head()[number][::-1], number, series="1.2.4", position=(0, 0, number)
        )
    nibabel.save(nibabel.Nifti1Image(head().astype(np.int16), np.diag([1, 1, 2, 1])), source / "n.nii.gz")
    (source / "note.bin").write_bytes(b"no image at all")
    return source


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(("way", "rows"), [("planes", 9), ("mean", 3), ("slices", 2 * DEPTH + WIDTH)])
def test_a_study_becomes_rows_and_a_rerun_does_nothing(
    study: Path, tmp_path: Path, way: Any, rows: int, workers: int
) -> None:
    encoder = load_encoder("pixels-8")
    report = embed_volumes(study, encoder, tmp_path / "a", way=way, workers=workers)
    assert (report.seen, report.embedded, report.quarantined, report.total) == (4, 3, 1, 4)
    assert report.refused[0][1] == "is neither a DICOM slice nor a NIfTI volume"
    with Archive.open(tmp_path / "a") as archive:
        assert len(archive) == rows
        row = next(row for name, row in zip(archive.ids, archive.metadata, strict=True) if name.startswith("1.2.3"))
        assert (row["patient"], row["modality"], row["way"], row["slices"]) == ("p1", "CT", way, DEPTH)
        assert row["spacing"] == list(SPACING)
        before = archive.snapshot()
        assert len(archive.quarantine()) == 1
    again = embed_volumes(study, encoder, tmp_path / "a", way=way, workers=workers)
    assert (again.unchanged, again.quarantined, again.seen) == (3, 1, 4)
    (study / "one" / "000").unlink()
    changed = embed_volumes(study, encoder, tmp_path / "a", way=way, workers=workers)
    assert (changed.unchanged, changed.updated) == (2, 1)
    with Archive.open(tmp_path / "a") as archive:
        assert len(archive) == rows - (way == "slices")
        assert archive.version > before.version
        assert archive.verify().ok


def test_names_of_rows_say_what_they_are(study: Path, tmp_path: Path) -> None:
    embed_volumes(study, load_encoder("pixels-8"), tmp_path / "a", way="planes", workers=0)
    with Archive.open(tmp_path / "a") as archive:
        assert archive.ids[:3] == ["1.2.3#axial", "1.2.3#coronal", "1.2.3#sagittal"]
        assert archive.ids[-3:] == ["n.nii.gz#axial", "n.nii.gz#coronal", "n.nii.gz#sagittal"]
        assert archive.metadata[1]["plane"] == "coronal"


def test_the_mean_is_that_of_the_slices_vectors(study: Path, tmp_path: Path) -> None:
    encoder = load_encoder("pixels-8")
    embed_volumes(study / "one", encoder, tmp_path / "a", way="mean", workers=0)
    files = [path for path in (study / "one").iterdir() if not path.name.startswith("b")]
    expected = encoder.encode(files).mean(axis=0, dtype=np.float64)
    with Archive.open(tmp_path / "a") as archive:
        np.testing.assert_allclose(archive.vectors[archive.ids.index("1.2.3")], expected, atol=1e-6)


def test_the_same_volume_elsewhere_is_a_duplicate(study: Path, tmp_path: Path) -> None:
    shutil.copy(study / "n.nii.gz", study / "again.nii.gz")
    report = embed_volumes(study, load_encoder("pixels-8"), tmp_path / "a", way="mean", workers=0)
    assert (report.embedded, report.duplicate, report.quarantined, report.seen) == (3, 1, 1, 5)


def test_a_volume_is_asked_about_as_it_was_embedded(study: Path, tmp_path: Path) -> None:
    encoder = load_encoder("pixels-8")
    for way in ("planes", "mean"):
        embed_volumes(study / "n.nii.gz", encoder, tmp_path / way, way=way, workers=0)
        with Archive.open(tmp_path / way) as archive:
            np.testing.assert_allclose(encode_volume(encoder, study / "n.nii.gz", way=way), archive.vectors, atol=1e-6)
    with pytest.raises(ImageError, match="holds 2 volumes: give a NIfTI file or a folder of one series"):
        encode_volume(encoder, study / "one", way="mean")
    with pytest.raises(ImageError, match="holds 0 volumes: is neither"):
        encode_volume(encoder, study / "note.bin", way="mean")


def test_a_3d_network_takes_whole_volumes(study: Path, tmp_path: Path) -> None:
    encoder = load_encoder("3d:resnet10@1")
    assert load_encoder("3d:resnet10@1").fingerprint == encoder.fingerprint != load_encoder("3d:resnet10").fingerprint
    report = embed_volumes(study, encoder, tmp_path / "a", way="3d", workers=0)
    assert report.embedded == 3
    with Archive.open(tmp_path / "a") as archive:
        assert archive.vectors.shape == (3, encoder.dim)
        nifti = archive.vectors[archive.ids.index("n.nii.gz")]
    np.testing.assert_allclose(encoder.encode([study / "n.nii.gz"])[0], nifti, atol=1e-4)
    with pytest.raises(UnknownEncoder, match=r"A 3D network is one of resnet10, .*; got 'vgg'"):
        load_encoder("3d:vgg")


def test_ways_and_encoders_that_do_not_go_together(tmp_path: Path, study: Path) -> None:
    with pytest.raises(EncoderError, match="embedded as one of slices, planes, mean, 3d; got 'cubes'"):
        embed_volumes(study, load_encoder("pixels-8"), tmp_path / "a", way="cubes")  # type: ignore[arg-type]
    with pytest.raises(EncoderError, match="takes images; a 3D one"):
        embed_volumes(study, load_encoder("pixels-8"), tmp_path / "a", way="3d")
    with pytest.raises(EncoderError, match="takes volumes, which goes with the way '3d'"):
        embed_volumes(study, load_encoder("3d:resnet10"), tmp_path / "a", way="mean")
    with pytest.raises(EncoderError, match="reads no pixels, so it cannot be given planes"):
        embed_volumes(study, load_encoder({"a": [1.0]}), tmp_path / "a", way="mean")
    assert not (tmp_path / "a").exists()


def test_volumes_are_found_with_and_without_processes(study: Path) -> None:
    here, refused_here = find_volumes(study)
    apart, refused_apart = find_volumes(study, workers=2)
    assert [one.id for one in here] == [one.id for one in apart] == ["n.nii.gz", "1.2.3", "1.2.4"]
    assert [one.content for one in here] == [one.content for one in apart]
    assert refused_here == refused_apart
