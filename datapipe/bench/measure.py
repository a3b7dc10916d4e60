"""Measure loaders side by side: the rate of each on the same samples, in alternating trials.

Each backend runs in its own process, so its memory can be measured and a crash stops no other backend. The processes
take trials one after the other, round by round, so that other load on the machine affects all alike. Every trial
starts at the first sample of the same epoch. `summary.py` turns the results into numbers, a verdict and a chart.
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import islice, takewhile
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ...shards.dataset import ShardSet, ShardSplit
from ...shards.files.parallel import OnProgress, Progress, ignore_progress
from ...shards.reader import FileCache
from ..machine import drop_cache, synchronize
from ..plan import EpochPlan
from .rounds import SPLIT, BackendConfig, BackendRunner, BenchSettings, Trial, TrialResult
from .schedule import num_trials, planned_seconds

log = logging.getLogger(__name__)

PATIENCE_S = 600.0  # a backend that gives no answer for so long hangs
MAX_CPU_STEP = 16  # images of a training step on a CPU: its rate hardly depends on them, its memory does


class Reading(NamedTuple):
    """Samples read and not decoded: how many, their bytes, and the seconds that it took."""

    images: int
    num_bytes: int
    seconds: float


@dataclass
class BenchResults:
    """The results of all trials, round by round.

    backends:       the backends to measure.
    warm, cold:     trials by backend and configuration; from the disk, by backend.
    failed:         why a backend failed, in one line, by backend.
    reading, reading_cold: reading the samples without decoding, in the same order, from memory and from the disk.
    step_rates:     images/s of a network's training steps; empty without a network.
    cold_reason:    why nothing was measured from the disk; empty if it was.
    """

    backends: list[str]
    warm: dict[tuple[str, BackendConfig], list[TrialResult]] = field(
        default_factory=dict[tuple[str, BackendConfig], list[TrialResult]]
    )
    cold: dict[str, list[TrialResult]] = field(default_factory=dict[str, list[TrialResult]])
    failed: dict[str, str] = field(default_factory=dict[str, str])
    reading: list[Reading] = field(default_factory=list[Reading])
    reading_cold: list[Reading] = field(default_factory=list[Reading])
    step_rates: list[float] = field(default_factory=list[float])
    cold_reason: str = ""


def serve(connection: Connection, shards: Path, backend: str, settings: BenchSettings, start_method: str) -> None:
    """Run in a backend's process: answer each `Trial` with a `TrialResult`, None, or an error in one line.

    start_method: how a loader's own worker processes begin; a spawned process would spawn them too, in seconds each.
    """
    multiprocessing.set_start_method(start_method, force=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops its processes
    logging.disable(logging.WARNING)  # each trial would repeat the same warnings
    runner: BackendRunner | None = None
    try:
        connection.send(None)  # imports are done
        while True:
            trial = connection.recv()
            try:
                runner = runner or BackendRunner(shards, backend, settings)
                answer = runner.run(trial)
            except Exception as error:  # whatever a decoder or a driver raises: other backends continue
                answer = one_line(error)
            connection.send(answer)
    except (EOFError, ConnectionError):  # the parent has ended
        pass
    if runner:
        runner.close()


def one_line(error: Exception) -> str:
    """Return an error in one line; the message of a ValueError needs no class name.

    >>> one_line(RuntimeError("no decoder\\nat frame 3"))
    'RuntimeError: no decoder at frame 3'
    """
    text = " ".join(str(error).split())
    return text if isinstance(error, ValueError) and text else f"{type(error).__name__}: {text}".rstrip(": ")


class BackendProcess:
    """A backend in a process of its own; leaving the block ends it."""

    def __init__(self, shards: Path, backend: str, settings: BenchSettings) -> None:
        # Spawned: a forked process can neither use the GPU nor count on the threads of its parent's libraries.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        arguments = (theirs, shards, backend, settings, multiprocessing.get_start_method())
        self._process = context.Process(target=serve, args=arguments, name=backend)
        # Ctrl-C reaches the whole group: a process must not know of it before it can leave it to its parent.
        resource_tracker.ensure_running()  # which lets the signal through again, where starting a process calls it
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self._process.start()
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()

    def __enter__(self) -> BackendProcess:
        return self

    def wait(self) -> None:
        """Wait until its imports are done; raises ChildProcessError."""
        self._receive(PATIENCE_S)

    def run(self, trial: Trial) -> TrialResult | None:
        """Run a trial there; raises ChildProcessError with the error of the process."""
        try:
            self._connection.send(trial)
        except OSError as error:
            raise self._died() from error
        answer = self._receive(trial.seconds + PATIENCE_S)
        if isinstance(answer, str):
            raise ChildProcessError(answer)
        return answer

    def _receive(self, seconds: float) -> Any:
        try:
            if not self._connection.poll(seconds):
                raise ChildProcessError(f"gave nothing for {seconds:.0f} s")
            return self._connection.recv()
        except (EOFError, ConnectionError) as error:
            raise self._died() from error

    def _died(self) -> ChildProcessError:
        self._process.join(5)
        code = self._process.exitcode or 0
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        return ChildProcessError(f"its process {how}")

    def __exit__(self, error: object, *_: object) -> None:
        self._connection.close()
        self._process.join(0.1 if error else 5)  # after Ctrl-C do not wait for the trial to end
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def read_samples(split: ShardSplit, settings: BenchSettings) -> Reading:
    """Read images in the plan's order for as long as a trial, with as many threads as decode."""
    plan = EpochPlan(shard_sizes=split.shard_sizes, batch_size=settings.batch_size, seed=settings.seed)
    files, begun = FileCache(), time.perf_counter()
    paths = [split.folder / name for name in split.shard_names]

    def read(positions: list[int]) -> int:
        return sum(
            len(files.read(paths[split.shard_of(p)], int(split.offsets[p]), int(split.num_bytes[p]))) for p in positions
        )

    # Every thread takes each workers-th batch: handing batches over would cost more than reading them.
    def share(number: int) -> tuple[int, int]:
        mine = islice(plan.batches(0), number, None, settings.workers)
        in_time = takewhile(lambda _: time.perf_counter() < begun + settings.trial_seconds, mine)
        sizes = [(len(batch), read(batch.positions.tolist())) for batch in in_time]
        return sum(images for images, _ in sizes), sum(num_bytes for _, num_bytes in sizes)

    with ThreadPoolExecutor(settings.workers) as threads:
        shares = list(threads.map(share, range(settings.workers)))
    seconds = time.perf_counter() - begun
    files.close()
    return Reading(sum(images for images, _ in shares), sum(num_bytes for _, num_bytes in shares), seconds)


class TrainingSteps:
    """A network that trains on one random batch, which lies on the device already.

    Forward, cross-entropy, backward, SGD; bf16 autocast on a GPU, float32 on a CPU. Raises ValueError where the network
    cannot take such a step.
    """

    def __init__(self, model: nn.Module, settings: BenchSettings) -> None:
        self._device = torch.device(settings.device)
        on_gpu = self._device.type == "cuda"
        self.batch_size = settings.batch_size if on_gpu else min(settings.batch_size, MAX_CPU_STEP)
        layout = torch.channels_last if on_gpu or settings.channels_last else torch.contiguous_format
        self._model = model.train().to(self._device).to(memory_format=layout)  # pyright: ignore[reportCallIssue]
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=1e-3, momentum=0.9)
        shape = (self.batch_size, 3, settings.image_size, settings.image_size)
        self._images = torch.rand(shape, device=self._device).to(memory_format=layout)
        self._labels = torch.zeros(self.batch_size, dtype=torch.int64, device=self._device)
        self._run(2 if on_gpu else 1)  # the first ones choose kernels and find memory

    def _run(self, steps: int) -> None:
        try:
            for _ in range(steps):
                with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
                    loss = nn.functional.cross_entropy(self._model(self._images), self._labels)
                self._optimizer.zero_grad()
                loss.backward()
                self._optimizer.step()
            synchronize(self._device.type)
        except (RuntimeError, TypeError, ValueError) as error:
            way_out = "lower --batch-size" if isinstance(error, torch.OutOfMemoryError) else "give another --model"
            raise ValueError(
                f"the network cannot train on {self.batch_size} images of {self._images.shape[-1]} pixels "
                f"({one_line(error)}); {way_out}"
            ) from error

    def rate(self, seconds: float) -> float:
        """Return images/s over at least that many seconds."""
        begun, steps = time.perf_counter(), 0
        while not steps or time.perf_counter() < begun + seconds:
            self._run(1)
            steps += 1
        return steps * self.batch_size / (time.perf_counter() - begun)


def measure(
    shards: ShardSet,
    backends: Sequence[str],
    settings: BenchSettings,
    steps: TrainingSteps | None = None,
    on_progress: OnProgress = ignore_progress,
) -> BenchResults:
    """Measure every backend, reading alone, and a network's steps, in alternating trials.

    A backend that fails is left out from then on. Raises ValueError if a batch is larger than the split, or if no
    backend is left.
    """
    split = shards.split(SPLIT)
    if len(split) < settings.batch_size:
        raise ValueError(
            f"{shards.path}: {SPLIT} has {len(split):,} samples, fewer than one batch of {settings.batch_size:,}; "
            "lower --batch-size"
        )
    measured = BenchResults(backends=list(backends), cold_reason=drop_cache(split))
    with ExitStack() as stack:
        running = {name: stack.enter_context(BackendProcess(shards.path, name, settings)) for name in backends}
        for name in list(running):
            _unless_failed(running, measured, name, BackendProcess.wait)
        round_of = _Rounds(split, settings, steps, measured, running, on_progress)
        log.info("takes about %.0f s", planned_seconds(settings, backends, with_model=steps is not None))
        for number in range(settings.rounds):
            round_of.measure(number)
        round_of.sweep()
    if not running:
        raise ValueError("no backend ran: " + "; ".join(f"{name}: {why}" for name, why in measured.failed.items()))
    return measured


Running = dict[str, BackendProcess]


def _unless_failed(
    running: Running, measured: BenchResults, name: str, act: Callable[[BackendProcess], TrialResult | None]
) -> TrialResult | None:
    """Let a backend act; if it fails, record why and leave it out."""
    try:
        return act(running[name])
    except ChildProcessError as error:
        measured.failed[name] = str(error)
        del running[name]
        for key in [key for key in measured.warm if key[0] == name]:
            del measured.warm[key]
        measured.cold.pop(name, None)
        return None


class _Rounds:
    """A round: reading alone, the network, then each backend warm, and cold. A sweep follows the last round."""

    def __init__(
        self,
        split: ShardSplit,
        settings: BenchSettings,
        steps: TrainingSteps | None,
        measured: BenchResults,
        running: Running,
        on_progress: OnProgress,
    ) -> None:
        self._split, self._settings, self._steps = split, settings, steps
        self._measured, self._running, self._on_progress = measured, running, on_progress
        self._num_trials = num_trials(settings, list(running))
        if measured.cold_reason:
            self._num_trials -= settings.rounds * len(running)
        self._mean_bytes = int(split.num_bytes.mean())
        self._done = self._images = 0

    def measure(self, number: int) -> None:
        """Measure round `number`; each round starts with another backend."""
        measured, settings, split = self._measured, self._settings, self._split
        names = list(self._running)
        first = number % max(1, len(names))
        names = names[first:] + names[:first]
        stage = f"round {number + 1} of {settings.rounds}"
        self._report_progress(stage, "reading")
        if not measured.cold_reason:
            drop_cache(split)
            measured.reading_cold.append(read_samples(split, settings))
        else:
            read_samples(split, settings)
        measured.reading.append(read_samples(split, settings))  # now the samples are in memory for the backends
        if self._steps:
            measured.step_rates.append(self._steps.rate(settings.trial_seconds))
        for name in names:
            self._run(stage, name, Trial(settings.config(name), settings.trial_seconds))
        for name in names if not measured.cold_reason else []:
            drop_cache(split)
            trial = Trial(settings.config(name), settings.trial_seconds, cold=True)
            self._run(stage, name, trial)

    def sweep(self) -> None:
        """Try other numbers of workers, a trial each; with the fastest, try other loads of the hardware decoder."""
        settings = self._settings
        for name in self._running.copy():
            for config in settings.swept_workers(name):
                self._run("sweep", name, Trial(config, settings.trial_seconds))
            for config in settings.swept_loads(name, self._fastest(name)):
                self._run("sweep", name, Trial(config, settings.trial_seconds))

    def _fastest(self, name: str) -> BackendConfig:
        rates = {
            config: statistics.median(result.images / result.seconds for result in results)
            for (backend, config), results in self._measured.warm.items()
            if backend == name
        }
        return max(rates, key=rates.__getitem__, default=self._settings.config(name))

    def _run(self, stage: str, name: str, trial: Trial) -> None:
        self._report_progress(stage, f"{name}, {trial.config.workers} workers{', from the disk' if trial.cold else ''}")
        self._done += 1
        if name not in self._running:
            return
        measured = self._measured
        result = _unless_failed(self._running, measured, name, lambda process: process.run(trial))
        if result:
            self._images += result.images
            kept = (
                measured.cold.setdefault(name, []) if trial.cold else measured.warm.setdefault((name, trial.config), [])
            )
            kept.append(result)

    def _report_progress(self, stage: str, doing: str) -> None:
        part = self._done / max(1, self._num_trials)
        self._on_progress(Progress(part, self._images, self._images * self._mean_bytes, f"{stage}: {doing}"))
