"""What the feed of the loaders costs in Python: `python -m benchmarks.feed SHARDS`.

CPU time of one thread for an image. Of dali_cpu: reading, checksums, headers, inputs; and `os.pread` and SHA-256 alone,
which release the GIL. The rest holds the GIL, so it bounds what several threads reach together. Of opencv:
everything that a worker thread does.
"""

from __future__ import annotations

import hashlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from itertools import islice
from typing import Any

import torch

from in21k.datapipe.backends.dali_loader import DaliCpuLoader
from in21k.datapipe.backends.opencv_loader import OpenCVLoader
from in21k.datapipe.plan import EpochPlan, PlannedBatch
from in21k.datapipe.settings import LoaderConfig
from in21k.shards import open_dataset
from in21k.shards.dataset import ShardSplit

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


class Inline:
    """An executor that runs each task at once, in the thread whose CPU time is measured."""

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Return the finished task."""
        future = Future[Any]()
        future.set_result(work(*arguments))
        return future


def measure_opencv(split: ShardSplit, batches: Sequence[PlannedBatch]) -> None:
    """Print what an image costs the worker threads of opencv, which decode, transform and normalise it."""
    for dtype, normalize in ((torch.uint8, None), (torch.float32, "unit"), (torch.float16, "imagenet")):
        settings = LoaderConfig(
            batch_size=BATCH, image_size=224, augment="inception", workers=1, dtype=dtype, normalize=normalize
        )
        loader: Any = OpenCVLoader(split, settings)
        whole = cpu_us(lambda batch, loader=loader: loader._finish(loader._start(Inline(), batch)), batches)
        print(f"opencv, {dtype}: {whole:.0f} us an image")
        loader.close()


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

    measure_opencv(split, batches)
    for augment in ("none", "inception", "inception-ra"):
        loader: Any = DaliCpuLoader(split, LoaderConfig(batch_size=BATCH, image_size=224, augment=augment, workers=1))
        whole, free = cpu_us(loader._read, batches), cpu_us(without_gil, batches)
        print(f"{augment}: {whole:.1f} us an image, {free:.1f} of them reading and hashing, {whole - free:.1f} Python")
        loader.close()


if __name__ == "__main__":
    main()
