"""Checkpoints: everything a run needs to go on as if it had never stopped, in one file."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..shards.files import whole_file
from ..shards.tree import SemanticTree

FORMAT = "in21k-checkpoint"
VERSION = 1
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
    """Return what a file of ours holds, on the CPU, without unpickling code; raises ValueError where it is none."""
    try:
        loaded = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # of what is no checkpoint torch's readers raise whatever they stumble over
        raise ValueError(f"{path}: not readable as a checkpoint ({type(error).__name__})") from error
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


def tree_content(tree: SemanticTree) -> dict[str, list[Any]]:
    """Return a tree as a checkpoint holds it."""
    return {"wnids": list(tree.wnids), "names": list(tree.names), "parents": list(tree.parents)}


def tree_digest(tree: SemanticTree) -> str:
    """Return a short fingerprint of a tree; equal trees have equal ones."""
    return hashlib.sha256(json.dumps(tree_content(tree)).encode()).hexdigest()[:16]


def tree_from(content: Mapping[str, list[Any]]) -> SemanticTree:
    """Return the tree of a checkpoint."""
    return SemanticTree.from_parents(content["wnids"], content["names"], content["parents"])


def keep_checkpoints(last: Path, step: int, count: int) -> None:
    """Keep the last `count` checkpoints beside `last`, which counts, as step-00001234.pt; older ones go.

    step: after which `last` was written.
    """
    if count > 1:
        name = last.with_name(f"step-{step:08d}.pt")
        name.unlink(missing_ok=True)
        name.hardlink_to(last)
    for old in sorted(last.parent.glob("step-*.pt"))[: -count if count > 1 else None]:
        old.unlink()
