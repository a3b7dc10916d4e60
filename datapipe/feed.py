"""The guarded feed: a batch's JPEGs in the plan's order, with something else in the place of what is corrupt.

A sample is corrupt when its bytes are not those that were written, or when it does not decode. In training the next
good sample of its shard stands in for it; in validation it is left out. Either way it is named.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..shards.dataset import ShardSplit
from ..shards.reader import CorruptSampleError, SampleReader
from .augment.draws import Floats
from .augment.policy import AugmentPolicy, SamplePlan
from .batch import CorruptSample
from .pixels import jpeg_size
from .plan import PlannedBatch

MAX_TRIES = 100  # guessed: a shard with so many corrupt samples in a row is lost, and searching on would take hours


class JpegSample(NamedTuple):
    """A JPEG as it was written, its size in pixels, and whose it is: the one asked for, or its stand-in."""

    position: int
    jpeg: bytes
    height: int
    width: int


class Feed:
    """Reads samples of a split; threads may share it.

    stand_in: another sample takes the place of a corrupt one (training); otherwise it is left out (validation).
    """

    def __init__(self, split: ShardSplit, *, stand_in: bool) -> None:
        self._split = split
        self._stand_in = stand_in
        self._reader = SampleReader(split)
        self._excluded: dict[int, str] = {}

    def exclude(self, position: int, reason: str) -> None:
        """Take a sample for corrupt from now on: it did not decode."""
        self._excluded[position] = reason

    def read(self, position: int, bad: list[CorruptSample]) -> JpegSample | None:
        """Return the sample at `position`, or its stand-in, or None; those passed over are added to `bad`.

        Raises OSError where a shard cannot be read, CorruptSampleError where no stand-in is found.
        """
        for candidate in self._candidates(position):
            try:
                return self._read(candidate)
            except CorruptSampleError as error:
                bad.append(CorruptSample(error.position, error.reason))
        if self._stand_in:
            raise CorruptSampleError(*bad[-1])
        return None

    def _candidates(self, position: int) -> Iterator[int]:
        """Yield the sample itself, then those after it in its shard, then those before it."""
        yield position
        if self._stand_in:
            shard = self._split.shard_of(position)
            end, size = int(self._split.shard_ends[shard]), int(self._split.shard_sizes[shard])
            for step in range(1, min(size, MAX_TRIES)):
                yield position + step if position + step < end else position + step - size

    def _read(self, position: int) -> JpegSample:
        if position in self._excluded:
            raise CorruptSampleError(position, self._excluded[position])
        jpeg = self._reader.image(position)
        try:
            return JpegSample(position, jpeg, *jpeg_size(jpeg))
        except ValueError as error:
            raise CorruptSampleError(position, str(error)) from error

    def close(self) -> None:
        """Close the shards; the feed can be used on."""
        self._reader.close()


WriteSample = Callable[[JpegSample, SamplePlan, int], None]


def fill_batch(
    feed: Feed, policy: AugmentPolicy, batch: PlannedBatch, numbers: Floats, rows: range, write_sample: WriteSample
) -> tuple[NDArray[np.int64], list[CorruptSample]]:
    """Fill some rows of a batch by `write_sample(sample, plan, row)`, which raises ValueError for a corrupt sample.

    numbers: `policy.random_numbers(batch)`.

    Return the position whose pixels each row holds (-1: the row is left out), and the corrupt samples.
    """
    bad: list[CorruptSample] = []
    samples = [feed.read(int(batch.positions[row]), bad) for row in rows]
    plans = _plans(policy, numbers[rows.start : rows.stop], samples)
    used = np.full(len(rows), -1)
    for number, row in enumerate(rows):
        sample, plan = samples[number], plans[number]
        while sample is not None:
            try:
                write_sample(sample, plan, row)
                used[number] = sample.position
                break
            except ValueError as error:
                feed.exclude(sample.position, str(error))
                sample = feed.read(int(batch.positions[row]), bad)
                (plan,) = _plans(policy, numbers[row : row + 1], [sample])
    return used, bad


def _plans(policy: AugmentPolicy, numbers: Floats, samples: list[JpegSample | None]) -> list[SamplePlan]:
    heights = np.array([sample.height if sample else 1 for sample in samples])
    widths = np.array([sample.width if sample else 1 for sample in samples])
    return policy.plan(numbers, heights, widths).rows()
