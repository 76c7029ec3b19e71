"""Layers of a healthy chest: lungs, heart, great vessels, bones and soft tissue, as attenuation per pixel."""

from __future__ import annotations

import numpy as np

from .phantom_anatomy import APEX, HILUM_Y, SIDES, Array, Chest, edge, vessel_tree

LUNG_AIR = 0.80
"""Attenuation that a fully aerated lung takes away from the soft tissue around it."""


def lay_out(chest: Chest, rng: np.random.Generator) -> None:
    """Fill the layers of a chest with healthy anatomy; `rng` draws what is the patient's own (vessels)."""
    _lungs_and_heart(chest)
    chest.vessels = chest.strokes(vessel_tree(rng))
    chest.tissue = _soft_tissue(chest) + _bones(chest)


def attenuation(chest: Chest) -> Array:
    """Return the sum of all layers (h, w): 0 is air outside the body, about 1.3 the mediastinum."""
    anatomy = chest.anatomy
    lung = np.float32(LUNG_AIR * anatomy.aeration) * chest.air
    marks = np.float32(0.34 * anatomy.vessels) * chest.vessels * chest.air
    return chest.tissue + chest.added + marks - lung


def _lungs_and_heart(chest: Chest) -> None:
    anatomy, pose = chest.anatomy, chest.pose
    lateral = np.abs(chest.x)
    chest.lungs = {}
    top = edge(chest.y - np.float32(APEX), 0.06)
    inside_wall = edge(chest.wall - lateral, 0.035) * top
    for side, sign in SIDES.items():
        medial = chest.medial * np.float32(sign) - np.float32(0.11)
        chest.lungs[side] = inside_wall * edge(medial, 0.03) * edge(chest.dome(side) - chest.y, 0.03)
    magnified = anatomy.heart * (1.12 if pose.view == "AP" else 1.0)
    level = 0.5 * sum(anatomy.dome) + pose.breath
    middle = (0.13 * magnified + pose.turn * 1.6, level - 0.28)
    body = chest.ellipse(middle, (0.46 * magnified, 0.33 * magnified**0.7), anatomy.heart_tilt)
    shade = edge(body, 0.09)
    base = chest.ellipse((0.03 + pose.turn, level - 0.62), (0.24 * magnified**0.5, 0.36))
    chest.heart = np.maximum(shade, np.float32(0.9) * edge(base, 0.14))
    wide = np.float32(anatomy.mediastinum) + np.float32(0.03) * np.clip(chest.y + np.float32(0.2), 0.0, 1.0)
    centre = edge(wide - np.abs(chest.medial), 0.035)
    knob = edge(chest.ellipse((0.11 + pose.turn, -0.38), (anatomy.arch, 1.25 * anatomy.arch)), 0.3)
    solid = np.maximum(np.maximum(centre, knob), chest.heart)
    chest.air = (chest.lungs["right"] + chest.lungs["left"]) * (np.float32(1.0) - np.float32(0.86) * solid)


def _soft_tissue(chest: Chest) -> Array:
    anatomy, pose = chest.anatomy, chest.pose
    lateral = np.abs(chest.x)
    outer = np.float32(1.03 + 0.22 * anatomy.fat) - np.float32(0.10) * np.clip(-chest.y - np.float32(0.2), 0.0, 1.0)
    shoulder = np.clip(np.float32(-0.45) - chest.y, 0.0, 1.0)
    outer = outer + shoulder * shoulder * np.float32(2.6 - 1.0 * pose.arms)
    torso = edge(outer - lateral, 0.05)
    slope = chest.y - np.float32(-1.34) - np.float32(0.26) * lateral * lateral
    trunk = torso * np.maximum(edge(slope, 0.06), edge(np.float32(0.34) - lateral, 0.05))
    depth = np.clip(np.float32(1.0) - (lateral / (outer + np.float32(0.06))) ** 2, 0.0, 1.0)
    tissue = trunk * (np.float32(0.55) + np.float32(0.55 + 0.25 * anatomy.fat) * np.sqrt(depth))
    if anatomy.breast:
        for sign in SIDES.values():
            shape = chest.ellipse((sign * 0.55, 0.42), (0.42, 0.36 + 0.1 * anatomy.breast))
            lower = edge(shape, 0.07) * np.clip(chest.y + np.float32(0.15), 0.0, 0.6)
            tissue = tissue + np.float32(0.34 * anatomy.breast) * lower
    below = np.minimum(chest.dome("right"), chest.dome("left"))
    tissue = tissue + np.float32(0.12) * edge(chest.y - below - np.float32(0.05), 0.1) * trunk
    tissue = tissue + np.float32(0.22) * chest.heart
    hila = edge(chest.ellipse((-0.27 + pose.turn, HILUM_Y + 0.04), (0.13, 0.19)), 0.5)
    hila = hila + edge(chest.ellipse((0.29 + pose.turn, HILUM_Y - 0.02), (0.12, 0.17)), 0.5)
    tissue = tissue + np.float32(0.2) * hila
    windpipe = edge(np.float32(0.05) - np.abs(chest.medial), 0.025) * edge(np.float32(-0.34) - chest.y, 0.08)
    tissue = tissue - np.float32(0.2) * windpipe * trunk
    if anatomy.gas > 0.3:
        level = anatomy.dome[1] + pose.breath + 0.2
        bubble = edge(chest.ellipse((0.42, level), (0.16 * anatomy.gas + 0.05, 0.09 * anatomy.gas + 0.02)), 0.25)
        tissue = tissue - np.float32(0.4) * bubble
    return tissue


def ribs(chest: Chest, *, front: bool) -> tuple[Array, Array]:
    """Return the position across the ribs (0 = a rib's centre, 0.5 = between two) and where ribs are, both (h, w)."""
    anatomy = chest.anatomy
    side = np.abs(chest.medial)
    if front:
        course = np.float32(0.30) + (np.float32(0.95) - side) * np.float32(0.72 * anatomy.rib_slope)
        reach = edge(side - np.float32(0.42), 0.12) * edge(np.float32(0.75) - chest.y, 0.2)
    else:
        course = (np.float32(0.42) * side - np.float32(0.12)) * side * np.float32(anatomy.rib_slope)
        reach = edge(side - np.float32(0.08), 0.03)
    phase = (chest.y - course) * np.float32(1.0 / anatomy.rib_spacing) + np.float32(anatomy.rib_phase)
    within = edge(chest.wall + np.float32(0.05) - np.abs(chest.x), 0.03) * edge(chest.y - np.float32(APEX), 0.08)
    within = within * edge(np.float32(1.25) - chest.y, 0.15)
    return phase - np.rint(phase), reach * within


def _bones(chest: Chest) -> Array:
    anatomy, pose = chest.anatomy, chest.pose
    bones = np.zeros(chest.shape, np.float32)
    for front, strength, half in ((False, 0.17, 0.20), (True, 0.10, 0.22)):
        across, reach = ribs(chest, front=front)
        away = np.abs(across)
        tube = edge(np.float32(half) - away, 0.07) * (np.float32(0.65) + np.float32(1.75) * away)
        bones += np.float32(strength) * tube * reach
    side = np.abs(chest.medial)
    lift = np.float32(0.22 + 0.12 * pose.arms)
    collar = np.float32(-0.83) - lift * side + np.float32(0.05) * np.sin(side * np.float32(6.5))
    reach = edge(side - np.float32(0.09), 0.02) * edge(np.float32(1.05) - side, 0.04)
    bones += np.float32(0.24) * edge(np.float32(0.045) - np.abs(chest.y - collar), 0.03) * reach
    column = edge(np.float32(0.105) - side, 0.03)
    discs = np.float32(0.75) + np.float32(0.25) * np.cos(chest.y * np.float32(2.0 * np.pi / 0.17))
    bones += np.float32(0.20) * column * discs
    blade = np.float32(1.02 + 0.12 * pose.arms) - np.float32(0.35) * (chest.y + np.float32(0.45)) ** 2
    tall = edge(np.float32(0.55) - np.abs(chest.y + np.float32(0.45)), 0.15)
    bones += np.float32(0.13) * edge(np.abs(chest.x) - blade + np.float32(0.12), 0.03) * tall
    return bones * np.float32(anatomy.bone)
