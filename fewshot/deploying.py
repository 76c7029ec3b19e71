"""Make a deployment of a comparison set, and open one again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .deployment import Deployment
from .deployment_fit import SetAside, class_closeness, fit
from .deployment_store import Members, current_number, members_of, read_record, refitted, write_new
from .fitted import Fitted
from .recipe import Recipe
from .registry import HEAD_OF, make_head

if TYPE_CHECKING:
    from embeddings import Encoder, SimilarityHead

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
        ValueError: An empty set, no encoder, an unknown head, a class of the recipe that the set does not have.
        ArchiveError: It cannot be written; the deployment before still answers.
    """
    wanted, used = recipe or Recipe(), _encoder_of(cases, encoder)
    with cases.archive.writing():  # what is fitted to is what its version holds
        members = members_of(cases, cases.archive.version)
        if not len(members.support_rows):
            raise ValueError("The comparison set is empty: register at least one image before deploying.")
        fitted = _fit(wanted, members, used.source_mean, used.similarity)
        record = write_new(cases, wanted, members, fitted, center=used.source_mean, learnt=used.similarity is not None)
    return Deployment(record, members, fitted, similarity=used.similarity)


def open_deployment(cases: ComparisonSet, number: int | None = None, *, encoder: Encoder | None = None) -> Deployment:
    """Open a deployment; where images of it were removed since, it is fitted again without them and kept so.

    Args:
        cases: The set.
        number: Which; the one that answers where None.
        encoder: The set's encoder, needed where the head decides by a learnt comparison; by default the one the set
            was opened with.

    Returns:
        The deployment.

    Raises:
        LookupError: There is none, or none of this number.
        ValueError: All its support images were removed, or its head needs the encoder.
        ArchiveCorrupt: What is stored is not what was written.
    """
    wanted = current_number(cases) if number is None else number
    record = read_record(cases, wanted)
    members = members_of(cases, record.set_version)
    if not len(members.support_rows):
        raise ValueError(f"Every support image of deployment {wanted} was removed: deploy the set as it is now.")
    used = encoder if encoder is not None else cases.encoder
    similarity = None if used is None else used.similarity
    fitted = record.fitted_to(members)
    if fitted is None:
        fitted = _fit(record.recipe, members, record.center, similarity)
        refitted(cases, record, members, fitted)
    elif fitted.head in HEAD_OF.values() and similarity is None and record.learnt:
        raise ValueError(f"The head {fitted.head!r} decides by a comparison learnt with the encoder: give the encoder.")
    return Deployment(record, members, fitted, similarity=similarity)


def _fit(
    recipe: Recipe, members: Members, center: NDArray[np.float32] | None, similarity: SimilarityHead | None
) -> Fitted:
    support = members.support
    position = {label: i for i, label in enumerate(support.classes)}
    aside = members.aside
    known = [i for i, row in enumerate(aside.metadata) if row["label"] in position]
    fitted = fit(
        recipe,
        support,
        SetAside(
            vectors=np.ascontiguousarray(aside.vectors[known]),
            targets=np.array([position[aside.metadata[i]["label"]] for i in known], dtype=np.intp),
            groups=[aside.metadata[i].get("patient") for i in known],
        ),
        center=center,
        make=lambda name: make_head(name, center=center, similarity=similarity),
        near=lambda: class_closeness(center),
    )
    return fitted


def _encoder_of(cases: ComparisonSet, encoder: Encoder | None) -> Encoder:
    used = encoder if encoder is not None else cases.encoder
    if used is None:
        raise ValueError("This comparison set was opened without an encoder, which deploying needs.")
    cases.archive.check_encoder(used)
    return used
