"""`in21k verify`: is a data set what its manifest says?"""

from __future__ import annotations

from pathlib import Path

import click

from .options import PATH, emit, json_option, num_workers, workers_option
from .progress import ProgressLine


@click.command()
@click.argument("path", type=PATH)
@click.option("--deep", is_flag=True, help="Also read, checksum and decode every image.")
@workers_option
@json_option
def verify(path: Path, deep: bool, workers: int | None, as_json: bool) -> None:
    """Check PATH, a prepared data set or a shard set, against its manifest.

    Each thing that is wrong is named; the exit code is then 1.
    """
    from ..shards.verify import open_any
    from ..shards.verify import verify as verify_dataset

    dataset = open_any(path)
    with ProgressLine("verify") as progress:
        verdict = verify_dataset(dataset, deep=deep, workers=num_workers(workers), on_progress=progress)
    kind = dataset.format.removeprefix("in21k-")
    how = "every image read, checksummed and decoded" if deep else "archives and tables compared, images not read"
    text = "\n".join(
        [
            *verdict.problems,
            f"{path} ({kind}): {verdict.num_samples:,} samples in {verdict.num_archives:,} archives, {how}: "
            + (f"{len(verdict.problems)} problems" if verdict.problems else "all is well"),
        ]
    )
    result = {"path": str(path), "format": dataset.format, "deep": deep, **verdict.as_dict()}
    emit(result, text, as_json=as_json)
    if verdict.problems:
        raise SystemExit(1)
