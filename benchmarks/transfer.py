"""Does a pretrained network transfer better than a fresh one: `python -m benchmarks.transfer`.

By the commands that a user would run, a network is trained on 50 of the 70 small classes with semantic softmax; then,
for each of several seeds, it is fine-tuned on the 20 classes that it never saw, with one softmax over them, and a fresh
network, of random weights, is trained on them by the same settings. Prints the top-1 over these 20 on their validation
images, and by how much the first is above the second.
"""

from __future__ import annotations

import json
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from .tiny_hierarchy import ARCHIVE, PREPARE, in21k

PRETRAIN_EPOCHS, EPOCHS = 20, 10
HELD_BACK = (0, 3)  # of each seven classes in wnid order: 20 of 70


def shards_of(archive: Path, classes: list[str], work: Path) -> Path:
    """Prepare and shard some classes of the archive."""
    work.mkdir()
    (work / "classes.txt").write_text("\n".join(classes))
    in21k("preprocess", "raw-tar", archive, work / "prepared", *PREPARE, "--classes", work / "classes.txt")
    in21k("shard", work / "prepared", work / "shards", "--shard-samples", 500)
    return work / "shards"


def trained(command: str, shards: Path, run: Path, epochs: int, seed: int, *words: object) -> float:
    """Train with the recipe `tiny`, print a line, and return the top-1 in percent."""
    begun = time.perf_counter()
    sets = {"epochs": epochs, "seed": seed, "validate_every_epochs": epochs, "trackers": []}
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
        known = shards_of(archive, [wnid for wnid in wnids if wnid not in held_back], work / "known")
        others = shards_of(archive, held_back, work / "others")
        pretrained = work / "pretrained"
        trained("train", known, pretrained, pretrain_epochs, seeds)  # a seed that nobody has who follows
        reached: dict[str, list[float]] = {"pretrained": [], "fresh": []}
        for seed in range(seeds):
            run = work / f"pretrained-seed-{seed}"
            by_init, by_loss = ("--init", pretrained), ("--loss", "cross-entropy")
            reached["pretrained"].append(trained("finetune", others, run, epochs, seed, *by_init, *by_loss))
            reached["fresh"].append(trained("train", others, work / f"fresh-seed-{seed}", epochs, seed, *by_loss))
    print(f"\n| begun with | top-1 over {len(held_back)} new classes of the seeds, % | mean |\n|---|---|---|")
    for begun, values in reached.items():
        print(f"| {begun} | {', '.join(f'{value:.1f}' for value in values)} | {statistics.mean(values):.1f} |")
    gained = [one - other for one, other in zip(reached["pretrained"], reached["fresh"], strict=True)]
    print(f"\nabove fresh: {', '.join(f'{each:+.1f}' for each in gained)}; mean {statistics.mean(gained):+.1f} points")


if __name__ == "__main__":
    main(*(Path(word) for word in sys.argv[1:2]))
