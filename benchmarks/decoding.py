"""Decoding at the resolution that is needed: files per second, and how far what the network sees changes.

    RADSHOT_DATA=... python benchmarks/decoding.py --work /tmp/decoding

Speed: 2,048 x 2,048 DICOM files of 12 bits (phantoms enlarged, with noise) in five transfer syntaxes and 1,024 x 1,024
JPEG files, read and brought to 224 x 224 in turn: by what pydicom and Pillow alone decode ("bare"), by pydicom with our
decoders installed ("plain"; for JPEG both are Pillow), each with a window and Pillow's resampling, by `read_image` of
every pixel ("whole"), and by `read_reduced` ("reduced"). Ratios are medians over pairs; cosines compare the last two.

What changes: real radiographs of the image sets (224 pixels), as JPEG, and in DICOM as lossless JPEG 2000 and
uncompressed, cut to sizes that halve unevenly and evenly, through a wide and a narrow window (the middle half of the
grey levels): the cosine between what a network sees after full and after reduced decoding, mean subtracted, for margins
of 1, 2 and 4.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pydicom
from numpy.typing import NDArray
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels import pixel_array
from pydicom.uid import (
    JPEG2000,
    DigitalXRayImageStorageForPresentation,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from embeddings import Preprocess, dicom, dicom_file, images, read_image
from embeddings.images import read_reduced
from episodes.phantoms import draw_phantom

SYNTAXES = {
    "uncompressed": ExplicitVRLittleEndian,
    "RLE": RLELossless,
    "JPEG-LS": JPEGLSLossless,
    "JPEG 2000 lossless": JPEG2000Lossless,
    "JPEG 2000 lossy": JPEG2000,
}
BARE = {"RLE": "pydicom", "JPEG 2000 lossless": "pillow", "JPEG 2000 lossy": "pillow"}
"""The decoders of an installation of pydicom and Pillow; of JPEG-LS it has none."""
FILES = 6
SEEN = Preprocess(size=(224, 224))


def large_phantom(seed: int, side: int) -> NDArray[np.float64]:
    """Draw a phantom at 512, enlarge it, and add the noise of a detector."""
    small = Image.fromarray(draw_phantom((), patient=seed, size=(512, 512)))
    grey = np.asarray(small.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64)
    return np.clip(grey + np.random.default_rng(seed).normal(0, 0.01, grey.shape), 0, 1)


def write_dicom(path: Path, grey: NDArray[np.float64], syntax: str, bits: int = 12) -> None:
    """Write grey levels as a digital radiograph."""
    pixels = np.rint(grey * (2**bits - 1)).astype(np.uint16 if bits > 8 else np.uint8)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[path.name])
    data = Dataset()
    data.file_meta = meta
    data.SOPClassUID, data.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    data.PatientID, data.Modality = path.stem, "DX"
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation, data.PixelRepresentation = 1, "MONOCHROME2", 0
    data.BitsAllocated = 8 * pixels.itemsize
    data.BitsStored, data.HighBit = bits, bits - 1
    data.WindowCenter, data.WindowWidth = 2 ** (bits - 1), 2**bits
    data.PixelData = pixels.tobytes()
    if syntax == JPEG2000:
        data.compress(syntax, j2k_cr=[10])
    elif syntax != ExplicitVRLittleEndian:
        data.compress(syntax)
    data.save_as(path, enforce_file_format=True)


def plainly(path: Path, plugin: str = "") -> NDArray[np.uint8]:
    """Decode as most scripts do: pydicom or Pillow, a window, a resize."""
    if path.suffix == ".jpg":
        with Image.open(path) as image:
            return np.asarray(image.convert("L").resize(SEEN.size, Image.Resampling.BILINEAR))
    data = pydicom.dcmread(path)
    low = float(data.WindowCenter) - float(data.WindowWidth) / 2
    stored = pixel_array(data, decoding_plugin=plugin)
    grey = np.clip((stored.astype(np.float32) - low) / float(data.WindowWidth), 0, 1)
    return np.asarray(Image.fromarray(np.uint8(grey * 255)).resize(SEEN.size, Image.Resampling.BILINEAR))


def whole(path: Path) -> NDArray[np.uint8]:
    """Decode every pixel with `read_image`."""
    return SEEN.compact(read_image(path))


def reduced(path: Path) -> NDArray[np.uint8]:
    """Decode what is needed, as encoders do."""
    return SEEN.compact(*read_reduced(path, SEEN.size))


def seconds(read: Callable[[Path], object], files: list[Path]) -> float:
    """Seconds per file."""
    started = time.perf_counter()
    for path in files:
        read(path)
    return (time.perf_counter() - started) / len(files)


def speed(work: Path, pairs: int) -> list[dict[str, float | str]]:
    """Compare the three ways, kind by kind."""
    work.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, float | str]] = []
    for kind in (*SYNTAXES, "JPEG 1024"):
        files = []
        for seed in range(FILES):
            path = work / f"{kind.replace(' ', '-')}-{seed}{'.jpg' if kind == 'JPEG 1024' else '.dcm'}"
            files.append(path)
            if path.exists():
                continue
            if kind == "JPEG 1024":
                Image.fromarray(np.uint8(large_phantom(seed, 1024) * 255)).save(path, quality=90)
            else:
                write_dicom(path, large_phantom(seed, 2048), SYNTAXES[kind])
        bare = partial(plainly, plugin=BARE.get(kind, ""))
        times = [[seconds(read, files) for read in (bare, plainly, whole, reduced)] for _ in range(pairs)]
        without, plain, full, fast = np.asarray(times).T
        rows.append(
            {
                "kind": kind,
                "bare_per_s": float(np.median(1 / without)),
                "plain_per_s": float(np.median(1 / plain)),
                "whole_per_s": float(np.median(1 / full)),
                "reduced_per_s": float(np.median(1 / fast)),
                "ratio_whole": float(np.median(plain / full)),
                "ratio_reduced": float(np.median(plain / fast)),
                "ratio_reduced_bare": float(np.median(without / fast)),
                "cosine_lowest": min(cosine(whole(path), reduced(path)) for path in files),
            }
        )
        print(rows[-1], flush=True)
    return rows


def cosine(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Cosine of two pictures, their own means subtracted."""
    a, b = (picture.astype(np.float64).ravel() - picture.mean() for picture in (first, second))
    return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def changed_files(kind: str, chosen: list[Path], work: Path) -> list[Path]:
    """Return the files of one kind: JPEG as they are, or as DICOM written once."""
    files = []
    for number, path in enumerate(chosen):
        with Image.open(path) as image:
            if min(image.size) < 200 or image.mode not in ("L", "RGB"):
                continue
        if kind == "as it is":
            files += [path] if path.suffix.lower() in (".jpg", ".jpeg") else []
            continue
        target = work / f"{path.parent.name}-{path.stem}-{kind.split(',')[0].replace(' ', '-')}.dcm"
        if not target.exists():
            grey = read_image(path).astype(np.float64)
            rows, columns = (
                side - (side % 4 if kind.startswith("uncompressed") else number % 3) for side in grey.shape
            )
            syntax = JPEG2000Lossless if kind.startswith("JPEG 2000") else ExplicitVRLittleEndian
            write_dicom(target, grey[:rows, :columns], syntax, bits=8)
        files.append(target)
    return files


def changes(data: Path, work: Path, count: int) -> list[dict[str, float | str | int]]:
    """Compare what is seen after full and after reduced decoding of real radiographs."""
    rows: list[dict[str, float | str | int]] = []
    for name in ("nih_cxr", "covid_chestxray"):
        table = pd.read_csv(data / name / "manifest.csv", dtype=str)
        paths = [data / name / image for image in table["image"]]
        chosen = [paths[i] for i in np.random.default_rng(0).permutation(len(paths))[: 3 * count]]
        for kind in ("as it is", "JPEG 2000", "JPEG 2000, narrow", "uncompressed", "uncompressed, narrow"):
            files = changed_files(kind, chosen, work)[:count]
            for side in (24, 48, 100):
                form = Preprocess(size=(side, side))
                for margin in (1, 2, 4):
                    images.JPEG_MARGIN = dicom_file.JPEG2000_MARGIN = dicom.BLOCK_MARGIN = margin
                    values = []
                    for file in files:
                        window = None
                        if kind.endswith("narrow"):
                            low, middle, high = np.percentile(read_image(file) * 255, (25, 50, 75))
                            window = (float(middle), float(max(high - low, 10)))
                        grey, (small, shape) = (
                            read_image(file, window=window),
                            read_reduced(file, form.size, window=window),
                        )
                        if small.shape != grey.shape:
                            values.append(cosine(form.compact(grey), form.compact(small, shape)))
                    if values:
                        rows.append(
                            {
                                "set": name,
                                "kind": kind,
                                "side": side,
                                "margin": margin,
                                "images": len(values),
                                "cosine_median": float(np.median(values)),
                                "cosine_lowest": min(values),
                                "below_0.999": sum(value < 0.999 for value in values),
                            }
                        )
                        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("decoding"))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--only", choices=("speed", "changes"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    result: dict[str, object] = {}
    if options.only != "changes":
        result["speed"] = speed(options.work, options.pairs)
    if options.only != "speed":
        result["changes"] = changes(Path(os.environ["RADSHOT_DATA"]), options.work, options.count)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
