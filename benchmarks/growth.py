"""An archive of 100,000 generated images is embedded, killed twenty times on the way, and searched while it grows.

    python benchmarks/growth.py --images 100000 --kills 20 --work /tmp/growth

The images are drawn from phantoms (one drawing gives many variants: shifted, brightened, with noise) and written as PNG
files. An embedding process says after every commit which rows are durable; it is killed with SIGKILL at random times
and started again. After every kill a fresh process opens the archive and every row that was said to be durable must be
there. All the while another process searches, and compares its answers with brute force over a snapshot of the version
the answer names. In the end ids, vectors, hashes and metadata (but for the time of storing) must equal those of an
archive that was embedded without a kill, `verify` must find nothing, and a rerun must find every file unchanged. What
the interruptions cost is the sum of the interrupted runs' seconds over the uninterrupted run's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from multiprocessing import Pool
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from embeddings import Archive, Index, IngestReport, embed_archive, load_encoder
from episodes.phantoms import draw_phantom

SIDE = 64
FOLDER_SIZE = 1000
#: Variants made of one drawing.
VARIANTS = 200
ENCODER = "pixels-16"
NEIGHBOURS = 10
#: One answer in so many is compared with brute force over the whole snapshot.
CHECKED_EVERY = 5


def draw(job: tuple[Path, int, int, int]) -> None:
    """Write the variants of one drawing that have the numbers first .. last - 1."""
    root, patient, first, last = job
    rng = np.random.default_rng((77, patient))
    base = draw_phantom((), patient=patient, size=(SIDE, SIDE))
    for number in range(first, last):
        shifted = np.roll(base, rng.integers(-6, 7, 2), axis=(0, 1)) * rng.uniform(0.7, 1.2)
        grey = np.clip(shifted + rng.normal(0, 0.02, base.shape), 0, 1)
        path = root / f"{number // FOLDER_SIZE:04d}" / f"{number:07d}.png"
        Image.fromarray(np.rint(grey * 255).astype(np.uint8)).save(path, compress_level=1)


def generate(root: Path, images: int) -> float:
    """Write the images that are not there yet; return the seconds it took."""
    started = time.monotonic()
    done = root / f"complete-{images}"
    if done.exists():
        return 0.0
    for number in range(0, images, FOLDER_SIZE):
        (root / f"{number // FOLDER_SIZE:04d}").mkdir(parents=True, exist_ok=True)
    jobs = [
        (root, patient, first, min(first + VARIANTS, images))
        for patient, first in enumerate(range(0, images, VARIANTS))
    ]
    with Pool(2) as pool:
        for _ in pool.imap_unordered(draw, jobs):
            pass
    done.with_suffix(".txt").write_text("")
    done.touch()
    return time.monotonic() - started


def embed(source: Path, archive: Path, log: Path) -> None:
    """Embed; after every commit append the number of rows that are durable, which is in order of the files."""
    with log.open("a", buffering=1) as acknowledged:

        def note(report: IngestReport) -> None:
            acknowledged.write(f"{report.seen}\n")

        report = embed_archive(source, load_encoder(ENCODER), archive, progress=note)
        acknowledged.write(f"done {json.dumps({'seen': report.seen, 'embedded': report.embedded})}\n")


def search(archive: Path, log: Path, seed: int) -> None:
    """Search until the log of the embedding says that all is over; write what was compared."""
    rng = np.random.default_rng(seed)
    answers = checked = 0
    waits: list[float] = []
    versions: set[int] = set()
    wrong: list[str] = []
    while not Archive.exists(archive):
        time.sleep(0.05)
    with Archive.open(archive, create=False) as held:
        index = Index(held)
        while not log.with_suffix(".stop").exists():
            if not len(held):
                time.sleep(0.05)
                continue
            query = rng.random((1, held.dim)).astype(np.float32)
            started = time.monotonic()
            found = index.search(query, NEIGHBOURS)
            waits.append(time.monotonic() - started)
            answers += 1
            versions.add(found.version)
            if answers % CHECKED_EVERY == 0:
                snapshot = held.snapshot()
                if snapshot.version == found.version:
                    checked += 1
                    wide = snapshot.vectors.astype(np.float64)
                    scores = wide @ query[0].astype(np.float64) / np.linalg.norm(wide, axis=1)
                    order = np.lexsort((np.arange(len(scores)), -scores))[:NEIGHBOURS]
                    if [snapshot.ids[row] for row in order] != found.ids[0]:
                        wrong.append(f"version {found.version}")
            time.sleep(0.02)
    result = {
        "answers": answers,
        "versions": len(versions),
        "compared": checked,
        "wrong": wrong,
        "milliseconds_median": 1000 * float(np.median(waits)),
        "milliseconds_99": 1000 * float(np.quantile(waits, 0.99)),
        "milliseconds_longest": 1000 * max(waits),
    }
    log.with_suffix(".search.json").write_text(json.dumps(result))


def inspect(archive: Path, at_least: int) -> int:
    """In this fresh process: open the archive, and make sure that the first `at_least` files have their rows."""
    with Archive.open(archive, create=False) as held:
        ids = held.ids
    expected = [f"{number // FOLDER_SIZE:04d}/{number:07d}.png" for number in range(at_least)]
    missing = set(expected) - set(ids)
    if missing:
        raise SystemExit(f"{len(missing)} acknowledged rows are missing, {min(missing)} first")
    print(len(ids))
    return len(ids)


def child(*arguments: object) -> list[str]:
    """Return the command that runs one of the roles above."""
    return [sys.executable, __file__, *map(str, arguments)]


def killed_run(source: Path, archive: Path, work: Path, kills: int, about: float, rng: random.Random) -> dict[str, Any]:
    """Embed with kills, searching meanwhile."""
    log = work / "killed.log"
    for path in work.glob("killed*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    shutil.rmtree(archive, ignore_errors=True)
    log.touch()
    searcher = subprocess.Popen(child("--role", "search", "--archive", archive, "--log", log))
    spent, at, redone, kept = [], [], [], 0
    for _ in range(kills):
        before = log.read_text().count("\n")
        started = time.monotonic()
        process = subprocess.Popen(child("--role", "embed", "--source", source, "--archive", archive, "--log", log))
        time.sleep(rng.uniform(0.4, 1.6) * about / (kills + 1))
        over = process.poll() is not None
        process.send_signal(signal.SIGKILL)
        process.wait()
        spent.append(time.monotonic() - started)
        lines = [int(line) for line in log.read_text().split("\n")[before:] if line.isdigit()]
        acknowledged = max([kept, *lines])
        seen = subprocess.run(
            child("--role", "inspect", "--archive", archive, "--rows", acknowledged),
            check=True, capture_output=True, text=True,
        ) if Archive.exists(archive) else None  # fmt: skip
        rows = int(seen.stdout) if seen else 0
        redone.append(rows - acknowledged)
        kept = max(kept, acknowledged)
        at.append(rows)
        print(f"killed at {spent[-1]:.1f} s: {acknowledged:,} rows acknowledged, {rows:,} stored", flush=True)
        if over:
            print("the job was over before this kill", flush=True)
            break
    started = time.monotonic()
    subprocess.run(child("--role", "embed", "--source", source, "--archive", archive, "--log", log), check=True)
    spent.append(time.monotonic() - started)
    log.with_suffix(".stop").touch()
    searcher.wait()
    return {
        "kills": len(at),
        "rows_at_kills": at,
        "seconds": spent,
        "search": json.loads(log.with_suffix(".search.json").read_text()),
    }


def content(archive: Path) -> tuple[list[str], Any, list[str], list[dict[str, Any]]]:
    """Return all that must be equal."""
    with Archive.open(archive, create=False) as held:
        snapshot = held.snapshot()
        metadata = [{k: v for k, v in row.items() if k != "registered_at"} for row in snapshot.metadata]
        return snapshot.ids, snapshot.vectors, snapshot.hashes, metadata


def main() -> None:
    """Run one role, or the whole trial."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("growth"))
    parser.add_argument("--role", choices=("embed", "search", "inspect"))
    for name in ("--source", "--archive", "--log"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--rows", type=int)
    options = parser.parse_args()
    if options.role == "embed":
        return embed(options.source, options.archive, options.log)
    if options.role == "search":
        return search(options.archive, options.log, options.seed)
    if options.role == "inspect":
        inspect(options.archive, options.rows)
        return None
    work: Path = options.work
    source = work / f"images-{options.images}"
    print(f"{options.images:,} images drawn in {generate(source, options.images):.0f} s", flush=True)
    whole, killed = work / "whole", work / "killed-archive"
    shutil.rmtree(whole, ignore_errors=True)
    (work / "whole.log").unlink(missing_ok=True)
    started = time.monotonic()
    arguments = ("--role", "embed", "--source", source, "--archive", whole, "--log", work / "whole.log")
    subprocess.run(child(*arguments), check=True)
    uninterrupted = time.monotonic() - started
    print(f"uninterrupted: {uninterrupted:.1f} s, {options.images / uninterrupted:.0f} images/s", flush=True)
    result = killed_run(source, killed, work, options.kills, uninterrupted, random.Random(options.seed))
    first, second = content(whole), content(killed)
    equal = all(
        (
            first[0] == second[0],
            np.array_equal(first[1], second[1]),
            first[2] == second[2],
            first[3] == second[3],
        )
    )
    with Archive.open(killed, create=False) as held:
        report = held.verify()
    started = time.monotonic()
    again = embed_archive(source, load_encoder(ENCODER), killed, progress=False)
    rerun = time.monotonic() - started
    result |= {
        "images": options.images,
        "uninterrupted_seconds": uninterrupted,
        "interrupted_over_uninterrupted": sum(result["seconds"]) / uninterrupted,
        "equal_to_uninterrupted": equal,
        "verify": report.ok,
        "problems": report.problems,
        "rerun_unchanged": again.unchanged,
        "rerun_seconds": rerun,
        "cores": os.cpu_count(),
    }
    print(json.dumps(result, indent=1))
    if not (equal and report.ok and again.unchanged == options.images and not result["search"]["wrong"]):
        raise SystemExit("the archive is not what it would be without a kill")


if __name__ == "__main__":
    main()
