"""The part of a report that is about runs, as sections of HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from ....training.jobs.inspect_runs import Inspection, InspectSettings, inspect_runs
from ....training.runs.run_record import read_record, record_file
from ...progress import ProgressLine
from ..charts import chart_style
from ..markup import plural
from ..prepared.render import FolderReport, Section
from .answers import classes, mistakes
from .curves import curves, epoch_times
from .look import features, looks
from .report_run import ReportRun
from .results import levels, results
from .results import settings as run_settings

HERE = Path(__file__).parent


def render_runs(paths: Sequence[Path], settings: InspectSettings) -> FolderReport:
    """Render runs, all in one page and over one another.

    paths:    folders of runs, and files of published weights, of whose training nothing is shown.
    settings: what to ask the networks. The page and the log say what a network could not be asked.

    Raises ValueError for a folder that does not hold a run, and where the settings fit none of several networks.
    """
    runs = [
        ReportRun(name, place, record_file(path) if path.is_file() else read_record(path))
        for place, (name, path) in enumerate(named(paths))
    ]
    inspection = inspect_runs({run.name: run.record for run in runs}, settings, watch=ProgressLine)
    return FolderReport(
        kind="Training run" if len(runs) == 1 else plural(len(runs), "training run", "training runs"),
        subject=", ".join(run.name for run in runs),
        sections=list(_sections(runs, inspection)),
        styles=(chart_style(), (HERE / "runs.css").read_text(encoding="utf-8")),
        scripts=((HERE / "runs.js").read_text(encoding="utf-8"),),
    )


def _sections(runs: Sequence[ReportRun], inspection: Inspection) -> Iterator[Section]:
    trained = [run for run in runs if not run.record.path.is_file()]  # the others are files of published weights
    if trained:
        yield Section("results", "Results", results(trained))
        yield Section("curves", "Curves", curves(trained) + epoch_times(trained))
        yield Section("levels", "Levels", levels(trained))
    yield Section("classes", "Classes", classes(runs, inspection))
    yield Section("mistakes", "Mistakes", mistakes(runs, inspection))
    yield Section("looks", "Where it looks", looks(runs, inspection))
    yield Section("features", "Features", features(runs, inspection))
    if trained:
        yield Section("run-settings", "Settings", run_settings(trained))


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
