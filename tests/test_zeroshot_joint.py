"""Training an image encoder by texts: it learns, a seed gives one encoder, and the loss is the one that is written."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from embeddings import Augmentation, TfidfTextEncoder, TorchEncoder
from zeroshot import JointTraining, RidgeAlignment, ZeroShotError, train_by_text
from zeroshot.joint import _Losses

WHERE = ("upper left", "upper right", "lower left", "lower right")
STILL = Augmentation(rotation=0, shift=0, zoom=0, brightness=0, contrast=0, gamma=0, noise=0.01)
SMALL = JointTraining(
    backbone="conv4",
    backbone_config={"width": 8, "depth": 3, "pooling": "flatten", "image_size": 32},
    image_size=32,
    epochs=4,
    batch=16,
    rate=1e-2,
    augmentation=STILL,
)


def pairs(n: int = 64, seed: int = 0) -> tuple[list[NDArray[np.float32]], list[str], NDArray[np.intp]]:
    """A bright square in one quarter of a dark image, and a sentence that says in which."""
    rng = np.random.default_rng([12, seed])
    codes = rng.integers(0, 4, n)
    images, texts = [], []
    for code in codes:
        image = (0.15 + 0.05 * rng.normal(size=(32, 32))).astype(np.float32)
        row, column = 16 * (code // 2) + rng.integers(2, 6), 16 * (code % 2) + rng.integers(2, 6)
        image[row : row + 8, column : column + 8] += 0.7
        images.append(image.clip(0, 1))
        texts.append(f"A {('bright', 'dense')[rng.integers(2)]} square in the {WHERE[code]} quarter.")
    return images, texts, codes


@pytest.fixture(scope="module")
def words() -> TfidfTextEncoder:
    return TfidfTextEncoder(dim=16).fit(pairs()[1])


@pytest.fixture(scope="module")
def trained(words: TfidfTextEncoder) -> tuple[TorchEncoder, list[tuple[int, int, float]]]:
    images, texts, _ = pairs()
    told: list[tuple[int, int, float]] = []
    return train_by_text(images, texts, words, config=SMALL, progress=lambda *now: told.append(now)), told


def test_it_learns_to_see_what_the_texts_tell(
    trained: tuple[TorchEncoder, list[tuple[int, int, float]]], words: TfidfTextEncoder
) -> None:
    encoder, told = trained
    assert [(now, of) for now, of, _ in told] == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert told[-1][2] < 0.75 * told[0][2]
    images, texts, _ = pairs()
    vectors = encoder.encode(images)
    assert vectors.shape == (64, encoder.dim) and np.isfinite(vectors).all()
    np.testing.assert_allclose(encoder.source_mean, vectors.mean(axis=0), atol=1e-4)
    assert encoder.name == "conv4-by-text"
    found = RidgeAlignment().fit(vectors, words.encode(texts)).map_
    asked, _, codes = pairs(seed=1)
    said = words.encode([f"Square in the {where} quarter." for where in WHERE])
    assert (found.scores(encoder.encode(asked), said).argmax(axis=1) == codes).mean() > 0.8


def test_a_seed_gives_one_encoder_whatever_the_global_one_is(
    trained: tuple[TorchEncoder, list[tuple[int, int, float]]], words: TfidfTextEncoder
) -> None:
    images, texts, _ = pairs()
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = train_by_text(images, texts, words, config=SMALL, name="mine")
    assert torch.equal(torch.get_rng_state(), state)
    assert again.name == "mine" and np.array_equal(again.encode(images), trained[0].encode(images))
    other = train_by_text(images, texts, words, config=replace(SMALL, seed=1, epochs=1))
    assert other.fingerprint != again.fingerprint


def test_images_without_a_text_and_images_that_cannot_be_read_are_left_out(words: TfidfTextEncoder) -> None:
    images, texts, _ = pairs(40)
    texts[3], texts[8] = "", "zebra"
    sources = [*images[:20], "nowhere.png", *images[21:]]
    encoder = train_by_text(sources, texts, words, config=replace(SMALL, epochs=1))
    assert isinstance(encoder, TorchEncoder) and encoder.training is not None
    assert encoder.training["pairs"] == 37 and encoder.training["text_encoder"] == words.fingerprint
    with pytest.raises(
        ZeroShotError, match=r"takes at least 32 images with a text; of 40 that have one 10 can be read"
    ):
        train_by_text([*images[:10], *["nowhere.png"] * 30], pairs(40)[1], words, config=replace(SMALL, epochs=1))


def test_too_few_pairs_and_lists_that_do_not_fit_are_refused(words: TfidfTextEncoder) -> None:
    images, texts, _ = pairs(40)
    with pytest.raises(ZeroShotError, match=r"takes at least 32 images with a text; 31 have one"):
        train_by_text(images[:31], texts[:31], words, config=SMALL)
    with pytest.raises(ZeroShotError, match=r"40 images need as many texts and groups; got 39 texts"):
        train_by_text(images, texts[:39], words, config=SMALL)
    with pytest.raises(ZeroShotError, match=r"40 images need as many texts and groups"):
        train_by_text(images, texts, words, groups=["p"] * 3, config=SMALL)


def test_the_loss_is_that_of_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    texts = ["square left", "circle left", "square right", "square left", "circle right"]
    targets = rng.normal(size=(5, 6))
    settings = replace(SMALL, word_loss=0.7, words=4, temperature=0.2)
    losses = _Losses(3, targets, texts, settings)
    vectors = torch.from_numpy(rng.normal(size=(4, 3))).float()
    rows, same = torch.tensor([3, 0, 4, 1]), torch.tensor([7, 7, 2, 5])
    centred = targets - targets.mean(axis=0)
    u = vectors.numpy() @ losses.projection.weight.detach().numpy().T
    logits = [
        [float(u[i] @ centred[j] / (np.linalg.norm(u[i]) * np.linalg.norm(centred[j]))) / 0.2 for j in rows.tolist()]
        for i in range(4)
    ]

    def one_way(table: list[list[float]]) -> float:
        total = 0.0
        for i, row in enumerate(table):
            whole = math.log(sum(math.exp(value) for value in row))
            own = [j for j in range(4) if same[i] == same[j]]
            total += sum(whole - row[j] for j in own) / len(own)
        return total / 4

    contrast = (one_way(logits) + one_way([list(column) for column in zip(*logits, strict=True)])) / 2
    assert losses.naming is not None
    naming = 0.0
    for i, row in enumerate(rows.tolist()):
        said = losses.naming(vectors[i]).detach().tolist()
        for word, value in zip(("circle", "left", "right", "square"), said, strict=True):
            chance = 1 / (1 + math.exp(-value))
            naming -= math.log(chance if word in texts[row].split() else 1 - chance)
    found = float(losses(vectors, rows, same).detach())
    assert found == pytest.approx(contrast + 0.7 * naming / 40, rel=1e-5)
    plain = _Losses(3, targets, texts, replace(settings, word_loss=0.0))
    assert plain.naming is None and float(plain(vectors, rows, same).detach()) == pytest.approx(contrast, rel=1e-5)
