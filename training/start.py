"""The weights that a run begins with: another run's, a checkpoint's, a file's, or published ones by timm's name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..models.export import mean_std, short_normalize
from ..models.trial import try_images
from ..models.weights import WeightsReport, fit_weights, load_weights
from ..models.zoo import create_model
from .inference.open_model import OpenModel, open_model
from .runs.checkpoint import load_checkpoint
from .runs.saved_run import Weights
from .settings import TrainSettings

log = logging.getLogger(__name__)

_OF_RUN: dict[str, Weights] = {"model.safetensors": "last", "model_ema.safetensors": "ema"}


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a run begins with.

    name:     as it was asked for.
    opened:   the network whose weights they are; None: a file of weights alone.
    settings: what it was trained with that a run which begins with it does best to share: model, model_args, normalize.
    """

    name: str
    opened: OpenModel | None = None
    settings: dict[str, Any] = field(default_factory=dict[str, Any])


def open_start(name: str) -> Start:
    """Open what `init` names.

    It is a run's folder or a checkpoint of one (then the moving average, where there is one), a run's file of weights,
    a folder that timm opens, a timm model with pretrained weights, or a file of weights alone.

    Raises ValueError where it is none of these, or cannot be had.
    """
    path = Path(name)
    if path.is_file() and path.name in _OF_RUN and (path.parent / "config.yaml").is_file():
        opened = open_model(path.parent, _OF_RUN[path.name])
    elif path.is_file() and not _is_checkpoint(path):
        return Start(name=name)
    else:
        opened = open_model(name, "ema-or-last")
    if opened.run is not None:
        own = opened.run.settings
        taken = {"model": own.model, "model_args": own.model_args, "normalize": own.normalize}
        return Start(name=name, opened=opened, settings=taken)
    normalize = short_normalize((opened.mean, opened.std))
    return Start(name=name, opened=opened, settings={"model": opened.name.partition(".")[0], "normalize": normalize})


def check_start(settings: TrainSettings, start: Start | None = None, world_size: int = 1) -> None:
    """Raise ValueError where no training of these settings can begin, whatever the classes are.

    What takes long before it, as packing images does, asks here first; see `create_network` and `check_network`.
    """
    with torch.random.fork_rng(devices=[]):
        network, _ = _begin(replace(settings, init_head="drop"), ("one", "another"), start)
    check_network(network, settings, 2, world_size)


def check_network(network: nn.Module, settings: TrainSettings, num_outputs: int, world_size: int = 1) -> None:
    """Have a network answer two images of settings.image_size, before anything is written.

    Raises ValueError where it takes none, gives no logits (2, num_outputs), or has a batch norm that sees a single
    value of a channel in the batches of training.
    """
    assert settings.image_size is not None
    trial = try_images(
        network,
        settings.image_size,
        name=settings.model,
        num_outputs=num_outputs,
        option="--set image_size=",
        rebuilds=True,
    )
    trial.check_batch(settings.batch_size * (world_size if settings.sync_bn else 1))


def create_network(settings: TrainSettings, wnids: Sequence[str], start: Start | None = None) -> nn.Module:
    """Build the network that the settings name for classes, on the CPU, with the weights of `start`, or random ones.

    start: of settings.init; the log says what of it fitted, and whether its images were normalised in another way.

    Raises ValueError where its weights hardly fit (see `load_weights`), unless settings.init_partial.
    """
    network, report = _begin(settings, wnids, start)
    if report:
        log.log(logging.INFO if report.complete else logging.WARNING, "%s", report)
    opened = start and start.opened
    if start and opened and (opened.mean, opened.std) != mean_std(settings.normalize):
        theirs = short_normalize((opened.mean, opened.std))
        log.warning(
            "%s: these weights were trained with normalize %s, and this run trains with %s; --set 'normalize=%s' takes "
            "theirs",
            *(start.name, theirs, settings.normalize, theirs),
        )
    return network


def _begin(
    settings: TrainSettings, wnids: Sequence[str], start: Start | None
) -> tuple[nn.Module, WeightsReport | None]:
    """Return the network, and what became of the weights of `start`."""
    network = create_model(settings.model, len(wnids), **settings.model_args)
    if start is None:
        return network, None
    opened, slices = start.opened, settings.init_head == "slice"
    if opened is None:
        return network, load_weights(
            network,
            start.name,
            head=settings.init_head,
            wnids=wnids if slices else None,
            partial=settings.init_partial,
        )
    return network, fit_weights(
        network,
        opened.model.state_dict(),
        Path(start.name),
        head=settings.init_head,
        wnids=wnids,
        # What nobody knows is not these classes, but may have as many as a known label space, to be sliced.
        file_wnids=opened.classes.wnids if opened.classes else None if slices else (),
        partial=settings.init_partial,
        architecture=opened.name.partition(".")[0],
    )


def _is_checkpoint(path: Path) -> bool:
    """Tell whether a file is a checkpoint of a run of ours."""
    try:
        load_checkpoint(path)
    except ValueError:  # what reads files of weights says what is wrong with it
        return False
    return True
