"""Write the tables and the tree of a prepared data set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..shards.class_table import ClassRow, write_class_table
from ..shards.dataset import SPLITS, PreparedSet
from ..shards.files.record import VERSION
from ..shards.manifest import REJECTS, STORED, TableWriter, read_table
from ..shards.tree import SemanticTree
from .classes.taxonomy import Taxonomy, build_tree
from .outcome import Outcome
from .sources.members import Reject
from .tasks import CLASS_ROWS, ClassPart, Job


def write_tables(job: Job, outcome: Outcome, taxonomy: Taxonomy) -> SemanticTree:
    """Write tree.json, classes.parquet, manifest.parquet and rejects.parquet; return the tree."""
    kept = outcome.kept
    tree = build_tree([part.wnid for part in kept], taxonomy, inner_classes=job.select.inner_classes)
    tree.save(job.out / "tree.json")
    write_class_table(job.out / "classes.parquet", _class_rows(outcome.parts, tree, taxonomy))
    with TableWriter(job.out / "manifest.parquet", STORED) as writer:
        for split in SPLITS:
            for class_index, part in enumerate(kept):
                table = read_table(job.class_part(part.wnid).with_suffix(".parquet"), CLASS_ROWS)
                table = table.append_column("class_index", pa.array([class_index] * table.num_rows, pa.int32()))
                start = 0 if split == "train" else part.num_stored["train"]
                writer.write(table.slice(start, part.num_stored[split]))
    _write_rejects(job.out / "rejects.parquet", list(outcome.rejects()))
    return tree


def _write_rejects(path: Path, rejects: list[Reject]) -> None:
    rejects.sort(key=lambda reject: (reject.wnid is None, reject.wnid, reject.name, reject.reason, reject.detail))
    with TableWriter(path, REJECTS) as writer:
        writer.write(pa.Table.from_pylist([reject._asdict() for reject in rejects], schema=REJECTS))


def _class_rows(parts: Sequence[ClassPart], tree: SemanticTree, taxonomy: Taxonomy) -> Iterator[ClassRow]:
    index_of = {wnid: index for index, wnid in enumerate(tree.wnids)}
    part_of = {part.wnid: part for part in parts}
    for wnid in sorted({*part_of, *tree.wnids}):
        index, part = index_of.get(wnid), part_of.get(wnid)
        yield ClassRow(
            wnid=wnid,
            name=taxonomy.name(wnid),
            definition=taxonomy.definition(wnid),
            num_raw=part.num_raw if part else 0,
            num_train=part.num_stored["train"] if part else 0,
            num_val=part.num_stored["val"] if part else 0,
            kept=index is not None,
            inner=index is not None and index >= tree.num_image_classes,
            class_index=index,
            level=None if index is None else tree.levels[index],
        )


def describe(outcome: Outcome, tree: SemanticTree) -> dict[str, Any]:
    """Return the result as dataset.json describes it. num_classes counts inner classes too.

    ignored:             number of files of each `ignored_kind`.
    empty_classes:       folders without files, and class tars without members.
    dropped_for_rejects: the classes that are dropped only because of unreadable images, and the number of these.
    val_rejects:         the classes with rejected validation images, and the number of these.
    """
    kept = outcome.kept
    splits = {split: sum(part.num_stored[split] for part in kept) for split in SPLITS}
    ignored = sum((Counter(part.ignored) for part in outcome.parts), outcome.ignored)
    reasons = Counter(reject.reason for reject in outcome.rejects())
    return {
        "format": PreparedSet.format,
        "version": VERSION,
        "counts": {
            "num_classes_seen": len(outcome.parts),
            "num_classes": len(tree),
            **({"num_inner_classes": tree.num_inner} if tree.num_inner else {}),
            "num_raw": sum(part.num_raw for part in outcome.parts),
            "num_raw_kept": sum(part.num_raw for part in kept),
            "num_rejects": reasons.total(),
            "splits": {split: {"num_samples": count} for split, count in splits.items() if count},
        },
        "rejects": dict(sorted(reasons.items())),
        "num_with_warnings": sum(part.num_with_warnings for part in kept),
        "ignored": dict(sorted(ignored.items())),
        "empty_classes": sorted([*outcome.empty_folders, *(p.wnid for p in outcome.parts if not p.num_members)]),
        "dropped_for_rejects": {part.wnid: part.num_lost for part in outcome.fallen},
        "val_rejects": {part.wnid: number for part in kept if (number := part.num_val - part.num_stored["val"])},
    }
