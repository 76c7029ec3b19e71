"""Whether a text is English: a count of small words, cheap enough for every report."""

from __future__ import annotations

import re

_ENGLISH_TEXT = """
the of and is are with there for to at was were has have been this that from or not without by be which may within
seen noted evidence size both lungs lung heart clear chest bones bony unchanged stable enlarged small mild large
left right upper lower lobe lobes fluid changes change degenerative spine ribs rib fracture fractures acute disease
bilateral view views impression findings finding unremarkable limits shadow opacity opacities silhouette nodule
nodules mass tube line scarring catheter pacemaker again since prior pleural effusion effusions overload edema
oedema thickening film normal no nothing calcified hernia collapse consolidation pneumothorax active process study
exam examination cardiac cardiomegaly tip place interval evaluation cardiopulmonary abnormality pneumonia
atelectasis
"""
_SHARED_TEXT = """
normal no mass pleural pneumothorax consolidation chest film impression large thorax catheter pneumonia
"""
_FOREIGN_TEXT = """
el la los las de del con sin hay es se una un por para al lo der das und ist kein keine keinen mit bei ohne nicht
eine einer links rechts beidseits im den dem zum zur von auf le les et des du une dans pas sans au aux est sont avec
droite gauche il gli che della dello nel nella sono senza non di os um uma com sem do da dos na em não het een niet
geen van en zijn och inte är med på ingen og ikke det
"""
_ENGLISH = frozenset(_ENGLISH_TEXT.split())
_SHARED = frozenset(_SHARED_TEXT.split())
"""Words of these that other languages have as well."""

_FOREIGN = frozenset(_FOREIGN_TEXT.split())
MARK = re.compile(r"\[\*\*.*?\*\*\]|\b[Xx]{3,}\b|_{2,}", re.DOTALL)
"""Marks of de-identification."""


def is_english(text: str) -> bool:
    """Return whether a text is English, however telegraphic.

    Args:
        text: A report.

    Returns:
        False where other languages' small words outnumber the English ones, where no word is known, or where the
        letters are not Latin.

    Example:
        >>> is_english("Clear lungs."), is_english("Kein Pneumothorax, keine Ergüsse.")
        (True, False)
    """
    words = re.findall(r"[^\W\d_]+", MARK.sub(" ", text).lower())
    if not words:
        return False
    latin = sum(word.isascii() for word in words)
    english = sum(word in _ENGLISH for word in words)
    strict = sum(word in _ENGLISH and word not in _SHARED for word in words)
    foreign = sum(word in _FOREIGN for word in words)
    if latin < len(words) / 2:
        return False
    if foreign and foreign >= strict:
        return False
    return english > 0 and english >= len(words) / 30


def may_be_english(text: str) -> bool:
    """Return whether nothing speaks against English: plain Latin letters, and no small word of another language."""
    words = re.findall(r"[^\W\d_]+", MARK.sub(" ", text).lower())
    return bool(words) and all(word.isascii() and word not in _FOREIGN for word in words)
