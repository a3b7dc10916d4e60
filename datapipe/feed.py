"""The guarded feed: the JPEGs of a batch in the plan's order, with corrupt samples replaced or left out.

A sample is corrupt if its checksum differs from the manifest or if it does not decode. In training the next good sample
of its shard replaces it; in validation it is left out. The log names it either way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from ..shards.dataset import ShardSplit
from ..shards.reader import CorruptSampleError, SampleReader
from .augment.draws import Floats
from .augment.policy import AugmentPolicy, SamplePlan
from .batch import CorruptSample
from .pixels import jpeg_size, jpeg_sizes
from .plan import PlannedBatch

MAX_TRIES = 100  # guessed: with so many corrupt samples in a row the shard is lost, and a longer search takes hours


class JpegSample(NamedTuple):
    """A stored JPEG with its size in pixels, and its position in the split."""

    position: int
    jpeg: bytes
    height: int
    width: int


WriteSample = Callable[[JpegSample, SamplePlan, int], None]


class Jpeg(Protocol):
    """A JPEG whose size in pixels is known."""

    @property
    def jpeg(self) -> bytes: ...  # noqa: D102
    @property
    def height(self) -> int: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102


Sample = TypeVar("Sample", bound=Jpeg)


class Feed:
    """Reads samples of a split; threads may share it.

    stand_in: replace a corrupt sample by the next good one (training), or leave it out (validation).
    """

    def __init__(self, split: ShardSplit, *, stand_in: bool) -> None:
        self._split = split
        self._stand_in = stand_in
        self._reader = SampleReader(split)
        self._excluded: dict[int, str] = {}

    def exclude(self, position: int, reason: str) -> None:
        """Treat a sample that did not decode as corrupt from now on."""
        self._excluded[position] = reason

    def read_all(self, positions: NDArray[np.int64], bad: list[CorruptSample]) -> list[JpegSample | None]:
        """Return for each position what `read` does, in less time."""
        jpegs = self._reader.images(positions)
        sizes = jpeg_sizes([jpeg or b"" for jpeg in jpegs])
        return [
            JpegSample(position, jpeg, *size)
            if jpeg and size and position not in self._excluded
            else self.read(position, bad)
            for position, jpeg, size in zip(positions.tolist(), jpegs, sizes, strict=True)
        ]

    def read(self, position: int, bad: list[CorruptSample]) -> JpegSample | None:
        """Return the sample at `position`, its replacement, or None; corrupt samples are appended to `bad`.

        Raises OSError if a shard cannot be read, CorruptSampleError if no good sample is found in its place.
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
        """Yield the position itself, then the later ones of its shard, then the earlier ones."""
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
        """Close the shards; the next read opens them again."""
        self._reader.close()

    def fill(
        self, policy: AugmentPolicy, batch: PlannedBatch, numbers: Floats, rows: range, write_sample: WriteSample
    ) -> tuple[NDArray[np.int64], list[CorruptSample]]:
        """Fill some rows of a batch by `write_sample(sample, plan, row)`; see `fill_rows`.

        numbers: `policy.random_numbers(batch)`.

        Return the position whose pixels each row holds (-1: the row is left out), and the corrupt samples.
        """
        corrupt: list[CorruptSample] = []
        positions = batch.positions[rows.start : rows.stop]

        def replace(sample: JpegSample, reason: str, row: int) -> JpegSample | None:
            self.exclude(sample.position, reason)
            return self.read(int(positions[row]), corrupt)

        samples = self.read_all(positions, corrupt)
        written = fill_rows(
            policy,
            samples,
            numbers[rows.start : rows.stop],
            lambda sample, plan, row: write_sample(sample, plan, rows.start + row),
            replace,
        )
        return np.array([-1 if sample is None else sample.position for sample in written], np.int64), corrupt


def fill_rows(
    policy: AugmentPolicy,
    samples: Sequence[Sample | None],
    numbers: Floats,
    write_sample: Callable[[Sample, SamplePlan, int], None],
    replace: Callable[[Sample, str, int], Sample | None],
) -> list[Sample | None]:
    """Call `write_sample(sample, plan, row)` for each sample; return the samples that were written, row by row.

    numbers: the random numbers of the rows. `write_sample` raises ValueError if a sample does not decode;
    `replace(sample, reason, row)` then returns another one for its row, or None to leave the row out.
    """
    written, plans = list(samples), _plans(policy, numbers, samples)
    for row, (sample, plan) in enumerate(zip(samples, plans, strict=True)):
        while sample is not None:
            try:
                write_sample(sample, plan, row)
                break
            except ValueError as error:
                sample = replace(sample, str(error), row)
                (plan,) = _plans(policy, numbers[row : row + 1], [sample])
        written[row] = sample
    return written


def _plans(policy: AugmentPolicy, numbers: Floats, samples: Sequence[Sample | None]) -> list[SamplePlan]:
    heights = np.array([sample.height if sample else 1 for sample in samples], np.int64)
    widths = np.array([sample.width if sample else 1 for sample in samples], np.int64)
    return policy.plan(numbers[: len(samples)], heights, widths).rows()
