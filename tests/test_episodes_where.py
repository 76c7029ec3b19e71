"""Filters do what SQL says and nothing else."""

from __future__ import annotations

import time

import numpy as np
import pandas as pd
import pytest

import episodes.where
from episodes import ManifestError, rows_where

TABLE = pd.DataFrame(
    {
        "image": ["a.png", "b.png", "c d.png", "é.png"],
        "patient_id": ["007", "7", "8", "9"],
        "age": ["61", "", "9", "100"],
        "view": ["PA", "L", "", "pa"],
        "Finding group": ["viral", "it's", "viral", "none"],
        "score": [1.5, np.nan, -2.0, 3.0],
        "adult": [True, False, False, True],
    }
)


@pytest.mark.parametrize(
    ("expression", "rows"),
    [
        ("view = 'PA'", [0]),
        ("view == 'PA'", [0]),
        ("VIEW = 'PA'", [0]),
        ("view != 'PA'", [1, 3]),
        ("view IS NOT 'PA'", [1, 2, 3]),
        ("view IS NULL", [2]),
        ("view IS NOT NULL", [0, 1, 3]),
        ("view LIKE 'p%'", [0, 3]),
        ("view IN ('L', 'pa')", [1, 3]),
        ("view NOT IN ('L', 'pa')", [0]),
        ("age > 60", [0, 3]),
        ("age > '60'", [0, 3]),
        ("age BETWEEN 9 AND 61", [0, 2]),
        ("age = 9 OR age = 100", [2, 3]),
        ("NOT (age > 60) AND view IS NULL", [2]),
        ("patient_id = '007'", [0]),
        ("patient_id = '7'", [1]),
        ("patient_id = 7", [1]),
        ("\"Finding group\" = 'it''s'", [1]),
        ("[finding group] = 'viral'", [0, 2]),
        ("score < 0", [2]),
        ("score IS NULL", [1]),
        ("score * 2 = 3", [0]),
        ("adult", [0, 3]),
        ("adult = 0", [1, 2]),
        ("lower(view) = 'pa' AND length(image) > 4", [0, 3]),
        ("image = 'é.png'", [3]),
        ("image LIKE '% %'", [2]),
        ("'--;(' = '--;(' AND age = 9", [2]),
        ("1 = 2", []),
    ],
)
def test_expression_selects(expression: str, rows: list[int]) -> None:
    mask = rows_where(TABLE, expression)
    assert mask.dtype == np.bool_ and mask.shape == (4,)
    assert np.flatnonzero(mask).tolist() == rows


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("", "The row filter is empty"),
        ("  ", "The row filter is empty"),
        ("veiw = 'PA'", "no such column; it has image, patient_id, .*; did you mean 'view'?"),
        ("view = PA", "names 'PA', and the table has no such column.*text stands in single quotes: 'PA'"),
        ('view = "PA"', r'names "PA", and double quotes hold a column: there is no such column .*: \'PA\'\)\.'),
        ("view = 'PA", "a quote ' that is never closed"),
        ("(view = 'PA'", "a bracket that is never closed"),
        ("view = 'PA') OR (1", "a bracket that was never opened"),
        ("view =", "cannot be understood: near"),
        ("1; DROP TABLE rows", "must be one expression over the columns; ';' has no place in it"),
        ("1 -- x", "'--' has no place in it"),
        ("1 /* x */", "'/\\*' has no place in it"),
        ("view = ?", r"'\?' has no place in it"),
        ("view = :a", "':' has no place in it"),
        ("view = 'a\x00'", "cannot be understood|has no place"),
        ("(SELECT name FROM sqlite_master) = 'rows'", "asks for (a SELECT inside it|the table sqlite_master)"),
        ("view IN (SELECT view FROM rows)", "asks for a SELECT inside it"),
        ("EXISTS(SELECT 1)", "asks for a SELECT inside it"),
        ("view IN sqlite_master", "asks for"),
        ("load_extension('x')", "asks for the function load_extension"),
        ("randomblob(1000000000)", "asks for the function randomblob"),
        ("zeroblob(1000000000) = 1", "asks for the function zeroblob"),
        ("printf('%1000000000d', 1)", "asks for the function printf"),
        ("replace(view, 'a', 'b')", "asks for the function replace"),
        ("count(*) > 1", "asks for the function count"),
        ("max(age) > 1", "asks for the function max"),
        ("row_number() OVER () = 1", "asks for the function row_number"),
        ("ATTACH DATABASE 'x' AS y", "cannot be understood"),
        ("1 UNION SELECT 1", "cannot be understood"),
        ("1 LIMIT 1", "cannot be understood"),
        ("1 END, 2", "cannot be understood"),
        ("magic(view)", "cannot be understood: no such function: magic"),
        ("1 = 1 " * 2000, "has 12,000 characters; at most 10,000 are allowed"),
        ("(" * 2000 + "1" + ")" * 2000, "cannot be understood"),
        ("view LIKE '" + "%a" * 600 + "'", "cannot be understood: LIKE or GLOB pattern too complex"),
    ],
)
def test_expression_is_refused(expression: str, message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        rows_where(TABLE, expression)
    assert "\n" not in str(caught.value)


def test_a_slow_expression_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(episodes.where, "TIME_LIMIT", 0.05)
    table = pd.DataFrame({"a": ["x"] * 50_000})
    slow = " AND ".join(["a || a || a || a LIKE '%x%x%x%'"] * 100)
    begin = time.monotonic()
    with pytest.raises(ManifestError, match=r"took longer than 0\.05 seconds"):
        rows_where(table, slow)
    assert time.monotonic() - begin < 5


def test_odd_tables() -> None:
    assert rows_where(TABLE.iloc[:0], "age > 3").shape == (0,)
    with pytest.raises(ManifestError, match="no such column"):
        rows_where(TABLE.iloc[:0], "agee > 3")
    with pytest.raises(ManifestError, match="Columns 'age' and 'Age' differ only in case"):
        rows_where(pd.DataFrame({"age": ["1"], "Age": ["2"]}), "age = 1")
    quoted = pd.DataFrame({'a "b"': ["1", "2"]})
    assert rows_where(quoted, '"a ""b""" = 2').tolist() == [False, True]
    assert rows_where(pd.DataFrame({"day": pd.to_datetime(["2020-01-02", None])}), "day >= '2020'").tolist() == [
        True,
        False,
    ]
