"""Generalized zero-shot on ChestX-ray14: ten findings seen, four unseen (Hayat et al. 2021, arXiv 2107.06563)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .protocol_data import Settings, embed_rows, provenance, semantic_spaces
from .protocol_measures import Measured, measure
from .protocol_page import Page, Table, plain, shown

if TYPE_CHECKING:
    from zeroshot import Alignment, MultiView, SemanticSpace

#: Alignments compared where none is named.
ALIGNMENTS = ("ridge", "eszsl", "ale")
#: Semantic spaces compared, each by the views it is made of.
SPACES = {"descriptions": ("descriptions",), "traits": ("traits",), "both": ("descriptions", "traits")}
#: Classes named per image.
KS = (2, 3)
#: The k by which gamma is chosen.
GAMMA_K = 3
#: Parts the seen classes are dealt into to choose gamma; each in turn plays the unseen.
FOLDS = 5
#: Values of gamma tried.
GAMMAS = 61
#: Images an alignment is fitted to at most while gamma is chosen.
GAMMA_IMAGES = 5_000
#: Steps of ALE's descent at most; fewer than 30 passes over more than 10,000 images.
ALE_STEPS = 300_000
#: Mean AUROC of seen and of unseen findings and their harmonic mean, as published for an encoder trained end to end.
PUBLISHED = {"seen": 0.79, "unseen": 0.66, "harmonic": 0.72}
SOURCE = "CXR-ML-GZSL, arXiv 2107.06563"


def run_chestxray14(settings: Settings) -> Page:
    """Learn alignments from images of seen findings alone, and rank all findings of the test images.

    Raises:
        ManifestError: The folder is not laid out as published.
        EpisodeError: It cannot be split into seen and unseen.
    """
    from episodes import CHESTXRAY14_FINDINGS, CHESTXRAY14_UNSEEN, generalized_split, read_chestxray14
    from episodes.label_states import label_states

    from .inputs import open_encoder

    encoder = open_encoder(settings.encoder)
    manifest = read_chestxray14(settings.folder, missing="skip" if settings.skip_missing else "error")
    unseen = tuple(settings.unseen or CHESTXRAY14_UNSEEN)
    parts = generalized_split(manifest, unseen=unseen, seed=settings.seed)
    classes = list(CHESTXRAY14_FINDINGS)
    seen = [name for name in classes if name not in unseen]
    spaces = semantic_spaces(classes, settings)
    held = embed_rows(manifest, np.concatenate(parts), encoder, settings.archive)
    present = np.asarray(label_states(manifest.labels, classes)[1] == 1)
    patients = manifest.groups or []
    (train, x), (chosen_by, v), (test, z) = (held.part(part) for part in parts)
    owners = [patients[row] for row in test.tolist()]
    learnt_from = seen_labels(present[train], classes, unseen)
    validated_by = seen_labels(present[chosen_by], classes, unseen)
    found: dict[tuple[str, str], Measured] = {}
    gammas: dict[tuple[str, str], float | None] = {}
    for name in (settings.alignment,) if settings.alignment else ALIGNMENTS:
        for space, views in SPACES.items():
            make = maker(name, len(train), settings.seed)
            mine = {view: spaces[view] for view in views}
            of_seen = {view: spaces[view].only(seen) for view in views}
            gamma = choose_bias(x, learnt_from, v, validated_by, of_seen, make, seed=settings.seed)
            scores = learn(x, learnt_from, of_seen, make).scores(z, vectors_of(mine))
            gammas[name, space] = gamma
            found[name, space] = measure(
                scores, present[test], classes, owners, seen=seen, gamma=gamma or 0.0, ks=KS, seed=settings.seed
            )
    counts = {
        part: {"images": len(rows), "patients": len({patients[row] for row in rows.tolist()})}
        for part, rows in (("train", train), ("validation", chosen_by), ("test", test))
    }
    facts = [present[held.rows].tolist(), [patients[row] for row in held.rows.tolist()], seen]
    result: dict[str, Any] = {
        "protocol": "chestxray14",
        "seen": seen,
        "unseen": list(unseen),
        "parts": counts,
        "rows": [_row_json(name, space, gammas[name, space], row) for (name, space), row in found.items()],
        "published": {**PUBLISHED, "source": SOURCE},
        "provenance": provenance(encoder, settings, held.vectors, *facts),
    }
    return Page(
        title=f"ChestX-ray14, {len(seen)} seen and {len(unseen)} unseen findings",
        facts=(
            ", ".join(f"{part}: {n['images']:,} images of {n['patients']:,} patients" for part, n in counts.items())
            + f"; encoder {encoder.name}; learnt without {', '.join(unseen)}.",
        ),
        tables=tables(found, gammas, classes, unseen),
        notes=notes(next(iter(found.values())), gammas, spaces),
        result=result,
        refused=held.refused,
        images=len(held.rows),
    )


def seen_labels(present: NDArray[np.bool_], classes: Sequence[str], unseen: Sequence[str]) -> NDArray[np.bool_]:
    """Return the columns of seen classes, sure that no image carries an unseen one.

    Raises:
        ValueError: One does.
    """
    is_unseen = np.isin(np.asarray(classes), list(unseen))
    if present[:, is_unseen].any():
        raise ValueError("An image to learn or to choose from carries an unseen finding; the split is broken.")
    return np.asarray(present[:, ~is_unseen])


def maker(name: str, images: int, seed: int) -> Callable[[], Alignment]:
    """Return what makes an alignment as published, of a length of training that many images allow."""
    from zeroshot import AleAlignment, EszslAlignment, make_alignment

    if name == "eszsl":
        return lambda: EszslAlignment(balanced=False)
    if name == "ale":
        return lambda: AleAlignment(epochs=int(np.clip(ALE_STEPS // max(images, 1), 1, 30)), seed=seed)
    return lambda: make_alignment(name)


def vectors_of(spaces: Mapping[str, SemanticSpace]) -> dict[str, NDArray[np.float64]]:
    """Return view -> vectors of its classes."""
    return {view: space.vectors for view, space in spaces.items()}


def learn(
    images: NDArray[np.float32],
    present: NDArray[np.bool_],
    spaces: Mapping[str, SemanticSpace],
    make: Callable[[], Alignment],
) -> MultiView:
    """Align images with the mean of the vectors of the classes each shows.

    Args:
        images: (n, p).
        present: bool (n, c), at least one of each row.
        spaces: View -> the c classes.
        make: Makes an alignment.
    """
    from zeroshot import MultiView

    shares = present / present.sum(axis=1, keepdims=True)
    return MultiView(make=make).fit(images, {view: shares @ space.vectors for view, space in spaces.items()})


def choose_bias(
    images: NDArray[np.float32],
    present: NDArray[np.bool_],
    asked: NDArray[np.float32],
    asked_present: NDArray[np.bool_],
    spaces: Mapping[str, SemanticSpace],
    make: Callable[[], Alignment],
    *,
    seed: int = 0,
) -> float | None:
    """Choose what is taken off seen classes before the best k are named, on seen classes alone.

    Some seen classes play the unseen in turn: alignments are fitted without any image that shows them and asked about
    validation patients. What is made largest is the harmonic mean of two F1 at k, micro-averaged over the classes that
    play the seen and over those that play the unseen.

    Args:
        images: (n, p) to learn from.
        present: bool (n, c), seen classes.
        asked: (m, p) of other patients.
        asked_present: bool (m, c).
        spaces: View -> the c seen classes.
        make: Makes an alignment.
        seed: Of the parts and of the images taken.

    Returns:
        Gamma, or None where no part of the classes can play the unseen.
    """
    c = present.shape[1]
    rng = np.random.default_rng(seed)
    fold_of = rng.permutation(c) % min(FOLDS, max(c // 2, 1))
    vectors = vectors_of(spaces)
    found: list[tuple[NDArray[np.float64], NDArray[np.bool_]]] = []
    for fold in range(int(fold_of.max()) + 1):
        away = fold_of == fold
        kept = np.flatnonzero(~present[:, away].any(axis=1))
        kept = np.sort(rng.permutation(kept)[:GAMMA_IMAGES])
        known = present[kept][:, ~away]
        if (known.any(axis=0)).sum() < 2 or not (asked_present[:, away].any() and asked_present[:, ~away].any()):
            continue
        names = [
            name for name, gone in zip(next(iter(spaces.values())).classes, away.tolist(), strict=True) if not gone
        ]
        views = {view: space.only(names) for view, space in spaces.items()}
        found.append((learn(images[kept], known, views, make).scores(asked, vectors), ~away))
    if not found:
        return None
    leads = np.concatenate([s[:, k].max(axis=1) - s[:, ~k].max(axis=1) for s, k in found])
    gammas = np.quantile(leads, np.linspace(0, 1, GAMMAS))
    means = [np.mean([split_f1(s - gamma * k, asked_present, k, GAMMA_K) for s, k in found]) for gamma in gammas]
    best = np.flatnonzero(np.asarray(means) >= max(means) - 1e-12)
    return float(gammas[best[len(best) // 2]])


def split_f1(scores: NDArray[np.float64], present: NDArray[np.bool_], seen: NDArray[np.bool_], k: int) -> float:
    """Return the harmonic mean of F1 at k of seen and of unseen classes, each micro-averaged; 0 where either is."""
    named = np.zeros_like(present)
    np.put_along_axis(named, np.argsort(-scores, axis=1, kind="stable")[:, :k], values=True, axis=1)
    f1 = []
    for side in (seen, ~seen):
        total = int(named[:, side].sum() + present[:, side].sum())
        f1.append(2 * int((named & present)[:, side].sum()) / max(total, 1))
    return 2 * f1[0] * f1[1] / (f1[0] + f1[1]) if min(f1) > 0 else 0.0


def tables(
    found: Mapping[tuple[str, str], Measured],
    gammas: Mapping[tuple[str, str], float | None],
    classes: Sequence[str],
    unseen: Sequence[str],
) -> tuple[Table, ...]:
    """Lay out the figures."""
    from episodes import CHESTXRAY14_UNSEEN

    means = ("seen", "unseen", "harmonic", "map")
    published = (*(f"{PUBLISHED[key]:.2f}" for key in means[:3]), "", "published", SOURCE)
    anchor = [published] if set(unseen) == set(CHESTXRAY14_UNSEEN) else []  # else other findings were unseen
    named = tuple(f"{what}@{k}" for k in KS for what in ("p", "r", "f1"))
    rows = [(*key, row) for key, row in found.items()]
    each = []
    for name in classes:
        cells = [shown(row.auroc.get(name)) for *_, row in rows]
        each.append((*cells, "unseen" if name in unseen else "seen", name))
    heads = tuple(f"{name}, {space}" for name, space, _ in rows)
    return (
        Table(
            "AUROC, mean over findings, with 95 % intervals over patients",
            ("seen", "unseen", "H", "mAP", "alignment", "semantics"),
            (*((*(shown(row.figures.get(key)) for key in means), name, space) for name, space, row in rows), *anchor),
            ("seen", "unseen", "H", "mAP"),
        ),
        Table(
            "The k best findings of an image, gamma taken off the seen ones",
            (*named, "gamma", "alignment", "semantics"),
            tuple(
                (
                    *(shown(row.figures.get(key)) for key in named),
                    "none" if gammas[name, space] is None else f"{gammas[name, space]:.3f}",
                    name,
                    space,
                )
                for name, space, row in rows
            ),
            (*named, "gamma"),
        ),
        Table("AUROC of each finding", (*heads, "side", "finding"), tuple(each), heads),
    )


def notes(
    some: Measured, gammas: Mapping[tuple[str, str], float | None], spaces: Mapping[str, SemanticSpace]
) -> tuple[str, ...]:
    """Say what has to be known to read the figures."""
    said = [
        f"Published ({SOURCE}): seen {PUBLISHED['seen']}, unseen {PUBLISHED['unseen']}, H {PUBLISHED['harmonic']}, of "
        "an image encoder trained end to end without the four findings named there, on its authors' test lists; here "
        "it is yours and stays as it is, and the test part is the published test list.",
        "Whether the encoder was itself trained with an unseen finding cannot be seen from here; if it was, the "
        "figures of that finding are not zero-shot.",
        "A finding's AUROC compares images, so gamma does not move it; gamma enters p, r and F1 at k and was chosen on "
        f"seen findings, by the harmonic mean of F1 at {GAMMA_K} of those that played the seen and the unseen.",
        "Images without a finding are left out of every part, as in the paper; p, r and F1 at k are means over images.",
    ]
    if any(gamma is None for gamma in gammas.values()):
        said.append("Gamma could not be chosen, for too few seen findings are in training and validation: it is 0.")
    for title, names in (("No test image has", some.without_positives), ("All have", some.without_negatives)):
        if names:
            said.append(f"{title} {', '.join(names)}: counted, not scored.")
    if some.few:
        few = ", ".join(f"{name} ({count})" for name, count in some.few.items())
        said.append(f"Intervals are unreliable where few patients have a finding or lack it: {few}.")
    return (*said, *(remark for space in spaces.values() for remark in space.remarks))


def _row_json(name: str, space: str, gamma: float | None, row: Measured) -> dict[str, Any]:
    return {
        "alignment": name,
        "space": space,
        "gamma": gamma,
        "figures": {key: plain(value) for key, value in row.figures.items()},
        "auroc": {key: plain(value) for key, value in row.auroc.items()},
        "average_precision": {key: plain(value) for key, value in row.average_precision.items()},
        "without_positives": list(row.without_positives),
        "without_negatives": list(row.without_negatives),
        "few_patients": row.few,
    }
