"""Which classes of a training's images leave their mean and spread with the encoder, for heads that borrow from them.

Distribution calibration (Yang, Liu, Xu 2021, arXiv 2101.06395) takes them; see `DistributionCalibratedClassifier`.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from embeddings import SourceStatistics

from .support import sorted_classes

#: Patients below whom a class is left out: the mean of one or two patients is patient data.
FEWEST_PATIENTS = 6
#: Classes kept, those of most patients: with vectors of 512 numbers they take 1 MiB of the checkpoint.
MOST_CLASSES = 256


def class_statistics(
    vectors: NDArray[np.float32], labels: Sequence[tuple[Hashable, ...]], groups: Sequence[Hashable] | None
) -> SourceStatistics | None:
    """Take the statistics of the classes an encoder was trained on.

    Images of exactly the same labels are a class: for images of one label, all that have it; an image of two findings
    counts for that pair alone. So no image is in two classes, and the difference of two means tells about nobody. An
    image without labels is in none.

    Statistics are published with the encoder, so nothing in them may stand for few patients. Classes of fewer than
    `FEWEST_PATIENTS` are left out. Where the images that are left over belong to fewer patients than that, their mean
    would follow from the source's mean and the others': the smallest class then is left out too. Where each case is a
    class of its own, nothing remains.

    Args:
        vectors: (n, d), the images that the source's mean is taken over.
        labels: For each image its labels.
        groups: n patients, each counting once in its class. None, where patients are unknown, makes every image a
            patient of its own: a class of six images of one patient then passes.

    Returns:
        The statistics of at most `MOST_CLASSES` classes; None where no class may be kept, or a vector is not finite.
    """
    names = [tuple(sorted_classes(own)) for own in labels]
    owners: Sequence[Hashable] = range(len(names)) if groups is None else groups
    patients: dict[tuple[Hashable, ...], set[Hashable]] = {}
    for name, owner in zip(names, owners, strict=True):
        if name:
            patients.setdefault(name, set()).add(owner)
    large = sorted(
        (name for name, own in patients.items() if len(own) >= FEWEST_PATIENTS),
        key=lambda name: (-len(patients[name]), str(name)),
    )
    kept = large[:MOST_CLASSES]
    chosen = set(kept)
    left_over = {owner for name, owner in zip(names, owners, strict=True) if name not in chosen}
    if kept and 0 < len(left_over) < FEWEST_PATIENTS:
        chosen.remove(kept[-1])
    rows = [i for i, name in enumerate(names) if name in chosen]
    if not rows or not np.isfinite(vectors).all():
        return None
    return SourceStatistics.of(
        vectors[rows],
        [names[i] for i in rows],
        groups=[owners[i] for i in rows],
        min_patients=FEWEST_PATIENTS,
    )
