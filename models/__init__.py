"""Networks: timm's architectures by name and one of ours, weights in and out. Knows torch and timm, nothing of ours."""

from .export import save_weights, timm_config
from .label_space import LabelSpace, class_map, known_label_spaces, label_space_of
from .weights import WeightsReport, load_weights
from .weights_file import read_weights
from .zoo import PublishedWeights, check_image_size, checkpoint_gradients, create_model, list_models, pretrained_21k

__all__ = [
    "LabelSpace",
    "PublishedWeights",
    "WeightsReport",
    "check_image_size",
    "checkpoint_gradients",
    "class_map",
    "create_model",
    "known_label_spaces",
    "label_space_of",
    "list_models",
    "load_weights",
    "pretrained_21k",
    "read_weights",
    "save_weights",
    "timm_config",
]
