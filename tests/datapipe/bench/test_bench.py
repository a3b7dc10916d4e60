"""The loader benchmark: its arithmetic, its sentence, its picture, and that turns measure what they say."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from in21k.datapipe.bench.measure import (
    BackendProcess,
    BenchResults,
    Reading,
    TrainingSteps,
    _Rounds,
    measure,
    one_line,
    read_samples,
)
from in21k.datapipe.bench.rounds import BackendConfig, BackendRunner, BenchSettings, Trial, TrialResult
from in21k.datapipe.bench.schedule import SWEPT_LOADS, num_trials, planned_seconds, sweep_of, within_budget
from in21k.datapipe.bench.summary import (
    HEIGHT,
    PAPER,
    WIDTH,
    Demand,
    axis_step,
    best_of_sweep,
    draw_rates,
    latencies_ms,
    spread,
    summarize,
    summarize_backend,
    summarize_sweep,
    verdict,
    wrapped,
)
from in21k.datapipe.machine import (
    cpu_seconds,
    descendants,
    drop_cache,
    private_bytes,
    resident_bytes,
    resident_part,
)
from in21k.shards import ShardSet
from in21k.shards.files.parallel import ignore_progress

from ..conftest import BACKENDS, SIZE

NUM_TRAIN, BATCH = 52, 8


def settings_of(**changed: Any) -> BenchSettings:
    values = {"batch_size": BATCH, "image_size": SIZE, "workers": 1, "seconds": 0.2, "rounds": 2}
    return BenchSettings(**(values | changed))


def result(**changed: Any) -> TrialResult:
    values: dict[str, Any] = {"images": 100, "seconds": 2.0, "cpu_seconds": 1.0, "latencies": [0.5, 1.5]}
    values |= {"first_batch_s": None, "own_bytes": 10**6, "children_bytes": 0, "gpu_bytes": None}
    return TrialResult(**(values | {"num_epochs": 1, "num_bad": 0} | changed))


# The arithmetic.


@pytest.mark.parametrize(
    ("rates", "median", "least", "most"),
    [([5.0], 5, 5, 5), ([3.0, 1.0, 2.0], 2, 1, 3), ([4.0, 1.0], 2.5, 1, 4)],
)
def test_a_spread_is_median_least_and_most_of_the_rounds(
    rates: list[float], median: float, least: float, most: float
) -> None:
    assert spread(rates) == {"median": median, "min": least, "max": most, "rounds": rates}


def test_percentiles_are_over_the_batches_of_all_rounds() -> None:
    waits = [number / 1000 for number in range(101)]
    actual = latencies_ms([result(latencies=waits[:30]), result(latencies=waits[30:])])
    assert actual == pytest.approx({"p50": 50, "p95": 95, "p99": 99})


def test_a_backend_is_summed_up_over_its_windows() -> None:
    warm = [
        result(images=100, seconds=1.0, cpu_seconds=2.0, first_batch_s=0.7, own_bytes=5 * 10**6),
        result(images=300, seconds=1.0, cpu_seconds=2.0, children_bytes=3 * 10**6, gpu_bytes=7 * 10**6, num_bad=2),
        result(images=200, seconds=1.0, cpu_seconds=1.0, first_batch_s=0.1),
    ]
    actual = summarize_backend("opencv", warm, [result(images=80, seconds=2.0)])
    assert actual["images_per_s"]["median"] == 200
    assert actual["images_per_core_s"] == 600 / 5
    assert actual["cold_images_per_s"]["median"] == 40
    assert actual["first_batch_s"] == 0.7  # of the first turn, imports of the backend included
    assert actual["memory_mb"] == {"own": 5, "children": 3}
    assert actual["gpu_memory_mb"] == 7
    assert (actual["num_batches"], actual["num_bad"]) == (6, 2)
    assert actual["same_samples"]
    assert summarize_backend("opencv", [result(cpu_seconds=0.0)], [])["images_per_core_s"] is None


FAST, SLOW = spread([9_000.0, 9_120.0, 9_200.0]), spread([4_000.0, 4_560.0, 4_600.0])


@pytest.mark.parametrize(
    ("rates", "ceiling", "more", "sentence"),
    [
        (
            {"dali_gpu": FAST},
            50_000,
            {"demand": Demand("resnet50", 2_480), "on_gpu": True},
            "resnet50 wants 2,480 img/s on this GPU; dali_gpu gives 9,120: the loader is not your limit",
        ),
        (
            {"opencv": FAST, "torch": SLOW},
            50_000,
            {"demand": Demand("resnet18", 60)},
            "resnet18 wants 60 img/s here; opencv gives 9,120: the loader is not your limit "
            "(sharing the cores, both together give 60)",
        ),
        (
            {"opencv": FAST},
            50_000,
            {"demand": Demand("resnet50", 9_000), "on_gpu": True},
            "resnet50 wants 9,000 img/s on this GPU; opencv gives 9,120: the loader keeps up, with nothing to spare",
        ),
        (
            {"opencv": FAST},
            50_000,
            {"demand": Demand("resnet18", 18_240), "workers": 16, "on_gpu": True},
            "resnet18 wants 18,240 img/s on this GPU; opencv gives 9,120: the loader is your limit, the network would "
            "wait 50 % of the time; about 32 cores in place of 16 would feed it",
        ),
        (
            {"opencv": FAST},
            10_000,
            {"demand": Demand("resnet18", 18_240), "workers": 16, "on_gpu": True},
            "resnet18 wants 18,240 img/s on this GPU; opencv gives 9,120: the loader is your limit, the network would "
            "wait 50 % of the time, and reading alone gives no more than 10,000: faster storage would help",
        ),
        (
            {"opencv": FAST, "torch": SLOW},
            50_000,
            {},
            "opencv is the fastest with 9,120 img/s, 2.0 times torch (4,560); "
            "reading alone gives 50,000, so decoding is the limit, not reading",
        ),
        (
            {"opencv": FAST, "dali_cpu": spread([9_000.0, 9_110.0, 9_110.0])},
            9_500,
            {},
            "opencv (9,120 img/s) and dali_cpu (9,110) are level: their rounds overlap; "
            "reading alone gives 9,500, so reading is the limit",
        ),
        (
            {"opencv": FAST, "torch": spread([4_000.0, 4_560.0, 9_100.0])},
            50_000,
            {},
            "opencv is the fastest with 9,120 img/s, 2.0 times torch (4,560), though some of their rounds overlap; "
            "reading alone gives 50,000, so decoding is the limit, not reading",
        ),
        (
            {"torch": SLOW},
            50_000,
            {},
            "torch gives 4,560 img/s; reading alone gives 50,000, so decoding is the limit, not reading",
        ),
    ],
)
def test_the_verdict_is_one_sentence_of_what_the_numbers_mean(
    rates: dict[str, Any], ceiling: float, more: dict[str, Any], sentence: str
) -> None:
    assert verdict(rates, ceiling, **more) == sentence


@pytest.mark.parametrize(("cores", "numbers"), [(1, (1,)), (2, (1, 2)), (6, (1, 2, 4, 6)), (8, (1, 2, 4, 8))])
def test_a_sweep_doubles_up_to_all_cores(cores: int, numbers: tuple[int, ...]) -> None:
    assert sweep_of(cores) == numbers


def test_a_sweep_tries_workers_first_and_then_loads_for_dali_gpu_alone() -> None:
    settings = settings_of(workers=4, sweep=(1, 4), sweep_loads=(0.0, 0.65, 1.0))
    assert settings.config("dali_gpu") == BackendConfig(4, 0.65)
    assert settings.swept_workers("opencv") == [BackendConfig(1)]
    assert settings.swept_workers("dali_gpu") == [BackendConfig(1, 0.65)]
    assert settings.swept_loads("opencv", BackendConfig(1)) == []
    assert settings.swept_loads("dali_gpu", BackendConfig(1, 0.65)) == [BackendConfig(1, 0.0), BackendConfig(1, 1.0)]
    assert (settings.num_swept("opencv"), settings.num_swept("dali_gpu")) == (1, 3)
    assert settings_of(workers=4).num_swept("dali_gpu") == 0
    assert settings.loader_arguments(BackendConfig(1, 0.25))["hw_decoder_load"] == 0.25
    with pytest.raises(ValueError, match=r"hw_decoder_load is 1\.5"):
        settings_of(sweep_loads=(1.5,))
    assert settings_of(sweep_loads=SWEPT_LOADS).sweep_loads == (0, 0.25, 0.5, 0.65, 0.8, 1)


def swept() -> BenchResults:
    """A sweep of two backends; dali_gpu is fastest with one worker and all JPEGs for the hardware."""
    measured = BenchResults(backends=["opencv", "dali_gpu"], reading=[Reading(100, 1000, 0.001)], cold_reason="no")
    measured.warm = {
        ("opencv", BackendConfig(2)): [result(images=300), result(images=500)],
        ("opencv", BackendConfig(1)): [result(images=100)],
        ("dali_gpu", BackendConfig(2, 0.65)): [result(images=800)],
        ("dali_gpu", BackendConfig(2, 1.0)): [result(images=600)],
        ("dali_gpu", BackendConfig(1, 1.0)): [result(images=1000)],
    }
    return measured


class FakeBackend:
    """A backend whose rate is highest with two workers."""

    def __init__(self, trials: list[Trial]) -> None:
        self._trials = trials

    def run(self, trial: Trial) -> TrialResult:
        self._trials.append(trial)
        return result(images=900 if trial.config.workers == 2 else 100)


def test_the_loads_are_swept_with_the_fastest_number_of_workers(shard_set: ShardSet) -> None:
    """A trial each: 4 + 5, and not 5 x 6 of them in every round."""
    settings = settings_of(workers=16, sweep=(1, 2, 4, 8, 16), sweep_loads=SWEPT_LOADS, rounds=2, seconds=0.02)
    trials = list[Trial]()
    measured = BenchResults(backends=["dali_gpu"], cold_reason="no")
    running: Any = {"dali_gpu": FakeBackend(trials)}
    rounds = _Rounds(shard_set.split("train"), settings, None, measured, running, ignore_progress)
    for number in range(2):
        rounds.measure(number)
    rounds.sweep()
    configs = [trial.config for trial in trials]
    assert configs[:2] == [BackendConfig(16, 0.65)] * 2
    assert configs[2:6] == [BackendConfig(workers, 0.65) for workers in (1, 2, 4, 8)]
    assert configs[6:] == [BackendConfig(2, load) for load in (0.0, 0.25, 0.5, 0.8, 1.0)]


def test_a_budget_sets_the_length_of_trials_and_refuses_what_cannot_be_measured() -> None:
    settings = settings_of(workers=16, sweep=(1, 2, 4, 8, 16), sweep_loads=SWEPT_LOADS, rounds=3)
    backends = ["dali_gpu", "opencv"]
    assert num_trials(settings, backends) == 2 * 3 * 2 + 9 + 4
    fitted = within_budget(settings, backends, 120, with_model=True)
    assert planned_seconds(fitted, backends, with_model=True) == pytest.approx(120)
    assert fitted.sweep == settings.sweep
    with pytest.raises(ValueError, match=r"budget is 30 s; wanted at least \d+ s for 25 trials of 2 backends"):
        within_budget(settings, backends, 30, with_model=False)


def test_a_sweep_names_each_backends_best_combination() -> None:
    sweep = summarize_sweep(swept().warm)
    assert [(item["backend"], item["workers"], item.get("hw_decoder_load")) for item in sweep] == [
        ("dali_gpu", 1, 1.0),
        ("dali_gpu", 2, 0.65),
        ("dali_gpu", 2, 1.0),
        ("opencv", 1, None),
        ("opencv", 2, None),
    ]
    assert all(("hw_decoder_load" in item) == (item["backend"] == "dali_gpu") for item in sweep)
    best = best_of_sweep(sweep)
    assert [(item["backend"], item["workers"], item["images_per_s"]["median"]) for item in best] == [
        ("dali_gpu", 1, 500),
        ("opencv", 2, 200),
    ]
    assert best[0]["hw_decoder_load"] == 1


def test_the_table_of_backends_shows_the_requested_configuration() -> None:
    result = summarize(swept(), settings_of(workers=2, sweep=(1, 2), sweep_loads=(0.65, 1.0)))
    rates = {backend["backend"]: backend["images_per_s"]["median"] for backend in result["backends"]}
    assert rates == {"dali_gpu": 400, "opencv": 200}
    assert len(result["sweep"]) == 5
    assert summarize(swept(), settings_of(workers=2))["sweep"] == []


# The picture.


def result_of(ceiling: float, wanted: float | None) -> dict[str, Any]:
    demand = {"model": "vit_giant_patch14_reg4_dinov2", "images_per_s": spread([wanted])} if wanted else None
    return {
        "backends": [{"backend": "opencv", "images_per_s": FAST}, {"backend": "torch", "images_per_s": SLOW}],
        "ceiling": {"warm": {"images_per_s": spread([ceiling])}},
        "demand": demand,
        "verdict": "opencv is the fastest, " * 12,
    }


@pytest.mark.parametrize(("ceiling", "wanted"), [(12_000.0, 11_900.0), (10**6, None), (10**6, 5.0), (500.0, 90_000.0)])
def test_the_picture_draws_whatever_was_measured(ceiling: float, wanted: float | None) -> None:
    picture = draw_rates(result_of(ceiling, wanted), "Loaders", "batches of 8")
    assert (picture.size, picture.mode) == ((WIDTH, HEIGHT), "RGB")
    assert len(picture.getcolors(WIDTH * HEIGHT) or []) > 10
    edge = picture.crop((0, 0, 4, HEIGHT)).getcolors()
    assert edge == [(4 * HEIGHT, tuple(bytes.fromhex(PAPER[1:])))]


@pytest.mark.parametrize(("top", "step"), [(9_120, 2_000), (48, 10), (5, 1), (1_000, 200), (0.4, 0.1)])
def test_grid_lines_are_round_numbers(top: float, step: float) -> None:
    assert axis_step(top) == pytest.approx(step)


def test_a_long_sentence_is_broken_between_its_words() -> None:
    assert wrapped("one two three", lambda line: len(line) <= 7) == ["one two", "three"]
    assert wrapped("unbreakable words", lambda line: len(line) <= 4) == ["unbreakable", "words"]


# The turns.


def test_a_trial_counts_the_batches_of_its_time(backend: str, shard_set: ShardSet) -> None:
    before = descendants()
    runner = BackendRunner(shard_set, backend, settings_of())
    first, second = runner.run(Trial(BackendConfig(1), 0.1)), runner.run(Trial(BackendConfig(1), 0.1))
    runner.close()
    assert first is not None
    assert second is not None
    for item in (first, second):
        assert item.images == BATCH * len(item.latencies) > 0
        assert sum(item.latencies) <= item.seconds
        assert item.own_bytes > 0
        assert item.gpu_bytes is None
        assert item.num_bad == 0
    assert first.first_batch_s is not None
    assert second.first_batch_s is None
    assert set(descendants()) <= set(before)


def test_a_loader_is_recreated_for_another_configuration(shard_set: ShardSet) -> None:
    runner = BackendRunner(shard_set, "opencv", settings_of())
    results = [runner.run(Trial(BackendConfig(workers), 0.05)) for workers in (1, 1, 2, 1)]
    runner.close()
    assert [result is not None and result.first_batch_s is not None for result in results] == [True, False, True, True]


def test_small_data_are_read_for_several_epochs(shard_set: ShardSet) -> None:
    runner = BackendRunner(shard_set, "torch", settings_of(batch_size=26))
    output = runner.run(Trial(BackendConfig(1), 0.6))
    runner.close()
    assert output is not None
    assert output.num_epochs >= 2


def test_a_cold_trial_ends_with_the_epoch(backend: str, shard_set: ShardSet) -> None:
    runner = BackendRunner(shard_set, backend, settings_of())
    output = runner.run(Trial(BackendConfig(1), 60.0, cold=True))
    assert output is not None
    assert output.images == (NUM_TRAIN // BATCH - 3) * BATCH  # the clock starts once the worker is in its stride
    assert output.num_epochs == 1
    runner.close()
    alone = BackendRunner(shard_set, backend, settings_of(batch_size=NUM_TRAIN))
    assert alone.run(Trial(BackendConfig(1), 60.0, cold=True)) is None
    alone.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_reading_alone_reads_the_planned_samples(workers: int, shard_set: ShardSet) -> None:
    actual = read_samples(shard_set.split("train"), settings_of(workers=workers, seconds=60.0))
    assert actual.images == NUM_TRAIN // BATCH * BATCH
    assert 0 < actual.num_bytes <= int(shard_set.split("train").num_bytes.sum())
    whole = read_samples(shard_set.split("train"), settings_of(batch_size=4, workers=workers, seconds=60.0))
    assert (whole.images, whole.num_bytes) == (NUM_TRAIN, int(shard_set.split("train").num_bytes.sum()))


def test_a_backend_that_fails_is_named_and_the_others_go_on(shard_set: ShardSet) -> None:
    settings, progress = settings_of(rounds=1), list[Any]()
    actual = measure(shard_set, [BACKENDS[0], "nonesuch"], settings, on_progress=progress.append)
    result = summarize(actual, settings)
    assert [backend["backend"] for backend in result["backends"]] == [BACKENDS[0]]
    assert list(result["failed"]) == ["nonesuch"]
    assert "backend 'nonesuch' is unknown" in result["failed"]["nonesuch"]
    assert result["verdict"].startswith(f"{BACKENDS[0]} gives ")
    assert all(0 <= item.fraction < 1 for item in progress)
    left = [Path(f"/proc/{process}/cmdline").read_text() for process in descendants()]
    assert [line for line in left if "spawn_main" in line] == []


def test_a_backend_whose_process_dies_says_so(shard_set: ShardSet) -> None:
    with BackendProcess(shard_set.path, "torch", settings_of()) as process:
        process.wait()
        process._process.kill()
        process._process.join()
        with pytest.raises(ChildProcessError, match="its process was killed by SIGKILL"):
            process.run(Trial(BackendConfig(1), 0.1))


def test_an_error_of_any_kind_becomes_one_line() -> None:
    assert one_line(ValueError("lower\nbatch_size")) == "lower batch_size"
    assert one_line(KeyError()) == "KeyError"


def test_a_batch_larger_than_the_split_is_refused(shard_set: ShardSet) -> None:
    with pytest.raises(ValueError, match="52 samples, fewer than one batch of 53"):
        measure(shard_set, ["torch"], settings_of(batch_size=53))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seconds": 0.0}, "seconds is 0.0"),
        ({"seconds": float("nan")}, "seconds is nan"),
        ({"rounds": 0}, "rounds is 0"),
        ({"dtype": "int8"}, "dtype is 'int8'"),
        ({"augment": "incepton"}, "augment is 'incepton'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"image_size": -1}, "image_size is -1"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        settings_of(**changed)


# The network and the machine.


def test_a_network_takes_steps_on_one_batch() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    before = [parameter.clone() for parameter in model.parameters()]
    steps = TrainingSteps(model, settings_of(batch_size=64))
    assert steps.batch_size == 16  # on a CPU
    assert steps.rate(0.01) > 0
    assert any(not torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))


def test_a_network_that_cannot_take_a_step_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot train on 8 images of 32 pixels"):
        TrainingSteps(nn.Linear(3, 3), settings_of())


def test_processor_time_grows_with_work_and_memory_is_there() -> None:
    before = cpu_seconds()
    sum(number * number for number in range(10**6))
    assert cpu_seconds() > before
    assert resident_bytes() > 10**6
    assert private_bytes(os.getpid()) > 10**6
    assert private_bytes(2**22 + 1) == 0  # nobody's


def test_the_resident_part_of_a_file_is_measured(shards_copy: Path) -> None:
    split = ShardSet(shards_copy).split("train")
    path = shards_copy / split.shard_names[0]
    path.read_bytes()
    assert resident_part(path) == 1
    why_not = drop_cache(split)
    assert why_not == "" or "stay in memory" in why_not
    assert (resident_part(path) <= 0.1) == (why_not == "")
