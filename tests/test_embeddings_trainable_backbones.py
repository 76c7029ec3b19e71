"""Backbones of every family: half precision, gradients, checkpoints; those of MONAI and transformers in detail."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from monai.networks import nets
from torch import nn

from embeddings import EncoderError, Preprocess, TorchEncoder, build_backbone, load_checkpoint, load_encoder
from embeddings.backbone import Backbone
from embeddings.probing import bounded_size, drop_unused, strip_classifier
from embeddings.transformers_backbone import trainable_from
from embeddings.transformers_config import plain_config
from embeddings.transformers_encoder import TransformersEncoder

LAYERS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
VISION = {**LAYERS, "image_size": 32, "patch_size": 8}
TEXT = {
    **LAYERS,
    "vocab_size": 9,
    "max_position_embeddings": 8,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 2,
}
CONVNEXT = {"model_type": "convnext", "num_stages": 2, "hidden_sizes": [8, 16], "depths": [1, 1]}
CLIP = {"model_type": "clip", "text_config": TEXT, "vision_config": VISION, "projection_dim": 12}
MONAI_VIT = {"patch_size": 8, "hidden_size": 12, "mlp_dim": 16, "num_layers": 1, "num_heads": 2}
SQUARE = {"height": 32, "width": 32}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save five tiny models with their image processors."""
    root = tmp_path_factory.mktemp("models")
    to_square = transformers.ViTImageProcessorPil(size=SQUARE)
    cropped = transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=SQUARE)
    edge = transformers.ConvNextImageProcessorPil(size={"shortest_edge": 32}, crop_pct=1.0)
    vit = transformers.ViTConfig(**VISION, id2label={0: "a", 1: "b", 2: "c"})
    clip = transformers.CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=12)
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


def images(channels: int, side: int = 32, n: int = 2) -> torch.Tensor:
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(7))


def check_trains_and_travels(network: Backbone, folder: Path, side: int = 32) -> None:
    """Half precision and channels_last, a gradient for every weight, and the same vectors after a checkpoint."""
    batch = images(network.in_channels, side).contiguous(memory_format=torch.channels_last)
    network.train().to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        vectors = network(batch)
    assert vectors.shape == (2, network.dim)
    vectors.float().square().sum().backward()
    idle = [name for name, weight in network.named_parameters() if weight.grad is None]
    assert not idle, "parallel training would wait for their gradients"
    assert any(bool(weight.grad.abs().max() > 0) for weight in network.parameters() if weight.grad is not None)
    preprocess = Preprocess(size=(side, side), channels=3 if network.in_channels == 3 else 1)
    network.to(memory_format=torch.contiguous_format)  # as a checkpoint is loaded; other kernels round otherwise
    encoder = TorchEncoder(network, preprocess, name="trial", device="cpu")
    encoder.save(folder / "checkpoint")
    loaded = load_checkpoint(folder / "checkpoint", device="cpu")
    scans = [np.random.default_rng(seed).random((40, 50)) for seed in range(3)]
    np.testing.assert_array_equal(loaded.encode(scans), encoder.encode(scans))
    assert loaded.fingerprint == encoder.fingerprint and np.ptp(loaded.encode(scans), axis=0).max() > 0


@pytest.mark.parametrize(
    ("name", "config", "dim"),
    [
        ("conv4", {"width": 4, "pools": 2, "pooling": "flatten", "image_size": 32}, 4 * 8 * 8),
        ("resnet12", {"width": 4, "dropblock": 0.1}, 40),
        ("resnet18", {}, 512),
        ("vit", {"dim": 12, "depth": 2, "image_size": 32}, 12),
        ("vit", {"dim": 12, "depth": 1, "image_size": 32, "pooling": "cls", "dropout": 0.1}, 12),
        ("monai:DenseNet169", {"options": {"init_features": 4, "growth_rate": 2, "block_config": [2, 2, 2]}}, 8),
        ("monai:EfficientNetBN", {"options": {"model_name": "efficientnet-b0"}}, 1280),
        ("monai:SEResNet50", {"options": {"layers": [1, 1, 1, 1], "inplanes": 16}}, 2048),
        ("monai:ResNet", {"options": {"block": "basic", "layers": [1, 1, 1, 1], "block_inplanes": [4, 4, 8, 8]}}, 8),
        ("monai:ViT", {"options": MONAI_VIT, "image_size": 32}, 12),
        ("monai:ViT", {"options": {**MONAI_VIT, "classification": True}, "image_size": 32}, 12),
        ("monai:UNet", {"options": {"out_channels": 5, "channels": [4, 8], "strides": [2]}}, 5),
        ("monai:AutoEncoder", {"options": {"out_channels": 3, "channels": [4, 8], "strides": [2, 2]}}, 3),
        ("monai:Classifier", {"options": {"classes": 3, "channels": [4, 8], "strides": [2, 2]}, "image_size": 32}, 512),
        ("transformers", {"config": {"model_type": "vit", **VISION}}, 16),
        ("transformers", {"config": {"model_type": "vit", **VISION}, "in_channels": 1, "pooling": "mean"}, 16),
        ("transformers", {"config": {"model_type": "dinov2", **VISION}, "pooling": "cls"}, 16),
        ("transformers", {"config": CONVNEXT}, 16),
        ("transformers", {"config": CONVNEXT, "pooling": "mean"}, 16),
        ("transformers", {"config": CLIP}, 12),
        ("transformers", {"config": {"model_type": "blip", **CLIP, "image_text_hidden_size": 8}}, 12),
        ("transformers", {"config": {"model_type": "siglip_vision_model", **VISION}}, 16),
    ],
)
def test_every_family_trains_and_travels(name: str, config: dict[str, Any], dim: int, tmp_path: Path) -> None:
    network = build_backbone(name, seed=0, **config)
    assert network.dim == dim and json.loads(json.dumps(network.backbone_config)) == network.backbone_config
    again = build_backbone(**network.backbone_config, seed=0)
    assert again.backbone_config == network.backbone_config
    for (key, weight), (_, other) in zip(network.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(weight, other), key
    check_trains_and_travels(network, tmp_path)


def test_features_are_what_the_classifier_would_have_seen() -> None:
    options: dict[str, Any] = {"init_features": 4, "growth_rate": 2, "block_config": (2, 2)}
    backbone = build_backbone("monai:DenseNet", options={**options, "block_config": [2, 2]}, seed=0).eval()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        whole = nets.DenseNet(spatial_dims=2, in_channels=1, out_channels=1, **options).eval()
    seen: list[torch.Tensor] = []
    whole.class_layers.out.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    with torch.inference_mode():
        whole(images(1))
        torch.testing.assert_close(backbone(images(1)), seen[0])


def test_vectors_of_tokens_maps_and_pyramids() -> None:
    options = {**MONAI_VIT, "hidden_size": 8}
    tokens = build_backbone("monai", network="ViT", options=options, image_size=32, seed=0).eval()
    pyramid = build_backbone("monai:ResNetFeatures", options={"model_name": "resnet10"}, seed=0).eval()
    with torch.inference_mode():
        torch.testing.assert_close(tokens(images(1)), tokens.body.network(images(1))[0].mean(dim=1))
        maps = pyramid.body.network(images(1, 64))
        assert [tuple(item.shape[1:]) for item in maps][-1] == (512, 2, 2) and len(maps) > 2
        torch.testing.assert_close(pyramid(images(1, 64)), maps[-1].mean(dim=(2, 3)))
    with pytest.raises(
        EncoderError, match="MONAI's ViT was built for images of 32 x 32 pixels and does not take 64 x 64"
    ):
        tokens(images(1, 64))
    assert tokens.backbone_config == {
        "name": "monai", "network": "ViT", "options": options, "image_size": 32, "in_channels": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        (
            "monai:EficientNetBN",
            {},
            r"no network 'EficientNetBN' in monai.networks.nets. Did you mean 'EfficientNetBN'\?",
        ),
        ("monai:resnet18", {}, "There is no network 'resnet18'"),
        ("monai:ViT", {"network": "ResNet"}, "Backbone 'monai:ViT' says what its network is: leave 'network' out"),
        ("monai:ViT", {"patch_sise": 8}, r"MONAI's ViT has no option 'patch_sise'; .* Did you mean 'patch_size'\?"),
        ("monai:UNet", {"image_sise": 8}, r"MONAI's UNet has no option 'image_sise'; .* Did you mean 'image_size'\?"),
        ("monai:ViT", {"patch_size": 8, "options": MONAI_VIT}, "monai:ViT got 'patch_size' twice, once among its opt"),
        ("monai:ViT", {"img_size": 32}, "'img_size' of ViT is the backbone's image_size, 64: set that; got 32"),
        ("monai:ViT", {"pretrained": True}, "Leave 'pretrained' out of the options of ViT"),
        ("monai:ViT", {"act": object()}, "options must be a dictionary of plain JSON types"),
        ("monai:EfficientNetBN", {}, r"MONAI's EfficientNetBN needs the options model_name; got \[\]"),
        ("monai:UNet", {"options": {"chanels": [4]}}, r"UNet has no option 'chanels'; .* Did you mean 'channels'\?"),
        ("monai:UNet", {"options": {"channels": [4, 8], "strides": [2]}}, "makes 1 number per image: name more output"),
        ("monai:EfficientNetBN", {"options": {"model_name": "b99"}}, "EfficientNetBN cannot be built with options"),
        (
            "monai:DenseNet121",
            {"options": {"pretrained": True}},
            "Leave 'pretrained' out of the options of DenseNet121",
        ),
        ("monai:DenseNet121", {"options": {"in_channels": 3}}, "Leave 'in_channels' out of the options"),
        ("monai:Transchex", {}, "MONAI's Transchex loads weights from elsewhere"),
        ("monai:ResNet", {"options": {"layers": [10**6]}}, "among the options must lie within ±4096; got 1000000"),
        ("monai:ResNet", {"options": {"layers": [1] * 300}}, "at most 256 values among the options; got 302"),
        ("monai:ResNet", {"options": {"act": object()}}, "options must be a dictionary of plain JSON types"),
        ("monai:ResNet", {"options": [1]}, r"options must be a dictionary of plain JSON types; got \[1\]"),
        (
            "monai:ViT",
            {"options": {**MONAI_VIT, "hidden_size": 4096, "mlp_dim": 4096, "num_layers": 64}},
            "is too large",
        ),
        ("monai:UNet", {"image_size": 1024}, "image_size must be a whole number from 1 to 512; got 1024"),
        ("monai:Pooler", {"options": {"hidden_size": 8}}, "Pooler does not map images of 1 x 64 x 64 to vectors"),
        (
            "monai:MaskedAutoEncoderViT",
            {"options": {**MONAI_VIT, "decoder_hidden_size": 12, "decoder_num_heads": 2}},
            "makes other vectors of the same image each time",
        ),
        ("transformers", {}, "Backbone 'transformers' needs the option 'config'"),
        (
            "transformers",
            {"config": {"model_type": "bert"}},
            r"must name a vision model .* got 'bert'. Did you mean 'beit'\?",
        ),
        ("transformers", {"config": {}}, "must name a vision model of transformers as its model_type; got None"),
        (
            "transformers",
            {"config": "vit"},
            "config must be a dictionary of plain JSON types, as in a config.json; got 'vit'",
        ),
        (
            "transformers",
            {"config": {"model_type": "clip", "vision_config": {"attn_implementation": "somebody/kernel"}}},
            "A backbone's config must not set 'attn_implementation'",
        ),
        (
            "transformers",
            {"config": {"model_type": "vit", "hidden_size": 10**9}},
            "lie within ±1,000,000; got 1000000000",
        ),
        ("transformers", {"config": {"model_type": "vit", "hidden_act": "x"}}, "cannot be built from its config: 'x'"),
        ("transformers", {"config": {"model_type": "vit", "hidden_size": 60_000}}, "'vit' is too large: at most"),
        (
            "transformers",
            {"config": {"model_type": "vit", **LAYERS, "image_size": 2048, "patch_size": 64}},
            "is for images of 2048 x 2048 pixels in patches of 64 x 64; allowed are 1024 pixels a side and 65,536",
        ),
        ("transformers", {"config": CONVNEXT, "pooling": "cls"}, 'has no class token: pooling must not be "cls"'),
        ("transformers", {"config": CONVNEXT, "pooling": "sum"}, "pooling must be image_features, pooler, mean or cls"),
        (
            "transformers",
            {"config": CONVNEXT, "pooling": "image_features"},
            "makes no vectors of images by 'image_feat",
        ),
        (
            "transformers",
            {"config": {**CONVNEXT, "num_channels": 3}, "in_channels": 1},
            "'convnext' takes images of 3 channels; got in_channels=1",
        ),
        ("transformers", {"config": {"model_type": "vit_mae", **VISION}}, "makes other vectors of the same image"),
    ],
)
def test_refusals(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(EncoderError, match=message) as caught:
        build_backbone(name, seed=0, **config)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "pooling", "dim", "fit"),
    [
        ("vit", "pooler", 16, "stretch"),
        ("vit_without_pooler", "mean", 16, "stretch"),
        ("clip", "image_features", 12, "crop"),
        ("resnet", "pooler", 16, "crop"),
        ("convnext", "pooler", 16, "crop"),
    ],
)
def test_pretrained_weights_train_and_travel_without_their_folder(
    models: Path, tmp_path: Path, name: str, pooling: str, dim: int, fit: str
) -> None:
    folder = tmp_path / "elsewhere"
    shutil.copytree(models / name, folder)
    network = build_backbone(f"hf:{folder}", seed=0)
    encoder = load_encoder(f"hf:{folder}", device="cpu")
    assert isinstance(encoder, TransformersEncoder)
    shutil.rmtree(folder)
    config = network.backbone_config
    assert (network.dim, network.in_channels, config["name"], config["pooling"]) == (dim, 3, "transformers", pooling)
    assert "elsewhere" not in json.dumps(config)
    batch = images(3)
    with torch.inference_mode():
        np.testing.assert_allclose(
            network.eval()(batch), encoder.encode_loaded(list(batch.numpy())), rtol=1e-5, atol=1e-6
        )
    hint = network.preprocess_hint
    assert hint is not None and (hint["size"], hint["fit"]) == ((32, 32), fit)
    check_trains_and_travels(network, tmp_path)


def test_weights_no_vector_depends_on_are_left_out(models: Path) -> None:
    keys = " ".join(build_backbone(f"hf:{models / 'clip'}").state_dict())
    assert "visual_projection" in keys and "text_model" not in keys
    clip = build_backbone(f"hf:{models / 'clip'}")
    assert "logit_scale" in " ".join(name for name, _ in clip.named_buffers())
    first, second = (build_backbone(f"hf:{models / 'vit_without_pooler'}") for _ in range(2))
    assert "pooler" not in " ".join(first.state_dict())  # its weights would be random
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def test_the_hint_is_what_the_image_processor_does(models: Path) -> None:
    for name in ("vit", "clip", "convnext"):
        hint = build_backbone(f"hf:{models / name}").preprocess_hint
        settings = json.loads((models / name / "preprocessor_config.json").read_text())
        assert hint is not None
        np.testing.assert_allclose(hint["mean"], settings["image_mean"], atol=1e-5)
        np.testing.assert_allclose(hint["std"], settings["image_std"], atol=1e-5)


def test_the_hint_knows_other_scales_and_fits(models: Path, tmp_path: Path) -> None:
    def hint_with(**changes: Any) -> dict[str, Any]:
        shutil.copytree(models / "vit", tmp_path / "model", dirs_exist_ok=True)
        path = tmp_path / "model" / "preprocessor_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
        hint = build_backbone(f"hf:{tmp_path / 'model'}").preprocess_hint
        assert hint is not None
        return hint

    raw = hint_with(do_rescale=False, do_normalize=False)  # the model is fed 0 to 255
    np.testing.assert_allclose(raw["mean"], 0.0, atol=1e-6)
    np.testing.assert_allclose(raw["std"], 1 / 255, atol=1e-6)
    dark = hint_with(do_rescale=True, do_normalize=True, image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 1.0, 2.0])
    np.testing.assert_allclose(dark["mean"], [0.1, 0.2, 0.3], atol=1e-5)
    np.testing.assert_allclose(dark["std"], [0.5, 1.0, 2.0], atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "clip", "convnext"])
def test_a_transformers_encoder_becomes_a_torch_encoder(models: Path, tmp_path: Path, name: str) -> None:
    encoder = TransformersEncoder(models / name, device="cpu")
    trainable = trainable_from(encoder, device="cpu")
    rows, columns = np.mgrid[0:64, 0:48] / 64.0
    scans = [np.abs(np.sin(4 * rows + phase) * np.cos(3 * columns)) for phase in (0.0, 1.0, 2.0)]
    before, after = encoder.encode(scans), trainable.encode(scans)
    assert trainable.name == encoder.name and trainable.preprocess.channels == 3
    # the two resample a little differently
    cosines = (before * after).sum(axis=1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    assert cosines.min() > 0.99
    assert all(weight.requires_grad for weight in trainable.network.parameters())
    for weight in trainable.network.parameters():
        weight.data.mul_(0.5)
    np.testing.assert_array_equal(encoder.encode(scans), before)  # the encoder shares no weight with it
    fresh = trainable_from(encoder, device="cpu")
    fresh.save(tmp_path / "saved")
    np.testing.assert_array_equal(load_encoder(tmp_path / "saved").encode(scans), after)


def test_another_pooling_of_pretrained_weights(models: Path) -> None:
    network = build_backbone(f"hf:{models / 'vit'}", pooling="cls").eval()
    model = transformers.AutoModel.from_pretrained(models / "vit").eval()
    with torch.inference_mode():
        expected = model(pixel_values=images(3)).last_hidden_state[:, 0]
        torch.testing.assert_close(network(images(3)), expected)
    # larger images than the position embeddings were learnt for
    assert network(images(3, 48)).shape == (2, 16)
    assert build_backbone(f"hf:{models / 'clip'}").eval()(images(3, 48)).shape == (2, 12)
    with pytest.raises(EncoderError, match="can be pooled by cls, mean; got 'pooler'"):
        build_backbone(f"hf:{models / 'vit_without_pooler'}", pooling="pooler")
    with pytest.raises(EncoderError, match="can be pooled by image_features; got 'mean'"):
        build_backbone(f"hf:{models / 'clip'}", pooling="mean")
    with pytest.raises(EncoderError, match="takes images of 3 channels; got in_channels=1"):
        build_backbone(f"hf:{models / 'vit'}", in_channels=1)
    with pytest.raises(EncoderError, match=r"Backbone 'hf:.*' has no option 'poling'; it takes pooling. Did you mean"):
        build_backbone(f"hf:{models / 'vit'}", poling="mean")


def test_a_configuration_loses_where_it_came_from() -> None:
    plain = plain_config(
        {"model_type": "vit", "_name_or_path": "/home/me", "text_config": {"_name_or_path": "x", "backbone": None}}
    )
    assert plain == {"model_type": "vit", "text_config": {}}


class Shapes(nn.Module):
    """Ends in a classifier with a softmax; one branch and one weight are idle."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 6)
        self.idle_branch = nn.Sequential(nn.Linear(4, 2), nn.ReLU())
        self.idle_weight = nn.Parameter(torch.ones(2))
        self.head = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 3), nn.Softmax(dim=1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.idle_branch(x)
        made: torch.Tensor = self.head(torch.relu(self.trunk(x)))
        return made


def test_classifiers_and_idle_weights_are_found() -> None:
    network = Shapes().eval()
    x = torch.rand(2, 4)
    expected = torch.relu(network.trunk(x))
    assert strip_classifier(network, x, lambda output: output)
    torch.testing.assert_close(network(x), expected)
    drop_unused(network, network(x))
    assert [name for name, _ in network.named_parameters()] == ["trunk.weight", "trunk.bias"]
    assert [name for name, _ in network.named_buffers()] == ["idle_weight"]
    torch.testing.assert_close(network(x), expected)


def test_what_is_no_classifier_stays() -> None:
    layer = nn.Linear(4, 4)
    twice = nn.Sequential(layer, nn.ReLU(), layer).eval()  # one layer in two places
    assert not strip_classifier(twice, torch.rand(2, 4), lambda output: output)
    normed = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)).eval()
    assert not strip_classifier(normed, torch.rand(2, 4), lambda output: output)
    of_tokens = nn.Sequential(nn.Linear(4, 4)).eval()
    assert not strip_classifier(of_tokens, torch.rand(2, 3, 4), lambda output: output)


def test_the_bound_on_size_ends_with_its_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embeddings.probing.MAX_NUMBERS", 100)
    message = "The net is too large: at most 100 weights in 20,000 tensors are allowed"
    with pytest.raises(EncoderError, match=message), bounded_size("The net"):
        nn.Linear(100, 100)
    with bounded_size("The net"):
        nn.Linear(9, 9)
    nn.Linear(100, 100)
    monkeypatch.setattr("embeddings.probing.MAX_TENSORS", 4)
    with pytest.raises(EncoderError, match="is too large"), bounded_size("The net"):
        nn.Sequential(*(nn.Linear(2, 2) for _ in range(3)))


def test_options_of_a_network_of_monai_may_be_given_directly() -> None:
    direct = build_backbone("monai:ViT", image_size=32, seed=0, **MONAI_VIT)
    listed = build_backbone("monai:ViT", image_size=32, seed=0, options=MONAI_VIT)
    rest = {name: value for name, value in MONAI_VIT.items() if name != "patch_size"}
    mixed = build_backbone("monai:ViT", image_size=32, seed=0, patch_size=8, options=rest)
    assert direct.backbone_config == listed.backbone_config and direct.backbone_config["options"] == MONAI_VIT
    assert all(torch.equal(a, b) for a, b in zip(direct.parameters(), listed.parameters(), strict=True))
    assert mixed.backbone_config["options"] == MONAI_VIT


def test_a_classifier_that_is_taken_off_leaves_no_trace() -> None:
    small: dict[str, Any] = {"init_features": 4, "growth_rate": 2, "block_config": [2, 2]}
    plain, counted = (build_backbone("monai:DenseNet", seed=0, **small, **more) for more in ({}, {"out_channels": 7}))
    assert counted.backbone_config == plain.backbone_config and counted.backbone_config["options"] == small
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), counted.parameters(), strict=True))
    for classified in (False, True):
        vit = build_backbone("monai:ViT", image_size=32, num_classes=5, classification=classified, **MONAI_VIT)
        assert vit.backbone_config["options"] == {**MONAI_VIT, "classification": classified}
    kept = build_backbone("monai:UNet", out_channels=5, channels=[4, 8], strides=[2])
    assert kept.dim == 5 and kept.backbone_config["options"]["out_channels"] == 5


def test_a_checkpoint_that_names_an_idle_option_still_loads(tmp_path: Path) -> None:
    small: dict[str, Any] = {"init_features": 4, "growth_rate": 2, "block_config": [2, 2]}
    network = build_backbone("monai:DenseNet", seed=0, **small)
    network.backbone_config["options"] = {**small, "out_channels": 7}  # as it was once recorded
    encoder = TorchEncoder(network, Preprocess(size=(32, 32)), name="trial", device="cpu")
    encoder.save(tmp_path / "checkpoint")
    assert load_checkpoint(tmp_path / "checkpoint", device="cpu").fingerprint == encoder.fingerprint


def test_labels_are_what_people_call_a_network() -> None:
    vit = {"model_type": "vit", **VISION}
    assert build_backbone("conv4", width=4).label == "conv4"
    assert build_backbone("resnet18").label == "resnet18"
    assert build_backbone("monai:ViT", image_size=32, **MONAI_VIT).label == "ViT"
    assert build_backbone("monai", network="ViT", image_size=32, **MONAI_VIT).label == "ViT"
    assert build_backbone("transformers", config=vit).label == "vit"
    assert Backbone(nn.Flatten(), 4).label == "Flatten"
