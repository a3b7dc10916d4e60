"""The weights that a run begins with: another run's, a checkpoint's, a file's, or published ones by timm's name."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from ..models.export import mean_std, short_normalize
from ..models.weights import fit_weights
from ..models.zoo import create_model
from .checkpoint import load_checkpoint
from .evaluation.open_model import OpenModel, open_model
from .evaluation.saved_run import Weights
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


def create_network(settings: TrainSettings, wnids: Sequence[str], start: Start | None = None) -> nn.Module:
    """Build the network that the settings name for classes, on the CPU, with the weights of `start`, or random ones.

    start: of settings.init; the log says what of it fitted, and whether its images were normalised in another way.

    Raises ValueError where its weights hardly fit (see `load_weights`), unless settings.init_partial.
    """
    if start is None or start.opened is None:
        head = settings.init_head if start else "drop"
        sliced = wnids if head == "slice" else None
        return create_model(
            settings.model,
            len(wnids),
            start and start.name,
            head=head,
            wnids=sliced,
            partial=settings.init_partial,
            **settings.model_args,
        )
    network = create_model(settings.model, len(wnids), **settings.model_args)
    opened, slices = start.opened, settings.init_head == "slice"
    report = fit_weights(
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
    log.log(logging.INFO if report.complete else logging.WARNING, "%s", report)
    if (opened.mean, opened.std) != mean_std(settings.normalize):
        theirs = short_normalize((opened.mean, opened.std))
        log.warning(
            "%s: these weights were trained with normalize %s, and this run trains with %s; --set 'normalize=%s' takes "
            "theirs",
            *(start.name, theirs, settings.normalize, theirs),
        )
    return network


def _is_checkpoint(path: Path) -> bool:
    """Tell whether a file is a checkpoint of a run of ours."""
    try:
        load_checkpoint(path)
    except ValueError:  # what reads files of weights says what is wrong with it
        return False
    return True
