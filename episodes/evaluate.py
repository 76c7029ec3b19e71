"""How well a classifier does on few-shot episodes over vectors that were computed once."""

from __future__ import annotations

import copy
import hashlib
import importlib.metadata
import inspect
import json
import platform
from collections.abc import Hashable, Mapping, Sequence
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .errors import EpisodeError
from .intervals import PairedDifference, paired_difference
from .labels import Groups, Labels, label_sets, patient_list
from .multilabel import MultiLabelEpisodeSampler
from .outcomes import Outcomes, json_safe
from .report import Report, summarise
from .sampler import EpisodeSampler

VERSIONED = ("numpy", "scikit-learn", "torch", "faiss-cpu", "faiss-gpu", "radshot")
"""Distributions whose versions a report names."""


class Classifier(Protocol):
    """What `evaluate` needs: scikit-learn's `fit` and `predict`.

    `fit` may take `ids=` and `groups=` by keyword, and then gets them. `predict` answers with the labels it was given,
    or None for "none of these".
    """

    def fit(self, X: Any, y: Any) -> Any:
        """Learn from (n, d) support vectors and their n labels."""

    def predict(self, X: Any) -> Any:
        """Answer (m, d) query vectors with m labels."""


def evaluate(
    classifier: Classifier,
    vectors: ArrayLike,
    labels: Labels,
    sampler: EpisodeSampler,
    *,
    groups: Groups | None = None,
    ids: Sequence[str] | None = None,
    name: str | None = None,
    provenance: Mapping[str, Any] | None = None,
) -> Report:
    """Fit a copy of the classifier on each episode's support and ask it about the queries.

    The accuracy is class-balanced: the mean over classes of the share of a class's queries, pooled over all episodes,
    that were answered rightly. That is the statistic whose patients the interval resamples. The mean over
    episodes of each episode's balanced accuracy, which the literature prints, is `episode_mean`; the two agree but
    for how often each class was drawn. An abstention counts as wrong.

    Args:
        classifier: Anything with `fit` and `predict`. It stays as it is: copies are fitted (clones where it has
            `get_params`, else shallow ones, so `fit` should set attributes and not change what it was given).
        vectors: (n, d) as the encoder made them; taken as float32.
        labels: The n labels the sampler was made with.
        sampler: The episodes.
        groups: The n patients; by default the sampler's, and no other ones.
        ids: The n image ids, handed to classifiers whose `fit` takes `ids`; by default the row numbers as text.
        name: What to call the classifier; by default its class.
        provenance: Where the vectors come from (encoder name and fingerprint, split, ...), copied into the manifest.

    Returns:
        The report.

    Raises:
        ValueError: A vector is not finite, or the classifier answers with the wrong number of labels or a
            label it was never shown.
        EpisodeError: Labels, groups or ids do not match the sampler, or that is a multi-label one.

    Example:
        >>> from sklearn.neighbors import KNeighborsClassifier
        >>> labels = ["cold"] * 4 + ["warm"] * 4
        >>> vectors = [[0.0], [0.1], [0.2], [0.3], [1.0], [1.1], [1.2], [1.3]]
        >>> episodes = EpisodeSampler(labels, 2, 1, 2, groups=[1, 2, 3, 4, 5, 6, 7, 8], n_episodes=20)
        >>> print(evaluate(KNeighborsClassifier(1), vectors, labels, episodes))
        2-way 1-shot, 20 episodes, 8 patients: accuracy 1.000 [1.000, 1.000] (patients), ± 0.000 (episodes); \
unreliable: fewer than 6 query patients in 'cold' (4), 'warm' (4)
    """
    if isinstance(sampler, MultiLabelEpisodeSampler):
        raise EpisodeError(
            "evaluate takes the episodes of an EpisodeSampler; got a MultiLabelEpisodeSampler, whose episodes are for "
            "evaluate_multilabel."
        )
    rows = _checked_vectors(vectors, len(sampler.labels))
    _check_lists(labels, groups, ids, sampler)
    for method in ("fit", "predict"):
        if not callable(getattr(classifier, method, None)):
            raise EpisodeError(
                f"A classifier needs fit(X, y) and predict(X); {type(classifier).__name__} lacks {method}."
            )
    outcomes = _run(classifier, rows, sampler, ids)
    manifest = {
        "data_sha256": _data_hash(rows, sampler),
        "sampler": sampler.settings,
        "classifier": {"class": type(classifier).__name__, "settings": _settings(classifier)},
        "provenance": json_safe(dict(provenance or {})),
        "versions": _versions(),
    }
    return summarise(outcomes, sampler, name=name or type(classifier).__name__, manifest=manifest)


def compare(first: Report, second: Report, *, seed: int = 0) -> PairedDifference:
    """Return how much better the first classifier did, over the same queries of the same episodes.

    Args:
        first: Report of one classifier (or of one encoder).
        second: Report of another on the same episodes.
        seed: Seed of the bootstrap over patients.

    Returns:
        The difference of the class-balanced accuracies, its interval, and a two-sided p-value.

    Raises:
        EpisodeError: The reports are not over the same episodes, labels and patients.
    """
    one, two = first.outcomes, second.outcomes
    same = one.classes == two.classes and all(
        np.array_equal(getattr(one, part), getattr(two, part)) for part in ("episode", "row", "truth", "patient")
    )
    if not same:
        raise EpisodeError(
            f"{first.name} and {second.name} were not evaluated on the same episodes, labels and patients: "
            f"give both the same EpisodeSampler."
        )
    return paired_difference(one.right, two.right, one.truth, one.patient, names=(first.name, second.name), seed=seed)


def _run(
    classifier: Classifier, vectors: NDArray[np.float32], sampler: EpisodeSampler, ids: Sequence[str] | None
) -> Outcomes:
    """Answer every query of every episode."""
    takes = inspect.signature(classifier.fit).parameters
    code = {name: i for i, name in enumerate(sampler.classes)}
    patients = sampler.groups if sampler.groups is not None else range(len(sampler.labels))
    queried: list[NDArray[np.intp]] = []
    truths: list[NDArray[np.intp]] = []
    answers: list[int] = []
    for number, episode in enumerate(sampler):
        support = np.concatenate(episode.support)
        query = np.concatenate(episode.query)
        extra: dict[str, Any] = {}
        if "ids" in takes:
            extra["ids"] = [ids[row] if ids is not None else str(row) for row in support.tolist()]
        if "groups" in takes:
            extra["groups"] = [patients[row] for row in support.tolist()]
        taught = [name for name in episode.classes for _ in range(sampler.k_shot)]
        fresh = _unfitted(classifier)
        fresh.fit(vectors[support], taught, **extra)
        answered = fresh.predict(vectors[query])
        if len(answered) != query.size:
            raise ValueError(
                f"Episode {number} has {query.size} queries and the classifier gave {len(answered)} answers."
            )
        known: dict[Hashable, int] = {name: code[name] for name in episode.classes}
        known[None] = -1
        try:
            answers.extend(known[name] for name in answered)
        except KeyError as error:
            raise ValueError(
                f"In episode {number} the classifier answered {error.args[0]!r}, which is none of the classes "
                f"{episode.classes!r} it was shown."
            ) from None
        queried.append(query)
        truths.append(np.repeat([code[name] for name in episode.classes], [part.size for part in episode.query]))
    row = np.concatenate(queried)
    return Outcomes(
        classes=sampler.classes,
        episode=np.repeat(np.arange(len(queried)), [query.size for query in queried]),
        row=row,
        truth=np.concatenate(truths),
        answer=np.array(answers, dtype=np.intp),
        patient=sampler.group_codes[row],
    )


def _unfitted(classifier: Classifier) -> Classifier:
    """Return a copy to fit: scikit-learn's clone where there is `get_params`, since a pipeline fits its own parts."""
    if hasattr(classifier, "get_params"):
        from sklearn.base import clone

        return cast(Classifier, clone(classifier))
    return copy.copy(classifier)


def _checked_vectors(vectors: ArrayLike, n: int) -> NDArray[np.float32]:
    """Return vectors as (n, d) float32, refusing rows that are not finite."""
    rows = np.ascontiguousarray(vectors, dtype=np.float32)
    if rows.ndim != 2 or len(rows) != n:
        raise EpisodeError(f"vectors must have one row for each of the sampler's {n:,} images; got shape {rows.shape}.")
    broken = np.flatnonzero(~np.isfinite(rows).all(axis=1)).tolist()
    if broken:
        shown = ", ".join(map(str, broken[:5])) + (f" and {len(broken) - 5:,} more" if len(broken) > 5 else "")
        raise ValueError(f"Vectors must be finite numbers; rows (counted from 0) with NaN or infinity: {shown}.")
    return rows


def _check_lists(labels: Labels, groups: Groups | None, ids: Sequence[str] | None, sampler: EpisodeSampler) -> None:
    """Refuse lists other than those the episodes were drawn from: they would score another task in silence."""
    given = label_sets(labels)
    if given != sampler.labels:
        if len(given) != len(sampler.labels):
            raise EpisodeError(
                f"There are {len(given):,} labels, and the sampler was made with {len(sampler.labels):,}."
            )
        row = next(i for i, (one, two) in enumerate(zip(given, sampler.labels, strict=True)) if one != two)
        raise EpisodeError(
            f"The label of row {row} is {given[row]!r}, and the sampler was made with {sampler.labels[row]!r}: "
            f"give both the same list."
        )
    if groups is not None and patient_list(groups, len(given)) != sampler.groups:
        raise EpisodeError(
            "The groups are not those the sampler was made with, so its episodes may share patients: "
            "give groups to the EpisodeSampler."
        )
    if ids is not None and len(ids) != len(given):
        raise EpisodeError(f"There are {len(ids):,} ids for {len(given):,} images.")


def _data_hash(vectors: NDArray[np.float32], sampler: EpisodeSampler) -> str:
    """SHA-256 over vectors, labels and patients."""
    digest = hashlib.sha256(repr(vectors.shape).encode())
    digest.update(vectors.astype("<f4", copy=False).tobytes())
    digest.update(json.dumps(json_safe(sampler.labels)).encode())
    digest.update(json.dumps(json_safe(sampler.groups)).encode())
    return digest.hexdigest()


def _settings(classifier: Classifier) -> Any:
    """What a classifier was constructed with, as far as JSON can say it."""
    return json_safe({key: value for key, value in vars(classifier).items() if key[:1] != "_" and key[-1:] != "_"})


def _versions() -> dict[str, str]:
    """Return the versions a result may depend on."""
    found = {"python": platform.python_version()}
    for distribution in VERSIONED:
        try:
            found[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            found[distribution] = "not installed"
    return found
