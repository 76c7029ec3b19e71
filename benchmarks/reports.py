"""L1: findings of radiology reports against a human index, `zeroshot.parse_report` beside keywords and negspacy.

    RADSHOT_DATA=... python benchmarks/reports.py --part develop
    RADSHOT_DATA=... python benchmarks/reports.py --part test

The reports are those of indiana_reports but the 92 without an index; the test part (`uid % 5 == 0`) was not read while
the lexicon and the rules were written. A finding of the index is present; a method predicts what it calls present from
the findings and the impression. Macro F1 is over the findings with 10 or more positives (of the test part), with a
bootstrap over reports. negspacy needs an environment of its own (it does not train anything, and no model is
downloaded); run from there, the peer's rows come too:

    python -m venv .peers-nlp && .peers-nlp/bin/pip install --only-binary :all: negspacy pandas
    RADSHOT_DATA=... PYTHONPATH=. .peers-nlp/bin/python benchmarks/reports.py --part test
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from zeroshot.errors import ReportError
from zeroshot.lexicon import Lexicon
from zeroshot.phrases import phrase_pattern
from zeroshot.reports import parse_report

#: Positives that a finding needs to count: as agreed for the test part, and in proportion for the larger rest.
FEWEST = {"test": 10, "develop": 40}
DRAWS, SEED = 2000, 0
#: What the index calls a report without findings; `Report.normal` answers it, and it is no finding.
NORMAL = "normal"

_SENTENCE = re.compile(r"(?<=[.!?])\s+")
_NEGATED = re.compile(r"\b(?:no|not|without|negative for|free of|absence of)\b", re.IGNORECASE)

Predict = Callable[[dict[str, str]], set[str]]


def reports(part: str) -> tuple[list[dict[str, str]], list[set[str]]]:
    """Return the reports of a part, section -> text, and the findings of each in the index."""
    table = pd.read_csv(Path(os.environ["RADSHOT_DATA"]) / "indiana_reports" / "indiana_reports.csv")
    table = table[table["Problems"] != "No Indexing"]
    table = table[(table["uid"] % 5 == 0) == (part == "test")]
    sections = ["indication", "comparison", "findings", "impression"]
    texts = [
        {name: text for name, text in zip(sections, row, strict=True) if isinstance(text, str)}
        for row in table[sections].itertuples(index=False)
    ]
    return texts, [{name.strip() for name in names.split(";")} for names in table["Problems"]]


def body(report: dict[str, str]) -> str:
    """Return findings and impression as one text."""
    return " ".join(report[name] for name in ("findings", "impression") if name in report)


def parsed(lexicon: Lexicon, doubted: bool = False) -> Predict:
    """Return `parse_report` as a method; with `doubted`, uncertain findings count as present."""

    def predict(report: dict[str, str]) -> set[str]:
        try:
            read = parse_report(report, lexicon)
        except ReportError:
            return set()
        found = {finding.name for finding in read.present + (read.uncertain if doubted else ())}
        return found | ({NORMAL} if read.normal else set())

    return predict


def keywords(lexicon: Lexicon, negation: bool) -> Predict:
    """Return the search for a finding's name and aliases, as one would write it in an afternoon.

    With `negation`, a sentence's words after a `no`, `not`, `without` and the like do not count.
    """
    patterns = {
        finding.name: re.compile(
            r"\b(?:" + "|".join(map(phrase_pattern, _names(finding.name, finding.aliases))) + r")\b", re.IGNORECASE
        )
        for finding in lexicon
    }

    def predict(report: dict[str, str]) -> set[str]:
        found = set()
        for sentence in _SENTENCE.split(body(report)):
            denied = _NEGATED.search(sentence)
            text = sentence[: denied.start()] if negation and denied else sentence
            found |= {name for name, pattern in patterns.items() if pattern.search(text)}
        return found or {NORMAL}

    return predict


def terms(lexicon: Lexicon, negation: bool) -> Predict:
    """Return the search for the lexicon's own terms, without context or with that of one regular expression."""

    def predict(report: dict[str, str]) -> set[str]:
        found = set()
        for sentence in _SENTENCE.split(body(report)):
            denied = _NEGATED.search(sentence)
            for match in lexicon.search(sentence):
                if not match.denial and not (negation and denied and denied.start() < match.start):
                    found |= _with_broader(lexicon, match.finding.name)
        return found or {NORMAL}

    return predict


def negspacy(lexicon: Lexicon, own_terms: bool) -> Predict:
    """Return negspacy as its documentation uses it: a sentencizer, entities, `negex`, what is not negated.

    The entities are names and aliases by spaCy's entity ruler or, with `own_terms`, what the lexicon finds.
    """
    import spacy
    from negspacy.negation import Negex  # noqa: F401  (registers "negex")
    from spacy.util import filter_spans

    pipeline: Any = spacy.blank("en")
    pipeline.add_pipe("sentencizer")
    if not own_terms:
        ruler = pipeline.add_pipe("entity_ruler", config={"phrase_matcher_attr": "LOWER"})
        ruler.add_patterns(
            [
                {"label": finding.name, "pattern": name + plural}
                for finding in lexicon
                for name in _names(finding.name, finding.aliases)
                for plural in ("", "s")
            ]
        )
        pipeline.add_pipe("negex", config={"ent_types": [finding.name for finding in lexicon]})
    else:
        negex = pipeline.create_pipe("negex", config={"ent_types": [finding.name for finding in lexicon]})

    def predict(report: dict[str, str]) -> set[str]:
        document = pipeline(body(report))
        if own_terms:
            spans = [
                document.char_span(
                    sentence.start_char + match.start,
                    sentence.start_char + match.end,
                    label=match.finding.name,
                    alignment_mode="expand",
                )
                for sentence in document.sents
                for match in lexicon.search(sentence.text)
                if not match.denial
            ]
            document.ents = filter_spans([span for span in spans if span is not None])
            document = negex(document)
        found: set[str] = set()
        for entity in document.ents:
            if not entity._.negex:
                found |= _with_broader(lexicon, entity.label_)
        return found or {NORMAL}

    return predict


def _names(name: str, aliases: Iterable[str]) -> list[str]:
    """Return a finding's names as they are written in a sentence: `Emphysema, Bullous` is `bullous emphysema`."""
    return [" ".join(reversed(one.lower().split(", "))) for one in (name, *aliases)]


def _with_broader(lexicon: Lexicon, name: str) -> set[str]:
    return {name, *(broader.name for broader in lexicon.broader(lexicon[name]))}


def counts(
    predicted: list[set[str]], truth: list[set[str]], names: list[str], weights: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """Return true positives, false positives and false negatives, (n_names, 3), each report with its weight."""
    told = np.array([[name in one for name in names] for one in predicted], dtype=float)
    true = np.array([[name in one for name in names] for one in truth], dtype=float)
    weight = np.ones(len(truth)) if weights is None else weights
    return np.stack([weight @ (told * true), weight @ (told * (1 - true)), weight @ ((1 - told) * true)], axis=1)


def f1(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return F1 of each row of true positives, false positives and false negatives; 0 where there is nothing."""
    both = 2 * table[:, 0] + table[:, 1] + table[:, 2]
    return np.divide(2 * table[:, 0], both, out=np.zeros(len(table)), where=both > 0)


def interval(predicted: list[set[str]], truth: list[set[str]], names: list[str]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of macro F1 over reports; a draw without a finding leaves it out."""
    rng = np.random.default_rng(SEED)
    macro = []
    for _ in range(DRAWS):
        weights = np.bincount(rng.integers(len(truth), size=len(truth)), minlength=len(truth)).astype(float)
        table = counts(predicted, truth, names, weights)
        there = table[:, 0] + table[:, 2] > 0
        macro.append(f1(table)[there].mean())
    low, high = np.quantile(macro, [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    """Print two tables: methods, and the parser's findings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=sorted(FEWEST), required=True)
    part = parser.parse_args().part
    texts, truth = reports(part)
    positives = Counter(name for one in truth for name in one if name != NORMAL)
    names = [name for name, count in positives.most_common() if count >= FEWEST[part]]
    lexicon = Lexicon.builtin()
    methods: dict[str, Predict] = {
        "names, no context": keywords(lexicon, negation=False),
        "names, one-line negation": keywords(lexicon, negation=True),
    }
    if importlib.util.find_spec("negspacy") is not None:
        methods["names, negspacy"] = negspacy(lexicon, own_terms=False)
    methods["radshot's terms, no context"] = terms(lexicon, negation=False)
    methods["radshot's terms, one-line negation"] = terms(lexicon, negation=True)
    if importlib.util.find_spec("negspacy") is not None:
        methods["radshot's terms, negspacy"] = negspacy(lexicon, own_terms=True)
    methods["`parse_report`"] = parsed(lexicon)
    methods["`parse_report`, uncertain as present"] = parsed(lexicon, doubted=True)
    print(f"{part}: {len(texts):,} reports, {len(names)} findings with at least {FEWEST[part]} positives\n")
    print("| method | macro F1 | 95 % (reports) | micro precision | micro recall | macro F1 with normal |")
    print("|---|---|---|---|---|---|")
    for method, predict in methods.items():
        predicted = [predict(text) for text in texts]
        table = counts(predicted, truth, names)
        low, high = interval(predicted, truth, names)
        true, wrong, missed = table.sum(axis=0)
        whole = f1(counts(predicted, truth, [*names, NORMAL])).mean()
        print(
            f"| {method} | {f1(table).mean():.3f} | {low:.3f} to {high:.3f} | {true / (true + wrong):.3f} "
            f"| {true / (true + missed):.3f} | {whole:.3f} |"
        )
    predict = methods["`parse_report`"]
    predicted = [predict(text) for text in texts]
    table = counts(predicted, truth, [*names, NORMAL])
    print("\n| finding | positives | precision | recall | F1 |\n|---|---|---|---|---|")
    for name, (true, wrong, missed), value in zip([*names, f"({NORMAL})"], table, f1(table), strict=True):
        precision = f"{true / (true + wrong):.3f}" if true + wrong else "none told"
        print(f"| {name} | {true + missed:.0f} | {precision} | {true / (true + missed):.3f} | {value:.3f} |")
    if importlib.util.find_spec("negspacy") is None:
        print("\nnegspacy is not installed here, so its rows are missing; see the head of this file.")


if __name__ == "__main__":
    main()
