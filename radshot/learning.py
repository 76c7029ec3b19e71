"""`radshot train` and `radshot evaluate`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from episodes import EpisodeSampler, Report, compare, evaluate

from .console import DONE, JsonOption, Usage, command, err, exit_code, list_refused, note, out, write_json, write_text
from .inputs import Labelled, encode_readable, open_encoder, read_manifests

#: Encoders that are measured beside the one asked for: what no training at all would give.
BASELINES = ("pixels-32", "hog-64")

Manifests = Annotated[
    list[Path],
    typer.Argument(
        metavar="MANIFEST ...", help="CSV or Parquet tables with a column of image paths.", show_default=False
    ),
]
Label = Annotated[
    list[str],
    typer.Option(
        help="Label column; several labels of an image are joined by '|'. 'a+b' makes one label of two columns. "
        "With several manifests, give it once or once for each."
    ),
]
Group = Annotated[
    str | None,
    typer.Option(help="Patient column. By default the first of patient, patient_id, split_group; 'none' for none."),
]
Where = Annotated[
    str | None, typer.Option(metavar="EXPR", help="""Use only rows that meet a condition, e.g. "split = 'train'".""")
]
Image = Annotated[str, typer.Option(help="Column of image paths, relative to the manifest.")]


@command
def train_command(
    manifests: Manifests,
    out_folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the trained encoder.")],
    label: Label = ["label"],  # noqa: B006 - typer reads the default
    group: Group = None,
    where: Where = None,
    image: Image = "image",
    method: Annotated[str, typer.Option(help="How to train: prototypical.")] = "prototypical",
    backbone: Annotated[str, typer.Option(help="conv4, resnet18, resnet50 or densenet121.")] = "conv4",
    image_size: Annotated[int, typer.Option(help="Side in pixels to which images are brought.")] = 64,
    n_way: Annotated[int | None, typer.Option(help="Classes per episode; by default all, up to 20.")] = None,
    k_shot: Annotated[int, typer.Option(help="Support patients per class.")] = 5,
    n_query: Annotated[int, typer.Option(help="Query images per class, at most.")] = 5,
    episodes: Annotated[int, typer.Option(help="Training episodes in all.")] = 1000,
    episodes_per_step: Annotated[int, typer.Option(help="Episodes averaged before the weights move.")] = 1,
    learning_rate: Annotated[float, typer.Option(help="Peak of the one-cycle rate.")] = 2e-3,
    validation: Annotated[str, typer.Option(help="What is held out: auto, classes, patients or none.")] = "auto",
    patience: Annotated[int, typer.Option(help="Validations without a new best before stopping; 0 never.")] = 0,
    flip: Annotated[
        float, typer.Option(help="Probability of a left-right flip; only for classes that have no side.")
    ] = 0.0,
    init: Annotated[str | None, typer.Option(metavar="ENCODER", help="A trained encoder to start from.")] = None,
    seed: Annotated[int, typer.Option(help="Of everything random.")] = 0,
    json_file: JsonOption = None,
) -> int:
    """Train an encoder on episodes of a source domain.

    Whole classes (or, with few classes, patients) are held out, the best weights are chosen on episodes of them, and
    the encoder is written with its preprocessing, its fingerprint and the record of its training.
    """
    from fewshot import TrainingConfig, TrainingError, train
    from fewshot.augmentation import Augmentation

    began = time.monotonic()
    source = read_manifests(manifests, labels=label, group=group, where=where, image=image)
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
        raise Usage(str(error)) from None
    training = train(
        source.images, source.labels, groups=source.groups, config=config, out=out_folder, init=init, progress=True
    )
    list_refused(training.refused)
    summary = training.summary
    accuracy = "none" if training.best_accuracy is None else f"{training.best_accuracy:.3f}"
    out.print(
        f"{summary['method']} {summary['config']['backbone']}: {summary['images']:,} images of "
        f"{len(summary['classes'])} classes, best after {training.best_episode:,} episodes, "
        f"accuracy on held-out {summary['validation']['kind']} {accuracy}"
        f" ({summary['validation']['n_way']}-way {k_shot}-shot)"
        if training.best_accuracy is not None
        else f"{summary['images']:,} images of {len(summary['classes'])} classes, nothing held out"
    )
    out.print(f"encoder {training.encoder.fingerprint[:12]} written to {out_folder}")
    result = {
        **summary,
        "encoder": str(out_folder),
        "fingerprint": training.encoder.fingerprint,
        "history": list(training.history),
        "refused": [{"image": name, "reason": reason} for name, reason in training.refused],
        "seconds": round(time.monotonic() - began, 1),
    }
    write_json(json_file, result)
    return exit_code(1, len(training.refused))


@command
def evaluate_command(
    manifests: Manifests,
    encoder: Annotated[
        str, typer.Option(metavar="ENC", help="Folder of a trained encoder, hf:..., pixels-32, hog-64.")
    ],
    label: Label = ["label"],  # noqa: B006 - typer reads the default
    group: Group = None,
    where: Where = None,
    image: Image = "image",
    head: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Heads to compare; by default all.")] = None,
    n_way: Annotated[int, typer.Option(help="Classes per episode.")] = 5,
    k_shot: Annotated[int, typer.Option(help="Support patients per class.")] = 5,
    n_query: Annotated[int, typer.Option(help="Query images per class, at most.")] = 15,
    episodes: Annotated[int, typer.Option(help="Number of episodes.")] = 600,
    seed: Annotated[int, typer.Option(help="Of the episodes.")] = 0,
    baselines: Annotated[bool, typer.Option(help="Also measure raw pixels and HOG on the same episodes.")] = True,
    markdown: Annotated[Path | None, typer.Option(metavar="FILE", help="Also write the report as Markdown.")] = None,
    json_file: JsonOption = None,
) -> int:
    """Measure an encoder and its heads on few-shot episodes no patient of which is on both sides.

    Every head, and raw pixels and HOG beside them, answers the same episodes; differences to the first row come with
    an interval over patients.
    """
    from fewshot import HEADS, make_head

    names = head or list(HEADS)
    for name in names:
        try:
            make_head(name)
        except ValueError as error:
            raise Usage(str(error)) from None
    source = read_manifests(manifests, labels=label, group=group, where=where, image=image)
    chosen = open_encoder(encoder)
    EpisodeSampler(source.labels, n_way, k_shot, n_query, groups=source.groups, n_episodes=1)  # fail before the work
    vectors, kept, refused = encode_readable(chosen, source.images)
    list_refused(refused)
    sampler = EpisodeSampler(
        [source.labels[i] for i in kept],
        n_way,
        k_shot,
        n_query,
        groups=None if source.groups is None else [source.groups[i] for i in kept],
        n_episodes=episodes,
        seed=seed,
    )
    labels = [source.labels[i] for i in kept]
    provenance = {
        "encoder": chosen.name,
        "encoder_fingerprint": chosen.fingerprint,
        "manifests": [manifest.data_hash for manifest in source.manifests],
        "where": where,
    }
    reports = [
        evaluate(
            make_head(name, center=chosen.source_mean),
            vectors,
            labels,
            sampler,
            name=f"{chosen.name}, {name}",
            provenance=provenance,
        )
        for name in names
    ]
    if baselines:
        for spec in BASELINES:
            if spec == encoder:
                continue
            plain = open_encoder(spec)
            note(f"measuring {spec} beside it")
            rows = plain.encode([source.images[i] for i in kept])
            floor = {**provenance, "encoder": plain.name, "encoder_fingerprint": plain.fingerprint}
            reports.append(
                evaluate(make_head("prototypes"), rows, labels, sampler, name=f"{spec}, prototypes", provenance=floor)
            )
    _print_table(reports, source)
    differences = [compare(reports[0], other) for other in reports[1:]]
    result = {
        "reports": [report.to_dict() for report in reports],
        "differences": [
            {
                "first": reports[0].name,
                "second": other.name,
                "difference": d.difference,
                "interval": [d.low, d.high],
                "p_value": d.p_value,
            }
            for other, d in zip(reports[1:], differences, strict=True)
        ],
        "refused": [{"image": name, "reason": reason} for name, reason in refused],
    }
    write_json(json_file, result)
    if markdown is not None:
        write_text(markdown, "\n\n".join(report.to_markdown() for report in reports) + "\n")
    return exit_code(1, len(refused)) if refused else DONE


def _print_table(reports: list[Report], source: Labelled) -> None:
    first = reports[0]
    unit = "patients" if first.patients_known else "images"
    table = Table(
        title=f"{first.n_way}-way {first.k_shot}-shot, {first.episodes:,} episodes, {first.patients:,} {unit}",
        title_justify="left",
    )
    for column in ("", "accuracy", f"95 % over {unit}", "± over episodes", "first row minus this"):
        table.add_column(column, justify="left" if not column else "right")
    for report in reports:
        difference = ""
        if report is not first:
            paired = compare(first, report)
            difference = f"{paired.difference:+.3f} [{paired.low:+.3f}, {paired.high:+.3f}]"
        half = "" if report.episode_interval is None else f"{report.episode_interval:.3f}"
        table.add_row(
            report.name,
            f"{report.accuracy:.3f}",
            f"{report.interval[0]:.3f} to {report.interval[1]:.3f}",
            half,
            difference,
        )
    out.print(table)
    for warning in first.warnings:
        err.print(f"[yellow]note[/] {warning}")


def shown(result: dict[str, Any]) -> str:
    """A flat dictionary as aligned lines."""
    width = max(len(key) for key in result)
    return "\n".join(f"{key:<{width}}  {value}" for key, value in result.items())
