"""What classes without images are worth: `python -m benchmarks.inner_classes [ARCHIVE] [SEEDS] [EPOCHS]`.

Of the 70 classes of `tiny-hierarchy.tar`, the images of the 20 that lie above others are left out: only leaves have
images, as in ImageNet-1K and in most people's folders. Semantic softmax, whose inner classes the images below them
train, is compared with one softmax over the leaves. There an inner class is scored by the classes below it, so that
both answer on every level. The numbers are those of `in21k validate`.
"""

from __future__ import annotations

import json
import statistics
import sys
import tarfile
import tempfile
import time
from collections import defaultdict
from pathlib import Path, PurePosixPath

from in21k.preprocess import build_tree

from .tiny_hierarchy import ARCHIVE, PREPARE, in21k

METRICS = {"semantic_top1": "semantic top-1", "top1": "top-1"}


def leaves_of(archive: Path) -> list[str]:
    """Return the classes of an archive of class tars that lie above no other."""
    with tarfile.open(archive) as tar:
        tree = build_tree(sorted(PurePosixPath(name).stem for name in tar.getnames() if name.endswith(".tar")))
    return [wnid for wnid, children in zip(tree.wnids, tree.children, strict=True) if not children]


def main(archive: Path = ARCHIVE, seeds: int = 3, epochs: int | None = None) -> None:
    """Prepare, shard, train and validate; print a line for each loss and seed, and the medians."""
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        (work / "leaves.txt").write_text("\n".join(leaves_of(archive)))
        chosen = ("--classes", work / "leaves.txt", "--inner-classes")
        in21k("preprocess", "raw-tar", archive, work / "prepared", *PREPARE, *chosen)
        in21k("shard", work / "prepared", work / "shards", "--shard-samples", 500)
        shape = json.loads(in21k("tree", "show", work / "shards", "--json"))
        print(f"{shape['num_classes']} classes, {shape['num_inner_classes']} of them inner", flush=True)
        length = () if epochs is None else ("--set", f"epochs={epochs}")
        for loss in ("semantic", "cross-entropy"):
            values: dict[str, list[float]] = defaultdict(list)
            for seed in range(seeds):
                run, begun = work / f"{loss}-{seed}", time.perf_counter()
                in21k(
                    *("train", "--data", work / "shards", "--out", run, "--recipe", "tiny", "--loss", loss),
                    *("--set", f"seed={seed}", *length),
                )
                seconds = time.perf_counter() - begun
                result = json.loads(in21k("validate", run, "--data", work / "shards", "--json"))
                for metric in METRICS:
                    values[metric].append(result[metric])
                numbers = ", ".join(f"{text} {result[metric]:.1f} %" for metric, text in METRICS.items())
                print(f"{loss}, seed {seed}: {numbers}, {seconds:.0f} s", flush=True)
            medians = (f"{text} {statistics.median(values[metric]):.1f} %" for metric, text in METRICS.items())
            print(f"{loss}, median: {', '.join(medians)}", flush=True)


if __name__ == "__main__":
    words = sys.argv[1:]
    main(Path(words[0]) if words else ARCHIVE, *map(int, words[1:]))
