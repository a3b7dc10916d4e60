from __future__ import annotations

import errno
import gzip
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from in21k.shards.files.atomic import describe_differences, naming, read_json, whole_file, write_json, write_text

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
PROVENANCE = {"source": {"name": "a.tar"}, "settings": {"size": 224, "resize": "squish"}}


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


def test_an_error_of_a_block_names_the_file_and_one_without_a_number_keeps_its_message() -> None:
    with pytest.raises(OSError, match=r"Input/output error: 'some\.tar'"), naming("some.tar"):
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    with pytest.raises(gzip.BadGzipFile, match=r"^CRC check failed$"), naming("some.tar"):
        raise gzip.BadGzipFile("CRC check failed")


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
    assert describe_differences(PROVENANCE, PROVENANCE) == []
    other = {"source": {"name": "b.tar"}, "settings": {"size": 64, "seed": 0}}
    assert describe_differences(PROVENANCE, other) == [
        "resize 'squish' -> None",
        "seed None -> 0",
        "size 224 -> 64",
        "source name 'a.tar' -> 'b.tar'",
    ]
