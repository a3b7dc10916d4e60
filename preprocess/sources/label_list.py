"""Annotation lists: text lines of a path and labels, JSON lines, or CSV. The first line decides which."""

from __future__ import annotations

import csv
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from .class_names import class_name
from .members import readable, to_bytes, to_os

log = logging.getLogger(__name__)

NO_LABEL = "-"  # for an image with none of the labels
_WANTED = f"wanted a path and labels with commas between, such as `street/1.jpg car,person`, or `{NO_LABEL}` for none"
_WANTED_JSON = 'wanted JSON lines such as {"path": "street/1.jpg", "labels": ["car", "person"]}'
_WANTED_CSV = "wanted rows of the header's columns path and label (a cell that holds a comma stands in double quotes)"


class ListedImage(NamedTuple):
    """A line of a list: its number, the path as it stands there (UTF-8, see `to_os`), and its labels in order."""

    line: int
    path: str
    labels: tuple[str, ...]


def read_list(file: Path) -> Iterator[ListedImage]:
    """Read a list of images and their labels; paths begin at the list's own folder.

    Text lines: a path, a tab, and labels with commas between; `-` alone stands for no label. Without a tab the path
    ends at the first blank before which it names an existing file, else at the last blank. Blank lines and lines that
    begin with `#` are skipped.

    JSON lines: objects with `path`, and `label` (a string or a number) or `labels` (a list of these). A label may
    contain commas.

    CSV: a header with `path` and `label` (or `labels`), in any case, and labels as in text. Other columns are ignored,
    and the log names them.

    Raises ValueError naming the line that is none of these.
    """
    with file.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as lines:
        first = next((line for line in lines if line.strip()), "")
        lines.seek(0)
        rows = _json_rows if _is_json(first) else _csv_rows if _columns(first) else _text_rows
        try:
            for number, path, labels in rows(lines, file.parent):
                yield _checked(number, path, labels)
        except _LineError as error:
            raise ValueError(f"{file}, line {error.line}: {error}") from error


class _LineError(ValueError):
    def __init__(self, line: int, problem: str) -> None:
        super().__init__(line, problem)
        self.line, self.problem = line, problem

    def __str__(self) -> str:
        return self.problem


def _checked(number: int, path: str, labels: Iterable[str]) -> ListedImage:
    try:
        to_bytes(path)
        names = sorted({class_name(label.strip()) for label in labels})
    except UnicodeEncodeError as error:  # a path with half of a surrogate pair, as JSON can have it
        raise _LineError(number, f"the path {path!r} is not UTF-8") from error
    except ValueError as error:
        raise _LineError(number, str(error)) from error
    if not path or "\0" in path:
        raise _LineError(number, f"the path {readable(path)[:80]!r} is empty or holds a zero byte")
    return ListedImage(number, path, tuple(names))


def _text_rows(lines: Iterable[str], folder: Path) -> Iterator[tuple[int, str, Iterable[str]]]:
    for number, raw in enumerate(lines, 1):
        line = raw.strip()
        if not line or raw.startswith("#"):
            continue
        path, words = _parted(line, folder)
        labels = _labels_of(words)
        if not path or "" in labels or "\0" in line:
            raise _LineError(number, f"{readable(line)[:80]!r}; {_WANTED}")
        yield number, path, labels


def _parted(line: str, folder: Path) -> tuple[str, str]:
    """Split a line into path and labels; one of them is empty where the line has no blank."""
    if "\t" in line:
        path, _, words = line.partition("\t")
        return path.strip(), words.strip()
    blanks = [at for at, letter in enumerate(line) if letter == " "]
    at = next((at for at in blanks if line[at - 1] != " " and _is_file(folder, line[:at])), blanks[-1] if blanks else 0)
    return line[:at].strip(), line[at:].strip()


def _is_file(folder: Path, path: str) -> bool:
    return os.path.isfile(folder / to_os(path))  # noqa: PTH113  # Path.is_file raises for a name that is too long


def _labels_of(words: str) -> list[str]:
    return [] if words == NO_LABEL else [label.strip() for label in words.split(",")]


def _is_json(line: str) -> bool:
    if not line.lstrip().startswith("{"):
        return False
    try:
        return isinstance(json.loads(line), dict)
    except ValueError:
        return False


def _json_rows(lines: Iterable[str], _folder: Path) -> Iterator[tuple[int, str, Iterable[str]]]:
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            row: Any = json.loads(line)
        except ValueError as error:
            raise _LineError(number, f"{readable(line.strip())[:80]!r} is not JSON; {_WANTED_JSON}") from error
        if not isinstance(row, dict) or not isinstance(row.get("path"), str) or ("label" in row) == ("labels" in row):
            raise _LineError(number, f"{readable(line.strip())[:80]!r}; {_WANTED_JSON}")
        labels: Any = [row["label"]] if "label" in row else row["labels"]
        if not isinstance(labels, list) or not all(map(_is_label, labels)):
            raise _LineError(number, f"its labels are {str(labels)[:80]}; {_WANTED_JSON}")
        yield number, row["path"], map(str, labels)


def _is_label(value: Any) -> bool:
    return type(value) is int or (isinstance(value, str) and bool(value.strip()))


def _columns(line: str) -> tuple[int, int] | None:
    """Return the positions of `path` and `label` in a CSV header; None for any other line."""
    cells = [cell.strip().casefold() for cell in next(csv.reader([line]), [])]
    of_labels = [at for at, cell in enumerate(cells) if cell in ("label", "labels")]
    return (cells.index("path"), of_labels[0]) if cells.count("path") == 1 and len(of_labels) == 1 else None


def _log_ignored(columns: list[str]) -> None:
    if columns:
        log.warning("ignoring the list's columns other than path and label: %s", ", ".join(map(readable, columns)))


def _csv_rows(lines: Iterable[str], _folder: Path) -> Iterator[tuple[int, str, Iterable[str]]]:
    reader = csv.reader(lines, strict=True)
    columns: tuple[int, int] | None = None
    try:
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if columns is None:
                columns = _columns(",".join(row))
                _log_ignored([cell for at, cell in enumerate(row) if at not in (columns or ())])
                continue
            if len(row) <= max(columns):
                raise _LineError(reader.line_num, f"{readable(','.join(row))[:80]!r}; {_WANTED_CSV}")
            path, labels = row[columns[0]].strip(), _labels_of(row[columns[1]].strip())
            if "" in labels:
                raise _LineError(reader.line_num, f"{readable(','.join(row))[:80]!r} lacks a label; {_WANTED_CSV}")
            yield reader.line_num, path, labels
    except csv.Error as error:
        raise _LineError(reader.line_num, f"{error}; {_WANTED_CSV}") from error
