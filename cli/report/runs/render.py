"""The part of a report that is about runs: what `in21k.training.report` found, as sections of HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ....training.runs.run_record import read_record
from ..charts import chart_style
from ..markup import plural
from ..prepared.render import FolderReport, Section
from .answers import classes, mistakes
from .ask import Asked, Question, ask
from .curves import curves, epoch_times
from .look import features, looks
from .results import levels, results, settings
from .shown import Shown

__all__ = ["Question", "named", "render_runs"]

HERE = Path(__file__).parent


def render_runs(paths: Sequence[Path], question: Question) -> FolderReport:
    """Render runs, all in one and over one another; raises ValueError for a folder that is no run.

    question: what to ask the networks; what cannot be asked of one is said in the page, and logged. Where none of
              several runs can be asked, that is a ValueError too.
    """
    runs = [Shown(name, place, read_record(path)) for place, (name, path) in enumerate(named(paths))]
    asked = ask(runs, question)
    return FolderReport(
        kind="Training run" if len(runs) == 1 else plural(len(runs), "training run", "training runs"),
        subject=", ".join(run.name for run in runs),
        sections=list(_sections(runs, asked)),
        styles=(chart_style(), (HERE / "runs.css").read_text(encoding="utf-8")),
        scripts=((HERE / "runs.js").read_text(encoding="utf-8"),),
    )


def _sections(runs: Sequence[Shown], asked: Asked) -> Iterator[Section]:
    yield Section("results", "Results", results(runs))
    yield Section("curves", "Curves", curves(runs) + epoch_times(runs))
    yield Section("levels", "Levels", levels(runs))
    yield Section("classes", "Classes", classes(runs, asked))
    yield Section("mistakes", "Mistakes", mistakes(runs, asked))
    yield Section("looks", "Where it looks", looks(runs, asked))
    yield Section("features", "Features", features(runs, asked))
    yield Section("run-settings", "Settings", settings(runs))


def named(paths: Sequence[Path]) -> list[tuple[str, Path]]:
    """Give each folder its name, with as many of those above it as tell all apart, or else a number.

    >>> [name for name, _ in named([Path("/a/run"), Path("/b/run"), Path("/c")])]
    ['a/run', 'b/run', 'c']
    """
    parts = [path.resolve().parts[1:] for path in paths]
    names: list[str] = []
    for place, own in enumerate(parts):
        others = parts[:place] + parts[place + 1 :]
        length = next((n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in others)), 0)
        names.append("/".join(own[-length:]) if length else f"{own[-1]} ({place + 1})")
    return list(zip(names, paths, strict=True))
