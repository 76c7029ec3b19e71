"""The chest of a phantom: shapes of one patient, pose of one exposure, and the layers a radiograph is made of.

Coordinates are thoracic: x = 0 is the midline and x > 0 the patient's left, which is the right of the image, as on
every frontal radiograph; y grows towards the feet. One unit is about half the width of an average thorax.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw
from scipy.ndimage import gaussian_filter

Array = NDArray[np.float32]

HALF_WIDTH = 1.22
"""Thoracic units from the midline to the image's edge, before the pose."""

APEX = -1.12
"""y of the top of the lungs."""

HILUM_Y = -0.12
"""y of the hila, from which vessels fan out."""

SIDES = {"right": -1.0, "left": 1.0}
"""Sign of x of the patient's right and left."""

_SUPERSAMPLING = 2
_BANK = 512


@dataclass(frozen=True, slots=True)
class Anatomy:
    """Shapes of one patient, in thoracic units; findings that change a shape replace fields of it."""

    width: float
    height: float
    fat: float
    breast: float
    taper: float
    heart: float
    heart_tilt: float
    arch: float
    mediastinum: float
    dome: tuple[float, float]
    dome_curve: float
    rib_spacing: float
    rib_phase: float
    rib_slope: float
    bone: float
    vessels: float
    gas: float
    aeration: float = 1.0
    bend: float = 0.0
    bend_phase: float = 0.0

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Anatomy:
        """Draw a patient."""
        u = rng.uniform
        right = u(0.60, 0.78)
        return cls(
            width=u(0.88, 1.04),
            height=u(0.92, 1.06),
            fat=u(0.0, 1.0) ** 1.5,
            breast=u(0.0, 1.0) if rng.random() < 0.5 else 0.0,
            taper=u(1.9, 2.8),
            heart=u(0.88, 1.12),
            heart_tilt=u(0.35, 0.75),
            arch=u(0.13, 0.20),
            mediastinum=u(0.14, 0.19),
            dome=(right, right + u(0.03, 0.12)),
            dome_curve=u(0.75, 1.25),
            rib_spacing=u(0.185, 0.225),
            rib_phase=u(0.0, 1.0),
            rib_slope=u(0.7, 1.4),
            bone=u(0.6, 1.0),
            vessels=u(0.55, 0.95),
            gas=u(0.0, 1.0),
        )


@dataclass(frozen=True, slots=True)
class Pose:
    """Position of the patient in one exposure: shifts in units, angle in radians."""

    shift: tuple[float, float]
    zoom: float
    aspect: float
    angle: float
    turn: float
    breath: float
    arms: float
    view: str

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Pose:
        """Draw a position."""
        u = rng.uniform
        view = "PA" if rng.random() < 0.65 else "AP"
        return cls(
            shift=(u(-0.09, 0.09), u(-0.09, 0.09)),
            zoom=u(0.93, 1.07),
            aspect=u(0.94, 1.06),
            angle=float(np.clip(rng.normal(0.0, 0.045), -0.1, 0.1)),
            turn=u(-0.05, 0.05),
            breath=u(-0.07, 0.07),
            arms=u(0.0, 1.0) if view == "PA" else u(0.0, 0.5),
            view=view,
        )


def edge(distance: Array, width: float) -> Array:
    """Return a smooth step of the signed distance: 0 outside (below -width), 1 inside (above width)."""
    t = distance * np.float32(0.5 / width)
    t += np.float32(0.5)
    np.maximum(t, np.float32(0.0), out=t)
    np.minimum(t, np.float32(1.0), out=t)
    smooth = t * np.float32(-2.0)
    smooth += np.float32(3.0)
    smooth *= t
    smooth *= t
    return smooth


@lru_cache(maxsize=4)
def _banks(height: int) -> dict[str, Array]:
    """Return large fields of noise with unit variance, grain sizes scaled to the image's height."""
    rng = np.random.default_rng(20170901)
    unit = height / 160.0
    banks: dict[str, Array] = {}
    for name, sigma in (("fine", 1.1), ("grain", 2.0), ("patch", 4.5), ("cloud", 11.0), ("haze", 26.0)):
        noise = gaussian_filter(rng.standard_normal((_BANK, _BANK), dtype=np.float32), sigma * unit, mode="wrap")
        banks[name] = (noise / noise.std()).astype(np.float32)
    return banks


@lru_cache(maxsize=4)
def _grid(shape: tuple[int, int]) -> tuple[Array, Array]:
    """Return film coordinates of the pixel centres, in units, the image's centre being 0."""
    rows, columns = shape
    step = 2.0 * HALF_WIDTH / columns
    y = (np.arange(rows, dtype=np.float32) - (rows - 1) / 2.0) * step
    x = (np.arange(columns, dtype=np.float32) - (columns - 1) / 2.0) * step
    grid_y, grid_x = np.meshgrid(y, x, indexing="ij")
    return grid_x.astype(np.float32), grid_y.astype(np.float32)


Stroke = tuple[ArrayLike, float, float]
"""Points (n, 2) in thoracic units, width in units, strength in [0, 1]; one point alone is a disc of that width."""


@dataclass(slots=True)
class Chest:
    """One exposure while it is being drawn: coordinate grids (h, w) and layers of attenuation that findings change."""

    shape: tuple[int, int]
    anatomy: Anatomy
    pose: Pose
    x: Array = field(init=False)
    y: Array = field(init=False)
    medial: Array = field(init=False)
    wall: Array = field(init=False)
    lungs: dict[str, Array] = field(init=False)
    heart: Array = field(init=False)
    air: Array = field(init=False)
    vessels: Array = field(init=False)
    tissue: Array = field(init=False)
    added: Array = field(init=False)

    def __post_init__(self) -> None:
        """Lay the coordinate grids."""
        anatomy, pose = self.anatomy, self.pose
        grid_x, grid_y = _grid(self.shape)
        cos, sin = np.float32(np.cos(pose.angle)), np.float32(np.sin(pose.angle))
        scale_x, scale_y = self._scale()
        moved_x, moved_y = grid_x - np.float32(pose.shift[0]), grid_y - np.float32(pose.shift[1])
        self.x = (cos * moved_x + sin * moved_y) * np.float32(1.0 / scale_x)
        self.y = (cos * moved_y - sin * moved_x) * np.float32(1.0 / scale_y)
        self.medial = self.x - np.float32(pose.turn)
        if anatomy.bend:
            self.medial = self.medial - self.bend(self.y)
        self.wall = self.lung_edge(self.y)
        self.added = np.zeros(self.shape, np.float32)

    def _scale(self) -> tuple[float, float]:
        zoom = self.pose.zoom
        return self.anatomy.width * zoom * self.pose.aspect, self.anatomy.height * zoom

    @property
    def unit(self) -> float:
        """Pixels per thoracic unit."""
        scale_x, scale_y = self._scale()
        return self.shape[1] / (2.0 * HALF_WIDTH) * float(np.sqrt(scale_x * scale_y))

    def bend(self, y: Array) -> Array:
        """Return the sideways course of a scoliotic spine at height y."""
        swing = np.sin((y + np.float32(self.anatomy.bend_phase)) * np.float32(2.6))
        return swing * np.float32(self.anatomy.bend)

    def lung_edge(self, y: Array) -> Array:
        """Return |x| of the lateral lung border at height y."""
        t = np.clip((y - np.float32(APEX)) * np.float32(1.0 / 1.35), 0.0, 1.0)
        return np.float32(0.93) * np.sqrt(np.float32(1.0) - (np.float32(1.0) - t) ** np.float32(self.anatomy.taper))

    def dome(self, side: str) -> Array:
        """Return y of the diaphragm below each pixel, for one side."""
        level = self.anatomy.dome[0 if side == "right" else 1] + self.pose.breath
        offset = np.abs(self.x) - np.float32(0.46)
        return np.float32(level) + np.float32(0.95 * self.anatomy.dome_curve) * offset * offset

    def texture(self, name: str, rng: np.random.Generator) -> Array:
        """Return a random cut (h, w) of a field of noise with unit variance: fine, grain, patch, cloud or haze."""
        bank = _banks(self.shape[0])[name]
        rows, columns = self.shape
        if rows > _BANK or columns > _BANK:
            bank = np.tile(bank, (-(-rows // _BANK) + 1, -(-columns // _BANK) + 1))
        top = int(rng.integers(0, bank.shape[0] - rows + 1))
        left = int(rng.integers(0, bank.shape[1] - columns + 1))
        return bank[top : top + rows, left : left + columns]

    def ellipse(self, centre: tuple[float, float], radii: tuple[float, float], angle: float = 0.0) -> Array:
        """Return 1 - r, where r is the elliptical radius: positive inside, 1 at the centre."""
        dx, dy = self.x - np.float32(centre[0]), self.y - np.float32(centre[1])
        if angle:
            cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
            dx, dy = cos * dx + sin * dy, cos * dy - sin * dx
        dx, dy = dx * np.float32(1.0 / radii[0]), dy * np.float32(1.0 / radii[1])
        return np.float32(1.0) - np.sqrt(dx * dx + dy * dy)

    def to_pixels(self, points: ArrayLike) -> NDArray[np.float64]:
        """Return (n, 2) pixel positions (column, row) of thoracic points (n, 2)."""
        xy = np.asarray(points, dtype=np.float64).reshape(-1, 2)
        scale_x, scale_y = self._scale()
        px, py = xy[:, 0] * scale_x, xy[:, 1] * scale_y
        cos, sin = np.cos(self.pose.angle), np.sin(self.pose.angle)
        film = np.stack([cos * px - sin * py + self.pose.shift[0], sin * px + cos * py + self.pose.shift[1]], axis=1)
        rows, columns = self.shape
        return film * (columns / (2.0 * HALF_WIDTH)) + np.array([(columns - 1) / 2.0, (rows - 1) / 2.0])

    def from_film(self, film: ArrayLike) -> NDArray[np.float64]:
        """Return the thoracic points (n, 2) that lie at these film coordinates (n, 2), in units from the centre."""
        moved = np.asarray(film, dtype=np.float64).reshape(-1, 2) - np.asarray(self.pose.shift)
        cos, sin = np.cos(self.pose.angle), np.sin(self.pose.angle)
        turned = np.stack([cos * moved[:, 0] + sin * moved[:, 1], cos * moved[:, 1] - sin * moved[:, 0]], axis=1)
        return turned / np.asarray(self._scale())

    def strokes(self, strokes: Iterable[Stroke]) -> Array:
        """Return a layer (h, w) in [0, 1] with lines and discs drawn antialiased, later ones over earlier ones."""
        drawn = [(np.asarray(points, dtype=np.float64).reshape(-1, 2), width, grey) for points, width, grey in strokes]
        rows, columns = self.shape
        if not drawn:
            return np.zeros(self.shape, np.float32)
        layer = Image.new("L", (columns * _SUPERSAMPLING, rows * _SUPERSAMPLING))
        pen = ImageDraw.Draw(layer)
        joined = self.to_pixels(np.concatenate([points for points, _, _ in drawn]))
        flat = (joined * _SUPERSAMPLING + (_SUPERSAMPLING - 1) / 2.0).ravel().tolist()
        scale, start = self.unit * _SUPERSAMPLING, 0
        for points, width, strength in drawn:
            end = start + 2 * len(points)
            fill = round(255 * min(max(strength, 0.0), 1.0))
            if len(points) == 1:
                (cx, cy), r = flat[start:end], width * scale / 2.0
                pen.ellipse((cx - r, cy - r, cx + r, cy + r), fill=fill)
            else:
                pen.line(flat[start:end], fill=fill, width=max(1, round(width * scale)), joint="curve")
            start = end
        return np.asarray(layer.reduce(_SUPERSAMPLING), dtype=np.float32) * np.float32(1.0 / 255.0)

    def point(self, side: str, across: float, y: float) -> tuple[float, float]:
        """Return the point of a lung at height y, `across` running from 0 (mediastinum) to 1 (chest wall)."""
        outer = float(self.lung_edge(np.full(1, y, dtype=np.float32))[0])
        return SIDES[side] * (0.18 + across * (outer - 0.18)), y


def vessel_tree(rng: np.random.Generator) -> list[Stroke]:
    """Return the branches of both lungs' vessels: seven from each hilum, each split twice and thinning."""
    fan = np.tile(np.linspace(-1.35, 1.25, 7), 2) + rng.uniform(-0.12, 0.12, 14)
    sign = np.repeat([-1.0, 1.0], 7)
    start = np.stack([np.full(14, 0.24), HILUM_Y + 0.10 * np.sin(fan)], axis=1)
    length = rng.uniform(0.2, 0.34, 14)
    branches: list[Stroke] = []
    for width in (0.045, 0.028, 0.018):
        middle = start + 0.5 * length[:, None] * np.stack([np.cos(fan), np.sin(fan)], axis=1)
        fan = fan + rng.uniform(-0.25, 0.25, len(fan))
        end = middle + 0.5 * length[:, None] * np.stack([np.cos(fan), np.sin(fan)], axis=1)
        lines = np.stack([start, middle, end], axis=1)  # (branches, 3 points, xy)
        lines[:, :, 0] *= sign[:, None]
        branches.extend((line, width, 0.35 + 8.0 * width) for line in lines)
        split = rng.uniform(0.15, 0.5, (2, len(fan)))
        fan = np.concatenate([fan - split[0], fan + split[1]])
        start, sign = np.tile(end, (2, 1)), np.tile(sign, 2)
        length = np.tile(length, 2) * rng.uniform(0.7, 0.95, len(fan))
    return branches


def course(rng: np.random.Generator, anchors: Sequence[tuple[float, float]], wobble: float) -> NDArray[np.float64]:
    """Return a smooth line (24, 2) through the anchors, shaken a little."""
    xy = np.asarray(anchors, dtype=np.float64)
    xy = xy + rng.uniform(-wobble, wobble, xy.shape)
    t = np.linspace(0.0, 1.0, len(xy))
    fit = np.polynomial.polynomial.polyfit(t, xy, len(xy) - 1)
    line = np.polynomial.polynomial.polyval(np.linspace(0.0, 1.0, 24), fit)
    return np.asarray(line, dtype=np.float64).T
