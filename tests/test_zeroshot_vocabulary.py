"""Words that matter and are not known are named; fillers never stand in for them."""

from __future__ import annotations

from typing import Any

import pytest

from embeddings import TfidfTextEncoder
from zeroshot import DescriptionError, from_descriptions, mark_all
from zeroshot.vocabulary import said_of, unknown_words

REPORTS = ["There is a large mass. No pneumothorax.", "Small mass on the left. No pneumothorax.", "There is edema."] * 3


@pytest.fixture
def encoder() -> TfidfTextEncoder:
    return TfidfTextEncoder(dim=6).fit(mark_all(REPORTS))


def test_fillers_do_not_answer_for_a_word_that_is_not_known(encoder: TfidfTextEncoder) -> None:
    found = unknown_words(encoder, ["There is zebra.", "There is a mass.", "Large zebra on the left.", "There is."])
    assert found == [(("zebra",), False), ((), True), (("zebra",), True), ((), False)]


def test_what_reports_only_deny_is_said_so(encoder: TfidfTextEncoder) -> None:
    ((words, enough),) = unknown_words(encoder, ["There is pneumothorax."])
    assert words == ("pneumothorax",) and not enough
    assert said_of(encoder, words) == "'pneumothorax' (only ever denied)"
    assert unknown_words(encoder, mark_all(["No pneumothorax."])) == [((), True)]


def test_an_encoder_without_a_vocabulary_of_words_is_taken_to_know_all() -> None:
    class Pieces:
        name = "pieces"

    pieces: Any = Pieces()
    assert unknown_words(pieces, ["zebra", "okapi"]) == [((), True)] * 2


def test_a_class_of_unknown_words_is_refused_or_left_out_with_a_remark(encoder: TfidfTextEncoder) -> None:
    said = {"mass": "There is a large mass.", "pneumothorax": ["There is pneumothorax.", "Pneumothorax."]}
    with pytest.raises(
        DescriptionError, match=r"no word of the description of 'pneumothorax' that matters .*only ever"
    ):
        from_descriptions(said, encoder, prepare=mark_all)
    space = from_descriptions(said, encoder, prepare=mark_all, leave_out=True)
    assert space.classes == ("mass",) and space.remarks[0].startswith("'pneumothorax' is left out. ")
    with pytest.raises(DescriptionError, match="knows no word about any of the classes"):
        from_descriptions({"zebra": "Zebra."}, encoder, leave_out=True)
    partly = from_descriptions({"mass": ["Large mass.", "There is zebra."]}, encoder)
    assert partly.phrases["mass"] == ("Large mass.",)
    assert "'zebra'; 1 of 2 sentences say nothing without them" in partly.remarks[0]


def test_a_class_described_by_what_is_not_there_is_remarked_upon(encoder: TfidfTextEncoder) -> None:
    space = from_descriptions({"mass": "Large mass.", "clear": "No pneumothorax."}, encoder, prepare=mark_all)
    assert any("'clear' is described by what is not there" in remark for remark in space.remarks)
