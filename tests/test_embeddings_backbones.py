"""Backbones: shapes, dims, seeds, the registry's hints, and Conv-4 and ResNet-12 against the layers written out."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch.nn import functional

import embeddings
from embeddings import EncoderError, UnknownEncoder, build_backbone
from embeddings.backbones import BACKBONES
from embeddings.resnet12 import DropBlock

IMAGES = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "config", "dim"),
    [
        ("conv4", {}, 64),
        ("conv4", {"width": 8, "pooling": "max"}, 8),
        ("conv4", {"width": 8, "pooling": "flatten", "image_size": 64}, 8 * 4 * 4),
        ("conv4", {"width": 8, "depth": 2}, 8),
        ("conv4", {"width": 8, "pools": 2}, 8),
        ("conv4", {"width": 8, "pools": 2, "pooling": "flatten", "image_size": 64}, 8 * 16 * 16),
        ("resnet12", {"width": 8}, 80),
        ("resnet12", {"widths": [4, 8, 8, 12], "pooling": "max", "dropblock": 0.1}, 12),
        ("resnet12", {"width": 4, "pooling": "flatten", "image_size": 64}, 40 * 4 * 4),
        ("vit", {"dim": 24, "depth": 2}, 24),
        ("vit", {"dim": 16, "depth": 1, "heads": 2, "patch_size": 16, "pooling": "cls", "dropout": 0.1}, 16),
        ("resnet18", {}, 512),
        ("resnet18", {"stem_stride": 1}, 512),
        ("resnet50", {}, 2048),
        ("densenet121", {}, 1024),
    ],
)
def test_vectors_have_the_declared_dim(name: str, config: dict[str, Any], dim: int) -> None:
    network = build_backbone(name, seed=0, **config).eval()
    with torch.inference_mode():
        vectors = network(IMAGES)
    assert network.dim == dim and vectors.shape == (2, dim)
    assert torch.isfinite(vectors).all() and not torch.equal(vectors[0], vectors[1])
    assert network.backbone_config == {"name": name, "in_channels": 1, **config}
    rebuilt = build_backbone(**network.backbone_config, seed=0).eval()
    with torch.inference_mode():
        torch.testing.assert_close(rebuilt(IMAGES), vectors)


def test_conv4_on_omniglot_is_the_papers_64() -> None:
    network = build_backbone("conv4", pooling="flatten", image_size=28)
    assert network.dim == 64
    assert network(torch.zeros(2, 1, 28, 28)).shape == (2, 64)


def test_conv4_agrees_with_its_layers_written_out() -> None:
    network = build_backbone("conv4", width=4, seed=3).eval()
    weights = list(network.parameters())
    x = IMAGES
    for block in range(4):
        kernel, bias, scale, shift = weights[4 * block : 4 * block + 4]
        x = functional.conv2d(x, kernel, bias, padding=1)
        x = functional.batch_norm(x, torch.zeros(4), torch.ones(4), scale, shift)
        x = functional.max_pool2d(functional.relu(x), 2)
    torch.testing.assert_close(network(IMAGES), x.mean(dim=(2, 3)))


def test_a_flattened_map_says_its_shape() -> None:
    # 28 pixels halved twice, as in relation networks (arXiv 1711.06025), leave 7 x 7
    network = build_backbone("conv4", width=6, pooling="flatten", image_size=28, pools=2, seed=0).eval()
    assert network.map_shape == (6, 7, 7) and network.dim == 6 * 7 * 7
    images = torch.rand(2, 1, 28, 28, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        vectors = network(images)
        feature_map = network.body[:-1](images)
    torch.testing.assert_close(vectors.reshape(2, *network.map_shape), feature_map)
    assert build_backbone("conv4", width=6, pooling="flatten", image_size=28, pools=0).map_shape == (6, 28, 28)
    assert build_backbone("conv4", width=6, pooling="flatten", image_size=84).map_shape == (6, 5, 5)
    assert build_backbone("resnet12", width=4, pooling="flatten", image_size=84).map_shape == (40, 5, 5)
    for name in ("conv4", "resnet12", "resnet18", "vit"):
        assert build_backbone(name).map_shape is None


def test_pools_drop_the_last_poolings_only() -> None:
    network = build_backbone("conv4", width=4, pools=2, seed=3).eval()
    weights = list(network.parameters())
    x = IMAGES
    for block in range(4):
        kernel, bias, scale, shift = weights[4 * block : 4 * block + 4]
        x = functional.conv2d(x, kernel, bias, padding=1)
        x = functional.relu(functional.batch_norm(x, torch.zeros(4), torch.ones(4), scale, shift))
        if block < 2:
            x = functional.max_pool2d(x, 2)
    assert x.shape[-2:] == (16, 16)
    torch.testing.assert_close(network(IMAGES), x.mean(dim=(2, 3)))


def test_resnet12_has_the_weights_of_the_literature() -> None:
    # 64-160-320-640 on colour images: the 12.4 million parameters that papers give for it
    network = build_backbone("resnet12", in_channels=3, seed=0)
    assert network.dim == 640
    assert sum(weight.numel() for weight in network.parameters()) == 12_424_320
    assert build_backbone("resnet12", width=10).dim == 100
    assert build_backbone("resnet12", widths=[64, 128, 256, 512]).dim == 512  # TADAM


def test_resnet12_agrees_with_its_layers_written_out() -> None:
    network = build_backbone("resnet12", widths=[2, 3, 4, 5], seed=3).eval()
    generator = torch.Generator().manual_seed(0)
    for name, buffer in network.named_buffers():
        if "running" in name:
            buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)
    state = network.state_dict()

    def normalised(x: torch.Tensor, kernel: str, norm: str, padding: int) -> torch.Tensor:
        x = functional.conv2d(x, state[f"{kernel}.weight"], padding=padding)
        mean, variance = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        return functional.batch_norm(x, mean, variance, state[f"{norm}.weight"], state[f"{norm}.bias"])

    x = IMAGES
    for block in range(4):
        inside = f"body.{block}"
        shortcut = normalised(x, f"{inside}.shortcut.0", f"{inside}.shortcut.1", 0)
        y = functional.leaky_relu(normalised(x, f"{inside}.path.0", f"{inside}.path.1", 1), 0.1)
        y = functional.leaky_relu(normalised(y, f"{inside}.path.3", f"{inside}.path.4", 1), 0.1)
        y = normalised(y, f"{inside}.path.6", f"{inside}.path.7", 1)
        x = functional.max_pool2d(functional.leaky_relu(y + shortcut, 0.1), 2)
    torch.testing.assert_close(network(IMAGES), x.mean(dim=(2, 3)))


def test_dropblock_drops_whole_squares_of_about_the_share() -> None:
    drop = DropBlock(0.2, 3)
    features = torch.ones(40, 8, 12, 12)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dropped = drop(features)
    zero = dropped == 0
    # by the paper's rate squares may overlap, so that a little less than the share goes
    assert 0.15 < zero.float().mean() < 0.2
    assert dropped.mean().item() == pytest.approx(1.0, abs=1e-4)
    for image, channel in ((0, 0), (3, 5), (39, 7)):
        field = zero[image, channel]
        for row in range(12):
            for column in range(12):
                squares = [
                    bool(field[top : top + 3, left : left + 3].all())
                    for top in range(max(0, row - 2), min(row, 9) + 1)
                    for left in range(max(0, column - 2), min(column, 9) + 1)
                ]
                assert bool(field[row, column]) == any(squares)
    assert torch.equal(drop.eval()(features), features)
    small = DropBlock(0.5, 5)(torch.ones(200, 4, 2, 2))  # larger than the map: all of a channel or nothing
    sums = (small != 0).sum(dim=(2, 3))
    assert set(sums.unique().tolist()) == {0, 4} and 0.4 < (sums == 0).float().mean() < 0.6


def test_dropblock_follows_the_last_two_blocks_in_training_only() -> None:
    network = build_backbone("resnet12", width=4, dropblock=0.3, seed=0)
    assert [isinstance(block.end[-1], DropBlock) for block in network.body[:4]] == [False, False, True, True]
    plain = build_backbone("resnet12", width=4, seed=0)
    plain.load_state_dict(network.state_dict())
    assert torch.equal(network.eval()(IMAGES), plain.eval()(IMAGES))
    assert not torch.equal(network.train()(IMAGES), plain.train()(IMAGES))


def test_vit_pools_patch_tokens_or_the_class_token() -> None:
    mean = build_backbone("vit", dim=12, depth=1, seed=0).eval()
    token = build_backbone("vit", dim=12, depth=1, pooling="cls", seed=0).eval()
    with torch.inference_mode():
        tokens = mean.body.model(pixel_values=IMAGES).last_hidden_state
        assert tokens.shape == (2, 1 + 8 * 8, 12)
        slow = torch.stack([torch.stack(list(image[1:])).mean(dim=0) for image in tokens])
        torch.testing.assert_close(mean(IMAGES), slow)
        torch.testing.assert_close(token(IMAGES), tokens[:, 0])


def test_vit_interpolates_position_embeddings_for_other_sizes() -> None:
    small = build_backbone("vit", dim=12, depth=1, image_size=32, seed=0).eval()
    positions = torch.randn(1, 1 + 4 * 4, 12, generator=torch.Generator().manual_seed(0))
    small.body.model.embeddings.position_embeddings.data = positions
    # the same network for 64 pixels, its 8 x 8 positions resampled from the 4 x 4
    grid = positions[:, 1:].reshape(1, 4, 4, 12).permute(0, 3, 1, 2)
    larger = functional.interpolate(grid, size=(8, 8), mode="bicubic").permute(0, 2, 3, 1).reshape(1, 64, 12)
    large = build_backbone("vit", dim=12, depth=1, image_size=64, seed=0).eval()
    large.load_state_dict(
        small.state_dict() | {"body.model.embeddings.position_embeddings": torch.cat([positions[:, :1], larger], dim=1)}
    )
    with torch.inference_mode():
        torch.testing.assert_close(small(IMAGES), large(IMAGES))
        assert small(IMAGES[:, :, :, :40]).shape == (2, 12)
    with pytest.raises(EncoderError, match="Images must be at least one patch of 8 x 8 pixels; got 4 x 64"):
        small(IMAGES[:, :, :4])


def test_three_channels() -> None:
    for name in ("conv4", "resnet12", "resnet18", "densenet121", "vit"):
        network = build_backbone(name, in_channels=3, seed=0).eval()
        assert network.in_channels == network.backbone_config["in_channels"] == 3
        assert network(torch.zeros(1, 3, 64, 64)).shape[0] == 1
        assert build_backbone(name).in_channels == 1


def test_options_are_copied() -> None:
    widths = [2, 3, 4, 5]
    network = build_backbone("resnet12", widths=widths)
    widths[0] = 9
    assert network.backbone_config["widths"] == [2, 3, 4, 5]


def test_small_networks_import_neither_monai_nor_transformers() -> None:
    code = (
        "import sys, embeddings\n"
        "embeddings.build_backbone('conv4'), embeddings.build_backbone('resnet12', width=4)\n"
        "assert not {'monai', 'transformers'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_seeds_repeat_and_leave_the_global_generator_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first, second, other = (build_backbone("conv4", seed=seed) for seed in (1, 1, 2))
    torch.testing.assert_close(torch.rand(3), expected)
    pairs = list(zip(first.parameters(), second.parameters(), other.parameters(), strict=True))
    assert all(torch.equal(a, b) for a, b, _ in pairs)
    assert not all(torch.equal(a, c) for a, _, c in pairs)


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("conv5", {}, "There is no backbone 'conv5'; there are conv4, resnet12, .*, \"monai:<class>\" .* 'conv4'?"),
        ("resnet1", {}, "Did you mean 'resnet1[28]'\\?"),
        (
            "conv4",
            {"widht": 3},
            "Backbone 'conv4' has no option 'widht'; it takes width, depth, .* Did you mean 'width'?",
        ),
        ("densenet121", {"width": 3}, "Backbone 'densenet121' has no option 'width'; it takes no options"),
        ("conv4", {"width": 10**9}, "width must be a whole number from 1 to 2048; got 1000000000"),
        ("conv4", {"depth": True}, "depth must be a whole number from 1 to 8; got True"),
        ("conv4", {"pooling": "sum"}, "pooling must be mean, max or flatten; got 'sum'"),
        ("conv4", {"pooling": "flatten"}, 'pooling="flatten" needs image_size'),
        ("conv4", {"pooling": "flatten", "image_size": 8}, "image_size must be a whole number from 16 to 4096; got 8"),
        ("conv4", {"in_channels": 0}, "in_channels must be a whole number from 1 to 64; got 0"),
        ("conv4", {"pools": 5}, "pools must be a whole number from 0 to 4; got 5"),
        ("conv4", {"pools": 1, "pooling": "flatten", "image_size": 1}, "image_size must be .* from 2 to 4096; got 1"),
        ("resnet12", {"width": 205}, "width must be a whole number from 1 to 204; got 205"),
        ("resnet12", {"widths": [8, 8, 8]}, "widths must be four numbers of channels, one per block; got"),
        ("resnet12", {"widths": [8, 8, 8, 9999]}, "widths must be a whole number from 1 to 2048; got 9999"),
        ("resnet12", {"dropblock": 1.0}, "dropblock must be a number from 0 to below 1; got 1.0"),
        ("resnet12", {"block_size": 0}, "block_size must be a whole number from 1 to 64; got 0"),
        ("resnet12", {"pooling": "flatten"}, 'pooling="flatten" needs image_size'),
        ("vit", {"dim": 10**6}, "dim must be a whole number from 1 to 2048; got 1000000"),
        ("vit", {"depth": 65}, "depth must be a whole number from 1 to 64; got 65"),
        ("vit", {"patch_size": 10}, "patch_size must divide image_size; got 10 and 64"),
        ("vit", {"image_size": 4}, "image_size must be a whole number from 8 to 1024; got 4"),
        ("vit", {"heads": 5}, "heads must divide dim; got 5 and 192"),
        ("vit", {"dropout": -0.1}, "dropout must be a number from 0 to below 1; got -0.1"),
        ("vit", {"pooling": "max"}, "pooling must be mean or cls; got 'max'"),
        ("monai", {}, "Backbone 'monai' needs the option 'network'"),
        ("resnet18", {"stem_stride": 3}, "stem_stride must be a whole number from 1 to 2; got 3"),
    ],
)
def test_refusals(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        build_backbone(name, **config)


def test_an_unknown_name_is_an_unknown_encoder() -> None:
    for name in ("conv5", "", None, ["conv4"]):
        with pytest.raises(UnknownEncoder, match="There is no backbone"):
            build_backbone(name)  # type: ignore[arg-type]


def test_the_names_are_listed_without_torch() -> None:
    code = "import sys, embeddings\nassert 'conv4' in embeddings.BACKBONES and 'torch' not in sys.modules\n"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert embeddings.BACKBONES is BACKBONES and "BACKBONES" in embeddings.__all__
