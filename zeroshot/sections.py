"""A radiology report's sections and sentences, with or without headings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

READ = ("findings", "impression")
"""The sections in which a finding counts."""

LONGEST = 600
"""How many characters a sentence may have before it is cut at a blank, so that no text takes long to read."""

NEAR = 40
"""How many characters are read on either side of a mark to tell whether it ends a sentence."""

_SHORT = ("history", "technique", "comparison")

HEADINGS: dict[str, tuple[str, ...]] = {
    "history": (
        "clinical history",
        "clinical information",
        "clinical indication",
        "clinical details",
        "clinical data",
        "clinical statement",
        "history",
        "indication",
        "indications",
        "reason for exam",
        "reason for examination",
        "reason for study",
        "reason for this examination",
        "reason",
        "clinical context",
        "history and indication",
        "history/indication",
        "indication/history",
        "patient history",
        "clinical question",
        "clinical",
        "hx",
        "symptoms",
    ),
    "technique": (
        "technique",
        "procedure",
        "exam",
        "examination",
        "study",
        "protocol",
        "views",
        "exam type",
        "exam description",
        "type of exam",
        "examinations",
        "image",
        "projection",
        "contrast",
        "exposure",
    ),
    "comparison": (
        "comparison",
        "comparisons",
        "comparison studies",
        "comparison study",
        "prior studies",
        "prior study",
        "compared to",
        "previous studies",
        "previous study",
    ),
    "findings": (
        "findings",
        "finding",
        "report",
        "description",
        "chest findings",
        "radiographic findings",
        "result",
        "results",
        "observations",
        "body of report",
        "findings/report",
        "discussion",
        "interpretation of findings",
        "comment",
        "comments",
    ),
    "impression": (
        "impression",
        "impressions",
        "conclusion",
        "conclusions",
        "opinion",
        "interpretation",
        "summary",
        "assessment",
        "final impression",
        "diagnosis",
        "imp",
        "final diagnosis",
        "findings and impression",
        "findings/impression",
        "findings and conclusion",
        "impression and plan",
        "impression/recommendation",
    ),
    "other": (
        "recommendation",
        "recommendations",
        "notification",
        "addendum",
        "signed",
        "electronically signed by",
        "dictated by",
        "attending",
        "communication",
        "plan",
        "critical results",
        "technologist note",
    ),
}
"""Section -> the headings it goes by."""

_SECTION = {heading: section for section, headings in HEADINGS.items() for heading in headings}
_NAMES = "|".join(re.escape(heading).replace(r"\ ", r"\s+") for heading in sorted(_SECTION, key=len, reverse=True))
_BULLET = r"(?:[*#_>\-]+[ \t]*|\d+[.)][ \t]*)?"
_COLON = r"[ \t]*[*_]*[ \t]*(?::|\n?[ \t]*-{1,2}[ \t])[*_]*"
_HEADING = re.compile(
    rf"(?:(?:^|\n|(?<=[.!?\]>*_]))[ \t]*{_BULLET}(?P<colon>{_NAMES}){_COLON})"
    rf"|(?:(?:^|\n)[ \t]*[*#_=\-]*[ \t]*(?P<line>{_NAMES})[ \t]*[*#_=\-]*[ \t]*(?=\n))"
    rf"|(?:(?<=\s)(?P<capital>{_NAMES})[ \t]*:)",
    re.IGNORECASE,
)
_FUNCTION_WORD = re.compile(
    r"(?:,|\b(?:of|the|a|an|no|and|or|with|without|in|at|for|to|is|are|from|by|on|left|right|small|mild))[ \t]*$",
    re.IGNORECASE,
)
_LIST_ITEM = re.compile(r"[ \t]*(?:\d{1,2}[.)](?!\d)|[\-*•·–]|\[[ xX]?\]|\([a-z\d]\))[ \t]*")
_ABBREVIATION = re.compile(
    r"(?:\b(?:dr|mr|mrs|ms|vs|e\.g|i\.e|approx|resp|fig|st|ca|cf|etc|incl|no|pt|a\.?p|p\.?a|lat|temp|min|max|prev|"
    r"m\.?d|r|l|sec|dept|inc)|\b[a-z])\.$",
    re.IGNORECASE,
)
_END = re.compile(r"[.!?]+(?:[\"')\]]+)?(?=\s|$|[A-Z\[])|\n")


@dataclass(frozen=True)
class Sentence:
    """One sentence of a report.

    Attributes:
        text: Its words as they stand there.
        section: The section it is from.
        start: Its first character in the report's text.
        end: One past the last.
    """

    text: str
    section: str
    start: int
    end: int


def joined(sections: Mapping[str, str]) -> str:
    """Return sections as one text with headings."""
    return "\n".join(f"{name}: {text}" for name, text in sections.items())


def section_name(name: str) -> str:
    """Return the section that a heading stands for; an unknown heading stands for itself."""
    plain = " ".join(re.sub(r"[_\s]+", " ", name).strip(" :*#").lower().split())
    return _SECTION.get(plain, plain)


def section_spans(text: str) -> tuple[tuple[str, int, int], ...]:
    """Find a report's sections by their headings.

    Where no section of findings is named, what stands before the first heading, and what follows the first paragraph
    of history, technique or comparison, counts as findings; a text without headings is findings.

    Args:
        text: The report.

    Returns:
        (section, first character, one past the last) in order.
    """
    marks = []
    for match in _HEADING.finditer(text):
        written = match.group("colon") or match.group("line") or match.group("capital")
        if match.group("capital") and not written.isupper() and section_name(written) not in READ:
            continue
        if match.group("capital") and not written.isupper() and not written[:1].isupper():
            continue
        marks.append((section_name(written), match.start(), match.end()))
    names = [name for name, _, _ in marks]
    spans = []
    first = marks[0][1] if marks else len(text)
    if text[:first].strip():
        spans.append(("other" if "findings" in names else "findings", 0, first))
    for i, (name, _, end) in enumerate(marks):
        stop = marks[i + 1][1] if i + 1 < len(marks) else len(text)
        own = stop if "findings" in names or name not in _SHORT else _first_paragraph(text, end, stop)
        spans.append((name, end, own))
        if text[own:stop].strip():
            spans.append(("findings", own, stop))
    return tuple(spans)


def _first_paragraph(text: str, start: int, end: int) -> int:
    """Return where the first line under a heading ends, or the first paragraph where its lines are wrapped."""
    at = start + len(text[start:end]) - len(text[start:end].lstrip())
    for match in re.finditer("\n", text[at:end]):
        if _ends_at_line(text, at, at + match.start(), end):
            return at + match.end()
    return end


def sentences(text: str, section: str, start: int, end: int) -> tuple[Sentence, ...]:
    """Split part of a report into sentences.

    Args:
        text: The report.
        section: The part's section.
        start: Its first character.
        end: One past the last.

    Returns:
        Sentences with their places; list numbers and bullets are no part of them.
    """
    cuts, previous = [], start
    for match in _END.finditer(text, start, end):
        if match.start() < previous:
            continue
        if match.group() == "\n":
            if not _ends_at_line(text, previous, match.start(), end):
                continue
        elif match.group().startswith(".") and (
            _ABBREVIATION.search(text[max(previous, match.start() - NEAR) : match.start() + 1])
            or re.search(r"(?:^|\s)\d{1,2}\.$", text[max(previous, match.start() - NEAR) : match.start() + 1])
        ):
            continue
        cuts.append((previous, match.end()))
        previous = match.end()
    cuts.append((previous, end))
    cuts = [part for low, high in cuts for part in _pieces(text, low, high)]
    found = []
    for low, high in cuts:
        for one_low, one_high in _list_items(text, low, high):
            body = text[one_low:one_high]
            marker = _LIST_ITEM.match(body)
            inner = body[marker.end() :] if marker and not body.lstrip().startswith("[") else body
            at = one_high - len(inner)
            at += len(inner) - len(inner.lstrip())
            inner = inner.strip()
            if re.search(r"\w", inner):
                found.append(Sentence(inner, section, at, at + len(inner)))
    return tuple(found)


def _pieces(text: str, low: int, high: int) -> list[tuple[int, int]]:
    """Cut what is too long to be a sentence at blanks."""
    pieces = []
    while high - low > LONGEST:
        blank = max(text.rfind(mark, low + 1, low + LONGEST) for mark in " \n\t")
        cut = blank if blank > low else low + LONGEST
        pieces.append((low, cut))
        low = cut
    return [*pieces, (low, high)]


def _list_items(text: str, low: int, high: int) -> list[tuple[int, int]]:
    """Split `1. one 2. two` and `1) one 2) two` on one line at the numbers that count up."""
    bounds, expected = [low], None
    for match in re.finditer(r"(?:(?<=\s)|^)(\d{1,2})[.)](?=\s|[A-Z])", text[low:high]):
        number = int(match.group(1))
        if match.start() == 0 or not text[low : low + match.start()].strip():
            expected = number + 1
        elif (expected is not None and number == expected) or (expected is None and number == 1):
            bounds.append(low + match.start())
            expected = number + 1
        elif re.search(r"[.!?:;]\s*$", text[low : low + match.start()]):
            bounds.append(low + match.start())
    return list(zip(bounds, [*bounds[1:], high], strict=True))


def _ends_at_line(text: str, start: int, at: int, end: int) -> bool:
    """Whether a line break ends a sentence, rather than being where a long line was wrapped."""
    after = text[at + 1 : min(end, at + NEAR)].lstrip(" \t")
    if not after or after[0] == "\n" or _LIST_ITEM.match(after):
        return True
    return not (after[0].islower() or _FUNCTION_WORD.search(text[max(start, at - NEAR) : at]))
