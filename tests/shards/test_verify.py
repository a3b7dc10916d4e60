from __future__ import annotations

import itertools
import json
import random
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.images import jpeg
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.run import prepare
from in21k.preprocess.sources.open import open_raw_tar
from in21k.shards import PreparedSet, SemanticTree, ShardSet
from in21k.shards.class_table import read_class_table, write_class_table
from in21k.shards.dataset import read_manifest
from in21k.shards.files.parallel import Progress
from in21k.shards.index import index_path, read_index, render_index
from in21k.shards.manifest import SHARDED, TableWriter
from in21k.shards.pack import ShardSettings, pack
from in21k.shards.verify import MAX_NAMED, open_any, verify
from in21k.shards.writer import BLOCK_BYTES, padded, tar_header

SHARD = "train/in21k-train-000002.tar"


@pytest.mark.parametrize("deep", [False, True])
def test_whole_data_sets_have_no_problems(prepared: PreparedSet, shard_set: ShardSet, deep: bool) -> None:
    steps: list[Progress] = []
    for dataset, num_archives in ((prepared, 10), (shard_set, 8)):
        verdict = verify(dataset, deep=deep, on_progress=steps.append)
        assert verdict.as_dict() == {"num_archives": num_archives, "num_samples": 67, "problems": []}
        assert (steps[-1].fraction, steps[-1].images) == (1, 67)


def test_workers_find_what_one_finds(shards_copy: Path) -> None:
    cut_shard(shards_copy)
    one, two = (verify(ShardSet(shards_copy), workers=workers) for workers in (1, 2))
    assert one == two
    assert one.problems


def cut_shard(path: Path) -> None:
    data = (path / SHARD).read_bytes()
    (path / SHARD).write_bytes(data[: len(data) * 2 // 3])


def flip_bit(path: Path) -> None:
    first = next(row for row in read_manifest(ShardSet(path)).to_pylist() if row["shard"] == SHARD)
    data = bytearray((path / SHARD).read_bytes())
    data[first["shard_offset"] + first["num_bytes"] // 2] ^= 4
    (path / SHARD).write_bytes(data)


def damage_header(path: Path) -> None:
    """Spoil the header of an image in the middle of a shard."""
    offset = sorted(row["shard_offset"] for row in read_manifest(ShardSet(path)).to_pylist() if row["shard"] == SHARD)[
        4
    ]
    data = bytearray((path / SHARD).read_bytes())
    data[offset - 512 : offset - 500] = b"\xff" * 12
    (path / SHARD).write_bytes(data)


def change_label(path: Path) -> None:
    data = bytearray((path / SHARD).read_bytes())
    data[512:513] = b"4" if data[512:513] != b"4" else b"0"
    (path / SHARD).write_bytes(data)


def swap_shards(path: Path) -> None:
    other = (path / SHARD).with_name("in21k-train-000003.tar")
    first, second = (path / SHARD).read_bytes(), other.read_bytes()
    (path / SHARD).write_bytes(second)
    other.write_bytes(first)


def swap_samples(path: Path) -> None:
    """Let two samples, of any sizes, change places."""
    rows = sorted((row["shard_offset"], row["num_bytes"]) for row in in_shard(path))
    data = (path / SHARD).read_bytes()
    begins = [0, *(at + padded(num_bytes) for at, num_bytes in rows)]
    samples = [data[begin:end] for begin, end in itertools.pairwise(begins)]
    samples[2], samples[5] = samples[5], samples[2]
    (path / SHARD).write_bytes(b"".join(samples) + data[begins[-1] :])


def swap_indexes(path: Path) -> None:
    index, other = index_path(path / SHARD), path / "train" / "in21k-train-000003.idx"
    first, second = index.read_text(), other.read_text()
    index.write_text(second)
    other.write_text(first)


def swap_labels(path: Path) -> None:
    """Let two samples of different classes change labels: their keys and images stay."""
    rows = in_shard(path)
    first = rows[0]
    second = next(row for row in rows if row["class_index"] != first["class_index"])
    data = bytearray((path / SHARD).read_bytes())
    for one, other in ((first, second), (second, first)):
        at = one["shard_offset"] - 2 * BLOCK_BYTES
        data[at : at + 1] = b"%d" % other["class_index"]
    (path / SHARD).write_bytes(data)


def in_shard(path: Path) -> list[dict]:
    return [row for row in read_manifest(ShardSet(path)).to_pylist() if row["shard"] == SHARD]


def resize(path: Path, by: int) -> None:
    """Cut so many bytes off the shard's end, or put zeros there."""
    data = (path / SHARD).read_bytes()
    (path / SHARD).write_bytes(data[:by] if by < 0 else data + bytes(by))


def mix_splits(path: Path) -> None:
    rows = read_manifest(ShardSet(path))
    with TableWriter(path / "manifest.parquet", SHARDED) as writer:
        writer.write(rows.slice(1))
        writer.write(rows.slice(0, 1))


def append_member(path: Path) -> None:
    """Put another image between the last one and the tar's end."""
    data = (path / SHARD).read_bytes().removesuffix(bytes(1024))
    (path / SHARD).write_bytes(data + tar_header("x.jpg", 3) + b"abc" + bytes(509) + bytes(1024))


def index_entry(path: Path, component: int, **changes: int | str) -> None:
    index = index_path(path / SHARD)
    samples = read_index(index)
    samples[3][component] = samples[3][component]._replace(**changes)
    index.write_text(render_index(samples))


def edit_json(path: Path, edit: Callable[[dict], None]) -> None:
    content = json.loads(path.read_text())
    edit(content)
    path.write_text(json.dumps(content))


def count_one_more(path: Path) -> None:
    edit_json(path / "dataset.json", lambda info: info["counts"]["splits"]["train"].update(num_samples=53))


def count_shard_wrong(path: Path) -> None:
    edit_json(path / "dataset.json", lambda info: info["shards"]["train"][1].update(num_samples=3))


def rename_class(path: Path) -> None:
    edit_json(path / "tree.json", lambda tree: tree["wnids"].__setitem__(0, "n99999999"))


def hang_elsewhere(path: Path) -> None:
    tree = SemanticTree.load(path / "tree.json")
    SemanticTree.from_parents(tree.wnids, tree.names, [-1] * len(tree)).save(path / "tree.json")


def miscount_class(path: Path) -> None:
    rows = read_class_table(path / "classes.parquet")
    write_class_table(path / "classes.parquet", [row._replace(num_train=row.num_train + 1) for row in rows])


def repeat_key(path: Path) -> None:
    manifest = pq.read_table(path / "manifest.parquet")
    rows = manifest.to_pylist()
    rows[1]["key"] = rows[0]["key"]
    with TableWriter(path / "manifest.parquet", SHARDED) as writer:
        writer.write(manifest.from_pylist(rows, schema=SHARDED))


DAMAGES = {
    "missing shard": (lambda path: (path / SHARD).unlink(), f"{SHARD}: missing; 9 samples lie in it"),
    "cut shard": (cut_shard, r"not there, at byte \d+ \(is the archive cut off"),
    "empty shard": (lambda path: (path / SHARD).write_bytes(b""), "not readable as a tar|not there"),
    "damaged header": (damage_header, f"{SHARD}: n.*: not there, at byte"),
    "cut tail": (lambda path: resize(path, -1), rf"{SHARD}: has \d+ bytes; wanted \d+ \(is its end cut off\?\)"),
    "no end": (lambda path: resize(path, -1024), rf"{SHARD}: has \d+ bytes; wanted \d+ \(is its end cut off\?\)"),
    "more after the end": (lambda path: resize(path, 512), r"has \d+ bytes; wanted \d+ \(more bytes follow its end\)"),
    "swapped samples": (swap_samples, rf"{SHARD}: n\d+_\d+\.jpg at byte \d+: the manifest has n\d+_\d+ there"),
    "swapped labels": (swap_labels, rf"{SHARD}: n\d+_\d+\.cls: does not hold the manifest's class index"),
    "swapped indexes": (swap_indexes, "names other samples"),
    "splits mixed": (mix_splits, r"manifest\.parquet: its rows are not sorted by split"),
    "changed label": (change_label, r"\.cls: does not hold the manifest's class index"),
    "swapped shards": (swap_shards, "the manifest has"),
    "appended member": (append_member, r"x\.jpg at byte \d+: the manifest has nothing there"),
    "missing index": (lambda path: index_path(path / SHARD).unlink(), r"its index in21k-train-000002\.idx is missing"),
    "garbled index": (lambda path: index_path(path / SHARD).write_text("v1.2 1\njpg x 1 a\n"), "line 2"),
    "cut index line": (lambda path: index_path(path / SHARD).write_text("v1.2 1\njpg 5\n"), "line 2"),
    "index: image elsewhere": (lambda path: index_entry(path, 1, offset=512), "names other samples"),
    "index: label elsewhere": (lambda path: index_entry(path, 0, offset=512), r"\.idx"),
    "stray file": (lambda path: (path / "train" / "more.tar").touch(), r"train/more\.tar: is not in the manifest"),
    "samples miscounted": (count_one_more, r"dataset\.json says .*53"),
    "shard miscounted": (count_shard_wrong, "in21k-train-000001"),
    "no _info.json": (lambda path: (path / "_info.json").unlink(), r"_info\.json"),
    "other class": (rename_class, r"kept classes differ from tree\.json"),
    "other tree": (hang_elsewhere, r"levels differ from tree\.json"),
    "class miscounted": (miscount_class, r"n01861778: manifest\.parquet has 8 train images.*classes\.parquet 9"),
    "key twice": (repeat_key, "a key occurs twice"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_a_shard_set_is_found_without_reading_images(
    shards_copy: Path, reseal: Callable[[Path], None], damage: str
) -> None:
    """Whatever dataset.json records."""
    spoil, wanted = DAMAGES[damage]
    spoil(shards_copy)
    reseal(shards_copy)
    problems = verify(ShardSet(shards_copy)).problems
    assert any(re.search(wanted, problem) for problem in problems), problems


def test_a_flipped_bit_is_found_by_a_deep_look_alone(shards_copy: Path) -> None:
    flip_bit(shards_copy)
    assert verify(ShardSet(shards_copy)).problems == []
    (problem,) = verify(ShardSet(shards_copy), deep=True).problems
    assert re.match(rf"{SHARD}: n\d+_\d+: its bytes have changed", problem)


def test_two_images_of_one_size_that_changed_places_are_found_by_a_deep_look(
    tmp_path: Path, prepared: PreparedSet
) -> None:
    shards = pack(prepared, tmp_path / "out", ShardSettings(shard_samples=9))
    sizes: dict[tuple[str, int], list[dict]] = {}
    for row in read_manifest(shards).to_pylist():
        sizes.setdefault((row["shard"], row["num_bytes"]), []).append(row)
    pair = next((rows[:2] for rows in sizes.values() if len(rows) > 1), None)
    if pair is None:
        pytest.skip("no two images of a shard have one size")
    shard = shards.path / pair[0]["shard"]
    data = bytearray(shard.read_bytes())
    images = [bytes(data[row["shard_offset"] :][: row["num_bytes"]]) for row in pair]
    for row, image in zip(pair, reversed(images), strict=True):
        data[row["shard_offset"] : row["shard_offset"] + len(image)] = image
    shard.write_bytes(data)
    assert verify(shards).problems == []
    problems = verify(shards, deep=True).problems
    assert all(any(f"{row['key']}: its bytes have changed" in problem for problem in problems) for row in pair)


@pytest.mark.parametrize("kind", [".tar", ".idx"])
def test_a_bit_flipped_anywhere_is_found_by_a_deep_look(shards_copy: Path, kind: str) -> None:
    """In an image, a label, a header, padding, the end, or the index."""
    path = (shards_copy / SHARD).with_suffix(kind)
    whole = path.read_bytes()
    draws = random.Random(0)
    shards = ShardSet(shards_copy)
    for place in [0, 130, 151, 155, 300, 513, len(whole) - 1, *(draws.randrange(len(whole)) for _ in range(40))]:
        if place < len(whole):
            data = bytearray(whole)
            data[place] ^= 1 << draws.randrange(8)
            path.write_bytes(data)
            problems = verify(shards, deep=True).problems
            assert problems, place
            assert all(Path(SHARD).stem in problem for problem in problems)


def test_archives_are_looked_up_in_the_manifest_a_few_at_a_time(
    shards_copy: Path, prepared: PreparedSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    cut_shard(shards_copy)
    at_once = verify(ShardSet(shards_copy))
    monkeypatch.setattr("in21k.shards.verify.ROWS_AT_ONCE", 20)
    assert verify(ShardSet(shards_copy)) == at_once
    assert verify(prepared, deep=True).problems == []


def test_of_a_great_many_problems_the_first_are_named_and_the_rest_counted(
    tmp_path: Path, prepared: PreparedSet
) -> None:
    shards = pack(prepared, tmp_path / "out", ShardSettings())
    (shards.path / shards.shard_names("train")[0]).write_bytes(bytes(1024))
    problems = verify(shards).problems
    assert len(problems) == MAX_NAMED + 1
    assert any("and 33 more problems like these" in problem for problem in problems)


def test_damage_to_a_prepared_set_is_found(prepared_copy: Path, reseal: Callable[[Path], None]) -> None:
    archive = prepared_copy / "val" / "n01503061.tar"
    data = archive.read_bytes()
    archive.write_bytes(data[:1024])
    (prepared_copy / "train" / "n01858441.tar").unlink()
    edit_json(prepared_copy / "dataset.json", lambda info: info["counts"].update(num_rejects=1))
    reseal(prepared_copy)
    problems = "\n".join(verify(PreparedSet(prepared_copy)).problems)
    assert "val/n01503061.tar: n01503061_0: not there" in problems
    assert "train/n01858441.tar: missing; 11 samples lie in it" in problems
    assert "rejects.parquet: 0 rows; dataset.json says 1" in problems


@pytest.mark.parametrize("is_cut", [True, False])
def test_an_orientation_in_a_stored_image_is_found_and_preprocessing_leaves_none(
    tmp_path: Path,
    draw: Callable[..., Image.Image],
    encode: Callable[..., bytes],
    write_archive: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    is_cut: bool,
) -> None:
    xmp = b'http://ns.adobe.com/xap/1.0/\0<rdf:Description tiff:Orientation="%d"/>'
    exif = Image.Exif()
    exif[0x0112] = 1
    images = {"in_exif.jpg": encode(draw(), exif=exif)}
    for orientation in (1, 6):
        segment = xmp % orientation
        start = b"\xff\xd8\xff\xe1" + (len(segment) + 2).to_bytes(2) + segment
        images[f"xmp_{orientation}.jpg"] = start + encode(draw())[2:]
        images[f"xmp_{orientation}_exif_1.jpg"] = start + encode(draw(), exif=exif)[2:]
    if not is_cut:
        monkeypatch.setattr(jpeg, "without_metadata", lambda data: (data, []))
    prepared = prepare(
        open_raw_tar(write_archive(tmp_path / "raw.tar", {"n01503061": images})),
        tmp_path / "out",
        select=SelectSettings(rare_threshold=0, val_per_class=0),
        image=ImageSettings(resize="none"),
    )
    problems = verify(prepared, deep=True).problems
    wanted = [] if is_cut else ["in_exif", "xmp_1", "xmp_1_exif_1", "xmp_6_exif_1"]  # xmp_6 alone is turned
    assert problems == [
        f"train/n01503061.tar: n01503061_{name}: holds an orientation, in EXIF or XMP" for name in wanted
    ]


def test_a_folder_is_opened_as_what_it_is(prepared: PreparedSet, shard_set: ShardSet, tmp_path: Path) -> None:
    assert isinstance(open_any(prepared.path), PreparedSet)
    assert isinstance(open_any(shard_set.path), ShardSet)
    with pytest.raises(ValueError, match="no such folder"):
        open_any(tmp_path / "missing")
    with pytest.raises(ValueError, match="neither a finished prepared data set nor a shard set"):
        open_any(tmp_path)
    (tmp_path / "dataset.json").write_text('{"format": "other"}')
    with pytest.raises(ValueError, match="'other'"):
        open_any(tmp_path)
