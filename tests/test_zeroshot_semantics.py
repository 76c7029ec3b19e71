"""Semantic spaces from descriptions, reports and traits, the built-in sets, and remarks about doubtful words."""

from __future__ import annotations

import doctest
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import zeroshot.prompts
from embeddings import TfidfTextEncoder
from episodes import FINDINGS as PHANTOMS
from episodes.chestxray14 import CHESTXRAY14_FINDINGS
from zeroshot import (
    DescriptionError,
    Prompts,
    SemanticSpace,
    ZeroShotError,
    built_in_descriptions,
    built_in_traits,
    from_descriptions,
    from_reports,
    from_traits,
    prompts_for,
    read_descriptions,
    read_traits,
)
from zeroshot.prompts import BUILT_IN
from zeroshot.traits import BUILT_IN as BUILT_IN_TRAITS

WORDS = ("fluid", "air", "round", "dense", "left", "no")


class Counter:
    """A text encoder whose vectors are how often each known word occurs; it reads so many letters at most."""

    name, dim, fingerprint = "counter", len(WORDS), "0" * 64

    def __init__(self, reads: int = 40) -> None:
        self.reads = reads

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        rows = [[text[: self.reads].lower().replace(".", "").split().count(word) for word in WORDS] for text in texts]
        return np.array(rows, dtype=np.float32).reshape(len(texts), len(WORDS))

    def truncated(self, texts: Sequence[str]) -> list[bool]:
        return [len(text) > self.reads for text in texts]

    def save(self, folder: object) -> Path:
        raise NotImplementedError


def slow_mean(sentences: Sequence[str]) -> list[float]:
    """The mean of unit vectors of the sentences that say anything, one number at a time."""
    total, count = [0.0] * len(WORDS), 0
    for sentence in sentences:
        words = sentence.lower().replace(".", "").split()
        row = [float(words.count(word)) for word in WORDS]
        length = sum(x * x for x in row) ** 0.5
        if length:
            count += 1
            total = [a + b / length for a, b in zip(total, row, strict=True)]
    return [value / count for value in total]


# -- descriptions ----------------------------------------------------------------------------------------------------


def test_a_class_is_the_mean_of_its_sentences_unit_vectors() -> None:
    said = {"effusion": ["Fluid fluid left.", "dense fluid"], "mass": "round dense"}
    space = from_descriptions(said, Counter())
    assert (space.kind, space.classes, len(space)) == ("descriptions", ("effusion", "mass"), 2)
    np.testing.assert_allclose(space.vectors, [slow_mean(said["effusion"]), slow_mean(["round dense"])], atol=1e-7)
    assert space.absent is None and space.remarks == ()
    assert space.phrases == {"effusion": ("Fluid fluid left.", "dense fluid"), "mass": ("round dense",)}
    np.testing.assert_array_equal(space.phrase_vectors["effusion"], Counter().encode(said["effusion"]))


def test_absent_forms_are_kept_where_every_class_has_one() -> None:
    effusion = Prompts(("fluid",), ("no fluid", "no"))
    both = from_descriptions({"effusion": effusion, "mass": Prompts(("round",), ("no round",))}, Counter())
    assert both.absent is not None
    np.testing.assert_allclose(both.absent, [slow_mean(effusion.absent), slow_mean(["no round"])], atol=1e-7)
    assert from_descriptions({"effusion": effusion, "mass": "round"}, Counter()).absent is None


def test_sentences_are_prepared_as_the_texts_were_and_shown_as_they_were_written() -> None:
    space = from_descriptions({"a": ["LEFT zzz"]}, Counter(), prepare=lambda texts: [f"{t} air" for t in texts])
    assert space.phrases["a"] == ("LEFT zzz",)
    np.testing.assert_allclose(space.vectors, [slow_mean(["left air"])], atol=1e-7)


def test_rows_and_parts_of_a_space() -> None:
    said = {
        "a": Prompts(("fluid",), ("no fluid",)),
        "b": Prompts(("air",), ("no air",)),
        "c": Prompts(("left",), ("no",)),
    }
    space = from_descriptions(said, Counter())
    np.testing.assert_array_equal(space.rows(["c", "a", "c"]), space.vectors[[2, 0, 2]])
    part = space.only(["c", "a"])
    assert part.classes == ("c", "a") and set(part.phrases) == set(part.phrase_vectors) == {"a", "c"}
    assert part.absent is not None and space.absent is not None
    np.testing.assert_array_equal(part.absent, space.absent[[2, 0]])
    for ask in (space.rows, space.only):
        with pytest.raises(ZeroShotError, match=r"The semantic space has no class 'd'; it has a, b, c"):
            ask(["a", "d"])


def test_a_description_that_names_another_class_is_remarked_upon() -> None:
    said = {
        "Mass": "dense round, larger than a nodule",
        "Nodule": "round, no nodules else",
        "Pleural Effusion": "fluid of an effusion",
        "Effusion": "fluid of massive amount",
    }
    remarks = from_descriptions(said, Counter()).remarks
    # its own name, a part of it, a plural and a longer word are none
    assert remarks == (
        "The description of 'Mass' names another class, 'Nodule' ('dense round, larger than a nodule'): it draws the "
        "two together.",
    )


def test_sentences_without_a_known_word_are_left_out_and_said() -> None:
    space = from_descriptions({"a": ["zebra", "fluid", "okapi"], "b": "air"}, Counter())
    assert space.phrases["a"] == ("fluid",) and len(space.phrase_vectors["a"]) == 1
    np.testing.assert_allclose(space.rows(["a"]), [slow_mean(["fluid"])])
    (remark,) = space.remarks
    assert remark == "About 'a' 2 of 3 sentences hold no known word and were left out: 'zebra'."


def test_an_absent_form_of_unknown_words_leaves_the_class_its_presence() -> None:
    space = from_descriptions({"a": Prompts(("fluid",), ("zebra",)), "b": Prompts(("air",), ("fluid",))}, Counter())
    assert space.absent is not None and np.isnan(space.absent[0]).all() and np.isfinite(space.absent[1]).all()
    assert space.remarks == ("Of the absence of 'a' the texts say nothing: only its presence counts.",)


def test_a_text_longer_than_the_encoder_takes_is_said_to_be_cut() -> None:
    long = "fluid " * 30 + "air"
    space = from_descriptions({"a": long, "b": "air"}, Counter())
    assert space.vectors[0, WORDS.index("air")] == 0
    (remark,) = space.remarks
    assert remark.startswith("A text about 'a' is longer than the encoder takes; its end was cut: 'fluid fluid")


@pytest.mark.parametrize(
    ("said", "problem"),
    [
        ({}, r"There is no class to describe: give each class's name at least one sentence"),
        ({"a": "fluid", "b": ""}, r"The class 'b' has no text: describe it in at least one sentence"),
        ({"a": []}, r"The class 'a' has no text"),
        ({"a": [" ", ""]}, r"The class 'a' has no text"),
        (
            {"a": "fluid", "b": ["zebra", "okapi"]},
            r"encoder 'counter' knows no word of the description of 'b' that matters",
        ),
    ],
)
def test_a_class_of_which_nothing_is_said_is_refused(said: dict[str, str], problem: str) -> None:
    with pytest.raises(DescriptionError, match=problem):
        from_descriptions(said, Counter())


# -- reports ---------------------------------------------------------------------------------------------------------


def test_a_class_is_the_mean_of_the_reports_that_mention_it() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(12, 4))
    vectors[3] = 0.0
    labels = [["a"], ["a", "b"], [], ["b"], ["a"], ["b"], ["c"], [], ["a"], ["b", "c"], ["a"], []]
    space = from_reports(vectors, labels)
    assert (space.kind, space.classes, space.absent, space.phrases) == ("reports", ("a", "b", "c"), None, {})
    for name, row in zip("abc", space.vectors, strict=True):
        mine = [vectors[i] / (np.sqrt(sum(vectors[i] ** 2)) or 1.0) for i in range(12) if name in labels[i]]
        np.testing.assert_allclose(row, sum(mine) / len(mine), atol=1e-12)
    assert space.remarks == ("'c' is mentioned by 2 of 12 reports; its vector is theirs.",)
    assert from_reports(vectors, labels, ["b", "a"]).classes == ("b", "a")
    with pytest.raises(DescriptionError, match=r"No report mentions 'd': describe it in words, or leave it out"):
        from_reports(vectors, labels, ["a", "d"])
    with pytest.raises(ZeroShotError, match=r"12 reports need 12 collections of labels; got 3"):
        from_reports(vectors, labels[:3])


# -- prompts ---------------------------------------------------------------------------------------------------------


def test_templates_are_filled_with_every_term_once() -> None:
    prompts = prompts_for("pneumothorax", ["collapsed lung", "pneumothorax", " "])
    assert len(prompts.present) == len(prompts.absent) == 8
    assert prompts.present[:2] == ("Pneumothorax.", "There is pneumothorax.")
    assert "No evidence of collapsed lung." in prompts.absent
    with pytest.raises(DescriptionError, match=r"A class needs a name that is not empty"):
        prompts_for("  ")
    with pytest.raises(DescriptionError, match=r"Prompts need at least one sentence about what is seen when the class"):
        Prompts((" ",), ("absent",))


def test_a_file_of_descriptions(tmp_path: Path) -> None:
    file = tmp_path / "said.toml"
    file.write_text(
        """
plain = "One sentence."
several = ["One.", " Two. ", ""]
[both]
sentences = ["A round shadow."]
terms = ["nodule", "coin lesion"]
absent = ["Nothing round."]
""",
        encoding="utf-8",
    )
    found = read_descriptions(file)
    assert found["plain"] == Prompts(("One sentence.",)) and found["several"] == Prompts(("One.", "Two."))
    ensemble = prompts_for("nodule", ["coin lesion"])
    assert found["both"] == Prompts(("A round shadow.", *ensemble.present), ("Nothing round.", *ensemble.absent))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("", r"'.*said\.toml' describes no class"),
        ("a = ", r"said\.toml' cannot be read as TOML"),
        ("a = 3", r"The class 'a' in '.*said\.toml' must be described by texts; got 3"),
        ("a = ['x', 3]", r"The class 'a' in .* must be described by texts; got \['x', 3\]"),
        ("a = ''", r"The class 'a' in .* has no text: describe it in at least one sentence"),
        ("[a]\nabsent = ['No a.']", r"The class 'a' in .* has no text"),
        ("[a]\nsentence = 'x'", r"A class has sentences, terms and absent; 'a' in .* has 'sentence'"),
    ],
)
def test_a_file_that_describes_nothing_is_refused(tmp_path: Path, content: str, problem: str) -> None:
    (tmp_path / "said.toml").write_text(content, encoding="utf-8")
    with pytest.raises(DescriptionError, match=problem):
        read_descriptions(tmp_path / "said.toml")


def test_a_file_that_is_missing_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DescriptionError, match=r"There is no file of descriptions '.*missing\.toml'"):
        read_descriptions(tmp_path / "missing.toml")
    (tmp_path / "said.toml").write_bytes(b"a = '\xff'")
    with pytest.raises(DescriptionError, match=r"cannot be read as TOML"):
        read_descriptions(tmp_path / "said.toml")


def test_the_built_in_sets_describe_the_classes_of_the_data() -> None:
    chest = built_in_descriptions("chestxray14")
    assert set(chest) == {*CHESTXRAY14_FINDINGS, "No Finding"} and len(chest) == 15
    assert set(built_in_descriptions("phantoms")) == set(PHANTOMS) and len(PHANTOMS) == 23
    assert len(built_in_descriptions("anatomy")) == 5
    for name in BUILT_IN:
        for label, prompts in built_in_descriptions(name).items():
            assert len(prompts.present) >= 1, (name, label)
            assert all(text.strip() and text[-1] in ".!?" for text in (*prompts.present, *prompts.absent)), label
    assert all(prompts.absent for prompts in chest.values())  # several labels per image can be asked for
    chest.pop("Mass")
    assert "Mass" in built_in_descriptions("chestxray14")  # a caller's copy is theirs
    with pytest.raises(DescriptionError, match=r"no built-in descriptions 'phantom'; .* Did you mean 'phantoms'\?"):
        built_in_descriptions("phantom")


def test_built_in_descriptions_become_a_space_of_distinct_classes() -> None:
    for name in BUILT_IN:
        said = built_in_descriptions(name)
        encoder = TfidfTextEncoder(dim=64, min_count=1).fit(
            [text for prompt in said.values() for text in prompt.present]
        )
        space = from_descriptions(said, encoder)
        assert space.vectors.shape == (len(said), encoder.dim)
        unit = space.vectors / np.linalg.norm(space.vectors, axis=1, keepdims=True)
        assert (unit @ unit.T - 2 * np.eye(len(said))).max() < 0.95, name


# -- traits ----------------------------------------------------------------------------------------------------------


def test_a_class_is_its_traits_and_what_is_not_named_is_zero() -> None:
    space = from_traits({"a": {"round": 1, "dense": 0.5}, "b": {"dense": 0.25}, "c": {}})
    assert (space.kind, space.classes, space.remarks) == ("traits", ("a", "b", "c"), ())
    assert space.vectors.tolist() == [[1.0, 0.5], [0.0, 0.25], [0.0, 0.0]]
    alike = from_traits({"a": {"round": 1.0}, "b": {"round": 1.0, "dense": 0.0}})
    assert alike.remarks == ("'b' and 'a' have the same traits: nothing tells them apart.",)


@pytest.mark.parametrize(
    ("traits", "problem"),
    [
        ({}, r"A table of traits needs at least one class and one trait"),
        ({"a": {}}, r"A table of traits needs at least one class and one trait"),
        ({"a": {"round": 1.5}}, r"A trait's value lies in \[0, 1\]; 'round' of 'a' is 1\.5"),
        ({"a": {"round": float("nan")}}, r"'round' of 'a' is nan"),
        ({"a": {"round": True}}, r"'round' of 'a' is True"),
        ({"a": {"round": "much"}}, r"'round' of 'a' is 'much'"),
    ],
)
def test_traits_that_are_none_are_refused(traits: dict[str, dict[str, float]], problem: str) -> None:
    with pytest.raises(DescriptionError, match=problem):
        from_traits(traits)


def test_tables_of_traits_as_toml_and_as_csv(tmp_path: Path) -> None:
    (tmp_path / "t.toml").write_text("[a]\nround = 1\n'very dense' = 0.5\n[b]\nround = 0.2\n", encoding="utf-8")
    (tmp_path / "t.csv").write_text("﻿class, round ,very dense\na,1,0.5\n\n b ,0.2,\n", encoding="utf-8")
    one, two = read_traits(tmp_path / "t.toml"), read_traits(tmp_path / "t.csv")
    assert one == two == {"a": {"round": 1, "very dense": 0.5}, "b": {"round": 0.2}}
    assert np.array_equal(from_traits(one).vectors, from_traits(two).vectors)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("t.toml", "a = 3", r"needs a table of traits for each class; 'a' is none"),
        ("t.toml", "a = ", r"'.*t\.toml' cannot be read as a table of traits"),
        ("t.csv", "class,round", r"needs a header, a column of class names and at least one trait"),
        ("t.csv", "class\na", r"needs a header, a column of class names and at least one trait"),
        ("t.csv", "class,round\na,1,2", r"'.*t\.csv' has 2 columns; the row of 'a' has 3"),
        ("t.csv", "class,round\na,much", r"A trait's value is a number; the row of 'a' in '.*t\.csv' has others"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path: Path, name: str, content: str, problem: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(DescriptionError, match=problem):
        read_traits(tmp_path / name)
    with pytest.raises(DescriptionError, match=r"There is no table of traits '.*missing\.csv'"):
        read_traits(tmp_path / "missing.csv")


def test_the_built_in_traits_are_of_the_described_classes() -> None:
    for name in BUILT_IN_TRAITS:
        traits = built_in_traits(name)
        assert set(traits) == set(built_in_descriptions(name)), name
        space = from_traits(traits)
        assert isinstance(space, SemanticSpace) and space.remarks == ()  # all classes are told apart
    first = built_in_traits("chestxray14")
    first["Mass"].clear()
    assert built_in_traits("chestxray14")["Mass"]
    with pytest.raises(
        DescriptionError, match=r"There are no built-in traits 'modality'; there are chestxray14, phant"
    ):
        built_in_traits("modality")


def test_the_examples_run() -> None:
    assert doctest.testmod(zeroshot.prompts).failed == 0
