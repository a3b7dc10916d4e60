"""`in21k verify`: is a data set what its manifest says?"""

from __future__ import annotations

from pathlib import Path

import click

from .options import PATH, emit, json_option, num_workers, workers_option
from .progress import ProgressLine
from .terminal import in_one_line


@click.command()
@click.argument("path", type=PATH)
@click.option("--deep", is_flag=True, help="Also read, checksum and decode every image.")
@click.option(
    "--release",
    type=click.Choice(["fall11", "winter21"]),
    help="Also compare classes and counts with that release of ImageNet and its 21K-P.",
)
@workers_option
@json_option
def verify(path: Path, deep: bool, release: str | None, workers: int | None, as_json: bool) -> None:
    """Check PATH, a prepared data set or a shard set, against its manifest.

    Each problem and each difference from a release is a line; with any of them the exit code is 1.
    """
    from ..preprocess.classes.release import release_differences
    from ..shards.verify import open_any
    from ..shards.verify import verify as verify_dataset

    dataset = open_any(path)
    with ProgressLine("verify") as progress:
        verdict = verify_dataset(dataset, deep=deep, workers=num_workers(workers), on_progress=progress)
    # A data set without its class table, which is a problem by now, cannot be compared with a release.
    lacks_classes = any(problem.startswith("classes.parquet") for problem in verdict.problems)
    compare_with = None if lacks_classes else release
    differences = release_differences(dataset, compare_with) if compare_with else []
    kind = dataset.format.removeprefix("in21k-")
    how = "every image read, checksummed and decoded" if deep else "archives and tables compared, images not read"
    lines = [
        *verdict.problems,
        f"{path} ({kind}): {verdict.num_samples:,} samples in {verdict.num_archives:,} archives, {how}: "
        + (f"{len(verdict.problems)} problems" if verdict.problems else "all is well"),
    ]
    result = {"path": str(path), "format": dataset.format, "deep": deep, **verdict.as_dict()}
    if compare_with:
        outcome = f"{len(differences)} differences from" if differences else "equals"
        lines += [*differences, f"{path}: {outcome} {compare_with} as published"]
        result |= {"release": compare_with, "release_differences": differences}
    emit(result, "\n".join(map(in_one_line, lines)), as_json=as_json)
    if verdict.problems or differences:
        raise SystemExit(1)
