"""A rerun with one new file in a hundred against embedding all again; and what a kill in the middle costs.

    python benchmarks/rerun.py --images 2000 --pairs 7 --work /tmp/rerun

JPEG files of 1024 x 1024 (phantoms with noise, quality 90) are embedded by an untrained network. A pair is one full
embedding into a new archive, and one rerun over the archive after 1 % new files were added; the seconds are those of
the job, without loading Python and the encoder. For the kill, an embedding process dies by SIGKILL at a random moment
and another takes over: the two jobs' seconds together are compared with those of an uninterrupted job, in pairs too.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image

from embeddings import Archive, IngestReport, embed_archive, load_encoder
from episodes.phantoms import draw_phantom

SIDE = 1024
QUALITY = 90
#: Variants made of one drawing.
VARIANTS = 50
NEW_SHARE = 0.01


def write_image(path: Path, number: int, base: np.ndarray) -> None:
    """Write one variant of a drawing."""
    rng = np.random.default_rng((5, number))
    grey = np.roll(base, rng.integers(-40, 41, 2), axis=(0, 1)) * rng.uniform(0.7, 1.2)
    noise = rng.normal(0, 0.02, base.shape).astype(np.float32)
    Image.fromarray(np.rint(np.clip(grey + noise, 0, 1) * 255).astype(np.uint8)).save(path, quality=QUALITY)


def generate(root: Path, first: int, last: int) -> None:
    """Write the images first .. last - 1 that are not there yet."""
    root.mkdir(parents=True, exist_ok=True)
    base: tuple[int, np.ndarray] | None = None
    for number in range(first, last):
        path = root / f"{number:06d}.jpg"
        if path.exists():
            continue
        patient = number // VARIANTS
        if base is None or base[0] != patient:
            base = patient, draw_phantom((), patient=patient, size=(SIDE, SIDE))
        write_image(path, number, base[1])


def timed(source: Path, encoder: str, archive: Path) -> tuple[float, IngestReport]:
    """Embed and return the job's seconds."""
    chosen = load_encoder(encoder)
    started = time.monotonic()
    report = embed_archive(source, chosen, archive, progress=False)
    return time.monotonic() - started, report


def reruns(options: argparse.Namespace) -> list[tuple[float, float]]:
    """Return (full, rerun) seconds of every pair."""
    source, new = options.work / "jpeg", max(1, round(NEW_SHARE * options.images))
    generate(source, 0, options.images)
    pairs = []
    for pair in range(options.pairs):
        archive = options.work / "archive"
        shutil.rmtree(archive, ignore_errors=True)
        full, report = timed(source, options.encoder, archive)
        if report.embedded != options.images:
            raise SystemExit(f"the full run embedded {report.embedded} of {options.images}: {report}")
        generate(source, options.images, options.images + new)
        again, report = timed(source, options.encoder, archive)
        if (report.embedded, report.unchanged) != (new, options.images):
            raise SystemExit(f"the rerun did something else: {report}")
        for number in range(options.images, options.images + new):
            (source / f"{number:06d}.jpg").unlink()
        pairs.append((full, again))
        print(f"pair {pair}: full {full:.2f} s, rerun {again:.3f} s, ratio {full / again:.1f}", flush=True)
    return pairs


def kills(options: argparse.Namespace) -> list[tuple[float, float]]:
    """Return (uninterrupted, interrupted and resumed) seconds of every pair."""
    source, rng = options.work / "jpeg", random.Random(options.seed)
    generate(source, 0, options.images)
    pairs = []
    for pair in range(options.pairs):
        archive = options.work / "archive"
        shutil.rmtree(archive, ignore_errors=True)
        whole = _run(options, archive, None)
        shutil.rmtree(archive, ignore_errors=True)
        first = _run(options, archive, rng.uniform(0.1, 0.9) * whole)
        second = _run(options, archive, None)
        with Archive.open(archive, create=False) as held:
            if len(held) != options.images:
                raise SystemExit(f"{len(held)} rows of {options.images}")
        pairs.append((whole, first + second))
        print(f"pair {pair}: {whole:.2f} s whole, {first:.2f} + {second:.2f} s with a kill", flush=True)
    return pairs


def _run(options: argparse.Namespace, archive: Path, kill_after: float | None) -> float:
    """Embed in a process of its own and return the job's seconds; kill it after so many where told."""
    command = [sys.executable, __file__, "--role", "job", "--work", str(options.work), "--encoder", options.encoder]
    process = subprocess.Popen([*command, "--archive", str(archive)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None  # noqa: S101
    process.stdout.readline()  # the job begins
    started = time.monotonic()
    if kill_after is not None:
        time.sleep(kill_after)
        process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return time.monotonic() - started


def main() -> None:
    """Measure, and print the medians."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--encoder", default="untrained:resnet18")
    parser.add_argument("--work", type=Path, default=Path("rerun"))
    parser.add_argument("--role", choices=("job",))
    parser.add_argument("--archive", type=Path)
    parser.add_argument("--only", choices=("rerun", "kill"))
    options = parser.parse_args()
    if options.role == "job":
        encoder = load_encoder(options.encoder)
        print("begins", flush=True)
        embed_archive(options.work / "jpeg", encoder, options.archive, progress=False)
        return
    result = {"images": options.images, "encoder": options.encoder, "seed": options.seed}
    if options.only != "kill":
        ratios = [full / again for full, again in reruns(options)]
        result |= {"rerun_ratio_median": float(np.median(ratios)), "rerun_ratios": ratios}
    if options.only != "rerun":
        costs = [resumed / whole for whole, resumed in kills(options)]
        result |= {"resume_ratio_median": float(np.median(costs)), "resume_ratios": costs}
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
