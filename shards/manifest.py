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

from .files.atomic import naming, whole_file

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
# The same row once it lies in a shard: `shard` is relative to the shard set, the image begins at byte `shard_offset`.
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


# All columns are dictionary-encoded but those whose values hardly repeat. Without a dictionary, checksums take half the
# bytes, and a third of the time to read.
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
        with ExitStack() as stack:  # which removes the file if it cannot be opened
            aside = stack.enter_context(whole_file(self._path))
            writer = pq.ParquetWriter(aside, self._schema, compression="zstd", **_encodings(self._schema))
            self._writer = stack.enter_context(writer)
            self._stack = stack.pop_all()
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
        if exc_info[0] is not None:
            self._stack.__exit__(*exc_info)  # pyright: ignore[reportArgumentType]  # the triple as the protocol hands it
            return
        with self._stack:  # which names the file and removes it if this fails
            if self._num_waiting:
                self._flush(self._num_waiting)


@contextmanager
def _readable(path: Path) -> Generator[None]:
    """Raise ValueError, naming the file, if the block reads a damaged Parquet table."""
    if not path.is_file():
        raise ValueError(f"{path}: missing")
    try:
        with naming(path):
            yield
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk's, not Arrow's
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not readable as a Parquet table ({reason})") from error


class TableReader(AbstractContextManager["TableReader"]):
    """Read a Parquet table a row group at a time; everything that is read is checked.

    schema:         the columns that are wanted. Each has to be there once, of its type, UTF-8 where it is text, without
                    nulls unless it may have them, and no number below 0.
    as_dictionary:  columns that come as numbers into the row group's few values, which is much faster.

    Raises ValueError, naming the file, if it is not such a table.
    """

    def __init__(self, path: Path, schema: pa.Schema, *, as_dictionary: Sequence[str] = ()) -> None:
        self.path, self._schema = path, schema
        try:
            with _readable(path):
                self._file = pq.ParquetFile(path, read_dictionary=list(as_dictionary))
        except KeyError as error:  # Arrow's error for a missing column
            raise ValueError(f"{path}: lacks one of the columns {', '.join(as_dictionary)}") from error
        try:
            with _readable(path):
                self._check_columns(self._file.schema_arrow)
                groups = range(self._file.num_row_groups)
                self.group_rows = [self._file.metadata.row_group(group).num_rows for group in groups]
            if min(self.group_rows, default=0) < 0 or sum(self.group_rows) != self._file.metadata.num_rows:
                raise ValueError(f"{path}: its row groups do not hold as many rows as it says")
        except BaseException:
            self._file.close()
            raise

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def num_rows(self) -> int:
        """Rows of all row groups."""
        return sum(self.group_rows)

    def _check_columns(self, schema: pa.Schema) -> None:
        for field in self._schema:
            count = schema.names.count(field.name)
            if count != 1:
                there_are = f"has the column {field.name} {count} times" if count else f"lacks the column {field.name}"
                raise ValueError(f"{self.path}: {there_are}")
            if (kind := _plain_type(schema.field(field.name).type)) != _plain_type(field.type):
                raise ValueError(f"{self.path}: its column {field.name} is of type {kind}; wanted {field.type}")

    def read(self, group: int) -> pa.Table:
        """Read a row group."""
        with _readable(self.path):
            table = self._file.read_row_group(group, columns=self._schema.names)
            # To look for UTF-8 in checksums takes as long as to read them, and they are ASCII.
            table.select([name for name in table.column_names if name != "checksum"]).validate(full=True)
        if table.num_rows != self.group_rows[group]:
            raise ValueError(
                f"{self.path}: row group {group} has {table.num_rows:,} of {self.group_rows[group]:,} rows"
            )
        if "checksum" in table.column_names and not _is_ascii(table["checksum"]):
            raise ValueError(f"{self.path}: a checksum is not 16 hex digits; run `in21k verify`")
        for field in self._schema:
            column = table[field.name]
            inner = pc.list_flatten(column).null_count if pa.types.is_list(field.type) else 0
            if inner or (column.null_count and not field.nullable):
                raise ValueError(f"{self.path}: its column {field.name} has nulls")
            if pa.types.is_integer(field.type) and (least := pc.min(column).as_py()) is not None and least < 0:
                raise ValueError(f"{self.path}: its column {field.name} has the value {least}; wanted 0 or more")
        return table

    def __iter__(self) -> Iterator[pa.Table]:
        """Yield the row groups in turn."""
        return map(self.read, range(len(self.group_rows)))


def _is_ascii(column: pa.ChunkedArray) -> bool:
    texts = (np.frombuffer(chunk.buffers()[2] or b"", np.uint8) for chunk in column.chunks)
    return all(text.max(initial=0) < 0x80 for text in texts)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Return a type without its encoding: the value type of a dictionary, and lists without a field name."""
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return pa.list_(_plain_type(kind.value_type)) if pa.types.is_list(kind) else kind


def read_table(path: Path, schema: pa.Schema, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a Parquet table of that schema, or some columns of it; raises ValueError as `TableReader`."""
    wanted = schema if columns is None else pa.schema([schema.field(name) for name in columns])
    with TableReader(path, wanted) as reader:
        return pa.concat_tables([wanted.empty_table(), *(table.cast(wanted) for table in reader)])


def num_rows(path: Path) -> int:
    """Return how many rows a Parquet table has; raises ValueError, naming the file, for any other file."""
    with TableReader(path, pa.schema([])) as reader:
        return reader.num_rows


def largest_values(path: Path, columns: Sequence[str]) -> tuple[int, ...] | None:
    """Return the largest value of some columns by the statistics of a table's row groups; None if it has none."""
    metadata = pq.read_metadata(path)
    names = metadata.schema.names
    groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
    statistics = [[group.column(names.index(name)).statistics for group in groups] for name in columns]
    if not groups or not all(part and part.has_min_max for parts in statistics for part in parts):
        return None
    return tuple(max(part.max for part in parts) for parts in statistics)


def read_row_groups(
    path: Path, columns: Sequence[str], *, rows: range | None = None, as_dictionary: Sequence[str] = ()
) -> Iterator[pa.Table]:
    """Read some columns of a manifest a row group at a time: all rows, or a range of rows.

    Two row groups are in memory, as the next is read while one is worked on. Raises ValueError as `TableReader`, which
    takes `as_dictionary`, and where there are fewer rows.
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
    schema = pa.schema([SHARDED.field(name) for name in columns])
    with TableReader(path, schema, as_dictionary=as_dictionary) as reader:
        wanted = range(reader.num_rows) if rows is None else rows
        if wanted.stop > reader.num_rows:
            raise ValueError(f"{path}: has {reader.num_rows:,} rows; wanted {wanted.stop:,} by dataset.json")
        first = 0
        for group, num_rows in enumerate(reader.group_rows):
            start, stop = max(first, wanted.start), min(first + num_rows, wanted.stop)
            if start < stop:
                yield reader.read(group).slice(start - first, stop - start)
            first += num_rows


def checksum_numbers(column: pa.ChunkedArray, path: Path) -> NDArray[np.uint64]:
    """Return checksums, which the table at `path` holds as hex digits, as numbers; raises ValueError for others."""
    try:
        digits = column.combine_chunks().cast(pa.binary(16))
        return np.frombuffer(binascii.unhexlify(digits.buffers()[1]), ">u8").astype(np.uint64)
    except ValueError as error:
        raise ValueError(f"{path}: a checksum is not 16 hex digits ({error}); run `in21k verify`") from error


def check_labels(labels: NDArray[np.int32], num_classes: int, path: Path) -> None:
    """Raise ValueError, naming the table at `path`, for a class index that no class has."""
    if len(labels) and not 0 <= labels.min() <= labels.max() < num_classes:
        wrong = labels.min() if labels.min() < 0 else labels.max()
        raise ValueError(f"{path}: has the class_index {wrong}; wanted 0 to {num_classes - 1}; run `in21k verify`")
