"""Images with labels of any kind: class folders, and lists of `path label[,label]` lines, of one or of two splits."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .archive import DUPLICATE, from_os, ignored_kind, readable, to_bytes, to_os
from .class_names import class_id, class_labels, class_name
from .folders import Place
from .gathering import gather_folder, say_split
from .label_list import NO_LABEL, read_list

log = logging.getLogger(__name__)

VAL_SHARE = 0.1  # held back where nothing else is said


class LabelledImage(NamedTuple):
    """A labelled image file.

    path:   absolute.
    name:   its path below the data, or as a list has it: the same wherever the data lie, and another for each image.
    labels: in order.
    split:  train, val, or None where nobody says.
    """

    path: Path
    name: str
    labels: tuple[str, ...]
    split: str | None = None


def read_labelled(data: Path, val_data: Path | None = None, val_share: float | None = None) -> list[LabelledImage]:
    """List the images of class folders or of a list (see `read_class_folders`, `read_label_list`), each with a split.

    val_data:  the same for validation; without, and where folders make no split, `hold_back` takes `val_share`.
    val_share: None: a tenth, where it is wanted.

    Raises ValueError where two of these give a split, for a class of one label without an image to train on, where the
    images to train on differ in no label, and where those for validation have none.
    """
    read = read_class_folders if data.is_dir() else read_label_list
    images = read(data)
    given = any(image.split for image in images)
    if val_data:
        if given:
            raise ValueError(f"{data}: has a folder for validation, and {val_data} was given too; leave one out")
        read = read_class_folders if val_data.is_dir() else read_label_list
        parts = {"train": images, "val": read(val_data)}
        images = [
            image._replace(name=f"{split}/{image.name}", split=split) for split, part in parts.items() for image in part
        ]
    elif not given:
        images = hold_back(images, VAL_SHARE if val_share is None else val_share)
    if val_share is not None and (val_data or given):
        raise ValueError(
            f"{val_data or data}: holds the images for validation, and a share of {val_share} to hold back was given "
            "too; leave it out"
        )
    trained = {image.labels for image in images if image.split == "train"}
    only_val = {image.labels for image in images} - trained
    if only_val and not has_several_labels(images):
        (label,) = min(only_val)
        raise ValueError(
            f"{val_data or data}: {len(only_val)} classes have images for validation and none to train on, such as "
            f"{label!r}; wanted the same classes in both"
        )
    if len(trained) == 1:
        (labels,) = trained
        have = f"have the same labels, {','.join(labels)}" if labels else "have no label"
        raise ValueError(
            f"{data}: all images to train on {have}, so there is nothing to learn; wanted two classes or more, or a "
            f"list with some images that have a label and some that lack it (`{NO_LABEL}`: none)"
        )
    for_val = [image.labels for image in images if image.split == "val"]
    if for_val and not any(for_val):
        raise ValueError(
            f"{val_data or data}: none of the {len(for_val):,} images for validation has a label; wanted some that "
            "have, or --val-share 0 for no validation"
        )
    return images


def read_class_folders(folder: Path) -> list[LabelledImage]:
    """List the images of FOLDER/CLASS/..., or of FOLDER/train/CLASS/... and FOLDER/val/CLASS/..., by split and path.

    Folders are read as `in21k preprocess folder` does (see `read_layout`). What is left out, the log says: files that
    are known to be no images (see `ignored_kind`), those without an image suffix, and what lies in no class folder.
    Raises ValueError where no class folder holds an image.
    """
    folder = folder.absolute()
    source = gather_folder(folder)
    say_split(folder, source.layout)
    found: list[LabelledImage] = []
    others = [reject.name for reject in source.rejects if reject.reason != DUPLICATE]
    in_order = sorted(source.class_folders(), key=lambda each: (each[1].split != "train", to_bytes(each[0])))
    for _, place, loose in in_order:
        label = _label_of(folder, place)
        images, not_images = loose.paths_by_suffix()
        found += [LabelledImage(folder / to_os(path), path, (label,), place.split) for path in images]
        others += map(readable, not_images)
    others += source.tar_names
    if others:
        log.warning(
            "%s: left out %d files (the first: %s): no images, or in no class folder", folder, len(others), others[0]
        )
    _say_ignored(folder, source.ignored)
    if not found:
        raise ValueError(
            f"{folder}: holds no class folders with images; wanted {folder}/CLASS/1.jpg, or {folder}/train/CLASS/1.jpg "
            f"and {folder}/val/CLASS/1.jpg"
        )
    return found


def _label_of(folder: Path, place: Place) -> str:
    try:
        return class_name(place.name or "")
    except ValueError as error:
        raise ValueError(f"{readable(from_os(str(folder)))}/{readable(place.home)}: {error}") from error


def _say_ignored(data: Path, ignored: Mapping[str, int]) -> None:
    if ignored:
        named = ", ".join(f"{kind} {count:,}" for kind, count in sorted(ignored.items()))
        log.info("%s: ignored %d files that are known to be no images (%s)", data, sum(ignored.values()), named)


def _without_ignored(data: Path, images: Iterable[LabelledImage]) -> list[LabelledImage]:
    kinds = [(image, ignored_kind(image.name)) for image in images]
    _say_ignored(data, Counter(kind for _, kind in kinds if kind))
    return [image for image, kind in kinds if not kind]


def read_label_list(file: Path) -> list[LabelledImage]:
    """Read a list of images and their labels (see `read_list`).

    Files that are known to be no images are left out, as of class folders. Where a path is absolute, the images' names
    are their paths below the folder that all have in common: a list that was written anew for another place then names
    them alike. A path that is listed again with the same labels counts once, which the log says. Raises ValueError
    naming the line that is none, or that lists a path again with other labels; and for a list of nothing.
    """
    home = file.absolute().parent
    found: list[LabelledImage] = []
    listed: dict[Path, tuple[int, tuple[str, ...]]] = {}  # at which line, with which labels
    num_again = 0
    is_absolute = False
    for number, given_path, labels in read_list(file):
        name = os.path.normpath(given_path)
        path = Path(os.path.normpath(home / to_os(name)))
        first, given = listed.setdefault(path, (number, labels))
        if given != labels:
            raise ValueError(
                f"{file}, line {number}: {readable(given_path)[:80]!r} is on line {first} too, with other labels; "
                "wanted one line with all of its labels"
            )
        if first != number:
            num_again += 1
            continue
        is_absolute |= name.startswith("/")
        found.append(LabelledImage(path, name, labels))
    found = _without_ignored(file, found)
    if not found:
        raise ValueError(f"{file}: lists nothing; wanted lines of a path and labels, such as `street/1.jpg car,person`")
    if num_again:
        log.warning("%s: lists %d images more than once, which count once", file, num_again)
    if is_absolute:
        root = common_folder(image.path for image in found)
        return [image._replace(name=from_os(str(image.path.relative_to(root)))) for image in found]
    return found


def common_folder(paths: Iterable[Path]) -> Path:
    """Return the innermost folder below which all these files lie."""
    return Path(os.path.commonpath({path.parent for path in paths}))


def hold_back(images: Sequence[LabelledImage], share: float) -> list[LabelledImage]:
    """Put images without a split into one: of each class (of all, where images have several labels) `share` into val.

    Which ones follows from their names alone. A class of one label keeps an image at least in each, where it has two.
    """
    groups: dict[tuple[str, ...], list[LabelledImage]] = defaultdict(list)
    several = has_several_labels(images)
    for image in images:
        groups[() if several else image.labels].append(image)
    placed: list[LabelledImage] = []
    for group in groups.values():
        drawn = sorted(group, key=lambda image: hashlib.sha256(to_bytes(image.name)).digest())
        num_val = min(max(round(share * len(drawn)), 1), len(drawn) - 1) if share else 0
        placed += [image._replace(split="val" if n < num_val else "train") for n, image in enumerate(drawn)]
    return placed


def has_several_labels(images: Iterable[LabelledImage]) -> bool:
    """Tell whether an image has another number of labels than one."""
    return any(len(image.labels) != 1 for image in images)


def classes_of_labels(labels: Iterable[str]) -> dict[str, str]:
    """Return the identifier of each label's class; labels that are all numbers keep their order.

    Raises ValueError where two labels have one identifier.

    >>> classes_of_labels(["hot dog", "cat"]), classes_of_labels(["9", "10"])
    ({'cat': 'cat', 'hot dog': 'hot_dog-836cef5d'}, {'10': '10', '9': '09'})
    """
    ids = {label: class_id(name) for label, name in class_labels(sorted(set(labels))).items()}
    label_of: dict[str, str] = {}
    for label, wnid in ids.items():
        if (other := label_of.setdefault(wnid, label)) != label:
            raise ValueError(f"the labels {other!r} and {label!r} are one class, {wnid}; wanted one of the two")
    return ids
