"""Several semantic spaces in one answer, and refitting on images that are answered surely."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from zeroshot import (
    MultiView,
    RidgeAlignment,
    SemanticSpace,
    ZeroShotError,
    from_traits,
    self_train,
    targets_of,
)
from zeroshot.linear_map import LinearMap

Rows = NDArray[np.float64]


def task(seed: int = 0, n: int = 60) -> tuple[Rows, list[int], dict[str, Rows]]:
    """Images of six classes, and two views of what the classes are that each see half of it."""
    rng = np.random.default_rng(seed)
    whole = np.random.default_rng(99).normal(size=(6, 8))
    codes = [i % 6 for i in range(n)]
    images = whole[codes] + 0.5 * rng.normal(size=(n, 8))
    return images, codes, {"left": 3 * whole[:, :4], "right": whole[:, 4:]}


def test_scores_are_the_weighted_mean_of_views_over_their_spread() -> None:
    images, codes, classes = task()
    targets = {view: rows[codes] for view, rows in classes.items()}
    asked = task(1)[0][:9]
    learnt = {view: RidgeAlignment().fit(images, targets[view]).map_ for view in classes}
    spreads = {}
    for view, rows in classes.items():
        every = learnt[view].scores(images, rows).ravel().tolist()
        mean = sum(every) / len(every)
        spreads[view] = (sum((value - mean) ** 2 for value in every) / len(every)) ** 0.5
    for weights, shares in ((None, (0.5, 0.5)), ({"left": 3.0, "right": 1.0}, (0.75, 0.25))):
        scores = MultiView(weights=weights).fit(images, targets).scores(asked, classes)
        parts = [learnt[view].scores(asked, classes[view]) / spreads[view] for view in ("left", "right")]
        for i in range(9):
            for c in range(6):
                assert scores[i, c] == pytest.approx(shares[0] * parts[0][i, c] + shares[1] * parts[1][i, c], rel=1e-9)


def test_two_views_see_more_than_either() -> None:
    images, codes, classes = task()
    asked, truth, _ = task(2, n=240)
    targets = {view: rows[codes] for view, rows in classes.items()}

    def accuracy(views: list[str]) -> float:
        chosen = {view: targets[view] for view in views}
        scores = MultiView().fit(images, chosen).scores(asked, classes)
        return float((scores.argmax(axis=1) == truth).mean())

    assert accuracy(["left", "right"]) > max(accuracy(["left"]), accuracy(["right"])) > 1 / 6


def test_targets_are_the_vectors_of_each_images_class() -> None:
    traits = from_traits({"a": {"round": 1.0}, "b": {"round": 0.2, "dense": 0.7}})
    spaces: dict[str, SemanticSpace] = {"traits": traits}
    assert targets_of(spaces, ["b", "a", "b"])["traits"].tolist() == [[0.2, 0.7], [1.0, 0.0], [0.2, 0.7]]
    with pytest.raises(ZeroShotError, match=r"The semantic space has no class 'c'; it has a, b"):
        targets_of(spaces, ["c"])


def test_views_that_do_not_fit_are_refused() -> None:
    images, codes, classes = task()
    targets = {view: rows[codes] for view, rows in classes.items()}
    with pytest.raises(ZeroShotError, match=r"Several views take at least one"):
        MultiView().fit(images, {})
    with pytest.raises(ZeroShotError, match=r"The view 'right' was learnt: give it the vectors of the classes"):
        MultiView().fit(images, targets).scores(images, {"left": classes["left"]})
    with pytest.raises(ZeroShotError, match=r"The view 'right' was learnt: .*, and a weight"):
        MultiView(weights={"left": 1.0}).fit(images, targets).scores(images, classes)
    with pytest.raises(ZeroShotError, match=r"weights of the views must sum to more than 0"):
        MultiView(weights={"left": 0.0, "right": 0.0}).fit(images, targets).scores(images, classes)


def test_self_training_takes_the_surest_of_each_class_as_pairs() -> None:
    images, codes, classes = task(n=24)
    pool = task(3, n=41)[0]
    vectors = classes["left"]
    seen: list[tuple[Rows, Rows]] = []

    class Spy(RidgeAlignment):
        def fit(self, images: object, texts: object) -> RidgeAlignment:  # type: ignore[override]
            seen.append((np.asarray(images), np.asarray(texts)))
            return super().fit(images, texts)  # type: ignore[arg-type]

    found = self_train(images, vectors[codes], pool, vectors, Spy, rounds=2, share=0.6)
    assert isinstance(found, LinearMap) and len(seen) == 3
    before = RidgeAlignment().fit(images, vectors[codes]).map_
    for most, (rows, words) in zip((3, 5), seen[1:], strict=True):  # 0.3 and 0.6 of 41 images over 6 classes
        scores = before.scores(pool, vectors)
        expected: list[tuple[int, int]] = []
        for code in range(6):
            own = [i for i in range(41) if max(range(6), key=lambda c, i=i: scores[i, c]) == code]
            lead = {i: scores[i, code] - max(scores[i, c] for c in range(6) if c != code) for i in own}
            expected += [(i, code) for i in sorted(own, key=lambda i: -lead[i])[:most]]
        assert np.array_equal(rows, np.concatenate([images, pool[[i for i, _ in expected]]]))
        assert np.array_equal(words, np.concatenate([vectors[codes], vectors[[c for _, c in expected]]]))
        before = RidgeAlignment().fit(rows, words).map_
    assert np.array_equal(before.scores(pool, vectors), found.scores(pool, vectors))


@pytest.mark.parametrize(("share", "rounds"), [(0.0, 1), (1.1, 1), (0.5, 0)])
def test_a_share_that_cannot_be_is_refused(share: float, rounds: int) -> None:
    images, codes, classes = task(n=12)
    with pytest.raises(ZeroShotError, match=r"a share in \(0, 1\] and at least one round; got"):
        self_train(images, classes["left"][codes], images, classes["left"], RidgeAlignment, share=share, rounds=rounds)
