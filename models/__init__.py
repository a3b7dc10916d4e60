"""Networks: timm's architectures by name and one of ours, weights in and out. Knows torch and timm, nothing of ours."""

from .label_space import LabelSpace, class_map, known_label_spaces, label_space_of
from .stats import ModelStats, model_stats
from .weights import WeightsReport, load_weights
from .zoo import PublishedWeights, create_model, list_models, pretrained_21k

__all__ = [
    "LabelSpace",
    "ModelStats",
    "PublishedWeights",
    "WeightsReport",
    "class_map",
    "create_model",
    "known_label_spaces",
    "label_space_of",
    "list_models",
    "load_weights",
    "model_stats",
    "pretrained_21k",
]
