"""Decide from words: reports read, classes described, images brought to words, seen and unseen classes in one contest.

Names resolve when first used, so that importing this package imports neither torch nor scikit-learn.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .alignment import (
        ALIGNMENTS,
        AleAlignment,
        Alignment,
        CcaAlignment,
        EszslAlignment,
        RidgeAlignment,
        alignment_names,
        make_alignment,
    )
    from .classifier import ZeroShotClassifier
    from .contrastive import ContrastiveAlignment
    from .errors import DescriptionError, LexiconError, ReportError, ZeroShotError
    from .generalized import (
        GeneralizedReport,
        Interval,
        SeenUnseenCurve,
        choose_gamma,
        evaluate_generalized,
        harmonic_mean,
        seen_unseen_curve,
        stacked,
    )
    from .joint import JointTraining, train_by_text
    from .lexicon import Finding, Lexicon
    from .linear_map import LinearMap
    from .model import ZeroShotModel
    from .multilabel import MultilabelScores, multilabel_scores
    from .multiview import MultiView, self_train, targets_of
    from .negation import mark_all, mark_denied
    from .prompts import Prompts, built_in_descriptions, prompts_for, read_descriptions
    from .recall import RetrievalReport, retrieval
    from .reports import Mention, Report, parse_report
    from .semantics import SemanticSpace, from_descriptions, from_reports
    from .traits import built_in_traits, from_traits, read_traits
    from .weak_labels import ReportLabels, report_labels

# Each public name and the module that holds it.
_HOME = {
    "ALIGNMENTS": "alignment",
    "AleAlignment": "alignment",
    "Alignment": "alignment",
    "CcaAlignment": "alignment",
    "ContrastiveAlignment": "contrastive",
    "DescriptionError": "errors",
    "EszslAlignment": "alignment",
    "Finding": "lexicon",
    "GeneralizedReport": "generalized",
    "Interval": "generalized",
    "JointTraining": "joint",
    "Lexicon": "lexicon",
    "LexiconError": "errors",
    "LinearMap": "linear_map",
    "Mention": "reports",
    "MultiView": "multiview",
    "MultilabelScores": "multilabel",
    "Prompts": "prompts",
    "Report": "reports",
    "ReportError": "errors",
    "ReportLabels": "weak_labels",
    "RetrievalReport": "recall",
    "RidgeAlignment": "alignment",
    "SeenUnseenCurve": "generalized",
    "SemanticSpace": "semantics",
    "ZeroShotClassifier": "classifier",
    "ZeroShotError": "errors",
    "ZeroShotModel": "model",
    "alignment_names": "alignment",
    "built_in_descriptions": "prompts",
    "built_in_traits": "traits",
    "choose_gamma": "generalized",
    "evaluate_generalized": "generalized",
    "from_descriptions": "semantics",
    "from_reports": "semantics",
    "from_traits": "traits",
    "harmonic_mean": "generalized",
    "make_alignment": "alignment",
    "mark_all": "negation",
    "mark_denied": "negation",
    "multilabel_scores": "multilabel",
    "parse_report": "reports",
    "prompts_for": "prompts",
    "read_descriptions": "prompts",
    "read_traits": "traits",
    "report_labels": "weak_labels",
    "retrieval": "recall",
    "seen_unseen_curve": "generalized",
    "self_train": "multiview",
    "stacked": "generalized",
    "targets_of": "multiview",
    "train_by_text": "joint",
}

__all__ = [
    "ALIGNMENTS",
    "AleAlignment",
    "Alignment",
    "CcaAlignment",
    "ContrastiveAlignment",
    "DescriptionError",
    "EszslAlignment",
    "Finding",
    "GeneralizedReport",
    "Interval",
    "JointTraining",
    "Lexicon",
    "LexiconError",
    "LinearMap",
    "Mention",
    "MultiView",
    "MultilabelScores",
    "Prompts",
    "Report",
    "ReportError",
    "ReportLabels",
    "RetrievalReport",
    "RidgeAlignment",
    "SeenUnseenCurve",
    "SemanticSpace",
    "ZeroShotClassifier",
    "ZeroShotError",
    "ZeroShotModel",
    "alignment_names",
    "built_in_descriptions",
    "built_in_traits",
    "choose_gamma",
    "evaluate_generalized",
    "from_descriptions",
    "from_reports",
    "from_traits",
    "harmonic_mean",
    "make_alignment",
    "mark_all",
    "mark_denied",
    "multilabel_scores",
    "parse_report",
    "prompts_for",
    "read_descriptions",
    "read_traits",
    "report_labels",
    "retrieval",
    "seen_unseen_curve",
    "self_train",
    "stacked",
    "targets_of",
    "train_by_text",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'zeroshot' has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_HOME)


def _require_ours() -> None:
    """Other distributions install packages with these generic names too; say so at once, in one sentence."""
    for name in ("embeddings", "episodes"):
        module = importlib.import_module(name)
        if getattr(module, "__distribution__", None) != "radshot":
            raise ImportError(
                f"zeroshot needs radshot's own package '{name}', but Python found another one at "
                f"{getattr(module, '__file__', None) or 'an unknown place'}: uninstall the distribution that owns it, "
                f"then reinstall radshot."
            )


_require_ours()
