"""What RandAugment costs a batch of dali_cpu: DALI operators in the graph, and ms of wall and CPU time.

`python -m benchmarks.randaugment SHARDS` prints a row for each augmentation and batch size.
"""

from __future__ import annotations

import statistics
import sys
import time
from itertools import islice
from typing import Any

from in21k.datapipe import create_loader

BATCH_SIZES, SIZE, WORKERS, NUM_BATCHES = (8, 64), 224, 1, 30


def num_operators(pipeline: Any) -> int:
    """Return how many operators a DALI pipeline runs for a batch."""
    return len(pipeline._ops)


def measure(shards: str, augment: str, batch_size: int) -> tuple[int, float, float]:
    """Return the operators of the graph, and the median ms of wall and CPU time of a batch."""
    loader: Any = create_loader(
        shards,
        split="train",
        backend="dali_cpu",
        batch_size=batch_size,
        image_size=SIZE,
        augment=augment,
        workers=WORKERS,
        device="cpu",
    )
    walls, cpus = list[float](), list[float]()
    for epoch in range(1000):
        loader.set_epoch(epoch)
        begun = time.perf_counter(), time.process_time()
        for _ in islice(loader, NUM_BATCHES):
            now = time.perf_counter(), time.process_time()
            walls.append(now[0] - begun[0])
            cpus.append(now[1] - begun[1])
            begun = now
        if len(walls) >= NUM_BATCHES:
            break
    operators = num_operators(loader._pipeline)
    loader.close()
    return operators, 1000 * statistics.median(walls), 1000 * statistics.median(cpus)


def main() -> None:
    """Print a table."""
    print("| augment | batch | operators | ms a batch | CPU ms a batch |\n|---|---|---|---|---|")
    for augment in ("none", "inception", "miil", "inception-ra"):
        for batch_size in BATCH_SIZES:
            operators, wall, cpu = measure(sys.argv[1], augment, batch_size)
            print(f"| {augment} | {batch_size} | {operators} | {wall:.1f} | {cpu:.1f} |", flush=True)


if __name__ == "__main__":
    main()
