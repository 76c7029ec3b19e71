"""Exact nearest neighbours over an archive: FAISS finds the candidates, float64 decides, ties go by id.

FAISS computes in float32, and how it rounds depends on how many queries come together. So it only proposes: the
candidates are scored again in float64 in a fixed order of summation, and the list is widened until a bound on FAISS's
rounding error proves that no row outside it can belong to the answer. The answer therefore depends on the query and the
rows searched, and on nothing else: not on batch mates, nor on rows that were removed.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .archive import Archive
from .large_search import LargeSearch, Selection
from .quantised import import_faiss
from .search_limits import SearchLimits, choose, measured_recall
from .snapshot import Snapshot
from .summation import row_sums
from .view import condition_of

Metric = Literal["cosine", "euclidean", "dot"]
"""What similarity is: the cosine (0 for a zero vector), minus the Euclidean distance, or the dot product."""

SPARE = 16
"""Candidates FAISS is asked for beyond k; widened fourfold where that does not suffice."""

BLOCK_VALUES = 1 << 22
"""Float64 values scored at once, which bounds the memory of a search (32 MiB)."""

LARGE_ROWS = 2048
"""Archives above this many rows are searched from disk, version by version, instead of from a snapshot in memory."""

RETUNE_SHARE = 0.2
"""Limits are measured anew when so large a share of the rows came or went since."""

_UNIT = 2.0**-24


@dataclass(frozen=True, slots=True)
class SearchResult:
    """Neighbours of m queries.

    Attributes:
        ids: Per query the ids, most similar first; equal similarities in order of id.
        similarities: float32 (m, k'), larger is closer; k' = min(k, rows searched).
        version: The archive's version that was searched.
        exact: Whether every answer is proven to be the exact one; always so but for whole archives above 20,000 rows
            with very many rows of nearly the same similarity.
    """

    ids: list[list[str]]
    similarities: NDArray[np.float32]
    version: int
    exact: bool = True


class Index:
    """Search over a snapshot, or over an archive's newest version whatever it is at each search.

    Snapshots and small archives are searched in float32. Larger archives are searched by the cosine from 8-bit codes
    kept beside them, and ranked by the stored float32 vectors, see `embeddings.large_search`. Answers are exact up to
    20,000 rows and over selections of rows; above, nearly always, and `SearchResult.exact` says whether.
    """

    def __init__(
        self, source: Snapshot | Archive, *, metric: Metric = "cosine", limits: SearchLimits | None = None
    ) -> None:
        """Choose what to search and how.

        Args:
            source: A snapshot stays as it is; an archive is followed, so that a removed row is gone at the next search.
            metric: "cosine" normalises queries and rows, "euclidean" and "dot" take them as they are.
            limits: What a search of a large archive may cost. Where searching every row keeps the limits, that is done;
                else 1-bit sketches propose the rows that are ranked, their recall is measured, and `plan` says both.

        Raises:
            ValueError: The metric is unknown.
        """
        if metric not in get_args(Metric):
            raise ValueError(f"The metric must be one of {', '.join(get_args(Metric))}; got {metric!r}.")
        self.metric: Metric = metric
        self._source = source
        self._current: _Rows | None = None
        self._large = LargeSearch(source.store) if isinstance(source, Archive) and metric == "cosine" else None
        self._limits = limits
        self._tuned: int | None = None
        self._tuning = threading.Lock()
        self.plan = "Every row is searched."

    def __len__(self) -> int:
        """Return the number of rows a search would see now."""
        return len(self._snapshot()) if self._large is None else self._large.count()

    def _snapshot(self) -> Snapshot:
        return self._source if isinstance(self._source, Snapshot) else self._source.snapshot()

    def search(
        self,
        queries: ArrayLike,
        k: int,
        *,
        among: Collection[str] | Selection | None = None,
        where: Mapping[str, object] | None = None,
    ) -> SearchResult:
        """Find the k most similar rows of each query.

        Args:
            queries: float rows (m, d), from the encoder that made the archive.
            k: Neighbours wanted; fewer come back only where fewer rows are searched.
            among: Ids to search, or what `select` returned; ids that are not stored are passed over. All by default.
            where: Metadata key -> the value, or the list of values, that rows to search have. All by default.

        Raises:
            ValueError: Queries of another dimension or shape, not finite, or k below 1.
            ImportError: FAISS is not installed.
        """
        if k < 1:
            raise ValueError(f"The number of neighbours k must be at least 1; got {k}.")
        chosen = self._chosen(among, where)
        if self._large is not None and self._large.count() > LARGE_ROWS:
            import_faiss()
            if self._limits is not None:
                self.tune()
            found = self._large.search(_checked(queries, self._dim), k, chosen)
            width = max(map(len, found.ids), default=0)
            similarities = np.asarray(found.similarities, dtype=np.float32).reshape(len(found.ids), width)
            return SearchResult(found.ids, similarities, found.version, found.exact)
        held = self._snapshot()
        rows = self._current
        if rows is None or rows.snapshot is not held:
            rows = _Rows(held, np.arange(len(held)), self.metric)
            self._current = rows
        asked = _checked(queries, held.dim)
        if chosen is not None:
            rows = _Rows(held, _chosen_rows(held, chosen), self.metric)
        order, scores = rows.nearest(asked, min(k, len(rows.which)))
        return SearchResult(
            ids=[[held.ids[row] for row in line] for line in order],
            similarities=scores.astype(np.float32),
            version=held.version,
        )

    def tune(self) -> None:
        """Make sure that searches keep the limits, now and when the rows are a fifth more or fewer; see `plan`.

        Raises:
            ValueError: Nothing keeps them; the sentence says what would.
        """
        if self._limits is None or self._large is None:
            return
        with self._tuning:
            count = self._large.count()
            if self._tuned is not None and abs(count - self._tuned) < RETUNE_SHARE * count:
                return
            self._large, choice = choose(self._large.store, self._limits)
            self.plan, self._tuned = str(choice), count

    @property
    def _dim(self) -> int:
        return self._source.dim

    def select(self, *, ids: Collection[str] | None = None, where: Mapping[str, object] | None = None) -> Selection:
        """Name rows to search among again and again: they are looked up once per version of the archive.

        Args:
            ids: Ids; those that are not stored are passed over.
            where: Metadata key -> value or list of values; with `ids`, both must hold.
        """
        if ids is None and where is None:
            raise ValueError("A selection needs ids or a condition on metadata.")
        if isinstance(ids, str):
            ids = [ids]
        return Selection(None if ids is None else frozenset(ids), None if where is None else dict(where))

    def _chosen(
        self, among: Collection[str] | Selection | None, where: Mapping[str, object] | None
    ) -> Selection | None:
        if isinstance(among, Selection):
            if where is not None:
                raise ValueError("Give `where` when the selection is made, or here with ids, not beside a selection.")
            return among
        return None if among is None and where is None else self.select(ids=among, where=where)

    def measure_recall(self, *, k: int = 10, queries: int = 64, seed: int = 0) -> float:
        """Return the share of the true k nearest rows that a search finds, measured on rows of the archive itself.

        Args:
            k: Neighbours.
            queries: Rows drawn as queries, with a little noise so that they are not their own answer only.
            seed: Of the draw.
        """
        if self._large is not None and self._large.count() > LARGE_ROWS:
            return measured_recall(self._large, k=k, queries=queries, seed=seed)
        held = self._snapshot()
        if not len(held):
            return 1.0
        rng = np.random.default_rng(seed)
        rows = held.vectors[rng.choice(len(held), min(queries, len(held)), replace=False)]
        noise = rng.normal(0, 0.05, rows.shape) * np.linalg.norm(rows, axis=1, keepdims=True) / np.sqrt(held.dim)
        asked = (rows + noise).astype(np.float32)
        truth = Index(held, metric=self.metric).search(asked, k).ids
        found = self.search(asked, k).ids
        return float(np.mean([len(set(a) & set(b)) / len(a) for a, b in zip(truth, found, strict=True)]))


def _chosen_rows(held: Snapshot, chosen: Selection) -> NDArray[np.int64]:
    """Return the rows of a snapshot that a selection names."""
    rows: set[int] | range = range(len(held))
    if chosen.ids is not None:
        rows = {held.positions[identity] for identity in chosen.ids if identity in held.positions}
    if chosen.where is not None:
        condition_of(chosen.where)  # the same values are refused as for a large archive
        wanted = {
            key: set(value) if isinstance(value, list | tuple | set | frozenset) else {value}
            for key, value in chosen.where.items()
        }
        facts = held.metadata
        rows = {row for row in rows if all(_plain(facts[row].get(key)) in wanted[key] for key in wanted)}
    return np.asarray(sorted(rows), dtype=np.int64)


def _plain(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else None


def _checked(queries: ArrayLike, dim: int) -> NDArray[np.float32]:
    asked = np.ascontiguousarray(queries, dtype=np.float32)
    if asked.ndim != 2:
        raise ValueError(f"Queries must have shape (m, d); got {asked.shape}.")
    if asked.shape[1] != dim:
        raise ValueError(
            f"Query vectors have {asked.shape[1]} dimensions, the comparison set has {dim}: were both made by the same "
            "encoder?"
        )
    bad = np.flatnonzero(~np.isfinite(asked).all(axis=1))
    if bad.size:
        raise ValueError(f"Query vectors must be finite; row {int(bad[0])} holds NaN or infinity.")
    return asked


class _Rows:
    """Some rows of a snapshot with the FAISS index that proposes candidates among them."""

    def __init__(self, snapshot: Snapshot, which: NDArray[np.int64], metric: Metric) -> None:
        self.snapshot = snapshot
        self.which = which
        self.metric = metric
        whole = len(which) == len(snapshot)
        vectors = snapshot.vectors if whole else snapshot.vectors[which]
        self.vectors = vectors  # (n, d)
        self.norms = np.empty(len(vectors), dtype=np.float64)  # (n,)
        for part in _blocks(vectors):
            self.norms[part] = _norms(vectors[part])
        self.longest = float(self.norms.max(initial=0.0))
        self.flat = _flat(vectors, self.norms, metric)

    def nearest(self, queries: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return rows of the snapshot (m, k) and their similarities (m, k), best first."""
        order = np.empty((len(queries), k), dtype=np.int64)
        scores = np.empty((len(queries), k), dtype=np.float64)
        todo = np.arange(len(queries))
        width = k + SPARE
        while len(todo) and k:
            if 2 * width >= len(self.which):
                for place in todo:
                    everything = np.arange(len(self.which))
                    order[place], scores[place] = self._best(queries[place], everything, k)
                break
            found, reach = self._propose(queries[todo], width)
            later = []
            for place, candidates, farthest in zip(todo, found, reach, strict=True):
                if candidates.min() >= 0:  # FAISS says -1 where it gave up on a value
                    order[place], scores[place] = self._best(queries[place], np.sort(candidates), k)
                if candidates.min() < 0 or not scores[place, -1] > farthest:
                    later.append(place)
            todo = np.asarray(later, dtype=np.int64)
            width *= 4
        return self.which[order], scores

    def _propose(self, queries: NDArray[np.float32], width: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Return candidates (m, width), and per query the similarity (m,) no row outside them can exceed."""
        norms = _norms(queries)
        if self.metric == "cosine":
            queries = _normalised(queries, norms)
        values, found = self.flat.search(queries, width)
        last = values[:, -1].astype(np.float64)
        rounding = 4.0 * (queries.shape[1] + 8) * _UNIT
        if self.metric == "cosine":
            return found, last + rounding
        if self.metric == "dot":
            return found, last + rounding * norms * self.longest
        squared = np.maximum(last - rounding * (norms + self.longest) ** 2, 0.0)
        return found, -np.sqrt(squared)

    def _best(
        self, query: NDArray[np.float32], candidates: NDArray[np.int64], k: int
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Score candidates (in order of id) in float64 and return the k best; equal ones keep their order."""
        step = max(1, BLOCK_VALUES // len(query))
        parts = [candidates[start : start + step] for start in range(0, len(candidates), step)]
        scores = np.concatenate([self._score(query, part) for part in parts])
        best = np.argsort(-scores, kind="stable")[:k]
        return candidates[best], scores[best]

    def _score(self, query: NDArray[np.float32], candidates: NDArray[np.int64]) -> NDArray[np.float64]:
        wide = query.astype(np.float64)
        rows = self.vectors[candidates].astype(np.float64)  # (c, d)
        if self.metric == "euclidean":
            return -np.sqrt(row_sums((rows - wide) ** 2))
        scores = row_sums(rows * wide)
        if self.metric == "dot":
            return scores
        length = self.norms[candidates] * np.sqrt(row_sums(wide[None] ** 2))
        return np.divide(scores, length, out=np.zeros_like(scores), where=length > 0)


def _norms(vectors: NDArray[np.float32]) -> NDArray[np.float64]:
    return np.sqrt(row_sums(vectors.astype(np.float64) ** 2))


def _blocks(vectors: NDArray[np.float32]) -> list[slice]:
    step = max(1, BLOCK_VALUES // vectors.shape[1])
    return [slice(start, start + step) for start in range(0, len(vectors), step)]


def _normalised(vectors: NDArray[np.float32], norms: NDArray[np.float64]) -> NDArray[np.float32]:
    scale = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    return (vectors * scale[:, None]).astype(np.float32)


def _flat(vectors: NDArray[np.float32], norms: NDArray[np.float64], metric: Metric) -> Any:
    faiss = import_faiss()
    flat = faiss.IndexFlatL2(vectors.shape[1]) if metric == "euclidean" else faiss.IndexFlatIP(vectors.shape[1])
    for part in _blocks(vectors):
        flat.add(_normalised(vectors[part], norms[part]) if metric == "cosine" else vectors[part])
    return flat
