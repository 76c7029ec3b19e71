"""Reduced decoding: less resolution, the same picture, and the whole image where it cannot be had for less."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, JPEG2000Lossless

from embeddings import ImageError, ImageLoader, Preprocess, embed_archive, load_encoder, read_image
from embeddings.codestream import decode_reduced, reduction, resolution_levels
from embeddings.images import JPEG2000_MARGIN, JPEG_MARGIN, read_reduced
from episodes.phantoms import draw_phantom


def phantom(height: int = 512, width: int = 512) -> NDArray[np.float32]:
    return draw_phantom((), patient=3, size=(height, width))


def j2k(path: Path, grey: NDArray[np.float32], bits: int = 12, **changes: Any) -> Path:
    pixels = np.rint(grey * (2**bits - 1)).astype(np.uint16 if bits > 8 else np.uint8)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 8 * pixels.itemsize, bits, bits - 1
    data.WindowCenter, data.WindowWidth = 2 ** (bits - 1), 2**bits
    data.PixelData = pixels.tobytes()
    for key, value in changes.items():
        setattr(data, key, value)
    if changes.pop("plain", None) is None:
        data.compress(JPEG2000Lossless, generate_instance_uid=False)
    data.save_as(path, enforce_file_format=True)
    return path


def likeness(first: NDArray[Any], second: NDArray[Any]) -> float:
    a, b = (picture.astype(np.float64) - picture.mean() for picture in (first, second))
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def test_a_jpeg_is_decoded_at_what_is_needed(tmp_path: Path) -> None:
    Image.fromarray(np.uint8(255 * phantom())).save(tmp_path / "a.jpg", quality=92)
    form = Preprocess(size=(60, 60))
    small, shape = read_reduced(tmp_path / "a.jpg", form.size)
    assert small.shape == (128, 128) and shape == (512, 512)
    assert min(small.shape) >= JPEG_MARGIN * 60
    assert likeness(form.compact(small, shape), form.compact(read_image(tmp_path / "a.jpg"))) > 0.999
    assert read_reduced(tmp_path / "a.jpg", (257, 20))[0].shape == (512, 512)
    assert read_reduced(tmp_path / "a.jpg", None)[0].shape == (512, 512)


def test_a_colour_jpeg_has_its_luminance(tmp_path: Path) -> None:
    rgb = np.stack([np.uint8(255 * phantom()), np.uint8(255 * phantom()[::-1]), np.uint8(120 * phantom().T)], axis=-1)
    Image.fromarray(rgb).save(tmp_path / "a.jpg", quality=95, subsampling=0)
    form = Preprocess(size=(60, 60))
    reduced = form.compact(*read_reduced(tmp_path / "a.jpg", form.size))
    assert np.abs(reduced.astype(int) - form.compact(read_image(tmp_path / "a.jpg"))).max() <= 6


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_the_aspect_ratio_is_that_of_the_whole_image(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.uint8(255 * phantom(450, 511))).save(tmp_path / "a.jpg", quality=95, exif=exif)
    form = Preprocess(size=(48, 48))
    small, shape = read_reduced(tmp_path / "a.jpg", form.size)
    whole = read_image(tmp_path / "a.jpg")
    assert shape == whole.shape and small.shape != whole.shape
    assert ((form.compact(small, shape) == 0).all(axis=1) == (form.compact(whole) == 0).all(axis=1)).all()
    assert likeness(form.compact(small, shape), form.compact(whole)) > 0.998


@pytest.mark.parametrize("bits", [8, 12, 16])
def test_a_jpeg_2000_frame_is_decoded_at_what_is_needed(tmp_path: Path, bits: int) -> None:
    path = j2k(tmp_path / "a.dcm", phantom(), bits)
    form = Preprocess(size=(30, 30))
    small, shape = read_reduced(path, form.size)
    assert small.shape == (64, 64) and shape == (512, 512)
    assert min(small.shape) >= JPEG2000_MARGIN * 30
    assert likeness(form.compact(small, shape), form.compact(read_image(path))) > 0.999
    assert abs(float(small.mean()) - float(read_image(path).mean())) < 0.01
    assert read_reduced(path, (129, 129))[0].shape == (512, 512)


def test_frames_that_need_every_pixel_are_decoded_whole(tmp_path: Path) -> None:
    padded = j2k(tmp_path / "padded.dcm", phantom(), PixelPaddingValue=0)
    assert read_reduced(padded, (20, 20))[0].shape == (512, 512)
    grey = phantom()
    signed = np.rint(grey * 2000 - 1000).astype(np.int16)
    path = j2k(tmp_path / "signed.dcm", grey, 16, PixelRepresentation=1, PixelData=signed.tobytes(), WindowCenter=0)
    frame = get_frame(pydicom.dcmread(path).PixelData, 0, number_of_frames=1)
    assert decode_reduced(frame, pydicom.dcmread(path), 40) is None
    np.testing.assert_allclose(read_reduced(path, (20, 20))[0].mean(), read_image(path).mean(), atol=1e-4)  # averaged


def test_what_a_codestream_says_of_itself(tmp_path: Path) -> None:
    data = pydicom.dcmread(j2k(tmp_path / "a.dcm", phantom()))
    frame = get_frame(data.PixelData, 0, number_of_frames=1)
    assert resolution_levels(frame) == 5
    assert resolution_levels(b"nothing") == 0
    assert resolution_levels(frame[:50]) == 0
    assert [reduction(512, 300, side, 5) for side in (400, 150, 75, 9, 1)] == [0, 1, 2, 5, 5]
    assert decode_reduced(b"\xff\x4f\xff\x51" + b"\0" * 60, data, 100) is None


def test_a_damaged_frame_is_refused_in_the_plain_decoders_words(tmp_path: Path) -> None:
    path = j2k(tmp_path / "a.dcm", phantom())
    content = bytearray(path.read_bytes())
    start = content.find(b"\xff\x4f\xff\x51")
    content[start + 60 : start + 2000] = bytes(1940)
    path.write_bytes(content)
    with pytest.raises(ImageError, match="truncated or damaged"):
        read_reduced(path, (20, 20))


def test_full_decoding_is_as_it_was_and_keeps_its_fingerprint() -> None:
    form = Preprocess(size=(16, 16), decoding="full")
    assert "decoding" not in form.to_json() and Preprocess.from_json(form.to_json()) == form
    assert Preprocess(size=(16, 16)).to_json()["decoding"] == "fast"
    assert Preprocess.from_json(Preprocess(size=(16, 16)).to_json()).decoding == "fast"
    with pytest.raises(ValueError, match="decoding must be one of fast, full; got 'slow'"):
        Preprocess(decoding="slow")  # type: ignore[arg-type]
    grey = phantom(64, 64)
    assert form.compact(grey).dtype == np.float32
    assert Preprocess(size=(16, 16)).compact(grey).dtype == np.uint8
    np.testing.assert_allclose(Preprocess(size=(16, 16))(grey), form(grey), atol=0.5 / 255 / 0.25 + 1e-6)


def test_a_loader_is_its_three_steps(tmp_path: Path) -> None:
    Image.fromarray(np.uint8(255 * phantom())).save(tmp_path / "a.jpg")
    loader = ImageLoader(Preprocess(size=(32, 32), channels=3))
    grey, shape = loader.read(tmp_path / "a.jpg")
    seen = loader.expand([loader.shrink(grey, shape)])[0]
    np.testing.assert_array_equal(seen, loader(tmp_path / "a.jpg"))
    assert seen.shape == (3, 32, 32)


def test_one_image_compressed_in_two_ways_is_still_one_row(tmp_path: Path) -> None:
    grey = phantom()
    (tmp_path / "s").mkdir()
    j2k(tmp_path / "s" / "a.dcm", grey)
    j2k(tmp_path / "s" / "b.dcm", grey, plain=True)
    j2k(tmp_path / "s" / "c.dcm", grey[::-1])
    encoder = load_encoder("untrained:conv4")
    report = embed_archive(tmp_path / "s", encoder, tmp_path / "x", workers=0)
    assert (report.embedded, report.duplicate, report.quarantined) == (1, 1, 1)
    assert "with other content: the first was kept" in report.refused[0][1]
    again = embed_archive(tmp_path / "s", encoder, tmp_path / "x", workers=0)
    assert (again.unchanged, again.quarantined) == (2, 1)


def test_sizes_that_make_no_sense_are_refused(tmp_path: Path) -> None:
    for wrong in ((0, 4), (4,)):
        with pytest.raises(ValueError, match="at_least must be"):
            read_reduced(np.zeros((4, 4)), wrong)  # type: ignore[arg-type]
