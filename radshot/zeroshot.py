"""`radshot zeroshot`: align an encoder with words, ask by words, measure it, let words stand in a comparison set."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    DONE,
    JsonOption,
    Refused,
    Usage,
    check_target,
    command,
    exit_code,
    list_refused,
    note,
    out,
    print_table,
    refused_json,
    write_json,
)
from .embedding import ENCODER_HELP
from .manifest_options import Group, Image, Manifests, Where
from .protocols import protocol_command
from .sets import SetFolder
from .words import DESCRIBE_HELP, Describe, Model

if TYPE_CHECKING:
    from zeroshot import ZeroShotModel

    from .words import WithTexts

Texts = Annotated[
    list[str],
    typer.Option("--text", metavar="COLUMN", help="Text column; repeat it to join several.", show_default=False),
]
zeroshot_app = typer.Typer(
    help="Recognise classes from words alone, and from words and shots together.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)


@command
def fit_command(
    manifests: Manifests,
    encoder: Annotated[str, typer.Option(metavar="ENC", help=ENCODER_HELP)],
    text: Texts,
    out_dir: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the model.", show_default=False)],
    label: Annotated[
        str | None,
        typer.Option(metavar="COLUMN", help="Label column: with --describe, learn how far seen classes are favoured."),
    ] = None,
    describe: Annotated[str | None, typer.Option(metavar="FILE|NAME", help=DESCRIBE_HELP)] = None,
    alignment: Annotated[
        str, typer.Option(metavar="NAME", help="ridge, ridge-to-text, cca, eszsl, ale or contrastive.")
    ] = "cca",
    text_encoder: Annotated[
        str,
        typer.Option(metavar="NAME", help="tfidf, or bert (trained on the texts), hf:<id or folder>, or a folder."),
    ] = "tfidf",
    group: Group = None,
    where: Where = None,
    image: Image = "image",
    seed: Annotated[int, typer.Option(metavar="N", min=0)] = 0,
    json_file: JsonOption = None,
) -> int:
    """Align an image encoder with the words that go with its images.

    The texts are reports or captions, one per image. With --label and
    --describe the classes of the images are known: some of them in turn play
    classes never seen, to learn how much seen classes must be held back and
    how many images words are worth.

    \b
    Example
      radshot zeroshot fit archive.csv --text findings --text impression \\
          --encoder enc --out words
    """
    from zeroshot import ZeroShotModel, alignment_names, mark_all

    from .inputs import lasting_spec, open_encoder
    from .words import descriptions_of, read_with_texts, text_encoder_of

    if alignment not in alignment_names():
        raise Usage(f"--alignment is one of {', '.join(alignment_names())}; got {alignment!r}.")
    if (label is None) != (describe is None):
        raise Usage("--label and --describe go together: which classes there are, and what they look like.")
    descriptions = None if describe is None else descriptions_of(describe)
    chosen = open_encoder(encoder)
    data = read_with_texts(manifests, chosen, text=text, label=label, group=group, where=where, image=image)
    denials = text_encoder == "tfidf"  # word counts cannot tell "no effusion" from "effusion" by themselves
    words = text_encoder_of(text_encoder, mark_all(data.texts) if denials else data.texts, seed=seed)
    model = ZeroShotModel.fit(
        data.vectors, data.texts, encoder=chosen, text_encoder=words, alignment=alignment, denials=denials
    )
    model.facts["encoder_spec"] = lasting_spec(encoder)
    if descriptions is not None:
        model = _with_classes(model, data, descriptions, alignment, seed)
    model.save(out_dir)
    told = model.facts["images"]
    out.print(
        f"{told:,} images aligned with their texts by {alignment} ({words.name}, {words.dim} numbers); "
        f"prior_shots {model.prior_shots:.2f}"
        + ("" if model.gamma is None else f", gamma {model.gamma:.3f}, {len(model.seen)} seen classes")
        + f"; in {out_dir}"
    )
    if model.facts["images_without_text"]:
        note(f"{model.facts['images_without_text']:,} images have no text, or none the encoder knows a word of.")
    write_json(
        json_file,
        {
            "model": str(out_dir),
            "images": told,
            "images_without_text": model.facts["images_without_text"],
            "alignment": alignment,
            "text_encoder": words.name,
            "prior_shots": model.prior_shots,
            "gamma": model.gamma,
            "seen": list(model.seen),
            "refused": refused_json(data.refused),
        },
    )
    return exit_code(len(data.images), len(data.refused))


def _with_classes(model: ZeroShotModel, data: WithTexts, descriptions: Any, alignment: str, seed: int) -> ZeroShotModel:
    """Learn gamma and prior_shots from classes of which each plays the unseen in turn."""
    from fewshot import ClassPrior, learn_prior_shots
    from zeroshot import ZeroShotError, choose_gamma, make_alignment
    from zeroshot.disjoint import class_disjoint_priors

    labels = [label if isinstance(label, str) else "" for label in data.labels or ()]
    kept = [i for i, label in enumerate(labels) if label in descriptions]
    seen = sorted({labels[i] for i in kept})
    without = sorted({label for label in labels if label and label not in descriptions})
    if without:
        note(f"{len(without)} classes are not described and are not counted as seen: {', '.join(without[:5])}.")
    if not kept:
        raise Refused("None of the images has a label that is described: check --label and --describe.")
    space = model.space({name: descriptions[name] for name in seen})
    for remark in space.remarks:
        note(remark)
    rows = data.vectors[kept]
    texts = model.encode_texts([data.texts[i] for i in kept])
    named = [labels[i] for i in kept]
    groups = None if data.groups is None else [data.groups[i] for i in kept]
    gamma, worth = None, None
    try:
        gamma = choose_gamma(
            rows, named, space, lambda: make_alignment(alignment), texts=texts, groups=groups, seed=seed
        )
    except ZeroShotError as error:
        note(f"gamma was not learnt: {error}")
    try:
        priors = class_disjoint_priors(rows, texts, named, space)
        worth = learn_prior_shots(
            rows,
            named,
            {name: ClassPrior(*prior) for name, prior in priors.items()},
            center=rows.mean(axis=0),
            groups=groups,
            seed=seed,
        )
    except ValueError as error:
        note(f"prior_shots was not learnt: {error}")
    if worth is None:
        return model.with_settings(gamma=gamma, seen=seen)
    model.facts["worth"] = dataclasses.asdict(worth)
    return model.with_settings(gamma=gamma, prior_shots=worth.shots, seen=seen)


@command
def classify_command(
    folder: Model,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Images to ask about.", show_default=False)],
    describe: Describe,
    least_margin: Annotated[
        float, typer.Option(metavar="M", min=0, help="Answers that lead by less are 'uncertain'.")
    ] = 0.0,
    several: Annotated[
        float | None,
        typer.Option(
            metavar="SD", help="Several classes per image: those that stand out by this many standard deviations."
        ),
    ] = None,
    encoder: Annotated[str | None, typer.Option(metavar="ENC", help="The image encoder, if it has moved.")] = None,
    json_file: JsonOption = None,
) -> int:
    """Ask which described class an image is of; no image of any class is needed.

    The evidence are the sentences the image is most similar to. A similarity
    to words is no probability.

    \b
    Example
      radshot zeroshot classify words new.png --describe chestxray14
    """
    from zeroshot import ZeroShotClassifier

    from .inputs import encode_readable
    from .words import descriptions_of, open_model

    descriptions = descriptions_of(describe)
    model, chosen = open_model(folder, encoder)
    classifier = ZeroShotClassifier(model, least_margin=least_margin).describe(descriptions)
    for remark in classifier.remarks_:
        note(remark)
    vectors, kept, refused = encode_readable(chosen, images)
    results: list[dict[str, Any]] = []
    rows = []
    decisions = classifier.decide(vectors) if kept else []
    presence = classifier.presence(vectors) if several is not None and kept else None
    for place, (i, decision) in enumerate(zip(kept, decisions, strict=True)):
        entry: dict[str, Any] = {
            "image": str(images[i]),
            "label": decision.label,
            "score": decision.score,
            "margin": decision.margin,
            "runner_up": decision.runner_up,
            "reason": decision.reason,
            "evidence": [{"phrase": n.id, "label": n.label, "similarity": n.similarity} for n in decision.evidence],
            "counter_evidence": [
                {"phrase": n.id, "label": n.label, "similarity": n.similarity} for n in decision.counter_evidence
            ],
        }
        label = decision.label or "uncertain"
        if presence is not None:
            scores = dict(zip(map(str, classifier.classes_), presence[place].tolist(), strict=True))
            entry["presence"] = scores
            entry["present"] = sorted(
                (name for name, score in scores.items() if several is not None and score >= several),
                key=lambda n: -scores[n],
            )
            label = ", ".join(entry["present"]) or "none"
        results.append(entry)
        nearest = decision.evidence[0] if decision.evidence else None
        rows.append(
            (
                label,
                "" if decision.score is None else f"{decision.score:.3f}",
                "" if decision.margin is None else f"{decision.margin:.3f}",
                decision.runner_up or "",
                images[i],
                "" if nearest is None else f"{nearest.id} ({nearest.similarity:.3f})",
            )
        )
    if rows:
        print_table(
            ("label", "score", "margin", "runner-up", "image", "closest sentence"), rows, numbers=("score", "margin")
        )
    list_refused(refused)
    write_json(json_file, [*results, *({"image": name, "label": None, "error": why} for name, why in refused)])
    return exit_code(len(kept), len(refused))


@command
def evaluate_command(
    folder: Model,
    manifests: Manifests,
    describe: Describe,
    label: Annotated[str, typer.Option(metavar="COLUMN", help="Label column.")] = "label",
    group: Group = None,
    where: Where = None,
    image: Image = "image",
    encoder: Annotated[str | None, typer.Option(metavar="ENC", help="The image encoder, if it has moved.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", min=0)] = 0,
    json_file: JsonOption = None,
) -> int:
    """Measure zero-shot answers on labelled images.

    Class-balanced accuracy with an interval over patients; where the model
    knows which classes it has seen and others are described too, accuracy on
    seen (S) and unseen (U) images, their harmonic mean (H) and the area under
    the seen-unseen curve (AUSUC). Images with several labels get AUROC and
    average precision per class and F1 at k.
    """
    from zeroshot import ZeroShotClassifier

    from .words import descriptions_of, open_model, read_with_texts

    descriptions = descriptions_of(describe)
    model, chosen = open_model(folder, encoder)
    classifier = ZeroShotClassifier(model).describe(descriptions)
    for remark in classifier.remarks_:
        note(remark)
    data = read_with_texts(manifests, chosen, text=(), label=label, group=group, where=where, image=image)
    several = any(isinstance(entry, tuple) and len(entry) > 1 for entry in data.labels or ())
    result = _measure_several(classifier, data) if several else _measure_single(classifier, model, data, seed)
    write_json(json_file, {**result, "refused": refused_json(data.refused)})
    return exit_code(len(data.images), len(data.refused))


def _measure_single(classifier: Any, model: ZeroShotModel, data: WithTexts, seed: int) -> dict[str, Any]:
    import numpy as np

    from episodes import patient_bootstrap
    from zeroshot import evaluate_generalized

    names = [str(name) for name in classifier.classes_]
    labels = [entry if isinstance(entry, str) else (entry or ("",))[0] for entry in data.labels or ()]
    kept = [i for i, name in enumerate(labels) if name in names]
    others = sorted({name for name in labels if name and name not in names})
    if others:
        note(f"{len(labels) - len(kept):,} images are of classes that are not described: {', '.join(others[:5])}.")
    if not kept:
        raise Refused("None of the images is of a described class: check --label and --describe.")
    scores = classifier.scores(data.vectors[kept])
    truth = [labels[i] for i in kept]
    codes = np.array([names.index(name) for name in truth])
    owners = list(range(len(kept))) if data.groups is None else [data.groups[i] for i in kept]
    patients = np.unique(np.asarray(owners, dtype=object).astype(str), return_inverse=True)[1]
    found = patient_bootstrap(scores.argmax(axis=1) == codes, codes, patients, seed=seed)
    out.print(
        f"{len(found.classes)} classes, {len(kept):,} images, {len(set(owners)):,} patients: balanced accuracy "
        f"{found.estimate:.3f} [{found.low:.3f}, {found.high:.3f}] (chance {1 / len(names):.2f})"
    )
    print_table(
        ("accuracy", "95%", "images", "class"),
        [
            (f"{estimate:.3f}", f"[{low:.3f}, {high:.3f}]", f"{count}", names[code])
            for code, estimate, low, high, count in zip(
                found.classes, found.class_estimate, found.class_low, found.class_high, found.queries, strict=True
            )
        ],
        numbers=("accuracy", "95%", "images"),
    )
    absent = [name for code, name in enumerate(names) if code not in found.classes]
    if absent:
        note(f"No image of {', '.join(absent)}: these compete and cannot be scored.")
    result: dict[str, Any] = {
        "balanced_accuracy": found.estimate,
        "interval": [found.low, found.high],
        "classes": dict(zip((names[code] for code in found.classes), found.class_estimate.tolist(), strict=True)),
        "without_images": absent,
    }
    seen = set(model.seen) & set(names)
    present = {names[code] for code in found.classes}
    if seen & present and present - seen:
        plain = model.shared.scores(data.vectors[kept], classifier.space_.vectors)
        report = evaluate_generalized(plain, truth, names, seen, gamma=model.gamma or 0.0, groups=owners, seed=seed)
        out.print(str(report))
        result["generalized"] = {
            "gamma": report.gamma,
            **{
                key: [part.estimate, part.low, part.high]
                for key, part in (
                    ("S", report.seen),
                    ("U", report.unseen),
                    ("H", report.harmonic),
                    ("AUSUC", report.area),
                )
            },
        }
    return result


def _measure_several(classifier: Any, data: WithTexts) -> dict[str, Any]:
    from episodes.label_states import label_states
    from zeroshot import multilabel_scores

    names = [str(name) for name in classifier.classes_]
    _, states = label_states(data.labels or [], names)
    scores = (
        classifier.presence(data.vectors) if classifier.space_.absent is not None else classifier.scores(data.vectors)
    )
    found = multilabel_scores(scores, states, names, ks=[k for k in (1, 2, 3) if k <= len(names)])
    print_table(
        ("AUROC", "AP", "class"),
        [(f"{found.auroc[name]:.3f}", f"{found.average_precision[name]:.3f}", name) for name in found.auroc],
        numbers=("AUROC", "AP"),
    )
    if found.mean_auroc is not None and found.mean_average_precision is not None:
        out.print(
            f"mean AUROC {found.mean_auroc:.3f}, mAP {found.mean_average_precision:.3f}, "
            + ", ".join(f"F1@{k} {value:.3f}" for k, value in found.f1_at.items())
        )
    for title, group in (("No image of", found.without_positives), ("Every image has", found.without_negatives)):
        if group:
            note(f"{title} {', '.join(group)}: counted, not scored.")
    return {
        "auroc": found.auroc,
        "average_precision": found.average_precision,
        "mean_auroc": found.mean_auroc,
        "mean_average_precision": found.mean_average_precision,
        "f1_at": {str(k): value for k, value in found.f1_at.items()},
        "without_positives": list(found.without_positives),
    }


@command
def describe_command(
    folder: SetFolder,
    model_folder: Annotated[
        Path, typer.Option("--words", metavar="MODEL", help="Folder made by radshot zeroshot fit.", show_default=False)
    ],
    describe: Describe,
    encoder: Annotated[str | None, typer.Option(metavar="ENC", help="The image encoder, if it has moved.")] = None,
    json_file: JsonOption = None,
) -> int:
    """Let words speak for classes of a comparison set, beside its images.

    A class may have words, images or both: without images it is what its
    words say, and every patient registered moves it. radshot classify asks
    both together; radshot deploy keeps them together.

    \b
    Example
      radshot zeroshot describe cases --words words --describe findings.toml
      radshot classify cases new.png
    """
    from fewshot import ComparisonSet

    from .words import as_words, descriptions_of, open_model

    descriptions = descriptions_of(describe)
    model, chosen = open_model(model_folder, encoder)
    words = as_words(model, descriptions)
    with ComparisonSet.open(folder, encoder=chosen) as cases:
        cases.describe(words)
        shots = cases.shots
    rows = [(f"{len(words.priors[name].phrases)}", f"{shots.get(name, 0)}", name) for name in sorted(words.priors)]
    print_table(("sentences", "patients", "class"), rows, numbers=("sentences", "patients"))
    write_json(
        json_file,
        {
            "set": str(folder),
            "prior_shots": model.prior_shots,
            "classes": {
                name: {"phrases": list(prior.phrases), "shots": shots.get(name, 0)}
                for name, prior in words.priors.items()
            },
        },
    )
    return DONE


@command
def reports_command(
    manifests: Manifests,
    text: Texts,
    table: Annotated[Path, typer.Option("--out", metavar="FILE", help="CSV to write: one row per image.")],
    finding: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Findings wanted; repeat it. By default all mentioned.")
    ] = None,
    lexicon: Annotated[
        Path | None, typer.Option(metavar="FILE", help="A TOML file of further findings and synonyms.")
    ] = None,
    uncertain: Annotated[str, typer.Option(metavar="HOW", help="What doubt counts as: unknown, present or absent.")] = (
        "unknown"
    ),
    group: Group = None,
    where: Where = None,
    image: Image = "image",
    json_file: JsonOption = None,
) -> int:
    """Read the findings of reports: weak labels for an archive.

    The table has a column per finding of 1 (present), 0 (denied) and nothing
    (not mentioned, which is not absent), and a label column of what is
    present; radshot train and evaluate take it as a manifest.
    """
    from zeroshot import Lexicon, report_labels

    from .words import read_with_texts

    if uncertain not in ("unknown", "present", "absent"):
        raise Usage(f"--uncertain is unknown, present or absent; got {uncertain!r}.")
    check_target(table, "--out")
    words = Lexicon.builtin() if lexicon is None else Lexicon.read(lexicon, extend=Lexicon.builtin())
    data = read_with_texts(manifests, None, text=text, label=None, group=group, where=where, image=image)
    found = report_labels(data.texts, finding or None, uncertain=uncertain, lexicon=words)
    frame = found.frame(images=[str(path.absolute()) for path in data.images], groups=data.groups)
    named = [[name for name, value in zip(found.findings, row, strict=True) if value == 1] for row in found.table]
    frame.insert(1, "label", ["|".join(names) for names in named])
    frame.to_csv(table, index=False)
    problems = [(str(data.images[i]), reason) for i, reason in found.problems]
    list_refused(problems)
    present, absent = (int((found.table == value).sum()) for value in (1, 0))
    out.print(
        f"{len(data.texts):,} reports, {len(found.findings)} findings: {present:,} present, {absent:,} denied; "
        f"in {table}"
    )
    write_json(
        json_file,
        {"table": str(table), "findings": list(found.findings), "present": present, "absent": absent,
         "refused": refused_json(problems)},
    )  # fmt: skip
    return exit_code(len(data.texts) - len(problems), len(problems))


for _name, _function in (
    ("fit", fit_command),
    ("classify", classify_command),
    ("evaluate", evaluate_command),
    ("describe", describe_command),
    ("reports", reports_command),
):
    zeroshot_app.command(_name)(_function)
zeroshot_app.command("protocol")(protocol_command)
