"""Retrieval between images and texts, counted by a slow loop."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from zeroshot import RetrievalReport, ZeroShotError, retrieval

Table = NDArray[np.float64]


def task(seed: int = 0, *, signal: float = 1.5) -> tuple[Table, list[str], list[str]]:
    """24 images: some cases have two with a text each, and some texts are those of several cases."""
    rng = np.random.default_rng([6, seed])
    texts = [f"report {i}" for i in range(24)]
    texts[5] = texts[9] = texts[14] = "normal"
    texts[20] = "  report 3 "
    groups = [f"case {i}" for i in range(24)]
    groups[1], groups[7], groups[10] = groups[0], groups[6], groups[9]
    distinct = [text.strip() for text in texts]
    scores = rng.normal(size=(24, 24)) + signal * np.eye(24)
    first = {text: distinct.index(text) for text in distinct}
    return scores[:, [first[text] for text in distinct]], texts, groups  # equal texts score alike


def slow(scores: Table, texts: list[str], groups: list[str], k: int) -> tuple[float, float]:
    """Share of distinct texts with a right image among k, and of images with a right text among k."""
    said = [text.strip() for text in texts]
    distinct = list(dict.fromkeys(said))

    def right(image: int, text: str) -> bool:
        """Whether an image carries the text, or another image of its case does."""
        return any(said[other] == text and groups[other] == groups[image] for other in range(len(said)))

    column = {text: said.index(text) for text in distinct}
    to_image = []
    for text in distinct:
        best = sorted(range(len(said)), key=lambda i, text=text: -scores[i, column[text]])[:k]
        to_image.append(any(right(i, text) for i in best))
    to_text = []
    for i in range(len(said)):
        best = sorted(distinct, key=lambda text, i=i: -scores[i, column[text]])[:k]
        to_text.append(any(right(i, text) for text in best))
    return sum(to_image) / len(to_image), sum(to_text) / len(to_text)


@pytest.mark.parametrize("k", [1, 2, 5, 30])
def test_recall_is_that_of_a_slow_loop(k: int) -> None:
    for seed in range(4):
        scores, texts, groups = task(seed)
        found = retrieval(scores, texts, groups=groups, ks=(k,))
        to_image, to_text = slow(scores, texts, groups, k)
        assert found.text_to_image[k].estimate == pytest.approx(to_image)
        assert found.image_to_text[k].estimate == pytest.approx(to_text)
        assert (found.images, found.texts) == (24, 21)
        if k < 30:
            assert found.text_to_image[k].low <= to_image <= found.text_to_image[k].high


def test_an_image_of_the_same_case_and_one_with_the_same_text_are_hits() -> None:
    texts, groups = ["x", "y", "x", "z"], ["p", "p", "q", "r"]
    scores = np.zeros((4, 4))
    scores[1, 0] = scores[1, 2] = 9.0  # for "x" image 1 is best, which shares a case with image 0
    scores[0, 1] = 9.0  # for "y" image 0 is best, of the same case
    scores[2, 3] = 9.0  # for "z" image 2 is best, of another case: wrong
    found = retrieval(scores, texts, groups=groups, ks=(1,))
    assert found.text_to_image[1].estimate == pytest.approx(2 / 3)
    scores = np.zeros((4, 4))
    scores[2, 0] = scores[2, 2] = 9.0  # image 2 is of the text "x" too
    found = retrieval(scores, texts, groups=groups, ks=(1,))
    assert found.image_to_text[1].estimate == pytest.approx(3 / 4)  # images 0, 1 and 2; 3 is taken for "x"
    assert found.texts == 3


def test_a_perfect_and_a_random_table() -> None:
    n = 200
    texts, groups = [f"t{i}" for i in range(n)], list(range(n))
    perfect = retrieval(np.eye(n), texts, groups=groups)
    assert all(part.estimate == part.low == part.high == 1.0 for part in perfect.text_to_image.values())
    chance = retrieval(np.random.default_rng(0).normal(size=(n, n)), texts, groups=groups, ks=(10,))
    assert chance.text_to_image[10].estimate == pytest.approx(0.05, abs=0.04)
    assert chance.image_to_text[10].estimate == pytest.approx(0.05, abs=0.04)


def test_a_seed_gives_one_report_and_more_images_of_a_case_make_it_no_surer() -> None:
    scores, texts, groups = task()
    one, two, other = (retrieval(scores, texts, groups=groups, ks=(2,), seed=seed) for seed in (0, 0, 1))
    assert one == two != other and isinstance(one, RetrievalReport)
    twice = retrieval(
        np.kron(scores, np.ones((2, 2))),
        [text for text in texts for _ in range(2)],
        groups=[group for group in groups for _ in range(2)],
        ks=(2,),
    )
    assert twice.image_to_text[2].low == pytest.approx(one.image_to_text[2].low)
    assert twice.image_to_text[2].high == pytest.approx(one.image_to_text[2].high)


def test_what_does_not_fit_is_refused() -> None:
    scores, texts, groups = task()
    with pytest.raises(ZeroShotError, match=r"as many images as texts and cases; got \(23, 24\) and 24"):
        retrieval(scores[:23], texts, groups=groups)
    with pytest.raises(ZeroShotError, match=r"as many images as texts and cases; got \(24, 24\) and 3"):
        retrieval(scores, texts, groups=groups[:3])
    with pytest.raises(ZeroShotError, match=r"as many images as texts and cases; got \(1, 1\) and 1"):
        retrieval(scores[:1, :1], texts[:1], groups=groups[:1])
    with pytest.raises(ZeroShotError, match=r"Scores have 24 dimensions, those of the texts have 23"):
        retrieval(scores, texts[:23], groups=groups)
