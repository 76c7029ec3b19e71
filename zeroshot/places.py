"""Where a finding is and how severe it is, from the words around it."""

from __future__ import annotations

import re

_SIDES = re.compile(
    r"\b(?P<bilateral>bilateral(?:ly)?|both|biapical|bibasilar|bibasal|bihilar|bi-?basilar|bi-?apical)\b"
    r"|\b(?P<left>left(?:-sided|ward)?|lingula|lingular)\b|\b(?P<right>right(?:-sided|ward)?)\b",
    re.IGNORECASE,
)
_PLACES: tuple[tuple[str, str], ...] = (
    ("upper lobe", r"upper lobes?"),
    ("middle lobe", r"middle lobe"),
    ("lower lobe", r"lower lobes?"),
    ("lingula", r"lingular?"),
    ("upper zone", r"upper (?:lung )?(?:zones?|fields?|lungs?)"),
    ("mid zone", r"mid(?:dle)?[ -]?(?:lung )?(?:zones?|fields?|lungs?)"),
    ("lower zone", r"lower (?:lung )?(?:zones?|fields?|lungs?)"),
    ("apex", r"apex|apices|(?:bi)?-?apical"),
    ("base", r"bases?|basal|basilar|bibasilar|bibasal"),
    ("perihilar", r"perihilar|parahilar"),
    ("hilum", r"hilum|hila|hilar|infrahilar|suprahilar"),
    ("retrocardiac", r"retrocardiac"),
    ("paratracheal", r"paratracheal"),
    ("mediastinum", r"mediastin(?:um|al)"),
    ("costophrenic angle", r"costophrenic"),
    ("midline", r"midline"),
)
_PLACE = re.compile("|".join(rf"(?P<p{i}>\b(?:{words})\b)" for i, (_, words) in enumerate(_PLACES)), re.IGNORECASE)
_SEVERITIES: tuple[tuple[str, str], ...] = (
    ("minimal", r"minimal(?:ly)?|trace|tiny|subtle|slight(?:ly)?"),
    ("mild", r"mild(?:ly)?|small|borderline|low-grade"),
    ("moderate", r"moderate(?:ly)?|medium-sized"),
    ("severe", r"severe(?:ly)?|marked(?:ly)?|large|massive|extensive|advanced|gross(?:ly)?|huge"),
)
_SEVERITY = re.compile(
    "|".join(rf"(?P<s{i}>\b(?:{words})\b)" for i, (_, words) in enumerate(_SEVERITIES)), re.IGNORECASE
)


_JOINED = re.compile(
    r"\b(?:left|right)(?:\s+\w+)?\s*(?:and|/|&|greater than|more than|larger than|worse than|>)"
    r"\s*(?:the\s+)?(?:\w+\s+)?(?:left|right)\b",
    re.IGNORECASE,
)
_FILLER = re.compile(
    r"\b(?:on|in|at|of|the|side|sided|lung|lobe|zone|and|greater|larger|more|than|both|mild|moderate|severe|small|large)\b",
    re.IGNORECASE,
)
_CLAUSE = re.compile(r"[,;]\s")


def side_of(sentence: str, start: int, end: int) -> str | None:
    """Return "left", "right" or "bilateral", as the words in and nearest to a finding's own say, else None.

    Args:
        sentence: One sentence; only words of the same clause count.
        start: First character of the finding's words.
        end: One past the last.
    """
    nearest = _nearest(_SIDES, sentence, start, end)
    if nearest is None:
        return None
    joined = _nearest(_JOINED, sentence, start, end)
    if joined is not None and {"left", "right"} <= set(re.findall("left|right", joined.group().lower())):
        return "bilateral"
    return str(nearest.lastgroup)


def place_of(sentence: str, start: int, end: int) -> str | None:
    """Return the lobe, zone or region that the words in and nearest to a finding's own name, else None."""
    nearest = _nearest(_PLACE, sentence, start, end)
    return None if nearest is None else _PLACES[int(str(nearest.lastgroup)[1:])][0]


def severity_of(sentence: str, start: int, end: int) -> str | None:
    """Return "minimal", "mild", "moderate" or "severe", as the nearest word of degree in a finding's clause says.

    "Small" counts as mild and "large" as severe; None where the clause has no such word.
    """
    nearest = _nearest(_SEVERITY, sentence, start, end)
    return None if nearest is None else _SEVERITIES[int(str(nearest.lastgroup)[1:])][0]


def _nearest(pattern: re.Pattern[str], sentence: str, start: int, end: int) -> re.Match[str] | None:
    """Return the match nearest to a finding's words within its clause; what stands before wins a tie.

    A clause that follows counts as well where it says nothing but a place, as in `effusion, left`.
    """
    low = max([0, *(cut.end() for cut in _CLAUSE.finditer(sentence) if cut.end() <= start)])
    cuts = [cut for cut in _CLAUSE.finditer(sentence) if cut.start() >= end]
    high = cuts[0].start() if cuts else len(sentence)
    if cuts:
        after = cuts[1].start() if len(cuts) > 1 else len(sentence)
        rest = _PLACE.sub(" ", _SIDES.sub(" ", sentence[high:after]))
        if not _FILLER.sub(" ", rest).strip(" .,;"):
            high = after
    found = pattern.finditer(sentence, low, high)
    return min(found, key=lambda match: max(0, start - match.end(), match.start() - end), default=None)
