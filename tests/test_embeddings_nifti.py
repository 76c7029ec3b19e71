"""NIfTI files: bounded before anything is decompressed, scaled as their header says, the first of several volumes."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest

from embeddings import ImageError
from embeddings.nifti import MAX_VOXELS, is_nifti, nifti_facts, read_nifti
from embeddings.volumes import MAX_SIDE, MAX_SLICES, mid_planes


def values(*shape: int) -> Any:
    return np.random.default_rng(0).integers(-1000, 1000, shape).astype(np.int16)


def save(path: Path, data: Any) -> Path:
    nibabel.save(nibabel.Nifti1Image(data, np.diag([-1.0, -1.0, 1.0, 1.0])), path)
    return path


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_scaling_is_that_of_nibabel(tmp_path: Path, name: str) -> None:
    image = nibabel.Nifti1Image(values(5, 6, 7), np.diag([-1.0, -1.0, 1.0, 1.0]))
    image.header.set_slope_inter(2.5, -1024)
    nibabel.save(image, tmp_path / name)
    expected = np.asarray(nibabel.load(tmp_path / name).dataobj).transpose(2, 1, 0)
    np.testing.assert_allclose(read_nifti(tmp_path / name).voxels, expected, rtol=1e-6)
    assert np.abs(expected).max() > 2000


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_any_kind_of_number_is_read(tmp_path: Path, dtype: str, order: str) -> None:
    data = np.abs(values(5, 6, 7) % 200).astype(np.dtype(dtype).newbyteorder(order))
    path = tmp_path / "a.nii"
    nibabel.save(
        nibabel.Nifti1Image(data, np.diag([-1.0, -1.0, 1.0, 1.0]), nibabel.Nifti1Header(endianness=order)), path
    )
    voxels = read_nifti(path).voxels
    assert voxels.dtype == np.float32
    np.testing.assert_array_equal(voxels, data.transpose(2, 1, 0))


def test_of_several_volumes_the_first_is_taken_and_said(tmp_path: Path) -> None:
    data = values(5, 6, 7, 3)
    path = save(tmp_path / "a.nii.gz", data)
    np.testing.assert_array_equal(read_nifti(path).voxels, data[..., 0].transpose(2, 1, 0))
    assert nifti_facts(path) == {
        "slices": 7,
        "spacing": [1.0, 1.0, 1.0],
        "warnings": ["The file holds 3 volumes: the first was taken."],
    }
    assert "warnings" not in nifti_facts(save(tmp_path / "b.nii", data[..., :1]))


def test_a_long_film_counts_by_its_first_volume(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((8, 8, 8, 30_000, 30))
    header["magic"], header["vox_offset"] = b"n+1", 352
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(4) + bytes(range(256)) * 2)
    assert read_nifti(tmp_path / "a.nii").voxels.shape == (8, 8, 8)


def test_what_decompresses_without_end_is_not_read(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header["magic"], header["vox_offset"] = b"n+1", 352
    for shape, reason in (
        ((2000, 2000, 2000), "2000 x 2000 x 2000 voxels in a volume, more than the 268,435,456 allowed"),
        ((8, 8, 8), None),
    ):
        header.set_data_shape(shape)
        with gzip.open(tmp_path / "bomb.nii.gz", "wb", compresslevel=1) as stream:
            stream.write(header.binaryblock + bytes(4) + bytes(range(256)) * 2)
            for _ in range(64):
                stream.write(bytes(1 << 20))
        if reason is None:  # what follows the voxels is left where it is
            assert read_nifti(tmp_path / "bomb.nii.gz").voxels.shape == (8, 8, 8)
        else:
            with pytest.raises(ImageError, match=reason):
                read_nifti(tmp_path / "bomb.nii.gz")


def test_voxels_that_take_too_many_bytes_are_refused(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.float64)
    header["magic"], header["vox_offset"] = b"n+1", 352
    header.set_data_shape((512, 512, 600))
    assert MAX_VOXELS > 512 * 512 * 600
    (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(4))
    with pytest.raises(ImageError, match=r"has voxels of 1,258,291,200 bytes, more than the 1,073,741,824 allowed"):
        read_nifti(tmp_path / "a.nii")


def test_colours_and_complex_numbers_are_refused(tmp_path: Path) -> None:
    colour = np.zeros((5, 5, 5), dtype=[("R", "u1"), ("G", "u1"), ("B", "u1")])
    with pytest.raises(ImageError, match="holds colour values; a volume has one number for each voxel"):
        read_nifti(save(tmp_path / "a.nii", colour))
    with pytest.raises(ImageError, match="holds complex64 values"):
        read_nifti(save(tmp_path / "b.nii", np.zeros((5, 5, 5), dtype=np.complex64)))


def test_what_is_no_number_becomes_nothing(tmp_path: Path) -> None:
    data = values(5, 6, 7).astype(np.float32)
    data[0, 0, 0], data[1, 1, 1], data[2, 2, 2] = np.nan, np.inf, -np.inf
    expected = np.where(np.isfinite(data), data, 0).transpose(2, 1, 0)
    np.testing.assert_array_equal(read_nifti(save(tmp_path / "a.nii", data)).voxels, expected)


def test_large_slices_and_long_volumes_are_thinned(tmp_path: Path) -> None:
    wide = read_nifti(save(tmp_path / "wide.nii", np.zeros((2 * MAX_SIDE, MAX_SIDE, 4), np.uint8)))
    assert wide.voxels.shape == (4, MAX_SIDE // 2, MAX_SIDE) and wide.spacing == (1.0, 2.0, 2.0)
    long = read_nifti(save(tmp_path / "long.nii", np.zeros((4, 4, MAX_SLICES + 2), np.uint8)))
    assert long.voxels.shape == (MAX_SLICES // 2 + 1, 4, 4) and long.spacing == (2.0, 1.0, 1.0)


def test_a_damaged_affine_is_not_believed(tmp_path: Path) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape((5, 6, 7))
    header["magic"], header["vox_offset"], header["sform_code"] = b"n+1", 352, 1
    header["srow_x"], header["srow_y"], header["srow_z"] = [3, 0, 0, 0], [0, 3, 0, 0], [0, 0, 3, 0]
    for row, step in (([0, 0, 3, 0], 3.0), ([0, 0, 0, 0], 1.0), ([0, 0, np.nan, 0], 1.0)):
        header["srow_z"] = row
        (tmp_path / "a.nii").write_bytes(header.binaryblock + bytes(4) + values(7, 6, 5).tobytes())
        volume = read_nifti(tmp_path / "a.nii")
        assert volume.spacing == (step, step, step) and volume.voxels.shape == (7, 6, 5)


def test_planes_do_not_depend_on_how_voxels_are_stored(tmp_path: Path) -> None:
    data = values(11, 13, 9)
    affine = np.diag([0.7, 0.9, 2.5, 1.0])
    image = nibabel.Nifti1Image(data, affine)
    expected = None
    for axes in ("RAS", "LPS", "ASR", "SPL", "IRP"):
        turn = nibabel.orientations.ornt_transform(
            nibabel.orientations.io_orientation(affine), nibabel.orientations.axcodes2ornt(axes)
        )
        nibabel.save(image.as_reoriented(turn), tmp_path / "a.nii")
        planes = mid_planes(read_nifti(tmp_path / "a.nii"))
        expected = expected or planes
        for plane, wanted in zip(planes, expected, strict=True):
            np.testing.assert_array_equal(plane, wanted)


def test_names_say_what_is_nifti() -> None:
    assert is_nifti("a/B.NII.GZ") and is_nifti(Path("c.nii"))
    assert not is_nifti("c.nii.dcm") and not is_nifti("c.gz")
