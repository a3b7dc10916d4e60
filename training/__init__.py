"""Training: losses, metrics, settings, the loop and what comes after it.

It is handed batches, a network and a loss; of our other folders it knows the semantic tree (`shards`) and `models`.
"""

from .cross_entropy import BinaryCrossEntropyLoss, CrossEntropyLoss
from .distill import SelfTest, Teacher, load_teacher, self_test
from .distill_loss import LogitKDLoss, SemanticKDLoss
from .distributed import Ranks, join_ranks
from .evaluation import SavedRun, draw_prediction, evaluate, load_run, predict
from .job import Stopped, seed_everything, train
from .loop import Loader, Mix
from .losses import create_loss
from .metrics import SemanticAccuracy, TopAccuracy, commonest
from .precision import resolve_amp
from .recipes import describe_recipes, list_recipes, read_recipe, resolve_settings, resolve_with_sources
from .run_folder import RunFolder, run_config
from .semantic import SemanticSoftmaxLoss
from .settings import TrainSettings, setting_meanings
from .tracker import NonFiniteLossError, Progress

__all__ = [
    "BinaryCrossEntropyLoss",
    "CrossEntropyLoss",
    "Loader",
    "LogitKDLoss",
    "Mix",
    "NonFiniteLossError",
    "Progress",
    "Ranks",
    "RunFolder",
    "SavedRun",
    "SelfTest",
    "SemanticAccuracy",
    "SemanticKDLoss",
    "SemanticSoftmaxLoss",
    "Stopped",
    "Teacher",
    "TopAccuracy",
    "TrainSettings",
    "commonest",
    "create_loss",
    "describe_recipes",
    "draw_prediction",
    "evaluate",
    "join_ranks",
    "list_recipes",
    "load_run",
    "load_teacher",
    "predict",
    "read_recipe",
    "resolve_amp",
    "resolve_settings",
    "resolve_with_sources",
    "run_config",
    "seed_everything",
    "self_test",
    "setting_meanings",
    "train",
]
