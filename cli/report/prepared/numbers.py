"""What a report counts: the manifest read once, a row group at a time, into numbers that fit in a page."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from ....shards.dataset import PreparedSet
from ....shards.files.parallel import OnProgress, Progress, ignore_progress
from ....shards.manifest import REJECTS, pc, read_row_groups, read_table
from ..histogram import Histogram, SideHistogram

NUM_EXAMPLES = 3
POSITIVE = ["num_bytes", "width", "height", "source_width", "source_height"]
COLUMNS = [*POSITIVE, "source_format", "changes"]


@dataclass
class ImageNumbers:
    """What the manifest's rows add up to.

    sides:           source widths and heights.  source_pixels, stored_pixels: per image.  stored_bytes: per image.
    num_as_they_were:  images that kept their bytes.  changes: images per thing done; warnings without their numbers.
    """

    num_images: int = 0
    num_bytes: int = 0
    num_as_they_were: int = 0
    sides: SideHistogram = field(default_factory=SideHistogram)
    source_pixels: Histogram = field(default_factory=Histogram)
    stored_pixels: Histogram = field(default_factory=Histogram)
    stored_bytes: Histogram = field(default_factory=Histogram)
    formats: Counter[str] = field(default_factory=Counter)
    changes: Counter[str] = field(default_factory=Counter)

    def add(self, rows: pa.Table) -> None:
        """Count some rows."""
        width, height, source_width, source_height, num_bytes = (
            rows[name].to_numpy().astype(np.int64)
            for name in ("width", "height", "source_width", "source_height", "num_bytes")
        )
        self.num_images += rows.num_rows
        self.num_bytes += int(num_bytes.sum())
        self.sides.add(source_width, source_height)
        self.source_pixels.add(source_width * source_height)
        self.stored_pixels.add(width * height)
        self.stored_bytes.add(num_bytes)
        self.num_as_they_were += pc.sum(pc.equal(pc.list_value_length(rows["changes"]), 0)).as_py() or 0
        self.formats += _counted(rows["source_format"])
        for change, count in _counted(pc.list_flatten(rows["changes"])).items():
            self.changes[_without_numbers(change)] += count


def _counted(column: pa.ChunkedArray) -> Counter[str]:
    return Counter({row["values"]: row["counts"] for row in pc.value_counts(column).to_pylist()})


def _without_numbers(change: str) -> str:
    """Blank the numbers of a warning: they are of one image, and would make each a kind of its own."""
    return re.sub(r"\d+", "…", change) if change.startswith("warning:") else change


def count_images(prepared: PreparedSet, on_progress: OnProgress = ignore_progress) -> ImageNumbers:
    """Count the stored images, one row group in memory at a time; raises ValueError where the manifest is damaged."""
    numbers, expected = ImageNumbers(), sum(prepared.num_samples.values())
    path = prepared.manifest_path
    for rows in read_row_groups(path, COLUMNS):
        for name in POSITIVE:
            if pc.min(rows[name]).as_py() < 1:
                raise ValueError(f"{path}: an image has the {name} {pc.min(rows[name]).as_py()}; run `in21k verify`")
        numbers.add(rows)
        on_progress(Progress(min(1.0, numbers.num_images / max(1, expected)), numbers.num_images, numbers.num_bytes))
    if numbers.num_images != expected:
        raise ValueError(
            f"{path}: has {numbers.num_images:,} rows where dataset.json says {expected:,}; run `in21k verify`"
        )
    return numbers


@dataclass(frozen=True)
class RejectReason:
    """A reason, how many members were rejected for it, and a few of them: (class name, member, detail)."""

    reason: str
    count: int
    examples: list[tuple[str, str, str]]


def reject_reasons(prepared: PreparedSet) -> list[RejectReason]:
    """Count the rejects by reason, the commonest first."""
    names = {row.wnid: row.name for row in prepared.classes}
    table = read_table(prepared.checked("rejects.parquet"), REJECTS)
    counts = sorted(_counted(table["reason"]).items(), key=lambda item: (-item[1], item[0]))
    reasons: list[RejectReason] = []
    for reason, count in counts:
        rows = pc.indices_nonzero(pc.equal(table["reason"], reason))
        # The first, the last and one between are of different classes more often than the first three.
        places = sorted({step * (count - 1) // max(1, NUM_EXAMPLES - 1) for step in range(NUM_EXAMPLES)})
        examples = table.take(rows.take(pa.array(places))).to_pylist()
        shown = [(names.get(row["wnid"], row["wnid"] or ""), row["name"], row["detail"]) for row in examples]
        reasons.append(RejectReason(reason, count, shown))
    return reasons
