"""Train an encoder on episodes drawn from a source domain (Vinyals et al. 2016, arXiv 1606.04080)."""

from __future__ import annotations

import copy
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from embeddings import STRONG_AUGMENTATION, Augmentation, TorchEncoder

from .devices import Devices
from .layout import Source
from .memory import kept_memory
from .pixels import load_pixels
from .progress import TrainingProgress
from .stage import Stage
from .starting import check_fit, config_from, fresh_backbone, image_channels, make_folder, starting_encoder
from .training_config import METHODS, UNLABELLED, TrainingConfig, TrainingError, TrainingLocked
from .training_log import TrainingLog
from .training_state import LOCK_FILE, TrainingState, check_same, data_hash, read_state, remove_state

if TYPE_CHECKING:
    from torch import nn

    from embeddings import ImageSource, Preprocess


@dataclass(frozen=True)
class Training:
    """What came of a training.

    Attributes:
        encoder: The trained encoder, with the preprocessing, the source's mean, the statistics of the source's classes
            (None where no class has 6 patients, see `fewshot.source_classes`), and a learnt comparison if there is one.
        history: One entry per validation: stage, episode, loss, training and validation accuracy, rate, seconds.
        best_episode: Training episodes seen by the weights that were kept.
        best_accuracy: Their validation accuracy, or None without validation.
        stopped_early: Whether patience ran out before the planned episodes.
        summary: What was trained on, how, and on what it was validated; also stored with the weights.
        refused: (image, reason) for images that could not be read; the others were trained on.
    """

    encoder: TorchEncoder
    history: tuple[dict[str, Any], ...]
    best_episode: int
    best_accuracy: float | None
    stopped_early: bool
    summary: dict[str, Any]
    refused: tuple[tuple[str, str], ...] = field(default=())


def train(
    images: Sequence[ImageSource] | NDArray[np.uint8],
    labels: Sequence[Hashable] | None,
    *,
    groups: Sequence[Hashable] | None = None,
    config: TrainingConfig | None = None,
    out: str | Path | None = None,
    init: str | Path | TorchEncoder | None = None,
    device: str = "auto",
    progress: bool = False,
    resume: bool = False,
    finish: bool = False,
    tensorboard: bool = False,
) -> Training:
    """Train an encoder and return the weights that did best on held-out episodes.

    With `out` the training can be interrupted: its state is written at every validation and every two minutes, and
    `resume=True` goes on from there, in one process on a CPU to the very weights an uninterrupted run gives. A record
    of it goes to training.csv in that folder as it runs.

    Under `accelerate launch` every process takes its share of each step (with k processes a step is k times as large),
    and only the first writes.

    Args:
        images: n sources `read_image` takes, or a uint8 array (n, h, w) of grey levels, which is used as it is.
        labels: n labels; a collection of labels where an image has several. None only for "simclr", which needs none.
        groups: n patients. Support and query of a training episode never share one.
        config: How to train; the defaults suit a few thousand images on a CPU.
        out: Folder for the checkpoint; nothing is written without it.
        init: A checkpoint, an encoder, or a transformers model ("hf:<id or folder>") to start from. Its backbone and
            its preprocessing are kept: the image size of `config` does not count, another backbone in it is refused.
        device: "auto", "cpu" or "cuda".
        progress: Whether to say on standard error what is going to be done and for how long, with a bar on a terminal.
        resume: Go on with the interrupted training in `out`; everything else must be as it was.
        finish: End the interrupted training in `out` with the best weights it has found so far.
        tensorboard: Whether to write TensorBoard's event files into `out`.

    Returns:
        The encoder and the record of its training.

    Raises:
        TrainingError: Options that do not fit together, lists of unequal length, no image that can be read, no such
            device, a folder that cannot be made, nothing to resume, or a loss that is no longer finite.
        EncoderError: No such backbone, or no such checkpoint to start from.
        EpisodeError: Too few patients or classes for the episodes asked for.
    """
    config = config or TrainingConfig()
    if not isinstance(config, TrainingConfig):
        raise TrainingError(f"config must be a TrainingConfig; got {type(config).__name__}.")
    _check_lists(images, labels, groups, config)
    folder = None if out is None else Path(out)
    if (resume or finish) and folder is None:
        raise TrainingError("Resuming needs the folder of the interrupted training: give out.")
    state = read_state(folder) if (resume or finish) and folder is not None else None
    if folder is not None:
        make_folder(folder)
    devices = Devices(device)
    shown = progress and devices.is_main
    with (
        _only_writer(folder if devices.is_main else None),
        kept_memory(),
        torch.random.fork_rng(),
        TrainingProgress(shown=shown) as bar,
    ):
        torch.manual_seed(config.seed)
        start = starting_encoder(init)
        if start is not None:
            config = config_from(start, config)
        bar.say("reading the images")
        if start is not None:
            backbone: nn.Module = copy.deepcopy(start.network)
            form: Preprocess | None = start.preprocess
        else:
            backbone, form = fresh_backbone(config)
        cache = load_pixels(images, config, form, channels=image_channels(backbone))
        source = Source(
            pixels=cache.pixels,
            preprocess=cache.preprocess,
            labels=tuple(_label_set(labels[i]) if labels is not None else () for i in cache.kept),
            groups=None if groups is None else tuple(groups[i] for i in cache.kept),
        )
        check_fit(backbone, cache.preprocess)
        data = data_hash(source.pixels, source.labels, source.groups) if folder is not None else ""
        begun = {
            "preprocess": source.preprocess.to_json(),
            "init": None if start is None else start.fingerprint,
        }
        if state is not None:
            check_same(state, config, data, devices.count, begun)
        log = TrainingLog(folder if devices.is_main else None, tensorboard=tensorboard and devices.is_main)
        log.begin(state.facts["history"] if state is not None else ())
        stage = _run_stages(
            source, backbone, config, devices, bar, log, state, finish, folder, {"data": data, "begun": begun}
        )
        log.close()
        training = _finish(stage, source, cache.refused)
        if folder is not None and devices.is_main:
            training.encoder.save(folder)
            remove_state(folder)
    devices.wait()
    return training


@contextmanager
def _only_writer(folder: Path | None) -> Iterator[None]:
    """Keep other trainings out of a folder until the block ends."""
    if folder is None:
        yield
        return
    lock = FileLock(folder / LOCK_FILE, timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise TrainingLocked(f"Another training is writing to {folder}: wait for it, or give another folder.") from None
    except OSError as error:
        raise TrainingError(f"The checkpoint folder {folder} cannot be written: {error.strerror or error}.") from error
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            (folder / LOCK_FILE).unlink()


def _run_stages(
    source: Source,
    backbone: nn.Module,
    config: TrainingConfig,
    devices: Devices,
    bar: TrainingProgress,
    log: TrainingLog,
    state: TrainingState | None,
    finish: bool,
    folder: Path | None,
    identity: dict[str, Any],
) -> Stage:
    """Run the pretraining where there is one, then the training; the last stage that was run is returned."""
    plans = [config]
    if config.augmentation is not None and replace(config.augmentation, horizontal_flip=0.0) == Augmentation():
        plans = [replace(config, augmentation=_augmentation(config.method, config.augmentation))]
    if config.pretraining is not None:
        first = replace(
            config,
            method=config.pretraining,
            pretraining=None,
            temperature=None,  # that of the training's own logits
            episodes=config.pretraining_episodes,
            learning_rate=config.pretraining_rate or config.learning_rate,
            augmentation=_augmentation(config.pretraining, config.augmentation),
        )
        plans.insert(0, first)
    history: list[dict[str, Any]] = list(state.facts["history"]) if state is not None else []
    done = state.facts["stage"] if state is not None else 0
    if done not in range(len(plans)):
        raise TrainingError(f"The state of the interrupted training is of stage {done}, of {len(plans)}: begin anew.")
    for number, plan in list(enumerate(plans))[done:]:
        stage = Stage(source, backbone, plan, devices, history)
        resumed = state if state is not None and number == done else None
        shared = {"stage": number, "config": config.to_dict(), "processes": devices.count, **identity}
        stage.run(bar, log, resumed, None if folder is None else (folder, shared), finish=finish)
        if finish:
            break
        backbone = stage.network.backbone
    return stage


def _augmentation(method: str, given: Augmentation | None) -> Augmentation | None:
    """The augmentation of a method: self-supervision learns from strong changes, whatever the next stage wants."""
    if method not in UNLABELLED or given is None:
        return given
    return replace(STRONG_AUGMENTATION, horizontal_flip=given.horizontal_flip)


def _finish(stage: Stage, source: Source, refused: tuple[tuple[str, str], ...]) -> Training:
    """Make the encoder of the last stage's best weights."""
    summary = {
        **stage.summary(),
        "preprocess": source.preprocess.to_json(),
        "torch": torch.__version__,
    }
    mean, statistics = stage.source_moments()
    encoder = TorchEncoder(
        stage.network.backbone,
        source.preprocess,
        name=f"{stage.backbone_name()}-{stage.config.method}",
        source_mean=mean,
        source_statistics=statistics,
        similarity=stage.network.similarity_head(),
        device=str(stage.device),
        training={**summary, "history": stage.history},
    )
    return Training(
        encoder=encoder,
        history=tuple(stage.history),
        best_episode=stage.best.episode,
        best_accuracy=stage.best_accuracy,
        stopped_early=stage.best.enough,
        summary=summary,
        refused=refused,
    )


def _check_lists(
    images: Sequence[Any] | NDArray[np.uint8],
    labels: Sequence[Hashable] | None,
    groups: Sequence[Hashable] | None,
    config: TrainingConfig,
) -> None:
    """Refuse lists of unequal length, and a method that needs labels without any."""
    if labels is None and (config.method not in UNLABELLED or config.pretraining not in (None, *UNLABELLED)):
        raise TrainingError(f"The method {config.method!r} needs labels; only {', '.join(UNLABELLED)} does without.")
    if (labels is not None and len(images) != len(labels)) or (groups is not None and len(groups) != len(images)):
        counts = [] if labels is None else [f"{len(labels)} labels"]
        counts += [] if groups is None else [f"{len(groups)} groups"]
        raise TrainingError(f"{len(images)} images need as many labels and groups; got {' and '.join(counts)}.")
    for i, group in enumerate(groups or ()):
        if group is None or group != group:
            raise TrainingError(f"Every image needs its patient, or none of them: image {i} has {group!r}.")


def _label_set(label: Hashable) -> tuple[Hashable, ...]:
    """One image's labels, each once, in the order given."""
    if label is None:
        return ()
    if isinstance(label, tuple | list | set | frozenset):
        return tuple(dict.fromkeys(label if isinstance(label, tuple | list) else sorted(label, key=str)))
    return (label,)


__all__ = ["METHODS", "Training", "TrainingConfig", "TrainingError", "train"]
