"""Embedding files into an archive against the loop people write: DataLoader with two workers, then the model, float32.

    python benchmarks/embed.py --peer-python .peers/bin/python --work /tmp/embed

Both sides run the same network (radshot's `resnet50` or `densenet121`, seed 0, one grey channel, 224 x 224) on the same
files, in processes of their own, in turn; seconds are those of the job, without imports and the making of the network,
but with worker processes, checks and, on our side, the durable archive. A ratio is the peer's time over ours, the
median of the pairs. "JPEG": 1,024 x 1,024, quality 90, torchvision's ImageFolder with Grayscale, Resize, ToTensor.
"DICOM": 2,048 x 2,048, 12 bits, half RLE and half lossless JPEG 2000, pydicom's `pixel_array` as a plain installation
of pydicom and Pillow decodes it, a window, a resize. The tuned peer has bfloat16 weights, channels last, and glibc's
thresholds set so that it keeps its memory. The smallest cosine of our vectors with the peer's float32 vectors is of the
whole way, file to vector.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

SIDE = 224
MEAN, STD = 0.5, 0.25
BATCH = 64


def ours(options: argparse.Namespace) -> None:
    """Embed the folder into a new archive; print the seconds."""
    from embeddings import Archive, Preprocess, TorchEncoder, build_backbone, embed_archive

    encoder = TorchEncoder(
        build_backbone(options.network, seed=0), Preprocess(size=(SIDE, SIDE), fit="stretch"), name=options.network
    )
    archive = options.work / "archive"
    shutil.rmtree(archive, ignore_errors=True)
    started = time.perf_counter()
    report = embed_archive(options.files, encoder, archive, progress=False)
    seconds = time.perf_counter() - started
    with Archive.open(archive) as held:
        paths = [row["path"] for row in held.metadata]
        order = np.argsort(paths)
        np.savez(options.out, vectors=held.vectors[order], paths=np.asarray(paths)[order])
    print(json.dumps({"seconds": seconds, "images": report.embedded, "precision": report.precision}))


def peer(options: argparse.Namespace) -> None:
    """Run the loop; print the seconds."""
    import torch
    from peers_import import prepare
    from torch.utils.data import DataLoader, Dataset

    prepare()
    sys.path.insert(0, str(Path(__file__).parent.parent))
    from embeddings.backbones import build_backbone

    paths = sorted(path for path in options.files.rglob("*") if path.is_file())
    if options.kind == "JPEG":
        from torchvision import datasets, transforms

        shown = transforms.Compose(
            [transforms.Grayscale(), transforms.Resize((SIDE, SIDE)), transforms.ToTensor(),
             transforms.Normalize([MEAN], [STD])]
        )  # fmt: skip
        data: Dataset = datasets.ImageFolder(options.files.parent, transform=shown)
    else:

        class Files(Dataset):
            def __len__(self) -> int:
                return len(paths)

            def __getitem__(self, place: int) -> tuple[torch.Tensor, int]:
                import pydicom
                from PIL import Image

                held = pydicom.dcmread(paths[place])
                low = float(held.WindowCenter) - float(held.WindowWidth) / 2
                grey = np.clip((held.pixel_array.astype(np.float32) - low) / float(held.WindowWidth), 0, 1)
                small = Image.fromarray(grey).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
                return (torch.from_numpy(np.asarray(small))[None] - MEAN) / STD, 0

        data = Files()
    network = build_backbone(options.network, seed=0).eval()
    kind = torch.float32
    if options.tuned:
        kind = torch.bfloat16
        network = network.to(kind).to(memory_format=torch.channels_last)
    started = time.perf_counter()
    rows = []
    with torch.inference_mode():
        for images, _ in DataLoader(data, batch_size=BATCH, num_workers=2):
            if options.tuned:
                images = images.to(kind).contiguous(memory_format=torch.channels_last)
            rows.append(network(images).float().numpy())
    np.savez(options.out, vectors=np.concatenate(rows), paths=np.asarray([str(path) for path in paths]))
    print(json.dumps({"seconds": time.perf_counter() - started, "images": sum(map(len, rows))}))


def generate(work: Path, kind: str, count: int) -> Path:
    """Write the files, in one folder inside one folder, as ImageFolder wants it."""
    from decoding import SYNTAXES, large_phantom, write_dicom
    from PIL import Image

    folder = work / kind / "all"
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        path = folder / f"{number:05d}{'.jpg' if kind == 'JPEG' else '.dcm'}"
        if path.exists():
            continue
        if kind == "JPEG":
            Image.fromarray(np.uint8(large_phantom(number, 1024) * 255)).save(path, quality=90)
        else:
            syntax = SYNTAXES["RLE" if number % 2 else "JPEG 2000 lossless"]
            write_dicom(path, large_phantom(number, 2048), syntax)
    return folder


def run(options: argparse.Namespace, role: str, files: Path, network: str, kind: str) -> tuple[float, Path]:
    """Run one side in a process of its own."""
    out = options.work / f"{role}.npz"
    python = sys.executable if role == "ours" else str(options.peer_python)
    environment = dict(os.environ)
    if role == "tuned":
        environment |= {"MALLOC_MMAP_THRESHOLD_": "33554432", "MALLOC_TRIM_THRESHOLD_": "1073741824"}
    command = [python, __file__, "--role", "ours" if role == "ours" else "peer", "--network", network, "--kind", kind]
    command += ["--files", str(files), "--out", str(out), "--work", str(options.work)]
    command += ["--tuned"] if role == "tuned" else []
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise SystemExit(done.stderr[-2000:])
    told = json.loads(done.stdout.strip().splitlines()[-1])
    print(f"  {role}: {told}", flush=True)
    return float(told["seconds"]), out


def lowest_cosine(first: Path, second: Path) -> float:
    """Compare two sides' vectors, file by file."""
    a, b = np.load(first), np.load(second)
    order = {str(path): row for row, path in enumerate(b["paths"])}
    rows = [order[str(path)] for path in a["paths"]]
    x, y = a["vectors"].astype(np.float64), b["vectors"][rows].astype(np.float64)
    return float(((x * y).sum(axis=1) / np.linalg.norm(x, axis=1) / np.linalg.norm(y, axis=1)).min())


def main() -> None:
    """Run one role, or all pairs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("embed"))
    parser.add_argument("--peer-python", type=Path, default=Path(".peers/bin/python"))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--jpeg", type=int, default=192)
    parser.add_argument("--dicom", type=int, default=48)
    parser.add_argument("--rows", nargs="+", default=["JPEG:resnet50", "JPEG:densenet121", "DICOM:resnet18"])
    parser.add_argument("--plain-only", action="store_true", help="leave the tuned peer out")
    parser.add_argument("--role", choices=("ours", "peer"))
    parser.add_argument("--network", default="resnet50")
    parser.add_argument("--kind", default="JPEG")
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--files", type=Path)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if options.role == "ours":
        return ours(options)
    if options.role == "peer":
        return peer(options)
    options.work = options.work.absolute()
    for row in options.rows:
        kind, network = row.split(":")
        files = generate(options.work, kind, options.jpeg if kind == "JPEG" else options.dicom)
        ratios: dict[str, list[float]] = {"peer": []} if options.plain_only else {"peer": [], "tuned": []}
        cosine = 1.0
        for _ in range(options.pairs):
            mine, vectors = run(options, "ours", files, network, kind)
            for other in ratios:
                theirs, exact = run(options, other, files, network, kind)
                ratios[other].append(theirs / mine)
                if other == "peer":
                    cosine = min(cosine, lowest_cosine(vectors, exact))
        medians = {name: float(np.median(values)) for name, values in ratios.items()}
        print(json.dumps({"row": row, "ratios": medians, "all": ratios, "lowest_cosine": cosine}), flush=True)
    return None


if __name__ == "__main__":
    main()
