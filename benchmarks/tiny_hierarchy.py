"""Semantic training from scratch on 70 small classes, 22 of them above others: `python -m benchmarks.tiny_hierarchy`.

Runs the commands that a user would, for each of several seeds, and prints what `in21k validate` measured and how long
`in21k train` took.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ARCHIVE = Path(__file__).parents[1] / ".." / "shared" / "data" / "tiny-hierarchy.tar"
PREPARE = ("--rare-threshold", "60", "--val-per-class", "10", "--size", "32")


def in21k(*words: object) -> str:
    """Run a command and return its stdout; its failure ends the benchmark."""
    program = [sys.executable, "-c", "from in21k.cli.main import main; main()", *map(str, words)]
    return subprocess.run(program, check=True, stdout=subprocess.PIPE, text=True).stdout


def main(archive: Path = ARCHIVE, seeds: int = 3) -> None:
    """Prepare, shard, train and validate; print a line for each loss and seed, and the medians."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        in21k("preprocess", "raw-tar", archive, work / "prepared", *PREPARE)
        in21k("shard", work / "prepared", work / "shards", "--shard-samples", 500)
        for loss in ("semantic", "cross-entropy"):
            reached: list[float] = []
            for seed in range(seeds):
                run = work / f"{loss}-{seed}"
                begun = time.perf_counter()
                chosen = ("--recipe", "tiny", "--loss", loss, "--set", f"seed={seed}")
                in21k("train", "--data", work / "shards", "--out", run, *chosen)
                seconds = time.perf_counter() - begun
                result = json.loads(in21k("validate", run, "--data", work / "shards", "--json"))
                reached.append(result["semantic_top1"])
                print(
                    f"{loss}, seed {seed}: semantic top-1 {result['semantic_top1']:.1f} % (always the commonest "
                    f"{result['semantic_top1_commonest']:.1f} %), top-1 {result['top1']:.1f} %, {seconds:.0f} s",
                    flush=True,
                )
            print(f"{loss}: median semantic top-1 {statistics.median(reached):.1f} %", flush=True)


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:2]))
