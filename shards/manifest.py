"""The Parquet tables of a data set: every stored image, every reject."""

from __future__ import annotations

import binascii
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute
import pyarrow.parquet as pq
from numpy.typing import NDArray

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


# Columns of which hardly two values are equal are not looked up in dictionaries, as all others are: it takes half the
# bytes of checksums, and a third of the time to read them.
_ENCODINGS = {
    "checksum": "DELTA_LENGTH_BYTE_ARRAY",
    "offset": "DELTA_BINARY_PACKED",
    "shard_offset": "DELTA_BINARY_PACKED",
}


def _encodings(schema: pa.Schema) -> dict[str, Any]:
    leaves = [f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name for field in schema]
    return {
        "use_dictionary": [leaf for leaf in leaves if leaf not in _ENCODINGS],
        "column_encoding": {name: encoding for name, encoding in _ENCODINGS.items() if name in leaves},
    }


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
        writer = pq.ParquetWriter(aside, self._schema, compression="zstd", **_encodings(self._schema))
        self._writer = self._stack.enter_context(writer)
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


@contextmanager
def _readable(path: Path) -> Generator[None]:
    """Raise ValueError, naming the file, for what is wrong with a Parquet table that is read in the block."""
    if not path.is_file():
        raise ValueError(f"{path}: missing")
    try:
        yield
    except pa.ArrowException as error:
        raise ValueError(f"{path}: not readable as a Parquet table ({str(error).splitlines()[0]})") from error


def read_table(path: Path, columns: list[str] | None = None) -> pa.Table:
    """Read a Parquet table (some columns); raises ValueError, naming the file, where it is none or lacks a column."""
    with _readable(path):
        return pq.read_table(path, columns=columns, use_threads=True)


def num_rows(path: Path) -> int:
    """Return how many rows a Parquet table has; raises ValueError, naming the file, where it is none."""
    with _readable(path):
        return pq.read_metadata(path).num_rows


def read_row_groups(
    path: Path, columns: Sequence[str], *, rows: range | None = None, as_dictionary: Sequence[str] = ()
) -> Iterator[pa.Table]:
    """Read some columns of a Parquet table a row group at a time: all rows, or those of a range.

    Two row groups are in memory, as the next is read while one is worked on. Columns named in `as_dictionary` come as
    numbers into the row group's few values, which is much faster. Raises ValueError, naming the file, where it is no
    table, lacks a column or has fewer rows.
    """
    tables = _read_row_groups(path, columns, rows, as_dictionary)
    with ThreadPoolExecutor(1) as thread:
        coming = thread.submit(next, tables, None)
        while (table := coming.result()) is not None:
            coming = thread.submit(next, tables, None)
            yield table


def _read_row_groups(
    path: Path, columns: Sequence[str], rows: range | None, as_dictionary: Sequence[str]
) -> Iterator[pa.Table]:
    with _readable(path), pq.ParquetFile(path, read_dictionary=list(as_dictionary)) as file:
        lacking = set(columns) - set(file.schema_arrow.names)
        if lacking:
            raise ValueError(f"{path}: lacks the column {min(lacking)}")
        wanted = range(file.metadata.num_rows) if rows is None else rows
        if wanted.stop > file.metadata.num_rows:
            raise ValueError(f"{path}: has {file.metadata.num_rows:,} rows; wanted {wanted.stop:,} by dataset.json")
        first = 0
        for group in range(file.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            start, stop = max(first, wanted.start), min(end, wanted.stop)
            if start < stop:
                yield file.read_row_group(group, columns=list(columns)).slice(start - first, stop - start)
            first = end


def checksum_numbers(column: pa.ChunkedArray) -> NDArray[np.uint64]:
    """Return checksums, which tables hold as hex digits, as numbers; raises ValueError where they are none."""
    digits = column.combine_chunks().cast(pa.binary(16))
    return np.frombuffer(binascii.unhexlify(digits.buffers()[1]), ">u8").astype(np.uint64)
