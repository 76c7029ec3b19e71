"""Heat-map pictures: even colours, untouched images where a map is silent, text that is there and fits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.color import rgb2lab

from fewshot.heatmap_pictures import OPACITY, READABLE_SIDE, WARNING, _sentences, annotated, colours, overlay, write_png
from fewshot.heatmaps import HeatMap


def heat(values: np.ndarray, kind: str = "occlusion", label: str = "cyst", agreement: float | None = 0.7) -> HeatMap:
    return HeatMap(values.astype(np.float32), kind, label, "normal", 0.25, agreement)  # type: ignore[arg-type]


def test_colours_step_evenly_and_grow_lighter() -> None:
    table = colours()
    assert table.shape == (256, 3) and table.min() >= 0 and table.max() <= 255
    lab = rgb2lab(table[None] / 255)[0]
    steps = np.sqrt((np.diff(lab, axis=0) ** 2).sum(axis=1))
    assert steps.std() < 0.05 * steps.mean()  # chords across an anchor are a little shorter than the way around it
    assert (np.diff(lab[:, 0]) > 0).all()


def test_an_overlay_against_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    image, values = rng.random((4, 6)), rng.normal(size=(4, 6))
    found = overlay(image, heat(values))
    assert found.dtype == np.uint8 and found.shape == (4, 6, 3)
    for y in range(4):
        for x in range(6):
            strength = max(0.0, float(np.float32(values[y, x]))) / float(np.float32(values).max())
            colour = colours()[round(strength * 255)]
            for c in range(3):
                wanted = (1 - OPACITY * strength) * image[y, x] * 255 + OPACITY * strength * colour[c]
                assert abs(float(found[y, x, c]) - wanted) <= 0.51
            if values[y, x] <= 0:
                assert len(set(found[y, x].tolist())) == 1


def test_a_flat_map_leaves_the_image_grey() -> None:
    image = np.random.default_rng(0).random((5, 5))
    found = overlay(image, heat(np.zeros((5, 5))))
    assert np.array_equal(found, np.repeat(np.rint(image * 255).astype(np.uint8)[..., None], 3, axis=2))


@pytest.mark.parametrize("shape", [(64, 64), (30, 90), (90, 30), (500, 400), (1000, 2400)])
@pytest.mark.parametrize("kind", ["grad-cam", "occlusion"])
def test_an_annotated_picture_keeps_its_aspect_and_has_its_text_below(shape: tuple[int, int], kind: str) -> None:
    image = np.zeros(shape)
    values = np.zeros(shape)
    values[0, 0] = 1
    long = heat(values, kind, label="a finding whose name is far longer than any line of a small picture could hold")
    found = annotated(image, long)
    factor = max(1, -(-READABLE_SIDE // min(shape)))
    height, width = shape[0] * factor, shape[1] * factor
    assert found.shape[1] == width and found.shape[0] > height + 60
    assert not found[height // 2 : height].any()  # nothing is written on the image
    below = found[height:]
    white = (below == 255).all(axis=2)
    assert white.sum() > 200 and not white[:, -2:].any() and not white[:, :2].any() and not white[-2:].any()
    short = annotated(image, heat(values, kind))
    assert short.shape[0] <= found.shape[0]


def test_what_is_written_below() -> None:
    values = np.ones((2, 2))
    assert _sentences(heat(values)) == [
        "Occlusion: cyst rather than normal (margin 0.250)",
        "Both maps agree (rank correlation 0.70).",
        WARNING + ".",
    ]
    alone = HeatMap(values.astype(np.float32), "grad-cam", "cyst", None, 0.9, 0.0)
    assert _sentences(alone)[:2] == [
        "Grad-CAM: cyst (score 0.900)",
        "The maps disagree (rank correlation 0.00): rely on neither.",
    ]


def test_a_png_is_read_back(tmp_path: Path) -> None:
    picture = annotated(np.random.default_rng(0).random((40, 40)), heat(np.eye(40)))
    with Image.open(write_png(tmp_path / "a.png", picture)) as image:
        assert np.array_equal(np.asarray(image), picture)


def test_image_and_map_must_be_alike() -> None:
    with pytest.raises(ValueError, match=r"image has shape \(3, 4\), its heat map \(4, 3\): they must be alike"):
        overlay(np.zeros((3, 4)), heat(np.zeros((4, 3))))
