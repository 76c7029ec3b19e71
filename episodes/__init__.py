"""The task: who is support, who is query, and how well a classifier does.

Names resolve on first use, so importing the package costs NumPy and little more; nothing here imports torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

# `evaluate` names a function and the module that holds it. Python binds a submodule to its package when it is first
# imported, so the module comes in here, once, and the function takes the name for good.
from .evaluate import evaluate

if TYPE_CHECKING:
    from .calibration_metrics import (
        Reliability,
        ReliabilityBin,
        RiskCoverage,
        brier_score,
        negative_log_likelihood,
        reliability,
        risk_coverage,
    )
    from .chestxray14 import (
        CHESTXRAY14_FINDINGS,
        CHESTXRAY14_SEEN,
        CHESTXRAY14_UNSEEN,
        generalized_split,
        read_chestxray14,
    )
    from .decision import Decision, Neighbor
    from .duplicates import DuplicatePair, DuplicateReport, ImageHashes, difference_hash, hash_images, near_duplicates
    from .errors import EpisodeError, FilterError, ManifestError, UnknownColumn
    from .evaluate import compare
    from .intervals import PairedDifference, PatientBootstrap, episode_interval, paired_difference, patient_bootstrap
    from .manifest import Manifest
    from .metrics import ConfusionMatrix, RankingScore, balanced_accuracy, confusion_matrix, ranking_score
    from .multilabel import MultiLabelEpisode, MultiLabelEpisodeSampler
    from .multilabel_evaluate import evaluate_multilabel, label_auroc
    from .multilabel_report import LabelResult, MultiLabelReport, SeenUnseenAuroc
    from .multilabel_summary import compare_multilabel
    from .openi import read_openi
    from .outcomes import ClassResult, Outcomes
    from .phantoms import (
        FINDINGS,
        NO_FINDING,
        SOURCE_FINDINGS,
        UNSEEN_FINDINGS,
        PhantomFinding,
        PhantomSet,
        draw_phantom,
        make_phantoms,
        write_phantoms,
    )
    from .pixel_batches import PixelBatches
    from .pixel_cache import PixelCache
    from .report import Report
    from .report_page import render_reports, training_page
    from .sampler import Episode, EpisodeSampler
    from .splits import Fold, by_column, k_fold, leave_one_patient_out, seen_unseen, split
    from .stream import EpisodeBatch, EpisodeStream, StreamedEpisode
    from .where import rows_where

_EXPORTS = {
    "CHESTXRAY14_FINDINGS": "chestxray14",
    "CHESTXRAY14_SEEN": "chestxray14",
    "CHESTXRAY14_UNSEEN": "chestxray14",
    "ClassResult": "outcomes",
    "ConfusionMatrix": "metrics",
    "Decision": "decision",
    "DuplicatePair": "duplicates",
    "DuplicateReport": "duplicates",
    "Episode": "sampler",
    "EpisodeBatch": "stream",
    "EpisodeError": "errors",
    "EpisodeSampler": "sampler",
    "EpisodeStream": "stream",
    "FINDINGS": "phantoms",
    "FilterError": "errors",
    "Fold": "splits",
    "ImageHashes": "duplicates",
    "LabelResult": "multilabel_report",
    "Manifest": "manifest",
    "ManifestError": "errors",
    "MultiLabelEpisode": "multilabel",
    "MultiLabelEpisodeSampler": "multilabel",
    "MultiLabelReport": "multilabel_report",
    "NO_FINDING": "phantoms",
    "Neighbor": "decision",
    "Outcomes": "outcomes",
    "PairedDifference": "intervals",
    "PatientBootstrap": "intervals",
    "PhantomFinding": "phantoms",
    "PhantomSet": "phantoms",
    "PixelBatches": "pixel_batches",
    "PixelCache": "pixel_cache",
    "RankingScore": "metrics",
    "Reliability": "calibration_metrics",
    "ReliabilityBin": "calibration_metrics",
    "Report": "report",
    "RiskCoverage": "calibration_metrics",
    "SOURCE_FINDINGS": "phantoms",
    "SeenUnseenAuroc": "multilabel_report",
    "StreamedEpisode": "stream",
    "UNSEEN_FINDINGS": "phantoms",
    "UnknownColumn": "errors",
    "balanced_accuracy": "metrics",
    "brier_score": "calibration_metrics",
    "by_column": "splits",
    "compare": "evaluate",
    "compare_multilabel": "multilabel_summary",
    "confusion_matrix": "metrics",
    "difference_hash": "duplicates",
    "draw_phantom": "phantoms",
    "episode_interval": "intervals",
    "evaluate_multilabel": "multilabel_evaluate",
    "generalized_split": "chestxray14",
    "hash_images": "duplicates",
    "k_fold": "splits",
    "label_auroc": "multilabel_evaluate",
    "leave_one_patient_out": "splits",
    "make_phantoms": "phantoms",
    "near_duplicates": "duplicates",
    "negative_log_likelihood": "calibration_metrics",
    "paired_difference": "intervals",
    "patient_bootstrap": "intervals",
    "ranking_score": "metrics",
    "read_chestxray14": "chestxray14",
    "read_openi": "openi",
    "reliability": "calibration_metrics",
    "render_reports": "report_page",
    "risk_coverage": "calibration_metrics",
    "rows_where": "where",
    "seen_unseen": "splits",
    "split": "splits",
    "training_page": "report_page",
    "write_phantoms": "phantoms",
}
"""Public name -> module that holds it."""

# Other distributions install a package of this name too; fewshot and zeroshot look here before they rely on it.
__distribution__ = "radshot"

__all__ = [
    "CHESTXRAY14_FINDINGS",
    "CHESTXRAY14_SEEN",
    "CHESTXRAY14_UNSEEN",
    "FINDINGS",
    "NO_FINDING",
    "SOURCE_FINDINGS",
    "UNSEEN_FINDINGS",
    "ClassResult",
    "ConfusionMatrix",
    "Decision",
    "DuplicatePair",
    "DuplicateReport",
    "Episode",
    "EpisodeBatch",
    "EpisodeError",
    "EpisodeSampler",
    "EpisodeStream",
    "FilterError",
    "Fold",
    "ImageHashes",
    "LabelResult",
    "Manifest",
    "ManifestError",
    "MultiLabelEpisode",
    "MultiLabelEpisodeSampler",
    "MultiLabelReport",
    "Neighbor",
    "Outcomes",
    "PairedDifference",
    "PatientBootstrap",
    "PhantomFinding",
    "PhantomSet",
    "PixelBatches",
    "PixelCache",
    "RankingScore",
    "Reliability",
    "ReliabilityBin",
    "Report",
    "RiskCoverage",
    "SeenUnseenAuroc",
    "StreamedEpisode",
    "UnknownColumn",
    "balanced_accuracy",
    "brier_score",
    "by_column",
    "compare",
    "compare_multilabel",
    "confusion_matrix",
    "difference_hash",
    "draw_phantom",
    "episode_interval",
    "evaluate",
    "evaluate_multilabel",
    "generalized_split",
    "hash_images",
    "k_fold",
    "label_auroc",
    "leave_one_patient_out",
    "make_phantoms",
    "near_duplicates",
    "negative_log_likelihood",
    "paired_difference",
    "patient_bootstrap",
    "ranking_score",
    "read_chestxray14",
    "read_openi",
    "reliability",
    "render_reports",
    "risk_coverage",
    "rows_where",
    "seen_unseen",
    "split",
    "training_page",
    "write_phantoms",
]


def __getattr__(name: str) -> Any:
    """Import the module that holds a public name."""
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_EXPORTS[name]}", __name__), name)


def __dir__() -> list[str]:
    """Return the public names."""
    return sorted(__all__)
