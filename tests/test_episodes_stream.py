"""Streams of episodes: the right pixels in the right order, whatever the memory layout, and from any episode on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from embeddings import Augmentation
from episodes import Episode, EpisodeError, EpisodeSampler, Manifest, MultiLabelEpisodeSampler, StreamedEpisode
from episodes.pixel_batches import PixelBatches
from episodes.pixel_cache import PixelCache
from episodes.stream import EpisodeBatch, EpisodeStream

RNG = np.random.default_rng(3)
GREY = RNG.integers(0, 256, (60, 12, 16), dtype=np.uint8)
COLOUR = RNG.integers(0, 256, (60, 12, 16, 3), dtype=np.uint8)
LABELS = [f"c{i % 4}" for i in range(60)]


def sampler(n_episodes: int = 11, **options: object) -> EpisodeSampler:
    return EpisodeSampler(LABELS, 3, 2, 4, n_episodes=n_episodes, seed=5, **options)


def expected(pixels: np.ndarray, episode: Episode, mean: list[float], std: list[float]) -> np.ndarray:
    """Images of an episode, one pixel's worth of arithmetic at a time: (n, c, h, w)."""
    images = []
    for part in (*episode.support, *episode.query):
        for row in part:
            grey = pixels[row].astype(np.float64) / 255
            planes = [grey] * len(mean) if grey.ndim == 2 else [grey[..., c] for c in range(len(mean))]
            images.append([(plane - m) / s for plane, m, s in zip(planes, mean, std, strict=True)])
    return np.array(images)


def copies(batches) -> list[tuple[torch.Tensor, EpisodeBatch]]:
    return [(batch.images.clone(), batch) for batch in batches]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("pixels", "mean", "std", "channels"),
    [
        (GREY, 0.4, 0.3, 1),
        (GREY, 0.4, 0.3, 3),
        (GREY, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 3),
        (COLOUR, 0.4, 0.3, 3),
        (COLOUR, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 3),
    ],
)
def test_images_are_the_episodes_support_before_query_and_normalised(
    pixels, mean, std, channels, channels_last
) -> None:
    stream = EpisodeStream(
        pixels, sampler(), mean=mean, std=std, channels=channels, channels_last=channels_last, batch=2
    )
    means = mean if isinstance(mean, list) else [mean] * channels
    stds = std if isinstance(std, list) else [std] * channels
    seen = 0
    for batch in stream:
        assert batch.images.dtype == torch.float32
        layout = torch.channels_last if channels_last else torch.contiguous_format
        assert batch.images.is_contiguous(memory_format=layout)
        wanted = np.concatenate([expected(pixels, target.episode, means, stds) for target in batch.targets])
        assert np.allclose(batch.images.numpy(), wanted, atol=2e-6)
        seen += len(batch.targets)
    assert seen == 11


def test_targets_say_what_each_image_is() -> None:
    episodes = sampler()
    batches = list(EpisodeStream(GREY, episodes, batch=4))
    assert [(batch.start, batch.stop) for batch in batches] == [(0, 4), (4, 8), (8, 11)]
    for batch in batches:
        at = 0
        for number, target in zip(range(batch.start, batch.stop), batch.targets, strict=True):
            drawn = episodes[number]
            assert target.number == number and target.n_way == 3 and target.episode.classes == drawn.classes
            for positions, parts in ((target.support, drawn.support), (target.query, drawn.query)):
                for position in positions.tolist():
                    row = batch.rows[at]
                    assert LABELS[row] == drawn.classes[position] and row in parts[position]
                    at += 1
        assert at == len(batch.rows) == len(batch.images)


def test_a_batch_is_written_over_the_one_before_unless_told_otherwise() -> None:
    reused = [batch.images for batch in EpisodeStream(GREY, sampler())]
    fresh = [batch.images for batch in EpisodeStream(GREY, sampler(), reuse=False)]
    assert len({images.data_ptr() for images in reused}) == 1
    assert len({images.data_ptr() for images in fresh}) == 11
    for images, batch in zip(fresh, EpisodeStream(GREY, sampler()), strict=True):
        assert torch.equal(images, batch.images)


def test_it_goes_on_at_any_episode_augmentation_and_all() -> None:
    stream = EpisodeStream(GREY, sampler(), batch=2, augment=Augmentation(), seed=4, mean=0.5, std=0.25)
    assert len(stream) == 6
    whole = copies(stream)
    assert len(whole) == 6
    for i in (5, 0, 3, -1):
        assert torch.equal(stream[i].images, whole[i][0])
    for (images, _), later in zip(whole[2:5], stream.batches(4, 10), strict=True):
        assert torch.equal(images, later.images)
    other = EpisodeStream(GREY, sampler(), batch=2, augment=Augmentation(), seed=5, mean=0.5, std=0.25)
    assert not torch.allclose(other[0].images, whole[0][0], atol=1e-3)
    with pytest.raises(IndexError, match="There is no batch 6: the stream has 6"):
        stream[6]
    with pytest.raises(IndexError, match="There are no episodes 0 to 11: the sampler has 11"):
        stream.batches(0, 12)
    assert list(stream.batches(11)) == []


def test_augmentation_sees_grey_levels_of_one_and_its_result_is_normalised() -> None:
    seen: list[torch.Tensor] = []

    def darker(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        seen.append(images.clone())
        return images * torch.rand(len(images), 1, 1, 1, generator=generator)

    stream = EpisodeStream(GREY, sampler(), augment=darker, mean=[0.1, 0.2, 0.3], std=[1, 2, 3], channels=3, seed=2)
    batch = stream[3]
    assert np.array_equal(seen[0].numpy(), GREY[batch.rows][:, None] * np.float32(1 / 255))
    for channel, (mean, std) in enumerate(((0.1, 1), (0.2, 2), (0.3, 3))):
        grey = batch.images[:, channel] * std + mean
        share = (grey / seen[0][:, 0]).nan_to_num(0).flatten(1)
        assert (share.amax(1) <= 1).all() and len(set(share.amax(1).tolist())) == len(batch.images)
    with pytest.raises(EpisodeError, match=r"augment must give float32 of shape \(18, 1, 12, 16\); got torch.float64"):
        EpisodeStream(GREY, sampler(), augment=lambda images, _: images.double())[0]
    with pytest.raises(EpisodeError, match="augment needs a generator"):
        PixelBatches(GREY)(np.arange(2), augment=darker)


def test_the_sampler_may_cover_some_rows_only() -> None:
    rows = RNG.permutation(60)[:40]
    part = EpisodeSampler([LABELS[row] for row in rows], 3, 2, 4, n_episodes=6)
    for batch, episode in zip(EpisodeStream(GREY, part, rows=rows), part, strict=True):
        assert batch.rows.tolist() == [int(rows[i]) for own in (*episode.support, *episode.query) for i in own]
        assert np.allclose(batch.images[:, 0].numpy(), GREY[batch.rows] / 255, atol=1e-6)


def test_episodes_of_unequal_sizes_share_buffers() -> None:
    labels = ["a"] * 5 + ["b"] * 30 + ["c"] * 9 + ["d"] * 16
    uneven = EpisodeSampler(labels, 2, 2, 20, n_episodes=20)
    sizes = set()
    for batch in EpisodeStream(GREY, uneven, std=0.5):
        sizes.add(len(batch.images))
        wanted = expected(GREY, batch.targets[0].episode, [0.0], [0.5])
        assert np.allclose(batch.images.numpy(), wanted, atol=2e-6)
    assert len(sizes) > 3


def test_a_read_only_memory_map_will_do(tmp_path: Path) -> None:
    np.save(tmp_path / "pixels.npy", GREY)
    mapped = np.load(tmp_path / "pixels.npy", mmap_mode="r")
    for one, two in zip(EpisodeStream(mapped, sampler()), EpisodeStream(GREY, sampler()), strict=True):
        assert torch.equal(one.images, two.images)


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = []
    for i, pixels in enumerate(GREY):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def test_files_are_decoded_as_they_are_drawn(files: list[Path]) -> None:
    decoded: list[Path] = []

    def decode(path: Path) -> np.ndarray:
        decoded.append(path)
        return np.asarray(Image.open(path))

    labels = [None if i >= 40 else label for i, label in enumerate(LABELS)]
    part = EpisodeSampler(labels, 3, 2, 4, n_episodes=2, seed=5)
    stream = EpisodeStream(files, part, size=(12, 16), decode=decode)
    assert not decoded
    for _ in range(2):
        for batch in stream:
            assert np.allclose(batch.images[:, 0].numpy(), GREY[batch.rows] / 255, atol=1e-6)
    drawn = {int(row) for episode in part for own in (*episode.support, *episode.query) for row in own}
    assert sorted(decoded) == sorted(files[row] for row in drawn)


def test_images_that_cannot_be_read_are_left_out_of_their_episodes(files: list[Path]) -> None:
    lost = {1, 4, 6, 11, 12}
    for row in lost:
        files[row].write_bytes(b"no image")
    cache = PixelCache(files, size=(12, 16))
    stream = EpisodeStream(cache, sampler())
    shorter = 0
    for batch in stream:
        whole, target = stream.sampler[batch.start], batch.targets[0]
        for mine, drawn in zip(
            (*target.episode.support, *target.episode.query), (*whole.support, *whole.query), strict=True
        ):
            assert mine.tolist() == [row for row in drawn.tolist() if row not in lost]
            shorter += len(mine) < len(drawn)
        assert len(batch.images) == len(target.support) + len(target.query) == len(batch.rows)
        assert [LABELS[row] for row in batch.rows] == [
            target.episode.classes[position] for position in (*target.support.tolist(), *target.query.tolist())
        ]
        assert np.allclose(batch.images[:, 0].numpy(), GREY[batch.rows] / 255, atol=1e-6)
    assert shorter > 3
    assert {Path(name) for name, _ in cache.refused} == {files[row] for row in lost}


def test_an_episode_without_support_is_passed_over(files: list[Path]) -> None:
    for row in range(0, 60, 4):  # all of class c0
        files[row].write_bytes(b"no image")
    stream = EpisodeStream(files, sampler(20), size=(12, 16), batch=1)
    left = [batch.start for batch in stream]
    without = [i for i, episode in enumerate(stream.sampler) if "c0" not in episode.classes]
    assert left == without and 0 < len(left) < 20
    gone = next(i for i in range(20) if i not in left)
    with pytest.raises(EpisodeError, match=f"Batch {gone} has no episode left: too many of its images"):
        stream[gone]


@pytest.mark.parametrize("most", [0, 2**22])
def test_the_number_of_threads_is_left_as_it_was(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("episodes.pixel_batches.ALONE", most)
    within: list[int] = []

    def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        within.append(torch.get_num_threads())
        return images

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        batch = EpisodeStream(GREY, sampler(), augment=augment, mean=0.4, std=0.3)[0]
        assert torch.get_num_threads() == 2 and within == [2]
        with pytest.raises(IndexError):
            PixelBatches(GREY)(np.array([60]))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert np.allclose(batch.images.numpy(), expected(GREY, batch.targets[0].episode, [0.4], [0.3]), atol=2e-6)


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(EpisodeError, match="The sampler has 60 images, the stream 59: give one row"):
        EpisodeStream(GREY[:59], sampler())
    with pytest.raises(EpisodeError, match="The sampler has 60 images, the stream 3: give one row"):
        EpisodeStream(GREY, sampler(), rows=np.arange(3))
    with pytest.raises(EpisodeError, match="rows must lie between 0 and 59; got 1 to 60"):
        EpisodeStream(GREY, sampler(), rows=np.arange(1, 61))
    with pytest.raises(EpisodeError, match="batch must be a whole number of at least 1; got 0"):
        EpisodeStream(GREY, sampler(), batch=0)
    with pytest.raises(EpisodeError, match="seed must be a whole number of at least 0; got -1"):
        EpisodeStream(GREY, sampler(), seed=-1)
    with pytest.raises(EpisodeError, match="need a size, in pixels"):
        EpisodeStream(["a.png"] * 60, sampler())
    with pytest.raises(EpisodeError, match="size and decode are for images given as sources"):
        EpisodeStream(GREY, sampler(), size=84)
    with pytest.raises(EpisodeError, match=r"Pixels must be uint8 of shape .*; got float32 of shape \(60, 12, 16\)"):
        EpisodeStream(GREY.astype(np.float32), sampler())
    with pytest.raises(EpisodeError, match="Pixels of 3 channels cannot become images of 1"):
        EpisodeStream(COLOUR, sampler())
    with pytest.raises(EpisodeError, match=r"std must be above 0; got 0"):
        EpisodeStream(GREY, sampler(), std=0.0)
    with pytest.raises(
        EpisodeError, match=r"mean must be one finite number or one per channel \(3\); got \[0.1, 0.2\]"
    ):
        EpisodeStream(GREY, sampler(), mean=[0.1, 0.2], channels=3)
    with pytest.raises(IndexError):
        PixelBatches(GREY)(np.array([60]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("fits", [True, False])
def test_a_cuda_device_gives_the_same(fits: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not fits:
        monkeypatch.setattr("episodes.pixel_batches.DEVICE_SHARE", 0.0)
    there = EpisodeStream(GREY, sampler(), batch=2, mean=0.4, std=0.3, device="cuda", channels_last=True)
    here = EpisodeStream(GREY, sampler(), batch=2, mean=0.4, std=0.3)
    for one, two in zip(there, here, strict=True):
        assert one.images.device.type == one.targets[0].support.device.type == "cuda"
        assert torch.allclose(one.images.cpu(), two.images, atol=1e-6)
    changed = EpisodeStream(GREY, sampler(), augment=Augmentation(), device="cuda", seed=1)
    first = changed[2].images.clone()
    assert torch.equal(first, changed[2].images)


def test_codes_say_which_class_of_the_sampler_each_position_is() -> None:
    episodes = sampler()
    seen = 0
    for batch in EpisodeStream(GREY, episodes, batch=4):
        for target in batch.targets:
            assert isinstance(target, StreamedEpisode) and target.codes.dtype == torch.int64
            assert tuple(episodes.classes[code] for code in target.codes.tolist()) == target.episode.classes
            assert len({LABELS[row] for row in target.episode.support[0]}) == 1
            assert episodes.classes[int(target.codes[0])] == LABELS[target.episode.support[0][0]]
            seen += 1
    assert seen == 11


def test_tables_and_multi_label_episodes_are_refused(tmp_path: Path) -> None:
    table = pd.DataFrame({"image": [f"{i}.png" for i in range(60)], "label": LABELS})
    with pytest.raises(EpisodeError, match=r"takes images: .* a list of paths with a size; got a Manifest: give its i"):
        EpisodeStream(Manifest(table, tmp_path), sampler(), size=12)
    several = MultiLabelEpisodeSampler([(name,) for name in LABELS], 2, 1, 2, n_episodes=2)
    with pytest.raises(EpisodeError, match="takes the episodes of an EpisodeSampler; got a MultiLabelEpisodeSampler"):
        EpisodeStream(GREY, several)
