"""Parquet files that commands write: they know their own again, and overwrite nothing else."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
