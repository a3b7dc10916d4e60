"""From a prepared data set to a shard set: shuffled tars with indexes, manifest and card."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .card import render_card
from .dataset import SPLITS, VERSION, PreparedSet, ShardSet, read_manifest
from .files import OutputFolder, write_json, write_text
from .index import index_path
from .manifest import SHARDED, TableWriter
from .parallel import OnProgress, Progress, ignore_progress, run_tasks
from .reader import FileCache
from .sample import Sample, checksum
from .shuffle import permutation
from .writer import BLOCK_BYTES, ShardWriter


@dataclass(frozen=True, kw_only=True)
class ShardSettings:
    """What shapes the bytes of a shard set.

    shard_samples:  the most samples a shard holds; shards differ by one sample at most.
    shard_bytes:    instead of that, about how many bytes of images a shard holds.
    seed:           of the global shuffle.
    """

    shard_samples: int | None = 10_000
    shard_bytes: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.shard_samples is None) == (self.shard_bytes is None):
            raise ValueError("give either the samples or the bytes of a shard, not both")
        for name in ("shard_samples", "shard_bytes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; wanted 1 or more")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; wanted 0 or more")

    def num_shards(self, num_samples: int, num_bytes: int) -> int:
        """Return how many shards a split of that many samples and image bytes is cut into."""
        if self.shard_samples is not None:
            wanted = -(-num_samples // self.shard_samples)
        else:
            assert self.shard_bytes is not None
            wanted = -(-num_bytes // self.shard_bytes)
        return max(1, min(wanted, num_samples))


@dataclass(frozen=True)
class _ShardTask:
    prepared: Path
    shard: Path
    samples: pa.Table  # key, archive, offset, num_bytes, class_index, checksum in the shard's order


def _write_shard(task: _ShardTask) -> tuple[int, int]:
    """Write one shard and its index; memory: the shard's images. Returns (samples, image bytes)."""
    columns = {name: task.samples[name].to_pylist() for name in task.samples.column_names}
    files = FileCache()
    images: list[bytes] = [b""] * task.samples.num_rows
    # Read in the order of the archives, write in the order of the shard.
    reading_order = sorted(range(len(images)), key=lambda row: (columns["archive"][row], columns["offset"][row]))
    try:
        for row in reading_order:
            path = task.prepared / columns["archive"][row]
            images[row] = files.read(path, columns["offset"][row], columns["num_bytes"][row])
            if checksum(images[row]) != columns["checksum"][row]:
                raise ValueError(
                    f"{path}: image {columns['key'][row]} has other bytes than were written; "
                    f"`in21k verify --deep {task.prepared}` lists all such"
                )
    finally:
        files.close()
    with ShardWriter(task.shard) as writer:
        for key, image, class_index in zip(columns["key"], images, columns["class_index"], strict=True):
            writer.add_sample(Sample(key, image, class_index))
    return len(images), sum(map(len, images))


@dataclass(frozen=True)
class _SplitPlan:
    """Which manifest rows of a split go to which shard, in which order, and where each image's data will begin."""

    shard_names: list[str]
    shard_rows: list[NDArray[np.int64]]
    shard_offsets: list[NDArray[np.int64]]


def _plan_split(
    split: str, rows: NDArray[np.int64], num_bytes: NDArray[np.int64], settings: ShardSettings
) -> _SplitPlan:
    order = permutation(len(rows), settings.seed, SPLITS.index(split))
    count = settings.num_shards(len(rows), int(num_bytes[rows].sum()))
    shard_rows = [rows[part] for part in np.array_split(order, count)]
    offsets: list[NDArray[np.int64]] = []
    for part in shard_rows:
        # A sample is a header and a block for `.cls`, a header and the padded image for `.jpg`.
        sizes = 3 * BLOCK_BYTES + -(-num_bytes[part] // BLOCK_BYTES) * BLOCK_BYTES
        offsets.append(np.cumsum(sizes) - sizes + 3 * BLOCK_BYTES)
    return _SplitPlan([f"{split}/in21k-{split}-{number:06d}.tar" for number in range(count)], shard_rows, offsets)


def pack(
    prepared: PreparedSet,
    out: Path,
    settings: ShardSettings,
    *,
    workers: int = 1,
    overwrite: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> ShardSet:
    """Shuffle a prepared data set globally into shards at `out`.

    Each worker holds the images of one shard in memory. Shards that an earlier, killed run of the same settings
    finished are kept. Raises ValueError for an output of other settings and for prepared images that changed.
    """
    manifest = read_manifest(prepared)
    folder = OutputFolder(
        out, made_from=_made_from(prepared, settings), contents=ShardSet.contents, overwrite=overwrite
    )
    if folder.finished:
        return ShardSet(out)
    plans = _plan_splits(manifest, settings)
    with folder:
        total, done, num_bytes = manifest.num_rows, 0, 0
        for plan in plans.values():
            (out / plan.shard_names[0]).parent.mkdir(exist_ok=True)
        for num_samples, shard_bytes in run_tasks(
            _write_shard, _missing_shards(prepared, out, manifest, plans), workers
        ):
            done, num_bytes = done + num_samples, num_bytes + shard_bytes
            on_progress(Progress(done / total, done, num_bytes))
        _write_manifest(out, manifest, plans)
        for name in ("classes.parquet", "tree.json"):
            shutil.copyfile(prepared.path / name, out / name)
        info = _describe(prepared, manifest, plans)
        write_json(out / "_info.json", timm_info(info))
        write_text(out / "README.md", render_card(info, prepared.tree))
        folder.finish(info)
    return ShardSet(out)


def _made_from(prepared: PreparedSet, settings: ShardSettings) -> dict[str, Any]:
    return {
        "source": {"manifest": hashlib.sha256(prepared.manifest_path.read_bytes()).hexdigest()[:16]},
        "settings": {
            "shard_samples": settings.shard_samples,
            "shard_bytes": settings.shard_bytes,
            "seed": settings.seed,
        },
    }


def _plan_splits(manifest: pa.Table, settings: ShardSettings) -> dict[str, _SplitPlan]:
    num_bytes = manifest["num_bytes"].to_numpy().astype(np.int64)
    splits = manifest["split"].to_numpy()
    rows = {split: np.flatnonzero(splits == split) for split in SPLITS}
    return {split: _plan_split(split, rows[split], num_bytes, settings) for split in SPLITS if len(rows[split])}


def _missing_shards(
    prepared: PreparedSet, out: Path, manifest: pa.Table, plans: dict[str, _SplitPlan]
) -> Iterator[_ShardTask]:
    columns = manifest.select(["key", "archive", "offset", "num_bytes", "class_index", "checksum"])
    for plan in plans.values():
        for name, rows in zip(plan.shard_names, plan.shard_rows, strict=True):
            shard = out / name
            if not (shard.exists() and index_path(shard).exists()):
                yield _ShardTask(prepared.path, shard, columns.take(pa.array(rows)))


def _write_manifest(out: Path, manifest: pa.Table, plans: dict[str, _SplitPlan]) -> None:
    names = [name for plan in plans.values() for name in plan.shard_names]
    shard = np.empty(manifest.num_rows, np.int32)
    offset = np.empty(manifest.num_rows, np.int64)
    number = 0
    for plan in plans.values():
        for rows, offsets in zip(plan.shard_rows, plan.shard_offsets, strict=True):
            shard[rows], offset[rows] = number, offsets
            number += 1
    column = pa.DictionaryArray.from_arrays(pa.array(shard), pa.array(names)).cast(pa.string())
    with TableWriter(out / "manifest.parquet", SHARDED) as writer:
        writer.write(manifest.append_column("shard", column).append_column("shard_offset", pa.array(offset)))


def _describe(prepared: PreparedSet, manifest: pa.Table, plans: dict[str, _SplitPlan]) -> dict[str, Any]:
    num_bytes = manifest["num_bytes"].to_numpy().astype(np.int64)
    shards: dict[str, list[dict[str, Any]]] = {
        split: [
            {"name": name, "num_samples": len(rows), "num_bytes": int(num_bytes[rows].sum())}
            for name, rows in zip(plan.shard_names, plan.shard_rows, strict=True)
        ]
        for split, plan in plans.items()
    }
    splits = {
        split: {key: sum(shard[key] for shard in listed) for key in ("num_samples", "num_bytes")}
        for split, listed in shards.items()
    }
    return {
        "format": ShardSet.format,
        "version": VERSION,
        "images": {**prepared.info["settings"], "source": prepared.info["source"]["name"]},
        "counts": {"num_classes": len(prepared.tree), "splits": splits},
        "shards": shards,
    }


def timm_info(info: dict[str, Any]) -> dict[str, Any]:
    """Return `_info.json` as timm's `wds/` reader takes it."""
    return {
        "splits": {
            split: {
                "name": split,
                "num_samples": info["counts"]["splits"][split]["num_samples"],
                "filenames": [shard["name"] for shard in shards],
                "shard_lengths": [shard["num_samples"] for shard in shards],
            }
            for split, shards in info["shards"].items()
        }
    }
