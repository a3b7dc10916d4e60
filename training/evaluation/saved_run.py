"""A trained model back from its run folder or checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor, nn

from ...models.weights import read_weights
from ...models.zoo import create_model
from ...shards.tree import SemanticTree
from ..checkpoint import load_checkpoint, tree_from
from ..run_folder import RunFolder, read_config
from ..settings import TrainSettings


class SavedRun(NamedTuple):
    """A model in evaluation mode on the CPU, the tree of its classes, and the run's configuration (config.yaml)."""

    model: nn.Module
    tree: SemanticTree
    config: dict[str, Any]

    @property
    def settings(self) -> TrainSettings:
        """The settings of the run."""
        return TrainSettings(**{name: value for name, value in self.config.items() if name != "data"})


def load_run(path: str | Path, weights: Literal["last", "best"] = "last") -> SavedRun:
    """Load the model of a run folder, or of a checkpoint file of a run.

    weights: of a run folder, those of the last step (or last finished epoch), or the best by semantic top-1.

    Raises ValueError where the path is neither, or the weights are not there.
    """
    path = Path(path)
    if path.is_dir():
        return _from_folder(RunFolder(path), weights)
    if not path.exists():
        raise ValueError(f"{path}: does not exist; wanted a run folder or a checkpoint file")
    return _from_checkpoint(path)


def _from_folder(run: RunFolder, weights: str) -> SavedRun:
    if not (run.path / "config.yaml").is_file():
        raise ValueError(f"{run.path}: no run of in21k train; wanted a folder with config.yaml, or a checkpoint file")
    if weights == "last" and run.finished:
        tensors = read_weights(run.path / "model.safetensors")
        return _build(
            run.path, tensors, SemanticTree.load(run.path / "tree.json"), read_config(run.path / "config.yaml")
        )
    checkpoint = {"last": run.last, "best": run.best}[weights]
    if not checkpoint.is_file():
        raise ValueError(f"{run.path}: has no {weights} checkpoint (yet); wanted {checkpoint}")
    return _from_checkpoint(checkpoint)


def _from_checkpoint(path: Path) -> SavedRun:
    content = load_checkpoint(path)
    return _build(path, content["model"], tree_from(content["tree"]), content["config"])


def _build(path: Path, tensors: dict[str, Tensor], tree: SemanticTree, config: dict[str, Any]) -> SavedRun:
    model = create_model(config["model"], num_classes=len(tree), **config["model_args"])
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: its weights are not those of {config['model']} ({str(error).splitlines()[0]})"
        ) from error
    return SavedRun(model.eval(), tree, config)
