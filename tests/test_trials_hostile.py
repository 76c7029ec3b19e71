"""Trials of the ingest: damaged files among good ones, bombs, pickles, and memory that does not grow."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRLittleEndian

from embeddings import Archive, ArchiveCorrupt, Index, embed_archive, load_encoder
from embeddings import index as index_module
from embeddings import large_search as large_module
from embeddings import view as view_module

SCALE = float(os.environ.get("RADSHOT_SOAK_SCALE", "1.0"))
"""Share of the long trials' sizes that is run."""

BOMB_MEMORY = 512 << 20
"""What bombs may take beyond the same job without them, in bytes."""

REFUSAL_SECONDS = 2.0
"""How long the refusal of one bomb may take; the test allows five times that, for a machine that is busy."""

GROWTH = 1.1
"""Resident memory of a large job over that of a small one, at most."""

MEASURED = """
import json, resource, sys, time
from embeddings import embed_archive, load_encoder
from embeddings.decoding import close_decoders
encoder = load_encoder("pixels-8")
slowest = [time.monotonic(), 0.0]
def progress(report):
    now = time.monotonic()
    slowest[:] = [now, max(slowest[1], now - slowest[0])]
first = embed_archive(sys.argv[2], encoder, sys.argv[1] + ".first", workers=1, progress=False)
slowest[0] = time.monotonic()
report = embed_archive(sys.argv[1], encoder, sys.argv[1] + ".archive", workers=1, batch_size=int(sys.argv[3]),
                       progress=progress)
close_decoders()
sys.stdout.write(json.dumps({
    "seen": report.seen, "embedded": report.embedded, "refused": list(report.refused), "slowest": slowest[1],
    "seconds": report.seconds,
    "own": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "children": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
}))
"""


def sizes(small: int, soak: int) -> list[Any]:
    """One trial in two sizes."""
    return [small, pytest.param(max(1, int(soak * SCALE)), marks=[pytest.mark.soak, pytest.mark.timeout(3600)])]


def measured(folder: Path, other: Path, *, batch_size: int = 64) -> dict[str, Any]:
    """Ingest two folders in a fresh process; return what the second took."""
    command = [sys.executable, "-c", MEASURED, str(folder), str(other), str(batch_size)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def picture(suffix: str, seed: int, side: int = 24) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, format=suffix)
    return stream.getvalue()


def dicom(seed: int, **changes: Any) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 4096, (24, 24), dtype=np.uint16)
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = pydicom.uid.CTImageStorage
    meta.MediaStorageSOPInstanceUID = f"1.2.3.{seed}"
    meta.TransferSyntaxUID = changes.pop("syntax", ExplicitVRLittleEndian)
    one = FileDataset("", {}, file_meta=meta, preamble=bytes(128))
    one.SOPClassUID, one.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    one.PatientID, one.Modality = f"patient {seed}", "CT"
    one.Rows = one.Columns = 24
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated, one.BitsStored, one.HighBit, one.PixelRepresentation = 16, 12, 11, 0
    one.PixelData = pixels.tobytes()
    for name, value in changes.items():
        setattr(one, name, value)
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, one, enforce_file_format=True)
    return stream.getvalue()


MAKERS: dict[str, Callable[[int], bytes]] = {
    "png": lambda seed: picture("PNG", seed),
    "jpg": lambda seed: picture("JPEG", seed),
    "tif": lambda seed: picture("TIFF", seed),
    "jp2": lambda seed: picture("JPEG2000", seed),
    "dcm": dicom,
}


def damage(good: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(good))
    kind = rng.choice(["flips", "header", "cut", "page", "leave out", "twice", "noise"])
    changed = bytearray(good)
    if kind in ("flips", "header"):
        for _ in range(rng.randrange(1, 12)):
            spot = rng.randrange(min(len(good), 400) if kind == "header" else len(good))
            changed[spot] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        return good[:at]
    elif kind == "page":
        changed[at : at + 128] = rng.randbytes(128)
    elif kind == "leave out":
        del changed[at : at + rng.randrange(1, 64)]
    elif kind == "twice":
        return good[:at] + good[at // 2 :]
    else:
        return good[:12] + rng.randbytes(rng.randrange(1, 2000))
    return bytes(changed)


def trial_r9(folder: Path, kept: list[bytes], hostile: int, kinds: list[tuple[str, bytes]]) -> str:
    """Ingest good files of every kind, then the same among `hostile` damaged ones; nothing good may be lost."""
    seed = 17
    rng = random.Random(seed)
    good = folder / "good"
    good.mkdir(parents=True)
    for number, content in enumerate(kept):
        (good / f"good-{number:03d}").write_bytes(content)
    encoder = load_encoder("pixels-8")
    alone = embed_archive(good, encoder, folder / "alone", workers=2, progress=False)
    assert alone.embedded > len(kept) // 2
    (folder / "bad").mkdir()
    for number in range(hostile):
        suffix, content = rng.choice(kinds)
        (folder / "bad" / f"bad-{number:05d}.{suffix}").write_bytes(damage(content, rng))
    mixed = embed_archive([good, folder / "bad"], encoder, folder / "mixed", workers=2, progress=False)
    assert mixed.seen == mixed.total == hostile + len(kept)
    assert mixed.seen == mixed.embedded + mixed.updated + mixed.duplicate + mixed.unchanged + mixed.quarantined
    assert all(reason and "\n" not in reason for _, reason in mixed.refused)
    assert mixed.quarantined > hostile // 4
    with Archive.open(folder / "alone") as one, Archive.open(folder / "mixed") as two:
        before, after = one.snapshot(), two.snapshot()
        for identity in before.ids:
            vector = after.vectors[after.positions[identity]]
            np.testing.assert_array_equal(vector, before.vectors[before.positions[identity]])
        assert {refusal.path for refusal in two.quarantine()} == {path for path, _ in mixed.refused}
        assert two.verify().ok
    return f"seed {seed}, {hostile} hostile among {len(kept)} good: {mixed}"


@pytest.mark.parametrize("hostile", sizes(500, 10_000))
def test_r9_no_good_file_is_lost_among_damaged_ones(tmp_path: Path, hostile: int) -> None:
    kept = [make(seed) for seed in range(8) for make in MAKERS.values()]
    kinds = [(suffix, make(100 + seed)) for suffix, make in MAKERS.items() for seed in range(4)]
    sys.stdout.write(f"R9: {trial_r9(tmp_path / 'x', kept, hostile, kinds)}\n")


@pytest.mark.soak
@pytest.mark.shared_data
@pytest.mark.timeout(3600)
def test_r9_damaged_copies_of_real_dicom_files(tmp_path: Path, shared_data: Path) -> None:
    files = [path.read_bytes() for path in sorted((shared_data / "dicom_samples").rglob("*.dcm"))]
    hostile = max(1, int(2000 * SCALE))
    said = trial_r9(tmp_path / "x", files, hostile, [("dcm", content) for content in files])
    sys.stdout.write(f"R9, real DICOM: {said}\n")


# -- bombs ------------------------------------------------------------------------------------------------------


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def zeros(mebibytes: int, wbits: int = zlib.MAX_WBITS, before: bytes = b"") -> bytes:
    packer = zlib.compressobj(6, zlib.DEFLATED, wbits)
    parts = [packer.compress(before), *(packer.compress(bytes(1 << 20)) for _ in range(mebibytes)), packer.flush()]
    return b"".join(parts)


def png(side: int, *more: bytes, data: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(more) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def tiff(side: int) -> bytes:
    tags = [(256, 4, side), (257, 4, side), (258, 3, 8), (259, 3, 8), (262, 3, 1), (273, 4, 200), (278, 4, side)]
    tags.append((279, 4, 1000))
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    return head + bytes(200 - len(head)) + zeros(64)


def patched(content: bytes, mark: bytes, at: int, values: bytes) -> bytes:
    spot = content.index(mark) + at
    return content[:spot] + values + content[spot + len(values) :]


def deflated_dicom() -> bytes:
    small = dicom(1, syntax=DeflatedExplicitVRLittleEndian)
    start = 144 + struct.unpack("<I", small[140:144])[0]
    plain = zlib.decompress(small[start:], -zlib.MAX_WBITS)
    header = plain[: plain.rindex(b"\xe0\x7f\x10\x00")]
    size = 600
    element = b"\xe0\x7f\x10\x00OW\0\0" + struct.pack("<I", size << 20)
    return small[:start] + zeros(size, -zlib.MAX_WBITS, header + element)


def bombs() -> dict[str, bytes]:
    jp2 = picture("JPEG2000", 0)
    huge = struct.pack(">II", 60_000, 60_000)
    sized = patched(jp2, b"ihdr", 4, huge)
    sized = patched(sized, b"\xff\x51", 6, huge)
    return {
        "size.png": png(60_000, data=zeros(16)),
        "text.png": png(24, chunk(b"zTXt", b"k\0\0" + zeros(600)), data=zlib.compress(bytes(25 * 24 - 1))),
        "profile.png": png(24, chunk(b"iCCP", b"k\0\0" + zeros(600)), data=zlib.compress(bytes(25 * 24 - 1))),
        "size.tif": tiff(60_000),
        "size.jpg": patched(picture("JPEG", 0), b"\xff\xc0", 5, struct.pack(">HH", 65_000, 65_000)),
        "size.jp2": sized,
        "tile.jp2": patched(sized, b"\xff\x51", 22, huge),
        "deflated.dcm": deflated_dicom(),
        "frames.dcm": dicom(2, Rows=65_535, Columns=65_535, NumberOfFrames=2**31 - 1),
        "rows.dcm": dicom(3, Rows=65_535, Columns=65_535, NumberOfFrames=1),
        "samples.dcm": dicom(4, SamplesPerPixel=65_535),
        "volume.nii.gz": gzip.compress(struct.pack("<i", 348) + bytes(600 << 20), 1),
    }


def test_r10_bombs_are_refused_soon_and_in_bounded_memory(tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "a.png").write_bytes(picture("PNG", 1))
    (tmp_path / "bombs").mkdir()
    for name, content in bombs().items():
        (tmp_path / "bombs" / name).write_bytes(content)
        assert len(content) < 8 << 20
    base = measured(tmp_path / "plain", tmp_path / "plain")
    found = measured(tmp_path / "bombs", tmp_path / "plain", batch_size=1)
    sys.stdout.write(f"R10: {found}\n")
    assert found["seen"] == len(bombs()) == len(found["refused"])
    assert found["own"] - base["own"] < BOMB_MEMORY
    assert found["children"] - base["children"] < BOMB_MEMORY
    assert found["seconds"] < 5 * REFUSAL_SECONDS * len(bombs())


# -- pickles ----------------------------------------------------------------------------------------------------


class Touch:
    """Pickled, it would leave a file behind when loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


def test_r14_no_pickle_among_images_or_in_an_archive_is_loaded(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    plain = pickle.dumps(Touch(mark))
    array = io.BytesIO()
    np.save(array, np.array([Touch(mark)], dtype=object), allow_pickle=True)
    zipped = io.BytesIO()
    np.savez(zipped, a=np.array([Touch(mark)], dtype=object))
    costumes = [plain, array.getvalue(), zipped.getvalue(), gzip.compress(plain), bytes(128) + b"DICM" + plain]
    images = tmp_path / "images"
    images.mkdir()
    for number, content in enumerate(costumes):
        for suffix in ("png", "dcm", "npy", "npz", "pkl", "pt", "nii.gz"):
            (images / f"{number}.{suffix}").write_bytes(content + bytes([number]))
    (images / "good.png").write_bytes(picture("PNG", 1))
    encoder = load_encoder("pixels-8")
    report = embed_archive(images, encoder, tmp_path / "x", workers=1, progress=False)
    assert (report.embedded, report.seen) == (1, 1 + report.quarantined)
    files = [path for path in (tmp_path / "x").rglob("*") if path.is_file() and path.suffix != ".lock"]
    assert files
    for path in files:
        good = path.read_bytes()
        for content in costumes:
            path.write_bytes(content)
            with pytest.raises(Exception, match=r"radshot verify|damaged|backup"), Archive.open(tmp_path / "x") as held:
                held.snapshot()
        path.write_bytes(good)
    assert not mark.exists()
    pickle.loads(plain)
    assert mark.exists()  # it would have worked


def crafted_codes(sound: bytes, **changes: Any) -> bytes:
    """Codes whose header says something else and is signed again."""
    length = struct.unpack("<8sI32s", sound[:44])[1]
    header = json.loads(sound[44 : 44 + length])
    text = changes.pop("text", None) or json.dumps({**header, **changes}).encode()
    return struct.pack("<8sI32s", b"RADSHOTQ", len(text), hashlib.sha256(text).digest()) + text + sound[44 + length :]


def test_r14_crafted_codes_and_faiss_files_are_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FAISS reads no file of an archive; a file of codes that says what is not so is made anew."""
    faiss = pytest.importorskip("faiss")
    monkeypatch.setattr(index_module, "LARGE_ROWS", 50)
    monkeypatch.setattr(large_module, "PROPOSED", 8)
    monkeypatch.setattr(view_module, "QUANTISED_ROWS", 32)
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(200, 16)).astype(np.float32)
    with Archive.create(
        tmp_path / "x", encoder_name="fake", encoder_fingerprint="a" * 64, encoder_spec=None, dim=16
    ) as held:
        held.add([f"{number:03}" for number in range(200)], vectors)
        truth = Index(held).search(vectors[:5], 4).ids
    path = next((tmp_path / "x" / "cache").iterdir())
    segment = next((tmp_path / "x" / "segments").iterdir())
    sound, rows = path.read_bytes(), segment.read_bytes()
    index = faiss.IndexFlatIP(16)
    index.add(vectors[::-1].copy())
    flat = faiss.serialize_index(index).tobytes()
    mark = tmp_path / "mark"
    huge = struct.pack("<8sI32s", b"RADSHOTQ", 2**32 - 1, bytes(32))
    costumes = [
        *(flat, flat[:40], b"IxFI" + struct.pack("<iqqq", 16, 2**62, 0, 0), pickle.dumps(Touch(mark)), huge),
        *(crafted_codes(sound, rows=2**62), crafted_codes(sound, dim=-1), crafted_codes(sound, blocks=7)),
        *(crafted_codes(sound, blocks=[]), crafted_codes(sound, segment="0" * 64), crafted_codes(sound, format="1")),
        *(crafted_codes(sound, farthest="1e"), crafted_codes(sound, longest=None), crafted_codes(sound, text=b"[]")),
        *(crafted_codes(sound, text=b"[" * 100_000), crafted_codes(sound, text=b"\xff"), sound[:44]),
    ]

    def never(*given: Any) -> None:
        raise AssertionError("FAISS was given a file")

    for name in ("read_index", "read_index_binary", "deserialize_index", "read_VectorTransform"):
        monkeypatch.setattr(faiss, name, never)
    for content in costumes:
        path.write_bytes(content)
        with Archive.open(tmp_path / "x") as archive:
            assert Index(archive).search(vectors[:5], 4).ids == truth
            assert path.read_bytes() == sound
        segment.write_bytes(content)
        path.unlink()
        with Archive.open(tmp_path / "x") as archive, pytest.raises(ArchiveCorrupt, match="radshot verify"):
            Index(archive).search(vectors[:5], 4)
        segment.write_bytes(rows)
    assert not mark.exists()


# -- memory -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", sizes(2000, 20_000))
def test_r22_memory_does_not_grow_with_the_number_of_images(tmp_path: Path, images: int) -> None:
    (tmp_path / "few").mkdir()
    (tmp_path / "many").mkdir()
    few = images // 10
    for number in range(images):
        content = picture("PNG", number, side=32)
        (tmp_path / "many" / f"{number}.png").write_bytes(content)
        if number < few:
            (tmp_path / "few" / f"{number}.png").write_bytes(content)
    small, large = measured(tmp_path / "few", tmp_path / "few"), measured(tmp_path / "many", tmp_path / "few")
    assert (small["embedded"], large["embedded"]) == (few, images)
    ratio = large["own"] / small["own"]
    sys.stdout.write(f"R22: {images} images take {ratio:.3f} times the memory of {few}\n")
    assert ratio < GROWTH
