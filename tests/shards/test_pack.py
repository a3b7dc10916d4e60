from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.run import prepare
from in21k.preprocess.sources.open import open_raw_tar
from in21k.shards import PreparedSet, ShardSet
from in21k.shards import manifest as manifest_module
from in21k.shards import pack as pack_module
from in21k.shards.dataset import read_manifest
from in21k.shards.files.atomic import sealed, write_json
from in21k.shards.files.parallel import Progress
from in21k.shards.files.record import record_files
from in21k.shards.index import index_path
from in21k.shards.manifest import STORED, TableWriter
from in21k.shards.pack import ShardSettings, pack
from in21k.shards.sample import checksum
from in21k.shards.verify import verify
from in21k.shards.writer import TarWriter

FilesOf = Callable[[Path], dict[str, bytes]]
SETTINGS = ShardSettings(shard_samples=9)  # as `shard_set` was made


def samples_of(shard: Path) -> list[tuple[str, int, bytes]]:
    """Read a shard with tarfile: (key, class index, image) per sample, which lie side by side."""
    with tarfile.open(shard, "r:") as archive:
        members = [(member.name, archive.extractfile(member).read()) for member in archive]
    samples: list[tuple[str, int, bytes]] = []
    for (label_name, label), (image_name, image) in zip(members[::2], members[1::2], strict=True):
        key = label_name.removesuffix(".cls")
        assert image_name == f"{key}.jpg"
        samples.append((key, int(label), image))
    return samples


def all_samples(shards: ShardSet, split: str) -> list[tuple[str, int, bytes]]:
    return [sample for name in shards.shard_names(split) for sample in samples_of(shards.path / name)]


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_prepared_image_lies_in_one_shard_where_the_manifest_says(
    prepared: PreparedSet, shard_set: ShardSet, split: str
) -> None:
    stored: dict[str, tuple[int, bytes]] = {}
    for archive in sorted((prepared.path / split).iterdir()):
        with tarfile.open(archive, "r:") as members:
            for member in members:
                index = prepared.tree.wnids.index(archive.stem)
                stored[member.name.removesuffix(".jpg")] = (index, members.extractfile(member).read())
    packed = all_samples(shard_set, split)
    assert len(packed) == len(stored)
    assert {key: (index, image) for key, index, image in packed} == stored
    for row in read_manifest(shard_set).to_pylist():
        if row["split"] == split:
            data = (shard_set.path / row["shard"]).read_bytes()
            assert data[row["shard_offset"] :][: row["num_bytes"]] == stored[row["key"]][1]


def test_the_manifest_keeps_its_rows_and_adds_where_they_lie(prepared: PreparedSet, shard_set: ShardSet) -> None:
    before, after = read_manifest(prepared), read_manifest(shard_set)
    assert after.column_names == [*before.column_names, "shard", "shard_offset"]
    assert after.select(before.column_names).equals(before)


def test_samples_are_shuffled_over_all_shards(prepared: PreparedSet, shard_set: ShardSet) -> None:
    keys = [key for key, *_ in all_samples(shard_set, "train")]
    assert keys != sorted(keys)
    for name in shard_set.shard_names("train"):
        assert len({index for _, index, _ in samples_of(shard_set.path / name)}) > 1


def test_another_seed_gives_another_order(tmp_path: Path, prepared: PreparedSet, shard_set: ShardSet) -> None:
    other = pack(prepared, tmp_path / "out", ShardSettings(shard_samples=9, seed=1))
    one, two = all_samples(shard_set, "train"), all_samples(other, "train")
    assert one != two
    assert sorted(one) == sorted(two)


def test_the_folder_holds_what_it_should_and_names_no_place(shard_set: ShardSet, files_of: FilesOf) -> None:
    files = files_of(shard_set.path)
    shards = [name for split in ("train", "val") for name in shard_set.shard_names(split)]
    tables = {"dataset.json", "classes.parquet", "tree.json", "manifest.parquet", "_info.json", "README.md"}
    assert files.keys() == {*tables, *shards, *(str(index_path(Path(name))) for name in shards)}
    assert shards[0] == "train/in21k-train-000000.tar"
    for name in ("dataset.json", "_info.json", "tree.json", "README.md", "manifest.parquet", "classes.parquet"):
        assert str(shard_set.path.parent).encode() not in files[name]
    info = json.loads(files["dataset.json"])
    assert (info["format"], info["version"]) == ("in21k-shards", 2)
    assert info["settings"] == {"shard_samples": 9, "shard_bytes": None, "seed": 0}
    assert {split: counts["num_samples"] for split, counts in info["counts"]["splits"].items()} == {
        "train": 52,
        "val": 15,
    }


def test_shards_differ_by_one_sample_at_most(shard_set: ShardSet) -> None:
    for split, count in (("train", 6), ("val", 2)):
        sizes = [len(samples_of(shard_set.path / name)) for name in shard_set.shard_names(split)]
        assert len(sizes) == count
        assert max(sizes) <= 9
        assert max(sizes) - min(sizes) <= 1
        assert [shard["num_samples"] for shard in shard_set.info["shards"][split]] == sizes


@given(st.integers(1, 10**6), st.integers(1, 10**9), st.integers(1, 10**5), st.booleans())
def test_there_are_as_many_shards_as_the_limit_asks_for(
    num_samples: int, num_bytes: int, limit: int, by_bytes: bool
) -> None:
    settings = ShardSettings(
        **({"shard_samples": None, "shard_bytes": limit} if by_bytes else {"shard_samples": limit})
    )
    count = settings.num_shards(num_samples, num_bytes)
    assert 1 <= count <= num_samples
    if not by_bytes:
        assert (count - 1) * limit < num_samples <= count * limit


def test_shards_can_be_cut_by_bytes(tmp_path: Path, prepared: PreparedSet) -> None:
    shards = pack(prepared, tmp_path / "out", ShardSettings(shard_samples=None, shard_bytes=8_000))
    listed = shards.info["shards"]["train"]
    sizes = [shard["num_bytes"] for shard in listed]
    largest = max(row["num_bytes"] for row in read_manifest(prepared).to_pylist())
    assert len(sizes) == -(-sum(sizes) // 8_000) > 2
    assert max(sizes) - min(sizes) < 2 * largest
    for shard in listed:
        samples = samples_of(shards.path / shard["name"])
        assert (len(samples), sum(len(image) for *_, image in samples)) == (shard["num_samples"], shard["num_bytes"])


@given(st.lists(st.integers(1, 2**31 - 1), min_size=1, max_size=60), st.integers(1, 2**33))
def test_shards_cut_by_bytes_differ_by_one_image_at_most(num_bytes: list[int], shard_bytes: int) -> None:
    ends = ShardSettings(shard_samples=None, shard_bytes=shard_bytes).cut(np.array(num_bytes, np.int32))
    assert ends == sorted(set(ends))
    assert ends[-1] == len(num_bytes)
    share = sum(num_bytes) / min(len(num_bytes), -(-sum(num_bytes) // shard_bytes))
    for start, end in zip([0, *ends], ends, strict=False):
        assert start < end
        assert sum(num_bytes[start : end - 1]) < share + 1  # without its last image none exceeds its share


@given(st.integers(1, 300), st.integers(1, 40))
def test_shards_cut_by_samples_are_those_of_array_split(num_samples: int, shard_samples: int) -> None:
    ends = ShardSettings(shard_samples=shard_samples).cut(np.ones(num_samples, np.int32))
    parts = np.array_split(np.arange(num_samples), -(-num_samples // shard_samples))
    assert ends == np.cumsum([len(part) for part in parts]).tolist()


def test_more_shards_than_their_numbers_have_digits_for_are_refused() -> None:
    with pytest.raises(ValueError, match="shard_bytes 3 would make 1,000,001 shards; wanted 1,000,000 at most"):
        ShardSettings(shard_samples=None, shard_bytes=3).cut(np.full(1_000_001, 3, np.int32))


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"shard_samples": 0}, "shard_samples is 0; wanted 1 or more"),
        ({"shard_samples": None, "shard_bytes": 0}, "shard_bytes is 0; wanted 1 or more"),
        ({"shard_samples": 5, "shard_bytes": 5}, "not both"),
        ({"shard_samples": None}, "give either"),
        ({"seed": -1}, "seed is -1; wanted 0 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(arguments: dict[str, Any], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        ShardSettings(**arguments)


def test_two_workers_give_the_bytes_of_one(
    tmp_path: Path, prepared: PreparedSet, shard_set: ShardSet, files_of: FilesOf
) -> None:
    steps: list[Progress] = []
    two = pack(prepared, tmp_path / "out", SETTINGS, workers=2, on_progress=steps.append)
    assert files_of(two.path) == files_of(shard_set.path)
    assert len(steps) == 8
    assert (steps[-1].fraction, steps[-1].images) == (1, 67)


def test_a_finished_output_stays_as_it_is(prepared: PreparedSet, shards_copy: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in shards_copy.rglob("*")}
    again = pack(prepared, shards_copy, SETTINGS, on_progress=lambda _: pytest.fail("it worked"))
    assert again.num_samples == {"train": 52, "val": 15}
    assert {path: path.stat().st_mtime_ns for path in shards_copy.rglob("*")} == before


def test_other_settings_are_refused_by_name_unless_overwriting(
    tmp_path: Path, prepared: PreparedSet, shards_copy: Path, files_of: FilesOf
) -> None:
    before = files_of(shards_copy)
    other = ShardSettings(shard_samples=20, seed=3)
    with pytest.raises(ValueError, match=r"seed 0 -> 3; shard_samples 9 -> 20"):
        pack(prepared, shards_copy, other)
    assert files_of(shards_copy) == before
    overwritten = pack(prepared, shards_copy, other, overwrite=True)
    assert files_of(overwritten.path) == files_of(pack(prepared, tmp_path / "fresh", other).path)


def test_another_prepared_set_is_refused(
    tmp_path: Path, raw_archive: Path, shards_copy: Path, select: SelectSettings
) -> None:
    other = prepare(open_raw_tar(raw_archive), tmp_path / "other", select=select, image=ImageSettings(size=24))
    with pytest.raises(ValueError, match="source manifest"):
        pack(other, shards_copy, SETTINGS)


@pytest.mark.parametrize("done", [0, 1, 5])
def test_work_that_was_cut_short_goes_on_to_equal_bytes(
    tmp_path: Path,
    prepared: PreparedSet,
    shard_set: ShardSet,
    files_of: FilesOf,
    monkeypatch: pytest.MonkeyPatch,
    done: int,
) -> None:
    def cut_short(function: Callable[[Any], Any], tasks: Iterable[Any], workers: int) -> Iterator[Any]:
        for number, task in enumerate(tasks):
            if number == done:
                raise KeyboardInterrupt
            yield function(task)

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(pack_module, "run_tasks", cut_short)
        with pytest.raises(KeyboardInterrupt):
            pack(prepared, out, SETTINGS)
    with pytest.raises(ValueError, match="unfinished: start the command that makes it again"):
        ShardSet(out)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*/*.tar")}
    assert len(kept) == done
    pack(prepared, out, SETTINGS)
    assert files_of(out) == files_of(shard_set.path)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_prepared_images_that_changed_are_refused_by_name(tmp_path: Path, prepared_copy: Path) -> None:
    row = read_manifest(PreparedSet(prepared_copy)).to_pylist()[4]
    archive = prepared_copy / row["archive"]
    data = bytearray(archive.read_bytes())
    data[row["offset"] + 50] ^= 1
    archive.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(str(archive)) + f": image {row['key']} has other bytes"):
        pack(PreparedSet(prepared_copy), tmp_path / "out", SETTINGS)


def test_a_prepared_header_that_changed_is_refused_by_name(tmp_path: Path, prepared_copy: Path) -> None:
    """Keys are read from the headers."""
    row = read_manifest(PreparedSet(prepared_copy)).to_pylist()[4]
    archive = prepared_copy / row["archive"]
    data = bytearray(archive.read_bytes())
    data[row["offset"] - 512 + len(row["key"]) - 1] ^= 1
    archive.write_bytes(data)
    wanted = f"{re.escape(str(archive))}: the header before byte {row['offset']} has other bytes than were written"
    with pytest.raises(ValueError, match=wanted):
        pack(PreparedSet(prepared_copy), tmp_path / "out", SETTINGS)


def test_a_manifest_of_another_length_than_dataset_json_says_is_refused(
    tmp_path: Path, prepared_copy: Path, reseal: Callable[[Path], None]
) -> None:
    rows = read_manifest(PreparedSet(prepared_copy))
    with TableWriter(prepared_copy / "manifest.parquet", STORED) as writer:
        writer.write(rows.slice(1))
    reseal(prepared_copy)
    with pytest.raises(ValueError, match=r"has 66 rows where dataset\.json says 67; run `in21k verify`"):
        pack(PreparedSet(prepared_copy), tmp_path / "out", SETTINGS)
    assert not (tmp_path / "out").exists()


def test_a_manifest_of_several_row_groups_gives_the_same_shards(
    tmp_path: Path,
    prepared_copy: Path,
    shard_set: ShardSet,
    files_of: FilesOf,
    reseal: Callable[[Path], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Row groups of 7 cut through classes and splits."""
    monkeypatch.setattr(manifest_module, "ROW_GROUP_ROWS", 7)
    rows = read_manifest(PreparedSet(prepared_copy))
    with TableWriter(prepared_copy / "manifest.parquet", STORED) as writer:
        writer.write(rows)
    reseal(prepared_copy)
    shards = pack(PreparedSet(prepared_copy), tmp_path / "out", SETTINGS)
    made, wanted = files_of(shards.path), files_of(shard_set.path)
    assert {name: made[name] for name in made if ".tar" in name or ".idx" in name} == {
        name: wanted[name] for name in wanted if ".tar" in name or ".idx" in name
    }
    assert read_manifest(shards).equals(read_manifest(shard_set))
    assert verify(shards, deep=True).problems == []
    for split in ("train", "val"):
        one, many = shard_set.split(split), shards.split(split)
        for name in ("offsets", "num_bytes", "labels", "checksums", "manifest_rows", "shard_sizes"):
            assert getattr(one, name).tolist() == getattr(many, name).tolist()


def of_one_class(prepared: PreparedSet, path: Path, count: int, image: bytes) -> Path:
    """Write a prepared data set of so many images, all alike, in one class; they need not be JPEGs."""
    shutil.copytree(prepared.path, path)
    first = read_manifest(prepared).slice(0, 1)
    keys = [f"{first['wnid'][0]}_{number}" for number in range(count)]
    with TarWriter(path / first["archive"][0].as_py()) as tar:
        offsets = [tar.add(f"{key}.jpg", image) for key in keys]
    rows = first.take(pa.array(np.zeros(count, np.int64)))
    new = {"key": keys, "offset": offsets, "num_bytes": [len(image)] * count, "checksum": [checksum(image)] * count}
    for name, values in new.items():
        rows = rows.set_column(rows.column_names.index(name), name, pa.array(values))
    with TableWriter(path / "manifest.parquet", STORED) as writer:
        writer.write(rows)
    info = json.loads((path / "dataset.json").read_text())
    info["counts"]["splits"] = {"train": {"num_samples": count}}
    info["files"] = record_files(path, PreparedSet.recorded(info))
    write_json(path / "dataset.json", sealed(info))
    return path


def peak_mb_of_packing(prepared: Path, shard_samples: int) -> float:
    """Pack and open the shards in a fresh process, with one worker; returns the most memory it had."""
    script = f"""
from pathlib import Path
from in21k.shards.dataset import PreparedSet
from in21k.shards.pack import ShardSettings, pack
settings = ShardSettings(shard_samples={shard_samples})
shards = pack(PreparedSet({str(prepared)!r}), Path({f"{prepared}-shards"!r}), settings)
assert len(shards.split("train")) == shards.num_samples["train"]
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:")))
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, check=True)
    return int(done.stdout) * 1024 / 1e6


def test_memory_holds_the_images_of_a_shard_not_of_the_data_set(tmp_path: Path, prepared: PreparedSet) -> None:
    """160 MB of images in shards of 2 MB."""
    few = of_one_class(prepared, tmp_path / "few", 10, bytes(200_000))
    many = of_one_class(prepared, tmp_path / "many", 800, bytes(200_000))
    assert peak_mb_of_packing(many, 10) - peak_mb_of_packing(few, 10) < 60


@pytest.mark.slow
def test_a_million_images_are_packed_in_350_mb(tmp_path: Path, prepared: PreparedSet) -> None:
    """The class tar alone has 1 GB; 80 MB are the program itself, and 30 those of 30 bytes an image."""
    assert peak_mb_of_packing(of_one_class(prepared, tmp_path / "many", 1_000_000, b"tiny"), 1000) < 350


def can_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("room", ["20k", "90k", "140k"])
def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(
    tmp_path: Path, prepared: PreparedSet, shard_set: ShardSet, files_of: FilesOf, room: str
) -> None:
    if not can_mount():
        pytest.skip("a small file system cannot be mounted here")
    small = tmp_path / "small"
    small.mkdir()
    in21k = f"{sys.executable} -c 'from in21k.cli.main import main; main()'"
    shard = f"{in21k} shard {prepared.path} {small}/out --shard-samples 9 --workers 2"
    script = f"""
        mount -t tmpfs -o size={room} tmpfs {small}
        {shard} 2> {tmp_path}/said; echo $? > {tmp_path}/code; ls {small}/out/train > {tmp_path}/left
        mount -o remount,size=1g {small}
        {shard} && cp -r {small}/out {tmp_path}/resumed
    """
    subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    lines = (tmp_path / "said").read_text().splitlines()
    assert (tmp_path / "code").read_text().strip() == "2", lines
    assert re.search("in21k: .*No space left on device", lines[-1]), lines
    assert ".tmp" not in (tmp_path / "left").read_text()
    assert files_of(tmp_path / "resumed") == files_of(shard_set.path)


def test_without_validation_there_is_only_a_training_split(
    tmp_path: Path, raw_archive: Path, image_settings: ImageSettings
) -> None:
    select = SelectSettings(rare_threshold=6, val_per_class=0)
    prepared = prepare(open_raw_tar(raw_archive), tmp_path / "prepared", select=select, image=image_settings)
    assert not (prepared.path / "val").exists()
    shards = pack(prepared, tmp_path / "out", SETTINGS)
    assert shards.num_samples == {"train": 67}
    assert not (shards.path / "val").exists()
    assert json.loads((shards.path / "_info.json").read_text())["splits"].keys() == {"train"}


def test_the_card_tells_counts_settings_and_terms(shard_set: ShardSet) -> None:
    card = (shard_set.path / "README.md").read_text()
    for part in ("| train | 52 | 6 |", "| val | 15 | 2 |", "5 classes of `raw.tar`", "- size: 32", "- resize: squish"):
        assert part in card
    for part in ("https://image-net.org/download", "WordNet 3.0", "path: train/*.tar"):
        assert part in card


# Foreign readers take the shards as they are.


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_webdataset_library_reads_the_shards(shard_set: ShardSet, split: str) -> None:
    webdataset = pytest.importorskip("webdataset")
    paths = [str(shard_set.path / name) for name in shard_set.shard_names(split)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        dataset = webdataset.WebDataset(paths, shardshuffle=False, empty_check=False)
        items = [(sample["__key__"], int(sample["cls"]), sample["jpg"]) for sample in dataset]
        decoded = list(webdataset.WebDataset(paths, shardshuffle=False).decode("pil").to_tuple("jpg", "cls"))
    assert items == all_samples(shard_set, split)
    assert [label for _, label in decoded] == [index for _, index, _ in items]
    assert all(image.size == (32, 32) for image, _ in decoded)


@pytest.mark.parametrize("split", ["train", "val"])
def test_dalis_own_reader_takes_the_shards_with_our_index(shard_set: ShardSet, split: str) -> None:
    pytest.importorskip("nvidia.dali", reason="DALI is not installed")
    from nvidia.dali import fn
    from nvidia.dali.pipeline import Pipeline

    paths = [str(shard_set.path / name) for name in shard_set.shard_names(split)]
    pipeline = Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipeline:
        pipeline.set_outputs(
            *fn.readers.webdataset(
                paths=paths, index_paths=[path.replace(".tar", ".idx") for path in paths], ext=["cls", "jpg"]
            )
        )
    pipeline.build()
    wanted = all_samples(shard_set, split)
    for _, index, image in wanted:
        label, jpeg = (np.asarray(output.at(0)).tobytes() for output in pipeline.run())
        assert (int(label), jpeg) == (index, image)


@pytest.mark.parametrize("split", ["train", "val"])
def test_every_index_is_the_one_that_dalis_own_tool_writes(tmp_path: Path, shard_set: ShardSet, split: str) -> None:
    wds2idx = pytest.importorskip("wds2idx", reason="DALI is not installed")
    for name in shard_set.shard_names(split):
        shard = shard_set.path / name
        with wds2idx.IndexCreator(str(shard), str(tmp_path / "dali.idx"), verbose=False) as creator:
            creator.create_index()
        assert index_path(shard).read_bytes() == (tmp_path / "dali.idx").read_bytes()


@pytest.mark.parametrize("split", ["train", "val"])
def test_timms_reader_takes_the_shards(shard_set: ShardSet, split: str) -> None:
    pytest.importorskip("webdataset")
    from timm.data import create_dataset

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        dataset = create_dataset(
            "wds/", root=str(shard_set.path), split=split, is_training=split == "train", batch_size=1, num_samples=None
        )
        assert len(dataset) == shard_set.num_samples[split]
        actual = list(dataset)
    labels = [label for _, label in actual]
    assert all(isinstance(image, Image.Image) and image.size == (32, 32) for image, _ in actual)
    assert sorted(labels) == sorted(index for _, index, _ in all_samples(shard_set, split))


def test_hugging_face_datasets_takes_the_shards(tmp_path: Path, shard_set: ShardSet, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the library's own
        datasets = pytest.importorskip("datasets", reason="Hugging Face datasets is not installed")
        files = {
            split: [str(shard_set.path / name) for name in shard_set.shard_names(split)] for split in ("train", "val")
        }
        loaded = datasets.load_dataset("webdataset", data_files=files, cache_dir=str(tmp_path))
        raw = loaded.cast_column("jpg", datasets.Image(decode=False))
        for split in files:
            wanted = all_samples(shard_set, split)
            assert [(row["__key__"], row["cls"], row["jpg"]["bytes"]) for row in raw[split]] == wanted
            assert all(row["jpg"].size == (32, 32) for row in loaded[split])


def test_a_copy_of_the_folder_is_a_shard_set_too(tmp_path: Path, shard_set: ShardSet) -> None:
    copied = ShardSet(shutil.copytree(shard_set.path, tmp_path / "copied"))
    assert all_samples(copied, "val") == all_samples(shard_set, "val")
