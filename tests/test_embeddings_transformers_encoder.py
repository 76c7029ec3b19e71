"""TransformersEncoder on tiny models saved in the library's own format: pooling, fingerprints, refusals."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from embeddings import Encoder, EncoderError, TransformersEncoder, load_encoder, read_image

IMAGES = [np.random.default_rng(seed).random((40, 50)) for seed in range(3)]
VIT = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
SQUARE = {"height": 32, "width": 32}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save five tiny models with their image processors."""
    root = tmp_path_factory.mktemp("models")
    to_square = transformers.ViTImageProcessorPil(size=SQUARE)
    cropped = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE)
    edge = transformers.ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=1.0)
    vit = transformers.ViTConfig(**VIT, image_size=32, patch_size=8)
    vision = {**VIT, "image_size": 32, "patch_size": 8}
    text = {
        **VIT,
        "vocab_size": 9,
        "max_position_embeddings": 8,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    }
    clip = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12)
    resnet = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic")
    convnext = transformers.ConvNextConfig(num_stages=2, hidden_sizes=[8, 16], depths=[1, 1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for name, model, processor in (
            ("vit", transformers.ViTModel(vit), to_square),
            ("vit_without_pooler", transformers.ViTForImageClassification(vit), to_square),
            ("clip", transformers.CLIPModel(clip), cropped),
            ("resnet", transformers.ResNetModel(resnet), edge),
            ("convnext", transformers.ConvNextModel(convnext), edge),
        ):
            model.save_pretrained(root / name)
            processor.save_pretrained(root / name)
    return root


def pixels(root: Path, name: str, image: np.ndarray) -> torch.Tensor:
    """Preprocess one image by the processor alone."""
    grey = Image.fromarray(np.rint(read_image(image) * 255).astype(np.uint8)).convert("RGB")
    processor: Any = transformers.AutoImageProcessor.from_pretrained(root / name, backend="pil")
    return torch.from_numpy(processor(images=grey, return_tensors="np")["pixel_values"])


@pytest.mark.parametrize(
    ("name", "pooling", "dim"),
    [
        ("vit", "pooler", 16),
        ("vit_without_pooler", "mean", 16),
        ("clip", "image_features", 12),
        ("resnet", "pooler", 16),
        ("convnext", "pooler", 16),
    ],
)
def test_any_vision_model_encodes(models: Path, name: str, pooling: str, dim: int) -> None:
    encoder = load_encoder(f"hf:{models / name}", device="cpu")
    assert isinstance(encoder, TransformersEncoder) and isinstance(encoder, Encoder)
    assert (encoder.pooling, encoder.dim, encoder.name) == (pooling, dim, f"hf:{models / name}")
    vectors = encoder.encode(IMAGES, batch_size=2)
    assert vectors.shape == (3, dim) and vectors.dtype == np.float32
    model = transformers.AutoModel.from_pretrained(models / name).eval()
    with torch.inference_mode():
        for image, vector in zip(IMAGES, vectors, strict=True):
            inputs = pixels(models, name, image)
            if pooling == "image_features":
                expected = model.get_image_features(pixel_values=inputs).pooler_output[0]
            elif pooling == "pooler":
                expected = model(pixel_values=inputs).pooler_output.flatten()
            else:  # 16 patches after one class token
                expected = torch.stack(list(model(pixel_values=inputs).last_hidden_state[0][1:])).mean(dim=0)
                assert model(pixel_values=inputs).last_hidden_state.shape[1] == 17
            np.testing.assert_allclose(vector, expected.numpy(), rtol=1e-3, atol=1e-5)


def test_fingerprints_repeat_and_know_weights_and_processor(models: Path, tmp_path: Path) -> None:
    # the absent pooler is random each time it is loaded, and must not count
    for name in ("vit", "vit_without_pooler", "clip"):
        assert len({load_encoder(f"hf:{models / name}").fingerprint for _ in range(2)}) == 1
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in (models / "vit").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    original = load_encoder(f"hf:{models / 'vit'}").fingerprint
    assert load_encoder(f"hf:{copy}").fingerprint == original
    settings = json.loads((copy / "preprocessor_config.json").read_text())
    (copy / "preprocessor_config.json").write_text(json.dumps(settings | {"image_mean": [0.1, 0.1, 0.1]}))
    assert load_encoder(f"hf:{copy}").fingerprint != original


def test_loader_pickles_without_the_network(models: Path) -> None:
    encoder = TransformersEncoder(models / "vit")
    sent = pickle.dumps(encoder.loader)
    assert len(sent) < 10_000
    np.testing.assert_array_equal(pickle.loads(sent)(IMAGES[0]), encoder.load(IMAGES[0]))


def test_loading_is_silent_and_leaves_settings_alone(models: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = logging.is_progress_bar_enabled(), logging.get_verbosity()
    load_encoder(f"hf:{models / 'vit_without_pooler'}")
    assert (logging.is_progress_bar_enabled(), logging.get_verbosity()) == before
    captured = capfd.readouterr()
    assert (captured.out, captured.err) == ("", "")


def test_refusals(models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match=r'"hf:" needs a hub id or a folder'):
        load_encoder("hf:")
    with pytest.raises(EncoderError, match="There is no folder 'nobody/nothing', and no model of that id"):
        load_encoder("hf:nobody/nothing")
    with pytest.raises(EncoderError, match=r"holds no transformers model: it has no config.json"):
        load_encoder(f"hf:{tmp_path}")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_bytes((models / "vit" / "config.json").read_bytes())
    torch.save({}, model / "pytorch_model.bin")
    with pytest.raises(EncoderError, match="has no safetensors weights; pickled weights are never loaded"):
        load_encoder(f"hf:{model}")
    weights = (models / "vit" / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[:500])
    with pytest.raises(EncoderError, match="cannot be loaded") as caught:
        load_encoder(f"hf:{model}")
    assert "\n" not in str(caught.value)
    (model / "model.safetensors").write_bytes(weights)
    with pytest.raises(EncoderError, match="has no image processor that can be loaded"):
        load_encoder(f"hf:{model}")


def test_weights_that_are_missing_are_named(models: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in (models / "vit").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    gone = next(key for key in sorted(tensors) if "pooler" not in key)
    del tensors[gone]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EncoderError, match="lacks 1 weights of its model"):
        load_encoder(f"hf:{tmp_path}")


def test_a_language_model_is_no_encoder_of_images(models: Path, tmp_path: Path) -> None:
    bert = transformers.BertConfig(**VIT, vocab_size=9)
    transformers.BertModel(bert).save_pretrained(tmp_path)
    processor = models / "vit" / "preprocessor_config.json"
    (tmp_path / processor.name).write_bytes(processor.read_bytes())
    with pytest.raises(EncoderError, match="is no vision model"):
        load_encoder(f"hf:{tmp_path}")
