"""How well a classifier ranks images for each of several findings that co-occur, and one finding at a time."""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import EpisodeError
from .evaluate import Classifier, _checked_vectors, _settings, _unfitted, _versions
from .label_states import UNKNOWN, as_table
from .multilabel import MultiLabelEpisodeSampler
from .multilabel_pairs import MultiLabelOutcomes
from .multilabel_report import MultiLabelReport
from .multilabel_summary import summarise_multilabel
from .outcomes import json_safe
from .sampler import EpisodeSampler


class MultiLabelClassifier(Protocol):
    """What `evaluate_multilabel` needs: `fit` and `decision_function`, as scikit-learn's multi-label classifiers have.

    `fit` may take `ids=` and `groups=` by keyword, and then gets them.
    """

    def fit(self, X: Any, y: Any) -> Any:
        """Learn from (n, d) support vectors and their labels (n, n_labels): 1 present, 0 absent, NaN unknown."""

    def decision_function(self, X: Any) -> Any:
        """Score (m, d) query vectors, (m, n_labels): larger is likelier present; NaN for no answer.

        With a single label (m,) will do.
        """


def evaluate_multilabel(
    classifier: MultiLabelClassifier,
    vectors: ArrayLike,
    sampler: MultiLabelEpisodeSampler,
    *,
    ids: Sequence[str] | None = None,
    name: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> MultiLabelReport:
    """Fit a copy of the classifier on each episode's support and let it score the queries for every label.

    The AUROC of a label is the share of pairs of queries of the same episode, one with the label and one without, that
    the scores put in the right order; pairs are pooled over all episodes, which is the statistic whose patients the
    interval resamples. The mean over episodes of each episode's own AUROC, which the literature prints, is
    `episode_mean`; the two agree but for the weight of episodes with many queries. Scores of different episodes
    are never compared. A query that does not mention a label is not asked about it.

    Args:
        classifier: Anything with `fit` and `decision_function`. It stays as it is: copies are fitted.
        vectors: (n, d) as the encoder made them; taken as float32.
        sampler: The episodes, made with the labels and patients of the same n images.
        ids: The n image ids, handed to classifiers whose `fit` takes `ids`; by default the row numbers as text.
        name: What to call the classifier; by default its class.
        provenance: Where the vectors come from (encoder name and fingerprint, split, ...), copied into the manifest.

    Returns:
        The report.

    Raises:
        ValueError: A vector is not finite, or the classifier gives scores of the wrong shape or infinite ones.
        EpisodeError: Vectors or ids do not match the sampler, or that is a single-label one.
    """
    _check_sampler("evaluate_multilabel", sampler)
    rows = _checked(classifier, vectors, len(sampler.states), ids)
    outcomes = _run(classifier, rows, sampler, ids)
    return _report(classifier, rows, sampler, outcomes, name, dict(provenance or {}))


def label_auroc(
    classifier: MultiLabelClassifier,
    vectors: ArrayLike,
    sampler: MultiLabelEpisodeSampler,
    *,
    ids: Sequence[str] | None = None,
    name: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> MultiLabelReport:
    """Take one label at a time: a few patients who have it, then images of other patients, ranked.

    Args:
        classifier: As for `evaluate_multilabel`.
        vectors: (n, d).
        sampler: A 1-way sampler. Each of its classes gets `n_episodes` episodes of its own. With `n_query=None` every
            image of all patients outside the support is ranked.
        ids: As for `evaluate_multilabel`.
        name: What to call the classifier.
        provenance: Where the vectors come from.

    Returns:
        One report over all labels that qualify.

    Raises:
        ValueError: As for `evaluate_multilabel`.
        EpisodeError: Vectors or ids do not match the sampler, or it is not 1-way.
    """
    _check_sampler("label_auroc", sampler)
    if sampler.n_way != 1:
        raise EpisodeError(f"label_auroc takes one label at a time, with n_way 1; the sampler's is {sampler.n_way}.")
    rows = _checked(classifier, vectors, len(sampler.states), ids)
    parts = [_run(classifier, rows, sampler.of_class(label), ids) for label in sampler.classes]
    return _report(classifier, rows, sampler, _joined(parts), name, dict(provenance or {}), each_class=True)


def _check_sampler(function: str, sampler: object) -> None:
    """Raise an EpisodeError for episodes in which every image has one class."""
    if isinstance(sampler, EpisodeSampler):
        raise EpisodeError(
            f"{function} takes the episodes of a MultiLabelEpisodeSampler; got an EpisodeSampler, whose episodes are "
            "for evaluate."
        )


def _run(
    classifier: MultiLabelClassifier,
    vectors: NDArray[np.float32],
    sampler: MultiLabelEpisodeSampler,
    ids: Sequence[str] | None,
) -> MultiLabelOutcomes:
    """Score every query of every episode for every label of the episode."""
    takes = inspect.signature(classifier.fit).parameters
    code = {name: i for i, name in enumerate(sampler.classes)}
    patients = sampler.groups if sampler.groups is not None else range(len(sampler.states))
    shots, drawn, unknown = (np.zeros(len(code), dtype=np.intp) for _ in range(3))
    found: list[tuple[NDArray[Any], ...]] = []
    for number, episode in enumerate(sampler):
        extra: dict[str, Any] = {}
        if "ids" in takes:
            extra["ids"] = [ids[row] if ids is not None else str(row) for row in episode.support.tolist()]
        if "groups" in takes:
            extra["groups"] = [patients[row] for row in episode.support.tolist()]
        fresh = cast(MultiLabelClassifier, _unfitted(cast(Classifier, classifier)))
        fresh.fit(vectors[episode.support], as_table(episode.support_labels), **extra)
        scores = np.asarray(fresh.decision_function(vectors[episode.query]), dtype=np.float64)
        wanted = episode.query_labels.shape
        if scores.shape != wanted and not (wanted[1] == 1 and scores.shape == wanted[:1]):
            raise ValueError(
                f"Episode {number} has {wanted[0]} queries and {wanted[1]} labels, and the classifier gave scores of "
                f"shape {scores.shape}."
            )
        if np.isinf(scores).any():
            raise ValueError(f"In episode {number} the classifier gave an infinite score; NaN is no answer.")
        codes = np.array([code[name] for name in episode.classes], dtype=np.intp)
        shots[codes] += (episode.support_labels == 1).sum(axis=0)
        unknown[codes] += (episode.query_labels == UNKNOWN).sum(axis=0)
        drawn[codes] += 1
        query, way = np.nonzero(episode.query_labels != UNKNOWN)
        truth = episode.query_labels[query, way] == 1
        place = np.full(query.size, number, dtype=np.intp)
        found.append((place, episode.query[query], codes[way], truth, scores.reshape(wanted)[query, way]))
    episode_of, row, label, truth, score = (np.concatenate(part) for part in zip(*found, strict=True))
    return MultiLabelOutcomes(
        labels=sampler.classes,
        episode=episode_of,
        row=row,
        label=label,
        truth=truth,
        score=score,
        patient=sampler.group_codes[row],
        shots=shots / np.maximum(drawn, 1),
        unknown=unknown,
    )


def _joined(parts: Sequence[MultiLabelOutcomes]) -> MultiLabelOutcomes:
    """Put the outcomes of single labels one after another; patients are coded alike in all of them."""
    moved = []
    labels = episodes = 0
    for part in parts:
        moved.append(replace(part, label=part.label + labels, episode=part.episode + episodes))
        labels, episodes = labels + len(part.labels), episodes + int(part.episode[-1]) + 1
    long = ("episode", "row", "label", "truth", "score", "patient", "shots", "unknown")
    return MultiLabelOutcomes(
        labels=tuple(label for part in parts for label in part.labels),
        **{name: np.concatenate([getattr(part, name) for part in moved]) for name in long},
    )


def _checked(
    classifier: MultiLabelClassifier, vectors: ArrayLike, n: int, ids: Sequence[str] | None
) -> NDArray[np.float32]:
    """Return the vectors as float32 rows, refusing what cannot be evaluated."""
    for method in ("fit", "decision_function"):
        if not callable(getattr(classifier, method, None)):
            raise EpisodeError(
                f"A multi-label classifier needs fit(X, y) and decision_function(X); "
                f"{type(classifier).__name__} lacks {method}."
            )
    if ids is not None and len(ids) != n:
        raise EpisodeError(f"There are {len(ids):,} ids for {n:,} images.")
    return _checked_vectors(vectors, n)


def _report(
    classifier: MultiLabelClassifier,
    vectors: NDArray[np.float32],
    sampler: MultiLabelEpisodeSampler,
    outcomes: MultiLabelOutcomes,
    name: str | None,
    provenance: dict[str, Any],
    *,
    each_class: bool = False,
) -> MultiLabelReport:
    """Return the report, with the SHA-256 over vectors, labels and patients in its manifest."""
    digest = hashlib.sha256(repr(vectors.shape).encode())
    digest.update(vectors.astype("<f4", copy=False).tobytes())
    digest.update(json.dumps(json_safe(sampler.names)).encode())
    digest.update(sampler.states.tobytes())
    digest.update(json.dumps(json_safe(sampler.groups)).encode())
    manifest = {
        "data_sha256": digest.hexdigest(),
        "sampler": sampler.settings | {"episodes_for_each_class": each_class},
        "classifier": {"class": type(classifier).__name__, "settings": _settings(cast(Classifier, classifier))},
        "provenance": json_safe(provenance),
        "versions": _versions(),
    }
    return summarise_multilabel(
        outcomes, sampler.settings, name=name or type(classifier).__name__, manifest=manifest, excluded=sampler.excluded
    )
