"""A radiology report as findings that are present, absent or uncertain; what it does not mention is none of these."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from .context import ABSENT, PRESENT, UNCERTAIN, Scope, read_context, scopes
from .errors import ReportError
from .language import MARK, is_english, may_be_english
from .lexicon import Finding, Lexicon
from .places import place_of, severity_of, side_of
from .sections import READ, Sentence, joined, section_name, section_spans, sentences


@dataclass(frozen=True)
class Mention:
    """One place of a report that names a finding.

    Attributes:
        finding: The finding.
        state: "present", "absent" or "uncertain", as this sentence has it.
        side: "left", "right", "bilateral" or None.
        place: Lobe, zone or region, as "lower lobe", "base", "apex"; or None.
        severity: "minimal", "mild", "moderate", "severe" or None.
        sentence: The sentence.
        section: The section, as "findings".
        start: First character of the words in the report's text.
        end: One past the last.
        historical: Named as something of the past: neither present nor absent now.
        qualified: A denial of only some of it (`no large effusion`), or by a general word (`heart size is normal`).
    """

    finding: Finding
    state: str
    side: str | None
    place: str | None
    severity: str | None
    sentence: str
    section: str
    start: int
    end: int
    historical: bool = False
    qualified: bool = False


@dataclass(frozen=True)
class Contradiction:
    """A finding that one sentence affirms and another denies.

    Attributes:
        finding: The finding.
        affirmed: Where it is affirmed.
        denied: Where it is denied.
    """

    finding: Finding
    affirmed: Mention
    denied: Mention

    def __str__(self) -> str:
        """Return the finding and the two sentences."""
        return f"{self.finding}: {self.affirmed.sentence!r} against {self.denied.sentence!r}"


@dataclass(frozen=True)
class Report:
    """What a report says.

    Attributes:
        text: The report; places are counted in it.
        present: Findings that the findings or the impression affirm, and what they imply.
        absent: Findings that are denied and nowhere affirmed or doubted.
        uncertain: Findings that are doubted and nowhere affirmed, or contradicted.
        mentions: All places that name a finding, in order, of all sections.
        sentences: All sentences, in order.
        sections: Section -> its text.
        contradictions: Findings affirmed in one sentence and denied in another.
    """

    text: str = field(repr=False)
    present: tuple[Finding, ...]
    absent: tuple[Finding, ...]
    uncertain: tuple[Finding, ...]
    mentions: tuple[Mention, ...] = field(repr=False)
    sentences: tuple[Sentence, ...] = field(repr=False)
    sections: Mapping[str, str] = field(repr=False)
    contradictions: tuple[Contradiction, ...] = ()

    @property
    def normal(self) -> bool:
        """Whether the report names no finding as present or uncertain."""
        return not self.present and not self.uncertain


def parse_report(text: str | Mapping[str, str], lexicon: Lexicon | None = None) -> Report:
    """Read a radiology report in English.

    A finding counts where the findings or the impression name it; history, technique and comparison are read for
    `mentions` only. A finding affirmed in one sentence and denied outright in another is uncertain and listed in
    `contradictions`, unless the denial is for another side or place, narrows itself (`no large effusion`), or is one
    of a broad sort (`heart size is normal`), or either speaks of the past.

    Args:
        text: The report, with or without headings, or its sections: heading -> text.
        lexicon: The findings to look for, by default `Lexicon.builtin()`.

    Returns:
        The report.

    Raises:
        ReportError: A text that is empty, only de-identification marks, or not English.

    Example:
        >>> report = parse_report("FINDINGS: Small left effusion. No pneumothorax. IMPRESSION: Possible pneumonia.")
        >>> [str(finding) for finding in report.present + report.absent + report.uncertain]
        ['Pleural Effusion', 'Pneumothorax', 'Pneumonia']
    """
    lexicon = Lexicon.builtin() if lexicon is None else lexicon
    whole, spans = _sections(text)
    if not (is_english(whole) or (may_be_english(whole) and any(lexicon.search(whole)))):
        raise ReportError(f"A report must be in English; this text does not seem to be: {_excerpt(whole)!r}.")
    every = tuple(one for name, start, end in spans for one in sentences(whole, name, start, end))
    mentions = tuple(mention for sentence in every for mention in _mentions(sentence, lexicon))
    present, absent, uncertain, contradictions = _verdicts(mentions, lexicon)
    sections: dict[str, str] = {}
    for name, start, end in spans:
        sections[name] = "\n".join(filter(None, (sections.get(name, ""), whole[start:end].strip())))
    return Report(whole, present, absent, uncertain, mentions, every, sections, contradictions)


def _has_words(text: str) -> bool:
    """Whether anything but marks of de-identification is there."""
    return re.search(r"[^\W\d_]", MARK.sub(" ", text)) is not None


def _excerpt(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= 60 else words[:57] + "..."


def _sections(text: str | Mapping[str, str]) -> tuple[str, tuple[tuple[str, int, int], ...]]:
    """Return a report's text and its sections' places."""
    if isinstance(text, str):
        if not _has_words(text):
            raise ReportError("A report must hold words; this text is empty.")
        return text, section_spans(text)
    if not isinstance(text, Mapping):
        raise ReportError(f"A report is a text or a mapping of section to text; got {type(text).__name__}.")
    given: dict[str, str] = {}
    for name, body in text.items():
        if not isinstance(body, str) and body is not None and body == body:
            raise ReportError(f"The section {name!r} of a report must be a text; got {type(body).__name__}.")
        if isinstance(body, str) and body.strip():
            given[str(name)] = body
    if not any(_has_words(body) for body in given.values()):
        raise ReportError("A report must hold words; this text is empty.")
    whole, spans, at = joined(given), [], 0
    for name, body in given.items():
        at += len(name) + 2
        spans.append((section_name(name), at, at + len(body)))
        at += len(body) + 1
    return whole, tuple(spans)


def _mentions(sentence: Sentence, lexicon: Lexicon) -> list[Mention]:
    """Return what one sentence names."""
    matches = lexicon.search(sentence.text)
    if not matches:
        return []
    known: tuple[Scope, ...] = scopes(sentence.text)
    found = []
    for match in matches:
        reading = read_context(sentence.text, match.start, match.end, known)
        state, qualified = reading.state, reading.qualified
        if match.denial:
            if state != PRESENT:
                continue
            state, qualified = ABSENT, True
        elif _unchecked(sentence.text, match.start):
            state = ABSENT
        place = (sentence.text, match.start, match.end)
        found.append(
            Mention(
                match.finding,
                state,
                side_of(*place),
                place_of(*place),
                severity_of(*place),
                sentence.text,
                sentence.section,
                sentence.start + match.start,
                sentence.start + match.end,
                reading.historical,
                qualified,
            )
        )
    return found


def _unchecked(text: str, start: int) -> bool:
    """Whether a term follows an empty check-box."""
    boxes = re.findall(r"\[\s*([xX]?)\s*\]|([☐☑☒])", text[:start])
    return bool(boxes) and (boxes[-1][1] == "☐" or (not boxes[-1][0] and not boxes[-1][1]))


def _verdicts(
    mentions: tuple[Mention, ...], lexicon: Lexicon
) -> tuple[tuple[Finding, ...], tuple[Finding, ...], tuple[Finding, ...], tuple[Contradiction, ...]]:
    """Return the findings present, absent and uncertain in the report as a whole, and the contradictions."""
    states: dict[Finding, str] = {}
    contradictions: list[Contradiction] = []
    by_finding: dict[Finding, list[Mention]] = {}
    for mention in mentions:
        if mention.section in READ and not mention.historical:
            by_finding.setdefault(mention.finding, []).append(mention)
    for finding, named in by_finding.items():
        affirmed = [mention for mention in named if mention.state == PRESENT]
        denied = [mention for mention in named if mention.state == ABSENT and not mention.qualified]
        clashes = [(yes, no) for yes in affirmed for no in denied if _contradict(yes, no)]
        if clashes and {id(yes) for yes, _ in clashes} == {id(yes) for yes in affirmed}:
            states[finding] = UNCERTAIN
            contradictions.append(Contradiction(finding, *clashes[0]))
        elif affirmed:
            states[finding] = PRESENT
        else:
            states[finding] = UNCERTAIN if any(mention.state == UNCERTAIN for mention in named) else ABSENT
    for state in (PRESENT, UNCERTAIN):
        for finding in [one for one, its in states.items() if its == state]:
            for broader in lexicon.broader(finding):
                if state == PRESENT or states.get(broader) != PRESENT:
                    states[broader] = state

    def those(state: str) -> tuple[Finding, ...]:
        return tuple(finding for finding, its in states.items() if its == state)

    return those(PRESENT), those(ABSENT), those(UNCERTAIN), tuple(contradictions)


def _contradict(affirmed: Mention, denied: Mention) -> bool:
    """Whether a denial is of what another sentence affirms."""
    if affirmed.sentence == denied.sentence:
        return False
    for own, other in ((affirmed.side, denied.side), (affirmed.place, denied.place)):
        if other is not None and own != other and not (own == "bilateral" and other in ("left", "right")):
            return False
    return True
