"""Checkpoints: everything a run needs to go on as if it had never stopped, in one file."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..shards.files import whole_file
from ..shards.tree import SemanticTree
from .distributed import Ranks

FORMAT = "in21k-checkpoint"
VERSION = 1


def save_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write a checkpoint, whole or not at all.

    content: tensors, numbers, text, None, and dicts, lists and tuples of them: what a weights-only load takes.
    """
    # By way of memory: torch's own file writer ends a full disk in a RuntimeError that names no file.
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, "version": VERSION, **content}, buffer)
    with whole_file(path) as aside:
        aside.write_bytes(buffer.getbuffer())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours onto the CPU, without unpickling code; raises ValueError where it is none."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; wanted a checkpoint of a run")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path}: not readable as a checkpoint ({type(error).__name__})") from error
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (FORMAT, VERSION):
        raise ValueError(f"{path}: no {FORMAT} of version {VERSION}; wanted a file from a run's checkpoints/")
    return content


def tree_content(tree: SemanticTree) -> dict[str, list[Any]]:
    """Return a tree as a checkpoint holds it."""
    return {"wnids": list(tree.wnids), "names": list(tree.names), "parents": list(tree.parents)}


def tree_digest(tree: SemanticTree) -> str:
    """Return a short fingerprint of a tree; equal trees have equal ones."""
    return hashlib.sha256(json.dumps(tree_content(tree)).encode()).hexdigest()[:16]


def tree_from(content: Mapping[str, list[Any]]) -> SemanticTree:
    """Return the tree of a checkpoint."""
    return SemanticTree.from_parents(content["wnids"], content["names"], content["parents"])


def random_state(ranks: Ranks) -> list[dict[str, torch.Tensor]]:
    """Return the state of torch's random generators, per rank."""
    cpu = ranks.gather(torch.get_rng_state())
    if ranks.device.type != "cuda":
        return [{"cpu": state} for state in cpu]
    cuda = ranks.gather(torch.cuda.get_rng_state(ranks.device))
    return [{"cpu": a, "cuda": b} for a, b in zip(cpu, cuda, strict=True)]


def restore_random_state(states: list[dict[str, torch.Tensor]], ranks: Ranks) -> None:
    """Set torch's random generators of this rank to what `random_state` returned."""
    torch.set_rng_state(states[ranks.rank]["cpu"])
    if ranks.device.type == "cuda":
        torch.cuda.set_rng_state(states[ranks.rank]["cuda"], ranks.device)
