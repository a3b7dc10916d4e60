"""Our loaders beside what people load images with, on the same images and cores: `python -m benchmarks.loaders`.

Random crops and flips to 224 pixels, batches of 256, two threads or processes; `peers.py` has each way. A way runs in
processes of its own, which are stopped while others have their turn, so that nothing runs beside; each lets some
batches pass before its time is taken, so that what it held ready does not count. Ratios are medians over the rounds,
to DALI's own reader of WebDataset shards. What is not installed is left out with a line that says so: `.[bench]` has
all but FFCV, which is built by hand (headers of OpenCV and TurboJPEG). Without SHARDS, those of the images of
fall11-mini stored at 224 are made, each image some times, for epochs of a useful length.
"""

from __future__ import annotations

import argparse
import io
import multiprocessing
import os
import platform
import signal
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import NamedTuple

import torch

from in21k.datapipe.machine import cpu_seconds
from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.run import prepare
from in21k.preprocess.sources.open import open_raw_tar
from in21k.shards import ShardSet, open_dataset
from in21k.shards.pack import ShardSettings, pack

from .peers import BASE, BATCH, PEERS, THREADS, Batches, Work

ARCHIVE = Path(__file__).parents[1] / ".." / "shared" / "data" / "fall11-mini.tar"
COPIES, SHARD_SAMPLES = 6, 1000
PASSED = 3 * THREADS  # batches: DataLoader's workers hold two each, and are at the next
DALI_BUILDS = ("nvidia-dali-cuda110", "nvidia-dali-cuda120", "nvidia-dali-cuda130")
PACKAGES = ("torch", "torchvision", *DALI_BUILDS, "webdataset", "timm", "spdl", "litdata", "ffcv")


def copied(archive: Path, out: Path, copies: int) -> Path:
    """Write a raw archive with each image so many times."""
    with tarfile.open(archive) as source, tarfile.open(out, "w") as target:
        for member in source:
            inner = io.BytesIO()
            with tarfile.open(fileobj=source.extractfile(member)) as images, tarfile.open(None, "w", inner) as copy:
                for image in images:
                    data = images.extractfile(image)
                    stem, image_bytes = Path(image.name).stem, data.read() if data else b""
                    for number in range(copies):
                        add(copy, f"{stem}_{number}.JPEG", image_bytes)
            add(target, member.name, inner.getvalue())
    return out


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file to a tar."""
    header = tarfile.TarInfo(name)
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))


def make_shards(work: Path, archive: Path = ARCHIVE, copies: int = COPIES) -> ShardSet:
    """Prepare and shard every image of an archive, each some times."""
    select = SelectSettings(rare_threshold=0, val_per_class=0)
    source = open_raw_tar(copied(archive, work / "raw.tar", copies))
    prepared = prepare(source, work / "prepared", select=select, image=ImageSettings())
    return pack(prepared, work / "shards", ShardSettings(shard_samples=SHARD_SAMPLES))


class Turn(NamedTuple):
    """What a way did in its turn: images a second, and processor seconds an image."""

    rate: float
    cpu_s: float


def take_turn(batches: Batches, seconds: float) -> Turn:
    """Measure whole rounds of the workers: two that work alike finish at nearly the same time."""
    for _ in range(PASSED):
        next(batches)
    begun, cpu_begun, images = time.perf_counter(), cpu_seconds(), 0
    while time.perf_counter() - begun < seconds:
        for _ in range(THREADS):
            next(batches)
        images += THREADS * BATCH
    return Turn(images / (time.perf_counter() - begun), (cpu_seconds() - cpu_begun) / images)


def serve(connection: Connection, name: str, work: Work) -> None:
    """Be a way's process: answer each number of seconds with a `Turn`, or say in a line what went wrong."""
    os.setpgrp()  # so that its workers stop when it is stopped
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # progress bars and warnings
    try:
        batches = PEERS[name](work)
        next(batches)
        connection.send(None)
        while True:
            connection.send(take_turn(batches, connection.recv()))
    except EOFError:
        pass
    except Exception as error:  # a peer that does not run here is left out, whatever it lacks
        connection.send(f"{type(error).__name__}: {' '.join(str(error).split())[:150]}")


class Way:
    """A way in a group of processes of its own, stopped but in its turns; leaving the block ends it."""

    def __init__(self, name: str, work: Work) -> None:
        context = multiprocessing.get_context("fork")  # it shares what is imported
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, name, work))
        self._process.start()
        theirs.close()

    def _received(self) -> Turn | None:
        answer = self._connection.recv()
        if isinstance(answer, str):
            raise RuntimeError(answer)
        self._signal(signal.SIGSTOP)
        return answer

    def wait(self) -> None:
        """Wait for its first batch; raises RuntimeError with what went wrong."""
        self._received()

    def turn(self, seconds: float) -> Turn:
        """Let it run."""
        self._signal(signal.SIGCONT)
        self._connection.send(seconds)
        turn = self._received()
        assert turn is not None
        return turn

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid or 0, number)

    def __enter__(self) -> Way:
        return self

    def __exit__(self, *_: object) -> None:
        self._signal(signal.SIGKILL)
        self._process.join()


def measured(names: Sequence[str], work: Work, rounds: int, seconds: float) -> dict[str, list[Turn]]:
    """Let every way run in turns; return what each did, round by round."""
    with ExitStack() as stack:
        ways: dict[str, Way] = {}
        for name in names:
            way = stack.enter_context(Way(name, work))
            try:
                way.wait()
                ways[name] = way
            except (RuntimeError, EOFError) as error:
                print(f"left out: {name}: {error}", flush=True)
        turns: dict[str, list[Turn]] = {name: [] for name in ways}
        for number in range(rounds):
            for name in rotated(list(ways), number):
                turns[name].append(ways[name].turn(seconds))
    return turns


def rotated(names: list[str], number: int) -> list[str]:
    """Return the names with another one first, each round."""
    first = number % max(1, len(names))
    return names[first:] + names[:first]


def lines_of(turns: dict[str, list[Turn]]) -> Iterator[str]:
    """Yield a table: medians, the best round, and medians of the ratios of one round's turns."""
    base = turns.get(BASE) or next(iter(turns.values()))
    yield "| way | images/s | best | ratio | CPU us an image | ratio |"
    yield "|---|---|---|---|---|---|"
    for name, own in turns.items():
        rates, costs = [turn.rate for turn in own], [turn.cpu_s * 1e6 for turn in own]
        faster = statistics.median(turn.rate / other.rate for turn, other in zip(own, base, strict=True))
        dearer = statistics.median(turn.cpu_s / other.cpu_s for turn, other in zip(own, base, strict=True))
        rate, cost = statistics.median(rates), statistics.median(costs)
        yield f"| {name} | {rate:,.0f} | {max(rates):,.0f} | {faster:.2f} | {cost:,.0f} | {dearer:.2f} |"


def hardware() -> str:
    """Name the processor, the cores, and the packages that matter."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown")
    versions = [f"Python {platform.python_version()}"]
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions.append(f"{package} {version(package)}")
    return f"{model}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {', '.join(versions)}"


def main(words: Sequence[str] | None = None) -> None:
    """Compare on given shards, or on those of the archive."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path, nargs="?")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a turn")
    parser.add_argument("--way", action="append", help="one of several to compare alone", choices=list(PEERS))
    options = parser.parse_args(words)
    torch.set_num_threads(1)
    print(hardware(), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        shards = open_dataset(options.shards.resolve()) if options.shards else make_shards(Path(folder))
        num_bytes = shards.split("train").num_bytes
        print(f"{len(num_bytes):,} images of {num_bytes.mean() / 1000:.1f} KB; {options.rounds} rounds", flush=True)
        for as_uint8 in (False, True):
            work = Work(shards, Path(folder), as_uint8)
            turns = measured(options.way or list(PEERS), work, options.rounds, options.seconds)
            print("", "uint8" if as_uint8 else "float32 0..1", "", *lines_of(turns), sep="\n", flush=True)


if __name__ == "__main__":
    main()
