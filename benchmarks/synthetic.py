"""Prepared data sets of 21K-P's number of classes and of any number of images, made up without any raw archive."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from in21k.preprocess.classes.label_spaces import read_classes
from in21k.preprocess.classes.taxonomy import build_tree
from in21k.shards.class_table import ClassRow, write_class_table
from in21k.shards.dataset import SPLITS, PreparedSet
from in21k.shards.files.atomic import sealed, write_json
from in21k.shards.files.record import VERSION, record_files
from in21k.shards.manifest import REJECTS, STORED, TableWriter
from in21k.shards.sample import checksum
from in21k.shards.tree import SemanticTree
from in21k.shards.writer import BLOCK_BYTES, TarWriter

NUM_SAMPLES = 12_358_684  # 21K-P of fall11: 11,797,632 + 561,052
VAL_FRACTION = 1 / 22


def write_prepared(out: Path, num_samples: int = NUM_SAMPLES, *, with_images: bool) -> PreparedSet:
    """Write a prepared data set of fall11-P's classes; without images (of 16 x 16 pixels) there are tables alone."""
    tree = build_tree(read_classes("fall11p"))
    draws = np.random.default_rng(0)
    weights = draws.uniform(0.5, 1.5, len(tree))
    totals = np.maximum(2, np.round(weights / weights.sum() * num_samples)).astype(int)
    vals = np.maximum(1, np.round(totals * VAL_FRACTION)).astype(int)
    counts = {"train": (totals - vals).tolist(), "val": vals.tolist()}
    out.mkdir(parents=True)
    tree.save(out / "tree.json")
    _write_classes(out / "classes.parquet", tree, counts)
    with TableWriter(out / "rejects.parquet", REJECTS):
        pass
    images = _Images(out if with_images else None, draws)
    with TableWriter(out / "manifest.parquet", STORED) as writer:
        for split in SPLITS:
            (out / split).mkdir()
            for class_index, (wnid, count) in enumerate(zip(tree.wnids, counts[split], strict=True)):
                writer.write(images.rows(wnid, class_index, split, count))
    info = {
        "format": PreparedSet.format,
        "version": VERSION,
        "counts": {
            "num_classes_seen": len(tree),
            "num_classes": len(tree),
            "num_raw": num_samples,
            "num_raw_kept": num_samples,
            "num_rejects": 0,
            "splits": {split: {"num_samples": sum(counts[split])} for split in SPLITS},
        },
        "source": {"name": "made-up.tar", "num_bytes": 0},
        "settings": {"resize": "squish", "size": 224},
    }
    info["files"] = record_files(out, PreparedSet.recorded(info))
    write_json(out / "dataset.json", sealed(info))
    return PreparedSet(out)


def _write_classes(path: Path, tree: SemanticTree, counts: dict[str, list[int]]) -> None:
    def rows() -> Iterator[ClassRow]:
        for index, (wnid, name, level) in enumerate(zip(tree.wnids, tree.names, tree.levels, strict=True)):
            train, val = counts["train"][index], counts["val"][index]
            yield ClassRow(wnid, name, "", train + val, train, val, True, index, level)

    write_class_table(path, rows())


def tiny_jpeg() -> bytes:
    """Return a JPEG of 16 x 16 pixels."""
    out = io.BytesIO()
    Image.new("RGB", (16, 16), "teal").save(out, "JPEG")
    return out.getvalue()


class _Images:
    """Make up the images of one class and split after another; a folder to write them to is optional."""

    def __init__(self, folder: Path | None, draws: np.random.Generator) -> None:
        self._folder = folder
        self._draws = draws
        self._jpeg = tiny_jpeg()

    def rows(self, wnid: str, class_index: int, split: str, count: int) -> pa.Table:
        """Return the manifest's rows of so many images."""
        number = 0 if split == "val" else 10_000_000
        keys = [f"{wnid}_{number + offset}" for offset in range(count)]
        archive = f"{split}/{wnid}.tar"
        if self._folder:
            num_bytes = np.full(count, len(self._jpeg), np.int32)
            checksums = pa.array([checksum(self._jpeg)] * count)
            with TarWriter(self._folder / archive) as tar:
                offsets = np.array([tar.add(f"{key}.jpg", self._jpeg) for key in keys])
        else:
            num_bytes = self._draws.lognormal(9.6, 0.45, count).astype(np.int32)  # 16 KB on average, as of 224 pixels
            checksums = _random_checksums(self._draws, count)
            ends = np.cumsum(padded_sizes(num_bytes) + BLOCK_BYTES)
            offsets = ends - padded_sizes(num_bytes)
        columns = {
            "key": keys,
            "wnid": [wnid] * count,
            "class_index": [class_index] * count,
            "split": [split] * count,
            "archive": [archive] * count,
            "offset": offsets,
            "num_bytes": num_bytes,
            "width": [16 if self._folder else 224] * count,
            "height": [16 if self._folder else 224] * count,
            "source_name": [f"{key}.JPEG" for key in keys],
            "source_format": ["JPEG"] * count,
            "source_width": self._draws.integers(200, 600, count),
            "source_height": self._draws.integers(200, 600, count),
            "changes": pa.ListArray.from_arrays(pa.array(np.zeros(count + 1, np.int32)), pa.array([], pa.string())),
            "checksum": checksums,
        }
        return pa.table(columns)


def padded_sizes(num_bytes: NDArray[np.int32]) -> NDArray[np.int64]:
    """Return sizes rounded up to whole tar blocks."""
    return -(-num_bytes.astype(np.int64) // BLOCK_BYTES) * BLOCK_BYTES


def _random_checksums(draws: np.random.Generator, count: int) -> pa.Array:
    text = draws.bytes(8 * count).hex().encode()
    ends = np.arange(0, 16 * count + 1, 16, np.int32)
    return pa.StringArray.from_buffers(count, pa.py_buffer(ends), pa.py_buffer(text))
