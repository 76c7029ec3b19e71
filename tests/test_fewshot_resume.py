"""An interrupted training goes on to the very weights it would have had, and gradients accumulate as they should."""

from __future__ import annotations

import csv
import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from embeddings import Preprocess, build_backbone, load_encoder
from fewshot import Training, TrainingConfig, TrainingError, train
from fewshot.devices import Devices
from fewshot.layout import Source
from fewshot.progress import duration
from fewshot.stage import Stage
from fewshot.training_log import LOG_FILE, TENSORBOARD_FOLDER
from fewshot.training_state import STATE_FILE, TrainingState, read_state, write_state

SIDE = 24
CONFIG = TrainingConfig(
    method="prototypical",
    backbone_config={"width": 8},
    k_shot=1,
    n_query=2,
    n_way=4,
    validation="classes",
    episodes=12,
    validation_every=3,
    validation_episodes=10,
    learning_rate=5e-3,
    precision="float32",
    batch_size=16,
    pretraining_episodes=6,
)


def images() -> tuple[np.ndarray, list[str], list[str]]:
    rng = np.random.default_rng(0)
    labels = [f"c{c}" for c in range(8) for _ in range(6)]
    groups = [f"{label}p{i % 3}" for i, label in enumerate(labels)]
    pixels = rng.integers(0, 256, (len(labels), SIDE, SIDE), dtype=np.uint8)
    for i, label in enumerate(labels):
        pixels[i, int(label[1]) * 3 : int(label[1]) * 3 + 3] = 255
    return pixels, labels, groups


PIXELS, LABELS, GROUPS = images()


def log_rows(folder: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((folder / LOG_FILE).read_text().splitlines()))


DROPOUT = {"dim": 16, "depth": 1, "heads": 2, "dropout": 0.3, "image_size": SIDE}


class Interrupted(Exception):
    """Pulls the plug."""


def run(config: TrainingConfig = CONFIG, **options: object) -> Training:
    return train(PIXELS, LABELS, groups=GROUPS, config=config, device="cpu", **options)


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Let the training die in the middle of its (after + 1)th step."""
    original, calls = torch.optim.AdamW.step, [0]

    def step(self: torch.optim.AdamW, *arguments: object) -> object:
        calls[0] += 1
        if calls[0] > after:
            with torch.no_grad():  # half a step was done
                next(iter(self.param_groups[0]["params"])).zero_()
            raise Interrupted
        return original(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)


@pytest.mark.parametrize(
    ("config", "after"),
    [
        (CONFIG, 4),
        (CONFIG, 11),
        (replace(CONFIG, episodes_per_step=2, accumulate=2, validation_every=4), 2),
        (replace(CONFIG, method="supervised"), 7),
        (replace(CONFIG, method="simclr"), 5),
        (replace(CONFIG, pretraining="supervised"), 4),
        (replace(CONFIG, pretraining="supervised"), 13),
        (replace(CONFIG, method="siamese", loss="proxy-anchor"), 5),
        (replace(CONFIG, method="relation"), 5),
        (replace(CONFIG, patience=4, validation_every=1), 3),
        (replace(CONFIG, backbone="vit", backbone_config=DROPOUT, image_size=SIDE), 5),
    ],
    ids=[
        "early",
        "late",
        "accumulate",
        "supervised",
        "simclr",
        "first stage",
        "second stage",
        "proxies",
        "relation",
        "patience",
        "dropout",
    ],
)
def test_resumed_and_uninterrupted_agree_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, config: TrainingConfig, after: int
) -> None:
    whole = run(config, out=tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(Interrupted):
            run(config, out=tmp_path / "cut")
    assert (tmp_path / "cut" / STATE_FILE).exists() and not (tmp_path / "cut" / "encoder.json").exists()
    resumed = run(config, out=tmp_path / "cut", resume=True)
    assert resumed.encoder.fingerprint == whole.encoder.fingerprint
    ours, theirs = resumed.encoder.similarity, whole.encoder.similarity
    assert (ours is None) == (theirs is None)
    if ours is not None and theirs is not None:
        assert all(np.array_equal(value, theirs.tensors[name]) for name, value in ours.tensors.items())
    plain = [[{**entry, "seconds": 0} for entry in training.history] for training in (resumed, whole)]
    assert plain[0] == plain[1]
    assert (resumed.best_episode, resumed.best_accuracy) == (whole.best_episode, whole.best_accuracy)
    assert not (tmp_path / "cut" / STATE_FILE).exists()
    assert load_encoder(tmp_path / "cut").fingerprint == whole.encoder.fingerprint
    logs = [log_rows(tmp_path / name) for name in ("whole", "cut")]
    assert [row["loss"] for row in logs[0]] == [row["loss"] for row in logs[1]] and len(logs[0]) == len(whole.history)


@pytest.mark.parametrize(("after", "stage"), [(4, "supervised"), (13, "prototypical")])
def test_an_interrupted_training_can_be_ended_with_its_best_weights(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, after: int, stage: str
) -> None:
    config = replace(CONFIG, pretraining="supervised")
    with monkeypatch.context() as patch:
        interrupt(patch, after)
        with pytest.raises(Interrupted):
            run(config, out=tmp_path)
    state = read_state(tmp_path)
    training = run(config, out=tmp_path, finish=True)
    best = state.part("best.backbone.")
    assert training.summary["method"] == stage and training.best_episode == state.facts["best"]["episode"] > 0
    loaded = load_encoder(tmp_path, device="cpu")
    assert all(torch.equal(value, best[name]) for name, value in loaded.network.state_dict().items())
    assert not (tmp_path / STATE_FILE).exists()


def test_resuming_refuses_what_is_not_the_same_training(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"^There is no interrupted training in .*/none \(no training-state"):
        run(out=tmp_path / "none", resume=True)
    with pytest.raises(TrainingError, match=r"^Resuming needs the folder of the interrupted training: give out\.$"):
        run(resume=True)
    out = tmp_path / "cut"
    with monkeypatch.context() as patch:
        interrupt(patch, 7)
        with pytest.raises(Interrupted):
            run(out=out)
    before = (out / STATE_FILE).read_bytes()
    with pytest.raises(TrainingError, match=r"^The interrupted training had seed = 0, now it is 1: resume it with"):
        run(replace(CONFIG, seed=1), out=out, resume=True)
    with pytest.raises(TrainingError, match=r"^The interrupted training was on other images, labels or patients: "):
        train(PIXELS[::-1], LABELS, groups=GROUPS, config=CONFIG, out=out, resume=True, device="cpu")
    with pytest.raises(TrainingError, match=r"^The interrupted training was on other images, labels or patients: "):
        train(PIXELS, LABELS, config=CONFIG, out=out, resume=True, device="cpu")
    assert (out / STATE_FILE).read_bytes() == before
    with pytest.raises(TrainingError, match=r"^The interrupted training began from another encoder or with another"):
        run(out=out, resume=True, init=run(replace(CONFIG, episodes=1)).encoder)
    state = read_state(out)
    save_file(state.tensors, out / STATE_FILE, metadata={"state": json.dumps({**state.facts, "format": 99})})
    with pytest.raises(TrainingError, match=r"is no state of a training that this radshot can go on with"):
        run(out=out, resume=True)
    (out / STATE_FILE).write_bytes(before[:1000])
    with pytest.raises(TrainingError, match=r"is no state of a training, or was cut short; begin anew\.$"):
        run(out=out, resume=True)


def test_a_damaged_or_made_up_state_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 7)
        with pytest.raises(Interrupted):
            run(out=tmp_path)
    state = read_state(tmp_path)
    whole = bytearray((tmp_path / STATE_FILE).read_bytes())
    whole[-5] ^= 1
    (tmp_path / STATE_FILE).write_bytes(whole)
    with pytest.raises(TrainingError, match=r"is not what was written: it was damaged or changed; begin anew\.$"):
        run(out=tmp_path, resume=True)
    moment = next(name for name, value in state.tensors.items() if name.startswith("optimizer.") and value.ndim == 4)
    best = next(name for name in state.tensors if name.startswith("best."))
    for facts, tensors, said in (
        ({"stage": 7}, {}, r"is of stage 7, of 1: begin anew\.$"),
        ({"stage": -1}, {}, r"is of stage -1, of 1: begin anew\.$"),
        ({"step": 10**9}, {}, r"does not fit this one \(it has 1000000000 steps of 12\): begin anew\.$"),
        (
            {},
            {moment: torch.zeros(3)},
            r"does not fit this one \(the optimiser's exp_avg.* has shape \(3,\)\): begin anew",
        ),
        ({}, {best: torch.zeros(3)}, r"does not fit this one \(.*\): begin anew\.$"),
    ):
        write_state(tmp_path, TrainingState({**state.facts, **facts}, {**state.tensors, **tensors}))
        with pytest.raises(TrainingError, match=said):
            run(out=tmp_path, resume=True)
    write_state(tmp_path, TrainingState({k: v for k, v in state.facts.items() if k != "history"}, state.tensors))
    with pytest.raises(TrainingError, match=r"lacks 'history', as no state of a training does; begin anew\.$"):
        run(out=tmp_path, resume=True)


def test_what_a_kill_left_half_written_is_removed(tmp_path: Path) -> None:
    (tmp_path / f".{STATE_FILE}.4711").write_bytes(b"half")
    run(out=tmp_path)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("validation", ["none", "classes"])
def test_ending_before_the_first_validation_keeps_what_was_trained(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, validation: str
) -> None:
    monkeypatch.setattr("fewshot.stage.STATE_SECONDS", 0.0)  # a state after every step
    config = replace(CONFIG, validation=validation, validation_every=100)
    with monkeypatch.context() as patch:
        interrupt(patch, 5)
        with pytest.raises(Interrupted):
            run(config, out=tmp_path)
    weights = read_state(tmp_path).part("network.backbone.")
    training = run(config, out=tmp_path, finish=True)
    assert training.best_episode == 5
    assert all(torch.equal(value, weights[name]) for name, value in training.encoder.network.state_dict().items())
    assert (training.best_accuracy is None) == (validation == "none") and training.best_accuracy != -1.0


def test_accumulated_gradients_are_those_of_all_episodes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fewshot.stage.GRADIENT_NORM", 1e9)
    source = Source(PIXELS, Preprocess(size=(SIDE, SIDE)), tuple((label,) for label in LABELS), tuple(GROUPS))

    def gradients(accumulate: int, first: int) -> list[torch.Tensor]:
        """Of a step that begins at an episode."""
        config = replace(
            CONFIG, accumulate=accumulate, augmentation=None, validation="none", episodes=3, metric="cosine"
        )
        stage = Stage(source, build_backbone("conv4", width=8, seed=0), config, Devices("cpu"), [])
        stage.step = stage.episodes_seen = first
        stage._step(stage.devices.prepare(stage.network), torch.optim.SGD(stage.network.parameters(), lr=0.0))
        return [parameter.grad for parameter in stage.network.parameters() if parameter.grad is not None]

    apart = [gradients(1, episode) for episode in range(3)]
    for whole, *parts in zip(gradients(3, 0), *apart, strict=True):
        assert whole.abs().max() > 0
        assert torch.allclose(whole, torch.stack(parts).mean(0), atol=1e-5)


def test_pretraining_comes_first_and_is_recorded(tmp_path: Path) -> None:
    training = run(replace(CONFIG, pretraining="supervised"), out=tmp_path, tensorboard=True)
    assert [entry["stage"] for entry in training.history] == ["supervised"] * 2 + ["prototypical"] * 4
    assert training.encoder.name == "conv4-prototypical"
    alone = run()
    assert alone.encoder.fingerprint != training.encoder.fingerprint
    assert any((tmp_path / TENSORBOARD_FOLDER).iterdir())
    assert [row["stage"] for row in log_rows(tmp_path)] == [entry["stage"] for entry in training.history]


def test_self_supervision_needs_no_labels_and_the_others_do() -> None:
    config = replace(CONFIG, method="simclr", validation="auto")
    training = train(PIXELS, None, groups=GROUPS, config=config, device="cpu")
    assert training.best_accuracy is None and training.summary["images"] == len(PIXELS)
    with pytest.raises(TrainingError, match=r"^The method 'prototypical' needs labels; only simclr does without\.$"):
        train(PIXELS, None, config=CONFIG, device="cpu")


def test_tensorboard_needs_a_folder() -> None:
    with pytest.raises(TrainingError, match=r"^TensorBoard's files need a folder: give out\.$"):
        run(tensorboard=True)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "about 1 second"), (40, "about 40 seconds"), (719, "about 12 minutes"), (9000, "about 2 hours")],
)
def test_durations_as_people_say_them(seconds: float, said: str) -> None:
    assert duration(seconds) == said


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
from test_fewshot_resume import STOPPING, TWO, run
run(TWO, out=sys.argv[1])
print(run(STOPPING).encoder.fingerprint)
"""
TWO = replace(
    CONFIG, augmentation=None, learning_rate=1e-3, metric="cosine", temperature=1.0, accumulate=2, validation="none"
)
#: Processes that disagreed about when to stop would wait for each other for ever.
STOPPING = replace(CONFIG, patience=1, validation_every=1, validation_episodes=2, precision="float32")


def test_several_processes_train_as_one_that_accumulates_and_agree(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).parent)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    processes = []
    for rank in range(2):  # what `accelerate launch` sets for each process it starts
        environment = {
            **os.environ,
            "WORLD_SIZE": "2",
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "ACCELERATE_USE_CPU": "true",
            "ACCELERATE_MIXED_PRECISION": "bf16",  # which must not matter
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, str(script), str(tmp_path / "two")]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        processes.append(subprocess.Popen(command, env=environment, text=True, **pipes))
    told = []
    try:
        for process in processes:
            said, errors = process.communicate(timeout=100)
            assert process.returncode == 0, errors[-2000:]
            told.append(said.split())
    finally:
        for process in processes:
            process.kill()
    assert told[0] == told[1] and len(told[0]) == 1, "every process ends with the same encoder"
    one, two = run(replace(TWO, accumulate=4)), load_encoder(tmp_path / "two", device="cpu")
    theirs = dict(two.network.named_parameters())
    for name, value in one.encoder.network.named_parameters():
        if value.ndim == 4:  # the biases before a batch normalisation have no gradient but noise
            assert torch.allclose(value, theirs[name], atol=5e-5), name
    losses = [[entry["loss"] for entry in history] for history in (two.training["history"], one.history)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)
    assert not (tmp_path / "two" / STATE_FILE).exists()


def test_the_number_of_processes_must_be_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(TrainingError, match=r"^WORLD_SIZE must be the number of processes .*; got 'two'\.$"):
        run()


KILLED = """
import sys
sys.path.insert(0, {tests!r})
import fewshot.stage
fewshot.stage.STATE_SECONDS = 0.0
from dataclasses import replace
from pathlib import Path
from test_fewshot_resume import CONFIG, run
from fewshot.training_state import STATE_FILE
out = Path(sys.argv[1])
config = replace(CONFIG, episodes=900, pretraining="simclr", pretraining_episodes=300, validation_every=20)
run(config, out=out, resume=(out / STATE_FILE).exists())
"""


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_killed_again_and_again_it_ends_with_the_same_weights(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(KILLED.format(tests=str(Path(__file__).parent)))
    rng = np.random.default_rng(0)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    whole = [sys.executable, str(script), str(tmp_path / "whole")]
    subprocess.run(whole, env=environment, check=True, timeout=300)
    killed = 0
    for _ in range(40):
        process = subprocess.Popen([sys.executable, str(script), str(tmp_path / "cut")], env=environment)
        try:
            assert process.wait(timeout=4 + 6 * rng.random()) == 0
            break
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            killed += 1
    assert killed >= 2
    ours, theirs = (load_encoder(tmp_path / name, device="cpu") for name in ("cut", "whole"))
    assert ours.fingerprint == theirs.fingerprint
