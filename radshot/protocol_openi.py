"""Images and reports of Open-i (Demner-Fushman et al. 2016): one finds the other, and words find findings."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from .console import Refused
from .protocol_data import Embedded, Settings, embed_rows, joined_texts, provenance
from .protocol_measures import Measured, measure
from .protocol_page import Page, Table, plain, shown

if TYPE_CHECKING:
    from episodes import Manifest
    from zeroshot import RetrievalReport

#: Sections that are the text of an image where no column is named; the indication is what was asked, not what is seen.
SECTIONS = ("findings", "impression")
#: Shares of the patients to learn from and to be asked about.
SHARES = (0.8, 0.2)
#: How many answers of a search are looked at.
KS = (1, 5, 10)
#: ChestX-ray14's finding -> MeSH headings of the collection that mean it, in lower case; a heading with "/" needs its
#: second part among the qualifiers.
MESH = {
    "Atelectasis": ("pulmonary atelectasis", "atelectasis"),
    "Cardiomegaly": ("cardiomegaly",),
    "Effusion": ("pleural effusion", "hydropneumothorax"),
    "Infiltration": ("infiltrate",),
    "Mass": ("mass",),
    "Nodule": ("nodule",),
    "Pneumonia": ("pneumonia",),
    "Pneumothorax": ("pneumothorax", "hydropneumothorax"),
    "Consolidation": ("consolidation",),
    "Edema": ("pulmonary edema",),
    "Emphysema": ("pulmonary emphysema", "emphysema"),
    "Fibrosis": ("pulmonary fibrosis",),
    "Pleural_Thickening": ("thickening/pleura",),
    "Hernia": ("hernia, hiatal",),
}


def run_openi(settings: Settings) -> Page:
    """Align images and reports of four fifths of the patients, and ask about the others.

    Raises:
        ManifestError: The folder is not laid out as published.
        Refused: Too few of the other patients have a text.
    """
    from episodes import read_openi, split
    from episodes.labels import label_sets
    from zeroshot import ZeroShotModel, mark_all, retrieval

    from .inputs import open_encoder
    from .words import text_encoder_of

    encoder = open_encoder(settings.encoder)
    manifest = read_openi(settings.folder, missing="skip" if settings.skip_missing else "error")
    texts = joined_texts(manifest.table, settings.text or SECTIONS, manifest.source)
    patients = manifest.groups or []
    held = embed_rows(manifest, np.arange(len(manifest)), encoder, settings.archive)
    labels = label_sets(manifest.labels)  # an image that was not indexed has none
    kinds = [labels[row] or ("not indexed",) for row in held.rows.tolist()]
    owners = [patients[row] for row in held.rows.tolist()]
    train, test = (held.rows[part] for part in split(kinds, groups=owners, fractions=SHARES, seed=settings.seed))
    rows, x = held.part(train)
    told = [texts[row] for row in rows.tolist()]
    counts = settings.text_encoder == "tfidf"
    words = text_encoder_of(settings.text_encoder, mark_all(told) if counts else told, seed=settings.seed)
    alignment = settings.alignment or "cca"
    model = ZeroShotModel.fit(x, told, encoder=encoder, text_encoder=words, alignment=alignment, denials=counts)
    rows, z = held.part(test)
    asked = model.encode_texts([texts[row] for row in rows.tolist()])
    kept = np.flatnonzero(np.linalg.norm(asked, axis=1) > 0)
    if len(kept) < 2:
        raise Refused(f"Only {len(kept)} of the {len(rows):,} images set aside have a text to search by.")
    pairs = retrieval(
        model.shared.scores(z[kept], asked[kept]),
        [texts[rows[i]] for i in kept.tolist()],
        groups=[patients[rows[i]] for i in kept.tolist()],
        ks=KS,
        seed=settings.seed,
    )
    findings, normal, indexed, remarks = _zero_shot(model, manifest, held, test, settings.seed)
    facts = {
        "train": {"images": int(model.facts["images"]), "patients": len({patients[row] for row in train.tolist()})},
        "test": {"images": len(test), "patients": len({patients[row] for row in test.tolist()}), "indexed": indexed},
    }
    scored = {**findings.auroc, **({} if normal is None else normal.auroc)}
    return Page(
        title="Open-i, images and reports",
        facts=(
            f"learnt from {facts['train']['images']:,} images with a text of {facts['train']['patients']:,} patients; "
            f"asked about {len(test):,} images of {facts['test']['patients']:,} others; encoder {encoder.name}, "
            f"alignment {alignment}, texts by {words.name}.",
        ),
        tables=(
            Table(
                "Retrieval: share with a right answer among the k most similar; 95 % intervals over patients",
                (*(f"R@{k}" for k in KS), "direction"),
                tuple((*(shown(found[k]) for k in KS), way) for way, found in _ways(pairs)),
                tuple(f"R@{k}" for k in KS),
            ),
            Table(
                "Findings from descriptions alone, against MeSH headings",
                ("AUROC", "finding"),
                (*((shown(value), name) for name, value in scored.items()),
                 (shown(findings.figures["auroc"]), "mean of the findings")),
                ("AUROC",),
            ),
        ),
        notes=_notes(findings, pairs, remarks),
        result={
            "protocol": "openi",
            "alignment": alignment,
            "parts": facts,
            "retrieval": {
                "images": pairs.images,
                "texts": pairs.texts,
                **{way: {str(k): plain(found[k]) for k in KS} for way, found in _ways(pairs)},
            },
            "auroc": {name: plain(value) for name, value in scored.items()},
            "mean_auroc": plain(findings.figures["auroc"]),
            "without_positives": list(findings.without_positives),
            "few_patients": findings.few,
            "provenance": provenance(encoder, settings, held.vectors, texts, patients, test.tolist()),
        },
        refused=held.refused,
        images=len(held.rows),
    )  # fmt: skip


def findings_of(terms: Iterable[str]) -> set[str]:
    """Return the findings that MeSH terms of a report name.

    Args:
        terms: Headings with their qualifiers, such as "Thickening/pleura/apex".
    """
    found = set()
    for term in terms:
        head, *qualifiers = [part.strip().lower() for part in term.split("/")]
        meant = {head, *(f"{head}/{part}" for part in qualifiers)}
        found |= {name for name, headings in MESH.items() if meant & set(headings)}
    return found


def _zero_shot(
    model: Any, manifest: Manifest, held: Embedded, test: Any, seed: int
) -> tuple[Measured, Measured | None, int, tuple[str, ...]]:
    """Measure presence of the findings, and of none, on the images set aside that were indexed."""
    from episodes.chestxray14 import NO_FINDING
    from episodes.labels import label_sets
    from episodes.manifest import SEPARATOR
    from zeroshot import ZeroShotClassifier, built_in_descriptions

    classifier = ZeroShotClassifier(model).describe(built_in_descriptions("chestxray14"), leave_out=True)
    labels = label_sets(manifest.labels)
    rows, vectors = held.part(test[[bool(labels[row]) for row in test.tolist()]])
    if not len(rows):
        raise Refused("None of the images set aside was indexed, so findings cannot be measured.")
    presence = classifier.presence(vectors)
    names = [str(name) for name in classifier.classes_]
    mesh = manifest.table["mesh"].tolist()
    carried = [findings_of(mesh[row].split(SEPARATOR)) for row in rows.tolist()]
    owners = [(manifest.groups or [])[row] for row in rows.tolist()]
    asked = [name for name in MESH if name in names]  # of the others no report speaks
    truth = np.array([[name in found for name in asked] for found in carried])
    columns = [names.index(name) for name in asked]
    findings = measure(presence[:, columns], truth, asked, owners, seed=seed)
    healthy = np.array([[NO_FINDING in labels[row]] for row in rows.tolist()])
    normal = None
    if NO_FINDING in names and healthy.any() and not healthy.all():
        normal = measure(presence[:, [names.index(NO_FINDING)]], healthy, [NO_FINDING], owners, seed=seed)
    return findings, normal, len(rows), classifier.remarks_


def _ways(pairs: RetrievalReport) -> Sequence[tuple[str, dict[int, Any]]]:
    return (("text to image", pairs.text_to_image), ("image to text", pairs.image_to_text))


def _notes(findings: Measured, pairs: RetrievalReport, remarks: Sequence[str]) -> tuple[str, ...]:
    said = [
        f"Retrieval is among {pairs.images:,} images and {pairs.texts:,} distinct texts; an image of the same report, "
        "or with the same text, is right. Each report counts as a patient: the files name no other.",
        "A heading that a report lacks counts as absent, and images that were not indexed take no part.",
    ]
    if findings.without_positives:
        said.append(f"No image has {', '.join(findings.without_positives)}: counted, not scored.")
    if findings.few:
        few = ", ".join(f"{name} ({count})" for name, count in findings.few.items())
        said.append(f"Intervals are unreliable where few patients have a finding or lack it: {few}.")
    return (*said, *remarks)
