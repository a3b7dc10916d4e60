"""Many images on their way to a network: read in threads, ahead of it, in their order, few in memory at a time."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import torch
from torch import Tensor

from .images import Picture, UnreadableImageError, fit_image, read_image
from .open_model import OpenModel


class Source(NamedTuple):
    """An image to be read, or why there is none, and what it is called."""

    name: str
    picture: Picture | UnreadableImageError


class ReadBatch(NamedTuple):
    """Some sources, each with the reason why it could not be read (None: it was).

    pixels: of those that were read, uint8 (n, 3, S, S) on the CPU; None where there are none.
    """

    rows: list[tuple[Source, str | None]]
    pixels: Tensor | None


def read_batches(
    sources: Iterable[Source], opened: OpenModel, *, batch_size: int = 64, workers: int | None = None
) -> Generator[ReadBatch]:
    """Read images as an opened network takes them, but for its normalisation, `batch_size` sources at a time.

    workers: threads; None: one for each core. They read up to two batches ahead, and no further.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; wanted 1 or more")
    workers = workers or len(os.sched_getaffinity(0))
    threads = ThreadPoolExecutor(workers, "in21k-read")
    try:
        read = _in_order(threads, sources, opened, 2 * batch_size + workers)
        while batch := list(islice(read, batch_size)):
            pixels = [result for _, result in batch if isinstance(result, Tensor)]
            rows = [(source, None if isinstance(result, Tensor) else result) for source, result in batch]
            yield ReadBatch(rows, torch.stack(pixels) if pixels else None)
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def _in_order(
    threads: ThreadPoolExecutor, sources: Iterable[Source], opened: OpenModel, ahead: int
) -> Iterator[tuple[Source, Tensor | str]]:
    waiting: deque[tuple[Source, Future[Tensor | str]]] = deque()
    for source in sources:
        waiting.append((source, threads.submit(_read, source, opened)))
        if len(waiting) >= ahead:
            first, future = waiting.popleft()
            yield first, future.result()
    for first, future in waiting:
        yield first, future.result()


def _read(source: Source, opened: OpenModel) -> Tensor | str:
    """Return pixels, uint8 (3, S, S), or why the image cannot be read."""
    if isinstance(source.picture, UnreadableImageError):
        return str(source.picture)
    try:
        return fit_image(read_image(source.picture), opened.image_size, opened.crop_pct, opened.interpolation)
    except UnreadableImageError as error:
        return str(error)
