"""`radshot demo` on several seeds: accuracy on findings never trained on, beside raw pixels and HOG.

python benchmarks/demo_seeds.py --seeds 0 1 2 3 4 --out runs/demo_seeds
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path


def main() -> None:
    """Run the demo once per seed and print the table of RESULTS.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--out", type=Path, default=Path("runs/demo_seeds"))
    options = parser.parse_args()
    print("| seed | accuracy, 95 % over patients | 100 other supports | raw pixels | HOG | precision at 5 | seconds |")
    print("|---|---|---|---|---|---|---|")
    for seed in options.seeds:
        out = options.out / f"seed{seed}"
        if not (out / "demo.json").exists():
            shutil.rmtree(out, ignore_errors=True)
            command = [sys.executable, "-m", "radshot", "demo", "--out", str(out), "--seed", str(seed)]
            subprocess.run(command, check=True, capture_output=True)
        found = json.loads((out / "demo.json").read_text())
        ours, low, high = found["fewshot"]["accuracy"], *found["fewshot"]["interval"]
        others = found["fewshot"]["over_random_episodes"]["accuracy"]
        floors = " | ".join(f"{found['baselines'][name]['accuracy']:.3f}" for name in ("pixels", "hog"))
        precision, took = found["search"]["precision_at_5"], found["seconds"]
        print(
            f"| {seed} | {ours:.3f} [{low:.3f}, {high:.3f}] | {others:.3f} | {floors} | {precision:.3f} | {took:.0f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
