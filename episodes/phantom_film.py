"""From attenuation to a radiograph: cables, exposure, contrast curve, scatter, noise, collimation and side marker.

None of it knows which findings the chest has: all of it is nuisance, drawn alike for every class.
"""

from __future__ import annotations

import numpy as np

from .phantom_anatomy import Array, Chest, Stroke, course, edge

_LETTERS: dict[str, tuple[tuple[tuple[float, float], ...], ...]] = {
    "L": (((0.0, 0.0), (0.0, 1.0), (0.6, 1.0)),),
    "R": (((0.0, 1.0), (0.0, 0.0), (0.5, 0.05), (0.6, 0.25), (0.5, 0.5), (0.0, 0.5)), ((0.25, 0.5), (0.6, 1.0))),
}
"""Side markers as polylines in a box one high."""


def cables(chest: Chest, rng: np.random.Generator) -> Array:
    """Return electrodes and their leads lying on the patient (h, w); empty in most exposures."""
    strokes: list[Stroke] = []
    if rng.random() < 0.25:
        for _ in range(int(rng.integers(1, 4))):
            end = (rng.uniform(-0.8, 0.8), rng.uniform(-0.6, 0.8))
            leave = (float(rng.choice((-1.3, 1.3))), rng.uniform(-1.2, 1.2))
            bow = (0.5 * (end[0] + leave[0]), 0.5 * (end[1] + leave[1]))
            strokes.append((course(rng, (end, bow, leave), 0.15), 0.02, rng.uniform(0.4, 0.8)))
            strokes.append(([end], rng.uniform(0.05, 0.07), rng.uniform(0.5, 0.9)))
    if rng.random() < 0.1:
        neck = (rng.uniform(-0.25, 0.25), -1.4)
        strokes.append((course(rng, (neck, (-0.2, -0.9), (-0.12, -0.3)), 0.05), 0.026, 0.8))
    return chest.strokes(strokes) if strokes else np.zeros(chest.shape, np.float32)


def expose(chest: Chest, attenuation: Array, rng: np.random.Generator) -> Array:
    """Return the radiograph (h, w) in [0, 1], bright where little radiation passed (as MONOCHROME2 shows it)."""
    u = rng.uniform
    rows, columns = chest.shape
    y = np.linspace(-1.0, 1.0, rows, dtype=np.float32)[:, None]
    x = np.linspace(-1.0, 1.0, columns, dtype=np.float32)[None, :]
    total = attenuation + np.float32(0.30) * cables(chest, rng)
    total = total + np.float32(u(-0.12, 0.12)) * x + np.float32(u(-0.12, 0.12)) * y
    total = total + np.float32(0.04) * chest.texture("haze", rng) + np.float32(0.025) * chest.texture("cloud", rng)
    centre, width = u(0.68, 0.88), u(1.4, 1.85)
    level = np.clip((total - np.float32(centre)) * np.float32(1.0 / width), -1.5, 1.5)
    image = np.float32(0.5) + level * (np.float32(1.0) - np.float32(0.148) * level * level)
    image = np.clip(image, 0.0, 1.0) ** np.float32(np.exp(u(-0.25, 0.25)))
    dose = np.float32(u(0.006, 0.018))
    noise = np.float32(0.75) * chest.texture("fine", rng) + np.float32(0.65) * rng.standard_normal(
        chest.shape, dtype=np.float32
    )
    image = image + dose * noise * (np.float32(0.6) + image)
    if rng.random() < 0.15:
        pitch = u(2.6, 5.0) * rows / 160.0
        lines = np.cos(np.arange(rows, dtype=np.float32) * np.float32(2.0 * np.pi / pitch))
        image = image + np.float32(u(0.005, 0.02)) * lines[:, None]
    if rng.random() < 0.6:
        image = _collimate(image, x, y, rng)
    if rng.random() < 0.6:
        image = np.maximum(image, _marker(chest, rng))
    return np.clip(image, 0.0, 1.0).astype(np.float32)


def _collimate(image: Array, x: Array, y: Array, rng: np.random.Generator) -> Array:
    """Cover what lies outside a slightly turned rectangle, with black mostly and with white sometimes."""
    tilt = np.float32(rng.normal(0.0, 0.02))
    left, right, top, bottom = (np.float32(1.0 - rng.uniform(-0.05, 0.22)) for _ in range(4))
    turned_x, turned_y = x + tilt * y, y - tilt * x
    open_x = edge(np.minimum(right - turned_x, turned_x + left), 0.012)
    open_y = edge(np.minimum(bottom - turned_y, turned_y + top), 0.012)
    shutter = np.float32(0.02 if rng.random() < 0.85 else 0.97)
    field = open_x * open_y
    return image * field + shutter * (np.float32(1.0) - field)


def _marker(chest: Chest, rng: np.random.Generator) -> Array:
    """Return the letter L or R in the upper corner of its side, fixed to the film and not to the patient."""
    letter = "R" if rng.random() < 0.5 else "L"
    size, top = rng.uniform(0.10, 0.16), rng.uniform(-1.15, -0.55)
    edge_x = rng.uniform(0.92, 1.05)
    corner = np.array([-edge_x if letter == "R" else edge_x - 0.6 * size, top])
    strokes: list[Stroke] = []
    for line in _LETTERS[letter]:
        film = corner + size * np.asarray(line)
        strokes.append((chest.from_film(film), 0.028, rng.uniform(0.85, 1.0)))
    return chest.strokes(strokes)
