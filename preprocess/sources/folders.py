"""Which folders of a source are classes, and which are splits."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

WNID = re.compile(r"n\d{8}")
# The folders of the official processed archive, and the split of the images in each.
GIVEN_SPLITS = {"imagenet21k_train": "train", "imagenet21k_val": "val", "imagenet21k_small_classes": "small"}
TRAIN_FOLDER = "train"
VAL_FOLDERS = ("val", "valid", "validation", "test")  # the first of these that exists


class ClassFolder(NamedTuple):
    """The class and split of the images in a folder.

    name:  of the class; None where the folder is in no class.
    home:  path of the class's folder.
    split: that the source puts the images in; None where it has no splits.
    """

    name: str | None
    home: str
    split: str | None


NOWHERE = ClassFolder(None, "", None)


@dataclass(frozen=True)
class Layout:
    """How a source's folders are read; see `read_layout`.

    root:      the folder that holds the classes or splits; empty for the source itself.
    val:       the validation folder beside `train` in the root; None where the source has no splits.
    unused:    further validation folders in the root, which are ignored.
    processed: whether this is the official processed archive, whose split and classes are kept.
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
        """Return the ignored split folder that a folder lies in; None for any other."""
        top = _below(folder, self.root).partition("/")[0]
        return top if top in self.unused else None


@lru_cache(maxsize=4096)
def class_of_folder(folder: str, layout: Layout | None = None) -> ClassFolder:
    """Return the class and split of the images in a folder.

    The class is the innermost folder whose name is a wnid, else the folder directly below the root or the split.
    Without a layout, as for a path in a list, it is the innermost folder.

    >>> class_of_folder("imagenet21k_val/n01440764")
    ClassFolder(name='n01440764', home='imagenet21k_val/n01440764', split='val')
    >>> class_of_folder("train/dog/small", Layout(val="val")), class_of_folder("dog/small")
    (ClassFolder(name='dog', home='train/dog', split='train'), ClassFolder(name='small', home='dog/small', split=None))
    """
    parts = folder.split("/")
    begin, split = 0, None
    if numbers := [number for number, part in enumerate(parts[:-1]) if part in GIVEN_SPLITS]:
        begin, split = numbers[0] + 1, GIVEN_SPLITS[parts[numbers[0]]]
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
    return ClassFolder(parts[at], "/".join(parts[: at + 1]), split)


def possible_classes(folder: str) -> list[str]:
    """Return all names that the class of a folder can have while the layout is unknown."""
    parts = [part for part in folder.split("/") if part not in ("", "..") and _is_utf8(part)]
    wnid = next((part for part in reversed(parts) if WNID.fullmatch(part)), None)
    return parts if wnid is None else [wnid]


def is_processed(path: str) -> bool:
    """Tell whether a member's path belongs to the official processed archive."""
    return any(part in GIVEN_SPLITS for part in path.split("/")[:-2])


def read_layout(folders: Collection[str]) -> Layout:
    """Return how the folders of a source are read. folders: those that hold images.

    The root is the deepest folder above all images that has two or more subfolders. A root with a folder `train`,
    which has no images of its own, beside one of VAL_FOLDERS has splits. Raises ValueError where that validation
    folder has no subfolders.
    """
    if any(is_processed(f"{folder}/") for folder in folders):
        return Layout(processed=True)
    paths = [path for path in map(_parts, folders) if path and ".." not in path]
    depth = _depth_of_root(paths)
    tops = {path[depth] for path in paths}
    layout = Layout("/".join(paths[0][:depth]) if paths else "")
    flat = {path[depth] for path in paths if len(path) == depth + 1}
    val_folders = [name for name in VAL_FOLDERS if name in tops]
    if not val_folders or TRAIN_FOLDER not in tops or TRAIN_FOLDER in flat:
        return layout
    val, *unused = val_folders
    if not any(path[depth] == val and len(path) > depth + 1 for path in paths):
        raise ValueError(
            f"{'/'.join(filter(None, (layout.root, val)))}/ lies beside {TRAIN_FOLDER}/ and has images, but no class "
            f"folders; wanted {val}/CLASS/1.jpg: sort its images into folders, or move it away"
        )
    return Layout(layout.root, val, tuple(unused))


def check_class_tars(folders: Iterable[str]) -> None:
    """Raise ValueError where class tars lie in split folders: a class would have two tars."""
    tops = {path[-1] for path in map(_parts, folders) if path}
    val = next((name for name in VAL_FOLDERS if name in tops), None)
    if val and TRAIN_FOLDER in tops:
        raise ValueError(
            f"has {TRAIN_FOLDER}/ beside {val}/ and class tars in them; wanted a split of class folders, or class tars "
            "without one: unpack them"
        )


def _depth_of_root(paths: Collection[tuple[str, ...]]) -> int:
    """Return the number of folders above the classes or splits."""
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
    """Return the path of a folder below the root; empty for a folder elsewhere."""
    folder = folder.lstrip("/")
    if not root:
        return folder
    return folder[len(root) + 1 :] if folder.startswith(f"{root}/") else ""
