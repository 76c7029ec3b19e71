"""Parts of a training that a result alone does not show: the views, the precision, the memory, the first stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from embeddings import NO_AUGMENTATION, STRONG_AUGMENTATION, Augmentation
from embeddings.backbone import Backbone
from fewshot import TrainingConfig, memory, train, training
from fewshot.memory import kept_memory
from fewshot.simclr import SimCLRNetwork
from fewshot.stage import Stage

RNG = np.random.default_rng(4)
IMAGES = RNG.integers(0, 256, (24, 16, 16), dtype=np.uint8)
LABELS = [f"c{i // 8}" for i in range(24)]
TINY = TrainingConfig(
    backbone_config={"width": 4},
    image_size=16,
    k_shot=2,
    n_query=2,
    episodes=4,
    validation="none",
    precision="float32",
)


# --- two views of an image -------------------------------------------------------------------------------------------


def batches_of_simclr(monkeypatch: pytest.MonkeyPatch, augmentation: Augmentation | None) -> list[torch.Tensor]:
    """The images that the loss of the SimCLR network is given."""
    seen: list[torch.Tensor] = []
    original = SimCLRNetwork.loss

    def loss(self: SimCLRNetwork, images: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, float]:
        assert len(images) == 2 * len(targets)
        seen.append(images.detach().clone())
        return original(self, images, targets)

    monkeypatch.setattr(SimCLRNetwork, "loss", loss)
    config = replace(TINY, method="simclr", batch_size=6, augmentation=augmentation)
    train(IMAGES, None, config=config, device="cpu")
    assert len(seen) == config.episodes
    return seen


def test_the_second_half_of_a_batch_is_the_first_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for images in batches_of_simclr(monkeypatch, None):
        assert len(images) == 12
        for i in range(6):
            same = [j for j in range(12) if torch.equal(images[i], images[j])]
            assert same == [i, 6 + i]


def test_the_two_views_of_an_image_are_changed_on_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = replace(NO_AUGMENTATION, noise=0.05)  # leaves an image nearest to itself
    for images in batches_of_simclr(monkeypatch, noisy):
        far = torch.cdist(images.flatten(1), images.flatten(1))  # (12, 12)
        far.fill_diagonal_(torch.inf)
        assert far.argmin(1).tolist() == [(i + 6) % 12 for i in range(12)]
        assert float(far.min()) > 0


# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["prototypical", "supervised", "simclr"])
@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_the_backbone_computes_in_the_precision_asked_for(
    monkeypatch: pytest.MonkeyPatch, precision: str, method: str
) -> None:
    seen: list[tuple[bool, bool, torch.dtype]] = []
    original = Backbone.forward

    def forward(self: Backbone, images: torch.Tensor) -> torch.Tensor:
        vectors = original(self, images)
        seen.append((torch.is_grad_enabled(), torch.is_autocast_enabled("cpu"), vectors.dtype))
        return vectors

    monkeypatch.setattr(Backbone, "forward", forward)
    config = replace(TINY, method=method, precision=precision, batch_size=6)
    result = train(IMAGES, LABELS, config=config, device="cpu")
    half = precision == "bf16"
    dtype = torch.bfloat16 if half else torch.float32
    if half:
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
    assert [how[1:] for how in seen if how[0]] == [(half, dtype)] * config.episodes
    # What looks at the finished network, and the encoder itself, compute in float32.
    assert {how[1:] for how in seen if not how[0]} == {(False, torch.float32)}
    before = len(seen)
    vectors = result.encoder.encode(list(IMAGES[:3]))
    assert [how[1:] for how in seen[before:]] == [(False, torch.float32)]
    assert vectors.dtype == np.float32 and not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("precision", ["bf16", "float32"])
def test_validation_computes_in_the_precision_of_the_training(monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    seen: list[bool] = []
    original = Stage._validate

    def validate(self: Stage) -> tuple[float, float]:
        hook = self.network.backbone.register_forward_hook(lambda *_: seen.append(torch.is_autocast_enabled("cpu")))
        found = original(self)
        hook.remove()
        return found

    monkeypatch.setattr(Stage, "_validate", validate)
    config = replace(TINY, precision=precision, validation="patients", validation_share=0.4, validation_every=2)
    train(IMAGES, LABELS, config=replace(config, validation_episodes=3), device="cpu")
    assert seen == [precision == "bf16"] * 2


# --- memory ----------------------------------------------------------------------------------------------------------

#: glibc's own, from its malloc.h: M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, and its manual's defaults for them.
TRIM_THRESHOLD, TOP_PAD, MMAP_MAX = -1, -2, -4
DEFAULTS = {TRIM_THRESHOLD: 128 * 1024, TOP_PAD: 0, MMAP_MAX: 65536}
SETTINGS = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "GLIBC_TUNABLES",
)


class Library:
    """A C library that remembers what it was told."""

    def __init__(self) -> None:
        self.options: dict[int, int] = {}
        self.calls: list[str] = []

    def mallopt(self, parameter: int, value: int) -> int:
        assert -(2**31) <= value < 2**31, "mallopt takes a C int"
        self.options[parameter] = value
        self.calls.append("mallopt")
        return 1

    def malloc_trim(self, pad: int) -> int:
        assert pad == 0
        self.calls.append("malloc_trim")
        return 1


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Library:
    fake = Library()
    monkeypatch.setattr(memory, "_glibc", lambda: fake)
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    return fake


def check_kept(options: Mapping[int, int]) -> None:
    """Nothing of this project's sizes is given back, and nothing is mapped on its own."""
    assert options.keys() == DEFAULTS.keys()
    assert options[TRIM_THRESHOLD] >= 2**30 and options[TOP_PAD] >= 2**20 and options[MMAP_MAX] == 0


def test_memory_is_kept_inside_the_block_and_given_back_after_it(library: Library) -> None:
    with kept_memory():
        check_kept(library.options)
        assert library.calls == ["mallopt"] * 3
    assert library.options == DEFAULTS
    assert library.calls == ["mallopt"] * 6 + ["malloc_trim"]  # trimmed last, when it no longer keeps anything


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_memory_is_given_back_after_an_error(library: Library, error: type[BaseException]) -> None:
    with pytest.raises(error, match="inside"), kept_memory():
        check_kept(library.options)
        raise error("inside")
    assert library.options == DEFAULTS and library.calls[-1] == "malloc_trim"


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_of_the_users_is_left_alone(library: Library, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    with kept_memory():
        assert not library.calls
    with pytest.raises(RuntimeError, match="inside"), kept_memory():
        raise RuntimeError("inside")
    assert not library.calls


def test_another_c_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(memory, "sys", SimpleNamespace(platform="darwin"))
    monkeypatch.setattr(memory, "ctypes", SimpleNamespace(CDLL=lambda *_: pytest.fail("glibc is of Linux")))
    with kept_memory():
        pass
    monkeypatch.setattr(memory, "sys", SimpleNamespace(platform="linux"))
    monkeypatch.setattr(memory, "ctypes", SimpleNamespace(CDLL=lambda *_: object()))  # musl, say: without the functions
    with kept_memory():
        pass


def test_a_training_keeps_its_memory(library: Library, monkeypatch: pytest.MonkeyPatch) -> None:
    inside: list[dict[int, int]] = []
    original = Stage.run

    def run(self: Stage, *args: Any, **options: Any) -> None:
        inside.append(dict(library.options))
        original(self, *args, **options)

    monkeypatch.setattr(Stage, "run", run)
    train(IMAGES, LABELS, config=TINY, device="cpu")
    assert len(inside) == 1 and library.options == DEFAULTS and library.calls[-1] == "malloc_trim"
    check_kept(inside[0])


# --- the first of two stages -----------------------------------------------------------------------------------------


def stages_of(monkeypatch: pytest.MonkeyPatch, config: TrainingConfig) -> list[TrainingConfig]:
    """The configurations of the stages that `train` runs."""
    seen: list[TrainingConfig] = []

    class Spy(Stage):
        def __init__(self, source: Any, backbone: Any, config: TrainingConfig, devices: Any, history: Any) -> None:
            seen.append(config)
            super().__init__(source, backbone, config, devices, history)

    monkeypatch.setattr(training, "Stage", Spy)
    train(IMAGES, LABELS, config=config, device="cpu")
    return seen


TWO_STAGES = replace(
    TINY,
    pretraining="simclr",
    pretraining_episodes=2,
    pretraining_rate=7e-4,
    learning_rate=3e-3,
    temperature=8.0,
    batch_size=6,
    augmentation=replace(Augmentation(), rotation=2.0, horizontal_flip=0.5),
)


def test_pretraining_by_simclr_has_options_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = stages_of(monkeypatch, TWO_STAGES)
    assert (first.method, first.pretraining, first.episodes, first.learning_rate) == ("simclr", None, 2, 7e-4)
    assert first.temperature is None  # 8 is that of the prototypical network's squared distances
    assert first.augmentation == replace(STRONG_AUGMENTATION, horizontal_flip=0.5)
    assert STRONG_AUGMENTATION.horizontal_flip == 0
    changed = {"method", "pretraining", "episodes", "learning_rate", "temperature", "augmentation"}
    for field in fields(TrainingConfig):
        if field.name not in changed:
            assert getattr(first, field.name) == getattr(TWO_STAGES, field.name), field.name
    assert second == TWO_STAGES


def test_the_rate_of_the_pretraining_is_that_of_the_training_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = stages_of(monkeypatch, replace(TWO_STAGES, pretraining_rate=None))
    assert first.learning_rate == second.learning_rate == 3e-3


@pytest.mark.parametrize("pretraining", ["simclr", "supervised"])
def test_images_that_are_not_to_be_changed_are_not(monkeypatch: pytest.MonkeyPatch, pretraining: str) -> None:
    first, second = stages_of(monkeypatch, replace(TWO_STAGES, pretraining=pretraining, augmentation=None))
    assert first.augmentation is None and second.augmentation is None


def test_pretraining_with_labels_keeps_the_augmentation(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = stages_of(monkeypatch, replace(TWO_STAGES, pretraining="supervised"))
    assert first.method == "supervised" and first.temperature is None
    assert first.augmentation == second.augmentation == TWO_STAGES.augmentation
