"""Prompts: the sentences a radiologist would write about a class, in present and absent forms, as an ensemble.

Ensembles of present and absent sentences after CheXzero (Tiu et al. 2022) and CLIP's templates. The built-in texts are
written for this project and lie beside it in descriptions.toml.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from .errors import DescriptionError

PRESENT = ("{term}.", "There is {term}.", "Findings consistent with {term}.", "The image shows {term}.")
"""Present forms for a class that is only named."""

ABSENT = ("No {term}.", "There is no {term}.", "No evidence of {term}.", "Without {term}.")
"""Absent forms of the same."""

BUILT_IN = ("chestxray14", "phantoms", "anatomy", "locations", "modality")
"""Built-in sets of descriptions."""


@dataclass(frozen=True)
class Prompts:
    """Sentences about one class.

    Attributes:
        present: What is written where it is there; at least one.
        absent: What is written where it is not.
    """

    present: tuple[str, ...]
    absent: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse a class of which nothing is said.

        Raises:
            DescriptionError: There is no present form.
        """
        if not any(text.strip() for text in self.present):
            raise DescriptionError("Prompts need at least one sentence about what is seen when the class is there.")


def prompts_for(term: str, synonyms: Sequence[str] = ()) -> Prompts:
    """Make an ensemble from a term and its synonyms by templates.

    Example:
        >>> prompts_for("pneumothorax").absent[0]
        'No pneumothorax.'
    """
    terms = [text for text in dict.fromkeys((term, *synonyms)) if text.strip()]
    if not terms:
        raise DescriptionError("A class needs a name that is not empty.")

    def filled(templates: tuple[str, ...]) -> tuple[str, ...]:
        sentences = [form.format(term=text) for text in terms for form in templates]
        return tuple(text[:1].upper() + text[1:] for text in sentences)

    return Prompts(filled(PRESENT), filled(ABSENT))


def read_descriptions(path: str | os.PathLike[str]) -> dict[str, Prompts]:
    """Read a TOML file of descriptions.

    Each class is a table with `sentences` (texts that describe it), `terms` (what it is called, filled into present
    and absent templates), or both; or a plain text or list of texts.

    Raises:
        DescriptionError: The file is missing or no TOML, or a class is described by nothing.
    """
    file = Path(path)
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DescriptionError(f"There is no file of descriptions '{file}'.") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DescriptionError(f"'{file}' cannot be read as TOML: {error}.") from None
    return prompts_of(document, f"'{file}'")


def built_in_descriptions(name: str) -> dict[str, Prompts]:
    """Return a built-in set of descriptions: class -> prompts.

    Args:
        name: "chestxray14" (the 14 findings and No Finding), "phantoms", "anatomy" (medpix2's location_category),
            "locations" (its finer ones) or "modality".

    Raises:
        DescriptionError: There is none of this name.
    """
    if name not in BUILT_IN:
        close = difflib.get_close_matches(name, BUILT_IN, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise DescriptionError(f"There are no built-in descriptions {name!r}; there are {', '.join(BUILT_IN)}.{hint}")
    return dict(_built_in()[name])


@cache
def _built_in() -> dict[str, dict[str, Prompts]]:
    text = (resources.files("zeroshot") / "descriptions.toml").read_text(encoding="utf-8")
    document = tomllib.loads(text)
    return {name: prompts_of(document[name], f"the built-in set {name!r}") for name in BUILT_IN}


def prompts_of(document: Mapping[str, Any], source: str) -> dict[str, Prompts]:
    """Turn a document of classes into prompts.

    Raises:
        DescriptionError: A class is described by nothing, or by something that is no text.
    """
    found = {}
    for name, said in document.items():
        if isinstance(said, Mapping):
            unknown = sorted(set(said) - {"sentences", "terms", "absent"})
            if unknown:
                raise DescriptionError(
                    f"A class has sentences, terms and absent; {name!r} in {source} has {unknown[0]!r}."
                )
            sentences, terms, absent = (
                _texts(said.get(key, ()), name, source) for key in ("sentences", "terms", "absent")
            )
        else:
            sentences, terms, absent = _texts(said, name, source), (), ()
        ensemble = prompts_for(terms[0], terms[1:]) if terms else None
        present = (*sentences, *(ensemble.present if ensemble else ()))
        if not present:
            raise DescriptionError(f"The class {name!r} in {source} has no text: describe it in at least one sentence.")
        found[name] = Prompts(present, (*absent, *(ensemble.absent if ensemble else ())))
    if not found:
        raise DescriptionError(f"{source[:1].upper()}{source[1:]} describes no class.")
    return found


def _texts(said: object, name: str, source: str) -> tuple[str, ...]:
    texts = (said,) if isinstance(said, str) else said
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise DescriptionError(f"The class {name!r} in {source} must be described by texts; got {said!r}.")
    return tuple(text.strip() for text in texts if text.strip())
