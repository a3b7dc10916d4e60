"""Trained models at work: validation, prediction, and the picture of one."""

from .picture import draw_prediction
from .predict import predict
from .saved_run import SavedRun, load_run
from .validate import evaluate

__all__ = ["SavedRun", "draw_prediction", "evaluate", "load_run", "predict"]
