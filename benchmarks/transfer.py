"""Does a pretrained network transfer better than a fresh one: `python -m benchmarks.transfer`.

By the commands that a user would run, a network is trained on 50 of the 70 small classes with semantic softmax; then,
for each of several seeds and learning rates, it is fine-tuned on 40 images of each of the 20 classes that it never saw,
with one softmax over them, and a fresh network, of random weights, is trained on them by the same settings. Prints the
top-1 over these 20 on 30 other images of each.
"""

from __future__ import annotations

import json
import statistics
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from itertools import product
from pathlib import Path

from .tiny_hierarchy import ARCHIVE, PREPARE, in21k

PRETRAIN_EPOCHS, EPOCHS = 30, 10
RATES = (1e-3, 3e-4)  # that of the recipe, and a lower one as is usual for fine-tuning
HELD_BACK = (0, 3)  # of each seven classes in wnid order: 20 of 70


def shards_of(archive: Path, classes: list[str], work: Path, val_per_class: int) -> Path:
    """Prepare and shard some classes of the archive."""
    work.mkdir()
    (work / "classes.txt").write_text("\n".join(classes))
    words = (*PREPARE, "--classes", work / "classes.txt", "--val-per-class", val_per_class)
    in21k("preprocess", "raw-tar", archive, work / "prepared", *words)
    in21k("shard", work / "prepared", work / "shards", "--shard-samples", 500)
    return work / "shards"


def trained(command: str, shards: Path, run: Path, epochs: int, *words: object, **also: object) -> float:
    """Train with the recipe `tiny` and other settings, print a line, and return the top-1 in percent."""
    begun = time.perf_counter()
    sets = {"epochs": epochs, "validate_every_epochs": epochs, "trackers": [], **also}
    chosen = [word for name, value in sets.items() for word in ("--set", f"{name}={value}")]
    result = json.loads(in21k(command, "--data", shards, "--out", run, "--recipe", "tiny", "--json", *chosen, *words))
    print(f"{run.name}: top-1 {result['top1']:.1f} %, {time.perf_counter() - begun:.0f} s", flush=True)
    return result["top1"]


def main(archive: Path = ARCHIVE, seeds: int = 3, pretrain_epochs: int = PRETRAIN_EPOCHS, epochs: int = EPOCHS) -> None:
    """Pretrain once, then transfer and train afresh in turns; print a line for each, and the means."""
    with tarfile.open(archive) as tar:
        wnids = sorted(Path(name).stem for name in tar.getnames())
    held_back = [wnid for number, wnid in enumerate(wnids) if number % 7 in HELD_BACK]
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        known = shards_of(archive, [wnid for wnid in wnids if wnid not in held_back], work / "known", 10)
        others = shards_of(archive, held_back, work / "others", 30)
        pretrained = work / "pretrained"
        # With a seed that no later run uses.
        trained("train", known, pretrained, pretrain_epochs, augment="inception", seed=seeds)
        reached: dict[tuple[str, float], list[float]] = defaultdict(list)
        for seed, rate in product(range(seeds), RATES):
            for begun, command, words in (("pretrained", "finetune", ("--init", pretrained)), ("fresh", "train", ())):
                run, also = work / f"{begun}-{rate:g}-{seed}", {"loss": "cross-entropy", "lr": rate, "seed": seed}
                reached[begun, rate].append(trained(command, others, run, epochs, *words, **also))
    print(f"\n| begun with | learning rate | top-1 over {len(held_back)} new classes of the seeds, % | mean |")
    print("|---|---|---|---|")
    for (begun, rate), values in sorted(reached.items()):
        print(
            f"| {begun} | {rate:g} | {', '.join(f'{value:.1f}' for value in values)} | {statistics.mean(values):.1f} |"
        )
    best = [max(statistics.mean(reached[begun, rate]) for rate in RATES) for begun in ("pretrained", "fresh")]
    print(f"\neach at its better rate: {best[0] - best[1]:+.1f} points above fresh")


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:2]))
