"""Images with labels of any kind: class folders, and lists of `path label[,label]` lines, of one or of two splits."""

from __future__ import annotations

import hashlib
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from .archive import is_image, readable, to_bytes
from .layouts import CLASS_NAME

NO_LABEL = "-"  # in a list: an image that shows none of the labels
VAL_FOLDERS = ("val", "valid", "validation", "test")
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]+")
_LONGEST = 64


class LabelledImage(NamedTuple):
    """An image file (an absolute path), its labels in order, and its split: train, val, or None where nobody says."""

    path: Path
    labels: tuple[str, ...]
    split: str | None = None


def read_labelled(data: Path, val_data: Path | None = None, val_share: float = 0.0) -> list[LabelledImage]:
    """List the images of class folders or of a list (see `read_class_folders`, `read_label_list`), each with a split.

    val_data:  the same for validation; without, and where folders make no split, `hold_back` takes `val_share`.

    Raises ValueError where both give a split, and for a class of one label without an image to train on.
    """
    read = read_class_folders if data.is_dir() else read_label_list
    images = read(data)
    given = any(image.split for image in images)
    if val_data:
        if given:
            raise ValueError(f"{data}: has a folder for validation, and {val_data} was given too; leave one out")
        read = read_class_folders if val_data.is_dir() else read_label_list
        images = [image._replace(split="train") for image in images] + [
            image._replace(split="val") for image in read(val_data)
        ]
    elif not given:
        images = hold_back(images, val_share)
    trained = {image.labels for image in images if image.split == "train"}
    only_val = {image.labels for image in images} - trained
    if only_val and not has_several_labels(images):
        (label,) = min(only_val)
        raise ValueError(
            f"{val_data or data}: {len(only_val)} classes have images for validation and none to train on, such as "
            f"{label!r}; wanted the same classes in both"
        )
    return images


def read_class_folders(folder: Path) -> list[LabelledImage]:
    """List the images of FOLDER/CLASS/..., or of FOLDER/train/CLASS/... and FOLDER/val/CLASS/... .

    In the latter `val` may also be called valid, validation or test, the first of these that there is. Links are
    followed from a class's folder on, not below it. Raises ValueError where no class folder holds an image.
    """
    folder = folder.absolute()
    train = folder / "train"
    if train.is_dir() and not any(is_image(entry.name) for entry in train.iterdir()):
        val = next((folder / name for name in VAL_FOLDERS if (folder / name).is_dir()), None)
        splits = {"train": train, "val": val} if val else {None: train}
        found = [image._replace(split=split) for split, home in splits.items() for image in _in_classes(home)]
    else:
        found = list(_in_classes(folder))
    if not found:
        raise ValueError(
            f"{folder}: holds no class folders with images; wanted {folder}/CLASS/1.jpg, or {folder}/train/CLASS/1.jpg "
            f"and {folder}/val/CLASS/1.jpg"
        )
    return found


def _in_classes(home: Path) -> Iterable[LabelledImage]:
    for class_folder in sorted(path for path in home.iterdir() if path.is_dir()):
        for place, _, names in sorted(os.walk(class_folder)):
            yield from (
                LabelledImage(Path(place, name), (class_folder.name,))
                for name in sorted(names, key=to_bytes)
                if is_image(name)
            )


def read_label_list(file: Path) -> list[LabelledImage]:
    """Read a list of `path label[,label]` lines; paths begin at the list's own folder, and may hold spaces.

    A label is any text without spaces and commas; `-` alone stands for none. Blank lines and those that begin with `#`
    do not count. Raises ValueError naming the line where it is neither, and for a list of nothing.
    """
    found: list[LabelledImage] = []
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            words = line.strip().rsplit(maxsplit=1)
            if not words or line.startswith("#"):
                continue
            labels = () if words[-1] == NO_LABEL else tuple(sorted(set(words[-1].split(","))))
            if len(words) != 2 or "" in labels or "\0" in line:
                raise ValueError(
                    f"{file}, line {number}: {readable(line.strip())[:80]!r}; wanted a path and labels with commas "
                    f"between, such as `street/1.jpg car,person`, or `{NO_LABEL}` for none"
                )
            path = Path(os.path.normpath(file.absolute().parent / words[0]))
            found.append(LabelledImage(path, labels))
    if not found:
        raise ValueError(f"{file}: lists nothing; wanted lines of a path and labels, such as `street/1.jpg car,person`")
    return found


def hold_back(images: Sequence[LabelledImage], share: float) -> list[LabelledImage]:
    """Put images without a split into one: of each class (of all, where images have several labels) `share` into val.

    Which ones follows from their paths alone. A class of one label keeps an image at least in each, where it has two.
    """
    groups: dict[tuple[str, ...], list[LabelledImage]] = defaultdict(list)
    several = has_several_labels(images)
    for image in images:
        groups[() if several else image.labels].append(image)
    placed: list[LabelledImage] = []
    for group in groups.values():
        drawn = sorted(group, key=lambda image: hashlib.sha256(to_bytes(str(image.path))).digest())
        num_val = min(max(round(share * len(drawn)), 1), len(drawn) - 1) if share else 0
        placed += [image._replace(split="val" if n < num_val else "train") for n, image in enumerate(drawn)]
    return placed


def has_several_labels(images: Iterable[LabelledImage]) -> bool:
    """Tell whether an image has another number of labels than one."""
    return any(len(image.labels) != 1 for image in images)


def class_names(labels: Iterable[str]) -> dict[str, str]:
    """Return for each label a name that a class can have, unique; labels that are all numbers keep their order.

    >>> class_names(["hot dog", "cat", "hot/dog"]), class_names(["9", "10"])
    ({'cat': 'cat', 'hot dog': 'hot_dog', 'hot/dog': 'hot_dog-2'}, {'10': '10', '9': '09'})
    """
    ordered = sorted(set(labels))
    found = {label: label for label in ordered if CLASS_NAME.fullmatch(label)}
    if len(found) == len(ordered) and all(label.isdigit() for label in ordered):
        width = max(map(len, ordered), default=0)
        numbered = {label: label.zfill(width) for label in ordered}
        found = numbered if len(set(numbered.values())) == len(ordered) else found
    taken = set(found.values())
    for label in ordered:
        if label not in found:
            plain = _UNSAFE.sub("_", label).strip("_")[:_LONGEST] or "class"
            name, number = plain, 1
            while name in taken:
                number += 1
                suffix = f"-{number}"
                name = plain[: _LONGEST - len(suffix)] + suffix
            found[label] = name
            taken.add(name)
    return {label: found[label] for label in ordered}
