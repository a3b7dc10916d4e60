"""Prepared data sets and shard sets: what their folders hold, read lazily."""

from __future__ import annotations

import logging
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .class_table import ClassRow, kept_classes, read_class_table
from .files.names import archive_name
from .files.record import DATASET_JSON, FileRecord, parse_dataset_json
from .files.shape import ANY, COUNT, NUM_SAMPLES, TEXT, Each, Shape, check_shape
from .index import index_path
from .manifest import (
    SHARDED,
    STORED,
    check_labels,
    checksum_numbers,
    largest_values,
    num_rows,
    pc,
    read_row_groups,
    read_table,
)
from .sample import checksum
from .tree import SemanticTree
from .writer import BLOCK_BYTES

if TYPE_CHECKING:
    from .remote.remote_set import RemoteShards

log = logging.getLogger(__name__)
SPLITS = ("train", "val")


class Dataset:
    """A finished folder that in21k made; raises ValueError for any other folder, or if its `dataset.json` has changed.

    Each table is compared with its record in `dataset.json` when it is first read.
    """

    format: ClassVar[str]
    made_by: ClassVar[str]
    contents: ClassVar[tuple[str, ...]]
    shape: ClassVar[dict[str, Shape]]  # what is read from dataset.json

    def __init__(self, path: str | Path, location: str = "") -> None:
        self.path = Path(path)
        self.location = location or str(path)  # as messages name it
        if not self.path.is_dir():
            raise ValueError(f"{self.location}: no such folder; wanted one that `{self.made_by}` made")
        if not (self.path / DATASET_JSON).is_file():
            unfinished = (self.path / ".work").exists()
            state = "unfinished: start the command that makes it again" if unfinished else f"holds no {DATASET_JSON}"
            raise ValueError(f"{self.location}: {state}; wanted a folder that `{self.made_by}` made")
        data = (self.path / DATASET_JSON).read_bytes()
        self.info: dict[str, Any] = parse_dataset_json(data, self.location, kind=self.format, made_by=self.made_by)
        try:
            check_shape(self.info, self.shape)
            check_shape(self.info["counts"].get("num_inner_classes", 0), COUNT, "counts.num_inner_classes")
            self._check_splits()
        except ValueError as error:
            raise ValueError(
                f"{self.location}: its {DATASET_JSON} is damaged ({error}); make the folder again with `{self.made_by}`"
            ) from error
        self.record = FileRecord(self.path, self.info.get("files"))

    def _check_splits(self) -> None:
        """Raise ValueError for an unknown split."""
        if strange := self.num_samples.keys() - set(SPLITS):
            raise ValueError(f"it has the split {min(strange)!r}; wanted {' and '.join(SPLITS)}")

    def checked(self, name: str) -> Path:
        """Return the path of a file to read; raises ValueError if the file has changed since it was written."""
        if problem := self.record.problem(name):
            raise ValueError(
                f"{self.location}/{name}: {problem}; copy it again from where it came, or make the folder again with "
                f"`{self.made_by}`"
            )
        return self.path / name

    @contextmanager
    def _checking(self, name: str) -> Generator[Path]:
        """Yield the path of a file like `checked`, but compare the file while the block reads it.

        Use the block's result only after the block has ended: it raises if the file has changed since it was written.
        """
        with ThreadPoolExecutor(1) as thread:
            compared = thread.submit(self.checked, name)
            try:
                yield self.path / name
            finally:
                compared.result()

    @classmethod
    def recorded(cls, info: Mapping[str, Any]) -> list[str]:
        """Return the files that `dataset.json` records: tables and texts, and the indexes of the shards it lists."""
        shards = [shard["name"] for listed in info.get("shards", {}).values() for shard in listed]
        return [*(name for name in cls.contents if "." in name), *(str(index_path(Path(name))) for name in shards)]

    @cached_property
    def tree(self) -> SemanticTree:
        """The semantic tree over the kept classes."""
        path = self.checked("tree.json")
        tree = SemanticTree.load(path)
        if (len(tree), tree.num_image_classes) != (self.num_classes, self.num_image_classes):
            raise ValueError(
                f"{path}: has {len(tree):,} classes, {tree.num_image_classes:,} with images; {DATASET_JSON} says "
                f"{self.num_classes:,} and {self.num_image_classes:,}; run `in21k verify`"
            )
        return tree

    @cached_property
    def classes(self) -> list[ClassRow]:
        """Every class that the source held, in wnid order."""
        path = self.checked("classes.parquet")
        rows = read_class_table(path)
        kept = kept_classes(rows)
        counts = {"train": sum(row.num_train for row in kept), "val": sum(row.num_val for row in kept)}
        if (
            [row.class_index for row in kept] != list(range(self.num_classes))
            or any(counts[split] != self.num_samples.get(split, 0) for split in SPLITS)
            or any(row.level is None or row.level >= self.num_classes for row in kept)
            or sum(row.inner for row in kept) != self.num_classes - self.num_image_classes
        ):
            raise ValueError(f"{path}: its classes or image counts differ from {DATASET_JSON}; run `in21k verify`")
        return rows

    @property
    def manifest_path(self) -> Path:
        """The path of the table of stored images, which is compared with its record."""
        return self.checked("manifest.parquet")

    @property
    def num_classes(self) -> int:
        """The number of kept classes, inner ones included."""
        return self.info["counts"]["num_classes"]

    @property
    def num_image_classes(self) -> int:
        """The number of kept classes that have images of their own."""
        return self.num_classes - self.info["counts"].get("num_inner_classes", 0)

    @property
    def num_samples(self) -> dict[str, int]:
        """Per split the number of samples."""
        return {split: counts["num_samples"] for split, counts in self.info["counts"]["splits"].items()}


class PreparedSet(Dataset):
    """A prepared data set: a tar of resized images per class and split."""

    format = "in21k-prepared"
    made_by = "in21k preprocess"
    contents = ("classes.parquet", "tree.json", "manifest.parquet", "rejects.parquet", "train", "val")
    shape: ClassVar[dict[str, Shape]] = {
        "counts": {
            **dict.fromkeys(("num_classes_seen", "num_classes", "num_raw", "num_raw_kept", "num_rejects"), COUNT),
            "splits": Each({"num_samples": NUM_SAMPLES}),
        },
        "source": {"name": TEXT},
        "settings": Each(ANY),
    }


class ShardSet(Dataset):
    """A shard set: shuffled tars of samples, with indexes and a manifest.

    For a remote set, `path` is a folder of the cache: it holds the tables, and each shard while it is needed.
    """

    format = "in21k-shards"
    made_by = "in21k shard"
    contents = ("classes.parquet", "tree.json", "manifest.parquet", "_info.json", "README.md", "train", "val")
    shape: ClassVar[dict[str, Shape]] = {
        "images": {"resize": TEXT, "size": COUNT},
        "counts": {"num_classes": COUNT, "splits": Each({"num_samples": NUM_SAMPLES, "num_bytes": COUNT})},
        "shards": Each([{"name": TEXT, "num_samples": NUM_SAMPLES, "num_bytes": COUNT}]),
    }

    def __init__(self, path: str | Path, remote: RemoteShards | None = None) -> None:
        self.remote = remote
        super().__init__(path, remote.store.url if remote else "")

    def _check_splits(self) -> None:
        super()._check_splits()
        shards: dict[str, list[dict[str, Any]]] = self.info["shards"]
        if shards.keys() != self.num_samples.keys():
            raise ValueError(f"it lists shards of {', '.join(shards)} and counts {', '.join(self.num_samples)}")
        for split, listed in shards.items():
            names = [archive_name(shard["name"], "it") for shard in listed]
            if any(not name.startswith(f"{split}/") for name in names) or len(set(names)) < len(names):
                raise ValueError(f"its shards of {split} are not all in {split}/, or one stands twice")

    def checked(self, name: str) -> Path:
        """Return the path of a file to read; a changed file in the cache is fetched again."""
        num_bytes = self.record.num_bytes(name)
        if self.remote and num_bytes is not None and (problem := self.record.problem(name)):
            log.warning("%s/%s: %s in the cache; it is fetched again", self.location, name, problem)
            self.remote.fetch_again(name, num_bytes)
        return super().checked(name)

    @contextmanager
    def _checking(self, name: str) -> Generator[Path]:
        """Compare a file while the block reads it; a cached file before that, as it may be fetched again."""
        if self.remote:
            yield self.checked(name)
            return
        with super()._checking(name) as path:
            yield path

    @property
    def fingerprint(self) -> str:
        """16 hex digits that are equal for equal shard sets."""
        return checksum((self.path / DATASET_JSON).read_bytes())

    @property
    def image_size(self) -> int | None:
        """The size in pixels that the images were resized to; None if they were not resized."""
        settings = self.info["images"]
        return None if settings["resize"] == "none" else settings["size"]

    def shard_names(self, split: str) -> list[str]:
        """Return the shards of a split, relative to `path`, in their order."""
        return [shard["name"] for shard in self._shards(split)]

    def _shards(self, split: str) -> list[dict[str, Any]]:
        shards = self.info["shards"].get(split)
        if not shards:
            held = ", ".join(self.info["shards"])
            raise ValueError(f"{self.location}: has no split {split!r}; it holds {held}")
        return shards

    def split(self, split: str) -> ShardSplit:
        """Open a split by reading the locations of its samples. Raises ValueError.

        Each sample takes 28 bytes of memory, and 32 while they are read.
        """
        with self._checking("manifest.parquet") as path:
            return self._read_split(split, path)

    def _read_split(self, split: str, path: Path) -> ShardSplit:
        shards = self._shards(split)
        names = [shard["name"] for shard in shards]
        before = SPLITS[: SPLITS.index(split)]  # the manifest's rows are sorted by split
        start = sum(self.num_samples.get(name, 0) for name in before)
        rows = range(start, start + self.num_samples.get(split, 0))
        sizes, num_elsewhere, places = _read_places(path, rows, names)
        if num_elsewhere or sizes.tolist() != [shard["num_samples"] for shard in shards]:
            raise ValueError(f"{path}: counts per shard of {split} differ from dataset.json; run `in21k verify`")
        places.sort()
        row_bits = len(rows).bit_length()
        order = np.empty(len(rows), np.int32)
        np.bitwise_and(places, (1 << row_bits) - 1, out=order, casting="unsafe")
        places >>= row_bits
        places &= (1 << _block_bits(len(rows), len(shards))) - 1
        places *= BLOCK_BYTES
        num_bytes, labels, checksums = _read_images(path, rows, order, self.num_image_classes)
        order += start
        return ShardSplit(
            name=split,
            folder=self.path,
            shard_names=names,
            shard_sizes=sizes,
            offsets=places.view(np.int64),
            num_bytes=num_bytes,
            labels=labels,
            checksums=checksums,
            manifest_rows=order,
            remote=self.remote,
        )


def _block_bits(num_rows: int, num_shards: int) -> int:
    """Return the number of bits, out of 64, that are left for a block within a shard (29 for 21K-P: up to 274 GB)."""
    return 64 - num_rows.bit_length() - num_shards.bit_length()


def _read_places(path: Path, rows: range, shards: list[str]) -> tuple[NDArray[np.int64], int, NDArray[np.uint64]]:
    """Return the samples per shard, the number of samples in unlisted shards, and a number per row: shard, block, row.

    Sorting these numbers puts the samples into the order of the shards, much faster than sorting by columns.
    """
    row_bits, block_bits = len(rows).bit_length(), _block_bits(len(rows), len(shards))
    sizes = np.zeros(len(shards) + 1, np.int64)  # the last one: samples of shards that dataset.json does not list
    places = np.empty(len(rows), np.uint64)
    start = 0
    value_set = pa.array(shards)
    for table in read_row_groups(path, ["shard", "shard_offset"], rows=rows, as_dictionary=["shard"]):
        column = table["shard"].combine_chunks()
        number_of = pc.fill_null(pc.index_in(column.dictionary, value_set=value_set), len(shards)).to_numpy()
        shard = number_of[column.indices.to_numpy()]
        block = table["shard_offset"].to_numpy() // BLOCK_BYTES
        if (block >> block_bits).any():
            raise ValueError(f"{path}: a shard_offset lies in no shard of this size; run `in21k verify`")
        sizes += np.bincount(shard, minlength=len(sizes))
        place = (shard.astype(np.uint64) << block_bits | block.astype(np.uint64)) << row_bits
        places[start : start + len(place)] = place | np.arange(start, start + len(place), dtype=np.uint64)
        start += len(place)
    return sizes[:-1], int(sizes[-1]), places


def _read_images(
    path: Path, rows: range, order: NDArray[np.int32], num_classes: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.uint64]]:
    """Return size, label and checksum of the images in `order`, which holds positions in `rows`."""
    position, labels = np.empty_like(order), np.empty_like(order)
    num_bytes = np.arange(len(order), dtype=np.int32)  # holds positions first: allocating takes the time
    position[order] = num_bytes
    checksums = np.empty(len(order), np.uint64)
    start = 0
    for table in read_row_groups(path, ["num_bytes", "class_index", "checksum"], rows=rows):
        positions = position[start : start + table.num_rows].astype(np.intp)
        sizes, classes = table["num_bytes"].to_numpy(), table["class_index"].to_numpy()
        check_labels(classes, num_classes, path)
        if sizes.min() < 1:
            raise ValueError(f"{path}: an image has {sizes.min()} bytes; run `in21k verify`")
        num_bytes[positions], labels[positions] = sizes, classes
        checksums[positions] = checksum_numbers(table["checksum"], path)
        start += table.num_rows
    return num_bytes, labels, checksums


@dataclass(frozen=True, eq=False)
class ShardSplit:
    """The locations of the samples of one split. Positions count through the shards in order, from 0.

    shard_sizes: samples per shard, int64.  The other arrays have one entry a sample: offsets int64 and num_bytes int32
    of the image in its shard, labels int32 (class index), checksums uint64, manifest_rows int32.  The
    `folder` of a `remote` split is a folder of the cache, which holds a shard only while it is needed.
    """

    name: str
    folder: Path
    shard_names: list[str]
    shard_sizes: NDArray[np.int64]
    offsets: NDArray[np.int64]
    num_bytes: NDArray[np.int32]
    labels: NDArray[np.int32]
    checksums: NDArray[np.uint64]
    manifest_rows: NDArray[np.int32]
    remote: RemoteShards | None = None

    def __len__(self) -> int:
        return len(self.offsets)

    @cached_property
    def shard_ends(self) -> NDArray[np.int64]:
        """Per shard the position after its last sample."""
        return np.cumsum(self.shard_sizes)

    @cached_property
    def shard_bytes(self) -> NDArray[np.int64]:
        """Per shard its bytes: to the end of the last image's last block, and two blocks more."""
        last = self.shard_ends - 1
        blocks = -(-self.num_bytes[last].astype(np.int64) // BLOCK_BYTES)
        return self.offsets[last] + (blocks + 2) * BLOCK_BYTES

    @cached_property
    def largest_sides(self) -> tuple[int, int] | None:
        """The largest height and width of the manifest's images, in pixels; None if it has no statistics."""
        sides = largest_values(self.folder / "manifest.parquet", ("height", "width"))
        return None if sides is None else (sides[0], sides[1])

    @property
    def location(self) -> str:
        """The folder or URL, for messages."""
        return self.remote.store.url if self.remote else str(self.folder)

    def shard_of(self, position: int) -> int:
        """Return the number of the shard that holds a sample."""
        return int(np.searchsorted(self.shard_ends, position, side="right"))

    def describe(self, position: int) -> str:
        """Return shard and key of a sample, for messages."""
        return f"{self.location}/{self.shard_names[self.shard_of(position)]}: sample {self.key(position)}"

    def key(self, position: int) -> str:
        """Look a sample's key up in the manifest (slow: for messages)."""
        row = int(self.manifest_rows[position])
        (table,) = read_row_groups(self.folder / "manifest.parquet", ["key"], rows=range(row, row + 1))
        return table["key"][0].as_py()


def open_dataset(path: str | Path) -> ShardSet:
    """Open a folder that `in21k shard` made, local or at a URL that fsspec knows; raises ValueError.

    The tables of a remote set are fetched now, and its shards when they are needed. They go to the folder IN21K_CACHE
    (default: the user's cache folder), which holds at most IN21K_CACHE_BYTES (default: 64e9).
    """
    if "://" not in str(path):
        return ShardSet(path)
    from .remote.remote_set import open_remote

    remote = open_remote(str(path))
    shards = ShardSet(remote.folder, remote)
    actual, wanted = num_rows(shards.manifest_path), sum(shards.num_samples.values())
    if actual != wanted:
        raise ValueError(f"{path}: its manifest.parquet has {actual:,} rows; dataset.json says {wanted:,}")
    return shards


def read_manifest(dataset: Dataset, columns: list[str] | None = None) -> pa.Table:
    """Read the table of stored images, or some columns of it. Raises ValueError where it is damaged."""
    path, expected = dataset.manifest_path, sum(dataset.num_samples.values())
    table = read_table(path, SHARDED if isinstance(dataset, ShardSet) else STORED, columns)
    if table.num_rows != expected:
        raise ValueError(f"{path}: has {table.num_rows:,} rows; {DATASET_JSON} says {expected:,}; run `in21k verify`")
    return table
