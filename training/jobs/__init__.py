"""Whole jobs from paths and settings to results: they join shards, loader, network and trainer.

They print nothing: progress goes to callbacks, warnings to the log, and results are returned.
"""

from .features_job import FeatureSettings, extract_features
from .finetune_data import Packing
from .finetune_job import finetune, pack_images, plan_finetuning
from .imagenet1k_job import validate_imagenet1k
from .predict_job import predict
from .retrieve_job import evaluate_retrieval, retrieve
from .setup import EvalSettings
from .train_job import plan_training, train
from .validate_job import measure_saved, validate

__all__ = [
    "EvalSettings",
    "FeatureSettings",
    "Packing",
    "evaluate_retrieval",
    "extract_features",
    "finetune",
    "measure_saved",
    "pack_images",
    "plan_finetuning",
    "plan_training",
    "predict",
    "retrieve",
    "train",
    "validate",
    "validate_imagenet1k",
]
