"""How often the warnings about images hit, and how often they cry wolf.

    RADSHOT_DATA=... python benchmarks/image_warnings.py

Chest radiographs of nih_cxr and covid_chestxray (frontal, as published, 224 pixels) are looked at as they are; with one
line of text drawn onto them (a name and a date, 10 to 14 pixels high, white, in a corner); with a marker of side ("L"
or "R"); and turned by 90, 180 and 270 degrees. What is found on the images as published counts as false, though some of
them do carry text. Intervals are Wilson's, 95 %.
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
from embeddings.image_warnings import lies_wrongly, shows_text

COUNT = 300


def with_text(grey: NDArray[np.float32], text: str, seed: int) -> NDArray[np.float32]:
    """Draw text into a corner."""
    rng = np.random.default_rng(seed)
    picture = Image.fromarray(np.uint8(grey * 235))
    font = ImageFont.load_default(size=int(rng.integers(12, 18)))
    draw = ImageDraw.Draw(picture)
    box = draw.textbbox((0, 0), text, font=font)
    width, height = picture.size
    x = int(rng.choice([4, max(4, width - box[2] - 4)]))
    y = int(rng.choice([4, height - box[3] - 4]))
    draw.text((x, y), text, fill=255, font=font)
    return np.asarray(picture, dtype=np.float32) / 255


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
        started = time.perf_counter()
        for image in images:
            shows_text(image)
            lies_wrongly(image)
        print(f"{name}: {1000 * (time.perf_counter() - started) / len(images):.1f} ms an image")
        rows: dict[str, tuple[Callable[[NDArray[np.float32]], bool], list[NDArray[np.float32]]]] = {
            "text: as published": (shows_text, images),
            "text: a marker L or R": (shows_text, [with_text(g, "LR"[i % 2], i) for i, g in enumerate(images)]),
            "text: a line": (shows_text, [with_text(g, "DOE JOHN 1950-02-03", i) for i, g in enumerate(images)]),
            "turned: as published": (lies_wrongly, images),
            "turned: 90": (lies_wrongly, [np.rot90(g) for g in images]),
            "turned: 180": (lies_wrongly, [np.rot90(g, 2) for g in images]),
            "turned: 270": (lies_wrongly, [np.rot90(g, 3) for g in images]),
        }
        for label, (judge, shown) in rows.items():
            print(f"  {label}: {interval(sum(map(judge, shown)), len(shown))}", flush=True)


if __name__ == "__main__":
    main()
