"""Training: losses, metrics, settings, the loop and what comes after it.

It is handed batches, a network and a loss; of our other folders it knows the semantic tree (`shards`) and `models`.
"""

from .distributed import Ranks, join_ranks
from .evaluation import SavedRun, draw_prediction, evaluate, load_run, predict
from .job import create_loss, seed_everything, train
from .loop import Loader
from .metrics import SemanticAccuracy, TopAccuracy, commonest
from .precision import resolve_amp
from .run_folder import RunFolder, run_config
from .semantic import SemanticSoftmaxLoss
from .settings import TrainSettings, list_recipes, read_recipe, resolve_settings
from .tracker import NonFiniteLossError, Progress

__all__ = [
    "Loader",
    "NonFiniteLossError",
    "Progress",
    "Ranks",
    "RunFolder",
    "SavedRun",
    "SemanticAccuracy",
    "SemanticSoftmaxLoss",
    "TopAccuracy",
    "TrainSettings",
    "commonest",
    "create_loss",
    "draw_prediction",
    "evaluate",
    "join_ranks",
    "list_recipes",
    "load_run",
    "predict",
    "read_recipe",
    "resolve_amp",
    "resolve_settings",
    "run_config",
    "seed_everything",
    "train",
]
