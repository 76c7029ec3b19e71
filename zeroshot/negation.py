"""Denied words marked, so that a bag of words can tell "no effusion" from "effusion".

A word that a sentence denies becomes another word ("noteffusion"), the scope of the denial being ConText's. An encoder
of word counts then puts what is there and what is not there in different places, and prompts in absent forms mean
something; without it, what reports deny most often looks most present.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .context import ABSENT, read_context, scopes
from .sections import section_spans, sentences

MARK = "not"
"""What a denied word begins with."""

_WORD = re.compile(r"[^\W\d_]{3,}")


def mark_denied(text: str) -> str:
    """Return a text with every denied word marked.

    Args:
        text: A report, a caption or a prompt in English; a text without a denial comes back as it is.

    Example:
        >>> mark_denied("Small effusion. No pneumothorax.")
        'Small effusion. No notpneumothorax.'
    """
    pieces: list[str] = []
    done = 0
    for name, start, end in section_spans(text):
        for sentence in sentences(text, name, start, end):
            governed = scopes(sentence.text)
            if not any(scope.kind == "deny" for scope in governed):
                continue
            triggers = [(scope.at, scope.at + len(scope.trigger)) for scope in governed if scope.kind == "deny"]
            for word in _WORD.finditer(sentence.text):
                low, high = word.span()
                if any(first <= low < last for first, last in triggers):
                    continue
                if read_context(sentence.text, low, high, governed).state == ABSENT:
                    at = sentence.start + low
                    if text[at : at + high - low] != word.group():
                        continue
                    pieces += [text[done:at], MARK]
                    done = at
    return "".join([*pieces, text[done:]])


def mark_all(texts: Sequence[str]) -> list[str]:
    """Return every text with its denied words marked."""
    marked = {text: mark_denied(text) for text in dict.fromkeys(texts)}
    return [marked[text] for text in texts]
