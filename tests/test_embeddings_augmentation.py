"""Augmentation: seeded, bounded, and kind to anatomy."""

from __future__ import annotations

import pytest
import torch

from embeddings import NO_AUGMENTATION, Augmentation

STRONG = Augmentation(25, 0.2, 0.4, 0.4, 0.6, 0.8, 0.2, 0.9, 0.0)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(n: int = 16, h: int = 32, w: int = 32) -> torch.Tensor:
    return torch.rand(n, 1, h, w, generator=generator(9))


def only(**change: float) -> Augmentation:
    return Augmentation(**{**dict.fromkeys(Augmentation.__dataclass_fields__, 0.0), **change})


def centroid(picture: torch.Tensor) -> tuple[float, float]:
    """Centre of brightness of (h, w), in pixels: row, column."""
    rows, columns = torch.arange(picture.shape[0]) * 1.0, torch.arange(picture.shape[1]) * 1.0
    return float((picture.sum(1) * rows).sum() / picture.sum()), float((picture.sum(0) * columns).sum() / picture.sum())


def spot(n: int, h: int, w: int, row: float, column: float, width: float = 2.0) -> torch.Tensor:
    rows, columns = torch.arange(h)[:, None] - row, torch.arange(w)[None, :] - column
    return torch.exp(-(rows**2 + columns**2) / (2 * width**2)).expand(n, 1, h, w)


def test_the_same_generator_gives_the_same_images_and_another_does_not() -> None:
    assert torch.equal(STRONG(images(), generator(1)), STRONG(images(), generator(1)))
    assert not torch.equal(STRONG(images(), generator(1)), STRONG(images(), generator(2)))


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    STRONG(images(), generator())
    assert torch.equal(torch.get_rng_state(), before)


def test_the_given_images_are_left_alone_and_each_is_changed_on_its_own() -> None:
    same = images(1).expand(8, 1, 32, 32).contiguous()
    kept = same.clone()
    changed = Augmentation()(same, generator())
    assert torch.equal(same, kept)
    assert len({tuple(picture.flatten().tolist()) for picture in changed}) == 8


@pytest.mark.parametrize("size", [(32, 32), (24, 40)])
def test_no_augmentation_is_the_identity(size: tuple[int, int]) -> None:
    given = images(16, *size)
    assert torch.allclose(NO_AUGMENTATION(given, generator()), given, atol=1e-5)


def test_grey_levels_stay_within_their_range() -> None:
    changed = STRONG(images(64), generator())
    assert changed.shape == (64, 1, 32, 32) and changed.dtype == torch.float32
    assert float(changed.min()) >= 0 and float(changed.max()) <= 1
    assert torch.isfinite(changed).all()


def test_left_stays_left_by_default() -> None:
    left = torch.zeros(200, 1, 32, 32)
    left[..., :16] = 0.8
    changed = Augmentation()(left, generator())
    assert (changed[..., :16].mean((1, 2, 3)) > changed[..., 16:].mean((1, 2, 3)) + 0.2).all()


def test_a_flip_is_made_only_where_it_is_asked_for() -> None:
    given = images()
    assert torch.allclose(only(horizontal_flip=1.0)(given, generator()), given.flip(3), atol=1e-5)
    left = torch.zeros(400, 1, 32, 32)
    left[..., :16] = 0.8
    flipped = only(horizontal_flip=0.5)(left, generator())
    share = (flipped[..., 16:].mean((1, 2, 3)) > 0.5).float().mean()
    assert 0.4 < float(share) < 0.6


def test_a_shift_is_bounded_by_its_share_of_the_side_and_reaches_it() -> None:
    changed = only(shift=0.1)(spot(300, 40, 60, 19.5, 29.5), generator())
    moved = torch.tensor([centroid(picture[0]) for picture in changed]) - torch.tensor([19.5, 29.5])
    assert float(moved[:, 0].abs().max()) <= 4.0 + 0.05 and float(moved[:, 1].abs().max()) <= 6.0 + 0.05
    assert float(moved[:, 0].abs().max()) > 3.5 and float(moved[:, 1].abs().max()) > 5.5
    assert float(moved[:, 0].min()) < -3 and float(moved[:, 0].max()) > 3


@pytest.mark.parametrize("size", [(48, 48), (32, 64)])
def test_a_turn_keeps_distances_and_is_bounded(size: tuple[int, int]) -> None:
    h, w = size
    row, column = (h - 1) / 2, (w - 1) / 2 + 10.0
    changed = only(rotation=30.0)(spot(200, h, w, row, column), generator())
    moved = torch.tensor([centroid(picture[0]) for picture in changed]) - torch.tensor([(h - 1) / 2, (w - 1) / 2])
    assert moved.norm(dim=1) == pytest.approx(10.0, abs=0.25)  # a turn of pixels, also where the image is no square
    angles = torch.rad2deg(torch.atan2(moved[:, 0], moved[:, 1])).abs()
    assert float(angles.max()) <= 30.5 and float(angles.max()) > 27


def test_a_zoom_is_bounded_both_ways() -> None:
    changed = only(zoom=0.25)(spot(200, 48, 48, 23.5, 33.5), generator())
    reach = torch.tensor([centroid(picture[0])[1] - 23.5 for picture in changed])
    assert 7.9 <= float(reach.min()) < 8.3 and 12.2 < float(reach.max()) <= 12.6


def test_brightness_contrast_and_gamma_are_bounded() -> None:
    flat = torch.full((200, 1, 8, 8), 0.5)
    brighter = only(brightness=0.2)(flat, generator()).mean((1, 2, 3)) - 0.5
    # The outermost pixels may lose a rounding error to the black outside; nothing visible.
    assert float(brighter.abs().max()) <= 0.2001 and float(brighter.max()) > 0.18 and float(brighter.min()) < -0.18
    gamma = torch.log(only(gamma=0.3)(flat, generator()).mean((1, 2, 3))) / torch.log(torch.tensor(0.5))
    assert float(torch.log(gamma).abs().max()) <= 0.301 and float(torch.log(gamma).abs().max()) > 0.27
    two = torch.full((200, 1, 8, 8), 0.4)
    two[..., 4:] = 0.6
    spread = only(contrast=0.5)(two, generator())
    gap = (spread[..., 4:] - spread[..., :4]).mean((1, 2, 3)) / 0.2
    assert 0.49 <= float(gap.min()) < 0.55 and 1.45 < float(gap.max()) <= 1.51


def test_noise_is_as_strong_as_said() -> None:
    noisy = only(noise=0.1)(torch.full((300, 1, 16, 16), 0.5), generator())
    spread = noisy.std((1, 2, 3))
    assert 0.09 < float(spread.max()) < 0.12 and float(spread.min()) < 0.01


def test_erase_fills_one_small_rectangle_with_the_mean() -> None:
    given = images(50, 40, 40)
    erased = only(erase=1.0)(given, generator())
    for before, after in zip(given[:, 0], erased[:, 0], strict=True):
        hit = (before - after).abs() > 1e-4
        rows, columns = hit.any(1).nonzero().flatten(), hit.any(0).nonzero().flatten()
        height, width = int(rows[-1] - rows[0] + 1), int(columns[-1] - columns[0] + 1)
        assert 2 <= height <= 11 and 2 <= width <= 11
        patch = after[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert float(patch.max() - patch.min()) < 1e-4
        assert float(patch.mean()) == pytest.approx(float(before.mean()), abs=1e-4)
    share = ((only(erase=0.3)(images(400), generator()) - images(400)).abs().amax((1, 2, 3)) > 1e-3).float().mean()
    assert 0.22 < float(share) < 0.38


@pytest.mark.parametrize("name", ["rotation", "shift", "zoom", "brightness", "contrast", "gamma", "noise"])
def test_negative_and_infinite_amounts_are_refused(name: str) -> None:
    for value in (-0.1, float("nan"), float("inf")):
        with pytest.raises(
            ValueError, match=rf"^Augmentation's {name} must be finite and not negative; got {value}\.$"
        ):
            Augmentation(**{name: value})


@pytest.mark.parametrize("name", ["erase", "horizontal_flip"])
def test_probabilities_are_probabilities(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^Augmentation's {name} must lie in \[0, 1\]; got 1\.5\.$"):
        Augmentation(**{name: 1.5})
