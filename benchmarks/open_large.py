"""Opening 21K-P and planning an epoch: `python -m benchmarks.open_large`.

Makes up the tables of a shard set of 12.4 million samples in 1,237 shards (which takes a minute or two; there are no
shards behind them, as opening reads none). Then fresh processes open both splits and plan the first epoch, to its last
batch, of one of 8 ranks. Seconds and peak memory are those beyond what the imports cost; the best of five processes
counts, as other work on the machine disturbs. Fails past 2 s or 500 MB.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from in21k.datapipe.plan import EpochPlan
from in21k.shards import ShardSet, open_dataset
from in21k.shards.files.atomic import sealed, write_json
from in21k.shards.files.record import record_files
from in21k.shards.pack import ShardSettings, plan_shards, write_tables

from .synthetic import write_prepared

MAX_SECONDS, MAX_MB = 2.0, 500.0
ROUNDS = 5
NUM_RANKS, RANK, BATCH_SIZE = 8, 3, 256


def make_tables(folder: Path) -> Path:
    """Write the tables of a shard set; returns its path."""
    prepared, out = write_prepared(folder / "prepared", with_images=False), folder / "shards"
    out.mkdir()
    info = write_tables(prepared, out, plan_shards(prepared, ShardSettings()))
    names = ShardSet.recorded(info)
    for name in names:
        if name.endswith(".idx"):  # there are none, but dataset.json is as long as if there were
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).touch()
    write_json(out / "dataset.json", sealed({**info, "files": record_files(out, names)}))
    return out


def peak_mb() -> float:
    """Return the most memory that this process has had."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) * 1024 / 1e6


def open_and_plan(path: Path) -> None:
    """Print the seconds and megabytes of opening and planning in this process."""
    begun, before = time.perf_counter(), peak_mb()
    shards = open_dataset(path)
    train, val = shards.split("train"), shards.split("val")
    plan = EpochPlan(shard_sizes=train.shard_sizes, batch_size=BATCH_SIZE, world_size=NUM_RANKS)
    num_batches = sum(1 for _ in plan.batches(RANK))
    seconds = time.perf_counter() - begun
    assert num_batches == len(train) // (BATCH_SIZE * NUM_RANKS)
    assert len(val) == shards.num_samples["val"]
    print(seconds, peak_mb() - before)


def main() -> int:
    """Make the tables, measure, print; return the exit code."""
    with tempfile.TemporaryDirectory() as folder:
        path = make_tables(Path(folder))
        measurements: list[tuple[float, float]] = []
        for _ in range(ROUNDS):
            command = [sys.executable, "-m", "benchmarks.open_large", str(path)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            seconds, megabytes = map(float, done.stdout.split())
            measurements.append((seconds, megabytes))
            print(f"opened and planned in {seconds:.2f} s with {megabytes:.0f} MB")
    seconds, megabytes = min(measurements)
    print(f"{seconds:.2f} s, {megabytes:.0f} MB")
    return int(seconds > MAX_SECONDS or megabytes > MAX_MB)


if __name__ == "__main__":
    sys.exit(open_and_plan(Path(sys.argv[1])) if sys.argv[1:] else main())
