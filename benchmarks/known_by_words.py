"""Classes known by words: Z1, Z2, the curve from 0 to 20 shots, unseen combinations, COVID-19 from notes.

    RADSHOT_DATA=... python benchmarks/zeroshot_encoders.py
    RADSHOT_DATA=... python benchmarks/known_by_words.py [--only z1 z2 curve phantoms covid]

Prints Markdown and keeps figures in runs/zeroshot/results.json. Settings were chosen within medpix2's training split;
its dev split is read here only.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tasks import SEEN_LOCATIONS, UNSEEN_LOCATIONS, data_folder
from zeroshot_encoders import RUNS, Medpix, encoder, medpix

from embeddings import (
    Encoder,
    HogEncoder,
    TextEncoder,
    TfidfTextEncoder,
    load_encoder,
    load_text_encoder,
    train_text_encoder,
)
from episodes import Manifest, make_phantoms, paired_difference, patient_bootstrap, ranking_score
from fewshot import ClassPrior, learn_prior_shots
from fewshot.words_curve import BOTH, SHOTS, WORDS, words_curve
from zeroshot import (
    AleAlignment,
    Alignment,
    CcaAlignment,
    ContrastiveAlignment,
    EszslAlignment,
    Interval,
    LinearMap,
    MultiView,
    RidgeAlignment,
    SemanticSpace,
    built_in_descriptions,
    built_in_traits,
    choose_gamma,
    evaluate_generalized,
    from_descriptions,
    from_traits,
    harmonic_mean,
    mark_all,
    retrieval,
    seen_unseen_curve,
    self_train,
)
from zeroshot.disjoint import class_disjoint_priors
from zeroshot.generalized import deal
from zeroshot.linear_map import unit_rows

Rows = NDArray[np.float64]
ALIGNMENTS: dict[str, Callable[[], Alignment]] = {
    "linear map (peer)": lambda: RidgeAlignment(alpha=0.01, direction="to-text"),
    "ESZSL as published (peer)": lambda: EszslAlignment(balanced=False),
    "ESZSL, balanced": EszslAlignment,
    "ridge to text": lambda: RidgeAlignment(direction="to-text"),
    "ridge to image": RidgeAlignment,
    "ALE": AleAlignment,
    "contrastive": ContrastiveAlignment,
    "CCA": CcaAlignment,
}
"""Name -> maker; the first two are the peers."""

MAIN = "CCA"
"""The alignment that was chosen on the training split."""

DRAWS = 2000
results: dict[str, Any] = {}


def say(line: str = "") -> None:
    """Print a line at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table."""
    say("| " + " | ".join(header) + " |")
    say("|" + "---|" * len(header))
    for row in rows:
        say("| " + " | ".join(str(cell) for cell in row) + " |")
    say()


def vectors_of(made: Encoder, images: Sequence[Any], name: str) -> NDArray[np.float32]:
    """Return an encoder's vectors, kept under runs/zeroshot."""
    file = RUNS / "vectors" / f"{name}-{made.fingerprint[:12]}.npy"
    if file.exists():
        return np.load(file)
    rows = made.encode(images)
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file, rows)
    return rows


def side_by_side(parts: Sequence[NDArray[np.float32]], learnt: NDArray[np.bool_]) -> Rows:
    """Put vectors of several encoders side by side, each centred on the images learnt from and of unit length."""
    return np.hstack([unit_rows(part.astype(np.float64) - part[learnt].mean(axis=0)) for part in parts])


def balanced(right: NDArray[np.bool_], classes: Sequence[object], patients: Sequence[object]) -> Interval:
    """Class-balanced mean with its interval over patients."""
    found = patient_bootstrap(right, codes(classes), codes(patients), draws=DRAWS)
    return Interval(found.estimate, found.low, found.high)


def codes(values: Sequence[object]) -> NDArray[np.intp]:
    """Values as numbers."""
    return np.unique(np.asarray([str(value) for value in values]), return_inverse=True)[1].astype(np.intp)


def mean_auroc(scores: Rows, truth: Sequence[object], classes: Sequence[str]) -> float:
    """Mean over classes of the one-against-rest AUROC."""
    found = [ranking_score(np.array([str(t) == name for t in truth]), scores[:, i]) for i, name in enumerate(classes)]
    return float(np.mean([one.auroc for one in found if one.auroc is not None]))


def text_encoders(data: Medpix) -> dict[str, tuple[TextEncoder, list[str]]]:
    """Text encoders fitted on the training split, with the texts an alignment learns from."""
    rows = np.flatnonzero(data.train)
    captions, reports = ([texts[i] for i in rows] for texts in (data.caption, data.report))
    bert = RUNS / "bert"
    if not (bert / "text_encoder.json").exists():
        train_text_encoder(reports, bert, dim=128, epochs=20)
    return {
        "TF-IDF, captions": (TfidfTextEncoder(dim=128).fit(captions), data.caption),
        "TF-IDF, captions + findings": (TfidfTextEncoder(dim=128).fit(reports), data.report),
        "BERT trained here": (load_text_encoder(str(bert)), data.report),
    }


def z1() -> None:
    """Zero-shot category and modality, and retrieval, on dev."""
    data = medpix()
    dev = ~data.train
    train = np.flatnonzero(data.train)
    encoded = {name: vectors_of(encoder(name, data), data.images, "medpix2") for name in ("words", "words+labels")}
    hog = vectors_of(HogEncoder(64), data.images, "medpix2")
    sides = {
        "(a) never given location labels": side_by_side([encoded["words"], hog], data.train),
        "(b) given location labels": side_by_side([encoded["words+labels"], hog], data.train),
        "(a), HOG alone": side_by_side([hog], data.train),
        "(a), network alone": side_by_side([encoded["words"]], data.train),
    }
    texts = text_encoders(data)
    anatomy, modality = built_in_descriptions("anatomy"), built_in_descriptions("modality")
    cases = [data.cases[i] for i in np.flatnonzero(dev)]
    captions = [data.caption[i] for i in np.flatnonzero(dev)]
    outcomes: dict[tuple[str, str], NDArray[np.bool_]] = {}
    for row, x in sides.items():
        lines = []
        chosen = (
            texts
            if row in ("(a) never given location labels", "(b) given location labels")
            else {"TF-IDF, captions + findings": texts["TF-IDF, captions + findings"]}
        )
        for text_name, (words, said) in chosen.items():
            t = words.encode(said).astype(np.float64)
            told = train[np.linalg.norm(t[train], axis=1) > 0]
            spaces = [from_descriptions(what, words) for what in (anatomy, modality)]
            shown = words.encode(captions).astype(np.float64)
            for name, make in ALIGNMENTS.items():
                if text_name == "BERT trained here" and name == "ALE":
                    continue
                found = make().fit(x[told], t[told]).map_
                cells = []
                for space, truth in zip(spaces, (data.category[dev], data.modality[dev]), strict=True):
                    scores = found.scores(x[dev], space.vectors)
                    right = np.asarray(space.classes, dtype=object)[scores.argmax(axis=1)] == truth
                    cells += [balanced(right, truth, cases), mean_auroc(scores, truth, space.classes)]
                    if space is spaces[0] and text_name == "TF-IDF, captions + findings":
                        outcomes[row, name] = right
                hits = retrieval(found.scores(x[dev], shown), captions, groups=cases)
                to_image = "/".join(f"{hits.text_to_image[k].estimate:.2f}" for k in (1, 5, 10))
                to_text = "/".join(f"{hits.image_to_text[k].estimate:.2f}" for k in (1, 5, 10))
                r10 = hits.text_to_image[10]
                lines.append(
                    (text_name, name, cells[0], f"{cells[1]:.3f}", cells[2], f"{cells[3]:.3f}", to_image, r10, to_text)
                )
                results[f"z1 | {row} | {text_name} | {name}"] = [str(cell) for cell in lines[-1][2:]]
        say(f"**Row {row}**; {int(dev.sum())} images of {len(set(cases))} cases\n")
        table(
            ("text encoder", "alignment", "category, balanced accuracy", "AUROC", "modality", "AUROC",
             "caption to image R@1/5/10", "R@10, 95 %", "image to caption R@1/5/10"),
            lines,
        )  # fmt: skip
    say("Paired differences of the category's accuracy, over patients; texts are captions with findings:\n")
    truth = data.category[dev]
    lines = []
    for row in sides:
        for other in list(ALIGNMENTS)[:2]:
            gap = paired_difference(outcomes[row, MAIN], outcomes[row, other], codes(truth), codes(cases))
            lines.append((row, f"{MAIN} - {other}", f"{gap.difference:+.3f} [{gap.low:+.3f}, {gap.high:+.3f}]"))
            results[f"z1 difference | {row} | {other}"] = lines[-1][2]
    table(("row", "difference", "balanced accuracy"), lines)


def medpix_spaces(words: TextEncoder, reports: Rows, names: Sequence[str]) -> dict[str, SemanticSpace]:
    """The three semantic spaces of locations; reports are those most like a description, whoever wrote them."""
    described = from_descriptions({name: built_in_descriptions("locations")[name] for name in names}, words)
    mean = reports.mean(axis=0)
    near = unit_rows(reports - mean) @ unit_rows(described.vectors - mean).T  # (reports, classes)
    mentioned = np.stack([unit_rows(reports)[np.argsort(-near[:, c])[:20]].mean(axis=0) for c in range(len(names))])
    return {
        "descriptions": described,
        "reports": SemanticSpace("reports", tuple(names), mentioned, None, {}, {}),
        "traits": from_traits({name: built_in_traits("locations")[name] for name in names}),
    }


def seen_vectors(data: Medpix, learnt: NDArray[np.bool_]) -> Rows:
    """Vectors of an encoder that never saw an unseen location, beside HOG."""
    made = encoder("words, seen", data)
    return side_by_side(
        [vectors_of(made, data.images, "medpix2"), vectors_of(HogEncoder(64), data.images, "medpix2")], learnt
    )


def z2() -> None:
    """Generalized zero-shot over locations: five seen, five unseen."""
    data = medpix()
    seen, unseen = list(SEEN_LOCATIONS), list(UNSEEN_LOCATIONS)
    names = seen + unseen
    learnt = data.train & np.isin(data.location, seen)
    asked = np.isin(data.location, unseen) | (~data.train & np.isin(data.location, seen))
    x = seen_vectors(data, learnt)
    rows, queries = np.flatnonzero(learnt), np.flatnonzero(asked)
    words = TfidfTextEncoder(dim=128).fit([data.report[i] for i in rows])
    t = words.encode(data.report).astype(np.float64)
    spaces = medpix_spaces(words, t[rows], names)
    labels, truth = [str(data.location[i]) for i in rows], [str(data.location[i]) for i in queries]
    cases, owners = [data.cases[i] for i in rows], [data.cases[i] for i in queries]
    judge = partial(evaluate_generalized, labels=truth, classes=names, seen=seen, groups=owners, draws=300)
    described = spaces["descriptions"]
    class_rows = described.rows(labels)
    kept: dict[str, tuple[Rows, float]] = {}
    lines = []
    for name, make in ALIGNMENTS.items():
        for what, targets in (("classes", class_rows), ("reports", t[rows])):
            scores = make().fit(x[rows], targets).map_.scores(x[queries], described.vectors)
            gamma = choose_gamma(
                x[rows], labels, described, make, texts=None if what == "classes" else targets, groups=cases
            )
            kept[f"{name}, {what}"] = scores, gamma
            for used in (0.0, gamma):
                report = judge(scores, gamma=used)
                lines.append((name, what, f"{used:.3f}", report.seen, report.unseen, report.harmonic, report.area))
                results[f"z2 | {name} | {what} | {'stacked' if used else 'plain'}"] = str(report)
    say(f"Learnt on {len(rows):,} images of {len(set(cases))} cases; {len(queries):,} of {len(set(owners))} asked.\n")
    table(("alignment", "learnt from", "gamma", "S", "U", "H", "AUSUC"), lines)

    lines = []
    for text_name, (other, said) in text_encoders(data).items():
        if text_name == "TF-IDF, captions + findings":
            continue
        named = from_descriptions({name: built_in_descriptions("locations")[name] for name in names}, other)
        own = other.encode(said).astype(np.float64)
        told = rows[np.linalg.norm(own[rows], axis=1) > 0]
        which = [labels[list(rows).index(i)] for i in told.tolist()]
        whose = [data.cases[i] for i in told]
        for name, make in ALIGNMENTS.items():
            scores = make().fit(x[told], own[told]).map_.scores(x[queries], named.vectors)
            gamma = choose_gamma(x[told], which, named, make, texts=own[told], groups=whose)
            report = judge(scores, gamma=gamma)
            lines.append((text_name, name, f"{gamma:.3f}", report.seen, report.unseen, report.harmonic, report.area))
            results[f"z2 | {name} | {text_name}"] = str(report)
    say("Other text encoders, from reports, stacked; they saw texts of all locations of the training split:\n")
    table(("text encoder", "alignment", "gamma", "S", "U", "H", "AUSUC"), lines)

    # Spaces: each alone, then together; gamma is chosen for each on seen classes.
    lines, together = [], {}
    combos = {
        "descriptions": ("descriptions",),
        "reports": ("reports",),
        "traits": ("traits",),
        "descriptions + reports": ("descriptions", "reports"),
        "descriptions + reports + traits": ("descriptions", "reports", "traits"),
    }
    for name, views in combos.items():
        scores, gamma = multiview(x, rows, queries, labels, cases, spaces, views, names, t, seen)
        together[name] = scores, gamma
        report = judge(scores, gamma=gamma)
        lines.append((name, f"{gamma:.3f}", report.seen, report.unseen, report.harmonic, report.area))
        results[f"z2 spaces | {name}"] = str(report)
    found = self_train(x[rows], t[rows], x[queries], described.vectors, ALIGNMENTS[MAIN])
    scores, gamma = found.scores(x[queries], described.vectors), kept[f"{MAIN}, reports"][1]
    together["self-training"] = scores, gamma
    report = judge(scores, gamma=gamma)
    lines.append(("self-training on the queries (transductive)", f"{gamma:.3f}", report.seen, report.unseen,
                  report.harmonic, report.area))  # fmt: skip
    say(f"Spaces, by {MAIN}; the text views learn from reports, the traits from classes.\n")
    table(("spaces", "gamma", "S", "U", "H", "AUSUC"), lines)

    best = f"{MAIN}, reports"
    pairs = [
        ("stacking", kept[best], (kept[best][0], 0.0)),
        (f"{MAIN} against ESZSL as published", kept[best], (kept["ESZSL as published (peer), classes"][0], 0.0)),
        (f"{MAIN} against the linear map", kept[best], (kept["linear map (peer), classes"][0], 0.0)),
        (f"{MAIN} against stacked ESZSL", kept[best], kept["ESZSL as published (peer), classes"]),
        (f"{MAIN} against the stacked linear map", kept[best], kept["linear map (peer), classes"]),
        ("second space", together["descriptions + reports"], together["descriptions"]),
        ("third space", together["descriptions + reports + traits"], together["descriptions + reports"]),
        ("self-training", together["self-training"], kept[best]),
    ]
    say("Paired differences of H, over patients:\n")
    lines = []
    for name, first, second in pairs:
        gaps = harmonic_samples(*first, truth, names, seen, owners) - harmonic_samples(
            *second, truth, names, seen, owners
        )
        point = judge(first[0], gamma=first[1]).harmonic.estimate - judge(second[0], gamma=second[1]).harmonic.estimate
        low, high = np.quantile(gaps, [0.025, 0.975])
        lines.append((name, f"{point:+.3f} [{low:+.3f}, {high:+.3f}]"))
        results[f"z2 difference | {name}"] = lines[-1][1]
    table(("gain", "difference of H"), lines)


def multiview(
    x: Rows,
    rows: NDArray[np.intp],
    queries: NDArray[np.intp],
    labels: Sequence[str],
    cases: Sequence[str],
    spaces: dict[str, SemanticSpace],
    views: Sequence[str],
    names: Sequence[str],
    t: Rows,
    seen: Sequence[str],
) -> tuple[Rows, float]:
    """Scores of the queries by several spaces, and gamma as seen classes choose it."""

    def targets(own: NDArray[np.intp]) -> dict[str, Rows]:
        place = {row: i for i, row in enumerate(rows.tolist())}
        named = [labels[place[row]] for row in own.tolist()]
        return {view: spaces[view].rows(named) if view == "traits" else t[own] for view in views}

    def scored(own: NDArray[np.intp], asked: NDArray[np.intp], among: Sequence[str]) -> Rows:
        fitted = MultiView(make=ALIGNMENTS[MAIN]).fit(x[own], targets(own))
        return fitted.scores(x[asked], {view: spaces[view].rows(among) for view in views})

    # As choose_gamma does: some seen classes play the unseen, a fifth of the cases play seen queries.
    rng = np.random.default_rng(0)
    part = deal(spaces[views[0]].rows(seen), 2)
    owner = codes(cases)
    fold = rng.permutation(owner.max() + 1) % 5
    label_codes = np.array([list(seen).index(label) for label in labels])
    curves = []
    for number in range(2):
        is_seen = part != number
        held = fold[owner] == number
        own = is_seen[label_codes] & ~held
        ask = ~is_seen[label_codes] | held
        curves.append(seen_unseen_curve(scored(rows[own], rows[ask], seen), label_codes[ask], is_seen))
    grid = np.unique(np.concatenate([curve.gammas[np.isfinite(curve.gammas)] for curve in curves]))

    def at(curve: Any) -> Rows:
        place = np.searchsorted(curve.gammas, grid, side="right") - 1
        return harmonic_mean(curve.seen[place], curve.unseen[place])

    mean = np.mean([at(curve) for curve in curves], axis=0)
    best = np.flatnonzero(mean >= mean.max() - 1e-12)
    return scored(rows, queries, names), float(grid[best[len(best) // 2]])


def harmonic_samples(
    scores: Rows, gamma: float, truth: Sequence[str], names: Sequence[str], seen: Sequence[str], owners: Sequence[str]
) -> Rows:
    """H in each resample of patients; the same resamples for every classifier."""
    mask = np.array([name in seen for name in names])
    answers = (scores - gamma * mask).argmax(axis=1)
    target = np.array([list(names).index(label) for label in truth])
    right, of_seen, patients = answers == target, mask[target], codes(owners)
    s, u = (
        patient_bootstrap(right[part], target[part], patients[part], draws=DRAWS).samples
        for part in (of_seen, ~of_seen)
    )
    return 2 * s * u / np.maximum(s + u, 1e-12)


def curve() -> None:
    """From 0 to 20 shots on medpix2's unseen locations: shots, words, both."""
    data = medpix()
    learnt = data.train & np.isin(data.location, SEEN_LOCATIONS)
    x = seen_vectors(data, learnt)
    rows = np.flatnonzero(learnt)
    words = TfidfTextEncoder(dim=128).fit([data.report[i] for i in rows])
    t = words.encode(data.report).astype(np.float64)
    asked = np.flatnonzero(np.isin(data.location, UNSEEN_LOCATIONS))
    descriptions = built_in_descriptions("locations")
    space_seen = from_descriptions({name: descriptions[name] for name in SEEN_LOCATIONS}, words)
    space = from_descriptions({name: descriptions[name] for name in UNSEEN_LOCATIONS}, words)
    labels = [str(data.location[i]) for i in rows]
    draw_curve(
        "medpix2, five unseen locations",
        x,
        rows,
        t,
        labels,
        [data.cases[i] for i in rows],
        space_seen,
        space,
        asked,
        [str(data.location[i]) for i in asked],
        [data.cases[i] for i in asked],
    )


def draw_curve(
    title: str,
    x: Rows,
    rows: NDArray[np.intp],
    t: Rows,
    labels: Sequence[str],
    cases: Sequence[str],
    space_seen: SemanticSpace,
    space: SemanticSpace,
    asked: NDArray[np.intp],
    truth: Sequence[str],
    owners: Sequence[str],
) -> None:
    """Learn prior_shots on seen classes, then measure at 0 to 20 shots on the same episodes."""
    held = class_disjoint_priors(x[rows], t[rows], labels, space_seen)
    center = x[rows].mean(axis=0)
    worth = learn_prior_shots(
        x[rows], labels, {name: ClassPrior(*prior) for name, prior in held.items()}, center=center, groups=cases
    )
    to_image = RidgeAlignment().fit(x[rows], t[rows]).map_
    priors = {
        name: ClassPrior(space.phrases[name], to_image.texts(space.phrase_vectors[name]).astype(np.float32))
        for name in space.classes
    }
    points = words_curve(
        x[asked],
        truth,
        owners,
        priors,
        prior_shots=worth,
        center=center,
        shots=(0, 1, 2, 3, 5, 10, 20),
    )
    lines = []
    for point in points:
        cells = [str(point.k_shot), f"{len(point.classes)}-way", f"{point.patients}"]
        for name in (SHOTS, WORDS, BOTH):
            part = point.found.get(name)
            cells.append("-" if part is None else str(Interval(part.estimate, part.low, part.high)))
        for other in (SHOTS, WORDS):
            gain = point.gain(other)
            cells.append("-" if gain is None else f"{gain[0]:+.3f} [{gain[1]:+.3f}, {gain[2]:+.3f}]")
        lines.append(cells)
        results[f"curve | {title} | {point.k_shot}"] = cells
    results[f"curve points | {title}"] = [
        [point.k_shot, {name: [part.estimate, part.low, part.high] for name, part in point.found.items()}]
        for point in points
    ]
    say(f"**{title}**; prior_shots {worth.shots:.2f}, learnt on {len(set(labels))} seen classes\n")
    table(("shots", "ways", "patients", "shots alone", "words alone", "both", "both - shots", "both - words"), lines)


COMBOS = (
    "atelectasis", "calcified granulomas", "cavity", "chest tube", "consolidation", "effusion", "mass", "nodule",
    "pleural thickening", "pneumothorax", "rib fractures", "scoliosis",
)  # fmt: skip
"""Findings whose sides are told apart; of every second one a side is left out of all that words are fitted on."""

REPORTED, ASKED = 80, 60
"""Patients of each finding with reports, and patients asked about."""


def phantoms() -> None:
    """Unseen combinations of finding and side, recognised from text; and the curve on them."""
    made = load_encoder("runs/phantoms/siamese-multi-similarity")
    drawn = [
        make_phantoms(COMBOS, patients_per_finding=count, size=(160, 160), seed=seed)
        for count, seed in ((REPORTED, 11), (ASKED, 12))
    ]
    combo = [f"{shown[0].name}, {shown[0].side}" for part in drawn for shown in part.findings]
    patients = [f"{i} {patient}" for i, part in enumerate(drawn) for patient in part.patients]
    reported = np.arange(len(combo)) < len(drawn[0])
    names = sorted(f"{name}, {side}" for name in COMBOS for side in ("left", "right"))
    unseen = [f"{name}, {('left', 'right')[i % 2]}" for i, name in enumerate(COMBOS[::2])]
    seen = [name for name in names if name not in unseen]
    marked = mark_all([report for part in drawn for report in part.reports])
    rows = np.flatnonzero(reported & ~np.isin(combo, unseen))
    words = TfidfTextEncoder(dim=128).fit([marked[i] for i in rows])
    x = vectors_of(made, [image for part in drawn for image in part.images], "phantoms").astype(np.float64)
    t = words.encode(marked).astype(np.float64)
    described = from_descriptions({name: combo_sentences(name) for name in names}, words)
    asked = np.flatnonzero(~reported & np.isin(combo, names))
    truth, owners = [combo[i] for i in asked], [patients[i] for i in asked]
    known = rows[np.isin(np.asarray(combo)[rows], seen)]
    own = np.flatnonzero(np.isin(truth, unseen))
    columns = [names.index(name) for name in unseen]
    lines = []
    for name, make in ALIGNMENTS.items():
        found = make().fit(x[rows], t[rows]).map_
        gamma = choose_gamma(
            x[known],
            [combo[i] for i in known],
            described.only(seen),
            make,
            texts=t[known],
            groups=[patients[i] for i in known],
        )
        scores = found.scores(x[asked], described.vectors)
        guesses = scores[np.ix_(own, columns)].argmax(axis=1)
        right = np.array([unseen[guess] == truth[i] for guess, i in zip(guesses, own.tolist(), strict=True)])
        alone = balanced(right, [truth[i] for i in own], [owners[i] for i in own])
        for used in (0.0, gamma):
            report = evaluate_generalized(scores, truth, names, seen, gamma=used, groups=owners, draws=300)
            lines.append((name, alone if not used else "", f"{used:.3f}", report.seen, report.unseen, report.harmonic,
                          report.area))  # fmt: skip
            results[f"phantoms | {name} | {'stacked' if used else 'plain'}"] = str(report)
    say(
        f"{len(seen)} seen and {len(unseen)} unseen combinations of finding and side; {len(rows):,} images with "
        f"reports, {len(asked):,} asked about, none of them seen by the encoder, which was never told a side\n"
    )
    table(("alignment", "among the unseen alone", "gamma", "S", "U", "H", "AUSUC"), lines)
    draw_curve(
        "phantoms, unseen combinations of finding and side",
        x, known, t, [combo[i] for i in known], [patients[i] for i in known],
        described.only(seen), described.only(unseen),
        asked[own], [truth[i] for i in own], [owners[i] for i in own],
    )  # fmt: skip


def combo_sentences(name: str) -> list[str]:
    """What a report would say of a finding on a side, in words the phantoms' reports know."""
    finding, side = name.split(", ")
    terms = [
        term
        for term in built_in_descriptions("phantoms")[finding].present
        if not term.startswith(("There", "Find", "The"))
    ]
    return [f"{term.rstrip('.')} on the {side}." for term in terms] + [f"{term.rstrip('.')}, {side}." for term in terms]


LABEL_WORDS = re.compile(
    r"\b(covid\w*|corona\w*|sars\w*|ncov\w*|2019-ncov|mers\w*|pneumocyst\w*|pcp|jirovec\w*|carinii|streptococ\w*|klebsiella|"
    r"legionel\w*|mycoplasm\w*|chlamyd\w*|influenza\w*|varicella\w*|chickenpox|lipoid|e\.?\s?coli|escherichia|ards|"
    r"pandemic|wuhan|pcr|rt-pcr|swab\w*|novel|virus\w*|viral|bacteri\w*|fung\w*|hiv|aids)\b",
    re.IGNORECASE,
)
"""Words of a note that name its label or how it was found."""


def covid() -> None:
    """COVID-19 against other findings, described in words; notes without label words."""
    manifest = Manifest.read(
        data_folder() / "covid_chestxray" / "manifest.csv",
        label="finding",
        group="split_group",
        where="modality = 'X-ray' AND view != 'L'",
    )
    column = manifest.table.fillna("")
    notes = [LABEL_WORDS.sub(" ", str(text)) for text in column["clinical_notes"]]
    images = [str(path) for path in manifest.images]
    fold = column["fold"].astype(int).to_numpy()
    truth = np.array([label.startswith("COVID-19") for label in manifest.labels])
    made = load_encoder("runs/methods/T2-conv4-siamese-multi-similarity-seed0")
    parts = [vectors_of(made, images, "covid"), vectors_of(HogEncoder(64), images, "covid")]
    described = {
        "COVID-19": [
            "Bilateral peripheral patchy ground glass opacities, more in the lower zones.",
            "Multifocal bilateral airspace opacities in a patient with fever, dry cough and dyspnea.",
            "Bilateral interstitial and alveolar infiltrates with low oxygen saturation and lymphopenia.",
        ],
        "other": [
            "Lobar consolidation with air bronchograms in a single lobe.",
            "Cavitary lesion, pleural effusion or empyema with productive cough.",
            "Perihilar granular opacities or a normal chest radiograph without infiltrate.",
        ],
    }
    scores = np.full(len(images), np.nan)
    site = column["url"].astype(str).str.extract(r"https?://(?:www\.)?([^/]+)", expand=False).fillna("none").to_numpy()
    by_site = np.full(len(images), np.nan)
    for number in range(5):
        train, test = fold != number, fold == number
        x = side_by_side(parts, train)
        own = np.flatnonzero(train & np.array([bool(note.strip()) for note in notes]))
        words = TfidfTextEncoder(dim=64).fit(mark_all([notes[i] for i in own]))
        t = words.encode(mark_all([notes[i] for i in own])).astype(np.float64)
        told = np.linalg.norm(t, axis=1) > 0
        space = from_descriptions(described, words, prepare=mark_all)
        found: LinearMap = ALIGNMENTS[MAIN]().fit(x[own[told]], t[told]).map_
        both = found.scores(x[test], space.vectors)
        scores[test] = both[:, 0] - both[:, 1]
        rate = {name: truth[train & (site == name)].mean() for name in set(site[train])}
        by_site[test] = [rate.get(name, truth[train].mean()) for name in site[test]]
    groups = np.asarray(manifest.groups or (), dtype=object)
    lines = []
    for title, who in (
        ("all frontal radiographs", np.ones(len(images), dtype=bool)),
        ("those of the commonest site alone", site == max(set(site), key=list(site).count)),
        (
            "against other pneumonias (no healthy chests)",
            np.array([label != "No Finding" for label in manifest.labels]),
        ),
    ):
        found_here = auroc_interval(scores[who], truth[who], groups[who])
        site_alone = auroc_interval(by_site[who], truth[who], groups[who])
        lines.append((title, int(truth[who].sum()), int((~truth[who]).sum()), found_here, site_alone))
        results[f"covid | {title}"] = [str(cell) for cell in lines[-1]]
    table(("images", "COVID-19", "others", "AUROC by description", "AUROC of the web site alone"), lines)


def auroc_interval(scores: Rows, truth: NDArray[np.bool_], groups: NDArray[Any], draws: int = 1000) -> str:
    """AUROC with an interval over patients."""
    found = ranking_score(truth, scores)
    if found.auroc is None:
        return "-"
    who = codes(groups.tolist())
    rng = np.random.default_rng(0)
    samples = []
    members = [np.flatnonzero(who == code) for code in range(who.max() + 1)]
    for _ in range(draws):
        own = np.concatenate([members[i] for i in rng.integers(0, len(members), len(members))])
        one = ranking_score(truth[own], scores[own])
        if one.auroc is not None:
            samples.append(one.auroc)
    low, high = np.quantile(samples, [0.025, 0.975])
    return f"{found.auroc:.3f} [{low:.3f}, {high:.3f}]"


def plot(points: dict[str, list[Any]], file: Path) -> None:
    """Draw the curves from 0 to 20 shots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(points), figsize=(5.2 * len(points), 3.6), squeeze=False)
    looks = {BOTH: ("#1f6feb", "-", "o"), SHOTS: ("#6e7781", "--", "s"), WORDS: ("#bf8700", ":", "^")}
    for axis, (title, found) in zip(axes[0], points.items(), strict=True):
        for name, (colour, line, mark) in looks.items():
            own = [(k, parts[name]) for k, parts in found if name in parts and k <= 10]
            places = [[k for k, _ in found].index(k) for k, _ in own]
            mean, low, high = (np.array([part[i] for _, part in own]) for i in range(3))
            axis.plot(places, mean, line, color=colour, marker=mark, label=name, linewidth=1.8, markersize=5)
            axis.fill_between(places, low, high, color=colour, alpha=0.12, linewidth=0)
        ticks = [k for k, _ in found if k <= 10]
        axis.set_xticks(range(len(ticks)), [str(k) for k in ticks])
        axis.set_xlabel("patients registered per class")
        axis.set_ylabel("accuracy")
        axis.set_title(title, fontsize=10)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
    axes[0][0].legend(frameon=False, loc="lower right")
    figure.tight_layout()
    figure.savefig(file, dpi=120)


def main() -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = {"z1": z1, "z2": z2, "curve": curve, "phantoms": phantoms, "covid": covid}
    parser.add_argument("--only", nargs="+", choices=list(parts), default=list(parts))
    parser.add_argument("--plot", type=Path, help="Where the curves are drawn, e.g. docs/words-and-shots.png.")
    options = parser.parse_args()
    for name in options.only:
        say(f"### {name}\n")
        parts[name]()
        file = RUNS / "results.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps({**before, **results}, indent=1))
    if options.plot is not None:
        mark = "curve points | "
        held = json.loads((RUNS / "results.json").read_text())
        plot({name.removeprefix(mark): found for name, found in held.items() if name.startswith(mark)}, options.plot)


if __name__ == "__main__":
    main()
