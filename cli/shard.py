"""`in21k shard`: a prepared data set to shards."""

from __future__ import annotations

from pathlib import Path

import click

from .options import PATH, emit, json_option, num_workers, overwrite_option, workers_option
from .progress import ProgressLine
from .terminal import in_one_line


@click.command()
@click.argument("prepared", type=PATH)
@click.argument("out", type=PATH)
@click.option("--shard-samples", type=int, help="Maximum samples in a shard.  [default: 10000]")
@click.option("--shard-bytes", type=int, help="Instead: bytes of images in a shard, about.")
@click.option("--seed", default=0, show_default=True, help="Seed of the global shuffle.")
@workers_option
@overwrite_option
@json_option
def shard(
    prepared: Path,
    out: Path,
    shard_samples: int | None,
    shard_bytes: int | None,
    seed: int,
    workers: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Shuffle PREPARED globally into WebDataset shards in the folder OUT, with indexes and manifest.

    A worker holds the images of one shard in memory. Run the same command again to resume.
    """
    from ..shards.dataset import PreparedSet
    from ..shards.pack import ShardSettings, pack

    if shard_samples is None and shard_bytes is None:
        shard_samples = 10_000
    settings = ShardSettings(shard_samples=shard_samples, shard_bytes=shard_bytes, seed=seed)
    with ProgressLine("shard") as progress:
        shards = pack(
            PreparedSet(prepared),
            out,
            settings,
            workers=num_workers(workers),
            overwrite=overwrite,
            on_progress=progress,
        )
    lines = [
        f"{out}/{split}: {counts['num_samples']:,} samples in {len(shards.shard_names(split))} shard(s), "
        f"{counts['num_bytes'] / 1e6:,.1f} MB of images"
        for split, counts in shards.info["counts"]["splits"].items()
    ]
    emit({"path": str(out), **shards.info}, "\n".join(map(in_one_line, lines)), as_json=as_json)
