"""Preprocess: geometry, antialiasing, normalisation against loops, and what it refuses."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from embeddings import Preprocess

IMAGE = np.random.default_rng(0).random((40, 60), dtype=np.float32)


def test_pad_keeps_the_aspect_ratio_on_black() -> None:
    out = Preprocess(size=(30, 30)).resize(np.ones((40, 60), np.float32))
    assert out.shape == (30, 30)
    assert (out[5:25] == 1).all()
    assert (out[:5] == 0).all() and (out[25:] == 0).all()


def test_crop_keeps_the_aspect_ratio_and_the_centre() -> None:
    image = np.zeros((40, 60), np.float32)
    image[:, 10:50] = 1  # the central square
    assert (Preprocess(size=(20, 20), fit="crop").resize(image)[:, 1:-1] == 1).all()
    for shape in ((41, 60), (40, 61), (97, 13), (1, 5)):
        assert Preprocess(size=(20, 17), fit="crop").resize(np.ones(shape, np.float32)).shape == (20, 17)


def test_stretch_gives_up_the_aspect_ratio() -> None:
    image = np.zeros((40, 60), np.float32)
    image[:20] = 1
    out = Preprocess(size=(8, 4), fit="stretch").resize(image)
    assert out.shape == (8, 4)
    assert (out[:3] == 1).all() and (out[5:] == 0).all()  # the two rows at the edge are antialiased


def test_reduction_is_antialiased() -> None:
    checkerboard = np.indices((64, 64)).sum(axis=0).astype(np.float32) % 2
    np.testing.assert_allclose(Preprocess(size=(8, 8)).resize(checkerboard), 0.5, atol=0.02)


def test_an_image_of_the_right_size_is_untouched_and_copied() -> None:
    out = Preprocess(size=(40, 60)).resize(IMAGE)
    np.testing.assert_array_equal(out, IMAGE)
    out[:] = 7
    assert IMAGE.max() <= 1


def test_contrast() -> None:
    dull = IMAGE * 0.2 + 0.4
    dull[0, 0] = 1.0  # a marker
    assert Preprocess(size=(40, 60)).resize(dull)[1:].max() < 0.61
    sharp = Preprocess(size=(40, 60), contrast="minmax").resize(dull)
    np.testing.assert_allclose(sharp, (dull - dull.min()) / (dull.max() - dull.min()), atol=1e-6)
    robust = Preprocess(size=(40, 60), contrast="percentile").resize(dull)
    low, high = np.percentile(dull, [1, 99])
    np.testing.assert_allclose(robust, np.clip((dull - low) / (high - low), 0, 1), atol=1e-5)
    dots = np.zeros((40, 60), np.float32)
    dots[3, 3] = 0.5  # both percentiles are 0: the whole range counts
    assert Preprocess(size=(40, 60), contrast="percentile").resize(dots).max() == 1
    assert (Preprocess(size=(40, 60), contrast="minmax").resize(np.full((9, 9), 0.3, np.float32)) >= 0).all()


@pytest.mark.parametrize(
    ("channels", "mean", "std"), [(1, (0.4,), (0.2,)), (3, (0.5,), (0.25,)), (3, (0.1, 0.2, 0.3), (1.0, 2.0, 4.0))]
)
def test_normalise_agrees_with_a_loop(channels: Any, mean: Any, std: Any) -> None:
    preprocess = Preprocess(size=(3, 4), channels=channels, mean=mean, std=std)
    batch = np.random.default_rng(0).integers(0, 256, (2, 3, 4), dtype=np.uint8)
    out = preprocess.normalise(batch)
    assert out.shape == (2, channels, 3, 4) and out.dtype == np.float32 and out.flags.c_contiguous
    for n in range(2):
        for c in range(channels):
            for y in range(3):
                for x in range(4):
                    m, s = mean[c % len(mean)], std[c % len(std)]
                    assert out[n, c, y, x] == pytest.approx((batch[n, y, x] / 255 - m) / s, abs=1e-5)
    np.testing.assert_allclose(preprocess.normalise(batch / np.float32(255)), out, atol=1e-6)


def test_one_image_equals_a_batch_of_one() -> None:
    preprocess = Preprocess(size=(16, 16), channels=3)
    np.testing.assert_array_equal(preprocess(IMAGE), preprocess.normalise(preprocess.compact(IMAGE)[None])[0])


def test_json_there_and_back() -> None:
    preprocess = Preprocess(size=(9, 8), fit="crop", channels=3, mean=(0.1, 0.2, 0.3), contrast="minmax")
    assert Preprocess.from_json(json.loads(json.dumps(preprocess.to_json()))) == preprocess
    assert hash(preprocess) == hash(Preprocess.from_json(preprocess.to_json()))
    with pytest.raises(ValueError, match=r"Unknown preprocessing fields \['flip'\]; known are"):
        Preprocess.from_json({"flip": True})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": (0, 9)}, r"size must be \(height, width\), each from 1 to 4096 pixels; got \(0, 9\)"),
        ({"size": (9, 99999)}, "size must be"),
        ({"size": 32}, "size must be a tuple of numbers; got 32"),
        ({"fit": "squash"}, "fit must be one of pad, crop, stretch; got 'squash'"),
        ({"contrast": "clahe"}, "contrast must be one of none, minmax, percentile; got 'clahe'"),
        ({"channels": 2}, "channels must be 1 or 3; got 2"),
        ({"mean": (0.1, 0.2)}, r"mean must be one finite number or one per channel \(1\)"),
        ({"mean": (float("nan"),)}, "mean must be one finite number"),
        ({"std": (0.0,)}, "std must be above 0"),
        ({"std": ("a",)}, "std must be a tuple of numbers"),
    ],
)
def test_refusals(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocess(**fields)


def test_shapes_that_are_no_image() -> None:
    with pytest.raises(ValueError, match=r"An image must have shape \(h, w\); got \(3,\)"):
        Preprocess().resize(np.zeros(3, np.float32))
    with pytest.raises(ValueError, match=r"A batch must have shape \(n, H, W\); got \(3, 3\)"):
        Preprocess().normalise(np.zeros((3, 3), np.float32))
