"""The label spaces of published weights, and lists of classes in files."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from .layouts import CLASS_NAME

# Name -> timm's list of the synsets, which travels with timm as package data.
LABEL_SPACES = {
    "fall11p": "imagenet21k_miil_synsets.txt",  # 11,221 classes: ImageNet-21K-P of the fall 2011 release
    "winter21p": "imagenet21k_miil_w21_synsets.txt",  # 10,450: ImageNet-21K-P of the winter 2021 release
    "in12k": "imagenet12k_synsets.txt",  # 11,821: timm's ImageNet-12K
}


def read_classes(name_or_file: str) -> list[str]:
    """Return the classes of a label space by its name (`LABEL_SPACES`), else those that a file lists, in its order.

    A file has one class a line, the line's first word; blank lines and what follows a `#` do not count. Raises
    ValueError for what is neither name nor file, a file without classes, a name that no class can have, and a class
    that stands twice.
    """
    if name_or_file in LABEL_SPACES:
        return _read_list(timm_list(LABEL_SPACES[name_or_file]))
    path = Path(name_or_file)
    if not path.is_file():
        raise ValueError(
            f"{name_or_file}: no such file, and no label space of that name; wanted {', '.join(LABEL_SPACES)}, "
            "or a file with one class a line"
        )
    return _read_list(path)


def timm_list(name: str) -> Path:
    """Return where a synset list of timm lies, without importing timm, which takes seconds."""
    spec = find_spec("timm")
    folders = (spec.submodule_search_locations if spec else None) or []
    for folder in folders:
        path = Path(folder) / "data" / "_info" / name
        if path.is_file():
            return path
    raise ValueError(f"the installed timm lacks its list {name}; install timm 1.0.15 or later")


def check_class_name(name: str, where: str) -> None:
    """Raise ValueError, beginning with `where`, for a name that no class can have."""
    if not CLASS_NAME.fullmatch(name):
        raise ValueError(f"{where}: {name!r} is no class name; wanted letters, digits, '_' and '-' alone")


def _read_list(path: Path) -> list[str]:
    line_of: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is no UTF-8 text ({error.reason}); wanted one class a line") from error
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        check_class_name(words[0], f"{path}, line {number}")
        if words[0] in line_of:
            raise ValueError(f"{path}, line {number}: {words[0]} stands on line {line_of[words[0]]} already")
        line_of[words[0]] = number
    if not line_of:
        raise ValueError(f"{path}: names no class; wanted one class a line")
    return list(line_of)
