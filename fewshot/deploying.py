"""Make a deployment of a comparison set, and open one again."""

from __future__ import annotations

from collections import Counter
from difflib import get_close_matches
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .deployment import Deployment
from .deployment_fit import SetAside, class_closeness, fit, known_by_words_alone
from .deployment_store import Members, current_number, members_of, read_record, refitted, write_new
from .fitted import Fitted
from .priors import Words
from .recipe import Recipe
from .registry import HEAD_OF, NEEDY_HEADS, TRANSDUCTIVE_HEADS, WORDS_HEAD, make_head

if TYPE_CHECKING:
    from embeddings import Encoder, SimilarityHead, SourceStatistics

    from .comparison import ComparisonSet


def deploy(cases: ComparisonSet, recipe: Recipe | None = None, *, encoder: Encoder | None = None) -> Deployment:
    """Make the set as it is now the deployment that answers, and keep it beside those before.

    Args:
        cases: The set, with its support and, where there are any, images set aside for calibration.
        recipe: What to make of it; the defaults of `Recipe` where None.
        encoder: The set's encoder, whose source mean and learnt comparison are needed; by default the one the set was
            opened with.

    Returns:
        The deployment. What there were too few patients for is in its `remarks`.

    Raises:
        ValueError: An empty set, no encoder, an unknown or transductive head, a class of the recipe that the set does
            not have.
        ArchiveError: It cannot be written; the deployment before still answers.
    """
    wanted, used = recipe or Recipe(), encoder if encoder is not None else cases.encoder
    if used is None:
        raise ValueError("This comparison set was opened without an encoder, which deploying needs.")
    check_deployable(cases, wanted, used)
    learnt = used.similarity, used.source_statistics
    with cases.archive.writing():  # what is fitted to is what its version holds
        members = members_of(cases, cases.archive.version)
        words = cases.words if wanted.head in ("auto", WORDS_HEAD) else None
        if not len(members.support_rows) and words is None:
            raise ValueError("The comparison set is empty: register at least one image before deploying.")
        if wanted.calibrate_on == "set-aside" and not len(members.aside):
            raise ValueError(
                "No image is set aside to calibrate on: register some of other patients with the role 'calibration', "
                "or calibrate on the support."
            )
        fitted = _fit(wanted, members, used.source_mean, *learnt, words)
        record = write_new(
            cases,
            wanted,
            members,
            fitted,
            center=used.source_mean,
            needs_encoder=_needs_encoder(fitted, *learnt),
            words=words,
        )
    return Deployment(record, members, fitted, similarity=learnt[0], source=learnt[1])


def check_deployable(cases: ComparisonSet, recipe: Recipe, encoder: Encoder) -> None:
    """Refuse what cannot be deployed, before anything is registered for it.

    Args:
        cases: The set.
        recipe: What is wanted.
        encoder: The set's encoder.

    Raises:
        ValueError: An empty set, an unknown or transductive head, a class of the recipe that the set does not have.
        EncoderMismatch: The set's vectors were made by another encoder.
    """
    cases.archive.check_encoder(encoder)
    if recipe.head in TRANSDUCTIVE_HEADS:
        raise ValueError(
            f"The head {recipe.head!r} cannot be deployed: its answer to a patient depends on who else is asked about."
        )
    words = cases.words if recipe.head in ("auto", WORDS_HEAD) else None
    make_head(recipe.head, similarity=encoder.similarity, source=encoder.source_statistics, words=words)
    told = {} if words is None else words.priors
    classes = sorted({*cases.classes, *told})
    if not classes:
        raise ValueError("The comparison set is empty: register at least one image before deploying.")
    missing = recipe.missing(classes)
    if missing is not None:
        raise ValueError(f"{missing[0]} names the class {missing[1]!r}; the set has {', '.join(classes)}.")
    unnamed = sorted(set(classes) - set(recipe.prevalence)) if recipe.prevalence is not None else []
    if unnamed:
        raise ValueError(f"prevalence must name every class of the set; {unnamed[0]!r} is missing.")


def open_deployment(cases: ComparisonSet, number: int | None = None, *, encoder: Encoder | None = None) -> Deployment:
    """Open a deployment; where images of it were removed since, it is fitted again without them and kept so.

    Args:
        cases: The set.
        number: Which; the one that answers where None.
        encoder: The set's encoder, needed where the head decides by what was learnt with it; by default the one the set
            was opened with.

    Returns:
        The deployment.

    Raises:
        LookupError: There is none, or none of this number.
        ValueError: All its support images were removed, the set was embedded anew with another encoder, or the head
            needs the encoder.
        ArchiveCorrupt: What is stored is not what was written.
    """
    wanted = current_number(cases) if number is None else number
    record = read_record(cases, wanted)
    if record.encoder != cases.archive.encoder_fingerprint:
        raise ValueError(
            f"Deployment {wanted} was made with another encoder than the set has now: deploy the set as it is now."
        )
    members = members_of(cases, record.set_version)
    if not len(members.support_rows) and record.words is None:
        raise ValueError(f"Every support image of deployment {wanted} was removed: deploy the set as it is now.")
    used = encoder if encoder is not None else cases.encoder
    if used is not None:
        cases.archive.check_encoder(used)
    elif record.needs_encoder:
        raise ValueError(f"Deployment {wanted} decides by what was learnt with the encoder: give the encoder.")
    similarity, source = (None, None) if used is None else (used.similarity, used.source_statistics)
    fitted = record.fitted_to(members)
    if fitted is None:
        fitted = _fit(record.recipe, members, record.center, similarity, source, record.words)
        refitted(cases, record, members, fitted)
    return Deployment(record, members, fitted, similarity=similarity, source=source)


def _fit(
    recipe: Recipe,
    members: Members,
    center: NDArray[np.float32] | None,
    similarity: SimilarityHead | None,
    source: SourceStatistics | None,
    words: Words | None = None,
) -> Fitted:
    support, aside = members.support, members.aside
    unseen = [] if words is None else sorted(set(words.priors) - {str(label) for label in support.classes})
    if unseen:
        return known_by_words_alone(support, unseen)
    position = {label: i for i, label in enumerate(support.classes)}
    known = [i for i, row in enumerate(aside.metadata) if row["label"] in position]
    strange = Counter(str(row["label"]) for row in aside.metadata if row["label"] not in position)
    remarks = [
        f"{count:,} images set aside are of {label!r}, which the set does not have, and take no part."
        + (f" Did you mean {close[0]!r}?" if (close := get_close_matches(label, map(str, position), n=1)) else "")
        for label, count in sorted(strange.items())
    ]
    return fit(
        recipe,
        support,
        SetAside(
            vectors=np.ascontiguousarray(aside.vectors[known]),
            targets=np.array([position[aside.metadata[i]["label"]] for i in known], dtype=np.intp),
            groups=[aside.metadata[i].get("patient") for i in known],
            remarks=tuple(remarks),
        ),
        center=center,
        make=lambda name: make_head(name, center=center, similarity=similarity, source=source, words=words),
        near=lambda: class_closeness(center),
        worded=words is not None,
    )


def _needs_encoder(fitted: Fitted, similarity: SimilarityHead | None, source: SourceStatistics | None) -> bool:
    """Whether the head decides by what only the encoder brings."""
    by_comparison = similarity is not None and HEAD_OF.get(similarity.name) == fitted.head
    return by_comparison or fitted.head in NEEDY_HEADS
