"""Labelled images of any kind: what a folder or a list says, what is held back, and the shards that come of it."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.pack_labelled import LabelledData, describe_images, is_labelled_set, open_labelled, pack_labelled
from in21k.preprocess.sources.class_names import class_id
from in21k.preprocess.sources.labelled import (
    LabelledImage,
    classes_of_labels,
    hold_back,
    read_class_folders,
    read_label_list,
    read_labelled,
)
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
    return [(str(image.path.relative_to(home)), image.labels, image.split) for image in images]


def data_of(images: list[LabelledImage], *, several: bool = False) -> LabelledData:
    return LabelledData(
        name="mine",
        provenance=describe_images(images),
        list_images=lambda _: images,
        list_labels=lambda: images,
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
        (tmp_path / "my street" / "1.jpg", "my street/1.jpg", ("car", "person"), None),
        (tmp_path.parent / "sea.jpg", "../sea.jpg", (), None),
        (tmp_path / "cat.jpg", "cat.jpg", ("cat",), None),
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
    images = [
        LabelledImage(Path(f"/{c}/{n}"), f"{c}/{n}", (str(c),)) for c, size in enumerate(sizes) for n in range(size)
    ]
    if several:
        images.append(LabelledImage(Path("/both"), "both", ("0", "1")))
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


FORMS = ["folders", "list", "absolute list", "two lists apart"]


def write_data(home: Path, form: str, save: Save) -> tuple[Path, Path | None]:
    """Write the same twelve images in one of FORMS, and return data and validation data."""
    names = [f"{label}/{number}.jpg" for label in ("cat", "dog") for number in range(6)]
    for seed, name in enumerate(names):
        save(f"{home}/{name}", seed=seed)
    if form == "folders":
        return home, None
    root = f"{home}/" if form == "absolute list" else ""
    lines = [f"{root}{name} {name.partition('/')[0]}\n" for name in names]
    (home / "list.txt").write_text("".join(lines))
    if form != "two lists apart":
        return home / "list.txt", None
    save(f"{home}-val/{home.name}/cat/0.jpg", seed=12)  # how far it lies from the others depends on the place
    (home.with_name(f"{home.name}-val") / home.name / "val.txt").write_text("cat/0.jpg cat\n")
    return home / "list.txt", home.with_name(f"{home.name}-val") / home.name / "val.txt"


@pytest.mark.parametrize("form", FORMS)
def test_images_that_were_moved_are_the_same_images(
    tmp_path: Path, form: str, save: Save, files_of: Callable[[Path], dict[str, bytes]]
) -> None:
    packed: list[dict[str, bytes]] = []
    for place in ("here", "some/where/else"):
        share = None if form == "two lists apart" else 0.34
        data = data_of(read_labelled(*write_data(tmp_path / place, form, save), val_share=share))
        shards = pack_labelled(data, tmp_path / f"{place}-out").shards
        assert str(tmp_path) not in str(shape(shards))
        packed.append(files_of(shards.path.parent))
    assert packed[0] == packed[1]


def test_numbers_keep_their_order_and_two_that_look_alike_stay_two() -> None:
    assert classes_of_labels(["10", "9", "100"]) == {"9": "009", "10": "010", "100": "100"}
    assert len(set(classes_of_labels(["9", "09", "10"]).values())) == 3


def test_folders_become_shards_with_their_own_split_under_equal_names(tmp_path: Path, save: Save) -> None:
    for number, name in enumerate(["train/n01503061/1.jpg", "train/hot dog/1.jpg", "val/n01503061/1.jpg"]):
        save(f"mine/{name}", seed=number)
    packed = pack_labelled(data_of(read_labelled(tmp_path / "mine")), tmp_path / "out")
    assert packed.sets is None
    assert shape(packed.shards) == [
        ("train", class_id("hot dog"), "train/hot dog/1.jpg"),
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
        **{"train/0.jpg": ["car", "person"], "train/1.jpg": ["person"]},
        **{"train/2.jpg": ["car", "person"], "train/3.jpg": []},
        **{"val/4.jpg": ["sea"], "val/5.jpg": ["person"]},  # a set may be in the validation list alone
    }
    assert packed.shards.num_samples == {"train": 4, "val": 2}
    assert open_labelled(tmp_path / "out").sets == packed.sets


def _classes_of_images(shards: ShardSet) -> dict[str, int]:
    rows = read_manifest(shards, ["source_name", "class_index"])
    return dict(zip(rows["source_name"].to_pylist(), rows["class_index"].to_pylist(), strict=True))


def test_the_same_images_again_are_kept_and_others_refused_unless_asked_for(tmp_path: Path, save: Save) -> None:
    for number in range(4):
        save(f"mine/{'cat' if number % 2 else 'owl'}/{number}.jpg", seed=number)
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
    assert pack_labelled(others, out, overwrite=True).shards.tree.wnids == ("cat", "dog", "owl")


@pytest.mark.parametrize("finished", [True, False])
def test_overwriting_packed_images_leaves_others_files_and_refuses_those_in_the_way(
    tmp_path: Path, save: Save, finished: bool, monkeypatch: pytest.MonkeyPatch, files_of: Callable[[Path], Any]
) -> None:
    for number in range(4):
        save(f"mine/{'cat' if number % 2 else 'owl'}/{number}.jpg", seed=number)
    out = tmp_path / "out"
    with monkeypatch.context() as patch, contextlib.suppress(KeyboardInterrupt):
        if not finished:  # killed while shards are written
            patch.setattr("in21k.shards.pack.write_tables", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        pack_labelled(data_of(read_labelled(tmp_path / "mine", val_share=0.25)), out)
    assert is_labelled_set(out) == finished
    save("mine/dog/1.jpg")
    others = data_of(read_labelled(tmp_path / "mine", val_share=0.25))
    for name in ("notes.txt", "shards/train/mine.tar"):
        (out / name).write_text("mine")
    before = files_of(out)
    with pytest.raises(ValueError, match=r"train/mine\.tar: is in the way"):
        pack_labelled(others, out, overwrite=True)
    assert files_of(out) == before
    (out / "shards" / "train" / "mine.tar").unlink()
    assert pack_labelled(others, out, overwrite=True).shards.tree.wnids == ("cat", "dog", "owl")
    assert (out / "notes.txt").read_text() == "mine"


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
    for path in (tmp_path / "mine").rglob("*.jpg"):
        path.write_bytes(b"x" * path.stat().st_size)  # what was prepared already is not read again
    again = pack_labelled(data, tmp_path / "out")
    assert files_of(again.shards.path) == files_of(whole.shards.path)


def test_missing_files_count_as_rejects(tmp_path: Path, save: Save) -> None:
    here = save("here.jpg"), save("there.jpg", seed=1)
    (tmp_path / "list.txt").write_text("here.jpg cat\nthere.jpg dog\ngone.jpg cat\n")
    data = data_of(read_labelled(tmp_path / "list.txt", val_share=0))
    with pytest.raises(ValueError, match="1 of 3 members were rejected"):
        pack_labelled(data, tmp_path / "out")
    assert pack_labelled(data, tmp_path / "out", max_reject_rate=0.5).shards.num_samples == {"train": 2}
    for item in here:
        item.unlink()
    with pytest.raises(ValueError, match=r"none of the listed images exists \(the first: (here|there|gone)\.jpg\)"):
        pack_labelled(data_of(read_labelled(tmp_path / "list.txt")), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_splits_that_do_not_fit_are_refused(tmp_path: Path, save: Save) -> None:
    for name in ("a/train/cat/1.jpg", "a/val/cat/1.jpg", "b/cat/1.jpg", "b/owl/1.jpg", "c/dog/1.jpg"):
        save(name)
    with pytest.raises(ValueError, match="has a folder for validation, and"):
        read_labelled(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ValueError, match="no training images, such as 'dog'"):
        read_labelled(tmp_path / "b", tmp_path / "c")
    for data, val_data in (("a", None), ("b", "b")):
        with pytest.raises(ValueError, match=r"a share of 0\.5 to hold back was given too; leave it out"):
            read_labelled(tmp_path / data, val_data and tmp_path / val_data, val_share=0.5)
    images = [image._replace(split="val") for image in read_labelled(tmp_path / "b")]
    with pytest.raises(ValueError, match="has no training images"):
        pack_labelled(data_of(images), tmp_path / "out")


def test_a_path_that_is_listed_again_counts_once_and_not_with_other_labels(
    tmp_path: Path, save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    for number, name in enumerate(("cat.jpg", "dog.jpg", "owl.jpg")):
        save(name, seed=number)
    again = "cat.jpg cat\n" * 4 + "dog.jpg dog\n./dog.jpg dog\n" + f"{tmp_path}/owl.jpg owl\nowl.jpg owl\n"
    (tmp_path / "list.txt").write_text(again)
    images = read_labelled(tmp_path / "list.txt", val_share=0.5)
    assert [(image.name, image.split) for image in images] == [(f"{n}.jpg", "train") for n in ("cat", "dog", "owl")]
    assert "lists 5 images more than once" in caplog.text
    assert pack_labelled(data_of(images), tmp_path / "out", workers=2).shards.num_samples == {"train": 3}
    (tmp_path / "other.txt").write_text("cat.jpg cat\ndog.jpg dog\nnone/../cat.jpg dog\n")
    with pytest.raises(ValueError, match=r"line 3: 'none/\.\./cat\.jpg' is on line 1 too, with other labels"):
        read_labelled(tmp_path / "other.txt")


def test_a_class_whose_images_to_train_on_are_all_rejected_is_named(tmp_path: Path, save: Save) -> None:
    for number, name in enumerate(["train/owl/1.jpg", "train/hot dog/1.jpg", "val/owl/1.jpg", "val/hot dog/1.jpg"]):
        save(f"mine/{name}", seed=number)
    (tmp_path / "mine" / "train" / "hot dog" / "1.jpg").write_bytes(b"no image")
    data = data_of(read_labelled(tmp_path / "mine"))
    with pytest.raises(ValueError, match="class 'hot dog' has no training image: of its 2 1 are for") as actual:
        pack_labelled(data, tmp_path / "out", max_reject_rate=0.5, workers=2)
    assert "--" not in str(actual.value)  # no option of another command
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ("{} -", "all training images have no label, so there is nothing to learn"),
        ("{} cat", "have the same labels, cat, so there is nothing to learn"),
        ("{} cat,owl", "have the same labels, cat,owl, so"),
    ],
)
def test_images_that_differ_in_no_label_are_refused(tmp_path: Path, lines: str, message: str) -> None:
    (tmp_path / "list.txt").write_text("\n".join(lines.format(f"{number}.jpg") for number in range(4)))
    with pytest.raises(ValueError, match=message):
        read_labelled(tmp_path / "list.txt", val_share=0.25)


def test_validation_without_a_label_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("0.jpg cat\n1.jpg -\n")
    (tmp_path / "val.txt").write_text("2.jpg -\n3.jpg -\n")
    with pytest.raises(ValueError, match="none of the 2 validation images has a label"):
        read_labelled(tmp_path / "list.txt", tmp_path / "val.txt")


def test_one_label_that_images_have_or_lack_is_enough(
    tmp_path: Path, save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        save(f"{number}.jpg", seed=number)
    (tmp_path / "list.txt").write_text("0.jpg cat\n1.jpg -\n2.jpg cat\n3.jpg -\n")
    with caplog.at_level("INFO"):
        packed = pack_labelled(
            data_of(read_labelled(tmp_path / "list.txt", val_share=0), several=True), tmp_path / "out"
        )
    assert packed.labels == ["cat"]
    assert "images: 4, labels: 1" in caplog.text


def test_files_that_are_known_to_be_no_images_are_left_out_of_folders_and_lists(
    tmp_path: Path, save: Save, caplog: pytest.LogCaptureFixture
) -> None:
    names = [f"{label}/{number}.jpg" for label in ("cat", "dog") for number in range(3)]
    for seed, name in enumerate(names):
        save(f"mine/{name}", seed=seed)
    junk = ["cat/._0.jpg", "cat/@eaDir/0.jpg", "__MACOSX/cat/0.jpg"]
    for name in junk:
        (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "mine" / name).write_bytes(b"junk")
    (tmp_path / "mine" / "list.txt").write_text("".join(f"{name} {name.partition('/')[0]}\n" for name in names + junk))
    for source in (tmp_path / "mine", tmp_path / "mine" / "list.txt"):
        caplog.clear()
        with caplog.at_level("INFO"):
            images = read_labelled(source, val_share=0.34)
        assert sorted(image.name for image in images) == names
        assert "ignored 3 files of kinds that are never images (._* 1, @eaDir/ 1, __MACOSX/ 1)" in caplog.text
        packed = pack_labelled(data_of(images), tmp_path / f"out of {source.name}", max_reject_rate=0)
        assert packed.shards.num_samples == {"train": 4, "val": 2}
