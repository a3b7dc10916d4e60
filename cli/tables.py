"""Parquet files that commands write; commands overwrite no other files than these."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

METADATA = b"in21k"  # the key in the metadata of every table of ours
ROW_GROUP_ROWS = 16_384  # guessed: some megabytes of predictions


def check_table(path: Path, *, overwrite: bool) -> None:
    """Raise ValueError where no table can go: before the work that it would hold."""
    from ..shards.files.output import may_write_file

    may_write_file(path, suffix=".parquet", what="a Parquet table", is_ours=_is_ours, overwrite=overwrite)


def _is_ours(path: Path) -> bool:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return METADATA in (pq.read_schema(path).metadata or {})
    except (OSError, pa.ArrowException):
        return False


@contextmanager
def table_writer(path: Path, schema: pa.Schema, content: str) -> Generator[pq.ParquetWriter]:
    """Open a table to write to; it appears whole or not at all. `content` says in its metadata what it is."""
    import pyarrow.parquet as pq

    from ..shards.files.atomic import whole_file

    metadata: Any = {METADATA: content}
    with (
        whole_file(path) as aside,
        pq.ParquetWriter(aside, schema.with_metadata(metadata), compression="zstd") as writer,
    ):
        yield writer


def write_table(path: Path, rows: pa.Table, content: str) -> None:
    """Write a whole table; see `table_writer`."""
    with table_writer(path, rows.schema, content) as writer:
        writer.write_table(rows)


class RowWriter(AbstractContextManager["RowWriter"]):
    """Writes a table row by row, holding one row group in memory; see `table_writer`."""

    def __init__(self, path: Path, schema: pa.Schema, content: str) -> None:
        self._schema, self._file = schema, table_writer(path, schema, content)
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._writer = self._file.__enter__()
        return self

    def add(self, row: dict[str, Any]) -> None:
        """Add a row, by its columns."""
        self._rows.append(row)
        if len(self._rows) == ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def __exit__(self, *exc_info: Any) -> None:
        if exc_info[0] is None:
            self._flush()
        self._file.__exit__(*exc_info)
