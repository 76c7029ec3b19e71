"""SupervisedNetwork: cross-entropies against slow loops, unlabelled rows left out, two classifiers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from fewshot import TrainingConfig
from fewshot.methods import build_network
from fewshot.supervised import LOWEST_TEMPERATURE, CosineClassifier, SupervisedNetwork
from fewshot.training_config import TrainingError


class Flatten(nn.Module):
    """A backbone of one linear layer over the pixels; its forward pass heeds autocast as any layer does."""

    dim = 6

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 6)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.flatten(1))


def network(n_classes: int = 4, **options: object) -> SupervisedNetwork:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return SupervisedNetwork(Flatten(), n_classes, **options)


def images(n: int = 9, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 1, 4, 4, generator=torch.Generator().manual_seed(seed))


def slow_logits(net: SupervisedNetwork, pictures: torch.Tensor) -> list[list[float]]:
    """Logits of every image by plain arithmetic."""
    vectors = net.backbone(pictures).detach().double().tolist()
    classifier = net.classifier
    weights = classifier.weight.detach().double().tolist()
    biases = classifier.bias.detach().double().tolist()
    table = []
    for vector in vectors:
        row = []
        for k, weight in enumerate(weights):
            dot = sum(a * b for a, b in zip(vector, weight, strict=True))
            if isinstance(classifier, CosineClassifier):
                lengths = math.sqrt(sum(a * a for a in vector)) * math.sqrt(sum(b * b for b in weight))
                temperature = classifier.temperature or math.exp(-classifier.log_scale.item())
                row.append(dot / lengths / temperature + biases[0])
            else:
                row.append(dot + biases[k])
        table.append(row)
    return table


def slow_cross_entropy(table: list[list[float]], targets: list[int], smoothing: float) -> tuple[float, float]:
    total, right, count = 0.0, 0, 0
    for row, target in zip(table, targets, strict=True):
        if target < 0:
            continue
        norm = math.log(sum(math.exp(x) for x in row))
        for k, logit in enumerate(row):
            wanted = (1 - smoothing) * (k == target) + smoothing / len(row)
            total -= wanted * (logit - norm)
        right += max(range(len(row)), key=row.__getitem__) == target
        count += 1
    return total / count, right / count


def slow_binary(table: list[list[float]], targets: list[list[float]]) -> tuple[float, float]:
    total, right, count = 0.0, 0, 0
    for row, wanted in zip(table, targets, strict=True):
        if not any(wanted):
            continue
        for logit, one in zip(row, wanted, strict=True):
            chance = 1 / (1 + math.exp(-logit))
            total -= math.log(chance) if one else math.log(1 - chance)
        right += wanted[max(range(len(row)), key=row.__getitem__)] == 1
        count += 1
    return total / count / len(table[0]), right / count


SINGLE = torch.tensor([0, 3, -1, 2, 2, 1, -1, 0, 3])
SEVERAL = torch.tensor(
    [[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 1, 1], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1.0],
     [0, 0, 0, 1]]
)  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"metric": "cosine"}, {"metric": "cosine", "temperature": 0.3}])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_one_class_each_against_a_slow_loop(options: dict, smoothing: float) -> None:
    net = network(label_smoothing=smoothing, **options)
    loss, accuracy = net.loss(images(), SINGLE)
    slow, right = slow_cross_entropy(slow_logits(net, images()), SINGLE.tolist(), smoothing)
    assert loss.item() == pytest.approx(slow, rel=1e-5)
    assert accuracy == pytest.approx(right)
    assert 0 < accuracy < 1


@pytest.mark.parametrize("options", [{}, {"metric": "cosine"}])
def test_several_classes_against_a_slow_loop(options: dict) -> None:
    net = network(label_smoothing=0.2, **options)  # which means nothing here
    loss, accuracy = net.loss(images(), SEVERAL)
    slow, right = slow_binary(slow_logits(net, images()), SEVERAL.tolist())
    assert loss.item() == pytest.approx(slow, rel=1e-5)
    assert accuracy == pytest.approx(right)
    assert 0 < accuracy < 1


@pytest.mark.parametrize("targets", [SINGLE, SEVERAL], ids=["one", "several"])
def test_unlabelled_images_change_nothing(targets: torch.Tensor) -> None:
    net = network()
    kept = (targets >= 0) if targets.ndim == 1 else targets.any(1)
    loss, accuracy = net.loss(images(), targets)
    alone, accuracy_alone = net.loss(images()[kept], targets[kept])
    assert 0 < int(kept.sum()) < len(targets)
    assert torch.allclose(loss, alone) and accuracy == accuracy_alone
    loss.backward()
    with_them = net.backbone.layer.weight.grad.clone()
    net.zero_grad()
    alone.backward()
    assert torch.allclose(with_them, net.backbone.layer.weight.grad, atol=1e-7)


@pytest.mark.parametrize("targets", [torch.full((9,), -1), torch.zeros(9, 4)], ids=["one", "several"])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_a_batch_without_labels_moves_nothing(targets: torch.Tensor, metric: str) -> None:
    net = network(metric=metric)
    loss, accuracy = net.loss(images(), targets)
    assert (loss.item(), accuracy) == (0.0, 0.0)
    loss.backward()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in net.parameters())


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("targets", [SINGLE, SEVERAL], ids=["one", "several"])
def test_the_gradient_reaches_every_weight(metric: str, targets: torch.Tensor) -> None:
    net = network(metric=metric)
    net.loss(images(), targets)[0].backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert net.backbone.layer.weight.grad.abs().min() > 0
    assert net.classifier.weight.grad.abs().min() > 0


def test_the_cosine_heeds_directions_only_and_its_temperature_has_a_floor() -> None:
    net = network(metric="cosine")
    vectors = torch.randn(5, 6, generator=torch.Generator().manual_seed(2))
    before = net.classifier(vectors)
    with torch.no_grad():
        net.classifier.weight.mul_(torch.tensor([[3.0], [0.1], [1.0], [40.0]]))
    assert torch.allclose(net.classifier(vectors * 7), before, atol=1e-4)
    with torch.no_grad():
        net.classifier.log_scale.fill_(30.0)
    assert (net.classifier(vectors) - net.classifier.bias).abs().max() <= 1 / LOWEST_TEMPERATURE * 1.0001
    assert "log_scale" not in dict(network(metric="cosine", temperature=0.1).classifier.named_parameters())


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("n_classes", [2, 50])
def test_binary_training_starts_at_a_guess(metric: str, n_classes: int) -> None:
    bias = network(n_classes, metric=metric).classifier.bias
    assert torch.allclose(bias.sigmoid(), torch.full_like(bias, 1 / n_classes))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("targets", [SINGLE, SEVERAL], ids=["one", "several"])
def test_it_learns(metric: str, targets: torch.Tensor) -> None:
    net = network(metric=metric)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    first = net.loss(images(), targets)[0].item()
    for _ in range(150):
        optimizer.zero_grad()
        loss, accuracy = net.loss(images(), targets)
        loss.backward()
        optimizer.step()
    assert accuracy == 1.0 and loss.item() < first / 4


def test_the_classifier_computes_in_full_precision_whatever_the_backbone_does() -> None:
    net = network(metric="cosine")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert net.backbone(images()).dtype == torch.bfloat16
        vectors = net.backbone(images()).float()
        logits = net(images())
        assert net.loss(images(), SINGLE)[0].dtype == torch.float32
    assert logits.dtype == torch.float32
    assert torch.equal(logits, net.classifier(vectors))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_it_is_built_from_a_configuration(metric: str) -> None:
    config = TrainingConfig(method="supervised", metric=metric, temperature=0.5)
    net = build_network(Flatten(), config, 7)
    assert isinstance(net, SupervisedNetwork)
    assert net(images()).shape == (9, 7) and net.views == 1 and net.label_smoothing == 0.0
    assert isinstance(net.classifier, CosineClassifier if metric == "cosine" else nn.Linear)
    assert getattr(net.classifier, "temperature", None) == (0.5 if metric == "cosine" else None)
    assert net.similarity_head() is None


@pytest.mark.parametrize(
    ("n_classes", "options", "message"),
    [
        (1, {}, r"^Supervised training needs at least 2 classes; got 1\.$"),
        (3, {"label_smoothing": 1.0}, r"^label_smoothing must lie in \[0, 1\); got 1\.0\.$"),
        (3, {"metric": "cosin"}, r"^metric must be 'euclidean' or 'cosine'; got 'cosin'\.$"),
    ],
)
def test_what_cannot_be_built_is_refused(n_classes: int, options: dict, message: str) -> None:
    with pytest.raises(TrainingError, match=message):
        SupervisedNetwork(Flatten(), n_classes, **options)


def test_targets_that_do_not_fit_are_refused() -> None:
    net = network()
    with pytest.raises(ValueError, match=r"^9 images need targets of shape \(9,\); got \(8,\)\.$"):
        net.loss(images(), SINGLE[:8])
    with pytest.raises(ValueError, match=r"^9 images need targets of shape \(9, 4\); got \(9, 3\)\.$"):
        net.loss(images(), SEVERAL[:, :3])
    with pytest.raises(ValueError, match=r"^The network has 4 classes; got class 4\.$"):
        net.loss(images(), SINGLE + 1)
