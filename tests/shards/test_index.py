from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from in21k.shards.index import IndexEntry, index_path, read_index, render_index

WORDS = st.from_regex(r"[A-Za-z0-9_.-]{1,12}", fullmatch=True)
ENTRIES = st.builds(IndexEntry, WORDS, st.integers(0, 2**50), st.integers(0, 2**31), WORDS)


@given(samples=st.lists(st.lists(ENTRIES, min_size=1, max_size=3), max_size=8))
def test_an_index_comes_back_as_it_was_written(
    tmp_path_factory: pytest.TempPathFactory, samples: list[list[IndexEntry]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "round.idx"
    path.write_text(render_index(samples))
    assert read_index(path) == samples


def test_an_index_is_text_that_dali_reads() -> None:
    samples = [[IndexEntry("cls", 512, 1, "a.cls"), IndexEntry("jpg", 1536, 700, "a.jpg")]]
    assert render_index(samples) == "v1.2 1\ncls 512 1 a.cls jpg 1536 700 a.jpg\n"


def test_an_index_lies_beside_its_shard() -> None:
    assert index_path(Path("a.b/in21k-train-000000.tar")) == Path("a.b/in21k-train-000000.idx")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("", "line 1"),
        ("v1.1 1\njpg 0 1 a.jpg\n", "line 1"),
        ("v1.2 x\njpg 0 1 a.jpg\n", "line 1"),
        ("v1.2\n", "line 1"),
        ("v1.2 2\njpg 0 1 a.jpg\n", "line 1"),
        ("v1.2 2\njpg 0 1 a.jpg\njpg x 1 a.jpg\n", "line 3"),
        ("v1.2 1\njpg 0\n", "line 2"),
        ("v1.2 1\njpg 0 1 a.jpg cls 5\n", "line 2"),
        ("v1.2 1\n\n", "line 2"),
        ("v1.2 1\n\xff\xfe\n", "line 2"),
    ],
)
def test_what_is_no_index_is_refused_with_file_and_line(tmp_path: Path, text: str, wanted: str) -> None:
    path = tmp_path / "some.idx"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=re.escape(str(path)) + f".*{wanted}"):
        read_index(path)
