"""Checkpoints: whole or not at all, and never unpickled."""

from __future__ import annotations

import contextlib
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from in21k.shards.tree import SemanticTree
from in21k.training.runs.checkpoint import (
    FORMAT,
    VERSION,
    keep_checkpoints,
    load_checkpoint,
    newest_checkpoint,
    parse_checkpoint,
    save_checkpoint,
    tree_content,
    tree_from,
)


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


def whole_checkpoint() -> bytes:
    out = io.BytesIO()
    content = {"model": {"a": torch.ones(8), "b": torch.zeros(3, dtype=torch.int64)}, "config": {"x": [1, None, "y"]}}
    torch.save({"format": FORMAT, "version": VERSION, **content}, out)
    return out.getvalue()


def other_files(tar_of: Callable[..., bytes], encode: Callable[..., bytes], draw: Callable[..., Any]) -> list[bytes]:
    """Files that are not checkpoints: a tar, a zip, pictures, a table, text, an old pickle, nothing."""
    zipped, rows = io.BytesIO(), io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
        archive.writestr("a.txt", "text")
    pq.write_table(pa.table({"a": [1, 2]}), rows)
    tars = [tar_of({"n01440764.tar": tar_of({"n01440764_1.JPEG": encode(draw())})}), tar_of({})]
    pictures = [encode(draw()), encode(draw(), "PNG")]
    return [
        *tars,
        *pictures,
        zipped.getvalue(),
        rows.getvalue(),
        b"model: resnet\n",
        b"\x80\x02].",
        b"",
        b"PK\x03\x04.",
    ]


def test_files_of_other_kinds_are_one_line(
    tmp_path: Path, tar_of: Callable[..., bytes], encode: Callable[..., bytes], draw: Callable[..., Any]
) -> None:
    path = tmp_path / "file"
    for content in other_files(tar_of, encode, draw):
        path.write_bytes(content)
        for read in (load_checkpoint, lambda path: parse_checkpoint(path.read_bytes(), path)):
            with pytest.raises(ValueError, match=r"not readable as a checkpoint|no in21k-checkpoint") as actual:
                read(path)
            assert "\n" not in str(actual.value)


@given(content=st.binary(max_size=300) | st.binary(max_size=60).map(lambda rest: b"\x80\x02" + rest))
def test_bytes_of_any_kind_are_one_line(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"not readable as a checkpoint|no in21k-checkpoint"):
        parse_checkpoint(content, Path("file"))


def test_a_checkpoint_cut_anywhere_is_one_line() -> None:
    whole = whole_checkpoint()
    assert parse_checkpoint(whole, Path("file"))["config"] == {"x": [1, None, "y"]}
    for length in [*range(0, len(whole), 97), *range(len(whole) - 40, len(whole))]:
        with pytest.raises(ValueError, match="not readable as a checkpoint"):
            parse_checkpoint(whole[:length], Path("file"))


@given(place=st.integers(0, 10**6), byte=st.integers(0, 255))
def test_a_checkpoint_with_another_byte_is_one_line_or_holds_the_same(place: int, byte: int) -> None:
    whole = whole_checkpoint()
    damaged = bytearray(whole)
    damaged[place % len(damaged)] = byte
    with contextlib.suppress(ValueError):
        content, wanted = (parse_checkpoint(bytes(item), Path("file")) for item in (damaged, whole))
        assert str(content) == str(wanted)


def test_a_flipped_bit_of_a_weight_is_damage(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "last.pt", {"model": torch.ones(1000)})
    damage(tmp_path / "last.pt")
    loaded = torch.load(tmp_path / "last.pt", weights_only=True)["model"]
    assert not torch.equal(loaded, torch.ones(1000))  # torch itself does not see it
    with pytest.raises(ValueError, match=r"last\.pt: damaged as a checkpoint \(the checksum of its"):
        load_checkpoint(tmp_path / "last.pt")


def damage(path: Path) -> None:
    """Flip a bit in the middle of a file, where its largest tensor lies."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


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


def some_checkpoints(last: Path, steps: int, count: int) -> None:
    for step in range(1, steps + 1):
        save_checkpoint(last, {"step": step, "model": torch.full((1000,), step)})
        keep_checkpoints(last, step, count)


def test_damage_to_one_checkpoint_leaves_the_others_whole(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    last = tmp_path / "last.pt"
    some_checkpoints(last, 3, 3)
    with last.open("r+b") as file:
        file.truncate(100)
    newest = newest_checkpoint(last)
    assert newest is not None
    assert (newest[0].name, newest[2]["step"]) == ("step-00000003.pt", 3)
    damage(tmp_path / "step-00000003.pt")
    caplog.clear()
    newest = newest_checkpoint(last)
    assert newest is not None
    assert (newest[0].name, newest[2]["step"]) == ("step-00000002.pt", 2)
    (warning,) = caplog.messages
    assert "last.pt: not readable as a checkpoint" in warning
    assert "resuming from" in warning
    last.unlink()
    newest = newest_checkpoint(last)
    assert newest is not None
    assert newest[2]["step"] == 2


def test_a_run_without_checkpoints_is_new(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path / "last.pt") is None


def test_where_no_checkpoint_is_whole_the_best_one_is_named(tmp_path: Path) -> None:
    last, best = tmp_path / "last.pt", tmp_path / "best.pt"
    some_checkpoints(last, 2, 2)
    for path in tmp_path.iterdir():
        damage(path)
    with pytest.raises(ValueError, match=r"last\.pt: damaged .*is whole; --overwrite to train anew"):
        newest_checkpoint(last)
    save_checkpoint(best, {"step": 1})
    with pytest.raises(ValueError, match=r"is whole; begin another run .*--set init=\S+/best\.pt"):
        newest_checkpoint(last)


def test_checkpoints_of_a_course_that_damage_ended_go_with_the_next_one(tmp_path: Path) -> None:
    last = tmp_path / "last.pt"
    some_checkpoints(last, 5, 2)
    save_checkpoint(last, {"step": 4})
    keep_checkpoints(last, 4, 2)
    assert {path.name for path in tmp_path.iterdir()} == {"last.pt", "step-00000004.pt"}
