"""Every real image and 2,000 damaged copies ingested into one archive: counts add up, nothing good is lost.

    RADSHOT_DATA=... python benchmarks/hostile_ingest.py --work /tmp/hostile --damaged 2000 --seed 0

The images of RADSHOT_DATA are first ingested alone; then, into a second archive, between damaged copies of themselves:
damaged pictures before them, damaged DICOM files after them (two files of one SOPInstanceUID are one image, and of two
that differ the first is kept). A good image is lost if the second archive lacks a row of the first, or holds it with
another vector. The exit status is 1 where anything was lost or the counts do not add up.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import shutil
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from embeddings import Archive, embed_archive, load_encoder
from embeddings.ingest_report import IngestReport

IMAGE_SUFFIXES = frozenset({".dcm", ".jpg", ".jpeg", ".png", ".tif", ".tiff"})
"""Files below RADSHOT_DATA that are images; what else lies there may be refused."""

PAGE = 512
"""Bytes that are zeroed, replaced or moved at once."""

HEADER_BYTES = 400
"""Where a format keeps what its decoder believes: sizes, tables, offsets."""

PLUG_IN = re.compile(r"plug-?in|pip install|needs? the|codec|install", re.IGNORECASE)
"""How a refusal names a decoder that is not installed."""

HEADS = (
    b"\x89PNG\r\n\x1a\n",
    b"\xff\xd8\xff\xe0",
    b"II*\0",
    b"MM\0*",
    b"GIF89a",
    bytes(128) + b"DICM",
    b"\x1f\x8b\x08",
)
"""First bytes of other formats."""


def flip(good: bytes, rng: random.Random) -> bytes:
    """Flip up to sixteen bits."""
    changed = bytearray(good)
    for _ in range(rng.randrange(1, 17)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def header(good: bytes, rng: random.Random) -> bytes:
    """Change up to eight bytes of the header."""
    changed = bytearray(good)
    for _ in range(rng.randrange(1, 9)):
        changed[rng.randrange(min(HEADER_BYTES, len(changed)))] = rng.randrange(256)
    return bytes(changed)


def page(good: bytes, rng: random.Random) -> bytes:
    """Zero a page, or fill it with noise."""
    spot = rng.randrange(len(good))
    return good[:spot] + (bytes(PAGE) if rng.random() < 0.5 else rng.randbytes(PAGE)) + good[spot + PAGE :]


def splice(good: bytes, rng: random.Random) -> bytes:
    """Leave out, or say twice, a part of the file."""
    one, two = sorted((rng.randrange(len(good)), rng.randrange(len(good))))
    return good[:one] + good[two:] if rng.random() < 0.5 else good[:two] + good[one:]


DAMAGES: Mapping[str, Callable[[bytes, random.Random], bytes]] = {
    "bits flipped": flip,
    "header bytes": header,
    "cut": lambda good, rng: good[: rng.randrange(len(good))],
    "page": page,
    "spliced": splice,
    "grown": lambda good, rng: good + rng.randbytes(rng.randrange(1, 5000)),
    "foreign head": lambda good, rng: rng.choice(HEADS) + good[8:],
    "noise": lambda good, rng: good[:16] + rng.randbytes(rng.randrange(1, 3000)),
}
"""Name -> what makes a damaged copy of a file's bytes."""


def spoil(good: list[Path], work: Path, count: int, seed: int) -> dict[str, str]:
    """Write `count` damaged copies below `work`; return file name -> kind of damage. A third are of DICOM files."""
    rng = random.Random(seed)
    pictures = [path for path in good if path.suffix != ".dcm"]
    dicom = [path for path in good if path.suffix == ".dcm"]
    kinds = {}
    for number in range(count):
        source = rng.choice(dicom if dicom and (number % 3 == 0 or not pictures) else pictures)
        kind = rng.choice(list(DAMAGES))
        content = source.read_bytes()
        changed = DAMAGES[kind](content, rng)
        folder = work / ("late" if source.suffix == ".dcm" else "early")
        folder.mkdir(parents=True, exist_ok=True)
        name = f"damaged-{number:05d}{source.suffix}"
        (folder / name).write_bytes(changed if changed != content else content + b"\0")
        kinds[name] = kind
    return kinds


def adds_up(report: IngestReport) -> bool:
    """Say whether every file is accounted for once."""
    parts = report.embedded + report.updated + report.duplicate + report.unchanged + report.quarantined
    return report.seen == report.total == parts


def rows_of(folder: Path) -> dict[str, bytes]:
    """Return id -> vector bytes."""
    with Archive.open(folder) as archive:
        if not archive.verify().ok:
            sys.exit(f"{folder} does not verify")
        held = archive.snapshot()
        return {identity: vector.tobytes() for identity, vector in zip(held.ids, held.vectors, strict=True)}


def main() -> int:
    """Run both jobs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--damaged", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--encoder", default="pixels-16")
    parser.add_argument("--only", default="", help="a folder below RADSHOT_DATA")
    options = parser.parse_args()
    data = (Path(os.environ["RADSHOT_DATA"]) / options.only).resolve()
    for part in ("early", "late", "alone", "mixed"):
        shutil.rmtree(options.work / part, ignore_errors=True)
    options.work.mkdir(parents=True, exist_ok=True)
    good = sorted(path for path in data.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    kinds = spoil(good, options.work, options.damaged, options.seed)
    encoder = load_encoder(options.encoder)
    started = time.monotonic()
    alone = embed_archive(data, encoder, options.work / "alone", progress=False)
    alone_seconds = time.monotonic() - started
    sources = [one for one in (options.work / "early", data, options.work / "late") if one.exists()]
    started = time.monotonic()
    mixed = embed_archive(sources, encoder, options.work / "mixed", progress=False)
    mixed_seconds = time.monotonic() - started
    before, after = rows_of(options.work / "alone"), rows_of(options.work / "mixed")
    lost = [identity for identity in before if identity not in after]
    changed = [identity for identity in before if identity in after and after[identity] != before[identity]]
    refused = {Path(path).name: reason for path, reason in mixed.refused}
    refused_alone = [(Path(path), reason) for path, reason in alone.refused]
    fates: Counter[tuple[str, bool]] = Counter((kind, name in refused) for name, kind in kinds.items())
    refused_good = [(path.name, reason) for path, reason in refused_alone if path.suffix.lower() in IMAGE_SUFFIXES]
    result = {
        "seed": options.seed,
        "images": len(good),
        "damaged": len(kinds),
        "alone": str(alone),
        "mixed": str(mixed),
        "adds up": adds_up(alone) and adds_up(mixed),
        "good lost": lost,
        "good changed": changed,
        "good refused alone": refused_good,
        "of these by name of a plug-in": sum(PLUG_IN.search(reason) is not None for _, reason in refused_good),
        "seconds alone": round(alone_seconds, 1),
        "seconds mixed": round(mixed_seconds, 1),
        "peak MB of this process": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }
    sys.stdout.write(json.dumps(result, indent=1) + "\n")
    sys.stdout.write("| damage | files | refused | decoded |\n|---|---|---|---|\n")
    for kind in DAMAGES:
        no, yes = fates[kind, True], fates[kind, False]
        sys.stdout.write(f"| {kind} | {no + yes} | {no} | {yes} |\n")
    reasons = Counter(
        re.sub(r"\d[\d,.]*|'[^']*'", "#", reason)[:90] for name, reason in refused.items() if name in kinds
    )
    for reason, times in reasons.most_common(15):
        sys.stdout.write(f"{times:6d}  {reason}\n")
    return 0 if result["adds up"] and not lost and not changed else 1


if __name__ == "__main__":
    sys.exit(main())
