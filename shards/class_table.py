"""The class table: every class that the source held, kept or not."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from .manifest import TableWriter, read_table

_SCHEMA = pa.schema(
    [
        pa.field("wnid", pa.string(), nullable=False),
        pa.field("name", pa.string(), nullable=False),
        pa.field("definition", pa.string(), nullable=False),
        pa.field("num_raw", pa.int64(), nullable=False),
        pa.field("num_train", pa.int64(), nullable=False),
        pa.field("num_val", pa.int64(), nullable=False),
        pa.field("kept", pa.bool_(), nullable=False),
        pa.field("inner", pa.bool_(), nullable=False),
        pa.field("class_index", pa.int32()),
        pa.field("level", pa.int32()),
    ]
)


class ClassRow(NamedTuple):
    """A class of the source.

    num_raw counts its images there, num_train and num_val those stored. An inner class is kept without images, for the
    classes below it. class_index (0.. in wnid order, first the classes with images, then the inner ones) and level
    (number of class ancestors) are None for a class that was not kept.
    """

    wnid: str
    name: str
    definition: str
    num_raw: int
    num_train: int
    num_val: int
    kept: bool
    inner: bool
    class_index: int | None
    level: int | None


def write_class_table(path: Path, rows: Iterable[ClassRow]) -> None:
    """Write `classes.parquet`, rows in wnid order."""
    with TableWriter(path, _SCHEMA) as writer:
        ordered = [row._asdict() for row in sorted(rows)]
        writer.write(pa.Table.from_pylist(ordered, schema=_SCHEMA))


def read_class_table(path: Path) -> list[ClassRow]:
    """Read `classes.parquet`; raises ValueError for any other file."""
    return [ClassRow(**row) for row in read_table(path, _SCHEMA).to_pylist()]


def kept_classes(rows: Iterable[ClassRow]) -> list[ClassRow]:
    """Return the kept classes in the order of their class indices."""
    return sorted((row for row in rows if row.kept), key=lambda row: (row.inner, row.wnid))
