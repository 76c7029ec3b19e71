"""read_image on PNG, JPEG, TIFF and arrays, and every sentence it refuses with."""

from __future__ import annotations

import hashlib
import os
import pickle
import struct
import threading
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from embeddings import ImageError, image_identity, read_image
from embeddings.quiet import quiet

GREY = (np.arange(12 * 10).reshape(12, 10) * 2).astype(np.uint8)
COLOUR = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)


def save(path: Path, array: np.ndarray, **options: object) -> Path:
    Image.fromarray(array).save(path, **options)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_eight_bit_grey_is_divided_by_255(tmp_path: Path, suffix: str) -> None:
    image = read_image(save(tmp_path / f"a.{suffix}", GREY))
    assert image.dtype == np.float32
    np.testing.assert_allclose(image, GREY / 255.0, atol=1e-6)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bit_grey_is_divided_by_65535(tmp_path: Path, suffix: str) -> None:
    deep = GREY.astype(np.uint16) * 257
    deep[0, 0] = 1
    np.testing.assert_allclose(read_image(save(tmp_path / f"a.{suffix}", deep)), deep / 65535.0, atol=1e-7)


def test_colour_becomes_luminance(tmp_path: Path) -> None:
    expected = np.zeros(COLOUR.shape[:2])
    for row in range(12):
        for column in range(10):
            red, green, blue = (float(value) for value in COLOUR[row, column])
            expected[row, column] = (0.299 * red + 0.587 * green + 0.114 * blue) / 255
    np.testing.assert_allclose(read_image(save(tmp_path / "a.png", COLOUR)), expected, atol=1 / 255)
    np.testing.assert_allclose(read_image(COLOUR), expected, atol=1e-6)


def test_jpeg_is_close_to_what_was_drawn(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    np.testing.assert_allclose(read_image(save(tmp_path / "a.jpg", ramp, quality=95)), ramp / 255.0, atol=0.02)


def test_sixteen_bit_colour_tiff_keeps_its_scale(tmp_path: Path) -> None:
    pixels = np.array([[[0, 0, 0], [65535, 65535, 65535]]], dtype="<u2")
    path = write_tiff(tmp_path / "a.tif", pixels.tobytes(), width=2, height=1, bits=(16, 16, 16), photometric=2)
    np.testing.assert_allclose(read_image(path), [[0.0, 1.0]], atol=1e-3)


def test_transparency_lies_on_black(tmp_path: Path) -> None:
    pixels = np.full((2, 3, 4), 255, dtype=np.uint8)
    pixels[0, :, 3] = (0, 128, 255)
    np.testing.assert_allclose(read_image(save(tmp_path / "a.png", pixels))[0], [0, 128 / 255, 1], atol=1 / 255)
    np.testing.assert_allclose(read_image(pixels)[0], [0, 128 / 255, 1], atol=1e-6)


def test_palette_and_one_bit_images(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).quantize(16).save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png").std() > 0.05
    Image.fromarray(GREY > 100).save(tmp_path / "bits.png")
    np.testing.assert_array_equal(read_image(tmp_path / "bits.png"), (GREY > 100).astype(np.float32))


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    path = save(tmp_path / "a.png", GREY, exif=exif)
    np.testing.assert_allclose(read_image(path), np.rot90(GREY, -1) / 255.0, atol=1e-6)


@pytest.mark.parametrize(("frame", "expected"), [(0, 0), (2, 2), (None, 1)])
def test_multi_page_tiff_takes_the_wanted_page_else_the_middle_one(
    tmp_path: Path, frame: int | None, expected: int
) -> None:
    pages = [Image.fromarray(np.roll(GREY, shift)) for shift in range(3)]
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_allclose(read_image(tmp_path / "a.tif", frame=frame), np.roll(GREY, expected) / 255.0, atol=1e-6)


def test_frame_out_of_range(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", GREY)
    assert read_image(path, frame=0).shape == (12, 10)
    with pytest.raises(ImageError, match="has 1 frame, numbered from 0; frame 1 does not exist"):
        read_image(path, frame=1)
    with pytest.raises(ImageError, match="has 3 frames, numbered from 0; frame -1 does not exist"):
        read_image(np.stack([GREY] * 3), frame=-1)


def write_tiff(path: Path, data: bytes, *, width: int, height: int, bits: tuple[int, ...], photometric: int) -> Path:
    """Write an uncompressed little-endian TIFF by hand: Pillow cannot write these kinds."""
    bits_offset = 8 + 2 + 9 * 12 + 4
    bits_field = struct.pack("<HHII", 258, 3, len(bits), bits_offset if len(bits) > 2 else bits[0])
    fields = [
        struct.pack("<HHII", 256, 4, 1, width),
        struct.pack("<HHII", 257, 4, 1, height),
        bits_field,
        struct.pack("<HHII", 259, 3, 1, 1),
        struct.pack("<HHII", 262, 3, 1, photometric),
        struct.pack("<HHII", 273, 4, 1, bits_offset + 2 * len(bits)),
        struct.pack("<HHII", 277, 3, 1, len(bits)),
        struct.pack("<HHII", 278, 4, 1, height),
        struct.pack("<HHII", 279, 4, 1, len(data)),
    ]
    header = b"II*\0" + struct.pack("<IH", 8, len(fields)) + b"".join(fields) + struct.pack("<I", 0)
    path.write_bytes(header + struct.pack(f"<{len(bits)}H", *bits) + data)
    return path


def test_tiff_where_white_is_zero_is_inverted_at_sixteen_bits_too(tmp_path: Path) -> None:
    pixels = np.array([[0, 65535], [16384, 32768]], dtype="<u2")
    path = write_tiff(tmp_path / "a.tif", pixels.tobytes(), width=2, height=2, bits=(16,), photometric=0)
    np.testing.assert_allclose(read_image(path), 1 - pixels / 65535.0, atol=1e-6)


def test_twelve_bit_tiff_is_divided_by_4095(tmp_path: Path) -> None:
    packed = bytes([0x00, 0x0F, 0xFF])  # 0x000 and 0xFFF
    path = write_tiff(tmp_path / "a.tif", packed, width=2, height=1, bits=(12,), photometric=1)
    np.testing.assert_allclose(read_image(path), [[0.0, 1.0]], atol=1e-6)


def test_content_and_not_the_name_decides(tmp_path: Path) -> None:
    save(tmp_path / "a.png", GREY).rename(tmp_path / "picture.dcm")
    np.testing.assert_allclose(read_image(tmp_path / "picture.dcm"), GREY / 255.0, atol=1e-6)


def test_paths_with_spaces_and_other_alphabets(tmp_path: Path) -> None:
    folder = tmp_path / "Röntgen Ордер 胸部"
    folder.mkdir()
    path = save(folder / "ein Bild é.png", GREY)
    assert read_image(path).shape == read_image(str(path)).shape == (12, 10)


# --- arrays ---------------------------------------------------------------------------------------------------------


def test_arrays_are_scaled_by_their_type() -> None:
    np.testing.assert_allclose(read_image(GREY), GREY / 255.0, atol=1e-6)
    np.testing.assert_allclose(read_image(GREY.astype(np.uint16)), GREY / 65535.0, atol=1e-7)
    np.testing.assert_array_equal(read_image(GREY > 100), (GREY > 100).astype(np.float32))
    unit = (GREY / 300.0).astype(np.float64)
    np.testing.assert_allclose(read_image(unit), unit, atol=1e-6)


def test_arrays_without_a_scale_are_stretched() -> None:
    hounsfield = GREY.astype(np.int16) * 10 - 1000
    expected = (hounsfield - hounsfield.min()) / (hounsfield.max() - hounsfield.min())
    np.testing.assert_allclose(read_image(hounsfield), expected, atol=1e-6)
    np.testing.assert_allclose(read_image(hounsfield.astype(np.float64)), expected, atol=1e-6)


def test_window_is_in_the_arrays_own_units() -> None:
    hounsfield = np.array([[-1000.0, -160.0, 40.0, 240.0, 1000.0]])
    np.testing.assert_allclose(read_image(hounsfield, window=(40, 400)), [[0, 0, 0.5, 1, 1]], atol=1e-6)


def test_array_shapes() -> None:
    assert read_image(np.stack([np.roll(GREY, s) for s in range(4)] + [GREY])).shape == (12, 10)
    np.testing.assert_allclose(read_image(GREY[..., None]), GREY / 255.0, atol=1e-6)
    with pytest.raises(ImageError, match=r"shape \(h, w\), \(h, w, 3 or 4\) or \(frames, h, w\)"):
        read_image(np.zeros(7))
    with pytest.raises(ImageError, match="claims 0 x 5 pixels"):
        read_image(np.zeros((0, 5)))
    with pytest.raises(ImageError, match="holds <U1 values, not numbers"):
        read_image(np.array([["a"]]))


def test_the_callers_array_is_left_as_it_was() -> None:
    array = np.random.default_rng(0).random((5, 6), dtype=np.float32) * 9
    before = array.copy()
    read_image(array)
    read_image(array, window=(4, 2))
    np.testing.assert_array_equal(array, before)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_nan_and_infinite_values(bad: float) -> None:
    array = np.random.default_rng(0).random((5, 6))
    array[2, 3] = bad
    with pytest.raises(ImageError, match="holds NaN or infinite grey levels"):
        read_image(array)


# --- refusals -------------------------------------------------------------------------------------------------------


def test_one_grey_level_is_no_image(tmp_path: Path) -> None:
    path = save(tmp_path / "black.png", np.zeros((9, 9), dtype=np.uint8))
    with pytest.raises(ImageError, match="has the same grey level everywhere: there is nothing to recognise") as caught:
        read_image(path)
    assert caught.value.source == str(path)
    assert str(caught.value) == f"{path}: {caught.value.reason}"
    copy = pickle.loads(pickle.dumps(caught.value))
    assert (copy.source, copy.reason) == (caught.value.source, caught.value.reason)


def test_missing_empty_folder_and_non_image(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "text.png").write_text("not an image at all")
    (tmp_path / "half.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")
    for name, reason in {
        "nothing.png": "there is no such file",
        "empty.png": r"the file is empty \(0 bytes\)",
        "text.png": r"is not an image that can be read \(DICOM, PNG, JPEG",
        "half.png": "is not an image that can be read",
        ".": "is a folder, not an image file",
    }.items():
        with pytest.raises(ImageError, match=reason):
            read_image(tmp_path / name)
    with pytest.raises(ImageError, match="is not a possible path"):
        read_image("a\0b.png")
    with pytest.raises(ImageError, match="int: an image is given as a path or a NumPy array"):
        read_image(3)  # type: ignore[arg-type]


def test_a_pipe_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="is not a regular file"):
        read_image(tmp_path / "pipe.png")


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_truncated_files(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    path = save(tmp_path / f"a.{suffix}", noise)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(ImageError, match=r"truncated|cannot be (decoded|read)"):
        read_image(path)


def test_every_mutation_is_read_or_refused_with_one_line(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (16, 16), dtype=np.uint8)
    for suffix in ("png", "jpg", "tif", "gif", "webp"):
        original = save(tmp_path / f"a.{suffix}", noise).read_bytes()
        for _ in range(40):
            changed = bytearray(original[: rng.integers(1, len(original) + 1)])
            for _ in range(int(rng.integers(0, 4))):
                changed[rng.integers(len(changed))] = rng.integers(256)
            path = tmp_path / "mutant"
            path.write_bytes(changed)
            with warnings.catch_warnings(record=True) as leaked:
                warnings.simplefilter("always")
                try:
                    assert read_image(path).ndim == 2
                except ImageError as error:
                    assert "\n" not in str(error)
            assert [str(warning.message) for warning in leaked] == []


def test_pixel_limit_is_checked_before_decoding(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", GREY)
    with pytest.raises(ImageError, match="has 12 x 10 pixels, more than the 100 allowed by max_pixels"):
        read_image(path, max_pixels=100)
    with pytest.raises(ImageError, match="more than the 100 allowed by max_pixels"):
        read_image(GREY, max_pixels=100)
    for side in (12_000, 60_000):  # below and above Pillow's own threshold for an error
        header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
        bomb = tmp_path / f"{side}.png"
        bomb.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + header + crc(b"IHDR" + header))
        with bomb.open("ab") as stream:
            stream.write(struct.pack(">I", 8) + b"IDAT" + zlib.compress(b"") + crc(b"IDAT" + zlib.compress(b"")))
        with pytest.raises(ImageError, match=r"more (pixels )?than the 50,000,000 allowed by max_pixels"):
            read_image(bomb)


def crc(data: bytes) -> bytes:
    return struct.pack(">I", zlib.crc32(data))


def test_arguments_that_make_no_sense() -> None:
    with pytest.raises(ValueError, match=r"window must be \(centre, width\) with a width above 0; got \(40, 0\)"):
        read_image(GREY, window=(40, 0))
    with pytest.raises(ValueError, match="max_pixels must be at least 1; got 0"):
        read_image(GREY, max_pixels=0)


def test_identity_of_a_picture_is_its_hash(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", GREY)
    identity = image_identity(path)
    assert identity.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert (identity.sop_instance_uid, identity.patient_id, identity.metadata) == (None, None, {})
    with pytest.raises(ImageError, match="there is no such file"):
        image_identity(tmp_path / "b.png")


def test_overlapping_threads_leave_the_warning_filters_as_they_were() -> None:
    before, inside = list(warnings.filters), threading.Event()

    def other() -> None:
        with quiet():
            inside.set()
            leave.wait(5)

    leave, thread = threading.Event(), threading.Thread(target=other)
    with quiet():  # enters first and leaves first, while the other is still inside
        thread.start()
        assert inside.wait(5)
        warnings.warn("kept inside", UserWarning, stacklevel=1)
    leave.set()
    thread.join()
    assert list(warnings.filters) == before
    with pytest.raises(UserWarning):
        warnings.warn("heard", UserWarning, stacklevel=1)
