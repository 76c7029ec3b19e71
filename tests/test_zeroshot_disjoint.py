"""Words for classes never seen: each class's place is predicted by a map that saw no image of it."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from zeroshot import RidgeAlignment, SemanticSpace, ZeroShotError
from zeroshot.disjoint import class_disjoint_priors
from zeroshot.generalized import deal

NAMES = tuple("abcdefg")


def task() -> tuple[NDArray[np.float64], NDArray[np.float64], list[str], SemanticSpace]:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(7, 5))
    labels = [NAMES[i % 7] for i in range(70)] + ["other"] * 10
    texts = np.concatenate([vectors[[i % 7 for i in range(70)]], rng.normal(size=(10, 5))])
    texts[::11] = 0.0
    images = texts @ rng.normal(size=(5, 8)) + 0.3 * rng.normal(size=(80, 8))
    phrases = {name: (f"{name} one", f"{name} two") for name in NAMES}
    said = {name: vectors[row] + 0.1 * rng.normal(size=(2, 5)) for row, name in enumerate(NAMES)}
    return images, texts, labels, SemanticSpace("descriptions", NAMES, vectors, None, phrases, said)


def test_no_image_of_a_class_takes_part_in_where_it_is_said_to_lie() -> None:
    images, texts, labels, space = task()
    found = class_disjoint_priors(images, texts, labels, space)
    assert set(found) == set(NAMES)
    parts = deal(space.vectors, 5)
    assert len(set(parts.tolist())) == 5
    for name, part in zip(NAMES, parts.tolist(), strict=True):
        away = {other for other, own in zip(NAMES, parts.tolist(), strict=True) if own == part}
        kept = [i for i, label in enumerate(labels) if label not in away and texts[i].any()]
        learnt = RidgeAlignment().fit(images[kept], texts[kept]).map_
        phrases, vectors = found[name]
        assert phrases == space.phrases[name] and vectors.dtype == np.float32
        np.testing.assert_allclose(vectors, learnt.texts(space.phrase_vectors[name]), atol=1e-6)
        changed = images.copy()  # whatever its images look like
        changed[[i for i, label in enumerate(labels) if label == name]] = 99.0
        again = class_disjoint_priors(changed, texts, labels, space)[name][1]
        assert np.array_equal(again, vectors)


def test_classes_without_images_are_left_out_and_one_alone_is_refused() -> None:
    images, texts, labels, space = task()
    kept = [i for i, label in enumerate(labels) if label in ("a", "c", "other")]
    found = class_disjoint_priors(images[kept], texts[kept], [labels[i] for i in kept], space)
    assert set(found) == {"a", "c"}
    with pytest.raises(ZeroShotError, match=r"Leaving classes out takes two that have images; got 1"):
        class_disjoint_priors(images, texts, ["a"] * 80, space)
    with pytest.raises(ZeroShotError, match=r"Text vectors have 4 dimensions, those of the space have 5"):
        class_disjoint_priors(images, texts[:, :4], labels, space)
