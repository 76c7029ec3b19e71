"""Batches of a training: random access, balance, and the targets of each kind."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from episodes import EpisodeError, EpisodeSampler, MultiLabelEpisodeSampler
from fewshot.batches import BALANCE, EpisodeBatches, ImageBatches, MultiLabelBatches, class_targets
from fewshot.memory import kept_memory
from fewshot.multilabel import MultiLabelTargets

CPU = torch.device("cpu")
CODES = {"a": 0, "b": 1, "c": 2}


def test_episode_batches_are_the_samplers_episodes_in_the_caches_rows() -> None:
    labels = [name for name in "abc" for _ in range(5)]
    sampler = EpisodeSampler(labels, 2, 1, 2, n_episodes=5, seed=3)
    rows = np.arange(100, 115)
    batches = EpisodeBatches(sampler, rows, CODES, size=2, device=CPU)
    for number, episodes in ((0, (0, 1)), (1, (2, 3)), (2, (4,))):
        batch = batches.draw(number)
        assert batch.size == len(episodes) == len(batch.targets)
        expected = [rows[part] for i in episodes for part in (*sampler[i].support, *sampler[i].query)]
        assert batch.rows.tolist() == np.concatenate(expected).tolist()
        for targets, i in zip(batch.targets, episodes, strict=True):
            assert [tuple(CODES)[code] for code in targets.codes] == list(sampler[i].classes)
            assert targets.support.tolist() == [0, 1] and targets.query.tolist() == [0, 0, 1, 1]
            assert targets.n_way == 2


def test_multilabel_batches_keep_every_label() -> None:
    labels = [("a",), ("a", "b"), ("b",), ("c",), ("a", "c"), ("d",), ("d",)] * 6
    sampler = MultiLabelEpisodeSampler(labels, 2, 2, 3, n_episodes=3, seed=0, k_negative=1)
    batch = MultiLabelBatches(sampler, np.arange(len(labels)) + 7, size=2, device=CPU).draw(1)
    assert batch.size == 1 and isinstance(batch.targets[0], MultiLabelTargets)
    episode = sampler[2]
    assert batch.rows.tolist() == [*(episode.support + 7), *(episode.query + 7)]
    assert np.array_equal(batch.targets[0].query.numpy(), episode.query_labels)


def test_images_are_drawn_by_the_root_of_their_class_and_evenly_by_patient() -> None:
    # class a: 16 patients of one image; class b: one patient of 30 images and three of one
    labels = [("a",)] * 16 + [("b",)] * 33
    groups = [f"a{i}" for i in range(16)] + ["b0"] * 30 + ["b1", "b2", "b3"]
    batches = ImageBatches(labels, groups, np.arange(49), CODES, size=1, seed=0, device=CPU)
    drawn = Counter(groups[int(batches.draw(i).rows[0])] for i in range(6000))
    of_a = sum(count for name, count in drawn.items() if name.startswith("a"))
    expected = 16**BALANCE / (16**BALANCE + 4**BALANCE)
    assert of_a / 6000 == pytest.approx(expected, abs=0.03)
    for name in ("b0", "b1", "b2", "b3"):
        assert drawn[name] / (6000 - of_a) == pytest.approx(1 / 4, abs=0.04)


def test_a_batch_repeats_no_image_depends_on_its_number_alone_and_leaves_the_unlabelled_out() -> None:
    labels = [("a",), (), ("b",), ("c",), ()]
    batches = ImageBatches(labels, None, np.arange(5), CODES, size=64, seed=1, device=CPU)
    batch = batches.draw(4)
    assert sorted(batch.rows.tolist()) == [0, 2, 3] and batch.size == 1
    assert [tuple(CODES)[code] for code in batch.targets] == [labels[row][0] for row in batch.rows]
    again = ImageBatches(labels, None, np.arange(5), CODES, size=64, seed=1, device=CPU).draw(4)
    assert again.rows.tolist() == batch.rows.tolist()
    assert any(batches.draw(i).rows.tolist() != batch.rows.tolist() for i in range(5))
    none = ImageBatches([()] * 5, None, np.arange(5), {}, size=64, seed=1, device=CPU).draw(0)
    assert sorted(none.rows.tolist()) == [0, 1, 2, 3, 4] and set(none.targets.tolist()) == {-1}


def test_an_episode_that_cannot_be_drawn_has_a_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = [name for name in "abc" for _ in range(5)]
    sampler = EpisodeSampler(labels, 2, 1, 2, n_episodes=6, seed=3)
    draw = EpisodeSampler._draw

    def fail(self: EpisodeSampler, i: int) -> object:
        if i in (2, 3):
            raise EpisodeError("no such episode")
        return draw(self, i)

    def no_block(self: EpisodeSampler, start: int, stop: int) -> object:
        raise EpisodeError("no such episode")

    expected = [sampler[i] for i in (0, 1, 4, 4, 4, 5)]
    monkeypatch.setattr(EpisodeSampler, "_draw", fail)
    monkeypatch.setattr(EpisodeSampler, "block", no_block)
    batches = EpisodeBatches(sampler, np.arange(15), CODES, size=1, device=CPU)
    for number, episode in enumerate(expected):
        assert batches.draw(number).rows.tolist() == np.concatenate([*episode.support, *episode.query]).tolist()


def test_targets_are_classes_or_zeros_and_ones() -> None:
    assert class_targets([("b",), (), ("a",)], CODES).tolist() == [1, -1, 0]
    assert class_targets([("b", "a"), (), ("c",)], CODES).tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 1]]


def test_memory_is_given_back_even_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="inside"), kept_memory():
        torch.zeros(1 << 20).clone()
        raise RuntimeError("inside")
