"""Errors of ours come back whole from worker processes, whichever raises them."""

from __future__ import annotations

import ast
import pickle
from importlib import import_module
from pathlib import Path

import pytest

from in21k.preprocess.classes.select import NoTrainingImageError, SelectSettings
from in21k.preprocess.classes.taxonomy import CycleError
from in21k.preprocess.images.image import RejectedImageError
from in21k.preprocess.sources.label_list import _LineError
from in21k.shards.files.parallel import WorkerDiedError
from in21k.shards.reader import CorruptSampleError
from in21k.training.tracker import NonFiniteLossError

ROOT = Path(__file__).parents[1]
FOLDERS = ("shards", "preprocess", "datapipe", "models", "training", "cli")
# One of each kind that takes more than a line.
EXAMPLES: dict[type[Exception], Exception] = {
    type(error): error
    for error in (
        RejectedImageError("too large", "20000x20000 pixels"),
        NoTrainingImageError("n01440764", 3, 3, 1, SelectSettings(val_list=None, classes=frozenset({"n01440764"}))),
        CycleError(["bird", "swan", "bird"]),
        WorkerDiedError("n01440764", "n01440764_1.JPEG", -11),
        _LineError(3, "the path is empty"),
        CorruptSampleError(7, "has another checksum"),
        NonFiniteLossError({"step": 3, "lr": 0.1}, [float("inf")], {"epoch": 0, "samples": 8}),
    )
}


def kinds_of_errors() -> list[type[Exception]]:
    """Return the exception classes of the package, whose names all end in Error (ruff's N818)."""
    items: list[type[Exception]] = []
    for path in sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")):
        names = [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
        if errors := [name for name in names if name.endswith("Error")]:
            module = import_module(".".join(["in21k", *path.relative_to(ROOT).with_suffix("").parts]))
            items += [getattr(module, name) for name in errors]
    return items


@pytest.mark.parametrize("kind", kinds_of_errors(), ids=lambda kind: kind.__name__)
def test_an_error_says_the_same_in_another_process(kind: type[Exception]) -> None:
    error = EXAMPLES.get(kind) or kind("a line")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes, as a process pool sends them
    assert type(again) is kind
    assert (str(again), vars(again)) == (str(error), vars(error))
