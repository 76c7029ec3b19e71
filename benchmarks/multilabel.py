"""T3: one finding at a time on nih_cxr from 1, 5 and 20 patients, raw pixels and HOG beside any encoder given.

    RADSHOT_DATA=... python benchmarks/multilabel.py [--encoder FOLDER ...] [--out multilabel.json]

AUROC of each finding with its patient interval, 600 episodes, at most 15 queries with it and 15 without; from k
patients who have it alone, and with as many who lack it. Support and query never share a patient. No head here is
fitted to anything but an episode's support, so the five folds of the data play no part: they are for encoders trained
on these very images, and one given with --encoder must not have been.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from tasks import EPISODES, QUERIES, SEED, data_folder

from embeddings import load_encoder
from episodes import Manifest
from episodes.multilabel import MultiLabelEpisodeSampler
from episodes.multilabel_evaluate import label_auroc
from episodes.multilabel_report import MultiLabelReport
from episodes.multilabel_summary import compare_multilabel
from fewshot.label_prototypes import LabelPrototypeClassifier

#: Findings with patients enough for k = 20, and those with enough for k = 1 and 5 only.
COMMON = ("No Finding", "Pneumonia", "Infiltration", "Atelectasis", "Edema", "Effusion")
SCORED = (*COMMON, "Pleural_Thickening", "Consolidation", "Nodule", "Mass", "Cardiomegaly")
#: The floors every encoder is measured against.
FLOORS = ("hog-64", "pixels-32")


def print_table(title: str, reports: list[MultiLabelReport]) -> None:
    """One row for each finding, one column for each report."""
    print(f"\n**{title}**\n")
    print("| finding (query patients) | " + " | ".join(report.name for report in reports) + " |")
    print("|---" * (len(reports) + 1) + "|")
    for label, first in reports[0].per_label.items():
        cells = []
        for report in reports:
            found = report.per_label[label]
            ends = "" if found.interval is None else f" [{found.interval[0]:.2f}, {found.interval[1]:.2f}]"
            cells.append("none" if found.auroc is None else f"{found.auroc:.3f}{ends}")
        print(f"| {label} ({first.patients}) | " + " | ".join(cells) + " |")
    means = [f"{report.auroc:.3f} [{report.interval[0]:.3f}, {report.interval[1]:.3f}]" for report in reports]
    print("| mean | " + " | ".join(means) + " |", flush=True)


def main() -> None:
    """Embed the images once with each encoder, then run every task on the same episodes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", nargs="*", default=[], help="encoders to measure beside the floors")
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--all-queries", action="store_true", help="rank every image of all other patients (slow)")
    parser.add_argument("--out", type=Path, help="write every report to this JSON file")
    options = parser.parse_args()
    path = data_folder() / "nih_cxr" / "manifest.csv"
    manifest = Manifest.read(path, label="labels", group="split_group")
    encoders = {name: load_encoder(name) for name in (*options.encoder, *FLOORS)}
    vectors = {name: encoder.encode(manifest.images) for name, encoder in encoders.items()}
    pneumonia = np.array(["Pneumonia" in names for names in manifest.labels])
    results = []
    for where, rows in (("all images", np.ones_like(pneumonia)), ("images with pneumonia", pneumonia)):
        kept = np.flatnonzero(rows).tolist()
        labels = [manifest.labels[i] for i in kept]
        groups = [(manifest.groups or ())[i] for i in kept]
        print(f"\n## T3, {where}: {len(kept)} images of {len(set(groups))} patients")
        for k_shot in (1, 5, 20):
            asked = COMMON if k_shot == 20 else SCORED
            classes = [name for name in asked if rows.all() or name not in ("No Finding", "Pneumonia")]
            for k_negative in (0, k_shot):
                sampler = MultiLabelEpisodeSampler(
                    labels,
                    1,
                    k_shot,
                    None if options.all_queries else QUERIES,
                    groups=groups,
                    n_episodes=options.episodes,
                    seed=SEED,
                    classes=classes,
                    k_negative=k_negative,
                )
                reports = [
                    label_auroc(
                        LabelPrototypeClassifier(center=getattr(encoder, "source_mean", None)),
                        vectors[name][kept],
                        sampler,
                        name=name,
                        provenance={"encoder": encoder.name, "encoder_fingerprint": encoder.fingerprint},
                    )
                    for name, encoder in encoders.items()
                ]
                beside = f", {k_negative} without" if k_negative else " alone"
                print_table(f"{where}: {k_shot} with the finding{beside}", reports)
                for other in reports[1:]:
                    paired = compare_multilabel(reports[0], other)
                    print(f"\n{paired}")
                results += [{"images": where, **report.to_dict()} for report in reports]
    counts = {name: sum(name in names for names in manifest.labels) for name in manifest.classes}
    others = ", ".join(f"{name} {count}" for name, count in counts.items() if name not in SCORED)
    print(f"\nCounted, not scored (images): {others}.")
    if options.out:
        options.out.write_text(json.dumps(results, indent=2, default=str) + "\n")


if __name__ == "__main__":
    main()
