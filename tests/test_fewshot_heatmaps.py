"""Heat maps: they point at what decides, are checked against slow loops and MONAI, and say when not to be relied on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from monai.visualize.class_activation_maps import GradCAM
from scipy.stats import spearmanr
from torch import nn

from embeddings import Preprocess, TorchEncoder, build_backbone, load_encoder
from fewshot import NeighborClassifier, PrototypeClassifier
from fewshot.finetuning import FineTunedClassifier, image_rows
from fewshot.grad_cam import NoFeatureMap, PrototypeScores, _Question, _weighed, grad_cam, map_layer
from fewshot.heatmaps import Explanation, HeatMap, explain_image
from fewshot.last_blocks import copy_owning
from fewshot.occlusion import occlusion_map, rank_agreement
from fewshot.placement import place

SIDE = 48
VIT = {
    "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": SIDE, "patch_size": 8, "num_channels": 1,
}  # fmt: skip


def blob(where: str, rng: np.random.Generator, shape: tuple[int, int] = (SIDE, SIDE)) -> tuple[np.ndarray, Any]:
    """A bright blob left or right of the middle, and its centre in pixels."""
    height, width = shape
    center = height / 2 + rng.uniform(-2, 2), width * (0.27 if where == "left" else 0.73) + rng.uniform(-2, 2)
    y, x = np.mgrid[:height, :width]
    spot = 0.6 * np.exp(-((y - center[0]) ** 2 + (x - center[1]) ** 2) / (2 * (SIDE / 10) ** 2))
    return np.clip(0.3 + 0.04 * rng.normal(size=shape) + spot, 0, 1).astype(np.float32), center


def encoder_of(name: str = "conv4", *, fit: str = "pad", **options: Any) -> TorchEncoder:
    preprocess = Preprocess(size=(SIDE, SIDE), fit=fit)  # type: ignore[arg-type]
    return TorchEncoder(build_backbone(name, seed=0, **options), preprocess, name=name)


def placed() -> TorchEncoder:
    return encoder_of("conv4", width=16, stem_width=8, pooling="flatten", image_size=SIDE)


def spotter() -> TorchEncoder:
    """A network that is known to see bright spots and nothing else, and keeps where they are."""
    convolution = nn.Conv2d(1, 2, 5, padding=2)
    with torch.no_grad():
        convolution.weight.fill_(1 / 25)
        convolution.bias.copy_(torch.tensor([-0.4, -1.0]))  # grey levels above 0.6 and 0.75, in standard deviations
    network = nn.Sequential(convolution, nn.ReLU(inplace=True), nn.MaxPool2d(4), nn.Flatten())
    network.map_shape = (2, SIDE // 4, SIDE // 4)  # type: ignore[assignment]
    return TorchEncoder(network, Preprocess(size=(SIDE, SIDE)), name="spotter")


def support(shape: tuple[int, int] = (SIDE, SIDE)) -> tuple[list[np.ndarray], list[str]]:
    rng = np.random.default_rng(0)
    labels = ["left", "right"] * 6
    return [blob(label, rng, shape)[0] for label in labels], labels


def fitted(encoder: Any, **options: Any) -> PrototypeClassifier:
    images, labels = support()
    return PrototypeClassifier(**options).fit(encoder.encode(images), labels)


def shares(heatmap: HeatMap, center: tuple[float, float], radius: float) -> tuple[bool, float]:
    """Whether the largest value lies within the radius, and the share of the map that does."""
    positive = np.maximum(heatmap.values, 0)
    y, x = np.mgrid[: positive.shape[0], : positive.shape[1]]
    near = np.hypot(y - center[0], x - center[1]) <= radius
    return bool(near.flat[positive.argmax()]), float(positive[near].sum() / positive.sum())


@pytest.mark.parametrize("kind", ["prototypes", "euclidean", "head", "last-blocks"])
def test_both_maps_point_at_the_blob_that_decides(kind: str) -> None:
    encoder = spotter()
    images, labels = support()
    head: Any
    if kind in ("head", "last-blocks"):
        head = FineTunedClassifier(encoder, tune=kind, steps=10).fit(image_rows(encoder, images), labels)
    else:
        head = fitted(encoder, metric="euclidean" if kind == "euclidean" else "cosine")
    rng = np.random.default_rng(1)
    hits: dict[str, list[bool]] = {"grad-cam": [], "occlusion": []}
    mass: dict[str, list[float]] = {"grad-cam": [], "occlusion": []}
    agreement = []
    for label in ["left", "right"] * 3:
        image, center = blob(label, rng)
        found = explain_image(encoder, head, image)
        assert (found.label, found.runner_up) == (label, "right" if label == "left" else "left")
        assert [heatmap.kind for heatmap in found.maps] == ["grad-cam", "occlusion"] and found.reason is None
        for heatmap in found.maps:
            assert heatmap.values.shape == image.shape and heatmap.values.dtype == np.float32
            hit, share = shares(heatmap, center, SIDE / 4)
            hits[heatmap.kind].append(hit)
            mass[heatmap.kind].append(share)
            assert heatmap.agreement is not None
            agreement.append(heatmap.agreement)
    assert all(hits["occlusion"]) and all(hits["grad-cam"])
    assert min(mass["occlusion"]) > 0.6 and min(mass["grad-cam"]) > 0.9  # the disc is a fifth of the image
    assert np.mean(agreement) > 0.5


def test_a_vision_transformer_is_mapped_by_its_tokens_whatever_its_pooling() -> None:
    for pooling in ("mean", "cls", "pooler"):
        encoder = encoder_of("transformers", config=VIT, pooling=pooling)
        question = copy_owning(_Question(PrototypeScores(encoder.network, fitted(encoder)), 0, 1), ())
        layer = map_layer(question, torch.from_numpy(encoder.load(support()[0][0]))[None])
        assert layer.tokens and layer.grid == (SIDE // 8, SIDE // 8) and layer.counts
        # the class token sees patches through the last attention, whose input is the last map that counts for it
        assert layer.name.endswith("model.layernorm" if pooling == "mean" else "layers.1.layernorm_before")
        found = explain_image(encoder, fitted(encoder), blob("left", np.random.default_rng(1))[0])
        assert not found.maps[0].flat


@pytest.mark.parametrize(
    ("name", "options", "layer", "grid"),
    [
        ("conv4", {"width": 8}, "scores.network.body.15", (3, 3)),
        ("conv4", {"width": 8, "pooling": "flatten", "image_size": SIDE}, "scores.network.body.15", (3, 3)),
        ("resnet12", {"width": 4}, "scores.network.body.3", (3, 3)),
        ("densenet121", {}, "scores.network.body.class_layers.relu", (2, 2)),
    ],
)
def test_the_last_layer_that_is_a_map(name: str, options: dict[str, Any], layer: str, grid: tuple[int, int]) -> None:
    encoder = encoder_of(name, **options)
    question = copy_owning(_Question(PrototypeScores(encoder.network, fitted(encoder)), 0, 1), ())
    for module in question.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    side = 64 if name == "densenet121" else SIDE  # at 48 pixels its last map is a single pixel
    found = map_layer(question, torch.rand(1, 1, side, side, generator=torch.Generator().manual_seed(0)))
    assert (found.name, found.grid, found.tokens) == (layer, grid, False)


def test_a_pooled_map_is_the_papers_by_monai() -> None:
    encoder = encoder_of("conv4", width=8)
    scores = PrototypeScores(encoder.network, fitted(encoder))
    image = encoder.load(support()[0][0])
    found = grad_cam(scores, image, 0, 1)
    question = copy_owning(_Question(scores, 0, 1), ())
    pixels = torch.from_numpy(image)[None].requires_grad_(True)
    coarse = GradCAM(question, "scores.network.body.15").compute_map(pixels, class_idx=0).detach()
    wanted = nn.functional.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    assert found.max() > 0
    assert not scores.center.any() and torch.allclose(found, wanted[0, 0], atol=1e-7)


@pytest.mark.parametrize("centred", [False, True])
def test_a_flattened_map_against_the_cosines_own_derivative(centred: bool) -> None:
    encoder = placed()
    center = np.random.default_rng(2).random(encoder.dim) * 0.2 if centred else None
    head = fitted(encoder, center=center)
    scores = PrototypeScores(encoder.network, head)
    image = encoder.load(support()[0][0])
    question = copy_owning(_Question(scores, 0, 1), ())
    for module in question.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    pixels = torch.from_numpy(image)[None]
    layer = map_layer(question, pixels)
    found = _weighed(question, layer, pixels, scores.center, by_place=True)[0, 0].numpy()
    moved = encoder.encode_loaded([image])[0].astype(float) - (0 if center is None else center)
    towards = head.prototypes_[0] - head.prototypes_[1]
    norm = float(np.linalg.norm(moved))
    slope = towards / norm - float(moved @ towards) * moved / norm**3  # d(cosine difference) / d(vector)
    wanted = (slope * moved).reshape(16, 3, 3).sum(axis=0)
    assert wanted.max() > 0 and found == pytest.approx(np.maximum(wanted, 0), abs=1e-5)


def test_occlusion_against_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    image, weights = rng.random((1, 12, 10)).astype(np.float32), rng.normal(size=(1, 12, 10))
    content = (slice(2, 12), slice(0, 10))
    found = occlusion_map(lambda batch: (batch * weights).sum(axis=(1, 2, 3)), image, content, patch=0.4)
    mean = image[0, 2:12].mean()
    lost, covered = np.zeros((12, 10)), np.zeros((12, 10))
    for top in range(0, 12, 2):  # patches of 4, every 2 pixels, the first ones half outside
        for left in range(-2, 10, 2):
            loss = 0.0
            cells = [(y, x) for y in range(top, top + 4) for x in range(left, left + 4) if 2 <= y < 12 and 0 <= x < 10]
            for y, x in cells:
                loss += float(weights[0, y, x]) * float(image[0, y, x] - mean)
            for y, x in cells:
                lost[y, x] += loss
                covered[y, x] += 1
    assert covered[2:].min() == 4 == covered[2:].max()
    assert found[2:] == pytest.approx(lost[2:] / 4, abs=1e-5) and not found[:2].any()


def test_what_nothing_can_be_decided_about_counts_as_a_score_of_0() -> None:
    image = np.full((1, 8, 8), 0.5, dtype=np.float32)
    image[0, 0, 0] = 1

    def score(batch: np.ndarray) -> np.ndarray:
        return np.where(batch[:, 0, 0, 0] == 1, 0.75, np.nan)

    found = occlusion_map(score, image, (slice(0, 8), slice(0, 8)), patch=0.25)
    assert found[0, 0] == pytest.approx(0.75) and found[7, 7] == 0


def test_agreement_is_spearmans_over_cells() -> None:
    rng = np.random.default_rng(0)
    one, two = rng.random((6, 8)).astype(np.float32), rng.random((6, 8)).astype(np.float32)
    whole = (slice(0, 6), slice(0, 8))
    assert rank_agreement(one, two, whole, cell=1) == pytest.approx(spearmanr(one.ravel(), two.ravel()).statistic)
    cells = [[float(m[y : y + 4, x : x + 3].mean()) for y in (0, 4) for x in (0, 3, 6)] for m in (one, two)]
    assert rank_agreement(one, two, whole, cell=1) != rank_agreement(one, two, whole, cell=3)
    part = [[float(m[y : y + 3, x : x + 3].mean()) for y in (0, 3) for x in (0, 3, 6)] for m in (one, two)]
    assert rank_agreement(one, two, whole, cell=3) == pytest.approx(spearmanr(*part).statistic)
    assert cells != part
    assert rank_agreement(one, np.zeros_like(one), whole, cell=1) is None
    assert rank_agreement(one, -two, whole, cell=1) is None  # what speaks against the answer is not compared


class Deaf(nn.Module):
    """A map that has no say: the vector is the same for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(1, 3, 3)
        self.constant = nn.Parameter(torch.tensor([1.0, 2.0, 3.0]))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.convolution(images).mean(dim=(2, 3)) * 0 + self.constant


def test_an_encoder_that_ignores_the_image_gives_flat_maps() -> None:
    encoder = TorchEncoder(Deaf(), Preprocess(size=(SIDE, SIDE)), name="deaf")
    head = PrototypeClassifier().fit([[1.0, 2.0, 3.0], [3.0, 2.0, 1.0]], ["a", "b"])
    found = explain_image(encoder, head, support()[0][0])
    assert found.label == "a" and len(found.maps) == 2
    for heatmap in found.maps:
        assert heatmap.flat and not heatmap.values.any() and heatmap.agreement is None
        assert heatmap.verdict == "flat: no place speaks for the answer"


@pytest.mark.parametrize("fit", ["pad", "crop", "stretch"])
@pytest.mark.parametrize("shape", [(30, 60), (90, 40), (48, 48), (7, 100)])
def test_a_mark_is_mapped_back_to_where_it_was(fit: str, shape: tuple[int, int]) -> None:
    preprocess = Preprocess(size=(SIDE, SIDE), fit=fit, mean=(0.0,), std=(1.0,))  # type: ignore[arg-type]
    where = place(preprocess, shape, (SIDE, SIDE))
    y, x = np.mgrid[: shape[0], : shape[1]]
    at = shape[0] * 0.4, shape[1] * 0.55
    image = np.exp(-((y - at[0]) ** 2 + (x - at[1]) ** 2) / (2 * (max(shape) / 10) ** 2)).astype(np.float32)
    back = where.to_image(preprocess(image)[0])
    assert back.shape == shape
    rows, columns = where.content
    full = preprocess(np.ones(shape, dtype=np.float32))[0]
    filled = np.zeros((SIDE, SIDE), dtype=bool)
    filled[rows, columns] = True
    assert np.array_equal(full > 0, filled)
    seen = where.to_image(full) > 0.99
    tolerance = 1.5 * max(1.0, *(max(side) / SIDE for side in [shape]))
    peak = np.unravel_index(back.argmax(), shape)
    assert abs(peak[0] - at[0]) <= tolerance and abs(peak[1] - at[1]) <= tolerance
    assert np.abs(back - image)[seen].max() < 0.35
    if fit != "crop":
        assert seen.all()


def test_an_image_processor_that_keeps_the_aspect_ratio_shows_the_whole_image() -> None:
    where = place(Preprocess(size=(32, 32)), (40, 80), (16, 32))
    assert where.content == (slice(0, 16), slice(0, 32)) and where.to_image(np.ones((16, 32))).all()


def test_maps_keep_the_aspect_of_an_image_that_is_not_square() -> None:
    encoder = placed()
    images, labels = support((60, 120))
    head = PrototypeClassifier().fit(encoder.encode(images), labels)
    image, center = blob("right", np.random.default_rng(1), (60, 120))
    found = explain_image(encoder, head, image)
    assert found.label == "right"
    for heatmap in found.maps:
        assert heatmap.values.shape == (60, 120)
        hit, _ = shares(heatmap, center, 30)
        assert hit


def test_other_heads_and_encoders_have_occlusion_and_a_reason() -> None:
    encoder = placed()
    images, labels = support()
    vectors = encoder.encode(images)
    nearest = NeighborClassifier(1).fit(vectors, labels)
    image, center = blob("left", np.random.default_rng(1))
    alone = explain_image(encoder, nearest, image)
    assert [heatmap.kind for heatmap in alone.maps] == ["occlusion"]
    assert alone.reason is not None and "not NeighborClassifier: give prototypes=" in alone.reason
    assert alone.maps[0].verdict == "not checked by a second map"
    helped = explain_image(encoder, nearest, image, prototypes=fitted(encoder))
    assert [heatmap.kind for heatmap in helped.maps] == ["grad-cam", "occlusion"] and helped.reason is None

    pixels = load_encoder("pixels-16")
    found = explain_image(pixels, fitted(pixels), image)
    assert found.reason is not None and "no network whose gradients" in found.reason
    assert shares(found.maps[0], center, SIDE / 4)[0]

    flat = TorchEncoder(nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8)), Preprocess(size=(SIDE, SIDE)), name="f")
    found = explain_image(flat, fitted(flat), image)
    assert found.reason is not None and "this network has none: use occlusion" in found.reason
    with pytest.raises(NoFeatureMap, match="Grad-CAM needs a layer whose output is a map"):
        grad_cam(PrototypeScores(flat.network, fitted(flat)), flat.load(image), 0)


def test_a_transformers_encoder_is_followed_through_its_own_network(tmp_path: Path) -> None:
    from transformers import ViTConfig, ViTImageProcessorPil, ViTModel

    torch.manual_seed(0)
    options = {key: value for key, value in VIT.items() if key not in ("model_type", "num_channels")}
    ViTModel(ViTConfig(num_channels=3, **options), add_pooling_layer=False).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": SIDE, "width": SIDE}).save_pretrained(tmp_path)
    encoder = load_encoder(f"hf:{tmp_path}")
    found = explain_image(encoder, fitted(encoder), blob("left", np.random.default_rng(1))[0])
    assert [heatmap.kind for heatmap in found.maps] == ["grad-cam", "occlusion"] and not found.maps[0].flat
    with pytest.raises(ValueError, match=r"needs a TorchEncoder; got TransformersEncoder: make one with embeddings"):
        FineTunedClassifier(encoder).fit(np.zeros((1, 3 * SIDE * SIDE)), ["a"])


class Crowd(PrototypeClassifier):
    """A head whose answer to one query depends on the others."""

    transductive = True  # type: ignore[misc]

    def scores(self, vectors: Any) -> np.ndarray:
        assert len(vectors) == 1
        return super().scores(vectors)


def test_a_transductive_head_is_asked_about_one_copy_at_a_time() -> None:
    encoder = load_encoder("pixels-16")
    images, labels = support()
    head = Crowd().fit(encoder.encode(images), labels)
    image = blob("left", np.random.default_rng(1))[0]
    found = explain_image(encoder, head, image)
    plain = explain_image(encoder, fitted(encoder), image)
    assert np.array_equal(found.maps[0].values, plain.maps[0].values)


def test_the_question_and_what_is_explained() -> None:
    encoder = placed()
    head = fitted(encoder)
    image = blob("left", np.random.default_rng(1))[0]
    decision = head.decide(encoder.encode([image]))[0]
    margin, score = explain_image(encoder, head, image), explain_image(encoder, head, image, question="score")
    assert {heatmap.score for heatmap in margin.maps} == {decision.margin}
    assert {heatmap.score for heatmap in score.maps} == {decision.score}
    assert {heatmap.against for heatmap in margin.maps} == {"right"}
    assert {heatmap.against for heatmap in score.maps} == {None}
    assert np.array_equal(margin.image, image) and score.runner_up == "right"
    one = PrototypeClassifier().fit(encoder.encode([image]), ["only"])
    alone = explain_image(encoder, one, support()[0][2])
    assert alone.runner_up is None and alone.maps[0].against is None


def test_the_encoder_is_left_as_it_was() -> None:
    encoder = placed()
    head = fitted(encoder)
    explain_image(encoder, head, support()[0][0])
    assert encoder._take_fingerprint() == encoder.fingerprint
    for module in encoder.network.modules():
        assert not module._forward_hooks and not module._backward_hooks
        assert getattr(module, "inplace", True) is True
    assert all(weight.requires_grad and weight.grad is None for weight in encoder.network.parameters())


def test_occlusion_of_an_encoder_without_a_network_needs_no_torch() -> None:
    work = """
import sys
import numpy as np
import fewshot.heatmap_pictures, radshot.heatmap_files
from embeddings import load_encoder
from fewshot import PrototypeClassifier
from fewshot.heatmaps import explain_image
encoder = load_encoder("pixels-16")
images = list(np.random.default_rng(0).random((4, 20, 20)))
head = PrototypeClassifier().fit(encoder.encode(images), ["a", "a", "b", "b"])
assert len(explain_image(encoder, head, images[0]).maps) == 1
assert not {"torch", "monai", "highdicom", "transformers"} & set(sys.modules)
"""
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, "-c", work], cwd=root, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_verdicts_are_plain_words() -> None:
    values = np.ones((2, 2), dtype=np.float32)
    words = [HeatMap(values, "occlusion", "a", "b", 0.1, agreement).verdict for agreement in (0.5, 0.49, 0.19, None)]
    assert words == [
        "both maps agree (rank correlation 0.50)",
        "both maps agree in part (rank correlation 0.49)",
        "the maps disagree (rank correlation 0.19): rely on neither",
        "not checked by a second map",
    ]
    assert Explanation(values, "a", "b", ()).reason is None


def test_errors_are_one_clear_sentence() -> None:
    encoder = placed()
    head = fitted(encoder)
    image = support()[0][0]
    with pytest.raises(ValueError, match="question must be 'margin' or 'score'; got 'why'"):
        explain_image(encoder, head, image, question="why")
    with pytest.raises(ValueError, match="patch must be a share of the image's side, above 0 and at most 1; got 0"):
        explain_image(encoder, head, image, patch=0)
    aimless = fitted(encoder, center=encoder.encode([image])[0])
    with pytest.raises(ValueError, match="Nothing can be decided about this image"):
        explain_image(encoder, aimless, image)
    nearest = NeighborClassifier(1).fit(encoder.encode(support()[0]), ["x", "y"] * 6)
    with pytest.raises(ValueError, match=r"The prototypes have no class '[xy]': fit them to the head's support"):
        explain_image(encoder, nearest, image, prototypes=head)
