"""The label spaces of published weights, and lists of classes in files."""

from __future__ import annotations

import re
from pathlib import Path

from ...shards.label_spaces import PRUNED_SPACES, label_space_wnids
from ..sources.class_names import class_id

# A class and what may follow it: a wnid and a remark, or a name up to a tab or a comment.
_LINE = re.compile(r"(?!#)(?:(?P<wnid>n\d{8})(?=[\s#]|$)|(?P<name>[^\t]+?)(?=\t|\s+#|$))")


def read_classes(name_or_file: str) -> list[str]:
    """Return the classes of a label space by its name (`PRUNED_SPACES`), else those that a file lists, in its order.

    A file has one class a line, by name or identifier; the identifiers are returned. What follows a wnid or a tab is a
    remark, and so is what follows a `#` at the beginning of the line or after a blank. Raises ValueError for what is
    neither name nor file, a file without classes, and a class that stands twice.
    """
    if name_or_file in PRUNED_SPACES:
        return label_space_wnids(name_or_file)
    path = Path(name_or_file)
    if not path.is_file():
        raise ValueError(
            f"{name_or_file}: no such file, and no label space of that name; wanted {', '.join(PRUNED_SPACES)}, "
            "or a file with one class a line"
        )
    return _read_list(path)


def _read_list(path: Path) -> list[str]:
    line_of: dict[str, int] = {}
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 text ({error.reason}); wanted one class a line") from error
    for number, line in enumerate(lines, start=1):
        match = _LINE.match(line.strip())
        if not match:
            continue
        wnid = class_id(match["wnid"] or match["name"])
        if wnid in line_of:
            raise ValueError(f"{path}, line {number}: {match[0]} stands on line {line_of[wnid]} already")
        line_of[wnid] = number
    if not line_of:
        raise ValueError(f"{path}: names no class; wanted one class a line")
    return list(line_of)
