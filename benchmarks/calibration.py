"""Are probabilities right, do sets hold what they promise, and is an unknown class noticed? 1,000 episodes per task.

    RADSHOT_DATA=... python benchmarks/calibration.py [--tasks phantoms ...] [--encoders default] [--pictures docs]

Prototypes (cosine, the source's mean subtracted) on the vectors of benchmarks/task_vectors.py. An episode draws known
classes and one or more unknown ones, and of each class patients for three purposes, none in two: five support
patients of one image, calibration patients with all their images, query patients of one image. Queries of the unknown
classes are asked only for "none of these". Printed are the tables of benchmarks/RESULTS.md; `--pictures` draws the
reliability and risk-coverage curves of the first encoder.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from panels import Curve, Panel, draw_panels
from scipy.stats import rankdata
from task_vectors import TaskVectors, load

from episodes import EpisodeSampler, patient_bootstrap
from episodes.calibration_metrics import RiskCoverage, brier_score, negative_log_likelihood, reliability, risk_coverage
from fewshot import PrototypeClassifier
from fewshot.calibration import (
    IsotonicCalibration,
    TemperatureScaling,
    fit_isotonic,
    fit_temperature,
)
from fewshot.calibration_rows import TooFewPatients
from fewshot.conformal import PredictionSets, fit_split_conformal
from fewshot.cross_conformal import fit_cross_conformal, fold_numbers, fold_scores
from fewshot.held_out import fit_folds, held_out_scores, patient_folds
from fewshot.novelty import NoveltyAnswer, fit_novelty, nearest_similarity, none_of_these, winning_score
from fewshot.support import Support

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

EPISODES, SEED, K_SHOT = 1_000, 0, 5
COVERAGE, FALSE_ALARM = 0.9, 0.1
#: Calibration patients of each class: too few for most, the usual case, enough for isotonic curves.
FEW, SOME, MANY = 2, 10, 20


@dataclass(frozen=True)
class Shape:
    """What an episode of a task is made of: classes, and patients of each class."""

    title: str
    known: int
    unknown: int
    calibration: int
    queries: int


TASKS = {
    "phantoms": Shape("phantoms", 4, 1, MANY, 15),
    "omniglot": Shape("omniglot", 5, 5, SOME, 4),
    "T4-same": Shape("brain_tumor (T4-same)", 3, 1, MANY, 15),
    "T5": Shape("medpix locations (T5)", 3, 1, SOME, 4),
}
#: Tasks drawn side by side, the first ones.
PANELS = 3
#: Calibrations in the order of the table; the last word is of where their patients come from.
CALIBRATIONS = (
    "softmax of the scores",
    f"temperature, {FEW} patients a class",
    f"temperature, {SOME} patients a class",
    f"isotonic, {SOME} patients a class",
    f"temperature, {MANY} patients a class",
    f"isotonic, {MANY} patients a class",
    "temperature, support held out",
)


@dataclass
class Tally:
    """What is gathered over the episodes of one task; lists are aligned, one entry per episode."""

    episode: list[Rows] = field(default_factory=list)
    patient: list[Rows] = field(default_factory=list)
    truth: list[Rows] = field(default_factory=list)
    target: list[Rows] = field(default_factory=list)
    winner: list[Floats] = field(default_factory=list)
    probabilities: dict[str, list[Floats]] = field(default_factory=lambda: defaultdict(list))
    refused: dict[str, int] = field(default_factory=dict)
    covered: dict[str, list[Floats]] = field(default_factory=lambda: defaultdict(list))
    size: dict[str, list[Floats]] = field(default_factory=lambda: defaultdict(list))
    promised: dict[str, float] = field(default_factory=dict)
    needs: dict[str, str] = field(default_factory=dict)
    auroc: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    alarms: dict[str, list[Floats]] = field(default_factory=lambda: defaultdict(list))
    caught: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


@dataclass(frozen=True)
class Drawn:
    """The rows of one episode, class after class, and the position of each row's class; patients are in one part."""

    classes: tuple[Hashable, ...]
    support: Rows
    support_targets: Rows
    calibration: dict[int, Rows]
    calibration_targets: dict[int, Rows]
    queries: Rows
    query_targets: Rows
    unknown: Rows


def draw(data: TaskVectors, patients: list[Hashable], shape: Shape, episodes: int) -> Iterator[Drawn]:
    """Episodes of which each class's patients are dealt at random into support, calibration and queries."""
    images: dict[tuple[Hashable, Hashable], list[int]] = defaultdict(list)
    for row, key in enumerate(zip(data.labels, patients, strict=True)):
        images[key].append(row)
    each = K_SHOT + shape.calibration + shape.queries
    n_way = shape.known + shape.unknown
    sampler = EpisodeSampler(data.labels, n_way, each, 1, groups=patients, n_episodes=episodes, seed=SEED)
    for number, episode in enumerate(sampler):
        rng = np.random.default_rng([SEED, number])
        dealt = [rng.permutation(rows) for rows in episode.support]
        known = dealt[: shape.known]
        calibration, targets = {}, {}
        for c in (FEW, SOME, MANY):
            if c <= shape.calibration:
                own = [
                    [i for row in rows[K_SHOT : K_SHOT + c] for i in images[data.labels[row], patients[row]]]
                    for rows in known
                ]
                calibration[c] = np.array([i for rows in own for i in rows], dtype=np.intp)
                targets[c] = np.repeat(np.arange(shape.known), [len(rows) for rows in own])
        asked = slice(K_SHOT + shape.calibration, None)
        yield Drawn(
            classes=episode.classes[: shape.known],
            support=np.concatenate([rows[:K_SHOT] for rows in known]),
            support_targets=np.repeat(np.arange(shape.known), K_SHOT),
            calibration=calibration,
            calibration_targets=targets,
            queries=np.concatenate([rows[asked] for rows in known]),
            query_targets=np.repeat(np.arange(shape.known), shape.queries),
            unknown=np.concatenate([rows[asked] for rows in dealt[shape.known :]]),
        )


def run(task: str, encoder: str, episodes: int) -> Tally:
    """Gather everything over the episodes of one task."""
    data, shape = load(task, encoder), TASKS[task]
    patients: list[Hashable] = list(range(len(data.labels))) if data.groups is None else data.groups
    codes: dict[Hashable, int] = {}
    numbers = np.array([codes.setdefault(patient, len(codes)) for patient in patients], dtype=np.intp)
    code = {name: i for i, name in enumerate(sorted(set(data.labels), key=str))}
    tally = Tally()
    for number, drawn in enumerate(draw(data, patients, shape, episodes)):
        tally.episode.append(np.full(len(drawn.queries), number))
        tally.patient.append(numbers[drawn.queries])
        tally.truth.append(np.array([code[data.labels[row]] for row in drawn.queries.tolist()]))
        tally.target.append(drawn.query_targets)
        _one(tally, data, numbers, drawn)
    return tally


def _one(tally: Tally, data: TaskVectors, numbers: Rows, drawn: Drawn) -> None:
    """One episode."""

    def make() -> PrototypeClassifier:
        return PrototypeClassifier(center=data.center)

    support = Support(
        data.vectors[drawn.support],
        drawn.support_targets.tolist(),
        ids=[f"{i:06}" for i in range(len(drawn.support))],
        groups=numbers[drawn.support].tolist(),
    )
    head = make().fit(support.vectors, support.labels, ids=support.ids, groups=support.groups)
    n_classes = len(drawn.classes)
    scores, strange = head.scores(data.vectors[drawn.queries]), head.scores(data.vectors[drawn.unknown])
    known = {
        c: (head.scores(data.vectors[rows]), drawn.calibration_targets[c], numbers[rows].tolist())
        for c, rows in drawn.calibration.items()
    }
    folds = fit_folds(make, support, patient_folds(support))
    held_out = held_out_scores(folds, support)
    within = (held_out, support.targets, numbers[drawn.support].tolist())

    # Probabilities
    tally.winner.append(winning_score(scores))
    fitted: dict[str, TemperatureScaling | IsotonicCalibration] = {
        CALIBRATIONS[0]: TemperatureScaling(1.0, n_classes, 0),
        CALIBRATIONS[-1]: fit_temperature(*within),
    }
    for c, rows in known.items():
        for kind, fit in (("temperature", fit_temperature), ("isotonic", fit_isotonic)):
            try:
                fitted[f"{kind}, {c} patients a class"] = fit(*rows)
            except TooFewPatients as refusal:
                tally.refused[f"{kind}, {c} patients a class"] = refusal.needed
    for name, calibration in fitted.items():
        if name in CALIBRATIONS:
            tally.probabilities[name].append(calibration.probabilities(scores))

    # Sets
    fixed = fitted[
        CALIBRATIONS[-1]
    ].temperature  # of the support alone, so the same for calibration patients and queries
    sets: dict[str, PredictionSets] = {}
    for c in (FEW, SOME):
        for per_class in (False, True):
            kind = "per class" if per_class else "marginal"
            sets[f"{kind}, margin, {c} patients a class"] = fit_split_conformal(*known[c], per_class=per_class).sets(
                scores, COVERAGE
            )
    for kind, temperature in (("probability", fixed), ("distance", None)):
        sets[f"marginal, {kind}, {SOME} patients a class"] = fit_split_conformal(
            *known[SOME], nonconformity=kind, temperature=temperature
        ).sets(scores, COVERAGE)
    by_fold = fold_scores(folds, data.vectors[drawn.queries], n_classes)
    for per_class in (False, True):
        cross = fit_cross_conformal(*within, fold_numbers(folds, len(support)), n_folds=len(folds), per_class=per_class)
        sets[f"{'per class' if per_class else 'marginal'}, support held out"] = cross.sets(by_fold, COVERAGE)
    seen = (head.scores(support.vectors), support.targets, support.groups)
    sets["(support scored by its own head)"] = fit_split_conformal(*seen).sets(scores, COVERAGE)
    for name, found in sets.items():
        tally.promised[name] = found.promised
        if found.members is None:
            tally.needs[name] = f"needs {found.needed}" + (" of each class" if "per class" in name else "")
            tally.needs[name] += f", has {min(found.found)}"
            continue
        tally.covered[name].append(found.members[np.arange(len(scores)), drawn.query_targets].astype(np.float64))
        tally.size[name].append(found.members.sum(axis=1).astype(np.float64))

    # None of these
    closeness = {
        "winning prototype": (winning_score(known[SOME][0]), winning_score(scores), winning_score(strange)),
        "nearest support image": tuple(
            nearest_similarity(data.vectors[rows], support.vectors, center=data.center)
            for rows in (drawn.calibration[SOME], drawn.queries, drawn.unknown)
        ),
    }
    for name, (ours, usual, new) in closeness.items():
        detector = fit_novelty(ours, known[SOME][2])
        _novel(tally, f"distance to the {name}", usual, new)
        _alarms(tally, f"distance to the {name}", *(detector.none_of_these(x, FALSE_ALARM) for x in (usual, new)))
    for per_class in (False, True):
        name = f"conformal p, {'per class' if per_class else 'marginal'}"
        predictor = fit_split_conformal(*known[SOME], per_class=per_class, nonconformity="distance")
        usual_answer, new_answer = (none_of_these(predictor, x, FALSE_ALARM) for x in (scores, strange))
        _novel(tally, name, usual_answer.p_values, new_answer.p_values)
        _alarms(tally, name, usual_answer, new_answer)
    chances = fitted[f"temperature, {SOME} patients a class"]
    _novel(tally, "largest probability", *(chances.probabilities(x).max(axis=1) for x in (scores, strange)))


def _novel(tally: Tally, name: str, usual: Floats, new: Floats) -> None:
    """AUROC of telling unknown classes' queries from the others by how little they fit."""
    ranks = rankdata(-np.concatenate([usual, new]))[len(usual) :]
    above = (
        ranks.sum() - len(new) * (len(new) + 1) / 2
    )  # pairs in which the new one fits less, ties half (Mann-Whitney)
    tally.auroc[name].append(float(above / (len(usual) * len(new))))


def _alarms(tally: Tally, name: str, usual: NoveltyAnswer, new: NoveltyAnswer) -> None:
    if usual.novel is not None and new.novel is not None:
        tally.alarms[name].append(usual.novel.astype(np.float64))
        tally.caught[name].append(float(new.novel.mean()))


def spread(values: list[Floats], tally: Tally) -> tuple[float, float, float]:
    """Mean over queries, its standard error over episodes, and over patients (bootstrap, class-balanced)."""
    means = np.array([value.mean() for value in values])
    found = patient_bootstrap(np.concatenate(values), np.concatenate(tally.truth), np.concatenate(tally.patient))
    return float(means.mean()), float(means.std(ddof=1) / np.sqrt(len(means))), float(found.samples.std(ddof=1))


def calibration_table(results: dict[tuple[str, str], Tally]) -> list[str]:
    """Errors of probabilities before and after."""
    lines = [
        "| task, encoder | probabilities | accuracy | mean probability | ECE, equal mass | equal width | Brier | NLL |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for (task, encoder), tally in results.items():
        target = np.concatenate(tally.target)
        for name in CALIBRATIONS:
            first = f"| {TASKS[task].title}, {encoder} | {name} |"
            if name not in tally.probabilities:
                if name in tally.refused:
                    unit = "of each class" if "isotonic" in name else "in all"
                    lines.append(f"{first} needs {tally.refused[name]} {unit} | | | | | |")
                continue
            found = np.concatenate(tally.probabilities[name])
            best, right = found.max(axis=1), found.argmax(axis=1) == target
            mass, width = (reliability(best, right, equal=kind).ece for kind in ("mass", "width"))
            lines.append(
                f"{first} {right.mean():.3f} | {best.mean():.3f} | {mass:.3f} | {width:.3f} | "
                f"{brier_score(found, target):.3f} | {negative_log_likelihood(found, target):.3f} |"
            )
    return lines


def coverage_table(results: dict[tuple[str, str], Tally]) -> list[str]:
    """Coverage of sets, overall and for the class it is lowest in."""
    lines = [
        "| task, encoder | 90 % sets | promised | coverage | ± s.e. episodes | ± s.e. patients | holds | "
        "lowest class | mean size | empty |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (task, encoder), tally in results.items():
        truth = np.concatenate(tally.truth)
        for name, promised in tally.promised.items():
            first = f"| {TASKS[task].title}, {encoder} | {name} |"
            if name not in tally.covered:
                lines.append(f"{first} {promised:.2f} | **{tally.needs[name]}** | | | | | | |")
                continue
            mean, episodes, patients = spread(tally.covered[name], tally)
            covered, size = np.concatenate(tally.covered[name]), np.concatenate(tally.size[name])
            asked = Counter(truth.tolist())
            lowest = min(covered[truth == c].mean() for c in asked)
            shown = f"{lowest:.3f}" if len(asked) < 20 else "–"
            holds = "yes" if mean >= promised - 2 * episodes else "**no**"
            said = "none" if name.startswith("(") else f"{promised:.2f}"
            lines.append(
                f"{first} {said} | {mean:.3f} | {episodes:.4f} | {patients:.4f} | "
                f"{holds if said != 'none' else '–'} | {shown} | {size.mean():.2f} | {(size == 0).mean():.3f} |"
            )
    return lines


def novelty_table(results: dict[tuple[str, str], Tally]) -> list[str]:
    """How well unknown classes are noticed."""
    lines = [
        "| task, encoder | by | AUROC (± s.e. episodes) | false alarms at 10 % | ± s.e. episodes | ± s.e. patients | "
        "caught |",
        "|---|---|---|---|---|---|---|",
    ]
    for (task, encoder), tally in results.items():
        for name, values in tally.auroc.items():
            error = np.std(values, ddof=1) / np.sqrt(len(values))
            first = f"| {TASKS[task].title}, {encoder} | {name} | {np.mean(values):.3f} (± {error:.3f}) |"
            if name not in tally.alarms:
                lines.append(f"{first} – | | | |")
                continue
            mean, episodes, patients = spread(tally.alarms[name], tally)
            lines.append(f"{first} {mean:.3f} | {episodes:.4f} | {patients:.4f} | {np.mean(tally.caught[name]):.3f} |")
    return lines


def risk_table(results: dict[tuple[str, str], Tally]) -> list[str]:
    """Area under the risk-coverage curve, and the risk when the surest 80 % and half are answered."""
    lines = [
        "| task, encoder | confidence | AURC | risk at 100 % | at 80 % | at 50 % |",
        "|---|---|---|---|---|---|",
    ]
    for (task, encoder), tally in results.items():
        for name, curve in risks(tally).items():
            coverage, risk = np.array(curve.coverage), np.array(curve.risk)
            at = [risk[min(int(np.searchsorted(coverage, share)), risk.size - 1)] for share in (1.0, 0.8, 0.5)]
            shown = " | ".join(f"{value:.3f}" for value in at)
            lines.append(f"| {TASKS[task].title}, {encoder} | {name} | {curve.aurc:.3f} | {shown} |")
    return lines


def risks(tally: Tally) -> dict[str, RiskCoverage]:
    """Risk-coverage curves by calibrated probability, by the winner's score, and with no idea at all."""
    found = np.concatenate(tally.probabilities[CALIBRATIONS[2]])
    right = found.argmax(axis=1) == np.concatenate(tally.target)
    return {
        "calibrated probability": risk_coverage(found.max(axis=1), right),
        "winner's score": risk_coverage(np.concatenate(tally.winner), right),
        "at random": risk_coverage(np.zeros(len(right)), right),
    }


def draw_pictures(results: dict[tuple[str, str], Tally], encoder: str, folder: Path) -> None:
    """docs/reliability.png and docs/risk-coverage.png."""
    shown = {CALIBRATIONS[0]: "softmax of the scores", CALIBRATIONS[2]: "temperature", CALIBRATIONS[5]: "isotonic"}
    reliable, risky = [], []
    own = [(task, tally) for (task, name), tally in results.items() if name == encoder][:PANELS]
    most = max(risk for _, tally in own for curve in risks(tally).values() for risk in _smooth(curve)[1])
    top = next(value for value in (0.1, 0.25, 0.5, 1.0) if most <= value)
    for task, tally in own:
        curves = []
        for name, short in shown.items():
            if name in tally.probabilities:
                found = np.concatenate(tally.probabilities[name])
                right = found.argmax(axis=1) == np.concatenate(tally.target)
                bins = reliability(found.max(axis=1), right, equal="mass").bins
                curves.append(Curve(short, [(b.probability, b.right) for b in bins], dots=True))
        title = TASKS[task].title
        reliable.append(Panel(title, curves, "probability given", "share right", diagonal=True))
        lines = [
            Curve(name, list(zip(*_smooth(curve), strict=True)), dashed=name == "at random")
            for name, curve in reversed(risks(tally).items())
        ]
        risky.append(Panel(title, lines, "share of queries answered", "share of answers wrong", top))
    draw_panels(reliable, folder / "reliability.png")
    draw_panels(risky, folder / "risk-coverage.png")


def _smooth(curve: RiskCoverage) -> tuple[list[float], list[float]]:
    """A risk-coverage curve at every hundredth from 0.02; a single point becomes a level line."""
    at = np.linspace(0.02, 1, 99)
    return at.tolist(), np.interp(at, curve.coverage, curve.risk).tolist()


def main() -> None:
    """Run the tasks and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--encoders", nargs="+", default=["default"])
    parser.add_argument("--episodes", type=int, default=EPISODES)
    parser.add_argument("--pictures", type=Path, help="folder to draw the two pictures in")
    options = parser.parse_args()
    results = {}
    for task in options.tasks:
        for encoder in options.encoders:
            start = time.perf_counter()
            results[task, encoder] = run(task, encoder, options.episodes)
            shape, seconds = TASKS[task], time.perf_counter() - start
            print(
                f"{shape.title}, {encoder}: {shape.known} known classes and {shape.unknown} unknown, {K_SHOT}-shot, up "
                f"to {shape.calibration} calibration and {shape.queries} query patients a class; {options.episodes:,} "
                f"episodes, {seconds:.0f} s\n",
                flush=True,
            )
    for title, table in (
        ("Probabilities", calibration_table),
        ("Sets", coverage_table),
        ("Risk and coverage", risk_table),
        ("None of these", novelty_table),
    ):
        print(f"**{title}**\n", *table(results), "", sep="\n", flush=True)
    if options.pictures is not None:
        draw_pictures(results, options.encoders[0], options.pictures)


if __name__ == "__main__":
    main()
