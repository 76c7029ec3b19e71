"""T3: the multi-label form of every head on nih_cxr, one finding at a time, from 1 and 5 patients.

    RADSHOT_DATA=... python benchmarks/task_vectors.py
    RADSHOT_DATA=... python benchmarks/multilabel_heads.py [--shots 1 5] [--out runs/heads]

For each finding k patients who show it and k who do not; 600 episodes, at most 15 queries with and 15 without; AUROC
averaged over the findings, with intervals over patients, and the paired difference to label prototypes. Encoders are
raw pixels and those of T2, whose source holds no chest radiograph. As in benchmarks/multilabel.py no head sees anything
but an episode's support, so the folds of the data play no part.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

from multilabel import SCORED
from task_vectors import ENCODERS, load
from tasks import EPISODES, QUERIES, SEED

from episodes import MultiLabelEpisodeSampler, MultiLabelReport, compare_multilabel, label_auroc
from fewshot import LabelClassifier, LabelPrototypeClassifier, make_head

#: Heads in their multi-label form: present against not present.
HEADS = ("nearest", "linear", "ridge", "svm", "gaussian", "auto")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--encoders", nargs="+", choices=list(ENCODERS), default=list(ENCODERS))
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--out", type=Path, default=Path("runs/heads"))
    options = parser.parse_args()
    results = []
    for k_shot in options.shots:
        print(
            f"\n**T3, {k_shot} with the finding and {k_shot} without, {options.episodes} episodes of each finding**\n"
        )
        print("| encoder | head | mean AUROC | 95 % over patients | minus label prototypes | ms per episode |")
        print("|---|---|---|---|---|---|", flush=True)
        for encoder in options.encoders:
            data = load("T3", encoder)
            sampler = MultiLabelEpisodeSampler(
                data.labels,  # type: ignore[arg-type]
                1,
                k_shot,
                QUERIES,
                groups=data.groups,
                n_episodes=options.episodes,
                seed=SEED,
                classes=SCORED,
                k_negative=k_shot,
            )
            first: MultiLabelReport | None = None
            for name in ("label prototypes", *HEADS):
                head: Any = LabelPrototypeClassifier(center=data.center)
                if name != "label prototypes":
                    head = LabelClassifier(make_head(name, center=data.center))
                began = time.perf_counter()
                report = label_auroc(head, data.vectors, sampler, name=name)
                spent = 1000 * (time.perf_counter() - began) / options.episodes / len(sampler.classes)
                gain = ""
                if first is None:
                    first = report
                else:
                    paired = compare_multilabel(report, first)
                    gain = f"{paired.difference:+.3f} [{paired.low:+.3f}, {paired.high:+.3f}]"
                low, high = report.interval
                print(
                    f"| {encoder} | {name} | {report.auroc:.3f} | {low:.3f} to {high:.3f} | {gain} | {spent:.1f} |",
                    flush=True,
                )
                results.append({"encoder": encoder, "k_shot": k_shot, "head": name, **report.to_dict()})
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "multilabel_heads.json").write_text(json.dumps(results, default=str) + "\n")


if __name__ == "__main__":
    main()
