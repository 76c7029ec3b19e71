"""Reduced images cover the whole image's area; averaging over blocks; what must be neither reduced nor averaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
)

from embeddings import ImageError, Preprocess, read_image
from embeddings.codestream import decode_reduced
from embeddings.images import BLOCK_MARGIN, read_reduced
from embeddings.reduction import block_mean, on_whole_grid
from episodes.phantoms import draw_phantom


def phantom(height: int, width: int) -> NDArray[np.float32]:
    return draw_phantom((), patient=5, size=(height, width))


def write(path: Path, stored: NDArray[Any], syntax: str = ExplicitVRLittleEndian, bits: int = 12, **more: Any) -> Path:
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = "1.2.3.4"
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.Rows, data.Columns = stored.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated, data.BitsStored, data.HighBit = 8 * stored.itemsize, bits, bits - 1
    data.WindowCenter, data.WindowWidth = 2 ** (bits - 1), 2**bits
    data.PixelData = stored.tobytes()
    for key, value in more.items():
        if value is None:
            delattr(data, key)
        else:
            setattr(data, key, value)
    if syntax != ExplicitVRLittleEndian:
        data.compress(syntax, generate_instance_uid=False)
    data.save_as(path, enforce_file_format=True)
    return path


def stored_phantom(height: int = 512, width: int = 512, bits: int = 12) -> NDArray[Any]:
    levels = np.rint(phantom(height, width) * (2**bits - 1))
    return levels.astype(np.uint8 if bits <= 8 else np.uint16)


def likeness(first: NDArray[Any], second: NDArray[Any]) -> float:
    a, b = (picture.astype(np.float64) - picture.mean() for picture in (first, second))
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


@pytest.mark.parametrize(("shape", "factor", "offset"), [((13, 10), 2, 0.25), ((21, 24), 4, 0.375), ((15, 15), 4, 0.0)])
def test_the_whole_grid_against_a_slow_loop(shape: tuple[int, int], factor: int, offset: float) -> None:
    rows, columns = (-(-length // factor) for length in shape)
    values = np.random.default_rng(0).integers(0, 4096, (rows, columns)).astype(np.uint16)

    def slowly(line: NDArray[np.float64], length: int) -> NDArray[np.float64]:
        line = np.append(line, line[-1])
        out = []
        for place in range(len(line) - 1):
            # the middle of part `place` of the whole, counted in reduced pixels whose middles are at 0, 1, 2 ...
            at = offset + (place + 0.5) * length / factor / (len(line) - 1) - 0.5
            low = int(np.floor(at))
            low_value, high_value = line[max(low, 0)], line[min(low + 1, len(line) - 1)]
            out.append(low_value + (at - low) * (high_value - low_value))
        return np.asarray(out)

    expected = np.stack([slowly(row, shape[1]) for row in values.astype(np.float64)])
    expected = np.stack([slowly(column, shape[0]) for column in expected.T]).T
    moved = on_whole_grid(values, shape, factor, offset)
    assert moved.shape == values.shape and moved.dtype == values.dtype
    np.testing.assert_allclose(moved, expected, atol=1.0)  # rounding, and Pillow's weights


def test_block_means_against_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    for kind, low, high in ((np.uint8, 0, 256), (np.uint16, 0, 65536), (np.int16, -32768, 32768)):
        values = rng.integers(low, high, (32, 48)).astype(kind)
        for side, n in ((16, 2), (8, 4), (5, 4), (4, 8), (1, 8)):
            means = block_mean(values, side)
            assert means.dtype == np.float32 and means.shape == (32 // n, 48 // n)
            for row in range(32 // n):
                for column in range(48 // n):
                    block = [int(values[row * n + i, column * n + j]) for i in range(n) for j in range(n)]
                    assert means[row, column] == np.float32(sum(block) / n**2)
    extreme = np.full((16, 16), 65535, dtype=np.uint16)
    assert (block_mean(extreme, 2) == 65535).all()


def test_what_cannot_be_averaged_is_returned_as_it_is() -> None:
    for values in (
        np.zeros((32, 33), np.uint16),
        np.zeros((32, 32), np.float32),
        np.zeros((32, 32, 3), np.uint8),
        np.zeros((32, 32), np.uint32),
    ):
        assert block_mean(values, 4) is values
    small = np.zeros((30, 32), np.uint8)
    assert block_mean(small, 16) is small


@pytest.mark.parametrize("shape", [(449, 450), (513, 515), (430, 401), (767, 522)])
@pytest.mark.parametrize("side", [24, 50, 100])
def test_jpeg_2000_of_any_size_is_reduced_in_its_place(tmp_path: Path, shape: tuple[int, int], side: int) -> None:
    path = write(tmp_path / "a.dcm", stored_phantom(*shape), JPEG2000Lossless)
    form = Preprocess(size=(side, side))
    small, whole = read_reduced(path, form.size)
    assert whole == shape and min(small.shape) >= 2 * side
    assert max(small.shape) <= -(-max(shape) // 2), "nothing was left out"
    assert likeness(form.compact(small, whole), form.compact(read_image(path))) > 0.999


@pytest.mark.parametrize("size", [512, 509])
@pytest.mark.parametrize("kind", ["JPEG", "JPEG 2000", "uncompressed"])
def test_a_reduced_edge_stays_where_it_is(tmp_path: Path, kind: str, size: int) -> None:
    stored = np.full((size, size), 50, dtype=np.uint8)
    stored[:300, 200:] = 200
    if kind == "JPEG":
        path = tmp_path / "a.jpg"
        Image.fromarray(stored).save(path, quality=98)
    else:
        path = write(tmp_path / "a.dcm", stored, JPEG2000Lossless if kind == "JPEG 2000" else ExplicitVRLittleEndian, 8)
    small, _ = read_reduced(path, (30, 30))
    assert small.shape == ((64, 64) if kind != "uncompressed" else (128, 128) if size == 512 else (509, 509))
    dark, bright = small[-9, -9], small[9, -9]
    part = (small - dark) / (bright - dark)  # of a pixel that is bright
    assert part[9].mean() * size == pytest.approx(size - 200, abs=0.3)
    assert part[:, -9].mean() * size == pytest.approx(300, abs=0.3)


@pytest.mark.parametrize("shape", [(449, 450), (511, 509)])
def test_jpeg_of_any_size_is_reduced_in_its_place(tmp_path: Path, shape: tuple[int, int]) -> None:
    Image.fromarray(stored_phantom(*shape, bits=8)).save(tmp_path / "a.jpg", quality=95)
    form = Preprocess(size=(28, 28))
    small, whole = read_reduced(tmp_path / "a.jpg", form.size)
    assert small.shape == (-(-shape[0] // 8), -(-shape[1] // 8)) and whole == shape
    assert likeness(form.compact(small, whole), form.compact(read_image(tmp_path / "a.jpg"))) > 0.9993


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEGLSLossless])
@pytest.mark.parametrize("bits", [8, 12, 16])
def test_frames_decoded_whole_are_averaged_before_the_window(tmp_path: Path, syntax: str, bits: int) -> None:
    path = write(tmp_path / "a.dcm", stored_phantom(bits=bits), syntax, bits)
    form = Preprocess(size=(30, 30))
    small, whole = read_reduced(path, form.size)
    assert small.shape == (128, 128) and min(small.shape) >= BLOCK_MARGIN * 30 and whole == (512, 512)
    np.testing.assert_allclose(small, read_image(path).reshape(128, 4, 128, 4).mean(axis=(1, 3)), atol=1e-3)
    assert likeness(form.compact(small, whole), form.compact(read_image(path))) > 0.999
    assert read_reduced(path, None)[0].shape == (512, 512)


def test_monochrome1_rescaling_and_a_given_window_come_after_the_average(tmp_path: Path) -> None:
    stored = stored_phantom()
    more = {"PhotometricInterpretation": "MONOCHROME1", "RescaleSlope": 2, "RescaleIntercept": -1024}
    path = write(tmp_path / "a.dcm", stored, WindowCenter=3000, WindowWidth=9000, **more)
    for window in (None, (3000.0, 9000.0)):
        small, _ = read_reduced(path, (30, 30), window=window)
        whole = read_image(path, window=window)
        np.testing.assert_allclose(small, whole.reshape(128, 4, 128, 4).mean(axis=(1, 3)), atol=1e-4)


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_frames_without_a_window_are_stretched_as_a_whole(tmp_path: Path, syntax: str) -> None:
    stored = stored_phantom() // 2
    stored[7, 9] = 4095  # one hot pixel sets the scale, and goes on doing so
    path = write(tmp_path / "a.dcm", stored, syntax, WindowCenter=None, WindowWidth=None)
    np.testing.assert_array_equal(read_reduced(path, (30, 30))[0], read_image(path))
    given, _ = read_reduced(path, (30, 30), window=(2048, 4096))
    assert max(given.shape) <= 128


def test_values_that_are_no_amounts_are_not_averaged(tmp_path: Path) -> None:
    stored = stored_phantom()
    table = Dataset()
    table.LUTDescriptor, table.ModalityLUTType = [4096, 0, 16], "US"
    table.add_new("LUTData", "OW", np.arange(4096, dtype=np.uint16).tobytes())
    for name, more in {"table": {"ModalityLUTSequence": [table]}, "padding": {"PixelPaddingValue": 0}}.items():
        path = write(tmp_path / f"{name}.dcm", stored, **more)
        np.testing.assert_array_equal(read_reduced(path, (30, 30))[0], read_image(path))


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless, JPEG2000Lossless])
def test_palette_indexes_are_never_blended(tmp_path: Path, syntax: str) -> None:
    stored = np.random.default_rng(0).integers(0, 2, (256, 256)).astype(np.uint8) * 200
    more: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR", "WindowCenter": None, "WindowWidth": None}
    colours = np.zeros(256, dtype="<u2")
    colours[100] = 65535  # what the two indexes that are used would be blended to
    colours[200] = 30000
    for colour in ("Red", "Green", "Blue"):
        more[f"{colour}PaletteColorLookupTableDescriptor"] = [256, 0, 16]
        more[f"{colour}PaletteColorLookupTableData"] = colours.tobytes()
    path = write(tmp_path / "a.dcm", stored, syntax, 8, **more)
    reduced, _ = read_reduced(path, (16, 16))
    np.testing.assert_array_equal(reduced, read_image(path))
    assert reduced.max() < 0.5


def test_a_frame_smaller_than_its_header_is_refused_as_when_read_whole(tmp_path: Path) -> None:
    small = pydicom.dcmread(write(tmp_path / "small.dcm", stored_phantom(256, 256), JPEG2000Lossless))
    data = pydicom.dcmread(write(tmp_path / "a.dcm", stored_phantom(), JPEG2000Lossless))
    frame = get_frame(small.PixelData, 0, number_of_frames=1)
    assert decode_reduced(frame, data, 40) is None and decode_reduced(frame, small, 40) is not None
    data.PixelData = encapsulate([frame])
    data.save_as(tmp_path / "a.dcm")
    for read in (lambda: read_image(tmp_path / "a.dcm"), lambda: read_reduced(tmp_path / "a.dcm", (20, 20))):
        with pytest.raises(ImageError, match="its pixel data are truncated or damaged"):
            read()


def test_a_codestream_that_does_not_begin_at_the_origin_is_decoded_whole(tmp_path: Path) -> None:
    data = pydicom.dcmread(write(tmp_path / "a.dcm", stored_phantom(), JPEG2000Lossless))
    frame = bytearray(get_frame(data.PixelData, 0, number_of_frames=1))
    start = frame.find(b"\xff\x4f\xff\x51")
    assert decode_reduced(bytes(frame), data, 40) is not None
    for at in (8, 16):  # XOsiz and the right edge: the width stays
        value = int.from_bytes(frame[start + at : start + at + 4], "big") + 1
        frame[start + at : start + at + 4] = value.to_bytes(4, "big")
    assert decode_reduced(bytes(frame), data, 40) is None
