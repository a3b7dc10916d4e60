"""The progress line: rates that are rates, and a last line of all that was done."""

from __future__ import annotations

import io
import re
from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from in21k.cli import progress as progress_module
from in21k.cli.progress import PLAIN_SECONDS, REDRAW_SECONDS, ProgressLine, TrainLine
from in21k.shards.files.parallel import Progress


class Terminal(io.StringIO):
    """A stream that is a terminal, or none."""

    def __init__(self, *, live: bool) -> None:
        super().__init__()
        self._live = live

    def isatty(self) -> bool:
        return self._live

    def lines(self) -> list[str]:
        return [line for line in re.split(r"\r\x1b\[K|\n", self.getvalue()) if line]


class Stage:
    """Stderr and a clock that moves when it is told."""

    def __init__(self, patched: pytest.MonkeyPatch, *, live: bool) -> None:
        self.now, self.stderr = 1000.0, Terminal(live=live)
        patched.setattr(progress_module, "sys", SimpleNamespace(stderr=self.stderr))
        patched.setattr(progress_module, "time", SimpleNamespace(monotonic=lambda: self.now))

    def show(self, line: ProgressLine, *steps: tuple[float, Progress]) -> None:
        for pause, progress in steps:
            self.now += pause
            line(progress)


@pytest.fixture(params=[True, False], ids=["terminal", "no terminal"])
def stage(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Stage:
    return Stage(monkeypatch, live=request.param)


def test_work_that_ends_at_once_shows_no_line(stage: Stage) -> None:
    with ProgressLine("verify") as line:
        stage.show(line, (0.0, Progress(0.5, 500, 0)), (0.000035, Progress(1.0, 1506, 0)))
    assert stage.stderr.getvalue() == ""


def test_the_last_line_is_of_all_that_was_done_and_says_how_long_it_took(stage: Stage) -> None:
    with ProgressLine("store") as line:
        stage.show(line, (0.0, Progress(0.0, 0, 0)), (20.0, Progress(0.35, 40, 0)), (0.1, Progress(0.5, 60, 0)))
    lines = stage.stderr.lines()
    assert lines == ["store 35 %, 40 images, 2 img/s, 0:37 left", "store 100 %, 60 images, 3 img/s, took 0:20"]


def test_work_that_fails_keeps_the_line_where_it_was(stage: Stage) -> None:
    with suppress(OSError), ProgressLine("store") as line:
        stage.show(line, (0.0, Progress(0.0, 0, 0)), (20.0, Progress(0.35, 40, 0)))
        raise OSError("gone")
    assert stage.stderr.lines() == ["store 35 %, 40 images, 2 img/s, 0:37 left"]


def test_a_last_line_that_was_shown_already_is_not_shown_again(stage: Stage) -> None:
    with ProgressLine("store") as line:
        stage.show(line, (0.0, Progress(0.0, 0, 0)), (20.0, Progress(1.0, 60, 0)))
    assert stage.stderr.lines() == ["store 100 %, 60 images, 3 img/s, 0:00 left"]


def test_work_of_unknown_size_ends_without_a_share(stage: Stage) -> None:
    with ProgressLine("predict") as line:
        stage.show(line, (0.0, Progress(0.0, 0, 0)), (20.0, Progress(0.0, 40, 0)), (0.1, Progress(0.0, 60, 0)))
    assert stage.stderr.lines()[-1] == "predict, 60 images, 3 img/s, took 0:20"


def test_work_that_is_not_counted_in_images_shows_what_is_being_done(stage: Stage) -> None:
    with ProgressLine("models") as line:
        line.show("resnet18", 0.0)
        stage.now += 20
        line.show("resnet50", 0.5)
    assert stage.stderr.lines() == ["models 50 %, resnet50, 0:20 left", "models 100 %, resnet50, took 0:20"]


def test_training_shows_its_steps_and_each_validation(stage: Stage) -> None:
    with TrainLine() as line:
        line.on_start(100, 300)
        stage.now += 20
        line.on_step({"step": 200, "epoch": 1, "loss": 2.5, "lr": 1e-3, "images_per_s": 1234.5, "data_wait": 0.02})
        line.on_validation({"epoch": 1, "validation": {"semantic_top1": 54.2, "top1": 3.7}})
    assert stage.stderr.lines() == [
        "train 67 %, step 200/300, epoch 1, loss 2.500, lr 1.00e-03, 1,234 img/s, waiting for data 2 %, 0:20 left",
        "epoch 1: semantic top-1 54.2 %, top-1 3.7 %",
    ]
    assert stage.stderr.getvalue().endswith("%\n")
    assert not stage.stderr.getvalue().endswith("\n\n")


@given(
    live=st.booleans(),
    steps=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 10_000)), min_size=1, max_size=30),
    ends=st.booleans(),
)
def test_a_rate_is_what_was_done_over_time_enough_to_tell(
    live: bool, steps: list[tuple[float, int]], ends: bool
) -> None:
    """Whatever the pauses between the images: no rate is above their number over the shortest time between lines."""
    with pytest.MonkeyPatch.context() as patched:
        stage, total = Stage(patched, live=live), 1 + sum(images for _, images in steps)
        pauses = [(pause * (1 if live else 60), images) for pause, images in steps]
        with ProgressLine("store") as line:
            done = 0
            for pause, images in pauses:
                done += images
                stage.show(line, (pause, Progress(done / total, done, done)))
            if ends:
                stage.show(line, (0.0, Progress(1.0, total, total)))
    rates = [int(item.replace(",", "")) for item in re.findall(r"([\d,]+) img/s", stage.stderr.getvalue())]
    assert all(rate <= total / (REDRAW_SECONDS if live else PLAIN_SECONDS) + 1 for rate in rates)
    assert all("100 %" in item for item in stage.stderr.lines()[-1:])
