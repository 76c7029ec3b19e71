"""One query of the demo as a picture: heat map, probabilities, prediction set, the images that spoke for and against.

    python benchmarks/evidence_picture.py demo --out docs/evidence.png

Shown is the least sure right answer whose heat maps agree, of the demo's patients who neither support the set nor were
set aside: one that is beyond doubt has little to show. `--query` shows another image. Phantoms only.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from embeddings import load_encoder, read_image
from episodes import Decision, Manifest, Neighbor
from fewshot import ComparisonSet, Explanation, PrototypeClassifier, explain_image, open_deployment, overlay
from fewshot.heatmap_pictures import WARNING, colours
from fewshot.heatmaps import AGREES

#: Pixels of the picture per unit of the layout; a page that shows it 900 wide shows a unit as a pixel.
SCALE = 2
WIDTH, HEIGHT, MARGIN = 900, 470, 20
#: Sides of the query and of a support image, and how many of these are shown for each class.
LARGE, SMALL, SHOWN = 212, 128, 3
#: Where the column of the support images begins.
RIGHT = 480
INK, FAINT, LINE, OURS, OTHER = "#1c2430", "#5b6675", "#d8dde4", "#0b6e75", "#b9c1cb"
#: Sizes of text: the answer, what is said, captions.
BIG, PLAIN, CAPTION = 20, 14, 12.5


class Sheet:
    """A white sheet that is drawn on in units of the layout.

    Args:
        width, height: In units.
    """

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width * SCALE, height * SCALE), "white")
        self._pen = ImageDraw.Draw(self.image)

    def text(self, x: float, y: float, text: str, size: float, fill: str = INK, anchor: str = "ls") -> float:
        """Write a line on its baseline; returns where it ends."""
        font = ImageFont.load_default(size=size * SCALE)
        self._pen.text((x * SCALE, y * SCALE), text, fill=fill, font=font, anchor=anchor)
        return x + float(font.getlength(text)) / SCALE

    def picture(self, x: float, y: float, side: int, picture: NDArray[np.uint8]) -> None:
        """Fit a picture into a square whose upper left corner is at (x, y)."""
        drawn = Image.fromarray(picture).convert("RGB")
        factor = side * SCALE / max(drawn.size)
        size = round(drawn.width * factor), round(drawn.height * factor)
        at = round(x * SCALE) + (side * SCALE - size[0]) // 2, round(y * SCALE) + (side * SCALE - size[1]) // 2
        self.bar(x, y, side, side, "black")
        self.image.paste(drawn.resize(size, Image.Resampling.LANCZOS), at)

    def bar(self, x: float, y: float, width: float, height: float, fill: str) -> None:
        """Fill a rectangle."""
        self._pen.rectangle(
            [round(v * SCALE) for v in (x, y)] + [round(v * SCALE) - 1 for v in (x + width, y + height)], fill=fill
        )

    def ramp(self, x: float, y: float, width: float, height: float) -> None:
        """Draw the heat map's scale."""
        row = colours()[np.linspace(0, 255, round(width * SCALE)).astype(np.intp)]
        block = np.repeat(np.rint(row).astype(np.uint8)[None], round(height * SCALE), axis=0)
        self.image.paste(Image.fromarray(block), (round(x * SCALE), round(y * SCALE)))


def main() -> None:
    """Draw the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("demo", type=Path, metavar="DEMO", help="what `radshot demo` wrote")
    parser.add_argument("--out", type=Path, default=Path("docs/evidence.png"))
    parser.add_argument("--query", help="name of an image in DEMO/unseen/manifest.csv")
    options = parser.parse_args()
    encoder = load_encoder(options.demo / "encoder")
    manifest = Manifest.read(options.demo / "unseen" / "manifest.csv", group="patient")
    with ComparisonSet.open(options.demo / "cases", encoder=encoder) as cases:
        support, aside = cases.parts()
        deployment = open_deployment(cases)
        means = PrototypeClassifier(center=encoder.source_mean).fit(cases.vectors, cases.labels, ids=cases.ids)
    seen = {row.get("patient") for part in (support, aside) for row in part.metadata}
    groups, names = list(manifest.groups or ()), [str(name) for name in manifest.table["image"]]
    rows = [i for i in range(len(manifest)) if str(groups[i]) not in seen]
    if options.query is not None:
        rows = [names.index(options.query)]
    vectors = encoder.encode([manifest.images[i] for i in rows])
    decisions = deployment.decide(vectors)
    for place in sorted(range(len(rows)), key=lambda place: decisions[place].probability or 0.0):
        row, decision = rows[place], decisions[place]
        if options.query is None and decision.label != manifest.labels[row]:
            continue
        explanation = explain_image(encoder, deployment.head, manifest.images[row], prototypes=means)
        if options.query is None and (explanation.maps[0].agreement or 0.0) < AGREES:
            continue
        scores = deployment.head.scores(vectors[place : place + 1])
        shown = deployment.fitted.probabilities
        if shown is None:
            raise SystemExit("The demo's deployment was not calibrated, so there is no probability to show.")
        shares = dict(zip(deployment.classes, shown.probabilities(scores)[0].tolist(), strict=True))
        paths = {name: str(data["path"]) for name, data in zip(support.ids, support.metadata, strict=True)}
        sheet = compose(str(manifest.labels[row]), decision, explanation, shares, paths)
        sheet.image.save(options.out, optimize=True)
        print(f"{options.out}: {names[row]}")
        return
    raise SystemExit("No query is answered rightly with heat maps that agree; name one by --query.")


def compose(
    truth: str, decision: Decision, explanation: Explanation, shares: dict[str, float], paths: dict[str, str]
) -> Sheet:
    """Put the picture together.

    Args:
        truth: What the query shows.
        decision: The answer.
        explanation: Its heat maps.
        shares: Probability of each class.
        paths: Files of the support images.
    """
    sheet = Sheet(WIDTH, HEIGHT)
    second = MARGIN + LARGE + 16
    sheet.text(MARGIN, 34, f"Asked: {truth}", PLAIN, FAINT)
    sheet.picture(MARGIN, 46, LARGE, _grey(explanation.image))
    best = explanation.maps[0]
    kind = {"grad-cam": "Grad-CAM", "occlusion": "occlusion"}[best.kind]
    sheet.text(second, 34, f"What speaks for it ({kind})", PLAIN, FAINT)
    sheet.picture(second, 46, LARGE, overlay(explanation.image, best))
    sheet.ramp(second, 46 + LARGE + 6, LARGE, 6)
    foot = 46 + LARGE + 28
    if best.agreement is not None:
        sheet.text(second, foot, f"agreement with occlusion {best.agreement:.2f}", CAPTION, FAINT)
    _bars(sheet, decision, shares, top=foot + 30)
    answer = "none of these" if decision.label is None else str(decision.label)
    end = sheet.text(RIGHT, 36, f"Answer: {answer}", BIG, OURS)
    if decision.probability is not None:
        sheet.text(end + 12, 36, f"probability {decision.probability:.2f}", PLAIN)
    _supporters(sheet, "registered images that speak for it", decision.evidence, paths, top=62)
    _supporters(sheet, f"for the runner-up, {decision.runner_up}", decision.counter_evidence, paths, top=62 + 190)
    sheet.text(WIDTH - MARGIN, HEIGHT - 14, f"Synthetic radiographs. {WARNING}.", CAPTION, FAINT, anchor="rs")
    return sheet


def _supporters(sheet: Sheet, title: str, found: tuple[Neighbor, ...], paths: dict[str, str], *, top: float) -> None:
    """The nearest support images of one class with their similarity."""
    sheet.text(RIGHT, top + 2, title, PLAIN, FAINT)
    for place, neighbour in enumerate(found[:SHOWN]):
        left = RIGHT + place * (SMALL + 8)
        sheet.picture(left, top + 12, SMALL, _grey(read_image(paths[neighbour.id])))
        sheet.text(left, top + SMALL + 28, f"similarity {neighbour.similarity:.2f}", CAPTION)


def _bars(sheet: Sheet, decision: Decision, shares: dict[str, float], *, top: float) -> None:
    """Probability of each class; those of the prediction set are coloured."""
    members = decision.prediction_set or ()
    title = "Probability of each finding"
    if decision.coverage is not None:
        title += f"; coloured: not ruled out ({decision.coverage:.0%} set)"
    sheet.text(MARGIN, top, title, PLAIN, FAINT)
    start, room = MARGIN + 116, 2 * LARGE + 16 - 116 - 44
    for place, (label, share) in enumerate(sorted(shares.items(), key=lambda item: -item[1])):
        y = top + 12 + place * 23
        inside = label in members
        sheet.text(MARGIN, y + 12, label, PLAIN, INK if inside else FAINT)
        sheet.bar(start, y, room, 15, "#f0f2f5")
        sheet.bar(start, y, max(1.0, share * room), 15, OURS if inside else OTHER)
        sheet.text(MARGIN + 2 * LARGE + 16, y + 12, f"{share:.2f}", PLAIN, INK if inside else FAINT, anchor="rs")


def _grey(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Grey levels in [0, 1] as bytes."""
    return np.rint(image * 255).astype(np.uint8)


if __name__ == "__main__":
    main()
