"""Time and memory against an archive's size, a thousand to a million rows: storing, searching, filtering, removing.

    python benchmarks/scale.py --work /tmp/scale --plot docs/scale.png

Synthetic clustered vectors (benchmarks/search.py) of 256 numbers are added 1,000 at a time, each a durable commit. At
every size on the way a process of its own opens the archive and measures: seconds to the first answer, milliseconds per
search of one query, per filtered search (1 % of the rows, looked up anew, and looked up before), per removal of one row
and of a patient's four rows, and the memory it holds privately (RssAnon). Storing is the time since the size before,
merges in the background included.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from search import anonymous, facts, vectors_of

from embeddings import Archive, Index

SIZES = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)
DIM = 256
STEP = 1_000
REPEATS = 15


def measure(path: Path, size: int) -> dict[str, float]:
    """Measure one archive of so many rows in this fresh process; what is removed is among its newest rows."""
    rng = np.random.default_rng(0)
    before = anonymous()
    started = time.perf_counter()
    with Archive.open(path, create=False) as archive:
        index = Index(archive)
        queries = rng.normal(size=(REPEATS + 1, DIM)).astype(np.float32)
        index.search(queries[:1], 10)
        result = {"rows": float(len(index)), "first_seconds": time.perf_counter() - started}

        def milliseconds(run: object) -> float:
            times = []
            for number in range(REPEATS):
                begun = time.perf_counter()
                run(number)  # type: ignore[operator]
                times.append(1000 * (time.perf_counter() - begun))
            return float(np.median(times))

        result["search_ms"] = milliseconds(lambda n: index.search(queries[n : n + 1], 10))
        result["memory_mb"] = (anonymous() - before) / 2**20
        result["filtered_new_ms"] = milliseconds(lambda n: index.search(queries[n : n + 1], 10, where={"percent": n}))
        chosen = index.select(where={"percent": 50})
        index.search(queries[:1], 10, among=chosen)
        result["filtered_ms"] = milliseconds(lambda n: index.search(queries[n : n + 1], 10, among=chosen))
        result["remove_row_ms"] = milliseconds(lambda n: archive.remove(ids=[f"row{size - 1 - 8 * n:08d}"]))
        result["remove_patient_ms"] = milliseconds(lambda n: archive.remove(patient=f"p{(size - 200) // 4 - 2 * n}"))
        result["search_after_ms"] = milliseconds(lambda n: index.search(queries[n : n + 1], 10))
        archive.store.merges.wait()
    return result


def grow(path: Path, first: int, last: int) -> float:
    """Add rows first .. last - 1; return the seconds it took."""
    rows = vectors_of(last - first, DIM, first)
    started = time.perf_counter()
    with Archive.create(
        path, encoder_name="synthetic", encoder_fingerprint="0" * 64, encoder_spec=None, dim=DIM
    ) as archive:
        for start in range(0, len(rows), STEP):
            numbers = range(first + start, min(first + start + STEP, last))
            part = rows[start : start + len(numbers)]
            archive.add([f"row{n:08d}" for n in numbers], part, metadata=[facts(n) for n in numbers])
    return time.perf_counter() - started


def draw(results: list[dict[str, float]], file: Path) -> None:
    """Draw time and memory against size."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    sizes = [row["rows_nominal"] for row in results]
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for key, label in (
        ("search_ms", "search, one query"),
        ("filtered_ms", "search among 1 %"),
        ("filtered_new_ms", "the same, rows looked up anew"),
        ("remove_row_ms", "remove a row"),
        ("remove_patient_ms", "remove a patient"),
    ):
        left.plot(sizes, [row[key] for row in results], marker="o", label=label)
    left.set(xscale="log", yscale="log", xlabel="rows", ylabel="milliseconds", title="Time per request")
    left.legend(frameon=False, fontsize=8)
    rate = [row["store_rows"] / row["store_seconds"] for row in results]
    right.plot(sizes, [row["memory_mb"] for row in results], marker="o", label="memory of a searching process, MB")
    right.plot(sizes, [4 * DIM * size / 2**20 for size in sizes], linestyle=":", label="the float32 vectors, MB")
    right.plot(sizes, rate, marker="s", label="rows stored per second")
    right.plot(sizes, [1000 * row["first_seconds"] for row in results], marker="^", label="first answer, ms")
    right.set(xscale="log", yscale="log", xlabel="rows", title="Memory, storing, opening")
    right.legend(frameon=False, fontsize=8)
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(file, dpi=120)


def main() -> None:
    """Measure every size, or one in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("scale"))
    parser.add_argument("--largest", type=int, default=SIZES[-1])
    parser.add_argument("--plot", type=Path, default=Path("docs/scale.png"))
    parser.add_argument("--measure", type=Path)
    parser.add_argument("--size", type=int, default=0)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure, options.size)))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    path, before, results = options.work / "archive", 0, []
    for size in (size for size in SIZES if size <= options.largest):
        seconds = grow(path, before, size)
        done = subprocess.run(
            [sys.executable, __file__, "--measure", str(path), "--size", str(size)],
            check=True,
            capture_output=True,
            text=True,
        )
        results.append(
            {**json.loads(done.stdout), "store_seconds": seconds, "store_rows": size - before, "rows_nominal": size}
        )
        print(json.dumps(results[-1]), flush=True)
        before = size
    draw(results, options.plot)


if __name__ == "__main__":
    main()
