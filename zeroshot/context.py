"""Whether words affirm, deny, doubt or recall a finding (NegEx, Chapman 2001; ConText, Harkema 2009).

A trigger works forwards or backwards from itself to the next terminator; a pseudo-trigger looks like one and does
nothing. The words are those of radiology reports, where a comma often begins a new statement.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

NEAR = 25
"""How many characters `versus` reaches in either direction: it doubts its two neighbours only."""

_NEAR = ("versus", "vs")
_SUSPICION = ("sugg", "susp", "concern", "worrisome")

PRESENT, ABSENT, UNCERTAIN = "present", "absent", "uncertain"
"""The states of a mention."""

_PSEUDO = """
no change|no changes|no interval change|no significant change|no significant interval change|no appreciable change|
no substantial change|no other change|no new change|without change|without interval change|
without significant change|without significant interval change|not changed|not significantly changed|
not appreciably changed|no increase|no decrease|not only|no improvement|no interval improvement|not necessarily|
not certain|no longer than|no definite change|no further|not well seen|not well visualized|not well evaluated|
not well assessed|not completely|not entirely|not fully|not included|no comparison|no prior|no previous|no priors|
no radiographic change|not optimally|may be followed|may be obtained|may be helpful|may be considered|
may be performed|may be of benefit|could be performed|could be obtained|could be considered|
no significantly changed|no convincing change|no evidence of change|no evidence of interval change|no complication|
no complications|not identified on the lateral|not seen on the lateral|not visualized on the lateral|
not seen on the frontal|not seen on lateral|not definitely seen on the lateral|without complication|
without complications
"""

_DENY_AFTER = """
no|no evidence of|no evidence for|no evidence|no sign of|no signs of|no findings of|no radiographic evidence of|
no suggestion of|no definite|no convincing|without|without evidence of|without definite|without any|absence of|
absent|negative for|free of|free from|clear of|denies|not|neither|nor|never|none|lack of|lacks|rather than|
rules out|ruled out for|excludes|no longer|resolution of|resolved|interval resolution of|complete resolution of|
interval removal of|removal of|has been removed|have been removed|cleared|clearing of|non|fails to show|
fails to reveal|fails to demonstrate|exclude the presence of|nonvisualization of|inconsistent with|
not consistent with|nothing to suggest|not suggestive of|not suspicious for|unlikely to represent|unlikely to be|
unlikely
"""

_DENY_BEFORE = """
is not seen|are not seen|not seen|not identified|not present|not visualized|not visualised|not demonstrated|
not evident|not apparent|not appreciated|not observed|not detected|not noted|not found|no longer seen|
no longer visualized|no longer identified|no longer present|no longer evident|no longer appreciated|is absent|
are absent|was absent|were absent|has resolved|have resolved|is resolved|resolved|have cleared|has cleared|
is excluded|are excluded|was excluded|is ruled out|are ruled out|has been ruled out|is unlikely|are unlikely|
unlikely|none|none seen|none identified|negative|has been removed|have been removed|was removed|were removed|
removed|interval removal|can be excluded|no|within limits of normal
"""

_DOUBT_AFTER = """
mimicking|simulating|
possible|possibly|may be|may be due to|may be secondary to|may be related to|may be compatible with|
may be consistent with|may be from|could be due to|could be secondary to|could be related to|may represent|
may reflect|may indicate|may suggest|might|might be|could be|could represent|could reflect|could indicate|could|
questionable|question of|question|equivocal|cannot exclude|can not exclude|cannot rule out|can not rule out|
cannot definitely exclude|cannot completely exclude|cannot be certain|difficult to exclude|
difficult to completely exclude|not exclude|does not exclude|do not exclude|not excluded|rule out|r/o|to exclude|
to rule out|exclude|evaluate for|assess for|concern for|concerning for|worrisome for|suspicion of|suspicion for|
suspicious for|suspected|suspect|versus|vs|differential includes|differential diagnosis includes|
differential considerations include|considerations include|perhaps|suggestive of|suggesting|suggests|suggest|
not certain|uncertain|indeterminate for|may|if there is concern for|if|potentially|potential
"""

_DOUBT_BEFORE = """
cannot be excluded|can not be excluded|cannot be ruled out|can not be ruled out|cannot be completely excluded|
cannot be entirely excluded|cannot be definitely excluded|not excluded|not be excluded|is not excluded|
are not excluded|not ruled out|is possible|are possible|possible|is suspected|is questioned|questioned|
is questionable|questionable|is equivocal|equivocal|is a consideration|
would be a consideration|are considerations|is considered|
in the differential|would be difficult to exclude|is difficult to exclude|difficult to exclude|not certain|
is uncertain|versus|vs|is of concern|is not entirely excluded|may be present|might be present|could be present
"""

_RECALL_AFTER = """
history of|prior history of|past history of|h/o|known history of|status post removal of|remote history of|
previously noted|previously seen|previously described|previously identified|previously demonstrated
"""

_RECALL_BEFORE = """
by history|on the prior|on prior|on previous|on the previous|in the past
"""

_END = """
but|however|although|though|except|except for|aside from|apart from|other than|nevertheless|yet|which|while|whereas|
secondary to|due to|because of|because|there is|there are|there has|there was|is noted|are noted|is seen|are seen|
with associated|consistent with|compatible with|in keeping with|suggestive of|suggesting|indicating|representing|
likely represent|likely represents|likely representing|probably|likely|most likely|remains|remain|demonstrates|
shows|reveals|since|otherwise|stable|unchanged|again
"""

_QUALIFIED = re.compile(
    r"\b(?:acute|new|large|focal|definite|significant|suspicious|xxxx|displaced|other|additional|large-volume|big|"
    r"lobar|confluent|overt|frank|gross|discrete|dominant|convincing|further|worsening|increasing|active|sizable|"
    r"measurable|tension|consolidative|pathologic|developing|residual|dense|obvious|size?able|suspicious-appearing|"
    r"more|recurrent|appreciable|definitive|enlarging|noncalcified|non-calcified|infectious|typical|clear|well-defined|"
    r"displaced|compression|complete|superimposed|visible|substantial|conspicuous|evidence of active)\b",
    re.IGNORECASE,
)
"""Words that narrow a denial: `no large effusion` does not contradict a small one."""

_STOP = re.compile(
    r";|(?<!vs)\.\s|:\s*(?=\w{4})(?!none|absent|negative)|\((?!\s*(?:none|no|absent|negative)\s*\))|\)|[\[\]]",
    re.IGNORECASE,
)
"""Marks that end what a trigger governs; a colon or a bracket before a `none` does not."""

_COMMA = re.compile(
    r"[,/]\s+(?:and\s+|with\s+)?(?:the|there|heart|cardiac|lungs|mediastinum|mediastinal|bony|osseous|stable|unchanged|mild|mildly|small|"
    r"minimal|moderate|severe|calcified|degenerative|normal|left|right|otherwise|slightly|slight|again|with|no|without)\b"
    r"|,\s+(?=[\w\s-]{3,40}\b(?:persists?|remains?|has\s+developed)\b)"
    r"|\s+and\s+(?:the|there)\b|\s+with\s+(?:mild|minimal|stable|the|a|an|some)\b",
    re.IGNORECASE,
)
"""Where a comma, an `and` or a `with` begins a statement of its own."""


def _terms(table: str) -> list[str]:
    return [" ".join(term.split()) for term in table.split("|")]


def _compile() -> tuple[re.Pattern[str], dict[str, set[str]]]:
    """Return one pattern of all triggers, longest first, and what each may be."""
    kinds: dict[str, set[str]] = {}
    tables = {
        "pseudo": _PSEUDO,
        "deny after": _DENY_AFTER,
        "deny before": _DENY_BEFORE,
        "doubt after": _DOUBT_AFTER,
        "doubt before": _DOUBT_BEFORE,
        "recall after": _RECALL_AFTER,
        "recall before": _RECALL_BEFORE,
        "end": _END,
    }
    for kind, table in tables.items():
        for term in _terms(table):
            kinds.setdefault(term, set()).add(kind)
    longest = sorted(kinds, key=lambda term: (-len(term), term))
    body = "|".join(re.escape(term).replace(r"\ ", r"\s+") for term in longest)
    return re.compile(rf"(?<![\w])(?:{body})(?![\w])", re.IGNORECASE), kinds


_TRIGGERS, _KINDS = _compile()


@dataclass(frozen=True)
class Scope:
    """What one trigger governs.

    Attributes:
        kind: "deny", "doubt" or "recall".
        start: First character it governs.
        end: One past the last.
        trigger: The words, and where they begin.
        at: Where the trigger begins.
    """

    kind: str
    start: int
    end: int
    trigger: str
    at: int


@dataclass(frozen=True)
class Reading:
    """How a text speaks of a finding.

    Attributes:
        state: "present", "absent" or "uncertain".
        historical: Spoken of as something of the past.
        qualified: Denied only in part, as in `no large effusion`.
    """

    state: str
    historical: bool = False
    qualified: bool = False


def scopes(sentence: str) -> tuple[Scope, ...]:
    """Return what the triggers of a sentence govern.

    Args:
        sentence: One sentence.

    Returns:
        Scopes in order of their triggers.
    """
    triggers: list[tuple[int, int, str, set[str]]] = []
    ends = [(m.start(), m.end()) for m in _STOP.finditer(sentence)]
    ends += [(m.start(), m.end()) for m in _COMMA.finditer(sentence)]
    for match in _TRIGGERS.finditer(sentence):
        term = " ".join(match.group().lower().split())
        if "end" in _KINDS[term]:
            ends.append(match.span())
        triggers.append((match.start(), match.end(), term, _KINDS[term]))
    found = []
    for start, end, term, kinds in triggers:
        after = min([len(sentence), *(at for at, _ in ends if at >= end)])
        before = max([0, *(stop for _, stop in ends if stop <= start)])
        with_word = re.search(r"\swith\s", sentence[end:])
        for kind in ("deny", "doubt", "recall"):
            if kind == "recall" and with_word:
                after = min(after, end + with_word.start())
            near = term in _NEAR
            if f"{kind} after" in kinds:
                found.append(Scope(kind, start, min(after, end + NEAR) if near else after, term, start))
            if f"{kind} before" in kinds and _may_look_back(sentence, start, term):
                found.append(Scope(kind, max(before, start - NEAR) if near else before, end, term, start))
    return tuple(found)


def read_context(sentence: str, start: int, end: int, known: tuple[Scope, ...] | None = None) -> Reading:
    """Return how a sentence speaks of what stands at a place in it.

    Doubt outweighs denial (`cannot exclude`), unless the denial alone is nearer.

    Args:
        sentence: One sentence.
        start: First character of the words for the finding.
        end: One past the last.
        known: The sentence's scopes, where they have been found already.

    Returns:
        The reading.

    Example:
        >>> read_context("No pneumothorax or effusion.", 19, 27).state
        'absent'
    """
    governing = [
        scope
        for scope in (scopes(sentence) if known is None else known)
        if scope.start < end and scope.end > start and not (scope.at < start and scope.end <= start)
    ]
    historical = any(scope.kind == "recall" for scope in governing)
    denials = [scope for scope in governing if scope.kind == "deny"]
    doubts = [scope for scope in governing if scope.kind == "doubt"]
    if denials and all(_denied_doubt(scope, denials) for scope in doubts):
        nearest = min(denials, key=lambda scope: abs(scope.at - start))
        low, high = sorted((nearest.at, end))
        return Reading(ABSENT, historical, bool(_QUALIFIED.search(sentence[low:high])))
    return Reading(UNCERTAIN if doubts else PRESENT, historical)


def _denied_doubt(doubt: Scope, denials: list[Scope]) -> bool:
    """Whether a word of suspicion is itself denied, as in `no opacity suspicious for pneumonia`."""
    return doubt.trigger.startswith(_SUSPICION) and any(no.at < doubt.at < no.end for no in denials)


def _may_look_back(sentence: str, start: int, term: str) -> bool:
    """A bare `no` or `none` denies what stands before it only in a template: `effusion: none`."""
    if term in ("no", "none", "negative"):
        return bool(re.search(r"[:=?(\-]\s*$", sentence[:start]))
    return True
