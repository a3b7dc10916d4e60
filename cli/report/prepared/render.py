"""What a prepared data set shows of itself in a report: sections of HTML, a style and a script they share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from ....shards.dataset import PreparedSet
from ....shards.files.parallel import OnProgress, ignore_progress
from ..charts import chart_style
from . import sections
from .numbers import count_images
from .sheet import contact_sheet

HERE = Path(__file__).parent
MAX_IMAGES = 400  # about 2 MB of the page


class Section(NamedTuple):
    """A part of a page: `name` is its address there (letters and `-`), `html` stands below the title."""

    name: str
    title: str
    html: str


@dataclass(frozen=True)
class FolderReport:
    """What one folder renders of itself.

    kind, subject:  what it is, and of what (plain text).
    styles, scripts: CSS and JavaScript that the sections need; equal ones stand once in a page. They come from the
                     package, not from data.
    """

    kind: str
    subject: str
    sections: list[Section]
    styles: tuple[str, ...]
    scripts: tuple[str, ...]


def render_prepared(
    prepared: PreparedSet, *, num_images: int = 120, seed: int = 0, on_progress: OnProgress = ignore_progress
) -> FolderReport:
    """Render a prepared data set; equal data and arguments give equal text, wherever the folder lies.

    The manifest is read one row group at a time. Of its images `num_images` (0 to MAX_IMAGES) are shown, drawn by
    `seed`. Raises ValueError for a number out of range or a damaged data set.
    """
    if not 0 <= num_images <= MAX_IMAGES:
        raise ValueError(f"{num_images} images: wanted 0 to {MAX_IMAGES}, so that the page stays small")
    facts = sections.Facts(prepared, count_images(prepared, on_progress))
    sheet = contact_sheet(prepared, num_images, seed) if num_images else []
    tree = sections.tree_map(facts) + sections.tree_levels(facts) + sections.largest_branches(facts)
    return FolderReport(
        kind="Prepared data set",
        subject=facts.source_name,
        sections=[
            Section("counts", "Counts", sections.overview(facts)),
            Section("tail", "The long tail", sections.long_tail(facts)),
            Section("tree", "The tree", tree),
            Section("images", "Images", sections.contact_sheet(sheet, seed)),
            Section("sizes", "Sizes", sections.sizes(facts)),
            Section("changes", "Changes", sections.changes(facts)),
            Section("rejects", "Rejects", sections.rejects(facts)),
            Section("settings", "Settings", sections.made_with(facts)),
        ],
        styles=(chart_style(), (HERE / "report.css").read_text(encoding="utf-8")),
        scripts=((HERE / "report.js").read_text(encoding="utf-8"),),
    )
