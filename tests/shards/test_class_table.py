from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from in21k.shards.class_table import ClassRow, read_class_table, write_class_table

COUNTS = st.integers(0, 2**40)
INDICES = st.none() | st.integers(0, 21840)
ROWS = st.lists(
    st.builds(ClassRow, *[st.text()] * 3, *[COUNTS] * 3, *[st.booleans()] * 2, *[INDICES] * 2),
    max_size=8,
    unique_by=lambda row: row.wnid,
)


@given(rows=ROWS)
def test_a_class_table_comes_back_in_wnid_order(tmp_path_factory: pytest.TempPathFactory, rows: list[ClassRow]) -> None:
    path = tmp_path_factory.getbasetemp() / "classes.parquet"
    write_class_table(path, rows)
    written = path.read_bytes()
    assert read_class_table(path) == sorted(rows, key=lambda row: row.wnid)
    write_class_table(path, reversed(rows))
    assert path.read_bytes() == written


def test_another_file_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "classes.parquet").write_text("wnid,name")
    with pytest.raises(ValueError, match=r"classes\.parquet"):
        read_class_table(tmp_path / "classes.parquet")
