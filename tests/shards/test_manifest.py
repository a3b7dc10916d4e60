from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from in21k.shards import manifest
from in21k.shards.manifest import REJECTS, STORED, TableWriter, checksum_numbers, num_rows, read_row_groups, read_table

SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("number", pa.int32()),
        pa.field("words", pa.list_(pa.string()), nullable=False),
    ]
)
ROWS = st.lists(
    st.fixed_dictionaries(
        {
            "name": st.text(max_size=6),
            "number": st.none() | st.integers(0, 9),
            "words": st.lists(st.text(max_size=3), max_size=3),
        }
    ),
    max_size=23,
)


def write(path: Path, rows: list[dict[str, Any]], cuts: list[int]) -> None:
    with TableWriter(path, SCHEMA) as writer:
        for start, end in zip([0, *cuts], [*cuts, len(rows)], strict=True):
            writer.write(pa.Table.from_pylist(rows[start:end], schema=SCHEMA))
    assert writer.num_rows == len(rows)


def write_columns(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write some columns of a manifest."""
    schema = pa.schema([STORED.field(name) for name in (rows or [{"split": "", "width": 0}])[0]])
    with TableWriter(path, schema) as writer:
        writer.write(pa.Table.from_pylist(rows, schema=schema))


@given(rows=ROWS, cuts=st.lists(st.integers(0, 23), max_size=5))
def test_equal_rows_give_equal_bytes_however_they_come(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]], cuts: list[int]
) -> None:
    folder = tmp_path_factory.getbasetemp()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "ROW_GROUP_ROWS", 5)
        write(folder / "whole.parquet", rows, [])
        write(folder / "cut.parquet", rows, sorted(min(cut, len(rows)) for cut in cuts))
    assert (folder / "whole.parquet").read_bytes() == (folder / "cut.parquet").read_bytes()
    assert read_table(folder / "cut.parquet", SCHEMA).to_pylist() == rows
    with pq.ParquetFile(folder / "cut.parquet") as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert sizes == [5] * (len(rows) // 5) + ([len(rows) % 5] if len(rows) % 5 else [])


def test_columns_take_the_order_and_types_of_the_schema(tmp_path: Path) -> None:
    with TableWriter(tmp_path / "some.parquet", REJECTS) as writer:
        writer.write(pa.table({"detail": ["d"], "reason": ["r"], "name": ["n"], "wnid": pa.nulls(1), "more": [1]}))
    assert read_table(tmp_path / "some.parquet", REJECTS).schema.equals(REJECTS)


def test_a_row_that_lacks_a_value_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name"), TableWriter(tmp_path / "some.parquet", SCHEMA) as writer:
        writer.write(pa.table({"name": pa.nulls(1, pa.string()), "number": [1], "words": [["a"]]}))
    assert list(tmp_path.iterdir()) == []


def test_a_table_without_rows_keeps_its_columns(tmp_path: Path) -> None:
    with TableWriter(tmp_path / "some.parquet", STORED):
        pass
    table = read_table(tmp_path / "some.parquet", STORED)
    assert table.num_rows == 0
    assert table.schema.equals(STORED)


@pytest.mark.parametrize(
    "damage",
    [lambda _: b"", lambda _: b"no table", lambda data: data[: len(data) // 2]],
    ids=["0", "text", "cut"],
)
def test_what_is_no_table_is_refused_by_name(tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
    path = tmp_path / "some.parquet"
    write(path, [{"name": "a", "number": 1, "words": []}], [])
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=re.escape(str(path))):
        read_table(path, SCHEMA)


def test_a_column_that_is_missing_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "some.parquet", [], [])
    with pytest.raises(ValueError, match=r"some\.parquet.*checksum"):
        read_table(tmp_path / "some.parquet", STORED, ["checksum"])


@given(count=st.integers(0, 23), ends=st.tuples(st.integers(0, 23), st.integers(0, 23)))
def test_row_groups_are_the_rows_that_were_asked_for(
    tmp_path_factory: pytest.TempPathFactory, count: int, ends: tuple[int, int]
) -> None:
    path = tmp_path_factory.getbasetemp() / "groups.parquet"
    rows = [{"split": "ab"[number % 2], "width": number} for number in range(count)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(manifest, "ROW_GROUP_ROWS", 5)
        write_columns(path, rows)
    assert num_rows(path) == count
    start, stop = (min(end, count) for end in sorted(ends))
    for wanted, item in ((rows, None), (rows[start:stop], range(start, stop))):
        groups = list(read_row_groups(path, ["width", "split"], rows=item, as_dictionary=["split"]))
        assert all(0 < group.num_rows <= 5 for group in groups)
        items = [row for group in groups for row in group.to_pylist()]
        assert items == wanted


def test_row_groups_that_are_not_there_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "some.parquet"
    with pytest.raises(ValueError, match=r"some\.parquet: missing"):
        next(read_row_groups(path, ["key"]))
    write_columns(path, [{"key": "a"}])
    with pytest.raises(ValueError, match=r"some\.parquet: lacks the column checksum"):
        next(read_row_groups(path, ["key", "checksum"]))
    with pytest.raises(ValueError, match=r"some\.parquet: has 1 rows; wanted 2 by dataset\.json"):
        next(read_row_groups(path, ["key"], rows=range(1, 2)))
    path.write_bytes(b"no table")
    with pytest.raises(ValueError, match=r"some\.parquet: not readable"):
        num_rows(path)


def test_checksums_are_text_in_the_table_and_numbers_in_memory(tmp_path: Path) -> None:
    texts = ["00000000000000ff", "ffffffffffffffff", "0123456789abcdef"]
    column = pa.chunked_array([texts[:2], texts[2:]])
    path = tmp_path / "some.parquet"
    assert checksum_numbers(column, path).tolist() == [int(text, 16) for text in texts]
    assert checksum_numbers(column.slice(1), path).tolist() == [int(text, 16) for text in texts[1:]]
    for bad in ("abc", "x" * 16):
        with pytest.raises(ValueError, match=r"some\.parquet: a checksum is not 16 hex digits"):
            checksum_numbers(pa.chunked_array([[texts[0], bad]]), path)
