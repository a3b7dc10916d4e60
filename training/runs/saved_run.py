"""A trained model back from its run folder or checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

from torch import Tensor, nn

from ...models.weights_file import check_finite, read_weights
from ...models.zoo import create_model
from ...shards.tree import SemanticTree
from ..settings import TrainSettings
from .checkpoint import load_checkpoint, open_parts
from .run_folder import EXPORT_JSON, RunFolder, network_config, read_config

Weights = Literal["last", "best", "ema", "ema-or-last"]


class SavedRun(NamedTuple):
    """A model in evaluation mode on the CPU, the tree of its classes, and the run's configuration (config.yaml)."""

    model: nn.Module
    tree: SemanticTree
    config: dict[str, Any]

    @property
    def settings(self) -> TrainSettings:
        """The settings of the run."""
        return TrainSettings(**{name: value for name, value in self.config.items() if name != "data"})


def load_model(path: str | Path, weights: Weights = "last") -> nn.Module:
    """Load the network of a run folder, or of a checkpoint file of a run, in evaluation mode on the CPU.

    weights: see `load_run`, as for the errors.

    Its `pretrained_cfg` says of the run what timm's models say of themselves: size, mean and standard deviation of the
    images, how they are cropped, and the classes; `timm.data.resolve_model_data_config` reads it.
    """
    model, tree, config = load_run(path, weights)
    described = network_config(model, config, tree)
    cast(Any, model).pretrained_cfg = {"architecture": described["architecture"], **described["pretrained_cfg"]}
    return model


def load_run(path: str | Path, weights: Weights = "last") -> SavedRun:
    """Load the model of a run folder, or of a checkpoint file of a run.

    weights: of a run folder, those of the last step (or last checkpoint), their moving average, or the best on
             validation (the best of the moving average, where the run has one); of a checkpoint file, `ema` takes its
             moving average. `ema-or-last`: the moving average where there is one, else the last.

    Raises ValueError where the path is neither, or the weights are not there, or not finite.
    """
    path = Path(path)
    if path.is_dir():
        return _from_folder(RunFolder(path), weights)
    if not path.exists():
        raise ValueError(f"{path}: does not exist; wanted a run folder or a checkpoint file")
    if weights == "best":
        raise ValueError(f"{path}: is one checkpoint; give the run's folder for its best, or leave --weights out")
    if path.suffix == ".safetensors":
        folder = f" ({path.parent})" if (path.parent / "config.yaml").is_file() else ""
        raise ValueError(
            f"{path}: holds weights alone, without their network and its classes; wanted the folder of a run or of an "
            f"export{folder}, or a checkpoint of a run"
        )
    content = load_checkpoint(path)
    averaged = weights == "ema" or (weights == "ema-or-last" and content.get("ema") is not None)
    return _from_checkpoint(content, path, averaged=averaged)


def _from_folder(run: RunFolder, weights: Weights) -> SavedRun:
    if not (run.path / "config.yaml").is_file():
        raise ValueError(f"{run.path}: no run of in21k train; wanted a folder with config.yaml, or a checkpoint file")
    config = read_config(run.path / "config.yaml")
    averaged = config.get("ema") is not None
    if weights == "ema-or-last":
        weights = "ema" if averaged else "last"
    if weights != "last" and (run.path / EXPORT_JSON).is_file():
        raise ValueError(f"{run.path}: is an export, which holds one set of weights; leave --weights out")
    if weights == "ema" and not averaged:
        raise ValueError(f"{run.path}: was trained without a moving average (--set ema=0.9999); take its last or best")
    if weights != "best" and run.finished:
        name = {"last": "model.safetensors", "ema": "model_ema.safetensors"}[weights]
        return _build(run.path, read_weights(run.path / name), SemanticTree.load(run.path / "tree.json"), config)
    checkpoint = run.best if weights == "best" else run.last
    if not checkpoint.is_file():
        raise ValueError(f"{run.path}: has no {checkpoint.stem} checkpoint (yet); wanted {checkpoint}")
    return _from_checkpoint(load_checkpoint(checkpoint), checkpoint, averaged=averaged and weights != "last")


def _from_checkpoint(content: dict[str, Any], path: Path, *, averaged: bool) -> SavedRun:
    tree, config = open_parts(content, path)
    if averaged and content["ema"] is None:
        raise ValueError(f"{path}: holds no moving average; it was trained without (--set ema=0.9999)")
    return _build(path, content["ema" if averaged else "model"], tree, config)


def _build(path: Path, tensors: dict[str, Tensor], tree: SemanticTree, config: dict[str, Any]) -> SavedRun:
    check_finite(path, tensors)
    model = create_model(config["model"], num_classes=len(tree), **config["model_args"])
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"{path}: its weights are not those of {config['model']} ({str(error).splitlines()[0]})"
        ) from error
    return SavedRun(model.eval(), tree, config)
