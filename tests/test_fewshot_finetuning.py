"""Fine-tuning: it starts as prototypes, changes only what it may, and each patient and class counts alike."""

from __future__ import annotations

import doctest
import math
from typing import Any

import numpy as np
import pytest
import torch

import fewshot.finetuning
from embeddings import Preprocess, TorchEncoder, build_backbone, load_encoder
from episodes import EpisodeSampler, evaluate
from fewshot import PrototypeClassifier
from fewshot.finetuning import FineTunedClassifier, image_rows
from fewshot.last_blocks import blocks_of, copy_owning
from fewshot.tuning import BATCH, LABEL_SMOOTHING, Tuning, _Batches, _loss, steps_for

VIT = {
    "model_type": "vit", "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32,
    "image_size": 32, "patch_size": 8, "num_channels": 1,
}  # fmt: skip
BACKBONES: dict[str, dict[str, Any]] = {
    "conv4": {"name": "conv4", "width": 8},
    "conv4 flatten": {"name": "conv4", "width": 8, "pooling": "flatten", "image_size": 32},
    "resnet12": {"name": "resnet12", "width": 4, "dropblock": 0.2},
    "transformers": {"name": "transformers", "config": VIT, "pooling": "cls"},
}


def encoder_of(kind: str = "conv4", *, mean: bool = False) -> TorchEncoder:
    options = dict(BACKBONES[kind])
    network = build_backbone(options.pop("name"), seed=0, **options)
    center = np.random.default_rng(3).normal(size=network.dim).astype(np.float32) * 0.1 if mean else None
    return TorchEncoder(network, Preprocess(size=(32, 32)), name=kind, source_mean=center)


def stripes(n: int, seed: int = 0) -> tuple[list[np.ndarray], list[str]]:
    """Faint stripes lie or stand, under a brightness that has nothing to do with it."""
    rng = np.random.default_rng(seed)
    images, labels = [], []
    for i in range(n):
        wave = 0.5 + 0.5 * np.sin(np.arange(32) * 1.2 + rng.uniform(0, 6))
        flat = np.tile(wave, (32, 1))
        picture = 0.2 * (flat if i % 2 else flat.T) + rng.uniform(0.1, 0.6) + 0.05 * rng.normal(size=(32, 32))
        images.append(np.clip(picture, 0, 1).astype(np.float32))
        labels.append("upright" if i % 2 else "lying")
    return images, labels


@pytest.mark.parametrize("classifier", ["cosine", "linear"])
@pytest.mark.parametrize("tune", ["head", "last-blocks"])
def test_without_a_step_it_is_the_prototype_classifier(classifier: str, tune: str) -> None:
    encoder = encoder_of(mean=True)
    images, labels = stripes(10)
    groups = ["p", "q", "p", "r", "s", "q", "t", "u", "v", "w"]
    rows = image_rows(encoder, images)
    clf = FineTunedClassifier(encoder, classifier=classifier, tune=tune, steps=0).fit(rows, labels, groups=groups)
    judge = PrototypeClassifier(center=encoder.source_mean).fit(encoder.encode(images), labels, groups=groups)
    queries, _ = stripes(6, seed=1)
    assert clf.steps_ == 0
    found, wanted = clf.scores(image_rows(encoder, queries)), judge.scores(encoder.encode(queries))
    if classifier == "linear":  # the mean of unit rows is brought to unit length in both
        assert clf.classes_.tolist() == ["lying", "upright"]
    assert found == pytest.approx(wanted, abs=2e-6)


@pytest.mark.parametrize("kind", BACKBONES)
def test_last_blocks_learn_and_nothing_else_changes(kind: str) -> None:
    encoder = encoder_of(kind)
    before = {name: value.clone() for name, value in encoder.network.state_dict().items()}
    wanted = [(weight.requires_grad, weight.data_ptr()) for weight in encoder.network.parameters()]
    images, labels = stripes(12)
    rows = image_rows(encoder, images)
    clf = FineTunedClassifier(encoder, tune="last-blocks", steps=3).fit(rows, labels)
    assert clf.steps_ == 6
    assert encoder._take_fingerprint() == encoder.fingerprint
    assert [(weight.requires_grad, weight.data_ptr()) for weight in encoder.network.parameters()] == wanted
    assert all(weight.grad is None for weight in encoder.network.parameters())
    assert all(torch.equal(value, before[name]) for name, value in encoder.network.state_dict().items())

    last = {id(weight) for weight in blocks_of(encoder.network)[-1]}
    names = {name for name, weight in encoder.network.named_parameters() if id(weight) in last}
    tuned = clf._tuned.network.state_dict()
    changed = {name for name, value in tuned.items() if not torch.equal(value, before[name])}
    assert changed and changed <= names  # running statistics of batch normalisation are not among them
    shared = dict(encoder.network.named_parameters())
    for name, weight in clf._tuned.network.named_parameters():
        assert (weight.data_ptr() == shared[name].data_ptr()) == (name not in names)


def test_the_head_alone_leaves_the_network_as_it_is() -> None:
    encoder = encoder_of()
    images, labels = stripes(8)
    clf = FineTunedClassifier(encoder).fit(image_rows(encoder, images), labels)
    assert all(
        torch.equal(one, two)
        for one, two in zip(encoder.network.parameters(), clf._tuned.network.parameters(), strict=True)
    )


@pytest.mark.parametrize(
    ("kind", "count", "last"),
    [
        ("conv4", 4, ["body.12", "body.13"]),
        ("resnet12", 4, ["body.3"]),
        ("transformers", 3, ["body.model.layers.1", "body.model.layernorm"]),
    ],
)
def test_blocks_of_known_networks(kind: str, count: int, last: list[str]) -> None:
    network = encoder_of(kind).network
    blocks = blocks_of(network)
    assert len(blocks) == count
    wanted = [id(weight) for name in last for weight in network.get_submodule(name).parameters()]
    assert sorted(map(id, blocks[-1])) == sorted(wanted)
    every = [id(weight) for block in blocks for weight in block]
    assert sorted(every) == sorted(map(id, network.parameters()))


def test_blocks_of_a_densenet_are_dense_blocks_and_transitions() -> None:
    network = build_backbone("densenet121", seed=0)
    blocks = blocks_of(network)
    features: Any = network.body.features
    last = [*features.denseblock4.parameters(), *features.norm5.parameters()]
    assert len(blocks) == 8 and [id(weight) for weight in blocks[-1]] == [id(weight) for weight in last]
    assert [id(weight) for weight in blocks[0]] == [
        id(weight) for part in (features.conv0, features.norm0) for weight in part.parameters()
    ]


def test_a_copy_owns_its_weights_and_is_in_evaluation_mode() -> None:
    network = build_backbone("conv4", width=4, seed=0).train()
    own = blocks_of(network)[-1]
    copy = copy_owning(network, own)
    assert network.training and not copy.training
    learning = [weight for weight in copy.parameters() if weight.requires_grad]
    assert len(learning) == len(own) and all(weight.requires_grad for weight in network.parameters())
    with torch.no_grad():
        for weight in learning:
            weight.add_(1)
    fresh = build_backbone("conv4", width=4, seed=0)
    assert all(torch.equal(one, two) for one, two in zip(network.parameters(), fresh.parameters(), strict=True))


@pytest.mark.parametrize(
    "options", [{"tune": "head"}, {"tune": "head", "classifier": "linear"}, {"tune": "last-blocks", "steps": 20}]
)
def test_it_learns_what_class_means_miss(options: dict[str, Any]) -> None:
    encoder = encoder_of("conv4 flatten")
    images, labels = stripes(60)
    rows = image_rows(encoder, images)
    queries, truth = stripes(200, seed=1)
    means = PrototypeClassifier().fit(encoder.encode(images), labels).predict(encoder.encode(queries))
    clf = FineTunedClassifier(encoder, **options).fit(rows, labels)
    right = np.mean(clf.predict(image_rows(encoder, queries)) == truth)
    assert right > np.mean(means == truth) + 0.02


def test_two_runs_with_one_seed_agree_and_seeds_differ() -> None:
    encoder = encoder_of()
    images, labels = stripes(8)
    rows = image_rows(encoder, images)
    made = [
        FineTunedClassifier(encoder, tune="last-blocks", steps=3, seed=seed).fit(rows, labels).scores(rows)
        for seed in (0, 0, 1)
    ]
    assert np.array_equal(made[0], made[1]) and not np.array_equal(made[0], made[2])


def test_order_of_registration_changes_no_bit() -> None:
    encoder = encoder_of()
    images, labels = stripes(9)
    rows, ids = image_rows(encoder, images), [f"i{i}" for i in range(9)]
    order = np.random.default_rng(0).permutation(9).tolist()
    one = FineTunedClassifier(encoder, tune="last-blocks", steps=2).fit(rows, labels, ids=ids)
    two = FineTunedClassifier(encoder, tune="last-blocks", steps=2).fit(
        rows[order], [labels[i] for i in order], ids=[ids[i] for i in order]
    )
    assert np.array_equal(one.scores(rows), two.scores(rows))


def test_a_patient_counts_once_however_many_images_he_has() -> None:
    encoder = encoder_of()
    images, labels = stripes(6)
    rows = image_rows(encoder, images)
    plain = FineTunedClassifier(encoder).fit(rows, labels, groups=list("abcdef"))
    again = [0, 0, 0, 1, 2, 3, 3, 4, 5]
    many = FineTunedClassifier(encoder).fit(
        rows[again], [labels[i] for i in again], groups=["abcdef"[i] for i in again]
    )
    unknown = FineTunedClassifier(encoder).fit(rows[again], [labels[i] for i in again])
    assert many.scores(rows) == pytest.approx(plain.scores(rows), abs=1e-5)
    assert np.abs(unknown.scores(rows) - plain.scores(rows)).max() > 1e-4


def test_loss_against_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    logits, targets, weights = rng.normal(size=(5, 3)), [0, 2, 1, 1, 0], rng.random(5)
    wanted = 0.0
    for row, target, weight in zip(logits, targets, weights, strict=True):
        total = sum(math.exp(x) for x in row)
        for c in range(3):
            share = LABEL_SMOOTHING / 3 + (1 - LABEL_SMOOTHING if c == target else 0)
            wanted -= weight * share * math.log(math.exp(row[c]) / total)
    found = _loss(torch.tensor(logits), torch.tensor(targets), torch.tensor(weights))
    assert float(found) == pytest.approx(wanted, rel=1e-9)


def test_a_large_support_is_drawn_fairly_and_a_small_one_taken_whole() -> None:
    n = 50
    shares = np.random.default_rng(0).random(n)
    shares /= shares.sum()
    images = np.zeros((n, 1, 2, 2), dtype=np.float32)
    tuning = Tuning(np.zeros(n, dtype=np.int64), shares, True, 1, None, None, 0)
    batches = _Batches(images, tuning, Preprocess(size=(2, 2)), torch.device("cpu"))
    counted = np.zeros(n)
    for _ in range(2000):
        _, rows, weights = batches.draw()
        np.add.at(counted, rows.numpy(), weights.numpy())
    assert counted / 2000 == pytest.approx(shares, abs=0.005)
    few = Tuning(np.zeros(3, dtype=np.int64), shares[:3], True, 1, None, None, 0)
    _, rows, weights = _Batches(images[:3], few, Preprocess(size=(2, 2)), torch.device("cpu")).draw()
    assert rows.tolist() == [0, 1, 2] and weights.tolist() == pytest.approx(shares[:3])
    assert [steps_for(count) for count in (2, BATCH, BATCH + 1, 10**6)] == [20, 20, 40, 600]


def test_augmented_images_stay_in_the_preprocessed_range() -> None:
    images, _ = stripes(4)
    preprocess = Preprocess(size=(32, 32), channels=3, mean=(0.4, 0.5, 0.6), std=(0.2, 0.25, 0.3))
    loaded = np.stack([preprocess(image) for image in images])
    clf = FineTunedClassifier(encoder_of())
    tuning = Tuning(np.array([0, 0, 1, 1]), np.full(4, 0.25), True, 1, clf.augmentation, None, 0)
    changed = _Batches(loaded, tuning, preprocess, torch.device("cpu")).draw()[0].numpy()
    grey = changed * np.reshape(preprocess.std, (1, 3, 1, 1)) + np.reshape(preprocess.mean, (1, 3, 1, 1))
    assert changed.shape == loaded.shape and grey.min() >= -1e-5 and grey.max() <= 1 + 1e-5
    assert grey[:, 0] == pytest.approx(grey[:, 2], abs=1e-5)  # one grey image, whatever the channel's scale
    assert 0.01 < np.abs(changed - loaded).mean() < 1


def test_evidence_is_nearest_by_the_cosine_of_tuned_features() -> None:
    encoder = encoder_of(mean=True)
    images, labels = stripes(10)
    rows, ids = image_rows(encoder, images), [f"i{i}" for i in range(10)]
    clf = FineTunedClassifier(encoder, tune="last-blocks", steps=3, n_evidence=2).fit(rows, labels, ids=ids)
    decision = clf.decide(rows[:1])[0]
    with torch.no_grad():
        features = clf._tuned.network(torch.from_numpy(rows.reshape(-1, 1, 32, 32))).double().numpy()
    features -= encoder.source_mean
    cosines = [float(features[0] @ f / np.linalg.norm(features[0]) / np.linalg.norm(f)) for f in features]
    own = sorted((i for i in range(10) if labels[i] == decision.label), key=lambda i: -cosines[i])[:2]
    assert [n.id for n in decision.evidence] == [ids[i] for i in own]
    assert [n.similarity for n in decision.evidence] == pytest.approx([cosines[i] for i in own], abs=1e-5)
    scores = clf.scores(rows[:1])[0]
    assert decision.score == pytest.approx(scores.max()) and decision.probability is None
    network = clf.score_network()
    with torch.no_grad():
        same = network(torch.from_numpy(rows[:1].reshape(1, 1, 32, 32))).numpy()[0]
    assert same == pytest.approx(scores, abs=1e-5)


def test_episodes_evaluate_takes_it_unchanged() -> None:
    encoder = encoder_of("conv4 flatten")
    images, labels = stripes(24)
    sampler = EpisodeSampler(labels, 2, 3, 3, groups=[f"p{i}" for i in range(24)], n_episodes=4, seed=0)
    report = evaluate(FineTunedClassifier(encoder), image_rows(encoder, images), labels, sampler)
    assert report.outcomes.answer.min() >= 0


def test_an_image_of_nan_is_undecided() -> None:
    encoder = encoder_of()
    images, labels = stripes(4)
    rows = image_rows(encoder, images)
    clf = FineTunedClassifier(encoder).fit(rows, labels)
    broken = np.full_like(rows[:1], np.nan)
    assert clf.predict(broken).tolist() == [None] and np.isnan(clf.scores(broken)).all()
    assert "NaN" in str(clf.decide(broken)[0].reason)


def test_errors_are_one_clear_sentence() -> None:
    encoder = encoder_of()
    images, labels = stripes(4)
    rows = image_rows(encoder, images)
    with pytest.raises(ValueError, match=r"tune must be 'head' or 'last-blocks'; got 'all'\."):
        FineTunedClassifier(encoder, tune="all").fit(rows, labels)
    with pytest.raises(ValueError, match="classifier must be 'cosine' or 'linear'; got 'svm'"):
        FineTunedClassifier(encoder, classifier="svm").fit(rows, labels)
    with pytest.raises(ValueError, match="last_blocks must be a whole number of at least 1; got 0"):
        FineTunedClassifier(encoder, last_blocks=0).fit(rows, labels)
    with pytest.raises(ValueError, match="steps must be a whole number of at least 0; got -1"):
        FineTunedClassifier(encoder, steps=-1).fit(rows, labels)
    with pytest.raises(ValueError, match=r"has 4 block\(s\) with weights; got last_blocks=5"):
        FineTunedClassifier(encoder, tune="last-blocks", last_blocks=5).fit(rows, labels)
    with pytest.raises(ValueError, match=r"images of 1 x 32 x 32 as rows of 1,024 .* got rows of 8: make them with"):
        FineTunedClassifier(encoder).fit(rows[:, :8], labels)
    with pytest.raises(ValueError, match=r"needs a TorchEncoder; got PixelEncoder: an encoder without a network"):
        FineTunedClassifier(load_encoder("pixels-32")).fit(rows, labels)
    with pytest.raises(ValueError, match="This FineTunedClassifier has no support yet: call fit first"):
        FineTunedClassifier(encoder).predict(rows)
    with pytest.raises(ValueError, match="comparison set is empty"):
        FineTunedClassifier(encoder).fit(np.empty((0, 1024)), [])
    with pytest.raises(ValueError, match="image_rows needs at least one image"):
        image_rows(encoder, [])


def test_the_example_is_true() -> None:
    failed, tried = doctest.testmod(fewshot.finetuning)
    assert tried and not failed
