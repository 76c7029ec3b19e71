"""Every head on T2, T4, T5 and Omniglot: the same vectors, the same 600 episodes, beside easyfsl's and scikit-learn's.

    RADSHOT_DATA=... python benchmarks/task_vectors.py
    RADSHOT_DATA=... PYTHONPATH=. .peers/bin/python benchmarks/heads_peers.py
    RADSHOT_DATA=... python benchmarks/heads.py --out runs/heads [--tasks T5 ...] [--fine-tuning]

Encoders are raw pixels, the default trained one and its supervised-only version. Fine-tuning and scikit-learn's linear
discriminant analysis, which are slow, answer the first 50 episodes and are compared on those. Cells that are done are
taken up, so that the table can be made in pieces. Heads that see the queries before they answer are marked transductive
and compared with nothing that does not.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
import warnings
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.linear_model import RidgeClassifier as SklearnRidge
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer
from sklearn.svm import SVC
from task_vectors import ENCODERS, TaskVectors, encoder_of, load, statistics_of, target_of
from tasks import QUERIES, SEED

from episodes import EpisodeSampler, Outcomes, evaluate, paired_difference
from episodes.intervals import patient_bootstrap
from fewshot import HEADS, make_head

TASKS = ("T2", "T4-cases", "T4-same", "T5", "omniglot")
EPISODES, TUNED_EPISODES = 600, 50
#: radshot's heads, nearest mean first: every difference is to it.
OURS = (
    "prototypes",
    "prototypes-euclidean",
    "nearest",
    "neighbors",
    "linear",
    "ridge",
    "ridge-lengths",
    "svm",
    "gaussian",
    "distribution-calibrated",
    "auto",
    "soft-k-means",
)
TRANSDUCTIVE = ("soft-k-means", "BD-CSPN", "LaplacianShot", "PT-MAP")
#: scikit-learn's classifiers as they come, on the vectors as they are and on rows of unit length.
SKLEARN: dict[str, Any] = {
    "NearestCentroid": NearestCentroid(),
    "KNeighborsClassifier(1)": KNeighborsClassifier(1),
    "LogisticRegression": LogisticRegression(),
    "RidgeClassifier": SklearnRidge(),
    "SVC(linear)": SVC(kernel="linear"),
    "LinearDiscriminantAnalysis": LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto"),
    "GaussianNB": GaussianNB(),
}


class Quiet(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """A classifier of scikit-learn whose remarks about few rows are not printed 600 times."""

    def __init__(self, inner: Any = None) -> None:
        self.inner = inner

    def fit(self, X: Any, y: Any) -> Quiet:
        """Fit a copy."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.fitted_ = copy.deepcopy(self.inner).fit(X, y)
        return self

    def predict(self, X: Any) -> Any:
        """Answer."""
        return self.fitted_.predict(X)


def sampler_of(task: str, data: TaskVectors, k_shot: int, episodes: int = EPISODES) -> EpisodeSampler:
    """The task's episodes: every class, or five of Omniglot's."""
    n_way = 5 if task == "omniglot" else len(set(data.labels))
    return EpisodeSampler(data.labels, n_way, k_shot, QUERIES, groups=data.groups, n_episodes=episodes, seed=SEED)


def answers_of(name: str, classifier: Any, data: TaskVectors, sampler: EpisodeSampler) -> dict[str, Any]:
    """One row: every answer, and the milliseconds per episode."""
    began = time.perf_counter()
    report = evaluate(classifier, data.vectors, data.labels, sampler, name=name)
    spent = 1000 * (time.perf_counter() - began) / len(sampler)
    return {"answer": report.outcomes.answer, "milliseconds": spent}


def outcomes_of(data: TaskVectors, sampler: EpisodeSampler) -> Outcomes:
    """Who is asked about in which episode, with nobody answering."""

    class Silent:
        def fit(self, X: Any, y: Any) -> None:
            """Learn nothing."""

        def predict(self, X: Any) -> list[Hashable]:
            """Answer nothing."""
            return [None] * len(X)

    return evaluate(Silent(), data.vectors, data.labels, sampler).outcomes


def rows_of(task: str, encoder: str, data: TaskVectors, sampler: EpisodeSampler, folder: Path) -> dict[str, Any]:
    """Every row of one cell, computed or taken up."""
    rows: dict[str, Any] = {}
    source = statistics_of(task, encoder)
    for name in OURS:
        if name == "distribution-calibrated" and source is None:
            continue
        head = make_head(name, center=data.center, source=source)
        rows[name] = _kept(folder / f"{name}.npz", lambda head=head, name=name: answers_of(name, head, data, sampler))
    for name, model in SKLEARN.items():
        asked = sampler
        if name == "LinearDiscriminantAnalysis":
            if sampler.k_shot == 1:
                continue  # it wants more images than classes
            asked = sampler_of(task, data, sampler.k_shot, TUNED_EPISODES)  # a third of a second each
        for how, built in (("", model), (", unit length", make_pipeline(Normalizer(), model))):
            rows[f"sklearn {name}{how}"] = _kept(
                folder / f"sklearn-{name}{how}.npz",
                lambda built=built, asked=asked: answers_of("sklearn", Quiet(built), data, asked),
            )
    for path in sorted(folder.glob("easyfsl *.npz")):
        rows[path.stem] = _kept(path, None)
    for path in sorted(folder.glob("fine-tuned *.npz")):
        rows[path.stem] = _kept(path, None)
    return rows


def _kept(path: Path, make: Any) -> dict[str, Any]:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(path, **make())
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def table(task: str, encoder: str, k_shot: int, folder: Path) -> list[dict[str, Any]]:
    """One cell's rows with patient intervals and paired differences to nearest mean."""
    data = load(task, encoder)
    sampler = sampler_of(task, data, k_shot)
    asked = outcomes_of(data, sampler)
    rows = rows_of(task, encoder, data, sampler, folder)
    first = rows["prototypes"]["answer"] == asked.truth
    results = []
    for name, row in rows.items():
        part = slice(0, len(row["answer"]))  # some answer the first episodes only
        truth, patient = asked.truth[part], asked.patient[part]
        right = row["answer"] == truth
        found = patient_bootstrap(right, truth, patient)
        gain = paired_difference(right, first[part], truth, patient, names=(name, "prototypes"))
        results.append(
            {
                "task": task,
                "encoder": encoder,
                "k_shot": k_shot,
                "name": name,
                "transductive": any(name.endswith(other) for other in TRANSDUCTIVE),
                "episodes": int(asked.episode[part].max()) + 1,
                "accuracy": found.estimate,
                "interval": [found.low, found.high],
                "gain": gain.difference,
                "gain_interval": [gain.low, gain.high],
                "p_value": gain.p_value,
                "milliseconds": float(row["milliseconds"]),
            }
        )
    _paired_with_peers(results, rows, asked)
    return results


def _paired_with_peers(results: list[dict[str, Any]], rows: dict[str, Any], asked: Outcomes) -> None:
    """Auto against the best inductive peer of either library, found on these episodes."""
    auto = rows["auto"]["answer"] == asked.truth
    for library in ("sklearn", "easyfsl"):
        peers = [
            r for r in results if r["name"].startswith(library) and not r["transductive"] and r["episodes"] == EPISODES
        ]
        if not peers:
            continue
        best = max(peers, key=lambda r: r["accuracy"])
        answer = rows[best["name"]]["answer"]
        part = slice(0, len(answer))
        gain = paired_difference(auto[part], answer == asked.truth[part], asked.truth[part], asked.patient[part])
        results.append(
            {
                **{key: best[key] for key in ("task", "encoder", "k_shot", "episodes")},
                "name": f"auto minus {best['name']}",
                "gain": gain.difference,
                "gain_interval": [gain.low, gain.high],
                "p_value": gain.p_value,
            }
        )


def print_cell(results: Sequence[dict[str, Any]]) -> None:
    """One cell as Markdown."""
    first = results[0]
    print(f"\n**{first['task']}, {first['encoder']}, {first['k_shot']}-shot**\n")
    print("| head | accuracy | 95 % over patients | minus nearest mean | ms per episode |\n|---|---|---|---|---|")
    for row in results:
        gain = f"{row['gain']:+.3f} [{row['gain_interval'][0]:+.3f}, {row['gain_interval'][1]:+.3f}]"
        if "accuracy" not in row:
            print(f"| *{row['name']}* | | | {gain} | |")
            continue
        name = row["name"] + (" (transductive)" if row["transductive"] else "")
        if row["episodes"] < EPISODES:
            name += f", first {row['episodes']}"
        low, high = row["interval"]
        print(f"| {name} | {row['accuracy']:.3f} | {low:.3f} to {high:.3f} | {gain} | {row['milliseconds']:.1f} |")


def print_compact(results: Sequence[dict[str, Any]]) -> None:
    """One table per task and number of shots: heads down, encoders across; of the peers the best of each kind."""
    encoders = list(dict.fromkeys(row["encoder"] for row in results))
    for task in dict.fromkeys(row["task"] for row in results):
        for k_shot in dict.fromkeys(row["k_shot"] for row in results):
            cells = {
                e: [r for r in results if (r["task"], r["encoder"], r["k_shot"]) == (task, e, k_shot)] for e in encoders
            }
            print(f"\n**{task}, {k_shot}-shot**\n\n| head | {' | '.join(encoders)} |\n|---{'|---' * len(encoders)}|")
            tuned = [
                name
                for name in ("fine-tuned head", "fine-tuned last-blocks")
                if any(_named(c, name) for c in cells.values())
            ]
            for name in (*OURS, *tuned):
                mark = (
                    " (transductive)" if name in TRANSDUCTIVE else f", first {TUNED_EPISODES}" if name in tuned else ""
                )
                print(f"| {name}{mark} | {' | '.join(_compact(_named(cells[e], name)) for e in encoders)} |")
            for title, library, transductive in (
                ("best of scikit-learn", "sklearn", False),
                ("best inductive of easyfsl", "easyfsl", False),
                ("best transductive of easyfsl", "easyfsl", True),
            ):
                best = [_best(cells[e], library, transductive) for e in encoders]
                print(f"| *{title}* | {' | '.join(_compact(row, named=True) for row in best)} |")
            for library in ("sklearn", "easyfsl"):
                against = [
                    next((r for r in cells[e] if r["name"].startswith(f"auto minus {library}")), None) for e in encoders
                ]
                print(f"| *auto minus best of {library}* | {' | '.join(_gain(row) for row in against)} |")


def _named(cell: Sequence[dict[str, Any]], name: str) -> dict[str, Any] | None:
    return next((row for row in cell if row["name"] == name), None)


def _best(cell: Sequence[dict[str, Any]], library: str, transductive: bool) -> dict[str, Any] | None:
    """The best of those that answered every episode."""
    rows = [r for r in cell if r["name"].startswith(library) and r["transductive"] is transductive] if cell else []
    whole = [row for row in rows if row["episodes"] == EPISODES]
    return max(whole, key=lambda row: row["accuracy"]) if whole else None


def _compact(row: dict[str, Any] | None, *, named: bool = False) -> str:
    if row is None:
        return "–"
    beside = "" if row["name"] == "prototypes" else f" ({_gain(row)})"
    name = row["name"].split(" ", 1)[1] + ": " if named else ""
    low, high = row["interval"]
    return f"{name}{row['accuracy']:.3f}{beside}" if beside else f"{name}{row['accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def _gain(row: dict[str, Any] | None) -> str:
    if row is None:
        return "–"
    return f"{row['gain']:+.3f} [{row['gain_interval'][0]:+.3f}, {row['gain_interval'][1]:+.3f}]"


def print_summary(results: Sequence[dict[str, Any]]) -> None:
    """Every head's mean gain over all cells, and the claim about `auto` with Holm's correction."""
    print("\n**All cells: gain over nearest mean on the same vectors**\n")
    print("| head | 1-shot, mean | 5-shot, mean | worst cell | cells ahead / behind (95 %) |\n|---|---|---|---|---|")
    names = dict.fromkeys(row["name"] for row in results if "accuracy" in row)
    for name in names:
        own = [row for row in results if row["name"] == name]
        means = [np.mean([r["gain"] for r in own if r["k_shot"] == k] or [np.nan]) for k in (1, 5)]
        ahead = sum(row["gain_interval"][0] > 0 for row in own)
        behind = sum(row["gain_interval"][1] < 0 for row in own)
        worst = min(own, key=lambda row: row["gain"])
        where = f"{worst['gain']:+.3f} ({worst['task']}, {worst['encoder']}, {worst['k_shot']})"
        shown = ["–" if np.isnan(mean) else f"{mean:+.4f}" for mean in means]
        print(f"| {name} | {shown[0]} | {shown[1]} | {where} | {ahead} / {behind} of {len(own)} |")
    cells = [row for row in results if row["name"] == "auto"]
    worse = sorted(_p_below(row) for row in cells)
    print("\n`auto` no more than .02 behind nearest mean, one-sided, Holm over", len(cells), "cells:")
    holds, running = True, 0.0
    for rank, p in enumerate(worse):
        running = max(running, min(1.0, p * (len(cells) - rank)))
        holds &= running < 0.05
    print(f"largest corrected p {running:.4f}:", "holds in every cell" if holds else "does not hold in every cell")


def _p_below(row: dict[str, Any]) -> float:
    """One-sided p that the gain is -.02 or less, from the interval of the paired bootstrap taken as normal."""
    from scipy.stats import norm

    half = (row["gain_interval"][1] - row["gain_interval"][0]) / 2 / 1.96
    if half == 0:
        return 0.0 if row["gain"] > -0.02 else 1.0
    return float(norm.sf((row["gain"] + 0.02) / half))


def fine_tune(task: str, encoder: str, k_shot: int, folder: Path) -> None:
    """Fine-tuning on the first episodes' supports: head only, and head then last blocks."""
    from fewshot import FineTunedClassifier

    data = load(task, encoder)
    built = encoder_of(task, encoder)
    pixels = _pixels(task, encoder)
    sampler = sampler_of(task, data, k_shot, TUNED_EPISODES)
    images = TaskVectors(pixels, data.labels, data.groups, None)
    for tune in ("head", "last-blocks"):
        path = folder / f"fine-tuned {tune}.npz"
        if not path.exists():
            folder.mkdir(parents=True, exist_ok=True)
            np.savez(path, **answers_of(tune, FineTunedClassifier(built, tune=tune), images, sampler))  # type: ignore[arg-type]


def _pixels(task: str, encoder: str) -> NDArray[np.float32]:
    path = Path("runs") / "vectors" / f"{task}-{encoder}-loaded.npy"
    if not path.exists():
        built = encoder_of(task, encoder)
        np.save(path, np.stack([built.load(image).ravel() for image in target_of(task).images]))
    loaded: NDArray[np.float32] = np.load(path, mmap_mode="r")
    return loaded


def main() -> None:
    """Compute and print the cells asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/heads"))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--encoders", nargs="+", choices=list(ENCODERS), default=list(ENCODERS))
    parser.add_argument("--shots", nargs="+", type=int, default=[1, 5])
    parser.add_argument("--fine-tuning", action="store_true", help="only compute fine-tuning's rows")
    options = parser.parse_args()
    unknown = set(OURS) - set(HEADS)
    if unknown:
        raise SystemExit(f"There are no heads {sorted(unknown)}.")
    results: list[dict[str, Any]] = []
    for task in options.tasks:
        for encoder in options.encoders:
            for k_shot in options.shots:
                folder = options.out / f"{task}-{encoder}-{k_shot}"
                if options.fine_tuning:
                    if encoder != "pixels":
                        fine_tune(task, encoder, k_shot, folder)
                        print(task, encoder, k_shot, "fine-tuned", flush=True)
                    continue
                cell = table(task, encoder, k_shot, folder)
                print_cell(cell)
                results += cell
    if results:
        print("\n# Compact")
        print_compact(results)
        print_summary(results)
        (options.out / "heads.json").write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
