"""Checking that a prepared data set or a shard set is what its manifest says."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
from PIL import Image

from .dataset import PreparedSet, ShardSet, read_manifest
from .files import read_json
from .index import IndexEntry, index_path, read_index
from .manifest import pc, read_table
from .pack import timm_info
from .parallel import OnProgress, Progress, ignore_progress, run_tasks
from .sample import checksum
from .writer import BLOCK_BYTES

MAX_NAMED = 20
_COLUMNS = ["key", "class_index", "num_bytes", "width", "height", "checksum"]


@dataclass(frozen=True)
class Verdict:
    """What was looked at, and each thing that is wrong with it, in words."""

    num_archives: int
    num_samples: int
    problems: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)


@dataclass(frozen=True)
class _ArchiveTask:
    path: Path
    rows: pa.Table  # the manifest's rows of this archive, with its data offset as `at`
    is_shard: bool
    deep: bool


def open_any(path: str | Path) -> PreparedSet | ShardSet:
    """Open a folder as whichever of our data sets it is; raises ValueError where it is neither."""
    try:
        return ShardSet(path)
    except ValueError as no_shards:
        try:
            return PreparedSet(path)
        except ValueError:
            if not Path(path).is_dir() or (Path(path) / "dataset.json").exists():
                raise no_shards from None
            raise ValueError(
                f"{path}: no finished prepared data set nor shard set (no dataset.json); "
                "wanted a folder that `in21k preprocess` or `in21k shard` made"
            ) from None


def verify(
    dataset: PreparedSet | ShardSet,
    *,
    deep: bool = False,
    workers: int = 1,
    on_progress: OnProgress = ignore_progress,
) -> Verdict:
    """Compare the files of a data set with its tables; `deep` also reads, checksums and decodes every image.

    Raises ValueError where the manifest itself cannot be read.
    """
    missing = [name for name in dataset.contents if "." in name and not (dataset.path / name).is_file()]
    if missing:
        return Verdict(0, 0, [f"{name}: missing" for name in missing])
    manifest = read_manifest(dataset)
    problems = list(_check_tables(dataset, manifest))
    is_shard = isinstance(dataset, ShardSet)
    by, at = ("shard", "shard_offset") if is_shard else ("archive", "offset")
    tasks = list(_tasks(dataset.path, manifest, by, at, is_shard=is_shard, deep=deep))
    problems += _check_strays(dataset.path, {task.path for task in tasks}, is_shard=is_shard)
    done = num_bytes = 0
    for found, num_samples, read_bytes in run_tasks(_check_archive, tasks, workers):
        problems += found
        done, num_bytes = done + num_samples, num_bytes + read_bytes
        on_progress(Progress(done / manifest.num_rows, done, num_bytes))
    return Verdict(len(tasks), manifest.num_rows, sorted(problems))


def _tasks(folder: Path, manifest: pa.Table, by: str, at: str, *, is_shard: bool, deep: bool) -> Iterator[_ArchiveTask]:
    columns = ["key", "class_index", "num_bytes", "width", "height", "checksum"]
    rows = (
        manifest.select([*columns, by])
        .append_column("at", manifest[at])
        .sort_by([(by, "ascending"), ("at", "ascending")])
    )
    runs = pc.run_end_encode(rows[by].combine_chunks())
    start = 0
    for name, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
        yield _ArchiveTask(folder / name, rows.slice(start, end - start), is_shard, deep)
        start = end


def _check_tables(dataset: PreparedSet | ShardSet, manifest: pa.Table) -> Iterator[str]:
    counted = {row["values"]: row["counts"] for row in pc.value_counts(manifest["split"]).to_pylist()}
    if counted != {split: count for split, count in dataset.num_samples.items() if count}:
        yield f"manifest.parquet: samples per split {counted}; dataset.json says {dataset.num_samples}"
    kept = [row for row in dataset.classes if row.kept]
    if [row.class_index for row in kept] != list(range(len(kept))) or [row.wnid for row in kept] != list(
        dataset.tree.wnids
    ):
        yield "classes.parquet: the kept classes are not those of tree.json in wnid order"
    if [row.level for row in kept] != list(dataset.tree.levels):
        yield "classes.parquet: levels differ from tree.json"
    per_class = manifest.group_by(["wnid", "split", "class_index"]).aggregate([("key", "count")]).to_pylist()
    stored = {(row["wnid"], row["split"]): (row["class_index"], row["key_count"]) for row in per_class}
    for row in kept:
        for split, count in (("train", row.num_train), ("val", row.num_val)):
            index, found = stored.pop((row.wnid, split), (row.class_index, 0))
            if (index, found) != (row.class_index, count):
                yield (
                    f"{row.wnid}: manifest.parquet has {found} {split} images of class {index}, "
                    f"classes.parquet {count} of class {row.class_index}"
                )
    yield from (f"{wnid}: in manifest.parquet, but no kept class of classes.parquet" for wnid, _ in stored)
    if pc.count_distinct(manifest["key"]).as_py() != manifest.num_rows:
        yield "manifest.parquet: a key stands twice"
    if isinstance(dataset, ShardSet):
        yield from _check_shard_counts(dataset, manifest)
    else:
        num_rejects = read_table(dataset.path / "rejects.parquet").num_rows
        if num_rejects != dataset.info["counts"]["num_rejects"]:
            yield f"rejects.parquet: {num_rejects} rows; dataset.json says {dataset.info['counts']['num_rejects']}"


def _check_shard_counts(dataset: ShardSet, manifest: pa.Table) -> Iterator[str]:
    """Check what dataset.json and timm's `_info.json` say of each shard, which readers rely on."""
    counted = {row["values"]: row["counts"] for row in pc.value_counts(manifest["shard"]).to_pylist()}
    said = {shard["name"]: shard["num_samples"] for shards in dataset.info["shards"].values() for shard in shards}
    for name in sorted({*counted, *said}):
        if counted.get(name, 0) != said.get(name, 0):
            yield f"{name}: manifest.parquet has {counted.get(name, 0)} samples; dataset.json {said.get(name, 0)}"
    try:
        if read_json(dataset.path / "_info.json") != timm_info(dataset.info):
            yield "_info.json: differs from dataset.json"
    except (OSError, ValueError) as error:
        yield f"_info.json: not readable ({error})"


def _check_strays(folder: Path, known: set[Path], *, is_shard: bool) -> Iterator[str]:
    known = known | {index_path(path) for path in known} if is_shard else known
    for split in ("train", "val"):
        for path in sorted((folder / split).glob("*")):
            if path not in known:
                yield f"{path.relative_to(folder)}: is not in the manifest"


def _check_archive(task: _ArchiveTask) -> tuple[list[str], int, int]:
    """Check one archive; returns (problems, samples, bytes read)."""
    name = f"{task.path.parent.name}/{task.path.name}"
    num_rows = task.rows.num_rows
    if not task.path.exists():
        return [f"{name}: missing; {num_rows} samples lie in it"], num_rows, 0
    expected = {row["at"]: row for row in task.rows.select([*_COLUMNS, "at"]).to_pylist()}
    problems = list(_check_members(task, expected))
    if task.is_shard:
        problems += _check_index(task.path, expected)
    shown = problems[:MAX_NAMED]
    if len(problems) > MAX_NAMED:
        shown.append(f"and {len(problems) - MAX_NAMED} more problems like these")
    return [f"{name}: {problem}" for problem in shown], num_rows, task.path.stat().st_size if task.deep else 0


def _check_members(task: _ArchiveTask, expected: dict[int, dict[str, Any]]) -> Iterator[str]:
    """Walk the archive's headers: every image where the manifest has it, nothing else, nothing cut off."""
    awaited = dict(expected)
    size = task.path.stat().st_size
    labels: dict[str, str] = {}
    try:
        with tarfile.open(task.path, "r:") as archive, task.path.open("rb") as file:
            read = partial(_read_at, file)
            for member in archive:
                key, _, extension = member.name.partition(".")
                if member.offset_data + member.size > size:
                    break  # its row stays awaited
                if task.is_shard and extension == "cls":
                    labels[key] = read(member.offset_data, member.size).decode("ascii", "replace")
                    continue
                row = awaited.pop(member.offset_data, None)
                if row is None or (row["key"], row["num_bytes"]) != (key, member.size):
                    awaited_key = row["key"] if row else "nothing"
                    yield f"{member.name} at byte {member.offset_data}: the manifest has {awaited_key} there"
                    continue
                if task.is_shard and labels.pop(key, None) != str(row["class_index"]):
                    yield f"{key}.cls: does not hold the manifest's class index {row['class_index']}"
                if task.deep:
                    yield from _check_image(row, read(member.offset_data, member.size))
    except (tarfile.TarError, OSError) as error:
        yield f"not readable as a tar to its end ({error})"
    yield from (f"{row['key']}: not there, at byte {at} (is the archive cut off?)" for at, row in awaited.items())


def _read_at(file: Any, offset: int, num_bytes: int) -> bytes:
    file.seek(offset)
    return file.read(num_bytes)


def _check_image(row: dict[str, Any], data: bytes) -> Iterator[str]:
    if checksum(data) != row["checksum"]:
        yield f"{row['key']}: its bytes have changed (checksum {checksum(data)}, manifest {row['checksum']})"
        return
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            image.load()
            if image.size != (row["width"], row["height"]) or image.mode not in ("RGB", "L"):
                yield f"{row['key']}: is {image.size} {image.mode}; the manifest says {row['width']}x{row['height']}"
            if 0x0112 in image.getexif():
                yield f"{row['key']}: holds an EXIF orientation"
    except (OSError, SyntaxError, ValueError) as error:
        yield f"{row['key']}: does not decode ({error})"


def _index_entries(at: int, row: dict[str, Any]) -> list[IndexEntry]:
    """Return what the index has to say of a sample: its label, two blocks before the image, and its image."""
    label = str(row["class_index"])
    return [
        IndexEntry("cls", at - 2 * BLOCK_BYTES, len(label), f"{row['key']}.cls"),
        IndexEntry("jpg", at, row["num_bytes"], f"{row['key']}.jpg"),
    ]


def _check_index(shard: Path, expected: dict[int, dict[str, Any]]) -> Iterator[str]:
    path = index_path(shard)
    if not path.exists():
        yield f"its index {path.name} is missing"
        return
    try:
        entries = read_index(path)
    except ValueError as error:
        yield str(error)
        return
    if entries != [_index_entries(at, row) for at, row in expected.items()]:
        yield f"its index {path.name} names other samples than the manifest"
