"""Labelled images for fine-tuning: class folders and lists of `path label[,label]` lines, with or without a split."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .annotations import is_annotated, read_annotated
from .class_names import class_id, class_labels, class_name
from .folders import ClassFolder
from .gathering import gather_folder, log_split
from .label_list import NO_LABEL, read_list
from .members import DUPLICATE, from_os, ignored_kind, readable, to_bytes, to_os

log = logging.getLogger(__name__)

VAL_SHARE = 0.1  # held back for validation by default
NUM_VAL = 50  # at most of a class, by default


class LabelledImage(NamedTuple):
    """A labelled image file.

    path:   absolute.
    name:   its path below the data, or in the list: unique, and the same when the data are moved.
    labels: in order.
    split:  train, val, or None where the data have no splits.
    """

    path: Path
    name: str
    labels: tuple[str, ...]
    split: str | None = None


def read_labelled(data: Path, val_data: Path | None = None, val_share: float | None = None) -> list[LabelledImage]:
    """List the images of class folders, a list or annotation files, each with a split.

    See `read_class_folders`, `read_label_list` and `read_annotated`.

    val_data:  validation images, in any of these forms. Default: the split of the data's own folders, else the images
               that `hold_back` takes.
    val_share: the share that is held back; None: a tenth, of a class NUM_VAL at most.

    Raises ValueError where two of these are given, for a class without training images, for training images that all
    have the same labels, and for validation images that have none.
    """
    images = _read(data)
    has_split = any(image.split for image in images)
    if val_data:
        if has_split:
            raise ValueError(f"{data}: has a folder for validation, and {val_data} was given too; leave one out")
        parts = {"train": images, "val": _read(val_data)}
        images = [
            image._replace(name=f"{split}/{image.name}", split=split) for split, part in parts.items() for image in part
        ]
    elif not has_split:
        images = hold_back(images, val_share)
    if val_share is not None and (val_data or has_split):
        raise ValueError(
            f"{val_data or data}: holds the images for validation, and a share of {val_share} to hold back was given "
            "too; leave it out"
        )
    trained = {image.labels for image in images if image.split == "train"}
    only_val = {image.labels for image in images} - trained
    if only_val and not has_several_labels(images):
        (label,) = min(only_val)
        raise ValueError(
            f"{val_data or data}: {len(only_val)} classes have validation images and no training images, such as "
            f"{label!r}; wanted the same classes in both"
        )
    if len(trained) == 1:
        (labels,) = trained
        have = f"have the same labels, {','.join(labels)}" if labels else "have no label"
        raise ValueError(
            f"{data}: all training images {have}, so there is nothing to learn; wanted two or more classes, or a "
            f"list with some images that have a label and some that lack it (`{NO_LABEL}`: none)"
        )
    for_val = [image.labels for image in images if image.split == "val"]
    if for_val and not any(for_val):
        raise ValueError(
            f"{val_data or data}: none of the {len(for_val):,} validation images has a label; wanted some that "
            "have, or --val-share 0 for no validation"
        )
    return images


def _read(data: Path) -> list[LabelledImage]:
    if is_annotated(data):
        return [LabelledImage(*image) for image in read_annotated(data)]
    return read_class_folders(data) if data.is_dir() else read_label_list(data)


def read_class_folders(folder: Path) -> list[LabelledImage]:
    """List the images of FOLDER/CLASS/..., or of FOLDER/train/CLASS/... and FOLDER/val/CLASS/..., by split and path.

    Folders are read as `in21k preprocess folder` does (see `read_layout`). The log counts the files that are left out:
    those of an `ignored_kind`, those without an image suffix, and those in no class folder. Raises ValueError where no
    class folder holds an image.
    """
    folder = folder.absolute()
    source = gather_folder(folder)
    log_split(folder, source.layout)
    labelled: list[LabelledImage] = []
    others = [reject.name for reject in source.rejects if reject.reason != DUPLICATE]
    in_order = sorted(source.class_folders(), key=lambda entry: (entry[1].split != "train", to_bytes(entry[0])))
    for _, place, loose in in_order:
        label = _label_of(folder, place)
        images, not_images = loose.paths_by_suffix()
        labelled += [LabelledImage(folder / to_os(path), path, (label,), place.split) for path in images]
        others += map(readable, not_images)
    others += source.tar_names
    if others:
        log.warning(
            "%s: left out %d files (the first: %s) that are not images or lie in no class folder",
            folder,
            len(others),
            others[0],
        )
    _log_ignored(folder, source.ignored)
    if not labelled:
        raise ValueError(
            f"{folder}: holds no class folders with images; wanted {folder}/CLASS/1.jpg, or {folder}/train/CLASS/1.jpg "
            f"and {folder}/val/CLASS/1.jpg"
        )
    return labelled


def _label_of(folder: Path, place: ClassFolder) -> str:
    try:
        return class_name(place.name or "")
    except ValueError as error:
        raise ValueError(f"{readable(from_os(str(folder)))}/{readable(place.home)}: {error}") from error


def _log_ignored(data: Path, ignored: Mapping[str, int]) -> None:
    if ignored:
        named = ", ".join(f"{kind} {count:,}" for kind, count in sorted(ignored.items()))
        log.info("%s: ignored %d files of kinds that are never images (%s)", data, sum(ignored.values()), named)


def _without_ignored(data: Path, images: Iterable[LabelledImage]) -> list[LabelledImage]:
    kinds = [(image, ignored_kind(image.name)) for image in images]
    _log_ignored(data, Counter(kind for _, kind in kinds if kind))
    return [image for image, kind in kinds if not kind]


def read_label_list(file: Path) -> list[LabelledImage]:
    """Read a list of images and their labels (see `read_list`).

    Files of an `ignored_kind` are left out. Where a path is absolute, images are named by their paths below their
    common folder, so that names stay the same when the data are moved. A path that is listed twice with the same
    labels counts once, with a warning. Raises ValueError naming a line that cannot be read or that lists a path again
    with other labels, and for an empty list.
    """
    home = file.absolute().parent
    images: list[LabelledImage] = []
    lines: dict[Path, tuple[int, tuple[str, ...]]] = {}  # per path its line and labels
    num_again = 0
    is_absolute = False
    for number, listed_path, labels in read_list(file):
        name = os.path.normpath(listed_path)
        path = Path(os.path.normpath(home / to_os(name)))
        first, first_labels = lines.setdefault(path, (number, labels))
        if first_labels != labels:
            raise ValueError(
                f"{file}, line {number}: {readable(listed_path)[:80]!r} is on line {first} too, with other labels; "
                "wanted one line with all of its labels"
            )
        if first != number:
            num_again += 1
            continue
        is_absolute |= name.startswith("/")
        images.append(LabelledImage(path, name, labels))
    images = _without_ignored(file, images)
    if not images:
        raise ValueError(f"{file}: lists nothing; wanted lines of a path and labels, such as `street/1.jpg car,person`")
    if num_again:
        log.warning("%s: lists %d images more than once; each counts once", file, num_again)
    if is_absolute:
        root = common_folder(image.path for image in images)
        return [image._replace(name=from_os(str(image.path.relative_to(root)))) for image in images]
    return images


def common_folder(paths: Iterable[Path]) -> Path:
    """Return the innermost folder that holds all these files, directly or in subfolders."""
    return Path(os.path.commonpath({path.parent for path in paths}))


def hold_back(images: Sequence[LabelledImage], share: float | None = None) -> list[LabelledImage]:
    """Put `share` of the images of each class into val, and the others into train; None: as in `preprocess folder`.

    Val takes the first by byte order of their names. Multi-label images are drawn from all, by a hash of their names.
    """
    groups: dict[tuple[str, ...], list[LabelledImage]] = defaultdict(list)
    several = has_several_labels(images)
    for image in images:
        groups[() if several else image.labels].append(image)
    placed: list[LabelledImage] = []
    for group in groups.values():
        ordered = sorted(group, key=_hash if several else _name)
        num_val = num_held_back(len(group), VAL_SHARE if share is None else share)
        if share is None and not several:
            num_val = min(num_val, NUM_VAL)
        placed += [image._replace(split="val" if n < num_val else "train") for n, image in enumerate(ordered)]
    return placed


def _name(image: LabelledImage) -> bytes:
    return to_bytes(image.name)


def _hash(image: LabelledImage) -> bytes:
    return hashlib.sha256(_name(image)).digest()


def num_held_back(num_images: int, share: float) -> int:
    """Return how many images of a class are for validation: a share, at least one of two, and none of one.

    >>> [num_held_back(number, 0.1) for number in (1, 2, 10, 25, 400)]
    [0, 1, 1, 2, 40]
    """
    return min(max(round(share * num_images), 1), num_images - 1) if share and num_images else 0


def has_several_labels(images: Iterable[LabelledImage]) -> bool:
    """Tell whether any image does not have exactly one label."""
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
