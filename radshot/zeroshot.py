"""`radshot zeroshot`: align an encoder with words, ask by words, measure it, let words stand in a comparison set."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    JsonOption,
    Refused,
    Usage,
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
from .words import DESCRIBE_HELP, Describe, Model, Texts
from .zeroshot_evaluation import evaluate_command
from .zeroshot_words import describe_command, reports_command

if TYPE_CHECKING:
    from zeroshot import ZeroShotModel

    from .words import WithTexts

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

    given = [(label,) if isinstance(label, str) else tuple(label or ()) for label in data.labels or ()]
    labels = [names[0] if len(names) == 1 else "" for names in given]
    if several := sum(len(names) > 1 for names in given):
        note(f"{several:,} images have several labels and take no part in learning gamma and prior_shots.")
    kept = [i for i, label in enumerate(labels) if label in descriptions]
    seen = sorted({labels[i] for i in kept})
    without = sorted({label for label in labels if label and label not in descriptions})
    if without:
        note(f"{len(without)} classes are not described and are not counted as seen: {', '.join(without[:5])}.")
    if not kept:
        raise Refused("None of the images has a label that is described: check --label and --describe.")
    space = model.space({name: descriptions[name] for name in seen}, leave_out=True)
    for remark in space.remarks:
        note(remark)
    kept = [i for i in kept if labels[i] in space.classes]
    texts = model.encode_texts([data.texts[i] for i in kept])
    rows, seen = data.vectors[kept], list(space.classes)
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
            center=model.to_image.image_mean,
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
    from .words import descriptions_of, is_built_in, open_model

    descriptions = descriptions_of(describe)
    model, chosen = open_model(folder, encoder)
    classifier = ZeroShotClassifier(model, least_margin=least_margin).describe(
        descriptions, leave_out=is_built_in(describe)
    )
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


for _name, _function in (
    ("fit", fit_command),
    ("classify", classify_command),
    ("evaluate", evaluate_command),
    ("describe", describe_command),
    ("reports", reports_command),
):
    zeroshot_app.command(_name)(_function)
zeroshot_app.command("protocol")(protocol_command)
