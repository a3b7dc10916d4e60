"""Trained models at work: validation, prediction, and the picture of one."""

from .answers import answers_by_sigmoid, gives_several_labels
from .classifier import Classified, Classifier, extract_features
from .feature_file import KEYS as FEATURE_KEYS
from .feature_file import FeatureFile, finished_features, open_features, write_features
from .features import collect_features
from .imagenet1k import SharedClasses, evaluate_imagenet1k, shared_with_imagenet1k
from .images import UnreadableImageError, fit_image, read_image
from .knn import default_ks, knn
from .layers import FeatureExtractor, Layer, list_layers
from .linear_probe import LEARNING_RATES as PROBE_LEARNING_RATES
from .measure import measure, own_level_answers, path_distance, per_class
from .open_model import OpenModel, open_model
from .picture import draw_prediction, lay_out
from .pixel_model import PixelModel
from .predict import Describer, LabelDescriber
from .predictions import Predictions, collect, load_predictions, save_predictions
from .probe import probe
from .reading import Source, read_batches
from .retrieve import retrieve
from .row_store import RowStore, remove_leftover_rows
from .saved_run import SavedRun, load_model, load_run
from .validate import evaluate

__all__ = [
    "FEATURE_KEYS",
    "PROBE_LEARNING_RATES",
    "Classified",
    "Classifier",
    "Describer",
    "FeatureExtractor",
    "FeatureFile",
    "LabelDescriber",
    "Layer",
    "OpenModel",
    "PixelModel",
    "Predictions",
    "RowStore",
    "SavedRun",
    "SharedClasses",
    "Source",
    "UnreadableImageError",
    "answers_by_sigmoid",
    "collect",
    "collect_features",
    "default_ks",
    "draw_prediction",
    "evaluate",
    "evaluate_imagenet1k",
    "extract_features",
    "finished_features",
    "fit_image",
    "gives_several_labels",
    "knn",
    "lay_out",
    "list_layers",
    "load_model",
    "load_predictions",
    "load_run",
    "measure",
    "open_features",
    "open_model",
    "own_level_answers",
    "path_distance",
    "per_class",
    "probe",
    "read_batches",
    "read_image",
    "remove_leftover_rows",
    "retrieve",
    "save_predictions",
    "shared_with_imagenet1k",
    "write_features",
]
