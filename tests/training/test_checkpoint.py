"""Checkpoints: whole or not at all, and never unpickled."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from in21k.shards.tree import SemanticTree
from in21k.training.checkpoint import keep_checkpoints, load_checkpoint, save_checkpoint, tree_content, tree_from


class Harmful:
    """Unpickling it would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_what_goes_in_comes_out(tmp_path: Path, tree: SemanticTree) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"model": {"a": torch.ones(2)}, "step": 3, "tree": tree_content(tree), "best": None})
    content = load_checkpoint(path)
    assert torch.equal(content["model"]["a"], torch.ones(2))
    assert (content["step"], content["best"]) == (3, None)
    assert tree_from(content["tree"]) == tree


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_file_that_holds_code_is_refused_and_not_run(tmp_path: Path, how: str) -> None:
    path, trace = tmp_path / "evil.pt", tmp_path / "trace"
    if how == "torch":
        torch.save({"format": "in21k-checkpoint", "version": 1, "model": Harmful(trace)}, path)
    else:
        path.write_bytes(pickle.dumps(Harmful(trace), protocol=2))
    with pytest.raises(ValueError, match="not readable as a checkpoint"):
        load_checkpoint(path)
    assert not trace.exists()


def test_what_is_no_checkpoint_of_ours_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such file"):
        load_checkpoint(tmp_path / "last.pt")
    torch.save({"state_dict": {}}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match="no in21k-checkpoint"):
        load_checkpoint(tmp_path / "other.pt")
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ValueError, match="not readable"):
        load_checkpoint(tmp_path / "torn.pt")


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    save_checkpoint(path, {"step": 1})
    with pytest.raises(AttributeError):
        save_checkpoint(path, {"step": lambda: 2})
    assert load_checkpoint(path)["step"] == 1
    assert [entry.name for entry in tmp_path.iterdir()] == ["last.pt"]


def test_as_many_of_the_last_as_asked_are_kept(tmp_path: Path) -> None:
    last = tmp_path / "last.pt"
    for step in range(1, 5):
        save_checkpoint(last, {"step": step})
        keep_checkpoints(last, step, 3)
    kept = {path.stem: load_checkpoint(path)["step"] for path in tmp_path.iterdir()}
    assert kept == {"last": 4, "step-00000002": 2, "step-00000003": 3, "step-00000004": 4}
    keep_checkpoints(last, 4, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["last.pt"]
