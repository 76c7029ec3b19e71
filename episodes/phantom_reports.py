"""Report texts of phantoms: what is there in varied words, what is not there in varied negations.

Every sentence either affirms or denies as a whole, so that a text can be checked against the truth it was made from.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .phantom_specs import FINDINGS, PhantomFinding

TERMS: dict[str, tuple[str, ...]] = {
    "effusion": ("pleural effusion", "pleural fluid", "hydrothorax"),
    "pneumothorax": ("pneumothorax", "air in the pleural space", "intrapleural air"),
    "consolidation": ("consolidation", "airspace opacification", "lobar pneumonia"),
    "infiltration": ("infiltrate", "bronchopneumonia", "patchy opacities"),
    "atelectasis": ("atelectasis", "subsegmental collapse", "discoid volume loss"),
    "nodule": ("pulmonary nodule", "coin lesion", "solitary nodule"),
    "mass": ("lung mass", "mass lesion", "lung tumour"),
    "cavity": ("cavitary lesion", "thick-walled cavity", "cavitation"),
    "cardiomegaly": ("cardiomegaly", "cardiac enlargement", "enlargement of the heart"),
    "edema": ("pulmonary edema", "pulmonary oedema", "alveolar flooding"),
    "emphysema": ("emphysema", "hyperinflation", "bullous disease"),
    "fibrosis": ("fibrosis", "reticular opacities", "interstitial scarring"),
    "bronchiectasis": ("bronchiectasis", "dilated bronchi", "bronchial dilatation"),
    "pleural thickening": ("pleural thickening", "pleural rind", "thickened pleura"),
    "hiatal hernia": ("hiatal hernia", "hiatus hernia", "intrathoracic stomach"),
    "miliary nodules": ("miliary nodules", "miliary pattern", "millet-seed shadowing"),
    "rib fractures": ("rib fractures", "fractured ribs", "costal fractures"),
    "free air": ("free subdiaphragmatic air", "pneumoperitoneum", "free intraperitoneal gas"),
    "cardiac device": ("pacemaker", "cardiac implantable device", "pulse generator"),
    "chest tube": ("chest tube", "thoracostomy tube", "pleural drain"),
    "scoliosis": ("scoliosis", "lateral spinal curvature", "scoliotic deformity"),
    "calcified granulomas": ("calcified granulomas", "calcified foci", "healed granulomatous disease"),
    "hilar adenopathy": ("hilar adenopathy", "hilar lymphadenopathy", "enlarged hilar nodes"),
}
"""Words a report may use for each finding; each is meant for that finding only."""

_PRESENT: dict[str, tuple[str, ...]] = {
    "effusion": ("{Degree} {term} {side} with blunting of the costophrenic angle.", "{Degree} {term} layering {side}."),
    "pneumothorax": (
        "{Degree} {term} {side} with a visible pleural line.",
        "There is {degree} {term} {side}, without lung markings beyond the pleural line.",
    ),
    "consolidation": ("{Degree} {term} {where} with air bronchograms.", "Dense {term} {where}."),
    "infiltration": ("{Degree} {term} {where}.", "Ill-defined {term} {where}, {degree}."),
    "atelectasis": ("Linear bands of {term} {where}.", "{Degree} {term} {where} with a raised hemidiaphragm."),
    "nodule": ("{Degree} {term} {where}.", "There is a well-defined {term} {where}."),
    "mass": ("{Degree} spiculated {term} {where}.", "There is a lobulated {term} {where}."),
    "cavity": ("{Degree} {term} {where} with an air-fluid level.", "Ring shadow {where}, in keeping with {term}."),
    "cardiomegaly": ("{Degree} {term}.", "There is {degree} {term}, the cardiothoracic ratio exceeding one half."),
    "edema": (
        "{Degree} {term} in a perihilar butterfly distribution.",
        "Perihilar haze and septal lines of {degree} {term}.",
    ),
    "emphysema": ("{Degree} {term} with flattened diaphragms.", "Lucent lungs in keeping with {degree} {term}."),
    "fibrosis": ("{Degree} {term} {where}.", "Coarse net-like {term} {where} with volume loss."),
    "bronchiectasis": ("{Degree} {term} {where}.", "Clustered ring shadows of {term} {where}."),
    "pleural thickening": ("{Degree} {term} along the {side_word} lateral chest wall.", "Scalloped {term} {side}."),
    "hiatal hernia": ("{Degree} {term} behind the heart.", "Retrocardiac air-fluid level of a {degree} {term}."),
    "miliary nodules": ("Diffuse {term} throughout both lungs.", "Innumerable tiny opacities in keeping with {term}."),
    "rib fractures": ("Healing lateral {term} {side}.", "Several {term} with callus {side}."),
    "free air": ("{Degree} {term} beneath the diaphragm {side}.", "Crescent of {term} {side}."),
    "cardiac device": (
        "{Term} projected over the {side_word} upper chest with leads to the heart.",
        "{Term} in place {side}.",
    ),
    "chest tube": ("{Term} {side} with its tip towards the apex.", "{Term} in place {side}."),
    "scoliosis": ("{Degree} {term} of the thoracic spine convex to the {side_word}.", "{Degree} thoracic {term}."),
    "calcified granulomas": ("Dense {term} {where}.", "Clustered {term} {where}."),
    "hilar adenopathy": ("{Degree} {term} {side}.", "Lobulated {term} {side}."),
}

_DENIED = (
    "No {term}.",
    "The image shows no {term}.",
    "No evidence of {term}.",
    "No {term} or {other}.",
    "Negative for {term}.",
    "No {term} can be made out.",
    "Neither {term} nor {other} can be made out.",
    "The chest is free of {term}.",
)

_HEALTHY = (
    "The lungs are clear.",
    "Heart size is within normal limits.",
    "The mediastinal contours are unremarkable.",
    "The costophrenic angles are sharp.",
    "The bones are unremarkable for age.",
)

_NORMAL_IMPRESSION = (
    "No acute cardiopulmonary abnormality.",
    "Normal chest radiograph.",
    "Unremarkable examination of the chest.",
)

_DEGREES = {"mild": ("small", "mild", "subtle"), "moderate": ("moderate",), "severe": ("large", "marked", "severe")}

_SIMILAR = (
    {"nodule", "mass", "cavity", "miliary nodules", "calcified granulomas"},
    {"consolidation", "infiltration", "atelectasis", "edema", "fibrosis", "bronchiectasis"},
    {"effusion", "pleural thickening"},
    {"rib fractures", "scoliosis"},
)
"""Findings a reader would not deny beside one another."""


def write_report(findings: Sequence[PhantomFinding], view: str, rng: np.random.Generator) -> str:
    """Return a report of one image: a findings section and an impression.

    Args:
        findings: What the image shows; empty for a healthy chest.
        view: "PA" or "AP".
        rng: Chooses words and order.
    """
    present = [finding.name for finding in findings]
    sentences = [_present(finding, rng) for finding in findings]
    blocked = set(present).union(*(group for group in _SIMILAR if group & set(present)))
    absent = [name for name in FINDINGS if name not in blocked]
    order = [absent[i] for i in rng.permutation(len(absent))]
    count = int(rng.integers(3, 6))
    sentences += [_deny(order[2 * i], order[2 * i + 1], rng) for i in range(count)]
    if not findings:
        picked = rng.permutation(len(_HEALTHY))[:3]
        sentences = [_HEALTHY[i] for i in picked] + sentences
    body = " ".join(sentences[i] for i in rng.permutation(len(sentences)))
    if findings:
        lines = [_impression(finding, rng) for finding in findings]
        impression = lines[0] if len(lines) == 1 else " ".join(f"{i}) {line}" for i, line in enumerate(lines, 1))
    else:
        impression = _pick(_NORMAL_IMPRESSION, rng)
    return f"FINDINGS: Frontal {view} radiograph of the chest. {body} IMPRESSION: {impression}"


def _pick(words: Sequence[str], rng: np.random.Generator) -> str:
    return words[int(rng.integers(len(words)))]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _words(finding: PhantomFinding, rng: np.random.Generator) -> dict[str, str]:
    """Return what the templates of a present finding may mention."""
    term, degree = _pick(TERMS[finding.name], rng), _pick(_DEGREES[finding.grade], rng)
    side = {"both": "on both sides", "midline": "in the midline"}.get(finding.side, f"on the {finding.side}")
    zone = {"middle": "mid"}.get(finding.place, finding.place)
    if finding.side == "both":
        where = {"base": "at both bases", "apex": "at both apices"}.get(finding.place, f"in both {zone} zones")
    else:
        where = {"base": f"at the {finding.side} base", "apex": f"at the {finding.side} apex"}.get(
            finding.place, f"in the {finding.side} {zone} zone"
        )
    return {
        "term": term,
        "Term": _capital(term),
        "degree": degree,
        "Degree": _capital(degree),
        "side": side,
        "side_word": finding.side,
        "where": where,
    }


def _present(finding: PhantomFinding, rng: np.random.Generator) -> str:
    return _pick(_PRESENT[finding.name], rng).format(**_words(finding, rng))


def _impression(finding: PhantomFinding, rng: np.random.Generator) -> str:
    words = _words(finding, rng)
    lateral = "" if finding.side == "midline" else f", {finding.side if finding.side != 'both' else 'bilateral'}"
    return f"{words['Term']}{lateral}."


def _deny(name: str, second: str, rng: np.random.Generator) -> str:
    term, other = _pick(TERMS[name], rng), _pick(TERMS[second], rng)
    return _pick(_DENIED, rng).format(term=term, Term=_capital(term), other=other)
