"""What the folders of a source mean: which one names a class, and which makes a split."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

WNID = re.compile(r"n\d{8}")
# The folders of the official processed archive, and what each holds of the split that it makes.
GIVEN_SPLITS = {"imagenet21k_train": "train", "imagenet21k_val": "val", "imagenet21k_small_classes": "small"}
TRAIN_FOLDER = "train"
VAL_FOLDERS = ("val", "valid", "validation", "test")  # the first of these that is there


class Place(NamedTuple):
    """What a folder says of the images in it.

    name:  of their class, as the folder has it; None: none.
    home:  the folder of the class.
    split: that the source puts them in.
    """

    name: str | None
    home: str
    split: str | None


NOWHERE = Place(None, "", None)


@dataclass(frozen=True)
class Layout:
    """How a source's folders are read; see `read_layout`.

    root:      the folder in which classes or splits lie; empty: the source itself.
    val:       the folder in the root that is for validation, beside `train`; None: the folders make no split.
    unused:    folders in the root that would be splits too, and are ignored.
    processed: this is the official processed archive, which has a split and classes of its own.
    """

    root: str = ""
    val: str | None = None
    unused: tuple[str, ...] = ()
    processed: bool = False

    @classmethod
    def load(cls, content: dict[str, Any]) -> Layout:
        """Return a layout from JSON values."""
        return cls(content["root"], content["val"], tuple(content["unused"]), content["processed"])

    def unused_of(self, folder: str) -> str | None:
        """Return the ignored folder in which another lies."""
        top = _below(folder, self.root).partition("/")[0]
        return top if top in self.unused else None


@lru_cache(maxsize=4096)
def place_of(folder: str, layout: Layout | None = None) -> Place:
    """Return the place that a folder's path names.

    The class is the nearest folder that is called like a wnid, else the one directly below the root or the split; where
    no layout is known, as of a path that a list names, the innermost one.

    >>> place_of("imagenet21k_val/n01440764")
    Place(name='n01440764', home='imagenet21k_val/n01440764', split='val')
    >>> place_of("train/dog/small", Layout(val="val")), place_of("dog/small")
    (Place(name='dog', home='train/dog', split='train'), Place(name='small', home='dog/small', split=None))
    """
    parts = folder.split("/")
    begin, split = 0, None
    if given := [number for number, part in enumerate(parts[:-1]) if part in GIVEN_SPLITS]:
        begin, split = given[0] + 1, GIVEN_SPLITS[parts[given[0]]]
    elif layout is not None:
        below = _below(folder, layout.root)
        begin = len(parts) - len(below.split("/")) if below else len(parts)
        if layout.val is not None and below:
            split = {TRAIN_FOLDER: "train", layout.val: "val"}.get(parts[begin])
            begin = begin + 1 if split else len(parts)
    first = begin if layout is not None else len(parts) - 1
    at = next((number for number in reversed(range(len(parts))) if WNID.fullmatch(parts[number])), first)
    if at >= len(parts) or parts[at] in ("", ".."):
        return NOWHERE
    return Place(parts[at], "/".join(parts[: at + 1]), split)


def possible_classes(folder: str) -> list[str]:
    """Return the names that the class of a folder can have, whatever the layout turns out to be."""
    parts = [part for part in folder.split("/") if part not in ("", "..") and _is_utf8(part)]
    wnid = next((part for part in reversed(parts) if WNID.fullmatch(part)), None)
    return parts if wnid is None else [wnid]


def is_processed(path: str) -> bool:
    """Tell whether a member's path is one of the official processed archive."""
    return any(part in GIVEN_SPLITS for part in path.split("/")[:-2])


def read_layout(folders: Collection[str]) -> Layout:
    """Return how the folders of a source are read, of which these hold images.

    Where all images lie in one folder that has two or more, or lie deeper in one after another, this is the root. A
    split is assumed where the root has a folder `train` without images of its own beside one of VAL_FOLDERS. Raises
    ValueError where the latter has no folders.
    """
    if any(is_processed(f"{folder}/") for folder in folders):
        return Layout(processed=True)
    paths = [path for path in map(_parts, folders) if path and ".." not in path]
    depth = _depth_of_root(paths)
    tops = {path[depth] for path in paths}
    layout = Layout("/".join(paths[0][:depth]) if paths else "")
    flat = {path[depth] for path in paths if len(path) == depth + 1}
    found = [name for name in VAL_FOLDERS if name in tops]
    if not found or TRAIN_FOLDER not in tops or TRAIN_FOLDER in flat:
        return layout
    val, *unused = found
    if not any(path[depth] == val and len(path) > depth + 1 for path in paths):
        raise ValueError(
            f"{'/'.join(filter(None, (layout.root, val)))}/ lies beside {TRAIN_FOLDER}/ and has images, but no class "
            f"folders; wanted {val}/CLASS/1.jpg: sort its images into folders, or move it away"
        )
    return Layout(layout.root, val, tuple(unused))


def check_class_tars(folders: Iterable[str]) -> None:
    """Raise ValueError where folders that hold class tars look like splits: a class would have two."""
    tops = {path[-1] for path in map(_parts, folders) if path}
    val = next((name for name in VAL_FOLDERS if name in tops), None)
    if val and TRAIN_FOLDER in tops:
        raise ValueError(
            f"has {TRAIN_FOLDER}/ beside {val}/ and class tars in them; wanted a split of class folders, or class tars "
            "without one: unpack them"
        )


def _depth_of_root(paths: Collection[tuple[str, ...]]) -> int:
    """Return how many folders lie above classes or splits."""
    for depth in range(max(map(len, paths), default=0)):
        tops = {path[depth] for path in paths if len(path) > depth}
        if len(tops) > 1 or any(map(WNID.fullmatch, tops)) or any(len(path) == depth + 1 for path in paths):
            return depth
    return 0


def _is_utf8(name: str) -> bool:
    return name.encode("utf-8", "ignore").decode() == name


def _parts(folder: str) -> tuple[str, ...]:
    return tuple(part for part in folder.split("/") if part)


def _below(folder: str, root: str) -> str:
    """Return the path of a folder from the root on; empty where it lies elsewhere."""
    folder = folder.lstrip("/")
    if not root:
        return folder
    return folder[len(root) + 1 :] if folder.startswith(f"{root}/") else ""
