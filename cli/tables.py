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
    if path.suffix != ".parquet":
        raise ValueError(f"{path}: tables are Parquet files; give it a name that ends in .parquet")
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}; make it first")
    if not path.exists():
        return
    if path.is_dir() or not _is_ours(path):
        raise ValueError(f"{path}: exists and was not written by in21k, so it is not overwritten; give another name")
    if not overwrite:
        raise ValueError(f"{path}: exists; give another name, or --overwrite to replace an older table")


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

    from ..shards.files import whole_file

    metadata: Any = {METADATA: content}
    with (
        whole_file(path) as aside,
        pq.ParquetWriter(aside, schema.with_metadata(metadata), compression="zstd") as writer,
    ):
        yield writer
