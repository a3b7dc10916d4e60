"""Annotation files of MS-COCO and PASCAL VOC give every image with its categories."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from in21k.preprocess.sources.annotations import read_annotated, read_coco
from in21k.preprocess.sources.labelled import read_labelled

CATEGORIES = [{"id": 1, "name": "person"}, {"id": 18, "name": "dog"}, {"id": 10, "name": "traffic light"}]
IMAGES = [{"id": 9, "file_name": "b.jpg"}, {"id": 4, "file_name": "a.jpg"}, {"id": 7, "file_name": "sub/c.jpg"}]
BOXES = [
    {"id": 1, "image_id": 9, "category_id": 18, "iscrowd": 0},
    {"id": 2, "image_id": 9, "category_id": 18, "iscrowd": 0},
    {"id": 3, "image_id": 9, "category_id": 10, "iscrowd": 0},
    {"id": 4, "image_id": 4, "category_id": 1, "iscrowd": 1},
]


def write_coco(folder: Path, **parts: Any) -> str:
    (folder / "images").mkdir(exist_ok=True)
    content = {"info": {}, "images": IMAGES, "annotations": BOXES, "categories": CATEGORIES, **parts}
    (folder / "instances.json").write_text(json.dumps(content))
    return f"coco:{folder / 'images'},{folder / 'instances.json'}"


def write_voc(folder: Path, objects: dict[str, list[tuple[str, int]]], **lists: list[str]) -> str:
    """Write annotations {image: [(name, difficult), ...]} and lists of ImageSets/Main."""
    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    for stem, named in objects.items():
        inside = "".join(
            f"<object><name>{name}</name><difficult>{difficult}</difficult><part><name>head</name></part></object>"
            for name, difficult in named
        )
        (folder / "Annotations" / f"{stem}.xml").write_text(f"<annotation><filename>x</filename>{inside}</annotation>")
    for name, stems in lists.items():
        (folder / "ImageSets" / "Main" / f"{name}.txt").write_text("".join(f"{stem}\n" for stem in stems))
    return f"voc:{folder}"


VOC = {
    "000001": [("dog", 0), ("person", 0), ("dog", 0)],
    "000002": [("person", 1)],
    "000003": [],
    "000004": [("train", 0)],
}


def test_labels_of_coco_are_categories_crowds_count_and_no_image_is_left_out(tmp_path: Path) -> None:
    images = read_annotated(Path(write_coco(tmp_path)))
    assert [(image.name, image.labels, image.split) for image in images] == [
        ("a.jpg", ("person",), None),
        ("b.jpg", ("dog", "traffic light"), None),
        ("sub/c.jpg", (), None),
    ]
    assert images[2].path == tmp_path / "images" / "sub" / "c.jpg"


@pytest.mark.parametrize(
    ("lists", "train", "val"),
    [
        ({"train": ["000001"], "val": ["000002", "000003"]}, ["000001"], ["000002", "000003"]),
        (
            {"train": ["000001"], "val": ["000002"], "trainval": ["000002", "000001"], "test": ["000003", "000004"]},
            ["000001", "000002"],
            ["000003", "000004"],
        ),
    ],
)
def test_splits_of_voc_are_those_of_its_lists(
    tmp_path: Path, lists: dict[str, list[str]], train: list[str], val: list[str]
) -> None:
    images = read_annotated(Path(write_voc(tmp_path / "VOC2007", VOC, **lists)))
    for split, stems in (("train", train), ("val", val)):
        assert [image.path.stem for image in images if image.split == split] == stems
    labels = {image.path.stem: image.labels for image in images}
    assert labels["000001"] == ("dog", "person")
    assert labels["000002"] == ("person",)  # though it is difficult
    assert labels["000003"] == ()
    assert images[0].path == tmp_path / "VOC2007" / "JPEGImages" / "000001.jpg"


def test_voc_without_lists_gives_every_image_without_a_split(tmp_path: Path) -> None:
    images = read_annotated(Path(write_voc(tmp_path / "VOC2007", VOC)))
    assert [(image.name, image.split) for image in images] == [(f"{stem}.jpg", None) for stem in VOC]


def test_annotated_images_are_held_back_or_come_with_validation_images_of_their_own(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    one.mkdir()
    other.mkdir()
    data, val_data = (Path(write_coco(folder)) for folder in (one, other))
    splits = [image.split for image in read_labelled(data, val_share=0.34)]
    assert sorted(splits, key=str) == ["train", "train", "val"]
    images = read_labelled(data, val_data)
    assert [image.split for image in images] == ["train"] * 3 + ["val"] * 3
    assert images[0].name == "train/a.jpg"


@pytest.mark.parametrize(
    ("parts", "problem"),
    [
        ({"images": 3}, "images is 3; wanted a list"),
        ({"images": [{"id": 1}]}, r"images\[0\] lacks file_name"),
        (
            {"annotations": [{"image_id": 5, "category_id": 1}]},
            r"annotations\[0\] has image_id 5, which the file",
        ),
        (
            {"annotations": [{"image_id": 9, "category_id": 2}]},
            r"annotations\[0\] has category_id 2, which the file",
        ),
        ({"categories": [*CATEGORIES, {"id": 2, "name": "dog"}]}, "two of its categories are called 'dog'"),
        ({"images": [*IMAGES, {"id": 9, "file_name": "d.jpg"}]}, "two of its images have one id"),
        ({"images": [*IMAGES, {"id": 8, "file_name": "./a.jpg"}]}, "two of its images are called 'a.jpg'"),
        ({"categories": [{"id": 1, "name": " "}]}, "the name of a class is empty"),
    ],
)
def test_what_is_no_instances_file_is_named_with_what_was_wanted(
    tmp_path: Path, parts: dict[str, Any], problem: str
) -> None:
    with pytest.raises(ValueError, match=rf"instances\.json: {problem}.*wanted an instances file of MS-COCO"):
        read_annotated(Path(write_coco(tmp_path, **parts)))


def test_missing_and_damaged_files_of_coco_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"coco:images: wanted coco:IMAGES,FILE\.json"):
        read_annotated(Path("coco:images"))
    with pytest.raises(ValueError, match="gone: no such folder; wanted the images"):
        read_coco(tmp_path / "gone", tmp_path / "instances.json")
    with pytest.raises(ValueError, match=r"instances\.json: no such file; wanted an instances file"):
        read_coco(tmp_path, tmp_path / "instances.json")
    (tmp_path / "instances.json").write_text('{"images": [')
    with pytest.raises(ValueError, match=r"instances\.json: is not JSON .*; wanted an instances file"):
        read_coco(tmp_path, tmp_path / "instances.json")


def drop_annotation(folder: Path) -> None:
    (folder / "Annotations" / "000002.xml").unlink()


def cut_annotation(folder: Path) -> None:
    (folder / "Annotations" / "000002.xml").write_text("<annotation><object>")


def write_other_root(folder: Path) -> None:
    (folder / "Annotations" / "000002.xml").write_text("<html/>")


def drop_name(folder: Path) -> None:
    (folder / "Annotations" / "000002.xml").write_text("<annotation><object/></annotation>")


def list_twice(folder: Path) -> None:
    (folder / "ImageSets" / "Main" / "val.txt").write_text("000003\n000003\n")


def drop_images(folder: Path) -> None:
    (folder / "JPEGImages").rmdir()


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (drop_annotation, r"000002\.xml: no such file, and .*train\.txt lists 000002; wanted <annotation>"),
        (cut_annotation, r"000002\.xml: is not XML .*; wanted <annotation>"),
        (write_other_root, r"000002\.xml: its root is <html>; wanted <annotation>"),
        (drop_name, r"000002\.xml: the name of a class is empty; wanted <annotation>"),
        (list_twice, r"val\.txt: lists an image twice; wanted a line"),
        (drop_images, r"VOC2012: lacks Annotations/ or JPEGImages/; wanted a folder such as VOCdevkit/VOC2007"),
    ],
)
def test_damaged_files_of_voc_are_named(tmp_path: Path, damage: Callable[[Path], None], problem: str) -> None:
    data = write_voc(tmp_path / "VOC2012", VOC, train=["000001", "000002"], val=["000003"])
    damage(tmp_path / "VOC2012")
    with pytest.raises(ValueError, match=problem):
        read_annotated(Path(data))
