"""Generalized zero-shot: seen and unseen classes compete for every image, and what that costs either is measured.

A classifier learnt on seen classes prefers them. Calibrated stacking (Chao et al. 2016, arXiv 1605.04253) takes gamma
off every seen class's score; as gamma grows from minus to plus infinity the accuracy on seen images (S) falls and that
on unseen ones (U) rises, the seen-unseen curve, whose area (AUSUC) judges a classifier without choosing gamma. H is the
harmonic mean of S and U (Xian et al. 2018, arXiv 1707.00600). All of them are class-balanced.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from episodes import patient_bootstrap

from .alignment import Alignment
from .errors import ZeroShotError
from .linear_map import checked_rows, unit_rows
from .semantics import SemanticSpace

CLASS_FOLDS = 5
"""Parts into which seen classes are cut when gamma is chosen: each in turn plays the unseen."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % interval over patients.

    Attributes:
        estimate: On the images as they are.
        low: Lower end.
        high: Upper end.
    """

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        """Return the three numbers."""
        return f"{self.estimate:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True, eq=False)
class SeenUnseenCurve:
    """Accuracy on seen and on unseen images for every gamma.

    Attributes:
        gammas: Ascending (m,), from minus infinity: what is taken off seen classes.
        seen: S at each, falling.
        unseen: U at each, rising.
        area: AUSUC.
    """

    gammas: NDArray[np.float64]
    seen: NDArray[np.float64]
    unseen: NDArray[np.float64]
    area: float

    @property
    def best_harmonic(self) -> float:
        """The best harmonic mean any gamma reaches on these images: an oracle's, not a result."""
        return float(harmonic_mean(self.seen, self.unseen).max())


@dataclass(frozen=True, eq=False)
class GeneralizedReport:
    """How seen and unseen classes fare in one label space.

    Attributes:
        gamma: Taken off seen classes.
        seen: S.
        unseen: U.
        harmonic: H.
        area: AUSUC.
        curve: The seen-unseen curve.
        per_class: Class -> share of its images that were answered right.
        without_images: Classes that compete but have no image here.
    """

    gamma: float
    seen: Interval
    unseen: Interval
    harmonic: Interval
    area: Interval
    curve: SeenUnseenCurve
    per_class: dict[str, float]
    without_images: tuple[str, ...]

    def __str__(self) -> str:
        """Return the four figures in one line."""
        return f"S {self.seen}, U {self.unseen}, H {self.harmonic}, AUSUC {self.area}, gamma {self.gamma:.3f}"


def harmonic_mean(seen: ArrayLike, unseen: ArrayLike) -> NDArray[np.float64]:
    """Return 2 S U / (S + U), 0 where both are 0."""
    s, u = np.asarray(seen, dtype=np.float64), np.asarray(unseen, dtype=np.float64)
    total = s + u
    return np.divide(2 * s * u, total, out=np.zeros_like(total), where=total > 0)


def stacked(scores: ArrayLike, seen: ArrayLike, gamma: float) -> NDArray[np.float64]:
    """Take gamma off the seen classes' scores.

    Args:
        scores: (n, c).
        seen: bool (c,).
        gamma: In the scores' unit.
    """
    lowered: NDArray[np.float64] = np.asarray(scores, dtype=np.float64) - gamma * np.asarray(seen, dtype=np.float64)
    return lowered


def seen_unseen_curve(scores: ArrayLike, targets: ArrayLike, seen: ArrayLike) -> SeenUnseenCurve:
    """Return the whole curve, exactly: an image changes sides once, where gamma passes its lead of seen over unseen.

    Args:
        scores: (n, c).
        targets: int (n,), the true class of each image.
        seen: bool (c,), which classes are seen; at least one is and one is not.

    Raises:
        ZeroShotError: One side has no class or no image.
    """
    lead, right_seen, right_unseen, codes, is_seen = _sides(scores, targets, seen)
    return _curve(lead, right_seen, right_unseen, _shares(codes, np.ones(len(codes))), is_seen[codes])


def evaluate_generalized(
    scores: ArrayLike,
    labels: Sequence[str],
    classes: Sequence[str],
    seen: Collection[str],
    *,
    gamma: float = 0.0,
    groups: Sequence[Hashable] | None = None,
    draws: int = 1000,
    seed: int = 0,
) -> GeneralizedReport:
    """Measure S, U, H and AUSUC with intervals over patients.

    Args:
        scores: (n, c), larger is closer.
        labels: n true classes.
        classes: The joint label space, in the order of the columns.
        seen: Which of them are seen.
        gamma: What calibrated stacking takes off them, chosen elsewhere (see `choose_gamma`).
        groups: n patients; None counts each image as one.
        draws: Bootstrap resamples of the area.
        seed: Of the resampling.

    Raises:
        ZeroShotError: Lists that do not fit, a label outside the label space, or a side without image.
    """
    names = [str(name) for name in classes]
    place = {name: column for column, name in enumerate(names)}
    foreign = sorted({str(label) for label in labels} - set(names))
    if foreign:
        raise ZeroShotError(f"{foreign[0]!r} is no class of the label space: {', '.join(names)}.")
    targets = np.array([place[str(label)] for label in labels], dtype=np.intp)
    mask = np.array([name in {str(entry) for entry in seen} for name in names])
    lead, right_seen, right_unseen, codes, is_seen = _sides(scores, targets, mask)
    curve = _curve(lead, right_seen, right_unseen, _shares(codes, np.ones(len(codes))), is_seen[codes])
    right = np.where(gamma < lead, right_seen, right_unseen).astype(np.float64)
    patients = _codes(groups, len(codes))
    of_seen = is_seen[codes]
    s, u = (  # drawn apart: were they to go up and down together, H would seem as unsure as either
        patient_bootstrap(right[part], codes[part], patients[part], seed=own)
        for part, own in ((of_seen, seed), (~of_seen, seed + 1))
    )
    h = harmonic_mean(s.samples, u.samples)
    rng = np.random.default_rng(seed)
    areas = [
        _curve(lead, right_seen, right_unseen, _shares(codes, weights), of_seen).area
        for weights in _resampled(rng, codes, patients, draws)
    ]
    return GeneralizedReport(
        gamma=float(gamma),
        seen=Interval(s.estimate, s.low, s.high),
        unseen=Interval(u.estimate, u.low, u.high),
        harmonic=_interval(float(harmonic_mean(s.estimate, u.estimate)), h),
        area=_interval(curve.area, np.asarray(areas)),
        curve=curve,
        per_class={names[code]: float(right[codes == code].mean()) for code in np.unique(codes).tolist()},
        without_images=tuple(name for column, name in enumerate(names) if not (codes == column).any()),
    )


def choose_gamma(
    images: ArrayLike,
    labels: Sequence[str],
    space: SemanticSpace,
    make: Callable[[], Alignment],
    *,
    texts: ArrayLike | None = None,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> float:
    """Choose gamma on seen classes alone: some of them play the unseen, in turn, and H is averaged.

    The alignment is fitted without the classes that play the unseen and without a fifth of the patients, who play the
    seen queries. No image and no score of a truly unseen class takes part.

    Args:
        images: (n, p) vectors of images of seen classes.
        labels: n classes.
        space: Semantic vectors of at least these classes.
        make: Makes a fresh alignment.
        texts: (n, d) text vector of each image, to learn from instead of its class's vector; a row of zeros is an image
            without text, and is not learnt from.
        groups: n patients; None counts each image as one.
        seed: Of the part of the patients.

    Raises:
        ZeroShotError: Fewer than four seen classes.
    """
    rows = checked_rows(images, None, "Image vectors", "")
    names = sorted({str(label) for label in labels})
    if len(names) < 4:
        raise ZeroShotError(f"Choosing gamma takes at least 4 seen classes, some to play the unseen; got {len(names)}.")
    codes = np.array([names.index(str(label)) for label in labels])
    patients = _codes(groups, len(rows))
    rng = np.random.default_rng(seed)
    vectors = space.rows(names)
    class_part = deal(vectors, min(CLASS_FOLDS, len(names) // 2))
    patient_part = rng.permutation(patients.max() + 1) % CLASS_FOLDS
    targets = vectors[codes] if texts is None else checked_rows(texts, vectors.shape[1], "Text vectors", "of the space")
    told = np.asarray(np.linalg.norm(targets, axis=1) > 0)
    curves = []
    for part in range(class_part.max() + 1):
        is_seen = class_part != part
        held_out = patient_part[patients] == part % CLASS_FOLDS
        learnt = is_seen[codes] & ~held_out & told
        asked = ~is_seen[codes] | held_out
        if len(np.unique(codes[learnt])) < 2 or not (is_seen[codes] & asked).any():
            continue
        scores = make().fit(rows[learnt], targets[learnt]).map_.scores(rows[asked], vectors)
        curves.append(seen_unseen_curve(scores, codes[asked], is_seen))
    if not curves:
        raise ZeroShotError("Gamma cannot be chosen: no part of the classes leaves both seen and unseen images.")
    candidates = np.unique(np.concatenate([curve.gammas[np.isfinite(curve.gammas)] for curve in curves]))
    mean = np.mean([_harmonic_at(curve, candidates) for curve in curves], axis=0)
    best = np.flatnonzero(mean >= mean.max() - 1e-12)
    return float(candidates[best[len(best) // 2]])


def deal(vectors: NDArray[np.float64], parts: int) -> NDArray[np.intp]:
    """Deal classes into parts so that those most alike are parted: a class never seen is rarely alone of its kind.

    Args:
        vectors: (c, d) their semantic vectors.
        parts: How many.

    Returns:
        The part of each class, (c,).
    """
    rows = unit_rows(vectors - vectors.mean(axis=0))
    alike = rows @ rows.T
    chain, left = [0], set(range(1, len(rows)))
    while left:  # from each class to the one most like it
        following = max(sorted(left), key=lambda code: alike[chain[-1], code])
        chain.append(following)
        left.remove(following)
    part = np.empty(len(rows), dtype=np.intp)
    part[chain] = np.arange(len(rows)) % parts
    return part


def _harmonic_at(curve: SeenUnseenCurve, gammas: NDArray[np.float64]) -> NDArray[np.float64]:
    at = np.searchsorted(curve.gammas, gammas, side="right") - 1
    return harmonic_mean(curve.seen[at], curve.unseen[at])


def _sides(
    scores: ArrayLike, targets: ArrayLike, seen: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.bool_], NDArray[np.bool_], NDArray[np.intp], NDArray[np.bool_]]:
    """Return each image's lead of seen over unseen, whether the best of either side is right, and its class."""
    table = checked_rows(scores, None, "Scores", "")
    codes, is_seen = np.asarray(targets, dtype=np.intp), np.asarray(seen, dtype=np.bool_)
    if len(codes) != len(table) or is_seen.shape != (table.shape[1],):
        raise ZeroShotError(
            f"Scores of shape {table.shape} need {len(table)} classes of images and {table.shape[1]} flags of classes; "
            f"got {len(codes)} and {len(is_seen)}."
        )
    of_seen = is_seen[codes]
    if is_seen.all() or not is_seen.any() or of_seen.all() or not of_seen.any():
        raise ZeroShotError("Seen and unseen need at least one class and one image each.")
    best = [np.where(side, table, -np.inf) for side in (is_seen, ~is_seen)]
    first = [side.argmax(axis=1) for side in best]
    lead = best[0].max(axis=1) - best[1].max(axis=1)
    return lead, first[0] == codes, first[1] == codes, codes, is_seen


def _curve(
    lead: NDArray[np.float64],
    right_seen: NDArray[np.bool_],
    right_unseen: NDArray[np.bool_],
    shares: NDArray[np.float64],
    of_seen: NDArray[np.bool_],
) -> SeenUnseenCurve:
    """Return the curve; `shares` (n,) is what each image adds to its class-balanced side, summing to 1 on each."""
    side = [part / max(float(shares[part].sum()), 1e-12) for part in (of_seen, ~of_seen)]
    order = np.argsort(lead, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(lead[order]) > 0), len(order) - 1)
    s_lost = np.cumsum((side[0] * shares * right_seen)[order])[ends]
    u_won = np.cumsum((side[1] * shares * right_unseen)[order])[ends]
    whole = float((side[0] * shares * right_seen).sum())
    s = np.concatenate([[whole], whole - s_lost]).clip(0, 1)
    u = np.concatenate([[0.0], u_won]).clip(0, 1)
    area = float(((s[1:] + s[:-1]) / 2 * np.diff(u)).sum())
    return SeenUnseenCurve(np.concatenate([[-np.inf], lead[order][ends]]), s, u, area)


def _shares(codes: NDArray[np.intp], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what each image weighs (n,) where every class weighs alike."""
    totals = np.bincount(codes, weights=weights)
    shares: NDArray[np.float64] = np.divide(weights, totals[codes], out=np.zeros(len(codes)), where=totals[codes] > 0)
    return shares


def _resampled(
    rng: np.random.Generator, codes: NDArray[np.intp], patients: NDArray[np.intp], draws: int
) -> list[NDArray[np.float64]]:
    """Return weights of the images when patients are drawn within class with replacement."""
    cells = np.unique(np.stack([codes, patients]), axis=1, return_inverse=True)
    of_class, cell = cells[0][0], cells[1].ravel()
    found = []
    for _ in range(draws):
        count = np.zeros(len(of_class))
        for code in np.unique(of_class).tolist():
            mine = np.flatnonzero(of_class == code)
            count[mine] = np.bincount(rng.integers(0, len(mine), len(mine)), minlength=len(mine))
        found.append(count[cell])
    return found


def _codes(groups: Sequence[Hashable] | None, n: int) -> NDArray[np.intp]:
    if groups is None:
        return np.arange(n)
    if len(groups) != n:
        raise ZeroShotError(f"{n} images need {n} patients; got {len(groups)}.")
    first: dict[Hashable, int] = {}
    owners = [("row", i) if missing(group) else ("patient", group) for i, group in enumerate(groups)]
    return np.array([first.setdefault(owner, len(first)) for owner in owners], dtype=np.intp)


def missing(group: Hashable | None) -> bool:
    """Whether a patient is None or NaN, as tables write what is unknown; each such row is a patient of its own."""
    return group is None or group != group


def _interval(estimate: float, samples: NDArray[np.float64]) -> Interval:
    low, high = np.quantile(samples, [0.025, 0.975])
    return Interval(estimate, float(low), float(high))
