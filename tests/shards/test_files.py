from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from in21k.shards.files import OutputFolder, differing, read_json, sealed, whole_file, write_json, write_text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
MADE_FROM = {"source": {"name": "a.tar"}, "settings": {"size": 224, "resize": "squish"}}


def test_a_file_appears_whole(tmp_path: Path) -> None:
    path = tmp_path / "some.bin"
    with whole_file(path) as aside:
        aside.write_bytes(b"new")
        assert not path.exists()
    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("some.bin", b"new")]


def test_a_file_that_fails_leaves_the_older_one_alone(tmp_path: Path) -> None:
    path = tmp_path / "some.txt"
    write_text(path, "older")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as aside:  # noqa: PT012
        aside.write_text("half")
        raise KeyboardInterrupt
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("some.txt", "older")]


@given(content=st.dictionaries(st.text(), JSON, max_size=4))
def test_json_comes_back_equal_from_equal_bytes(
    tmp_path_factory: pytest.TempPathFactory, content: dict[str, Any]
) -> None:
    path = tmp_path_factory.getbasetemp() / "some.json"
    write_json(path, content)
    written = path.read_bytes()
    assert read_json(path) == content
    write_json(path, read_json(path))
    assert path.read_bytes() == written


@pytest.mark.parametrize("text", ["", "{", "[]", '"a"', "\x00"])
def test_what_is_no_json_object_is_refused_by_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "some.json").write_text(text)
    with pytest.raises(ValueError, match=r"some\.json"):
        read_json(tmp_path / "some.json")


def test_values_that_differ_are_named_however_deep() -> None:
    assert differing(MADE_FROM, MADE_FROM) == []
    other = {"source": {"name": "b.tar"}, "settings": {"size": 64, "seed": 0}}
    assert differing(MADE_FROM, other) == [
        "resize 'squish' -> None",
        "seed None -> 0",
        "size 224 -> 64",
        "source name 'a.tar' -> 'b.tar'",
    ]


def folder_at(path: Path, made_from: dict[str, Any] = MADE_FROM, *, overwrite: bool = False) -> OutputFolder:
    return OutputFolder(path, made_from=made_from, contents=("table", "train"), overwrite=overwrite)


def fill(path: Path, made_from: dict[str, Any] = MADE_FROM, *, overwrite: bool = False) -> None:
    with folder_at(path, made_from, overwrite=overwrite) as folder:
        (path / "train").mkdir()
        (path / "table").write_text(str(made_from))
        folder.finish({"format": "test"})


def test_a_finished_folder_holds_its_contents_and_what_it_was_made_from(
    tmp_path: Path, files_of: Callable[[Path], dict[str, bytes]]
) -> None:
    out = tmp_path / "new" / "out"
    assert not folder_at(out).finished
    assert not out.parent.exists()
    fill(out)
    assert set(files_of(out)) == {"dataset.json", "table"}
    info = read_json(out / "dataset.json")
    assert list(info) == ["format", *MADE_FROM, "self_sha256"]
    assert info == sealed({"format": "test", **MADE_FROM})
    assert folder_at(out).finished


def test_work_that_was_cut_short_is_found_again_by_the_same_and_refused_to_others(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), folder_at(tmp_path / "out") as folder:  # noqa: PT012
        (folder.work / "done").touch()
        raise KeyboardInterrupt
    with folder_at(tmp_path / "out") as again:
        assert not again.finished
        assert (again.work / "done").exists()
    with pytest.raises(ValueError, match=r"made with other settings \(size 224 -> 64\).*--overwrite"):
        folder_at(tmp_path / "out", {**MADE_FROM, "settings": {"size": 64, "resize": "squish"}})


def test_another_output_is_refused_unless_overwriting_is_asked_for(
    tmp_path: Path, files_of: Callable[[Path], dict[str, bytes]]
) -> None:
    out, other = tmp_path / "out", {**MADE_FROM, "source": {"name": "b.tar"}}
    fill(out)
    (out / "train" / "old.tar").touch()
    before = files_of(out)
    with pytest.raises(ValueError, match=re.escape(str(out)) + ".*source name 'a.tar' -> 'b.tar'"):
        folder_at(out, other)
    assert files_of(out) == before
    fill(out, other, overwrite=True)
    assert files_of(out).keys() == {"dataset.json", "table"}
    assert read_json(out / "dataset.json")["source"] == {"name": "b.tar"}


def test_overwriting_leaves_what_others_put_there(tmp_path: Path) -> None:
    fill(tmp_path / "out")
    (tmp_path / "out" / "notes.txt").write_text("mine")
    fill(tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_something_else_is_never_written_to(tmp_path: Path, overwrite: bool) -> None:
    (tmp_path / "table").write_text("mine")
    with pytest.raises(ValueError, match=r"holds other files \(table"):
        folder_at(tmp_path, overwrite=overwrite)
    with pytest.raises(ValueError, match="is a file"):
        folder_at(tmp_path / "table", overwrite=overwrite)
    assert [entry.read_text() for entry in tmp_path.iterdir()] == ["mine"]


def test_an_empty_folder_is_taken(tmp_path: Path) -> None:
    fill(tmp_path)
    assert folder_at(tmp_path).finished


def test_only_one_writes_at_a_time(tmp_path: Path) -> None:
    with folder_at(tmp_path / "out"), pytest.raises(ValueError, match="another in21k is writing there"):
        folder_at(tmp_path / "out").__enter__()
    with folder_at(tmp_path / "out"):
        pass


def test_discarding_leaves_nothing(tmp_path: Path) -> None:
    with folder_at(tmp_path / "out") as folder:
        (tmp_path / "out" / "train").mkdir()
        (folder.work / "classes").mkdir()
        folder.discard()
    assert list(tmp_path.iterdir()) == []


def test_an_overwriting_that_was_killed_while_clearing_begins_anew(tmp_path: Path) -> None:
    """What the older settings left must count neither as a stranger's nor as work done."""
    folder = OutputFolder(tmp_path, made_from={"size": 1}, contents=["part"])
    with folder:
        (tmp_path / "part").write_text("old")
        folder.finish({})
    anew = OutputFolder(tmp_path, made_from={"size": 2}, contents=["part"], overwrite=True)
    anew._clearing.parent.mkdir()
    anew._clearing.touch()
    (tmp_path / "dataset.json").unlink()
    with OutputFolder(tmp_path, made_from={"size": 3}, contents=["part"]) as again:
        assert not again.finished
        assert not (tmp_path / "part").exists()
        again.finish({})
    assert [path.name for path in tmp_path.iterdir()] == ["dataset.json"]
