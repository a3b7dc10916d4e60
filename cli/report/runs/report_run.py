"""A run with its name and its colour in the page."""

from __future__ import annotations

from typing import NamedTuple

from ....training.runs.run_record import RunRecord
from ..markup import short

NUM_COLOURS = 8


class ReportRun(NamedTuple):
    """A run in a page: its name, its place among the runs (0..), and the record in its folder."""

    name: str
    place: int
    record: RunRecord

    @property
    def kind(self) -> str:
        """The CSS class of its colour in the page."""
        return f"run-{self.place % NUM_COLOURS}"

    @property
    def label(self) -> str:
        """Its name behind its colour, as HTML."""
        return f'<span class="name"><i class="{self.kind}"></i>{short(self.name)}</span>'


def notes(texts: list[str]) -> str:
    """Return paragraphs of HTML, for what is not shown and why; empty for no text."""
    return "".join(f'<p class="card note-card">{text}</p>' for text in texts)
