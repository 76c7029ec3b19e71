"""DICOM to grey levels: each step of PS3.3 against loops and pydicom, every guard, and the real samples."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.processing import apply_voi_lut, apply_windowing
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from embeddings import ImageError, image_identity, read_image
from embeddings.dicom_file import codestream_size
from embeddings.greyscale import apply_window, look_up

CR = "1.2.840.10008.5.1.4.1.1.1"
RAMP = np.arange(0, 4096, 16, dtype=np.uint16).reshape(16, 16)


def make(pixels: np.ndarray | None = RAMP, **elements: Any) -> Dataset:
    """Build a small data set around `pixels`: (h, w), (frames, h, w) or (h, w, 3) for RGB."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality, ds.PatientID = CR, "1.2.3.4", "CR", "007"
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = CR, "1.2.3.4"
    if pixels is not None:
        colour = pixels.ndim == 3 and pixels.shape[-1] == 3
        ds.SamplesPerPixel = 3 if colour else 1
        ds.PhotometricInterpretation = "RGB" if colour else "MONOCHROME2"
        if colour:
            ds.PlanarConfiguration = 0
        elif pixels.ndim == 3:
            ds.NumberOfFrames = len(pixels)
        ds.Rows, ds.Columns = pixels.shape[:2] if colour else pixels.shape[-2:]
        ds.BitsAllocated = ds.BitsStored = pixels.dtype.itemsize * 8
        ds.HighBit = ds.BitsStored - 1
        ds.PixelRepresentation = int(pixels.dtype.kind == "i")
        ds.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for keyword, value in elements.items():
        setattr(ds, keyword, value)
    return ds


def write(path: Path, ds: Dataset, **options: Any) -> Path:
    ds.save_as(path, enforce_file_format=options.pop("enforce_file_format", True), **options)
    return path


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., np.ndarray]:
    def _read(ds: Dataset, **options: Any) -> np.ndarray:
        return read_image(write(tmp_path / "ein Bild é", ds), **options)

    return _read


Read = Callable[..., np.ndarray]


def stretched(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min())


# --- the three steps ------------------------------------------------------------------------------------------------


def test_without_voi_the_range_is_stretched(read: Read) -> None:
    np.testing.assert_allclose(read(make()), stretched(RAMP.astype(float)), atol=1e-6)


def test_signed_data_and_rescale(read: Read) -> None:
    stored = (RAMP.astype(np.int16) - 2000).astype(np.int16)
    ds = make(stored, RescaleSlope="2", RescaleIntercept="-100", WindowCenter="40", WindowWidth="400")
    expected = np.zeros(stored.shape)
    for row in range(16):
        for column in range(16):
            hounsfield = 2.0 * stored[row, column] - 100.0
            # PS3.3 C.11.2.1.2.1, its pseudo-code
            if hounsfield <= 40 - 0.5 - (400 - 1) / 2:
                expected[row, column] = 0
            elif hounsfield > 40 - 0.5 + (400 - 1) / 2:
                expected[row, column] = 1
            else:
                expected[row, column] = (hounsfield - (40 - 0.5)) / (400 - 1) + 0.5
    np.testing.assert_allclose(read(ds), expected, atol=1e-6)
    override = np.clip((2.0 * stored - 100.0 - 50 + 75) / 150, 0, 1)
    np.testing.assert_allclose(read(ds, window=(50, 150)), override, atol=1e-5)


@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("centre", "width"), [(2048, 4096), (300.5, 77), (-5, 1), (1000, 2), (1e4, 3)])
def test_windows_agree_with_pydicom(function: str, centre: float, width: float) -> None:
    ds = Dataset()
    ds.PhotometricInterpretation, ds.BitsStored, ds.PixelRepresentation = "MONOCHROME2", 1, 0  # range 0..1
    ds.WindowCenter, ds.WindowWidth, ds.VOILUTFunction = centre, width, function
    values = np.linspace(-3000, 5000, 4001)[None]
    with np.errstate(over="ignore"):
        expected = apply_windowing(values, ds)
    np.testing.assert_allclose(apply_window(values.astype(np.float32), centre, width, function), expected, atol=2e-4)


def test_window_refuses_what_the_standard_forbids() -> None:
    with pytest.raises(ValueError, match="LINEAR window needs a finite centre and a width at least 1"):
        apply_window(np.zeros((1, 1), np.float32), 0, 0.5)
    with pytest.raises(ValueError, match="VOI LUT function must be one of LINEAR, LINEAR_EXACT, SIGMOID; got 'CUBIC'"):
        apply_window(np.zeros((1, 1), np.float32), 0, 1, "CUBIC")


def test_the_first_of_several_windows_counts(read: Read) -> None:
    several = make(WindowCenter=["1000", "9"], WindowWidth=["500", "9"])
    one = make(WindowCenter="1000", WindowWidth="500")
    np.testing.assert_array_equal(read(several), read(one))


@pytest.mark.parametrize("width", ["0", "-3"])
def test_a_window_the_standard_forbids_counts_as_none(read: Read, width: str) -> None:
    np.testing.assert_array_equal(read(make(WindowCenter="9", WindowWidth=width)), read(make()))


def test_monochrome1_is_inverted_last(read: Read) -> None:
    window = {"WindowCenter": "1000", "WindowWidth": "500"}
    dark = read(make(**window, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_allclose(dark, 1 - read(make(**window)), atol=1e-6)
    assert dark[0, 0] == 1.0  # the smallest stored value is white


def lut(descriptor: list[int], data: list[int]) -> Dataset:
    item = Dataset()
    item.LUTDescriptor = descriptor
    item.add_new("LUTData", "US", data)
    return item


def test_modality_lut_comes_before_the_window_and_instead_of_rescale(read: Read) -> None:
    stored = np.array([[0, 5, 6], [7, 8, 200]], dtype=np.uint8)
    ds = make(stored, ModalityLUTSequence=[lut([4, 5, 16], [100, 300, 200, 1000])])
    # values below the first entry take the first, past the last the last
    np.testing.assert_allclose(read(ds), stretched(np.array([[100, 100, 300], [200, 1000, 1000]], float)), atol=1e-6)
    ds.WindowCenter, ds.WindowWidth, ds.VOILUTFunction = "200", "200", "LINEAR_EXACT"
    np.testing.assert_allclose(read(ds), [[0, 0, 1], [0.5, 1, 1]], atol=1e-6)


def test_voi_lut_wins_over_a_window_and_follows_rescale(read: Read) -> None:
    stored = np.array([[10, 11, 12, 13, 99]], dtype=np.uint16)
    ds = make(stored, WindowCenter="5", WindowWidth="5", RescaleSlope="1", RescaleIntercept="-10")
    ds.VOILUTSequence = [lut([4, 0, 12], [0, 4095, 1000, 2000])]
    np.testing.assert_allclose(read(ds), np.array([[0, 4095, 1000, 2000, 2000]]) / 4095, atol=1e-6)


def test_voi_lut_with_a_negative_first_value(read: Read) -> None:
    stored = np.array([[-3, -2, -1, 0]], dtype=np.int16)
    item = Dataset()
    item.add_new("LUTDescriptor", "SS", [3, -2, 8])
    item.add_new("LUTData", "OW", bytes([0, 0, 128, 0, 255, 0]))
    np.testing.assert_allclose(read(make(stored, VOILUTSequence=[item])), [[0, 0, 128 / 255, 1]], atol=1e-6)


def test_tables_agree_with_pydicom_and_hold_where_it_wraps() -> None:
    rng = np.random.default_rng(0)
    values = rng.integers(0, 300, (9, 9)).astype(np.uint16)
    for bits, entries in ((16, 256), (12, 100), (8, 256)):
        table = rng.integers(0, 2**bits, entries)
        ds = Dataset()
        ds.VOILUTSequence = [lut([entries, 20, bits], table.tolist())]
        small = np.minimum(values, 275) if bits == 8 else values  # pydicom counts 8-bit entries in 8 bits
        np.testing.assert_array_equal(look_up(small, table, 20), apply_voi_lut(small, ds))
    expected = [table[min(max(int(value) - 20, 0), 255)] for value in values.ravel()]
    np.testing.assert_array_equal(look_up(values, table, 20).ravel(), expected)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_padding_is_black_and_has_no_say_in_the_range(read: Read, photometric: str) -> None:
    stored = RAMP.copy()
    stored[:, :4] = 60000
    ds = make(stored, PhotometricInterpretation=photometric)
    ds.add_new("PixelPaddingValue", "US", 60000)
    image = read(ds)
    assert (image[:, :4] == 0).all()
    expected = stretched(RAMP[:, 4:].astype(float))
    np.testing.assert_allclose(image[:, 4:], expected if photometric == "MONOCHROME2" else 1 - expected, atol=1e-6)


def test_padding_range_and_signed_padding_in_an_unsigned_element(read: Read) -> None:
    stored = np.array([[-2000, -1990, -1000, 0, 1000]], dtype=np.int16)
    ds = make(stored)
    ds.add_new("PixelPaddingValue", "US", 65536 - 2000)
    ds.add_new("PixelPaddingRangeLimit", "SS", -1990)
    np.testing.assert_allclose(read(ds), [[0, 0, 0, 0.5, 1]], atol=1e-6)


def test_all_padding_is_blank(read: Read) -> None:
    ds = make(np.full((4, 4), 7, dtype=np.uint16))
    ds.add_new("PixelPaddingValue", "US", 7)
    with pytest.raises(ImageError, match="has the same grey level everywhere"):
        read(ds)


def test_float_pixels_and_nan(read: Read) -> None:
    values = np.linspace(-1, 3, 12, dtype=np.float32).reshape(3, 4)

    def parametric(array: np.ndarray) -> Dataset:
        ds = make(np.zeros((3, 4), dtype=np.uint16))
        del ds.PixelData
        ds.BitsAllocated, ds.FloatPixelData = 32, array.tobytes()
        return ds

    np.testing.assert_allclose(read(parametric(values)), stretched(values), atol=1e-6)
    values[1, 1] = np.nan
    with pytest.raises(ImageError, match="holds NaN or infinite grey levels"):
        read(parametric(values))


# --- colour ---------------------------------------------------------------------------------------------------------


def test_rgb_and_ybr_become_luminance(read: Read) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (6, 6, 3), dtype=np.uint8)
    expected = rgb @ np.array([0.299, 0.587, 0.114]) / 255
    np.testing.assert_allclose(read(make(rgb)), expected, atol=1e-6)
    # in YBR_FULL the first sample is the luminance (PS3.3 C.7.6.3.1.2)
    ybr = np.stack([rgb[..., 0], np.full((6, 6), 128, np.uint8), np.full((6, 6), 128, np.uint8)], axis=-1)
    np.testing.assert_allclose(read(make(ybr, PhotometricInterpretation="YBR_FULL")), rgb[..., 0] / 255, atol=2 / 255)


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_colour(read: Read, bits: int) -> None:
    stored = np.array([[0, 1, 2, 3]], dtype=np.uint8)
    top = 2**bits - 1
    ds = make(stored, PhotometricInterpretation="PALETTE COLOR")
    for colour, values in (("Red", [0, top, 0, 0]), ("Green", [0, 0, top, 0]), ("Blue", [0, 0, 0, top])):
        setattr(ds, f"{colour}PaletteColorLookupTableDescriptor", [4, 0, bits])
        setattr(ds, f"{colour}PaletteColorLookupTableData", np.array(values, f"<u{bits // 8}").tobytes())
    np.testing.assert_allclose(read(ds), [[0, 0.299, 0.587, 0.114]], atol=1e-6)


# --- frames ---------------------------------------------------------------------------------------------------------


def test_multi_frame_takes_the_wanted_frame_else_the_middle_one(read: Read) -> None:
    frames = np.stack([np.roll(RAMP, shift * 5) for shift in range(4)])
    for frame, expected in ((None, 2), (0, 0), (3, 3)):
        np.testing.assert_allclose(
            read(make(frames), frame=frame), stretched(frames[expected].astype(float)), atol=1e-6
        )
    with pytest.raises(ImageError, match="has 4 frames, numbered from 0; frame 4 does not exist"):
        read(make(frames), frame=4)


def test_functional_groups_of_the_frame_come_before_the_shared_ones(read: Read) -> None:
    frames = np.stack([RAMP, RAMP])

    def groups(intercept: float, centre: float | None) -> Dataset:
        group, rescale, voi = Dataset(), Dataset(), Dataset()
        rescale.RescaleSlope, rescale.RescaleIntercept = "1", str(intercept)
        group.PixelValueTransformationSequence = [rescale]
        if centre is not None:
            voi.WindowCenter, voi.WindowWidth, voi.VOILUTFunction = str(centre), "1000", "LINEAR_EXACT"
            group.FrameVOILUTSequence = [voi]
        return group

    ds = make(frames, PerFrameFunctionalGroupsSequence=[groups(0, None), groups(-500, 1000)])
    ds.SharedFunctionalGroupsSequence = [groups(77, 2000)]
    np.testing.assert_allclose(read(ds, frame=0), np.clip((RAMP - 1500.0) / 1000, 0, 1), atol=1e-6)
    np.testing.assert_allclose(read(ds, frame=1), np.clip((RAMP - 500.0 - 500.0) / 1000, 0, 1), atol=1e-6)


# --- how the file is written ----------------------------------------------------------------------------------------


def test_no_preamble_and_implicit_vr(tmp_path: Path) -> None:
    expected = stretched(RAMP.astype(float))
    for implicit in (False, True):
        ds = make()
        del ds.file_meta
        path = tmp_path / f"bare{implicit}"
        pydicom.dcmwrite(path, ds, implicit_vr=implicit, little_endian=True, enforce_file_format=False)
        assert path.read_bytes()[128:132] != b"DICM"
        np.testing.assert_allclose(read_image(path), expected, atol=1e-6)
        assert image_identity(path).sop_instance_uid == "1.2.3.4"
    ds = make()
    ds.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    np.testing.assert_allclose(read_image(write(tmp_path / "implicit", ds)), expected, atol=1e-6)


@pytest.mark.parametrize("syntax", [RLELossless, JPEG2000Lossless])
def test_compressed_frames(read: Read, syntax: str) -> None:
    ramp = np.kron(RAMP, np.ones((4, 4), dtype=np.uint16))
    ds = make(np.stack([ramp, ramp[::-1], ramp.T]))
    ds.compress(syntax, generate_instance_uid=False)
    np.testing.assert_allclose(read(ds, frame=1), stretched(ramp[::-1].astype(float)), atol=1e-6)


def deflate(path: Path, ds: Dataset, *, size: int | None = None) -> Path:
    ds.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    write(path, ds)
    return path


def test_deflated_and_its_bombs(tmp_path: Path) -> None:
    path = deflate(tmp_path / "small", make())
    np.testing.assert_allclose(read_image(path), stretched(RAMP.astype(float)), atol=1e-6)
    bomb = deflate(tmp_path / "bomb", make(np.zeros((1000, 1000), np.uint16)))
    assert bomb.stat().st_size < 20_000
    with pytest.raises(ImageError, match="inflates to more than 400,000 bytes, 4 per pixel of max_pixels"):
        read_image(bomb, max_pixels=100_000)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) - 40])
    with pytest.raises(ImageError, match="ends early: its deflated data set is truncated"):
        read_image(path)
    path.write_bytes(data[:400] + bytes(zlib.crc32(data[i:]) % 256 for i in range(200)))
    with pytest.raises(ImageError, match=r"deflated data set is (damaged|truncated)"):
        read_image(path)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_without_pixels(read: Read) -> None:
    report = make(None, SOPClassUID="1.2.840.10008.5.1.4.1.1.88.11")
    with pytest.raises(ImageError, match=r"is DICOM without pixels \(Basic Text SR Storage\)"):
        read(report)
    ds = make()
    del ds.PixelData
    with pytest.raises(ImageError, match=r"is DICOM without pixels \(no Pixel Data element\)"):
        read(ds)


def test_truncated_pixels(tmp_path: Path) -> None:
    path = write(tmp_path / "a", make())
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ImageError, match="its pixel data are truncated or damaged"):
        read_image(path)
    ds = make(np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16))
    ds.compress(JPEG2000Lossless)
    write(path, ds)
    path.write_bytes(path.read_bytes()[:-3000])
    with pytest.raises(ImageError, match="its pixel data are truncated or damaged"):
        read_image(path)


def test_limits_come_from_the_header(read: Read) -> None:
    with pytest.raises(ImageError, match="has 16 x 16 pixels, more than the 255 allowed by max_pixels"):
        read(make(), max_pixels=255)
    with pytest.raises(ImageError, match="has 65535 x 65535 pixels, more than the 50,000,000"):
        read(make(Rows=65535, Columns=65535))
    with pytest.raises(ImageError, match="claims 0 x 16 pixels"):
        read(make(Rows=0))
    with pytest.raises(ImageError, match="its pixel data are truncated or damaged"):
        read(make(NumberOfFrames=2_000_000_000))
    with pytest.raises(ImageError, match="has 4 samples per pixel; only 1"):
        read(make(SamplesPerPixel=4))
    with pytest.raises(ImageError, match="has no Photometric Interpretation"):
        read(make(PhotometricInterpretation=""))


def test_a_codestream_larger_than_its_header_is_refused_before_it_is_decoded(read: Read) -> None:
    ds = make(np.zeros((64, 64), np.uint16) + np.arange(64, dtype=np.uint16))
    ds.compress(JPEG2000Lossless)
    assert codestream_size(pydicom.encaps.get_frame(ds.PixelData, 0)) == (64, 64)
    ds.Rows = ds.Columns = 16
    with pytest.raises(ImageError, match="its compressed frame claims 64 x 64 pixels, its header 16 x 16"):
        read(ds)
    jpeg = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xff\xc3\x00\x0b\x08\x23\x28\x1f\x40\x01\x01\x11\x00"
    assert codestream_size(jpeg) == (9000, 8000)
    assert codestream_size(b"RLE or nonsense") is None
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    ds.PixelData = encapsulate([jpeg])
    with pytest.raises(ImageError, match="claims 9000 x 8000 pixels"):
        read(ds)


def test_missing_decoder_names_the_package(read: Read) -> None:
    ds = make(PixelData=encapsulate([b"\xff\xd8"]))
    ds.file_meta.TransferSyntaxUID = JPEGLosslessSV1
    ds["PixelData"].is_undefined_length = True
    if pydicom.pixels.get_decoder(JPEGLosslessSV1).is_available:
        pytest.skip("a decoder for JPEG lossless is installed")
    with pytest.raises(
        ImageError, match=r"\(JPEG Lossless.*\) needs a decoder that is not installed: pip install pylib"
    ):
        read(ds)
    ds.file_meta.TransferSyntaxUID = "1.2.840.10008.1.2.4.103"  # MPEG-4
    with pytest.raises(ImageError, match=r"its transfer syntax \(MPEG-4 .*\) is not supported"):
        read(ds)


def test_an_unknown_voi_function_and_a_short_table(read: Read) -> None:
    with pytest.raises(
        ImageError, match=r"header is damaged \(its VOI LUT Function is none of LINEAR, LINEAR_EXACT, SIGMOID\)"
    ):
        read(make(WindowCenter="5", WindowWidth="5", VOILUTFunction="CUBIC"))
    with pytest.raises(ImageError, match="a lookup table of 9 entries and 16 bits holds 2 values"):
        read(make(ModalityLUTSequence=[lut([9, 0, 16], [1, 2])]))


def test_every_mutation_is_read_or_refused_with_one_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    compressed = make()
    compressed.compress(RLELossless)
    originals = [
        write(tmp_path / "a", ds).read_bytes() for ds in (make(WindowCenter="9", WindowWidth="99"), compressed)
    ]
    path = tmp_path / "mutant"
    for turn in range(200):
        changed = bytearray(originals[turn % 2])
        if turn % 3 == 0:
            changed = changed[: rng.integers(1, len(changed))]
        for _ in range(int(rng.integers(0, 8))):
            changed[rng.integers(min(len(changed), 700))] = rng.integers(256)
        path.write_bytes(changed)
        try:
            assert read_image(path).ndim == 2
        except ImageError as error:
            assert "\n" not in str(error) and len(error.reason) < 400


# --- identity and the real files ------------------------------------------------------------------------------------


def test_a_damaged_header_is_not_quoted(tmp_path: Path) -> None:
    data = write(tmp_path / "a", make(RescaleSlope="2.5", RescaleIntercept="0")).read_bytes()
    (tmp_path / "a").write_bytes(data.replace(b"2.5 ", b"Canary"[:4]))
    with pytest.raises(ImageError, match=r"its DICOM header is damaged \(ValueError\)") as caught:
        read_image(tmp_path / "a")
    assert "Cana" not in str(caught.value)


def test_identity(tmp_path: Path) -> None:
    path = write(tmp_path / "a", make(PatientName="Nobody^Secret", BodyPartExamined="CHEST", StudyInstanceUID="1.9"))
    identity = image_identity(path)
    assert identity.sop_instance_uid == "1.2.3.4"
    assert identity.patient_id == "007"
    assert identity.metadata["modality"] == "CR"
    assert identity.metadata["body_part"] == "CHEST"
    assert identity.metadata["rows"] == 16
    assert "Secret" not in repr(identity)
    assert image_identity(write(tmp_path / "b", make(None, PatientID=""))).patient_id is None


@pytest.mark.shared_data
def test_every_real_sample_is_read_or_refused_for_a_reason(shared_data: Path) -> None:
    folder = shared_data / "dicom_samples"
    with (folder / "manifest.csv").open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 45
    for row in rows:
        identity = image_identity(folder / row["file"])
        assert (identity.patient_id or "") == row["patient_id"]
        try:
            image = read_image(folder / row["file"])
        except ImageError as error:
            assert not row["decodes_with_numpy_pillow_only"].startswith("ok"), error
            assert "without pixels" in error.reason or "pip install" in error.reason
            continue
        assert image.shape == (int(row["rows"]), int(row["columns"]))
        assert 0 <= image.min() < image.max() <= 1


@pytest.mark.shared_data
def test_three_codings_of_one_slice_agree(shared_data: Path) -> None:
    folder = shared_data / "dicom_samples" / "ct"
    deflated, rle, jpegls = (
        read_image(folder / f"ct_{name}.dcm")
        for name in ("DeflatedExplicitVRLittleEndian", "RLELossless", "JPEGLSLossless")
    )
    np.testing.assert_array_equal(deflated, rle)
    np.testing.assert_array_equal(deflated, jpegls)


@pytest.mark.shared_data
def test_a_monochrome1_chest_has_dark_lungs_and_a_bright_spine(shared_data: Path) -> None:
    image = read_image(shared_data / "dicom_samples" / "cr" / "gdcm-CR-MONO1-10-chest.dcm")
    spine, right_lung, left_lung = image[150:250, 210:230], image[150:250, 90:150], image[150:250, 290:340]
    assert spine.mean() > max(right_lung.mean(), left_lung.mean()) + 0.1
    same, relabelled = (
        read_image(shared_data / "dicom_samples" / "cr" / name)
        for name in ("rsna_chest_monochrome2.dcm", "Fake_MONOHR1.dcm")
    )
    np.testing.assert_allclose(relabelled, 1 - same, atol=1e-6)


def test_a_panic_inside_a_codec_is_one_sentence_too(read: Read, monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):  # what codecs written in Rust raise; it is no Exception
        pass

    def panic(*_: object, **__: object) -> None:
        raise PanicException("index out of bounds")

    monkeypatch.setattr("embeddings.dicom_file.pixel_array", panic)
    with pytest.raises(ImageError, match=r"truncated or damaged \(index out of bounds\)"):
        read(make())
    monkeypatch.setattr("embeddings.dicom_file.pixel_array", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        read(make())
