"""The feed: what it reads of a batch at once is what it reads sample by sample."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from in21k.datapipe.batch import CorruptSample
from in21k.datapipe.feed import Feed
from in21k.datapipe.pixels import jpeg_size, jpeg_sizes
from in21k.shards import ShardSet, open_dataset
from in21k.shards.dataset import read_manifest


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_batch_is_read_as_its_samples_are(shard_set: ShardSet, split: str) -> None:
    opened = shard_set.split(split)
    feed, bad = Feed(opened, stand_in=False), list[CorruptSample]()
    positions = np.random.default_rng(0).permutation(len(opened))
    samples = feed.read_all(positions, bad)
    assert samples == [feed.read(position, bad) for position in positions.tolist()]
    assert None not in samples
    assert not bad
    assert feed.read_all(positions[:0], bad) == []
    feed.close()


@pytest.mark.parametrize("stand_in", [True, False])
def test_a_batch_replaces_and_names_corrupt_samples_as_single_reads_do(
    damage: Callable[..., Path], stand_in: bool
) -> None:
    split = open_dataset(damage({1: "changed", 5: "headless", 8: "undecodable"})).split("train")
    by_batch, by_sample = list[CorruptSample](), list[CorruptSample]()
    one, other = Feed(split, stand_in=stand_in), Feed(split, stand_in=stand_in)
    one.exclude(2, "does not decode")
    other.exclude(2, "does not decode")
    positions = np.array([8, 2, 5, 0, 1, 1])
    at_once = one.read_all(positions, by_batch)
    singly = [other.read(position, by_sample) for position in positions.tolist()]
    kept = [number for number, position in enumerate(positions) if position != 8]  # its header is whole
    assert [at_once[number] for number in kept] == [singly[number] for number in kept]
    assert {sample.position for sample in by_batch} - {8} == {sample.position for sample in by_sample} - {8}
    assert {1, 2, 5} <= {sample.position for sample in by_batch}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"quality": 20},
        {"subsampling": 0},
        {"progressive": True},
        {"optimize": True},
        {"icc_profile": b"\xff\xc0\x00\x11\x08" * 99},
        {"comment": b"x" * 100},
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_sizes_of_many_headers_are_those_of_each(options: dict[str, object], mode: str) -> None:
    jpegs = list[bytes]()
    for size in ((1, 1), (640, 480), (3, 300), (65_000, 1)):
        out = io.BytesIO()
        Image.new(mode, size).save(out, "JPEG", **options)
        jpegs.append(out.getvalue())
    sizes = jpeg_sizes([*jpegs, b"", b"no JPEG"])
    assert sizes[-2:] == [None, None]
    assert all(size in (None, jpeg_size(jpeg)) for size, jpeg in zip(sizes, jpegs, strict=False))
    if mode == "RGB" and options.keys() <= {"quality", "subsampling", "optimize"}:
        assert None not in sizes[:-2]


def test_the_largest_sides_are_those_of_the_manifest(shard_set: ShardSet) -> None:
    table = read_manifest(shard_set, ["height", "width"])
    expected = tuple(max(table[name].to_pylist()) for name in ("height", "width"))
    assert shard_set.split("train").largest_sides == expected
