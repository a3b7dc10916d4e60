"""What the losses cost beside plain cross-entropy: `python -m benchmarks.semantic_loss [--batch-size N] [--rounds N]`.

Forward and backward of a batch over the 11,221 classes of 21K-P (labels drawn evenly over the classes), with float32
logits on the CPU, with one thread and with all, and with float32 and bfloat16 logits on a GPU where there is one. The
ways take turns, each round beginning with another; each is called twice a round, and the second call counts. Per way:
the median and the best time; the median over the rounds of its time by that of cross-entropy in the same round, and the
ratio of the best times. The best of a quiet machine is what the work costs; the medians hold what disturbs.

`slices` is the loss as one would write it first: a cross-entropy for each of the eleven levels, of the samples that
have a target there.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from in21k.preprocess import build_tree
from in21k.preprocess.classes.label_spaces import read_classes
from in21k.shards.tree import SemanticTree
from in21k.training import SemanticKDLoss, SemanticSoftmaxLoss

SMOOTHING = 0.2
CALLS_PER_TIMING = 20  # on a GPU, where a single call is too short for its clock

Way = Callable[[Tensor], Tensor]


def hardware() -> str:
    """Return the processor's and the GPU's name."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    return f"{processor or platform.processor()}, {torch.get_num_threads()} cores{gpu}, torch {torch.__version__}"


def slices(tree: SemanticTree, labels: Tensor) -> Way:
    """Return the loss as a loop over the levels: pick the rows that have a target, take their slice."""
    levels = []
    for level, (classes, weight) in enumerate(zip(tree.classes_by_level, tree.level_weights, strict=True)):
        paths = [tree.paths[label] for label in labels.tolist()]
        rows = [row for row, path in enumerate(paths) if len(path) > level]
        if weight is not None and rows:
            place = {index: i for i, index in enumerate(classes)}
            targets = [place[paths[row][-1 - level]] for row in rows]
            indices = (torch.tensor(values, device=labels.device) for values in (rows, classes, targets))
            levels.append((weight, *indices))

    def loss(logits: Tensor) -> Tensor:
        total = logits.new_zeros(())
        for weight, rows, classes, targets in levels:
            level_logits = logits[:, classes][rows]
            share = weight * len(rows) / len(labels)
            total = total + share * F.cross_entropy(level_logits, targets, label_smoothing=SMOOTHING)
        return total

    return loss


def ways(tree: SemanticTree, labels: Tensor, teacher: Tensor) -> dict[str, Way]:
    """Return what is measured, of logits; the ratios are to the first."""
    semantic = SemanticSoftmaxLoss(tree, SMOOTHING).to(labels.device)
    distilled = SemanticKDLoss(tree).to(labels.device)
    return {
        "cross-entropy, torch's": lambda logits: F.cross_entropy(logits, labels, label_smoothing=SMOOTHING),
        "semantic, slices": slices(tree, labels),
        "semantic": lambda logits: semantic(logits, labels),
        "semantic KD": lambda logits: distilled(logits, teacher),
        "semantic + KD": lambda logits: semantic(logits, labels) + 10 * distilled(logits, teacher),
    }


def milliseconds(way: Way, logits: Tensor) -> float:
    """Return the time of a forward and a backward pass."""

    def step() -> None:
        logits.grad = None
        way(logits).backward()

    step()
    if not logits.is_cuda:
        begun = time.perf_counter()
        step()
        return 1000 * (time.perf_counter() - begun)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    for _ in range(CALLS_PER_TIMING):
        step()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / CALLS_PER_TIMING


class Timing(NamedTuple):
    """A way's times, and their ratios to those of the first way."""

    way: str
    median_ms: float
    ratio: float
    best_ms: float
    best_ratio: float


def compare(ways: dict[str, Way], logits: Tensor, rounds: int) -> list[Timing]:
    """Let the ways take turns for some rounds; return each way's times."""
    names = list(ways)
    times: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for place in range(len(names)):
            name = names[(turn + place) % len(names)]
            times[name].append(milliseconds(ways[name], logits))
    first = times[names[0]]
    return [
        Timing(
            name,
            statistics.median(own),
            statistics.median(mine / theirs for mine, theirs in zip(own, first, strict=True)),
            min(own),
            min(own) / min(first),
        )
        for name, own in times.items()
    ]


def show(timings: list[Timing]) -> None:
    """Print a line for each way."""
    for way, median_ms, ratio, best_ms, best_ratio in timings:
        print(
            f"  {way:24} median {median_ms:8.3f} ms  ratio {ratio:5.2f}"
            f"    best {best_ms:8.3f} ms  ratio {best_ratio:5.2f}"
        )


def make_batch(tree: SemanticTree, batch_size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits and the teacher's, float32 (B, C), and labels (B,), on the CPU."""
    generator = torch.Generator().manual_seed(0)
    logits, teacher = (torch.randn((batch_size, len(tree)), generator=generator) for _ in range(2))
    return logits, teacher, torch.randint(len(tree), (batch_size,), generator=generator)


def main() -> None:
    """Measure on the CPU, and on the GPU where there is one."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=30)
    options = parser.parse_args()
    print(hardware())
    tree = build_tree(read_classes("fall11p"))
    logits, teacher, labels = make_batch(tree, options.batch_size)
    shape = logits.shape
    all_threads = torch.get_num_threads()
    for num_threads in sorted({1, all_threads}):
        torch.set_num_threads(num_threads)
        print(f"CPU, {num_threads} thread{'s' * (num_threads > 1)}, {shape[0]} x {shape[1]:,} float32")
        show(compare(ways(tree, labels, teacher), logits.clone().requires_grad_(), options.rounds))
    if torch.cuda.is_available():
        for dtype in (torch.float32, torch.bfloat16):
            print(f"GPU, {shape[0]} x {shape[1]:,} {dtype}")
            on_gpu = ways(tree, labels.cuda(), teacher.to("cuda", dtype))
            show(compare(on_gpu, logits.to("cuda", dtype).requires_grad_(), options.rounds))


if __name__ == "__main__":
    main()
