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
from in21k.shards.manifest import REJECTS, STORED, TableWriter, read_table

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
            "number": st.none() | st.integers(-9, 9),
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
    assert read_table(folder / "cut.parquet").to_pylist() == rows
    with pq.ParquetFile(folder / "cut.parquet") as file:
        sizes = [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)]
    assert sizes == [5] * (len(rows) // 5) + ([len(rows) % 5] if len(rows) % 5 else [])


def test_columns_take_the_order_and_types_of_the_schema(tmp_path: Path) -> None:
    with TableWriter(tmp_path / "some.parquet", REJECTS) as writer:
        writer.write(pa.table({"detail": ["d"], "reason": ["r"], "name": ["n"], "wnid": pa.nulls(1), "more": [1]}))
    assert read_table(tmp_path / "some.parquet").schema.equals(REJECTS)


def test_a_row_that_lacks_a_value_is_refused_and_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="name"), TableWriter(tmp_path / "some.parquet", SCHEMA) as writer:
        writer.write(pa.table({"name": pa.nulls(1, pa.string()), "number": [1], "words": [["a"]]}))
    assert list(tmp_path.iterdir()) == []


def test_a_table_without_rows_keeps_its_columns(tmp_path: Path) -> None:
    with TableWriter(tmp_path / "some.parquet", STORED):
        pass
    table = read_table(tmp_path / "some.parquet")
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
        read_table(path)


def test_a_column_that_is_missing_is_refused_by_name(tmp_path: Path) -> None:
    write(tmp_path / "some.parquet", [], [])
    with pytest.raises(ValueError, match=r"some\.parquet.*checksum"):
        read_table(tmp_path / "some.parquet", ["name", "checksum"])
