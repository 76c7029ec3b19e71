"""Alignments against slow loops over their published formulas, and against pairs that do not belong together."""

from __future__ import annotations

import doctest
import math

import numpy as np
import pytest
from numpy.typing import NDArray

import zeroshot.alignment
from zeroshot import (
    ALIGNMENTS,
    AleAlignment,
    CcaAlignment,
    ContrastiveAlignment,
    EszslAlignment,
    LinearMap,
    RidgeAlignment,
    ZeroShotError,
    alignment_names,
    make_alignment,
)
from zeroshot.contrastive import LARGEST_SCALE

Rows = NDArray[np.float64]
IMAGE_DIM, TEXT_DIM = 7, 5


def pairs(n: int = 40, seed: int = 0, *, noise: float = 0.3) -> tuple[Rows, Rows]:
    """Images and texts that are two views of what lies behind both."""
    rng = np.random.default_rng([1, seed])
    view = np.random.default_rng(7)
    behind = rng.normal(size=(n, 4))
    images = behind @ view.normal(size=(4, IMAGE_DIM)) + 2 + noise * rng.normal(size=(n, IMAGE_DIM))
    texts = behind @ view.normal(size=(4, TEXT_DIM)) - 1 + noise * rng.normal(size=(n, TEXT_DIM))
    return images, texts


def of_classes(n: int = 36, classes: int = 4, seed: int = 0) -> tuple[Rows, Rows, list[int]]:
    """Images whose text vector is that of their class, so that rows of texts repeat."""
    rng = np.random.default_rng([2, seed])
    vectors = rng.normal(size=(classes, TEXT_DIM))
    codes = [i % classes for i in range(n)]
    images = vectors[codes] @ rng.normal(size=(TEXT_DIM, IMAGE_DIM)) + 0.6 * rng.normal(size=(n, IMAGE_DIM))
    return images, vectors[codes], codes


def slow_unit(row: Rows, mean: Rows) -> list[float]:
    moved = [float(x) - float(m) for x, m in zip(row, mean, strict=True)]
    length = math.sqrt(sum(x * x for x in moved))
    return [x / length for x in moved] if length else moved


def slow_prepared(rows: Rows) -> Rows:
    """Centred on their mean and of unit length, one number at a time."""
    mean = np.array([sum(float(row[j]) for row in rows) / len(rows) for j in range(rows.shape[1])])
    return np.array([slow_unit(row, mean) for row in rows])


def mean_square(rows: Rows) -> float:
    """The mean eigenvalue of rows' gram matrix: its trace over its size."""
    return sum(float(x) ** 2 for x in rows.ravel()) / rows.shape[1]


def slow_ridge(predictors: Rows, targets: Rows, alpha: float) -> Rows:
    """Least squares where the penalty is rows of its own: sqrt(penalty) times each weight should be 0."""
    size = predictors.shape[1]
    penalty = math.sqrt(alpha * mean_square(predictors)) * np.eye(size)
    left, right = np.vstack([predictors, penalty]), np.vstack([targets, np.zeros((size, targets.shape[1]))])
    return np.linalg.lstsq(left, right, rcond=None)[0]


@pytest.mark.parametrize("alpha", [1e-6, 0.3, 5.0])
@pytest.mark.parametrize("direction", ["to-text", "to-image"])
def test_ridge_is_penalised_least_squares(direction: str, alpha: float) -> None:
    images, texts = pairs()
    x, t = slow_prepared(images), slow_prepared(texts)
    found = RidgeAlignment(alpha=alpha, direction=direction).fit(images, texts).map_  # type: ignore[arg-type]
    if direction == "to-text":
        assert found.text_weights is None and found.image_weights is not None
        np.testing.assert_allclose(found.image_weights, slow_ridge(x, t, alpha), atol=1e-8)
    else:
        assert found.image_weights is None and found.text_weights is not None
        np.testing.assert_allclose(found.text_weights, slow_ridge(t, x, alpha), atol=1e-8)
    np.testing.assert_allclose(found.image_mean, images.mean(axis=0))
    np.testing.assert_allclose(found.text_mean, texts.mean(axis=0))


def test_scores_are_the_cosines_of_a_slow_loop() -> None:
    images, texts = pairs()
    found = CcaAlignment(dim=3).fit(images, texts).map_
    asked, said = pairs(6, seed=1)
    assert found.image_weights is not None and found.text_weights is not None
    scores = found.scores(asked, said)
    assert scores.shape == (6, 6)
    for i, image in enumerate(asked):
        u = np.array(slow_unit(image, images.mean(axis=0))) @ found.image_weights
        for j, text in enumerate(said):
            v = np.array(slow_unit(text, texts.mean(axis=0))) @ found.text_weights
            cosine = sum(a * b for a, b in zip(u, v, strict=True)) / math.sqrt(sum(u * u) * sum(v * v))
            assert scores[i, j] == pytest.approx(cosine, abs=1e-12)


def test_a_map_is_rebuilt_from_its_arrays_and_what_lies_at_the_mean_is_like_nothing() -> None:
    images, texts = pairs()
    for name in ALIGNMENTS:
        found = make_alignment(name).fit(images, texts).map_
        again = LinearMap.from_arrays(found.arrays())
        assert np.array_equal(again.scores(images, texts), found.scores(images, texts))
        assert not found.scores(found.image_mean[None], texts).any()


def test_a_map_that_does_not_fit_together_is_refused() -> None:
    p, d, k = np.zeros(3), np.zeros(2), np.ones((3, 2))
    with pytest.raises(ZeroShotError, match=r"holds the array 'text_mean'; this one does not"):
        LinearMap.from_arrays({"image_mean": p})
    with pytest.raises(ZeroShotError, match=r"a row for each number of the vectors they take"):
        LinearMap.from_arrays({"image_mean": p, "text_mean": d, "image_weights": k.T})
    with pytest.raises(ZeroShotError, match=r"two sides must end in one space, and hold finite numbers"):
        LinearMap.from_arrays({"image_mean": p, "text_mean": d})
    with pytest.raises(ZeroShotError, match=r"two sides must end in one space, and hold finite numbers"):
        LinearMap.from_arrays({"image_mean": p, "text_mean": d, "image_weights": k * np.nan})
    found = LinearMap.from_arrays({"image_mean": p, "text_mean": d, "image_weights": k})
    with pytest.raises(ZeroShotError, match=r"Image vectors have 4 dimensions, those the alignment was learnt from ha"):
        found.images(np.ones((1, 4)))
    with pytest.raises(ZeroShotError, match=r"Text vectors have 3 dimensions, .* have 2: were both made by the same"):
        found.texts(np.ones((1, 3)))


@pytest.mark.parametrize("balanced", [True, False])
def test_eszsl_is_its_explicit_formula(balanced: bool) -> None:
    images, texts, codes = of_classes(n=37)  # one class has an image more
    gamma, lam = 0.7, 0.2
    x, t = slow_prepared(images), slow_prepared(texts)
    classes = np.array([t[codes.index(code)] for code in range(4)])
    y = np.array([[1.0 if code == own else -1.0 for code in range(4)] for own in codes])
    if balanced:
        for code in range(4):
            y[:, code] -= sum(y[:, code]) / len(y)
    left = np.linalg.inv(x.T @ x + gamma * mean_square(x) * np.eye(IMAGE_DIM))
    right = np.linalg.inv(classes.T @ classes + lam * mean_square(classes) * np.eye(TEXT_DIM))
    found = EszslAlignment(gamma=gamma, lam=lam, balanced=balanced).fit(images, texts).map_
    assert found.image_weights is not None and found.text_weights is None
    np.testing.assert_allclose(found.image_weights, left @ x.T @ y @ classes @ right, atol=1e-10)


def test_canonical_correlations_are_those_of_a_direct_eigen_solve() -> None:
    images, texts = pairs()
    alpha = 0.05
    x, t = slow_prepared(images), slow_prepared(texts)
    cxx = x.T @ x + alpha * mean_square(x) * np.eye(IMAGE_DIM)
    ctt = t.T @ t + alpha * mean_square(t) * np.eye(TEXT_DIM)
    squares = np.linalg.eigvals(np.linalg.inv(cxx) @ x.T @ t @ np.linalg.inv(ctt) @ t.T @ x)
    expected = np.sqrt(sorted(squares.real.clip(0), reverse=True)[:TEXT_DIM])
    plain = CcaAlignment(alpha=alpha, power=0.0).fit(images, texts).map_
    assert plain.image_weights is not None and plain.text_weights is not None
    u, v = plain.image_weights, plain.text_weights
    np.testing.assert_allclose(u.T @ x.T @ t @ v, np.diag(expected), atol=1e-8)
    np.testing.assert_allclose(u.T @ cxx @ u, np.eye(TEXT_DIM), atol=1e-8)
    np.testing.assert_allclose(v.T @ ctt @ v, np.eye(TEXT_DIM), atol=1e-8)
    assert expected[0] > 0.9 > 0.3 > expected[4]  # four directions go together, the fifth does not
    weighted = CcaAlignment(alpha=alpha, power=2.0, dim=3).fit(images, texts).map_
    assert weighted.image_weights is not None and weighted.text_weights is not None
    np.testing.assert_allclose(np.abs(weighted.image_weights), np.abs(u[:, :3]) * expected[:3] ** 2, atol=1e-8)
    np.testing.assert_allclose(np.abs(weighted.text_weights), np.abs(v[:, :3]) * expected[:3] ** 2, atol=1e-8)


def test_ale_is_a_slow_descent_where_nothing_is_sampled() -> None:
    images, texts, codes = of_classes(n=12, classes=2)  # of two classes only the other can be drawn
    rate, margin, decay, seed = 0.2, 0.5, 0.1, 3
    x, t = slow_prepared(images), slow_prepared(texts)
    form = slow_ridge(x, t, 1.0)
    form = form / math.sqrt(sum(float(value) ** 2 for value in form.ravel()))
    for row in np.random.default_rng(seed).permutation(12):
        own, other = t[codes[0:2].index(codes[row])], t[codes[0:2].index(1 - codes[row])]
        lead = sum(x[row] @ form * own) - sum(x[row] @ form * other)
        if lead < margin:
            for i in range(IMAGE_DIM):
                for j in range(TEXT_DIM):  # of ranks 1 to 2 the weight of rank 1 is 1 / (1 + 1/2)
                    form[i, j] += rate / 1.5 * x[row, i] * (own[j] - other[j])
    form = form * (1 - decay)
    found = AleAlignment(rate=rate, margin=margin, epochs=1, decay=decay, seed=seed).fit(images, texts).map_
    assert found.image_weights is not None
    np.testing.assert_allclose(found.image_weights, form, atol=1e-9)


def test_ale_improves_the_ranking_it_starts_from_and_a_seed_gives_one_form() -> None:
    images, texts, codes = of_classes(n=160, classes=16)
    classes = np.array([texts[codes.index(code)] for code in range(16)])

    def mean_rank(found: LinearMap) -> float:
        scores = found.scores(images, classes)
        return float(np.mean([1 + sum(row > row[own]) for row, own in zip(scores, codes, strict=True)]))

    start, one, two, other = (
        AleAlignment(epochs=epochs, seed=seed).fit(images, texts).map_
        for epochs, seed in ((0, 0), (20, 0), (20, 0), (20, 1))
    )
    assert mean_rank(one) < 0.9 * mean_rank(start)
    assert one.image_weights is not None and other.image_weights is not None
    assert np.array_equal(one.image_weights, two.image_weights)  # type: ignore[arg-type]
    assert not np.array_equal(one.image_weights, other.image_weights)


@pytest.mark.parametrize("temperature", [0.1, 1e-3])
def test_the_contrastive_loss_is_that_of_a_slow_loop(temperature: float) -> None:
    images, texts = pairs(n=9)
    texts[3] = texts[7] = texts[1]  # three images of one report are no opposites
    x, t = slow_prepared(images), slow_prepared(texts)
    start = slow_ridge(x, t, 1.0)
    u = np.array([slow_unit(row @ start, np.zeros(TEXT_DIM)) for row in x])
    scale = min(1 / temperature, LARGEST_SCALE)
    logits = [[scale * sum(a * b for a, b in zip(u[i], t[j], strict=True)) for j in range(9)] for i in range(9)]

    def loss(rows: list[list[float]]) -> float:
        total = 0.0
        for i, row in enumerate(rows):
            whole = max(row) + math.log(sum(math.exp(value - max(row)) for value in row))
            same = [j for j in range(9) if np.allclose(t[i], t[j])]
            total += sum(whole - row[j] for j in same) / len(same)
        return total / 9

    expected = (loss(logits) + loss([list(column) for column in zip(*logits, strict=True)])) / 2
    found = ContrastiveAlignment(epochs=1, batch=9, noise=0.0, temperature=temperature).fit(images, texts)
    assert found.losses_ == [pytest.approx(expected, rel=1e-4)]


def test_contrastive_training_brings_pairs_together_and_is_seeded() -> None:
    images, texts = pairs(n=64, noise=0.5)

    def lead(found: LinearMap) -> float:
        scores = found.scores(images, texts)
        return float(np.diag(scores).mean() - scores[~np.eye(64, dtype=bool)].mean())

    def fit(seed: int) -> ContrastiveAlignment:
        return ContrastiveAlignment(epochs=40, batch=32, rate=0.02, decay=0.0, noise=0.0, seed=seed).fit(images, texts)

    one, two, other = fit(0), fit(0), fit(1)
    assert one.losses_[-1] < 0.8 * one.losses_[0] and len(one.losses_) == 40
    assert lead(one.map_) > lead(RidgeAlignment(direction="to-text").fit(images, texts).map_) + 0.02
    assert one.losses_ == two.losses_ != other.losses_
    assert np.array_equal(one.map_.scores(images, texts), two.map_.scores(images, texts))


def test_a_narrower_contrastive_space_keeps_the_strongest_directions_of_the_texts() -> None:
    images, texts = pairs(n=64)
    found = ContrastiveAlignment(dim=3, epochs=20).fit(images, texts).map_
    assert found.image_weights is not None and found.image_weights.shape == (IMAGE_DIM, 3)
    assert found.text_weights is not None and found.text_weights.shape == (TEXT_DIM, 3)
    assert (found.scores(images, texts).argmax(axis=1) == np.arange(64)).mean() > 0.2


@pytest.mark.parametrize("name", alignment_names())
def test_pairs_are_found_again_and_permuted_pairs_give_chance(name: str) -> None:
    images, texts = pairs(n=150, noise=0.2)
    asked, said = pairs(n=100, seed=1, noise=0.2)

    def share_in_ten(found: LinearMap) -> float:
        scores = found.scores(asked, said)
        return float(np.mean([sum(row > row[i]) < 10 for i, row in enumerate(scores)]))

    assert share_in_ten(make_alignment(name).fit(images, texts).map_) > 0.6  # chance is 0.1
    shuffled = texts[np.random.default_rng(3).permutation(150)]
    assert share_in_ten(make_alignment(name).fit(images, shuffled).map_) < 0.25


def test_names_and_the_nearest_name() -> None:
    assert alignment_names() == ("ridge", "ridge-to-text", "cca", "eszsl", "ale", "contrastive")
    assert isinstance(make_alignment("contrastive"), ContrastiveAlignment)
    assert make_alignment("ridge-to-text").direction == "to-text"  # type: ignore[attr-defined]
    with pytest.raises(ZeroShotError, match=r"no alignment 'rigde'; there are ridge, .*\. Did you mean 'ridge'\?"):
        make_alignment("rigde")
    with pytest.raises(ZeroShotError, match=r"no alignment 'contrast'; .* Did you mean 'contrastive'\?"):
        make_alignment("contrast")
    with pytest.raises(ZeroShotError, match=r"no alignment 'xyz'; there are .*, contrastive\.$"):
        make_alignment("xyz")


@pytest.mark.parametrize("name", alignment_names())
def test_what_cannot_be_aligned_is_refused(name: str) -> None:
    images, texts = pairs(n=6)
    with pytest.raises(ZeroShotError, match=r"two or more images, each with its text; got 6 images, 5 texts"):
        make_alignment(name).fit(images, texts[:5])
    with pytest.raises(ZeroShotError, match=r"two or more images, each with its text; got 1 images, 1 texts"):
        make_alignment(name).fit(images[:1], texts[:1])
    with pytest.raises(ZeroShotError, match=r"Image vectors must be finite; rows \[2\] hold NaN"):
        make_alignment(name).fit(np.where(np.arange(6)[:, None] == 2, np.nan, images), texts)
    with pytest.raises(ZeroShotError, match=r"Text vectors must be rows of shape \(n, d\); got an array of shape \(6,"):
        make_alignment(name).fit(images, texts[:, 0])


def test_options_that_cannot_be_are_refused() -> None:
    images, texts = pairs(n=6)
    with pytest.raises(ZeroShotError, match=r"direction must be 'to-text' or 'to-image'; got 'sideways'"):
        RidgeAlignment(direction="sideways").fit(images, texts)  # type: ignore[arg-type]
    for alignment in (RidgeAlignment(alpha=0.0), CcaAlignment(alpha=float("nan")), EszslAlignment(lam=-1.0)):
        with pytest.raises(ZeroShotError, match=r"A penalty must be a positive number; got"):
            alignment.fit(images, texts)
    for alignment in (EszslAlignment(), AleAlignment()):
        with pytest.raises(ZeroShotError, match=r"learns to tell classes apart; all texts are the same"):
            alignment.fit(images, np.ones((6, TEXT_DIM)))


def test_the_example_runs() -> None:
    assert doctest.testmod(zeroshot.alignment).failed == 0
