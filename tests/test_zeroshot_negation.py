"""Denied words marked: which words, in which scope, and nothing else of the text touched."""

from __future__ import annotations

import doctest
import re

import pytest

import zeroshot.negation
from embeddings import TfidfTextEncoder
from zeroshot import built_in_descriptions, mark_all, mark_denied
from zeroshot.negation import MARK


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("Small effusion.", "Small effusion."),
        ("No pneumothorax.", "No notpneumothorax."),
        ("No pleural effusion or pneumothorax.", "No notpleural noteffusion or notpneumothorax."),
        ("There is no evidence of effusion.", "There is no evidence of noteffusion."),
        ("Effusion is not seen.", "notEffusion is not seen."),
        ("No effusion, but a nodule is seen.", "No noteffusion, but a nodule is seen."),
        ("Large effusion. No nodule. Heart is large.", "Large effusion. No notnodule. Heart is large."),
        ("No change in the effusion.", "No change in the effusion."),
        ("Cannot exclude pneumonia.", "Cannot exclude pneumonia."),
        ("Possible pneumonia. No effusion.", "Possible pneumonia. No noteffusion."),
        ("FINDINGS: No mass.\nIMPRESSION: Mass.", "FINDINGS: No notmass.\nIMPRESSION: Mass."),
        ("", ""),
        ("   ", "   "),
    ],
)
def test_what_is_denied_is_marked(text: str, marked: str) -> None:
    assert mark_denied(text) == marked


def test_taking_the_marks_away_gives_the_text_back() -> None:
    texts = [
        "No pneumothorax or  pleural\neffusion; lungs are clear (no nodule).",
        "1. No acute fracture.\n2. Heart without enlargement.\n\nIMPRESSION:  none ",
        "NO EFFUSION. Größe unverändert – no Größe.",
    ]
    for prompt in built_in_descriptions("chestxray14").values():
        texts += [*prompt.present, *prompt.absent]
    changed = 0
    for text in texts:
        marked = mark_denied(text)
        changed += marked != text
        assert re.split(r"\S+", marked) == re.split(r"\S+", text)  # blanks and line ends stay
        for word, plain in zip(marked.split(), text.split(), strict=True):
            assert word == plain or word.replace(MARK, "", 1) == plain
    assert changed > 150


def test_many_texts_keep_their_order_and_repeats() -> None:
    texts = ["No mass.", "Mass.", "No mass."]
    assert mark_all(texts) == ["No notmass.", "Mass.", "No notmass."]
    assert mark_all([]) == []


def test_a_bag_of_words_then_tells_denied_from_affirmed() -> None:
    affirmed = [f"{size} {finding}." for size in ("Small", "Large") for finding in ("effusion", "nodule", "mass")]
    denied = [f"No {finding}." for finding in ("effusion", "nodule", "mass")]
    texts = [*affirmed, *denied, *denied]

    def closeness(prepare: bool) -> float:
        ready = mark_all if prepare else list
        encoder = TfidfTextEncoder(dim=12, ngrams=(1, 1), min_count=1).fit(ready(texts))
        there, not_there = encoder.encode(ready(["effusion.", "No effusion."])).astype(float)
        return float(there @ not_there / ((there @ there) ** 0.5 * (not_there @ not_there) ** 0.5))

    assert closeness(False) > 0.4 and abs(closeness(True)) < 0.1


def test_the_example_runs() -> None:
    assert doctest.testmod(zeroshot.negation).failed == 0
