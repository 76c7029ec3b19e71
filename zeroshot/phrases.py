"""The small language in which a lexicon writes its terms, and its translation to regular expressions."""

from __future__ import annotations

import re

GAP = 6
"""How many words `...` may stand for."""

SEPARATOR = r"[\s\-]+(?:x{3,}[\s\-]+)?"
"""What may stand between two words of a term: blanks, a hyphen, a de-identification mark."""

_WORD = r"[\w'/%]+(?:\.\d+)?"
_ANCHOR = 4
_SPELLINGS = (
    ("oedema", "o?edema"),
    ("edema", "o?edema"),
    ("tumour", "tumou?r"),
    ("tumor", "tumou?r"),
    ("haemo", "ha?emo"),
    ("hemo", "ha?emo"),
    ("hemi", "ha?emi"),
    ("fibre", "fib(?:re|er)"),
    ("grey", "gr[ea]y"),
    ("centre", "cent(?:re|er)"),
)


class PhraseError(ValueError):
    """A term that is not written in the language of terms."""


def normal_form(name: str) -> str:
    """Return a name as names are compared: lower case, one blank between words, no underscores or hyphens."""
    return " ".join(re.sub(r"[_\-\s]+", " ", name).lower().split())


def phrase_pattern(phrase: str) -> str:
    """Translate a term to a regular expression (without word boundaries around it).

    A term is words with blanks between them. `a|b` is either word, `word?` may be missing, `stem*` is any word that
    begins so, and `...` is up to six words. Each word may be plural, blanks may be hyphens, and British and American
    spellings of oedema, tumour and the like are one.

    Args:
        phrase: The term, say `elevat* ... hemidiaphragm|diaphragm`.

    Returns:
        A pattern for `re.compile(..., re.IGNORECASE)`.

    Raises:
        PhraseError: A term without words, or a gap or an optional word at its beginning or end.
    """
    words = phrase.split()
    if not words or words[0].endswith(("...", "?")) or words[-1].endswith(("...", "?")):
        raise PhraseError("a term begins and ends with a word that must be there")
    pattern, separator = "", ""
    for word in words:
        if word == "...":
            pattern += rf"(?:[\s\-,(]+{_WORD})" + f"{{0,{GAP}}}?"
            separator = r"[\s\-,(]+"
            continue
        optional = word.endswith("?")
        one = "(?:" + "|".join(_word_pattern(part) for part in word.removesuffix("?").split("|")) + ")"
        pattern += f"(?:{separator}{one})?" if optional else separator + one
        separator = SEPARATOR
    return pattern


def phrase_anchors(phrase: str) -> tuple[str, ...]:
    """Return the first letters of the words with which a term can begin; one of them is in every text that has it."""
    parts = phrase.split()[0].split("|")
    anchors = []
    for part in parts:
        stem = re.split(r"[^\w]", part.removesuffix("*"))[0].lower()
        # A spelling variant may differ in the first letters.
        anchors += [stem[:_ANCHOR]] + ([stem[1:][:_ANCHOR]] if stem.startswith("oe") else [])
        if stem.startswith(("edema", "hemo", "hemi")):
            anchors.append(("o" + stem if stem.startswith("edema") else "ha" + stem[1:])[:_ANCHOR])
    return tuple(anchors)


def text_anchors(text: str) -> set[str]:
    """Return the beginnings of all words of a text, of every length that an anchor may have."""
    found: set[str] = set()
    for word in re.findall(r"\w+", text.lower()):
        found.update(word[:length] for length in range(1, min(len(word), _ANCHOR) + 1))
    return found


def _word_pattern(word: str) -> str:
    """Translate one word: spelling variants, plural, wildcard."""
    stem, any_ending = (word[:-1], True) if word.endswith("*") else (word, False)
    pattern = re.escape(stem.lower()).replace(r"\-", r"[\s\-]?")
    for written, variants in _SPELLINGS:
        if written in pattern:
            pattern = pattern.replace(written, variants)
            break
    if any_ending:
        return pattern + r"\w*"
    if len(stem) < 3:
        return pattern
    if stem.endswith("y"):
        return pattern[:-1] + "(?:y|ies)"
    if stem.endswith("is"):
        return pattern[:-2] + "[ie]s"
    if stem.endswith("us"):
        return pattern[:-2] + "(?:us|i|uses)"
    if stem.endswith(("s", "sh", "ch", "x")):
        return pattern + "(?:es)?"
    return pattern + "s?"
