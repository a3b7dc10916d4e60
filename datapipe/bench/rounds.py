"""A trial of one backend: it makes batches for some seconds, and its rate, CPU time and memory are recorded."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ...shards.dataset import ShardSet
from ..backends.dali_pipeline import HW_DECODER_LOAD
from ..create import create_loader
from ..loader import Loader
from ..machine import cpu_seconds, descendants, gpu_free, private_bytes, resident_bytes, synchronize
from ..settings import LoaderConfig, LoaderSettings, loader_values

SPLIT = "train"
DTYPES = ("float32", "float16", "bfloat16", "uint8")


class BackendConfig(NamedTuple):
    """A backend's decode threads or processes and, for dali_gpu, the hardware decoder's share of the JPEGs."""

    workers: int
    hw_decoder_load: float | None = None


@dataclass(frozen=True, kw_only=True)
class BenchSettings(LoaderSettings):
    """What is measured, the same for every backend; raises ValueError for invalid settings.

    Pixels come out in 0..1, or in 0..255 as dtype `uint8`, whatever `normalize` is.

    sweep:       other numbers of workers to measure too.
    sweep_loads: for dali_gpu, other shares of the JPEGs for the hardware decoder.
    seconds:     measuring time of each backend, over all rounds.
    rounds:      trials of each backend.
    device:      the device of the batches, `cpu` or `cuda`.
    """

    image_size: int = 0
    workers: int = 1
    seconds: float = 10.0
    rounds: int = 3
    sweep: tuple[int, ...] = ()
    sweep_loads: tuple[float, ...] = ()
    device: str = "cpu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.seconds < float("inf"):
            raise ValueError(f"seconds is {self.seconds}; wanted more than 0")
        if self.rounds < 1:
            raise ValueError(f"rounds is {self.rounds}; wanted 1 or more")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}; known: {', '.join(DTYPES)}")
        for load in (None, *self.sweep_loads):
            LoaderConfig(**self.loader_arguments(BackendConfig(self.workers, load)))  # which checks the rest

    @property
    def trial_seconds(self) -> float:
        """How long one trial measures."""
        return self.seconds / self.rounds

    def config(self, backend: str) -> BackendConfig:
        """Return a backend's configuration outside of a sweep."""
        load = HW_DECODER_LOAD if self.hw_decoder_load is None else self.hw_decoder_load
        return BackendConfig(self.workers, load if backend == "dali_gpu" else None)

    def swept_workers(self, backend: str) -> list[BackendConfig]:
        """Return what the first stage of a sweep tries: other numbers of workers."""
        config = self.config(backend)
        return [config._replace(workers=workers) for workers in self.sweep if workers != config.workers]

    def swept_loads(self, backend: str, fastest: BackendConfig) -> list[BackendConfig]:
        """Return what the second stage tries: for dali_gpu, other loads of the hardware decoder."""
        loads = self.sweep_loads if backend == "dali_gpu" else ()
        return [fastest._replace(hw_decoder_load=load) for load in loads if load != fastest.hw_decoder_load]

    def num_swept(self, backend: str) -> int:
        """Return how many trials a sweep takes."""
        return len(self.swept_workers(backend)) + len(self.swept_loads(backend, self.config(backend)))

    def loader_arguments(self, config: BackendConfig) -> dict[str, Any]:
        """Return what loaders are made with, beside the shards, the split and the backend."""
        return {
            **{name: value for name, value in loader_values(self).items() if name != "backend"},
            **config._asdict(),
            "device": torch.device(self.device),
            "dtype": getattr(torch, self.dtype),
            "normalize": None if self.dtype == "uint8" else "unit",
        }


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """The result of one trial of a backend.

    latencies:       seconds from asking for a batch to having it, one for each batch that counts.
    seconds, images: of these batches, all together.
    cpu_seconds:     processor time that the process and its children took meanwhile.
    first_batch_s:   from before the loader is made to its first batch; None if an earlier trial made the loader.
    own_bytes:       resident memory of the process, the libraries in it included.
    children_bytes:  what its worker processes hold of their own beside that.
    gpu_bytes:       memory of the GPU that the process took since before its first loader was made; None without one.
    num_epochs:      how many epochs were begun.
    num_bad:         corrupt samples met in the last of them.
    """

    images: int
    seconds: float
    cpu_seconds: float
    latencies: list[float]
    first_batch_s: float | None
    own_bytes: int
    children_bytes: int
    gpu_bytes: int | None
    num_epochs: int
    num_bad: int


class Trial(NamedTuple):
    """What a backend is told to do; `cold` ends with the epoch, whose samples are in memory then."""

    config: BackendConfig
    seconds: float
    cold: bool = False


class BackendRunner:
    """Runs the trials of one backend with one loader, which is recreated for another configuration."""

    def __init__(self, shards: str | Path | ShardSet, backend: str, settings: BenchSettings) -> None:
        self._shards, self._backend, self._settings = shards, backend, settings
        self._loader: Loader | None = None
        self._config: BackendConfig | None = None
        self._gpu_held = 0  # between trials, by what the loader's libraries keep
        gpu_free(settings.device)  # CUDA takes its own memory before the first trial

    def run(self, trial: Trial) -> TrialResult | None:
        """Measure; returns None if an epoch has too few batches. Raises what the loader raises."""
        free = gpu_free(self._settings.device)  # no other backend runs, so what disappears belongs to this one
        begun = time.perf_counter()
        is_new = self._loader is None or trial.config != self._config
        if is_new:
            self.close()
            arguments = self._settings.loader_arguments(trial.config)
            self._loader = create_loader(self._shards, split=SPLIT, backend=self._backend, **arguments)
            self._config = trial.config
        assert self._loader is not None
        epochs = _Epochs(self._loader, only_one=trial.cold)
        batches = iter(epochs)
        try:
            first = next(batches, None)
            first_batch_s = time.perf_counter() - begun if is_new else None
            # When the first batch is done all workers have started one: counting from there would get those for free.
            skip = trial.config.workers + 1
            if first is None or len(list(map(len, islice(batches, skip)))) < skip:
                return None
            result = self._measure(batches, trial.seconds, epochs)
            return result and replace(result, first_batch_s=first_batch_s, gpu_bytes=self._gpu_bytes(free))
        finally:
            batches.close()
            self._loader.close()
            self._gpu_held = self._gpu_bytes(free) or 0

    def _gpu_bytes(self, free_before: int | None) -> int | None:
        """Return what this backend holds of the GPU, by what was free when its trial began."""
        free = gpu_free(self._settings.device)
        return None if free is None or free_before is None else max(0, self._gpu_held + free_before - free)

    def _measure(self, batches: Iterator[Tensor], seconds: float, epochs: _Epochs) -> TrialResult | None:
        images, latencies, ending = 0, list[float](), 0.0
        synchronize(self._settings.device)
        cpu_before, begun = cpu_seconds(), time.perf_counter()
        start = begun
        while start < begun + seconds:
            batch = next(batches, None)
            if batch is None:
                ending = time.perf_counter() - start  # workers stop, and no batch comes of it
                break
            now = time.perf_counter()
            latencies.append(now - start)
            images, start = images + len(batch), now
        synchronize(self._settings.device)
        ended, cpu_after = time.perf_counter(), cpu_seconds()
        if not latencies:
            return None
        return TrialResult(
            images=images,
            seconds=ended - begun - ending,
            cpu_seconds=cpu_after - cpu_before,
            latencies=latencies,
            first_batch_s=None,
            own_bytes=resident_bytes(),
            children_bytes=sum(map(private_bytes, descendants())),
            gpu_bytes=None,
            num_epochs=epochs.num_begun,
            num_bad=epochs.loader.num_bad,
        )

    def close(self) -> None:
        """Close the loader."""
        if self._loader is not None:
            self._loader.close()
            self._loader = None


class _Epochs:
    """The images of a loader's batches, from the first of epoch 0 on, epoch after epoch.

    Of webdataset too, which has no plan: equal settings give it equal batches, of the same shards in another order.
    """

    def __init__(self, loader: Loader, *, only_one: bool) -> None:
        self.loader, self._only_one = loader, only_one
        self.num_begun = 0

    def __iter__(self) -> Generator[Tensor]:
        self.loader.set_epoch(1)  # any other epoch, as an earlier trial may have stopped in the middle of epoch 0
        for epoch in count():
            if epoch and self._only_one:
                return
            self.loader.set_epoch(epoch)
            self.num_begun = epoch + 1
            for images, _ in self.loader:
                yield images
