"""Files that appear whole or not at all, and output folders that know what they are."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .lock import FileLock, lock_output

log = logging.getLogger(__name__)

TEMPORARY = ".tmp"
_ARROW_ERRNO = re.compile(r"\[errno (\d+)\]")
_writer = ""  # a part of temporary names, where others could write the same file at the same time

WORK = ".work"
SELF = "self_sha256"  # of a dataset.json


def write_as(writer: str) -> None:
    """Have this process's temporary files named by `writer`: two machines may be at the same work, one unbeknown."""
    global _writer
    _writer = f".{writer}"


@contextmanager
def naming(path: Path | str) -> Generator[None]:
    """Have an OSError of the block name this file where it names none, as one of reading, writing or Arrow's does."""
    try:
        yield
    except OSError as error:
        if error.errno is None and (number := _ARROW_ERRNO.search(str(error))):
            raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error
        error.filename = error.filename or str(path)
        raise


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """Yield a path beside `path` to write to; it takes the name `path` when the block ends well, and goes otherwise.

    Raises ValueError where no file can have that name; an OSError that names no file (a full disk) gets its name.
    """
    if path.is_dir():
        raise ValueError(f"{path}: is a folder; wanted the name of a file")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it first")
    aside = path.with_name(f"{path.name}{_writer}{TEMPORARY}")
    try:
        with naming(path):
            yield aside
            with aside.open("rb") as written:
                os.fsync(written.fileno())
            aside.replace(path)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Generator[Path]:
    """Yield a folder beside `path` to fill; it takes the name `path`, an older one's too, when the block ends well.

    Raises ValueError where there is no folder to lie in, and while another process writes there.
    """
    if not path.absolute().parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it first")
    path = path.absolute()
    aside, older = (path.with_name(f".{path.name}.in21k-{what}") for what in ("new", "old"))
    lock = lock_output(aside, path, "writing there", lambda: aside.mkdir(exist_ok=True))
    try:
        for leftover in aside.iterdir():  # of a command that was killed
            leftover.unlink()
        shutil.rmtree(older, ignore_errors=True)
        try:
            yield aside
            if path.exists():
                path.rename(older)
            aside.rename(path)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
            shutil.rmtree(older, ignore_errors=True)
    finally:
        lock.release()


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


def differing(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Say per value that differs, however deep, what was and what is asked: `size 224 -> 64`."""
    found: list[str] = []
    for key in sorted({*old, *new}):
        was, asked = old.get(key), new.get(key)
        if isinstance(was, dict) and isinstance(asked, dict):
            found += [f"{key} {line}" if key == "source" else line for line in differing(was, asked)]
        elif was != asked:
            found.append(f"{key} {was!r} -> {asked!r}")
    return found


class OutputFolder:
    """A folder that one command fills, with `dataset.json` as the mark that it is finished.

    While it is being filled, `.work/made_from.json` says from what; work done is found again by the next run of the
    same. As a context manager it is this process's alone.

    path:       the folder; made where it does not exist.
    made_from:  what shapes the bytes of the output, as JSON values; it becomes part of `dataset.json`.
    contents:   the names this kind of folder holds beside `dataset.json`; only those are removed by `overwrite`.

    Raises ValueError where the folder holds something else or was made from something else.
    """

    def __init__(
        self, path: Path, *, made_from: Mapping[str, Any], contents: Sequence[str], overwrite: bool = False
    ) -> None:
        self.path = path
        self.work = path / WORK
        self._made_from: dict[str, Any] = json.loads(json.dumps(made_from))
        self._contents = contents
        self._lock: FileLock | None = None
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path}: is a file; wanted a folder to write to")
        self._clearing = self.work / "clearing"  # there while an older output is being removed: nothing of it counts
        found = {entry.name for entry in path.iterdir()} if path.exists() else set[str]()
        marks = [mark for mark in (path / "dataset.json", self.work / "made_from.json") if mark.exists()]
        half_cleared = self._clearing.exists()
        if found - {WORK} and not marks and not half_cleared:
            raise ValueError(f"{path}: holds other files ({min(found)}, ...); give a new or an empty folder")
        if marks and not overwrite and not half_cleared:
            made = read_json(marks[0])
            differences = differing({key: made.get(key) for key in self._made_from}, self._made_from)
            if differences:
                raise ValueError(
                    f"{path}: was made with other settings ({'; '.join(differences)}); "
                    "give another folder, or --overwrite to make it anew"
                )
        self._start_anew = half_cleared or (bool(marks) and overwrite)
        self.finished = bool(marks) and marks[0].parent == path and not self._start_anew
        if self.finished:
            shutil.rmtree(self.work, ignore_errors=True)  # of a run that was killed in its very last step
            log.info("%s: finished already; nothing to do", path)

    def __enter__(self) -> OutputFolder:
        """Take the folder for writing; raises ValueError when another process has it."""
        self._lock = lock_output(
            self.work / "lock", self.path, "writing there", lambda: self.work.mkdir(parents=True, exist_ok=True)
        )
        if self._start_anew:
            self._clearing.touch()
            self._clear()
        self._sweep()
        write_json(self.work / "made_from.json", self._made_from)
        self._clearing.unlink(missing_ok=True)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._lock
        self._lock.release()

    def _sweep(self) -> None:
        """Remove the temporary files of writers that were killed."""
        for path in self.path.rglob(f"*{TEMPORARY}"):
            path.unlink(missing_ok=True)

    def _clear(self) -> None:
        # dataset.json goes first: what is left of the rest must never look finished.
        for target in [self.path / name for name in ("dataset.json", *self._contents)] + list(self.work.iterdir()):
            if target.is_dir():
                shutil.rmtree(target)
            elif target.name not in ("lock", self._clearing.name):
                target.unlink(missing_ok=True)

    def finish(self, content: Mapping[str, Any]) -> None:
        """Write `dataset.json`, which makes the folder finished, and remove the traces of the work."""
        self._sweep()
        write_json(self.path / "dataset.json", sealed({**content, **self._made_from}))
        shutil.rmtree(self.work, ignore_errors=True)

    def discard(self) -> None:
        """Remove what was written: the folder is as if the command had never run."""
        self._clearing.touch()  # killed on the way, nothing of what is left counts
        self._clear()
        shutil.rmtree(self.work)
        if not any(self.path.iterdir()):
            self.path.rmdir()
