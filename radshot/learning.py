"""`radshot train` and `radshot evaluate`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import (
    JsonOption,
    Refused,
    Usage,
    check_target,
    command,
    exit_code,
    list_refused,
    note,
    one_line,
    out,
    print_table,
    refused_json,
    write_json,
    write_text,
)
from .embedding import ENCODER_HELP

if TYPE_CHECKING:
    from embeddings import Encoder
    from episodes import PairedDifference, Report
    from fewshot import Training

    from .inputs import Labelled

#: Encoders that are measured beside the one asked for: what no training at all would give.
BASELINES = ("pixels-32", "hog-64")
#: The head the baselines are measured with.
BASELINE_HEAD = "prototypes"

Manifests = Annotated[
    list[Path],
    typer.Argument(metavar="MANIFEST", help="CSV or Parquet tables with a column of image paths.", show_default=False),
]
Label = Annotated[
    list[str],
    typer.Option(
        metavar="COLUMN",
        help="Label column. In a cell, '|' stands between several labels; 'a+b' joins two columns into one label. "
        "With several manifests, give it once, or once for each.",
    ),
]
Group = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        help="Patient column; by default the first of patient, patient_id, split_group; 'none' for none.",
    ),
]
Where = Annotated[str | None, typer.Option(metavar="EXPR", help="Use only rows that meet a condition.")]
Image = Annotated[str, typer.Option(metavar="COLUMN", help="Column of image paths, relative to the manifest.")]


@command
def train_command(
    manifests: Manifests,
    out_folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the trained encoder.")],
    label: Label = ["label"],  # noqa: B006 - typer reads the default
    group: Group = None,
    where: Where = None,
    image: Image = "image",
    method: Annotated[str, typer.Option(metavar="NAME", help="How to train: prototypical.")] = "prototypical",
    backbone: Annotated[str, typer.Option(metavar="NAME", help="conv4, resnet18, resnet50 or densenet121.")] = "conv4",
    image_size: Annotated[int, typer.Option(metavar="N", help="Side in pixels to which images are brought.")] = 64,
    n_way: Annotated[
        int | None, typer.Option(metavar="N", help="Classes per episode; by default all, up to 20.")
    ] = None,
    k_shot: Annotated[int, typer.Option(metavar="N", help="Support patients per class.")] = 5,
    n_query: Annotated[int, typer.Option(metavar="N", help="Query images per class, at most.")] = 5,
    episodes: Annotated[int, typer.Option(metavar="N", help="Training episodes in all.")] = 1000,
    episodes_per_step: Annotated[int, typer.Option(metavar="N", help="Episodes averaged before the weights move.")] = 1,
    learning_rate: Annotated[float, typer.Option(metavar="X", help="Peak of the one-cycle rate.")] = 2e-3,
    validation: Annotated[
        str, typer.Option(metavar="KIND", help="What is held out: auto, classes, patients or none.")
    ] = "auto",
    patience: Annotated[
        int, typer.Option(metavar="N", help="Validations without a new best before stopping; 0 never stops.")
    ] = 0,
    flip: Annotated[
        float, typer.Option(metavar="P", help="Probability of a left-right flip; only for classes without a side.")
    ] = 0.0,
    init: Annotated[str | None, typer.Option(metavar="ENC", help="A trained encoder to start from.")] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of everything random.")] = 0,
    json_file: JsonOption = None,
) -> int:
    """Train an encoder on episodes of a source domain.

    Whole classes (or, with few classes, patients) are held out, the best
    weights are chosen on episodes of them, and the encoder is written with its
    preprocessing, its fingerprint and the record of its training.

    \b
    Examples
      radshot train train.csv --label finding --group patient --out enc
      radshot train a.csv b.csv --label finding --label region+modality \\
          --where "split = 'train'" --episodes 4000 --out enc
    """
    from fewshot import Augmentation, TrainingConfig, TrainingError

    from .inputs import read_manifests

    began = time.monotonic()
    try:
        config = TrainingConfig(
            method=method,
            backbone=backbone,
            image_size=image_size,
            n_way=n_way,
            k_shot=k_shot,
            n_query=n_query,
            episodes=episodes,
            episodes_per_step=episodes_per_step,
            learning_rate=learning_rate,
            validation=validation,
            patience=patience,
            augmentation=Augmentation(horizontal_flip=flip),
            seed=seed,
        )
    except TrainingError as error:
        raise Usage(_option_names(str(error))) from None
    except ValueError as error:
        raise Usage(f"--flip: {error}") from None
    if out_folder.exists() and not out_folder.is_dir():
        raise Refused(f"An encoder is a folder, and '{out_folder}' is a file: give another --out.")
    if out_folder.exists() and any(out_folder.iterdir()):
        raise Refused(f"An encoder needs a new or empty folder, and '{out_folder}' is not: give another --out.")
    source = read_manifests(manifests, labels=label, group=group, where=where, image=image)

    from embeddings import build_backbone
    from fewshot import train

    if init is not None:
        note(f"backbone, image size and preprocessing are those of {init}")
    else:
        build_backbone(backbone)  # a mistyped name is found before the images are read
    is_new = not out_folder.exists()
    try:
        training = train(
            source.images,
            source.labels,
            groups=source.groups,
            config=config,
            out=out_folder,
            init=init,
            progress=sys.stderr.isatty(),
        )
    except BaseException:
        if is_new:  # training makes the folder first, to be sure of it; without an encoder it goes again
            with suppress(OSError):
                out_folder.rmdir()
        raise
    list_refused(training.refused)
    _print_training(training, k_shot)
    out.print(f"encoder {training.encoder.fingerprint[:12]} written to {out_folder}")
    result = {
        **training.summary,
        "encoder": str(out_folder),
        "fingerprint": training.encoder.fingerprint,
        "history": list(training.history),
        "refused": refused_json(training.refused),
        "seconds": round(time.monotonic() - began, 1),
    }
    write_json(json_file, result)
    return exit_code(1, len(training.refused))


def _option_names(sentence: str) -> str:
    """An option of the library as the command line spells it: `n_way` is `--n-way`."""
    name, space, rest = sentence.partition(" ")
    return f"--{name.replace('_', '-')}{space}{rest}" if name.islower() else sentence


def _print_training(training: Training, k_shot: int) -> None:
    summary = training.summary
    done = f"{summary['images']:,} images of {len(summary['classes'])} classes"
    held_out = summary["validation"]
    if summary["left_out"]:
        few = ", ".join(f"{one_line(name)} ({count})" for name, count in summary["left_out"].items())
        note(f"left out, with patients too few for {k_shot} shots and a query: {few}")
    if training.best_accuracy is None:
        out.print(f"{training.encoder.name}: {done}, nothing held out")
        return
    out.print(
        f"{training.encoder.name}: {done}, best after {training.best_episode:,} episodes: accuracy on held-out "
        f"{held_out['kind']} {training.best_accuracy:.3f} ({held_out['n_way']}-way {k_shot}-shot)"
    )


@command
def evaluate_command(
    manifests: Manifests,
    encoder: Annotated[str, typer.Option(metavar="ENC", help=ENCODER_HELP)],
    label: Label = ["label"],  # noqa: B006 - typer reads the default
    group: Group = None,
    where: Where = None,
    image: Image = "image",
    head: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A head to measure; repeat it. By default all.")
    ] = None,
    n_way: Annotated[int, typer.Option(metavar="N", min=2, help="Classes per episode.")] = 5,
    k_shot: Annotated[int, typer.Option(metavar="N", min=1, help="Support patients per class.")] = 5,
    n_query: Annotated[int, typer.Option(metavar="N", min=1, help="Query images per class, at most.")] = 15,
    episodes: Annotated[int, typer.Option(metavar="N", min=1, help="Number of episodes.")] = 600,
    seed: Annotated[int, typer.Option(metavar="N", min=0, help="Of the episodes.")] = 0,
    baselines: Annotated[bool, typer.Option(help="Also measure raw pixels and HOG on the same episodes.")] = True,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the report as Markdown.")] = None,
    json_file: JsonOption = None,
) -> int:
    """Measure an encoder and its heads on few-shot episodes.

    No patient is on both sides of an episode. Every head, and raw pixels and
    HOG beside them, answers the same episodes; differences to the first row
    come with an interval over patients.

    \b
    Example
      radshot evaluate test.csv --encoder enc --label finding --n-way 3 \\
          --k-shot 5 --markdown report.md
    """
    from episodes import EpisodeSampler, compare
    from fewshot import heads_for, make_head

    from .inputs import check_heads, encode_readable, open_encoder, read_manifests

    if markdown is not None:
        check_target(markdown, "--markdown")
    check_heads(head or ())
    source = read_manifests(manifests, labels=label, group=group, where=where, image=image)
    chosen = open_encoder(encoder)
    names = head or heads_for(chosen.similarity)
    try:
        for name in names:
            make_head(name, similarity=chosen.similarity)
    except ValueError as error:
        raise Refused(str(error)) from None
    EpisodeSampler(source.labels, n_way, k_shot, n_query, groups=source.groups, n_episodes=1)  # fail before the work
    vectors, kept, refused = encode_readable(chosen, source.images)
    list_refused(refused)
    if not kept:
        raise Refused(f"None of the {len(source.images):,} images could be read.")
    labels = [source.labels[i] for i in kept]
    groups = None if source.groups is None else [source.groups[i] for i in kept]
    sampler = EpisodeSampler(labels, n_way, k_shot, n_query, groups=groups, n_episodes=episodes, seed=seed)
    reports = [_measure(chosen, name, vectors, labels, sampler, source, where) for name in names]
    for spec in BASELINES if baselines else ():
        plain = open_encoder(spec)
        if plain.fingerprint == chosen.fingerprint:
            continue
        note(f"measuring {spec} beside it")
        rows, readable, _ = encode_readable(plain, [source.images[i] for i in kept])
        if len(readable) < len(kept):
            note(f"{spec} is left out: it needs the images themselves, and some of them cannot be read.")
            continue
        reports.append(_measure(plain, BASELINE_HEAD, rows, labels, sampler, source, where))
    differences = [compare(reports[0], other) for other in reports[1:]]
    _print_reports(reports, differences)
    result = {
        "reports": [report.to_dict() for report in reports],
        "differences": [
            {
                "first": reports[0].name,
                "second": other.name,
                "difference": paired.difference,
                "interval": [paired.low, paired.high],
                "p_value": paired.p_value,
            }
            for other, paired in zip(reports[1:], differences, strict=True)
        ],
        "refused": refused_json(refused),
    }
    write_json(json_file, result)
    if markdown is not None:
        write_text(markdown, "\n\n".join(report.to_markdown() for report in reports) + "\n")
    return exit_code(len(kept), len(refused))


def _measure(
    encoder: Encoder, head: str, vectors: Any, labels: list[Any], sampler: Any, source: Labelled, where: str | None
) -> Report:
    """One head on one encoder's vectors, with what the figure was computed from."""
    from episodes import evaluate
    from fewshot import make_head

    return evaluate(
        make_head(head, center=encoder.source_mean, similarity=encoder.similarity),
        vectors,
        labels,
        sampler,
        name=f"{encoder.name}, {head}",
        provenance={
            "encoder": encoder.name,
            "encoder_fingerprint": encoder.fingerprint,
            "manifests": [manifest.data_hash for manifest in source.manifests],
            "where": where,
        },
    )


def _print_reports(reports: Sequence[Report], differences: Sequence[PairedDifference]) -> None:
    first = reports[0]
    unit = "patients" if first.patients_known else "images"
    out.print(f"{first.n_way}-way {first.k_shot}-shot, {first.episodes:,} episodes, {first.patients:,} query {unit}")
    beside = [""] + [f"{paired.difference:+.3f} [{paired.low:+.3f}, {paired.high:+.3f}]" for paired in differences]
    rows = [
        (
            f"{report.accuracy:.3f}",
            f"[{report.interval[0]:.3f}, {report.interval[1]:.3f}]",
            "" if report.episode_interval is None else f"{report.episode_interval:.3f}",
            difference,
            report.name,
        )
        for report, difference in zip(reports, beside, strict=True)
    ]
    header = ("accuracy", f"95% over {unit}", "± episodes", "first minus this", "encoder, head")
    print_table(header, rows, numbers=header[:4])
    for warning in first.warnings:
        note(warning)
