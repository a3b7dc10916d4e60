"""Networks: timm's architectures by name, weights in and out. Knows torch and timm, and nothing of ours."""

from .export import save_weights, timm_config
from .weights import WeightsReport, load_weights, read_weights
from .zoo import check_image_size, create_model, list_models

__all__ = [
    "WeightsReport",
    "check_image_size",
    "create_model",
    "list_models",
    "load_weights",
    "read_weights",
    "save_weights",
    "timm_config",
]
