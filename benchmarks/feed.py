"""What the feed of the loaders costs in Python: `python -m benchmarks.feed SHARDS`.

CPU time of one thread for an image: reading, checksums, headers and inputs; and that of `os.pread` and SHA-256 alone,
which release the GIL. The rest holds the GIL, so it bounds what several threads reach together.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

from in21k.datapipe.backends.dali_loader import DaliCpuLoader
from in21k.datapipe.loader import LoaderSettings
from in21k.datapipe.plan import EpochPlan, PlannedBatch
from in21k.shards import open_dataset

BATCH, NUM_BATCHES, ROUNDS = 256, 8, 9


def cpu_us(work: Callable[[PlannedBatch], Any], batches: Sequence[PlannedBatch]) -> float:
    """Return the least CPU time of this thread for an image, over the rounds, in microseconds."""
    times = list[float]()
    for _ in range(ROUNDS):
        begun = time.thread_time()
        for batch in batches:
            work(batch)
        times.append((time.thread_time() - begun) / sum(map(len, batches)))
    return 1e6 * statistics.median(sorted(times)[:3])


def main() -> None:
    """Print the times."""
    split = open_dataset(sys.argv[1]).split("train")
    plan = EpochPlan(shard_sizes=split.shard_sizes, batch_size=BATCH)
    batches = list(islice(plan.batches(0), NUM_BATCHES))
    files = [os.open(split.folder / name, os.O_RDONLY) for name in split.shard_names]
    places = {
        batch.first: [
            (files[split.shard_of(p)], int(split.num_bytes[p]), int(split.offsets[p])) for p in batch.positions.tolist()
        ]
        for batch in batches
    }

    def without_gil(batch: PlannedBatch) -> None:
        for place in places[batch.first]:
            hashlib.sha256(os.pread(*place)).digest()

    for augment in ("none", "inception", "inception-ra"):
        loader: Any = DaliCpuLoader(split, LoaderSettings(batch_size=BATCH, image_size=224, augment=augment, workers=1))
        whole, free = cpu_us(loader._read, batches), cpu_us(without_gil, batches)
        print(f"{augment}: {whole:.1f} us an image, {free:.1f} of them reading and hashing, {whole - free:.1f} Python")
        loader.close()


if __name__ == "__main__":
    main()
