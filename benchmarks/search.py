"""Search of a million vectors, filtered search, cold start, memory, and register + query, each beside its peer.

    python benchmarks/search.py --rows 1000000 --dim 512 --work /tmp/search

Vectors are synthetic: 2,000 clusters of normal vectors with normal noise (sigma 0.7); queries are rows with 2 % noise.
Both sides answer the same queries in the same process in turn; a ratio is the peer's time over ours, the median of the
pairs. The peers: faiss.IndexFlatIP on normalised vectors; the same with more neighbours asked for until ten pass the
filter; `import torch`, with `--peer-python` also timm and a ResNet-50 of it, and faiss.read_index of that index for the
cold start; scikit-learn's KNeighborsClassifier(metric="cosine", algorithm="brute"), fitted again for every added row.
Memory is what the process holds privately (RssAnon) after a search, less what it held before.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np
from numpy.typing import NDArray

from embeddings import Archive, Index, SearchLimits

CLUSTERS, NOISE, QUERY_NOISE = 2000, 0.7, 0.02
K = 10
ADDED_AT_ONCE = 20_000


def vectors_of(count: int, dim: int, seed: int) -> NDArray[np.float32]:
    """Draw clustered vectors, block by block."""
    centres = np.random.default_rng(0).normal(size=(CLUSTERS, dim)).astype(np.float32)
    rows = np.empty((count, dim), dtype=np.float32)
    for start in range(0, count, ADDED_AT_ONCE):
        rng = np.random.default_rng((seed, start))
        part = rows[start : start + ADDED_AT_ONCE]
        part[:] = centres[rng.integers(0, CLUSTERS, len(part))]
        part += NOISE * rng.standard_normal(part.shape, dtype=np.float32)
    return rows


def facts(number: int) -> dict[str, object]:
    """Metadata whose values select 1 % and 10 % of the rows."""
    return {"patient": f"p{number // 4}", "percent": number * 7919 % 100, "tenth": number * 104_729 % 10}


def build(path: Path, rows: NDArray[np.float32]) -> float:
    """Store the rows unless they are stored; return the seconds it took."""
    if Archive.exists(path):
        return 0.0
    started = time.monotonic()
    with Archive.create(
        path, encoder_name="synthetic", encoder_fingerprint="0" * 64, encoder_spec=None, dim=rows.shape[1]
    ) as archive:
        for start in range(0, len(rows), ADDED_AT_ONCE):
            part = rows[start : start + ADDED_AT_ONCE]
            numbers = range(start, start + len(part))
            archive.add([f"row{n:08d}" for n in numbers], part, metadata=[facts(n) for n in numbers])
    return time.monotonic() - started


def unit(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Normalise in place, block by block."""
    for start in range(0, len(rows), ADDED_AT_ONCE):
        part = rows[start : start + ADDED_AT_ONCE]
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return rows


def anonymous() -> int:
    """Bytes the process holds privately."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


def seconds(run: Callable[[], object]) -> float:
    """Time one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def pairs(peer: Callable[[], object], ours: Callable[[], object], count: int) -> dict[str, float]:
    """Time both in turn and return the medians."""
    peer(), ours()
    times = np.asarray([(seconds(peer), seconds(ours)) for _ in range(count)])
    return {
        "peer_ms": 1000 * float(np.median(times[:, 0])),
        "ours_ms": 1000 * float(np.median(times[:, 1])),
        "ratio": float(np.median(times[:, 0] / times[:, 1])),
    }


def post_filter(flat: faiss.IndexFlatIP, queries: NDArray[np.float32], allowed: NDArray[np.bool_]) -> list[list[int]]:
    """Ask the flat index for more and more until ten neighbours pass."""
    answers = []
    for query in queries:
        asked = 4 * K
        while True:
            _, found = flat.search(query[None], asked)
            passed = [int(row) for row in found[0] if row >= 0 and allowed[row]][:K]
            if len(passed) == K or asked >= flat.ntotal:
                break
            asked = min(4 * asked, flat.ntotal)
        answers.append(passed)
    return answers


def million(options: argparse.Namespace) -> dict[str, object]:
    """Measure search and filtered search."""
    rows = vectors_of(options.rows, options.dim, 1)
    rng = np.random.default_rng(2)
    chosen = rng.integers(0, options.rows, 64)
    queries = rows[chosen] * (1 + QUERY_NOISE * rng.standard_normal((64, options.dim), dtype=np.float32))
    archive_path = options.work / f"archive-{options.rows}-{options.dim}"
    result: dict[str, object] = {"build_seconds": build(archive_path, rows)}
    asked = unit(queries.copy())
    with Archive.open(archive_path, create=False) as archive:
        index = Index(archive)
        before = anonymous()
        first = seconds(lambda: index.search(queries[:1], K))
        ours_bytes = anonymous() - before
        result |= {"first_search_seconds": first, "rows": len(index)}
        unit(rows)
        before = anonymous()
        flat = faiss.IndexFlatIP(options.dim)
        flat.add(rows)
        del rows
        flat_bytes = flat.ntotal * options.dim * 4
        result |= {"ours_bytes": ours_bytes, "flat_bytes": flat_bytes, "memory": ours_bytes / flat_bytes}
        _, truth = flat.search(asked, K)
        found = index.search(queries, K)
        got = [[int(name[3:]) for name in ids] for ids in found.ids]
        result["recall_at_10"] = float(np.mean([len(set(a) & set(b)) / K for a, b in zip(truth, got, strict=True)]))
        result["proven_exact"] = found.exact
        for size in (1, 8, 64):
            some, norms = queries[:size], asked[:size]

            def by_flat(norms: NDArray[np.float32] = norms) -> object:
                return flat.search(norms, K)

            def by_us(some: NDArray[np.float32] = some) -> object:
                return index.search(some, K)

            result[f"search_{size}"] = pairs(by_flat, by_us, options.pairs)
            print(size, result[f"search_{size}"], flush=True)
        result["limited"] = limited(archive, flat, queries, asked, truth, options.pairs)
        numbers = np.arange(options.rows)
        for name, where, allowed in (
            ("1%", {"percent": 0}, numbers * 7919 % 100 == 0),
            ("10%", {"tenth": 0}, numbers * 104_729 % 10 == 0),
        ):
            selection = index.select(where=where)
            first = seconds(lambda selection=selection: index.search(queries[:1], K, among=selection))
            some, norms = queries[:4], asked[:4]
            ids = [[int(i[3:]) for i in line] for line in index.search(some, K, among=selection).ids]
            same = float(
                np.mean([set(a) == set(b) for a, b in zip(post_filter(flat, norms, allowed), ids, strict=True)])
            )

            def one_by_one(some: NDArray[np.float32] = some, selection: object = selection) -> object:
                return [index.search(some[i : i + 1], K, among=selection) for i in range(len(some))]

            def filtered(norms: NDArray[np.float32] = norms, allowed: NDArray[np.bool_] = allowed) -> object:
                return post_filter(flat, norms, allowed)

            row = pairs(filtered, one_by_one, options.pairs)
            result[f"filtered_{name}"] = row | {"same_answers": same, "first_ms_with_lookup": 1000 * first}
            print(name, result[f"filtered_{name}"], flush=True)
        faiss.write_index(flat, str(options.work / "flat.faiss"))
    return result


def limited(
    archive: Archive,
    flat: faiss.IndexFlatIP,
    queries: NDArray[np.float32],
    asked: NDArray[np.float32],
    truth: NDArray[np.int64],
    count: int,
) -> dict[str, object]:
    """Search within a twentieth of the flat index's memory, which 1-bit sketches keep."""
    index = Index(archive, limits=SearchLimits(memory=flat.ntotal * flat.d * 4 // 20))
    result: dict[str, object] = {"first_seconds": seconds(index.tune), "plan": index.plan}
    got = [[int(name[3:]) for name in ids] for ids in index.search(queries, K).ids]
    result["recall_at_10"] = float(np.mean([len(set(a) & set(b)) / K for a, b in zip(truth, got, strict=True)]))
    for size in (1, 8, 64):
        some, norms = queries[:size], asked[:size]

        def by_flat(norms: NDArray[np.float32] = norms) -> object:
            return flat.search(norms, K)

        def by_us(some: NDArray[np.float32] = some) -> object:
            return index.search(some, K)

        result[f"search_{size}"] = pairs(by_flat, by_us, count)
    print("limited", result, flush=True)
    return result


def cold(options: argparse.Namespace) -> dict[str, float]:
    """Time whole processes, from their start to the first answer."""
    archive = options.work / f"archive-{options.rows}-{options.dim}"
    ours = f"""
        import numpy as np
        from embeddings import Archive, Index
        with Archive.open({str(archive)!r}, create=False) as held:
            Index(held).search(np.ones((1, {options.dim}), dtype=np.float32), 10)
    """
    timm = f"""
        import sys
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import peers_import
        peers_import.prepare()
        import timm
        timm.create_model("resnet50")
    """
    peer = f"""
        import numpy as np, torch, faiss
        index = faiss.read_index({str(options.work / "flat.faiss")!r})
        index.search(np.ones((1, {options.dim}), dtype=np.float32), 10)
    """

    def run(code: str, python: str = sys.executable) -> Callable[[], object]:
        return lambda: subprocess.run([python, "-c", textwrap.dedent(code)], check=True)

    start = pairs(run(peer), run(ours), options.pairs)
    if options.peer_python is not None:
        whole = pairs(run(textwrap.dedent(timm) + textwrap.dedent(peer), options.peer_python), run(ours), options.pairs)
        start = {**start, "with_timm": whole["ratio"]}
    helps = pairs(
        run("import torch"),
        lambda: subprocess.run([sys.executable, "-m", "radshot", "--help"], check=True, stdout=subprocess.DEVNULL),
        options.pairs,
    )
    return {**start, "help_over_import_torch": 1 / helps["ratio"]}


def register(options: argparse.Namespace, count: int) -> dict[str, object]:
    """One more row and one query, against a classifier of scikit-learn that is fitted again."""
    from sklearn.neighbors import KNeighborsClassifier

    rows = vectors_of(count + 100, options.dim, 3)
    labels = np.arange(count + 100) % 5
    path = options.work / f"register-{count}-{options.dim}"
    build(path, rows[:count])
    query = rows[:1] + 0.01
    with Archive.open(path, create=False) as archive:
        index = Index(archive)
        index.search(query, K)
        peer = KNeighborsClassifier(n_neighbors=K, metric="cosine", algorithm="brute").fit(rows[:count], labels[:count])
        asks = pairs(lambda: peer.kneighbors(query), lambda: index.search(query, K), options.pairs)
        adds = []
        both = []
        for extra in range(options.pairs):
            name, one = f"extra{count}-{time.time_ns()}", rows[count + extra : count + extra + 1]
            fit = seconds(lambda end=count + extra + 1: peer.fit(rows[:end], labels[:end]))
            fit_ask = fit + seconds(lambda: peer.kneighbors(query))
            add = seconds(lambda name=name, one=one: archive.add([name], one))
            add_ask = add + seconds(lambda: index.search(query, K))
            adds.append((fit, add))
            both.append((fit_ask, add_ask))
    fits = np.asarray(adds)
    return {
        "query": asks,
        "add_peer_ms": 1000 * float(np.median(fits[:, 0])),
        "add_ours_ms": 1000 * float(np.median(fits[:, 1])),
        "add_ratio": float(np.median(fits[:, 0] / fits[:, 1])),
        "add_and_query_ratio": float(np.median([peer / ours for peer, ours in both])),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--work", type=Path, default=Path("search"))
    parser.add_argument("--peer-python", help="A Python with torch, timm and faiss, see benchmarks/peers.sh.")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    result: dict[str, object] = {"rows": options.rows, "dim": options.dim}
    result["register_10k"] = register(options, 10_000)
    print(result["register_10k"], flush=True)
    result["register_100k"] = register(options, 100_000)
    print(result["register_100k"], flush=True)
    result |= million(options)
    result["cold_start"] = cold(options)
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
