"""Training: losses, metrics, settings, the loop and what comes after it.

It is handed batches, a network and a loss; of our other folders it knows the semantic tree (`shards`) and `models`.
"""

from .distill import Teacher, load_teacher
from .evaluation.validate import evaluate
from .inference.classifier import Classifier, extract_features
from .inference.open_model import open_model
from .losses.cross_entropy import BinaryCrossEntropyLoss, CrossEntropyLoss
from .losses.distill_loss import LogitKDLoss, SemanticKDLoss
from .losses.semantic import SemanticSoftmaxLoss
from .metrics import SemanticAccuracy
from .recipes import list_recipes, resolve_settings
from .run import train_model
from .runs.saved_run import load_model, load_run
from .settings import TrainSettings

__all__ = [
    "BinaryCrossEntropyLoss",
    "Classifier",
    "CrossEntropyLoss",
    "LogitKDLoss",
    "SemanticAccuracy",
    "SemanticKDLoss",
    "SemanticSoftmaxLoss",
    "Teacher",
    "TrainSettings",
    "evaluate",
    "extract_features",
    "list_recipes",
    "load_model",
    "load_run",
    "load_teacher",
    "open_model",
    "resolve_settings",
    "train_model",
]
