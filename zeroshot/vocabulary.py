"""Which words of a text an encoder of word counts does not know: of "There is pneumothorax" the filler is no answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from .negation import MARK

if TYPE_CHECKING:
    from embeddings import TextEncoder

_FILLER_TEXT = """
a about above again all also an and any are area as at be been being below both but by can consistent could do does each
evidence finding findings for further from has have having here image images in into is it its keeping more most no nor
not of off on once one only or other out over present same seen show shown shows so some such than that the their them
then there these they this those through to too under until up very view was were what when where which while who will
with within without
"""
FILLERS = frozenset(_FILLER_TEXT.split())
"""Words that say nothing of what an image shows."""

_WORD = re.compile(r"\w{2,}")


def unknown_words(encoder: TextEncoder, texts: Sequence[str]) -> list[tuple[tuple[str, ...], bool]]:
    """Return, for each text, the words that matter and are not known, and whether any that matters is.

    Args:
        encoder: Any; one that has no vocabulary of words (a transformer, which reads pieces) is taken to know all.
        texts: As they are encoded, denied words marked where they are to be.

    Returns:
        Per text the unknown words in order of appearance, without the mark of denial, and whether the rest suffices.
    """
    learnt = getattr(encoder, "vocabulary", None)
    if learnt is None:
        return [((), True)] * len(texts)
    known = {word for term in learnt for word in term.split()}
    found = []
    for text in texts:
        words = [word.lower() for word in _WORD.findall(text)]
        telling = [
            word for word in dict.fromkeys(words) if word.removeprefix(MARK) not in FILLERS and word not in FILLERS
        ]
        missing = [word for word in telling if word not in known]
        shown = tuple(dict.fromkeys(_plain(word) for word in missing))
        found.append((shown, len(missing) < len(telling)))
    return found


def said_of(encoder: TextEncoder, words: Sequence[str]) -> str:
    """Return unknown words for a sentence, with those that the encoder's texts only ever deny marked as such."""
    known = {word for term in getattr(encoder, "vocabulary", ()) for word in term.split()}
    return ", ".join(f"{word!r} (only ever denied)" if MARK + word in known else repr(word) for word in words)


def _plain(word: str) -> str:
    """Return a word without the mark of denial; words that begin so by themselves, as "notable" does, stay."""
    return word if word.startswith(("notab", "noted", "notch", "noth", "noti", "nota")) else word.removeprefix(MARK)
