"""From what became of each class to the tables and the tree of the prepared data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..shards.class_table import ClassRow, write_class_table
from ..shards.dataset import SPLITS, VERSION, PreparedSet
from ..shards.manifest import REJECTS, STORED, TableWriter, read_table
from ..shards.tree import SemanticTree
from .archive import Reject
from .store import ClassPart, Job
from .taxonomy import Taxonomy, build_tree


def write_tables(job: Job, parts: Sequence[ClassPart], strays: Sequence[Reject], taxonomy: Taxonomy) -> None:
    """Write tree.json, classes.parquet, manifest.parquet and rejects.parquet; `parts` come by wnid."""
    kept = [part for part in parts if part.kept]
    tree = build_tree([part.wnid for part in kept], taxonomy)
    tree.save(job.out / "tree.json")
    write_class_table(job.out / "classes.parquet", _class_rows(parts, tree, taxonomy))
    column = STORED.get_field_index("class_index")
    with TableWriter(job.out / "manifest.parquet", STORED) as writer:
        for split in SPLITS:
            for class_index, part in enumerate(kept):
                table = read_table(job.class_part(part.wnid).with_suffix(".parquet"))
                table = table.set_column(column, "class_index", pa.array([class_index] * table.num_rows, pa.int32()))
                start = 0 if split == "train" else part.num_stored["train"]
                writer.write(table.slice(start, part.num_stored[split]))
    _write_rejects(job.out / "rejects.parquet", [*(reject for part in parts for reject in part.rejects), *strays])


def _write_rejects(path: Path, rejects: list[Reject]) -> None:
    rejects.sort(key=lambda reject: (reject.wnid is None, reject.wnid, reject.name, reject.reason, reject.detail))
    with TableWriter(path, REJECTS) as writer:
        writer.write(pa.Table.from_pylist([reject._asdict() for reject in rejects], schema=REJECTS))


def _class_rows(parts: Sequence[ClassPart], tree: SemanticTree, taxonomy: Taxonomy) -> Iterator[ClassRow]:
    index_of = {wnid: index for index, wnid in enumerate(tree.wnids)}
    for part in parts:
        index = index_of.get(part.wnid)
        yield ClassRow(
            wnid=part.wnid,
            name=taxonomy.name(part.wnid),
            definition=taxonomy.definition(part.wnid),
            num_raw=part.num_raw,
            num_train=part.num_stored["train"],
            num_val=part.num_stored["val"],
            kept=part.kept,
            class_index=index,
            level=None if index is None else tree.levels[index],
        )


def describe(parts: Sequence[ClassPart], strays: Sequence[Reject]) -> dict[str, Any]:
    """Return what dataset.json says of the result."""
    kept = [part for part in parts if part.kept]
    splits = {split: sum(part.num_stored[split] for part in kept) for split in SPLITS}
    return {
        "format": PreparedSet.format,
        "version": VERSION,
        "counts": {
            "num_classes_seen": len(parts),
            "num_classes": len(kept),
            "num_raw": sum(part.num_raw for part in parts),
            "num_raw_kept": sum(part.num_raw for part in kept),
            "num_rejects": sum(len(part.rejects) for part in parts) + len(strays),
            "splits": {split: {"num_samples": count} for split, count in splits.items() if count},
        },
    }
