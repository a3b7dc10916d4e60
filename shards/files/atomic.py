"""Files that appear whole or not at all."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

TEMPORARY = ".tmp"
_ARROW_ERRNO = re.compile(r"\[errno (\d+)\]")
_writer = ""  # part of temporary names, so that two machines can write the same file

SELF = "self_sha256"  # of a dataset.json


def write_as(writer: str) -> None:
    """Put `writer` into the names of this process's temporary files, as another machine may do the same work."""
    global _writer
    _writer = f".{writer}"


@contextmanager
def naming(path: Path | str) -> Generator[None]:
    """Add this file's name to an OSError of the block that names no file, as reading, writing and Arrow raise it.

    An error without a number, such as gzip's, keeps its message, as Python would show the name instead.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None and (number := _ARROW_ERRNO.search(str(error))):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        if error.errno is not None:
            error.filename = error.filename or str(path)
        raise


def check_parent(path: Path) -> None:
    """Raise ValueError if the folder that `path` is to be written to does not exist."""
    if not path.parent.is_dir():
        raise ValueError(f"{path}: the folder {path.parent} does not exist; create it first")


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """Yield a temporary path beside `path`; it is renamed to `path` if the block succeeds, and removed otherwise.

    Raises ValueError if no file can have that name; an OSError that names no file (a full disk) gets its name.
    """
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; wanted the name of a file")
    check_parent(path)
    aside = path.with_name(f"{path.name}{_writer}{TEMPORARY}")
    try:
        with naming(path):
            yield aside
            with aside.open("rb") as written:
                os.fsync(written.fileno())
            aside.replace(path)
        log.debug("%s: written", path)
    finally:
        aside.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file, whole or not at all."""
    with whole_file(path) as aside:
        aside.write_text(text, encoding="utf-8")


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, whole or not at all; equal content gives equal bytes."""
    write_text(path, render_json(content))


def render_json(content: object) -> str:
    """Return the text of a JSON file."""
    return json.dumps(content, indent=1, ensure_ascii=False) + "\n"


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a `dataset.json` with its `self_sha256` last: the sha256 of the rest as canonical JSON.

    Canonical are sorted keys, no white space and ASCII alone: what `json.dumps(sort_keys=True, separators=(",", ":"))`
    gives.
    """
    rest = {key: value for key, value in content.items() if key != SELF}
    canonical = json.dumps(rest, sort_keys=True, separators=(",", ":"))
    return {**rest, SELF: hashlib.sha256(canonical.encode()).hexdigest()}


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; raises ValueError naming the file."""
    with naming(path):
        return parse_json(path.read_bytes(), str(path))


def parse_json(data: bytes, name: str, wanted: str = "wanted a JSON object") -> dict[str, Any]:
    """Return the JSON object in the bytes of a file, called `name` in messages; raises ValueError."""
    try:
        content = json.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not readable as JSON ({error}); {wanted}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds a {type(content).__name__}; {wanted}")
    return content


def describe_differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Name each value that differs, at any depth, with its old and new value: `size 224 -> 64`."""
    differences: list[str] = []
    for key in sorted({*old, *new}):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            nested = describe_differences(before, after)
            differences += [f"{key} {line}" if key == "source" else line for line in nested]
        elif before != after:
            differences.append(f"{key} {before!r} -> {after!r}")
    return differences
