"""The pixel cache: decoded once, never half, found again by the next run; and the decoder of plain image files."""

from __future__ import annotations

import json
import os
import threading
import zlib
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from episodes import EpisodeError, pixel_file
from episodes.decoding import FileDecoder
from episodes.pixel_cache import PixelCache

RNG = np.random.default_rng(8)
PIXELS = RNG.integers(0, 256, (30, 10, 14), dtype=np.uint8)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "images"
    folder.mkdir()
    paths = [folder / f"{i}.png" for i in range(len(PIXELS))]
    for path, pixels in zip(paths, PIXELS, strict=True):
        Image.fromarray(pixels).save(path)
    return paths


class Counting:
    """A decoder that remembers what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, path: Path) -> np.ndarray:
        self.asked.append(path.name)
        return np.asarray(Image.open(path))


def kept_in(folder: Path, files: list[Path], decode: Counting, settings: str = "as they are") -> PixelCache:
    return PixelCache(files, size=(10, 14), decode=decode, settings=settings, folder=folder)


def test_each_image_is_decoded_once_and_only_when_wanted(files: list[Path]) -> None:
    decode = Counting()
    cache = PixelCache(files, size=(10, 14), decode=decode)
    assert len(cache) == 30 and not decode.asked and not cache.kept.size
    rows = np.array([3, 7, 3, 20])
    assert cache.ensure(rows).all()
    assert cache.ensure(rows).all()
    assert sorted(decode.asked) == ["20.png", "3.png", "7.png"]
    assert cache.kept.tolist() == [3, 7, 20] and not cache.complete
    assert np.array_equal(cache.pixels[rows], PIXELS[rows])
    cache.request(np.arange(10))
    done: list[tuple[int, int]] = []
    cache.fill(progress=lambda *so_far: done.append(so_far))
    assert sorted(decode.asked) == sorted(path.name for path in files)
    assert np.array_equal(cache.pixels, PIXELS) and cache.complete
    assert done and done[-1][0] == done[-1][1]
    cache.close()


def test_decoding_goes_on_in_several_threads_at_once(files: list[Path]) -> None:
    meeting = threading.Barrier(3, timeout=10)  # broken unless three images are being decoded at the same time

    def decode(path: Path) -> np.ndarray:
        meeting.wait()
        return np.asarray(Image.open(path))

    with PixelCache(files[:9], size=(10, 14), decode=decode, workers=3) as cache:
        cache.fill()
        assert not cache.refused


def test_bad_files_are_refused_and_listed(files: list[Path]) -> None:
    files[4].write_bytes(b"")
    files[9].write_bytes(files[8].read_bytes()[:60])
    files[11].unlink()
    cache = PixelCache(files, size=(10, 14))
    cache.fill()
    assert [Path(name).name for name, _ in cache.refused] == ["4.png", "9.png", "11.png"]
    assert all(reason and "\n" not in reason for _, reason in cache.refused)
    assert "No such file" in cache.refused[2][1]
    assert cache.kept.tolist() == [i for i in range(30) if i not in (4, 9, 11)] and not cache.complete
    assert cache.ensure(np.array([3, 4, 9])).tolist() == [True, False, False]
    with pytest.raises(EpisodeError, match=r"None of the 2 images could be read; the first: .*4\.png: cannot identify"):
        PixelCache(files, size=(10, 14)).fill(np.array([4, 11]))


def test_the_next_run_finds_the_pixels(files: list[Path], tmp_path: Path) -> None:
    files[5].write_bytes(b"no image")
    first, second = Counting(), Counting()
    with kept_in(tmp_path / "cache", files, first) as cache:
        cache.fill()
        refused = cache.refused
    again = kept_in(tmp_path / "cache", files, second)
    again.fill()
    assert not second.asked and again.refused == refused and len(refused) == 1
    assert isinstance(again.pixels, np.memmap)
    kept = again.kept
    assert np.array_equal(again.pixels[kept], PIXELS[kept]) and len(kept) == 29


def test_other_sources_settings_or_sizes_are_decoded_anew(files: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with kept_in(folder, files, Counting()) as cache:
        cache.fill()
    for other in (
        lambda decode: kept_in(folder, files, decode, settings="another window"),
        lambda decode: kept_in(folder, files[:20], decode),
        lambda decode: kept_in(folder, files[::-1], decode),
    ):
        decode = Counting()
        changed = other(decode)
        changed.fill()
        assert len(decode.asked) == len(changed)
    Image.fromarray(PIXELS[0]).save(files[2])
    os.utime(files[2], ns=(1, 1))
    decode = Counting()
    changed = kept_in(folder, files, decode)
    changed.fill()
    assert len(decode.asked) == 30 and np.array_equal(changed.pixels[2], PIXELS[0])


def test_a_run_that_is_killed_leaves_nothing_half_written(files: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    cache = kept_in(folder, files, Counting())
    cache.ensure(np.arange(12))
    cache.save()
    cache.ensure(np.arange(12, 20))  # decoded, but the run dies before this is recorded
    cache.pixels[15] = 99  # what the disk may hold of it
    decode = Counting()
    after = kept_in(folder, files, decode)
    assert after.kept.tolist() == list(range(12))
    after.fill()
    assert sorted(decode.asked) == sorted(path.name for path in files[12:])
    assert np.array_equal(after.pixels, PIXELS)


@pytest.mark.parametrize(
    "damage",
    [
        "cut record",
        "no record",
        "cut pixels",
        "zeroed pixels",
        "another's record",
        "not a record",
        "nested record",
        "record without checksums",
        "record with too few checksums",
        "record of more images",
    ],
)
def test_damage_is_noticed(damage: str, files: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with kept_in(folder, files, Counting()) as cache:
        cache.fill()
    (record,) = folder.glob("*.json")
    (pixels,) = folder.glob("*.u8")
    text = record.read_text()
    if damage == "cut record":
        record.write_text(text[: len(text) // 2])
    elif damage == "no record":
        record.unlink()
    elif damage == "cut pixels":
        with pixels.open("r+b") as stream:
            stream.truncate(1000)
    elif damage == "zeroed pixels":
        pixels.write_bytes(bytes(pixels.stat().st_size))
    elif damage == "nested record":
        record.write_text("[" * 100_000)
    elif damage == "record without checksums":
        record.write_text(json.dumps({key: value for key, value in json.loads(text).items() if key != "crc32"}))
    elif damage == "record with too few checksums":
        known = json.loads(text)
        record.write_text(json.dumps({**known, "crc32": known["crc32"][8:]}))
    elif damage == "record of more images":
        known = json.loads(text)
        record.write_text(json.dumps({**known, "decoded": known["decoded"] + "ff"}))
    elif damage == "another's record":
        record.write_text(json.dumps({**json.loads(text), "key": "0" * 64}))
    else:
        record.write_text("[1]")
    decode = Counting()
    after = kept_in(folder, files, decode)
    after.fill()
    assert len(decode.asked) == 30 and np.array_equal(after.pixels, PIXELS)


def test_only_the_images_whose_pixels_changed_are_decoded_again(files: list[Path], tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    files[5].write_bytes(b"no image")
    with kept_in(folder, files, Counting()) as cache:
        cache.ensure(np.arange(20))
        cache.save()
        cache.ensure(np.arange(20, 28))  # recorded by another save, the last two images never
    (pixels,) = folder.glob("*.u8")
    held = bytearray(pixels.read_bytes())
    held[3 * 140] ^= 1  # the first pixel of image 3
    held[25 * 140 - 1] ^= 128  # the last of image 24
    held[26 * 140 : 28 * 140] = bytes(2 * 140)
    pixels.write_bytes(held)
    for damaged in ([3, 24, 26, 27], []):  # and what was mended stays so
        decode = Counting()
        with kept_in(folder, files, decode) as after:
            assert after.kept.tolist() == [i for i in range(28) if i not in (5, *damaged)] and not after.complete
            after.ensure(np.arange(28))
            assert sorted(decode.asked) == sorted(f"{i}.png" for i in damaged)
            assert np.array_equal(after.pixels[after.kept], PIXELS[after.kept]) and len(after.refused) == 1


def test_a_record_reads_only_the_images_that_are_new(
    files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summed: list[int] = []

    def crc32(pixels: np.ndarray) -> int:
        summed.append(int(np.flatnonzero((pixels == PIXELS).all((1, 2)))[0]))
        return zlib.crc32(pixels)

    monkeypatch.setattr(pixel_file, "zlib", SimpleNamespace(crc32=crc32))
    with kept_in(tmp_path, files, Counting()) as cache:
        for rows in ([4, 2, 9], [2, 7], []):
            cache.ensure(np.array(rows, dtype=np.intp))
            cache.save()
    assert summed == [2, 4, 9, 7]
    summed.clear()
    with kept_in(tmp_path, files, Counting()) as cache:
        assert summed == [2, 4, 7, 9]  # each once when the file is opened
        cache.ensure(np.arange(9))
    assert summed == [2, 4, 7, 9, 0, 1, 3, 5, 6, 8]


def test_options_that_do_not_fit_are_refused(files: list[Path], tmp_path: Path) -> None:
    with pytest.raises(EpisodeError, match="A pixel cache needs at least one image; got none"):
        PixelCache([], size=8)
    with pytest.raises(EpisodeError, match="workers must be a whole number of at least 1; got 0"):
        PixelCache(files, size=8, workers=0)
    with pytest.raises(EpisodeError, match="A folder with a decode of your own needs settings"):
        PixelCache(files, size=8, decode=Counting(), folder=tmp_path)
    with pytest.raises(EpisodeError, match="A folder keeps images of paths; got ndarray"):
        PixelCache([PIXELS[0]], size=8, folder=tmp_path)
    with pytest.raises(EpisodeError, match=r"decode must give uint8 of shape \(8, 8\); got uint8 of shape \(10, 14\)"):
        PixelCache(files, size=8, decode=Counting()).fill()
    with pytest.raises(EpisodeError, match=r"size must be \(height, width\) or a side, from 1 to 4096 pixels; got \(0"):
        PixelCache(files, size=0)
    with pytest.raises(EpisodeError, match='fit must be "pad" or "stretch"; got \'crop\''):
        FileDecoder((8, 8), fit="crop")
    (tmp_path / "file").write_text("")
    with pytest.raises(EpisodeError, match=r"The pixel cache of 4,200 bytes cannot be kept in .*: .+\."):
        PixelCache(files, size=(10, 14), folder=tmp_path / "file")


def ramp(height: int, width: int) -> np.ndarray:
    """Brighter to the right and to the bottom, smooth enough for any resampling."""
    rows, columns = np.arange(height)[:, None] / height, np.arange(width)[None] / width
    return np.rint(255 * (0.2 + 0.3 * rows + 0.4 * columns)).astype(np.uint8)


@pytest.mark.parametrize("kind", ["jpeg", "png", "colour jpeg", "16-bit png", "transparent png", "palette png"])
def test_files_of_every_kind_come_out_grey_and_of_one_size(kind: str, tmp_path: Path) -> None:
    grey = ramp(400, 320)
    path = tmp_path / f"image.{kind.split()[-1]}"
    if kind == "16-bit png":
        Image.fromarray(grey.astype(np.uint16) * 257).save(path)
    elif kind == "transparent png":
        full = np.full_like(grey, 255)
        Image.fromarray(np.dstack((full, full, full, grey))).save(path)
    elif kind == "colour jpeg":
        Image.fromarray(np.dstack((grey, grey, grey))).save(path, quality=95)
    elif kind == "palette png":
        Image.fromarray(grey).convert("P").save(path)
    else:
        Image.fromarray(grey).save(path, **({"quality": 95} if kind == "jpeg" else {}))
    stretched = FileDecoder((50, 40), fit="stretch")(path)
    assert stretched.shape == (50, 40) and stretched.dtype == np.uint8
    assert np.abs(stretched.astype(int) - ramp(50, 40)).max() <= 4
    padded = FileDecoder((50, 60))(path)
    assert not padded[:, :9].any() and not padded[:, 51:].any()
    assert np.abs(padded[:, 10:50].astype(int) - ramp(50, 40)).max() <= 4


def test_small_images_are_enlarged_and_images_of_the_size_left_alone(tmp_path: Path) -> None:
    Image.fromarray(PIXELS[0]).save(tmp_path / "a.png")
    assert np.array_equal(FileDecoder((10, 14))(tmp_path / "a.png"), PIXELS[0])
    assert FileDecoder((40, 40))(tmp_path / "a.png")[20].all()


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[274] = 3  # upside down
    Image.fromarray(ramp(40, 32)).save(tmp_path / "a.jpg", quality=95, exif=exif)
    found = FileDecoder((40, 32))(tmp_path / "a.jpg")
    assert np.abs(found.astype(int) - ramp(40, 32)[::-1, ::-1]).max() <= 4


def test_grey_levels_without_a_range_are_refused(tmp_path: Path) -> None:
    Image.fromarray(ramp(40, 32).astype(np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(ValueError, match="its grey levels have no known range"):
        FileDecoder((40, 32))(tmp_path / "a.tiff")
    cache = PixelCache([tmp_path / "a.tiff"], size=16)
    assert cache.ensure(np.array([0])).tolist() == [False]
    assert "no known range" in cache.refused[0][1]
