"""Annotation files of MS-COCO and PASCAL VOC as images with several labels: the categories that they show."""

from __future__ import annotations

import json
import os
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ...shards.files.shape import COUNT, TEXT, Shape, check_shape
from .class_names import class_name
from .members import to_bytes, to_os

COCO, VOC = "coco:", "voc:"
_COCO: Shape = {
    "images": [{"id": COUNT, "file_name": TEXT}],
    "annotations": [{"image_id": COUNT, "category_id": COUNT}],
    "categories": [{"id": COUNT, "name": TEXT}],
}
_WANTED_COCO = "wanted an instances file of MS-COCO, such as annotations/instances_train2017.json"
# Lists of ImageSets/Main: VOC 2007 is trained on trainval and tested on test; later years publish no test labels.
_VOC_SPLITS = ({"train": "trainval", "val": "test"}, {"train": "train", "val": "val"})


class AnnotatedImage(NamedTuple):
    """An image that an annotation file lists; see `LabelledImage`."""

    path: Path
    name: str
    labels: tuple[str, ...]
    split: str | None


def is_annotated(data: Path) -> bool:
    """Tell whether data are `coco:IMAGES,FILE.json` or `voc:FOLDER`."""
    return str(data).startswith((COCO, VOC))


def read_annotated(data: Path) -> list[AnnotatedImage]:
    """List the images of `coco:IMAGES,FILE.json` (see `read_coco`) or `voc:FOLDER` (see `read_voc`).

    Raises ValueError, naming the file, for anything else.
    """
    text = str(data)
    if text.startswith(VOC):
        return read_voc(Path(text.removeprefix(VOC)))
    images, comma, file = text.removeprefix(COCO).rpartition(",")
    if not comma or not images or not file:
        raise ValueError(f"{text}: wanted coco:IMAGES,FILE.json, such as coco:train2017,instances_train2017.json")
    return read_coco(Path(images), Path(file))


def read_coco(images: Path, file: Path) -> list[AnnotatedImage]:
    """List the images of an instances file of MS-COCO; their labels are the names of the categories that they show.

    An image without annotations has no label. Crowd regions (`iscrowd`) count as any other object, as in the
    multi-label literature (ML-GCN, arXiv:1904.03582; ASL, arXiv:2009.14119).

    images: the folder that the file names begin at.

    Raises ValueError, naming the file, for one of another form, or with ids that it does not list.
    """
    if not images.is_dir():
        raise ValueError(f"{images}: no such folder; wanted the images that {file} lists")
    content = _read_json(file)
    try:
        check_shape(content, _COCO)
        names = {category["id"]: class_name(category["name"].strip()) for category in content["categories"]}
        listed = {image["id"]: os.path.normpath(image["file_name"]) for image in content["images"]}
        _check_unique("categories", list(names.values()), len(content["categories"]))
        _check_unique("images", list(listed.values()), len(content["images"]))
        labels: dict[int, set[str]] = defaultdict(set)
        for number, annotation in enumerate(content["annotations"]):
            image, category = annotation["image_id"], annotation["category_id"]
            if image not in listed or category not in names:
                unknown = f"image_id {image}" if image not in listed else f"category_id {category}"
                raise ValueError(f"annotations[{number}] has {unknown}, which the file does not list")
            labels[image].add(names[category])
        home = images.absolute()
        rows = [
            AnnotatedImage(home / to_os(name), name, tuple(sorted(labels[image])), None)
            for image, name in listed.items()
        ]
        return sorted(rows, key=lambda row: to_bytes(row.name))
    except ValueError as error:
        raise ValueError(f"{file}: {error}; {_WANTED_COCO}") from error


def read_voc(folder: Path) -> list[AnnotatedImage]:
    """List the images of a PASCAL VOC folder (VOCdevkit/VOC2007); their labels are the names of the objects in them.

    An image without objects has no label. `difficult` objects count as any other, as in the training targets of ML-GCN
    (arXiv:1904.03582). VOC's own classification score leaves out an image for a class of which it shows difficult
    objects alone; the mean average precision here does not.

    The splits are trainval and test where ImageSets/Main lists both, else train and val. Without these lists every
    image is listed, without a split.

    Raises ValueError, naming the file, for a folder of another form, a listed image without annotation, and an
    annotation that cannot be read.
    """
    annotations = folder / "Annotations"
    if not annotations.is_dir() or not (folder / "JPEGImages").is_dir():
        raise ValueError(f"{folder}: lacks Annotations/ or JPEGImages/; wanted a folder such as VOCdevkit/VOC2007")
    lists = folder / "ImageSets" / "Main"
    for names in _VOC_SPLITS:
        files = {split: lists / f"{name}.txt" for split, name in names.items()}
        if all(file.is_file() for file in files.values()):
            return [
                _read_voc_image(folder, stem, split, file)
                for split, file in files.items()
                for stem in sorted(_read_stems(file), key=to_bytes)
            ]
    stems = sorted((path.stem for path in annotations.glob("*.xml")), key=to_bytes)
    if not stems:
        raise ValueError(f"{annotations}: holds no annotation; wanted files such as 000001.xml")
    return [_read_voc_image(folder, stem, None, annotations) for stem in stems]


def _read_json(file: Path) -> Any:
    try:
        return json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file; {_WANTED_COCO}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: is not JSON ({error}); {_WANTED_COCO}") from error


def _check_unique(kind: str, names: Sequence[str], num_listed: int) -> None:
    if len(names) < num_listed:
        raise ValueError(f"two of its {kind} have one id")
    (name, count), *_ = Counter(names).most_common(1) or [("", 0)]
    if count > 1:
        raise ValueError(f"two of its {kind} are called {name!r}")


def _read_stems(file: Path) -> list[str]:
    """Return the image names of a list of ImageSets/Main, each on a line of its own."""
    try:
        stems = file.read_text(encoding="utf-8").split()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: is not text ({error}); wanted a line with the name of each image") from error
    if not stems or len(set(stems)) < len(stems):
        problem = "lists an image twice" if stems else "lists nothing"
        raise ValueError(f"{file}: {problem}; wanted a line with the name of each image, such as 000005")
    return stems


def _read_voc_image(folder: Path, stem: str, split: str | None, listed_in: Path) -> AnnotatedImage:
    file = folder / "Annotations" / f"{stem}.xml"
    wanted = "wanted <annotation> with <object><name>CATEGORY</name></object> for each object"
    try:
        root = ET.fromstring(file.read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{file}: no such file, and {listed_in} lists {stem}; {wanted}") from None
    except ET.ParseError as error:
        raise ValueError(f"{file}: is not XML ({error}); {wanted}") from error
    if root.tag != "annotation":
        raise ValueError(f"{file}: its root is <{root.tag}>; {wanted}")
    try:
        labels = {class_name((item.findtext("name") or "").strip()) for item in root.findall("object")}
    except ValueError as error:
        raise ValueError(f"{file}: {error}; {wanted}") from error
    name = f"{stem}.jpg"
    return AnnotatedImage(folder.absolute() / "JPEGImages" / name, name, tuple(sorted(labels)), split)
