"""`radshot train`: an encoder from a source domain, by any of the methods, in one stage or two."""

from __future__ import annotations

import json
import os
import time
from contextlib import suppress
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
    one_line,
    out,
    refused_json,
    write_json,
    write_text,
)
from .manifest_options import Group, Image, Label, Manifests, Where

if TYPE_CHECKING:
    from fewshot import Training

#: The page of training curves in the encoder's folder.
PAGE_FILE = "training.html"


@command
def train_command(
    manifests: Manifests,
    out_folder: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the trained encoder.")],
    label: Label = ["label"],  # noqa: B006 - typer reads the default
    group: Group = None,
    where: Where = None,
    image: Image = "image",
    method: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="prototypical, siamese, matching, relation, multilabel, supervised or simclr (which needs no labels).",
        ),
    ] = "siamese",
    loss: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Of siamese: multi-similarity (where none is given), supcon, contrastive, triplet, proxy-anchor or "
            "logistic.",
        ),
    ] = None,
    pretraining: Annotated[
        str,
        typer.Option(metavar="NAME", help="A first stage on the same images: supervised, simclr, siamese or none."),
    ] = "none",
    pretraining_episodes: Annotated[
        int, typer.Option(metavar="N", help="Length of that stage, in batches or episodes.")
    ] = 1000,
    pretraining_rate: Annotated[
        float | None, typer.Option(metavar="X", help="Its peak rate; by default that of the training.")
    ] = None,
    backbone: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="conv4, resnet12, resnet18, resnet50, densenet121, vit, monai:CLASS, or hf:ID (transformers).",
        ),
    ] = "conv4",
    backbone_option: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of the backbone, as in width=32 or pooling=flatten; repeat it."),
    ] = None,
    image_size: Annotated[int, typer.Option(metavar="N", help="Side in pixels to which images are brought.")] = 64,
    n_way: Annotated[
        int | None, typer.Option(metavar="N", help="Classes per episode; by default all, up to 20.")
    ] = None,
    k_shot: Annotated[int, typer.Option(metavar="N", help="Support patients per class.")] = 5,
    n_query: Annotated[int, typer.Option(metavar="N", help="Query images per class, at most.")] = 5,
    episodes: Annotated[int, typer.Option(metavar="N", help="Training episodes (or batches) in all.")] = 1000,
    episodes_per_step: Annotated[int, typer.Option(metavar="N", help="Episodes averaged before the weights move.")] = 1,
    accumulate: Annotated[
        int, typer.Option(metavar="N", help="Steps whose gradients are averaged; as the above, in less memory.")
    ] = 1,
    batch_size: Annotated[int, typer.Option(metavar="N", help="Images per batch of supervised and simclr.")] = 64,
    metric: Annotated[str, typer.Option(metavar="NAME", help="euclidean or cosine.")] = "euclidean",
    temperature: Annotated[
        float | None, typer.Option(metavar="X", help="Similarities are divided by it; long vectors need more.")
    ] = None,
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
    precision: Annotated[str, typer.Option(metavar="NAME", help="auto, bf16 or float32.")] = "auto",
    device: Annotated[str, typer.Option(metavar="NAME", help="auto, cpu or cuda.")] = "auto",
    init: Annotated[str | None, typer.Option(metavar="ENC", help="A trained encoder, or hf:ID, to start from.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the interrupted training in --out, with the same options.")
    ] = False,
    finish: Annotated[
        bool, typer.Option("--finish", help="End the interrupted training in --out with its best weights so far.")
    ] = False,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="Write event files for TensorBoard into --out.")
    ] = False,
    seed: Annotated[int, typer.Option(metavar="N", help="Of everything random.")] = 0,
    json_file: JsonOption = None,
) -> int:
    """Train an encoder on a source domain.

    Whole classes (or, with few classes, patients) are held out, the best
    weights are chosen on episodes of them, and the encoder is written with its
    preprocessing, its fingerprint and the record of its training
    (training.csv, training.html). An interrupted training goes on with
    --resume. On several devices: accelerate launch -m radshot train ...

    \b
    Examples
      radshot train train.csv --label finding --group patient --out enc
      radshot train train.csv --pretraining supervised --backbone resnet12 \\
          --out enc
      radshot train a.csv b.csv --label finding --label region+modality \\
          --where "split = 'train'" --episodes 4000 --out enc
    """
    from fewshot import Augmentation, TrainingConfig, TrainingError
    from fewshot.training_config import UNLABELLED, TrainingLocked
    from fewshot.training_state import STATE_FILE, is_trace

    from .inputs import read_manifests

    began = time.monotonic()
    try:
        config = TrainingConfig(
            method=method,
            loss=loss or TrainingConfig.loss,
            pretraining=None if pretraining == "none" else pretraining,
            pretraining_episodes=pretraining_episodes,
            pretraining_rate=pretraining_rate,
            backbone=backbone,
            backbone_config=_backbone_options(backbone_option or ()),
            metric=metric,
            temperature=temperature,
            image_size=image_size,
            n_way=n_way,
            k_shot=k_shot,
            n_query=n_query,
            episodes=episodes,
            episodes_per_step=episodes_per_step,
            accumulate=accumulate,
            batch_size=batch_size,
            learning_rate=learning_rate,
            validation=validation,
            patience=patience,
            augmentation=Augmentation(horizontal_flip=flip),
            precision=precision,
            seed=seed,
        )
    except TrainingError as error:
        raise Usage(_option_names(str(error))) from None
    except ValueError as error:
        raise Usage(f"--flip: {error}") from None
    first = os.environ.get("RANK", "0") == "0"  # of the processes `accelerate launch` started; it alone writes
    if loss is not None and "siamese" not in (method, pretraining):
        raise Usage(f"--loss is of the Siamese network: add --method siamese, or leave it out; the method is {method}.")
    if out_folder.exists() and not out_folder.is_dir():
        raise Refused(f"An encoder is a folder, and '{out_folder}' is a file: give another --out.")
    if first and not (resume or finish) and (out_folder / STATE_FILE).exists():
        raise Refused(
            f"'{out_folder}' holds an interrupted training: add --resume to go on with it, or --finish to "
            "take its best weights so far, or give another --out."
        )
    taken = out_folder.exists() and any(not is_trace(path) for path in out_folder.iterdir())
    if first and not (resume or finish) and taken:
        raise Refused(f"An encoder needs a new or empty folder, and '{out_folder}' is not: give another --out.")
    unlabelled = config.method in UNLABELLED and config.pretraining is None
    source = read_manifests(manifests, labels=None if unlabelled else label, group=group, where=where, image=image)

    if unlabelled:
        note("simclr looks at no labels: nothing is held out, and the last weights are kept")
    from fewshot import train
    from fewshot.starting import fresh_backbone

    if init is not None and backbone_option:
        raise Usage(
            "--backbone-option does not go with --init: the encoder that training starts from has its backbone."
        )
    if init is not None:
        note(f"backbone, image size and preprocessing will be those of {init}")
    elif not backbone.startswith("hf:"):  # whose weights need not be loaded twice
        fresh_backbone(config)  # a mistyped name is found before the images are read
    is_new = not out_folder.exists()
    try:
        training = train(
            source.images,
            None if unlabelled else source.labels,
            groups=source.groups,
            config=config,
            out=out_folder,
            init=init,
            device=device,
            progress=True,
            resume=resume,
            finish=finish,
            tensorboard=tensorboard,
        )
    except TrainingLocked:
        raise
    except BaseException as error:
        refused = isinstance(error, TrainingError) and (resume or finish)
        if first and (out_folder / STATE_FILE).exists() and not refused:
            note(f"what was trained so far is in {out_folder}: the same command with --resume goes on with it")
        elif first and not (resume or finish):
            _remove_traces(out_folder, is_new)
        raise
    if not first:
        return exit_code(1, len(training.refused))
    list_refused(training.refused)
    _print_training(training, k_shot, source.groups is not None)
    _write_page(training, out_folder)
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


def _backbone_options(given: list[str] | tuple[()]) -> dict[str, Any]:
    """KEY=VALUE pairs as options of a backbone: numbers, true, false, lists and objects as in JSON, else text."""
    options: dict[str, Any] = {}
    for pair in given:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise Usage(f"--backbone-option takes KEY=VALUE, as in width=32; got {pair!r}.")
        options[key] = value
        with suppress(ValueError):
            options[key] = json.loads(value)
    return options


def _option_names(sentence: str) -> str:
    """An option of the library as the command line spells it: `n_way` is `--n-way`."""
    name, space, rest = sentence.partition(" ")
    return f"--{name.replace('_', '-')}{space}{rest}" if name.islower() else sentence


def _remove_traces(folder: Path, is_new: bool) -> None:
    """Take the logs of a training that was refused out of its folder, which was empty or not there before."""
    from fewshot.training_log import LOG_FILE, TENSORBOARD_FOLDER

    events = folder / TENSORBOARD_FOLDER
    for path in (folder / LOG_FILE, *(events.glob("events.out.tfevents.*"))):
        with suppress(OSError):
            path.unlink()
    for place in (events, folder) if is_new else (events,):
        with suppress(OSError):
            place.rmdir()


def _write_page(training: Training, folder: Path) -> None:
    """The training curves as a page beside the weights."""
    from episodes import training_page

    title = f"Training of {training.encoder.name}"
    write_text(folder / PAGE_FILE, training_page(training.history, training.summary, title))


def _print_training(training: Training, k_shot: int, groups_known: bool) -> None:
    summary = training.summary
    done = f"{summary['images']:,} images of {len(summary['classes'])} classes"
    held_out = summary["validation"]
    if summary["left_out"]:
        few = ", ".join(f"{one_line(name)} ({count})" for name, count in summary["left_out"].items())
        note(f"left out, with patients too few for {k_shot} shots and a query: {few}")
    if training.best_accuracy is None:
        out.print(f"{training.encoder.name}: {done}, nothing held out")
        return
    kind = held_out["kind"] if groups_known or held_out["kind"] == "classes" else "images (patients unknown)"
    out.print(
        f"{training.encoder.name}: {done}, best after {training.best_episode:,} episodes: accuracy on held-out "
        f"{kind} {training.best_accuracy:.3f} ({held_out['n_way']}-way {k_shot}-shot)"
    )
    if summary["method"] == "multilabel":
        note("that is of episodes of one label per image; episodes.evaluate_multilabel gives the AUROC of each label")
    if training.encoder.similarity is not None:
        from fewshot.registry import HEAD_OF

        note(f"the head that was trained with it is --head {HEAD_OF[training.encoder.similarity.name]}")
