"""Heads by name."""

from __future__ import annotations

import numpy as np
import pytest

import fewshot
from embeddings import SimilarityHead
from fewshot import HEADS, NeighborClassifier, PrototypeClassifier, heads_for, make_head
from fewshot.registry import (
    COMPARED_HEADS,
    DEFAULT_HEAD,
    HEAD_OF,
    NEEDY_HEADS,
    PLAIN_HEADS,
    SET_HEADS,
    TRANSDUCTIVE_HEADS,
)


def test_the_default_is_one_of_them() -> None:
    assert DEFAULT_HEAD in HEADS


@pytest.mark.parametrize("name", sorted(set(HEADS) - {*NEEDY_HEADS, *SET_HEADS}))  # those need what an encoder brings
def test_every_head_learns_answers_and_starts_fresh(name: str) -> None:
    rng = np.random.default_rng(0)
    labels = [f"c{i % 3}" for i in range(18)]
    vectors = np.eye(3, 8)[[i % 3 for i in range(18)]] + 0.1 * rng.normal(size=(18, 8))
    head = make_head(name)
    assert head is not make_head(name)
    ids, groups = [f"i{i}" for i in range(18)], [f"p{i // 3}" for i in range(18)]
    assert head.fit(vectors, labels, ids=ids, groups=groups) is head
    assert head.predict(np.eye(3, 8)).tolist() == ["c0", "c1", "c2"]
    decision = head.decide(np.eye(3, 8)[:1])[0]
    assert decision.label == "c0" and decision.evidence and decision.counter_evidence
    assert all(labels[ids.index(n.id)] == n.label == "c0" for n in decision.evidence)


def test_the_centre_reaches_the_heads_that_need_one() -> None:
    center = np.array([1.0, 2.0])
    for name in ("prototypes", "nearest", "neighbors"):
        assert make_head(name, center=center).center is center
    assert make_head("nearest").k == 1
    assert make_head("prototypes-euclidean").metric == "euclidean"
    assert isinstance(make_head("prototypes"), PrototypeClassifier)
    assert isinstance(make_head("neighbors"), NeighborClassifier)


def test_a_learnt_comparison_brings_its_own_head() -> None:
    assert heads_for(None) == COMPARED_HEADS
    for comparison, head in HEAD_OF.items():
        assert heads_for(SimilarityHead(comparison)) == (*COMPARED_HEADS, head)
    assert heads_for(SimilarityHead("of a later version")) == COMPARED_HEADS
    assert set(HEADS) == {*PLAIN_HEADS, *HEAD_OF.values(), *NEEDY_HEADS, *SET_HEADS, *TRANSDUCTIVE_HEADS}
    assert set(COMPARED_HEADS) <= set(PLAIN_HEADS)
    free = set(HEADS) - {*NEEDY_HEADS, *SET_HEADS}
    assert [name for name in free if make_head(name).transductive] == list(TRANSDUCTIVE_HEADS)
    with pytest.raises(ValueError, match="relation module"):
        make_head("relation")
    with pytest.raises(ValueError, match="'distribution-calibrated' needs the statistics of the source's classes"):
        make_head("distribution-calibrated")


def test_an_unknown_head_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"^There is no head 'prototype'; there are .*\. Did you mean 'prototypes'\?$"):
        make_head("prototype")
    with pytest.raises(ValueError, match=r"^There is no head 'xyz'; there are [^?]*\.$"):
        make_head("xyz")


def test_the_public_names() -> None:
    assert fewshot.__all__ == sorted(fewshot.__all__, key=lambda name: (not name.isupper(), name))
    assert dir(fewshot) == sorted(fewshot.__all__)
    for name in fewshot.__all__:
        assert getattr(fewshot, name) is not None
    with pytest.raises(AttributeError, match="module 'fewshot' has no attribute 'PrototypeClasifier'"):
        _ = fewshot.PrototypeClasifier
