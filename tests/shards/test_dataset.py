from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest

from in21k.shards import PreparedSet, ShardSet, open_dataset
from in21k.shards.class_table import write_class_table
from in21k.shards.dataset import read_manifest
from in21k.shards.files.atomic import read_json, write_json
from in21k.shards.manifest import SHARDED, TableWriter
from in21k.shards.reader import MAX_OPEN_FILES, CorruptSampleError, FileCache, SampleReader

Reseal = Callable[[Path], None]


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_says_where_each_sample_lies(shard_set: ShardSet, split: str) -> None:
    opened = shard_set.split(split)
    rows = [row for row in read_manifest(shard_set).to_pylist() if row["split"] == split]
    rows.sort(key=lambda row: (row["shard"], row["shard_offset"]))
    assert len(opened) == len(rows) == shard_set.num_samples[split] == opened.shard_ends[-1]
    reader = SampleReader(opened)
    for position, row in enumerate(rows):
        assert opened.shard_names[opened.shard_of(position)] == row["shard"]
        assert opened.key(position) == row["key"]
        assert opened.labels[position] == row["class_index"] == shard_set.tree.wnids.index(row["wnid"])
        image = reader.image(position)
        assert hashlib.sha256(image).hexdigest()[:16] == row["checksum"] == f"{opened.checksums[position]:016x}"
    reader.close()
    assert reader.image(0)[:2] == b"\xff\xd8"
    reader.close()


def test_a_split_costs_under_40_bytes_a_sample(shard_set: ShardSet) -> None:
    opened = shard_set.split("train")
    arrays = (opened.offsets, opened.num_bytes, opened.labels, opened.checksums, opened.manifest_rows)
    assert sum(array.itemsize for array in arrays) < 40


def test_what_a_shard_set_is_can_be_asked(shard_set: ShardSet, prepared: PreparedSet) -> None:
    assert shard_set.image_size == 32
    assert shard_set.num_samples == prepared.num_samples == {"train": 52, "val": 15}
    assert shard_set.tree == prepared.tree
    assert shard_set.classes == prepared.classes
    assert shard_set.shard_names("val") == [f"val/in21k-val-00000{number}.tar" for number in range(2)]


def test_a_split_that_is_not_there_is_refused_with_those_that_are(shard_set: ShardSet) -> None:
    for ask in (shard_set.split, shard_set.shard_names):
        with pytest.raises(ValueError, match="has no split 'test'; it holds train, val"):
            ask("test")


def test_bytes_that_changed_are_refused_with_shard_and_key(shards_copy: Path) -> None:
    opened = open_dataset(shards_copy).split("train")
    shard = shards_copy / opened.shard_names[0]
    data = bytearray(shard.read_bytes())
    data[int(opened.offsets[1]) + 100] ^= 1
    shard.write_bytes(data)
    reader = SampleReader(opened)
    reader.image(0)
    assert opened.describe(1) == f"{shard}: sample {opened.key(1)}"
    with pytest.raises(CorruptSampleError, match="sample 1 has other bytes"):
        reader.image(1)
    shard.write_bytes(data[: int(opened.offsets[1]) + 5])
    with pytest.raises(CorruptSampleError, match="sample 1 has other bytes"):
        reader.image(1)
    reader.close()


def test_shard_sizes_that_changed_are_refused(shards_copy: Path, reseal: Reseal) -> None:
    info = json.loads((shards_copy / "dataset.json").read_text())
    info["shards"]["train"][0]["num_samples"] += 1
    (shards_copy / "dataset.json").write_text(json.dumps(info))
    reseal(shards_copy)
    with pytest.raises(ValueError, match=r"counts per shard of train differ.*in21k verify"):
        open_dataset(shards_copy).split("train")


def test_a_manifest_that_lost_rows_is_refused(shards_copy: Path, reseal: Reseal) -> None:
    rows = read_manifest(open_dataset(shards_copy))
    with TableWriter(shards_copy / "manifest.parquet", SHARDED) as writer:
        writer.write(rows.slice(0, 60))
    reseal(shards_copy)
    with pytest.raises(ValueError, match=r"has 60 rows; wanted 67 by dataset\.json"):
        open_dataset(shards_copy).split("val")


def test_a_manifest_whose_splits_are_mixed_is_refused(shards_copy: Path, reseal: Reseal) -> None:
    rows = read_manifest(open_dataset(shards_copy))
    with TableWriter(shards_copy / "manifest.parquet", SHARDED) as writer:
        writer.write(rows.slice(1))
        writer.write(rows.slice(0, 1))
    reseal(shards_copy)
    with pytest.raises(ValueError, match=r"counts per shard of train differ.*in21k verify"):
        open_dataset(shards_copy).split("train")


@pytest.mark.parametrize(
    "damage",
    [{"shard_offset": -512}, {"checksum": "no number"}, {"class_index": -1}, {"class_index": 5}, {"num_bytes": -9}],
    ids=str,
)
def test_values_that_no_shard_has_are_refused_by_the_manifests_name(
    shards_copy: Path, reseal: Reseal, damage: dict[str, int | str]
) -> None:
    rows = read_manifest(open_dataset(shards_copy)).to_pylist()
    rows[3] |= damage
    with TableWriter(shards_copy / "manifest.parquet", SHARDED) as writer:
        writer.write(pa.Table.from_pylist(rows, schema=SHARDED))
    reseal(shards_copy)
    with pytest.raises(ValueError, match=r"manifest\.parquet: .*(in21k verify|wanted 0 or more)"):
        open_dataset(shards_copy).split("train")


def test_folders_that_are_no_shard_set_are_refused_with_what_makes_one(
    tmp_path: Path, shards_copy: Path, prepared: PreparedSet
) -> None:
    with pytest.raises(ValueError, match="no such folder; wanted one that `in21k shard` made"):
        open_dataset(tmp_path / "missing")
    with pytest.raises(ValueError, match="is 'in21k-prepared'; wanted 'in21k-shards'"):
        open_dataset(prepared.path)
    with pytest.raises(ValueError, match="is 'in21k-shards'; wanted 'in21k-prepared', which `in21k preprocess` makes"):
        PreparedSet(shards_copy)
    info = json.loads((shards_copy / "dataset.json").read_text())
    (shards_copy / "dataset.json").write_text(json.dumps(info | {"version": 3}))
    with pytest.raises(ValueError, match="version 3 of the format; this in21k reads 1 and 2"):
        open_dataset(shards_copy)
    (shards_copy / "dataset.json").unlink()
    with pytest.raises(ValueError, match=r"holds no dataset\.json"):
        open_dataset(shards_copy)
    (shards_copy / ".work").mkdir()
    with pytest.raises(ValueError, match="unfinished: start the command that makes it again"):
        open_dataset(shards_copy)


def test_a_shard_set_may_be_moved(shards_copy: Path, tmp_path: Path) -> None:
    moved = Path(shutil.move(shards_copy, tmp_path / "moved"))
    reader = SampleReader(open_dataset(moved).split("val"))
    assert reader.image(0)[:2] == b"\xff\xd8"
    reader.close()


def test_few_files_stay_open(tmp_path: Path) -> None:
    files, paths = FileCache(), [tmp_path / f"{number}.bin" for number in range(MAX_OPEN_FILES + 5)]
    for number, path in enumerate(paths):
        path.write_bytes(b"%03d." % number)
    open_before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(2):
        assert [files.read(path, 1, 9) for path in paths] == [(b"%03d." % n)[1:] for n in range(len(paths))]
    assert len(list(Path("/proc/self/fd").iterdir())) <= open_before + MAX_OPEN_FILES
    files.close()
    assert len(list(Path("/proc/self/fd").iterdir())) <= open_before


def test_a_level_deeper_than_there_are_classes_is_refused(
    shard_set: ShardSet, tmp_path: Path, as_version_1: Reseal
) -> None:
    folder = Path(shutil.copytree(shard_set.path, tmp_path / "copy"))
    as_version_1(folder)  # nothing but the table itself tells that it is damaged
    rows = [row._replace(level=2**31 - 1) if row.kept else row for row in shard_set.classes]
    write_class_table(folder / "classes.parquet", rows)
    with pytest.raises(ValueError, match=r"classes\.parquet: its classes or image counts differ from dataset"):
        _ = open_dataset(folder).classes


def test_rows_of_a_shard_that_is_not_listed_are_refused(
    shard_set: ShardSet, tmp_path: Path, as_version_1: Reseal
) -> None:
    folder = Path(shutil.copytree(shard_set.path, tmp_path / "copy"))
    as_version_1(folder)
    info = read_json(folder / "dataset.json")
    del info["shards"]["train"][0]
    write_json(folder / "dataset.json", info)
    with pytest.raises(ValueError, match=r"manifest\.parquet: counts per shard of train differ from dataset\.json"):
        open_dataset(folder).split("train")
