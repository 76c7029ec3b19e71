"""Findings that change shapes, take density away or come from outside: heart, air, pleura, bone, device.

A reshaper returns a changed anatomy before anything is drawn; a painter changes the layers of the drawn chest.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from .phantom_anatomy import SIDES, Anatomy, Array, Chest, Stroke, course, edge
from .phantom_specs import PhantomFinding, sides_of


def enlarge_heart(anatomy: Anatomy, finding: PhantomFinding) -> Anatomy:
    """Cardiomegaly: the heart wider than half the thorax."""
    heart = anatomy.heart * (1.32 + 0.3 * finding.severity)
    return replace(anatomy, heart=heart, mediastinum=anatomy.mediastinum + 0.02)


def overinflate(anatomy: Anatomy, finding: PhantomFinding) -> Anatomy:
    """Emphysema: flat low diaphragm, narrow heart, sparse vessels, black lungs."""
    sink = 0.12 + 0.1 * finding.severity
    return replace(
        anatomy,
        dome=(anatomy.dome[0] + sink, anatomy.dome[1] + sink),
        dome_curve=0.22,
        heart=anatomy.heart * 0.78,
        vessels=anatomy.vessels * 0.55,
        aeration=1.16 + 0.1 * finding.severity,
    )


def bend_spine(anatomy: Anatomy, finding: PhantomFinding) -> Anatomy:
    """Scoliosis: the spine and all that hangs on it in a curve, convex to the finding's side."""
    return replace(anatomy, bend=SIDES[finding.side] * (0.17 + 0.15 * finding.severity), bend_phase=0.75)


def shrink_lungs(anatomy: Anatomy, finding: PhantomFinding) -> Anatomy:
    """Fibrosis, atelectasis: the diaphragm of the side is drawn up."""
    lift = 0.05 + 0.08 * finding.severity
    right, left = anatomy.dome
    sides = sides_of(finding)
    return replace(anatomy, dome=(right - lift * ("right" in sides), left - lift * ("left" in sides)))


def bullae(chest: Chest, finding: PhantomFinding, rng: np.random.Generator) -> None:
    """Thin-walled empty bubbles in the upper lungs."""
    for side in sides_of(finding):
        for _ in range(2 + round(2 * finding.severity)):
            at = chest.point(side, rng.uniform(0.45, 0.85), rng.uniform(-0.8, 0.2))
            size = rng.uniform(0.12, 0.2)
            shape = chest.ellipse(at, (size, size))
            inside = edge(shape, 0.1)
            wall = inside * (np.float32(1.0) - edge(shape - np.float32(0.16), 0.1))
            chest.added += (np.float32(0.16) * wall - np.float32(0.1) * inside) * chest.lungs[side]
            chest.vessels = chest.vessels * (np.float32(1.0) - np.float32(0.8) * inside)


def pneumothorax(chest: Chest, finding: PhantomFinding, rng: np.random.Generator) -> None:
    """Air without vessels between the chest wall and a fine pleural line; the lung behind it is denser."""
    side, sign = finding.side, SIDES[finding.side]
    gap = 0.2 + 0.28 * finding.severity
    bulge = np.float32(rng.uniform(0.04, 0.1)) * np.sin(chest.y * np.float32(4.0) + np.float32(rng.uniform(0.0, 6.28)))
    top = np.clip((np.float32(-0.2) - chest.y), 0.0, 1.0)
    border = chest.wall - np.float32(gap) * (np.float32(1.0) + np.float32(0.7) * top) + bulge * np.float32(gap)
    apex = chest.y - np.float32(-1.1 + 0.8 * gap)
    depth = np.minimum(border - chest.x * np.float32(sign), apex)
    collapsed = edge(depth, 0.02)
    line = edge(np.float32(0.034) - np.abs(depth), 0.018)
    free = np.float32(1.0) - collapsed
    lung = chest.lungs[side]
    chest.vessels = chest.vessels * (np.float32(1.0) - free * lung)
    change = np.float32(0.46) * line - np.float32(0.34) * free + np.float32(0.12 + 0.1 * finding.severity) * collapsed
    chest.added += change * lung * np.clip(chest.air * np.float32(1.2), 0.0, 1.0)


def pleural_thickening(chest: Chest, finding: PhantomFinding, rng: np.random.Generator) -> None:
    """A scalloped dense rind inside the chest wall."""
    sign = SIDES[finding.side]
    pitch, start = np.float32(rng.uniform(7.0, 11.0)), np.float32(rng.uniform(0.0, 6.0))
    scallops = np.float32(1.0) + np.float32(0.45) * np.sin(chest.y * pitch + start)
    thick = np.float32(0.09 + 0.09 * finding.severity) * scallops
    top, bottom = rng.uniform(-0.8, -0.4), rng.uniform(0.4, 0.7)
    reach = edge(chest.y - np.float32(top), 0.15) * edge(np.float32(bottom) - chest.y, 0.15)
    depth = thick * reach - (chest.wall - chest.x * np.float32(sign))
    chest.added += np.float32(0.58) * edge(depth, 0.03) * chest.lungs[finding.side] * edge(reach - np.float32(0.1), 0.1)


def hiatal_hernia(chest: Chest, finding: PhantomFinding, rng: np.random.Generator) -> None:
    """A part of the stomach behind the heart: a rounded wall, air above a fluid level."""
    radius = 0.20 + 0.1 * finding.severity
    level = 0.5 * sum(chest.anatomy.dome) + chest.pose.breath
    centre = (rng.uniform(-0.06, 0.14), level - 0.8 * radius - 0.05)
    shape = chest.ellipse(centre, (radius * rng.uniform(1.0, 1.25), radius))
    inside = edge(shape, 0.1)
    gas = edge(shape - np.float32(0.17), 0.06) * edge(np.float32(centre[1] + 0.1 * radius) - chest.y, 0.015)
    chest.added += np.float32(0.24) * inside - np.float32(0.62) * gas + np.float32(0.3) * inside * chest.air


def rib_fractures(chest: Chest, finding: PhantomFinding, rng: np.random.Generator) -> None:
    """Steps with bulky callus in a row of neighbouring ribs."""
    sign = SIDES[finding.side]
    anatomy = chest.anatomy
    lateral = rng.uniform(0.58, 0.76)
    spots: list[Stroke] = []
    first = rng.uniform(-0.45, -0.2)
    for step in range(3 + round(2 * finding.severity)):
        x = lateral + rng.uniform(-0.05, 0.05)
        course_y = (0.42 * x - 0.12) * x * anatomy.rib_slope
        number = np.ceil((first - course_y) / anatomy.rib_spacing + anatomy.rib_phase) + step
        y = (number - anatomy.rib_phase) * anatomy.rib_spacing + course_y
        tilt = (0.84 * x - 0.12) * anatomy.rib_slope
        at = chest.pose.turn + sign * x
        arm = 0.065
        jump = rng.uniform(0.02, 0.035)
        spots.append(([(at - arm, y - tilt * sign * arm - jump), (at, y - jump)], 0.085, 1.0))
        spots.append(([(at, y + jump), (at + arm, y + tilt * sign * arm + jump)], 0.085, 1.0))
    chest.added += np.float32(0.55) * chest.strokes(spots)


def free_air(chest: Chest, finding: PhantomFinding, rng: np.random.Generator) -> None:
    """A black crescent between the diaphragm, now a thin line, and what lies below."""
    for side in sides_of(finding):
        thick = 0.10 + 0.10 * finding.severity
        inside = SIDES[side] * chest.x
        depth = chest.y - chest.dome(side) - np.float32(0.045)
        offset = (inside - np.float32(0.46)) * np.float32(1.0 / 0.4)
        room = np.float32(thick) * np.clip(np.float32(1.0) - offset * offset, 0.0, 1.0)
        crescent = edge(depth, 0.015) * edge(room - depth, 0.02) * edge(room - np.float32(0.02), 0.02)
        chest.added -= np.float32(0.72) * crescent


def cardiac_device(chest: Chest, finding: PhantomFinding, rng: np.random.Generator) -> None:
    """A pulse generator under the collarbone and two leads to the heart, in atrium and ventricle."""
    sign = SIDES[finding.side]
    x, y = sign * rng.uniform(0.5, 0.75), rng.uniform(-0.72, -0.45)
    size, turn = 0.16 + 0.03 * finding.severity, rng.uniform(-0.5, 0.5)
    can = edge(_box(chest, (x, y), size, turn), 0.02)
    tips = [(rng.uniform(0.12, 0.32), rng.uniform(0.48, 0.6)), (-0.12, rng.uniform(0.1, 0.2))]
    leads: list[Stroke] = []
    for tip in tips:
        path = ((x, y - 0.05), (sign * 0.28, -0.78), (-0.08, -0.55), (-0.16, 0.0), tip)
        line = course(rng, path, 0.02)
        leads.append((line, 0.055, 0.8))
        leads.append((line[-2:], 0.06, 1.0))
    chest.added += np.float32(1.5) * np.maximum(can, np.float32(0.6) * chest.strokes(leads))


def chest_tube(chest: Chest, finding: PhantomFinding, rng: np.random.Generator) -> None:
    """A drain through the lateral chest wall, pointing up to the apex, with an opaque stripe and a gap in it."""
    sign = SIDES[finding.side]
    outside = (sign * 1.25, rng.uniform(0.1, 0.5))
    entry = (sign * rng.uniform(0.72, 0.86), rng.uniform(-0.1, 0.25))
    tip = (sign * rng.uniform(0.3, 0.5), rng.uniform(-0.75, -0.5))
    line = course(rng, (outside, entry, (sign * 0.66, -0.3), tip), 0.03)
    wide = 0.075 + 0.02 * finding.severity
    strokes: list[Stroke] = [(line, wide, 0.35), (line, 0.04, 1.0), (line[-7:-5], wide, 0.0), (line[-7:-5], wide, 0.35)]
    chest.added += np.float32(0.75) * chest.strokes(strokes)


def _box(chest: Chest, centre: tuple[float, float], size: float, angle: float) -> Array:
    """Return the signed distance from the rim of a rounded box, positive inside."""
    dx, dy = chest.x - np.float32(centre[0]), chest.y - np.float32(centre[1])
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    along, across = np.abs(cos * dx + sin * dy), np.abs(cos * dy - sin * dx)
    corner = ((along / np.float32(size)) ** 4 + (across / np.float32(0.85 * size)) ** 4) ** np.float32(0.25)
    return np.asarray(np.float32(size) * (np.float32(1.0) - corner), dtype=np.float32)
