"""The state of runs, their results, also level by level, and the settings in which they differ."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....training.metric_names import BY_NAME, METRICS
from ....training.runs.run_record import RunRecord, telling_settings
from ...progress import clock
from ..markup import bars, figure, number, short, table, text
from .report_run import ReportRun, notes

MAX_NAMED = 12  # samples of a lost batch

Cell = tuple[float | None, str]  # a value that is better the higher it is, where rows compare; and what is shown of it


def results(runs: Sequence[ReportRun]) -> str:
    """Tiles, a table of all measures, and what went wrong."""
    records = [run.record for run in runs]
    rows = [(text(title), [measure(record) for record in records]) for title, measure in MEASURES]
    compares = _validated_alike(records)
    shown = [(title, *_marked(cells, compares=compares)) for title, cells in rows if any(cell[1] for cell in cells)]
    head = ["", *(run.name for run in runs)]
    caption = "As the last validation of each run has it; times are those of training steps alone."
    if len(runs) > 1:
        other_data = " The runs were validated on different data, so none stands out as the best."
        caption += " The best of a row stands in bold." if compares else other_data
    body = figure("Measures", f'<div class="measures">{table(head, shown)}</div>', caption, wide=True)
    return (
        (_tiles(records[0]) if len(runs) == 1 else "")
        + notes([note for run in runs if (note := _state_note(run))])
        + body
    )


def _state_note(run: ReportRun) -> str:
    """Return where a run that is not finished stands; empty for a finished one."""
    record = run.record
    lost = record.nonfinite
    if lost:
        samples = [sample for rank in lost.get("ranks", []) for sample in rank["samples"]]
        more = f" and {number(len(samples) - MAX_NAMED)} more" if len(samples) > MAX_NAMED else ""
        batch = f" The batch held {', '.join(f'<code>{short(sample)}</code>' for sample in samples[:MAX_NAMED])}{more}."
        why = f"{run.label}: the loss of step {number(lost['step'])} was not finite, and the run stopped."
        return why + (batch if samples else "")
    return "" if record.metrics is not None else f"{run.label} is not finished: {_state(record)[1]}."


def _tiles(record: RunRecord) -> str:
    headline, validation = record.headline, record.validation
    steps = f"{number(int(record.log.steps[-1]))} steps" if len(record.log.steps) else "no step"
    state = "finished" if record.metrics is not None else "lost" if record.nonfinite else "unfinished"
    tiles = [("state", state, f"{steps}, {number(record.config['epochs'])} epochs planned")]
    if headline and validation:
        what = BY_NAME[headline].title
        averaged = _averages(record)
        note = f"best{' of the moving average' if averaged else ''} {_best(averaged=averaged)(record)[1]}"
        tiles.append((what, _percent(validation[headline]), note))
    if len(record.log.steps):
        tiles.append(("images/s", _rate(record)[1], f"{_waited(record)[1]} waiting for data"))
        tiles.append(("training time", _time(record)[1], "without validation and checkpoints"))
    listed = "".join(
        f"<li><span>{text(what)}</span><strong>{text(value)}</strong><small>{text(note)}</small></li>"
        for what, value, note in tiles
    )
    return f'<ul class="tiles">{listed}</ul>'


def _validated_alike(records: Sequence[RunRecord]) -> bool:
    """Tell whether runs are known to have been validated on the same data."""
    first, *others = [[record.config["data"].get(name) for name in ("shards", "label_sets")] for record in records]
    return first[0] is not None and all(other == first for other in others)


def _marked(cells: Sequence[Cell], *, compares: bool) -> list[str]:
    """Return what is shown of a row, the best in bold where its cells compare."""
    values = [value for value, _ in cells if value is not None]
    best = max(values) if compares and len(values) > 1 and max(values) > min(values) else None
    return [
        f"<strong>{text(shown)}</strong>" if best is not None and value == best else text(shown or "–")
        for value, shown in cells
    ]


def _state(record: RunRecord) -> Cell:
    if record.nonfinite:
        return None, f"lost at step {number(record.nonfinite['step'])}"
    if record.metrics is not None:
        return None, "finished"
    steps = record.log.steps
    return None, f"step {number(int(steps[-1]))} in epoch {int(record.log.epochs[-1])}" if len(steps) else "not begun"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} %"


def _validated(name: str, *, averaged: bool = False) -> Callable[[RunRecord], Cell]:
    def measure(record: RunRecord) -> Cell:
        validation = record.validation or {}
        value = (validation.get("ema", {}) if averaged else validation).get(name)
        return value, _percent(value)

    return measure


def _not_compared(measure: Callable[[RunRecord], Cell]) -> Callable[[RunRecord], Cell]:
    return lambda record: (None, measure(record)[1])


def _averages(record: RunRecord) -> bool:
    """Tell whether a run's best is that of its moving average."""
    return "ema" in (record.validation or {})


def _best(*, averaged: bool) -> Callable[[RunRecord], Cell]:
    def measure(record: RunRecord) -> Cell:
        if record.best is None or _averages(record) != averaged:
            return None, ""
        best, epoch = record.best
        if best_by := record.config["best_by"]:  # it may be another metric than that of other runs
            return None, f"{BY_NAME[best_by].title} {_percent(best)} (epoch {epoch})"
        return best, f"{_percent(best)} (epoch {epoch})"

    return measure


def _number(count: Callable[[RunRecord], Any]) -> Callable[[RunRecord], Cell]:
    def measure(record: RunRecord) -> Cell:
        value = count(record)
        return None, "" if value is None else number(value)

    return measure


def _logged(record: RunRecord, name: str) -> NDArray[np.float64]:
    """Return what the steps have of a scalar, float64 (S,); there may be none."""
    values = record.log.scalars.get(name, np.empty(0))
    return values[~np.isnan(values)]


def _loss(record: RunRecord) -> Cell:
    """The mean of the last hundredth of the steps."""
    losses = _logged(record, "loss")
    last = losses[-max(1, len(losses) // 100) :]
    return None, f"{float(last.mean()):.4g}" if len(last) else ""


def _time(record: RunRecord) -> Cell:
    epochs = record.epochs()
    return None, clock(sum(epoch.seconds for epoch in epochs)) if epochs else ""


def _rate(record: RunRecord) -> Cell:
    rates = _logged(record, "images_per_s")
    return (rate := float(np.median(rates)), number(rate)) if len(rates) else (None, "")


def _waited(record: RunRecord) -> Cell:
    waits = _logged(record, "data_wait")
    return None, f"{100 * float(waits.mean()):.1f} %" if len(waits) else ""


def _memory(record: RunRecord) -> Cell:
    memory = _logged(record, "memory_mb")
    return None, f"{number(float(memory.max()))} MB" if len(memory) else ""


def _metric_rows() -> Iterator[tuple[str, Callable[[RunRecord], Cell]]]:
    """Yield the rows of the metrics that training follows, each with its moving average and its baseline."""
    for metric in METRICS:
        if metric.meaning:
            yield metric.title, _validated(metric.name)
            yield f"{metric.title}, moving average", _validated(metric.name, averaged=True)
        if metric.meaning and metric.baseline:
            title = f"{metric.title}, {BY_NAME[metric.baseline].title}"
            yield title, _not_compared(_validated(metric.baseline))


MEASURES: tuple[tuple[str, Callable[[RunRecord], Cell]], ...] = (
    ("model", lambda record: (None, record.config["model"])),
    ("state", _state),
    ("epochs with steps", _number(lambda record: len(record.epochs()))),
    ("steps", _number(lambda record: record.log.steps[-1] if len(record.log.steps) else None)),
    *_metric_rows(),
    ("best of all epochs", _best(averaged=False)),
    ("best of all epochs, moving average", _best(averaged=True)),
    ("validation images", _number(lambda record: (record.validation or {}).get("num_samples"))),
    ("loss of the last steps", _loss),
    ("images/s, median", _rate),
    ("waiting for data", _waited),
    ("training time", _time),
    ("memory", _memory),
)


def levels(runs: Sequence[ReportRun]) -> str:
    """Top-1 of each level of the tree, a bar a run."""
    by_level: dict[int, list[tuple[ReportRun, dict[str, Any]]]] = {}
    for run in runs:
        for row in (run.record.validation or {}).get("per_level", []):
            if row["top1"] is not None:
                by_level.setdefault(row["level"], []).append((run, row))
    rows: list[tuple[str, float, str]] = []
    kinds: list[str] = []
    for level, of_runs in sorted(by_level.items()):
        label = f"level {level} <small>{number(of_runs[0][1]['num_classes'])} classes</small>"
        for run, row in of_runs:
            rows.append((label, row["top1"], f"{row['top1']:.1f} %"))
            kinds.append(run.kind)
            label = ""
    if not rows:
        multi_label = all("label_sets" in run.record.config["data"] for run in runs)
        body, caption = (
            ("None: images have several labels.", "Labels without a tree have no levels.")
            if multi_label
            else ("No validation by levels yet.", "Each validation has them.")
        )
        return figure("Top-1 by level", f'<p class="none">{body}</p>', caption, wide=True)
    key = "".join(f"<li>{run.label}</li>" for run in runs if run.kind in kinds)
    body = bars(rows, 100, kinds) + (f'<ul class="legend">{key}</ul>' if len(runs) > 1 else "")
    caption = (
        "Of the last validation: how often the likeliest class of a level is the right one, among the images whose "
        "class has an ancestor there or is of that level; from general (0) to particular."
    )
    return figure("Top-1 by level", body, caption, wide=True)


def settings(runs: Sequence[ReportRun]) -> str:
    """The settings that tell runs apart, and below them all."""
    configs = [run.record.config for run in runs]
    telling = telling_settings(configs)
    head = ["setting", *(("default", runs[0].name) if len(runs) == 1 else (run.name for run in runs))]
    rows = [(f"<code>{short(name)}</code>", *map(_setting, values)) for name, values in telling.items()]
    if len(runs) == 1:
        title, caption = "Settings that are not the default", "The run's config.yaml has every one."
        nothing = "Every setting is the default."
    else:
        title, caption = "Settings that differ", "All others are equal in all of these runs."
        nothing = "The runs have equal settings."
    body = table(head, rows) if rows else f'<p class="none">{nothing}</p>'
    every = [(f"<code>{short(key)}</code>", _setting(value)) for key, value in configs[0].items() if key != "data"]
    return figure(title, body, caption, table(["setting", runs[0].name], every), wide=True)


def _setting(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        return short(", ".join(map(str, value)) or "none")
    return short(value)
