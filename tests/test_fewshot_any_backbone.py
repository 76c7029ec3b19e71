"""Every family of backbones trains, is saved, and makes the same vectors when it is loaded again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import ViTConfig, ViTImageProcessorPil, ViTModel
from transformers.utils import logging

from embeddings import NO_AUGMENTATION, load_encoder
from fewshot import TrainingConfig, TrainingError, train
from fewshot.starting import image_channels

SIDE = 32
CONFIG = TrainingConfig(
    method="prototypical", image_size=SIDE, k_shot=1, n_query=2, episodes=4, validation="none", learning_rate=1e-3
)
LABELS = [f"c{i % 4}" for i in range(24)]


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (SIDE, SIDE), dtype=np.uint8) for _ in LABELS]


@pytest.fixture(scope="module")
def local_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny vision transformer in the hub's format."""
    folder = tmp_path_factory.mktemp("vit")
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    logging.disable_progress_bar()
    ViTModel(ViTConfig(**sizes, image_size=SIDE, patch_size=8)).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return str(folder)


@pytest.mark.parametrize(
    ("backbone", "options", "channels"),
    [
        ("resnet12", {"width": 8}, 1),
        ("vit", {"dim": 32, "depth": 2, "heads": 2}, 1),
        ("monai:EfficientNetBN", {"options": {"model_name": "efficientnet-b0"}}, 1),
        ("resnet18", {"stem_stride": 1}, 1),
    ],
)
def test_fresh_weights(
    tmp_path: Path, images: list[np.ndarray], backbone: str, options: dict[str, Any], channels: int
) -> None:
    config = replace(CONFIG, backbone=backbone, backbone_config=options, temperature=10.0)
    training = train(images, LABELS, config=config, out=tmp_path, device="cpu")
    loaded = load_encoder(tmp_path, device="cpu")
    assert loaded.preprocess.channels == channels
    assert np.array_equal(loaded.encode(images), training.encoder.encode(images))


def test_a_transformers_model_as_backbone_or_as_start(
    tmp_path: Path, images: list[np.ndarray], local_model: str
) -> None:
    still = replace(CONFIG, episodes=1, learning_rate=1e-12, weight_decay=0.0, augmentation=NO_AUGMENTATION)
    before = load_encoder(f"hf:{local_model}", device="cpu").encode(images)
    trained = [
        train(images, LABELS, config=replace(still, backbone=f"hf:{local_model}"), out=tmp_path / "a", device="cpu"),
        train(images, LABELS, config=still, init=f"hf:{local_model}", out=tmp_path / "b", device="cpu"),
    ]
    for training, name in zip(trained, "ab", strict=True):
        vectors = load_encoder(tmp_path / name, device="cpu").encode(images)
        assert np.array_equal(vectors, training.encoder.encode(images))
        assert np.allclose(vectors, before, atol=1e-3), "it starts from the model's own weights"
        assert training.encoder.preprocess.channels == 3
    moved = train(images, LABELS, config=replace(CONFIG, learning_rate=1e-3), init=f"hf:{local_model}", device="cpu")
    assert not np.allclose(moved.encoder.encode(images), before, atol=1e-3), "and it learns"


def test_a_backbone_of_two_channels_cannot_be_trained() -> None:
    backbone = torch.nn.Conv2d(2, 4, 3)
    backbone.in_channels = 2
    with pytest.raises(
        TrainingError, match=r"^A backbone to train takes images of 1 or 3 channels; this one takes 2\.$"
    ):
        image_channels(backbone)
