"""The learning rate over a run's steps, drawn."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw

from ..datapipe.bench.summary import axis_step
from ..shards.drawing import BLUE, FAINT, INK, LINE, PAPER
from ..shards.fonts import Font
from ..training import TrainSettings
from ..training.schedule import learning_rate_share

WIDTH, HEIGHT, MARGIN = 960, 480, 32  # pixels
LEFT, RIGHT, TOP, BOTTOM = 96, 40, 108, 64
SCALE = 2  # drawn so much larger, and shrunk: smooth lines
MOST_POINTS = 4096


def draw_schedule(
    settings: TrainSettings, *, lr: float, num_steps: int, steps_per_epoch: int, subtitle: str
) -> Image.Image:
    """Draw the learning rate (0 to its peak `lr`) over the epochs of a run of `num_steps` steps, as an RGB picture."""
    # Every step, or of a long run so many that no pixel lacks one.
    steps = sorted({round(i * (num_steps - 1) / MOST_POINTS) for i in range(MOST_POINTS + 1)})
    rates = [lr * learning_rate_share(settings, step, num_steps) for step in steps]
    chart = _Chart(top=lr * 1.1, epochs=num_steps / steps_per_epoch)
    chart.heading(f"Learning rate: {settings.optimizer}, {settings.schedule}", subtitle)
    chart.grid()
    chart.curve([step / steps_per_epoch for step in steps], rates)
    highest = max(range(len(steps)), key=rates.__getitem__)
    # Beside the first step, above the others: where no curve runs. The last one's is raised over the curve's tail.
    labels = {
        0: (12, 0, "lm"),
        len(steps) - 1: (0, -28, "rs"),
        highest: (0, -10, "ls" if highest < len(steps) / 2 else "rs"),
    }
    for place, (right, down, anchor) in labels.items():
        text = f"{rates[place]:.3g} at step {steps[place] + 1:,}"
        chart.mark(steps[place] / steps_per_epoch, rates[place], text, right, down, anchor)
    return chart.finished()


class _Chart:
    """Learning rates upwards, epochs to the right."""

    def __init__(self, top: float, epochs: float) -> None:
        self._picture = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), PAPER)
        self._draw = ImageDraw.Draw(self._picture)
        self._top, self._epochs = top, epochs
        self._large, self._small = map(Font, (24 * SCALE, 14 * SCALE))

    def _at(self, epoch: float, rate: float) -> tuple[float, float]:
        x = LEFT + (WIDTH - LEFT - RIGHT) * epoch / self._epochs
        y = HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * rate / self._top
        return x * SCALE, y * SCALE

    def heading(self, title: str, subtitle: str) -> None:
        self._large.draw(self._draw, (MARGIN * SCALE, (MARGIN - 8) * SCALE), title, INK)
        self._small.draw(self._draw, (MARGIN * SCALE, (MARGIN + 26) * SCALE), subtitle, FAINT)

    def grid(self) -> None:
        for rate in _ticks(self._top, 5):
            begin, end = self._at(0, rate), self._at(self._epochs, rate)
            self._draw.line((begin, end), LINE if rate else FAINT, SCALE)
            self._small.draw(self._draw, (begin[0] - 10 * SCALE, begin[1]), f"{rate:.3g}", FAINT, anchor="rm")
        for epoch in _ticks(self._epochs, 10):
            x, y = self._at(epoch, 0)
            self._draw.line((x, y, x, y + 5 * SCALE), FAINT, SCALE)
            self._small.draw(self._draw, (x, y + 10 * SCALE), f"{epoch:.4g}", FAINT, anchor="ma")
        x, y = self._at(self._epochs, 0)
        self._small.draw(self._draw, (x, y + 32 * SCALE), "epochs", FAINT, anchor="ra")

    def curve(self, epochs: Sequence[float], rates: Sequence[float]) -> None:
        points = [self._at(epoch, rate) for epoch, rate in zip(epochs, rates, strict=True)]
        self._draw.line(points, BLUE, 2 * SCALE, joint="curve")

    def mark(self, epoch: float, rate: float, text: str, right: int, down: int, anchor: str) -> None:
        """Mark a point of the curve; its text so many pixels to the right and below, by that anchor of PIL's."""
        x, y = self._at(epoch, rate)
        radius = 4 * SCALE
        self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), BLUE)
        self._small.draw(self._draw, (x + right * SCALE, y + down * SCALE), text, INK, anchor=anchor)

    def finished(self) -> Image.Image:
        return self._picture.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def _ticks(top: float, lines: int) -> list[float]:
    step = axis_step(top, lines)
    return [number * step for number in range(int(top / step + 1e-9) + 1)]
