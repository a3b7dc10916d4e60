"""Sharding and verifying at 21K-P's number of classes: `python -m benchmarks.pack [MILLIONS]`.

Makes up a prepared data set of so many million images of 16 x 16 pixels (default 1) in 22,442 class tars, then runs
`in21k shard` and `in21k verify`; prints seconds, and peak memory of all processes, pages that they share counted once.
The images cost next to nothing, so this is the price of everything else. Takes 4 GB of disk a million.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from .scale import PROGRAM, memory_of
from .synthetic import write_prepared


def measure(*words: str) -> None:
    """Run a command of ours and print what it took."""
    begun, peak = time.perf_counter(), 0
    process = subprocess.Popen([*PROGRAM, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, memory_of(process.pid))
        time.sleep(0.2)
    seconds = time.perf_counter() - begun
    print(f"{words[0]}: exit code {process.returncode}, {seconds:.0f} s; peak memory {peak / 1e6:.0f} MB")


def main(millions: float = 1.0) -> None:
    """Make the data set, then measure."""
    with tempfile.TemporaryDirectory() as folder:
        prepared, shards = Path(folder) / "prepared", Path(folder) / "shards"
        write_prepared(prepared, round(millions * 1e6), with_images=True)
        measure("shard", str(prepared), str(shards))
        measure("verify", str(shards))
        measure("verify", str(prepared))


if __name__ == "__main__":
    main(*map(float, sys.argv[1:2]))
