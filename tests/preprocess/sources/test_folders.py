"""One reading of folders, whether they come as a folder, a tar or a stream, and in both commands that read them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from in21k.preprocess import chunk_rows
from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.run import prepare
from in21k.preprocess.sources import open as sources
from in21k.preprocess.sources import stream
from in21k.preprocess.sources.class_names import class_id
from in21k.preprocess.sources.folders import ClassFolder, Layout, class_of_folder, is_processed, read_layout
from in21k.preprocess.sources.groups import folder_of, group_of
from in21k.preprocess.sources.labelled import read_class_folders
from in21k.preprocess.sources.open import open_folder, open_raw_tar
from in21k.preprocess.sources.units import RawSource
from in21k.shards.dataset import PreparedSet, read_manifest

from ..conftest import WAYS, facts_of, tables_of, write_files, write_tar

HandOver = Callable[[bytes, str], Path]
ALL = SelectSettings(rare_threshold=0)
NOWHERE = ClassFolder(None, "", None)


def prepared_of(source: RawSource, out: Path, **options: Any) -> PreparedSet:
    settings: dict[str, Any] = {"select": ALL, "image": ImageSettings(size=16), "max_reject_rate": 0}
    return prepare(source, out, **(settings | options))


def stored(prepared: PreparedSet) -> list[tuple[str, str, str]]:
    rows = read_manifest(prepared).to_pylist()
    return sorted((row["split"], row["wnid"], row["source_name"]) for row in rows)


@pytest.mark.parametrize(
    ("folders", "layout"),
    [
        ([], Layout()),
        (["cat", "dog/x"], Layout()),
        (["dog", "dog/x"], Layout()),
        (["data/cat", "data/dog"], Layout("data")),
        (["data/images/cat", "data/images/dog", ""], Layout("data/images")),
        (["dog/x"], Layout("dog")),
        (["n01503061/x"], Layout()),
        (["data/n01503061"], Layout("data")),
        (["train/cat", "train/dog"], Layout("train")),
        (["train/cat", "val/cat"], Layout("", "val")),
        (["train/cat", "train/dog", "test/cat", "validation/cat"], Layout("", "validation", ("test",))),
        (["a/b/train/cat", "a/b/val/cat/x"], Layout("a/b", "val")),
        (["train", "bus"], Layout()),
        (["train", "train/x", "val/x"], Layout()),
        (["train", "val"], Layout()),
        (["trains/a", "val/a"], Layout()),
        (["Train/a", "val/a"], Layout()),
        (["x/imagenet21k_train/n01503061", "x/imagenet21k_val/n01503061"], Layout(processed=True)),
        (["../cat", "/data/dog", "data/cat"], Layout("data")),
    ],
)
def test_the_folders_that_hold_images_tell_the_root_and_the_split(folders: list[str], layout: Layout) -> None:
    assert read_layout(folders) == layout
    assert read_layout(folders[::-1]) == layout


@pytest.mark.parametrize(("folders", "name"), [(["train/cat", "val"], "val"), (["d/train/cat", "d/test"], "d/test")])
def test_a_split_without_class_folders_is_refused(folders: list[str], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}/ lies beside train/ and has images, but no class folders"):
        read_layout(folders)


@pytest.mark.parametrize(
    ("folder", "layout", "place"),
    [
        ("", Layout(), NOWHERE),
        ("dog/x", Layout(), ClassFolder("dog", "dog", None)),
        ("dog/x/y", Layout("dog"), ClassFolder("x", "dog/x", None)),
        ("dog", Layout("dog"), NOWHERE),
        ("docs", Layout("data"), NOWHERE),
        ("a/n01440764/b", Layout(), ClassFolder("n01440764", "a/n01440764", None)),
        ("n01440764/n01443537", Layout(), ClassFolder("n01443537", "n01440764/n01443537", None)),
        ("train/dog/x", Layout("", "val"), ClassFolder("dog", "train/dog", "train")),
        ("d/val/n01440764/x", Layout("d", "val"), ClassFolder("n01440764", "d/val/n01440764", "val")),
        ("train", Layout("", "val"), NOWHERE),
        ("bus/x", Layout("", "val"), NOWHERE),
        ("test/dog", Layout("", "val", ("test",)), NOWHERE),
        ("/data/dog", Layout("data"), ClassFolder("dog", "/data/dog", None)),
        ("..", Layout(), NOWHERE),
        ("x/imagenet21k_train/a/b", Layout(processed=True), ClassFolder("a", "x/imagenet21k_train/a", "train")),
    ],
)
def test_a_folders_place_follows_from_the_layout(folder: str, layout: Layout, place: ClassFolder) -> None:
    assert class_of_folder(folder, layout) == place


PATHS = st.lists(st.sampled_from(["train", "val", "test", "cat", "dog", "n01440764", "x"]), max_size=4).map("/".join)


@given(st.lists(PATHS, max_size=8))
def test_every_folder_with_images_has_a_class_or_is_named_as_outside(folders: list[str]) -> None:
    try:
        layout = read_layout(folders)
    except ValueError:
        assert {"train", "val", "test"} & {part for folder in folders for part in folder.split("/")}
        return
    for folder in folders:
        place = class_of_folder(folder, layout)
        if place.name is None:
            assert folder in ("", layout.root) or layout.val is not None or layout.root.startswith(f"{folder}/")
        else:
            assert place.home == folder or folder.startswith(f"{place.home}/")
            assert place.home.rpartition("/")[2] == place.name
            assert (place.split is not None) <= (layout.val is not None)


@given(st.text(st.characters(exclude_categories=["Cs"])), st.binary())
def test_a_group_is_its_folder(text: str, data: bytes) -> None:
    for folder in (text, data.decode("utf-8", "surrogateescape")):
        assert folder_of(group_of(folder)) == folder
        assert group_of(folder).encode().decode() == group_of(folder)


def test_the_processed_archive_is_known_by_its_folders() -> None:
    assert is_processed("x/imagenet21k_val/n01440764/1.jpg")
    assert not is_processed("imagenet21k_val/1.jpg")
    assert not is_processed("train/n01440764/1.jpg")


@pytest.fixture(scope="module")
def photo_of(draw: Callable[..., Image.Image], encode: Callable[..., bytes]) -> Callable[[str], bytes]:
    """An image of its own for each name."""
    return lambda name: encode(draw(20, 18, seed=sum(name.encode())))


@pytest.fixture
def tiny_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "CHUNK_IMAGES", 3)
    monkeypatch.setattr(sources, "SLICE_IMAGES", 3)
    monkeypatch.setattr(chunk_rows, "MERGED_ROWS", 3)


class Everywhere:
    """Read the same entries as a folder and as a tar in each way, and by fine-tuning; all have to agree."""

    def __init__(self, hand_over: HandOver, tmp_path: Path, photo_of: Callable[[str], bytes]) -> None:
        self._hand_over, self.tmp_path, self._photo_of = hand_over, tmp_path, photo_of
        self._count = 0

    def opened(self, names: list[str]) -> list[RawSource]:
        return [open_folder(self.folder(names)), *self.archives(names)]

    def folder(self, names: list[str]) -> Path:
        self._count += 1
        return write_files(self.tmp_path / f"folder {self._count}", [(name, self._photo_of(name)) for name in names])

    def archives(self, names: list[str]) -> list[RawSource]:
        content = write_tar((name, self._photo_of(name)) for name in names)
        return [open_raw_tar(self._hand_over(content, way)) for way in WAYS if "stdin" not in way]

    def prepare(self, names: list[str], **options: Any) -> PreparedSet:
        items: list[PreparedSet] = []
        for way in ("folder", *WAYS):
            self._count += 1
            content = write_tar((name, self._photo_of(name)) for name in names)
            source = open_folder(self.folder(names)) if way == "folder" else open_raw_tar(self._hand_over(content, way))
            items.append(prepared_of(source, self.tmp_path / f"out {self._count}", **options))
        for other in items[1:]:
            assert tables_of(other.path) == tables_of(items[0].path)
            assert facts_of(other) == facts_of(items[0])
        return items[0]

    def refused(self, names: list[str], **options: Any) -> list[str]:
        errors: list[str] = []
        for way in ("folder", *WAYS):
            self._count += 1
            out = self.tmp_path / f"out {self._count}"
            content = write_tar((name, self._photo_of(name)) for name in names)
            with pytest.raises(ValueError) as error:  # noqa: PT011  # the caller compares the messages
                prepared_of(
                    open_folder(self.folder(names)) if way == "folder" else open_raw_tar(self._hand_over(content, way)),
                    out,
                    **options,
                )
            errors.append(str(error.value))
            assert not out.exists()
        return errors

    def finetuned(self, names: list[str]) -> list[tuple[str, str, str]]:
        images = read_class_folders(self.folder(names))
        return sorted((image.split or "train", class_id(image.labels[0]), image.name) for image in images)


@pytest.fixture
def everywhere(hand_over: HandOver, tmp_path: Path, photo_of: Callable[[str], bytes], tiny_chunks: None) -> Everywhere:
    return Everywhere(hand_over, tmp_path, photo_of)


def names_in(*folders: str, count: int = 2) -> list[str]:
    return [f"{folder}/{folder.replace('/', '')}{number}.jpg" for folder in folders for number in range(count)]


@pytest.mark.parametrize("val", ["val", "valid", "validation", "test"])
@pytest.mark.parametrize("root", ["", "my data/"])
def test_a_users_split_is_kept(root: str, val: str, everywhere: Everywhere) -> None:
    names = names_in(*(f"{root}{split}/{name}" for split in ("train", val) for name in ("big dog", "n01503061")))
    actual = stored(everywhere.prepare(names))
    dog = class_id("big dog")
    wanted = [(split, wnid) for split in ("train", "val") for wnid in (dog, "n01503061") for _ in range(2)]
    assert [(split, wnid) for split, wnid, _ in actual] == wanted
    assert [item[:2] for item in everywhere.finetuned(names)] == [item[:2] for item in actual]


def test_the_threshold_holds_for_a_users_split_and_an_explicit_number_of_validation_images_is_refused(
    everywhere: Everywhere,
) -> None:
    names = [*names_in("train/cat", "val/cat", count=3), *names_in("train/dog", "val/dog", count=1)]
    actual = everywhere.prepare(names, select=SelectSettings(rare_threshold=5))
    assert [(row.wnid, row.num_raw, row.num_train, row.num_val) for row in actual.classes] == [
        ("cat", 6, 3, 3),
        ("dog", 2, 0, 0),
    ]
    for error in everywhere.refused(names, select=SelectSettings(rare_threshold=0, val_per_class=1)):
        assert (
            "has a split of its own, train/ and val/, and --val-per-class 1 was given too; leave the option out"
            in error
        )


def test_further_splits_are_ignored_by_name_and_counted(
    everywhere: Everywhere, caplog: pytest.LogCaptureFixture
) -> None:
    names = [*names_in("train/cat", "train/dog", "val/cat", "val/dog"), *names_in("test/cat", "test", count=3)]
    actual = everywhere.prepare(names)
    assert actual.num_samples == {"train": 4, "val": 4}
    assert actual.info["ignored"] == {"test/": 6}
    assert caplog.text.count("reading its folders train/ and val/ as splits") == 1 + len(WAYS)
    assert caplog.text.count("ignoring its folder test/") == 1 + len(WAYS)
    assert len(everywhere.finetuned(names)) == 8


def test_a_split_without_class_folders_is_refused_everywhere(everywhere: Everywhere) -> None:
    names = names_in("train/cat", "train/dog", "val")
    for error in everywhere.refused(names):
        assert "val/ lies beside train/ and has images, but no class folders; wanted val/CLASS/1.jpg" in error
    with pytest.raises(ValueError, match="val/ lies beside train/ and has images, but no class folders"):
        everywhere.finetuned(names)


def test_class_tars_in_a_split_are_refused(
    tmp_path: Path, photo_of: Callable[[str], bytes], hand_over: HandOver
) -> None:
    entries = [(f"{split}/n01503061.tar", write_tar([(f"{split}.jpg", photo_of(split))])) for split in ("train", "val")]
    opened = [lambda: open_folder(write_files(tmp_path / "folder", entries))]
    opened += [lambda way=way: open_raw_tar(hand_over(write_tar(entries), way)) for way in WAYS]
    for number, source in enumerate(opened):
        with pytest.raises(ValueError, match="has train/ beside val/ and class tars in them"):
            prepared_of(source(), tmp_path / str(number), select=SelectSettings(rare_threshold=0, val_per_class=0))


def test_a_class_may_be_called_train(everywhere: Everywhere) -> None:
    names = names_in("train", "bus", count=3)
    actual = everywhere.prepare(names, select=SelectSettings(rare_threshold=0, val_per_class=1))
    assert [(row.wnid, row.num_train, row.num_val) for row in actual.classes] == [("bus", 2, 1), ("train", 2, 1)]
    assert {label for _, label, _ in everywhere.finetuned(names)} == {"bus", "train"}


def test_of_nested_folders_the_class_is_the_wnid_else_the_folder_below_the_root(everywhere: Everywhere) -> None:
    names = names_in("dog/x", "dog/y/z", "cat", "animals/n01503061/deep")
    select = SelectSettings(rare_threshold=0, val_per_class=0)
    actual = stored(everywhere.prepare(names, select=select))
    assert {wnid for _, wnid, _ in actual} == {"dog", "cat", "n01503061"}
    assert ("train", "dog", "y/z/dogyz1.jpg") in actual
    assert [wnid for _, wnid, _ in everywhere.finetuned(names)] == [wnid for _, wnid, _ in actual]


def test_a_folder_around_all_others_is_no_class(everywhere: Everywhere) -> None:
    names = [*names_in("data/set/dog/x", "data/set/cat"), "README.jpg.txt"]
    actual = everywhere.prepare(names, select=SelectSettings(rare_threshold=0, val_per_class=0), max_reject_rate=1)
    assert [row.wnid for row in actual.classes] == ["cat", "dog"]


def test_images_beside_the_folders_of_a_split_are_rejects_that_count(everywhere: Everywhere) -> None:
    names = names_in("train/cat", "train/dog", "val/cat", "val/dog", "bus/x")
    for error in _refused_by_rate(everywhere, names):
        assert "2 of 10 members were rejected" in error
    actual = everywhere.prepare(names, max_reject_rate=0.5)
    assert actual.num_samples == {"train": 4, "val": 4}
    assert actual.info["rejects"] == {"no class": 2}


def _refused_by_rate(everywhere: Everywhere, names: list[str]) -> list[str]:
    errors: list[str] = []
    for number, source in enumerate(everywhere.opened(names)):
        with pytest.raises(ValueError) as error:  # noqa: PT011
            prepared_of(source, everywhere.tmp_path / f"by rate {number}")
        errors.append(str(error.value))
    return errors


def test_a_stream_that_was_stopped_at_its_end_keeps_the_split(
    hand_over: HandOver, tmp_path: Path, photo_of: Callable[[str], bytes], tiny_chunks: None
) -> None:
    names = names_in("train/cat", "train/dog", "val/cat", "val/dog")
    content = write_tar((name, photo_of(name)) for name in names)
    done = 0

    def engine(function: Callable[[Any], Any], tasks: Any) -> Any:
        nonlocal done
        for task in tasks:
            if done == 4:  # the chunks are three, and a class is put together
                raise KeyboardInterrupt
            done += 1
            yield function(task)

    with pytest.raises(KeyboardInterrupt):
        prepared_of(open_raw_tar(hand_over(content, "gzip")), tmp_path / "out", run_tasks=engine)
    assert (tmp_path / "out" / ".work" / "read.json").exists()
    actual = prepared_of(open_raw_tar(hand_over(content, "gzip")), tmp_path / "out")
    whole = prepared_of(open_raw_tar(hand_over(content, "plain")), tmp_path / "whole")
    assert tables_of(actual.path) == tables_of(whole.path)
