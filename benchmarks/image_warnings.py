"""How often the warnings about images hit, and how often they cry wolf.

    RADSHOT_DATA=... python benchmarks/image_warnings.py

Frontal chest radiographs of nih_cxr and covid_chestxray (as published there, shorter side 224 or a little more) are
looked at as they are; with one line of text drawn onto them (a name and a date, white, in a corner, 12 to 17 pixels of
font, and smaller and larger); with a marker of side ("L" or "R"); and turned by 90, 180 and 270 degrees. Text found on
images as published is listed, for a person to say whether there is some. dicom_samples holds what is no radiograph.
Intervals are Wilson's, 95 %; of a patient with several images each counts, so they are a little narrow. The thresholds
were chosen on images of these sets: other archives may fare worse. Milliseconds are of one thread.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from embeddings import read_image
from embeddings.errors import ImageError
from embeddings.image_warnings import LEAST_SIDE, lies_wrongly, odd_views, shows_text

COUNT = 300
LINE = "DOE JOHN 1950-02-03"
FONTS = {"small": (8, 11), "a line": (12, 18), "large": (20, 28)}


def with_text(
    grey: NDArray[np.float32], text: str, seed: int, fonts: tuple[int, int] = (12, 18)
) -> NDArray[np.float32]:
    """Draw text into a corner."""
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(np.uint8(grey * 235))
    font = ImageFont.load_default(size=int(rng.integers(*fonts)))
    draw = ImageDraw.Draw(picture)
    box = draw.textbbox((0, 0), text, font=font)
    width, height = picture.size
    x = int(rng.choice([4, max(4, width - box[2] - 4)]))
    y = int(rng.choice([4, height - box[3] - 4]))
    draw.text((x, y), text, fill=255, font=font)
    return np.asarray(picture, dtype=np.float32) / np.float32(255)


def interval(hits: int, count: int) -> str:
    """Return a share with Wilson's interval."""
    z, share = 1.96, hits / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = z * np.sqrt(share * (1 - share) / count + z * z / (4 * count * count)) / (1 + z * z / count)
    return f"{share:.3f} [{centre - half:.3f}, {centre + half:.3f}] of {count}"


def main() -> None:
    """Measure and print."""
    data = Path(os.environ["RADSHOT_DATA"])
    for name, frontal in (("nih_cxr", None), ("covid_chestxray", ("PA", "AP", "AP Supine"))):
        table = pd.read_csv(data / name / "manifest.csv", dtype=str)
        if frontal is not None:
            table = table[table["view"].isin(frontal)]
        chosen = table["image"].to_numpy()[np.random.default_rng(0).permutation(len(table))[:COUNT]]
        images = [read_image(data / name / image) for image in chosen]
        larger = [
            np.asarray(Image.fromarray(np.uint8(image * 255)).resize((512, 512)), dtype=np.float32) / 255
            for image in images[:50]
        ]
        for look in (shows_text, lies_wrongly):
            spent = []
            for image in larger:
                started = time.perf_counter()
                look(image)
                spent.append(time.perf_counter() - started)
            print(f"{name}: {look.__name__}: {1000 * np.median(spent):.1f} ms an image of 512 x 512")
        print("  text as published:", *(str(c) for c, g in zip(chosen, images, strict=True) if shows_text(g)))
        rows: dict[str, tuple[Callable[[NDArray[np.float32]], bool], list[NDArray[np.float32]]]] = {
            "text: as published": (shows_text, images),
            "text: a marker L or R": (shows_text, [with_text(g, "LR"[i % 2], i) for i, g in enumerate(images)]),
            **{
                f"text: {size}": (shows_text, [with_text(g, LINE, i, fonts) for i, g in enumerate(images)])
                for size, fonts in FONTS.items()
            },
            "turned: as published": (lies_wrongly, images),
            "turned: 90": (lies_wrongly, [np.rot90(g) for g in images]),
            "turned: 180": (lies_wrongly, [np.rot90(g, 2) for g in images]),
            "turned: 270": (lies_wrongly, [np.rot90(g, 3) for g in images]),
        }
        for label, (judge, shown) in rows.items():
            print(f"  {label}: {interval(sum(map(judge, shown)), len(shown))}", flush=True)
    table = pd.read_csv(data / "covid_chestxray" / "manifest.csv", dtype=str)
    table = table[table["modality"] == "X-ray"]
    odd = set(odd_views(zip(table["image"], table["view"], strict=True)))
    print(f"covid_chestxray: {len(odd)} odd views, {int((table['view'] == 'L').sum())} images are lateral")
    files = pd.read_csv(data / "dicom_samples" / "manifest.csv", dtype=str)["file"]
    seen = {}
    for file in files:
        try:
            grey = read_image(data / "dicom_samples" / file)
        except ImageError:
            continue
        if min(grey.shape) >= LEAST_SIDE:
            seen[file] = shows_text(grey)
    print(
        f"dicom_samples: text in {sum(seen.values())} of {len(seen)}:", *(file for file, text in seen.items() if text)
    )


if __name__ == "__main__":
    main()
