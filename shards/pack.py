"""From a prepared data set to a shard set: shuffled tars with indexes, manifest and card."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from .card import render_card
from .dataset import SPLITS, PreparedSet, ShardSet
from .files.atomic import read_json, whole_file, write_json, write_text
from .files.names import archive_name
from .files.output import WORK, OutputFolder
from .files.parallel import OnProgress, Progress, ignore_progress, run_tasks, working_on
from .files.record import VERSION, record_files
from .index import index_path
from .manifest import SHARDED, STORED, TableWriter, check_labels, checksum_numbers, num_rows, read_row_groups
from .members import IMAGE, ROW_MEMBERS, member_columns
from .reader import FileCache
from .sample import Sample, checksum
from .shuffle import permutation
from .writer import BLOCK_BYTES, ShardWriter, tar_header

MAX_SHARDS = 1_000_000  # of a split: their numbers have six digits


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
        """Return into how many shards a split of that many samples and image bytes is cut, at most."""
        if self.shard_samples is not None:
            wanted = -(-num_samples // self.shard_samples)
        else:
            assert self.shard_bytes is not None
            wanted = -(-num_bytes // self.shard_bytes)
        return max(1, min(wanted, num_samples))

    def cut(self, num_bytes: NDArray[np.int32]) -> list[int]:
        """Return where each shard ends in a split of images of so many bytes, in their order. Raises ValueError."""
        total = int(num_bytes.sum(dtype=np.int64))
        count = self.num_shards(len(num_bytes), total)
        if count > MAX_SHARDS:
            name = "shard_bytes" if self.shard_samples is None else "shard_samples"
            raise ValueError(f"{name} {getattr(self, name)} would make {count:,} shards; wanted {MAX_SHARDS:,} at most")
        if self.shard_samples is not None:
            samples, more = divmod(len(num_bytes), count)
            return [share * samples + min(share, more) for share in range(1, count + 1)]
        # A shard ends with the image that fills its share of the bytes; an image that fills several shares ends one.
        filled = np.cumsum(num_bytes, dtype=np.int64)
        return np.unique(
            np.searchsorted(filled, [total * share // count for share in range(1, count + 1)]) + 1
        ).tolist()


class PlannedShard(NamedTuple):
    """A shard to be: its name relative to the shard set, and which part of the plan's order it holds."""

    split: str
    name: str
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class ShardPlan:
    """Which manifest rows go to which shard, in which order: 8 bytes an image.

    order:      manifest rows, int32, one shard after the other.
    num_bytes:  of the image of each manifest row, int32.
    """

    shards: list[PlannedShard]
    order: NDArray[np.int32]
    num_bytes: NDArray[np.int32]

    def rows(self, shard: PlannedShard) -> NDArray[np.int32]:
        """Return the manifest rows of a shard in its order."""
        return self.order[shard.start : shard.stop]

    def offsets(self, shard: PlannedShard) -> NDArray[np.int64]:
        """Return where the data of each image begins in a shard."""
        # A sample is a header and a block for each row member, then a header and the padded image.
        before = (2 * len(ROW_MEMBERS) + 1) * BLOCK_BYTES
        sizes = before + -(-self.num_bytes[self.rows(shard)].astype(np.int64) // BLOCK_BYTES) * BLOCK_BYTES
        return np.cumsum(sizes) - sizes + before


def plan_shards(prepared: PreparedSet, settings: ShardSettings) -> ShardPlan:
    """Shuffle a prepared data set's images into shards; raises ValueError."""
    counts = {split: prepared.num_samples[split] for split in SPLITS if split in prepared.num_samples}
    total = num_rows(prepared.manifest_path)
    if total != sum(counts.values()):
        raise ValueError(
            f"{prepared.manifest_path}: has {total:,} rows where dataset.json says {sum(counts.values()):,}; "
            "run `in21k verify`"
        )
    shards: list[PlannedShard] = []
    order = np.empty(total, np.int32)
    start = 0
    for split, count in counts.items():  # the manifest's rows are sorted by split
        order[start : start + count] = permutation(count, settings.seed, SPLITS.index(split))
        order[start : start + count] += start
        start += count
    num_bytes = np.concatenate(
        [rows["num_bytes"].to_numpy() for rows in read_row_groups(prepared.manifest_path, ["num_bytes"])]
    )
    start = 0
    for split, count in counts.items():
        ends = [start + end for end in settings.cut(num_bytes[order[start : start + count]])]
        for number, (first, stop) in enumerate(zip([start, *ends], ends, strict=False)):
            shards.append(PlannedShard(split, f"{split}/in21k-{split}-{number:06d}.tar", first, stop))
        start += count
    return ShardPlan(shards, order, num_bytes)


class ManifestLocations:
    """Locations of the prepared images, 16 bytes each, and the values that their row members are made from.

    Archive and values are run-length encoded, as the rows of a class follow one another in the manifest.
    """

    def __init__(self, prepared: PreparedSet) -> None:
        path, num_classes = prepared.manifest_path, prepared.num_image_classes
        total = num_rows(path)
        self.offsets = np.empty(total, np.int64)
        self.checksums = np.empty(total, np.uint64)
        self._starts: list[int] = []
        self._archives: list[str] = []
        self._values: list[tuple[Any, ...]] = []
        start = 0
        columns = ["archive", "offset", "checksum", *member_columns()]
        for rows in read_row_groups(path, columns, as_dictionary=["archive"]):
            stop = start + rows.num_rows
            self.offsets[start:stop] = rows["offset"].to_numpy()
            self.checksums[start:stop] = checksum_numbers(rows["checksum"], path)
            check_labels(rows["class_index"].to_numpy(), num_classes, path)
            archives = rows["archive"].combine_chunks()
            for name in archives.dictionary.to_pylist():
                archive_name(name, str(path))
            values = [rows[column].combine_chunks().dictionary_encode() for column in member_columns()]
            self._add_runs(start, archives, values)
            start = stop

    def _add_runs(self, start: int, archives: pa.DictionaryArray, values: list[pa.DictionaryArray]) -> None:
        changes = np.any([np.diff(column.indices.to_numpy()) for column in (archives, *values)], axis=0)
        begins = np.concatenate([[0], np.flatnonzero(changes) + 1])
        self._starts += (start + begins).tolist()
        self._archives += archives.take(pa.array(begins)).to_pylist()
        self._values += zip(*(column.take(pa.array(begins)).to_pylist() for column in values), strict=True)

    def runs(self, rows: NDArray[np.int32]) -> tuple[list[str], list[tuple[Any, ...]]]:
        """Return for each row its archive, and the values that its row members are made from."""
        runs = (np.searchsorted(self._starts, rows, side="right") - 1).tolist()
        return [self._archives[run] for run in runs], [self._values[run] for run in runs]


class ImageLocation(NamedTuple):
    """The location of a prepared image, its checksum, and its row members' values."""

    archive: str
    offset: int
    num_bytes: int
    checksum: int
    values: tuple[Any, ...]  # of the columns that row members are made from


@dataclass(frozen=True)
class _ShardTask:
    prepared: Path
    shard: Path
    images: list[ImageLocation]  # in the shard's order


def _write_shard(task: _ShardTask) -> tuple[int, int]:
    """Write one shard and its index; memory: the shard's images. Returns (samples, image bytes)."""
    working_on(f"{task.shard.parent.name}/{task.shard.name}")
    files = FileCache()
    samples: dict[ImageLocation, Sample] = {}
    try:
        for stored in sorted(task.images):  # read in the order of the archives, write in the order of the shard
            samples[stored] = _read_sample(files, task.prepared, stored)
    finally:
        files.close()
    with ShardWriter(task.shard) as writer:
        for stored in task.images:
            writer.add_sample(samples[stored])
    return len(samples), sum(stored.num_bytes for stored in task.images)


def _read_sample(files: FileCache, folder: Path, stored: ImageLocation) -> Sample:
    """Read an image with its header, which holds its key. Raises ValueError if either has changed."""
    path = folder / stored.archive
    data = files.read(path, stored.offset - BLOCK_BYTES, BLOCK_BYTES + stored.num_bytes)
    header, image = data[:BLOCK_BYTES], data[BLOCK_BYTES:]
    name = header[:100].rstrip(b"\0").decode("ascii", "replace")
    key = name.removesuffix(f".{IMAGE}")
    has_header = header == tar_header(name, stored.num_bytes)
    if not has_header or int(checksum(image), 16) != stored.checksum:
        which = f"image {key}" if has_header else f"the header before byte {stored.offset}"
        raise ValueError(
            f"{path}: {which} has other bytes than were written; `in21k verify --deep {folder}` lists all such"
        )
    return Sample(key, image, *stored.values)


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

    Memory: this process takes under 40 bytes an image of the data set, each worker the images of one shard. Shards
    that an earlier, killed run of the same settings finished are kept. Raises ValueError for an output of other
    settings and for prepared images that changed.
    """
    folder = OutputFolder(
        out,
        provenance=_provenance(prepared, settings),
        contents=ShardSet.contents,
        list_files=list_shard_files,
        overwrite=overwrite,
    )
    if folder.finished:
        return ShardSet(out)
    plan = plan_shards(prepared, settings)
    with folder:
        if folder.finished:  # by another process meanwhile
            return ShardSet(out)
        folder.own(_shard_files(shard.name for shard in plan.shards))
        for split in {shard.split for shard in plan.shards}:
            (out / split).mkdir(exist_ok=True)
        missing = [shard for shard in plan.shards if not _is_done(out / shard.name)]
        total, done, num_bytes = sum(shard.stop - shard.start for shard in missing), 0, 0
        for num_samples, shard_bytes in run_tasks(_write_shard, _tasks(prepared, out, plan, missing), workers):
            done, num_bytes = done + num_samples, num_bytes + shard_bytes
            on_progress(Progress(done / total, done, num_bytes))
        info = write_tables(prepared, out, plan)
        folder.finish({**info, "files": record_files(out, ShardSet.recorded(info))})
    return ShardSet(out)


def list_shard_files(path: Path) -> list[str]:
    """Return the files in the subfolders of a finished shard set, by its dataset.json."""
    splits = read_json(path / "dataset.json")["shards"].values()
    return _shard_files(shard["name"] for shards in splits for shard in shards)


def planned_files(prepared: PreparedSet, settings: ShardSettings) -> list[str]:
    """Return every file that `pack` may write into its folder, on the way too."""
    shards = _shard_files(shard.name for shard in plan_shards(prepared, settings).shards)
    work = [f"{WORK}/{name}" for name in OutputFolder.work_files]
    return ["dataset.json", *ShardSet.contents, *work, *shards]


def _shard_files(shards: Iterable[str]) -> list[str]:
    return [name for shard in shards for name in (shard, str(index_path(Path(shard))))]


def _provenance(prepared: PreparedSet, settings: ShardSettings) -> dict[str, Any]:
    manifest = record_files(prepared.path, ["manifest.parquet"])["manifest.parquet"]
    return {
        "source": {"manifest": manifest["sha256"][:16]},
        "settings": {
            "shard_samples": settings.shard_samples,
            "shard_bytes": settings.shard_bytes,
            "seed": settings.seed,
        },
    }


def _is_done(shard: Path) -> bool:
    return shard.exists() and index_path(shard).exists()


def _tasks(prepared: PreparedSet, out: Path, plan: ShardPlan, shards: list[PlannedShard]) -> Iterator[_ShardTask]:
    if not shards:
        return
    locations = ManifestLocations(prepared)
    for shard in shards:
        rows = plan.rows(shard)
        archives, values = locations.runs(rows)
        numbers = (column[rows].tolist() for column in (locations.offsets, plan.num_bytes, locations.checksums))
        images = [ImageLocation(*image) for image in zip(archives, *numbers, values, strict=True)]
        yield _ShardTask(prepared.path, out / shard.name, images)


def write_tables(prepared: PreparedSet, out: Path, plan: ShardPlan) -> dict[str, Any]:
    """Write all that lies beside the shards; returns what `dataset.json` says of the set itself."""
    _write_manifest(prepared, out, plan)
    for name in ("classes.parquet", "tree.json"):
        with whole_file(out / name) as aside:
            shutil.copyfile(prepared.checked(name), aside)
    info = _describe(prepared, plan)
    write_json(out / "_info.json", timm_info(info))
    write_text(out / "README.md", render_card(info, prepared.tree))
    return info


def _write_manifest(prepared: PreparedSet, out: Path, plan: ShardPlan) -> None:
    shard_numbers = np.empty(len(plan.order), np.int32)
    offsets = np.empty(len(plan.order), np.int64)
    for number, shard in enumerate(plan.shards):
        shard_numbers[plan.rows(shard)] = number
        offsets[plan.rows(shard)] = plan.offsets(shard)
    names = pa.array([shard.name for shard in plan.shards])
    start = 0
    with TableWriter(out / "manifest.parquet", SHARDED) as writer:
        for rows in read_row_groups(prepared.manifest_path, STORED.names):
            stop = start + rows.num_rows
            shard = pa.DictionaryArray.from_arrays(shard_numbers[start:stop], names).cast(pa.string())
            rows = rows.append_column("shard", shard)
            writer.write(rows.append_column("shard_offset", pa.array(offsets[start:stop])))
            start = stop


def _describe(prepared: PreparedSet, plan: ShardPlan) -> dict[str, Any]:
    shards: dict[str, list[dict[str, Any]]] = {}
    for shard in plan.shards:
        num_bytes = int(plan.num_bytes[plan.rows(shard)].sum(dtype=np.int64))
        listed = {"name": shard.name, "num_samples": shard.stop - shard.start, "num_bytes": num_bytes}
        shards.setdefault(shard.split, []).append(listed)
    splits = {
        split: {key: sum(shard[key] for shard in listed) for key in ("num_samples", "num_bytes")}
        for split, listed in shards.items()
    }
    counts = prepared.info["counts"]
    num_classes = {name: counts[name] for name in ("num_classes", "num_inner_classes") if name in counts}
    return {
        "format": ShardSet.format,
        "version": VERSION,
        "images": {**prepared.info["settings"], "source": prepared.info["source"]["name"]},
        "counts": {**num_classes, "splits": splits},
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
