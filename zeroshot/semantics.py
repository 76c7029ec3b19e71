"""Semantic spaces: what a class is in words, as one vector each; from reports, from traits or from descriptions.

The three kinds of generalized zero-shot chest radiography (Paul et al. 2021, "Generalized zero-shot chest X-ray
diagnosis through trait-guided multi-view semantic embedding with self-training", IEEE TMI): the reports that mention a
class, what radiologists say its traits are, and written descriptions.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import DescriptionError, UnknownDescription, ZeroShotError
from .linear_map import checked_rows, unit_rows
from .prompts import Prompts
from .vocabulary import said_of, unknown_words

if TYPE_CHECKING:
    from embeddings import TextEncoder

Descriptions = Mapping[str, str | Sequence[str] | Prompts]
"""Class -> what is said of it: a sentence, sentences, or prompts in present and absent forms."""


SHOWN_WORDS = 6
"""Unknown words named in a remark, at most."""


@dataclass(frozen=True, eq=False)
class SemanticSpace:
    """One vector per class.

    Attributes:
        kind: "descriptions", "reports" or "traits".
        classes: Their names, in the order of the rows.
        vectors: float64 (c, d).
        absent: float64 (c, d), what it is like not to have the class, NaN where no word of that is known; None where a
            class has no absent form.
        phrases: Class -> the sentences its vector is the mean of; empty for traits.
        phrase_vectors: Class -> float64 (sentences, d), aligned with `phrases`.
        remarks: One sentence each: what should be known about these vectors.
    """

    kind: str
    classes: tuple[str, ...]
    vectors: NDArray[np.float64]
    absent: NDArray[np.float64] | None
    phrases: Mapping[str, tuple[str, ...]]
    phrase_vectors: Mapping[str, NDArray[np.float64]]
    remarks: tuple[str, ...] = ()

    def __len__(self) -> int:
        """Return the number of classes."""
        return len(self.classes)

    def rows(self, names: Iterable[str]) -> NDArray[np.float64]:
        """Return the vectors (n, d) of some classes.

        Raises:
            ZeroShotError: One of them is not here.
        """
        place = {name: row for row, name in enumerate(self.classes)}
        wanted = [str(name) for name in names]
        absent = [name for name in wanted if name not in place]
        if absent:
            raise ZeroShotError(f"The semantic space has no class {absent[0]!r}; it has {', '.join(self.classes)}.")
        vectors: NDArray[np.float64] = self.vectors[[place[name] for name in wanted]]
        return vectors

    def only(self, names: Sequence[str]) -> SemanticSpace:
        """Return the space of some of its classes, in this order."""
        place = {name: row for row, name in enumerate(self.classes)}
        vectors = self.rows(names)
        return SemanticSpace(
            kind=self.kind,
            classes=tuple(names),
            vectors=vectors,
            absent=None if self.absent is None else self.absent[[place[name] for name in names]],
            phrases={name: self.phrases[name] for name in names if name in self.phrases},
            phrase_vectors={name: self.phrase_vectors[name] for name in names if name in self.phrase_vectors},
            remarks=self.remarks,
        )


def from_descriptions(
    descriptions: Descriptions,
    encoder: TextEncoder,
    *,
    prepare: Callable[[Sequence[str]], list[str]] | None = None,
    leave_out: bool = False,
    strict: bool = True,
) -> SemanticSpace:
    """Make a class's vector the mean of the unit vectors of the sentences that describe it.

    Args:
        descriptions: Class -> sentences, or prompts with an absent form.
        encoder: Turns sentences into vectors.
        prepare: What is done to sentences first, as it was to the texts the encoder was fitted on.
        leave_out: Leave a class out, with a remark, of which the encoder knows no word, instead of refusing all.
        strict: A sentence counts only if a word of it that matters is known; else any known word will do.

    Returns:
        The space, with a remark for each sentence that says less than it seems: words the encoder does not know, text
        longer than it takes, another class's name.

    Raises:
        DescriptionError: No class, a class without any text, or one of which the encoder knows no word.
    """
    prompts = {str(name): as_prompts(str(name), said) for name, said in descriptions.items()}
    if not prompts:
        raise DescriptionError("There is no class to describe: give each class's name at least one sentence.")
    remarks: list[str] = []
    vectors, absents, phrases, phrase_vectors = [], [], {}, {}
    for name, prompt in prompts.items():
        try:
            kept, rows = _encoded(name, prompt.present, encoder, prepare, strict, remarks)
        except UnknownDescription as error:
            if not leave_out:
                raise
            remarks.append(f"{name!r} is left out. {error}")
            continue
        phrases[name], phrase_vectors[name] = kept, rows
        vectors.append(unit_rows(rows).mean(axis=0))
        if not prompt.absent:
            continue
        try:
            lacking = unit_rows(_encoded(name, prompt.absent, encoder, prepare, True, [])[1]).mean(axis=0)
        except UnknownDescription:
            remarks.append(f"Of the absence of {name!r} the texts say nothing: only its presence counts.")
            lacking = np.full(rows.shape[1], np.nan)
        absents.append(lacking)
    if not vectors:
        raise DescriptionError(
            f"The text encoder {encoder.name!r} knows no word about any of the classes: {remarks[0]}"
        )
    for name, prompt in prompts.items():
        lone = prompt.present[0] if len(prompt.present) == 1 else ""
        denied = lone if re.match(r"(?:there is |there are )?no |without ", lone, re.IGNORECASE) else None
        if denied is not None:
            remarks.append(
                f"{name!r} is described by what is not there ({denied!r}): say what is seen, or use `absent`."
            )
    remarks += naming_others({name: prompts[name].present for name in phrases})
    return SemanticSpace(
        kind="descriptions",
        classes=tuple(phrases),
        vectors=np.stack(vectors),
        absent=np.stack(absents) if len(absents) == len(vectors) else None,
        phrases=phrases,
        phrase_vectors=phrase_vectors,
        remarks=tuple(remarks),
    )


def from_reports(
    vectors: ArrayLike, labels: Sequence[Sequence[str]], classes: Sequence[str] | None = None
) -> SemanticSpace:
    """Make a class's vector the mean of the unit vectors of the reports that mention it.

    Args:
        vectors: (n, d) text vectors of n reports.
        labels: n collections of the classes each report mentions as present, e.g. `parse_report(text).present`.
        classes: The classes wanted; by default all that are mentioned, sorted.

    Raises:
        DescriptionError: No report mentions a class.
    """
    rows = unit_rows(checked_rows(vectors, None, "Report vectors", ""))
    if len(labels) != len(rows):
        raise ZeroShotError(f"{len(rows)} reports need {len(rows)} collections of labels; got {len(labels)}.")
    named = [{str(name) for name in entry} for entry in labels]
    wanted = tuple(sorted(set().union(*named))) if classes is None else tuple(str(name) for name in classes)
    means = []
    remarks = []
    for name in wanted:
        mine = [row for row, entry in enumerate(named) if name in entry]
        if not mine:
            raise DescriptionError(f"No report mentions {name!r}: describe it in words, or leave it out.")
        if len(mine) < 3:
            remarks.append(f"{name!r} is mentioned by {len(mine)} of {len(rows):,} reports; its vector is theirs.")
        means.append(rows[mine].mean(axis=0))
    return SemanticSpace("reports", wanted, np.stack(means), None, {}, {}, tuple(remarks))


def as_prompts(name: str, said: str | Sequence[str] | Prompts) -> Prompts:
    """Return what is said of a class as prompts.

    Raises:
        DescriptionError: Nothing is said.
    """
    if isinstance(said, Prompts):
        return said
    sentences = (said,) if isinstance(said, str) else tuple(said)
    sentences = tuple(text.strip() for text in sentences if isinstance(text, str) and text.strip())
    if not sentences:
        raise DescriptionError(f"The class {name!r} has no text: describe it in at least one sentence.")
    return Prompts(sentences)


def naming_others(said: Mapping[str, Sequence[str]]) -> list[str]:
    """Return a remark for each class whose text names another class as a whole word."""
    remarks = []
    for name, sentences in said.items():
        for other in said:
            if other.lower() == name.lower() or other.lower() in name.lower():
                continue
            pattern = re.compile(rf"\b{re.escape(other)}\b", re.IGNORECASE)
            hit = next((text for text in sentences if pattern.search(text)), None)
            if hit is not None:
                remarks.append(
                    f"The description of {name!r} names another class, {other!r} ({hit!r}): it draws the two together."
                )
    return remarks


def _encoded(
    name: str,
    sentences: Sequence[str],
    encoder: TextEncoder,
    prepare: Callable[[Sequence[str]], list[str]] | None,
    strict: bool,
    remarks: list[str],
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Return the sentences that say something to the encoder, and their vectors.

    Raises:
        DescriptionError: None does.
    """
    prepared = list(sentences) if prepare is None else prepare(sentences)
    rows = np.asarray(encoder.encode(prepared), dtype=np.float64)
    unknown = unknown_words(encoder, prepared)
    told = (np.linalg.norm(rows, axis=1) > 0) & np.array(
        [enough or not strict for _, enough in unknown], dtype=np.bool_
    )
    missing = tuple(dict.fromkeys(word for words, _ in unknown for word in words))
    if not told.any():
        raise UnknownDescription(
            f"The text encoder {encoder.name!r} knows no word of the description of {name!r} that matters "
            f"({said_of(encoder, missing[:SHOWN_WORDS]) or 'there is none'}): describe it in words that occur in the "
            "reports it was fitted on, or take another text encoder."
        )
    left = int((~told).sum())
    if left and not missing:  # an encoder that does not say which words it knows
        first = sentences[int(np.flatnonzero(~told)[0])]
        remarks.append(
            f"About {name!r} {left} of {len(sentences)} sentences hold no known word and were left out: {first!r}."
        )
    if missing:
        remarks.append(
            f"About {name!r} these words are not known: {said_of(encoder, missing[:SHOWN_WORDS])}"
            + (" and others" if len(missing) > SHOWN_WORDS else "")
            + (f"; {left} of {len(sentences)} sentences say nothing without them and were left out." if left else ".")
        )
    for sentence, long in zip(sentences, encoder.truncated(list(sentences)), strict=True):
        if long:
            remarks.append(
                f"A text about {name!r} is longer than the encoder takes; its end was cut: {sentence[:60]!r}."
            )
    return tuple(text for text, said in zip(sentences, told.tolist(), strict=True) if said), rows[told]
