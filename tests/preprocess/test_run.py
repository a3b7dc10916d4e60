from __future__ import annotations

import gzip
import json
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from in21k.preprocess import run, tables
from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.run import prepare
from in21k.preprocess.sources.open import open_raw_tar
from in21k.shards import PreparedSet
from in21k.shards.dataset import read_manifest
from in21k.shards.files.parallel import Progress, run_tasks
from in21k.shards.manifest import STORED
from in21k.shards.verify import verify

FilesOf = Callable[[Path], dict[str, bytes]]
Draw = Callable[..., Image.Image]
Encode = Callable[..., bytes]
WriteArchive = Callable[..., Path]

ALL = SelectSettings(rare_threshold=0, val_per_class=0)
SMALL = ImageSettings(size=16)


def rejects_of(prepared: PreparedSet) -> list[dict[str, Any]]:
    return pq.read_table(prepared.path / "rejects.parquet").to_pylist()


def test_classes_over_the_threshold_are_kept_and_numbered_in_wnid_order(prepared: PreparedSet) -> None:
    items = [
        (row.wnid, row.name, row.num_raw, row.num_train, row.num_val, row.kept, row.class_index, row.level)
        for row in prepared.classes
    ]
    assert items == [
        ("n00015388", "animal", 13, 10, 3, True, 0, 0),
        ("n01503061", "bird", 17, 14, 3, True, 1, 1),
        ("n01858441", "swan", 14, 11, 3, True, 2, 2),
        ("n01861778", "mammal", 11, 8, 3, True, 3, 1),
        ("n02051845", "pelican", 12, 9, 3, True, 4, 2),
        ("n04146614", "school bus", 1, 0, 0, False, None, None),
        ("n09450163", "sun", 6, 0, 0, False, None, None),
    ]
    assert prepared.tree.wnids == tuple(row[0] for row in items[:5])
    assert prepared.tree.parents == (-1, 0, 1, 0, 1)
    assert all(row.definition for row in prepared.classes)


def test_the_first_images_by_byte_order_of_their_names_are_for_validation(prepared: PreparedSet) -> None:
    for wnid, count in (("n00015388", 13), ("n01503061", 17)):
        names = sorted(f"{wnid}_{number * 7}.JPEG" for number in range(count))
        rows = [row for row in read_manifest(prepared).to_pylist() if row["wnid"] == wnid]
        assert sorted(row["source_name"] for row in rows if row["split"] == "val") == names[:3]
        assert sorted(row["source_name"] for row in rows if row["split"] == "train") == names[3:]


def test_the_manifest_says_where_each_image_lies_in_sorted_rows(prepared: PreparedSet) -> None:
    table = read_manifest(prepared)
    assert table.schema.equals(STORED)
    rows = table.to_pylist()
    order = [(row["split"], row["wnid"], row["key"]) for row in rows]
    assert order == sorted(set(order))
    assert len({row["key"] for row in rows}) == len(rows) == 67
    for row in rows:
        assert row["archive"] == f"{row['split']}/{row['wnid']}.tar"
        data = (prepared.path / row["archive"]).read_bytes()[row["offset"] :][: row["num_bytes"]]
        assert data[:2] + data[-2:] == b"\xff\xd8\xff\xd9"
        assert (row["width"], row["height"], row["source_format"], row["changes"]) == (32, 32, "JPEG", ["resized"])
        assert row["key"] == row["source_name"].removesuffix(".JPEG")
    assert verify(prepared, deep=True).problems == []


def test_prepared_tars_are_plain_and_in_key_order(prepared: PreparedSet) -> None:
    with tarfile.open(prepared.path / "train" / "n01503061.tar", "r:") as archive:
        members = archive.getmembers()
    assert [member.name for member in members] == sorted(member.name for member in members)
    assert {(member.mtime, member.uid, member.uname, member.mode) for member in members} == {(0, 0, "", 0o644)}
    assert all(member.pax_headers == {} and member.name.endswith(".jpg") for member in members)


def test_the_folder_holds_what_it_should_and_names_no_place(
    prepared: PreparedSet, raw_archive: Path, files_of: FilesOf
) -> None:
    files = files_of(prepared.path)
    tables = {"dataset.json", "classes.parquet", "tree.json", "manifest.parquet", "rejects.parquet"}
    tars = {f"{split}/{wnid}.tar" for split in ("train", "val") for wnid in prepared.tree.wnids}
    assert files.keys() == tables | tars
    assert all(str(folder).encode() not in files[name] for name in tables for folder in (prepared.path, raw_archive))
    info = json.loads(files["dataset.json"])
    assert (info["format"], info["version"]) == ("in21k-prepared", 2)
    assert info["source"] == {"name": "raw.tar", "num_bytes": raw_archive.stat().st_size}
    assert info["settings"].items() >= {"rare_threshold": 6, "val_per_class": 3, "size": 32}.items()
    assert info["settings"]["resizer_version"].startswith("pillow ")
    assert info["counts"] == {
        "num_classes_seen": 7,
        "num_classes": 5,
        "num_raw": 74,
        "num_raw_kept": 67,
        "num_rejects": 0,
        "splits": {"train": {"num_samples": 52}, "val": {"num_samples": 15}},
    }


def test_two_workers_give_the_bytes_of_one(
    tmp_path: Path,
    raw_archive: Path,
    prepared: PreparedSet,
    select: SelectSettings,
    image_settings: ImageSettings,
    files_of: FilesOf,
) -> None:
    steps: list[Progress] = []
    two = prepare(
        open_raw_tar(raw_archive),
        tmp_path / "out",
        select=select,
        image=image_settings,
        run_tasks=partial(run_tasks, workers=2),
        on_progress=steps.append,
    )
    assert files_of(two.path) == files_of(prepared.path)
    assert [step.detail for step in steps][-1] == "7/7 classes, 0 rejects"
    assert (steps[-1].fraction, steps[-1].images) == (1, 74)


def test_where_the_source_lies_and_the_order_of_its_classes_do_not_show(
    tmp_path: Path, draw: Draw, encode: Encode, write_archive: WriteArchive, files_of: FilesOf
) -> None:
    classes = {
        wnid: {f"{wnid}_{n}.JPEG": encode(draw(seed=n)) for n in range(3)}
        for wnid in ("n01503061", "n01858441", "n02051845")
    }
    outs: list[dict[str, bytes]] = []
    for place, wnids in (("one", list(classes)), ("two", list(classes)[::-1])):
        (tmp_path / place).mkdir()
        source = write_archive(tmp_path / place / "raw.tar", {wnid: classes[wnid] for wnid in wnids})
        outs.append(files_of(prepare(open_raw_tar(source), tmp_path / place / "out", select=ALL, image=SMALL).path))
    assert outs[0] == outs[1]


def test_a_finished_output_stays_as_it_is(
    raw_archive: Path, prepared_copy: Path, select: SelectSettings, image_settings: ImageSettings
) -> None:
    before = {path: path.stat().st_mtime_ns for path in prepared_copy.rglob("*")}
    again = prepare(
        open_raw_tar(raw_archive),
        prepared_copy,
        select=select,
        image=image_settings,
        run_tasks=partial(run_tasks, workers=3),
        max_reject_rate=0.5,
        on_progress=lambda _: pytest.fail("it worked"),
    )
    assert again.num_samples == {"train": 52, "val": 15}
    assert {path: path.stat().st_mtime_ns for path in prepared_copy.rglob("*")} == before


def test_other_settings_are_refused_by_name_unless_overwriting(
    tmp_path: Path, raw_archive: Path, prepared_copy: Path, select: SelectSettings, files_of: FilesOf
) -> None:
    before = files_of(prepared_copy)
    other = ImageSettings(size=24, quality=80)
    with pytest.raises(ValueError, match=r"made with other settings \(quality 95 -> 80; size 32 -> 24\)"):
        prepare(open_raw_tar(raw_archive), prepared_copy, select=select, image=other)
    assert files_of(prepared_copy) == before
    prepare(open_raw_tar(raw_archive), prepared_copy, select=select, image=other, overwrite=True)
    fresh = prepare(open_raw_tar(raw_archive), tmp_path / "fresh", select=select, image=other)
    assert files_of(prepared_copy) == files_of(fresh.path)


def test_another_source_is_refused_by_name(
    tmp_path: Path, raw_archive: Path, prepared_copy: Path, select: SelectSettings, image_settings: ImageSettings
) -> None:
    other = tmp_path / "other.tar"
    other.write_bytes(raw_archive.read_bytes() + bytes(512))
    with pytest.raises(ValueError, match=r"source name 'raw\.tar' -> 'other\.tar'; source num_bytes \d+ -> \d+"):
        prepare(open_raw_tar(other), prepared_copy, select=select, image=image_settings)


@pytest.mark.parametrize("done", [0, 1, 4, 7])
def test_work_that_was_cut_short_goes_on_to_equal_bytes(
    tmp_path: Path,
    raw_archive: Path,
    prepared: PreparedSet,
    select: SelectSettings,
    image_settings: ImageSettings,
    files_of: FilesOf,
    monkeypatch: pytest.MonkeyPatch,
    done: int,
) -> None:
    def cut_short(function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Any]:
        for number, task in enumerate(tasks):
            if number == done:
                raise KeyboardInterrupt
            yield function(task)
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        prepare(open_raw_tar(raw_archive), out, select=select, image=image_settings, run_tasks=cut_short)
    with pytest.raises(ValueError, match="unfinished: start the command that makes it again"):
        PreparedSet(out)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*/*.tar")}
    prepare(open_raw_tar(raw_archive), out, select=select, image=image_settings)
    assert files_of(out) == files_of(prepared.path)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_work_that_was_cut_short_in_its_last_step_goes_on_to_equal_bytes(
    tmp_path: Path,
    raw_archive: Path,
    prepared: PreparedSet,
    select: SelectSettings,
    image_settings: ImageSettings,
    files_of: FilesOf,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    for module, name in ((tables, "write_class_table"), (tables, "_class_rows"), (run, "describe")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, stop)
            with pytest.raises(KeyboardInterrupt):
                prepare(open_raw_tar(raw_archive), out, select=select, image=image_settings)
        assert not (out / "dataset.json").exists()
    prepare(open_raw_tar(raw_archive), out, select=select, image=image_settings)
    assert files_of(out) == files_of(prepared.path)


def test_without_a_class_left_nothing_is_left(tmp_path: Path, raw_archive: Path, image_settings: ImageSettings) -> None:
    select = SelectSettings(rare_threshold=17)
    with pytest.raises(ValueError, match=r"no class has more than 17 images \(the largest, n01503061, has 17\); lower"):
        prepare(open_raw_tar(raw_archive), tmp_path / "out", select=select, image=image_settings)
    assert list(tmp_path.iterdir()) == []


def test_class_tars_of_no_bytes_are_classes_without_images(tmp_path: Path, tar_of: Callable[..., bytes]) -> None:
    (tmp_path / "raw.tar").write_bytes(tar_of({"n1.tar": b"", "n2.tar": b""}))
    with pytest.raises(ValueError, match="none of its 2 classes holds a file with an image suffix"):
        prepare(open_raw_tar(tmp_path / "raw.tar"), tmp_path / "out", select=ALL, image=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["raw.tar"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("n2.tar", "but tars such as n2.tar: this is a tar of tars of tars; unpack it once"),
        ("1.tif", "but files such as 1.tif"),
    ],
)
def test_classes_that_hold_no_images_are_refused_by_what_they_hold(
    name: str, wanted: str, tmp_path: Path, tar_of: Callable[..., bytes]
) -> None:
    content = tar_of({"n1.tar": tar_of({name: tar_of({"1.jpg": b"abc"})})})
    (tmp_path / "nest.tar").write_bytes(content)
    (tmp_path / "nest.tar.gz").write_bytes(gzip.compress(content))
    for source, why in (("nest.tar", wanted), ("nest.tar.gz", "if they hold tars, unpack the archive once")):
        with pytest.raises(ValueError, match=rf"^{source}: none of its 1 classes holds .*{why}"):
            prepare(open_raw_tar(tmp_path / source), tmp_path / "out", select=SelectSettings(), image=SMALL)
    assert not (tmp_path / "out").exists()


def test_a_class_without_training_images_is_refused_with_the_way_out(
    tmp_path: Path, raw_archive: Path, image_settings: ImageSettings
) -> None:
    with pytest.raises(ValueError, match=r"n01861778 would have no training image.*lower --val-per-class"):
        prepare(
            open_raw_tar(raw_archive),
            tmp_path / "out",
            select=SelectSettings(rare_threshold=10, val_per_class=11),
            image=image_settings,
        )


def test_the_way_out_of_a_class_without_training_images_is_open(
    tmp_path: Path, raw_archive: Path, image_settings: ImageSettings
) -> None:
    out = tmp_path / "out"
    with pytest.raises(ValueError, match="lower --val-per-class"):
        prepare(
            open_raw_tar(raw_archive),
            out,
            select=SelectSettings(rare_threshold=10, val_per_class=11),
            image=image_settings,
        )
    lower = SelectSettings(rare_threshold=10, val_per_class=3)
    assert prepare(open_raw_tar(raw_archive), out, select=lower, image=image_settings).num_samples == {
        "train": 52,
        "val": 15,
    }


@pytest.fixture
def odd_archive(tmp_path: Path, draw: Draw, encode: Encode, write_archive: WriteArchive) -> Path:
    """Two classes, n01503061 of 4 good images, a PNG, 2 unreadable ones and a text; and strays beside them."""
    good = {f"n01503061_{number}.JPEG": encode(draw(seed=number)) for number in range(4)}
    odd = {
        "n01503061_4.JPEG": encode(draw(), "PNG"),
        "n01503061_5.JPEG": b"",
        "n01503061_6.JPEG": encode(draw())[:-200],
        "notes.txt": b"hello",
    }
    few = {"n01858441_0.JPEG": encode(draw()), "n01858441_1.JPEG": b"", "more.txt": b"hello"}
    return write_archive(
        tmp_path / "odd.tar",
        {"n01503061": good | odd, "n01858441": few},
        {"README": b"hello", "n02051845.tar": b"no tar" * 300},
    )


def test_a_damaged_class_tar_fails_the_run_and_is_left_out_when_asked(tmp_path: Path, odd_archive: Path) -> None:
    """A class of which nobody knows the size must not pass for a rare one."""
    out, select = tmp_path / "out", SelectSettings(rare_threshold=6, val_per_class=2)
    with pytest.raises(ValueError, match=r"1 class tars are damaged.*n02051845\.tar.*--max-reject-rate 1"):
        prepare(open_raw_tar(odd_archive), out, select=select, image=SMALL, max_reject_rate=0.99)
    assert not (out / "dataset.json").exists()
    assert prepare(open_raw_tar(odd_archive), out, select=select, image=SMALL, max_reject_rate=1).num_samples


def test_what_is_not_stored_is_listed_with_its_reason(tmp_path: Path, odd_archive: Path) -> None:
    select = SelectSettings(rare_threshold=6, val_per_class=2)
    prepared = prepare(open_raw_tar(odd_archive), tmp_path / "out", select=select, image=SMALL, max_reject_rate=1)
    rejects = rejects_of(prepared)
    assert [(row["wnid"], row["name"], row["reason"]) for row in rejects] == [
        ("n01503061", "n01503061_5.JPEG", "empty"),
        ("n01503061", "n01503061_6.JPEG", "truncated"),
        ("n01503061", "notes.txt", "no image suffix"),
        (None, "README", "no class"),
        (None, "n02051845.tar", "damaged class tar"),
    ]
    assert all(row["detail"] for row in rejects)
    assert prepared.info["counts"]["num_rejects"] == 5
    bird, pelican_or_swan = prepared.classes[0], prepared.classes[1:]
    assert (bird.num_raw, bird.num_train, bird.num_val) == (7, 3, 2)
    assert [(row.wnid, row.num_raw, row.kept) for row in pelican_or_swan] == [
        ("n01858441", 2, False),
        ("n02051845", 0, False),
    ]
    changes = {row["source_name"]: row["changes"] for row in read_manifest(prepared).to_pylist()}
    assert changes["n01503061_4.JPEG"] == ["from PNG", "resized"]
    assert verify(prepared, deep=True).problems == []


def test_a_rejected_validation_image_is_not_replaced(
    tmp_path: Path, draw: Draw, encode: Encode, write_archive: WriteArchive
) -> None:
    images = {f"n01503061_{number}.JPEG": encode(draw(seed=number)) for number in range(5)} | {"n01503061_1.JPEG": b""}
    source = write_archive(tmp_path / "raw.tar", {"n01503061": images})
    select = SelectSettings(rare_threshold=4, val_per_class=2)
    prepared = prepare(open_raw_tar(source), tmp_path / "out", select=select, image=SMALL, max_reject_rate=0.5)
    assert prepared.num_samples == {"train": 3, "val": 1}


def test_more_rejects_than_allowed_are_refused_and_a_higher_rate_goes_on(
    tmp_path: Path, draw: Draw, encode: Encode, write_archive: WriteArchive
) -> None:
    """3 of the 8 members of kept classes are rejected; those that belong to no class do not count."""
    good = {f"n01503061_{number}.JPEG": encode(draw(seed=number)) for number in range(5)}
    odd = {"n01503061_5.JPEG": b"", "n01503061_6.JPEG": encode(draw())[:-200], "notes.txt": b"hello"}
    few = {"n01858441_0.JPEG": b"", "more.txt": b"hello"}
    odd_archive = write_archive(tmp_path / "odd.tar", {"n01503061": good | odd, "n01858441": few}, {"README": b"hello"})
    out, select = tmp_path / "out", SelectSettings(rare_threshold=6, val_per_class=2)
    with pytest.raises(ValueError, match=r"3 of 8 members were rejected, more than --max-reject-rate 0\.37 allows"):
        prepare(open_raw_tar(odd_archive), out, select=select, image=SMALL, max_reject_rate=0.37)
    assert not (out / "dataset.json").exists()
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*/*.tar")}
    prepared = prepare(open_raw_tar(odd_archive), out, select=select, image=SMALL, max_reject_rate=0.375)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept
    assert prepared.num_samples == {"train": 3, "val": 2}


NAMES = st.sampled_from(
    ["n1_1.JPEG", "n1_2.JPEG", "1.png", "a b.jpg", "a_b.jpg", "d/1.png", "x.GIF", "notes.txt", "../u.jpg", "/u.jpg"]
)


@settings(max_examples=12)
@given(
    data=st.data(),
    rare_threshold=st.integers(0, 3),
    val_per_class=st.integers(0, 1),
)
def test_every_member_is_stored_rejected_or_of_a_dropped_class(
    tmp_path_factory: pytest.TempPathFactory,
    draw: Draw,
    encode: Encode,
    tar_of: Callable[..., bytes],
    data: st.DataObject,
    rare_threshold: int,
    val_per_class: int,
) -> None:
    contents = {"good": encode(draw(20, 18)), "png": encode(draw(20, 18), "PNG"), "empty": b"", "text": b"text"}
    member = st.tuples(NAMES, st.sampled_from(["good"] * 4 + ["png", "empty", "text"]))
    classes = data.draw(
        st.dictionaries(st.sampled_from(["n1", "n01503061", "n02051845"]), st.lists(member, max_size=8), min_size=1)
    )
    folder = tmp_path_factory.mktemp("random")
    tars = {f"{wnid}.tar": tar_of([(name, contents[kind]) for name, kind in ms]) for wnid, ms in classes.items()}
    (folder / "raw.tar").write_bytes(tar_of({**tars, "stray.txt": b"hello"}))
    select = SelectSettings(rare_threshold=rare_threshold, val_per_class=val_per_class)
    suffixes = (".jpeg", ".jpg", ".png", ".gif")
    try:
        prepared = prepare(
            open_raw_tar(folder / "raw.tar"), folder / "out", select=select, image=SMALL, max_reject_rate=1
        )
    except ValueError as error:
        assert re.search("no class has more than|none of its|would have no training image", str(error))  # noqa: PT017
        return
    stored = Counter((row["wnid"], row["source_name"]) for row in read_manifest(prepared).to_pylist())
    rejected = Counter((row["wnid"], row["name"]) for row in rejects_of(prepared))
    wanted = Counter({(None, "stray.txt"): 1})
    for row in prepared.classes:
        names = [name for name, _ in classes[row.wnid]]
        images = {n for n in names if n.lower().endswith(suffixes) and ".." not in n and not n.startswith("/")}
        assert row.num_raw == len(images)
        assert row.kept == (row.num_raw > rare_threshold)
        if row.kept:
            wanted.update((row.wnid, name) for name in names)
    assert stored + rejected == wanted
    assert max(stored.values()) == 1
    assert verify(prepared, deep=True).problems == []


def test_keys_are_unique_in_the_whole_data_set(
    tmp_path: Path, draw: Draw, encode: Encode, write_archive: WriteArchive
) -> None:
    """A class's own images and those of a class whose name begins with its own may share a stem."""
    source = write_archive(
        tmp_path / "raw.tar", {"cat": {"big_1.jpg": encode(draw())}, "cat_big": {"1.jpg": encode(draw(seed=1))}}
    )
    prepared = prepare(open_raw_tar(source), tmp_path / "out", select=ALL, image=SMALL)
    assert len(set(read_manifest(prepared)["key"].to_pylist())) == 2


def test_classes_of_ones_own_are_named_by_their_wnid(
    tmp_path: Path, draw: Draw, encode: Encode, write_archive: WriteArchive
) -> None:
    source = write_archive(tmp_path / "raw.tar", {"cat": {"1.jpg": encode(draw())}, "dog": {"1.jpg": encode(draw())}})
    prepared = prepare(open_raw_tar(source), tmp_path / "out", select=ALL, image=SMALL)
    assert [(row.wnid, row.name, row.definition, row.level) for row in prepared.classes] == [
        ("cat", "cat", "", 0),
        ("dog", "dog", "", 0),
    ]
    assert read_manifest(prepared)["key"].to_pylist() == ["cat_1", "dog_1"]


def test_a_source_that_is_none_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "raw.tar").write_bytes(b"no tar" * 300)
    for source, error in (("raw.tar", ValueError), ("missing.tar", OSError), (".", ValueError)):
        with pytest.raises(error):
            prepare(open_raw_tar(tmp_path / source), tmp_path / "out", select=ALL, image=SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["raw.tar"]


def test_opencv_stores_what_its_settings_say(tmp_path: Path, raw_archive: Path, select: SelectSettings) -> None:
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    settings = ImageSettings(size=32, resizer="opencv")
    prepared = prepare(open_raw_tar(raw_archive), tmp_path / "out", select=select, image=settings)
    assert prepared.info["settings"]["resizer_version"].startswith("opencv ")
    assert prepared.num_samples == {"train": 52, "val": 15}


def test_the_real_archive_gives_the_known_classes(tmp_path: Path, data_folder: Path) -> None:
    source = data_folder / "fall11-mini.tar"
    prepared = prepare(
        open_raw_tar(source),
        tmp_path / "out",
        select=SelectSettings(),
        image=ImageSettings(size=64),
        run_tasks=partial(run_tasks, workers=2),
    )
    assert len(prepared.classes) == 245
    kept = [(row.wnid, row.num_raw, row.num_train, row.num_val, row.level) for row in prepared.classes if row.kept]
    assert kept == [
        ("n01440764", 560, 510, 50, 0),
        ("n02102040", 501, 451, 50, 0),
        ("n03000684", 540, 490, 50, 0),
        ("n03028079", 520, 470, 50, 0),
    ]
    dropped = {row.wnid: row.num_raw for row in prepared.classes if not row.kept}
    assert len(dropped) == 241
    assert (dropped["n02979186"], dropped["n03394916"]) == (500, 499)
    assert sum(dropped.values()) + 560 + 501 + 540 + 520 == 3_359
    assert rejects_of(prepared) == []
    assert prepared.tree.classes_by_level == ((0, 1, 2, 3),)
