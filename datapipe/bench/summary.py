"""The result of a loader benchmark: numbers, a one-sentence verdict, and a chart."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from ...shards.drawing import BLUE, FAINT, GREEN, GREY, INK, LINE, PAPER, RED
from ...shards.fonts import Font
from .measure import BenchResults
from .rounds import BackendConfig, BenchSettings, TrialResult

NEAR_CEILING = 0.8  # of what reading alone gives: faster decoding would gain little
AMPLE = 1.1  # times what a network needs: rounds differ by less
PERCENTILES = (50, 95, 99)


class Demand(NamedTuple):
    """What a network takes: its name and images/s of training."""

    model: str
    images_per_s: float


def spread(rates: Sequence[float]) -> dict[str, Any]:
    """Return the median, the least and the most of the rounds, and the rounds.

    >>> spread([3.0, 1.0, 2.0])
    {'median': 2.0, 'min': 1.0, 'max': 3.0, 'rounds': [3.0, 1.0, 2.0]}
    """
    return {"median": statistics.median(rates), "min": min(rates), "max": max(rates), "rounds": list(rates)}


def latencies_ms(results: Sequence[TrialResult]) -> dict[str, float]:
    """Return percentiles of the wait for a batch, over the batches of all trials, in milliseconds."""
    waits = [wait for result in results for wait in result.latencies]
    return {f"p{part}": 1000 * float(np.percentile(waits, part)) for part in PERCENTILES}


def summarize_backend(name: str, warm: Sequence[TrialResult], cold: Sequence[TrialResult]) -> dict[str, Any]:
    """Summarise the trials of a backend; the rate per core uses the CPU time that they really took.

    same_samples: whether the samples were those of the plan; webdataset reads the same shards in another order.
    """
    cpu_seconds = sum(result.cpu_seconds for result in warm)
    gpu_bytes = [result.gpu_bytes for result in warm if result.gpu_bytes is not None]
    return {
        "backend": name,
        "same_samples": name != "webdataset",
        "images_per_s": spread([result.images / result.seconds for result in warm]),
        "images_per_core_s": sum(result.images for result in warm) / cpu_seconds if cpu_seconds > 0 else None,
        "cold_images_per_s": spread([result.images / result.seconds for result in cold]) if cold else None,
        "latency_ms": latencies_ms(warm),
        "first_batch_s": next((w.first_batch_s for w in warm if w.first_batch_s is not None), None),
        "memory_mb": {
            "own": max(result.own_bytes for result in warm) / 1e6,
            "children": max(result.children_bytes for result in warm) / 1e6,
        },
        "gpu_memory_mb": max(gpu_bytes) / 1e6 if gpu_bytes else None,
        "num_batches": sum(len(result.latencies) for result in warm),
        "num_epochs": sum(result.num_epochs for result in warm),
        "num_bad": max(result.num_bad for result in warm),
    }


def summarize(measured: BenchResults, settings: BenchSettings, model: str | None = None) -> dict[str, Any]:
    """Return all numbers of a benchmark, fastest backend first, as plain values; the last is the verdict."""
    names = [name for name, config in measured.warm if config == settings.config(name)]
    backends = [
        summarize_backend(name, measured.warm[name, settings.config(name)], measured.cold.get(name, []))
        for name in names
    ]
    backends.sort(key=lambda backend: -backend["images_per_s"]["median"])
    failed = dict(measured.failed)
    failed |= {
        name: "an epoch has too few batches to measure; lower --batch-size"
        for name in dict.fromkeys(measured.backends)
        if name not in failed and name not in names
    }
    if not backends:
        raise ValueError("no backend was measured: " + "; ".join(f"{name}: {why}" for name, why in failed.items()))
    ceiling: dict[str, dict[str, Any]] = {
        cache: {
            "images_per_s": spread([reading.images / reading.seconds for reading in readings]),
            "mb_per_s": statistics.median(reading.num_bytes / reading.seconds / 1e6 for reading in readings),
        }
        for cache, readings in (("warm", measured.reading), ("cold", measured.reading_cold))
        if readings
    }
    steps = spread(measured.step_rates) if model and measured.step_rates else None
    sweep = summarize_sweep(measured.warm) if settings.sweep else []
    return {
        "backends": backends,
        "failed": failed,
        "ceiling": ceiling,
        "cold_left_out": measured.cold_reason or None,
        "demand": {"model": model, "images_per_s": steps} if steps else None,
        "sweep": sweep,
        "sweep_best": best_of_sweep(sweep),
        "verdict": verdict(
            {backend["backend"]: backend["images_per_s"] for backend in backends},
            ceiling["warm"]["images_per_s"]["median"],
            demand=Demand(model, steps["median"]) if model and steps else None,
            workers=settings.workers,
            on_gpu=settings.device != "cpu",
        ),
    }


def summarize_sweep(warm: Mapping[tuple[str, BackendConfig], Sequence[TrialResult]]) -> list[dict[str, Any]]:
    """Return each configuration of each backend with its `spread`, and the hardware decoder's load if it has one."""
    return [
        {
            "backend": name,
            "workers": config.workers,
            **({} if config.hw_decoder_load is None else {"hw_decoder_load": config.hw_decoder_load}),
            "images_per_s": spread([result.images / result.seconds for result in results]),
        }
        for (name, config), results in sorted(warm.items(), key=lambda item: item[0])
    ]


def best_of_sweep(sweep: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the fastest configuration of each backend by the median, fastest backend first."""
    fastest: dict[str, dict[str, Any]] = {}
    for row in sorted(sweep, key=lambda row: -row["images_per_s"]["median"]):
        fastest.setdefault(row["backend"], row)
    return list(fastest.values())


def verdict(
    rates: Mapping[str, Mapping[str, Any]],
    ceiling: float,
    *,
    demand: Demand | None = None,
    workers: int = 1,
    on_gpu: bool = False,
) -> str:
    """Return in one sentence what the numbers mean.

    rates: per backend the `spread` of its images/s, fastest first.  ceiling: images/s of reading alone.
    workers: decode threads or processes.  on_gpu: the network runs on a GPU; on a CPU it shares cores with the loader.
    """
    fastest, best = next(iter(rates.items()))
    rate: float = best["median"]
    if demand:
        return _verdict_on_demand(fastest, rate, ceiling, demand, workers, on_gpu=on_gpu)
    reading = (
        f"reading alone gives {ceiling:,.0f}, so reading is the limit"
        if rate >= NEAR_CEILING * ceiling
        else f"reading alone gives {ceiling:,.0f}, so decoding is the limit, not reading"
    )
    if len(rates) == 1:
        return f"{fastest} gives {rate:,.0f} img/s; {reading}"
    second, other = list(rates.items())[1]
    times = rate / other["median"]
    overlap = other["max"] >= best["min"]
    if overlap and times < AMPLE:
        both = f"{fastest} ({rate:,.0f} img/s) and {second} ({other['median']:,.0f}) are level: their rounds overlap"
        return f"{both}; {reading}"
    ahead = f"{fastest} is the fastest with {rate:,.0f} img/s, {times:.1f} times {second} ({other['median']:,.0f})"
    return f"{ahead}{', though some of their rounds overlap' if overlap else ''}; {reading}"


def _verdict_on_demand(fastest: str, rate: float, ceiling: float, demand: Demand, workers: int, *, on_gpu: bool) -> str:
    wanted = demand.images_per_s
    begin = (
        f"{demand.model} wants {wanted:,.0f} img/s {'on this GPU' if on_gpu else 'here'}; {fastest} gives {rate:,.0f}"
    )
    if rate >= AMPLE * wanted:
        together = f" (sharing the cores, both together give {1 / (1 / rate + 1 / wanted):,.0f})"
        return f"{begin}: the loader is not your limit{'' if on_gpu else together}"
    if rate >= wanted:
        return f"{begin}: the loader keeps up, with nothing to spare"
    waiting = f"{begin}: the loader is your limit, the network would wait {100 * (1 - rate / wanted):.0f} % of the time"
    if rate >= NEAR_CEILING * ceiling:
        return f"{waiting}, and reading alone gives no more than {ceiling:,.0f}: faster storage would help"
    return f"{waiting}; about {math.ceil(workers * wanted / rate)} cores in place of {workers} would feed it"


# The picture.

WIDTH, HEIGHT, MARGIN = 960, 600, 32  # pixels
LEFT, RIGHT, TOP, BOTTOM = 96, 176, 112, 120
LABEL_HEIGHT = 44
IN_RANGE = 1.6  # times all else: a ceiling beyond would press the bars flat, and is told in words


def axis_step(top: float, lines: int = 5) -> float:
    """Return a round distance between grid lines, so that about `lines` of them fit below `top`.

    >>> axis_step(9_120), axis_step(48)
    (2000.0, 10.0)
    """
    raw = max(top, 1e-9) / lines
    power = 10.0 ** math.floor(math.log10(raw))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)


def draw_rates(result: Mapping[str, Any], title: str, subtitle: str) -> Image.Image:
    """Draw a `summarize` as an RGB picture: a bar for each backend, and lines for reading alone and the network."""
    bars: list[tuple[str, dict[str, Any]]] = [
        (backend["backend"], backend["images_per_s"]) for backend in result["backends"]
    ]
    lines: list[tuple[str, float, str]] = []
    highest = max(rate["max"] for _, rate in bars)
    if result["demand"]:
        wanted: float = result["demand"]["images_per_s"]["median"]
        lines.append((result["demand"]["model"], wanted, RED))
        highest = max(highest, wanted)
    ceiling: float = result["ceiling"]["warm"]["images_per_s"]["median"]
    beyond = ceiling > IN_RANGE * highest
    if not beyond:
        lines.append(("reading alone", ceiling, GREEN))
        highest = max(highest, ceiling)
    chart = _Chart(highest * 1.08)
    chart.heading(title, subtitle, f"   (reading alone: {ceiling:,.0f}, beyond this picture)" if beyond else "")
    chart.grid()
    for place, (name, rate) in enumerate(bars):
        chart.bar(place, len(bars), name, rate, best=place == 0)
    chart.lines(lines)
    chart.footer(result["verdict"])
    return chart.picture


class _Chart:
    """Images a second upwards, backends side by side."""

    def __init__(self, highest: float) -> None:
        self.picture = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
        self._draw = ImageDraw.Draw(self.picture)
        self._highest = highest
        self._large, self._middle, self._small = map(Font, (24, 17, 14))

    def _y(self, rate: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * rate / self._highest

    def heading(self, title: str, subtitle: str, beside_unit: str) -> None:
        self._large.draw(self._draw, (MARGIN, MARGIN - 8), title, INK)
        self._small.draw(self._draw, (MARGIN, MARGIN + 26), subtitle, FAINT)
        self._small.draw(self._draw, (MARGIN, TOP - 26), f"images / s{beside_unit}", FAINT)

    def grid(self) -> None:
        step = axis_step(self._highest)
        for number in range(int(self._highest / step) + 1):
            y = self._y(number * step)
            self._draw.line((LEFT, y, WIDTH - RIGHT, y), LINE if number else FAINT)
            self._small.draw(self._draw, (LEFT - 10, y), f"{number * step:,.0f}", FAINT, anchor="rm")

    def bar(self, place: int, places: int, name: str, rate: Mapping[str, float], *, best: bool) -> None:
        room = (WIDTH - LEFT - RIGHT) / places
        middle, half = LEFT + room * (place + 0.5), min(70.0, room * 0.32)
        top, bottom = self._y(rate["median"]), self._y(0)
        self._draw.rectangle((middle - half, top, middle + half, bottom - 1), BLUE if best else GREY)
        least, most = self._y(rate["min"]), self._y(rate["max"])
        self._draw.line((middle, least, middle, most), INK, 2)
        for y in (least, most):
            self._draw.line((middle - 8, y, middle + 8, y), INK, 2)
        # Inside the bar, below the whisker, where no line's label lies; above it where the bar is too low.
        label, inside = f"{rate['median']:,.0f}", bottom - max(top, least) > 34
        y, anchor, colour = (max(top, least) + 8, "ma", PAPER if best else INK) if inside else (most - 6, "ms", INK)
        self._middle.draw(self._draw, (middle, y), label, colour, anchor=anchor)
        self._middle.draw(self._draw, (middle, bottom + 8), name, INK, anchor="ma")

    def lines(self, lines: Sequence[tuple[str, float, str]]) -> None:
        """Draw each (name, rate, colour) across, the labels at the right, where they do not lie on one another."""
        lowest = float(HEIGHT)
        for name, rate, colour in sorted(lines, key=lambda line: line[1]):
            label = name
            y = self._y(rate)
            for x in range(LEFT, WIDTH - RIGHT, 14):
                self._draw.line((x, y, min(x + 8, WIDTH - RIGHT), y), colour, 2)
            lowest = min(y, lowest - LABEL_HEIGHT)
            while self._small.length(label) > RIGHT - 14:
                label = label[:-1]
            for text, y in ((label, lowest - 9), (f"{rate:,.0f} img/s", lowest + 9)):
                self._small.draw(self._draw, (WIDTH - RIGHT + 10, y), text, colour, anchor="lm")

    def footer(self, text: str) -> None:
        y = HEIGHT - BOTTOM + 48
        for line in wrapped(text, lambda words: self._small.length(words) <= WIDTH - 2 * MARGIN):
            self._small.draw(self._draw, (MARGIN, y), line, INK)
            y += 20


def wrapped(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Break a text into lines that fit; a word that does not fit has a line of its own.

    >>> wrapped("one two three", lambda line: len(line) <= 7)
    ['one two', 'three']
    """
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if fits(longer) or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines
