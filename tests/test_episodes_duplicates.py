"""Copies are found however resized or brightened; different pictures are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from episodes import EpisodeError, ImageHashes, Manifest, difference_hash, hash_images, near_duplicates


def picture(seed: int, size: int = 200) -> np.ndarray:
    """Smooth blobs, as anatomy is."""
    coarse = np.random.default_rng(seed).random((9, 9)).astype(np.float32)
    return np.asarray(Image.fromarray(coarse).resize((size, size), Image.Resampling.BICUBIC))


def bits(image: np.ndarray) -> np.ndarray:
    return np.unpackbits(difference_hash(image).astype(">u8").view(np.uint8))


def test_hash_is_the_sign_of_the_gradient() -> None:
    # An image of exactly 17 x 16 pixels is not resized: the definition can be read off.
    levels = np.random.default_rng(0).integers(0, 256, (16, 17))
    levels[0, :2] = 0, 255
    by_hand = [int(levels[y, x + 1] > levels[y, x]) for y in range(16) for x in range(16)]
    assert bits(levels).tolist() == by_hand
    assert difference_hash(levels).shape == (4,)
    ramp = np.tile(np.arange(64.0), (64, 1))
    assert bits(ramp).sum() == 256
    assert bits(ramp[:, ::-1]).sum() == 0
    assert bits(ramp.T).sum() == 0


def test_copies_are_found_and_strangers_are_not() -> None:
    rng = np.random.default_rng(5)
    originals = [picture(seed) for seed in range(30)]
    resized = np.asarray(Image.fromarray(originals[3]).resize((120, 90)))
    brighter = originals[7] * 1000 - 400
    noisy = originals[11] + rng.normal(0, 0.01, originals[11].shape)
    flipped = originals[15][:, ::-1]
    hashes = hash_images([*originals, resized, brighter, noisy, flipped])
    report = near_duplicates(hashes)
    assert {(pair.first, pair.second) for pair in report.pairs} == {("3", "30"), ("7", "31"), ("11", "32")}
    assert all(pair.distance <= 24 and pair.correlation >= 0.985 for pair in report.pairs)
    assert report.pairs[0].distance <= report.pairs[-1].distance
    assert str(report) == "34 images, 3 near-duplicate pairs: patients unknown"


def test_blocks_agree_with_a_slow_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    base = rng.integers(0, 2, (20, 256))
    rows = base[rng.integers(0, 20, 150)] ^ (rng.random((150, 256)) < 0.06)
    packed = np.packbits(rows.astype(np.uint8), axis=1).view(">u8").astype(np.uint64)
    hashes = ImageHashes(packed, rng.integers(0, 256, (150, 32, 32), dtype=np.uint8))
    expected = {
        (str(i), str(j)): int((rows[i] != rows[j]).sum())
        for i in range(150)
        for j in range(i + 1, 150)
        if (rows[i] != rows[j]).sum() <= 24
    }
    assert expected
    for block in (256, 7):
        monkeypatch.setattr("episodes.duplicates._BLOCK", block)
        found = near_duplicates(hashes, min_correlation=-1)
        assert {(pair.first, pair.second): pair.distance for pair in found.pairs} == expected
        for pair in found.pairs[:20]:
            one, two = (hashes.thumbnails[int(name)].ravel().astype(float) for name in (pair.first, pair.second))
            assert pair.correlation == pytest.approx(np.corrcoef(one, two)[0, 1], abs=1e-4)
    assert not near_duplicates(hashes).pairs  # thumbnails of noise do not correlate


def test_report_tells_patients_and_splits_apart() -> None:
    images = [picture(0), picture(0), picture(0, 150), picture(1), np.zeros((9, 9)), np.ones((5, 5))]
    report = near_duplicates(
        hash_images(images),
        ids=["a|1", "a2", "a3", "b", "black", "white"],
        groups=["p", "p", "q", "r", "s", "t"],
        splits=["train", "test", "train", "train", "train", "train"],
    )
    across = {(pair.first, pair.second) for pair in report.across_patients}
    assert across == {("a|1", "a3"), ("a2", "a3"), ("black", "white")}
    assert {(pair.first, pair.second) for pair in report.across_splits} == {("a|1", "a2"), ("a2", "a3")}
    assert str(report) == "6 images, 4 near-duplicate pairs: 3 across patients, 2 across splits"
    text = report.to_markdown(rows=3)
    assert text.splitlines()[6].startswith("| a2 | a3 | ")
    assert "a\\|1" in text and "1 more pairs are not listed." in text
    assert report.to_dict()["across_patients"] == 3
    assert len(report.to_dict()["pairs"]) == 4
    none = near_duplicates(hash_images([]))
    assert none.to_markdown() == "## Near-duplicates\n\n0 images, 0 near-duplicate pairs: patients unknown.\n"


def test_refusals() -> None:
    with pytest.raises(EpisodeError, match=r"must be \(h, w\) grey levels; got shape \(4, 4, 3\)"):
        difference_hash(np.zeros((4, 4, 3)))
    with pytest.raises(EpisodeError, match=r"grey levels; got shape \(0, 4\)"):
        difference_hash(np.zeros((0, 4)))
    with pytest.raises(EpisodeError, match="finite grey levels; it has NaN or infinity"):
        difference_hash(np.full((4, 4), np.nan))
    hashes = hash_images([picture(0), picture(1)])
    with pytest.raises(EpisodeError, match="There are 1 ids for 2 hashed images"):
        near_duplicates(hashes, ids=["a"])
    with pytest.raises(EpisodeError, match="There are 3 splits for 2 hashed images"):
        near_duplicates(hashes, splits=[1, 2, 3])
    with pytest.raises(EpisodeError, match="one patient per image: got 1 for 2"):
        near_duplicates(hashes, groups=["a"])


def read_grey(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("folder", "group", "across", "pairs"),
    [
        # Chest radiographs of two raw patient numbers each that the data's README says are the same two persons.
        ("covid_chestxray", "patient_id", 4, 7),
        ("covid_chestxray", "split_group", 0, 7),
        ("nih_cxr", "patient_id", 0, 0),
    ],
)
def test_shared_radiographs(shared_data: Path, folder: str, group: str, across: int, pairs: int) -> None:
    manifest = Manifest.read(shared_data / folder / "manifest.csv", label=None, group=group)
    hashes = hash_images(manifest.images, read_grey)
    report = near_duplicates(hashes, groups=manifest.groups, splits=manifest.table["fold"].tolist())
    assert (len(report.across_patients), len(report.pairs), len(report.across_splits)) == (across, pairs, 0)
    # The manifest's own hashes, made from the images before they were reduced, follow the same convention.
    theirs = np.array([np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8)) for text in manifest.table["dhash"]])
    ours = np.unpackbits(hashes.bits.astype(">u8").view(np.uint8).reshape(-1, 32), axis=1)
    apart = (theirs != ours).sum(axis=1)
    assert apart.mean() < 4 and apart.max() <= 24
