"""Backbones: shapes, dims, seeds, the registry's hints, and Conv-4 against the layers written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional

from embeddings import EncoderError, build_backbone

IMAGES = torch.rand(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("name", "config", "dim"),
    [
        ("conv4", {}, 64),
        ("conv4", {"width": 8, "pooling": "max"}, 8),
        ("conv4", {"width": 8, "pooling": "flatten", "image_size": 64}, 8 * 4 * 4),
        ("conv4", {"width": 8, "depth": 2}, 8),
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


def test_three_channels() -> None:
    for name in ("conv4", "resnet18", "densenet121"):
        assert build_backbone(name, in_channels=3, seed=0).eval()(torch.zeros(1, 3, 64, 64)).shape[0] == 1


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
        (
            "conv5",
            {},
            "There is no backbone 'conv5'; there are conv4, densenet121, resnet18, resnet50. Did you mean 'conv4'?",
        ),
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
        ("resnet18", {"stem_stride": 3}, "stem_stride must be a whole number from 1 to 2; got 3"),
    ],
)
def test_refusals(name: str, config: dict[str, Any], message: str) -> None:
    with pytest.raises(EncoderError, match=message):
        build_backbone(name, **config)
