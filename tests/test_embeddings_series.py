"""Series as scanners write them: tilted gantries, jittering directions, several phases, and files of many frames."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, EnhancedCTImageStorage, ExplicitVRLittleEndian

from embeddings import ImageError, load_encoder
from embeddings.series import MAX_FRAMES, Series, order_series, slice_header, slices_of
from embeddings.volume_pictures import encode_volume, load_slices
from embeddings.volume_sources import find_volumes
from embeddings.volumes import mid_planes, read_series

SIDE = 12
AXIAL = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]


def data_set(values: NDArray[Any], number: int, **more: Any) -> Dataset:
    """A slice (h, w), or frames (n, h, w), of stored values with what CT images carry."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage if values.ndim == 2 else EnhancedCTImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{number + 1}"
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.SeriesInstanceUID, data.PatientID, data.Modality = "1.2.3", "p1", "CT"
    data.InstanceNumber = number + 1
    data.PixelSpacing, data.RescaleSlope, data.RescaleIntercept = [1.0, 1.0], 1, 0
    data.Rows, data.Columns = values.shape[-2:]
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.PixelRepresentation = int(values.dtype.kind == "i")
    data.BitsAllocated, data.BitsStored, data.HighBit = 16, 16, 15
    data.PixelData = values.tobytes()
    if values.ndim == 3:
        data.NumberOfFrames = len(values)
    for key, value in more.items():
        setattr(data, key, value)
    return data


def write(path: Path, values: NDArray[Any], number: int, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    data_set(values, number, **more).save_as(path, enforce_file_format=True)
    return path


def ordered(folder: Path) -> Series:
    return order_series([one for path in sorted(folder.iterdir()) for one in slices_of(slice_header(path))])


def item(**values: Any) -> Dataset:
    made = Dataset()
    for key, value in values.items():
        setattr(made, key, value)
    return made


def ramp(depth: int) -> NDArray[np.int16]:
    """Values that say where they are: (depth, SIDE, SIDE)."""
    z, y, x = np.meshgrid(np.arange(depth), np.arange(SIDE), np.arange(SIDE), indexing="ij")
    return (100 * z + 5 * y + x - 300).astype(np.int16)


def test_slices_of_a_tilted_gantry_are_laid_over_each_other(tmp_path: Path) -> None:
    tilt = np.deg2rad(20.0)
    row, column = np.array([1.0, 0.0, 0.0]), np.array([0.0, np.cos(tilt), -np.sin(tilt)])
    normal = np.cross(row, column)
    rows, columns = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    corners = [np.array([0.0, 0.0, 5.0 * number]) for number in range(9)]  # the table moves along the patient

    def value(along: float, down: Any, across: Any) -> Any:
        return 40 * along + 60 * down + 20 * across  # of a point, in the slices' own directions

    for number, corner in enumerate(corners):
        seen = value(corner @ normal, corner @ column + rows, corner @ row + columns)
        write(
            tmp_path / f"{(number * 4) % 9}",
            np.rint(seen).astype(np.int16),
            number,
            ImagePositionPatient=corner.tolist(),
            ImageOrientationPatient=[*row, *column],
        )
    series = ordered(tmp_path)
    assert [one.uid for one in series.slices] == [f"1.2.3.{number + 1}" for number in range(9)]
    assert series.spacing[0] == pytest.approx(5.0 * np.cos(tilt)) and not series.warnings
    volume = read_series(series)
    start = corners[4] @ column  # where the rows of the middle slice begin
    for number, corner in enumerate(corners):
        expected = value(corner @ normal, start + rows, columns)
        inside = (start + rows >= corner @ column) & (start + rows <= corner @ column + SIDE - 1)
        assert inside.sum() >= SIDE * 4
        if number == 4 or abs(start - corner @ column) >= 1:  # less than a pixel is left where it is
            np.testing.assert_allclose(volume.voxels[number][inside], expected[inside], atol=1)


def test_an_untilted_series_is_not_moved(tmp_path: Path) -> None:
    for number, values in enumerate(ramp(6)):
        position = [0.2 * (number % 2), 0.0, 2.0 * number]  # a fifth of a millimetre is noise
        write(tmp_path / f"{number}", values, number, ImagePositionPatient=position, ImageOrientationPatient=AXIAL)
    series = ordered(tmp_path)
    assert not series.offsets.any()
    np.testing.assert_array_equal(read_series(series).voxels, ramp(6))


def test_directions_that_jitter_are_one_series(tmp_path: Path) -> None:
    for number, values in enumerate(ramp(8)):
        small = 0.005 + (1e-4 if number % 2 else -1e-4)  # on both sides of where rounding would part them
        direction = [1.0, small, 0.0, -small, 1.0, 0.0]
        write(
            tmp_path / f"{number}",
            values,
            number,
            ImagePositionPatient=[0, 0, number],
            ImageOrientationPatient=direction,
        )
    assert len(ordered(tmp_path).slices) == 8


def test_of_several_phases_the_first_is_kept_whole(tmp_path: Path) -> None:
    for number, values in enumerate(ramp(5)):
        for phase in (2, 1, 0):  # file names say the contrary of the numbers
            name = tmp_path / f"{2 - phase}-{number}"
            write(
                name,
                values + np.int16(1000 * phase),
                5 * phase + number,
                ImagePositionPatient=[0, 0, number],
                ImageOrientationPatient=AXIAL,
            )
    series = ordered(tmp_path)
    assert [one.uid for one in series.slices] == [f"1.2.3.{number + 1}" for number in range(5)]
    assert series.warnings == ("10 slices lie where another one lies: the first was kept.",)
    np.testing.assert_array_equal(read_series(series).voxels, ramp(5))


@pytest.mark.parametrize("signed", [True, False])
def test_signed_and_unsigned_values_are_rescaled(tmp_path: Path, signed: bool) -> None:
    wanted = ramp(5).astype(np.float32)
    stored = (wanted / 2).astype(np.int16) if signed else (wanted / 2 + 1000).astype(np.uint16)
    for number, values in enumerate(stored):
        write(
            tmp_path / f"{number}",
            values,
            number,
            ImagePositionPatient=[0, 0, number],
            ImageOrientationPatient=AXIAL,
            RescaleSlope=2,
            RescaleIntercept=0 if signed else -2000,
        )
    np.testing.assert_allclose(read_series(ordered(tmp_path)).voxels, wanted, atol=2)


@pytest.mark.parametrize("wrong", [[1, 0, 0, 1, 0, 0], [0, 0, 0, 0, 0, 0], [1, 0, 0]])
def test_directions_that_are_none_are_not_used(tmp_path: Path, wrong: Any) -> None:
    data = [data_set(values, number) for number, values in enumerate(ramp(5))]
    for number, one in enumerate(data):
        one.ImagePositionPatient = [0, 0, -number]
        one.ImageOrientationPatient = wrong
        one.save_as(tmp_path / f"{4 - number}", enforce_file_format=True)
    series = ordered(tmp_path)
    assert [one.geometry["InstanceNumber"] for one in series.slices] == [1, 2, 3, 4, 5]
    assert series.warnings == ("The slices do not say where they lie: they are in order of their numbers.",)


def test_slices_of_other_sizes_than_they_say_are_refused(tmp_path: Path) -> None:
    series_of = tmp_path / "s"
    for number, values in enumerate(ramp(5)):
        write(
            series_of / f"{number}", values, number, ImagePositionPatient=[0, 0, number], ImageOrientationPatient=AXIAL
        )
    series = ordered(series_of)
    write(series_of / "2", ramp(1)[0, :-2], 2, ImagePositionPatient=[0, 0, 2], ImageOrientationPatient=AXIAL)
    with pytest.raises(ImageError, match="has other rows and columns than the slices before it"):
        read_series(series)  # the file changed after its header was read


# -- files of several frames -----------------------------------------------------------------------------------------


def enhanced(path: Path, *, placed: bool = True, order: Any = None) -> Path:
    """An enhanced CT file whose frames lie in another order than they are stored."""
    values = ramp(6)
    frames = list(range(6)) if order is None else order
    data = data_set(values[frames], 0)
    del data.PixelSpacing
    measures = item(PixelSpacing=[2.0, 2.0], SliceThickness=3.0)
    data.SharedFunctionalGroupsSequence = [
        item(PlaneOrientationSequence=[item(ImageOrientationPatient=AXIAL)], PixelMeasuresSequence=[measures])
    ]
    if placed:
        data.PerFrameFunctionalGroupsSequence = [
            item(PlanePositionSequence=[item(ImagePositionPatient=[0, 0, 3.0 * frame])]) for frame in frames
        ]
    path.parent.mkdir(parents=True, exist_ok=True)
    data.save_as(path, enforce_file_format=True)
    return path


def test_frames_of_an_enhanced_file_are_a_volume(tmp_path: Path) -> None:
    order = [3, 0, 5, 1, 4, 2]
    (found,), refused = find_volumes(enhanced(tmp_path / "e.dcm", order=order))
    assert not refused and found.series is not None
    assert [one.uid for one in found.series.slices] == [f"1.2.3.1#{order.index(frame)}" for frame in range(6)]
    assert found.series.spacing == (3.0, 2.0, 2.0) and not found.series.warnings
    np.testing.assert_array_equal(read_series(found.series).voxels, ramp(6))
    loader: Any = load_encoder("pixels-8").loader  # type: ignore[attr-defined]
    images, numbers, _ = load_slices(found.series, loader, 0)
    assert numbers == list(range(6)) and len(images) == 6


def test_an_enhanced_file_gives_the_planes_of_its_slices(tmp_path: Path) -> None:
    for number, values in enumerate(ramp(6)):
        write(
            tmp_path / "single" / f"{number}",
            values,
            number,
            ImagePositionPatient=[0, 0, 3.0 * number],
            ImageOrientationPatient=AXIAL,
            PixelSpacing=[2.0, 2.0],
        )
    one = read_series(ordered(tmp_path / "single"))
    (other,), _ = find_volumes(enhanced(tmp_path / "e" / "e.dcm", order=[5, 4, 3, 2, 1, 0]))
    assert other.series is not None
    for left, right in zip(mid_planes(one), mid_planes(read_series(other.series)), strict=True):
        np.testing.assert_array_equal(left, right)


def test_a_film_is_no_volume_but_has_slices(tmp_path: Path) -> None:
    film = enhanced(tmp_path / "film.dcm", placed=False)
    encoder = load_encoder("pixels-8")
    with pytest.raises(ImageError, match="has frames that do not say where they lie: a film is embedded as slices"):
        encode_volume(encoder, film, way="planes")
    assert encode_volume(encoder, film, way="slices").shape == (6, encoder.dim)
    assert encode_volume(encoder, film, way="mean").shape == (1, encoder.dim)


def test_frames_without_end_are_refused(tmp_path: Path) -> None:
    data = data_set(ramp(1)[0], 0)
    data.NumberOfFrames = MAX_FRAMES + 1
    data.save_as(tmp_path / "a", enforce_file_format=True)
    with pytest.raises(ImageError, match="has 4,097 frames, more than the 4,096 that are listed"):
        slice_header(tmp_path / "a")
