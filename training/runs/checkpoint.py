"""Checkpoints: everything a run needs to go on as if it had never stopped, in one file."""

from __future__ import annotations

import hashlib
import io
import json
import logging
import shutil
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from ...shards.files.atomic import whole_file
from ...shards.files.shape import COUNT, INDEX, TEXT, Kind, Shape, check_shape
from ...shards.files.torch_zip import check_unpacked
from ...shards.tree import SemanticTree
from .run_folder import check_config

log = logging.getLogger(__name__)

FORMAT = "in21k-checkpoint"
VERSION = 1
_TENSORS = Kind("tensors by name", lambda value: _are_tensors(value))
_TENSORS_OR_NONE = Kind("tensors by name, or None", lambda value: value is None or _are_tensors(value))
_OBJECT = Kind("an object", lambda value: isinstance(value, dict))
_OBJECT_OR_NONE = Kind("an object, or None", lambda value: value is None or isinstance(value, dict))
_NUMBER_OR_NONE = Kind("a number, or None", lambda value: value is None or type(value) in (int, float))
_PARTS: Shape = {
    "position": {
        "epoch": COUNT,
        "step": COUNT,
        "best": _NUMBER_OR_NONE,
        "best_epoch": _NUMBER_OR_NONE,
        "validation": _OBJECT_OR_NONE,
    },
    "model": _TENSORS,
    "ema": _TENSORS_OR_NONE,
    "optimizer": {"state": _OBJECT, "param_groups": [_OBJECT]},
    "scaler": _OBJECT,
    "loader": _OBJECT_OR_NONE,
    "config": _OBJECT,
    "tree": {"wnids": [TEXT], "names": [TEXT], "parents": [INDEX]},
}
ZIP = b"PK\x03\x04"  # with which what torch writes begins


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    content: tensors, numbers, text, None, and dicts, lists and tuples of them: what a weights-only load takes.
    """
    # By way of memory: torch's own file writer ends a full disk in a RuntimeError that names no file.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, **content}, buffer)
    with whole_file(path) as aside:
        aside.write_bytes(buffer.getbuffer())


def read_checkpoint(path: Path) -> bytes:
    """Return a checkpoint's file; raises ValueError where there is none."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; wanted a checkpoint of a run")
    return path.read_bytes()


def parse_checkpoint(content: bytes, path: Path) -> dict[str, Any]:
    """Return what a file of ours holds, on the CPU, without unpickling code.

    Raises ValueError where it is none, and where it is damaged: torch itself checks no checksum.
    """
    try:
        check_unpacked(io.BytesIO(content))
    except Exception as error:  # zipfile has as many kinds as torch
        raise ValueError(f"{path}: not readable as a checkpoint ({error})") from error
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        damaged = zipfile.ZipFile(io.BytesIO(content)).testzip()
    except Exception as error:  # for other files torch's readers raise errors of any type
        raise ValueError(f"{path}: not readable as a checkpoint ({type(error).__name__})") from error
    if damaged:
        raise ValueError(f"{path}: damaged as a checkpoint (the checksum of its {damaged} is wrong)")
    if not isinstance(loaded, dict) or (loaded.get("format"), loaded.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"{path}: no {FORMAT} of version {VERSION}; wanted a file from a run's checkpoints/")
    return loaded


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours; raises ValueError where it is none."""
    if path.is_file():  # of what anyone may name, an archive of a terabyte too, not all is read to see that it is none
        with path.open("rb") as file:
            head = file.read(len(ZIP))
        if head != ZIP:
            raise ValueError(
                f"{path}: not readable as a checkpoint (begins with {head!r}); wanted a file from a run's checkpoints/"
            )
    return parse_checkpoint(read_checkpoint(path), path)


def is_checkpoint(path: Path) -> bool:
    """Return whether a file is a checkpoint of ours, by its own words; damaged ones count, as long as they open."""
    try:
        with path.open("rb") as file:
            check_unpacked(file)
            with zipfile.ZipFile(file) as archive:
                pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
                return any(FORMAT.encode() in archive.read(name) for name in pickles)
    except (OSError, ValueError, NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error):
        return False


def open_parts(content: Mapping[str, Any], path: Path) -> tuple[SemanticTree, dict[str, Any]]:
    """Return the tree and the configuration of a checkpoint, all parts of which are there, each of its kind.

    Raises ValueError, naming `path`, where one is not.
    """
    try:
        check_shape(dict(content), _PARTS)
        tree = tree_from(content["tree"])
    except ValueError as error:
        raise ValueError(f"{path}: not whole as a checkpoint ({error})") from error
    return tree, check_config(content["config"], str(path))


def tree_content(tree: SemanticTree) -> dict[str, Any]:
    """Return a tree as a checkpoint holds it."""
    return tree.content()


def tree_digest(tree: SemanticTree) -> str:
    """Return a short fingerprint of a tree; equal trees have equal ones."""
    return hashlib.sha256(json.dumps(tree_content(tree)).encode()).hexdigest()[:16]


def tree_from(content: Mapping[str, Any]) -> SemanticTree:
    """Return the tree of a checkpoint."""
    return SemanticTree.from_content(content)


def keep_checkpoints(last: Path, step: int, count: int) -> None:
    """Keep the last `count` checkpoints beside `last`, which counts, as step-00001234.pt; delete the others.

    They are copies, not links: damage to one leaves the other whole.

    step: after which `last` was written; checkpoints of later steps are those of a course that damage ended.
    """
    if count > 1:
        with whole_file(_step_path(last, step)) as aside:
            shutil.copyfile(last, aside)
    earlier = [path for path in _step_paths(last) if path <= _step_path(last, step)]
    kept = earlier[-count:] if count > 1 else []
    for path in _step_paths(last):
        if path not in kept:
            path.unlink()


def newest_checkpoint(last: Path) -> tuple[Path, bytes, dict[str, Any]] | None:
    """Return the checkpoint from which a run resumes: its path, its bytes and what they hold; None for a new run.

    That is `last`. Where it is damaged or missing, the newest whole step-*.pt beside it takes its place, with a
    warning. Raises ValueError where there are checkpoints and none of these is whole.
    """
    steps = _step_paths(last)
    if not last.exists() and not steps:
        return None
    problems: list[str] = []
    for path in [last, *reversed(steps)]:
        try:
            content = read_checkpoint(path)
            state = parse_checkpoint(content, path)
        except ValueError as error:
            problems.append(str(error))
            continue
        if problems:
            log.warning("%s; resuming from %s", problems[0], path)
        return path, content, state
    best = last.with_name("best.pt")
    way_out = (
        f"begin another run from the best one, with --set init={best} (finetune: --init {best}) and another --out, or "
        if _is_whole(best)
        else ""
    )
    raise ValueError(
        f"{problems[0]}, and no other checkpoint to resume from is whole; {way_out}--overwrite to train anew"
    )


def _are_tensors(value: object) -> bool:
    if not isinstance(value, Mapping) or not value:
        return False
    named = cast(Mapping[object, object], value)
    return all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in named.items())


def _step_path(last: Path, step: int) -> Path:
    return last.with_name(f"step-{step:08d}.pt")


def _step_paths(last: Path) -> list[Path]:
    return sorted(last.parent.glob("step-*.pt"))


def _is_whole(path: Path) -> bool:
    try:
        load_checkpoint(path)
    except ValueError:
        return False
    return True
