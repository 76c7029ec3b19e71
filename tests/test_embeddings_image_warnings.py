"""Warnings about images: text in the pixels, a chest that lies wrongly, a view that does not belong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from embeddings import Archive, embed_archive, load_encoder
from embeddings.image_warnings import (
    LEAST_SIDE,
    WARNINGS,
    along_rows,
    declared_upright,
    image_warnings,
    is_frontal_chest,
    lies_wrongly,
    odd_views,
    shows_text,
)
from episodes.phantoms import draw_phantom

CHEST = {"modality": "DX", "body_part": "CHEST", "view_position": "PA"}


def chest(patient: int, side: int = 256) -> NDArray[np.float32]:
    return draw_phantom((), patient=patient, size=(side, side))


def with_text(grey: NDArray[np.float32], text: str, size: int = 14) -> NDArray[np.float32]:
    picture = Image.fromarray(np.uint8(grey * 200))
    ImageDraw.Draw(picture).text((6, 6), text, fill=255, font=ImageFont.load_default(size=size))
    return np.asarray(picture, dtype=np.float32) / np.float32(255)


def test_a_line_of_text_is_seen_and_a_marker_is_not() -> None:
    seen = [shows_text(with_text(chest(patient), "DOE JOHN 1950-02-03")) for patient in range(8)]
    assert sum(seen) >= 6
    assert not any(shows_text(with_text(chest(patient), "L")) for patient in range(8))
    assert not any(shows_text(chest(patient)) for patient in range(8))


def test_nothing_is_said_of_what_shows_nothing() -> None:
    assert not shows_text(np.zeros((200, 200), dtype=np.float32))
    assert image_warnings(with_text(chest(1, 96), "DOE JOHN 1950"), {}) == ()
    assert LEAST_SIDE > 96


def test_a_turned_chest_is_seen_where_it_is_declared_one() -> None:
    upright = [lies_wrongly(chest(patient)) for patient in range(8)]
    turned = [lies_wrongly(np.rot90(chest(patient), k)) for patient in range(8) for k in (1, 3)]
    assert sum(upright) == 0
    assert sum(turned) == len(turned)
    side = np.ascontiguousarray(np.rot90(chest(1)))
    assert image_warnings(side, CHEST) == ("rotated",)
    assert image_warnings(side, {**CHEST, "body_part": "KNEE"}) == ()
    assert image_warnings(side, {**CHEST, "view_position": "LL"}) == ()
    assert image_warnings(side, {}) == ()
    assert is_frontal_chest({"modality": "X-ray", "body_part": "chest", "view": "AP Supine"})


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        ("L\\F", True),
        ("R\\F", True),
        ("LH\\FL", True),
        ("R\\H", False),
        ("F\\L", False),
        ("H\\R", False),
        ("P\\F", None),
        ("L", None),
        ("", None),
        (None, None),
    ],
)
def test_patient_orientation_tells_which_way_is_up(orientation: str | None, upright: bool | None) -> None:
    assert declared_upright(orientation) is upright
    found = image_warnings(chest(1), {**CHEST, "patient_orientation": orientation})
    assert found == (("rotated",) if upright is False else ())
    side = np.ascontiguousarray(np.rot90(chest(1)))
    assert image_warnings(side, {**CHEST, "patient_orientation": orientation}) == (() if upright else ("rotated",))


@pytest.mark.parametrize("width", [1, 3, 5, 7, 11, 23])
def test_windows_along_rows_equal_a_slow_loop(width: int) -> None:
    image = np.random.default_rng(width).integers(0, 256, (4, 19), dtype=np.uint8)
    half = width // 2
    for ours, slow in ((np.minimum, min), (np.maximum, max)):
        expected = [[slow(row[max(0, x - half) : x + half + 1]) for x in range(19)] for row in image.tolist()]
        assert along_rows(image, width, ours).tolist() == expected


def test_bytes_and_floats_are_judged_alike() -> None:
    for patient in range(4):
        for grey in (chest(patient), np.rot90(chest(patient)), with_text(chest(patient), "DOE JOHN 1950-02-03")):
            levels = np.round(255 * grey).astype(np.uint8)
            assert image_warnings(levels, CHEST) == image_warnings(levels.astype(np.float32) / 255, CHEST)


def test_text_is_seen_in_large_images_as_well() -> None:
    assert shows_text(with_text(chest(3, 1600), "DOE JOHN 1950-02-03", size=60))
    assert not shows_text(chest(3, 1600))


def test_what_a_header_declares_is_believed() -> None:
    assert image_warnings(chest(1), {"burned_in_annotation": "YES"}) == ("burned-in-text",)
    assert image_warnings(chest(1), {"burned_in_annotation": "NO"}) == ()


def test_a_view_that_does_not_belong_is_named() -> None:
    views = [(f"f{number}", "PA" if number % 2 else "ap") for number in range(27)]
    assert odd_views([*views, ("l", "LATERAL"), ("x", "LL"), ("none", None)]) == {
        "l": "The view is LATERAL in an archive of frontal images.",
        "x": "The view is LL in an archive of frontal images.",
    }
    assert odd_views([*views[:9], ("l", "LL"), ("x", "LL")]) == {}
    assert odd_views([("l", "LL")]) == {}


@pytest.mark.parametrize("workers", [0, 1])
def test_warnings_are_kept_and_counted(tmp_path: Path, workers: int) -> None:
    (tmp_path / "s").mkdir()
    Image.fromarray(np.uint8(255 * chest(1))).save(tmp_path / "s" / "plain.png")
    Image.fromarray(np.uint8(255 * with_text(chest(2), "DOE JOHN 1950-02-03"))).save(tmp_path / "s" / "text.png")
    report = embed_archive(tmp_path / "s", load_encoder("pixels-8"), tmp_path / "a", workers=workers)
    assert report.warnings == {"burned-in-text": 1}
    with Archive.open(tmp_path / "a") as archive:
        assert [row.get("warnings") for row in archive.metadata] == [None, ["burned-in-text"]]
        assert archive.odd_views() == {}
    assert set(report.warnings) <= set(WARNINGS)
