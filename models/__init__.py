"""Networks: timm's architectures by name and one of ours, weights in and out. Knows torch and timm, nothing of ours."""

from .average import average_weights
from .card import render_model_card
from .export import save_weights, timm_config, weights_fingerprint, write_checksums
from .label_space import LabelSpace, class_map, known_label_spaces, label_space_of
from .stats import ModelStats, count_parameters, model_stats
from .trial import Trial, try_images
from .weights import WeightsReport, load_weights
from .weights_file import read_weights
from .zoo import (
    PublishedWeights,
    checkpoint_gradients,
    create_model,
    create_model_for,
    input_size_of,
    list_models,
    pretrained_21k,
)

__all__ = [
    "LabelSpace",
    "ModelStats",
    "PublishedWeights",
    "Trial",
    "WeightsReport",
    "average_weights",
    "checkpoint_gradients",
    "class_map",
    "count_parameters",
    "create_model",
    "create_model_for",
    "input_size_of",
    "known_label_spaces",
    "label_space_of",
    "list_models",
    "load_weights",
    "model_stats",
    "pretrained_21k",
    "read_weights",
    "render_model_card",
    "save_weights",
    "timm_config",
    "try_images",
    "weights_fingerprint",
    "write_checksums",
]
