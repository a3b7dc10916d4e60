"""Labelled images of any kind: what a folder or a list says, what is held back, and the shards that come of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from in21k.preprocess.image import ImageSettings
from in21k.preprocess.labelled import (
    LabelledImage,
    class_names,
    hold_back,
    read_class_folders,
    read_label_list,
    read_labelled,
)
from in21k.preprocess.layouts import CLASS_NAME
from in21k.preprocess.pack_labelled import LabelledData, describe_images, is_labelled_set, open_labelled, pack_labelled
from in21k.shards.dataset import ShardSet, read_manifest
from in21k.shards.verify import verify

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path, draw: Callable[..., Image.Image], encode: Callable[..., bytes]) -> Save:
    """Save a drawn image under a name below the test's folder."""

    def save(name: str, seed: int = 0) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode(draw(seed=seed)))
        return path

    return save


def found(images: list[LabelledImage], home: Path) -> list[tuple[str, tuple[str, ...], str | None]]:
    return [(str(path.relative_to(home)), labels, split) for path, labels, split in images]


def data_of(images: list[LabelledImage], *, several: bool = False) -> LabelledData:
    return LabelledData(
        name="mine",
        made_from=describe_images(images),
        list_images=lambda _: images,
        image=ImageSettings(size=32),
        several=several,
    )


def shape(shards: ShardSet) -> list[tuple[str, str, str]]:
    rows = read_manifest(shards, ["split", "wnid", "source_name"])
    return list(zip(*(rows[name].to_pylist() for name in ("split", "wnid", "source_name")), strict=True))


def test_class_folders_with_and_without_splits(tmp_path: Path, save: Save) -> None:
    for name in ("plain/hot dog/1.jpg", "plain/hot dog/deeper/2.jpg", "plain/cat/1.jpg"):
        save(name)
    (tmp_path / "plain" / "cat" / "notes.txt").write_text("no image")
    assert found(read_class_folders(tmp_path / "plain"), tmp_path / "plain") == [
        ("cat/1.jpg", ("cat",), None),
        ("hot dog/1.jpg", ("hot dog",), None),
        ("hot dog/deeper/2.jpg", ("hot dog",), None),
    ]
    for name in ("split/train/cat/1.jpg", "split/test/cat/1.jpg", "split/valid/cat/7.jpg"):
        save(name)
    assert found(read_class_folders(tmp_path / "split"), tmp_path / "split") == [
        ("train/cat/1.jpg", ("cat",), "train"),
        ("valid/cat/7.jpg", ("cat",), "val"),
    ]
    (tmp_path / "empty" / "cat").mkdir(parents=True)
    with pytest.raises(ValueError, match="holds no class folders with images"):
        read_class_folders(tmp_path / "empty")


def test_a_list_holds_paths_with_spaces_and_any_number_of_labels(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("\n# a comment\nmy street/1.jpg person,car,car\n../sea.jpg -\ncat.jpg cat\n")
    assert read_label_list(tmp_path / "list.txt") == [
        (tmp_path / "my street" / "1.jpg", ("car", "person"), None),
        (tmp_path.parent / "sea.jpg", (), None),
        (tmp_path / "cat.jpg", ("cat",), None),
    ]


@pytest.mark.parametrize("line", ["cat.jpg", "cat.jpg a,,b", "cat.jpg a,", ""])
def test_a_line_that_is_none_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "list.txt").write_text(f"# first\n{line}\n")
    with pytest.raises(ValueError, match=r"list\.txt(, line 2: .*wanted a path and labels|: lists nothing)"):
        read_label_list(tmp_path / "list.txt")


@given(st.lists(st.integers(1, 30), min_size=1, max_size=5), st.floats(0, 0.9), st.booleans())
def test_held_back_images_are_a_part_of_each_class_and_do_not_depend_on_the_order(
    sizes: list[int], share: float, several: bool
) -> None:
    images = [LabelledImage(Path(f"/{c}/{n}"), (str(c),)) for c, size in enumerate(sizes) for n in range(size)]
    if several:
        images.append(LabelledImage(Path("/both"), ("0", "1")))
    placed = hold_back(images, share)
    assert sorted(image._replace(split=None) for image in placed) == sorted(images)
    assert sorted(placed, key=str) == sorted(hold_back(images[::-1], share), key=str)
    groups = [len(images)] if several else sizes
    counts = Counter("all" if several else image.labels[0] for image in placed if image.split == "val")
    for name, size in zip(["all"] if several else map(str, range(len(sizes))), groups, strict=True):
        if not share or size == 1:
            assert counts[name] == 0
        else:
            assert 1 <= counts[name] < size
            assert abs(counts[name] - share * size) <= 1


@given(st.sets(st.text(min_size=1, max_size=80), min_size=1, max_size=8))
def test_class_names_are_unique_and_such_as_a_class_can_have(labels: set[str]) -> None:
    names = class_names(labels)
    assert set(names) == labels
    assert len(set(names.values())) == len(labels)
    assert all(CLASS_NAME.fullmatch(name) for name in names.values())


def test_numbers_keep_their_order_and_two_that_look_alike_stay_two() -> None:
    assert class_names(["10", "9", "100"]) == {"9": "009", "10": "010", "100": "100"}
    assert len(set(class_names(["9", "09", "10"]).values())) == 3


def test_folders_become_shards_with_their_own_split_under_equal_names(tmp_path: Path, save: Save) -> None:
    for number, name in enumerate(["train/n01503061/1.jpg", "train/hot dog/1.jpg", "val/n01503061/1.jpg"]):
        save(f"mine/{name}", seed=number)
    packed = pack_labelled(data_of(read_labelled(tmp_path / "mine")), tmp_path / "out")
    assert packed.sets is None
    assert shape(packed.shards) == [
        ("train", "hot_dog", "train/hot dog/1.jpg"),
        ("train", "n01503061", "train/n01503061/1.jpg"),
        ("val", "n01503061", "val/n01503061/1.jpg"),
    ]
    assert packed.shards.tree.names == ("hot dog", "bird")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"dataset.json", "shards"}
    assert not verify(packed.shards, deep=True).problems
    assert str(tmp_path) not in (packed.shards.path / "dataset.json").read_text()


def test_label_sets_are_classes_and_a_table_says_which_labels_are_in_each(tmp_path: Path, save: Save) -> None:
    for number in range(6):
        save(f"{number}.jpg", seed=number)
    (tmp_path / "train.txt").write_text("0.jpg car,person\n1.jpg person\n2.jpg person,car\n3.jpg -\n")
    (tmp_path / "val.txt").write_text("4.jpg sea\n5.jpg person\n")
    data = data_of(read_labelled(tmp_path / "train.txt", tmp_path / "val.txt"), several=True)
    packed = pack_labelled(data, tmp_path / "out")
    assert packed.labels == ["car", "person", "sea"]
    assert packed.sets is not None
    by_name = {name: packed.sets[index] for name, index in _classes_of_images(packed.shards).items()}
    assert by_name == {
        **{"0.jpg": ["car", "person"], "1.jpg": ["person"], "2.jpg": ["car", "person"], "3.jpg": []},
        **{"4.jpg": ["sea"], "5.jpg": ["person"]},  # a set may be in the validation list alone
    }
    assert packed.shards.num_samples == {"train": 4, "val": 2}
    assert open_labelled(tmp_path / "out").sets == packed.sets


def _classes_of_images(shards: ShardSet) -> dict[str, int]:
    rows = read_manifest(shards, ["source_name", "class_index"])
    return dict(zip(rows["source_name"].to_pylist(), rows["class_index"].to_pylist(), strict=True))


def test_the_same_images_again_are_kept_and_others_refused_unless_asked_for(tmp_path: Path, save: Save) -> None:
    for number in range(4):
        save(f"mine/cat/{number}.jpg", seed=number)
    images = read_labelled(tmp_path / "mine", val_share=0.25)
    out = tmp_path / "out"
    pack_labelled(data_of(images), out)
    assert is_labelled_set(out)
    assert data_of(images).is_packed(out)
    before = (out / "dataset.json").stat().st_mtime_ns
    pack_labelled(data_of(images), out, overwrite=True)
    assert (out / "dataset.json").stat().st_mtime_ns == before
    save("mine/dog/1.jpg")
    others = data_of(read_labelled(tmp_path / "mine", val_share=0.25))
    assert not others.is_packed(out)
    with pytest.raises(ValueError, match="source num_images 4 -> 5"):
        pack_labelled(others, out)
    assert pack_labelled(others, out, overwrite=True).shards.tree.wnids == ("cat", "dog")


def test_a_run_that_died_on_the_way_goes_on(
    tmp_path: Path, save: Save, monkeypatch: pytest.MonkeyPatch, files_of: Callable[[Path], dict[str, bytes]]
) -> None:
    for number in range(4):
        save(f"mine/{'cat' if number % 2 else 'dog'}/{number}.jpg", seed=number)
    data = data_of(read_labelled(tmp_path / "mine"))
    whole = pack_labelled(data, tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr("in21k.preprocess.pack_labelled.pack", lambda *_, **__: (_ for _ in ()).throw(OSError("full")))
        with pytest.raises(OSError, match="full"):
            pack_labelled(data, tmp_path / "out")
    assert not is_labelled_set(tmp_path / "out")
    for each in (tmp_path / "mine").rglob("*.jpg"):
        each.write_bytes(b"x" * each.stat().st_size)  # what was prepared already is not read again
    again = pack_labelled(data, tmp_path / "out")
    assert files_of(again.shards.path) == files_of(whole.shards.path)


def test_missing_files_count_as_rejects(tmp_path: Path, save: Save) -> None:
    save("here.jpg")
    (tmp_path / "list.txt").write_text("here.jpg cat\ngone.jpg cat\n")
    data = data_of(read_labelled(tmp_path / "list.txt"))
    with pytest.raises(ValueError, match="1 of 2 members were rejected"):
        pack_labelled(data, tmp_path / "out")
    assert pack_labelled(data, tmp_path / "out", max_reject_rate=0.5).shards.num_samples == {"train": 1}
    (tmp_path / "here.jpg").unlink()
    with pytest.raises(ValueError, match=r"none of the images listed is there \(the first: (here|gone)\.jpg\)"):
        pack_labelled(data_of(read_labelled(tmp_path / "list.txt")), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_splits_that_do_not_fit_are_refused(tmp_path: Path, save: Save) -> None:
    for name in ("a/train/cat/1.jpg", "a/val/cat/1.jpg", "b/cat/1.jpg", "c/dog/1.jpg"):
        save(name)
    with pytest.raises(ValueError, match="has a folder for validation, and"):
        read_labelled(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ValueError, match="none to train on, such as 'dog'"):
        read_labelled(tmp_path / "b", tmp_path / "c")
    images = [image._replace(split="val") for image in read_labelled(tmp_path / "b")]
    with pytest.raises(ValueError, match="holds no image to train on"):
        pack_labelled(data_of(images), tmp_path / "out")
