"""Checking that a prepared data set or a shard set is what its manifest says."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from PIL import Image

from .class_table import kept_classes, read_class_table
from .dataset import PreparedSet, ShardSet
from .files.atomic import read_json, render_json
from .files.names import archive_name
from .files.parallel import OnProgress, Progress, ignore_progress, run_tasks, working_on
from .files.record import DATASET_JSON
from .index import IndexEntry, index_path, read_index, render_index
from .manifest import REJECTS, num_rows, pc, read_row_groups, read_table
from .members import IMAGE, ROW_MEMBERS, encode_row, member_columns
from .pack import timm_info
from .sample import MAX_KEY_BYTES, checksum
from .tree import SemanticTree
from .writer import BLOCK_BYTES, padded, tar_header

MAX_NAMED = 20
TEXTS = {  # of the manifest, and what they look like
    "key": (rf"[A-Za-z0-9_-]{{1,{MAX_KEY_BYTES}}}", f"1 to {MAX_KEY_BYTES} characters of [A-Za-z0-9_-]"),
    "checksum": ("[0-9a-f]{16}", "16 hex digits"),
}
ROWS_AT_ONCE = 1 << 20  # of the manifest, with their keys; a hundred shards of 21K-P
_COLUMNS = ["key", *member_columns(), "num_bytes", "width", "height", "checksum"]


@dataclass(frozen=True)
class Verdict:
    """What was checked, and each problem in words."""

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
    """Open a prepared data set or a shard set; raises ValueError for any other folder."""
    dataset_json = Path(path) / DATASET_JSON
    if Path(path).is_dir() and not dataset_json.is_file():
        raise ValueError(
            f"{path}: neither a finished prepared data set nor a shard set (no {DATASET_JSON}); "
            "wanted a folder that `in21k preprocess` or `in21k shard` made"
        )
    is_prepared = dataset_json.is_file() and read_json(dataset_json).get("format") == PreparedSet.format
    return PreparedSet(path) if is_prepared else ShardSet(path)


def verify(
    dataset: PreparedSet | ShardSet,
    *,
    deep: bool = False,
    workers: int = 1,
    on_progress: OnProgress = ignore_progress,
) -> Verdict:
    """Compare the files of a data set with its tables; `deep` also reads, checksums and decodes every image.

    A table that has changed since it was written is reported, and not used for other checks.
    Memory: at most half a gigabyte at 21K-P's size; a worker holds the rows of one archive.
    """
    changed = _changed_files(dataset)
    problems = [f"{name}: {problem}" for name, problem in changed.items()]
    try:
        manifest = _Counts(dataset)
    except ValueError as error:
        what = [] if "manifest.parquet" in changed else [str(error)]
        lost = "manifest.parquet: cannot be relied on, so the archives were not compared with it"
        return Verdict(0, 0, sorted([*problems, *what, lost]))
    problems += _check_tables(dataset, manifest, changed)
    is_shard = isinstance(dataset, ShardSet)
    archives = {dataset.path / name for name in manifest.per_archive}
    problems += _check_strays(dataset.path, archives, is_shard=is_shard)
    done = num_bytes = 0
    for archive_problems, num_samples, read_bytes in run_tasks(
        _check_archive, _tasks(dataset, manifest, deep=deep), workers
    ):
        problems += archive_problems
        done, num_bytes = done + num_samples, num_bytes + read_bytes
        on_progress(Progress(done / manifest.num_rows, done, num_bytes))
    return Verdict(len(archives), manifest.num_rows, sorted(problems))


def _changed_files(dataset: PreparedSet | ShardSet) -> dict[str, str]:
    """Return the problems of `dataset.json` and of the files that it records, by file name."""
    problems: dict[str, str] = {}
    if (dataset.path / DATASET_JSON).read_bytes() != render_json(dataset.info).encode():
        problems[DATASET_JSON] = "has the same content as when it was written, in other bytes"
    wanted = dataset.recorded(dataset.info)
    for name in dict.fromkeys([*wanted, *(dataset.record.files or ())]):
        path = dataset.path / name
        if problem := dataset.record.problem(name) or ("" if path.is_file() else "missing"):
            problems[name] = problem
        elif name not in wanted:
            problems[name] = f"{DATASET_JSON} records it, and such data sets have no such file"
    return problems


def _place_columns(dataset: PreparedSet | ShardSet) -> tuple[str, str]:
    """Return the columns that hold an image's archive, and its offset there."""
    return ("shard", "shard_offset") if isinstance(dataset, ShardSet) else ("archive", "offset")


class _Counts:
    """Counts over the manifest's rows, read a row group at a time; a hash of 8 bytes an image finds equal keys."""

    def __init__(self, dataset: PreparedSet | ShardSet) -> None:
        by, _ = _place_columns(dataset)
        path = dataset.manifest_path
        self.num_rows = num_rows(path)
        self.splits: list[str] = []  # in their order
        self.per_class: Counter[tuple[str, str, int]] = Counter()  # wnid, split, class index
        self.per_archive: Counter[str] = Counter()
        keys = np.empty(self.num_rows, np.int64)
        columns, start = [*TEXTS, "wnid", "split", "class_index", by], 0
        for rows in read_row_groups(path, columns):
            stop = start + rows.num_rows
            keys[start:stop] = np.fromiter(map(hash, rows["key"].to_pylist()), np.int64, rows.num_rows)
            start = stop
            runs = pc.run_end_encode(rows["split"].combine_chunks()).values.to_pylist()
            self.splits += runs[1:] if self.splits[-1:] == runs[:1] else runs
            groups = rows.group_by(["wnid", "split", "class_index"]).aggregate([([], "count_all")]).to_pylist()
            for group in groups:
                self.per_class[group["wnid"], group["split"], group["class_index"]] += group["count_all"]
            for archive in pc.value_counts(rows[by]).to_pylist():
                self.per_archive[archive_name(archive["values"], str(path))] += archive["counts"]
            for name, (pattern, wanted) in TEXTS.items():
                if not pc.all(pc.match_substring_regex(rows[name], f"^(?:{pattern})$")).as_py():
                    raise ValueError(f"{path}: a {name} is not {wanted}")
        keys.sort()
        # Two different keys of 21K-P's 12 million share a hash, and count as equal, in 1 of 200,000 data sets.
        self.repeats_a_key = bool((keys[1:] == keys[:-1]).any())

    @property
    def per_split(self) -> dict[str, int]:
        """Samples per split."""
        counts: Counter[str] = Counter()
        for (_, split, _), count in self.per_class.items():
            counts[split] += count
        return dict(counts)


def _tasks(dataset: PreparedSet | ShardSet, manifest: _Counts, *, deep: bool) -> Iterator[_ArchiveTask]:
    """Yield the archives by name with their rows; the manifest is read again for every ROWS_AT_ONCE of them."""
    waiting: dict[str, int] = {}
    for name, count in sorted(manifest.per_archive.items()):
        if waiting and sum(waiting.values()) + count > ROWS_AT_ONCE:
            yield from _tasks_of(dataset, waiting, deep=deep)
            waiting = {}
        waiting[name] = count
    if waiting:
        yield from _tasks_of(dataset, waiting, deep=deep)


def _tasks_of(dataset: PreparedSet | ShardSet, archives: dict[str, int], *, deep: bool) -> Iterator[_ArchiveTask]:
    by, at = _place_columns(dataset)
    names = pa.array(list(archives))
    groups = read_row_groups(dataset.manifest_path, [*_COLUMNS, by, at])
    rows = pa.concat_tables(group.filter(pc.is_in(group[by], value_set=names)) for group in groups).combine_chunks()
    order = pc.sort_indices(rows, sort_keys=[(by, "ascending"), (at, "ascending")])
    rows = rows.rename_columns([*_COLUMNS, by, "at"])
    start = 0
    for name, count in archives.items():
        # Take, not slice: pickling a slice would send the whole table to the other process.
        mine = rows.take(order[start : start + count])
        yield _ArchiveTask(dataset.path / name, mine, isinstance(dataset, ShardSet), deep)
        start += count


def _check_tables(dataset: PreparedSet | ShardSet, manifest: _Counts, changed: Collection[str]) -> Iterator[str]:
    """Compare the unchanged tables with one another."""
    if manifest.per_split != {split: count for split, count in dataset.num_samples.items() if count}:
        yield f"manifest.parquet: samples per split {manifest.per_split}; dataset.json says {dataset.num_samples}"
    if manifest.splits != sorted(set(manifest.splits)):
        yield "manifest.parquet: its rows are not sorted by split"
    if manifest.repeats_a_key:
        yield "manifest.parquet: a key occurs twice"
    if isinstance(dataset, ShardSet):
        yield from _check_shard_counts(dataset, manifest)
    checks: list[tuple[set[str], Callable[[], Iterator[str]]]] = [
        ({"classes.parquet"}, lambda: _check_classes(dataset, manifest)),
        ({"classes.parquet", "tree.json"}, lambda: _check_tree(dataset)),
        ({"_info.json"}, lambda: _check_timm_info(dataset)),
        ({"rejects.parquet"}, lambda: _check_rejects(dataset)),
    ]
    for tables, check in checks:
        if tables <= set(dataset.contents) - set(changed):
            try:
                yield from check()
            except ValueError as error:
                yield str(error)


def _check_tree(dataset: PreparedSet | ShardSet) -> Iterator[str]:
    tree = SemanticTree.load(dataset.path / "tree.json")
    kept = kept_classes(read_class_table(dataset.path / "classes.parquet"))
    if [row.class_index for row in kept] != list(range(len(kept))) or [row.wnid for row in kept] != list(tree.wnids):
        yield "classes.parquet: the kept classes differ from tree.json in wnid order"
    if sum(row.inner for row in kept) != tree.num_inner:
        yield "classes.parquet: the inner classes differ from tree.json"
    if [row.level for row in kept] != list(tree.levels):
        yield "classes.parquet: levels differ from tree.json"
    if len(tree) != dataset.num_classes:
        yield f"tree.json: {len(tree)} classes; dataset.json says {dataset.num_classes}"
    if tree.num_image_classes != dataset.num_image_classes:
        yield f"tree.json: {tree.num_image_classes} image classes; dataset.json says {dataset.num_image_classes}"


def _check_rejects(dataset: PreparedSet | ShardSet) -> Iterator[str]:
    num_rejects = read_table(dataset.path / "rejects.parquet", REJECTS).num_rows
    if num_rejects != dataset.info["counts"]["num_rejects"]:
        yield f"rejects.parquet: {num_rejects} rows; dataset.json says {dataset.info['counts']['num_rejects']}"


def _check_classes(dataset: PreparedSet | ShardSet, manifest: _Counts) -> Iterator[str]:
    kept = [row for row in read_class_table(dataset.path / "classes.parquet") if row.kept]
    stored = {(wnid, split): (index, count) for (wnid, split, index), count in manifest.per_class.items()}
    for row in kept:
        for split, count in (("train", row.num_train), ("val", row.num_val)):
            index, actual = stored.pop((row.wnid, split), (row.class_index, 0))
            if (index, actual) != (row.class_index, count):
                yield (
                    f"{row.wnid}: manifest.parquet has {actual} {split} images of class {index}, "
                    f"classes.parquet {count} of class {row.class_index}"
                )
    yield from (f"{wnid}: in manifest.parquet, but no kept class of classes.parquet" for wnid, _ in stored)


def _check_shard_counts(dataset: ShardSet, manifest: _Counts) -> Iterator[str]:
    """Check the counts per shard in dataset.json, which readers rely on."""
    counted = manifest.per_archive
    listed = {shard["name"]: shard["num_samples"] for shards in dataset.info["shards"].values() for shard in shards}
    for name in sorted({*counted, *listed}):
        if counted.get(name, 0) != listed.get(name, 0):
            yield f"{name}: manifest.parquet has {counted.get(name, 0)} samples; dataset.json {listed.get(name, 0)}"


def _check_timm_info(dataset: PreparedSet | ShardSet) -> Iterator[str]:
    """Check the file that timm's reader relies on."""
    if read_json(dataset.path / "_info.json") != timm_info(dataset.info):
        yield "_info.json: differs from dataset.json"


def _check_strays(folder: Path, known: set[Path], *, is_shard: bool) -> Iterator[str]:
    known = known | {index_path(path) for path in known} if is_shard else known
    for split in ("train", "val"):
        for path in sorted((folder / split).glob("*")):
            if path not in known:
                yield f"{path.relative_to(folder)}: is not in the manifest"


def _check_archive(task: _ArchiveTask) -> tuple[list[str], int, int]:
    """Check one archive; returns (problems, samples, bytes read)."""
    name = f"{task.path.parent.name}/{task.path.name}"
    working_on(name)
    num_rows = task.rows.num_rows
    if not task.path.exists():
        return [f"{name}: missing; {num_rows} samples lie in it"], num_rows, 0
    expected = {row["at"]: row for row in task.rows.select([*_COLUMNS, "at"]).to_pylist()}
    problems = list(_check_members(task, expected))
    if task.is_shard:
        problems += _check_index(task.path, expected)
    named = problems[:MAX_NAMED]
    if len(problems) > MAX_NAMED:
        named.append(f"and {len(problems) - MAX_NAMED} more problems like these")
    return [f"{name}: {problem}" for problem in named], num_rows, task.path.stat().st_size if task.deep else 0


def _check_members(task: _ArchiveTask, expected: dict[int, dict[str, Any]]) -> Iterator[str]:
    """Check the archive's headers: every image lies where the manifest says, nothing else, and nothing is cut off."""
    awaited = dict(expected)
    size = task.path.stat().st_size
    last, row = next(reversed(expected.items()))
    if size != (wanted := last + padded(row["num_bytes"]) + 2 * BLOCK_BYTES):
        guess = "is its end cut off?" if size < wanted else "more bytes follow its end"
        yield f"has {size} bytes; wanted {wanted} ({guess})"
    extensions = {member.extension for member in ROW_MEMBERS} if task.is_shard else set[str]()
    contents: dict[tuple[str, str], bytes] = {}  # of row members, until their image comes
    try:
        with tarfile.open(task.path, "r:") as archive, task.path.open("rb") as file:
            for member in archive:
                key, _, extension = member.name.partition(".")
                if member.offset_data + member.size > size:
                    break  # its row stays awaited
                if extension in extensions:
                    whole = _read_whole(file, member)
                    contents[key, extension] = whole[BLOCK_BYTES:][: member.size]
                    yield from _check_frame(member, whole)
                    continue
                row = awaited.pop(member.offset_data, None)
                if row is None or (row["key"], row["num_bytes"]) != (key, member.size):
                    awaited_key = row["key"] if row else "nothing"
                    yield f"{member.name} at byte {member.offset_data}: the manifest has {awaited_key} there"
                    continue
                if task.is_shard:
                    yield from _check_contents(row, contents)
                if task.deep:
                    whole = _read_whole(file, member)
                    yield from _check_image(row, whole[BLOCK_BYTES:][: member.size])
                    yield from _check_frame(member, whole)
            file.seek(last + padded(expected[last]["num_bytes"]))
            if any(file.read(2 * BLOCK_BYTES)):
                yield "its end is not two blocks of zeros"
    except (tarfile.TarError, OSError, ValueError) as error:
        yield f"not readable as a tar to its end ({error})"
    yield from (f"{row['key']}: not there, at byte {at} (is the archive cut off?)" for at, row in awaited.items())


def _check_contents(row: dict[str, Any], contents: dict[tuple[str, str], bytes]) -> Iterator[str]:
    """Compare the row members of a sample with the manifest, and remove them from `contents`."""
    for member in ROW_MEMBERS:
        value = row[member.column]
        if contents.pop((row["key"], member.extension), None) != member.encode(value):
            column = member.column.replace("_", " ")
            yield f"{row['key']}.{member.extension}: does not hold the manifest's {column} {value}"


def _read_whole(file: BinaryIO, member: tarfile.TarInfo) -> bytes:
    """Read a member with its header and its padding."""
    file.seek(member.offset_data - BLOCK_BYTES)
    return file.read(BLOCK_BYTES + padded(member.size))


def _check_frame(member: tarfile.TarInfo, whole: bytes) -> Iterator[str]:
    """Check header and padding of a member, which readers skip."""
    if whole[:BLOCK_BYTES] != tar_header(member.name, member.size):
        yield f"{member.name}: its header has changed"
    if any(whole[BLOCK_BYTES + member.size :]):
        yield f"{member.name}: is followed by other bytes than zeros"


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
                yield f"{row['key']}: holds an orientation, in EXIF or XMP"
    except (OSError, SyntaxError, ValueError) as error:
        yield f"{row['key']}: does not decode ({error})"


def _index_entries(at: int, row: dict[str, Any]) -> list[IndexEntry]:
    """Return the index entries of a sample: its row members, two blocks each, and its image."""
    sizes = [(extension, len(data)) for extension, data in encode_row(row).items()] + [(IMAGE, row["num_bytes"])]
    first = at - 2 * BLOCK_BYTES * (len(sizes) - 1)
    return [
        IndexEntry(extension, first + 2 * BLOCK_BYTES * number, num_bytes, f"{row['key']}.{extension}")
        for number, (extension, num_bytes) in enumerate(sizes)
    ]


def _check_index(shard: Path, expected: dict[int, dict[str, Any]]) -> Iterator[str]:
    path = index_path(shard)
    if not path.exists():
        yield f"its index {path.name} is missing"
        return
    wanted = [_index_entries(at, row) for at, row in expected.items()]
    if path.read_bytes() == render_index(wanted).encode():
        return
    try:
        read_index(path)
    except ValueError as error:
        yield str(error)
        return
    yield f"its index {path.name} names other samples than the manifest"
