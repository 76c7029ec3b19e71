"""Line charts side by side as a PNG, drawn with Pillow: what the pictures of benchmarks/calibration.py are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

#: Pixels of the picture per unit of the layout: sharp where a page shows it at half its size.
SCALE = 2
#: Drawn this much larger and then reduced, so that lines are smooth.
SMOOTH = 2
#: Room of one panel, and around its drawing area: left, top, right, bottom; the legend's height.
WIDTH, HEIGHT = 300, 300
LEFT, TOP, RIGHT, BOTTOM, LEGEND = 52, 34, 14, 46, 34
#: Colours that differ in lightness too, and read on white.
COLOURS = ("#9a9a9a", "#0b5fa5", "#d1661d", "#2d8a57")
INK, FAINT = "#222222", "#e4e4e4"


@dataclass(frozen=True)
class Curve:
    """One line.

    Attributes:
        name: What it shows; curves of one name share a colour in all panels.
        points: (x, y) in the panel's ranges.
        dots: Whether each point is marked.
        dashed: Whether the line is broken.
    """

    name: str
    points: Sequence[tuple[float, float]]
    dots: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    """One chart.

    Attributes:
        title: What it is about.
        curves: Its lines.
        x_label, y_label: Names of the axes.
        y_most: Upper end of the upright axis; both start at 0 and x ends at 1.
        diagonal: Whether to draw the line of y = x.
    """

    title: str
    curves: Sequence[Curve]
    x_label: str
    y_label: str
    y_most: float = 1.0
    diagonal: bool = False


def draw_panels(panels: Sequence[Panel], path: Path) -> None:
    """Draw the panels side by side on white, one legend below.

    Args:
        panels: From left to right.
        path: Where the PNG is written.
    """
    unit = SCALE * SMOOTH
    image = Image.new("RGB", (len(panels) * WIDTH * unit, (HEIGHT + LEGEND) * unit), "white")
    pen = ImageDraw.Draw(image)
    names = list(dict.fromkeys(curve.name for panel in panels for curve in panel.curves))
    for i, panel in enumerate(panels):
        _draw_panel(image, pen, panel, i * WIDTH, names, unit)
    wide = [60 + pen.textlength(name, font=_font(12, unit)) / unit for name in names]
    at = (len(panels) * WIDTH - sum(wide)) / 2
    for name, width in zip(names, wide, strict=True):
        y = HEIGHT + LEGEND / 2 - 2
        dashed = any(curve.dashed for panel in panels for curve in panel.curves if curve.name == name)
        _line(pen, [(at, y), (at + 26, y)], COLOURS[names.index(name)], 2.2, unit, dashed=dashed)
        pen.text(((at + 33) * unit, y * unit), name, fill=INK, font=_font(12, unit), anchor="lm")
        at += width
    small = image.resize((image.width // SMOOTH, image.height // SMOOTH), Image.Resampling.LANCZOS)
    small.quantize(96, dither=Image.Dither.NONE).save(path, optimize=True)


def _draw_panel(
    image: Image.Image, pen: ImageDraw.ImageDraw, panel: Panel, left: float, names: list[str], unit: int
) -> None:
    def place(x: float, y: float) -> tuple[float, float]:
        across, up = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        return left + LEFT + x * across, HEIGHT - BOTTOM - min(y / panel.y_most, 1.0) * up

    for step in range(6):
        share = step / 5
        _line(pen, [place(share, 0), place(share, panel.y_most)], FAINT, 0.8, unit)
        _line(pen, [place(0, share * panel.y_most), place(1, share * panel.y_most)], FAINT, 0.8, unit)
        x, y = place(share, 0)
        pen.text(
            (x * unit, (y + 6) * unit), f"{share:.1f}" if step else "0", fill=INK, font=_font(11, unit), anchor="mt"
        )
        x, y = place(0, share * panel.y_most)
        text = f"{share * panel.y_most:.2f}".rstrip("0").rstrip(".") if step else "0"
        pen.text(((x - 6) * unit, y * unit), text, fill=INK, font=_font(11, unit), anchor="rm")
    _line(pen, [place(0, panel.y_most), place(0, 0), place(1, 0)], "#777777", 1, unit)
    if panel.diagonal:
        _line(pen, [place(0, 0), place(1, 1)], "#777777", 1, unit, dashed=True)
    middle = left + LEFT + (WIDTH - LEFT - RIGHT) / 2
    pen.text((middle * unit, (TOP - 10) * unit), panel.title, fill=INK, font=_font(14, unit), anchor="ms")
    pen.text((middle * unit, (HEIGHT - 8) * unit), panel.x_label, fill=INK, font=_font(12, unit), anchor="ms")
    _upright(image, panel.y_label, (left + 12) * unit, (TOP + (HEIGHT - TOP - BOTTOM) / 2) * unit, unit)
    for curve in panel.curves:
        colour = COLOURS[names.index(curve.name)]
        points = [place(x, y) for x, y in curve.points]
        _line(pen, points, colour, 2.2, unit, dashed=curve.dashed)
        for x, y in points if curve.dots else ():
            pen.ellipse([(x - 3) * unit, (y - 3) * unit, (x + 3) * unit, (y + 3) * unit], fill=colour, outline="white")


def _line(
    pen: ImageDraw.ImageDraw,
    points: Sequence[tuple[float, float]],
    colour: str,
    width: float,
    unit: int,
    *,
    dashed: bool = False,
) -> None:
    """A line in units of the layout; a dashed one is given as its straight parts."""
    own = [(x * unit, y * unit) for x, y in points]
    if not dashed:
        pen.line(own, fill=colour, width=max(1, round(width * unit)), joint="curve")
        return
    travelled, period = 0.0, 8.0 * unit
    for (x0, y0), (x1, y1) in pairwise(own):
        length = ((x1 - x0) ** 2 + (y1 - y0) ** 2) ** 0.5
        done = 0.0
        while done < length:
            step = min(period / 2 - travelled % (period / 2), length - done) or period / 2
            if int(travelled / (period / 2) + 1e-9) % 2 == 0:
                start, stop = done / length, min(1.0, (done + step) / length)
                ends = [(x0 + s * (x1 - x0), y0 + s * (y1 - y0)) for s in (start, stop)]
                pen.line(ends, fill=colour, width=max(1, round(width * unit)))
            done, travelled = done + step, travelled + step


def _upright(image: Image.Image, text: str, x: float, y: float, unit: int) -> None:
    """A text turned by a quarter, its middle at (x, y) in pixels."""
    font = _font(12, unit)
    left, top, right, bottom = font.getbbox(text)
    label = Image.new("RGB", (int(right - left) + 4, int(bottom - top) + 4), "white")
    ImageDraw.Draw(label).text((2 - left, 2 - top), text, fill=INK, font=font)
    turned = label.rotate(90, expand=True)
    image.paste(turned, (round(x - turned.width / 2), round(y - turned.height / 2)))


def _font(size: int, unit: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font, so that the picture needs none of the machine's."""
    font = ImageFont.load_default(size * unit)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise SystemExit("The pictures need a Pillow built with FreeType.")
    return font
