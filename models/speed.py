"""How fast networks train and answer, measured in turns, and the largest batch that a GPU can train.

`stats.py` counts what needs no clock.
"""

from __future__ import annotations

import copy
import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

Precision = Literal["float32", "bf16", "fp16"]
_DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

LATENCY_BATCHES = (1, 64)
LEAST = 2  # images: batch norm takes no single one
MOST = 2**16  # images: no batch of a single GPU is larger
_TRIAL_STEPS = 2  # the first makes the optimizer's state, the second needs memory beside it
# Calls before the clock runs: the first one compiles, and on a GPU the next ones choose kernels and find memory.
_WARM_UP = {"cpu": 1, "cuda": 3}


@dataclass(frozen=True, kw_only=True)
class SpeedSettings:
    """How a network is run."""

    device: torch.device
    image_size: int
    """Side of the square images in pixels."""
    batch_size: int
    """Images of a training step, and of a pass whose images a second are counted."""
    precision: Precision = "float32"
    """Of training by autocast, with fp16's loss scaler; of inference by weights that are cast."""
    channels_last: bool = False
    compile: bool = False

    def images(self, num_images: int) -> Tensor:
        """Return random images (num_images, 3, image_size, image_size), float32, on the device."""
        shape = (num_images, 3, self.image_size, self.image_size)
        return torch.rand(shape, device=self.device).to(memory_format=self.layout)

    @property
    def layout(self) -> torch.memory_format:
        """How images and weights are laid out."""
        return torch.channels_last if self.channels_last else torch.preserve_format

    def filled(self, fill: float, largest: int) -> SpeedSettings:
        """Return these settings with a batch of a share of the largest one, at least two images.

        >>> SpeedSettings(device=torch.device("cpu"), image_size=32, batch_size=1).filled(0.9, 100).batch_size
        90
        """
        return replace(self, batch_size=max(LEAST, int(fill * largest)))

    def synchronize(self) -> None:
        """Wait until the device has done what it was told."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass
class Rounds:
    """What was measured of a network, round by round.

    training, inference: images/s.  latencies: per number of images, the seconds of each pass.
    """

    training: list[float] = field(default_factory=list[float])
    inference: list[float] = field(default_factory=list[float])
    latencies: dict[int, list[float]] = field(default_factory=dict[int, list[float]])


class Contender(NamedTuple):
    """A network, and how it is run."""

    model: nn.Module
    settings: SpeedSettings


def measure_speed(
    contenders: Mapping[str, Contender],
    *,
    rounds: int,
    seconds: float,
    on_turn: Callable[[str], object] = lambda _: None,
) -> tuple[dict[str, Rounds], dict[str, str]]:
    """Measure networks in turns, so that other load of the machine affects all alike.

    rounds:  how often each has its turn.
    seconds: how long each kind of work is repeated within a turn, at least once.
    on_turn: called with the name before each turn.

    Returns the measurements by name, and a one-line reason for each network that failed; it gets no more turns.
    """
    results = {name: Rounds() for name in contenders}
    failed: dict[str, str] = {}
    running: dict[str, _Running] = {}
    with torch.backends.cudnn.flags(enabled=True, benchmark=True):
        for number in range(rounds):
            for name, contender in contenders.items():
                if name in failed:
                    continue
                on_turn(name)
                try:
                    if number == 0:
                        running[name] = _Running(*contender)
                    running[name].take_turn(results[name], seconds)
                except Exception as error:  # of torch, its compiler and a driver, each has its own kinds: others go on
                    failed[name] = " ".join(f"{type(error).__name__}: {error}".split())
                if name in failed:  # not before the exception is gone, which holds the step's tensors
                    running.pop(name, None)
                    del results[name]
                    _release()
    return results, failed


class _Running:
    """A network on its device, once as it is trained and once as it answers."""

    def __init__(self, model: nn.Module, settings: SpeedSettings) -> None:
        self._settings = settings
        answering = copy.deepcopy(model).eval().to(settings.device, _DTYPES[settings.precision])
        self._answering = _in_form(answering, settings)
        self._trained = _Training(model, settings)
        for _ in range(_WARM_UP[settings.device.type]):
            self._trained.step(settings.batch_size)
        for num_images in {settings.batch_size, *LATENCY_BATCHES}:
            self._passes(num_images, seconds=0, least=_WARM_UP[settings.device.type])

    def take_turn(self, rounds: Rounds, seconds: float) -> None:
        num_images = self._settings.batch_size
        steps = _repeat(lambda: self._trained.step(num_images), seconds)
        rounds.training.append(num_images * len(steps) / sum(steps))
        passes = self._passes(num_images, seconds)
        rounds.inference.append(num_images * len(passes) / sum(passes))
        for images in LATENCY_BATCHES:
            rounds.latencies.setdefault(images, []).extend(self._passes(images, seconds))

    def _passes(self, num_images: int, seconds: float, least: int = 1) -> list[float]:
        images = self._settings.images(num_images).to(_DTYPES[self._settings.precision])

        def answer() -> None:
            self._answering(images)
            self._settings.synchronize()

        with torch.inference_mode():
            return _repeat(answer, seconds, least)


class _Training:
    """Training steps of a network: forward, backward, SGD with momentum."""

    def __init__(self, model: nn.Module, settings: SpeedSettings) -> None:
        self._settings = settings
        self.model = _in_form(model.train().to(settings.device), settings)
        self._optimizer = torch.optim.SGD(self.model.parameters(), lr=1e-3, momentum=0.9)
        self._scaler = torch.amp.GradScaler(settings.device.type, enabled=settings.precision == "fp16")
        self._batch: tuple[Tensor, Tensor] | None = None

    def step(self, num_images: int) -> None:
        """Take a step, and wait until the device has done it."""
        settings = self._settings
        if self._batch is None or len(self._batch[0]) != num_images:
            self._batch = None  # before there is another: both together might not fit
            labels = torch.zeros(num_images, dtype=torch.int64, device=settings.device)
            self._batch = (settings.images(num_images), labels)
        images, labels = self._batch
        dtype = _DTYPES[settings.precision]
        with torch.autocast(settings.device.type, dtype, enabled=dtype is not torch.float32):
            loss = nn.functional.cross_entropy(self.model(images), labels)
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        self._scaler.step(self._optimizer)
        self._scaler.update()
        settings.synchronize()

    def forget(self) -> None:
        """Let go of the batch and the gradients, on the device too."""
        self._batch = None
        self._optimizer.zero_grad()
        _release()


def _in_form(model: nn.Module, settings: SpeedSettings) -> nn.Module:
    """Lay the weights out and compile, as the settings ask, in place."""
    model = model.to(memory_format=settings.layout)  # pyright: ignore[reportCallIssue]
    if settings.compile:
        model.compile(dynamic=False)  # for each batch size by itself
    return model


def _release() -> None:
    """Give back what memory nothing refers to any more, the GPU's too."""
    gc.collect()
    torch.cuda.empty_cache()


def _repeat(act: Callable[[], None], seconds: float, least: int = 1) -> list[float]:
    """Return how many seconds each of so many calls took that together they last at least that long."""
    taken: list[float] = []
    begun = time.perf_counter()
    while len(taken) < least or time.perf_counter() < begun + seconds:
        before = time.perf_counter()
        act()
        taken.append(time.perf_counter() - before)
    return taken


def largest_training_batch(model: nn.Module, settings: SpeedSettings) -> int:
    """Return the most images of a training step that fit the GPU, within 1/64, found by trying; 0 where not even 2 do.

    Nothing is compiled: each try would be compiled again. The network is on the CPU, and is so afterwards, a little
    trained.
    """
    training = _Training(model, replace(settings, compile=False))

    def fits(num_images: int) -> bool:
        enough = True
        try:
            for _ in range(_TRIAL_STEPS):
                training.step(num_images)
        except RuntimeError as error:  # past the memory; or past what a kernel counts to, which has other words
            if num_images == LEAST and not isinstance(error, torch.OutOfMemoryError):
                raise
            enough = False
        training.forget()  # here too the exception has to be gone
        return enough

    num_images = largest_that_fits(fits)
    model.cpu()
    return num_images


def fit_batch(
    model: nn.Module, settings: SpeedSettings, *, num_images: int | None = None, fill: float | None = None
) -> tuple[SpeedSettings, dict[str, int]]:
    """Return settings whose batch fits the GPU, and {largest_training_batch}.

    num_images: of the batch; None: as many as the settings have, or three quarters of the largest that trains.
    fill:       instead of `num_images`: the share of the largest.

    Raises ValueError where a batch of `num_images` does not fit.
    """
    largest = largest_training_batch(model, settings)
    if fill is not None and largest >= LEAST:
        return settings.filled(fill, largest), {"largest_training_batch": largest}
    # guessed: the copy that answers lies beside the one that trains
    batch_size = num_images or min(settings.batch_size, max(LEAST, 3 * largest // 4))
    if largest < batch_size:
        raise ValueError(
            f"at most {largest:,} images of {settings.image_size} pixels train on this GPU in "
            f"{settings.precision}, wanted {batch_size:,}; lower --batch-size or --image-size"
        )
    return replace(settings, batch_size=batch_size), {"largest_training_batch": largest}


def largest_that_fits(fits: Callable[[int], bool], *, least: int = LEAST, most: int = MOST) -> int:
    """Return the largest number of `least` to `most` that fits, or one that is less by 1/64 at most; 0 where none does.

    fits: true up to some number, and false for all beyond.

    >>> largest_that_fits(lambda number: number <= 48)
    48
    """
    if not fits(least):
        return 0
    good = least
    while good < most and fits(min(2 * good, most)):
        good = min(2 * good, most)
    if good == most:
        return good
    bad = min(2 * good, most)
    while bad - good > max(1, good // 64):
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good
