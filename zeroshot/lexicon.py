"""The findings a report may name, their terms after MeSH and RadLex, and files of a user's own terms."""

from __future__ import annotations

import difflib
import functools
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import LexiconError
from .phrases import PhraseError, normal_form, phrase_anchors, phrase_pattern, text_anchors

BUILTIN = Path(__file__).with_name("findings.toml")
"""The lexicon that comes with the library."""

_TERMS = ("synonyms", "patterns", "aliases", "ignored", "denied_by", "implies")
_CACHED_SENTENCES = 20_000


@dataclass(frozen=True)
class Finding:
    """One finding and the words for it; two findings of one name are equal, and `str` is the name.

    Attributes:
        name: Canonical name.
        synonyms: Terms of a report, in the language of `zeroshot.phrases`; the name itself counts only where it is
            listed here.
        patterns: Regular expressions, for what that language cannot say.
        aliases: Other names by which `Lexicon.canonical` knows the finding; not looked for in reports.
        ignored: Terms that contain a synonym but are none.
        denied_by: Terms that say the finding is absent, such as a normal heart size.
        implies: Names of broader findings that are present wherever this one is.
        code: Identifier in a vocabulary, as `MeSH D010996` or `RadLex RID34539`.
    """

    name: str
    synonyms: tuple[str, ...] = field(default=(), compare=False, repr=False)
    patterns: tuple[str, ...] = field(default=(), compare=False, repr=False)
    aliases: tuple[str, ...] = field(default=(), compare=False, repr=False)
    ignored: tuple[str, ...] = field(default=(), compare=False, repr=False)
    denied_by: tuple[str, ...] = field(default=(), compare=False, repr=False)
    implies: tuple[str, ...] = field(default=(), compare=False, repr=False)
    code: str | None = field(default=None, compare=False, repr=False)

    def __str__(self) -> str:
        """Return the name."""
        return self.name


@dataclass(frozen=True)
class TermMatch:
    """Words in a text that stand for a finding.

    Attributes:
        finding: The finding.
        start: First character.
        end: One past the last character.
        denial: The words themselves say that it is absent, such as a normal heart size.
    """

    finding: Finding
    start: int
    end: int
    denial: bool = False


@dataclass(frozen=True)
class _Term:
    finding: Finding
    regex: re.Pattern[str]
    kind: str
    gap: bool
    words: int


class Lexicon:
    """Findings by name, and the search for their terms in a text.

    Args:
        findings: The findings; names and aliases must differ, and what they imply must be among them.

    Raises:
        LexiconError: A name twice, an unknown implied name, or a term that cannot be read.

    Example:
        >>> Lexicon.builtin().canonical("effusion")
        'Pleural Effusion'
    """

    def __init__(self, findings: Iterable[Finding]) -> None:
        self.findings: tuple[Finding, ...] = tuple(findings)
        self._by_name: dict[str, Finding] = {}
        for finding in self.findings:
            if self._by_name.setdefault(normal_form(finding.name), finding) is not finding:
                raise LexiconError(f"The lexicon names the finding {finding.name!r} twice.")
        self._by_alias = self._aliases()
        for finding in self.findings:
            for name in finding.implies:
                if normal_form(name) not in self._by_name:
                    raise LexiconError(f"{finding.name!r} implies {name!r}, which the lexicon does not hold.")
        self._anchored: dict[str, list[_Term]] = {}
        self._free: list[_Term] = []
        for finding in self.findings:
            self._compile(finding)
        self._cached = functools.lru_cache(maxsize=_CACHED_SENTENCES)(self._search)

    @classmethod
    def builtin(cls) -> Lexicon:
        """Return the lexicon of chest radiographs that comes with the library (read once)."""
        return _builtin()

    @classmethod
    def read(cls, path: str | Path, *, extend: Lexicon | None = None) -> Lexicon:
        """Read a lexicon from a TOML file of `[[finding]]` tables with a `name` and lists of terms.

        Args:
            path: The file; its tables have the fields of `Finding`.
            extend: A lexicon to extend: a finding of the file that it holds gets the file's terms as well, and a
                finding it does not hold is added.

        Returns:
            The lexicon.

        Raises:
            LexiconError: A file that is no such lexicon.
        """
        try:
            content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise LexiconError(f"The lexicon {path} cannot be read: {error.strerror or error}.") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise LexiconError(f"The lexicon {path} is no TOML file: {error}.") from None
        tables = content.get("finding")
        if not isinstance(tables, list) or not tables or set(content) != {"finding"}:
            raise LexiconError(f"The lexicon {path} must hold [[finding]] tables and nothing else.")
        read = [_finding(table, f"table {i} of {path}") for i, table in enumerate(tables, 1)]
        return cls(read if extend is None else _merged(extend.findings, read))

    @classmethod
    def of_terms(cls, terms: Mapping[str, Sequence[str]], *, extend: Lexicon | None = None) -> Lexicon:
        """Make a lexicon from names and their terms.

        Args:
            terms: Name -> terms, in the language of `zeroshot.phrases`.
            extend: A lexicon to extend, as in `read`.

        Returns:
            The lexicon.
        """
        made = [
            _finding({"name": name, "synonyms": list(words)}, f"the finding {name!r}") for name, words in terms.items()
        ]
        return cls(made if extend is None else _merged(extend.findings, made))

    def __iter__(self) -> Iterator[Finding]:
        """Go through the findings in order."""
        return iter(self.findings)

    def __len__(self) -> int:
        """Return the number of findings."""
        return len(self.findings)

    def __contains__(self, name: object) -> bool:
        """Whether `canonical` knows a name."""
        return isinstance(name, str) and self._named(name) is not None

    def __getitem__(self, name: str) -> Finding:
        """Return a finding by its name, an alias or a synonym, in any number and spelling that a report may use."""
        finding = self._named(name)
        if finding is None:
            close = difflib.get_close_matches(normal_form(name), self._by_alias, n=1, cutoff=0.6)
            hint = f"; did you mean {self._by_alias[close[0]].name!r}?" if close else "."
            raise LexiconError(f"The lexicon of {len(self)} findings does not know {name!r}{hint}")
        return finding

    def canonical(self, name: str) -> str:
        """Return the canonical name of a finding named by an alias or a synonym.

        Args:
            name: Any name; case, underscores and hyphens do not matter.

        Returns:
            The canonical name.

        Raises:
            LexiconError: A name that the lexicon does not know.
        """
        return self[name].name

    def broader(self, finding: Finding) -> tuple[Finding, ...]:
        """Return all findings that a finding implies, through any number of steps."""
        found: dict[str, Finding] = {}
        waiting = list(finding.implies)
        while waiting:
            one = self._by_name[normal_form(waiting.pop(0))]
            if one.name not in found and one != finding:
                found[one.name] = one
                waiting += one.implies
        return tuple(found.values())

    def search(self, text: str) -> tuple[TermMatch, ...]:
        """Return what a text names, in order of place; a term inside a longer one does not count.

        Args:
            text: One sentence.

        Returns:
            Matches by start; each place names a finding at most once.
        """
        return self._cached(text)

    def _named(self, name: str) -> Finding | None:
        """Return the finding of a name, or of words that are wholly one of its terms."""
        if normal_form(name) in self._by_alias:
            return self._by_alias[normal_form(name)]
        whole = [match for match in self.search(name) if (match.start, match.end) == (0, len(name))]
        return whole[0].finding if whole and not whole[0].denial else None

    def _aliases(self) -> dict[str, Finding]:
        """Return all names of findings; a canonical name wins over an alias, an alias over a synonym."""
        table = dict(self._by_name)
        for finding in self.findings:
            for alias in finding.aliases:
                owner = table.setdefault(normal_form(alias), finding)
                if owner != finding:
                    raise LexiconError(f"The lexicon gives the name {alias!r} to {owner.name!r} and {finding.name!r}.")
        for finding in self.findings:
            for synonym in finding.synonyms:
                if re.fullmatch(r"[\w\s'-]+", synonym):
                    table.setdefault(normal_form(synonym), finding)
        return table

    def _compile(self, finding: Finding) -> None:
        """Translate the terms of a finding."""
        for kind, terms in (("named", finding.synonyms), ("ignored", finding.ignored), ("denied", finding.denied_by)):
            for term in terms:
                try:
                    regex = re.compile(rf"(?<!\w)(?:{phrase_pattern(term)})(?!\w)", re.IGNORECASE)
                except PhraseError as error:
                    raise LexiconError(f"The term {term!r} of {finding.name!r} cannot be read: {error}.") from None
                for anchor in set(phrase_anchors(term)):
                    self._anchored.setdefault(anchor, []).append(
                        _Term(finding, regex, kind, "..." in term, len(term.replace("...", "").split()))
                    )
        for pattern in finding.patterns:
            try:
                compiled = re.compile(pattern, re.IGNORECASE)
            except re.error as error:
                raise LexiconError(f"The pattern {pattern!r} of {finding.name!r} cannot be read: {error}.") from None
            self._free.append(_Term(finding, compiled, "named", True, 1))

    def _search(self, text: str) -> tuple[TermMatch, ...]:
        """Find all terms, then drop those inside longer ones."""
        terms = list(self._free)
        for anchor in text_anchors(text):
            terms += self._anchored.get(anchor, ())
        spans = {
            (found.start(), found.end(), term.finding.name, term.kind): term
            for term in sorted(terms, key=lambda term: term.words)
            for found in term.regex.finditer(text)
            if found.end() > found.start()
        }
        kept: list[tuple[int, int, _Term]] = []
        for (start, end, _, _), term in sorted(
            spans.items(),
            key=lambda item: (item[0][0] - item[0][1], item[1].kind != "ignored", -item[1].words, item[0]),
        ):
            if not any(_covers(outer, (start, end, term)) for outer in kept):
                kept.append((start, end, term))
        matches = [
            TermMatch(term.finding, start, end, term.kind == "denied")
            for start, end, term in kept
            if term.kind != "ignored"
        ]
        return tuple(sorted(matches, key=lambda match: (match.start, match.end, match.finding.name)))


def _covers(outer: tuple[int, int, _Term], inner: tuple[int, int, _Term]) -> bool:
    """Whether a kept match makes another one void.

    The words of a gap belong to the sentence rather than to the term, so what lies in a gap is named as well.
    """
    if outer[0] > inner[0] or outer[1] < inner[1]:
        return False
    same_finding, same_span = outer[2].finding == inner[2].finding, outer[:2] == inner[:2]
    if outer[2].kind == "ignored":
        return same_finding
    if same_span:
        return same_finding or outer[2].words > inner[2].words
    touches = outer[0] == inner[0] or outer[1] == inner[1]
    return same_finding or touches or not outer[2].gap


@functools.cache
def _builtin() -> Lexicon:
    return Lexicon.read(BUILTIN)


def _finding(table: Any, where: str) -> Finding:
    """Return the finding of a table."""
    if not isinstance(table, dict) or not isinstance(table.get("name"), str) or not table["name"].strip():
        raise LexiconError(f"A finding needs a name, which {where} lacks.")
    known = {"name", "code", *_TERMS}
    for key, value in table.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else f"; it may have {', '.join(sorted(known))}."
            raise LexiconError(f"The finding {table['name']!r} has an unknown field {key!r}{hint}")
        if key in _TERMS and not (isinstance(value, list) and all(isinstance(one, str) and one for one in value)):
            raise LexiconError(f"The field {key!r} of the finding {table['name']!r} must be a list of texts.")
    if not isinstance(table.get("code", ""), str):
        raise LexiconError(f"The field 'code' of the finding {table['name']!r} must be a text.")
    lists = {key: tuple(table.get(key, ())) for key in _TERMS}
    return Finding(table["name"].strip(), code=table.get("code"), **lists)


def _merged(base: Sequence[Finding], added: Sequence[Finding]) -> list[Finding]:
    """Return the findings of both; those of one name get the terms of both."""
    merged = {normal_form(finding.name): finding for finding in base}
    for finding in added:
        old = merged.get(normal_form(finding.name))
        if old is not None:
            lists = {key: tuple(dict.fromkeys(getattr(old, key) + getattr(finding, key))) for key in _TERMS}
            finding = Finding(old.name, code=finding.code or old.code, **lists)
        merged[normal_form(finding.name)] = finding
    return list(merged.values())
