"""The network alone, images decoded: float32 against what `radshot` computes with instead, and against exports.

    python benchmarks/encoder_ways.py --work /tmp/encoder_ways

`resnet50` and `densenet121` (three channels, 224 x 224, weights of seed 0), batches of 32 phantoms with noise. The
statistics of batch normalisation are first taken from phantoms: with their initial values the vectors of all images are
nearly one, and any two ways agree. "plain" is float32 in a process of its own with glibc's own thresholds, as a script
runs it; the others run in this process, which keeps its memory. The ways take turns; a ratio is the plain time over the
way's, the median over the rounds, with its lowest and highest. The cosine is the lowest over the images; the second is
that of vectors whose mean over the images was subtracted, which shows what the first hides.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from decoding import large_phantom
from numpy.typing import NDArray

from embeddings import Preprocess, TorchEncoder, build_backbone
from embeddings.export import export_encoder
from embeddings.exported_encoder import load_exported
from embeddings.precision import _NetworkCopy, keep_memory, least_cosine

BATCH = 32
CALIBRATION = 16
Images = list[NDArray[np.float32]]


def prepared(network: str) -> tuple[TorchEncoder, Images]:
    """Make the encoder and its loaded images; the same in every process."""
    form = Preprocess(size=(224, 224), channels=3)
    grey = [large_phantom(seed, 256).astype(np.float32) for seed in range(BATCH)]
    images = [form(picture) for picture in grey]
    built = build_backbone(network, in_channels=3, seed=0)
    built.train()
    with torch.no_grad():
        for _ in range(3):
            built(torch.from_numpy(np.stack(images[:CALIBRATION])))
    return TorchEncoder(built.eval(), form, name=network), images


def seconds(encode: Callable[[Images], object], images: Images) -> float:
    """Time one batch."""
    started = time.perf_counter()
    encode(images)
    return time.perf_counter() - started


def plain(network: str) -> None:
    """Answer every line of standard input with the seconds of one batch."""
    encoder, images = prepared(network)
    encoder.encode_loaded(images)
    print("ready", flush=True)
    for _ in sys.stdin:
        print(seconds(encoder.encode_loaded, images), flush=True)


def compare(network: str, work: Path, rounds: int) -> None:
    """Time the ways in turn, and compare their vectors."""
    child = subprocess.Popen(
        [sys.executable, __file__, "--plain", network], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    if child.stdin is None or child.stdout is None:
        raise SystemExit("The plain process has no pipes.")
    child.stdout.readline()
    keep_memory()
    encoder, images = prepared(network)
    ways: dict[str, Callable[[Images], NDArray[np.float32]]] = {
        "float32, memory kept": encoder.encode_loaded,
        "float32, channels last": _NetworkCopy(encoder, "float32"),
        "bfloat16, channels last": _NetworkCopy(encoder, "bfloat16"),
    }
    for kind in ("onnx", "openvino"):
        folder = work / f"{network}-{kind}"
        shutil.rmtree(folder, ignore_errors=True)
        export_encoder(encoder, folder, format=kind, probe=[large_phantom(seed, 256) for seed in range(16)])
        ways[kind] = load_exported(folder).encode_loaded
    exact = encoder.encode_loaded(images)
    found = {name: way(images) for name, way in ways.items()}
    times: dict[str, list[float]] = {"plain": [], **{name: [] for name in ways}}
    for _ in range(rounds):
        child.stdin.write("go\n")
        child.stdin.flush()
        times["plain"].append(float(child.stdout.readline()))
        for name, way in ways.items():
            times[name].append(seconds(way, images))
        print(f"  {network}: " + ", ".join(f"{name} {values[-1]:.2f} s" for name, values in times.items()), flush=True)
    child.stdin.close()
    child.wait()
    print(f"{network}: plain {BATCH / np.median(times['plain']):.1f} images/s", flush=True)
    for name in ways:
        ratios = np.asarray(times["plain"]) / np.asarray(times[name])
        row = {
            "network": network,
            "way": name,
            "ratio": round(float(np.median(ratios)), 2),
            "lowest": round(float(ratios.min()), 2),
            "highest": round(float(ratios.max()), 2),
            "images_per_s": round(BATCH / float(np.median(times[name])), 1),
            "cosine": round(least_cosine(exact, found[name]), 6),
            "cosine_mean_subtracted": round(least_cosine(exact - exact.mean(0), found[name] - exact.mean(0)), 5),
        }
        print(json.dumps(row), flush=True)


def main() -> None:
    """Run one role, or all networks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("encoder_ways"))
    parser.add_argument("--networks", nargs="+", default=["resnet50", "densenet121"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--plain")
    options = parser.parse_args()
    if options.plain:
        return plain(options.plain)
    options.work.mkdir(parents=True, exist_ok=True)
    for network in options.networks:
        compare(network, options.work, options.rounds)
    return None


if __name__ == "__main__":
    main()
