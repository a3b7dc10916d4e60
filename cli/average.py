"""`in21k average`: one network of several checkpoints' mean weights."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from .export import render_export
from .options import PATH, emit, json_option, overwrite_option, weights_option

if TYPE_CHECKING:
    from torch import Tensor

    from ..training.runs.saved_run import SavedRun

log = logging.getLogger(__name__)

_ALIKE = ("model", "model_args", "image_size", "normalize", "crop_pct")


@click.command()
@click.argument("checkpoints", metavar="RUN_OR_CHECKPOINT... OUT", type=PATH, nargs=-1, required=True)
@weights_option
@overwrite_option
@json_option
def average(
    checkpoints: tuple[Path, ...], weights: Literal["last", "best", "ema"], overwrite: bool, as_json: bool
) -> None:
    """Average the weights of several trained networks into the folder OUT, in the form of `in21k export`.

    RUN_OR_CHECKPOINT are run folders, checkpoint files (`--set keep_last=5` keeps several of a run) or exports, all of
    one architecture and the same classes. Batch norms get the mean of the statistics, which is an approximation.
    """
    from ..models.average import average_weights
    from ..training.runs.export import write_export

    *sources, out = checkpoints
    if len(sources) < 2:
        raise ValueError(f"got {len(sources)} network(s) to average and {out} to write to; wanted two networks or more")
    opened: list[SavedRun] = []

    def states() -> Iterator[dict[str, Tensor]]:
        from ..training import load_run

        for path in sources:
            saved = load_run(path, weights)
            if opened:
                _check_alike(sources[0], opened[0], path, saved)
            opened[:] = [opened[0] if opened else saved, saved]  # the weights between first and last go
            yield saved.model.state_dict()

    mean = average_weights(states())
    saved = opened[-1]
    saved.model.load_state_dict(mean)
    num_norms = sum(name.endswith("running_mean") for name in mean)
    notes = [f"The weights are the mean of those of {len(sources)} checkpoints; nothing was measured of the mean."]
    if num_norms:
        notes += [
            f"The statistics of its {num_norms} batch norms are means too: recomputing them over training images "
            "(torch.optim.swa_utils.update_bn) is exact."
        ]
        log.info("%s: %s", out, notes[-1])
    content = write_export(
        saved,
        out,
        weights="average",
        described=f"The weights are the mean of those of {len(sources)} checkpoints.",
        metrics={"num_averaged": len(sources)},
        notes=notes,
        overwrite=overwrite,
    )
    result: dict[str, Any] = {"path": str(out), "num_averaged": len(sources), **content}
    emit(result, render_export, as_json=as_json)


def _check_alike(first: Path, one: SavedRun, path: Path, other: SavedRun) -> None:
    from ..shards.files.atomic import describe_differences

    facts = [{name: saved.config[name] for name in _ALIKE} for saved in (one, other)]
    differences = describe_differences(*facts)
    if one.tree != other.tree:
        differences += [f"classes ({len(one.tree):,} and {len(other.tree):,})"]
    if differences:
        raise ValueError(
            f"{first} and {path} are not of one kind ({'; '.join(differences)}); wanted one architecture and the same "
            "classes and images"
        )
