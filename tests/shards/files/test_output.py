"""May this command write here? Outputs know their own, and leave everything else alone."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from in21k.shards.files.atomic import read_json, sealed
from in21k.shards.files.output import OutputFolder, may_write_file, publish, staged_folder

PROVENANCE = {"source": {"name": "a.tar"}, "settings": {"size": 224, "resize": "squish"}}
FINISHED = {"dataset.json", "table", "train/1.tar"}


def folder_at(path: Path, provenance: dict[str, Any] = PROVENANCE, *, overwrite: bool = False) -> OutputFolder:
    return OutputFolder(
        path,
        provenance=provenance,
        contents=("table", "train"),
        list_files=lambda path: (path / "table").read_text().split(),
        overwrite=overwrite,
    )


def fill(path: Path, provenance: dict[str, Any] = PROVENANCE, *, overwrite: bool = False) -> None:
    with folder_at(path, provenance, overwrite=overwrite) as folder:
        folder.own(["train/1.tar"])
        (path / "train").mkdir()
        (path / "train" / "1.tar").write_text(str(provenance))
        (path / "table").write_text("train/1.tar")
        folder.finish({"format": "test"})


def test_a_finished_folder_holds_its_contents_and_what_it_was_made_from(
    tmp_path: Path, files_of: Callable[[Path], dict[str, bytes]]
) -> None:
    out = tmp_path / "new" / "out"
    assert not folder_at(out).finished
    assert not out.parent.exists()
    fill(out)
    assert set(files_of(out)) == FINISHED
    info = read_json(out / "dataset.json")
    assert list(info) == ["format", *PROVENANCE, "self_sha256"]
    assert info == sealed({"format": "test", **PROVENANCE})
    assert folder_at(out).finished


def test_work_that_was_cut_short_is_found_again_by_the_same_and_refused_to_others(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), folder_at(tmp_path / "out") as folder:  # noqa: PT012
        (folder.work / "done").touch()
        raise KeyboardInterrupt
    with folder_at(tmp_path / "out") as again:
        assert not again.finished
        assert (again.work / "done").exists()
    with pytest.raises(ValueError, match=r"made with other settings \(size 224 -> 64\).*--overwrite"):
        folder_at(tmp_path / "out", {**PROVENANCE, "settings": {"size": 64, "resize": "squish"}})


def test_another_output_is_refused_unless_overwriting_is_asked_for(
    tmp_path: Path, files_of: Callable[[Path], dict[str, bytes]]
) -> None:
    out, other = tmp_path / "out", {**PROVENANCE, "source": {"name": "b.tar"}}
    fill(out)
    (out / "train" / "2.tar").touch()
    (out / "table").write_text("train/1.tar train/2.tar")
    before = files_of(out)
    with pytest.raises(ValueError, match=re.escape(str(out)) + ".*source name 'a.tar' -> 'b.tar'"):
        folder_at(out, other)
    assert files_of(out) == before
    fill(out, other, overwrite=True)
    assert files_of(out).keys() == FINISHED
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


@pytest.mark.parametrize("num_steps", range(8))
def test_an_overwriting_that_was_killed_while_clearing_begins_anew(
    tmp_path: Path, num_steps: int, files_of: Callable[[Path], dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the older settings left must count neither as a stranger's nor as work done."""
    fill(tmp_path)
    steps = iter(range(num_steps))

    def killed(operation: Callable[..., Any]) -> Callable[..., Any]:
        def step(*words: Any, **options: Any) -> Any:
            if next(steps, None) is None:
                raise KeyboardInterrupt
            return operation(*words, **options)

        return step

    with monkeypatch.context() as patched:
        for name in ("unlink", "touch", "write_text", "rmdir"):
            patched.setattr(Path, name, killed(getattr(Path, name)))
        with contextlib.suppress(KeyboardInterrupt):
            folder_at(tmp_path, {"size": 2}, overwrite=True).__enter__()
    fill(tmp_path, {"size": 3}, overwrite=True)
    assert files_of(tmp_path).keys() == FINISHED
    assert read_json(tmp_path / "dataset.json") == sealed({"format": "test", "size": 3})


def test_overwriting_an_unfinished_output_removes_what_it_recorded_alone(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), folder_at(tmp_path) as folder:  # noqa: PT012
        folder.own(["train/1.tar", "train/2.tar"])
        (tmp_path / "train").mkdir()
        (tmp_path / "train" / "1.tar").touch()
        (tmp_path / "train" / "2.tar.node-7.tmp").touch()
        (tmp_path / "notes.tmp").touch()
        raise KeyboardInterrupt
    with folder_at(tmp_path, {"size": 2}, overwrite=True):
        assert {path.name for path in tmp_path.iterdir()} == {".work", "notes.tmp"}


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("name", ["train/notes.txt", "train/mine.tar", "train/old/1.tar", "train/1.tar.mine"])
def test_what_others_put_in_the_way_is_refused_before_anything_is_removed(
    tmp_path: Path, name: str, finished: bool, files_of: Callable[[Path], dict[str, bytes]]
) -> None:
    if finished:
        fill(tmp_path)
    else:
        with folder_at(tmp_path) as folder:
            folder.own(["train/1.tar"])
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / name).write_text("mine")
    before = files_of(tmp_path)
    with pytest.raises(ValueError, match=rf"{name}: is in the way, and no record of in21k lists it"):
        folder_at(tmp_path, {"size": 2}, overwrite=True)
    assert files_of(tmp_path) == before


@pytest.mark.parametrize("name", ["../mine.txt", "/etc/passwd", "train/../../mine.txt", ""])
def test_a_table_that_lists_files_elsewhere_removes_none_of_them(tmp_path: Path, name: str) -> None:
    out, mine = tmp_path / "out", tmp_path / "mine.txt"
    mine.write_text("mine")
    fill(out)
    (out / "table").write_text(f"train/1.tar {name}")
    fill(out, {"size": 2}, overwrite=True)
    assert mine.read_text() == "mine"


def test_a_damaged_table_means_that_nothing_is_removed(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "table").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="its tables do not list its files"):
        folder_at(tmp_path, {"size": 2}, overwrite=True)
    assert (tmp_path / "dataset.json").exists()


def test_a_folder_that_another_process_finished_meanwhile_is_left_alone(
    tmp_path: Path, files_of: Callable[[Path], dict[str, bytes]]
) -> None:
    """Both look, the other fills the folder, and then this one gets the lock."""
    late = folder_at(tmp_path)
    assert not late.finished
    fill(tmp_path)
    before = files_of(tmp_path)
    with late:
        assert late.finished
    assert files_of(tmp_path) == before


def test_a_folder_that_another_process_began_with_other_settings_meanwhile_is_refused(tmp_path: Path) -> None:
    late = folder_at(tmp_path)
    with folder_at(tmp_path, {"size": 2}):
        pass
    with pytest.raises(ValueError, match=r"made with other settings \(settings None"):
        late.__enter__()
    assert read_json(tmp_path / ".work" / "provenance.json") == {"size": 2}
    with folder_at(tmp_path, {"size": 2}):  # nobody has the lock
        pass


def publish_at(path: Path, files: dict[str, str]) -> None:
    """Publish some files, with `record` that lists them and `mark`."""
    with staged_folder(path) as staged:
        for name, text in files.items():
            (staged / name).write_text(text)
        (staged / "mark").write_text(str(files))
        (staged / "record").write_text("".join(f"{name}\n" for name in (*files, "mark")))
        publish(staged, path, marker="mark", read_record=read_record, record="record")


def read_record(folder: Path) -> dict[str, str]:
    return {line.strip(): line for line in (folder / "record").read_text().splitlines(keepends=True)}


@pytest.mark.parametrize("exists", [True, False])
def test_a_published_folder_replaces_its_own_files_and_no_others(tmp_path: Path, exists: bool) -> None:
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    publish_at(out, {"a": "1", "b": "1"})
    (out / ".git").mkdir()
    (out / ".git" / "HEAD").write_text("mine")
    (out / "notes.txt").write_text("mine")
    publish_at(out, {"b": "2", "c": "2"})
    assert {entry.name for entry in out.iterdir()} == {"b", "c", "mark", "record", ".git", "notes.txt"}
    assert [(out / name).read_text() for name in ("b", "notes.txt", ".git/HEAD")] == ["2", "mine", "mine"]
    with pytest.raises(ValueError, match=r"notes\.txt: is in the way"):
        publish_at(out, {"notes.txt": "3"})
    assert [(out / name).read_text() for name in ("b", "notes.txt")] == ["2", "mine"]
    assert {entry.name for entry in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize("num_steps", range(7))
def test_a_publication_that_was_killed_is_made_whole_by_the_next_one(
    tmp_path: Path, num_steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish_at(tmp_path / "out", {"a": "1", "b": "1"})
    steps, replace = iter(range(num_steps)), Path.replace

    def killed(self: Path, target: Path) -> Path:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        return replace(self, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", killed)
        with contextlib.suppress(KeyboardInterrupt):
            publish_at(tmp_path / "out", {"b": "2", "c": "2"})
    assert (tmp_path / "out" / "mark").exists()
    publish_at(tmp_path / "out", {"b": "3", "d": "3"})
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == {"b", "d", "mark", "record"}


def test_a_file_is_written_where_nothing_or_an_older_one_of_ours_lies(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"

    def may_write(path: Path, *, overwrite: bool = False) -> bool:
        return may_write_file(
            path,
            suffix=".txt",
            what="a note",
            is_ours=lambda path: path.read_text().startswith("ours"),
            is_same=lambda path: path.read_text() == "ours, the same",
            overwrite=overwrite,
        )

    assert may_write(path)
    for overwrite in (False, True):
        for text, matching in {"theirs": "not a note of in21k, so it is not overwritten"}.items():
            path.write_text(text)
            with pytest.raises(ValueError, match=matching):
                may_write(path, overwrite=overwrite)
        with pytest.raises(ValueError, match="is a folder"):
            may_write(tmp_path, overwrite=overwrite)
        with pytest.raises(ValueError, match=r"ends in \.txt"):
            may_write(tmp_path / "a.html", overwrite=overwrite)
        with pytest.raises(ValueError, match="create it first"):
            may_write(tmp_path / "none" / "a.txt", overwrite=overwrite)
    path.write_text("ours, another")
    with pytest.raises(ValueError, match="--overwrite to replace a note"):
        may_write(path)
    assert may_write(path, overwrite=True)
    path.write_text("ours, the same")
    assert not may_write(path)
    assert may_write(path, overwrite=True)
