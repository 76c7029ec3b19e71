"""Decide from shots: comparison sets, few-shot heads, and the episodic training of the encoders they stand on."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from embeddings import Augmentation

    from .advice import Advice
    from .attention_head import MatchingClassifier
    from .auto import AutoClassifier, HeadChoice, Trial
    from .calibration import IsotonicCalibration, TemperatureScaling, fit_isotonic, fit_temperature
    from .calibration_rows import TooFewPatients
    from .comparison import ComparisonSet
    from .conformal import PredictionSets, SplitConformal, fit_split_conformal, patients_needed
    from .cross_conformal import CrossConformal, fit_cross_conformal, fold_numbers, fold_scores
    from .deploying import deploy, open_deployment
    from .deployment import Deployment
    from .deployment_store import deployments, has_deployment, roll_back
    from .distribution_calibration import DistributionCalibratedClassifier
    from .estimate_report import ClassEstimate, Estimate
    from .estimation import estimate
    from .evidence import Counterfactual, what_would_change
    from .finetuning import FineTunedClassifier, image_rows
    from .fitted import Fitted
    from .gaussian import GaussianClassifier
    from .head import Head
    from .heatmap_pictures import annotated, overlay, write_png
    from .heatmaps import Explanation, HeatMap, explain_image
    from .held_out import fit_folds, held_out_scores, patient_folds
    from .label_heads import LabelClassifier
    from .label_prototypes import LabelPrototypeClassifier
    from .linear import LinearProbe, RidgeClassifier
    from .losses import prototypical_loss, squared_distances
    from .matching import MatchingNetwork
    from .multilabel import MultiLabelPrototypicalNetwork, MultiLabelTargets
    from .neighbors import NeighborClassifier
    from .networks import EpisodeTargets, EpisodicNetwork, ImageNetwork, PrototypicalNetwork
    from .novelty import NoveltyAnswer, NoveltyDetector, fit_novelty, nearest_similarity, none_of_these, winning_score
    from .operating_points import OperatingPoint, choose_operating_point, measure_operating_point
    from .outliers import Outlier, OutlierReport, outlier_scores
    from .priors import ClassPrior, Words, WordsAndShotsClassifier
    from .prototypes import PrototypeClassifier
    from .recipe import Recipe
    from .registration import Registration
    from .registry import HEADS, heads_for, make_head
    from .relation import RelationNetwork
    from .relation_head import RelationClassifier
    from .siamese import SiameseClassifier
    from .siamese_network import SiameseNetwork
    from .simclr import SimCLRNetwork
    from .soft_kmeans import SoftKMeansClassifier
    from .studies import decide_studies, pool_p_values, pool_probabilities, pool_scores
    from .supervised import SupervisedNetwork
    from .svm import SupportVectorClassifier
    from .training import Training, train
    from .training_config import METHODS, PRETRAINING, SIAMESE_LOSSES, TrainingConfig, TrainingError
    from .words_worth import WordsWorth, learn_prior_shots

__all__ = [
    "HEADS",
    "METHODS",
    "PRETRAINING",
    "SIAMESE_LOSSES",
    "Advice",
    "Augmentation",
    "AutoClassifier",
    "ClassEstimate",
    "ClassPrior",
    "ComparisonSet",
    "Counterfactual",
    "CrossConformal",
    "Deployment",
    "DistributionCalibratedClassifier",
    "EpisodeTargets",
    "EpisodicNetwork",
    "Estimate",
    "Explanation",
    "FineTunedClassifier",
    "Fitted",
    "GaussianClassifier",
    "Head",
    "HeadChoice",
    "HeatMap",
    "ImageNetwork",
    "IsotonicCalibration",
    "LabelClassifier",
    "LabelPrototypeClassifier",
    "LinearProbe",
    "MatchingClassifier",
    "MatchingNetwork",
    "MultiLabelPrototypicalNetwork",
    "MultiLabelTargets",
    "NeighborClassifier",
    "NoveltyAnswer",
    "NoveltyDetector",
    "OperatingPoint",
    "Outlier",
    "OutlierReport",
    "PredictionSets",
    "PrototypeClassifier",
    "PrototypicalNetwork",
    "Recipe",
    "Registration",
    "RelationClassifier",
    "RelationNetwork",
    "RidgeClassifier",
    "SiameseClassifier",
    "SiameseNetwork",
    "SimCLRNetwork",
    "SoftKMeansClassifier",
    "SplitConformal",
    "SupervisedNetwork",
    "SupportVectorClassifier",
    "TemperatureScaling",
    "TooFewPatients",
    "Training",
    "TrainingConfig",
    "TrainingError",
    "Trial",
    "Words",
    "WordsAndShotsClassifier",
    "WordsWorth",
    "annotated",
    "choose_operating_point",
    "decide_studies",
    "deploy",
    "deployments",
    "estimate",
    "explain_image",
    "fit_cross_conformal",
    "fit_folds",
    "fit_isotonic",
    "fit_novelty",
    "fit_split_conformal",
    "fit_temperature",
    "fold_numbers",
    "fold_scores",
    "has_deployment",
    "heads_for",
    "held_out_scores",
    "image_rows",
    "learn_prior_shots",
    "make_head",
    "measure_operating_point",
    "nearest_similarity",
    "none_of_these",
    "open_deployment",
    "outlier_scores",
    "overlay",
    "patient_folds",
    "patients_needed",
    "pool_p_values",
    "pool_probabilities",
    "pool_scores",
    "prototypical_loss",
    "roll_back",
    "squared_distances",
    "train",
    "what_would_change",
    "winning_score",
    "write_png",
]

_HOME = {
    "Advice": "advice",
    "Augmentation": "training_config",
    "AutoClassifier": "auto",
    "ClassEstimate": "estimate_report",
    "ComparisonSet": "comparison",
    "Counterfactual": "evidence",
    "CrossConformal": "cross_conformal",
    "Deployment": "deployment",
    "DistributionCalibratedClassifier": "distribution_calibration",
    "EpisodeTargets": "networks",
    "EpisodicNetwork": "networks",
    "Estimate": "estimate_report",
    "Explanation": "heatmaps",
    "FineTunedClassifier": "finetuning",
    "Fitted": "fitted",
    "GaussianClassifier": "gaussian",
    "HEADS": "registry",
    "Head": "head",
    "HeadChoice": "auto",
    "HeatMap": "heatmaps",
    "ImageNetwork": "networks",
    "IsotonicCalibration": "calibration",
    "LabelClassifier": "label_heads",
    "LabelPrototypeClassifier": "label_prototypes",
    "LinearProbe": "linear",
    "METHODS": "training_config",
    "MatchingClassifier": "attention_head",
    "MatchingNetwork": "matching",
    "MultiLabelPrototypicalNetwork": "multilabel",
    "MultiLabelTargets": "multilabel",
    "NeighborClassifier": "neighbors",
    "NoveltyAnswer": "novelty",
    "NoveltyDetector": "novelty",
    "OperatingPoint": "operating_points",
    "Outlier": "outliers",
    "OutlierReport": "outliers",
    "PRETRAINING": "training_config",
    "PredictionSets": "conformal",
    "ClassPrior": "priors",
    "Words": "priors",
    "WordsAndShotsClassifier": "priors",
    "WordsWorth": "words_worth",
    "learn_prior_shots": "words_worth",
    "PrototypeClassifier": "prototypes",
    "PrototypicalNetwork": "networks",
    "Recipe": "recipe",
    "Registration": "registration",
    "RelationClassifier": "relation_head",
    "RelationNetwork": "relation",
    "RidgeClassifier": "linear",
    "SIAMESE_LOSSES": "training_config",
    "SiameseClassifier": "siamese",
    "SiameseNetwork": "siamese_network",
    "SimCLRNetwork": "simclr",
    "SoftKMeansClassifier": "soft_kmeans",
    "SplitConformal": "conformal",
    "SupervisedNetwork": "supervised",
    "SupportVectorClassifier": "svm",
    "TemperatureScaling": "calibration",
    "TooFewPatients": "calibration_rows",
    "Training": "training",
    "TrainingConfig": "training_config",
    "TrainingError": "training_config",
    "Trial": "auto",
    "annotated": "heatmap_pictures",
    "choose_operating_point": "operating_points",
    "decide_studies": "studies",
    "deploy": "deploying",
    "deployments": "deployment_store",
    "estimate": "estimation",
    "explain_image": "heatmaps",
    "fit_cross_conformal": "cross_conformal",
    "fit_folds": "held_out",
    "fit_isotonic": "calibration",
    "fit_novelty": "novelty",
    "fit_split_conformal": "conformal",
    "fit_temperature": "calibration",
    "fold_numbers": "cross_conformal",
    "fold_scores": "cross_conformal",
    "has_deployment": "deployment_store",
    "heads_for": "registry",
    "held_out_scores": "held_out",
    "image_rows": "finetuning",
    "make_head": "registry",
    "measure_operating_point": "operating_points",
    "nearest_similarity": "novelty",
    "none_of_these": "novelty",
    "open_deployment": "deploying",
    "outlier_scores": "outliers",
    "overlay": "heatmap_pictures",
    "patient_folds": "held_out",
    "patients_needed": "conformal",
    "pool_p_values": "studies",
    "pool_probabilities": "studies",
    "pool_scores": "studies",
    "prototypical_loss": "losses",
    "roll_back": "deployment_store",
    "squared_distances": "losses",
    "train": "training",
    "what_would_change": "evidence",
    "winning_score": "novelty",
    "write_png": "heatmap_pictures",
}


def _require_ours() -> None:
    """Other distributions install packages with these generic names too; say so at once, in one sentence."""
    for name in ("embeddings", "episodes"):
        module = importlib.import_module(name)
        if getattr(module, "__distribution__", None) != "radshot":
            raise ImportError(
                f"fewshot needs radshot's own package '{name}', but Python found another one at "
                f"{getattr(module, '__file__', None) or 'an unknown place'}: uninstall the distribution that owns it, "
                f"then reinstall radshot."
            )


_require_ours()


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'fewshot' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
