"""Which weight joins semantic distillation to the loss of the labels: `python -m benchmarks.distill`.

By the commands that a user would run, a teacher is trained on 70 small classes, then short-trained students of the same
architecture: without a teacher, and with it at several weights, each with several seeds. Prints their semantic top-1 on
the validation images, and by how much the mean of the seeds is above that without a teacher.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

from .tiny_hierarchy import ARCHIVE, PREPARE, in21k

WEIGHTS = (0, 10, 30, 100)  # 0: without a teacher
TEACHER_EPOCHS, STUDENT_EPOCHS = 8, 2


def train(shards: Path, run: Path, epochs: int, seed: int, *words: object) -> float:
    """Train with the recipe `tiny`, print a line, and return the semantic top-1 in percent."""
    begun = time.perf_counter()
    # Validated once, at the end: what happens on the way changes nothing, and costs time.
    sets = {"epochs": epochs, "seed": seed, "validate_every_epochs": epochs, "trackers": []}
    chosen = [word for name, value in sets.items() for word in ("--set", f"{name}={value}")]
    result = json.loads(in21k("train", "--data", shards, "--out", run, "--recipe", "tiny", "--json", *chosen, *words))
    seconds = time.perf_counter() - begun
    print(
        f"{run.name}: semantic top-1 {result['semantic_top1']:.2f} % (always the commonest "
        f"{result['semantic_top1_commonest']:.1f} %), top-1 {result['top1']:.1f} %, {seconds:.0f} s",
        flush=True,
    )
    return result["semantic_top1"]


def main(archive: Path = ARCHIVE, seeds: int = 3) -> None:
    """Train the teacher and the students; print a line for each, and a table of weights."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        shards, teacher = work / "shards", work / "teacher"
        in21k("preprocess", "raw-tar", archive, work / "prepared", *PREPARE)
        in21k("shard", work / "prepared", shards, "--shard-samples", 500)
        # A seed that no student has, so that none begins where the teacher began.
        train(shards, teacher, TEACHER_EPOCHS, seeds)
        reached: dict[int, list[float]] = {weight: [] for weight in WEIGHTS}
        for seed in range(seeds):
            for weight, values in reached.items():
                taught = ("--teacher", teacher, "--set", f"kd_weight={weight}") if weight else ()
                values.append(train(shards, work / f"kd_weight-{weight}-seed-{seed}", STUDENT_EPOCHS, seed, *taught))
        print("\n| kd_weight | semantic top-1 of the seeds, % | mean | above no teacher |\n|---|---|---|---|")
        without = statistics.mean(reached[0])
        for weight, values in reached.items():
            mean = statistics.mean(values)
            listed = ", ".join(f"{value:.1f}" for value in values)
            print(f"| {weight or 'no teacher'} | {listed} | {mean:.2f} | {mean - without:+.2f} |")


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:2]))
