"""`in21k bench-loader` and `in21k browse`: what they print and draw; no number is asserted, only that it is there."""

from __future__ import annotations

import logging
import re
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from in21k.cli.bench_loader_table import _best, _render_sweep
from in21k.datapipe import available_backends
from in21k.datapipe.bench.summary import HEIGHT, WIDTH, best_of_sweep

from .conftest import run, run_json
from .test_mistakes import assert_refused

READY = [name for name, reason in available_backends().items() if reason is None]
QUICK = ("--seconds", 0.2, "--rounds", 2, "--batch-size", 8, "--device", "cpu", "--workers", 2)
PLANNED = [name for name in READY if name != "webdataset"]
CPU_READY = [name for name in READY if name != "dali_gpu"]


@pytest.fixture(scope="module")
def measured(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """A benchmark of every backend with all that can be asked for, and its picture."""
    plot = tmp_path_factory.mktemp("plot") / "rates.png"
    words = ("--sweep", "--model", "resnet10t", "--plot", plot, "--augment", "inception")
    return run_json("bench-loader", shards, *QUICK, *words), plot


@pytest.fixture(autouse=True)
def unfiltered() -> Iterator[None]:
    """The log of the loaders as it was."""
    log = logging.getLogger("in21k.datapipe.create")
    before = log.filters[:]
    yield
    log.filters[:] = before


def test_every_backend_that_runs_here_is_measured(measured: tuple[dict[str, Any], Path]) -> None:
    result, _ = measured
    assert result["failed"] == {}
    assert sorted(backend["backend"] for backend in result["backends"]) == sorted(CPU_READY)
    medians = [backend["images_per_s"]["median"] for backend in result["backends"]]
    assert medians == sorted(medians, reverse=True)
    for backend in result["backends"]:
        rate = backend["images_per_s"]
        assert rate["median"] == statistics.median(rate["rounds"])
        assert (rate["min"], rate["max"], len(rate["rounds"])) == (min(rate["rounds"]), max(rate["rounds"]), 2)
        waits = backend["latency_ms"]
        assert 0 < waits["p50"] <= waits["p95"] <= waits["p99"]
        assert backend["first_batch_s"] > 0
        assert backend["memory_mb"]["own"] > 0
        assert backend["gpu_memory_mb"] is None
        assert (backend["cold_images_per_s"] is None) == (result["cold_left_out"] is not None)
        assert backend["same_samples"] == (backend["backend"] != "webdataset")


def test_reading_alone_the_network_and_the_sweep_stand_beside_them(measured: tuple[dict[str, Any], Path]) -> None:
    result, _ = measured
    assert result["ceiling"]["warm"]["images_per_s"]["median"] > 0
    assert result["ceiling"]["warm"]["mb_per_s"] > 0
    assert result["demand"]["model"] == "resnet10t"
    assert len(result["demand"]["images_per_s"]["rounds"]) == 2
    numbers = {(row["backend"], row["workers"]) for row in result["sweep"]}
    assert {(name, workers) for name in CPU_READY for workers in (1, 2)} <= numbers
    assert all("hw_decoder_load" not in row for row in result["sweep"])
    assert {row["backend"] for row in result["sweep_best"]} == set(CPU_READY)
    for best in result["sweep_best"]:
        rates = [row["images_per_s"]["median"] for row in result["sweep"] if row["backend"] == best["backend"]]
        assert best["images_per_s"]["median"] == max(rates)
    assert result["verdict"].startswith("resnet10t wants ")
    assert result["backends"][0]["backend"] in result["verdict"]


def test_the_plot_is_a_picture_that_only_overwrite_replaces(
    measured: tuple[dict[str, Any], Path], shards: Path
) -> None:
    _, plot = measured
    with Image.open(plot) as opened:
        assert (opened.format, opened.size) == ("PNG", (WIDTH, HEIGHT))
    assert_refused(run("bench-loader", shards, *QUICK, "--plot", plot), "rates.png: exists", "--overwrite")


def test_the_table_names_what_it_shows_and_ends_with_the_verdict(shards: Path) -> None:
    result = run("bench-loader", shards, *QUICK, "--backend", "torch", "--backend", "torch")
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].endswith("2 workers, " + lines[0].rsplit(", ", 1)[1])
    assert lines[2].split()[:4] == ["img/s", "min", "-", "max"]
    assert [line.split()[0] for line in lines[3:5]] == ["torch", "reading"]
    assert lines[-1].startswith("torch gives ")


def test_a_sweep_prints_a_table_and_the_best_and_says_nothing_of_hardware_that_is_not_there(shards: Path) -> None:
    words = ("--sweep", "--backend", "torch", "--backend", "webdataset") if "webdataset" in READY else ("--sweep",)
    result = run("bench-loader", shards, *QUICK, *words)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    (head,) = [line.split() for line in lines if line.startswith("img/s by workers")]
    assert {"1", "2"} <= set(head)
    (best,) = [line for line in lines if line.startswith("best of the sweep: ")]
    assert re.search(r"torch \d+ workers? \([\d,]+ img/s\)", best)
    assert "hardware" not in result.stdout
    assert "hw_decoder_load" not in result.stdout
    noted = [line for line in lines if "reads the same shards in another order" in line]
    assert [line.split(":")[0] for line in noted] == [name for name in ("webdataset",) if name in READY]


def test_a_sweep_of_the_hardware_decoder_has_a_row_for_each_load_and_names_the_best_combination() -> None:
    sweep = [
        {"backend": "dali_gpu", "workers": workers, "hw_decoder_load": load, "images_per_s": {"median": rate}}
        for workers, load, rate in ((8, 0.0, 9_000.0), (8, 0.8, 17_000.0), (16, 0.0, 14_000.0), (16, 0.8, 19_500.0))
    ]
    sweep += [{"backend": "opencv", "workers": 16, "images_per_s": {"median": 21_000.0}}]
    rows = [line.split("  ") for line in _render_sweep({"sweep": sweep}).splitlines()]
    assert [[cell.strip() for cell in row if cell.strip()] for row in rows] == [
        ["img/s by workers", "8", "16"],
        ["dali_gpu, hardware 0", "9,000", "14,000"],
        ["dali_gpu, hardware 0.8", "17,000", "19,500"],
        ["opencv", "-", "21,000"],
    ]
    assert [_best(item) for item in best_of_sweep(sweep)] == [
        "opencv 16 workers (21,000 img/s)",
        "dali_gpu 16 workers, hw_decoder_load 0.8 (19,500 img/s)",
    ]


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (("--backend", "dali-cpu"), ("backend 'dali-cpu' is unknown", "did you mean dali_cpu?")),
        (("--augment", "incepton"), ("augment is 'incepton'", "inception")),
        (("--batch-size", 5000), ("samples", "--batch-size")),
        (("--batch-size", 0), ("batch_size is 0",)),
        (("--seconds", 0), ("seconds is 0",)),
        (("--rounds", 0), ("rounds is 0",)),
        (("--model", "resnet5O"), ("unknown model",)),
        (("--plot", "rates.jpg"), ("rates.jpg", ".png")),
        (("--plot", "nowhere/rates.png"), ("does not exist; create it first",)),
    ],
)
def test_what_cannot_be_measured_is_refused(
    words: tuple[object, ...],
    messages: tuple[str, ...],
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(run("bench-loader", shards, "--device", "cpu", *words), *messages)
    assert list(tmp_path.iterdir()) == []


def test_shards_that_are_none_are_refused(tmp_path: Path) -> None:
    assert_refused(run("bench-loader", tmp_path / "nowhere"), "no such folder")
    assert_refused(run("browse", tmp_path, tmp_path / "sheet.png"), "holds no dataset.json")


# browse


def test_browse_draws_a_sheet_and_says_how_far_the_backends_are_apart(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    result = run_json("browse", shards, out, "--images", 3, "--augment", "miil", "--seed", 5)
    assert result["path"] == str(out)
    assert result["failed"] == {}
    assert [backend["backend"] for backend in result["backends"]] == PLANNED
    assert result["compared_with"] == PLANNED[0]
    assert result["backends"][0] == {"backend": PLANNED[0], "mean_difference": 0, "largest_difference": 0}
    assert len(result["samples"]) == 3
    assert all(sample["key"].startswith(sample["wnid"]) for sample in result["samples"])
    with Image.open(out) as opened:
        assert opened.format == "PNG"
        assert opened.height > 128 * (1 + len(PLANNED))


def test_browse_prints_a_line_for_each_backend(shards: Path, tmp_path: Path) -> None:
    words = ("--split", "val", "--images", 2, "--backend", "torch")
    result = run("browse", shards, tmp_path / "sheet.png", *words)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].endswith("sheet.png: 2 images of val, augment none")
    assert lines[1].split() == ["grey", "levels", "from", "torch", "mean", "largest"]
    assert lines[2].split() == ["torch", "0.00", "0"]


def test_browse_replaces_its_own_pictures_alone(shards: Path, tmp_path: Path) -> None:
    out, photo = tmp_path / "sheet.png", tmp_path / "photo.png"
    words = ("--images", 1, "--backend", "torch")
    assert run("browse", shards, out, *words).exit_code == 0
    assert_refused(run("browse", shards, out, *words), "sheet.png: exists", "--overwrite")
    assert run("browse", shards, out, *words, "--overwrite").exit_code == 0
    Image.new("RGB", (9, 9)).save(photo)
    before = photo.read_bytes()
    assert_refused(run("browse", shards, photo, *words, "--overwrite"), "is not a PNG picture of in21k")
    assert photo.read_bytes() == before


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (("--backend", "openvc"), ("backend 'openvc' is unknown", "did you mean opencv?")),
        (("--augment", "incepton"), ("augment is 'incepton'",)),
        (("--split", "test"), ("has no split 'test'",)),
        (("--images", 0), ("num_images is 0",)),
        (("--images", 500), ("wanted 1 to ",)),
    ],
)
def test_browse_refuses_what_is_not_there(
    words: tuple[object, ...], messages: tuple[str, ...], shards: Path, tmp_path: Path
) -> None:
    assert_refused(run("browse", shards, tmp_path / "sheet.png", *words), *messages)
    assert list(tmp_path.iterdir()) == []
