"""The Parquet tables of a data set: every stored image, every reject."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq

from .files import whole_file

ROW_GROUP_ROWS = 65_536

pc: Any = pyarrow.compute  # its functions are made at run time, where type checkers do not see them

# One row a stored image. `archive`, `offset`, `num_bytes` say where its bytes lie in the prepared folder.
STORED = pa.schema(
    [
        pa.field("key", pa.string(), nullable=False),
        pa.field("wnid", pa.string(), nullable=False),
        pa.field("class_index", pa.int32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("archive", pa.string(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("num_bytes", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("source_name", pa.string(), nullable=False),
        pa.field("source_format", pa.string(), nullable=False),
        pa.field("source_width", pa.int32(), nullable=False),
        pa.field("source_height", pa.int32(), nullable=False),
        pa.field("changes", pa.list_(pa.string()), nullable=False),
        pa.field("checksum", pa.string(), nullable=False),
    ]
)
# The same row once it lies in a shard: `shard` is relative to the shard set, `shard_offset` that of the image's data.
SHARDED = STORED.append(pa.field("shard", pa.string(), nullable=False)).append(
    pa.field("shard_offset", pa.int64(), nullable=False)
)
REJECTS = pa.schema(
    [
        pa.field("wnid", pa.string()),
        pa.field("name", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("detail", pa.string(), nullable=False),
    ]
)


class TableWriter(AbstractContextManager["TableWriter"]):
    """Write a Parquet file from tables as they come, in row groups of one fixed size: equal rows give equal bytes."""

    def __init__(self, path: Path, schema: pa.Schema) -> None:
        self._path = path
        self._schema = schema
        self._stack = ExitStack()
        self._waiting: list[pa.Table] = []
        self._num_waiting = 0
        self.num_rows = 0

    def __enter__(self) -> Self:
        aside = self._stack.enter_context(whole_file(self._path))
        self._writer = self._stack.enter_context(pq.ParquetWriter(aside, self._schema, compression="zstd"))
        return self

    def write(self, table: pa.Table) -> None:
        """Append rows; their columns are put in the schema's order and types."""
        self._waiting.append(table.select(self._schema.names).cast(self._schema))
        self._num_waiting += table.num_rows
        self.num_rows += table.num_rows
        if self._num_waiting >= ROW_GROUP_ROWS:
            self._flush(self._num_waiting // ROW_GROUP_ROWS * ROW_GROUP_ROWS)

    def _flush(self, num_rows: int) -> None:
        rows = pa.concat_tables(self._waiting)
        self._writer.write_table(rows.slice(0, num_rows).combine_chunks(), row_group_size=ROW_GROUP_ROWS)
        self._waiting = [rows.slice(num_rows)]
        self._num_waiting -= num_rows

    def __exit__(self, *exc_info: object) -> None:
        if exc_info[0] is None and self._num_waiting:
            self._flush(self._num_waiting)
        self._stack.__exit__(*exc_info)  # pyright: ignore[reportArgumentType]  # the triple as the protocol hands it


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet table (some columns); raises ValueError, naming the file, where it is none or lacks a column."""
    if not path.is_file():
        raise ValueError(f"{path}: missing")
    try:
        return pq.read_table(path, columns=columns, use_threads=True)
    except pa.ArrowException as error:
        raise ValueError(f"{path}: not readable as a Parquet table ({str(error).splitlines()[0]})") from error
