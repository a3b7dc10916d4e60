"""Charts: marks as SVG that stretches with the page, labels as HTML that keeps its size on a phone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from ...shards.class_table import ClassRow
from .histogram import SideHistogram
from .markup import brief, number, percent, text

SIDE = 1000  # the drawing's units along each side
MAX_STEPS = 700  # of the long tail's outline: more than a screen shows
NUM_SHADES = 6


def chart_style() -> str:
    """Return the CSS of what `charts` and `markup` make."""
    return Path(__file__).with_name("charts.css").read_text(encoding="utf-8")


@dataclass(frozen=True)
class Axis:
    """An axis from `low` to `high`, linear or logarithmic, and the values that are named on it."""

    low: float
    high: float
    ticks: tuple[float, ...]
    label: Callable[[float], str]
    title: str
    is_log: bool

    @classmethod
    def linear(cls, high: float, title: str, label: Callable[[float], str] = brief, *, low: float = 0.0) -> Axis:
        """A linear axis; where high and low are equal, one of some length from low on."""
        if math.isclose(high, low):
            high = low + (abs(low) or 1.0)
        length = high - low
        step = 10.0 ** math.floor(math.log10(length / 4))
        step *= next((factor for factor in (1, 2, 5) if length / (step * factor) <= 5), 10)
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        return cls(low, high, tuple(step * count for count in range(first, last + 1)), label, title, is_log=False)

    @classmethod
    def log(cls, low: float, high: float, title: str, label: Callable[[float], str] = brief) -> Axis:
        """A logarithmic axis; powers of ten are named, and values between them where there are few.

        Where high and low are equal, it is of a factor of ten around them.
        """
        if math.isclose(high, low):
            low, high = low / math.sqrt(10), high * math.sqrt(10)
        decades = math.log10(high / low)
        steps = (1, 2, 5) if decades < 1.5 else (1, 3) if decades < 3 else (1,)
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = (step * 10.0**power for power in powers for step in steps)
        return cls(low, high, tuple(tick for tick in ticks if low <= tick <= high), label, title, is_log=True)

    def at(self, value: float) -> float:
        """Return where a value lies: 0 at `low`, 1 at `high`; what is outside lies on the edge."""
        if self.is_log:
            place = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            place = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, place))


def _x(axis: Axis, value: float) -> str:
    return f"{SIDE * axis.at(value):.1f}"


def _y(axis: Axis, value: float) -> str:
    return f"{SIDE * (1 - axis.at(value)):.1f}"


def plot(marks: str, x: Axis, y: Axis, describes: str, labels: str = "", kind: str = "") -> str:
    """Return a chart: marks (SVG in units of SIDE) over a grid, both axes named."""
    grid = "".join(f'<path class="grid" d="M0 {_y(y, tick)}H{SIDE}"/>' for tick in y.ticks)
    grid += "".join(f'<path class="grid" d="M{_x(x, tick)} 0V{SIDE}"/>' for tick in x.ticks)
    ticks = "".join(f'<span class="x" style="left:{100 * x.at(v):.2f}%">{text(x.label(v))}</span>' for v in x.ticks)
    ticks += "".join(f'<span class="y" style="bottom:{100 * y.at(v):.2f}%">{text(y.label(v))}</span>' for v in y.ticks)
    return (
        f'<div class="plot {kind}" role="img" aria-label="{text(describes)}">'
        f'<span class="y-title">{text(y.title)}</span>'
        f'<div class="area"><svg viewBox="0 0 {SIDE} {SIDE}" preserveAspectRatio="none">{grid}{marks}</svg>'
        f'{ticks}{labels}</div><span class="x-title">{text(x.title)}</span></div>'
    )


def _note(x: float, y: float, kind: str, words: str) -> str:
    """Return a label inside a chart, at shares (0..1) of its width and height from the lower left."""
    return f'<span class="note {kind}" style="left:{100 * x:.2f}%;bottom:{100 * y:.2f}%">{text(words)}</span>'


def long_tail(kept: Sequence[ClassRow], dropped: Sequence[ClassRow], threshold: int | None) -> str:
    """Draw the classes' numbers of images, largest first, kept ones before dropped ones, with the cut."""
    sizes = [row.num_raw for row in (*kept, *dropped)]
    x = Axis.linear(len(sizes), "classes, the largest first", number)
    y = Axis.log(0.8, max(10, *sizes) * 3, "images of the class in the source", brief)
    marks = _steps(sizes, 0, len(kept), x, y, "kept") + _steps(sizes, len(kept), len(sizes), x, y, "dropped")
    labels = ""
    if dropped:
        marks += f'<path class="cut" d="M{_x(x, len(kept))} 0V{SIDE}"/>'
        labels += _note(0, 0.95, "right", f"{number(len(kept))} kept")
        labels += _note(1, 0.95, "left", f"{number(len(dropped))} dropped")
    if threshold:
        marks += f'<path class="cut" d="M0 {_y(y, threshold)}H{SIDE}"/>'
        labels += _note(1, y.at(threshold), "left above", f"the cut: {number(threshold)} images")
    describes = f"{len(kept):,} classes kept and {len(dropped):,} dropped, from {max(sizes):,} images to {min(sizes):,}"
    return plot(marks, x, y, describes, labels, "tall")


def _steps(sizes: Sequence[int], first: int, last: int, x: Axis, y: Axis, kind: str) -> str:
    if first == last:
        return ""
    places = np.unique(np.linspace(first, last, min(MAX_STEPS, last - first) + 1).astype(int)).tolist()
    path = f"M{_x(x, first)} {SIDE}"
    path += "".join(f"V{_y(y, sizes[here])}H{_x(x, after)}" for here, after in pairwise(places))
    return f'<path class="fill {kind}" d="{path}V{SIDE}Z"/>'


def histogram(
    bins: Sequence[tuple[float, float, int]], x: Axis, describes: str, label: Callable[[float], str], kind: str = "kept"
) -> str:
    """Draw shares of images by (low, high, count), over a logarithmic axis."""
    total = sum(count for *_, count in bins)
    y = Axis.linear(1.08 * 100 * max(count for *_, count in bins) / total, "of the images", lambda v: f"{v:g} %")
    marks = ""
    for low, high, count in bins:
        if count:
            left, right, top = SIDE * x.at(low), SIDE * x.at(high), SIDE * (1 - y.at(100 * count / total))
            title = f"{label(low)} to {label(high)}: {percent(count, total)}, {number(count)} images"
            marks += (
                f'<rect class="fill {kind}" x="{left:.1f}" y="{top:.1f}" width="{right - left:.1f}" '
                f'height="{SIDE - top:.1f}"><title>{text(title)}</title></rect>'
            )
    return plot(marks, x, y, describes, kind="low")


def padded_log(bins: Sequence[tuple[float, float, int]], title: str, label: Callable[[float], str] = brief) -> Axis:
    """Return a logarithmic axis around bins, a factor of ten long at the least."""
    low, high = bins[0][0], bins[-1][1]
    room = max(1.15, math.sqrt(10 * low / high))
    return Axis.log(low / room, high * room, title, label)


def size_map(sides: SideHistogram, stored_side: int | None) -> str:
    """Draw how many images have which width and height: the darker a cell, the more, by powers."""
    held = np.argwhere(sides.counts > 0)
    edges = np.append(sides.edges, sides.edges[-1] * sides.edges[1])
    low, high = float(edges[held.min()]), float(edges[held.max() + 1])
    pad = max(1.2, math.sqrt(8 * low / high))
    x, y = (Axis.log(low / pad, high * pad, f"{side}, pixels", number) for side in ("width", "height"))
    top = int(sides.counts.max())
    cells = [""] * NUM_SHADES
    for column, row in held.tolist():
        share = math.log(int(sides.counts[column, row])) / math.log(top) if top > 1 else 1.0
        left, right = _x(x, float(edges[column])), _x(x, float(edges[column + 1]))
        lower, upper = _y(y, float(edges[row])), _y(y, float(edges[row + 1]))
        cells[min(NUM_SHADES - 1, int(NUM_SHADES * share))] += f"M{left} {lower}H{right}V{upper}H{left}Z"
    marks = "".join(f'<path class="shade-{shade}" d="{path}"/>' for shade, path in enumerate(cells) if path)
    marks += f'<path class="guide" d="M0 {SIDE}L{SIDE} 0"/>'
    labels = _note(0.985, 0.94, "left", "square")
    if stored_side and x.low < stored_side < x.high:
        marks += f'<path class="cut" d="M{_x(x, stored_side)} {SIDE}V{_y(y, stored_side)}H0"/>'
        labels += _note(0.012, y.at(stored_side), "right above", f"stored at {stored_side}")
    return plot(marks, x, y, f"widths and heights of the source images; at most {top:,} in a cell", labels, "square")


def shade_key(most: int) -> str:
    """Return the key to `size_map`'s shades."""
    swatches = "".join(f'<i class="shade-{shade}"></i>' for shade in range(NUM_SHADES))
    return f'<p class="key" aria-hidden="true">1 image {swatches} {number(most)} in a cell</p>'
