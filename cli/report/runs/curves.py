"""Curves of runs over one another: a line of means, a band around it from lowest to highest."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ....training.metric_names import METRICS, Metric
from ....training.runs.run_log import Curve, thin
from ..charts import SIDE, Axis, plot
from ..markup import brief, embedded_json, figure, number, text
from .report_run import ReportRun

MOST_POINTS, LEAST_POINTS, ALL_POINTS = 400, 100, 3000  # of a curve; of all curves of a chart together
STEPS_PER_POINT = 8  # where there are enough: so few that all is seen, and so many that the mean says something
MOST_DOTS = 30  # on a line: more would hide it
SPIKES = 0.005  # the share of points that may lie above a chart


class Line(NamedTuple):
    """A line of a chart: what it is called, its class, its points, and whether it is dashed or each point is a dot."""

    name: str
    kind: str
    curve: Curve
    is_dashed: bool = False
    has_dots: bool = False


def curves(runs: Sequence[ReportRun]) -> str:
    """Loss, accuracies, learning rate, speed and so on over the steps."""
    if not any(len(run.record.log.steps) for run in runs):
        return figure("Loss", '<p class="none">No step is logged yet.</p>', "log.jsonl holds no step.", wide=True)
    by_image = len({run.record.images_per_step for run in runs}) > 1
    across = Across("images seen" if by_image else "step", runs, by_image=by_image)
    differ = any(len({run.record.config[name] for run in runs}) > 1 for name in ("loss", "label_smoothing", "teacher"))
    apart = " The runs minimise different losses, so that their heights do not compare." if differ else ""
    charts = [
        across.scalar("Loss", "loss", f"What training minimises; the mean over all ranks' batches.{apart}", wide=True),
        across.scalar("Loss of the labels", "label_loss", "The part of the loss that the labels have."),
        across.scalar("Distillation", "kd_loss", "The part of the loss that the teacher has, before its weight."),
        *(across.validated(metric) for metric in METRICS if metric.meaning),
        across.scalar("Learning rate", "lr", "Of the tensors that the layer decay leaves at the whole rate."),
        across.scalar("Gradient norm", "grad_norm", "Over all parameters, before it is clipped."),
        across.scalar("Images per second", "images_per_s", "Of all ranks together."),
        across.scalar("Waiting for data", "data_wait", "The share of time in which the loop had no batch.", "%", 100),
        across.scalar("Memory", "memory_mb", "The most that rank 0 had on its GPU, or has in memory on a CPU.", "MB"),
    ]
    return "".join(charts)


class Across:
    """Charts over the steps of runs; where their steps take different numbers of images, over the images seen."""

    def __init__(self, title: str, runs: Sequence[ReportRun], *, by_image: bool) -> None:
        self._title, self._runs, self._by_image = title, runs, by_image
        self._most = max(self._scale(run, int(run.record.log.steps[-1])) for run in runs if len(run.record.log.steps))
        self._num_points = max(LEAST_POINTS, min(MOST_POINTS, ALL_POINTS // len(runs)))

    def _scale(self, run: ReportRun, steps: Any) -> Any:
        return steps * run.record.images_per_step if self._by_image else steps

    def scalar(
        self, title: str, name: str, caption: str, unit: str = "", factor: float = 1, *, wide: bool = False
    ) -> str:
        """Draw what each step has; nothing where no run has it."""
        lines: list[Line] = []
        for run in self._runs:
            log = run.record.log
            if name in log.scalars:
                num_points = min(self._num_points, max(LEAST_POINTS, len(log.steps) // STEPS_PER_POINT))
                curve = thin(self._scale(run, log.steps), factor * log.scalars[name], num_points)
                lines.append(Line(run.name, run.kind, curve))
        return self._chart(title, lines, caption, unit, wide=wide)

    def validated(self, metric: Metric) -> str:
        """Draw a metric of each validation, of the weights and of their moving average; empty where no run has it."""
        lines: list[Line] = []
        for run in self._runs:
            for averaged in (False, True):
                points = [
                    (self._scale(run, validation.step), values[metric.name])
                    for validation in run.record.log.validations
                    if metric.name in (values := validation.values.get("ema", {}) if averaged else validation.values)
                ]
                if points:
                    places, values = np.array(points, np.float64).T
                    curve = thin(places, values, self._num_points)
                    called = f"{run.name}, moving average" if averaged else run.name
                    lines.append(Line(called, run.kind, curve, is_dashed=averaged, has_dots=True))
        title = f"{metric.title[0].upper()}{metric.title[1:]}" if metric.title[1].islower() else metric.title
        return self._chart(title, lines, metric.meaning, metric.unit)

    def _chart(self, title: str, lines: list[Line], caption: str, unit: str, *, wide: bool = False) -> str:
        lines = [line for line in lines if len(line.curve.means)]
        if not lines:
            return ""
        x = Axis.linear(max(self._most, 1), self._title)
        return figure(title, chart(title, lines, x, unit), caption, wide=wide)


def epoch_times(runs: Sequence[ReportRun]) -> str:
    """Return the curve of the epochs' times."""
    lines: list[Line] = []
    for run in runs:
        whole = run.record.whole_epochs()
        if whole:
            places = np.array([epoch.number for epoch in whole])
            seconds = np.array([epoch.seconds for epoch in whole])
            lines.append(Line(run.name, run.kind, thin(places, seconds, MOST_POINTS), has_dots=True))
    if not lines:
        return ""
    longest = max(float(line.curve.means.max()) for line in lines)
    unit, seconds = next((unit for unit in (("h", 3600), ("min", 60)) if longest >= 2 * unit[1]), ("s", 1))
    scaled = [
        line._replace(curve=Curve(line.curve.places, *(values / seconds for values in line.curve[1:])))
        for line in lines
    ]
    x = Axis.linear(max(1.0, *(float(line.curve.places[-1]) for line in lines)), "epoch")
    caption = (
        "The time of each whole epoch's steps, out of the images and the images per second of each; validation and "
        "checkpoints are not in it."
    )
    return figure("Time of an epoch", chart("Time of an epoch", scaled, x, unit), caption)


def chart(title: str, lines: Sequence[Line], x: Axis, unit: str) -> str:
    """Draw lines; below them their names, each with the value at the pointer, or else the last."""
    y = value_axis(lines, unit)
    marks = "".join(_band(line, x, y) for line in lines) + "".join(_line(line, x, y) for line in lines)
    data = {
        "x": [x.low, x.high],
        "place": x.title,
        "unit": unit,
        "lines": [{"x": _rounded(line.curve.places), "y": _rounded(line.curve.means)} for line in lines],
    }
    names = "".join(
        f'<li><i class="{line.kind}{" dashed" if line.is_dashed else ""}"></i>{text(line.name)} '
        f"<strong>{text(with_unit(float(line.curve.means[-1]), unit))}</strong></li>"
        for line in lines
    )
    return (
        f'<div class="curves">{plot(marks, x, y, f"{title} over {x.title}")}'
        f'<ul class="legend readout">{names}<li class="at">at the end</li></ul>{embedded_json(data)}</div>'
    )


def value_axis(lines: Sequence[Line], unit: str) -> Axis:
    """Return an axis from 0, or from below the lowest where all lie far above 0 and differ; few spikes may leave it."""
    means = np.concatenate([line.curve.means for line in lines])
    ends = [float(line.curve.means[-1]) for line in lines]
    high = max(float(np.quantile(means, 1 - SPIKES)), *ends)
    low = min(float(means.min()), *ends)
    if math.isclose(low, high):
        low, high = min(low, 0.0), max(high, 0.0)
    else:
        room = low - 0.3 * (high - low)
        low = room if low < 0 else 0.0 if low < 0.6 * high else max(0.0, room)
    high += 0.08 * (high - low)
    return Axis.linear(min(high, 100.0) if unit == "%" else high, unit, brief, low=low)


def _points(places: Iterable[float], values: Iterable[float], x: Axis, y: Axis) -> list[str]:
    return [f"{SIDE * x.at(a):.1f} {SIDE * (1 - y.at(b)):.1f}" for a, b in zip(places, values, strict=True)]


def _line(line: Line, x: Axis, y: Axis) -> str:
    points = _points(line.curve.places, line.curve.means, x, y)
    dashed = " dashed" if line.is_dashed else ""
    dots = f'<path class="dots {line.kind}" d="{"".join(f"M{point}h0" for point in points)}"/>'
    path = f'<path class="line {line.kind}{dashed}" d="M{"L".join(points)}"/>' if len(points) > 1 else ""
    return path + (dots if (line.has_dots and len(points) <= MOST_DOTS) or len(points) == 1 else "")


def _band(line: Line, x: Axis, y: Axis) -> str:
    """Draw from lowest to highest, where points stand for several steps each."""
    places, _, lows, highs = line.curve
    if (lows == highs).all():
        return ""
    above = _points(places, highs, x, y)
    below = _points(places[::-1], lows[::-1], x, y)
    return f'<path class="band {line.kind}" d="M{"L".join([*above, *below])}Z"/>'


def _rounded(values: Iterable[float]) -> list[float]:
    rounded = [float(f"{value:.4g}") if abs(value) < 1000 else round(float(value)) for value in values]
    return [int(value) if value == int(value) else value for value in rounded]


def with_unit(value: float, unit: str) -> str:
    """Return a value in four digits or so, with its unit."""
    shown = number(value) if abs(value) >= 1000 else f"{float(f'{value:.4g}'):g}"
    return f"{shown} {unit}".strip()
