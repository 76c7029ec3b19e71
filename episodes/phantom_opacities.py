"""Findings that add density to the lungs: fluid, consolidation, nodules, rings, nets and lines.

Each painter takes the chest, the finding and the patient's own random stream for it, and changes the chest's layers.
"""

from __future__ import annotations

import numpy as np

from .phantom_anatomy import HILUM_Y, SIDES, Array, Chest, Stroke, course, edge
from .phantom_body import LUNG_AIR
from .phantom_specs import PhantomFinding, sides_of


def effusion(chest: Chest, finding: PhantomFinding, rng: np.random.Generator) -> None:
    """Fluid that fills the costophrenic angle and climbs the chest wall: a meniscus."""
    steep, jitter = rng.uniform(0.10, 0.2), rng.uniform(-0.03, 0.03)
    for side in sides_of(finding):
        sign = SIDES[side]
        level = 0.5 * sum(chest.anatomy.dome) + chest.pose.breath - 0.04 - 0.60 * finding.severity + jitter
        from_wall = np.clip(chest.wall - chest.x * np.float32(sign), 0.0, 2.0)
        climb = np.float32(0.34 + 0.2 * finding.severity) * np.exp(from_wall * np.float32(-1.0 / steep))
        surface = np.float32(level) - climb
        fluid = edge(chest.y - surface, 0.045) * (chest.x * np.float32(sign) > 0.0)
        chest.added += np.float32(LUNG_AIR * chest.anatomy.aeration + 0.03) * fluid * chest.air
        chest.vessels = chest.vessels * (np.float32(1.0) - fluid)


def consolidation(chest: Chest, finding: PhantomFinding, rng: np.random.Generator) -> None:
    """A dense, ragged area, straight where a fissure stops it, with dark bronchi running through it."""
    for side in sides_of(finding):
        centre = place(chest, side, finding.place, rng)
        radius = 0.30 + 0.16 * finding.severity
        ragged = np.float32(0.16) * chest.texture("cloud", rng) + np.float32(0.10) * chest.texture("patch", rng)
        area = chest.ellipse(centre, (radius * 1.15, radius * rng.uniform(0.75, 1.0)), rng.uniform(-0.5, 0.5))
        shade = edge(area + ragged, 0.16)
        fissure = centre[1] + rng.uniform(0.3, 0.7) * radius
        tilt = np.float32(rng.uniform(-0.15, 0.25) * SIDES[side])
        shade = shade * edge(np.float32(fissure) - chest.y + tilt * (chest.x - np.float32(centre[0])), 0.02)
        bronchi: list[Stroke] = []
        for _ in range(4):
            end = (centre[0] + SIDES[side] * rng.uniform(0.05, 0.3), centre[1] + rng.uniform(-0.25, 0.2))
            bronchi.append((course(rng, ((SIDES[side] * 0.24, HILUM_Y), centre, end), 0.05), 0.04, 1.0))
        dark = np.float32(0.24) * chest.strokes(bronchi)
        density = np.float32(0.62) + np.float32(0.05) * chest.texture("grain", rng) - dark
        chest.added += shade * density * in_front(chest, side)
        chest.vessels = chest.vessels * (np.float32(1.0) - np.float32(0.8) * shade)


def infiltration(chest: Chest, finding: PhantomFinding, rng: np.random.Generator) -> None:
    """Many small fuzzy patches that run together: bronchopneumonia."""
    for side in sides_of(finding):
        centre = place(chest, side, finding.place, rng)
        haze = np.zeros(chest.shape, np.float32)
        for _ in range(6 + round(7 * finding.severity)):
            spot = (centre[0] + rng.normal(0.0, 0.15), centre[1] + rng.normal(0.0, 0.19))
            size = rng.uniform(0.07, 0.13)
            haze = haze + edge(chest.ellipse(spot, (size, size * rng.uniform(0.7, 1.0))), 0.8) * (1.0 - 0.45 * haze)
        mottled = np.float32(1.0) + np.float32(0.35) * chest.texture("grain", rng)
        chest.added += np.float32(0.52) * haze * mottled * chest.air


def plate_atelectasis(chest: Chest, finding: PhantomFinding, rng: np.random.Generator) -> None:
    """Straight dense bands, nearly level, across the lower or middle lung."""
    for side in sides_of(finding):
        centre = place(chest, side, finding.place, rng)
        bands: list[Stroke] = []
        for step in range(2 + round(2 * finding.severity)):
            length, slope = rng.uniform(0.26, 0.4), rng.uniform(-0.35, 0.35)
            y = centre[1] + (step - 1.0) * rng.uniform(0.12, 0.18)
            x = SIDES[side] * (0.5 + rng.uniform(-0.08, 0.08))
            bands.append(([(x - length, y - slope * length), (x + length, y + slope * length)], 0.06, 1.0))
        chest.added += np.float32(0.55 + 0.15 * finding.severity) * chest.strokes(bands) * chest.air


def nodule(chest: Chest, finding: PhantomFinding, rng: np.random.Generator) -> None:
    """One small round shadow with a sharp border."""
    for side in sides_of(finding):
        radius = 0.09 + 0.05 * finding.severity
        shape = chest.ellipse(place(chest, side, finding.place, rng), (radius, radius * rng.uniform(0.88, 1.0)))
        chest.added += np.float32(0.58) * edge(shape, 0.25) * in_front(chest, side)


def mass(chest: Chest, finding: PhantomFinding, rng: np.random.Generator) -> None:
    """A large lobulated shadow with spikes."""
    for side in sides_of(finding):
        centre, radius = place(chest, side, finding.place, rng), 0.20 + 0.12 * finding.severity
        shade = edge(chest.ellipse(centre, (radius, radius)), 0.12)
        for angle in rng.uniform(0.0, 2.0 * np.pi, 4):
            lobe = (centre[0] + 0.55 * radius * np.cos(angle), centre[1] + 0.55 * radius * np.sin(angle))
            shade = np.maximum(shade, edge(chest.ellipse(lobe, (0.6 * radius, 0.6 * radius)), 0.15))
        spikes: list[Stroke] = []
        for angle in rng.uniform(0.0, 2.0 * np.pi, 9):
            arm = np.array([np.cos(angle), np.sin(angle)])
            spikes.append((np.stack([np.asarray(centre), np.asarray(centre) + 1.55 * radius * arm]), 0.025, 0.55))
        shade = np.maximum(shade, chest.strokes(spikes))
        chest.added += np.float32(0.72) * shade * in_front(chest, side)
        chest.vessels = chest.vessels * (np.float32(1.0) - np.float32(0.7) * shade)


def cavity(chest: Chest, finding: PhantomFinding, rng: np.random.Generator) -> None:
    """A thick-walled ring around air, with a fluid level at its bottom."""
    for side in sides_of(finding):
        centre, radius = place(chest, side, finding.place, rng), 0.26 + 0.10 * finding.severity
        thick = 0.32 + rng.uniform(-0.04, 0.06)
        shape = chest.ellipse(centre, (radius, radius * rng.uniform(0.85, 1.0)), rng.uniform(-0.6, 0.6))
        outer, inner = edge(shape, 0.14), edge(shape - np.float32(thick), 0.07)
        fluid = edge(chest.y - np.float32(centre[1] + rng.uniform(0.15, 0.4) * radius), 0.015)
        shade = outer * (np.float32(1.0) - inner * (np.float32(1.0) - np.float32(0.85) * fluid))
        lucent = inner * (np.float32(1.0) - fluid)
        chest.added += (np.float32(0.75) * shade - np.float32(0.24) * lucent) * in_front(chest, side)
        chest.vessels = chest.vessels * (np.float32(1.0) - outer)


def edema(chest: Chest, finding: PhantomFinding, rng: np.random.Generator) -> None:
    """Butterfly haze around both hila, blurred vessels, short septal lines at the bases."""
    cloud = np.float32(0.35) * chest.texture("cloud", rng)
    for side in sides_of(finding):
        wing = chest.ellipse((SIDES[side] * 0.38, HILUM_Y + 0.08), (0.36 + 0.1 * finding.severity, 0.5), 0.0)
        haze = edge(wing + cloud, 0.7)
        mottled = np.float32(1.0) + np.float32(0.22) * chest.texture("patch", rng)
        chest.added += np.float32(0.36 + 0.22 * finding.severity) * haze * mottled * chest.air
        lines: list[Stroke] = []
        for _ in range(9):
            y = rng.uniform(0.2, 0.62)
            reach = rng.uniform(0.1, 0.18)
            outer = float(chest.lung_edge(np.full(1, y, dtype=np.float32))[0])
            lines.append(([(SIDES[side] * outer, y), (SIDES[side] * (outer - reach), y - 0.02)], 0.02, 0.8))
        chest.added += np.float32(0.32) * chest.strokes(lines) * chest.air


def fibrosis(chest: Chest, finding: PhantomFinding, rng: np.random.Generator) -> None:
    """A coarse net of lines in the outer and lower lung."""
    net = np.exp(np.float32(-7.0) * np.abs(chest.texture("grain", rng)))
    net = np.maximum(net, np.exp(np.float32(-5.0) * np.abs(chest.texture("patch", rng))))
    outer = edge(np.abs(chest.x) - np.float32(0.5) * chest.wall, 0.4)
    for side in sides_of(finding):
        if finding.place == "base":
            where = edge(chest.y - np.float32(0.25 - 0.6 * finding.severity), 0.45)
        else:
            where = edge(np.float32(-0.35 + 0.4 * finding.severity) - chest.y, 0.4)
        extent = np.clip(where * (np.float32(0.45) + outer), 0.0, 1.0) * chest.air * chest.lungs[side]
        chest.added += np.float32(0.55 + 0.15 * finding.severity) * (net - np.float32(0.15)) * extent


def bronchiectasis(chest: Chest, finding: PhantomFinding, rng: np.random.Generator) -> None:
    """Draw a cluster of thin-walled rings: widened bronchi seen end on."""
    for side in sides_of(finding):
        centre = place(chest, side, finding.place, rng)
        for _ in range(5 + round(4 * finding.severity)):
            at = (centre[0] + rng.normal(0.0, 0.14), centre[1] + rng.normal(0.0, 0.17))
            size = rng.uniform(0.08, 0.12)
            shape = chest.ellipse(at, (size, size * rng.uniform(0.8, 1.0)))
            ring = edge(shape, 0.25) * (np.float32(1.0) - edge(shape - np.float32(0.5), 0.2))
            chest.added += (np.float32(0.55) * ring - np.float32(0.12) * edge(shape, 0.25)) * in_front(chest, side)


def miliary(chest: Chest, finding: PhantomFinding, rng: np.random.Generator) -> None:
    """Seed-sized nodules, evenly all over both lungs."""
    count = round(260 + 160 * finding.severity)
    spots: list[Stroke] = []
    for x, y in np.stack([rng.uniform(-0.95, 0.95, count), rng.uniform(-1.1, 0.9, count)], axis=1):
        spots.append(([(x, y)], rng.uniform(0.05, 0.07), rng.uniform(0.7, 1.0)))
    chest.added += np.float32(0.44 + 0.1 * finding.severity) * chest.strokes(spots) * chest.air


def granulomas(chest: Chest, finding: PhantomFinding, rng: np.random.Generator) -> None:
    """A handful of small dots as dense as bone."""
    for side in sides_of(finding):
        centre = place(chest, side, finding.place, rng)
        spots: list[Stroke] = []
        for _ in range(4 + round(4 * finding.severity)):
            at = (centre[0] + rng.normal(0.0, 0.12), centre[1] + rng.normal(0.0, 0.14))
            spots.append(([at], rng.uniform(0.075, 0.10), rng.uniform(0.8, 1.0)))
        chest.added += np.float32(0.85) * chest.strokes(spots) * chest.lungs[side]


def adenopathy(chest: Chest, finding: PhantomFinding, rng: np.random.Generator) -> None:
    """Enlarged hila: lobulated, sharply bordered lumps beside the mediastinum."""
    for side in sides_of(finding):
        shade = np.zeros(chest.shape, np.float32)
        for _ in range(4):
            at = (SIDES[side] * rng.uniform(0.22, 0.36), HILUM_Y + rng.uniform(-0.16, 0.2))
            size = rng.uniform(0.10, 0.14) + 0.05 * finding.severity
            shade = np.maximum(shade, edge(chest.ellipse(at, (size, size)), 0.15))
        chest.added += np.float32(0.6) * shade * in_front(chest, side)
        chest.vessels = chest.vessels * (np.float32(1.0) - shade)


def in_front(chest: Chest, side: str) -> Array:
    """Return how much of a solid lesion shows (h, w): all of it on air, little on heart and vessels."""
    return np.float32(0.3) * chest.lungs[side] + np.float32(0.7) * chest.air * chest.lungs[side]


def place(chest: Chest, side: str, zone: str, rng: np.random.Generator) -> tuple[float, float]:
    """Draw a point of a lung: its zone from the place's name, away from the heart, the wall and the diaphragm."""
    low, high = {"upper": (-0.72, -0.42), "middle": (-0.28, 0.08), "lower": (0.20, 0.42)}[zone]
    y = rng.uniform(low, high)
    inner = 0.55 if side == "left" and zone == "lower" else 0.3
    return chest.point(side, rng.uniform(inner, 0.8), y)
