"""The classes of published weights (label spaces), and lists of classes in files."""

from __future__ import annotations

import re
from pathlib import Path

from ...shards.label_spaces import PRUNED_SPACES, label_space_wnids
from ..sources.class_names import class_id

# A line: a wnid and a remark, or a name up to a tab or a comment.
_LINE = re.compile(r"(?!#)(?:(?P<wnid>n\d{8})(?=[\s#]|$)|(?P<name>[^\t]+?)(?=\t|\s+#|$))")


def read_classes(name_or_file: str) -> list[str]:
    """Return the identifiers of the classes of a label space (PRUNED_SPACES), or of those that a file lists, in order.

    A file has one class a line, by name or identifier. Text after a wnid, after a tab, and after a `#` that begins the
    line or follows a blank is a remark. Raises ValueError for an unknown name, a file without classes, and a class that
    is listed twice.
    """
    if name_or_file in PRUNED_SPACES:
        return label_space_wnids(name_or_file)
    path = Path(name_or_file)
    if not path.is_file():
        raise ValueError(
            f"{name_or_file}: neither a file nor a known label space; wanted {', '.join(PRUNED_SPACES)}, "
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
            raise ValueError(f"{path}, line {number}: {match[0]} is on line {line_of[wnid]} too; list it once")
        line_of[wnid] = number
    if not line_of:
        raise ValueError(f"{path}: lists no class; wanted one class a line")
    return list(line_of)
