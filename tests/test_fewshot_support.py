"""The checks and similarities every head stands on."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewshot.support import (
    Support,
    check_queries,
    class_array,
    insufficient,
    is_missing,
    prepare,
    similarities,
    sorted_classes,
)


def rows(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_rows_are_put_in_id_order_with_all_that_belongs_to_them() -> None:
    vectors = rows(4, 3)
    support = Support(vectors, ["b", "a", "b", "a"], ids=["3", "10", "x", "2"], groups=["p", None, "q", "p"])
    assert support.ids == ["10", "2", "3", "x"]
    assert support.labels == ["a", "a", "b", "b"]
    assert support.groups == [("image", "10"), ("patient", "p"), ("patient", "p"), ("patient", "q")]
    assert support.classes == ["a", "b"]
    assert support.targets.tolist() == [0, 0, 1, 1]
    assert np.array_equal(support.vectors, vectors[[1, 3, 0, 2]])


def test_an_unknown_patient_is_nobody_elses() -> None:
    support = Support(rows(4, 2), "aaaa", ids="wxyz", groups=[None, float("nan"), np.float32("nan"), "p"])
    assert len(set(support.groups)) == 4


@pytest.mark.parametrize("metric", ["cosine", "euclidean"])
def test_similarities_against_a_slow_loop(metric: str) -> None:
    queries, others, center = rows(5, 7), rows(6, 7, 1), rows(1, 7, 2)[0].astype(float)
    got = similarities(prepare(queries, metric, center), prepare(others, metric, center), metric)
    for i in range(5):
        for j in range(6):
            a = [float(x) - c for x, c in zip(queries[i], center, strict=True)]
            b = [float(x) - c for x, c in zip(others[j], center, strict=True)]
            if metric == "cosine":
                dot = math.fsum(x * y for x, y in zip(a, b, strict=True))
                expected = dot / math.sqrt(math.fsum(x * x for x in a) * math.fsum(y * y for y in b))
            else:
                expected = -math.fsum((x - y) ** 2 for x, y in zip(a, b, strict=True))
            assert got[i, j] == pytest.approx(expected, rel=1e-12, abs=1e-12)


@given(
    n=st.integers(1, 40),
    m=st.integers(1, 12),
    d=st.integers(1, 300),
    seed=st.integers(0, 99),
    metric=st.sampled_from(["cosine", "euclidean"]),
)
@settings(max_examples=80, deadline=None)
def test_a_row_by_itself_gives_the_bits_it_gives_in_company(n: int, m: int, d: int, seed: int, metric: str) -> None:
    zero = np.zeros(d)
    queries, others = rows(m, d, seed), prepare(rows(n, d, seed + 1), metric, zero)
    together = similarities(prepare(queries, metric, zero), others, metric)
    for i in range(m):
        alone = similarities(prepare(queries[i : i + 1], metric, zero), others, metric)
        assert alone.tobytes() == together[i : i + 1].tobytes()
    for j in range(n):
        column = similarities(prepare(queries, metric, zero), others[j : j + 1], metric)
        assert np.ascontiguousarray(together[:, j]).tobytes() == column[:, 0].tobytes()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, others = prepare(rows(9, 5), "euclidean", np.zeros(5)), prepare(rows(4, 5, 1), "euclidean", np.zeros(5))
    whole = similarities(queries, others, "euclidean")
    monkeypatch.setattr("fewshot.support.CHUNK_ELEMENTS", 45)
    assert np.array_equal(similarities(queries, others, "euclidean"), whole)


def test_a_cosine_is_never_beyond_one() -> None:
    unit = prepare(rows(200, 33), "cosine", np.zeros(33))
    assert np.abs(similarities(unit, unit, "cosine")).max() <= 1


def test_rows_are_laid_out_alike_whatever_they_came_in() -> None:
    given = rows(7, 40)
    for laid_out in (given, np.asfortranarray(given), given[::-1][::-1], given.astype(float), given.tolist()):
        checked = check_queries(laid_out, 40)
        assert checked.flags.c_contiguous and checked.dtype == np.float32 and np.array_equal(checked, given)


def test_a_zero_row_stays_zero() -> None:
    assert not prepare(np.zeros((1, 3), np.float32), "cosine", np.zeros(3)).any()


def test_classes_sort_and_keep_their_type() -> None:
    assert sorted_classes([3, 1, 3, 2]) == [1, 2, 3]
    assert sorted_classes(["b", 2, "a", 1]) == [1, 2, "a", "b"]
    assert class_array(["a", "bb"]).tolist() == ["a", "bb"]
    tuples = class_array([("left", 1), ("right", 2)])
    assert tuples.shape == (2,) and tuples[1] == ("right", 2)


def test_missing_is_none_or_nan_and_nothing_else() -> None:
    assert [is_missing(x) for x in (None, float("nan"), np.float64("nan"))] == [True] * 3
    assert [is_missing(x) for x in ("", "nan", 0, 0.0, (), "007")] == [False] * 6


def test_insufficient_says_why() -> None:
    queries = np.array([[1, 0], [np.nan, 0], [2, 3], [np.inf, 1]], np.float32)
    reasons = insufficient(queries, "cosine", np.array([2.0, 3.0]))
    assert reasons[0] is None
    assert "NaN or infinity" in str(reasons[1]) and "NaN or infinity" in str(reasons[3])
    assert "no direction" in str(reasons[2])
    assert insufficient(queries, "euclidean", np.array([2.0, 3.0]))[2] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), r"^The comparison set is empty: register at least one image before asking\.$"),
        ((np.empty((0, 4)), []), r"^The comparison set is empty"),
        (([1.0, 2.0], ["a", "b"]), r"^Support vectors must be rows of shape \(n, d\); got an array of shape \(2,\)\.$"),
        (([[1.0], [2.0]], ["a"]), r"^2 support vectors need 2 labels; got 1\.$"),
        (([[1.0], [np.nan]], ["a", "b"]), r"^Support vectors must be finite; rows \[1\] hold NaN or infinity\.$"),
        (([[1.0], [2.0]], ["a", None]), r"^Every support image needs a class; rows \[1\] have the label None or NaN"),
        (([[1.0], [2.0]], [float("nan"), "a"]), r"rows \[0\] have the label None or NaN"),
    ],
)
def test_errors(arguments: tuple[object, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Support(*arguments)


def test_errors_of_ids_and_groups() -> None:
    with pytest.raises(ValueError, match=r"^2 support vectors need 2 ids; got 1\.$"):
        Support([[1.0], [2.0]], ["a", "b"], ids=["x"])
    with pytest.raises(ValueError, match=r"^2 support vectors need 2 groups; got 3\.$"):
        Support([[1.0], [2.0]], ["a", "b"], groups=["x", "y", "z"])
    with pytest.raises(ValueError, match=r"^Support ids must be distinct; 'x' occurs more than once\.$"):
        Support([[1.0], [2.0]], ["a", "b"], ids=["x", "x"])
