"""The rows of all chunks, read class by class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from ..shards.manifest import pc, read_table
from .chunk_tasks import CHUNK, row_reject
from .sources.folders import Layout
from .sources.gathering import beside
from .sources.groups import Groups
from .sources.layouts import no_class, stray
from .sources.members import NO_SUFFIX, Reject, to_text
from .tasks import ChunkPart, ClassPart, Job

MERGED_ROWS = 1_000_000  # rows of chunks in memory at a time, some 200 MB


def class_bands(chunks: Mapping[int, ChunkPart]) -> Iterator[list[str]]:
    """Yield the classes in bands of MERGED_ROWS rows, in the order of the last chunk that holds one of their images.

    A chunk can be deleted when the bands of its classes are done; where classes lie together this comes early.
    """
    counts: Counter[str] = Counter()
    last: dict[str, int] = {}
    for number, part in sorted(chunks.items()):
        counts.update(part.num_rows)
        last.update(dict.fromkeys(part.num_rows, number))
    band: list[str] = []
    num_rows = 0
    for wnid in sorted(counts, key=lambda wnid: (last[wnid], wnid)):
        band.append(wnid)
        num_rows += counts[wnid]
        if num_rows >= MERGED_ROWS:
            yield band
            band, num_rows = [], 0
    if band:
        yield band


def rows_by_class(
    job: Job, chunks: Mapping[int, ChunkPart], groups: Groups, wnids: Sequence[str]
) -> Iterator[tuple[str, pa.Table]]:
    """Yield some classes, each with its rows in the order of the source and a column `chunk` for their chunk."""
    tables: list[pa.Table] = []
    for number, part in sorted(chunks.items()):
        if not part.num_rows.keys().isdisjoint(wnids):
            table = read_table(job.chunk_part(number).with_suffix(".parquet"), CHUNK)
            table = table.append_column("chunk", pa.array([number] * table.num_rows, pa.int64()))
            classes = pa.array(map(groups.class_of, table["wnid"].to_pylist()), pa.string())
            table = table.set_column(table.schema.get_field_index("wnid"), "wnid", classes)
            tables.append(table.filter(pc.is_in(table["wnid"], value_set=pa.array(set(wnids)))))
    rows = pa.concat_tables(tables)
    rows = rows.append_column("row", pa.array(range(rows.num_rows)))
    rows = rows.sort_by([("wnid", "ascending"), ("row", "ascending")]).drop_columns("row")
    runs = pc.run_end_encode(rows["wnid"].combine_chunks())
    start = 0
    for wnid, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
        yield wnid, rows.slice(start, end - start)
        start = end


def stray_of(row: Mapping[str, Any], *, is_outside: bool) -> Reject:
    """Return the reject of a row that belongs to no class. is_outside: its folder cannot be a class's."""
    path = to_text(row["path"])
    if is_outside and (row["is_image"] or row["reason"] == NO_SUFFIX):
        return no_class(path)
    return stray(path, row["reason"], row["detail"])


def with_beside(part: ClassPart, rows: pa.Table, layout: Layout | None) -> ClassPart:
    """Return the record of a class that came as a class tar, with its members elsewhere in the source as rejects."""
    if not part.kept:
        return part
    rejects = [
        beside(to_text(row["path"]), part.wnid) if row["is_image"] else row_reject(row, layout)
        for row in rows.to_pylist()
    ]
    return replace(part, rejects=[*part.rejects, *rejects], num_members=part.num_members + len(rejects))
