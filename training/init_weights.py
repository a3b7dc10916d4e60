"""Initial weights: those of another run, a checkpoint or a file, or published ones by their name in timm."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..models.published import architectures_of, read_published
from ..models.trial import try_images
from ..models.weights import WeightsReport, fit_weights, load_weights
from ..models.zoo import create_model
from ..shards.normalize import mean_std, short_normalize
from .inference.open_model import OpenModel, holds_weights, open_model
from .settings import TrainSettings

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class InitWeights:
    """Weights that a run starts from.

    name:     the setting `init`.
    opened:   the network that they belong to; None: a file of weights alone.
    settings: settings of their training that a run should share: model, model_args, normalize.
    """

    name: str
    opened: OpenModel | None = None
    settings: dict[str, Any] = field(default_factory=dict[str, Any])

    def architecture_for(self, model: str) -> str:
        """Return the architecture that a model's name means: a word of the published zoo means these weights' own."""
        own = self.settings.get("model")
        return own if own in architectures_of(model) else model


def load_init(name: str, model: str | None = None) -> InitWeights:
    """Open what `init` names.

    That is a run's folder or a checkpoint of one (with EMA on, the moving average), a run's file of weights, a folder
    that timm opens, a timm model with pretrained weights, or a file of weights alone.

    model: of a file, its architecture as timm or the zoo names it; None: the one of the zoo's that alone fits, if any.

    Raises ValueError for anything else, and where the weights cannot be read or downloaded.
    """
    path = Path(name)
    if holds_weights(path):
        return InitWeights(name=name, settings=_settings_of(path, model))
    opened = open_model(name, "ema-or-last")
    if opened.run is not None:
        run = opened.run.settings
        shared = {"model": run.model, "model_args": run.model_args, "normalize": run.normalize}
        return InitWeights(name=name, opened=opened, settings=shared)
    normalize = short_normalize((opened.mean, opened.std))
    return InitWeights(
        name=name, opened=opened, settings={"model": opened.name.partition(".")[0], "normalize": normalize}
    )


def check_init(settings: TrainSettings, init: InitWeights | None = None, world_size: int = 1) -> None:
    """Raise ValueError where no training with these settings can begin, whatever the classes are.

    Call it before long work such as packing images; see `create_network` and `check_network`.
    """
    with torch.random.fork_rng(devices=[]):
        network, _ = _begin(replace(settings, init_head="drop"), ("one", "another"), init)
    check_network(network, settings, 2, world_size)


def check_network(network: nn.Module, settings: TrainSettings, num_outputs: int, world_size: int = 1) -> None:
    """Run a network on two images of settings.image_size, before anything is written.

    Raises ValueError where it does not take them, where its output is not logits (2, num_outputs), or where a batch
    norm would see a single value of a channel in the batches of training.
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


def create_network(settings: TrainSettings, wnids: Sequence[str], init: InitWeights | None = None) -> nn.Module:
    """Build the network of the settings for classes, on the CPU, with the weights of `init`, or random ones.

    init: of settings.init; the log reports which of its weights fit, and whether it was trained with another
          normalisation.

    Raises ValueError where its weights hardly fit (see `load_weights`), unless settings.init_partial.
    """
    network, report = _begin(settings, wnids, init)
    if report:
        log.log(logging.INFO if report.complete else logging.WARNING, "%s", report)
    opened = init and init.opened
    if init and opened and (opened.mean, opened.std) != mean_std(settings.normalize):
        own = short_normalize((opened.mean, opened.std))
        log.warning(
            "%s: these weights were trained with normalize %s, and this run trains with %s; give --set 'normalize=%s' "
            "to train as they were",
            *(init.name, own, settings.normalize, own),
        )
    return network


def _begin(
    settings: TrainSettings, wnids: Sequence[str], init: InitWeights | None
) -> tuple[nn.Module, WeightsReport | None]:
    """Return the network, and a report on the weights of `init`."""
    network = create_model(settings.model, len(wnids), **settings.model_args)
    if init is None:
        return network, None
    opened, slices = init.opened, settings.init_head == "slice"
    if opened is None:
        return network, load_weights(
            network,
            init.name,
            head=settings.init_head,
            wnids=wnids if slices else None,
            partial=settings.init_partial,
        )
    return network, fit_weights(
        network,
        opened.model.state_dict(),
        Path(init.name),
        head=settings.init_head,
        wnids=wnids,
        # What nobody knows is not these classes, but may have as many as a known label space, to be sliced.
        file_wnids=opened.classes.wnids if opened.classes else None if slices else (),
        partial=settings.init_partial,
        architecture=opened.name.partition(".")[0],
    )


def _settings_of(path: Path, model: str | None) -> dict[str, Any]:
    """Return the settings that go with a file of weights; empty where its network is unknown."""
    try:
        file = read_published(path, model)
    except ValueError:  # the settings name its network, and what fills that says what is wrong with the file
        return {}
    return {"model": file.name.partition(".")[0], "normalize": short_normalize((file.mean, file.std))}
